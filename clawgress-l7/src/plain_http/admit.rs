//! A request head, judged by its form and rewritten: what Pingora and the upstream get is exactly what
//! policy is asked about.
//!
//! Pure. Must never pass on a field that says who the client is, or that belongs to this hop.

use std::sync::{Arc, OnceLock};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use clawgress_ebpf_common::DropReason;
use clawgress_inspect::http1::{self, Body, Head};
use clawgress_inspect::proxy_request::{self, Target};
use clawgress_policy::{Host, Scheme, fields, head as policy, path};
use zeroize::Zeroizing;

use super::credential::{self, Ours};
use crate::endpoints::{Endpoints, Upstream};
use crate::identify::Who;
use crate::intercept::Opened;

/// Ports of `http://` and `https://` (RFC 9110 section 4.2).
const PORT: u16 = 80;
const TLS_PORT: u16 = 443;
/// Bytes of a WebSocket's key (RFC 6455 section 4.1).
const WEB_SOCKET_KEY_BYTES: usize = 16;

/// What a connection's requests are taken for.
#[derive(Clone, Debug)]
pub enum Place {
    /// Requests to a proxy: absolute-form; or to an endpoint of the gateway's own.
    Explicit {
        /// Those there are.
        endpoints: Arc<Endpoints>,
        /// Whether the connection itself tells whose it is.
        is_known: bool,
    },
    /// Requests to a server whose port the client dialled.
    Transparent {
        /// The port.
        port: u16,
    },
    /// Requests inside a CONNECT.
    Tunnel {
        /// Its host.
        host: Host,
        /// Its port.
        port: u16,
        /// Who opened it.
        who: Who,
    },
    /// Requests inside TLS that is read.
    Read(Arc<Opened>),
}

/// A request of good form. Its `Debug` never shows the credential.
pub struct Admitted {
    /// Method.
    pub method: String,
    /// Canonical host.
    pub host: Host,
    /// Port.
    pub port: u16,
    /// Path as policy is asked about it, without the query: the normal form of the one that is sent on.
    pub path: String,
    /// What follows the path's `?`: never recorded, it may hold secrets.
    pub query: String,
    /// `Proxy-Authorization`, or what an endpoint's client has in its place; wiped when dropped.
    pub credential: Option<Zeroizing<Vec<u8>>>,
    /// The endpoint's upstream, if it is one's request.
    pub upstream: Option<Arc<Upstream>>,
    /// The connection, if its TLS is read.
    pub opened: Option<Arc<Opened>>,
    /// Whether it asks for another protocol.
    pub upgrade: Upgrade,
    /// Whether the client waits for a 100.
    pub awaits_continue: bool,
    /// How its body is delimited.
    pub body: Body,
    /// Whether it came by HTTP/2.
    pub is_http2: bool,
    /// Whether its client takes a body in chunks: not by HTTP/1.0.
    pub takes_chunks: bool,
    /// Whether its client takes the gateway for the server.
    pub is_direct: bool,
    /// Whether the client takes trailers.
    pub takes_trailers: bool,
    /// The head that is sent on.
    sent: Vec<u8>,
    /// What it says, if that was asked for.
    said: OnceLock<policy::Head>,
}

/// What other protocol a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Upgrade {
    /// None.
    None,
    /// A WebSocket, as RFC 6455 section 4.1 has it.
    WebSocket,
    /// One that is not served.
    Other,
}

// === impl Upgrade ===

impl Upgrade {
    fn of(head: &Head<'_>) -> Upgrade {
        let values = |name: &'static str| {
            head.fields.iter().filter(move |f| f.name.eq_ignore_ascii_case(name)).map(|f| f.value)
        };
        let only = |name: &'static str| {
            let mut values = values(name);
            values.next().filter(|_| values.next().is_none())
        };
        if values("upgrade").next().is_none() && values("http2-settings").next().is_none() {
            return Upgrade::None;
        }
        let is_key = |key: &[u8]| BASE64.decode(key).is_ok_and(|key| key.len() == WEB_SOCKET_KEY_BYTES);
        let is_web_socket = only("upgrade").is_some_and(|v| v.eq_ignore_ascii_case(b"websocket"))
            && values("connection").any(|v| has_token(v, b"upgrade"))
            && only("sec-websocket-version") == Some(b"13")
            && only("sec-websocket-key").is_some_and(is_key)
            && values("http2-settings").next().is_none()
            && (head.method, head.minor, head.body) == ("GET", 1, Body::Length(0));
        if is_web_socket { Upgrade::WebSocket } else { Upgrade::Other }
    }
}

