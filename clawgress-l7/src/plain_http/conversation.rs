//! The messages of a WebSocket that is read: `send` and `receive` are asked of each before any of it goes on, and what may not go
//! on ends the connection by a close (RFC 6455 section 7) to both sides.
//!
//! INVARIANT: of a side whose messages decide, nothing goes on but whole messages that were judged, and the bytes that were
//! judged are the bytes that go on.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use clawgress_ebpf_common::DropReason;
use clawgress_inspect::llm::Provenance;
use clawgress_inspect::payload::{Claims, Inspector, Limits, Unreadable};
use clawgress_inspect::web_socket::{FrameError, Message, Reader, Sender, close_frame};
use clawgress_policy::Look;
use clawgress_policy::effect::{Effect, Obligation};
use pingora_error::{Error, ErrorType, Result as PingoraResult};
use pingora_proxy::Session;
use tokio::time::Instant;

use super::content::LOOK_BYTES;
use super::receive::Came;
use super::said::Said;
use super::web_socket::Reading;
use super::{App, Context, Granted, duties};
use crate::decide::Ruling;
use crate::exchange::Exchange;
use crate::gateway::Gateway;
use crate::limit;
use crate::memory::Charge;

/// Status of a close over what policy does not permit, and of one over what there is no room for now.
const POLICY_VIOLATION: u16 = 1008;
const TRY_AGAIN_LATER: u16 = 1013;
/// For both sides to answer a close.
const CLOSING: Duration = limit::DRAIN_BODY;

/// A WebSocket whose messages are read, or some.
#[derive(Debug)]
pub struct Conversation {
    client: Side,
    server: Side,
    hold: Hold,
    charge: Charge,
    /// What was enforced, of what is sent and of what comes back.
    kept: [Vec<Arc<Obligation>>; 2],
    ending: Option<Ending>,
}

/// What is held of a message at most.
#[derive(Clone, Copy, Debug)]
struct Hold {
    bytes_max: usize,
    time_max: Duration,
}

/// What one side says.
#[derive(Debug)]
struct Side {
    reading: Reading,
    reader: Reader,
    /// What came of messages that are not whole.
    held: BytesMut,
    /// Since when.
    began: Option<Instant>,
    /// Whether it is not known where its frames end.
    is_lost: bool,
    /// Whether a close of it has gone on.
    has_closed: bool,
    /// Bytes of messages that were judged, and what was found in them.
    bytes: u64,
    findings: Vec<String>,
}

/// A connection that ends.
#[derive(Debug)]
struct Ending {
    until: Instant,
    status: u16,
    why: String,
    is_server_told: bool,
}

/// Why no message goes on any more.
struct Stop {
    ruling: Ruling,
    status: u16,
    detail: Option<Box<str>>,
    /// Whether it is since something can't be read, and not what policy says of it.
    is_unreadable: bool,
}

// === impl Stop ===

impl Stop {
    fn ruled(ruling: Ruling) -> Stop {
        Stop { ruling, status: POLICY_VIOLATION, detail: None, is_unreadable: false }
    }

    fn unreadable(action: &'static str, reason: DropReason, status: u16) -> Stop {
        Stop { status, is_unreadable: true, ..Stop::ruled(Ruling::deny(action, reason)) }
    }

    fn frame(action: &'static str, error: FrameError) -> Stop {
        let more = if error == FrameError::TooLong { ": see `hold_bytes_max` in [content]" } else { "" };
        let detail = Some(format!("messages were not read: {error}{more}").into());
        Stop { detail, ..Stop::unreadable(action, DropReason::ContentUnreadable, error.status()) }
    }

    fn content(action: &'static str, why: Unreadable) -> Stop {
        let detail = Some(format!("a message was not read: {why}").into());
        Stop { detail, ..Stop::unreadable(action, DropReason::ContentUnreadable, POLICY_VIOLATION) }
    }

    fn memory(action: &'static str, reason: DropReason) -> Stop {
        Stop::unreadable(action, reason, TRY_AGAIN_LATER)
    }

    fn late(action: &'static str) -> Stop {
        Stop::unreadable(action, DropReason::Timeout, POLICY_VIOLATION)
    }
}

// === impl Side ===

