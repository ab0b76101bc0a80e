//! The configuration file: raw TOML becomes typed configuration before a socket opens.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

mod check;
mod content;
mod dns;
mod dns_server;
mod endpoint;
mod intercept;
mod interface;
mod llm;
pub mod route;
mod spiffe;
mod tenants;
mod tool;

pub use self::content::Content;
pub use self::dns::Dns;
pub use self::dns_server::{DnsServer, DnsServerError, DnsTransport};
pub use self::endpoint::Endpoint;
pub use self::intercept::{Intercept, excludes};
pub use self::interface::{Danger, FailOpen, Interface, Role, UnboundSources};
pub use self::llm::{Llm, LlmServer, UNLISTED};
pub use self::route::{Parent, Resolve, Route};
pub use self::spiffe::{Spiffe, WorkloadEndpoint};
pub use self::tenants::Tenants;
pub use self::tool::{Tool, ToolServer};

/// The zone that needs no zone database.
pub const UTC: &str = "UTC";

/// Default place of the file.
pub const PATH: &str = "/etc/clawgress/clawgress.toml";

/// The whole file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// This node.
    pub node: Node,
    /// The kernel plane.
    pub datapath: Datapath,
    /// Interfaces, in `kernel` mode.
    #[serde(default, rename = "interface", skip_serializing_if = "Vec::is_empty")]
    pub interfaces: Vec<Interface>,
    /// The explicit proxy.
    pub proxy: Proxy,
    /// The L7 plane.
    pub l7: L7,
    /// Upstreams for clients that take a base URL.
    #[serde(default, rename = "endpoint", skip_serializing_if = "Vec::is_empty")]
    pub endpoints: Vec<Endpoint>,
    /// Proxies that routes lead through.
    #[serde(default, rename = "parent", skip_serializing_if = "Vec::is_empty")]
    pub parents: Vec<Parent>,
    /// By which way destinations are reached.
    #[serde(default, rename = "route", skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<Route>,
    /// Reading TLS; it is not read if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub intercept: Option<Intercept>,
    /// What agents may ask the gateway's DNS.
    #[serde(default)]
    pub dns: Dns,
    /// How bodies are read, where policy asks about them.
    #[serde(default)]
    pub content: Content,
    /// Calls of models, where policy asks about them.
    #[serde(default)]
    pub llm: Llm,
    /// Tool servers, where policy asks about what is sent to them.
    #[serde(default)]
    pub tool: Tool,
    /// Who may use which socket.
    #[serde(default)]
    pub access: Access,
    /// The audit log.
    #[serde(default)]
    pub audit: Audit,
    /// Geo data, for policy that names ASNs or countries.
    #[serde(default)]
    pub geo: Geo,
    /// The clock of policy's conditions on time.
    #[serde(default)]
    pub time: Time,
    /// SPIFFE on this node.
    #[serde(default)]
    pub spiffe: Spiffe,
    /// What tenants share.
    #[serde(default)]
    pub tenants: Tenants,
}

/// Geo data, for policy that names ASNs or countries: files in the MaxMind DB format, read by control, and
/// again whenever they change.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Geo {
    /// File that says which addresses belong to which autonomous system.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asn: Option<PathBuf>,
    /// File that says which addresses belong to which country.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub country: Option<PathBuf>,
}

/// The clock of policy's conditions on time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Time {
    /// Zone of `context.hour`, `context.minute` and `context.weekday`, by its name in the IANA database.
    #[serde(default = "zone")]
    pub zone: String,
}

impl Default for Time {
    fn default() -> Self {
        Time { zone: zone() }
    }
}

/// This node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Node {
    /// Its name in audit records.
    pub name: String,
    /// Where durable state is kept: a directory of mode 0700 for each role.
    #[serde(default = "state_dir")]
    pub state_dir: PathBuf,
    /// Where the Unix sockets are.
    #[serde(default = "run_dir")]
    pub run_dir: PathBuf,
}

