//! What indices in kernel records stand for: agents and policy ids of the generations that may still be
//! spoken of. Also turns kernel events and flows into audit records.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result};
use clawgress_api::clock::Clock;
use clawgress_api::{
    AgentRef, AuditRecord, Destination, Ingress, KernelGeneration, Plane, RecordKind, SourceRef,
    Verdict as Said,
};
use clawgress_ebpf_common::user::ip;
use clawgress_ebpf_common::{DropReason, Event, Flow, FlowKey, event_kind, flow_flag, hook, protocol};
use clawgress_identity::{Agent, IdentityMethod};
use clawgress_policy::kernel::KernelTables;
use nix::libc;
use parking_lot::RwLock;

/// Generations remembered: the live one, and one that flows or queued events still name.
const GENERATIONS_MAX: usize = 2;

/// The document as control sent it.
pub type Document = KernelGeneration<KernelTables>;

/// Names by generation.
#[derive(Debug)]
pub struct Names {
    node: String,
    clock: Arc<dyn Clock>,
    interfaces: BTreeMap<u32, String>,
    /// Where the live document is kept for the next process.
    file: PathBuf,
    generations: RwLock<BTreeMap<u64, Generation>>,
}

#[derive(Debug)]
struct Generation {
    agents: BTreeMap<u32, Agent>,
    policies: Vec<Vec<String>>,
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
            interfaces: interfaces.iter().map(|(name, index)| (*index, name.clone())).collect(),
            file: run_dir.join("datapath-generation.json"),
            generations: RwLock::default(),
        }
    }

    /// Learns the names of `document`, and keeps it for the next process: the kernel goes on with the
    /// generation when this one ends.
    pub fn learn(&self, document: &Document) {
        self.insert(document);
        if let Err(error) = self.save(document) {
            tracing::warn!("cannot keep the generation's names for the next start: {error:#}");
        }
    }

    /// The document the former process left, if it is of generation `live`.
    ///
    /// # Errors
    /// If there is a file and it can't be read.
    pub fn recall(&self, live: u64) -> Result<Option<Document>> {
        let Ok(bytes) = fs::read(&self.file) else { return Ok(None) };
        let document: Document = serde_json::from_slice(&bytes)
            .with_context(|| format!("`{}` is damaged; remove it", self.file.display()))?;
        if document.generation != live {
            return Ok(None);
        }
        self.insert(&document);
        Ok(Some(document))
    }

    fn insert(&self, document: &Document) {
        let generation = Generation {
            agents: document.agents.iter().map(|a| (a.index, a.clone())).collect(),
            policies: document.tables.as_ref().map(|t| t.policies.clone()).unwrap_or_default(),
        };
        let mut generations = self.generations.write();
        generations.insert(document.generation, generation);
        while generations.len() > GENERATIONS_MAX {
            generations.pop_first();
        }
    }

    fn save(&self, document: &Document) -> Result<()> {
        use std::io::Write as _;
        use std::os::unix::fs::OpenOptionsExt as _;
        let new = self.file.with_extension("new");
        let _ = fs::remove_file(&new);
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
        file.write_all(&serde_json::to_vec(document)?)?;
        Ok(fs::rename(&new, &self.file)?)
    }

    /// The audit record of a kernel event.
    #[must_use]
    pub fn decision(&self, event: &Event) -> AuditRecord {
        let mut record = self.record(RecordKind::Decision, &event.flow, event.at_ns, event.generation);
        let is_local = event.hook == hook::CGROUP;
        let method = if is_local { IdentityMethod::Cgroup } else { IdentityMethod::Source };
        record.ingress = Some(if is_local { Ingress::Local } else { Ingress::Transparent });
        self.identify(&mut record, event.agent, event.policies, method);
        if event.kind == event_kind::FLOW {
            record.verdict = Some(Said::Allow);
            record.action = Some("direct".to_owned());
        } else {
            record.verdict = Some(Said::Deny);
            record.action = Some("connect".to_owned());
            record.reason = Some(DropReason::from_code(event.reason).unwrap_or(DropReason::Malformed));
            record.bytes_sent = Some(0);
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
        record.ingress = Some(Ingress::Transparent);
        self.identify(&mut record, flow.agent, flow.policies, IdentityMethod::Source);
        record.action = Some("direct".to_owned());
        record.bytes_sent = Some(flow.tx_bytes);
        record.bytes_received = Some(flow.rx_bytes);
        record.latency_us = Some(flow.last_ns.saturating_sub(flow.created_ns) / 1_000);
        Some(record)
    }

    fn record(&self, kind: RecordKind, key: &FlowKey, at_ns: u64, generation: u64) -> AuditRecord {
        let age = monotonic_ns().saturating_sub(at_ns);
        let age = jiff::SignedDuration::from_nanos(i64::try_from(age).unwrap_or(i64::MAX));
        let now = self.clock.now();
        let time = now.checked_sub(age).unwrap_or(now);
        let mut record =
            AuditRecord::new(time, &self.node, kind, Plane::Kernel, request(key, at_ns), generation);
        let is_known = |address: &[u8; 16]| *address != [0; 16];
        let port = |be: u16| Some(u16::from_be(be)).filter(|p| *p != 0 && key.protocol != protocol::ICMP);
        record.source = SourceRef {
            ip: is_known(&key.source).then(|| ip(key.source)),
            port: port(key.source_port_be),
            interface: self.interfaces.get(&key.ifindex).cloned(),
            mac: None,
        };
        record.destination = Destination {
            ip: is_known(&key.destination).then(|| ip(key.destination)),
            port: port(key.destination_port_be),
            protocol: protocol_name(key.protocol),
            ..Destination::default()
        };
        record
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
        }
    }
}

/// Joins a flow's decision and outcome: the kernel's time stamp and the tuple name it on this node.
fn request(key: &FlowKey, at_ns: u64) -> String {
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
        protocol::TCP => Some("tcp".to_owned()),
        protocol::UDP => Some("udp".to_owned()),
        protocol::ICMP => Some("icmp".to_owned()),
        other => Some(other.to_string()),
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
