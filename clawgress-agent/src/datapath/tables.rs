//! The policy tables: a generation is written aside into the free slot, goes live by one write, and the
//! old slot is cleared when no packet can be reading it any more.
//!
//! Must never write into the live slot, but for workloads, which come and go between generations.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use aya::maps::{Array, HashMap, MapData, MapError};
use clawgress_api::KernelGeneration;
use clawgress_ebpf_common::image::{LIMITERS_PER_SET, LimitSet, Limiter, Page};
use clawgress_ebpf_common::{
    Address, AgentKey, Bind, CLASS_UNAUTHENTICATED, CgroupKey, DropReason, Generation, NEVER_DIRECT, Verdict,
    action, bind_flag, bound, map, user,
};
use clawgress_identity::{AgentState, Source};
use clawgress_policy::Transport;
use clawgress_policy::kernel::{KernelAction, KernelTables};
use ipnet::IpNet;

use super::bpf::{self, Plain};
use super::buckets::{self, LimiterError};
use super::epoch::Turn;
use super::image::{self, Cell, Contents, ImageError, MAPPED_BITS, PORTS};
use super::object::{self, Objects, take};

/// Longest a program run can still read the slot it read the generation for: runs take microseconds and
/// are not preempted; this is four orders of magnitude more.
const GRACE: Duration = Duration::from_millis(100);

/// Most sources that are told one by one not to be bound: where an interface is missing they are all that it has, and
/// people read the first of them.
const UNBOUND_TOLD_MAX: usize = 20;

/// The tables of one generation, checked, as an image.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The number that goes live; 0 (deny all) while there is no policy.
    number: u64,
    image: Vec<Page>,
    classes: BTreeMap<u32, (u32, u16)>,
    /// What of it can't be kept, in words: sources that name no agents' interface of this node, and rate limits that
    /// can need more buckets than there are.
    pub skipped: Vec<String>,
}

/// A plan with its image in the kernel, where no program sees it.
pub struct Written {
    plan: Plan,
    image: Array<MapData, Page>,
}