/// The kernel plane.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Datapath {
    /// `kernel` or `none`; there is no default, so that less enforcement is always somebody's choice.
    pub mode: DatapathMode,
    /// Directory on a BPF file system in which programs, links and maps are pinned.
    #[serde(default = "bpffs")]
    pub bpffs: PathBuf,
    /// Mount point of cgroup v2; found by itself if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<PathBuf>,
    /// Connections and datagrams to the gateway that a source without a binding (by address) may
    /// begin a second, and twice as many at once.
    #[serde(default = "unbound_per_s")]
    pub unbound_per_s: NonZeroU32,
    /// The same for all such sources at an interface together.
    #[serde(default = "unbound_all_per_s")]
    pub unbound_all_per_s: NonZeroU32,
    /// How long what policy permits `direct` goes on without a datapath role that vouches for it, seconds: longer than a
    /// restart takes.
    #[serde(default = "lease_s")]
    pub lease_s: u32,
}

/// A restart takes a few seconds, most of them the kernel's for looking at the programs.
fn lease_s() -> u32 {
    15
}

/// What one host that presents credentials needs, and no more.
fn unbound_per_s() -> NonZeroU32 {
    const { NonZeroU32::new(100).unwrap() }
}

/// What leaves the proxy most of its time for agents that are known.
fn unbound_all_per_s() -> NonZeroU32 {
    const { NonZeroU32::new(2_000).unwrap() }
}

/// Which kernel plane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DatapathMode {
    /// XDP, TC and cgroup programs.
    Kernel,
    /// None: explicit proxy only.
    None,
}

/// The explicit proxy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Proxy {
    /// Addresses to listen on. All must have the same port.
    pub listen: Vec<SocketAddr>,
    /// The same over TLS, where clients may prove themselves by certificate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<ProxyTls>,
    /// Load balancers, whose connections all begin with a header of version 2 of the PROXY protocol that says whose they
    /// are. From elsewhere none is believed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub balancers: Vec<IpNet>,
}

/// The explicit proxy over TLS.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProxyTls {
    /// Addresses to listen on. All must have the same port, another than the proxy's in clear.
    pub listen: Vec<SocketAddr>,
    /// The proxy's own certificate and those between it and an authority that clients trust, in this order: PEM.
    pub certificate: PathBuf,
    /// Its private key, PEM, which nobody but `clawgress-l7` needs to read. Both files are read again when they change.
    pub key: PathBuf,
}

impl Proxy {
    /// Every address it listens on, in clear and over TLS.
    pub fn addresses(&self) -> impl Iterator<Item = &SocketAddr> {
        self.listen.iter().chain(self.tls.iter().flat_map(|tls| &tls.listen))
    }
}

/// The L7 plane.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct L7 {
    /// DNS servers, asked in order; the system's (`/etc/resolv.conf`) if empty.
    #[serde(default)]
    pub resolvers: Vec<DnsServer>,
    /// Files of certificates that those over TLS may prove their names by, PEM, beside the system's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub resolver_roots: Vec<PathBuf>,
    /// How long the last snapshot is served while control is away, seconds; then everything is denied.
    #[serde(default = "snapshot_stale_s_max")]
    pub snapshot_stale_s_max: u64,
    /// Most connections at once; one more is closed at once, counted.
    #[serde(default = "connections_max")]
    pub connections_max: usize,
    /// Most tunnels, connections that are read, and requests under way of one agent at once; a quarter of
    /// `connections_max` if absent. One more is denied (`overloaded`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_connections_max: Option<usize>,
    /// How long open connections may go on once `clawgress-l7` was asked to end, seconds; then they are cut. Its unit's
    /// `TimeoutStopSec` has to leave some seconds more.
    #[serde(default = "drain_s_max")]
    pub drain_s_max: u64,
    /// How long a server may say nothing, before an answer or in the middle of one, seconds; then that is given up.
    #[serde(default = "answer_silence_s_max")]
    pub answer_silence_s_max: NonZeroU32,
    /// cgroup (v2) that `clawgress-l7` runs in, or whose services are several of it, below the mount point unless the
    /// path is absolute: the kernel then judges the proxy's own connections too, and L7 gets its listeners only in
    /// there. If absent, they are judged by the proxy alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<PathBuf>,
    /// Worker threads; the number of cores if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub threads: Option<usize>,
}

