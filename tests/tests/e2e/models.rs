//! Models by the SDKs of their providers, each in its own dialect, through a base URL of the gateway's: whole, streamed, with
//! tools, failed, denied, and left in the middle. Tokens are those that the server told, to the token; and calls of tools that
//! stream are judged before their clients see any of them.

use std::time::Duration;

use clawgress_api::{AuditQuery, AuditRecord, CallCost, RecordKind, TokenUsage};
use clawgress_e2e::clients;
use clawgress_e2e::lab::{Daemon, GatewayOptions, Host, Lab};
use clawgress_e2e::plan::{self, GATEWAY, LLM, PROXY_PORT};
use clawgress_e2e::scenario::{POLICY, SETS, Site};
use clawgress_ebpf_common::DropReason;
use serde_json::{Value, json};

use crate::support::{admin, finish, record, to_host};

/// Where the mock listens, beside the lab's own server of the same name.
const PORT: u16 = 8001;
/// Time for an interpreter to start and to serve, and for records to come.
const START_TIME: Duration = Duration::from_secs(60);

const MODELS: &str = r#"
@id("models-net")
permit (principal in Team::"research", action == Action::"connect", resource in NetworkSet::"web")
when { context.protocol == "tcp" && context.port == 8001 };
@id("models")
permit (principal in Team::"research", action == Action::"llm", resource == Model::"lab/mock-1");
"#;

/// Each SDK, what its base URL ends in, and what is called by it.
const SDKS: [(&str, &str, &str); 11] = [
    ("openai", "/v1", "chat_completions"),
    ("openai-responses", "/v1", "responses"),
    ("openai-embeddings", "/v1", "embeddings"),
    ("anthropic", "", "messages"),
    ("google-genai", "", "generate_content"),
    ("cohere", "", "cohere_chat"),
    ("mistralai", "", "chat_completions"),
    ("boto3", "", "converse"),
    ("boto3-invoke", "", "invoke"),
    ("litellm", "/v1", "chat_completions"),
    ("langchain-openai", "/v1", "chat_completions"),
];

/// What the mock's model costs, 10⁻¹² USD for a token of each kind and for a request: no two alike, so that none is taken for
/// another.
const PRICES: &str = "lab\t^mock-1\t-\t0\t3000000\t300000\t3750000\t15000000\t20000000\t500000000\tthe lab\n";

/// What the mock tells of tokens by this surface. Of OpenAI's dialect 4 of 11 were cached and 3 of 7 reasoning; of Gemini's 4
/// were cached and 3 more thought; Anthropic and Bedrock tell of 4 cached and 2 written besides the 11. Vectors are no output.
fn used(surface: &str) -> TokenUsage {
    let (input, cached, cache_written) = match surface {
        "chat_completions" | "responses" | "generate_content" => (11, 4, 0),
        "messages" | "converse" | "invoke" => (11 + 4 + 2, 4, 2),
        _ => (11, 0, 0),
    };
    let (output, reasoning) = match surface {
        "chat_completions" | "responses" => (7, 3),
        "generate_content" => (7 + 3, 3),
        "embeddings" => (0, 0),
        _ => (7, 0),
    };
    let model = Some("mock-1".to_owned());
    TokenUsage { model, input, output, cached, cache_written, reasoning, ..TokenUsage::default() }
}

/// What so many tokens cost, by the price of each kind.
fn cost(tokens: &TokenUsage) -> CallCost {
    let TokenUsage { input, output, cached, cache_written, reasoning, estimated, .. } = *tokens;
    let asked = (input - cached - cache_written) * 3_000 + cached * 300 + cache_written * 3_750;
    let answered = (output - reasoning) * 15_000 + reasoning * 20_000;
    let nano_usd = asked + answered + 500_000;
    CallCost::Priced { nano_usd, source: "the lab".to_owned(), estimated }
}

/// A site before a mock of all providers.
fn start() -> (Site, Daemon) {
    let lab = Lab::builder().start().unwrap();
    let python = clients::sdks().unwrap().display().to_string();
    let script = clients::script("sdks/mock.py").display().to_string();
    let (address, port) = (plan::addresses(LLM)[0].to_string(), PORT.to_string());
    let mock = lab.spawn(Host::World, "models", &[&*python, &script, &address, &port]).unwrap();
    let url = format!("http://{address}:{port}/");
    let waited = lab.wait("the mock", START_TIME, || {
        Ok(lab.run(Host::World, &["curl", "-sS", "--max-time", "5", &url])?.stdout.contains("{}"))
    });
    waited.unwrap();
    let prices = lab.ca().with_file_name("prices.tsv");
    std::fs::write(&prices, PRICES).unwrap();
    let prices = prices.display();
    let more = format!(
        "[llm]\nprices = \"{prices}\"\n[[endpoint]]\nname = \"models\"\nupstream = \"http://{LLM}:{PORT}\"\n\
         [[llm.server]]\nname = \"lab\"\nurl = \"http://{LLM}:{PORT}\"\n"
    );
    let mut site = Site::start(lab, GatewayOptions { more, ..GatewayOptions::default() }).unwrap();
    site.gateway.apply_policy(&format!("{POLICY}{MODELS}"), SETS).unwrap();
    (site, mock)
}

