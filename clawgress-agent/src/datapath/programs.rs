//! The loaded programs for as long as the role lives. What was attached is looked at, and attached again
//! when somebody took it away.
//!
//! Must never let a local command run on that was out of its hooks' reach.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::Result;
use clawgress_api::config::Config;
use nix::net::if_::if_indextoname;

use super::attach::{self, Attached, TcMode};
use super::bpf;
use super::object::{self, Objects};
use super::workloads::Workloads;

/// The object and where its programs belong.
#[derive(Debug)]
pub struct Programs {
    objects: Objects,
    directory: PathBuf,
    agents: BTreeMap<String, u32>,
    /// Those of them whose driver has no XDP.
    without_xdp: BTreeSet<u32>,
    mode: TcMode,
    workloads: Option<Workloads>,
}

impl Programs {
    /// Loads the object, its maps pinned at `config.datapath.bpffs`, and takes up those already there.
    /// Where those are of another version they are removed with their programs, and before that whatever
    /// local command they govern is ended.
    ///
    /// # Errors
    /// If the kernel refuses, or a local command doesn't end.
    pub fn load(config: &Config, agents: &BTreeMap<String, u32>) -> Result<Programs> {
        let directory = &config.datapath.bpffs;
        bpf::open_directory(directory)?;
        if object::is_other_version(directory) {
            tracing::warn!("pinned maps are of another version: replacing maps and programs whole");
            if let Ok(workloads) = Workloads::locate(config) {
                workloads.stop()?;
            }
            bpf::remove_directory(directory)?;
            bpf::open_directory(directory)?;
        }
        Ok(Programs {
            objects: object::load(Some(directory))?,
            directory: directory.clone(),
            agents: agents.clone(),
            without_xdp: BTreeSet::new(),
            mode: TcMode::of_kernel(),
            workloads: None,
        })
    }

    /// Attaches to the agents' interfaces.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn attach(&mut self) -> Result<BTreeMap<String, Attached>> {
        // First the answer to whose listener it is, then what makes the kernel ask.
        attach::lookup(&mut self.objects, &self.directory)?;
        self.attach_interfaces()
    }

    fn attach_interfaces(&mut self) -> Result<BTreeMap<String, Attached>> {
        let attached = attach::interfaces(&mut self.objects, &self.directory, &self.agents, self.mode)?;
        let without = attached.iter().filter(|(_, how)| how.is_without_xdp());
        self.without_xdp = without.filter_map(|(name, _)| self.agents.get(name).copied()).collect();
        Ok(attached)
    }

    /// Attaches to agents' interfaces that appeared, and detaches from those that are no longer theirs.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn follow(&mut self, agents: &BTreeMap<String, u32>) -> Result<BTreeMap<String, Attached>> {
        let left = self.agents.values().filter(|i| !agents.values().any(|now| now == *i));
        if self.mode == TcMode::Clsact {
            // No pin holds these; an interface that was renamed has them still.
            let names = left.filter_map(|&i| if_indextoname(i).ok()?.into_string().ok());
            attach::detach_clsact(names.collect::<Vec<_>>().iter());
        }
        self.agents = agents.clone();
        bpf::open_directory(&self.directory)?;
        self.attach_interfaces()
    }

    /// Attaches the hooks for local workloads.
    ///
    /// # Errors
    /// If there is no cgroup v2, or the kernel refuses.
    pub fn attach_workloads(&mut self, config: &Config) -> Result<Workloads> {
        let workloads = Workloads::open(config)?;
        attach::cgroup(&mut self.objects, &self.directory, workloads.parent())?;
        self.workloads = Some(workloads.clone());
        Ok(workloads)
    }

    /// The object, for its maps.
    pub fn objects(&mut self) -> &mut Objects {
        &mut self.objects
    }

    /// Attaches again what is no longer attached, and tells in words what that was.
    ///
    /// # Errors
    /// If something stays unattached.
    pub fn repair(&mut self) -> Result<Vec<String>> {
        let mut repaired = Vec::new();
        if self.mode == TcMode::Clsact {
            repaired.extend(attach::renew_clsact(&mut self.objects, &self.agents)?);
        }
        let hooks = match &self.workloads {
            Some(workloads) => attach::missing_hooks(&self.directory, workloads.parent())?,
            None => Vec::new(),
        };
        let programs = attach::missing(&self.directory, &self.agents, &self.without_xdp, self.mode)?;
        if hooks.is_empty() && programs.is_empty() {
            return Ok(repaired);
        }
        bpf::open_directory(&self.directory)?;
        attach::forget(&programs)?;
        attach::forget(&hooks)?;
        if !programs.is_empty() {
            self.attach()?;
        }
        if let Some(workloads) = self.workloads.as_ref().filter(|_| !hooks.is_empty()) {
            // What was connected meanwhile is connected for good: it ends.
            workloads.stop()?;
            workloads.make()?;
            attach::cgroup(&mut self.objects, &self.directory, workloads.parent())?;
            repaired.push("local commands ran without socket hooks, and were ended".to_owned());
        }
        let again = |link: &attach::Missing| format!("{} was detached, and was attached again", link.what);
        repaired.extend(programs.iter().chain(&hooks).map(again));
        Ok(repaired)
    }
}

/// Whether the hooks still hold everything below `parent`.
///
/// # Errors
/// With the hook that doesn't.
pub fn check_hooks(directory: &Path, parent: &Path) -> Result<()> {
    if let Some(missing) = attach::missing_hooks(directory, parent)?.first() {
        anyhow::bail!(
            "{} is not attached, so a local command would not be governed; try again in some seconds, or \
             restart the datapath role",
            missing.what
        );
    }
    Ok(())
}
