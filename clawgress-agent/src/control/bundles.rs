//! Bundles of trust domains that come of a source: followed, put in force, kept over restarts, and withdrawn when their
//! time is over or their source takes them back. What counts until when is [`FollowedBundle`]'s to say; the Workload
//! API is in [`workload`].
//!
//! INVARIANT: a bundle that counts no longer is withdrawn even if that can't be recorded now, and one of a trust domain
//! that is followed otherwise now, or that nobody configured, is never used.

mod workload;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use clawgress_api::clock::Clock;
use clawgress_api::config::WorkloadEndpoint;
use clawgress_api::{BundleStatus, KeysState, RecordKind};
use clawgress_identity::{
    BundleEndpointRecord, BundleSource, EndpointProfile, FollowedBundle, JWKS_BYTES_MAX, Retry, RootId,
    SpiffeBundle, TrustDomain, TrustDomainName, TrustDomainRecord,
};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::authorities::trusted;
use super::fetch::{self, Answer, By, FetchError, Target};
use super::govern::Governor;
use super::model::{Draft, Model, Refusal};
use super::prepare::Manner;
use super::providers::{bounded, time};

/// Keys of bundles that came of a source.
pub(super) const TRUST_BUNDLE: &str = "trust-bundle/";
/// Fetches at once: a start with many endpoints must not be a burst of connections.
const FETCHES_MAX: usize = 16;
/// Longest sleep until times are looked at again: the clock may have been set meanwhile.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// First pause after an endpoint failed, which doubles up to the longest, seconds: as with identity providers.
const PAUSE_S: (u32, u32) = (5, 5 * 60);
/// Longest time between two notes of when a bundle was confirmed that is confirmed all the time, seconds: what a restart
/// loses of it at most.
const NOTE_S_MAX: i64 = 60;
/// Trust domains that nobody configured, which are remembered so that each is told once: more are one fault.
const IGNORED_MAX: usize = 64;

/// A bundle of a source, as the store holds it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FetchedBundle {
    /// Of which trust domain.
    pub id: RootId,
    /// Its name then.
    pub domain: TrustDomainName,
    /// Where it came from.
    pub source: BundleSource,
    /// The bundle.
    pub document: String,
    /// When its source last confirmed it, Unix seconds.
    pub confirmed_s: i64,
    /// How long it counts as fresh since, seconds.
    pub fresh_s: u32,
}

/// Every bundle that is followed.
#[derive(Debug)]
pub(super) struct Bundles {
    governor: Arc<Governor>,
    clock: Arc<dyn Clock>,
    entries: Mutex<BTreeMap<RootId, Entry>>,
    foreign: Mutex<Foreign>,
    wake: Notify,
}

/// Trust domains of which the Workload API has bundles and that nobody configured for it.
#[derive(Debug, Default)]
struct Foreign {
    /// Those that it has now.
    now: BTreeSet<String>,
    /// Those that audit was told of.
    told: BTreeSet<String>,
}

#[derive(Debug)]
struct Entry {
    /// Tells answers to it from those to a former one of its name.
    life: u64,
    record: TrustDomainRecord,
    source: BundleSource,
    followed: FollowedBundle,
    retry: Retry,
    /// Whether an endpoint is being asked.
    is_asked: bool,
    /// What the Workload API said last, of what number.
    heard: u64,
    /// Whether the Workload API stands by it now.
    is_live: bool,
    /// When the stored bundle was confirmed, as far as it is written.
    written: Option<(i64, u32)>,
    is_told_failing: bool,
    /// Why it was last that it could not be had; `None` once it could.
    failure: Option<String>,
    /// Why what there is can't be put in force, or written.
    trouble: Option<String>,
}

/// What has to be done about a bundle.
enum Step {
    Publish(FetchedBundle),
    Withdraw(String),
    Confirm(FetchedBundle),
    Tell(String, bool),
}

// === impl FetchedBundle ===

impl FetchedBundle {
    /// Whether it is of a trust domain that there is, and is followed now as it was then.
    pub(super) fn counts_in(&self, model: &Model) -> bool {
        model.trust_domains.get(&self.id).is_some_and(|record| self.is_of(record))
    }

    fn is_of(&self, record: &TrustDomainRecord) -> bool {
        let is_followed = record.source.as_ref().is_some_and(|source| source.asks_as(&self.source));
        is_followed && record.id == self.id && record.domain == self.domain
    }
}

