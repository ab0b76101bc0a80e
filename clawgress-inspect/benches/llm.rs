//! What it costs to read a call of a model: a chat request of 4 KiB and one of 1 MiB, with all that looks at a body (`payload.rs` has
//! the rules of prompts besides); and an event of a stream that comes back, by what is asked of it.
#![allow(missing_docs, clippy::unwrap_used, reason = "a benchmark stops at what it does not expect")]

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use clawgress_inspect::llm::answer::{Editor, Following, Format, Reader};
use clawgress_inspect::llm::change::{Wanted, changed};
use clawgress_inspect::llm::rename::Renamer;
use clawgress_inspect::llm::{CapNames, Estimator, Provenance, Surface, Target, route};
use clawgress_inspect::payload::{Claims, Inspector, Limits};
use clawgress_inspect::prompt::{BUILT_IN, Rules};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

#[path = "bodies/chat.rs"]
mod chat;

/// Bytes that the proxy looks at without letting others run.
const LOOK_BYTES: usize = 2048;
/// Events of one stream.
const EVENTS: u64 = 1000;

/// The tool of a chat request.
const TOOL: &str = r#""tools":[{"type":"function","function":{"name":"search","description":"Finds reports.","parameters":{"type":"object","properties":{"q":{"type":"string"}}}}}],"#;

fn read(body: &[u8]) -> u64 {
    let claims = Claims::new(&[b"application/json"], &[]);
    let mut inspector = Inspector::of_call(claims, Limits::default(), Some(Surface::ChatCompletions));
    body.chunks(LOOK_BYTES).for_each(|piece| inspector.push(piece).unwrap());
    inspector.finish().unwrap();
    inspector.call().unwrap().call().tokens_estimated
}

fn requests(c: &mut Criterion) {
    let mut group = c.benchmark_group("request");
    for (size, name) in [(4 * 1024, "4 KiB"), (1024 * 1024, "1 MiB")] {
        let body = chat::sentences(size, TOOL);
        group.throughput(Throughput::Bytes(body.len() as u64));
        group.bench_function(name, |b| b.iter(|| read(black_box(&body))));
    }
    group.throughput(Throughput::Elements(1));
    let target = Target {
        host: "bedrock-runtime.eu-west-1.amazonaws.com",
        port: 443,
        path: "/model/us.anthropic.claude-sonnet-4-20250514-v1%3A0/converse-stream",
        query: "",
        is_upgrade: false,
        has_body: true,
    };
    group.bench_function("route", |b| b.iter(|| route(&[], black_box(&target))));
    group.finish();
}

/// The estimate alone, of 4 KiB: prose, what an agent sends, another alphabet, and what changes its kind with every byte, so that no
/// text takes longer.
fn estimates(c: &mut Criterion) {
    let prose =
        "Please read the report below, all of it, and tell me what changed since last week. ".repeat(64);
    let other = "Сообщите, что изменилось; 変更点を教えてください。".repeat(64);
    let worst = "A1 b,".repeat(1024);
    let agent = chat::agent(4096);
    let mut group = c.benchmark_group("estimate of 4 KiB");
    group.throughput(Throughput::Bytes(4096));
    for (name, text) in [
        ("prose", prose.as_bytes()),
        ("of an agent", &agent[..]),
        ("other alphabets", other.as_bytes()),
        ("of all kinds", worst.as_bytes()),
    ] {
        let text = text.get(..4096).unwrap();
        group.bench_function(name, |b| {
            b.iter(|| {
                let mut estimator = Estimator::default();
                estimator.push(black_box(text));
                estimator.end();
                estimator.tokens()
            });
        });
    }
    group.finish();
}

/// What the tool of a chat request is called otherwise.
fn renamed() -> clawgress_inspect::llm::rename::Renamed {
    let (body, surface) = (chat::sentences(1, TOOL), Surface::ChatCompletions);
    let claims = Claims::new(&[b"application/json"], &[]);
    let mut inspector = Inspector::of_call(claims, Limits::default(), Some(surface));
    inspector.push(&body).and_then(|()| inspector.finish()).unwrap();
    let wanted = Wanted {
        params: &[],
        tokens_max: None,
        cap_names: CapNames::Newer,
        takes_tool: &|_| false,
        takes_tools: false,
        renames: &[("search", "find")],
        prompt: None,
    };
    changed(&body, surface, inspector.call().unwrap().call(), &wanted).unwrap().renamed.unwrap()
}

