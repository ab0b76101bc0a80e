//! Bundles of trust domains as control follows them: of a Workload API and of bundle endpoints, into every generation of
//! L7, and out of it.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clawgress_api::proto::{Empty, Name};
use clawgress_api::{AuditQuery, AuditRecord, BundleStatus, KeysState, RecordKind};
use clawgress_identity::{RootId, SpiffeBundle, TrustDomainRecord};
use clawgress_policy::PolicyBundle;
use serde_json::json;
use tonic::Code;

use crate::https::{Ca, Site};
use crate::node::{Node, PATIENCE, Worker, document, parse, until};
use crate::workload_api::{Says, WorkloadApi};

type Snapshot = clawgress_api::Snapshot<PolicyBundle>;

const DOMAIN: &str = "spiffe://d.test";
/// RFC 7517 appendix A.1, with the id of a key for JWT-SVIDs.
const KEYS: &str = r#"{"keys":[{"kty":"EC","crv":"P-256","kid":"a","x":"MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4","y":"4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM"}]}"#;

fn record(source: serde_json::Value, bundle: &str, audiences: &[&str]) -> TrustDomainRecord {
    let record = json!({
        "id": "spire", "domain": "d.test", "audiences": audiences, "bundle": bundle, "source": source,
        "mapping": {"agent": {"from": "path", "prefix": "/agent/"}}
    });
    serde_json::from_value(record).expect("record")
}

fn by_workload_api(stale_s_max: u32) -> TrustDomainRecord {
    record(json!({"workload_api": {"stale_s_max": stale_s_max}}), "", &["gateway"])
}

fn says(certificates: &[&Ca]) -> Says {
    let der: Vec<u8> = certificates.iter().flat_map(|ca| ca.der()).collect();
    Says {
        certificates: [(DOMAIN.to_owned(), der)].into(),
        keys: [(DOMAIN.to_owned(), KEYS.as_bytes().to_vec())].into(),
        ..Says::default()
    }
}

/// A node whose Workload API is at a path in its directory, not started.
fn node() -> (Node, std::path::PathBuf) {
    let mut path = std::path::PathBuf::new();
    let node = Node::configured(|directory| {
        path = directory.join("workload.sock");
        format!("[spiffe]\nworkload_api = \"unix://{}\"\n", path.display())
    });
    (node, path)
}

/// How many certificates and keys the trust domain's bundle has in the first generation in which they are `wanted`;
/// `None`: it has no bundle.
async fn until_trusted(worker: &mut Worker, wanted: Option<(Vec<String>, usize)>) {
    let id: RootId = "spire".parse().expect("id");
    let mut wanted = wanted;
    if let Some((certificates, _)) = &mut wanted {
        certificates.sort();
    }
    let mut last = None;
    let trusted = async {
        loop {
            let document = worker.next().await.document;
            if document.is_empty() {
                continue;
            }
            let snapshot: Snapshot = parse(&document);
            assert!(snapshot.roots.bundles.keys().all(|known| *known == id), "nobody else was configured");
            last = snapshot.roots.bundles.get(&id).map(|bundle| {
                let bundle = SpiffeBundle::parse(bundle.as_bytes()).expect("bundle");
                let mut certificates = bundle.thumbprints().to_vec();
                certificates.sort();
                (certificates, bundle.keys().len())
            });
            if last == wanted {
                return;
            }
        }
    };
    let found = tokio::time::timeout(PATIENCE, trusted).await;
    assert!(found.is_ok(), "{wanted:?} is not among what came, which was last {last:?}");
}

fn of(certificates: &[&Ca], keys: usize) -> Option<(Vec<String>, usize)> {
    Some((certificates.iter().map(|ca| ca.thumbprint()).collect(), keys))
}

async fn status(node: &Node) -> BundleStatus {
    let listed = node.admin().bundle_status(Empty {}).await.expect("status").into_inner().json;
    parse(listed.first().expect("a source"))
}

async fn set(node: &Node, record: &TrustDomainRecord) {
    node.admin().set_trust_domain(document(record)).await.expect("set");
}

/// What audit was told of changes.
async fn told(node: &Node) -> Vec<String> {
    let query = AuditQuery { kind: Some(RecordKind::Change), ..AuditQuery::default() };
    let mut found = node.admin().search_audit(document(&query)).await.expect("audit").into_inner();
    let mut log = Vec::new();
    while let Some(line) = found.message().await.expect("record") {
        log.extend(parse::<AuditRecord>(&line.json).detail);
    }
    log
}

