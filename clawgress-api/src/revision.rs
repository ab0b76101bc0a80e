//! A policy revision, and the bytes that its signature is over.
//!
//! INVARIANT: the bytes are the same for the same revision in every version: a change of them is a new [`DOMAIN`].

use clawgress_identity::PolicyOwner;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::Plane;
use crate::proto::RevisionStatement;

/// What the signed bytes begin with: a signature of this key over anything else can't be taken for one of these.
pub const DOMAIN: &[u8] = b"clawgress policy revision v1\0";
/// The same for the platform's, and for those of tenants other than `default`: their bytes say whose they are.
pub const DOMAIN_OWNED: &[u8] = b"clawgress policy revision v2\0";
/// The same for those that were applied with findings accepted, whosesoever they are: their bytes say which as well.
pub const DOMAIN_ACCEPTED: &[u8] = b"clawgress policy revision v3\0";
/// Longest name of whose a policy is, bytes.
const OWNER_BYTES_MAX: usize = 128;
/// Bytes of the bundle's hash: SHA-256.
pub const HASH_BYTES: usize = 32;
/// Longest author or message, bytes.
pub const REVISION_TEXT_BYTES_MAX: usize = 1024;
/// Most findings, or kinds of them, that a revision was applied with (`clawgress_policy::lint::ACCEPTED_MAX`).
const ACCEPTED_MAX: usize = 16;
/// Longest name of a finding, bytes: a kind, and a policy's id.
const ACCEPTED_BYTES_MAX: usize = 256;

/// A policy revision.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyRevision<P> {
    /// Whose it is; numbers are each owner's own.
    #[serde(default, skip_serializing_if = "PolicyOwner::is_default")]
    pub owner: PolicyOwner,
    /// Number, from 1.
    pub number: u64,
    /// The one before, 0 for none.
    pub parent: u64,
    /// When.
    pub time: Timestamp,
    /// Who.
    pub author: String,
    /// Why.
    pub message: String,
    /// SHA-256 of the bundle's JSON, hex.
    pub hash: String,
    /// Findings that were proven, and that whoever applied it accepted, as `KIND` or `KIND:POLICY`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub accepted: Vec<String>,
    /// What the keys role says of all of the above; absent where it was never asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signature: Option<Signature>,
    /// The bundle, absent in listings.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bundle: Option<P>,
    /// The generation it went live in, if it is live.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<u64>,
    /// In answers: whether the signature holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub standing: Option<Standing>,
}

/// An Ed25519 signature (RFC 8032) of a revision's [statement](PolicyRevision::statement).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Signature {
    /// The public key, hex.
    pub key: String,
    /// The signature, hex.
    pub value: String,
}

/// Whether a stored revision is what the keys role signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    /// It is.
    Signed,
    /// Nobody signed it.
    Unsigned,
    /// It was signed by another key than the keys role has.
    OtherKey,
    /// It is not what was signed.
    Altered,
    /// Nobody can tell: the keys role is away.
    Unknown,
}

/// A policy that was made live, and which planes run it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(bound(deserialize = "P: Deserialize<'de> + Default"))]
pub struct AppliedPolicy<P> {
    /// The revision, with the generation that it went live in.
    #[serde(flatten)]
    pub revision: PolicyRevision<P>,
    /// The planes that run that generation, or a later one.
    #[serde(default)]
    pub running: Vec<PlaneState>,
    /// Those that don't: what they carry is decided by what they had, for as long as each says.
    #[serde(default)]
    pub behind: Vec<PlaneState>,
}

/// A plane, or one process of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlaneState {
    /// Which.
    pub plane: Plane,
    /// Name of the process, of L7.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<String>,
    /// Its id, of L7.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// The generation it said that it runs, 0 for none.
    pub generation: u64,
    /// Why it is behind, and until when that matters, if it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

/// What a policy would rest on at this node, so that it can be asked elsewhere.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicySurroundings<S> {
    /// The live generation.
    pub generation: u64,
    /// Geo data of what the policy names, as their files have them now, and the zone (`clawgress_policy::Surroundings`).
    pub surroundings: S,
    /// Names the geo data in force, as records do (`clawgress_policy::Geo::edition`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub geo: Option<String>,
    /// Whether the geo data above are those in force: the live policy names all of them, with the same prefixes.
    pub is_in_force: bool,
}

