//! A request of HTTP/2 as the HTTP/1.1 head that says the same (RFC 9113 section 8), so that both are judged by one strict
//! parser and forwarded by one set of rules.
//!
//! HTTP/2 says where a request ends by itself, so most of smuggling comes of what an intermediary writes of it: every byte
//! that could mean more in HTTP/1 is refused here, and nothing is repaired but what RFC 9113 has an intermediary join.

use crate::http1::{FIELDS_MAX, HEAD_BYTES_MAX};

/// Fields of one connection, which HTTP/2 has none of (RFC 9113 section 8.2.2). `TE` is apart.
const CONNECTION_FIELDS: [&str; 6] =
    ["connection", "proxy-connection", "keep-alive", "transfer-encoding", "upgrade", "http2-settings"];
/// What a head has besides its parts.
const MARKS_BYTES: usize = 64;

/// Why a request was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Http2Error {
    /// A pseudo-header is missing, or is one too many for the method.
    #[error("the pseudo-header fields are not those of one request")]
    Pseudo,
    /// Another scheme than that of the connection.
    #[error("the :scheme is not that of the connection")]
    Scheme,
    /// `Host` names another authority.
    #[error("Host and :authority differ")]
    HostDiffers,
    /// A blank, a line end or another byte that would end it in HTTP/1.
    #[error("the method, :authority or :path has a byte that no request line may have")]
    RequestLine,
    /// Not a token in lowercase, or one that would be a pseudo-header.
    #[error("a field name is malformed")]
    Name,
    /// A control character, or blanks around it.
    #[error("a field value is malformed")]
    Value,
    /// `Connection` and the like.
    #[error("a field is of a connection of HTTP/1")]
    ConnectionField,
    /// More than [`FIELDS_MAX`] fields, or than [`HEAD_BYTES_MAX`] bytes.
    #[error("the request head has more than {HEAD_BYTES_MAX} bytes or {FIELDS_MAX} fields")]
    TooLarge,
    /// A length of what ended with the head.
    #[error("the request ends with its head, and declares a body")]
    Length,
}

/// What the connection's requests are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// For a server, by `https` or by `http`.
    Server {
        /// Whether the connection is TLS.
        tls: bool,
    },
    /// For a proxy that is reached over TLS: `http` is what it fetches, `https` is what it serves itself.
    Proxy,
}

/// A request, as a decoder of HTTP/2 gives it.
#[derive(Clone, Debug)]
pub struct Request<'a> {
    /// `:method`.
    pub method: &'a str,
    /// `:scheme`.
    pub scheme: Option<&'a str>,
    /// `:authority`.
    pub authority: Option<&'a str>,
    /// `:path`.
    pub path: Option<&'a str>,
    /// Fields in order.
    pub fields: &'a [(&'a str, &'a [u8])],
    /// Whether it ends with its head.
    pub is_whole: bool,
}

/// The head of the same request in HTTP/1.1, for [`crate::http1::parse`]. A body whose length is not declared is chunked
/// there.
///
/// # Errors
/// On everything that RFC 9113 calls malformed and a decoder lets through, and what has no one meaning in HTTP/1.
pub fn to_http1(request: &Request<'_>, role: Role) -> Result<Vec<u8>, Http2Error> {
    let authority = authority(request)?;
    let is_line = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic());
    if !is_line(request.method) || !is_line(authority) || !request.path.is_none_or(is_line) {
        return Err(Http2Error::RequestLine);
    }
    check_size(request)?;
    let mut head = Head(Vec::with_capacity(512));
    let path = request.path.unwrap_or_default();
    match (request.method, request.scheme, request.path) {
        ("CONNECT", None, None) if request.authority.is_some() => {
            head.line(&["CONNECT ", authority, " HTTP/1.1"]);
        }
        // Nobody was told that a WebSocket can be opened so (RFC 8441).
        ("CONNECT", ..) | (_, _, None) => return Err(Http2Error::Pseudo),
        (method, scheme, Some(_)) => match (role, scheme) {
            (Role::Server { tls }, scheme) if is_scheme(scheme, tls, request) => {
                head.line(&[method, " ", path, " HTTP/1.1"]);
            }
            (Role::Proxy, Some("http")) if path.starts_with('/') => {
                head.line(&[method, " http://", authority, path, " HTTP/1.1"]);
            }
            (Role::Proxy, Some("https")) => head.line(&[method, " ", path, " HTTP/1.1"]),
            _ => return Err(Http2Error::Scheme),
        },
    }
    head.line(&["host: ", authority]);
    fields(request, &mut head)?;
    head.line(&[]);
    if head.0.len() > HEAD_BYTES_MAX { Err(Http2Error::TooLarge) } else { Ok(head.0) }
}