/// Why a generation was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// Number 0 means "no policy yet".
    #[error("generation 0 cannot be applied")]
    Number,
    /// There is more than the kernel holds.
    #[error("the generation has {count} {what}, and the kernel holds {max}")]
    TooMany {
        /// What there is too much of.
        what: &'static str,
        /// How many.
        count: usize,
        /// The bound.
        max: usize,
    },
    /// Two agents claim one source.
    #[error("agents {0} and {1} have the same source `{2}`; remove it from one of them")]
    SameSource(u32, u32, String),
    /// A shared source claims one that somebody else has.
    #[error("the shared source `{0}` has the source `{1}` of somebody else; remove it from one of them")]
    SameShared(String, String),
    /// Port ranges that don't start at 0 or don't ascend.
    #[error("the port ranges do not start at 0, or do not ascend")]
    Ports,
    /// A cell that can't be.
    #[error("a verdict cell is not valid: {0}")]
    Cell(&'static str),
    /// Limits that no packet can be held to.
    #[error("the rate limits are not valid: {0}")]
    Limits(&'static str),
    /// A rate limit out of range.
    #[error(transparent)]
    Limiter(#[from] LimiterError),
    /// No image holds it.
    #[error(transparent)]
    Image(#[from] ImageError),
}

/// The maps that hold generations.
pub struct Tables {
    generation: Array<MapData, u64>,
    images: object::Images,
    /// The same map, for what aya doesn't offer.
    images_fd: OwnedFd,
    cgroups: HashMap<MapData, Plain<CgroupKey>, Plain<Bind>>,
    agents: HashMap<MapData, Plain<AgentKey>, Plain<Bind>>,
    /// Agent index to class and flags, in the live generation.
    classes: BTreeMap<u32, (u32, u16)>,
    committed: Option<Instant>,
    /// A generation is written anew where interfaces change, and may come to the slot it was in before.
    turn: Turn,
}

// === impl Plan ===

impl Plan {
    /// Checks `document` and lays it out. `interfaces` are the agents' interfaces, name to index.
    ///
    /// # Errors
    /// If it is inconsistent or exceeds a bound; nothing has been written then.
    pub fn new(
        document: &KernelGeneration<KernelTables>,
        interfaces: &BTreeMap<String, u32>,
    ) -> Result<Plan, PlanError> {
        Plan::closing(document, interfaces, &BTreeSet::new())
    }

    /// As [`Plan::new`], with those of the interfaces that take nothing from a source that is bound to nobody.
    ///
    /// # Errors
    /// As [`Plan::new`].
    pub fn closing(
        document: &KernelGeneration<KernelTables>,
        interfaces: &BTreeMap<String, u32>,
        closed: &BTreeSet<String>,
    ) -> Result<Plan, PlanError> {
        if document.generation == 0 {
            return Err(PlanError::Number);
        }
        let none = KernelTables::default();
        let tables = document.tables.as_ref().unwrap_or(&none);
        let number = if document.tables.is_some() { document.generation } else { 0 };
        let mut plan = Plan { number, image: Vec::new(), classes: BTreeMap::new(), skipped: Vec::new() };
        let mut bindings = BTreeMap::new();
        for agent in &document.agents {
            let class = tables.agents.get(&agent.index).copied().unwrap_or(CLASS_UNAUTHENTICATED);
            let flags = if agent.state == AgentState::Active { 0 } else { bind_flag::DISABLED };
            plan.classes.insert(agent.index, (class, flags));
            for source in &agent.sources {
                let Some(&ifindex) = interfaces.get(&source.interface) else {
                    let other = "create the agent anew with another --source";
                    plan.skipped.push(unbound(&format!("agent `{}`", agent.id), source, other));
                    continue;
                };
                let (bits, address) = prefix(&source.prefix);
                let bind = Bind {
                    agent: agent.index,
                    class,
                    mac: source.mac.map_or([0; 6], |m| m.0),
                    flags: flags | if source.mac.is_some() { bind_flag::MAC } else { 0 },
                };
                if let Some(other) = bindings.insert((ifindex, bits, address), bind)
                    && other.agent != agent.index
                {
                    return Err(PlanError::SameSource(other.agent, agent.index, source.to_string()));
                }
            }
        }
        plan.share(document, interfaces, &mut bindings)?;
        let more = plan.skipped.len().saturating_sub(UNBOUND_TOLD_MAX);
        plan.skipped.truncate(UNBOUND_TOLD_MAX);
        plan.skipped
            .extend((more > 0).then(|| format!("{more} more sources are at interfaces that are not there")));
        let max = bound::BINDINGS_MAX as usize;
        if bindings.len() > max {
            return Err(PlanError::TooMany { what: "source prefixes", count: bindings.len(), max });
        }
        let max = (bound::AGENTS_MAX / 2) as usize;
        if plan.classes.len() > max {
            return Err(PlanError::TooMany { what: "agents", count: plan.classes.len(), max });
        }
        close(
            interfaces.iter().filter(|(name, _)| closed.contains(*name)).map(|(_, index)| *index),
            &mut bindings,
        );
        plan.image = image::image(&contents(number, bindings, tables, interfaces)?)?;
        plan.skipped.extend(crowded(&plan.classes, tables));
        Ok(plan)
    }

    /// Binds the sources that several agents share.
    fn share(
        &mut self,
        document: &KernelGeneration<KernelTables>,
        interfaces: &BTreeMap<String, u32>,
        bindings: &mut BTreeMap<(u32, u32, Address), Bind>,
    ) -> Result<(), PlanError> {
        for (shared, source) in document.shared.iter().flat_map(|s| s.at.iter().map(move |at| (s, at))) {
            let Some(&ifindex) = interfaces.get(&source.interface) else {
                let other = format!("name another by `clawgressctl source set {} --at ...`", shared.id);
                self.skipped.push(unbound(&format!("shared source `{}`", shared.id), source, &other));
                continue;
            };
            let (bits, address) = prefix(&source.prefix);
            let bind = Bind {
                agent: 0,
                class: CLASS_UNAUTHENTICATED,
                mac: source.mac.map_or([0; 6], |m| m.0),
                flags: bind_flag::SHARED | if source.mac.is_some() { bind_flag::MAC } else { 0 },
            };
            if bindings.insert((ifindex, bits, address), bind).is_some() {
                return Err(PlanError::SameShared(shared.id.to_string(), source.to_string()));
            }
        }
        Ok(())
    }

    /// Writes the image to a map of its own, in which nobody looks yet. The pages are not kept.
    ///
    /// # Errors
    /// If the kernel refuses, most often for want of memory.
    pub fn write(mut self) -> Result<Written> {
        let image = written(&std::mem::take(&mut self.image))?;
        Ok(Written { plan: self, image })
    }

    /// Pages of the image.
    #[must_use]
    pub fn pages(&self) -> usize {
        self.image.len()
    }
}

fn written(pages: &[Page]) -> Result<Array<MapData, Page>> {
    let mut image = object::image_map()?;
    for (number, page) in (0..).zip(pages) {
        image.set(number, page, 0)?;
    }
    Ok(image)
}

// === impl Written ===

impl std::fmt::Debug for Written {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Written").field("number", &self.plan.number).finish_non_exhaustive()
    }
}

impl Written {
    /// The plan, without its pages.
    #[must_use]
    pub fn plan(&self) -> &Plan {
        &self.plan
    }
}

/// That whatever comes from `source` is taken for a stranger's, and what to do about it.
fn unbound(who: &str, source: &Source, other: &str) -> String {
    let name = &source.interface;
    format!(
        "{who} is not known by its source `{source}`: this machine has no agents' interface `{name}` now; it is \
         bound when the interface is there, or else {other}"
    )
}

/// Binds every address of these interfaces that nobody holds to nobody at all.
fn close(interfaces: impl Iterator<Item = u32>, bindings: &mut BTreeMap<(u32, u32, Address), Bind>) {
    let nobody = Bind { agent: 0, class: CLASS_UNAUTHENTICATED, mac: [0; 6], flags: bind_flag::DISABLED };
    let all = [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)];
    for index in interfaces {
        for address in all {
            let bits = if address.is_ipv4() { MAPPED_BITS } else { 0 };
            bindings.entry((index, bits, user::address(address))).or_insert(nobody);
        }
    }
}

fn contents(
    number: u64,
    bindings: BTreeMap<(u32, u32, Address), Bind>,
    tables: &KernelTables,
    interfaces: &BTreeMap<String, u32>,
) -> Result<Contents, PlanError> {
    let mut verdicts = Vec::with_capacity(tables.verdicts.len());
    for cell in &tables.verdicts {
        let key = Cell {
            agent_class: cell.agent_class,
            destination_class: cell.destination_class,
            protocol: cell.transport.number(),
            port_class: cell.port_class,
        };
        if cell.limits != 0 && cell.limits as usize >= tables.limits.len() {
            return Err(PlanError::Limits("a verdict cell names a set that is not there"));
        }
        let limits = cell.limits | if cell.never_direct { NEVER_DIRECT } else { 0 };
        let verdict = Verdict { limits, ..verdict(cell.action, cell.transport, cell.policies)? };
        verdicts.push((key, verdict));
    }
    let destination = |(net, class): &(IpNet, u32)| {
        let (bits, address) = prefix(net);
        (bits, address, *class)
    };
    Ok(Contents {
        number,
        bindings,
        interfaces: interfaces.values().copied().collect(),
        destinations: tables.destinations.iter().map(destination).collect(),
        ports: ports(&tables.ports)?,
        limiters: limiters(tables)?,
        limit_sets: limit_sets(tables)?,
        verdicts,
    })
}

fn verdict(kernel: KernelAction, transport: Transport, policies: u32) -> Result<Verdict, PlanError> {
    let (action, reason) = match kernel {
        KernelAction::Deny(code) if DropReason::from_code(code).is_some() => (action::DENY, code),
        KernelAction::Deny(_) => return Err(PlanError::Cell("it denies without a known reason")),
        KernelAction::Steer if transport == Transport::Tcp => (action::STEER, 0),
        KernelAction::Steer => return Err(PlanError::Cell("only TCP can be steered")),
        KernelAction::Direct => (action::DIRECT, 0),
    };
    Ok(Verdict { action, reason, policies, ..Verdict::default() })
}

/// Limiters, whose policies' ids come behind the lists of ids in the names of a generation.
fn limiters(tables: &KernelTables) -> Result<Vec<Limiter>, PlanError> {
    let first = tables.policies.len();
    let index = |n: usize| u32::try_from(first + n).map_err(|_| PlanError::Limits("there are too many"));
    tables.limiters.iter().enumerate().map(|(n, l)| Ok(buckets::limiter(l, index(n)?)?)).collect()
}

/// That agents can need more token buckets than there are, each having one for every limiter of its class that it doesn't
/// share.
fn crowded(agents: &BTreeMap<u32, (u32, u16)>, tables: &KernelTables) -> Option<String> {
    let mut limiters: BTreeMap<u32, BTreeSet<u32>> = BTreeMap::new();
    for cell in tables.verdicts.iter().filter(|cell| cell.limits != 0) {
        let of_set = tables.limits.get(cell.limits as usize);
        let own = of_set.into_iter().flatten().filter(|limiter| !is_shared(tables, **limiter));
        limiters.entry(cell.agent_class).or_default().extend(own);
    }
    let shared = tables.limiters.iter().filter(|limiter| limiter.group.is_some()).count();
    let of_class = |class| limiters.get(class).map_or(0, BTreeSet::len);
    let buckets: usize = shared + agents.values().map(|(class, _)| of_class(class)).sum::<usize>();
    let max = bound::BUCKETS_MAX as usize;
    (buckets > max).then(|| {
        format!(
            "rate limits can need {buckets} token buckets, and the kernel holds {max}: what has none is dropped \
             (`{}`); narrow limits, or put some together",
            DropReason::BucketTableFull
        )
    })
}

fn is_shared(tables: &KernelTables, limiter: u32) -> bool {
    tables.limiters.get(limiter as usize).is_some_and(|limiter| limiter.group.is_some())
}

/// Sets of limiters, by number from 1.
fn limit_sets(tables: &KernelTables) -> Result<Vec<LimitSet>, PlanError> {
    let mut sets = Vec::with_capacity(tables.limits.len());
    for (n, limits) in tables.limits.iter().enumerate() {
        if n == 0 && !limits.is_empty() {
            return Err(PlanError::Limits("set 0 is not empty"));
        }
        if limits.len() > LIMITERS_PER_SET {
            return Err(PlanError::Limits("more than four apply to one packet"));
        }
        let mut set = LimitSet::default();
        for (place, limiter) in set.iter_mut().zip(limits) {
            if *limiter as usize >= tables.limiters.len() {
                return Err(PlanError::Limits("a set names one that is not there"));
            }
            *place = limiter + 1;
        }
        sets.push(set);
    }
    Ok(sets)
}

/// Bits and address of a prefix in map form.
fn prefix(net: &IpNet) -> (u32, Address) {
    let net = net.trunc();
    let bits = u32::from(net.prefix_len()) + if net.addr().is_ipv4() { MAPPED_BITS } else { 0 };
    (bits, user::address(net.addr()))
}

/// Class of each port.
fn ports(ranges: &[(u16, u16)]) -> Result<Vec<u16>, PlanError> {
    let mut classes = vec![0; PORTS];
    let mut before = None;
    for &(first, class) in ranges {
        if before.map_or(first != 0, |b| first <= b) {
            return Err(PlanError::Ports);
        }
        before = Some(first);
        if let Some(rest) = classes.get_mut(usize::from(first)..) {
            rest.fill(class);
        }
    }
    Ok(classes)
}

// === impl Tables ===

impl std::fmt::Debug for Tables {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tables").field("live", &self.live().ok()).finish_non_exhaustive()
    }
}

