//! Decisions asked again by their records: what is sent and what comes back is decided alike by the policy that is live.

use std::time::Duration;

use clawgress_api::{AuditQuery, Plane, RecordKind, Verdict};
use clawgress_e2e::lab::{GatewayOptions, Host};
use clawgress_e2e::scenario::{POLICY, SETS};

use crate::support::{admin, codes, curl_within, finish, replays_alike, site_with};

/// Longest wait for what was asked to end, and to be recorded.
const END_TIME: Duration = Duration::from_secs(30);

/// Where a model and tools are.
const SERVERS: &str = r#"
[[llm.server]]
name = "mock"
url = "http://llm.allowed.test/v1"

[[tool.server]]
name = "api"
url = "http://api.allowed.test/mcp"
"#;

/// A rule on each thing that is asked about by name.
const CONTENTS: &str = r#"
@id("bodies")
permit (principal in Team::"research", action == Action::"send", resource in HostSet::"saas") when { context.bytes < 1000 };
@id("no-keys-out")
forbid (principal, action == Action::"send", resource) when { context.findings.contains("private_key") };
@id("mock")
permit (principal in Team::"research", action == Action::"llm", resource in Provider::"mock")
when { context.llm.tokens_estimated < 1000 && !context.llm.tools.contains("shell") };
@id("calls")
permit (principal in Team::"research", action == Action::"tool", resource in ToolServer::"api")
when { context.tool.method == "tools/call" && context.tool.argument_names.contains("project") };
@id("no-erase")
forbid (principal, action == Action::"tool", resource == Tool::"api/erase");
@id("back")
permit (principal in Team::"research", action == Action::"receive", resource) when { context.usage.output_tokens < 1000 };
@id("no-wipe")
forbid (principal, action == Action::"receive", resource) when { context.usage.tools.contains("wipe") };
@id("no-dumps")
forbid (principal, action == Action::"receive", resource) when { context.bytes > 100000 };
@id("counted")
@effect("alert")
permit (principal, action == Action::"receive", resource) when { context.usage.output_tokens > 3 };
"#;

const KEY: &str =
    "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjEA\n-----END OPENSSH PRIVATE KEY-----\n";

/// A call of a model that streams or not, and offers a tool, which the model then asks for.
fn completion(stream: bool, tool: &str) -> String {
    let tools = if tool.is_empty() {
        String::new()
    } else {
        format!(r#","tools":[{{"type":"function","function":{{"name":"{tool}"}}}}]"#)
    };
    format!(
        r#"{{"model":"mock-1","stream":{stream},"messages":[{{"role":"user","content":"hello"}}]{tools}}}"#
    )
}

fn call(tool: &str) -> String {
    format!(
        r#"{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{{"name":"{tool}","arguments":{{"project":"OPS"}}}}}}"#
    )
}

/// The same of what is sent and what comes back: bodies, whole and in pieces, calls of a model and of a tool, answers at once and
/// as they come, and denials of each.
#[test]
fn contents_are_replayed_exactly() {
    let mut site = site_with(GatewayOptions { more: SERVERS.to_owned(), ..GatewayOptions::default() });
    let policy = format!("{POLICY}{CONTENTS}");
    site.gateway.apply_policy(&policy, SETS).unwrap();
    let since = jiff::Timestamp::now();
    let (upload, tools, chat) = (
        "http://api.allowed.test/upload",
        "http://api.allowed.test/mcp",
        "http://llm.allowed.test/v1/chat/completions",
    );
    let large = "x".repeat(1001);
    let [plain, streamed] = [false, true].map(|stream| completion(stream, ""));
    let (search, shell, wipe) =
        (completion(true, "search"), completion(false, "shell"), completion(false, "wipe"));
    let asked: [(&[&str], u16); 14] = [
        (&["http://api.allowed.test/x"], 200),
        (&["http://api.allowed.test/bytes/4096"], 200),
        (&["http://api.allowed.test/bytes/200000"], 403),
        (&["-X", "POST", "http://api.allowed.test/nothing"], 200),
        (&["-d", "notes", upload], 200),
        (&["-H", "Transfer-Encoding: chunked", "-d", "notes", upload], 200),
        (&["-d", KEY, upload], 403),
        (&["-d", &large, upload], 403),
        (&["-H", "Content-Type: application/json", "-d", &plain, chat], 200),
        (&["-H", "Content-Type: application/json", "-d", &streamed, chat], 200),
        (&["-H", "Content-Type: application/json", "-d", &search, chat], 200),
        (&["-H", "Content-Type: application/json", "-d", &shell, chat], 403),
        (&["-H", "Content-Type: application/json", "-d", &wipe, chat], 403),
        (&["-H", "Content-Type: application/json", "-d", &call("read"), tools], 200),
    ];
    for (args, status) in asked {
        let output = curl_within(&site, Host::Known, 5, args);
        assert_eq!(codes(&output).0, status, "{args:?}: {output:?}");
    }
    let erased = call("erase");
    let erase =
        curl_within(&site, Host::Known, 5, &["-H", "Content-Type: application/json", "-d", &erased, tools]);
    assert!(!erase.stdout.contains("clawgress lab"), "{erase:?}");
    let query = AuditQuery { since: Some(since), ..AuditQuery::default() };
    let waited = site.gateway.lab.wait("how each of them ended", END_TIME, || {
        let all = admin(&site).audit(&query)?;
        let of = |kind, verdict| {
            let is = |r: &&clawgress_api::AuditRecord| {
                r.plane == Plane::L7 && r.kind == kind && verdict == r.verdict
            };
            all.iter().filter(is).count()
        };
        let (allow, deny) = (Some(Verdict::Allow), Some(Verdict::Deny));
        // The answers that were denied had been asked for.
        Ok((of(RecordKind::Decision, deny), of(RecordKind::Outcome, allow)) == (4, 11))
    });
    waited.unwrap();
    replays_alike(&site, since, 15);
    finish(site);
}
