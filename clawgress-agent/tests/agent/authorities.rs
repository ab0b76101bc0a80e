//! Certificate authorities and trust domains as control does them: checked, durable, recorded, in every generation of
//! L7, and never so that what is revoked counts again.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clawgress_api::proto::{Empty, Name};
use clawgress_api::{AuditQuery, AuditRecord, RecordKind};
use clawgress_identity::{AuthorityRecord, RootRecords, TrustDomainRecord};
use clawgress_policy::PolicyBundle;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, IsCa, Issuer, KeyIdMethod, KeyPair,
    KeyUsagePurpose, SerialNumber,
};
use tonic::Code;

use crate::node::{Node, Worker, document, parse};

type Snapshot = clawgress_api::Snapshot<PolicyBundle>;

/// An authority that signs itself.
pub struct Ca {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
    der: Vec<u8>,
}

impl Ca {
    pub fn new() -> Ca {
        let key = KeyPair::generate().expect("key");
        let mut params = CertificateParams::new([]).expect("names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key).expect("authority");
        let (pem, der) = (certificate.pem(), certificate.der().to_vec());
        Ca { issuer: Issuer::new(params, key), pem, der }
    }

    /// A revocation list of a day of this year.
    fn list(&self, day: u8) -> String {
        let list = CertificateRevocationListParams {
            this_update: rcgen::date_time_ymd(2026, 1, day),
            next_update: rcgen::date_time_ymd(2036, 1, 1),
            crl_number: SerialNumber::from(u64::from(day)),
            issuing_distribution_point: None,
            revoked_certs: Vec::new(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        list.signed_by(&self.issuer).expect("list").pem().expect("PEM")
    }

    pub fn record(&self, id: &str, revocation: &str, list: &str) -> AuthorityRecord {
        let record = serde_json::json!({
            "id": id, "certificates": self.pem, "revocation": revocation, "revocation_lists": list,
            "mapping": {"agent": {"from": "dns", "suffix": ".agents.test"}}
        });
        serde_json::from_value(record).expect("record")
    }

    pub fn domain(&self, id: &str, domain: &str) -> TrustDomainRecord {
        let x5c = STANDARD.encode(&self.der);
        let record = serde_json::json!({
            "id": id, "domain": domain, "audiences": ["gateway"], "mapping": {"agent": {"from": "path"}},
            "bundle": format!(r#"{{"keys":[{{"kty":"EC","use":"x509-svid","x5c":["{x5c}"]}}]}}"#)
        });
        serde_json::from_value(record).expect("record")
    }
}

async fn roots(worker: &mut Worker) -> (u64, RootRecords) {
    let snapshot: Snapshot = parse(&worker.next().await.document);
    (snapshot.generation, snapshot.roots)
}

fn named(id: &str) -> Name {
    Name { name: id.into() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_trusted_by_certificates_goes_to_l7_with_each_generation() {
    let mut node = Node::new().start().await;
    let mut worker = node.worker("w").await;
    let (before, none) = roots(&mut worker).await;
    assert_eq!((none.authorities, none.trust_domains), (vec![], vec![]));
    let ca = Ca::new();
    let (authority, domain) = (ca.record("acme/ca", "off", ""), ca.domain("acme/spire", "d.test"));
    node.admin().set_authority(document(&authority)).await.expect("set");
    assert_eq!(roots(&mut worker).await.0, before + 1);
    node.admin().set_trust_domain(document(&domain)).await.expect("set");
    assert_eq!(roots(&mut worker).await.0, before + 2);
    // It is kept, and a change of nothing is no generation.
    node.stop_control().await;
    node.start_control().await;
    let mut worker = node.worker("w").await;
    let (kept, held) = roots(&mut worker).await;
    assert_eq!(kept, before + 2);
    assert_eq!((held.authorities, held.trust_domains), (vec![authority.clone()], vec![domain.clone()]));
    node.admin().set_authority(document(&authority)).await.expect("the same");
    let shown = node.admin().show_authority(named("acme/ca")).await.expect("shown").into_inner();
    assert_eq!(parse::<AuthorityRecord>(&shown.json), authority);
    let listed = node.admin().list_trust_domains(Empty {}).await.expect("listed").into_inner();
    assert_eq!(listed.json.len(), 1);
    node.admin().delete_authority(named("acme/ca")).await.expect("deleted");
    node.admin().delete_trust_domain(named("acme/spire")).await.expect("deleted");
    let missing = node.admin().delete_authority(named("acme/ca")).await.expect_err("missing");
    assert_eq!(missing.code(), Code::NotFound);
    assert_eq!(roots(&mut worker).await.0, before + 3);
    let (last, empty) = roots(&mut worker).await;
    assert_eq!((last, empty.authorities, empty.trust_domains), (before + 4, vec![], vec![]));
    let query = AuditQuery { kind: Some(RecordKind::Change), ..AuditQuery::default() };
    let mut found = node.admin().search_audit(document(&query)).await.expect("audit").into_inner();
    let mut log = Vec::new();
    while let Some(line) = found.message().await.expect("record") {
        log.extend(parse::<AuditRecord>(&line.json).detail);
    }
    for said in [
        "authority set by root: is {\"id\":\"acme/ca\"",
        "with certificates sha256:",
        "and revocation lists none, was nothing",
        "trust domain set by root: is {\"id\":\"acme/spire\"",
        "authority deleted by root: was {\"id\":\"acme/ca\"",
        "trust domain deleted by root: was {\"id\":\"acme/spire\"",
    ] {
        assert!(log.iter().any(|d| d.contains(said)), "`{said}`: {log:#?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_revoked_stays_so_and_what_l7_could_not_use_changes_nothing() {
    let node = Node::new().start().await;
    let mut worker = node.worker("w").await;
    let (before, _) = roots(&mut worker).await;
    let (ca, other) = (Ca::new(), Ca::new());
    node.admin().set_authority(document(&ca.record("ca", "leaf", &ca.list(2)))).await.expect("set");
    node.admin().set_trust_domain(document(&ca.domain("spire", "d.test"))).await.expect("set");
    let mut open = ca.record("open", "off", "");
    open.mapping.agent.from = None;
    for (record, said) in [
        (ca.record("ca", "off", ""), "can't be less than before"),
        (ca.record("ca", "leaf", &ca.list(1)), "is older than that in force"),
        (ca.record("none", "leaf", ""), "authority `default/none`: `revocation` is `off` exactly when"),
        (ca.record("x", "off", "nothing"), "authority `default/x`"),
        (open, "authority `default/open`: the rule for the agent needs"),
    ] {
        let refused = node.admin().set_authority(document(&record)).await;
        let refused = refused.map_or_else(|refused| refused, |_| panic!("taken: {said}"));
        assert_eq!(refused.code(), Code::InvalidArgument);
        assert!(refused.message().contains(said), "{refused}");
    }
    let mut broken = other.domain("b", "e.test");
    broken.bundle = "{".to_owned();
    for (record, said) in [
        (other.domain("twice", "d.test"), "is of trust domain `d.test`, which another record has"),
        (broken, "trust domain `default/b`"),
    ] {
        let refused = node.admin().set_trust_domain(document(&record)).await.expect_err("refused");
        assert_eq!(refused.code(), Code::InvalidArgument);
        assert!(refused.message().contains(said), "{refused}");
    }
    let newer = ca.record("ca", "chain", &ca.list(3));
    node.admin().set_authority(document(&newer)).await.expect("a newer list, and more of it");
    let (after, held) = loop {
        let (generation, held) = roots(&mut worker).await;
        if generation == before + 3 {
            break (generation, held);
        }
    };
    assert_eq!((after, held.authorities, held.trust_domains.len()), (before + 3, vec![newer], 1));
}
