//! The canonical destination: one spelling that drives policy, resolution, dialling and audit.
//!
//! Every other spelling of the same destination (case, trailing dot, IDNA, integer or octal IPv4,
//! IPv4-mapped IPv6) becomes that one here, or is refused. Must never resolve, and never guess: what
//! two parsers could read differently is an error.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use idna::AsciiDenyList;

use crate::address::canonical;

/// Longest spelling accepted, bytes. A canonical name has at most 253; one written in percent-free
/// Unicode may need a few times that before it shrinks to A-labels.
pub const HOST_TEXT_BYTES_MAX: usize = 1_024;
/// Longest canonical name, bytes (RFC 1035 2.3.4, less the length byte and the root label).
pub const NAME_BYTES_MAX: usize = 253;
/// Longest label, bytes (RFC 1035 2.3.4).
pub const LABEL_BYTES_MAX: usize = 63;
/// Most characters of a refused spelling that a message quotes.
const QUOTE_CHARS_MAX: usize = 80;

/// A canonical host: a lowercase A-label name without trailing dot, or an address.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Host {
    /// A DNS name.
    Name(String),
    /// An address literal; IPv4-mapped IPv6 is IPv4.
    Address(IpAddr),
}

/// Why a spelling was refused. The quoted spelling is escaped and shortened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HostError {
    /// Not a name or address.
    #[error("`{0}` is not a host name or address")]
    Syntax(String),
    /// A percent sign: decoding is never done, so that the host judged is the host sent.
    #[error("`{0}` has a percent sign: write the host without percent-encoding")]
    Percent(String),
    /// The last label is a number, but the whole is no IPv4 address.
    #[error("`{0}` ends in a number, but is not an IPv4 address")]
    Number(String),
    /// The name, or one of its labels, is empty or too long.
    #[error("`{0}` has an empty label, a label above 63 bytes or more than 253 bytes in all")]
    Length(String),
}

impl Host {
    /// Parses any spelling (case, trailing dot, IDNA, bracketed IPv6, integer, octal and hex IPv4,
    /// mapped IPv6) to the canonical one, by the WHATWG host rules, or refuses.
    ///
    /// Stricter than WHATWG where that is safer: no percent-decoding, only letters, digits, `-`, `_`
    /// and `.` after IDNA processing, and the DNS length limits. Wider in one place: an IPv6 address
    /// may come without brackets, which is how [`Display`](fmt::Display) prints it.
    ///
    /// # Errors
    /// If it is no valid name or address.
    pub fn parse(text: &str) -> Result<Host, HostError> {
        if text.is_empty() || text.len() > HOST_TEXT_BYTES_MAX {
            return Err(HostError::Length(quote(text)));
        }
        if text.contains('%') {
            return Err(HostError::Percent(quote(text)));
        }
        let syntax = || HostError::Syntax(quote(text));
        if let Some(rest) = text.strip_prefix('[') {
            let inner = rest.strip_suffix(']').ok_or_else(syntax)?;
            return inner.parse::<Ipv6Addr>().map(address_v6).map_err(|_| syntax());
        }
        if text.contains(':') {
            return text.parse::<Ipv6Addr>().map(address_v6).map_err(|_| syntax());
        }
        let ascii = idna::domain_to_ascii_cow(text.as_bytes(), AsciiDenyList::URL).map_err(|_| syntax())?;
        let name = ascii.strip_suffix('.').unwrap_or(&ascii);
        if ends_in_number(name) {
            let ip = ipv4(name).ok_or_else(|| HostError::Number(quote(text)))?;
            return Ok(Host::Address(IpAddr::V4(ip)));
        }
        if name.len() > NAME_BYTES_MAX || !name.split('.').all(|l| (1..=LABEL_BYTES_MAX).contains(&l.len())) {
            return Err(HostError::Length(quote(text)));
        }
        if name.bytes().all(is_name_byte) { Ok(Host::Name(name.to_owned())) } else { Err(syntax()) }
    }

    /// The host of an address: IPv4 if IPv4-mapped.
    #[must_use]
    pub fn from_address(ip: IpAddr) -> Host {
        Host::Address(canonical(ip))
    }

    /// The address, if it is one.
    #[must_use]
    pub fn address(&self) -> Option<IpAddr> {
        match self {
            Host::Name(_) => None,
            Host::Address(ip) => Some(*ip),
        }
    }

    /// Whether it is in the one spelling that [`Host::parse`] gives; a hand-made value may not be.
    pub(crate) fn is_canonical(&self) -> bool {
        match self {
            Host::Address(ip) => canonical(*ip) == *ip,
            Host::Name(name) => {
                (1..=NAME_BYTES_MAX).contains(&name.len())
                    && name.bytes().all(is_name_byte)
                    && name.split('.').all(|l| (1..=LABEL_BYTES_MAX).contains(&l.len()))
                    && !ends_in_number(name)
            }
        }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Host::Name(name) => f.write_str(name),
            Host::Address(ip) => ip.fmt(f),
        }
    }
}

fn address_v6(ip: Ipv6Addr) -> Host {
    Host::from_address(IpAddr::V6(ip))
}

fn is_name_byte(b: u8) -> bool {
    b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_' | b'.')
}

/// A user's spelling, safe for a message: escaped, and shortened.
pub(crate) fn quote(text: &str) -> String {
    let mut quoted = String::new();
    for c in text.chars().take(QUOTE_CHARS_MAX) {
        // Quotation marks are harmless between backticks, and policy text is full of them.
        if matches!(c, '"' | '\'') { quoted.push(c) } else { quoted.extend(c.escape_debug()) }
    }
    if text.chars().nth(QUOTE_CHARS_MAX).is_some() {
        quoted.push('…');
    }
    quoted
}

/// The WHATWG "ends in a number checker"; `name` has no trailing dot.
fn ends_in_number(name: &str) -> bool {
    let last = name.rsplit('.').next().unwrap_or(name);
    !last.is_empty() && (last.bytes().all(|b| b.is_ascii_digit()) || ipv4_number(last).is_some())
}

/// The WHATWG IPv4 parser: one to four parts, decimal, octal (`0…`) or hex (`0x…`); the last fills
/// what the others leave.
fn ipv4(name: &str) -> Option<Ipv4Addr> {
    let mut address: u64 = 0;
    let mut count: u32 = 0;
    let mut parts = name.split('.').peekable();
    while let Some(part) = parts.next() {
        let number = ipv4_number(part)?;
        count += 1;
        let (bytes, bound) = if parts.peek().is_some() {
            (1, 256)
        } else {
            let bytes = 5_u32.checked_sub(count)?;
            (bytes, 256_u64.pow(bytes))
        };
        if count > 4 || number >= bound {
            return None;
        }
        address = (address << (8 * bytes)) | number;
    }
    u32::try_from(address).ok().map(Ipv4Addr::from)
}

/// The WHATWG IPv4 number parser. `None` also for numbers above `u64`, which overflow anyway.
fn ipv4_number(part: &str) -> Option<u64> {
    if part.is_empty() {
        return None;
    }
    let (digits, radix) = match part.strip_prefix("0x").or_else(|| part.strip_prefix("0X")) {
        Some(hex) => (hex, 16),
        None if part.len() > 1 && part.starts_with('0') => (part, 8),
        None => (part, 10),
    };
    if digits.is_empty() {
        return Some(0);
    }
    if !digits.bytes().all(|b| char::from(b).is_digit(radix)) {
        return None;
    }
    // More digits than fit are an overflow, unless they are leading zeros.
    Some(u64::from_str_radix(digits, radix).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests;
