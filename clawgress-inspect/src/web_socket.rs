//! Frames of a WebSocket (RFC 6455) as the messages they carry.
//!
//! Bytes come in as they do, in any pieces; what is told never depends on how they were cut. Memory is bounded by what one
//! message may have: a message that is longer is refused, as is everything that two readers could take for different things
//! (reserved bits, lengths that are not the shortest, a mask where none belongs or none where one does).

use std::str;

/// Most bytes of what a control frame carries (RFC 6455 section 5.5).
pub const CONTROL_BYTES_MAX: usize = 125;
/// Most bytes of the reason of a close.
const REASON_BYTES_MAX: usize = CONTROL_BYTES_MAX - 2;
/// Most bytes of a frame's head.
const HEAD_BYTES_MAX: usize = 14;
const FIN: u8 = 0x80;
const RESERVED: u8 = 0x70;
const MASKED: u8 = 0x80;

/// Why bytes are no frames that may go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// A bit that only an extension gives a meaning.
    #[error("a frame has a reserved bit set, and no extension was negotiated")]
    Reserved,
    /// A kind of frame that RFC 6455 does not have.
    #[error("a frame has the unknown opcode {0:#x}")]
    Opcode(u8),
    /// A client's frame without a mask, or a server's with one.
    #[error("a frame is masked, or not, against what its sender has to do")]
    Mask,
    /// Not the shortest form, or above 2^63.
    #[error("a frame's length is not written in the shortest form")]
    Length,
    /// In parts, or of more than [`CONTROL_BYTES_MAX`].
    #[error("a control frame is in parts, or has more than {CONTROL_BYTES_MAX} bytes")]
    Control,
    /// One that continues nothing, or a new message before the end of the last.
    #[error("a frame continues no message, or one begins before the last has ended")]
    Order,
    /// Of a text message, or of the reason of a close.
    #[error("a text is not UTF-8")]
    Text,
    /// A body of one byte, or a code that nobody may send.
    #[error("a close has no valid code")]
    Close,
    /// A message longer than may be held.
    #[error("a message is longer than may be held")]
    TooLong,
    /// Bytes behind a close.
    #[error("something follows a close")]
    Closed,
}

// === impl FrameError ===

impl FrameError {
    /// The status code by which a connection ends over it (RFC 6455 section 7.4.1).
    #[must_use]
    pub fn status(self) -> u16 {
        match self {
            FrameError::Text => 1007,
            FrameError::TooLong => 1009,
            _ => 1002,
        }
    }
}

/// Who sends the frames that are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sender {
    /// Masks each.
    Client,
    /// Masks none.
    Server,
}

/// What was read to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// A text, without its masks, put together of its parts.
    Text(Vec<u8>),
    /// Bytes, the same.
    Binary(Vec<u8>),
    /// `Ping`, which may come between the parts of a message.
    Ping(Vec<u8>),
    /// `Pong`, the same.
    Pong(Vec<u8>),
    /// The last of its sender.
    Close {
        /// Its code, if it has one.
        code: Option<u16>,
        /// The text behind that.
        reason: String,
    },
}

/// A frame whose head was read.
#[derive(Clone, Copy, Debug)]
struct Frame {
    kind: Kind,
    is_last: bool,
    mask: Option<[u8; 4]>,
    length: usize,
    /// How much of what it carries came.
    seen: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Continuation,
    Text,
    Binary,
    Close,
    Ping,
    Pong,
}

/// Reads one side of a connection.
#[derive(Debug)]
pub struct Reader {
    sender: Sender,
    message_bytes_max: usize,
    /// Whether what messages carry is kept.
    keeps: bool,
    /// Of a frame whose head is not whole.
    head: Vec<u8>,
    frame: Option<Frame>,
    /// What the message under way is, and what came of it.
    under_way: Option<Kind>,
    message: Vec<u8>,
    /// How much of it is known to be UTF-8.
    valid: usize,
    control: Vec<u8>,
    is_closed: bool,
    failed: Option<FrameError>,
}

// === impl Kind ===

impl Kind {
    fn of(opcode: u8) -> Result<Kind, FrameError> {
        match opcode {
            0x0 => Ok(Kind::Continuation),
            0x1 => Ok(Kind::Text),
            0x2 => Ok(Kind::Binary),
            0x8 => Ok(Kind::Close),
            0x9 => Ok(Kind::Ping),
            0xa => Ok(Kind::Pong),
            other => Err(FrameError::Opcode(other)),
        }
    }

    fn is_control(self) -> bool {
        matches!(self, Kind::Close | Kind::Ping | Kind::Pong)
    }
}

// === impl Message ===

impl Message {
    /// What it carries.
    #[must_use]
    pub fn carried(self) -> Vec<u8> {
        match self {
            Message::Text(bytes) | Message::Binary(bytes) | Message::Ping(bytes) | Message::Pong(bytes) => {
                bytes
            }
            Message::Close { reason, .. } => reason.into_bytes(),
        }
    }
}

// === impl Reader ===

