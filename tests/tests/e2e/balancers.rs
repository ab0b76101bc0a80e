//! A load balancer before the proxy, which says by the PROXY protocol whose connections it passes on: HAProxy, as it comes.

use std::fs;
use std::net::IpAddr;

use clawgress_e2e::lab::{Daemon, Host, Lab};
use clawgress_e2e::plan::{API, GATEWAY, KNOWN, PROXY_PORT};
use clawgress_e2e::scenario::{ASSISTANT, CRAWLER};
use clawgress_identity::IdentityMethod;

use crate::certificates::{PROXY_TLS_PORT, Setting, method};
use crate::pki::Pair;
use crate::support::{agent, codes, curl, denied, proxy, record};

/// The balancer's own addresses, beside those of the host that it runs on.
const ADDRESSES: [&str; 2] = ["10.70.0.30", "fd70::30"];
/// Those of its clients, which nobody is bound to.
const CLIENTS: [&str; 2] = ["10.70.0.11", "fd70::11"];
/// Whom the gateway believes: a key of the table `[proxy]`.
pub const BELIEVED: &str = "balancers = [\"10.70.0.30/32\", \"fd70::30/128\"]\n";

/// Longer than anything of the gateway's: it is never HAProxy that ends a connection.
const DEFAULTS: &str =
    "defaults\n mode tcp\n timeout connect 5s\n timeout client 10m\n timeout server 10m\n timeout check 2s\n";

/// HAProxy in a host of the lab, with these proxies, once it listens at an address as `bash` has them.
pub fn haproxy(lab: &Lab, host: Host, proxies: &str, listens: &str) -> Daemon {
    let config = lab.dir().join("haproxy.cfg");
    fs::write(&config, format!("{DEFAULTS}{proxies}")).unwrap();
    let daemon = lab.spawn(host, "haproxy", &["haproxy", "-db", "-f", config.to_str().unwrap()]).unwrap();
    let script = format!("exec 3<>/dev/tcp/{listens}");
    let ready = || Ok(lab.run(host, &["bash", "-c", &script])?.ok());
    lab.wait("HAProxy", std::time::Duration::from_secs(15), ready).unwrap();
    daemon
}

/// What a client has to show.
#[derive(Clone, Copy)]
struct Shown<'a> {
    /// Before the proxy's address.
    credential: &'a str,
    more: &'a [&'a str],
}

/// A client's way to the balancer, from its own address.
struct Way<'a> {
    s: &'a Setting,
    client: IpAddr,
    balancer: String,
}

impl Way<'_> {
    /// A page with this path, in clear or over TLS.
    fn ask(&self, port: u16, shown: Shown<'_>, path: &str) -> u16 {
        let scheme = if port == PROXY_TLS_PORT { "https" } else { "http" };
        let proxy = format!("{scheme}://{}{}:{port}", shown.credential, self.balancer);
        let (client, url) = (self.client.to_string(), format!("http://{API}{path}"));
        // The proxy's certificate is for the gateway's own addresses.
        let args = ["--interface", &client, "-x", &proxy, "--proxy-insecure", &url];
        codes(&curl(&self.s.site, Host::Known, &[shown.more, &args].concat())).0
    }

    /// Who it was for the gateway, that asked for this path.
    #[track_caller]
    fn is_recorded(&self, path: &str, who: &str, by: IdentityMethod) {
        let found = record(&self.s.site, path, |r| r.destination.path.as_deref() == Some(path));
        assert_eq!((agent(&found), method(&found)), (Some(who), Some(by)), "{found:?}");
        assert_eq!((found.source.ip, found.destination.host.as_deref()), (Some(self.client), Some(API)));
    }
}

/// HAProxy in the other agents' host, by addresses of its own, that asks now and then whether the proxy is there.
fn start(lab: &Lab) -> Daemon {
    let mut proxies = String::new();
    for (own, gateway) in [(ADDRESSES[0], GATEWAY.v4.to_string()), (ADDRESSES[1], GATEWAY.v6.to_string())] {
        address(lab, Host::Anon, own);
        for port in [PROXY_PORT, PROXY_TLS_PORT] {
            let (at, gateway) = (bracketed(own), bracketed(&gateway));
            proxies += &format!(
                "listen {own}-{port}\n bind {at}:{port}\n \
                 server gateway {gateway}:{port} source {at} send-proxy-v2 check check-send-proxy inter 500\n"
            );
        }
    }
    haproxy(lab, Host::Anon, &proxies, &format!("{}/{PROXY_PORT}", ADDRESSES[0]))
}

