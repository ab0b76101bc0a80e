//! What a request to a model says, and why that can't be known. Must never hold a text that it shows.

use super::caps::{CapNames, Caps, NewTokens};
use super::{Attachments, Role, Surface, Told};

/// Why what a request asks for can't be known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// A name twice in an object.
    #[error("a field of the model call comes twice, and servers differ in which they take")]
    Twice,
    /// A name that is a known one but for its letters' case.
    #[error("a field of the model call is written in other letters, and some servers take it")]
    Letters,
    /// A value that is not of its field's type.
    #[error("a field of the model call is not of its type")]
    Type,
    /// A name beyond [`NAME_BYTES_MAX`](super::request::NAME_BYTES_MAX), of a user [`USER_BYTES_MAX`](super::request::USER_BYTES_MAX),
    /// or not of plain characters.
    #[error("a name in the model call is too long, or not of plain characters")]
    Name,
    /// More than [`TOOLS_MAX`](super::request::TOOLS_MAX) tools.
    #[error("the model call offers too many tools")]
    ToolsTooMany,
    /// No JSON object.
    #[error("the model call is no JSON object")]
    NoObject,
}

/// What the model is to do about tools.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Choice {
    /// Nothing is said: up to the model.
    #[default]
    Unsaid,
    /// `auto`, `none`, `required`, `any`; or a tool by its name.
    Named(String),
}

/// Whether a choice says how tools are asked for, and names none.
pub(super) fn is_manner(choice: &str) -> bool {
    const MANNERS: [&str; 7] = ["auto", "none", "any", "required", "tool", "function", "validated"];
    MANNERS.iter().any(|manner| choice.eq_ignore_ascii_case(manner))
}

/// What a request says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Call {
    /// The model, as it is named; `None` where the body names none.
    pub model: Option<String>,
    /// Whether it names further models, of which the server may take any: in place of the first, or if that fails.
    pub has_others: bool,
    /// Whether the answer is to be streamed, if that is said.
    pub stream: Option<bool>,
    /// Whether usage is to be told at the end of the stream, if that is said.
    pub include_usage: Option<bool>,
    /// Whether it says how to stream, in whatever way.
    pub has_stream_options: bool,
    /// Most tokens that may be answered: the largest there is, by whatever name; `None` where none is set.
    pub tokens_max: Option<u64>,
    /// The same by their names.
    pub(super) caps: Caps,
    /// The same as Ollama's own surfaces take it, which look at no other field.
    pub tokens_predict: Option<u64>,
    /// Tokens of what the model is shown, estimated.
    pub tokens_estimated: u64,
    /// Messages, by [`Role`]: system, user, assistant, tool, unknown.
    pub messages: [u32; 5],
    /// Texts.
    pub texts: u32,
    /// Names of the tools that are offered, each once, in order of the first; of those without a name their type.
    pub tools: Vec<String>,
    /// Whether the model is shown definitions besides: of what its answer is to look like.
    pub has_definitions: bool,
    /// What is to be done about them.
    pub tool_choice: Choice,
    /// What is attached.
    pub attachments: Attachments,
    /// Who it is for, as the client says.
    pub end_user: Option<String>,
    /// Whether the server may keep it, if that is said.
    pub store: Option<bool>,
    /// Whether the model is shown what only the server has: an earlier answer, a conversation, a file, a stored prompt.
    pub is_partial: bool,
    /// What the body looks like.
    pub shape: Shape,
}

/// Which fields of a body tell that it is a model call, and of what kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shape {
    /// `messages` whose first has a role that is known.
    pub messages: bool,
    /// `contents` with parts, as Gemini has them.
    pub contents: bool,
    /// The fields of these names.
    pub messages_field: bool,
    /// As above.
    pub contents_field: bool,
    /// `input`.
    pub input: bool,
    /// `inputs`; and whether it is one text, with parameters that only models take.
    pub inputs: bool,
    pub inputs_text: bool,
    pub parameters: bool,
    /// `prompt`; and whether that is an object, as nobody has it who runs one model.
    pub prompt: bool,
    pub prompt_object: bool,
    /// What only servers of one model take, each in its own dialect: `sampling_params` of SGLang, what llama.cpp is to fill in.
    pub bare: bool,
    /// Another single text, which others than calls have as well.
    pub text: bool,
    /// Any field that only model calls have: a cap, tools, a sampling parameter.
    pub tuned: bool,
    /// A cap that one server alone has, which runs one model and is told none: `n_predict` of llama.cpp.
    pub capped: bool,
    /// What tells one dialect from others that have the same fields.
    pub signs: Signs,
}

/// What only some dialects have of those whose requests have `messages`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Signs(u16);

// === impl Call ===

impl Call {
    /// Most tokens that may be answered, as servers of this surface take it: of chat completions by OpenAI's newer name only
    /// where the provider has it, and of completions by [what the path says](super::route::Route::cap_names).
    #[must_use]
    pub fn tokens_max_of(&self, surface: Surface, names: CapNames) -> Option<u64> {
        match surface {
            Surface::OllamaChat | Surface::OllamaGenerate => self.tokens_predict,
            _ => self.caps.most_of(surface, names, self.new_tokens()),
        }
    }

    pub(super) fn new_tokens(&self) -> NewTokens {
        NewTokens { inputs: self.shape.inputs, text: self.caps.has_text() }
    }
}

// === impl Shape ===