/// A decoder may leave the scheme out where there is no `:authority`; who sent one has sent the connection's.
fn is_scheme(scheme: Option<&str>, tls: bool, request: &Request<'_>) -> bool {
    match scheme {
        Some(scheme) => scheme == if tls { "https" } else { "http" },
        None => request.authority.is_none(),
    }
}

/// The one authority: a client that says it twice says the same (RFC 9113 section 8.3.1).
fn authority<'a>(request: &Request<'a>) -> Result<&'a str, Http2Error> {
    let mut hosts = request.fields.iter().filter(|(name, _)| *name == "host").map(|(_, value)| *value);
    match (request.authority, hosts.next(), hosts.next()) {
        (_, _, Some(_)) => Err(Http2Error::HostDiffers),
        (Some(authority), None, None) => Ok(authority),
        (Some(authority), Some(host), None) if authority.as_bytes().eq_ignore_ascii_case(host) => {
            Ok(authority)
        }
        (Some(_), Some(_), None) => Err(Http2Error::HostDiffers),
        (None, Some(host), None) => std::str::from_utf8(host).map_err(|_| Http2Error::RequestLine),
        (None, None, None) => Err(Http2Error::Pseudo),
    }
}

/// Before anything is copied.
fn check_size(request: &Request<'_>) -> Result<(), Http2Error> {
    let line = request.method.len()
        + request.path.map_or(0, str::len)
        + 2 * request.authority.map_or(0, str::len)
        + MARKS_BYTES;
    let fields = request.fields.iter().map(|(name, value)| name.len() + value.len() + 4);
    if fields.sum::<usize>() + line > HEAD_BYTES_MAX { Err(Http2Error::TooLarge) } else { Ok(()) }
}

/// Writes the fields: those of [`Request::fields`] but `host`, and what says that a body follows.
fn fields(request: &Request<'_>, head: &mut Head) -> Result<(), Http2Error> {
    let (mut count, mut cookies) = (1, Vec::new());
    let mut declared = None;
    for (name, value) in request.fields {
        let is_token =
            |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"!#$%&'*+-.^_`|~".contains(&b);
        if name.is_empty() || !name.bytes().all(is_token) {
            return Err(Http2Error::Name);
        }
        let is_blank = |b: Option<&u8>| matches!(b, Some(b' ' | b'\t'));
        if value.iter().any(|b| b.is_ascii_control() && *b != b'\t')
            || is_blank(value.first())
            || is_blank(value.last())
        {
            return Err(Http2Error::Value);
        }
        let is_te = *name == "te" && !value.eq_ignore_ascii_case(b"trailers");
        if is_te || CONNECTION_FIELDS.contains(name) {
            return Err(Http2Error::ConnectionField);
        }
        match *name {
            "host" => continue,
            // Clients split it, so that it compresses better (RFC 9113 section 8.2.3).
            "cookie" => {
                cookies.push(*value);
                continue;
            }
            "content-length" => declared = Some(*value),
            _ => {}
        }
        head.field(name.as_bytes(), value);
        count += 1;
    }
    if !cookies.is_empty() {
        head.field(b"cookie", &cookies.join(&b"; "[..]));
        count += 1;
    }
    match (request.is_whole, declared) {
        (true, Some(length)) if length != b"0" => return Err(Http2Error::Length),
        (false, None) => {
            head.field(b"transfer-encoding", b"chunked");
            count += 1;
        }
        _ => {}
    }
    if count > FIELDS_MAX { Err(Http2Error::TooLarge) } else { Ok(()) }
}

struct Head(Vec<u8>);

// === impl Head ===

impl Head {
    fn line(&mut self, parts: &[&str]) {
        parts.iter().for_each(|part| self.0.extend_from_slice(part.as_bytes()));
        self.0.extend_from_slice(b"\r\n");
    }

