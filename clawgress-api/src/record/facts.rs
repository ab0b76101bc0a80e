//! What a record tells of what a decision read: facts that it takes to make it again. Must never hold a payload, the value of an
//! argument, or a credential.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::is_zero;

/// What a decision of L7 read besides what its record tells elsewhere, so that it can be made again. Never a credential: policy
/// can't ask for one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attributes {
    /// Scheme of a request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scheme: Option<String>,
    /// What a tunnel carries: `tls` or `unknown`; absent where that was not seen before it was decided.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,
    /// What the hello offered, if that is not too much.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alpn: Option<Vec<String>>,
    /// Labels of the agent, where policy asks for attributes of agents, if they are not too much.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub labels: Option<BTreeMap<String, String>>,
    /// What the agent did before, where policy asks for it (`clawgress_policy::history::History`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub history: Option<serde_json::Value>,
    /// What seemed to be at the other end, besides the hello, where policy asks for it
    /// (`clawgress_policy::fingerprint::Fingerprints`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fingerprints: Option<serde_json::Value>,
    /// What header fields and the query said, where policy asks for it: of the names that policy has, and of none that hold secrets
    /// (`clawgress_policy::head::HeadFacts`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head: Option<serde_json::Value>,
    /// Which of `send`, `llm`, `tool` and `receive` policy asked about: what nothing is told of was none then.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub asked: Vec<String>,
    /// Whether the request has a body; absent where it has none, and its method (`GET`, `HEAD`, `OPTIONS`) says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub has_body: Option<bool>,
    /// What model was called, and with what, where policy asks about that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub llm: Option<Box<ModelFacts>>,
    /// What was sent to a tool server, message by message, where policy asks about that.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tools: Vec<ToolFacts>,
    /// How many more messages there were than there is room for.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub tools_more: u64,
    /// What was sent, where policy asks about it; of an outcome, if more of it came after it was decided.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payload: Option<PayloadFacts>,
    /// Of an outcome: what came back, where policy asks about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer: Option<Box<AnswerFacts>>,
    /// Name of the wall clock's zone; absent where it is UTC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    /// Names the geo data in force (`clawgress_policy::Geo::edition`), where policy asks for any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub geo: Option<String>,
}

/// How much of a payload was looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Looked {
    /// Nothing: its size is what was declared, if that was.
    #[default]
    Nothing,
    /// Its size.
    Size,
    /// What is in it.
    Content,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the shape serde asks for")]
fn is_unseen(looked: &Looked) -> bool {
    *looked == Looked::Nothing
}

/// What was known of a payload when it was judged last.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PayloadFacts {
    /// Bytes as they are sent: those declared, or those seen.
    pub bytes: u64,
    /// Whether all of it was seen.
    pub complete: bool,
    /// Whether its size was declared.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub declared: bool,
    /// How much of it was looked at.
    #[serde(default, skip_serializing_if = "is_unseen")]
    pub looked: Looked,
    /// Its media type, if one was given.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub media_type: String,
    /// Whether what it is said to be is not known.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub media_type_unclear: bool,
    /// What was found in it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub findings: Vec<String>,
    /// Bytes that it came to without its content coding, as far as it was read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decoded_bytes: Option<u64>,
    /// Its parts, fields and values, as far as it was read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fields: Option<u64>,
}

/// What was known of an answer when it was judged last.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AnswerFacts {
    /// Status that the server gave it; the client may have got another.
    pub status: u16,
    /// Its length and media type, whether all of it was seen, and what was found in it.
    #[serde(flatten)]
    pub payload: PayloadFacts,
    /// Whether it was judged once, all of it, and not as it came.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub at_once: bool,
    /// Tokens of the prompt, and of the answer, as far as they were known.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub input_tokens: u64,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub output_tokens: u64,
    /// Names of the tools that the model asks for, as far as there is room.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tools: Vec<String>,
    /// How many more they are.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub tools_more: u64,
    /// Whether these decided, so that none was missing.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub tools_known: bool,
    /// The version of the rules that what it says was held against, where it was.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub prompt_rules: String,
}

/// What was known of a call of a model when it was decided.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelFacts {
    /// Whose model, as policy has it.
    pub provider: String,
    /// What was asked of it: `chat_completions`.
    pub surface: String,
    /// The model, as the request names it; empty where it names none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub model: String,
    /// Its family.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub family: String,
    /// Tokens of the prompt, estimated.
    pub tokens_estimated: u64,
    /// Most that may be answered, if a limit is set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens_max: Option<u64>,
    /// Whether the answer is to be streamed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub stream: bool,
    /// Names of the tools that are offered, as far as there is room.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tools: Vec<String>,
    /// How many they are.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub tools_count: u64,
    /// Images, sounds and files.
    #[serde(default)]
    pub attachments: u32,
    /// Of them, images; absent where an earlier version recorded it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub images: Option<u32>,
    /// Bytes of all that are sent; likewise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attachment_bytes: Option<u64>,
    /// What signs of somebody who steers the model weigh together, of 100.
    #[serde(default, skip_serializing_if = "is_none_of")]
    pub prompt_score: u32,
    /// Whether no price is known of the model.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unpriced: bool,
    /// What is to be done about the tools; empty where nothing is said, and absent where an earlier version recorded it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_choice: Option<String>,
    /// Who it is for, as the client says; likewise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end_user: Option<String>,
    /// Whether the provider may keep it; likewise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub store: Option<bool>,
    /// Whether the model is shown what only the provider has; likewise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partial: Option<bool>,
    /// What was found in it, with what was found in its body; absent where an earlier version recorded it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub findings: Option<Vec<String>>,
    /// The version of the rules that its texts were held against, where they were.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub prompt_rules: String,
}

/// What was known of a message to a tool server when it was decided. What it is called with, may be secret, and is not told.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToolFacts {
    /// The server, as policy has it.
    pub server: String,
    /// The method; empty of an answer to what the server asked.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub method: String,
    /// What it is called in the message, where that is not the same: of A2A's version 0.3, whose methods policy has by their names
    /// of 1.0.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub sent_as: String,
    /// The tool, prompt or resource; empty where it is about none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Names of the arguments, as far as there is room.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub arguments: Vec<String>,
    /// Whether its name or those of its arguments were cut.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub cut: bool,
    /// What was found in it, with what was found in its body; absent where an earlier version recorded it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub findings: Option<Vec<String>>,
    /// Whether what its server listed of it was forgotten, so that some may be missing.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub forgotten: bool,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the shape serde asks for")]
fn is_none_of(count: &u32) -> bool {
    *count == 0
}
