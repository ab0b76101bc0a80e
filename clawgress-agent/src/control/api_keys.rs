//! API keys of agents: when each counts, how one takes another's place, and which have ended. Must never see
//! the text of one.
//!
//! INVARIANT: a key that was revoked, or that was found to have ended, is in no generation any more: a clock that is
//! set back brings none of them back.

use std::collections::BTreeMap;

use clawgress_api::{ApiKeyInfo, ApiKeyState};
use clawgress_identity::{AgentId, ApiKeyRecord, KEY_MAC_BYTES};
use jiff::Timestamp;

use super::model::{Draft, Model, Refusal, Run};

/// Keys of API keys that count, or will.
pub(super) const KEY: &str = "key/";
/// Keys of API keys that have ended.
pub(super) const ENDED_KEY: &str = "ended-key/";

/// Keys of one agent that count or will: some places of use, each of them being rotated. Those of runs are apart, and
/// bounded with them.
const KEYS_MAX: usize = 16;
/// Keys of one agent that have ended and are still listed: the audit log tells of older ones.
const ENDED_MAX: usize = 16;
/// Longest overlap of a rotation, seconds: 30 days. What takes longer is two keys, not a rotation.
const OVERLAP_S_MAX: u64 = 30 * 24 * 60 * 60;

/// A key that was just made, as far as the registry keeps it.
#[derive(Clone, Debug)]
pub struct Made {
    /// Its public id.
    pub id: String,
    /// Its keyed hash.
    pub mac: [u8; KEY_MAC_BYTES],
    /// When, Unix seconds.
    pub at_s: i64,
}

/// When a key counts, Unix seconds.
#[derive(Clone, Copy, Debug, Default)]
pub struct Terms {
    /// From then on; `None`: at once.
    pub not_before_s: Option<i64>,
    /// Until then; `None`: for ever.
    pub expires_at_s: Option<i64>,
}

// === impl Model ===

impl Model {
    /// The key, whether it counts or has ended, or a refusal that says what to do.
    ///
    /// # Errors
    /// If there is none.
    fn key(&self, id: &str) -> Result<&ApiKeyRecord, Refusal> {
        self.keys
            .get(id)
            .or_else(|| self.ended_keys.get(id))
            .ok_or_else(|| Refusal::Missing(format!("there is no key `{id}`; see `clawgressctl key list`")))
    }

    /// The run that a key lives with.
    fn run_of(&self, key: &str) -> Option<&Run> {
        self.runs.values().find(|run| run.key == key)
    }

    /// What administrators are told of keys: of one agent, or of all; by agent, the latest last.
    #[must_use]
    pub fn key_infos(&self, agent: Option<&AgentId>, now_s: i64) -> Vec<ApiKeyInfo> {
        let runs: BTreeMap<&str, &str> =
            self.runs.values().map(|run| (run.key.as_str(), run.name.as_str())).collect();
        let wanted = |key: &&ApiKeyRecord| agent.is_none_or(|agent| key.agent == *agent);
        let all = self.keys.values().chain(self.ended_keys.values()).filter(wanted);
        let mut infos: Vec<ApiKeyInfo> =
            all.map(|key| info(key, runs.get(key.id.as_str()).copied(), now_s)).collect();
        infos.sort_by(|a, b| (&a.agent, a.created, &a.id).cmp(&(&b.agent, b.created, &b.id)));
        infos
    }

    /// What administrators are told of one key.
    #[must_use]
    pub fn key_info(&self, key: &ApiKeyRecord, now_s: i64) -> ApiKeyInfo {
        info(key, self.run_of(&key.id).map(|run| run.name.as_str()), now_s)
    }
}

fn info(key: &ApiKeyRecord, run: Option<&str>, now_s: i64) -> ApiKeyInfo {
    let time = |at: Option<i64>| at.and_then(|s| Timestamp::from_second(s).ok());
    let is_over = |at: Option<i64>| at.is_some_and(|at| now_s >= at);
    let state = if is_over(key.revoked_at_s) {
        ApiKeyState::Revoked
    } else if is_over(key.expires_at_s) {
        ApiKeyState::Expired
    } else if key.not_before_s.is_some_and(|at| now_s < at) {
        ApiKeyState::Pending
    } else if key.revoked_at_s.is_some() {
        ApiKeyState::Rotating
    } else {
        ApiKeyState::Active
    };
    ApiKeyInfo {
        id: key.id.clone(),
        agent: key.agent.clone(),
        state,
        created: time(key.created_at_s),
        not_before: time(key.not_before_s),
        expires: time(key.expires_at_s),
        revoked: time(key.revoked_at_s),
        run: run.map(str::to_owned),
    }
}

