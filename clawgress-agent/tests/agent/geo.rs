//! Geo data and conditions on time through the control role: files, reloads, bad files, turns of the clock.

mod shares;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use clawgress_agent::control;
use clawgress_agent::control::geo::GeoInForce;
use clawgress_agent::control::store::MemoryStore;
use clawgress_api::clock::Clock;
use clawgress_api::proto::Empty;
use clawgress_api::{
    AuditQuery, AuditRecord, GeoStatus, NewPolicy, PolicyRevision, RecordKind, Status, config,
};
use clawgress_identity::PolicyOwner;
use clawgress_policy::{Geo, GeoNames, NamedSets, PolicyBundle, PolicyInForce, PolicyProblem};
use jiff::Timestamp;
use tonic::Code;

use crate::mmdb;
use crate::mmdb::writer::{map, number, text};
use crate::node::{self, Node, Role, Worker, document, parse, until};

const GERMANY: &str =
    r#"@id("de") permit (principal, action == Action::"connect", resource in Country::"DE");"#;
const BOTH: &str = r#"@id("de") permit (principal, action == Action::"connect", resource in Country::"DE");
    @id("as") forbid (principal, action == Action::"connect", resource in Asn::"AS64500");"#;

fn names(asns: &[u32], countries: &[&str]) -> GeoNames {
    GeoNames {
        asns: asns.iter().copied().collect(),
        countries: countries.iter().map(|c| (*c).to_owned()).collect(),
    }
}

fn read(asn: Option<&Path>, country: Option<&Path>, names: &GeoNames) -> Result<GeoInForce, String> {
    let config = config::Geo { asn: asn.map(Path::to_owned), country: country.map(Path::to_owned) };
    GeoInForce::read(&config, names, false).map_err(|e| e.to_string())
}

fn shown(prefixes: Option<&Vec<ipnet::IpNet>>) -> String {
    let all: Vec<String> = prefixes.into_iter().flatten().map(ToString::to_string).collect();
    all.join(" ")
}

#[test]
fn files_are_read_in_every_shape() {
    let dir = tempfile::tempdir().expect("directory");
    let path = dir.path().join("x.mmdb");
    let asn = |number: u32| mmdb::asns(&[("203.0.113.0/25", number), ("203.0.113.128/25", number)]);
    let texts = |asn: &str| mmdb::file("x", &[("203.0.113.0/24", map(&[("asn", text(asn))]))]);
    let numbers = mmdb::file("x", &[("203.0.113.0/24", map(&[("asn", number(64_500))]))]);
    for bytes in [asn(64_500), texts("AS64500"), numbers] {
        mmdb::put(&path, &bytes);
        let geo = read(Some(&path), None, &names(&[64_500, 1], &[])).expect("read").geo;
        let asns = geo.asns.expect("configured");
        assert_eq!(shown(asns.get(&64_500)), "203.0.113.0/24", "neighbours are joined");
        assert!(!asns.contains_key(&1) && geo.countries.is_none());
    }
    let code = |record| mmdb::file("x", &[("203.0.113.0/24", record)]);
    for bytes in [
        mmdb::countries(&[("203.0.113.0/24", "DE")]),
        code(map(&[("country_code", text("DE"))])),
        code(map(&[("country", text("DE")), ("country_name", text("Germany"))])),
        code(map(&[("country", text("Germany")), ("country_code", text("DE"))])),
    ] {
        mmdb::put(&path, &bytes);
        let read = read(None, Some(&path), &names(&[], &["DE"])).expect("read");
        assert_eq!(shown(read.geo.countries.expect("configured").get("DE")), "203.0.113.0/24");
        let source = read.country.expect("source");
        assert_eq!((source.path.as_path(), source.sha256.len()), (path.as_path(), 64));
        assert_eq!(source.built.as_second(), 1_780_000_000);
    }
}

