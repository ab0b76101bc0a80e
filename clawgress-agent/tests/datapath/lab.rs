//! A gateway between two namespaces, with the agent daemon's datapath role in it as a process. The test
//! plays control and L7. Everything is torn down when the lab is dropped.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use clawgress_api::config::{Config, DatapathMode};
use clawgress_api::proto::datapath_client::DatapathClient;
use clawgress_api::proto::{Document, Empty, KernelGeneration as Envelope};
use clawgress_api::{
    DatapathStatus, KernelGeneration, LearnedAddresses, LiveFlows, LiveLimit, LiveQuery, RecentDrop, socket,
};
use clawgress_identity::Agent;
use clawgress_policy::kernel::KernelTables;
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tonic::Status;
use tonic::transport::Channel;

const BINARY: &str = env!("CARGO_BIN_EXE_clawgress-agent");
/// How long a process may take to start or stop: in an emulated machine beside other tests, the role's
/// programs alone are verified for most of a minute.
const PATIENCE: Duration = Duration::from_secs(240);

/// How long what is vouched for stays so, in the tests of other things: a role that is replaced in an emulated machine
/// takes long to start.
const LEASE: &str = "lease_s = 300\n";

pub const AGENT_MAC: &str = "02:00:00:00:00:01";
pub const PROXY_PORT: u16 = 3128;

static LABS: AtomicU32 = AtomicU32::new(0);

/// Where a socket is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    Agents,
    Gateway,
    Outside,
}

pub struct Lab {
    name: String,
    directory: tempfile::TempDir,
    process: Option<Child>,
    pub config: Config,
}

impl Lab {
    /// Namespaces, links and addresses; nothing runs yet.
    pub fn new() -> Lab {
        Lab::with("", "")
    }

    /// The same, with these lines in `[l7]`.
    pub fn with_l7(l7: &str) -> Lab {
        Lab::make(l7, Some(""), "", LEASE)
    }

    /// The same, with more in the configuration: of the agents' interface, and at the end.
    pub fn with(agents: &str, more: &str) -> Lab {
        Lab::make("", Some(agents), more, LEASE)
    }

    /// The same, with these lines in `[l7]`, of the agents' interface, and in `[datapath]`.
    pub fn leased(l7: &str, agents: &str, datapath: &str) -> Lab {
        Lab::make(l7, Some(agents), "", datapath)
    }

    /// The same, where no agents are behind any interface: it governs what runs on it.
    pub fn local() -> Lab {
        Lab::make("", None, "", LEASE)
    }

    fn make(l7: &str, agents: Option<&str>, more: &str, datapath: &str) -> Lab {
        let agents = agents.map(|more| format!("[[interface]]\nname = \"ga\"\nrole = \"agents\"\n{more}"));
        let agents = agents.unwrap_or_default();
        let name = format!("cd{}x{}", std::process::id(), LABS.fetch_add(1, Ordering::SeqCst));
        let directory = tempfile::tempdir().expect("directory");
        let text = format!(
            "[node]\nname = \"gw\"\nstate_dir = \"{0}/state\"\nrun_dir = \"{0}/run\"\n\
             [datapath]\nmode = \"kernel\"\nbpffs = \"{0}/bpf/claw\"\n{datapath}\
             [proxy]\nlisten = [\"10.77.0.1:{PROXY_PORT}\", \"[fd77::1]:{PROXY_PORT}\"]\n[l7]\n{l7}\n\
             {agents}\
             [[interface]]\nname = \"gu\"\nrole = \"uplink\"\n{more}",
            directory.path().display()
        );
        let file = directory.path().join("c.toml");
        fs::write(&file, &text).expect("config");
        let lab =
            Lab { name, directory, process: None, config: Config::parse(&text, &file).expect("config") };
        lab.build();
        lab
    }

    /// No namespaces: a role in the mode without kernel plane, listening at `proxy`.
    pub fn without_kernel(proxy: SocketAddr) -> Lab {
        let name = format!("cn{}x{}", std::process::id(), LABS.fetch_add(1, Ordering::SeqCst));
        let directory = tempfile::tempdir().expect("directory");
        let text = format!(
            "[node]\nname = \"gw\"\nstate_dir = \"{0}/state\"\nrun_dir = \"{0}/run\"\n\
             [datapath]\nmode = \"none\"\n[proxy]\nlisten = [\"{proxy}\"]\n[l7]\n",
            directory.path().display()
        );
        let file = directory.path().join("c.toml");
        fs::write(&file, &text).expect("config");
        Lab { name, directory, process: None, config: Config::parse(&text, &file).expect("config") }
    }

