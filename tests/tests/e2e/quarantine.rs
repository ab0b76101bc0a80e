//! One command stops an agent: what it has under way in either plane, and whatever it tries next.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use clawgress_api::{Plane, RecordKind};
use clawgress_e2e::lab::Host;
use clawgress_e2e::plan::{GATEWAY, PROXY_PORT};
use clawgress_e2e::scenario::CRAWLER;

use crate::support::{agent, curl_within, cut, denied, finish, record, site};

/// Opens connections, says `ready`, waits for `go`, then tries each of them: prints who still answers.
pub const CLIENT: &str = r"
import base64, os, socket, ssl, sys, time, urllib.parse
directory, ca, mode, proxy = sys.argv[1:5]
context = ssl.create_default_context(cafile=ca)

def tls(s):
    return context.wrap_socket(s, server_hostname='api.allowed.test')

def tunnel(address, credential):
    s = socket.create_connection(address, 10)
    head = 'CONNECT api.allowed.test:443 HTTP/1.1\r\nHost: api.allowed.test:443\r\n' + credential + '\r\n'
    s.sendall(head.encode())
    answer = s.recv(4096)
    assert b' 200 ' in answer, answer
    return tls(s)

def get(s):
    s.sendall(b'GET /under-way HTTP/1.1\r\nHost: api.allowed.test\r\n\r\n')
    return s.recv(1)

def lookup(s):
    question = b'\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x03api\x07allowed\x04test\x00\x00\x01\x00\x01'
    s.sendall(len(question).to_bytes(2, 'big') + question)
    return s.recv(1)

def lives(ask, s):
    s.settimeout(2)
    try:
        return bool(ask(s))
    except OSError:
        return False

if mode == 'host':
    open_ones = {
        'direct': (lookup, socket.create_connection(('203.0.113.53', 53), 10)),
        'steered': (get, tls(socket.create_connection(('203.0.113.10', 443), 10))),
        'tunnel': (get, tunnel((proxy, 3128), '')),
    }
else:
    url = urllib.parse.urlsplit(os.environ['HTTPS_PROXY'])
    secret = base64.b64encode((urllib.parse.unquote(url.username) + ':' + url.password).encode()).decode()
    address, credential = (url.hostname, url.port), 'Proxy-Authorization: Basic ' + secret + '\r\n'
    open_ones = {'workload': (get, tunnel(address, credential))}
open(directory + '/ready-' + mode, 'w').close()
while not os.path.exists(directory + '/go'):
    time.sleep(0.05)
for name, (ask, s) in open_ones.items():
    print(name, 'lives' if lives(ask, s) else 'is cut')
if mode != 'host':
    try:
        socket.create_connection(address, 2)
        print('the proxy answers')
    except PermissionError:
        print('sockets are refused')
";

pub fn wait_for(site: &clawgress_e2e::scenario::Site, file: &Path) {
    let there = || Ok(file.exists());
    site.gateway.lab.wait("the connections", Duration::from_secs(30), there).unwrap();
}

#[test]
fn one_command_stops_what_an_agent_has_under_way() {
    let site = site();
    let lab = &site.gateway.lab;
    let ca = lab.ca();
    let directory = lab.dir().join("quarantine");
    std::fs::create_dir(&directory).unwrap();
    // The local command is another user's.
    std::fs::set_permissions(&directory, std::fs::Permissions::from_mode(0o777)).unwrap();
    let (path, ca) = (directory.to_str().unwrap(), ca.to_str().unwrap());
    let gateway = GATEWAY.v4.to_string();
    let client = |mode| ["python3", "-c", CLIENT, path, ca, mode, &gateway].map(str::to_owned);
    let (host, workload) = std::thread::scope(|scope| {
        let host = scope.spawn(|| lab.run(Host::Known, &client("host")).unwrap());
        let workload = scope.spawn(|| {
            let command = client("workload");
            let args: Vec<&str> = ["run", "--agent", CRAWLER, "--"]
                .into_iter()
                .chain(command.iter().map(String::as_str))
                .collect();
            site.gateway.ctl(&args).unwrap()
        });
        wait_for(&site, &directory.join("ready-host"));
        wait_for(&site, &directory.join("ready-workload"));
        let said =
            site.gateway.ctl(&["agent", "quarantine", CRAWLER, "--for", "1h", "--reason", "a leaked key"]);
        let said = said.unwrap().check().unwrap();
        assert!(said.stdout.contains("is quarantined until"), "{said:?}");
        // The kernel has it by then: the first packet that comes now is refused.
        cut(&site, (CRAWLER, "agent_quarantined", 3), |r| {
            r.detail.as_deref().is_some_and(|d| d.contains("to quarantined"))
        });
        std::fs::write(directory.join("go"), "").unwrap();
        (host.join().unwrap(), workload.join().unwrap())
    });
    assert!(host.ok() && workload.ok(), "{host:?}\n{workload:?}");
    assert_eq!(host.stdout.trim(), "direct is cut\nsteered is cut\ntunnel is cut", "{host:?}");
    assert_eq!(workload.stdout.trim(), "workload is cut\nsockets are refused", "{workload:?}");

    // Nothing new either, in either plane, by any way.
    let proxy = format!("http://{}:{PROXY_PORT}", GATEWAY.v4);
    for args in [&["https://api.allowed.test/"][..], &["-x", &proxy, "https://api.allowed.test/"]] {
        assert!(!curl_within(&site, Host::Known, 2, args).ok());
    }
    // The key alone, from elsewhere.
    let keyed = format!("http://{CRAWLER}:{}@{}:{PROXY_PORT}", site.crawler_key, GATEWAY.v4);
    assert!(!curl_within(&site, Host::Anon, 2, &["-x", &keyed, "https://api.allowed.test/"]).ok());
    record(&site, "the kernel's word", |r| {
        r.plane == Plane::Kernel && denied(r, "agent_quarantined") && agent(r) == Some(CRAWLER)
    });
    record(&site, "who did it", |r| {
        r.kind == RecordKind::Change
            && r.detail.as_deref().is_some_and(|d| d.contains("to quarantined") && d.contains("a leaked key"))
    });
    let shown = site.gateway.ctl(&["agent", "show", CRAWLER]).unwrap().check().unwrap();
    assert!(shown.stdout.contains("state        quarantined"), "{shown:?}");
    assert!(shown.stdout.contains(": a leaked key"), "{shown:?}");
    site.gateway.ctl(&["agent", "release", CRAWLER]).unwrap().check().unwrap();
    finish(site);
}
