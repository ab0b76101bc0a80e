//! The audit log: a decision and an outcome for each request, and no secret in it.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use clawgress_api::{AuditQuery, AuditRecord, Plane, RecordKind, Verdict};
use clawgress_e2e::lab::{Gateway, GatewayOptions, Host, Lab};
use clawgress_e2e::scenario::{ASSISTANT, CRAWLER, Site, TEAM};

use crate::support::{admin, codes, curl, curl_within, denied, finish, proxy, record, site, untouched};

/// L7's records by request: decisions, outcomes.
fn requests(site: &Site) -> BTreeMap<String, (Vec<AuditRecord>, Vec<AuditRecord>)> {
    let mut requests: BTreeMap<_, (Vec<_>, Vec<_>)> = BTreeMap::new();
    for record in admin(site).audit(&AuditQuery::default()).unwrap() {
        if record.plane != Plane::L7 {
            continue;
        }
        let entry = requests.entry(record.request.clone()).or_default();
        match record.kind {
            RecordKind::Decision => entry.0.push(record),
            RecordKind::Outcome => entry.1.push(record),
            RecordKind::Gap | RecordKind::Change => panic!("not of a request: {record:?}"),
        }
    }
    requests
}

#[test]
fn every_request_has_one_decision_and_one_outcome() {
    let site = site();
    let url = proxy(ASSISTANT, &site.assistant_key);
    for n in 0..5 {
        let target = format!("http://api.allowed.test/n/{n}?token=hidden-in-the-query");
        assert_eq!(codes(&curl(&site, Host::Known, &[&target])).0, 200);
    }
    // Two requests on one connection, one allowed and one not.
    let two = ["http://web.allowed.test/public/1", "http://web.allowed.test/private/1"];
    curl(&site, Host::Known, &two);
    curl(&site, Host::Anon, &["-x", &url, "https://api.allowed.test/bytes/100000"]);
    curl(&site, Host::Anon, &["-x", &url, "https://secret.denied.test/"]);
    curl(&site, Host::Known, &["https://secret.denied.test/"]);
    let seen = || {
        let all = requests(&site);
        let whole = |(d, o): &(Vec<_>, Vec<_>)| d.len() == 1 && o.len() == 1;
        Ok(all.len() >= 10 && all.values().all(whole))
    };
    let waited = site.gateway.lab.wait("pairs", std::time::Duration::from_secs(15), seen);
    waited.unwrap_or_else(|e| panic!("{e:#}: {:#?}", requests(&site)));
    for (request, (decision, outcome)) in requests(&site) {
        let (decision, outcome) = (&decision[0], &outcome[0]);
        assert!(decision.time <= outcome.time, "{request}");
        assert!(decision.generation > 0 && decision.verdict.is_some(), "{decision:?}");
        assert_eq!(decision.verdict == Some(Verdict::Deny), decision.reason.is_some(), "{decision:?}");
        assert!(decision.verdict == Some(Verdict::Deny) || !decision.policies.is_empty(), "{decision:?}");
        assert!(outcome.bytes_sent.is_some() && outcome.bytes_received.is_some(), "{outcome:?}");
        assert!(outcome.latency_us.is_some(), "{outcome:?}");
    }
    let big = requests(&site).into_values().map(|(_, o)| o[0].bytes_received.unwrap()).max();
    assert!(big.unwrap() > 100_000, "the tunnel's bytes are counted: {big:?}");
    finish(site);
}

#[test]
fn no_key_and_no_query_is_ever_written() {
    let site = site();
    let url = proxy(ASSISTANT, &site.assistant_key);
    curl(&site, Host::Anon, &["-x", &url, "http://api.allowed.test/a?token=hidden-in-the-query"]);
    curl(&site, Host::Anon, &["-x", &proxy(ASSISTANT, "claw_wrong-and-secret"), "http://api.allowed.test/"]);
    record(&site, "the refusal", |r| denied(r, "credential_invalid"));
    record(&site, "the request", |r| r.destination.path.as_deref() == Some("/a"));
    // The secret part of the key: its public id may be written.
    let secret = site.assistant_key.rsplit('_').next().unwrap().to_owned();
    let mut files = 0;
    let mut look = |dir: &Path| {
        search(dir, &mut |path, bytes| {
            files += 1;
            for needle in [secret.as_str(), "hidden-in-the-query", "wrong-and-secret"] {
                let found = bytes.windows(needle.len()).any(|w| w == needle.as_bytes());
                assert!(!found, "`{needle}` is in {}", path.display());
            }
        })
    };
    look(&site.gateway.lab.dir().join("state"));
    look(&site.gateway.lab.dir().join("logs"));
    assert!(files >= 6, "state and logs were looked at: {files}");
    finish(site);
}

fn search(dir: &Path, each: &mut dyn FnMut(&Path, &[u8])) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            search(&path, each);
        } else {
            each(&path, &fs::read(&path).unwrap());
        }
    }
}

#[test]
fn before_the_first_policy_everything_is_denied_and_recorded() {
    let lab = Lab::builder().start().unwrap();
    let mut gateway = Gateway::start(lab, GatewayOptions::default()).unwrap();
    let admin = gateway.admin().unwrap();
    let crawler_key = admin.create_agent(CRAWLER, TEAM, &Gateway::known_sources()).unwrap();
    let assistant_key = admin.create_agent(ASSISTANT, TEAM, &[]).unwrap();
    gateway.ready().unwrap();
    let site = Site { gateway, crawler_key, assistant_key, intern_key: String::new() };
    for url in ["http://203.0.113.10/", "https://203.0.113.10/", "http://198.51.100.66/"] {
        assert!(!curl_within(&site, Host::Known, 2, &["-k", url]).ok());
    }
    let url = proxy(ASSISTANT, &site.assistant_key);
    let output = curl(&site, Host::Anon, &["-x", &url, "http://api.allowed.test/"]);
    assert_eq!(codes(&output).0, 503, "{output:?}");
    record(&site, "in L7", |r| r.plane == Plane::L7 && denied(r, "policy_missing"));
    record(&site, "in the kernel", |r| r.plane == Plane::Kernel && r.verdict == Some(Verdict::Deny));
    assert!(site.gateway.lab.world().unwrap().requests.is_empty());
    untouched(&site);
}

#[test]
fn the_log_survives_kill_and_restart() {
    let mut site = site();
    curl(&site, Host::Known, &["http://api.allowed.test/kept"]);
    let kept = |r: &AuditRecord| r.destination.path.as_deref() == Some("/kept");
    record(&site, "before", kept);
    let count = admin(&site).audit(&AuditQuery::default()).unwrap().len();
    site.gateway.kill(clawgress_e2e::lab::Role::Control).unwrap();
    site.gateway.launch(clawgress_e2e::lab::Role::Control).unwrap();
    site.gateway.ready().unwrap();
    record(&site, "after", kept);
    assert!(admin(&site).audit(&AuditQuery::default()).unwrap().len() >= count);
    finish(site);
}
