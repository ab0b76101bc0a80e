//! How often memory is asked for: of the calls and events that benchmarks measure, and bounds that nothing may raise by accident.

use std::sync::Arc;

use clawgress_inspect::llm::answer::{Following, Format, Reader};
use clawgress_inspect::llm::{Provenance, Surface};
use clawgress_inspect::payload::{Claims, Inspector, Limits, Unreadable};
use clawgress_inspect::prompt::{BUILT_IN, Rules};

#[path = "../benches/bodies/chat.rs"]
mod chat;

/// Allocations that some work takes.
fn count(work: impl FnOnce()) -> u64 {
    allocation_counter::measure(work).count_total
}

/// Holds that it takes so many and no more. Where it takes fewer, the bound is to be lowered.
#[track_caller]
fn takes(what: &str, allocations_max: u64, work: impl FnOnce()) {
    let allocations = count(work);
    assert!(allocations <= allocations_max, "{what}: {allocations} allocations, more than {allocations_max}");
}

/// All that is asked about a call.
fn look(body: &[u8], rules: &Arc<Rules>) -> Result<(), Unreadable> {
    let claims = Claims::new(&[b"application/json"], &[]);
    let inspector = Inspector::of_call(claims, Limits::default(), Some(Surface::ChatCompletions));
    let mut inspector = inspector.with_rules(rules);
    inspector.push(body)?;
    inspector.finish()?;
    assert!(inspector.assessment().is_some());
    Ok(())
}

#[test]
fn a_request_asks_for_memory_a_few_times_however_long_it_is() {
    let rules = Arc::new(Rules::parse(BUILT_IN).expect("rules"));
    let (small, large) = (chat::sentences(4096, ""), chat::sentences(64 * 1024, ""));
    // What is made once is made before.
    look(&chat::agent(4096), &rules).expect("a call");
    takes("a request of 4 KiB", 13, || look(&small, &rules).expect("a call"));
    takes("one of 64 KiB", 13, || look(&large, &rules).expect("a call"));
    let (small, large) = (chat::agent(4096), chat::agent(64 * 1024));
    takes("an agent's of 4 KiB", 97, || look(&small, &rules).expect("a call"));
    takes("one of 64 KiB", 1169, || look(&large, &rules).expect("a call"));
}

#[test]
fn an_event_asks_for_memory_for_what_it_says() {
    for (what, event, each_max) in
        [("chat", chat::CHAT, 2), ("messages", chat::MESSAGES, 3), ("responses", chat::RESPONSES, 2)]
    {
        let reader = Reader::new(Format::EventStream).keeping_texts();
        let mut reader = reader.following_calls(1 << 20, Following::Held, true);
        let mut one = || {
            reader.push(event.as_bytes());
            assert!(reader.take_calls().expect("calls").is_empty());
            assert_eq!(reader.take_texts(), [b" word".to_vec(), Vec::new()]);
        };
        // Its buffers grow first.
        (0..4).for_each(|_| one());
        // One each is of this test.
        takes(what, 100 * (each_max + 1), || (0..100).for_each(|_| one()));
    }
}

#[test]
fn a_text_that_a_model_says_asks_for_none() {
    let rules = Arc::new(Rules::parse(BUILT_IN).expect("rules"));
    let said = Inspector::new(Claims::new(&[], &[]), Limits::default());
    let mut said = said.hearing(&rules, Provenance::Model);
    let mut one = || said.push(b" word and another, and ").expect("text");
    (0..1000).for_each(|_| one());
    takes("100 texts", 0, || (0..100).for_each(|_| one()));
}
