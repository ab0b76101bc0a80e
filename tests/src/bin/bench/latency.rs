//! What Clawgress adds to connections and requests in the lab, beside the same path without a gateway and a bare Pingora.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use anyhow::Context as _;

use crate::client::{Probe, Way, Wire};
use crate::links::POLICIES;
use crate::promises::{Bound, Promise};
use crate::report::Spread;

/// One probe's rounds.
#[derive(Debug)]
pub struct Measured {
    probe: Probe,
    /// Medians of the rounds, in order, by place in [`Way::ALL`].
    medians_us: BTreeMap<usize, Vec<f64>>,
}

/// What went over the lab's links.
#[derive(Debug)]
pub struct Latency {
    /// Rounds counted.
    pub rounds: usize,
    /// Samples of each kind in a round.
    pub samples: usize,
    /// By probe.
    pub measured: Vec<Measured>,
}

// === impl Measured ===

impl Measured {
    /// Nothing yet.
    pub fn new(probe: Probe) -> Measured {
        Measured { probe, medians_us: BTreeMap::new() }
    }

    /// Adds a round's samples of one way.
    pub fn add(&mut self, way: Way, mut times: Vec<Duration>) -> anyhow::Result<()> {
        times.sort_unstable();
        let median = times.get(times.len() / 2).context("no samples")?;
        self.medians_us.entry(way.place()).or_default().push(median.as_secs_f64() * 1e6);
        Ok(())
    }

    fn rounds(&self, way: Way) -> &[f64] {
        self.medians_us.get(&way.place()).map_or(&[], Vec::as_slice)
    }

    fn compared(&self, way: Way, with: Way, compare: fn(f64, f64) -> f64) -> Spread {
        let pairs = self.rounds(way).iter().zip(self.rounds(with));
        Spread::of(pairs.map(|(a, b)| compare(*a, *b)).collect())
    }

    /// Median over the rounds of what Clawgress adds to the direct way.
    fn added_us(&self) -> f64 {
        [Way::Transparent, Way::Explicit]
            .map(|way| self.compared(way, Way::Direct, |a, b| a - b).median())
            .into_iter()
            .fold(0.0, f64::max)
    }
}

// === impl Latency ===

impl Latency {
    /// The largest median of what Clawgress adds where it reads no TLS.
    pub fn worst_added(&self) -> Duration {
        let unread = self.measured.iter().filter(|measured| measured.probe.wire() != Wire::Read);
        let worst = unread.map(Measured::added_us).fold(0.0, f64::max);
        Duration::from_secs_f64(worst / 1e6)
    }

    /// What is promised of it.
    pub fn promises(&self) -> Vec<Promise> {
        let added = "added median latency without interception";
        let mut promises =
            vec![Promise::new(added, Bound::Most(5.0), self.worst_added().as_secs_f64() * 1e3, "ms")];
        for (probe, most) in [(Probe::Handshake, 1.5), (Probe::Request, 1.1), (Probe::ReadRequest, 1.1)] {
            let Some(measured) = self.measured.iter().find(|measured| measured.probe == probe) else {
                continue;
            };
            for way in [Way::Transparent, Way::Explicit] {
                let beside = measured.compared(way, Way::Bare, |a, b| a / b).median();
                let what = format!("{}, {}, beside a bare Pingora", probe.name(), way.name());
                promises.push(Promise::new(what, Bound::Most(most), beside, "×"));
            }
        }
        promises
    }

    /// As a section.
    pub fn markdown(&self) -> anyhow::Result<String> {
        let mut text = String::new();
        writeln!(text, "## Latency\n")?;
        writeln!(
            text,
            "{} interleaved rounds of {} samples; each cell is least / **median** / most over the rounds' medians. \
             `direct` is the same hosts and links with plain routing in the middle; `bare Pingora` is Pingora's own proxy \
             (or a TCP relay on Pingora) in the gateway's place, with as many threads. Everything Clawgress does is on: identity, a policy of {POLICIES} permits and prohibitions, \
             resolution, audit with a decision and an outcome. One connection at a time.\n",
            self.rounds, self.samples
        )?;
        for measured in &self.measured {
            writeln!(text, "### {}\n", measured.probe.name())?;
            writeln!(text, "| way | µs | added µs | × direct | × bare Pingora |\n|---|---|---|---|---|")?;
            for way in Way::ALL.into_iter().filter(|way| !measured.rounds(*way).is_empty()) {
                let time = Spread::of(measured.rounds(way).to_vec()).text(0);
                let (mut added, mut direct, mut bare) = ("–".to_owned(), "1".to_owned(), "–".to_owned());
                if way != Way::Direct {
                    added = measured.compared(way, Way::Direct, |a, b| a - b).text(0);
                    direct = measured.compared(way, Way::Direct, |a, b| a / b).text(2);
                }
                if way == Way::Transparent || way == Way::Explicit {
                    bare = measured.compared(way, Way::Bare, |a, b| a / b).text(2);
                }
                writeln!(text, "| {} | {time} | {added} | {direct} | {bare} |", way.name())?;
            }
            writeln!(text)?;
        }
        writeln!(
            text,
            "Promise: at most 5 ms of added median latency without interception. Measured: {:.2} ms in the worst case above.",
            self.worst_added().as_secs_f64() * 1e3
        )?;
        Ok(text)
    }
}
