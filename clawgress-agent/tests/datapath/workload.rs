//! Local workloads: real sockets of a process in a governed cgroup.

use std::fs;
use std::io::Write as _;
use std::net::{IpAddr, TcpListener, UdpSocket};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use aya::maps::{Array, Map, MapData};
use clawgress_agent::datapath::object;
use clawgress_api::proto::{OpenWorkloadRequest, Workload};
use clawgress_identity::Agent;
use clawgress_policy::kernel::{KernelAction, KernelTables, VerdictCell, compile, expected};
use clawgress_policy::{PolicySet, Transport};

use crate::kernel::{PROXY_TLS_PORT, agent};
use crate::lab::{Lab, PROXY_PORT, Place, at};
use crate::network::Server;
use crate::puppet::Puppet;
use crate::random::{self, Random};

pub const PORT: u16 = 7000;

pub fn tables() -> KernelTables {
    let cell = |destination_class, transport, action| VerdictCell {
        agent_class: 1,
        destination_class,
        transport,
        port_class: 1,
        action,
        policies: 0,
        limits: 0,
        never_direct: false,
    };
    let net = |text: &str| text.parse().expect("prefix");
    KernelTables {
        agents: std::collections::BTreeMap::from([(1, 1)]),
        destinations: vec![
            (net("10.77.0.0/24"), 1),
            (net("fd77::/64"), 1),
            (net("198.51.100.0/24"), 1),
            (net("2001:db8:1::/48"), 1),
            // Whoever writes such a policy gets no more by it.
            (net("127.0.0.0/8"), 1),
            (net("0.0.0.0/8"), 1),
            (net("::/127"), 1),
            (net("203.0.113.0/24"), 2),
            (net("2001:db8:2::/48"), 2),
        ],
        ports: vec![(0, 0), (PORT, 1), (PORT + 1, 0)],
        verdicts: vec![
            cell(1, Transport::Tcp, KernelAction::Direct),
            cell(1, Transport::Udp, KernelAction::Direct),
            cell(2, Transport::Tcp, KernelAction::Steer),
        ],
        policies: vec![vec![]],
        limiters: Vec::new(),
        limits: Vec::new(),
    }
}

/// Runs a Python program in the workload's cgroup and the gateway's namespace; gives what it printed.
fn run(lab: &Lab, cgroup: &str, program: &str) -> String {
    // The shell enters the cgroup first, so that every socket is made in there.
    let script = format!("echo $$ > {cgroup}/cgroup.procs && exec python3 -c \"$PROGRAM\"");
    let child = Command::new("nsenter")
        .arg(format!("--net=/run/netns/{}", lab.ns(Place::Gateway)))
        .args(["sh", "-c", &script])
        .env("PROGRAM", program)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("nsenter");
    let output = child.wait_with_output().expect("wait");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{error}");
    String::from_utf8(output.stdout).expect("text").trim().to_owned()
}

/// What a `connect` gives: `ok`, or the error's name.
fn connect(lab: &Lab, cgroup: &str, address: IpAddr, port: u16) -> String {
    let family = if address.is_ipv4() { "AF_INET" } else { "AF_INET6" };
    let program = format!(
        "import socket,errno\ns=socket.socket(socket.{family});s.settimeout(5)\n\
         try:\n s.connect(('{address}',{port}));print('ok')\nexcept OSError as e:\n print(errno.errorcode.get(e.errno,str(e)))"
    );
    run(lab, cgroup, &program)
}

/// What making a socket gives.
fn open(lab: &Lab, cgroup: &str, arguments: &str) -> String {
    let program = format!(
        "import socket,errno\ntry:\n socket.socket({arguments});print('ok')\n\
         except OSError as e:\n print(errno.errorcode.get(e.errno,str(e)))"
    );
    run(lab, cgroup, &program)
}

/// What an unconnected datagram gives.
fn send(lab: &Lab, cgroup: &str, address: IpAddr) -> String {
    let family = if address.is_ipv4() { "AF_INET" } else { "AF_INET6" };
    let program = format!(
        "import socket,errno\ns=socket.socket(socket.{family},socket.SOCK_DGRAM)\n\
         try:\n s.sendto(b'x',('{address}',{PORT}));print('ok')\nexcept OSError as e:\n print(errno.errorcode.get(e.errno,str(e)))"
    );
    run(lab, cgroup, &program)
}

