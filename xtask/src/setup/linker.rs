//! `bpf-linker`, built against the LLVM that rustc itself carries: no LLVM packages, and bitcode of
//! one version.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use anyhow::Context as _;

use super::{rust_src, say};
use crate::cache;
use crate::shell;

const VERSION: &str = "0.13.0";

/// Builds it, unless it is there and starts.
pub fn install() -> anyhow::Result<()> {
    let dir = cache::toolchain()?;
    let linker = dir.join("bin/bpf-linker");
    let installed = Command::new(&linker).arg("--version").output();
    if installed.is_ok_and(|o| o.status.success() && String::from_utf8_lossy(&o.stdout).contains(VERSION)) {
        say("bpf-linker", &format!("present ({VERSION})"));
        return Ok(());
    }
    let mut command = Command::new("rustc");
    let version = shell::output(command.current_dir(cache::repository()).arg("-vV"))?;
    let llvm = version
        .lines()
        .find_map(|l| l.strip_prefix("LLVM version: "))
        .and_then(|v| v.split('.').next())
        .context("rustc doesn't say which LLVM it has")?;
    say(
        "bpf-linker",
        &format!("missing: building {VERSION} against rustc's LLVM {llvm} (some minutes, once)"),
    );
    let prefix = dir.join("llvm");
    link_llvm(&prefix.join("lib"))?;
    let build = dir.join("linker-target");
    let mut command = shell::cargo();
    command
        .args(["install", "bpf-linker", "--version", VERSION, "--locked", "--force", "--no-default-features"])
        .args(["--features", &format!("llvm-{llvm}")])
        .arg("--root")
        .arg(&dir)
        .env("LLVM_PREFIX", &prefix)
        .env("CARGO_TARGET_DIR", &build);
    shell::run(&mut command).context("cannot build bpf-linker")?;
    if build.exists() {
        fs::remove_dir_all(&build).context("cannot clear bpf-linker's build directory")?;
    }
    say("bpf-linker", &format!("installed ({VERSION})"));
    Ok(())
}

/// A directory that looks like an LLVM installation: `libLLVM.so` and its versioned name.
fn link_llvm(lib: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(lib)?;
    let carried = rust_src::sysroot()?.join("lib");
    let library = fs::read_dir(&carried)?
        .filter_map(Result::ok)
        .map(|e| e.path())
        .find(|p| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with("libLLVM.so")))
        .with_context(|| format!("no `libLLVM.so` in `{}`", carried.display()))?;
    let versioned = library.file_name().context("a library has a name")?;
    for name in [versioned, "libLLVM.so".as_ref()] {
        let link = lib.join(name);
        if fs::symlink_metadata(&link).is_ok() {
            fs::remove_file(&link)?;
        }
        symlink(&library, &link).with_context(|| format!("cannot link `{}`", link.display()))?;
    }
    Ok(())
}
