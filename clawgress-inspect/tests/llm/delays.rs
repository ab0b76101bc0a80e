//! How late a stream is for being read: by no event, but for those of a call that waits until it is whole, counted event by event.

use std::ops::Range;

use clawgress_inspect::llm::answer::{Editor, Following, Format, Reader};

use super::answers::format;
use super::cuts::{golden, names};

/// Most bytes of a call that is put together.
const CALL_BYTES_MAX: usize = 1 << 20;

/// Events that wait, where calls of tools are judged before any of them goes on: from the first of a call up to the one that makes it
/// whole, which goes on with them.
const HELD: &[(&str, Range<usize>)] = &[
    // Until its choice has ended: another part of a call may follow what is whole by itself.
    ("azure_v1_chat_answer.sse", 1..4),
    ("openai_chat_answer.sse", 2..4),
    ("openrouter_chat_answer.sse", 3..5),
    // Until the item is told whole, or all of them.
    ("openai_responses_answer.sse", 1..3),
    // Until its block has ended, or the message.
    ("anthropic_answer.sse", 1..5),
    ("bedrock_converse_answer.amazon", 1..3),
    ("cohere_chat_answer.sse", 1..2),
    // Of these an event has all of a call.
    ("gemini_cloudcode_answer.sse", 0..0),
    ("ollama_chat_answer.ndjson", 0..0),
];

/// A stream's events, as they come: those that have an end.
fn events(name: &str, body: &[u8]) -> Vec<Vec<u8>> {
    let (mut all, mut rest) = (Vec::new(), body);
    while !rest.is_empty() {
        let ends = |mark: &[u8]| rest.windows(mark.len()).position(|at| at == mark).map(|at| at + mark.len());
        let end = match format(name) {
            Format::Amazon => rest.first_chunk::<4>().map(|bytes| u32::from_be_bytes(*bytes) as usize),
            Format::Lines => ends(b"\n"),
            _ => ends(b"\n\n").into_iter().chain(ends(b"\r\n\r\n")).min(),
        };
        // One without an end ends with the stream.
        let Some(end) = end else { break };
        let (event, behind) = rest.split_at(end);
        all.push(event.to_vec());
        rest = behind;
    }
    all
}

/// Streams of every dialect, each with its events.
fn streams() -> Vec<(String, Vec<Vec<u8>>)> {
    let all = names(true).into_iter().filter(|name| format(name) != Format::Json);
    all.map(|name| (name.clone(), events(&name, &golden(&name)))).collect()
}

/// How many events have gone on behind each that came.
fn gone(name: &str, events: &[Vec<u8>], mut reader: Reader) -> Vec<usize> {
    let mut out = 0;
    let each = events.iter().enumerate().map(|(n, event)| {
        let ended = reader.push(event);
        // What has ended ends with it: an event goes on whole.
        assert!(ended == 0 || ended == event.len(), "{name}: {ended} of event {n}");
        if ended > 0 {
            out = n + 1;
        }
        out
    });
    each.collect()
}

#[test]
fn no_event_waits_for_another_but_those_of_a_call() {
    let streams = streams();
    assert!(streams.len() > 30, "{}", streams.len());
    for (name, events) in &streams {
        let at_once: Vec<usize> = (1..=events.len()).collect();
        let new = || Reader::new(format(name)).keeping_texts();
        let following = |following| new().following_calls(CALL_BYTES_MAX, following, true);
        for (manner, reader) in
            [("read", new()), ("names", following(Following::Names)), ("told", following(Following::Told))]
        {
            assert_eq!(gone(name, events, reader), at_once, "{name}: {manner}");
        }
        let held = HELD.iter().find(|(held, _)| held == name).map_or(0..0, |(_, held)| held.clone());
        let before = |n: usize| Some(held.start).filter(|_| held.contains(&n));
        let want: Vec<usize> = (0..events.len()).map(|n| before(n).unwrap_or(n + 1)).collect();
        assert_eq!(gone(name, events, following(Following::Held)), want, "{name}: held");
    }
    let known = |name: &str| streams.iter().any(|(stream, _)| stream == name);
    assert!(HELD.iter().all(|(name, _)| known(name)));
}

/// Nor does what takes the event out again that tells usage: each other event is out when it has come.
#[test]
fn no_event_waits_for_the_one_that_tells_usage() {
    let mut all_taken = 0;
    for (name, events) in streams() {
        if format(&name) != Format::EventStream {
            continue;
        }
        let (mut editor, mut out, mut want) = (Editor::default(), Vec::new(), Vec::new());
        for (n, event) in events.iter().enumerate() {
            let taken = editor.taken();
            editor.push(event, &mut out);
            if editor.taken() == taken {
                want.extend_from_slice(event);
            }
            assert_eq!(out, want, "{name}: behind event {n}");
        }
        all_taken += editor.taken();
    }
    assert!(all_taken > 5, "{all_taken} told usage by themselves");
}
