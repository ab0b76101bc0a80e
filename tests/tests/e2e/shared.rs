//! A host of several agents: each of them by its key, nobody else, and nothing without.

use std::path::Path;
use std::time::Duration;

use clawgress_api::{Plane, RecordKind};
use clawgress_e2e::lab::{GatewayOptions, Host};
use clawgress_e2e::plan::{ANON, GATEWAY, PROXY_PORT};
use clawgress_e2e::scenario::{ASSISTANT, CRAWLER, INTERN, Site, TEAM};

use crate::support::{
    admin, agent, codes, curl, curl_within, denied, finish, pair, proxy, record, site, site_with, to_host,
};

const WRITER: &str = "writer";

/// Opens a tunnel and a connection for plain requests for each agent (`NAME:KEY`, or a name and `Bearer` with a token), says
/// `ready`, waits for `go`, then uses each of them: prints what became of it.
pub const CLIENT: &str = r"
import base64, os, socket, ssl, sys, time
directory, ca, proxy = sys.argv[1:4]
context = ssl.create_default_context(cafile=ca)

def credential(agent):
    secret = agent.split(':', 1)[1]
    basic = 'Basic ' + base64.b64encode(agent.encode()).decode()
    return 'Proxy-Authorization: ' + (secret if secret.startswith('Bearer ') else basic) + '\r\n'

def answer(s):
    s.settimeout(5)
    got, length = b'', None
    try:
        while length is None or len(got) < length:
            more = s.recv(65536)
            if not more:
                return b''
            got += more
            head, end, _ = got.partition(b'\r\n\r\n')
            if end:
                sizes = [int(l.split(b':')[1]) for l in head.lower().split(b'\r\n') if l.startswith(b'content-length:')]
                length = len(head) + 4 + sum(sizes)
    except OSError:
        return b''
    return got

def tunnel(agent):
    s = socket.create_connection((proxy, 3128), 10)
    s.sendall(('CONNECT api.allowed.test:443 HTTP/1.1\r\nHost: api.allowed.test:443\r\n' + credential(agent) + '\r\n').encode())
    assert b' 200 ' in answer(s)
    return context.wrap_socket(s, server_hostname='api.allowed.test')

def request(s, agent):
    s.sendall(('GET http://api.allowed.test/ HTTP/1.1\r\nHost: api.allowed.test\r\n' + credential(agent) + '\r\n').encode())
    return answer(s)

def plain(agent):
    s = socket.create_connection((proxy, 3128), 10)
    assert request(s, agent).startswith(b'HTTP/1.1 200 ')
    return s

def get(s):
    try:
        s.sendall(b'GET /under-way HTTP/1.1\r\nHost: api.allowed.test\r\n\r\n')
        return bool(answer(s))
    except OSError:
        return False

agents = [agent.split(':')[0] for agent in sys.argv[4:]]
tunnels = [tunnel(agent) for agent in sys.argv[4:]]
plains = [plain(agent) for agent in sys.argv[4:]]
open(directory + '/ready', 'w').close()
while not os.path.exists(directory + '/go'):
    time.sleep(0.05)
for name, agent, t, p in zip(agents, sys.argv[4:], tunnels, plains):
    print(name, 'lives' if get(t) else 'is cut', request(p, agent).split(b' ')[1].decode())
";

/// The source of the other host, IPv4 and IPv6, shared by these agents.
fn share(site: &Site, agents: &str) {
    let at = [format!("agents0={},{}", ANON.v4, ANON.mac), format!("agents0={},{}", ANON.v6, ANON.mac)];
    let added =
        site.gateway.ctl(&["source", "add", "nat", "--at", &at[0], "--at", &at[1], "--may-present", agents]);
    let added = added.unwrap().check().unwrap();
    assert!(added.stdout.contains("may present  default/assistant default/writer"), "{added:?}");
}

fn connect(site: &Site, url: &str) -> u16 {
    codes(&curl(site, Host::Anon, &["-x", url, "https://api.allowed.test/"])).1
}

