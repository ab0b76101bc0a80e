//! The command line against the real control and keys roles: what it prints, and its exit codes.
#![expect(clippy::expect_used, clippy::panic, reason = "a test may fail")]

#[path = "../../clawgress-agent/tests/support/datapath.rs"]
mod datapath;
#[path = "cli/groups.rs"]
mod group_verbs;
#[path = "cli/input.rs"]
mod input;
#[path = "cli/json.rs"]
mod json;
#[path = "cli/keys.rs"]
mod key_verbs;
#[path = "cli/live.rs"]
mod live_verbs;
#[path = "../../clawgress-agent/tests/support/node.rs"]
mod node;
#[path = "cli/policy.rs"]
mod policy_verbs;
#[path = "cli/run.rs"]
mod run_verb;
#[path = "cli/study.rs"]
mod study_verbs;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use clawgress_agent::datapath::tables::Plan;
use clawgress_api::config::Config;
use clawgress_api::identity::{Agent, AgentState, SharedSource};
use clawgress_api::{
    AuditRecord, CreatedAgent, Destination, GeoStatus, LiveFlow, LiveFlows, LiveLimit, LiveQuery,
    PolicyRevision, RecentDrop, SourceRef, Status,
};
use clawgress_policy::PolicyBundle;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Command;

use self::datapath::Script;
use self::node::{Node, parse, until};

const GOOD: &str =
    "@id(\"all\")\npermit (principal, action == Action::\"tls\", resource in HostSet::\"saas\");\n";
const BAD: &str = "@id(\"all\")\npermit (principal,\n  action == Action::\"fly\", resource);\n";

fn ctl(socket: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_clawgressctl"));
    command.arg("--socket").arg(socket).args(arguments).stdin(Stdio::null()).env_remove("CLAWGRESS_SOCKET");
    command.kill_on_drop(true);
    command
}

async fn run(config: &Config, arguments: &[&str]) -> Output {
    ctl(&config.admin_socket(), arguments).output().await.expect("run")
}

#[track_caller]
fn check(output: &Output, code: i32, stdout: &str, stderr: &str) {
    let out = String::from_utf8_lossy(&output.stdout);
    let err = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "stdout: {out}\nstderr: {err}");
    assert!(out.contains(stdout), "`{stdout}` should be in: {out}");
    assert!(err.contains(stderr), "`{stderr}` should be in: {err}");
}

