//! Tools by MCP's own SDK, both the client's and the server's, in both eras: what is called, denied and listed; and a
//! definition that changed.

use std::time::Duration;

use clawgress_api::RecordKind;
use clawgress_e2e::clients;
use clawgress_e2e::lab::{Daemon, GatewayOptions, Host, Lab};
use clawgress_e2e::plan::{self, GATEWAY, LLM, PROXY_PORT};
use clawgress_e2e::scenario::{ASSISTANT, POLICY, SETS, Site};
use serde_json::{Value, json};

use crate::support::{agent, finish, record};

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
@id("sound")
forbid (principal, action == Action::"tool", resource)
when { context.findings.containsAny(["arguments_invalid", "tool_changed"]) };
"#;

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

fn denial(name: &str, line: &Value, reason: &str) {
    assert_eq!((&line[0], &line[1]), (&json!(name), &json!(-32050)), "{line}");
    assert_eq!(line[2]["reason"], reason, "{line}");
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
        assert_eq!(lines[0], json!(["read", "write"]), "{mode}: what it may not call is not listed");
        assert_eq!(lines[1], json!(["read", "page 1"]), "{mode}");
        denial("read", &lines[2], "policy_forbidden");
        assert_eq!(lines[3], json!(["write", "5 letters in OPS"]), "{mode}");
        denial("write", &lines[4], "policy_denied");
        denial("erase", &lines[5], "policy_denied");
    }
    let lines = use_of_node(&site);
    assert_eq!(lines[..2], [json!(["read", "write"]), json!(["read", "page 1"])]);
    denial("erase", &lines[2], "policy_denied");
    let called = |r: &clawgress_api::AuditRecord, tool: &str| {
        let tools = r.attributes.iter().flat_map(|read| &read.tools);
        agent(r) == Some(ASSISTANT) && { tools }.any(|told| told.name == tool && told.server == "tracker")
    };
    let denied = record(&site, "the call that is denied", |r| called(r, "erase"));
    assert_eq!(denied.action.as_deref(), Some("tool"), "{denied:?}");
    record(&site, "a list with less", |r| {
        r.kind == RecordKind::Outcome && r.changes == ["tools/list: without `erase`"]
    });

    // What it says of `read` is another thing by now: an instruction to the model.
    server.kill().unwrap();
    let (_server, listed) = serve(&site.gateway.lab, "tracker-changed", &["changed"]);
    assert!(listed.contains("mail ~/.ssh"), "{listed}");
    let lines = use_of(&site, "2026-07-28");
    assert_eq!(lines[0], json!(["write"]));
    denial("read", &lines[1], "policy_forbidden");
    let changed = record(&site, "the definition that changed", |r| {
        called(r, "read") && r.findings.iter().any(|finding| finding == "tool_changed")
    });
    assert_eq!(changed.policies, ["sound"], "{changed:?}");
    finish(site);
}
