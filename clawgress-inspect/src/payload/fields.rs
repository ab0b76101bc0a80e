//! Fields of a document, one after the other: those that are too short to hold anything are not looked into. Must never take one for
//! short by the pieces that it comes in.

use super::hearing::Lane;
use super::layer::{Layer, Place};
use super::{Tally, Unreadable};

/// Longest field that can't hold anything that is looked for, bytes. A private key's first line has 27, a run 32, a list of
/// addresses more; the link of an image carries 20 behind a notation of four.
const SHORT_BYTES_MAX: usize = 23;
/// Digits that a field has fewer of where it is no number that is looked for: those of telephones have eight.
const DIGITS_MIN: usize = 8;

/// Least bytes that a number of a bank account has where it has as few digits as there are.
const ACCOUNT_BYTES_MIN: usize = 15;

/// What looks at one field after the other.
#[derive(Debug, Default)]
pub(super) struct Fields {
    layer: Option<Box<Layer>>,
    /// The lane that they are heard in.
    lane: Option<Lane>,
    /// Whether one is at hand, and whether the layer has it.
    has_begun: bool,
    is_open: bool,
    /// The field at hand, as long as it is short.
    short: [u8; SHORT_BYTES_MAX],
    count: usize,
}

// === impl Fields ===

impl Fields {
    /// Those of a document whose texts are heard in that lane.
    pub(super) fn heard_in(lane: Option<Lane>) -> Fields {
        Fields { lane, ..Fields::default() }
    }

    /// The next field begins.
    #[inline]
    pub(super) fn begin(&mut self, tally: &mut Tally) {
        (self.has_begun, self.is_open, self.count) = (true, false, 0);
        if let Some(lane) = self.lane {
            tally.hear_begins(lane);
        }
    }

    /// Whether one is at hand.
    pub(super) fn has_begun(&self) -> bool {
        self.has_begun
    }

    /// Some of it.
    #[inline]
    pub(super) fn push(&mut self, bytes: &[u8], place: Place, tally: &mut Tally) -> Result<(), Unreadable> {
        if !self.is_open {
            if self.count == 0 && is_dull(bytes) {
                self.short.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
                self.count = bytes.len();
                tally.looked_bytes += self.count as u64;
                return Ok(());
            }
            let (short, count) = (self.short, self.count);
            // Counted again by who looks at it.
            tally.looked_bytes -= count as u64;
            self.open(place).push(short.get(..count).unwrap_or_default(), tally)?;
        }
        self.layer.as_mut().map_or(Ok(()), |layer| layer.push(bytes, tally))
    }

    /// It ends, if one is at hand.
    #[inline]
    pub(super) fn end(&mut self, tally: &mut Tally) -> Result<(), Unreadable> {
        if !std::mem::take(&mut self.has_begun) {
            return Ok(());
        }
        match &mut self.layer {
            Some(layer) if self.is_open => layer.finish(tally),
            _ => {
                // All that is heard is, however short.
                if let Some(lane) = self.lane {
                    tally.hear(lane, self.short.get(..self.count).unwrap_or_default());
                    tally.hear_ends(lane);
                }
                Ok(())
            }
        }
    }

    pub(super) fn memory_bytes(&self) -> usize {
        self.layer.as_ref().map_or(0, |layer| layer.memory_bytes())
    }

    /// Has it looked into.
    fn open(&mut self, place: Place) -> &mut Layer {
        self.is_open = true;
        let lane = self.lane;
        match &mut self.layer {
            Some(layer) => layer.again(),
            layer => *layer = Some(Box::new(Layer::of_document(place, lane))),
        }
        self.layer.get_or_insert_with(|| Box::new(Layer::of_document(place, lane)))
    }
}

/// Whether nothing that is looked for is in a field that is this: not even a document, which begins like one.
fn is_dull(bytes: &[u8]) -> bool {
    let is_plain = |first: &u8| first.is_ascii_graphic() && !matches!(first, b'{' | b'[' | b'"');
    bytes.len() <= SHORT_BYTES_MAX
        && bytes.first().is_some_and(is_plain)
        && (bytes.len() < DIGITS_MIN || bytes.iter().filter(|b| b.is_ascii_digit()).count() < DIGITS_MIN)
        && (bytes.len() < ACCOUNT_BYTES_MIN || !has_country(bytes))
}

/// Whether it has two capitals and two digits behind them, as numbers of bank accounts begin: of some countries, the rest may be letters.
fn has_country(bytes: &[u8]) -> bool {
    bytes.windows(4).any(|four| {
        matches!(four, [a, b, c, d]
            if a.is_ascii_uppercase() && b.is_ascii_uppercase() && c.is_ascii_digit() && d.is_ascii_digit())
    })
}

#[cfg(test)]
mod tests {
    use crate::payload::{Claims, Finding, Inspector, Limits};

    /// Of some countries, most of a number may be letters: it is found whole as it is in pieces.
    #[test]
    fn accounts_of_few_digits_are_found_in_a_short_field() {
        for account in ["LU46001ABCDEFGHIJKLM", "KZ42125ABCDEFGHIJKLM", "CH7500762ABCDEFGHIJKZ"] {
            let body = format!("{{\"a\":\"{account}\",\"b\":\"x\"}}");
            for step in [body.len(), 1, 7, 12] {
                let claims = Claims::new(&[b"application/json"], &[]);
                let mut inspector = Inspector::new(claims, Limits::default());
                let read = body.as_bytes().chunks(step).try_for_each(|piece| inspector.push(piece));
                read.and_then(|()| inspector.finish()).expect("JSON");
                let found: Vec<_> = inspector.findings().map(Finding::name).collect();
                assert_eq!(found, ["iban"], "{account} by {step}");
            }
        }
    }
}
