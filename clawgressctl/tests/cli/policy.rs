//! The verbs on policy, but for `check` and `show`.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use clawgress_agent::control::store::{RedbStore, StateStore as _, Transaction, Write};
use clawgress_api::proto::AuditBatch;
use clawgress_api::{AuditRecord, Plane, PolicyRevision, RecordKind};
use clawgress_policy::PolicyBundle;
use serde_json::Value;

use super::datapath::Script;
use super::node::{Node, parse, until};
use super::{GOOD, check, ctl, file, run};

const WEB: &str = "@id(\"web\")\npermit (principal in Team::\"t\", action == Action::\"http\", resource in HostSet::\"saas\");\n";
const ADMIN: &str = "@id(\"no-admin\")\nforbid (principal, action == Action::\"http\", resource)\nwhen { context.path like \"/admin*\" };\n";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_is_one_policy_and_each_problem_names_its_file() {
    let node = Node::new().start().await;
    let config = &node.config;
    let dir = node.dir.path().join("policies");
    fs::create_dir_all(dir.join("teams")).expect("directory");
    fs::write(dir.join("sets.toml"), "[hosts]\nsaas = [\"api.test\"]\n").expect("write");
    fs::write(dir.join("admin.cedar"), ADMIN).expect("write");
    let web = dir.join("teams/web.cedar");
    fs::write(&web, WEB).expect("write");
    let from = dir.to_str().expect("text");

    let dry = run(config, &["policy", "apply", "--from", from, "--dry-run"]).await;
    check(&dry, 0, "+ policy `no-admin`", "nothing was changed");
    check(&run(config, &["policy", "history"]).await, 0, "everything is denied", "");
    let applied = run(config, &["policy", "apply", "--from", from, "-m", "both"]).await;
    check(&applied, 0, "revision 1 is live", "");

    // A type error, an unfinished policy, and an id that another file has: each names its own file and line.
    let place = web.display();
    fs::write(&web, WEB.replace("\"http\"", "\"htpt\"")).expect("write");
    let refused = run(config, &["policy", "apply", "--from", from, "-m", "x"]).await;
    check(&refused, 1, "", &format!("{place}:2:"));
    check(&refused, 1, "", "^");
    fs::write(dir.join("admin.cedar"), "permit (").expect("write");
    let refused = run(config, &["policy", "check", "--from", from]).await;
    check(&refused, 1, "", &format!("{}:1:", dir.join("admin.cedar").display()));
    fs::write(dir.join("admin.cedar"), ADMIN).expect("write");
    fs::write(&web, format!("// again\n{ADMIN}")).expect("write");
    check(
        &run(config, &["policy", "check", "--from", from]).await,
        1,
        "",
        &format!("{place}:2:1: policy `no-admin`"),
    );
    check(&run(config, &["policy", "check", "--from", "/nonexistent"]).await, 1, "", "cannot read");
    let shown: PolicyRevision<PolicyBundle> =
        parse(&run(config, &["policy", "show", "-o", "json"]).await.stdout);
    assert_eq!(shown.number, 1, "nothing of this was applied");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rollback_is_a_new_revision() {
    let node = Node::new().start().await;
    let config = &node.config;
    let sets = file(&node, "sets.toml", "[hosts]\nsaas = [\"api.test\"]\n");
    let (one, two) = (file(&node, "1.cedar", WEB), file(&node, "2.cedar", ADMIN));
    let text = |path: &Path| path.to_str().expect("text").to_owned();
    let (one, two, sets) = (text(&one), text(&two), text(&sets));
    check(&run(config, &["policy", "rollback"]).await, 1, "", "no policy has been applied yet");
    check(&run(config, &["policy", "apply", &one, "--sets", &sets, "-m", "one"]).await, 0, "revision 1", "");
    check(&run(config, &["policy", "rollback"]).await, 1, "", "is the first");
    check(&run(config, &["policy", "apply", &two, "-m", "two"]).await, 0, "revision 2", "");
    check(&run(config, &["policy", "rollback", "2"]).await, 1, "", "revision 2 is live already");
    check(&run(config, &["policy", "rollback", "9"]).await, 1, "", "there is no revision 9");
    check(&run(config, &["policy", "rollback", "-m", "too much"]).await, 0, "revision 3 is live", "");
    let history: Vec<PolicyRevision<PolicyBundle>> =
        parse(&run(config, &["policy", "history", "-o", "json"]).await.stdout);
    let [third, second, first] = history.as_slice() else { panic!("{history:?}") };
    assert_eq!((third.number, third.parent, second.parent, first.parent), (3, 2, 1, 0));
    assert_eq!(third.hash, first.hash, "the sets came back too");
    assert_eq!(third.message, "roll back to revision 1: too much");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn test_diff_and_explain() {
    let node = Node::new().start().await;
    let config = &node.config;
    let sets = file(&node, "sets.toml", "[hosts]\nsaas = [\"api.test\"]\n");
    let policy = file(&node, "p.cedar", &format!("{WEB}{ADMIN}"));
    let cases = |expect: &str| {
        format!(
            "[[agent]]\nid = \"a\"\nteam = \"t\"\n[[case]]\nname = \"admin\"\nagent = \"a\"\nto = \"http://api.test/admin\"\nexpect = \"{expect}\"\nreason = \"policy_forbidden\"\npolicies = [\"no-admin\"]\n"
        )
    };
    let (good, bad) = (file(&node, "good.toml", &cases("deny")), file(&node, "bad.toml", &cases("allow")));
    let text = |path: &Path| path.to_str().expect("text").to_owned();
    let (policy, sets, good, bad) = (text(&policy), text(&sets), text(&good), text(&bad));

    // Offline.
    let nowhere = Path::new("/nonexistent/admin.sock");
    let offline = |cases: &str| {
        ctl(nowhere, &["policy", "test", cases, "--policy", &policy, "--sets", &sets, "-o", "json"])
    };
    let passed = offline(&good).output().await.expect("run");
    check(&passed, 0, "\"differences\": []", "");
    let failed = offline(&bad).output().await.expect("run");
    check(&failed, 1, "\"wanted\": \"allow\"", "1 of 1 cases failed");
    // The same as YAML, and what is wrong there with its place.
    let yaml = "agent:\n- {id: a, team: t}\ncase:\n- name: admin\n  agent: a\n  to: http://api.test/admin\n  expect: deny\n  policies: [no-admin]\n";
    let asked = offline(&text(&file(&node, "cases.yaml", yaml))).output().await.expect("run");
    check(&asked, 0, "\"differences\": []", "");
    for (from, to, place, said) in [
        ("expect: deny", "expects: deny", "bad.yml:7:3: ", "expects"),
        ("expect: deny", "expect: maybe", "bad.yml:7:11: ", "maybe"),
        ("[no-admin]", "[no-admin", "bad.yml:", ""),
        ("api.test/admin", "api.test:99999/", "bad.yml:4:3: case `admin`: ", "`99999` is not a port"),
        ("agent: a\n", "agent: a\n  agent: a\n", "bad.yml:6:3: ", "agent"),
    ] {
        let bad = text(&file(&node, "bad.yml", &yaml.replacen(from, to, 1)));
        let refused = offline(&bad).output().await.expect("run");
        check(&refused, 1, "", place);
        check(&refused, 1, "", said);
        check(&refused, 1, "", "^");
    }
    // What only asking tells has the place of its case.
    let wrong = cases("deny").replacen("api.test/admin", "api.test:99999/", 1);
    let refused = offline(&text(&file(&node, "wrong.toml", &wrong))).output().await.expect("run");
    check(&refused, 1, "", "wrong.toml:4:1: case `admin`: `http://api.test:99999/`: `99999` is not a port");
    check(&refused, 1, "", "  4 | [[case]]\n    | ^");

    run(config, &["agent", "create", "a", "--team", "t"]).await;
    check(&run(config, &["policy", "apply", &policy, "--sets", &sets, "-m", "x"]).await, 0, "revision 1", "");
    check(&run(config, &["policy", "test", &bad]).await, 1, "- verdict: allow", "1 of 1 cases failed");
    check(&run(config, &["policy", "test", &good]).await, 0, "1 passed, 0 failed", "");

    let explained = run(config, &["policy", "explain", "a", "http://api.test/admin"]).await;
    check(
        &explained,
        5,
        "denied: policy_forbidden (decided by `http`)",
        "it would be denied by `http`: policy_forbidden",
    );
    check(&explained, 5, "by `no-admin` at revision 1:4", "it would be denied by `http`: policy_forbidden");
    check(&explained, 5, "4 | forbid (principal", "it would be denied by `http`: policy_forbidden");
    let explained = run(config, &["policy", "explain", "a", "http://api.test/x", "-o", "json"]).await;
    assert_eq!(explained.status.code(), Some(6), "its address is not known");
    let json: Value = parse(&explained.stdout);
    assert_eq!(
        (json["allowed"].as_bool(), json["phases"][0]["policies"][0].as_str()),
        (Some(true), Some("web"))
    );
    check(&run(config, &["policy", "explain", "b", "http://api.test/x"]).await, 1, "", "there is no agent");
    check(&run(config, &["policy", "explain", "a", "api.test"]).await, 1, "", "neither a URL nor an address");

    let reach = "@id(\"reach\") permit (principal, action == Action::\"connect\", resource)\nwhen { context.ip.isInRange(ip(\"203.0.113.0/24\")) && context.port == 443 && context.protocol == \"tcp\" };\n";
    let more = text(&file(&node, "more.cedar", &format!("{WEB}{reach}")));
    let diff = run(config, &["policy", "diff", "1", &more, "--second-sets", &sets]).await;
    check(&diff, 0, "- policy `no-admin`", "");
    check(&diff, 0, "+ policy `reach`", "");
    check(&diff, 0, "203.0.113.0 - 203.0.113.255", "");
    let same = run(config, &["policy", "diff", "1"]).await;
    check(&same, 0, "registered agents reach the same addresses", "");
}

/// What is proven to do nothing is applied where somebody says so by name; that is signed, shown and in the audit log.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn findings_are_accepted_by_name_and_that_is_kept() {
    let node = Node::new().start().await;
    let config = &node.config;
    let text = |path: &Path| path.to_str().expect("text").to_owned();
    let normal = "@id(\"web\")\npermit (principal, action == Action::\"http\", resource);\n@id(\"api\")\npermit (principal, action == Action::\"http\", resource)\nwhen { context.path == \"/api\" };\n";
    let stop = format!("{normal}@id(\"stop\")\nforbid (principal, action == Action::\"http\", resource);\n");
    let (normal, stop) =
        (text(&file(&node, "normal.cedar", normal)), text(&file(&node, "stop.cedar", &stop)));
    check(&run(config, &["policy", "apply", &normal, "-m", "as usual"]).await, 0, "revision 1 is live", "");
    let apply = async |more: &[&str]| {
        run(config, &[&["policy", "apply", &stop, "-m", "stop"][..], more].concat()).await
    };
    let refused = apply(&[]).await;
    check(
        &refused,
        1,
        "",
        "stop.cedar:1:1: policy `web`: wherever it matches, so does `stop`, which forbids",
    );
    check(&refused, 1, "", "or accept it (`--accept-findings covered-by-forbid:web`)");
    check(&refused, 1, "", "2 problems; nothing was changed");
    check(&apply(&["--accept-findings", "covered-by-forbid:web"]).await, 1, "", "policy `api`: wherever");
    check(&apply(&["--accept-findings", "invalid"]).await, 2, "", "what is invalid can't be accepted");
    check(&apply(&["--accept-findings", "covered"]).await, 2, "", "is no finding");
    let broken = text(&file(
        &node,
        "broken.cedar",
        "@id(\"x\")\npermit (principal, action == Action::\"fly\", resource);\n",
    ));
    let accepting = [
        "policy",
        "apply",
        &broken,
        "-m",
        "x",
        "--accept-findings",
        "covered-by-forbid,never-matches,not-enforced",
    ];
    check(&run(config, &accepting).await, 1, "", "broken.cedar:2:");
    let both = "covered-by-forbid:web,covered-by-forbid:api,never-matches";
    let checked = run(config, &["policy", "check", &stop, "--accept-findings", both]).await;
    check(&checked, 0, "is valid", "accepted: ");
    check(
        &apply(&["--dry-run", "--accept-findings", both]).await,
        0,
        "+ policy `stop`",
        "nothing was changed",
    );
    let applied = apply(&["--accept-findings", both]).await;
    check(&applied, 0, "revision 2 is live", "accepted: ");
    check(&applied, 0, "", "there is no finding `never-matches`: nothing is accepted by it");

    let shown: PolicyRevision<PolicyBundle> =
        parse(&run(config, &["policy", "show", "-o", "json"]).await.stdout);
    assert_eq!(shown.accepted, ["covered-by-forbid:api", "covered-by-forbid:web"]);
    assert_eq!(shown.standing, Some(clawgress_api::Standing::Signed));
    let note = "accepted that it does nothing: covered-by-forbid:api, covered-by-forbid:web";
    check(&run(config, &["policy", "show"]).await, 0, "@id(\"stop\")", note);
    check(&run(config, &["policy", "history"]).await, 0, "covered-by-forbid:api covered-by-forbid:web", "");
    let changes = run(config, &["audit", "search", "--kind", "change"]).await;
    check(
        &changes,
        0,
        "stop; accepted that it does nothing: covered-by-forbid:web, covered-by-forbid:api",
        "",
    );

    // Back, and to the stop again: what it was applied with counts again, of a kind or by name.
    check(&run(config, &["policy", "rollback"]).await, 0, "revision 3 is live", "");
    check(&run(config, &["policy", "rollback", "2"]).await, 0, "revision 4 is live", "accepted: ");
    let history: Vec<PolicyRevision<PolicyBundle>> =
        parse(&run(config, &["policy", "history", "-o", "json"]).await.stdout);
    let kept: Vec<_> = history.iter().map(|r| (r.number, r.accepted.len(), r.standing)).collect();
    let holds = Some(clawgress_api::Standing::Signed);
    assert_eq!(kept, [(4, 2, holds), (3, 0, holds), (2, 2, holds), (1, 0, holds)]);
}

/// 0 is for what passes, 5 for what is denied, and 6 where that is not known.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn explain_exits_with_what_is_known() {
    let node = Node::new().start().await;
    let config = &node.config;
    let policy = "@id(\"http\")\npermit (principal, action == Action::\"http\", resource == Host::\"api.test\");\n@id(\"net\")\npermit (principal, action == Action::\"connect\", resource)\nwhen { context.ip.isInRange(ip(\"203.0.113.0/24\")) };\n@id(\"dns\")\npermit (principal, action == Action::\"direct\", resource)\nwhen { context.port == 53 && context.protocol == \"udp\" };\n";
    let policy = file(&node, "p.cedar", policy);
    run(config, &["agent", "create", "a"]).await;
    let policy = policy.to_str().expect("text");
    check(&run(config, &["policy", "apply", policy, "-m", "x"]).await, 0, "revision 1", "");
    let explain = async |more: &[&str]| run(config, &[&["policy", "explain", "a"][..], more].concat()).await;
    let open = explain(&["http://api.test/"]).await;
    check(
        &open,
        6,
        "allowed as far as it was asked (decided by `http`)",
        "nothing that was asked denies it, but `connect` may",
    );
    check(&open, 6, "", "name one with --address");
    let json: Value = parse(&explain(&["http://api.test/", "-o", "json"]).await.stdout);
    assert_eq!((json["allowed"].as_bool(), json["unasked"][0].as_str()), (Some(true), Some("connect")));
    let passes = explain(&["http://api.test/", "--address", "203.0.113.1"]).await;
    check(&passes, 0, "allowed (decided by `connect`)", "");
    check(&explain(&["http://api.test/", "--address", "198.51.100.1"]).await, 5, "denied: policy_denied", "");
    check(&explain(&["http://other.test/"]).await, 5, "denied: policy_denied (decided by `http`)", "");
    // What is handed to the proxy is asked more there; what the kernel forwards is not.
    check(&explain(&["203.0.113.1:443"]).await, 6, "allowed as far as", "but `tls`, `tunnel`, `http` may");
    check(&explain(&["203.0.113.1:53", "--protocol", "udp"]).await, 0, "allowed (decided by `direct`)", "");
    check(&run(config, &["agent", "quarantine", "a", "--for", "1h"]).await, 0, "", "");
    let quarantined = explain(&["http://api.test/", "--address", "203.0.113.1"]).await;
    check(
        &quarantined,
        5,
        "denied: agent_quarantined (decided by `identity`)",
        "as if the agent were active",
    );
    let help = run(config, &["--help"]).await;
    check(&help, 0, "6  `policy explain`: not known", "");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revision_that_was_altered_in_the_store_is_told_and_not_rolled_back_to() {
    let mut node = Node::new().start().await;
    let (one, two) = (file(&node, "1.cedar", ADMIN), file(&node, "2.cedar", "// nothing\n"));
    for path in [&one, &two] {
        let path = path.to_str().expect("text");
        check(&run(&node.config, &["policy", "apply", path, "-m", "x"]).await, 0, "is live", "");
    }
    check(&run(&node.config, &["policy", "history"]).await, 0, "holds", "");
    let signer = run(&node.config, &["policy", "signer"]).await;
    check(&signer, 0, "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEA", "");

    node.stop_control().await;
    let path = node.config.node.state_dir.join("control").join("state.redb");
    let store = RedbStore::open(&path).expect("opened");
    let key = format!("bundle/{:020}", 1);
    let bundle = store.read(&key, None).await.expect("read").entries.pop().expect("bundle").value;
    let bundle = String::from_utf8(bundle).expect("text").replace("/admin*", "/nothing*");
    let writes = vec![Write::Put(key, bundle.into())];
    store.commit(Transaction { conditions: vec![], writes }).await.expect("written");
    drop(store);
    node.start_control().await;
    let config = &node.config;
    check(&run(config, &["policy", "history"]).await, 0, "ALTERED", "");
    check(&run(config, &["policy", "show", "1"]).await, 0, "/nothing*", "its signature does not hold");
    for verb in [&["policy", "rollback", "1"][..], &["policy", "diff", "1"]] {
        check(&run(config, verb).await, 1, "", "revision 1 is not used: its signature does not hold");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lint_refuses_what_it_proves_and_tells_what_it_suspects() {
    let node = Node::new().start().await;
    let config = &node.config;
    let path = |name: &str, text: &str| file(&node, name, text).to_str().expect("text").to_owned();
    let nowhere = Path::new("/nonexistent/admin.sock");
    let dead = path(
        "dead.cedar",
        "@id(\"all\")\nforbid (principal, action == Action::\"http\", resource);\n@id(\"get\")\npermit (principal, action == Action::\"http\", resource)\nwhen { context.method == \"GET\" };\n",
    );
    // The same words offline, on the node, and from what would apply it.
    let words =
        format!("{dead}:3:1: policy `get`: wherever it matches, so does `all`, which forbids: narrow");
    let offline = ctl(nowhere, &["policy", "check", &dead]).output().await.expect("run");
    check(&offline, 1, "", &words);
    check(&offline, 1, "", "3 | @id(\"get\")");
    check(&run(config, &["policy", "check", "--node", &dead]).await, 1, "", &words);
    check(&run(config, &["policy", "apply", &dead, "-m", "x"]).await, 1, "", &words);
    let json = ctl(nowhere, &["policy", "check", &dead, "-o", "json"]).output().await.expect("run");
    check(&json, 1, "", &words);
    let found: Value = parse(&json.stdout);
    let first = &found["findings"][0];
    let told = (first["severity"].as_str(), first["lint"].as_str(), first["line"].as_u64());
    assert_eq!(told, (Some("error"), Some("covered-by-forbid"), Some(3)), "{found}");
    check(&run(config, &["policy", "history"]).await, 0, "everything is denied", "");

    let tool = path("tool.cedar", "@id(\"m\") forbid (principal, action == Action::\"tool\", resource);\n");
    let suspected = "policy `m`: a guard that names `tool` has it asked of each message to a tool server, and no policy permits it";
    check(&run(config, &["policy", "check", "--node", &tool]).await, 0, "", suspected);
    let schema = ctl(nowhere, &["policy", "schema"]).output().await.expect("run");
    check(&schema, 0, "action llm in", "");
    let schema: Value =
        parse(&ctl(nowhere, &["policy", "schema", "-o", "json"]).output().await.expect("run").stdout);
    assert!(schema[""]["actions"]["llm"].is_object(), "{schema}");

    // What depends on the agents there are is a warning, and applied.
    let typo = path(
        "typo.cedar",
        "@id(\"web\")\npermit (principal in Team::\"reserch\", action == Action::\"http\", resource);\n",
    );
    let words =
        format!("warning: {typo}:2:22: policy `web`: no registered agent is in `Team::\"default/reserch\"`");
    check(&run(config, &["policy", "check", &typo]).await, 0, "is valid", "");
    check(&run(config, &["policy", "check", "--node", &typo]).await, 0, "is valid", &words);
    check(&run(config, &["policy", "apply", &typo, "-m", "x"]).await, 0, "revision 1 is live", &words);
    let json = run(config, &["policy", "apply", &typo, "-m", "x", "-o", "json"]).await;
    let found: Value = parse(&json.stdout);
    let told = (found["number"].as_u64(), found["findings"][0]["lint"].as_str());
    assert_eq!(told, (Some(2), Some("unknown-principal")), "{found}");
    run(config, &["agent", "create", "a", "--team", "reserch"]).await;
    let quiet = run(config, &["policy", "check", "--node", &typo]).await;
    assert_eq!(String::from_utf8_lossy(&quiet.stderr), "");
}

/// The platform's policy and a tenant's: each by its verbs, and both in what is asked.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_platforms_policy_and_a_tenants() {
    let node = Node::new().start().await;
    let config = &node.config;
    let text = |path: &Path| path.to_str().expect("text").to_owned();
    let (own, platform) = two_policies(&node);
    check(&run(config, &["policy", "history", "--platform"]).await, 0, "it restricts nothing", "");
    check(&run(config, &["policy", "history", "--tenant", "acme"]).await, 0, "everything is denied", "");
    check(
        &run(config, &["policy", "show", "--platform"]).await,
        1,
        "",
        "no policy of the platform has been applied yet",
    );
    run(config, &["agent", "create", "acme/bot"]).await;
    run(config, &["agent", "create", "web"]).await;
    let applied = run(config, &["policy", "apply", "--platform", &platform, "-m", "x"]).await;
    check(&applied, 0, "revision 1 of the platform is live", "");
    let applied = run(config, &["policy", "apply", &own, "--tenant", "acme", "-m", "x"]).await;
    check(
        &applied,
        0,
        "revision 1 of tenant `acme` is live",
        "policy `gone`: wherever it matches, `never` of the platform's policy",
    );
    let refused = run(config, &["policy", "apply", &own, "--tenant", "nobodys", "-m", "x"]).await;
    check(&refused, 1, "", "there is no tenant `nobodys`");
    // Everywhere it is seen what stands above, and for machines too.
    let status = run(config, &["status"]).await;
    check(&status, 0, "platform's policy  revision 1", "");
    check(&status, 0, "tenants' policies  acme revision 1", "");
    let json: Value = parse(&run(config, &["status", "-o", "json"]).await.stdout);
    assert_eq!(json["policies"], serde_json::json!({ "platform": 1, "tenant/acme": 1 }), "{json}");
    let history = run(config, &["policy", "history", "--platform", "-o", "json"]).await;
    let json: Value = parse(&history.stdout);
    assert_eq!((&json[0]["owner"], &json[0]["number"]), (&"platform".into(), &1.into()), "{json}");
    let shown = run(config, &["policy", "show", "--platform", "-o", "json"]).await;
    let json: Value = parse(&shown.stdout);
    assert_eq!((&json["owner"], &json["standing"]), (&"platform".into(), &"signed".into()), "{json}");
    check(&run(config, &["policy", "show", "--tenant", "A"]).await, 1, "", "");
    check(&run(config, &["policy", "schema", "--platform"]).await, 1, "", "leave `--tenant`");
    check(
        &run(config, &["policy", "show", "--platform"]).await,
        0,
        "forbid (principal",
        "revision 1 of the platform",
    );
    check(&run(config, &["policy", "show"]).await, 1, "", "no policy has been applied yet");

    // What both say, and what each says alone.
    let never = run(config, &["policy", "explain", "acme/bot", "http://api.test/never"]).await;
    let why = "it would be denied by `http`: policy_forbidden";
    check(&never, 5, "by `platform/never` at revision 1 of the platform:4", why);
    check(&never, 5, "the platform alone: deny (policy_forbidden) by platform/never", why);
    check(&never, 5, "the tenant alone: allow by gone, http", why);
    let may = run(config, &["policy", "explain", "acme/bot", "http://api.test/x", "-o", "json"]).await;
    let json: Value = parse(&may.stdout);
    assert_eq!(json["phases"][0]["policies"], serde_json::json!(["http", "platform/all"]), "{json}");
    let other = run(config, &["policy", "explain", "web", "http://api.test/x", "--policy", &own]).await;
    check(&other, 6, "by `platform/all`", "");
    let other = run(config, &["policy", "explain", "web", "http://api.test/x", "--tenant", "acme"]).await;
    check(&other, 1, "", "no policy of tenant `acme` is asked about it");
    // A platform's that is not live, above the tenant's that is.
    let stricter = text(&file(&node, "stricter.cedar", "// nothing at all\n"));
    let asked = ["policy", "explain", "acme/bot", "http://api.test/x", "--platform", "--policy", &stricter];
    check(&run(config, &asked).await, 5, "the platform alone: deny (policy_denied)", "policy_denied");
    let dry = run(config, &["policy", "apply", "--platform", &stricter, "--dry-run"]).await;
    check(&dry, 0, "- policy `all`", "nothing was changed");

    check(&run(config, &["policy", "rollback", "--platform"]).await, 1, "", "revision 1 is the first");
    let named = text(&file(
        &node,
        "named.cedar",
        "@id(\"a\")\npermit (principal in Tenant::\"default\", action, resource);\n",
    ));
    for more in [&["--tenant", "acme"][..], &["--tenant", "acme", "--node"]] {
        let refused = run(config, &[&["policy", "check", &named][..], more].concat()).await;
        check(&refused, 1, "", "named.cedar:2:");
        check(&refused, 1, "", "is asked of its own agents alone");
    }
    check(&run(config, &["policy", "check", &named, "--platform"]).await, 0, "is valid", "");
}

/// Files of a tenant's policy and of the platform's, which leaves nothing of `gone`.
fn two_policies(node: &Node) -> (String, String) {
    let text = |path: &Path| path.to_str().expect("text").to_owned();
    let own = text(&file(
        node,
        "own.cedar",
        "@id(\"http\")\npermit (principal, action == Action::\"http\", resource);\n@id(\"gone\")\npermit (principal, action == Action::\"http\", resource)\nwhen { context.path == \"/never\" };\n",
    ));
    let platform = text(&file(
        node,
        "platform.cedar",
        "@id(\"all\")\npermit (principal, action, resource);\n@id(\"never\")\nforbid (principal, action == Action::\"http\", resource)\nwhen { context.path == \"/never\" };\n",
    ));
    (own, platform)
}

/// Cases of a tenant's policy, alone and under the platform's, without a node.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cases_of_a_tenants_policy() {
    let node = Node::new();
    let text = |path: &Path| path.to_str().expect("text").to_owned();
    let (own, platform) = two_policies(&node);
    // Cases, without a node.
    let cases = |expect: &str, policies: &str| {
        format!(
            "[[agent]]\nid = \"acme/bot\"\n[[case]]\nagent = \"acme/bot\"\nto = \"http://api.test/never\"\nexpect = \"{expect}\"\npolicies = [{policies}]\n"
        )
    };
    let alone = text(&file(&node, "alone.toml", &cases("allow", "\"gone\", \"http\"")));
    let under = text(&file(&node, "under.toml", &cases("deny", "\"platform/never\"")));
    let nowhere = Path::new("/nonexistent/admin.sock");
    let test = |cases: &str, more: &[&str]| {
        let args = [&["policy", "test", cases, "--policy", &own][..], more].concat();
        ctl(nowhere, &args)
    };
    let passed = test(&alone, &["--tenant", "acme"]).output().await.expect("run");
    check(&passed, 0, "1 passed", "");
    let passed = test(&under, &["--tenant", "acme", "--under", &platform]).output().await.expect("run");
    check(&passed, 0, "1 passed", "");
    let failed = test(&alone, &[]).output().await.expect("run");
    check(&failed, 1, "", "no policy of tenant `default` is asked about `acme/bot`");
}

/// What is live and not everywhere is no failure, and not what a script should take for done.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plane_that_is_behind_has_an_exit_code_of_its_own() {
    let node = Node::kernel().start().await;
    let config = &node.config;
    let policy = file(&node, "p.cedar", GOOD);
    let sets = file(&node, "s.toml", "[hosts]\nsaas = [\"a.test\"]\n");
    let (policy, sets) = (policy.to_string_lossy().into_owned(), sets.to_string_lossy().into_owned());
    let apply = ["policy", "apply", &policy, "--sets", &sets, "-m", "x"];
    let told = run(config, &apply).await;
    check(
        &told,
        7,
        "revision 1 is live in generation 1",
        "revision 1 is live, and not everywhere yet: the kernel plane",
    );
    check(&told, 7, "behind, away: the kernel plane: the datapath role can't be reached (", "");
    let json = run(config, &[&apply[..], &["-o", "json"]].concat()).await;
    check(&json, 7, "", "");
    let json: serde_json::Value = parse(&json.stdout);
    assert_eq!((&json["number"], &json["behind"][0]["plane"]), (&2.into(), &"kernel".into()), "{json}");
    assert_eq!(json["running"], serde_json::json!([]));
    check(&run(config, &["policy", "rollback", "1"]).await, 7, "revision 3 is live", "not everywhere yet");

    let script = Arc::new(Script::default());
    let _role = script.serve(config);
    until("the kernel plane", async || run(config, &apply).await.status.code() == Some(0)).await;
    check(&run(config, &apply).await, 0, "  runs it: the kernel plane", "");
}