    fn field(&mut self, name: &[u8], value: &[u8]) {
        for part in [name, b": ", value, b"\r\n"] {
            self.0.extend_from_slice(part);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::http1::{self, Body};

    const TLS: Role = Role::Server { tls: true };

    fn request<'a>(fields: &'a [(&'a str, &'a [u8])]) -> Request<'a> {
        let (scheme, authority, path) = (Some("https"), Some("a.test"), Some("/p?q"));
        Request { method: "POST", scheme, authority, path, fields, is_whole: false }
    }

    #[track_caller]
    fn check(request: &Request<'_>, role: Role, want: &str) {
        let head = to_http1(request, role).map(|head| String::from_utf8(head).expect("text"));
        assert_eq!(head.as_deref(), Ok(&*(want.replace('\n', "\r\n") + "\r\n\r\n")));
    }

    #[test]
    fn it_says_the_same() {
        let fields: &[(&str, &[u8])] = &[
            ("accept", b"*/*"),
            ("cookie", b"a=1"),
            ("host", b"A.test"),
            ("cookie", b"b=2"),
            ("te", b"trailers"),
        ];
        let line = "POST /p?q HTTP/1.1\nhost: a.test\naccept: */*\nte: trailers\ncookie: a=1; b=2";
        check(&request(fields), TLS, &format!("{line}\ntransfer-encoding: chunked"));
        check(&Request { is_whole: true, ..request(fields) }, TLS, line);
        let known: &[(&str, &[u8])] = &[("content-length", b"3")];
        check(&request(known), TLS, "POST /p?q HTTP/1.1\nhost: a.test\ncontent-length: 3");
        let nothing: &[(&str, &[u8])] = &[("content-length", b"0")];
        let whole = Request { is_whole: true, ..request(nothing) };
        check(&whole, TLS, "POST /p?q HTTP/1.1\nhost: a.test\ncontent-length: 0");
        let by_host: &[(&str, &[u8])] = &[("host", b"a.test:8443")];
        let without = Request { authority: None, scheme: None, is_whole: true, ..request(by_host) };
        check(&without, TLS, "POST /p?q HTTP/1.1\nhost: a.test:8443");
    }

    #[test]
    fn a_proxy_is_asked_by_the_scheme() {
        let own = Request { is_whole: true, ..request(&[]) };
        check(&own, Role::Proxy, "POST /p?q HTTP/1.1\nhost: a.test");
        let fetched = Request { scheme: Some("http"), ..own.clone() };
        check(&fetched, Role::Proxy, "POST http://a.test/p?q HTTP/1.1\nhost: a.test");
        check(&fetched, Role::Server { tls: false }, "POST /p?q HTTP/1.1\nhost: a.test");
        let tunnel =
            Request { method: "CONNECT", scheme: None, path: None, authority: Some("a.test:443"), ..own };
        check(&tunnel, Role::Proxy, "CONNECT a.test:443 HTTP/1.1\nhost: a.test:443");
    }

