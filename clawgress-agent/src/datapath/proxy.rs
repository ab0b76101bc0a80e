//! The cgroup the proxy runs in: its own sockets are judged by the kernel for the agent they are registered
//! for, and L7 is handed its listeners only where that holds. Also which DNS servers it may ask for itself.
//!
//! Must never let a proxy serve agents from a cgroup without its hooks, where one is configured.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use aya::maps::{HashMap, MapData};
use clawgress_api::config::Config;
use clawgress_ebpf_common::{Dial, ResolverKey, bound, map, user};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use super::bpf::{self, Plain};
use super::object::{self, Objects, program};
use super::spool::Spool;
use super::workloads;
use crate::cgroups;

/// How often hooks and DNS servers are looked at: the longest time that hooks which somebody took away stay
/// away.
const INTERVAL: Duration = Duration::from_secs(2);
/// How long a socket may be registered: the proxy takes it back when the call returns that begins to connect, and a
/// busy machine may stop it in between for seconds.
const DIAL_TIME_MAX: Duration = Duration::from_secs(10);
/// Levels of cgroups below the configured one in which a proxy may run: a slice and its services.
const NESTED_MAX: usize = 1;
/// Cgroups looked at there: more than there are proxies at once.
const CGROUPS_MAX: usize = 64;
/// What the system's resolver asks where `[l7]` names no servers, and at which port (resolv.conf(5)).
const RESOLV_CONF: &str = "/etc/resolv.conf";
const DNS_PORT: u16 = 53;

/// Attach types of `bpf(2)` (linux/bpf.h), in the order of [`program::DIAL`].
const ATTACH_TYPES: [u32; 6] = [10, 11, 14, 15, 1, 0];
/// `BPF_CGROUP_INET_SOCK_CREATE`, and where its link is pinned: the program hangs on workloads too.
const SOCK_CREATE: u32 = 2;
const SOCK_PIN: &str = "claw_dial_sock";

/// The proxy's cgroup.
pub struct Proxy {
    cgroup: PathBuf,
    links: PathBuf,
    hooks: Vec<Hook>,
    registered: Mutex<Registered>,
    /// Opened for L7, which may write and not read.
    table: OwnedFd,
    resolvers: Mutex<Resolvers>,
    /// What could not be attached or written, in words.
    trouble: Mutex<Option<String>>,
}

struct Hook {
    pin: &'static str,
    attach_type: u32,
    program: OwnedFd,
}

/// The sockets that are registered, and since when they were seen.
struct Registered {
    map: HashMap<MapData, u64, Plain<Dial>>,
    seen: BTreeMap<u64, Instant>,
}

/// The map of DNS servers, and where they are configured.
struct Resolvers {
    map: HashMap<MapData, Plain<ResolverKey>, u32>,
    named: Vec<SocketAddr>,
    written: Option<BTreeSet<SocketAddr>>,
}

// === impl Proxy ===

impl std::fmt::Debug for Proxy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Proxy").field("cgroup", &self.cgroup).finish_non_exhaustive()
    }
}

impl Proxy {
    /// Takes the programs and maps out of the object; `None` if no cgroup is configured. Where a proxy runs on
    /// from before, its hooks are replaced by this object's.
    ///
    /// # Errors
    /// If a map or program is missing, or the DNS servers can't be written.
    pub fn new(objects: &mut Objects, config: &Config) -> Result<Option<Proxy>> {
        let Some(cgroup) = &config.l7.cgroup else { return Ok(None) };
        let names = program::DIAL.into_iter().zip(ATTACH_TYPES);
        let mut hooks = Vec::new();
        for (name, pin, attach_type) in names.map(|(name, attach_type)| (name, name, attach_type)).chain([(
            program::SOCK,
            SOCK_PIN,
            SOCK_CREATE,
        )]) {
            let found =
                objects.program(name).with_context(|| format!("the object has no program `{name}`"))?;
            let program = found.fd()?.as_fd().try_clone_to_owned()?;
            hooks.push(Hook { pin, attach_type, program });
        }
        let root = workloads::root(config)?;
        let cgroup = root.join(cgroup);
        ensure!(
            cgroup != root && !cgroup.starts_with(root.join(cgroups::WORKLOADS)),
            "`{}` is not the proxy's own cgroup, but everybody's or local commands'; correct `cgroup` in [l7]",
            cgroup.display()
        );
        let table = object::pin(&config.datapath.bpffs, map::DIALS);
        let proxy = Proxy {
            cgroup,
            links: config.datapath.bpffs.join("links"),
            hooks,
            registered: Mutex::new(Registered {
                map: object::take(objects, map::DIALS)?,
                seen: BTreeMap::new(),
            }),
            table: bpf::open_write_only(&table)
                .with_context(|| format!("cannot open the table of dials `{}`", table.display()))?,
            resolvers: Mutex::new(Resolvers {
                map: object::take(objects, map::RESOLVERS)?,
                named: config.l7.resolvers.iter().map(|server| server.address).collect(),
                written: None,
            }),
            trouble: Mutex::default(),
        };
        proxy.resolvers.lock().write()?;
        if proxy.cgroup.exists() {
            proxy.attach(true)?;
        }
        Ok(Some(proxy))
    }