// === impl Place ===

impl Place {
    /// Who opened what they are within.
    #[must_use]
    pub fn who(&self) -> Option<&Who> {
        match self {
            Place::Explicit { .. } | Place::Transparent { .. } => None,
            Place::Tunnel { who, .. } => Some(who),
            Place::Read(opened) => Some(&opened.who),
        }
    }

    /// Whether the connection itself tells whose its requests are.
    fn is_known(&self) -> bool {
        match self {
            Place::Explicit { is_known, .. } => *is_known,
            Place::Transparent { .. } | Place::Tunnel { .. } | Place::Read(_) => true,
        }
    }
}

// === impl Admitted ===

impl Admitted {
    /// Keeps the head that is sent on.
    pub fn keep(&mut self, sent: Vec<u8>) {
        self.sent = sent;
    }

    /// What policy is asked about of the head that is sent on: fields that stay here say nothing.
    #[must_use]
    pub fn said(&self) -> &policy::Head {
        self.said.get_or_init(|| match http1::parse(&self.sent) {
            Ok(sent) => policy::Head::of(sent.fields.iter().map(|f| (f.name, f.value)), &self.query),
            Err(_) => policy::Head::unknown().clone(),
        })
    }

    /// The protocols that it offers for a WebSocket.
    #[must_use]
    pub fn offers(&self) -> String {
        let is_offer = |name: &str| name.eq_ignore_ascii_case("sec-websocket-protocol");
        let sent = http1::parse(&self.sent).ok();
        let fields = sent.iter().flat_map(|sent| &sent.fields).filter(|f| is_offer(f.name));
        fields.filter_map(|f| std::str::from_utf8(f.value).ok()).collect::<Vec<_>>().join(", ")
    }

    /// The scheme it is sent by.
    #[must_use]
    pub fn scheme(&self) -> Scheme {
        match (&self.upstream, &self.opened) {
            (Some(upstream), _) => upstream.scheme,
            (None, Some(_)) => Scheme::Https,
            (None, None) => Scheme::Http,
        }
    }
}

impl std::fmt::Debug for Admitted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Admitted { method, host, port, path, .. } = self;
        f.debug_struct("Admitted")
            .field("method", method)
            .field("host", host)
            .field("port", port)
            .field("path", path)
            .finish_non_exhaustive()
    }
}

/// Judges `head` by its form; returns the request and the head to send on.
///
/// # Errors
/// [`DropReason::HttpMalformed`], [`DropReason::HostInvalid`], [`DropReason::CredentialInvalid`] or, inside TLS that is
/// read, [`DropReason::SniMismatch`].
pub fn admit(head: &Head<'_>, place: &Place) -> Result<(Admitted, Vec<u8>), DropReason> {
    let Destination { host, port, target, upstream } = destination(head, place)?;
    let credential = match upstream {
        Some(_) => credential::of_endpoint(head, &target, place.is_known()),
        None => credential::of_proxy(head)?,
    };
    let has = |name: &str| head.fields.iter().any(|f| f.name.eq_ignore_ascii_case(name));
    let admitted = Admitted {
        method: head.method.to_owned(),
        path: path::normal(path_of(&target)).into_owned(),
        query: target.split_once('?').map_or("", |(_, query)| query).to_owned(),
        credential,
        upstream,
        opened: match place {
            Place::Read(opened) => Some(Arc::clone(opened)),
            _ => None,
        },
        upgrade: Upgrade::of(head),
        awaits_continue: has("expect") && head.minor > 0 && head.body != Body::Length(0),
        body: head.body,
        is_http2: false,
        takes_chunks: head.minor > 0,
        is_direct: !matches!(place, Place::Explicit { .. }),
        takes_trailers: head
            .fields
            .iter()
            .any(|f| f.name == "te" && f.value.eq_ignore_ascii_case(b"trailers")),
        sent: Vec::new(),
        said: OnceLock::new(),
        host,
        port,
    };
    let ours = admitted.upstream.is_some().then(|| Ours::of(head, place.is_known()));
    let rewritten = rewrite(head, &admitted, &target, ours.as_ref());
    Ok((admitted, rewritten))
}

