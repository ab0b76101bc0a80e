//! What requests say: questions to a resolver, calls of models and tools, payloads; and the attributes of the context
//! that policy asks of them. Must never read a payload itself: what is known of one is handed in.

use cedar_policy_core::ast::Value;

use crate::Host;
use crate::request::Operation;
use crate::vocabulary::ActionKind;

/// A call of a language model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ModelCall<'a> {
    /// Where it goes.
    pub host: &'a Host,
    /// Port.
    pub port: u16,
    /// Whose model it is, by the name that policy has for it: `openai`.
    pub provider: &'a str,
    /// The model, as the request names it.
    pub model: &'a str,
    /// The same without vendor, region, version and date, in lowercase.
    pub family: &'a str,
    /// What is asked of the provider: `chat_completions`.
    pub surface: &'a str,
    /// Tokens of the prompt, estimated.
    pub tokens_estimated: u64,
    /// Most that may be answered; `None` where no limit is set.
    pub tokens_max: Option<u64>,
    /// Whether the answer is to be streamed.
    pub stream: bool,
    /// Names of the tools that the model may ask for.
    pub tools: &'a [String],
    /// How much is attached: images, sounds and files.
    pub attachments: u32,
    /// Of them, those that say or show that they are images.
    pub images: u32,
    /// Bytes of all that are sent, without base64: of those that the server fetches or has, none.
    pub attachment_bytes: u64,
    /// What signs of somebody who steers the model weigh together, of 100.
    pub prompt_score: u32,
    /// Whether no price is known of the model.
    pub unpriced: bool,
    /// What is to be done about the tools: `auto`, `none`, `required`, the name of one; empty where nothing is said.
    pub tool_choice: &'a str,
    /// Who it is for, as the client says; empty where it does not.
    pub end_user: &'a str,
    /// Whether the server may keep it, by what it says or what is so where nothing is said.
    pub store: bool,
    /// Whether the model is shown what only the server has.
    pub partial: bool,
    /// What was found in the request.
    pub findings: &'a [String],
}

/// Whether what is asked of this surface, and answered, is kept where the call says nothing of it.
#[must_use]
pub fn stores_by_default(surface: &str) -> bool {
    surface == "responses"
}

/// Whether answers of this surface are streamed where the call says nothing of it.
#[must_use]
pub fn streams_by_default(surface: &str) -> bool {
    matches!(surface, "ollama_chat" | "ollama_generate")
}

/// A call of a tool by MCP or A2A.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ToolCall<'a> {
    /// Where it goes.
    pub host: &'a Host,
    /// Port.
    pub port: u16,
    /// The server, by the name that policy has for it.
    pub server: &'a str,
    /// The protocol's method: `tools/call`.
    pub method: &'a str,
    /// The tool; empty where the method has none.
    pub name: &'a str,
    /// Names of its arguments.
    pub argument_names: &'a [String],
    /// Each of their values that is no object or array: a JSON pointer, `=` and the value.
    pub values: &'a [String],
    /// The arguments, as canonical JSON.
    pub arguments: &'a str,
    /// What was found in them.
    pub findings: &'a [String],
}

/// What is known of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Payload<'a> {
    /// Bytes, as far as they were seen.
    pub bytes: u64,
    /// Whether all of it was seen: until then only a forbid counts.
    pub complete: bool,
    /// Its media type, without parameters; empty if none is given.
    pub media_type: &'a str,
    /// What was found in it.
    pub findings: &'a [String],
}

/// What came back of a model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage<'a> {
    /// Tokens of the prompt, as they were counted there.
    pub input_tokens: u64,
    /// Tokens of the answer.
    pub output_tokens: u64,
    /// Names of the tools that the model asks for.
    pub tools: &'a [String],
    /// The call that is asked about; of the answer as such, none.
    pub call: AskedCall<'a>,
}

/// A call of a tool that a model asks for, whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AskedCall<'a> {
    /// The tool; empty where no call is asked about.
    pub name: &'a str,
    /// Names of its arguments.
    pub argument_names: &'a [String],
    /// Each of their values that is no object or array: a JSON pointer, `=` and the value.
    pub values: &'a [String],
    /// The arguments, as canonical JSON.
    pub arguments: &'a str,
}

