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
/// Bytes of all credentials from which on they are more than that: servers take no longer heads, as a rule.
const CREDENTIALS_BYTES_MAX: usize = 8 * 1024;
/// Bytes that what a head carries may decode to, all of it; what comes to more is data. A head has 64 KiB.
const DECODED_BYTES_MAX: u64 = 4 << 20;
/// The same of one value among many, so that they come to no more together.
const VALUE_BYTES_MAX: u64 = 16 << 10;
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
        let mut values: Vec<(Vec<u8>, &'static str)> = Vec::new();
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
                values.push((value.to_vec(), URL_DATA));
            }
        });
        let of_query = match query {
            "" => Carried::default(),
            query => target_by(format!("?{query}").as_bytes(), &mut |value, carried| {
                carries.notes(value, carried.bytes());
                values.push((value.to_vec(), URL_DATA));
            }),
        };
        if of_path.and(of_query).is_data() {
            carries.findings.insert(URL_DATA);
        }
        let (mut of_fields, mut of_credentials) = (Carried::default(), 0);
        for (name, value) in fields {
            let is_credential = CREDENTIALS.iter().any(|known| name.eq_ignore_ascii_case(known));
            let carried = header_by(value, &mut |value, carried| {
                carries.notes_of(value, carried.bytes(), is_credential);
                if is_credential && carried.bytes() >= CREDENTIAL_BYTES_MIN && holds_key(value, limits) {
                    carries.findings.insert(Finding::PrivateKey.name());
                }
            });
            if is_credential {
                of_credentials += carried.bytes();
            } else {
                of_fields = of_fields.and(carried);
                values.push((value.to_vec(), HEADER_DATA));
            }
        }
        if of_fields.is_data() || of_credentials > CREDENTIALS_BYTES_MAX {
            carries.findings.insert(HEADER_DATA);
        }
        let all = detected(values.iter().map(|(value, _)| &value[..]), DECODED_BYTES_MAX, limits);
        if let Some(found) = all {
            carries.findings.extend(found);
            return carries;
        }
        // What can't be read is data by that, and hides nothing that is beside it.
        let each = (DECODED_BYTES_MAX / values.len().max(1) as u64).max(VALUE_BYTES_MAX);
        for (value, unread) in &values {
            match detected(std::iter::once(&value[..]), each, limits) {
                Some(found) => carries.findings.extend(found),
                None => drop(carries.findings.insert(unread)),
            }
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

/// What detectors find in values, by its names; `None` if they can't be read, or decode to more than `bytes_max`.
fn detected<'v>(
    values: impl Iterator<Item = &'v [u8]>,
    bytes_max: u64,
    limits: Limits,
) -> Option<Vec<&'static str>> {
    let limits = Limits { decoded_bytes_max: limits.decoded_bytes_max.min(bytes_max), ..limits };
    let mut inspector = Inspector::new(Claims::new(&[], &[]), limits);
    inspector.push(BEFORE).ok()?;
    for value in values {
        // The blank ends what a value stands for: a line's end alone may be in the middle of it.
        inspector.push(value).and_then(|()| inspector.push(b" \n")).ok()?;
    }
    inspector.finish().ok()?;
    Some(inspector.findings().filter(|found| !is_of_form(*found)).map(Finding::name).collect())
}

/// Whether a private key is in a value, or may be: what can't be read is no credential.
fn holds_key(value: &[u8], limits: Limits) -> bool {
    detected(std::iter::once(value), VALUE_BYTES_MAX, limits)
        .is_none_or(|found| found.contains(&Finding::PrivateKey.name()))
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
        self.notes_of(value, bytes, false);
    }

    fn notes_of(&mut self, value: &[u8], bytes: usize, is_credential: bool) {
        if bytes == 0 {
            return;
        }
        let piece = Piece::of(value, bytes);
        let piece = if is_credential { piece.untold() } else { piece };
        let is_full = self.pieces.len() >= PIECES_MAX;
        match self.pieces.last_mut().filter(|_| is_full) {
            // All that are more are one, which is news where one of them is.
            Some(last) => *last = last.and(piece),
            None => self.pieces.push(piece),
        }
    }
}

#[cfg(test)]
mod tests;