/// Where a request goes, and the target to send there.
struct Destination {
    host: Host,
    port: u16,
    target: String,
    upstream: Option<Arc<Upstream>>,
}

fn destination(head: &Head<'_>, place: &Place) -> Result<Destination, DropReason> {
    let malformed = |_| DropReason::HttpMalformed;
    let field = std::str::from_utf8(head.host.unwrap_or_default()).map_err(|_| DropReason::HttpMalformed)?;
    let (field_host, field_port) = proxy_request::authority(field).map_err(malformed)?;
    let field_host = Host::parse(field_host).map_err(|_| DropReason::HostInvalid)?;
    let target = proxy_request::parse(head.method, head.target).map_err(malformed)?;
    let mut upstream = None;
    let (host, port, target) = match (target, place) {
        // To a server too (RFC 9112 section 3.2.2), by the scheme that it is spoken to by: a proxy does not begin TLS for its client.
        (Target::Absolute { is_tls, host, port, path }, place)
            if is_tls == matches!(place, Place::Read(_)) =>
        {
            let host = Host::parse(host).map_err(|_| DropReason::HostInvalid)?;
            let usual = if is_tls { TLS_PORT } else { PORT };
            let port = port.unwrap_or(usual);
            // RFC 9112 section 3.2.2 lets a proxy ignore Host here; a client that sends two hosts is
            // up to something.
            if host != field_host || field_port.unwrap_or(usual) != port {
                return Err(DropReason::HttpMalformed);
            }
            let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
            (host, port, path)
        }
        (Target::Origin(path), Place::Transparent { port } | Place::Tunnel { port, .. }) => {
            (field_host, field_port.unwrap_or(*port), path.to_owned())
        }
        (Target::Origin(path), Place::Read(opened)) => {
            (field_host, field_port.unwrap_or(opened.port), path.to_owned())
        }
        // What it is called there, the gateway need not know.
        (Target::Origin(path), Place::Explicit { endpoints, .. }) => {
            let (found, path) = endpoints.find(path).ok_or(DropReason::EndpointUnknown)?;
            let (host, port) = (found.host.clone(), found.port);
            upstream = Some(found);
            (host, port, path)
        }
        _ => return Err(DropReason::HttpMalformed),
    };
    let fits = match place {
        Place::Explicit { .. } => true,
        Place::Transparent { port: dialled } => port == *dialled,
        Place::Tunnel { host: asked, port: dialled, .. } => host == *asked && port == *dialled,
        Place::Read(opened) => host == opened.host && port == opened.port,
    };
    proxy_request::plain_path(path_of(&target)).map_err(malformed)?;
    if !fits && matches!(place, Place::Read(_)) {
        // It was shown the certificate of another (RFC 9110 section 7.4).
        return Err(DropReason::SniMismatch);
    }
    if fits { Ok(Destination { host, port, target, upstream }) } else { Err(DropReason::HttpMalformed) }
}

fn path_of(target: &str) -> &str {
    target.split('?').next().unwrap_or_default()
}

fn rewrite(head: &Head<'_>, admitted: &Admitted, target: &str, ours: Option<&Ours>) -> Vec<u8> {
    let mut out = Vec::with_capacity(1024);
    let mut line = |parts: &[&[u8]]| {
        parts.iter().for_each(|p| out.extend_from_slice(p));
        out.extend_from_slice(b"\r\n");
    };
    let version: &[u8] = if head.minor == 0 { b" HTTP/1.0" } else { b" HTTP/1.1" };
    line(&[head.method.as_bytes(), b" ", target.as_bytes(), version]);
    line(&[b"Host: ", authority(&admitted.host, admitted.port, admitted.scheme()).as_bytes()]);
    if admitted.upgrade == Upgrade::WebSocket {
        line(&[b"Connection: Upgrade\r\nUpgrade: websocket"]);
    } else if closes(head) {
        line(&[b"Connection: close"]);
    }
    let nominated = nominated(head);
    let mut name = String::new();
    for field in &head.fields {
        name.clear();
        name.push_str(field.name);
        name.make_ascii_lowercase();
        // To a client all endpoints are one origin: a server's cookies would go to another.
        let stays = ours.is_some_and(|ours| ours.has(field) || name == "cookie");
        if fields::goes_on(&name) && !nominated.contains(&name) && !stays {
            line(&[field.name.as_bytes(), b": ", field.value]);
        }
    }
    line(&[]);
    out
}

