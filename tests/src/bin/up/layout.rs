//! Files: the configuration is written anew at each start, what a user edits is written once.

use std::fs::{self, Permissions};
use std::io::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail, ensure};
use clawgress_e2e::admin::Admin;
use clawgress_e2e::lab::{RUN_TIME_MAX, Role, cgroup_mount, finish, program};
use nix::unistd::User;

/// The first agent, and its team.
pub const AGENT: &str = "me";
/// The team the starter policy permits something.
pub const TEAM: &str = "default";

/// Port of the proxy with `--transparent`.
const PROXY_PORT: u16 = 3128;
/// Where root keeps everything: a place that roles without privileges can reach, unlike a home.
const ROOT_DIR: &str = "/var/lib/clawgress-up";
/// Names the directory of the geo data that set-up fetched.
const GEO_DIR: &str = "CLAWGRESS_GEO_DIR";
/// Where root's sockets are, so that `clawgressctl` finds them by itself.
const ROOT_RUN: &str = "/run/clawgress";
/// The processes' programs.
const PROGRAMS: &[&str] = &["clawgress-agent", "clawgress-l7", "clawgressctl"];

const POLICY: &str = r#"// Who may reach what. Default is deny. Hosts and networks are named in sets.toml.

// Web ports anywhere public; names are judged below, on every connection.
@id("web-ports")
permit (principal in Team::"default", action == Action::"connect", resource)
when { context.protocol == "tcp" && [80, 443].contains(context.port) };

// The allow list: clear HTTP is read.
@id("allowed-hosts")
permit (principal in Team::"default", action in [Action::"tls", Action::"http"], resource in HostSet::"allowed");

// Its TLS stays unread.
@id("allowed-unread")
permit (principal in Team::"default", action == Action::"tunnel", resource in HostSet::"allowed")
when { context.protocol == "tls" };

// Agents behind a --transparent interface ask DNS: whatever public server they ask, the gateway answers in its place,
// and tells them the addresses of allowed hosts alone.
@id("dns-servers")
permit (principal in Team::"default", action == Action::"connect", resource)
when { context.port == 53 && ["udp", "tcp"].contains(context.protocol) };

@id("allowed-names")
permit (principal in Team::"default", action == Action::"resolve", resource in HostSet::"allowed")
when { ["A", "AAAA", "HTTPS"].contains(context.query_type) };

// A server with a private address must be named: put it into the set `dns` of sets.toml, then enable this.
// @id("own-dns-servers")
// permit (principal in Team::"default", action == Action::"connect", resource in NetworkSet::"dns")
// when { context.port == 53 && ["udp", "tcp"].contains(context.protocol) };
"#;

const SETS: &str = r#"[hosts]
# Names, or "*.suffix" for every name below it.
allowed = ["api.openai.com", "api.anthropic.com", "example.com"]

[networks]
# Your own DNS servers with private addresses: agents may ask them, and the gateway answers in their place.
# dns = ["10.0.0.53/32"]
"#;

/// Where everything is.
#[derive(Debug)]
pub struct Layout {
    dir: PathBuf,
    run: PathBuf,
    programs: PathBuf,
    /// Each role is a process and a user of its own.
    pub apart: bool,
    /// What is governed beside the proxy.
    pub governs: Governs,
}

/// What is governed beside the proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Governs {
    /// Nothing: there is no kernel plane.
    Nothing,
    /// Commands of this machine (`clawgressctl run`).
    Local,
    /// Those, and the agents behind an interface.
    Behind(String),
}