/// `policy signer`: who signs revisions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicySigner {
    /// `ed25519`.
    pub algorithm: String,
    /// The public key, hex.
    pub public_key: String,
}

/// Why a statement can't be signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StatementError {
    /// Revisions are numbered from 1, each after its parent.
    #[error("a revision is numbered from 1 and comes after its parent")]
    Number,
    /// Not a SHA-256.
    #[error("the hash of a bundle has {HASH_BYTES} bytes, in hex as lowercase digits")]
    Hash,
    /// Nobody's.
    #[error("a policy is the platform's or a tenant's")]
    Owner,
    /// Too many, or one that is none.
    #[error("at most {ACCEPTED_MAX} findings of {ACCEPTED_BYTES_MAX} bytes are accepted by name")]
    Accepted,
    /// Too long.
    #[error("an author or a message has at most {REVISION_TEXT_BYTES_MAX} bytes")]
    Text,
}

// === impl PlaneState and PolicyRevision ===

impl PlaneState {
    /// What it is called.
    #[must_use]
    pub fn told(&self) -> String {
        match (self.plane, &self.instance) {
            (Plane::L7, Some(instance)) => {
                let pid = self.pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default();
                format!("L7 worker `{instance}`{pid}")
            }
            (Plane::L7, None) => "L7".to_owned(),
            (Plane::Kernel, _) => "the kernel plane".to_owned(),
            (Plane::Control, _) => "control".to_owned(),
        }
    }
}

impl<P> PolicyRevision<P> {
    /// What its signature is over.
    ///
    /// # Errors
    /// If its hash is none.
    pub fn statement(&self) -> Result<RevisionStatement, StatementError> {
        let hash =
            from_hex(&self.hash).filter(|hash| hash.len() == HASH_BYTES).ok_or(StatementError::Hash)?;
        Ok(RevisionStatement {
            number: self.number,
            parent: self.parent,
            time_s: self.time.as_second(),
            time_ns: self.time.subsec_nanosecond(),
            author: self.author.clone(),
            message: self.message.clone(),
            hash,
            owner: if self.owner.is_default() { String::new() } else { self.owner.to_string() },
            accepted: self.accepted.clone(),
        })
    }
}

// === impl RevisionStatement ===

impl RevisionStatement {
    /// The bytes that are signed: [`DOMAIN`]; number, parent (8 bytes each) and time (8 bytes of seconds, 4 of
    /// nanoseconds); the hash (32 bytes); author and message, each after its length (4 bytes). Integers are big-endian,
    /// those of the time in two's complement. Every part has a length of its own or says it, so that no two statements
    /// have the same bytes. Those of anybody's but the tenant `default` begin with [`DOMAIN_OWNED`] and whose it is, after its
    /// length (4 bytes); the rest is the same. Where findings were accepted they begin with [`DOMAIN_ACCEPTED`] and whose it is
    /// (nothing for the tenant `default`), and end with how many (4 bytes) and each after its length.
    ///
    /// # Errors
    /// If a part is out of its bounds.
    pub fn signed_bytes(&self) -> Result<Vec<u8>, StatementError> {
        if self.number == 0 || self.parent >= self.number {
            return Err(StatementError::Number);
        }
        if self.hash.len() != HASH_BYTES {
            return Err(StatementError::Hash);
        }
        let texts = [&self.author, &self.message];
        let mut bytes =
            Vec::with_capacity(DOMAIN.len() + 64 + texts.iter().map(|t| t.len() + 4).sum::<usize>());
        self.push_domain(&mut bytes)?;
        bytes.extend_from_slice(&self.number.to_be_bytes());
        bytes.extend_from_slice(&self.parent.to_be_bytes());
        bytes.extend_from_slice(&self.time_s.to_be_bytes());
        bytes.extend_from_slice(&self.time_ns.to_be_bytes());
        bytes.extend_from_slice(&self.hash);
        for text in texts {
            if text.len() > REVISION_TEXT_BYTES_MAX {
                return Err(StatementError::Text);
            }
            push_text(&mut bytes, text)?;
        }
        if !self.accepted.is_empty() {
            let is_name = |name: &String| (1..=ACCEPTED_BYTES_MAX).contains(&name.len());
            let count = u32::try_from(self.accepted.len()).map_err(|_| StatementError::Accepted)?;
            if self.accepted.len() > ACCEPTED_MAX || !self.accepted.iter().all(is_name) {
                return Err(StatementError::Accepted);
            }
            bytes.extend_from_slice(&count.to_be_bytes());
            self.accepted.iter().try_for_each(|name| push_text(&mut bytes, name))?;
        }
        Ok(bytes)
    }