async fn until_failing(node: &Node, why: &str) {
    let mut last = None;
    let failing = async {
        loop {
            last = status(node).await.error;
            if last.as_ref().is_some_and(|error| error.contains(why)) {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    };
    let found = tokio::time::timeout(PATIENCE, failing).await;
    assert!(found.is_ok(), "the failure is to be `{why}`, and was last {last:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_workload_api_is_followed_as_it_rotates_and_takes_back() {
    let (old, new) = (Ca::new(), Ca::new());
    let (node, path) = node();
    let api = WorkloadApi::start(&path, says(&[&old]));
    let node = node.start().await;
    let mut worker = node.worker("w").await;
    set(&node, &by_workload_api(600)).await;
    until_trusted(&mut worker, of(&[&old], 1)).await;
    let fresh = status(&node).await;
    assert_eq!(
        (fresh.state, fresh.certificates, fresh.error),
        (KeysState::Fresh, vec![old.thumbprint()], None)
    );
    assert!(fresh.source.contains(&format!("unix://{}", path.display())), "{}", fresh.source);
    // An authority more, and then the first no more, whatever planes say.
    let refusing = node.refusing_worker().await;
    api.say(|says| says.certificates = self::says(&[&old, &new]).certificates);
    until_trusted(&mut worker, of(&[&old, &new], 1)).await;
    api.say(|says| says.certificates = self::says(&[&new]).certificates);
    until_trusted(&mut worker, of(&[&new], 1)).await;
    drop(refusing);
    api.say(|says| says.keys.insert(DOMAIN.to_owned(), br#"{"keys":[]}"#.to_vec()).map_or((), drop));
    until_trusted(&mut worker, of(&[&new], 0)).await;
    // Trust domains that nobody configured are told of, and never trusted.
    api.say(|says| {
        for foreign in ["spiffe://foreign.test", "spiffe://d.test/agent/x", "\u{1b}[31mno id"] {
            says.certificates.insert(foreign.to_owned(), old.der());
        }
    });
    until("the foreign ones", async || status(&node).await.ignored.len() == 3).await;
    until("audit of them", async || {
        told(&node).await.iter().any(|d| d.contains("not configured") && d.contains("spiffe://foreign.test"))
    })
    .await;
    assert!(status(&node).await.ignored.iter().all(|name| !name.contains('\u{1b}')));
    // What is not in a message is taken back.
    api.say(|says| {
        says.certificates.remove(DOMAIN);
        says.keys = [("spiffe://foreign.test".to_owned(), KEYS.as_bytes().to_vec())].into();
    });
    until_trusted(&mut worker, None).await;
    assert_eq!(status(&node).await.state, KeysState::None);
    api.say(|says| *says = self::says(&[&old]));
    until_trusted(&mut worker, of(&[&old], 1)).await;
    // And all of it, by who may not have it.
    api.say(|says| says.status = Some(Code::PermissionDenied));
    until_trusted(&mut worker, None).await;
    until_failing(&node, "PermissionDenied").await;
    let told = told(&node).await;
    for said in [
        "trust domain set by root",
        "came of its source: certificates sha256:",
        "withdrawn: its source has it no more",
    ] {
        assert!(told.iter().any(|detail| detail.contains(said)), "`{said}`: {told:#?}");
    }
    node.admin().delete_trust_domain(Name { name: "spire".into() }).await.expect("deleted");
    until("nobody to be followed", async || {
        node.admin().bundle_status(Empty {}).await.expect("status").into_inner().json.is_empty()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bundle_counts_for_a_while_without_the_workload_api_and_over_a_restart() {
    let (old, new) = (Ca::new(), Ca::new());
    let (node, path) = node();
    let api = WorkloadApi::start(&path, says(&[&old]));
    let mut node = node.start().await;
    let mut worker = node.worker("w").await;
    set(&node, &by_workload_api(600)).await;
    until_trusted(&mut worker, of(&[&old], 1)).await;
    let away = api.stop().await;
    until("the failure", async || status(&node).await.failures > 0).await;
    node.stop_control().await;
    node.start_control().await;
    let mut worker = node.worker("w").await;
    until_trusted(&mut worker, of(&[&old], 1)).await;
    until("the failure again", async || status(&node).await.failures > 0).await;
    assert_ne!(status(&node).await.state, KeysState::None);
    // For as long as it may: without time to be stale it ends.
    set(&node, &by_workload_api(0)).await;
    until_trusted(&mut worker, None).await;
    let is_told = async || {
        told(&node).await.iter().any(|d| d.contains("did not confirm it for as long as it may be stale"))
    };
    until("audit of it", is_told).await;
    // It comes back, and has rotated.
    away.say(|says| *says = self::says(&[&new]));
    let _api = away.start();
    until_trusted(&mut worker, of(&[&new], 1)).await;
    until("no failure", async || status(&node).await.failures == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hostile_workload_api_changes_nothing() {
    let (own, other) = (Ca::new(), Ca::new());
    let (node, path) = node();
    let api = WorkloadApi::start(&path, says(&[&own]));
    let node = node.start().await;
    let mut worker = node.worker("w").await;
    set(&node, &by_workload_api(600)).await;
    until_trusted(&mut worker, of(&[&own], 1)).await;
    let before = status(&node).await.certificates;
    let garbage = |certificates: Vec<u8>| Says {
        certificates: [(DOMAIN.to_owned(), certificates)].into(),
        ..says(&[])
    };
    let mut torn = other.der();
    torn.truncate(torn.len() - 1);
    for (what, why) in [
        (garbage(b"\x30\x03garbage".to_vec()), "not DER"),
        (garbage(torn), "not DER"),
        (garbage(vec![0x30, 0x00]), "not the certificate of an authority"),
        (garbage(other.der().repeat(65)), "more than 64 certificates"),
        (Says { lists: vec![vec![1]], ..says(&[&other]) }, "revocation lists"),
        (Says { certificates: [].into(), ..says(&[]) }, "no bundles"),
        (
            Says {
                keys: [(
                    DOMAIN.to_owned(),
                    b"{\"keys\":[{\"kty\":\"oct\",\"kid\":\"a\",\"k\":\"AA\"}]}".to_vec(),
                )]
                .into(),
                ..says(&[&own])
            },
            "private or symmetric",
        ),
        (Says { certificates: [(DOMAIN.to_owned(), vec![0x30; 2 << 20])].into(), ..says(&[]) }, "OutOfRange"),
    ] {
        api.say(|says| *says = what);
        until_failing(&node, why).await;
        api.say(|says| *says = self::says(&[&own]));
        until("it to be well again", async || status(&node).await.error.is_none()).await;
    }
    // One that ends each stream is asked ever less often, and what it says counts.
    api.say(|says| says.flaps = true);
    until("failures", async || status(&node).await.failures > 0).await;
    let is_paused = async || {
        let opened = api.opened();
        tokio::time::sleep(std::time::Duration::from_millis(1500)).await;
        api.opened() == opened
    };
    until("a pause of seconds", is_paused).await;
    assert_eq!(status(&node).await.certificates, before);
    let log = told(&node).await;
    let came = log.iter().filter(|detail| detail.contains("came of its source")).count();
    assert_eq!(came, 1, "nothing of it was another bundle: {log:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_node_is_not_set_up_for_is_refused() {
    let node = Node::new().start().await;
    let refused = node.admin().set_trust_domain(document(&by_workload_api(600))).await.expect_err("refused");
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused:?}");
    assert!(refused.message().contains("`workload_api` of [spiffe]"), "{refused:?}");
    let source =
        json!({"endpoint": {"url": "https://localhost/", "profile": {"https_spiffe": "spiffe://d.test/s"}}});
    let refused =
        node.admin().set_trust_domain(document(&record(source, "", &[]))).await.expect_err("refused");
    assert!(refused.message().contains("give a first bundle"), "{refused:?}");
}

/// A bundle document of authorities.
fn bundle(sequence: u64, certificates: &[&Ca]) -> String {
    let key = |ca: &&Ca| json!({"kty": "EC", "use": "x509-svid", "x5c": [STANDARD.encode(ca.der())]});
    let keys: Vec<_> = certificates.iter().map(key).collect();
    json!({"spiffe_sequence": sequence, "spiffe_refresh_hint": 300, "keys": keys}).to_string()
}

fn endpoint(site: &Site, profile: serde_json::Value, networks: &[&str], ca: &str) -> serde_json::Value {
    json!({"endpoint": {
        "url": format!("https://localhost:{}/bundle", site.port), "profile": profile, "fresh_s_max": 1,
        "stale_s_max": 600, "networks": networks, "ca": ca
    }})
}

const LOOPBACK: [&str; 2] = ["127.0.0.0/8", "::1/128"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bundle_endpoint_by_its_host() {
    let (old, new, web) = (Ca::new(), Ca::new(), Ca::new());
    let site = Site::start(&web.host("localhost")).await;
    site.serve("/bundle", &bundle(7, &[&old]));
    let node = Node::new().start().await;
    let mut worker = node.worker("w").await;
    set(&node, &record(endpoint(&site, json!("https_web"), &[], &web.pem), "", &[])).await;
    until_failing(&node, "private or reserved").await;
    set(&node, &record(endpoint(&site, json!("https_web"), &LOOPBACK, ""), "", &[])).await;
    until_failing(&node, "TLS with").await;
    let right = record(endpoint(&site, json!("https_web"), &LOOPBACK, &web.pem), "", &[]);
    set(&node, &right).await;
    until_trusted(&mut worker, of(&[&old], 0)).await;
    assert_eq!(status(&node).await.sequence, Some(7));
    site.serve("/bundle", &bundle(8, &[&old, &new]));
    until_trusted(&mut worker, of(&[&old, &new], 0)).await;
    // One that was there before never comes back, and what is no bundle changes nothing.
    for (body, why) in [
        (bundle(7, &[&old]), "older than that in force"),
        ("[]".to_owned(), "not an object"),
        ("x".repeat(1 << 20), "more than"),
    ] {
        // Its pauses grow by each failure; what is set again is asked at once.
        set(&node, &record(endpoint(&site, json!("https_web"), &LOOPBACK, ""), "", &[])).await;
        set(&node, &right).await;
        site.serve("/bundle", &bundle(8, &[&old, &new]));
        until_trusted(&mut worker, of(&[&old, &new], 0)).await;
        site.serve("/bundle", &body);
        until_failing(&node, why).await;
        assert_eq!(status(&node).await.certificates.len(), 2);
    }
    // All that was published is taken back.
    site.serve("/bundle", &bundle(9, &[]));
    set(&node, &record(endpoint(&site, json!("https_web"), &LOOPBACK, ""), "", &[])).await;
    set(&node, &right).await;
    until_trusted(&mut worker, of(&[], 0)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bundle_endpoint_by_its_svid() {
    let (old, new) = (Ca::new(), Ca::new());
    let server = "spiffe://d.test/bundles";
    let mut site = Site::start(&old.svid(server)).await;
    site.serve("/bundle", &bundle(1, &[&old, &new]));
    let node = Node::new().start().await;
    let mut worker = node.worker("w").await;
    let by = |site: &Site, id: &str, first: &Ca| {
        let source = endpoint(site, json!({"https_spiffe": id}), &LOOPBACK, "");
        record(source, &bundle(0, &[first]), &[])
    };
    set(&node, &by(&site, "spiffe://d.test/other", &old)).await;
    until_failing(&node, "it is not `spiffe://d.test/other`").await;
    set(&node, &by(&site, server, &new)).await;
    until_failing(&node, "leads to no trusted authority").await;
    set(&node, &by(&site, server, &old)).await;
    until_trusted(&mut worker, of(&[&old, &new], 0)).await;
    // Its own authority is rotated: it is known by the bundle that came last.
    site.present(&new.svid(server));
    site.serve("/bundle", &bundle(2, &[&new]));
    until_trusted(&mut worker, of(&[&new], 0)).await;
    until("no failure", async || status(&node).await.failures == 0).await;
    site.present(&old.svid(server));
    until_failing(&node, "leads to no trusted authority").await;
}

/// An endpoint of another trust domain is known by that one's bundle as it is in force.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bundle_endpoint_of_another_trust_domain() {
    let (host, own) = (Ca::new(), Ca::new());
    let site = Site::start(&host.svid("spiffe://host.test/bundles")).await;
    site.serve("/bundle", &bundle(1, &[&own]));
    let node = Node::new().start().await;
    let mut worker = node.worker("w").await;
    let source = endpoint(&site, json!({"https_spiffe": "spiffe://host.test/bundles"}), &LOOPBACK, "");
    set(&node, &record(source, "", &[])).await;
    until_failing(&node, "trust domain `host.test`, which is not configured").await;
    let given = json!({
        "id": "host", "domain": "host.test", "bundle": bundle(1, &[&host]),
        "mapping": {"agent": {"from": "path", "prefix": "/agent/"}}
    });
    set(&node, &serde_json::from_value(given).expect("record")).await;
    until_trusted(&mut worker, of(&[&own], 0)).await;
}
