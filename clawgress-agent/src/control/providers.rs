//! Issuers' providers: their keys are fetched, put in force, kept over restarts, and withdrawn when their time is over.
//! What is asked when is [`clawgress_identity::Provider`]'s to say; here it is done.
//!
//! INVARIANT: keys that count no longer are withdrawn even if that can't be recorded now, and those of an issuer that is
//! asked otherwise now are never used.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use clawgress_api::clock::Clock;
use clawgress_api::{KeysState, ProviderStatus, RecordKind};
use clawgress_identity::{
    DISCOVERY_BYTES_MAX, Fetch, IssuerRecord, JWKS_BYTES_MAX, KeySet, Next, Provider, ProviderRecord, RootId,
    What,
};
use jiff::Timestamp;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::fetch::{self, Answer, By, FetchError, Target};
use super::govern::Governor;
use super::model::{Draft, Model, Refusal};
use super::prepare::Manner;

/// Keys of what was fetched.
pub(super) const FETCHED: &str = "fetched/";
/// Fetches at once: a start with many providers must not be a burst of connections.
const FETCHES_MAX: usize = 16;
/// Longest sleep until times are looked at again: the clock may have been set meanwhile.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// Longest error that is kept, bytes: parts of it are a provider's words.
const ERROR_BYTES_MAX: usize = 512;

/// Keys that were fetched, as the store holds them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fetched {
    /// Of which issuer.
    pub id: RootId,
    /// Its `iss` then.
    pub issuer: String,
    /// How it was asked.
    pub provider: ProviderRecord,
    /// The key set.
    pub document: String,
    /// When the provider last confirmed it, Unix seconds.
    pub confirmed_s: i64,
    /// How long it counts as fresh since, seconds.
    pub fresh_s: u32,
}

/// Every provider.
#[derive(Debug)]
pub(super) struct Providers {
    governor: Arc<Governor>,
    clock: Arc<dyn Clock>,
    entries: Mutex<BTreeMap<RootId, Entry>>,
    wake: Notify,
}

#[derive(Debug)]
struct Entry {
    /// Tells answers to it from those to a former one of its name.
    life: u64,
    issuer: String,
    record: ProviderRecord,
    provider: Provider,
    /// When the stored keys were confirmed, as far as it is written.
    written: Option<(i64, u32)>,
    is_told_failing: bool,
    /// Why it was last that a fetch failed; `None` once one didn't.
    failure: Option<String>,
    /// Why what there is can't be put in force, or written.
    trouble: Option<String>,
}

/// What has to be done about a provider.
enum Step {
    Publish(Fetched),
    Withdraw,
    Confirm(Fetched),
    Tell(String, bool),
}

// === impl Fetched ===

impl Fetched {
    /// Whether it is what this issuer would be asked for now.
    pub(super) fn is_of(&self, issuer: &IssuerRecord) -> bool {
        let asks = issuer.provider.as_ref().is_some_and(|provider| provider.asks_as(&self.provider));
        asks && issuer.id == self.id && issuer.issuer == self.issuer
    }

    /// Whether it is of an issuer that there is.
    pub(super) fn counts_in(&self, model: &Model) -> bool {
        model.issuers.get(&self.id).is_some_and(|issuer| self.is_of(issuer))
    }
}

// === impl Providers ===

impl Providers {
    /// With what the store holds, less what counts no longer.
    pub(super) async fn open(governor: Arc<Governor>, clock: Arc<dyn Clock>) -> Self {
        let providers = Providers { governor, clock, entries: Mutex::default(), wake: Notify::new() };
        providers.follow();
        providers.settle().await;
        providers
    }

    fn now_s(&self) -> i64 {
        self.clock.now().as_second()
    }