fn base(suffix: &str) -> String {
    format!("http://{}:{PROXY_PORT}/models{suffix}", GATEWAY.v4)
}

/// Whether what comes of `argv`, which asks for this surface, is what should, thing by thing.
#[track_caller]
fn check(site: &Site, what: &str, surface: &str, argv: &[&str]) {
    let output = site.gateway.lab.run(Host::Anon, argv).unwrap();
    let lines: Vec<Value> =
        output.stdout.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    assert!(output.ok(), "{what}: {output:?}");
    let text = "Egress is governed.";
    let mut wanted = vec![
        json!(["whole", text, [11, 7]]),
        json!(["stream", text, [11, 7]]),
        json!(["tool", ["look_up", {"what": "egress"}], [11, 7]]),
        // What fails there, fails here, and as it did.
        json!(["fail", 400, null]),
        json!(["busy", 429, null]),
        json!(["broken", 500, null]),
        json!(["denied", 403, null]),
        json!(["cancel", "left", null]),
    ];
    if surface == "embeddings" {
        // Nothing of it is streamed.
        let vector = [0.5, -0.25];
        wanted
            .splice(..3, [json!(["whole", [vector], [11, 11]]), json!(["two", [vector, vector], [11, 11]])]);
        wanted.pop();
    }
    assert_eq!(lines, wanted, "{what}: {output:?}");
}

/// The outcomes of calls of this surface that were answered with one of these, once there are so many.
fn outcomes(site: &Site, surface: &str, statuses: &[u16], count: usize) -> Vec<AuditRecord> {
    let mut found = Vec::new();
    let waited = site.gateway.lab.wait("outcomes", START_TIME, || {
        let all = admin(site).audit(&AuditQuery { limit: Some(1000), ..AuditQuery::default() })?;
        let of_surface = |r: &&AuditRecord| {
            r.kind == RecordKind::Decision
                && r.attributes.iter().flat_map(|read| &read.llm).any(|call| call.surface == surface)
        };
        let requests: Vec<&str> = all.iter().filter(of_surface).map(|r| r.request.as_str()).collect();
        let is_one = |r: &&AuditRecord| {
            r.kind == RecordKind::Outcome
                && r.status.is_some_and(|status| statuses.contains(&status))
                && requests.contains(&r.request.as_str())
        };
        found = all.iter().filter(is_one).cloned().collect();
        Ok(found.len() >= count)
    });
    waited.unwrap();
    found
}

/// Whether calls of this surface by so many SDKs are recorded as they went: three of each whole (of embeddings two), to the token;
/// one that its client left (of what streams), charged for what came, by estimate; and what failed, which cost nothing.
#[track_caller]
fn are_counted(site: &Site, surface: &str, sdks: usize) {
    let outcomes_of = |status, count| outcomes(site, surface, &[status], count);
    let (whole_each, left_each) = if surface == "embeddings" { (2, 0) } else { (3, 1) };
    let all = outcomes_of(200, (whole_each + left_each) * sdks);
    let (left, exact): (Vec<_>, Vec<_>) =
        all.iter().partition(|r| r.tokens.as_ref().is_some_and(|tokens| tokens.estimated));
    let counts = (whole_each * sdks, left_each * sdks);
    assert_eq!((exact.len(), left.len()), counts, "{surface}: {all:#?}");
    for outcome in exact {
        let wanted = used(surface);
        assert_eq!(outcome.cost, Some(cost(&wanted)), "{surface}: {outcome:#?}");
        assert_eq!(outcome.tokens, Some(wanted), "{surface}: {outcome:#?}");
    }
    for outcome in left {
        let tokens = outcome.tokens.as_ref().unwrap();
        // Anthropic's streams begin with the count of the prompt, whoever serves them.
        let told = |tokens: &TokenUsage| (tokens.input, tokens.cached, tokens.cache_written);
        let begins_with_it = matches!(surface, "messages" | "invoke");
        let is_input = if begins_with_it { told(tokens) == told(&used(surface)) } else { tokens.input > 0 };
        assert!(is_input && (1..7).contains(&tokens.output), "{surface}: {outcome:#?}");
        assert_eq!(outcome.cost, Some(cost(tokens)), "{surface}: {outcome:#?}");
    }
    for status in [400, 429, 500] {
        for outcome in outcomes_of(status, sdks) {
            assert_eq!((&outcome.tokens, &outcome.cost), (&None, &None), "{surface}: {outcome:#?}");
        }
    }
}