impl Tables {
    /// Takes the maps out of the object; what they hold stays live.
    ///
    /// # Errors
    /// If a map is missing or of another layout.
    pub fn take(objects: &mut Objects) -> Result<Tables> {
        let (images, images_fd) = object::take_images(objects)?;
        Ok(Tables {
            generation: take(objects, map::GENERATION)?,
            images,
            images_fd,
            cgroups: take(objects, map::CGROUPS)?,
            agents: take(objects, map::AGENTS)?,
            classes: BTreeMap::new(),
            committed: None,
            turn: Turn::of(objects)?,
        })
    }

    /// What is live.
    ///
    /// # Errors
    /// If the map can't be read.
    pub fn live(&self) -> Result<Generation> {
        Ok(Generation::unpack(self.generation.get(&0, 0)?))
    }

    /// Stops everything but the gateway's services, until the next commit.
    ///
    /// # Errors
    /// If the map can't be written.
    pub fn close(&mut self) -> Result<()> {
        let slot = self.live()?.slot;
        Ok(self.generation.set(0, Generation { number: 0, slot }.pack(), 0)?)
    }

    /// Prepares `plan` in the free slot, with the workloads that are registered now, and commits it.
    ///
    /// # Errors
    /// If a map can't be written; the former generation is live then.
    pub async fn apply(&mut self, plan: &Plan) -> Result<()> {
        self.switch(plan, None).await
    }