impl Reader {
    /// Reads what `sender` sends; no message may have more than `message_bytes_max`.
    #[must_use]
    pub fn new(sender: Sender, message_bytes_max: usize) -> Reader {
        Reader {
            sender,
            message_bytes_max,
            keeps: true,
            head: Vec::with_capacity(HEAD_BYTES_MAX),
            frame: None,
            under_way: None,
            message: Vec::new(),
            valid: 0,
            control: Vec::new(),
            is_closed: false,
            failed: None,
        }
    }

    /// Reads what `sender` sends for where frames and messages end: of messages of any length, all of which come out empty.
    #[must_use]
    pub fn of_ends(sender: Sender) -> Reader {
        Reader { keeps: false, ..Reader::new(sender, usize::MAX) }
    }

    /// Whether a frame may be put between what came and what comes (RFC 6455 section 5.4 lets a control frame stand there).
    #[must_use]
    pub fn is_between_frames(&self) -> bool {
        self.failed.is_none() && self.head.is_empty() && self.frame.is_none()
    }

    /// Whether its sender has said its last.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.is_closed
    }

    /// Whether all that came belongs to what was told.
    #[must_use]
    pub fn is_between_messages(&self) -> bool {
        self.head.is_empty() && self.frame.is_none() && self.under_way.is_none()
    }

    /// What has come of the message under way, and whether it is a text.
    #[must_use]
    pub fn under_way(&self) -> Option<(&[u8], bool)> {
        self.under_way.map(|kind| (&self.message[..], kind == Kind::Text))
    }

    /// Bytes that are held.
    #[must_use]
    pub fn held(&self) -> usize {
        self.head.len() + self.message.len() + self.control.len()
    }

    /// Bytes of memory that are taken for them.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        self.head.capacity() + self.message.capacity() + self.control.capacity()
    }

    /// Takes of `bytes` up to the end of the next message: how many were taken, and the message, if it ended. To be called again
    /// with the rest.
    ///
    /// # Errors
    /// On everything that RFC 6455 has a reader fail the connection for, and on a message that is too long. All that follows is
    /// refused for the same.
    pub fn read(&mut self, bytes: &[u8]) -> Result<(usize, Option<Message>), FrameError> {
        if let Some(failed) = self.failed {
            return Err(failed);
        }
        let read = self.advance(bytes);
        if let Err(error) = read {
            self.failed = Some(error);
            (self.head, self.message, self.control) = (Vec::new(), Vec::new(), Vec::new());
        }
        read
    }

    fn advance(&mut self, bytes: &[u8]) -> Result<(usize, Option<Message>), FrameError> {
        let mut rest = bytes;
        loop {
            let mut frame = match self.frame.take() {
                Some(frame) => frame,
                None => match self.head(&mut rest)? {
                    Some(frame) => frame,
                    None => return Ok((bytes.len() - rest.len(), None)),
                },
            };
            self.carry(&mut frame, &mut rest);
            if frame.seen < frame.length {
                self.frame = Some(frame);
                return Ok((bytes.len(), None));
            }
            if let Some(message) = self.end(frame)? {
                return Ok((bytes.len() - rest.len(), Some(message)));
            }
        }
    }

    /// Takes bytes of a head, one by one, since each says how many there are; what is wrong is refused at the first byte that shows
    /// it.
    fn head(&mut self, rest: &mut &[u8]) -> Result<Option<Frame>, FrameError> {
        while let Some((byte, left)) = rest.split_first() {
            if self.is_closed {
                return Err(FrameError::Closed);
            }
            self.head.push(*byte);
            #[cfg(test)]
            crate::steps::add(self.head.len());
            *rest = left;
            if let Some(frame) = self.parse()? {
                self.head.clear();
                return Ok(Some(frame));
            }
        }
        Ok(None)
    }

    /// The frame of a head, once that is whole.
    fn parse(&self) -> Result<Option<Frame>, FrameError> {
        let Some((first, more)) = self.head.split_first() else { return Ok(None) };
        if first & RESERVED != 0 {
            return Err(FrameError::Reserved);
        }
        let (kind, is_last) = (Kind::of(first & 0x0f)?, first & FIN != 0);
        if kind.is_control() && !is_last {
            return Err(FrameError::Control);
        }
        let continues = kind == Kind::Continuation;
        if !kind.is_control() && continues != self.under_way.is_some() {
            return Err(FrameError::Order);
        }
        let Some((second, more)) = more.split_first() else { return Ok(None) };
        let is_masked = second & MASKED != 0;
        if is_masked != (self.sender == Sender::Client) {
            return Err(FrameError::Mask);
        }
        let short = second & !MASKED;
        if kind.is_control() && usize::from(short) > CONTROL_BYTES_MAX {
            return Err(FrameError::Control);
        }
        let (length, more) = match short {
            126 => match more.split_first_chunk::<2>() {
                Some((long, more)) => (u64::from(u16::from_be_bytes(*long)), more),
                None => return Ok(None),
            },
            127 => match more.split_first_chunk::<8>() {
                Some((long, more)) => (u64::from_be_bytes(*long), more),
                None => return Ok(None),
            },
            short => (u64::from(short), more),
        };
        let least = match short {
            126 => 126,
            127 => 1 << 16,
            _ => 0,
        };
        if length < least || length > i64::MAX.unsigned_abs() {
            return Err(FrameError::Length);
        }
        let length = usize::try_from(length).map_err(|_| FrameError::TooLong)?;
        if !kind.is_control() && length > self.message_bytes_max.saturating_sub(self.message.len()) {
            return Err(FrameError::TooLong);
        }
        let mask = match more.first_chunk::<4>() {
            Some(mask) => Some(*mask),
            None if is_masked => return Ok(None),
            None => None,
        };
        Ok(Some(Frame { kind, is_last, mask, length, seen: 0 }))
    }

    /// Takes what the frame carries, as far as it came.
    fn carry(&mut self, frame: &mut Frame, rest: &mut &[u8]) {
        let (carried, left) = rest.split_at(rest.len().min(frame.length - frame.seen));
        *rest = left;
        #[cfg(test)]
        crate::steps::add(carried.len());
        let to = if frame.kind.is_control() { &mut self.control } else { &mut self.message };
        if self.keeps || frame.kind.is_control() {
            let mask = frame.mask.unwrap_or_default();
            let keys = mask.iter().cycle().skip(frame.seen % mask.len());
            to.extend(carried.iter().zip(keys).map(|(byte, key)| byte ^ key));
        }
        frame.seen += carried.len();
        if matches!(frame.kind, Kind::Text | Kind::Binary) {
            self.under_way = Some(frame.kind);
        }
    }

    /// What the frame ends, if it does.
    fn end(&mut self, frame: Frame) -> Result<Option<Message>, FrameError> {
        match frame.kind {
            Kind::Ping => Ok(Some(Message::Ping(std::mem::take(&mut self.control)))),
            Kind::Pong => Ok(Some(Message::Pong(std::mem::take(&mut self.control)))),
            Kind::Close => {
                let body = std::mem::take(&mut self.control);
                self.is_closed = true;
                close(&body).map(Some)
            }
            Kind::Continuation | Kind::Text | Kind::Binary => {
                if self.under_way == Some(Kind::Text) {
                    self.check_text(frame.is_last)?;
                }
                if !frame.is_last {
                    return Ok(None);
                }
                self.valid = 0;
                let whole = std::mem::take(&mut self.message);
                let is_text = self.under_way.take() == Some(Kind::Text);
                Ok(Some(if is_text { Message::Text(whole) } else { Message::Binary(whole) }))
            }
        }
    }

    /// Whether a text is UTF-8 so far; a character may be cut by the end of a frame, but not by that of the message.
    fn check_text(&mut self, is_last: bool) -> Result<(), FrameError> {
        let new = self.message.get(self.valid..).unwrap_or_default();
        #[cfg(test)]
        crate::steps::add(1 + new.len());
        match str::from_utf8(new) {
            Ok(_) => self.valid = self.message.len(),
            Err(error) if error.error_len().is_none() && !is_last => self.valid += error.valid_up_to(),
            Err(_) => return Err(FrameError::Text),
        }
        Ok(())
    }
}

