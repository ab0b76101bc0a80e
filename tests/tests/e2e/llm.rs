//! A language model's API in clear HTTP: streamed as it comes, and metered.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::mpsc::sync_channel;
use std::time::Duration;

use clawgress_e2e::clients;
use clawgress_e2e::lab::{GatewayOptions, Host, Lab};
use clawgress_e2e::plan::{self, GATEWAY, LLM, PROXY_PORT};
use clawgress_e2e::scenario::{ASSISTANT, Site};

use crate::support::{agent, codes, curl, finish, pair, proxy, site, to_host};

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