#[test]
fn a_host_of_several_agents_presents_them_and_nobody_else() {
    let site = site();
    let writer_key = admin(&site).create_agent(WRITER, TEAM, &[]).unwrap();
    share(&site, "assistant,writer");
    for (name, key) in [(ASSISTANT, &site.assistant_key), (WRITER, &writer_key)] {
        let v6 = format!("http://{name}:{key}@[{}]:{PROXY_PORT}", GATEWAY.v6);
        for url in [proxy(name, key), v6] {
            let output = curl(&site, Host::Anon, &["-x", &url, "https://api.allowed.test/"]);
            assert_eq!(codes(&output), (200, 200), "{output:?}");
            let output = curl(&site, Host::Anon, &["-x", &url, "http://api.allowed.test/"]);
            assert_eq!(codes(&output).0, 200, "{output:?}");
        }
    }
    let (decision, _) =
        pair(&site, "whose it is", |r| to_host(r, "api.allowed.test") && agent(r) == Some(WRITER));
    assert_eq!(decision.source.interface.as_deref(), Some("agents0"), "by the kernel plane's word");
    // A key that is good elsewhere.
    let crawler = proxy(CRAWLER, &site.crawler_key);
    assert_eq!(connect(&site, &crawler), 403);
    let output = curl(&site, Host::Anon, &["-v", "-x", &crawler, "http://api.allowed.test/"]);
    assert_eq!(codes(&output).0, 403, "{output:?}");
    assert!(output.stderr.contains("x-clawgress-reason: identity_conflict"), "{output:?}");
    assert_eq!(connect(&site, &format!("http://{}:{PROXY_PORT}", GATEWAY.v4)), 407);
    let conflict = record(&site, "the conflict", |r| denied(r, "identity_conflict"));
    assert_eq!((conflict.source.ip, conflict.agent), (Some(ANON.v4.into()), None));
    record(&site, "no credential", |r| denied(r, "credential_missing"));

    // Nothing of the host by itself.
    let before = site.gateway.lab.world().unwrap().requests.len();
    for url in ["https://203.0.113.10/", "http://[2001:db8:113::10]/"] {
        assert!(!curl_within(&site, Host::Anon, 2, &["-k", "-g", url]).ok());
    }
    let drop = record(&site, "its own traffic", |r| r.plane == Plane::Kernel && denied(r, "anonymous"));
    assert!(drop.agent.is_none() && drop.source.ip == Some(ANON.v4.into()), "{drop:?}");
    assert!(!curl_within(&site, Host::Anon, 1, &[&format!("http://{}:22/", GATEWAY.v4)]).ok());

    // Another host under its address can't even reach the proxy. It knows the gateway's MAC before, so that it
    // need not ask for it under that address.
    let own = || codes(&curl(&site, Host::Known, &["-x", &crawler, "https://api.allowed.test/"])).1;
    assert_eq!(own(), 200);
    let before = before + 1;
    let lab = &site.gateway.lab;
    let run = |host, line: &str| lab.run(host, &["sh", "-c", line]).unwrap();
    run(Host::Known, &format!("ip address add {}/32 dev eth0", ANON.v4)).check().unwrap();
    let source = ANON.v4.to_string();
    let url = proxy(ASSISTANT, &site.assistant_key);
    let args = ["--interface", &source, "-x", &url, "https://api.allowed.test/"];
    assert!(!curl_within(&site, Host::Known, 2, &args).ok());
    record(&site, "the spoof", |r| denied(r, "source_spoofed") && r.source.ip == Some(ANON.v4.into()));
    run(Host::Known, &format!("ip address del {}/32 dev eth0", ANON.v4)).check().unwrap();
    run(Host::Gateway, "ip neigh flush dev agents0").check().unwrap();
    assert_eq!(lab.world().unwrap().requests.len(), before);
    assert_eq!(own(), 200, "the host that is the crawler's own");
    finish(site);
}

pub fn wait_for(site: &Site, file: &Path) {
    let there = || Ok(file.exists());
    site.gateway.lab.wait("the connections", Duration::from_secs(30), there).unwrap();
}