    fn build(&self) {
        let (a, g, o) = (self.ns(Place::Agents), self.ns(Place::Gateway), self.ns(Place::Outside));
        for ns in [&a, &g, &o] {
            ip(&format!("netns add {ns}"));
            ip(&format!("-n {ns} link set lo up"));
        }
        ip(&format!("link add a0 netns {a} type veth peer name ga netns {g}"));
        ip(&format!("link add o0 netns {o} type veth peer name gu netns {g}"));
        ip(&format!("-n {a} link set a0 address {AGENT_MAC}"));
        for (ns, interface, addresses) in [
            (&a, "a0", &["10.77.0.2/24", "10.77.0.66/24", "fd77::2/64", "fd77::66/64"][..]),
            (&g, "ga", &["10.77.0.1/24", "fd77::1/64"]),
            (&g, "gu", &["10.78.0.1/24", "fd78::1/64"]),
            (&o, "o0", &["10.78.0.2/24", "fd78::2/64"]),
            (&o, "lo", &["203.0.113.5/32", "198.51.100.5/32", "192.0.2.5/32"]),
            (&o, "lo", &["2001:db8:1::5/128", "2001:db8:2::5/128", "2001:db8:3::5/128"]),
        ] {
            for address in addresses {
                let nodad = if address.contains(':') { "nodad" } else { "" };
                ip(&format!("-n {ns} addr add {address} dev {interface} {nodad}"));
            }
            ip(&format!("-n {ns} link set {interface} up"));
        }
        for (ns, v4, v6) in [(&a, "10.77.0.1", "fd77::1"), (&g, "10.78.0.2", "fd78::2")] {
            ip(&format!("-n {ns} route add default via {v4}"));
            ip(&format!("-n {ns} -6 route add default via {v6}"));
        }
    }

    /// The namespace's name.
    pub fn ns(&self, place: Place) -> String {
        let suffix = match place {
            Place::Agents => "a",
            Place::Gateway => "g",
            Place::Outside => "o",
        };
        format!("{}{suffix}", self.name)
    }

    /// Runs `work` on a thread in that namespace.
    pub fn inside<T: Send>(&self, place: Place, work: impl FnOnce() -> T + Send) -> T {
        let ns = File::open(format!("/run/netns/{}", self.ns(place))).expect("namespace");
        std::thread::scope(|scope| {
            let worker = scope.spawn(|| {
                setns(&ns, CloneFlags::CLONE_NEWNET).expect("setns");
                work()
            });
            worker.join().expect("worker")
        })
    }

    /// The role as a command, in the gateway's namespace if there is one.
    pub fn role(&self, arguments: &[&str]) -> Command {
        let mut command = if self.config.datapath.mode == DatapathMode::Kernel {
            let mut command = Command::new("nsenter");
            command.arg(format!("--net=/run/netns/{}", self.ns(Place::Gateway))).arg(BINARY);
            command
        } else {
            Command::new(BINARY)
        };
        command.args(["datapath", "--config"]).arg(self.file()).args(arguments);
        command
    }

