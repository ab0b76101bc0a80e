//! The audit record: the one shape in which every decision and outcome of both planes is kept.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use clawgress_ebpf_common::DropReason;
use clawgress_identity::{Actor, Agent, IdentityMethod, MacAddress, PolicyOwner, RootId};
use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

mod facts;

pub use facts::*;

/// Largest record that the log takes, bytes of JSON.
pub const RECORD_BYTES_MAX: usize = 64 * 1024;
/// What most records take at most.
const RECORD_BYTES_USUAL: usize = 1024;
/// What is kept of a record that would be larger: bytes of the path and of each id, and how many ids.
const PATH_BYTES_KEPT: usize = 2048;
const ID_BYTES_KEPT: usize = 128;
const IDS_KEPT: usize = 16;

/// Version of the record's shape.
pub const RECORD_VERSION: u32 = 1;

/// What a record tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RecordKind {
    /// Made before the first byte goes on.
    Decision,
    /// Made at the end; joined to its decision by `request`.
    Outcome,
    /// Records that could not be kept, counted in `count`.
    Gap,
    /// A change by an administrator or the system itself.
    Change,
}

/// Which plane speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Plane {
    /// XDP, TC and cgroup programs.
    Kernel,
    /// The proxy.
    L7,
    /// The control role.
    Control,
}

/// How the traffic came to the gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ingress {
    /// Through the default route.
    Transparent,
    /// Through the explicit proxy.
    Proxy,
    /// From a local workload's cgroup.
    Local,
}

/// Allow or deny.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Permitted.
    Allow,
    /// Denied; `reason` says why.
    Deny,
}

/// Who it was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentRef {
    /// Tenant.
    pub tenant: String,
    /// Name within the tenant.
    pub agent: String,
    /// Number of the agent, which tells it from the next of its name; absent where an earlier version recorded it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub index: Option<u32>,
    /// Team.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub team: Option<String>,
    /// Project.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub project: Option<String>,
    /// Environment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub environment: Option<String>,
    /// How that was established.
    pub method: IdentityMethod,
    /// By which credential, if by one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credential: Option<CredentialRef>,
    /// The client's certificate, where a request has a key or a token besides: both prove the agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate: Option<CredentialRef>,
}

/// A credential, by what names it: never the credential itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CredentialRef {
    /// Who is trusted for it; absent for an API key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub issuer: Option<RootId>,
    /// The public id of a key, `jti` of a token or the hash of what was signed, or the hash of a certificate.
    pub id: String,
    /// Whom it names in its own terms.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    /// The agents it was delegated through, who acts first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub actors: Vec<Actor>,
}

impl AgentRef {
    /// The reference to `agent`, as established by `method`.
    #[must_use]
    pub fn new(agent: &Agent, method: IdentityMethod) -> Self {
        AgentRef {
            tenant: agent.id.tenant().to_owned(),
            agent: agent.id.name().to_owned(),
            index: Some(agent.index),
            team: agent.team.clone(),
            project: agent.project.clone(),
            environment: agent.environment.clone(),
            method,
            credential: None,
            certificate: None,
        }
    }
}

/// Where it came from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceRef {
    /// Address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ip: Option<IpAddr>,
    /// Port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Interface.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<String>,
    /// MAC address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<MacAddress>,
}

/// What tells programs and machines apart: signals, never credentials, since whoever likes can send another's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fingerprint {
    /// JA4 of the TLS hello.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ja4: Option<String>,
    /// SHA-256 of the executable that a run began with, in hexadecimal digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub executable: Option<String>,
    /// Directory of the cgroup that it came from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<String>,
}

/// Where it was going.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Destination {
    /// Canonical host name, or address literal, as the client asked for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// Address the client dialled, or the one dialled for it, or that a parent proxy was asked for; absent where that resolves
    /// the name itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ip: Option<IpAddr>,
    /// Name of the parent proxy that it was reached through.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub via: Option<String>,
    /// Where that listens: `connect` was asked of it, too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub via_address: Option<SocketAddr>,
    /// Port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// `tcp`, `udp`, `icmp`, or the protocol's number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,
    /// HTTP method; of a question to DNS, the type asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    /// HTTP path, without the query (which may hold secrets).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
}