    /// The table in which L7 registers its sockets.
    #[must_use]
    pub fn table(&self) -> &OwnedFd {
        &self.table
    }

    /// What hinders judging the proxy's sockets, if something does.
    #[must_use]
    pub fn trouble(&self) -> Option<String> {
        self.trouble.lock().clone()
    }

    /// Whether `pid` may be given listeners: it runs in the cgroup, and the hooks hold that.
    ///
    /// # Errors
    /// If not, with what to do.
    pub fn admit(&self, pid: Option<i32>) -> Result<()> {
        self.attach(false)?;
        let pid = pid.context("the process at the other end of the socket can't be told")?;
        ensure!(
            runs_in(&self.cgroup, pid, NESTED_MAX)?,
            "process {pid} does not run in `{}` or right below; start l7 in there, or correct `cgroup` in [l7]",
            self.cgroup.display()
        );
        Ok(())
    }

    /// Attaches what is not attached to the cgroup as it is now, and tells the hooks that were not. With
    /// `renew`, those that are run this object's programs.
    fn attach(&self, renew: bool) -> Result<Vec<&'static str>> {
        let shown = self.cgroup.display();
        let cgroup = File::open(&self.cgroup).with_context(|| {
            format!(
                "cannot open the proxy's cgroup `{shown}`; start l7 in there, or correct `cgroup` in [l7]"
            )
        })?;
        let id = cgroup.metadata()?.ino();
        let mut attached = Vec::new();
        for hook in &self.hooks {
            let pin = self.links.join(hook.pin);
            match bpf::link_target(&pin) {
                Ok(target) if target == id => {
                    if renew {
                        bpf::replace(&bpf::open(&pin)?, &hook.program)
                            .with_context(|| format!("cannot replace the program at `{}`", pin.display()))?;
                    }
                    continue;
                }
                // Of a cgroup that is gone: services make theirs anew at each start.
                Ok(_) => {
                    fs::remove_file(&pin).with_context(|| format!("cannot remove `{}`", pin.display()))?
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    return Err(error).with_context(|| format!("cannot open `{}`", pin.display()));
                }
            }
            bpf::attach(&hook.program, &cgroup, hook.attach_type, &pin)
                .with_context(|| format!("cannot attach `{}` to `{shown}`", hook.pin))?;
            attached.push(hook.pin);
        }
        Ok(attached)
    }

    fn look(&self) -> Result<Vec<&'static str>> {
        self.registered.lock().forget(Instant::now());
        self.resolvers.lock().write()?;
        if self.cgroup.exists() { self.attach(false) } else { Ok(Vec::new()) }
    }
}

/// Whether the process is in the cgroup, or in one at most `nested` levels below, where the hooks count as well.
fn runs_in(cgroup: &Path, pid: i32, nested: usize) -> Result<bool> {
    let path = cgroup.join("cgroup.procs");
    let members = fs::read_to_string(&path).with_context(|| format!("cannot read `{}`", path.display()))?;
    if members.lines().any(|line| line.parse() == Ok(pid)) {
        return Ok(true);
    }
    if nested == 0 {
        return Ok(false);
    }
    let below = fs::read_dir(cgroup).with_context(|| format!("cannot list `{}`", cgroup.display()))?;
    let directories = below.flatten().filter(|e| e.file_type().is_ok_and(|t| t.is_dir()));
    // One that cannot be read has just gone, with its processes.
    Ok(directories.take(CGROUPS_MAX).any(|e| runs_in(&e.path(), pid, nested - 1).unwrap_or(false)))
}

