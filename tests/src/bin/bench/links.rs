//! The labs that are measured: one with a gateway, one that routes and has a bare Pingora.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use clawgress_e2e::lab::{Daemon, Forbidden, GatewayOptions, Host, Lab, program};
use clawgress_e2e::plan::{API, GATEWAY, PROXY_PORT, addresses};
use clawgress_e2e::scenario::{ASSISTANT, Site};

use crate::client::{self, Probe, Target, Way};
use crate::latency::{Latency, Measured};
use crate::rates::{self, Rate, Rates};

/// Where the bare Pingora listens: HTTP, then TCP.
const BARE: (u16, u16) = (8081, 8444);

/// Both labs, and what is in the middle of each.
pub struct Links {
    site: Site,
    plain: Lab,
    upstream: IpAddr,
    _bare: Daemon,
}

/// A way: its lab, who connects there, and to what.
type Path<'a> = (Way, &'a Lab, Host, Target);

// === impl Links ===

impl Links {
    /// Starts everything.
    ///
    /// # Errors
    /// If a lab can't be made, or something in it does not serve.
    pub fn start() -> anyhow::Result<Links> {
        println!("bench: two labs, one with a gateway, one that routes and has a bare Pingora");
        let site = Site::start(Lab::builder().start()?, GatewayOptions::default())?;
        let plain = Lab::builder().routed().start()?;
        let upstream = *addresses(API).first().context("no address")?;
        let bare = bare_pingora(&plain, upstream)?;
        Ok(Links { site, plain, upstream, _bare: bare })
    }

    /// How long connections and requests take.
    ///
    /// # Errors
    /// If any one fails.
    pub fn latency(&self, rounds: usize, samples: usize) -> anyhow::Result<Latency> {
        let mut measured = Vec::new();
        for probe in Probe::ALL {
            println!("bench: {}, {rounds} rounds", probe.name());
            let mut of_probe = Measured::new(probe);
            // The first round warms caches and pools, and is not counted.
            self.interleaved(probe == Probe::Handshake, rounds + 1, |round, (way, lab, host, target)| {
                let ca = lab.ca();
                let times = lab.within(host, move || client::run(probe, &target, &ca, samples))?;
                let times = times.with_context(|| format!("{}, {}", probe.name(), way.name()))?;
                if round > 0 { of_probe.add(way, times) } else { Ok(()) }
            })?;
            measured.push(of_probe);
        }
        self.check()?;
        Ok(Latency { rounds, samples, measured })
    }

    /// How much goes through.
    ///
    /// # Errors
    /// If any request fails.
    pub fn throughput(&self) -> anyhow::Result<Rates> {
        let mut all = Rates::default();
        for rate in Rate::ALL {
            println!("bench: {}, {} rounds", rate.name(), rates::ROUNDS);
            let is_tls = rate == Rate::Transfer;
            self.interleaved(is_tls, rates::ROUNDS + 1, |round, (way, lab, host, target)| {
                let ca = lab.ca();
                let measured = lab.within(host, move || match rate {
                    Rate::Requests => client::requests_a_second(&target, rates::CONNECTIONS, rates::REQUESTS),
                    Rate::Transfer => client::transfer(&target, &ca, rates::TRANSFER_BYTES),
                })?;
                let value = measured.with_context(|| format!("{}, {}", rate.name(), way.name()))?;
                if round > 0 {
                    all.add(rate, way, value);
                }
                Ok(())
            })?;
        }
        self.check()?;
        Ok(all)
    }

    /// Goes all ways in each round, in another order each time, so that whatever the machine does meanwhile happens to all.
    fn interleaved<'a>(
        &'a self,
        is_tls: bool,
        rounds: usize,
        mut go: impl FnMut(usize, Path<'a>) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let credential = client::basic(ASSISTANT, &self.site.assistant_key);
        let (port, bare) = if is_tls { (443, BARE.1) } else { (80, BARE.0) };
        let (server, gateway) = (SocketAddr::new(self.upstream, port), IpAddr::from(GATEWAY.v4));
        let (lab, plain) = (&self.site.gateway.lab, &self.plain);
        let proxy = Target::through(SocketAddr::new(gateway, PROXY_PORT), credential);
        let ways: [Path<'a>; 4] = [
            (Way::Direct, plain, Host::Known, Target::plain(server)),
            (Way::Bare, plain, Host::Known, Target::plain(SocketAddr::new(gateway, bare))),
            (Way::Transparent, lab, Host::Known, Target::plain(server)),
            (Way::Explicit, lab, Host::Anon, proxy),
        ];
        for round in 0..rounds {
            for n in 0..ways.len() {
                let Some(way) = ways.get((n + round) % ways.len()) else { continue };
                go(round, way.clone())?;
            }
        }
        Ok(())
    }

    fn check(&self) -> anyhow::Result<()> {
        let forbidden = self.site.gateway.lab.forbidden()?;
        ensure!(forbidden == Forbidden::default(), "something reached FORBIDDEN: {forbidden:?}");
        Ok(())
    }
}

fn bare_pingora(lab: &Lab, upstream: IpAddr) -> anyhow::Result<Daemon> {
    let own = program("clawgress-agent")?;
    let example = own.parent().context("no directory")?.join("examples/bare_pingora");
    ensure!(example.is_file(), "`bare_pingora` has not been built; run `cargo xtask bench`");
    let gateway = GATEWAY.v4;
    let words = [
        example.to_string_lossy().into_owned(),
        format!("{gateway}:{}", BARE.0),
        format!("{upstream}:80"),
        format!("{gateway}:{}", BARE.1),
        format!("{upstream}:443"),
    ];
    let mut daemon = lab.spawn(Host::Gateway, "bare-pingora", &words)?;
    lab.wait("the bare Pingora", Duration::from_secs(10), || {
        daemon.running()?;
        let connect = move || {
            let to = SocketAddr::new(gateway.into(), BARE.1);
            std::net::TcpStream::connect_timeout(&to, Duration::from_secs(1)).is_ok()
        };
        lab.within(Host::Known, connect)
    })?;
    Ok(daemon)
}
