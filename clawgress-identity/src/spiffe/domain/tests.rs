//! SVIDs by the rules of their standards, and trust domains that never cross.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::{BasicConstraints, ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose, SanType};

use super::*;
use crate::MappingError;
use crate::testing::pki::{self, Ca, NOW_S, dns, leaf, sub_ca, uri};
use crate::testing::{Signer, token};

fn x509(ca: &Ca) -> String {
    let certificate = STANDARD.encode(ca.der());
    Signer::of(Algorithm::Es256).jwk(&format!(r#","use":"x509-svid","x5c":["{certificate}"]"#))
}

fn jwt(algorithm: Algorithm) -> String {
    Signer::of(algorithm).jwk(&format!(r#","use":"jwt-svid","kid":"{}""#, algorithm.name()))
}

fn bundle(keys: &[String]) -> String {
    format!(r#"{{"spiffe_sequence":7,"spiffe_refresh_hint":300,"keys":[{}]}}"#, keys.join(","))
}

const BY_SEGMENT: &str = r#"{"agent":{"from":{"segment":3}},"environment":{"from":{"segment":1}},
    "require":[{"from":{"segment":0},"any_of":["ns"]},{"from":{"segment":2},"any_of":["sa"]}]}"#;

fn domain(name: &str, keys: &[String]) -> TrustDomain {
    TrustDomain::new(TrustDomainRecord {
        id: "acme/spire".parse().unwrap(),
        domain: name.parse().unwrap(),
        audiences: BTreeSet::from(["gateway".to_owned()]),
        skew_s: 0,
        mapping: serde_json::from_str(BY_SEGMENT).unwrap(),
        bundle: bundle(keys),
        source: None,
    })
    .unwrap()
}

const WEB: &str = "spiffe://d.test/ns/prod/sa/web";

fn judge(domain: &TrustDomain, chain: &[CertificateDer<'_>]) -> Result<String, CertificateError> {
    let details = Details::read(chain.first().unwrap())?;
    domain.judge_chain(chain, &details, NOW_S).map(|(mapped, _)| mapped.agent.to_string())
}

#[test]
fn x509_svids() {
    let root = pki::ca("root");
    let own = domain("d.test", &[x509(&root)]);
    let with = |names: Vec<SanType>, change: fn(&mut rcgen::CertificateParams)| {
        judge(&own, &[leaf(&root, names, change)])
    };
    let web = || vec![uri(WEB)];
    assert_eq!(with(web(), |_| {}), Ok("acme/web".to_owned()));
    assert_eq!(with(vec![uri(WEB), dns("web.test")], |_| {}), Ok("acme/web".to_owned()));
    for names in [
        vec![],
        vec![dns("web.test")],
        vec![uri(WEB), uri(WEB)],
        vec![uri(WEB), uri("https://web.test")],
        vec![uri("spiffe://d.test")],
        vec![uri("spiffe://d.test/")],
        vec![uri("spiffe://d.test/ns/../ns/prod/sa/web")],
        vec![uri("SPIFFE://d.test/ns/prod/sa/web")],
        vec![uri("spiffe://D.test/ns/prod/sa/web")],
        vec![uri("spiffe://other.test/ns/prod/sa/web")],
        vec![uri("spiffe://d.test:443/ns/prod/sa/web")],
        vec![uri("https://d.test/ns/prod/sa/web")],
    ] {
        assert_eq!(with(names.clone(), |_| {}), Err(CertificateError::NotAnSvid), "{names:?}");
    }
    for change in [
        (|p| p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained)) as fn(&mut rcgen::CertificateParams),
        |p| p.key_usages.clear(),
        |p| p.key_usages = vec![KeyUsagePurpose::KeyEncipherment],
        |p| p.key_usages.push(KeyUsagePurpose::KeyCertSign),
        |p| p.key_usages.push(KeyUsagePurpose::CrlSign),
        |p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth],
    ] {
        assert_eq!(with(web(), change), Err(CertificateError::Usage));
    }
    let elsewhere = |id: &str| with(vec![uri(id)], |_| {});
    assert_eq!(elsewhere("spiffe://d.test/sa/web"), Err(MappingError::Required(1).into()));
    assert_eq!(elsewhere("spiffe://d.test/ns/prod/sa/web/x"), Ok("acme/web".to_owned()));
}

#[test]
fn signing_certificates() {
    let root = pki::ca("root");
    let own = domain("d.test", &[x509(&root)]);
    let below = |change: fn(&mut rcgen::CertificateParams)| {
        let sub = sub_ca("sub", &root, change);
        judge(&own, &[leaf(&sub, vec![uri(WEB)], |_| {}), sub.der().clone()])
    };
    assert_eq!(below(|_| {}), Ok("acme/web".to_owned()));
    assert_eq!(below(|p| p.subject_alt_names = vec![uri("spiffe://d.test")]), Ok("acme/web".to_owned()));
    for change in [
        (|p| p.subject_alt_names = vec![uri("spiffe://d.test/sub")]) as fn(&mut rcgen::CertificateParams),
        |p| p.subject_alt_names = vec![uri("spiffe://D.TEST")],
        |p| p.key_usages.clear(),
        |p| p.key_usages = vec![KeyUsagePurpose::DigitalSignature],
    ] {
        assert_eq!(below(change), Err(CertificateError::Usage));
    }
}

/// Federation: each trust domain by its own bundle, although all are trusted.
#[test]
fn trust_domains_never_cross() {
    let (ours, theirs) = (pki::ca("ours"), pki::ca("theirs"));
    let key = |algorithm| Signer::of(algorithm).jwk(r#","use":"jwt-svid","kid":"k""#);
    let both = [
        domain("ours.test", &[x509(&ours), key(Algorithm::Es256)]),
        domain("theirs.test", &[x509(&theirs), key(Algorithm::Es384)]),
    ];
    let domains = TrustDomains::new(both.map(Arc::new), []);
    for (name, ca, is_right) in [
        ("ours.test", &ours, true),
        ("theirs.test", &theirs, true),
        ("ours.test", &theirs, false),
        ("theirs.test", &ours, false),
    ] {
        let chain = [leaf(ca, vec![uri(&format!("spiffe://{name}/ns/prod/sa/web"))], |_| {})];
        let details = Details::read(chain.first().unwrap()).unwrap();
        let domain = domains.of_certificate(&details).unwrap().unwrap();
        assert_eq!(domain.record().domain.as_str(), name);
        let judged = domain.judge_chain(&chain, &details, NOW_S).map(drop);
        assert_eq!(judged, if is_right { Ok(()) } else { Err(CertificateError::UnknownAuthority) });
    }
    for (name, algorithm, expected) in [
        ("ours.test", Algorithm::Es256, Ok(())),
        ("theirs.test", Algorithm::Es384, Ok(())),
        ("ours.test", Algorithm::Es384, Err(TokenError::UnknownKey)),
        ("theirs.test", Algorithm::Es256, Err(TokenError::UnknownKey)),
    ] {
        let claims =
            format!(r#"{{"sub":"spiffe://{name}/ns/prod/sa/web","aud":"gateway","exp":{}}}"#, NOW_S + 9);
        let header = format!(r#"{{"alg":"{}","kid":"k"}}"#, algorithm.name());
        let text = Signer::of(algorithm).token(algorithm, &header, &claims);
        let token = UnverifiedToken::parse(&text).unwrap();
        let domain = domains.of_token(token.claims()).unwrap();
        let verified = domain.verify(token).map(|token| domain.judge_token(&token, NOW_S).map(drop));
        assert_eq!(verified.and_then(|judged| judged), expected, "{name} {algorithm:?}");
    }
    let unknown = [leaf(&ours, vec![uri("spiffe://unknown.test/a")], |_| {})];
    let details = Details::read(unknown.first().unwrap()).unwrap();
    assert!(domains.of_certificate(&details).unwrap().is_none());
}

#[test]
fn jwt_svids() {
    let own = domain("d.test", &Algorithm::ALL.map(jwt));
    let judge_text = |text: &str| {
        let token = own.verify(UnverifiedToken::parse(text)?)?;
        own.judge_token(&token, NOW_S).map(|(mapped, _)| mapped.agent.to_string())
    };
    let claims = |sub: &str, rest: &str| format!(r#"{{"sub":"{sub}","exp":{}{rest}}}"#, NOW_S + 60);
    let right = claims(WEB, r#","aud":["x","gateway"]"#);
    for algorithm in Algorithm::ALL {
        let expected = match algorithm {
            Algorithm::EdDsa => Err(TokenError::AlgorithmNotAllowed),
            _ => Ok("acme/web".to_owned()),
        };
        assert_eq!(judge_text(&token(algorithm, &right)), expected, "{algorithm:?}");
    }
    let judge = |claims: &str| judge_text(&token(Algorithm::Es256, claims));
    for sub in [
        "web",
        "",
        "spiffe://d.test",
        "spiffe://d.test/",
        "spiffe://other.test/ns/prod/sa/web",
        "SPIFFE://d.test/a",
    ] {
        assert_eq!(judge(&claims(sub, r#","aud":"gateway""#)), Err(TokenError::NotAnSvid), "{sub}");
    }
    assert_eq!(judge(&claims(WEB, "")), Err(TokenError::Audience));
    assert_eq!(judge(&claims(WEB, r#","aud":[]"#)), Err(TokenError::Audience));
    assert_eq!(judge(&claims(WEB, r#","aud":"other""#)), Err(TokenError::Audience));
    assert_eq!(judge(&format!(r#"{{"sub":"{WEB}","aud":"gateway"}}"#)), Err(TokenError::Missing("exp")));
    assert_eq!(
        judge(&format!(r#"{{"sub":"{WEB}","aud":"gateway","exp":{NOW_S}}}"#)),
        Err(TokenError::Expired)
    );
    let headed = |header: &str| {
        let header = format!(r#"{{"alg":"ES256","kid":"ES256"{header}}}"#);
        judge_text(&Signer::of(Algorithm::Es256).token(Algorithm::Es256, &header, &right))
    };
    for typ in ["JWT", "JOSE"] {
        assert!(headed(&format!(r#","typ":"{typ}""#)).is_ok());
    }
    for typ in ["jwt", "at+jwt", "application/JWT", ""] {
        assert_eq!(headed(&format!(r#","typ":"{typ}""#)), Err(TokenError::Type), "{typ}");
    }
    assert_eq!(headed(r#","jku":"https://d.test""#), Err(TokenError::HeaderMember));
    // No audience, no tokens: a trust domain for certificates alone.
    let record = TrustDomainRecord { audiences: BTreeSet::new(), ..own.record().clone() };
    let none = TrustDomain::new(record).unwrap();
    let text = token(Algorithm::Es256, &right);
    let token = none.verify(UnverifiedToken::parse(&text).unwrap()).unwrap();
    assert_eq!(none.judge_token(&token, NOW_S), Err(TokenError::Audience));
}

#[test]
fn bundles() {
    let root = pki::ca("root");
    let parse = |text: &str| SpiffeBundle::parse(text.as_bytes());
    let es256 = jwt(Algorithm::Es256);
    let whole =
        parse(&bundle(&[x509(&root), es256.clone(), r#"{"kty":"EC","use":"sig"}"#.to_owned()])).unwrap();
    assert_eq!((whole.authorities(), whole.keys().len(), whole.ignored()), (1, 1, 1));
    assert_eq!((whole.sequence, whole.refresh_hint_s), (Some(7), Some(300)));
    let empty = parse(r#"{"keys":[],"spiffe_refresh_hint":0}"#).unwrap();
    assert_eq!((empty.authorities(), empty.keys().len(), empty.refresh_hint_s), (0, 0, Some(60)));
    // A key for certificates verifies no token, nor the other way round.
    assert_eq!(parse(&bundle(&[x509(&root)])).unwrap().keys().len(), 0);
    assert_eq!(parse(&bundle(std::slice::from_ref(&es256))).unwrap().authorities(), 0);
    let certificate = STANDARD.encode(root.der());
    let client = STANDARD.encode(leaf(&root, vec![uri(WEB)], |_| {}));
    let x5c = |list: &str| bundle(&[format!(r#"{{"kty":"EC","use":"x509-svid","x5c":{list}}}"#)]);
    let one = format!(r#"["{certificate}"]"#);
    assert!(parse(&x5c(&one)).is_ok());
    for wrong in ["[]", "7", r#"["!"]"#, "[7]", &format!(r#"["{certificate}","{certificate}"]"#)] {
        assert_eq!(parse(&x5c(wrong)).err(), Some(BundleError::Certificate), "{wrong}");
    }
    let not_authority = parse(&x5c(&format!(r#"["{client}"]"#)));
    assert!(matches!(not_authority.err(), Some(BundleError::Authority(_))));
    assert_eq!(parse(&bundle(&[es256.replace(r#","kid":"ES256""#, "")])).err(), Some(BundleError::KeyId));
    for usage in ["jwt-svid", "x509-svid", "other"] {
        let private = format!(r#"{{"kty":"EC","use":"{usage}","kid":"k","d":"AA","x5c":{one}}}"#);
        assert_eq!(parse(&bundle(&[private])).err(), Some(BundleError::Keys(crate::JwksError::Private)));
    }
    for text in [r#"{"keys":[],"spiffe_sequence":-1}"#, r#"{"keys":[],"spiffe_sequence":1.5}"#] {
        assert_eq!(parse(text).err(), Some(BundleError::Number("spiffe_sequence")), "{text}");
    }
}

fn sourced(source: &str, bundle: &str, fetched: Option<String>) -> Result<TrustDomain, TrustDomainError> {
    let record = serde_json::json!({
        "id": "acme/spire", "domain": "d.test", "audiences": ["gateway"],
        "mapping": serde_json::from_str::<serde_json::Value>(BY_SEGMENT).unwrap(),
        "bundle": bundle, "source": serde_json::from_str::<serde_json::Value>(source).unwrap()
    });
    TrustDomain::with_fetched(serde_json::from_value(record).unwrap(), fetched)
}

/// A bundle that is fetched alone proves agents, and none is trusted before it came.
#[test]
fn bundles_of_a_source() {
    let (old, new) = (pki::ca("old"), pki::ca("new"));
    let (of_old, of_new) = (bundle(&[x509(&old)]), bundle(&[x509(&new)]));
    let chain = |ca: &Ca| [leaf(ca, vec![uri(WEB)], |_| {})];
    let by_spiffe =
        r#"{"endpoint":{"url":"https://e.test/","profile":{"https_spiffe":"spiffe://d.test/server"}}}"#;
    for (source, given) in [(r#"{"workload_api":{}}"#, ""), (by_spiffe, of_old.as_str())] {
        let none = sourced(source, given, None).unwrap();
        assert_eq!(judge(&none, &chain(&old)), Err(CertificateError::UnknownAuthority), "{source}");
        let fetched = sourced(source, given, Some(of_new.clone())).unwrap();
        assert_eq!(judge(&fetched, &chain(&new)), Ok("acme/web".to_owned()));
        assert_eq!(judge(&fetched, &chain(&old)), Err(CertificateError::UnknownAuthority));
        assert!(fetched.is_of(fetched.record(), Some(&of_new)) && !fetched.is_of(fetched.record(), None));
        assert!(sourced(source, given, Some("[]".to_owned())).is_err());
    }
}

#[test]
fn sources_that_are_refused() {
    use crate::{ProviderError, SourceError, UrlError};
    let given = bundle(&[]);
    let endpoint = |more: &str| format!(r#"{{"endpoint":{{"url":"https://e.test/b?x=1"{more}}}}}"#);
    let by_spiffe = |id: &str| endpoint(&format!(r#","profile":{{"https_spiffe":"{id}"}}"#));
    let at = |url: &str| format!(r#"{{"endpoint":{{"url":"{url}"}}}}"#);
    for (source, given, error) in [
        (endpoint(""), "", None),
        (by_spiffe("spiffe://other.test/server"), "", None),
        (by_spiffe("spiffe://d.test/server"), &*given, None),
        (by_spiffe("spiffe://d.test/server"), "", Some(SourceError::First)),
        (by_spiffe("spiffe://other.test/server"), &*given, Some(SourceError::Given)),
        (by_spiffe("spiffe://other.test"), "", Some(SourceError::Id)),
        (r#"{"workload_api":{}}"#.to_owned(), &*given, Some(SourceError::Given)),
        (at("http://e.test/"), "", Some(SourceError::Url(UrlError::Scheme))),
        (at("https://u@e.test/"), "", Some(SourceError::Url(UrlError::Parts))),
        (endpoint(r#","fresh_s_max":0"#), "", Some(ProviderError::Fresh.into())),
        (endpoint(r#","stale_s_max":604801"#), "", Some(ProviderError::Stale.into())),
        (r#"{"workload_api":{"stale_s_max":604801}}"#.to_owned(), "", Some(ProviderError::Stale.into())),
    ] {
        let refused = sourced(&source, given, None).err();
        assert_eq!(refused, error.map(TrustDomainError::Source), "{source}");
    }
    assert_eq!(sourced("null", "", None).err(), Some(TrustDomainError::NoBundle));
    let with_ca = endpoint(&format!(
        r#","profile":{{"https_spiffe":"spiffe://other.test/s"}},"ca":{}"#,
        serde_json::Value::from(pki::ca("web").pem())
    ));
    assert_eq!(sourced(&with_ca, "", None).err(), Some(TrustDomainError::Source(SourceError::Ca)));
}

/// An endpoint by `https_spiffe` is the workload that it is to be, and no other of its trust domain.
#[test]
fn servers_by_their_svid() {
    let (root, other) = (pki::ca("root"), pki::ca("other"));
    let own = SpiffeBundle::parse(bundle(&[x509(&root)]).as_bytes()).unwrap();
    let id: SpiffeId = "spiffe://d.test/server".parse().unwrap();
    let verify = |ca: &Ca, names: Vec<SanType>, change: fn(&mut rcgen::CertificateParams)| {
        own.verify_server(&[leaf(ca, names, change)], &id, NOW_S)
    };
    let right = || vec![uri("spiffe://d.test/server")];
    assert_eq!(verify(&root, right(), |_| {}), Ok(()));
    assert_eq!(verify(&root, right(), |p| p.extended_key_usages.clear()), Ok(()));
    assert_eq!(verify(&other, right(), |_| {}), Err(CertificateError::UnknownAuthority));
    for names in [vec![uri("spiffe://d.test/other")], vec![dns("d.test")], vec![uri("spiffe://d.test")]] {
        assert_eq!(verify(&root, names, |_| {}), Err(CertificateError::NotAnSvid));
    }
    let for_clients = |p: &mut rcgen::CertificateParams| {
        p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    };
    assert_eq!(verify(&root, right(), for_clients), Err(CertificateError::Usage));
    assert_eq!(own.verify_server(&[], &id, NOW_S), Err(CertificateError::Missing));
    let late = own.verify_server(&[leaf(&root, right(), |_| {})], &id, NOW_S + 400_000_000);
    assert_eq!(late, Err(CertificateError::Expired));
}
