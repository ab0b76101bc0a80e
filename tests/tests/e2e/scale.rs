//! As many tunnels and kept connections as are promised, all open at once on one node: by the route and by the proxy, through
//! several L7 processes, since each process has so many descriptors and no more. In the checks there are fewer; by hand
//! `CLAWGRESS_SCALE=10000 cargo test -p clawgress-e2e --test e2e scale:: -- --nocapture` makes as many as are promised, of the programs
//! in `CLAWGRESS_PROGRAMS`, where that is set.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use clawgress_e2e::lab::{Daemon, GatewayOptions, Host, Lab, Role, descriptors, program};
use clawgress_e2e::plan::{API, GATEWAY, PROXY_PORT, WEB, addresses};
use clawgress_e2e::scenario::{CRAWLER, POLICY, SETS, Site};
use clawgress_e2e::world::CERTIFICATES;

use crate::support::{admin, finish};

/// Tunnels, and as many kept connections, half of them in clear and half that are read, where the environment names no number.
const CONNECTIONS: usize = 400;
/// Who serves them. The proxy's listener is shared, and whoever is first accepts: each process has room for all of its.
const WORKERS: [Role; 4] = [Role::L7, Role::L7Beside, Role::L7Third, Role::L7Fourth];
/// Descriptors of a process besides connections.
const DESCRIPTORS_MORE: usize = 1_000;
/// Most that a process gets, whatever it asks for, where no more is allowed.
const DESCRIPTORS_MAX: usize = 20_000;
/// Lines that one of them says that nobody has read yet.
const LINES_MAX: usize = 4;
/// Where the server of tunnels listens, beside the web servers.
const PORT: u16 = 8443;
/// For all of one kind to be opened, or to carry something.
const MANY_TIME: Duration = Duration::from_secs(300);
/// Most of a tunnel, and of a kept connection, in user space, KiB, where programs are optimised.
const TUNNEL_KIB_MAX: usize = 16;
const KEPT_KIB_MAX: usize = 36;
/// What a process takes more once it has served something, KiB.
const ONCE_KIB: usize = 8 * 1024;

const MORE: &str = r#"
@id("more-ports")
permit (principal in Team::"research", action == Action::"connect", resource in NetworkSet::"web")
when { context.protocol == "tcp" && context.port == 8443 };
@id("read-web") permit (principal in Team::"research", action == Action::"tls", resource == Host::"web.allowed.test");
"#;

/// How many of each kind.
fn connections() -> usize {
    match std::env::var("CLAWGRESS_SCALE") {
        Ok(number) => number.parse().unwrap(),
        Err(_) => CONNECTIONS,
    }
}

/// A site with all of its L7 processes, and what serves tunnels.
struct Crowded {
    site: Site,
    /// Of the gateway, by which TLS is read.
    authority: PathBuf,
    many: usize,
    _server: Daemon,
}

/// A process that holds connections.
struct Crowd {
    what: &'static str,
    child: Child,
    says: ChildStdin,
    said: Receiver<String>,
}

/// What one L7 process has: KiB of its own, and descriptors.
#[derive(Clone, Copy, Default)]
struct Takes {
    memory_kib: usize,
    descriptors: usize,
}

// === impl Crowded ===

impl Crowded {
    fn start(many: usize) -> Crowded {
        let lab = Lab::builder().start().unwrap();
        let roots = lab.ca().display().to_string();
        let options = GatewayOptions {
            // One source has a quarter.
            connections_max: Some(16 * many),
            descriptors_max: Some((3 * many + DESCRIPTORS_MORE).min(DESCRIPTORS_MAX)),
            programs: std::env::var_os("CLAWGRESS_PROGRAMS").map(PathBuf::from),
            more: format!("agent_connections_max = {}\n[intercept]\nroots = [\"{roots}\"]\n", 4 * many),
            ..GatewayOptions::default()
        };
        let mut site = Site::start(lab, options).unwrap();
        for role in WORKERS.into_iter().skip(1) {
            site.gateway.launch(role).unwrap();
        }
        site.gateway.apply_policy(&format!("{POLICY}{MORE}"), SETS).unwrap();
        let all = || Ok(admin(&site).status()?.l7.iter().filter(|l7| !l7.draining).count() == WORKERS.len());
        site.gateway.lab.wait("all workers", Duration::from_secs(60), all).unwrap();
        let authority = site.gateway.lab.dir().join("authority.pem");
        let exported = site.gateway.ctl(&["ca", "export"]).unwrap().check().unwrap();
        fs::write(&authority, exported.stdout).unwrap();
        let server = serve(&site, many);
        Crowded { site, authority, many, _server: server }
    }

    /// Half of `many` connections of a kind, and more words for them.
    fn crowd(&self, what: &'static str, to: (SocketAddr, &str), more: &[&str]) -> Crowd {
        let (count, address) = ((self.many / 2).to_string(), to.0.to_string());
        let program = program("clawgress-crowd").unwrap().display().to_string();
        let words = descriptors(self.many / 2 + DESCRIPTORS_MORE);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let argv = [&words[..], &[&program, "hold", &count, &address, to.1], more].concat();
        Crowd::start(what, self.site.gateway.lab.command(Host::Known, &argv))
    }

