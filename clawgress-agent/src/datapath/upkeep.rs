//! Keeps the surroundings as they must be: agents' interfaces governed as they come and go, the gateway's own
//! addresses in the map, and programs, rules, routes and settings put back when somebody removed them. It looks
//! when the kernel announces a change, and now and then all the same. What it does, it tells in an audit record.
//!
//! Must never open an interface before its sources are bound: until then nothing of it has a mark.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use clawgress_api::config::{Config, Proxy, Role};
use clawgress_ebpf_common::{Address, SelfAddress, bound, user};
use tokio_util::sync::CancellationToken;

use super::handover::Offer;
use super::modes::Failure;
use super::network::{self, Changes, Firewall, Interfaces, Netlink, Routes, Watch};
use super::own::Own;
use super::plane::KernelPlane;
use super::programs::Programs;

/// How often it looks at what nobody announces: programs taken off their hooks, and most settings.
/// Without programs nothing is forwarded or delivered, so this is a time of outage, not of exposure, but
/// for local commands, which are ended then.
const INTERVAL: Duration = Duration::from_secs(2);
/// Every so many times it looks at everything: the announcements should have told, and this is for what
/// they left out.
const WHOLE_EVERY: u32 = 15;
/// The same repair, made again within this time, is counted and told later: who fights with another program
/// over a rule needs one record a while, not a thousand.
const TOLD_INTERVAL: Duration = Duration::from_secs(60);
/// How long L7 may take to come after a start before it is said to be away: it dials every two seconds.
const L7_TIME_MAX: Duration = Duration::from_secs(5);
/// Different repairs remembered as told: more than there are things to repair on a node of a few interfaces.
const TOLD_MAX: usize = 256;

/// What the start installed.
#[derive(Debug)]
pub struct Keep {
    /// rtnetlink in the gateway's namespace.
    pub netlink: Netlink,
    /// What the kernel announces there.
    pub watch: Watch,
    /// The configured interfaces, as they were found.
    pub interfaces: Interfaces,
    /// The attached programs.
    pub programs: Programs,
    /// The nftables table.
    pub firewall: Firewall,
    /// Rules and routes of steered packets.
    pub routes: Routes,
    /// The map of the gateway's own addresses.
    pub own: Own,
    /// Tables, flows and names.
    pub plane: Arc<KernelPlane>,
    /// What L7 was told.
    pub offer: Arc<Offer>,
}

/// What is looked at by itself, and may be in trouble by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    Time,
    Interfaces,
    Programs,
    Network,
    Settings,
    Firewall,
    Tracking,
}

/// What is kept.
#[derive(Debug)]
pub struct Upkeep {
    config: Config,
    keep: Keep,
    written: Option<BTreeMap<Address, SelfAddress>>,
    /// The generation whose sources' neighbours are noted, and the interfaces that they are noted at.
    noted: Option<(u64, BTreeMap<String, u32>)>,
    troubles: BTreeMap<Part, String>,
    told: Told,
    started: Instant,
}

/// Repairs told lately, and how often each was made since.
#[derive(Debug, Default)]
struct Told(BTreeMap<String, (Instant, u32)>);

impl Upkeep {
    /// Takes over what the start installed.
    #[must_use]
    pub fn new(config: &Config, keep: Keep) -> Self {
        let (troubles, told) = (BTreeMap::new(), Told(BTreeMap::new()));
        let (config, started) = (config.clone(), Instant::now());
        Upkeep { config, keep, written: None, noted: None, troubles, told, started }
    }

    /// Writes the gateway's own addresses, and the services there, into the map.
    ///
    /// # Errors
    /// If they can't be listed or written.
    pub async fn addresses(&mut self) -> Result<()> {
        let wanted = services(&self.keep.netlink.addresses().await?, &self.config.proxy);
        if self.written.as_ref() == Some(&wanted) {
            return Ok(());
        }
        self.keep.own.write(&wanted)?;
        self.written = Some(wanted);
        Ok(())
    }

