//! Java's trust store: Java reads no PEM, and no variable names certificates besides its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::failure::Failure;

/// The variable that every JVM reads.
pub const VARIABLE: &str = "JAVA_TOOL_OPTIONS";
/// What Java's own store has for a password: it keeps nobody out, and has to be there.
const PASSWORD: &str = "changeit";
const STORE: &str = "truststore.p12";
const ALIAS: &str = "clawgress-interception";

/// Makes a store of Java's own certificates and the one in `authority`, and returns the value of [`VARIABLE`] that names
/// it; `None` where there is no Java.
///
/// # Errors
/// If there is one, and its store can't be copied or added to.
pub fn store(directory: &Path, authority: &Path) -> Result<Option<String>, Failure> {
    let Some(keytool) = keytool() else { return Ok(None) };
    let failed = |what: String| Failure::Refused(format!("cannot make Java's trust store: {what}"));
    let home = keytool.parent().and_then(Path::parent).unwrap_or(Path::new("/"));
    let own = home.join("lib/security/cacerts");
    let path = directory.join(STORE);
    // Not by `fs::copy`, which would keep a mode by which nothing can be added.
    let certificates = fs::read(&own).map_err(|e| failed(format!("cannot read `{}`: {e}", own.display())))?;
    fs::write(&path, certificates).map_err(|e| failed(format!("cannot write `{}`: {e}", path.display())))?;
    let mut command = Command::new(&keytool);
    command.args(["-importcert", "-noprompt", "-alias", ALIAS, "-storepass", PASSWORD, "-file"]);
    command.arg(authority).arg("-keystore").arg(&path).stdin(Stdio::null());
    let ended = command.output().map_err(|e| failed(format!("`{}`: {e}", keytool.display())))?;
    if !ended.status.success() {
        let said = [ended.stdout, ended.stderr].concat();
        return Err(failed(String::from_utf8_lossy(&said).trim().to_owned()));
    }
    // The JVM splits the variable at blanks.
    let quoted = path.display().to_string();
    if quoted.contains(char::is_whitespace) {
        return Err(failed(format!(
            "`{quoted}` has a blank, which {VARIABLE} can't name; choose another directory"
        )));
    }
    Ok(Some(format!("-Djavax.net.ssl.trustStore={quoted} -Djavax.net.ssl.trustStorePassword={PASSWORD}")))
}

/// The `keytool` of this `PATH`, by its real place: below it is the store.
fn keytool() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let found =
        std::env::split_paths(&path).map(|directory| directory.join("keytool")).find(|p| p.is_file())?;
    fs::canonicalize(found).ok()
}
