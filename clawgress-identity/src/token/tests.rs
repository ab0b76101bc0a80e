//! The attacks on signed tokens that are known by name.

use super::*;
use crate::testing::{Signer, jwks, token};

const CLAIMS: &str = r#"{"iss":"i","aud":"a","exp":2000,"sub":"web","jti":"t1"}"#;

fn keys() -> KeySet {
    KeySet::parse(jwks().as_bytes()).unwrap()
}

fn verify(token: &str) -> Result<VerifiedToken, TokenError> {
    UnverifiedToken::parse(token)?.verify(&keys(), |_| true)
}

/// Signed right by the key `kid`, whatever the header says.
fn with_header(algorithm: Algorithm, header: &str) -> Result<VerifiedToken, TokenError> {
    verify(&Signer::of(algorithm).token(algorithm, header, CLAIMS))
}

fn parts(token: &str) -> [String; 3] {
    let parts: Vec<String> = token.split('.').map(str::to_owned).collect();
    parts.try_into().unwrap()
}

#[test]
fn every_algorithm_verifies() {
    for algorithm in Algorithm::ALL {
        let right = token(algorithm, CLAIMS);
        assert_eq!(verify(&right).map(|t| t.id), Ok("t1".into()), "{algorithm:?}");
        let parsed = UnverifiedToken::parse(&right).unwrap();
        let refused = parsed.verify(&keys(), |other| other != algorithm);
        assert_eq!(refused, Err(TokenError::AlgorithmNotAllowed));
        // A bit of each part.
        for part in 0..3 {
            let mut parts = parts(&right);
            let mut bytes = base64url::decode(&parts[part]).unwrap();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            parts[part] = base64url::encode(&bytes);
            assert!(verify(&parts.join(".")).is_err(), "{algorithm:?} {part}");
        }
    }
}

