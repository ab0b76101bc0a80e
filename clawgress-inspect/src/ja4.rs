//! JA4, the fingerprint of a TLS client by its hello (FoxIO's specification of JA4, of which this is the
//! form `JA4` for TLS over TCP).
//!
//! A signal, never a credential: whoever likes can send another program's hello.

use std::fmt::{self, Display, Formatter, Write as _};

use aws_lc_rs::digest::{SHA256, digest};

use crate::client_hello::{ClientHello, EXTENSION_ALPN, EXTENSION_SERVER_NAME};

/// Digits that are kept of each hash.
const HASH_DIGITS: usize = 12;
/// What stands for a hash of nothing.
const HASH_OF_NOTHING: [char; HASH_DIGITS] = ['0'; HASH_DIGITS];
/// Largest count that has a place.
const COUNT_MAX: usize = 99;
/// Bytes of the text: ten of the first part, and two hashes with their underscores.
const BYTES: usize = 10 + 2 * (1 + HASH_DIGITS);

/// A fingerprint, such as `t13d1516h2_8daaf6152771_e5627efa2ab1`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ja4([u8; BYTES]);

// === impl Ja4 ===

impl Ja4 {
    /// The fingerprint of `hello`.
    #[must_use]
    pub fn of(hello: &ClientHello) -> Self {
        let mut ciphers = without_grease(&hello.cipher_suites);
        let mut extensions = without_grease(&hello.extensions);
        let named = if extensions.contains(&EXTENSION_SERVER_NAME) { 'd' } else { 'i' };
        let (ciphers_n, extensions_n) = (ciphers.len().min(COUNT_MAX), extensions.len().min(COUNT_MAX));
        let [first, last] = ends(&hello.alpn_first);
        let mut text = String::with_capacity(BYTES);
        let version = version(hello);
        // Writing into a string can't fail.
        let _ = write!(text, "t{version}{named}{ciphers_n:02}{extensions_n:02}{first}{last}");
        ciphers.sort_unstable();
        extensions.sort_unstable();
        extensions.retain(|e| ![EXTENSION_SERVER_NAME, EXTENSION_ALPN].contains(e));
        let mut listed = hex(&extensions);
        let signatures = without_grease(&hello.signature_algorithms);
        if !listed.is_empty() && !signatures.is_empty() {
            listed.push('_');
            listed.push_str(&hex(&signatures));
        }
        for list in [hex(&ciphers), listed] {
            text.push('_');
            text.extend(hash(&list));
        }
        let mut bytes = [b'0'; BYTES];
        for (slot, byte) in bytes.iter_mut().zip(text.bytes()) {
            *slot = byte;
        }
        Ja4(bytes)
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        // Made of ASCII alone.
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

impl Display for Ja4 {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for Ja4 {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "Ja4({self})")
    }
}

/// Whether a value is one of those that are sent to keep servers tolerant (RFC 8701).
fn is_grease(value: u16) -> bool {
    let [high, low] = value.to_be_bytes();
    high == low && low & 0x0f == 0x0a
}

fn without_grease(values: &[u16]) -> Vec<u16> {
    values.iter().copied().filter(|v| !is_grease(*v)).collect()
}

/// The highest version that is offered; where no extension offers any, that of the hello.
fn version(hello: &ClientHello) -> &'static str {
    let offered = hello.supported_versions.iter().copied().filter(|v| !is_grease(*v)).max();
    match offered.unwrap_or(hello.legacy_version) {
        0x0304 => "13",
        0x0303 => "12",
        0x0302 => "11",
        0x0301 => "10",
        0x0300 => "s3",
        0x0002 => "s2",
        _ => "00",
    }
}

/// First and last character of the first ALPN name; of its hexadecimal form, where one of them is no letter or digit.
fn ends(name: &[u8]) -> [char; 2] {
    let (Some(first), Some(last)) = (name.first(), name.last()) else { return ['0', '0'] };
    if first.is_ascii_alphanumeric() && last.is_ascii_alphanumeric() {
        return [char::from(*first), char::from(*last)];
    }
    let digit = |n: u8| char::from_digit(u32::from(n), 16).unwrap_or('0');
    [digit(first >> 4), digit(last & 0x0f)]
}

/// Four digits each, with commas.
fn hex(values: &[u16]) -> String {
    let mut text = String::with_capacity(values.len() * 5);
    for value in values {
        if !text.is_empty() {
            text.push(',');
        }
        text.extend(value.to_be_bytes().into_iter().flat_map(digits));
    }
    text
}

/// Both digits of a byte, without a formatter: every hello takes over a hundred.
fn digits(byte: u8) -> [char; 2] {
    [byte >> 4, byte & 0x0f].map(|n| char::from(if n < 10 { b'0' + n } else { b'a' + n - 10 }))
}

/// The first digits of its hash.
fn hash(list: &str) -> [char; HASH_DIGITS] {
    let mut kept = HASH_OF_NOTHING;
    if !list.is_empty() {
        let digest = digest(&SHA256, list.as_bytes());
        for (slot, digit) in kept.iter_mut().zip(digest.as_ref().iter().copied().flat_map(digits)) {
            *slot = digit;
        }
    }
    kept
}

#[cfg(test)]
mod tests;
