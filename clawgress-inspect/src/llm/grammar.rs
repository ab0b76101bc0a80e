//! Where in a request what stands, in all dialects at once: their names for the same things differ, and the same names mean
//! the same. Must never skip what a model is shown.

use super::caps::Cap;
use super::key::Key;
use super::{Provenance, Role};

/// A place in a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Node {
    /// The request; or one of several in it.
    Root,
    /// Of no matter.
    Skip,
    Model,
    Stream,
    /// How many tokens may be answered, by this name.
    Cap(Cap),
    /// The same of Ollama, which looks at no other.
    Predict,
    /// How many answers there may be.
    Copies,
    EndUser,
    Store,
    /// What names something that the server has and the request does not show.
    Remote,
    IncludeUsage,
    RoleName,
    TypeName,
    /// Of a message, or item: which may say whose it is.
    ItemType,
    Config,
    StreamOptions,
    Metadata,
    Messages,
    Message,
    /// Text, or texts, or parts, by somebody that is known.
    Say(Role),
    /// Texts of a message, or its parts; where they come from, unless its role says so.
    Content(Option<Provenance>),
    Part(Option<Provenance>),
    /// Items of a conversation, or texts, or tokens.
    Input,
    /// All texts within.
    Every(Provenance),
    ToolCalls,
    ToolCall,
    Tools,
    Tool,
    ToolName,
    ToolType,
    /// A tool by what it is called in its place, whatever it says of itself.
    Builtin,
    McpServers,
    ToolChoice,
    ChoiceName,
    ToolConfig,
    Documents,
    Document,
    /// Data of an attachment, with or without a scheme, in base64.
    Blob,
    /// Where an attachment is; or its data, as a URL of them.
    Link,
    MediaType,
    /// What holds an attachment.
    Attachment,
    Requests,
    /// A prompt: text, or the name of one that the server has.
    Prompt,
    /// What an answer is to look like, which a model is shown: a schema, with what it is called.
    Format,
    /// What holds that; or a text by the same name.
    Output,
    /// What an image is made of: texts, and other images.
    Drawing,
    StoredPrompt,
    /// A tool that a message offers; or a text by the same name.
    Offer,
    /// Where a tool runs: a new place, or one that the provider has.
    Container,
}

use Node as N;

/// What messages and their parts have that no model is shown: marks of servers, and what they alone can read.
const UNSHOWN: [&str; 28] = [
    "annotations",
    "approval_request_id",
    "cachePoint",
    "cache_control",
    "call_id",
    "created_at",
    "detail",
    "encrypted_content",
    "format",
    "index",
    "is_error",
    "item_id",
    "logprobs",
    "namespace",
    "partMetadata",
    "phase",
    "redactedContent",
    "server_label",
    "signature",
    "status",
    "thought",
    "thoughtSignature",
    "thought_signature",
    "timestamp",
    "tool_call_id",
    "tool_name",
    "tool_use_id",
    "videoMetadata",
];

