//! Calls of models: which requests are some, and what policy is told of them. What comes back is read in `coming.rs`.
//!
//! INVARIANT: what goes to a provider is asked about, whatever its path: where what it asks for can't be known, it names no
//! model.

use std::sync::Arc;

use anyhow::{Context as _, Result};
use clawgress_api::config::{Content, Llm, LlmServer, UNLISTED};
use clawgress_api::{CallCost, ModelFacts, TokenUsage};
use clawgress_inspect::http1;
use clawgress_inspect::llm::answer::{Answer, Usage};
use clawgress_inspect::llm::realtime::Dialect;
use clawgress_inspect::llm::vocabulary::Vocabulary;
use clawgress_inspect::llm::{self, Call, Choice, ModelName, Request, Route, Server, Surface};
use clawgress_inspect::price::{BUILT_IN as BUILT_IN_PRICES, Cost, Day, Prices};
use clawgress_inspect::prompt::{BUILT_IN, Rules};
use clawgress_policy::content::ModelCall;
use clawgress_policy::{Look, Operation, PayloadNeed, path};
use jiff::Timestamp;

use super::{Admitted, Upgrade};
use crate::counter::{Counter, Counting};
use crate::decide;
use crate::endpoints::Upstream;
use crate::followed::Followed;
use crate::identify::Who;
use crate::snapshot::Plan;

mod usage;

pub use usage::Asking;

/// Names of tools that a record tells, and their bytes.
pub(super) const TOOLS_TOLD: usize = 64;

/// How calls of models are known, and read.
#[derive(Debug)]
pub struct Calls {
    servers: Vec<Server>,
    /// Bytes of one that are held.
    pub hold_bytes_max: usize,
    asks_usage: bool,
    /// What counts their tokens, if anything does.
    counter: Option<Counter>,
    /// What steers models.
    rules: Followed<Rules>,
    /// What they cost.
    prices: Followed<Prices>,
}

/// What is known of a call.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    provider: Arc<str>,
    surface: &'static str,
    model: String,
    family: String,
    tokens_estimated: u64,
    tokens_max: Option<u64>,
    stream: bool,
    tools: Vec<String>,
    attachments: u32,
    images: u32,
    attachment_bytes: u64,
    prompt_score: u32,
    unpriced: bool,
    tool_choice: String,
    end_user: String,
    store: bool,
    partial: bool,
    findings: Vec<String>,
    /// The version of the rules that its texts were held against.
    prompt_rules: String,
    /// Its tokens, where they are counted.
    counting: Option<Counting>,
}

/// How policy asks whether a request calls a model.
#[derive(Clone, Debug)]
pub struct Calling {
    /// Where it goes, if that is to a provider or a server that is named.
    pub route: Option<Route>,
    /// What its path tells of who is asked.
    told: Option<llm::Told>,
    /// Who needs to know.
    pub need: PayloadNeed,
    /// The conversation that it opens, if it opens one.
    opens: Option<Dialect>,
    /// What models cost, and today.
    prices: Arc<Prices>,
    day: Day,
}

// === impl Calls ===

impl Calls {
    /// Those of the configuration.
    ///
    /// # Errors
    /// The first server that can't be used, and why.
    pub fn new(llm: &Llm, content: &Content) -> Result<Calls> {
        let server = |LlmServer { name, url }: &LlmServer| -> Result<Server> {
            let parsed = Upstream::parse(0, url, None);
            let parsed = parsed.with_context(|| format!("model server `{name}`: `{url}` can't be used"))?;
            let path = path::normal(parsed.path.trim_end_matches('/')).into_owned();
            Ok(Server {
                name: name.as_str().into(),
                host: parsed.host.to_string(),
                port: Some(parsed.port),
                path,
            })
        };
        Ok(Calls {
            servers: llm.servers.iter().map(server).collect::<Result<_>>()?,
            hold_bytes_max: usize::try_from(llm.held_bytes_max(content)).unwrap_or(usize::MAX),
            asks_usage: llm.ask_usage,
            counter: llm.count_tokens.then(Counter::start).transpose().context("tokens can't be counted")?,
            prices: Followed::new("prices", "prices", llm.prices.as_deref(), prices)?,
            rules: Followed::new("rules of prompts", "prompt_rules", llm.prompt_rules.as_deref(), rules)?,
        })
    }

    /// What prompts are held against from here on.
    #[must_use]
    pub fn rules(&self) -> Arc<Rules> {
        self.rules.now()
    }

    /// Reads the operator's files again whenever they change, for ever.
    pub async fn follow(&self) {
        tokio::join!(self.prices.follow(), self.rules.follow());
    }

