//! The body gate: `send`, `llm` and `tool` judged on what a body holds, before the upstream is dialled where it can be held that
//! long, and as it streams where it can't.
//!
//! INVARIANT: of a body whose content decides, nothing goes on that was not looked at; and its end only when all of it was
//! judged. What can't be read with certainty doesn't go on.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use clawgress_api::PayloadFacts;
use clawgress_ebpf_common::DropReason;
use clawgress_inspect::http1;
use clawgress_inspect::llm::{CallError, Request, Route, Surface};
use clawgress_inspect::payload::{Claims, Inspector, Limits, Readings, Unreadable};
use clawgress_inspect::tool::Reader;
use clawgress_policy::effect::Obligation;
use clawgress_policy::transform::body::BodyChanges;
use clawgress_policy::{Look, PayloadNeed};
use pingora_proxy::Session;

use super::model::{Asking, Calling, Unread};
use super::rewrite::{Rewritten, is_signed};
use super::said::{self, Said, operation};
use super::tool::{Addressed, Mismatch};
use super::{Admitted, Granted, duties};
use crate::carries::{self, Carries};
use crate::decide::{self, Ruling};
use crate::exchange::Exchange;
use crate::gateway::Gateway;
use crate::identify::Who;
use crate::memory::Charge;
use crate::snapshot::Plan;

pub use judged::{Judged, judge};

mod judged;

/// Bytes of what streams that are kept back until it is looked at whole: decoders hold back blocks of what they are given, in
/// each of the codings inside one another, and small pieces may be many before one of them is decoded.
pub const TAIL_BYTES: usize = 4096;
/// Most bytes that are looked at without letting others run: a coding may make some hundred of each.
pub const LOOK_BYTES: usize = 2048;
/// A body that is looked at.
#[derive(Debug)]
pub struct Body {
    said: Said,
    /// What is in its request's head.
    head: Carries,
    need: PayloadNeed,
    /// What reads it, where what is in it matters.
    inspector: Option<Inspector>,
    /// How much was found in it.
    found: usize,
    /// Why it can't be read.
    unreadable: Option<String>,
    /// How policy asks whether it calls a model, if it does.
    calling: Option<Calling>,
    /// And about what is sent to a tool server.
    addressed: Option<Addressed>,
    mismatch: Option<Mismatch>,
    /// The bytes of a call that policy may change.
    copy: Option<Vec<u8>>,
    /// What is sent in its place, where that asks for usage, bytes.
    asking_bytes: usize,
    charge: Charge,
    spool_bytes: usize,
    /// Bytes that went by in this attempt to send it; after a connection that died there is another.
    passed: u64,
    /// The newest of them, which have not gone on.
    tail: BytesMut,
    /// What was enforced.
    kept: Vec<Arc<Obligation>>,
    /// Texts in other clothes that were counted with those of other requests, and when; and whether they came to much.
    counted: Option<(usize, i64)>,
    is_split: bool,
}

/// How long a body that streams goes on until what it carries counts as a further request does, seconds: as one that is held may take.
const COUNTED_S: i64 = 60;

// === impl Body ===