/// What requests have at their root that a model is shown, by names that mean it in one dialect alone. In any letters: who takes it
/// so, shows it.
const ASIDE: [(&str, Node); 52] = [
    // Of llama.cpp.
    ("n_predict", N::Cap(Cap::NPredict)),
    ("input_prefix", N::Say(Role::User)),
    ("input_suffix", N::Say(Role::User)),
    ("input_extra", N::Documents),
    // Of SGLang.
    ("sampling_params", N::Config),
    ("response_format", N::Format),
    ("output_format", N::Format),
    // Of Ollama.
    ("format", N::Every(Provenance::ToolDefinition)),
    ("output_config", N::Output),
    ("outputConfig", N::Every(Provenance::ToolDefinition)),
    // Of vLLM, llama.cpp and TGI: what holds an answer to a form stands for what says so.
    ("guided_json", N::Every(Provenance::ToolDefinition)),
    ("guided_choice", N::Every(Provenance::ToolDefinition)),
    ("guided_regex", N::Every(Provenance::ToolDefinition)),
    ("guided_grammar", N::Every(Provenance::ToolDefinition)),
    ("structured_outputs", N::Every(Provenance::ToolDefinition)),
    ("json_schema", N::Every(Provenance::ToolDefinition)),
    ("grammar", N::Every(Provenance::ToolDefinition)),
    ("chat_template", N::Say(Role::System)),
    ("chat_template_kwargs", N::Every(Provenance::ToolDefinition)),
    // What wraps a call in what makes one later: a batch, a conversation, a session; and what that takes from elsewhere.
    ("params", N::Root),
    ("batch", N::Root),
    ("input_config", N::Root),
    ("inputConfig", N::Root),
    ("session", N::Root),
    ("thread", N::Root),
    ("input_file_id", N::Remote),
    ("assistant_id", N::Remote),
    // Of Azure's projects, by either name: what it says and which tools it has, they keep.
    ("agent_reference", N::Remote),
    ("agent", N::Remote),
    // What a dialect of others does not have, of Google (`cached_content`).
    ("extra_body", N::Root),
    ("google", N::Root),
    // Of Anthropic what a provider keeps for a conversation, of Azure what it searches.
    ("container", N::Remote),
    ("data_sources", N::Remote),
    // Of Bedrock, put into a prompt that the server has.
    ("promptVariables", N::Every(Provenance::User)),
    // Of models that draw.
    ("text_prompts", N::Drawing),
    ("textToImageParams", N::Drawing),
    ("imageVariationParams", N::Drawing),
    ("inPaintingParams", N::Drawing),
    ("outPaintingParams", N::Drawing),
    ("colorGuidedGenerationParams", N::Drawing),
    ("backgroundRemovalParams", N::Drawing),
    ("textToVideoParams", N::Drawing),
    ("negative_prompt", N::Say(Role::User)),
    ("inputImage", N::Blob),
    ("input_image", N::Blob),
    ("init_image", N::Blob),
    ("mask", N::Blob),
    ("mask_image", N::Blob),
    ("image_prompt", N::Blob),
    ("control_image", N::Blob),
    ("style_image", N::Blob),
    ("input_images", N::Blob),
];

/// What holds a tool that is offered within a message, of Anthropic.
const DEFINITION: &str = "definition";
/// Members of tools that are none themselves.
pub(super) const NO_TOOLS: [&str; 4] = ["cachePoint", DEFINITION, "container", "environment"];

/// What tools name that only their provider has: stores of files, and who answers.
const ELSEWHERE: [&str; 5] = ["connector_id", "vector_store_ids", "fileSearch", "file_search", "retrieval"];

/// The same of what configures an answer.
const ASIDE_CONFIG: [&str; 9] = [
    "responseSchema",
    "response_schema",
    "responseJsonSchema",
    "response_json_schema",
    "_responseJsonSchema",
    "grammar",
    "json_schema",
    "regex",
    "ebnf",
];

// === impl Node ===

