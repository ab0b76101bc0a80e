//! What the SPIFFE Workload API says of a trust domain, as one bundle document: certificates in DER, one behind the
//! other, and a key set (SPIFFE Workload API sections 5 and 6).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};

use super::bundle::{BUNDLE_CERTIFICATES_MAX, BundleError, SpiffeBundle};
use super::{SpiffeId, TrustDomainName};
use crate::JwksError;
use crate::json::Document;
use crate::jwks::JWKS_BYTES_MAX;

/// DER of a constructed SEQUENCE, which a certificate is.
const SEQUENCE: u8 = 0x30;

impl TrustDomainName {
    /// The trust domain that a bundle of the Workload API is of: its key is the SPIFFE ID of one.
    #[must_use]
    pub fn of_workload_api(key: &str) -> Option<TrustDomainName> {
        key.parse().ok().filter(|id: &SpiffeId| id.path().is_empty()).map(|id| id.domain().clone())
    }
}

impl SpiffeBundle {
    /// The bundle document of what the Workload API says: certificates, and a key set. What it does not have is empty.
    ///
    /// # Errors
    /// If the certificates are not DER or no authorities', the key set is none or has a key that is not public or has no
    /// id, or either is beyond a bound.
    pub fn of_workload_api(certificates: &[u8], keys: &[u8]) -> Result<String, BundleError> {
        let mut all: Vec<Value> = Vec::new();
        for certificate in split(certificates)? {
            let x5c = Value::from(vec![STANDARD.encode(certificate)]);
            all.push(Value::Object(Map::from_iter([
                ("use".to_owned(), Value::from("x509-svid")),
                ("x5c".to_owned(), x5c),
            ])));
        }
        if !keys.is_empty() {
            all.extend(tokens_keys(keys)?);
        }
        let document = serde_json::json!({ "keys": all }).to_string();
        // Whatever it is made of, it is a bundle as any other, or none.
        SpiffeBundle::parse(document.as_bytes())?;
        Ok(document)
    }
}

/// The keys of a key set that are for JWT-SVIDs, marked as such: servers may leave `use` out, or say `sig`.
fn tokens_keys(keys: &[u8]) -> Result<Vec<Value>, BundleError> {
    // Strictly first, so that what is read again below can't be read otherwise.
    let document = Document::parse(keys.to_vec(), JWKS_BYTES_MAX).map_err(JwksError::from)?;
    crate::jwks::jwks(document.object())?;
    let mut document: Value = serde_json::from_slice(keys).map_err(|_| JwksError::Keys)?;
    let Some(Value::Array(keys)) = document.get_mut("keys").map(Value::take) else {
        return Err(JwksError::Keys.into());
    };
    let mut marked = Vec::with_capacity(keys.len());
    for mut key in keys {
        let is_for_tokens =
            matches!(key.get("use").map(Value::as_str), None | Some(Some("sig" | "jwt-svid")));
        if let (true, Some(members)) = (is_for_tokens, key.as_object_mut()) {
            members.insert("use".to_owned(), Value::from("jwt-svid"));
        }
        // With those of other uses, which the bundle's own rules are for.
        marked.push(key);
    }
    // Certificates come by the other half alone.
    marked.retain(|key| key.get("use").and_then(Value::as_str) != Some("x509-svid"));
    Ok(marked)
}

/// The certificates of some that stand one behind the other.
fn split(mut der: &[u8]) -> Result<Vec<&[u8]>, BundleError> {
    let mut found = Vec::new();
    while !der.is_empty() {
        let length = element(der).ok_or(BundleError::Der)?;
        let (certificate, rest) = der.split_at_checked(length).ok_or(BundleError::Der)?;
        found.push(certificate);
        if found.len() > BUNDLE_CERTIFICATES_MAX {
            return Err(BundleError::TooMany);
        }
        der = rest;
    }
    Ok(found)
}

