//! Which certificate, revocation list or key of a file is at fault, and where it stands: what reads them counts them, and people
//! look for lines. Must never say what is right: that is for who reads them.

use std::path::Path;

use clawgress_api::identity::AnchorsError;
use serde::de::IgnoredAny;
use toml::de::{DeTable, DeValue};

use crate::failure::Failure;
use crate::input::{misread, place};

/// Labels of sections (RFC 7468).
pub const CERTIFICATE: &str = "CERTIFICATE";
pub const REVOCATION_LIST: &str = "X509 CRL";

/// A file of PEM, as it was read.
#[derive(Clone, Copy)]
pub struct Pem<'a> {
    pub path: &'a Path,
    pub text: &'a str,
    pub label: &'static str,
    /// Where it is a value in a file: that file's text, and the line on which the value begins.
    pub within: Option<(&'a str, u64)>,
}

/// What is wrong with certificates, or the revocation lists beside them, where it stands.
pub fn of_anchors(
    error: AnchorsError,
    told: &str,
    certificates: Pem<'_>,
    lists: Option<Pem<'_>>,
) -> Option<Failure> {
    let is_of_lists = match error {
        AnchorsError::NotAnAuthority(_) => false,
        AnchorsError::List(_) => true,
        AnchorsError::Pem(what) | AnchorsError::Count(what) | AnchorsError::Size(what) => {
            what != "certificates"
        }
        AnchorsError::Revocation => return None,
    };
    let pem = if is_of_lists { lists? } else { certificates };
    let line = match error {
        AnchorsError::NotAnAuthority(n) | AnchorsError::List(n) => pem.section(n),
        AnchorsError::Pem(_) => Some(pem.unreadable().unwrap_or(1)),
        _ => None,
    };
    let (text, before) = match pem.within {
        None => (pem.text, 0),
        Some((text, first)) => (text, first.saturating_sub(1)),
    };
    // In one line nothing can be told apart.
    let line = line.or(pem.within.map(|_| 1));
    Some(misread(pem.path, text, line.map(|line| (before + line, 1)), told))
}

/// What is wrong with settings, told of a subject, at the key of theirs that it names first.
pub fn of_settings(path: &Path, text: &str, (subject, error): (&str, &str)) -> Failure {
    let table = DeTable::parse(text).ok();
    let named = error.split('`').skip(1).step_by(2);
    let mut found = named.filter_map(|name| key(table.as_ref()?.get_ref(), name));
    misread(path, text, found.next().map(|at| place(text, at)), &format!("{subject}: {error}"))
}

/// What is wrong with certificates that settings hold under these keys, where it stands.
pub fn of_inline(
    error: AnchorsError,
    told: &str,
    (path, text): (&Path, &str),
    keys: &[&str],
) -> Option<Failure> {
    let table = DeTable::parse(text).ok()?;
    let (last, tables) = keys.split_last()?;
    let table =
        tables.iter().try_fold(table.get_ref(), |table, key| table.get(*key)?.get_ref().as_table())?;
    let span = table.get(*last)?.span();
    let (first, _) = place(text, span.start);
    // Quotes begin the first line and end the last.
    let value = text.get(span)?.trim_matches(['"', '\'']);
    of_anchors(error, told, Pem { path, text: value, label: CERTIFICATE, within: Some((text, first)) }, None)
}

/// Where a key of this name stands in a table, or in one below it.
fn key(table: &DeTable<'_>, name: &str) -> Option<usize> {
    let own = table.keys().find(|key| key.get_ref().as_ref() == name).map(|key| key.span().start);
    let below = || table.values().find_map(|value| below(value.get_ref(), name));
    own.or_else(below)
}

fn below(value: &DeValue<'_>, name: &str) -> Option<usize> {
    match value {
        DeValue::Table(table) => key(table, name),
        DeValue::Array(all) => all.iter().find_map(|value| below(value.get_ref(), name)),
        _ => None,
    }
}

// === impl Pem ===

impl Pem<'_> {
    /// The line at which the section of this number, from 1, begins.
    fn section(&self, number: usize) -> Option<u64> {
        let begin = format!("-----BEGIN {}-----", self.label);
        let lines = (1..).zip(self.text.lines()).filter(|(_, line)| line.trim() == begin);
        lines.map(|(line, _)| line).nth(number.checked_sub(1)?)
    }

    /// The first line that keeps the file from being read: one that has no place in a section, or the beginning of one without
    /// its end.
    fn unreadable(&self) -> Option<u64> {
        let mut begun: Option<(u64, &str)> = None;
        for (number, line) in (1..).zip(self.text.lines()) {
            let line = line.trim();
            let label = |before: &str| line.strip_prefix(before)?.strip_suffix("-----");
            match (label("-----BEGIN "), label("-----END "), begun) {
                (Some(_), _, Some((first, _))) => return Some(first),
                (Some(label), _, None) => begun = Some((number, label)),
                (None, Some(label), Some((_, own))) if label == own => begun = None,
                (None, Some(_), _) => return Some(number),
                // Text between sections explains them.
                (None, None, None) => {}
                (None, None, Some(_)) => {
                    let is_base64 = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'/' | b'=');
                    if !line.bytes().all(is_base64) {
                        return Some(number);
                    }
                }
            }
        }
        begun.map(|(first, _)| first)
    }
}