/// All that the proxy does with events where a policy asks for findings: what is counted, said and asked for, and detectors on the
/// bytes and on what they say.
fn everything(event: &str, rules: &Arc<Rules>) -> usize {
    let reader = Reader::new(Format::EventStream).keeping_texts();
    let mut reader = reader.following_calls(1 << 20, Following::Held, true);
    let mut all = Inspector::new(Claims::new(&[b"text/event-stream"], &[]), Limits::default());
    let said = Inspector::new(Claims::new(&[], &[]), Limits::default());
    let mut said = said.hearing(rules, Provenance::Model);
    (0..EVENTS)
        .map(|_| {
            reader.push(black_box(event.as_bytes()));
            let [text, _] = reader.take_texts();
            all.push(event.as_bytes()).and_then(|()| said.push(&text)).unwrap();
            let assessed = said.assessment().map_or(0, |assessment| assessment.findings().count());
            all.findings_count() + said.findings_count() + assessed + reader.take_calls().unwrap().len()
        })
        .sum()
}

fn answers(c: &mut Criterion) {
    let mut group = c.benchmark_group("event");
    group.throughput(Throughput::Elements(EVENTS));
    group.bench_function("read, of 1000", |b| {
        b.iter(|| {
            let mut reader = Reader::new(Format::EventStream);
            for _ in 0..EVENTS {
                reader.push(black_box(chat::CHAT.as_bytes()));
            }
            reader.finish()
        });
    });
    for (name, event) in [
        ("with its calls and texts, of 1000", chat::CHAT),
        ("of Anthropic's with its calls and texts, of 1000", chat::MESSAGES),
        ("of the Responses API with its calls and texts, of 1000", chat::RESPONSES),
    ] {
        group.bench_function(name, |b| {
            b.iter(|| {
                let reader = Reader::new(Format::EventStream).keeping_texts();
                let mut reader = reader.following_calls(1 << 20, Following::Held, true);
                let mut said = 0;
                for _ in 0..EVENTS {
                    reader.push(black_box(event.as_bytes()));
                    said += reader.take_texts()[0].len() + reader.take_calls().unwrap().len();
                }
                said
            });
        });
    }
    let rules = Arc::new(Rules::parse(BUILT_IN).unwrap());
    group.bench_function("with all that is looked for in it, of 1000", |b| {
        b.iter(|| everything(chat::CHAT, &rules));
    });
    group.bench_function("a part of a call, of 1000", |b| {
        b.iter(|| {
            let reader = Reader::new(Format::EventStream).keeping_texts();
            let mut reader = reader.following_calls(1 << 20, Following::Held, true);
            for _ in 0..EVENTS {
                reader.push(black_box(chat::PART.as_bytes()));
            }
            reader.waits()
        });
    });
    let renamed = renamed();
    for (name, event) in [("renamed, of 1000", chat::CHAT), ("a call's name renamed, of 1000", chat::CALL)] {
        group.bench_function(name, |b| {
            b.iter(|| {
                let mut renamer = Renamer::new(renamed.clone(), Format::EventStream, 1 << 20).unwrap();
                (0..EVENTS)
                    .map(|_| renamer.push(black_box(event.as_bytes()), false).unwrap().len())
                    .sum::<usize>()
            });
        });
    }
    group.bench_function("edited, of 1000", |b| {
        let mut out = Vec::new();
        b.iter(|| {
            let mut editor = Editor::default();
            (0..EVENTS).for_each(|_| {
                out.clear();
                editor.push(black_box(chat::CHAT.as_bytes()), &mut out);
            });
            out.len()
        });
    });
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().measurement_time(Duration::from_secs(2)).sample_size(30);
    targets = estimates, requests, answers
}
criterion_main!(benches);
