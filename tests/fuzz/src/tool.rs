//! Targets of tools: messages of clients, lists of servers, and schemas.

use std::collections::BTreeMap;

use clawgress_inspect::tool::{
    Change, Head, Validity, Value, changed_events, changes, filtered, heard, pin, read, rest, validate,
};

use super::pieces;

/// What is read is what `serde_json` reads, which takes the last of two names; and the same when it is written again.
pub fn tool_message(data: &[u8]) {
    let versions = [None, Some("2025-03-26"), Some("2025-06-18"), Some("2026-07-28")];
    let Some((which, body)) = data.split_first() else { return };
    let method = (which & 16 != 0).then_some("tools/call");
    let head = Head { version: versions[usize::from(which % 4)], method, ..Head::default() };
    let Ok(messages) = read(body, &head) else { return };
    let value = Value::parse(body).expect("it was read");
    assert_eq!(Value::parse(value.json().as_bytes()).as_ref(), Ok(&value));
    assert_eq!(Value::parse(value.canonical().as_bytes()).expect("JSON").canonical(), value.canonical());
    if let ([message], Ok(other)) = (&messages[..], serde_json::from_slice::<serde_json::Value>(body)) {
        let other =
            if let serde_json::Value::Array(all) = &other { all.first().expect("one") } else { &other };
        // Older names of methods are read as today's.
        let sent = message.sent_as.as_deref().or(message.method.as_deref());
        assert_eq!(sent, other.get("method").and_then(|method| method.as_str()));
        if message.is_call() {
            let name =
                other.get("params").and_then(|params| params.get("name")).and_then(|name| name.as_str());
            assert_eq!(message.name.as_deref(), name);
        }
    }
}

/// The first byte says how much of the rest is a schema: lists are filtered to less, and arguments are judged in bounded steps.
pub fn tool_list(data: &[u8]) {
    let (whole, pieces) = pieces(data);
    if let Ok(Some(less)) = filtered(whole, &mut |name, _| name.len() % 2 == 0) {
        assert!(!less.removed.is_empty());
        assert_eq!(filtered(less.body.as_bytes(), &mut |name, _| name.len() % 2 == 0), Ok(None));
        assert!(
            changes(whole, &BTreeMap::new())
                .expect("a list")
                .iter()
                .all(|(_, change)| *change == Change::New)
        );
    }
    let in_events = |text: &[u8]| {
        changed_events(text, &mut |data| {
            let less = filtered(data, &mut |name, _| name.len() % 2 == 0)?;
            Ok(less.map(|less| less.body))
        })
    };
    if let Ok(Some(less)) = in_events(whole) {
        assert_eq!(in_events(less.as_bytes()), Ok(None));
    }
    if let Ok(heard) = heard(whole) {
        heard.asks.iter().for_each(|ask| assert!(!ask.method.is_empty() && ask.method != "ping"));
    }
    if let Ok(path) = std::str::from_utf8(whole) {
        let _ = rest("GET", path);
    }
    let Some(schema) = pieces.first() else { return };
    let rest = whole.get(schema.len()..).unwrap_or_default();
    if let (Ok(schema), Ok(value)) = (Value::parse(schema), Value::parse(rest)) {
        assert_eq!(pin(&schema), pin(&Value::parse(schema.json().as_bytes()).expect("JSON")));
        let validity = validate(&schema, &value);
        assert!(schema != Value::Object(Vec::new()) || validity == Validity::Valid);
    }
}
