//! What the records say of each agent: how much it asked for, where it was let go, and what its fingerprints are.
//! Policy may ask for it, as an agent's history.
//!
//! All of it is derived: from the records that have become durable, on this node, so that it runs behind them by one
//! write of the log at most. It is kept on disk to outlive a restart, written [every few seconds](SAVE_PERIOD); what
//! a crash takes of it is that much. Must never hold up a record, and never say that something is old which is not
//! known to be.

mod kept;
mod places;

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use clawgress_api::clock::Clock;
use clawgress_api::{AgentRef, AuditRecord, Fingerprint, KnownFingerprint, Plane, RecordKind, Verdict};
use clawgress_identity::{Agent, AgentId, IdentityMethod, RootId};
use clawgress_policy::history::{History, Past};
use jiff::Timestamp;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use self::kept::{Kept, Saved};
use self::places::{Name, Places};
use super::audit::AuditLog;
use super::govern::Governor;
use super::model::Model;

/// Destinations that are remembered of one agent: of who reaches more, those that were seen longest ago are forgotten.
pub const DESTINATIONS_EACH_MAX: usize = 4_096;
/// Destinations that are remembered of all agents, some 40 bytes each in memory. Each agent has its share of them: where all
/// are taken, whoever has the most loses some.
pub const DESTINATIONS_MAX: usize = 1_000_000;
/// Fingerprints of one kind that are remembered of one agent; then the one that was seen longest ago is forgotten.
pub const FINGERPRINTS_EACH_MAX: usize = 16;
/// How long a fingerprint that was not seen before is a change.
const CHANGE_S: i64 = 3_600;
/// How often a change of a kind is told of one agent at most; the others are counted.
const TOLD_EACH_S: i64 = 60;
/// How often what has changed is written.
const SAVE_PERIOD: Duration = Duration::from_secs(5);
/// Changes of fingerprints that wait to be recorded; more are counted in a gap.
const CHANGES_MAX: usize = 256;

/// What a fingerprint is one of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Kind {
    Ja4,
    Executable,
    Certificate,
    Mac,
}

/// A fingerprint that was seen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Print {
    value: String,
    first_s: i64,
    last_s: i64,
}

/// What is known of one agent.
#[derive(Clone, Debug)]
struct Observed {
    id: AgentId,
    past: Past,
    places: Places,
    prints: BTreeMap<Kind, Vec<Print>>,
    /// When a fingerprint changed last, Unix seconds.
    changed_s: Option<i64>,
    /// When a change of each kind was told last, and how many were not since.
    told: BTreeMap<Kind, (i64, u64)>,
    /// Whether something changed since it was saved, but for its places.
    dirty: bool,
}

/// What is known of all of them.
#[derive(Debug)]
pub struct Observations {
    governor: Arc<Governor>,
    clock: Arc<dyn Clock>,
    agents: Mutex<Agents>,
    /// `None` where nothing can be kept.
    kept: Option<Kept>,
    changes: mpsc::Sender<AuditRecord>,
    unrecorded: Mutex<Option<mpsc::Receiver<AuditRecord>>>,
}

#[derive(Debug, Default)]
struct Agents {
    /// By their numbers in the registry: the next agent of a name has nothing of the last.
    known: HashMap<u32, Observed>,
    destinations: usize,
    /// Changes of fingerprints that found no room on their way to the log.
    lost: u64,
}

// === impl Kind ===

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::Ja4 => "ja4",
            Kind::Executable => "executable",
            Kind::Certificate => "certificate",
            Kind::Mac => "mac",
        }
    }
}

/// The fingerprints that a record holds.
fn prints(record: &AuditRecord, model: &Model) -> impl Iterator<Item = (Kind, String)> {
    let of = |pick: fn(&Fingerprint) -> Option<&String>| record.fingerprint.as_ref().and_then(pick).cloned();
    let certificate = record.agent.as_ref().and_then(|agent| {
        // Not an SVID, which is another every hour, nor beside a key or a token.
        let alone = agent.credential.as_ref().filter(|_| agent.method == IdentityMethod::Mtls);
        let is_of_authority = |issuer: &RootId| model.authorities.contains_key(issuer);
        let beside = agent.certificate.as_ref().filter(|c| c.issuer.as_ref().is_some_and(is_of_authority));
        alone.or(beside)
    });
    // Of L7, which has it of the source's binding: the kernel plane tells of those that it refused, too.
    let mac = record.source.mac.filter(|_| record.plane == Plane::L7);
    [
        (Kind::Ja4, of(|f| f.ja4.as_ref())),
        (Kind::Executable, of(|f| f.executable.as_ref())),
        (Kind::Certificate, certificate.map(|certificate| certificate.id.clone())),
        (Kind::Mac, mac.map(|mac| mac.to_string())),
    ]
    .into_iter()
    .filter_map(|(kind, value)| Some((kind, value?)))
}

