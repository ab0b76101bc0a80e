//! The lab itself: namespaces, links, the outside's process, and tear-down.
//!
//! ```text
//!   known ──┐                                ┌── 203.0.113.0/24   web, TLS, LLM, DNS
//!           ├─ lan ─ agents0 [ gw ] wan0 ─ world
//!   anon  ──┘                                └── 198.51.100.0/24  FORBIDDEN
//! ```
//!
//! The outside has routes back to the agents' subnet, so that a leak would be a whole conversation.

mod exec;
pub mod gateway;
mod namespace;
mod record;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};

pub use exec::{Daemon, Output, finish};
pub use gateway::{
    BEHIND, Gateway, GatewayOptions, Role, cgroup_mount, descriptors, enter, mount_bpffs, privileges,
};
pub use record::kept;

use crate::plan;
use crate::world::{self, control};
use record::Record;

/// Time for the outside to be ready on a busy machine.
const WORLD_READY: Duration = Duration::from_secs(20);
/// Time for a command in a host, unless it is told otherwise.
pub const RUN_TIME_MAX: Duration = Duration::from_secs(30);

/// A namespace of the lab.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Host {
    /// The host whose source is bound to an agent.
    Known,
    /// The host nobody knows.
    Anon,
    /// The agents' switch.
    Lan,
    /// The gateway.
    Gateway,
    /// The outside.
    World,
}

impl Host {
    /// Every one.
    pub const ALL: [Host; 5] = [Host::Known, Host::Anon, Host::Lan, Host::Gateway, Host::World];

    /// As on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Host::Known => "known",
            Host::Anon => "anon",
            Host::Lan => "lan",
            Host::Gateway => "gw",
            Host::World => "world",
        }
    }

    /// The host with this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Host> {
        Host::ALL.into_iter().find(|h| h.name() == name)
    }
}

/// What came to FORBIDDEN. All zero, unless something leaked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Forbidden {
    /// Packets of any protocol, counted by nftables as they arrive.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Connections the sink accepted.
    pub connections: u64,
    /// Payload the sink received, bytes.
    pub payload_bytes: u64,
}

/// How a lab is made.
#[derive(Clone, Debug, Default)]
pub struct Builder {
    name: Option<String>,
    routed: bool,
    keep: bool,
}

/// A small internet. Dropping it takes everything away, unless it is kept.
#[derive(Debug)]
pub struct Lab {
    record: Record,
    world: Option<Daemon>,
}

/// Labs made by this process.
static LABS: AtomicU32 = AtomicU32::new(0);

impl Builder {
    /// A name in place of a generated one.
    #[must_use]
    pub fn name(mut self, name: &str) -> Self {
        self.name = Some(name.to_owned());
        self
    }

    /// Without a gateway: its namespace forwards everything. For testing the lab itself.
    #[must_use]
    pub fn routed(mut self) -> Self {
        self.routed = true;
        self
    }

    /// Neither the end of this process nor dropping the lab takes it away; [`Lab::destroy`] does.
    #[must_use]
    pub fn keep(mut self) -> Self {
        self.keep = true;
        self
    }

    /// Makes it. What a killed process left behind is swept first.
    ///
    /// # Errors
    /// Without root, and if any part can't be made; what was made by then is taken away.
    pub fn start(self) -> anyhow::Result<Lab> {
        ensure!(
            nix::unistd::geteuid().is_root(),
            "the lab makes network namespaces and loads kernel programs: run this as root"
        );
        let _lock = record::lock()?;
        record::sweep();
        let number = LABS.fetch_add(1, Ordering::Relaxed);
        let name = self.name.unwrap_or_else(|| format!("cl{}-{number}", std::process::id()));
        let record = Record::create(&name, self.keep)?;
        // From here on, dropping the lab undoes what was done.
        let mut lab = Lab { record, world: None };
        namespace::build(&lab, self.routed).context("cannot make the lab's network")?;
        lab.write_resolver_files()?;
        lab.start_world()?;
        Ok(lab)
    }
}

impl Lab {
    /// A lab to be.
    #[must_use]
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// The kept lab of this name, made by another process.
    ///
    /// # Errors
    /// If there is none.
    pub fn attach(name: &str) -> anyhow::Result<Lab> {
        Ok(Lab { record: Record::read(name)?, world: None })
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.record.name
    }

