//! What the network stack must do around the programs: forwarding rules that need our mark, routes that
//! deliver steered packets, sysctls, and the list of the gateway's own addresses. It is made idempotent
//! and put back when somebody removes it.
//!
//! Must never open a way: everything here either drops, or accepts what carries our mark.

mod conntrack;
mod firewall;
mod neighbours;
mod queues;
mod routes;
mod watch;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::IpAddr;
use std::path::Path;

use anyhow::{Context as _, Result};
use clawgress_api::config::{Config, Role};
use clawgress_ebpf_common::bound as limits;
use futures_util::TryStreamExt as _;
use netlink_packet_route::address::AddressAttribute;
use netlink_packet_route::link::{LinkAttribute, LinkLayerType};

pub use conntrack::{Conntrack, Tracked};
pub use firewall::Firewall;
pub use neighbours::{Neighbours, bound};
pub use routes::Routes;
pub use watch::{Changes, Watch};

/// A connection to rtnetlink in the network namespace of the thread that opened it.
#[derive(Clone, Debug)]
pub struct Netlink {
    handle: rtnetlink::Handle,
}

/// The configured interfaces that exist: name to index, by role.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interfaces {
    /// Agents are behind them.
    pub agents: BTreeMap<String, u32>,
    /// The ways out.
    pub uplinks: BTreeMap<String, u32>,
    /// Administration.
    pub management: BTreeMap<String, u32>,
    /// Those that can't be used now.
    pub absent: Vec<Absent>,
}

/// A configured interface that can't be used now. It is governed as soon as it can; until then the
/// nftables table, which knows it by name, lets nothing of it through.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Absent {
    /// Its name.
    pub name: String,
    /// Its role.
    pub role: Role,
    /// Why it can't be used, and what to do.
    pub why: String,
}

impl Netlink {
    /// Connects.
    ///
    /// # Errors
    /// If there is no rtnetlink.
    pub fn open() -> Result<Netlink> {
        let (connection, handle, _) = rtnetlink::new_connection().context("cannot open rtnetlink")?;
        tokio::spawn(connection);
        Ok(Netlink { handle })
    }

    /// Finds the interfaces that `config` names, and why others of them can't be used.
    ///
    /// # Errors
    /// If rtnetlink fails.
    pub async fn interfaces(&self, config: &Config) -> Result<Interfaces> {
        let mut links = BTreeMap::new();
        let mut stream = self.handle.link().get().execute();
        while let Some(link) = stream.try_next().await.context("cannot list the interfaces")? {
            for attribute in link.attributes {
                if let LinkAttribute::IfName(name) = attribute {
                    links.insert(name, (link.header.index, link.header.link_layer_type));
                }
            }
        }
        Ok(Interfaces::sort(config, &links))
    }

    /// Every address of this machine, loopback's included.
    ///
    /// # Errors
    /// If rtnetlink fails.
    pub async fn addresses(&self) -> Result<BTreeSet<IpAddr>> {
        let mut addresses = BTreeSet::new();
        let mut stream = self.handle.address().get().execute();
        while let Some(message) = stream.try_next().await.context("cannot list the addresses")? {
            // `Local` is ours; on a point-to-point link `Address` is the other end's.
            let local = message.attributes.iter().find_map(|a| match a {
                AddressAttribute::Local(ip) => Some(*ip),
                _ => None,
            });
            let any = message.attributes.iter().find_map(|a| match a {
                AddressAttribute::Address(ip) => Some(*ip),
                _ => None,
            });
            addresses.extend(local.or(any));
        }
        Ok(addresses)
    }
}

// === impl Interfaces ===

impl Interfaces {
    /// `config`'s interfaces among `links` (name to index and kind).
    fn sort(config: &Config, links: &BTreeMap<String, (u32, LinkLayerType)>) -> Interfaces {
        let mut interfaces = Interfaces::default();
        for interface in &config.interfaces {
            let name = interface.name.clone();
            let (members, role) = match interface.role {
                Role::Agents => (&mut interfaces.agents, Role::Agents),
                Role::Uplink => (&mut interfaces.uplinks, Role::Uplink),
                Role::Management => (&mut interfaces.management, Role::Management),
            };
            let why = match links.get(&interface.name) {
                None => {
                    let known: Vec<_> = links.keys().map(String::as_str).collect();
                    format!(
                        "interface `{name}` does not exist (there are: {}); it is taken up when it appears, \
                         or correct [[interface]] in the configuration",
                        known.join(", ")
                    )
                }
                Some((_, kind)) if role == Role::Agents && *kind != LinkLayerType::Ether => format!(
                    "interface `{name}` is not Ethernet, and agents are told apart by MAC address; put them \
                     behind one that is"
                ),
                Some((index, _)) => {
                    members.insert(name, *index);
                    continue;
                }
            };
            interfaces.absent.push(Absent { name, role, why });
        }
        interfaces
    }

    /// Every interface that is there: role, name and index.
    pub fn present(&self) -> impl Iterator<Item = (Role, &str, u32)> {
        let roles = [
            (Role::Agents, &self.agents),
            (Role::Uplink, &self.uplinks),
            (Role::Management, &self.management),
        ];
        roles.into_iter().flat_map(|(role, members)| members.iter().map(move |(n, i)| (role, n.as_str(), *i)))
    }
}

