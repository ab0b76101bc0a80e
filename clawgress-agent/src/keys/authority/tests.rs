//! Authorities that can be used and that can not, and what they sign.

use std::os::unix::fs::PermissionsExt as _;

use aws_lc_rs::signature::KeyPair as _;
use clawgress_api::clock::FixedClock;
use jiff::Timestamp;
use rcgen::CertifiedIssuer;

use super::*;

const NOW_S: i64 = 1_900_000_000;

fn clock(now_s: i64) -> Arc<dyn Clock> {
    Arc::new(FixedClock(Timestamp::from_second(now_s).expect("time")))
}

fn configured(toml: &str) -> Intercept {
    toml::from_str(toml).expect("configuration")
}

fn point() -> Vec<u8> {
    let key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).expect("key");
    key.public_key().as_ref().to_vec()
}

fn open(directory: &Path, toml: &str, now_s: i64) -> Result<Authority, AuthorityError> {
    with(directory, &configured(toml), now_s)
}

fn hosts(names: &[&str], authority: &Authority) -> Vec<Result<(), MintError>> {
    names.iter().map(|name| authority.mint(name, &point()).map(drop)).collect()
}

#[test]
fn the_own_authority_is_made_once_and_signs() {
    let dir = tempfile::tempdir().expect("directory");
    let keys = dir.path().join("keys");
    let first = open(&keys, "", NOW_S).expect("made");
    let again = open(&keys, "", NOW_S + 1000).expect("opened");
    assert_eq!(first.chain, again.chain, "the second start finds the same");
    assert!(again.describe().1);
    for entry in fs::read_dir(&keys).expect("list") {
        let mode = entry.expect("entry").metadata().expect("metadata").mode();
        assert_eq!(mode & 0o7777, 0o600);
    }
    let leaf = again.mint("api.example.com", &point()).expect("signed");
    assert_eq!(leaf.chain.len(), 1, "the root is not sent");
    assert_eq!(leaf.not_after_s, NOW_S + 1000 + 24 * 3600);
    let (_, parsed) = parse_x509_certificate(&leaf.chain[0]).expect("certificate");
    assert_eq!(parsed.validity().not_after.timestamp(), leaf.not_after_s);
    assert_eq!(parsed.validity().not_before.timestamp(), NOW_S + 1000 - SKEW_S);
    assert!(parsed.basic_constraints().expect("once").is_none_or(|b| !b.value.ca));
    let other = again.mint("api.example.com", &point()).expect("signed");
    assert_ne!(leaf.chain, other.chain);
    again.mint("192.0.2.1", &point()).expect("an address");
    again.mint("2001:db8::1", &point()).expect("an address");
    assert!(!format!("{again:?}").contains("key"));
}

#[test]
fn only_canonical_hosts_and_points_are_signed_for() {
    let dir = tempfile::tempdir().expect("directory");
    let authority =
        open(dir.path(), "exclude = [\"*.bank.example\", \"pinned.example\"]", NOW_S).expect("made");
    for host in [
        "",
        "A.test",
        "a.test.",
        "*.a.test",
        "a..test",
        "127.1",
        "bücher.test",
        "::ffff:10.0.0.1",
        "a_b.test",
    ] {
        assert_eq!(authority.mint(host, &point()), Err(MintError::Host), "{host}");
    }
    let excluded = hosts(&["x.bank.example", "pinned.example"], &authority);
    assert_eq!(excluded, [Err(MintError::Excluded), Err(MintError::Excluded)]);
    assert_eq!(hosts(&["bank.example", "x.pinned.example"], &authority), [Ok(()), Ok(())]);
    let good = point();
    let mut off_curve = good.clone();
    off_curve[40] ^= 1;
    for bad in [&[][..], &good[1..], &[&good[..], &[0]].concat(), &off_curve, &[0; POINT_BYTES]] {
        assert_eq!(authority.mint("a.test", bad), Err(MintError::Key));
    }
}

#[test]
fn names_are_constraints_of_the_own_authority() {
    let dir = tempfile::tempdir().expect("directory");
    let free = open(dir.path(), "", NOW_S).expect("made");
    let bound = open(dir.path(), "names = [\"example.com\"]", NOW_S).expect("made");
    assert_ne!(free.chain, bound.chain);
    let constrained = Err(MintError::Constrained);
    let said =
        hosts(&["example.com", "x.example.com", "example.org", "xexample.com", "192.0.2.1", "::1"], &bound);
    assert_eq!(said, [&[Ok(()), Ok(())][..], &vec![constrained; 4]].concat());
    assert_eq!(open(dir.path(), "", NOW_S).expect("opened").chain, free.chain, "back to the former one");
    let key = |authority: &Authority| authority.issuer.key().public_key_raw().to_vec();
    assert_eq!(key(&free), key(&bound), "the key is the same");
}

