//! The gateway under test: the real processes, each with the user and the privileges it has on a
//! node, driven through `clawgressctl` as an administrator does.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Context as _;
use nix::sys::signal::Signal;
use nix::unistd::User;

use super::exec::{Daemon, Output, finish};
use super::{Host, Lab, RUN_TIME_MAX, program};
use crate::admin::Admin;
use crate::plan::{DNS, GATEWAY, KNOWN, PROXY_PORT};

/// Exit code of `policy apply` where a plane does not run it yet.
pub const BEHIND: i32 = 7;
/// Time for all processes to be up and to agree on a generation, on a busy machine.
const READY_MAX: Duration = Duration::from_secs(60);
/// Where the BPF file system belongs.
const BPFFS: &str = "/sys/fs/bpf";
/// What the datapath role needs of root's powers.
const DATAPATH_CAPABILITIES: &str = "-all,+bpf,+net_admin,+perfmon";

/// A process of the gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// `clawgress-agent keys`.
    Keys,
    /// `clawgress-agent datapath`.
    Datapath,
    /// `clawgress-agent control`.
    Control,
    /// `clawgress-l7`.
    L7,
    /// Another `clawgress-l7`, where a test wants two.
    L7Beside,
    /// And where it wants more.
    L7Third,
    /// See [`Role::L7Third`].
    L7Fourth,
}

impl Role {
    /// Every one that a gateway has, in the order they are started.
    pub const ALL: [Role; 4] = [Role::Keys, Role::Datapath, Role::Control, Role::L7];

    /// As in log files.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Role::Keys => "keys",
            Role::Datapath => "datapath",
            Role::Control => "control",
            Role::L7 => "l7",
            Role::L7Beside => "l7-beside",
            Role::L7Third => "l7-third",
            Role::L7Fourth => "l7-fourth",
        }
    }

    /// The unit that it is shipped with.
    #[must_use]
    pub fn unit(self) -> PathBuf {
        let name = match self {
            Role::L7Beside | Role::L7Third | Role::L7Fourth => "clawgress-l7@.service".to_owned(),
            role => format!("clawgress-{}.service", role.name()),
        };
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../systemd").join(name)
    }

    /// A user every Debian has, so that each role has another one. The datapath stays root, with
    /// fewer capabilities.
    #[must_use]
    pub fn user(self) -> Option<&'static str> {
        match self {
            Role::Keys => Some("bin"),
            Role::Control => Some("daemon"),
            Role::L7 | Role::L7Beside | Role::L7Third | Role::L7Fourth => Some("nobody"),
            Role::Datapath => None,
        }
    }

    /// Whether it is a `clawgress-l7`.
    fn is_l7(self) -> bool {
        matches!(self, Role::L7 | Role::L7Beside | Role::L7Third | Role::L7Fourth)
    }
}

/// How the gateway is set up.
#[derive(Clone, Debug, Default)]
pub struct GatewayOptions {
    /// Seconds L7 serves its last snapshot while control is away; the product's default if absent.
    pub snapshot_stale_s_max: Option<u64>,
    /// Most connections at once; the product's default if absent.
    pub connections_max: Option<usize>,
    /// Whether each role is held to what its shipped unit says of the process: system calls, mask, sight of `/proc`.
    pub units: bool,
    /// Descriptors that each process may have; what the running one may have if absent.
    pub descriptors_max: Option<usize>,
    /// Where programs are taken from; beside the running one if absent.
    pub programs: Option<PathBuf>,
    /// More of the datapath's table.
    pub datapath: String,
    /// More of the table of the agents' interface.
    pub agents_interface: String,
    /// More of the proxy's table.
    pub proxy: String,
    /// DNS servers that are asked, and whom they are verified by, as L7's table has it; that of the outside, over UDP, if empty.
    pub resolvers: String,
    /// More tables of the configuration.
    pub more: String,
}

/// A lab with a running gateway. Dropping it stops the gateway, then takes the lab away.
#[derive(Debug)]
pub struct Gateway {
    daemons: BTreeMap<Role, Daemon>,
    options: GatewayOptions,
    /// The lab it stands in.
    pub lab: Lab,
}

impl Gateway {
    /// Starts every role in `lab` and waits until they serve.
    ///
    /// # Errors
    /// If one of them doesn't start, with the end of its log.
    pub fn start(lab: Lab, options: GatewayOptions) -> anyhow::Result<Gateway> {
        mount_bpffs()?;
        let mut gateway = Gateway { daemons: BTreeMap::new(), options, lab };
        gateway.prepare()?;
        for role in Role::ALL {
            gateway.launch(role)?;
        }
        gateway.ready()?;
        Ok(gateway)
    }

