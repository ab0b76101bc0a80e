//! What people ask of policy before it is live: zones, bodies, and what changes for whom.

use clawgress_api::identity::{Agent, IdentityMethod};
use clawgress_api::proto::AuditBatch;
use clawgress_api::{AgentRef, AuditRecord, EffectRef, Plane, RecordKind, Verdict};
use serde_json::Value;

use super::node::{Node, parse};
use super::{check, ctl, file, run};

const NIGHT: &str = "@id(\"night\")\npermit (principal, action == Action::\"http\", resource)\nwhen { context.hour >= 22 };\n";
const SENT: &str = "@id(\"web\") permit (principal, action == Action::\"http\", resource);\n@id(\"net\") permit (principal, action == Action::\"connect\", resource);\n@id(\"small\") permit (principal, action == Action::\"send\", resource) when { context.bytes <= 1000 };\n@id(\"keys\") forbid (principal, action == Action::\"send\", resource) when { context.findings.contains(\"private_key\") };\n";

const CALLS: &str = r#"@id("net") permit (principal, action in [Action::"connect", Action::"http"], resource);
@id("gpt")
permit (principal, action == Action::"llm", resource in Provider::"openai") when { context.llm.tokens_estimated <= 100 };
@id("no-shell") forbid (principal, action == Action::"llm", resource) when { context.llm.tools.contains("shell") };
@id("kept") forbid (principal, action == Action::"llm", resource) when { context.llm.store };
@id("ops") permit (principal, action == Action::"tool", resource == Tool::"jira/create") when { context.tool.values.contains("/project=OPS") };
@id("talk") permit (principal, action == Action::"tool", resource in ToolServer::"jira") when { context.tool.method != "tools/call" };
@id("back") permit (principal, action == Action::"receive", resource) when { context.status == 200 };
@id("no-rm") forbid (principal, action == Action::"receive", resource) when { context.call.arguments like "*rm -rf*" };
"#;

fn path(node: &Node, name: &str, text: &str) -> String {
    file(node, name, text).to_string_lossy().into_owned()
}

/// A wall clock is somewhere: as the file says, else as the node is configured, and never as nobody said.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cases_are_asked_in_a_zone() {
    let node = Node::configured(|_| "[time]\nzone = \"America/New_York\"\n".to_owned()).start().await;
    let policy = path(&node, "night.cedar", NIGHT);
    // Summer and winter, some years ago: 22:30 in Berlin, which is 20:30 and 21:30 in UTC.
    let cases = |zone: &str, times: [&str; 2]| {
        let case = |at: &str| {
            format!("[[case]]\nagent = \"a\"\nto = \"http://api.test/\"\nat = \"{at}\"\nexpect = \"allow\"\n")
        };
        format!("{zone}[[agent]]\nid = \"a\"\n{}", times.map(case).concat())
    };
    let berlin = ["2023-07-04T20:30Z", "2023-12-04T21:30Z"];
    let told = path(&node, "told.toml", &cases("zone = \"Europe/Berlin\"\n", berlin));
    let untold = path(&node, "untold.toml", &cases("", berlin));
    let socket = node.config.admin_socket();
    let nowhere = std::path::Path::new("/nonexistent/admin.sock");
    let test = async |socket: &std::path::Path, arguments: &[&str]| {
        let all = [&["policy", "test", "--policy", &policy], arguments].concat();
        ctl(socket, &all).output().await.expect("run")
    };
    check(&test(nowhere, &[&told]).await, 0, "2 passed", "answered in Europe/Berlin");
    check(&test(nowhere, &[&untold, "--zone", "Europe/Berlin"]).await, 0, "2 passed", "");
    check(&test(nowhere, &[&told, "--zone", "UTC"]).await, 1, "0 passed", "2 of 2 cases failed");
    check(&test(nowhere, &[&untold]).await, 1, "", "--zone");
    check(
        &test(nowhere, &[&untold, "--zone", "Europe/Nowhere"]).await,
        1,
        "",
        "no time zone `Europe/Nowhere`",
    );
    // By the node's, where it is in the evening: 22:30 there is 02:30 and 03:30 in UTC.
    check(&test(&socket, &[&untold]).await, 1, "0 passed", "answered in America/New_York");
    let there = path(&node, "there.toml", &cases("", ["2023-07-04T02:30Z", "2023-12-04T03:30Z"]));
    check(&test(&socket, &[&there]).await, 0, "2 passed", "answered in America/New_York");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_are_asked_about() {
    let node = Node::new().start().await;
    let config = &node.config;
    let policy = path(&node, "sent.cedar", SENT);
    let case = |findings: &str, expect: &str| {
        format!(
            "[[case]]\nagent = \"a\"\nto = \"http://api.test/\"\nmethod = \"POST\"\nbody = {{ bytes = 10{findings} }}\nexpect = \"{expect}\"\nphase = \"{}\"\n",
            "send"
        )
    };
    let cases = format!(
        "[[agent]]\nid = \"a\"\n{}{}",
        case("", "allow"),
        case(", findings = [\"private_key\"]", "deny")
    );
    let cases = path(&node, "cases.toml", &cases);
    let nowhere = std::path::Path::new("/nonexistent/admin.sock");
    let tested = ctl(nowhere, &["policy", "test", &cases, "--policy", &policy]).output().await.expect("run");
    check(&tested, 0, "2 passed", "");

    run(config, &["agent", "create", "a"]).await;
    let explain = async |more: &[&str]| {
        let all =
            ["policy", "explain", "a", "http://api.test/", "--method", "POST", "--address", "203.0.113.5"];
        run(config, &[&all, more, &["--policy", &policy]].concat()).await
    };
    check(&explain(&[]).await, 6, "allowed as far as it was asked", "`send` may");
    check(&explain(&["--body-bytes", "10"]).await, 0, "by `small`", "");
    check(&explain(&["--body-bytes", "9999"]).await, 5, "send: deny (policy_denied)", "");
    check(&explain(&["--finding", "private_key"]).await, 5, "by `keys`", "by `send`: policy_forbidden");
}

