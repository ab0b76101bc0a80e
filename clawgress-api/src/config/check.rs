//! What a file of the right shape must still fulfil.

use std::net::SocketAddr;
use std::path::Component;

use super::{
    Audit, Config, Content, Danger, Datapath, DatapathMode, Interface, L7, Llm, Node, Proxy, ProxyTls, Role,
    UTC, UnboundSources,
};
use super::{dns_server, endpoint, intercept, llm, route, tool};

/// Most interfaces a node may name: what an image of the kernel tables holds.
const INTERFACES_MAX: usize = 128;

/// What the reader of a body takes, with the largest window of a coding, bytes.
pub(super) const CONTENT_READER_BYTES: u64 = 18 << 20;

/// Bounds of a lease, seconds: the role vouches each second, and who would wait longer wants `fail_open = ["agent"]`.
const LEASE_S: std::ops::RangeInclusive<u32> = 2..=300;

/// Least size of an audit segment, bytes: smaller ones would be mostly directory entries.
const AUDIT_SEGMENT_BYTES_LEAST: u64 = 4096;

/// A word of the line that is wrong, and what to do.
pub(super) type Refused = (&'static str, String);

/// Checks what the types alone can't say.
pub fn check(config: &Config) -> Result<(), Refused> {
    check_node(&config.node)?;
    check_interfaces(config)?;
    check_datapath(&config.datapath)?;
    check_proxy(&config.proxy, config.datapath.mode)?;
    check_audit(&config.audit)?;
    check_l7(&config.l7, config.datapath.mode)?;
    endpoint::check(&config.endpoints)?;
    route::check(&config.parents, &config.routes)?;
    config.intercept.as_ref().map_or(Ok(()), intercept::check)?;
    check_content(&config.content)?;
    check_llm(&config.llm, &config.content)?;
    tool::check(&config.tool, &config.content)?;
    check_surroundings(config)
}

fn check_content(content: &Content) -> Result<(), Refused> {
    let (all, own) = (content.memory_bytes_max, content.agent_memory_bytes_max);
    if own > all {
        return Err((
            "agent_memory_bytes_max",
            "one agent can't have more memory than all: lower it, or raise `memory_bytes_max`".into(),
        ));
    }
    // What is held, at the end of growing, and what reads it.
    let least = u64::from(content.hold_bytes_max.get()) * 2 + CONTENT_READER_BYTES;
    if own.get() < least {
        return Err((
            "agent_memory_bytes_max",
            format!(
                "a body of `hold_bytes_max` takes {least} bytes while it is held: raise this to that, or lower `hold_bytes_max`"
            ),
        ));
    }
    Ok(())
}

fn check_llm(llm: &Llm, content: &Content) -> Result<(), Refused> {
    let least = llm.hold_bytes_max.map_or(0, |most| u64::from(most.get()) * 2 + CONTENT_READER_BYTES);
    if content.agent_memory_bytes_max.get() < least {
        return Err((
            "[llm] hold_bytes_max",
            format!(
                "an agent's share of memory is too small for one call: `agent_memory_bytes_max` in [content] must be at least {least}"
            ),
        ));
    }
    llm::check(llm)
}

fn check_node(node: &Node) -> Result<(), Refused> {
    let name = &node.name;
    if name.is_empty() || name.len() > 63 || !name.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(("name", "the node's `name` must be 1 to 63 printable characters without spaces".into()));
    }
    Ok(())
}

fn check_interfaces(config: &Config) -> Result<(), Refused> {
    let Config { interfaces, datapath, .. } = config;
    if datapath.mode == DatapathMode::Kernel && interfaces.is_empty() {
        return Err((
            "mode",
            "`mode = \"kernel\"` needs at least one [[interface]]: with `role = \"agents\"` for each that agents are behind, \
             or, where commands of this machine alone are governed, the way out with `role = \"uplink\"`"
                .into(),
        ));
    }
    if datapath.mode == DatapathMode::None && !interfaces.is_empty() {
        return Err((
            "[[interface]]",
            "`mode = \"none\"` governs no interface: remove the [[interface]] tables".into(),
        ));
    }
    if interfaces.len() > INTERFACES_MAX {
        return Err(("[[interface]]", format!("at most {INTERFACES_MAX} interfaces")));
    }
    for (n, interface) in interfaces.iter().enumerate() {
        let Interface { name, .. } = interface;
        if !is_interface_name(name) {
            return Err((
                "[[interface]]",
                format!(
                    "no interface can be called `{name}`: a name is 1 to 15 of a-z, A-Z, 0-9, `.`, `_`, `-`, `@`, \
                     and none of `.`, `..`, `all`, `default`"
                ),
            ));
        }
        if interfaces.iter().take(n).any(|i| i.name == *name) {
            return Err(("[[interface]]", format!("interface `{name}` is named twice")));
        }
        check_strangers(interface)?;
        check_danger(interface)?;
    }
    Ok(())
}

