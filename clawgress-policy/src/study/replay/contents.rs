//! `send`, `llm`, `tool` and `receive` of what was decided before, by the facts that its record holds. Must never guess: what a
//! record was cut of, what nobody looked at then, and what is never recorded (what a tool is called with) makes it undecidable
//! where an answer may depend on it.

use clawgress_ebpf_common::DropReason;

use super::answer::{Answer, ask_of, in_part, lacks};
use super::facts::{HeldAnswer, HeldCall, HeldMessage, HeldPayload, Said};
use super::{Content, Needs, Recorded};
use crate::content::{Attribute, Attributes, ModelCall, Payload, ToolCall, Usage};
use crate::{CallsLook, Host, Look, Operation, PolicySet, Request, may_have_body};

/// What is not known, in words.
type Why = &'static str;

const SENT: Why = "what was sent";
const CALLED: Why = "what model or tool was called, and with what";
const CAME: Why = "what came back";
const ON_THE_WAY: Why = "how it changed as it came";

/// All that is known of a body by seeing it, or its head.
const OF_PAYLOADS: [Attribute; 4] =
    [Attribute::Bytes, Attribute::Complete, Attribute::MediaType, Attribute::Findings];
/// And of what a model answers.
const OF_ANSWERS: [Attribute; 8] = [
    Attribute::Status,
    Attribute::UsageInput,
    Attribute::UsageOutput,
    Attribute::UsageTools,
    Attribute::CallName,
    Attribute::CallArgumentNames,
    Attribute::CallValues,
    Attribute::CallArguments,
];

/// A state of an answer that comes.
#[derive(Clone, Copy)]
struct State<'a> {
    bytes: u64,
    findings: &'a [String],
    usage: Usage<'a>,
}

