//! The datapath role: loads the kernel programs, prepares the network around them, opens the listeners
//! and hands them to L7, applies generations, and tells control what the kernel saw.
//!
//! When this process ends, programs, maps and rules stay: traffic remains governed by the last
//! generation. Only [`detach`] takes them away, and then traffic stops.

pub mod attach;
mod bench;
pub mod bpf;
pub mod buckets;
mod drops;
pub mod epoch;
pub mod events;
pub mod flows;
mod handover;
mod image;
mod late;
pub mod learned;
pub mod lease;
mod listeners;
mod live;
mod modes;
pub mod names;
pub mod network;
pub mod object;
pub mod own;
mod pacing;
mod plane;
mod prepared;
mod programs;
mod proxy;
pub mod quarantine;
mod repeats;
mod service;
mod shares;
mod spool;
mod steering;
pub mod tables;
mod upkeep;
mod verifier;
mod workloads;

use std::collections::BTreeSet;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use anyhow::{Context as _, Result, anyhow, ensure};
use clawgress_api::clock::SystemClock;
use clawgress_api::config::{Config, Datapath, DatapathMode, UnboundSources};
use clawgress_api::notify;
use clawgress_api::proto::datapath_server::DatapathServer;
use clawgress_api::{MESSAGE_BYTES_MAX, socket};
use clawgress_ebpf_common::map;
use parking_lot::Mutex;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use self::buckets::Buckets;
use self::events::Counters;
use self::flows::Flows;
use self::handover::Offer;
use self::learned::LearnedMap;
use self::lease::Lease;
use self::modes::Modes;
use self::names::{Document, Names};
use self::network::{Firewall, Interfaces, Neighbours, Netlink, Routes, Tracked, Watch};
use self::object::Objects;
use self::own::Own;
use self::pacing::Pacing;
use self::plane::{KernelPlane, Plane};
use self::prepared::Preparing;
use self::programs::Programs;
use self::proxy::Proxy;
use self::quarantine::Quarantine;
use self::repeats::Repeats;
use self::service::Service;
use self::spool::Spool;
use self::tables::{Plan, Tables};
use self::upkeep::{Keep, Upkeep};
use self::workloads::Workloads;
use crate::peer::{Access, Socket};

use crate::serve;

pub use bench::generator::Generator;
pub use bench::{bench_drops, bench_kernel};
pub use verifier::{Checked, CheckedProgram, check_programs};

/// Runs the role until `stop`.
///
/// # Errors
/// If the network can't be governed, with what to do; nothing is left open then.
pub async fn run(config: Arc<Config>, stop: CancellationToken) -> Result<()> {
    serve::open_run_dir(&config)?;
    let spool = Arc::new(Spool::new(&config.node.name, Arc::new(SystemClock)));
    let mut tasks = JoinSet::new();
    let (plane, offer) = match config.datapath.mode {
        DatapathMode::None => {
            let plane = Plane::None { generation: AtomicU64::new(0) };
            (plane, Arc::new(Offer::proxies(listeners::proxies(&config)?)))
        }
        DatapathMode::Kernel => {
            let (plane, offer) = start(&config, &spool, &mut tasks, &stop).await?;
            (Plane::Kernel(plane), offer)
        }
    };
    let handover = socket::bind(&config.handover_socket(), serve::SOCKET_MODE)?;
    let access = Access::new(&config, Socket::Handover)?;
    tasks.spawn(handover::serve(handover, access, offer, stop.clone()));

    let control = socket::bind(&config.datapath_socket(), serve::SOCKET_MODE)?;
    let service = Service::new(Arc::new(plane), spool, stop.clone());
    let service = DatapathServer::new(service).max_decoding_message_size(MESSAGE_BYTES_MAX);
    tasks.spawn(serve::grpc(control, Access::new(&config, Socket::Datapath)?, service, stop.clone()));

    notify::ready("datapath");
    let mut end = Ok(());
    while let Some(task) = tasks.join_next().await {
        let task = task.unwrap_or_else(|e| Err(anyhow!("a task of the datapath role panicked: {e}")));
        stop.cancel();
        end = end.and(task);
    }
    end
}

