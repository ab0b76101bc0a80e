//! JSON documents inside the proto envelopes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use clawgress_identity::{
    Agent, AgentId, AgentState, ApiKeyRecord, PolicyOwner, ProviderKeyRecord, RootId, RootRecords,
    SharedSource, Source, SourceId,
};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::config::Route;
use crate::{GroupRef, MissingGroups, RecordKind, Verdict};

mod live;

pub use self::live::*;

/// Everything L7 needs at one generation; swapped whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Snapshot<P> {
    /// Monotonic number, the same as the kernel plane's.
    pub generation: u64,
    /// The policy of the tenant `default` with what its decisions rest on (`clawgress_policy::PolicyInForce`); `None`
    /// before its first apply: deny.
    pub policy: Option<P>,
    /// The platform's, above all; `None` restricts nothing.
    #[serde(default = "none", skip_serializing_if = "Option::is_none")]
    pub platform: Option<P>,
    /// Those of other tenants, by the tenant's name. A tenant that has none is denied everything.
    #[serde(default = "BTreeMap::new", skip_serializing_if = "BTreeMap::is_empty")]
    pub tenants: BTreeMap<String, P>,
    /// Numbers of the revisions that these are.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub revisions: BTreeMap<PolicyOwner, u64>,
    /// Agents.
    pub agents: Vec<Agent>,
    /// API keys, as keyed hashes.
    pub keys: Vec<ApiKeyRecord>,
    /// Sources that several agents share.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shared: Vec<SharedSource>,
    /// Runs of local commands whose processes may live.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub runs: Vec<RunRef>,
    /// Who is trusted to say who agents are.
    #[serde(default)]
    pub roots: RootRecords,
    /// Keys of providers, sealed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub provider_keys: Vec<ProviderKeyRecord>,
}

/// A run of a local command, as L7 knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunRef {
    /// Whose.
    pub agent: AgentId,
    /// Id of the key that lives with it.
    pub key: String,
    /// SHA-256 of the executable that it began with, in hexadecimal digits, if that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub executable: Option<String>,
    /// Directory of its cgroup, where the kernel plane governs it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<String>,
}

fn none<P>() -> Option<P> {
    None
}

/// Everything the kernel plane needs at one generation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KernelGeneration<T> {
    /// Monotonic number.
    pub generation: u64,
    /// Compiled policy (`clawgress_policy::kernel::KernelTables`); `None` before the first apply: deny.
    pub tables: Option<T>,
    /// Agents, with their sources.
    pub agents: Vec<Agent>,
    /// Sources that several agents share.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shared: Vec<SharedSource>,
    /// Numbers of the revisions that the tables are made of.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub revisions: BTreeMap<PolicyOwner, u64>,
    /// When a condition on time turns, and with it the tables: soon after that, they must not count any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub turns_at: Option<Timestamp>,
}

/// The datapath role's state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatapathStatus {
    /// `kernel` or `none`.
    pub mode: String,
    /// Live generation, 0 before the first.
    pub generation: u64,
    /// Interfaces and how the programs are attached to them.
    pub interfaces: Vec<InterfaceStatus>,
    /// Live flows, and the bound.
    pub flows: u64,
    /// Most flows.
    pub flows_max: u64,
    /// Counters by name, summed over CPUs.
    pub counters: BTreeMap<String, u64>,
    /// The kernel's connection tracking, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tracking: Option<TrackingStatus>,
    /// What is not enforced in this mode, in words.
    pub absent: Vec<String>,
}

/// The kernel's connection tracking in the gateway's network namespace. Forwarded flows are masqueraded by it, so what
/// it has no room for is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrackingStatus {
    /// Tracked connections.
    pub entries: u64,
    /// Most of them (`net.netfilter.nf_conntrack_max`).
    pub entries_max: u64,
    /// Packets it dropped: for want of room, or because two began one connection at once.
    pub dropped: u64,
}

/// One interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterfaceStatus {
    /// Name.
    pub name: String,
    /// `agents`, `uplink`, `management`.
    pub role: String,
    /// `native`, or `off` where the driver has no XDP and TC judges alone.
    pub xdp: String,
    /// `tcx`, `clsact` or `off`.
    pub tc: String,
    /// By an uplink: what `throttle` does with what is over, `pace` or `drop`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub throttle: Option<String>,
    /// Failures for which it is set to let traffic through; empty is the safe default.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub fail_open: Vec<String>,
    /// Those of them that are there now.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub failed_open: Vec<String>,
}

/// `agent create`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewAgent {
    /// Id.
    pub id: AgentId,
    /// Team.
    #[serde(default)]
    pub team: Option<String>,
    /// Project.
    #[serde(default)]
    pub project: Option<String>,
    /// Environment.
    #[serde(default)]
    pub environment: Option<String>,
    /// Labels.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Source bindings.
    #[serde(default)]
    pub sources: Vec<Source>,
    /// Whether to issue an API key.
    pub key: bool,
    /// What becomes of groups that don't exist.
    #[serde(default = "create")]
    pub missing: MissingGroups,
}