/// One more address of a host, that it takes for nothing by itself.
fn address(lab: &Lab, host: Host, address: &str) {
    let six = address.contains(':');
    let with_prefix = format!("{address}/{}", if six { 64 } else { 24 });
    let words = ["ip", "address", "add", &with_prefix, "dev", "eth0", "preferred_lft", "0"];
    let words: Vec<&str> = words.into_iter().chain(six.then_some("nodad")).collect();
    lab.run(host, &words).unwrap().check().unwrap();
}

fn bracketed(address: &str) -> String {
    if address.contains(':') { format!("[{address}]") } else { address.to_owned() }
}

/// Clients of both families, in clear and over TLS, by a balancer: each is who it proves to be, and recorded with its own address.
#[track_caller]
pub fn a_balancer_says_whose_its_connections_are(s: &Setting, own: &Pair) {
    let (site, lab) = (&s.site, &s.site.gateway.lab);
    let mut balancer = start(lab);
    let (certificate, secret) = (own.certificate.to_str().unwrap(), own.key.to_str().unwrap());
    let proof = ["--proxy-cert", certificate, "--proxy-key", secret];
    let by_key = |name: &str, key: &str| format!("{name}:{key}@");
    let (assistant, crawler) = (by_key(ASSISTANT, &site.assistant_key), by_key(CRAWLER, &site.crawler_key));
    let key = |credential| Shown { credential, more: &[] };
    let (nothing, chain) = (key(""), Shown { credential: "", more: &proof });
    let (assistant, crawler) = (key(&assistant), key(&crawler));
    for (client, bound, at) in
        [(CLIENTS[0], IpAddr::V4(KNOWN.v4), ADDRESSES[0]), (CLIENTS[1], IpAddr::V6(KNOWN.v6), ADDRESSES[1])]
    {
        address(lab, Host::Known, client);
        let way = Way { s, client: client.parse().unwrap(), balancer: bracketed(at) };
        for (port, shown, name, by) in [
            (PROXY_PORT, assistant, "clear", IdentityMethod::ApiKey),
            (PROXY_TLS_PORT, assistant, "tls", IdentityMethod::ApiKey),
            (PROXY_TLS_PORT, chain, "certificate", IdentityMethod::Mtls),
        ] {
            let path = format!("/balanced/{at}/{name}");
            assert_eq!(way.ask(port, shown, &path), 200, "{path}");
            way.is_recorded(&path, ASSISTANT, by);
        }
        assert_eq!(way.ask(PROXY_PORT, nothing, "/balanced/nobody"), 407);
        record(site, "nobody", |r| denied(r, "credential_missing") && r.source.ip == Some(way.client));
        // An address that is bound proves nothing when a balancer names it, and is that agent's alone all the same.
        let way = Way { client: bound, ..way };
        assert_eq!(way.ask(PROXY_PORT, nothing, "/balanced/nobody"), 407);
        assert_eq!(way.ask(PROXY_PORT, assistant, "/balanced/other"), 403);
        record(site, "another's", |r| denied(r, "identity_conflict") && r.source.ip == Some(bound));
        let path = format!("/balanced/{at}/own");
        assert_eq!(way.ask(PROXY_PORT, crawler, &path), 200);
        way.is_recorded(&path, CRAWLER, IdentityMethod::ApiKey);
    }
    // What is from the balancer and has no header is nobody's.
    let direct = proxy(ASSISTANT, &site.assistant_key);
    let output =
        curl(site, Host::Anon, &["--interface", ADDRESSES[0], "-x", &direct, "http://api.allowed.test/"]);
    assert!(!output.ok(), "{output:?}");
    record(site, "no header", |r| denied(r, "proxy_header_malformed"));
    balancer.kill().unwrap();
}
