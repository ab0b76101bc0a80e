//! What a decision costs, context included, beside Cedar's authorizer in the same run; and what it costs to take a set in.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a benchmark stops at what it does not expect"
)]

#[path = "decide/figures.rs"]
mod figures;

use std::hint::black_box;
use std::time::{Duration, Instant};

use clawgress_policy::lint::Configuration;
use criterion::{Criterion, criterion_group, criterion_main};

use crate::figures::{Asked, PLATFORM, SIZES, measure, parse, text};

fn median(mut samples: Vec<u64>) -> u64 {
    samples.sort_unstable();
    samples.get(samples.len() / 2).copied().unwrap()
}

fn decisions(c: &mut Criterion) {
    for (size, promised_ns) in SIZES {
        let figures = measure(size);
        println!("{size} policies: validated and lowered in {} ms", median(figures.taken_in_ms));
        for action in figures.actions {
            let (lowered, authorizer) = (median(action.lowered_ns), median(action.authorizer_ns));
            println!(
                "{size:>5} {:<8} {lowered:>6} ns (promised {promised_ns}), authorizer {authorizer} ns: 1/{}",
                action.name,
                authorizer / lowered.max(1)
            );
        }
        println!(
            "{size:>5} http     {:>6} ns under a platform's policy of {PLATFORM}",
            median(figures.under_platform_ns)
        );
        let (text, asked) = (text(size), Asked::new());
        let set = parse(&text);
        let began = Instant::now();
        let found = black_box(set.lint(&text, &Configuration::default())).len();
        println!("{size} policies: linted in {} ms ({found} findings)", began.elapsed().as_millis());
        let request = asked.http();
        c.bench_function(&format!("http, {size} policies"), |b| b.iter(|| set.decide(black_box(&request))));
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default().measurement_time(Duration::from_secs(2)).sample_size(50);
    targets = decisions
}
criterion_main!(benches);
