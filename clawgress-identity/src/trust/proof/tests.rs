//! Credentials against whole snapshots: who they prove, where they may come from, and what ends them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::*;
use crate::testing::pki::{self, NOW_S, dns, leaf, uri};
use crate::testing::{Signer, jwks, token};
use crate::{
    Agent, AgentState, Algorithm, AuthorityRecord, IssuerRecord, MappingError, Part, Revocation, RootError,
    RootRecords, Roots, TrustDomainRecord,
};

const ANYWHERE: Origin<'static> =
    Origin::Address { interface: None, address: IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)) };

fn issuer(id: &str, change: impl FnOnce(&mut IssuerRecord)) -> IssuerRecord {
    let text = format!(
        r#"{{"id":"{id}","issuer":"https://idp.test","audiences":["gateway"],"algorithms":["ES256","EdDSA"],
        "mapping":{{"agent":{{"from":"sub"}},"team":{{"from":"team"}}}},"keys":""}}"#
    );
    let mut record: IssuerRecord = serde_json::from_str(&text).unwrap();
    record.keys = jwks();
    change(&mut record);
    record
}

fn agents() -> Vec<Agent> {
    let agent = |id: &str, index: u32, state: AgentState| Agent {
        id: id.parse().unwrap(),
        index,
        team: Some("t".to_owned()),
        project: None,
        environment: None,
        labels: BTreeMap::new(),
        state,
        sources: Vec::new(),
    };
    vec![
        agent("acme/web", 1, AgentState::Active),
        agent("acme/off", 2, AgentState::Disabled),
        agent("other/web", 3, AgentState::Active),
        agent("acme/bot", 4, AgentState::Active),
    ]
}

fn trust(records: RootRecords) -> TrustSnapshot {
    let roots = Roots::new(records).unwrap();
    TrustSnapshot::new(agents(), [], []).with_roots(Arc::new(roots))
}

fn with_issuers(issuers: Vec<IssuerRecord>) -> TrustSnapshot {
    trust(RootRecords { issuers, ..RootRecords::default() })
}

fn claims(sub: &str, more: &str) -> String {
    format!(
        r#"{{"iss":"https://idp.test","aud":"gateway","sub":"{sub}","team":"t","jti":"t1","iat":{NOW_S},"exp":{}{more}}}"#,
        NOW_S + 60
    )
}

fn signed(claims: &str) -> String {
    token(Algorithm::Es256, claims)
}

fn present(trust: &TrustSnapshot, token: &str) -> Result<String, IdentityError> {
    trust.by_token(token, ANYWHERE, NOW_S).map(|proven| proven.identity.agent.id.to_string())
}