impl Recorded<'_> {
    /// Whether what comes back is something that the set decides about.
    pub(super) fn may_be_answered(&self, set: &PolicySet) -> bool {
        set.decides_receive() && self.method.is_some()
    }

    /// `send`, `llm` and `tool`, in the order in which they are asked of what is said.
    pub(super) fn said(&self, set: &PolicySet, to: (&Host, u16), said: &Said<'_>) -> Result<Answer, Why> {
        if self.method.is_none() {
            return Ok(Answer::nothing());
        }
        // Of a WebSocket, what could be asked without its messages was asked when it was opened.
        let sent = match self.content {
            Content::WebSocket => self.messages_decide(set, to).map(|()| Answer::nothing())?,
            _ => self.sent(set, to, said.body.as_ref())?,
        };
        if sent.ends() {
            return Ok(sent);
        }
        let called = sent.then(self.called(set, to, said)?);
        if called.ends() { Ok(called) } else { Ok(called.then(self.messaged(set, to, said)?)) }
    }

    /// Whether it has a body, if that is known.
    fn has_body(&self) -> Option<bool> {
        let by_method = self.method.filter(|method| !may_have_body(method)).map(|_| false);
        let is_told = self.contents.said.body.map(|_| true);
        is_told.or(self.contents.has_body).or(by_method)
    }

    /// `send`.
    fn sent(&self, set: &PolicySet, to: (&Host, u16), body: Option<&HeldPayload<'_>>) -> Result<Answer, Why> {
        if !set.names_send() || self.has_body() == Some(false) {
            return Ok(Answer::nothing());
        }
        if self.has_body().is_none() {
            // Guards must permit each; what is only told, nobody knows.
            return if set.asks_send() { Err(SENT) } else { Ok(Answer::nothing().blind(true)) };
        }
        let Some(body) = body else {
            let unseen = [(Attributes::of(&OF_PAYLOADS), SENT)];
            return ask_of(set, self.agent, self.send(to, HeldPayload::default(), true), &unseen);
        };
        match self.is_blind_of(set, body, self.send(to, *body, false), SENT)? {
            Some(is_blind) => {
                let asked = |complete| self.send(to, *body, complete);
                Ok(in_part(set, self.agent, body.complete, asked)?.blind(is_blind))
            }
            None => Ok(Answer::deny(DropReason::ContentUnreadable)),
        }
    }

    fn send<'a>(
        &'a self,
        (host, port): (&'a Host, u16),
        body: HeldPayload<'a>,
        complete: bool,
    ) -> Operation<'a> {
        let (method, path) = (self.method.unwrap_or_default(), self.path.unwrap_or_default());
        Operation::Send { host, port, method, path, payload: body.payload(complete) }
    }

    /// Whether what is only told of a payload depends on more than was looked at of it; `None` if it is refused, since nobody knows
    /// what it is said to be.
    fn is_blind_of(
        &self,
        set: &PolicySet,
        held: &HeldPayload<'_>,
        operation: Operation<'_>,
        why: Why,
    ) -> Result<Option<bool>, Why> {
        let request = Request { agent: self.agent, operation };
        if held.is_media_type_unclear && set.needs_media_type(&request) {
            return Ok(None);
        }
        let need = set.needs_payload(&request, held.is_declared);
        if need.decided > held.looked {
            return Err(why);
        }
        Ok(Some(need.logged > held.looked))
    }

    /// `llm`.
    fn called(&self, set: &PolicySet, (host, port): (&Host, u16), said: &Said<'_>) -> Result<Answer, Why> {
        let need = set.needs_call();
        if need.look() == Look::Nothing {
            return Ok(Answer::nothing());
        }
        if let Some(call) = &said.call {
            return ask_of(set, self.agent, call.operation(host, port), &call.unseen());
        }
        self.is_none("llm", need.decided != Look::Nothing)
    }

    /// `tool`, of each message.
    fn messaged(&self, set: &PolicySet, (host, port): (&Host, u16), said: &Said<'_>) -> Result<Answer, Why> {
        let need = set.needs_tool();
        if need.look() == Look::Nothing {
            return Ok(Answer::nothing());
        }
        if said.messages.is_empty() {
            return self.is_none("tool", need.decided != Look::Nothing);
        }
        let decides = need.decided != Look::Nothing;
        let is_cut = said.has_more_messages || said.messages.iter().any(|message| message.is_cut);
        if is_cut && decides {
            return Err(CALLED);
        }
        let mut answer = Answer::nothing().blind(is_cut);
        for message in &said.messages {
            let operation = message.operation(host, port);
            let request = Request { agent: self.agent, operation };
            if message.is_forgotten && set.needs_payload(&request, true).decided == Look::Content {
                return Ok(answer.then(Answer::deny(DropReason::ContentUnreadable)));
            }
            answer = answer.then(ask_of(set, self.agent, operation, &message.unseen())?);
            if answer.ends() {
                break;
            }
        }
        Ok(answer)
    }

    /// The answer where nothing is told of a call.
    fn is_none(&self, action: &str, decides: bool) -> Result<Answer, Why> {
        let has_none = self.has_body() == Some(false) && self.content != Content::WebSocket;
        if has_none || self.contents.asked(action) {
            return Ok(Answer::nothing());
        }
        if decides { Err(CALLED) } else { Ok(Answer::nothing().blind(true)) }
    }

    /// What follows what was allowed: of what was sent later, and of what came back.
    pub(super) fn after(&self, set: &PolicySet, to: (&Host, u16), needs: Needs) -> Result<Answer, Why> {
        if self.method.is_none() {
            return Ok(Answer::nothing());
        }
        let Some(end) = &self.contents.end else {
            let is_open = set.names_send() && self.contents.said.body.is_some_and(|body| !body.complete);
            return match (set.names_receive(), is_open) {
                (true, _) => Err(CAME),
                (_, true) => Err(SENT),
                _ => Ok(Answer::nothing()),
            };
        };
        let sent = self.sent_later(set, to)?;
        if sent.denied.is_some() {
            return Ok(sent);
        }
        let is_asked = set.names_receive() && !self.has_switched();
        if is_asked && needs.time && !end.is_time_known {
            return Err("on which side of a turn of time it was decided");
        }
        if is_asked && set.receive_reads_history() {
            return Err("what the agent did before");
        }
        let came = if is_asked { self.received(set, to)? } else { Answer::nothing() };
        let stopped = end.stopped.is_some_and(|stopped| super::is_policys(stopped.reason));
        let answer = sent.then(came);
        if stopped && answer.denied.is_none() && (is_asked || set.names_send()) {
            // It would have gone on from there.
            return Err("what would have followed");
        }
        Ok(answer)
    }

    /// `send`, `llm` and `tool` of what was sent after it was decided.
    fn sent_later(&self, set: &PolicySet, to: (&Host, u16)) -> Result<Answer, Why> {
        let (said, later) = (&self.contents.said, self.contents.end.as_ref().map(|end| &end.said));
        let Some(later) = later else { return Ok(Answer::nothing()) };
        let mut answer = Answer::nothing();
        if let (Some(first), Some(last), true) = (&said.body, &later.body, set.names_send()) {
            let Some(is_blind) = self.is_blind_of(set, last, self.send(to, *last, false), SENT)? else {
                return Ok(Answer::deny(DropReason::ContentUnreadable));
            };
            let first = |complete| self.send(to, *first, complete);
            let last_asked = |complete| self.send(to, *last, complete);
            answer = self.as_it_came(set, first, (last_asked, last.complete))?.blind(is_blind);
        }
        if later.call.is_some() {
            answer = answer.then(self.called(set, to, later)?);
        }
        if !later.messages.is_empty() {
            answer = answer.then(self.messaged(set, to, later)?);
        }
        Ok(answer)
    }

    /// `receive`.
    fn received(&self, set: &PolicySet, to: (&Host, u16)) -> Result<Answer, Why> {
        let Some(end) = &self.contents.end else { return Err(CAME) };
        let Some(held) = &end.answer else {
            if self.contents.asked("receive") && end.has_failed {
                // Nothing came back that could be asked about.
                return Ok(Answer::nothing());
            }
            let none = HeldAnswer::default();
            let all: Vec<Attribute> = OF_PAYLOADS.into_iter().chain(OF_ANSWERS).collect();
            return ask_of(
                set,
                self.agent,
                none.operation(to, none.last(), true),
                &[(Attributes::of(&all), CAME)],
            );
        };
        if held.at_once && !held.payload.complete && end.stopped.is_none() {
            // It broke before it was judged.
            return Ok(Answer::nothing());
        }
        let last = held.operation(to, held.last(), false);
        let Some(is_blind) = self.is_blind_of(set, &held.payload, last, CAME)? else {
            return Ok(Answer::deny(DropReason::ContentUnreadable));
        };
        let is_blind = is_blind | self.is_blind_of_calls(set, held, last)?;
        let asked = |complete| held.operation(to, held.last(), complete);
        let HeldPayload { bytes, is_declared, complete, .. } = held.payload;
        let has_none = is_declared && complete && bytes == 0;
        let answer = if held.at_once || has_none {
            in_part(set, self.agent, complete, asked)?
        } else {
            let first = |complete| held.operation(to, held.first(), complete);
            self.as_it_came(set, first, (asked, complete))?
        };
        Ok(answer.blind(is_blind))
    }

    /// Whether what is only told depends on calls that the model asked for: of these, names are recorded, and nothing else.
    fn is_blind_of_calls(
        &self,
        set: &PolicySet,
        held: &HeldAnswer<'_>,
        operation: Operation<'_>,
    ) -> Result<bool, Why> {
        let request = Request { agent: self.agent, operation };
        let need = set.needs_calls(&request);
        let is_enough = |look: CallsLook| match look {
            CallsLook::Nothing => true,
            CallsLook::Names => held.are_tools_known,
            CallsLook::Whole => held.are_tools_known && held.tools.is_empty(),
        };
        if !is_enough(need.decided) {
            return Err("the calls that the model asked for");
        }
        let more = [(Attributes::of(&[Attribute::UsageTools]), CAME)];
        let is_cut = held.has_more_tools && lacks(set, &request, &more)?;
        Ok(is_cut || !is_enough(need.logged))
    }

    /// What is said of a payload that came bit by bit, each of which was judged: where that is what is said at its beginning or at
    /// its end.
    fn as_it_came<'a>(
        &self,
        set: &PolicySet,
        first: impl Fn(bool) -> Operation<'a>,
        (last, is_complete): (impl Fn(bool) -> Operation<'a>, bool),
    ) -> Result<Answer, Why> {
        let mut turned: Vec<String> = Vec::new();
        let mut is_blind = false;
        for complete in [false, true] {
            let [first, last] =
                [first(complete), last(complete)].map(|operation| Request { agent: self.agent, operation });
            let course = set.course(&first, &last).ok_or(ON_THE_WAY)?;
            turned.extend(course.turned);
            is_blind |= !course.is_told_known;
        }
        turned.sort_unstable();
        turned.dedup();
        if turned.len() > 1 {
            // Which of them came first is not known.
            return Err(ON_THE_WAY);
        }
        let start = in_part(set, self.agent, false, first)?;
        if start.denied.is_some() {
            return Ok(start);
        }
        Ok(start.then(in_part(set, self.agent, is_complete, last)?).blind(is_blind))
    }
}

