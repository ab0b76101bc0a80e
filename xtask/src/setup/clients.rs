//! The Python clients of the demo and the tests in a virtual environment of their own, each file checked against the
//! hash in `tests/clients/requirements.txt`; and the OpenID provider of the end-to-end tests, by its lock file.

use std::fs;
use std::process::Command;

use anyhow::Context as _;

use super::say;
use crate::cache;
use crate::shell;

/// Installs them, unless the environment was made from this very list.
pub fn install() -> anyhow::Result<()> {
    let requirements = cache::repository().join("tests/clients/requirements.txt");
    let wanted = fs::read_to_string(&requirements)
        .with_context(|| format!("cannot read `{}`", requirements.display()))?;
    let dir = cache::clients()?;
    let (venv, stamp) = (dir.join("venv"), dir.join("installed.txt"));
    let python = venv.join("bin/python");
    let starts = || {
        shell::succeeds(
            Command::new(&python)
                .args(["-c", "import aiohttp, h2, httpx, requests, openai, socks, spiffe, websockets"]),
        )
    };
    if fs::read_to_string(&stamp).is_ok_and(|installed| installed == wanted) && starts() {
        say(
            "python clients",
            "present (requests with SOCKS, httpx with HTTP/2, aiohttp, openai, spiffe, websockets)",
        );
        return Ok(());
    }
    say(
        "python clients",
        "missing: installing requests with SOCKS, httpx with HTTP/2, aiohttp, openai, spiffe and websockets, pinned by hash",
    );
    fs::create_dir_all(&dir)?;
    if venv.exists() {
        fs::remove_dir_all(&venv).context("cannot replace the clients' environment")?;
    }
    shell::run(Command::new("python3").args(["-m", "venv"]).arg(&venv))?;
    let mut pip = Command::new(&python);
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--require-hashes", "-r"]);
    shell::run(pip.arg(&requirements)).context("cannot install the Python clients")?;
    fs::write(&stamp, wanted)?;
    say("python clients", "installed");
    Ok(())
}

/// Installs the OpenID provider, unless what is there was made from this very lock file. No package's scripts run.
pub fn install_provider() -> anyhow::Result<()> {
    let source = cache::repository().join("tests/clients/oidc");
    let read = |name: &str| {
        let path = source.join(name);
        fs::read_to_string(&path).with_context(|| format!("cannot read `{}`", path.display()))
    };
    let (package, lock) = (read("package.json")?, read("package-lock.json")?);
    let dir = cache::clients()?.join("oidc");
    let stamp = dir.join("installed.json");
    if fs::read_to_string(&stamp).is_ok_and(|installed| installed == lock) {
        say("oidc-provider", "present");
        return Ok(());
    }
    say("oidc-provider", "missing: installing it, pinned by hash");
    fs::create_dir_all(&dir)?;
    fs::write(dir.join("package.json"), package)?;
    fs::write(dir.join("package-lock.json"), &lock)?;
    let mut npm = Command::new("npm");
    npm.current_dir(&dir).args(["ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel", "error"]);
    shell::run(&mut npm).context("cannot install the tests' OpenID provider")?;
    fs::write(&stamp, lock)?;
    say("oidc-provider", "installed");
    Ok(())
}
