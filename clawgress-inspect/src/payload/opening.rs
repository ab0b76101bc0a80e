//! What a body begins with. Must never look beyond that.

/// How a body begins, whatever is said of it.
#[derive(Debug, Default)]
pub(super) struct Opening {
    /// Its first byte but for blanks and byte order marks, and whether another one came.
    pub(super) first: Option<u8>,
    is_over: bool,
    /// Whether a character takes more than one byte.
    pub(super) is_wide: bool,
}

// === impl Opening ===

impl Opening {
    /// What comes next.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        if self.is_over {
            return;
        }
        for byte in bytes {
            match (self.first, byte) {
                (Some(_), byte) => {
                    (self.is_over, self.is_wide) = (true, self.is_wide || *byte == 0);
                    return;
                }
                (None, b' ' | b'\t' | b'\r' | b'\n' | 0xef | 0xbb | 0xbf) => {}
                (None, 0 | 0xfe | 0xff) => self.is_wide = true,
                (None, byte) => self.first = Some(*byte),
            }
        }
    }

    /// Whether that is how a document of JSON does.
    pub(super) fn is_of_json(&self) -> bool {
        matches!(self.first, Some(b'{' | b'['))
    }
}
