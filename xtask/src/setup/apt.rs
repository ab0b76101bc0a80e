//! Packages of a Debian suite that this machine need not run: through an apt configuration of our own,
//! so that the machine's is neither read for suites nor changed. Nothing is installed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};

use crate::shell;

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// One suite's packages, signatures checked.
pub struct Apt {
    dir: PathBuf,
    configuration: PathBuf,
}

// === impl Apt ===

impl Apt {
    /// Fetches `suite`'s list of packages from this machine's own mirror into the private `dir`.
    ///
    /// # Errors
    /// On machines without apt, Debian's keys or a Debian mirror, and if the mirror doesn't answer.
    pub fn open(dir: PathBuf, suite: &str) -> anyhow::Result<Apt> {
        ensure!(shell::found("apt-get"), "there is no apt-get here");
        ensure!(Path::new(KEYRING).is_file(), "there is no `{KEYRING}` to check signatures with");
        let mirror = mirror().context("no Debian mirror in `/etc/apt`")?;
        for part in ["lists/partial", "cache/archives/partial"] {
            let part = dir.join(part);
            fs::create_dir_all(&part).with_context(|| format!("cannot create `{}`", part.display()))?;
        }
        let sources = dir.join("sources.list");
        fs::write(&sources, format!("deb [signed-by={KEYRING}] {mirror} {suite} main\n"))?;
        let configuration = dir.join("apt.conf");
        let user = if nix::unistd::geteuid().is_root() { "APT::Sandbox::User \"root\";\n" } else { "" };
        fs::write(
            &configuration,
            format!(
                "Dir::Etc::sourcelist \"{}\";\nDir::Etc::sourceparts \"-\";\nDir::State::lists \"{}\";\nDir::Cache \"{}\";\n{user}",
                sources.display(),
                dir.join("lists").display(),
                dir.join("cache").display(),
            ),
        )?;
        let apt = Apt { dir, configuration };
        shell::run(apt.command("apt-get").args(["-qq", "update"]))?;
        Ok(apt)
    }

    /// The first package that `package` depends on: the real one behind a name that moves.
    ///
    /// # Errors
    /// If the suite has no such package, or it depends on nothing.
    pub fn dependency(&self, package: &str) -> anyhow::Result<String> {
        let text = shell::output(self.command("apt-cache").args(["depends", package]))?;
        let name = text.lines().find_map(|l| l.trim().strip_prefix("Depends: "));
        Ok(name.with_context(|| format!("`{package}` depends on nothing"))?.to_owned())
    }

    /// Downloads a package (`name` or `name=version`) and gives its file.
    ///
    /// # Errors
    /// If the suite doesn't have it.
    pub fn download(&self, package: &str) -> anyhow::Result<PathBuf> {
        shell::run(self.command("apt-get").args(["-qq", "download", package]))?;
        fs::read_dir(&self.dir)?
            .filter_map(Result::ok)
            .map(|e| e.path())
            .find(|p| p.extension().is_some_and(|e| e == "deb"))
            .context("apt-get downloaded nothing")
    }

    /// Removes the private directory.
    ///
    /// # Errors
    /// If it can't be removed.
    pub fn close(self) -> anyhow::Result<()> {
        fs::remove_dir_all(&self.dir).context("cannot clear the private apt directory")
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("APT_CONFIG", &self.configuration).env("LC_ALL", "C").current_dir(&self.dir);
        command
    }
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
}
