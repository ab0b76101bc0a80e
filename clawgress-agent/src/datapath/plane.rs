//! The kernel plane as control sees it, in either mode: apply a generation, open workloads, tell status.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context as _, Result, bail, ensure};
use clawgress_api::config::{Config, Role};
use clawgress_api::{DatapathStatus, InterfaceStatus, LearnedAddresses};
use clawgress_ebpf_common::{FlowKey, IFINDEX_DIAL, IFINDEX_LOCAL, bound};
use clawgress_policy::kernel::{KernelTables, Limiter};
use parking_lot::Mutex;

use super::attach::Attached;
use super::buckets::Buckets;
use super::drops::Drops;
use super::events::Counters;
use super::flows::Flows;
use super::handover;
use super::late;
use super::learned::LearnedMap;
use super::lease::Lease;
use super::modes::{Failure, Modes};
use super::names::{Document, Names};
use super::network::{self, Interfaces, Neighbours, Tracked};
use super::pacing::Pacing;
use super::prepared::{Prepared, Preparing};
use super::programs;
use super::proxy::Proxy;
use super::quarantine::Quarantine;
use super::spool::Spool;
use super::tables::{Plan, Tables, Written};
use super::workloads::Workloads;

/// Either kernel plane. Two modes and no third: an enum says so better than a trait.
#[derive(Debug)]
pub enum Plane {
    /// Programs in the kernel.
    Kernel(Arc<KernelPlane>),
    /// Nothing: the explicit proxy alone.
    None {
        /// The number control applied last; this process runs nothing of it.
        generation: AtomicU64,
    },
}

/// Programs, maps and what is known of them.
#[derive(Debug)]
pub struct KernelPlane {
    /// The policy tables; one apply at a time.
    pub tables: tokio::sync::Mutex<Tables>,
    /// Who is quarantined.
    pub quarantine: Mutex<Quarantine>,
    /// The flow table.
    pub flows: Arc<Flows>,
    /// What was dropped lately.
    pub drops: Arc<Drops>,
    /// What all sources without a binding together may begin a second.
    pub unbound_per_s: u32,
    /// Token buckets of rate limits.
    pub buckets: Arc<Mutex<Buckets>>,
    /// By which uplinks limits pace.
    pub pacing: Pacing,
    /// The kernel's connection tracking.
    pub tracked: Tracked,
    /// Addresses learned from DNS answers.
    pub learned: Arc<Mutex<LearnedMap>>,
    /// Counters.
    pub counters: Arc<Counters>,
    /// Names for audit.
    pub names: Arc<Names>,
    /// Records of changes.
    pub spool: Arc<Spool>,
    /// The configured interfaces, as they are now.
    pub interfaces: Mutex<Interfaces>,
    /// How programs are attached.
    pub attached: Mutex<BTreeMap<String, Attached>>,
    /// Local workloads; `None` where there is no cgroup v2, with the reason.
    pub workloads: Result<Workloads, String>,
    /// The proxy's cgroup, if one is configured.
    pub proxy: Option<Arc<Proxy>>,
    /// The live document, if it is known.
    pub live: Mutex<Option<Document>>,
    /// Sources that could not be bound, in words.
    pub skipped: Mutex<Vec<String>>,
    /// Where programs and maps are pinned.
    pub bpffs: PathBuf,
    /// Agents' interfaces that take nothing from a source that is bound to nobody.
    pub closed: BTreeSet<String>,
    /// What interfaces do when something fails.
    pub modes: Arc<Modes>,
    /// What upkeep could not repair, in words.
    pub troubles: Arc<Mutex<Vec<String>>>,
    /// Why the live generation is closed, if it is of a time that is over.
    pub late: Mutex<Option<String>>,
    /// What is written and not live; at most one.
    pub prepared: Preparing,
    /// Whether somebody vouches for the tables.
    pub lease: Arc<Lease>,
}

/// What goes live: as it was prepared, or to be written yet.
enum Either {
    Written(Written),
    Plan(Plan),
}

impl Plane {
    /// Applies a generation: all or nothing.
    ///
    /// # Errors
    /// If it is refused; the former one stays live.
    pub async fn apply(&self, document: Document) -> Result<()> {
        match self {
            Plane::Kernel(plane) => plane.apply(document, None).await,
            Plane::None { generation } => {
                generation.store(document.generation, Ordering::SeqCst);
                Ok(())
            }
        }
    }

    /// Does of a generation all that can fail, and holds it under `name`, instead of what was held before.
    ///
    /// # Errors
    /// If it is refused; nothing is held then.
    pub fn prepare(&self, name: Vec<u8>, document: Document) -> Result<()> {
        match self {
            Plane::Kernel(plane) => plane.prepare(name, document),
            // There is nothing to be done of it, and nothing that could fail.
            Plane::None { .. } => Ok(()),
        }
    }

