//! Many idle connections at once, and what each takes of the proxy's memory. In the checks there are a few; by hand
//! `CLAWGRESS_SCALE=10000 cargo test --release -p clawgress-l7 --test proxy scale:: -- --nocapture` makes as many as are promised.

use std::path::Path;
use std::process::{Child, Command};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, setrlimit};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;

use crate::client::Client;
use crate::endpoints::https;
use crate::harness::{Gateway, Options, PATIENCE};
use crate::intercept::{HOST, Inside, trusting};
use crate::tunnels::hello;
use crate::upstream::Upstream;

/// Tunnels, and as many connections that are kept, where the environment names no number. For 10,000 of each, this process
/// holds 30,000 descriptors.
const CONNECTIONS: usize = 1_000;
/// Descriptors besides those.
const DESCRIPTORS_MORE: u64 = 500;
/// So that what is taken once is not counted.
const WARM: usize = 50;
/// Most of an idle tunnel, KiB in user space, where the program is optimised.
const TUNNEL_KIB_MAX: f64 = 16.0;
/// Most of a connection that is kept.
const KEPT_KIB_MAX: f64 = 36.0;

/// How many of each kind.
fn connections() -> usize {
    match std::env::var("CLAWGRESS_SCALE") {
        Ok(number) => number.parse().expect("`CLAWGRESS_SCALE` is a number"),
        Err(_) => CONNECTIONS,
    }
}

/// Ends the process, whatever happens.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs the program as a process of its own until it is told to stop.
pub fn run(
    directory: &Path,
    text: &str,
    stopped: oneshot::Receiver<()>,
) -> (JoinHandle<anyhow::Result<()>>, u32) {
    let file = directory.join("clawgress.toml");
    std::fs::write(&file, text).expect("written");
    let mut command = Command::new(env!("CARGO_BIN_EXE_clawgress-l7"));
    let mut running = Running(command.arg("--config").arg(file).spawn().expect("started"));
    let pid = running.0.id();
    let run = tokio::spawn(async move {
        let _ = stopped.await;
        kill_process(Pid::from_child(&running.0), Signal::TERM)?;
        let begun = Instant::now();
        while running.0.try_wait()?.is_none() {
            anyhow::ensure!(begun.elapsed() < PATIENCE * 2, "it does not end");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    });
    (run, pid)
}

/// Lets this process, and those it starts, have as many descriptors as the tests below need.
fn raise_descriptors() {
    let wanted = connections() as u64 * 3 + DESCRIPTORS_MORE;
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current.is_some_and(|current| current < wanted) {
        let maximum = maximum.map(|maximum| maximum.max(wanted));
        setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum })
            .expect("more descriptors: run this as root, or raise the limit (`ulimit -Hn`)");
    }
}

/// Memory that is the process's own, KiB.
pub fn memory_kib(pid: u32) -> f64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).expect("smaps_rollup");
    let line =
        text.lines().find_map(|line| line.strip_prefix("Anonymous:")).expect("a line of anonymous memory");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

async fn tunnel(gateway: &Gateway, target: &str, hello: &[u8]) -> Client {
    let (mut client, answer) = gateway.connect(target).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    client.send(hello).await;
    client
}

async fn kept(gateway: &Gateway, request: &str) -> Client {
    let mut client = gateway.client().await;
    client.send(request).await;
    assert_eq!(client.answer().await.status, 200);
    client
}