/// Everything of the kernel mode, in an order that never lets traffic through unjudged: drop rules
/// first, then programs, then what makes permitted traffic flow.
async fn start(
    config: &Config,
    spool: &Arc<Spool>,
    tasks: &mut JoinSet<Result<()>>,
    stop: &CancellationToken,
) -> Result<(Arc<KernelPlane>, Arc<Offer>)> {
    // Before anything that may fail: a node that can't be governed forwards nothing either.
    Firewall::close_if_missing(config)?;
    plane::check_privilege(config)?;
    let netlink = Netlink::open()?;
    // Before the first look, so that nothing that comes after it is missed.
    let watch = Watch::open()?;
    let interfaces = netlink.interfaces(config).await?;
    for absent in &interfaces.absent {
        tracing::warn!("{}", absent.why);
    }
    let mut firewall = Firewall::new(config);
    firewall.install()?;
    let names = names(config, &interfaces);
    let mut programs = tokio::task::block_in_place(|| Programs::load(config, &interfaces.agents))?;
    let tables = take_tables(&mut programs, &names, config, &interfaces).await?;
    let attached = programs.attach()?;
    let workloads = open_workloads(&mut programs, config);
    let routes = Routes::open(netlink.clone()).await?;
    routes.install().await?;
    network::prepare(&interfaces)?;
    let objects = programs.objects();
    let proxy = open_proxy(objects, config, spool, tasks, stop)?;
    let (modes, lease) = take_modes(objects, config, spool, &interfaces)?;
    let offer = Arc::new(offer(objects, config, &interfaces, proxy.clone(), Arc::clone(&modes))?);
    let plane = Arc::new(KernelPlane {
        flows: Arc::new(Flows::new(objects)?),
        drops: Arc::default(),
        quarantine: Mutex::new(Quarantine::take(objects)?),
        unbound_per_s: config.datapath.unbound_all_per_s.get(),
        buckets: Arc::new(Mutex::new(buckets(objects, config)?)),
        pacing: Pacing::take(objects)?,
        tracked: Tracked::open()?,
        learned: Arc::new(Mutex::new(LearnedMap::take(objects)?)),
        counters: Arc::new(Counters::new(object::take(objects, map::COUNTERS)?)),
        names: Arc::clone(&names),
        spool: Arc::clone(spool),
        attached: Mutex::new(attached),
        workloads,
        proxy,
        live: Mutex::new(None),
        skipped: Mutex::new(Vec::new()),
        tables: tokio::sync::Mutex::new(tables),
        interfaces: Mutex::new(interfaces.clone()),
        bpffs: config.datapath.bpffs.clone(),
        closed: closed(config),
        modes,
        troubles: Arc::default(),
        late: Mutex::default(),
        prepared: Preparing::default(),
        lease,
    });
    resume(&plane).await?;

    let ring = object::take(objects, map::EVENTS)?;
    tasks.spawn(events::read(
        ring,
        Arc::clone(&plane.counters),
        Arc::clone(&names),
        Arc::clone(spool),
        Arc::clone(&plane.drops),
        Repeats::new(object::take(objects, map::SEEN)?),
        stop.clone(),
    ));
    sweep(&plane, names, tasks, stop);
    let keep = Keep {
        own: Own::take(objects)?,
        netlink,
        watch,
        interfaces,
        programs,
        firewall,
        routes,
        plane: Arc::clone(&plane),
        offer: Arc::clone(&offer),
    };
    let mut upkeep = Upkeep::new(config, keep);
    upkeep.addresses().await?;
    upkeep.queues().await?;
    let stop = stop.clone();
    tasks.spawn(upkeep.run(stop));
    Ok((plane, offer))
}

/// What interfaces do when something fails, and who notices that nobody vouches for the tables.
fn take_modes(
    objects: &mut Objects,
    config: &Config,
    spool: &Arc<Spool>,
    interfaces: &Interfaces,
) -> Result<(Arc<Modes>, Arc<Lease>)> {
    let modes = Arc::new(Modes::new(config, objects, Arc::clone(spool))?);
    modes.follow(&interfaces.agents)?;
    let lease = Lease::take(objects, config, Arc::clone(&modes))?;
    Ok((modes, Arc::new(lease)))
}

