//! Names of members that mean something in requests of any dialect. Must never take a name for one that some servers read
//! otherwise: those in Go match names in any letter case, and refuse none.

use std::collections::HashMap;
use std::sync::LazyLock;

use crate::letters::fold;

/// Longest name that is told apart, bytes: no known one is longer.
pub(super) const KEY_BYTES_MAX: usize = 32;

/// What else only calls of models say.
pub(super) const TUNING: [&str; 11] = [
    "temperature",
    "top_p",
    "top_k",
    "stop",
    "frequency_penalty",
    "presence_penalty",
    "logprobs",
    "anthropic_version",
    "reasoning_effort",
    "response_format",
    "stop_sequences",
];

/// What only models take besides, in parameters of a request that names none: as TGI has them.
pub(super) const PARAMETERS: [&str; 8] = [
    "max_new_tokens",
    "do_sample",
    "return_full_text",
    "repetition_penalty",
    "typical_p",
    "decoder_input_details",
    "best_of",
    "watermark",
];

/// What names further models, at gateways of many: of them all, none is the one that is asked.
pub(super) const OTHERS: [&str; 7] = [
    "models",
    "fallbacks",
    "fallback_models",
    "context_window_fallbacks",
    "content_policy_fallbacks",
    "route",
    "extra_body",
];

/// Tools that a request has in other places than its list.
pub(super) const ROOT_TOOLS: [&str; 2] = ["web_search_options", "search_parameters"];

macro_rules! keys {
    ($($variant:ident = $($name:literal)|+),* $(,)?) => {
        /// A name, or some that mean the same in one dialect.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u8)]
        pub(super) enum Key { $($variant),* }

        impl Key {
            /// The one that is written exactly so.
            pub(super) fn exact(name: &str) -> Option<Key> {
                match name { $($($name)|+ => Some(Key::$variant),)* _ => None }
            }

            /// Every name.
            const ALL: &[(&str, Key)] = &[$($(($name, Key::$variant),)+)*];
        }
    };
}

keys! {
    AdditionalFields = "additionalModelRequestFields",
    Any = "any",
    Args = "args",
    Arguments = "arguments",
    Audio = "audio",
    Auto = "auto",
    BestOf = "best_of",
    Blobs = "images",
    Bytes = "bytes",
    CachedContent = "cachedContent" | "cached_content",
    CandidateCount = "candidateCount" | "candidate_count",
    ChatHistory = "chat_history",
    Code = "code",
    CodeExecution = "codeExecution" | "code_execution",
    CodeExecutionResult = "codeExecutionResult" | "code_execution_result",
    ComputerUse = "computerUse" | "computer_use",
    Config = "generationConfig" | "generation_config" | "textGenerationConfig",
    Connectors = "connectors",
    Content = "content",
    Contents = "contents",
    Context = "context",
    Conversation = "conversation",
    Converse = "converse",
    Data = "data",
    Description = "description",
    Document = "document",
    Documents = "documents",
    ExecutableCode = "executableCode" | "executable_code",
    File = "file",
    FileData = "fileData" | "file_data",
    FileId = "file_id",
    FileUri = "fileUri" | "file_uri",
    FileUrl = "file_url",
    Function = "function",
    FunctionCall = "functionCall" | "function_call",
    FunctionCallingConfig = "functionCallingConfig" | "function_calling_config",
    FunctionDeclarations = "functionDeclarations" | "function_declarations",
    FunctionResponse = "functionResponse" | "function_response",
    Functions = "functions",
    GenerateContentRequest = "generateContentRequest" | "generate_content_request",
    GoogleSearch = "googleSearch" | "google_search",
    GoogleSearchRetrieval = "googleSearchRetrieval" | "google_search_retrieval",
    GuardContent = "guardContent",
    Id = "id",
    Image = "image",
    ImageUrl = "image_url",
    IncludeUsage = "include_usage",
    InferenceConfig = "inferenceConfig",
    InlineData = "inlineData" | "inline_data",
    Input = "input",
    InputAudio = "input_audio",
    InputSchema = "inputSchema" | "input_schema",
    InputText = "inputText",
    Inputs = "inputs",
    Instances = "instances",
    Instructions = "instructions",
    Json = "json",
    MaxCompletionTokens = "max_completion_tokens",
    MaxGenLen = "max_gen_len",
    MaxOutputTokens = "maxOutputTokens" | "max_output_tokens",
    MaxTokenCount = "maxTokenCount",
    MaxTokens = "maxTokens" | "max_tokens",
    MaxTokensToSample = "max_tokens_to_sample",
    McpServers = "mcp_servers",
    MediaType = "media_type",
    Message = "message",
    Messages = "messages",
    Metadata = "metadata",
    MimeType = "mimeType" | "mime_type",
    Mode = "mode",
    Model = "model",
    N = "n" | "num_generations",
    Name = "name",
    NumPredict = "num_predict",
    Options = "options",
    Output = "output",
    ParameterDefinitions = "parameter_definitions",
    Parameters = "parameters",
    ParametersJsonSchema = "parametersJsonSchema" | "parameters_json_schema",
    Parts = "parts",
    Plugins = "plugins",
    Preamble = "preamble",
    Prediction = "prediction",
    PreviousResponseId = "previous_response_id",
    Prompt = "prompt",
    Query = "query",
    Reasoning = "reasoning",
    ReasoningContent = "reasoning_content" | "reasoningContent",
    ReasoningText = "reasoningText",
    Refusal = "refusal",
    Request = "request",
    Requests = "requests",
    Response = "response",
    Results = "results",
    Role = "role",
    SafetyIdentifier = "safety_identifier",
    ServerUrl = "server_url",
    Source = "source",
    Store = "store",
    Stream = "stream",
    StreamOptions = "stream_options",
    Suffix = "suffix",
    Summary = "summary",
    System = "system",
    SystemInstruction = "systemInstruction" | "system_instruction",
    Template = "template",
    Text = "text",
    Texts = "texts",
    Thinking = "thinking",
    Title = "title",
    Tool = "tool",
    ToolCalls = "tool_calls",
    ToolChoice = "toolChoice" | "tool_choice",
    ToolConfig = "toolConfig" | "tool_config",
    ToolPlan = "tool_plan",
    ToolResult = "toolResult",
    ToolResults = "tool_results",
    ToolSpec = "toolSpec" | "systemTool",
    ToolUse = "toolUse",
    Tools = "tools",
    Type = "type",
    Url = "url",
    UrlContext = "urlContext" | "url_context",
    User = "user",
    UserId = "user_id",
    Variables = "variables",
    Video = "video",
}

