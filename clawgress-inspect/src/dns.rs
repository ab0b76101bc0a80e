//! A DNS question (RFC 1035, RFC 6891) as an agent sends it.
//!
//! Stricter than the RFCs where nothing is lost: exactly one question, written without compression; at most one
//! record beside it, which is the OPT record; and not a byte that is not accounted for, since bytes that nobody reads
//! carry whatever somebody likes. Must never keep what it doesn't need: options of EDNS are checked for their form
//! and forgotten.

pub mod watch;

/// Largest question, bytes: a name and its header take 271, and clients pad to 128 or 468 bytes (RFC 8467).
pub const QUESTION_BYTES_MAX: usize = 512;
/// Longest name on the wire, bytes (RFC 1035 2.3.4).
const NAME_BYTES_MAX: usize = 255;
/// Longest label, bytes (RFC 1035 2.3.4). A longer length byte is a pointer or of an unknown kind.
const LABEL_BYTES_MAX: usize = 63;
/// Length of the header, bytes.
const HEADER_BYTES: usize = 12;
/// Class IN (RFC 1035 3.2.4).
const CLASS_IN: u16 = 1;
/// Type of the OPT record (RFC 6891 6.1.1).
const TYPE_OPT: u16 = 41;
/// Types from here on to the end of the range are questions alone, or of a connection: TKEY, TSIG, IXFR, AXFR, ANY
/// (RFC 6895 3.1).
const META_TYPES: std::ops::RangeInclusive<u16> = 128..=255;

/// A question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// What the answer has to say, too.
    pub id: u16,
    /// The name as it was sent, in wire format: the answer repeats its case.
    pub wire_name: Vec<u8>,
    /// The name in lower case without the last dot, if it is made of what host and service names are made of: letters,
    /// digits, `-` and `_`. None for the root, and for labels of anything else.
    pub name: Option<String>,
    /// The type asked for.
    pub kind: u16,
    /// Whether recursion is desired.
    pub recursion_desired: bool,
    /// What EDNS says, if there is any.
    pub edns: Option<Edns>,
}

/// What of EDNS counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Edns {
    /// Largest datagram that the client takes, bytes, as it says.
    pub payload_bytes: u16,
}

/// Why bytes are no question to be answered with what it asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DnsError {
    /// Too short to be answered, or an answer itself: to answer it could go on for ever.
    #[error("no question")]
    NoQuestion,
    /// Malformed.
    #[error("the question is malformed")]
    Malformed {
        /// Its id.
        id: u16,
    },
    /// An operation other than a standard query, another class than IN, or a transfer.
    #[error("an operation, class or type that is not forwarded")]
    Unsupported {
        /// Its id.
        id: u16,
        /// Its operation, which the answer repeats.
        operation: u8,
    },
    /// A version of EDNS other than 0.
    #[error("an unknown version of EDNS")]
    Version {
        /// Its id.
        id: u16,
    },
}

/// Reads a question.
///
/// # Errors
/// See [`DnsError`].
pub fn question(bytes: &[u8]) -> Result<Question, DnsError> {
    let mut rest = Bytes(bytes);
    let header: [u16; HEADER_BYTES / 2] = rest.words().ok_or(DnsError::NoQuestion)?;
    let [id, flags, questions, answers, authorities, additionals] = header;
    if flags & 0x8000 != 0 {
        return Err(DnsError::NoQuestion);
    }
    let malformed = DnsError::Malformed { id };
    let [operation, _] = (flags & 0x7800).to_be_bytes();
    let unsupported = DnsError::Unsupported { id, operation: operation >> 3 };
    if operation != 0 {
        return Err(unsupported);
    }
    // A question is never truncated.
    let is_truncated = flags & 0x0200 != 0;
    if bytes.len() > QUESTION_BYTES_MAX
        || is_truncated
        || (questions, answers, authorities) != (1, 0, 0)
        || additionals > 1
    {
        return Err(malformed);
    }
    let (wire_name, name) = rest.name().ok_or(malformed)?;
    let [kind, class] = rest.words().ok_or(malformed)?;
    if class != CLASS_IN || kind == 0 || kind == TYPE_OPT || META_TYPES.contains(&kind) {
        return Err(unsupported);
    }
    let edns = if additionals == 1 { Some(rest.opt(id)?) } else { None };
    if !rest.0.is_empty() {
        return Err(malformed);
    }
    Ok(Question { id, wire_name, name, kind, recursion_desired: flags & 0x0100 != 0, edns })
}

/// What is not read yet.
struct Bytes<'a>(&'a [u8]);

// === impl Bytes ===

