//! What others have collected, of the sources of the crates that this workspace builds with: hosts of the WHATWG's URL tests and
//! Unicode's tests of IDNA, and requests that two parsers take for different ones.
//!
//! Reads what cargo has fetched; must never build, run or change anything.
#![expect(
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "helpers outside `#[test]` functions fail the test too"
)]

use std::fs;

use clawgress_inspect::http1::{self, Body};
use clawgress_policy::Host;

#[path = "corpora/desync.rs"]
mod desync;

use desync::{Case, cases, sources};

fn text(package: &str, path: &str) -> String {
    let path = sources(package).join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("`{}`: {error}", path.display()))
}

/// The host of a URL that names one, as it is written.
fn written(url: &str) -> Option<&str> {
    let scheme = ["http://", "https://", "ws://", "wss://", "ftp://"];
    let rest = scheme.into_iter().find_map(|scheme| url.strip_prefix(scheme))?;
    let authority = rest.split(['/', '?', '#', '\\']).next()?;
    if authority.is_empty() || authority.contains(['@', '\t', '\n', '\r']) {
        return None;
    }
    let end = authority.rfind(']').map_or(0, |at| at + 1);
    Some(authority.get(end..)?.find(':').map_or(authority, |at| &authority[..end + at]))
}

#[test]
fn hosts_of_the_whatwgs_urls_are_the_same_or_refused() {
    let cases: Vec<serde_json::Value> =
        serde_json::from_str(&text("url", "tests/urltestdata.json")).expect("JSON");
    let (mut same, mut refused, mut wrong) = (0, 0, Vec::new());
    for case in &cases {
        let Some(input) = case.get("input").and_then(serde_json::Value::as_str) else { continue };
        let Some(host) = written(input) else { continue };
        let theirs = case.get("hostname").and_then(serde_json::Value::as_str);
        match (Host::parse(host), theirs) {
            (Ok(ours), Some(theirs)) => {
                // A trailing dot is the same name here; brackets are the URL's; IPv4 in IPv6 is IPv4.
                let theirs = theirs.strip_suffix('.').unwrap_or(theirs);
                let theirs = theirs.trim_start_matches('[').trim_end_matches(']');
                let is_same = ours.to_string() == theirs
                    || theirs.parse().is_ok_and(|ip| ours == Host::from_address(ip));
                if is_same { same += 1 } else { wrong.push(format!("{input}: {ours}, not {theirs}")) }
            }
            // The host may be sound, and the URL isn't.
            (Ok(ours), None) => {
                let is_host = url::Host::parse(host).is_ok();
                if is_host { same += 1 } else { wrong.push(format!("{input}: {ours}, not refused")) }
            }
            (Err(_), _) => refused += 1,
        }
    }
    println!("{same} the same, {refused} refused");
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(same > 100 && refused > 100, "{same} {refused}");
}

/// What of Unicode's `\uXXXX` and `\x{XXXX}` a line has.
fn unescaped(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        let (digits, skip) = match rest.strip_prefix("x{") {
            Some(braced) => {
                let end = braced.find('}').expect("a brace");
                (&braced[..end], end + 3)
            }
            None => (&rest[1..5], 5),
        };
        let number = u32::from_str_radix(digits, 16).expect("hex");
        // Half of a pair is no character, and no text that could come here.
        out.push(char::from_u32(number).unwrap_or('\u{fffd}'));
        rest = &rest[skip..];
    }
    out.push_str(rest);
    out
}

#[test]
fn names_of_unicodes_tests_are_the_same_or_refused() {
    let (mut same, mut refused, mut wrong) = (0, 0, Vec::new());
    for line in text("idna", "tests/IdnaTestV2.txt").lines() {
        let line = line.split('#').next().unwrap_or_default();
        let columns: Vec<String> = line.split(';').map(|column| unescaped(column.trim())).collect();
        let [source, unicode, unicode_status, ascii, ascii_status, ..] = &columns[..] else { continue };
        if source.is_empty() || source == "\"\"" {
            continue;
        }
        // An empty column is as the one before it.
        let or = |text: &String, other: &str| if text.is_empty() { other.to_owned() } else { text.clone() };
        let (unicode, status) = (or(unicode, source), or(ascii_status, unicode_status));
        let ascii = or(ascii, &unicode).trim_matches('"').to_ascii_lowercase();
        let Ok(ours) = Host::parse(source) else {
            refused += 1;
            continue;
        };
        // Hyphens and lengths are no matter of what name it is, nor is in which version of Unicode a character came (V7).
        let status = status.trim_matches(['[', ']']);
        let is_strict = |code: &str| {
            !matches!(code.trim(), "" | "V2" | "V3" | "V4" | "V7" | "A4_1" | "A4_2" | "U1" | "X4_2")
        };
        let (ours, is_address) = (ours.to_string(), ours.address().is_some());
        if status.split(',').any(is_strict) && !is_address {
            wrong.push(format!("{source:?}: {ours}, not refused ({status})"));
        } else if ours == ascii.strip_suffix('.').unwrap_or(&ascii) || is_address {
            same += 1;
        } else {
            wrong.push(format!("{source:?}: {ours}, not {ascii}"));
        }
    }
    println!("{same} the same, {refused} refused");
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(same > 500 && refused > 1000, "{same} {refused}");
}

/// What may be taken for two requests is refused, or goes on in a framing of the gateway's own that can't be.
#[test]
fn requests_that_desynchronise_others_are_refused() {
    let cases = cases("a.test");
    assert!(cases.len() > 100, "{}", cases.len());
    let (mut taken, mut refused) = (Vec::new(), 0);
    for case in &cases {
        match http1::parse(&case.head) {
            Ok(head) => taken.push((case, head.body)),
            Err(_) => refused += 1,
        }
    }
    for (case, body) in &taken {
        println!("taken, {}: {} ({body:?})", case.tier, case.name);
    }
    println!("{} taken, {refused} refused", taken.len());
    // A body where none is usual says itself where it ends, and no method is another for it.
    let is_usual = |case: &Case| case.head.starts_with(b"GET ") || case.head.starts_with(b"HEAD ");
    let wrong = taken.iter().filter(|(case, _)| case.tier != "Compliant" && !is_usual(case));
    let wrong: Vec<&str> = wrong.map(|(case, _)| &*case.name).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(!taken.iter().any(|(case, _)| case.tier == "Severe"));
    // Nothing sound is lost by that.
    let sound = taken.iter().filter(|(case, _)| case.tier == "Compliant").count();
    assert!(sound >= 15, "{sound}");
    assert!(taken.iter().any(|(_, body)| *body == Body::Chunked));
}