impl Body {
    /// The body of a request, of which nothing was looked at yet.
    fn of(
        gateway: &Gateway,
        session: &Session,
        (plan, who, admitted): (&Plan, &Who, &Admitted),
        (calling, addressed): (Option<Calling>, Option<Addressed>),
    ) -> Body {
        let headers = &session.req_header().headers;
        let all = |name: &str| headers.get_all(name).iter().map(|value| value.as_bytes()).collect::<Vec<_>>();
        let claims = Claims::new(&all("content-type"), &all("content-encoding"));
        let declared = match admitted.body {
            http1::Body::Length(n) => Some(n),
            http1::Body::Chunked => None,
        };
        let has_body = declared != Some(0);
        let (media_type, is_type_unclear) = (claims.media_type.clone(), claims.is_type_unclear());
        let mut said = Said { media_type, is_type_unclear, declared, has_body, ..Said::default() };
        let asked = operation(admitted, said.payload(false));
        let need = if has_body {
            decide::payload_need(plan, who, asked, declared.is_some())
        } else {
            PayloadNeed::default()
        };
        said.looked = need.look();
        let unread = Unread { is_protobuf: claims.is_protobuf(), bytes: declared };
        let before = calling.as_ref().and_then(|calling| calling.before(unread));
        // What streams may turn out to be a call as long as it comes.
        said.is_call_known = calling.is_some();
        said.call = before.map(Arc::new);
        said.is_tool_known = addressed.is_some();
        let call_need = calling.as_ref().filter(|_| has_body).map_or_else(PayloadNeed::default, |calling| {
            calling.body_need(claims.may_be_document() || claims.is_form())
        });
        let tool_need =
            addressed.as_ref().filter(|_| has_body).map_or_else(PayloadNeed::default, Addressed::body_need);
        let need = need.max(call_need).max(tool_need);
        let reads_call = calling.as_ref().filter(|_| call_need.look() == Look::Content);
        let readings = Readings {
            call: reads_call.map(Calling::surface_read),
            messages: addressed.as_ref().map(Addressed::is_meant),
            is_told: reads_call.is_some_and(Calling::is_told),
            has_parts: reads_call.is_some_and(Calling::is_other),
        };
        let head = match need.look() {
            Look::Content => carries::look(gateway, session, admitted),
            _ => Carries::default(),
        };
        said.findings = head.findings().collect();
        if !has_body {
            // What it asks for by its path is all there is.
            said.messages =
                addressed.as_ref().and_then(|addressed| addressed.bare(&said.findings)).map(Arc::new);
        }
        let is_open = claims.coding.is_none() && !is_signed(session.req_header());
        let may_change = is_open && reads_call.is_some() && decide::changes_calls(plan, who);
        let counts = is_open && reads_call.is_some() && gateway.calls.counts();
        let may_ask = is_open && reads_call.is_some_and(|calling| Asking::may_be(&gateway.calls, calling));
        let limits = Limits {
            decoded_bytes_max: gateway.memory.content.decoded_bytes_max.get(),
            ratio_max: gateway.memory.content.ratio_max.get().into(),
        };
        Body {
            said,
            head,
            need,
            inspector: (need.look() == Look::Content)
                .then(|| Inspector::reading(claims, limits, readings).with_rules(&gateway.calls.rules())),
            found: 0,
            unreadable: None,
            calling,
            addressed,
            mismatch: None,
            copy: (may_change || counts || may_ask).then(Vec::new),
            asking_bytes: 0,
            charge: gateway.memory.charge(who.identity.agent.index),
            spool_bytes: 0,
            passed: 0,
            tail: BytesMut::new(),
            kept: Vec::new(),
            counted: None,
            is_split: false,
        }
    }

    /// Has so many bytes taken from memory for what is held.
    ///
    /// # Errors
    /// If there are not so many.
    pub fn charge(&mut self, spool_bytes: usize) -> Result<(), DropReason> {
        self.spool_bytes = spool_bytes;
        let own = self.inspector.as_ref().map_or(0, Inspector::memory_bytes);
        let copy = self.copy.as_ref().map_or(0, Vec::capacity);
        self.charge.set(spool_bytes + own + copy + self.asking_bytes)
    }

    /// Looks at what came next.
    ///
    /// # Errors
    /// Why it must not go on.
    pub fn look(&mut self, bytes: &[u8]) -> Result<(), DropReason> {
        self.said.seen += bytes.len() as u64;
        if let Some(copy) = &mut self.copy {
            copy.extend_from_slice(bytes);
        }
        let Some(inspector) = &mut self.inspector else { return Ok(()) };
        let looked = inspector.push(bytes);
        self.note(looked)
    }

    /// Ends it.
    fn finish(&mut self, gateway: &Gateway) -> Result<(), DropReason> {
        self.said.complete = true;
        let Some(inspector) = &mut self.inspector else { return Ok(()) };
        let looked = inspector.finish();
        self.note(looked)?;
        self.count(gateway, true);
        self.finish_call(gateway)?;
        self.finish_messages(gateway)
    }

    /// Counts what it carries with what other requests do: once it is whole; and of one that streams once it does, and what
    /// is new while it goes on, since it need not end.
    fn count(&mut self, gateway: &Gateway, ends: bool) {
        let Some(pieces) = self.inspector.as_ref().map(Inspector::pieces) else { return };
        let (before, now_s) = (self.counted, gateway.now_s());
        let news = pieces.get(before.map_or(0, |(count, _)| count)..).unwrap_or_default();
        let is_due = before.is_none_or(|(_, at_s)| !news.is_empty() && (ends || now_s - at_s >= COUNTED_S));
        if !is_due {
            return;
        }
        self.counted = Some((pieces.len(), now_s));
        if self.head.are_split(gateway, self.charge.agent(), news) && !self.is_split {
            self.is_split = true;
            self.said.findings.push(carries::SPLIT.to_owned());
        }
    }

