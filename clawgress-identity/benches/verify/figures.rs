//! What identity costs beside the bare signature: a token whole, by each algorithm, against the signature check of the
//! same library alone, with the key parsed beforehand in both; and the look-up of an API key. Shared by this crate's
//! benchmark and `cargo xtask bench`.
#![allow(
    clippy::unwrap_used,
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
    Agent, AgentId, ApiKey, ApiKeyRecord, IssuerRecord, KEY_MAC_BYTES, Origin, RootRecords, Roots,
    TrustSnapshot,
};

const NOW_S: i64 = 1_900_000_000;
const ANYWHERE: Origin<'static> =
    Origin::Address { interface: None, address: IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)) };
/// Alternating rounds of both, and how many of each a round has: shorter than a time slice, so that on a busy machine
/// some of them are undisturbed.
const ROUNDS: usize = 1000;
const ROUND: u32 = 10;
/// Look-ups of API keys in a round.
const KEY_ROUND: u32 = 100;
const MAC: [u8; KEY_MAC_BYTES] = [3; KEY_MAC_BYTES];

/// A token, and the bare check of its signature.
pub struct Case {
    pub name: &'static str,
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

    pub fn bare(&self) {
        let signed = self.token.rsplit_once('.').unwrap().0;
        black_box(&self.key).verify_sig(black_box(signed.as_bytes()), black_box(&self.signature)).unwrap();
    }

    pub fn whole(&self) {
        black_box(self.trust.by_token(black_box(&self.token), ANYWHERE, NOW_S).unwrap());
    }

    /// Alternating rounds of the bare check and of the whole, the mean of each.
    pub fn rounds(&self) -> Vec<(Duration, Duration)> {
        let time = |run: &dyn Fn()| -> Duration {
            let started = Instant::now();
            (0..ROUND).for_each(|_| run());
            started.elapsed() / ROUND
        };
        (0..ROUNDS).map(|_| (time(&|| self.bare()), time(&|| self.whole()))).collect()
    }
}

/// The shortest rounds of both, which nothing disturbed.
pub fn shortest(rounds: &[(Duration, Duration)]) -> (Duration, Duration) {
    let shorter = |least: (Duration, Duration), round: &(Duration, Duration)| {
        (least.0.min(round.0), least.1.min(round.1))
    };
    rounds.iter().fold((Duration::MAX, Duration::MAX), shorter)
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

pub fn cases() -> Vec<Case> {
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

/// An API key among those of ten thousand agents.
pub struct Key {
    text: String,
    trust: TrustSnapshot,
    user: AgentId,
}

// === impl Key ===

impl Key {
    pub fn new() -> Key {
        let text = ApiKey::compose([1; 6], [2; 32]);
        let id = ApiKey::parse(&text).unwrap().id().to_owned();
        let record = |n: u32| {
            let [a, b, c, d] = n.to_be_bytes();
            let text = ApiKey::compose([a, b, c, d, 0, 0], [0; 32]);
            own(ApiKey::parse(&text).unwrap().id())
        };
        let keys = (0..10_000).map(record).chain([own(&id)]);
        let trust = TrustSnapshot::new([agent()], keys, []);
        Key { text, trust, user: "acme/crawler".parse().unwrap() }
    }

    /// Its look-up, once its hash is known.
    pub fn look_up(&self) {
        let key = ApiKey::parse(black_box(&self.text)).unwrap();
        black_box(self.trust.by_api_key(key, &MAC, &self.user, ANYWHERE, NOW_S).unwrap());
    }

    /// The mean of each round, nanoseconds.
    pub fn rounds_ns(&self) -> Vec<u64> {
        let round = || {
            let started = Instant::now();
            (0..KEY_ROUND).for_each(|_| self.look_up());
            u64::try_from(started.elapsed().as_nanos() / u128::from(KEY_ROUND)).unwrap()
        };
        (0..ROUNDS).map(|_| round()).collect()
    }
}

fn own(id: &str) -> ApiKeyRecord {
    ApiKeyRecord {
        id: id.to_owned(),
        agent: "acme/crawler".parse().unwrap(),
        mac: MAC,
        created_at_s: None,
        not_before_s: None,
        expires_at_s: None,
        revoked_at_s: None,
    }
}