impl Node {
    /// The place of a member.
    pub(super) fn member(self, key: Key) -> Node {
        match self {
            N::Root => root(key),
            N::Config => match key {
                Key::MaxTokens | Key::MaxCompletionTokens => N::Cap(Cap::ConfigMaxTokens),
                Key::MaxOutputTokens => N::Cap(Cap::ConfigMaxOutputTokens),
                Key::MaxTokenCount => N::Cap(Cap::MaxTokenCount),
                Key::NumPredict => N::Predict,
                Key::CandidateCount | Key::N | Key::BestOf => N::Copies,
                _ => N::Skip,
            },
            N::StreamOptions if key == Key::IncludeUsage => N::IncludeUsage,
            N::Metadata if key == Key::UserId => N::EndUser,
            N::Message => message(key),
            N::Part(from) => part(key, from),
            N::ToolCall => match key {
                Key::Function => N::ToolCall,
                Key::Arguments | Key::Args | Key::Input | Key::Parameters => {
                    N::Every(Provenance::ToolArguments)
                }
                Key::Response => N::Every(Provenance::ToolOutput),
                Key::Output | Key::Content => N::Content(Some(Provenance::ToolOutput)),
                _ => N::Skip,
            },
            N::Tool => tool(key),
            N::Container if key == Key::FileId => N::Remote,
            N::McpServers => match key {
                Key::Name => N::ToolName,
                Key::Url => N::Remote,
                _ => N::Skip,
            },
            N::ToolChoice => match key {
                Key::Type | Key::Mode | Key::Name => N::ChoiceName,
                Key::Function | Key::Tool | Key::FunctionCallingConfig => N::ToolChoice,
                _ => N::Skip,
            },
            N::ToolConfig => match key {
                Key::Tools => N::Tools,
                Key::ToolChoice | Key::FunctionCallingConfig => N::ToolChoice,
                _ => N::Skip,
            },
            N::Document => match key {
                Key::Id | Key::Type => N::Skip,
                _ => N::Every(Provenance::Retrieved),
            },
            N::Attachment => match key {
                Key::Data | Key::Bytes | Key::FileData => N::Blob,
                Key::Url | Key::FileUri | Key::FileUrl | Key::FileId => N::Link,
                Key::MediaType | Key::MimeType => N::MediaType,
                Key::Source | Key::File => N::Attachment,
                // A document that is text.
                Key::Text | Key::Content | Key::Title | Key::Context => {
                    N::Content(Some(Provenance::Retrieved))
                }
                _ => N::Skip,
            },
            N::StoredPrompt => match key {
                Key::Id => N::Remote,
                Key::Variables => N::Every(Provenance::User),
                _ => N::Skip,
            },
            N::Format if key == Key::Type => N::Skip,
            N::Format => N::Every(Provenance::ToolDefinition),
            N::Drawing => match key {
                Key::Text => N::Content(Some(Provenance::User)),
                Key::Image | Key::Blobs => N::Blob,
                _ => N::Skip,
            },
            N::Every(from) => N::Every(from),
            _ => N::Skip,
        }
    }

    /// The place of a member whose name means nothing here.
    pub(super) fn other(self, name: &str) -> Node {
        match self {
            N::Message | N::Part(None) if UNSHOWN.contains(&name) => N::Skip,
            // Whatever it is: a server may show it.
            N::Message | N::Part(None) => N::Every(Provenance::Unknown),
            // What tools answer has whatever shape it has, and is shown.
            N::Part(Some(from)) | N::Every(from) => N::Every(from),
            N::Document => N::Every(Provenance::Retrieved),
            N::Root => {
                let known = ASIDE.iter().find(|(aside, _)| name.eq_ignore_ascii_case(aside));
                known.map_or(N::Skip, |(_, node)| *node)
            }
            N::Config if ASIDE_CONFIG.iter().any(|aside| name.eq_ignore_ascii_case(aside)) => {
                N::Every(Provenance::ToolDefinition)
            }
            // Of TGI and SGLang.
            N::Config if name.eq_ignore_ascii_case("max_new_tokens") => N::Cap(Cap::MaxNewTokens),
            // What one is that is offered on the way.
            N::Tool if name == DEFINITION => N::Tools,
            N::Tool if ELSEWHERE.contains(&name) => N::Remote,
            N::Tool if name == "container" || name == "environment" => N::Container,
            N::Container if ["file_ids", "skills", "container_id"].contains(&name) => N::Remote,
            N::Attachment if name == "s3Location" => N::Attachment,
            N::Attachment if name == "uri" => N::Link,
            N::Output if name.eq_ignore_ascii_case("format") => N::Format,
            N::Format if name == "strict" => N::Skip,
            N::Format => N::Every(Provenance::ToolDefinition),
            N::Drawing => match name {
                "negativeText" | "maskPrompt" | "negative_text" => N::Content(Some(Provenance::User)),
                "maskImage" | "referenceImage" | "conditionImage" => N::Blob,
                _ => N::Skip,
            },
            _ => N::Skip,
        }
    }

    /// Whether documents stand here, and nothing else that a server would read.
    pub(super) fn holds_documents(self) -> bool {
        matches!(
            self,
            N::Root
                | N::Config
                | N::Messages
                | N::Message
                | N::Tools
                | N::Tool
                | N::McpServers
                | N::ToolConfig
                | N::Documents
                | N::Requests
        )
    }