/// Keeps the hooks attached and the DNS servers up to date until `stop`; tells what it repaired.
pub async fn keep(proxy: Arc<Proxy>, spool: Arc<Spool>, stop: CancellationToken) {
    let mut ticks = tokio::time::interval(INTERVAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = ticks.tick() => {}
        }
        let looked = tokio::task::block_in_place(|| proxy.look());
        let trouble = match looked {
            Ok(attached) => {
                for hook in attached {
                    spool.change(format!("datapath: {hook} was attached to the proxy's cgroup"));
                }
                None
            }
            Err(error) => {
                let trouble = format!("the proxy's own connections are not judged by the kernel: {error:#}");
                tracing::error!("{trouble}");
                Some(trouble)
            }
        };
        *proxy.trouble.lock() = trouble;
    }
}

// === impl Registered ===

impl Registered {
    /// Forgets what a proxy left when it was killed: what is older than any dial. Whoever is connected now says
    /// nothing about it: a process may dial that came to a former role, or one may be killed beside others.
    fn forget(&mut self, now: Instant) {
        let present = self.map.keys().take(bound::DIALS_MAX as usize).filter_map(Result::ok);
        let mut seen = BTreeMap::new();
        for cookie in present {
            seen.insert(cookie, self.seen.get(&cookie).copied().unwrap_or(now));
        }
        seen.retain(|cookie, since| {
            let is_left = now.duration_since(*since) >= DIAL_TIME_MAX;
            if is_left {
                // Gone already, or of no use to anybody: cookies are never given twice.
                let _ = self.map.remove(cookie);
            }
            !is_left
        });
        self.seen = seen;
    }
}

// === impl Resolvers ===

impl Resolvers {
    /// Writes the servers as they are configured now.
    fn write(&mut self) -> Result<()> {
        let wanted = if self.named.is_empty() {
            system(Path::new(RESOLV_CONF))?
        } else {
            self.named.iter().copied().collect()
        };
        ensure!(
            wanted.len() <= bound::RESOLVERS_MAX as usize,
            "{} DNS servers are configured, and the kernel plane holds {}",
            wanted.len(),
            bound::RESOLVERS_MAX
        );
        if self.written.as_ref() == Some(&wanted) {
            return Ok(());
        }
        let keys: Vec<_> = wanted.iter().map(key).collect();
        let present: Vec<_> = self.map.keys().collect::<Result<_, _>>()?;
        for former in present.iter().filter(|k| !keys.contains(&k.0)) {
            self.map.remove(former)?;
        }
        for key in keys {
            self.map.insert(Plain(key), 1, 0)?;
        }
        self.written = Some(wanted);
        Ok(())
    }
}

fn key(server: &SocketAddr) -> ResolverKey {
    ResolverKey {
        address: user::address(server.ip().to_canonical()),
        port_be: server.port().to_be(),
        pad: [0; 2],
    }
}

/// The system's DNS servers; none if it names none.
fn system(path: &Path) -> Result<BTreeSet<SocketAddr>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(servers(&text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(BTreeSet::new()),
        Err(error) => Err(error).with_context(|| format!("cannot read `{}`", path.display())),
    }
}

fn servers(text: &str) -> BTreeSet<SocketAddr> {
    text.lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            let address = words.next().filter(|w| *w == "nameserver").and(words.next())?;
            // A zone says by which interface; the address is the same.
            let address = address.split('%').next()?;
            Some(SocketAddr::new(address.parse::<IpAddr>().ok()?, DNS_PORT))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_systems_servers_are_read_as_the_resolver_reads_them() {
        let text = "# nameserver 192.0.2.9\n;nameserver 192.0.2.8\nsearch example.test\n\
                    nameserver 192.0.2.1\n nameserver\tfe80::1%eth0 \nnameserver x\nnameservers 192.0.2.7\n";
        let want = ["192.0.2.1:53", "[fe80::1]:53"].map(|a| a.parse().expect("address"));
        assert_eq!(servers(text), BTreeSet::from(want));
    }
}
