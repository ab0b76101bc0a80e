//! Records on their way to a control role that is a process of its own, and is killed and stopped.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::AtomicU64;

use anyhow::Result;
use clawgress_api::clock::SystemClock;
use clawgress_api::config::Config;
use clawgress_api::proto::datapath_server::DatapathServer;
use clawgress_api::{AuditRecord, RecordKind, socket};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;
use tokio::task::JoinHandle;

use super::*;
use crate::peer::{Access, Socket};
use crate::{control, serve};

/// Names the configuration to the process that is the control role.
const CONFIG: &str = "CLAWGRESS_TEST_CONFIG";
/// Longest wait for anything that happens by itself.
const PATIENCE: Duration = Duration::from_secs(20);

/// The control role, in this binary but a process of its own: [`Control`] starts it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "not a test: the process that the others kill"]
async fn control_role() {
    let Some(path) = std::env::var_os(CONFIG) else { return };
    let config = Config::load(Path::new(&path)).expect("configuration");
    control::run(Arc::new(config), CancellationToken::new()).await.expect("role");
}

/// The running role; killed when dropped.
struct Control(Child);

impl Control {
    fn start(node: &Node) -> Self {
        let mut command = Command::new(std::env::current_exe().expect("this binary"));
        command.args(["--exact", "datapath::service::tests::control_role", "--ignored"]);
        command.env(CONFIG, node.dir.path().join("c.toml")).stdin(Stdio::null()).stdout(Stdio::null());
        Control(command.spawn().expect("start"))
    }

    fn hang(&self) {
        let id = i32::try_from(self.0.id()).expect("id");
        kill(Pid::from_raw(id), Signal::SIGSTOP).expect("stop");
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The real service and spool without a kernel, on a real socket.
struct Node {
    dir: TempDir,
    config: Config,
    spool: Arc<Spool>,
    stop: CancellationToken,
    role: JoinHandle<Result<()>>,
    pushed: u64,
}

impl Node {
    fn start() -> Self {
        let dir = tempfile::Builder::new().prefix("claw").tempdir().expect("directory");
        let place = dir.path().display();
        let text = format!(
            "[node]\nname = \"n\"\nstate_dir = \"{place}/state\"\nrun_dir = \"{place}/run\"\n[datapath]\nmode = \"none\"\n[proxy]\nlisten = [\"127.0.0.1:3128\"]\n[l7]\n"
        );
        fs::write(dir.path().join("c.toml"), &text).expect("write");
        let config = Config::parse(&text, Path::new("c.toml")).expect("valid");
        let spool = Arc::new(Spool::new("n", Arc::new(SystemClock)));
        let stop = CancellationToken::new();
        let plane = Arc::new(Plane::None { generation: AtomicU64::new(0) });
        let service = DatapathServer::new(Service::new(plane, Arc::clone(&spool), stop.clone()));
        let listener = socket::bind(&config.datapath_socket(), serve::SOCKET_MODE).expect("bind");
        let access = Access::new(&config, Socket::Datapath).expect("access");
        let role = tokio::spawn(serve::grpc(listener, access, service, stop.clone()));
        Node { dir, config, spool, stop, role, pushed: 0 }
    }

    fn push(&mut self, count: u64) {
        for _ in 0..count {
            let request = format!("r-{}", self.pushed);
            let plane = clawgress_api::Plane::Kernel;
            let now = jiff::Timestamp::now();
            self.spool.push(AuditRecord::new(now, "n", RecordKind::Decision, plane, request, 1));
            self.pushed += 1;
        }
    }

    /// Everything in the log, as it is on disk.
    fn log(&self) -> Vec<AuditRecord> {
        let mut records = Vec::new();
        for entry in fs::read_dir(self.config.node.state_dir.join("audit")).into_iter().flatten() {
            let text = fs::read_to_string(entry.expect("entry").path()).expect("segment");
            records.extend(text.lines().filter_map(|line| serde_json::from_str::<AuditRecord>(line).ok()));
        }
        records
    }

    async fn until(&self, what: &str, done: impl Fn() -> bool) {
        for _ in 0..PATIENCE.as_millis() / 10 {
            if done() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("waited in vain for {what}");
    }

    /// Asserts that each record that was pushed is in the log, or counted there as missing.
    #[track_caller]
    fn account(&self) -> (u64, u64) {
        let log = self.log();
        let decisions = log.iter().filter(|r| r.kind == RecordKind::Decision);
        let kept = decisions.map(|r| r.request.as_str()).collect::<BTreeSet<_>>().len() as u64;
        let of_kernel = |r: &&AuditRecord| r.plane == clawgress_api::Plane::Kernel;
        let missing: u64 = log.iter().filter(of_kernel).filter_map(|r| r.count).sum();
        assert_eq!(kept + missing, self.pushed, "{kept} kept, {missing} missing");
        (kept, missing)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_record_is_in_the_log_or_counted_when_control_dies_or_hangs() {
    let mut node = Node::start();
    for round in 0..6 {
        let control = Control::start(&node);
        let before = node.log().len();
        let begun = std::time::Instant::now();
        // Until some have come through, and then on: it dies in the middle.
        while node.log().len() <= before || begun.elapsed() < Duration::from_millis(300) {
            assert!(begun.elapsed() < PATIENCE, "nothing comes through");
            node.push(97);
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
        if round % 2 == 1 {
            // What it still takes in lies in its socket and is never read.
            control.hang();
            for _ in 0..50 {
                node.push(97);
                tokio::time::sleep(Duration::from_millis(3)).await;
            }
        }
        drop(control);
        node.push(200);
    }
    let control = Control::start(&node);
    node.until("control to catch up", || node.spool.is_empty()).await;
    node.account();
    drop(control);
    // More than there is room for.
    node.push(20_000);
    let control = Control::start(&node);
    node.until("control to catch up", || node.spool.is_empty()).await;
    let (_, missing) = node.account();
    assert!(missing >= 20_000 - 16_384, "{missing}");
    drop(control);
    node.stop.cancel();
    node.role.await.expect("no panic").expect("role");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_waits_for_the_last_records_but_not_for_control_that_hangs() {
    let mut node = Node::start();
    let control = Control::start(&node);
    node.push(1);
    node.until("control", || node.spool.is_empty()).await;
    node.push(5_000);
    node.stop.cancel();
    (&mut node.role).await.expect("no panic").expect("role");
    assert!(node.spool.is_empty(), "all are acknowledged");
    node.account();
    drop(control);

    let mut node = Node::start();
    let control = Control::start(&node);
    node.push(1);
    node.until("control", || node.spool.is_empty()).await;
    control.hang();
    node.push(5_000);
    node.stop.cancel();
    let end = tokio::time::timeout(DRAIN_TIME_MAX * 4, &mut node.role).await.expect("in time");
    end.expect("no panic").expect("role");
}