// === impl Bundles ===

impl Bundles {
    /// With what the store holds, less what counts no longer.
    pub(super) async fn open(governor: Arc<Governor>, clock: Arc<dyn Clock>) -> Self {
        let bundles = Bundles {
            governor,
            clock,
            entries: Mutex::default(),
            foreign: Mutex::default(),
            wake: Notify::new(),
        };
        bundles.take_up();
        bundles.settle().await;
        bundles
    }

    fn now_s(&self) -> i64 {
        self.clock.now().as_second()
    }

    fn workload_api(&self) -> Option<&WorkloadEndpoint> {
        self.governor.config.spiffe.workload_api.as_ref()
    }

    /// Follows until `stop`.
    pub(super) async fn run(&self, stop: CancellationToken) {
        tokio::join!(self.run_steps(stop.clone()), self.run_workload(stop));
    }

    async fn run_steps(&self, stop: CancellationToken) {
        let mut live = self.governor.watch();
        let mut fetching = JoinSet::new();
        loop {
            live.mark_unchanged();
            self.take_up();
            self.settle().await;
            for (id, life, target) in self.due(FETCHES_MAX.saturating_sub(fetching.len())) {
                fetching.spawn(async move { (id, life, fetch::fetch(target).await) });
            }
            let is_idle = self.entries.lock().is_empty();
            tokio::select! {
                () = stop.cancelled() => return,
                changed = live.changed() => if changed.is_err() { return },
                Some(done) = fetching.join_next() => match done {
                    Ok((id, life, answer)) => self.take(&id, life, answer),
                    Err(error) => self.lost(&error.to_string()),
                },
                () = self.wake.notified() => {}
                () = tokio::time::sleep(LOOK_AGAIN), if !is_idle => {}
            }
        }
    }

    /// How each source is, as far as there are any.
    pub(super) fn status(&self) -> Vec<BundleStatus> {
        let now_s = self.now_s();
        let ignored: Vec<String> = self.foreign.lock().now.iter().cloned().collect();
        let (entries, at) = (self.entries.lock(), self.workload_api());
        entries.iter().map(|(id, entry)| entry.status(id, at, &ignored, now_s)).collect()
    }

    /// Takes up the trust domains of the live generation, and lets go of the others.
    fn take_up(&self) {
        let live = self.governor.live();
        let mut entries = self.entries.lock();
        let domains = &live.model.trust_domains;
        entries.retain(|id, _| domains.get(id).is_some_and(|record| record.source.is_some()));
        for (id, record) in domains {
            let Some(source) = &record.source else { continue };
            let former = entries.get(id);
            if former.is_some_and(|entry| entry.record == *record) {
                continue;
            }
            let kept = former.and_then(|e| e.fetched(id)).or_else(|| live.model.bundles.get(id).cloned());
            let life = former.map_or(0, |entry| entry.life) + 1;
            match Entry::new(record, source, kept.filter(|kept| kept.is_of(record)), life) {
                Ok(entry) => drop(entries.insert(id.clone(), entry)),
                Err(error) => {
                    tracing::error!(trust_domain = %id, error, "its bundle can't be followed");
                    entries.remove(id);
                }
            }
        }
    }

    /// What is to be fetched now, so many at most.
    fn due(&self, max: usize) -> Vec<(RootId, u64, Target)> {
        let (now_s, live) = (self.now_s(), self.governor.live());
        let mut due = Vec::new();
        for (id, entry) in self.entries.lock().iter_mut() {
            if due.len() >= max {
                break;
            }
            let BundleSource::Endpoint(record) = &entry.source else { continue };
            let waits = entry.retry.pause(now_s).is_some() || entry.followed.is_fresh(now_s);
            if entry.is_asked || waits {
                continue;
            }
            match entry.by(record, &live.model) {
                Ok(by) => {
                    let (url, networks) = (record.url.clone(), record.networks.clone());
                    due.push((
                        id.clone(),
                        entry.life,
                        Target { url, bytes_max: JWKS_BYTES_MAX, by, networks },
                    ));
                    entry.is_asked = true;
                }
                Err(error) => entry.failed(id, error, now_s),
            }
        }
        due
    }

    /// Takes note that a fetch ended without an answer, of whichever endpoint: all that are being asked are asked again.
    fn lost(&self, error: &str) {
        let now_s = self.now_s();
        for (id, entry) in self.entries.lock().iter_mut().filter(|(_, entry)| entry.is_asked) {
            entry.is_asked = false;
            entry.failed(id, format!("the fetch ended: {error}"), now_s);
        }
    }

