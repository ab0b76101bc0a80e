//! WebSockets of a real client to a real server, by the route and by the explicit proxy; and SOCKS by Python.

use clawgress_api::Verdict;
use clawgress_e2e::clients;
use clawgress_e2e::lab::{Daemon, Host, Output};
use clawgress_e2e::plan::{API, GATEWAY, PROXY_PORT};
use clawgress_e2e::scenario::{ASSISTANT, CRAWLER, POLICY, SETS, Site};

use crate::support::{agent, finish, pair, proxy, record, replays_alike, site, to_host};

/// Sends back what it gets; and tells by which codes its connections have ended.
const SERVER: &str = r#"
import asyncio, websockets
codes = []
async def echo(ws):
    if ws.request.path == "/codes":
        await ws.send(str(codes))
    try:
        async for message in ws:
            await ws.send(message)
    finally:
        codes.append(ws.close_code)
async def main():
    async with websockets.serve(echo, "203.0.113.10", 8081, max_size=None):
        await asyncio.Future()
asyncio.run(main())
"#;

/// Opens one, and prints what comes back of a word and of a hundred thousand bytes.
const CLIENT: &str = r#"
import asyncio, sys, websockets
async def main():
    async with websockets.connect(sys.argv[1], proxy=sys.argv[2] or None, max_size=None, open_timeout=8, compression=None) as ws:
        await ws.send("hello")
        word = await ws.recv()
        await ws.send(bytes(100_000))
        print(word, len(await ws.recv()))
try:
    asyncio.run(main())
except websockets.exceptions.InvalidStatus as refused:
    print(refused.response.status_code, refused.response.headers["x-clawgress-reason"])
"#;

/// With compression, as it is by default: says a word, something long, and a key; then asks the server how that ended.
const TALKER: &str = r#"
import asyncio, sys, websockets
async def main():
    url, proxy = sys.argv[1], sys.argv[2] or None
    key = "-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----\n"
    try:
        async with websockets.connect(url + "/chat", proxy=proxy, max_size=None, open_timeout=8) as ws:
            async def parts():
                yield "hel"
                yield "lo"
            await ws.send(parts())
            word = await ws.recv()
            await ws.send(bytes(100_000))
            print(word, len(await ws.recv()), ws.protocol.extensions)
            await (await ws.ping())
            await ws.send(key)
            print(await ws.recv())
    except websockets.exceptions.ConnectionClosed as closed:
        print(closed.rcvd.code, closed.rcvd.reason.split()[0])
    async with websockets.connect(url + "/codes", proxy=proxy, open_timeout=8) as ws:
        print(await ws.recv())
asyncio.run(main())
"#;

/// What messages may hold, in place of `tunnel`.
const CONTENT: &str = r#"
@id("sent") permit (principal in Team::"research", action == Action::"send", resource == Host::"api.allowed.test");
@id("no-keys") forbid (principal, action == Action::"send", resource) when { context.findings.contains("private_key") };
"#;

/// Both planes have to permit the port; the messages need a permit of their own.
const PORT: &str = r#"
@id("reach-8081") permit (principal in Team::"research", action == Action::"connect", resource in NetworkSet::"web")
when { context.protocol == "tcp" && context.port == 8081 };
"#;
const MESSAGES: &str = r#"
@id("messages") permit (principal in Team::"research", action == Action::"tunnel", resource == Host::"api.allowed.test")
when { context.protocol == "websocket" };
"#;
/// Where anything may be said, whatever it is.
const SAID: &str = r#"
@id("said") permit (principal in Team::"research", action == Action::"send", resource == Host::"api.allowed.test")
when { context.path == "/chat" };
"#;

/// The lab's policy, whose tunnels are at the port of TLS alone.
fn closed() -> String {
    let tunnels = r#"Action::"tunnel"], resource in HostSet::"saas")"#;
    let policy = POLICY.replace(tunnels, &format!("{tunnels} when {{ context.port == 443 }}"));
    assert_ne!(policy, POLICY);
    policy + PORT
}

fn open(site: &Site, host: Host, path: &str, proxy: &str) -> Output {
    let python = clients::python().unwrap();
    let url = format!("ws://{API}:8081{path}");
    site.gateway.lab.run(host, &[python.to_str().unwrap(), "-c", CLIENT, &url, proxy]).unwrap()
}

/// Starts the server, and waits for it.
fn serve(site: &Site) -> Daemon {
    let python = clients::python().unwrap();
    let server =
        site.gateway.lab.spawn(Host::World, "websockets", &[python.to_str().unwrap(), "-c", SERVER]).unwrap();
    let listens = "exec 3<>/dev/tcp/203.0.113.10/8081";
    site.gateway
        .lab
        .wait("the server of WebSockets", std::time::Duration::from_secs(15), || {
            Ok(site.gateway.lab.run(Host::World, &["bash", "-c", listens])?.ok())
        })
        .unwrap();
    server
}