/// What calls a model or a tool, and what comes back, is supposed by what is said of it; what is not said is not known.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_and_answers_are_supposed() {
    let node = Node::new().start().await;
    let config = &node.config;
    let policy = path(&node, "calls.cedar", CALLS);
    run(config, &["agent", "create", "a"]).await;
    let explain = async |more: &[&str]| {
        let all =
            ["policy", "explain", "a", "http://api.test/", "--method", "POST", "--address", "203.0.113.5"];
        run(config, &[&all, more, &["--policy", &policy]].concat()).await
    };
    check(&explain(&[]).await, 6, "allowed as far as it was asked", "but `llm`, `tool`, `receive` may");
    let (model, tool, back) =
        (["--provider", "openai", "--model", "gpt-5"], ["--server", "jira"], ["--status", "200"]);
    let called = explain(&model).await;
    check(&called, 6, "llm: allow\n  by `gpt` at ", "but `receive` may");
    check(&called, 6, "calls.cedar:3\n    ", "--asks-for");
    check(&explain(&[&model[..], &back].concat()).await, 0, "receive: allow", "");
    check(&explain(&[&model[..], &["--tokens", "200"]].concat()).await, 5, "llm: deny (policy_denied)", "");
    check(&explain(&[&model[..], &["--offers", "shell"]].concat()).await, 5, "by `no-shell` at ", "by `llm`");
    // A client that says nothing of it has its responses kept.
    let responses = [&model[..], &back, &["--surface", "responses"]].concat();
    check(&explain(&responses).await, 5, "by `kept` at ", "by `llm`");
    check(&explain(&[&responses[..], &["--store=false"]].concat()).await, 0, "receive: allow", "");
    check(&explain(&[&model[..], &["--store"]].concat()).await, 5, "by `kept` at ", "by `llm`");
    let with = |json: &'static str| [&tool[..], &["--tool", "create", "--arguments", json], &back].concat();
    check(&explain(&with(r#"{"project":"OPS"}"#)).await, 0, "by `ops` at ", "");
    check(&explain(&with(r#"{"project":"DEV"}"#)).await, 5, "tool: deny (policy_denied)", "");
    check(&explain(&with("project=OPS")).await, 1, "", "is not JSON");
    check(
        &explain(&[&tool[..], &["--tool-method", "tools/list"], &back].concat()).await,
        0,
        "by `talk` at ",
        "",
    );
    let asked = |call: &'static str| [&model[..], &["--asks-for", call]].concat();
    check(&explain(&asked(r#"sh={"c":"ls"}"#)).await, 0, "allowed", "");
    check(
        &explain(&asked(r#"sh={"c":"rm -rf /"}"#)).await,
        5,
        "by `no-rm` at ",
        "by `receive`: policy_forbidden",
    );
    let of_address =
        ["policy", "explain", "a", "203.0.113.5:80", "--provider", "openai", "--policy", &policy];
    let of_address = run(config, &of_address);
    check(&of_address.await, 1, "", "go with a URL");
    check(&explain(&["--model", "gpt-5"]).await, 2, "", "--provider");
}

/// Which agents, hosts and requests, and not only which text.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_difference_is_told_for_whom_and_where() {
    let node = Node::new().start().await;
    let config = &node.config;
    let before = "@id(\"web\") permit (principal in Team::\"t\", action == Action::\"http\", resource == Host::\"api.test\") unless { context.path like \"/admin/*\" };\n";
    let after = before.replace("\"/admin/*\"", "\"/admin*\"").replace("@id(\"web\")", "@id(\"renamed\")");
    let (before, after) = (path(&node, "a.cedar", before), path(&node, "b.cedar", &after));
    run(config, &["agent", "create", "in", "--team", "t"]).await;
    run(config, &["agent", "create", "out"]).await;
    let told = run(config, &["policy", "diff", &before, &after]).await;
    check(&told, 0, "default/in", "");
    check(&told, 0, "path /adminany", "");
    let json: Value = parse(&run(config, &["policy", "diff", &before, &after, "-o", "json"]).await.stdout);
    let changes = json["requests"]["changes"].as_array().expect("changes");
    assert!(!changes.is_empty());
    for change in changes {
        assert_eq!(change["agents"], serde_json::json!(["default/in"]));
        assert_eq!(change["hosts"], serde_json::json!(["api.test"]));
        assert_eq!((&change["before"], &change["after"]), (&"allow".into(), &"policy_denied".into()));
    }
    let same = run(config, &["policy", "diff", &before, &before]).await;
    check(&same, 0, "all get the same answer", "");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replay_tells_of_other_effects() {
    let node = Node::new().start().await;
    let config = &node.config;
    let created = run(config, &["agent", "create", "a", "-o", "json"]).await;
    let agent: Agent =
        serde_json::from_value(parse::<Value>(&created.stdout)["agent"].clone()).expect("agent");
    let web = "@id(\"web\") permit (principal, action == Action::\"http\", resource);\n@id(\"net\") permit (principal, action == Action::\"connect\", resource);\n@id(\"pace\") @effect(\"rate-limit\") @limit(\"60 requests/minute\") permit (principal, action == Action::\"http\", resource);\n";
    let mut record =
        AuditRecord::new(jiff::Timestamp::now(), "test", RecordKind::Decision, Plane::L7, "r".into(), 1);
    record.agent = Some(AgentRef::new(&agent, IdentityMethod::ApiKey));
    record.verdict = Some(Verdict::Allow);
    record.action = Some("http".to_owned());
    record.policies = vec!["net".to_owned(), "web".to_owned()];
    record.destination.host = Some("api.test".to_owned());
    record.destination.ip = Some("203.0.113.5".parse().expect("address"));
    record.destination.port = Some(80);
    record.destination.method = Some("GET".to_owned());
    record.destination.path = Some("/x".to_owned());
    record.effects =
        vec![EffectRef { policy: "pace".to_owned(), effect: "rate-limit".to_owned(), severity: None }];
    let batch = AuditBatch { sequence: 0, records: vec![serde_json::to_vec(&record).expect("json")] };
    let acks = node.audit().append(tokio_stream::iter([batch])).await.expect("taken");
    assert!(acks.into_inner().message().await.expect("an answer").is_some(), "it is durable");

    let same = path(&node, "same.cedar", web);
    check(
        &run(config, &["policy", "replay", &same]).await,
        0,
        "1 the same, 0 the same by other policies, 0 with other effects",
        "",
    );
    let alert = format!(
        "{web}@id(\"odd\") @effect(\"alert\") permit (principal, action == Action::\"http\", resource);\n"
    );
    let alert = path(&node, "alert.cedar", &alert.replace("rate-limit", "throttle"));
    let told = run(config, &["policy", "replay", &alert]).await;
    check(&told, 0, "1 with other effects", "");
    let json: Value = parse(&run(config, &["policy", "replay", &alert, "-o", "json"]).await.stdout);
    let obliged = &json["obliged"][0];
    assert_eq!(obliged["before"], serde_json::json!(["rate-limit by pace"]));
    assert_eq!(obliged["after"], serde_json::json!(["alert by odd", "throttle by pace"]));
    assert_eq!((&obliged["agent"], &obliged["count"]), (&"default/a".into(), &1.into()));
}
