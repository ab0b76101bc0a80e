//! Where set-up keeps what it made: outside `target/`, so that `cargo clean` does not cost minutes.

use std::path::{Path, PathBuf};

use anyhow::Context as _;

/// Names the toolchain directory in place of the one below the cache.
pub const TOOLCHAIN_DIR: &str = "CLAWGRESS_TOOLCHAIN_DIR";

/// The repository's root: of the clone that `cargo` was called in, which with a target directory shared by
/// several clones need not be the one this program was built in.
pub fn repository() -> PathBuf {
    let package = std::env::var_os("CARGO_MANIFEST_DIR").filter(|v| !v.is_empty());
    let package = package.map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    package.parent().map_or_else(|| PathBuf::from("."), Path::to_owned)
}

/// `$XDG_CACHE_HOME/clawgress`, or `~/.cache/clawgress`.
///
/// # Errors
/// If neither variable is set.
pub fn root() -> anyhow::Result<PathBuf> {
    if let Some(cache) = std::env::var_os("XDG_CACHE_HOME").filter(|v| !v.is_empty()) {
        return Ok(PathBuf::from(cache).join("clawgress"));
    }
    let home = std::env::var_os("HOME").filter(|v| !v.is_empty());
    let home = home.context("neither `XDG_CACHE_HOME` nor `HOME` is set; set one of them")?;
    Ok(PathBuf::from(home).join(".cache/clawgress"))
}

/// The eBPF toolchain: `bin/bpf-linker`, and `rust-src/` if neither sysroot nor rustup has it.
///
/// # Errors
/// As [`root`].
pub fn toolchain() -> anyhow::Result<PathBuf> {
    match std::env::var_os(TOOLCHAIN_DIR).filter(|v| !v.is_empty()) {
        Some(dir) => Ok(PathBuf::from(dir)),
        None => Ok(root()?.join("toolchain")),
    }
}

/// Names the directory of kernels in place of the one below the cache.
pub const KERNELS_DIR: &str = "CLAWGRESS_KERNELS_DIR";

/// Kernels for the tests' virtual machines, a directory each.
///
/// # Errors
/// As [`root`].
pub fn kernels() -> anyhow::Result<PathBuf> {
    match std::env::var_os(KERNELS_DIR).filter(|v| !v.is_empty()) {
        Some(dir) => Ok(PathBuf::from(dir)),
        None => Ok(root()?.join("kernels")),
    }
}

/// Geo data: `country.mmdb` and `asn.mmdb`.
///
/// # Errors
/// As [`root`].
pub fn geo() -> anyhow::Result<PathBuf> {
    Ok(root()?.join("geo"))
}

/// The demo's Python clients.
///
/// # Errors
/// As [`root`].
pub fn clients() -> anyhow::Result<PathBuf> {
    Ok(root()?.join("clients"))
}
