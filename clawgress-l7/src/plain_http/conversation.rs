//! The messages of a WebSocket that is read: `send` and `receive` are asked of each before any of it goes on, and what may not go
//! on ends the connection by a close (RFC 6455 section 7) to both sides.
//!
//! INVARIANT: of a side whose messages decide, nothing goes on but whole messages that were judged, and the bytes that were
//! judged are the bytes that go on.

use std::collections::HashSet;
use std::sync::Arc;
use std::task::{Context as Polling, Poll, Waker};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use clawgress_api::{CallCost, TokenUsage};
use clawgress_ebpf_common::DropReason;
use clawgress_inspect::llm::answer::Asked;
use clawgress_inspect::payload::Unreadable;
use clawgress_inspect::web_socket::{FrameError, Sender, close_frame};
use clawgress_policy::Look;
use clawgress_policy::effect::Effect;
use futures_util::FutureExt as _;
use pingora_error::{Error, ErrorType, Result as PingoraResult};
use pingora_proxy::Session;
use tokio::task::{coop, yield_now};
use tokio::time::{Instant, timeout};

use self::side::{Carried, Heard, Hold, Side, Unheard};
use super::Admitted;
use super::came::Came;
use super::realtime::{Call, Realtime, Unsaid};
use super::said::Said;
use super::web_socket::{self, Reading};
use super::{App, Context, Granted, duties};
use crate::carries;
use crate::decide::{self, Ruling};
use crate::exchange::Exchange;
use crate::gateway::Gateway;
use crate::limit;
use crate::memory::Charge;

mod side;

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
    ending: Option<Ending>,
    /// What its messages are to a model, where it is one that it is with.
    realtime: Option<Box<Realtime>>,
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

    fn unheard(action: &'static str, why: Unheard) -> Stop {
        match why {
            Unheard::Frame(error) => Stop::frame(action, error),
            Unheard::Content(why) => Stop::content(action, why),
        }
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

    fn unread(action: &'static str, why: &str) -> Stop {
        let detail = Some(format!("a message was not read: {why}").into());
        Stop { detail, ..Stop::unreadable(action, DropReason::ContentUnreadable, POLICY_VIOLATION) }
    }

    fn memory(action: &'static str, reason: DropReason) -> Stop {
        Stop::unreadable(action, reason, TRY_AGAIN_LATER)
    }

    fn late(action: &'static str) -> Stop {
        let detail = Some("a message was not whole in time: see `hold_s_max` in [content]".into());
        Stop { detail, ..Stop::unreadable(action, DropReason::Timeout, POLICY_VIOLATION) }
    }
}

/// What is asked about what `of` says.
fn action(of: Sender) -> &'static str {
    match of {
        Sender::Client => "send",
        Sender::Server => "receive",
    }
}

/// Takes one part of what a task may do at once, where nothing can be waited for: at its next wait others run, if it has none
/// left.
fn spend() {
    if let Poll::Ready(part) = coop::poll_proceed(&mut Polling::from_waker(Waker::noop())) {
        part.made_progress();
    }
}

// === impl Conversation ===

impl Conversation {
    /// The WebSocket that `granted` has opened, of which nothing has come yet.
    #[must_use]
    pub fn new(gateway: &Gateway, granted: &Granted) -> Conversation {
        let (content, reads) = (&gateway.memory.content, granted.reads());
        let hold = Hold {
            bytes_max: usize::try_from(content.hold_bytes_max.get()).unwrap_or(usize::MAX),
            time_max: Duration::from_secs(content.hold_s_max.get().into()),
        };
        let realtime = realtime(gateway, granted);
        let (mut client, mut server) = (
            Side::new(gateway, Sender::Client, reads.sent, hold),
            Side::new(gateway, Sender::Server, reads.received, hold),
        );
        (client.tells, server.tells) = (realtime.is_some(), realtime.is_some());
        Conversation {
            client,
            server,
            realtime,
            hold,
            charge: gateway.memory.charge(granted.who().identity.agent.index),
            ending: None,
        }
    }