    /// Fetches until `stop`.
    pub(super) async fn run(&self, stop: CancellationToken) {
        let mut live = self.governor.watch();
        let mut fetching = JoinSet::new();
        loop {
            live.mark_unchanged();
            self.follow();
            self.settle().await;
            for (id, life, fetch, record) in self.due(FETCHES_MAX.saturating_sub(fetching.len())) {
                fetching.spawn(async move {
                    let answer = fetch::fetch(target(&fetch, &record)).await;
                    (id, life, fetch, answer)
                });
            }
            let is_idle = self.entries.lock().is_empty();
            tokio::select! {
                () = stop.cancelled() => return,
                changed = live.changed() => if changed.is_err() { return },
                Some(done) = fetching.join_next() => if let Ok((id, life, fetch, answer)) = done {
                    self.take(&id, life, &fetch, answer);
                },
                () = self.wake.notified() => {}
                () = tokio::time::sleep(LOOK_AGAIN), if !is_idle => {}
            }
        }
    }

    /// Takes note of a token whose key an issuer's keys don't have.
    pub(super) fn unknown_key(&self, issuer: &str) {
        let Ok(id) = issuer.parse::<RootId>() else { return };
        let now_s = self.now_s();
        let is_asked = self.entries.lock().get_mut(&id).is_some_and(|e| e.provider.unknown_key(now_s));
        if is_asked {
            self.wake.notify_one();
        }
    }

    /// How each provider is, as far as there are any.
    pub(super) fn status(&self) -> Vec<ProviderStatus> {
        let now_s = self.now_s();
        self.entries.lock().iter().map(|(id, entry)| entry.status(id, now_s)).collect()
    }

    /// Takes up the providers of the live generation, and lets go of the others.
    fn follow(&self) {
        let live = self.governor.live();
        let mut entries = self.entries.lock();
        entries.retain(|id, _| live.model.issuers.get(id).is_some_and(|i| i.provider.is_some()));
        for (id, issuer) in &live.model.issuers {
            let Some(record) = &issuer.provider else { continue };
            let former = entries.get(id);
            if former.is_some_and(|e| e.issuer == issuer.issuer && e.record == *record) {
                continue;
            }
            let kept = former.and_then(|e| e.fetched(id)).or_else(|| live.model.fetched.get(id).cloned());
            let life = former.map_or(0, |e| e.life) + 1;
            match Entry::new(issuer, record, kept.filter(|kept| kept.is_of(issuer)), life) {
                Ok(entry) => drop(entries.insert(id.clone(), entry)),
                // Checked when it was set: an earlier version took it.
                Err(error) => {
                    tracing::error!(issuer = %id, error, "its provider can't be asked");
                    entries.remove(id);
                }
            }
        }
    }

    /// What is to be fetched now, so many at most.
    fn due(&self, max: usize) -> Vec<(RootId, u64, Fetch, ProviderRecord)> {
        let now_s = self.now_s();
        let mut due = Vec::new();
        for (id, entry) in self.entries.lock().iter_mut() {
            if due.len() >= max {
                break;
            }
            if let Next::Fetch(fetch) = entry.provider.next(now_s) {
                due.push((id.clone(), entry.life, fetch, entry.record.clone()));
            }
        }
        due
    }

    fn take(&self, id: &RootId, life: u64, fetch: &Fetch, answer: Result<Answer, FetchError>) {
        let now_s = self.now_s();
        let mut entries = self.entries.lock();
        let Some(entry) = entries.get_mut(id).filter(|entry| entry.life == life) else { return };
        let failure = match answer {
            Ok(answer) => {
                let taken = entry.provider.answered(fetch, &answer.body, answer.max_age_s, now_s);
                taken.err().map(|error| error.to_string())
            }
            Err(error) => {
                entry.provider.failed(fetch, now_s);
                Some(error.to_string())
            }
        };
        match failure {
            Some(failure) => {
                let failure = bounded(&format!("{}: {failure}", fetch.url));
                tracing::debug!(issuer = %id, failure, "a fetch of its provider failed");
                entry.failure = Some(failure);
            }
            None if entry.provider.failures() == 0 => entry.failure = None,
            None => {}
        }
    }

