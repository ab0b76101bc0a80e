//! What each fuzz target checks. A target takes any bytes and panics if a parser does what it must
//! never do: panic, read the same bytes differently when they come in other pieces, or give out
//! something it would itself refuse.
//!
//! The functions need no fuzzer, so that seeds and former crashes are replayed as ordinary tests too.
#![allow(clippy::panic, clippy::indexing_slicing, clippy::expect_used, reason = "a panic is a finding")]

use clawgress_inspect::client_hello::{ClientHello, HelloError, Reassembler};
use clawgress_inspect::dns;
use clawgress_inspect::hello_retry::{Reply, Second, SecondError};
use clawgress_inspect::http1::{self, Body, Framer, HttpError, Step};
use clawgress_inspect::http2::{self, Role};
use clawgress_inspect::ja4::Ja4;
use clawgress_inspect::proxy_header::{self, Header};
use clawgress_inspect::proxy_request::{self, Target};
use clawgress_inspect::proxy_response;
use clawgress_inspect::{proxy_authorization, sniff, socks5};

#[path = "change.rs"]
mod change;
#[path = "claims.rs"]
mod claims;
#[path = "encoded.rs"]
mod encoded;
#[path = "heads.rs"]
mod heads;
#[path = "identity.rs"]
mod identity;
#[path = "llm.rs"]
mod llm;
#[path = "payload.rs"]
mod payload;
#[path = "prompt.rs"]
mod prompt;
#[path = "streams.rs"]
mod streams;
#[path = "tokens.rs"]
mod tokens;
#[path = "tool.rs"]
mod tool;
#[path = "web_socket.rs"]
mod web_socket;

pub use change::llm_change;
pub use claims::{payload_claims, tool_reader};
pub use encoded::encoded;
pub use heads::{dns_watch, llm_realtime, llm_route, prices, request_head, tool_head};
pub use identity::{
    claim_mapping, client_chain, jwks, jwt, spiffe_bundle, spiffe_id, takes_chain, takes_token,
};

pub use llm::{llm_answer, llm_calls, llm_request};

pub use payload::{payload_body, payload_coding, payload_json, payload_multipart};
pub use prompt::{prompt_rules, prompt_text};
pub use streams::{hearing, llm_rename, split_window, tool_events};
pub use tokens::{answer_head, model_name, token_counts};
pub use tool::{tool_list, tool_message};
pub use web_socket::web_socket;

use super::Host;

/// A target takes any bytes.
pub type Check = fn(&[u8]);

/// Every target by name.
pub const TARGETS: &[(&str, Check)] = &[
    ("answer_head", answer_head),
    ("claim_mapping", claim_mapping),
    ("client_chain", client_chain),
    ("client_hello", client_hello),
    ("connect_target", connect_target),
    ("dns_message", dns_message),
    ("dns_watch", dns_watch),
    ("encoded", encoded),
    ("hearing", hearing),
    ("hello_retry", hello_retry),
    ("host", host),
    ("http1", http1),
    ("http2", http2),
    ("jwks", jwks),
    ("jwt", jwt),
    ("llm_answer", llm_answer),
    ("llm_calls", llm_calls),
    ("llm_change", llm_change),
    ("llm_realtime", llm_realtime),
    ("llm_rename", llm_rename),
    ("llm_request", llm_request),
    ("llm_route", llm_route),
    ("model_name", model_name),
    ("payload_body", payload_body),
    ("payload_claims", payload_claims),
    ("payload_coding", payload_coding),
    ("payload_json", payload_json),
    ("payload_multipart", payload_multipart),
    ("prices", prices),
    ("prompt_rules", prompt_rules),
    ("prompt_text", prompt_text),
    ("proxy_authorization", proxy_authorization),
    ("proxy_header", proxy_header),
    ("proxy_response", proxy_response),
    ("request_head", request_head),
    ("sniff", sniff),
    ("socks5", socks5),
    ("spiffe_bundle", spiffe_bundle),
    ("spiffe_id", spiffe_id),
    ("split_window", split_window),
    ("token_counts", token_counts),
    ("tool_events", tool_events),
    ("tool_head", tool_head),
    ("tool_list", tool_list),
    ("tool_message", tool_message),
    ("tool_reader", tool_reader),
    ("web_socket", web_socket),
];

/// The first byte says how the rest is cut into pieces.
fn pieces(data: &[u8]) -> (&[u8], Vec<&[u8]>) {
    let Some((step, rest)) = data.split_first() else { return (&[], vec![]) };
    (rest, rest.chunks(usize::from(*step).max(1)).collect())
}

