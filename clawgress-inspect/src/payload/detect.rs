//! Detectors: what is looked for in the bytes of a body, of a part and of a field, as they stream by.
//!
//! Each is an automaton over single bytes, so that what it finds can't depend on the pieces they come in, and holds no more
//! than a bounded state. Must never keep what it was shown.

use super::Finding;
use super::personal::Personal;

/// What a private key begins with (RFC 7468 section 2), as OpenSSL, OpenSSH and PGP write it.
const BEGIN: &[u8] = b"-----BEGIN ";
/// Dashes at each end of that line.
const DASHES: usize = 5;
/// Longest label, bytes: the known ones have half of that.
const LABEL_BYTES_MAX: usize = 48;
/// How labels of private keys end.
const LABELS: [&[u8]; 2] = [b"PRIVATE KEY", b"PRIVATE KEY BLOCK"];

/// All detectors, on one run of bytes.
#[derive(Debug, Default)]
pub(super) struct Detectors {
    private_key: PrivateKey,
    personal: Personal,
}

/// Where in the first line of a private key the next byte is.
#[derive(Debug, Default)]
struct PrivateKey {
    /// Bytes of [`BEGIN`] that were seen.
    begun: usize,
    label: Vec<u8>,
    dashes: usize,
}

// === impl Detectors ===

impl Detectors {
    /// Looks at what comes next: a leaf, which nothing else is sure to be looked at in, or what is made of fields and parts.
    pub(super) fn scan(&mut self, bytes: &[u8], is_leaf: bool, found: &mut dyn FnMut(Finding)) {
        if self.private_key.scan(bytes) {
            found(Finding::PrivateKey);
        }
        self.personal.scan(bytes, is_leaf, found);
    }

    /// Makes them ready for the next.
    pub(super) fn clear(&mut self) {
        self.private_key = PrivateKey::default();
        self.personal.clear();
    }

    /// Ends what it looks at.
    pub(super) fn finish(&mut self, found: &mut dyn FnMut(Finding)) {
        self.personal.finish(found);
    }
}

// === impl PrivateKey ===

impl PrivateKey {
    fn scan(&mut self, mut bytes: &[u8]) -> bool {
        let mut found = false;
        while !bytes.is_empty() {
            if self.begun == 0 {
                // Nothing else can begin one.
                let Some(dash) = memchr::memchr(b'-', bytes) else { return found };
                bytes = bytes.get(dash..).unwrap_or_default();
            }
            let Some((byte, rest)) = bytes.split_first() else { break };
            found |= self.byte(*byte);
            bytes = rest;
        }
        found
    }

    fn byte(&mut self, byte: u8) -> bool {
        if self.begun < BEGIN.len() {
            self.begun = match BEGIN.get(self.begun) {
                Some(next) if *next == byte => self.begun + 1,
                // More dashes than five end in five.
                _ if byte == b'-' && self.begun == DASHES => DASHES,
                _ => usize::from(byte == b'-'),
            };
            return false;
        }
        if byte == b'-' && self.dashes + 1 == DASHES {
            *self = PrivateKey::default();
            return true;
        }
        let is_labelled = || LABELS.iter().any(|label| self.label.ends_with(label));
        if byte == b'-' && (self.dashes > 0 || is_labelled()) {
            self.dashes += 1;
            return false;
        }
        let is_of_label = byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b' ';
        if self.dashes == 0 && is_of_label && self.label.len() < LABEL_BYTES_MAX {
            self.label.push(byte);
            return false;
        }
        // What ended it may begin another: all but its last dashes is of no matter.
        let begun = if byte == b'-' { (self.dashes + 1).min(DASHES) } else { 0 };
        *self = PrivateKey { begun, ..PrivateKey::default() };
        false
    }
}