#[test]
fn only_what_is_named_is_expanded_and_all_of_it() {
    let dir = tempfile::tempdir().expect("directory");
    let (asn, country) = (dir.path().join("asn.mmdb"), dir.path().join("country.mmdb"));
    mmdb::put(&asn, &mmdb::asns(&[("198.51.100.0/24", 1), ("2001:db8::/32", 1), ("192.0.2.0/24", 2)]));
    let everywhere =
        [("::/0", "JP"), ("2001:db8::/32", "DE"), ("203.0.113.0/25", "DE"), ("10.0.0.0/8", "FR")];
    mmdb::put(&country, &mmdb::countries(&everywhere));
    let read = |names| read(Some(&asn), Some(&country), &names).expect("read").geo;
    let geo = read(names(&[1], &["DE", "FR"]));
    let (asns, countries) = (geo.asns.expect("asns"), geo.countries.expect("countries"));
    assert_eq!(asns.len(), 1);
    assert_eq!(shown(asns.get(&1)), "198.51.100.0/24 2001:db8::/32");
    assert_eq!(shown(countries.get("DE")), "203.0.113.0/25 2001:db8::/32");
    // What is around IPv4's place in the tree is said of IPv4 too.
    let japan = read(names(&[], &["JP"])).countries.expect("countries");
    let japan = japan.get("JP").expect("prefixes");
    let has = |ip: &str| japan.iter().any(|p| p.contains(&ip.parse::<std::net::IpAddr>().expect("ip")));
    assert!(has("8.8.8.8") && has("203.0.113.128") && has("2001:db7::1"));
    assert!(!has("203.0.113.1") && !has("10.1.1.1") && !has("2001:db8::1"));
    let whole = mmdb::countries(&[("::/0", "JP")]);
    mmdb::put(&country, &whole);
    assert_eq!(shown(read(names(&[], &["JP"])).countries.expect("countries").get("JP")), "0.0.0.0/0 ::/0");
    let nothing = read(names(&[], &[]));
    assert_eq!(nothing, Geo { asns: Some([].into()), countries: Some([].into()) });
}

/// Whatever is wrong with a file, it is said with place and remedy, and nothing breaks.
#[test]
fn bad_files_are_refused_whole() {
    let dir = tempfile::tempdir().expect("directory");
    let path = dir.path().join("c.mmdb");
    let named = names(&[64_500], &["DE"]);
    let country = |bytes: &[u8]| {
        mmdb::put(&path, bytes);
        read(None, Some(&path), &named)
    };
    let missing = read(None, Some(&dir.path().join("none.mmdb")), &named).expect_err("missing");
    assert!(missing.starts_with("cannot read the country data `"), "{missing}");
    assert!(missing.contains("No such file") && missing.contains("correct `[geo] country`"), "{missing}");
    let good =
        mmdb::countries(&[("203.0.113.0/24", "DE"), ("198.51.100.0/24", "FR"), ("2001:db8::/32", "DE")]);
    country(&good).expect("good");
    let asns = mmdb::asns(&[("203.0.113.0/24", 64_500)]);
    for (bytes, why) in [
        (&b""[..], ""),
        (b"not a database", ""),
        (&asns, "it says nothing of any country"),
        (&mmdb::countries(&[]), "it says nothing of any country"),
        (&mmdb::file("x", &[("203.0.113.0/24", map(&[("country_code", number(49))]))]), ""),
    ] {
        let error = country(bytes).expect_err("refused");
        assert!(error.contains("is no usable file of country data: ") && error.contains(why), "{error}");
        assert!(error.contains("correct `[geo] country` in the configuration"), "{error}");
    }
    // Torn: wherever it ends, it is no file.
    for length in (0..good.len()).step_by(7) {
        country(good.get(..length).expect("shorter")).expect_err("torn");
    }
    // Rotten: no flip may break anything but the answer.
    for at in 0..good.len() {
        let mut rotten = good.clone();
        *rotten.get_mut(at).expect("within") ^= 0xff;
        let _ =
            std::panic::catch_unwind(|| country(&rotten)).unwrap_or_else(|_| panic!("byte {at} breaks it"));
    }
}

async fn apply(node: &Node, text: &str) -> Result<PolicyRevision<PolicyBundle>, tonic::Status> {
    let bundle = PolicyBundle { text: text.into(), sets: NamedSets::default() };
    let new = NewPolicy {
        owner: PolicyOwner::default(),
        bundle,
        message: "because".into(),
        author: "me".into(),
        accepted: Vec::new(),
        parent: None,
    };
    let answer = node.admin().apply_policy(document(&new)).await?;
    Ok(parse(&answer.into_inner().json))
}

fn problems(status: &tonic::Status) -> Vec<String> {
    let problems: Vec<PolicyProblem> = serde_json::from_slice(status.details()).unwrap_or_default();
    problems.iter().map(ToString::to_string).collect()
}

