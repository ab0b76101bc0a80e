//! Where in an answer what stands, in all dialects at once. Must never take for the provider's what the model says.

use super::Node;
use crate::llm::answer::Count;
use crate::llm::answer::places::{is_calls, is_packed, is_turn, is_wrap};

// === impl Node ===

impl Node {
    pub(super) fn member(self, name: &str) -> Node {
        match self {
            Node::Top(more) => top(name, more),
            Node::Turn => turn(name),
            Node::Call => match name {
                "name" | "apiPath" => Node::Name,
                "function" => Node::Function,
                "custom" => Node::Call,
                "arguments" | "args" | "input" | "parameters" => Node::Arguments,
                _ => Node::Skip,
            },
            Node::Token if name == "text" => Node::Text,
            Node::Ending => match name {
                "finish_reason" => Node::Finish,
                "generated_tokens" => Node::Count(Count::Output),
                "input_length" => Node::Count(Count::Input),
                _ => Node::Skip,
            },
            Node::Spoken if name == "transcript" => Node::Text,
            Node::Items if name == "embedding" => Node::Vectors,
            // Of what is listed, the number is no answer's beside another.
            Node::Items if name == "index" => Node::Skip,
            Node::Items => turn(name),
            // What results of a batch cost, was counted when they were made.
            Node::Result if name == "message" => Node::Turn,
            // Why Gemini does not answer a prompt.
            Node::Feedback if name == "blockReason" => Node::Finish,
            Node::Predictions if name == "embeddings" => Node::Predictions,
            Node::Predictions if name == "values" => Node::Vectors,
            Node::Predictions if name == "statistics" => Node::Statistics,
            Node::Statistics if name == "token_count" => Node::Sum(Count::Input),
            Node::Meta if name == "billed_units" => Node::Usage,
            Node::Results if name == "tokenCount" => Node::Count(Count::Output),
            Node::Results => turn(name),
            Node::Usage => usage(name),
            Node::Details(Count::CachedAudio) if name != "audio_tokens" => Node::Skip,
            Node::Details(sound) => match name {
                "audio_tokens" => Node::Count(sound),
                "cached_tokens_details" => Node::Details(Count::CachedAudio),
                "cached_tokens" => Node::Count(Count::Cached),
                "cache_write_tokens" => Node::Count(Count::CacheWritten),
                "reasoning_tokens" => Node::Count(Count::Reasoning),
                _ => Node::Skip,
            },
            Node::Iterations => match name {
                "type" => Node::Type,
                "input_tokens" => Node::OfIteration(Count::OwnInput),
                "cache_read_input_tokens" => Node::OfIteration(Count::OwnCached),
                "cache_creation_input_tokens" => Node::OfIteration(Count::OwnCacheWritten),
                "output_tokens" => Node::OfIteration(Count::OwnOutput),
                _ => Node::Skip,
            },
            Node::Modalities(_) => match name {
                "modality" => Node::Modality,
                "tokenCount" => Node::OfModality,
                _ => Node::Skip,
            },
            Node::Error => match name {
                "type" | "code" | "status" => Node::ErrorKind,
                _ => Node::Skip,
            },
            _ => Node::Skip,
        }
    }
}

fn top(name: &str, more: u8) -> Node {
    match name {
        "model" | "modelVersion" => Node::Model,
        "usage" | "usageMetadata" | "amazon-bedrock-invocationMetrics" => Node::Usage,
        // What wraps a document; or the text itself, of Ollama.
        name if more > 0 && is_wrap(name) => Node::Top(more - 1),
        "results" => Node::Results,
        // Of a batch: of Anthropic, and of OpenAI within the response.
        "result" => Node::Result,
        "promptFeedback" => Node::Feedback,
        "body" if more == 0 => Node::Turn,
        "error" => Node::Error,
        name if is_packed(name) => Node::Packed,
        "done" => Node::Done,
        "status" => Node::Status,
        "embedding" | "embeddings" => Node::Vectors,
        "data" => Node::Items,
        "predictions" => Node::Predictions,
        // What was asked, where an answer says it again.
        "input" => Node::Skip,
        "meta" => Node::Meta,
        // Of Cohere's first version, whose type has a name of its own.
        "event_type" => Node::Type,
        // Of Ollama, Titan and Llama.
        "prompt_eval_count" | "inputTextTokenCount" | "prompt_token_count" => Node::Count(Count::Input),
        "eval_count" | "generation_token_count" => Node::Count(Count::Output),
        // Of llama.cpp's own surface.
        "tokens_evaluated" => Node::Count(Count::Input),
        "tokens_predicted" => Node::Count(Count::Output),
        "stop_type" => Node::Finish,
        // Of TGI.
        "generated_text" => Node::All,
        "token" => Node::Token,
        "details" => Node::Ending,
        name => turn(name),
    }
}