/// Waits until a count has come to `n`.
async fn until(what: &str, n: usize, count: impl Fn() -> usize) {
    let begun = Instant::now();
    while count() < n {
        assert!(begun.elapsed() < PATIENCE, "{} of {n} {what}", count());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_tunnels_and_kept_connections_are_idle_at_once() {
    raise_descriptors();
    let many = connections();
    let most = many * 2 + WARM * 2 + 100;
    // It comes after `connections_max`, in the same table.
    let more = format!("agent_connections_max = {most}\nthreads = 2\n");
    let options = Options { connections_max: most * 2, more, apart: true, ..Options::default() };
    let gateway = Gateway::start(options).await;
    let (sink, http) = (Upstream::teller("127.1.0.1").await, Upstream::http("127.1.0.1").await);
    let target = format!("api.allowed.test:{}", sink.address.port());
    let host = format!("api.allowed.test:{}", http.address.port());
    let request = format!("GET http://{host}/x HTTP/1.1\r\nHost: {host}\r\n{}\r\n", gateway.web());
    let hello = hello("api.allowed.test");
    let mut open = vec![];
    for _ in 0..WARM {
        open.push(tunnel(&gateway, &target, &hello).await);
        open.push(kept(&gateway, &request).await);
    }
    let before = memory_kib(gateway.pid);
    for _ in 0..many {
        open.push(tunnel(&gateway, &target, &hello).await);
    }
    until("hellos", (many + WARM) * hello.len(), || sink.seen.bytes.lock().len()).await;
    let between = memory_kib(gateway.pid);
    for _ in 0..many {
        open.push(kept(&gateway, &request).await);
    }
    let after = memory_kib(gateway.pid);
    let each = |more: f64| more / many as f64;
    let (of_tunnel, of_kept) = (each(between - before), each(after - between));
    println!("{many} idle tunnels: {of_tunnel:.1} KiB each; as many kept connections: {of_kept:.1} KiB each");
    if !cfg!(debug_assertions) {
        assert!(of_tunnel <= TUNNEL_KIB_MAX && of_kept <= KEPT_KIB_MAX, "{of_tunnel} {of_kept}");
    }
    // All of them live: each tunnel carries, and each kept connection takes another request.
    let seen = sink.seen.bytes.lock().len();
    let (tunnels, kept) = open[WARM * 2..].split_at_mut(many);
    for client in tunnels {
        client.send(b"x").await;
    }
    until("bytes", seen + many, || sink.seen.bytes.lock().len()).await;
    for client in kept {
        client.send(&request).await;
        assert_eq!(client.answer().await.status, 200);
    }
}

/// Most that the process takes more while an upload passes that nobody judges, KiB.
const UPLOAD_KIB_MAX: u64 = 16 * 1024;
const UPLOAD_BYTES: usize = 64 << 20;

/// The most memory that a process has had, KiB.
fn peak_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a peak");
    line.trim().trim_end_matches(" kB").trim().parse().expect("a number")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_is_carried_on_as_its_server_takes_it() {
    let gateway = Gateway::start(Options { apart: true, ..Options::default() }).await;
    let upstream = Upstream::http("127.1.0.1").await;
    let host = format!("api.allowed.test:{}", upstream.address.port());
    let post = async |bytes: usize| {
        let mut client = gateway.client().await;
        let web = gateway.web();
        client
            .send(format!(
                "POST http://{host}/up HTTP/1.1\r\nHost: {host}\r\n{web}Content-Length: {bytes}\r\n\r\n"
            ))
            .await;
        let piece = vec![b'x'; 1 << 20];
        for _ in 0..bytes >> 20 {
            client.send(&piece).await;
        }
        assert_eq!(client.answer().await.status, 200);
    };
    post(1 << 20).await;
    let before = peak_kib(gateway.pid);
    post(UPLOAD_BYTES).await;
    let took = peak_kib(gateway.pid) - before;
    assert!(upstream.seen.bytes.lock().len() > UPLOAD_BYTES, "all of it came");
    assert!(took < UPLOAD_KIB_MAX, "{took} KiB");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_connections_that_are_read_are_idle_at_once() {
    raise_descriptors();
    let many = connections();
    let (upstream, pem) = https("127.1.0.1", HOST).await;
    let directory = tempfile::tempdir().expect("directory");
    let roots = directory.path().join("roots.pem");
    std::fs::write(&roots, pem).expect("written");
    let most = many + WARM + 100;
    let more = format!(
        "agent_connections_max = {most}\nthreads = 2\n[intercept]\nroots = [\"{}\"]\n",
        roots.display()
    );
    let options = Options { connections_max: most * 2, more, apart: true, ..Options::default() };
    let gateway = Gateway::start(options).await;
    let host = format!("{HOST}:{}", upstream.address.port());
    let request = format!("GET /ok HTTP/1.1\r\nHost: {host}\r\n\r\n");
    let config = trusting(&[gateway.authority.certificate()], &["http/1.1"]);
    let mut open = vec![];
    for _ in 0..WARM {
        open.push(inside(&gateway, &host, &config, &request).await);
    }
    let before = memory_kib(gateway.pid);
    for _ in 0..many {
        open.push(inside(&gateway, &host, &config, &request).await);
    }
    let of_read = (memory_kib(gateway.pid) - before) / many as f64;
    println!("{many} idle connections that are read: {of_read:.1} KiB each");
    if !cfg!(debug_assertions) {
        assert!(of_read <= KEPT_KIB_MAX, "{of_read}");
    }
    for client in &mut open {
        client.send(&request).await;
        assert_eq!(client.answer().await.status, 200);
    }
}

/// A connection that is read, after one request.
async fn inside(gateway: &Gateway, host: &str, config: &Arc<ClientConfig>, request: &str) -> Inside {
    let (client, answer) = gateway.connect(host).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let name = ServerName::try_from(HOST).expect("name");
    let stream = TlsConnector::from(Arc::clone(config)).connect(name, client.stream).await;
    let mut client = Client::over(stream.expect("handshake"));
    client.send(request).await;
    assert_eq!(client.answer().await.status, 200);
    client
}
