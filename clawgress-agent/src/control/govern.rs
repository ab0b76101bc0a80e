//! Changes: each is checked and compiled whole, committed in one transaction under the next generation's
//! number, then published to both planes. A change that fails anywhere before its commit alters nothing.
//! Its audit record is committed with it and taken out of the store when it is in the log: whatever ends
//! this process in between, the next start puts it there. Twice is possible, missing is not.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use clawgress_api::clock::Clock;
use clawgress_api::config::Config;
use clawgress_api::{AuditRecord, RecordKind};
use clawgress_identity::PolicyOwner;
use clawgress_policy::GeoNames;
use futures_util::StreamExt as _;
use serde::Serialize;
use tokio::sync::{Mutex, watch};
use tokio_util::sync::CancellationToken;

use self::turns::Tried;
pub(super) use self::turns::zone;
use super::audit::AuditLog;
pub use super::generation::Generation;
use super::geo::GeoInForce;
use super::in_force::{self, InForce, Unusable};
use super::model::{Draft, GENERATION, Model, Refusal, Window, parse};
use super::prepare::{Candidate, Manner, Planes};
use super::render::{Former, render};
use super::signatures::Signatures;
use super::store::{Condition, StateStore, StoreError, Transaction, Write};

mod turns;

/// Times a change is tried again when another node's change comes first; more is a fault, not a race.
const CONFLICTS_MAX: usize = 5;

/// Keys of the records of changes that are not known to be in the audit log yet.
const PENDING: &str = "pending/";

/// Makes changes, one at a time.
#[derive(Debug)]
pub struct Governor {
    pub(super) config: Arc<Config>,
    pub(super) store: Arc<dyn StateStore>,
    pub(super) audit: AuditLog,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) signatures: Arc<Signatures>,
    /// Held while a revision is made.
    pub(super) revising: Mutex<()>,
    pub(super) live: watch::Sender<Arc<Generation>>,
    /// Why the last turn of a condition on time could not be made.
    late: parking_lot::Mutex<Option<String>>,
    /// Held while a change is made, so that two of this process never race.
    turn: Mutex<()>,
    /// Held while one is prepared and then made, with that lock free in between: what must not wait comes in there.
    preparing: Mutex<()>,
    /// Who prepares; nobody before there are planes.
    planes: OnceLock<Planes>,
    /// Numbers of what was to be prepared.
    candidates: AtomicU64,
    /// How many changes were forced: one may give something, too.
    forced: AtomicU64,
    /// When policies that lack room were last tried.
    tried: parking_lot::Mutex<Option<Tried>>,
}

/// A change that is whole, and not committed.
struct Drafted<T> {
    done: T,
    governs: bool,
    generation: Generation,
    transaction: Transaction,
    record: AuditRecord,
}

/// Most bytes of what a record says of a change: with JSON's escapes, well below what the log takes.
const DETAIL_BYTES_MAX: usize = 24 << 10;

/// `detail`, cut where it is too long for a record: a change that can't be recorded would be one that nobody
/// sees, and that the next start can't get past.
fn bounded(mut detail: String) -> String {
    if detail.len() > DETAIL_BYTES_MAX {
        let bytes = detail.len();
        detail.truncate(detail.floor_char_boundary(DETAIL_BYTES_MAX));
        detail.push_str(&format!("… ({bytes} bytes)"));
    }
    detail
}

// === impl Governor ===