/// Of those who apply at once what they wrote for the same revision, one does, and nobody is undone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_written_for_another_revision_is_refused() {
    let node = Node::new().start().await;
    let config = &node.config;
    let policy = file(&node, "p.cedar", WEB);
    let sets = file(&node, "s.toml", "[hosts]\nsaas = [\"a.test\"]\n");
    let (policy, sets) = (policy.to_string_lossy().into_owned(), sets.to_string_lossy().into_owned());
    let apply = async |parent: &str| {
        run(config, &["policy", "apply", &policy, "--sets", &sets, "-m", "x", "--parent", parent]).await
    };
    check(&apply("1").await, 1, "", "no revision is live, and this was to follow revision 1");
    check(&apply("0").await, 0, "revision 1 is live", "");
    let refused = apply("0").await;
    check(&refused, 1, "", "revision 1 is live, and this was to follow no revision; nothing was changed");
    check(&refused, 1, "", "--parent 1");
    let (a, b, c) = tokio::join!(apply("1"), apply("1"), apply("1"));
    let mut codes = [a.status.code(), b.status.code(), c.status.code()];
    codes.sort_unstable();
    assert_eq!(codes, [Some(0), Some(1), Some(1)]);
    check(&run(config, &["policy", "rollback", "1"]).await, 0, "revision 3 is live", "");
    check(&apply("2").await, 1, "", "revision 3 is live, and this was to follow revision 2");
}

