//! Tools by MCP's own SDKs, both the client's and the server's, in both eras: what is called, denied and listed, what fails,
//! streams and is cancelled; and a definition that changed.

use std::time::Duration;

use clawgress_api::{AuditQuery, AuditRecord, RecordKind, ToolFacts, Verdict};
use clawgress_e2e::clients;
use clawgress_e2e::lab::{Daemon, GatewayOptions, Host, Lab};
use clawgress_e2e::plan::{self, GATEWAY, LLM, PROXY_PORT};
use clawgress_e2e::scenario::{ASSISTANT, POLICY, SETS, Site};
use serde_json::{Value, json};

use crate::support::{admin, agent, denied, finish, record};

/// Where the tool server listens, beside the lab's own of the same name.
const PORT: u16 = 8000;
/// Time for an interpreter to start and to serve.
const START_TIME: Duration = Duration::from_secs(60);

const TOOLS: &str = r#"
@id("tracker-net")
permit (principal in Team::"research", action == Action::"connect", resource in NetworkSet::"web")
when { context.protocol == "tcp" && context.port == 8000 };
@id("talk")
permit (principal in Team::"research", action == Action::"tool", resource in ToolServer::"tracker")
when { context.tool.method != "tools/call" };
@id("read")
permit (principal in Team::"research", action == Action::"tool", resource == Tool::"tracker/read");
@id("ops")
permit (principal in Team::"research", action == Action::"tool", resource == Tool::"tracker/write")
when { context.tool.values.contains("/project=OPS") };
@id("steps")
permit (principal in Team::"research", action == Action::"tool", resource in ToolServer::"tracker")
when { ["fail", "count", "go_on", "wait", "left"].contains(context.tool.name) };
@id("sound")
forbid (principal, action == Action::"tool", resource)
when { context.findings.containsAny(["arguments_invalid", "tool_changed"]) };
"#;

/// What an agent may call, and so sees.
const LISTED: [&str; 7] = ["count", "fail", "go_on", "left", "read", "wait", "write"];

/// What fails there, fails here, and as it did; steps come one by one; and what its client no longer waits for, ends there.
fn steps() -> [Value; 3] {
    [
        json!(["fail", "Error executing tool fail: there is no such page", true]),
        json!(["count", [1, 2], "two"]),
        json!(["left", "nobody waits"]),
    ]
}

/// What an operator asks a server for, to keep what it lists.
const LIST: &str = r#"{"jsonrpc":"2.0","id":1,"method":"tools/list","params":{"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientInfo":{"name":"curl","version":"1"},"io.modelcontextprotocol/clientCapabilities":{}}}}"#;

/// Starts the server outside; returns it with what it lists.
fn serve(lab: &Lab, name: &str, more: &[&str]) -> (Daemon, String) {
    let python = clients::sdks().unwrap().display().to_string();
    let script = clients::script("sdks/mcp_server.py").display().to_string();
    let (address, port) = (plan::addresses(LLM)[0].to_string(), PORT.to_string());
    let argv = [&[&*python, &script, &address, &port], more].concat();
    let daemon = lab.spawn(Host::World, name, &argv).unwrap();
    let url = format!("http://{address}:{port}/mcp");
    let fields = [
        "Content-Type: application/json",
        "Accept: application/json, text/event-stream",
        "MCP-Protocol-Version: 2026-07-28",
        "Mcp-Method: tools/list",
    ];
    let mut ask = vec!["curl", "-sS", "--max-time", "5", "-d", LIST, &url];
    fields.iter().for_each(|field| ask.extend(["-H", field]));
    let mut listed = String::new();
    let waited = lab.wait("the tool server", START_TIME, || {
        listed = lab.run(Host::World, &ask)?.stdout;
        Ok(listed.contains("\"tools\""))
    });
    waited.unwrap();
    (daemon, listed)
}

/// What an agent gets of the server by the SDK, thing by thing.
fn use_of(site: &Site, mode: &str) -> Vec<Value> {
    let python = clients::sdks().unwrap().display().to_string();
    let script = clients::script("sdks/mcp_client.py").display().to_string();
    let url = format!("http://{}:{PROXY_PORT}/tracker/mcp", GATEWAY.v4);
    let argv = [&*python, &script, &url, &site.assistant_key, mode];
    let output = site.gateway.lab.run(Host::Anon, &argv).unwrap();
    let lines = output.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(output.ok(), "{mode}: {output:?}");
    lines
}