    /// Takes the answer of an endpoint.
    fn take(&self, id: &RootId, life: u64, answer: Result<Answer, FetchError>) {
        let now_s = self.now_s();
        let mut entries = self.entries.lock();
        let Some(entry) = entries.get_mut(id).filter(|entry| entry.life == life) else { return };
        entry.is_asked = false;
        let BundleSource::Endpoint(record) = &entry.source else { return };
        let (url, fresh_s_max) = (record.url.clone(), record.fresh_s_max);
        let taken = answer.map_err(|error| error.to_string()).and_then(|answer| {
            let document = String::from_utf8(answer.body).map_err(|_| "it is not UTF-8".to_owned())?;
            let fresh_s = FollowedBundle::fresh_s(&document, fresh_s_max);
            let taken = fresh_s.and_then(|fresh_s| entry.followed.take(&document, fresh_s, now_s));
            taken.map_err(|error| error.to_string())
        });
        match taken {
            Ok(_) => entry.succeeded(),
            Err(error) => entry.failed(id, format!("{url}: {error}"), now_s),
        }
    }

    /// Does what has to be done about each bundle. What can't be done now is tried again.
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
        self.tell_foreign().await;
    }

    async fn step(&self, id: &RootId, step: &Step) -> Result<(), Refusal> {
        match step {
            Step::Publish(bundle) => {
                let trusts = SpiffeBundle::parse(bundle.document.as_bytes()).map(|b| trusted(&b));
                let trusts = trusts.unwrap_or_default();
                let detail = format!("bundle of trust domain `{id}` came of its source: {trusts}");
                let edit = |draft: &mut Draft| draft.put_bundle(bundle);
                // A key that is not in it any more may be in other hands.
                self.governor.change_by(Manner::Forced, |()| detail.clone(), edit).await.map(drop)
            }
            Step::Withdraw(why) => {
                let detail = format!("bundle of trust domain `{id}` withdrawn: {why}");
                let edit = |draft: &mut Draft| {
                    draft.withdraw_bundle(id);
                    Ok(())
                };
                self.governor.withdraw(|()| detail.clone(), edit).await.map(drop)
            }
            Step::Confirm(bundle) => {
                let key = format!("{TRUST_BUNDLE}{id}");
                self.governor.confirm(&key, bundle, |model| bundle.counts_in(model)).await
            }
            Step::Tell(detail, _) => self.tell(detail).await,
        }
    }

    async fn tell(&self, detail: &str) -> Result<(), Refusal> {
        let generation = self.governor.live().model.generation;
        let mut record = self.governor.audit.record(RecordKind::Change, generation);
        record.detail = Some(detail.to_owned());
        Ok(self.governor.audit.append(vec![record]).await?)
    }

    /// Tells once of each trust domain that the Workload API has a bundle of and that nobody configured.
    async fn tell_foreign(&self) {
        let new: Vec<String> = {
            let foreign = self.foreign.lock();
            let left = IGNORED_MAX.saturating_sub(foreign.told.len());
            foreign.now.difference(&foreign.told).take(left).cloned().collect()
        };
        if new.is_empty() {
            return;
        }
        let detail = format!(
            "the Workload API has bundles of trust domains that are not configured to come by it, and are not trusted \
             for it: {}",
            bounded(&new.join(" "))
        );
        if self.tell(&detail).await.is_ok() {
            tracing::warn!("{detail}");
            self.foreign.lock().told.extend(new);
        }
    }
}

// === impl Entry ===

impl Entry {
    fn new(
        record: &TrustDomainRecord,
        source: &BundleSource,
        kept: Option<FetchedBundle>,
        life: u64,
    ) -> Result<Entry, String> {
        let mut spread = [0];
        getrandom::fill(&mut spread).map_err(|error| error.to_string())?;
        let mut followed = FollowedBundle::new(source.stale_s_max());
        let mut written = None;
        if let Some(kept) = kept {
            // Without it, it is asked for anew.
            // What is configured may be less than it was.
            let fresh_s = kept.fresh_s.min(match source {
                BundleSource::WorkloadApi(_) => workload::FRESH_S,
                BundleSource::Endpoint(endpoint) => endpoint.fresh_s_max,
            });
            match followed.restore(&kept.document, kept.confirmed_s, fresh_s) {
                Ok(()) => written = Some((kept.confirmed_s, kept.fresh_s)),
                Err(error) => {
                    tracing::error!(trust_domain = %record.id, %error, "the stored bundle can't be used");
                }
            }
        }
        Ok(Entry {
            life,
            record: record.clone(),
            source: source.clone(),
            followed,
            retry: Retry::new(PAUSE_S.0, PAUSE_S.1, spread[0]),
            is_asked: false,
            heard: 0,
            is_live: false,
            written,
            is_told_failing: false,
            failure: None,
            trouble: None,
        })
    }