/// An attribute of the context of `resolve`, `llm`, `tool`, `send` and `receive`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Attribute {
    QueryType,
    HostName,
    Port,
    Method,
    Path,
    Status,
    Findings,
    Bytes,
    Complete,
    MediaType,
    LlmProvider,
    LlmModel,
    LlmFamily,
    LlmSurface,
    LlmTokens,
    LlmTokensMax,
    LlmStream,
    LlmTools,
    LlmAttachments,
    LlmPromptScore,
    LlmUnpriced,
    LlmToolChoice,
    LlmEndUser,
    LlmStore,
    LlmPartial,
    LlmImages,
    LlmAttachmentBytes,
    ToolServer,
    ToolMethod,
    ToolName,
    ToolArgumentNames,
    ToolValues,
    ToolArguments,
    UsageInput,
    UsageOutput,
    UsageTools,
    CallName,
    CallArgumentNames,
    CallValues,
    CallArguments,
}

/// Some of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Attributes(u64);

/// The value of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Told<'a> {
    Bool(bool),
    Long(i64),
    Str(&'a str),
    Strings(&'a [String]),
    /// A host, as it is written.
    Host(&'a Host),
}

// === impl Attributes ===

impl Attributes {
    pub(crate) fn of(attributes: &[Attribute]) -> Attributes {
        Attributes(attributes.iter().fold(0, |all, attribute| all | (1 << *attribute as u32)))
    }

    /// What is in a call of a model: all but whom it goes to, and how; and that no price is known of what names no model.
    pub(crate) fn in_call() -> Attributes {
        use Attribute as A;
        let is_known = |attribute: &A| {
            let besides = [A::HostName, A::Port, A::LlmProvider, A::LlmSurface, A::LlmStream, A::LlmUnpriced];
            besides.contains(attribute)
        };
        let all = Attribute::of(ActionKind::Llm).iter().copied();
        Attributes::of(&all.filter(|attribute| !is_known(attribute)).collect::<Vec<_>>())
    }

    pub(crate) fn has(self, attribute: Attribute) -> bool {
        self.0 & (1 << attribute as u32) != 0
    }
}

// === impl Attribute ===

impl Attribute {
    /// Those of an action; none where [`Operation`] holds them itself.
    pub(crate) fn of(action: ActionKind) -> &'static [Attribute] {
        use Attribute as A;
        match action {
            ActionKind::Connect | ActionKind::Direct => &[],
            ActionKind::Tls | ActionKind::Tunnel | ActionKind::Http => &[],
            ActionKind::Resolve => &[A::Port, A::QueryType],
            ActionKind::Llm => &[
                A::HostName,
                A::Port,
                A::LlmProvider,
                A::LlmModel,
                A::LlmFamily,
                A::LlmSurface,
                A::LlmTokens,
                A::LlmTokensMax,
                A::LlmStream,
                A::LlmTools,
                A::LlmAttachments,
                A::LlmPromptScore,
                A::LlmUnpriced,
                A::LlmToolChoice,
                A::LlmEndUser,
                A::LlmStore,
                A::LlmPartial,
                A::LlmImages,
                A::LlmAttachmentBytes,
                A::Findings,
            ],
            ActionKind::Tool => &[
                A::HostName,
                A::Port,
                A::ToolServer,
                A::ToolMethod,
                A::ToolName,
                A::ToolArgumentNames,
                A::ToolValues,
                A::ToolArguments,
                A::Findings,
            ],
            ActionKind::Send => {
                &[A::Port, A::Method, A::Path, A::Bytes, A::Complete, A::MediaType, A::Findings]
            }
            ActionKind::Receive => &[
                A::Port,
                A::Status,
                A::Bytes,
                A::Complete,
                A::MediaType,
                A::Findings,
                A::UsageInput,
                A::UsageOutput,
                A::UsageTools,
                A::CallName,
                A::CallArgumentNames,
                A::CallValues,
                A::CallArguments,
            ],
        }
    }

    /// The record of the context that it is in, if it is in one, and its name.
    pub(crate) fn path(self) -> (Option<&'static str>, &'static str) {
        match self {
            Attribute::QueryType => (None, "query_type"),
            Attribute::HostName => (None, "host"),
            Attribute::Port => (None, "port"),
            Attribute::Method => (None, "method"),
            Attribute::Path => (None, "path"),
            Attribute::Status => (None, "status"),
            Attribute::Findings => (None, "findings"),
            Attribute::Bytes => (None, "bytes"),
            Attribute::Complete => (None, "complete"),
            Attribute::MediaType => (None, "media_type"),
            Attribute::LlmProvider => (Some("llm"), "provider"),
            Attribute::LlmModel => (Some("llm"), "model"),
            Attribute::LlmFamily => (Some("llm"), "family"),
            Attribute::LlmSurface => (Some("llm"), "surface"),
            Attribute::LlmTokens => (Some("llm"), "tokens_estimated"),
            Attribute::LlmTokensMax => (Some("llm"), "tokens_max"),
            Attribute::LlmStream => (Some("llm"), "stream"),
            Attribute::LlmTools => (Some("llm"), "tools"),
            Attribute::LlmAttachments => (Some("llm"), "attachments"),
            Attribute::LlmPromptScore => (Some("llm"), "prompt_score"),
            Attribute::LlmUnpriced => (Some("llm"), "unpriced"),
            Attribute::LlmToolChoice => (Some("llm"), "tool_choice"),
            Attribute::LlmEndUser => (Some("llm"), "end_user"),
            Attribute::LlmStore => (Some("llm"), "store"),
            Attribute::LlmPartial => (Some("llm"), "partial"),
            Attribute::LlmImages => (Some("llm"), "images"),
            Attribute::LlmAttachmentBytes => (Some("llm"), "attachment_bytes"),
            Attribute::ToolServer => (Some("tool"), "server"),
            Attribute::ToolMethod => (Some("tool"), "method"),
            Attribute::ToolName => (Some("tool"), "name"),
            Attribute::ToolArgumentNames => (Some("tool"), "argument_names"),
            Attribute::ToolValues => (Some("tool"), "values"),
            Attribute::ToolArguments => (Some("tool"), "arguments"),
            Attribute::UsageInput => (Some("usage"), "input_tokens"),
            Attribute::UsageOutput => (Some("usage"), "output_tokens"),
            Attribute::UsageTools => (Some("usage"), "tools"),
            Attribute::CallName => (Some("call"), "name"),
            Attribute::CallArgumentNames => (Some("call"), "argument_names"),
            Attribute::CallValues => (Some("call"), "values"),
            Attribute::CallArguments => (Some("call"), "arguments"),
        }
    }

    /// The one of this name, if the action has it.
    pub(crate) fn named(action: ActionKind, record: Option<&str>, name: &str) -> Option<Attribute> {
        Attribute::of(action).iter().copied().find(|attribute| attribute.path() == (record, name))
    }

    /// Whether the action's context has a record of this name.
    pub(crate) fn is_record(action: ActionKind, name: &str) -> bool {
        Attribute::of(action).iter().any(|attribute| attribute.path().0 == Some(name))
    }

    /// Its value in a request; `None` where the request's action has none.
    pub(crate) fn told<'a>(self, operation: &Operation<'a>) -> Option<Told<'a>> {
        match operation {
            Operation::Resolve { port, query_type, .. } => match self {
                Attribute::Port => Some(Told::Long(i64::from(*port))),
                Attribute::QueryType => Some(Told::Str(query_type)),
                _ => None,
            },
            Operation::Llm(call) => self.of_model(call),
            Operation::Tool(call) => self.of_tool(call),
            Operation::Send { port, method, path, payload, .. } => match self {
                Attribute::Port => Some(Told::Long(i64::from(*port))),
                Attribute::Method => Some(Told::Str(method)),
                Attribute::Path => Some(Told::Str(path)),
                _ => self.of_payload(payload),
            },
            Operation::Receive { port, status, payload, usage, .. } => match self {
                Attribute::Port => Some(Told::Long(i64::from(*port))),
                Attribute::Status => Some(Told::Long(i64::from(*status))),
                Attribute::UsageInput => Some(long(usage.input_tokens)),
                Attribute::UsageOutput => Some(long(usage.output_tokens)),
                Attribute::UsageTools => Some(Told::Strings(usage.tools)),
                Attribute::CallName => Some(Told::Str(usage.call.name)),
                Attribute::CallArgumentNames => Some(Told::Strings(usage.call.argument_names)),
                Attribute::CallValues => Some(Told::Strings(usage.call.values)),
                Attribute::CallArguments => Some(Told::Str(usage.call.arguments)),
                _ => self.of_payload(payload),
            },
            _ => None,
        }
    }

    fn of_model<'a>(self, call: &ModelCall<'a>) -> Option<Told<'a>> {
        Some(match self {
            Attribute::HostName => Told::Host(call.host),
            Attribute::Port => Told::Long(i64::from(call.port)),
            Attribute::LlmProvider => Told::Str(call.provider),
            Attribute::LlmModel => Told::Str(call.model),
            Attribute::LlmFamily => Told::Str(call.family),
            Attribute::LlmSurface => Told::Str(call.surface),
            Attribute::LlmTokens => long(call.tokens_estimated),
            Attribute::LlmTokensMax => long(call.tokens_max.unwrap_or(u64::MAX)),
            Attribute::LlmStream => Told::Bool(call.stream),
            Attribute::LlmTools => Told::Strings(call.tools),
            Attribute::LlmAttachments => long(call.attachments.into()),
            Attribute::LlmPromptScore => long(call.prompt_score.into()),
            Attribute::LlmUnpriced => Told::Bool(call.unpriced),
            Attribute::LlmToolChoice => Told::Str(call.tool_choice),
            Attribute::LlmEndUser => Told::Str(call.end_user),
            Attribute::LlmStore => Told::Bool(call.store),
            Attribute::LlmPartial => Told::Bool(call.partial),
            Attribute::LlmImages => long(call.images.into()),
            Attribute::LlmAttachmentBytes => long(call.attachment_bytes),
            Attribute::Findings => Told::Strings(call.findings),
            _ => return None,
        })
    }

    fn of_tool<'a>(self, call: &ToolCall<'a>) -> Option<Told<'a>> {
        Some(match self {
            Attribute::HostName => Told::Host(call.host),
            Attribute::Port => Told::Long(i64::from(call.port)),
            Attribute::ToolServer => Told::Str(call.server),
            Attribute::ToolMethod => Told::Str(call.method),
            Attribute::ToolName => Told::Str(call.name),
            Attribute::ToolArgumentNames => Told::Strings(call.argument_names),
            Attribute::ToolValues => Told::Strings(call.values),
            Attribute::ToolArguments => Told::Str(call.arguments),
            Attribute::Findings => Told::Strings(call.findings),
            _ => return None,
        })
    }

    fn of_payload<'a>(self, payload: &Payload<'a>) -> Option<Told<'a>> {
        Some(match self {
            Attribute::Bytes => long(payload.bytes),
            Attribute::Complete => Told::Bool(payload.complete),
            Attribute::MediaType => Told::Str(payload.media_type),
            Attribute::Findings => Told::Strings(payload.findings),
            _ => return None,
        })
    }
}

