//! When people released agents from quarantine last: what was decided before makes nobody quarantined again, also after a
//! restart. Must never count for an agent that is no more, nor for what was decided since.
//!
//! INVARIANT: each is stored in the transaction that ends the quarantine, so that none is without the other. There are no more
//! of them than agents there were when the last was stored, and one: each release takes those away whose agents are gone.
//!
//! The clock may be set back behind a release. Then what it shows says nothing any more of before and after, but that what was
//! asked for later than now was so before it was set back. From when that is noted on, the release counts as one of a moment no
//! later than when the clock was set back: nothing that the agent does since is hidden by it. Until then it settles nothing else.

use std::collections::{BTreeMap, HashSet};

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use crate::control::model::{Model, parse};
use crate::control::store::{Entry, StoreError, Write};

/// Their keys, by the agent's number, which never comes back.
pub(super) const RELEASED: &str = "quarantine-released/";
/// Those that are written or taken away at once, so that a transaction stays small.
const WRITES_MAX: usize = 1024;
/// How much later than it happens it is noted that the clock was set back, at most, while this role runs and its store works: twice
/// the time between two looks (`LOOK_AGAIN`).
const NOTED_AFTER_MAX: SignedDuration = SignedDuration::from_secs(10);

/// When a person released an agent last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Released {
    /// The agent's number.
    agent: u32,
    /// By the clock as it was then: from before the planes heard of it, so that what the agent does from then on counts.
    at: Timestamp,
    /// If that was set back behind it since: what it showed then, or less.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    back: Option<Timestamp>,
}

/// Of each agent that was released.
#[derive(Clone, Debug, Default)]
pub(super) struct Releases(BTreeMap<u32, Released>);

// === impl Released ===

impl Released {
    /// The moment that it counts as.
    fn moment(self) -> Timestamp {
        self.back.unwrap_or(self.at)
    }

    /// Whether what was asked for then was so before the release, as far as that can be known now.
    fn settles(self, asked: Timestamp, now: Timestamp) -> bool {
        if self.moment() > now {
            // The clock was set back, and nobody has noted it: what it shows now it may have shown before, too.
            return asked > now && asked <= self.moment();
        }
        asked <= self.moment() || (asked > now && asked <= self.at)
    }

    /// As it is once it is noted that the clock shows `now`, which is before it; nothing if it is not.
    fn set_back(self, now: Timestamp) -> Option<Released> {
        let back = now.checked_sub(NOTED_AFTER_MAX).unwrap_or(now);
        (self.moment() > now).then_some(Released { at: self.moment(), back: Some(back), ..self })
    }
}

// === impl Releases ===

impl Releases {
    /// What the store holds.
    pub(super) fn load(entries: &[Entry]) -> Result<Self, StoreError> {
        let released = entries.iter().map(|entry| parse(entry).map(|one: Released| (one.agent, one)));
        released.collect::<Result<_, StoreError>>().map(Releases)
    }

    /// Whether the agent of this number was released since something was `asked` for.
    pub(super) fn settle(&self, agent: u32, asked: Timestamp, now: Timestamp) -> bool {
        self.0.get(&agent).is_some_and(|released| released.settles(asked, now))
    }

    /// Whether the clock shows less than at one of them.
    pub(super) fn is_set_back(&self, now: Timestamp) -> bool {
        self.0.values().any(|released| released.moment() > now)
    }

    /// What is written once it is noted that the clock was set back to `now`, in as many transactions.
    pub(super) fn set_back(&self, now: Timestamp) -> Result<Vec<Vec<Write>>, serde_json::Error> {
        let set_back: Vec<Released> = self.0.values().filter_map(|released| released.set_back(now)).collect();
        let put = |one: &Released| Ok(Write::Put(key(one.agent), serde_json::to_vec(one)?));
        set_back.chunks(WRITES_MAX).map(|some| some.iter().map(put).collect()).collect()
    }

    /// Whether nobody was released.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether there is one of this agent.
    pub(super) fn has(&self, agent: u32) -> bool {
        self.0.contains_key(&agent)
    }

    /// What a release of the agent of this number writes besides. Of one that is no more nothing is kept.
    pub(super) fn writes(
        &self,
        agent: u32,
        at: Timestamp,
        model: &Model,
    ) -> Result<Vec<Write>, serde_json::Error> {
        let there: HashSet<u32> = model.agents.values().map(|agent| agent.index).collect();
        let gone = self.0.keys().filter(|number| !there.contains(number)).take(WRITES_MAX);
        let mut writes: Vec<Write> = gone.map(|number| Write::Delete(key(*number))).collect();
        if there.contains(&agent) {
            writes.push(Write::Put(key(agent), serde_json::to_vec(&Released { agent, at, back: None })?));
        }
        Ok(writes)
    }
}

/// The key of when the agent of this number was released last.
pub(super) fn key(agent: u32) -> String {
    format!("{RELEASED}{agent}")
}
