//! Credentials against whole snapshots: who they prove, where they may come from, and what ends them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::*;
use crate::testing::pki::{self, NOW_S, dns, leaf, uri};
use crate::testing::{Signer, jwks, token};
use crate::{
    Agent, AgentState, Algorithm, AuthorityRecord, Delegation, IssuerRecord, MappingError, Part, Revocation,
    RootError, RootRecords, Roots, TrustDomainRecord,
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
    let proven = trust.by_token(token, ANYWHERE, NOW_S).map_err(|refused| refused.why)?;
    Ok(proven.identity.agent.id.to_string())
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
    assert_eq!((facts.subject.as_deref(), facts.expires_at_s), (Some("web"), NOW_S + 90));
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
    assert_eq!(trust.by_token(&right, Origin::Agent(&bot), NOW_S).err().map(|refused| refused.why), conflict);
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
    let again =
        |trust: &TrustSnapshot, now_s| trust.again(&proof, ANYWHERE, now_s).map(|p| p.identity.agent.index);
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
        source: None,
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
        ..RootRecords::default()
    };
    let by_dns = r#"{"agent":{"from":"dns","suffix":".test"}}"#;
    let snapshot = trust(records(by_dns, &spire));
    let present = |trust: &TrustSnapshot, ca: &pki::Ca, name: rcgen::SanType| {
        let proven = trust.by_certificate([leaf(ca, vec![name], |_| {})], ANYWHERE, NOW_S)?;
        assert!(proven.proof.facts().credential.starts_with("sha256:"));
        let again = trust.again(&proven.proof, ANYWHERE, NOW_S);
        assert_eq!(again.map(|p| p.identity), Ok(proven.identity.clone()));
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
    let refused = snapshot.by_certificate([], ANYWHERE, NOW_S).err();
    assert_eq!(refused, Some(CertificateError::Missing.into()));
    let garbage = [CertificateDer::from(vec![0x30, 0x03, 2, 1, 1])];
    assert_eq!(
        snapshot.by_certificate(garbage, ANYWHERE, NOW_S).err(),
        Some(CertificateError::Malformed.into())
    );
    // An SVID ends with its authority, at the next look.
    let proof = snapshot.by_certificate([leaf(&spire, vec![svid()], |_| {})], ANYWHERE, NOW_S).unwrap().proof;
    let rotated = trust(records(by_dns, &pki::ca("spire")));
    assert_eq!(rotated.again(&proof, ANYWHERE, NOW_S).err(), Some(CertificateError::Signature.into()));
    assert_eq!(snapshot.again(&proof, ANYWHERE, i64::MAX).err(), Some(CertificateError::Expired.into()));
    // Tokens of a known issuer are never taken for SVIDs, and those of no issuer are.
    let claims = |iss: &str, aud: &str| {
        format!(r#"{{{iss}"aud":"{aud}","sub":"spiffe://d.test/agent/web","exp":{}}}"#, NOW_S + 9)
    };
    let by = |claims: &str| {
        let proven = snapshot.by_token(&signed(claims), ANYWHERE, NOW_S).map_err(|refused| refused.why)?;
        Ok::<_, IdentityError>(proven.identity.method)
    };
    assert_eq!(by(&claims("", "gateway")), Ok(IdentityMethod::SpiffeJwt));
    assert_eq!(by(&claims(r#""iss":"https://spire.test","#, "gateway")), Ok(IdentityMethod::SpiffeJwt));
    assert_eq!(
        by(&claims(r#""iss":"https://idp.test","#, "gateway")),
        Err(IdentityError::Token(MappingError::Nothing(Part::Agent).into()))
    );
    assert_eq!(by(&claims("", "other")), Err(TokenError::Audience.into()));
}

/// Who acts for an agent has to be somebody, where that is asked for, and stay so.
#[test]
fn actors_that_have_to_be_known() {
    let known = |r: &mut IssuerRecord| {
        r.act = Delegation::Known;
        r.actor = Some(serde_json::from_str(r#"{"from":"sub","prefix":"agent:"}"#).unwrap());
    };
    let trust = with_issuers(vec![issuer("acme/idp", known)]);
    let by = |act: &str| present(&trust, &signed(&claims("web", act)));
    let web = Ok("acme/web".to_owned());
    assert_eq!(by(""), web);
    assert_eq!(by(r#","act":{"sub":"agent:bot"}"#), web);
    assert_eq!(by(r#","act":{"sub":"agent:bot","iss":"https://idp.test","act":{"sub":"agent:web"}}"#), web);
    let nothing = IdentityError::Token(MappingError::Nothing(Part::Actor).into());
    for (act, error) in [
        (r#","act":{"sub":"agent:gone"}"#, TokenError::UnknownActor.into()),
        (r#","act":{"sub":"agent:bot","act":{"sub":"agent:gone"}}"#, TokenError::UnknownActor.into()),
        (r#","act":{"sub":"agent:bot","iss":"https://other.test"}"#, TokenError::UnknownActor.into()),
        (r#","act":{"sub":"agent:off"}"#, IdentityError::Disabled),
        (r#","act":{"sub":"user:7"}"#, nothing),
        (r#","act":{"iss":"https://idp.test"}"#, nothing),
        (
            r#","act":{"sub":["agent:bot","agent:web"]}"#,
            IdentityError::Token(MappingError::Several(Part::Actor).into()),
        ),
        (r#","act":"agent:bot""#, TokenError::Actors.into()),
    ] {
        assert_eq!(by(act), Err(error), "{act}");
    }
    // An actor's end is the end of what it had under way.
    let token = signed(&claims("web", r#","act":{"sub":"agent:bot"}"#));
    let proof = trust.by_token(&token, ANYWHERE, NOW_S).unwrap().proof;
    assert!(trust.again(&proof, ANYWHERE, NOW_S).is_ok());
    let quarantined = trust.with_quarantined(&Arc::new(BTreeSet::from([4])));
    assert_eq!(quarantined.again(&proof, ANYWHERE, NOW_S).err(), Some(IdentityError::Quarantined));
    assert_eq!(present(&quarantined, &token), Err(IdentityError::Quarantined));
    // Where the chain is only recorded, it judges nobody; where it may not be, it ends at once.
    let recorded = with_issuers(vec![issuer("acme/idp", |_| {})]);
    assert_eq!(present(&recorded, &signed(&claims("web", r#","act":{"sub":"agent:off"}"#))), web);
    let none = with_issuers(vec![issuer("acme/idp", |r| r.act = Delegation::None)]);
    assert_eq!(none.again(&proof, ANYWHERE, NOW_S).err(), Some(TokenError::Delegated.into()));
    assert_eq!(present(&none, &token), Err(TokenError::Delegated.into()));
    assert_eq!(present(&none, &signed(&claims("web", ""))), web);
}

/// What is said of a refused token is what its issuer has signed, and no more.
#[test]
fn a_refused_token_is_named_once_its_signature_is_right() {
    let trust = with_issuers(vec![issuer("acme/idp", |r| r.revoked = BTreeSet::from(["t1".to_owned()]))]);
    let refused = |token: &str| trust.by_token(token, ANYWHERE, NOW_S).unwrap_err();
    let right = signed(&claims("web", ""));
    let id = || "acme/idp".parse().unwrap();
    let said = refused(&right);
    let of = |token: &str, agent: Option<&str>| {
        let agent = agent.map(|agent| agent.parse().unwrap());
        Some(RefusedCredential { root: id(), id: token.to_owned(), agent })
    };
    assert_eq!((said.why, said.credential), (TokenError::Revoked.into(), of("t1", None)));
    let unknown = claims("nobody", "").replace("t1", "t2");
    // Whom it stands for is told where nothing else is wrong with it.
    let said = refused(&signed(&unknown));
    assert_eq!((said.why, said.credential), (IdentityError::UnknownAgent, of("t2", Some("acme/nobody"))));
    let unnamed = claims("nobody", "").replace(r#""jti":"t1","#, "");
    assert!(refused(&signed(&unnamed)).credential.unwrap().id.starts_with("sha256:"));
    // Within the signature, where all six bits of a character count: never the same one.
    let (start, end) = right.split_at(right.len() - 20);
    let other = if end.starts_with('A') { 'B' } else { 'A' };
    let forged = format!("{start}{other}{}", &end[1..]);
    for token in
        [&forged, "", "x.y.z", &signed(&unknown.replace("idp.test", "evil.test")), &format!("{right}.x")]
    {
        let said = refused(token);
        assert_eq!((&said.credential, &said.unknown_key_of), (&None, &None), "{said:?}");
    }
}

/// A key that is not known may be one that was rolled over, where keys are fetched.
#[test]
fn an_unknown_key_names_the_provider_to_ask() {
    let fetched = |keys: &str| {
        let issuers = vec![issuer("acme/idp", |r| {
            r.keys.clear();
            r.provider = Some(serde_json::from_str(r#"{"stale_s_max":60}"#).unwrap());
        })];
        let id: RootId = "acme/idp".parse().unwrap();
        let fetched = if keys.is_empty() { BTreeMap::new() } else { BTreeMap::from([(id, keys.to_owned())]) };
        trust(RootRecords { issuers, fetched, ..RootRecords::default() })
    };
    let right = signed(&claims("web", ""));
    let new = format!(r#"{{"keys":[{}]}}"#, Signer::new_ed25519().jwk(r#","kid":"new""#));
    for trust in [fetched(""), fetched(&new)] {
        let refused = trust.by_token(&right, ANYWHERE, NOW_S).unwrap_err();
        assert_eq!(refused.why, TokenError::UnknownKey.into());
        assert_eq!(refused.unknown_key_of, Some("acme/idp".parse().unwrap()));
    }
    let with_keys = fetched(&jwks());
    assert_eq!(present(&with_keys, &right), Ok("acme/web".to_owned()));
    // What its keys opened ends with them.
    let proof = with_keys.by_token(&right, ANYWHERE, NOW_S).unwrap().proof;
    assert_eq!(fetched(&new).again(&proof, ANYWHERE, NOW_S).err(), Some(TokenError::UnknownKey.into()));
    assert_eq!(fetched("").again(&proof, ANYWHERE, NOW_S).err(), Some(TokenError::UnknownKey.into()));
    // Keys that are given need no provider to be asked, and count beside what is fetched.
    let given = with_issuers(vec![issuer("acme/idp", |r| r.algorithms = BTreeSet::from([Algorithm::EdDsa]))]);
    let other =
        Signer::new_ed25519().token(Algorithm::EdDsa, r#"{"alg":"EdDSA","kid":"x"}"#, &claims("web", ""));
    assert_eq!(given.by_token(&other, ANYWHERE, NOW_S).unwrap_err().unknown_key_of, None);
    let both =
        issuer("acme/idp", |r| r.provider = Some(serde_json::from_str(r#"{"stale_s_max":60}"#).unwrap()));
    let fetched = BTreeMap::from([(both.id.clone(), new)]);
    let both = trust(RootRecords { issuers: vec![both], fetched, ..RootRecords::default() });
    assert_eq!(present(&both, &right), Ok("acme/web".to_owned()));
}

#[test]
fn what_is_logged_of_a_proof_names_nobody() {
    let trust = with_issuers(vec![issuer("acme/idp", |_| {})]);
    let secret = "person@example.test";
    let act = format!(r#","act":{{"sub":"{secret}"}},"email":"{secret}","address":{{"x":["{secret}"]}}"#);
    let text =
        signed(&claims("web", &act).replace(r#""sub":"web""#, &format!(r#""sub":["web"],"upn":"{secret}""#)));
    let proven = trust.by_token(&text, ANYWHERE, NOW_S);
    // A subject that is a list is malformed for records.
    assert!(proven.is_err());
    let text = signed(&claims("web", &act));
    let proven = trust.by_token(&text, ANYWHERE, NOW_S).unwrap();
    let token = UnverifiedToken::parse(&text).unwrap();
    let signature = text.rsplit('.').next().unwrap();
    for shown in [
        format!("{proven:?}"),
        format!("{proven:#?}"),
        format!("{token:?}"),
        format!("{:?}", proven.proof.facts()),
    ] {
        assert!(!shown.contains("person") && !shown.contains(signature), "{shown}");
    }
}

fn with_authority(record: AuthorityRecord) -> TrustSnapshot {
    trust(RootRecords { authorities: vec![record], ..RootRecords::default() })
}

fn corporate(ca: &pki::Ca, lists: &str, revocation: Revocation) -> AuthorityRecord {
    AuthorityRecord {
        id: "acme/ca".parse().unwrap(),
        certificates: ca.pem(),
        revocation_lists: lists.to_owned(),
        revocation,
        mapping: serde_json::from_str(r#"{"agent":{"from":"dns","suffix":".test"}}"#).unwrap(),
    }
}

/// A chain ends with the first of its certificates, and is judged again when a list gets too old.
#[test]
fn chains_end_by_time() {
    const YEAR_2031_S: i64 = 1_924_992_000;
    const JUNE_2030_S: i64 = 1_906_502_400;
    let ca = pki::ca("corporate");
    let short = pki::sub_ca("short", &ca, |p| p.not_after = rcgen::date_time_ymd(2030, 6, 1));
    let by = |trust: &TrustSnapshot, chain: Vec<CertificateDer<'static>>| {
        trust.by_certificate(chain, ANYWHERE, NOW_S).unwrap().proof
    };
    let without = with_authority(corporate(&ca, "", Revocation::Off));
    let web = || vec![dns("web.test")];
    let proof = by(&without, vec![leaf(&ca, web(), |_| {})]);
    assert_eq!(proof.facts().expires_at_s, YEAR_2031_S + 1);
    let again = |trust: &TrustSnapshot, proof, now_s| trust.again(proof, ANYWHERE, now_s).map(|p| p.proof);
    assert!(again(&without, &proof, YEAR_2031_S).is_ok());
    let expired = Some(IdentityError::from(CertificateError::Expired));
    assert_eq!(again(&without, &proof, YEAR_2031_S + 1).err(), expired);
    let proof = by(&without, vec![leaf(&short, web(), |_| {}), short.der().clone()]);
    assert_eq!(proof.facts().expires_at_s, JUNE_2030_S + 1, "its authority ends before it does");
    // Two lists of one authority: the first is too old in 2031, and the certificate has expired before it is.
    let lists = |year| pki::list(&ca, &[9], year);
    let with = |lists: &str| with_authority(corporate(&ca, lists, Revocation::Leaf));
    let long = |p: &mut rcgen::CertificateParams| p.not_after = rcgen::date_time_ymd(2039, 1, 1);
    let listed = with(&lists(2031));
    let proof = by(&listed, vec![leaf(&ca, web(), long)]);
    assert_eq!(proof.facts().expires_at_s, YEAR_2031_S, "`nextUpdate` itself is too late");
    assert!(again(&listed, &proof, YEAR_2031_S - 1).is_ok());
    let unknown = Some(IdentityError::from(CertificateError::RevocationUnknown));
    assert_eq!(again(&listed, &proof, YEAR_2031_S).err(), unknown);
    let renewed = again(&with(&lists(2035)), &proof, YEAR_2031_S).unwrap();
    assert!(renewed.facts().expires_at_s > YEAR_2031_S, "a later list says a later end");
}

/// The signatures of a chain are not checked at each request; all that could change the answer is.
#[test]
fn chains_are_judged_again_when_something_changed() {
    let ca = pki::ca("corporate");
    let record = || corporate(&ca, &pki::list(&ca, &[9], 2035), Revocation::Leaf);
    let before = with_authority(record());
    let chain = || vec![leaf(&ca, vec![dns("web.test")], |_| {})];
    let proof = before.by_certificate(chain(), ANYWHERE, NOW_S).unwrap().proof;
    let again = |trust: &TrustSnapshot, now_s| trust.again(&proof, ANYWHERE, now_s).map(|p| p.proof);
    let is_kept = |trust: &TrustSnapshot, now_s| Arc::ptr_eq(&again(trust, now_s).unwrap(), &proof);
    assert!(is_kept(&before, NOW_S) && is_kept(&before, NOW_S + JUDGED_S_MAX - 1));
    assert!(!is_kept(&before, NOW_S + JUDGED_S_MAX), "not for long");
    assert!(!is_kept(&before, NOW_S - 1), "nor when the clock went back");
    // The same people trusted, and another registry: kept, and held to it.
    let quarantined = before.with_quarantined(&Arc::new(BTreeSet::from([1])));
    assert_eq!(again(&quarantined, NOW_S).err(), Some(IdentityError::Quarantined));
    let shared = TrustSnapshot::new([], [], []).with_roots(Arc::clone(before.roots()));
    assert_eq!(again(&shared, NOW_S).err(), Some(IdentityError::UnknownAgent));
    // Others trusted, however alike: judged in full.
    assert!(!is_kept(&with_authority(record()), NOW_S));
    let revoked = corporate(&ca, &pki::list(&ca, &[7], 2035), Revocation::Leaf);
    assert_eq!(again(&with_authority(revoked), NOW_S).err(), Some(CertificateError::Revoked.into()));
    let table = r#"{"agent":{"from":"dns","table":{"web.test":"bot"}}}"#;
    let remapped = AuthorityRecord { mapping: serde_json::from_str(table).unwrap(), ..record() };
    assert_eq!(again(&with_authority(remapped), NOW_S).err(), Some(IdentityError::OtherAgent));
}
