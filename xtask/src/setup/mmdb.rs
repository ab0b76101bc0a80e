//! Writes files in the `MaxMind` DB format, version 2.0: from data that are published in another form, and
//! for tests. It knows what such files of ASNs and countries take, and no more.

use std::collections::HashMap;

/// Ends the data, begins the metadata.
const MARKER: &[u8] = b"\xab\xcd\xefMaxMind.com";
/// Zeros between tree and data.
const SEPARATOR_BYTES: u32 = 16;

/// One side of a node.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Record {
    Empty,
    Node(u32),
    Data(u32),
}

/// A file in the making.
pub struct Writer {
    nodes: Vec<[Record; 2]>,
    data: Vec<u8>,
    offsets: HashMap<Vec<u8>, u32>,
}

/// A string, encoded.
pub fn text(value: &str) -> Vec<u8> {
    let mut bytes = head(2, value.len());
    bytes.extend(value.as_bytes());
    bytes
}

/// A 32-bit number, encoded.
pub fn number(value: u32) -> Vec<u8> {
    let bytes = value.to_be_bytes();
    let short: Vec<u8> = bytes.into_iter().skip_while(|b| *b == 0).collect();
    [head(6, short.len()), short].concat()
}

/// A map of encoded values, encoded.
pub fn map(pairs: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let mut bytes = head(7, pairs.len());
    for (key, value) in pairs {
        bytes.extend(text(key));
        bytes.extend(value);
    }
    bytes
}

/// The control byte or bytes: a type below 8 and a size below 285.
fn head(kind: u8, size: usize) -> Vec<u8> {
    match u8::try_from(size) {
        Ok(size) if size < 29 => vec![kind << 5 | size],
        _ => vec![kind << 5 | 29, u8::try_from(size.saturating_sub(29)).unwrap_or(u8::MAX)],
    }
}

// === impl Writer ===

impl Writer {
    /// With nothing in it.
    pub fn new() -> Self {
        Writer { nodes: vec![[Record::Empty; 2]], data: Vec::new(), offsets: HashMap::new() }
    }

    /// Gives a network its record (encoded), in place of what its addresses had. IPv4 addresses are the
    /// first 2^32; their lengths are 96 more.
    pub fn insert(&mut self, first: u128, length: u8, record: &[u8]) {
        let next = u32::try_from(self.data.len()).unwrap_or(u32::MAX);
        let offset = *self.offsets.entry(record.to_vec()).or_insert_with(|| {
            self.data.extend(record);
            next
        });
        let mut at = 0_u32;
        for depth in 0..length {
            let side = usize::from(first >> (127 - depth) & 1 == 1);
            let new = u32::try_from(self.nodes.len()).unwrap_or(u32::MAX);
            let Some(record) = self.nodes.get_mut(at as usize).and_then(|node| node.get_mut(side)) else {
                return;
            };
            if depth + 1 == length {
                *record = Record::Data(offset);
                return;
            }
            match *record {
                Record::Node(node) => at = node,
                other => {
                    *record = Record::Node(new);
                    // What held for the whole holds for both halves.
                    self.nodes.push([other; 2]);
                    at = new;
                }
            }
        }
        // The whole space.
        if let Some(root) = self.nodes.first_mut() {
            *root = [Record::Data(offset); 2];
        }
    }

    /// Gives a range of addresses, both ends in it, its record.
    pub fn insert_range(&mut self, first: u128, last: u128, record: &[u8]) {
        let mut at = first;
        while at <= last {
            // The largest network that begins here and ends in the range.
            let mut bits = at.trailing_zeros().min(127);
            while bits > 0 && (at | ((1_u128 << bits) - 1)) > last {
                bits -= 1;
            }
            self.insert(at, 128 - u8::try_from(bits).unwrap_or(0), record);
            match at.checked_add(1_u128 << bits) {
                Some(next) => at = next,
                None => return,
            }
        }
    }

    /// The file.
    pub fn finish(self, database: &str, built_s: u32) -> Vec<u8> {
        let count = u32::try_from(self.nodes.len()).unwrap_or(u32::MAX);
        let mut bytes = Vec::with_capacity(self.nodes.len() * 8 + self.data.len() + 512);
        for record in self.nodes.iter().flatten() {
            let value = match record {
                Record::Empty => count,
                Record::Node(node) => *node,
                Record::Data(offset) => count + SEPARATOR_BYTES + offset,
            };
            bytes.extend(value.to_be_bytes());
        }
        bytes.extend([0; SEPARATOR_BYTES as usize]);
        bytes.extend(&self.data);
        bytes.extend(MARKER);
        // Types beyond seven take a byte more: 4 is an array, 2 a 64-bit number. Five is a 16-bit number.
        let short = |value: u8| vec![5 << 5 | 1, value];
        let languages = [vec![1, 4], text("en")].concat();
        let epoch = [vec![4, 2], built_s.to_be_bytes().to_vec()].concat();
        bytes.extend(map(&[
            ("binary_format_major_version", short(2)),
            ("binary_format_minor_version", vec![5 << 5]),
            ("build_epoch", epoch),
            ("database_type", text(database)),
            ("description", map(&[("en", text(database))])),
            ("ip_version", short(6)),
            ("languages", languages),
            ("node_count", number(count)),
            ("record_size", short(32)),
        ]));
        bytes
    }
}
