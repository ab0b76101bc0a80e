//! Agents with tokens of an OpenID provider that runs for real (npm's `oidc-provider`): its keys are found by discovery,
//! followed when they roll over, and asked for when somebody comes with a token by a new one.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clawgress_e2e::lab::{Daemon, Host};
use clawgress_e2e::scenario::{ASSISTANT, Site};
use clawgress_identity::IdentityMethod;
use serde_json::Value;

use crate::support::{admin, agent, denied, finish, record, site};
use crate::tokens::{ask, credential, openssl};

/// Where the provider is: on the gateway's own loopback, where no agent comes.
const ISSUER: &str = "https://localhost:9443";
/// Time for the provider to start, and for control to fetch what is due.
const FETCH_TIME: Duration = Duration::from_secs(30);
/// Time until control asks for a key that it doesn't know: it asks once a minute at most.
const UNKNOWN_KEY_TIME: Duration = Duration::from_secs(90);
/// Between two tries of what takes a minute.
const PAUSE: Duration = Duration::from_secs(1);
const API: &str = "https://api.allowed.test/oidc";

struct Idp {
    directory: PathBuf,
    process: Option<Daemon>,
}

/// Where set-up keeps the provider.
fn modules() -> PathBuf {
    let set = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let cache = || set("XDG_CACHE_HOME").or_else(|| set("HOME").map(|home| home.join(".cache")));
    let clients =
        set("CLAWGRESS_CLIENTS_DIR").or_else(|| cache().map(|cache| cache.join("clawgress/clients")));
    let modules = clients.unwrap().join("oidc/node_modules");
    assert!(modules.is_dir(), "there is no `{}`; run `cargo xtask setup`", modules.display());
    modules
}

