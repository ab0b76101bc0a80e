//! The labs that are measured: one with a gateway, one that routes and has a bare Pingora.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use clawgress_e2e::admin::Admin;
use clawgress_e2e::lab::{BEHIND, Daemon, Forbidden, GatewayOptions, Host, Lab, Role, program};
use clawgress_e2e::plan::{GATEWAY, PROXY_PORT, WEB, addresses};
use clawgress_e2e::scenario::{ASSISTANT, POLICY, SETS, Site};

use crate::client::{self, Probe, Target, Way, Wire};
use crate::latency::{Latency, Measured};
use crate::rates::{self, Rate, Rates};
use crate::swaps::{self, Beside, Swaps};

/// Where the bare Pingora listens: HTTP, TCP, HTTP over TLS.
const BARE: [(Wire, u16); 3] = [(Wire::Clear, 8081), (Wire::Unread, 8444), (Wire::Read, 8445)];
/// Where the bare relays listen.
const RELAYS: [(Way, u16); 4] =
    [(Way::Blind, 8446), (Way::BlindProxy, 8449), (Way::Spliced, 8447), (Way::Copied, 8448)];
/// Ports of clients: each connection takes one for a minute, and once most of those to one server are taken, looking for another
/// one is what takes the time.
const PORTS: &str = "1024 65535";
/// Below it are names without servers, of which the gateway has no certificate yet.
const COLD: &str = "cold.allowed.test";
/// Permits and prohibitions that the gateway decides by.
pub const POLICIES: usize = 1_000;
/// Clock ticks a second in `/proc` (`USER_HZ`), which is the same on all architectures that run this.
const TICKS: f64 = 100.0;

/// Both labs, and what is in the middle of each.
pub struct Links {
    site: Site,
    plain: Lab,
    bare: Daemon,
    /// The certificate that the bare Pingora shows.
    shown: PathBuf,
    relays: Daemon,
    /// Of the authority of the blind one of them.
    blind: PathBuf,
    /// Of the gateway's authority.
    authority: PathBuf,
}

/// A way: its lab, who connects there, and to what.
type Leg<'a> = (Way, &'a Lab, Host, Target);

// === impl Links ===

