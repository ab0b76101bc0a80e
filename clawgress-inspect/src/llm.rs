//! Calls of language models: which requests are some, what they say, and what comes back.
//!
//! Works on bytes as they stream by, in memory that is bounded, and says the same of them however they are cut. Must never
//! take a request for another than its server would: what servers may read in two ways is refused.

pub mod answer;
mod attachment;
mod call;
mod caps;
pub mod change;
mod estimate;
mod form;
mod grammar;
mod key;
pub mod model;
pub mod realtime;
pub mod rename;
pub mod request;
pub mod route;
mod text;
pub mod vocabulary;

pub use attachment::Attachments;
pub use call::{Call, CallError, Choice, Shape, Signs};
pub use caps::CapNames;
pub use estimate::Estimator;
pub use form::Field;
pub use model::ModelName;
pub use request::Request;
pub use route::{Route, Server, Surface, Target, Told, is_ambiguous, route, tells};
pub use text::{BLOCK_BYTES, PENDING_BYTES_MAX, Texts};

/// Who says a text, as the request has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// The system or developer prompt.
    System,
    /// The user.
    User,
    /// The model, in an earlier turn.
    Assistant,
    /// A tool that answers.
    Tool,
    /// Nobody knows: the request names none, one that is not known, or too late.
    #[default]
    Unknown,
}

/// Where a text comes from: who says something need not have written it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Provenance {
    /// Instructions of whoever built the agent: the system prompt.
    Instructions,
    /// What the user says.
    User,
    /// What the model said, its reasoning too.
    Model,
    /// What the model asks a tool for: the arguments of a call.
    ToolArguments,
    /// What a tool answered.
    ToolOutput,
    /// A document, a search result, the text of a file.
    Retrieved,
    /// What a tool is said to do: its name, description and schema.
    ToolDefinition,
    /// Nobody knows. To be weighed as what may come from anybody.
    Unknown,
}

/// A piece of a text of a request: a text comes in one or more, which follow one another. They are cut at the same places
/// however the request was cut: behind [`BLOCK_BYTES`] bytes, or a little before where a character would be cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece<'a> {
    /// Who says it.
    pub role: Role,
    /// Where it comes from.
    pub provenance: Provenance,
    /// Number of the text in the request, from 0.
    pub number: u32,
    /// Number of what it is a part of: a message, whose texts a model is shown as one, or a tool or document.
    pub message: u32,
    /// Whether the text begins here.
    pub begins: bool,
    /// Whether it ends here. The last piece may be empty.
    pub ends: bool,
    /// Without the escapes of JSON. What is no UTF-8 is U+FFFD.
    pub text: &'a str,
}

// === impl Role ===

impl Role {
    /// The role of this name in any dialect.
    #[must_use]
    pub fn named(name: &str) -> Role {
        let is = |known: &str| name.eq_ignore_ascii_case(known);
        match () {
            () if is("user") => Role::User,
            () if is("assistant") || is("model") || is("chatbot") => Role::Assistant,
            () if is("tool") || is("function") => Role::Tool,
            () if is("system") || is("developer") => Role::System,
            () => Role::Unknown,
        }
    }

    /// Where its texts come from, unless something else is said of them.
    #[must_use]
    pub fn provenance(self) -> Provenance {
        match self {
            Role::System => Provenance::Instructions,
            Role::User => Provenance::User,
            Role::Assistant => Provenance::Model,
            Role::Tool => Provenance::ToolOutput,
            Role::Unknown => Provenance::Unknown,
        }
    }
}
