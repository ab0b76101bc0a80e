//! The roles as the processes they are: ready when they say so, gone when told to, and kill -9 of control
//! loses nothing that was acknowledged.

use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use clawgress_api::proto::{AuditBatch, Empty};
use clawgress_api::{AuditQuery, AuditRecord, MissingGroups, NewAgent, Plane, RecordKind, Status};
use clawgress_identity::Agent;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::node::{self, Node, document, parse, until_there};

/// A process that is killed by its id when dropped.
struct Process(Child);

impl Process {
    fn start(node: &Node, role: &str) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_clawgress-agent"));
        command.arg(role).arg("--config").arg(node.config_file()).env("CLAWGRESS_LOG", "warn");
        Process(command.stdin(Stdio::null()).spawn().expect("start"))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn new_agent(n: u64) -> NewAgent {
    let id = format!("agent-{n}").parse().expect("id");
    let labels = std::collections::BTreeMap::new();
    NewAgent {
        id,
        team: None,
        project: None,
        environment: None,
        labels,
        sources: vec![],
        key: true,
        missing: MissingGroups::Create,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_roles_in_one_process_are_ready_together_and_end_together() {
    let node = Node::new();
    let notify = tokio::net::UnixDatagram::bind(node.dir.path().join("notify")).expect("bind");
    let start = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_clawgress-agent"));
        command.arg("all").arg("--config").arg(node.config_file()).env("CLAWGRESS_LOG", "warn");
        command
            .env("NOTIFY_SOCKET", node.dir.path().join("notify"))
            .stdin(Stdio::null())
            .stderr(Stdio::piped());
        Process(command.spawn().expect("start"))
    };
    let mut first = start();
    assert_eq!(told(&notify).await, "READY=1");
    let status: Status = parse(&node.admin().status(Empty {}).await.expect("status").into_inner().json);
    assert_eq!(status.datapath.map(|d| d.mode).as_deref(), Some("none"), "all three answer when it is ready");

    let second = tokio::task::spawn_blocking({
        let mut second = start();
        move || {
            let status = second.0.wait().expect("wait");
            let mut text = String::new();
            std::io::Read::read_to_string(&mut second.0.stderr.take().expect("stderr"), &mut text)
                .expect("text");
            (status, text)
        }
    });
    let (end, text) = tokio::time::timeout(node::PATIENCE, second).await.expect("it ends").expect("no panic");
    assert_eq!(end.code(), Some(1));
    let last = text.lines().last().expect("a message");
    assert!(last.starts_with("clawgress-agent: the ") && last.contains("role failed: "), "{text}");
    while told(&notify).await != "STOPPING=1" {}
    node.admin().status(Empty {}).await.expect("the first one is not disturbed");

    let id = nix::unistd::Pid::from_raw(i32::try_from(first.0.id()).expect("id"));
    nix::sys::signal::kill(id, nix::sys::signal::Signal::SIGTERM).expect("signal");
    let end = tokio::task::spawn_blocking(move || first.0.wait().expect("wait"));
    let end = tokio::time::timeout(node::PATIENCE, end).await.expect("it ends").expect("no panic");
    assert!(end.success(), "{end}");
    assert_eq!(told(&notify).await, "STOPPING=1");
}

async fn told(notify: &tokio::net::UnixDatagram) -> String {
    let mut bytes = [0; 64];
    let n = tokio::time::timeout(node::PATIENCE, notify.recv(&mut bytes)).await.expect("told in time");
    String::from_utf8_lossy(bytes.split_at(n.expect("datagram")).0).into_owned()
}

/// systemd's credential is the master of the secrets as soon as there is one, and nothing opens them without it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_credential_seals_the_secrets() {
    let node = Node::new();
    let credentials = tempfile::tempdir().expect("directory");
    std::fs::write(credentials.path().join("clawgress-keys-master"), [5; 32]).expect("written");
    let master = node.config.node.state_dir.join("keys/master-v1");
    let start = |given: bool| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_clawgress-agent"));
        command.arg("keys").arg("--config").arg(node.config_file()).env("CLAWGRESS_LOG", "warn");
        if given {
            command.env("CREDENTIALS_DIRECTORY", credentials.path());
        }
        Process(command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().expect("start"))
    };
    for given in [false, true, true] {
        let keys = start(given);
        until_there(&node.config.keys_socket()).await;
        assert_eq!(master.exists(), !given);
        drop(keys);
        std::fs::remove_file(node.config.keys_socket()).expect("its socket");
    }
    let mut without = start(false);
    let ended = tokio::task::spawn_blocking(move || {
        let mut text = String::new();
        std::io::Read::read_to_string(&mut without.0.stderr.take().expect("stderr"), &mut text)
            .expect("text");
        (without.0.wait().expect("wait"), text)
    });
    let (status, text) =
        tokio::time::timeout(node::PATIENCE, ended).await.expect("it ends").expect("no panic");
    assert_eq!(status.code(), Some(1), "{text}");
    assert!(text.contains("LoadCredentialEncrypted=") && !master.exists(), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_that_was_acknowledged_is_lost() {
    let node = Arc::new(Node::new());
    let _keys = Process::start(&node, "keys");
    until_there(&node.config.keys_socket()).await;
    let agents = Arc::new(AtomicU64::new(0));
    let records = Arc::new(AtomicU64::new(0));
    let mut generation = 0;
    for round in 0..3 {
        let control = Process::start(&node, "control");
        until_there(&node.config.admin_socket()).await;
        let writers = [
            tokio::spawn(write_agents(Arc::clone(&node), Arc::clone(&agents))),
            tokio::spawn(write_records(Arc::clone(&node), Arc::clone(&records), round)),
        ];
        tokio::time::sleep(Duration::from_millis(700)).await;
        drop(control); // SIGKILL, in the middle of both.
        for writer in writers {
            writer.await.expect("writer");
        }
        let control = Process::start(&node, "control");
        until_there(&node.config.admin_socket()).await;
        let status: Status = parse(&node.admin().status(Empty {}).await.expect("status").into_inner().json);
        assert!(status.generation > generation, "{} after {generation}", status.generation);
        generation = status.generation;
        let listed = node.admin().list_agents(Empty {}).await.expect("agents").into_inner().json;
        let listed: Vec<Agent> = listed.iter().map(|json| parse(json)).collect();
        let acknowledged = agents.load(Ordering::SeqCst);
        for n in 0..acknowledged {
            let id = format!("default/agent-{n}");
            assert!(listed.iter().any(|a| a.id.to_string() == id), "{id} was acknowledged");
        }
        let mut indices: Vec<u32> = listed.iter().map(|a| a.index).collect();
        indices.sort_unstable();
        indices.dedup();
        assert_eq!(indices.len(), listed.len(), "no number twice");
        let query =
            AuditQuery { kind: Some(RecordKind::Change), limit: Some(50_000), ..AuditQuery::default() };
        let changes = search(&node, &query).await;
        for agent in &listed {
            // As the agent is told in JSON: a number that one record alone has.
            let index = format!("\"index\":{},", agent.index);
            let is_told = |r: &AuditRecord| r.detail.as_ref().is_some_and(|d| d.contains(&index));
            assert!(changes.iter().any(is_told), "no record of how `{}` came to be", agent.id);
        }
        let query =
            AuditQuery { kind: Some(RecordKind::Decision), limit: Some(50_000), ..AuditQuery::default() };
        let kept: std::collections::BTreeSet<String> =
            search(&node, &query).await.into_iter().map(|r| r.request).collect();
        let acknowledged = records.load(Ordering::SeqCst);
        assert!(acknowledged > 0, "the writer got somewhere");
        for n in 0..acknowledged {
            assert!(kept.contains(&format!("r-{n}")), "record {n} of {acknowledged} was acknowledged");
        }
        drop(control);
    }
    assert!(agents.load(Ordering::SeqCst) > 3, "the writer got somewhere");
}

async fn search(node: &Node, query: &AuditQuery) -> Vec<AuditRecord> {
    let mut stream = node.admin().search_audit(document(query)).await.expect("search").into_inner();
    let mut found = Vec::new();
    while let Some(document) = stream.message().await.expect("record") {
        found.push(parse(&document.json));
    }
    found
}

/// Creates agents, one after the other, until control is gone.
async fn write_agents(node: Arc<Node>, acknowledged: Arc<AtomicU64>) {
    let mut admin = node.admin();
    loop {
        let n = acknowledged.load(Ordering::SeqCst);
        match admin.create_agent(document(&new_agent(n))).await {
            // It may have been committed just before the kill, without an answer.
            Err(status) if status.code() == tonic::Code::AlreadyExists => {}
            Err(_) => return,
            Ok(_) => {}
        }
        acknowledged.store(n + 1, Ordering::SeqCst);
    }
}

/// Appends records, many at a time, until control is gone.
async fn write_records(node: Arc<Node>, acknowledged: Arc<AtomicU64>, round: u64) {
    const BATCH: u64 = 5;
    let (sender, receiver) = mpsc::channel(8);
    let Ok(acks) = node.audit().append(ReceiverStream::new(receiver)).await else { return };
    let mut acks = acks.into_inner();
    let first = acknowledged.load(Ordering::SeqCst);
    let feeder = tokio::spawn(async move {
        for sequence in 0.. {
            let numbers = first + sequence * BATCH..first + (sequence + 1) * BATCH;
            let records = numbers.map(|n| {
                let time = jiff::Timestamp::now();
                let request = format!("r-{n}");
                let record = AuditRecord::new(time, "test", RecordKind::Decision, Plane::L7, request, round);
                serde_json::to_vec(&record).expect("json")
            });
            let batch = AuditBatch { sequence, records: records.collect() };
            if sender.send(batch).await.is_err() {
                return;
            }
        }
    });
    while let Ok(Some(ack)) = acks.message().await {
        acknowledged.store(first + (ack.sequence + 1) * BATCH, Ordering::SeqCst);
    }
    feeder.abort();
}