    /// How policy asks about `admitted`, if it does: a request that sends nothing calls nobody.
    #[must_use]
    pub fn calling(&self, plan: &Plan, who: &Who, admitted: &Admitted, now: Timestamp) -> Option<Calling> {
        let (has_body, is_upgrade) =
            (admitted.body != http1::Body::Length(0), admitted.upgrade == Upgrade::WebSocket);
        if !has_body && !is_upgrade {
            return None;
        }
        let need = decide::call_need(plan, who);
        if need.look() == Look::Nothing {
            return None;
        }
        let route = self.route(admitted, is_upgrade, has_body);
        (route.is_some() || has_body).then(|| Calling {
            route,
            told: llm::tells(&admitted.path),
            need,
            opens: self.converses(admitted),
            prices: self.prices.now(),
            day: day_of(now),
        })
    }
}

// === impl Calls, of routes ===

impl Calls {
    /// The provider of models that a request goes to, or the server that is named: also of one that sends nothing, and may ask
    /// for an answer that was made besides.
    #[must_use]
    pub fn provider(&self, admitted: &Admitted) -> Option<Arc<str>> {
        let is_upgrade = admitted.upgrade == Upgrade::WebSocket;
        self.route(admitted, is_upgrade, true).map(|route| route.provider)
    }

    /// The surface of such a request.
    #[must_use]
    pub fn surface(&self, admitted: &Admitted) -> Option<Surface> {
        self.route(admitted, admitted.upgrade == Upgrade::WebSocket, true).map(|route| route.surface)
    }

    /// The conversation with a model that a request opens, whose messages are read as calls; `None` if it opens none.
    #[must_use]
    pub fn converses(&self, admitted: &Admitted) -> Option<Dialect> {
        let dialect = Dialect::of(&admitted.path).filter(|_| admitted.upgrade == Upgrade::WebSocket)?;
        self.provider(admitted).map(|_| dialect)
    }

    /// Whether what answers a request is a model, of which policy asks.
    #[must_use]
    pub fn answers(&self, plan: &Plan, who: &Who, admitted: &Admitted) -> bool {
        decide::call_need(plan, who).look() != Look::Nothing && self.provider(admitted).is_some()
    }

    /// What an answer to a request costs, by the tokens it took; not known where nobody has a price for the model.
    #[must_use]
    pub fn cost(&self, admitted: &Admitted, tokens: &TokenUsage, now: Timestamp) -> CallCost {
        let TokenUsage { model, estimated, .. } = tokens;
        let usage = Usage {
            input: tokens.input,
            output: tokens.output,
            cached: tokens.cached,
            cache_written: tokens.cache_written,
            reasoning: tokens.reasoning,
            input_audio: tokens.input_audio,
            cached_audio: tokens.cached_audio,
            output_audio: tokens.output_audio,
        };
        let provider = self.provider(admitted).unwrap_or_else(|| UNLISTED.into());
        let model = model.as_deref().unwrap_or_default();
        match self.prices.now().cost(&provider, model, day_of(now), &usage) {
            Cost::Priced { nanodollars, source } => {
                CallCost::Priced { nano_usd: nanodollars, source: source.to_string(), estimated: *estimated }
            }
            Cost::Unpriced => CallCost::Unpriced,
        }
    }

    /// Whether tokens of calls are counted.
    #[must_use]
    pub fn counts(&self) -> bool {
        self.counter.is_some()
    }

    /// Whether it is one call or another by how its server takes an encoded slash in its path.
    #[must_use]
    pub fn is_ambiguous(&self, admitted: &Admitted) -> bool {
        let is_upgrade = admitted.upgrade == Upgrade::WebSocket;
        self.about(admitted, (is_upgrade, true), llm::is_ambiguous)
    }

    fn route(&self, admitted: &Admitted, is_upgrade: bool, has_body: bool) -> Option<Route> {
        self.about(admitted, (is_upgrade, has_body), llm::route)
    }