impl Governor {
    /// Loads what the store holds, records the changes of this node that were committed and not recorded, and signs
    /// the revisions of the time before signatures.
    ///
    /// # Errors
    /// If the store fails or isn't understood, the audit log can't be written, or the keys role can't be asked about the
    /// signature of a policy: both planes then go on with what they have, for as long as they may.
    pub async fn open(
        (config, store, audit, clock): (Arc<Config>, Arc<dyn StateStore>, AuditLog, Arc<dyn Clock>),
        signatures: Arc<Signatures>,
    ) -> Result<Self, Refusal> {
        let live = watch::Sender::new(Arc::new(load(store.as_ref(), &signatures).await?));
        let governor = Governor {
            config,
            store,
            audit,
            clock,
            signatures,
            revising: Mutex::new(()),
            live,
            late: parking_lot::Mutex::default(),
            turn: Mutex::new(()),
            preparing: Mutex::new(()),
            planes: OnceLock::new(),
            candidates: AtomicU64::new(0),
            forced: AtomicU64::new(0),
            tried: parking_lot::Mutex::default(),
        };
        let pending = governor.store.scan(&governor.pending(""), None).await?;
        let pending = pending.entries.iter().map(parse).collect::<Result<Vec<AuditRecord>, _>>();
        let mut pending = pending?;
        pending.sort_by_key(|record| record.time);
        // A name may begin with another's.
        for record in pending.into_iter().filter(|r| r.node == governor.config.node.name) {
            tracing::warn!(
                change = record.detail,
                "a change was committed and not recorded: recording it now"
            );
            governor.record(record).await?;
        }
        governor.settle_revisions().await?;
        Ok(governor)
    }

    /// The live generation.
    #[must_use]
    pub fn live(&self) -> Arc<Generation> {
        Arc::clone(&self.live.borrow())
    }