/// Tokens used, as the provider reported them, unless they are estimated.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenUsage {
    /// Model, if the response named it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Tokens of the prompt, with those of caches.
    pub input: u64,
    /// Tokens of the completion, with those of reasoning.
    pub output: u64,
    /// Of the prompt, those that a cache had.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub cached: u64,
    /// Of the prompt, those that were written to a cache.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub cache_written: u64,
    /// Of the completion, those of reasoning.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub reasoning: u64,
    /// Of the prompt, those of sound.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub input_audio: u64,
    /// Of what a cache had, those of sound.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub cached_audio: u64,
    /// Of the completion, those of sound.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub output_audio: u64,
    /// Whether they are the gateway's own estimate: the provider told none, or its answer did not end.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub estimated: bool,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the shape serde asks for")]
fn is_zero(count: &u64) -> bool {
    *count == 0
}

/// An obligation that matched, and was kept; or a guard that only logs, and matched.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EffectRef {
    /// Id of its policy.
    pub policy: String,
    /// What it obliges to: `rate-limit`, `throttle`, `quarantine`, `intercept`, `transform` or `alert`; or what a guard that only logs would have
    /// said: `would-permit`, `would-forbid` or `would-fail`.
    pub effect: String,
    /// How much it matters, where policy says so: `low`, `medium`, `high` or `critical`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub severity: Option<String>,
}

/// Tokens that the gateway counted as the model's vocabulary cuts them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CountedTokens {
    /// Those of the prompt.
    Input(u64),
    /// Nobody knows: there was no room or no time to count, or it has more than texts.
    Unknown,
}

/// What an answer of a model costs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CallCost {
    /// So much.
    Priced {
        /// In 10⁻⁹ USD, rounded up.
        nano_usd: u64,
        /// Where the price is from.
        source: String,
        /// Whether its tokens are estimated.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        estimated: bool,
    },
    /// Nobody knows: the model is not in the table, or a price that it takes is not. That is not nothing.
    Unpriced,
    /// It is made besides, and what it takes is told to whoever asks for it later.
    Unknown,
}

/// Numbers of the policy revisions that judged, each absent where there is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revisions {
    /// The platform's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<u64>,
    /// The agent's tenant's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<u64>,
}

impl Revisions {
    /// Those that judge the agents of a tenant, of all that are live; `None` if none does.
    #[must_use]
    pub fn of(live: &BTreeMap<PolicyOwner, u64>, tenant: &str) -> Option<Revisions> {
        let revisions = Revisions {
            platform: live.get(&PolicyOwner::Platform).copied(),
            tenant: live.get(&PolicyOwner::Tenant(tenant.to_owned())).copied(),
        };
        (revisions != Revisions::default()).then_some(revisions)
    }
}

/// One audit record. Fields that don't apply are absent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditRecord {
    /// [`RECORD_VERSION`].
    pub version: u32,
    /// When.
    pub time: Timestamp,
    /// The node.
    pub node: String,
    /// What it tells.
    pub kind: RecordKind,
    /// Which plane.
    pub plane: Plane,
    /// Joins a decision and its outcome; unique per node.
    pub request: String,
    /// The generation that decided.
    pub generation: u64,
    /// The policy revisions that the generation is made of, for this agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revisions: Option<Revisions>,
    /// How it came in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ingress: Option<Ingress>,
    /// Who; absent means anonymous.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<AgentRef>,
    /// From where.
    #[serde(default)]
    pub source: SourceRef,
    /// What seems to be at its other end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fingerprint: Option<Fingerprint>,
    /// To where.
    #[serde(default)]
    pub destination: Destination,
    /// The action that determined the verdict: `connect`, `direct`, `tls`, `tunnel`, `http`, `resolve`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub action: Option<String>,
    /// The verdict.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verdict: Option<Verdict>,
    /// Ids of the determining policies.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub policies: Vec<String>,
    /// Obligations that matched.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub effects: Vec<EffectRef>,
    /// What was found in what was sent or asked, that nobody has to have done wrong for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub findings: Vec<String>,
    /// What was changed of the request before it went on, or of the answer, in words.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub changes: Vec<String>,
    /// What else the decision read, in L7.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attributes: Option<Box<Attributes>>,
    /// Whether its TLS was read.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub intercepted: bool,
    /// Whether something of it was too large, and cut: a path, ids, what the decision read.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub truncated: bool,
    /// Why it was denied, or how it failed.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        serialize_with = "reason_out",
        deserialize_with = "reason_in"
    )]
    pub reason: Option<DropReason>,
    /// What would have denied it, had its interface not been set to fail open.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        serialize_with = "reason_out",
        deserialize_with = "reason_in"
    )]
    pub failed_open: Option<DropReason>,
    /// HTTP status the client got.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// Tokens, when known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens: Option<TokenUsage>,
    /// Those that the gateway counted besides, where it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens_counted: Option<CountedTokens>,
    /// What they cost, where a model was called.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost: Option<CallCost>,
    /// Bytes from the agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_sent: Option<u64>,
    /// Bytes to the agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_received: Option<u64>,
    /// Packets from the agent, where the kernel counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub packets_sent: Option<u64>,
    /// Packets to the agent, where the kernel counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub packets_received: Option<u64>,
    /// Time the gateway took to decide and connect (decision), or the whole exchange (outcome), in microseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latency_us: Option<u64>,
    /// For a gap: how many records are missing. For a repeated kernel drop: how many packets it stands for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<u64>,
    /// How much it matters, where the gateway itself says so: `critical`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub severity: Option<String>,
    /// For a change: what was changed. Never secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

