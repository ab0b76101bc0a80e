//! What it costs to look at heads: what a request's host, path, query and fields carry, and what a message to a tool server says in
//! both places.
#![allow(missing_docs, clippy::unwrap_used, reason = "a benchmark stops at what it does not expect")]

use std::hint::black_box;
use std::time::Duration;

use clawgress_inspect::payload::Limits;
use clawgress_inspect::payload::head::Head as Sending;
use clawgress_inspect::tool::{Head, heard, read};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

/// Fields that a client of an API sends.
const FIELDS: [(&str, &[u8]); 8] = [
    ("accept", b"application/json, text/event-stream"),
    ("accept-encoding", b"gzip, deflate, br"),
    ("authorization", b"Bearer sk-proj-Zm9vYmFyYmF6cXV4Zm9vYmFyYmF6cXV4Zm9vYmFyYmF6cXV4"),
    ("content-type", b"application/json"),
    ("user-agent", b"OpenAI/Python 2.8.1"),
    ("x-stainless-arch", b"x64"),
    ("x-stainless-lang", b"python"),
    ("x-request-id", b"0190163d-8694-739b-aea5-966c26f8ad91"),
];
const CALL: &[u8] = br#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"search","arguments":{"query":"what changed since last week","limit":10}}}"#;
const RESULT: &[u8] = br#"{"jsonrpc":"2.0","id":1,"result":{"content":[{"type":"text","text":"Revenue rose by a tenth; costs did not."}],"isError":false}}"#;

fn heads(c: &mut Criterion) {
    let mut group = c.benchmark_group("head");
    let long = "q=what+changed+since+last+week&".repeat(128);
    for (name, path, query) in [
        ("of an API", "/v1/chat/completions", ""),
        ("with a query", "/search/reports/2026", "q=what+changed&page=7&session=0190163d-8694-739b"),
        ("with a query of 4 KiB", "/search", &*long),
    ] {
        let head = Sending { host: "api.openai.com", target: (path, query) };
        let bytes = path.len() + query.len() + FIELDS.iter().map(|(n, v)| n.len() + v.len()).sum::<usize>();
        group.throughput(Throughput::Bytes(bytes as u64));
        group.bench_function(name, |b| {
            b.iter(|| black_box(&head).look(FIELDS.into_iter(), Limits::default()).findings.len());
        });
    }
    group.finish();
}

fn messages(c: &mut Criterion) {
    let mut group = c.benchmark_group("message to a tool");
    let head = Head {
        method: Some("tools/call"),
        name: Some("search"),
        version: Some("2026-07-28"),
        ..Head::default()
    };
    group.throughput(Throughput::Bytes(CALL.len() as u64));
    group.bench_function("a call, with its head", |b| b.iter(|| read(black_box(CALL), &head).unwrap().len()));
    group.throughput(Throughput::Bytes(RESULT.len() as u64));
    group.bench_function("what comes of it", |b| b.iter(|| heard(black_box(RESULT)).unwrap().answers.len()));
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().measurement_time(Duration::from_secs(2)).sample_size(30);
    targets = heads, messages
}
criterion_main!(benches);
