//! Documents of an answer that nothing has to be put together of: most of a stream, which says a few letters each. They are told as they
//! are read, so that no tree is made of them. Must never take for plain what [`Calls`](super::calls::Calls) would look at, or what it would
//! refuse.

use crate::payload::json::{Event, Kind};
use crate::tool::value::is_number;

/// Longest name, word and type that is looked at, bytes: what is longer is not plain.
const TEXT_BYTES_MAX: usize = 48;
/// Longest document that is taken for plain, bytes: it has fewer values than are too many.
pub(super) const PLAIN_BYTES_MAX: usize = 1 << 16;

/// Most names of one object that are compared with one another: what says a few letters has fewer.
const NAMES_MAX: usize = 32;
/// Room that is kept for the names of the next document: as many as most have.
const NAMES_KEPT: usize = 64;

/// What is known of one document.
#[derive(Debug, Default)]
pub(super) struct Plain {
    is_not: bool,
    has_begun: bool,
    /// Names of what is open, each as what tells it from others; and how many there were before each of them.
    names: Vec<(u64, u64, usize)>,
    opened: Vec<usize>,
    /// The name, word or type at hand.
    text: Vec<u8>,
    kind: Option<Kind>,
    asks: Asks,
}

/// What the value of a name says about calls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Asks {
    #[default]
    Nothing,
    /// Why it stopped: nothing, if that is no text.
    Reason,
    /// Of what type it is.
    Type,
}

// === impl Plain ===

impl Plain {
    /// Makes it the next one.
    pub(super) fn again(&mut self) {
        (self.is_not, self.has_begun, self.kind, self.asks) = (false, false, None, Asks::Nothing);
        self.names.clear();
        self.names.shrink_to(NAMES_KEPT);
        self.opened.clear();
    }

    /// Takes it for one that is not plain.
    pub(super) fn refuse(&mut self) {
        self.is_not = true;
    }

    /// Bytes of memory that it takes.
    pub(super) fn memory_bytes(&self) -> usize {
        let names = self.names.capacity() * size_of::<(u64, u64, usize)>();
        names + self.opened.capacity() * size_of::<usize>() + self.text.capacity()
    }

    /// Whether it is plain, once it came whole.
    pub(super) fn is(&self) -> bool {
        self.has_begun && !self.is_not
    }

    /// What comes next of it.
    pub(super) fn event(&mut self, event: Event<'_>) {
        if self.is_not {
            return;
        }
        match event {
            Event::Open { .. } => {
                self.is_not = std::mem::take(&mut self.asks) != Asks::Nothing;
                self.has_begun = true;
                self.opened.push(self.names.len());
            }
            Event::Close => self.names.truncate(self.opened.pop().unwrap_or_default()),
            Event::Begin(kind) => {
                // A document that is no object or array, others look at.
                self.is_not = match (kind, self.asks) {
                    (Kind::Text, Asks::Reason) | (Kind::Word, Asks::Type) => true,
                    _ => self.opened.is_empty(),
                };
                let is_looked_at = kind != Kind::Text || self.asks == Asks::Type;
                self.kind = is_looked_at.then_some(kind);
                self.text.clear();
            }
            Event::Piece(bytes) if self.kind.is_some() => {
                self.is_not = self.text.len() + bytes.len() > TEXT_BYTES_MAX;
                self.text.extend_from_slice(bytes.get(..TEXT_BYTES_MAX.min(bytes.len())).unwrap_or_default());
            }
            Event::Piece(_) => {}
            Event::End => self.end(),
        }
    }

    fn end(&mut self) {
        let asks = std::mem::take(&mut self.asks);
        match self.kind.take() {
            Some(Kind::Key) => self.key(),
            Some(Kind::Word) => {
                let is_known = matches!(&*self.text, b"null" | b"true" | b"false");
                let is_number = || std::str::from_utf8(&self.text).is_ok_and(is_number);
                self.is_not = !is_known && !is_number();
            }
            Some(Kind::Text) => self.is_not = asks == Asks::Type && !is_plain_type(&self.text),
            None => {}
        }
    }

