//! API keys as control does them: several an agent, rotated with an overlap, revoked for good, and never shown.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use clawgress_api::leaves::Client;
use clawgress_api::proto::keys_client::KeysClient;
use clawgress_api::proto::{Empty, MacApiKeyRequest, MintRequest, Name, NewRun};
use clawgress_api::socket::{Server, Servers};
use clawgress_api::{
    ApiKeyInfo, ApiKeyRotation, ApiKeyState, AuditQuery, AuditRecord, CreatedAgent, CreatedApiKey, NewAgent,
    NewApiKey, RecordKind, RunSession, socket,
};
use clawgress_identity::{ApiKey, IdentityError, Origin, TrustSnapshot};
use clawgress_policy::PolicyBundle;
use jiff::{SignedDuration, Timestamp};
use tonic::{Code, Status};

use crate::node::{Node, Worker, document, parse, until};

type Snapshot = clawgress_api::Snapshot<PolicyBundle>;

const ONE_SECOND: SignedDuration = SignedDuration::from_secs(1);
const HOUR: SignedDuration = SignedDuration::from_hours(1);

async fn agent(node: &Node, name: &str) -> String {
    let new = serde_json::json!({"id": name, "key": true});
    let new: NewAgent = serde_json::from_value(new).expect("agent");
    let created = node.admin().create_agent(document(&new)).await.expect("created").into_inner();
    parse::<CreatedAgent>(&created.json).api_key.expect("key")
}

fn id(key: &str) -> String {
    ApiKey::parse(key).expect("key").id().to_owned()
}

async fn create(node: &Node, new: &NewApiKey) -> Result<CreatedApiKey, Status> {
    node.admin().create_key(document(new)).await.map(|answer| parse(&answer.into_inner().json))
}

async fn rotate(
    node: &Node,
    key: &str,
    overlap_s: u64,
    expires: Option<Timestamp>,
) -> Result<CreatedApiKey, Status> {
    let rotation = ApiKeyRotation { id: key.to_owned(), overlap_s, expires };
    node.admin().rotate_key(document(&rotation)).await.map(|answer| parse(&answer.into_inner().json))
}

async fn revoke(node: &Node, key: &str) -> Result<ApiKeyInfo, Status> {
    let answer = node.admin().revoke_key(Name { name: key.to_owned() }).await;
    answer.map(|answer| parse(&answer.into_inner().json))
}

async fn list(node: &Node, agent: &str) -> Vec<ApiKeyInfo> {
    let listed = node.admin().list_keys(Name { name: agent.to_owned() }).await.expect("listed").into_inner();
    let text: String = listed.json.iter().map(|json| String::from_utf8_lossy(json).into_owned()).collect();
    assert!(!text.contains("mac"), "neither secret nor hash: {text}");
    listed.json.iter().map(|json| parse(json)).collect()
}

async fn states(node: &Node, agent: &str) -> Vec<(String, ApiKeyState)> {
    list(node, agent).await.into_iter().map(|info| (info.id, info.state)).collect()
}

async fn snapshot(worker: &mut Worker) -> Snapshot {
    parse(&worker.next().await.document)
}

/// The latest snapshot, of this generation.
async fn latest(worker: &mut Worker, generation: u64) -> Snapshot {
    loop {
        let snapshot = snapshot(worker).await;
        if snapshot.generation == generation {
            return snapshot;
        }
    }
}

/// Whether `key` counts for its agent `after` from now, as L7 finds out: the keys role hashes, the snapshot decides.
async fn counts(
    node: &Node,
    snapshot: &Snapshot,
    user: &str,
    key: &str,
    after: SignedDuration,
) -> Result<(), IdentityError> {
    let mut keys = KeysClient::new(socket::channel(&node.config.keys_socket()).expect("channel"));
    let mac = keys.mac_api_key(MacApiKeyRequest { key: key.into() }).await.expect("hash").into_inner().mac;
    let Snapshot { agents, keys, shared, .. } = snapshot.clone();
    let trust = TrustSnapshot::new(agents, keys, shared);
    let origin = Origin::Address { interface: None, address: "192.0.2.1".parse().expect("address") };
    let now_s = (Timestamp::now() + after).as_second();
    let user = user.parse().expect("id");
    trust
        .by_api_key(
            ApiKey::parse(key).expect("key"),
            &mac.try_into().expect("32 bytes"),
            &user,
            origin,
            now_s,
        )
        .map(drop)
}

