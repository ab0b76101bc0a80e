//! Decisions asked again by their records: what is sent and what comes back is decided alike by the policy that is live.

use std::time::Duration;

use clawgress_api::{AuditQuery, Plane, RecordKind, Verdict};
use clawgress_e2e::lab::{GatewayOptions, Host};
use clawgress_e2e::plan::{API, addresses};
use clawgress_e2e::scenario::{CRAWLER, POLICY, SETS, Site};
use rustls::client::{EchGreaseConfig, EchMode};
use rustls::{ClientConfig, ClientConnection, RootCertStore};

use crate::support::{admin, codes, curl_within, finish, record, replays_alike, site_with};

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

/// Rules on what heads say, of one way in.
const HEADS: &str = r#"
@id("team")
forbid (principal in Team::"research", action == Action::"http", resource)
unless { context.headers.hasTag("x-team") && context.headers.getTag("x-team") like "pay*" };
@id("events")
forbid (principal in Team::"research", action == Action::"http", resource)
unless { context.path != "/events" || context.query.hasTag("alt") && context.query.getTag("alt") == "sse" };
@id("told")
@effect("alert")
permit (principal, action == Action::"http", resource)
when { context.headers.hasTag("x-trace") && context.headers.getTag("x-trace") == "on" };
"#;

/// The same of what heads say, also where that was refused since it could be read in two ways; and what another policy would have
/// said of those.
#[test]
fn heads_are_replayed_exactly() {
    let mut site = site_with(GatewayOptions::default());
    site.gateway.apply_policy(&format!("{POLICY}{HEADS}"), SETS).unwrap();
    let since = jiff::Timestamp::now();
    let (team, url) = ("X-Team: payments", |path: &str| format!("http://api.allowed.test{path}"));
    let asked: [(&str, &[&str], u16); 9] = [
        ("/own", &[team], 200),
        ("/none", &[], 403),
        ("/other", &["X-Team: ops"], 403),
        ("/twice", &[team, team], 400),
        ("/both", &[team, "X_Team: ops"], 400),
        ("/events?alt=sse", &[team], 200),
        ("/events?alt=sse;mode=raw", &[team], 400),
        // Nothing is asked of its query there.
        ("/own?alt=sse;mode=raw", &[team], 200),
        // What is only told of counts as well.
        ("/traced", &[team, "X-Trace: on"], 200),
    ];
    for (path, fields, status) in asked {
        let url = url(path);
        let mut args: Vec<&str> = fields.iter().flat_map(|field| ["-H", *field]).collect();
        args.push(&url);
        let output = curl_within(&site, Host::Known, 5, &args);
        assert_eq!(codes(&output).0, status, "{args:?}: {output:?}");
    }
    let query = AuditQuery { since: Some(since), ..AuditQuery::default() };
    let waited = site.gateway.lab.wait("how each of them ended", END_TIME, || {
        let all = admin(&site).audit(&query)?;
        let of = |kind, verdict| {
            let is = |r: &&clawgress_api::AuditRecord| {
                r.plane == Plane::L7 && r.kind == kind && r.verdict == Some(verdict)
            };
            all.iter().filter(is).count()
        };
        Ok((of(RecordKind::Decision, Verdict::Deny), of(RecordKind::Outcome, Verdict::Allow)) == (5, 4))
    });
    waited.unwrap();
    replays_alike(&site, since, asked.len() as u64);

    // Without the rule on teams, the three that were refused for what their query or their team was unclear in are not alike any more.
    let candidate = site.gateway.lab.dir().join("candidate.cedar");
    let sets = site.gateway.lab.dir().join("sets.toml");
    let events = HEADS.split_once("@id(\"events\")").unwrap().1;
    std::fs::write(&candidate, format!("{POLICY}@id(\"events\"){events}")).unwrap();
    let (candidate, sets, since) = (candidate.to_string_lossy(), sets.to_string_lossy(), since.to_string());
    let words = ["policy", "replay", "-o", "json", "--since", &since, &candidate, "--sets", &sets];
    let output = site.gateway.ctl(&words).unwrap();
    let again: serde_json::Value = serde_json::from_str(&output.stdout).unwrap();
    let changed = again["changed"].as_array().unwrap();
    let to_allow = |before: &str| {
        let is = |c: &&serde_json::Value| c["before"] == before && c["after"] == "allow";
        changed.iter().filter(is).count()
    };
    // A query that can be read in two ways is still refused where it is asked about.
    assert_eq!((to_allow("http_malformed"), to_allow("policy_forbidden")), (2, 2), "{again:#}");
    assert_eq!(changed.len(), 4, "{again:#}");
    assert!(again["undecidable"].as_object().unwrap().is_empty(), "{again:#}");
    finish(site);
}

