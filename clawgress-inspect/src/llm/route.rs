//! Which requests are calls of models, by where they go: providers that are known, and servers that the operator names.
//! Must never take a request to one of these for no call because its path is not known: whoever asks by model denies that.

use std::sync::Arc;

use super::caps::CapNames;
use crate::proxy_request::separated;

/// What is asked of a provider, by its path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Surface {
    /// `/chat/completions`, of OpenAI and all who are compatible.
    ChatCompletions,
    /// `/responses`.
    Responses,
    /// `/completions`, and Mistral's `/fim/completions`.
    Completions,
    /// `/embeddings`, and the like of others.
    Embeddings,
    /// `/images/…`, JSON or a form.
    Images,
    /// `/audio/…`, JSON or a form.
    Audio,
    /// `/moderations`.
    Moderations,
    /// A WebSocket. Messages of [some](super::realtime::Dialect) are read.
    Realtime,
    /// Calls that are made later, from a file or many in one.
    Batches,
    /// Files, which batches and prompts refer to.
    Files,
    /// Anthropic's `/messages`.
    Messages,
    /// How many tokens a prompt has.
    CountTokens,
    /// Gemini's `:generateContent`, and its stream.
    GenerateContent,
    /// Vertex's `:predict` and `:rawPredict`.
    Predict,
    /// Bedrock's `/converse`, and its stream.
    Converse,
    /// Bedrock's `/invoke`, and its stream: in the shape that the model has.
    Invoke,
    /// Cohere's `/chat`.
    CohereChat,
    /// Documents in order.
    Rerank,
    /// Ollama's `/api/chat`.
    OllamaChat,
    /// Ollama's `/api/generate`.
    OllamaGenerate,
    /// Any other path of a provider, to which something is sent.
    Other,
}

/// A server that the operator names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// The provider, as policy has it.
    pub name: Arc<str>,
    /// Canonical host.
    pub host: String,
    /// Port; any if none is given.
    pub port: Option<u16>,
    /// What its paths begin with: whole segments, without a slash at the end.
    pub path: String,
}

/// Where a request goes.
#[derive(Clone, Copy, Debug)]
pub struct Target<'a> {
    /// Canonical host.
    pub host: &'a str,
    /// Port.
    pub port: u16,
    /// Path, without the query: one that [`plain_path`](crate::proxy_request::plain_path) has.
    pub path: &'a str,
    /// What follows the `?`.
    pub query: &'a str,
    /// Whether it opens a WebSocket.
    pub is_upgrade: bool,
    /// Whether it has a body.
    pub has_body: bool,
}

/// What a request is taken for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// The provider, as policy has it.
    pub provider: Arc<str>,
    /// Whether it is a server that the operator names: of what it runs, nothing is known.
    pub is_named: bool,
    /// What is asked of it.
    pub surface: Surface,
    /// The model, where its path or query names one: it counts, and not what the body says.
    pub model: Option<String>,
    /// Whether its path or query may name a model that can't be told: none counts then, nor the body's.
    pub is_model_unclear: bool,
    /// A model that the query names besides, which some servers of the operator's take in place of any other.
    pub besides: Option<String>,
    /// Whether the answer is streamed, where the path says so.
    pub stream: Option<bool>,
    /// Whose names of limits its path has, of completions.
    completions: CapNames,
    /// Whether whoever is asked takes what requests have in OpenAI's own API.
    takes_openais: bool,
}

