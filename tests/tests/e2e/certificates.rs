//! Agents that prove themselves by certificates at the proxy over TLS: made by `openssl`, presented by `curl` and by
//! Python's TLS, trusted by `clawgressctl`, revoked while connections are open.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::Path;

use clawgress_api::AuditRecord;
use clawgress_e2e::lab::{GatewayOptions, Host, Lab};
use clawgress_e2e::plan::{self, GATEWAY};
use clawgress_e2e::scenario::{ASSISTANT, Site, TEAM};
use clawgress_identity::IdentityMethod;
use nix::unistd::User;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

use crate::balancers::{BELIEVED, a_balancer_says_whose_its_connections_are};
use crate::pki::{Authority, Pair, Wanted};
use crate::shared::wait_for;
use crate::support::{admin, agent, codes, curl, cut, denied, finish, record};

pub const PROXY_TLS_PORT: u16 = 3130;
pub const WRITER: &str = "writer";
const SETTINGS: &str = "[mapping]\nagent = { from = \"dns\", suffix = \".agents.test\" }\n";
const SPIRE: &str = "domain = \"d.test\"\n[mapping]\nagent = { from = \"path\", prefix = \"/agent/\" }\n";

/// Holds a tunnel and a plain connection of two agents, and says what becomes of them: the first's are to be cut, and
/// then the other's.
const CLIENT: &str = r"
import os, socket, ssl, sys, time
directory, ca, proxy_ca, proxy, port = sys.argv[1:6]

def outer(certificate, key):
    context = ssl.create_default_context(cafile=proxy_ca)
    context.load_cert_chain(certificate, key)
    s = context.wrap_socket(socket.create_connection((proxy, int(port)), 10), server_hostname=proxy)
    s.settimeout(15)
    return s

class Tunnel:
    def __init__(self, certificate, key):
        self.s = outer(certificate, key)
        self.s.sendall(b'CONNECT api.allowed.test:443 HTTP/1.1\r\nHost: api.allowed.test:443\r\n\r\n')
        assert b' 200 ' in self.s.recv(65536)
        self.got, self.out = ssl.MemoryBIO(), ssl.MemoryBIO()
        context = ssl.create_default_context(cafile=ca)
        self.tls = context.wrap_bio(self.got, self.out, server_hostname='api.allowed.test')
        self.do(self.tls.do_handshake)
    def do(self, step):
        while True:
            try:
                done = step()
                self.s.sendall(self.out.read())
                return done
            except ssl.SSLWantReadError:
                self.s.sendall(self.out.read())
                more = self.s.recv(65536)
                assert more, 'the end'
                self.got.write(more)
    def get(self):
        self.do(lambda: self.tls.write(b'GET /under-way HTTP/1.1\r\nHost: api.allowed.test\r\n\r\n'))
        return self.do(lambda: self.tls.read(65536)).startswith(b'HTTP/1.1 200 ')

def ends(s):
    try:
        while s.recv(65536):
            pass
    except TimeoutError:
        return 'lives'
    except OSError:
        pass
    return 'is cut'

def plain(s):
    s.sendall(b'GET http://api.allowed.test/ HTTP/1.1\r\nHost: api.allowed.test\r\n\r\n')
    got = b''
    while True:
        head, end, body = got.partition(b'\r\n\r\n')
        length = [l.split(b':')[1] for l in head.lower().split(b'\r\n') if l.startswith(b'content-length:')]
        if end and len(body) >= int(length[0]):
            return head.split(b' ')[1].decode()
        more = s.recv(65536)
        assert more, 'the end'
        got += more

def wait(name):
    while not os.path.exists(directory + '/' + name):
        time.sleep(0.02)

def tell(name):
    open(directory + '/' + name, 'w').close()

first, other = sys.argv[6:8], sys.argv[8:10]
tunnels, plains = [Tunnel(*first), Tunnel(*other)], [outer(*first), outer(*other)]
assert [t.get() for t in tunnels] == [True, True]
assert [plain(p) for p in plains] == ['200', '200']
tell('ready')
wait('revoked')
print('first', ends(tunnels[0].s), plain(plains[0]))
print('other', 'lives' if tunnels[1].get() else 'is cut', plain(plains[1]))
tell('half')
wait('deleted')
print('other', ends(tunnels[1].s), plain(plains[1]))
";

/// A gateway whose proxy has a certificate.
pub struct Setting {
    pub site: Site,
    server_ca: Authority,
}

/// A file that the role of this user may read, and nobody else.
pub fn give(from: &Path, to: &Path, user: &str) {
    fs::copy(from, to).unwrap();
    let user = User::from_name(user).unwrap().unwrap();
    chown(to, Some(user.uid.as_raw()), Some(user.gid.as_raw())).unwrap();
    fs::set_permissions(to, Permissions::from_mode(0o400)).unwrap();
}

