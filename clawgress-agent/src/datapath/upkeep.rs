//! Keeps the surroundings as they must be: the gateway's own addresses in the map, and programs, rules,
//! routes and settings put back when somebody removed them. Whatever it repairs, it tells in an audit record.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, bail};
use aya::maps::{HashMap, MapData};
use clawgress_api::config::{Config, Role};
use clawgress_ebpf_common::{Address, SelfAddress, bound, user};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use super::bpf::Plain;
use super::network::{self, Firewall, Interfaces, Netlink, Routes};
use super::programs::Programs;
use super::spool::Spool;

/// How often it looks: the longest time a removed rule stays removed. Without the rules nothing is
/// forwarded or delivered, so the time is one of outage, not of exposure; without the table it is one
/// in which TC still judges every packet.
const INTERVAL: Duration = Duration::from_secs(2);

/// What the start installed.
#[derive(Debug)]
pub struct Keep {
    /// rtnetlink in the gateway's namespace.
    pub netlink: Netlink,
    /// The configured interfaces.
    pub interfaces: Interfaces,
    /// The attached programs.
    pub programs: Programs,
    /// The nftables table.
    pub firewall: Firewall,
    /// Rules and routes of steered packets.
    pub routes: Routes,
    /// The map of the gateway's own addresses.
    pub own: HashMap<MapData, [u8; 16], Plain<SelfAddress>>,
    /// What could not be repaired, in words, for status.
    pub troubles: Arc<Mutex<Vec<String>>>,
}

/// What is kept.
#[derive(Debug)]
pub struct Upkeep {
    config: Config,
    keep: Keep,
    written: Option<BTreeMap<Address, SelfAddress>>,
    spool: Arc<Spool>,
}

impl Upkeep {
    /// Takes over what the start installed.
    #[must_use]
    pub fn new(config: &Config, keep: Keep, spool: Arc<Spool>) -> Self {
        // An uplink may come and go; agents' interfaces carry the programs.
        let mut config = config.clone();
        config.interfaces.retain(|i| i.role == Role::Agents);
        Upkeep { config, keep, written: None, spool }
    }

    /// Writes the gateway's own addresses, and the services there, into the map.
    ///
    /// # Errors
    /// If they can't be listed or written.
    pub async fn addresses(&mut self) -> Result<()> {
        let wanted = services(&self.keep.netlink.addresses().await?, &self.config.proxy.listen);
        if wanted.len() > bound::SELF_MAX as usize {
            bail!(
                "this machine has {} addresses, and the kernel plane holds {}",
                wanted.len(),
                bound::SELF_MAX
            );
        }
        if self.written.as_ref() == Some(&wanted) {
            return Ok(());
        }
        for (address, services) in &wanted {
            self.keep.own.insert(address, Plain(*services), 0)?;
        }
        let present: Vec<_> = self.keep.own.keys().collect::<Result<_, _>>()?;
        for address in present.iter().filter(|a| !wanted.contains_key(*a)) {
            self.keep.own.remove(address)?;
        }
        self.written = Some(wanted);
        Ok(())
    }

    /// Looks and repairs until `stop`.
    ///
    /// # Errors
    /// If an agents' interface was replaced: its programs and bindings went with it, and a fresh start
    /// sets them up again.
    pub async fn run(mut self, stop: CancellationToken) -> Result<()> {
        let mut ticks = tokio::time::interval(INTERVAL);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                _ = ticks.tick() => {}
            }
            if self.keep.netlink.interfaces(&self.config).await?.agents != self.keep.interfaces.agents {
                bail!("an agents' interface was replaced; the datapath role has to start again");
            }
            let mut troubles = Vec::new();
            let repaired = tokio::task::block_in_place(|| self.keep.programs.repair());
            match repaired {
                Ok(repaired) => repaired.iter().for_each(|what| self.tell(what)),
                Err(error) => troubles.push(format!("programs are not attached as they must be: {error:#}")),
            }
            if let Err(error) = self.repair().await {
                troubles.push(format!("the network around the programs is not as it must be: {error:#}"));
            }
            for trouble in &troubles {
                tracing::error!("{trouble}");
            }
            *self.keep.troubles.lock() = troubles;
        }
    }

    async fn repair(&mut self) -> Result<()> {
        self.addresses().await?;
        if !tokio::task::block_in_place(|| self.keep.firewall.is_intact()) {
            tokio::task::block_in_place(|| self.keep.firewall.install())?;
            self.tell("the nftables table was changed or missing, and was installed again");
        }
        if self.keep.routes.install().await? > 0 {
            self.tell("rules or routes of steered packets were missing, and were added again");
        }
        for changed in network::configure(&self.keep.interfaces)? {
            self.tell(&format!("a setting was changed, and was set back: {changed}"));
        }
        Ok(())
    }

    fn tell(&self, detail: &str) {
        tracing::warn!("{detail}");
        self.spool.change(format!("datapath: {detail}"));
    }
}

/// The proxy's port at each address where it listens, and no service at the others.
fn services(addresses: &BTreeSet<IpAddr>, listen: &[SocketAddr]) -> BTreeMap<Address, SelfAddress> {
    let service = |ip: &IpAddr| {
        let here =
            listen.iter().find(|l| l.ip() == *ip || (l.ip().is_unspecified() && l.is_ipv4() == ip.is_ipv4()));
        SelfAddress { proxy_port_be: here.map_or(0, |l| l.port().to_be()), dns_port_be: 0, pad: 0 }
    };
    addresses.iter().map(|ip| (user::address(*ip), service(ip))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_proxy_is_where_it_listens_and_nowhere_else() {
        let ip = |text: &str| text.parse::<IpAddr>().expect("address");
        let all = BTreeSet::from([ip("10.0.0.1"), ip("192.0.2.1"), ip("2001:db8::1")]);
        let port = |listen: &str, at: &str| {
            let listen = [listen.parse().expect("socket address")];
            u16::from_be(services(&all, &listen)[&user::address(ip(at))].proxy_port_be)
        };
        assert_eq!(port("10.0.0.1:3128", "10.0.0.1"), 3128);
        assert_eq!(port("10.0.0.1:3128", "192.0.2.1"), 0);
        assert_eq!(port("0.0.0.0:3128", "192.0.2.1"), 3128);
        assert_eq!(port("0.0.0.0:3128", "2001:db8::1"), 0);
        assert_eq!(port("[::]:3128", "2001:db8::1"), 3128);
    }
}
