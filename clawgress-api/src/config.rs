//! The configuration file: raw TOML becomes typed configuration before a socket opens.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// The zone that needs no zone database.
pub const UTC: &str = "UTC";

/// Default place of the file.
pub const PATH: &str = "/etc/clawgress/clawgress.toml";

/// Most interfaces a node may name: what an image of the kernel tables holds.
const INTERFACES_MAX: usize = 128;

/// Least size of an audit segment, bytes: smaller ones would be mostly directory entries.
const AUDIT_SEGMENT_BYTES_LEAST: u64 = 4096;

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
    /// The same for all such sources together.
    #[serde(default = "unbound_all_per_s")]
    pub unbound_all_per_s: NonZeroU32,
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

/// An interface and its role.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Interface {
    /// Name.
    pub name: String,
    /// Role.
    pub role: Role,
    /// What a source may do that is bound to nobody, on an agents' interface.
    #[serde(default, skip_serializing_if = "UnboundSources::is_present")]
    pub unbound_sources: UnboundSources,
    /// What makes it less safe.
    #[serde(default, skip_serializing_if = "Danger::is_none")]
    pub danger: Danger,
}

/// What a source may do that is bound to nobody.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UnboundSources {
    /// Present a credential at the gateway's own services, and no more.
    #[default]
    Present,
    /// Nothing: all of it is dropped.
    Deny,
}

impl UnboundSources {
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature that serde asks for")]
    fn is_present(&self) -> bool {
        *self == UnboundSources::Present
    }
}

/// What weakens the safety of an interface.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Danger {
    /// What agents' traffic is let through for, rather than dropped, when it fails. Nothing, if empty.
    pub fail_open: Vec<FailOpen>,
}

impl Danger {
    fn is_none(&self) -> bool {
        self.fail_open.is_empty()
    }
}

/// What may fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailOpen {
    /// The agent daemon is gone. Refused: see [`FailOpen::refusal`].
    Agent,
    /// No L7 accepts steered connections: what policy permits to `connect` is forwarded, unread.
    L7,
    /// The flow table is full: what policy permits `direct` is forwarded without a record.
    FlowTable,
    /// The kernel's connection tracking is full. Refused: see [`FailOpen::refusal`].
    Conntrack,
    /// No policy has been loaded: everything of a known source is forwarded.
    Revision,
}

impl FailOpen {
    /// As in the file.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            FailOpen::Agent => "agent",
            FailOpen::L7 => "l7",
            FailOpen::FlowTable => "flow_table",
            FailOpen::Conntrack => "conntrack",
            FailOpen::Revision => "revision",
        }
    }

    /// Why an interface can't fail open for it, if it can't.
    #[must_use]
    pub fn refusal(self) -> Option<&'static str> {
        match self {
            FailOpen::Agent => Some(
                "without the daemon the kernel goes on with the last policy, and without its programs nothing \
                 could tell an agent from a stranger",
            ),
            FailOpen::Conntrack => Some(
                "a packet that is not tracked leaves with the agent's own address, and its answer can't be told \
                 from a stranger's; raise `net.netfilter.nf_conntrack_max`",
            ),
            FailOpen::L7 | FailOpen::FlowTable | FailOpen::Revision => None,
        }
    }
}

/// What an interface is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Agents are behind it.
    Agents,
    /// The way out.
    Uplink,
    /// Administration.
    Management,
}

impl Role {
    /// As in the file.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Role::Agents => "agents",
            Role::Uplink => "uplink",
            Role::Management => "management",
        }
    }
}

/// The explicit proxy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Proxy {
    /// Addresses to listen on. All must have the same port.
    pub listen: Vec<SocketAddr>,
}

