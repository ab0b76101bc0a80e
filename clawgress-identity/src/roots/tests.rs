//! Roots of which some are of no use: they are left out alone, and leave nobody more.

use super::*;
use crate::testing::pki::{self, NOW_S, dns, leaf, uri};
use crate::testing::{Signer, jwks};
use crate::{Algorithm, CertificateError, IdentityError, Origin, Revocation, TokenError, TrustSnapshot};

const ANYWHERE: Origin<'static> =
    Origin::Address { interface: None, address: std::net::IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1)) };

fn issuer(id: &str, issuer: &str, audience: &str) -> IssuerRecord {
    let text = format!(
        r#"{{"id":"{id}","issuer":"{issuer}","audiences":["{audience}"],"algorithms":["ES256"],"mapping":{{"agent":{{"from":"sub"}}}}}}"#
    );
    IssuerRecord { keys: jwks(), ..serde_json::from_str(&text).unwrap() }
}

fn domain(id: &str, name: &str, ca: &pki::Ca) -> TrustDomainRecord {
    use base64::Engine as _;
    let x5c = base64::engine::general_purpose::STANDARD.encode(ca.der());
    TrustDomainRecord {
        id: id.parse().unwrap(),
        domain: name.parse().unwrap(),
        audiences: BTreeSet::from(["gateway".to_owned()]),
        skew_s: 0,
        mapping: serde_json::from_str(r#"{"agent":{"from":"path","prefix":"/"}}"#).unwrap(),
        bundle: format!(
            r#"{{"keys":[{{"kty":"EC","use":"x509-svid","x5c":["{x5c}"]}},{}]}}"#,
            Signer::of(Algorithm::Es256).jwk(r#","use":"jwt-svid","kid":"ES256""#)
        ),
        source: None,
    }
}

fn authority(id: &str, ca: &pki::Ca, mapping: &str) -> AuthorityRecord {
    AuthorityRecord {
        id: id.parse().unwrap(),
        certificates: ca.pem(),
        revocation_lists: String::new(),
        revocation: Revocation::Off,
        mapping: serde_json::from_str(mapping).unwrap(),
    }
}

fn trust(roots: Roots) -> TrustSnapshot {
    let agent = |n: u32, id: &str| {
        let text = format!(r#"{{"id":"{id}","index":{n},"state":"active"}}"#);
        serde_json::from_str::<crate::Agent>(&text).unwrap()
    };
    TrustSnapshot::new([agent(1, "acme/web"), agent(2, "other/web")], [], []).with_roots(Arc::new(roots))
}

fn claims(iss: &str, aud: &str, sub: &str) -> String {
    format!(r#"{{"iss":"{iss}","aud":"{aud}","sub":"{sub}","exp":{}}}"#, NOW_S + 9)
}

fn present(trust: &TrustSnapshot, claims: &str) -> Result<String, IdentityError> {
    let token = crate::testing::token(Algorithm::Es256, claims);
    let proven = trust.by_token(&token, ANYWHERE, NOW_S).map_err(|refused| refused.why)?;
    Ok(proven.identity.agent.id.to_string())
}

fn renew(records: RootRecords) -> (TrustSnapshot, Vec<String>) {
    let (roots, refused) = Roots::renew(records, &Roots::default());
    (trust(roots), refused.iter().map(ToString::to_string).collect())
}

#[test]
fn an_issuer_of_no_use_is_left_out_alone() {
    let (good, mut bad) =
        (issuer("acme/good", "https://good.test", "g"), issuer("other/bad", "https://bad.test", "g"));
    bad.keys = "{}".to_owned();
    let records = RootRecords { issuers: vec![good.clone(), bad], ..RootRecords::default() };
    assert!(Roots::new(records.clone()).is_err(), "whoever sets one is told");
    let (snapshot, refused) = renew(records);
    assert_eq!(refused, ["issuer `other/bad`: the key set has no list `keys` of objects"]);
    assert_eq!(present(&snapshot, &claims("https://good.test", "g", "web")), Ok("acme/web".to_owned()));
    let of_bad = present(&snapshot, &claims("https://bad.test", "g", "web"));
    assert_eq!(of_bad, Err(TokenError::Audience.into()), "there is nobody of that name who has an audience");
    // Two that can't be told apart are both left out: neither's tokens are the other's.
    let other = issuer("other/good", "https://good.test", "g");
    let (snapshot, refused) = renew(RootRecords { issuers: vec![good, other], ..RootRecords::default() });
    assert!(refused[0].contains("have the same `issuer` and an audience in common"), "{refused:?}");
    assert!(present(&snapshot, &claims("https://good.test", "g", "web")).is_err());
    // Nor is a token for two the usable one's, because the other can't be asked.
    let (good, mut bad) =
        (issuer("acme/good", "https://good.test", "g"), issuer("other/bad", "https://good.test", "b"));
    let both = format!(r#"{{"iss":"https://good.test","aud":["g","b"],"sub":"web","exp":{}}}"#, NOW_S + 9);
    for is_usable in [true, false] {
        if !is_usable {
            bad.keys = "{}".to_owned();
        }
        let records = RootRecords { issuers: vec![good.clone(), bad.clone()], ..RootRecords::default() };
        let (snapshot, _) = renew(records);
        assert_eq!(present(&snapshot, &both), Err(TokenError::AmbiguousIssuer.into()));
        assert_eq!(present(&snapshot, &claims("https://good.test", "g", "web")), Ok("acme/web".to_owned()));
    }
    // More than are held: nobody's, rather than somebody's.
    let many = (0..=ISSUERS_MAX).map(|n| issuer(&format!("acme/i{n}"), "https://good.test", &n.to_string()));
    let (snapshot, refused) = renew(RootRecords { issuers: many.collect(), ..RootRecords::default() });
    assert_eq!(refused, ["there are more than 1024 issuers"]);
    assert!(present(&snapshot, &claims("https://good.test", "7", "web")).is_err());
}

/// Its tokens must not become somebody else's for that.
#[test]
fn tokens_of_an_issuer_that_is_left_out_are_no_svids() {
    let ca = pki::ca("spire");
    let mut idp = issuer("acme/idp", "https://idp.test", "gateway");
    let domain = domain("acme/spire", "d.test", &ca);
    let with = |idp: IssuerRecord| RootRecords {
        issuers: vec![idp],
        trust_domains: vec![domain.clone()],
        ..RootRecords::default()
    };
    let svid = |iss| claims(iss, "gateway", "spiffe://d.test/web");
    let (snapshot, _) = renew(with(idp.clone()));
    assert_eq!(present(&snapshot, &svid("https://spire.test")), Ok("acme/web".to_owned()));
    assert!(present(&snapshot, &svid("https://idp.test")).is_err());
    idp.keys = "{}".to_owned();
    let (snapshot, refused) = renew(with(idp));
    assert_eq!(refused.len(), 1);
    assert_eq!(present(&snapshot, &svid("https://spire.test")), Ok("acme/web".to_owned()));
    assert!(present(&snapshot, &svid("https://idp.test")).is_err());
}

/// Nor its certificates.
#[test]
fn svids_of_a_trust_domain_that_is_left_out_are_nobody_s() {
    let (ca, other) = (pki::ca("spire"), pki::ca("other"));
    let by_uri = r#"{"agent":{"from":"uri","prefix":"spiffe://d.test/"}}"#;
    let mut broken = domain("acme/spire", "d.test", &ca);
    broken.bundle = "{}".to_owned();
    let records = RootRecords {
        authorities: vec![authority("acme/ca", &other, by_uri)],
        trust_domains: vec![broken, domain("acme/fine", "fine.test", &ca)],
        ..RootRecords::default()
    };
    let (snapshot, refused) = renew(records);
    assert_eq!(refused.len(), 1, "{refused:?}");
    let present = |ca: &pki::Ca, name: &str| {
        let chain = [leaf(ca, vec![uri(name)], |_| {})];
        snapshot
            .by_certificate(chain.to_vec(), ANYWHERE, NOW_S)
            .map(|proven| proven.identity.agent.id.to_string())
    };
    assert_eq!(present(&other, "spiffe://d.test/web"), Err(CertificateError::UnknownAuthority.into()));
    assert_eq!(present(&ca, "spiffe://fine.test/web"), Ok("acme/web".to_owned()));
    let twice = vec![domain("acme/one", "d.test", &ca), domain("acme/two", "d.test", &ca)];
    let (_, refused) = renew(RootRecords { trust_domains: twice, ..RootRecords::default() });
    assert_eq!(refused, ["`acme/two` is of trust domain `d.test`, which another record has: merge them"]);
}

/// A certificate that two authorities give to agents is nobody's; with one of them left out, it must not be the
/// other's.
#[test]
fn where_an_authority_is_left_out_none_speaks() {
    let (ca, unrelated) = (pki::ca("root"), pki::ca("unrelated"));
    let by_dns = r#"{"agent":{"from":"dns","suffix":".test"}}"#;
    let (one, two) = (authority("acme/ca", &ca, by_dns), authority("other/ca", &ca, by_dns));
    let present = |authorities: Vec<AuthorityRecord>| {
        let (snapshot, refused) = renew(RootRecords { authorities, ..RootRecords::default() });
        let chain = [leaf(&ca, vec![dns("web.test")], |_| {})];
        (
            snapshot.by_certificate(chain.to_vec(), ANYWHERE, NOW_S).map(|p| p.identity.agent.id.to_string()),
            refused.len(),
        )
    };
    assert_eq!(present(vec![one.clone()]), (Ok("acme/web".to_owned()), 0));
    assert_eq!(present(vec![one.clone(), two.clone()]).0, Err(CertificateError::AmbiguousAuthority.into()));
    let broken = AuthorityRecord { certificates: String::new(), ..two };
    assert_eq!(present(vec![one.clone(), broken]), (Err(CertificateError::UnknownAuthority.into()), 1));
    assert_eq!(present(vec![one, authority("other/un", &unrelated, by_dns)]), (Ok("acme/web".to_owned()), 0));
}

/// A generation costs what is new in it.
#[test]
fn what_is_the_same_is_not_parsed_again() {
    let ca = pki::ca("root");
    let mut records = RootRecords {
        issuers: vec![issuer("acme/a", "https://a.test", "g"), issuer("acme/b", "https://b.test", "g")],
        authorities: vec![authority("acme/ca", &ca, r#"{"agent":{"from":"dns"}}"#)],
        trust_domains: vec![domain("acme/spire", "d.test", &ca)],
        ..RootRecords::default()
    };
    let (first, _) = Roots::renew(records.clone(), &Roots::default());
    records.issuers[1].skew_s = 7;
    let (second, _) = Roots::renew(records.clone(), &first);
    let same = |a: &Roots, b: &Roots, id: &str| {
        let id = id.parse().unwrap();
        Arc::ptr_eq(a.issuer(&id).unwrap(), b.issuer(&id).unwrap())
    };
    assert!(same(&first, &second, "acme/a") && !same(&first, &second, "acme/b"));
    let (id, name) = ("acme/ca".parse().unwrap(), "d.test".parse().unwrap());
    assert!(Arc::ptr_eq(first.authorities.by_id(&id).unwrap(), second.authorities.by_id(&id).unwrap()));
    assert!(Arc::ptr_eq(first.domains.by_name(&name).unwrap(), second.domains.by_name(&name).unwrap()));
    records.authorities[0].mapping = serde_json::from_str(r#"{"agent":{"from":"uri"}}"#).unwrap();
    records.issuers[0].provider = serde_json::from_str(r#"{"stale_s_max":60}"#).ok();
    let (third, _) = Roots::renew(records.clone(), &second);
    assert!(!Arc::ptr_eq(second.authorities.by_id(&id).unwrap(), third.authorities.by_id(&id).unwrap()));
    records.fetched.insert("acme/a".parse().unwrap(), jwks());
    let (fourth, _) = Roots::renew(records, &third);
    assert!(!same(&third, &fourth, "acme/a") && same(&third, &fourth, "acme/b"));
}