/// What a limit leaves out of a replay is told: who reads "nothing changed" must know of how much.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replay_tells_what_its_limit_left_out() {
    let node = Node::new().start().await;
    let config = &node.config;
    let policy = file(&node, "p.cedar", WEB);
    let sets = file(&node, "s.toml", "[hosts]\nsaas = [\"a.test\"]\n");
    let (policy, sets) = (policy.to_string_lossy().into_owned(), sets.to_string_lossy().into_owned());
    let records = (0..3).map(|n| {
        let time = "2026-11-26T12:00:00Z".parse().expect("time");
        let record = AuditRecord::new(time, "test", RecordKind::Decision, Plane::L7, format!("r-{n}"), 1);
        serde_json::to_vec(&record).expect("json")
    });
    let batch = AuditBatch { sequence: 0, records: records.collect() };
    let acks = node.audit().append(tokio_stream::iter([batch])).await.expect("taken");
    assert!(acks.into_inner().message().await.expect("an answer").is_some(), "they are durable");
    let replay = async |limit: &str, output: &str| {
        run(config, &["policy", "replay", &policy, "--sets", &sets, "-n", limit, "-o", output]).await
    };
    check(
        &replay("2", "table").await,
        0,
        "0 decisions",
        "note: 1 older records were left out: raise --limit",
    );
    for (limit, left_out) in [("1", 2), ("2", 1), ("3", 0), ("9", 0)] {
        let json: Value = parse(&replay(limit, "json").await.stdout);
        assert_eq!(
            (&json["left_out"], &json["left_out_is_least"]),
            (&left_out.into(), &false.into()),
            "{limit}"
        );
    }
}