impl Idp {
    /// A provider that does not run yet, with an authority and a certificate of its own.
    fn new(site: &Site) -> Idp {
        let directory = site.gateway.lab.dir().join("idp");
        std::fs::create_dir(&directory).unwrap();
        let key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"];
        let ca = ["req", "-x509", "-days", "2", "-subj", "/CN=idp CA", "-keyout", "ca.key", "-out", "ca.pem"];
        openssl(&directory, &[&ca[..], &key].concat());
        let request = ["req", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"];
        openssl(&directory, &[&request[..], &["-keyout", "tls.key", "-out", "tls.csr"], &key].concat());
        let sign = ["x509", "-req", "-in", "tls.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-days", "2"];
        openssl(&directory, &[&sign[..], &["-copy_extensions", "copy", "-out", "tls.pem"]].concat());
        Idp { directory, process: None }
    }

    /// Starts it, in place of the one that runs, with these keys: it signs by the first.
    fn start(&mut self, site: &Site, keys: &[&str]) {
        if let Some(mut running) = self.process.take() {
            running.kill().unwrap();
        }
        let settings = serde_json::json!({
            "issuer": ISSUER, "port": 9443, "keys": keys,
            "clients": [{"id": ASSISTANT, "secret": "of the assistant"}, {"id": "stranger", "secret": "of the stranger"}]
        });
        let file = self.directory.join("provider.json");
        std::fs::write(&file, settings.to_string()).unwrap();
        let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("clients/oidc/provider.mjs");
        let (modules, program, file) =
            (modules().display().to_string(), program.display().to_string(), file.display().to_string());
        let argv = ["node", &program, &modules, &file];
        self.process = Some(site.gateway.lab.spawn(Host::Gateway, "idp", &argv).unwrap());
        let answers = || Ok(self.get(site, &[&format!("{ISSUER}/jwks")]).is_some());
        site.gateway.lab.wait("the provider", FETCH_TIME, answers).unwrap();
    }

    fn get(&self, site: &Site, args: &[&str]) -> Option<Value> {
        let ca = self.directory.join("ca.pem").display().to_string();
        let argv = [&["curl", "-sS", "--max-time", "5", "--cacert", &ca], args].concat();
        let output = site.gateway.lab.run(Host::Gateway, &argv).unwrap();
        serde_json::from_str(&output.stdout).ok()
    }

    /// A header with a token that the provider gives this client for a resource.
    fn bearer(&self, site: &Site, client: &str, resource: &str) -> String {
        let (user, resource) = (format!("{client}:of the {client}"), format!("resource={resource}"));
        let token = format!("{ISSUER}/token");
        let args = ["-u", &user, "-d", "grant_type=client_credentials", "-d", &resource, &token];
        let answer = self.get(site, &args).unwrap();
        format!("Proxy-Authorization: Bearer {}", answer["access_token"].as_str().unwrap())
    }

    /// Has the gateway trust it, and its keys count as fresh for so long at most, and then while it fails.
    fn set(&self, site: &Site, fresh_s_max: u32, stale_s_max: u32) {
        let settings = format!(
            r#"
issuer = "{ISSUER}"
audiences = ["urn:clawgress"]
algorithms = ["ES256"]
types = ["at+jwt"]
type_required = true
lifetime_s_max = 600

[mapping]
agent = {{ from = "client_id" }}

[provider]
stale_s_max = {stale_s_max}
fresh_s_max = {fresh_s_max}
networks = ["127.0.0.0/8", "::1/128"]
ca_file = "ca.pem"
"#
        );
        let file = self.directory.join("idp.toml");
        std::fs::write(&file, settings).unwrap();
        let set = admin(site).ctl(&["issuer", "set", "idp", "--settings", file.to_str().unwrap()]);
        set.unwrap().check().unwrap();
    }
}

/// Waits until a request with this header is answered so.
#[track_caller]
fn until_answered(site: &Site, what: &str, header: &str, time: Duration, codes: (u16, u16)) {
    let answered = || {
        let is_so = ask(site, header, API) == codes;
        if !is_so {
            std::thread::sleep(PAUSE);
        }
        Ok(is_so)
    };
    site.gateway.lab.wait(what, time, answered).unwrap();
}

#[test]
fn tokens_of_an_openid_provider_whose_keys_roll_over() {
    let site = site();
    let mut idp = Idp::new(&site);
    idp.start(&site, &["one"]);
    idp.set(&site, 900, 600);
    let token = idp.bearer(&site, ASSISTANT, "urn:clawgress");
    until_answered(&site, "the first keys", &token, FETCH_TIME, (200, 200));
    let seen =
        record(&site, "a token's decision", |r| agent(r) == Some(ASSISTANT) && credential(r).is_some());
    assert_eq!(seen.agent.as_ref().unwrap().method, IdentityMethod::Jwt);
    assert_eq!(credential(&seen).unwrap().0, "default/idp");
    for (what, wrong, code) in [
        ("for another resource", idp.bearer(&site, ASSISTANT, "urn:other"), 407),
        ("of a client that is no agent", idp.bearer(&site, "stranger", "urn:clawgress"), 407),
        ("cut short", token.get(..token.len() - 2).unwrap().to_owned(), 407),
    ] {
        assert_eq!(ask(&site, &wrong, API), (0, code), "{what}");
    }
    record(&site, "a refused token", |r| denied(r, "credential_invalid"));

    // A new key, of which nobody told control. Its keys are fresh for a quarter of an hour: what has it ask before is that
    // L7 tells it of a token by a key that it doesn't know.
    idp.start(&site, &["two", "one"]);
    let next = idp.bearer(&site, ASSISTANT, "urn:clawgress");
    let status = admin(&site).ctl(&["issuer", "show", "idp"]).unwrap().check().unwrap();
    let (due, now) = (next_fetch(&status.stdout), jiff::Timestamp::now());
    assert!(due.duration_since(now).as_secs() > 600, "{status:?}");
    until_answered(&site, "the new key", &next, UNKNOWN_KEY_TIME, (200, 200));
    assert_eq!(ask(&site, &token, API), (200, 200), "the old key counts while the provider has it");

    // The old key is withdrawn, and nobody comes with a key that isn't known.
    idp.set(&site, 1, 600);
    idp.start(&site, &["two"]);
    until_answered(&site, "the end of the old key", &token, FETCH_TIME, (0, 407));
    assert_eq!(ask(&site, &next, API), (200, 200));
    record(&site, "who changed the keys", |r| {
        r.detail.as_deref().is_some_and(|d| d.contains("default/idp") && d.contains("keys"))
    });

    // The provider is gone: its last keys count on, for as long as they may.
    idp.process.take().unwrap().kill().unwrap();
    let show = || admin(&site).ctl(&["issuer", "show", "idp"])?.check();
    let is_stale = || Ok(show()?.stdout.contains("stale, failing"));
    site.gateway.lab.wait("the provider to fail", FETCH_TIME, is_stale).unwrap();
    assert_eq!(ask(&site, &next, API), (200, 200));
    idp.set(&site, 1, 0);
    until_answered(&site, "the end of keys that nobody confirms", &next, FETCH_TIME, (0, 407));
    finish(site);
}

/// When the provider is asked next, as `issuer show` prints it.
fn next_fetch(shown: &str) -> jiff::Timestamp {
    let line = shown.lines().find_map(|line| line.strip_prefix("next fetch"));
    line.unwrap().trim().parse().unwrap()
}