/// Whoever creates an agent says of its groups what they are called, as it always was.
fn create() -> MissingGroups {
    MissingGroups::Create
}

/// Answer to `agent create`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreatedAgent {
    /// The agent.
    pub agent: Agent,
    /// The API key, shown this once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_key: Option<String>,
    /// Groups that were registered with it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub registered: Vec<GroupRef>,
}

/// `agent enable`, `agent disable` and `agent quarantine`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AgentStateChange {
    /// The agent.
    pub id: AgentId,
    /// Its new state.
    pub state: AgentState,
}

/// `source set`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SharedSourceChange {
    /// The source.
    pub id: SourceId,
    /// Whose credentials it may present from now on; as before if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub may_present: Option<BTreeSet<AgentId>>,
    /// Where its traffic comes from, from now on; as before if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<Vec<Source>>,
}

/// `agent quarantine`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewQuarantine {
    /// The agent.
    pub id: AgentId,
    /// Seconds until it ends by itself; `None`: when it is released.
    pub seconds: Option<u64>,
    /// Why, in words.
    pub reason: Option<String>,
}

/// Whether keys that are fetched count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KeysState {
    /// There are none that count.
    None,
    /// They are as their provider has them.
    Fresh,
    /// They are past their time, and count for a while because the provider fails.
    Stale,
}

/// How the provider of an issuer is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProviderStatus {
    /// The issuer.
    pub issuer: RootId,
    /// Whether its fetched keys count.
    pub state: KeysState,
    /// Thumbprints of those that do (RFC 7638).
    pub keys: Vec<String>,
    /// When the provider last confirmed them.
    pub confirmed_at: Option<Timestamp>,
    /// Until when they are fresh.
    pub fresh_until: Option<Timestamp>,
    /// Until when they count if nobody confirms them.
    pub counts_until: Option<Timestamp>,
    /// When the provider is asked next.
    pub next_fetch_at: Option<Timestamp>,
    /// How often it failed in a row.
    pub failures: u32,
    /// Since when it fails.
    pub failing_since: Option<Timestamp>,
    /// Why.
    pub error: Option<String>,
}

/// How the source of a trust domain's bundle is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BundleStatus {
    /// The trust domain.
    pub trust_domain: RootId,
    /// Where its bundle comes from, in words.
    pub source: String,
    /// Whether its bundle counts.
    pub state: KeysState,
    /// SHA-256 of the certificates that do.
    pub certificates: Vec<String>,
    /// Thumbprints of the keys that do (RFC 7638).
    pub keys: Vec<String>,
    /// `spiffe_sequence` of the bundle, if it has one.
    pub sequence: Option<u64>,
    /// When its source last confirmed it.
    pub confirmed_at: Option<Timestamp>,
    /// Until when it is fresh.
    pub fresh_until: Option<Timestamp>,
    /// Until when it counts if nobody confirms it.
    pub counts_until: Option<Timestamp>,
    /// When its source is asked next; `None` while it says of each change by itself.
    pub next_fetch_at: Option<Timestamp>,
    /// How often it failed in a row.
    pub failures: u32,
    /// Since when it fails.
    pub failing_since: Option<Timestamp>,
    /// Why.
    pub error: Option<String>,
    /// Trust domains that the same source has bundles of and that nobody configured for it: they are not trusted.
    pub ignored: Vec<String>,
}

/// An agent that is quarantined: nothing of it passes in either plane, whatever policy says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Quarantine {
    /// The agent.
    pub agent: AgentId,
    /// Its number in the registry.
    pub index: u32,
    /// Since when.
    pub since: Timestamp,
    /// When it ends by itself.
    pub until: Option<Timestamp>,
    /// Why, in words.
    pub reason: Option<String>,
    /// Who did it.
    pub by: String,
}

/// `policy check` and `policy apply`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewPolicy<P> {
    /// Whose it is; the tenant `default`'s if nothing is said.
    #[serde(default, skip_serializing_if = "PolicyOwner::is_default")]
    pub owner: PolicyOwner,
    /// The bundle.
    pub bundle: P,
    /// Why.
    pub message: String,
    /// Who.
    pub author: String,
    /// Findings that are proven and accepted, each as `KIND` or `KIND:POLICY` (`clawgress_policy::lint::Accepted`).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub accepted: Vec<String>,
    /// The revision that it is to follow, 0 for none: with another one live it is refused. Absent, it follows any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<u64>,
}

/// `PolicySurroundings`: what of a node is to be told.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PolicyTexts {
    /// Whose decisions are to be made again: a tenant's, under the platform's.
    #[serde(default)]
    pub owner: PolicyOwner,
    /// The texts whose ASNs and countries are to be told.
    pub texts: Vec<String>,
}

/// A file of geo data.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GeoSource {
    /// Where it was read.
    pub path: PathBuf,
    /// What it calls itself.
    pub database: String,
    /// When it was made, by its own account.
    pub built: Timestamp,
    /// SHA-256 of its bytes, hex.
    pub sha256: String,
}