    /// The live generation, and every later one.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Arc<Generation>> {
        self.live.subscribe()
    }

    /// From now on, changes are prepared by these planes.
    pub(super) fn prepare_by(&self, planes: Planes) {
        // Once, at the start.
        let _ = self.planes.set(planes);
    }

    /// Makes a change that only gives: `edit` drafts it (again, if another change came first), planes prepare it, and it is committed.
    /// Returns what `edit` did and the generation in which it is live. `detail` tells the audit log who did what.
    ///
    /// # Errors
    /// If it is refused; then nothing was altered. Only [`Refusal::Audit`] can come after the commit.
    pub async fn change<T: Send>(
        &self,
        detail: impl Fn(&T) -> String + Send,
        edit: impl FnMut(&mut Draft) -> Result<T, Refusal> + Send,
    ) -> Result<(T, Arc<Generation>), Refusal> {
        self.change_by(Manner::Prepared, detail, edit).await
    }

    /// As [`change`](Self::change), in the manner that is right for it.
    ///
    /// # Errors
    /// As there.
    pub(super) async fn change_by<T: Send>(
        &self,
        manner: Manner,
        detail: impl Fn(&T) -> String + Send,
        edit: impl FnMut(&mut Draft) -> Result<T, Refusal> + Send,
    ) -> Result<(T, Arc<Generation>), Refusal> {
        // What can't be recorded isn't done.
        if let Some(failure) = self.audit.failure() {
            return Err(Refusal::Unavailable(format!("nothing can be changed now: {failure}")));
        }
        // Boxed, for what it holds of two generations.
        Box::pin(self.make(manner, detail, edit)).await
    }

    /// As [`change`](Self::change), for what only takes away: see [`Manner::Withdrawn`]. It is recorded by the next start at
    /// the latest.
    ///
    /// # Errors
    /// As there.
    pub(super) async fn withdraw<T: Send>(
        &self,
        detail: impl Fn(&T) -> String + Send,
        edit: impl FnMut(&mut Draft) -> Result<T, Refusal> + Send,
    ) -> Result<(T, Arc<Generation>), Refusal> {
        Box::pin(self.make(Manner::Withdrawn, detail, edit)).await
    }

    async fn make<T: Send>(
        &self,
        manner: Manner,
        detail: impl Fn(&T) -> String + Send,
        mut edit: impl FnMut(&mut Draft) -> Result<T, Refusal> + Send,
    ) -> Result<(T, Arc<Generation>), Refusal> {
        let _preparing = match manner {
            Manner::Prepared => Some(self.preparing.lock().await),
            Manner::Forced | Manner::Withdrawn => None,
        };
        // What was live when the planes accepted it.
        let mut accepted = None::<(Arc<Generation>, u64)>;
        for _ in 0..CONFLICTS_MAX {
            let mut turn = self.turn.lock().await;
            let (before, forced) = (self.live(), self.forced.load(Ordering::Relaxed));
            let mut draft = Draft::new(before.model.clone());
            let done = edit(&mut draft)?;
            if draft.writes.is_empty() {
                return Ok((done, before));
            }
            let mut drafted = self.finish(draft, &before, self.window(), (&detail, done)).await;
            if manner == Manner::Withdrawn && drafted.as_ref().is_err_and(Refusal::is_of_policies) {
                let mut draft = Draft::new(before.model.clone());
                let done = edit(&mut draft)?;
                drafted = self.finish(draft, &before, before.model.window.clone(), (&detail, done)).await;
            }
            let mut drafted = drafted?;
            // Who accepted it accepts what gives less.
            let is_known = accepted.as_ref().is_some_and(|(accepted, forced_then)| {
                *forced_then == forced && before.gives_no_more_than(accepted)
            });
            if manner == Manner::Prepared && drafted.governs && !is_known {
                drop(turn);
                self.prepare(&mut drafted.generation).await?;
                turn = self.turn.lock().await;
                accepted = Some((Arc::clone(&before), forced));
                if !Arc::ptr_eq(&before, &self.live()) {
                    continue;
                }
            }
            match self.commit(drafted).await {
                Ok((done, generation, record)) => {
                    let generation = Arc::new(generation);
                    self.live.send_replace(Arc::clone(&generation));
                    if manner == Manner::Forced {
                        self.forced.fetch_add(1, Ordering::Relaxed);
                    }
                    self.record(record).await?;
                    drop(turn);
                    return Ok((done, generation));
                }
                Err(Refusal::Store(StoreError::Conflict(_))) => {
                    self.live.send_replace(Arc::new(load(self.store.as_ref(), &self.signatures).await?));
                }
                Err(other) => return Err(other),
            }
        }
        Err(Refusal::Unavailable("too many changes at once; try again".into()))
    }

    /// Has the planes prepare it.
    async fn prepare(&self, generation: &mut Generation) -> Result<(), Refusal> {
        let Some(planes) = self.planes.get() else { return Ok(()) };
        let candidate = Candidate {
            number: self.candidates.fetch_add(1, Ordering::Relaxed) + 1,
            generation: generation.model.generation,
            snapshot: Arc::clone(&generation.snapshot),
            kernel: Arc::clone(&generation.kernel),
        };
        generation.candidate = candidate.number;
        planes.prepare(&Arc::new(candidate)).await
    }

    /// A draft as the generation that it makes, and what is written with it.
    async fn finish<T>(
        &self,
        mut draft: Draft,
        before: &Generation,
        window: Window,
        (detail, done): (impl Fn(&T) -> String, T),
    ) -> Result<Drafted<T>, Refusal> {
        let stored = draft.model.stored;
        if draft.governs {
            draft.model.generation += 1;
            draft.enter(window)?;
        }
        let number = draft.model.generation;
        // Written even if it stays the same: it is what concurrent changes are compared by.
        draft.put(GENERATION, &number)?;
        let mut record = self.audit.record(RecordKind::Change, number);
        record.detail = Some(bounded(detail(&done)));
        draft.put(&self.pending(&record.request), &record)?;
        let (governs, unusable) = (draft.governs, draft.unusable);
        let (model, writes) = draft.into_writes();
        let generation = if governs {
            let former = Former { in_force: before.in_force.clone(), tables: before.tables.clone() };
            render(model, former, unusable).await?
        } else {
            before.with(model)
        };
        let condition = match stored {
            Some(revision) => Condition::ModifiedAt(GENERATION.into(), revision),
            None => Condition::Absent(GENERATION.into()),
        };
        let transaction = Transaction { conditions: vec![condition], writes };
        Ok(Drafted { done, governs, generation, transaction, record })
    }

    async fn commit<T>(&self, drafted: Drafted<T>) -> Result<(T, Generation, AuditRecord), Refusal> {
        let Drafted { done, mut generation, transaction, record, .. } = drafted;
        generation.model.stored = Some(self.store.commit(transaction).await?);
        Ok((done, generation, record))
    }

    /// Writes the record of a committed change to the audit log, where it is durable on return, and takes it
    /// out of the store.
    pub(super) async fn record(&self, record: AuditRecord) -> Result<(), Refusal> {
        tracing::info!(generation = record.generation, change = record.detail, "changed");
        let key = self.pending(&record.request);
        self.audit.append(vec![record]).await?;
        let recorded = Transaction { conditions: vec![], writes: vec![Write::Delete(key)] };
        if let Err(error) = self.store.commit(recorded).await {
            tracing::warn!(%error, "the next start will record this change again");
        }
        Ok(())
    }

    /// Writes down, if it still counts, when something that was fetched was confirmed: nobody decides differently for it, so it is no generation and has
    /// no record.
    pub(super) async fn confirm(
        &self,
        key: &str,
        fetched: &impl Serialize,
        counts_in: impl Fn(&Model) -> bool,
    ) -> Result<(), Refusal> {
        let _turn = self.turn.lock().await;
        if !counts_in(&self.live().model) {
            return Ok(());
        }
        let json = serde_json::to_vec(fetched).map_err(|e| Refusal::Invalid(e.to_string()))?;
        let writes = vec![Write::Put(key.to_owned(), json)];
        self.store.commit(Transaction { conditions: vec![], writes }).await?;
        Ok(())
    }

    pub(super) fn pending(&self, request: &str) -> String {
        format!("{PENDING}{}/{request}", self.config.node.name)
    }

    /// Takes a generation number above `number`: the datapath has one that this store doesn't know of.
    ///
    /// # Errors
    /// If the store fails.
    pub async fn overtake(&self, number: u64) -> Result<(), Refusal> {
        let detail = format!(
            "the datapath runs generation {number}, which this store doesn't know: continuing after it"
        );
        let edit = |draft: &mut Draft| {
            if draft.model.generation < number {
                draft.model.generation = number;
                draft.governs = true;
                draft.put(GENERATION, &number)?;
            }
            Ok(())
        };
        self.change_by(Manner::Forced, |()| detail.clone(), edit).await.map(drop)
    }

    /// The moment that a generation made now is for.
    pub(super) fn window(&self) -> Window {
        Window { zone: self.config.time.zone.clone(), at: self.clock.now() }
    }

    /// The geo data that `text` names, as the files have them now.
    ///
    /// # Errors
    /// If a file that is needed can't be read or isn't understood.
    pub async fn geo_of(&self, text: &str) -> Result<Arc<GeoInForce>, Refusal> {
        let names = GeoNames::of(text);
        self.read_geo(names, false).await
    }

    /// The geo data that all policies name once `text` is this owner's, likewise.
    ///
    /// # Errors
    /// As [`geo_of`](Self::geo_of).
    pub(super) async fn geo_with(&self, owner: &PolicyOwner, text: &str) -> Result<Arc<GeoInForce>, Refusal> {
        self.geo_named(GeoNames::of(text).and(self.names_of_all(Some(owner)))).await
    }

    /// ASNs and countries that the live policies name, but this owner's.
    fn names_of_all(&self, but: Option<&PolicyOwner>) -> GeoNames {
        let live = self.live();
        let others = live.model.policies.iter().filter(|(owner, _)| Some(*owner) != but);
        let texts = others.filter_map(|(_, policy)| Some(policy.bundle.as_ref()?.text.as_str()));
        texts.fold(GeoNames::default(), |names, text| names.and(GeoNames::of(text)))
    }

    /// The geo data of these names, likewise.
    ///
    /// # Errors
    /// As [`geo_of`](Self::geo_of).
    pub(super) async fn geo_named(&self, names: GeoNames) -> Result<Arc<GeoInForce>, Refusal> {
        self.read_geo(names, false).await
    }

    async fn read_geo(&self, names: GeoNames, all: bool) -> Result<Arc<GeoInForce>, Refusal> {
        let config = self.config.geo.clone();
        blocking(move || Ok(Arc::new(GeoInForce::read(&config, &names, all)?))).await
    }

    /// Reads the geo data's files again, and puts them in force for the live policy: a new generation if any
    /// prefix changed. Whether one did. `by` tells the audit log who asked.
    ///
    /// # Errors
    /// If a file can't be used, or no longer has what policy names; then nothing was altered.
    pub async fn reload_geo(&self, by: &str) -> Result<bool, Refusal> {
        let live = self.live();
        let (names, revisions) = (self.names_of_all(None), live.model.revisions());
        // What nobody names is read all the same: that it can't be used is better known before.
        let geo = self.read_geo(names.clone(), true).await?;
        if names.is_empty() || *geo == *live.model.geo {
            return Ok(false);
        }
        let detail = |differs: &bool| {
            let sources = [&geo.asn, &geo.country].into_iter().flatten();
            let told: Vec<String> = sources
                .map(|s| {
                    format!(
                        "`{}` ({}, built {}, SHA-256 {})",
                        s.path.display(),
                        s.database,
                        s.built,
                        s.sha256
                    )
                })
                .collect();
            let what = if *differs { "" } else { ", with the same prefixes for what policy names" };
            format!("geo data reloaded by {by}: {}{what}", told.join(", "))
        };
        // Prefixes of what is forbidden may have come, and of what is permitted may have gone.
        let set = self.change_by(Manner::Forced, detail, |draft| draft.set_geo(&geo, &revisions));
        set.await.map(|(differs, _)| differs)
    }

    /// Follows changes that other nodes make to the same store.
    pub async fn follow(&self, stop: CancellationToken) {
        loop {
            let from = self.live().model.stored.unwrap_or(0) + 1;
            if let Ok(mut commits) = self.store.watch(GENERATION, from).await {
                while let Some(Ok(commit)) = tokio::select! {
                    () = stop.cancelled() => return,
                    commit = commits.next() => commit,
                } {
                    let _turn = self.turn.lock().await;
                    if self.live().model.stored.is_some_and(|known| known >= commit.revision) {
                        continue;
                    }
                    match load(self.store.as_ref(), &self.signatures).await {
                        Ok(generation) => drop(self.live.send_replace(Arc::new(generation))),
                        Err(error) => tracing::error!(%error, "cannot follow a change of another node"),
                    }
                }
            }
            // The watch fell behind what is kept, or the store failed: begin again from now, not in a spin.
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(Duration::from_secs(1)) => {}
            }
            let _turn = self.turn.lock().await;
            if let Ok(generation) = load(self.store.as_ref(), &self.signatures).await
                && generation.model.stored > self.live().model.stored
            {
                self.live.send_replace(Arc::new(generation));
            }
        }
    }
}

/// The stored model as a generation. A policy that this version refuses is not in force: deny.
pub(super) async fn load(store: &dyn StateStore, signatures: &Signatures) -> Result<Generation, Refusal> {
    let model = Model::load(store, signatures).await?;
    match render(model.clone(), Former::default(), Unusable::Suspend).await {
        Ok(generation) => Ok(generation),
        Err(refusal) => {
            let why = in_force::suspended(&refusal);
            tracing::error!(why, "the stored policies are refused together: everything is denied");
            let suspended = Former { in_force: InForce::suspended(&model, &why), tables: None };
            render(model, suspended, Unusable::Suspend).await
        }
    }
}

pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Refusal> + Send + 'static,
) -> Result<T, Refusal> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|e| Err(Refusal::Invalid(format!("the policy can't be compiled: {e}"))))
}
