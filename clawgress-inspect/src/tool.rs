//! Calls of tools and of other agents: MCP of both eras, and A2A, as JSON-RPC 2.0 over HTTP.
//!
//! A message is told as its server would read it; what servers could read in two ways (names that come twice or in other
//! letters, heads that say something else than the body, batches where there are none) is refused. Must never hold more
//! than the body it was given.

use crate::letters::fold;

mod asks;
mod head;
mod list;
mod reader;
mod rest;
mod schema;
pub mod value;

pub use crate::events::Ends;
pub use asks::{Ask, Heard, heard};
pub use head::{PARAM, agrees_with_schema};
pub use list::{
    Allowed, Change, Changing, Filtered, Pin, changed_events, changes, definitions, filtered, pin,
};
pub use reader::{Reader, is_like};
pub use rest::{CARD, Rest, is_ambiguous, rest};
pub use schema::{Validity, validate};
pub use value::{Value, ValueError};

/// Most messages of a batch.
pub const BATCH_MAX: usize = 64;
/// Longest name of a tool or method, and longest id of a session, bytes.
pub const NAME_BYTES_MAX: usize = 256;
/// Most values of arguments that are told one by one.
pub const VALUES_TOLD: usize = 4096;
/// Longest of them that is told, bytes: nobody writes a longer one into a policy.
const VALUE_BYTES_TOLD: usize = 4096;
/// Since this version, heads name method and tool, and there are neither sessions nor `initialize`.
const STATELESS: &str = "2026-07-28";
/// What a request that is made again says to what its server asked for (`resultType` of `input_required`).
const RESPONSES: &str = "inputResponses";
/// What every message may have besides, for the protocol's own use.
const META: &str = "_meta";
/// The one version that has batches.
const BATCHES: &str = "2025-03-26";
/// Versions there are. A later one is read like the last of these.
const VERSIONS: [&str; 5] = ["2024-11-05", BATCHES, "2025-06-18", "2025-11-25", STATELESS];

/// Whose message it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// Model Context Protocol.
    Mcp,
    /// Agent2Agent.
    A2a,
    /// JSON-RPC of something else.
    Other,
}

/// What the head of a request says; `None` for what it does not, and a refusal is for whoever finds a field twice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Head<'a> {
    /// `Mcp-Method`.
    pub method: Option<&'a str>,
    /// `Mcp-Name`, as it is written.
    pub name: Option<&'a str>,
    /// `Mcp-Param-*`: what is behind [`PARAM`], in lowercase, and the value as it is written.
    pub params: &'a [(String, String)],
    /// `MCP-Protocol-Version`.
    pub version: Option<&'a str>,
    /// `Mcp-Session-Id`.
    pub session: Option<&'a str>,
    /// Whether it has `A2A-Version`, so that what MCP has by the same name is A2A's.
    pub is_a2a: bool,
}

/// One message of a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Whose it is, by its method.
    pub protocol: Protocol,
    /// The method, of A2A as its version 1.0 has it; `None` of an answer to the server.
    pub method: Option<String>,
    /// What it is called there, where that is not the same: by A2A's version 0.3.
    pub sent_as: Option<String>,
    /// Its id, as JSON; `None` if nobody answers it.
    pub id: Option<String>,
    /// Whether nobody answers it.
    pub is_notification: bool,
    /// The tool, prompt or resource that it is about.
    pub name: Option<String>,
    /// What the tool or prompt is called with; of other methods what they say (`params`).
    pub arguments: Option<Value>,
    /// What the client answers to what its server asked for (sampling, elicitation, roots): a result, an error, or of the stateless era
    /// what a request that is made again says (`inputResponses`).
    pub answers: Option<Value>,
}