    /// Has rate limits pace by the uplinks whose queue does, and by no other interface.
    ///
    /// # Errors
    /// If the queues can't be listed, or the map can't be written.
    pub async fn queues(&mut self) -> Result<()> {
        let paced = self.keep.netlink.paced().await?;
        let changed = self.keep.plane.pacing.follow(&self.keep.interfaces.uplinks, &paced)?;
        changed.iter().for_each(|what| self.tell(what));
        Ok(())
    }

    /// Looks and repairs until `stop`.
    ///
    /// # Errors
    /// If the kernel's announcements can't be read.
    pub async fn run(mut self, stop: CancellationToken) -> Result<()> {
        let mut ticks = tokio::time::interval(INTERVAL);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        for n in (0..WHOLE_EVERY).cycle() {
            let changes = tokio::select! {
                () = stop.cancelled() => break,
                changes = self.keep.watch.changed() => changes.context("cannot read rtnetlink")?,
                _ = ticks.tick() => match n {
                    0 => Changes::ALL,
                    _ => Changes { network: false, firewall: !self.keep.watch.hears_firewall() },
                },
            };
            self.look(changes).await;
        }
        Ok(())
    }

    /// Looks at what changed, at what is never announced, and at what was in trouble the last time.
    async fn look(&mut self, changes: Changes) {
        let is_noted = self.noted.as_ref().is_some_and(|(n, _)| *n == self.keep.plane.generation());
        let is_due = |part, troubles: &BTreeMap<Part, String>| match part {
            Part::Network => changes.network || !is_noted || troubles.contains_key(&part),
            Part::Firewall => changes.firewall || troubles.contains_key(&part),
            // The first is cheap, and the others go by it.
            Part::Time | Part::Interfaces | Part::Programs | Part::Settings | Part::Tracking => true,
        };
        // Interfaces first: the rest is about those that are there.
        for part in [
            Part::Time,
            Part::Interfaces,
            Part::Programs,
            Part::Network,
            Part::Settings,
            Part::Firewall,
            Part::Tracking,
        ] {
            if !is_due(part, &self.troubles) {
                continue;
            }
            let (end, what) = match part {
                Part::Time => {
                    (self.keep.plane.enforce_time().await, "policy of a time that is over still counts")
                }
                Part::Interfaces => (self.interfaces().await, "an agents' interface is not governed"),
                Part::Programs => (self.programs(), "programs are not attached as they must be"),
                Part::Network => {
                    (self.network().await, "routes, addresses or queues are not as they must be")
                }
                Part::Settings => (self.settings(), "a setting is not as it must be"),
                Part::Firewall => (self.firewall(), "the nftables table is not as it must be"),
                Part::Tracking => (self.tracking(), "what is tracked is not known"),
            };
            let trouble = end.err().map(|error| format!("{what}: {error:#}"));
            self.settle(part, trouble);
        }
        self.failures();
    }

    /// Looks what has failed that interfaces may be open for.
    fn failures(&self) {
        let plane = &self.keep.plane;
        let modes = &plane.modes;
        // Listeners that L7 has of the process before are used until it takes the new ones.
        self.keep.offer.check(self.started.elapsed() > L7_TIME_MAX);
        modes.turn(Failure::FlowTable, plane.flows.live() >= u64::from(bound::FLOWS_MAX));
        // While a generation is being applied, it says itself what comes of it.
        if let Ok(tables) = plane.tables.try_lock()
            && let Ok(live) = tables.live()
        {
            let is_late = plane.late.lock().is_some();
            modes.turn(Failure::Revision, live.number == 0 && !is_late);
        }
    }

    /// Notes how a part is now; a trouble is told when it begins.
    fn settle(&mut self, part: Part, trouble: Option<String>) {
        let before = self.troubles.remove(&part);
        if let Some(trouble) = trouble {
            if before.as_ref() != Some(&trouble) {
                tracing::error!("{trouble}");
                self.keep.plane.spool.change(format!("datapath: {trouble}"));
            }
            self.troubles.insert(part, trouble);
        }
        *self.keep.plane.troubles.lock() = self.troubles.values().cloned().collect();
    }