fn new(agent: &str, from: Option<SignedDuration>, until: Option<SignedDuration>) -> NewApiKey {
    let at = |after| Timestamp::now() + after;
    NewApiKey { agent: agent.parse().expect("id"), not_before: from.map(at), expires: until.map(at) }
}

async fn changes(node: &Node) -> String {
    let query = AuditQuery { kind: Some(RecordKind::Change), ..AuditQuery::default() };
    let mut stream = node.admin().search_audit(document(&query)).await.expect("search").into_inner();
    let mut log = String::new();
    while let Some(document) = stream.message().await.expect("record") {
        log += &parse::<AuditRecord>(&document.json).detail.expect("detail");
        log.push('\n');
    }
    log
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_has_several_keys_each_with_its_time() {
    use IdentityError::{Expired, NotYet};
    let node = Node::new().start().await;
    let mut worker = node.worker("w").await;
    let first = agent(&node, "web").await;
    let short = create(&node, &new("web", None, Some(HOUR))).await.expect("created");
    let late = create(&node, &new("web", Some(HOUR), Some(HOUR * 3))).await.expect("created");
    assert_eq!((short.key.state, late.key.state), (ApiKeyState::Active, ApiKeyState::Pending));
    assert_eq!(short.key.id, id(&short.api_key));
    let snapshot = latest(&mut worker, 3).await;
    for (key, now, later, much_later) in [
        (&first, Ok(()), Ok(()), Ok(())),
        (&short.api_key, Ok(()), Err(Expired), Err(Expired)),
        (&late.api_key, Err(NotYet), Ok(()), Err(Expired)),
    ] {
        for (after, wanted) in [(SignedDuration::ZERO, now), (HOUR + HOUR / 2, later), (HOUR * 4, much_later)]
        {
            assert_eq!(counts(&node, &snapshot, "web", key, after).await, wanted, "{after}");
        }
    }
    agent(&node, "other").await;
    assert_eq!(list(&node, "").await.len(), 4);
    let listed = list(&node, "web").await;
    assert_eq!(listed.len(), 3);
    assert!(listed.contains(&late.key) && listed.iter().all(|key| key.created.is_some()), "{listed:?}");

    let refused = async |new: NewApiKey| create(&node, &new).await.expect_err("refused");
    assert_eq!(refused(new("nobody", None, None)).await.code(), Code::NotFound);
    for never in [new("web", None, Some(-HOUR)), new("web", Some(HOUR * 2), Some(HOUR))] {
        assert!(refused(never).await.message().contains("the key would never count"));
    }
    for _ in 3..16 {
        create(&node, &new("web", None, None)).await.expect("created");
    }
    let full = refused(new("web", None, None)).await;
    assert_eq!(full.code(), Code::ResourceExhausted);
    assert!(full.message().contains("key list --agent default/web"), "{full}");
    let log = changes(&node).await;
    assert!(log.contains("API key created by root: is {") && log.contains(&short.key.id), "{log}");
    for key in [&first, &short.api_key, &late.api_key] {
        assert!(!log.contains(&key[18..]) && !log.contains("mac"), "no secret is in the log");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rotated_key_counts_beside_the_new_one_until_the_overlap_is_over() {
    use IdentityError::{Expired, Revoked, UnknownKey};
    let node = Node::new().start().await;
    let mut worker = node.worker("w").await;
    let old = agent(&node, "web").await;
    let rotated = rotate(&node, &id(&old), 3600, None).await.expect("rotated");
    assert_eq!((rotated.key.state, rotated.key.expires), (ApiKeyState::Active, None));
    let replaced = rotated.replaces.expect("the old one");
    assert_eq!((replaced.id.as_str(), replaced.state), (id(&old).as_str(), ApiKeyState::Rotating));
    let snapshot = latest(&mut worker, 2).await;
    for (key, during, after) in [(&old, Ok(()), Err(Revoked)), (&rotated.api_key, Ok(()), Ok(()))] {
        assert_eq!(counts(&node, &snapshot, "web", key, HOUR / 2).await, during);
        assert_eq!(counts(&node, &snapshot, "web", key, HOUR + HOUR / 2).await, after);
    }
    let again = rotate(&node, &id(&old), 60, None).await.expect_err("refused");
    assert!(again.message().contains("is being rotated already"), "{again}");

    // A key with an end never becomes one without.
    let ending = create(&node, &new("web", None, Some(HOUR * 2))).await.expect("created");
    let renewed = rotate(&node, &ending.key.id, 60, None).await.expect("rotated");
    let life = |key: &ApiKeyInfo| {
        key.expires.expect("an end").duration_since(key.created.expect("a beginning")).as_secs()
    };
    assert!((7199..=7200).contains(&life(&renewed.key)), "{renewed:?}");
    assert_eq!(life(&renewed.key), life(&ending.key));
    let chosen = rotate(&node, &renewed.key.id, 60, Some(Timestamp::now() + HOUR)).await.expect("rotated");
    assert!((3599..=3600).contains(&life(&chosen.key)), "{chosen:?}");
    let snapshot = latest(&mut worker, 5).await;
    assert_eq!(counts(&node, &snapshot, "web", &chosen.api_key, HOUR * 2).await, Err(Expired));

    for (key, overlap_s, code, said) in [
        ("000000000000", 60, Code::NotFound, "there is no key `000000000000`"),
        (&*chosen.key.id, 31 * 24 * 3600, Code::InvalidArgument, "at most 30 days"),
        (&*chosen.key.id, u64::MAX, Code::InvalidArgument, "at most 30 days"),
    ] {
        let refused = rotate(&node, key, overlap_s, None).await.expect_err("refused");
        assert_eq!(refused.code(), code);
        assert!(refused.message().contains(said), "{refused}");
    }
    // Without an overlap the old one ends with the change.
    let at_once = rotate(&node, &chosen.key.id, 0, None).await.expect("rotated");
    let snapshot = latest(&mut worker, 6).await;
    assert_eq!(counts(&node, &snapshot, "web", &chosen.api_key, -HOUR).await, Err(UnknownKey));
    assert_eq!(counts(&node, &snapshot, "web", &at_once.api_key, SignedDuration::ZERO).await, Ok(()));
    let ended = rotate(&node, &chosen.key.id, 60, None).await.expect_err("refused");
    assert!(ended.message().contains("counts no more; make a new one"), "{ended}");
    let log = changes(&node).await;
    assert!(log.contains("API key rotated by root: the new one is {"), "{log}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoked_key_is_gone_for_good_and_still_listed() {
    let mut node = Node::new().start().await;
    let mut worker = node.worker("w").await;
    let (first, other) = (agent(&node, "web").await, agent(&node, "other").await);
    let revoked = revoke(&node, &id(&first)).await.expect("revoked");
    assert_eq!(revoked.state, ApiKeyState::Revoked);
    let after = latest(&mut worker, 3).await;
    // Whatever a clock says.
    for when in [SignedDuration::ZERO, -HOUR * 24] {
        let counted = counts(&node, &after, "web", &first, when).await;
        assert_eq!(counted, Err(IdentityError::UnknownKey));
    }
    assert_eq!(counts(&node, &after, "other", &other, SignedDuration::ZERO).await, Ok(()));
    assert_eq!(revoke(&node, &id(&first)).await.expect("again"), revoked, "it stays as it was");
    assert_eq!(revoke(&node, "000000000000").await.expect_err("unknown").code(), Code::NotFound);
    node.stop_control().await;
    node.start_control().await;
    let mut worker = node.worker("w").await;
    let restarted = snapshot(&mut worker).await;
    assert_eq!((restarted.generation, restarted.keys.len()), (3, 1));
    assert_eq!(states(&node, "web").await, [(id(&first), ApiKeyState::Revoked)]);

    // As many that ended are kept as are worth looking at; those go first that ended first, to the second.
    until("the next second", async || Timestamp::now() >= revoked.revoked.expect("a time") + ONE_SECOND)
        .await;
    let mut made = Vec::new();
    for _ in 0..17 {
        let key = create(&node, &new("web", None, None)).await.expect("created").key.id;
        revoke(&node, &key).await.expect("revoked");
        made.push(key);
    }
    let listed = states(&node, "web").await;
    assert_eq!(listed.len(), 16);
    assert!(!listed.iter().any(|(key, _)| *key == id(&first)), "{listed:?}");
    // The keys go with the agent, those too that have ended.
    node.admin().delete_agent(Name { name: "web".into() }).await.expect("deleted");
    let left: Vec<String> = list(&node, "").await.into_iter().map(|key| key.agent.to_string()).collect();
    assert_eq!(left, ["default/other"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_key_of_a_run_lives_with_it() {
    let node = Node::new().start().await;
    agent(&node, "web").await;
    let run = node
        .admin()
        .open_run(NewRun { name: "web".into(), ..NewRun::default() })
        .await
        .expect("opened")
        .into_inner();
    let run: RunSession = parse(&run.json);
    let held = node.admin().hold_run(Name { name: run.name.clone() }).await.expect("held");
    let key = id(&run.api_key);
    let listed = list(&node, "web").await;
    let its = listed.iter().find(|info| info.id == key).expect("listed");
    assert_eq!((its.run.as_ref(), its.state), (Some(&run.name), ApiKeyState::Active));
    let refused = rotate(&node, &key, 60, None).await.expect_err("refused");
    assert!(refused.message().contains(&format!("belongs to run `{}`", run.name)), "{refused}");
    let revoked = revoke(&node, &key).await.expect("revoked");
    assert_eq!(revoked.state, ApiKeyState::Revoked);
    node.admin().close_run(Name { name: run.name }).await.expect("closed");
    drop(held);
    assert_eq!(states(&node, "web").await.iter().filter(|(_, s)| *s == ApiKeyState::Active).count(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_for_hosts_are_signed_only_where_tls_is_read() {
    let mut node = Node::new();
    node.start_keys().await;
    let keys = |node: &Node| KeysClient::new(socket::channel(&node.config.keys_socket()).expect("channel"));
    let none = keys(&node).describe_authority(Empty {}).await.expect_err("none");
    assert_eq!(none.code(), Code::NotFound);
    assert!(!node.config.leaves_socket().exists());
    node.stop_keys().await;

    let mut node = Node::configured(|_| "[intercept]\nexclude = [\"pinned.test\"]\n".to_owned());
    node.start_keys().await;
    let known = keys(&node).describe_authority(Empty {}).await.expect("told").into_inner();
    assert!(known.is_own && known.chain.len() == 1);
    let servers = Servers::new(&node.config.access, Server::Keys).expect("users");
    let leaves = Client::new(&node.config.leaves_socket(), servers);
    let key = rcgen::KeyPair::generate().expect("key");
    let wanted = |host: &str| MintRequest { host: host.into(), public_key: key.public_key_raw().to_vec() };
    let leaf = leaves.mint(&wanted("a.test")).await.expect("signed");
    assert_eq!((leaf.chain.len(), &*leaf.refused), (1, ""));
    for (host, why) in [("pinned.test", "excluded"), ("A.test", "canonical form")] {
        let refused = leaves.mint(&wanted(host)).await.expect("answered");
        assert!(refused.refused.contains(why) && refused.chain.is_empty(), "{refused:?}");
    }
    node.stop_keys().await;
    node.start_keys().await;
    leaves.mint(&wanted("a.test")).await.expect("signed, by a new connection");
    let again = keys(&node).describe_authority(Empty {}).await.expect("told").into_inner();
    assert_eq!(again, known, "it is the same after a restart");
}

/// A disk of its own for the audit log, so small that it can be full.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(at: &Path) -> SmallDisk {
        std::fs::create_dir_all(at).expect("directory");
        let mut mount = Command::new("mount");
        let mounted = mount.args(["-t", "tmpfs", "-o", "size=256k,mode=0700", "tmpfs"]).arg(at).status();
        assert!(mounted.expect("mount").success(), "this test needs root, to mount");
        SmallDisk(at.to_owned())
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

/// What only takes away is made even while nothing can be recorded, and recorded by the next start.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_is_revoked_even_while_the_audit_log_can_not_be_written() {
    let node = Node::new();
    let disk = SmallDisk::mount(&node.config.node.state_dir.join("audit"));
    let mut node = node.start().await;
    let mut worker = node.worker("w").await;
    let leaked = agent(&node, "web").await;
    let filler = disk.0.join("filler");
    let mut file = std::fs::File::create(&filler).expect("file");
    while file.write_all(&[0; 512]).is_ok() {}
    drop(file);
    // What is left of the log's last page may take some more.
    let mut refused = None;
    for _ in 0..64 {
        // Made and revoked, so that the agent has never too many.
        match create(&node, &new("web", None, None)).await {
            Ok(created) => drop(revoke(&node, &created.key.id).await),
            Err(status) => refused = Some(status),
        }
        if refused.as_ref().is_some_and(|status| status.message().contains("nothing can be changed now")) {
            break;
        }
    }
    assert_eq!(refused.expect("the disk is full").code(), Code::Unavailable);
    let told = revoke(&node, &id(&leaked)).await.expect_err("it is not recorded");
    assert!(
        told.message().contains("the change was made, but will be recorded only at the next start"),
        "{told}"
    );
    let listed = states(&node, "web").await;
    assert!(listed.contains(&(id(&leaked), ApiKeyState::Revoked)), "{listed:?}");
    until_gone(&mut worker, &id(&leaked)).await;
    std::fs::remove_file(&filler).expect("removed");
    node.stop_control().await;
    node.start_control().await;
    let revoked = format!("API key revoked by root: is {{\"id\":\"{}\"", id(&leaked));
    assert!(changes(&node).await.contains(&revoked));
}

/// Waits for a generation without this key.
async fn until_gone(worker: &mut Worker, key: &str) {
    loop {
        let document = worker.next().await.document;
        if !document.is_empty() && !parse::<Snapshot>(&document).keys.iter().any(|record| record.id == key) {
            return;
        }
    }
}

/// Thousands of policies, of each kind that is enforced.
fn many_policies() -> String {
    let one = |n: usize| {
        let (team, host) = (n % 10, n % 997);
        let (scope, condition) = match n % 10 {
            0 => (
                r#"action == Action::"connect""#,
                format!(
                    "context.ip.isInRange(ip(\"198.{}.{}.0/24\")) && context.port == 443",
                    18 + n % 2,
                    n / 20
                ),
            ),
            1 => (r#"action == Action::"tls""#, format!("resource.name == \"h{host}.test\"")),
            _ => (
                r#"action == Action::"http""#,
                format!(
                    "resource.name == \"h{host}.test\" && context.path like \"/v{n}/*\" && context.method != \"PUT\""
                ),
            ),
        };
        format!(
            "@id(\"p{n}\") permit (principal in Team::\"t{team}\", {scope}, resource) when {{ {condition} }};\n"
        )
    };
    (0..POLICIES).map(one).collect()
}

/// Many for an unoptimised build; what it prints was measured with 5,000.
const POLICIES: usize = 500;

/// A revocation reaches the workers where there is much policy. It prints what that costs, and what a new agent does, for which all of it is compiled.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revocation_reaches_workers_where_there_is_much_policy() {
    let node = Node::new().start().await;
    let mut worker = node.worker("w").await;
    for n in 0..10 {
        let new = serde_json::json!({"id": format!("a{n}"), "team": format!("t{n}"), "key": true});
        let new: NewAgent = serde_json::from_value(new).expect("agent");
        node.admin().create_agent(document(&new)).await.expect("created");
    }
    let lost = agent(&node, "lost").await;
    let policy = serde_json::json!({"bundle": {"text": many_policies()}, "message": "many", "author": "me"});
    node.admin().apply_policy(document(&policy)).await.expect("applied");
    let begun = Instant::now();
    agent(&node, "later").await;
    println!("{POLICIES} policies: an agent created, which compiles them, in {:?}", begun.elapsed());
    let begun = Instant::now();
    revoke(&node, &id(&lost)).await.expect("revoked");
    until_gone(&mut worker, &id(&lost)).await;
    println!("{POLICIES} policies: a key revoked, at each worker, in {:?}", begun.elapsed());
}