/// Looks after the flow table, what answers taught, and the lease, until `stop`.
fn sweep(
    plane: &Arc<KernelPlane>,
    names: Arc<Names>,
    tasks: &mut JoinSet<Result<()>>,
    stop: &CancellationToken,
) {
    let generation = {
        let plane = Arc::clone(plane);
        move || plane.generation()
    };
    tasks.spawn(Arc::clone(&plane.lease).keep(stop.clone()));
    let swept = (Arc::clone(&plane.flows), Arc::clone(&plane.learned), Arc::clone(&plane.buckets));
    let sweep = flows::sweep(swept, names, Arc::clone(&plane.spool), generation, stop.clone());
    tasks.spawn(async move {
        sweep.await;
        Ok(())
    });
}

/// Agents' interfaces that take nothing from a source that is bound to nobody.
fn closed(config: &Config) -> BTreeSet<String> {
    let denied = config.agents_interfaces().filter(|i| i.unbound_sources == UnboundSources::Deny);
    denied.map(|i| i.name.clone()).collect()
}

/// The token buckets; what sources without a binding may begin is limited before the first packet of theirs.
fn buckets(objects: &mut Objects, config: &Config) -> Result<Buckets> {
    let mut buckets = Buckets::take(objects)?;
    let Datapath { unbound_per_s, unbound_all_per_s, .. } = config.datapath;
    buckets.limit_unbound(unbound_per_s.get(), unbound_all_per_s.get())?;
    Ok(buckets)
}

/// The hooks for local workloads; a machine without cgroup v2 goes without them, and status says so.
fn open_workloads(programs: &mut Programs, config: &Config) -> Result<Workloads, String> {
    programs.attach_workloads(config).map_err(|error| {
        tracing::warn!("local workloads are not governed: {error:#}");
        format!("{error:#}")
    })
}

/// The proxy's cgroup, if one is configured, kept as it must be until `stop`.
fn open_proxy(
    objects: &mut Objects,
    config: &Config,
    spool: &Arc<Spool>,
    tasks: &mut JoinSet<Result<()>>,
    stop: &CancellationToken,
) -> Result<Option<Arc<Proxy>>> {
    let proxy = tokio::task::block_in_place(|| Proxy::new(objects, config))?.map(Arc::new);
    if let Some(proxy) = &proxy {
        let kept = proxy::keep(Arc::clone(proxy), Arc::clone(spool), stop.clone());
        tasks.spawn(async move {
            kept.await;
            Ok(())
        });
    }
    Ok(proxy)
}

fn offer(
    objects: &mut Objects,
    config: &Config,
    interfaces: &Interfaces,
    proxy: Option<Arc<Proxy>>,
    modes: Arc<Modes>,
) -> Result<Offer> {
    let mut shared = listeners::dns()?;
    shared.extend(listeners::proxies(config)?);
    let flows = object::pin(&config.datapath.bpffs, map::FLOWS);
    let flows = bpf::open_read_only(&flows)
        .with_context(|| format!("cannot open the flow table `{}`", flows.display()))?;
    let indices = interfaces.agents.values().copied().collect();
    Ok(Offer::kernel(shared, flows, indices, object::take(objects, map::LISTENERS)?, proxy, modes))
}

/// While there is no policy, interfaces that take nothing from strangers take nothing from them already: before the
/// programs are there, and also if a former process left another configuration's bindings.
async fn take_tables(
    programs: &mut Programs,
    names: &Names,
    config: &Config,
    interfaces: &Interfaces,
) -> Result<Tables> {
    let mut tables = Tables::take(programs.objects())?;
    let closed = closed(config);
    if closed.is_empty() || tables.live()?.number != 0 {
        return Ok(tables);
    }
    let kept = names.recall(|_| true).ok().flatten();
    let document = kept.as_ref().map_or_else(late::nothing, late::without_policy);
    let plan = tokio::task::block_in_place(|| Plan::closing(&document, &interfaces.agents, &closed))?;
    tables.apply(&plan).await?;
    Ok(tables)
}

