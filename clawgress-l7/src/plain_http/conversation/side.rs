//! What one side of a WebSocket says: put together of its frames, looked at as it comes, and held until it may go on.
//!
//! INVARIANT: of what is held nothing goes on in the middle of a message; and what looks at one message knows nothing of another.

use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use clawgress_inspect::encoded::Piece;
use clawgress_inspect::llm::Provenance;
use clawgress_inspect::payload::{Claims, Inspector, Limits, Unreadable};
use clawgress_inspect::prompt::Rules;
use clawgress_inspect::web_socket::{FrameError, Message, Reader, Sender};
use clawgress_policy::effect::Obligation;
use tokio::time::Instant;

use crate::gateway::Gateway;
use crate::plain_http::content::LOOK_BYTES;
use crate::plain_http::web_socket::Reading;

/// Most bytes of memory of what looks at the next message while none comes: several times what one takes that has met nothing
/// packed. Like all that a connection takes anyway, it is not counted.
const SPARE_BYTES_MAX: usize = 64 * 1024;

/// What is held of a message at most.
#[derive(Clone, Copy, Debug)]
pub struct Hold {
    /// Bytes that it carries.
    pub bytes_max: usize,
    /// Until it is whole.
    pub time_max: Duration,
}

/// What one side says.
#[derive(Debug)]
pub struct Side {
    pub(super) reading: Reading,
    sender: Sender,
    reader: Reader,
    /// What came of messages that are not whole.
    held: BytesMut,
    /// Since when.
    began: Option<Instant>,
    looks: Looks,
    /// What looks at the message under way, and how much of it that has seen.
    looking: Option<(Inspector, usize)>,
    /// Whether it is not known where its frames end.
    is_lost: bool,
    /// Whether a close of it has gone on.
    has_closed: bool,
    /// Bytes of messages that were judged, and what was found in them.
    pub(super) bytes: u64,
    pub(super) findings: Vec<String>,
    /// What was enforced of it.
    pub(super) kept: Vec<Arc<Obligation>>,
    /// Whether texts are handed out.
    pub(super) tells: bool,
}

/// What comes of taking some of what a side says.
#[derive(Debug)]
pub enum Heard {
    /// There is no more.
    All,
    /// There is, and nothing to be asked yet.
    Part,
    /// A message has ended.
    Whole(Carried),
}

/// What is asked about a message.
#[derive(Debug)]
pub struct Carried {
    /// Bytes.
    pub bytes: u64,
    /// What was found in them.
    pub findings: Vec<String>,
    /// Texts in other clothes, to be counted with those of other messages.
    pub pieces: Vec<Piece>,
    /// The message itself, of a text that is read as a call.
    pub text: Option<Vec<u8>>,
}

/// Why what a side says can't be read.
#[derive(Clone, Copy, Debug)]
pub enum Unheard {
    /// It is not sound, or too long.
    Frame(FrameError),
    /// What it carries can't be.
    Content(Unreadable),
}

/// How messages are looked at.
#[derive(Debug)]
struct Looks {
    limits: Limits,
    /// By what is held against them what a model may be shown.
    rules: Option<Arc<Rules>>,
    /// What has looked at one, and whether that was a text.
    spare: Option<(Inspector, bool)>,
}

// === impl Looks ===

impl Looks {
    /// What looks at a message, as if at the first.
    fn begin(&mut self, is_text: bool) -> Inspector {
        if let Some((spare, _)) = self.spare.take_if(|(_, was_text)| *was_text == is_text) {
            return spare;
        }
        // Bytes are no text in a charset of more than a byte, however they begin.
        let kind: &[&[u8]] = if is_text { &[] } else { &[b"application/octet-stream"] };
        let inspector = Inspector::new(Claims::new(kind, &[]), self.limits);
        match &self.rules {
            // Clients take either kind of message for the same.
            Some(rules) => inspector.hearing(rules, Provenance::Retrieved).hearing_bytes(),
            None => inspector,
        }
    }

    /// Looks at the rest of a message; what was found in all of it.
    fn end(
        &mut self,
        mut inspector: Inspector,
        rest: &[u8],
        is_text: bool,
    ) -> Result<(Vec<String>, Vec<Piece>), Unreadable> {
        inspector.push(rest)?;
        inspector.finish()?;
        let mut findings: Vec<_> = inspector.findings().map(|finding| finding.name().to_owned()).collect();
        let assessed = inspector.assessment();
        findings.extend(assessed.iter().flat_map(|assessed| assessed.findings()).map(str::to_owned));
        let pieces = inspector.pieces().to_vec();
        inspector.again();
        if inspector.memory_bytes() <= SPARE_BYTES_MAX {
            self.spare = Some((inspector, is_text));
        }
        Ok((findings, pieces))
    }
}

// === impl Side ===

impl Side {
    /// What `sender` says, of which nothing has come.
    pub fn new(gateway: &Gateway, sender: Sender, reading: Reading, hold: Hold) -> Side {
        let reader = match reading {
            Reading::Unread => Reader::of_ends(sender),
            Reading::Told | Reading::Decides => Reader::new(sender, hold.bytes_max),
        };
        let content = &gateway.memory.content;
        let (decoded_bytes_max, ratio_max) =
            (content.decoded_bytes_max.get(), content.ratio_max.get().into());
        // What a server says may be shown to a model.
        let rules = (sender == Sender::Server).then(|| gateway.calls.rules());
        let looks = Looks { limits: Limits { decoded_bytes_max, ratio_max }, rules, spare: None };
        Side {
            reading,
            sender,
            reader,
            held: BytesMut::new(),
            began: None,
            looks,
            looking: None,
            is_lost: false,
            has_closed: false,
            bytes: 0,
            findings: Vec::new(),
            kept: Vec::new(),
            tells: false,
        }
    }