    /// Notes in the record what was read.
    pub fn tell(&self, exchange: &mut Exchange) {
        exchange.found(self.client.findings.iter());
        if self.server.reading != Reading::Unread {
            let mut came = Came::message(self.server.bytes, self.server.findings.clone());
            self.realtime.iter().for_each(|realtime| realtime.tell(&mut came));
            exchange.answer(came.facts(None));
        }
    }

    fn side(&mut self, of: Sender) -> &mut Side {
        match of {
            Sender::Client => &mut self.client,
            Sender::Server => &mut self.server,
        }
    }

    /// Reads what one side says; what of it goes on. Of a server nothing is waited for: Pingora asks about answers what can't wait.
    async fn hear(
        &mut self,
        of: Sender,
        asked: (&Arc<Gateway>, &Granted),
        exchange: &mut Exchange,
        rest: &mut &[u8],
        out: &mut BytesMut,
    ) -> Result<(), Stop> {
        let hold = self.hold;
        // What was permitted in this very go. Of thousands of messages that say next to nothing, as a record of TLS has at most, few differ
        // in what policy is asked about.
        let mut permitted = HashSet::new();
        loop {
            let heard = self.side(of).hear(rest, hold).map_err(|why| Stop::unheard(action(of), why))?;
            let more = self.realtime.as_ref().map_or(0, |realtime| realtime.memory_bytes());
            let charged = self.charge.set(self.client.memory_bytes() + self.server.memory_bytes() + more);
            charged.map_err(|reason| Stop::memory(action(of), reason))?;
            match heard {
                Heard::All => return self.in_time(of),
                Heard::Part => {}
                Heard::Whole(carried) if of == Sender::Client || self.realtime.is_some() => {
                    self.judge(of, asked, exchange, carried).await?;
                }
                Heard::Whole(carried) => {
                    let known = (carried.bytes, carried.findings.clone());
                    if permitted.contains(&known) {
                        self.server.bytes += carried.bytes;
                    } else {
                        self.judge(of, asked, exchange, carried).await?;
                        permitted.insert(known);
                    }
                }
            }
            let waits = || self.realtime.as_ref().is_some_and(|realtime| realtime.waits());
            if of == Sender::Client || !waits() {
                self.side(of).release(out);
            }
            match of {
                Sender::Client => yield_now().await,
                Sender::Server => spend(),
            }
        }
    }

    /// Asks about a message; what it is obliged to is enforced, once but for limits.
    async fn judge(
        &mut self,
        of: Sender,
        (gateway, granted): (&Arc<Gateway>, &Granted),
        exchange: &mut Exchange,
        mut carried: Carried,
    ) -> Result<(), Stop> {
        if of == Sender::Client && carries::are_split(gateway, granted, &carried.pieces) {
            carried.findings.push(carries::SPLIT.to_owned());
        }
        let reading = self.side(of).reading;
        let ruled = match of {
            Sender::Client => {
                let call = self.says(&carried, exchange)?;
                self.client.note(&carried);
                ask_sent(gateway, granted, carried, (reading, call))
            }
            Sender::Server => {
                let (came, calls) = self.hears(gateway, granted, carried)?;
                self.server.note_found(&came.findings);
                ask_received(gateway, granted, came, calls)
            }
        };
        let ruling = ruled.unwrap_or_else(|reason| Ruling::deny(action(of), reason));
        let side = self.side(of);
        let ruling = match of {
            Sender::Client => {
                side.kept.retain(|obligation| !matches!(obligation.effect, Effect::Limit(_)));
                duties::perform(gateway, exchange, &mut side.kept, ruling).await
            }
            Sender::Server => duties::begin(gateway, exchange, &mut side.kept, ruling),
        };
        if ruling.verdict.is_err() {
            return Err(Stop::ruled(ruling));
        }
        if of == Sender::Client {
            self.realtime.iter_mut().for_each(|realtime| realtime.goes_on());
        }
        Ok(())
    }