    /// Starts the role, and waits until it serves.
    pub async fn start(&mut self) {
        let log = fs::OpenOptions::new().create(true).append(true).open(self.log()).expect("log");
        let child = self.role(&[]).stdout(Stdio::null()).stderr(log).spawn().expect("nsenter");
        self.process = Some(child);
        let until = Instant::now() + PATIENCE;
        while self.client().await.status(Empty {}).await.is_err() {
            let ended = self.process.as_mut().expect("process").try_wait().expect("wait");
            assert!(ended.is_none() && Instant::now() < until, "no datapath role: {}", self.log_text());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Ends the role by `signal` and waits for it.
    pub fn stop(&mut self, signal: Signal) {
        let Some(mut child) = self.process.take() else { return };
        let pid = Pid::from_raw(i32::try_from(child.id()).expect("pid"));
        kill(pid, signal).expect("kill");
        let until = Instant::now() + PATIENCE;
        while child.try_wait().expect("wait").is_none() {
            assert!(Instant::now() < until, "the role does not stop: {}", self.log_text());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The process of the role.
    pub fn pid(&self) -> u32 {
        self.process.as_ref().expect("the role runs").id()
    }

    /// `datapath --detach`.
    pub fn detach(&self) {
        let output = self.role(&["--detach"]).output().expect("nsenter");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// `datapath --close`.
    pub fn close(&self) {
        let output = self.role(&["--close"]).output().expect("nsenter");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// The configuration file.
    pub fn file(&self) -> PathBuf {
        self.directory.path().join("c.toml")
    }

    fn log(&self) -> PathBuf {
        self.directory.path().join("log")
    }

    pub fn log_text(&self) -> String {
        fs::read_to_string(self.log()).unwrap_or_default()
    }

    /// A client of the role, as control is one.
    pub async fn client(&self) -> DatapathClient<Channel> {
        DatapathClient::new(socket::channel(&self.config.datapath_socket()).expect("channel"))
    }

    /// Applies a generation.
    pub async fn apply(&self, generation: u64, tables: KernelTables, agents: Vec<Agent>) -> DatapathStatus {
        self.apply_document(KernelGeneration {
            generation,
            tables: Some(tables),
            agents,
            shared: Vec::new(),
            revisions: BTreeMap::new(),
            turns_at: None,
        })
        .await
    }

    /// Applies a generation, which may have no policy.
    pub async fn apply_document(&self, document: KernelGeneration<KernelTables>) -> DatapathStatus {
        self.try_apply(document).await.expect("apply")
    }

    /// The same, if it is taken.
    pub async fn try_apply(
        &self,
        document: KernelGeneration<KernelTables>,
    ) -> Result<DatapathStatus, Status> {
        let generation = document.generation;
        let document = serde_json::to_vec(&document).expect("document");
        let envelope = Envelope { generation, document, name: Vec::new() };
        let answer = self.client().await.apply(envelope).await?;
        Ok(serde_json::from_slice(&answer.into_inner().document).expect("status"))
    }

    /// Live flows.
    pub async fn flows(&self, query: &LiveQuery) -> Result<LiveFlows, Status> {
        let json = serde_json::to_vec(query).expect("query");
        let answer = self.client().await.flows(Document { json }).await?;
        Ok(serde_json::from_slice(&answer.into_inner().json).expect("flows"))
    }

    /// Recent drops.
    pub async fn drops(&self, query: &LiveQuery) -> Result<Vec<RecentDrop>, Status> {
        let json = serde_json::to_vec(query).expect("query");
        let answer = self.client().await.drops(Document { json }).await?;
        let parse = |json: &Vec<u8>| serde_json::from_slice(json).expect("drop");
        Ok(answer.into_inner().json.iter().map(parse).collect())
    }

    /// Learns addresses.
    pub async fn learn(&self, addresses: &LearnedAddresses) -> Result<(), Status> {
        let json = serde_json::to_vec(addresses).expect("addresses");
        self.client().await.learn(Document { json }).await.map(drop)
    }

    pub async fn limits(&self) -> Vec<LiveLimit> {
        self.limits_asked(&LiveQuery::default()).await
    }

    /// Rate limits as this query asks for them.
    pub async fn limits_asked(&self, query: &LiveQuery) -> Vec<LiveLimit> {
        let query = serde_json::to_vec(query).expect("query");
        let answer = self.client().await.limits(Document { json: query }).await.expect("limits");
        let read = |json: &Vec<u8>| serde_json::from_slice(json).expect("a limit");
        answer.into_inner().json.iter().map(read).collect()
    }

    pub async fn status(&self) -> DatapathStatus {
        let answer = self.client().await.status(Empty {}).await.expect("status");
        serde_json::from_slice(&answer.into_inner().document).expect("status")
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if let Some(mut child) = self.process.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            eprintln!("--- log of the role ---\n{}", self.log_text());
        }
        if self.config.datapath.mode == DatapathMode::None {
            return;
        }
        for place in [Place::Agents, Place::Gateway, Place::Outside] {
            let _ = Command::new("ip").args(["netns", "del", &self.ns(place)]).status();
        }
        // Its pins go with the file system, and the programs with the pins.
        let _ = nix::mount::umount2(&self.directory.path().join("bpf"), nix::mount::MntFlags::MNT_DETACH);
        let cgroups = self.config.datapath.bpffs.to_string_lossy().trim_matches('/').replace('/', "-");
        for root in ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"] {
            let parent = PathBuf::from(format!("{root}/clawgress/{cgroups}"));
            // Workloads the test left open; nothing runs in them any more.
            for workload in fs::read_dir(&parent).into_iter().flatten().flatten() {
                let _ = fs::remove_dir(workload.path());
            }
            let _ = fs::remove_dir(parent);
        }
    }
}

/// `ip` with these arguments.
#[track_caller]
pub fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split_whitespace()).output().expect("ip");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "these tests need root: ip {arguments}: {error}");
}

/// Parses an address.
pub fn at(text: &str) -> IpAddr {
    text.parse().expect("address")
}