impl<'a> Bytes<'a> {
    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(n)?;
        self.0 = rest;
        Some(taken)
    }

    fn words<const N: usize>(&mut self) -> Option<[u16; N]> {
        let bytes = self.take(N * 2)?;
        let mut words = [0; N];
        for (word, pair) in words.iter_mut().zip(bytes.chunks_exact(2)) {
            *word = pair.iter().fold(0, |word, byte| (word << 8) | u16::from(*byte));
        }
        Some(words)
    }

    /// A name without pointers: on the wire, and as text if it is one.
    fn name(&mut self) -> Option<(Vec<u8>, Option<String>)> {
        let (mut wire, mut text, mut is_text) = (Vec::new(), String::new(), true);
        loop {
            let length = *self.take(1)?.first()?;
            wire.push(length);
            if length == 0 {
                break;
            }
            if usize::from(length) > LABEL_BYTES_MAX {
                return None;
            }
            let label = self.take(usize::from(length))?;
            wire.extend_from_slice(label);
            if !text.is_empty() {
                text.push('.');
            }
            is_text &= label.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'));
            text.extend(label.iter().map(|b| char::from(b.to_ascii_lowercase())));
            if wire.len() >= NAME_BYTES_MAX {
                return None;
            }
        }
        is_text &= !text.is_empty();
        Some((wire, is_text.then_some(text)))
    }

    /// The OPT record.
    fn opt(&mut self, id: u16) -> Result<Edns, DnsError> {
        let malformed = DnsError::Malformed { id };
        let root = self.take(1).ok_or(malformed)?;
        let [kind, payload_bytes, version, _flags, length] = self.words().ok_or(malformed)?;
        if root != [0] || kind != TYPE_OPT {
            return Err(malformed);
        }
        let mut options = Bytes(self.take(usize::from(length)).ok_or(malformed)?);
        while !options.0.is_empty() {
            let [_code, length] = options.words().ok_or(malformed)?;
            options.take(usize::from(length)).ok_or(malformed)?;
        }
        // The upper byte extends the response code, which a question has none of.
        match version.to_be_bytes() {
            [0, 0] => Ok(Edns { payload_bytes }),
            [0, _] => Err(DnsError::Version { id }),
            _ => Err(malformed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A question for `www.Allowed.test`, type A.
    fn plain() -> Vec<u8> {
        let mut bytes = vec![0xbe, 0xef, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        bytes.extend(b"\x03www\x07Allowed\x04test\x00\x00\x01\x00\x01");
        bytes
    }

    fn with_opt(options: &[u8], version: u8) -> Vec<u8> {
        let mut bytes = plain();
        bytes[11] = 1;
        bytes.extend([0, 0, 41, 0x10, 0, 0, version, 0x80, 0]);
        bytes.extend(u16::try_from(options.len()).unwrap().to_be_bytes());
        bytes.extend(options);
        bytes
    }

    #[test]
    fn a_question_is_read_whole() {
        let read = question(&plain()).unwrap();
        assert_eq!((read.id, read.kind, read.recursion_desired, read.edns), (0xbeef, 1, true, None));
        assert_eq!(read.name.as_deref(), Some("www.allowed.test"));
        assert_eq!(read.wire_name, b"\x03www\x07Allowed\x04test\x00");
        // A cookie, and the client's own network.
        let options = b"\x00\x0a\x00\x08cookies!\x00\x08\x00\x07\x00\x01\x18\x00\xcb\x00\x71";
        let read = question(&with_opt(options, 0)).unwrap();
        assert_eq!(read.edns, Some(Edns { payload_bytes: 4096 }));
    }

    #[test]
    fn names_that_are_none_are_told() {
        for (label, name) in [
            ("_dmarc", Some("_dmarc.allowed.test")),
            ("a b", None),
            ("a.b", None),
            ("*", None),
            ("caf\u{e9}", None),
        ] {
            let mut bytes = vec![0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0];
            bytes.push(u8::try_from(label.len()).unwrap());
            bytes.extend(label.bytes());
            bytes.extend(b"\x07Allowed\x04test\x00\x00\x10\x00\x01");
            assert_eq!(question(&bytes).unwrap().name.as_deref(), name, "{label}");
        }
        let root = [0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 1];
        assert_eq!(question(&root).unwrap().name, None);
    }

    #[test]
    fn what_is_no_question_is_refused() {
        let changed = |at: usize, to: u8| {
            let mut bytes = plain();
            bytes[at] = to;
            bytes
        };
        let malformed = Err(DnsError::Malformed { id: 0xbeef });
        let unsupported = Err(DnsError::Unsupported { id: 0xbeef, operation: 0 });
        let update = Err(DnsError::Unsupported { id: 0xbeef, operation: 5 });
        let mut trailing = plain();
        trailing.push(0);
        let mut pointer = plain();
        pointer.splice(12..30, [0xc0, 12]);
        let mut long = plain();
        long.splice(
            12..12,
            std::iter::repeat_n(*b"\x3faaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", 4)
                .flatten(),
        );
        for (what, bytes, want) in [
            ("nothing", vec![], Err(DnsError::NoQuestion)),
            ("a part of a header", plain()[..11].to_vec(), Err(DnsError::NoQuestion)),
            ("an answer", changed(2, 0x81), Err(DnsError::NoQuestion)),
            ("an update", changed(2, 0x28), update),
            ("truncated", changed(2, 0x03), malformed.clone()),
            ("no question", changed(5, 0), malformed.clone()),
            ("two questions", changed(5, 2), malformed.clone()),
            ("an answer within", changed(7, 1), malformed.clone()),
            ("an authority", changed(9, 1), malformed.clone()),
            ("a record that is missing", changed(11, 1), malformed.clone()),
            ("a pointer", pointer, malformed.clone()),
            ("a label of an unknown kind", changed(12, 0x43), malformed.clone()),
            ("a name that is too long", long, malformed.clone()),
            ("class CHAOS", changed(33, 3), unsupported.clone()),
            ("a transfer", changed(31, 252), unsupported.clone()),
            ("ANY", changed(31, 255), unsupported.clone()),
            ("OPT as a question", changed(31, 41), unsupported),
            ("bytes behind it", trailing, malformed.clone()),
            ("another version", with_opt(&[], 1), Err(DnsError::Version { id: 0xbeef })),
            ("an option cut short", with_opt(&[0, 10, 0, 9, 1], 0), malformed.clone()),
            ("too large", with_opt(&[&[0, 12, 2, 0][..], &[0; 512]].concat(), 0), malformed),
        ] {
            assert_eq!(question(&bytes), want, "{what}");
        }
    }
}