    /// Reads what a client says as a call of a model, where it converses with one and policy asks about that.
    fn says(&mut self, carried: &Carried, exchange: &mut Exchange) -> Result<Option<Call>, Stop> {
        let (Some(realtime), Some(text)) = (&mut self.realtime, &carried.text) else { return Ok(None) };
        let call = match realtime.says(text) {
            Ok(call) => call,
            Err(Unsaid::Content(why)) => return Err(Stop::content("llm", why)),
            Err(Unsaid::Message(why)) => return Err(Stop::unread("llm", &why)),
        };
        call.iter().for_each(|call| exchange.call(call.record.clone(), call.facts.findings()));
        Ok(call)
    }

    /// Puts together what a server says, where a model does; what is known of it, and calls that became whole.
    fn hears(
        &mut self,
        gateway: &Gateway,
        granted: &Granted,
        carried: Carried,
    ) -> Result<(Came, Vec<Asked>), Stop> {
        let Carried { bytes, findings, text, .. } = carried;
        self.server.bytes += bytes;
        let mut came = Came::message(bytes, findings);
        let (Some(realtime), Some(text)) = (&mut self.realtime, &text) else { return Ok((came, Vec::new())) };
        let decides = self.server.reading == Reading::Decides;
        match realtime.hears(gateway, granted.admitted(), (text, decides), &mut came) {
            Ok(calls) => Ok((came, calls)),
            Err(why) if decides => Err(Stop::unread("receive", &why.to_string())),
            Err(_) => {
                realtime.forgo();
                Ok((came, Vec::new()))
            }
        }
    }

    /// What it took of a model, once it is over.
    pub fn spent(&mut self, gateway: &Gateway, admitted: &Admitted) -> Option<(TokenUsage, CallCost)> {
        self.realtime.as_mut().and_then(|realtime| realtime.spent(gateway, admitted))
    }

    /// Whether what one side has begun to say may still become whole.
    fn in_time(&self, of: Sender) -> Result<(), Stop> {
        let side = if of == Sender::Client { &self.client } else { &self.server };
        let is_late = side.due(self.hold).is_some_and(|due| Instant::now() >= due);
        if is_late { Err(Stop::late(action(of))) } else { Ok(()) }
    }

    /// When it has to be looked at, whatever comes.
    fn due(&self) -> Option<Instant> {
        match &self.ending {
            Some(ending) if !ending.is_server_told => Some(Instant::now()),
            Some(ending) => Some(ending.until),
            None => self.client.due(self.hold).into_iter().chain(self.server.due(self.hold)).min(),
        }
    }

    /// Whether one side passes unread from here on, rather than that all ends: what is only told denies nothing.
    fn forgoes(&mut self, of: Sender, stop: &Stop, (gateway, granted): (&Arc<Gateway>, &Granted)) -> bool {
        self.side(of).reading == Reading::Told
            && stop.is_unreadable
            && granted.forgoes(gateway, |reads| match of {
                Sender::Client => &mut reads.sent,
                Sender::Server => &mut reads.received,
            }) != Reading::Decides
    }

    /// Begins to end it: why, and what the client is told, if it may be.
    fn stop(&mut self, exchange: &mut Exchange, stop: Stop) -> (DropReason, Option<Bytes>) {
        let reason = stop.ruling.verdict.err().unwrap_or(DropReason::PolicyDenied);
        exchange.stopped(&stop.ruling);
        stop.detail.iter().for_each(|detail| exchange.detail(detail));
        let why = format!("{} (request {})", reason.name(), exchange.id());
        let close = self.server.takes_close().then(|| close_frame(Sender::Server, stop.status, &why, [0; 4]));
        let until = Instant::now() + CLOSING;
        self.ending = Some(Ending { until, status: stop.status, why, is_server_told: false });
        self.client.drop_held();
        self.server.drop_held();
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
        Some(if Instant::now() >= ending.until { Err(DropReason::Timeout) } else { Ok(Bytes::new()) })
    }
}

