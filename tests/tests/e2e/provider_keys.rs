//! Keys of providers that no agent holds: given to the gateway, sealed there, and added on the way out.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use clawgress_e2e::clients;
use clawgress_e2e::lab::{GatewayOptions, Host, Lab};
use clawgress_e2e::plan::{GATEWAY, LLM, PROXY_PORT};
use clawgress_e2e::scenario::{ASSISTANT, POLICY, SETS, Site};

use crate::support::{agent, denied, finish, record, to_host};

/// Nothing else in the lab says this.
const FIRST: &str = "sk-lab-4d1f0c7e-of-the-provider";
const SECOND: &str = "sk-lab-93b2a655-of-the-provider";
const THIRD: &str = "sk-lab-c04e19da-of-the-provider";

const BROKERED: &str = r#"
@id("openai-key") @effect("transform") @inject("Authorization: Bearer {openai}")
permit (principal in Team::"research", action == Action::"http", resource == Host::"llm.allowed.test");
"#;

const SCRIPT: &str = r"
import sys
import openai
client = openai.OpenAI(base_url=sys.argv[1], api_key=sys.argv[2], max_retries=0, timeout=10)
try:
    asked = {'model': 'mock-1', 'messages': [{'role': 'user', 'content': 'What?'}]}
    print(client.chat.completions.create(**asked).usage.total_tokens)
except openai.APIStatusError as error:
    print(error.response.headers['x-clawgress-reason'])
";

/// What curl writes out of an answer.
const REASON: &str = "%header{x-clawgress-reason}";

/// Files below `directory` that have these bytes in them.
fn holding(directory: &Path, bytes: &[u8]) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let entry = entry.unwrap();
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            found.extend(holding(&entry.path(), bytes));
        } else if kind.is_file() {
            let text = std::fs::read(entry.path()).unwrap_or_default();
            if text.windows(bytes.len()).any(|w| w == bytes) {
                found.push(entry.path().display().to_string());
            }
        }
    }
    found
}

#[test]
fn a_provider_sees_its_own_key_and_the_agent_never_does() {
    let lab = Lab::builder().start().unwrap();
    let ca = lab.ca().display().to_string();
    let more = format!(
        "[[endpoint]]\nname = \"llm\"\nupstream = \"https://{LLM}\"\nca = \"{ca}\"\n\
         [[endpoint]]\nname = \"clear\"\nupstream = \"http://{LLM}\"\n"
    );
    let mut site = Site::start(lab, GatewayOptions { more, ..GatewayOptions::default() }).unwrap();
    site.gateway.apply_policy(&format!("{POLICY}{BROKERED}"), SETS).unwrap();
    let python = clients::python().unwrap();
    let ask = |site: &Site, endpoint: &str| {
        let base = format!("http://{}:{PROXY_PORT}/{endpoint}/v1", GATEWAY.v4);
        let args = [python.to_str().unwrap(), "-c", SCRIPT, &base, &site.assistant_key];
        let output = site.gateway.lab.run(Host::Anon, &args).unwrap();
        assert!(output.ok(), "{output:?}");
        output.stdout.trim().to_owned()
    };
    let ctl = |site: &Site, args: &[&str]| site.gateway.ctl(args).unwrap();
    // A rule that names a key which is not there does not silently do nothing.
    assert_eq!(ask(&site, "llm"), "provider_key_unavailable");
    assert!(site.gateway.lab.world().unwrap().requests.is_empty());
    let file = std::env::temp_dir().join(format!("clawgress-provider-key-{}", std::process::id()));
    let write = |value: &str| {
        std::fs::write(&file, format!("{value}\n")).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    };
    let path = file.to_str().unwrap();
    write(FIRST);
    let create = ["provider-key", "create", "openai", "--host", LLM, "--value", path];
    let created = ctl(&site, &create).check().unwrap();
    assert!(created.stdout.contains("version 1") && !created.stdout.contains(FIRST), "{created:?}");
    assert!(!ctl(&site, &create).ok(), "another would take its place unasked");
    assert_eq!(ask(&site, "llm"), "18");
    write(SECOND);
    ctl(&site, &["provider-key", "rotate", "openai", "--value", path]).check().unwrap();
    assert_eq!(ask(&site, "llm"), "18");
    // What would be sent back with all its fields does not go.
    let (url, own) = (
        format!("http://{}:{PROXY_PORT}/llm/v1/models", GATEWAY.v4),
        format!("Authorization: Bearer {}", site.assistant_key),
    );
    let trace = ["curl", "-s", "-X", "TRACE", "-H", &own, "-o", "/dev/null", "-w", REASON, &url];
    let trace = site.gateway.lab.run(Host::Anon, &trace).unwrap();
    assert_eq!(trace.stdout, "provider_key_unavailable", "{trace:?}");
    // In clear it does not go, and to other hosts neither.
    assert_eq!(ask(&site, "clear"), "provider_key_unavailable");
    ctl(&site, &["provider-key", "rotate", "openai", "--host", "elsewhere.test", "--value", path])
        .check()
        .unwrap();
    assert_eq!(ask(&site, "llm"), "provider_key_unavailable");
    let listed = ctl(&site, &["provider-key", "list", "-o", "json"]).check().unwrap().stdout;
    assert!(listed.contains("\"version\": 3") || listed.contains("\"version\":3"), "{listed}");
    ctl(&site, &["provider-key", "delete", "openai"]).check().unwrap();
    assert_eq!(ask(&site, "llm"), "provider_key_unavailable");
    // Another of the same name is another, of whatever version.
    write(THIRD);
    ctl(&site, &create).check().unwrap();
    assert_eq!(ask(&site, "llm"), "18");
    std::fs::remove_file(&file).unwrap();

    let seen: Vec<_> = site.gateway.lab.world().unwrap().requests;
    let keys: Vec<_> = seen.iter().map(|seen| seen.headers["authorization"].clone()).collect();
    assert_eq!(keys, [FIRST, SECOND, THIRD].map(|key| format!("Bearer {key}")));
    assert!(!format!("{seen:?}").contains(&site.assistant_key), "the agent's own key stays here");
    let used = record(&site, "the second version", |r| {
        r.changes == ["`authorization` is the key `openai`, version 2"] && agent(r) == Some(ASSISTANT)
    });
    assert!(used.effects.iter().any(|effect| effect.policy == "openai-key"), "{used:?}");
    record(&site, "what was denied", |r| denied(r, "provider_key_unavailable") && to_host(r, LLM));
    for key in [FIRST, SECOND, THIRD] {
        // Neither in the store, nor in records, nor in any log.
        assert_eq!(holding(site.gateway.lab.dir(), key.as_bytes()), Vec::<String>::new());
    }
    finish(site);
}