    /// What each worker takes.
    fn takes(&mut self) -> Vec<Takes> {
        let takes = |role| {
            let pid = self.site.gateway.pid(role).unwrap();
            let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
            let line = text.lines().find_map(|line| line.strip_prefix("Anonymous:")).unwrap();
            let memory_kib = line.trim().trim_end_matches(" kB").parse().unwrap();
            Takes { memory_kib, descriptors: fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count() }
        };
        WORKERS.into_iter().map(takes).collect()
    }
}

/// Starts the server of tunnels, outside.
fn serve(site: &Site, many: usize) -> Daemon {
    let lab = &site.gateway.lab;
    let program = program("clawgress-crowd").unwrap().display().to_string();
    let file = |kind: &str| lab.dir().join(CERTIFICATES).join(format!("{API}.{kind}")).display().to_string();
    let address = SocketAddr::new(addresses(API)[0], PORT);
    let words = [program, "serve".into(), address.to_string(), file("pem"), file("key")];
    let argv: Vec<String> = descriptors(many + DESCRIPTORS_MORE).into_iter().chain(words).collect();
    let server = lab.spawn(Host::World, "crowd-server", &argv).unwrap();
    let listens = || lab.within(Host::World, move || std::net::TcpStream::connect(address).is_ok());
    lab.wait("the server of tunnels", Duration::from_secs(20), listens).unwrap();
    server
}

// === impl Crowd ===

impl Crowd {
    fn start(what: &'static str, mut command: Command) -> Crowd {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (says, output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let (sender, said) = mpsc::sync_channel(LINES_MAX);
        std::thread::spawn(move || {
            BufReader::new(output).lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
        });
        Crowd { what, child, says, said }
    }

    /// Waits until it says this.
    #[track_caller]
    fn says(&self, what: &str) {
        match self.said.recv_timeout(MANY_TIME) {
            Ok(said) => assert_eq!(said, what, "{}", self.what),
            Err(error) => panic!("{}: not `{what}`: {error} (it may have said why above)", self.what),
        }
    }

    fn tell(&mut self) {
        self.says.write_all(b"carry\n").unwrap();
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn tunnels_and_kept_connections_are_open_at_once_on_one_node() {
    let many = connections();
    let mut crowded = Crowded::start(many);
    let before = crowded.takes();
    let ca = crowded.site.gateway.lab.ca().display().to_string();
    let authority = crowded.authority.display().to_string();
    let proxy = SocketAddr::new(IpAddr::from(GATEWAY.v4), PROXY_PORT).to_string();
    let key = format!("{CRAWLER}:{}", crowded.site.crawler_key);
    let by_proxy = ["--proxy", &proxy, "--credential", &key];
    let at = |name, port| SocketAddr::new(addresses(name)[0], port);
    let (tunnel, page) = (["--roots", &ca], ["--roots", &authority, "--path", "/public/page"]);

    // Each holds half of `many`. What is kept comes last: it may be idle for a minute.
    let begun = Instant::now();
    let mut crowds = vec![
        crowded.crowd("tunnels by the route", (at(API, PORT), API), &tunnel),
        crowded.crowd("tunnels by the proxy", (at(API, PORT), API), &[&tunnel[..], &by_proxy].concat()),
    ];
    let opened = format!("open {}", many / 2);
    crowds.iter().for_each(|crowd| crowd.says(&opened));
    let between = crowded.takes();
    let tunnels_took = begun.elapsed();
    let begun = Instant::now();
    let kept = [
        crowded.crowd("kept in clear", (at(API, 80), API), &["--path", "/kept"]),
        crowded.crowd("kept and read", (at(WEB, 443), WEB), &[&page[..], &by_proxy].concat()),
    ];
    kept.iter().for_each(|crowd| crowd.says(&opened));
    crowds.extend(kept);
    let after = crowded.takes();
    let kept_took = begun.elapsed();

    // All of them at once, and each carries something again.
    crowds.iter_mut().for_each(Crowd::tell);
    let carried = format!("carried {}", many / 2);
    crowds.iter().for_each(|crowd| crowd.says(&carried));
    println!(
        "{many} tunnels ({tunnels_took:.1?}) and {many} kept connections ({kept_took:.1?}), all of which carried"
    );
    for (n, ((before, between), after)) in before.iter().zip(&between).zip(&after).enumerate() {
        println!(
            "l7 {n}: {} descriptors and {} KiB with tunnels, {} and {} with all ({} before)",
            between.descriptors, between.memory_kib, after.descriptors, after.memory_kib, before.memory_kib
        );
    }
    let sum = |takes: &[Takes]| takes.iter().map(|takes| takes.memory_kib).sum::<usize>();
    let of_tunnels = sum(&between) - sum(&before);
    let of_kept = sum(&after).saturating_sub(sum(&between));
    let each = |kib: usize| kib as f64 / many as f64;
    println!("{:.1} KiB a tunnel, {:.1} KiB a kept connection", each(of_tunnels), each(of_kept));
    let once = WORKERS.len() * ONCE_KIB;
    if !cfg!(debug_assertions) || std::env::var_os("CLAWGRESS_PROGRAMS").is_some() {
        assert!(of_tunnels <= once + many * TUNNEL_KIB_MAX, "{of_tunnels} KiB of tunnels");
        assert!(of_kept <= once + many * KEPT_KIB_MAX, "{of_kept} KiB of kept connections");
    }
    drop(crowds);
    finish(crowded.site);
}