/// RFC 7515 appendices A.2 and A.3, RFC 8037 appendix A.4: the signatures of the standards themselves.
#[test]
fn tokens_of_the_standards() {
    for (jwk, signed, signature, algorithm) in [
        (
            r#"{"kty":"EC","crv":"P-256","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}"#,
            "eyJhbGciOiJFUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ",
            "DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q",
            Algorithm::Es256,
        ),
        (
            r#"{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}"#,
            "eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc",
            "hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg",
            Algorithm::EdDsa,
        ),
    ] {
        let keys = KeySet::parse(format!(r#"{{"keys":[{jwk}]}}"#).as_bytes()).unwrap();
        let signature = base64url::decode(signature).unwrap();
        assert!(keys.verify(None, algorithm, signed.as_bytes(), &signature).is_ok(), "{algorithm:?}");
    }
}

#[test]
fn unsigned_and_hmac_tokens() {
    let [_, claims, signature] = parts(&token(Algorithm::Rs256, CLAIMS));
    // RS→HS: the public key as an HMAC secret, as text and as bytes.
    let hmac = |secret: &[u8], header: &str| {
        let signed = format!("{}.{claims}", base64url::encode(header.as_bytes()));
        let key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, secret);
        let tag = aws_lc_rs::hmac::sign(&key, signed.as_bytes());
        format!("{signed}.{}", base64url::encode(tag.as_ref()))
    };
    let public = Signer::of(Algorithm::Rs256).jwk("");
    for secret in [public.as_bytes(), jwks().as_bytes(), b"", b"secret"] {
        let forged = hmac(secret, r#"{"alg":"HS256","kid":"RS256"}"#);
        assert_eq!(verify(&forged), Err(TokenError::Algorithm));
        let forged = hmac(secret, r#"{"alg":"RS256","kid":"RS256"}"#);
        assert_eq!(verify(&forged), Err(TokenError::Signature));
    }
    for alg in
        ["none", "None", "NONE", "nOnE", "", "HS256", "HS384", "HS512", "RS256 ", "rs256", "RS1", "ES256K"]
    {
        let header = base64url::encode(format!(r#"{{"alg":"{alg}","kid":"RS256"}}"#).as_bytes());
        for signature in ["", &signature] {
            assert_eq!(
                verify(&format!("{header}.{claims}.{signature}")),
                Err(TokenError::Algorithm),
                "{alg}"
            );
        }
    }
    for header in [r#"{"kid":"RS256"}"#, r#"{"alg":null}"#, r#"{"alg":["RS256"]}"#] {
        let refused = with_header(Algorithm::Rs256, header);
        assert!(matches!(refused, Err(TokenError::Algorithm | TokenError::HeaderMember)), "{header}");
    }
    // No signature, or that of something else, under a right header.
    let right = token(Algorithm::Es256, CLAIMS);
    let [header, claims, _] = parts(&right);
    for signature in ["", "AA", &"A".repeat(86), &parts(&token(Algorithm::EdDsa, CLAIMS))[2]] {
        assert_eq!(verify(&format!("{header}.{claims}.{signature}")), Err(TokenError::Signature));
    }
}

/// A key verifies by its own algorithm, whatever a token says.
#[test]
fn algorithms_are_not_swapped() {
    for signing in Algorithm::ALL {
        for said in Algorithm::ALL {
            for kid in Algorithm::ALL {
                let header = format!(r#"{{"alg":"{}","kid":"{}"}}"#, said.name(), kid.name());
                let is_right = said == signing && kid == signing;
                assert_eq!(with_header(signing, &header).is_ok(), is_right, "{signing:?} {header}");
            }
        }
    }
}

#[test]
fn key_ids_are_nothing_but_an_index() {
    let header = |kid: &str| with_header(Algorithm::Es256, &format!(r#"{{"alg":"ES256","kid":{kid}}}"#));
    assert!(header(r#""ES256""#).is_ok());
    assert!(header(r#""\u0045S256""#).is_ok(), "the same text by another spelling of JSON");
    for kid in [
        r#""../../../../etc/passwd""#,
        r#""/dev/null""#,
        r#""' UNION SELECT 'key'--""#,
        r#""ES256\u0000""#,
        r#""""#,
        r#""es256""#,
        r#""ES256 ""#,
        r#""https://attacker.test/jwks""#,
        r#""ES384""#,
        r#""$(id)""#,
        r#""|id""#,
    ] {
        assert_eq!(header(kid), Err(TokenError::UnknownKey), "{kid}");
    }
    for kid in ["7", "null", "{}", r#"["ES256"]"#] {
        assert_eq!(header(kid), Err(TokenError::HeaderMember), "{kid}");
    }
    assert_eq!(header(&format!("\"{}\"", "k".repeat(256))), Err(TokenError::UnknownKey));
    assert_eq!(header(&format!("\"{}\"", "k".repeat(257))), Err(TokenError::HeaderMember));
    // Without one, every key that fits is tried.
    assert!(with_header(Algorithm::Es256, r#"{"alg":"ES256"}"#).is_ok());
}

/// A token's own word on its keys is never looked at: not as a key, and not as something to fetch.
#[test]
fn keys_in_the_header_count_for_nothing() {
    let attacker = Signer::new_ed25519();
    let jwk = attacker.jwk(r#","kid":"EdDSA""#);
    for member in [
        format!(r#""jwk":{jwk}"#),
        r#""jku":"https://attacker.test/jwks.json""#.to_owned(),
        r#""x5u":"https://attacker.test/cert.pem""#.to_owned(),
        r#""x5c":["MIIB"]"#.to_owned(),
        r#""x5t":"AAAA""#.to_owned(),
        r#""x5t#S256":"AAAA""#.to_owned(),
    ] {
        let header = format!(r#"{{"alg":"EdDSA","kid":"EdDSA",{member}}}"#);
        let forged = attacker.token(Algorithm::EdDsa, &header, CLAIMS);
        assert_eq!(verify(&forged), Err(TokenError::Signature), "{member}");
        // By the right key it is what it would be without.
        assert!(
            with_header(Algorithm::EdDsa, &header).is_ok_and(|token| token.has_other_members),
            "{member}"
        );
    }
}

#[test]
fn extensions_are_refused() {
    for member in [
        r#""crit":["exp"]"#,
        r#""crit":[]"#,
        r#""crit":null"#,
        r#""crit":["b64"],"b64":false"#,
        r#""b64":true"#,
        r#""crit":["http://example.org/x"],"http://example.org/x":1"#,
    ] {
        let header = format!(r#"{{"alg":"ES256","kid":"ES256",{member}}}"#);
        assert_eq!(with_header(Algorithm::Es256, &header), Err(TokenError::Critical), "{member}");
    }
}

#[test]
fn members_that_are_there_twice() {
    for header in [
        r#"{"alg":"none","alg":"ES256","kid":"ES256"}"#,
        r#"{"alg":"ES256","kid":"ES384","kid":"ES256"}"#,
        r#"{"alg":"ES256","kid":"ES256","\u0061lg":"none"}"#,
    ] {
        assert_eq!(with_header(Algorithm::Es256, header), Err(TokenError::Header(JsonError::Duplicate)));
    }
    for claims in
        [r#"{"exp":1,"exp":2000}"#, r#"{"sub":"web","\u0073ub":"other"}"#, r#"{"act":{"sub":"a","sub":"b"}}"#]
    {
        let twice = token(Algorithm::Es256, claims);
        assert_eq!(verify(&twice), Err(TokenError::Claims(JsonError::Duplicate)), "{claims}");
    }
}

#[test]
fn forms_that_are_no_token() {
    let right = token(Algorithm::EdDsa, CLAIMS);
    let [header, claims, signature] = parts(&right);
    for wrong in [
        String::new(),
        ".".to_owned(),
        "..".to_owned(),
        "...".to_owned(),
        header.clone(),
        format!("{header}.{claims}"),
        format!("{right}.{signature}"),
        format!("{right}.a.b"),
        format!(".{claims}.{signature}"),
        format!("{header}..{signature}"),
        // JSON serialization.
        format!(r#"{{"protected":"{header}","payload":"{claims}","signature":"{signature}"}}"#),
    ] {
        assert_eq!(verify(&wrong), Err(TokenError::Form), "{wrong}");
    }
    for wrong in [
        format!("{header}.{claims}.{signature}="),
        format!("{header}=.{claims}.{signature}"),
        format!("{header}.{claims}\n.{signature}"),
        format!(" {right}"),
        format!("{right} "),
        format!("{right}\0"),
        format!("{right}\r\n"),
        format!("{header}.{claims}.é{signature}"),
        format!("{header}+.{claims}.{signature}"),
        format!("{header}/.{claims}.{signature}"),
        format!("{header}%2e.{claims}.{signature}"),
    ] {
        assert_eq!(verify(&wrong), Err(TokenError::Encoding), "{wrong}");
    }
    // 64 bytes leave four bits behind the end: fifteen other spellings of the same signature.
    const ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let last = signature.as_bytes()[signature.len() - 1];
    let value = ALPHABET.iter().position(|b| *b == last).unwrap();
    for other in (0..16).map(|low| ALPHABET[value & !15 | low]).filter(|other| *other != last) {
        let spelled = format!("{}{}", &right[..right.len() - 1], char::from(other));
        assert_eq!(verify(&spelled), Err(TokenError::Encoding), "{spelled}");
    }
    let long = token(Algorithm::EdDsa, &format!(r#"{{"x":"{}"}}"#, "x".repeat(TOKEN_BYTES_MAX)));
    assert_eq!(verify(&long), Err(TokenError::Size));
    let deep = token(Algorithm::EdDsa, &format!("{}1{}", r#"{"a":"#.repeat(40), "}".repeat(40)));
    assert_eq!(verify(&deep), Err(TokenError::Claims(JsonError::Depth)));
    for claims in ["[]", "7", "\"x\"", "null", ""] {
        let refused = verify(&token(Algorithm::EdDsa, claims));
        assert!(matches!(refused, Err(TokenError::Claims(_) | TokenError::Form)), "{claims}: {refused:?}");
    }
    let wide = format!(r#"{{"alg":"EdDSA","kid":"EdDSA","x5c":["{}"]}}"#, "M".repeat(HEADER_BYTES_MAX));
    assert_eq!(with_header(Algorithm::EdDsa, &wide), Err(TokenError::Header(JsonError::Size)));
}

/// ECDSA as JOSE has it: r and s in full size, neither in DER nor shortened nor out of range.
#[test]
fn elliptic_curve_signatures() {
    let right = token(Algorithm::Es256, CLAIMS);
    let [header, claims, signature] = parts(&right);
    let raw = base64url::decode(&signature).unwrap();
    let (r, s) = raw.split_at(32);
    // The order of P-256.
    let order: [u8; 32] = [
        0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xbc, 0xe6, 0xfa,
        0xad, 0xa7, 0x17, 0x9e, 0x84, 0xf3, 0xb9, 0xca, 0xc2, 0xfc, 0x63, 0x25, 0x51,
    ];
    let with = |signature: &[u8]| verify(&format!("{header}.{claims}.{}", base64url::encode(signature)));
    let integer = |number: &[u8]| {
        let number = if number[0] & 0x80 == 0 { number.to_vec() } else { [&[0], number].concat() };
        [&[2, u8::try_from(number.len()).unwrap()], &number[..]].concat()
    };
    let der = [integer(r), integer(s)].concat();
    let der = [&[0x30, u8::try_from(der.len()).unwrap()], &der[..]].concat();
    let zero = [0; 32];
    for (what, wrong) in [
        ("DER", der),
        ("zero r", [&zero, s].concat()),
        ("zero s", [r, &zero].concat()),
        ("both zero", [zero, zero].concat()),
        ("r is the order", [&order, s].concat()),
        ("s is the order", [r, &order].concat()),
        ("swapped", [s, r].concat()),
        ("short", raw[..63].to_vec()),
        ("long", [&raw[..], &[0]].concat()),
        ("longer numbers", [&[0], r, &[0], s].concat()),
        ("all ones", vec![0xff; 64]),
    ] {
        assert_eq!(with(&wrong), Err(TokenError::Signature), "{what}");
    }
    // order - s signs the same (RFC 7518 knows no low s): one token by its id, whichever spelling it comes in.
    let mut other = [0; 32];
    let mut borrow = 0;
    for n in (0..32).rev() {
        let difference = i32::from(order[n]) - i32::from(s[n]) - borrow;
        borrow = i32::from(difference < 0);
        other[n] = u8::try_from(difference.rem_euclid(256)).unwrap();
    }
    let other = with(&[r, &other].concat()).unwrap();
    assert_eq!(other.id, verify(&right).unwrap().id);
    let plain = r#"{"iss":"i"}"#;
    let [header, claims, signature] = parts(&token(Algorithm::Es256, plain));
    let named = verify(&format!("{header}.{claims}.{signature}")).unwrap().id;
    assert_eq!(*named, hash(format!("{header}.{claims}").as_bytes()));
}

/// S and S + L sign the same in a careless verifier (RFC 8032 section 5.1.7).
#[test]
fn edwards_signatures() {
    let right = token(Algorithm::EdDsa, CLAIMS);
    let [header, claims, signature] = parts(&right);
    let mut raw = base64url::decode(&signature).unwrap();
    let order: [u8; 32] = [
        0xed, 0xd3, 0xf5, 0x5c, 0x1a, 0x63, 0x12, 0x58, 0xd6, 0x9c, 0xf7, 0xa2, 0xde, 0xf9, 0xde, 0x14, 0, 0,
        0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10,
    ];
    let mut carry = 0;
    for (byte, add) in raw[32..].iter_mut().zip(order) {
        let sum = u16::from(*byte) + u16::from(add) + carry;
        (*byte, carry) = (sum.to_le_bytes()[0], sum >> 8);
    }
    let forged = format!("{header}.{claims}.{}", base64url::encode(&raw));
    assert_eq!(verify(&forged), Err(TokenError::Signature));
}

#[test]
fn a_salt_of_another_length() {
    // By the key of PS256, signed as PKCS #1: padding is not swapped.
    let header = r#"{"alg":"PS256","kid":"PS256"}"#;
    let swapped = Signer::of(Algorithm::Ps256).token(Algorithm::Rs256, header, CLAIMS);
    assert_eq!(verify(&swapped), Err(TokenError::Signature));
    let signed = format!("{}.{}", base64url::encode(header.as_bytes()), base64url::encode(CLAIMS.as_bytes()));
    let Signer::Rsa(key) = Signer::of(Algorithm::Ps256) else { unreachable!() };
    let mut signature = vec![0; key.public_modulus_len()];
    let random = aws_lc_rs::rand::SystemRandom::new();
    let encoding = &aws_lc_rs::signature::RSA_PSS_SHA512;
    key.sign(encoding, &random, signed.as_bytes(), &mut signature).unwrap();
    let other_hash = format!("{signed}.{}", base64url::encode(&signature));
    assert_eq!(verify(&other_hash), Err(TokenError::Signature));
}

#[test]
fn what_is_kept_shows_no_signature() {
    let right = token(Algorithm::Rs256, CLAIMS);
    let kept = format!("{:?}", verify(&right).unwrap());
    assert!(!kept.contains(&parts(&right)[2]) && !kept.contains(&parts(&right)[0]), "{kept}");
}

proptest::proptest! {
    #[test]
    fn arbitrary_text_never_panics(text in "\\PC{0,200}") {
        let _ = verify(&text);
    }

    /// Whatever is done to one character of a token, it is another token or none.
    #[test]
    fn no_character_can_be_changed(at in 0usize..2000, to in "[A-Za-z0-9_.=-]") {
        let right = token(Algorithm::EdDsa, CLAIMS);
        let at = at % right.len();
        let changed = format!("{}{to}{}", &right[..at], &right[at + 1..]);
        assert_eq!(verify(&changed).is_ok(), changed == right, "{changed}");
    }
}