/// Providers, by the hosts of their APIs: `*` stands for anything, once.
const PROVIDERS: &[(&str, &str)] = &[
    ("api.openai.com", "openai"),
    ("*.api.openai.com", "openai"),
    ("chatgpt.com", "openai"),
    ("*.openai.azure.com", "azure"),
    ("*.openai.azure.us", "azure"),
    ("*.openai.azure.cn", "azure"),
    ("*.cognitiveservices.azure.com", "azure"),
    ("*.cognitiveservices.azure.us", "azure"),
    ("*.api.cognitive.microsoft.com", "azure"),
    ("*.services.ai.azure.com", "azure"),
    ("*.models.ai.azure.com", "azure"),
    ("*.inference.ai.azure.com", "azure"),
    ("models.github.ai", "github"),
    ("api.githubcopilot.com", "github"),
    ("api.*.githubcopilot.com", "github"),
    ("api.anthropic.com", "anthropic"),
    ("generativelanguage.googleapis.com", "gemini"),
    ("cloudcode-pa.googleapis.com", "gemini"),
    ("aiplatform.googleapis.com", "vertex"),
    ("*-aiplatform.googleapis.com", "vertex"),
    ("aiplatform.*.rep.googleapis.com", "vertex"),
    // Endpoints that have a host of their own.
    ("*.prediction.vertexai.goog", "vertex"),
    ("bedrock-runtime.*.amazonaws.com", "bedrock"),
    ("bedrock-runtime-fips.*.amazonaws.com", "bedrock"),
    ("bedrock-runtime.*.amazonaws.com.cn", "bedrock"),
    ("bedrock-runtime.*.api.aws", "bedrock"),
    ("bedrock-mantle.*.api.aws", "bedrock"),
    ("*.bedrock-runtime.*.vpce.amazonaws.com", "bedrock"),
    ("bedrock-agent-runtime.*.amazonaws.com", "bedrock"),
    ("bedrock-agent-runtime-fips.*.amazonaws.com", "bedrock"),
    ("bedrock-agent-runtime.*.amazonaws.com.cn", "bedrock"),
    ("bedrock-agent-runtime.*.api.aws", "bedrock"),
    ("*.bedrock-agent-runtime.*.vpce.amazonaws.com", "bedrock"),
    ("api.cohere.ai", "cohere"),
    ("api.cohere.com", "cohere"),
    ("api.mistral.ai", "mistral"),
    ("codestral.mistral.ai", "mistral"),
    ("ollama.com", "ollama"),
    ("api.groq.com", "groq"),
    ("api.together.ai", "together"),
    ("api.together.xyz", "together"),
    ("api.fireworks.ai", "fireworks"),
    ("api.deepseek.com", "deepseek"),
    ("openrouter.ai", "openrouter"),
    ("api.x.ai", "xai"),
    ("*.api.x.ai", "xai"),
    ("api.perplexity.ai", "perplexity"),
    ("api.cerebras.ai", "cerebras"),
    ("api.sambanova.ai", "sambanova"),
    ("integrate.api.nvidia.com", "nvidia"),
    ("router.huggingface.co", "huggingface"),
    ("api-inference.huggingface.co", "huggingface"),
    ("api.ai21.com", "ai21"),
    ("api.moonshot.ai", "moonshot"),
    ("api.moonshot.cn", "moonshot"),
    ("dashscope.aliyuncs.com", "alibaba"),
    ("dashscope-*.aliyuncs.com", "alibaba"),
    ("api.z.ai", "zhipu"),
    ("open.bigmodel.cn", "zhipu"),
    ("api.minimax.io", "minimax"),
    ("api.replicate.com", "replicate"),
    ("api.voyageai.com", "voyage"),
    ("api.jina.ai", "jina"),
];

// === impl Surface ===

impl Surface {
    /// Its name in policy.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Surface::ChatCompletions => "chat_completions",
            Surface::Responses => "responses",
            Surface::Completions => "completions",
            Surface::Embeddings => "embeddings",
            Surface::Images => "images",
            Surface::Audio => "audio",
            Surface::Moderations => "moderations",
            Surface::Realtime => "realtime",
            Surface::Batches => "batches",
            Surface::Files => "files",
            Surface::Messages => "messages",
            Surface::CountTokens => "count_tokens",
            Surface::GenerateContent => "generate_content",
            Surface::Predict => "predict",
            Surface::Converse => "converse",
            Surface::Invoke => "invoke",
            Surface::CohereChat => "cohere_chat",
            Surface::Rerank => "rerank",
            Surface::OllamaChat => "ollama_chat",
            Surface::OllamaGenerate => "ollama_generate",
            Surface::Other => "other",
        }
    }

    /// All of them.
    pub const ALL: [Surface; 21] = [
        Surface::ChatCompletions,
        Surface::Responses,
        Surface::Completions,
        Surface::Embeddings,
        Surface::Images,
        Surface::Audio,
        Surface::Moderations,
        Surface::Realtime,
        Surface::Batches,
        Surface::Files,
        Surface::Messages,
        Surface::CountTokens,
        Surface::GenerateContent,
        Surface::Predict,
        Surface::Converse,
        Surface::Invoke,
        Surface::CohereChat,
        Surface::Rerank,
        Surface::OllamaChat,
        Surface::OllamaGenerate,
        Surface::Other,
    ];

    /// Whether what it says is a JSON object, or a form where it [takes](Self::takes_forms) them, whatever the body is said to be.
    #[must_use]
    pub fn is_read(self) -> bool {
        !matches!(self, Surface::Realtime | Surface::Files | Surface::Batches | Surface::Other)
    }

    /// Whether it takes forms of several parts: others look for JSON, whatever the body is said to be.
    #[must_use]
    pub fn takes_forms(self) -> bool {
        matches!(self, Surface::Images | Surface::Audio)
    }

    /// Whether what is asked and answered is kept unless the request says otherwise.
    #[must_use]
    pub fn stores_by_default(self) -> bool {
        self == Surface::Responses
    }

    /// Whether answers are streamed unless the request says otherwise.
    #[must_use]
    pub fn streams_by_default(self) -> bool {
        matches!(self, Surface::OllamaChat | Surface::OllamaGenerate)
    }
}