    /// What the bytes begin with: what they are of, and whose it is.
    fn push_domain(&self, bytes: &mut Vec<u8>) -> Result<(), StatementError> {
        if !self.owner.is_empty() {
            let owner: PolicyOwner = self.owner.parse().map_err(|_| StatementError::Owner)?;
            if owner.is_default() || self.owner.len() > OWNER_BYTES_MAX {
                // One statement has one form.
                return Err(StatementError::Owner);
            }
        }
        match (self.accepted.is_empty(), self.owner.is_empty()) {
            (true, true) => bytes.extend_from_slice(DOMAIN),
            (true, false) => {
                bytes.extend_from_slice(DOMAIN_OWNED);
                push_text(bytes, &self.owner)?;
            }
            (false, _) => {
                bytes.extend_from_slice(DOMAIN_ACCEPTED);
                push_text(bytes, &self.owner)?;
            }
        }
        Ok(())
    }
}

/// A text after its length.
fn push_text(bytes: &mut Vec<u8>, text: &str) -> Result<(), StatementError> {
    let length = u32::try_from(text.len()).map_err(|_| StatementError::Text)?;
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes.extend_from_slice(text.as_bytes());
    Ok(())
}

// === impl Standing ===

impl Standing {
    /// One word or two, for a table.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Standing::Signed => "holds",
            Standing::Unsigned => "none",
            Standing::OtherKey => "other key",
            Standing::Altered => "ALTERED",
            Standing::Unknown => "unknown",
        }
    }
}

