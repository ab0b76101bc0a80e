//! Private keys without their first line, by their first bytes: in DER PKCS #8 (RFC 5958), PKCS #1 (RFC 8017) and SEC 1
//! (RFC 5915); and OpenSSH's own form (its PROTOCOL.key).

/// Bytes that tell one.
pub const HEAD_BYTES: usize = 16;

/// What OpenSSH's form begins with.
const OPENSSH: &[u8] = b"openssh-key-v1\0";

/// Whether bytes begin like a private key: OpenSSH's, or in DER a sequence of version 0 and an algorithm, or a modulus; or of version 1 and
/// the octets of a key.
#[must_use]
pub fn begins(der: &[u8]) -> bool {
    if der.starts_with(OPENSSH) {
        return true;
    }
    let Some(body) = inside(der, 0x30) else { return false };
    match body {
        // PKCS #8: version 0 or 1, then the algorithm's sequence, which begins with its identifier.
        [2, 1, 0 | 1, rest @ ..] if inside(rest, 0x30).is_some_and(|id| id.first() == Some(&6)) => true,
        // PKCS #1: version 0, then a modulus, whose length has more than one byte for all that are in use.
        [2, 1, 0, 2, 0x81 | 0x82, ..] => true,
        // SEC 1: version 1, then 28 to 66 octets.
        [2, 1, 1, 4, 28..=66, ..] => true,
        _ => false,
    }
}

/// What follows a tag and its length, as far as it is there.
fn inside(der: &[u8], tag: u8) -> Option<&[u8]> {
    let (first, rest) = der.split_first()?;
    if *first != tag {
        return None;
    }
    match rest.split_first()? {
        (0..=0x7f, rest) => Some(rest),
        (0x81, rest) => rest.get(1..),
        (0x82, rest) => rest.get(2..),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_begin_so_and_certificates_do_not() {
        let pkcs8 = [0x30, 0x82, 4, 0xbd, 2, 1, 0, 0x30, 13, 6, 9, 0x2a, 0x86, 0x48];
        let ed25519 = [0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22];
        let pkcs1 = [0x30, 0x82, 4, 0xa4, 2, 1, 0, 2, 0x82, 1, 1, 0];
        let sec1 = [0x30, 0x77, 2, 1, 1, 4, 0x20, 0x12];
        for der in [&pkcs8[..], &ed25519, &pkcs1, &sec1, b"openssh-key-v1\0\0\0\0\x04none"] {
            assert!(begins(der), "{der:x?}");
            // Cut short, it is none yet.
            assert!(!begins(&der[..4]));
        }
        let certificate = [0x30, 0x82, 3, 0x11, 0x30, 0x82, 1, 0xf9, 0xa0, 3, 2, 1, 2];
        let request = [0x30, 0x82, 2, 0x5a, 0x30, 0x82, 1, 0x42, 2, 1, 0, 0x30];
        let signature = [0x30, 0x45, 2, 0x21, 0, 0x9a];
        for der in [&certificate[..], &request, &signature, b"", b"0"] {
            assert!(!begins(der), "{der:x?}");
        }
    }
}
