//! Request targets and authorities: what a client asks a proxy for (RFC 9112 section 3.2).
//!
//! Splits text; whether the host is a valid name or address is for the one canonical host parser to
//! say. Must never repair: userinfo, backslashes, fragments and blanks are refused, because a parser
//! further on could read them differently.

/// Longest host text looked at, bytes: a DNS name has 253, any spelling of an address fewer.
const HOST_BYTES_MAX: usize = 512;
/// Ports have at most this many digits; leading zeros beyond it are refused.
const PORT_DIGITS_MAX: usize = 5;

/// A request target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target<'a> {
    /// `/path?query`, to a server.
    Origin(&'a str),
    /// `http://host[:port]/path?query`, to a proxy; to a server also `https://`.
    Absolute {
        /// Whether the scheme is `https`.
        is_tls: bool,
        /// Host as written.
        host: &'a str,
        /// Port as written; absent means 80, or 443.
        port: Option<u16>,
        /// Path and query; empty means `/`.
        path: &'a str,
    },
    /// `host:port`, with CONNECT.
    Authority {
        /// Host as written.
        host: &'a str,
        /// Port.
        port: u16,
    },
    /// `*`, with OPTIONS.
    Asterisk,
}

/// Why a target was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    /// Bytes that no URI has (RFC 3986 section 2).
    #[error("the request target has bytes that must be percent-encoded")]
    Bytes,
    /// A user name or password.
    #[error("the request target carries credentials")]
    UserInfo,
    /// Another scheme.
    #[error("only http:// and https:// targets are known")]
    Scheme,
    /// No host, or an overlong one.
    #[error("the request target has no valid host")]
    Host,
    /// Not 1 to 65535 in plain digits.
    #[error("the request target has no valid port")]
    Port,
    /// The form does not fit the method.
    #[error("the request target does not fit the method")]
    Form,
    /// The path has another spelling that servers take for the same.
    #[error(
        "the path must be written in its plain form: no dot or empty segments, no percent-encoded letters, and UTF-8"
    )]
    Path,
}

/// Parses the target of a request with `method`.
///
/// # Errors
/// If it is not exactly one of the four forms.
pub fn parse<'a>(method: &str, target: &'a [u8]) -> Result<Target<'a>, TargetError> {
    if !target.iter().all(|b| b.is_ascii_graphic() && !matches!(b, b'\\' | b'#' | b'"' | b'<' | b'>')) {
        return Err(TargetError::Bytes);
    }
    let text = std::str::from_utf8(target).map_err(|_| TargetError::Bytes)?;
    // A path with a backtick is one that URI parsers further on refuse.
    if text.split('?').next().is_some_and(|t| t.contains('`')) {
        return Err(TargetError::Bytes);
    }
    if method == "CONNECT" {
        let (host, port) = authority(text)?;
        return Ok(Target::Authority { host, port: port.ok_or(TargetError::Port)? });
    }
    if text.starts_with('/') {
        return Ok(Target::Origin(text));
    }
    if text == "*" {
        return if method == "OPTIONS" { Ok(Target::Asterisk) } else { Err(TargetError::Form) };
    }
    let (scheme, rest) = text.split_once("://").ok_or(TargetError::Form)?;
    let is_tls = scheme.eq_ignore_ascii_case("https");
    if !is_tls && !scheme.eq_ignore_ascii_case("http") {
        return Err(TargetError::Scheme);
    }
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    let (host_port, path) = rest.split_at_checked(end).ok_or(TargetError::Form)?;
    let (host, port) = authority(host_port)?;
    Ok(Target::Absolute { is_tls, host, port, path })
}

/// Whether a path leads nowhere else for who decodes or resolves it (RFC 3986 sections 6.2.2.2 and 6.2.2.3). What may stand in it
/// plainly or encoded (`:`, `@`, `;`) is for policy to make one of, and what may be a part of a name or a slash (`%2F`) for it to ask
/// about either way.
///
/// # Errors
/// [`TargetError::Path`] on dot segments, also encoded or with parameters; on empty segments but the
/// last; on encoded unreserved characters and backslashes; on a `%` that encodes nothing; and on what is no UTF-8 once it
/// is decoded, as an overlong `%C0%AE` is not (RFC 3629 section 10).
pub fn plain_path(path: &str) -> Result<(), TargetError> {
    plain_segments(path)?;
    match separated(path) {
        Some(separated) => plain_segments(&separated),
        None => Ok(()),
    }
}

/// The same path as a server has it that takes an encoded slash for one; `None` where there is none in it. Whoever decodes some of
/// them alone finds no dot segment or empty one that this has not.
#[must_use]
pub fn separated(path: &str) -> Option<String> {
    let has = |path: &str| path.as_bytes().windows(3).any(|three| three.eq_ignore_ascii_case(b"%2f"));
    (path.contains('%') && has(path)).then(|| path.replace("%2F", "/").replace("%2f", "/"))
}