// === impl Route ===

/// Providers that take OpenAI's newer name of a limit of chat completions, by what they say of their APIs. Others of its dialect
/// leave it out of account: Ollama does.
const COMPLETION_TOKENS: [&str; 5] = ["openai", "azure", "groq", "xai", "cerebras"];

impl Route {
    /// By which names whoever is asked takes a limit.
    #[must_use]
    pub fn cap_names(&self) -> CapNames {
        let has_newer = !self.is_named && self.takes_openais && COMPLETION_TOKENS.contains(&&*self.provider);
        if self.surface == Surface::ChatCompletions && has_newer { CapNames::Newer } else { self.completions }
    }

    /// Whether whoever is asked takes what requests have in OpenAI's own API, as far as its path tells: Azure's API of all models
    /// refuses what it does not define.
    #[must_use]
    pub fn takes_openais(&self) -> bool {
        self.takes_openais
    }
}

// === impl Server ===

impl Server {
    /// What follows its path in the target's, if it is the server's.
    fn rest<'a>(&self, target: &Target<'a>) -> Option<&'a str> {
        // Some servers tell no letters from capitals.
        let (path, rest) = target.path.split_at_checked(self.path.len())?;
        let is_its = self.host == target.host
            && self.port.is_none_or(|port| port == target.port)
            && path.eq_ignore_ascii_case(&self.path)
            && (rest.is_empty() || rest.starts_with('/'));
        is_its.then_some(rest)
    }
}

/// What a request is, if it is a call of a model: something that is sent to a provider, or to a server that is named. Where an
/// encoded slash in its path is taken for a part of a name, and where nothing is found so, for a slash.
#[must_use]
pub fn route(servers: &[Server], target: &Target<'_>) -> Option<Route> {
    route_as_written(servers, target).or_else(|| route_separated(servers, target))
}

/// Whether a request is one call or another by how its server takes an encoded slash in its path. Bedrock's is known: it has the
/// names of what is provisioned in its paths, slashes and all.
#[must_use]
pub fn is_ambiguous(servers: &[Server], target: &Target<'_>) -> bool {
    let Some(separated) = route_separated(servers, target) else { return false };
    let written = route_as_written(servers, target);
    let is_known =
        |route: &Route| !route.is_named && &*route.provider == "bedrock" && route.surface.is_read();
    written.is_some_and(|route| route != separated && !is_known(&route))
}

fn route_separated(servers: &[Server], target: &Target<'_>) -> Option<Route> {
    route_as_written(servers, &Target { path: &separated(target.path)?, ..*target })
}