impl Links {
    /// Starts everything.
    ///
    /// # Errors
    /// If a lab can't be made, or something in it does not serve.
    pub fn start() -> anyhow::Result<Links> {
        println!("bench: two labs, one with a gateway, one that routes and has a bare Pingora");
        let lab = Lab::builder().start()?;
        let more = format!("[intercept]\nroots = [\"{}\"]\n", lab.ca().display());
        // One host opens all connections to the proxy here; what holds a stranger to 100 a second is not what is measured.
        let datapath = "unbound_per_s = 1000000\nunbound_all_per_s = 1000000\n".to_owned();
        let mut site = Site::start(lab, GatewayOptions { datapath, more, ..GatewayOptions::default() })?;
        site.gateway.apply_policy(&policy(), &sets())?;
        let authority = site.gateway.lab.dir().join("trust/authority.pem");
        let trust = authority.parent().context("no directory")?.display().to_string();
        site.gateway.ctl(&["ca", "env", "--directory", &trust])?.check()?;
        let plain = Lab::builder().routed().start()?;
        let shown = plain.dir().join("shown.pem");
        let bare = bare_pingora(&plain, &shown)?;
        let blind = plain.dir().join("blind.pem");
        let relays = bare_relays(&plain, &blind)?;
        for lab in [&site.gateway.lab, &plain] {
            lab.within(Host::Known, || fs::write("/proc/sys/net/ipv4/ip_local_port_range", PORTS))?
                .context("cannot give clients more ports")?;
        }
        Ok(Links { site, plain, bare, shown, relays, blind, authority })
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
            self.interleaved(self.ways(probe.wire())?, rounds + 1, |round, (way, lab, host, target)| {
                let times = lab.within(host, move || client::run(probe, &target, samples))?;
                let times = times.with_context(|| format!("{}, {}", probe.name(), way.name()))?;
                if round > 0 { of_probe.add(way, times) } else { Ok(()) }
            })?;
            measured.push(of_probe);
        }
        self.check()?;
        Ok(Latency { rounds, samples, measured })
    }

    /// How much goes through, of each of `rates`.
    ///
    /// # Errors
    /// If any request fails.
    pub fn throughput(&mut self, rates: &[Rate]) -> anyhow::Result<Rates> {
        let mut all = Rates::default();
        let (bare, relays) = (vec![self.bare.pid()], vec![self.relays.pid()]);
        let gateway = &mut self.site.gateway;
        let own = Role::ALL.into_iter().map(|role| gateway.pid(role)).collect::<anyhow::Result<Vec<_>>>()?;
        for &rate in rates {
            println!("bench: {}, {} rounds", rate.name(), rates::ROUNDS);
            let mut ways = self.ways(rate.wire())?;
            for way in rate.besides() {
                ways.push(self.relayed(*way, rate.wire())?);
            }
            self.interleaved(ways, rates::ROUNDS + 1, |round, (way, lab, host, target)| {
                let middle = match way {
                    Way::Direct => &[][..],
                    Way::Bare => &bare,
                    Way::Blind | Way::BlindProxy | Way::Spliced | Way::Copied => &relays,
                    Way::Transparent | Way::Explicit => &own,
                };
                let before = processor_us(middle)?;
                let measured = lab.within(host, move || match rate {
                    Rate::Transfer => client::transfer(&target, rates::TRANSFER_BYTES),
                    Rate::Handshakes | Rate::ColdHandshakes => {
                        let makes = !matches!(way, Way::Direct | Way::Bare);
                        let own = rate == Rate::ColdHandshakes && makes;
                        let cold = own.then_some(&cold_name as &(dyn Fn() -> String + Sync));
                        client::handshakes_a_second(&target, rates::CONNECTIONS, rates::HANDSHAKES, cold)
                    }
                    Rate::Requests | Rate::ReadRequests => {
                        client::requests_a_second(&target, rate.wire(), rates::CONNECTIONS, rates::REQUESTS)
                    }
                })?;
                let value = measured.with_context(|| format!("{}, {}", rate.name(), way.name()))?;
                let spent = processor_us(middle)? - before;
                if round > 0 {
                    all.add(rate, way, value);
                }
                if round > 0 && rate != Rate::Transfer && way != Way::Direct {
                    all.cost(rate, way, spent / rate.operations() as f64);
                }
                Ok(())
            })?;
        }
        self.check()?;
        Ok(all)
    }

    /// How long requests take while revisions go live.
    ///
    /// # Errors
    /// If any request fails, or a revision is refused.
    pub fn swaps(&mut self) -> anyhow::Result<Swaps> {
        println!("bench: requests while revisions go live, {} rounds", swaps::ROUNDS);
        let admin = self.site.gateway.admin()?;
        let dir = self.site.gateway.lab.dir().to_owned();
        // Two that differ, so that each is a new one: the first is what runs already.
        let mut next = 0;
        let mut all = Swaps::default();
        for round in 0..=swaps::ROUNDS {
            for n in 0..Beside::ALL.len() {
                let Some(beside) = Beside::ALL.get((n + round) % Beside::ALL.len()).copied() else {
                    continue;
                };
                let is_over = AtomicBool::new(false);
                let (times, done) = std::thread::scope(|scope| -> anyhow::Result<_> {
                    let applying = scope.spawn(|| -> anyhow::Result<usize> {
                        let mut done = 0;
                        while beside != Beside::Nothing && !is_over.load(Ordering::Relaxed) {
                            let begun = Instant::now();
                            next += 1;
                            revise(&admin, &dir, beside, next)?;
                            done += 1;
                            std::thread::sleep(swaps::EVERY.saturating_sub(begun.elapsed()));
                        }
                        Ok(done)
                    });
                    let times = self.asked();
                    is_over.store(true, Ordering::Relaxed);
                    Ok((times?, client::joined(applying)?))
                })?;
                // The first round warms caches and pools, and is not counted.
                if round > 0 {
                    all.add(beside, times, if beside == Beside::Applies { done } else { 0 })?;
                }
            }
        }
        self.site.gateway.ready()?;
        self.check()?;
        Ok(all)
    }

    /// Requests through the gateway for one round.
    fn asked(&self) -> anyhow::Result<Vec<Duration>> {
        let ways = self.ways(Wire::Clear)?;
        let leg = ways.into_iter().find(|(way, ..)| *way == Way::Transparent);
        let (_, lab, host, target) = leg.context("no such way")?;
        lab.within(host, move || client::asked_for(&target, swaps::CONNECTIONS, swaps::ROUND))?
    }

    /// Goes all ways in each round, in another order each time, so that whatever the machine does meanwhile happens to all.
    fn interleaved<'a>(
        &'a self,
        ways: Vec<Leg<'a>>,
        rounds: usize,
        mut go: impl FnMut(usize, Leg<'a>) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        for round in 0..rounds {
            for n in 0..ways.len() {
                let Some(way) = ways.get((n + round) % ways.len()) else { continue };
                go(round, way.clone())?;
            }
        }
        Ok(())
    }

    /// By a bare relay.
    fn relayed(&self, way: Way, wire: Wire) -> anyhow::Result<Leg<'_>> {
        let port = RELAYS.into_iter().find(|relay| relay.0 == way).context("no such relay")?.1;
        let is_blind = matches!(way, Way::Blind | Way::BlindProxy);
        let ca = if is_blind { self.blind.clone() } else { self.plain.ca() };
        let relay = SocketAddr::new(GATEWAY.v4.into(), port);
        let target = Target::plain(relay, wire.host(), &ca);
        let credential = || client::basic(ASSISTANT, &self.site.assistant_key);
        let target = if way == Way::BlindProxy { target.through(relay, credential()) } else { target };
        Ok((way, &self.plain, Host::Known, target))
    }

    fn ways(&self, wire: Wire) -> anyhow::Result<Vec<Leg<'_>>> {
        let credential = client::basic(ASSISTANT, &self.site.assistant_key);
        let server = SocketAddr::new(upstream(wire)?, wire.port());
        let gateway = IpAddr::from(GATEWAY.v4);
        let bare = BARE.into_iter().find(|(of, _)| *of == wire).context("no such listener")?.1;
        let (lab, plain) = (&self.site.gateway.lab, &self.plain);
        let (plain_ca, lab_ca) = (plain.ca(), lab.ca());
        // Where TLS is read, whoever reads it shows a certificate of its own.
        let (bare_ca, own_ca) = match wire {
            Wire::Read => (&self.shown, &self.authority),
            Wire::Clear | Wire::Unread => (&plain_ca, &lab_ca),
        };
        let to = |address, ca: &Path| Target::plain(address, wire.host(), ca);
        let proxied = to(server, own_ca).through(SocketAddr::new(gateway, PROXY_PORT), credential);
        Ok(vec![
            (Way::Direct, plain, Host::Known, to(server, &plain_ca)),
            (Way::Bare, plain, Host::Known, to(SocketAddr::new(gateway, bare), bare_ca)),
            (Way::Transparent, lab, Host::Known, to(server, own_ca)),
            (Way::Explicit, lab, Host::Anon, proxied),
        ])
    }

    fn check(&self) -> anyhow::Result<()> {
        let forbidden = self.site.gateway.lab.forbidden()?;
        ensure!(forbidden == Forbidden::default(), "something reached FORBIDDEN: {forbidden:?}");
        Ok(())
    }
}

