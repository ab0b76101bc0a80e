//! What identity costs beside the bare signature. The promise is 1.2 times for a token, and a microsecond for an API key.
#![allow(missing_docs, clippy::print_stdout, reason = "a benchmark is no library, and speaks to a person")]

#[path = "verify/figures.rs"]
mod figures;

use criterion::{Criterion, criterion_group, criterion_main};

use crate::figures::{Key, cases, shortest};

fn tokens(criterion: &mut Criterion) {
    for case in cases() {
        let mut group = criterion.benchmark_group(case.name);
        group.bench_function("bare signature", |b| b.iter(|| case.bare()));
        group.bench_function("token", |b| b.iter(|| case.whole()));
        group.finish();
        let (bare, whole) = shortest(&case.rounds());
        let ratio = whole.as_secs_f64() / bare.as_secs_f64();
        println!("{}: bare {bare:?}, token {whole:?}: {ratio:.3} times its bare signature check", case.name);
    }
}

fn api_keys(criterion: &mut Criterion) {
    let key = Key::new();
    criterion.bench_function("API key look-up", |b| b.iter(|| key.look_up()));
    let least_ns = key.rounds_ns().into_iter().min().unwrap_or_default();
    println!("API key look-up: {least_ns} ns in its shortest round (promised 1,000)");
}

criterion_group!(benches, tokens, api_keys);
criterion_main!(benches);