    fn about<T>(
        &self,
        admitted: &Admitted,
        (is_upgrade, has_body): (bool, bool),
        ask: impl FnOnce(&[Server], &llm::Target<'_>) -> T,
    ) -> T {
        let host = admitted.host.to_string();
        let Admitted { port, path, query, .. } = admitted;
        ask(&self.servers, &llm::Target { host: &host, port: *port, path, query, is_upgrade, has_body })
    }
}

/// The prices of the operator's own table, before those that come with the program.
fn prices(own: Option<&str>) -> Result<Prices> {
    let built_in = Prices::parse(BUILT_IN_PRICES).context("the built-in table of prices can't be read")?;
    Ok(match own {
        Some(own) => built_in.overridden_by(Prices::parse(own)?),
        None => built_in,
    })
}

/// The operator's own rules, or those that come with the program.
fn rules(own: Option<&str>) -> Result<Rules> {
    match own {
        Some(own) => Ok(Rules::parse(own)?),
        None => Rules::parse(BUILT_IN).context("the built-in rules of prompts can't be read"),
    }
}

/// The day of a moment, in UTC.
fn day_of(now: Timestamp) -> Day {
    let date = now.to_zoned(jiff::tz::TimeZone::UTC).date();
    let part = |n: i8| u32::try_from(n).unwrap_or_default();
    let year = u32::try_from(date.year()).unwrap_or_default();
    Day::new(year, part(date.month()), part(date.day())).unwrap_or(Day::EVER)
}

/// What a head says of a body.
#[derive(Clone, Copy, Debug)]
pub struct Unread {
    /// Whether only its server can read it.
    pub is_protobuf: bool,
    /// Its length, where that is told.
    pub bytes: Option<u64>,
}

// === impl Unread ===

impl Unread {
    /// Of no body.
    pub const NONE: Unread = Unread { is_protobuf: false, bytes: Some(0) };
}

// === impl Calling ===

impl Calling {
    /// Whether its body is known to be one of a call.
    #[must_use]
    pub fn is_read(&self) -> bool {
        self.surface_read().is_some()
    }

    /// Whether its path tells that it is one, whoever is asked.
    #[must_use]
    pub fn is_told(&self) -> bool {
        self.told == Some(llm::Told::Surely)
    }

    /// Whether it is one of a call by where it goes, or by what was read of it.
    #[must_use]
    pub fn takes(&self, call: &Request) -> bool {
        let is_there = |told| call.call().shape.is_call_there(told);
        self.is_read() || call.is_call() || self.told.is_some_and(is_there)
    }

    /// What its body is read for, if it is one of a call that is known.
    #[must_use]
    pub fn surface_read(&self) -> Option<Surface> {
        self.route.as_ref().map(|route| route.surface).filter(|surface| surface.is_read())
    }

    /// The model that its route names.
    #[must_use]
    pub fn model(&self) -> Option<String> {
        self.route.as_ref().and_then(|route| route.model.clone())
    }

    /// Whether what it asks for is not known by where it goes, and what it shows a model may be.
    #[must_use]
    pub fn is_other(&self) -> bool {
        self.route.as_ref().is_some_and(|route| matches!(route.surface, Surface::Other | Surface::Batches))
    }

    /// Who needs to see its body, which may be text, or a form, or not: what goes to nobody who is listed may be a call, and need not be
    /// readable.
    #[must_use]
    pub fn body_need(&self, may_be_text: bool) -> PayloadNeed {
        match &self.route {
            Some(_) if self.is_read() || self.is_other() && may_be_text => self.need,
            Some(_) => PayloadNeed::default(),
            None => PayloadNeed { decided: Look::Nothing, logged: Look::Content },
        }
    }

    /// What is known of it before its body is, or where nobody reads that.
    #[must_use]
    pub fn before(&self, body: Unread) -> Option<Facts> {
        let names_later = |route: &Route| match self.opens {
            // Each message is the call, or the first: nothing goes on before it is judged.
            Some(Dialect::Responses) => true,
            Some(Dialect::Live) => route.model.is_none() && !route.is_model_unclear,
            Some(Dialect::Events) | None => false,
        };
        let route = self.route.as_ref().filter(|route| !self.is_read() && !names_later(route))?;
        let mut facts = Facts {
            provider: Arc::clone(&route.provider),
            surface: route.surface.name(),
            ..Facts::default()
        };
        facts.names(route.model.clone().unwrap_or_default());
        facts.stream = route.surface == Surface::Realtime;
        facts.partial = matches!(route.surface, Surface::Batches | Surface::Files) || body.is_protobuf;
        if body.bytes != Some(0) && (route.surface == Surface::Files || body.is_protobuf) {
            (facts.attachments, facts.attachment_bytes) = (1, body.bytes.unwrap_or(u64::MAX));
        }
        facts.unpriced = !self.is_priced(&facts);
        Some(facts)
    }