    fn finish_call(&mut self, gateway: &Gateway) -> Result<(), DropReason> {
        let Some((calling, call)) = self.as_call() else {
            if let Some(call) = self.said.call.as_mut().filter(|_| self.calling.is_some()) {
                Arc::make_mut(call).finds(&self.said.findings);
            }
            return Ok(());
        };
        if calling.takes(call) || calling.is_other() {
            // Of what is no call that is known, fields may be of other types than a call's.
            let may_be = |error| calling.is_other() && matches!(error, CallError::Type | CallError::NoObject);
            let is_unknown = call.error().is_some_and(|error| !may_be(error));
            if is_unknown && calling.need.decided != Look::Nothing {
                // It goes to nobody who is listed, or where nobody knows, and can't be known.
                return Err(DropReason::ContentUnreadable);
            }
            let assessment = self.inspector.as_ref().and_then(Inspector::assessment).unwrap_or_default();
            let found = self.said.findings.iter().map(String::as_str).chain(assessment.findings());
            let mut facts = calling.facts(call.call(), assessment.score, found);
            self.inspector.iter().filter_map(Inspector::rules).for_each(|rules| facts.held_against(rules));
            facts.stays_partial(self.said.call.as_deref());
            if let Some(copy) = &self.copy {
                let surface = calling.route.as_ref().map_or(Surface::Other, |route| route.surface);
                facts.count(&gateway.calls, surface, copy);
            }
            self.said.call = Some(Arc::new(facts));
        }
        Ok(())
    }

    fn finish_messages(&mut self, gateway: &Gateway) -> Result<(), DropReason> {
        let Some((addressed, reader)) = self.as_messages() else { return Ok(()) };
        match addressed.read(reader, &gateway.tools.catalog, &self.said.findings) {
            Ok(messages) => self.said.messages = messages.map(Arc::new),
            Err(why) => {
                let is_judged = addressed.judges(reader);
                self.mismatch = addressed.mismatch(reader, &why).filter(|_| is_judged);
                self.unreadable = Some(why.to_string());
                if is_judged {
                    return Err(DropReason::ContentUnreadable);
                }
            }
        }
        Ok(())
    }

    /// What reads it as messages to a tool server.
    fn as_messages(&self) -> Option<(&Addressed, &Reader)> {
        Some((self.addressed.as_ref()?, self.inspector.as_ref()?.messages()?))
    }

    /// What reads it as a call of a model.
    fn as_call(&self) -> Option<(&Calling, &Request)> {
        Some((self.calling.as_ref()?, self.inspector.as_ref()?.call()?))
    }

    /// Whether it is a call of a model or tool that can't be judged, since not all of it is held.
    fn is_call_in_part(&self) -> bool {
        !self.said.complete && self.is_call_so_far()
    }

    /// Whether it is one by what was read, of which policy asks.
    fn is_call_so_far(&self) -> bool {
        let calls_model = self
            .as_call()
            .is_some_and(|(calling, call)| calling.need.decided != Look::Nothing && calling.takes(call));
        calls_model || self.as_messages().is_some_and(|(addressed, reader)| addressed.judges(reader))
    }

    /// Whether it may turn out to be messages of which policy asks.
    fn may_be_messages(&self) -> bool {
        let is_asked =
            self.addressed.as_ref().is_some_and(|addressed| addressed.need.decided != Look::Nothing);
        is_asked && self.inspector.as_ref().is_some_and(Inspector::may_be_messages)
    }

    /// Most bytes of it that are held.
    fn hold_bytes_max(&self, gateway: &Gateway) -> usize {
        let most = usize::try_from(gateway.memory.content.hold_bytes_max.get()).unwrap_or(usize::MAX);
        let is_call = self.calling.as_ref().is_some_and(Calling::is_read);
        let is_message = self.addressed.as_ref().is_some_and(Addressed::is_meant);
        let call = if is_call { gateway.calls.hold_bytes_max } else { 0 };
        let message = if is_message { gateway.tools.hold_bytes_max } else { 0 };
        most.max(call).max(message)
    }

    /// The call that it is, as policy changes it.
    ///
    /// # Errors
    /// Why it can't be changed, in words.
    pub fn rewritten(&mut self, changes: &BodyChanges) -> Result<Rewritten, String> {
        let copy = self.copy.take().filter(|_| self.said.complete);
        let (Some((calling, call)), Some(copy)) = (self.as_call(), copy) else {
            return Err("it is signed, coded, larger than what is held, or no call that is read".to_owned());
        };
        let surface = calling.route.as_ref().map_or(Surface::Other, |route| route.surface);
        let is_stream = calling.route.as_ref().and_then(|route| route.stream) == Some(true);
        if !changes.renames.is_empty() && is_stream && matches!(surface, Surface::Converse | Surface::Invoke)
        {
            // Its frames are not written again.
            return Err("tools are not renamed in streams of Bedrock".to_owned());
        }
        let names = calling.route.as_ref().map(Route::cap_names).unwrap_or_default();
        Rewritten::of(&copy, (surface, names), call.call(), changes)
    }