fn file(node: &Node, name: &str, text: &str) -> PathBuf {
    let path = node.dir.path().join(name);
    fs::write(&path, text).expect("write");
    path
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn agents_and_status() {
    let node = Node::new().start().await;
    let config = &node.config;
    check(&run(config, &["agent", "list"]).await, 0, "agent create NAME", "");
    let created = run(config, &["agent", "create", "web", "--team", "red", "--label", "k=v"]).await;
    check(&created, 0, "agent `default/web` is created", "");
    let text = String::from_utf8_lossy(&created.stdout).into_owned();
    let key = text.lines().find_map(|l| l.trim().strip_prefix("claw_")).expect("key").to_owned();
    assert!(text.contains(&format!("export HTTPS_PROXY=http://web:claw_{key}@127.0.0.1:3128")), "{text}");
    check(&run(config, &["agent", "create", "web"]).await, 1, "", "there is an agent `default/web` already");
    check(&run(config, &["agent", "create", "We b"]).await, 2, "", "is not an id");
    check(&run(config, &["agent", "create", "s", "--source", "eth0"]).await, 2, "", "is not a source");
    let json = run(config, &["--output", "json", "agent", "create", "acme/bot"]).await;
    let created: CreatedAgent = parse(&json.stdout);
    assert_eq!((created.agent.id.to_string().as_str(), created.agent.index), ("acme/bot", 2));
    let keyless = run(config, &["agent", "create", "k", "--no-key", "--output", "json"]).await;
    assert_eq!(parse::<CreatedAgent>(&keyless.stdout).api_key, None);

    check(&run(config, &["agent", "list"]).await, 0, "acme/bot", "");
    let list = run(config, &["-o", "json", "agent", "list"]).await;
    assert_eq!(parse::<Vec<Agent>>(&list.stdout).len(), 3);
    check(&run(config, &["agent", "show", "web"]).await, 0, "k=v", "");
    check(&run(config, &["agent", "show", "nobody"]).await, 1, "", "clawgressctl agent list");
    let disabled = run(config, &["agent", "disable", "web", "-o", "json"]).await;
    assert_eq!(parse::<Agent>(&disabled.stdout).state, AgentState::Disabled);
    check(&run(config, &["agent", "enable", "web"]).await, 0, "active", "");
    check(&run(config, &["agent", "delete", "web"]).await, 0, "is deleted", "");
    check(&run(config, &["agent", "delete", "web"]).await, 1, "", "there is no agent `default/web`");

    check(&run(config, &["status"]).await, 0, "warning: no policy has been applied", "");
    let status: Status = parse(&run(config, &["status", "--output", "json"]).await.stdout);
    assert_eq!((status.agents, status.node.as_str()), (2, "test"));
    check(&run(config, &["completion", "bash"]).await, 0, "_clawgressctl()", "");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shared_sources() {
    let node = Node::kernel().start().await;
    let config = &node.config;
    check(&run(config, &["source", "list"]).await, 0, "source add NAME", "");
    run(config, &["agent", "create", "crawler", "--source", "lo=10.0.0.9,any-mac"]).await;
    run(config, &["agent", "create", "research/writer"]).await;
    let place = "lo=10.0.0.0/28,02:00:00:00:00:02";
    let add = |name: &'static str, at: &'static str, agents: &'static str| async move {
        run(config, &["source", "add", name, "--at", at, "--may-present", agents]).await
    };
    check(&add("nat", place, "crawler,nobody").await, 1, "", "there is no agent `default/nobody`");
    let both = add("acme/nat", place, "crawler,research/writer").await;
    check(&both, 0, "may present  default/crawler research/writer", "");
    check(&both, 0, "at           lo=10.0.0.0/28,02:00:00:00:00:02", "");
    check(&add("acme/nat", "lo=10.1.0.0/28,any-mac", "crawler").await, 1, "", "`acme/nat` already");
    check(&add("b", place, "crawler").await, 1, "", "is bound to shared source `acme/nat`");
    check(&add("b", "lo=10.0.0.9,any-mac", "crawler").await, 1, "", "is bound to agent `default/crawler`");
    check(
        &add("b", "eth9=10.1.0.0/28,any-mac", "crawler").await,
        1,
        "",
        "`eth9` is not an agents' interface",
    );
    check(&add("b", "lo=10.0.0.1/28,any-mac", "crawler").await, 2, "", "has bits set behind its length");
    check(&add("b", place, "Crawler").await, 2, "", "is not an id");
    check(&run(config, &["source", "add", "b", "--at", place]).await, 2, "", "--may-present");
    check(&run(config, &["source", "add", "b", "--may-present", "crawler"]).await, 2, "", "--at");
    let taken = run(config, &["agent", "create", "late", "--source", place]).await;
    check(&taken, 1, "", "is bound to shared source `acme/nat`");

    check(&run(config, &["source", "list"]).await, 0, "MAY PRESENT", "");
    let shown: SharedSource = parse(&run(config, &["-o", "json", "source", "show", "acme/nat"]).await.stdout);
    assert_eq!((shown.at.len(), shown.may_present.len()), (1, 2));
    let listed: Vec<SharedSource> = parse(&run(config, &["-o", "json", "source", "list"]).await.stdout);
    assert_eq!(listed, [shown]);
    check(&run(config, &["source", "show", "nat"]).await, 1, "", "clawgressctl source list");
    let set = run(config, &["source", "set", "acme/nat", "--may-present", "research/writer"]).await;
    check(&set, 0, "may present  research/writer", "");
    check(
        &run(config, &["source", "set", "acme/nat", "--may-present", "x"]).await,
        1,
        "",
        "no agent `default/x`",
    );
    run(config, &["agent", "delete", "research/writer"]).await;
    check(&run(config, &["source", "show", "acme/nat"]).await, 0, "may present  nobody", "");
    let removed = run(config, &["source", "remove", "acme/nat", "-o", "json"]).await;
    check(&removed, 0, "\"removed\": \"acme/nat\"", "");
    check(
        &run(config, &["source", "remove", "acme/nat"]).await,
        1,
        "",
        "there is no shared source `acme/nat`",
    );
    check(&run(config, &["completion", "bash"]).await, 0, "clawgressctl__subcmd__source,add)", "");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn policy() {
    let node = Node::new().start().await;
    let config = &node.config;
    let sets =
        file(&node, "sets.toml", "[hosts]\nsaas = [\"*.example.com\"]\n[networks]\nlan = [\"10.0.0.0/8\"]\n");
    let bad_sets = file(&node, "bad.toml", "[hosts]\nsaas = [\"a\"]\n[nets]\n");
    let (good, bad) = (file(&node, "good.cedar", GOOD), file(&node, "bad.cedar", BAD));
    let path = |path: &Path| path.to_str().expect("text").to_owned();
    let (good, bad, sets, bad_sets) = (path(&good), path(&bad), path(&sets), path(&bad_sets));

    // Without any agent.
    let nowhere = Path::new("/nonexistent/admin.sock");
    let offline = ctl(nowhere, &["policy", "check", &good, "--sets", &sets]).output().await.expect("run");
    check(&offline, 0, "is valid: policies 1", "");
    let offline = ctl(nowhere, &["policy", "check", &bad, "--sets", &sets]).output().await.expect("run");
    check(&offline, 1, "", &format!("{bad}:3:"));
    let unset = ctl(nowhere, &["policy", "check", &good]).output().await.expect("run");
    check(&unset, 1, "", "saas");
    let offline = ctl(nowhere, &["policy", "check", &good, "--sets", &bad_sets]).output().await.expect("run");
    check(&offline, 1, "", &format!("{bad_sets}:3:"));
    let bad_prefix =
        path(&file(&node, "prefix.toml", "[networks]\nok = [\"10.0.0.0/8\"]\nlan = [\"10.0.0.0/33\"]\n"));
    let offline =
        ctl(nowhere, &["policy", "check", &good, "--sets", &bad_prefix]).output().await.expect("run");
    check(&offline, 1, "", &format!("{bad_prefix}:3:"));
    check(&offline, 1, "", "`10.0.0.0/33` is not a prefix: write an address, `/`, and a length");
    let missing = ctl(nowhere, &["policy", "check", "/nonexistent/p.cedar"]).output().await.expect("run");
    check(&missing, 1, "", "cannot read `/nonexistent/p.cedar`");

    check(&run(config, &["policy", "show"]).await, 1, "", "no policy has been applied yet");
    check(&run(config, &["policy", "history"]).await, 0, "everything is denied", "");
    check(&run(config, &["policy", "apply", &good, "--sets", &sets]).await, 2, "", "--message");
    check(&run(config, &["policy", "apply", &bad, "-m", "x"]).await, 1, "", &format!("{bad}:3:"));
    check(&run(config, &["policy", "history"]).await, 0, "everything is denied", "");
    let applied = run(config, &["policy", "apply", &good, "--sets", &sets, "-m", "first"]).await;
    check(&applied, 0, "revision 1 is live in generation 1", "");
    check(&run(config, &["policy", "check", &good, "--sets", &sets, "--node"]).await, 0, "is valid", "");
    check(&run(config, &["policy", "check", &bad, "--node"]).await, 1, "", &format!("{bad}:3:"));
    let shown = run(config, &["policy", "show"]).await;
    check(&shown, 0, GOOD.trim_end(), "live in generation 1");
    let json: PolicyRevision<PolicyBundle> =
        parse(&run(config, &["policy", "show", "1", "-o", "json"]).await.stdout);
    assert_eq!(json.bundle.expect("bundle").sets.hosts.len(), 1);
    check(&run(config, &["policy", "show", "9"]).await, 1, "", "there is no revision 9");
    check(&run(config, &["policy", "history"]).await, 0, "first", "");
}

/// ASNs and countries: their form is checked anywhere, that there are data of them on the node.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn geo() {
    let node =
        Node::configured(|dir| format!("[geo]\ncountry = \"{}/c.mmdb\"\n", dir.display())).start().await;
    let config = &node.config;
    let named = r#"@id("a") permit (principal, action == Action::"connect", resource in Country::"DE");"#;
    let named = file(&node, "geo.cedar", named).to_str().expect("text").to_owned();
    let nowhere = Path::new("/nonexistent/admin.sock");
    let offline = ctl(nowhere, &["policy", "check", &named]).output().await.expect("run");
    check(&offline, 0, "is valid: policies 1", "");
    check(&offline, 0, "without geo data: whether they have the ASNs and countries, --node tells", "");
    let refused = run(config, &["policy", "apply", &named, "-m", "x"]).await;
    check(&refused, 1, "", "cannot read the country data");
    check(&run(config, &["geo", "status"]).await, 0, "not configured", "");
    check(&run(config, &["geo", "reload"]).await, 1, "", "c.mmdb`: No such file");
    let json: GeoStatus = parse(&run(config, &["geo", "status", "-o", "json"]).await.stdout);
    assert!(json.parts.iter().all(|part| part.in_force.is_none()) && json.trouble.is_some(), "{json:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn audit() {
    let node = Node::new().start().await;
    let config = &node.config;
    run(config, &["agent", "create", "a"]).await;
    run(config, &["agent", "create", "b"]).await;
    check(&run(config, &["audit", "search", "--kind", "change"]).await, 0, "agent created by root", "");
    check(&run(config, &["audit", "search", "--verdict", "deny"]).await, 0, "no record matches", "");
    check(&run(config, &["audit", "search", "--reason", "weather"]).await, 1, "", "is not a drop reason");
    check(
        &run(config, &["audit", "search", "--since", "yesterday"]).await,
        2,
        "",
        "nor an age such as `15m`",
    );
    check(&run(config, &["audit", "search", "--since", "2099-01-01T00:00Z"]).await, 0, "no record", "");
    let json = run(config, &["audit", "search", "-o", "json", "-n", "1", "--since", "10m"]).await;
    let record: AuditRecord = parse(&json.stdout);
    assert!(record.detail.expect("detail").contains("default/b"));

    let mut tail = ctl(&config.admin_socket(), &["audit", "tail", "-n", "1"]);
    let mut tail = tail.stdout(Stdio::piped()).spawn().expect("tail");
    let mut lines = BufReader::new(tail.stdout.take().expect("stdout")).lines();
    assert!(lines.next_line().await.expect("line").expect("line").contains("default/b"));
    run(config, &["agent", "create", "c"]).await;
    assert!(lines.next_line().await.expect("line").expect("line").contains("default/c"));
    tail.kill().await.expect("kill");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_cannot_reach_the_agent_or_may_not_is_told_which() {
    let mut node = Node::new().start().await;
    let config = Arc::clone(&node.config);
    let nowhere = ctl(Path::new("/nonexistent/admin.sock"), &["status"]).output().await.expect("run");
    check(&nowhere, 3, "", "start `clawgress-agent`");
    check(&run(&config, &["fly"]).await, 2, "", "fly");

    // Another user's process: not root, not this role's user, in no group.
    fs::set_permissions(node.dir.path(), fs::Permissions::from_mode(0o711)).expect("chmod");
    let copy = node.dir.path().join("ctl");
    fs::copy(env!("CARGO_BIN_EXE_clawgressctl"), &copy).expect("copy");
    assert!(nix::unistd::Uid::effective().is_root(), "this test needs root, to be somebody else");
    for _ in 0..20 {
        let mut command = Command::new(&copy);
        command.arg("--socket").arg(config.admin_socket()).arg("status").uid(65_534).gid(65_534);
        check(&command.output().await.expect("run"), 4, "", "you may not administer");
    }
    let admin = run(&config, &["status"]).await;
    check(&admin, 0, "node", "");
    node.stop_control().await;
    check(&run(&config, &["status"]).await, 3, "", "is `clawgress-agent control` running?");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_socket_that_another_user_serves_is_not_spoken_to() {
    let dir = tempfile::tempdir().expect("directory");
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).expect("chmod");
    let path = dir.path().join("admin.sock");
    let place = path.clone();
    // Credentials are a thread's own to the kernel.
    let squatter = std::thread::spawn(move || {
        let nobody = rustix::thread::Uid::from_raw(65_534);
        rustix::thread::set_thread_res_uid(nobody, nobody, nobody)
            .expect("this test needs root, to be somebody else");
        std::os::unix::net::UnixListener::bind(place).expect("bind")
    });
    let listener = squatter.join().expect("no panic");
    let mut status = ctl(&path, &["status"]);
    check(&status.output().await.expect("run"), 1, "", "user 65534 listens on");
    // The configuration may say that this is the control role's user.
    let text = "[node]\nname = \"n\"\n[datapath]\nmode = \"none\"\n[proxy]\nlisten = [\"127.0.0.1:1\"]\n[l7]\n[access]\ncontrol_user = \"nobody\"\n";
    let config = dir.path().join("c.toml");
    fs::write(&config, text).expect("write");
    let mut child = ctl(&path, &["status"]).env("CLAWGRESS_CONFIG", &config).spawn().expect("run");
    let talks = tokio::task::spawn_blocking(move || listener.accept().map(|_| listener.accept()));
    let talks = tokio::time::timeout(node::PATIENCE, talks).await.expect("in time").expect("no panic");
    talks.expect("probed").expect("spoken to");
    child.kill().await.expect("kill");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn run_leads_a_command_to_the_proxy_and_passes_its_end_on() {
    let node = Node::new().start().await;
    let config = &node.config;
    run(config, &["agent", "create", "a"]).await;
    let refused = run(config, &["run", "--agent", "a", "--", "true"]).await;
    check(&refused, 1, "", "reaches the network ungoverned; give --proxy-only");
    check(
        &run(config, &["run", "--agent", "b", "--proxy-only", "--", "true"]).await,
        1,
        "",
        "no agent `default/b`",
    );
    let script =
        "echo $HTTPS_PROXY $http_proxy; echo no=[$NO_PROXY]; grep NoNewPrivs /proc/self/status; exit 7";
    let ran = run(config, &["run", "--agent", "a", "--proxy-only", "--", "sh", "-c", script]).await;
    check(&ran, 7, "http://a:claw_", "not enforced:");
    let out = String::from_utf8_lossy(&ran.stdout).into_owned();
    assert!(out.contains("@127.0.0.1:3128 http://a:claw_") && out.contains("no=[]"), "{out}");
    assert!(out.contains("NoNewPrivs:\t1"), "{out}");
    assert!(!String::from_utf8_lossy(&ran.stderr).contains("not closed properly"));
    let missing = run(config, &["run", "--agent", "a", "--proxy-only", "--", "/nonexistent/x"]).await;
    check(&missing, 1, "", "cannot run `/nonexistent/x`");

    let script = "trap 'exit 9' TERM; echo ready; while :; do sleep 0.05; done";
    let mut command =
        ctl(&config.admin_socket(), &["run", "--agent", "a", "--proxy-only", "--", "sh", "-c", script]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("run");
    let mut lines = BufReader::new(child.stdout.take().expect("stdout")).lines();
    assert_eq!(lines.next_line().await.expect("line").as_deref(), Some("ready"));
    signal(&child, nix::sys::signal::Signal::SIGTERM);
    assert_eq!(child.wait().await.expect("wait").code(), Some(9), "the signal reached the command");
    let killed = run(config, &["run", "--agent", "a", "--proxy-only", "--", "sh", "-c", "kill -9 $$"]).await;
    assert_eq!(killed.status.code(), Some(137));

    let log = run(config, &["audit", "search", "-o", "json"]).await;
    let log = String::from_utf8_lossy(&log.stdout).into_owned();
    let count = |what: &str| log.matches(what).count();
    assert_eq!(count("` of agent `default/a` opened by root"), count("` closed: "), "{log}");
    assert_eq!(count("opened by root"), 5, "{log}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn run_confines_a_command_of_root_to_its_cgroup() {
    assert!(nix::unistd::Uid::effective().is_root(), "this test needs root, to make a cgroup");
    let node = Node::kernel().start().await;
    let config = &node.config;
    let cgroup = Cgroup::new();
    let script = Arc::new(Script::default());
    *script.cgroup.lock().await = cgroup.0.clone();
    let role = script.serve(config);
    run(config, &["agent", "create", "a"]).await;
    // An open descriptor and a capability that the command must not inherit.
    let text = "cat /proc/self/cgroup; grep -E 'Cap|NoNew|^Uid|^Gid|^Groups' /proc/self/status; ls /proc/self/fd; echo $HOME";
    let mut command = Command::new("sh");
    let own = env!("CARGO_BIN_EXE_clawgressctl");
    let socket = config.admin_socket();
    command.args(["-c", "exec 7</etc/passwd 9</etc/passwd; exec \"$@\"", "sh", own, "--socket"]).arg(socket);
    command.args(["run", "--agent", "a", "--", "sh", "-c", text]).current_dir("/").env_remove("SUDO_USER");
    let output = command.stdin(Stdio::null()).output().await.expect("run");
    let name = cgroup.0.file_name().expect("name").to_str().expect("text").to_owned();
    check(&output, 0, &name, "the command runs as `nobody`; choose with --user");
    let out = String::from_utf8_lossy(&output.stdout).into_owned();
    for want in
        ["NoNewPrivs:\t1", "CapEff:\t0000000000000000", "CapBnd:\t0000000000000000", "Uid:\t65534\t65534"]
    {
        assert!(out.contains(want), "`{want}` should be in: {out}");
    }
    let descriptors: Vec<u32> = out.lines().filter_map(|l| l.trim().parse().ok()).collect();
    // The last one is `ls` looking at its own directory.
    assert_eq!(descriptors, [0, 1, 2, 3], "{out}");
    assert!(out.lines().any(|l| l.trim_end() == "Groups:"), "no group but its own: {out}");
    assert!(out.contains("Gid:\t65534\t65534\t65534\t65534"), "{out}");
    until("the workloads to be closed", async || script.workloads.lock().await.is_empty()).await;
    *script.cgroup.lock().await = PathBuf::from("/nonexistent/cgroup");
    let lost = run(config, &["run", "--agent", "a", "--", "echo", "escaped"]).await;
    check(&lost, 1, "", "cannot enter `/nonexistent/cgroup`");
    assert!(lost.stdout.is_empty(), "a command that can't be confined doesn't run");
    role.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn run_never_makes_a_command_root_whatever_it_is_told() {
    assert!(nix::unistd::Uid::effective().is_root(), "this test needs root, to make a cgroup");
    let node = Node::kernel().start().await;
    let config = &node.config;
    let cgroup = Cgroup::new();
    let script = Arc::new(Script::default());
    *script.cgroup.lock().await = cgroup.0.clone();
    let role = script.serve(config);
    run(config, &["agent", "create", "a"]).await;
    let as_root = run(config, &["run", "--agent", "a", "--user", "root", "--", "echo", "escaped"]).await;
    check(&as_root, 1, "", "the command would run as `root`");
    assert!(as_root.stdout.is_empty());
    // Who became root by `su`, and then used sudo, is as little a choice.
    let mut command = ctl(&config.admin_socket(), &["run", "--agent", "a", "--", "id", "-u"]);
    let output = command.current_dir("/").env("SUDO_USER", "root").output().await.expect("run");
    check(&output, 0, "65534", "the command runs as `nobody`");
    let mut command = ctl(&config.admin_socket(), &["run", "--agent", "a", "--", "id", "-u"]);
    let output = command.current_dir("/").env("SUDO_USER", "daemon").output().await.expect("run");
    check(&output, 0, "1\n", "the command runs as `daemon`");
    // The child checks for itself.
    let path = cgroup.0.to_str().expect("text");
    for user in [&["--user", "root"][..], &[]] {
        let child = [&["run-child", "--cgroup", path], user, &["--", "echo", "escaped"]].concat();
        let refused = ctl(&config.admin_socket(), &child).output().await.expect("run");
        assert!(matches!(refused.status.code(), Some(1 | 4)), "{refused:?}");
        assert!(refused.stdout.is_empty(), "{refused:?}");
    }
    role.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_governed_command_has_no_socket_that_its_hooks_do_not_see() {
    let cgroup = Cgroup::new();
    let path = cgroup.0.to_str().expect("text").to_owned();
    let child = |code: &str| {
        let arguments = ["run-child", "--cgroup", &path, "--user", "nobody", "--", "python3", "-c", code];
        ctl(Path::new("/nonexistent"), &arguments)
    };
    let code = "import socket, errno, ctypes
for family in (1, 2, 10): socket.socket(family, socket.SOCK_STREAM).close()
socket.socket(16, socket.SOCK_RAW).close()
for family in (17, 38, 40, 44):
    try: socket.socket(family, socket.SOCK_RAW)
    except OSError as e: assert e.errno == errno.EPERM, (family, e)
    else: raise SystemExit(f'family {family} is open')
libc = ctypes.CDLL(None, use_errno=True)
import os
outside = int(os.environ['OUTSIDE'])
numbers = {'x86_64': (101, 311), 'aarch64': (117, 271)}[os.uname().machine]
# A process of the same user outside is not even seen.
try: os.pidfd_open(outside)
except ProcessLookupError: pass
else: raise SystemExit('a process outside')
# io_uring_setup; then what works on processes of the same user: pidfd_getfd, ptrace, process_vm_writev.
own = os.getpid()
pidfd = os.pidfd_open(own)
for call in ((425, 8, None), (438, pidfd, 0, 0), (numbers[0], 16, own, 0, 0), (numbers[1], own, None, 0, None, 0, 0)):
    assert libc.syscall(*call) == -1 and ctypes.get_errno() == errno.EPERM, call
for family in (2, 10):
    try: socket.socket(family, socket.SOCK_RAW, 255)
    except PermissionError: pass
    else: raise SystemExit('a raw socket')
for way in (lambda: os.setuid(0), lambda: open(os.environ['CGROUP'] + '/../cgroup.procs', 'w').write('0'),
            lambda: open(os.environ['CGROUP'] + '/cgroup.procs', 'w').write(str(outside))):
    try: way()
    except PermissionError: pass
    else: raise SystemExit('a way out')
print('confined')";
    let mut outside = Command::new("setpriv")
        .args(["--reuid", "nobody", "--clear-groups", "--regid", "65534", "sleep", "600"])
        .kill_on_drop(true)
        .spawn()
        .expect("setpriv");
    let id = outside.id().expect("it runs").to_string();
    let output =
        child(code).current_dir("/").env("OUTSIDE", id).env("CGROUP", &path).output().await.expect("run");
    check(&output, 0, "confined", "");
    outside.kill().await.expect("kill");

    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
    let stream = std::net::TcpStream::connect(listener.local_addr().expect("address")).expect("connect");
    let mut command = child("print('escaped')");
    let inherited = command.stdin(Stdio::from(std::os::fd::OwnedFd::from(stream))).current_dir("/");
    check(&inherited.output().await.expect("run"), 1, "", "standard input is a network socket");
    let (local, _other) = std::os::unix::net::UnixStream::pair().expect("pair");
    let mut command = child("print('local')");
    let inherited = command.stdin(Stdio::from(std::os::fd::OwnedFd::from(local))).current_dir("/");
    check(&inherited.output().await.expect("run"), 0, "local", "");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_governed_command_never_administers() {
    let node = Node::new().start().await;
    let config = &node.config;
    let cgroup = Cgroup::new();
    let own = env!("CARGO_BIN_EXE_clawgressctl");
    // Root itself, so that nothing but the cgroup speaks against it.
    let script = "echo 0 >\"$1/cgroup.procs\" && shift && exec \"$@\"";
    let status = |cgroup: &Path| {
        let mut command = Command::new("sh");
        command.args(["-c", script, "sh"]).arg(cgroup).arg(own).arg("--socket").arg(config.admin_socket());
        command.arg("status").stdin(Stdio::null()).kill_on_drop(true);
        command
    };
    for _ in 0..5 {
        check(&status(&cgroup.0).output().await.expect("run"), 4, "", "you may not administer");
    }
    let root = cgroup.0.ancestors().nth(2).expect("root");
    check(&status(root).output().await.expect("run"), 0, "node", "");
}

/// A cgroup of the test's own where those of workloads are, removed when dropped.
struct Cgroup(PathBuf);

impl Cgroup {
    fn new() -> Self {
        let mounts = fs::read_to_string("/proc/mounts").expect("mounts");
        let root = mounts.lines().find_map(|l| {
            let mut fields = l.split(' ');
            let (_, place, kind) = (fields.next()?, fields.next()?, fields.next()?);
            (kind == "cgroup2").then(|| PathBuf::from(place))
        });
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("ctl-test-{}-{number}", std::process::id());
        let path = root.expect("cgroup v2 is mounted").join("clawgress").join(name);
        fs::create_dir_all(&path).expect("cgroup");
        Cgroup(path)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        for _ in 0..100 {
            if fs::remove_dir(&self.0).is_ok() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }
}

fn signal(child: &tokio::process::Child, signal: nix::sys::signal::Signal) {
    let id = i32::try_from(child.id().expect("running")).expect("id");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(id), signal).expect("signal");
}