    /// As [`apply`](Self::apply), of what is written already.
    ///
    /// # Errors
    /// As there.
    pub async fn commit(&mut self, written: Written) -> Result<()> {
        let Written { plan, image } = written;
        self.switch(&plan, Some(image)).await
    }

    async fn switch(&mut self, plan: &Plan, image: Option<Array<MapData, Page>>) -> Result<()> {
        if let Some(committed) = self.committed {
            tokio::time::sleep_until((committed + GRACE).into()).await;
        }
        let slot = 1 - self.live()?.slot;
        tokio::task::block_in_place(|| self.prepare(plan, image, slot)).context("cannot write the tables")?;
        self.generation.set(0, Generation { number: plan.number, slot }.pack(), 0)?;
        self.turn.turn()?;
        self.committed = Some(Instant::now());
        self.classes.clone_from(&plan.classes);
        tokio::time::sleep(GRACE).await;
        if let Err(error) = tokio::task::block_in_place(|| self.clear(1 - slot)) {
            // The next generation clears it before it writes.
            tracing::warn!(%error, "cannot clear the former slot");
        }
        Ok(())
    }

    fn prepare(&mut self, plan: &Plan, image: Option<Array<MapData, Page>>, slot: u32) -> Result<()> {
        let workloads: Vec<_> = self.workloads()?;
        self.clear(slot)?;
        let image = image.map_or_else(|| written(&plan.image), Ok)?;
        self.images.set(slot, &image, 0)?;
        for &agent in plan.classes.keys() {
            let bind = workload(&plan.classes, agent);
            self.agents.insert(Plain(AgentKey { agent, slot }), Plain(bind), 0)?;
        }
        for (cgroup, agent) in workloads {
            let bind = workload(&plan.classes, agent);
            self.cgroups.insert(Plain(CgroupKey { cgroup, slot, pad: 0 }), Plain(bind), 0)?;
        }
        Ok(())
    }