fn route_as_written(servers: &[Server], target: &Target<'_>) -> Option<Route> {
    if !target.has_body && !target.is_upgrade {
        return None;
    }
    let named =
        servers.iter().find_map(|server| Some((Arc::clone(&server.name), server.rest(target)?, true)));
    let (provider, path, is_named) = named.or_else(|| {
        let known = PROVIDERS.iter().find(|(pattern, _)| matches(pattern, target.host));
        known.map(|(_, name)| (Arc::from(*name), target.path, false))
    })?;
    let is_azure = !is_named && &*provider == "azure";
    let is_agents = !is_named && is_of_agents(target.host);
    let decoded: Vec<String> = path.split('/').filter(|s| !s.is_empty()).map(decode).collect();
    let mut route = Route {
        provider,
        is_named,
        surface: Surface::Other,
        model: None,
        is_model_unclear: false,
        besides: None,
        stream: None,
        completions: CapNames::Common,
        takes_openais: true,
    };
    let lower: Vec<String> = decoded.iter().map(|segment| segment.to_ascii_lowercase()).collect();
    let words: Vec<&str> = lower.iter().map(String::as_str).collect();
    // Azure's API of all models, at any other path, refuses what it does not define, or drops it (its head `extra-parameters`).
    route.takes_openais = !is_azure || words.contains(&"openai");
    if target.is_upgrade {
        // Of other WebSockets, a message names it.
        match words.last() {
            Some(&"realtime") => route.model = of_query(target.query, is_azure),
            Some(&"responses") => {
                // As of requests by this path, which its messages are.
                route.surface = Surface::Responses;
                name(&mut route, (&words, &decoded), target.query, is_azure);
            }
            _ => {}
        }
        route.surface = Surface::Realtime;
        return Some(route);
    }
    if is_agents {
        return Some(route);
    }
    let last = decoded.last().map(String::as_str).unwrap_or_default();
    if let Some((model, verb)) = last.rsplit_once(':') {
        google(&mut route, &decoded, model, &verb.to_ascii_lowercase());
    } else {
        by_words(&mut route, &words, &decoded);
        route.completions = completions(&route, &words);
    }
    name(&mut route, (&words, &decoded), target.query, is_azure);
    Some(route)
}

/// The model that a path or query names besides the path's end.
fn name(route: &mut Route, (words, decoded): (&[&str], &[String]), query: &str, is_azure: bool) {
    if !route.surface.is_read() {
        // What is sent there may ask for others, and is not looked at.
        route.model = None;
    } else if route.model.is_none() {
        match in_path(route, words, is_azure) {
            InPath::Nothing => {}
            InPath::At(at) => route.model = decoded.get(at).cloned(),
            InPath::Unclear => route.is_model_unclear = true,
        }
    }
    if route.is_named && route.surface.is_read() {
        match &mut in_query(query)[..] {
            [] => {}
            [(_, one)] if !one.is_empty() => route.besides = Some(std::mem::take(one)),
            _ => route.is_model_unclear = true,
        }
    }
}

/// Whether a host is Bedrock's of agents, flows and knowledge bases: they ask models that their configuration names, or a body in
/// words of its own, which are not read.
fn is_of_agents(host: &str) -> bool {
    host.split('.').take(2).any(|label| label.starts_with("bedrock-agent-runtime"))
}

/// What a path tells of who is asked, whoever it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// A server of models: no other has such a path.
    Surely,
    /// Its last word is one of such servers', and of others.
    Perhaps,
}

/// Whether a path is one that servers of models have, whoever they are: what is sent there in a call's shape is a call, also
/// where it names no model, since a server may run but one. An encoded slash may be one.
#[must_use]
pub fn tells(path: &str) -> Option<Told> {
    let separated = separated(path).and_then(|path| tells_as_written(&path));
    match (tells_as_written(path), separated) {
        (Some(Told::Surely), _) | (_, Some(Told::Surely)) => Some(Told::Surely),
        (written, separated) => written.or(separated),
    }
}

fn tells_as_written(path: &str) -> Option<Told> {
    let lower: Vec<String> = path
        .split('/')
        .filter(|segment| !segment.is_empty())
        .map(|s| decode(s).to_ascii_lowercase())
        .collect();
    let words: Vec<&str> = lower.iter().map(String::as_str).collect();
    if let Some((_, verb)) = words.last().and_then(|last| last.rsplit_once(':')) {
        let is_one = matches!(
            verb,
            "generatecontent" | "streamgeneratecontent" | "counttokens" | "rawpredict" | "streamrawpredict"
        );
        return is_one.then_some(Told::Surely);
    }
    match words[..] {
        [.., "chat", "completions"]
        | [.., "v1", "completions" | "messages" | "responses" | "embeddings" | "rerank"]
        | [.., "v1", "messages", "count_tokens"]
        | [.., "model", _, "converse" | "converse-stream" | "invoke" | "invoke-with-response-stream"] => {
            Some(Told::Surely)
        }
        [.., "completion" | "completions" | "infill" | "generate" | "generate_stream"] => Some(Told::Perhaps),
        _ => None,
    }
}

/// What a path says of the model in other places than its end.
enum InPath {
    Nothing,
    /// It is this segment.
    At(usize),
    /// Perhaps one, in a way that is not known.
    Unclear,
}