    /// What is held; it is not any more then.
    #[must_use]
    pub fn take_prepared(&self) -> Option<Prepared> {
        match self {
            Plane::Kernel(plane) => plane.prepared.held.lock().take(),
            Plane::None { .. } => None,
        }
    }

    /// Applies what was prepared.
    ///
    /// # Errors
    /// As [`apply`](Self::apply).
    pub async fn commit(&self, mut prepared: Prepared) -> Result<()> {
        let document = prepared.take_document();
        match self {
            Plane::Kernel(plane) => plane.apply(document, Some(prepared)).await,
            Plane::None { .. } => self.apply(document).await,
        }
    }

    /// The state, for people.
    ///
    /// # Errors
    /// If a map can't be read.
    pub fn status(&self) -> Result<DatapathStatus> {
        match self {
            Plane::Kernel(plane) => plane.status(),
            Plane::None { generation } => Ok(DatapathStatus {
                mode: "none".to_owned(),
                generation: generation.load(Ordering::SeqCst),
                interfaces: Vec::new(),
                flows: 0,
                flows_max: 0,
                counters: BTreeMap::new(),
                tracking: None,
                absent: absent_in_none(),
            }),
        }
    }

    /// Makes exactly these agents the quarantined ones, for the next packet. Never waits for a generation
    /// that is being applied.
    ///
    /// # Errors
    /// If the map can't be written.
    pub fn quarantine(&self, agents: &BTreeSet<u32>) -> Result<()> {
        match self {
            Plane::Kernel(plane) => plane.quarantine.lock().set(agents),
            Plane::None { .. } => Ok(()),
        }
    }

    /// Control runs by this generation.
    ///
    /// # Errors
    /// If that can't be noted.
    pub fn confirm(&self, generation: u64) -> Result<()> {
        match self {
            Plane::Kernel(plane) => plane.lease.confirm(generation, plane.generation()),
            Plane::None { .. } => Ok(()),
        }
    }

    /// Makes and registers a workload's cgroup; gives its path and id.
    ///
    /// # Errors
    /// If it can't.
    pub async fn open_workload(&self, agent: u32, name: &str) -> Result<(PathBuf, u64)> {
        let Plane::Kernel(plane) = self else {
            bail!("`mode = \"none\"` governs no local workload; set `mode = \"kernel\"` in [datapath]")
        };
        let workloads = plane.workloads.as_ref().map_err(|why| anyhow::anyhow!("{why}"))?;
        programs::check_hooks(&plane.bpffs, workloads.parent())?;
        let mut tables = plane.tables.lock().await;
        let (path, id) = workloads.create(name)?;
        if let Err(error) = tables.register(id, agent) {
            workloads.remove(&path).await?;
            return Err(error);
        }
        Ok((path, id))
    }

    /// Lets agents go direct to addresses that DNS answers gave; when this returns, they may.
    ///
    /// # Errors
    /// If one may not be learned; then none is.
    pub async fn learn(&self, addresses: &LearnedAddresses) -> Result<()> {
        let Plane::Kernel(plane) = self else { return Ok(()) };
        // No generation comes in between.
        let tables = plane.tables.lock().await;
        let live = tables.live()?.number;
        plane.learned.lock().learn(live, addresses)
    }

    /// Forgets a workload, kills what is left of it and removes its cgroup.
    ///
    /// # Errors
    /// If it can't; it is forgotten all the same.
    pub async fn close_workload(&self, path: &Path, cgroup: u64) -> Result<()> {
        let Plane::Kernel(plane) = self else { return Ok(()) };
        let workloads = plane.workloads.as_ref().map_err(|why| anyhow::anyhow!("{why}"))?;
        plane.tables.lock().await.forget(cgroup)?;
        workloads.remove(path).await
    }
}

/// What the mode without kernel plane does not enforce.
fn absent_in_none() -> Vec<String> {
    [
        "no kernel plane: traffic that does not use the proxy is not seen and not stopped",
        "no identity by source address, MAC or cgroup: agents are known by their credentials alone",
        "no transparent steering and no kernel forwarding: `direct` permits nothing here",
        "no judgement of the proxy's own connections by the kernel",
    ]
    .map(str::to_owned)
    .to_vec()
}

// === impl KernelPlane ===

impl KernelPlane {
    /// The tables of `document` for the agents' interfaces there are (name to index).
    ///
    /// # Errors
    /// If it is inconsistent or exceeds a bound.
    pub fn plan(&self, document: &Document, agents: &BTreeMap<String, u32>) -> Result<Plan> {
        Ok(tokio::task::block_in_place(|| Plan::closing(document, agents, &self.closed))?)
    }