// === impl HeldPayload ===

impl<'a> HeldPayload<'a> {
    fn payload(&self, complete: bool) -> Payload<'a> {
        let HeldPayload { bytes, media_type, findings, .. } = *self;
        Payload { bytes, complete, media_type, findings }
    }
}

// === impl HeldCall ===

impl<'a> HeldCall<'a> {
    pub(super) fn operation(&self, host: &'a Host, port: u16) -> Operation<'a> {
        Operation::Llm(ModelCall {
            host,
            port,
            provider: self.provider,
            model: self.model,
            family: self.family,
            surface: self.surface,
            tokens_estimated: self.tokens_estimated,
            tokens_max: self.tokens_max,
            stream: self.stream,
            tools: self.tools,
            attachments: self.attachments,
            images: self.images.unwrap_or_default(),
            attachment_bytes: self.attachment_bytes.unwrap_or_default(),
            prompt_score: self.prompt_score,
            unpriced: self.unpriced,
            tool_choice: self.tool_choice.unwrap_or_default(),
            end_user: self.end_user.unwrap_or_default(),
            store: self.store.unwrap_or_default(),
            partial: self.partial.unwrap_or_default(),
            findings: self.findings.unwrap_or_default(),
        })
    }

    fn unseen(&self) -> Vec<(Attributes, Why)> {
        let tools =
            self.has_more_tools.then(|| (Attributes::of(&[Attribute::LlmTools]), "all tools offered"));
        let findings = (Attributes::of(&[Attribute::Findings]), "what was found in it");
        let said = [Attribute::LlmToolChoice, Attribute::LlmEndUser, Attribute::LlmStore];
        let said = (Attributes::of(&said), "what it says of tools, users and keeping");
        let partial = (Attributes::of(&[Attribute::LlmPartial]), "whether its server had more of it");
        let attached = Attributes::of(&[Attribute::LlmImages, Attribute::LlmAttachmentBytes]);
        let attached = (attached, "what kinds of things were attached, and how many bytes");
        let is_attached_told = self.images.is_some() && self.attachment_bytes.is_some();
        let is_said = [self.tool_choice.is_some(), self.end_user.is_some(), self.store.is_some()];
        tools
            .into_iter()
            .chain(self.findings.is_none().then_some(findings))
            .chain(is_said.contains(&false).then_some(said))
            .chain(self.partial.is_none().then_some(partial))
            .chain((!is_attached_told).then_some(attached))
            .collect()
    }
}

// === impl HeldMessage ===

impl<'a> HeldMessage<'a> {
    fn operation(&self, host: &'a Host, port: u16) -> Operation<'a> {
        Operation::Tool(ToolCall {
            host,
            port,
            server: self.server,
            method: self.method,
            name: self.name,
            argument_names: self.argument_names,
            values: &[],
            arguments: "",
            findings: self.findings.unwrap_or_default(),
        })
    }

    fn unseen(&self) -> Vec<(Attributes, Why)> {
        let with = (
            Attributes::of(&[Attribute::ToolValues, Attribute::ToolArguments]),
            "what a tool was called with, which may be secret",
        );
        let findings = (Attributes::of(&[Attribute::Findings]), "what was found in it");
        [with].into_iter().chain(self.findings.is_none().then_some(findings)).collect()
    }
}

// === impl HeldAnswer ===

impl<'a> HeldAnswer<'a> {
    fn first(&self) -> State<'a> {
        let bytes = if self.payload.is_declared { self.payload.bytes } else { 0 };
        State { bytes, findings: &[], usage: Usage::default() }
    }

    fn last(&self) -> State<'a> {
        let HeldAnswer { payload, input_tokens, output_tokens, tools, .. } = *self;
        let usage = Usage { input_tokens, output_tokens, tools, ..Usage::default() };
        State { bytes: payload.bytes, findings: payload.findings, usage }
    }

    fn operation(&self, (host, port): (&'a Host, u16), state: State<'a>, complete: bool) -> Operation<'a> {
        let State { bytes, findings, usage } = state;
        let payload = Payload { bytes, complete, media_type: self.payload.media_type, findings };
        Operation::Receive { host, port, status: self.status, payload, usage }
    }
}