impl Setting {
    pub fn new() -> Setting {
        Setting::with(|_| String::new())
    }

    /// With more tables in its configuration, which may name files of the lab's directory.
    pub fn with(tables: impl FnOnce(&Path) -> String) -> Setting {
        let lab = Lab::builder().start().unwrap();
        let tables = tables(lab.dir());
        let server_ca = Authority::new("the proxy's authority");
        let names = format!("IP:{},IP:{}", GATEWAY.v4, GATEWAY.v6);
        let server =
            server_ca.issue("proxy", &Wanted { names: &names, usage: "serverAuth", ..Wanted::default() });
        let (certificate, key) = (lab.dir().join("proxy.pem"), lab.dir().join("proxy.key"));
        give(&server.certificate, &certificate, "nobody");
        give(&server.key, &key, "nobody");
        let more = format!(
            "\n[proxy.tls]\nlisten = [\"{}:{PROXY_TLS_PORT}\", \"[{}]:{PROXY_TLS_PORT}\"]\n\
             certificate = \"{}\"\nkey = \"{}\"\n{tables}",
            GATEWAY.v4,
            GATEWAY.v6,
            certificate.display(),
            key.display()
        );
        let proxy = BELIEVED.to_owned();
        let site = Site::start(lab, GatewayOptions { more, proxy, ..GatewayOptions::default() }).unwrap();
        admin(&site).create_agent(WRITER, TEAM, &[]).unwrap();
        Setting { site, server_ca }
    }

    pub fn path(&self, name: &str) -> String {
        self.site.gateway.lab.dir().join(name).to_str().unwrap().to_owned()
    }

    pub fn file(&self, name: &str, text: &str) -> String {
        let path = self.path(name);
        fs::write(&path, text).unwrap();
        path
    }

    /// Says whom to trust.
    fn trust(&self, ca: &Authority, revocation: &str, list: Option<&str>) {
        let settings = self.file("authority.toml", &format!("revocation = \"{revocation}\"\n{SETTINGS}"));
        let certificates = ca.file();
        let mut words = vec!["authority", "set", "corporate", "--settings", &settings, "--certificates"];
        words.push(certificates.to_str().unwrap());
        let list = list.map(|list| self.file("list.pem", list));
        if let Some(list) = &list {
            words.extend(["--revocation-lists", list]);
        }
        admin(&self.site).ctl(&words).unwrap().check().unwrap();
    }

    /// What `curl` gets through the proxy over TLS, with a certificate or without.
    pub fn ask(&self, host: Host, gateway: &str, pair: Option<&Pair>, to: &str) -> (u16, u16) {
        let (proxy, ca) = (format!("https://{gateway}:{PROXY_TLS_PORT}"), self.server_ca.file());
        let mut words = vec!["-x", &proxy, "--proxy-cacert", ca.to_str().unwrap()];
        if gateway.starts_with('[') {
            // `curl` 7.88 finds the IPv6 address of a proxy in no certificate.
            words.push("--proxy-insecure");
        }
        if let Some(pair) = pair {
            words.extend(["--proxy-cert", pair.certificate.to_str().unwrap()]);
            words.extend(["--proxy-key", pair.key.to_str().unwrap()]);
        }
        words.push(to);
        codes(&curl(&self.site, host, &words))
    }

    /// The client that holds connections of two agents, which talks by files of a directory.
    pub fn client(&self, directory: &Path, pairs: [&Pair; 2]) -> Vec<String> {
        let lab = &self.site.gateway.lab;
        let text = |path: &Path| path.to_str().unwrap().to_owned();
        let mut client: Vec<String> = ["python3", "-c", CLIENT].map(str::to_owned).into();
        client.extend([
            text(directory),
            text(&lab.ca()),
            text(&self.server_ca.file()),
            GATEWAY.v4.to_string(),
        ]);
        client.push(PROXY_TLS_PORT.to_string());
        client.extend(pairs.iter().flat_map(|p| [text(&p.certificate), text(&p.key)]));
        client
    }
}

pub fn method(record: &AuditRecord) -> Option<IdentityMethod> {
    record.agent.as_ref().map(|agent| agent.method)
}

const TUNNEL: &str = "https://api.allowed.test/certificate";
pub const PLAIN: &str = "http://api.allowed.test/certificate";

