//! Turns: a generation is of one moment, and another is made when a condition on time says otherwise; and when there is room
//! again for a policy that had none. Must never leave a moment that is over in force longer than it has to.

use std::collections::BTreeMap;
use std::time::Duration;

use clawgress_identity::PolicyOwner;
use clawgress_policy::{Policies, ZONE_OFFSETS_MAX, Zone};
use jiff::tz::TimeZone;
use tokio_util::sync::CancellationToken;

use super::{Generation, Governor, blocking};
use crate::control::in_force::{InForce, Unusable};
use crate::control::model::{Draft, Model, Refusal, Window};
use crate::control::prepare::Manner;
use crate::control::render::{Former, render};

/// Shortest pause before the clock is looked at again: a turn is a minute's beginning.
const CLOCK_PAUSE_LEAST: Duration = Duration::from_millis(10);
/// Longest one: the clock may have been set.
const CLOCK_PAUSE_MAX: Duration = Duration::from_secs(1);

/// Longest pause before a turn that failed is tried again; pauses double from [`CLOCK_PAUSE_MAX`].
const TURN_RETRY_MAX: Duration = Duration::from_secs(60);

/// For what it is known that policies that lack room still do.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tried {
    /// The live generation.
    generation: u64,
    /// From when, and until when, their conditions on time say the same: Unix milliseconds.
    at_ms: i64,
    until_ms: Option<i64>,
}

// === impl Governor ===

