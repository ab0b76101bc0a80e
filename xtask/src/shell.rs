//! Running other programs: with their output passed through, or captured.

use std::ffi::OsStr;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail};

/// The toolchain everything is built with; the same as in `rust-toolchain.toml`.
pub const TOOLCHAIN: &str = "1.95.0";

/// `cargo` of the pinned toolchain, in the repository's root.
pub fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(crate::cache::repository());
    // `cargo run`, which started this, tells of xtask's own package by these. Build scripts (ring's) watch them: left set,
    // all that depends on one would be built anew whenever `cargo xtask` follows a plain `cargo`, and the other way round.
    for (name, _) in std::env::vars_os() {
        let is_of_package = name.to_str().is_some_and(|name| {
            ["CARGO_PKG_", "CARGO_MANIFEST_"].iter().any(|of_package| name.starts_with(of_package))
        });
        if is_of_package {
            command.env_remove(name);
        }
    }
    command
}

/// Shows the command, runs it with its output passed through, and fails if it fails.
///
/// # Errors
/// If it can't be started or its status is not 0.
pub fn run(command: &mut Command) -> anyhow::Result<()> {
    println!("$ {}", line(command));
    run_quietly(command)
}

/// As [`run`], without showing the command.
///
/// # Errors
/// As [`run`].
pub fn run_quietly(command: &mut Command) -> anyhow::Result<()> {
    let status = command.status().with_context(|| format!("cannot start `{}`", line(command)))?;
    if !status.success() {
        bail!("`{}` ended with {status}", line(command));
    }
    Ok(())
}

/// Standard output, trimmed, of a command that must succeed. Its errors go to ours.
///
/// # Errors
/// As [`run`].
pub fn output(command: &mut Command) -> anyhow::Result<String> {
    let output = command
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("cannot start `{}`", line(command)))?;
    if !output.status.success() {
        bail!("`{}` ended with {}", line(command), output.status);
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Whether a command succeeds; its output is thrown away.
pub fn succeeds(command: &mut Command) -> bool {
    let command = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|s| s.success())
}

/// Whether a program can be found.
pub fn found(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // An ordinary user's PATH often lacks the directories of `ip` and `nft`.
    let system = ["/usr/sbin", "/sbin"].map(|d| Path::new(d).to_owned());
    std::env::split_paths(&path).chain(system).any(|dir| dir.join(program).is_file())
}

fn line(command: &Command) -> String {
    let mut words = vec![command.get_program()];
    words.extend(command.get_args());
    words.into_iter().map(OsStr::to_string_lossy).map(|w| quote(&w)).collect::<Vec<_>>().join(" ")
}

fn quote(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_=./:+,@".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shown_commands_can_be_pasted() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo 'a b' $HOME", ""]);
        assert_eq!(line(&command), r"sh -c 'echo '\''a b'\'' $HOME' ''");
    }

    #[test]
    fn failure_names_the_command_and_its_status() {
        let error = run_quietly(Command::new("false").arg("x")).expect_err("`false` fails").to_string();
        assert!(error.contains("`false x` ended with exit status: 1"), "{error}");
    }
}