/// What is said of tunnels: what a hello may hide its name under, and what it is held to.
const TUNNELS: [(&str, bool); 6] = [
    (
        r#"@id("shown") permit (principal, action == Action::"tunnel", resource) when { context.protocol == "tls" };"#,
        false,
    ),
    (
        r#"@id("hidden") permit (principal, action == Action::"tunnel", resource) when { context.protocol == "tls_ech" };"#,
        true,
    ),
    (r#"@id("any") permit (principal, action == Action::"tunnel", resource);"#, true),
    (
        r#"@id("any") permit (principal, action == Action::"tunnel", resource);
        @id("no-tls") forbid (principal, action == Action::"tunnel", resource) when { context.protocol == "tls" };"#,
        false,
    ),
    (
        r#"@id("any") permit (principal, action == Action::"tunnel", resource);
        @id("no-ech") forbid (principal, action == Action::"tunnel", resource) when { context.protocol == "tls_ech" };"#,
        false,
    ),
    (
        r#"@id("any") permit (principal, action == Action::"tunnel", resource);
        @id("told") @effect("alert") permit (principal, action == Action::"tunnel", resource) when { context.protocol == "tls" };"#,
        true,
    ),
];

/// Begins TLS with a hello that greases ECH (RFC 9849 section 6.2), as browsers do, and nothing else.
fn greases(site: &Site) {
    let suite = rustls::crypto::aws_lc_rs::hpke::DH_KEM_X25519_HKDF_SHA256_AES_128;
    let (public, _) = rustls::crypto::hpke::Hpke::generate_key_pair(suite).unwrap();
    let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_ech(EchMode::Grease(EchGreaseConfig::new(suite, public)))
        .unwrap()
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    let name = rustls::pki_types::ServerName::try_from(API).unwrap();
    let mut client = ClientConnection::new(std::sync::Arc::new(config), name).unwrap();
    let shaken = site.gateway.lab.within(Host::Known, move || -> std::io::Result<()> {
        let mut stream = std::net::TcpStream::connect((addresses(API)[0], 443))?;
        stream.set_read_timeout(Some(END_TIME))?;
        client.complete_io(&mut stream)?;
        Ok(())
    });
    assert!(shaken.unwrap().is_err(), "it trusts nobody");
}

/// What the proxy decides of a hello that may hide its name, `policy explain` tells, and `policy replay` says again.
#[test]
fn hellos_with_ech_are_decided_told_and_replayed_alike() {
    let mut site = site_with(GatewayOptions::default());
    let base = POLICY.replace(r#"[Action::"tls", Action::"tunnel"]"#, r#"[Action::"tls"]"#);
    for (text, is_allowed) in TUNNELS {
        site.gateway.apply_policy(&format!("{base}{text}"), SETS).unwrap();
        let since = jiff::Timestamp::now();
        greases(&site);
        let decided = record(&site, "the hello", |r| {
            r.plane == Plane::L7 && r.kind == RecordKind::Decision && r.time >= since
        });
        assert_eq!(decided.verdict == Some(Verdict::Allow), is_allowed, "{text}: {decided:?}");
        let url = format!("https://{API}/");
        let words = ["policy", "explain", "-o", "json", "--ech", CRAWLER, &url];
        let output = site.gateway.ctl(&words).unwrap();
        let told: serde_json::Value =
            serde_json::from_str(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output:?}"));
        let phases = told["phases"].as_array().unwrap();
        let tunnel = phases.iter().find(|phase| phase["action"] == "tunnel").unwrap();
        assert_eq!(tunnel["allowed"], is_allowed, "{text}: {told:#}");
        let reason = decided.reason.map(|reason| reason.name());
        assert_eq!(tunnel["reason"].as_str(), reason, "{text}: {told:#}");
        for policy in tunnel["policies"].as_array().unwrap() {
            assert!(
                decided.policies.iter().any(|p| Some(p.as_str()) == policy.as_str()),
                "{text}: {decided:?}"
            );
        }
        let effects: Vec<_> = tunnel["effects"].as_array().into_iter().flatten().collect();
        let recorded: Vec<_> =
            decided.effects.iter().map(|e| (e.policy.as_str(), e.effect.as_str())).collect();
        let said: Vec<_> =
            effects.iter().map(|e| (e["policy"].as_str().unwrap(), e["effect"].as_str().unwrap())).collect();
        assert_eq!(recorded, said, "{text}");
        replays_alike(&site, since, 1);
    }
    site.gateway.apply_policy(POLICY, SETS).unwrap();
    finish(site);
}
