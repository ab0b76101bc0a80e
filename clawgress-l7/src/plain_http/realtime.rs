//! A conversation with a model, message by message as calls of a model: what it offers and shows is asked of `llm`, what the model
//! says and asks for of `receive`, and what it takes is counted.
//!
//! INVARIANT: where a call that a model asks for decides, nothing of it goes on before it is whole and judged.

use std::collections::VecDeque;
use std::sync::Arc;

use clawgress_api::{CallCost, ModelFacts, TokenUsage};
use clawgress_inspect::llm::answer::{Asked, Following};
use clawgress_inspect::llm::realtime::{Dialect, Heard, Sent, Spent, Unheard, sent_in};
use clawgress_inspect::llm::{self, ModelName, Provenance};
use clawgress_inspect::payload::{Claims, Inspector, Limits, Readings, Unreadable};
use clawgress_inspect::prompt::Rules;
use clawgress_policy::CallsLook;

use super::Admitted;
use super::came::Came;
use super::model::{Calling, Facts, TOOLS_TOLD, used};
use crate::gateway::Gateway;

/// Tools that a conversation may offer: as many as a request may.
const TOOLS_MAX: usize = 1024;
/// Requests that wait for their answer and are told apart: what is asked beyond counts as of the last.
const REQUESTS_MAX: usize = 64;
/// What stands for tools whose names are not known.
const UNNAMED: &str = "unnamed";

/// A conversation.
#[derive(Debug)]
pub struct Realtime {
    dialect: Dialect,
    earlier: Earlier,
    /// Whether a message was a call.
    has_begun: bool,
    /// How policy asks about the calls that messages are, if it does.
    calling: Option<Calling>,
    limits: Limits,
    rules: Arc<Rules>,
    heard: Heard,
    follows: Option<Following>,
    /// What looks at what the model says, and at what it asks tools for.
    texts: [Option<Inspector>; 2],
    /// What the conversation offers, in order.
    tools: Vec<String>,
    /// What it shows, of which nobody has counted the answer yet, in order; and what is judged at the moment.
    shown: VecDeque<Shown>,
    judged: Option<Shown>,
    /// What responses took so far.
    taken: Option<(TokenUsage, CallCost)>,
    /// Whether what the server says can be followed no longer, since that is only told of.
    is_lost: bool,
}

/// What messages leave to those behind them.
#[derive(Debug, Default)]
struct Earlier {
    /// The model that a message named; where it was opened none was. Of calls that name each their own, the one of all.
    model: Option<String>,
    /// Whether they named several; and whether the provider may keep any of them.
    has_several: bool,
    stores: bool,
    /// The most tokens that any lets an answer have; `None` where one has no limit.
    tokens_max: Option<u64>,
}

/// What is shown, and asked with it.
#[derive(Debug)]
struct Shown {
    /// Of a conversation of the Responses API; empty in others.
    lane: String,
    model: Option<String>,
    tokens: u64,
    /// Whether it is of a request that is not to be taken for others.
    is_own: bool,
    /// Whether an answer to it is asked for.
    asks: bool,
    /// Whether the server said that something in its lane is not answered.
    is_refused: bool,
}

/// A message that is a call.
#[derive(Debug)]
pub struct Call {
    /// What is known of it.
    pub facts: Facts,
    /// What the record tells: of all that were offered, which tools.
    pub record: ModelFacts,
    /// Whether it asks for an answer.
    pub asks: bool,
}

/// Why a message can't be read as a call.
#[derive(Debug)]
pub enum Unsaid {
    /// It is no message that all read alike.
    Message(String),
    /// What it shows can't be read.
    Content(Unreadable),
}