    fn key(&mut self) {
        self.asks = match &*self.text {
            b"finish_reason" => Asks::Reason,
            b"type" => Asks::Type,
            name if is_looked_at(name) => return self.is_not = true,
            _ => Asks::Nothing,
        };
        // Those that are told apart by less than all their letters are compared by who looks at the document.
        let first = self.text.first_chunk::<8>().copied().map_or(0, u64::from_le_bytes);
        let name = match self.text.last_chunk::<8>() {
            Some(last) => (first, u64::from_le_bytes(*last), self.text.len()),
            None => (self.text.iter().fold(0, |all, byte| all << 8 | u64::from(*byte)), 0, self.text.len()),
        };
        let here = self.names.get(self.opened.last().copied().unwrap_or_default()..).unwrap_or_default();
        #[cfg(test)]
        crate::steps::add(here.len().min(NAMES_MAX));
        self.is_not = here.len() >= NAMES_MAX || here.contains(&name);
        self.names.push(name);
    }
}

/// Whether the value of this name may be of a call, or of its end.
fn is_looked_at(name: &[u8]) -> bool {
    matches!(
        name,
        b"bytes"
            | b"content_block"
            | b"contentBlockIndex"
            | b"done"
            | b"event_type"
            | b"function_call"
            | b"functionCall"
            | b"item"
            | b"message"
            | b"output"
            | b"outputs"
            | b"partial_json"
            | b"response"
            | b"returnControl"
            | b"start"
            | b"stopReason"
            | b"tool_call_delta"
            | b"tool_calls"
            | b"toolUse"
    )
}