type Snapshot = clawgress_api::Snapshot<PolicyInForce>;

async fn snapshot(worker: &mut Worker) -> Snapshot {
    parse(&worker.next().await.document)
}

fn countries(snapshot: Snapshot) -> String {
    let geo = snapshot.policy.expect("policy").surroundings.geo;
    shown(geo.countries.expect("countries").get("DE"))
}

async fn status(node: &Node) -> Status {
    parse(&node.admin().status(Empty {}).await.expect("status").into_inner().json)
}

async fn geo_status(node: &Node) -> GeoStatus {
    parse(&node.admin().geo_status(Empty {}).await.expect("status").into_inner().json)
}

async fn changes(node: &Node) -> Vec<String> {
    let query = AuditQuery { kind: Some(RecordKind::Change), ..AuditQuery::default() };
    let mut stream = node.admin().search_audit(document(&query)).await.expect("search").into_inner();
    let mut records: Vec<AuditRecord> = Vec::new();
    while let Some(document) = stream.message().await.expect("record") {
        records.push(parse(&document.json));
    }
    records.into_iter().map(|r| r.detail.expect("detail")).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_data_a_policy_that_names_any_is_refused() {
    let node = Node::new().start().await;
    let refused = apply(&node, GERMANY).await.expect_err("refused");
    assert_eq!(refused.code(), Code::InvalidArgument);
    let told = problems(&refused);
    let wanted = "1:71: policy `de`: `DE` can't be looked up, because no country data are configured: set `[geo] country = ";
    assert!(told.len() == 1 && told.iter().all(|t| t.starts_with(wanted)), "{told:?}");
    let check = NewPolicy {
        owner: PolicyOwner::default(),
        bundle: PolicyBundle { text: GERMANY.into(), ..PolicyBundle::default() },
        message: String::new(),
        author: String::new(),
        accepted: Vec::new(),
        parent: None,
    };
    node.admin().check_policy(document(&check)).await.expect_err("refused");
    assert_eq!(status(&node).await.generation, 0, "nothing was changed");
    assert_eq!(geo_status(&node).await.parts.iter().filter(|p| p.path.is_some()).count(), 0);
}

fn with_files(dir: &Path) -> String {
    let dir = dir.display();
    format!("[geo]\nasn = \"{dir}/asn.mmdb\"\ncountry = \"{dir}/country.mmdb\"\n")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn data_are_reloaded_live_and_bad_data_change_nothing() {
    let mut node = Node::configured(with_files);
    let (asn, country) = (node.dir.path().join("asn.mmdb"), node.dir.path().join("country.mmdb"));
    node = node.start().await;
    let missing = apply(&node, GERMANY).await.expect_err("no file yet");
    assert_eq!(missing.code(), Code::InvalidArgument);
    assert!(missing.message().contains("country.mmdb`: No such file"), "{missing:?}");
    mmdb::put(&asn, &mmdb::asns(&[("203.0.113.0/24", 64_500)]));
    mmdb::put(&country, &mmdb::countries(&[("198.51.100.0/24", "DE"), ("192.0.2.0/24", "FR")]));
    let mut worker = node.worker("w").await;
    assert_eq!(snapshot(&mut worker).await.generation, 0);

    let unknown = apply(&node, &BOTH.replace("64500", "64501")).await.expect_err("unknown");
    assert!(
        problems(&unknown)
            .iter()
            .any(|p| p.contains("2:75: policy `as`: the ASN data in force have no `AS64501`")),
        "{:?}",
        problems(&unknown)
    );
    let first = apply(&node, BOTH).await.expect("applied");
    let before = snapshot(&mut worker).await;
    assert_eq!((first.generation, before.generation), (Some(1), 1));
    assert_eq!(countries(before), "198.51.100.0/24");

    // Better data: a new generation of the same revision, by itself, and no plane is asked.
    let refusing = node.refusing_worker().await;
    mmdb::put(&country, &mmdb::countries(&[("198.51.100.0/25", "DE"), ("2001:db8::/32", "DE")]));
    let after = snapshot(&mut worker).await;
    drop(refusing);
    assert_eq!(after.generation, 2);
    assert_eq!(countries(after), "198.51.100.0/25 2001:db8::/32");
    assert_eq!(status(&node).await.revision, 1);
    let is_told = |d: &String| {
        d.starts_with("geo data reloaded by the watch over its files: ")
            && d.contains("country.mmdb` (Test-Country, built ")
    };
    until("the record", async || changes(&node).await.iter().any(is_told)).await;
    let geo = geo_status(&node).await;
    assert!(geo.parts.iter().all(|part| part.names == 1 && part.in_force.is_some()), "{geo:?}");

    // Corrupt, then without what is named: complained of, and what is in force stays.
    let torn: Vec<u8> = mmdb::countries(&[("198.51.100.0/24", "DE")]).into_iter().take(60).collect();
    let lost = mmdb::countries(&[("198.51.100.0/24", "FR")]);
    for (bytes, why) in
        [(torn, "is no usable file of country data"), (lost, "the country data in force have no `DE`")]
    {
        mmdb::put(&country, &bytes);
        until("the complaint", async || geo_status(&node).await.trouble.is_some_and(|t| t.contains(why)))
            .await;
        let now = status(&node).await;
        assert_eq!((now.generation, now.revision), (2, 1), "nothing was changed");
        assert!(
            now.warnings.iter().any(|w| w.contains(why) && w.contains("what was in force stays")),
            "{now:?}"
        );
        let asked = node.admin().reload_geo(Empty {}).await.expect_err("refused");
        assert_eq!(asked.code(), Code::InvalidArgument, "{asked:?}");
    }

    // A restart without any file: what was in force still is, and a good file is taken up again.
    std::fs::remove_file(&country).expect("remove");
    node.stop_control().await;
    node.start_control().await;
    let mut worker = node.worker("w").await;
    let kept = snapshot(&mut worker).await;
    assert_eq!((kept.generation, countries(kept)), (2, "198.51.100.0/25 2001:db8::/32".to_owned()));
    mmdb::put(&country, &mmdb::countries(&[("192.0.2.0/24", "DE")]));
    let answer = node.admin().reload_geo(Empty {}).await.expect("reloaded").into_inner();
    let answer: GeoStatus = parse(&answer.json);
    assert_eq!((answer.generation, answer.trouble), (3, None));
    assert_eq!(countries(snapshot(&mut worker).await), "192.0.2.0/24");
    // Other bytes that say the same of what is named are no new generation.
    mmdb::put(&country, &mmdb::countries(&[("192.0.2.0/24", "DE"), ("203.0.113.0/24", "FR")]));
    node.admin().reload_geo(Empty {}).await.expect("reloaded");
    assert_eq!(status(&node).await.generation, 3);
}

#[derive(Debug)]
pub struct SetClock(AtomicI64);

impl SetClock {
    fn set(&self, time: &str) {
        let time: Timestamp = time.parse().expect("time");
        self.0.store(time.as_millisecond(), Ordering::SeqCst);
    }
}

impl Clock for SetClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_millisecond(self.0.load(Ordering::SeqCst)).expect("time")
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_condition_on_time_makes_a_generation_when_it_turns() {
    const HOURS: &str = r#"@id("day") permit (principal, action == Action::"connect", resource)
        when { context.hour >= 9 && context.hour < 17 };"#;
    let zoned = |zone: &'static str| Node::configured(move |_| format!("[time]\nzone = \"{zone}\"\n"));
    let mut node = zoned("Europe/Berlin");
    node.start_keys().await;
    let clock = Arc::new(SetClock(AtomicI64::new(0)));
    clock.set("2026-11-25T07:59:30Z");
    let store = MemoryStore::default();
    let start = |node: &Node| {
        let (config, store) = (Arc::clone(&node.config), Arc::new(store.clone()));
        let clock: Arc<dyn Clock> = Arc::clone(&clock) as Arc<dyn Clock>;
        Role::start(|stop| control::serve(config, store, clock, stop))
    };
    let role = start(&node);
    node::until_there(&node.config.admin_socket()).await;
    let mut worker = node.worker("w").await;
    snapshot(&mut worker).await;
    apply(&node, HOURS).await.expect("applied");
    let first = snapshot(&mut worker).await;
    let zone = first.policy.expect("policy").surroundings.zone;
    assert_eq!((first.generation, zone.name.as_str()), (1, "Europe/Berlin"));
    assert!(zone.offsets.contains(&(1_792_890_000, 3600)), "the end of summer time is in it: {zone:?}");

    clock.set("2026-11-25T08:00:00Z");
    assert_eq!(snapshot(&mut worker).await.generation, 2);
    assert_eq!(status(&node).await.revision, 1, "the revision is the same");
    let told = "a condition on time turned: compiled for 2026-11-25T08:00:00Z in Europe/Berlin";
    until("the record", async || changes(&node).await.iter().any(|d| d == told)).await;
    // Within the window nothing turns; beyond it, what was slept over is made up for, once.
    clock.set("2026-11-25T15:59:59Z");
    tokio::time::sleep(std::time::Duration::from_millis(1_500)).await;
    assert_eq!(status(&node).await.generation, 2);
    clock.set("2026-12-01T12:00:00Z");
    assert_eq!(snapshot(&mut worker).await.generation, 3);
    clock.set("2026-11-20T12:00:00Z");
    assert_eq!(snapshot(&mut worker).await.generation, 4);
    role.stop().await;

    // What turned while nobody was there is made up for before anybody is told.
    clock.set("2026-11-20T20:00:00Z");
    let role = start(&node);
    node::until_there(&node.config.admin_socket()).await;
    let mut worker = node.worker("w").await;
    assert_eq!(snapshot(&mut worker).await.generation, 5);
    role.stop().await;
    // The same state under another configuration, and with it who signs.
    let mut elsewhere = zoned("Asia/Tokyo");
    let keys = |node: &Node| node.config.node.state_dir.join("keys");
    std::fs::create_dir_all(elsewhere.config.node.state_dir.as_path()).expect("directory");
    std::fs::rename(keys(&node), keys(&elsewhere)).expect("moved");
    elsewhere.start_keys().await;
    let role = start(&elsewhere);
    node::until_there(&elsewhere.config.admin_socket()).await;
    let mut worker = elsewhere.worker("w").await;
    let moved = snapshot(&mut worker).await;
    assert_eq!(moved.generation, 6);
    assert_eq!(moved.policy.expect("policy").surroundings.zone.name, "Asia/Tokyo");
    role.stop().await;
}

/// A tenant's policy that has no tables at some hour takes from itself what it has, and from nobody else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_that_fails_at_a_turn_takes_from_nobody_else() {
    let mut node = Node::configured(|_| String::new());
    node.start_keys().await;
    let clock = Arc::new(SetClock(AtomicI64::new(0)));
    clock.set("2026-11-25T02:59:30Z");
    let store = MemoryStore::default();
    let start = |node: &Node| {
        let (config, store) = (Arc::clone(&node.config), Arc::new(store.clone()));
        let clock: Arc<dyn Clock> = Arc::clone(&clock) as Arc<dyn Clock>;
        Role::start(|stop| control::serve(config, store, clock, stop))
    };
    let role = start(&node);
    node::until_there(&node.config.admin_socket()).await;
    for id in ["web", "other", "acme/web"] {
        let agent = clawgress_api::NewAgent {
            id: id.parse().expect("id"),
            team: None,
            project: None,
            environment: None,
            labels: std::collections::BTreeMap::new(),
            sources: vec![],
            key: false,
            missing: clawgress_api::MissingGroups::Create,
        };
        node.admin().create_agent(document(&agent)).await.expect("created");
    }
    let open = r#"@id("all") permit (principal, action == Action::"connect", resource);"#;
    let limit = |n| {
        format!(
            "@id(\"l{n}\") @effect(\"rate-limit\") @limit(\"{} connections/second\") permit (principal, action == Action::\"connect\", resource) when {{ context.hour == 3 }};",
            n + 1
        )
    };
    let five = format!("{open}{}", (0..5).map(limit).collect::<String>());
    let apply = async |owner: PolicyOwner, text: &str| {
        let bundle = PolicyBundle { text: text.to_owned(), ..PolicyBundle::default() };
        let (message, author) = ("x".to_owned(), "x".to_owned());
        let new = NewPolicy { owner, bundle, message, author, accepted: Vec::new(), parent: None };
        node.admin().apply_policy(document(&new)).await
    };
    let acme = || PolicyOwner::Tenant("acme".into());
    apply(PolicyOwner::default(), open).await.expect("applied");
    apply(acme(), &five).await.expect("applied: at this hour there is none of them");
    clock.set("2026-11-25T03:00:00Z");
    let suspended = async || {
        let warnings = status(&node).await.warnings;
        warnings
            .iter()
            .any(|w| w.contains("everything of tenant `acme` is denied: ") && w.contains("5 rate limits"))
    };
    until("it is suspended", suspended).await;
    let told = snapshot(&mut node.worker("w").await).await;
    assert!(told.policy.is_some() && told.tenants.is_empty(), "{told:?}");
    // Whatever else is to be changed is, now, and after a restart in that hour.
    node.admin().delete_agent(clawgress_api::proto::Name { name: "other".into() }).await.expect("deleted");
    role.stop().await;
    let role = start(&node);
    node::until_there(&node.config.admin_socket()).await;
    let told = snapshot(&mut node.worker("w").await).await;
    assert!(told.policy.is_some() && told.tenants.is_empty(), "{told:?}");
    // It counts again when the hour is over, by itself.
    clock.set("2026-11-25T04:00:00Z");
    until("it to count again", async || !suspended().await).await;
    let told = snapshot(&mut node.worker("w").await).await;
    assert!(told.policy.is_some() && told.tenants.len() == 1, "{told:?}");
    let is_told = async || changes(&node).await.iter().any(|d| d.contains("there is room again"));
    until("its record", is_told).await;
    // So it goes the next day, and another policy ends it at once.
    clock.set("2026-11-26T03:00:00Z");
    until("it is suspended again", suspended).await;
    apply(acme(), open).await.expect("applied");
    let told = snapshot(&mut node.worker("w").await).await;
    assert!(told.policy.is_some() && told.tenants.len() == 1, "{told:?}");
    role.stop().await;
}

/// What takes away is done also where nothing else can be, since a policy has no tables at this hour.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_takes_away_does_not_wait_for_an_hour_that_has_tables() {
    let mut node = Node::configured(|_| String::new());
    node.start_keys().await;
    let clock = Arc::new(SetClock(AtomicI64::new(0)));
    clock.set("2026-11-25T02:59:30Z");
    let (config, store) = (Arc::clone(&node.config), Arc::new(MemoryStore::default()));
    let shared: Arc<dyn Clock> = Arc::clone(&clock) as Arc<dyn Clock>;
    let role = Role::start(|stop| control::serve(config, store, shared, stop));
    node::until_there(&node.config.admin_socket()).await;
    let new = |id: &str| clawgress_api::NewAgent {
        id: id.parse().expect("id"),
        team: None,
        project: None,
        environment: None,
        labels: std::collections::BTreeMap::new(),
        sources: vec![],
        key: false,
        missing: clawgress_api::MissingGroups::Create,
    };
    for id in ["web", "other"] {
        node.admin().create_agent(document(&new(id))).await.expect("created");
    }
    let limits = (1..=5).map(|n| {
        format!(
            "@id(\"l{n}\") @effect(\"rate-limit\") @limit(\"{n} connections/second\") permit (principal, action == Action::\"connect\", resource) when {{ context.hour == 3 }};"
        )
    });
    let open = r#"@id("all") permit (principal, action == Action::"connect", resource);"#.to_owned();
    let bundle =
        PolicyBundle { text: limits.fold(open, |text, limit| text + &limit), ..PolicyBundle::default() };
    let (owner, message, author) = (PolicyOwner::default(), "x".to_owned(), "x".to_owned());
    let policy = NewPolicy { owner, bundle, message, author, accepted: Vec::new(), parent: None };
    node.admin().apply_policy(document(&policy)).await.expect("applied: at this hour there is none of them");
    clock.set("2026-11-25T03:00:00Z");
    // Nobody else has tables either, so it is suspended for nobody's sake.
    node.admin().create_agent(document(&new("more"))).await.expect_err("no tables");
    let before = snapshot(&mut node.worker("w").await).await;
    node.admin().delete_agent(clawgress_api::proto::Name { name: "other".into() }).await.expect("deleted");
    let after = snapshot(&mut node.worker("w").await).await;
    assert!(after.generation > before.generation);
    let names: Vec<String> = after.agents.iter().map(|agent| agent.id.to_string()).collect();
    assert_eq!(names, ["default/web"]);
    clock.set("2026-11-25T04:00:00Z");
    node.admin().create_agent(document(&new("more"))).await.expect("created");
    role.stop().await;
}
