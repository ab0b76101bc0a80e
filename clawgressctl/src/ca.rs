//! `ca`: the authority by which TLS is read, for clients to trust.

mod check;
mod install;
mod java;

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use clawgress_api::InterceptionStatus;
use clawgress_api::proto::Empty;
use serde::Serialize;
use tonic::Code;

use crate::client::Client;
use crate::failure::Failure;
use crate::output::{self, Output};

use self::check::Check;
use self::install::Install;

/// Where distributions keep the system's certificates.
const BUNDLES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];
/// Variables that name all certificates that are trusted: OpenSSL, Go and httpx; requests and pip; curl; git.
const INSTEAD: [&str; 4] = ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "GIT_SSL_CAINFO"];
/// The variable that names certificates that are trusted besides: Node.
const BESIDES: &str = "NODE_EXTRA_CA_CERTS";
/// Names of the two files.
const BUNDLE: &str = "bundle.pem";
const AUTHORITY: &str = "authority.pem";
/// Anybody may read a certificate.
const FILE_MODE: u32 = 0o644;
const DIRECTORY_MODE: u32 = 0o755;

#[derive(Subcommand)]
pub enum Verb {
    /// Shows the authority by which TLS is read.
    Show,
    /// Prints its certificate, PEM, for clients to trust.
    Export,
    /// Writes it to files, alone and with the system's certificates, and prints the variables by which curl, Python,
    /// Node, Go, Ruby, git and Java find them, for a shell.
    Env(Env),
    /// Puts it into the trust store of this whole host.
    Install(Install),
    /// Takes it out of this host's trust store.
    Uninstall,
    /// Says which runtimes of this machine trust it, by asking with each for a URL that the gateway reads.
    Check(Check),
}

/// What `export` prints as JSON.
#[derive(Serialize)]
struct Exported<'a> {
    /// PEM.
    certificate: &'a str,
}

#[derive(Args)]
pub struct Env {
    /// Where the files go; made if it is not there.
    #[arg(long)]
    directory: PathBuf,
}

/// Does what was asked.
pub async fn run(client: &Client, output: Output, verb: Verb) -> Result<(), Failure> {
    // What is for a client's host, where there is no agent to ask.
    match verb {
        Verb::Check(check) => return check::run_all(output, check).await,
        Verb::Uninstall => return install::uninstall(output),
        Verb::Install(ref install) => {
            if let Some(authority) = install.read()? {
                return install::install(output, &authority);
            }
        }
        Verb::Show | Verb::Export | Verb::Env(_) => {}
    }
    let mut admin = client.connect().await?;
    let status: InterceptionStatus = client.document(admin.interception(Empty {}).await)?;
    match verb {
        Verb::Install(_) => install::install(output, trusted(&status)),
        Verb::Check(_) | Verb::Uninstall => Ok(()),
        Verb::Show if output == Output::Json => output::json(&status),
        Verb::Show => show(&status),
        Verb::Export if output == Output::Json => output::json(&Exported { certificate: trusted(&status) }),
        Verb::Export => output::line(trusted(&status).trim_end()),
        Verb::Env(Env { directory }) => {
            let mut all = variables(&directory, trusted(&status))?;
            all.extend(java_variable(&directory)?);
            if output == Output::Json {
                return output::json(&all.into_iter().collect::<BTreeMap<_, _>>());
            }
            for (name, value) in all {
                let value = value.replace('\'', r"'\''");
                output::line(&format!("export {name}='{value}'"))?;
            }
            Ok(())
        }
    }
}

/// The authority's certificate, if TLS is read.
pub async fn authority(client: &Client) -> Result<Option<InterceptionStatus>, Failure> {
    let mut admin = client.connect().await?;
    match admin.interception(Empty {}).await {
        Err(status) if status.code() == Code::NotFound => Ok(None),
        answer => client.document(answer).map(Some),
    }
}

/// What clients are to trust: the authority that was made here, or the topmost of those that its operator has brought. Below a root
/// most of them trust nothing, and those between come with each certificate of a host.
pub fn trusted(status: &InterceptionStatus) -> &str {
    status.chain.last().map_or("", String::as_str)
}

/// Writes the authority and the bundle with it, and returns the variables that name them.
pub fn variables(directory: &Path, authority: &str) -> Result<Vec<(&'static str, String)>, Failure> {
    let failed =
        |path: &Path, e: std::io::Error| Failure::Refused(format!("cannot write `{}`: {e}", path.display()));
    fs::create_dir_all(directory).map_err(|e| failed(directory, e))?;
    fs::set_permissions(directory, fs::Permissions::from_mode(DIRECTORY_MODE))
        .map_err(|e| failed(directory, e))?;
    let system = system().map(fs::read_to_string).transpose();
    let system =
        system.map_err(|e| Failure::Refused(format!("cannot read the system's certificates: {e}")))?;
    let bundle = format!("{}{authority}", system.unwrap_or_default());
    let write = |name: &str, text: &str| {
        let path = directory.join(name);
        let mut options = fs::OpenOptions::new();
        let file = options.write(true).create(true).truncate(true).mode(FILE_MODE).open(&path);
        let written = file.and_then(|mut file| {
            file.write_all(text.as_bytes())?;
            file.set_permissions(fs::Permissions::from_mode(FILE_MODE))
        });
        written.map_err(|e| failed(&path, e)).map(|()| path.display().to_string())
    };
    let (bundle, authority) = (write(BUNDLE, &bundle)?, write(AUTHORITY, authority)?);
    Ok(INSTEAD.map(|name| (name, bundle.clone())).into_iter().chain([(BESIDES, authority)]).collect())
}

/// The variable by which Java trusts what [`variables`] has written into `directory`; `None` where there is no Java. It takes
/// a second, since Java itself is asked.
pub fn java_variable(directory: &Path) -> Result<Option<(&'static str, String)>, Failure> {
    let store = java::store(directory, &directory.join(AUTHORITY))?;
    Ok(store.map(|value| (java::VARIABLE, value)))
}

/// The variables where there is no authority besides the system's.
pub fn system_variables() -> Vec<(&'static str, String)> {
    let Some(bundle) = system() else { return Vec::new() };
    INSTEAD.into_iter().chain([BESIDES]).map(|name| (name, bundle.display().to_string())).collect()
}

fn system() -> Option<&'static Path> {
    BUNDLES.iter().map(Path::new).find(|path| path.exists())
}

fn show(status: &InterceptionStatus) -> Result<(), Failure> {
    let made = if status.is_own { "made by this node" } else { "brought by its operator" };
    let line = |key: &str, value: &str| output::line(&format!("{key:<12} {}", output::clean(value)));
    line("authority", &status.subject)?;
    line("origin", made)?;
    line("until", &status.not_after.to_string())?;
    line("sha-256", &status.sha256)?;
    if !status.exclude.is_empty() {
        line("not read", &status.exclude.join(", "))?;
    }
    Ok(())
}
