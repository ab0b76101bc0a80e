//! The head of a request as what is sent: data in its target, in fields, in labels of its host; and detectors on what they hold.
//!
//! A measure, not a proof: what a credential is called is taken for one, and counts only where many of them come to much. Must
//! never keep what was carried, but hashes of it.

use std::collections::BTreeSet;

use super::{Claims, Finding, Inspector, Limits};
use crate::dns::watch::parent;
use crate::encoded::Piece;
use crate::encoded::carried::{Carried, header_by, host, target_by};

/// Bytes from which on a target, or the fields together, carry data, where they stand for no text.
const DATA_BYTES_MIN: usize = 192;
/// Bytes from which on a credential is looked into: keys and tokens of use are shorter, but for those of JOSE.
const CREDENTIAL_BYTES_MIN: usize = 256;
/// Pieces of one head that are told apart.
const PIECES_MAX: usize = 64;
/// What is before what is looked at, so that it is plain text however it begins.
const BEFORE: &[u8] = b"what the head of a request has in it, line by line\n";
/// Fields that hold credentials, which have to be data: they are no finding by themselves.
const CREDENTIALS: [&str; 14] = [
    "api-key",
    "authorization",
    "cookie",
    "dpop",
    "sec-websocket-key",
    "x-amz-security-token",
    "x-api-key",
    "x-auth-token",
    "x-client-data",
    "x-csrf-token",
    "x-goog-api-key",
    "x-goog-iap-jwt-assertion",
    "x-ms-client-principal",
    "x-xsrf-token",
];

/// In a target: what a path or a query should not have.
const URL_DATA: &str = "url_data";
/// In a field.
const HEADER_DATA: &str = "header_data";
/// In labels of a host.
pub const HOST_DATA: &str = "host_data";

/// What the head of a request is.
#[derive(Clone, Copy, Debug)]
pub struct Head<'a> {
    /// The host that it goes to.
    pub host: &'a str,
    /// Path and query.
    pub target: (&'a str, &'a str),
}

/// What a head carries.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Carries {
    /// What was found, by its names.
    pub findings: BTreeSet<&'static str>,
    /// What looks like data, to be counted with what other requests carry.
    pub pieces: Vec<Piece>,
}

/// Whether labels of a host carry data.
#[must_use]
pub fn is_data(name: &str) -> bool {
    host(name.as_bytes()).bytes() > 0
}

// === impl Head ===

impl Head<'_> {
    /// Whom what it carries goes to: whoever serves the host serves the names beside it.
    #[must_use]
    pub fn destination(&self) -> &str {
        parent(self.host)
    }

    /// What it carries, with these fields.
    pub fn look<'f>(&self, fields: impl Iterator<Item = (&'f str, &'f [u8])>, limits: Limits) -> Carries {
        let mut carries = Carries::default();
        let mut inspector = Inspector::new(Claims::new(&[], &[]), limits);
        let mut is_read = inspector.push(BEFORE).is_ok();
        let mut look = |value: &[u8]| {
            is_read = is_read && inspector.push(value).is_ok() && inspector.push(b"\n").is_ok();
        };
        if is_data(self.host) {
            carries.findings.insert(HOST_DATA);
            self.host
                .split('.')
                .filter(|label| is_data(label))
                .for_each(|label| carries.notes(label.as_bytes(), label.len()));
        }
        let (path, query) = self.target;
        let of_path = target_by(path.as_bytes(), &mut |value, carried| {
            carries.notes(value, carried.bytes());
            // Ids of things are digits, too.
            if carried.bytes() > 0 {
                look(value);
            }
        });
        let of_query = match query {
            "" => Carried::default(),
            query => target_by(format!("?{query}").as_bytes(), &mut |value, carried| {
                carries.notes(value, carried.bytes());
                look(value);
            }),
        };
        if of_path.and(of_query).is_data() {
            carries.findings.insert(URL_DATA);
        }
        let mut of_fields = Carried::default();
        for (name, value) in fields {
            let is_credential = CREDENTIALS.iter().any(|known| name.eq_ignore_ascii_case(known));
            let carried = header_by(value, &mut |value, carried| {
                carries.notes(value, carried.bytes());
                if is_credential && carried.bytes() >= CREDENTIAL_BYTES_MIN && holds_key(value, limits) {
                    carries.findings.insert(Finding::PrivateKey.name());
                }
            });
            if !is_credential {
                of_fields = of_fields.and(carried);
                look(value);
            }
        }
        if of_fields.is_data() {
            carries.findings.insert(HEADER_DATA);
        }
        if is_read && inspector.finish().is_ok() {
            carries
                .findings
                .extend(inspector.findings().filter(|found| !is_of_form(*found)).map(Finding::name));
        }
        carries
    }
}

/// Whether what is found says no more than that there is data, which has names of its own here; or is nothing of a head's.
fn is_of_form(finding: Finding) -> bool {
    matches!(
        finding,
        Finding::EncodedText
            | Finding::OpaqueRun
            | Finding::LinkData
            | Finding::ImageLinkData
            | Finding::MediaTypeMismatch
            | Finding::ArchiveUnread
            | Finding::OversizedIdentifier
    )
}

/// Whether a private key is in a value.
fn holds_key(value: &[u8], limits: Limits) -> bool {
    let mut inspector = Inspector::new(Claims::new(&[], &[]), limits);
    let looked =
        inspector.push(BEFORE).and_then(|()| inspector.push(value)).and_then(|()| inspector.finish());
    looked.is_ok() && inspector.findings().any(|found| found == Finding::PrivateKey)
}

// === impl Carried ===

impl Carried {
    /// Whether it is more than names and ids.
    fn is_data(self) -> bool {
        self.text > 0 || self.dense >= DATA_BYTES_MIN
    }
}

// === impl Carries ===

impl Carries {
    fn notes(&mut self, value: &[u8], bytes: usize) {
        if bytes > 0 && self.pieces.len() < PIECES_MAX {
            self.pieces.push(Piece::of(value, bytes));
        }
    }
}

#[cfg(test)]
mod tests;
