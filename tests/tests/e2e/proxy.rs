//! The explicit proxy: CONNECT and absolute form, credentials, and what it does with garbage.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use clawgress_api::{Ingress, Verdict};
use clawgress_e2e::lab::Host;
use clawgress_e2e::plan::{API, GATEWAY, PROXY_PORT, SECRET, V6_ONLY, addresses};
use clawgress_e2e::scenario::{ASSISTANT, CRAWLER, INTERN, Site};

use crate::support::{agent, codes, curl, denied, finish, pair, proxy, record, site, to_host};

/// Sends `bytes` to `to` from `host`, in pieces, and gives what comes back until the end or a time.
fn send(site: &Site, host: Host, to: SocketAddr, pieces: Vec<Vec<u8>>) -> Vec<u8> {
    let work = move || {
        let mut answer = Vec::new();
        let Ok(mut stream) = TcpStream::connect_timeout(&to, Duration::from_secs(3)) else { return answer };
        stream.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
        stream.set_nodelay(true).unwrap();
        for piece in pieces {
            if stream.write_all(&piece).is_err() {
                break;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        let _ = (&mut stream).take(1 << 20).read_to_end(&mut answer);
        answer
    };
    site.gateway.lab.within(host, work).unwrap()
}

fn proxy_address(ip: IpAddr) -> SocketAddr {
    SocketAddr::new(ip, PROXY_PORT)
}

#[test]
fn a_key_opens_connect_and_absolute_form_from_any_host() {
    let site = site();
    let url = proxy(ASSISTANT, &site.assistant_key);
    let output = curl(&site, Host::Anon, &["-x", &url, "https://api.allowed.test/connect"]);
    assert_eq!(codes(&output), (200, 200), "{output:?}");
    let output = curl(&site, Host::Anon, &["-x", &url, "http://api.allowed.test/absolute"]);
    assert_eq!(codes(&output).0, 200, "{output:?}");
    let v6 = format!("http://{ASSISTANT}:{}@[{}]:{PROXY_PORT}", site.assistant_key, GATEWAY.v6);
    let output = curl(&site, Host::Anon, &["-x", &v6, "https://six.allowed.test/"]);
    assert_eq!(codes(&output), (200, 200), "{output:?}");
    // The bound host needs no key, and may present its own.
    let bare = format!("http://{}:{PROXY_PORT}", GATEWAY.v4);
    let own = proxy(CRAWLER, &site.crawler_key);
    for url in [&bare, &own] {
        let output = curl(&site, Host::Known, &["-x", url, "https://api.allowed.test/own"]);
        assert_eq!(codes(&output), (200, 200), "{output:?}");
    }
    let (decision, outcome) = pair(&site, "CONNECT", |r| to_host(r, API) && agent(r) == Some(ASSISTANT));
    assert_eq!((decision.ingress, decision.verdict), (Some(Ingress::Proxy), Some(Verdict::Allow)));
    assert!(outcome.bytes_received.unwrap() > 0);
    pair(&site, "absolute form", |r| r.destination.path.as_deref() == Some("/absolute"));
    // No credential went on to the server.
    for request in site.gateway.lab.world().unwrap().requests {
        assert!(!request.headers.contains_key("proxy-authorization"), "{request:?}");
    }
    finish(site);
}

#[test]
fn socks_is_governed_as_connect_is() {
    let site = site();
    let socks = |credential: &str| format!("socks5h://{credential}{}:{PROXY_PORT}", GATEWAY.v4);
    let own = socks(&format!("{ASSISTANT}:{}@", site.assistant_key));
    let ask = |host, url: &str, to: &str| curl(&site, host, &["-x", url, to]);
    // TLS unread, HTTP read, by name; from a host that is nobody, with a key.
    for to in ["https://api.allowed.test/socks-tls", "http://api.allowed.test/socks-http"] {
        let output = ask(Host::Anon, &own, to);
        assert_eq!(codes(&output).0, 200, "{output:?}");
    }
    let v6 = format!("socks5h://{ASSISTANT}:{}@[{}]:{PROXY_PORT}", site.assistant_key, GATEWAY.v6);
    assert_eq!(codes(&ask(Host::Anon, &v6, "https://six.allowed.test/")).0, 200);
    // A bound host needs no key.
    let output = ask(Host::Known, &socks(""), "http://api.allowed.test/socks-bound");
    assert_eq!(codes(&output).0, 200, "{output:?}");
    // curl's 97: the proxy refused.
    for (url, to) in [
        (socks(""), "https://api.allowed.test/"),
        (socks(&format!("{ASSISTANT}:wrong@")), "https://api.allowed.test/"),
        (own.clone(), "https://secret.denied.test/"),
        (own.clone(), "https://198.51.100.66/"),
        (own.clone(), "https://169.254.169.254/"),
        (own.replace("socks5h", "socks4a"), "https://api.allowed.test/"),
    ] {
        let output = ask(Host::Anon, &url, to);
        assert_eq!(output.code, Some(97), "{url} {to}: {output:?}");
    }
    // What is read inside gets a page.
    assert_eq!(codes(&ask(Host::Anon, &own, "http://api.allowed.test/admin/x")).0, 403);
    let (decision, _) = pair(&site, "TLS by SOCKS", |r| {
        to_host(r, API) && agent(r) == Some(ASSISTANT) && r.action.as_deref() == Some("tunnel")
    });
    assert_eq!((decision.ingress, decision.verdict), (Some(Ingress::Proxy), Some(Verdict::Allow)));
    pair(&site, "HTTP by SOCKS", |r| r.destination.path.as_deref() == Some("/socks-http"));
    record(&site, "no credential", |r| denied(r, "credential_missing"));
    record(&site, "a wrong key", |r| denied(r, "credential_invalid"));
    record(&site, "SOCKS 4", |r| denied(r, "socks_unsupported"));
    finish(site);
}

#[test]
fn denials_by_name_path_and_team() {
    let site = site();
    let url = proxy(ASSISTANT, &site.assistant_key);
    let connect = |url: &str, to: &str| codes(&curl(&site, Host::Anon, &["-x", url, to])).1;
    assert_eq!(connect(&url, "https://secret.denied.test/"), 403);
    assert_eq!(connect(&url, "https://198.51.100.66/"), 403);
    // Ports that no policy permits: of SSH, mail and Redis, which a tunnel to a permitted name would open as well.
    for port in [22, 25, 6379, 8443] {
        assert_eq!(connect(&url, &format!("https://api.allowed.test:{port}/")), 403, "{port}");
        assert_eq!(connect(&url, &format!("https://198.51.100.66:{port}/")), 403, "{port}");
    }
    assert_eq!(connect(&url, "https://169.254.169.254/"), 403);
    assert_eq!(connect(&url, "https://10.70.0.1/"), 403);
    let plain = |to: &str| codes(&curl(&site, Host::Anon, &["-x", &url, to])).0;
    assert_eq!(plain("http://secret.denied.test/"), 403);
    assert_eq!(plain("http://rebind.allowed.test/"), 403, "an allowed name that resolves to the gateway");
    assert_eq!(plain("http://metadata.allowed.test/latest/meta-data"), 403);
    assert_eq!(plain("http://0x7f.1/"), 403);
    assert_eq!(plain("http://api.allowed.test/admin"), 403);
    let intern = proxy(INTERN, &site.intern_key);
    assert_eq!(connect(&intern, "https://api.allowed.test/"), 403, "no policy permits this team");
    // An address that this machine gets is its own as soon as it has it, and until it is taken away.
    let six = addresses(V6_ONLY)[0];
    let own = |verb| {
        let words = ["ip", "addr", verb, &format!("{six}/128"), "dev", "lo"];
        site.gateway.lab.run(Host::Gateway, &words).unwrap().check().unwrap();
    };
    assert_eq!(plain("http://six.allowed.test/theirs"), 200);
    own("add");
    assert_eq!(plain("http://six.allowed.test/ours"), 403);
    own("del");
    assert_eq!(plain("http://six.allowed.test/theirs"), 200);
    // Or leads to itself, without having it on an interface: by a prefix on `lo`, and by a route.
    let here = |verb| {
        let route = format!("{}/128", addresses(API)[1]);
        for words in [
            ["ip", "addr", verb, "203.0.113.9/29", "dev", "lo"].as_slice(),
            &["ip", "route", verb, "local", &route, "dev", "lo"],
        ] {
            site.gateway.lab.run(Host::Gateway, words).unwrap().check().unwrap();
        }
    };
    here("add");
    assert_eq!(plain("http://api.allowed.test/ours"), 403);
    here("del");
    assert_eq!(plain("http://api.allowed.test/theirs"), 200);
    record(&site, "it leads there", |r| to_host(r, API) && denied(r, "gateway_address"));
    record(&site, "its own", |r| to_host(r, V6_ONLY) && denied(r, "gateway_address"));
    record(&site, "the name", |r| to_host(r, SECRET) && denied(r, "policy_denied"));
    for port in [22, 25, 6379] {
        record(&site, "a port", |r| {
            to_host(r, API) && r.destination.port == Some(port) && denied(r, "policy_denied")
        });
    }
    record(&site, "the team", |r| agent(r) == Some(INTERN) && denied(r, "policy_denied"));
    finish(site);
}

#[test]
fn wrong_missing_and_borrowed_credentials() {
    let site = site();
    let to = "https://api.allowed.test/";
    let connect = |host: Host, url: &str| codes(&curl(&site, host, &["-x", url, to])).1;
    let bare = format!("http://{}:{PROXY_PORT}", GATEWAY.v4);
    assert_eq!(connect(Host::Anon, &bare), 407);
    let mut wrong = site.assistant_key.clone();
    let last = if wrong.ends_with('0') { '1' } else { '0' };
    wrong.pop();
    wrong.push(last);
    assert_eq!(connect(Host::Anon, &proxy(ASSISTANT, &wrong)), 407);
    assert_eq!(connect(Host::Anon, &proxy(CRAWLER, &site.assistant_key)), 407, "another agent's key");
    assert_eq!(connect(Host::Anon, &proxy("nobody", &site.assistant_key)), 407);
    assert_eq!(connect(Host::Anon, &proxy(ASSISTANT, "secret")), 407);
    record(&site, "no credential", |r| denied(r, "credential_missing"));
    record(&site, "a wrong one", |r| denied(r, "credential_invalid"));
    // A host that is bound to one agent may not present another, however valid.
    let status = connect(Host::Known, &proxy(ASSISTANT, &site.assistant_key));
    assert!(status == 403 || status == 407, "{status}");
    record(&site, "the conflict", |r| denied(r, "identity_conflict"));
    assert!(site.gateway.lab.world().unwrap().requests.is_empty(), "nothing went on");
    finish(site);
}

#[test]
fn a_deleted_agents_key_opens_nothing() {
    let mut site = site();
    let url = proxy(ASSISTANT, &site.assistant_key);
    let connect = |site: &Site| codes(&curl(site, Host::Anon, &["-x", &url, "https://api.allowed.test/"])).1;
    assert_eq!(connect(&site), 200);
    site.gateway.admin().unwrap().ctl(&["agent", "delete", ASSISTANT]).unwrap().check().unwrap();
    site.gateway.ready().unwrap();
    assert_eq!(connect(&site), 407);
    finish(site);
}

#[test]
fn connect_and_server_name_must_agree() {
    let site = site();
    let url = proxy(ASSISTANT, &site.assistant_key);
    // openssl says one name to the proxy and another in TLS.
    let script = format!(
        "openssl s_client -proxy {}:{PROXY_PORT} -proxy_user {ASSISTANT} -proxy_pass pass:{} \
         -connect api.allowed.test:443 -servername web.allowed.test -CAfile {} </dev/null",
        GATEWAY.v4,
        site.assistant_key,
        site.gateway.lab.ca().display()
    );
    let output = site.gateway.lab.run(Host::Anon, &["sh", "-c", &script]).unwrap();
    assert!(!output.ok() || !output.stdout.contains("Verification: OK"), "{output:?}");
    record(&site, "the mismatch", |r| denied(r, "sni_mismatch"));
    assert_eq!(codes(&curl(&site, Host::Anon, &["-x", &url, "https://api.allowed.test/"])).1, 200);
    finish(site);
}

#[test]
fn a_hello_in_single_bytes_is_read_as_one() {
    let site = site();
    let script = r"
import socket, ssl, sys, time
raw = socket.create_connection((sys.argv[1], 443), timeout=8)
raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
context = ssl.create_default_context(cafile=sys.argv[3])
tls = context.wrap_bio(incoming, outgoing, server_hostname=sys.argv[2])
while True:
    try:
        tls.do_handshake()
        break
    except ssl.SSLWantReadError:
        for byte in outgoing.read():
            raw.sendall(bytes([byte]))
        data = raw.recv(65536)
        if not data: sys.exit('closed')
        incoming.write(data)
raw.sendall(outgoing.read())
print('handshake', tls.version())
";
    let ca = site.gateway.lab.ca();
    let ca = ca.to_str().unwrap();
    let allowed = ["python3", "-c", script, "203.0.113.10", API, ca];
    let output = site.gateway.lab.run(Host::Known, &allowed).unwrap().check().unwrap();
    assert!(output.stdout.starts_with("handshake TLS"), "{output:?}");
    let refused = ["python3", "-c", script, "198.51.100.66", SECRET, ca];
    assert!(!site.gateway.lab.run(Host::Known, &refused).unwrap().ok());
    record(&site, "the denial", |r| to_host(r, SECRET) && denied(r, "policy_denied"));
    finish(site);
}

#[test]
fn garbage_at_every_listener_is_answered_with_nothing_useful() {
    let site = site();
    let proxies = [proxy_address(GATEWAY.v4.into()), proxy_address(GATEWAY.v6.into())];
    let transparent: [SocketAddr; 3] = [
        "203.0.113.10:443".parse().unwrap(),
        "203.0.113.10:80".parse().unwrap(),
        "198.51.100.66:443".parse().unwrap(),
    ];
    // Deterministic noise: the same bytes at each run.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut noise = |n: usize| -> Vec<u8> {
        let next = |state: &mut u64| {
            *state ^= *state << 13;
            *state ^= *state >> 7;
            *state ^= *state << 17;
            state.to_le_bytes()[0]
        };
        (0..n).map(|_| next(&mut state)).collect()
    };
    let huge = b"GET / HTTP/1.1\r\nHost: api.allowed.test\r\nX: ".iter().copied().chain(vec![b'a'; 1 << 20]);
    let hello = [0x16, 3, 1, 0xff, 0xff, 1, 0, 0xff, 0xfb];
    let cases: Vec<Vec<Vec<u8>>> = vec![
        vec![noise(1)],
        vec![noise(4096)],
        vec![vec![0; 70_000]],
        vec![huge.collect()],
        vec![hello.iter().copied().chain(noise(70_000)).collect()],
        vec![hello[..5].to_vec(), noise(3)],
        vec![b"CONNECT api.allowed.test:443 HTTP/1.1\r\n".to_vec(), noise(100)],
        vec![b"CONNECT secret.denied.test:443\r\n\r\n".to_vec()],
        vec![b"GET http://secret.denied.test/ HTTP/1.1\r\nHost: api.allowed.test\r\n\r\n".to_vec()],
        vec![b"POST / HTTP/1.1\r\nHost: api.allowed.test\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /admin HTTP/1.1\r\nHost: secret.denied.test\r\n\r\n".to_vec()],
        vec![b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec()],
        vec![b"SSH-2.0-x\r\n".to_vec()],
        vec![],
    ];
    for pieces in cases {
        // All targets at once: each waits for an end that may not come.
        std::thread::scope(|scope| {
            for to in proxies.iter().chain(&transparent) {
                for host in [Host::Known, Host::Anon] {
                    let (site, pieces) = (&site, pieces.clone());
                    scope.spawn(move || {
                        let answer = send(site, host, *to, pieces);
                        let text = String::from_utf8_lossy(&answer);
                        assert!(!text.starts_with("HTTP/1.1 200"), "{to} from {host:?}: {text}");
                        assert!(
                            !text.contains("forbidden\n") && !text.contains("clawgress lab"),
                            "{to}: {text}"
                        );
                    });
                }
            }
        });
    }
    let seen = site.gateway.lab.world().unwrap().requests;
    assert!(seen.is_empty(), "garbage became a request: {seen:?}");
    finish(site);
}