impl Side {
    fn new(reading: Reading, sender: Sender, bytes_max: usize) -> Side {
        let reader = match reading {
            Reading::Unread => Reader::of_ends(sender),
            Reading::Told | Reading::Decides => Reader::new(sender, bytes_max),
        };
        Side {
            reading,
            reader,
            held: BytesMut::new(),
            began: None,
            is_lost: false,
            has_closed: false,
            bytes: 0,
            findings: Vec::new(),
        }
    }

    /// Notes where frames end, of what passes.
    fn track(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        while !self.is_lost && !rest.is_empty() {
            match self.reader.read(rest) {
                Ok((taken, _)) => rest = rest.get(taken..).unwrap_or_default(),
                Err(_) => self.is_lost = true,
            }
        }
        self.has_closed = self.reader.is_closed();
    }

    /// Takes what comes next, up to the end of a message; what that carries, if it is there, and whether it is text.
    fn next(&mut self, rest: &mut &[u8], hold: Hold) -> Result<Option<(Vec<u8>, bool)>, FrameError> {
        let (taken, message) = self.reader.read(rest)?;
        self.held.extend_from_slice(rest.get(..taken).unwrap_or_default());
        *rest = rest.get(taken..).unwrap_or_default();
        // Parts of nothing, and control frames between parts, add to what is held and to no message.
        if self.held.len() > hold.bytes_max.saturating_mul(2) {
            return Err(FrameError::TooLong);
        }
        Ok(message.map(|message| {
            let is_text = matches!(message, Message::Text(_) | Message::Close { .. });
            (message.carried(), is_text)
        }))
    }

    /// What of what is held may go on: up to the end of a message.
    fn release(&mut self, out: &mut BytesMut) {
        if self.reader.is_between_messages() {
            (self.began, self.has_closed) = (None, self.reader.is_closed());
            out.unsplit(self.held.split());
        }
    }

    /// Reads it no longer: what is held, and all that follows, passes.
    fn forgo(&mut self, out: &mut BytesMut, rest: &[u8]) {
        (self.reading, self.is_lost) = (Reading::Unread, true);
        out.unsplit(self.held.split());
        out.extend_from_slice(rest);
    }

    fn is_late(&mut self, hold: Hold) -> bool {
        if self.held.is_empty() {
            return false;
        }
        self.began.get_or_insert_with(Instant::now).elapsed() > hold.time_max
    }

    fn memory_bytes(&self) -> usize {
        self.held.capacity() + self.reader.memory_bytes()
    }

    /// Whether a close may follow what has gone on of it: at the end of a frame, and not behind another.
    fn takes_close(&self) -> bool {
        // Of what is read, only whole messages have.
        let is_between = self.reading != Reading::Unread || self.reader.is_between_frames();
        is_between && !self.is_lost && !self.has_closed
    }

    fn note(&mut self, bytes: u64, findings: &[String]) {
        self.bytes += bytes;
        for finding in findings {
            if !self.findings.contains(finding) {
                self.findings.push(finding.clone());
            }
        }
    }
}

// === impl Conversation ===

impl Conversation {
    /// The WebSocket that `granted` has opened, of which nothing has come yet.
    #[must_use]
    pub fn new(gateway: &Gateway, granted: &Granted) -> Conversation {
        let (content, reads) = (&gateway.memory.content, granted.reads());
        let bytes_max = usize::try_from(content.hold_bytes_max.get()).unwrap_or(usize::MAX);
        Conversation {
            client: Side::new(reads.sent, Sender::Client, bytes_max),
            server: Side::new(reads.received, Sender::Server, bytes_max),
            hold: Hold { bytes_max, time_max: Duration::from_secs(content.hold_s_max.get().into()) },
            charge: gateway.memory.charge(granted.who().identity.agent.index),
            kept: [Vec::new(), Vec::new()],
            ending: None,
        }
    }

    /// Notes in the record what was read.
    pub fn tell(&self, exchange: &mut Exchange) {
        exchange.found(self.client.findings.iter());
        if self.server.reading != Reading::Unread {
            let came = Came::message(self.server.bytes, self.server.findings.clone());
            exchange.answer(came.facts());
        }
    }

