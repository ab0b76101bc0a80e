//! Content codings (RFC 9110 section 8.4.1): an incremental decoder in bounded memory.
//!
//! Input reaches the libraries in blocks of one size, whatever pieces it comes in, so that what is decoded, and where it
//! fails, can't depend on the pieces. Less than a block of input is held back. Must never hand out more than its caps.

use brotli_decompressor::{BrotliDecompressStream, BrotliResult, BrotliState, StandardAlloc};
use flate2::{Decompress, FlushDecompress, Status};
use zstd::stream::raw::{DParameter, Decoder as Zstd, InBuffer, Operation as _, OutBuffer};

use super::Unreadable;

/// Bytes of input that a library is given at once.
pub const BLOCK_BYTES: usize = 256;
/// Most members of gzip or frames of zstd: each makes the library begin anew, which costs more than a thousand of its bytes
/// do. Files that were packed in parallel have a member for each MiB or so.
pub const MEMBERS_MAX: u32 = 1024;
/// Bytes that are decoded at once: what a library fills before they are looked at.
const OUT_BYTES: usize = 16 * 1024;
/// Longest header of a frame of zstd, and longer than what the others are told apart by, bytes.
const HEADER_BYTES: usize = 18;
/// Decoded bytes from which on the ratio counts: short texts of one letter are no bombs.
const RATIO_FREE_BYTES: u64 = 1024 * 1024;
/// Largest window of zstd, as an exponent: what RFC 9659 asks every decoder of HTTP for, and allows none to exceed.
const ZSTD_WINDOW_LOG_MAX: u32 = 23;
/// Largest window of brotli, as an exponent (RFC 7932 section 9.1).
const BROTLI_WINDOW_LOG_MAX: u32 = 24;
/// What a decoder needs besides its window: tables, and the buffers here.
const INFLATE_BYTES: usize = 64 * 1024;
const BROTLI_BYTES: usize = 4 * 1024 * 1024;
const ZSTD_BYTES: usize = 768 * 1024;

/// A content coding that can be decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coding {
    /// RFC 1952.
    Gzip,
    /// zlib (RFC 1950); or deflate alone (RFC 1951), which some clients send under that name.
    Deflate,
    /// RFC 7932.
    Brotli,
    /// RFC 8878.
    Zstd,
}

/// Caps of one decoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caps {
    /// Most bytes that it may come to.
    pub bytes_max: u64,
    /// Most bytes for each byte of input, beyond the first MiB.
    pub ratio_max: u64,
}

/// A decoder of one body.
pub struct Decoder {
    coding: Coding,
    caps: Caps,
    engine: Engine,
    block: [u8; BLOCK_BYTES],
    filled: usize,
    /// Input given to the library, and what came out.
    read: u64,
    written: u64,
    /// Members or frames that began, and those of them that were not told yet.
    members: u32,
    members_new: u32,
    memory_bytes: usize,
    out: Box<[u8]>,
}

enum Engine {
    /// Nothing was read yet.
    Fresh,
    Inflate(Decompress),
    Brotli(Box<BrotliState<StandardAlloc, StandardAlloc, StandardAlloc>>),
    Zstd(Zstd<'static>),
    /// Between two members, or frames; or behind the only one.
    Ended,
}

/// What one call of a library did.
struct Run {
    read: usize,
    written: usize,
    ended: bool,
}

type Sink<'a> = &'a mut dyn FnMut(&[u8]) -> Result<(), Unreadable>;

// === impl Coding ===

impl Coding {
    /// The one of this name in `Content-Encoding`.
    #[must_use]
    pub fn named(name: &[u8]) -> Option<Coding> {
        let is = |known: &str| name.eq_ignore_ascii_case(known.as_bytes());
        match () {
            () if is("gzip") || is("x-gzip") => Some(Coding::Gzip),
            () if is("deflate") => Some(Coding::Deflate),
            () if is("br") => Some(Coding::Brotli),
            () if is("zstd") => Some(Coding::Zstd),
            () => None,
        }
    }