    /// The gateway of a kept lab. Its processes belong to nobody; it can be asked, not restarted.
    #[must_use]
    pub fn attach(lab: Lab) -> Gateway {
        Gateway { daemons: BTreeMap::new(), options: GatewayOptions::default(), lab }
    }

    /// Path of the configuration file.
    #[must_use]
    pub fn config(&self) -> PathBuf {
        self.lab.dir().join("clawgress.toml")
    }

    /// Directory of the pinned programs and maps.
    #[must_use]
    pub fn bpffs(&self) -> PathBuf {
        Path::new(BPFFS).join(format!("clawgress-{}", self.lab.name()))
    }

    /// URL of the explicit proxy with a credential.
    #[must_use]
    pub fn proxy(&self, agent: &str, key: &str) -> String {
        format!("http://{agent}:{key}@{}:{PROXY_PORT}", GATEWAY.v4)
    }

    /// The source binding of the known host, IPv4 and IPv6.
    #[must_use]
    pub fn known_sources() -> [String; 2] {
        [format!("agents0={},{}", KNOWN.v4, KNOWN.mac), format!("agents0={},{}", KNOWN.v6, KNOWN.mac)]
    }

    /// Starts a role that is not running.
    ///
    /// # Errors
    /// If it can't be started.
    pub fn launch(&mut self, role: Role) -> anyhow::Result<()> {
        let is_l7 = role.is_l7();
        let program = self.program(if is_l7 { "clawgress-l7" } else { "clawgress-agent" })?;
        let mut argv = match self.proxy_cgroup() {
            Some(cgroup) if is_l7 => enter(&cgroup)?,
            _ => Vec::new(),
        };
        if let Some(most) = self.options.descriptors_max {
            argv.extend(descriptors(most));
        }
        argv.extend(self.sandbox("mount", role)?);
        argv.extend(privileges(role, self.lab.is_kept()));
        argv.extend(self.sandbox("enter", role)?);
        argv.push(program.to_string_lossy().into_owned());
        if !is_l7 {
            argv.push(role.name().to_owned());
        }
        argv.extend(["--config".to_owned(), self.config().to_string_lossy().into_owned()]);
        let daemon = self.lab.spawn(Host::Gateway, role.name(), &argv)?;
        self.daemons.insert(role, daemon);
        Ok(())
    }

    /// The words before a program that is held to its unit, if it is.
    fn sandbox(&self, step: &str, role: Role) -> anyhow::Result<Vec<String>> {
        if !self.options.units {
            return Ok(Vec::new());
        }
        let words =
            [program("clawgress-sandbox")?.into_os_string(), step.into(), role.unit().into_os_string()];
        Ok(words.iter().map(|word| word.to_string_lossy().into_owned()).collect())
    }

    /// `kill -9`.
    ///
    /// # Errors
    /// If the role is not running.
    pub fn kill(&mut self, role: Role) -> anyhow::Result<()> {
        self.daemon(role)?.kill()?;
        self.daemons.remove(&role);
        Ok(())
    }

    /// Asks a role to end, and waits.
    ///
    /// # Errors
    /// If it is not running or does not end in time.
    pub fn stop(&mut self, role: Role, time: Duration) -> anyhow::Result<std::process::ExitStatus> {
        let status = self.daemon(role)?.stop(time)?;
        self.daemons.remove(&role);
        Ok(status)
    }

    /// Process id of a running role.
    ///
    /// # Errors
    /// If the role is not running.
    pub fn pid(&mut self, role: Role) -> anyhow::Result<u32> {
        self.daemon(role).map(|d| d.pid())
    }

    /// Sends a signal to a running role.
    ///
    /// # Errors
    /// If the role is not running.
    pub fn signal(&mut self, role: Role, signal: Signal) -> anyhow::Result<()> {
        self.daemon(role)?.signal(signal)
    }

    /// Removes programs, maps and rules, as an administrator would: `datapath --detach`.
    ///
    /// # Errors
    /// If it fails.
    pub fn detach(&self) -> anyhow::Result<()> {
        let agent = self.program("clawgress-agent")?;
        let config = self.config();
        let argv = [agent.as_os_str(), "datapath".as_ref(), "--config".as_ref(), config.as_os_str()];
        let argv: Vec<_> = argv.into_iter().chain(["--detach".as_ref()]).collect();
        self.lab.run(Host::Gateway, &argv)?.check().map(drop)
    }