    #[test]
    fn what_could_mean_more_is_refused() {
        let of = |change: &dyn Fn(&mut Request<'_>)| {
            let mut request = request(&[]);
            change(&mut request);
            to_http1(&request, TLS).expect_err("refused")
        };
        assert_eq!(of(&|r| r.scheme = Some("http")), Http2Error::Scheme);
        assert_eq!(of(&|r| r.scheme = Some("HTTPS")), Http2Error::Scheme);
        assert_eq!(of(&|r| r.scheme = None), Http2Error::Scheme);
        assert_eq!(of(&|r| r.path = None), Http2Error::Pseudo);
        assert_eq!(of(&|r| r.authority = None), Http2Error::Pseudo);
        assert_eq!(of(&|r| r.method = "CONNECT"), Http2Error::Pseudo);
        for path in ["/ HTTP/1.1", "/\r\nx: y", "/\t", "", "/\u{e9}"] {
            assert_eq!(of(&|r| r.path = Some(path)), Http2Error::RequestLine, "{path:?}");
        }
        assert_eq!(of(&|r| r.method = "GET /x"), Http2Error::RequestLine);
        assert_eq!(of(&|r| r.authority = Some("a.test\r\nx: y")), Http2Error::RequestLine);
        let long = "/".repeat(HEAD_BYTES_MAX);
        assert_eq!(of(&|r| r.path = Some(&*Box::leak(long.clone().into_boxed_str()))), Http2Error::TooLarge);
        for (name, value, want) in [
            ("Accept", &b"x"[..], Http2Error::Name),
            ("", b"x", Http2Error::Name),
            (":path", b"/x", Http2Error::Name),
            ("a b", b"x", Http2Error::Name),
            ("a:", b"x", Http2Error::Name),
            ("a\r\nb", b"x", Http2Error::Name),
            ("a", b"x\r\ncontent-length: 9", Http2Error::Value),
            ("a", b"x\ny", Http2Error::Value),
            ("a", b"x\0", Http2Error::Value),
            ("a", b" x", Http2Error::Value),
            ("a", b"x\t", Http2Error::Value),
            ("connection", b"close", Http2Error::ConnectionField),
            ("transfer-encoding", b"chunked", Http2Error::ConnectionField),
            ("upgrade", b"h2c", Http2Error::ConnectionField),
            ("te", b"gzip", Http2Error::ConnectionField),
            ("te", b"trailers, chunked", Http2Error::ConnectionField),
            ("host", b"b.test", Http2Error::HostDiffers),
        ] {
            assert_eq!(to_http1(&request(&[(name, value)]), TLS), Err(want), "{name:?}");
        }
        let twice: &[(&str, &[u8])] = &[("host", b"a.test"), ("host", b"a.test")];
        assert_eq!(to_http1(&request(twice), TLS), Err(Http2Error::HostDiffers));
        let length: &[(&str, &[u8])] = &[("content-length", b"3")];
        let ended = Request { is_whole: true, ..request(length) };
        assert_eq!(to_http1(&ended, TLS), Err(Http2Error::Length));
        let many = vec![("a", &b"x"[..]); FIELDS_MAX];
        assert_eq!(to_http1(&request(&many), TLS), Err(Http2Error::TooLarge));
        // Each of these is for the parser of HTTP/1 to refuse, as it does of its own clients.
        for (name, value) in [("content-length", &b"+3"[..]), ("expect", b"200-ok")] {
            let head = to_http1(&request(&[(name, value)]), TLS).expect("a head");
            assert!(http1::parse(&head).is_err(), "{name}");
        }
    }

    proptest! {
        /// The parser of HTTP/1 reads of it what it was made of, or nothing.
        #[test]
        fn it_reads_as_what_it_was_made_of(
            method in "([A-Z]{1,8}|[ -~\r\n]{1,8})",
            path in "(/[!-~]{0,16}|[ -~\r\n]{0,16})",
            authority in "([a-z0-9.:]{1,12}|[ -~\r\n]{0,12})",
            fields in proptest::collection::vec(("([a-z-]{1,12}|[ -~\r\n]{1,8}|content-length)", "[ -~\r\n\t]{0,12}"), 0..6),
            is_whole: bool,
        ) {
            let all: Vec<(&str, &[u8])> = fields.iter().map(|(n, v)| (&**n, v.as_bytes())).collect();
            let request = Request {
                method: &method, scheme: Some("https"), authority: Some(&authority), path: Some(&path), fields: &all, is_whole,
            };
            let Ok(head) = to_http1(&request, TLS) else { return Ok(()) };
            prop_assert_eq!(http1::head_length(&head, 0), Ok(Some(head.len())));
            let Ok(parsed) = http1::parse(&head) else { return Ok(()) };
            prop_assert_eq!((parsed.method, parsed.target), (&*method, path.as_bytes()));
            prop_assert_eq!(parsed.host, Some(authority.as_bytes()));
            let own = |name: &str| matches!(name, "host" | "cookie" | "transfer-encoding");
            let want: Vec<_> = all.iter().filter(|(n, _)| !own(n)).copied().collect();
            let got: Vec<_> = parsed.fields.iter().filter(|f| !own(f.name)).map(|f| (f.name, f.value)).collect();
            prop_assert_eq!(got, want);
            prop_assert!(!is_whole || parsed.body == Body::Length(0));
        }
    }
}