// === impl Told ===

impl Told<'_> {
    /// As Cedar has it.
    pub(crate) fn value(&self) -> Value {
        match self {
            Told::Bool(b) => Value::from(*b),
            Told::Long(n) => Value::from(*n),
            Told::Str(s) => Value::from(*s),
            Told::Strings(all) => Value::set(all.iter().map(|s| Value::from(s.as_str())), None),
            Told::Host(host) => Value::from(host.to_string()),
        }
    }
}

fn long(count: u64) -> Told<'static> {
    Told::Long(i64::try_from(count).unwrap_or(i64::MAX))
}

/// The context of a request as far as it is said here, its records whole.
pub(crate) fn pairs(action: ActionKind, operation: &Operation<'_>) -> Vec<(&'static str, Value)> {
    let mut pairs = Vec::new();
    let mut records: Vec<(&'static str, Vec<(&'static str, Value)>)> = Vec::new();
    for attribute in Attribute::of(action) {
        let Some(told) = attribute.told(operation) else { continue };
        match attribute.path() {
            (None, name) => pairs.push((name, told.value())),
            (Some(record), name) => match records.iter_mut().find(|(known, _)| *known == record) {
                Some((_, fields)) => fields.push((name, told.value())),
                None => records.push((record, vec![(name, told.value())])),
            },
        }
    }
    pairs.extend(records.into_iter().map(|(name, fields)| (name, Value::record(fields, None))));
    pairs
}