    /// Waits until every role serves and both planes run the latest generation.
    ///
    /// # Errors
    /// If a process ends, or they don't agree in a minute.
    pub fn ready(&mut self) -> anyhow::Result<()> {
        let mut daemons = std::mem::take(&mut self.daemons);
        let result = self.lab.wait("the gateway", READY_MAX, || {
            for daemon in daemons.values_mut() {
                daemon.running()?;
            }
            self.admin()?.agreed()?;
            Ok(true)
        });
        self.daemons = daemons;
        result
    }

    /// The gateway as its administrator sees it.
    ///
    /// # Errors
    /// If `clawgressctl` has not been built.
    pub fn admin(&self) -> anyhow::Result<Admin> {
        let socket = self.lab.dir().join("run/admin.sock");
        Ok(Admin {
            program: self.program("clawgressctl")?,
            socket,
            config: self.lab.dir().join("clawgress.toml"),
        })
    }

    /// Runs `clawgressctl` in the gateway's network, where `run` must be.
    ///
    /// # Errors
    /// If it can't be started or hangs. Its own failure is in the output.
    pub fn ctl(&self, args: &[&str]) -> anyhow::Result<Output> {
        let command = self.admin()?.command(args);
        let mut argv = vec!["env".into()];
        for (name, value) in command.get_envs() {
            let assignment = [name, value.unwrap_or_default()].join(OsStr::new("="));
            argv.push(assignment);
        }
        argv.push(command.get_program().to_owned());
        argv.extend(command.get_args().map(ToOwned::to_owned));
        self.lab.run(Host::Gateway, &argv)
    }

    /// Applies policy text and named sets (TOML), and waits until both planes run it.
    ///
    /// # Errors
    /// If it is refused or does not go live.
    pub fn apply_policy(&mut self, text: &str, sets: &str) -> anyhow::Result<()> {
        let applied = self.admin()?.apply_text(self.lab.dir(), text, sets)?;
        // It is live also where not every plane runs it yet: tests stop some.
        if applied.code != Some(BEHIND) {
            applied.check()?;
        }
        self.ready()
    }

    fn daemon(&mut self, role: Role) -> anyhow::Result<&mut Daemon> {
        self.daemons.get_mut(&role).with_context(|| format!("`{}` is not running", role.name()))
    }

    fn program(&self, name: &str) -> anyhow::Result<PathBuf> {
        match &self.options.programs {
            Some(dir) => Ok(dir.join(name)),
            None => program(name),
        }
    }

    /// The cgroup L7 runs in, where there is cgroup v2.
    fn proxy_cgroup(&self) -> Option<PathBuf> {
        Some(cgroup_mount()?.join("clawgress-l7").join(self.lab.name()))
    }

    /// Directories as a node has them, and the configuration.
    fn prepare(&self) -> anyhow::Result<()> {
        let dir = self.lab.dir();
        let (state, run) = (dir.join("state"), dir.join("run"));
        own(&state, 0o711, None)?;
        own(&state.join("control"), 0o700, Role::Control.user())?;
        own(&state.join("audit"), 0o700, Role::Control.user())?;
        own(&state.join("keys"), 0o700, Role::Keys.user())?;
        // Sticky: a role may add its sockets and never replace another's.
        own(&run, 0o1777, None)?;
        let bpffs = self.bpffs();
        self.lab.remember_pin(bpffs.clone())?;
        if let Some(cgroups) = cgroup_mount() {
            // Where the datapath keeps the workloads of this node.
            let instance = bpffs.to_string_lossy().trim_start_matches('/').replace('/', "-");
            self.lab.remember_pin(cgroups.join("clawgress").join(instance))?;
        }
        own(&bpffs, 0o700, None)?;
        let cgroup = self.proxy_cgroup();
        if let Some(cgroup) = &cgroup {
            self.lab.remember_pin(cgroup.clone())?;
        }
        let resolvers = match &*self.options.resolvers {
            "" => format!("resolvers = [\"{}:53\"]", DNS.0),
            given => given.to_owned(),
        };
        let option =
            |name: &str, value: Option<String>| value.map(|v| format!("{name} = {v}\n")).unwrap_or_default();
        let text = format!(
            "[node]\nname = \"{}\"\nstate_dir = \"{}\"\nrun_dir = \"{}\"\n\n\
             [datapath]\nmode = \"kernel\"\nbpffs = \"{}\"\n{}\n\
             [[interface]]\nname = \"agents0\"\nrole = \"agents\"\n{}\n\
             [[interface]]\nname = \"wan0\"\nrole = \"uplink\"\n\n\
             [proxy]\nlisten = [\"{}:{PROXY_PORT}\", \"[{}]:{PROXY_PORT}\"]\n{}\n\
             [access]\nkeys_user = \"bin\"\ncontrol_user = \"daemon\"\nl7_user = \"nobody\"\n\n\
             [l7]\n{resolvers}\n{}{}{}{}",
            self.lab.name(),
            state.display(),
            run.display(),
            bpffs.display(),
            self.options.datapath,
            self.options.agents_interface,
            GATEWAY.v4,
            GATEWAY.v6,
            self.options.proxy,
            option("snapshot_stale_s_max", self.options.snapshot_stale_s_max.map(|n| n.to_string())),
            option("connections_max", self.options.connections_max.map(|n| n.to_string())),
            option("cgroup", cgroup.map(|c| format!("\"{}\"", c.display()))),
            self.options.more,
        );
        fs::write(self.config(), text).context("cannot write the gateway's configuration")
    }
}