/// Whether nothing of this type is of a call, or of its end.
fn is_plain_type(kind: &[u8]) -> bool {
    matches!(
        kind,
        b"content_block_delta"
            | b"text_delta"
            | b"thinking_delta"
            | b"response.output_text.delta"
            | b"response.reasoning_summary_text.delta"
            | b"text"
            | b"ping"
    )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{Calls, Following};
    use super::*;
    use crate::payload::json::{Json, JsonError};

    fn is_plain(text: &str, step: usize) -> bool {
        let (mut json, mut plain) = (Json::new(false), Plain::default());
        let mut sink = |event: Event<'_>| {
            plain.event(event);
            Ok::<(), JsonError>(())
        };
        let read = text.as_bytes().chunks(step).try_for_each(|piece| json.push(piece, &mut sink));
        let read = read.and_then(|()| json.finish(&mut sink));
        read.is_ok() && plain.is()
    }

    /// What follows calls, in the middle of one of each dialect.
    fn calls() -> Calls {
        let mut calls = Calls::new(1 << 20, Following::Held, true);
        for text in [
            r#"{"choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"id":"a","function":{"name":"f","arguments":"{"}}]}}]}"#,
            r#"{"type":"message_start"}"#,
            r#"{"type":"content_block_start","index":0,"content_block":{"type":"tool_use","id":"b","name":"g","input":{}}}"#,
            r#"{"type":"response.output_item.added","output_index":0,"item":{"type":"function_call","name":"h"}}"#,
        ] {
            calls.document(Some(text.as_bytes()));
        }
        calls
    }

    /// What is taken for plain changes nothing of what is known of calls.
    fn check(text: &str) -> bool {
        let is = is_plain(text, usize::MAX);
        for step in [1, 2, 3, 7] {
            assert_eq!(is_plain(text, step), is, "{text} by {step}");
        }
        if is {
            let mut calls = calls();
            let before = format!("{calls:?}");
            calls.document(Some(text.as_bytes()));
            assert_eq!(format!("{calls:?}"), before, "{text}");
        }
        is
    }

    fn names(count: usize) -> String {
        let members: Vec<_> = (0..count).map(|n| format!("\"k{n}\":0")).collect();
        format!("{{{}}}", members.join(","))
    }

    #[test]
    fn most_of_each_stream_is_plain_and_nothing_of_calls() {
        for text in [
            r#"{"id":"c","object":"chat.completion.chunk","created":1760000000,"model":"m","choices":[{"index":0,"delta":{"content":"a \"b\" \u00e9"},"finish_reason":null}],"usage":null}"#,
            r#"{"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":2}}"#,
            r#"{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"a"}}"#,
            r#"{"type":"response.output_text.delta","sequence_number":7,"output_index":0,"delta":"a","logprobs":[]}"#,
            r#"[{"candidates":[{"content":{"parts":[{"text":"a"}],"role":"model"}}],"usageMetadata":{"promptTokenCount":1}}]"#,
            r#"{"type":"ping"}"#,
        ] {
            assert!(check(text), "{text}");
        }
        assert!(check(&names(NAMES_MAX)));
        for text in [
            "",
            "5",
            "\"a\"",
            r#"{"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}"#,
            r#"{"choices":[{"index":0,"delta":{"tool_calls":[]}}]}"#,
            r#"{"type":"content_block_stop","index":0}"#,
            r#"{"type":"message_delta","delta":{"stop_reason":"end_turn"}}"#,
            r#"{"a":1,"\u0061":2}"#,
            r#"{"name-of-17-letters":1,"name-of-17-letters":2}"#,
            r#"{"a":01}"#,
            r#"{"a":NaN}"#,
            r#"{"a":nul}"#,
            r#"{"delta":{"type":"input_json_delta","partial_json":"{"}}"#,
            r#"{"done":true}"#,
            r#"{"type":{"a":1}}"#,
            r#"{"type":1}"#,
            &names(NAMES_MAX + 1),
        ] {
            assert!(!check(text), "{text}");
        }
    }

    const NAMES: &[&str] = &[
        "choices",
        "index",
        "delta",
        "message",
        "tool_calls",
        "function_call",
        "function",
        "name",
        "id",
        "arguments",
        "content",
        "finish_reason",
        "type",
        "event_type",
        "content_block",
        "partial_json",
        "contentBlockIndex",
        "start",
        "toolUse",
        "candidates",
        "parts",
        "functionCall",
        "partialArgs",
        "willContinue",
        "args",
        "output",
        "outputs",
        "output_index",
        "item",
        "input",
        "tool_call_delta",
        "tool_call_id",
        "response",
        "done",
        "stopReason",
        "bytes",
        "text",
        "usage",
        "a",
    ];
    const TYPES: &[&str] = &[
        "content_block_delta",
        "text_delta",
        "text",
        "ping",
        "message_start",
        "content_block_stop",
        "tool_use",
        "message_stop",
        "response.created",
        "response.output_text.delta",
        "response.output_item.added",
        "response.output_item.done",
        "response.function_call_arguments.delta",
        "response.completed",
        "function_call",
        "tool-call-start",
        "tool-call-end",
        "function.call.delta",
        "stop",
        "a",
    ];

    /// Documents of the names and types that calls have, and others.
    fn documents() -> impl Strategy<Value = String> {
        let text = proptest::sample::select(TYPES).prop_map(|text| format!("\"{text}\""));
        let word = proptest::sample::select(&["0", "1", "null", "true", "false", "1.5", "01"][..])
            .prop_map(str::to_owned);
        let leaf = prop_oneof![3 => text, 2 => word];
        leaf.prop_recursive(5, 40, 5, |inner| {
            let member = (proptest::sample::select(NAMES), inner.clone())
                .prop_map(|(name, value)| format!("\"{name}\":{value}"));
            prop_oneof![
                3 => proptest::collection::vec(member, 0..5).prop_map(|all| format!("{{{}}}", all.join(","))),
                1 => proptest::collection::vec(inner, 0..3).prop_map(|all| format!("[{}]", all.join(","))),
            ]
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn what_is_plain_is_nothing_of_calls(text in documents()) {
            check(&text);
        }
    }
}