/// The same hello, whole or in pieces.
pub fn client_hello(data: &[u8]) {
    fn read(pieces: &[&[u8]]) -> Result<Option<ClientHello>, HelloError> {
        let mut reassembler = Reassembler::default();
        for piece in pieces {
            if let Some(hello) = reassembler.push(piece)? {
                return Ok(Some(hello));
            }
        }
        Ok(None)
    }
    let (whole, pieces) = pieces(data);
    let hello = read(&[whole]);
    assert_eq!(hello, read(&pieces));
    if let Ok(Some(hello)) = &hello {
        let text = Ja4::of(hello).to_string();
        let is_plain = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
        assert!(text.len() == 36 && text.bytes().all(is_plain), "{text}");
    }
    if let Ok(Some(ClientHello { server_name: Some(name), .. })) = hello {
        assert!(!name.is_empty() && name.len() <= 253 && name.is_ascii());
        // What passes for a name is a name to the canonical parser too, or refused: never an address.
        assert!(!matches!(Host::parse(&name), Ok(Host::Address(_))), "{name}");
    }
}

/// What a server says first, and what a client says behind a hello, whole or in pieces.
pub fn hello_retry(data: &[u8]) {
    /// A hello for `a.test` that offers `h2`.
    const FIRST: &[u8] = b"\x16\x03\x03\x00\x4c\x01\x00\x00\x48\x03\x03AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA\x00\x00\x02\x13\x01\x01\x00\x00\x1d\x00\x00\x00\x0b\x00\x09\x00\x00\x06a.test\x00\x10\x00\x05\x00\x03\x02h2\xff\x01\x00\x01\x00";
    fn second(first: &ClientHello, pieces: &[&[u8]]) -> Result<bool, SecondError> {
        let mut second = Second::of(first);
        for piece in pieces {
            if second.push(piece)? {
                return Ok(true);
            }
        }
        Ok(false)
    }
    fn reply(pieces: &[&[u8]]) -> Option<bool> {
        let mut reply = Reply::default();
        pieces.iter().find_map(|piece| reply.push(piece))
    }
    let (whole, pieces) = pieces(data);
    assert_eq!(reply(&[whole]), reply(&pieces));
    let Ok(Some(first)) = Reassembler::default().push(FIRST) else { panic!("a hello") };
    let told = second(&first, &[whole]);
    assert_eq!(told, second(&first, &pieces));
}

/// A question that is read is all there is: it can be written again from what was read, but for its options; and what
/// it looks like stays within its bounds.
pub fn dns_message(data: &[u8]) {
    let Ok(asked) = dns::question(data) else { return };
    assert!(data.len() <= dns::QUESTION_BYTES_MAX);
    assert!(asked.wire_name.len() <= 255 && asked.wire_name.last() == Some(&0));
    let mut again = data[..12].to_vec();
    again.extend(&asked.wire_name);
    again.extend(asked.kind.to_be_bytes());
    again.extend([0, 1]);
    assert_eq!(again, data[..again.len()]);
    assert_eq!(asked.edns.is_some(), data.len() > again.len());
    if let Some(name) = &asked.name {
        assert!(!name.is_empty() && name.len() <= 253 && !name.bytes().any(|b| b.is_ascii_uppercase()));
        if let Ok(Host::Name(canonical)) = Host::parse(name) {
            assert!(canonical == *name || name.contains("xn--"), "{name}");
        }
        let limits = dns::watch::Limits { names_max: 1, uncommon_max: 1, bytes_max: 1024 };
        let mut watch = dns::watch::Watch::default();
        let first = watch.asked(0, name, asked.kind, data.len(), &limits);
        assert_eq!(first, dns::watch::Watch::default().asked(0, name, asked.kind, data.len(), &limits));
        assert_eq!(first.over, None, "one question is never too many");
        assert!(name.ends_with(dns::watch::parent(name)));
    }
}

/// A target that is accepted says the same when written again.
pub fn connect_target(data: &[u8]) {
    if let Ok(Target::Authority { host, port }) = proxy_request::parse("CONNECT", data) {
        assert_eq!(proxy_request::authority(&format!("{host}:{port}")), Ok((host, Some(port))));
        if let Ok(host) = Host::parse(host) {
            assert_eq!(Host::parse(&host.to_string()), Ok(host));
        }
    }
    for method in ["GET", "OPTIONS"] {
        if let Ok(Target::Absolute { host, path, .. }) = proxy_request::parse(method, data) {
            assert!(!host.is_empty() && !host.contains(['@', '/', '\\', '?', '#']));
            assert!(path.is_empty() || path.starts_with(['/', '?']));
        }
    }
    if let Ok(text) = std::str::from_utf8(data)
        && proxy_request::plain_path(text).is_ok()
    {
        // Whoever decodes it finds the same segments, and none that leads elsewhere.
        let decoded = decode(data);
        let segments: Vec<&[u8]> = decoded[1..].split(|b| *b == b'/').collect();
        let separated = proxy_request::separated(text);
        assert_eq!(segments.len(), separated.as_deref().unwrap_or(text)[1..].split('/').count());
        for (n, segment) in segments.iter().enumerate() {
            let name = segment.split(|b| *b == b';').next().unwrap_or_default();
            assert!(!matches!(name, b"." | b".."), "{text}");
            assert!(!segment.contains(&b'\\') && (!segment.is_empty() || n + 1 == segments.len()), "{text}");
        }
    }
}

