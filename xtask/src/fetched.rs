//! What is made of packages that are fetched and read, never installed: the table of prices, and how good detectors are.
//! Packages are pinned by hash, and come through the ordinary client. Must never commit what they hold but for prices.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};

use crate::cache;
use crate::shell;

/// Where the measured tables stand in docs/detection.md.
const BEGIN: &str = "<!-- measured -->";
const END: &str = "<!-- end of what is measured -->";

/// Makes `clawgress-inspect/src/price/table.tsv` of the pinned package.
pub fn prices() -> anyhow::Result<()> {
    let repository = cache::repository();
    let wheels = wheels("prices", &repository.join("xtask/prices/requirements.txt"))?;
    let found = fs::read_dir(&wheels)?.filter_map(Result::ok).map(|entry| entry.path());
    let wheel = found.into_iter().find(|path| path.extension().is_some_and(|end| end == "whl"));
    let wheel =
        wheel.context("the package of prices is no wheel; look at `xtask/prices/requirements.txt`")?;
    let table = repository.join("clawgress-inspect/src/price/table.tsv");
    let mut extract = Command::new("python3");
    extract.arg(repository.join("xtask/prices/extract.py")).arg(wheel).arg(&table);
    shell::run(&mut extract)?;
    println!("\nprices: {}; `git diff` shows what changed", table.display());
    Ok(())
}

/// Measures detectors on public corpora, and writes docs/detection.md.
pub fn detection(source: Option<&str>) -> anyhow::Result<()> {
    let repository = cache::repository();
    let tests = repository.join("tests/detection");
    let wheels = wheels("detection", &tests.join("requirements.txt"))?;
    let corpus = wheels.join("corpus.jsonl");
    // What the crates that this is built from say, and the packages of the tests' clients, are the long ordinary texts.
    shell::run(shell::cargo().args(["fetch", "--locked"]))?;
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| std::env::home_dir().map(|home| home.join(".cargo")));
    let crates =
        home.context("neither `CARGO_HOME` nor `HOME` is set; set one of them")?.join("registry/src");
    let clients = cache::clients()?;
    ensure!(clients.exists(), "the clients of the tests are missing; `cargo xtask setup` installs them");
    let mut extract = Command::new("python3");
    extract.arg(tests.join("extract.py")).args([&wheels, &crates, &clients, &corpus]);
    shell::run(&mut extract)?;
    let mut measure = shell::cargo();
    measure.args([
        "run",
        "--quiet",
        "--release",
        "--locked",
        "-p",
        "clawgress-inspect",
        "--example",
        "detection",
        "--",
    ]);
    measure.arg(&corpus).args(source);
    if source.is_some() {
        return shell::run(&mut measure);
    }
    let tables = shell::output(&mut measure)?;
    let path = repository.join("docs/detection.md");
    let page = fs::read_to_string(&path).with_context(|| format!("cannot read `{}`", path.display()))?;
    let (before, rest) =
        page.split_once(BEGIN).with_context(|| format!("`{BEGIN}` is missing in `{}`", path.display()))?;
    let (_, after) =
        rest.split_once(END).with_context(|| format!("`{END}` is missing in `{}`", path.display()))?;
    fs::write(&path, format!("{before}{BEGIN}\n{tables}\n{END}{after}"))?;
    println!("{tables}\n\ndetection: written to {}", path.display());
    Ok(())
}

/// The wheels of a list, each checked against its hash.
fn wheels(name: &str, requirements: &Path) -> anyhow::Result<PathBuf> {
    let wanted = fs::read_to_string(requirements)
        .with_context(|| format!("cannot read `{}`", requirements.display()))?;
    let dir = cache::root()?.join(name);
    let stamp = dir.join("fetched.txt");
    if fs::read_to_string(&stamp).is_ok_and(|fetched| fetched == wanted) {
        return Ok(dir);
    }
    if dir.exists() {
        fs::remove_dir_all(&dir)?;
    }
    fs::create_dir_all(&dir)?;
    ensure!(shell::found("python3"), "there is no `python3`; `cargo xtask setup` installs it");
    let mut pip = Command::new("python3");
    pip.args([
        "-m",
        "pip",
        "download",
        "--quiet",
        "--disable-pip-version-check",
        "--no-deps",
        "--only-binary",
        ":all:",
    ]);
    pip.args(["--require-hashes", "--dest"]).arg(&dir).arg("-r").arg(requirements);
    shell::run(&mut pip).context("cannot fetch the packages")?;
    fs::write(&stamp, wanted)?;
    Ok(dir)
}
