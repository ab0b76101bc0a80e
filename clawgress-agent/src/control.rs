//! The control role: state, policy, audit and administration. It has no capability and touches no packet.
//!
//! A change is drafted, compiled and committed here ([`govern`]), then pushed to the datapath ([`kernel`])
//! and to every L7 worker ([`snapshots`]); their records come back into the one log ([`audit`]).

mod admin;
pub mod agents;
pub mod api_keys;
pub mod audit;
mod authorities;
mod bundles;
mod candidate;
mod due;
mod enforcement;
mod fetch;
mod generation;
pub mod geo;
mod geo_files;
pub mod govern;
pub mod groups;
mod in_force;
mod interception;
mod issuers;
pub mod kernel;
mod keyring;
pub mod model;
mod observe;
mod planes;
mod prepare;
mod provider_keys;
mod providers;
pub mod quarantine;
mod render;
mod resolved;
mod revisions;
mod runs;
pub mod signatures;
mod sink;
pub mod snapshots;
mod sources;
mod status;
pub mod store;
mod told;

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use clawgress_api::clock::{Clock, SystemClock};
use clawgress_api::config::{Config, DatapathMode};
use clawgress_api::proto::admin_server::AdminServer;
use clawgress_api::proto::audit_sink_server::AuditSinkServer;
use clawgress_api::proto::enforcement_server::EnforcementServer;
use clawgress_api::proto::snapshots_server::SnapshotsServer;
use clawgress_api::socket::{self, Server, Servers};
use parking_lot::Mutex;
use tokio::net::UnixListener;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

use self::audit::{AuditLog, Bounds};
use self::bundles::Bundles;
use self::due::Dues;
use self::geo_files::GeoFiles;
use self::govern::Governor;
use self::kernel::Link;
use self::keyring::Keyring;
use self::observe::Observations;
use self::providers::Providers;
use self::quarantine::Quarantines;
use self::resolved::Resolved;
use self::runs::Runs;
use self::signatures::Signatures;
use self::snapshots::Workers;
use self::store::{RedbStore, StateStore};
use crate::peer::{Access, Socket};
use crate::serve::{Either, SOCKET_MODE, grpc, open_run_dir};
use clawgress_api::notify;

/// Largest administrative request: a policy with its named sets, as JSON in an envelope.
const ADMIN_BYTES_MAX: usize = store::VALUE_BYTES_MAX + (1 << 20);
/// Largest question of a worker that enforces: as many scopes as there may be, with their names.
const QUESTION_BYTES_MAX: usize = 32 << 10;
/// Largest batch of audit records from L7.
const BATCH_BYTES_MAX: usize = 16 << 20;

/// The role's parts, as its services share them.
#[derive(Debug)]
struct Control {
    governor: Arc<Governor>,
    quarantines: Arc<Quarantines>,
    providers: Arc<Providers>,
    bundles: Arc<Bundles>,
    audit: AuditLog,
    observations: Arc<Observations>,
    runs: Runs,
    resolved: Arc<Resolved>,
    workers: Arc<Workers>,
    geo: GeoFiles,
    clock: Arc<dyn Clock>,
    stop: CancellationToken,
}

/// Runs the role until `stop`.
///
/// # Errors
/// If its state can't be opened, or its sockets can't be served.
pub async fn run(config: Arc<Config>, stop: CancellationToken) -> Result<()> {
    state_dir(&config.node.state_dir)?;
    let path = config.node.state_dir.join("control").join("state.redb");
    let opened = tokio::task::spawn_blocking({
        let path = path.clone();
        move || RedbStore::open(&path)
    });
    let store = opened.await?.with_context(|| format!("cannot open the state store `{}`", path.display()))?;
    serve(config, Arc::new(store), Arc::new(SystemClock), stop).await
}

