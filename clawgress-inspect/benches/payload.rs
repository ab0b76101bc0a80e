//! What it costs to look into a body: a chat request of 4 KiB and one of 1 MiB, as they are and packed, in the pieces that the
//! proxy reads.
#![allow(missing_docs, clippy::unwrap_used, reason = "a benchmark stops at what it does not expect")]

use std::hint::black_box;
use std::io::Write as _;
use std::sync::Arc;
use std::time::Duration;

use clawgress_inspect::llm::{Provenance, Surface};
use clawgress_inspect::payload::{Claims, Inspector, Limits};
use clawgress_inspect::prompt::{BUILT_IN, Detector, Rules};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use flate2::{Compress, Compression, FlushCompress};

#[path = "bodies/chat.rs"]
mod chat;

/// Bytes that the proxy reads at once.
const READ_BYTES: usize = 16 * 1024;

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len() + 1024);
    Compress::new_gzip(Compression::new(6), 15).compress_vec(bytes, &mut out, FlushCompress::Finish).unwrap();
    out
}

fn brotli(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    brotli::CompressorWriter::new(&mut out, 4096, 5, 20).write_all(bytes).unwrap();
    out
}

fn look(body: &[u8], coding: &[u8]) -> u64 {
    let mut inspector = Inspector::new(Claims::new(&[b"application/json"], &[coding]), Limits::default());
    body.chunks(READ_BYTES).for_each(|piece| inspector.push(piece).unwrap());
    inspector.finish().unwrap();
    inspector.facts().fields
}

/// All that is asked about a call: fields, tokens, findings, what is in other clothes, and prompts.
fn look_at_all(body: &[u8], rules: &Arc<Rules>) -> u32 {
    let claims = Claims::new(&[b"application/json"], &[]);
    let mut inspector =
        Inspector::of_call(claims, Limits::default(), Some(Surface::ChatCompletions)).with_rules(rules);
    body.chunks(READ_BYTES).for_each(|piece| inspector.push(piece).unwrap());
    inspector.finish().unwrap();
    inspector.assessment().unwrap().score
}

fn calls(c: &mut Criterion) {
    let rules = Arc::new(Rules::parse(BUILT_IN).unwrap());
    for (size, name) in [(4 * 1024, "4 KiB"), (1024 * 1024, "1 MiB")] {
        let body = chat::sentences(size, "");
        let mut group = c.benchmark_group(name);
        group.throughput(Throughput::Bytes(body.len() as u64));
        group.bench_function("everything", |b| b.iter(|| look_at_all(black_box(&body), &rules)));
        let agent = chat::agent(size);
        group.throughput(Throughput::Bytes(agent.len() as u64));
        group
            .bench_function("everything, of an agent", |b| b.iter(|| look_at_all(black_box(&agent), &rules)));
        group.throughput(Throughput::Bytes(body.len() as u64));
        let text = String::from_utf8(body).unwrap();
        group.bench_function("prompt rules", |b| {
            b.iter(|| {
                let mut detector = Detector::new(&rules);
                detector.text(Provenance::User, black_box(&text), true);
                detector.assess().score
            });
        });
        group.finish();
    }
}

fn bodies(c: &mut Criterion) {
    for (size, name) in [(4 * 1024, "4 KiB"), (1024 * 1024, "1 MiB")] {
        let plain = chat::sentences(size, "");
        let mut group = c.benchmark_group(name);
        group.throughput(Throughput::Bytes(plain.len() as u64));
        for (coding, body) in [
            ("identity", plain.clone()),
            ("gzip", gzip(&plain)),
            ("br", brotli(&plain)),
            ("zstd", zstd::bulk::compress(&plain, 3).unwrap()),
        ] {
            group.bench_function(coding, |b| b.iter(|| look(black_box(&body), coding.as_bytes())));
        }
        group.finish();
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default().measurement_time(Duration::from_secs(2)).sample_size(30);
    targets = bodies, calls
}
criterion_main!(benches);
