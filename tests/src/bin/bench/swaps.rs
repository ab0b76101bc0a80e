//! Requests while revisions go live: what a swap of a thousand policies adds to those that are under way.

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::Context as _;

use crate::links::POLICIES;
use crate::report::Spread;

/// Connections that ask at once, as fast as they are answered.
pub const CONNECTIONS: usize = 4;
/// Interleaved rounds of each kind.
pub const ROUNDS: usize = 7;
/// How long each is.
pub const ROUND: Duration = Duration::from_secs(4);
/// From one revision to the next, and from one mere check to the next.
pub const EVERY: Duration = Duration::from_secs(1);
/// Which of ten thousand requests is looked at: the median, p99, p99.9.
const SHARES: [usize; 3] = [5_000, 9_900, 9_990];

/// What happens beside the requests of a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Beside {
    /// Nothing.
    Nothing,
    /// A revision is read, validated and lowered, and nothing more: what the machine has to do for it, without a swap.
    Checks,
    /// A revision is applied, and goes live in both planes.
    Applies,
}

/// The rounds of all kinds: µs at [`SHARES`].
#[derive(Debug, Default)]
pub struct Swaps {
    rounds: [Vec<[f64; SHARES.len()]>; Beside::ALL.len()],
    requests: usize,
    applied: usize,
}

// === impl Beside ===

impl Beside {
    /// Every one.
    pub const ALL: [Beside; 3] = [Beside::Nothing, Beside::Checks, Beside::Applies];

    fn name(self) -> &'static str {
        match self {
            Beside::Nothing => "nothing",
            Beside::Checks => "a revision is checked each second",
            Beside::Applies => "a revision goes live each second",
        }
    }
}

// === impl Swaps ===

impl Swaps {
    /// Adds a round: how long each of its requests took, and how many revisions were applied.
    pub fn add(&mut self, beside: Beside, mut times: Vec<Duration>, applied: usize) -> anyhow::Result<()> {
        times.sort_unstable();
        let at =
            |share| times.get(times.len() * share / 10_000).map(|time: &Duration| time.as_secs_f64() * 1e6);
        let [median, p99, p999] = SHARES.map(at);
        let figures = [median, p99, p999].into_iter().collect::<Option<Vec<f64>>>().context("no requests")?;
        let rounds = self.rounds.get_mut(beside as usize).context("no such kind")?;
        rounds.push(figures.try_into().map_err(|_| anyhow::anyhow!("a share is missing"))?);
        self.requests += times.len();
        self.applied += applied;
        Ok(())
    }

    fn of(&self, beside: Beside, share: usize) -> Vec<f64> {
        let rounds = self.rounds.get(beside as usize).into_iter().flatten();
        rounds.filter_map(|round| round.get(share).copied()).collect()
    }

    /// As a section.
    pub fn markdown(&self) -> anyhow::Result<String> {
        let mut text = String::new();
        writeln!(text, "## Requests while revisions go live\n")?;
        writeln!(
            text,
            "{CONNECTIONS} kept connections ask through the gateway for 1 KiB in clear as fast as they are answered, in {ROUNDS} interleaved rounds of {} s of each kind ({} requests in all); \
             each cell is least / **median** / most over the rounds, µs. Revisions have {POLICIES} policies; {} went live, each by `clawgressctl policy apply`, in the kernel and at L7. Checking one (`clawgressctl policy check`) \
             takes about the processor time of one of the three places that read it, and swaps nothing: clients, servers, the gateway and whoever applies share two processors.\n",
            ROUND.as_secs(),
            self.requests,
            self.applied
        )?;
        writeln!(text, "| beside | median | p99 | p99.9 | × p99 without |\n|---|---|---|---|---|")?;
        let quiet = self.of(Beside::Nothing, 1);
        for beside in Beside::ALL {
            let [median, p99, p999] = [0, 1, 2].map(|share| Spread::of(self.of(beside, share)).text(0));
            let ratios =
                self.of(beside, 1).iter().zip(&quiet).map(|(with, without)| with / without).collect();
            let ratio = if beside == Beside::Nothing { "1".to_owned() } else { Spread::of(ratios).text(2) };
            writeln!(text, "| {} | {median} | {p99} | {p999} | {ratio} |", beside.name())?;
        }
        writeln!(text)?;
        Ok(text)
    }
}