    fn charge(&mut self, more: usize) -> Result<(), DropReason> {
        self.charge.set(self.client.memory_bytes() + self.server.memory_bytes() + more)
    }

    /// Reads what the client says; what of it goes on.
    async fn hear_client(
        &mut self,
        (gateway, granted): (&Arc<Gateway>, &Granted),
        exchange: &mut Exchange,
        rest: &mut &[u8],
        out: &mut BytesMut,
    ) -> Result<(), Stop> {
        while !rest.is_empty() {
            let message = match self.client.next(rest, self.hold) {
                Ok(message) => message,
                // Behind its close nothing is a message.
                Err(FrameError::Closed) => return Ok(()),
                Err(error) => return Err(Stop::frame("send", error)),
            };
            let carried = message.as_ref().map_or(0, |(carried, _)| carried.capacity());
            self.charge(carried).map_err(|reason| Stop::memory("send", reason))?;
            if let Some((carried, is_text)) = message.filter(|(carried, _)| !carried.is_empty()) {
                self.judge_sent((gateway, granted), exchange, (&carried, is_text)).await?;
            }
            self.client.release(out);
        }
        let charged = self.charge(0);
        charged.map_err(|reason| Stop::memory("send", reason))?;
        if self.client.is_late(self.hold) {
            return Err(Stop::late("send"));
        }
        Ok(())
    }

    /// Asks `send` about a message.
    async fn judge_sent(
        &mut self,
        (gateway, granted): (&Arc<Gateway>, &Granted),
        exchange: &mut Exchange,
        (carried, is_text): (&[u8], bool),
    ) -> Result<(), Stop> {
        let mut inspector = Inspector::new(claims(is_text), limits(gateway));
        for part in carried.chunks(LOOK_BYTES) {
            inspector.push(part).map_err(|why| Stop::content("send", why))?;
            let taken = self.charge(carried.len() + inspector.memory_bytes());
            taken.map_err(|reason| Stop::memory("send", reason))?;
            tokio::task::yield_now().await;
        }
        inspector.finish().map_err(|why| Stop::content("send", why))?;
        let bytes = carried.len() as u64;
        let said = Said {
            looked: Look::Content,
            declared: Some(bytes),
            seen: bytes,
            complete: true,
            findings: inspector.findings().map(|finding| finding.name().to_owned()).collect(),
            has_body: true,
            // It was asked when this was opened.
            is_call_known: true,
            is_tool_known: true,
            ..Said::default()
        };
        self.client.note(bytes, &said.findings);
        let deny = |reason| Stop::ruled(Ruling::deny("send", reason));
        let plan = gateway.snapshots.current().map_err(deny)?;
        let who = granted.who().under(&plan, gateway.now_s()).map_err(deny)?;
        let ruling = said.rule(gateway, &plan, &who, granted.admitted());
        let before = granted.changes().unwrap_or_default();
        if ruling.verdict.is_ok() && ruling.transforms().is_some_and(|later| !before.covers(&later)) {
            let denied = Ruling::deny("send", DropReason::ContentUnreadable);
            return Err(Stop::ruled(Ruling { policies: ruling.policies, ..denied }));
        }
        let [kept, _] = &mut self.kept;
        // Each message counts.
        kept.retain(|obligation| !matches!(obligation.effect, Effect::Limit(_)));
        let ruling = duties::perform(gateway, exchange, kept, ruling).await;
        if ruling.verdict.is_ok() { Ok(()) } else { Err(Stop::ruled(ruling)) }
    }

    /// Reads what the server says; what of it goes on.
    fn hear_server(
        &mut self,
        (gateway, granted): (&Arc<Gateway>, &Granted),
        exchange: &mut Exchange,
        rest: &mut &[u8],
        out: &mut BytesMut,
    ) -> Result<(), Stop> {
        while !rest.is_empty() {
            let message = match self.server.next(rest, self.hold) {
                Ok(message) => message,
                Err(FrameError::Closed) => return Ok(()),
                Err(error) => return Err(Stop::frame("receive", error)),
            };
            let carried = message.as_ref().map_or(0, |(carried, _)| carried.capacity());
            self.charge(carried).map_err(|reason| Stop::memory("receive", reason))?;
            if let Some((carried, is_text)) = message.filter(|(carried, _)| !carried.is_empty()) {
                self.judge_received((gateway, granted), exchange, (&carried, is_text))?;
            }
            self.server.release(out);
        }
        let charged = self.charge(0);
        charged.map_err(|reason| Stop::memory("receive", reason))?;
        if self.server.is_late(self.hold) {
            return Err(Stop::late("receive"));
        }
        Ok(())
    }