/// How many bytes the sequence at the front has, with its tag and length (X.690 section 8.1.3).
fn element(der: &[u8]) -> Option<usize> {
    let (&[tag, first], rest) = der.split_first_chunk()?;
    if tag != SEQUENCE {
        return None;
    }
    let (length, octets) = match first {
        0..=0x7f => (usize::from(first), 0),
        0x81 => (usize::from(*rest.first()?), 1),
        0x82 => (usize::from(u16::from_be_bytes(*rest.first_chunk()?)), 2),
        // Of indefinite length, or more than 64 KiB: no certificate is.
        _ => return None,
    };
    // DER has the shortest spelling (section 10.1).
    let is_shortest = match octets {
        0 => true,
        1 => length >= 0x80,
        _ => length > 0xff,
    };
    is_shortest.then_some(2 + octets + length)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Algorithm;
    use crate::testing::{Signer, pki};

    fn jwk(algorithm: Algorithm, more: &str) -> String {
        Signer::of(algorithm).jwk(more)
    }

    fn counts(certificates: &[u8], keys: &str) -> Result<(usize, usize), BundleError> {
        let document = SpiffeBundle::of_workload_api(certificates, keys.as_bytes())?;
        let bundle = SpiffeBundle::parse(document.as_bytes()).unwrap();
        Ok((bundle.authorities(), bundle.keys().len()))
    }

    #[test]
    fn certificates_and_keys_become_one_bundle() {
        let (one, two) = (pki::ca("one"), pki::ca("two"));
        let both = [one.der().as_ref(), two.der().as_ref()].concat();
        let keys = format!(
            r#"{{"keys":[{},{},{},{}]}}"#,
            jwk(Algorithm::Es256, r#","kid":"a""#),
            jwk(Algorithm::Es384, r#","kid":"b","use":"jwt-svid""#),
            jwk(Algorithm::Rs256, r#","kid":"c","use":"enc""#),
            jwk(Algorithm::Rs256, r#","kid":"d","use":"x509-svid""#),
        );
        assert_eq!(counts(&both, &keys), Ok((2, 2)));
        assert_eq!(counts(&both, ""), Ok((2, 0)));
        assert_eq!(counts(one.der(), r#"{"keys":[]}"#), Ok((1, 0)));
        assert_eq!(counts(&[], ""), Ok((0, 0)));
    }

    #[test]
    fn what_is_no_bundle_is_refused() {
        let ca = pki::ca("ca");
        let der: &[u8] = ca.der();
        let leaf = pki::leaf(&ca, vec![pki::uri("spiffe://d.test/a")], |_| {});
        for (certificates, error) in [
            (b"garbage".to_vec(), BundleError::Der),
            (der[..der.len() - 1].to_vec(), BundleError::Der),
            ([der, &[0]].concat(), BundleError::Der),
            ([der, &[0x30]].concat(), BundleError::Der),
            (vec![0x30, 0x80], BundleError::Der),
            (vec![0x30, 0x81, 0x01, 0x00], BundleError::Der),
            (vec![0x30, 0x84, 0xff, 0xff, 0xff, 0xff], BundleError::Der),
            (der.repeat(BUNDLE_CERTIFICATES_MAX + 1), BundleError::TooMany),
        ] {
            assert_eq!(counts(&certificates, ""), Err(error));
        }
        for not_an_authority in [&[0x30, 0x00][..], leaf.as_ref()] {
            assert!(matches!(counts(not_an_authority, ""), Err(BundleError::Authority(_))));
        }
        for (keys, error) in [
            ("{}".to_owned(), BundleError::Keys(JwksError::Keys)),
            (format!(r#"{{"keys":[{}]}}"#, jwk(Algorithm::Es256, "")), BundleError::KeyId),
            (
                format!(r#"{{"keys":[{}]}}"#, jwk(Algorithm::Es256, r#","kid":"a","d":"AA""#)),
                BundleError::Keys(JwksError::Private),
            ),
        ] {
            assert_eq!(counts(der, &keys), Err(error), "{keys}");
        }
        assert!(counts(der, r#"{"keys":[],"keys":[]}"#).is_err());
        assert!(counts(der, &" ".repeat(JWKS_BYTES_MAX + 1)).is_err());
    }

    #[test]
    fn trust_domains_of_the_workload_api() {
        for (key, name) in [
            ("spiffe://d.test", Some("d.test")),
            ("d.test", None),
            ("spiffe://d.test/", None),
            ("spiffe://d.test/a", None),
            ("SPIFFE://d.test", None),
            ("", None),
        ] {
            let found = TrustDomainName::of_workload_api(key);
            assert_eq!(found.as_ref().map(TrustDomainName::as_str), name, "{key}");
        }
    }
}
