//! What identity costs beside the bare signature: a token whole, by each algorithm, against the signature check of the
//! same library alone, with the key parsed beforehand in both. The promise is 1.2 times.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    clippy::indexing_slicing,
    reason = "a benchmark stops at what it does not expect"
)]

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{self, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _, ParsedPublicKey, RsaKeyPair};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use clawgress_identity::{
    Agent, ApiKey, ApiKeyRecord, IssuerRecord, KEY_MAC_BYTES, Origin, RootRecords, Roots, TrustSnapshot,
};
use criterion::{Criterion, criterion_group, criterion_main};

const NOW_S: i64 = 1_900_000_000;
const ANYWHERE: Origin<'static> =
    Origin::Address { interface: None, address: IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)) };
/// Alternating rounds of both, and how many of each a round has: shorter than a time slice, so that on a busy machine
/// some of them are undisturbed.
const ROUNDS: usize = 1000;
const ROUND: u32 = 10;

/// A token, and the bare check of its signature.
struct Case {
    name: &'static str,
    trust: TrustSnapshot,
    token: String,
    key: ParsedPublicKey,
    signature: Vec<u8>,
}

impl Case {
    fn new(name: &'static str, jwk: &str, key: ParsedPublicKey, sign: impl Fn(&[u8]) -> Vec<u8>) -> Case {
        let header = format!(r#"{{"alg":"{name}","kid":"2030-01","typ":"at+jwt"}}"#);
        // What an identity provider's access token has.
        let claims = format!(
            r#"{{"iss":"https://login.example.com/realms/agents","aud":["clawgress","account"],"sub":"agent:crawler","azp":"crawler","jti":"6f1c1f2e-8d7b-4d5e-9f43-0d2f0b0a7c11","iat":{NOW_S},"nbf":{NOW_S},"exp":{},"scope":"openid profile egress","team":"research","env":"prod","realm_access":{{"roles":["offline_access","agent"]}},"act":{{"sub":"orchestrator"}}}}"#,
            NOW_S + 300
        );
        let encode = |text: &str| URL_SAFE_NO_PAD.encode(text);
        let signed = format!("{}.{}", encode(&header), encode(&claims));
        let signature = sign(signed.as_bytes());
        let token = format!("{signed}.{}", URL_SAFE_NO_PAD.encode(&signature));
        Case { name, trust: trust(name, jwk), token, key, signature }
    }

    fn bare(&self) {
        let signed = self.token.rsplit_once('.').unwrap().0;
        black_box(&self.key).verify_sig(black_box(signed.as_bytes()), black_box(&self.signature)).unwrap();
    }

    fn whole(&self) {
        black_box(self.trust.by_token(black_box(&self.token), ANYWHERE, NOW_S).unwrap());
    }

    /// How many times the bare check a whole token takes: the shortest rounds of both, which nothing disturbed.
    fn ratio(&self) -> f64 {
        let time = |run: &dyn Fn()| -> Duration {
            let started = Instant::now();
            (0..ROUND).for_each(|_| run());
            started.elapsed()
        };
        let rounds = (0..ROUNDS).map(|_| (time(&|| self.bare()), time(&|| self.whole())));
        let (bare, whole) = rounds
            .reduce(|shortest, round| (shortest.0.min(round.0), shortest.1.min(round.1)))
            .expect("rounds");
        println!("{}: bare {:?}, token {:?}", self.name, bare / ROUND, whole / ROUND);
        whole.as_secs_f64() / bare.as_secs_f64()
    }
}

fn agent() -> Agent {
    serde_json::from_str(
        r#"{"id":"acme/crawler","index":1,"team":"research","environment":"prod","state":"active"}"#,
    )
    .unwrap()
}

fn trust(algorithm: &str, jwk: &str) -> TrustSnapshot {
    let record = serde_json::json!({
        "id": "acme/idp", "issuer": "https://login.example.com/realms/agents", "audiences": ["clawgress"],
        "algorithms": [algorithm], "lifetime_s_max": 3600,
        "mapping": {
            "agent": {"from": "sub", "prefix": "agent:"}, "team": {"from": "team"}, "environment": {"from": "env"},
            "require": [{"from": ["realm_access", "roles"], "any_of": ["agent"]}]
        },
        "keys": format!(r#"{{"keys":[{jwk}]}}"#)
    });
    let record: IssuerRecord = serde_json::from_value(record).unwrap();
    let roots = Roots::new(RootRecords { issuers: vec![record], ..RootRecords::default() }).unwrap();
    TrustSnapshot::new([agent()], [], []).with_roots(Arc::new(roots))
}

fn cases() -> Vec<Case> {
    let encode = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    let random = SystemRandom::new();
    let mut cases = Vec::new();
    let pair = Ed25519KeyPair::generate().unwrap();
    let point = pair.public_key().as_ref();
    let jwk = format!(r#"{{"kty":"OKP","crv":"Ed25519","kid":"2030-01","x":"{}"}}"#, encode(point));
    let key = ParsedPublicKey::new(&signature::ED25519, point).unwrap();
    cases.push(Case::new("EdDSA", &jwk, key, |m| pair.sign(m).as_ref().to_vec()));
    for (name, curve, signing, verifying) in [
        ("ES256", "P-256", &signature::ECDSA_P256_SHA256_FIXED_SIGNING, &signature::ECDSA_P256_SHA256_FIXED),
        ("ES384", "P-384", &signature::ECDSA_P384_SHA384_FIXED_SIGNING, &signature::ECDSA_P384_SHA384_FIXED),
    ] {
        let pair = EcdsaKeyPair::generate(signing).unwrap();
        let point = pair.public_key().as_ref();
        let (x, y) = point[1..].split_at(point.len() / 2);
        let (x, y) = (encode(x), encode(y));
        let jwk = format!(r#"{{"kty":"EC","crv":"{curve}","kid":"2030-01","x":"{x}","y":"{y}"}}"#);
        let key = ParsedPublicKey::new(verifying, point).unwrap();
        cases.push(Case::new(name, &jwk, key, |m| pair.sign(&random, m).unwrap().as_ref().to_vec()));
    }
    let pair = RsaKeyPair::generate(KeySize::Rsa2048).unwrap();
    let der = pair.public_key().as_ref();
    // Behind a sequence's and a number's header and a zero; before the header of an exponent of three bytes.
    let jwk =
        format!(r#"{{"kty":"RSA","kid":"2030-01","n":"{}","e":"AQAB"}}"#, encode(&der[9..der.len() - 5]));
    for (name, encoding, verifying) in [
        ("RS256", &signature::RSA_PKCS1_SHA256, &signature::RSA_PKCS1_2048_8192_SHA256),
        ("PS256", &signature::RSA_PSS_SHA256, &signature::RSA_PSS_2048_8192_SHA256),
    ] {
        let key = ParsedPublicKey::new(verifying, der).unwrap();
        cases.push(Case::new(name, &jwk, key, |message| {
            let mut signature = vec![0; pair.public_modulus_len()];
            pair.sign(encoding, &random, message, &mut signature).unwrap();
            signature
        }));
    }
    cases
}

fn tokens(criterion: &mut Criterion) {
    for case in cases() {
        let mut group = criterion.benchmark_group(case.name);
        group.bench_function("bare signature", |b| b.iter(|| case.bare()));
        group.bench_function("token", |b| b.iter(|| case.whole()));
        group.finish();
        println!("{}: a token takes {:.3} times its bare signature check", case.name, case.ratio());
    }
}

fn api_keys(criterion: &mut Criterion) {
    let text = ApiKey::compose([1; 6], [2; 32]);
    let key = ApiKey::parse(&text).unwrap();
    let mac = [3; KEY_MAC_BYTES];
    let record = |n: u32| {
        let [a, b, c, d] = n.to_be_bytes();
        let text = ApiKey::compose([a, b, c, d, 0, 0], [0; 32]);
        let id = ApiKey::parse(&text).unwrap().id().to_owned();
        ApiKeyRecord { id, ..own(key.id(), mac) }
    };
    // Among those of ten thousand agents.
    let keys = (0..10_000).map(record).chain([own(key.id(), mac)]);
    let trust = TrustSnapshot::new([agent()], keys, []);
    let user = "acme/crawler".parse().unwrap();
    criterion.bench_function("API key look-up", |b| {
        b.iter(|| {
            let key = ApiKey::parse(black_box(&text)).unwrap();
            black_box(trust.by_api_key(key, &mac, &user, ANYWHERE, NOW_S).unwrap())
        });
    });
}

fn own(id: &str, mac: [u8; KEY_MAC_BYTES]) -> ApiKeyRecord {
    ApiKeyRecord {
        id: id.to_owned(),
        agent: "acme/crawler".parse().unwrap(),
        mac,
        created_at_s: None,
        not_before_s: None,
        expires_at_s: None,
        revoked_at_s: None,
    }
}

criterion_group!(benches, tokens, api_keys);
criterion_main!(benches);
