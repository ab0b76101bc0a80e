//! Vouches to the kernel programs that the tables are the ones to run, each second, a little ahead of time; and stops
//! to, when control has not said so for too long, or has a generation that the tables don't become. A role that is
//! gone, or stands still, vouches for nothing. What the tables permit `direct` is denied then, and goes on when
//! somebody vouches again.
//!
//! Must never vouch without the word of control.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use aya::maps::{Array, Map, MapData};
use clawgress_api::config::Config;
use clawgress_ebpf_common::{Lease as Held, map};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use super::bpf::Plain;
use super::modes::{Failure, Modes};
use super::names::monotonic_ns;
use super::object::{self, Objects};

/// How often it vouches: the shortest `lease_s` is two of these, so that one that comes late is no outage.
const INTERVAL: Duration = Duration::from_secs(1);
/// How long the tables may be those of a former generation, while they become those of the one that control runs by: as
/// long as an L7 process may decide by it. One million prefixes are written in a part of that.
const BEHIND_TIME_MAX: Duration = Duration::from_secs(5);

/// Who vouches, and by whose word.
pub struct Lease {
    held: Mutex<State>,
    modes: Arc<Modes>,
    /// How long a word of this role counts.
    term: Duration,
    /// How long a word of control counts.
    stale: Duration,
}

struct State {
    map: Array<MapData, Plain<Held>>,
    /// Whether the tables are not what their number says, or nobody knows whether they are.
    is_doubtful: bool,
    /// Why nobody vouches.
    trouble: Option<String>,
}

impl std::fmt::Debug for Lease {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lease").field("term", &self.term).field("stale", &self.stale).finish_non_exhaustive()
    }
}

impl Lease {
    /// Takes the map out of the object, with what a former process left in it.
    ///
    /// # Errors
    /// If it is missing or of another layout.
    pub fn take(objects: &mut Objects, config: &Config, modes: Arc<Modes>) -> Result<Lease> {
        let map = object::take(objects, map::LEASE)?;
        let held = Mutex::new(State { map, is_doubtful: false, trouble: None });
        let term = Duration::from_secs(config.datapath.lease_s.into());
        Ok(Lease { held, modes, term, stale: Duration::from_secs(config.l7.snapshot_stale_s_max) })
    }

    /// Control runs by generation `wanted`, and the tables are those of `applied`.
    ///
    /// # Errors
    /// If the map can't be written.
    pub fn confirm(&self, wanted: u64, applied: u64) -> Result<()> {
        let mut held = self.held.lock();
        let is_behind = applied < wanted || held.is_doubtful;
        held.note(is_behind)?;
        drop(held);
        // The first word opens at once.
        if is_behind { Ok(()) } else { self.vouch() }
    }

    /// The tables have become those that control runs by.
    ///
    /// # Errors
    /// If the map can't be written.
    pub fn applied(&self) -> Result<()> {
        let mut held = self.held.lock();
        held.is_doubtful = false;
        held.note(false)?;
        drop(held);
        self.vouch()
    }

    /// What control runs by was refused, or nobody knows what the tables are of: whatever their number, they don't count
    /// for it.
    ///
    /// # Errors
    /// If the map can't be written.
    pub fn doubt(&self) -> Result<()> {
        let mut held = self.held.lock();
        held.is_doubtful = true;
        held.note(true)
    }

    /// Vouches for the tables if it may, and tells when that has changed.
    ///
    /// # Errors
    /// If the map can't be read or written.
    pub fn vouch(&self) -> Result<()> {
        let mut held = self.held.lock();
        let now = monotonic_ns();
        let Plain(before) = held.map.get(&0, 0)?;
        let refusal = refusal(before, self.stale, now);
        if refusal.is_none() {
            let until_ns = until(before, self.term, self.stale, now);
            held.map.set(0, Plain(Held { until_ns, ..before }), 0)?;
        }
        let is_lapsed = refusal.is_some() && before.until_ns <= now;
        held.trouble = refusal.filter(|_| is_lapsed);
        drop(held);
        if before.until_ns != 0 && before.until_ns <= now && !is_lapsed {
            self.tell_gap(Duration::from_nanos(now - before.until_ns));
        }
        self.modes.turn(Failure::Agent, is_lapsed);
        Ok(())
    }

    /// Why nobody vouches for the tables, if nobody does.
    #[must_use]
    pub fn trouble(&self) -> Option<String> {
        self.held.lock().trouble.clone()
    }