fn plain_segments(path: &str) -> Result<(), TargetError> {
    let Some(path) = path.strip_prefix('/') else { return Err(TargetError::Path) };
    let mut segments = path.split('/').peekable();
    while let Some(segment) = segments.next() {
        // Some servers decode before they take parameters off, some after.
        let name =
            [";", "%3b", "%3B"].iter().fold(segment, |name, mark| name.split(*mark).next().unwrap_or(name));
        if segment.is_empty() && segments.peek().is_some()
            || matches!(name, "." | "..")
            || !segment.bytes().enumerate().all(|(n, b)| b != b'%' || encoded(segment, n).is_some_and(needed))
            || segment.contains('\\')
        {
            return Err(TargetError::Path);
        }
        is_text(segment)?;
    }
    Ok(())
}

/// Whether what a segment encodes is UTF-8.
fn is_text(segment: &str) -> Result<(), TargetError> {
    if !segment.contains('%') {
        return Ok(());
    }
    let mut decoded = Vec::with_capacity(segment.len());
    let mut at = 0;
    while let Some(b) = segment.as_bytes().get(at) {
        let byte = encoded(segment, at).filter(|_| *b == b'%');
        decoded.push(byte.unwrap_or(*b));
        at += if byte.is_some() { 3 } else { 1 };
    }
    std::str::from_utf8(&decoded).map(|_| ()).map_err(|_| TargetError::Path)
}

/// The byte that the percent sign at `at` encodes.
fn encoded(text: &str, at: usize) -> Option<u8> {
    let digits = text.get(at + 1..at + 3).filter(|d| d.bytes().all(|b| b.is_ascii_hexdigit()))?;
    u8::from_str_radix(digits, 16).ok()
}

/// Whether a byte must be encoded to mean itself in a path.
fn needed(b: u8) -> bool {
    !b.is_ascii_alphanumeric() && !matches!(b, b'-' | b'.' | b'_' | b'~' | b'\\')
}

/// Parses `host[:port]`, as in CONNECT targets and `Host` (RFC 9110 section 7.2). A bracketed host
/// keeps its brackets.
///
/// # Errors
/// On userinfo, an empty or overlong host, or a port that is not 1 to 65535 in plain digits.
pub fn authority(text: &str) -> Result<(&str, Option<u16>), TargetError> {
    if text.contains('@') {
        return Err(TargetError::UserInfo);
    }
    let (host, port) = if text.starts_with('[') {
        let end = text.find(']').ok_or(TargetError::Host)?;
        let (host, rest) = text.split_at_checked(end + 1).ok_or(TargetError::Host)?;
        match rest.strip_prefix(':') {
            Some(port) => (host, Some(port)),
            None if rest.is_empty() => (host, None),
            None => return Err(TargetError::Host),
        }
    } else {
        match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        }
    };
    let bad = |b: u8| !b.is_ascii_graphic() || matches!(b, b'/' | b'\\' | b'?' | b'#' | b',');
    if host.is_empty() || host.len() > HOST_BYTES_MAX || host.bytes().any(bad) {
        return Err(TargetError::Host);
    }
    Ok((host, port.map(port_number).transpose()?))
}

