//! What tenants share, and who gives way where it is not enough for all.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use clawgress_agent::control;
use clawgress_agent::control::store::MemoryStore;
use clawgress_api::clock::Clock;
use clawgress_api::{MissingGroups, NewAgent, NewPolicy, proto};
use clawgress_identity::PolicyOwner;
use clawgress_policy::PolicyBundle;

use super::{SetClock, changes, snapshot, status};
use crate::node::{self, Node, Role, document, parse, until};

const OPEN: &str = r#"@id("all") permit (principal, action == Action::"connect", resource);"#;

/// A policy that needs [`combinations`] of limits.
fn limits(count: usize, pace: usize, hour: &str) -> String {
    let limit = |id: String, condition: String| {
        format!(
            "@id(\"{id}\") @effect(\"rate-limit\") @limit(\"{pace} connections/second\") permit (principal, action == Action::\"connect\", resource) when {{ {hour}{condition} }};"
        )
    };
    let address = |n| limit(format!("a{n}"), format!("context.ip == ip(\"192.0.2.{n}\")"));
    let port = |n| limit(format!("p{n}"), format!("context.port == {}", 1_000 + n));
    let all = (0..count).flat_map(|n| [address(n), port(n)]);
    let protocol = |name: &str| limit(name.to_owned(), format!("context.protocol == \"{name}\""));
    format!("{OPEN}{}{}{}", protocol("tcp"), protocol("udp"), all.collect::<String>())
}

/// How many: one of each address, port and protocol or none; and of addresses alone where there are no ports.
fn combinations(count: usize) -> usize {
    2 * (count + 1) * (count + 1) + (count + 1)
}

/// Waits until `done`: what is compiled again and again takes its time without optimization.
async fn sometime(what: &str, done: impl AsyncFn() -> bool) {
    for _ in 0..1_200 {
        if done().await {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    }
    panic!("waited in vain for {what}");
}

/// More than half of what there is, and less than half, and both too much.
const MORE: usize = 33;
const LESS: usize = 30;
/// More than there is.
const MUCH: usize = 46;

const AT_THREE: &str = "context.hour == 3 && ";

struct Tenants {
    node: Node,
    clock: Arc<SetClock>,
    role: Role,
}

impl Tenants {
    async fn start(config: &'static str) -> Self {
        let mut node = Node::configured(|_| config.to_owned());
        node.start_keys().await;
        let clock = Arc::new(SetClock(AtomicI64::new(0)));
        clock.set("2026-11-25T02:59:30Z");
        let (config, store) = (Arc::clone(&node.config), Arc::new(MemoryStore::default()));
        let shared: Arc<dyn Clock> = Arc::clone(&clock) as Arc<dyn Clock>;
        let role = Role::start(|stop| control::serve(config, store, shared, stop));
        node::until_there(&node.config.admin_socket()).await;
        let this = Tenants { node, clock, role };
        for id in ["web", "acme/web", "beta/web"] {
            let agent = NewAgent {
                id: id.parse().expect("id"),
                team: None,
                project: None,
                environment: None,
                labels: std::collections::BTreeMap::new(),
                sources: vec![],
                key: false,
                missing: MissingGroups::Create,
            };
            this.node.admin().create_agent(document(&agent)).await.expect("created");
        }
        this
    }

    async fn apply(&self, tenant: &str, text: &str) -> Result<(), tonic::Status> {
        let owner = PolicyOwner::of_tenant(tenant).expect("tenant");
        let bundle = PolicyBundle { text: text.to_owned(), ..PolicyBundle::default() };
        let (message, author) = ("x".to_owned(), "x".to_owned());
        let new = NewPolicy { owner, bundle, message, author, accepted: Vec::new(), parent: None };
        self.node.admin().apply_policy(document(&new)).await.map(drop)
    }

    /// Whether what is told as not in force is this tenant's, and no other's.
    async fn suspends(&self, tenant: &str) -> bool {
        let warnings = status(&self.node).await.warnings;
        let told: Vec<&String> = warnings.iter().filter(|w| w.contains("is not in force")).collect();
        told.len() == 1
            && told.iter().all(|w| w.contains(&format!("everything of tenant `{tenant}` is denied")))
    }
}

/// Each tenant's tables fit, and all together don't: who takes most gives way, for as long as it must.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_only_the_sum_fails_the_largest_gives_way() {
    let tenants = Tenants::start("[tenants]\nshare_percent_max = 100\n").await;
    tenants.apply("default", OPEN).await.expect("applied");
    tenants
        .apply("beta", &limits(LESS, 2, AT_THREE))
        .await
        .expect("applied: there is none of them at this hour");
    tenants.apply("acme", &limits(MORE, 3, AT_THREE)).await.expect("applied");
    tenants.clock.set("2026-11-25T03:00:00Z");
    sometime("the largest to give way", async || tenants.suspends("acme").await).await;
    let told = snapshot(&mut tenants.node.worker("w").await).await;
    let names: Vec<&String> = told.tenants.keys().collect();
    assert!(told.policy.is_some() && names == ["beta"], "{names:?}");
    let warnings = status(&tenants.node).await.warnings;
    let told = format!("`acme` takes {} of 4096 combinations of rate limits", combinations(MORE));
    assert!(warnings.iter().any(|w| w.contains(&told)), "{warnings:?}");

    // When another makes room, it counts again; and so when the hour is over.
    tenants.apply("beta", OPEN).await.expect("applied");
    sometime("it to count again", async || !tenants.suspends("acme").await).await;
    let told = snapshot(&mut tenants.node.worker("w").await).await;
    assert_eq!(told.tenants.len(), 2);
    let told = async || changes(&tenants.node).await.iter().any(|d| d.contains("there is room again"));
    until("the record", told).await;
    tenants.role.stop().await;
}