impl AuditRecord {
    /// As JSON, no larger than [`RECORD_BYTES_MAX`]: what is too large is cut, and says so. An agent chooses its paths,
    /// and a policy may match by a thousand ids; neither may keep a record out of the log.
    ///
    /// # Errors
    /// Never for what this type holds.
    pub fn encode(&self) -> serde_json::Result<Vec<u8>> {
        let mut json = Vec::with_capacity(RECORD_BYTES_USUAL);
        self.encode_to(&mut json)?;
        Ok(json)
    }

    /// The same, at the end of `out`.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub fn encode_to(&self, out: &mut Vec<u8>) -> serde_json::Result<()> {
        let before = out.len();
        serde_json::to_writer(&mut *out, self)?;
        if out.len() - before <= RECORD_BYTES_MAX {
            return Ok(());
        }
        out.truncate(before);
        let mut record = self.clone();
        record.cut();
        serde_json::to_writer(out, &record)
    }

    /// Cuts what may be large, and says so.
    pub fn cut(&mut self) {
        fn cut(text: &mut String, bytes: usize) {
            text.truncate(text.floor_char_boundary(bytes));
            text.shrink_to_fit();
        }
        self.truncated = true;
        self.attributes = None;
        self.destination.path.iter_mut().for_each(|path| cut(path, PATH_BYTES_KEPT));
        self.destination.method.iter_mut().for_each(|method| cut(method, ID_BYTES_KEPT));
        self.changes.truncate(IDS_KEPT);
        self.changes.iter_mut().for_each(|change| cut(change, ID_BYTES_KEPT));
        self.policies.truncate(IDS_KEPT);
        self.policies.iter_mut().for_each(|id| cut(id, ID_BYTES_KEPT));
        self.effects.truncate(IDS_KEPT);
        self.effects.iter_mut().for_each(|effect| cut(&mut effect.policy, ID_BYTES_KEPT));
    }

    /// A record with the fields every record has.
    #[must_use]
    pub fn new(
        time: Timestamp,
        node: &str,
        kind: RecordKind,
        plane: Plane,
        request: String,
        generation: u64,
    ) -> Self {
        AuditRecord {
            version: RECORD_VERSION,
            time,
            node: node.to_owned(),
            kind,
            plane,
            request,
            generation,
            revisions: None,
            ingress: None,
            agent: None,
            source: SourceRef::default(),
            fingerprint: None,
            destination: Destination::default(),
            action: None,
            verdict: None,
            policies: Vec::new(),
            effects: Vec::new(),
            findings: Vec::new(),
            changes: Vec::new(),
            attributes: None,
            intercepted: false,
            truncated: false,
            reason: None,
            failed_open: None,
            status: None,
            tokens: None,
            tokens_counted: None,
            cost: None,
            bytes_sent: None,
            bytes_received: None,
            packets_sent: None,
            packets_received: None,
            latency_us: None,
            count: None,
            severity: None,
            detail: None,
        }
    }
}

#[expect(clippy::ref_option, reason = "the shape serde asks for")]
fn reason_out<S: Serializer>(reason: &Option<DropReason>, s: S) -> Result<S::Ok, S::Error> {
    reason.map(DropReason::name).serialize(s)
}

fn reason_in<'de, D: Deserializer<'de>>(d: D) -> Result<Option<DropReason>, D::Error> {
    let Some(name) = Option::<String>::deserialize(d)? else { return Ok(None) };
    DropReason::from_name(&name)
        .map(Some)
        .ok_or_else(|| serde::de::Error::custom(format!("unknown drop reason `{name}`")))
}
