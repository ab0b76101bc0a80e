//! What comes back: `receive` judged on the head of an answer, and on what is in it where that decides: of one that is held before
//! its client sees any of it, of a stream before each event goes on, of what is larger as it streams.
//!
//! INVARIANT: of an answer whose content decides, nothing goes on that was not looked at; of one that is held, not even its
//! head, before it was judged.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use clawgress_api::AnswerFacts;
use clawgress_ebpf_common::DropReason;
use clawgress_inspect::llm::Provenance;
use clawgress_inspect::llm::answer::{Asked, Following, Format};
use clawgress_inspect::payload::{Claims, Inspector, Limits, Unreadable};
use clawgress_inspect::prompt::Rules;
use clawgress_policy::effect::Obligation;
use clawgress_policy::{CallsLook, CallsNeed, Look, PayloadNeed};
use http::{Method, StatusCode};
use pingora_http::{RequestHeader, ResponseHeader};

use super::came::Came;
use super::coming::{Coming, Follows, coding_of};
use super::content::TAIL_BYTES;
use super::tool::opens;
use super::{Granted, duties};
use crate::decide::{self, Ruling};
use crate::exchange::Exchange;
use crate::gateway::Gateway;
use crate::memory::Charge;

/// What policy has for a tool whose name is not known.
const UNNAMED: &str = "unnamed";

/// An answer that policy asks about.
#[derive(Debug)]
pub struct Back {
    came: Came,
    need: PayloadNeed,
    calls_need: CallsNeed,
    manner: Manner,
    /// What reads it, where what is in it matters.
    readers: Option<Box<Readers>>,
    /// Whether it would matter, were there a body.
    is_asked: bool,
    /// Whether a model answers.
    is_model: bool,
    /// Whether it is a part of what there is (RFC 9110 section 15.3.7).
    is_part: bool,
    /// Why it can't be read.
    unreadable: Option<Unreadable>,
    charge: Charge,
    /// What came and has not gone on.
    held: BytesMut,
    hold_bytes_max: usize,
    has_ended: bool,
    /// Whether it ends behind a whole event, since the next may not go on.
    is_cut: bool,
    /// Bytes that are kept to follow calls.
    following_bytes: usize,
    /// Calls that were not asked about yet.
    asked: Vec<Asked>,
    /// What was enforced.
    kept: Vec<Arc<Obligation>>,
}

/// How it goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Manner {
    /// As it comes: nothing that is in it decides.
    Passes,
    /// Once all of it was judged.
    Whole,
    /// Each event once it was.
    Events,
    /// But for so many of its newest bytes, until all was.
    Streams(usize),
}

/// What reads an answer.
#[derive(Debug)]
struct Readers {
    all: Inspector,
    /// What a model says, and what it asks tools for, put together of what they come in: of each answer, where there are several
    /// beside one another.
    texts: Vec<[Option<Inspector>; 2]>,
    /// What these are held against.
    rules: Arc<Rules>,
    found: usize,
}

// === impl Readers ===

impl Readers {
    fn new(gateway: &Gateway, claims: Claims, is_model: bool) -> Readers {
        let limits = limits(gateway);
        let all = Inspector::new(claims, limits);
        // What a model says is heard as its texts; of others, what may be shown to one.
        let rules = gateway.calls.rules();
        let all = if is_model { all } else { all.hearing(&rules, Provenance::Retrieved) };
        Readers { all, texts: Vec::new(), rules, found: 0 }
    }

    /// Looks at what comes next.
    fn push(
        &mut self,
        gateway: &Gateway,
        bytes: &[u8],
        said: impl Iterator<Item = (usize, [Vec<u8>; 2])>,
    ) -> Result<(), Unreadable> {
        self.all.push(bytes)?;
        let from = [Provenance::Model, Provenance::ToolArguments];
        let rules = &self.rules;
        for (number, said) in said {
            if self.texts.len() <= number {
                self.texts.resize_with(number + 1, Default::default);
            }
            let Some(texts) = self.texts.get_mut(number) else { continue };
            for ((text, said), from) in texts.iter_mut().zip(said).zip(from) {
                if !said.is_empty() {
                    let text = text.get_or_insert_with(|| {
                        Inspector::new(Claims::new(&[], &[]), limits(gateway)).hearing(rules, from)
                    });
                    text.push(&said)?;
                }
            }
        }
        Ok(())
    }

    fn finish(&mut self) -> Result<(), Unreadable> {
        self.texts.iter_mut().flatten().flatten().try_for_each(Inspector::finish)?;
        self.all.finish()
    }