/// What `send` says of a message of which that much is read.
fn ask_sent(
    gateway: &Arc<Gateway>,
    granted: &Granted,
    Carried { bytes, findings, .. }: Carried,
    (reading, call): (Reading, Option<Call>),
) -> Result<Ruling, DropReason> {
    let said = Said {
        looked: Look::Content,
        declared: Some(bytes),
        seen: bytes,
        complete: true,
        findings,
        has_body: true,
        // It was asked when this was opened.
        is_call_known: true,
        is_tool_known: true,
        ..Said::default()
    };
    let plan = gateway.snapshots.current()?;
    let who = granted.who().under(&plan, gateway.now_s())?;
    let mut ruling = said.rule(gateway, &plan, &who, granted.admitted());
    if reading != Reading::Decides && !web_socket::decides_sent(&plan, &who, granted.admitted()) {
        // They were spent when it was opened, as where nobody reads it.
        ruling.keep_duties(|obligation| !matches!(obligation.effect, Effect::Limit(_)));
    }
    if let (Some(call), Ok(())) = (&call, ruling.verdict) {
        let mut llm = decide::llm(&plan, &who, call.facts.operation(granted.admitted()));
        if !call.asks {
            // An answer that is asked for counts.
            llm.keep_duties(|obligation| !matches!(obligation.effect, Effect::Limit(_)));
        }
        ruling = llm.after_all(ruling).unwrap_or_else(|denied| denied);
    }
    let before = granted.changes().unwrap_or_default();
    if ruling.verdict.is_ok() && ruling.transforms().is_some_and(|later| !before.covers(&later)) {
        let denied = Ruling::deny("send", DropReason::ContentUnreadable);
        return Ok(Ruling { policies: ruling.policies, ..denied });
    }
    Ok(ruling)
}

/// What `receive` says of a message, and of each call that it makes whole.
fn ask_received(
    gateway: &Arc<Gateway>,
    granted: &Granted,
    mut came: Came,
    calls: Vec<Asked>,
) -> Result<Ruling, DropReason> {
    let plan = gateway.snapshots.current()?;
    let who = granted.who().under(&plan, gateway.now_s())?;
    let mut ruling = came.rule(&plan, &who, granted.admitted());
    for call in calls {
        if ruling.verdict.is_err() {
            break;
        }
        came.call = Some(Arc::new(call));
        ruling = came.rule(&plan, &who, granted.admitted()).after_all(ruling).unwrap_or_else(|denied| denied);
    }
    Ok(ruling)
}

/// What the messages of a WebSocket are to a model, if it is one that it is with and any of them is read.
fn realtime(gateway: &Gateway, granted: &Granted) -> Option<Box<Realtime>> {
    let admitted = granted.admitted();
    let dialect = gateway.calls.converses(admitted).filter(|_| granted.reads().any())?;
    let plan = gateway.snapshots.current().ok()?;
    let calling = gateway.calls.calling(&plan, granted.who(), admitted, gateway.audit.now());
    let follows = web_socket::following(&plan, granted.who(), admitted);
    Some(Box::new(Realtime::new(gateway, dialect, calling, follows)))
}

fn gone() -> Box<Error> {
    Error::explain(ErrorType::ConnectionClosed, "nobody answers a close").into_down()
}

/// Says something to the client. One that does not take it keeps nothing from the server.
async fn tell_client(session: &mut Session, bytes: Bytes) {
    if !bytes.is_empty() {
        let told = session.write_response_body(Some(bytes), false);
        let _ = timeout(CLOSING, told).await;
    }
}

// === impl App ===

