//! Bytes that nobody should send, at every listener there is: the proxy over TLS, DNS, and the sockets between the roles. Nothing
//! panics (a lab looks at that when it ends), nothing grows, and everybody is served afterwards. `proxy.rs` has the proxy in clear
//! and what is steered.

use std::io::Read as _;
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::os::unix::fs::FileTypeExt as _;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use clawgress_e2e::lab::{Host, Role};
use clawgress_e2e::plan::{DNS, GATEWAY};
use clawgress_e2e::scenario::Site;

use crate::certificates::{PROXY_TLS_PORT, Setting};
use crate::dns::with_policy;
use crate::floods::resident;
use crate::support::{curl, finish};

/// Longest wait for an answer that need not come.
const ANSWER: Duration = Duration::from_millis(200);
/// Most memory that a role may gain by all of it, KiB: what an allocator keeps of the busiest moment. A role that kept what it
/// was sent would gain ten times that.
const GROWTH_KIB_MAX: u64 = 24 * 1024;
/// What is told to be coming, and doesn't come, bytes.
const HUGE: usize = 4 << 20;

/// Bytes that look like chance, the same at each run.
struct Noise(u64);

impl Noise {
    fn bytes(&mut self, count: usize) -> Vec<u8> {
        let next = |state: &mut u64| {
            *state ^= *state << 13;
            *state ^= *state >> 7;
            *state ^= *state << 17;
            state.to_le_bytes()[0]
        };
        (0..count).map(|_| next(&mut self.0)).collect()
    }
}

/// What is sent over a stream: random, cut off, huge, and what others of its kind begin with.
fn streams() -> Vec<Vec<u8>> {
    let mut noise = Noise(0x9e37_79b9_7f4a_7c15);
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    // A frame of HTTP/2 that tells of 16 MiB, and heads that end in its midst.
    let frame = [0xff, 0xff, 0xff, 1, 4, 0, 0, 0, 1];
    let hello = [0x16, 3, 1, 0x40, 0, 1, 0, 0x3f, 0xfc, 3, 3];
    let dns = [0xff, 0xff, 0x12, 0x34, 1, 0, 0xff, 0xff, 0, 0, 0, 0, 0, 0];
    vec![
        Vec::new(),
        noise.bytes(1),
        noise.bytes(4096),
        vec![0; 70_000],
        noise.bytes(HUGE),
        preface.to_vec(),
        preface.iter().copied().chain(noise.bytes(4096)).collect(),
        preface.iter().chain(&frame).copied().chain(noise.bytes(70_000)).collect(),
        hello.iter().copied().chain(noise.bytes(16_384)).collect(),
        hello[..7].to_vec(),
        dns.iter().copied().chain(noise.bytes(65_535)).collect(),
        b"CONNECT secret.denied.test:443 HTTP/1.1\r\n\r\n".to_vec(),
        b"{\"version\":1,\"document\":[[[[[[[[[[[[[[[[[".to_vec(),
    ]
}

/// Sends, and reads what there is for a while. The other side may end it at any time.
fn exchange(stream: &mut (impl std::io::Read + std::io::Write), bytes: &[u8]) -> Vec<u8> {
    let mut answer = Vec::new();
    let _ = stream.write_all(bytes);
    let _ = stream.take(1 << 16).read_to_end(&mut answer);
    answer
}

/// Sends all of it to one listener, and what looks like questions too, where that is DNS; gives what came back.
fn annoy(to: SocketAddr) -> Vec<Vec<u8>> {
    let mut answers = Vec::new();
    for bytes in streams() {
        let Ok(mut stream) = TcpStream::connect_timeout(&to, Duration::from_secs(3)) else { continue };
        stream.set_read_timeout(Some(ANSWER)).unwrap();
        stream.set_write_timeout(Some(ANSWER)).unwrap();
        answers.push(exchange(&mut stream, &bytes));
    }
    if to.port() == 53 {
        let socket = UdpSocket::bind(if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }).unwrap();
        let mut noise = Noise(0xda94_2042_e4dd_58b5);
        for length in [0, 1, 11, 12, 13, 17, 64, 512, 1400].repeat(20) {
            // What begins as a question may, and doesn't go on as one.
            let mut bytes = noise.bytes(length);
            let head = [1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
            bytes.iter_mut().skip(2).zip(head).for_each(|(byte, value)| *byte = value);
            let _ = socket.send_to(&bytes, to);
        }
    }
    answers
}

fn all_resident(site: &mut Site) -> Vec<(Role, u64)> {
    Role::ALL.map(|role| (role, resident(site, role))).to_vec()
}

#[track_caller]
fn kept_little(site: &mut Site, before: &[(Role, u64)]) {
    for (role, kib) in before {
        let now = resident(site, *role);
        println!("{role:?}: {kib} KiB before, {now} KiB after");
        assert!(now.saturating_sub(*kib) <= GROWTH_KIB_MAX, "{role:?} grew from {kib} to {now} KiB");
    }
}

#[test]
fn noise_over_tls_and_at_dns_opens_nothing_and_leaves_nothing() {
    let mut site = with_policy(Setting::new().site, "");
    let targets: Vec<SocketAddr> = vec![
        (GATEWAY.v4, PROXY_TLS_PORT).into(),
        (GATEWAY.v6, PROXY_TLS_PORT).into(),
        (DNS.0, 53).into(),
        (DNS.1, 53).into(),
    ];
    let before = all_resident(&mut site);
    for host in [Host::Known, Host::Anon] {
        let targets = targets.clone();
        let answers = site.gateway.lab.within(host, move || {
            // All at once: each waits for answers that need not come. Threads stay in the network of the one that starts them.
            let each: Vec<_> = targets.into_iter().map(|to| std::thread::spawn(move || annoy(to))).collect();
            each.into_iter().flat_map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
        });
        for answer in answers.unwrap() {
            let text = String::from_utf8_lossy(&answer);
            assert!(!text.contains("HTTP/1.1 200") && !text.contains("clawgress lab"), "{host:?}: {text}");
        }
    }
    kept_little(&mut site, &before);
    let asked = site.gateway.lab.run(Host::Known, &["getent", "ahosts", "api.allowed.test"]).unwrap();
    assert!(asked.ok(), "DNS still answers: {asked:?}");
    finish(site);
}

#[test]
fn noise_between_the_roles_is_taken_for_nothing() {
    let mut site = crate::support::site();
    let run = site.gateway.lab.dir().join("run");
    let sockets: Vec<PathBuf> = std::fs::read_dir(&run)
        .unwrap()
        .map(|entry| entry.unwrap())
        .filter(|entry| entry.file_type().unwrap().is_socket())
        .map(|entry| entry.path())
        .collect();
    println!("{sockets:?}");
    assert!(sockets.len() >= 3, "{sockets:?}");
    let before = all_resident(&mut site);
    for path in &sockets {
        for bytes in streams() {
            // Root is who may, everywhere.
            let Ok(mut stream) = UnixStream::connect(path) else { continue };
            stream.set_read_timeout(Some(ANSWER)).unwrap();
            stream.set_write_timeout(Some(ANSWER)).unwrap();
            exchange(&mut stream, &bytes);
        }
    }
    kept_little(&mut site, &before);
    let good = curl(&site, Host::Known, &["https://api.allowed.test/"]);
    assert!(good.ok(), "{good:?}");
    site.gateway.ctl(&["agent", "list"]).unwrap().check().unwrap();
    finish(site);
}