/// Names that `Connection` and `Proxy-Connection` take out of the message.
fn nominated(head: &Head<'_>) -> Vec<String> {
    let fields = head.fields.iter().filter(|f| f.name.eq_ignore_ascii_case("connection"));
    let names = fields.flat_map(|f| f.value.split(|b| *b == b','));
    names.filter_map(|n| std::str::from_utf8(n.trim_ascii()).ok()).map(str::to_ascii_lowercase).collect()
}

fn closes(head: &Head<'_>) -> bool {
    let of_hop =
        |name: &str| name.eq_ignore_ascii_case("connection") || name.eq_ignore_ascii_case("proxy-connection");
    head.fields.iter().any(|f| of_hop(f.name) && has_token(f.value, b"close"))
}

/// Whether a list has a token.
fn has_token(list: &[u8], token: &[u8]) -> bool {
    list.split(|b| *b == b',').any(|t| t.trim_ascii().eq_ignore_ascii_case(token))
}

fn authority(host: &Host, port: u16, scheme: Scheme) -> String {
    let host = match host {
        Host::Address(std::net::IpAddr::V6(ip)) => format!("[{ip}]"),
        other => other.to_string(),
    };
    let default = match scheme {
        Scheme::Http => PORT,
        Scheme::Https => TLS_PORT,
    };
    if port == default { host } else { format!("{host}:{port}") }
}

#[cfg(test)]
mod tests {
    use clawgress_api::config::Endpoint;
    use clawgress_inspect::http1;
    use proptest::prelude::*;

    use super::*;

    fn run(raw: &str, place: &Place) -> Result<(Admitted, String), DropReason> {
        let raw = raw.replace('\n', "\r\n") + "\r\n\r\n";
        let head = http1::parse(raw.as_bytes()).map_err(|_| DropReason::HttpMalformed)?;
        admit(&head, place).map(|(a, out)| (a, String::from_utf8(out).expect("text").replace("\r\n", "\n")))
    }

    #[track_caller]
    fn check(raw: &str, place: &Place, want: &str) {
        assert_eq!(run(raw, place).map(|(_, out)| out).as_deref(), Ok(want), "{raw}");
    }

    #[track_caller]
    fn refused(raw: &str, place: &Place, want: DropReason) {
        assert_eq!(run(raw, place).map(|(_, out)| out), Err(want), "{raw}");
    }

    fn explicit() -> Place {
        let endpoint =
            |name: &str, upstream: &str| Endpoint { name: name.into(), upstream: upstream.into(), ca: None };
        let all = [endpoint("llm", "https://api.test/base"), endpoint("own", "http://llm.test:8000")];
        Place::Explicit { endpoints: Arc::new(Endpoints::new(&all).expect("endpoints")), is_known: false }
    }

    const STEERED: Place = Place::Transparent { port: 80 };

    #[test]
    fn what_is_sent_on_is_canonical() {
        check(
            "GET http://A.test./p?q HTTP/1.1\nHost: a.TEST",
            &explicit(),
            "GET /p?q HTTP/1.1\nHost: a.test\n\n",
        );
        check(
            "GET http://a.test:8080 HTTP/1.1\nhost: a.test:8080",
            &explicit(),
            "GET / HTTP/1.1\nHost: a.test:8080\n\n",
        );
        check(
            "GET http://a.test?q HTTP/1.0\nHost: a.test:80",
            &explicit(),
            "GET /?q HTTP/1.0\nHost: a.test\n\n",
        );
        check("GET /p HTTP/1.1\nHost: 2130706433", &STEERED, "GET /p HTTP/1.1\nHost: 127.0.0.1\n\n");
        check(
            "GET http://[::ffff:10.0.0.1]/ HTTP/1.1\nHost: 10.0.0.1",
            &explicit(),
            "GET / HTTP/1.1\nHost: 10.0.0.1\n\n",
        );
        check(
            "POST /p HTTP/1.1\nHost: a.test\nContent-Length: 3\nX-Own: 1",
            &STEERED,
            "POST /p HTTP/1.1\nHost: a.test\nContent-Length: 3\nX-Own: 1\n\n",
        );
    }