    /// What is known of it by its body.
    #[must_use]
    pub fn facts<'a>(&self, call: &Call, prompt_score: u32, found: impl Iterator<Item = &'a str>) -> Facts {
        let (route, surface) = (self.route.as_ref(), self.surface());
        let in_path = route.and_then(|route| route.model.as_ref());
        let differs = in_path.is_some_and(|model| call.model.as_ref().is_some_and(|body| body != model));
        // Which of two a server of the operator's takes, is not known.
        let model = in_path.or(call.model.as_ref());
        let besides = route.and_then(|route| route.besides.as_ref());
        let differs = differs || besides.is_some_and(|besides| model != Some(besides));
        let is_unclear =
            route.is_some_and(|route| route.is_model_unclear || differs && route.is_named) || call.has_others;
        // What is asked for elsewhere may ask for any.
        let is_other = self.is_other();
        let model = model.filter(|_| !is_unclear && !is_other).cloned();
        let stream = route.and_then(|route| route.stream).or(call.stream);
        let is_odd = route.is_some() && !is_other && call.shape.differs(surface);
        let mut facts = Facts {
            provider: route.map_or_else(|| UNLISTED.into(), |route| Arc::clone(&route.provider)),
            surface: surface.name(),
            tokens_estimated: call.tokens_estimated,
            tokens_max: call.tokens_max_of(surface, route.map(Route::cap_names).unwrap_or_default()),
            stream: stream.unwrap_or_else(|| surface.streams_by_default()),
            tools: call.tools.clone(),
            attachments: call.attachments.count,
            images: call.attachments.images,
            attachment_bytes: call.attachments.bytes,
            prompt_score,
            tool_choice: match &call.tool_choice {
                Choice::Named(name) => name.clone(),
                Choice::Unsaid => String::new(),
            },
            end_user: call.end_user.clone().unwrap_or_default(),
            store: call.store.unwrap_or(surface.stores_by_default()),
            // What a batch or a file holds may be anything.
            partial: call.is_partial || matches!(surface, Surface::Batches | Surface::Files),
            findings: found
                .chain(is_odd.then_some(SHAPE_MISMATCH))
                .chain(differs.then_some(MODEL_MISMATCH))
                .map(str::to_owned)
                .collect(),
            ..Facts::default()
        };
        facts.names(model.unwrap_or_default());
        facts.unpriced = !self.is_priced(&facts);
        facts
    }

    /// What is asked: of a WebSocket whose messages are requests of a surface, that one.
    fn surface(&self) -> Surface {
        match self.opens {
            Some(Dialect::Responses) => Surface::Responses,
            Some(Dialect::Events | Dialect::Live) | None => {
                self.route.as_ref().map_or(Surface::Other, |route| route.surface)
            }
        }
    }

    fn is_priced(&self, facts: &Facts) -> bool {
        self.prices.find(&facts.provider, &facts.model, self.day, facts.tokens_estimated).is_some()
    }
}

/// A body with the fields of another surface.
const SHAPE_MISMATCH: &str = "shape_mismatch";
/// Another model in the body than in the path.
const MODEL_MISMATCH: &str = "model_mismatch";

// === impl Facts ===

impl Facts {
    fn names(&mut self, model: String) {
        self.family = ModelName::of(&model).family;
        self.model = model;
    }

    /// Its tokens, where they are counted.
    #[must_use]
    pub fn counting(&self) -> Option<&Counting> {
        self.counting.as_ref()
    }

    /// Notes what is found in its body, of which nothing else is known.
    pub fn finds(&mut self, found: &[String]) {
        self.findings = found.to_vec();
    }

    /// Notes what a conversation offers, of which it is one message, and what that shows altogether.
    pub fn converses(&mut self, tools: &[String], tokens_estimated: u64) {
        self.tools = tools.to_vec();
        (self.tokens_estimated, self.stream) = (tokens_estimated, true);
    }

    /// Most tokens that it lets its answer have, if it sets any.
    #[must_use]
    pub fn tokens_max(&self) -> Option<u64> {
        self.tokens_max
    }

    /// Notes that its answer may have as many as that which it goes on from.
    pub fn limited(&mut self, tokens_max: Option<u64>) {
        self.tokens_max = tokens_max;
    }

    /// Notes which rules its texts were held against.
    pub fn held_against(&mut self, rules: &Rules) {
        self.prompt_rules = rules.version().to_owned();
    }

    /// Has the tokens of its body counted.
    pub fn count(&mut self, calls: &Calls, surface: Surface, body: &[u8]) {
        if let (Some(counter), Some(vocabulary)) = (&calls.counter, Vocabulary::of(&self.family)) {
            self.counting = Some(counter.count(vocabulary, surface, body.to_vec()));
        }
    }

    /// What was found in it.
    #[must_use]
    pub fn findings(&self) -> &[String] {
        &self.findings
    }