    /// What was found, if that is more than before.
    fn news(&mut self) -> Option<Vec<String>> {
        let all = || std::iter::once(&self.all).chain(self.texts.iter().flatten().flatten());
        let assessed: Vec<_> = all().filter_map(Inspector::assessment).collect();
        let found = all().map(Inspector::findings_count).sum::<usize>();
        let found = found + assessed.iter().map(|assessment| assessment.findings().count()).sum::<usize>();
        if std::mem::replace(&mut self.found, found) == found {
            return None;
        }
        let all = std::iter::once(&self.all).chain(self.texts.iter().flatten().flatten());
        let named = all.flat_map(Inspector::findings).map(|finding| finding.name().to_owned());
        let assessed = assessed.iter().flat_map(|assessment| assessment.findings()).map(str::to_owned);
        let mut names: Vec<String> = named.chain(assessed).collect();
        names.sort_unstable();
        names.dedup();
        Some(names)
    }

    fn memory_bytes(&self) -> usize {
        let all = std::iter::once(&self.all).chain(self.texts.iter().flatten().flatten());
        all.map(Inspector::memory_bytes).sum()
    }
}

fn limits(gateway: &Gateway) -> Limits {
    let content = &gateway.memory.content;
    Limits { decoded_bytes_max: content.decoded_bytes_max.get(), ratio_max: content.ratio_max.get().into() }
}

// === impl Back ===

