//! Client chains: what is verified, what revocation lists do, and what names stand for.

use rcgen::{
    BasicConstraints, ExtendedKeyUsagePurpose, GeneralSubtree, IsCa, KeyUsagePurpose, NameConstraints,
    SanType,
};

use super::*;
use crate::testing::pki::{self, Ca, NOW_S, dns, email, leaf, list, sub_ca, uri};

fn record(ca: &Ca, mapping: &str) -> AuthorityRecord {
    AuthorityRecord {
        id: "acme/ca".parse().unwrap(),
        certificates: ca.pem(),
        revocation_lists: String::new(),
        revocation: Revocation::Off,
        mapping: serde_json::from_str(mapping).unwrap(),
    }
}

const BY_DNS: &str = r#"{"agent":{"from":"dns","suffix":".agents.test"}}"#;

fn judge_at(
    record: AuthorityRecord,
    chain: &[CertificateDer<'_>],
    now_s: i64,
) -> Result<String, CertificateError> {
    let authorities = Authorities::new(vec![Arc::new(Authority::new(record).unwrap())]);
    let details = Details::read(chain.first().unwrap())?;
    authorities.judge(chain, &details, now_s).map(|(id, mapped, _)| {
        assert_eq!(id.to_string(), "acme/ca");
        mapped.agent.to_string()
    })
}

fn judge(record: AuthorityRecord, chain: &[CertificateDer<'_>]) -> Result<String, CertificateError> {
    judge_at(record, chain, NOW_S)
}

fn web() -> Vec<SanType> {
    vec![dns("web.agents.test")]
}

#[test]
fn chains_and_times() {
    let (root, other) = (pki::ca("root"), pki::ca("root"));
    let sub = sub_ca("sub", &root, |_| {});
    let direct = leaf(&root, web(), |_| {});
    let below = leaf(&sub, web(), |_| {});
    let by = |chain: &[&CertificateDer<'static>]| {
        let chain: Vec<_> = chain.iter().map(|c| (*c).clone()).collect();
        judge(record(&root, BY_DNS), &chain)
    };
    assert_eq!(by(&[&direct]), Ok("acme/web".to_owned()));
    assert_eq!(by(&[&below, sub.der()]), Ok("acme/web".to_owned()));
    assert_eq!(by(&[&below, root.der(), sub.der()]), Ok("acme/web".to_owned()), "in any order");
    assert_eq!(by(&[&below]), Err(CertificateError::UnknownAuthority));
    assert_eq!(by(&[&below, other.der()]), Err(CertificateError::UnknownAuthority));
    // The same name, another key.
    let forged = leaf(&other, web(), |_| {});
    assert_eq!(by(&[&forged]), Err(CertificateError::Signature));
    assert_eq!(by(&[&forged, other.der()]), Err(CertificateError::Signature));
    let chain = [direct.clone()];
    let at = |now_s| judge_at(record(&root, BY_DNS), &chain, now_s);
    assert_eq!(at(1_861_920_000), Ok("acme/web".to_owned()), "its first second");
    assert_eq!(at(1_861_919_999), Err(CertificateError::NotYet));
    assert_eq!(at(1_924_992_000), Ok("acme/web".to_owned()), "its last second");
    assert_eq!(at(1_924_992_001), Err(CertificateError::Expired));
    assert_eq!(at(i64::MIN), Err(CertificateError::NotYet));
    assert_eq!(at(i64::MAX), Err(CertificateError::Expired));
    let many: Vec<_> = (0..=crate::CHAIN_MAX).map(|_| &direct).collect();
    assert_eq!(by(&many), Err(CertificateError::Size));
}

#[test]
fn certificates_that_are_not_for_it() {
    let root = pki::ca("root");
    let refused = |change: fn(&mut rcgen::CertificateParams)| {
        judge(record(&root, BY_DNS), &[leaf(&root, web(), change)]).err()
    };
    assert_eq!(refused(|p| p.extended_key_usages.clear()), None);
    let only = |usage| move |p: &mut rcgen::CertificateParams| p.extended_key_usages = vec![usage];
    let with = |usage| judge(record(&root, BY_DNS), &[leaf(&root, web(), only(usage))]).err();
    assert_eq!(with(ExtendedKeyUsagePurpose::ClientAuth), None);
    for usage in [
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::CodeSigning,
        ExtendedKeyUsagePurpose::Any,
    ] {
        assert_eq!(with(usage), Some(CertificateError::Usage));
    }
    assert_eq!(
        refused(|p| p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained)),
        Some(CertificateError::Usage),
        "an authority is no client"
    );
    // A client's certificate signs nobody else's, nor does an authority that may not sign certificates.
    let client = sub_ca("client", &root, |p| p.is_ca = IsCa::ExplicitNoCa);
    let weak = sub_ca("weak", &root, |p| p.key_usages = vec![KeyUsagePurpose::CrlSign]);
    let short = sub_ca("short", &root, |p| p.is_ca = IsCa::Ca(BasicConstraints::Constrained(0)));
    let below_short = sub_ca("below", &short, |_| {});
    for (what, chain, error) in [
        ("client", vec![leaf(&client, web(), |_| {}), client.der().clone()], CertificateError::Usage),
        ("weak", vec![leaf(&weak, web(), |_| {}), weak.der().clone()], CertificateError::Usage),
        (
            "path length",
            vec![leaf(&below_short, web(), |_| {}), below_short.der().clone(), short.der().clone()],
            CertificateError::Constraints,
        ),
    ] {
        assert_eq!(judge(record(&root, BY_DNS), &chain), Err(error), "{what}");
    }
    let constrained = sub_ca("constrained", &root, |p| {
        p.name_constraints = Some(NameConstraints {
            permitted_subtrees: vec![GeneralSubtree::DnsName("other.test".to_owned())],
            excluded_subtrees: vec![],
        });
    });
    let outside = [leaf(&constrained, web(), |_| {}), constrained.der().clone()];
    assert_eq!(judge(record(&root, BY_DNS), &outside), Err(CertificateError::Constraints));
}

#[test]
fn revocation_lists() {
    let root = pki::ca("root");
    let sub = sub_ca("sub", &root, |p| p.serial_number = Some(9.into()));
    let other = pki::ca("root");
    let direct = vec![leaf(&root, web(), |_| {})];
    let below = vec![leaf(&sub, web(), |_| {}), sub.der().clone()];
    let with = |revocation: Revocation, lists: &[String], chain: &[CertificateDer<'_>]| {
        let record =
            AuthorityRecord { revocation, revocation_lists: lists.concat(), ..record(&root, BY_DNS) };
        judge(record, chain)
    };
    let clean = |ca: &Ca| list(ca, &[1, 2], 2031);
    let ok = Ok("acme/web".to_owned());
    use Revocation::{Chain, Leaf};
    assert_eq!(with(Leaf, &[clean(&root)], &direct), ok);
    assert_eq!(with(Leaf, &[list(&root, &[1, 7], 2031)], &direct), Err(CertificateError::Revoked));
    // INVARIANT: an old list clears nothing, nor does another's.
    assert_eq!(with(Leaf, &[list(&root, &[], 2030)], &direct), Err(CertificateError::RevocationUnknown));
    assert_eq!(with(Leaf, &[clean(&other)], &direct), Err(CertificateError::RevocationUnknown));
    assert_eq!(with(Leaf, &[clean(&root)], &below), Err(CertificateError::RevocationUnknown));
    assert_eq!(with(Leaf, &[clean(&sub)], &below), ok);
    assert_eq!(with(Chain, &[clean(&sub)], &below), Err(CertificateError::RevocationUnknown));
    assert_eq!(with(Chain, &[clean(&sub), clean(&root)], &below), ok);
    assert_eq!(with(Chain, &[clean(&sub), list(&root, &[9], 2031)], &below), Err(CertificateError::Revoked));
    assert_eq!(with(Leaf, &[list(&sub, &[7], 2031)], &below), Err(CertificateError::Revoked));
    let no_signer = sub_ca("nosign", &root, |p| p.key_usages = vec![KeyUsagePurpose::KeyCertSign]);
    let chain = [leaf(&no_signer, web(), |_| {}), no_signer.der().clone()];
    assert_eq!(with(Leaf, &[clean(&root)], &chain), Err(CertificateError::RevocationUnknown));
}

#[test]
fn names_of_each_kind() {
    let root = pki::ca("root");
    let all = vec![
        dns("WEB.Agents.Test"),
        dns("other.test"),
        uri("https://agents.test/bot"),
        email("crawler@agents.test"),
        SanType::IpAddress("192.0.2.1".parse().unwrap()),
    ];
    let by =
        |mapping: &str, names: Vec<SanType>| judge(record(&root, mapping), &[leaf(&root, names, |_| {})]);
    assert_eq!(by(BY_DNS, all.clone()), Ok("acme/web".to_owned()));
    assert_eq!(
        by(r#"{"agent":{"from":"uri","prefix":"https://agents.test/"}}"#, all.clone()),
        Ok("acme/bot".to_owned())
    );
    assert_eq!(
        by(r#"{"agent":{"from":"email","suffix":"@agents.test"}}"#, all.clone()),
        Ok("acme/crawler".to_owned())
    );
    use crate::MappingError::{Nothing, Several};
    use crate::Part::Agent;
    // The subject says `client`, and counts for nothing.
    assert_eq!(by(r#"{"agent":{"from":"dns"}}"#, vec![uri("client")]), Err(Nothing(Agent).into()));
    assert_eq!(by(BY_DNS, vec![]), Err(Nothing(Agent).into()));
    assert_eq!(by(BY_DNS, vec![dns("*.agents.test")]), Err(Nothing(Agent).into()));
    assert_eq!(by(BY_DNS, vec![dns("a.agents.test"), dns("b.agents.test")]), Err(Several(Agent).into()));
    for wrong in
        [dns("web.agents.test\0.evil.test"), dns("web .agents.test"), uri("https://a\0"), email("\u{7f}")]
    {
        assert_eq!(by(BY_DNS, vec![dns("web.agents.test"), wrong]), Err(CertificateError::Malformed));
    }
    let many = (0..80).map(|n| dns(&format!("n{n}.test"))).collect();
    assert_eq!(by(BY_DNS, many), Err(CertificateError::Malformed));
}

/// Two tenants may trust one authority; a certificate must not then be two agents.
#[test]
fn several_authorities() {
    let (root, unrelated) = (pki::ca("root"), pki::ca("unrelated"));
    let named = |id: &str, suffix: &str, ca: &Ca| {
        let mapping = format!(r#"{{"agent":{{"from":"dns","suffix":"{suffix}"}}}}"#);
        let record = AuthorityRecord { id: id.parse().unwrap(), ..record(ca, &mapping) };
        Authority::new(record).unwrap()
    };
    let judge = |authorities: Vec<Authority>, name: &str| {
        let chain = [leaf(&root, vec![dns(name)], |_| {})];
        let details = Details::read(chain.first().unwrap()).unwrap();
        let authorities = Authorities::new(authorities.into_iter().map(Arc::new).collect());
        authorities.judge(&chain, &details, NOW_S).map(|(id, mapped, _)| format!("{id} {}", mapped.agent))
    };
    let both = || {
        vec![
            named("one/ca", ".one.test", &root),
            named("x/x", ".one.test", &unrelated),
            named("two/ca", ".two.test", &root),
        ]
    };
    assert_eq!(judge(both(), "web.one.test"), Ok("one/ca one/web".to_owned()));
    assert_eq!(judge(both(), "web.two.test"), Ok("two/ca two/web".to_owned()));
    let same = vec![named("one/ca", ".test", &root), named("two/ca", ".test", &root)];
    assert_eq!(judge(same, "web.test"), Err(CertificateError::AmbiguousAuthority));
    assert_eq!(judge(vec![], "web.test"), Err(CertificateError::UnknownAuthority));
}

#[test]
fn authorities_that_are_refused() {
    let root = pki::ca("root");
    let refused = |change: &dyn Fn(&mut AuthorityRecord)| {
        let mut record = record(&root, BY_DNS);
        change(&mut record);
        match Authority::new(record).err() {
            Some(AuthorityError::Anchors(error)) => Some(error),
            other => panic!("{other:?}"),
        }
    };
    let pem = |der: &CertificateDer<'_>| {
        use base64::Engine as _;
        let body = base64::engine::general_purpose::STANDARD.encode(der);
        format!("-----BEGIN CERTIFICATE-----\n{body}\n-----END CERTIFICATE-----\n")
    };
    let client = pem(&leaf(&root, web(), |_| {}));
    assert_eq!(refused(&|r| r.certificates.clear()), Some(AnchorsError::Count("certificates")));
    assert_eq!(refused(&|r| r.certificates = client.clone()), Some(AnchorsError::NotAnAuthority(1)));
    assert_eq!(
        refused(&|r| r.certificates = format!("{}{}", root.pem(), pem(&b"\x30\x00"[..].into()))),
        Some(AnchorsError::NotAnAuthority(2))
    );
    assert_eq!(
        refused(&|r| r.certificates = "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----".to_owned()),
        Some(AnchorsError::Pem("certificates"))
    );
    assert_eq!(
        refused(&|r| r.certificates = root.pem().repeat(65)),
        Some(AnchorsError::Count("certificates"))
    );
    assert_eq!(refused(&|r| r.revocation = Revocation::Leaf), Some(AnchorsError::Revocation));
    assert_eq!(refused(&|r| r.revocation_lists = list(&root, &[], 2031)), Some(AnchorsError::Revocation));
}

proptest::proptest! {
    /// Whatever a certificate's bytes become, it is refused or is the same.
    #[test]
    fn changed_certificates_prove_nothing_else(at: usize, to: u8) {
        static MADE: std::sync::OnceLock<(String, Vec<u8>)> = std::sync::OnceLock::new();
        let (pem, der) = MADE.get_or_init(|| {
            let root = pki::ca("root");
            (root.pem(), leaf(&root, web(), |_| {}).to_vec())
        });
        let mut changed = der.clone();
        let at = at % der.len();
        changed[at] = to;
        let record = AuthorityRecord {
            id: "acme/ca".parse().unwrap(),
            certificates: pem.clone(),
            revocation_lists: String::new(),
            revocation: Revocation::Off,
            mapping: serde_json::from_str(BY_DNS).unwrap(),
        };
        let is_same = changed == *der;
        let chain = [CertificateDer::from(changed)];
        proptest::prop_assert_eq!(judge(record, &chain).is_ok(), is_same);
    }
}
