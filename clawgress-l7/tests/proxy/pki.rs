//! Authorities, certificates and revocation lists, made by the `openssl` command.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

/// Seconds from now at which certificates begin and end to be valid, unless a test says otherwise.
const FROM_S: i64 = -3600;
const UNTIL_S: i64 = 86_400;

/// An authority with its database.
#[derive(Debug)]
pub struct Authority {
    directory: TempDir,
}

/// What a certificate is to be.
#[derive(Clone, Debug)]
pub struct Wanted<'a> {
    /// `subjectAltName`.
    pub names: &'a str,
    /// `extendedKeyUsage`.
    pub usage: &'a str,
    pub from_s: i64,
    pub until_s: i64,
    /// More extensions.
    pub more: &'a str,
}

/// A certificate, with those above it that are to be sent, and its key.
#[derive(Clone, Debug)]
pub struct Pair {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

fn openssl(directory: &Path, arguments: &[&str]) {
    let output = Command::new("openssl").args(arguments).current_dir(directory).output().expect("openssl");
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A time as the command takes it.
fn time(in_s: i64) -> String {
    let at = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(in_s);
    at.strftime("%Y%m%d%H%M%SZ").to_string()
}

/// Of the command; more extensions of an authority go to its end.
const CONFIG: &str = "
[req]
distinguished_name = nobody
[nobody]
[ca]
default_ca = own
[own]
crlnumber = crlnumber
crl_extensions = list
database = index.txt
serial = serial
new_certs_dir = .
certificate = ca.pem
private_key = ca.key
default_md = sha256
policy = any
unique_subject = no
rand_serial = yes
[any]
commonName = supplied
[list]
authorityKeyIdentifier = keyid
[authority]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
";

impl Default for Wanted<'_> {
    fn default() -> Self {
        Wanted {
            names: "DNS:web.agents.test",
            usage: "clientAuth",
            from_s: FROM_S,
            until_s: UNTIL_S,
            more: "",
        }
    }
}

impl Authority {
    fn empty() -> Authority {
        let directory = tempfile::tempdir().expect("directory");
        fs::write(directory.path().join("openssl.cnf"), CONFIG).expect("config");
        fs::write(directory.path().join("index.txt"), "").expect("database");
        fs::write(directory.path().join("crlnumber"), "01\n").expect("database");
        Authority { directory }
    }

    /// One that signs itself.
    pub fn new(name: &str) -> Authority {
        Authority::with(name, "")
    }

    /// One with more extensions.
    pub fn with(name: &str, more: &str) -> Authority {
        let ca = Authority::empty();
        let config = format!("{CONFIG}{more}\n");
        fs::write(ca.directory.path().join("openssl.cnf"), config).expect("config");
        ca.run(&[
            "req",
            "-x509",
            "-config",
            "openssl.cnf",
            "-extensions",
            "authority",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-keyout",
            "ca.key",
            "-out",
            "ca.pem",
            "-days",
            "2",
            "-subj",
            &format!("/CN={name}"),
        ]);
        ca
    }

    /// One below this.
    pub fn below(&self, name: &str) -> Authority {
        self.below_with(name, "")
    }

    /// One below this, with more extensions than an authority has.
    pub fn below_with(&self, name: &str, more: &str) -> Authority {
        let ca = Authority::empty();
        ca.request("ca", name);
        fs::write(self.path("below.cnf"), format!("{CONFIG}{more}\n")).expect("config");
        let request = ca.path("ca.csr");
        self.run(&[
            "ca",
            "-batch",
            "-notext",
            "-config",
            "below.cnf",
            "-extensions",
            "authority",
            "-days",
            "2",
            "-in",
            request.to_str().expect("path"),
            "-out",
            ca.path("ca.pem").to_str().expect("path"),
        ]);
        ca
    }

    fn run(&self, arguments: &[&str]) {
        openssl(self.directory.path(), arguments);
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn request(&self, file: &str, name: &str) {
        self.run(&[
            "req",
            "-new",
            "-config",
            "openssl.cnf",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-keyout",
            &format!("{file}.key"),
            "-out",
            &format!("{file}.csr"),
            "-subj",
            &format!("/CN={name}"),
        ]);
    }

    /// Its certificate, PEM.
    pub fn pem(&self) -> String {
        fs::read_to_string(self.path("ca.pem")).expect("certificate")
    }

    /// Where that is.
    pub fn file(&self) -> PathBuf {
        self.path("ca.pem")
    }

    /// A certificate in files of this name.
    pub fn issue(&self, file: &str, wanted: &Wanted<'_>) -> Pair {
        let Wanted { names, usage, from_s, until_s, more } = wanted;
        self.request(file, file);
        let extensions = format!(
            "keyUsage = critical, digitalSignature\nextendedKeyUsage = {usage}\nsubjectAltName = {names}\n{more}\n"
        );
        fs::write(self.path(&format!("{file}.ext")), extensions).expect("extensions");
        self.run(&[
            "ca",
            "-batch",
            "-notext",
            "-config",
            "openssl.cnf",
            "-extfile",
            &format!("{file}.ext"),
            "-startdate",
            &time(*from_s),
            "-enddate",
            &time(*until_s),
            "-in",
            &format!("{file}.csr"),
            "-out",
            &format!("{file}.pem"),
        ]);
        Pair { certificate: self.path(&format!("{file}.pem")), key: self.path(&format!("{file}.key")) }
    }

    /// Takes one back; lists say so from now on.
    pub fn revoke(&self, pair: &Pair) {
        let certificate = pair.certificate.to_str().expect("path");
        self.run(&["ca", "-config", "openssl.cnf", "-revoke", certificate]);
    }

    /// A revocation list of now, PEM, that is followed by another in some seconds, or was to be.
    pub fn list(&self, next_s: i64) -> String {
        let (last, next) = (time(next_s.min(0) - 60), time(next_s));
        self.run(&[
            "ca",
            "-config",
            "openssl.cnf",
            "-gencrl",
            "-crl_lastupdate",
            &last,
            "-crl_nextupdate",
            &next,
            "-out",
            "list.pem",
        ]);
        fs::read_to_string(self.path("list.pem")).expect("list")
    }
}

impl Pair {
    /// The same with more certificates to be sent.
    pub fn with(&self, more: &[String]) -> Pair {
        let own = fs::read_to_string(&self.certificate).expect("certificate");
        let certificate = self.certificate.with_extension("chain.pem");
        fs::write(&certificate, own + &more.concat()).expect("chain");
        Pair { certificate, key: self.key.clone() }
    }
}
