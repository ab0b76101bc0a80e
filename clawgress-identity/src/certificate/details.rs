//! What `rustls-webpki` does not tell of a certificate: its key usage, whether it is an authority, and each of its
//! alternative names, and when it ends. The same of revocation lists. Must only ever read what `rustls-webpki`
//! has taken, which is strict in DER and has refused extensions that are there twice.

use crate::certificate::CertificateError;

/// Most alternative names of a certificate.
const NAMES_MAX: usize = 64;

const BOOLEAN: u8 = 0x01;
const INTEGER: u8 = 0x02;
const BIT_STRING: u8 = 0x03;
const OCTET_STRING: u8 = 0x04;
const OID: u8 = 0x06;
const SEQUENCE: u8 = 0x30;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
/// `[0] EXPLICIT`, `[3] EXPLICIT`.
const VERSION: u8 = 0xa0;
const EXTENSIONS: u8 = 0xa3;
/// `[1]`, `[2]`, `[6] IMPLICIT IA5String` of a `GeneralName`.
const EMAIL: u8 = 0x81;
const DNS: u8 = 0x82;
const URI: u8 = 0x86;

/// id-ce-keyUsage, id-ce-subjectAltName, id-ce-basicConstraints (RFC 5280 section 4.2.1).
const KEY_USAGE: &[u8] = &[0x55, 0x1d, 15];
const ALTERNATIVE_NAMES: &[u8] = &[0x55, 0x1d, 17];
const BASIC_CONSTRAINTS: &[u8] = &[0x55, 0x1d, 19];

/// Bits of the first byte of a key usage, of which the first is the highest.
pub(crate) const DIGITAL_SIGNATURE: u8 = 0x80;
pub(crate) const KEY_CERT_SIGN: u8 = 0x04;
pub(crate) const CRL_SIGN: u8 = 0x02;

/// What a certificate says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Details<'a> {
    /// The first byte of the key usage, if there is one; the only later bit is of key agreement.
    pub(crate) key_usage: Option<u8>,
    pub(crate) is_authority: bool,
    /// The last second of its validity, Unix time.
    pub(crate) not_after_s: i64,
    pub(crate) uris: Vec<&'a str>,
    pub(crate) dns: Vec<&'a str>,
    pub(crate) emails: Vec<&'a str>,
}

/// Reads elements one after the other.
struct Der<'a>(&'a [u8]);

// === impl Details ===

impl<'a> Details<'a> {
    pub(crate) fn read(certificate: &'a [u8]) -> Result<Details<'a>, CertificateError> {
        Self::find(certificate).ok_or(CertificateError::Malformed)
    }

    fn find(certificate: &'a [u8]) -> Option<Details<'a>> {
        let mut certificate = Der(Der::only(certificate, SEQUENCE)?);
        let mut tbs = Der(certificate.expect(SEQUENCE)?);
        tbs.expect(VERSION)?;
        tbs.expect(INTEGER)?;
        // Signature algorithm, issuer.
        tbs.expect(SEQUENCE)?;
        tbs.expect(SEQUENCE)?;
        let mut validity = Der(tbs.expect(SEQUENCE)?);
        validity.time()?;
        let mut details = Details { not_after_s: validity.time()?, ..Details::default() };
        // Subject, public key.
        tbs.expect(SEQUENCE)?;
        tbs.expect(SEQUENCE)?;
        if tbs.0.is_empty() {
            return Some(details);
        }
        // Unique identifiers, which nobody has, would stand before them: refused, as by `rustls-webpki`.
        let mut extensions = Der(Der::only(Der::only(tbs.0, EXTENSIONS)?, SEQUENCE)?);
        while !extensions.0.is_empty() {
            let mut extension = Der(extensions.expect(SEQUENCE)?);
            let id = extension.expect(OID)?;
            if extension.0.first() == Some(&BOOLEAN) {
                extension.expect(BOOLEAN)?;
            }
            let value = Der::only(extension.0, OCTET_STRING)?;
            match id {
                KEY_USAGE => details.key_usage = Some(key_usage(value)?),
                BASIC_CONSTRAINTS => details.is_authority = is_authority(value)?,
                ALTERNATIVE_NAMES => details.read_names(value)?,
                _ => {}
            }
        }
        Some(details)
    }

    fn read_names(&mut self, value: &'a [u8]) -> Option<()> {
        let mut names = Der(Der::only(value, SEQUENCE)?);
        for _ in 0..NAMES_MAX {
            if names.0.is_empty() {
                return Some(());
            }
            let (tag, name) = names.next()?;
            let list = match tag {
                EMAIL => &mut self.emails,
                DNS => &mut self.dns,
                URI => &mut self.uris,
                _ => continue,
            };
            // An IA5String; control characters are in no name, and a NUL has cut names short elsewhere.
            let is_shown = name.iter().all(|b| (0x21..0x7f).contains(b)) && !name.is_empty();
            list.push(std::str::from_utf8(name).ok().filter(|_| is_shown)?);
        }
        names.0.is_empty().then_some(())
    }
}

/// What a revocation list says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListDetails {
    /// SHA-256 of its issuer's name, by which lists of one issuer are told from others'.
    pub issuer: String,
    /// SHA-256 of the list.
    pub hash: String,
    /// When it was made, Unix seconds.
    pub this_update_s: i64,
    /// From when on it clears nothing any more, Unix seconds.
    pub next_update_s: i64,
}

// === impl ListDetails ===

impl ListDetails {
    pub(crate) fn read(list: &[u8]) -> Option<ListDetails> {
        let mut outer = Der(Der::only(list, SEQUENCE)?);
        let mut tbs = Der(outer.expect(SEQUENCE)?);
        // Version, signature algorithm.
        tbs.expect(INTEGER)?;
        tbs.expect(SEQUENCE)?;
        let issuer = tbs.expect(SEQUENCE)?;
        Some(ListDetails {
            issuer: crate::token::hash(issuer),
            hash: crate::token::hash(list),
            this_update_s: tbs.time()?,
            next_update_s: tbs.time()?,
        })
    }
}

fn key_usage(value: &[u8]) -> Option<u8> {
    // The number of unused bits, and up to nine bits.
    match Der::only(value, BIT_STRING)? {
        [0..=7, first, ..] => Some(*first),
        _ => None,
    }
}

fn is_authority(value: &[u8]) -> Option<bool> {
    let mut constraints = Der(Der::only(value, SEQUENCE)?);
    if constraints.0.first() != Some(&BOOLEAN) {
        return Some(false);
    }
    // Anything but DER's two values is taken for what is worse for a client.
    Some(constraints.expect(BOOLEAN)? != [0])
}

// === impl Der ===

impl<'a> Der<'a> {
    /// The next element: its tag, and what is in it. Only definite lengths in their shortest form.
    fn next(&mut self) -> Option<(u8, &'a [u8])> {
        let (tag, rest) = self.0.split_first()?;
        let (first, mut rest) = rest.split_first()?;
        if tag & 0x1f == 0x1f {
            return None;
        }
        let length = match *first {
            short @ 0..=0x7f => usize::from(short),
            long @ 0x81..=0x83 => {
                let (bytes, after) = rest.split_at_checked(usize::from(long & 0x7f))?;
                rest = after;
                let length = bytes.iter().fold(0, |length, b| (length << 8) | usize::from(*b));
                if length < 0x80 || bytes.first() == Some(&0) {
                    return None;
                }
                length
            }
            _ => return None,
        };
        let (value, rest) = rest.split_at_checked(length)?;
        self.0 = rest;
        Some((*tag, value))
    }

