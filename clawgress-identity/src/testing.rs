//! Keys and tokens for tests: made at run time, signed by the library that verifies.

use std::sync::OnceLock;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair,
    KeyPair as _, RSA_PKCS1_SHA256, RSA_PSS_SHA256, RsaKeyPair, RsaSignatureEncoding,
};

use crate::{Algorithm, base64url};

/// A key pair that signs tokens.
#[derive(Debug)]
pub(crate) enum Signer {
    Ed(Ed25519KeyPair),
    P256(EcdsaKeyPair),
    P384(EcdsaKeyPair),
    Rsa(RsaKeyPair),
}

// === impl Signer ===

impl Signer {
    /// One key of each type, the same in all tests.
    pub(crate) fn of(algorithm: Algorithm) -> &'static Signer {
        static KEYS: OnceLock<[Signer; 4]> = OnceLock::new();
        let keys = KEYS.get_or_init(|| {
            [
                Signer::Ed(Ed25519KeyPair::generate().unwrap()),
                Signer::P256(EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap()),
                Signer::P384(EcdsaKeyPair::generate(&ECDSA_P384_SHA384_FIXED_SIGNING).unwrap()),
                Signer::Rsa(RsaKeyPair::generate(KeySize::Rsa2048).unwrap()),
            ]
        });
        &keys[match algorithm {
            Algorithm::EdDsa => 0,
            Algorithm::Es256 => 1,
            Algorithm::Es384 => 2,
            Algorithm::Rs256 | Algorithm::Ps256 => 3,
        }]
    }

    /// A key of its own.
    pub(crate) fn new_ed25519() -> Signer {
        Signer::Ed(Ed25519KeyPair::generate().unwrap())
    }

    /// The members of its JSON Web Key, and `more`, which is empty or begins with a comma.
    pub(crate) fn jwk(&self, more: &str) -> String {
        let point = |curve: &str, point: &[u8]| {
            let (x, y) = point[1..].split_at((point.len() - 1) / 2);
            let (x, y) = (base64url::encode(x), base64url::encode(y));
            format!(r#"{{"kty":"EC","crv":"{curve}","x":"{x}","y":"{y}"{more}}}"#)
        };
        match self {
            Signer::Ed(key) => {
                let x = base64url::encode(key.public_key().as_ref());
                format!(r#"{{"kty":"OKP","crv":"Ed25519","x":"{x}"{more}}}"#)
            }
            Signer::P256(key) => point("P-256", key.public_key().as_ref()),
            Signer::P384(key) => point("P-384", key.public_key().as_ref()),
            Signer::Rsa(key) => {
                let (n, e) = rsa_members(key.public_key().as_ref());
                format!(r#"{{"kty":"RSA","n":"{n}","e":"{e}"{more}}}"#)
            }
        }
    }

    pub(crate) fn sign(&self, algorithm: Algorithm, message: &[u8]) -> Vec<u8> {
        match self {
            Signer::Ed(key) => key.sign(message).as_ref().to_vec(),
            Signer::P256(key) | Signer::P384(key) => {
                key.sign(&SystemRandom::new(), message).unwrap().as_ref().to_vec()
            }
            Signer::Rsa(key) => {
                let encoding: &RsaSignatureEncoding =
                    if algorithm == Algorithm::Ps256 { &RSA_PSS_SHA256 } else { &RSA_PKCS1_SHA256 };
                let mut signature = vec![0; key.public_modulus_len()];
                key.sign(encoding, &SystemRandom::new(), message, &mut signature).unwrap();
                signature
            }
        }
    }

    /// A token with this header and these claims, which need not be what a token has.
    pub(crate) fn token(&self, algorithm: Algorithm, header: &str, claims: &str) -> String {
        let signed =
            format!("{}.{}", base64url::encode(header.as_bytes()), base64url::encode(claims.as_bytes()));
        let signature = self.sign(algorithm, signed.as_bytes());
        format!("{signed}.{}", base64url::encode(&signature))
    }
}

/// `n` and `e` of an `RSAPublicKey` (RFC 8017 appendix A.1.1) of more than 1016 bits, whose exponent is 65537.
pub(crate) fn rsa_members(der: &[u8]) -> (String, String) {
    let (front, exponent) = der.split_at(der.len() - 3);
    assert_eq!((exponent, &front[front.len() - 2..]), (&[1, 0, 1][..], &[2, 3][..]));
    // A sequence and a number with lengths of two bytes, and the zero before a number's highest bit.
    let modulus = &front[9..front.len() - 2];
    (base64url::encode(modulus), base64url::encode(exponent))
}

/// A token that is right, by the key of its algorithm.
pub(crate) fn token(algorithm: Algorithm, claims: &str) -> String {
    let header = format!(r#"{{"alg":"{}","kid":"{}"}}"#, algorithm.name(), algorithm.name());
    Signer::of(algorithm).token(algorithm, &header, claims)
}

/// A key set with one key for each algorithm, whose id is the algorithm's name.
pub(crate) fn jwks() -> String {
    let key = |algorithm: Algorithm| {
        let name = algorithm.name();
        Signer::of(algorithm).jwk(&format!(r#","kid":"{name}","alg":"{name}","use":"sig""#))
    };
    format!(r#"{{"keys":[{}]}}"#, Algorithm::ALL.map(key).join(","))
}

pub(crate) mod pki;