/// Every percent-encoding decoded, as a careless server does.
fn decode(text: &[u8]) -> Vec<u8> {
    let (mut out, mut rest) = (vec![], text);
    while let Some((first, tail)) = rest.split_first() {
        let digits = tail.get(..2).and_then(|d| std::str::from_utf8(d).ok());
        match digits.and_then(|d| u8::from_str_radix(d, 16).ok()).filter(|_| *first == b'%') {
            Some(byte) => {
                out.push(byte);
                rest = &tail[2..];
            }
            None => {
                out.push(*first);
                rest = tail;
            }
        }
    }
    out
}

/// A credential has both parts and no control characters.
pub fn proxy_authorization(data: &[u8]) {
    if let Some(token) = proxy_authorization::bearer(data) {
        assert!(token.bytes().all(|b| b.is_ascii_graphic()), "{token}");
        assert!(proxy_authorization::parse(data).is_err(), "two schemes in one");
    }
    if let Ok(credential) = proxy_authorization::parse(data) {
        assert!(!credential.user.is_empty() && !credential.secret.is_empty());
        assert!(!credential.user.contains(':') && !credential.user.chars().any(char::is_control));
        assert!(!credential.secret.chars().any(char::is_control));
    }
}

/// A header says who, or nothing.
pub fn proxy_header(data: &[u8]) {
    if let Some(fixed) = data.first_chunk::<{ proxy_header::FIXED_BYTES }>()
        && let Ok(length) = proxy_header::length(fixed)
        && let Some(whole) = data.get(..length)
        && let Ok(Header::Proxied { source, destination }) = proxy_header::parse(whole)
    {
        assert!(length >= proxy_header::FIXED_BYTES + 12);
        assert_eq!(
            (source.ip().to_canonical(), destination.ip().to_canonical()),
            (source.ip(), destination.ip())
        );
    }
    assert!(proxy_header::parse(data).is_err() || data.starts_with(&proxy_header::SIGNATURE));
}

/// A head is read the same in pieces, and is nothing but what comes before its empty line.
pub fn proxy_response(data: &[u8]) {
    let whole = proxy_response::parse(data);
    if let Ok(Some(head)) = whole {
        assert!(data[..head.bytes].ends_with(b"\r\n\r\n") && (100..600).contains(&head.status));
        assert!(data[..head.bytes - 1].windows(4).all(|four| four != b"\r\n\r\n"));
        for n in 0..head.bytes {
            assert_eq!(proxy_response::parse(&data[..n]), Ok(None));
        }
        assert_eq!(proxy_response::parse(&data[..head.bytes]), whole);
    }
}

/// An answer never changes when more bytes come, and there is one before long.
pub fn sniff(data: &[u8]) {
    let mut answer = None;
    for n in 0..=data.len().min(sniff::BYTES_MAX + 64) {
        let now = sniff::sniff(&data[..n]);
        assert!(answer.is_none() || now == answer);
        assert!(now.is_some() || n < sniff::BYTES_MAX);
        answer = now;
    }
    opening(data);
}

/// However it is cut: what goes on is neither TLS nor a request, and what comes of it is what it is whole.
fn opening(data: &[u8]) {
    let (mut opening, mut gone, mut held, mut is) = (sniff::Opening::default(), vec![], vec![], None);
    for piece in data.chunks(data.len() % 7 + 1) {
        held.extend_from_slice(piece);
        match opening.next(&held) {
            sniff::Step::GoesOn => gone.append(&mut held),
            sniff::Step::Waits => {}
            sniff::Step::Is(protocol) => {
                is = Some(protocol);
                break;
            }
        }
        assert!(data.starts_with(&gone));
    }
    assert!(sniff::sniff(&gone).is_none_or(|_| gone.len() >= 64));
    assert_ne!(gone.first(), Some(&0x16));
    assert!(data.len() > 64 || is == sniff::sniff(data));
}

/// A message is taken when it is whole, as the same whatever follows, and never waits for more than it may have.
pub fn socks5(data: &[u8]) {
    whole(data, socks5::greeting);
    whole(data, socks5::login);
    whole(data, socks5::request);
    if let Ok(Some((_, login))) = socks5::login(data) {
        assert!(!login.user.is_empty() && !login.password.chars().any(char::is_control));
    }
    if let Ok(Some((_, request))) = socks5::request(data) {
        assert_ne!(request.port, 0);
    }
}

