//! API keys: `claw_<id>_<secret>`. The id finds the record; only a keyed hash (HMAC-SHA-256 under a
//! key that the keys role holds) of the whole key is ever stored.

use std::fmt;

use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq;

use crate::{AgentId, IdentityError};

/// Bytes of a key's keyed hash.
pub const KEY_MAC_BYTES: usize = 32;
/// Characters of a key's id (lowercase hex).
const ID_CHARS: usize = 12;
/// Characters of a key's secret (lowercase hex): 256 bits.
const SECRET_CHARS: usize = 64;
const PREFIX: &str = "claw_";

/// A well-formed API key, borrowed. Its `Debug` never shows the secret.
#[derive(Clone, Copy)]
pub struct ApiKey<'a> {
    text: &'a str,
    id: &'a str,
}

/// Why a key was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ApiKeyError {
    /// Not of the form `claw_<id>_<secret>`.
    #[error("not a Clawgress API key")]
    Syntax,
}

impl<'a> ApiKey<'a> {
    /// Parses a key.
    ///
    /// # Errors
    /// If it is not `claw_`, 12 hex digits, `_`, 64 hex digits.
    pub fn parse(text: &'a str) -> Result<Self, ApiKeyError> {
        let rest = text.strip_prefix(PREFIX).ok_or(ApiKeyError::Syntax)?;
        let (id, secret) = rest.split_once('_').ok_or(ApiKeyError::Syntax)?;
        if id.len() == ID_CHARS && secret.len() == SECRET_CHARS && is_hex(id) && is_hex(secret) {
            Ok(ApiKey { text, id })
        } else {
            Err(ApiKeyError::Syntax)
        }
    }

    /// Whether text is meant to be a key, well-formed or not: what must not go on to anybody else.
    #[must_use]
    pub fn is_like(text: &[u8]) -> bool {
        text.starts_with(PREFIX.as_bytes())
    }

    /// The public part alone, of text that is `<id>`, `claw_<id>` or a whole key: what a person has at hand of one.
    ///
    /// # Errors
    /// If it is none of them.
    pub fn id_of(text: &'a str) -> Result<&'a str, ApiKeyError> {
        if let Ok(key) = ApiKey::parse(text) {
            return Ok(key.id);
        }
        let id = text.strip_prefix(PREFIX).unwrap_or(text);
        if id.len() == ID_CHARS && is_hex(id) { Ok(id) } else { Err(ApiKeyError::Syntax) }
    }

    /// Makes the text of a key from random bytes (6 for the id, 32 for the secret).
    #[must_use]
    pub fn compose(id: [u8; 6], secret: [u8; 32]) -> String {
        use std::fmt::Write as _;
        let mut text = String::with_capacity(PREFIX.len() + ID_CHARS + 1 + SECRET_CHARS);
        text.push_str(PREFIX);
        for byte in id {
            let _ = write!(text, "{byte:02x}");
        }
        text.push('_');
        for byte in secret {
            let _ = write!(text, "{byte:02x}");
        }
        text
    }

    /// The public part, by which the record is found.
    #[must_use]
    pub fn id(&self) -> &'a str {
        self.id
    }

    /// The whole key, to be hashed; never log it.
    #[must_use]
    pub fn expose(&self) -> &'a str {
        self.text
    }
}

impl fmt::Debug for ApiKey<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ApiKey(claw_{}_…)", self.id)
    }
}

/// Whether all of it is lowercase hexadecimal digits.
fn is_hex(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// What is stored of a key.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApiKeyRecord {
    /// The key's public id.
    pub id: String,
    /// The agent it stands for.
    pub agent: AgentId,
    /// Keyed hash of the whole key.
    pub mac: [u8; KEY_MAC_BYTES],
    /// Unix seconds at which it was made; `None` if nobody wrote that down.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created_at_s: Option<i64>,
    /// Unix seconds from which it counts; `None`: at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_before_s: Option<i64>,
    /// Unix seconds from which it no longer counts; `None`: no expiry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at_s: Option<i64>,
    /// Unix seconds from which it is revoked, which may lie ahead: while keys are rotated the old one counts until
    /// then. `None`: it is not revoked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked_at_s: Option<i64>,
}

impl ApiKeyRecord {
    /// Whether `mac` is this key's, in constant time.
    #[must_use]
    pub fn matches(&self, mac: &[u8; KEY_MAC_BYTES]) -> bool {
        self.mac.ct_eq(mac).into()
    }

