//! What indices in kernel records stand for: agents and policy ids of the generations that may still be
//! spoken of. Also turns kernel events and flows into audit records.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use clawgress_api::MESSAGE_BYTES_MAX;
use clawgress_api::clock::Clock;
use clawgress_api::{
    AgentRef, AuditRecord, Destination, Ingress, KernelGeneration, Plane, RecordKind, Revisions, SourceRef,
    Verdict as Said,
};
use clawgress_ebpf_common::user::ip;
use clawgress_ebpf_common::{
    DropReason, Event, Flow, FlowKey, IFINDEX_LOCAL, event_kind, flow_flag, hook, protocol,
};
use clawgress_identity::{Agent, AgentId, IdentityMethod, PolicyOwner};
use clawgress_policy::Transport;
use clawgress_policy::kernel::KernelTables;
use jiff::Timestamp;
use nix::libc;
use nix::unistd::geteuid;
use parking_lot::{Mutex, RwLock};

/// Generations remembered: the live one, and one that flows or queued events still name.
const GENERATIONS_MAX: usize = 2;

/// The directory of the kept document below `run_dir`, where every role may make files: its own, so that
/// none but this one can put a document there.
const DIRECTORY: &str = "datapath";
const FILE: &str = "generation.json";

/// The document as control sent it.
pub type Document = KernelGeneration<KernelTables>;

/// Names by generation.
#[derive(Debug)]
pub struct Names {
    node: String,
    clock: Arc<dyn Clock>,
    interfaces: RwLock<BTreeMap<u32, String>>,
    /// Where the live document is kept for the next process.
    directory: PathBuf,
    file: PathBuf,
    generations: RwLock<BTreeMap<u64, Generation>>,
    /// Why the document can't be kept or was not taken up, in words.
    trouble: Mutex<Option<String>>,
}

#[derive(Debug)]
struct Generation {
    agents: BTreeMap<u32, Agent>,
    policies: Vec<Vec<String>>,
    revisions: BTreeMap<PolicyOwner, u64>,
}

impl Names {
    /// Names of `node`, whose agents' interfaces are `interfaces` (name to index).
    #[must_use]
    pub fn new(
        node: &str,
        clock: Arc<dyn Clock>,
        interfaces: &BTreeMap<String, u32>,
        run_dir: &Path,
    ) -> Self {
        Names {
            node: node.to_owned(),
            clock,
            interfaces: RwLock::new(by_index(interfaces)),
            directory: run_dir.join(DIRECTORY),
            file: run_dir.join(DIRECTORY).join(FILE),
            generations: RwLock::default(),
            trouble: Mutex::default(),
        }
    }

    /// The agents' interfaces are these now (name to index).
    pub fn follow(&self, interfaces: &BTreeMap<String, u32>) {
        *self.interfaces.write() = by_index(interfaces);
    }

    /// Learns the names of `document`, and keeps it for the next process: the kernel goes on with the
    /// generation when this one ends.
    pub fn learn(&self, document: &Document) {
        self.insert(document);
        let kept = self.save(document).err();
        let trouble =
            kept.map(|error| format!("the live generation is not kept for the next start: {error:#}"));
        if let Some(trouble) = &trouble {
            tracing::error!("{trouble}");
        }
        *self.trouble.lock() = trouble;
    }

    /// The time of the wall.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// What hinders keeping the document, if something does.
    #[must_use]
    pub fn trouble(&self) -> Option<String> {
        self.trouble.lock().clone()
    }

    /// The document the former process left, if `is_it` says so.
    ///
    /// # Errors
    /// If there is a file that can't be read or is not this role's own; status tells so too.
    pub fn recall(&self, is_it: impl Fn(&Document) -> bool) -> Result<Option<Document>> {
        let recalled = self.read().inspect_err(|error| {
            *self.trouble.lock() = Some(format!("the kept generation was not taken up: {error:#}"));
        })?;
        let Some(document) = recalled.filter(is_it) else { return Ok(None) };
        self.insert(&document);
        Ok(Some(document))
    }