#[test]
fn tokens_prove_agents_of_the_registry() {
    let trust = with_issuers(vec![issuer("acme/idp", |_| {})]);
    let actors = r#","act":{"sub":"agent-1","act":{"sub":"agent-2","iss":"x"}}"#;
    let proven = trust.by_token(&signed(&claims("web", actors)), ANYWHERE, NOW_S).unwrap();
    assert_eq!(proven.identity.agent.id.to_string(), "acme/web");
    assert_eq!(proven.identity.method, IdentityMethod::Jwt);
    let facts = proven.proof.facts();
    assert_eq!((facts.root.to_string(), facts.credential.as_str()), ("acme/idp".to_owned(), "t1"));
    assert_eq!((facts.subject.as_deref(), facts.expires_at_s), (Some("web"), Some(NOW_S + 90)));
    let chain: Vec<_> = facts.actors.iter().map(|a| (a.subject.as_str(), a.issuer.as_deref())).collect();
    assert_eq!(chain, [("agent-1", None), ("agent-2", Some("x"))]);
    for (sub, expected) in [
        ("off", IdentityError::Disabled),
        ("unknown", IdentityError::UnknownAgent),
        ("other/web", IdentityError::Token(MappingError::Nothing(Part::Agent).into())),
        ("gateway", IdentityError::Token(MappingError::Reserved.into())),
    ] {
        assert_eq!(present(&trust, &signed(&claims(sub, ""))), Err(expected), "{sub}");
    }
    let elsewhere = claims("web", "").replace(r#""team":"t""#, r#""team":"u""#);
    assert_eq!(
        present(&trust, &signed(&elsewhere)),
        Err(IdentityError::Mapping(MappingError::Other(Part::Team)))
    );
    let loops = claims(
        "web",
        &format!(
            r#","act":{}{}"#,
            r#"{"sub":"a","act":"#.repeat(9),
            r#"{"sub":"a"}"#.to_owned() + &"}".repeat(9)
        ),
    );
    assert_eq!(present(&trust, &signed(&loops)), Err(TokenError::Actors.into()));
    let quarantined = trust.with_quarantined(&Arc::new(BTreeSet::from([1])));
    assert_eq!(present(&quarantined, &signed(&claims("web", ""))), Err(IdentityError::Quarantined));
    let nobody = TrustSnapshot::new(agents(), [], []);
    assert_eq!(present(&nobody, &signed(&claims("web", ""))), Err(TokenError::UnknownIssuer.into()));
}

#[test]
fn tokens_are_held_to_their_source() {
    let trust = with_issuers(vec![issuer("acme/idp", |_| {})]);
    let right = signed(&claims("web", ""));
    let (web, bot) = ("acme/web".parse().unwrap(), "acme/bot".parse().unwrap());
    let own = trust.by_token(&right, Origin::Agent(&web), NOW_S).unwrap();
    assert!(trust.again(&own.proof, Origin::Agent(&web), NOW_S).is_ok());
    let conflict = Some(IdentityError::Conflict);
    assert_eq!(trust.by_token(&right, Origin::Agent(&bot), NOW_S).err(), conflict);
    assert_eq!(trust.again(&own.proof, Origin::Agent(&bot), NOW_S).err(), conflict);
}

/// Tenants may trust one issuer, each by an audience of its own.
#[test]
fn tenants_are_told_apart_by_audience() {
    let one = issuer("acme/idp", |_| {});
    let two = issuer("other/idp", |r| r.audiences = BTreeSet::from(["other".to_owned()]));
    let trust = with_issuers(vec![one.clone(), two]);
    let to = |aud: &str| present(&trust, &signed(&claims("web", "").replace(r#""gateway""#, aud)));
    assert_eq!(to(r#""gateway""#), Ok("acme/web".to_owned()));
    assert_eq!(to(r#""other""#), Ok("other/web".to_owned()));
    assert_eq!(to(r#"["gateway","other"]"#), Err(TokenError::AmbiguousIssuer.into()));
    assert_eq!(to(r#""third""#), Err(TokenError::Audience.into()));
    let refused = |issuers| Roots::new(RootRecords { issuers, ..RootRecords::default() }).map(drop);
    let id = |text: &str| text.parse().unwrap();
    assert_eq!(
        refused(vec![one.clone(), issuer("other/idp", |_| {})]),
        Err(RootError::SameAudience(id("acme/idp"), id("other/idp")))
    );
    assert_eq!(refused(vec![one.clone(), one]), Err(RootError::Twice(id("acme/idp"))));
}

/// What ends a live connection: each change takes effect at the next look, without the token.
#[test]
fn tokens_are_judged_again() {
    let before = with_issuers(vec![issuer("acme/idp", |_| {})]);
    let proof = before.by_token(&signed(&claims("web", "")), ANYWHERE, NOW_S).unwrap().proof;
    let again = |trust: &TrustSnapshot, now_s| trust.again(&proof, ANYWHERE, now_s).map(|i| i.agent.index);
    let under =
        |change: &dyn Fn(&mut IssuerRecord)| again(&with_issuers(vec![issuer("acme/idp", change)]), NOW_S);
    assert_eq!(again(&before, NOW_S + 89), Ok(1));
    assert_eq!(again(&before, NOW_S + 90), Err(TokenError::Expired.into()));
    assert_eq!(again(&before, NOW_S - 31), Err(TokenError::IssuedInFuture.into()), "the clock went back");
    assert_eq!(under(&|_| {}), Ok(1));
    assert_eq!(again(&with_issuers(vec![]), NOW_S), Err(TokenError::UnknownIssuer.into()));
    assert_eq!(
        again(&with_issuers(vec![issuer("acme/new", |_| {})]), NOW_S),
        Err(TokenError::UnknownIssuer.into())
    );
    let other_key = Signer::new_ed25519().jwk(r#","kid":"ES256""#);
    assert_eq!(
        under(&|r| r.keys = format!(r#"{{"keys":[{other_key}]}}"#)),
        Err(TokenError::UnknownKey.into())
    );
    assert_eq!(
        under(&|r| r.algorithms = BTreeSet::from([Algorithm::EdDsa])),
        Err(TokenError::AlgorithmNotAllowed.into())
    );
    assert_eq!(under(&|r| r.revoked = BTreeSet::from(["t1".to_owned()])), Err(TokenError::Revoked.into()));
    assert_eq!(under(&|r| r.issued_after_s = Some(NOW_S + 1)), Err(TokenError::Revoked.into()));
    assert_eq!(under(&|r| r.audiences = BTreeSet::from(["x".to_owned()])), Err(TokenError::Audience.into()));
    let table = r#"{"agent":{"from":"sub","table":{"web":"bot"}}}"#;
    assert_eq!(under(&|r| r.mapping = serde_json::from_str(table).unwrap()), Err(IdentityError::OtherAgent));
    let quarantined = before.with_quarantined(&Arc::new(BTreeSet::from([1])));
    assert_eq!(again(&quarantined, NOW_S), Err(IdentityError::Quarantined));
}

#[test]
fn certificates_and_svids() {
    let (corporate, spire) = (pki::ca("corporate"), pki::ca("spire"));
    let domain = |ca: &pki::Ca| TrustDomainRecord {
        id: "acme/spire".parse().unwrap(),
        domain: "d.test".parse().unwrap(),
        audiences: BTreeSet::from(["gateway".to_owned()]),
        skew_s: 0,
        mapping: serde_json::from_str(r#"{"agent":{"from":"path","prefix":"/agent/"}}"#).unwrap(),
        bundle: format!(
            r#"{{"keys":[{{"kty":"EC","use":"x509-svid","x5c":["{}"]}},{}]}}"#,
            STANDARD.encode(ca.der()),
            Signer::of(Algorithm::Es256).jwk(r#","use":"jwt-svid","kid":"ES256""#)
        ),
    };
    let authority = |mapping: &str| AuthorityRecord {
        id: "acme/ca".parse().unwrap(),
        certificates: corporate.pem(),
        revocation_lists: String::new(),
        revocation: Revocation::Off,
        mapping: serde_json::from_str(mapping).unwrap(),
    };
    let by_uri = r#"{"agent":{"from":"uri","prefix":"spiffe://d.test/agent/"}}"#;
    let records = |mapping: &str, spire: &pki::Ca| RootRecords {
        issuers: vec![issuer("acme/idp", |_| {})],
        authorities: vec![authority(mapping)],
        trust_domains: vec![domain(spire)],
    };
    let by_dns = r#"{"agent":{"from":"dns","suffix":".test"}}"#;
    let snapshot = trust(records(by_dns, &spire));
    let present = |trust: &TrustSnapshot, ca: &pki::Ca, name: rcgen::SanType| {
        let proven = trust.by_certificate(&[leaf(ca, vec![name], |_| {})], ANYWHERE, NOW_S)?;
        assert!(proven.proof.facts().credential.starts_with("sha256:"));
        let again = trust.again(&proven.proof, ANYWHERE, NOW_S);
        assert_eq!(again, Ok(proven.identity.clone()));
        Ok((proven.identity.agent.id.to_string(), proven.identity.method))
    };
    let web = "acme/web".to_owned();
    assert_eq!(present(&snapshot, &corporate, dns("web.test")), Ok((web.clone(), IdentityMethod::Mtls)));
    let svid = || uri("spiffe://d.test/agent/web");
    assert_eq!(present(&snapshot, &spire, svid()), Ok((web, IdentityMethod::SpiffeX509)));
    // INVARIANT: a configured trust domain's IDs are given by its bundle alone, whatever an authority maps.
    let crossing = trust(records(by_uri, &spire));
    assert_eq!(
        present(&crossing, &corporate, svid()),
        Err(IdentityError::Certificate(CertificateError::UnknownAuthority))
    );
    let refused = snapshot.by_certificate(&[], ANYWHERE, NOW_S).err();
    assert_eq!(refused, Some(CertificateError::Missing.into()));
    let garbage = [CertificateDer::from(vec![0x30, 0x03, 2, 1, 1])];
    assert_eq!(
        snapshot.by_certificate(&garbage, ANYWHERE, NOW_S).err(),
        Some(CertificateError::Malformed.into())
    );
    // An SVID ends with its authority, at the next look.
    let proof =
        snapshot.by_certificate(&[leaf(&spire, vec![svid()], |_| {})], ANYWHERE, NOW_S).unwrap().proof;
    let rotated = trust(records(by_dns, &pki::ca("spire")));
    assert_eq!(rotated.again(&proof, ANYWHERE, NOW_S).err(), Some(CertificateError::Signature.into()));
    assert_eq!(snapshot.again(&proof, ANYWHERE, i64::MAX).err(), Some(CertificateError::Expired.into()));
    // Tokens of a known issuer are never taken for SVIDs, and those of no issuer are.
    let claims = |iss: &str, aud: &str| {
        format!(r#"{{{iss}"aud":"{aud}","sub":"spiffe://d.test/agent/web","exp":{}}}"#, NOW_S + 9)
    };
    let by = |claims: &str| snapshot.by_token(&signed(claims), ANYWHERE, NOW_S).map(|p| p.identity.method);
    assert_eq!(by(&claims("", "gateway")), Ok(IdentityMethod::SpiffeJwt));
    assert_eq!(by(&claims(r#""iss":"https://spire.test","#, "gateway")), Ok(IdentityMethod::SpiffeJwt));
    assert_eq!(
        by(&claims(r#""iss":"https://idp.test","#, "gateway")),
        Err(IdentityError::Token(MappingError::Nothing(Part::Agent).into()))
    );
    assert_eq!(by(&claims("", "other")), Err(TokenError::Audience.into()));
}
