//! What the targets of `clawgress-identity` check: that nothing is accepted which another, plainer reading of the same
//! bytes refuses, and that what is accepted is accepted again.
#![allow(clippy::panic, clippy::indexing_slicing, clippy::expect_used, reason = "a panic is a finding")]

use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, LazyLock};

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use clawgress_identity::{
    Agent, CHAIN_MAX, IdentityMethod, JWKS_KEYS_MAX, KeySet, Origin, RootRecords, Roots, SPIFFE_ID_BYTES_MAX,
    SpiffeBundle, SpiffeId, TrustSnapshot,
};
use rustls_pki_types::CertificateDer;
use serde_json::Value;

/// When everything happens; the seeds' certificates are valid then.
const NOW_S: i64 = 1_900_000_000;
const SKEW_S: i64 = 30;
const ANYWHERE: Origin<'static> =
    Origin::Address { interface: None, address: IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)) };
/// A mapping that takes the agent as it is.
const PLAIN: &str = r#"{"agent":{"from":"sub"}}"#;

/// A key that everybody knows: the fuzzer signs with it, so that it gets behind the signature.
static KEY: LazyLock<Ed25519KeyPair> =
    LazyLock::new(|| Ed25519KeyPair::from_seed_unchecked(&[7; 32]).expect("a seed"));
static TRUST: LazyLock<TrustSnapshot> = LazyLock::new(|| snapshot(PLAIN).expect("records"));

fn snapshot(mapping: &str) -> Option<TrustSnapshot> {
    let x = URL_SAFE_NO_PAD.encode(KEY.public_key());
    let keys = format!(r#"{{"keys":[{{"kty":"OKP","crv":"Ed25519","kid":"k","x":"{x}"}}]}}"#);
    let mapping: Value = serde_json::from_str(mapping).ok()?;
    let by_dns = serde_json::json!({"agent": {"from": "dns", "suffix": ".agents.test"}});
    let by_path = serde_json::json!({"agent": {"from": "path", "prefix": "/agent/"}});
    let records = serde_json::json!({
        "issuers": [{
            "id": "acme/idp", "issuer": "https://idp.test", "audiences": ["gateway"], "algorithms": ["EdDSA"],
            "skew_s": SKEW_S, "mapping": mapping, "keys": keys
        }],
        "authorities": [{
            "id": "acme/ca", "certificates": include_str!("identity/ca.pem"), "revocation": "off", "mapping": by_dns
        }],
        "trust_domains": [{
            "id": "acme/spire", "domain": "d.test", "mapping": by_path, "bundle": include_str!("identity/bundle.json")
        }]
    });
    let records: RootRecords = serde_json::from_value(records).ok()?;
    let roots = Roots::new(records).ok()?;
    let agent = |(n, id): (usize, &&str)| -> Agent {
        let agent = serde_json::json!({"id": id, "index": n + 1, "team": "t", "state": "active"});
        serde_json::from_value(agent).expect("an agent")
    };
    let agents = ["acme/web", "acme/bot", "other/web"].iter().enumerate().map(agent);
    Some(TrustSnapshot::new(agents.collect::<Vec<_>>(), [], []).with_roots(Arc::new(roots)))
}

/// A token of a header and claims, signed.
fn sign(header: &[u8], claims: &[u8]) -> String {
    let signed = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
    let signature = KEY.sign(signed.as_bytes());
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
}

/// The lines before and behind the first line break.
fn two_lines(data: &[u8]) -> (&[u8], &[u8]) {
    let end = data.iter().position(|b| *b == b'\n').unwrap_or(data.len());
    (&data[..end], data.get(end + 1..).unwrap_or_default())
}

/// What is accepted of a token must be what a plain reader of JSON sees in it too.
fn check_token(trust: &TrustSnapshot, token: &str) -> Option<String> {
    let proven = trust.by_token(token, ANYWHERE, NOW_S).ok()?;
    let part = |n: usize| -> Value {
        let part = token.split('.').nth(n).expect("three parts");
        serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).expect("base64url")).expect("JSON")
    };
    let (header, claims) = (part(0), part(1));
    assert_eq!(header["alg"], "EdDSA");
    assert!(header.get("crit").is_none());
    assert_eq!(claims["iss"], "https://idp.test");
    let aud = &claims["aud"];
    assert!(aud == "gateway" || aud.as_array().is_some_and(|a| a.iter().any(|a| a == "gateway")));
    let time = |name: &str| claims.get(name).map(|t| t.as_f64().expect("a number"));
    let now = NOW_S as f64;
    assert!(time("exp").expect("exp") + SKEW_S as f64 > now);
    assert!([time("nbf"), time("iat")].iter().flatten().all(|t| *t <= now + SKEW_S as f64));
    let facts = proven.proof.facts();
    assert_eq!(facts.method, IdentityMethod::Jwt);
    assert!(facts.actors.len() <= 8 && !facts.credential.chars().any(char::is_control));
    let again = trust.again(&proven.proof, ANYWHERE, NOW_S);
    assert_eq!(again.as_ref().map(|p| &p.identity), Ok(&proven.identity));
    Some(proven.identity.agent.id.to_string())
}