/// Deployments of Azure's, whose body's model is not looked at; and what gateways have like them.
fn in_path(route: &Route, words: &[&str], is_azure: bool) -> InPath {
    let owns = |word: &str| matches!(word, "deployments" | "engines" | "models" | "tunedmodels");
    let Some(at) = words.iter().position(|word| owns(word)) else {
        // Vertex's own, but for the one of all models.
        let is_own = |pair: &[&str]| matches!(pair, ["endpoints", id] if *id != "openapi");
        return if words.windows(2).any(is_own) { InPath::Unclear } else { InPath::Nothing };
    };
    let behind = words.get(at + 1..).unwrap_or_default();
    if is_azure && words.get(at) == Some(&"models") && is_surface(behind) {
        return InPath::Nothing;
    }
    let mut rest = Route { surface: Surface::Other, ..route.clone() };
    let tail = behind.get(1..).unwrap_or_default();
    by_words(&mut rest, tail, &[]);
    let takes = match words.get(at) {
        Some(&"deployments") => is_azure || route.is_named,
        Some(&"engines" | &"models") => route.is_named,
        _ => false,
    };
    let is_one = is_surface(tail) && rest.surface == route.surface;
    if takes && is_one { InPath::At(at + 1) } else { InPath::Unclear }
}

/// Whether nothing else is before the words of a surface.
fn is_surface(words: &[&str]) -> bool {
    matches!(
        words,
        ["chat", "completions"]
            | ["extensions", "chat", "completions"]
            | ["completions" | "embeddings" | "moderations" | "responses"]
            | ["images", "generations" | "edits" | "variations"]
            | ["images", "embeddings"]
            | ["audio", "speech" | "transcriptions" | "translations"]
    )
}

/// Gemini's and Vertex's paths end in `{model}:{verb}`.
fn google(route: &mut Route, decoded: &[String], model: &str, verb: &str) {
    // Of Anthropic at Vertex: the body names the model.
    let is_own = |of: &[String]| matches!(of, [.., one, two, three, _] if one == "publishers" && two == "anthropic" && three == "models");
    let counts = model == "count-tokens" && verb == "rawpredict" && is_own(decoded);
    (route.surface, route.stream) = match verb {
        "rawpredict" if counts => (Surface::CountTokens, Some(false)),
        "generatecontent" => (Surface::GenerateContent, Some(false)),
        "streamgeneratecontent" => (Surface::GenerateContent, Some(true)),
        "counttokens" => (Surface::CountTokens, Some(false)),
        "embedcontent" | "batchembedcontents" | "batchembedtext" | "embedtext" => {
            (Surface::Embeddings, Some(false))
        }
        "predict" | "rawpredict" | "predictlongrunning" | "servergenerate" => (Surface::Predict, Some(false)),
        "streamrawpredict" | "serverstreamingpredict" => (Surface::Predict, Some(true)),
        "batchgeneratecontent" => (Surface::Batches, None),
        _ => (Surface::Other, None),
    };
    let owner = decoded.iter().rev().nth(1).map(|segment| segment.to_ascii_lowercase());
    route.model = match owner.as_deref() {
        _ if counts => None,
        Some("tunedmodels") => Some(format!("tunedModels/{model}")),
        Some("models" | "endpoints") => Some(model.to_owned()),
        // Of Cloud Code, the body names it.
        _ => None,
    };
}