fn whole<T: PartialEq + std::fmt::Debug>(data: &[u8], parse: fn(&[u8]) -> socks5::Parsed<T>) {
    let answer = parse(data);
    assert!(answer != Ok(None) || data.len() < socks5::BYTES_MAX);
    let Ok(Some((n, _))) = &answer else { return };
    assert!(*n <= data.len() && *n <= socks5::BYTES_MAX);
    assert_eq!(parse(&data[..*n]), answer);
    assert!((0..*n).all(|n| parse(&data[..n]) == Ok(None)));
}

/// A canonical host is its own canonical form.
pub fn host(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(host) = Host::parse(text) {
        let canonical = host.to_string();
        assert_eq!(Host::parse(&canonical), Ok(host.clone()), "{text}");
        if let Host::Name(name) = host {
            assert!(name.bytes().all(|b| b.is_ascii_graphic() && !b.is_ascii_uppercase()), "{name}");
            assert!(!name.ends_with('.') && name.len() <= 253);
        }
    }
}

/// What a stream asks for is read of the head in HTTP/1.1 as it was, or not at all. The first byte says what there is of it,
/// and its parts are between bytes that are in no text.
pub fn http2(data: &[u8]) {
    let Some((flags, rest)) = data.split_first() else { return };
    let has = |bit: u32| flags >> bit & 1 == 1;
    let mut parts = rest.split(|b| *b == 0xff);
    let mut text = || std::str::from_utf8(parts.next().unwrap_or_default()).ok();
    let (Some(method), Some(scheme), Some(authority), Some(path)) = (text(), text(), text(), text()) else {
        return;
    };
    let mut fields: Vec<(&str, &[u8])> = Vec::new();
    while let Some(name) = parts.next() {
        let Ok(name) = std::str::from_utf8(name) else { return };
        fields.push((name, parts.next().unwrap_or_default()));
    }
    let role = if has(1) { Role::Proxy } else { Role::Server { tls: has(2) } };
    let request = http2::Request {
        method,
        scheme: has(3).then_some(scheme),
        authority: has(4).then_some(authority),
        path: has(5).then_some(path),
        fields: &fields,
        is_whole: has(0),
    };
    let Ok(head) = http2::to_http1(&request, role) else { return };
    assert_eq!(http1::head_length(&head, 0), Ok(Some(head.len())));
    let Ok(parsed) = http1::parse(&head) else { return };
    assert_eq!(parsed.method, method);
    if let Some(authority) = request.authority {
        assert_eq!(parsed.host, Some(authority.as_bytes()));
    }
    if let (Some(path), Role::Server { .. }) = (request.path, role) {
        assert_eq!(parsed.target, path.as_bytes());
    }
    let is_own = |name: &str| matches!(name, "host" | "cookie" | "transfer-encoding");
    let sent = fields.iter().filter(|(name, _)| !is_own(name)).copied();
    assert!(sent.eq(parsed.fields.iter().filter(|f| !is_own(f.name)).map(|f| (f.name, f.value))));
    assert!(!request.is_whole || parsed.body == Body::Length(0));
}

/// The same requests, whole or in pieces; what goes on of a request is a request that goes on as it is.
pub fn http1(data: &[u8]) {
    let (whole, pieces) = pieces(data);
    let requests = frame(&[whole]);
    assert_eq!(requests, frame(&pieces));
    for request in requests.into_iter().flatten() {
        assert_eq!(frame(&[&request]), Ok(vec![request]));
    }
}

fn frame(pieces: &[&[u8]]) -> Result<Vec<Vec<u8>>, HttpError> {
    let (mut framer, mut held, mut now, mut done) = (Framer::default(), vec![], vec![], vec![]);
    for piece in pieces {
        held.extend_from_slice(piece);
        loop {
            let (n, pass, end) = match framer.advance(&held)? {
                Step::More => break,
                Step::Head(n) => {
                    let body = http1::parse(&held[..n])?.body;
                    (n, true, framer.body(body))
                }
                Step::Pass(n) => (n, true, false),
                Step::Drop(n) => (n, false, false),
                Step::End(n) => (n, true, true),
            };
            assert!(n > 0 && n <= held.len());
            let bytes = held.drain(..n);
            if pass {
                now.extend(bytes);
            } else {
                drop(bytes);
            }
            if end {
                done.push(std::mem::take(&mut now));
            }
        }
        assert!(held.len() <= http1::HEAD_BYTES_MAX, "more is held than is promised");
    }
    Ok(done)
}