impl Governor {
    /// Makes a new generation whenever a condition on time turns, until `stop`.
    pub async fn keep_time(&self, stop: CancellationToken) {
        let mut retry = CLOCK_PAUSE_MAX;
        loop {
            let is_made = self.turn_if_due().await;
            let turns_in = self.live().turns_at.map(|at| at.duration_since(self.clock.now()));
            let pause = pause(is_made, turns_in.and_then(|d| Duration::try_from(d).ok()), retry);
            retry = if is_made { CLOCK_PAUSE_MAX } else { (retry * 2).min(TURN_RETRY_MAX) };
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// As [`tick`](Self::tick); a failure is kept for [`late`](Self::late). Whether there was none.
    pub async fn turn_if_due(&self) -> bool {
        let failure = self.tick().await.err().map(|error| error.to_string());
        if let Some(error) = &failure {
            tracing::error!(error, "a condition on time has turned, and the former generation is still live");
        }
        let is_made = failure.is_none();
        *self.late.lock() = failure;
        is_made
    }

    /// Why the live generation is of a time that is over, if it is.
    #[must_use]
    pub fn late(&self) -> Option<String> {
        let is_over = self.live().turns_at.is_some_and(|turn| turn < self.clock.now());
        let failure = self.late.lock().clone();
        failure.or_else(|| is_over.then(|| "the next is being made".to_owned()))
    }

    /// Makes a new generation if a condition on time has turned since the live one was made, or its clock was
    /// another.
    ///
    /// # Errors
    /// If it can't be made; then nothing was altered.
    pub async fn tick(&self) -> Result<(), Refusal> {
        let live = self.live();
        let asks_time = live.in_force.policies().is_some_and(Policies::asks_time);
        let (now, made) = (self.window(), &live.model.window);
        let why = if asks_time && live.turns_at.is_some_and(|turn| now.at >= turn) {
            "a condition on time turned"
        } else if asks_time && now.at < made.at {
            "the clock was set back"
        } else if asks_time && now.zone != made.zone {
            "the time zone was changed"
        } else if self.has_room_again(&live, &now).await {
            return self.give_back(&live, &now).await;
        } else {
            return Ok(());
        };
        let detail = format!("{why}: compiled for {} in {}", now.at, now.zone);
        // The moment before is over, whoever can take this one.
        self.turn_to(Manner::Forced, detail, &now).await
    }

    /// Has policies that left force for want of room count again. That only gives: planes prepare it, and where one can't, they
    /// stay out of force until something changes.
    async fn give_back(&self, live: &Generation, now: &Window) -> Result<(), Refusal> {
        let why = "there is room again for a policy that had no kernel tables";
        let detail = format!("{why}: compiled for {} in {}", now.at, now.zone);
        match self.turn_to(Manner::Prepared, detail, now).await {
            Err(refusal @ Refusal::Plane(_)) => {
                tracing::warn!(%refusal, "a policy that had no kernel tables stays out of force");
                let at_ms = now.at.as_millisecond();
                self.note_tried(live.model.generation, live.in_force.clone(), at_ms).await;
                Ok(())
            }
            other => other,
        }
    }

    /// Makes a generation of this moment.
    async fn turn_to(&self, manner: Manner, detail: String, now: &Window) -> Result<(), Refusal> {
        let turn = |draft: &mut Draft| {
            // One tenant's that has no tables at this moment must not take from everybody what they have.
            draft.unusable = Unusable::Suspend;
            // Also where this moment is the live generation's: what has room again is no other moment.
            draft.close()?;
            draft.enter(now.clone())
        };
        let (_, made) = self.change_by(manner, |()| detail.clone(), turn).await?;
        // What lacks room in it was just tried.
        let (number, in_force) = (made.model.generation, made.in_force.clone());
        self.note_tried(number, in_force, made.model.window.at.as_millisecond()).await;
        Ok(())
    }

    /// Whether a policy that left force for want of room would count now. Tried when something changed since it last was:
    /// it takes as long as a change.
    /// What fails is no room: the live generation stays, and is late for nothing.
    async fn has_room_again(&self, live: &Generation, now: &Window) -> bool {
        if !live.in_force.lacks_room() {
            return false;
        }
        let (generation, at_ms) = (live.model.generation, now.at.as_millisecond());
        let tried = *self.tried.lock();
        let is_known = |t: &Tried| {
            t.generation == generation && (t.at_ms..t.until_ms.unwrap_or(i64::MAX)).contains(&at_ms)
        };
        if tried.as_ref().is_some_and(is_known) {
            return false;
        }
        let model = Model { window: now.clone(), ..live.model.clone() };
        let former = Former { in_force: live.in_force.clone(), tables: live.tables.clone() };
        let trial = render(model, former, Unusable::Suspend).await;
        let tried = trial.as_ref().map_or(&live.in_force, |trial| &trial.in_force);
        self.note_tried(generation, tried.clone(), at_ms).await;
        match trial {
            Ok(trial) => is_less(&trial.broken, &live.broken),
            Err(error) => {
                tracing::debug!(%error, "there is no room for a policy that had no kernel tables");
                false
            }
        }
    }

    /// Notes what a generation was tried for, at this moment.
    async fn note_tried(&self, generation: u64, in_force: InForce, at_ms: i64) {
        let until_ms = blocking(move || Ok(in_force.lacking_until_ms(at_ms))).await;
        // Of what can't be told it is asked again.
        let until_ms = until_ms.unwrap_or(Some(at_ms));
        *self.tried.lock() = Some(Tried { generation, at_ms, until_ms });
    }
}

/// How long to wait before the clock is looked at again: never past a turn that is to come, and never long, since clocks are
/// set and machines sleep; where a turn could not be made, until it is tried again.
fn pause(is_made: bool, turns_in: Option<Duration>, retry: Duration) -> Duration {
    let longest = if is_made { CLOCK_PAUSE_MAX } else { retry };
    turns_in.unwrap_or(longest).clamp(CLOCK_PAUSE_LEAST, longest)
}

/// Whether some of these policies are in force again, and none that was is not.
fn is_less(trial: &BTreeMap<PolicyOwner, String>, live: &BTreeMap<PolicyOwner, String>) -> bool {
    trial.len() < live.len() && trial.keys().all(|owner| live.contains_key(owner))
}

/// The window's zone as its offsets around then.
pub(in crate::control) fn zone(window: &Window) -> Result<Zone, Refusal> {
    let Window { zone: name, at } = window;
    let unknown = |e: jiff::Error| Refusal::Invalid(format!("there is no time zone `{name}` here: {e}"));
    if name == clawgress_api::config::UTC {
        // Needs no database, and has one offset: none.
        return Ok(Zone { name: name.clone(), offsets: Vec::new() });
    }
    let zone = TimeZone::get(name).map_err(unknown)?;
    // From a year's beginning, so that it stays the same from one generation to the next. Conditions are
    // answered for this moment and for those after it.
    let year = zone.to_datetime(*at).date().first_of_year().to_zoned(TimeZone::UTC).map_err(unknown)?;
    let from = year.timestamp();
    let first = (from.as_second(), zone.to_offset(from).seconds());
    let later = zone.following(from).map(|t| (t.timestamp().as_second(), t.offset().seconds()));
    let mut offsets: Vec<(i64, i32)> = std::iter::once(first).chain(later).take(ZONE_OFFSETS_MAX).collect();
    if offsets.iter().all(|(_, offset)| *offset == 0) {
        // UTC, which needs no saying.
        offsets.clear();
    }
    Ok(Zone { name: name.clone(), offsets })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_for_some_takes_it_from_nobody() {
        let of = |tenants: &[&str]| -> BTreeMap<PolicyOwner, String> {
            let owner = |tenant: &&str| (PolicyOwner::Tenant((*tenant).to_owned()), String::new());
            tenants.iter().map(owner).collect()
        };
        assert!(is_less(&of(&["a"]), &of(&["a", "c"])) && is_less(&of(&[]), &of(&["a"])));
        assert!(!is_less(&of(&["b"]), &of(&["a", "c"])), "one leaves force for two");
        assert!(!is_less(&of(&["a", "c"]), &of(&["a", "c"])));
    }

    #[test]
    fn what_failed_holds_up_no_turn_that_is_to_come() {
        let (second, minute) = (Duration::from_secs(1), Duration::from_secs(60));
        assert_eq!(pause(true, None, minute), CLOCK_PAUSE_MAX);
        assert_eq!(pause(true, Some(minute), second), CLOCK_PAUSE_MAX);
        assert_eq!(pause(false, None, minute), minute, "it was due, and is tried again");
        assert_eq!(pause(false, Some(second), minute), second);
        assert_eq!(pause(false, Some(Duration::ZERO), minute), CLOCK_PAUSE_LEAST);
    }
}
