//! `--output json`: every verb prints JSON and nothing else, or says that its output is not its own to form.

use std::collections::BTreeSet;

use serde_json::Value;

use super::*;

/// What can't be tried in passing: these change or ask this host (`interception` and `trust_kit` of the end-to-end tests do), or
/// follow without end.
const ELSEWHERE: [&str; 4] = ["ca install", "ca uninstall", "ca check", "audit tail"];
/// What prints something of a form of its own.
const OWN: [&str; 2] = ["run", "completion"];

/// A trust domain's, whose key nobody has (RFC 8037, appendix A.1 has it).
const BUNDLE: &str = r#"{"keys":[{"kty":"OKP","crv":"Ed25519","use":"jwt-svid","kid":"k","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}"#;

/// All verbs, as `--help` lists them.
async fn verbs() -> BTreeSet<String> {
    let (mut found, mut open) = (BTreeSet::new(), vec![Vec::<String>::new()]);
    while let Some(verb) = open.pop() {
        let mut words: Vec<&str> = verb.iter().map(String::as_str).collect();
        words.push("--help");
        let help = ctl(Path::new("/nonexistent"), &words).output().await.expect("run");
        let help = String::from_utf8(help.stdout).expect("text");
        let listed = help.lines().skip_while(|line| *line != "Commands:").take_while(|line| !line.is_empty());
        // A verb stands behind two spaces, and more of what it does behind many.
        let names = listed.filter_map(|line| line.strip_prefix("  ")?.split(' ').next());
        let names: Vec<&str> = names.filter(|name| !name.is_empty() && *name != "help").collect();
        if names.is_empty() {
            found.insert(verb.join(" "));
        }
        open.extend(names.into_iter().map(|name| [verb.clone(), vec![name.to_owned()]].concat()));
    }
    found
}

/// The verbs of each kind of group.
fn groups() -> String {
    ["tenant", "team", "project", "environment"]
        .iter()
        .map(|kind| format!("{kind} create g\n{kind} list\n{kind} set g\n{kind} delete g\n"))
        .collect()
}