/// The agent that a record is of, and its number in the registry.
fn whose(model: &Model, reference: &AgentRef) -> Option<(AgentId, u32)> {
    let id = AgentId::new(&reference.tenant, &reference.agent).ok()?;
    let index = model.agents.get(&id)?.index;
    // What an agent did that is no more, the next of its name did not.
    reference.index.is_none_or(|recorded| recorded == index).then_some((id, index))
}

// === impl Observed ===

impl Observed {
    fn new(id: AgentId) -> Self {
        Observed {
            id,
            past: Past::default(),
            places: Places::default(),
            prints: BTreeMap::new(),
            changed_s: None,
            told: BTreeMap::new(),
            dirty: false,
        }
    }

    /// Takes note of a fingerprint; what was known of its kind before, if this one was not among it.
    fn print(&mut self, kind: Kind, value: &str, now_s: i64) -> Option<Vec<String>> {
        let known = self.prints.entry(kind).or_default();
        if let Some(print) = known.iter_mut().find(|print| print.value == value) {
            print.last_s = now_s;
            return None;
        }
        let before: Vec<String> = known.iter().map(|print| print.value.clone()).collect();
        if known.len() >= FINGERPRINTS_EACH_MAX
            && let Some(oldest) = (0..known.len()).min_by_key(|n| known.get(*n).map(|print| print.last_s))
        {
            known.remove(oldest);
        }
        known.push(Print { value: value.to_owned(), first_s: now_s, last_s: now_s });
        self.dirty = true;
        if before.is_empty() {
            return None;
        }
        self.changed_s = Some(now_s);
        Some(before)
    }

    /// Whether a change is told now, and then how many of its kind were not told before: an agent chooses its hellos,
    /// and must not fill the log with them, nor keep another's change out of it.
    fn tells(&mut self, kind: Kind, now_s: i64) -> Option<u64> {
        let (told_s, untold) = self.told.entry(kind).or_insert((i64::MIN, 0));
        if (0..TOLD_EACH_S).contains(&now_s.saturating_sub(*told_s)) {
            *untold += 1;
            return None;
        }
        *told_s = now_s;
        Some(std::mem::take(untold))
    }
}

// === impl Agents ===

impl Agents {
    /// Has whoever has the most places forget some, while there are more than `max`: nobody who has no more than its share
    /// of them, which is as many as each would have if all had alike.
    fn make_room(&mut self, max: usize) {
        while self.destinations > max {
            let Some(observed) = self.known.values_mut().max_by_key(|observed| observed.places.len()) else {
                return;
            };
            self.destinations -= observed.places.shed();
        }
    }

    /// Has a change recorded, or counts that it could not be.
    fn tell(&mut self, changes: &mpsc::Sender<AuditRecord>, change: AuditRecord) {
        self.lost += u64::from(changes.try_send(change).is_err());
    }
}

// === impl Observations ===

impl Observations {
    /// Loads what is kept in `directory`; what can't be read is set aside, told, and begun anew.
    ///
    /// # Errors
    /// If that can't be told.
    pub async fn open(
        directory: &Path,
        governor: Arc<Governor>,
        clock: Arc<dyn Clock>,
    ) -> anyhow::Result<Self> {
        let directory = directory.to_owned();
        let opened = tokio::task::spawn_blocking(move || kept::open(&directory)).await;
        // It may be lost, and must not keep this role from starting: then it is gathered in memory alone.
        let (kept, saved, lost) = match opened.map_err(anyhow::Error::from).flatten() {
            Ok((kept, saved, lost)) => (Some(kept), saved, lost),
            Err(error) => {
                (None, HashMap::new(), Some(format!("{error:#}; nothing is kept until the next start")))
            }
        };
        let mut agents = Agents::default();
        let model = governor.live();
        for (index, observed) in saved {
            // Of agents that are no more too: they are removed when the rest is saved.
            agents.destinations += observed.places.len();
            agents.known.insert(index, observed);
        }
        if let Some(lost) = lost {
            tracing::warn!(lost, "what was known of agents' histories is lost");
            let mut gap = governor.audit.record(RecordKind::Gap, model.model.generation);
            gap.detail = Some(format!("what was known of agents' histories is lost: {lost}"));
            governor.audit.append(vec![gap]).await?;
        }
        let (changes, unrecorded) = mpsc::channel(CHANGES_MAX);
        let (agents, unrecorded) = (Mutex::new(agents), Mutex::new(Some(unrecorded)));
        Ok(Observations { governor, clock, agents, kept, changes, unrecorded })
    }

