//! The clients: what people's agents really use, each started as they would start it.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use clawgress_e2e::lab::{Host, Output};
use clawgress_e2e::plan::{GATEWAY, PROXY_PORT};
use clawgress_e2e::scenario::{ASSISTANT, Site};

/// One GET with `requests`; proxies come from the environment, as ever.
const REQUESTS: &str = r"
import sys, requests
answer = requests.get(sys.argv[1], timeout=10)
print(answer.status_code, len(answer.content))
sys.exit(0 if answer.ok else 22)
";

/// A streamed completion with OpenAI's SDK.
const OPENAI: &str = r"
import sys
from openai import OpenAI
client = OpenAI(base_url=sys.argv[1], api_key='sk-not-a-real-key', max_retries=0, timeout=10)
text, usage, chunks = '', None, 0
for chunk in client.chat.completions.create(
    model='mock-1', stream=True, stream_options={'include_usage': True},
    messages=[{'role': 'user', 'content': 'What is egress governance?'}],
):
    chunks += 1
    if chunk.choices and chunk.choices[0].delta.content:
        text += chunk.choices[0].delta.content
    usage = chunk.usage or usage
print(chunks, 'chunks', usage.total_tokens, 'tokens:', text)
sys.exit(0 if usage.total_tokens == 18 and text == 'Egress is governed by one policy.' else 1)
";

/// One GET with Node's own `fetch`.
const FETCH: &str = r"
fetch(process.argv[1], { signal: AbortSignal.timeout(10000) })
  .then(async (answer) => { console.log(answer.status, (await answer.text()).length); process.exit(answer.ok ? 0 : 22); })
  .catch((error) => { console.error(String(error.cause ?? error)); process.exit(1); });
";

/// One GET with Node's `https` through the proxy's `CONNECT`: its `fetch` goes by no proxy before Node 24, which has
/// `NODE_USE_ENV_PROXY`, without a library.
const CONNECT: &str = r"
const http = require('node:http'), https = require('node:https');
const proxy = new URL(process.env.https_proxy), to = new URL(process.argv[1]);
const fail = (error) => { console.error(String(error)); process.exit(1); };
const key = Buffer.from(`${proxy.username}:${proxy.password}`).toString('base64');
const path = `${to.hostname}:443`;
// Left alone, Node names the proxy, where the host that is asked for belongs (RFC 9112 3.2).
const headers = { Host: path, 'Proxy-Authorization': `Basic ${key}` };
setTimeout(() => fail('no answer'), 10000).unref();
http.request({ host: proxy.hostname, port: proxy.port, method: 'CONNECT', path, headers })
  .on('error', fail)
  .on('connect', (tunnel, socket) => {
    if (tunnel.statusCode !== 200) fail(`the proxy answered ${tunnel.statusCode}`);
    https.get(to, { socket, agent: false }, (answer) => {
      answer.resume().on('end', () => {
        console.log(answer.statusCode);
        process.exit(answer.statusCode === 200 ? 0 : 22);
      });
    }).on('error', fail);
  })
  .end();
";

/// Which client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Client {
    /// `curl`.
    Curl,
    /// Python's `requests`.
    Requests,
    /// OpenAI's Python SDK, streaming.
    OpenAi,
    /// Node's `fetch`.
    Node,
    /// Node's `https`, by `CONNECT`.
    NodeConnect,
}

/// How it gets out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// By its default route; the client knows of nothing.
    Route,
    /// By the explicit proxy, with the assistant's key.
    Proxy,
    /// By the explicit proxy, without a credential.
    ProxyWithoutKey,
}

/// The clients, ready to run.
#[derive(Debug)]
pub struct Clients {
    python: PathBuf,
    ca: PathBuf,
}

impl Client {
    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Client::Curl => "curl",
            Client::Requests => "python requests",
            Client::OpenAi => "openai sdk, streaming",
            Client::Node => "node fetch",
            Client::NodeConnect => "node https",
        }
    }
}

impl Clients {
    /// Finds them.
    ///
    /// # Errors
    /// If set-up has not been run.
    pub fn prepare(site: &Site, dir: &Path) -> anyhow::Result<Clients> {
        let python = dir.join("venv/bin/python");
        ensure!(python.is_file(), "there is no `{}`; run `cargo xtask setup`", python.display());
        let ca = site.gateway.lab.ca();
        fs::metadata(&ca).with_context(|| format!("there is no `{}`", ca.display()))?;
        Ok(Clients { python, ca })
    }

    /// Runs a client in `host`.
    ///
    /// # Errors
    /// If it can't be started or hangs.
    pub fn run(
        &self,
        site: &Site,
        client: Client,
        host: Host,
        path: Way,
        url: &str,
    ) -> anyhow::Result<Output> {
        let ca = self.ca.to_string_lossy();
        let python = self.python.to_string_lossy();
        // The variables by which each client learns of a CA.
        let mut words: Vec<String> = vec!["env".to_owned()];
        for name in ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "NODE_EXTRA_CA_CERTS"] {
            words.push(format!("{name}={ca}"));
        }
        let user = match path {
            Way::Route => None,
            Way::Proxy => Some(format!("{ASSISTANT}:{}@", site.assistant_key)),
            Way::ProxyWithoutKey => Some(String::new()),
        };
        if let Some(user) = user {
            for name in ["http_proxy", "https_proxy", "HTTPS_PROXY"] {
                words.push(format!("{name}=http://{user}{}:{PROXY_PORT}", GATEWAY.v4));
            }
        }
        let client: Vec<&str> = match client {
            Client::Curl => vec!["curl", "-sS", "--fail", "--max-time", "4", "-o", "/dev/null", url],
            Client::Requests => vec![&python, "-c", REQUESTS, url],
            Client::OpenAi => vec![&python, "-c", OPENAI, url],
            Client::Node => vec!["node", "-e", FETCH, "--", url],
            Client::NodeConnect => vec!["node", "-e", CONNECT, "--", url],
        };
        words.extend(client.into_iter().map(str::to_owned));
        site.gateway.lab.run(host, &words)
    }
}