impl Layout {
    /// Makes directories and files.
    ///
    /// # Errors
    /// With the remedy.
    pub fn prepare(dir: Option<PathBuf>, governs: Governs, listen: SocketAddr) -> anyhow::Result<Layout> {
        let root = nix::unistd::geteuid().is_root();
        ensure!(
            root || governs == Governs::Nothing,
            "`--transparent` and `--local` load kernel programs: run it as root"
        );
        let dir = match dir {
            Some(dir) => std::path::absolute(dir)?,
            None if root => PathBuf::from(ROOT_DIR),
            None => data_home()?.join("clawgress"),
        };
        let run = if root { PathBuf::from(ROOT_RUN) } else { dir.join("run") };
        let own = program("clawgress-agent")?.parent().map(Path::to_owned).context("no directory")?;
        let programs = if root { dir.join("bin") } else { own.clone() };
        let layout = Layout { dir, run, programs, apart: root, governs };
        layout.directories()?;
        if root {
            // A build below somebody's home is out of reach for users without privileges.
            for name in PROGRAMS {
                let staged = layout.programs.join(format!("{name}.new"));
                fs::copy(own.join(name), &staged).with_context(|| format!("cannot copy `{name}`"))?;
                fs::rename(staged, layout.programs.join(name))?;
            }
        }
        let geo = layout.geo()?;
        fs::write(layout.config(), layout.configuration(listen)? + &geo)
            .context("cannot write the configuration")?;
        write_once(&layout.policy(), POLICY)?;
        write_once(&layout.sets(), SETS)?;
        Ok(layout)
    }

    /// The configuration file.
    pub fn config(&self) -> PathBuf {
        self.dir.join("clawgress.toml")
    }

    /// The policy, for the user to edit.
    pub fn policy(&self) -> PathBuf {
        self.dir.join("policy.cedar")
    }

    /// The named sets, for the user to edit.
    pub fn sets(&self) -> PathBuf {
        self.dir.join("sets.toml")
    }

    /// What the processes say.
    pub fn logs(&self) -> PathBuf {
        self.dir.join("logs")
    }

    /// A program.
    pub fn program(&self, name: &str) -> PathBuf {
        self.programs.join(name)
    }

    /// The gateway as its administrator sees it.
    pub fn admin(&self) -> Admin {
        let socket = self.run.join("admin.sock");
        Admin { program: self.program("clawgressctl"), socket, config: self.config() }
    }

    /// The first agent's key, if this made it. The gateway itself keeps but a hash.
    ///
    /// # Errors
    /// If the file is there and can't be read.
    pub fn kept_key(&self) -> anyhow::Result<Option<String>> {
        match fs::read_to_string(self.key()) {
            Ok(key) => Ok(Some(key.trim().to_owned())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("cannot read `{}`", self.key().display())),
        }
    }

    /// Keeps the first agent's key where only this user can read it.
    ///
    /// # Errors
    /// If it can't be written.
    pub fn keep_key(&self, key: &str) -> anyhow::Result<()> {
        let mut file = fs::OpenOptions::new().create_new(true).write(true).mode(0o600).open(self.key())?;
        writeln!(file, "{key}").context("cannot keep the agent's key")
    }

    /// The cgroup L7 runs in, where the kernel plane judges its sockets.
    #[must_use]
    pub fn proxy_cgroup(&self) -> Option<PathBuf> {
        let mount = cgroup_mount().filter(|_| self.governs != Governs::Nothing)?;
        self.apart.then(|| mount.join("clawgress-l7").join("up"))
    }

    fn key(&self) -> PathBuf {
        self.dir.join(format!("{AGENT}.key"))
    }

    fn directories(&self) -> anyhow::Result<()> {
        let state = self.dir.join("state");
        directory(&self.dir, if self.apart { 0o755 } else { 0o700 }, None)?;
        directory(&self.logs(), 0o700, None)?;
        directory(&state, 0o711, None)?;
        let user = |role: Role| if self.apart { role.user() } else { None };
        directory(&state.join("control"), 0o700, user(Role::Control))?;
        directory(&state.join("audit"), 0o700, user(Role::Control))?;
        directory(&state.join("keys"), 0o700, user(Role::Keys))?;
        // Sticky: a role may add its sockets and never replace another's.
        directory(&self.run, if self.apart { 0o1777 } else { 0o700 }, None)?;
        if self.apart {
            directory(&self.programs, 0o755, None)?;
        }
        Ok(())
    }

    /// The configuration's table of geo data, if set-up has fetched any.
    fn geo(&self) -> anyhow::Result<String> {
        let mut table = String::new();
        let Some(fetched) = std::env::var_os(GEO_DIR).map(PathBuf::from) else { return Ok(table) };
        for kind in ["country", "asn"] {
            let name = format!("{kind}.mmdb");
            let mut file = fetched.join(&name);
            if !file.is_file() {
                continue;
            }
            if self.apart {
                // As with programs: a cache below somebody's home is out of reach.
                let staged = self.dir.join(format!("{name}.new"));
                fs::copy(&file, &staged).with_context(|| format!("cannot copy `{name}`"))?;
                fs::set_permissions(&staged, Permissions::from_mode(0o644))?;
                file = self.dir.join(&name);
                fs::rename(staged, &file)?;
            }
            table.push_str(&format!("{kind} = {:?}\n", file.display().to_string()));
        }
        Ok(if table.is_empty() { table } else { format!("\n[geo]\n{table}") })
    }