    fn read(&self) -> Result<Option<Document>> {
        let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_CLOEXEC;
        let file = match OpenOptions::new().read(true).custom_flags(flags).open(&self.file) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => {
                return Err(error).with_context(|| format!("cannot open `{}`", self.file.display()));
            }
        };
        self.check_directory()?;
        check_own(&file, &self.file)?;
        let mut bytes = Vec::new();
        file.take(MESSAGE_BYTES_MAX as u64).read_to_end(&mut bytes)?;
        let document = serde_json::from_slice(&bytes)
            .with_context(|| format!("`{}` is damaged; remove it", self.file.display()))?;
        Ok(Some(document))
    }

    fn insert(&self, document: &Document) {
        let mut policies = document.tables.as_ref().map(|t| t.policies.clone()).unwrap_or_default();
        // What a limiter drops names its policy: see `tables`.
        let limiters = document.tables.iter().flat_map(|t| &t.limiters);
        policies.extend(limiters.map(|limiter| vec![limiter.policy.clone()]));
        let agents = document.agents.iter().map(|a| (a.index, a.clone())).collect();
        let revisions = document.revisions.clone();
        let generation = Generation { agents, policies, revisions };
        let mut generations = self.generations.write();
        generations.insert(document.generation, generation);
        while generations.len() > GENERATIONS_MAX {
            generations.pop_first();
        }
    }

    fn save(&self, document: &Document) -> Result<()> {
        if let Err(error) = DirBuilder::new().mode(0o700).create(&self.directory)
            && error.kind() != io::ErrorKind::AlreadyExists
        {
            return Err(error).with_context(|| format!("cannot create `{}`", self.directory.display()));
        }
        self.check_directory()?;
        let new = self.file.with_extension("new");
        let _ = fs::remove_file(&new);
        let write = || {
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
            file.write_all(&serde_json::to_vec(document)?)?;
            fs::rename(&new, &self.file)
        };
        write().with_context(|| format!("cannot write `{}`", self.file.display()))
    }

    /// Checks the directory itself, not what a link leads to.
    fn check_directory(&self) -> Result<()> {
        let flags = libc::O_DIRECTORY | libc::O_NOFOLLOW | libc::O_CLOEXEC;
        let opened = OpenOptions::new().read(true).custom_flags(flags).open(&self.directory);
        let opened = opened.with_context(|| {
            format!("cannot open the directory `{}`; remove what is there", self.directory.display())
        })?;
        check_own(&opened, &self.directory)
    }

    /// The audit record of a kernel event.
    #[must_use]
    pub fn decision(&self, event: &Event) -> AuditRecord {
        let mut record = self.record(RecordKind::Decision, &event.flow, event.at_ns, event.generation);
        let (ingress, method) = origin(event.hook == hook::CGROUP);
        // What the proxy sends is nobody's way in, and whom it is for is the proxy's word.
        record.ingress = (event.hook != hook::DIAL).then_some(ingress);
        self.identify(&mut record, event.agent, event.policies, method);
        if event.kind == event_kind::FLOW {
            record.verdict = Some(Said::Allow);
            record.action = Some("direct".to_owned());
            record.failed_open = DropReason::from_code(event.reason);
        } else {
            record.verdict = Some(Said::Deny);
            record.action = Some("connect".to_owned());
            record.reason = Some(DropReason::from_code(event.reason).unwrap_or(DropReason::Malformed));
            record.bytes_sent = Some(0);
            // One record for all that came again and had none of its own.
            record.count = (event.kind == event_kind::REST).then_some(event.count);
        }
        record
    }

    /// The audit record of a flow's end; `None` if the kernel did not report its beginning.
    #[must_use]
    pub fn outcome(&self, key: &FlowKey, flow: &Flow) -> Option<AuditRecord> {
        if flow.flags & flow_flag::REPORTED == 0 {
            return None;
        }
        let mut record = self.record(RecordKind::Outcome, key, flow.created_ns, flow.generation);
        record.time = self.clock.now();
        let (ingress, method) = origin(key.ifindex == IFINDEX_LOCAL);
        record.ingress = Some(ingress);
        self.identify(&mut record, flow.agent, flow.policies, method);
        record.action = Some("direct".to_owned());
        record.failed_open = failed_open(flow.flags);
        record.bytes_sent = Some(flow.tx_bytes);
        record.bytes_received = Some(flow.rx_bytes);
        record.packets_sent = Some(flow.tx_packets);
        record.packets_received = Some(flow.rx_packets);
        record.latency_us = Some(flow.last_ns.saturating_sub(flow.created_ns) / 1_000);
        Some(record)
    }

    fn record(&self, kind: RecordKind, key: &FlowKey, at_ns: u64, generation: u64) -> AuditRecord {
        let (time, request) = (self.time(at_ns), request(key, at_ns));
        let mut record = AuditRecord::new(time, &self.node, kind, Plane::Kernel, request, generation);
        (record.source, record.destination) = self.ends(key);
        record
    }

    /// The time of day of a kernel time stamp.
    #[must_use]
    pub fn time(&self, at_ns: u64) -> jiff::Timestamp {
        let age = monotonic_ns().saturating_sub(at_ns);
        let age = jiff::SignedDuration::from_nanos(i64::try_from(age).unwrap_or(i64::MAX));
        let now = self.clock.now();
        now.checked_sub(age).unwrap_or(now)
    }

    /// Both ends of a flow, as far as they are known.
    #[must_use]
    pub fn ends(&self, key: &FlowKey) -> (SourceRef, Destination) {
        let is_known = |address: &[u8; 16]| *address != [0; 16];
        let port = |be: u16| Some(u16::from_be(be)).filter(|p| *p != 0 && key.protocol != protocol::ICMP);
        let source = SourceRef {
            ip: is_known(&key.source).then(|| ip(key.source)),
            port: port(key.source_port_be),
            interface: self.interfaces.read().get(&key.ifindex).cloned(),
            mac: None,
        };
        let destination = Destination {
            ip: is_known(&key.destination).then(|| ip(key.destination)),
            port: port(key.destination_port_be),
            protocol: protocol_name(key.protocol),
            ..Destination::default()
        };
        (source, destination)
    }

    /// The agent of this index.
    #[must_use]
    pub fn agent(&self, index: u32) -> Option<AgentId> {
        let generations = self.generations.read();
        generations.values().rev().find_map(|g| g.agents.get(&index)).map(|agent| agent.id.clone())
    }

    /// The index of an agent.
    #[must_use]
    pub fn index(&self, id: &AgentId) -> Option<u32> {
        let generations = self.generations.read();
        let of = |g: &Generation| g.agents.values().find(|agent| agent.id == *id).map(|agent| agent.index);
        generations.values().rev().find_map(of)
    }

    /// The policy ids of an index at a generation, if those are still known.
    #[must_use]
    pub fn policies(&self, generation: u64, index: u32) -> Vec<String> {
        let generations = self.generations.read();
        let ids = generations.get(&generation).and_then(|g| g.policies.get(index as usize));
        ids.cloned().unwrap_or_default()
    }

    fn identify(&self, record: &mut AuditRecord, agent: u32, policies: u32, method: IdentityMethod) {
        let generations = self.generations.read();
        // A generation that is no longer known still had the same agents: their indices are never reused.
        let exact = generations.get(&record.generation);
        if let Some(generation) = exact.or_else(|| generations.values().next_back()) {
            record.agent = generation.agents.get(&agent).map(|a| AgentRef::new(a, method));
        }
        if let Some(generation) = exact {
            record.policies = generation.policies.get(policies as usize).cloned().unwrap_or_default();
            let tenant = record.agent.as_ref().map(|agent| agent.tenant.as_str());
            record.revisions = tenant.and_then(|tenant| Revisions::of(&generation.revisions, tenant));
        }
    }
}