/// The L7 plane.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct L7 {
    /// DNS servers, asked in order; the system's (`/etc/resolv.conf`) if empty.
    #[serde(default)]
    pub resolvers: Vec<SocketAddr>,
    /// How long the last snapshot is served while control is away, seconds; then everything is denied.
    #[serde(default = "snapshot_stale_s_max")]
    pub snapshot_stale_s_max: u64,
    /// Most connections at once; one more is closed at once, counted.
    #[serde(default = "connections_max")]
    pub connections_max: usize,
    /// How long open connections may go on once `clawgress-l7` was asked to end, seconds; then they are cut. Its unit's
    /// `TimeoutStopSec` has to leave some seconds more.
    #[serde(default = "drain_s_max")]
    pub drain_s_max: u64,
    /// cgroup (v2) that `clawgress-l7` runs in, or whose services are several of it, below the mount point unless the
    /// path is absolute: the kernel then judges the proxy's own connections too, and L7 gets its listeners only in
    /// there. If absent, they are judged by the proxy alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<PathBuf>,
    /// Worker threads; the number of cores if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub threads: Option<usize>,
}

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
    #[error("{path}:{line}: {message}")]
    Invalid {
        /// The file.
        path: PathBuf,
        /// Line, from 1 (0 if it is the file as a whole).
        line: usize,
        /// What is wrong and what to do.
        message: String,
    },
}

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
        let invalid =
            |line: usize, message: String| ConfigError::Invalid { path: path.to_owned(), line, message };
        let config: Config = toml::from_str(text).map_err(|e| {
            let line =
                e.span().map_or(0, |s| text.get(..s.start).unwrap_or_default().matches('\n').count() + 1);
            invalid(line, e.message().to_owned())
        })?;
        let line_of = |what: &str| text.lines().position(|l| l.contains(what)).map_or(0, |n| n + 1);
        config.check().map_err(|(what, message)| invalid(line_of(what), message))?;
        Ok(config)
    }

    fn check(&self) -> Result<(), (&'static str, String)> {
        let name_ok = |n: &str| !n.is_empty() && n.len() <= 63 && n.bytes().all(|b| b.is_ascii_graphic());
        if !name_ok(&self.node.name) {
            return Err((
                "name",
                "the node's `name` must be 1 to 63 printable characters without spaces".into(),
            ));
        }
        let agents = self.interfaces.iter().filter(|i| i.role == Role::Agents).count();
        if self.datapath.mode == DatapathMode::Kernel && agents == 0 {
            return Err((
                "mode",
                "`mode = \"kernel\"` needs at least one [[interface]] with `role = \"agents\"`".into(),
            ));
        }
        if self.datapath.mode == DatapathMode::None && !self.interfaces.is_empty() {
            return Err((
                "[[interface]]",
                "`mode = \"none\"` governs no interface: remove the [[interface]] tables".into(),
            ));
        }
        if self.interfaces.len() > INTERFACES_MAX {
            return Err(("[[interface]]", format!("at most {INTERFACES_MAX} interfaces")));
        }
        for (n, interface) in self.interfaces.iter().enumerate() {
            if !is_interface_name(&interface.name) {
                return Err((
                    "[[interface]]",
                    format!(
                        "no interface can be called `{}`: a name is 1 to 15 of a-z, A-Z, 0-9, `.`, `_`, `-`, `@`, \
                         and none of `.`, `..`, `all`, `default`",
                        interface.name
                    ),
                ));
            }
            if self.interfaces.iter().take(n).any(|i| i.name == interface.name) {
                return Err(("[[interface]]", format!("interface `{}` is named twice", interface.name)));
            }
            check_strangers(interface)?;
            check_danger(interface)?;
        }
        let mut ports = self.proxy.listen.iter().map(SocketAddr::port);
        let first = ports.next();
        if first.is_some_and(|p| p == 0) || ports.any(|p| Some(p) != first) {
            return Err(("listen", "all addresses in `listen` must have the same port, and not 0".into()));
        }
        if first.is_none() && self.datapath.mode == DatapathMode::None {
            return Err((
                "listen",
                "`mode = \"none\"` needs an address in `listen`: there would be no way in".into(),
            ));
        }
        if self.audit.segment_bytes_max < AUDIT_SEGMENT_BYTES_LEAST {
            return Err((
                "segment_bytes_max",
                format!("`segment_bytes_max` must be at least {AUDIT_SEGMENT_BYTES_LEAST}"),
            ));
        }
        if self.audit.retention_bytes_max < self.audit.segment_bytes_max.saturating_mul(2) {
            return Err((
                "retention_bytes_max",
                "`retention_bytes_max` must be at least twice `segment_bytes_max`".into(),
            ));
        }
        if let Some(cgroup) = &self.l7.cgroup {
            let is_path = |c: std::path::Component<'_>| {
                matches!(c, std::path::Component::Normal(_) | std::path::Component::RootDir)
            };
            if self.datapath.mode == DatapathMode::None {
                return Err(("cgroup", "`cgroup` in [l7] needs `mode = \"kernel\"`".into()));
            }
            if cgroup.components().count() == 0 || !cgroup.components().all(is_path) {
                return Err(("cgroup", "`cgroup` in [l7] must be a path without `.` and `..`".into()));
            }
        }
        self.check_surroundings()?;
        if self.l7.connections_max == 0 {
            return Err(("connections_max", "`connections_max` must be at least 1".into()));
        }
        Ok(())
    }

    /// The interfaces that agents are behind.
    pub fn agents_interfaces(&self) -> impl Iterator<Item = &Interface> {
        self.interfaces.iter().filter(|i| i.role == Role::Agents)
    }

    /// What policy is decided by besides its text.
    fn check_surroundings(&self) -> Result<(), (&'static str, String)> {
        for (key, path) in [("asn", &self.geo.asn), ("country", &self.geo.country)] {
            if path.as_ref().is_some_and(|path| !path.is_absolute()) {
                let why = "must be an absolute path: roles have no directory of their own";
                return Err((key, format!("`{key}` {why}")));
            }
        }
        if self.time.zone != UTC && jiff::tz::TimeZone::get(&self.time.zone).is_err() {
            let message = format!(
                "there is no time zone `{}` on this machine: use a name such as `UTC` or `Europe/Berlin`, and see that the zone database (`tzdata`) is installed",
                self.time.zone
            );
            return Err(("zone", message));
        }
        Ok(())
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

fn check_strangers(interface: &Interface) -> Result<(), (&'static str, String)> {
    let Interface { name, role, unbound_sources, .. } = interface;
    if *role != Role::Agents && *unbound_sources == UnboundSources::Deny {
        return Err((
            "unbound_sources",
            format!("interface `{name}` has no agents behind it: remove its `unbound_sources`"),
        ));
    }
    Ok(())
}

fn check_danger(interface: &Interface) -> Result<(), (&'static str, String)> {
    let Interface { name, role, danger: Danger { fail_open }, .. } = interface;
    if *role != Role::Agents && !fail_open.is_empty() {
        return Err((
            "fail_open",
            format!("interface `{name}` has no agents behind it: remove its `fail_open`"),
        ));
    }
    for (n, cause) in fail_open.iter().enumerate() {
        if let Some(why) = cause.refusal() {
            let cause = cause.name();
            return Err(("fail_open", format!("interface `{name}` can't fail open for `{cause}`: {why}")));
        }
        if fail_open.iter().take(n).any(|c| c == cause) {
            return Err(("fail_open", format!("`{}` is named twice", cause.name())));
        }
    }
    Ok(())
}

/// Whether an interface could ever have this name. The kernel permits a few characters more, which no
/// nftables set can hold.
fn is_interface_name(name: &str) -> bool {
    let is_known = |b: u8| b.is_ascii_alphanumeric() || b"._-@".contains(&b);
    // The last two are directories beside those of interfaces in /proc/sys/net.
    let is_taken = [".", "..", "all", "default"].contains(&name);
    !name.is_empty() && name.len() <= 15 && name.bytes().all(is_known) && !is_taken
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str =
        "[node]\nname = \"gw\"\n[datapath]\nmode = \"none\"\n[proxy]\nlisten = [\"127.0.0.1:3128\"]\n[l7]\n";

    #[track_caller]
    fn check(text: &str, want: &str) {
        let error = Config::parse(text, Path::new("c.toml")).expect_err("must be refused").to_string();
        assert!(error.contains(want), "`{error}` should contain `{want}`");
    }

    #[test]
    fn the_least_file_is_accepted() {
        let config = Config::parse(GOOD, Path::new("c.toml")).expect("valid");
        assert_eq!((config.l7.snapshot_stale_s_max, config.l7.drain_s_max), (300, 25));
        assert_eq!(config.admin_socket(), Path::new("/run/clawgress/admin.sock"));
    }

    #[test]
    fn refusals_name_file_line_and_remedy() {
        check(&GOOD.replace("gw", ""), "c.toml:2: the node's `name`");
        check(&GOOD.replace("none", "off"), "c.toml:4:");
        check(&GOOD.replace("none", "kernel"), "c.toml:4: `mode = \"kernel\"` needs");
        check(&GOOD.replace("3128\"", "3128\", \"[::1]:3129\""), "c.toml:6: all addresses");
        check(&GOOD.replace("[\"127.0.0.1:3128\"]", "[]"), "c.toml:6: `mode = \"none\"` needs an address");
        check(&GOOD.replace("[l7]", "[l7]\nthreds = 3"), "c.toml:8: unknown field `threds`");
        check(&format!("{GOOD}cgroup = \"l7\"\n"), "c.toml:8: `cgroup` in [l7] needs `mode = \"kernel\"`");
        check(
            &format!("{GOOD}[[interface]]\nname = \"a\"\nrole = \"agents\"\n"),
            "c.toml:8: `mode = \"none\"` governs",
        );
        let kernel = GOOD.replace("none", "kernel");
        for name in ["", "sixteen-letters.", "a b", "a/b", "a:b", "a*", "a\\\"b", "..", "all", "default"] {
            check(
                &format!("{kernel}[[interface]]\nname = \"{name}\"\nrole = \"agents\"\n"),
                "c.toml:8: no interface can be called",
            );
        }
        let unbound = |role: &str, unbound: &str| {
            format!(
                "{kernel}[[interface]]\nname = \"a\"\nrole = \"agents\"\n[[interface]]\nname = \"b\"\n\
                 role = \"{role}\"\nunbound_sources = \"{unbound}\"\n"
            )
        };
        check(&unbound("uplink", "deny"), "c.toml:14: interface `b` has no agents behind it");
        check(&unbound("agents", "drop"), "c.toml:14: unknown variant `drop`");
        let denied = Config::parse(&unbound("agents", "deny"), Path::new("c.toml")).expect("valid");
        let denied: Vec<_> = denied.agents_interfaces().map(|i| i.unbound_sources).collect();
        assert_eq!(denied, [UnboundSources::Present, UnboundSources::Deny]);
        let danger = |role: &str, causes: &str| {
            format!(
                "{kernel}[[interface]]\nname = \"a\"\nrole = \"agents\"\n[[interface]]\nname = \"b\"\n\
                 role = \"{role}\"\n[interface.danger]\nfail_open = [{causes}]\n"
            )
        };
        check(&danger("uplink", "\"l7\""), "c.toml:15: interface `b` has no agents behind it");
        check(
            &danger("agents", "\"agent\""),
            "c.toml:15: interface `b` can't fail open for `agent`: without",
        );
        check(
            &danger("agents", "\"conntrack\""),
            "c.toml:15: interface `b` can't fail open for `conntrack`: a",
        );
        check(&danger("agents", "\"l7\", \"l7\""), "c.toml:15: `l7` is named twice");
        check(&danger("agents", "\"everything\""), "c.toml:15: unknown variant `everything`");
        let good = danger("agents", "\"l7\", \"flow_table\", \"revision\"");
        let good = Config::parse(&good, Path::new("c.toml")).expect("valid");
        let open: Vec<_> = good.agents_interfaces().map(|i| i.danger.fail_open.len()).collect();
        assert_eq!(open, [0, 3], "what is not said fails closed");
        let with = |table: &str| format!("{GOOD}{table}\n");
        check(&with("[access]\nl7 = \"x\""), "c.toml:9: unknown field `l7`");
        check(&with("[geo]\nasn = \"asn.mmdb\""), "c.toml:9: `asn` must be an absolute path");
        check(&with("[geo]\ncity = \"/x\""), "c.toml:9: unknown field `city`");
        check(&with("[time]\nzone = \"Mars/Base\""), "c.toml:9: there is no time zone `Mars/Base`");
        let zone = Config::parse(&with("[time]\nzone = \"Europe/Berlin\""), Path::new("c.toml"));
        assert_eq!(zone.expect("valid").time.zone, "Europe/Berlin");
        check(
            &with("[audit]\nsegment_bytes_max = 10"),
            "c.toml:9: `segment_bytes_max` must be at least 4096",
        );
        check(
            &with("[audit]\nretention_bytes_max = 10"),
            "c.toml:9: `retention_bytes_max` must be at least twice",
        );
    }
}
