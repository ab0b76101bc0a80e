//! The Python clients of the demo and the tests in virtual environments of their own, each file checked against the hash in
//! `tests/clients/requirements.txt` and `tests/clients/sdks/requirements.txt`; and
//! the packages of Node of the end-to-end tests, by their lock files.

use std::fs;
use std::process::Command;

use anyhow::Context as _;

use super::say;
use crate::cache;
use crate::shell;

/// Clients of one list.
struct List {
    /// Of `tests/clients`.
    requirements: &'static str,
    /// Where they are, below the clients' directory.
    directory: &'static str,
    /// What shows that they are there.
    imports: &'static str,
    /// What they are, in words.
    what: &'static str,
}

/// What agents use, and the SDKs of models and tools, which need much besides.
const LISTS: [List; 2] = [
    List {
        requirements: "requirements.txt",
        directory: "",
        imports: "import aiohttp, h2, httpx, requests, openai, socks, spiffe, websockets",
        what: "requests with SOCKS, httpx with HTTP/2, aiohttp, openai, spiffe and websockets",
    },
    List {
        requirements: "sdks/requirements.txt",
        directory: "sdks",
        // LiteLLM asks the network for prices as it is imported.
        imports: "import mcp, anthropic, google.genai, cohere, mistralai, boto3, langchain_openai",
        what: "mcp, anthropic, google-genai, cohere, mistralai, boto3, litellm and langchain-openai",
    },
];

/// Installs them, unless each environment was made from this very list.
pub fn install() -> anyhow::Result<()> {
    LISTS.iter().try_for_each(install_list)
}

fn install_list(list: &List) -> anyhow::Result<()> {
    let List { requirements, directory, imports, what } = list;
    let requirements = cache::repository().join("tests/clients").join(requirements);
    let wanted = fs::read_to_string(&requirements)
        .with_context(|| format!("cannot read `{}`", requirements.display()))?;
    let dir = cache::clients()?.join(directory);
    let (venv, stamp) = (dir.join("venv"), dir.join("installed.txt"));
    let python = venv.join("bin/python");
    let starts = || shell::succeeds(Command::new(&python).args(["-c", imports]));
    if fs::read_to_string(&stamp).is_ok_and(|installed| installed == wanted) && starts() {
        say("python clients", &format!("present ({what})"));
        return Ok(());
    }
    say("python clients", &format!("missing: installing {what}, pinned by hash"));
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

/// Installs the packages of Node that tests use, unless what is there was made from these very lock files. No package's
/// scripts run.
pub fn install_packages() -> anyhow::Result<()> {
    [("oidc", "oidc-provider"), ("node", "openai, MCP's SDK, and what takes Node's requests to a proxy")]
        .into_iter()
        .try_for_each(|(name, what)| install_package(name, what))
}

fn install_package(name: &str, what: &str) -> anyhow::Result<()> {
    let source = cache::repository().join("tests/clients").join(name);
    let read = |name: &str| {
        let path = source.join(name);
        fs::read_to_string(&path).with_context(|| format!("cannot read `{}`", path.display()))
    };
    let (package, lock) = (read("package.json")?, read("package-lock.json")?);
    let dir = cache::clients()?.join(name);
    let stamp = dir.join("installed.json");
    let told = format!("node: {name}");
    if fs::read_to_string(&stamp).is_ok_and(|installed| installed == lock) {
        say(&told, &format!("present ({what})"));
        return Ok(());
    }
    say(&told, &format!("missing: installing {what}, pinned by hash"));
    fs::create_dir_all(&dir)?;
    fs::write(dir.join("package.json"), package)?;
    fs::write(dir.join("package-lock.json"), &lock)?;
    let mut npm = Command::new("npm");
    npm.current_dir(&dir).args(["ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel", "error"]);
    shell::run(&mut npm).with_context(|| format!("cannot install {what}"))?;
    fs::write(&stamp, lock)?;
    say(&told, "installed");
    Ok(())
}