    /// Whether its answer is to be streamed.
    #[must_use]
    pub fn streams(&self) -> bool {
        self.stream
    }

    /// What nobody could read by its head, nobody did.
    pub fn stays_partial(&mut self, before: Option<&Facts>) {
        let Some(before) = before.filter(|before| before.partial) else { return };
        self.partial = true;
        (self.attachments, self.attachment_bytes) =
            (self.attachments.max(before.attachments), self.attachment_bytes.max(before.attachment_bytes));
    }

    /// What policy is asked.
    #[must_use]
    pub fn operation<'a>(&'a self, admitted: &'a Admitted) -> Operation<'a> {
        Operation::Llm(ModelCall {
            host: &admitted.host,
            port: admitted.port,
            provider: &self.provider,
            model: &self.model,
            family: &self.family,
            surface: self.surface,
            tokens_estimated: self.tokens_estimated,
            tokens_max: self.tokens_max,
            stream: self.stream,
            tools: &self.tools,
            attachments: self.attachments,
            images: self.images,
            attachment_bytes: self.attachment_bytes,
            prompt_score: self.prompt_score,
            unpriced: self.unpriced,
            tool_choice: &self.tool_choice,
            end_user: &self.end_user,
            store: self.store,
            partial: self.partial,
            findings: &self.findings,
        })
    }

    /// What the record tells.
    #[must_use]
    pub fn record(&self) -> ModelFacts {
        ModelFacts {
            provider: self.provider.to_string(),
            surface: self.surface.to_owned(),
            model: self.model.clone(),
            family: self.family.clone(),
            tokens_estimated: self.tokens_estimated,
            tokens_max: self.tokens_max,
            stream: self.stream,
            tools: self.tools.iter().take(TOOLS_TOLD).cloned().collect(),
            tools_count: self.tools.len() as u64,
            attachments: self.attachments,
            images: Some(self.images),
            attachment_bytes: Some(self.attachment_bytes),
            prompt_score: self.prompt_score,
            unpriced: self.unpriced,
            tool_choice: Some(self.tool_choice.clone()),
            end_user: Some(self.end_user.clone()),
            store: Some(self.store),
            partial: Some(self.partial),
            findings: Some(self.findings.clone()),
            prompt_rules: self.prompt_rules.clone(),
        }
    }

    /// What an answer cost: by the provider's count, or estimated where it told none or did not end.
    #[must_use]
    pub fn tokens(&self, answer: Answer, is_success: bool) -> Option<TokenUsage> {
        // What only counts, uses none: what it tells is not its own.
        if self.surface == Surface::CountTokens.name() {
            return None;
        }
        let estimated = answer.output_estimated;
        let (is_partial, is_queued) = (answer.is_partial, answer.is_queued);
        let model = answer.model.clone().or_else(|| (!self.model.is_empty()).then(|| self.model.clone()));
        match tokens(answer) {
            Some(usage) if is_partial => {
                Some(TokenUsage { model, output: usage.output.max(estimated), estimated: true, ..usage })
            }
            // Some dialects don't say which model it was.
            Some(usage) => Some(TokenUsage { model, ..usage }),
            // Nobody has made it yet.
            None if is_queued => None,
            None if is_success => Some(TokenUsage {
                model,
                input: self.tokens_estimated,
                output: estimated,
                estimated: true,
                ..TokenUsage::default()
            }),
            None => None,
        }
    }
}

/// What an answer cost, if it says so.
#[must_use]
pub fn tokens(answer: Answer) -> Option<TokenUsage> {
    let Answer { model, usage, .. } = answer;
    Some(TokenUsage { model, ..used(&usage?) })
}

/// The same, in a record's words.
pub(super) fn used(usage: &Usage) -> TokenUsage {
    TokenUsage {
        model: None,
        input: usage.input,
        output: usage.output,
        cached: usage.cached,
        cache_written: usage.cache_written,
        reasoning: usage.reasoning,
        input_audio: usage.input_audio,
        cached_audio: usage.cached_audio,
        output_audio: usage.output_audio,
        estimated: false,
    }
}

#[cfg(test)]
mod tests {
    use clawgress_policy::content::{stores_by_default, streams_by_default};

    use super::*;

    /// What is supposed of a call that says nothing is what the proxy takes it for.
    #[test]
    fn what_is_not_said_is_supposed_as_it_is_read() {
        for surface in Surface::ALL {
            let supposed = (stores_by_default(surface.name()), streams_by_default(surface.name()));
            assert_eq!(supposed, (surface.stores_by_default(), surface.streams_by_default()), "{surface:?}");
        }
    }
}