/// What a close carries.
fn close(body: &[u8]) -> Result<Message, FrameError> {
    let Some((code, reason)) = body.split_first_chunk::<2>() else {
        let is_empty = body.is_empty();
        return if is_empty {
            Ok(Message::Close { code: None, reason: String::new() })
        } else {
            Err(FrameError::Close)
        };
    };
    let code = u16::from_be_bytes(*code);
    // 1004, 1005, 1006 and 1015 are never sent; below 1000 and from 5000 on there is nothing (sections 7.4.1 and 7.4.2).
    if !matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999) {
        return Err(FrameError::Close);
    }
    let reason = str::from_utf8(reason).map_err(|_| FrameError::Text)?.to_owned();
    Ok(Message::Close { code: Some(code), reason })
}

/// A close, as `sender` sends it: with `mask`, if that is the client, and as much of `reason` as it has room for.
#[must_use]
pub fn close_frame(sender: Sender, code: u16, reason: &str, mask: [u8; 4]) -> Vec<u8> {
    let mut body = code.to_be_bytes().to_vec();
    body.extend_from_slice(
        reason.get(..reason.floor_char_boundary(REASON_BYTES_MAX)).unwrap_or_default().as_bytes(),
    );
    let length = u8::try_from(body.len()).unwrap_or_default();
    let mut frame = vec![FIN | 0x8];
    match sender {
        Sender::Server => {
            frame.push(length);
            frame.extend(body);
        }
        Sender::Client => {
            frame.push(MASKED | length);
            frame.extend(mask);
            frame.extend(body.iter().zip(mask.iter().cycle()).map(|(byte, key)| byte ^ key));
        }
    }
    frame
}

#[cfg(test)]
mod tests;