    /// How it is a message to a tool server whose head says something else than its body, if that is why it is refused.
    #[must_use]
    pub fn mismatch(&self) -> Option<&Mismatch> {
        self.mismatch.as_ref()
    }

    /// Whether usage is to be asked for on the client's behalf.
    fn asking(&mut self, gateway: &Gateway, session: &Session) -> Option<Asking> {
        let (calling, call) = self.as_call().filter(|_| self.said.complete)?;
        let body = (call.call(), self.copy.as_deref());
        let asking = Asking::of(&gateway.calls, calling, body, session.req_header())?;
        self.asking_bytes = asking.memory_bytes();
        Some(asking)
    }

    fn note(&mut self, looked: Result<(), Unreadable>) -> Result<(), DropReason> {
        let is_call = self.is_call_so_far();
        if let Err(why) = looked {
            self.inspector = None;
            self.unreadable = Some(why.to_string());
            self.said.looked = Look::Size;
            self.said.findings = self.head.findings().collect();
            // What is only told must not deny.
            return if self.need.decided == Look::Content || is_call {
                Err(DropReason::ContentUnreadable)
            } else {
                Ok(())
            };
        }
        if let Some(inspector) = &self.inspector
            && inspector.findings_count() != self.found
        {
            self.found = inspector.findings_count();
            let of_body = inspector.findings().map(|finding| finding.name().to_owned());
            let split = self.is_split.then(|| carries::SPLIT.to_owned());
            let findings: BTreeSet<_> = self.head.findings().chain(of_body).chain(split).collect();
            self.said.findings = findings.into_iter().collect();
        }
        let charged = self.charge(self.spool_bytes);
        if charged.is_err() && !self.decides() && !is_call && !self.may_be_messages() {
            self.forgo();
            return Ok(());
        }
        charged
    }

    /// Whether anything that is decided depends on it.
    #[must_use]
    pub fn decides(&self) -> bool {
        self.need.decided != Look::Nothing
    }

    /// Looks at it no longer.
    fn forgo(&mut self) {
        self.inspector = None;
        self.copy = None;
        self.said.looked = Look::Size;
        // What is less always can be.
        let _ = self.charge(self.spool_bytes);
    }

    /// Notes in the record what is known of it.
    fn tell(&self, exchange: &mut Exchange) {
        if self.said.has_body || self.said.carries {
            let facts = self.inspector.as_ref().map(Inspector::facts);
            let payload = self.said.payload(self.said.complete);
            // Also where another action than `send` has it looked at.
            let looked = if self.inspector.is_some() { Look::Content } else { self.said.looked };
            exchange.payload(PayloadFacts {
                bytes: payload.bytes,
                complete: payload.complete,
                declared: self.said.declared.is_some(),
                looked: said::told(looked),
                media_type: payload.media_type.to_owned(),
                media_type_unclear: self.said.is_type_unclear,
                findings: payload.findings.to_vec(),
                decoded_bytes: facts.map(|facts| facts.decoded_bytes).filter(|bytes| *bytes > 0),
                fields: facts.map(|facts| facts.fields).filter(|fields| *fields > 0),
            });
        }
        if let Some(call) = &self.said.call {
            exchange.call(call.record(), call.findings());
        }
        if let Some(messages) = &self.said.messages {
            exchange.messages(messages.record(), messages.findings());
        }
        if let Some(why) = &self.unreadable {
            exchange.detail(&format!("the body was not read: {why}"));
        }
    }

    /// Notes that it is sent, perhaps again.
    pub fn attempt(&mut self) {
        self.passed = 0;
        self.tail.clear();
    }

    /// Looks at what goes by, and judges it where that may say something else than before: its end at least.
    ///
    /// # Errors
    /// Why it must not go on.
    pub async fn pass(
        &mut self,
        gateway: &Arc<Gateway>,
        granted: &Granted,
        exchange: &mut Exchange,
        (piece, end): (&mut Option<Bytes>, bool),
    ) -> Result<(), DropReason> {
        let bytes = piece.clone().unwrap_or_default();
        self.go_by(gateway, granted, exchange, (&bytes, end)).await?;
        self.keep_back(piece, end);
        Ok(())
    }