    fn configuration(&self, listen: SocketAddr) -> anyhow::Result<String> {
        let table = |name: &str, role| format!("[[interface]]\nname = \"{name}\"\nrole = \"{role}\"\n\n");
        let (mode, interfaces, listen) = match &self.governs {
            Governs::Nothing => ("none", String::new(), vec![listen]),
            Governs::Local => ("kernel", table(&uplink()?, "uplink"), vec![listen]),
            Governs::Behind(agents) => {
                let uplink = uplink()?;
                if uplink == *agents {
                    bail!("`{agents}` is also the way out; agents need an interface of their own");
                }
                let listen =
                    addresses(agents)?.into_iter().map(|ip| SocketAddr::new(ip, PROXY_PORT)).collect();
                ("kernel", table(agents, "agents") + &table(&uplink, "uplink"), listen)
            }
        };
        let access = if self.apart {
            let user = |role: Role| role.user().unwrap_or("root");
            format!(
                "[access]\nkeys_user = \"{}\"\ncontrol_user = \"{}\"\nl7_user = \"{}\"\n\n",
                user(Role::Keys),
                user(Role::Control),
                user(Role::L7)
            )
        } else {
            String::new()
        };
        let cgroup =
            self.proxy_cgroup().map(|c| format!("cgroup = \"{}\"\n", c.display())).unwrap_or_default();
        Ok(format!(
            "# Written by `cargo xtask up` at each start.\n[node]\nname = \"up\"\nstate_dir = \"{}\"\nrun_dir = \"{}\"\n\n\
             [datapath]\nmode = \"{mode}\"\n\n{interfaces}[proxy]\nlisten = {:?}\n\n{access}[l7]\n{cgroup}",
            self.dir.join("state").display(),
            self.run.display(),
            listen.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ))
    }
}

fn data_home() -> anyhow::Result<PathBuf> {
    let set = |name| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let home = || set("HOME").map(|h| h.join(".local/share"));
    set("XDG_DATA_HOME").or_else(home).context("neither `XDG_DATA_HOME` nor `HOME` is set; use --dir")
}

fn directory(dir: &Path, mode: u32, user: Option<&str>) -> anyhow::Result<()> {
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

fn write_once(path: &Path, text: &str) -> anyhow::Result<()> {
    match fs::OpenOptions::new().create_new(true).write(true).open(path) {
        Ok(mut file) => Ok(file.write_all(text.as_bytes())?),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error).with_context(|| format!("cannot write `{}`", path.display())),
    }
}

fn ip(args: &[&str]) -> anyhow::Result<serde_json::Value> {
    let output = finish(Command::new("ip").arg("-j").args(args), RUN_TIME_MAX)?.check()?;
    serde_json::from_str(&output.stdout).context("`ip -j` printed something else than JSON")
}

/// The interface of the default route.
fn uplink() -> anyhow::Result<String> {
    for family in ["-4", "-6"] {
        let routes = ip(&[family, "route", "show", "default"])?;
        if let Some(name) = routes.pointer("/0/dev").and_then(serde_json::Value::as_str) {
            return Ok(name.to_owned());
        }
    }
    bail!("this machine has no default route: there is no way out to govern")
}

/// An interface's addresses that agents can reach.
fn addresses(interface: &str) -> anyhow::Result<Vec<IpAddr>> {
    let links = ip(&["address", "show", "dev", interface])?;
    let infos = links.pointer("/0/addr_info").and_then(serde_json::Value::as_array);
    let global = infos.into_iter().flatten().filter(|a| a.get("scope").is_some_and(|s| s == "global"));
    let found: Vec<IpAddr> = global.filter_map(|a| a.get("local")?.as_str()?.parse().ok()).collect();
    ensure!(!found.is_empty(), "`{interface}` has no address; give it one, in the agents' subnet");
    Ok(found)
}