/// A setting below `/proc/sys/net` and the value it must have.
fn settings(interfaces: &Interfaces) -> Vec<(String, &'static str)> {
    let mut settings = vec![
        ("ipv4/ip_forward".to_owned(), "1"),
        ("ipv6/conf/all/forwarding".to_owned(), "1"),
        // What waits for the proxy at a former role's listener goes to this role's when that closes, in both
        // families.
        ("ipv4/tcp_migrate_req".to_owned(), "1"),
    ];
    for name in interfaces.agents.keys() {
        // Agents must not be told another way, and must not tell us one.
        settings.push((format!("ipv4/conf/{name}/send_redirects"), "0"));
        settings.push((format!("ipv4/conf/{name}/accept_redirects"), "0"));
        settings.push((format!("ipv6/conf/{name}/accept_redirects"), "0"));
        settings.push((format!("ipv6/conf/{name}/accept_ra"), "0"));
    }
    settings
}

/// Least values of the neighbour tables' bounds, from the last to the first: as many entries as there may be flows,
/// since a source that is answered has one, and does not end before its flow does; and none is looked through for what
/// could go before there are more than sources may be bound. An entry takes half a KiB. All interfaces of all network
/// namespaces share a table, and only that of the machine itself can change it.
const NEIGHBOURS: [(&str, u32); 3] = [
    ("gc_thresh3", limits::FLOWS_MAX),
    ("gc_thresh2", limits::FLOWS_MAX / 2),
    ("gc_thresh1", limits::BINDINGS_MAX),
];

/// Raises the bounds of the neighbour tables below `root` that are lower, and tells which.
fn raise(root: &Path) -> Result<Vec<String>> {
    let mut raised = Vec::new();
    for family in ["ipv4", "ipv6"] {
        for (bound, least) in NEIGHBOURS {
            let name = format!("{family}/neigh/default/{bound}");
            let path = root.join(&name);
            // There is none in a container, nor without IPv6.
            let Ok(value) = fs::read_to_string(&path) else { continue };
            if value.trim().parse::<u32>().is_ok_and(|value| value >= least) {
                continue;
            }
            fs::write(&path, least.to_string())
                .with_context(|| format!("cannot write `{}`", path.display()))?;
            raised.push(format!("{name}={least}"));
        }
    }
    Ok(raised)
}

/// [`configure`]s at the start. Says so where this process can't change the bounds of the neighbour tables: they are the
/// machine's, not its namespace's.
///
/// # Errors
/// As [`configure`].
pub fn prepare(interfaces: &Interfaces) -> Result<()> {
    configure(interfaces)?;
    if !Path::new("/proc/sys/net/ipv4/neigh/default/gc_thresh3").exists() {
        tracing::warn!(
            "the neighbour tables are the host's, and their bounds can't be set from here: raise \
             net.ipv4.neigh.default.gc_thresh1..3 and net.ipv6.neigh.default.gc_thresh1..3 there"
        );
    }
    Ok(())
}

/// Sets what is not set, and tells what that was.
///
/// # Errors
/// If a setting can't be written.
pub fn configure(interfaces: &Interfaces) -> Result<Vec<String>> {
    let root = Path::new("/proc/sys/net");
    // Forwarding makes the kernel ignore router advertisements, and with them the way out.
    for name in interfaces.uplinks.keys() {
        let path = root.join(format!("ipv6/conf/{name}/accept_ra"));
        if fs::read_to_string(&path).is_ok_and(|value| value.trim() == "1") {
            fs::write(&path, "2").with_context(|| format!("cannot write `{}`", path.display()))?;
        }
    }
    let mut changed = raise(root)?;
    for (name, wanted) in settings(interfaces) {
        let path = root.join(&name);
        match fs::read_to_string(&path) {
            // Without IPv6 there is nothing to set, nor on an interface that has just gone.
            Err(_) if name.starts_with("ipv6") || !path.parent().is_some_and(Path::exists) => {}
            Ok(value) if value.trim() == wanted => {}
            _ => {
                fs::write(&path, wanted).with_context(|| format!("cannot write `{}`", path.display()))?;
                changed.push(format!("{name}={wanted}"));
            }
        }
    }
    Ok(changed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bounds_of_neighbour_tables_are_raised_and_never_lowered() {
        let root = tempfile::tempdir().expect("directory");
        assert_eq!(raise(root.path()).expect("nothing there"), Vec::<String>::new());
        let directory = root.path().join("ipv4/neigh/default");
        fs::create_dir_all(&directory).expect("directory");
        let read = |name: &str| fs::read_to_string(directory.join(name)).expect("value").trim().to_owned();
        for (name, value) in [("gc_thresh1", "128"), ("gc_thresh2", "1000000"), ("gc_thresh3", "1024")] {
            fs::write(directory.join(name), format!("{value}\n")).expect("value");
        }
        let wanted = ["ipv4/neigh/default/gc_thresh3=262144", "ipv4/neigh/default/gc_thresh1=65536"];
        assert_eq!(raise(root.path()).expect("raised"), wanted);
        assert_eq!(["gc_thresh1", "gc_thresh2", "gc_thresh3"].map(read), ["65536", "1000000", "262144"]);
        assert_eq!(raise(root.path()).expect("again"), Vec::<String>::new());
    }
}