/// Why a message of a server can't be known.
#[derive(Debug, thiserror::Error)]
pub enum Unknown {
    /// As a message of a model.
    #[error(transparent)]
    Message(#[from] Unheard),
    /// What the model says.
    #[error("what the model says can't be read: {0}")]
    Text(#[from] Unreadable),
}

// === impl Realtime ===

impl Realtime {
    /// A conversation of which nothing came; calls of tools are put together as `follows` says.
    pub fn new(
        gateway: &Gateway,
        dialect: Dialect,
        calling: Option<Calling>,
        follows: Option<Following>,
    ) -> Realtime {
        let content = &gateway.memory.content;
        let bytes_max = usize::try_from(content.hold_bytes_max.get()).unwrap_or(usize::MAX);
        Realtime {
            dialect,
            earlier: Earlier::default(),
            has_begun: false,
            calling,
            limits: Limits {
                decoded_bytes_max: content.decoded_bytes_max.get(),
                ratio_max: content.ratio_max.get().into(),
            },
            rules: gateway.calls.rules(),
            heard: Heard::new(dialect, bytes_max, follows.unwrap_or(Following::Names)),
            follows,
            texts: [None, None],
            tools: Vec::new(),
            shown: VecDeque::new(),
            judged: None,
            taken: None,
            is_lost: false,
        }
    }

    /// Reads what a client says; the call that it is, if policy asks about those and it is one.
    ///
    /// # Errors
    /// Why it can't be known.
    pub fn says(&mut self, text: &[u8]) -> Result<Option<Call>, Unsaid> {
        let Some(calling) = &self.calling else { return Ok(None) };
        let sent = sent_in(self.dialect, text);
        let (sent, lane) = sent.map_err(|why| Unsaid::Message(why.to_string()))?;
        let asks = matches!(sent, Sent::Asks(_) | Sent::GoesOn(_));
        // Each request of the Responses API has all that is its own, but what goes on from one before it.
        let is_own = self.dialect == Dialect::Responses && matches!(sent, Sent::Asks(_));
        let document = match sent {
            Sent::Other if self.has_begun || self.dialect == Dialect::Events => return Ok(None),
            // Where no opening was asked about, whatever comes first is the call: of a model that nobody names.
            Sent::Other => "{}".to_owned(),
            Sent::Shows(document) | Sent::Asks(document) | Sent::GoesOn(document) => document,
        };
        let is_first = !std::mem::replace(&mut self.has_begun, true);
        let readings = Readings { call: Some(Some(self.dialect.surface())), ..Readings::default() };
        let inspector = Inspector::reading(Claims::new(&[b"application/json"], &[]), self.limits, readings);
        let mut inspector = inspector.with_rules(&self.rules);
        let read = inspector.push(document.as_bytes()).and_then(|()| inspector.finish());
        read.map_err(Unsaid::Content)?;
        let (Some(request), assessment) = (inspector.call(), inspector.assessment().unwrap_or_default())
        else {
            return Ok(None);
        };
        let mut call = request.call().clone();
        match &call.model {
            _ if is_own => self.earlier.calls(&call, is_first, self.dialect),
            _ if self.dialect == Dialect::Responses => self.earlier.goes_on(&mut call)?,
            Some(_) => self.earlier.model.clone_from(&call.model),
            None => call.model.clone_from(&self.earlier.model),
        }
        let found = inspector.findings().map(|finding| finding.name().to_owned());
        let found: Vec<String> = found.chain(assessment.findings().map(str::to_owned)).collect();
        for tool in &call.tools {
            if let Err(at) = self.tools.binary_search(tool) {
                if self.tools.len() >= TOOLS_MAX {
                    return Err(Unsaid::Message(format!("it offers more than {TOOLS_MAX} tools")));
                }
                self.tools.insert(at, tool.clone());
            }
        }
        let (model, tokens) = (call.model.clone(), call.tokens_estimated);
        // Of the Responses API, what asks for nothing has nothing that is billed.
        let counts = asks || self.dialect != Dialect::Responses;
        self.judged = counts.then_some(Shown { lane, model, tokens, is_own, asks, is_refused: false });
        let before = self.shown.iter().filter(|shown| !shown.is_refused).map(|shown| shown.tokens);
        let shown = before.fold(tokens, u64::saturating_add);
        let mut facts = calling.facts(&call, assessment.score, found.iter().map(String::as_str));
        match is_own {
            true => {
                self.earlier.limits(facts.tokens_max());
                facts.converses(&call.tools, call.tokens_estimated);
            }
            false => facts.converses(&self.tools, shown),
        }
        if self.dialect == Dialect::Responses && !is_own {
            facts.limited(self.earlier.limit(facts.tokens_max()));
        }
        facts.held_against(&self.rules);
        let record = ModelFacts {
            tools: self.tools.iter().take(TOOLS_TOLD).cloned().collect(),
            tools_count: self.tools.len() as u64,
            ..facts.record()
        };
        Ok(Some(Call { facts, record, asks }))
    }

    /// Notes that what was said last goes on: what it shows may be billed.
    pub fn goes_on(&mut self) {
        let Some(judged) = self.judged.take() else { return };
        if self.shown.len() >= REQUESTS_MAX {
            self.shown.retain(|shown| !shown.is_refused);
        }
        let is_full = self.shown.len() >= REQUESTS_MAX;
        // Each response of realtime events is asked for by itself, and what is shown behind that is the next one's. A turn of the Live
        // API answers all that was asked until its end.
        let is_next = |shown: &Shown| self.dialect == Dialect::Events && shown.asks;
        let is_same = |shown: &Shown| {
            !judged.is_own && !shown.is_refused && shown.lane == judged.lane && !is_next(shown)
        };
        match self.shown.iter_mut().rev().find(|shown| is_full || is_same(shown)) {
            Some(shown) => {
                shown.tokens = shown.tokens.saturating_add(judged.tokens);
                shown.asks |= judged.asks;
            }
            None => self.shown.push_back(judged),
        }
    }

    /// What was shown for what is over in this lane: the first of it that was not refused, or of all that wait where the server has no
    /// such lanes.
    fn take_shown(&mut self, lane: &str) -> Option<Shown> {
        let first = |is: &dyn Fn(&Shown) -> bool| self.shown.iter().position(is);
        let at = first(&|shown| shown.lane == lane && !shown.is_refused)
            .or_else(|| first(&|shown| shown.lane == lane))
            .or_else(|| first(&|shown| !shown.is_refused));
        let taken = self.shown.remove(at?);
        self.shown.retain(|shown| !shown.is_refused || shown.lane != lane);
        taken
    }

    /// Notes that a request in this lane was refused, the first or the one behind it. Which of those it is that wait, an error does not
    /// say: what comes back all the same is of that request.
    fn refused(&mut self, lane: &str, is_behind: bool) {
        let is_asked = |shown: &Shown| shown.lane == lane && shown.asks && !shown.is_refused;
        let mut asked = self.shown.iter_mut().enumerate().filter(|(_, shown)| is_asked(shown));
        let Some((at, shown)) = asked.nth(usize::from(is_behind)) else { return };
        match self.dialect {
            Dialect::Responses => shown.is_refused = true,
            // What was shown stays in the conversation: the next response that is asked for is shown it, if that one is not it.
            Dialect::Events | Dialect::Live => {
                let tokens = shown.tokens;
                shown.asks = false;
                if let Some(next) = self.shown.range_mut(at + 1..).find(|shown| is_asked(shown)) {
                    next.tokens = next.tokens.saturating_add(tokens);
                    self.shown.remove(at);
                }
            }
        }
    }

    /// Hears what a server says, and whether it decides: what is known of it goes to `came`, and calls that became whole come
    /// back.
    ///
    /// # Errors
    /// Why it can't be known.
    pub fn hears(
        &mut self,
        gateway: &Gateway,
        admitted: &Admitted,
        (text, decides): (&[u8], bool),
        came: &mut Came,
    ) -> Result<Vec<Asked>, Unknown> {
        if self.is_lost {
            return Ok(Vec::new());
        }
        self.heard.message(text)?;
        match self.look() {
            Err(why) if decides => return Err(why.into()),
            // Where it is only told of, so is what it came to until then.
            _ => {}
        }
        let mut findings: Vec<String> = std::mem::take(&mut came.findings);
        for text in self.texts.iter().flatten() {
            findings.extend(text.findings().map(|finding| finding.name().to_owned()));
            let assessed = text.assessment();
            findings.extend(assessed.iter().flat_map(|found| found.findings()).map(str::to_owned));
        }
        findings.sort_unstable();
        findings.dedup();
        came.findings = findings;
        self.tell(came);
        for spent in self.heard.take_spent() {
            self.take(gateway, admitted, spent);
        }
        for (lane, is_behind) in self.heard.take_refused() {
            self.refused(&lane, is_behind);
        }
        Ok(self.heard.take_calls())
    }

    /// Looks at what the model said since.
    ///
    /// # Errors
    /// Why some of it can't be read.
    fn look(&mut self) -> Result<(), Unreadable> {
        let from = [Provenance::Model, Provenance::ToolArguments];
        for ((text, said), from) in self.texts.iter_mut().zip(self.heard.take_texts()).zip(from) {
            if !said.is_empty() {
                let new = || Inspector::new(Claims::new(&[], &[]), self.limits).hearing(&self.rules, from);
                text.get_or_insert_with(new).push(&said)?;
            }
        }
        Ok(())
    }

    /// What is known of all that came so far.
    pub fn tell(&self, came: &mut Came) {
        let (tools, has_more) = self.heard.tools();
        came.tools = tools.iter().cloned().chain(has_more.then(|| UNNAMED.to_owned())).collect();
        (came.input_tokens, came.output_tokens) = self.heard.tokens();
        came.followed = match self.follows {
            Some(Following::Held) => CallsLook::Whole,
            Some(Following::Names | Following::Told) => CallsLook::Names,
            None => CallsLook::Nothing,
        };
    }

    /// Follows what the server says no longer.
    pub fn forgo(&mut self) {
        self.is_lost = true;
    }

    /// Whether what the server said last waits for the rest of a call.
    pub fn waits(&self) -> bool {
        !self.is_lost && self.heard.waits()
    }

    fn take(&mut self, gateway: &Gateway, admitted: &Admitted, spent: Spent) {
        let Spent { lane, model, usage, is_estimated: estimated, has_sound } = spent;
        let shown = self.take_shown(&lane);
        let tokens = shown.as_ref().map_or(0, |shown| shown.tokens);
        let input = if estimated { usage.input.max(tokens) } else { usage.input };
        let asked = shown.and_then(|shown| shown.model.filter(|_| shown.is_own));
        let named = || self.calling.as_ref().and_then(Calling::model).or_else(|| self.earlier.model.clone());
        let model = model.or(asked).or_else(named);
        let tokens = TokenUsage { model, input, estimated, ..used(&usage) };
        let cost = match has_sound {
            // How much of it there was, nobody has said.
            true => CallCost::Unpriced,
            false => gateway.calls.cost(admitted, &tokens, gateway.audit.now()),
        };
        self.taken = Some(match self.taken.take() {
            None => (tokens, cost),
            Some((before, cost_before)) => (sum(before, &tokens), sum_of_costs(cost_before, cost)),
        });
    }

    /// What it took, once it is over.
    pub fn spent(&mut self, gateway: &Gateway, admitted: &Admitted) -> Option<(TokenUsage, CallCost)> {
        for spent in self.heard.take_left() {
            self.take(gateway, admitted, spent);
        }
        // What the provider has, and nothing came of, may be billed, as by HTTP.
        self.shown.retain(|shown| shown.asks && !shown.is_refused);
        while let Some(shown) = self.shown.front() {
            let spent = Spent { lane: shown.lane.clone(), is_estimated: true, ..Spent::default() };
            self.take(gateway, admitted, spent);
        }
        self.taken.take()
    }

    /// Bytes of memory that it takes.
    pub fn memory_bytes(&self) -> usize {
        let texts = self.texts.iter().flatten().map(Inspector::memory_bytes).sum::<usize>();
        let tools = self.tools.iter().map(|tool| size_of::<String>() + tool.capacity()).sum::<usize>();
        let of = |shown: &Shown| {
            size_of::<Shown>() + shown.lane.capacity() + shown.model.as_ref().map_or(0, String::capacity)
        };
        let shown = self.shown.iter().chain(&self.judged).map(of).sum::<usize>();
        self.heard.memory_bytes() + texts + tools + shown
    }
}

// === impl Earlier ===

impl Earlier {
    /// Notes what a call that has all that is its own leaves to what goes on from it, which may go on from any.
    fn calls(&mut self, own: &llm::Call, is_first: bool, dialect: Dialect) {
        if is_first {
            self.model.clone_from(&own.model);
            self.tokens_max = Some(0);
        }
        self.has_several |= self.model != own.model;
        if self.has_several {
            self.model = None;
        }
        self.stores |= own.store.unwrap_or(dialect.surface().stores_by_default());
    }

    /// Has a call be what it goes on from, which may be any: servers may look at nothing that it sets by itself, or at all of it.
    ///
    /// # Errors
    /// If it names another model.
    fn goes_on(&self, call: &mut llm::Call) -> Result<(), Unsaid> {
        if call.model.is_some() && call.model != self.model {
            return Err(Unsaid::Message(
                "it names a model, and goes on from what may be another's".to_owned(),
            ));
        }
        call.model.clone_from(&self.model);
        call.store = Some(self.stores || call.store == Some(true));
        Ok(())
    }

    /// Notes the limit of a call that has all that is its own.
    fn limits(&mut self, own: Option<u64>) {
        self.tokens_max = self.tokens_max.zip(own).map(|(all, own)| all.max(own));
    }

    /// The limit of what goes on from any of them, and sets this one.
    fn limit(&self, own: Option<u64>) -> Option<u64> {
        self.tokens_max.map(|all| all.max(own.unwrap_or_default()))
    }
}

/// Whether two names are of one model: of several, none took all.
fn is_same(one: &str, other: &str) -> bool {
    ModelName::of(one).family == ModelName::of(other).family
}

fn sum(all: TokenUsage, more: &TokenUsage) -> TokenUsage {
    TokenUsage {
        model: all.model.filter(|all| more.model.as_ref().is_some_and(|more| is_same(all, more))),
        input: all.input.saturating_add(more.input),
        output: all.output.saturating_add(more.output),
        cached: all.cached.saturating_add(more.cached),
        cache_written: all.cache_written.saturating_add(more.cache_written),
        reasoning: all.reasoning.saturating_add(more.reasoning),
        input_audio: all.input_audio.saturating_add(more.input_audio),
        cached_audio: all.cached_audio.saturating_add(more.cached_audio),
        output_audio: all.output_audio.saturating_add(more.output_audio),
        estimated: all.estimated || more.estimated,
    }
}

/// Of what nobody knows in part, nobody knows all.
fn sum_of_costs(all: CallCost, more: CallCost) -> CallCost {
    match (all, more) {
        (
            CallCost::Priced { nano_usd: all, source, estimated: is },
            CallCost::Priced { nano_usd: more, estimated: also, .. },
        ) => CallCost::Priced { nano_usd: all.saturating_add(more), source, estimated: is || also },
        _ => CallCost::Unpriced,
    }
}