/// The same by the SDK for Node.
fn use_of_node(site: &Site) -> Vec<Value> {
    let modules = clients::modules().unwrap().display().to_string();
    let script = clients::script("node/clients.mjs").display().to_string();
    let url = format!("http://{}:{PROXY_PORT}/tracker/mcp", GATEWAY.v4);
    let argv = ["node", &script, &modules, "mcp", &url, &site.assistant_key];
    let output = site.gateway.lab.run(Host::Anon, &argv).unwrap();
    assert!(output.ok(), "{output:?}");
    output.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Whether a line tells a denial of JSON-RPC's, and its record the same: what was asked, and by which policies it was denied.
#[track_caller]
fn denial(site: &Site, name: &str, line: &Value, (reason, policies): (&str, &[&str])) {
    assert_eq!((&line[0], &line[1]), (&json!(name), &json!(-32050)), "{line}");
    assert_eq!(line[2]["reason"], reason, "{line}");
    let told = record(site, "the denial that the client was told of", |r| r.request == line[2]["request"]);
    assert!(denied(&told, reason) && called(&told, name), "{told:?}");
    assert_eq!(
        (told.action.as_deref(), &told.policies[..]),
        (Some("tool"), &policies.iter().map(|id| (*id).to_owned()).collect::<Vec<_>>()[..])
    );
}

/// Whether a record is of this tool.
fn called(record: &AuditRecord, tool: &str) -> bool {
    messages(record).any(|told| (&*told.method, &*told.name) == ("tools/call", tool))
}

fn messages(record: &AuditRecord) -> impl Iterator<Item = &ToolFacts> {
    let is_ours = agent(record) == Some(ASSISTANT);
    let tools = record.attributes.iter().flat_map(|read| &read.tools);
    tools.filter(move |told| is_ours && told.server == "tracker")
}

/// Whether each of so many calls that their clients left is recorded as one that its server began to answer and nothing cut; and of
/// those that say so by a message (all but by the era's own way, which is to close the stream) that message.
#[track_caller]
fn are_left(site: &Site, calls: usize, told: usize) {
    let waited = site.gateway.lab.wait("calls that were left", START_TIME, || {
        let all = admin(site).audit(&AuditQuery { limit: Some(1000), ..AuditQuery::default() })?;
        let decided = |fits: &dyn Fn(&AuditRecord) -> bool| -> Vec<AuditRecord> {
            let is_one = |r: &&AuditRecord| r.kind == RecordKind::Decision && fits(r);
            all.iter().filter(is_one).cloned().collect()
        };
        let waits = decided(&|r| called(r, "wait"));
        let is_whole = |r: &AuditRecord| {
            let is_outcome = |o: &&AuditRecord| o.kind == RecordKind::Outcome && o.request == r.request;
            all.iter().find(is_outcome).is_some_and(|o| (o.status, o.reason) == (Some(200), None))
        };
        let cancels = decided(&|r| messages(r).any(|told| told.method == "notifications/cancelled"));
        assert!([&waits, &cancels].into_iter().flatten().all(|r| r.verdict == Some(Verdict::Allow)));
        assert!(waits.len() <= calls && cancels.len() <= told, "{waits:?} {cancels:?}");
        Ok(cancels.len() == told && waits.iter().filter(|r| is_whole(r)).count() == calls)
    });
    waited.unwrap();
}

#[test]
fn an_sdk_sees_and_calls_the_tools_that_it_may() {
    let lab = Lab::builder().start().unwrap();
    let (mut server, listed) = serve(&lab, "tracker", &[]);
    let approved = lab.dir().join("approved.json");
    std::fs::write(&approved, listed).unwrap();
    let more = format!(
        "[[endpoint]]\nname = \"tracker\"\nupstream = \"http://{LLM}:{PORT}\"\n\
         [[tool.server]]\nname = \"tracker\"\nurl = \"http://{LLM}:{PORT}/mcp\"\napproved = \"{}\"\n",
        approved.display()
    );
    let mut site = Site::start(lab, GatewayOptions { more, ..GatewayOptions::default() }).unwrap();
    site.gateway.apply_policy(&format!("{POLICY}{TOOLS}"), SETS).unwrap();
    for mode in ["legacy", "2026-07-28"] {
        let lines = use_of(&site, mode);
        assert_eq!(lines[0], json!(LISTED), "{mode}: what it may not call is not listed");
        assert_eq!(lines[1], json!(["read", "page 1"]), "{mode}");
        denial(&site, "read", &lines[2], ("policy_forbidden", &["sound"]));
        assert_eq!(lines[3], json!(["write", "5 letters in OPS"]), "{mode}");
        denial(&site, "write", &lines[4], ("policy_denied", &[]));
        denial(&site, "erase", &lines[5], ("policy_denied", &[]));
        assert_eq!(lines[6..], steps(), "{mode}");
    }
    let lines = use_of_node(&site);
    assert_eq!(lines[..2], [json!(LISTED), json!(["read", "page 1"])]);
    denial(&site, "read", &lines[2], ("policy_forbidden", &["sound"]));
    denial(&site, "erase", &lines[3], ("policy_denied", &[]));
    assert_eq!(lines[4..7], steps());
    assert_eq!(lines[7..], [json!(["stranger", 401])], "whose key is none, is told by HTTP");
    are_left(&site, 3, 2);
    record(&site, "a list with less", |r| {
        r.kind == RecordKind::Outcome && r.changes == ["tools/list: without `erase`"]
    });

    // What it says of `read` is another thing by now: an instruction to the model.
    server.kill().unwrap();
    let (_server, listed) = serve(&site.gateway.lab, "tracker-changed", &["changed"]);
    assert!(listed.contains("mail ~/.ssh"), "{listed}");
    let lines = use_of(&site, "2026-07-28");
    let rest: Vec<_> = LISTED.into_iter().filter(|name| *name != "read").collect();
    assert_eq!(lines[0], json!(rest));
    denial(&site, "read", &lines[1], ("policy_forbidden", &["sound"]));
    let changed = record(&site, "the definition that changed", |r| {
        called(r, "read") && r.findings.iter().any(|finding| finding == "tool_changed")
    });
    assert_eq!(changed.policies, ["sound"], "{changed:?}");
    finish(site);
}