    /// Its directory: configuration, state, logs, the CA's certificate. World-readable, but for what
    /// the gateway protects.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.record.dir
    }

    /// The test CA's certificate, PEM.
    #[must_use]
    pub fn ca(&self) -> PathBuf {
        self.dir().join(world::CA)
    }

    /// Name of a host's namespace.
    #[must_use]
    pub fn namespace(&self, host: Host) -> String {
        format!("{}-{}", self.record.name, host.name())
    }

    /// What arrived outside.
    ///
    /// # Errors
    /// If the outside does not answer.
    pub fn world(&self) -> anyhow::Result<control::Stats> {
        control::ask(&self.dir().join(world::SOCKET), &control::Ask::Stats)
    }

    /// Lets a held stream of the LLM mock go on.
    ///
    /// # Errors
    /// If the outside does not answer.
    pub fn release(&self, hold: &str) -> anyhow::Result<()> {
        control::ask(&self.dir().join(world::SOCKET), &control::Ask::Release(hold.to_owned())).map(drop)
    }

    /// What came to FORBIDDEN.
    ///
    /// # Errors
    /// If the outside does not answer.
    pub fn forbidden(&self) -> anyhow::Result<Forbidden> {
        let stats = self.world()?;
        let counters = self.run(Host::World, &["nft", "-j", "list", "counters", "table", "inet", "lab"])?;
        let counters: serde_json::Value = serde_json::from_str(&counters.check()?.stdout)?;
        let counter = counters.pointer("/nftables").and_then(serde_json::Value::as_array);
        let counter = counter
            .into_iter()
            .flatten()
            .find_map(|c| c.get("counter"))
            .context("the counter of FORBIDDEN is gone")?;
        let number = |name| counter.get(name).and_then(serde_json::Value::as_u64).context("no such number");
        Ok(Forbidden {
            packets: number("packets")?,
            bytes: number("bytes")?,
            connections: stats.sink_connections,
            payload_bytes: stats.sink_bytes,
        })
    }

    /// Whether it outlives the process that made it.
    #[must_use]
    pub fn is_kept(&self) -> bool {
        self.record.kept
    }

    /// Takes a kept lab away.
    ///
    /// # Errors
    /// Never for a lab that exists; what can't be removed is said by the tools that tried.
    pub fn destroy(mut self) -> anyhow::Result<()> {
        self.record.kept = false;
        drop(self);
        Ok(())
    }

    /// Waits until `ready` is true.
    ///
    /// # Errors
    /// If it is not within `time`.
    pub fn wait(
        &self,
        what: &str,
        time: Duration,
        mut ready: impl FnMut() -> anyhow::Result<bool>,
    ) -> anyhow::Result<()> {
        let begun = Instant::now();
        let mut last = None;
        while begun.elapsed() < time {
            match ready() {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                Err(error) => last = Some(error),
            }
            std::thread::sleep(Duration::from_millis(25));
        }
        match last {
            Some(error) => Err(error.context(format!("{what}: not within {time:?}"))),
            None => bail!("{what}: not within {time:?}"),
        }
    }

    /// Each host asks the outside's DNS server. The gateway's own file is the same.
    fn write_resolver_files(&self) -> anyhow::Result<()> {
        let text = format!("nameserver {}\noptions timeout:2 attempts:2\n", plan::DNS.0);
        fs::write(self.resolver_file(), text).context("cannot write the hosts' resolv.conf")
    }

    fn resolver_file(&self) -> PathBuf {
        self.dir().join("resolv.conf")
    }

    fn start_world(&mut self) -> anyhow::Result<()> {
        let program = program("clawgress-world")?;
        let dir = self.dir().to_owned();
        let argv = [program.as_os_str(), dir.as_os_str()];
        let mut daemon = self.spawn(Host::World, "world", &argv)?;
        let socket = self.dir().join(world::SOCKET);
        self.wait("the outside's servers", WORLD_READY, || {
            daemon.running()?;
            Ok(control::ask(&socket, &control::Ask::Stats).is_ok())
        })?;
        self.world = Some(daemon);
        Ok(())
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if self.record.kept {
            return;
        }
        if std::thread::panicking() {
            exec::show_logs(self.dir());
        }
        self.world = None;
        let panicked = exec::panicked(self.dir());
        self.record.destroy();
        // Whatever bytes came to them: none of the programs may panic, and a task that did would be missed by nobody.
        assert!(std::thread::panicking() || panicked.is_empty(), "a program panicked: {panicked:#?}");
    }
}

/// A program of this workspace, beside the running one.
///
/// # Errors
/// If it has not been built.
pub fn program(name: &str) -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe().context("cannot find the running program")?;
    // Tests are in `deps/`, one below the programs.
    let found = own.ancestors().skip(1).take(2).map(|d| d.join(name)).find(|p| p.is_file());
    found.with_context(|| format!("`{name}` has not been built; run `cargo xtask build`"))
}