#[test]
fn an_agent_with_a_certificate() {
    let s = Setting::new();
    let (agents_ca, spire) = (Authority::new("agents"), Authority::new("spire"));
    let admin = admin(&s.site);
    let own =
        agents_ca.issue("assistant", &Wanted { names: "DNS:assistant.agents.test", ..Wanted::default() });
    let v4 = GATEWAY.v4.to_string();
    let ask = |pair: Option<&Pair>, to| s.ask(Host::Anon, &v4, pair, to);
    assert_eq!(ask(Some(&own), TUNNEL), (0, 407), "nobody is trusted yet");
    s.trust(&agents_ca, "off", None);
    assert_eq!((ask(Some(&own), TUNNEL), ask(Some(&own), PLAIN)), ((200, 200), (200, 0)));
    assert_eq!(s.ask(Host::Anon, &format!("[{}]", GATEWAY.v6), Some(&own), TUNNEL), (200, 200));
    assert_eq!((ask(None, TUNNEL).1, ask(None, PLAIN).0), (407, 407));
    let seen = record(&s.site, "by certificate", |r| method(r) == Some(IdentityMethod::Mtls));
    assert_eq!(agent(&seen), Some(ASSISTANT));
    let credential = seen.agent.unwrap().credential.unwrap();
    assert_eq!(credential.subject.as_deref(), Some("assistant.agents.test"));
    // The bound host is itself, whatever it presents.
    assert_eq!(s.ask(Host::Known, &v4, None, TUNNEL), (200, 200));
    assert_eq!(s.ask(Host::Known, &v4, Some(&own), TUNNEL), (0, 403));
    record(&s.site, "another's certificate", |r| denied(r, "identity_conflict"));
    a_balancer_says_whose_its_connections_are(&s, &own);

    // An SVID of a trust domain.
    let certificate = CertificateDer::from_pem_slice(spire.pem().as_bytes()).unwrap();
    let bundle =
        format!(r#"{{"keys":[{{"kty":"EC","use":"x509-svid","x5c":["{}"]}}]}}"#, plan::base64(&certificate));
    let names = "URI:spiffe://d.test/agent/assistant";
    let svid = spire.issue("svid", &Wanted { names, ..Wanted::default() });
    assert_eq!(ask(Some(&svid), PLAIN).0, 407);
    let (settings, bundle) = (s.file("spire.toml", SPIRE), s.file("bundle.json", &bundle));
    let set = admin.ctl(&["trust-domain", "set", "spire", "--settings", &settings, "--bundle", &bundle]);
    let set = set.unwrap().check().unwrap();
    assert!(set.stdout.contains("d.test"), "{set:?}");
    assert_eq!(ask(Some(&svid), PLAIN).0, 200);
    record(&s.site, "by SVID", |r| method(r) == Some(IdentityMethod::SpiffeX509));
    admin.ctl(&["trust-domain", "delete", "spire"]).unwrap().check().unwrap();
    assert_eq!(ask(Some(&svid), PLAIN).0, 407);
    for (kind, said) in [("authority", "default/corporate"), ("trust-domain", "there are no trust domains")] {
        let list = admin.ctl(&[kind, "list"]).unwrap().check().unwrap();
        assert!(list.stdout.contains(said), "{list:?}");
    }
    finish(s.site);
}

#[test]
fn what_a_certificate_opened_is_cut_when_it_is_revoked() {
    let s = Setting::new();
    let agents_ca = Authority::new("agents");
    let issue = |file: &str, names: &str| agents_ca.issue(file, &Wanted { names, ..Wanted::default() });
    let (writer, assistant) =
        (issue(WRITER, "DNS:writer.agents.test"), issue(ASSISTANT, "DNS:assistant.agents.test"));
    s.trust(&agents_ca, "leaf", Some(&agents_ca.list(3600)));
    let lab = &s.site.gateway.lab;
    let directory = lab.dir().join("presented");
    fs::create_dir(&directory).unwrap();
    let client = s.client(&directory, [&writer, &assistant]);
    let deleted = |r: &AuditRecord| r.detail.as_deref().is_some_and(|d| d.contains("authority deleted by "));
    let client = std::thread::scope(|scope| {
        let client = scope.spawn(|| lab.run(Host::Anon, &client).unwrap());
        wait_for(&s.site, &directory.join("ready"));
        agents_ca.revoke(&writer);
        s.trust(&agents_ca, "leaf", Some(&agents_ca.list(3600)));
        let listed = |r: &AuditRecord| r.detail.as_deref().is_some_and(|d| d.contains("authority set by "));
        cut(&s.site, (WRITER, "credential_invalid", 1), listed);
        fs::write(directory.join("revoked"), "").unwrap();
        wait_for(&s.site, &directory.join("half"));
        admin(&s.site).ctl(&["authority", "delete", "corporate"]).unwrap().check().unwrap();
        cut(&s.site, (ASSISTANT, "credential_invalid", 1), deleted);
        fs::write(directory.join("deleted"), "").unwrap();
        client.join().unwrap()
    });
    assert!(client.ok(), "{client:?}");
    assert_eq!(client.stdout.trim(), "first is cut 407\nother lives 200\nother is cut 407", "{client:?}");
    finish(s.site);
}