// === impl L7 ===

impl L7 {
    /// Most tunnels, connections that are read, and requests under way of one agent at once.
    #[must_use]
    pub fn agent_connections_max(&self) -> usize {
        self.agent_connections_max.unwrap_or(self.connections_max.div_ceil(AGENT_PART))
    }
}

/// One agent may take this part of all connections, so that it can't lock the others out.
const AGENT_PART: usize = 4;

/// Which users the processes run as: what the checks at both ends of the Unix sockets go by. A name given here
/// must exist; the default names count where they exist. A role's own user and root always may.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Access {
    /// User of the keys role; [`Access::KEYS_USER`] if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keys_user: Option<String>,
    /// User of the datapath role; [`Access::DATAPATH_USER`] if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub datapath_user: Option<String>,
    /// User of the control role; [`Access::CONTROL_USER`] if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub control_user: Option<String>,
    /// User of `clawgress-l7`; [`Access::L7_USER`] if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub l7_user: Option<String>,
    /// Group whose members may administer; [`Access::ADMIN_GROUP`] if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub admin_group: Option<String>,
    /// More users who may administer.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub admin_users: Vec<String>,
}

impl Access {
    /// Default user of the keys role.
    pub const KEYS_USER: &'static str = "clawgress-keys";
    /// Default user of the datapath role.
    pub const DATAPATH_USER: &'static str = "clawgress-datapath";
    /// Default user of the control role.
    pub const CONTROL_USER: &'static str = "clawgress-control";
    /// Default user of `clawgress-l7`.
    pub const L7_USER: &'static str = "clawgress-l7";
    /// Default group of administrators.
    pub const ADMIN_GROUP: &'static str = "clawgress-admin";
}

/// The audit log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Audit {
    /// A segment that has reached this size is closed and the next one begun, bytes.
    #[serde(default = "segment_bytes_max")]
    pub segment_bytes_max: u64,
    /// Oldest segments are removed when all together are larger, bytes.
    #[serde(default = "retention_bytes_max")]
    pub retention_bytes_max: u64,
}

impl Default for Audit {
    fn default() -> Self {
        Audit { segment_bytes_max: segment_bytes_max(), retention_bytes_max: retention_bytes_max() }
    }
}

/// Why a file was refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Unreadable.
    #[error("cannot read `{path}`: {error}; name the file with --config")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// Not what it should be.
    #[error("{path}:{line}:{column}: {message}{shown}")]
    Invalid {
        /// The file.
        path: PathBuf,
        /// Line, from 1 (0 if it is the file as a whole).
        line: usize,
        /// Column, from 1, in characters.
        column: usize,
        /// What is wrong and what to do.
        message: String,
        /// The line, and a caret below it.
        shown: String,
    },
}

/// What is wrong with a file, at the byte `at` of it; as a whole, if there is none.
fn invalid(path: &Path, text: &str, at: Option<usize>, message: String) -> ConfigError {
    let path = path.to_owned();
    let Some(before) = at.and_then(|at| text.get(..text.floor_char_boundary(at))) else {
        return ConfigError::Invalid { path, line: 0, column: 0, message, shown: String::new() };
    };
    let line = before.matches('\n').count() + 1;
    let ahead = before.rsplit('\n').next().unwrap_or_default().chars().count();
    let written: String =
        text.lines().nth(line - 1).unwrap_or_default().chars().take(LINE_CHARS_MAX).collect();
    let written: String = written.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let (margin, under) = (" ".repeat(line.to_string().len()), " ".repeat(ahead.min(LINE_CHARS_MAX)));
    let shown = format!("\n  {line} | {written}\n  {margin} | {under}^");
    ConfigError::Invalid { path, line, column: ahead + 1, message, shown }
}