/// Runs the role over any store.
///
/// # Errors
/// If the audit log can't be opened, or the sockets can't be served.
pub async fn serve(
    config: Arc<Config>,
    store: Arc<dyn StateStore>,
    clock: Arc<dyn Clock>,
    stop: CancellationToken,
) -> Result<()> {
    // Whatever ends this role ends all its tasks.
    let stop = stop.child_token();
    let _end = stop.clone().drop_guard();
    let audit = log(&config, &clock).await?;
    let to = |path: &Path, server| -> Result<Channel> {
        Ok(socket::channel_to(path, Servers::new(&config.access, server)?))
    };
    let signatures = Arc::new(Signatures::new(to(&config.signer_socket(), Server::Keys)?));
    let parts = (Arc::clone(&config), Arc::clone(&store), audit.clone(), Arc::clone(&clock));
    let governor = Arc::new(Governor::open(parts, Arc::clone(&signatures)).await?);
    // Before anybody is told of a generation: its moment may have passed while this role was away. What fails
    // is tried again and told in status, which needs this role.
    governor.turn_if_due().await;
    if let Err(error) = governor.take_over_groups().await {
        tracing::error!(%error, "groups that agents are in are not registered; the next start tries again");
    }
    let providers = Arc::new(Providers::open(Arc::clone(&governor), Arc::clone(&clock)).await);
    let bundles = Arc::new(Bundles::open(Arc::clone(&governor), Arc::clone(&clock)).await);
    let quarantines = Arc::new(Quarantines::open(Arc::clone(&governor), Arc::clone(&clock)).await?);
    let observations = observations(&config, &governor, &clock).await?;
    let dues = Arc::new(Dues::open(Arc::clone(&store)).await?);
    told::follow(&audit, &governor, &quarantines, &dues);
    let link = Arc::new(Link::new(to(&config.datapath_socket(), Server::Datapath)?));
    let (keys, sealer) =
        (to(&config.keys_socket(), Server::Keys)?, to(&config.signer_socket(), Server::Keys)?);
    let runs = Runs {
        governor: Arc::clone(&governor),
        quarantines: Arc::clone(&quarantines),
        link: Arc::clone(&link),
        keyring: Keyring::new(keys, sealer, store),
        observations: Arc::clone(&observations),
        clock: Arc::clone(&clock),
        held: Mutex::default(),
        ended: Notify::new(),
    };
    runs.close_orphans().await?;
    let resolved = Arc::new(Resolved::new(&governor, &observations, &link, &clock));
    let workers = Arc::new(Workers::new(&config));
    governor.prepare_by(prepare::Planes { link: Arc::clone(&link), workers: Arc::clone(&workers) });
    let control = Arc::new(Control {
        governor,
        quarantines,
        providers,
        bundles,
        audit,
        observations,
        runs,
        resolved,
        workers,
        geo: GeoFiles::default(),
        clock,
        stop: stop.clone(),
    });
    let (control_socket, admin_socket) = open_sockets(&config)?;
    let tasks = [
        tokio::spawn(follow(Arc::clone(&control))),
        tokio::spawn(push(Arc::clone(&control), link)),
        tokio::spawn(sweep(Arc::clone(&control))),
        tokio::spawn(release(Arc::clone(&control), dues)),
        tokio::spawn(keep_time(Arc::clone(&control))),
        tokio::spawn(watch_kernel(Arc::clone(&control))),
        tokio::spawn(watch_geo(Arc::clone(&control))),
        tokio::spawn(fetch_keys(Arc::clone(&control))),
        tokio::spawn(follow_bundles(Arc::clone(&control))),
        tokio::spawn(tell_resolved(Arc::clone(&control))),
        tokio::spawn(observe(Arc::clone(&control))),
        tokio::spawn(end_adoption(signatures, stop.clone())),
    ];
    notify::ready("control");
    let end = tokio::try_join!(
        grpc(control_socket, Access::new(&config, Socket::Control)?, planes(&control), stop.clone()),
        grpc(admin_socket, Access::new(&config, Socket::Admin)?, administration(&control), stop.clone()),
    );
    stop.cancel();
    for task in tasks {
        let _ = task.await;
    }
    end.map(drop)
}

/// The audit log.
async fn log(config: &Config, clock: &Arc<dyn Clock>) -> Result<AuditLog> {
    let directory = config.node.state_dir.join("audit");
    let bounds = Bounds {
        segment_bytes_max: config.audit.segment_bytes_max,
        retention_bytes_max: config.audit.retention_bytes_max,
    };
    let audit = AuditLog::open(directory.clone(), bounds, config.node.name.clone(), Arc::clone(clock)).await;
    audit.with_context(|| format!("cannot open the audit log in `{}`", directory.display()))
}

