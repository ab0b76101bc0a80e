//! Changes: each is checked and compiled whole, committed in one transaction under the next generation's
//! number, then published to both planes. A change that fails anywhere before its commit alters nothing.
//! Its audit record is committed with it and taken out of the store when it is in the log: whatever ends
//! this process in between, the next start puts it there. Twice is possible, missing is not.

use std::sync::Arc;

use clawgress_api::config::Config;
use clawgress_api::{AuditRecord, KernelGeneration, MESSAGE_BYTES_MAX, RecordKind, Snapshot};
use clawgress_ebpf_common::bound;
use clawgress_identity::Agent;
use clawgress_policy::kernel::{self, KernelTables};
use clawgress_policy::{PolicyBundle, PolicySet};
use futures_util::StreamExt as _;
use tokio::sync::{Mutex, watch};
use tokio_util::sync::CancellationToken;

use super::audit::AuditLog;
use super::model::{Draft, GENERATION, Model, Refusal, parse};
use super::store::{Condition, StateStore, StoreError, Transaction, Write};

/// Times a change is tried again when another node's change comes first; more is a fault, not a race.
const CONFLICTS_MAX: usize = 5;

/// Keys of the records of changes that are not known to be in the audit log yet.
const PENDING: &str = "pending/";

/// Largest document of a generation: what a plane accepts, less its envelope.
const DOCUMENT_BYTES_MAX: usize = MESSAGE_BYTES_MAX - 1024;

/// One generation, as both planes get it.
#[derive(Debug)]
pub struct Generation {
    /// What is governed.
    pub model: Model,
    /// JSON of [`Snapshot`], for L7.
    pub snapshot: Vec<u8>,
    /// JSON of [`KernelGeneration`], for the datapath.
    pub kernel: Vec<u8>,
    /// Why the stored policy is not in force, if it isn't; then everything is denied.
    pub broken: Option<String>,
}

/// What a policy comes to in the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Policies.
    pub policies: u64,
    /// Destination prefixes.
    pub prefixes: u64,
    /// Verdict cells.
    pub cells: u64,
}

/// Makes changes, one at a time.
#[derive(Debug)]
pub struct Governor {
    pub(super) config: Arc<Config>,
    pub(super) store: Arc<dyn StateStore>,
    pub(super) audit: AuditLog,
    live: watch::Sender<Arc<Generation>>,
    /// Held while a change is made, so that two of this process never race.
    turn: Mutex<()>,
}

// === impl Governor ===

impl Governor {
    /// Loads what the store holds, and records the changes of this node that were committed and not recorded.
    ///
    /// # Errors
    /// If the store fails or isn't understood, or the audit log can't be written.
    pub async fn open(
        config: Arc<Config>,
        store: Arc<dyn StateStore>,
        audit: AuditLog,
    ) -> Result<Self, Refusal> {
        let live = watch::Sender::new(Arc::new(load(store.as_ref()).await?));
        let governor = Governor { config, store, audit, live, turn: Mutex::new(()) };
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

    /// Makes a change: `edit` drafts it (again, if another node's change came first). Returns what `edit`
    /// did and the generation in which it is live. `detail` tells the audit log who did what.
    ///
    /// # Errors
    /// If it is refused; then nothing was altered. Only [`Refusal::Audit`] can come after the commit.
    pub async fn change<T>(
        &self,
        detail: impl Fn(&T) -> String + Send,
        mut edit: impl FnMut(&mut Draft) -> Result<T, Refusal> + Send,
    ) -> Result<(T, Arc<Generation>), Refusal> {
        // What can't be recorded isn't done.
        if let Some(failure) = self.audit.failure() {
            return Err(Refusal::Unavailable(format!("nothing can be changed now: {failure}")));
        }
        let _turn = self.turn.lock().await;
        for _ in 0..CONFLICTS_MAX {
            let before = self.live();
            let mut draft = Draft::new(before.model.clone());
            let done = edit(&mut draft)?;
            if draft.writes.is_empty() {
                return Ok((done, before));
            }
            match self.commit(draft, &before, detail(&done)).await {
                Ok((generation, record)) => {
                    let generation = Arc::new(generation);
                    self.live.send_replace(Arc::clone(&generation));
                    self.record(record).await?;
                    return Ok((done, generation));
                }
                Err(Refusal::Store(StoreError::Conflict(_))) => {
                    self.live.send_replace(Arc::new(load(self.store.as_ref()).await?));
                }
                Err(other) => return Err(other),
            }
        }
        Err(Refusal::Unavailable("too many changes at once; try again".into()))
    }

    async fn commit(
        &self,
        mut draft: Draft,
        before: &Generation,
        detail: String,
    ) -> Result<(Generation, AuditRecord), Refusal> {
        let stored = draft.model.stored;
        if draft.governs {
            draft.model.generation += 1;
        }
        let number = draft.model.generation;
        // Written even if it stays the same: it is what concurrent changes are compared by.
        draft.put(GENERATION, &number)?;
        let mut record = self.audit.record(RecordKind::Change, number);
        record.detail = Some(detail);
        draft.put(&self.pending(&record.request), &record)?;
        let governs = draft.governs;
        let (model, writes) = draft.into_writes();
        let mut generation = if governs {
            render(model).await?
        } else {
            Generation {
                model,
                snapshot: before.snapshot.clone(),
                kernel: before.kernel.clone(),
                broken: before.broken.clone(),
            }
        };
        let condition = match stored {
            Some(revision) => Condition::ModifiedAt(GENERATION.into(), revision),
            None => Condition::Absent(GENERATION.into()),
        };
        let transaction = Transaction { conditions: vec![condition], writes };
        generation.model.stored = Some(self.store.commit(transaction).await?);
        Ok((generation, record))
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
        self.change(|()| detail.clone(), edit).await.map(drop)
    }

    /// What a policy would come to, with the agents there are.
    ///
    /// # Errors
    /// If it is refused.
    pub async fn check(&self, bundle: PolicyBundle) -> Result<Size, Refusal> {
        let agents = self.live().model.agents.values().cloned().collect::<Vec<_>>();
        blocking(move || {
            let (policies, tables) = compile(&bundle, &agents)?;
            let (prefixes, cells) = (tables.destinations.len() as u64, tables.verdicts.len() as u64);
            Ok(Size { policies, prefixes, cells })
        })
        .await
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
                    match load(self.store.as_ref()).await {
                        Ok(generation) => drop(self.live.send_replace(Arc::new(generation))),
                        Err(error) => tracing::error!(%error, "cannot follow a change of another node"),
                    }
                }
            }
            // The watch fell behind what is kept, or the store failed: begin again from now, not in a spin.
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(std::time::Duration::from_secs(1)) => {}
            }
            let _turn = self.turn.lock().await;
            if let Ok(generation) = load(self.store.as_ref()).await
                && generation.model.stored > self.live().model.stored
            {
                self.live.send_replace(Arc::new(generation));
            }
        }
    }
}