    /// Does what has to be done about each provider. What can't be done now is tried again.
    async fn settle(&self) {
        let live = self.governor.live();
        let now_s = self.now_s();
        let steps: Vec<(RootId, u64, Step)> = {
            let entries = self.entries.lock();
            let steps = |(id, entry): (&RootId, &Entry)| {
                let steps = entry.steps(id, &live.model, now_s).into_iter();
                steps.map(|step| (id.clone(), entry.life, step)).collect::<Vec<_>>()
            };
            entries.iter().flat_map(steps).collect()
        };
        for (id, life, step) in steps {
            let done = self.step(&id, &step).await;
            let mut entries = self.entries.lock();
            let Some(entry) = entries.get_mut(&id).filter(|entry| entry.life == life) else { continue };
            entry.done(&id, &step, done.err().map(|error| error.to_string()));
        }
    }

    async fn step(&self, id: &RootId, step: &Step) -> Result<(), Refusal> {
        match step {
            Step::Publish(fetched) => {
                let keys = KeySet::parse(fetched.document.as_bytes());
                let keys: Vec<String> = keys.map(|keys| keys.thumbprints().collect()).unwrap_or_default();
                let detail = format!("keys of issuer `{id}` fetched of its provider: {}", keys.join(" "));
                let edit = |draft: &mut Draft| draft.put_fetched(fetched);
                // A key that is not among them any more may be in other hands.
                self.governor.change_by(Manner::Forced, |()| detail.clone(), edit).await.map(drop)
            }
            Step::Withdraw => {
                let detail = format!(
                    "keys of issuer `{id}` withdrawn: its provider did not confirm them for as long as they may be stale"
                );
                let edit = |draft: &mut Draft| draft.withdraw_fetched(id);
                self.governor.withdraw(|()| detail.clone(), edit).await.map(drop)
            }
            Step::Confirm(fetched) => {
                let key = format!("{FETCHED}{id}");
                self.governor.confirm(&key, fetched, |model| fetched.counts_in(model)).await
            }
            Step::Tell(detail, _) => {
                let generation = self.governor.live().model.generation;
                let mut record = self.governor.audit.record(RecordKind::Change, generation);
                record.detail = Some(detail.clone());
                Ok(self.governor.audit.append(vec![record]).await?)
            }
        }
    }
}

// === impl Entry ===

impl Entry {
    fn new(
        issuer: &IssuerRecord,
        record: &ProviderRecord,
        kept: Option<Fetched>,
        life: u64,
    ) -> Result<Entry, String> {
        let mut spread = [0];
        getrandom::fill(&mut spread).map_err(|error| error.to_string())?;
        let mut provider =
            Provider::new(&issuer.issuer, record, spread[0]).map_err(|error| error.to_string())?;
        let mut written = None;
        if let Some(kept) = kept {
            let restored = provider.restore(kept.document.as_bytes(), kept.confirmed_s, kept.fresh_s);
            // Without them it is asked anew.
            if let Err(error) = restored {
                tracing::error!(issuer = %issuer.id, %error, "the stored keys can't be used");
            } else {
                written = Some((kept.confirmed_s, kept.fresh_s));
            }
        }
        Ok(Entry {
            life,
            issuer: issuer.issuer.clone(),
            record: record.clone(),
            provider,
            written,
            is_told_failing: false,
            failure: None,
            trouble: None,
        })
    }

    /// Its keys as the store is to hold them.
    fn fetched(&self, id: &RootId) -> Option<Fetched> {
        let (confirmed_s, fresh_s) = self.provider.confirmed()?;
        let document = String::from_utf8(self.provider.document().0.to_vec()).ok()?;
        let (issuer, provider) = (self.issuer.clone(), self.record.clone());
        Some(Fetched { id: id.clone(), issuer, provider, document, confirmed_s, fresh_s })
    }