/// What the records say of agents, from now on.
async fn observations(
    config: &Config,
    governor: &Arc<Governor>,
    clock: &Arc<dyn Clock>,
) -> Result<Arc<Observations>> {
    let directory = config.node.state_dir.join("control").join("history");
    let opened = Observations::open(&directory, Arc::clone(governor), Arc::clone(clock)).await;
    let opened =
        opened.with_context(|| format!("cannot keep agents' histories in `{}`", directory.display()));
    let observations = Arc::new(opened?);
    let observer = Arc::downgrade(&observations);
    governor.audit.observe(move |record| {
        if let Some(observations) = observer.upgrade() {
            observations.note(record);
        }
    });
    Ok(observations)
}

async fn tell_resolved(control: Arc<Control>) {
    control.resolved.run(control.stop.clone()).await;
}

async fn observe(control: Arc<Control>) {
    control.observations.run(&control.audit, control.stop.clone()).await;
}

fn open_sockets(config: &Config) -> Result<(UnixListener, UnixListener)> {
    open_run_dir(config)?;
    let open = |path: &Path| {
        socket::bind(path, SOCKET_MODE).with_context(|| format!("cannot listen on `{}`", path.display()))
    };
    Ok((open(&config.control_socket())?, open(&config.admin_socket())?))
}

/// The directory above those of the roles: everybody's of them may pass through.
fn state_dir(path: &Path) -> Result<()> {
    let made = DirBuilder::new().recursive(true).mode(0o711).create(path);
    made.with_context(|| format!("cannot create `{}`", path.display()))
}

async fn follow(control: Arc<Control>) {
    control.governor.follow(control.stop.clone()).await;
}

async fn push(control: Arc<Control>, link: Arc<Link>) {
    let governed = (Arc::clone(&control.governor), Arc::clone(&control.quarantines));
    link.run(governed, control.audit.clone(), control.stop.clone()).await;
}

async fn release(control: Arc<Control>, dues: Arc<Dues>) {
    let (quarantines, stop) = (&control.quarantines, &control.stop);
    tokio::join!(quarantines.run(stop.clone()), told::impose(&dues, quarantines, stop.clone()));
}

async fn sweep(control: Arc<Control>) {
    control.runs.sweep(control.stop.clone()).await;
}

async fn watch_kernel(control: Arc<Control>) {
    if control.governor.config.datapath.mode == DatapathMode::None {
        // There is no kernel plane that could be behind.
        return;
    }
    let link = Arc::clone(&control.runs.link);
    link.watch(&control.governor, &control.audit, control.stop.clone()).await;
}

async fn keep_time(control: Arc<Control>) {
    control.governor.keep_time(control.stop.clone()).await;
}

async fn watch_geo(control: Arc<Control>) {
    control.geo.watch(&control.governor, control.stop.clone()).await;
}

/// What the planes ask for, on one socket.
type Planes = Either<
    SnapshotsServer<snapshots::Service>,
    Either<EnforcementServer<enforcement::Service>, AuditSinkServer<sink::Service>>,
>;

async fn fetch_keys(control: Arc<Control>) {
    control.providers.run(control.stop.clone()).await;
}

async fn follow_bundles(control: Arc<Control>) {
    control.bundles.run(control.stop.clone()).await;
}

/// What there was of the time before signatures is signed by now.
async fn end_adoption(signatures: Arc<Signatures>, stop: CancellationToken) {
    signatures.end_adoption(stop).await;
}

fn planes(control: &Control) -> Planes {
    let snapshots = snapshots::Service {
        governor: Arc::clone(&control.governor),
        quarantines: Arc::clone(&control.quarantines),
        providers: Arc::clone(&control.providers),
        workers: Arc::clone(&control.workers),
        stop: control.stop.clone(),
    };
    let sink = sink::Service { audit: control.audit.clone(), stop: control.stop.clone() };
    let enforcement = enforcement::Service {
        quarantines: Arc::clone(&control.quarantines),
        observations: Arc::clone(&control.observations),
        quota: Arc::default(),
        resolved: Arc::clone(&control.resolved),
    };
    Either(
        SnapshotsServer::new(snapshots),
        Either(
            EnforcementServer::new(enforcement).max_decoding_message_size(QUESTION_BYTES_MAX),
            AuditSinkServer::new(sink).max_decoding_message_size(BATCH_BYTES_MAX),
        ),
    )
}

fn administration(control: &Arc<Control>) -> AdminServer<admin::Service> {
    AdminServer::new(admin::Service(Arc::clone(control))).max_decoding_message_size(ADMIN_BYTES_MAX)
}
