//! Clients that set-up has installed: what people's agents really use.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};

/// Names their directory in place of the one that set-up makes.
pub const DIRECTORY: &str = "CLAWGRESS_CLIENTS_DIR";

/// Python with the clients of `tests/clients/requirements.txt`.
///
/// # Errors
/// If set-up has not been run.
pub fn python() -> anyhow::Result<PathBuf> {
    interpreter("venv/bin/python")
}

/// Python with the SDKs of `tests/clients/sdks/requirements.txt`: of models and tools.
///
/// # Errors
/// If set-up has not been run.
pub fn sdks() -> anyhow::Result<PathBuf> {
    interpreter("sdks/venv/bin/python")
}

/// Modules of Node of `tests/clients/node`.
///
/// # Errors
/// If set-up has not been run.
pub fn modules() -> anyhow::Result<PathBuf> {
    let modules = directory()?.join("node/node_modules");
    ensure!(modules.is_dir(), "there is no `{}`; run `cargo xtask setup`", modules.display());
    Ok(modules)
}

/// A script of `tests/clients`.
#[must_use]
pub fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("clients").join(name)
}

fn interpreter(path: &str) -> anyhow::Result<PathBuf> {
    let python = directory()?.join(path);
    ensure!(python.is_file(), "there is no `{}`; run `cargo xtask setup`", python.display());
    Ok(python)
}

fn directory() -> anyhow::Result<PathBuf> {
    let set = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let cache = || set("XDG_CACHE_HOME").or_else(|| Some(set("HOME")?.join(".cache")));
    let directory = set(DIRECTORY).or_else(|| Some(cache()?.join("clawgress/clients")));
    directory.context("neither `XDG_CACHE_HOME` nor `HOME` is set; set one of them")
}