/// The words before a program that runs in `cgroup`, which is made. They take root.
///
/// # Errors
/// If it can't be made.
pub fn enter(cgroup: &Path) -> anyhow::Result<Vec<String>> {
    fs::create_dir_all(cgroup).with_context(|| format!("cannot create `{}`", cgroup.display()))?;
    let script = "echo $$ >\"$0/cgroup.procs\" && exec \"$@\"";
    Ok(["sh", "-c", script].map(str::to_owned).into_iter().chain([cgroup.display().to_string()]).collect())
}

/// The words before a program that take away what its role must not have; unless `kept`, it also
/// ends with whoever starts it.
#[must_use]
pub fn privileges(role: Role, kept: bool) -> Vec<String> {
    let mut words = vec!["setpriv".to_owned(), "--no-new-privs".to_owned(), "--inh-caps=-all".to_owned()];
    match role.user() {
        Some(user) => {
            let group = User::from_name(user).ok().flatten().map_or(65_534, |u| u.gid.as_raw());
            words.extend(["--reuid".to_owned(), user.to_owned(), "--regid".to_owned(), group.to_string()]);
            words.extend(["--clear-groups".to_owned(), "--bounding-set=-all".to_owned()]);
        }
        None => words.push(format!("--bounding-set={DATAPATH_CAPABILITIES}")),
    }
    if !kept {
        // Changing the user clears what was asked for before.
        words.extend(["--pdeathsig".to_owned(), "KILL".to_owned()]);
    }
    words
}

/// The words before a program that may have so many descriptors. More than the running one may have at most takes root.
#[must_use]
pub fn descriptors(most: usize) -> [String; 2] {
    ["prlimit".to_owned(), format!("--nofile={most}:")]
}

fn own(dir: &Path, mode: u32, user: Option<&str>) -> anyhow::Result<()> {
    let make = || -> anyhow::Result<()> {
        fs::create_dir_all(dir)?;
        fs::set_permissions(dir, Permissions::from_mode(mode))?;
        if let Some(user) = user {
            let user = User::from_name(user)?.with_context(|| format!("there is no user `{user}`"))?;
            chown(dir, Some(user.uid.as_raw()), Some(user.gid.as_raw()))?;
        }
        Ok(())
    };
    make().with_context(|| format!("cannot prepare `{}`", dir.display()))
}

/// Where cgroup v2 is mounted.
#[must_use]
pub fn cgroup_mount() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/mounts").ok()?;
    let fields = mounts.lines().map(|l| l.split(' ').collect::<Vec<_>>());
    fields.filter(|f| f.get(2) == Some(&"cgroup2")).find_map(|f| f.get(1).map(PathBuf::from))
}

/// Mounts the BPF file system where it isn't: not every machine does at boot.
///
/// # Errors
/// If it can't be mounted.
pub fn mount_bpffs() -> anyhow::Result<()> {
    let mounts = fs::read_to_string("/proc/mounts")?;
    let fits = |l: &str| l.split(' ').nth(1) == Some(BPFFS) && l.split(' ').nth(2) == Some("bpf");
    if mounts.lines().any(fits) {
        return Ok(());
    }
    finish(Command::new("mount").args(["-t", "bpf", "bpf", BPFFS]), RUN_TIME_MAX)?.check().map(drop)
}