    /// Notes where frames end, of what passes.
    pub fn track(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        while !self.is_lost && !rest.is_empty() {
            match self.reader.read(rest) {
                Ok((taken, _)) => rest = rest.get(taken..).unwrap_or_default(),
                Err(_) => self.is_lost = true,
            }
        }
        self.has_closed = self.reader.is_closed();
    }

    /// Takes what comes next, up to the end of a message, and no more than is looked at without letting others run.
    ///
    /// # Errors
    /// Why it can't be read.
    pub fn hear(&mut self, rest: &mut &[u8], hold: Hold) -> Result<Heard, Unheard> {
        let next = rest.get(..rest.len().min(LOOK_BYTES)).unwrap_or_default();
        if next.is_empty() {
            return Ok(Heard::All);
        }
        let (taken, message) = match self.reader.read(next) {
            // Behind its close nothing is a message.
            Err(FrameError::Closed) => return Ok(Heard::All),
            read => read.map_err(Unheard::Frame)?,
        };
        self.began.get_or_insert_with(Instant::now);
        self.held.extend_from_slice(next.get(..taken).unwrap_or_default());
        *rest = rest.get(taken..).unwrap_or_default();
        // Parts of nothing, and control frames between parts, add to what is held and to no message.
        if self.held.len() > hold.bytes_max.saturating_mul(2) {
            return Err(Unheard::Frame(FrameError::TooLong));
        }
        let heard = match message {
            None => self.look().map(|()| Heard::Part),
            Some(Message::Text(whole)) => self.end(&whole, true).map(Heard::Whole),
            Some(Message::Binary(whole)) => self.end(&whole, false).map(Heard::Whole),
            Some(control) => self.look_beside(control),
        };
        heard.map_err(Unheard::Content)
    }

    /// Looks at what came of the message under way.
    fn look(&mut self) -> Result<(), Unreadable> {
        let under_way = self.reader.under_way().filter(|(came, _)| !came.is_empty());
        let Some((came, is_text)) = under_way else { return Ok(()) };
        let (inspector, seen) = self.looking.get_or_insert_with(|| (self.looks.begin(is_text), 0));
        inspector.push(came.get(*seen..).unwrap_or_default())?;
        *seen = came.len();
        Ok(())
    }

    /// Looks at a message to its end.
    fn end(&mut self, whole: &[u8], is_text: bool) -> Result<Carried, Unreadable> {
        let bytes = whole.len() as u64;
        if whole.is_empty() {
            // It counts as a message, and there is nothing in it.
            return Ok(Carried { bytes, findings: Vec::new(), pieces: Vec::new(), text: None });
        }
        let (inspector, seen) = self.looking.take().unwrap_or_else(|| (self.looks.begin(is_text), 0));
        let rest = whole.get(seen..).unwrap_or_default();
        let (findings, pieces) = self.looks.end(inspector, rest, is_text)?;
        // Servers take either kind of message for the same.
        let text = self.tells.then(|| whole.to_vec());
        Ok(Carried { bytes, findings, pieces, text })
    }

    /// Looks at what a control frame carries, which may come in the middle of a message. One that carries nothing is none.
    fn look_beside(&mut self, control: Message) -> Result<Heard, Unreadable> {
        let is_text = matches!(control, Message::Close { .. });
        let carried = control.carried();
        if carried.is_empty() {
            return Ok(Heard::Part);
        }
        let inspector = self.looks.begin(is_text);
        let (findings, pieces) = self.looks.end(inspector, &carried, is_text)?;
        Ok(Heard::Whole(Carried { bytes: carried.len() as u64, findings, pieces, text: None }))
    }

    /// What of what is held may go on: up to the end of a message.
    pub fn release(&mut self, out: &mut BytesMut) {
        if self.reader.is_between_messages() {
            (self.began, self.has_closed) = (None, self.reader.is_closed());
            out.unsplit(self.held.split());
        }
    }

    /// Reads it no longer: what is held, and all that follows, passes.
    pub fn forgo(&mut self, out: &mut BytesMut, rest: &[u8]) {
        (self.reading, self.is_lost) = (Reading::Unread, true);
        out.unsplit(self.held.split());
        out.extend_from_slice(rest);
        (self.looking, self.looks.spare) = (None, None);
        // What it had of a message goes, too: where that ends nobody has to know.
        self.reader = Reader::of_ends(self.sender);
    }

    /// Lets nothing go on of what is held.
    pub fn drop_held(&mut self) {
        (self.held, self.looking) = (BytesMut::new(), None);
    }

    /// Until when what is held has to be whole, if anything is.
    pub fn due(&self, hold: Hold) -> Option<Instant> {
        self.began.filter(|_| !self.held.is_empty()).map(|began| began + hold.time_max)
    }

    /// Bytes of memory that it takes.
    pub fn memory_bytes(&self) -> usize {
        let looking = self.looking.as_ref().map_or(0, |(inspector, _)| inspector.memory_bytes());
        self.held.capacity() + self.reader.memory_bytes() + looking
    }

    /// Whether a close may follow what has gone on of it: at the end of a frame, and not behind another.
    pub fn takes_close(&self) -> bool {
        // Of what is read, only whole messages have.
        let is_between = self.reading != Reading::Unread || self.reader.is_between_frames();
        is_between && !self.is_lost && !self.has_closed
    }

    /// Notes a message that is judged.
    pub fn note(&mut self, carried: &Carried) {
        self.bytes += carried.bytes;
        self.note_found(&carried.findings);
    }

    /// Notes what is found.
    pub fn note_found(&mut self, findings: &[String]) {
        for finding in findings {
            if !self.findings.contains(finding) {
                self.findings.push(finding.clone());
            }
        }
    }
}
