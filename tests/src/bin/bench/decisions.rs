//! Identity and policy, without a network: what a decision, a token, an API key and a new revision cost. The figures'
//! code is that of the crates' own benchmarks.

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use clawgress_policy::PolicySet;

use crate::promises::{Bound, Promise};
use crate::report::Spread;

#[path = "../../../../clawgress-policy/benches/decide/figures.rs"]
mod policy;
#[path = "../../../../clawgress-identity/benches/verify/figures.rs"]
mod tokens;

/// Interleaved rounds with and without swaps, and how long each is.
const SWAP_ROUNDS: usize = 11;
const SWAP_ROUND: Duration = Duration::from_secs(1);
/// Most decisions of a round that are timed: 4 bytes each.
const SWAP_SAMPLES_MAX: usize = 1 << 21;
/// Policies of the revisions that are swapped.
const SWAP_POLICIES: usize = 1_000;

/// Everything that was measured.
pub struct Decisions {
    /// By number of policies, with the median that is promised, nanoseconds.
    sizes: Vec<(usize, u64, policy::Size)>,
    swaps: Swaps,
    /// By algorithm: rounds of the bare signature check and of the whole token.
    tokens: Vec<(&'static str, Vec<(Duration, Duration)>)>,
    key_ns: Vec<u64>,
}

/// What decisions take, nanoseconds at [`SHARES`], by round: while nothing else happens, and while revisions are swapped.
#[derive(Default)]
struct Swaps {
    count: usize,
    without: Vec<[f64; SHARES.len()]>,
    during: Vec<[f64; SHARES.len()]>,
}

/// Which of a thousand decisions is looked at: the median, p99, p99.9.
const SHARES: [usize; 3] = [500, 990, 999];

/// Measures all of it.
pub fn measure() -> Decisions {
    let sizes =
        policy::SIZES.map(|(policies, promised_ns)| (policies, promised_ns, policy::measure(policies)));
    let tokens = tokens::cases().iter().map(|case| (case.name, case.rounds())).collect();
    Decisions { sizes: sizes.into(), swaps: swaps(), tokens, key_ns: tokens::Key::new().rounds_ns() }
}

/// As an L7 process does it: each request takes the live revision, and the next is parsed and lowered beside them.
fn swaps() -> Swaps {
    let texts = [policy::text(SWAP_POLICIES), policy::text(SWAP_POLICIES + 1)];
    let live = ArcSwap::from_pointee(policy::parse(&texts[0]));
    let mut swaps = Swaps::default();
    for _ in 0..SWAP_ROUNDS {
        swaps.without.push(decide(&live));
        let is_over = AtomicBool::new(false);
        let (count, during) = std::thread::scope(|scope| {
            let swapping = scope.spawn(|| {
                let next = texts.iter().rev().cycle().take_while(|_| !is_over.load(Ordering::Relaxed));
                next.map(|text| live.store(Arc::new(policy::parse(text)))).count()
            });
            let during = decide(&live);
            is_over.store(true, Ordering::Relaxed);
            (swapping.join().unwrap_or_default(), during)
        });
        swaps.count += count;
        swaps.during.push(during);
    }
    swaps
}

/// Decides for one round.
fn decide(live: &ArcSwap<PolicySet>) -> [f64; SHARES.len()] {
    let asked = policy::Asked::new();
    let request = asked.http();
    let mut taken_ns: Vec<u32> = Vec::with_capacity(SWAP_SAMPLES_MAX);
    let until = Instant::now() + SWAP_ROUND;
    let mut now = Instant::now();
    while now < until && taken_ns.len() < SWAP_SAMPLES_MAX {
        let set = live.load_full();
        black_box(set.decide(black_box(&request)));
        // Of a revision that is gone whoever was the last to decide by it frees it.
        drop(set);
        let after = Instant::now();
        taken_ns.push(u32::try_from((after - now).as_nanos()).unwrap_or(u32::MAX));
        now = after;
    }
    taken_ns.sort_unstable();
    SHARES.map(|share| taken_ns.get(taken_ns.len() * share / 1000).copied().map_or(f64::NAN, f64::from))
}

// === impl Decisions ===

impl Decisions {
    /// What is promised of it.
    pub fn promises(&self) -> Vec<Promise> {
        let mut promises = Vec::new();
        for (policies, promised_ns, size) in &self.sizes {
            let actions = size.actions.iter().map(|action| spread(&action.lowered_ns).median());
            let slowest = actions.chain([spread(&size.under_platform_ns).median()]).fold(0.0, f64::max);
            let what = format!("decision of the slowest action, {policies} policies");
            promises.push(Promise::new(what, Bound::Most(*promised_ns as f64), slowest, "ns"));
            if *policies == SWAP_POLICIES {
                let taken_in = spread(&size.taken_in_ms).median();
                let what = format!("{policies} policies parsed, validated and lowered");
                promises.push(Promise::new(what, Bound::Most(500.0), taken_in, "ms"));
            }
        }
        let ratio = |(bare, whole): (Duration, Duration)| whole.as_secs_f64() / bare.as_secs_f64();
        let worst = self.tokens.iter().map(|(_, rounds)| ratio(tokens::shortest(rounds))).fold(0.0, f64::max);
        promises.push(Promise::new(
            "token, beside its signature's check alone",
            Bound::Most(1.2),
            worst,
            "×",
        ));
        let key = spread(&self.key_ns).median();
        promises.push(Promise::new("look-up of an API key", Bound::Most(1_000.0), key, "ns"));
        promises
    }