/// What one takes is bounded where there are several, and who takes how much is told to whom there is not enough for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_takes_no_more_than_its_share() {
    let tenants = Tenants::start("").await;
    // Alone, it may.
    tenants.apply("acme", &limits(MORE, 3, "")).await.expect("applied");
    let (more, less) = (combinations(MORE), combinations(LESS));
    let refused =
        tenants.apply("beta", &limits(MORE, 2, "")).await.expect_err("refused").message().to_owned();
    let told = format!("tenant `beta` takes {more} of 4096 combinations of rate limits");
    assert!(refused.contains(&told) && refused.contains("may take 50 %"), "{refused}");
    let refused = tenants.apply("beta", &limits(LESS, 2, "")).await.expect_err("refused");
    let problems = String::from_utf8_lossy(refused.details()).into_owned();
    assert!(problems.contains(&format!("tenant `acme` takes {more} of 4096")), "{problems}");
    assert!(problems.contains(&format!("tenant `beta` takes {less} of 4096")), "{problems}");
    tenants.apply("beta", OPEN).await.expect("applied");

    // Who is above its share by then may tighten, shrink and change; not grow.
    let forbid =
        "@id(\"no\") forbid (principal, action == Action::\"connect\", resource) when { context.port == 9 };";
    tenants.apply("acme", &format!("{}{forbid}", limits(MORE, 3, ""))).await.expect("it only takes away");
    tenants.apply("acme", &limits(MORE - 1, 4, "")).await.expect("it shrinks");
    tenants.apply("acme", &limits(MORE - 1, 5, "")).await.expect("it takes the same");
    let refused = tenants.apply("acme", &limits(MORE, 3, "")).await.expect_err("refused");
    assert!(refused.message().contains("may take 50 %"), "{refused}");
    tenants.role.stop().await;
}

/// One whose policy left force for want of room has its share all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_has_left_force_keeps_its_share() {
    let tenants = Tenants::start("").await;
    tenants.apply("default", OPEN).await.expect("applied");
    tenants.apply("acme", &limits(MUCH, 3, AT_THREE)).await.expect("applied: there is none of it yet");
    tenants.clock.set("2026-11-25T03:00:00Z");
    sometime("it to leave force", async || tenants.suspends("acme").await).await;
    let refused = tenants.apply("beta", &limits(MORE, 2, "")).await.expect_err("refused");
    assert!(refused.message().contains("may take 50 %"), "{refused}");
    tenants.role.stop().await;
}

/// What counts again gives something: planes prepare it, as any change that does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_has_room_again_is_prepared_by_the_planes() {
    let tenants = Tenants::start("[tenants]\nshare_percent_max = 100\n").await;
    tenants.apply("default", OPEN).await.expect("applied");
    tenants.apply("beta", &limits(LESS, 2, AT_THREE)).await.expect("applied");
    tenants.apply("acme", &limits(MORE, 3, AT_THREE)).await.expect("applied");
    tenants.clock.set("2026-11-25T03:00:00Z");
    sometime("the largest to give way", async || tenants.suspends("acme").await).await;
    let can = Arc::new(AtomicBool::new(false));
    let has_acme = |snapshot: &proto::Snapshot| {
        // One that tells who is quarantined, and nothing else, has no document.
        let document = || parse::<serde_json::Value>(&snapshot.document);
        !snapshot.document.is_empty() && document()["tenants"].get("acme").is_some()
    };
    let answer = {
        let can = Arc::clone(&can);
        move |snapshot: &proto::Snapshot| {
            let refuses = has_acme(snapshot) && !can.load(Ordering::Relaxed);
            Some(if refuses { "no memory".to_owned() } else { String::new() })
        }
    };
    let mut worker = tenants.node.preparing_worker("w", answer).await;
    tenants.apply("beta", OPEN).await.expect("applied");
    loop {
        // As long as it takes to compile all of it without optimization.
        let asked = worker.received.recv().await.expect("the stream goes on");
        if asked.prepare != 0 && has_acme(&asked) {
            break;
        }
        assert!(!has_acme(&asked), "it counts, and nobody prepared it");
    }
    assert!(tenants.suspends("acme").await, "a plane can't take it");
    // It is tried again when something changes.
    can.store(true, Ordering::Relaxed);
    tenants.apply("beta", &limits(1, 2, "")).await.expect("applied");
    sometime("it to count again", async || !tenants.suspends("acme").await).await;
    tenants.role.stop().await;
}