fn turn(name: &str) -> Node {
    match name {
        "choices" | "candidates" => Node::Choices,
        "index" => Node::Index,
        name if is_turn(name) => Node::Turn,
        name if is_calls(name) => Node::Call,
        "partial_json" | "arguments" | "input" | "partial_arguments" => Node::Arguments,
        "text" | "thinking" | "generation" | "outputText" | "completion" => Node::Text,
        "reasoning_content" | "reasoning" | "refusal" | "transcript" => Node::Text,
        "audio" => Node::Spoken,
        "name" => Node::Name,
        "type" => Node::Type,
        "finish_reason" | "finishReason" | "stop_reason" | "stopReason" | "done_reason"
        | "completionReason" => Node::Finish,
        _ => Node::Skip,
    }
}

fn usage(name: &str) -> Node {
    Node::Count(match name {
        "prompt_tokens" => Count::Prompt,
        "input_tokens" | "promptTokenCount" | "inputTokens" | "inputTokenCount" | "total_input_tokens" => {
            Count::Input
        }
        "completion_tokens"
        | "output_tokens"
        | "candidatesTokenCount"
        | "outputTokens"
        | "outputTokenCount"
        | "total_output_tokens" => Count::Output,
        "total_tokens" | "totalTokens" | "totalTokenCount" => Count::Total,
        "cached_tokens" | "cachedContentTokenCount" | "prompt_cache_hit_tokens" | "total_cached_tokens" => {
            Count::Cached
        }
        "cache_write_tokens" => Count::CacheWritten,
        "cache_read_input_tokens" | "cacheReadInputTokens" | "cacheReadInputTokenCount" => {
            Count::CachedBesides
        }
        "cache_creation_input_tokens" | "cacheWriteInputTokens" | "cacheWriteInputTokenCount" => {
            Count::CacheWrittenBesides
        }
        "toolUsePromptTokenCount" | "total_tool_use_tokens" => Count::ToolPrompt,
        "reasoning_tokens" => Count::Reasoning,
        "thoughtsTokenCount" | "total_thought_tokens" => Count::Thoughts,
        "citation_tokens" => Count::Citations,
        "iterations" => return Node::Iterations,
        // What Cohere bills; and what else is said of counts.
        "billed_units" => return Node::Usage,
        // Those in the singular are of realtime conversations and of transcriptions.
        "prompt_tokens_details" | "input_tokens_details" | "input_token_details" => {
            return Node::Details(Count::InputAudio);
        }
        "completion_tokens_details" | "output_tokens_details" | "output_token_details" => {
            return Node::Details(Count::OutputAudio);
        }
        // Of Gemini; what its tools were asked with is input, too.
        "promptTokensDetails" | "toolUsePromptTokensDetails" => return Node::Modalities(Count::InputAudio),
        "cacheTokensDetails" => return Node::Modalities(Count::CachedAudio),
        "candidatesTokensDetails" | "responseTokensDetails" => {
            return Node::Modalities(Count::OutputAudio);
        }
        _ => return Node::Skip,
    })
}

/// Whether events of this type say again what others have said in parts: of the Responses API all but those.
pub(super) fn is_repeat(kind: &str) -> bool {
    kind.starts_with("response.") && !kind.ends_with(".delta") || kind == "transcript.text.done"
}

/// Whether an event of this type has sound where others have text, in base64: of the Responses API.
pub(super) fn is_sound(kind: &str) -> bool {
    matches!(kind, "response.audio.delta" | "response.output_audio.delta")
}

/// Whether an answer is over behind an event of this type.
pub(in crate::llm) fn is_over(kind: &str) -> bool {
    matches!(
        kind,
        "response.completed"
            | "response.incomplete"
            | "response.failed"
            | "message_stop"
            | "transcript.text.done"
            | "image_generation.completed"
            | "image_edit.completed"
            | "speech.audio.done"
            | "message-end"
            | "stream-end"
            | "interaction.completed"
    )
}

/// A count: a whole number, as JSON has it.
pub(super) fn number(text: &str) -> Option<u64> {
    // Cohere's are floating.
    let whole = text.strip_suffix(".0").unwrap_or(text);
    let is_plain = !whole.is_empty() && whole.bytes().all(|b| b.is_ascii_digit());
    let has_zeros = whole.len() > 1 && whole.starts_with('0');
    whole.parse().ok().filter(|_| is_plain && !has_zeros)
}