/// Names as servers in Go compare them, which fold letters (Unicode simple folding).
static FOLDED: LazyLock<HashMap<String, Key>> =
    LazyLock::new(|| Key::ALL.iter().map(|(name, key)| (fold(name), *key)).collect());

/// How long names are that begin with a letter, a bit for each length.
const LENGTHS: [u64; 128] = lengths();

#[expect(clippy::indexing_slicing, reason = "evaluated when it is compiled")]
const fn lengths() -> [u64; 128] {
    let (mut all, mut n) = ([0; 128], 0);
    while n < Key::ALL.len() {
        let name = Key::ALL[n].0.as_bytes();
        all[name[0].to_ascii_lowercase() as usize] |= 1 << name.len();
        n += 1;
    }
    all
}

impl Key {
    /// The one that some servers take `name` for, though it is written otherwise.
    pub(super) fn folded(name: &str) -> Option<Key> {
        // Most names are none, by their first letter and their length.
        let is_ascii = name.is_ascii();
        let first = name.bytes().next().map_or(0, |b| usize::from(b.to_ascii_lowercase()));
        let lengths = LENGTHS.get(first).copied().unwrap_or_default();
        if is_ascii && (name.len() > KEY_BYTES_MAX || lengths >> name.len() & 1 == 0) {
            return None;
        }
        FOLDED.get(&fold(name)).copied()
    }

    /// A bit of a set.
    pub(super) fn bit(self) -> u128 {
        1 << (self as u8)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_within_their_bounds() {
        let last = Key::ALL.last().expect("some").1;
        assert!((last as u8) < 128, "one bit for each");
        for (name, key) in Key::ALL {
            assert_eq!(Key::exact(name), Some(*key));
            assert!(name.len() <= KEY_BYTES_MAX && Key::folded(name).is_some(), "{name}");
        }
        for (name, key) in [("MODEL", Key::Model), ("\u{17f}tream", Key::Stream), ("to\u{212a}en", Key::Any)]
        {
            assert_eq!(Key::exact(name), None);
            assert_eq!(Key::folded(name).is_some_and(|found| found == key), key != Key::Any, "{name}");
        }
    }
}
