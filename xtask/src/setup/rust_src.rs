//! The standard library's source, from which `core` is built for the kernel: it must be of exactly
//! the compiler's version.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail, ensure};

use super::apt::Apt;
use super::say;
use crate::cache;
use crate::shell::{self, TOOLCHAIN};

/// Names a tar archive that holds the contents of `library/`, for machines without a network.
const ARCHIVE: &str = "CLAWGRESS_RUST_SRC";
/// Debian's package of that source.
const PACKAGE_VERSION: &str = "1.95.0+dfsg1-2~bpo13+1";
const PACKAGE_SHA256: &str = "7b76db5b880a77f9e52975d2baa6209d2f76d2c9c2789515c3088cb960e2c83b";
const SUITE: &str = "trixie-backports";

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

/// Debian's package of the source.
fn from_debian(library: &Path) -> anyhow::Result<()> {
    let apt = Apt::open(cache::toolchain()?.join("apt"), SUITE)?;
    let package = apt.download(&format!("rust-src={PACKAGE_VERSION}"))?;
    let sum = shell::output(Command::new("sha256sum").arg(&package))?;
    if !sum.starts_with(PACKAGE_SHA256) {
        fs::remove_file(&package)?;
        bail!("its SHA-256 is {sum}, not {PACKAGE_SHA256}; it was deleted");
    }
    place(library, |staging| {
        shell::run(Command::new("dpkg").arg("-x").arg(&package).arg(staging))?;
        Ok(staging.join("usr/src").join(format!("rustc-{TOOLCHAIN}/library")))
    })?;
    apt.close()
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
