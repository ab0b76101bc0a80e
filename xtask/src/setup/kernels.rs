//! The oldest kernel that Clawgress supports and the one of Debian's stable release, for virtual
//! machines: the programs must load, and judge, on them too. They are unpacked, never installed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail, ensure};

use super::apt::Apt;
use super::say;
use crate::cache;
use crate::shell;

/// A kernel series and the suite that has it. The point release is whichever the suite has: older ones
/// leave the mirrors.
const KERNELS: [(&str, &str); 2] = [("6.1", "bookworm"), ("6.12", "trixie")];
/// Depends on the suite's present kernel, built for virtual machines.
const PACKAGE: &str = "linux-image-cloud-amd64";
/// What the datapath needs and these kernels have as modules, in the order they are loaded.
const MODULES: [&str; 23] = [
    "libcrc32c",
    "nfnetlink",
    "nf_defrag_ipv6",
    "nf_defrag_ipv4",
    "nf_conntrack",
    "nf_nat",
    "nf_tables",
    "nf_reject_ipv4",
    "nf_reject_ipv6",
    "nft_reject",
    "nft_reject_inet",
    "nft_ct",
    "nft_chain_nat",
    "nft_masq",
    "veth",
    "cls_bpf",
    "sch_ingress",
    "sch_fq",
    // Which only some of the tests there make use of.
    "llc",
    "stp",
    "mrp",
    "garp",
    "8021q",
];

/// Unpacks what is missing: `SERIES/vmlinuz`, `SERIES/release`, and `SERIES/modules/NN-NAME.ko`, which
/// are loaded in the order of their names.
///
/// # Errors
/// With where to put a kernel by hand.
pub fn install() -> anyhow::Result<()> {
    let root = cache::kernels()?;
    for (series, suite) in KERNELS {
        let dir = root.join(series);
        if !is_complete(&dir) {
            say(&format!("linux {series}"), &format!("missing: taking the kernel of Debian {suite}"));
            fetch(&dir, series, suite).with_context(|| {
                format!(
                    "Linux {series} for the tests can't be had; from a machine that has it, copy `{}`",
                    dir.display()
                )
            })?;
        }
        let release = fs::read_to_string(dir.join("release"))?;
        say(&format!("linux {series}"), &format!("present ({release})"));
    }
    Ok(())
}

fn module_file(place: usize, name: &str) -> String {
    format!("{place:02}-{name}.ko")
}

fn is_complete(dir: &Path) -> bool {
    let modules = MODULES.iter().enumerate().map(|(n, m)| dir.join("modules").join(module_file(n, m)));
    modules.chain([dir.join("vmlinuz"), dir.join("release")]).all(|file| file.is_file())
}

fn fetch(dir: &Path, series: &str, suite: &str) -> anyhow::Result<()> {
    ensure!(cfg!(target_arch = "x86_64"), "only x86-64 kernels are looked for");
    let root = dir.parent().context("no directory above the kernel's")?;
    let apt = Apt::open(root.join(format!("apt-{suite}")), suite)?;
    let package = apt.dependency(PACKAGE)?;
    ensure!(
        package.starts_with(&format!("linux-image-{series}.")),
        "`{suite}` has `{package}` by now, which is no Linux {series}"
    );
    let file = apt.download(&package)?;
    let staging = root.join(format!("{series}.new"));
    if staging.exists() {
        fs::remove_dir_all(&staging)?;
    }
    let unpacked = staging.join("package");
    fs::create_dir_all(staging.join("modules"))?;
    shell::run(Command::new("dpkg-deb").arg("-x").arg(&file).arg(&unpacked))?;
    let release = package.trim_start_matches("linux-image-");
    fs::copy(unpacked.join("boot").join(format!("vmlinuz-{release}")), staging.join("vmlinuz"))
        .context("the package holds no kernel")?;
    let modules = ["lib/modules", "usr/lib/modules"].map(|d| unpacked.join(d).join(release));
    let modules = modules.into_iter().find(|d| d.is_dir()).context("the package holds no modules")?;
    for (place, name) in MODULES.iter().enumerate() {
        copy_module(&modules, name, &staging.join("modules").join(module_file(place, name)))?;
    }
    fs::write(staging.join("release"), release)?;
    fs::remove_dir_all(&unpacked)?;
    if dir.exists() {
        fs::remove_dir_all(dir)?;
    }
    fs::rename(&staging, dir)?;
    apt.close()
}

/// Copies a module, unpacked: not every kernel unpacks by itself.
fn copy_module(modules: &Path, name: &str, to: &Path) -> anyhow::Result<()> {
    let names = [format!("{name}.ko"), format!("{name}.ko.xz")];
    let mut pending = vec![modules.join("kernel")];
    let mut found: Option<PathBuf> = None;
    while let (None, Some(dir)) = (&found, pending.pop()) {
        for entry in fs::read_dir(&dir)?.filter_map(Result::ok) {
            let path = entry.path();
            if path.is_dir() {
                pending.push(path);
            } else if names.iter().any(|n| entry.file_name().to_str() == Some(n)) {
                found = Some(path);
            }
        }
    }
    let Some(found) = found else { bail!("the package has no module `{name}`") };
    if found.extension().is_some_and(|e| e == "ko") {
        fs::copy(&found, to)?;
        return Ok(());
    }
    let output = fs::File::create(to)?;
    let status =
        Command::new("xz").arg("-dc").arg(&found).stdout(output).status().context("cannot run `xz`")?;
    ensure!(status.success(), "`xz` cannot unpack `{}`", found.display());
    Ok(())
}
