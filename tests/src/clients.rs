//! Clients that set-up has installed: what people's agents really use.

use std::env;
use std::path::PathBuf;

use anyhow::{Context as _, ensure};

/// Names their directory in place of the one that set-up makes.
pub const DIRECTORY: &str = "CLAWGRESS_CLIENTS_DIR";

/// Python with the clients of `tests/clients/requirements.txt`.
///
/// # Errors
/// If set-up has not been run.
pub fn python() -> anyhow::Result<PathBuf> {
    let set = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let cache = || set("XDG_CACHE_HOME").or_else(|| Some(set("HOME")?.join(".cache")));
    let directory = set(DIRECTORY).or_else(|| Some(cache()?.join("clawgress/clients")));
    let python = directory.context("neither `XDG_CACHE_HOME` nor `HOME` is set; set one of them")?;
    let python = python.join("venv/bin/python");
    ensure!(python.is_file(), "there is no `{}`; run `cargo xtask setup`", python.display());
    Ok(python)
}