    /// A `Time` (RFC 5280 section 4.1.2.5), Unix seconds.
    fn time(&mut self) -> Option<i64> {
        let (tag, text) = self.next()?;
        let digits = text.strip_suffix(b"Z").filter(|d| d.iter().all(u8::is_ascii_digit))?;
        let (century, digits) = match tag {
            UTC_TIME => {
                // Until 49 it is of this century.
                let is_late = digits.first().is_some_and(|tens| *tens >= b'5');
                (if is_late { 19 } else { 20 }, digits)
            }
            GENERALIZED_TIME => {
                let (century, digits) = digits.split_at_checked(2)?;
                (number(century), digits)
            }
            _ => return None,
        };
        let fields: Vec<i64> = digits.chunks(2).map(number).collect();
        let [year, month, day, hour, minute, second] = fields.try_into().ok()?;
        (digits.len() == 12).then_some(())?;
        Some(days(century * 100 + year, month, day) * 86_400 + hour * 3_600 + minute * 60 + second)
    }

    fn expect(&mut self, tag: u8) -> Option<&'a [u8]> {
        self.next().filter(|(found, _)| *found == tag).map(|(_, value)| value)
    }

    /// What is in the one element that `bytes` are.
    fn only(bytes: &'a [u8], tag: u8) -> Option<&'a [u8]> {
        let mut reader = Der(bytes);
        let value = reader.expect(tag)?;
        reader.0.is_empty().then_some(value)
    }
}

fn number(digits: &[u8]) -> i64 {
    digits.iter().fold(0, |n, digit| n * 10 + i64::from(digit - b'0'))
}

/// Days from 1970 to a date of the Gregorian calendar, whose years here begin in March.
fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    year * 365 + year / 4 - year / 100 + year / 400 + of_year - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_those_of_the_calendar() {
        for (tag, text, expected) in [
            (UTC_TIME, "700101000000Z", Some(0)),
            (UTC_TIME, "491231235959Z", Some(2_524_607_999)),
            (UTC_TIME, "500101000000Z", Some(-631_152_000)),
            (UTC_TIME, "260228235959Z", Some(1_772_323_199)),
            (UTC_TIME, "240229120000Z", Some(1_709_208_000)),
            (GENERALIZED_TIME, "20500101000000Z", Some(2_524_608_000)),
            (GENERALIZED_TIME, "20000229000000Z", Some(951_782_400)),
            (GENERALIZED_TIME, "21000301000000Z", Some(4_107_542_400)),
            (GENERALIZED_TIME, "99991231235959Z", Some(253_402_300_799)),
            (UTC_TIME, "20500101000000Z", None),
            (GENERALIZED_TIME, "500101000000Z", None),
            (UTC_TIME, "7001010000Z", None),
            (UTC_TIME, "70010100000Z", None),
            (UTC_TIME, "700101000000", None),
            (UTC_TIME, "700101000000+0100", None),
            (UTC_TIME, "7001010000-1Z", None),
            (UTC_TIME, "Z", None),
            (SEQUENCE, "700101000000Z", None),
        ] {
            let mut der = vec![tag, u8::try_from(text.len()).unwrap()];
            der.extend_from_slice(text.as_bytes());
            assert_eq!(Der(&der).time(), expected, "{text}");
        }
    }
}