/// As a token, and as the header and claims of one that is signed right.
pub fn jwt(data: &[u8]) {
    takes_token(data);
}

/// Whether the header and claims prove an agent, once they are signed.
pub fn takes_token(data: &[u8]) -> bool {
    if let Ok(text) = std::str::from_utf8(data) {
        check_token(&TRUST, text);
    }
    let (header, claims) = two_lines(data);
    let token = sign(header, claims);
    let is_taken = check_token(&TRUST, &token).is_some();
    if is_taken {
        // Without its last character, or with one more, it is another token or none.
        assert!(TRUST.by_token(&token[..token.len() - 1], ANYWHERE, NOW_S).is_err());
        assert!(TRUST.by_token(&format!("{token}A"), ANYWHERE, NOW_S).is_err());
    }
    is_taken
}

/// What is accepted has public keys only, and none too many.
pub fn jwks(data: &[u8]) {
    if let Ok(keys) = KeySet::parse(data) {
        let skipped = keys.skipped();
        let count = keys.len() + skipped.unknown + skipped.other_use + skipped.unfit;
        assert!(!keys.is_empty() && count <= JWKS_KEYS_MAX);
        check_public(data, count);
    }
}

fn check_public(data: &[u8], count: usize) {
    let document: Value = serde_json::from_slice(data).expect("JSON");
    let keys = document["keys"].as_array().expect("a list");
    assert_eq!(keys.len(), count);
    for key in keys {
        assert!(["d", "k", "p", "priv"].iter().all(|private| key.get(private).is_none()), "{key}");
    }
}

/// A SPIFFE ID is written as it was read.
pub fn spiffe_id(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(id) = text.parse::<SpiffeId>() {
        assert_eq!(id.to_string(), text);
        let rest = text.strip_prefix("spiffe://").expect("the scheme");
        assert!(text.len() <= SPIFFE_ID_BYTES_MAX && rest.is_ascii());
        assert!(!rest.contains(['%', '?', '#', '@', ':', '[', '\\', '\0', ' ']), "{rest}");
        assert!(id.path().is_empty() || id.path().split('/').skip(1).all(|s| !matches!(s, "" | "." | "..")));
        assert_eq!(rest, format!("{}{}", id.domain(), id.path()));
    }
}

/// What is accepted as a bundle has public keys only.
pub fn spiffe_bundle(data: &[u8]) {
    if let Ok(bundle) = SpiffeBundle::parse(data) {
        let skipped = bundle.keys().skipped();
        let count = bundle.keys().len() + skipped.unknown + skipped.other_use + skipped.unfit;
        check_public(data, count + bundle.authorities() + bundle.ignored());
        assert!(bundle.refresh_hint_s.is_none_or(|s| (60..=86_400).contains(&s)));
    }
}

/// A mapping, and claims below it: the same every time, and another tenant only by a mapping that says so.
pub fn claim_mapping(data: &[u8]) {
    let (mapping, claims) = two_lines(data);
    let Ok(mapping) = std::str::from_utf8(mapping) else { return };
    let Some(trust) = snapshot(mapping) else { return };
    let token = sign(br#"{"alg":"EdDSA"}"#, claims);
    let agent = check_token(&trust, &token);
    assert_eq!(agent, check_token(&trust, &token));
    if agent.is_some_and(|agent| agent == "other/web") {
        assert!(mapping.contains("tenant"), "{mapping}");
    }
}

/// Certificates, each behind its length in two bytes.
pub fn client_chain(data: &[u8]) {
    takes_chain(data);
}

/// Whether they prove an agent.
pub fn takes_chain(data: &[u8]) -> bool {
    let (mut rest, mut chain) = (data, Vec::new());
    while let Some((length, behind)) = rest.split_at_checked(2) {
        let length = usize::from(u16::from_be_bytes([length[0], length[1]])).min(behind.len());
        let (certificate, behind) = behind.split_at(length);
        chain.push(CertificateDer::from(certificate.to_vec()));
        rest = behind;
    }
    let proven = TRUST.by_certificate(chain.clone(), ANYWHERE, NOW_S);
    if let Ok(proven) = &proven {
        assert!(chain.len() <= CHAIN_MAX);
        // Nobody has the authorities' keys: it is one of the seeds' clients.
        let facts = proven.proof.facts();
        let subject = facts.subject.as_deref();
        assert!(matches!(
            (facts.method, subject),
            (IdentityMethod::Mtls, Some("web.agents.test"))
                | (IdentityMethod::SpiffeX509, Some("spiffe://d.test/agent/web"))
        ));
        assert_eq!(proven.identity.agent.id.to_string(), "acme/web");
        assert!(TRUST.again(&proven.proof, ANYWHERE, NOW_S).is_ok());
    }
    proven.is_ok()
}