    /// Whether it counts at a Unix time in seconds.
    ///
    /// # Errors
    /// [`IdentityError::Revoked`], [`IdentityError::Expired`] or [`IdentityError::NotYet`].
    pub fn counts(&self, now_s: i64) -> Result<(), IdentityError> {
        if self.revoked_at_s.is_some_and(|t| now_s >= t) {
            return Err(IdentityError::Revoked);
        }
        if self.expires_at_s.is_some_and(|t| now_s >= t) {
            return Err(IdentityError::Expired);
        }
        if self.not_before_s.is_some_and(|t| now_s < t) {
            return Err(IdentityError::NotYet);
        }
        Ok(())
    }

    /// When it stops counting, Unix seconds; `None`: never.
    #[must_use]
    pub fn ends_s(&self) -> Option<i64> {
        self.expires_at_s.into_iter().chain(self.revoked_at_s).min()
    }
}

impl fmt::Debug for ApiKeyRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ApiKeyRecord")
            .field("id", &self.id)
            .field("agent", &self.agent)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys() {
        let text = ApiKey::compose([0, 1, 2, 0xfd, 0xfe, 0xff], [0xa5; 32]);
        let key = ApiKey::parse(&text).unwrap();
        assert_eq!(key.id(), "000102fdfeff");
        assert_eq!(key.expose(), text);
        for wrong in [
            "",
            "claw_",
            "claw__",
            &text[1..],
            &text[..text.len() - 1],
            &format!("{text}0"),
            &format!("{text} "),
            &format!(" {text}"),
            &text.to_uppercase(),
            &text.replace("a5a5", "A5a5"),
            &text.replacen('_', "-", 1),
            &text.replace("000102fdfeff", "000102fdfef"),
            &text.replace("000102fdfeff", "000102fdfe_f"),
            &text.replace("a5a5", "a5é"),
        ] {
            assert_eq!(ApiKey::parse(wrong).err(), Some(ApiKeyError::Syntax), "`{wrong}`");
        }
    }

    #[test]
    fn the_id_of_what_a_person_has_of_a_key() {
        let text = ApiKey::compose([0, 1, 2, 0xfd, 0xfe, 0xff], [0xa5; 32]);
        for right in [text.as_str(), "000102fdfeff", "claw_000102fdfeff"] {
            assert_eq!(ApiKey::id_of(right), Ok("000102fdfeff"));
        }
        for wrong in
            ["", "claw_", "000102fdfef", "000102FDFEFF", "claw_000102fdfeff_", &text[1..], "00010200000é"]
        {
            assert_eq!(ApiKey::id_of(wrong), Err(ApiKeyError::Syntax), "`{wrong}`");
        }
    }

    #[test]
    fn debug_and_messages_never_show_the_secret() {
        let text = ApiKey::compose([7; 6], [0xc3; 32]);
        let key = ApiKey::parse(&text).unwrap();
        let record = ApiKeyRecord {
            id: key.id().to_owned(),
            agent: "web".parse().unwrap(),
            mac: [0xc3; KEY_MAC_BYTES],
            created_at_s: None,
            not_before_s: None,
            expires_at_s: Some(9),
            revoked_at_s: None,
        };
        for shown in [format!("{key:?}"), format!("{key:#?}"), format!("{record:?}"), format!("{record:#?}")]
        {
            assert!(shown.contains("070707070707"), "{shown}");
            assert!(!shown.contains("c3c3") && !shown.contains("195, 195"), "{shown}");
        }
        assert!(!ApiKeyError::Syntax.to_string().contains("c3"));
    }

    #[test]
    fn a_hash_matches_only_whole() {
        let record = ApiKeyRecord {
            id: String::new(),
            agent: "web".parse().unwrap(),
            mac: [9; KEY_MAC_BYTES],
            created_at_s: None,
            not_before_s: None,
            expires_at_s: None,
            revoked_at_s: None,
        };
        assert!(record.matches(&[9; KEY_MAC_BYTES]));
        for at in 0..KEY_MAC_BYTES {
            let mut mac = [9; KEY_MAC_BYTES];
            mac[at] ^= 1;
            assert!(!record.matches(&mac), "byte {at}");
        }
    }

    proptest::proptest! {
        #[test]
        fn compose_then_parse_is_identity(id: [u8; 6], secret: [u8; 32]) {
            let text = ApiKey::compose(id, secret);
            let key = ApiKey::parse(&text).unwrap();
            assert_eq!(key.expose(), text);
            assert!(text.starts_with(&format!("claw_{}_", key.id())));
        }

        #[test]
        fn arbitrary_text_never_panics(text in "(claw_)?\\PC{0,90}") {
            let _ = ApiKey::parse(&text);
        }
    }
}