fn port_number(text: &str) -> Result<u16, TargetError> {
    let digits = (1..=PORT_DIGITS_MAX).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
    let port = if digits { text.parse().ok() } else { None };
    port.filter(|p| *p != 0).ok_or(TargetError::Port)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(method: &str, target: &str, want: Result<Target<'_>, TargetError>) {
        assert_eq!(parse(method, target.as_bytes()), want, "{method} {target}");
    }

    #[test]
    fn connect_takes_host_and_port_and_nothing_else() {
        let ok = |host, port| Ok(Target::Authority { host, port });
        check("CONNECT", "api.test:443", ok("api.test", 443));
        check("CONNECT", "API.test.:443", ok("API.test.", 443));
        check("CONNECT", "[2001:db8::1]:443", ok("[2001:db8::1]", 443));
        check("CONNECT", "[denied.test]:443", ok("[denied.test]", 443));
        check("CONNECT", "2130706433:80", ok("2130706433", 80));
        for (target, error) in [
            ("api.test", TargetError::Port),
            ("api.test:", TargetError::Port),
            ("api.test:0", TargetError::Port),
            ("api.test:+443", TargetError::Port),
            ("api.test:65536", TargetError::Port),
            ("api.test:000443", TargetError::Port),
            ("api.test:0x1bb", TargetError::Port),
            ("a:b:443", TargetError::Port),
            ("::1:443", TargetError::Host),
            (":443", TargetError::Host),
            ("[::1:443", TargetError::Host),
            ("[::1]443", TargetError::Host),
            ("allowed@evil:443", TargetError::UserInfo),
            ("a:b@evil:443", TargetError::UserInfo),
            ("evil/allowed.test:443", TargetError::Host),
            ("https://api.test:443", TargetError::Port),
            ("evil\\allowed.test:443", TargetError::Bytes),
            ("evil#allowed.test:443", TargetError::Bytes),
            ("a b:443", TargetError::Bytes),
            ("a\t:443", TargetError::Bytes),
            ("b\u{fc}cher.test:443", TargetError::Bytes),
            ("a,b:443", TargetError::Host),
            ("", TargetError::Host),
        ] {
            check("CONNECT", target, Err(error));
        }
        check("CONNECT", &format!("{}:443", "a".repeat(513)), Err(TargetError::Host));
    }

    #[test]
    fn the_other_forms() {
        check("GET", "/a?b", Ok(Target::Origin("/a?b")));
        check("GET", "//evil/a", Ok(Target::Origin("//evil/a")));
        check("OPTIONS", "*", Ok(Target::Asterisk));
        check("GET", "*", Err(TargetError::Form));
        check("GET", "a.test:80", Err(TargetError::Form));
        let absolute = |host, port, path| Ok(Target::Absolute { is_tls: false, host, port, path });
        check("GET", "http://a.test/p?q", absolute("a.test", None, "/p?q"));
        check("GET", "HTTP://a.test:8080", absolute("a.test", Some(8080), ""));
        check("GET", "http://a.test?q", absolute("a.test", None, "?q"));
        check("GET", "http://[::1]:80/", absolute("[::1]", Some(80), "/"));
        let secure = |host, port, path| Ok(Target::Absolute { is_tls: true, host, port, path });
        check("GET", "HTTPS://a.test/p", secure("a.test", None, "/p"));
        check("OPTIONS", "https://a.test:8443", secure("a.test", Some(8443), ""));
        check("GET", "ftp://a.test/", Err(TargetError::Scheme));
        check("GET", "wss://a.test/", Err(TargetError::Scheme));
        check("GET", "http://allowed@evil/", Err(TargetError::UserInfo));
        check("GET", "http:///x", Err(TargetError::Host));
        check("GET", "http://a.test\\@evil/", Err(TargetError::Bytes));
        check("GET", "http://a.test/#f", Err(TargetError::Bytes));
        check("GET", "", Err(TargetError::Form));
        check("GET", "/a`b", Err(TargetError::Bytes));
        check("GET", "http://a.test/`", Err(TargetError::Bytes));
        check("GET", "/a?`", Ok(Target::Origin("/a?`")));
    }

    #[test]
    fn a_path_leads_nowhere_else() {
        for path in [
            "/",
            "/a",
            "/a/",
            "/a/b.c",
            "/...",
            "/.well-known/x",
            "/a..b",
            "/a;p=1/b",
            "/%20",
            "/%C3%BC",
            "/a%3Ab",
            "/a%3ab%40%2B",
            "/%25",
            "/%E2%82%AC%F0%9F%98%80",
            "/a%252e",
            "/@scope%2fname",
            "/@scope%2Fname/-/name-1.0.0.tgz",
            "/projects/a%2Fb/files/c%2Fd%2f",
            "/a%252f..",
        ] {
            assert_eq!(plain_path(path), Ok(()), "{path}");
        }
        for path in [
            "",
            "a",
            "//",
            "//a",
            "/a//b",
            "/a//",
            "/.",
            "/./a",
            "/..",
            "/x/../a",
            "/a/.",
            "/a/..;p/b",
            "/.;p",
            "/..%3Bp/a",
            "/.%3b",
            "/%2e/a",
            "/%2E%2e/a",
            "/.%2e/a",
            "/%2e;p/a",
            "/%64enied",
            "/%7Ea",
            "/%2fa",
            "/a%2F%2fb",
            "/a/%2Fb",
            "/a%2F/b",
            "/..%2fa",
            "/a%2F..%2fb",
            "/a%2f.",
            "/a/..%2Fb",
            "/a%2F../b",
            "/a%2f..;p%2Fb",
            "/a%2F..%3bp/b",
            "/a%2F%2e%2e/b",
            "/a%5cb",
            "/a\\b",
            "/%",
            "/%4",
            "/%zz",
            "/a%",
            "/%+1",
            "/%c0%ae%c0%ae/a",
            "/%C0%AFa",
            "/%e0%80%ae",
            "/%F0%80%80%AE",
            "/%ff",
            "/%C3",
            "/%C3/%BC",
            "/%ED%A0%80",
            "/%F4%90%80%80",
        ] {
            assert_eq!(plain_path(path), Err(TargetError::Path), "{path}");
        }
    }
}
