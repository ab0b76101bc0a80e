//! SOCKS 5: the messages of RFC 1928, and of the user name and password of RFC 1929.
//!
//! A message is whole, or more bytes are needed, or it is none: what is taken has one reading, and what follows it is
//! not looked at. Must never log the password: its buffer is wiped when dropped.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use zeroize::Zeroizing;

/// First byte of a greeting, of a request and of its reply.
pub const VERSION: u8 = 5;
/// First byte of a SOCKS 4 request.
pub const VERSION_4: u8 = 4;
/// Version of the negotiation of user name and password.
const LOGIN_VERSION: u8 = 1;
/// Most bytes of a message: two texts of 255 bytes, their lengths and a version.
pub const BYTES_MAX: usize = 513;

/// Ways for a client to prove itself that a greeting offers (RFC 1928 section 3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Methods {
    /// By nothing.
    pub none: bool,
    /// By user name and password.
    pub password: bool,
}

/// The way that the server chose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Method {
    /// See [`Methods::none`].
    None = 0,
    /// See [`Methods::password`].
    Password = 2,
    /// None that was offered: the client has to close.
    Unacceptable = 0xff,
}

/// A user name and a password.
#[derive(Clone, PartialEq, Eq)]
pub struct Login {
    /// The user name.
    pub user: String,
    /// The password; wiped when dropped.
    pub password: Zeroizing<String>,
}

/// What a request asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// What is to be done.
    pub command: Command,
    /// Where.
    pub destination: Destination,
    /// Never 0.
    pub port: u16,
}

/// What a request wants done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// A connection.
    Connect,
    /// A listener (`BIND`), or datagrams (`UDP ASSOCIATE`).
    Other(u8),
}

/// A destination as it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Destination {
    /// An address.
    Address(IpAddr),
    /// What should be a name: the canonical parser says whether it is one.
    Name(String),
}

/// Why bytes are no message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SocksError {
    /// Another version.
    #[error("not version 5 of SOCKS")]
    Version,
    /// A length, a reserved byte or a port that no client sends.
    #[error("a field has a value that RFC 1928 does not know")]
    Field,
    /// A kind of address that is not known.
    #[error("the kind of address is not known")]
    AddressKind,
    /// A text that is not UTF-8, or has control characters.
    #[error("a text is not printable UTF-8")]
    Text,
}

/// What a reply says (RFC 1928 section 6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Reply {
    /// It is done.
    Succeeded = 0,
    /// The server failed.
    Failure = 1,
    /// It is not permitted.
    NotAllowed = 2,
    /// The host can't be reached.
    HostUnreachable = 4,
    /// The host refused.
    Refused = 5,
    /// What is asked for is not there.
    CommandUnsupported = 7,
    /// Such addresses are not known.
    AddressUnsupported = 8,
}

/// A parsed message and its length; `None`: more bytes are needed.
pub type Parsed<T> = Result<Option<(usize, T)>, SocksError>;

/// The greeting that `bytes` start with.
///
/// # Errors
/// If it is none.
pub fn greeting(bytes: &[u8]) -> Parsed<Methods> {
    let [version, rest @ ..] = bytes else { return Ok(None) };
    if *version != VERSION {
        return Err(SocksError::Version);
    }
    let Some((methods, n)) = counted(rest)? else { return Ok(None) };
    let has = |method: Method| methods.contains(&(method as u8));
    Ok(Some((1 + n, Methods { none: has(Method::None), password: has(Method::Password) })))
}

/// The user name and password that `bytes` start with.
///
/// # Errors
/// If there are none.
pub fn login(bytes: &[u8]) -> Parsed<Login> {
    let [version, rest @ ..] = bytes else { return Ok(None) };
    if *version != LOGIN_VERSION {
        return Err(SocksError::Version);
    }
    let Some((user, n)) = counted(rest)? else { return Ok(None) };
    let Some((password, m)) = counted(rest.get(n..).unwrap_or_default())? else { return Ok(None) };
    let password = Zeroizing::new(text(password)?.to_owned());
    Ok(Some((1 + n + m, Login { user: text(user)?.to_owned(), password })))
}

/// The request that `bytes` start with.
///
/// # Errors
/// If it is none.
pub fn request(bytes: &[u8]) -> Parsed<Request> {
    match bytes {
        [version, ..] if *version != VERSION => return Err(SocksError::Version),
        [_, _, reserved, ..] if *reserved != 0 => return Err(SocksError::Field),
        _ => {}
    }
    let [_, command, _, kind, rest @ ..] = bytes else { return Ok(None) };
    let found = match kind {
        1 => rest.first_chunk::<4>().map(|ip| (Destination::Address(Ipv4Addr::from(*ip).into()), 4)),
        4 => rest.first_chunk::<16>().map(|ip| (Destination::Address(Ipv6Addr::from(*ip).into()), 16)),
        3 => match counted(rest)? {
            Some((name, n)) => Some((Destination::Name(text(name)?.to_owned()), n)),
            None => None,
        },
        _ => return Err(SocksError::AddressKind),
    };
    let Some((destination, n)) = found else { return Ok(None) };
    let Some(port) = rest.get(n..).and_then(|rest| rest.first_chunk::<2>()) else { return Ok(None) };
    let port = u16::from_be_bytes(*port);
    if port == 0 {
        return Err(SocksError::Field);
    }
    let command = if *command == 1 { Command::Connect } else { Command::Other(*command) };
    Ok(Some((4 + n + 2, Request { command, destination, port })))
}

