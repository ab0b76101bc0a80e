//! Where each golden request goes: its host and path lead it to its surface, by the same router that the proxy asks.

use clawgress_inspect::llm::{Route, Server, Surface, Target, route};

use super::cuts::names;

use Surface as S;

/// A fixture and where it is sent; its provider, its surface, and the model that its path names.
type Row = (&'static str, &'static str, &'static str, Surface, &'static str);

const ROWS: &[Row] = &[
    ("openai_chat.json", "api.openai.com/v1/chat/completions", "openai", S::ChatCompletions, ""),
    ("openai_responses.json", "api.openai.com/v1/responses", "openai", S::Responses, ""),
    ("openai_input_tokens.json", "api.openai.com/v1/responses/input_tokens", "openai", S::CountTokens, ""),
    ("openai_completions.json", "api.openai.com/v1/completions", "openai", S::Completions, ""),
    ("openai_embeddings.json", "api.openai.com/v1/embeddings", "openai", S::Embeddings, ""),
    ("openai_images.json", "api.openai.com/v1/images/generations", "openai", S::Images, ""),
    ("openai_image_edits.form", "api.openai.com/v1/images/edits", "openai", S::Images, ""),
    ("openai_image_variations.form", "api.openai.com/v1/images/variations", "openai", S::Images, ""),
    ("openai_speech.json", "api.openai.com/v1/audio/speech", "openai", S::Audio, ""),
    ("openai_transcription.form", "api.openai.com/v1/audio/transcriptions", "openai", S::Audio, ""),
    ("openai_translation.form", "api.openai.com/v1/audio/translations", "openai", S::Audio, ""),
    ("openai_moderations.json", "api.openai.com/v1/moderations", "openai", S::Moderations, ""),
    ("openai_batches.json", "api.openai.com/v1/batches", "openai", S::Batches, ""),
    ("openai_files.form", "api.openai.com/v1/files", "openai", S::Files, ""),
    (
        "azure_chat.json",
        "a.openai.azure.com/openai/deployments/my-deployment/chat/completions?api-version=2024-10-21",
        "azure",
        S::ChatCompletions,
        "my-deployment",
    ),
    (
        "azure_responses.json",
        "a.openai.azure.com/openai/responses?api-version=2025-04-01-preview",
        "azure",
        S::Responses,
        "",
    ),
    ("azure_v1_chat.json", "a.openai.azure.com/openai/v1/chat/completions", "azure", S::ChatCompletions, ""),
    ("azure_v1_responses.json", "a.openai.azure.com/openai/v1/responses", "azure", S::Responses, ""),
    (
        "azure_foundry_chat.json",
        "a.services.ai.azure.com/models/chat/completions?api-version=2024-05-01-preview",
        "azure",
        S::ChatCompletions,
        "",
    ),
    (
        "azure_project_responses.json",
        "a.services.ai.azure.com/api/projects/p/openai/v1/responses",
        "azure",
        S::Responses,
        "",
    ),
    (
        "azure_anthropic_messages.json",
        "a.services.ai.azure.com/anthropic/v1/messages",
        "azure",
        S::Messages,
        "",
    ),
    ("anthropic_messages.json", "api.anthropic.com/v1/messages", "anthropic", S::Messages, ""),
    (
        "anthropic_count_tokens.json",
        "api.anthropic.com/v1/messages/count_tokens",
        "anthropic",
        S::CountTokens,
        "",
    ),
    ("anthropic_batches.json", "api.anthropic.com/v1/messages/batches", "anthropic", S::Batches, ""),
    (
        "gemini_generate.json",
        "generativelanguage.googleapis.com/v1beta/models/gemini-2.5-pro:generateContent",
        "gemini",
        S::GenerateContent,
        "gemini-2.5-pro",
    ),
    (
        "gemini_tuned.json",
        "generativelanguage.googleapis.com/v1beta/tunedModels/roman-numerals-1:generateContent",
        "gemini",
        S::GenerateContent,
        "tunedModels/roman-numerals-1",
    ),
    (
        "gemini_count_tokens.json",
        "generativelanguage.googleapis.com/v1beta/models/gemini-2.5-pro:countTokens",
        "gemini",
        S::CountTokens,
        "gemini-2.5-pro",
    ),
    (
        "gemini_embed.json",
        "generativelanguage.googleapis.com/v1beta/models/gemini-embedding-001:embedContent",
        "gemini",
        S::Embeddings,
        "gemini-embedding-001",
    ),
    // What stands in it may be of others, too.
    (
        "gemini_batch.json",
        "generativelanguage.googleapis.com/v1beta/models/gemini-2.5-flash:batchGenerateContent",
        "gemini",
        S::Batches,
        "",
    ),
    (
        "gemini_openai_chat.json",
        "generativelanguage.googleapis.com/v1beta/openai/chat/completions",
        "gemini",
        S::ChatCompletions,
        "",
    ),
    (
        "gemini_openai_embeddings.json",
        "generativelanguage.googleapis.com/v1beta/openai/embeddings",
        "gemini",
        S::Embeddings,
        "",
    ),
    (
        "gemini_cloudcode.json",
        "cloudcode-pa.googleapis.com/v1internal:streamGenerateContent?alt=sse",
        "gemini",
        S::GenerateContent,
        "",
    ),
    (
        "vertex_generate.json",
        "us-central1-aiplatform.googleapis.com/v1/projects/p/locations/us-central1/publishers/google/models/gemini-2.5-flash:streamGenerateContent?alt=sse",
        "vertex",
        S::GenerateContent,
        "gemini-2.5-flash",
    ),
    (
        "vertex_predict.json",
        "aiplatform.us.rep.googleapis.com/v1/projects/p/locations/us/publishers/google/models/text-embedding-005:predict",
        "vertex",
        S::Predict,
        "text-embedding-005",
    ),
    (
        "vertex_anthropic.json",
        "aiplatform.googleapis.com/v1/projects/p/locations/global/publishers/anthropic/models/claude-sonnet-4@20250514:streamRawPredict",
        "vertex",
        S::Predict,
        "claude-sonnet-4@20250514",
    ),
    (
        "vertex_openai_chat.json",
        "us-central1-aiplatform.googleapis.com/v1beta1/projects/p/locations/us-central1/endpoints/openapi/chat/completions",
        "vertex",
        S::ChatCompletions,
        "",
    ),
    (
        "bedrock_converse.json",
        "bedrock-runtime.eu-west-1.amazonaws.com/model/anthropic.claude-sonnet-4-20250514-v1%3A0/converse",
        "bedrock",
        S::Converse,
        "anthropic.claude-sonnet-4-20250514-v1:0",
    ),
    (
        "bedrock_invoke_anthropic.json",
        "bedrock-runtime.eu-west-1.amazonaws.com/model/anthropic.claude-sonnet-4-20250514-v1%3A0/invoke",
        "bedrock",
        S::Invoke,
        "anthropic.claude-sonnet-4-20250514-v1:0",
    ),
    (
        "bedrock_invoke_llama.json",
        "bedrock-runtime.us-west-2.amazonaws.com/model/meta.llama3-1-8b-instruct-v1%3A0/invoke",
        "bedrock",
        S::Invoke,
        "meta.llama3-1-8b-instruct-v1:0",
    ),
    (
        "bedrock_invoke_titan.json",
        "bedrock-runtime.us-east-1.amazonaws.com/model/amazon.titan-text-express-v1/invoke-with-response-stream",
        "bedrock",
        S::Invoke,
        "amazon.titan-text-express-v1",
    ),
    (
        "bedrock_count_tokens.json",
        "bedrock-runtime.us-east-1.amazonaws.com/model/anthropic.claude-3-5-haiku-20241022-v1%3A0/count-tokens",
        "bedrock",
        S::CountTokens,
        "anthropic.claude-3-5-haiku-20241022-v1:0",
    ),
    // Of no model.
    (
        "bedrock_guardrail.json",
        "bedrock-runtime.us-east-1.amazonaws.com/guardrail/g/version/1/apply",
        "bedrock",
        S::Other,
        "",
    ),
    ("cohere_chat_v2.json", "api.cohere.com/v2/chat", "cohere", S::CohereChat, ""),
    ("cohere_chat_v1.json", "api.cohere.ai/v1/chat", "cohere", S::CohereChat, ""),
    ("cohere_embed.json", "api.cohere.com/v2/embed", "cohere", S::Embeddings, ""),
    ("cohere_rerank.json", "api.cohere.com/v2/rerank", "cohere", S::Rerank, ""),
    ("mistral_chat.json", "api.mistral.ai/v1/chat/completions", "mistral", S::ChatCompletions, ""),
    ("mistral_fim.json", "codestral.mistral.ai/v1/fim/completions", "mistral", S::Completions, ""),
    ("mistral_embeddings.json", "api.mistral.ai/v1/embeddings", "mistral", S::Embeddings, ""),
    ("groq_chat.json", "api.groq.com/openai/v1/chat/completions", "groq", S::ChatCompletions, ""),
    ("together_chat.json", "api.together.xyz/v1/chat/completions", "together", S::ChatCompletions, ""),
    (
        "fireworks_chat.json",
        "api.fireworks.ai/inference/v1/chat/completions",
        "fireworks",
        S::ChatCompletions,
        "",
    ),
    ("deepseek_chat.json", "api.deepseek.com/chat/completions", "deepseek", S::ChatCompletions, ""),
    ("openrouter_chat.json", "openrouter.ai/api/v1/chat/completions", "openrouter", S::ChatCompletions, ""),
    ("xai_chat.json", "api.x.ai/v1/chat/completions", "xai", S::ChatCompletions, ""),
    ("perplexity_chat.json", "api.perplexity.ai/chat/completions", "perplexity", S::ChatCompletions, ""),
    ("ollama_chat.json", "10.0.0.7:11434/api/chat", "own", S::OllamaChat, ""),
    ("ollama_generate.json", "10.0.0.7:11434/api/generate", "own", S::OllamaGenerate, ""),
    ("ollama_embed.json", "10.0.0.7:11434/api/embed", "own", S::Embeddings, ""),
    ("vllm_chat.json", "10.0.0.7:8000/v1/chat/completions", "own", S::ChatCompletions, ""),
    ("llamacpp_chat.json", "10.0.0.7:8080/v1/chat/completions", "own", S::ChatCompletions, ""),
    ("llamacpp_completion.json", "10.0.0.7:8080/completion", "own", S::Completions, ""),
    ("tgi_generate.json", "10.0.0.7:3000/generate", "own", S::Completions, ""),
];