    /// As [`plan`](Self::plan), without the policy if its time `is_over`.
    ///
    /// # Errors
    /// As [`plan`](Self::plan).
    pub fn plan_in_time(
        &self,
        document: &Document,
        agents: &BTreeMap<String, u32>,
        is_over: bool,
    ) -> Result<Plan> {
        if is_over { self.plan(&late::without_policy(document), agents) } else { self.plan(document, agents) }
    }

    pub(super) async fn apply(&self, document: Document, prepared: Option<Prepared>) -> Result<()> {
        let applied = self.put(document, prepared).await;
        if applied.is_err() {
            // What is live is not what control runs by, whatever its number. Why it is not is what the caller is told.
            if let Err(error) = self.lease.doubt() {
                tracing::error!("that tables are behind can't be noted: {error:#}");
            }
        }
        applied
    }

    async fn put(&self, document: Document, prepared: Option<Prepared>) -> Result<()> {
        // From here on, the interfaces stay as they are: see `follow`.
        let mut tables = self.tables.lock().await;
        let agents = self.interfaces.lock().agents.clone();
        let over = late::over_since(&document, self.names.now()).map(|turned| (document.generation, turned));
        let plan = match prepared.and_then(|prepared| prepared.written_for(&agents, over.is_some())) {
            Some(written) => Either::Written(written),
            None => Either::Plan(self.plan_in_time(&document, &agents, over.is_some())?),
        };
        let live = tables.live()?.number;
        let known = self.live.lock().clone();
        if let Some(known) = &known
            && known.generation == document.generation
        {
            ensure!(
                *known == document,
                "generation {} is live with other contents; a change needs a new number",
                document.generation
            );
            return self.lease.applied();
        }
        let before = known.map_or(live, |k| k.generation);
        if before >= document.generation {
            self.begin_again(&mut tables, before, document.generation)?;
        }
        if over.is_some() {
            self.modes.close()?;
        }
        let skipped = match plan {
            Either::Written(written) => {
                let skipped = written.plan().skipped.clone();
                tables.commit(written).await?;
                skipped
            }
            Either::Plan(plan) => {
                tables.apply(&plan).await?;
                plan.skipped
            }
        };
        self.note_late(over);
        if over.is_none() {
            self.modes.follow(&self.interfaces.lock().agents)?;
            self.modes.turn(Failure::Revision, document.tables.is_none());
        }
        self.names.learn(&document);
        for skipped in &skipped {
            tracing::warn!("{skipped}");
        }
        *self.skipped.lock() = skipped;
        tracing::info!(generation = document.generation, "generation is live");
        *self.live.lock() = Some(document);
        self.lease.applied()?;
        let live: BTreeSet<u64> = self.limiters().iter().map(|limiter| limiter.key).collect();
        self.buckets.lock().retain(|limiter| live.contains(&limiter));
        Ok(())
    }

    /// Lets nothing live on where numbers ran backwards (the state was lost, or the file that tells what is live): records
    /// of flows may carry this very number.
    fn begin_again(&self, tables: &mut Tables, before: u64, generation: u64) -> Result<()> {
        tracing::warn!(before, generation, "generation numbers ran backwards");
        // That there is no generation for a moment is no failure to be open for.
        self.modes.close()?;
        tables.close()?;
        self.flush()?;
        let detail =
            format!("generation {generation} follows {before}: live flows were cut, to be judged anew");
        self.spool.change(detail);
        Ok(())
    }

    /// The live generation's rate limits.
    pub fn limiters(&self) -> Vec<Limiter> {
        self.with_tables(|tables| tables.limiters.clone()).unwrap_or_default()
    }

    /// What is read of the live generation's tables.
    pub fn with_tables<T>(&self, read: impl FnOnce(&KernelTables) -> T) -> Option<T> {
        let live = self.live.lock();
        live.as_ref().and_then(|document| document.tables.as_ref()).map(read)
    }

    /// Takes note of the interfaces there are now: the live generation's bindings are written anew, for the
    /// indices that agents' interfaces have now, and flows of those that went are ended. Programs come to an
    /// interface after its bindings, and bindings go before the index can be another's.
    ///
    /// # Errors
    /// If the tables can't be written; asked again, it does the same again.
    pub async fn follow(&self, interfaces: &Interfaces) -> Result<()> {
        let mut tables = self.tables.lock().await;
        *self.interfaces.lock() = interfaces.clone();
        self.names.follow(&interfaces.agents);
        let is_late = self.late.lock().is_some();
        if !is_late {
            self.modes.follow(&interfaces.agents)?;
        }
        let mut live = self.live.lock().clone();
        if live.is_none() && !self.closed.is_empty() && tables.live()?.number == 0 {
            // Strangers are shut out of an interface that comes before the first generation, too.
            live = Some(late::nothing());
        }
        if let Some(document) = live {
            let plan = self.plan_in_time(&document, &interfaces.agents, is_late)?;
            tables.apply(&plan).await?;
            *self.skipped.lock() = plan.skipped;
        }
        let indices: Vec<u32> = interfaces.agents.values().copied().collect();
        let is_ours = |key: &FlowKey| matches!(key.ifindex, IFINDEX_LOCAL | IFINDEX_DIAL);
        self.end(|key| !is_ours(key) && !indices.contains(&key.ifindex))
    }