    /// Takes everything of `slot` away.
    fn clear(&mut self, slot: u32) -> Result<()> {
        bpf::remove_inner(&self.images_fd, slot)?;
        let keys: Vec<_> = self.agents.keys().collect::<Result<_, _>>()?;
        for key in keys.iter().filter(|k| k.0.slot == slot) {
            gone(self.agents.remove(key))?;
        }
        let keys: Vec<_> = self.cgroups.keys().collect::<Result<_, _>>()?;
        for key in keys.iter().filter(|k| k.0.slot == slot) {
            gone(self.cgroups.remove(key))?;
        }
        Ok(())
    }

    /// Workloads registered in the live slot: cgroup id and agent.
    fn workloads(&self) -> Result<Vec<(u64, u32)>, MapError> {
        let Generation { slot, .. } = Generation::unpack(self.generation.get(&0, 0)?);
        let mut workloads = Vec::new();
        for entry in self.cgroups.iter() {
            let (key, bind) = entry?;
            if key.0.slot == slot {
                workloads.push((key.0.cgroup, bind.0.agent));
            }
        }
        Ok(workloads)
    }

    /// Registers a workload's cgroup.
    ///
    /// # Errors
    /// If there are as many as the map's half holds, or it can't be written.
    pub fn register(&mut self, cgroup: u64, agent: u32) -> Result<()> {
        let max = (bound::CGROUPS_MAX / 2) as usize;
        anyhow::ensure!(self.workloads()?.len() < max, "{max} workloads are open already; close some");
        let slot = self.live()?.slot;
        let bind = workload(&self.classes, agent);
        Ok(self.cgroups.insert(Plain(CgroupKey { cgroup, slot, pad: 0 }), Plain(bind), 0)?)
    }

    /// Forgets a workload: what still runs in it is anonymous.
    ///
    /// # Errors
    /// If the map can't be written.
    pub fn forget(&mut self, cgroup: u64) -> Result<()> {
        for slot in 0..2 {
            gone(self.cgroups.remove(&Plain(CgroupKey { cgroup, slot, pad: 0 })))?;
        }
        Ok(())
    }
}

/// The binding of an agent that is not known by an address: a local workload's, or one dialled for.
fn workload(classes: &BTreeMap<u32, (u32, u16)>, agent: u32) -> Bind {
    // An agent that is not in the generation may do nothing.
    let (class, flags) = classes.get(&agent).copied().unwrap_or((CLASS_UNAUTHENTICATED, bind_flag::DISABLED));
    Bind { agent, class, mac: [0; 6], flags }
}

/// A missing key is what was wanted.
fn gone(result: Result<(), MapError>) -> Result<(), MapError> {
    match result {
        Err(MapError::KeyNotFound) => Ok(()),
        Err(MapError::SyscallError(error)) if error.io_error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests;