/// Checks or applies the `n`th revision.
fn revise(admin: &Admin, dir: &Path, beside: Beside, n: usize) -> anyhow::Result<()> {
    let text = format!("{}// Of {n}.\n", policy());
    if beside == Beside::Applies {
        let applied = admin.apply_text(dir, &text, &sets())?;
        ensure!(
            applied.code == Some(0) || applied.code == Some(BEHIND),
            "a revision is refused: {applied:?}"
        );
        return Ok(());
    }
    let (file, sets_file) = (dir.join("checked.cedar"), dir.join("checked.toml"));
    fs::write(&file, text)?;
    fs::write(&sets_file, sets())?;
    let (file, sets_file) = (file.to_string_lossy(), sets_file.to_string_lossy());
    admin.ctl(&["policy", "check", &file, "--sets", &sets_file])?.check()?;
    Ok(())
}

/// The lab's sets, and the one of names without servers.
fn sets() -> String {
    SETS.replacen("[hosts]", &format!("[hosts]\ncold = [\"*.{COLD}\"]"), 1)
}

/// A name that nobody has asked for: what is behind it is not asked before a request comes.
fn cold_name() -> String {
    static NAMES: AtomicUsize = AtomicUsize::new(0);
    format!("n{}.{COLD}", NAMES.fetch_add(1, Ordering::Relaxed))
}