    /// The one whose file a body begins like: only those that begin unlike anything else.
    #[must_use]
    pub fn seen(head: &[u8]) -> Option<Coding> {
        match head {
            [0x1f, 0x8b, 8, ..] => Some(Coding::Gzip),
            // A frame, or one to be skipped, which a file may begin with.
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Some(Coding::Zstd),
            _ => None,
        }
    }

    /// Its name in `Content-Encoding`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Coding::Gzip => "gzip",
            Coding::Deflate => "deflate",
            Coding::Brotli => "br",
            Coding::Zstd => "zstd",
        }
    }
}

// === impl Decoder ===

impl std::fmt::Debug for Decoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Decoder { coding, read, written, .. } = self;
        f.debug_struct("Decoder")
            .field("coding", coding)
            .field("read", read)
            .field("written", written)
            .finish_non_exhaustive()
    }
}

impl Decoder {
    /// A decoder of a whole body.
    #[must_use]
    pub fn new(coding: Coding, caps: Caps) -> Decoder {
        Decoder {
            coding,
            caps,
            engine: Engine::Fresh,
            block: [0; BLOCK_BYTES],
            filled: 0,
            read: 0,
            written: 0,
            members: 0,
            members_new: 0,
            memory_bytes: OUT_BYTES,
            out: vec![0; OUT_BYTES].into_boxed_slice(),
        }
    }

    /// Which coding it decodes.
    #[must_use]
    pub fn coding(&self) -> Coding {
        self.coding
    }

    /// Bytes decoded so far.
    #[must_use]
    pub fn written(&self) -> u64 {
        self.written
    }

    /// Members or frames that began since it was asked last.
    pub fn take_members(&mut self) -> u32 {
        std::mem::take(&mut self.members_new)
    }