/// Why a flow would have been denied, if its interface did not fail open.
fn failed_open(flags: u16) -> Option<DropReason> {
    [
        (flow_flag::OPEN_L7, DropReason::ListenerMissing),
        (flow_flag::OPEN_FLOW_TABLE, DropReason::FlowUnknown),
        (flow_flag::OPEN_REVISION, DropReason::PolicyMissing),
        (flow_flag::OPEN_AGENT, DropReason::LeaseLapsed),
    ]
    .into_iter()
    .find_map(|(flag, reason)| (flags & flag != 0).then_some(reason))
}

fn by_index(interfaces: &BTreeMap<String, u32>) -> BTreeMap<u32, String> {
    interfaces.iter().map(|(name, index)| (*index, name.clone())).collect()
}

/// How a flow came, and by what its agent is known.
fn origin(is_local: bool) -> (Ingress, IdentityMethod) {
    if is_local {
        (Ingress::Local, IdentityMethod::Cgroup)
    } else {
        (Ingress::Transparent, IdentityMethod::Source)
    }
}

/// That this user owns `file`, and nobody else may read or write it.
fn check_own(file: &File, path: &Path) -> Result<()> {
    let metadata = file.metadata()?;
    let (uid, mode) = (geteuid().as_raw(), metadata.permissions().mode() & 0o7777);
    ensure!(
        metadata.uid() == uid && mode & 0o077 == 0 && (metadata.is_file() || metadata.is_dir()),
        "`{}` is not this role's own (user {}, mode {mode:o}); remove it",
        path.display(),
        metadata.uid()
    );
    Ok(())
}