/// Bytes behind their count, which is never 0, and how many bytes both take.
fn counted(bytes: &[u8]) -> Result<Option<(&[u8], usize)>, SocksError> {
    let [count, rest @ ..] = bytes else { return Ok(None) };
    if *count == 0 {
        return Err(SocksError::Field);
    }
    let count = usize::from(*count);
    Ok(rest.get(..count).map(|counted| (counted, 1 + count)))
}

fn text(bytes: &[u8]) -> Result<&str, SocksError> {
    let text = std::str::from_utf8(bytes).map_err(|_| SocksError::Text)?;
    if text.chars().any(char::is_control) { Err(SocksError::Text) } else { Ok(text) }
}

/// The answer to a greeting.
#[must_use]
pub fn choice(method: Method) -> [u8; 2] {
    [VERSION, method as u8]
}

/// The answer to a user name and a password.
#[must_use]
pub fn login_answer(is_right: bool) -> [u8; 2] {
    [LOGIN_VERSION, u8::from(!is_right)]
}

/// The answer to a request. From which address the server goes on is nobody's business: it says the unspecified one.
#[must_use]
pub const fn reply(reply: Reply) -> [u8; 10] {
    [VERSION, reply as u8, 0, 1, 0, 0, 0, 0, 0, 0]
}

// === impl Login ===

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Login").field("user", &self.user).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What every part of `whole` asks for, and `whole` with something behind it.
    #[track_caller]
    fn check<T: PartialEq + fmt::Debug>(whole: &[u8], parse: fn(&[u8]) -> Parsed<T>, want: T) {
        for n in 0..whole.len() {
            assert_eq!(parse(&whole[..n]), Ok(None), "{n} bytes");
        }
        assert_eq!(parse(&[whole, b"\x05more"].concat()), Ok(Some((whole.len(), want))));
    }

    #[test]
    fn messages_are_taken_whole() {
        check(b"\x05\x01\x00", greeting, Methods { none: true, password: false });
        check(b"\x05\x03\x01\x02\x00", greeting, Methods { none: true, password: true });
        check(b"\x05\x01\x01", greeting, Methods::default());
        let login_of = |user: &str, password: &str| Login {
            user: user.to_owned(),
            password: Zeroizing::new(password.to_owned()),
        };
        check(b"\x01\x03web\x02k:", login, login_of("web", "k:"));
        let to = |destination, port| Request { command: Command::Connect, destination, port };
        check(b"\x05\x01\x00\x03\x03a.b\x01\xbb", request, to(Destination::Name("a.b".to_owned()), 443));
        check(
            b"\x05\x01\x00\x01\xc0\x00\x02\x01\x00\x50",
            request,
            to(Destination::Address([192, 0, 2, 1].into()), 80),
        );
        let six = [&b"\x05\x01\x00\x04"[..], &Ipv6Addr::LOCALHOST.octets(), b"\x00\x16"].concat();
        check(&six, request, to(Destination::Address(Ipv6Addr::LOCALHOST.into()), 22));
        let bind = request(b"\x05\x02\x00\x01\xc0\x00\x02\x01\x00\x50");
        assert!(matches!(bind, Ok(Some((10, Request { command: Command::Other(2), .. })))));
    }

    #[test]
    fn what_is_none_is_refused_at_once() {
        assert_eq!(greeting(b"\x04"), Err(SocksError::Version));
        assert_eq!(greeting(b"\x05\x00"), Err(SocksError::Field));
        assert_eq!(login(b"\x05"), Err(SocksError::Version));
        assert_eq!(login(b"\x01\x00"), Err(SocksError::Field));
        assert_eq!(login(b"\x01\x01a\x00"), Err(SocksError::Field));
        assert_eq!(login(b"\x01\x01\xff\x01k"), Err(SocksError::Text));
        assert_eq!(login(b"\x01\x01a\x02k\n"), Err(SocksError::Text));
        assert_eq!(request(b"\x01"), Err(SocksError::Version));
        assert_eq!(request(b"\x05\x01\x01"), Err(SocksError::Field));
        assert_eq!(request(b"\x05\x01\x00\x02"), Err(SocksError::AddressKind));
        assert_eq!(request(b"\x05\x01\x00\x03\x00"), Err(SocksError::Field));
        assert_eq!(request(b"\x05\x01\x00\x03\x01\0\x00\x50"), Err(SocksError::Text));
        assert_eq!(request(b"\x05\x01\x00\x01\xc0\x00\x02\x01\x00\x00"), Err(SocksError::Field));
    }

    #[test]
    fn debug_shows_no_password() {
        let login = login(b"\x01\x03web\x06secret").expect("valid").expect("whole").1;
        assert!(!format!("{login:?}").contains("secret"));
    }
}