pub async fn open_workload(lab: &Lab, agent: u32, name: &str) -> Workload {
    let request = OpenWorkloadRequest { agent, name: name.to_owned() };
    lab.client().await.open_workload(request).await.expect("open").into_inner()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_workload_reaches_the_proxy_and_what_is_direct() {
    // Its files are l7's to read.
    let tls = format!(
        "[proxy.tls]\nlisten = [\"10.77.0.1:{PROXY_TLS_PORT}\", \"[fd77::1]:{PROXY_TLS_PORT}\"]\n\
         certificate = \"/nowhere.pem\"\nkey = \"/nowhere.key\"\n"
    );
    let mut lab = Lab::with("", &tls);
    lab.start().await;
    lab.apply(1, tables(), vec![agent(1, &[])]).await;
    let workload = open_workload(&lab, 1, "job-1").await;
    let cgroup = workload.path.as_str();
    let listeners: Vec<_> = ["198.51.100.5", "2001:db8:1::5", "203.0.113.5", "192.0.2.5"]
        .iter()
        .map(|a| lab.inside(Place::Outside, || TcpListener::bind((at(a), PORT)).expect("bind")))
        .collect();
    let datagrams = lab.inside(Place::Outside, || UdpSocket::bind((at("198.51.100.5"), PORT)).expect("bind"));

    for proxy in ["10.77.0.1", "fd77::1"] {
        assert_eq!(connect(&lab, cgroup, at(proxy), PROXY_PORT), "ok", "the proxy");
        assert_eq!(connect(&lab, cgroup, at(proxy), PROXY_TLS_PORT), "ok", "the proxy over TLS");
        assert_eq!(connect(&lab, cgroup, at(proxy), 22), "EPERM", "the gateway, another port");
        assert_eq!(connect(&lab, cgroup, at(proxy), PORT), "EPERM", "the gateway, where policy says direct");
    }
    assert_eq!(connect(&lab, cgroup, at("198.51.100.5"), PORT), "ok", "direct");
    assert_eq!(connect(&lab, cgroup, at("2001:db8:1::5"), PORT), "ok", "direct, ipv6");
    assert_eq!(connect(&lab, cgroup, at("203.0.113.5"), PORT), "timed out", "only to l7, which is not there");
    assert_eq!(connect(&lab, cgroup, at("192.0.2.5"), PORT), "EPERM", "denied");
    assert_eq!(connect(&lab, cgroup, at("127.0.0.1"), 80), "EPERM", "loopback is no way round");
    assert_eq!(connect(&lab, cgroup, at("::ffff:192.0.2.5"), PORT), "EPERM", "a mapped address");
    assert_eq!(send(&lab, cgroup, at("198.51.100.5")), "ok");
    datagrams.set_read_timeout(Some(std::time::Duration::from_secs(5))).expect("time-out");
    datagrams.recv(&mut [0; 8]).expect("the datagram");
    assert_eq!(send(&lab, cgroup, at("192.0.2.5")), "EPERM");
    assert_eq!(send(&lab, cgroup, at("2001:db8:3::5")), "EPERM");
    // Anybody may ping here, but for the hook.
    lab.inside(Place::Gateway, || {
        fs::write("/proc/sys/net/ipv4/ping_group_range", "0 0").expect("ping_group_range");
    });
    for arguments in [
        "socket.AF_INET,socket.SOCK_RAW,1",
        "socket.AF_INET,socket.SOCK_DGRAM,1",
        "socket.AF_INET6,socket.SOCK_RAW,58",
        "socket.AF_INET,socket.SOCK_STREAM,262",
    ] {
        assert_eq!(open(&lab, cgroup, arguments), "EPERM", "{arguments}");
    }
    assert_eq!(open(&lab, cgroup, "socket.AF_UNIX"), "ok");
    drop(listeners);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_nearest_registered_cgroup_counts_and_none_is_anonymous() {
    let mut lab = Lab::new();
    lab.start().await;
    lab.apply(1, tables(), vec![agent(1, &[]), agent(2, &[])]).await;
    let _listener =
        lab.inside(Place::Outside, || TcpListener::bind((at("198.51.100.5"), PORT)).expect("bind"));
    let direct = at("198.51.100.5");

    let workload = open_workload(&lab, 1, "job").await;
    let below = PathBuf::from(&workload.path).join("below");
    fs::create_dir(&below).expect("nested cgroup");
    let below = below.to_str().expect("path").to_owned();
    assert_eq!(connect(&lab, &below, direct, PORT), "ok", "a nested cgroup is its ancestor's");

    // Agent 2 has no class: it may do nothing.
    let other = open_workload(&lab, 2, "other").await;
    assert_eq!(connect(&lab, &other.path, direct, PORT), "EPERM");

    // A new generation takes the workloads along; one that denies, denies them.
    lab.apply(2, tables(), vec![agent(1, &[])]).await;
    assert_eq!(connect(&lab, &workload.path, direct, PORT), "ok", "after another generation");
    let nothing = KernelTables { verdicts: Vec::new(), ..tables() };
    lab.apply(3, nothing, vec![agent(1, &[])]).await;
    assert_eq!(connect(&lab, &workload.path, direct, PORT), "EPERM");
    lab.apply(4, tables(), vec![agent(1, &[])]).await;

    // The hooks outlive the process, and the next one replaces them.
    lab.stop(nix::sys::signal::Signal::SIGKILL);
    assert_eq!(connect(&lab, &workload.path, direct, PORT), "ok", "without the process");
    assert_eq!(connect(&lab, &workload.path, at("192.0.2.5"), PORT), "EPERM", "without the process");
    lab.start().await;
    assert_eq!(connect(&lab, &workload.path, direct, PORT), "ok", "after the restart");

    // A cgroup nobody registered, beside the workloads.
    let parent = PathBuf::from(&workload.path).parent().expect("parent").to_owned();
    let stray = parent.join("stray");
    fs::create_dir(&stray).expect("cgroup");
    assert_eq!(connect(&lab, stray.to_str().expect("path"), direct, PORT), "EPERM");
    fs::remove_dir(&stray).expect("remove");

    // What still runs in there when it is closed is killed.
    fs::remove_dir(&below).expect("remove");
    let mut sleeper = Command::new("sleep").arg("600").spawn().expect("sleep");
    let mut procs = fs::OpenOptions::new()
        .write(true)
        .open(PathBuf::from(&workload.path).join("cgroup.procs"))
        .expect("cgroup.procs");
    procs.write_all(sleeper.id().to_string().as_bytes()).expect("move");
    let mut client = lab.client().await;
    client.close_workload(workload.clone()).await.expect("close");
    assert!(!sleeper.wait().expect("wait").success());
    assert!(!PathBuf::from(&workload.path).exists());
    client.close_workload(other).await.expect("close");
    let bad = Workload { cgroup: 1, path: "/sys/fs/cgroup".to_owned() };
    client.close_workload(bad).await.expect_err("not a workload");
    for name in ["", "../x", "a/b"] {
        let request = OpenWorkloadRequest { agent: 1, name: name.to_owned() };
        client.open_workload(request).await.expect_err("not a name");
    }
}

/// The map of the gateway's own addresses lists them one by one; there are more that lead to it.
#[tokio::test(flavor = "multi_thread")]
async fn a_workload_does_not_reach_the_gateway_by_its_loopback() {
    let mut lab = Lab::new();
    lab.start().await;
    lab.apply(1, tables(), vec![agent(1, &[])]).await;
    let workload = open_workload(&lab, 1, "job").await;
    // Of both families.
    let _streams = lab.inside(Place::Gateway, || TcpListener::bind((at("::"), PORT)).expect("bind"));
    let _datagrams = lab.inside(Place::Gateway, || UdpSocket::bind((at("::"), PORT)).expect("bind"));
    let addresses =
        ["127.0.0.1", "127.8.9.10", "0.0.0.0", "::1", "::", "::ffff:127.8.9.10", "::ffff:0.0.0.0"];
    let before = lab.status().await.counters.get("gateway_address").copied().unwrap_or(0);
    for address in addresses {
        let reached =
            lab.inside(Place::Gateway, || std::net::TcpStream::connect((at(address), PORT)).is_ok());
        assert!(reached, "{address} leads to this machine, for who may");
        assert_eq!(connect(&lab, &workload.path, at(address), PORT), "EPERM", "{address}");
        assert_eq!(send(&lab, &workload.path, at(address)), "EPERM", "{address}, a datagram");
    }
    let after = lab.status().await.counters["gateway_address"];
    assert_eq!(after - before, 2 * addresses.len() as u64, "each for that reason");
}

/// What the hooks say to connections and datagrams of real sockets is what the evaluator says of them: random policies, and
/// random destinations.
#[tokio::test(flavor = "multi_thread")]
async fn the_hooks_say_what_policy_says() {
    const POLICIES: u64 = 12;
    const QUESTIONS: u64 = 50;
    let seed = random::seed();
    let mut r = Random(seed);
    let mut lab = Lab::new();
    lab.start().await;
    let asked = Agent { team: Some(random::team(1).parse().expect("team")), ..agent(1, &[]) };
    lab.apply(1, KernelTables::default(), vec![asked.clone()]).await;
    let workload = open_workload(&lab, 1, "job").await;
    let mut puppet = Puppet::new(&lab, &workload.path);
    let mut said = [0, 0];
    for generation in 2..2 + POLICIES {
        let bundle = r.policy();
        let set = PolicySet::parse(&bundle).unwrap_or_else(|e| panic!("seed {seed}: {:#?}", e.problems));
        let tables = compile(&set, std::slice::from_ref(&asked)).expect("tables");
        lab.apply(generation, tables, vec![asked.clone()]).await;
        for _ in 0..QUESTIONS {
            let v4 = r.below(2) == 0;
            // Questions to DNS go elsewhere.
            let (ip, port) = (r.address(v4), 1 + r.u16() % 52);
            let transport = r.pick(&[Transport::Tcp, Transport::Udp]);
            let want = matches!(expected(&set, &asked, ip, transport, port).0, KernelAction::Deny(_));
            let (kind, denied) = match (transport, want) {
                (Transport::Tcp, true) => ("STREAM", "True"),
                (Transport::Tcp, false) => ("STREAM", "False"),
                (_, true) => ("DGRAM", "(True, True)"),
                (_, false) => ("DGRAM", "(False, False)"),
            };
            let says = puppet.tell(&format!("tried(socket.SOCK_{kind}, '{ip}', {port})"));
            assert_eq!(
                says, denied,
                "seed {seed}, {ip} {transport:?} {port}:\n{}\n{:?}",
                bundle.text, bundle.sets
            );
            said[usize::from(want)] += 1;
        }
    }
    println!("{} permitted, {} denied", said[0], said[1]);
    assert!(said.iter().all(|n| *n >= 20), "seed {seed}: {said:?}");
}

/// With nothing but what every small system has, so that it runs in the machines of [`crate::older`] too.
#[tokio::test(flavor = "multi_thread")]
async fn a_bare_command_is_governed_by_its_hooks() {
    let mut lab = Lab::new();
    lab.start().await;
    lab.apply(1, tables(), vec![agent(1, &[])]).await;
    let workload = open_workload(&lab, 1, "job").await;
    let servers = ["198.51.100.5", "192.0.2.5", "2001:db8:1::5", "2001:db8:3::5"]
        .map(|address| Server::start(&lab, at(address)));
    let reach = |address: &str| {
        let script = format!(
            "echo $$ > {}/cgroup.procs && exec busybox nc -w 60 {address} {PORT} < /dev/null",
            workload.path
        );
        let output = Command::new("nsenter")
            .arg(format!("--net=/run/netns/{}", lab.ns(Place::Gateway)))
            .args(["busybox", "sh", "-c", &script])
            .output()
            .expect("nsenter");
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    for (address, is_reached) in
        [("198.51.100.5", true), ("192.0.2.5", false), ("2001:db8:1::5", true), ("2001:db8:3::5", false)]
    {
        let (reached, error) = reach(address);
        assert_eq!(reached, is_reached, "{address}: {error}");
        assert!(reached || error.contains("Operation not permitted"), "{address}: {error}");
    }
    assert_eq!(servers.map(|server| server.accepted()), [1, 0, 1, 0]);
}

/// Something that runs in the cgroup until it is killed.
fn sleeper(cgroup: &str) -> std::process::Child {
    let child = Command::new("sleep").arg("600").spawn().expect("sleep");
    fs::write(PathBuf::from(cgroup).join("cgroup.procs"), child.id().to_string()).expect("move");
    child
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_runs_on_when_the_hooks_go() {
    let mut lab = Lab::new();
    lab.start().await;
    lab.apply(1, tables(), vec![agent(1, &[])]).await;
    let links = lab.config.datapath.bpffs.join("links");

    // Taken away under a live role: ended, hooks put back, and later ones are governed.
    let workload = open_workload(&lab, 1, "one").await;
    let mut one = sleeper(&workload.path);
    fs::remove_file(links.join("claw_connect4")).expect("remove");
    let request = OpenWorkloadRequest { agent: 1, name: "two".to_owned() };
    // The role may have put the hook back before it was asked; it opens nothing as long as it is away.
    match lab.client().await.open_workload(request.clone()).await {
        Err(error) => assert!(error.message().contains("claw_connect4"), "{}", error.message()),
        Ok(workload) => {
            let workload = workload.into_inner();
            assert_eq!(connect(&lab, &workload.path, at("192.0.2.5"), PORT), "EPERM", "governed");
            lab.client().await.close_workload(workload).await.expect("close");
        }
    }
    assert!(!ended(&mut one).success(), "killed");
    let until = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while !links.join("claw_connect4").exists() {
        assert!(std::time::Instant::now() < until, "the hook does not come back");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    let workload = open_workload(&lab, 1, "three").await;
    assert_eq!(connect(&lab, &workload.path, at("192.0.2.5"), PORT), "EPERM", "governed again");

    // The parent removed and made again is another cgroup, which the hooks don't hold.
    let parent = PathBuf::from(&workload.path).parent().expect("parent").to_owned();
    lab.client().await.close_workload(workload).await.expect("close");
    fs::remove_dir(&parent).expect("remove");
    let until = std::time::Instant::now() + std::time::Duration::from_secs(10);
    let workload = loop {
        match lab.client().await.open_workload(request.clone()).await {
            Ok(workload) => break workload.into_inner(),
            Err(error) => assert!(std::time::Instant::now() < until, "{}", error.message()),
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    };
    assert_eq!(connect(&lab, &workload.path, at("192.0.2.5"), PORT), "EPERM", "governed");

    // Maps of another version are replaced with their programs.
    let workload = open_workload(&lab, 1, "four").await;
    let nested = PathBuf::from(&workload.path).join("nested");
    fs::create_dir(&nested).expect("nested cgroup");
    let mut four = sleeper(nested.to_str().expect("path"));
    lab.stop(nix::sys::signal::Signal::SIGKILL);
    assert!(four.try_wait().expect("wait").is_none(), "it runs on while the hooks stay");
    let pin = object::pin(&lab.config.datapath.bpffs, clawgress_ebpf_common::map::META);
    let meta = Map::Array(MapData::from_pin(pin).expect("pin"));
    Array::<_, u32>::try_from(meta).expect("array").set(0, u32::MAX, 0).expect("another version");
    lab.start().await;
    assert!(!ended(&mut four).success(), "killed");
    lab.apply(1, tables(), vec![agent(1, &[])]).await;

    // And when everything is taken away for good.
    let workload = open_workload(&lab, 1, "five").await;
    let mut five = sleeper(&workload.path);
    lab.stop(nix::sys::signal::Signal::SIGTERM);
    assert!(five.try_wait().expect("wait").is_none(), "it runs on while the hooks stay");
    lab.detach();
    assert!(!ended(&mut five).success(), "killed");
    assert!(!PathBuf::from(&workload.path).exists(), "and nothing can enter its cgroup");
}

/// Waits for the end of what somebody else kills.
fn ended(child: &mut std::process::Child) -> std::process::ExitStatus {
    let until = std::time::Instant::now() + std::time::Duration::from_secs(10);
    loop {
        if let Some(status) = child.try_wait().expect("wait") {
            return status;
        }
        if std::time::Instant::now() > until {
            child.kill().expect("kill");
            child.wait().expect("wait");
            panic!("it still ran");
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}