/// Most characters of a line that are shown.
const LINE_CHARS_MAX: usize = 160;

fn state_dir() -> PathBuf {
    PathBuf::from("/var/lib/clawgress")
}
fn run_dir() -> PathBuf {
    PathBuf::from("/run/clawgress")
}
fn bpffs() -> PathBuf {
    PathBuf::from("/sys/fs/bpf/clawgress")
}
fn snapshot_stale_s_max() -> u64 {
    300
}
fn connections_max() -> usize {
    20_000
}
/// Models think for minutes before they say a word.
fn answer_silence_s_max() -> NonZeroU32 {
    const { NonZeroU32::new(600).unwrap() }
}
/// Below systemd's 90 s, long enough for most answers.
fn drain_s_max() -> u64 {
    25
}

fn zone() -> String {
    UTC.to_owned()
}

/// 16 MiB: some thirty thousand records, read by a search in well under a second.
fn segment_bytes_max() -> u64 {
    16 << 20
}
/// 4 GiB: some eight million records, on the smallest disks a gateway has.
fn retention_bytes_max() -> u64 {
    4 << 30
}

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// With file, line and remedy.
    pub fn load(path: &Path) -> Result<Config, ConfigError> {
        let text =
            fs::read_to_string(path).map_err(|error| ConfigError::Read { path: path.to_owned(), error })?;
        Config::parse(&text, path)
    }

    /// Checks `text`, naming `path` in errors.
    ///
    /// # Errors
    /// With file, line and remedy.
    pub fn parse(text: &str, path: &Path) -> Result<Config, ConfigError> {
        let config: Config = toml::from_str(text)
            .map_err(|e| invalid(path, text, e.span().map(|span| span.start), e.message().to_owned()))?;
        // Where it is written first, in its line.
        let place_of = |what: &str| {
            let at = text.find(what)?;
            let line = text.get(..at)?.rfind('\n').map_or(0, |end| end + 1);
            let indented = text.get(line..)?.len() - text.get(line..)?.trim_start().len();
            Some(line + indented)
        };
        check::check(&config).map_err(|(what, message)| invalid(path, text, place_of(what), message))?;
        Ok(config)
    }

    /// The interfaces that agents are behind.
    pub fn agents_interfaces(&self) -> impl Iterator<Item = &Interface> {
        self.interfaces.iter().filter(|i| i.role == Role::Agents)
    }

    /// Socket of the control role: snapshots and audit, for L7.
    #[must_use]
    pub fn control_socket(&self) -> PathBuf {
        self.node.run_dir.join("control.sock")
    }

    /// Socket of the control role for administrators.
    #[must_use]
    pub fn admin_socket(&self) -> PathBuf {
        self.node.run_dir.join("admin.sock")
    }

    /// Socket of the keys role.
    #[must_use]
    pub fn keys_socket(&self) -> PathBuf {
        self.node.run_dir.join("keys.sock")
    }

    /// Socket of the keys role, on which it signs policy revisions, for control.
    #[must_use]
    pub fn signer_socket(&self) -> PathBuf {
        self.node.run_dir.join("signer.sock")
    }

    /// Socket of the keys role, on which it signs certificates for hosts, for L7.
    #[must_use]
    pub fn leaves_socket(&self) -> PathBuf {
        self.node.run_dir.join("leaves.sock")
    }

    /// Socket of the keys role, on which it opens providers' keys, for L7.
    #[must_use]
    pub fn vault_socket(&self) -> PathBuf {
        self.node.run_dir.join("vault.sock")
    }

    /// Socket of the datapath role, for control.
    #[must_use]
    pub fn datapath_socket(&self) -> PathBuf {
        self.node.run_dir.join("datapath.sock")
    }

    /// Socket over which the datapath role hands listeners to L7.
    #[must_use]
    pub fn handover_socket(&self) -> PathBuf {
        self.node.run_dir.join("handover.sock")
    }
}

#[cfg(test)]
mod tests;