impl App {
    /// Has what a client says on a WebSocket judged; what goes on is left in `body`. Sees to it, too, that what either side has
    /// begun to say becomes whole in time.
    pub(super) async fn send_messages(
        &self,
        session: &mut Session,
        body: &mut Option<Bytes>,
        end: bool,
        context: &mut Context,
    ) -> PingoraResult<()> {
        let Context { conversation, granted, exchange, front, reason, .. } = context;
        let (Some(conversation), Some(granted), Some(exchange), Some(front)) =
            (conversation, granted, exchange, front)
        else {
            return Ok(());
        };
        let (bytes, is_own) = (body.take().unwrap_or_default(), front.alarm().take());
        let mut passed = if is_own { Bytes::new() } else { bytes };
        if let Some(last) = conversation.last_to_server() {
            *body = put(last.map_err(|_| gone())?, end);
            front.alarm().set(conversation.due());
            return Ok(());
        }
        let asked = (&self.gateway, &**granted);
        let mut ended = None;
        if conversation.client.reading == Reading::Unread {
            conversation.client.track(&passed);
        } else {
            let (mut rest, mut out) = (&passed[..], BytesMut::new());
            let heard = conversation.hear(Sender::Client, asked, exchange, &mut rest, &mut out).await;
            match heard {
                Err(stop) if conversation.forgoes(Sender::Client, &stop, asked) => {
                    conversation.client.forgo(&mut out, rest);
                }
                heard => ended = heard.err(),
            }
            passed = out.freeze();
        }
        match conversation.in_time(Sender::Server) {
            Err(stop) if ended.is_none() && conversation.forgoes(Sender::Server, &stop, asked) => {
                let mut out = BytesMut::new();
                conversation.server.forgo(&mut out, &[]);
                session.write_response_body(Some(out.freeze()), false).await?;
            }
            in_time => ended = ended.or(in_time.err()),
        }
        if let Some(stop) = ended {
            let (why, close) = conversation.stop(exchange, stop);
            *reason = Some(why);
            tell_client(session, close.unwrap_or_default()).await;
            let last = conversation.last_to_server().and_then(Result::ok).unwrap_or_default();
            passed = [passed, last].concat().into();
        }
        front.alarm().set(conversation.due());
        *body = put(passed, end);
        Ok(())
    }

    /// Has what a server says on it judged, likewise.
    pub(super) fn receive_messages(
        &self,
        body: &mut Option<Bytes>,
        end: bool,
        context: &mut Context,
    ) -> PingoraResult<()> {
        let Context { conversation, granted, exchange, front, reason, .. } = context;
        let (Some(conversation), Some(granted), Some(exchange), Some(front)) =
            (conversation, granted, exchange, front)
        else {
            return Ok(());
        };
        let bytes = body.take().unwrap_or_default();
        if let Some(ending) = &conversation.ending {
            if Instant::now() >= ending.until {
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
        let heard = conversation.hear(Sender::Server, asked, exchange, &mut rest, &mut out).now_or_never();
        // Of a server nothing is waited for.
        match heard.unwrap_or_else(|| Err(Stop::late("receive"))) {
            Ok(()) => {}
            Err(stop) if conversation.forgoes(Sender::Server, &stop, asked) => {
                conversation.server.forgo(&mut out, rest);
            }
            Err(stop) => {
                let (why, close) = conversation.stop(exchange, stop);
                *reason = Some(why);
                out.extend(close.unwrap_or_default());
            }
        }
        // Pingora writes to the server only what comes from its client: the alarm has it told.
        front.alarm().set(conversation.due());
        *body = put(out.freeze(), end);
        Ok(())
    }
}

/// Pingora takes none at all for the end, and sends nothing of one that is empty.
fn put(out: Bytes, end: bool) -> Option<Bytes> {
    (!end || !out.is_empty()).then_some(out)
}

#[cfg(test)]
mod tests;