    /// Vouches until `stop`. What was vouched for last stays so for its term: the next process takes up from there.
    ///
    /// # Errors
    /// If the map can't be read or written.
    pub async fn keep(self: Arc<Self>, stop: CancellationToken) -> Result<()> {
        let mut ticks = tokio::time::interval(INTERVAL);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                _ = ticks.tick() => self.vouch()?,
            }
        }
    }

    fn tell_gap(&self, gap: Duration) {
        self.modes.tell(&format!(
            "nobody vouched for the kernel's tables for {:.1} s: what they permit `direct` was denied meanwhile, but on \
             interfaces that fail open for `agent`",
            gap.as_secs_f64()
        ));
    }
}

/// Has the tables vouched for until `until_ns` (`CLOCK_MONOTONIC`), by nobody's word: for programs that are measured or
/// tested without a role.
///
/// # Errors
/// If the map is missing or of another layout.
pub fn hold(objects: &Objects, until_ns: u64) -> Result<()> {
    let data = MapData::from_fd(object::descriptor(objects, map::LEASE)?)?;
    let mut map: Array<MapData, Plain<Held>> = Array::try_from(Map::from_map_data(data)?)?;
    Ok(map.set(0, Plain(Held { until_ns, confirmed_ns: 0, behind_ns: 0 }), 0)?)
}

// === impl State ===

impl State {
    /// Notes what control said, or that the tables are behind it.
    fn note(&mut self, is_behind: bool) -> Result<()> {
        let now = monotonic_ns();
        let Plain(before) = self.map.get(&0, 0)?;
        let after = if !is_behind {
            Held { confirmed_ns: now, behind_ns: 0, ..before }
        } else if before.behind_ns == 0 {
            Held { behind_ns: now, ..before }
        } else {
            return Ok(());
        };
        Ok(self.map.set(0, Plain(after), 0)?)
    }
}

/// Why the tables may not be vouched for at `now_ns`, if they may not.
fn refusal(held: Held, stale: Duration, now_ns: u64) -> Option<String> {
    let since = |at_ns: u64| Duration::from_nanos(now_ns.saturating_sub(at_ns));
    let behind = since(held.behind_ns);
    if held.behind_ns != 0 && behind > BEHIND_TIME_MAX {
        return Some(format!(
            "the kernel's tables have not become those of the live generation for {} s: what they permit `direct` is \
             denied; see the log of the datapath role for why it refuses them",
            behind.as_secs()
        ));
    }
    // Before the first word there are no tables: that is another failure.
    let unheard = since(held.confirmed_ns);
    (held.confirmed_ns != 0 && unheard > stale).then(|| {
        format!(
            "control has not been heard of for {} s, longer than `snapshot_stale_s_max`: what the kernel's tables permit \
             `direct` is denied; start `clawgress-agent control`",
            unheard.as_secs()
        )
    })
}

/// Until when they are vouched for: not for longer than the word of control counts.
fn until(held: Held, term: Duration, stale: Duration, now_ns: u64) -> u64 {
    let until_ns = now_ns.saturating_add(ns(term));
    match held.confirmed_ns {
        0 => until_ns,
        confirmed_ns => until_ns.min(confirmed_ns.saturating_add(ns(stale))),
    }
}

fn ns(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: u64 = 1_000_000_000;

    #[test]
    fn only_a_late_control_or_late_tables_end_it() {
        let stale = Duration::from_secs(300);
        let held = |confirmed_ns, behind_ns| Held { until_ns: 0, confirmed_ns, behind_ns };
        let is_refused = |confirmed, behind, now| refusal(held(confirmed, behind), stale, now).is_some();
        assert!(!is_refused(10 * S, 0, 310 * S), "as long as an L7 process goes on");
        assert!(is_refused(10 * S, 0, 310 * S + 1));
        assert!(!is_refused(10 * S, 20 * S, 25 * S));
        assert!(is_refused(10 * S, 20 * S, 25 * S + 1), "control says so each second, and it is no use");
        assert!(!is_refused(10 * S, 0, 0), "a clock behind its own reading is no lapse");
        assert!(!is_refused(0, 0, 900 * S), "there are no tables before the first word");
    }

    #[test]
    fn no_lease_outlives_the_word_of_control() {
        let (term, stale) = (Duration::from_secs(15), Duration::from_secs(300));
        let held = |confirmed_ns| Held { until_ns: 0, confirmed_ns, behind_ns: 0 };
        assert_eq!(until(held(10 * S), term, stale, 11 * S), 26 * S);
        assert_eq!(until(held(10 * S), term, stale, 309 * S), 310 * S);
        assert_eq!(until(held(0), term, stale, 900 * S), 915 * S);
    }
}