    /// Asks `receive` about a message.
    fn judge_received(
        &mut self,
        (gateway, granted): (&Arc<Gateway>, &Granted),
        exchange: &mut Exchange,
        (carried, is_text): (&[u8], bool),
    ) -> Result<(), Stop> {
        // What a server says may be shown to a model.
        let inspector = Inspector::new(claims(is_text), limits(gateway));
        let mut inspector = inspector.hearing(&gateway.calls.rules, Provenance::Retrieved);
        for part in carried.chunks(LOOK_BYTES) {
            inspector.push(part).map_err(|why| Stop::content("receive", why))?;
            let taken = self.charge(carried.len() + inspector.memory_bytes());
            taken.map_err(|reason| Stop::memory("receive", reason))?;
        }
        inspector.finish().map_err(|why| Stop::content("receive", why))?;
        let mut findings: Vec<_> = inspector.findings().map(|finding| finding.name().to_owned()).collect();
        let assessed = inspector.assessment();
        findings.extend(assessed.iter().flat_map(|a| a.findings()).map(str::to_owned));
        let bytes = carried.len() as u64;
        self.server.note(bytes, &findings);
        let came = Came::message(bytes, findings);
        let judged = gateway.snapshots.current().and_then(|plan| {
            let who = granted.who().under(&plan, gateway.now_s())?;
            Ok(came.rule(&plan, &who, granted.admitted()))
        });
        let ruling = judged.unwrap_or_else(|reason| Ruling::deny("receive", reason));
        let [_, kept] = &mut self.kept;
        let ruling = duties::begin(gateway, exchange, kept, ruling);
        if ruling.verdict.is_ok() { Ok(()) } else { Err(Stop::ruled(ruling)) }
    }

    /// Begins to end it: what the client is told, if it may be.
    fn stop(&mut self, exchange: &mut Exchange, stop: Stop) -> (DropReason, Option<Bytes>) {
        let reason = stop.ruling.verdict.err().unwrap_or(DropReason::PolicyDenied);
        exchange.stopped(&stop.ruling);
        stop.detail.iter().for_each(|detail| exchange.detail(detail));
        let why = format!("{} (request {})", reason.name(), exchange.id());
        let close = self.server.takes_close().then(|| close_frame(Sender::Server, stop.status, &why, [0; 4]));
        let until = Instant::now() + CLOSING;
        self.ending = Some(Ending { until, status: stop.status, why, is_server_told: false });
        // Nothing that is held goes on.
        (self.client.held, self.server.held) = (BytesMut::new(), BytesMut::new());
        (reason, close.map(Bytes::from))
    }

    /// What goes to a server instead of what its client says, once it ends; `None` before.
    fn last_to_server(&mut self) -> Option<Result<Bytes, DropReason>> {
        let takes_close = self.client.takes_close();
        let ending = self.ending.as_mut()?;
        if !ending.is_server_told {
            ending.is_server_told = true;
            // RFC 6455 section 5.3 has clients draw it; the reason is ours, so that nobody gains by knowing it.
            let mask = getrandom::u32().unwrap_or_default().to_ne_bytes();
            let close = || close_frame(Sender::Client, ending.status, &ending.why, mask);
            return Some(Ok(takes_close.then(close).unwrap_or_default().into()));
        }
        Some(if Instant::now() > ending.until { Err(DropReason::Timeout) } else { Ok(Bytes::new()) })
    }
}

fn limits(gateway: &Gateway) -> Limits {
    let content = &gateway.memory.content;
    Limits { decoded_bytes_max: content.decoded_bytes_max.get(), ratio_max: content.ratio_max.get().into() }
}

/// What is said of a message: bytes are no text in a charset of more than a byte, however they begin.
fn claims(is_text: bool) -> Claims {
    let kind: &[&[u8]] = if is_text { &[] } else { &[b"application/octet-stream"] };
    Claims::new(kind, &[])
}

