//! The lab alone, with a gateway that only routes: what the other tests rely on. The oracle of
//! every test is that nothing comes to FORBIDDEN, so here something does, and must be seen.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{Read as _, Write as _};
use std::net::{TcpStream, UdpSocket};
use std::time::Duration;

use clawgress_e2e::lab::{Forbidden, Host, Lab};
use clawgress_e2e::plan;

fn lab() -> Lab {
    Lab::builder().routed().start().unwrap()
}

#[test]
fn servers_answer_over_both_families_and_in_tls() {
    let lab = lab();
    let ca = lab.ca();
    let ca = ca.to_str().unwrap();
    for family in ["-4", "-6"] {
        for url in ["http://api.allowed.test/x?y", "https://web.allowed.test/"] {
            let argv = ["curl", "-sS", family, "--max-time", "10", "--cacert", ca, url];
            let output = lab.run(Host::Known, &argv).unwrap().check().unwrap();
            assert!(output.stdout.contains("clawgress lab"), "{output:?}");
        }
    }
    let six = lab.run(Host::Anon, &["curl", "-sS", "--max-time", "10", "http://six.allowed.test/"]).unwrap();
    assert!(six.check().unwrap().stdout.contains(plan::V6_ONLY));
    let unknown = lab.run(Host::Known, &["curl", "-sS", "http://unknown.test/"]).unwrap();
    assert_eq!(unknown.code, Some(6), "a name outside the zone is no name: {unknown:?}");
    assert_eq!(lab.world().unwrap().requests.len(), 5);
    assert_eq!(lab.forbidden().unwrap(), Forbidden::default());
}

#[test]
fn whatever_comes_to_forbidden_is_seen() {
    let lab = lab();
    let before = lab.forbidden().unwrap();
    assert_eq!(before, Forbidden::default());
    let curl = |url: &str| lab.run(Host::Anon, &["curl", "-sS", "--max-time", "10", url]).unwrap();
    // Any port of any address, answered, so that a leak is a whole conversation.
    assert_eq!(curl("http://secret.denied.test:8443/").stdout, "forbidden");
    let tcp = lab.forbidden().unwrap();
    assert!(tcp.connections == 1 && tcp.payload_bytes > 0 && tcp.packets > 0, "{tcp:?}");
    let [v4, v6] = plan::addresses(plan::BLOCKED)[..] else { panic!("two addresses") };
    for (bind, to) in [("0.0.0.0:0", v4), ("[::]:0", v6)] {
        let answer = lab.within(Host::Known, move || {
            let socket = UdpSocket::bind(bind).unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            socket.send_to(b"12345", (to, 4433)).unwrap();
            let mut buffer = [0; 32];
            let n = socket.recv(&mut buffer).unwrap();
            buffer[..n].to_vec()
        });
        assert_eq!(answer.unwrap(), b"forbidden");
    }
    let udp = lab.forbidden().unwrap();
    assert_eq!(udp.payload_bytes, tcp.payload_bytes + 10);
    // What no socket would ever see counts too.
    lab.run(Host::Known, &["ping", "-c", "1", "-W", "1", "198.51.100.200"]).ok();
    let raw = "import socket; s=socket.socket(socket.AF_INET, socket.SOCK_RAW, 132); s.sendto(b'x'*20, ('198.51.100.9', 0))";
    lab.run(Host::Known, &["python3", "-c", raw]).unwrap().check().unwrap();
    assert!(lab.forbidden().unwrap().packets > udp.packets);
}

#[test]
fn a_held_stream_waits_for_its_release() {
    let lab = lab();
    let llm = plan::addresses(plan::LLM)[0];
    let (sender, receiver) = std::sync::mpsc::sync_channel(1);
    std::thread::scope(|scope| {
        let client = scope.spawn(|| {
            lab.within(Host::Known, move || {
                let mut stream = TcpStream::connect((llm, 80)).unwrap();
                stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
                let body = r#"{"stream":true,"stream_options":{"include_usage":true}}"#;
                let head = format!(
                    "POST /v1/chat/completions HTTP/1.1\r\nHost: {}\r\nX-Lab-Hold: a\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
                    plan::LLM,
                    body.len()
                );
                stream.write_all(head.as_bytes()).unwrap();
                let mut text = String::new();
                let mut buffer = [0; 4096];
                loop {
                    let n = stream.read(&mut buffer).unwrap();
                    if n == 0 {
                        return text;
                    }
                    text.push_str(std::str::from_utf8(&buffer[..n]).unwrap());
                    if text.contains("Egress") {
                        let _ = sender.try_send(text.contains("[DONE]"));
                    }
                }
            })
        });
        let whole = receiver.recv_timeout(Duration::from_secs(10)).unwrap();
        assert!(!whole, "the first token came with the last");
        lab.release("a").unwrap();
        let text = client.join().unwrap().unwrap();
        assert!(text.contains("\"completion_tokens\":7") && text.contains("[DONE]"), "{text}");
    });
}

#[test]
fn a_lab_leaves_nothing_behind_even_after_a_panic() {
    let (sender, receiver) = std::sync::mpsc::sync_channel(1);
    let panicked = std::thread::spawn(move || {
        let lab = lab();
        let spawned = lab.spawn(Host::Known, "sleep", &["sleep", "1000"]).unwrap();
        sender.send((lab.name().to_owned(), lab.dir().to_owned(), spawned.pid())).unwrap();
        std::mem::forget(spawned);
        std::panic::panic_any("on purpose");
    });
    assert!(panicked.join().is_err());
    let (name, dir, pid) = receiver.recv().unwrap();
    assert!(!dir.exists() && !dir.with_extension("json").exists());
    for host in Host::ALL {
        let namespace = format!("/run/netns/{name}-{}", host.name());
        assert!(!std::path::Path::new(&namespace).exists(), "{namespace}");
    }
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    assert!(stat.is_empty() || stat.contains(") Z"), "the process goes on: {stat}");
}

#[test]
fn labs_stand_side_by_side() {
    let (one, two) = (lab(), lab());
    let argv = ["curl", "-sS", "--max-time", "10", "http://api.allowed.test/"];
    one.run(Host::Known, &argv).unwrap().check().unwrap();
    assert_eq!(one.world().unwrap().requests.len(), 1);
    assert_eq!(two.world().unwrap().requests.len(), 0, "labs share nothing");
}