    /// Takes note of a record that has become durable.
    pub fn note(&self, record: &AuditRecord) {
        let Some(reference) = &record.agent else { return };
        // To ask for a name is to have been nowhere yet, and it would make every host one that was seen.
        let is_asked = record.action.as_deref() == Some("resolve");
        let is_decision = record.plane == Plane::L7 && record.kind == RecordKind::Decision && !is_asked;
        if !is_decision && record.fingerprint.is_none() {
            return;
        }
        let live = self.governor.live();
        let Some((id, index)) = whose(&live.model, reference) else { return };
        let now_s = self.clock.now().as_second();
        let mut agents = self.agents.lock();
        let observed = agents.known.entry(index).or_insert_with(|| Observed::new(id));
        let before = observed.places.len();
        if is_decision {
            let is_denied = record.verdict != Some(Verdict::Allow);
            observed.past.note(is_denied, now_s);
            observed.dirty = true;
            if let Some(host) = record.destination.host.as_deref().filter(|_| !is_denied) {
                let name = Name::of(host);
                if !observed.places.knows(name) && before >= DESTINATIONS_EACH_MAX {
                    observed.places.shed();
                }
                observed.places.see(name, now_s);
            }
        }
        let (mut changed, after) = (Vec::new(), observed.places.len());
        for (kind, value) in prints(record, &live.model) {
            if let Some(before) = observed.print(kind, &value, now_s)
                && let Some(untold) = observed.tells(kind, now_s)
            {
                changed.push((kind, value, before, untold));
            }
        }
        agents.destinations = agents.destinations - before + after;
        agents.make_room(DESTINATIONS_MAX);
        for (kind, value, before, untold) in changed {
            let mut change = self.changed(reference, kind, &value, &before);
            change.source = record.source.clone();
            change.detail = change.detail.map(|detail| format!("{detail}, at request {}", record.request));
            change.count = (untold > 0).then_some(untold);
            agents.tell(&self.changes, change);
        }
    }

    /// Takes note of the executable that a run of `agent` begins with.
    pub fn runs(&self, agent: &Agent, executable: &str) {
        let now_s = self.clock.now().as_second();
        let mut agents = self.agents.lock();
        let observed = agents.known.entry(agent.index).or_insert_with(|| Observed::new(agent.id.clone()));
        if let Some(before) = observed.print(Kind::Executable, executable, now_s) {
            let reference = AgentRef::new(agent, IdentityMethod::Cgroup);
            let change = self.changed(&reference, Kind::Executable, executable, &before);
            agents.tell(&self.changes, change);
        }
    }

    fn changed(&self, reference: &AgentRef, kind: Kind, value: &str, before: &[String]) -> AuditRecord {
        let generation = self.governor.live().model.generation;
        let mut change = self.governor.audit.record(RecordKind::Change, generation);
        change.agent = Some(reference.clone());
        // For people alone: as a fingerprint it would be seen again.
        change.detail = Some(format!(
            "a fingerprint of agent `{}/{}` changed: {} `{value}` was not seen before; known are `{}`",
            reference.tenant,
            reference.agent,
            kind.name(),
            before.join("`, `"),
        ));
        change
    }

    /// The history of the agent with this number in the registry, as it is now, on its way to `host`.
    #[must_use]
    pub fn history(&self, index: u32, host: &str) -> History {
        let now_s = self.clock.now().as_second();
        let agents = self.agents.lock();
        let Some(observed) = agents.known.get(&index) else {
            return History { first_seen: true, ..History::QUIET };
        };
        let (requests, denied) = observed.past.counts(now_s);
        let (request_surge, denial_burst) = observed.past.anomalies(now_s);
        History {
            requests,
            denied,
            request_surge,
            denial_burst,
            first_seen: !observed.places.knows(Name::of(host)),
            fingerprint_changed: observed
                .changed_s
                .is_some_and(|at| (0..CHANGE_S).contains(&now_s.saturating_sub(at))),
        }
    }