    /// Bytes of memory that it may take, as far as what was read says.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        self.memory_bytes
    }

    /// Decodes what comes next, but for less than a block.
    ///
    /// # Errors
    /// What `sink` says, or why it can't be decoded. It is beyond repair then.
    pub fn push(&mut self, mut input: &[u8], sink: Sink<'_>) -> Result<(), Unreadable> {
        while !input.is_empty() {
            let room = self.block.get_mut(self.filled..).unwrap_or_default();
            let n = room.len().min(input.len());
            let (now, later) = input.split_at_checked(n).unwrap_or((input, &[]));
            if let Some(room) = room.get_mut(..n) {
                room.copy_from_slice(now);
            }
            (self.filled, input) = (self.filled + n, later);
            if self.filled == BLOCK_BYTES {
                self.block(false, sink)?;
            }
        }
        Ok(())
    }

    /// Decodes the rest.
    ///
    /// # Errors
    /// As [`push`](Self::push); and [`Unreadable::CodingMalformed`] if it does not end here.
    pub fn finish(&mut self, sink: Sink<'_>) -> Result<(), Unreadable> {
        self.block(true, sink)?;
        match self.engine {
            // A body of no bytes is nothing, in any coding.
            Engine::Ended => Ok(()),
            Engine::Fresh if self.read == 0 => Ok(()),
            _ => Err(Unreadable::CodingMalformed),
        }
    }

    fn block(&mut self, is_last: bool, sink: Sink<'_>) -> Result<(), Unreadable> {
        let block = self.block;
        let mut input = block.get(..std::mem::take(&mut self.filled)).unwrap_or_default();
        self.read += input.len() as u64;
        while !input.is_empty() {
            let is_between = matches!(self.engine, Engine::Fresh | Engine::Ended);
            if is_between && !is_last && input.len() < HEADER_BYTES {
                // The header that follows is looked at whole.
                self.read -= input.len() as u64;
                self.filled = input.len();
                self.block.copy_within(BLOCK_BYTES - input.len().., 0);
                return Ok(());
            }
            match self.engine {
                Engine::Fresh => self.begin(input)?,
                Engine::Ended => match self.coding {
                    // Members and frames may follow one another, and nothing else.
                    Coding::Gzip | Coding::Zstd => self.begin(input)?,
                    Coding::Deflate | Coding::Brotli => return Err(Unreadable::CodingMalformed),
                },
                _ => {}
            }
            loop {
                let Run { read, written, ended } = self.run(input)?;
                #[cfg(test)]
                crate::steps::add(1 + read + written);
                input = input.get(read..).unwrap_or_default();
                self.hand_out(written, sink)?;
                if ended {
                    self.engine = Engine::Ended;
                    break;
                }
                // A library that filled the buffer may have more without further input.
                if written < OUT_BYTES && input.is_empty() {
                    break;
                }
                if read == 0 && written == 0 {
                    if input.is_empty() {
                        break;
                    }
                    return Err(Unreadable::CodingMalformed);
                }
            }
        }
        Ok(())
    }

    /// Begins a member or frame, which `input` is the first bytes of.
    fn begin(&mut self, input: &[u8]) -> Result<(), Unreadable> {
        (self.members, self.members_new) = (self.members + 1, self.members_new + 1);
        if self.members > MEMBERS_MAX {
            return Err(Unreadable::MembersTooMany);
        }
        let engine_bytes;
        (self.engine, engine_bytes) = match self.coding {
            Coding::Gzip => (Engine::Inflate(Decompress::new_gzip(15)), INFLATE_BYTES),
            // With and without zlib it would be something else.
            Coding::Deflate if is_polyglot(input) => return Err(Unreadable::CodingMalformed),
            Coding::Deflate => (Engine::Inflate(Decompress::new(is_zlib(input))), INFLATE_BYTES),
            Coding::Brotli => {
                let window = brotli_window_log(input.first().copied().unwrap_or_default());
                let window = window.filter(|log| *log <= BROTLI_WINDOW_LOG_MAX);
                let bytes = 1 << window.ok_or(Unreadable::WindowTooLarge)?;
                let alloc = StandardAlloc::default;
                let state = BrotliState::new_strict(alloc(), alloc(), alloc());
                (Engine::Brotli(Box::new(state)), BROTLI_BYTES + bytes)
            }
            Coding::Zstd => {
                let broken = |_| Unreadable::CodingMalformed;
                // A frame, or one to be skipped: what zstd was before it had a number, nobody sends.
                if !matches!(input, [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..]) {
                    return Err(Unreadable::CodingMalformed);
                }
                let mut zstd = Zstd::new().map_err(broken)?;
                zstd.set_parameter(DParameter::WindowLogMax(ZSTD_WINDOW_LOG_MAX)).map_err(broken)?;
                let window = zstd_window(input).unwrap_or(1 << ZSTD_WINDOW_LOG_MAX);
                if window > 1 << ZSTD_WINDOW_LOG_MAX {
                    return Err(Unreadable::WindowTooLarge);
                }
                (Engine::Zstd(zstd), ZSTD_BYTES + usize::try_from(window).unwrap_or(usize::MAX))
            }
        };
        self.memory_bytes = self.memory_bytes.max(OUT_BYTES + engine_bytes);
        Ok(())
    }

    fn run(&mut self, input: &[u8]) -> Result<Run, Unreadable> {
        let malformed = Unreadable::CodingMalformed;
        match &mut self.engine {
            Engine::Inflate(inflate) => {
                let (read, written) = (inflate.total_in(), inflate.total_out());
                let status = inflate.decompress(input, &mut self.out, FlushDecompress::None);
                let since = |now: u64, before: u64| usize::try_from(now - before).unwrap_or(usize::MAX);
                let (read, written) = (since(inflate.total_in(), read), since(inflate.total_out(), written));
                let ended = match status {
                    Ok(status) => status == Status::StreamEnd,
                    Err(_) => return Err(malformed),
                };
                Ok(Run { read, written, ended })
            }
            Engine::Brotli(state) => {
                let (mut left, mut read, mut room, mut written, mut total) =
                    (input.len(), 0, OUT_BYTES, 0, 0);
                let result = BrotliDecompressStream(
                    &mut left,
                    &mut read,
                    input,
                    &mut room,
                    &mut written,
                    &mut self.out,
                    &mut total,
                    state,
                );
                let ended = match result {
                    BrotliResult::ResultSuccess => true,
                    BrotliResult::NeedsMoreInput | BrotliResult::NeedsMoreOutput => false,
                    BrotliResult::ResultFailure => return Err(malformed),
                };
                Ok(Run { read, written, ended })
            }
            Engine::Zstd(zstd) => {
                let mut source = InBuffer::around(input);
                let mut sink = OutBuffer::around(&mut *self.out);
                let hint = zstd.run(&mut source, &mut sink).map_err(|_| malformed)?;
                Ok(Run { read: source.pos(), written: sink.pos(), ended: hint == 0 })
            }
            Engine::Fresh | Engine::Ended => Err(malformed),
        }
    }

    fn hand_out(&mut self, written: usize, sink: Sink<'_>) -> Result<(), Unreadable> {
        if written == 0 {
            return Ok(());
        }
        self.written += written as u64;
        if self.written > self.caps.bytes_max {
            return Err(Unreadable::TooLarge);
        }
        let fair = self.read.saturating_mul(self.caps.ratio_max);
        if self.written > RATIO_FREE_BYTES.saturating_add(fair) {
            return Err(Unreadable::RatioTooLarge);
        }
        sink(self.out.get(..written).unwrap_or_default())
    }
}