    /// Whether what stands here is in none of a request's messages: beside them, or in what configures their answer.
    pub(super) fn is_aside(self) -> bool {
        matches!(self, N::Root | N::Config | N::Output | N::Format)
    }

    /// What an object, or an array, at this place is.
    pub(super) fn opened(self, is_object: bool) -> Node {
        match (self, is_object) {
            (N::Messages | N::Input, true) => N::Message,
            (N::Content(from), true) => N::Part(from),
            (N::Say(_), true) => N::Part(None),
            (N::ToolCalls, true) => N::ToolCall,
            (N::Tools | N::Offer, true) => N::Tool,
            (N::Documents, true) => N::Document,
            (N::Requests, true) => N::Root,
            (N::Prompt, true) => N::StoredPrompt,
            (N::Link | N::Blob, true) => N::Attachment,
            // Called by its name alone elsewhere.
            (N::ToolName, _) => N::Skip,
            (node, _) => node,
        }
    }

    /// Whether a value of this place must be a string or a word, so that servers can't take one for another.
    pub(super) fn is_scalar(self) -> bool {
        matches!(
            self,
            N::Model
                | N::Stream
                | N::Cap(_)
                | N::Predict
                | N::Copies
                | N::RoleName
                | N::IncludeUsage
                | N::Store
        )
    }
}

fn root(key: Key) -> Node {
    match key {
        Key::Model => N::Model,
        Key::Stream => N::Stream,
        Key::MaxTokens => N::Cap(Cap::MaxTokens),
        Key::MaxCompletionTokens => N::Cap(Cap::MaxCompletionTokens),
        Key::MaxOutputTokens => N::Cap(Cap::MaxOutputTokens),
        Key::MaxTokensToSample => N::Cap(Cap::MaxTokensToSample),
        Key::MaxGenLen => N::Cap(Cap::MaxGenLen),
        Key::Messages | Key::ChatHistory | Key::Contents => N::Messages,
        Key::Input | Key::Inputs => N::Input,
        Key::Suffix | Key::Query | Key::Texts | Key::InputText | Key::Message => N::Say(Role::User),
        Key::Content => N::Say(Role::User),
        // How an answer is to look; or a text.
        Key::Text => N::Output,
        // Of Ollama the tokens of a conversation so far, of others what a question is about.
        Key::Context => N::Say(Role::Unknown),
        Key::Title => N::Content(Some(Provenance::Retrieved)),
        Key::ImageUrl => N::Link,
        Key::Prompt => N::Prompt,
        Key::Prediction => N::Say(Role::Assistant),
        Key::System | Key::SystemInstruction | Key::Instructions | Key::Preamble | Key::Template => {
            N::Say(Role::System)
        }
        Key::Documents => N::Documents,
        Key::ToolResults => N::Every(Provenance::ToolOutput),
        Key::Instances => N::Every(Provenance::User),
        Key::Requests => N::Requests,
        // Of Cloud Code's envelope, and what Bedrock hands on.
        Key::GenerateContentRequest | Key::Request | Key::AdditionalFields => N::Root,
        Key::N | Key::BestOf => N::Copies,
        Key::Tools | Key::Functions | Key::Connectors | Key::Plugins => N::Tools,
        Key::McpServers => N::McpServers,
        Key::ToolChoice | Key::FunctionCall => N::ToolChoice,
        Key::ToolConfig => N::ToolConfig,
        Key::Config | Key::InferenceConfig | Key::Options | Key::Parameters => N::Config,
        Key::StreamOptions => N::StreamOptions,
        Key::User | Key::SafetyIdentifier => N::EndUser,
        Key::Metadata => N::Metadata,
        Key::Store => N::Store,
        Key::PreviousResponseId | Key::Conversation | Key::CachedContent => N::Remote,
        Key::Blobs | Key::Image => N::Blob,
        _ => N::Skip,
    }
}