// === impl Terms ===

impl Terms {
    fn check(self, now_s: i64) -> Result<(), Refusal> {
        let Terms { not_before_s, expires_at_s } = self;
        let Some(expires_at_s) = expires_at_s else { return Ok(()) };
        if expires_at_s <= now_s || not_before_s.is_some_and(|from| expires_at_s <= from) {
            return Err(Refusal::Invalid(
                "the key would never count: give --expires a time that lies ahead, and after --not-before"
                    .into(),
            ));
        }
        Ok(())
    }
}

// === impl Draft ===

impl Draft {
    /// Adds an API key of an agent.
    ///
    /// # Errors
    /// If there is no such agent, it has too many keys, the key would never count, or its id is taken.
    pub fn create_key(
        &mut self,
        made: &Made,
        agent: &AgentId,
        terms: Terms,
    ) -> Result<ApiKeyRecord, Refusal> {
        self.model.agent(agent)?;
        terms.check(made.at_s)?;
        self.end_keys_of(agent, made.at_s)?;
        let runs = self
            .model
            .runs
            .values()
            .filter(|run| run.agent == *agent && self.model.keys.contains_key(&run.key));
        let keys = self.model.keys.values().filter(|key| key.agent == *agent);
        if keys.count().saturating_sub(runs.count()) >= KEYS_MAX {
            return Err(Refusal::Full(format!(
                "an agent has at most {KEYS_MAX} keys that count; revoke one first, see `clawgressctl key list --agent {agent}`"
            )));
        }
        self.put_key(made, agent, terms)
    }

    /// Adds an API key of an agent that has just been made, or of a run.
    ///
    /// # Errors
    /// If its id is taken.
    pub fn put_key(&mut self, made: &Made, agent: &AgentId, terms: Terms) -> Result<ApiKeyRecord, Refusal> {
        if self.model.keys.contains_key(&made.id) || self.model.ended_keys.contains_key(&made.id) {
            return Err(Refusal::Exists("the key's id is taken; try again".into()));
        }
        let key = ApiKeyRecord {
            id: made.id.clone(),
            agent: agent.clone(),
            mac: made.mac,
            created_at_s: Some(made.at_s),
            not_before_s: terms.not_before_s,
            expires_at_s: terms.expires_at_s,
            revoked_at_s: None,
        };
        self.write_key(key.clone())?;
        Ok(key)
    }

    /// Puts a new key in the place of one, which counts for so many seconds more. Returns the old one as it was and as
    /// it is, and the new one.
    ///
    /// # Errors
    /// If there is no such key, it has ended, is being rotated or a run's, or the new one can't be.
    pub fn rotate_key(
        &mut self,
        id: &str,
        overlap_s: u64,
        made: &Made,
        expires_at_s: Option<i64>,
    ) -> Result<[ApiKeyRecord; 3], Refusal> {
        let before = self.model.key(id)?.clone();
        let agent = &before.agent;
        if self.model.ended_keys.contains_key(id) || before.ends_s().is_some_and(|end| made.at_s >= end) {
            return Err(Refusal::Invalid(format!(
                "key `{id}` counts no more; make a new one with `clawgressctl key create {agent}`"
            )));
        }
        if let Some(run) = self.model.run_of(id) {
            let run = &run.name;
            return Err(Refusal::Invalid(format!("key `{id}` belongs to run `{run}` and ends with it")));
        }
        if before.revoked_at_s.is_some() {
            return Err(Refusal::Invalid(format!(
                "key `{id}` is being rotated already; see `clawgressctl key list --agent {agent}`"
            )));
        }
        let overlap = i64::try_from(overlap_s).ok().filter(|_| overlap_s <= OVERLAP_S_MAX);
        let overlap = overlap.ok_or_else(|| {
            Refusal::Invalid(format!("an overlap has at most {} days", OVERLAP_S_MAX / (24 * 60 * 60)))
        })?;
        let expires_at_s = match (expires_at_s, before.expires_at_s) {
            (None, Some(end)) => Some(renewed(&before, end, made.at_s)?),
            (given, _) => given,
        };
        // The old one first: it may be the one too many otherwise.
        let after = ApiKeyRecord { revoked_at_s: Some(made.at_s.saturating_add(overlap)), ..before.clone() };
        self.write_key(after.clone())?;
        let new = self.create_key(made, agent, Terms { not_before_s: None, expires_at_s })?;
        Ok([before, after, new])
    }