fn names(config: &Config, interfaces: &Interfaces) -> Arc<Names> {
    let node = &config.node;
    Arc::new(Names::new(&node.name, Arc::new(SystemClock), &interfaces.agents, &node.run_dir))
}

/// Takes up what the former process left live.
async fn resume(plane: &KernelPlane) -> Result<()> {
    let live = plane.tables.lock().await.live()?;
    let over = |document: &Document| {
        late::over_since(document, plane.names.now()).map(|turned| (document.generation, turned))
    };
    if live.number == 0 {
        // A former process may have closed what was live.
        if let Some(document) = plane.names.recall(|document| over(document).is_some()).ok().flatten() {
            plane.modes.close()?;
            plane.note_late(over(&document));
            *plane.live.lock() = Some(document);
        }
        return Ok(());
    }
    match plane.names.recall(|document| document.generation == live.number) {
        Ok(Some(document)) => {
            // Written again: an interface may have another index by now.
            let mut tables = plane.tables.lock().await;
            let agents = plane.interfaces.lock().agents.clone();
            let over = over(&document);
            let plan = plane.plan_in_time(&document, &agents, over.is_some())?;
            if over.is_some() {
                plane.modes.close()?;
            }
            tables.apply(&plan).await?;
            plane.note_late(over);
            tracing::info!(generation = live.number, "the former generation stays live");
            *plane.skipped.lock() = plan.skipped;
            *plane.live.lock() = Some(document);
        }
        known => {
            match known {
                Err(error) => tracing::warn!("{error:#}"),
                _ => tracing::warn!(generation = live.number, "a generation is live whose names are lost"),
            }
            // Nobody can say whether control runs by it.
            plane.lease.doubt()?;
        }
    }
    Ok(())
}

/// Compares the configured interfaces with those of this machine.
///
/// # Errors
/// With every interface that can't be used as it is now, and what to do.
pub fn check(config: &Config) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let interfaces = runtime.block_on(async { Netlink::open()?.interfaces(config).await })?;
    let why: Vec<_> = interfaces.absent.iter().map(|a| a.why.as_str()).collect();
    ensure!(why.is_empty(), "{}", why.join("\n"));
    Ok(())
}

/// Installs the table that shuts agents out, unless this node has its own already. Needs neither programs
/// nor interfaces, so it can be done before the network is there.
///
/// # Errors
/// If it could not be installed.
pub fn close(config: &Config) -> Result<()> {
    match config.datapath.mode {
        DatapathMode::None => Ok(()),
        DatapathMode::Kernel => Firewall::close_if_missing(config),
    }
}

/// Removes programs, links, maps, rules and routes. Local commands are ended first. Traffic of agents stops
/// and stays stopped: what remains is a table `inet clawgress` that takes nothing from their interfaces and
/// forwards nothing to them, until somebody removes it (`nft delete table inet clawgress`).
///
/// # Errors
/// If the role still runs, or something could not be removed.
pub fn detach(config: &Config) -> Result<()> {
    if config.datapath.mode == DatapathMode::None {
        return Ok(());
    }
    for socket in [config.datapath_socket(), config.handover_socket()] {
        ensure!(
            UnixStream::connect(&socket).is_err(),
            "the datapath role runs (`{}` answers); stop it first: systemctl stop clawgress-datapath",
            socket.display()
        );
    }
    Firewall::close_if_missing(config)?;
    if let Ok(workloads) = Workloads::locate(config) {
        workloads.stop()?;
        workloads.remove_parent();
    }
    attach::detach_clsact(config.interfaces.iter().map(|i| i.name.as_str()));
    bpf::remove_directory(&config.datapath.bpffs)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let netlink = Netlink::open()?;
        netlink.bind(&Neighbours::new()).await?;
        Routes::open(netlink).await?.remove().await;
        Ok::<_, anyhow::Error>(())
    })?;
    // Without programs there is no mark, so the table drops everything until this one takes its place.
    Firewall::close(config)
}