    fn steps(&self, id: &RootId, model: &Model, now_s: i64) -> Vec<Step> {
        let mut steps = Vec::new();
        let published = model.fetched.get(id).map(|fetched| fetched.document.as_bytes());
        let counting = self.provider.in_force(now_s);
        match (counting, self.fetched(id)) {
            (Some(document), Some(fetched)) if published != Some(document) => {
                steps.push(Step::Publish(fetched));
            }
            (Some(_), Some(fetched)) if self.written != Some((fetched.confirmed_s, fetched.fresh_s)) => {
                steps.push(Step::Confirm(fetched));
            }
            (None, _) if published.is_some() => steps.push(Step::Withdraw),
            _ => {}
        }
        let failing_since = self.provider.failing_since_s();
        if failing_since.is_some() != self.is_told_failing {
            let told = match (&self.failure, failing_since) {
                (failure, Some(_)) => {
                    let until = self.provider.ends_s().filter(|_| counting.is_some()).and_then(time);
                    let until = until.map_or("it has no keys that count".to_owned(), |until| {
                        format!("its keys count until {until}")
                    });
                    let why = failure.as_deref().unwrap_or("no answer");
                    format!("the provider of issuer `{id}` fails: {why}; {until}")
                }
                (_, None) => format!("the provider of issuer `{id}` answers again"),
            };
            steps.push(Step::Tell(told, failing_since.is_some()));
        }
        steps
    }

    /// Takes note of how a step went.
    fn done(&mut self, id: &RootId, step: &Step, failure: Option<String>) {
        let is_new = failure != self.trouble;
        self.trouble.clone_from(&failure);
        if let Some(error) = failure {
            if is_new {
                tracing::error!(issuer = %id, error, "what its provider says can't be put in force or kept");
            }
            return;
        }
        match step {
            Step::Publish(fetched) | Step::Confirm(fetched) => {
                self.written = Some((fetched.confirmed_s, fetched.fresh_s));
            }
            Step::Withdraw => self.written = None,
            Step::Tell(told, is_failing) => {
                self.is_told_failing = *is_failing;
                if *is_failing {
                    tracing::warn!("{told}");
                } else {
                    tracing::info!("{told}");
                }
            }
        }
    }

    fn status(&self, id: &RootId, now_s: i64) -> ProviderStatus {
        let provider = &self.provider;
        let (state, keys) = match provider.keys(now_s) {
            None => (KeysState::None, Vec::new()),
            Some(keys) if provider.is_stale(now_s) => (KeysState::Stale, keys.thumbprints().collect()),
            Some(keys) => (KeysState::Fresh, keys.thumbprints().collect()),
        };
        let pause_s = Some(provider.pause_until_s()).filter(|until_s| *until_s > now_s);
        let next_s = pause_s.unwrap_or_else(|| provider.due_s().unwrap_or(now_s).max(now_s));
        ProviderStatus {
            issuer: id.clone(),
            state,
            keys,
            confirmed_at: provider.confirmed().and_then(|(confirmed_s, _)| time(confirmed_s)),
            fresh_until: provider.due_s().and_then(time),
            counts_until: provider.ends_s().and_then(time),
            next_fetch_at: time(next_s),
            failures: provider.failures(),
            failing_since: provider.failing_since_s().and_then(time),
            error: self.failure.clone().or_else(|| self.trouble.clone()),
        }
    }
}

/// What to fetch, and how.
fn target(fetch: &Fetch, record: &ProviderRecord) -> Target {
    let bytes_max = match fetch.what {
        What::Discovery => DISCOVERY_BYTES_MAX,
        What::Keys => JWKS_BYTES_MAX,
    };
    let (by, networks) = (By::Host(record.ca.clone()), record.networks.clone());
    Target { url: fetch.url.clone(), bytes_max, by, networks }
}

pub(super) fn time(s: i64) -> Option<Timestamp> {
    Timestamp::from_second(s).ok()
}

/// Words of another machine: of bounded length, without control characters.
pub(super) fn bounded(text: &str) -> String {
    let end = text.floor_char_boundary(ERROR_BYTES_MAX);
    text.get(..end).unwrap_or_default().chars().filter(|c| !c.is_control()).collect()
}