fn check_datapath(datapath: &Datapath) -> Result<(), Refused> {
    if LEASE_S.contains(&datapath.lease_s) {
        return Ok(());
    }
    let (least, most) = LEASE_S.into_inner();
    Err(("lease_s", format!("`lease_s` must be {least} to {most} seconds")))
}

fn check_proxy(proxy: &Proxy, mode: DatapathMode) -> Result<(), Refused> {
    let mut ports = proxy.listen.iter().map(SocketAddr::port);
    let first = ports.next();
    if first.is_some_and(|p| p == 0) || ports.any(|p| Some(p) != first) {
        return Err(("listen", "all addresses in `listen` must have the same port, and not 0".into()));
    }
    if proxy.addresses().next().is_none() && mode == DatapathMode::None {
        return Err((
            "listen",
            "`mode = \"none\"` needs an address in `listen`: there would be no way in".into(),
        ));
    }
    if let Some(all) = proxy.balancers.iter().find(|net| net.prefix_len() == 0) {
        return Err((
            "balancers",
            format!("`{all}` in `balancers` would let everybody say who they are: name the load balancers"),
        ));
    }
    proxy.tls.as_ref().map_or(Ok(()), |tls| check_proxy_tls(tls, first))
}

/// Checks the proxy over TLS, beside that in clear at a port.
fn check_proxy_tls(tls: &ProxyTls, clear: Option<u16>) -> Result<(), Refused> {
    const TABLE: &str = "[proxy.tls]";
    let mut ports = tls.listen.iter().map(SocketAddr::port);
    let Some(port) = ports.next() else {
        return Err((TABLE, "[proxy.tls] needs an address in `listen`, or has to go".into()));
    };
    if port == 0 || ports.any(|p| p != port) {
        return Err((
            TABLE,
            "all addresses in `listen` of [proxy.tls] must have the same port, and not 0".into(),
        ));
    }
    if clear == Some(port) {
        return Err((TABLE, "`listen` of [proxy.tls] needs another port than `listen` of [proxy]".into()));
    }
    for (key, path) in [("certificate", &tls.certificate), ("key", &tls.key)] {
        if !path.is_absolute() {
            let why = "must be an absolute path: roles have no directory of their own";
            return Err((key, format!("`{key}` {why}")));
        }
    }
    Ok(())
}

fn check_audit(audit: &Audit) -> Result<(), Refused> {
    if audit.segment_bytes_max < AUDIT_SEGMENT_BYTES_LEAST {
        return Err((
            "segment_bytes_max",
            format!("`segment_bytes_max` must be at least {AUDIT_SEGMENT_BYTES_LEAST}"),
        ));
    }
    if audit.retention_bytes_max < audit.segment_bytes_max.saturating_mul(2) {
        return Err((
            "retention_bytes_max",
            "`retention_bytes_max` must be at least twice `segment_bytes_max`".into(),
        ));
    }
    Ok(())
}

fn check_l7(l7: &L7, mode: DatapathMode) -> Result<(), Refused> {
    if let Some(cgroup) = &l7.cgroup {
        let is_plain = |c: Component<'_>| matches!(c, Component::Normal(_) | Component::RootDir);
        if mode == DatapathMode::None {
            return Err(("cgroup", "`cgroup` in [l7] needs `mode = \"kernel\"`".into()));
        }
        if cgroup.components().count() == 0 || !cgroup.components().all(is_plain) {
            return Err(("cgroup", "`cgroup` in [l7] must be a path without `.` and `..`".into()));
        }
    }
    dns_server::check(&l7.resolvers, &l7.resolver_roots)?;
    if l7.connections_max == 0 {
        return Err(("connections_max", "`connections_max` must be at least 1".into()));
    }
    if l7.agent_connections_max == Some(0) {
        let why = "`agent_connections_max` must be at least 1: to let nobody in, take the permits away";
        return Err(("agent_connections_max", why.into()));
    }
    Ok(())
}

/// What policy is decided by besides its text.
fn check_surroundings(config: &Config) -> Result<(), Refused> {
    for (key, path) in [("asn", &config.geo.asn), ("country", &config.geo.country)] {
        if path.as_ref().is_some_and(|path| !path.is_absolute()) {
            let why = "must be an absolute path: roles have no directory of their own";
            return Err((key, format!("`{key}` {why}")));
        }
    }
    if config.time.zone != UTC && jiff::tz::TimeZone::get(&config.time.zone).is_err() {
        let message = format!(
            "there is no time zone `{}` on this machine: use a name such as `UTC` or `Europe/Berlin`, and see that the zone database (`tzdata`) is installed",
            config.time.zone
        );
        return Err(("zone", message));
    }
    Ok(())
}

fn check_strangers(interface: &Interface) -> Result<(), Refused> {
    let Interface { name, role, unbound_sources, .. } = interface;
    if *role != Role::Agents && *unbound_sources == UnboundSources::Deny {
        return Err((
            "unbound_sources",
            format!("interface `{name}` has no agents behind it: remove its `unbound_sources`"),
        ));
    }
    Ok(())
}

fn check_danger(interface: &Interface) -> Result<(), Refused> {
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