fn by_words(route: &mut Route, words: &[&str], decoded: &[String]) {
    let stream = |on| Some(on);
    (route.surface, route.stream) = match words {
        // Of threads, runs and the like, nothing is known.
        [.., "threads", _, "messages"] => (Surface::Other, None),
        [.., "chat", "completions"] => (Surface::ChatCompletions, None),
        [.., "completions"] | [.., "complete"] => (Surface::Completions, None),
        // Of llama.cpp.
        [.., "completion"] | [.., "infill"] => (Surface::Completions, None),
        [.., "responses", "input_tokens"] => (Surface::CountTokens, None),
        [.., "responses"] | [.., "responses", "compact"] => (Surface::Responses, None),
        [.., "api", "embeddings" | "embed"] => (Surface::Embeddings, stream(false)),
        [.., "embeddings" | "embed"] => (Surface::Embeddings, stream(false)),
        [.., "images", "generations" | "edits" | "variations"] => (Surface::Images, None),
        [.., "audio", "speech" | "transcriptions" | "translations"] => (Surface::Audio, None),
        [.., "moderations"] => (Surface::Moderations, stream(false)),
        [.., "messages", "count_tokens"] => (Surface::CountTokens, stream(false)),
        [.., "messages", "batches"] | [.., "batches"] | [.., "batch", "jobs"] => (Surface::Batches, None),
        [.., "files"] | [.., "uploads"] | [.., "uploads", _, "parts"] => (Surface::Files, None),
        // Of Cohere and Mistral, which take files by the hundred megabytes there.
        [.., "v1", "datasets"] | [.., "libraries", _, "documents"] => (Surface::Files, None),
        [.., "messages"] => (Surface::Messages, None),
        [.., "model", _, "converse"] => (Surface::Converse, stream(false)),
        [.., "model", _, "converse-stream"] => (Surface::Converse, stream(true)),
        [.., "model", _, "invoke"] => (Surface::Invoke, stream(false)),
        [.., "model", _, "invoke-with-response-stream"] => (Surface::Invoke, stream(true)),
        [.., "model", _, "count-tokens"] => (Surface::CountTokens, stream(false)),
        [.., "api", "chat"] => (Surface::OllamaChat, None),
        [.., "api", "generate"] => (Surface::OllamaGenerate, None),
        [.., "v1" | "v2", "chat"] => (Surface::CohereChat, None),
        // Of the first models at Cohere, and of TGI.
        [.., "v1", "generate"] | [.., "generate"] => (Surface::Completions, None),
        [.., "generate_stream"] => (Surface::Completions, stream(true)),
        [.., "rerank"] => (Surface::Rerank, stream(false)),
        _ => (Surface::Other, None),
    };
    if matches!(words, [.., "model", _, _]) && route.surface != Surface::Other {
        route.model = decoded.iter().rev().nth(1).cloned();
    }
}

/// Whose completions they are, by their path: those that many have look at `max_tokens`, and leave out of account what others have.
fn completions(route: &Route, words: &[&str]) -> CapNames {
    match words {
        _ if route.surface != Surface::Completions => CapNames::Common,
        [.., "complete"] => CapNames::ToSample,
        [.., "completion" | "infill"] => CapNames::Predict,
        [.., "generate"] if &*route.provider == "cohere" && !route.is_named => CapNames::Common,
        [.., "generate" | "generate_stream"] => CapNames::NewTokens,
        _ => CapNames::Common,
    }
}

/// The model that a query names: no two of them, and none in other letters.
fn of_query(query: &str, is_azure: bool) -> Option<String> {
    match &in_query(query)[..] {
        [(name, one)] if !one.is_empty() && (name == "model" || is_azure && name == "deployment") => {
            Some(one.clone())
        }
        _ => None,
    }
}

/// All that a query has by the names of a model, in any letters; some take `;` for `&`.
fn in_query(query: &str) -> Vec<(String, String)> {
    let named = query.split(['&', ';']).filter_map(|pair| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let name = decode(name);
        let is_one = ["model", "deployment"].iter().any(|known| name.eq_ignore_ascii_case(known));
        is_one.then(|| (name, decode(&value.replace('+', " "))))
    });
    named.collect()
}

/// A segment as servers read it.
pub(super) fn decode(text: &str) -> String {
    let (mut out, mut rest) = (Vec::with_capacity(text.len()), text.as_bytes());
    while let Some((first, tail)) = rest.split_first() {
        let digit = |at: usize| tail.get(at).and_then(|b| char::from(*b).to_digit(16));
        match (first, digit(0), digit(1)) {
            (b'%', Some(high), Some(low)) => {
                out.push(u8::try_from(high << 4 | low).unwrap_or_default());
                rest = tail.get(2..).unwrap_or_default();
            }
            _ => {
                out.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// Whether a host is one of a pattern: each `*` stands for at least one character.
fn matches(pattern: &str, host: &str) -> bool {
    let Some((before, after)) = pattern.split_once('*') else { return pattern == host };
    let Some(rest) = host.strip_prefix(before).filter(|rest| !rest.is_empty()) else { return false };
    if !after.contains('*') {
        return rest.len() > after.len() && rest.ends_with(after);
    }
    // Where the next part begins, which nothing but `*` is before.
    rest.char_indices().skip(1).any(|(at, _)| rest.get(at..).is_some_and(|rest| matches(after, rest)))
}

#[cfg(test)]
mod tests;