    /// By what its endpoint is known now (SPIFFE Federation sections 5.2.1.4 and 5.2.2.4).
    fn by(&self, record: &BundleEndpointRecord, model: &Model) -> Result<By, String> {
        let EndpointProfile::HttpsSpiffe(id) = &record.profile else {
            return Ok(By::Host(record.ca.clone()));
        };
        let name = id.domain();
        let bundle = if *name == self.record.domain {
            // The first one only begins: its keys may have been taken out since.
            self.followed
                .last()
                .cloned()
                .map_or_else(|| SpiffeBundle::parse(self.record.bundle.as_bytes()), Ok)
        } else {
            let mut domains = model.trust_domains.values();
            let domain = domains.find(|domain| domain.domain == *name).ok_or_else(|| {
                format!(
                    "its endpoint is of trust domain `{name}`, which is not configured: add it with `clawgressctl \
                     trust-domain set`"
                )
            })?;
            let fetched = model.bundles.get(&domain.id).map(|bundle| bundle.document.clone());
            let domain = TrustDomain::with_fetched(domain.clone(), fetched);
            Ok(domain
                .map_err(|error| format!("trust domain `{name}` of its endpoint: {error}"))?
                .bundle()
                .clone())
        };
        let bundle = bundle.map_err(|error| error.to_string())?;
        Ok(By::Svid(Box::new(bundle), id.clone()))
    }

    fn succeeded(&mut self) {
        self.retry.succeeded();
        self.failure = None;
    }

    fn failed(&mut self, id: &RootId, failure: String, now_s: i64) {
        let failure = bounded(&failure);
        tracing::debug!(trust_domain = %id, failure, "its bundle can't be had");
        self.failure = Some(failure);
        self.is_live = false;
        self.retry.failed(now_s);
    }

    /// Its bundle as the store is to hold it.
    fn fetched(&self, id: &RootId) -> Option<FetchedBundle> {
        let (confirmed_s, fresh_s) = self.followed.confirmed()?;
        // Whether it counts is for others to say.
        let document = self.followed.document()?.to_owned();
        let (domain, source) = (self.record.domain.clone(), self.source.clone());
        Some(FetchedBundle { id: id.clone(), domain, source, document, confirmed_s, fresh_s })
    }

    fn steps(&self, id: &RootId, model: &Model, now_s: i64) -> Vec<Step> {
        let mut steps = Vec::new();
        let published = model.bundles.get(id).map(|bundle| bundle.document.as_str());
        let counting = self.followed.in_force(now_s).map(|(_, document)| document);
        match (counting, self.fetched(id)) {
            (Some(document), Some(bundle)) if published != Some(document) => {
                steps.push(Step::Publish(bundle))
            }
            (Some(_), Some(bundle)) if self.is_to_be_noted() => steps.push(Step::Confirm(bundle)),
            (None, kept) if published.is_some() => steps.push(Step::Withdraw(match kept {
                None => "its source has it no more".to_owned(),
                Some(_) => "its source did not confirm it for as long as it may be stale".to_owned(),
            })),
            _ => {}
        }
        let failing_since = self.retry.since_s();
        if failing_since.is_some() != self.is_told_failing {
            let told = if failing_since.is_some() {
                let until = self.followed.ends_s().filter(|_| counting.is_some()).and_then(time);
                let until = until.map_or("it has none that counts".to_owned(), |until| {
                    format!("the last one counts until {until}")
                });
                let why = self.failure.as_deref().unwrap_or("no answer");
                format!("the source of the bundle of trust domain `{id}` fails: {why}; {until}")
            } else {
                format!("the source of the bundle of trust domain `{id}` answers again")
            };
            steps.push(Step::Tell(told, failing_since.is_some()));
        }
        steps
    }