/// What is taken for a call of what is sent to `url`, or asked of it without a body.
fn sent(url: &str, has_body: bool) -> Option<Route> {
    let (host, rest) = url.split_once('/').expect("a path");
    let (host, port) = host.split_once(':').map_or((host, 443), |(host, n)| (host, n.parse().expect("port")));
    let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
    let path = format!("/{path}");
    let own = Server { name: "own".into(), host: "10.0.0.7".to_owned(), port: None, path: String::new() };
    route(&[own], &Target { host, port, path: &path, query, is_upgrade: false, has_body })
}

/// What the request of this fixture is taken for, by where it goes.
pub fn of(name: &str) -> Route {
    let (_, url, ..) = ROWS.iter().find(|row| row.0 == name).unwrap_or_else(|| panic!("{name} goes nowhere"));
    sent(url, true).unwrap_or_else(|| panic!("{name}: {url} is nobody's"))
}

#[test]
fn where_each_request_goes_tells_what_it_is() {
    for (name, url, provider, surface, model) in ROWS.iter().copied() {
        let route = of(name);
        let found = (&*route.provider, route.surface, route.model.as_deref().unwrap_or(""));
        assert_eq!(found, (provider, surface, model), "{name}: {url}");
        assert!(!route.is_model_unclear, "{name}: {url}");
    }
    let mut rows: Vec<_> = ROWS.iter().map(|row| row.0).collect();
    rows.sort_unstable();
    assert_eq!(rows, names(false), "each fixture once");
}

/// Who asks what there is sends nothing, and calls no model.
#[test]
fn lists_are_no_calls() {
    for url in [
        "api.openai.com/v1/models",
        "api.openai.com/v1/files",
        "api.openai.com/v1/batches/batch_1",
        "a.openai.azure.com/openai/v1/models",
        "a.services.ai.azure.com/models/info?api-version=2024-05-01-preview",
        "api.anthropic.com/v1/models",
        "api.anthropic.com/v1/messages/batches/msgbatch_1/results",
        "generativelanguage.googleapis.com/v1beta/models?pageSize=50",
        "generativelanguage.googleapis.com/v1beta/openai/models",
        "10.0.0.7:11434/api/tags",
    ] {
        assert_eq!(sent(url, false), None, "{url}");
    }
}