#[test]
fn who_may_be_presented_no_more_is_cut_off_and_nobody_else() {
    let site = site();
    let writer_key = admin(&site).create_agent(WRITER, TEAM, &[]).unwrap();
    share(&site, "assistant,writer");
    let lab = &site.gateway.lab;
    let directory = lab.dir().join("shared");
    std::fs::create_dir(&directory).unwrap();
    let (path, ca, gateway) = (
        directory.to_string_lossy().into_owned(),
        lab.ca().to_string_lossy().into_owned(),
        GATEWAY.v4.to_string(),
    );
    let (one, two) = (format!("{ASSISTANT}:{}", site.assistant_key), format!("{WRITER}:{writer_key}"));
    let client = ["python3", "-c", CLIENT, &path, &ca, &gateway, &one, &two];
    let client = std::thread::scope(|scope| {
        let client = scope.spawn(|| lab.run(Host::Anon, &client).unwrap());
        wait_for(&site, &directory.join("ready"));
        // Answered when both planes have it.
        let set = site.gateway.ctl(&["source", "set", "nat", "--may-present", ASSISTANT]).unwrap();
        set.check().unwrap();
        std::fs::write(directory.join("go"), "").unwrap();
        client.join().unwrap()
    });
    assert!(client.ok(), "{client:?}");
    assert_eq!(client.stdout.trim(), "assistant lives 200\nwriter is cut 403", "{client:?}");
    record(&site, "the end of what was under way", |r| {
        r.kind == RecordKind::Outcome
            && agent(r) == Some(WRITER)
            && r.reason.is_some_and(|reason| reason.name() == "identity_conflict")
    });
    record(&site, "the next request", |r| r.kind == RecordKind::Decision && denied(r, "identity_conflict"));
    record(&site, "who did it", |r| {
        r.detail.as_deref().is_some_and(|d| d.contains("shared source `default/nat` may present"))
    });
    assert_eq!(connect(&site, &proxy(WRITER, &writer_key)), 403);
    // With its last agent it may present nobody, and its address is not anybody's for that.
    let deleted = site.gateway.ctl(&["agent", "delete", ASSISTANT]).unwrap().check().unwrap();
    assert!(deleted.stdout.contains("is deleted"), "{deleted:?}");
    let shown = site.gateway.ctl(&["source", "show", "nat"]).unwrap().check().unwrap();
    assert!(shown.stdout.contains("may present  nobody"), "{shown:?}");
    assert_eq!(connect(&site, &proxy(WRITER, &writer_key)), 403);
    // Without the source its address is anybody's again, by a credential.
    site.gateway.ctl(&["source", "remove", "nat"]).unwrap().check().unwrap();
    assert_eq!(connect(&site, &proxy(WRITER, &writer_key)), 200);
    finish(site);
}

/// A host that may present two agents would escape that under an address that is bound to nobody, if its
/// interface took credentials from there.
#[test]
fn a_closed_interface_takes_credentials_from_bound_sources_alone() {
    let options = GatewayOptions {
        agents_interface: "unbound_sources = \"deny\"\n".to_owned(),
        ..GatewayOptions::default()
    };
    let site = site_with(options);
    let writer_key = admin(&site).create_agent(WRITER, TEAM, &[]).unwrap();
    let (assistant, intern) = (proxy(ASSISTANT, &site.assistant_key), proxy(INTERN, &site.intern_key));
    let to = "https://api.allowed.test/";
    assert!(!curl_within(&site, Host::Anon, 2, &["-x", &assistant, to]).ok());
    let bare = format!("http://{}:{PROXY_PORT}", GATEWAY.v4);
    record(&site, "the stranger", |r| {
        r.plane == Plane::Kernel && denied(r, "anonymous") && r.destination.port == Some(PROXY_PORT)
    });
    assert_eq!(codes(&curl(&site, Host::Known, &["-x", &bare, to])).1, 200, "a source that is an agent's");
    share(&site, "assistant,writer");
    for url in [&assistant, &proxy(WRITER, &writer_key)] {
        assert_eq!(connect(&site, url), 200);
    }
    assert_eq!(connect(&site, &intern), 403);
    let lab = &site.gateway.lab;
    let other = "ip address add 10.70.0.21/24 dev eth0";
    lab.run(Host::Anon, &["sh", "-c", other]).unwrap().check().unwrap();
    assert!(!curl_within(&site, Host::Anon, 2, &["--interface", "10.70.0.21", "-x", &intern, to]).ok());
    finish(site);
}
