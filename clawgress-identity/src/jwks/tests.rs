//! Key sets: what is skipped, what is refused, and which key is tried.

use super::*;
use crate::testing::{Signer, jwks as five};

fn skipped(unknown: usize, other_use: usize, unfit: usize) -> Skipped {
    Skipped { unknown, other_use, unfit }
}

fn set(keys: &[String]) -> Result<KeySet, JwksError> {
    KeySet::parse(format!(r#"{{"keys":[{}]}}"#, keys.join(",")).as_bytes())
}

#[test]
fn every_algorithm_has_its_key() {
    let set = KeySet::parse(five().as_bytes()).unwrap();
    assert_eq!((set.len(), set.skipped()), (5, Skipped::default()));
    for signing in Algorithm::ALL {
        let signature = Signer::of(signing).sign(signing, b"message");
        for kid in Algorithm::ALL {
            for algorithm in Algorithm::ALL {
                let found = set.verify(Some(kid.name()), algorithm, b"message", &signature);
                let is_right = kid == signing && algorithm == signing;
                assert_eq!(found.is_ok(), is_right, "{signing:?} {kid:?} {algorithm:?}");
                if kid != algorithm {
                    assert_eq!(found, Err(NoKey::Unknown), "a key is for its algorithm alone");
                }
            }
        }
        assert!(set.verify(None, signing, b"message", &signature).is_ok(), "{signing:?} without an id");
        assert_eq!(set.verify(None, signing, b"messagf", &signature), Err(NoKey::Signature));
    }
}

#[test]
fn a_key_set_of_others_is_skipped_and_counted() {
    let own = Signer::of(Algorithm::Es256);
    let keys = [
        own.jwk(r#","kid":"a""#),
        own.jwk(r#","use":"enc""#),
        own.jwk(r#","key_ops":["encrypt"]"#),
        own.jwk(r#","alg":"ES256K""#),
        own.jwk(r#","alg":"ES384""#),
        own.jwk(r#","alg":7"#),
        own.jwk(r#","use":7"#),
        own.jwk(&format!(r#","kid":"{}""#, "k".repeat(257))),
        r#"{"kty":"oct"}"#.to_owned(),
        r#"{"kty":"AKP","alg":"ML-DSA-44","pub":"AA"}"#.to_owned(),
        r#"{"kty":"EC","crv":"P-521","x":"AA","y":"AA"}"#.to_owned(),
        r#"{"kty":"OKP","crv":"X25519","x":"AA"}"#.to_owned(),
        r#"{"kty":"EC","crv":"P-256","x":"AA","y":"AA"}"#.to_owned(),
        "{}".to_owned(),
    ];
    let set = set(&keys).unwrap();
    // ES256K, `oct`, AKP (whose `alg` is unknown), P-521 and X25519; two of another use; the rest is unfit.
    assert_eq!((set.len(), set.skipped()), (1, skipped(5, 2, 6)));
    assert_eq!([Some("a"), Some("b"), None].map(|kid| set.knows(kid)), [true, false, true]);
}

#[test]
fn documents_that_are_refused() {
    let own = Signer::of(Algorithm::EdDsa);
    for member in ["d", "k", "p", "q", "dp", "dq", "qi", "oth", "priv"] {
        let key = own.jwk(&format!(r#","{member}":"AA""#));
        assert_eq!(set(&[own.jwk(""), key]).err(), Some(JwksError::Private), "{member}");
    }
    let symmetric = r#"{"kty":"oct","k":"AA","use":"enc"}"#.to_owned();
    assert_eq!(set(&[own.jwk(""), symmetric]).err(), Some(JwksError::Private));
    assert_eq!(set(&[]).err(), Some(JwksError::NoKeys));
    assert_eq!(set(&["{}".to_owned()]).err(), Some(JwksError::NoKeys));
    assert_eq!(set(&["7".to_owned()]).err(), Some(JwksError::Keys));
    let many: Vec<String> = (0..=JWKS_KEYS_MAX).map(|_| own.jwk("")).collect();
    assert_eq!(set(&many[1..]).map(|s| s.len()), Ok(JWKS_KEYS_MAX));
    assert_eq!(set(&many).err(), Some(JwksError::TooMany));
    for (document, error) in [
        ("{}", JwksError::Keys),
        (r#"{"keys":{}}"#, JwksError::Keys),
        (r#"{"keys":[],"keys":[]}"#, JwksError::Json(JsonError::Duplicate)),
        ("[]", JwksError::Json(JsonError::NotAnObject)),
        ("", JwksError::Json(JsonError::Syntax)),
    ] {
        assert_eq!(KeySet::parse(document.as_bytes()).err(), Some(error), "{document}");
    }
    let large = format!(r#"{{"keys":[],"x":"{}"}}"#, "x".repeat(JWKS_BYTES_MAX));
    assert_eq!(KeySet::parse(large.as_bytes()).err(), Some(JwksError::Json(JsonError::Size)));
}

/// While a provider rolls over, two keys may have one id: both are tried, but not any number.
#[test]
fn several_keys_of_one_id() {
    let signers: Vec<Signer> = (0..=KEYS_TRIED_MAX).map(|_| Signer::new_ed25519()).collect();
    let keys = |kid: &str| signers.iter().map(|s| s.jwk(&format!(r#","kid":"{kid}""#))).collect::<Vec<_>>();
    let (algorithm, own) = (Algorithm::EdDsa, keys("a"));
    let signature = signers[KEYS_TRIED_MAX - 1].sign(algorithm, b"m");
    let few = set(&own[..KEYS_TRIED_MAX]).unwrap();
    for kid in [Some("a"), None] {
        assert!(few.verify(kid, algorithm, b"m", &signature).is_ok());
        assert_eq!(few.verify(kid, algorithm, b"n", &signature), Err(NoKey::Signature));
    }
    let many = set(&own).unwrap();
    for kid in [Some("a"), None] {
        assert_eq!(many.verify(kid, algorithm, b"m", &signature), Err(NoKey::Ambiguous));
    }
    for kid in ["b", "", "A", "a\0", "../../a", "a' OR '1'='1"] {
        assert_eq!(few.verify(Some(kid), algorithm, b"m", &signature), Err(NoKey::Unknown), "{kid}");
    }
}

proptest::proptest! {
    #[test]
    fn arbitrary_documents_never_panic(text in r#"\{"keys":\[\{("(kty|crv|x|y|n|e|kid|alg|use)":"[A-Za-z0-9_-]{0,12}",?){0,6}\}\]\}"#) {
        let _ = KeySet::parse(text.as_bytes());
    }
}