    /// Whether it was confirmed later than is written, by so much that it matters.
    fn is_to_be_noted(&self) -> bool {
        let (Some(is), written) = (self.followed.confirmed(), self.written) else { return false };
        let Some(was) = written else { return true };
        let every_s = i64::from(self.source.stale_s_max()).checked_div(4).unwrap_or(0).clamp(1, NOTE_S_MAX);
        // One that is confirmed all the time is written now and then, and once more when that ends.
        is != was && (!self.is_live || is.1 != was.1 || is.0.abs_diff(was.0) >= every_s.unsigned_abs())
    }

    /// Takes note of how a step went.
    fn done(&mut self, id: &RootId, step: &Step, failure: Option<String>) {
        let is_new = failure != self.trouble;
        self.trouble.clone_from(&failure);
        if let Some(error) = failure {
            if is_new {
                tracing::error!(trust_domain = %id, error, "its bundle can't be put in force or kept");
            }
            return;
        }
        match step {
            Step::Publish(bundle) | Step::Confirm(bundle) => {
                self.written = Some((bundle.confirmed_s, bundle.fresh_s));
            }
            Step::Withdraw(_) => self.written = None,
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

    fn status(
        &self,
        id: &RootId,
        workload_api: Option<&WorkloadEndpoint>,
        ignored: &[String],
        now_s: i64,
    ) -> BundleStatus {
        let counting = self.followed.in_force(now_s).map(|(bundle, _)| bundle);
        let state = match counting {
            None => KeysState::None,
            Some(_) if self.followed.is_stale(now_s) => KeysState::Stale,
            Some(_) => KeysState::Fresh,
        };
        let (source, next_s, ignored) = match &self.source {
            BundleSource::WorkloadApi(_) => {
                let at = workload_api
                    .map_or("nowhere: [spiffe] is not configured".to_owned(), ToString::to_string);
                (format!("workload api, {at}"), None, ignored.to_vec())
            }
            BundleSource::Endpoint(record) => {
                let profile = match &record.profile {
                    EndpointProfile::HttpsWeb => "https_web".to_owned(),
                    EndpointProfile::HttpsSpiffe(id) => format!("https_spiffe, {id}"),
                };
                let next_s =
                    self.retry.pause(now_s).unwrap_or(self.followed.due_s().unwrap_or(now_s).max(now_s));
                (format!("bundle endpoint, {} ({profile})", record.url), Some(next_s), Vec::new())
            }
        };
        BundleStatus {
            trust_domain: id.clone(),
            source,
            state,
            certificates: counting.map(|b| b.thumbprints().to_vec()).unwrap_or_default(),
            keys: counting.map(|b| b.keys().thumbprints().collect()).unwrap_or_default(),
            sequence: counting.and_then(|b| b.sequence),
            confirmed_at: self.followed.confirmed().and_then(|(confirmed_s, _)| time(confirmed_s)),
            fresh_until: self.followed.due_s().and_then(time),
            counts_until: self.followed.ends_s().and_then(time),
            next_fetch_at: next_s.and_then(time),
            failures: self.retry.failures(),
            failing_since: self.retry.since_s().and_then(time),
            error: self.failure.clone().or_else(|| self.trouble.clone()),
            ignored,
        }
    }
}

// === impl Draft ===

impl Draft {
    /// Puts a bundle in force, if its trust domain still follows it as it was.
    ///
    /// # Errors
    /// If it can't be stored.
    pub(super) fn put_bundle(&mut self, bundle: &FetchedBundle) -> Result<(), Refusal> {
        if !bundle.counts_in(&self.model) {
            return Ok(());
        }
        self.put(&format!("{TRUST_BUNDLE}{}", bundle.id), bundle)?;
        self.model.bundles.insert(bundle.id.clone(), bundle.clone());
        self.governs = true;
        Ok(())
    }

    /// Takes a bundle of a source out of force, if there is one.
    pub(super) fn withdraw_bundle(&mut self, id: &RootId) {
        if self.model.bundles.remove(id).is_some() {
            self.delete(format!("{TRUST_BUNDLE}{id}"));
            self.governs = true;
        }
    }

    /// Takes it out of force if its trust domain is gone, or followed otherwise now.
    pub(super) fn let_go_of_bundle(&mut self, id: &RootId) {
        if self.model.bundles.get(id).is_some_and(|bundle| !bundle.counts_in(&self.model)) {
            self.withdraw_bundle(id);
        }
    }
}