/// Joins a flow's decision and outcome: the kernel's time stamp and the tuple name it on this node.
pub fn request(key: &FlowKey, at_ns: u64) -> String {
    // FNV-1a, over the fields; the time alone could be the same on two CPUs.
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    let ports = [key.source_port_be.to_ne_bytes(), key.destination_port_be.to_ne_bytes()].concat();
    for byte in key.source.iter().chain(&key.destination).chain(&ports).chain([&key.protocol]) {
        hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    }
    format!("k{at_ns:x}-{hash:x}")
}

fn protocol_name(number: u8) -> Option<String> {
    match number {
        0 => None,
        number => {
            let known = Transport::ALL.into_iter().find(|t| t.number() == number);
            Some(known.map_or_else(|| number.to_string(), |t| t.name().to_owned()))
        }
    }
}

/// `CLOCK_MONOTONIC`, ns: the kernel programs' clock.
#[must_use]
pub fn monotonic_ns() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is a valid timespec to write to.
    let rc = unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    if rc != 0 {
        return 0;
    }
    u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{chown, symlink};

    use clawgress_api::clock::SystemClock;

    use super::*;

    fn names(run_dir: &Path) -> Names {
        Names::new("n", Arc::new(SystemClock), &BTreeMap::new(), run_dir)
    }

    fn document(generation: u64) -> Document {
        KernelGeneration {
            generation,
            tables: None,
            agents: Vec::new(),
            shared: Vec::new(),
            revisions: BTreeMap::new(),
            turns_at: None,
        }
    }

    #[test]
    fn the_document_is_recalled_by_its_own_generation() {
        let run_dir = tempfile::tempdir().expect("directory");
        let first = names(run_dir.path());
        assert_eq!(first.recall(|d| d.generation == 7).expect("nothing yet"), None);
        first.learn(&document(7));
        first.learn(&document(8));
        assert_eq!(first.trouble(), None);
        let next = names(run_dir.path());
        assert_eq!(next.recall(|d| d.generation == 8).expect("kept"), Some(document(8)));
        assert_eq!(next.recall(|d| d.generation == 7).expect("kept"), None);
    }

    /// Every role may write to the directory above.
    #[test]
    fn what_another_user_put_there_is_neither_believed_nor_passed_over() {
        type Squat = fn(&Path);
        let squats: [(&str, Squat); 6] = [
            ("another user's directory", |directory| chown(directory, Some(1), Some(1)).expect("chown")),
            ("a directory others may write", |directory| {
                fs::set_permissions(directory, fs::Permissions::from_mode(0o777)).expect("chmod");
            }),
            ("a link to another directory", |directory| {
                let moved = directory.with_extension("moved");
                fs::rename(directory, &moved).expect("rename");
                symlink(moved, directory).expect("link");
            }),
            ("another user's file", |directory| {
                chown(directory.join(FILE), Some(1), Some(1)).expect("chown");
            }),
            ("a file others may write", |directory| {
                fs::set_permissions(directory.join(FILE), fs::Permissions::from_mode(0o666)).expect("chmod");
            }),
            ("a link to another file", |directory| {
                fs::rename(directory.join(FILE), directory.join("moved")).expect("rename");
                symlink("moved", directory.join(FILE)).expect("link");
            }),
        ];
        for (what, squat) in squats {
            let run_dir = tempfile::tempdir().expect("directory");
            names(run_dir.path()).learn(&document(7));
            squat(&run_dir.path().join(DIRECTORY));
            let next = names(run_dir.path());
            next.recall(|d| d.generation == 7).expect_err(what);
            assert!(next.trouble().is_some(), "{what}: status must tell");
            next.learn(&document(8));
            // In a directory of its own it replaces whatever file there is.
            let is_replaced = what.contains("file");
            assert_eq!(next.trouble().is_none(), is_replaced, "{what}: {:?}", next.trouble());
            assert_eq!(
                names(run_dir.path()).recall(|d| d.generation == 8).is_ok_and(|d| d.is_some()),
                is_replaced,
                "{what}"
            );
        }
    }
}
