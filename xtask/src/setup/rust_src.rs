//! The standard library's source, from which `core` is built for the kernel: it must be of exactly
//! the compiler's version.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail, ensure};

use super::say;
use crate::cache;
use crate::shell::{self, TOOLCHAIN};

/// Names a tar archive that holds the contents of `library/`, for machines without a network.
const ARCHIVE: &str = "CLAWGRESS_RUST_SRC";
/// Debian's package of that source.
const PACKAGE_VERSION: &str = "1.95.0+dfsg1-2~bpo13+1";
const PACKAGE_SHA256: &str = "7b76db5b880a77f9e52975d2baa6209d2f76d2c9c2789515c3088cb960e2c83b";
const SUITE: &str = "trixie-backports";
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Finds the source or installs it; gives the `library` directory.
///
/// # Errors
/// With every way that was tried.
pub fn install() -> anyhow::Result<PathBuf> {
    let in_sysroot = sysroot()?.join("lib/rustlib/src/rust/library");
    let private = cache::toolchain()?.join("rust-src/usr/src").join(format!("rustc-{TOOLCHAIN}/library"));
    for library in [&in_sysroot, &private] {
        if complete(library) {
            return Ok(library.clone());
        }
    }
    let mut failures = Vec::new();
    if shell::found("rustup") {
        say("rust-src", "missing: asking rustup");
        let mut command = Command::new("rustup");
        match shell::run(command.args(["component", "add", "rust-src", "--toolchain", TOOLCHAIN])) {
            Ok(()) if complete(&in_sysroot) => return Ok(in_sysroot),
            Ok(()) => failures.push("rustup: it was added, but is not in the sysroot".to_owned()),
            Err(error) => failures.push(format!("rustup: {error:#}")),
        }
    }
    say("rust-src", "taking Debian's package from this machine's own mirror");
    match from_debian(&private) {
        Ok(()) => return Ok(private),
        Err(error) => failures.push(format!("Debian package: {error:#}")),
    }
    match from_archive(&private) {
        Ok(()) => return Ok(private),
        Err(error) => failures.push(format!("archive: {error:#}")),
    }
    bail!("the source of Rust {TOOLCHAIN}'s standard library can't be had:\n  {}", failures.join("\n  "))
}

/// The compiler's sysroot.
pub fn sysroot() -> anyhow::Result<PathBuf> {
    let mut command = Command::new("rustc");
    command.current_dir(cache::repository()).args(["--print", "sysroot"]);
    let sysroot = PathBuf::from(shell::output(&mut command)?);
    fs::canonicalize(&sysroot).with_context(|| format!("cannot find the sysroot `{}`", sysroot.display()))
}

fn complete(library: &Path) -> bool {
    library.join("Cargo.lock").is_file() && library.join("core/src/lib.rs").is_file()
}

/// Unpacks into a private directory, then moves it into place: never half there.
fn place(library: &Path, unpack: impl FnOnce(&Path) -> anyhow::Result<PathBuf>) -> anyhow::Result<()> {
    let parent = library.parent().context("no directory above `library`")?;
    let staging = parent.with_extension("new");
    if staging.exists() {
        fs::remove_dir_all(&staging)?;
    }
    fs::create_dir_all(&staging).with_context(|| format!("cannot create `{}`", staging.display()))?;
    let unpacked = unpack(&staging)?;
    ensure!(complete(&unpacked), "it holds no `library` with `Cargo.lock` and `core`");
    fs::create_dir_all(parent)?;
    if library.exists() {
        fs::remove_dir_all(library)?;
    }
    fs::rename(&unpacked, library)?;
    fs::remove_dir_all(&staging)?;
    Ok(())
}