#[test]
fn sdks_of_providers_are_governed_and_counted() {
    let (site, _mock) = start();
    let python = clients::sdks().unwrap().display().to_string();
    let script = clients::script("sdks/models.py").display().to_string();
    for (sdk, suffix, surface) in SDKS {
        let url = base(suffix);
        check(&site, sdk, surface, &[&*python, &script, sdk, &url, &site.assistant_key]);
    }
    for surface in [
        "generate_content",
        "cohere_chat",
        "converse",
        "invoke",
        "messages",
        "responses",
        "embeddings",
        "chat_completions",
    ] {
        are_counted(&site, surface, SDKS.iter().filter(|(_, _, of)| *of == surface).count());
    }
    let denied = record(&site, "the model that is denied", |r| {
        to_host(r, LLM) && r.attributes.iter().flat_map(|read| &read.llm).any(|call| call.model == "mock-2")
    });
    assert_eq!(denied.action.as_deref(), Some("llm"), "{denied:?}");
    finish(site);
}

/// What may come back: no call that wipes anything.
const CALLS: &str = r#"
@id("answers")
permit (principal in Team::"research", action == Action::"receive", resource);
@id("no-wiping")
forbid (principal, action == Action::"receive", resource)
when { context.call.name == "look_up" && context.call.arguments like "*rm -rf*" };
"#;

/// A stream's calls of tools wait until they are whole and judged: an SDK sees those that may pass as they were sent, of another
/// nothing but why, as its own error; and what it asks next is answered.
#[test]
fn sdks_see_no_streamed_call_that_is_denied() {
    let (mut site, _mock) = start();
    site.gateway.apply_policy(&format!("{POLICY}{MODELS}{CALLS}"), SETS).unwrap();
    let python = clients::sdks().unwrap().display().to_string();
    let script = clients::script("sdks/models.py").display().to_string();
    let permitted = json!(["look_up", "{\"what\": \"egress\"}"]);
    for (sdk, suffix, before, end) in [
        // A call of OpenAI's is whole where its choice ends, as all others of that are.
        ("openai calls", "/v1", json!([]), "denied"),
        ("anthropic calls", "", json!([permitted]), "denied"),
        // Cohere's streams have no errors, and its SDK skips what it does not know.
        ("cohere calls", "", json!([permitted]), "cut"),
        // Nor have Amazon's one for this.
        ("boto3 calls", "", json!([permitted]), "cut"),
        ("boto3-invoke calls", "", json!([permitted]), "cut"),
        ("mistralai calls", "", json!([]), "denied"),
        ("litellm calls", "/v1", json!([]), "denied"),
        ("langchain-openai calls", "/v1", json!([]), "denied"),
    ] {
        let argv = [&*python, &script, sdk, &base(suffix), &site.assistant_key];
        let output = site.gateway.lab.run(Host::Anon, &argv).unwrap();
        let lines: Vec<Value> =
            output.stdout.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        let wanted = [
            json!(["one", "", [permitted], "whole"]),
            json!(["two", "", before, end]),
            json!(["after", "Egress is governed.", [], "whole"]),
            json!(["whole", 403, null]),
        ];
        assert_eq!(lines, wanted, "{sdk}: {output:?}");
    }
    for (surface, sdks) in
        [("messages", 1), ("converse", 1), ("invoke", 1), ("cohere_chat", 1), ("chat_completions", 4)]
    {
        // What is denied at its very begin, before anything went out, has a status that says so.
        let all = outcomes(&site, surface, &[200, 403], 4 * sdks);
        let (denied, whole): (Vec<_>, Vec<_>) = all.into_iter().partition(|r| r.reason.is_some());
        assert_eq!((whole.len(), denied.len()), (2 * sdks, 2 * sdks), "{surface}: {whole:#?} {denied:#?}");
        for denied in denied {
            let why = (denied.action.as_deref(), denied.reason.map(DropReason::name), &denied.policies[..]);
            assert_eq!(why, (Some("receive"), Some("policy_forbidden"), &["no-wiping".to_owned()][..]));
            // The provider has answered all the same.
            assert!(denied.tokens.is_some() && denied.cost.is_some(), "{surface}: {denied:#?}");
        }
    }
    finish(site);
}

/// The same by OpenAI's SDK for Node.
#[test]
fn an_sdk_of_node_is_governed_and_counted() {
    let (site, _mock) = start();
    let modules = clients::modules().unwrap().display().to_string();
    let script = clients::script("node/clients.mjs").display().to_string();
    let url = base("/v1");
    check(
        &site,
        "node",
        "chat_completions",
        &["node", &script, &modules, "openai", &url, &site.assistant_key],
    );
    are_counted(&site, "chat_completions", 1);
    finish(site);
}
