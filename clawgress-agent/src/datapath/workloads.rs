//! Local workloads: a cgroup each, below one that carries the socket hooks. What runs in there reaches
//! the gateway's services and what policy forwards, and nothing else.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use clawgress_api::config::Config;

use crate::cgroups;

/// Longest name of a workload, bytes.
const NAME_BYTES_MAX: usize = 64;
/// Attempts, and the pause between them, to remove a cgroup whose processes were just killed.
const REMOVE_ATTEMPTS: usize = 50;
const REMOVE_PAUSE: Duration = Duration::from_millis(20);
/// Levels of cgroups a workload may have made below its own: as many as the hooks look up.
const DEPTH_MAX: usize = 16;

/// The cgroup all workloads of this node are in.
#[derive(Clone, Debug)]
pub struct Workloads {
    parent: PathBuf,
}

impl Workloads {
    /// Makes the parent cgroup. It is named after the pin directory, so that two gateways on one machine
    /// don't govern each other's workloads.
    ///
    /// # Errors
    /// If there is no cgroup v2, or it can't be written.
    pub fn open(config: &Config) -> Result<Workloads> {
        let workloads = Workloads::locate(config)?;
        workloads.make()?;
        Ok(workloads)
    }

    /// Makes the parent cgroup, if it is not there.
    ///
    /// # Errors
    /// If it can't be written.
    pub fn make(&self) -> Result<()> {
        fs::create_dir_all(&self.parent)
            .and_then(|()| let_read(&self.parent))
            .with_context(|| format!("cannot create `{}`", self.parent.display()))
    }

    /// Where the parent cgroup is, or would be.
    ///
    /// # Errors
    /// If there is no cgroup v2.
    pub fn locate(config: &Config) -> Result<Workloads> {
        let root = root(config)?;
        let instance = config.datapath.bpffs.to_string_lossy().trim_matches('/').replace('/', "-");
        Ok(Workloads { parent: root.join(cgroups::WORKLOADS).join(instance) })
    }

    /// The cgroup that carries the hooks.
    #[must_use]
    pub fn parent(&self) -> &Path {
        &self.parent
    }

    /// Makes a workload's cgroup, and gives its path and id.
    ///
    /// # Errors
    /// If the name is no name, is in use, or the cgroup can't be made.
    pub fn create(&self, name: &str) -> Result<(PathBuf, u64)> {
        let is_valid = !name.is_empty()
            && name.len() <= NAME_BYTES_MAX
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
        ensure!(
            is_valid,
            "`{name}` is not a workload name: 1 to {NAME_BYTES_MAX} of a-z, A-Z, 0-9, `-`, `_`"
        );
        let path = self.parent.join(name);
        fs::create_dir(&path)
            .and_then(|()| let_read(&path))
            .with_context(|| format!("cannot create `{}`", path.display()))?;
        let id = fs::metadata(&path)?.ino();
        Ok((path, id))
    }

    /// Kills what is left in a workload's cgroup and removes it.
    ///
    /// # Errors
    /// If `path` is not a workload's, or processes don't end.
    pub async fn remove(&self, path: &Path) -> Result<()> {
        ensure!(path.parent() == Some(&self.parent), "`{}` is not a workload's cgroup", path.display());
        if let Err(error) = fs::write(path.join("cgroup.kill"), "1")
            && error.kind() == io::ErrorKind::NotFound
        {
            return Ok(());
        }
        for _ in 0..REMOVE_ATTEMPTS {
            match fs::remove_dir(path) {
                Ok(()) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                    tokio::time::sleep(REMOVE_PAUSE).await;
                }
                Err(error) => {
                    return Err(error).with_context(|| format!("cannot remove `{}`", path.display()));
                }
            }
        }
        bail!("processes in `{}` do not end", path.display())
    }

    /// Kills every workload and removes their cgroups, so that nothing enters one. It has to be done
    /// before the hooks go: without them a workload reaches whatever this machine does.
    ///
    /// # Errors
    /// If processes don't end.
    pub fn stop(&self) -> Result<()> {
        for _ in 0..REMOVE_ATTEMPTS {
            if let Err(error) = fs::write(self.parent.join("cgroup.kill"), "1") {
                return if error.kind() == io::ErrorKind::NotFound {
                    Ok(())
                } else {
                    Err(error).with_context(|| format!("cannot kill what is in `{}`", self.parent.display()))
                };
            }
            let events = fs::read_to_string(self.parent.join("cgroup.events")).unwrap_or_default();
            if events.lines().any(|line| line == "populated 0") && remove_below(&self.parent, DEPTH_MAX) {
                return Ok(());
            }
            std::thread::sleep(REMOVE_PAUSE);
        }
        bail!("processes in `{}` do not end; the hooks that govern them stay", self.parent.display())
    }

    /// Removes the parent, if no workload is left in it.
    pub fn remove_parent(&self) {
        // A workload that is left keeps it, and it does no harm.
        let _ = fs::remove_dir(&self.parent);
    }
}

/// Removes the cgroups below `path`; whether none is left.
fn remove_below(path: &Path, depth: usize) -> bool {
    let Ok(entries) = fs::read_dir(path) else { return true };
    let mut is_empty = true;
    for entry in entries.flatten().filter(|e| e.file_type().is_ok_and(|t| t.is_dir())) {
        let below = entry.path();
        is_empty &= depth > 0 && remove_below(&below, depth - 1) && fs::remove_dir(&below).is_ok();
    }
    is_empty
}

/// Where the cgroup v2 tree is.
///
/// # Errors
/// If none is mounted and none is named.
pub fn root(config: &Config) -> Result<PathBuf> {
    let found = cgroups::root(config).context("cannot read /proc/self/mounts")?;
    found.context("no cgroup v2 is mounted; mount one, or name it as `cgroup` in [datapath]")
}

/// Lets other roles see who is in a cgroup, whatever this process's umask is: where `/proc` shows them nobody, that
/// is how they tell a governed command from a role.
fn let_read(cgroup: &Path) -> std::io::Result<()> {
    let mode = fs::metadata(cgroup)?.permissions().mode();
    if mode & MODE == MODE { Ok(()) } else { fs::set_permissions(cgroup, Permissions::from_mode(MODE)) }
}

/// Mode of cgroups of workloads.
const MODE: u32 = 0o755;