    /// Revokes a key: it counts for nobody any more. Returns it as it was, and as it is; one that was revoked already
    /// stays as it is.
    ///
    /// # Errors
    /// If there is none.
    pub fn revoke_key(&mut self, id: &str, now_s: i64) -> Result<(ApiKeyRecord, ApiKeyRecord), Refusal> {
        let before = self.model.key(id)?.clone();
        if self.model.ended_keys.contains_key(id) {
            return Ok((before.clone(), before));
        }
        let revoked_at_s = before.revoked_at_s.map_or(now_s, |at| at.min(now_s));
        let after = ApiKeyRecord { revoked_at_s: Some(revoked_at_s), ..before.clone() };
        self.end_key(after.clone())?;
        Ok((before, after))
    }

    /// Removes every key of an agent that is no more.
    pub(super) fn delete_keys_of(&mut self, agent: &AgentId) {
        let of = |keys: &BTreeMap<String, ApiKeyRecord>| -> Vec<String> {
            keys.values().filter(|key| key.agent == *agent).map(|key| key.id.clone()).collect()
        };
        for id in of(&self.model.keys) {
            self.delete_key(&id);
        }
        for id in of(&self.model.ended_keys) {
            self.model.ended_keys.remove(&id);
            self.delete(format!("{ENDED_KEY}{id}"));
        }
    }

    pub(super) fn delete_key(&mut self, id: &str) {
        self.model.keys.remove(id);
        self.delete(format!("{KEY}{id}"));
        self.governs = true;
    }

    fn write_key(&mut self, key: ApiKeyRecord) -> Result<(), Refusal> {
        self.put(&format!("{KEY}{}", key.id), &key)?;
        self.model.keys.insert(key.id.clone(), key);
        self.governs = true;
        Ok(())
    }

    /// Takes a key that has ended out of what counts, for good.
    fn end_key(&mut self, key: ApiKeyRecord) -> Result<(), Refusal> {
        self.delete_key(&key.id);
        self.put(&format!("{ENDED_KEY}{}", key.id), &key)?;
        let agent = key.agent.clone();
        self.model.ended_keys.insert(key.id.clone(), key);
        self.forget_ended(&agent);
        Ok(())
    }

    /// Takes the keys of an agent out of what counts whose time is over.
    fn end_keys_of(&mut self, agent: &AgentId, now_s: i64) -> Result<(), Refusal> {
        let is_over =
            |key: &&ApiKeyRecord| key.agent == *agent && key.ends_s().is_some_and(|end| now_s >= end);
        let ended: Vec<ApiKeyRecord> = self.model.keys.values().filter(is_over).cloned().collect();
        // A run's key is the run's to remove.
        let ended = ended.into_iter().filter(|key| self.model.run_of(&key.id).is_none()).collect::<Vec<_>>();
        ended.into_iter().try_for_each(|key| self.end_key(key))
    }

    /// Forgets the keys of an agent that ended first, where there are too many.
    fn forget_ended(&mut self, agent: &AgentId) {
        let mut ended: Vec<(Option<i64>, String)> = self
            .model
            .ended_keys
            .values()
            .filter(|key| key.agent == *agent)
            .map(|key| (key.ends_s(), key.id.clone()))
            .collect();
        ended.sort();
        let surplus = ended.len().saturating_sub(ENDED_MAX);
        for (_, id) in ended.into_iter().take(surplus) {
            self.model.ended_keys.remove(&id);
            self.delete(format!("{ENDED_KEY}{id}"));
        }
    }
}

/// When a key ends that takes the place of `old`, which was to end then: it lives as long. A rotation must not make a key
/// without an end of one that had one.
fn renewed(old: &ApiKeyRecord, end_s: i64, now_s: i64) -> Result<i64, Refusal> {
    let from = old.not_before_s.max(old.created_at_s);
    let life = from.and_then(|from| end_s.checked_sub(from)).filter(|life| *life > 0);
    life.and_then(|life| now_s.checked_add(life)).ok_or_else(|| {
        Refusal::Invalid(format!("nobody wrote down how long key `{}` was to live; give --expires", old.id))
    })
}
