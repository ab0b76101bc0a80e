//! Frames of a client that carry nothing of a request: how many it may send, which each cost as much to read as to send.
//!
//! The `h2` crate answers PING and SETTINGS for as long as the client takes the answers, and minds neither what it does not know nor
//! windows that grow by a byte. Must never hold or change a byte: it looks at the heads of frames as they pass (RFC 9113 section 4.1).

use tokio::time::Instant;

use crate::limit;

/// Bytes of what a client begins with (RFC 9113 section 3.4).
const PREFACE_BYTES: usize = 24;
/// Bytes of a frame's head.
const HEAD_BYTES: usize = 9;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;

/// What it may send yet.
#[derive(Debug)]
pub struct Overhead {
    /// Bytes to the next head.
    skip: usize,
    head: [u8; HEAD_BYTES],
    /// How much of a head is there.
    have: usize,
    /// Frames that it may send, and as of when.
    left: f64,
    at: Instant,
}

// === impl Overhead ===

impl Overhead {
    /// Before the first byte of a connection.
    #[must_use]
    pub fn new(now: Instant) -> Overhead {
        let left = f64::from(limit::OVERHEAD_FRAMES_MAX);
        Overhead { skip: PREFACE_BYTES, head: [0; HEAD_BYTES], have: 0, left, at: now }
    }

    /// Notes what was sent to the client: it tells in return what it took of it.
    pub fn sent(&mut self, bytes: usize) {
        self.more(bytes as f64 / limit::OVERHEAD_BYTES_EACH);
    }

    /// Looks at the next bytes from the client: whether it sends no more frames that carry nothing than it may.
    pub fn keeps(&mut self, mut bytes: &[u8], now: Instant) -> bool {
        let since = now.saturating_duration_since(self.at);
        self.at = now;
        self.more(since.as_secs_f64() * f64::from(limit::OVERHEAD_FRAMES_PER_S));
        while !bytes.is_empty() {
            let skipped = self.skip.min(bytes.len());
            self.skip -= skipped;
            bytes = bytes.get(skipped..).unwrap_or_default();
            let wanted = HEAD_BYTES.saturating_sub(self.have).min(bytes.len());
            let (piece, rest) = bytes.split_at_checked(wanted).unwrap_or((bytes, &[]));
            if let Some(room) = self.head.get_mut(self.have..self.have + piece.len()) {
                room.copy_from_slice(piece);
            }
            (self.have, bytes) = (self.have + piece.len(), rest);
            if self.have == HEAD_BYTES {
                self.frame();
            }
        }
        self.left > 0.0
    }

    fn more(&mut self, frames: f64) {
        self.left = (self.left + frames).min(f64::from(limit::OVERHEAD_FRAMES_MAX));
    }

    /// Begins with a frame whose head is there.
    fn frame(&mut self) {
        let [high, middle, low, kind, ..] = self.head;
        self.have = 0;
        self.skip = u32::from_be_bytes([0, high, middle, low]) as usize;
        let carries = match kind {
            HEADERS => true,
            // Padding, too, is counted by the windows, or by the bound of a head.
            DATA | CONTINUATION => self.skip > 0,
            _ => false,
        };
        if !carries {
            self.left -= 1.0;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

    fn frame(kind: u8, payload: usize) -> Vec<u8> {
        let length = u32::try_from(payload).expect("short").to_be_bytes();
        [&length[1..], &[kind, 0, 0, 0, 0, 1], &vec![9; payload][..]].concat()
    }

    /// How many of `frames` it may send, read in pieces of `size` bytes.
    fn taken(frames: &[Vec<u8>], size: usize) -> usize {
        let now = Instant::now();
        let mut overhead = Overhead::new(now);
        assert!(PREFACE.chunks(size).all(|piece| overhead.keeps(piece, now)));
        frames.iter().take_while(|frame| frame.chunks(size).all(|piece| overhead.keeps(piece, now))).count()
    }

    #[test]
    fn what_carries_something_is_never_counted_and_the_rest_in_pieces_of_any_size() {
        let most = limit::OVERHEAD_FRAMES_MAX as usize;
        for size in [1, 8, 9, 10, 4096] {
            let requests: Vec<_> =
                (0..3 * most).map(|n| frame([DATA, HEADERS, CONTINUATION][n % 3], 1 + n % 40)).collect();
            assert_eq!(taken(&requests, size), requests.len(), "{size}");
            for (kind, payload) in [(6, 8), (4, 0), (8, 4), (3, 4), (2, 5), (0x77, 100), (DATA, 0)] {
                let flood = vec![frame(kind, payload); 2 * most];
                assert_eq!(taken(&flood, size), most - 1, "{kind} {payload} {size}");
            }
        }
    }

    #[test]
    fn it_comes_back_with_time_and_with_what_the_client_is_sent() {
        let began = Instant::now();
        let mut overhead = Overhead::new(began);
        let ping = frame(6, 8);
        overhead.keeps(PREFACE, began);
        while overhead.keeps(&ping, began) {}
        let later = began + Duration::from_secs(1);
        let again = (0..).take_while(|_| overhead.keeps(&ping, later)).count();
        assert_eq!(again, limit::OVERHEAD_FRAMES_PER_S as usize - 1);
        overhead.sent(320 * limit::OVERHEAD_BYTES_EACH as usize);
        let again = (0..).take_while(|_| overhead.keeps(&ping, later)).count();
        assert_eq!(again, 320 - 1, "a client that takes much has much to tell");
    }
}
