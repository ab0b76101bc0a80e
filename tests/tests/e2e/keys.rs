//! API keys over their lives: rotated while they are used, revoked while connections are open.

use std::time::Duration;

use clawgress_api::{ApiKeyInfo, ApiKeyState, AuditRecord, CreatedApiKey, RecordKind};
use clawgress_e2e::lab::Host;
use clawgress_e2e::plan::GATEWAY;
use clawgress_e2e::scenario::{ASSISTANT, POLICY, SETS, Site};
use clawgress_identity::ApiKey;

use crate::shared::{CLIENT, wait_for};
use crate::support::{admin, codes, curl, cut, denied, finish, proxy, record, site};

fn id(key: &str) -> &str {
    ApiKey::id_of(key).unwrap()
}

fn ask(site: &Site, key: &str) -> u16 {
    let url = proxy(ASSISTANT, key);
    codes(&curl(site, Host::Anon, &["-x", &url, "https://api.allowed.test/"])).1
}

fn rotate(site: &Site, key: &str, overlap: &str) -> String {
    let rotated = admin(site).ctl(&["-o", "json", "key", "rotate", id(key), "--overlap", overlap]).unwrap();
    let rotated: CreatedApiKey = serde_json::from_str(&rotated.check().unwrap().stdout).unwrap();
    assert_eq!(rotated.replaces.unwrap().id, id(key));
    rotated.api_key
}

/// Revokes one of two keys while connections of both are open: its own end, before anything is asked on them, and the others live.
fn revoked_while_used(site: &Site, old: &str, new: &str) {
    let lab = &site.gateway.lab;
    let directory = lab.dir().join("keys");
    std::fs::create_dir(&directory).unwrap();
    let (path, ca) = (directory.to_string_lossy().into_owned(), lab.ca().to_string_lossy().into_owned());
    let gateway = GATEWAY.v4.to_string();
    let [one, two] = [old, new].map(|key| format!("{ASSISTANT}:{key}"));
    let client = ["python3", "-c", CLIENT, &path, &ca, &gateway, &one, &two];
    let client = std::thread::scope(|scope| {
        let client = scope.spawn(|| lab.run(Host::Anon, &client).unwrap());
        wait_for(site, &directory.join("ready"));
        // Answered when both planes have it.
        let revoked = admin(site).ctl(&["key", "revoke", id(old)]).unwrap().check().unwrap();
        assert!(revoked.stdout.contains("is revoked"), "{revoked:?}");
        let by = |r: &AuditRecord| r.detail.as_deref().is_some_and(|d| d.contains("API key revoked by "));
        cut(site, (ASSISTANT, "credential_invalid", 1), by);
        std::fs::write(directory.join("go"), "").unwrap();
        client.join().unwrap()
    });
    assert!(client.ok(), "{client:?}");
    assert_eq!(client.stdout.trim(), "assistant is cut 407\nassistant lives 200", "{client:?}");
}

/// Policies besides the site's: many for an unoptimised build.
const MANY: usize = 2_000;

#[test]
fn what_a_key_opened_is_cut_where_there_is_much_policy() {
    let mut site = site();
    let one = |n| {
        format!(
            "@id(\"many-{n}\") permit (principal in Team::\"visitors\", action == Action::\"http\", resource) when {{ resource.name == \"h{n}.test\" && context.path like \"/v{n}/*\" }};\n"
        )
    };
    let many: String = (0..MANY).map(one).collect();
    site.gateway.apply_policy(&format!("{POLICY}{many}"), SETS).unwrap();
    let old = site.assistant_key.clone();
    let new = rotate(&site, &old, "24h");
    revoked_while_used(&site, &old, &new);
    finish(site);
}

#[test]
fn a_rotated_key_works_in_the_overlap_and_a_revoked_one_nowhere() {
    let site = site();
    let old = site.assistant_key.clone();
    let new = rotate(&site, &old, "24h");
    assert_eq!((ask(&site, &old), ask(&site, &new)), (200, 200));

    revoked_while_used(&site, &old, &new);
    assert_eq!((ask(&site, &old), ask(&site, &new)), (407, 200));
    record(&site, "the next request", |r| r.kind == RecordKind::Decision && denied(r, "credential_invalid"));

    // What is over by itself.
    let newest = rotate(&site, &new, "1s");
    let is_over = || Ok(ask(&site, &new) == 407);
    site.gateway.lab.wait("the end of the overlap", Duration::from_secs(20), is_over).unwrap();
    assert_eq!(ask(&site, &newest), 200);
    let admin = admin(&site);
    let listed = admin.ctl(&["-o", "json", "key", "list", "--agent", ASSISTANT]).unwrap().check().unwrap();
    let keys: Vec<ApiKeyInfo> = serde_json::from_str(&listed.stdout).unwrap();
    let state = |key: &str| keys.iter().find(|info| info.id == id(key)).unwrap().state;
    assert_eq!([state(&old), state(&new)], [ApiKeyState::Revoked; 2]);
    assert_eq!(state(&newest), ApiKeyState::Active);
    // No secret is in what is recorded.
    let audit = admin.ctl(&["-o", "json", "audit", "search"]).unwrap().stdout;
    for key in [&old, &new, &newest] {
        assert!(audit.contains(id(key)) && !audit.contains(&key[18..]));
    }
    finish(site);
}