/// Why messages are refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ToolError {
    /// Of the document.
    #[error("{0}")]
    Value(#[from] ValueError),
    /// Not JSON-RPC 2.0.
    #[error("it is no message of JSON-RPC 2.0: {0}")]
    Message(&'static str),
    /// A name that some servers take for another one.
    #[error("the name `{0}` is one that servers may take for another")]
    Spelling(String),
    /// More than one message where there may be one, or too many.
    #[error("a batch, which its version has not")]
    Batch,
    /// The head says something else than the body.
    #[error("its head's `{0}` is not what its body says")]
    Mismatch(&'static str),
    /// The same of a field that is named by a tool.
    #[error("its head's `mcp-param-{0}` is not what its body says")]
    ParamMismatch(String),
    /// The head has to say it, and does not.
    #[error("its head has no `{0}`, which its version needs")]
    Missing(&'static str),
    /// Of no version that there could be.
    #[error("its version is none of MCP")]
    Version,
    /// More than [`VALUES_TOLD`] values.
    #[error("its arguments have too many values")]
    Values,
    /// Longer than [`NAME_BYTES_MAX`], or with what no name has.
    #[error("its `{0}` is no name")]
    Name(&'static str),
}

/// Reads what a client sends to a server, all of it.
///
/// # Errors
/// Why it is refused.
pub fn read(body: &[u8], head: &Head<'_>) -> Result<Vec<Message>, ToolError> {
    read_value(&Value::parse(body)?, head)
}

fn read_value(value: &Value, head: &Head<'_>) -> Result<Vec<Message>, ToolError> {
    if head.version.is_some_and(|version| !is_version(version)) {
        return Err(ToolError::Version);
    }
    if head.session.is_some_and(|id| !is_name(id)) {
        return Err(ToolError::Name("Mcp-Session-Id"));
    }
    let messages = match value {
        Value::Array(all) => {
            let is_plain = head.method.is_none() && head.name.is_none() && head.params.is_empty();
            let may = head.version.is_none_or(|version| version == BATCHES) && is_plain;
            if !may || all.is_empty() || all.len() > BATCH_MAX {
                return Err(ToolError::Batch);
            }
            all.iter().map(message).collect::<Result<Vec<_>, _>>()?
        }
        one => vec![message(one)?],
    };
    if let [one] = &messages[..] {
        head::agrees(one, value, head)?;
    }
    let all = if let Value::Array(all) = value { &all[..] } else { std::slice::from_ref(value) };
    messages.into_iter().zip(all).map(|(message, one)| message.renamed(one, head)).collect()
}

/// The server and tool of a call of a tool, as policy names it.
impl Message {
    /// By the name that A2A's version 1.0 has for the same, if it is one of version 0.3.
    fn renamed(mut self, value: &Value, head: &Head<'_>) -> Result<Message, ToolError> {
        let Some(method) = self.method.as_deref() else { return Ok(self) };
        // Which of both is told by what either can't do without, and only where neither is there by who asks.
        let is_a2a = match method {
            "tasks/get" | "tasks/cancel" => of_a2a_task(value)?.unwrap_or(head.is_a2a),
            _ => head.is_a2a,
        };
        if let Some(name) = a2a_name(method, is_a2a) {
            (self.protocol, self.sent_as) = (Protocol::A2a, self.method.replace(name.to_owned()));
        }
        Ok(self)
    }

    /// Whether it calls a tool.
    #[must_use]
    pub fn is_call(&self) -> bool {
        self.method.as_deref() == Some("tools/call")
    }

    /// Names of the arguments, in order.
    pub fn argument_names(&self) -> impl Iterator<Item = &str> {
        self.arguments.iter().flat_map(|arguments| arguments.members().iter().map(|(name, _)| &**name))
    }

    /// Each value of the arguments, and of what it answers its server (of a request behind `/inputResponses`), that is no object
    /// or array: a JSON pointer (RFC 6901), `=` and the value. A `=` of a name is
    /// `~2`, so that none is taken for another; what is longer than a policy would have it, is not among them.
    ///
    /// # Errors
    /// If there are more than [`VALUES_TOLD`].
    pub fn argument_values(&self) -> Result<Vec<String>, ToolError> {
        let mut told = self.arguments.as_ref().map_or_else(|| Ok(Vec::new()), argument_values)?;
        if let Some(answers) = &self.answers {
            let at = if self.method.is_some() { format!("/{RESPONSES}") } else { String::new() };
            tell(answers, &mut at.clone(), &mut told)?;
        }
        Ok(told)
    }

    /// The arguments as canonical JSON; empty if there are none.
    #[must_use]
    pub fn arguments_text(&self) -> String {
        self.arguments.as_ref().map(Value::canonical).unwrap_or_default()
    }
}

/// Each value of some arguments, as [`Message::argument_values`] tells them.
///
/// # Errors
/// If there are more than [`VALUES_TOLD`].
pub fn argument_values(arguments: &Value) -> Result<Vec<String>, ToolError> {
    let mut told = Vec::new();
    tell(arguments, &mut String::new(), &mut told)?;
    Ok(told)
}

/// Levels are bounded by what parsed it.
fn tell(value: &Value, at: &mut String, told: &mut Vec<String>) -> Result<(), ToolError> {
    let length = at.len();
    let mut below = |name: &str, value: &Value| {
        at.push('/');
        at.extend(name.chars().map(|c| match c {
            '~' => "~0".to_owned(),
            '/' => "~1".to_owned(),
            '=' => "~2".to_owned(),
            c => c.to_string(),
        }));
        let done = tell(value, at, told);
        at.truncate(length);
        done
    };
    match value {
        Value::Object(members) => members.iter().try_for_each(|(name, value)| below(name, value)),
        Value::Array(items) => {
            items.iter().enumerate().try_for_each(|(n, value)| below(&n.to_string(), value))
        }
        leaf => {
            if told.len() == VALUES_TOLD {
                return Err(ToolError::Values);
            }
            let text = leaf.text().map_or_else(|| leaf.json(), str::to_owned);
            if at.len() + text.len() < VALUE_BYTES_TOLD {
                told.push(format!("{at}={text}"));
            }
            Ok(())
        }
    }
}

fn is_version(version: &str) -> bool {
    let is_date = version.len() == 10
        && version
            .bytes()
            .enumerate()
            .all(|(n, b)| if n == 4 || n == 7 { b == b'-' } else { b.is_ascii_digit() });
    VERSIONS.contains(&version) || is_date && version > STATELESS
}

/// Whether in this version heads say again what bodies do, and an error says that they don't.
#[must_use]
pub fn has_heads(version: &str) -> bool {
    is_version(version) && version >= STATELESS
}

fn is_name(name: &str) -> bool {
    (1..=NAME_BYTES_MAX).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_graphic())
}

/// Members that decide, in any letters but their own, some servers take for them.
fn spelled(value: &Value, known: &[&str]) -> Result<(), ToolError> {
    for (name, _) in value.members() {
        #[cfg(test)]
        crate::steps::add(name.len());
        let folded = fold(name);
        if known.iter().any(|one| folded.eq_ignore_ascii_case(one) && name != one) {
            return Err(ToolError::Spelling(name.chars().take(64).collect()));
        }
    }
    Ok(())
}

fn message(value: &Value) -> Result<Message, ToolError> {
    if !matches!(value, Value::Object(_)) {
        return Err(ToolError::Message("not an object"));
    }
    spelled(value, &["jsonrpc", "method", "params", "id", "result", "error"])?;
    if value.member("jsonrpc").and_then(Value::text) != Some("2.0") {
        return Err(ToolError::Message("no `jsonrpc` of `2.0`"));
    }
    let id = value.member("id");
    if !matches!(id, None | Some(Value::Number(_) | Value::Text(_))) {
        return Err(ToolError::Message("its `id` is neither a number nor a text"));
    }
    let id = id.map(Value::json);
    let (result, error) = (value.member("result"), value.member("error"));
    let Some(method) = value.member("method") else {
        // What a server asked for: sampling, elicitation, roots.
        if id.is_none() || result.is_some() == error.is_some() {
            return Err(ToolError::Message("neither a request nor an answer"));
        }
        let (protocol, arguments, answers) = (Protocol::Mcp, None, result.or(error).cloned());
        let (method, id, name) = (None, None, None);
        return Ok(Message {
            protocol,
            method,
            sent_as: None,
            id,
            is_notification: false,
            name,
            arguments,
            answers,
        });
    };
    if result.is_some() || error.is_some() {
        return Err(ToolError::Message("both a request and an answer"));
    }
    let method = method.text().filter(|method| is_name(method)).ok_or(ToolError::Name("method"))?;
    let params = value.member("params");
    if !matches!(params, None | Some(Value::Object(_) | Value::Array(_))) {
        return Err(ToolError::Message("its `params` are neither an object nor an array"));
    }
    let (name, arguments) = match params {
        Some(params) => about(method, params)?,
        None => (None, None),
    };
    let needs_name = matches!(method, "tools/call" | "prompts/get" | "resources/read");
    if needs_name && name.is_none() {
        return Err(ToolError::Message("its `params` do not say what it is about"));
    }
    let answers = params.and_then(|params| params.member(RESPONSES));
    if !matches!(answers, None | Some(Value::Object(_) | Value::Array(_))) {
        return Err(ToolError::Message("its `inputResponses` are neither an object nor an array"));
    }
    let is_notification = id.is_none();
    Ok(Message {
        protocol: protocol(method),
        method: Some(method.to_owned()),
        sent_as: None,
        id,
        is_notification,
        name,
        arguments,
        answers: answers.cloned(),
    })
}

/// What a message is about: its tool, prompt or resource, and the arguments.
fn about(method: &str, params: &Value) -> Result<(Option<String>, Option<Value>), ToolError> {
    spelled(params, &["name", "arguments", "uri", "taskId", META, RESPONSES])?;
    let key = match method {
        "tools/call" | "prompts/get" => "name",
        "resources/read" | "resources/subscribe" | "resources/unsubscribe" => "uri",
        _ => return Ok((None, said(params))),
    };
    let name = match params.member(key) {
        // A resource may be anywhere, in any letters.
        Some(Value::Text(name)) if key == "uri" && !name.is_empty() => Some(name.clone()),
        Some(Value::Text(name)) if is_name(name) => Some(name.clone()),
        Some(_) => return Err(ToolError::Name("name")),
        None => None,
    };
    let arguments = params.member("arguments");
    if !matches!(arguments, None | Some(Value::Object(_))) {
        return Err(ToolError::Message("its `arguments` are no object"));
    }
    let arguments = if key == "uri" { said(params) } else { arguments.cloned() };
    Ok((name, arguments))
}

/// What a message says that has no arguments of a tool or prompt: its `params`, but for what is told beside them and what is of
/// the protocol; `None` if there is nothing else.
fn said(params: &Value) -> Option<Value> {
    let Value::Object(members) = params else { return Some(params.clone()) };
    let is_own = |(name, _): &&(String, Value)| !matches!(name.as_str(), META | RESPONSES);
    let own: Vec<_> = members.iter().filter(is_own).cloned().collect();
    (!own.is_empty()).then_some(Value::Object(own))
}

/// Whether the task that a message is about is one of A2A, which has it as `id`, or of MCP, which has it as `taskId`; `None` if it has
/// neither, which no server of either takes.
///
/// # Errors
/// If it has both: each would be one server's.
fn of_a2a_task(value: &Value) -> Result<Option<bool>, ToolError> {
    let member = |value: &Value, name: &str| match value {
        Value::Object(members) => members.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone()),
        _ => None,
    };
    let Some(params) = member(value, "params") else { return Ok(None) };
    match (member(&params, "id").is_some(), member(&params, "taskId").is_some()) {
        (true, true) => Err(ToolError::Message("its task has an `id` and a `taskId`")),
        (false, false) => Ok(None),
        (is_a2a, _) => Ok(Some(is_a2a)),
    }
}

/// What A2A's version 1.0 calls a method of version 0.3 (specification 1.0, appendix A). Those of tasks are MCP's, too, since
/// 2025-11-25: whose they are, their ids say, or the head where they have none.
fn a2a_name(method: &str, is_a2a: bool) -> Option<&'static str> {
    Some(match method {
        "message/send" => "SendMessage",
        "message/stream" => "SendStreamingMessage",
        "tasks/get" if is_a2a => "GetTask",
        "tasks/list" if is_a2a => "ListTasks",
        "tasks/cancel" if is_a2a => "CancelTask",
        "tasks/resubscribe" => "SubscribeToTask",
        "tasks/pushNotificationConfig/set" => "CreateTaskPushNotificationConfig",
        "tasks/pushNotificationConfig/get" => "GetTaskPushNotificationConfig",
        "tasks/pushNotificationConfig/list" => "ListTaskPushNotificationConfigs",
        "tasks/pushNotificationConfig/delete" => "DeleteTaskPushNotificationConfig",
        "agent/getAuthenticatedExtendedCard" | "agent/authenticatedExtendedCard" => "GetExtendedAgentCard",
        _ => return None,
    })
}

fn protocol(method: &str) -> Protocol {
    const A2A: [&str; 14] = [
        "SendMessage",
        "SendStreamingMessage",
        "GetTask",
        "ListTasks",
        "CancelTask",
        "SubscribeToTask",
        "GetExtendedAgentCard",
        "CreateTaskPushNotificationConfig",
        "GetTaskPushNotificationConfig",
        "ListTaskPushNotificationConfigs",
        "DeleteTaskPushNotificationConfig",
        "tasks/resubscribe",
        "agent/getAuthenticatedExtendedCard",
        "agent/authenticatedExtendedCard",
    ];
    const MCP: [&str; 4] = ["initialize", "ping", "server/discover", "subscriptions/listen"];
    let (area, _) = method.split_once('/').unwrap_or((method, ""));
    match area {
        _ if A2A.contains(&method) => Protocol::A2a,
        "message" => Protocol::A2a,
        "tasks" if method.starts_with("tasks/pushNotificationConfig/") => Protocol::A2a,
        _ if MCP.contains(&method) => Protocol::Mcp,
        "tools" | "resources" | "prompts" | "completion" | "logging" | "notifications" | "tasks" => {
            Protocol::Mcp
        }
        _ => Protocol::Other,
    }
}

#[cfg(test)]
mod tests;
