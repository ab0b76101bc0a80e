//! A language model's API in clear HTTP: streamed as it comes, and metered.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::mpsc::sync_channel;
use std::time::Duration;

use clawgress_api::{AuditQuery, RecordKind};
use clawgress_e2e::clients;
use clawgress_e2e::lab::{GatewayOptions, Host, Lab};
use clawgress_e2e::plan::{self, GATEWAY, LLM, PROXY_PORT};
use clawgress_e2e::scenario::{ASSISTANT, POLICY, SETS, Site};

use crate::support::{admin, agent, codes, curl, denied, finish, pair, proxy, record, site, to_host};

const BODY: &str =
    r#"{"model":"mock-1","stream":true,"stream_options":{"include_usage":true},"messages":[]}"#;

/// Streams a completion from `host`; the server holds everything after the first token until that
/// token has been seen here, so a gateway that waits for the end would wait in vain.
fn stream(site: &Site, host: Host, to: (std::net::IpAddr, u16), target: &str, hold: &str, credential: &str) {
    let request = format!(
        "POST {target} HTTP/1.1\r\nHost: {LLM}\r\nX-Lab-Hold: {hold}\r\n{credential}Content-Type: application/json\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{BODY}",
        BODY.len()
    );
    let (sender, receiver) = sync_channel(1);
    std::thread::scope(|scope| {
        let client = scope.spawn(|| {
            site.gateway.lab.within(host, move || {
                let mut stream = TcpStream::connect(to).unwrap();
                stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
                stream.write_all(request.as_bytes()).unwrap();
                let (mut text, mut buffer) = (String::new(), [0; 4096]);
                loop {
                    let n = stream.read(&mut buffer).unwrap();
                    if n == 0 {
                        return text;
                    }
                    text.push_str(std::str::from_utf8(&buffer[..n]).unwrap());
                    if text.contains("Egress") {
                        let _ = sender.try_send(text.contains("[DONE]"));
                    }
                }
            })
        });
        let whole = receiver.recv_timeout(Duration::from_secs(10)).unwrap();
        assert!(!whole, "the first token came with the last");
        site.gateway.lab.release(hold).unwrap();
        let text = client.join().unwrap().unwrap();
        assert!(text.contains("\"completion_tokens\":7") && text.contains("[DONE]"), "{text}");
    });
}

#[test]
fn a_stream_is_passed_on_as_it_comes_and_its_tokens_are_recorded() {
    let site = site();
    let llm = plan::addresses(LLM);
    stream(&site, Host::Known, (llm[0], 80), "/v1/chat/completions", "v4", "");
    stream(&site, Host::Known, (llm[1], 80), "/v1/chat/completions", "v6", "");
    let credential = basic(ASSISTANT, &site.assistant_key);
    let target = format!("http://{LLM}/v1/chat/completions");
    stream(&site, Host::Anon, (GATEWAY.v4.into(), PROXY_PORT), &target, "proxy", &credential);
    for name in ["crawler", ASSISTANT] {
        let (_, outcome) = pair(&site, name, |r| to_host(r, LLM) && agent(r) == Some(name));
        let tokens = outcome.tokens.unwrap();
        assert_eq!((tokens.input, tokens.output), (11, 7));
        assert_eq!(tokens.model.as_deref(), Some("mock-1"));
    }
    finish(site);
}