fn gone() -> Box<Error> {
    Error::explain(ErrorType::ConnectionClosed, "nobody answers a close").into_down()
}

// === impl App ===

impl App {
    /// Has what a client says on a WebSocket judged; what goes on is left in `body`.
    pub(super) async fn send_messages(
        &self,
        session: &mut Session,
        body: &mut Option<Bytes>,
        end: bool,
        context: &mut Context,
    ) -> PingoraResult<()> {
        let (Some(conversation), Some(granted), Some(exchange)) =
            (&mut context.conversation, &context.granted, &mut context.exchange)
        else {
            return Ok(());
        };
        let bytes = body.take().unwrap_or_default();
        let mut out = BytesMut::new();
        if let Some(last) = conversation.last_to_server() {
            *body = put(last.map_err(|_| gone())?, end);
            return Ok(());
        }
        if conversation.client.reading == Reading::Unread {
            conversation.client.track(&bytes);
            *body = put(bytes, end);
            return Ok(());
        }
        let mut rest = &bytes[..];
        let asked = (&self.gateway, &**granted);
        let heard = conversation.hear_client(asked, exchange, &mut rest, &mut out).await;
        if let Err(stop) = heard {
            let client = &mut conversation.client;
            let is_told = client.reading == Reading::Told && stop.is_unreadable;
            if is_told && granted.forgoes(&self.gateway, |reads| &mut reads.sent) != Reading::Decides {
                client.forgo(&mut out, rest);
            } else {
                let (reason, close) = conversation.stop(exchange, stop);
                context.reason = Some(reason);
                if close.is_some() {
                    // A client that does not take it keeps nothing from the server.
                    let told = session.write_response_body(close, false);
                    let _ = tokio::time::timeout(CLOSING, told).await;
                }
                out.extend(conversation.last_to_server().and_then(Result::ok).unwrap_or_default());
            }
        }
        // What is only told about may take its time.
        let is_waiting = conversation.ending.is_none()
            && conversation.client.reading == Reading::Decides
            && !conversation.client.held.is_empty();
        session.set_read_timeout(Some(match conversation.ending {
            Some(_) => CLOSING,
            None if is_waiting => conversation.hold.time_max,
            None => limit::TUNNEL_IDLE,
        }));
        *body = put(out.freeze(), end);
        Ok(())
    }

    /// Has what a server says on it judged, likewise.
    pub(super) fn receive_messages(
        &self,
        session: &mut Session,
        body: &mut Option<Bytes>,
        end: bool,
        context: &mut Context,
    ) -> PingoraResult<()> {
        let (Some(conversation), Some(granted), Some(exchange)) =
            (&mut context.conversation, &context.granted, &mut context.exchange)
        else {
            return Ok(());
        };
        let bytes = body.take().unwrap_or_default();
        if let Some(ending) = &conversation.ending {
            if Instant::now() > ending.until {
                return Err(gone());
            }
            *body = put(Bytes::new(), end);
            return Ok(());
        }
        if conversation.server.reading == Reading::Unread {
            conversation.server.track(&bytes);
            *body = put(bytes, end);
            return Ok(());
        }
        let (mut rest, mut out) = (&bytes[..], BytesMut::new());
        let asked = (&self.gateway, &**granted);
        if let Err(stop) = conversation.hear_server(asked, exchange, &mut rest, &mut out) {
            let server = &mut conversation.server;
            let is_told = server.reading == Reading::Told && stop.is_unreadable;
            if is_told && granted.forgoes(&self.gateway, |reads| &mut reads.received) != Reading::Decides {
                server.forgo(&mut out, rest);
            } else {
                // The server is told once its client answers or leaves.
                let (reason, close) = conversation.stop(exchange, stop);
                context.reason = Some(reason);
                session.set_read_timeout(Some(CLOSING));
                out.extend(close.unwrap_or_default());
            }
        }
        *body = put(out.freeze(), end);
        Ok(())
    }
}

/// Pingora takes none at all for the end, and sends nothing of one that is empty.
fn put(out: Bytes, end: bool) -> Option<Bytes> {
    (!end || !out.is_empty()).then_some(out)
}