    /// The neighbours that the live generation's sources say where they are.
    pub fn bound(&self) -> Neighbours {
        let interfaces = self.interfaces.lock().agents.clone();
        let live = self.live.lock();
        let sources = live.iter().flat_map(|document| {
            let agents = document.agents.iter().flat_map(|agent| &agent.sources);
            agents.chain(document.shared.iter().flat_map(|shared| &shared.at))
        });
        network::bound(sources, &interfaces)
    }

    /// The live generation, 0 before the first.
    pub fn generation(&self) -> u64 {
        self.live.lock().as_ref().map_or(0, |document| document.generation)
    }

    /// Ends every flow.
    fn flush(&self) -> Result<()> {
        self.end(|_| true)
    }

    fn end(&self, is_over: impl Fn(&FlowKey) -> bool) -> Result<()> {
        let ended = tokio::task::block_in_place(|| self.flows.remove(|key, _, _| is_over(key)))?;
        for record in ended.iter().filter_map(|(key, flow)| self.names.outcome(key, flow)) {
            self.spool.push(record);
        }
        Ok(())
    }

    fn status(&self) -> Result<DatapathStatus> {
        let generation = self.live.lock().as_ref().map_or(0, |d| d.generation);
        let mut absent = self.troubles.lock().clone();
        absent.extend(self.late.lock().clone());
        absent.extend(self.lease.trouble());
        absent.extend(self.modes.warnings());
        absent.extend(self.interfaces.lock().absent.iter().map(|a| a.why.clone()));
        absent.extend(self.skipped.lock().iter().cloned());
        absent.extend(self.pacing.warning(&self.limiters()));
        absent.extend(self.names.trouble());
        if let Err(why) = &self.workloads {
            absent.push(format!("local workloads are not governed: {why}"));
        }
        absent.extend(self.attached.lock().iter().filter(|(_, a)| a.is_without_xdp()).map(|(name, _)| {
            format!("no native XDP on `{name}`: TC judges alone, and drops later, at more cost")
        }));
        absent.extend(match &self.proxy {
            Some(proxy) => proxy.trouble(),
            None => Some(
                "the proxy's own connections are judged by the proxy, not by the kernel (no `cgroup` in [l7])"
                    .to_owned(),
            ),
        });
        let mut counters = self.counters.named().context("cannot read the counters")?;
        counters.extend(self.modes.tally().named());
        Ok(DatapathStatus {
            mode: "kernel".to_owned(),
            generation,
            interfaces: self.interface_status(),
            flows: self.flows.live(),
            flows_max: u64::from(bound::FLOWS_MAX),
            counters,
            tracking: self.tracked.status(),
            absent,
        })
    }

    fn interface_status(&self) -> Vec<InterfaceStatus> {
        let (interfaces, attached) = (self.interfaces.lock(), self.attached.lock());
        let present = interfaces.present().map(|(role, name, _)| (role, name, attached.get(name)));
        let absent = interfaces.absent.iter().map(|a| (a.role, a.name.as_str(), None));
        let status = |(role, name, attached): (Role, &str, Option<&Attached>)| {
            let (fail_open, failed_open) = self.modes.of(name);
            InterfaceStatus {
                name: name.to_owned(),
                role: role.name().to_owned(),
                xdp: attached.map_or("off", |a| a.xdp).to_owned(),
                tc: attached.map_or("off", |a| a.tc).to_owned(),
                throttle: self.pacing.of(name).map(str::to_owned),
                fail_open,
                failed_open,
            }
        };
        present.chain(absent).map(status).collect()
    }
}

/// Whether this process may do what the kernel mode needs, in the order it will need it.
///
/// # Errors
/// With the remedy.
pub fn check_privilege(config: &Config) -> Result<()> {
    ensure!(
        cfg!(target_endian = "little"),
        "the kernel programs are built for little-endian machines; use `mode = \"none\"`"
    );
    ensure!(
        config.proxy.addresses().count() <= handover::PROXIES_MAX,
        "at most {} addresses in `listen` of [proxy] and [proxy.tls] together",
        handover::PROXIES_MAX
    );
    Ok(())
}