impl Back {
    /// The answer of this head to `granted`; `None` where policy asks nothing about answers.
    ///
    /// # Errors
    /// If no policy can be asked.
    pub fn of(
        gateway: &Arc<Gateway>,
        granted: &Granted,
        (request, response): (&RequestHeader, &ResponseHeader),
    ) -> Result<Option<Back>, DropReason> {
        let plan = gateway.snapshots.current()?;
        if !decide::asks_receive(&plan, granted.who()).0 {
            return Ok(None);
        }
        let who = granted.who().under(&plan, gateway.now_s())?;
        let headers = &response.headers;
        let all = |name: &str| headers.get_all(name).iter().map(|value| value.as_bytes()).collect::<Vec<_>>();
        let claims = Claims::new(&all("content-type"), &all("content-encoding"));
        let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
        let is_bare = matches!(response.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
            || request.method == Method::HEAD;
        let declared = if is_bare { Some(0) } else { text("content-length").and_then(|n| n.parse().ok()) };
        let mut came = Came {
            status: response.status.as_u16(),
            media_type: claims.media_type.clone(),
            is_type_unclear: claims.is_type_unclear(),
            declared,
            complete: declared == Some(0),
            ..Came::default()
        };
        let asked = came.operation(granted.admitted(), false);
        let need = decide::payload_need(&plan, &who, asked, declared.is_some());
        let is_asked = need.look() == Look::Content;
        let need = if came.complete { PayloadNeed::default() } else { need };
        let calls_need = if need.look() == Look::Content {
            decide::calls_need(&plan, &who, asked)
        } else {
            CallsNeed::default()
        };
        // Of what has no body, all is known.
        let all = (Look::Content, CallsLook::Whole);
        let known = (need.decided, calls_need.decided);
        (came.looked, came.followed) = if came.complete { all } else { known };
        came.read = if came.complete { Look::Content } else { need.look() };
        let is_coded = coding_of(headers).is_some();
        let is_grpc = claims.media_type.starts_with("application/grpc");
        let has_events = Format::of(&claims.media_type).is_some_and(|format| format != Format::Json);
        let is_model = gateway.calls.provider(granted.admitted()).is_some();
        let is_opened = opens(request.method == Method::GET, &request.headers);
        let claims = if is_opened { claims.as_events() } else { claims };
        let manner = match need.decided {
            Look::Nothing => Manner::Passes,
            // Trailers follow, which nothing may be kept back behind.
            _ if is_grpc => Manner::Streams(0),
            _ if has_events && !is_coded => Manner::Events,
            // Where the events of a call end is not known.
            _ if calls_need.decided == CallsLook::Whole && is_model => Manner::Whole,
            Look::Content if has_events => Manner::Streams(TAIL_BYTES),
            _ if has_events => Manner::Streams(0),
            _ => Manner::Whole,
        };
        let readers =
            (need.look() == Look::Content).then(|| Box::new(Readers::new(gateway, claims, is_model)));
        Ok(Some(Back {
            came,
            need,
            calls_need,
            manner,
            readers,
            is_asked,
            is_model,
            is_part: response.status == StatusCode::PARTIAL_CONTENT,
            unreadable: None,
            charge: gateway.memory.charge(granted.who().identity.agent.index),
            held: BytesMut::new(),
            hold_bytes_max: usize::try_from(gateway.memory.content.hold_bytes_max.get())
                .unwrap_or(usize::MAX),
            has_ended: false,
            is_cut: false,
            following_bytes: 0,
            asked: Vec::new(),
            kept: Vec::new(),
        }))
    }

    /// Whether what is in it is read; and whether as a model's, whatever is said of it: clients of models look at what they
    /// asked for.
    #[must_use]
    pub fn reads(&self) -> (bool, bool) {
        (self.readers.is_some(), self.readers.is_some() && self.is_model)
    }

    /// Whether of its trailers nothing goes on that says more than a number: nothing in them is looked at, also behind no body.
    #[must_use]
    pub fn strips_trailers(&self) -> bool {
        self.is_asked
    }

    /// How its calls are put together, if they are.
    #[must_use]
    pub fn follows(&self) -> Option<Follows> {
        let CallsNeed { decided, logged } = self.calls_need;
        let following = match (decided, logged) {
            (CallsLook::Whole, _) => Some(Following::Held),
            (_, CallsLook::Whole) => Some(Following::Told),
            (CallsLook::Nothing, CallsLook::Nothing) => None,
            _ => Some(Following::Names),
        };
        let (bytes_max, is_model) = (self.hold_bytes_max, self.is_model);
        following.map(|following| Follows { following, bytes_max, is_model })
    }

    /// In which form it comes, if it is a stream that was cut behind a whole event.
    #[must_use]
    pub fn cut(&self) -> Option<Format> {
        Format::of(&self.came.media_type).filter(|_| self.is_cut)
    }

    /// Whether its client sees nothing of it, not even its head, before it was judged.
    #[must_use]
    pub fn is_withheld(&self) -> bool {
        self.manner == Manner::Whole && !self.has_ended
    }

    /// Judges its head, where what is in it does not decide, or goes on before all of it is there.
    ///
    /// # Errors
    /// Why it must not go on.
    pub fn begin(
        &mut self,
        gateway: &Arc<Gateway>,
        granted: &Granted,
        exchange: &mut Exchange,
    ) -> Result<(), DropReason> {
        granted.answers(Some(self.came.clone()));
        if self.is_part && self.need.decided == Look::Content {
            exchange.detail(IN_PART);
            let reason = DropReason::ContentUnreadable;
            exchange.stopped(&Ruling::deny("receive", reason));
            return Err(reason);
        }
        self.has_ended = self.came.complete;
        if self.is_withheld() { Ok(()) } else { self.judge(gateway, granted, exchange) }
    }

    /// Looks at what comes next of it, of which so many bytes are of events that have ended, and takes out of it what does not
    /// go on yet.
    ///
    /// # Errors
    /// Why it must not go on.
    pub fn pass(
        &mut self,
        gateway: &Arc<Gateway>,
        (granted, exchange): (&Granted, &mut Exchange),
        (body, end): (&mut Option<Bytes>, bool),
        (mut coming, ended): (Option<&mut Coming>, usize),
    ) -> Result<(), DropReason> {
        let bytes = body.take().unwrap_or_default();
        let held = self.held.len();
        self.came.seen += bytes.len() as u64;
        let (is_news, looked) = self.look(gateway, &bytes, end, coming.as_deref_mut(), exchange);
        if self.manner != Manner::Passes {
            self.held.extend_from_slice(&bytes);
        }
        let noted = self.note(exchange, &mut coming);
        let mut judged = looked.and(noted);
        let is_full = self.held.len() > self.hold_bytes_max;
        if is_full && self.manner == Manner::Events && ended == 0 && !end {
            let is_call = self.calls_need.decided == CallsLook::Whole;
            exchange.detail(if is_call { CALL_TOO_LARGE } else { EVENT_TOO_LARGE });
            judged = judged.and(Err(DropReason::ContentUnreadable));
        }
        let is_due = end || self.manner != Manner::Whole || is_full;
        if judged.is_ok() && is_due && (is_news || self.manner == Manner::Whole) {
            judged = self.judge(gateway, granted, exchange);
        } else if let Err(reason) = judged {
            exchange.stopped(&Ruling::deny("receive", reason));
        }
        self.is_cut = judged.is_err() && self.manner == Manner::Events;
        judged?;
        if is_full && self.manner == Manner::Whole && !end {
            if self.calls_need.decided == CallsLook::Whole && self.is_model {
                exchange.detail(CALL_TOO_LARGE);
                exchange.stopped(&Ruling::deny("receive", DropReason::ContentUnreadable));
                return Err(DropReason::ContentUnreadable);
            }
            self.manner = Manner::Streams(TAIL_BYTES);
        }
        self.has_ended |= end;
        let out = self.release(bytes, held, ended, end);
        // Pingora takes none at all for the end, and sends nothing of one that is empty.
        *body = (!end || !out.is_empty()).then_some(out);
        if end {
            self.readers = None;
            let _ = self.charge.set(0);
        }
        Ok(())
    }

    /// What goes on now.
    fn release(&mut self, bytes: Bytes, held: usize, ended: usize, end: bool) -> Bytes {
        let all = self.held.len();
        let n = match self.manner {
            Manner::Passes => return bytes,
            _ if end => all,
            Manner::Whole => 0,
            Manner::Events if ended > 0 => held + ended,
            Manner::Events => 0,
            Manner::Streams(tail) => all.saturating_sub(if self.readers.is_some() { tail } else { 0 }),
        };
        self.held.split_to(n.min(all)).freeze()
    }

    /// Looks at what came next; whether that is anything new.
    fn look(
        &mut self,
        gateway: &Gateway,
        bytes: &[u8],
        end: bool,
        mut coming: Option<&mut Coming>,
        exchange: &mut Exchange,
    ) -> (bool, Result<(), DropReason>) {
        // Its size is news wherever none is declared.
        let mut is_news = end || self.came.declared.is_none() && self.need.look() != Look::Nothing;
        self.came.complete |= end;
        let Some(readers) = &mut self.readers else { return (is_news, Ok(())) };
        if coming.is_none()
            && self.need.decided == Look::Content
            && (self.is_model || self.manner == Manner::Events)
        {
            // Where its events end, or what the model asks for, is not known any more.
            return (true, Err(DropReason::ContentUnreadable));
        }
        self.following_bytes = coming.as_ref().map_or(0, |coming| coming.memory_bytes());
        let first = coming.as_mut().map(|coming| (0, coming.take_texts()));
        let more = coming.as_mut().map(|coming| coming.take_more_texts()).unwrap_or_default();
        let read = readers.push(gateway, bytes, first.into_iter().chain(more));
        let read = if end { read.and_then(|()| readers.finish()) } else { read };
        if let Err(why) = read {
            self.unreadable = Some(why);
            self.forgo(&mut coming);
            let decides = self.need.decided == Look::Content;
            return (true, if decides { Err(DropReason::ContentUnreadable) } else { Ok(()) });
        }
        if let Some(found) = readers.news() {
            (self.came.findings, is_news) = (found, true);
        }
        if let Some(coming) = coming {
            match coming.take_calls() {
                Ok(calls) => {
                    is_news |= !calls.is_empty();
                    self.asked.extend(calls);
                }
                Err(why) if self.calls_need.decided != CallsLook::Nothing => {
                    exchange.detail(&format!("what the model asks tools for was not read: {why}"));
                    return (true, Err(DropReason::ContentUnreadable));
                }
                Err(_) => {}
            }
            let progress = coming.progress();
            let known = (self.came.input_tokens, self.came.output_tokens, self.came.tools.len());
            // What was counted stays counted, whatever a server says of it later.
            self.came.input_tokens = known.0.max(progress.input);
            self.came.output_tokens = known.1.max(progress.output);
            let unnamed = progress.has_more_tools.then(|| UNNAMED.to_owned());
            if progress.tools.len() + usize::from(unnamed.is_some()) != self.came.tools.len() {
                self.came.tools = progress.tools.iter().cloned().chain(unnamed).collect();
            }
            let Came { input_tokens, output_tokens, tools, .. } = &self.came;
            is_news |= known != (*input_tokens, *output_tokens, tools.len());
        }
        (is_news, Ok(()))
    }

    /// Takes memory for what is held and read.
    fn note(&mut self, exchange: &mut Exchange, coming: &mut Option<&mut Coming>) -> Result<(), DropReason> {
        if let Some(why) = self.unreadable {
            exchange.detail(&format!("the answer was not read: {why}"));
        }
        let readers = self.readers.as_ref().map_or(0, |readers| readers.memory_bytes());
        let charged = self.charge.set(self.held.capacity() + self.following_bytes + readers);
        if charged.is_err() && self.need.decided == Look::Nothing {
            // What is only told must not deny.
            self.forgo(coming);
            return Ok(());
        }
        charged
    }

    /// Reads it no longer.
    fn forgo(&mut self, coming: &mut Option<&mut Coming>) {
        self.readers = None;
        self.following_bytes = 0;
        coming.iter_mut().for_each(|coming| coming.forgo());
        self.came.followed = CallsLook::Nothing;
        (self.came.looked, self.came.read) = (Look::Size, Look::Size);
        self.came.findings.clear();
    }

    /// Judges it as far as it came, and each call that became whole by itself; what it is obliged to is enforced once.
    fn judge(
        &mut self,
        gateway: &Arc<Gateway>,
        granted: &Granted,
        exchange: &mut Exchange,
    ) -> Result<(), DropReason> {
        let mut judged = self.judge_one(gateway, granted, exchange);
        for call in std::mem::take(&mut self.asked) {
            if judged.is_err() {
                break;
            }
            self.came.call = Some(Arc::new(call));
            judged = self.judge_one(gateway, granted, exchange);
            self.came.call = None;
        }
        granted.answers(Some(self.came.clone()));
        judged
    }

    fn judge_one(
        &mut self,
        gateway: &Arc<Gateway>,
        granted: &Granted,
        exchange: &mut Exchange,
    ) -> Result<(), DropReason> {
        let judged = gateway.snapshots.current().and_then(|plan| {
            let who = granted.who().under(&plan, gateway.now_s())?;
            Ok(self.came.rule(&plan, &who, granted.admitted()))
        });
        let ruling = judged.unwrap_or_else(|reason| Ruling::deny("receive", reason));
        if self.came.is_type_unclear && ruling.verdict == Err(DropReason::ContentUnreadable) {
            exchange.detail(TYPE_UNCLEAR);
        }
        let ruling = duties::begin(gateway, exchange, &mut self.kept, ruling);
        ruling.verdict.inspect_err(|_| exchange.stopped(&ruling))
    }

    /// Notes in the record what is known of it.
    pub fn tell(&self, exchange: &mut Exchange) {
        let facts = self.readers.as_ref().map(|readers| readers.all.facts());
        let rules = self.readers.as_ref().map(|readers| readers.rules.version().to_owned());
        exchange.answer(AnswerFacts {
            at_once: self.manner == Manner::Whole,
            prompt_rules: rules.unwrap_or_default(),
            ..self.came.facts(facts)
        });
    }
}

/// Why a stream is cut one of whose events is not held whole.
const EVENT_TOO_LARGE: &str =
    "an event of the answer is larger than what is held: see `hold_bytes_max` in [content]";

/// Why an answer is refused of which a part came.
const IN_PART: &str = "the answer is a part of what there is (206), and what is in all of it decides";

/// Why a body, or an answer, is refused whose media type is not known.
pub(super) const TYPE_UNCLEAR: &str =
    "its Content-Type says more than one thing, or nothing, and policy asks for its media type";

/// Has all of what there is come, where what is in it may decide: what may not come whole must not come in parts. A server
/// may answer any request without regard to `Range` (RFC 9110 section 14.2), so its client knows what to do.
pub fn ask_for_whole(gateway: &Gateway, granted: &Granted, request: &mut RequestHeader) {
    let plan = gateway.snapshots.current();
    if plan.is_ok_and(|plan| !decide::decides_receive(&plan, granted.who())) {
        return;
    }
    for name in ["range", "if-range"] {
        request.remove_header(name);
    }
}

/// Why an answer is refused that asks for more than is held.
const CALL_TOO_LARGE: &str =
    "a call that the model asks for is larger than what is held: see `hold_bytes_max` in [content]";

/// Whether an answer is to come as it is, since its events are judged one by one: of a call that streams, or whose client takes
/// a stream of events; or where a model may answer by one, whoever asked for that and however, and guards are asked about it.
#[must_use]
pub fn wants_plain(gateway: &Gateway, granted: &Granted, request: &RequestHeader) -> bool {
    let accepts =
        request.headers.get("accept").is_some_and(|v| v.as_bytes().starts_with(b"text/event-stream"));
    let streams = accepts || granted.call().is_some_and(|call| call.streams());
    let asks = || {
        let plan = gateway.snapshots.current().ok()?;
        let is_model = || gateway.calls.provider(granted.admitted()).is_some();
        let may_decide = || decide::decides_receive(&plan, granted.who()) && is_model();
        Some(decide::asks_receive(&plan, granted.who()).0 && (streams || may_decide()))
    };
    request.headers.contains_key("accept-encoding") && asks().unwrap_or(true)
}