    /// Takes up interfaces that appeared and lets go of those that vanished.
    async fn interfaces(&mut self) -> Result<()> {
        let now = self.keep.netlink.interfaces(&self.config).await?;
        let before = &self.keep.interfaces;
        if *before == now {
            return Ok(());
        }
        let (was, is): (BTreeSet<_>, BTreeSet<_>) = (before.present().collect(), now.present().collect());
        let gone: Vec<_> = was.difference(&is).map(|i| difference(i, "vanished", "")).collect();
        let new = ": its programs are attached and its sources bound";
        let new: Vec<_> = is.difference(&was).map(|i| difference(i, "appeared", new)).collect();
        // On an error it begins again with what is noted here.
        if before.agents == now.agents {
            *self.keep.plane.interfaces.lock() = now.clone();
        } else {
            self.keep.plane.follow(&now).await?;
            // L7 is to know the interface before a connection comes from it.
            self.keep.offer.follow(now.agents.values().copied().collect());
            let programs = &mut self.keep.programs;
            let attached = tokio::task::block_in_place(|| programs.follow(&now.agents))?;
            *self.keep.plane.attached.lock() = attached;
        }
        for absent in now.absent.iter().filter(|a| !before.absent.iter().any(|b| b.name == a.name)) {
            tracing::warn!("{}", absent.why);
        }
        self.keep.interfaces = now;
        gone.iter().chain(&new).for_each(|what| self.tell(what));
        Ok(())
    }

    fn programs(&mut self) -> Result<()> {
        let repaired = tokio::task::block_in_place(|| self.keep.programs.repair())?;
        repaired.iter().for_each(|what| self.tell(what));
        Ok(())
    }

    async fn network(&mut self) -> Result<()> {
        self.addresses().await?;
        self.queues().await?;
        if self.keep.routes.install().await? > 0 {
            self.tell("rules or routes of steered packets were missing, and were added again");
        }
        self.neighbours().await
    }

    /// Notes where the bound sources are.
    async fn neighbours(&mut self) -> Result<()> {
        let noted = (self.keep.plane.generation(), self.keep.interfaces.agents.clone());
        let changed = self.keep.netlink.bind(&self.keep.plane.bound()).await?;
        if self.noted.replace(noted) == self.noted && changed > 0 {
            self.tell("neighbours of bound sources were changed or missing, and were noted again");
        }
        Ok(())
    }

    fn settings(&mut self) -> Result<()> {
        for changed in network::configure(&self.keep.interfaces)? {
            self.tell(&format!("a setting was changed, and was set back: {changed}"));
        }
        Ok(())
    }

    fn firewall(&mut self) -> Result<()> {
        if !tokio::task::block_in_place(|| self.keep.firewall.is_intact()) {
            tokio::task::block_in_place(|| self.keep.firewall.install())?;
            self.tell("the nftables table was changed or missing, and was installed again");
        }
        Ok(())
    }

    /// Whether it is full is a failure; that nobody can say is a trouble.
    fn tracking(&self) -> Result<()> {
        let plane = &self.keep.plane;
        plane.modes.turn(Failure::Conntrack, plane.tracked.is_full());
        plane.tracked.trouble().map_or(Ok(()), |why| Err(anyhow::anyhow!(why)))
    }

    fn tell(&mut self, detail: &str) {
        if let Some(detail) = self.told.news(detail, Instant::now()) {
            tracing::warn!("{detail}");
            self.keep.plane.spool.change(format!("datapath: {detail}"));
        }
    }
}

/// What became of an interface, in words.
fn difference((role, name, index): &(Role, &str, u32), what: &str, more: &str) -> String {
    let more = if *role == Role::Agents { more } else { "" };
    format!("{} interface `{name}` (index {index}) {what}{more}", role.name())
}

// === impl Told ===