    #[test]
    fn fields_of_this_hop_and_of_identity_stay_here() {
        let raw = "GET /p HTTP/1.1\nHost: a.test\nProxy-Authorization: Basic x\nProxy-Connection: close\nConnection: x-mine, keep-alive\nX-Mine: 1\nKeep-Alive: 5\nTE: trailers\n\
            X-Forwarded-For: 1.2.3.4\nX_Forwarded_For: 1.2.3.4\nForwarded: for=x\nX-Real-IP: x\nx-clawgress-agent: root\nX_Clawgress_Agent: root\n\
            Content_Encoding: gzip\nContent_Type: text/plain\nTrue-Client-IP: x\nRemote_User: root\n\
            X-Original-Forwarded-For: x\nX-Originating-IP: x\nX-Remote-IP: x\nX_Remote_Addr: x\nWL-Proxy-Client-IP: x\n\
            CF-Connecting-IPv6: ::1\nFly-Client-IP: x\nX-SSL-Client-Verify: SUCCESS\nX-Envoy-External-Address: x\nX-Host: b.test\nAuthorization: Bearer kept";
        check(
            raw,
            &STEERED,
            "GET /p HTTP/1.1\nHost: a.test\nConnection: close\nAuthorization: Bearer kept\n\n",
        );
    }

    #[test]
    fn two_hosts_are_never_reconciled() {
        for raw in [
            "GET http://a.test/ HTTP/1.1\nHost: b.test",
            "GET http://a.test:81/ HTTP/1.1\nHost: a.test",
            "GET / HTTP/1.1\nHost: a.test\nHost: b.test",
            "GET http://a.test/ HTTP/1.1",
            "GET http://u@a.test/ HTTP/1.1\nHost: a.test",
            "GET https://a.test/ HTTP/1.1\nHost: a.test",
            "OPTIONS * HTTP/1.1\nHost: a.test",
            "CONNECT a.test:443 HTTP/1.1\nHost: a.test:443",
        ] {
            refused(raw, &explicit(), DropReason::HttpMalformed);
        }
        refused("GET https://a.test:80/ HTTP/1.1\nHost: a.test:80", &STEERED, DropReason::HttpMalformed);
        refused("OPTIONS * HTTP/1.1\nHost: a.test", &STEERED, DropReason::HttpMalformed);
        check("GET HTTP://A.test HTTP/1.1\nHost: a.test", &STEERED, "GET / HTTP/1.1\nHost: a.test\n\n");
        refused("GET /p HTTP/1.1\nHost: a.test", &explicit(), DropReason::EndpointUnknown);
        refused("GET / HTTP/1.1\nHost: a.test:8080", &STEERED, DropReason::HttpMalformed);
        refused("GET / HTTP/1.1\nHost:", &STEERED, DropReason::HttpMalformed);
        refused("GET / HTTP/1.1\nHost: a_b..test", &STEERED, DropReason::HostInvalid);
    }

