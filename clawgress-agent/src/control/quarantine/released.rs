//! When people released agents from quarantine last: what was decided before makes nobody quarantined again, also after a
//! restart. Must never count for an agent that is no more, nor for what was decided since.
//!
//! INVARIANT: each is stored in the transaction that ends the quarantine, so that none is without the other. There are no more
//! of them than agents there were when the last was stored, and one: each release takes those away whose agents are gone.

use std::collections::{BTreeMap, HashSet};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::control::model::{Model, parse};
use crate::control::store::{Entry, StoreError, Write};

/// Their keys, by the agent's number, which never comes back.
pub(super) const RELEASED: &str = "quarantine-released/";
/// Those of agents that are gone which one release takes away at most, so that its transaction stays small.
const GONE_MAX: usize = 1024;

/// When a person released an agent last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Released {
    /// The agent's number.
    agent: u32,
    /// By the clock as it was then: from before the planes heard of it, so that what the agent does from then on counts.
    at: Timestamp,
}

/// Of each agent that was released.
#[derive(Clone, Debug, Default)]
pub(super) struct Releases(BTreeMap<u32, Released>);

// === impl Released ===

impl Released {
    /// Whether what was asked for then was so before the release.
    fn settles(self, asked: Timestamp) -> bool {
        asked <= self.at
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
    pub(super) fn settle(&self, agent: u32, asked: Timestamp) -> bool {
        self.0.get(&agent).is_some_and(|released| released.settles(asked))
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
        let gone = self.0.keys().filter(|number| !there.contains(number)).take(GONE_MAX);
        let mut writes: Vec<Write> = gone.map(|number| Write::Delete(key(*number))).collect();
        if there.contains(&agent) {
            writes.push(Write::Put(key(agent), serde_json::to_vec(&Released { agent, at })?));
        }
        Ok(writes)
    }
}

/// The key of when the agent of this number was released last.
pub(super) fn key(agent: u32) -> String {
    format!("{RELEASED}{agent}")
}
