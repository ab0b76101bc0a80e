//! Where cgroup v2 is mounted: whoever makes cgroups of local commands, and whoever must not serve these, look at one place.

use std::path::{Path, PathBuf};
use std::{fs, io};

use clawgress_api::config::Config;

/// Directory of all gateways' workloads, below the root of the tree.
pub const WORKLOADS: &str = "clawgress";
/// Where it is by itself, and beside controllers of version 1 (`Documentation/admin-guide/cgroup-v2.rst`; systemd's
/// "hybrid" hierarchy). Others are a container's, or somebody's own.
const USUAL: [&str; 2] = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];

/// The root of the cgroup v2 tree, as `config` names it or else as it is mounted; `None` if it isn't.
///
/// # Errors
/// If the mounts can't be read.
pub fn root(config: &Config) -> io::Result<Option<PathBuf>> {
    match &config.datapath.cgroup {
        Some(root) => Ok(Some(root.clone())),
        None => Ok(mounted(&fs::read_to_string("/proc/self/mounts")?)),
    }
}

/// The one at a usual place among these mounts (`/proc/self/mounts`, see fstab(5)), or else the first one.
#[must_use]
pub fn mounted(mounts: &str) -> Option<PathBuf> {
    let places = || {
        mounts.lines().filter_map(|line| {
            let mut fields = line.split(' ').skip(1);
            let place = fields.next()?;
            (fields.next()? == "cgroup2").then_some(place)
        })
    };
    let usual = USUAL.into_iter().find(|usual| places().any(|place| place == *usual));
    usual.or_else(|| places().next()).map(|place| Path::new(place).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tree_is_found_at_either_usual_place() {
        let alone = "proc /proc proc rw 0 0\ncgroup2 /sys/fs/cgroup cgroup2 rw,nosuid 0 0\n";
        let beside = "tmpfs /sys/fs/cgroup tmpfs ro 0 0\n\
             cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n\
             cgroup /sys/fs/cgroup/memory cgroup rw,memory 0 0\n";
        let others = "cgroup2 /var/lib/containers/x/cgroup cgroup2 rw 0 0\n";
        for (mounts, want) in [
            (alone.to_owned(), Some("/sys/fs/cgroup")),
            (beside.to_owned(), Some("/sys/fs/cgroup/unified")),
            // Mounted before that of the machine.
            (format!("{others}{alone}"), Some("/sys/fs/cgroup")),
            (format!("{others}{beside}"), Some("/sys/fs/cgroup/unified")),
            (others.to_owned(), Some("/var/lib/containers/x/cgroup")),
            ("cgroup /sys/fs/cgroup/memory cgroup rw,memory 0 0\n".to_owned(), None),
            ("cgroup2\n\nnone /x\n".to_owned(), None),
        ] {
            assert_eq!(mounted(&mounts).as_deref(), want.map(Path::new), "{mounts}");
        }
    }
}