    #[test]
    fn a_path_with_another_spelling_is_refused() {
        for path in [
            "/./denied",
            "/x/../denied",
            "/%64enied",
            "//denied",
            "/x/%2e%2E/denied",
            "/x/..;p/denied",
            "/x%2f..%2Fdenied",
            "/x/%2fdenied",
            "/x%5Cdenied",
            "/x\\denied",
            "/denied`",
        ] {
            refused(&format!("GET {path}?q HTTP/1.1\nHost: a.test"), &STEERED, DropReason::HttpMalformed);
            let raw = format!("GET http://a.test{path} HTTP/1.1\nHost: a.test");
            refused(&raw, &explicit(), DropReason::HttpMalformed);
        }
        let raw = "GET /a/?x=/../%64//` HTTP/1.1\nHost: a.test";
        check(raw, &STEERED, &format!("{raw}\n\n"));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1024))]

        /// What is sent on says to every other parser what policy is asked about.
        #[test]
        fn what_is_sent_on_is_what_is_judged(
            method in "[!#$%&'*+.^_`|~0-9A-Za-z-]{1,24}",
            explicit: bool,
            host in "(a\\.test|A\\.Test\\.|127\\.1|\\[::1\\]|b_c)",
            port in "(:80|:8080|)",
            path in "(/[!-~]{0,12}|(/[a-z.%0-9;]{0,4}){0,4})",
            query in "(\\?[!-~]{0,12}|)",
            field in "([!#$%&'*+.^_`|~0-9A-Za-z-]{1,12}: [ -~]{0,12}\n|)",
        ) {
            let target = if explicit { format!("http://{host}{port}{path}{query}") } else { format!("{path}{query}") };
            let place = if explicit { super::tests::explicit() } else { STEERED };
            let raw = format!("{method} {target} HTTP/1.1\n{field}Host: {host}{port}");
            let Ok((admitted, out)) = run(&raw, &place) else { return Ok(()) };
            let out = out.replace('\n', "\r\n");
            let head = http1::parse(out.as_bytes()).expect("sound");
            prop_assert_eq!(head.method, &admitted.method);
            let again = Place::Transparent { port: admitted.port };
            let (second, same) = admit(&head, &again).expect("admitted again");
            prop_assert_eq!(&String::from_utf8(same).expect("text"), &out);
            prop_assert_eq!((&second.host, second.port, &second.path), (&admitted.host, admitted.port, &admitted.path));
            let uri: http::Uri = std::str::from_utf8(head.target).expect("text").parse().expect("a URI");
            prop_assert_eq!(path::normal(uri.path()), &admitted.path[..]);
            http::Method::from_bytes(admitted.method.as_bytes()).expect("a method");
            for field in &head.fields {
                http::HeaderName::from_bytes(field.name.as_bytes()).expect("a name");
                http::HeaderValue::from_bytes(field.value).expect("a value");
            }
        }
    }

    #[test]
    fn a_web_socket_is_opened_by_the_book_or_not_at_all() {
        const KEY: &str = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==";
        let opening = format!(
            "GET /chat HTTP/1.1\nHost: a.test\nConnection: keep-alive, Upgrade\nUpgrade: WebSocket\nSec-WebSocket-Version: 13\n{KEY}\nSec-WebSocket-Protocol: realtime"
        );
        check(
            &opening,
            &STEERED,
            &format!(
                "GET /chat HTTP/1.1\nHost: a.test\nConnection: Upgrade\nUpgrade: websocket\nSec-WebSocket-Version: 13\n{KEY}\nSec-WebSocket-Protocol: realtime\n\n"
            ),
        );
        let upgrade = |raw: &str| run(raw, &STEERED).expect("admitted").0.upgrade;
        assert_eq!(upgrade(&opening), Upgrade::WebSocket);
        for (from, to) in [
            ("GET", "POST"),
            ("HTTP/1.1", "HTTP/1.0"),
            ("keep-alive, Upgrade", "keep-alive"),
            ("Upgrade: WebSocket", "Upgrade: WebSocket, h2c"),
            ("Upgrade: WebSocket", "Upgrade: WebSocket\nUpgrade: h2c"),
            ("Version: 13", "Version: 8"),
            ("Version: 13", "Version: 13\nContent-Length: 1"),
            (KEY, "Sec-WebSocket-Key: c2hvcnQ="),
            (KEY, "X: y"),
            (KEY, &format!("{KEY}\n{KEY}")),
            (KEY, &format!("{KEY}\nHTTP2-Settings: AAMAAABkAARAAAAA")),
        ] {
            let raw = opening.replace(from, to);
            assert_ne!(raw, opening, "{from}");
            let (admitted, sent) = run(&raw, &STEERED).expect("admitted");
            assert_eq!(admitted.upgrade, Upgrade::Other, "{from} -> {to}");
            assert!(!sent.to_lowercase().contains("\nupgrade:"), "{sent}");
        }
    }

    #[test]
    fn facts_are_taken_from_the_head() {
        let raw = "POST /a%20..?x HTTP/1.1\nHost: a.test\nExpect: 100-continue\nContent-Length: 1\nUpgrade: h2c\nProxy-Authorization: Basic abc";
        let (admitted, _) = run(raw, &STEERED).expect("admitted");
        let [a, b, c] = [b'a', b'b', b'c'];
        assert!(!format!("{admitted:?}").contains(&format!("{a}, {b}, {c}")), "no credential in a log");
        assert_eq!((admitted.method.as_str(), admitted.path.as_str()), ("POST", "/a%20.."));
        assert!(admitted.upgrade == Upgrade::Other && admitted.awaits_continue);
        assert_eq!(admitted.credential.map(|c| c.to_vec()), Some(b"Basic abc".to_vec()));
        let twice = "GET / HTTP/1.1\nHost: a\nProxy-Authorization: Basic a\nProxy-Authorization: Basic b";
        refused(twice, &STEERED, DropReason::CredentialInvalid);
    }
}
