//! Tables of where requests go.

use super::*;

fn servers() -> Vec<Server> {
    let server = |name: &str, host: &str, port, path: &str| Server {
        name: name.into(),
        host: host.to_owned(),
        port,
        path: path.to_owned(),
    };
    vec![server("local", "10.0.0.7", Some(11434), ""), server("farm", "llm.internal", None, "/serve")]
}

fn of(url: &str) -> Option<Route> {
    of_servers(&servers(), url)
}

fn of_servers(servers: &[Server], url: &str) -> Option<Route> {
    let (host, rest) = url.split_once('/').unwrap_or((url, ""));
    let (host, port) = host.split_once(':').map_or((host, 443), |(h, p)| (h, p.parse().expect("port")));
    let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
    let path = format!("/{path}");
    let is_upgrade = ["realtime", "Bidi", "ws/"].iter().any(|word| url.contains(word));
    route(servers, &Target { host, port, path: &path, query, is_upgrade, has_body: !is_upgrade })
}

use Surface as S;

/// A URL; its provider, surface and model, and whether its answer is streamed.
type Row = (&'static str, &'static str, Surface, &'static str, Option<bool>);

const ROWS: &[Row] = &[
    ("api.openai.com/v1/chat/completions", "openai", S::ChatCompletions, "", None),
    ("eu.api.openai.com/v1/responses", "openai", S::Responses, "", None),
    ("api.openai.com/v1/responses/input_tokens", "openai", S::CountTokens, "", None),
    ("api.openai.com/v1/completions/", "openai", S::Completions, "", None),
    ("api.openai.com/v1/embeddings", "openai", S::Embeddings, "", Some(false)),
    ("api.openai.com/v1/images/edits", "openai", S::Images, "", None),
    ("api.openai.com/v1/audio/transcriptions", "openai", S::Audio, "", None),
    ("api.openai.com/v1/moderations", "openai", S::Moderations, "", Some(false)),
    ("api.openai.com/v1/batches", "openai", S::Batches, "", None),
    ("api.openai.com/v1/files", "openai", S::Files, "", None),
    ("api.openai.com/v1/uploads/u/parts", "openai", S::Files, "", None),
    ("api.cohere.com/v1/datasets", "cohere", S::Files, "", None),
    ("api.mistral.ai/v1/libraries/l/documents", "mistral", S::Files, "", None),
    ("api.openai.com/v1/threads/t/messages", "openai", S::Other, "", None),
    ("api.openai.com/v1/fine_tuning/jobs", "openai", S::Other, "", None),
    ("api.openai.com/v1/realtime?model=gpt-realtime", "openai", S::Realtime, "gpt-realtime", None),
    ("api.openai.com/v1/realtime?model=a&MODEL=b", "openai", S::Realtime, "", None),
    (
        "x.openai.azure.com/openai/deployments/Prod%2B1/chat/completions?api-version=1",
        "azure",
        S::ChatCompletions,
        "Prod+1",
        None,
    ),
    ("x.openai.azure.com/openai/v1/responses", "azure", S::Responses, "", None),
    (
        "x.services.ai.azure.com/api/projects/p/openai/v1/chat/completions",
        "azure",
        S::ChatCompletions,
        "",
        None,
    ),
    ("x.services.ai.azure.com/anthropic/v1/messages", "azure", S::Messages, "", None),
    ("x.eastus2.inference.ai.azure.com/chat/completions", "azure", S::ChatCompletions, "", None),
    ("api.anthropic.com/v1/messages", "anthropic", S::Messages, "", None),
    ("api.anthropic.com/V1/Messages", "anthropic", S::Messages, "", None),
    ("api.anthropic.com/v1/messages/count_tokens", "anthropic", S::CountTokens, "", Some(false)),
    ("api.anthropic.com/v1/messages/batches", "anthropic", S::Batches, "", None),
    (
        "generativelanguage.googleapis.com/v1beta/models/gemini-2.5-pro:generateContent",
        "gemini",
        S::GenerateContent,
        "gemini-2.5-pro",
        Some(false),
    ),
    (
        "generativelanguage.googleapis.com/v1beta/models/gemini-2.5-pro%3AstreamGenerateContent?alt=sse",
        "gemini",
        S::GenerateContent,
        "gemini-2.5-pro",
        Some(true),
    ),
    (
        "generativelanguage.googleapis.com/v1beta/tunedModels/m:generateContent",
        "gemini",
        S::GenerateContent,
        "tunedModels/m",
        Some(false),
    ),
    (
        "generativelanguage.googleapis.com/v1beta/models/m:countTokens",
        "gemini",
        S::CountTokens,
        "m",
        Some(false),
    ),
    ("generativelanguage.googleapis.com/v1beta/models/m:fly", "gemini", S::Other, "", None),
    (
        "generativelanguage.googleapis.com/v1beta/openai/chat/completions",
        "gemini",
        S::ChatCompletions,
        "",
        None,
    ),
    ("cloudcode-pa.googleapis.com/v1internal:generateContent", "gemini", S::GenerateContent, "", Some(false)),
    (
        "us-central1-aiplatform.googleapis.com/v1/projects/p/locations/l/publishers/anthropic/models/claude-sonnet-4@20250514:streamRawPredict",
        "vertex",
        S::Predict,
        "claude-sonnet-4@20250514",
        Some(true),
    ),
    (
        "us-east5-aiplatform.googleapis.com/v1/projects/p/locations/l/publishers/anthropic/models/count-tokens:rawPredict",
        "vertex",
        S::CountTokens,
        "",
        Some(false),
    ),
    (
        "us-east5-aiplatform.googleapis.com/v1/projects/p/locations/l/endpoints/count-tokens:rawPredict",
        "vertex",
        S::Predict,
        "count-tokens",
        Some(false),
    ),
    (
        "12.us-central1-34.prediction.vertexai.goog/v1/projects/p/locations/l/endpoints/12:predict",
        "vertex",
        S::Predict,
        "12",
        Some(false),
    ),
    (
        "aiplatform.us.rep.googleapis.com/v1/projects/p/locations/l/publishers/google/models/g:predict",
        "vertex",
        S::Predict,
        "g",
        Some(false),
    ),
    (
        "aiplatform.googleapis.com/v1/projects/p/locations/l/endpoints/openapi/chat/completions",
        "vertex",
        S::ChatCompletions,
        "",
        None,
    ),
    (
        "bedrock-runtime.eu-west-1.amazonaws.com/model/us.anthropic.claude-v1%3A0/converse-stream",
        "bedrock",
        S::Converse,
        "us.anthropic.claude-v1:0",
        Some(true),
    ),
    ("us-east-1.api.x.ai/v1/chat/completions", "xai", S::ChatCompletions, "", None),
    ("api.business.githubcopilot.com/chat/completions", "github", S::ChatCompletions, "", None),
    ("a.openai.azure.us/openai/v1/responses", "azure", S::Responses, "", None),
    ("westus.api.cognitive.microsoft.com/openai/v1/chat/completions", "azure", S::ChatCompletions, "", None),
    ("bedrock-runtime.eu-west-1.amazonaws.com/model/m/invoke", "bedrock", S::Invoke, "m", Some(false)),
    ("bedrock-runtime.eu-west-1.amazonaws.com/model/m/fly", "bedrock", S::Other, "", None),
    (
        "bedrock-agent-runtime.eu-west-1.amazonaws.com/agents/A/agentAliases/B/sessions/C/text",
        "bedrock",
        S::Other,
        "",
        None,
    ),
    ("bedrock-agent-runtime-fips.us-east-1.amazonaws.com/retrieveAndGenerate", "bedrock", S::Other, "", None),
    ("bedrock-agent-runtime.eu-west-1.amazonaws.com/rerank", "bedrock", S::Other, "", None),
    (
        "vpce-1.bedrock-agent-runtime.eu-west-1.vpce.amazonaws.com/knowledgebases/K/retrieve",
        "bedrock",
        S::Other,
        "",
        None,
    ),
    ("api.cohere.com/v2/chat", "cohere", S::CohereChat, "", None),
    ("api.cohere.ai/v1/rerank", "cohere", S::Rerank, "", Some(false)),
    ("api.cohere.com/v2/embed", "cohere", S::Embeddings, "", Some(false)),
    ("api.mistral.ai/v1/fim/completions", "mistral", S::Completions, "", None),
    ("api.groq.com/openai/v1/chat/completions", "groq", S::ChatCompletions, "", None),
    ("10.0.0.7:11434/api/chat", "local", S::OllamaChat, "", None),
    ("10.0.0.7:11434/api/generate", "local", S::OllamaGenerate, "", None),
    ("10.0.0.7:11434/api/embed", "local", S::Embeddings, "", Some(false)),
    ("10.0.0.7:11434/v1/chat/completions", "local", S::ChatCompletions, "", None),
    ("llm.internal/serve/v1/completions", "farm", S::Completions, "", None),
    ("llm.internal/Serve/V1/completions", "farm", S::Completions, "", None),
];

#[test]
fn every_surface_is_known_by_its_path() {
    for (url, provider, surface, model, stream) in ROWS {
        let route = of(url).expect(url);
        let found = (&*route.provider, route.surface, route.model.as_deref().unwrap_or(""), route.stream);
        assert_eq!(found, (*provider, *surface, *model, *stream), "{url}");
    }
}

#[test]
fn others_are_none() {
    for url in [
        "example.com/v1/chat/completions",
        "api.openai.com.evil.test/v1/chat/completions",
        "notapi.openai.com/v1/chat/completions",
        ".openai.azure.com/x",
        "bedrock-runtime..amazonaws.com.evil/model/m/invoke",
        "llm.internal/server/v1/completions",
        "10.0.0.7:80/api/chat",
    ] {
        assert_eq!(of(url), None, "{url}");
    }
    let listing = Target {
        host: "api.openai.com",
        port: 443,
        path: "/v1/models",
        query: "",
        is_upgrade: false,
        has_body: false,
    };
    assert_eq!(route(&[], &listing), None, "nothing is sent");
    assert!(matches("*.b.*.c", "a.b.x.c") && !matches("*.b.*.c", "a.b..c") && !matches("*.b.*.c", "a.b.c"));
}

/// Of each query of a server that is named, the model that it names besides: `?` where that can't be told.
#[test]
fn a_query_may_name_another_model_at_servers_that_are_named() {
    for (query, model) in [
        ("", ""),
        ("a=b", ""),
        ("model=m", "m"),
        ("MODEL=m%2B+1", "m+ 1"),
        ("x&%6dodel=m", "m"),
        ("x;deployment=m", "m"),
        ("model=m&model=m", "?"),
        ("model=m&Deployment=d", "?"),
        ("model", "?"),
        ("model=", "?"),
    ] {
        let route = of(&format!("llm.internal/serve/v1/chat/completions?{query}")).expect(query);
        let besides = if route.is_model_unclear { "?" } else { route.besides.as_deref().unwrap_or("") };
        assert_eq!(besides, model, "{query}");
        // Providers that are known take none.
        let known = of(&format!("api.openai.com/v1/chat/completions?{query}")).expect(query);
        assert_eq!((known.is_model_unclear, known.besides), (false, None), "{query}");
    }
}

/// Of each path, the model that it names: `?` for one that can't be told.
#[test]
fn a_model_is_named_only_where_the_server_takes_it_for_one() {
    let gemini = "generativelanguage.googleapis.com/v1beta/models";
    let vertex = "aiplatform.googleapis.com/v1/projects/p/locations/l";
    let azure = "x.openai.azure.com/openai";
    for (url, model) in [
        // What is not read.
        (format!("{gemini}/m:batchGenerateContent"), ""),
        (format!("{vertex}/publishers/anthropic/models/m:directRawPredict"), ""),
        (format!("{azure}/deployments/d/fly"), ""),
        // WebSockets.
        (format!("{azure}/realtime?api-version=1&deployment=d"), "d"),
        (format!("{azure}/realtime?model=a&deployment=d"), ""),
        ("api.openai.com/v1/realtime?deployment=d".to_owned(), ""),
        ("api.openai.com/v1/realtime?MODEL=a".to_owned(), ""),
        ("api.openai.com/v1/ws/responses?model=a".to_owned(), ""),
        (format!("{gemini}/ws/Bidi?model=a"), ""),
        // Deployments.
        (format!("{azure}/deployments/d/chat/completions"), "d"),
        (format!("{azure}/deployments/d/e/chat/completions"), "?"),
        (format!("{azure}/deployments/chat/completions"), "?"),
        ("x.services.ai.azure.com/models/chat/completions".to_owned(), ""),
        ("api.openai.com/v1/deployments/d/chat/completions".to_owned(), "?"),
        ("api.openai.com/v1/engines/d/completions".to_owned(), "?"),
        ("router.huggingface.co/hf-inference/models/a/b/v1/chat/completions".to_owned(), "?"),
        (format!("{vertex}/endpoints/7/chat/completions"), "?"),
        // Servers that are named: their path is not of the model's.
        ("llm.internal/serve/engines/m/chat/completions".to_owned(), "m"),
        ("llm.internal/serve/openai/deployments/m/chat/completions".to_owned(), "m"),
        ("llm.internal/serve/openai/deployments/a/m/chat/completions".to_owned(), "?"),
        ("llm.internal/serve/models/chat/completions".to_owned(), "?"),
        ("llm.internal/serve/v1beta/models/m:generateContent".to_owned(), "m"),
        ("llm.internal/serve/v1beta/models/a/m:generateContent".to_owned(), "?"),
        ("llm.internal/deployments/x/chat/completions".to_owned(), ""),
    ] {
        let mut all = servers();
        let path = "/deployments/x".to_owned();
        all.push(Server { name: "deep".into(), host: "llm.internal".to_owned(), port: None, path });
        let route = of_servers(&all, &url).expect(&url);
        let found = if route.is_model_unclear { "?" } else { route.model.as_deref().unwrap_or("") };
        assert_eq!(found, model, "{url}");
    }
}

/// Some servers take it for one, and some for a part of a name.
#[test]
fn an_encoded_slash_may_be_one() {
    let bedrock = "bedrock-runtime.eu-west-1.amazonaws.com/model";
    for (url, surface, model, is_either) in [
        // What is provisioned at Bedrock has a name with one.
        (
            format!(
                "{bedrock}/arn%3Aaws%3Abedrock%3Aeu-west-1%3A1%3Aapplication-inference-profile%2Fp/converse"
            ),
            S::Converse,
            "arn:aws:bedrock:eu-west-1:1:application-inference-profile/p",
            false,
        ),
        (
            format!(
                "{bedrock}/arn:aws:bedrock:eu-west-1:1:inference-profile%2Feu.anthropic.claude-sonnet-4-20250514-v1:0/invoke"
            ),
            S::Invoke,
            "arn:aws:bedrock:eu-west-1:1:inference-profile/eu.anthropic.claude-sonnet-4-20250514-v1:0",
            false,
        ),
        // A path of calls, or none.
        ("api.openai.com/v1%2Fchat%2fcompletions".to_owned(), S::Other, "", true),
        ("api.openai.com/v1/chat%2fcompletions".to_owned(), S::Other, "", true),
        (
            "generativelanguage.googleapis.com/v1beta/models/models%2Fm:generateContent".to_owned(),
            S::GenerateContent,
            "models/m",
            true,
        ),
        // Both are the same.
        ("api.openai.com/v1%2fx/chat/completions".to_owned(), S::ChatCompletions, "", false),
        // A server that is named only by what it is with a slash.
        ("llm.internal/serve%2Fv1/chat/completions".to_owned(), S::ChatCompletions, "", false),
    ] {
        let route = of(&url).expect(&url);
        assert_eq!((route.surface, route.model.as_deref().unwrap_or("")), (surface, model), "{url}");
        let (host, path) = url.split_once('/').expect("a path");
        let path = format!("/{path}");
        let target = Target { host, port: 443, path: &path, query: "", is_upgrade: false, has_body: true };
        assert_eq!(is_ambiguous(&servers(), &target), is_either, "{url}");
    }
    assert_eq!(tells("/v1%2Fchat%2Fcompletions"), Some(Told::Surely));
    assert_eq!(tells("/x%2Fgenerate"), Some(Told::Perhaps));
    assert_eq!(tells("/v1/a%2Fb"), None);
}

/// Servers leave out of account what limits have in the dialects of others.
#[test]
fn limits_have_the_names_of_whoever_is_asked() {
    for (url, names) in [
        ("api.openai.com/v1/chat/completions", CapNames::Newer),
        ("x.openai.azure.com/openai/deployments/d/chat/completions", CapNames::Newer),
        ("x.services.ai.azure.com/openai/v1/chat/completions", CapNames::Newer),
        ("x.services.ai.azure.com/models/chat/completions", CapNames::Common),
        ("x.eastus2.models.ai.azure.com/v1/chat/completions", CapNames::Common),
        ("10.0.0.7:11434/v1/chat/completions", CapNames::Common),
        ("api.deepseek.com/chat/completions", CapNames::Common),
        ("api.openai.com/v1/completions", CapNames::Common),
        ("llm.internal/serve/v1/completions", CapNames::Common),
        ("llm.internal/serve/completion", CapNames::Predict),
        ("llm.internal/serve/infill", CapNames::Predict),
        ("llm.internal/serve/generate", CapNames::NewTokens),
        ("llm.internal/serve/generate_stream", CapNames::NewTokens),
        ("api.cohere.com/v1/generate", CapNames::Common),
        ("api.anthropic.com/v1/complete", CapNames::ToSample),
        ("api.anthropic.com/v1/messages", CapNames::Common),
    ] {
        assert_eq!(of(url).expect(url).cap_names(), names, "{url}");
    }
}