impl Told {
    /// What to tell of `detail`, if it is time to.
    fn news(&mut self, detail: &str, now: Instant) -> Option<String> {
        if let Some((at, more)) = self.0.get_mut(detail) {
            if now.duration_since(*at) < TOLD_INTERVAL {
                *more = more.saturating_add(1);
                return None;
            }
            let text = if *more == 0 { detail.to_owned() } else { format!("{detail} ({more} times before)") };
            (*at, *more) = (now, 0);
            return Some(text);
        }
        if self.0.len() >= TOLD_MAX {
            self.0.clear();
        }
        self.0.insert(detail.to_owned(), (now, 0));
        Some(detail.to_owned())
    }
}

/// The proxy's port at each address where it listens, and no service at the others.
fn services(addresses: &BTreeSet<IpAddr>, proxy: &Proxy) -> BTreeMap<Address, SelfAddress> {
    let port_be = |ip: &IpAddr, listen: &[SocketAddr]| {
        let here =
            listen.iter().find(|l| l.ip() == *ip || (l.ip().is_unspecified() && l.is_ipv4() == ip.is_ipv4()));
        here.map_or(0, |l| l.port().to_be())
    };
    let service = |ip: &IpAddr| SelfAddress {
        proxy_port_be: port_be(ip, &proxy.listen),
        proxy_tls_port_be: port_be(ip, proxy.tls.as_ref().map_or(&[], |tls| &tls.listen)),
        ..SelfAddress::default()
    };
    addresses.iter().map(|ip| (user::address(*ip), service(ip))).collect()
}

#[cfg(test)]
mod tests {
    use clawgress_api::config::ProxyTls;

    use super::*;

    #[test]
    fn a_fight_over_a_rule_is_told_now_and_then() {
        let (mut told, start) = (Told::default(), Instant::now());
        assert_eq!(told.news("x", start).as_deref(), Some("x"));
        assert_eq!(told.news("y", start).as_deref(), Some("y"));
        for s in 1..60 {
            assert_eq!(told.news("x", start + Duration::from_secs(s)), None);
        }
        let later = start + TOLD_INTERVAL;
        assert_eq!(told.news("x", later).as_deref(), Some("x (59 times before)"));
        assert_eq!(told.news("y", later).as_deref(), Some("y"));
        for n in 0..2 * TOLD_MAX {
            told.news(&n.to_string(), later);
            assert!(told.0.len() <= TOLD_MAX);
        }
    }

    #[test]
    fn the_proxy_is_where_it_listens_and_nowhere_else() {
        let ip = |text: &str| text.parse::<IpAddr>().expect("address");
        let all = BTreeSet::from([ip("10.0.0.1"), ip("192.0.2.1"), ip("2001:db8::1")]);
        let port = |listen: &str, at: &str| {
            let listen = vec![listen.parse().expect("socket address")];
            let tls = ProxyTls { listen: listen.clone(), certificate: "/c".into(), key: "/k".into() };
            let (clear, tls) = (
                Proxy { listen, tls: None, balancers: vec![] },
                Proxy { listen: vec![], tls: Some(tls), balancers: vec![] },
            );
            let at = user::address(ip(at));
            let (clear, tls) = (services(&all, &clear)[&at], services(&all, &tls)[&at]);
            assert_eq!((clear.proxy_tls_port_be, tls.proxy_port_be), (0, 0));
            assert_eq!(clear.proxy_port_be, tls.proxy_tls_port_be);
            u16::from_be(clear.proxy_port_be)
        };
        assert_eq!(port("10.0.0.1:3128", "10.0.0.1"), 3128);
        assert_eq!(port("10.0.0.1:3128", "192.0.2.1"), 0);
        assert_eq!(port("0.0.0.0:3128", "192.0.2.1"), 3128);
        assert_eq!(port("0.0.0.0:3128", "2001:db8::1"), 0);
        assert_eq!(port("[::]:3128", "2001:db8::1"), 3128);
    }
}