/// The lab's policy with what is read, among many more permits and prohibitions that a request may have to be held against.
fn policy() -> String {
    let read = format!(
        "@id(\"read-start\") permit (principal in Team::\"research\", action == Action::\"tls\", resource == Host::\"{WEB}\");\n\
         @id(\"read-pages\") permit (principal in Team::\"research\", action == Action::\"http\", resource == Host::\"{WEB}\")\n\
         when {{ context.path like \"/bytes/*\" }};\n\
         @id(\"cold\") permit (principal in Team::\"research\", action in [Action::\"tls\", Action::\"http\"], resource in HostSet::\"cold\");\n"
    );
    let mut text = format!("{POLICY}{read}");
    let written = text.matches("@id(").count();
    for n in written..POLICIES {
        let (kind, host) = if n % 8 == 0 { ("forbid", "*.allowed.test") } else { ("permit", "") };
        let at = if host.is_empty() { format!("Host::\"h{n}.many.test\"") } else { String::new() };
        let resource = if at.is_empty() { "resource".to_owned() } else { format!("resource == {at}") };
        text.push_str(&format!(
            "@id(\"more-{n}\") {kind} (principal in Team::\"research\", action == Action::\"http\", {resource})\nwhen {{ context.path like \"/more/{n}/*\" }};\n"
        ));
    }
    text
}

/// Processor time of all of `pids` since they began, µs.
fn processor_us(pids: &[u32]) -> anyhow::Result<f64> {
    let mut ticks = 0.0;
    for pid in pids {
        let stat =
            fs::read_to_string(format!("/proc/{pid}/stat")).with_context(|| format!("no process {pid}"))?;
        // After the name, which may hold anything, `utime` and `stime` are the 12th and 13th field (proc_pid_stat(5)).
        let fields = stat.rsplit(')').next().unwrap_or_default().split_ascii_whitespace();
        ticks += fields.skip(11).take(2).filter_map(|field| field.parse::<f64>().ok()).sum::<f64>();
    }
    Ok(ticks / TICKS * 1e6)
}

/// Where the server is that a wire leads to.
fn upstream(wire: Wire) -> anyhow::Result<IpAddr> {
    addresses(wire.host()).first().copied().context("no address")
}

/// Starts it, with a certificate of its own in `shown`.
fn bare_pingora(lab: &Lab, shown: &Path) -> anyhow::Result<Daemon> {
    let rcgen::CertifiedKey { cert, signing_key } = rcgen::generate_simple_self_signed([WEB.to_owned()])?;
    let key = shown.with_extension("key");
    fs::write(shown, cert.pem()).context("cannot write a certificate")?;
    fs::write(&key, signing_key.serialize_pem()).context("cannot write a key")?;
    let mut words = vec![example("bare_pingora")?];
    for (wire, port) in BARE {
        words.extend([format!("{}:{port}", GATEWAY.v4), format!("{}:{}", upstream(wire)?, wire.port())]);
    }
    words.push(WEB.to_owned());
    words.extend([shown, &key, &lab.ca()].map(|path| path.display().to_string()));
    serving(lab, "bare-pingora", &words, &BARE.map(|(_, port)| port))
}

/// Starts them; the certificate of the blind one's authority goes to `blind`.
fn bare_relays(lab: &Lab, blind: &Path) -> anyhow::Result<Daemon> {
    let at = |(_, port)| format!("{}:{port}", GATEWAY.v4);
    let [reads, proxied, splices, copies] = RELAYS.map(at);
    let server = |wire: Wire| upstream(wire).map(|ip| format!("{ip}:{}", wire.port()));
    let path = |path: &Path| path.display().to_string();
    let words = [
        example("bare_relays")?,
        reads,
        proxied,
        server(Wire::Read)?,
        path(blind),
        path(&lab.ca()),
        splices,
        copies,
        server(Wire::Unread)?,
    ];
    serving(lab, "bare-relays", &words, &RELAYS.map(|(_, port)| port))
}

/// The path of a program that is compared with.
fn example(name: &str) -> anyhow::Result<String> {
    let own = program("clawgress-agent")?;
    let example = own.parent().context("no directory")?.join("examples").join(name);
    ensure!(example.is_file(), "`{name}` has not been built; run `cargo xtask bench`");
    Ok(example.display().to_string())
}

/// Starts it in the gateway's place, and waits until it takes connections at these ports.
fn serving(lab: &Lab, name: &str, words: &[String], ports: &[u16]) -> anyhow::Result<Daemon> {
    let mut daemon = lab.spawn(Host::Gateway, name, words)?;
    lab.wait(name, Duration::from_secs(10), || {
        daemon.running()?;
        let is_open = |port: &u16| {
            let to = SocketAddr::new(GATEWAY.v4.into(), *port);
            std::net::TcpStream::connect_timeout(&to, Duration::from_secs(1)).is_ok()
        };
        let ports = ports.to_vec();
        lab.within(Host::Known, move || ports.iter().all(is_open))
    })?;
    Ok(daemon)
}