impl Shape {
    /// Whether it looks like a call of a model, whoever it goes to.
    #[must_use]
    pub fn is_call(self, has_model: bool) -> bool {
        let is_bare = self.prompt && self.capped || self.inputs_text && self.parameters;
        self.contents
            || self.messages && (has_model || self.tuned)
            || has_model && (self.input || self.inputs || self.prompt || self.text && self.tuned)
            || is_bare
    }

    /// Whether it has what a call has at a path that [tells](super::route::tells) so, though it names no model.
    #[must_use]
    pub fn is_call_there(self, told: Told) -> bool {
        let is_text = self.prompt && !self.prompt_object || self.inputs_text;
        let has_more = || self.contents_field || self.input || self.inputs || self.prompt;
        self.messages || is_text || self.capped || self.bare || told == Told::Surely && has_more()
    }

    /// Whether it has the fields of other surfaces, and not those of this one.
    #[must_use]
    pub fn differs(self, surface: Surface) -> bool {
        let has_any = self.messages_field || self.contents_field || self.has_single();
        let is_own = match surface {
            Surface::ChatCompletions | Surface::Messages | Surface::OllamaChat => self.messages_field,
            Surface::Responses => self.input || self.prompt,
            // Of TGI, and of the first models at Cohere.
            Surface::Completions => self.prompt || self.text || self.inputs,
            Surface::OllamaGenerate | Surface::Images | Surface::Rerank => self.prompt || self.text,
            Surface::GenerateContent => self.contents_field,
            Surface::Converse => self.messages_field,
            Surface::CohereChat => self.messages_field || self.prompt || self.text,
            Surface::Embeddings | Surface::Moderations | Surface::Audio => self.has_single(),
            _ => true,
        };
        has_any && !is_own || self.signs.0 & Signs::strange_to(surface).0 != 0
    }

    fn has_single(self) -> bool {
        self.input || self.inputs || self.prompt || self.text
    }
}

// === impl Signs ===

impl Signs {
    /// A role besides the user's and the model's: others have the system's prompt and tools' answers elsewhere.
    pub(super) const ROLES: Signs = Signs(1);
    /// What only OpenAI's chat has at its root.
    pub(super) const OPENAI: Signs = Signs(1 << 1);
    /// A tool inside of what says that it is a function; and calls of tools beside the text.
    pub(super) const FUNCTIONS: Signs = Signs(1 << 2);
    /// Parts as OpenAI has them: `image_url`.
    pub(super) const OPENAI_PARTS: Signs = Signs(1 << 3);
    /// Tools and parts as Anthropic has them: `input_schema`, `tool_use`.
    pub(super) const ANTHROPIC: Signs = Signs(1 << 4);
    /// What only Bedrock's Converse has: `inferenceConfig`, `toolUse`.
    pub(super) const CONVERSE: Signs = Signs(1 << 5);
    /// Parts that do not say what they are.
    pub(super) const UNTYPED: Signs = Signs(1 << 6);
    /// Parts that do.
    pub(super) const TYPED: Signs = Signs(1 << 7);
    /// A message that is one text.
    pub(super) const PLAIN: Signs = Signs(1 << 8);
    /// What Converse has elsewhere, at the root: tools, a cap.
    pub(super) const FLAT: Signs = Signs(1 << 9);

    pub(super) fn add(&mut self, sign: Signs) {
        self.0 |= sign.0;
    }

    /// Of who says a message.
    pub(super) fn of_role(role: Role) -> Signs {
        if matches!(role, Role::System | Role::Tool) { Signs::ROLES } else { Signs::default() }
    }

    /// Of a member of the request.
    pub(super) fn of_root(name: &str) -> Signs {
        match name {
            "max_completion_tokens"
            | "n"
            | "stream_options"
            | "response_format"
            | "frequency_penalty"
            | "presence_penalty"
            | "logit_bias"
            | "parallel_tool_calls" => Signs::OPENAI,
            "anthropic_version" => Signs::ANTHROPIC,
            "inferenceConfig" | "additionalModelRequestFields" => Signs::CONVERSE,
            "tools" | "max_tokens" => Signs::FLAT,
            _ => Signs::default(),
        }
    }

    /// Of what a part of a message says that it is.
    pub(super) fn of_part(kind: &str) -> Signs {
        match kind {
            "image_url" | "input_audio" | "input_text" | "input_image" => Signs::OPENAI_PARTS,
            "tool_use" | "tool_result" => Signs::ANTHROPIC,
            _ => Signs::default(),
        }
    }

    fn all(signs: &[Signs]) -> Signs {
        Signs(signs.iter().fold(0, |all, sign| all | sign.0))
    }

    /// Those that no request to this surface has.
    fn strange_to(surface: Surface) -> Signs {
        use Signs as S;
        match surface {
            Surface::ChatCompletions => S::all(&[S::ANTHROPIC, S::CONVERSE]),
            Surface::Messages => {
                S::all(&[S::ROLES, S::OPENAI, S::FUNCTIONS, S::OPENAI_PARTS, S::CONVERSE, S::UNTYPED])
            }
            // Its messages are one text each.
            Surface::OllamaChat => {
                S::all(&[S::OPENAI, S::OPENAI_PARTS, S::ANTHROPIC, S::CONVERSE, S::UNTYPED, S::TYPED])
            }
            Surface::Converse => S::all(&[
                S::ROLES,
                S::OPENAI,
                S::FUNCTIONS,
                S::OPENAI_PARTS,
                S::ANTHROPIC,
                S::TYPED,
                S::PLAIN,
                S::FLAT,
            ]),
            _ => S::default(),
        }
    }
}