/// Geo data of one kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GeoPart {
    /// `asn` or `country`.
    pub kind: String,
    /// The file that is configured, if one is.
    pub path: Option<PathBuf>,
    /// The file whose data are in force, if policy names anything of it.
    pub in_force: Option<GeoSource>,
    /// ASNs or countries that policy names.
    pub names: u64,
    /// Prefixes they have.
    pub prefixes: u64,
}

/// Answer to `geo status` and `geo reload`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GeoStatus {
    /// The generation whose data these are.
    pub generation: u64,
    /// Each kind.
    pub parts: Vec<GeoPart>,
    /// Why the files as they are now are not in force, if they aren't.
    pub trouble: Option<String>,
}

/// Answer to `policy check`, with the findings of lint, none of which is an error.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyCheck<F> {
    /// Policies in the set.
    pub policies: u64,
    /// Destination prefixes the kernel would hold.
    pub prefixes: u64,
    /// Verdict cells the kernel would hold.
    pub cells: u64,
    /// Rate limits in the set.
    #[serde(default)]
    pub limiters: u64,
    /// What there is to say of its policies.
    #[serde(default = "Vec::new", skip_serializing_if = "Vec::is_empty")]
    pub findings: Vec<F>,
}

/// `audit search` and `audit tail`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuditQuery {
    /// Only this agent (`tenant/name` or `name`), or `anonymous`.
    #[serde(default)]
    pub agent: Option<String>,
    /// Only this verdict.
    #[serde(default)]
    pub verdict: Option<Verdict>,
    /// Only this kind.
    #[serde(default)]
    pub kind: Option<RecordKind>,
    /// Only this reason.
    #[serde(default)]
    pub reason: Option<String>,
    /// Only destinations whose host or address contains this.
    #[serde(default)]
    pub destination: Option<String>,
    /// Not before.
    #[serde(default)]
    pub since: Option<Timestamp>,
    /// Before.
    #[serde(default)]
    pub until: Option<Timestamp>,
    /// At most this many, the newest.
    #[serde(default)]
    pub limit: Option<u64>,
    /// Stay and send new records as they come.
    #[serde(default)]
    pub follow: bool,
}

/// `run`: a governed local command.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunSession {
    /// Names the session, for `CloseRun`.
    pub name: String,
    /// The agent.
    pub agent: AgentId,
    /// The cgroup the command goes into; `None` if the datapath is `none`.
    pub cgroup_path: Option<String>,
    /// API key that counts only while the session lives.
    pub api_key: String,
    /// Address of the explicit proxy.
    pub proxy: SocketAddr,
    /// What is not enforced, in words.
    pub absent: Vec<String>,
}

impl std::fmt::Debug for RunSession {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RunSession")
            .field("name", &self.name)
            .field("agent", &self.agent)
            .finish_non_exhaustive()
    }
}

/// A fingerprint of an agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KnownFingerprint {
    /// `ja4`, `executable`, `certificate` or `mac`.
    pub kind: String,
    /// The fingerprint.
    pub value: String,
    /// When it was seen first.
    pub first_seen: Timestamp,
    /// When it was seen last, as far as that was kept.
    pub last_seen: Timestamp,
}

/// The node's state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Node name.
    pub node: String,
    /// Version of the software.
    pub version: String,
    /// Live policy revision of the tenant `default`, 0 for none.
    pub revision: u64,
    /// Live policy revisions of everybody.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub policies: BTreeMap<PolicyOwner, u64>,
    /// Latest generation.
    pub generation: u64,
    /// Agents registered.
    pub agents: u64,
    /// The kernel plane; `None` if the datapath role can't be reached.
    pub datapath: Option<DatapathStatus>,
    /// L7 workers that are connected.
    pub l7: Vec<L7Status>,
    /// Addresses of the explicit proxy.
    pub proxies: Vec<SocketAddr>,
    /// Addresses of the explicit proxy over TLS.
    #[serde(default)]
    pub proxies_tls: Vec<SocketAddr>,
    /// Proxies that routes lead through, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub parents: BTreeMap<String, SocketAddr>,
    /// By which way destinations are reached: the first that fits.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<Route>,
    /// The gateway's own addresses that agents' traffic may be routed to.
    #[serde(default)]
    pub addresses: Vec<IpAddr>,
    /// Records in the audit log.
    pub audit_records: u64,
    /// What is wrong or not enforced, in words; empty if all is well.
    pub warnings: Vec<String>,
}

/// One L7 worker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct L7Status {
    /// Its name.
    pub instance: String,
    /// Process id.
    pub pid: u32,
    /// Generation it acknowledged.
    pub generation: u64,
    /// Whether it takes no new connections and ends soon.
    #[serde(default)]
    pub draining: bool,
    /// Why it gets no listeners, and so takes no connections, if the datapath role has refused it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
    /// Why it refused the latest, if it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}