/// Bytes as lowercase hex.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Bytes of lowercase hex; `None` of anything else.
#[must_use]
pub fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: &u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let pairs = text.as_bytes().chunks(2);
    pairs
        .map(|pair| match pair {
            [high, low] => Some(digit(high)? << 4 | digit(low)?),
            _ => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn revision() -> PolicyRevision<()> {
        PolicyRevision {
            owner: PolicyOwner::default(),
            number: 2,
            parent: 1,
            time: "2026-11-22T14:00:00.000000007Z".parse().expect("time"),
            author: "me".to_owned(),
            message: "because".to_owned(),
            hash: "ab".repeat(32),
            accepted: Vec::new(),
            signature: None,
            bundle: None,
            generation: None,
            standing: None,
        }
    }

    fn bytes(revision: &PolicyRevision<()>) -> Vec<u8> {
        revision.statement().expect("statement").signed_bytes().expect("bytes")
    }

    /// Written out by hand from the description: other implementations verify by it.
    #[test]
    fn the_signed_bytes_are_these() {
        let mut expected = b"clawgress policy revision v1\0".to_vec();
        expected.extend(from_hex("00000000000000020000000000000001").expect("hex"));
        // 1795356000 s after 1970.
        expected.extend(from_hex("000000006b02f560").expect("hex"));
        expected.extend(from_hex("00000007").expect("hex"));
        expected.extend([0xab; 32]);
        expected.extend(b"\0\0\0\x02me\0\0\0\x07because");
        assert_eq!(hex(&bytes(&revision())), hex(&expected));
    }

    /// Likewise for who is not the tenant `default`, whose revisions are signed as they always were.
    #[test]
    fn the_signed_bytes_say_whose_it_is() {
        let owned = PolicyRevision { owner: PolicyOwner::Platform, ..revision() };
        let mut expected = b"clawgress policy revision v2\0\0\0\0\x08platform".to_vec();
        expected.extend(bytes(&revision()).get(DOMAIN.len()..).expect("the rest"));
        assert_eq!(hex(&bytes(&owned)), hex(&expected));
        let mut statement = owned.statement().expect("statement");
        for nobody in ["acme", "tenant/default", "tenant/A", "platform "] {
            statement.owner = nobody.to_owned();
            assert_eq!(statement.signed_bytes(), Err(StatementError::Owner), "{nobody}");
        }
    }

    /// Likewise where findings were accepted.
    #[test]
    fn the_signed_bytes_say_what_was_accepted() {
        let accepted = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let base = PolicyRevision { accepted: accepted(&["never-matches", "moot:a"]), ..revision() };
        let mut expected = b"clawgress policy revision v3\0\0\0\0\0".to_vec();
        expected.extend(bytes(&revision()).get(DOMAIN.len()..).expect("the rest"));
        expected.extend(b"\0\0\0\x02\0\0\0\x0dnever-matches\0\0\0\x06moot:a");
        assert_eq!(hex(&bytes(&base)), hex(&expected));
        let owned = PolicyRevision { owner: PolicyOwner::Platform, ..base.clone() };
        let mut expected = b"clawgress policy revision v3\0\0\0\0\x08platform".to_vec();
        expected.extend(bytes(&base).get(DOMAIN.len() + 4..).expect("the rest"));
        assert_eq!(hex(&bytes(&owned)), hex(&expected));
        for bad in [
            accepted(&[""]),
            vec!["a".repeat(ACCEPTED_BYTES_MAX + 1)],
            vec!["a".to_owned(); ACCEPTED_MAX + 1],
        ] {
            let revision = PolicyRevision { accepted: bad, ..revision() };
            let statement = revision.statement().expect("statement");
            assert_eq!(statement.signed_bytes(), Err(StatementError::Accepted));
        }
    }

    #[test]
    fn every_part_counts_and_none_flows_into_the_next() {
        let base = revision();
        let others = [
            PolicyRevision { owner: PolicyOwner::Platform, ..base.clone() },
            PolicyRevision { owner: PolicyOwner::Tenant("acme".into()), ..base.clone() },
            PolicyRevision { number: 3, ..base.clone() },
            PolicyRevision { parent: 0, ..base.clone() },
            PolicyRevision { time: "2026-11-22T14:00:00.000000008Z".parse().expect("time"), ..base.clone() },
            PolicyRevision { time: "2026-11-22T14:00:01.000000007Z".parse().expect("time"), ..base.clone() },
            PolicyRevision { author: "meb".into(), message: "ecause".into(), ..base.clone() },
            PolicyRevision { message: "because ".into(), ..base.clone() },
            PolicyRevision { accepted: vec!["moot".into()], ..base.clone() },
            PolicyRevision { owner: PolicyOwner::Platform, accepted: vec!["moot".into()], ..base.clone() },
            PolicyRevision { accepted: vec!["moot".into(), "moot".into()], ..base.clone() },
            PolicyRevision { hash: "ac".repeat(32), ..base.clone() },
        ];
        for other in &others {
            assert_ne!(bytes(&base), bytes(other), "{other:?}");
        }
    }

    #[test]
    fn what_is_out_of_bounds_is_not_signed() {
        let of = |revision: &PolicyRevision<()>| revision.statement().and_then(|s| s.signed_bytes());
        let base = revision();
        for hash in ["", "ab", &"AB".repeat(32), &"zz".repeat(32), &"ab".repeat(33)] {
            assert_eq!(of(&PolicyRevision { hash: hash.into(), ..base.clone() }), Err(StatementError::Hash));
        }
        for (number, parent) in [(0, 0), (1, 1), (1, 2)] {
            assert_eq!(of(&PolicyRevision { number, parent, ..base.clone() }), Err(StatementError::Number));
        }
        let long = "m".repeat(REVISION_TEXT_BYTES_MAX + 1);
        assert_eq!(of(&PolicyRevision { message: long, ..base }), Err(StatementError::Text));
        assert_eq!(from_hex("0"), None);
    }
}
