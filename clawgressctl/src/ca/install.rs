//! `ca install`, `ca uninstall`: the authority in the trust store of the whole host.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::Args;

use super::FILE_MODE;
use crate::failure::Failure;
use crate::output::{self, Output};

/// What its file is called in a store.
const FILE: &str = "clawgress-interception.crt";
/// Most bytes of a certificate's file.
const BYTES_MAX: u64 = 64 * 1024;
const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
const END: &str = "-----END CERTIFICATE-----";

/// A store of a distribution: where its additions are, and what takes them in, and out again.
struct Store {
    directory: &'static str,
    command: &'static str,
    fresh: &'static [&'static str],
}

const STORES: [Store; 3] = [
    // Debian, Ubuntu, Alpine. With `ca-certificates-java` this is Java's store too.
    Store {
        directory: "/usr/local/share/ca-certificates",
        command: "update-ca-certificates",
        fresh: &["--fresh"],
    },
    // Fedora, RHEL.
    Store { directory: "/etc/pki/ca-trust/source/anchors", command: "update-ca-trust", fresh: &[] },
    // openSUSE.
    Store { directory: "/etc/pki/trust/anchors", command: "update-ca-certificates", fresh: &[] },
];

#[derive(Args)]
pub struct Install {
    /// The certificate, as `ca export` printed it; without, the agent of this host is asked.
    #[arg(long, value_name = "FILE")]
    pub certificate: Option<PathBuf>,
}

impl Install {
    /// The certificate of the file, if one is named.
    pub fn read(&self) -> Result<Option<String>, Failure> {
        let Some(path) = &self.certificate else { return Ok(None) };
        let place = path.display();
        let refuse = |e: &dyn std::fmt::Display| Failure::Refused(format!("cannot read `{place}`: {e}"));
        if fs::metadata(path).map_err(|e| refuse(&e))?.len() > BYTES_MAX {
            return Err(refuse(&format!("it has more than {BYTES_MAX} bytes")));
        }
        let text = fs::read_to_string(path).map_err(|e| refuse(&e))?;
        // A bundle would put whatever else is in it into the store.
        if !is_one_certificate(&text) {
            return Err(Failure::Refused(format!(
                "`{place}` is not one certificate; take what `clawgressctl ca export` prints"
            )));
        }
        Ok(Some(text))
    }
}

/// Whether it is that and nothing else: a store can be read by everybody, and what else is in a file may be its key.
fn is_one_certificate(text: &str) -> bool {
    let inside = text.trim().strip_prefix(BEGIN).and_then(|text| text.strip_suffix(END));
    let is_base64 =
        |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '/' | '=') || c.is_ascii_whitespace();
    inside.is_some_and(|text| !text.trim().is_empty() && text.chars().all(is_base64))
}

/// Puts `authority` into the host's store.
pub fn install(output: Output, authority: &str) -> Result<(), Failure> {
    let store = store()?;
    let path = Path::new(store.directory).join(FILE);
    let is_there = fs::read_to_string(&path).is_ok_and(|there| there == authority);
    if !is_there {
        write(&path, authority)?;
    }
    // Again also where it is there: the former run may have ended before this.
    update(store, &[])?;
    tell(output, &path, if is_there { "is there already" } else { "is installed" })
}

/// Takes it out again.
pub fn uninstall(output: Output) -> Result<(), Failure> {
    let store = store()?;
    let path = Path::new(store.directory).join(FILE);
    match fs::remove_file(&path) {
        Ok(()) => {
            update(store, store.fresh)?;
            tell(output, &path, "is removed")
        }
        Err(e) if e.kind() == ErrorKind::NotFound => tell(output, &path, "was not there"),
        Err(e) => Err(failed(&path, &e)),
    }
}

fn tell(output: Output, path: &Path, what: &str) -> Result<(), Failure> {
    match output {
        Output::Json => output::json(&serde_json::json!({ "path": path, "result": what })),
        Output::Table => output::line(&format!(
            "`{}` {what}; see who trusts it with `clawgressctl ca check URL`",
            path.display()
        )),
    }
}

fn store() -> Result<&'static Store, Failure> {
    STORES.iter().find(|store| Path::new(store.directory).is_dir()).ok_or_else(|| {
        let known: Vec<_> = STORES.iter().map(|store| store.directory).collect();
        Failure::Refused(format!(
            "this system's store of certificates is not known (no {}); install its package `ca-certificates`, or use `clawgressctl ca env`",
            known.join(", ")
        ))
    })
}

/// Whole or not at all.
fn write(path: &Path, text: &str) -> Result<(), Failure> {
    let temporary = path.with_extension("new");
    let mut options = fs::OpenOptions::new();
    let written = options.write(true).create(true).truncate(true).mode(FILE_MODE).open(&temporary);
    let written = written.and_then(|mut file| {
        std::io::Write::write_all(&mut file, text.as_bytes())?;
        file.set_permissions(fs::Permissions::from_mode(FILE_MODE))?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    });
    written.map_err(|e| failed(path, &e))
}

fn failed(path: &Path, error: &std::io::Error) -> Failure {
    match error.kind() {
        ErrorKind::PermissionDenied => {
            Failure::Denied(format!("you may not write `{}`; use sudo", path.display()))
        }
        _ => Failure::Refused(format!("cannot write `{}`: {error}", path.display())),
    }
}

fn update(store: &Store, args: &[&str]) -> Result<(), Failure> {
    let command = store.command;
    let ended = Command::new(command).args(args).output();
    let ended = ended
        .map_err(|e| Failure::Refused(format!("cannot run `{command}`: {e}; install `ca-certificates`")))?;
    if ended.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&ended.stderr);
    Err(Failure::Refused(format!("`{command}` failed: {}", said.trim())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_certificate_is_taken_and_no_bundle() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("a.pem");
        let one = format!("{BEGIN}\nMIIB\n-----END CERTIFICATE-----\n");
        let read = |text: &str| {
            fs::write(&path, text).expect("write");
            Install { certificate: Some(path.clone()) }.read()
        };
        assert_eq!(read(&one).expect("one"), Some(one.clone()));
        let key = "-----BEGIN PRIVATE KEY-----\nMIIB\n-----END PRIVATE KEY-----\n";
        let wrong = [
            format!("{one}{one}"),
            String::new(),
            key.to_owned(),
            format!("{one}{key}"),
            format!("{key}{one}"),
        ];
        for wrong in wrong {
            assert!(read(&wrong).is_err(), "{wrong}");
        }
        assert!(Install { certificate: None }.read().expect("none").is_none());
    }
}