    /// Its part of the report.
    pub fn markdown(&self) -> Vec<String> {
        let mut lines = vec![
            "## Identity and policy".to_owned(),
            String::new(),
            "Without a network, on one thread; least / **median** / most of the rounds (`cargo xtask bench -- --part decisions` measures these alone).".to_owned(),
            String::new(),
            "### Decisions".to_owned(),
            String::new(),
            "On the lowered plan, context included; beside it Cedar's authorizer with the same set and request in the same run. ns.".to_owned(),
            String::new(),
            "| policies | action | lowered plan | promised, median | Cedar's authorizer | × |".to_owned(),
            "|---|---|---|---|---|---|".to_owned(),
        ];
        for (policies, promised_ns, size) in &self.sizes {
            for action in &size.actions {
                let (own, authorizer) = (spread(&action.lowered_ns), spread(&action.authorizer_ns));
                lines.push(format!(
                    "| {policies} | `{}` | {} | {promised_ns} | {} | {:.0} |",
                    action.name,
                    own.text(0),
                    authorizer.text(0),
                    authorizer.median() / own.median()
                ));
            }
        }
        for (policies, promised_ns, size) in &self.sizes {
            let under = spread(&size.under_platform_ns).text(0);
            lines.push(format!(
                "| {policies} | `http`, under a platform's policy of {} | {under} | {promised_ns} | – | – |",
                policy::PLATFORM
            ));
        }
        self.revisions(&mut lines);
        self.identity(&mut lines);
        lines
    }

    fn revisions(&self, lines: &mut Vec<String>) {
        lines.extend(
            ["", "### Revisions", "", "| policies | parsed, validated and lowered, ms |", "|---|---|"]
                .map(str::to_owned),
        );
        for (policies, _, size) in &self.sizes {
            lines.push(format!("| {policies} | {} |", spread(&size.taken_in_ms).text(0)));
        }
        lines.push(String::new());
        lines.push(format!(
            "Promised are 500 ms for 1,000. Decisions while revisions of {SWAP_POLICIES} policies are swapped ({} swaps in {SWAP_ROUNDS} rounds of {} s, each \
             parsed, validated and lowered beside the decisions), and in rounds without, interleaved; ns, with the clock that is read for each:",
            self.swaps.count,
            SWAP_ROUND.as_secs()
        ));
        lines.extend(["", "| | without swaps | during swaps | × |", "|---|---|---|---|"].map(str::to_owned));
        for (n, name) in ["median", "p99", "p99.9"].into_iter().enumerate() {
            let of = |rounds: &[[f64; SHARES.len()]]| -> Vec<f64> {
                rounds.iter().filter_map(|round| round.get(n)).copied().collect()
            };
            let (without, during) = (of(&self.swaps.without), of(&self.swaps.during));
            let ratios = during.iter().zip(&without).map(|(during, without)| during / without).collect();
            let (without, during) = (Spread::of(without), Spread::of(during));
            lines.push(format!(
                "| {name} | {} | {} | {} |",
                without.text(0),
                during.text(0),
                Spread::of(ratios).text(2)
            ));
        }
    }

    fn identity(&self, lines: &mut Vec<String>) {
        lines.extend(
            [
                "",
                "### Tokens and API keys",
                "",
                "A token of an identity provider whole (parsed, verified, mapped to an agent), and the bare check of its signature by the same library, both with the key parsed beforehand, in alternating \
                 rounds of ten. The last column is the ratio of the shortest rounds of both, which nothing disturbed; promised is 1.2.",
                "",
                "| algorithm | bare, µs | token, µs | × | × of the shortest |",
                "|---|---|---|---|---|",
            ]
            .map(str::to_owned),
        );
        let us = |time: Duration| time.as_secs_f64() * 1e6;
        for (name, rounds) in &self.tokens {
            let of = |figure: &dyn Fn(&(Duration, Duration)) -> f64| {
                Spread::of(rounds.iter().map(figure).collect())
            };
            let (bare, whole) = tokens::shortest(rounds);
            lines.push(format!(
                "| {name} | {} | {} | {} | {:.3} |",
                of(&|(bare, _)| us(*bare)).text(1),
                of(&|(_, whole)| us(*whole)).text(1),
                of(&|(bare, whole)| us(*whole) / us(*bare)).text(2),
                us(whole) / us(bare)
            ));
        }
        lines.push(String::new());
        lines.push(format!(
            "An API key is looked up among those of ten thousand agents in {} ns; promised are 1,000.",
            spread(&self.key_ns).text(0)
        ));
    }
}

#[expect(clippy::cast_precision_loss, reason = "they are far below 2^52")]
fn spread(values: &[u64]) -> Spread {
    Spread::of(values.iter().map(|value| *value as f64).collect())
}
