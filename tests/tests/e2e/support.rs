//! What every test begins and ends with, and the clients they share.

use std::time::Duration;

use clawgress_api::{AuditQuery, AuditRecord, Plane, RecordKind, Verdict};
use clawgress_e2e::admin::Admin;
use clawgress_e2e::lab::{Forbidden, GatewayOptions, Host, Lab, Output};
use clawgress_e2e::plan::{GATEWAY, PROXY_PORT};
use clawgress_e2e::scenario::Site;

/// Time for a record to be found after what it tells of: queues, a batch, a write.
const RECORD_TIME: Duration = Duration::from_secs(15);

/// A site with the usual agents and policy.
pub fn site() -> Site {
    site_with(GatewayOptions::default())
}

/// As [`site`], set up otherwise.
pub fn site_with(options: GatewayOptions) -> Site {
    Site::start(Lab::builder().start().unwrap(), options).unwrap()
}

/// How each test ends: nothing came to FORBIDDEN, the gateway is well, and a good request succeeds.
#[track_caller]
pub fn finish(mut site: Site) {
    site.gateway.ready().unwrap();
    let good = curl(&site, Host::Known, &["https://api.allowed.test/after"]);
    assert!(good.ok(), "a good request must succeed after whatever came before: {good:?}");
    untouched(&site);
}

/// Nothing came to FORBIDDEN.
#[track_caller]
pub fn untouched(site: &Site) {
    assert_eq!(site.gateway.lab.forbidden().unwrap(), Forbidden::default());
}

/// `curl` with the test CA in a host. Fails fast.
pub fn curl(site: &Site, host: Host, args: &[&str]) -> Output {
    curl_within(site, host, 8, args)
}

/// As [`curl`], within so many seconds.
pub fn curl_within(site: &Site, host: Host, seconds: u32, args: &[&str]) -> Output {
    let ca = site.gateway.lab.ca();
    let seconds = seconds.to_string();
    let mut argv = vec!["curl", "-sS", "--max-time", &seconds, "--cacert", ca.to_str().unwrap()];
    argv.extend(["-w", "\n%{http_code} %{http_connect}", "--noproxy", ""]);
    argv.extend(args);
    site.gateway.lab.run(host, &argv).unwrap()
}

/// Status of the response and of CONNECT, as [`curl`] prints them last.
pub fn codes(output: &Output) -> (u16, u16) {
    let last = output.stdout.lines().last().unwrap_or_default();
    let mut codes = last.split(' ').map(|c| c.parse().unwrap_or(0));
    (codes.next().unwrap_or(0), codes.next().unwrap_or(0))
}

/// The explicit proxy's URL, with a credential.
pub fn proxy(user: &str, key: &str) -> String {
    format!("http://{user}:{key}@{}:{PROXY_PORT}", GATEWAY.v4)
}

/// The administrator.
pub fn admin(site: &Site) -> Admin {
    site.gateway.admin().unwrap()
}

/// Waits for records: at least one that `fits`.
#[track_caller]
pub fn record(site: &Site, what: &str, fits: impl Fn(&AuditRecord) -> bool) -> AuditRecord {
    let mut found = None;
    let mut all = Vec::new();
    let waited = site.gateway.lab.wait(what, RECORD_TIME, || {
        all = admin(site).audit(&AuditQuery::default())?;
        found = all.iter().find(|r| fits(r)).cloned();
        Ok(found.is_some())
    });
    if let Err(error) = waited {
        let lines: Vec<String> = all.iter().map(|r| serde_json::to_string(r).unwrap()).collect();
        panic!("no record: {error:#}\n{}", lines.join("\n"));
    }
    found.unwrap()
}

/// Waits for the decision and the outcome of one request: they are joined by its id.
#[track_caller]
pub fn pair(site: &Site, what: &str, fits: impl Fn(&AuditRecord) -> bool) -> (AuditRecord, AuditRecord) {
    let decision = record(site, what, |r| r.kind == RecordKind::Decision && fits(r));
    let request = decision.request.clone();
    let outcome = record(site, &format!("{what}: its outcome"), |r| {
        r.kind == RecordKind::Outcome && r.request == request
    });
    (decision, outcome)
}

/// Waits until the proxy has ended `count` exchanges of `agent` for `reason`, and the change that is the cause is on record. Nothing
/// is asked of anybody meanwhile, so that what was revoked was pushed to what lives. Prints how long after the change the last
/// of them ended.
#[track_caller]
pub fn cut(site: &Site, (who, reason, count): (&str, &str, usize), cause: impl Fn(&AuditRecord) -> bool) {
    let is_end = |r: &AuditRecord| {
        let is_so = r.reason.is_some_and(|found| found.name() == reason);
        r.plane == Plane::L7 && r.kind == RecordKind::Outcome && agent(r) == Some(who) && is_so
    };
    let mut time = None;
    let waited = site.gateway.lab.wait("the end of what was under way", RECORD_TIME, || {
        let all = admin(site).audit(&AuditQuery::default())?;
        let caused = all.iter().filter(|r| r.kind == RecordKind::Change && cause(r)).map(|r| r.time).max();
        let ended: Vec<_> = all.iter().filter(|r| is_end(r)).map(|r| r.time).collect();
        time = ended.iter().max().zip(caused).map(|(ended, caused)| ended.duration_since(caused));
        Ok(ended.len() >= count && time.is_some())
    });
    waited.unwrap();
    println!(
        "{count} of `{who}` cut ({reason}) {:#} after the cause, before anything else was asked",
        time.unwrap()
    );
}

/// Has what was decided since then decided again by the policy that is live: all of it alike, by the same policies and with the same
/// effects, and so much at least.
#[track_caller]
pub fn replays_alike(site: &Site, since: jiff::Timestamp, least: u64) {
    let (live, since) = (admin(site).status().unwrap().revision.to_string(), since.to_string());
    let words = ["policy", "replay", "-o", "json", "-n", "50000", "--since", &since, &live];
    let output = site.gateway.ctl(&words).unwrap().check().unwrap();
    let again: serde_json::Value = serde_json::from_str(&output.stdout).unwrap();
    for kind in ["changed", "obliged"] {
        assert!(again[kind].as_array().unwrap().is_empty(), "{kind}: {again:#}");
    }
    assert!(again["undecidable"].as_object().unwrap().is_empty(), "{again:#}");
    assert_eq!(again["otherwise"], 0, "{again:#}");
    assert!(again["same"].as_u64().unwrap() >= least, "{again:#}");
}

/// Whether a record is a denial for `reason`.
pub fn denied(record: &AuditRecord, reason: &str) -> bool {
    record.verdict == Some(Verdict::Deny) && record.reason.is_some_and(|r| r.name() == reason)
}

/// Whether a record is about this host name.
pub fn to_host(record: &AuditRecord, host: &str) -> bool {
    record.destination.host.as_deref() == Some(host)
}

/// The agent's name in a record.
pub fn agent(record: &AuditRecord) -> Option<&str> {
    record.agent.as_ref().map(|a| a.agent.as_str())
}