#[test]
fn a_whole_completion_is_metered_too() {
    let site = site();
    let json = ["-H", "Content-Type: application/json", "-d", r#"{"messages":[]}"#];
    let url = proxy(ASSISTANT, &site.assistant_key);
    let target = "http://llm.allowed.test/v1/chat/completions";
    let args: Vec<&str> = json.into_iter().chain(["-x", &url, target]).collect();
    assert_eq!(codes(&curl(&site, Host::Anon, &args)).0, 200);
    let (_, outcome) = pair(&site, "the completion", |r| to_host(r, LLM));
    let tokens = outcome.tokens.unwrap();
    assert_eq!((tokens.input, tokens.output), (11, 7));
    finish(site);
}

fn basic(user: &str, key: &str) -> String {
    let credential = plan::base64(format!("{user}:{key}").as_bytes());
    format!("Proxy-Authorization: Basic {credential}\r\n")
}

/// A client that knows no proxy, by a base URL of the gateway's: OpenAI's own SDK, with the agent's key as its API key.
#[test]
fn an_sdk_asks_by_a_base_url_and_is_read_over_verified_tls() {
    let lab = Lab::builder().start().unwrap();
    let more = format!(
        "[[endpoint]]\nname = \"llm\"\nupstream = \"https://{LLM}\"\nca = \"{}\"\n",
        lab.ca().display()
    );
    let site = Site::start(lab, GatewayOptions { more, ..GatewayOptions::default() }).unwrap();
    let base = format!("http://{}:{PROXY_PORT}/llm/v1", GATEWAY.v4);
    let script = r"
import sys
from openai import OpenAI
client = OpenAI(base_url=sys.argv[1], api_key=sys.argv[2], max_retries=0, timeout=10)
text = ''
for chunk in client.chat.completions.create(
    model='mock-1', stream=True, stream_options={'include_usage': True}, messages=[{'role': 'user', 'content': 'What?'}],
):
    if chunk.choices and chunk.choices[0].delta.content:
        text += chunk.choices[0].delta.content
print(text)
";
    let python = clients::python().unwrap();
    let python = python.to_str().unwrap();
    // From a host that is bound to nobody: the key is all it has.
    let args = [python, "-c", script, &base, &site.assistant_key];
    let output = site.gateway.lab.run(Host::Anon, &args).unwrap();
    assert_eq!(output.stdout.trim(), "Egress is governed by one policy.", "{output:?}");
    let (decision, outcome) = pair(&site, "the completion", |r| to_host(r, LLM));
    assert_eq!((agent(&decision), decision.destination.port), (Some(ASSISTANT), Some(443)));
    assert_eq!(decision.destination.path.as_deref(), Some("/v1/chat/completions"));
    let tokens = outcome.tokens.unwrap();
    assert_eq!((tokens.input, tokens.output), (11, 7), "over TLS, and read all the same");
    let wrong = [python, "-c", script, &base, "claw_000000000000_wrong"];
    let refused = site.gateway.lab.run(Host::Anon, &wrong).unwrap();
    assert!(!refused.ok() && refused.stderr.contains("401"), "{refused:?}");
    finish(site);
}

const MODELS: &str = r#"
@id("models") permit (principal in Team::"research", action == Action::"llm", resource == Model::"lab/mock-1")
when { context.llm.tokens_estimated < 100 };
@id("no-shell") forbid (principal, action == Action::"llm", resource)
when { context.llm.tools.contains("shell") };
"#;

/// OpenAI's own SDK, denied one model and a tool and permitted another: usage is asked for on its behalf, counted to the token,
/// and told to nobody who did not ask.
#[test]
fn an_sdk_is_denied_a_model_and_counted_for_another() {
    let lab = Lab::builder().start().unwrap();
    let more = format!(
        "[[endpoint]]\nname = \"llm\"\nupstream = \"https://{LLM}\"\nca = \"{}\"\n[[llm.server]]\nname = \"lab\"\nurl = \"https://{LLM}\"\n",
        lab.ca().display()
    );
    let mut site = Site::start(lab, GatewayOptions { more, ..GatewayOptions::default() }).unwrap();
    site.gateway.apply_policy(&format!("{POLICY}{MODELS}"), SETS).unwrap();
    let base = format!("http://{}:{PROXY_PORT}/llm/v1", GATEWAY.v4);
    let script = r"
import sys
import openai
client = openai.OpenAI(base_url=sys.argv[1], api_key=sys.argv[2], max_retries=0, timeout=10)
asked = {'messages': [{'role': 'user', 'content': 'What?'}]}
shell = [{'type': 'function', 'function': {'name': 'shell', 'parameters': {'type': 'object', 'properties': {}}}}]
for more in [{'model': 'mock-2'}, {'model': 'mock-1', 'tools': shell}]:
    try:
        client.chat.completions.create(**asked, **more)
        print('passed')
    except openai.PermissionDeniedError as error:
        print(error.response.headers['x-clawgress-reason'])
chunks = list(client.chat.completions.create(model='mock-1', stream=True, **asked))
print(''.join(c.choices[0].delta.content or '' for c in chunks), [c.usage for c in chunks if c.usage])
chunks = list(client.chat.completions.create(model='mock-1', stream=True, stream_options={'include_usage': True}, **asked))
print(chunks[-1].usage.prompt_tokens, chunks[-1].usage.completion_tokens)
print(client.chat.completions.create(model='mock-1', **asked).usage.total_tokens)
";
    let python = clients::python().unwrap();
    let args = [python.to_str().unwrap(), "-c", script, &base, &site.assistant_key];
    let output = site.gateway.lab.run(Host::Anon, &args).unwrap();
    let said: Vec<&str> = output.stdout.lines().collect();
    let wanted = ["policy_denied", "policy_forbidden", "Egress is governed by one policy. []", "11 7", "18"];
    assert_eq!(said, wanted, "{output:?}");
    let denied = record(&site, "the other model", |r| denied(r, "policy_denied") && to_host(r, LLM));
    let asked = denied.attributes.unwrap().llm.unwrap();
    assert_eq!((&*asked.provider, &*asked.model, denied.action.as_deref()), ("lab", "mock-2", Some("llm")));
    // Each of the three that passed, whether its client asked for usage or not.
    let mut passed = Vec::new();
    let waited = site.gateway.lab.wait("three outcomes", std::time::Duration::from_secs(10), || {
        passed = admin(&site).audit(&AuditQuery::default())?;
        passed.retain(|r| r.kind == RecordKind::Outcome && to_host(r, LLM) && r.status == Some(200));
        Ok(passed.len() == 3)
    });
    waited.unwrap();
    for outcome in passed {
        let tokens = outcome.tokens.unwrap();
        assert_eq!((tokens.input, tokens.output, tokens.estimated), (11, 7, false));
    }
    finish(site);
}

const ANSWERS: &str = r#"
@id("answers") permit (principal in Team::"research", action == Action::"receive", resource);
@id("no-shell") forbid (principal, action == Action::"receive", resource)
when { context.usage.tools.contains("shell") };
@id("no-keys") forbid (principal, action == Action::"receive", resource)
when { context.findings.contains("private_key") };
"#;

/// OpenAI's own SDK gets what a model says as it comes, and nothing of a tool that it must not ask for; curl gets no answer with a
/// key in it.
#[test]
fn what_comes_back_is_judged_before_its_client_gets_it() {
    let lab = Lab::builder().start().unwrap();
    let more = format!(
        "[[endpoint]]\nname = \"llm\"\nupstream = \"https://{LLM}\"\nca = \"{}\"\n",
        lab.ca().display()
    );
    let mut site = Site::start(lab, GatewayOptions { more, ..GatewayOptions::default() }).unwrap();
    site.gateway.apply_policy(&format!("{POLICY}{ANSWERS}"), SETS).unwrap();
    let base = format!("http://{}:{PROXY_PORT}/llm/v1", GATEWAY.v4);
    let script = r"
import sys
import httpx
import openai
client = openai.OpenAI(base_url=sys.argv[1], api_key=sys.argv[2], max_retries=0, timeout=10)
def tool(name):
    return {'type': 'function', 'function': {'name': name, 'parameters': {'type': 'object', 'properties': {}}}}
asked = {'model': 'mock-1', 'messages': [{'role': 'user', 'content': 'What?'}]}
for name in ['search', 'shell']:
    text, called, end = '', [], 'whole'
    try:
        for chunk in client.chat.completions.create(stream=True, tools=[tool(name)], **asked):
            for choice in chunk.choices:
                text += choice.delta.content or ''
                called += [c.function.name for c in choice.delta.tool_calls or [] if c.function.name]
    except (httpx.HTTPError, openai.APIError):
        end = 'cut'
    print(text, called, end)
try:
    client.chat.completions.create(tools=[tool('shell')], **asked)
    print('passed')
except openai.PermissionDeniedError as error:
    print(error.response.headers['x-clawgress-reason'])
print(client.chat.completions.create(tools=[tool('search')], **asked).choices[0].message.tool_calls[0].function.name)
";
    let python = clients::python().unwrap();
    let args = [python.to_str().unwrap(), "-c", script, &base, &site.assistant_key];
    let output = site.gateway.lab.run(Host::Anon, &args).unwrap();
    let said: Vec<&str> = output.stdout.lines().collect();
    let wanted = [
        "Egress is governed by one policy. ['search'] whole",
        "Egress is governed by one policy. [] cut",
        "policy_forbidden",
        "search",
    ];
    assert_eq!(said, wanted, "{output:?}");
    let cut = record(&site, "the stream that was cut", |r| {
        r.kind == RecordKind::Outcome && to_host(r, LLM) && r.reason.is_some() && r.status == Some(200)
    });
    assert_eq!((cut.action.as_deref(), &cut.policies[..]), (Some("receive"), &["no-shell".to_owned()][..]));
    let told = cut.attributes.unwrap().answer.unwrap();
    assert_eq!((told.tools, &*told.payload.media_type), (vec!["shell".to_owned()], "text/event-stream"));
    // The lab's servers answer with the fields that they were asked with.
    let url = proxy(ASSISTANT, &site.assistant_key);
    let target = format!("http://{LLM}/told");
    let fine = curl(&site, Host::Anon, &["-x", &url, "-H", "X-Note: fine", &target]);
    let leak =
        curl(&site, Host::Anon, &["-x", &url, "-H", "X-Note: -----BEGIN RSA PRIVATE KEY-----", &target]);
    assert_eq!((codes(&fine).0, codes(&leak).0), (200, 403));
    assert!(!leak.stdout.contains("PRIVATE"), "{leak:?}");
    finish(site);
}