fn message(key: Key) -> Node {
    match key {
        Key::Role => N::RoleName,
        Key::Type => N::ItemType,
        Key::Content | Key::Parts | Key::Text => N::Content(None),
        // A message of cohere's, whose text has this name.
        Key::Message => N::Content(None),
        Key::Reasoning | Key::ReasoningContent | Key::Thinking | Key::Refusal | Key::ToolPlan => {
            N::Content(Some(Provenance::Model))
        }
        Key::Summary => N::Content(Some(Provenance::Model)),
        Key::ToolCalls => N::ToolCalls,
        // Offered on the way: of the Responses API.
        Key::Tools => N::Tools,
        Key::FunctionCall => N::ToolCall,
        Key::Arguments | Key::Input => N::Every(Provenance::ToolArguments),
        Key::Output | Key::ToolResults => N::Content(Some(Provenance::ToolOutput)),
        Key::Results => N::Every(Provenance::Retrieved),
        Key::Code => N::Every(Provenance::Model),
        Key::Blobs => N::Blob,
        // What Bedrock is to count.
        Key::Converse => N::Root,
        Key::Image | Key::Data | Key::FileData => N::Blob,
        key => odd(key, None),
    }
}

fn part(key: Key, from: Option<Provenance>) -> Node {
    match key {
        Key::Type => N::TypeName,
        Key::Text => N::Content(from),
        Key::Parts => N::Content(from),
        // Of what a tool answered, or was found.
        Key::Content => N::Content(Some(from.unwrap_or(Provenance::ToolOutput))),
        Key::Thinking | Key::Reasoning | Key::Refusal | Key::Summary => N::Content(Some(Provenance::Model)),
        Key::ReasoningContent | Key::ReasoningText => N::Content(Some(Provenance::Model)),
        Key::Title | Key::Context => N::Every(Provenance::Retrieved),
        Key::Input | Key::Args | Key::Arguments => N::Every(Provenance::ToolArguments),
        Key::FunctionCall | Key::ToolUse => N::ToolCall,
        // Offered on the way: of Anthropic.
        Key::Tool if from.is_none() => N::Offer,
        Key::FunctionResponse | Key::ToolResult => N::ToolCall,
        Key::Response | Key::Output | Key::Json | Key::Results => N::Every(Provenance::ToolOutput),
        Key::ExecutableCode => N::Every(Provenance::Model),
        Key::CodeExecutionResult => N::Every(Provenance::ToolOutput),
        Key::GuardContent => N::Content(from),
        Key::Source | Key::Image | Key::Video | Key::InputAudio | Key::Audio => N::Attachment,
        Key::Document => N::Attachment,
        Key::InlineData | Key::File => N::Attachment,
        // Of Gemini an object, of OpenAI a string.
        Key::FileData | Key::Data => N::Blob,
        Key::ImageUrl | Key::FileUrl | Key::FileUri | Key::FileId => N::Link,
        key => odd(key, from),
    }
}

/// A name that is known, in a place where it means nothing.
fn odd(key: Key, from: Option<Provenance>) -> Node {
    match (key, from) {
        (_, Some(from)) => N::Every(from),
        (Key::Id | Key::Name | Key::Metadata | Key::Mode | Key::Audio, None) => N::Skip,
        (Key::MediaType | Key::MimeType | Key::Url, None) => N::Skip,
        _ => N::Every(Provenance::Unknown),
    }
}

fn tool(key: Key) -> Node {
    match key {
        Key::Name => N::ToolName,
        Key::Type | Key::Id => N::ToolType,
        Key::Function | Key::ToolSpec => N::Tool,
        Key::FunctionDeclarations | Key::Tools => N::Tools,
        Key::Description => N::Every(Provenance::ToolDefinition),
        Key::Parameters | Key::InputSchema | Key::ParameterDefinitions | Key::ParametersJsonSchema => {
            N::Every(Provenance::ToolDefinition)
        }
        Key::GoogleSearch | Key::GoogleSearchRetrieval | Key::CodeExecution | Key::UrlContext => N::Builtin,
        Key::ComputerUse => N::Builtin,
        Key::ServerUrl => N::Remote,
        _ => N::Skip,
    }
}