/// Debian's package through an apt configuration of our own: the machine's is neither read for
/// suites nor changed.
fn from_debian(library: &Path) -> anyhow::Result<()> {
    ensure!(shell::found("apt-get"), "there is no apt-get here");
    ensure!(Path::new(KEYRING).is_file(), "there is no `{KEYRING}` to check signatures with");
    let mirror = mirror().context("no Debian mirror in `/etc/apt`")?;
    let apt = cache::toolchain()?.join("apt");
    for dir in ["lists/partial", "cache/archives/partial"] {
        fs::create_dir_all(apt.join(dir))?;
    }
    let sources = apt.join("sources.list");
    fs::write(&sources, format!("deb [signed-by={KEYRING}] {mirror} {SUITE} main\n"))?;
    let configuration = apt.join("apt.conf");
    let user = if nix::unistd::geteuid().is_root() { "APT::Sandbox::User \"root\";\n" } else { "" };
    fs::write(
        &configuration,
        format!(
            "Dir::Etc::sourcelist \"{}\";\nDir::Etc::sourceparts \"-\";\nDir::State::lists \"{}\";\nDir::Cache \"{}\";\n{user}",
            sources.display(),
            apt.join("lists").display(),
            apt.join("cache").display(),
        ),
    )?;
    let get = |args: &[&str]| {
        let mut command = Command::new("apt-get");
        shell::run(command.env("APT_CONFIG", &configuration).current_dir(&apt).arg("-qq").args(args))
    };
    get(&["update"])?;
    get(&["download", &format!("rust-src={PACKAGE_VERSION}")])?;
    let package = fs::read_dir(&apt)?
        .filter_map(Result::ok)
        .map(|e| e.path())
        .find(|p| p.extension().is_some_and(|e| e == "deb"))
        .context("apt-get downloaded nothing")?;
    let sum = shell::output(Command::new("sha256sum").arg(&package))?;
    if !sum.starts_with(PACKAGE_SHA256) {
        fs::remove_file(&package)?;
        bail!("its SHA-256 is {sum}, not {PACKAGE_SHA256}; it was deleted");
    }
    place(library, |staging| {
        shell::run(Command::new("dpkg").arg("-x").arg(&package).arg(staging))?;
        Ok(staging.join("usr/src").join(format!("rustc-{TOOLCHAIN}/library")))
    })?;
    fs::remove_dir_all(&apt).context("cannot clear the private apt directory")
}

/// The first Debian mirror this machine takes packages from.
fn mirror() -> Option<String> {
    let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
    let more = fs::read_dir("/etc/apt/sources.list.d").into_iter().flatten().filter_map(Result::ok);
    files.extend(
        more.map(|e| e.path()).filter(|p| p.extension().is_some_and(|e| e == "sources" || e == "list")),
    );
    files.iter().filter_map(|f| fs::read_to_string(f).ok()).find_map(|text| mirror_in(&text))
}

fn mirror_in(text: &str) -> Option<String> {
    let lines = text.lines().map(str::trim).filter(|l| l.starts_with("URIs:") || l.starts_with("deb "));
    lines
        .flat_map(str::split_whitespace)
        .map(|word| word.trim_end_matches('/'))
        .find(|word| word.contains("://") && word.ends_with("/debian"))
        .map(str::to_owned)
}

fn from_archive(library: &Path) -> anyhow::Result<()> {
    let Some(archive) = std::env::var_os(ARCHIVE) else {
        bail!(
            "set `{ARCHIVE}` to a tar archive of `library/` from Rust {TOOLCHAIN}'s source, if you have one"
        );
    };
    let archive = fs::canonicalize(&archive)
        .with_context(|| format!("cannot read `{}`", Path::new(&archive).display()))?;
    place(library, |staging| {
        let contents = staging.join("library");
        fs::create_dir_all(&contents)?;
        shell::run(Command::new("tar").arg("-C").arg(&contents).arg("-xf").arg(&archive))?;
        Ok(contents)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, want: Option<&str>) {
        assert_eq!(mirror_in(text).as_deref(), want);
    }

    #[test]
    fn the_machines_own_mirror_is_found() {
        check(
            "Types: deb\nURIs: http://a.example/debian/\nSuites: trixie\n",
            Some("http://a.example/debian"),
        );
        check(
            "deb [arch=amd64] https://b.example/mirror/debian trixie main\n",
            Some("https://b.example/mirror/debian"),
        );
        check("# deb http://a.example/debian trixie main\n", None);
        check("URIs: http://a.example/debian-security\n", None);
        check("deb http://a.example/ubuntu noble main\n", None);
    }

    #[test]
    fn an_incomplete_source_is_never_put_in_place() {
        let dir = std::env::temp_dir().join(format!("clawgress-rust-src-{}", std::process::id()));
        let library = dir.join("rustc/library");
        let error = place(&library, |staging| Ok(staging.join("nothing"))).expect_err("must be refused");
        assert!(error.to_string().contains("no `library`"), "{error}");
        assert!(!library.exists());
        fs::remove_dir_all(dir).expect("clean up");
    }
}