/// Whether bytes begin with a header of zlib (RFC 1950 section 2.2).
fn is_zlib(input: &[u8]) -> bool {
    let (Some(method), Some(flags)) = (input.first(), input.get(1)) else { return true };
    method & 0x0f == 8 && method >> 4 <= 7 && (u16::from(*method) << 8 | u16::from(*flags)) % 31 == 0
}

/// Whether bytes that begin like zlib are a stored block (RFC 1951 section 3.2.4) just as well: zlib's first byte always
/// begins one, so the length that follows tells.
fn is_polyglot(input: &[u8]) -> bool {
    let [_, a, b, c, d, ..] = input else { return false };
    is_zlib(input) && (*a, *b) == (!*c, !*d)
}

/// The window that a stream of brotli declares, as an exponent (RFC 7932 section 9.1); `None` for what is none.
fn brotli_window_log(first: u8) -> Option<u32> {
    let (n, m) = (u32::from(first >> 1 & 7), u32::from(first >> 4 & 7));
    match (first & 1, n, m) {
        (0, ..) => Some(16),
        (_, 0, 0) => Some(17),
        // What a large window begins with, which is no brotli of HTTP.
        (_, 0, 1) => None,
        (_, 0, m) => Some(8 + m),
        (_, n, _) => Some(17 + n),
    }
}

/// Bytes of the window that a frame of zstd declares (RFC 8878 section 3.1.1.1); `None` where that is not to be seen here.
fn zstd_window(input: &[u8]) -> Option<u64> {
    let [0x28, 0xb5, 0x2f, 0xfd, descriptor, rest @ ..] = input else { return None };
    let is_single = descriptor >> 5 & 1 == 1;
    if !is_single {
        let window = *rest.first()?;
        let base = 1_u64 << (10 + u32::from(window >> 3));
        return Some(base + base / 8 * u64::from(window & 7));
    }
    let dictionary = [0, 1, 2, 4].get(usize::from(descriptor & 3)).copied()?;
    let size = rest.get(dictionary..)?;
    let bytes = [1, 2, 4, 8].get(usize::from(descriptor >> 6)).copied()?;
    let size = size.get(..bytes)?;
    let size = size.iter().rev().fold(0_u64, |sum, byte| sum << 8 | u64::from(*byte));
    Some(if bytes == 2 { size + 256 } else { size }.max(1024))
}