    /// The fingerprints of the agent with this number in the registry, by their kinds, the latest first.
    #[must_use]
    pub fn fingerprints(&self, index: u32) -> Vec<KnownFingerprint> {
        let agents = self.agents.lock();
        let Some(observed) = agents.known.get(&index) else { return Vec::new() };
        let time = |s| Timestamp::from_second(s).unwrap_or_default();
        let mut known = Vec::new();
        for (kind, prints) in &observed.prints {
            let mut prints: Vec<&Print> = prints.iter().collect();
            prints.sort_by_key(|print| std::cmp::Reverse(print.last_s));
            known.extend(prints.into_iter().map(|print| KnownFingerprint {
                kind: kind.name().to_owned(),
                value: print.value.clone(),
                first_seen: time(print.first_s),
                last_seen: time(print.last_s),
            }));
        }
        known
    }

    /// Records changes of fingerprints and writes what is known, until `stop`.
    pub async fn run(&self, audit: &AuditLog, stop: CancellationToken) {
        let Some(mut unrecorded) = self.unrecorded.lock().take() else { return };
        let mut saves = tokio::time::interval(SAVE_PERIOD);
        saves.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let change = tokio::select! {
                () = stop.cancelled() => break,
                _ = saves.tick() => None,
                change = unrecorded.recv() => change,
            };
            let result = match change {
                Some(change) => audit.append(vec![change]).await,
                None => {
                    self.save().await;
                    self.tell_lost(audit).await
                }
            };
            if let Err(error) = result {
                tracing::error!(%error, "a change of a fingerprint can't be recorded");
            }
        }
        self.save().await;
    }

    async fn tell_lost(&self, audit: &AuditLog) -> Result<(), super::audit::AuditError> {
        let lost = std::mem::take(&mut self.agents.lock().lost);
        if lost == 0 {
            return Ok(());
        }
        let mut gap = audit.record(RecordKind::Gap, self.governor.live().model.generation);
        gap.count = Some(lost);
        gap.detail = Some("changes of fingerprints that came faster than they could be recorded".to_owned());
        audit.append(vec![gap]).await
    }

    /// Writes what has changed, and forgets agents that are no more.
    async fn save(&self) {
        let saved = self.unsaved();
        if saved.is_empty() {
            return;
        }
        let Some(kept) = self.kept.clone() else { return };
        match tokio::task::spawn_blocking(move || kept.write(&saved)).await {
            Ok(Ok(())) => {}
            // What was counted stays in memory, and is written when it changes again.
            Ok(Err(error)) => tracing::error!(%error, "what is known of agents' histories can't be written"),
            Err(error) => tracing::error!(%error, "what is known of agents' histories was not written"),
        }
    }

    fn unsaved(&self) -> Vec<Saved> {
        let live = self.governor.live();
        let mut agents = self.agents.lock();
        let Agents { known, destinations, .. } = &mut *agents;
        let mut saved = Vec::new();
        known.retain(|index, observed| {
            let stays = live.model.agents.get(&observed.id).is_some_and(|agent| agent.index == *index);
            if !stays {
                *destinations -= observed.places.len();
                saved.push(Saved::Gone(*index));
            } else if observed.dirty || observed.places.is_unsaved() {
                observed.dirty = false;
                let places = observed.places.take_unsaved();
                saved.push(Saved::Changed(*index, observed.to_keep(), places));
            }
            stays
        });
        saved
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_the_most_makes_room() {
        let mut agents = Agents::default();
        for (index, count) in [(1_u32, 300), (2, 20), (3, 100)] {
            let mut observed = Observed::new(format!("a{index}").parse().unwrap());
            for n in 0..count {
                observed.places.see(Name::of(&format!("h{n}.test")), 1_795_632_300);
            }
            agents.destinations += count;
            agents.known.insert(index, observed);
        }
        agents.make_room(1_000);
        assert_eq!(agents.destinations, 420);
        agents.make_room(180);
        let have = |index| agents.known[&index].places.len();
        assert_eq!(agents.destinations, have(1) + have(2) + have(3));
        assert!(agents.destinations <= 180 && have(2) == 20, "no more than its share: {agents:?}");
        assert!(have(1).abs_diff(have(3)) <= 5 && have(1) >= 60, "{} and {}", have(1), have(3));
    }
}