    /// Takes the newest bytes out of what goes on while what they hold may not be known, and gives them back once it is.
    fn keep_back(&mut self, piece: &mut Option<Bytes>, end: bool) {
        // What is only told holds nothing back.
        let decides = self.inspector.is_some() && self.need.decided == Look::Content;
        let most = if decides && !self.said.complete { TAIL_BYTES } else { 0 };
        if self.tail.is_empty() && most == 0 {
            return;
        }
        let mut all = std::mem::take(&mut self.tail);
        all.extend_from_slice(piece.as_deref().unwrap_or_default());
        let gone = all.len().saturating_sub(most);
        self.tail = BytesMut::from(all.get(gone..).unwrap_or_default());
        all.truncate(gone);
        // Pingora takes none at all for the end, and sends nothing of one that is empty.
        *piece = (!end || !all.is_empty()).then(|| all.freeze());
    }

    async fn go_by(
        &mut self,
        gateway: &Arc<Gateway>,
        granted: &Granted,
        exchange: &mut Exchange,
        (bytes, end): (&[u8], bool),
    ) -> Result<(), DropReason> {
        let skipped = usize::try_from(self.said.seen.saturating_sub(self.passed)).unwrap_or(usize::MAX);
        self.passed += bytes.len() as u64;
        if self.said.complete {
            if self.passed >= self.said.seen {
                // What was held is gone.
                (self.inspector, self.copy) = (None, None);
                return self.charge(0);
            }
            return Ok(());
        }
        let new = bytes.get(skipped.min(bytes.len())..).unwrap_or_default();
        if !new.is_empty() {
            // A call is held whole, or refused: this is none that is changed.
            self.copy = None;
            // What was held is gone by now.
            self.spool_bytes = TAIL_BYTES;
        }
        let known = self.said.findings.len();
        let mut looked = Ok(());
        for part in new.chunks(LOOK_BYTES) {
            looked = looked.and_then(|()| self.look(part));
            tokio::task::yield_now().await;
        }
        let ends = end || self.said.declared == Some(self.said.seen);
        if looked.is_ok() && !ends && self.is_call_in_part() {
            exchange.detail(CALL_TOO_LARGE);
            looked = Err(DropReason::ContentUnreadable);
        }
        match looked {
            Ok(()) if ends => looked = self.finish(gateway),
            Ok(()) => self.count(gateway, false),
            Err(_) => {}
        }
        // Policy may ask for its size, which is news wherever none is declared.
        let is_news = ends || self.said.findings.len() != known || self.said.declared.is_none();
        if looked.is_ok() && !is_news {
            return Ok(());
        }
        granted.says(self.said.clone());
        self.tell(exchange);
        let judged = match looked {
            Ok(()) => self.judge(gateway, granted, exchange).await,
            Err(reason) => Err(Ruling::deny("send", reason)),
        };
        if ends {
            // An answer may stream for long from here on.
            self.inspector = None;
            let _ = self.charge(0);
        }
        judged.map_err(|ruling| {
            exchange.stopped(&ruling);
            ruling.verdict.err().unwrap_or(DropReason::PolicyDenied)
        })
    }

    /// Judges it as it streams; what it is obliged to is enforced once.
    async fn judge(
        &mut self,
        gateway: &Arc<Gateway>,
        granted: &Granted,
        exchange: &mut Exchange,
    ) -> Result<(), Ruling> {
        let deny = |reason| Ruling::deny("send", reason);
        let plan = gateway.snapshots.current().map_err(deny)?;
        let who = granted.who().under(&plan, gateway.now_s()).map_err(deny)?;
        let ruling = self.said.rule(gateway, &plan, &who, granted.admitted());
        let before = granted.changes().unwrap_or_default();
        if ruling.verdict.is_ok() && ruling.transforms().is_some_and(|later| !before.covers(&later)) {
            // It turned out late to be what policy changes.
            exchange.detail(CHANGED_LATE);
            return Err(Ruling { policies: ruling.policies, ..deny(DropReason::ContentUnreadable) });
        }
        let ruling = duties::perform(gateway, exchange, &mut self.kept, ruling).await;
        if ruling.verdict.is_ok() { Ok(()) } else { Err(ruling) }
    }
}

/// Why a call is refused that was not held whole.
const CALL_TOO_LARGE: &str = "the call of a model or a tool is larger than what is held of one: see `hold_bytes_max` in [llm], [tool] and [content]";

/// Why a call is refused that streams, and is known for one by its end.
const CHANGED_LATE: &str = "policy changes what this turned out to be, and its beginning was sent on before that was known: see `hold_bytes_max` in [content]";
