//! Agents that prove themselves by tokens: signed by `openssl`, presented by `curl`, trusted by `clawgressctl`.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use clawgress_api::{AuditQuery, AuditRecord, RecordKind};
use clawgress_e2e::lab::Host;
use clawgress_e2e::plan::{self, GATEWAY, KNOWN, PROXY_PORT};
use clawgress_e2e::scenario::{ASSISTANT, CRAWLER, Site};
use clawgress_identity::IdentityMethod;

use crate::shared::{CLIENT, wait_for};
use crate::support::{admin, agent, codes, curl, cut, denied, finish, record, site};

const SETTINGS: &str = r#"
issuer = "https://idp.test/realms/agents"
audiences = ["clawgress"]
algorithms = ["RS256"]
lifetime_s_max = 600

[mapping]
agent = { from = "sub", prefix = "agent:" }
team = { from = "team" }
"#;

/// An identity provider of files: its key, and its key set.
pub struct Idp {
    directory: PathBuf,
}

fn base64url(bytes: &[u8]) -> String {
    plan::base64(bytes).trim_end_matches('=').replace('+', "-").replace('/', "_")
}

pub fn openssl(directory: &Path, args: &[&str]) -> Vec<u8> {
    let output = Command::new("openssl").args(args).current_dir(directory).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

impl Idp {
    pub fn new(directory: &Path, name: &str) -> Idp {
        let directory = directory.join(name);
        std::fs::create_dir(&directory).unwrap();
        openssl(&directory, &["genrsa", "-out", "key.pem", "2048"]);
        let modulus = openssl(&directory, &["rsa", "-in", "key.pem", "-noout", "-modulus"]);
        let hex = String::from_utf8(modulus).unwrap();
        let hex = hex.trim().strip_prefix("Modulus=").unwrap();
        let bytes = (0..hex.len()).step_by(2).map(|n| u8::from_str_radix(&hex[n..n + 2], 16).unwrap());
        let n = base64url(&bytes.collect::<Vec<u8>>());
        let keys = format!(
            r#"{{"keys":[{{"kty":"RSA","kid":"1","use":"sig","alg":"RS256","n":"{n}","e":"AQAB"}},{{"kty":"oct","use":"enc"}}]}}"#
        );
        std::fs::write(directory.join("jwks.json"), keys).unwrap();
        std::fs::write(directory.join("settings.toml"), SETTINGS).unwrap();
        Idp { directory }
    }

    fn file(&self, name: &str) -> String {
        self.directory.join(name).to_str().unwrap().to_owned()
    }

    /// A header with a token of these claims, signed by `openssl`.
    pub fn header(&self, header: &str, claims: &str) -> String {
        let signed = format!("{}.{}", base64url(header.as_bytes()), base64url(claims.as_bytes()));
        std::fs::write(self.directory.join("signed"), &signed).unwrap();
        let signature = openssl(&self.directory, &["dgst", "-sha256", "-sign", "key.pem", "signed"]);
        format!("Proxy-Authorization: Bearer {signed}.{}", base64url(&signature))
    }

    fn bearer(&self, subject: &str, audience: &str, id: &str) -> String {
        self.header(r#"{"alg":"RS256","typ":"JWT","kid":"1"}"#, &claims(subject, audience, id, now_s()))
    }

    /// A good token of ten minutes ago.
    fn expired(&self, subject: &str) -> String {
        let claims = claims(subject, "clawgress", "t", now_s() - 600);
        self.header(r#"{"alg":"RS256","typ":"JWT","kid":"1"}"#, &claims)
    }

    /// A token that says that nobody signed it.
    fn unsigned(&self, subject: &str) -> String {
        let claims = claims(subject, "clawgress", "t", now_s());
        let header = base64url(br#"{"alg":"none","typ":"JWT","kid":"1"}"#);
        format!("Proxy-Authorization: Bearer {header}.{}.", base64url(claims.as_bytes()))
    }

    /// A token whose "secret" is the public key, which everybody has (RS256 taken for HS256).
    fn by_public_key(&self, subject: &str) -> String {
        let public = openssl(&self.directory, &["rsa", "-in", "key.pem", "-pubout"]);
        let secret: String = public.iter().map(|byte| format!("{byte:02x}")).collect();
        let claims = claims(subject, "clawgress", "t", now_s());
        let header = base64url(br#"{"alg":"HS256","typ":"JWT","kid":"1"}"#);
        let signed = format!("{header}.{}", base64url(claims.as_bytes()));
        std::fs::write(self.directory.join("signed"), &signed).unwrap();
        let secret = format!("hexkey:{secret}");
        let mac = ["dgst", "-sha256", "-mac", "HMAC", "-macopt", &secret, "-binary", "signed"];
        let mac = openssl(&self.directory, &mac);
        format!("Proxy-Authorization: Bearer {signed}.{}", base64url(&mac))
    }

    /// A token signed by this provider's key, with more in its header.
    fn brought(&self, more: &str, subject: &str) -> String {
        let claims = claims(subject, "clawgress", "t", now_s());
        self.header(&format!(r#"{{"alg":"RS256","typ":"JWT",{more}}}"#), &claims)
    }

    /// The public key as a member of a header.
    pub fn jwk(&self) -> String {
        let keys = std::fs::read_to_string(self.directory.join("jwks.json")).unwrap();
        let keys: serde_json::Value = serde_json::from_str(&keys).unwrap();
        format!(r#""jwk":{}"#, keys["keys"][0])
    }
}

pub fn now_s() -> u64 {
    #[expect(clippy::disallowed_methods, reason = "a real token is of the real time")]
    let now = SystemTime::now();
    now.duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// Claims of a token of that time, which lives five minutes.
fn claims(subject: &str, audience: &str, id: &str, at_s: u64) -> String {
    format!(
        r#"{{"iss":"https://idp.test/realms/agents","aud":["{audience}","account"],"sub":"{subject}","team":"research","jti":"{id}","iat":{at_s},"exp":{},"act":{{"sub":"user:7"}}}}"#,
        at_s + 300
    )
}

/// What `curl` gets through the proxy with a header for it, from a host that nothing is bound to.
pub fn ask(site: &Site, header: &str, to: &str) -> (u16, u16) {
    ask_from(site, Host::Anon, header, to)
}

fn ask_from(site: &Site, host: Host, header: &str, to: &str) -> (u16, u16) {
    let proxy = format!("http://{}:{PROXY_PORT}", GATEWAY.v4);
    codes(&curl(site, host, &["-x", &proxy, "--proxy-header", header, to]))
}

pub fn credential(record: &AuditRecord) -> Option<(String, String)> {
    let credential = record.agent.as_ref()?.credential.as_ref()?;
    Some((credential.issuer.as_ref()?.to_string(), credential.id.clone()))
}

#[test]
fn an_agent_with_a_token() {
    let site = site();
    let (idp, stranger) =
        (Idp::new(site.gateway.lab.dir(), "idp"), Idp::new(site.gateway.lab.dir(), "other"));
    let admin = admin(&site);
    let (settings, keys) = (idp.file("settings.toml"), idp.file("jwks.json"));
    let right = idp.bearer("agent:assistant", "clawgress", "token-1");
    let (tunnel, plain) = ("https://api.allowed.test/token", "http://api.allowed.test/plain");
    assert_eq!(ask(&site, &right, tunnel), (0, 407), "nobody is trusted yet");
    let set = admin.ctl(&["issuer", "set", "idp", "--settings", &settings, "--keys", &keys]).unwrap();
    assert!(set.stdout.contains("1 (1 not used)"), "{set:?}");
    assert_eq!(ask(&site, &right, tunnel), (200, 200));
    assert_eq!(ask(&site, &right, plain).0, 200);
    let seen =
        record(&site, "a token's decision", |r| agent(r) == Some(ASSISTANT) && credential(r).is_some());
    assert_eq!(seen.agent.as_ref().unwrap().method, IdentityMethod::Jwt);
    assert_eq!(credential(&seen), Some(("default/idp".to_owned(), "token-1".to_owned())));
    let actors = seen.agent.unwrap().credential.unwrap().actors;
    assert_eq!(actors[0].subject, "user:7");
    for wrong in [
        idp.bearer("agent:assistant", "another-gateway", "t"),
        idp.bearer("assistant", "clawgress", "t"),
        stranger.bearer("agent:assistant", "clawgress", "t"),
        idp.header(r#"{"alg":"none"}"#, "{}"),
        idp.unsigned("agent:assistant"),
        idp.by_public_key("agent:assistant"),
        idp.expired("agent:assistant"),
        // By a key that the token itself brings, or says where to find.
        stranger.brought(&stranger.jwk(), "agent:assistant"),
        stranger.brought(r#""jku":"https://api.allowed.test/keys""#, "agent:assistant"),
        stranger.brought(r#""x5u":"https://api.allowed.test/keys""#, "agent:assistant"),
        stranger.brought(r#""kid":"../../../dev/null""#, "agent:assistant"),
        "Proxy-Authorization: Bearer x.y.z".to_owned(),
    ] {
        assert_eq!(ask(&site, &wrong, tunnel), (0, 407), "{wrong}");
        assert_eq!(ask(&site, &wrong, plain).0, 407, "{wrong}");
    }
    record(&site, "a refused token", |r| denied(r, "credential_invalid"));
    // From the host that is the crawler's own, another's token is a conflict, and the crawler's own is none.
    for to in [tunnel, plain] {
        let asked = ask_from(&site, Host::Known, &right, to);
        assert!([(0, 403), (403, 0)].contains(&asked), "{to}: {asked:?}");
    }
    let conflict = record(&site, "another's token", |r| denied(r, "identity_conflict"));
    assert_eq!((agent(&conflict), conflict.source.ip), (Some(CRAWLER), Some(KNOWN.v4.into())));
    let own = idp.bearer("agent:crawler", "clawgress", "token-2");
    assert_eq!(ask_from(&site, Host::Known, &own, tunnel), (200, 200));
    // The registry has the intern in another team than the token says.
    assert_eq!(ask(&site, &idp.bearer("agent:intern", "clawgress", "t"), plain).0, 407);
    // No token is in what is recorded, nor went on to the server.
    let audit = admin.ctl(&["-o", "json", "audit", "search"]).unwrap();
    let signature = right.rsplit_once('.').unwrap().1;
    assert!(!audit.stdout.contains(signature) && audit.stdout.contains("token-1"), "{audit:?}");
    for request in site.gateway.lab.world().unwrap().requests {
        assert!(!request.headers.contains_key("proxy-authorization"), "{request:?}");
    }
    let deleted = admin.ctl(&["issuer", "delete", "idp"]).unwrap();
    assert!(deleted.stdout.contains("its tokens prove nobody any more"), "{deleted:?}");
    assert_eq!(ask(&site, &right, tunnel), (0, 407));
    finish(site);
}

/// What tokens opened ends when they are revoked, and when their issuer is deleted, before anything more is asked.
#[test]
fn what_a_token_opened_is_cut_when_it_is_revoked_and_with_its_issuer() {
    let site = site();
    let lab = &site.gateway.lab;
    let idp = Idp::new(lab.dir(), "idp");
    let set = |revoked: &str| {
        let settings = idp.file("settings.toml");
        std::fs::write(&settings, format!("{revoked}{SETTINGS}")).unwrap();
        let words = ["issuer", "set", "idp", "--settings", &settings, "--keys", &idp.file("jwks.json")];
        admin(&site).ctl(&words).unwrap().check().unwrap();
    };
    set("");
    let directory = lab.dir().join("presented");
    std::fs::create_dir(&directory).unwrap();
    let (path, ca) = (directory.to_string_lossy().into_owned(), lab.ca().to_string_lossy().into_owned());
    let gateway = GATEWAY.v4.to_string();
    let [lost, kept] = ["lost", "kept"].map(|id| {
        let header = idp.bearer("agent:assistant", "clawgress", id);
        header.replace("Proxy-Authorization: ", &format!("{id}:"))
    });
    let keyed = format!("{ASSISTANT}:{}", site.assistant_key);
    let client = ["python3", "-c", CLIENT, &path, &ca, &gateway, &lost, &kept, &keyed];
    let by =
        |what: &'static str| move |r: &AuditRecord| r.detail.as_deref().is_some_and(|d| d.contains(what));
    let client = std::thread::scope(|scope| {
        let client = scope.spawn(|| lab.run(Host::Anon, &client).unwrap());
        wait_for(&site, &directory.join("ready"));
        set("revoked = [\"lost\"]\n");
        cut(&site, (ASSISTANT, "credential_invalid", 1), by("issuer set by "));
        let all = admin(&site).audit(&AuditQuery::default()).unwrap();
        let ended = all.iter().filter(|r| r.kind == RecordKind::Outcome && r.reason.is_some());
        let ended: Vec<_> = ended.filter_map(credential).map(|(_, id)| id).collect();
        assert_eq!(ended, ["lost"], "and only that");
        admin(&site).ctl(&["issuer", "delete", "idp"]).unwrap().check().unwrap();
        cut(&site, (ASSISTANT, "credential_invalid", 2), by("issuer deleted by "));
        std::fs::write(directory.join("go"), "").unwrap();
        client.join().unwrap()
    });
    assert!(client.ok(), "{client:?}");
    let wanted = "lost is cut 407\nkept is cut 407\nassistant lives 200";
    assert_eq!(client.stdout.trim(), wanted, "{client:?}");
    finish(site);
}

#[test]
fn issuers_that_are_refused_say_why() {
    let site = site();
    let idp = Idp::new(site.gateway.lab.dir(), "idp");
    let admin = admin(&site);
    let keys = idp.file("jwks.json");
    let set = |settings: &str, keys: &str| {
        std::fs::write(idp.directory.join("settings.toml"), settings).unwrap();
        admin
            .ctl(&["issuer", "set", "idp", "--settings", &idp.file("settings.toml"), "--keys", keys])
            .unwrap()
    };
    for (from, to, said) in [
        ("[\"RS256\"]", "[\"HS256\"]", "unknown variant `HS256`"),
        ("audiences = [\"clawgress\"]", "audiences = []", "write what `aud` is"),
        ("from = \"sub\", prefix = \"agent:\"", "value = \"web\"", "would make everybody the same agent"),
        ("lifetime_s_max", "lifetime_max", "unknown field `lifetime_max`"),
    ] {
        let refused = set(&SETTINGS.replace(from, to), &keys);
        assert!(refused.code != Some(0) && refused.stderr.contains(said), "{said}: {refused:?}");
    }
    let private = idp.file("private.json");
    std::fs::write(&private, r#"{"keys":[{"kty":"OKP","crv":"Ed25519","x":"AA","d":"AA"}]}"#).unwrap();
    let refused = set(SETTINGS, &private);
    assert!(refused.stderr.contains("private or symmetric key"), "{refused:?}");
    let list = admin.ctl(&["issuer", "list"]).unwrap();
    assert!(list.stdout.contains("there are no issuers"), "{list:?}");
    let missing = admin.ctl(&["issuer", "show", "idp"]).unwrap();
    assert!(missing.stderr.contains("there is no issuer `default/idp`"), "{missing:?}");
    finish(site);
}