/// The stored model as a generation. A policy that this version refuses is not in force: deny.
async fn load(store: &dyn StateStore) -> Result<Generation, StoreError> {
    let model = Model::load(store).await?;
    match render(model.clone()).await {
        Ok(generation) => Ok(generation),
        Err(refusal) => {
            let broken = format!("{refusal}{}", problems(&refusal));
            tracing::error!(broken, "the stored policy is refused: everything is denied");
            let revision = model.policy.clone();
            let mut generation = render(Model { policy: None, ..model })
                .await
                .map_err(|e| StoreError::Invalid(e.to_string()))?;
            generation.model.policy = revision;
            generation.broken = Some(broken);
            Ok(generation)
        }
    }
}

fn problems(refusal: &Refusal) -> String {
    let Refusal::Policy(errors) = refusal else { return String::new() };
    errors.problems.first().map(|p| format!("; the first: {}", p.message)).unwrap_or_default()
}

async fn render(model: Model) -> Result<Generation, Refusal> {
    blocking(move || {
        let agents: Vec<Agent> = model.agents.values().cloned().collect();
        let bundle = model.policy.as_ref().and_then(|p| p.bundle.as_ref());
        let sources: usize = agents.iter().map(|a| a.sources.len()).sum();
        within("source bindings", sources, bound::BINDINGS_MAX)?;
        let tables = bundle.map(|bundle| compile(bundle, &agents)).transpose()?.map(|(_, tables)| tables);
        let json = |e: serde_json::Error| Refusal::Invalid(e.to_string());
        let kernel = KernelGeneration { generation: model.generation, tables, agents };
        let kernel_json = serde_json::to_vec(&kernel).map_err(json)?;
        let snapshot = Snapshot {
            generation: model.generation,
            policy: bundle,
            agents: kernel.agents,
            keys: model.keys.values().cloned().collect(),
        };
        let snapshot = serde_json::to_vec(&snapshot).map_err(json)?;
        if snapshot.len().max(kernel_json.len()) > DOCUMENT_BYTES_MAX {
            return Err(Refusal::Full(format!("a generation has at most {DOCUMENT_BYTES_MAX} bytes")));
        }
        Ok(Generation { model, snapshot, kernel: kernel_json, broken: None })
    })
    .await
}

/// Parses and compiles to the number of policies and tables that fit into the kernel's.
fn compile(bundle: &PolicyBundle, agents: &[Agent]) -> Result<(u64, KernelTables), Refusal> {
    let set = PolicySet::parse(bundle)?;
    let tables = kernel::compile(&set, agents)?;
    within("destination prefixes", tables.destinations.len(), bound::DESTINATIONS_MAX)?;
    within("verdict cells", tables.verdicts.len(), bound::VERDICTS_MAX)?;
    Ok((set.len() as u64, tables))
}

/// Whether `count` fits into one of the two slots of a table with `max` places.
fn within(what: &str, count: usize, max: u32) -> Result<(), Refusal> {
    let places = max as usize / 2;
    if count > places {
        return Err(Refusal::Full(format!(
            "{count} {what} don't fit into the kernel's {places}; nothing was changed"
        )));
    }
    Ok(())
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Refusal> + Send + 'static,
) -> Result<T, Refusal> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|e| Err(Refusal::Invalid(format!("the policy can't be compiled: {e}"))))
}