/// A line each, in an order in which they work.
fn lines(dir: &Path) -> String {
    let write = |name: &str, text: &str| {
        let path = dir.join(name);
        fs::write(&path, text).expect("write");
        path.to_str().expect("text").to_owned()
    };
    let policy =
        write("policy.cedar", "@id(\"a\") permit (principal, action == Action::\"http\", resource);\n");
    let cases = write(
        "cases.toml",
        "[[agent]]\nid = \"a\"\n[[case]]\nname = \"c\"\nagent = \"a\"\nto = \"http://api.test/\"\nexpect = \"deny\"\n",
    );
    let secret = write("secret", "sk-0123456789abcdef\n");
    let key = write("keys.json", &BUNDLE.replace("\"use\":\"jwt-svid\",", ""));
    let idp = "issuer = \"https://idp.test\"\naudiences = [\"g\"]\nalgorithms = [\"EdDSA\"]\n[mapping]\nagent = { from = \"sub\" }\n";
    let idp = write("idp.toml", idp);
    let bundle = write("bundle.json", BUNDLE);
    let domain = write("domain.toml", "domain = \"example.test\"\n[mapping]\nagent = { from = \"path\" }\n");
    let corporate = write("corporate.toml", "revocation = \"off\"\n[mapping]\nagent = { from = \"dns\" }\n");
    let authority = write("authority.pem", input::AUTHORITY);
    let (groups, trust) = (groups(), dir.join("trust").display().to_string());
    format!(
        "status
agent create a
agent list
agent show a
agent set a --label k=v
agent disable a
agent enable a
agent quarantine a
agent quarantines
agent release a
agent fingerprints a
{groups}key create a
key list
source add s --at lo=10.0.0.0/28,any-mac --may-present a
source list
source show s
source set s --may-present a
source remove s
provider-key create p --host api.test --value {secret}
provider-key rotate p --value {secret}
provider-key list
provider-key delete p
issuer set i --settings {idp} --keys {key}
issuer list
issuer show i
issuer delete i
authority set c --settings {corporate} --certificates {authority}
authority list
authority show c
authority delete c
trust-domain set t --settings {domain} --bundle {bundle}
trust-domain list
trust-domain show t
trust-domain delete t
ca show
ca export
ca env --directory {trust}
policy check {policy}
policy apply {policy} -m one
policy apply {policy} -m two
policy show
policy history
policy rollback -m three
policy signer
policy schema
policy test {cases}
policy diff 1
policy replay 1
policy explain a http://api.test/
geo status
geo reload
audit search
flows
drops
limits
metrics
agent delete a"
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_verb_prints_json_if_it_is_asked_to() {
    let node = Node::kernel_configured("[intercept]\n".to_owned()).start().await;
    let config = &node.config;
    let script = Arc::new(Script::default());
    let role = script.serve(config);
    until("the datapath to be reached", async || run(config, &["flows"]).await.status.success()).await;

    let mut left = verbs().await;
    assert!(left.len() > 70, "{left:?}");
    let mut said = Vec::new();
    for line in lines(node.dir.path()).lines() {
        let words: Vec<&str> = line.split(' ').collect();
        let output = run(config, &[&["-o", "json"], words.as_slice()].concat()).await;
        // Records are a line each.
        let values = serde_json::Deserializer::from_slice(&output.stdout).into_iter::<Value>();
        let printed = values.collect::<Result<Vec<_>, _>>().map(|values| values.len());
        if !matches!(printed, Ok(1..)) {
            let told = String::from_utf8_lossy(&output.stderr);
            said.push(format!("{line}: {printed:?}; {told}{}", String::from_utf8_lossy(&output.stdout)));
        }
        left.retain(|verb| !line.starts_with(verb.as_str()));
    }
    // These name what was made a moment ago.
    let created = run(config, &["-o", "json", "agent", "create", "b"]).await;
    let mut id = parse::<CreatedAgent>(&created.stdout).api_key.expect("key")[5..17].to_owned();
    for verb in ["rotate", "revoke"] {
        let output = run(config, &["-o", "json", "key", verb, &id]).await;
        let value: Value = parse(&output.stdout);
        id = value["id"].as_str().unwrap_or(&id).to_owned();
        left.remove(&format!("key {verb}"));
    }
    assert!(said.is_empty(), "{}", said.join("\n"));
    for verb in OWN {
        let mut words = vec!["-o", "json", verb];
        words.extend(if verb == "run" { ["--agent=a", "true"].as_slice() } else { ["bash"].as_slice() });
        check(&run(config, &words).await, 2, "", "`--output json` has no meaning with");
        left.remove(verb);
    }
    for verb in ELSEWHERE {
        assert!(left.remove(verb), "there is no `{verb}`");
    }
    assert!(left.is_empty(), "not tried: {left:?}");
    role.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_refused_names_its_file_and_line() {
    let dir = tempfile::tempdir().expect("directory");
    fs::write(
        dir.path().join("a.cedar"),
        "@id(\"a\") permit (principal, action == Action::\"http\", resource);\n",
    )
    .expect("write");
    let bad = dir.path().join("b.cedar");
    fs::write(
        &bad,
        "\n@id(\"b\") permit (principal, action == Action::\"http\", resource) when { context.nothing };\n",
    )
    .expect("write");
    for from in [&["--from", dir.path().to_str().expect("text")][..], &[bad.to_str().expect("text")]] {
        let words = [&["-o", "json", "policy", "check"], from].concat();
        let output = ctl(Path::new("/nonexistent"), &words).output().await.expect("run");
        assert_eq!(output.status.code(), Some(1));
        let told: Value = parse(&output.stdout);
        let finding = &told["findings"][0];
        assert_eq!((finding["file"].as_str(), finding["line"].as_u64()), (bad.to_str(), Some(2)), "{told:#}");
    }
}