#[test]
fn messages_are_judged_by_what_they_hold() {
    let mut site = site();
    let mut server = serve(&site);
    let own = proxy(ASSISTANT, &site.assistant_key);
    site.gateway.apply_policy(&(closed() + CONTENT), SETS).unwrap();
    let python = clients::python().unwrap();
    for (host, who, proxy, codes) in
        [(Host::Known, CRAWLER, "", "[1008]"), (Host::Anon, ASSISTANT, &*own, "[1008, 1000, 1008]")]
    {
        let argv = [python.to_str().unwrap(), "-c", TALKER, &format!("ws://{API}:8081"), proxy];
        let output = site.gateway.lab.run(host, &argv).unwrap();
        let said: Vec<_> = output.stdout.lines().collect();
        assert_eq!(said, ["hello 100000 []", "1008 policy_forbidden", codes], "{output:?}");
        let (decision, outcome) = pair(&site, "the WebSocket", |r| {
            to_host(r, API) && agent(r) == Some(who) && r.destination.path.as_deref() == Some("/chat")
        });
        assert_eq!((decision.verdict, decision.action.as_deref()), (Some(Verdict::Allow), Some("http")));
        assert_eq!(
            (outcome.action.as_deref(), &outcome.policies[..]),
            (Some("send"), &["no-keys".to_owned()][..])
        );
        assert_eq!(outcome.findings, ["private_key"]);
    }
    server.kill().unwrap();
    finish(site);
}

#[test]
fn messages_pass_where_their_request_and_they_are_permitted() {
    let mut site = site();
    let mut server = serve(&site);
    let own = proxy(ASSISTANT, &site.assistant_key);
    site.gateway.apply_policy(&closed(), SETS).unwrap();
    for (host, proxy) in [(Host::Known, ""), (Host::Anon, &*own)] {
        let output = open(&site, host, "/chat", proxy);
        assert_eq!(output.stdout.trim(), "403 inspection_required", "{output:?}");
    }
    site.gateway.apply_policy(&(closed() + MESSAGES + SAID), SETS).unwrap();
    let since = jiff::Timestamp::now();
    for (host, who, proxy) in [(Host::Known, CRAWLER, ""), (Host::Anon, ASSISTANT, &*own)] {
        let output = open(&site, host, "/chat", proxy);
        assert_eq!(output.stdout.trim(), "hello 100000", "{output:?}");
        let (decision, outcome) = pair(&site, "the WebSocket", |r| {
            to_host(r, API)
                && agent(r) == Some(who)
                && r.verdict == Some(Verdict::Allow)
                && r.action.as_deref() == Some("tunnel")
        });
        let by = |id: &str| decision.policies.iter().any(|policy| policy == id);
        assert!(by("messages") && by("said"), "{decision:?}");
        assert_eq!(outcome.status, Some(101));
        assert!(outcome.bytes_sent > Some(100_000) && outcome.bytes_received > Some(100_000), "{outcome:?}");
        let output = open(&site, host, "/admin/chat", proxy);
        assert_eq!(output.stdout.trim(), "403 policy_forbidden", "{output:?}");
        let output = open(&site, host, "/elsewhere", proxy);
        assert_eq!(output.stdout.trim(), "403 policy_denied", "{output:?}");
    }
    record(&site, "what nobody may say there", |r| {
        agent(r) == Some(ASSISTANT) && r.action.as_deref() == Some("send") && r.verdict == Some(Verdict::Deny)
    });
    // No message had to be seen for that.
    replays_alike(&site, since, 6);
    // Under what permits no messages, what was opened would not be.
    let without = site.gateway.lab.dir().join("without.cedar");
    std::fs::write(&without, closed()).unwrap();
    let sets = site.gateway.lab.dir().join("without.toml");
    std::fs::write(&sets, SETS).unwrap();
    let (without, sets) = (without.display().to_string(), sets.display().to_string());
    let args = ["policy", "replay", &without, "--sets", &sets, "--since", "10m", "-o", "json"];
    let replayed = site.gateway.ctl(&args).unwrap().stdout;
    assert!(replayed.contains("inspection_required"), "{replayed}");
    server.kill().unwrap();
    finish(site);
}

#[test]
fn python_goes_by_socks() {
    let site = site();
    let python = clients::python().unwrap();
    let script = "import requests, sys; p = sys.argv[2]; print(requests.get(sys.argv[1], proxies={'http': p, 'https': p}, timeout=8, verify=sys.argv[3]).status_code)";
    let url = format!("socks5h://{ASSISTANT}:{}@{}:{PROXY_PORT}", site.assistant_key, GATEWAY.v4);
    let ca = site.gateway.lab.ca().display().to_string();
    for (to, printed) in [
        ("https://api.allowed.test/python-tls", "200"),
        ("http://api.allowed.test/python", "200"),
        ("http://api.allowed.test/admin/python", "403"),
    ] {
        let argv = [python.to_str().unwrap(), "-c", script, to, &url, &ca];
        let output = site.gateway.lab.run(Host::Anon, &argv).unwrap();
        assert_eq!(output.stdout.trim(), printed, "{output:?}");
    }
    record(&site, "what was read", |r| r.destination.path.as_deref() == Some("/python"));
    finish(site);
}