/// The operator's certificate, changed by `change`, and its key, in files.
fn given(directory: &Path, change: impl FnOnce(&mut CertificateParams)) -> Intercept {
    let root = {
        let mut params = CertificateParams::default();
        params.distinguished_name = named("corporate root");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        valid(&mut params, NOW_S - 1000, NOW_S + 1_000_000);
        CertifiedIssuer::self_signed(params, KeyPair::generate().expect("key")).expect("root")
    };
    let mut params = CertificateParams::default();
    params.distinguished_name = named("corporate intermediate");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    valid(&mut params, NOW_S - 1000, NOW_S + 10_000);
    change(&mut params);
    let key = KeyPair::generate().expect("key");
    let certificate = params.signed_by(&key, &root).expect("signed");
    let (pem, secret) = (directory.join("ca.pem"), directory.join("ca.key"));
    fs::write(&pem, certificate.pem() + &root.pem()).expect("write");
    fs::write(&secret, key.serialize_pem()).expect("write");
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o400)).expect("chmod");
    configured(&format!("certificate = \"{}\"\nkey = \"{}\"", pem.display(), secret.display()))
}

fn with(directory: &Path, intercept: &Intercept, now_s: i64) -> Result<Authority, AuthorityError> {
    let secrets = Secrets::open(directory.to_owned(), None).expect("secrets");
    Authority::open(&secrets, "gw", intercept, clock(now_s))
}

#[test]
fn an_authority_of_ones_own_signs_within_its_bounds() {
    let dir = tempfile::tempdir().expect("directory");
    let intercept = given(dir.path(), |params| {
        params.name_constraints = Some(NameConstraints {
            permitted_subtrees: vec![GeneralSubtree::DnsName("corp.example".into())],
            excluded_subtrees: vec![GeneralSubtree::DnsName("hr.corp.example".into())],
        })
    });
    let authority = with(dir.path(), &intercept, NOW_S).expect("opened");
    assert!(!authority.describe().1);
    let leaf = authority.mint("x.corp.example", &point()).expect("signed");
    assert_eq!(leaf.chain.len(), 2, "the intermediate goes along, the root does not");
    assert_eq!(leaf.not_after_s, NOW_S + 10_000, "no leaf outlives its authority");
    let constrained = Err(MintError::Constrained);
    assert_eq!(hosts(&["a.hr.corp.example", "example.org"], &authority), [constrained.clone(), constrained]);
    assert!(!dir.path().join(INTERCEPTION.sealed()).exists(), "no other key is made");
    let later = Authority { clock: clock(NOW_S + 20_000), ..authority };
    assert_eq!(later.mint("x.corp.example", &point()), Err(MintError::Ended));
}

#[test]
fn an_authority_that_can_not_be_one_is_refused() {
    let dir = tempfile::tempdir().expect("directory");
    let refused = |intercept: &Intercept, now_s: i64| {
        with(dir.path(), intercept, now_s).expect_err("refused").to_string()
    };
    let leaf = given(dir.path(), |params| params.is_ca = IsCa::ExplicitNoCa);
    assert!(refused(&leaf, NOW_S).contains("basicConstraints CA:TRUE"));
    let unsigned = given(dir.path(), |params| params.key_usages = vec![KeyUsagePurpose::CrlSign]);
    assert!(refused(&unsigned, NOW_S).contains("keyCertSign"));
    let clients = given(dir.path(), |p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth]);
    assert!(refused(&clients, NOW_S).contains("serverAuth"));
    let good = given(dir.path(), |_| {});
    with(dir.path(), &good, NOW_S).expect("sound");
    assert!(refused(&good, NOW_S + 20_000).contains("has expired"));
    assert!(refused(&good, NOW_S - 20_000).contains("not valid before"));
    let key = good.key.clone().expect("key");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).expect("chmod");
    assert!(refused(&good, NOW_S).contains("open to others"));
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).expect("chmod");
    fs::write(&key, KeyPair::generate().expect("key").serialize_pem()).expect("write");
    assert!(refused(&good, NOW_S).contains("not of the private key"));
    fs::write(&key, "nothing").expect("write");
    assert!(refused(&good, NOW_S).contains("no private key"));
    let pem = good.certificate.clone().expect("certificate");
    let sound = given(dir.path(), |_| {});
    let (first, root) = {
        let text = fs::read_to_string(&pem).expect("read");
        let at = text.rfind("-----BEGIN").expect("two");
        (text[..at].to_owned(), text[at..].to_owned())
    };
    fs::write(&pem, first.clone() + &first).expect("write");
    with(dir.path(), &sound, NOW_S).expect("the same twice still leads to itself");
    fs::write(&pem, root + &first).expect("write");
    assert!(refused(&sound, NOW_S).contains("not of the private key"), "the order counts");
    fs::write(&pem, "").expect("write");
    assert!(refused(&sound, NOW_S).contains("no certificate"));
    let mut missing = sound;
    missing.certificate = Some(dir.path().join("none.pem"));
    assert!(refused(&missing, NOW_S).contains("none.pem"));
}