/// What is wrong with a key of a set, where it stands: the first that `is_refused` alone, as a set of its own.
pub fn of_keys(path: &Path, text: &str, told: &str, is_refused: impl Fn(&[u8]) -> bool) -> Failure {
    let alone = |range: &std::ops::Range<usize>| {
        let key = text.get(range.clone()).unwrap_or_default();
        is_refused(format!("{{\"keys\":[{key}]}}").as_bytes())
    };
    let found = keys(text).unwrap_or_default().into_iter().find(alone);
    misread(path, text, found.map(|range| place(text, range.start)), told)
}

/// Where the members of `keys` stand in a document that is JSON.
fn keys(text: &str) -> Option<Vec<std::ops::Range<usize>>> {
    let mut at = skipped(text, text.find('{')? + 1, &[]);
    while !text.get(at..)?.starts_with('}') {
        let name = value(text, at)?;
        let is_keys = serde_json::from_str::<String>(text.get(name.clone())?).ok()? == "keys";
        at = skipped(text, name.end, &[':']);
        if is_keys && text.get(at..)?.starts_with('[') {
            return members(text, at + 1);
        }
        at = skipped(text, value(text, at)?.end, &[',']);
    }
    None
}

/// Where the members of a list stand, of which the first begins behind `at`.
fn members(text: &str, at: usize) -> Option<Vec<std::ops::Range<usize>>> {
    let (mut at, mut found) = (skipped(text, at, &[]), Vec::new());
    while !text.get(at..)?.starts_with(']') {
        let member = value(text, at)?;
        at = skipped(text, member.end, &[',']);
        found.push(member);
    }
    Some(found)
}

/// Where the value stands that begins at `at`.
fn value(text: &str, at: usize) -> Option<std::ops::Range<usize>> {
    let mut values = serde_json::Deserializer::from_str(text.get(at..)?).into_iter::<IgnoredAny>();
    values.next()?.ok()?;
    Some(at..at + values.byte_offset())
}

/// Behind spaces, and these.
fn skipped(text: &str, at: usize, others: &[char]) -> usize {
    let rest = text.get(at..).unwrap_or_default();
    at + rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_whitespace() || others.contains(&c)).len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sections_and_lines_are_found() {
        let text = "who: a\n-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n\n-----BEGIN CERTIFICATE-----\nBBBB\n-----END CERTIFICATE-----\n";
        let pem = |text| Pem { path: Path::new("x"), text, label: CERTIFICATE, within: None };
        assert_eq!(
            (pem(text).section(1), pem(text).section(2), pem(text).section(3)),
            (Some(2), Some(6), None)
        );
        assert_eq!(pem(text).unreadable(), None);
        for (from, to, line) in [
            ("BBBB", "BB*B", 7),
            ("AAAA\n-----END CERTIFICATE-----\n", "AAAA\n", 2),
            ("BBBB\n-----END CERTIFICATE-----\n", "BBBB\n", 6),
            ("-----BEGIN CERTIFICATE-----\nAAAA", "AAAA", 3),
            ("BBBB\n-----END CERTIFICATE", "BBBB\n-----END X509 CRL", 8),
        ] {
            let torn = text.replacen(from, to, 1);
            let torn = Pem { path: Path::new("x"), text: &torn, label: CERTIFICATE, within: None };
            assert_eq!(torn.unreadable(), Some(line), "{from}");
        }
    }

    #[test]
    fn settings_are_told_by_the_key_that_is_named() {
        let text = "issuer = \"x\"\n[[more]]\n  skew_s = 9\n[provider]\nca = 1\n";
        let told =
            |error: &str| of_settings(Path::new("s.toml"), text, ("issuer `issuer`", error)).to_string();
        assert!(told("`skew_s` is more than 5").starts_with("s.toml:3:3: "), "{}", told("`skew_s`"));
        assert!(told("`nothing` and `ca`").starts_with("s.toml:5:1: "));
        assert!(told("nothing is named").starts_with("s.toml: issuer `issuer`: nothing is named"));
    }

    #[test]
    fn members_of_a_key_set_are_found() {
        let text = "{ \"note\" : {\"keys\": [1]},\n \"keys\" :\n [ {\"a\": \"]\"} ,\n  {\"b\": [2, 3]} ] }";
        let found: Vec<&str> = keys(text).unwrap().into_iter().map(|range| &text[range]).collect();
        assert_eq!(found, ["{\"a\": \"]\"}", "{\"b\": [2, 3]}"]);
        assert_eq!(keys("{\"other\": 1}"), None);
        let refused = of_keys(Path::new("k.json"), text, "bad", |set| set.windows(3).any(|w| w == b"\"b\""));
        assert!(refused.to_string().starts_with("k.json:4:3: bad\n"), "{refused}");
    }
}
