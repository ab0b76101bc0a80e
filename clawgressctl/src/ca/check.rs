//! `ca check`: which runtimes of this machine take what the gateway shows them for a URL whose TLS it reads.
//!
//! Each is the runtime as it is, with the variables that this process has: what it says is what a command will meet.

use std::path::Path;
use std::process::{Output as Ended, Stdio};
use std::time::Duration;

use clap::Args;
use serde::Serialize;
use tokio::process::Command;
use tokio::time::timeout;

use crate::failure::Failure;
use crate::output::{self, Output};

/// For one runtime: the JVM compiles first.
const PATIENCE: Duration = Duration::from_secs(40);
/// Most bytes of what a runtime says that are shown.
const DETAIL_BYTES_MAX: usize = 160;

#[derive(Args)]
pub struct Check {
    /// A URL whose TLS the gateway reads: `https://HOST/PATH`.
    url: String,
    /// The explicit proxy's URL, for clients that are not led there by their route. Other users of this machine see it:
    /// set HTTPS_PROXY instead where it holds a key.
    #[arg(long)]
    proxy: Option<String>,
}

/// A runtime, and how it asks.
struct Runtime {
    name: &'static str,
    program: &'static str,
    /// Words before the URL.
    args: &'static [&'static str],
    /// What has to succeed for it to be there at all, if that is more than the program.
    present: Option<&'static [&'static str]>,
    /// What the script is called that stands in a file.
    script: Option<(&'static str, &'static str)>,
}

const PYTHON: &str = "import ssl, sys, urllib.request, urllib.error
try:
    print(urllib.request.urlopen(sys.argv[1], timeout=10).status)
except urllib.error.HTTPError as answer:
    print(answer.code)";
const REQUESTS: &str = "import requests, sys; print(requests.get(sys.argv[1], timeout=10).status_code)";
const HTTPX: &str = "import httpx, sys; print(httpx.get(sys.argv[1], timeout=10).status_code)";
/// By itself, `Net::HTTP` takes `http_proxy` for whatever it asks.
const RUBY: &str = "require 'net/http'; u = URI(ARGV[0]); via = u.find_proxy
puts Net::HTTP.start(u.host, u.port, via&.host, via&.port, via&.user, via&.password, use_ssl: true, open_timeout: 10) { |c| c.get(u.request_uri).code }";
/// Node's own `fetch` takes no proxy from variables in most of its versions.
const NODE: &str = "const http = require('http'), https = require('https');
const url = new URL(process.argv[1]), via = process.env.HTTPS_PROXY && new URL(process.env.HTTPS_PROXY);
const fail = error => { console.error(String(error.code), error.message); process.exit(1); };
const ask = more => https.get(url, { ...more, servername: url.hostname, timeout: 10000 }, answer => {
  console.log(answer.statusCode); process.exit(0); }).on('error', fail);
if (!via) ask({}); else {
  const to = `${url.hostname}:${url.port || 443}`, headers = { host: to };
  if (via.username) headers['proxy-authorization'] =
    'Basic ' + Buffer.from(decodeURIComponent(via.username) + ':' + decodeURIComponent(via.password)).toString('base64');
  http.request({ host: via.hostname, port: via.port, method: 'CONNECT', path: to, headers, timeout: 10000 })
    .on('connect', (answer, socket) => answer.statusCode == 200
      ? ask({ socket, agent: false }) : fail(new Error('the proxy answers ' + answer.statusCode)))
    .on('error', fail).end();
}";
const JAVA: &str = r#"import java.net.*;
public class Check {
  public static void main(String[] args) throws Exception {
    System.setProperty("jdk.http.auth.tunneling.disabledSchemes", "");
    String via = System.getenv("HTTPS_PROXY");
    Proxy proxy = Proxy.NO_PROXY;
    if (via != null && !via.isEmpty()) {
      URI uri = new URI(via);
      proxy = new Proxy(Proxy.Type.HTTP, new InetSocketAddress(uri.getHost(), uri.getPort()));
      if (uri.getUserInfo() != null) {
        String[] who = uri.getUserInfo().split(":", 2);
        Authenticator.setDefault(new Authenticator() {
          protected PasswordAuthentication getPasswordAuthentication() {
            return new PasswordAuthentication(who[0], who[1].toCharArray());
          }
        });
      }
    }
    HttpURLConnection asked = (HttpURLConnection) new URL(args[0]).openConnection(proxy);
    asked.setConnectTimeout(10000);
    asked.setReadTimeout(10000);
    System.out.println(asked.getResponseCode());
  }
}
"#;
const GO: &str = r#"package main

import ("fmt"; "net/http"; "os"; "time")

func main() {
	client := http.Client{Timeout: 10 * time.Second}
	answer, err := client.Get(os.Args[1])
	if err != nil { fmt.Fprintln(os.Stderr, err); os.Exit(1) }
	fmt.Println(answer.StatusCode)
}
"#;

const RUNTIMES: [Runtime; 10] = [
    Runtime::new("curl", "curl", &["-sS", "-o", "/dev/null", "-w", "%{http_code}", "--max-time", "10"]),
    Runtime::new("wget", "wget", &["-nv", "-O", "/dev/null", "-T", "10", "-t", "1"]),
    Runtime::new("git", "git", &["ls-remote"]),
    Runtime::new("python", "python3", &["-c", PYTHON]),
    Runtime::new("python requests", "python3", &["-c", REQUESTS]).where_runs(&["-c", "import requests"]),
    Runtime::new("python httpx", "python3", &["-c", HTTPX]).where_runs(&["-c", "import httpx"]),
    Runtime::new("node", "node", &["-e", NODE]),
    Runtime::new("ruby", "ruby", &["-e", RUBY]),
    Runtime::new("java", "java", &[]).where_runs(&["--list-modules"]).by_file("Check.java", JAVA),
    Runtime::new("go", "go", &["run"]).by_file("check.go", GO),
];

/// What runtimes say of a certificate that they don't take.
const DISTRUSTS: [&str; 12] = [
    "certificate verif",
    "certificate problem",
    "server certificate",
    "cert_",
    "self_signed",
    "self-signed",
    "unable_to_",
    "unable to get local issuer",
    "pkix path",
    "x509:",
    "certificate signed by unknown authority",
    "is not trusted",
];

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Trust {
    /// It took the certificate.
    Trusts,
    /// It did not.
    Distrusts,
    /// Nothing came of it that tells.
    Unknown,
    /// It is not on this machine.
    Absent,
}

#[derive(Serialize)]
struct Found {
    runtime: &'static str,
    result: Trust,
    #[serde(skip_serializing_if = "String::is_empty")]
    detail: String,
}

// === impl Runtime ===

impl Runtime {
    const fn new(name: &'static str, program: &'static str, args: &'static [&'static str]) -> Self {
        Runtime { name, program, args, present: None, script: None }
    }

    const fn where_runs(self, args: &'static [&'static str]) -> Self {
        Runtime { present: Some(args), ..self }
    }

    const fn by_file(self, name: &'static str, text: &'static str) -> Self {
        Runtime { script: Some((name, text)), ..self }
    }

    async fn ask(&self, check: &Check, directory: &Path) -> Result<Found, Failure> {
        let found = |result, detail| Ok(Found { runtime: self.name, result, detail });
        if let Some(args) = self.present {
            match run(self.command(args, check, directory)).await {
                Some(Some(ended)) if ended.status.success() => {}
                _ => return found(Trust::Absent, String::new()),
            }
        }
        let mut command = self.command(self.args, check, directory);
        if let Some((name, text)) = self.script {
            let path = directory.join(name);
            let written = std::fs::write(&path, text);
            written.map_err(|e| Failure::Refused(format!("cannot write `{}`: {e}", path.display())))?;
            command.arg(path);
        }
        command.arg(&check.url);
        match run(command).await {
            None => found(Trust::Absent, String::new()),
            Some(None) => found(Trust::Unknown, format!("no answer within {} s", PATIENCE.as_secs())),
            Some(Some(ended)) => {
                let (result, detail) = judge(self.program, &ended);
                found(result, detail)
            }
        }
    }

    /// In a directory of its own: some runtimes load what lies where they are started, which is somebody else's.
    fn command(&self, args: &[&str], check: &Check, directory: &Path) -> Command {
        let mut command = Command::new(self.program);
        command.args(args).current_dir(directory).stdin(Stdio::null()).kill_on_drop(true);
        command.env("GIT_TERMINAL_PROMPT", "0").env("LC_ALL", "C");
        for name in check.proxy.iter().flat_map(|_| ["HTTPS_PROXY", "https_proxy"]) {
            command.env(name, check.proxy.as_deref().unwrap_or_default());
        }
        command
    }
}

/// How it ended, if it did in time; `None` if it can't be started.
async fn run(mut command: Command) -> Option<Option<Ended>> {
    match timeout(PATIENCE, command.output()).await {
        Ok(ended) => ended.ok().map(Some),
        // Killed as it is dropped.
        Err(_) => Some(None),
    }
}

/// What a runtime's end says. One that answers, whatever it got, or that fails at something behind TLS, has taken the
/// certificate.
fn judge(program: &str, ended: &Ended) -> (Trust, String) {
    let said = String::from_utf8_lossy(&ended.stderr);
    let lower = said.to_lowercase();
    let detail = || {
        let line = said.lines().map(str::trim).rfind(|line| !line.is_empty()).unwrap_or_default();
        line.chars().take(DETAIL_BYTES_MAX).collect()
    };
    let answered = match (program, ended.status.code()) {
        (_, Some(0)) => true,
        // The server answered with an error.
        ("wget", Some(8)) => true,
        // It got as far as to an answer, which is no repository's.
        ("git", Some(128)) => {
            ["not found", "returned error", "not valid"].iter().any(|words| lower.contains(words))
        }
        _ => false,
    };
    if answered {
        return (Trust::Trusts, String::from_utf8_lossy(&ended.stdout).trim().chars().take(3).collect());
    }
    if DISTRUSTS.iter().any(|words| lower.contains(words)) {
        return (Trust::Distrusts, detail());
    }
    (Trust::Unknown, detail())
}

/// Whose signature the certificate has that a client is shown, whether it trusts it or not: as curl tells it. What is trusted
/// may be the server's own, where the gateway does not read it.
async fn signer(check: &Check, directory: &Path) -> Option<String> {
    let args = ["-sS", "-v", "-k", "-o", "/dev/null", "--max-time", "10"];
    let curl = Runtime::new("curl", "curl", &[]);
    let mut command = curl.command(&args, check, directory);
    command.arg(&check.url);
    issuer(&String::from_utf8_lossy(&run(command).await??.stderr))
}

/// The issuer of the last certificate that curl tells of: a proxy over TLS has one of its own, before.
fn issuer(said: &str) -> Option<String> {
    let told = |line: &str| {
        let issuer = line.trim_start_matches(['*', ' ', '\t']).strip_prefix("issuer:")?;
        Some(issuer.trim().chars().take(DETAIL_BYTES_MAX).collect())
    };
    said.lines().rev().find_map(told)
}

/// Asks each runtime, one after the other.
pub async fn run_all(output: Output, check: Check) -> Result<(), Failure> {
    if !check.url.starts_with("https://") {
        return Err(Failure::Refused(format!(
            "`{}` is not an `https://` URL that the gateway reads",
            check.url
        )));
    }
    let directory = tempfile::Builder::new().prefix("clawgress-check-").tempdir();
    let directory = directory.map_err(|e| Failure::Refused(format!("cannot make a directory: {e}")))?;
    let mut all = Vec::with_capacity(RUNTIMES.len());
    for runtime in &RUNTIMES {
        if output == Output::Table {
            output::note(&format!("asking {} ...", runtime.name));
        }
        all.push(runtime.ask(&check, directory.path()).await?);
    }
    match output {
        Output::Json => output::json(&all)?,
        Output::Table => {
            let rows: Vec<Vec<String>> = all.iter().map(Found::row).collect();
            output::table(&["RUNTIME", "", "SAYS"], &rows)?;
        }
    }
    match signer(&check, directory.path()).await {
        Some(issuer) => output::note(&format!(
            "note: the certificate that clients are shown is signed by `{}`: if that is not the gateway's authority (`clawgressctl ca show`), it is not read",
            output::clean(&issuer)
        )),
        None => output::note("note: whose certificate clients are shown can't be told without curl"),
    }
    let of = |result| all.iter().filter(move |found| found.result == result).map(|found| found.runtime);
    let distrusting: Vec<_> = of(Trust::Distrusts).collect();
    if !distrusting.is_empty() {
        return Err(Failure::Refused(format!(
            "not trusted by {}: use `clawgressctl ca install` for the whole host, or the variables of `clawgressctl ca env`",
            distrusting.join(", ")
        )));
    }
    if of(Trust::Trusts).next().is_none() {
        return Err(Failure::Refused(
            "no runtime got an answer: check the URL, the route or --proxy, and the policy".to_owned(),
        ));
    }
    Ok(())
}

// === impl Found ===

impl Found {
    fn row(&self) -> Vec<String> {
        let result = match self.result {
            Trust::Trusts => "trusts",
            Trust::Distrusts => "does not trust",
            Trust::Unknown => "no answer",
            Trust::Absent => "not here",
        };
        vec![self.runtime.to_owned(), result.to_owned(), self.detail.clone()]
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt as _;
    use std::process::ExitStatus;

    use super::*;

    /// Program, exit code, what it said, and what that means.
    const SAID: &[(&str, i32, &str, Trust)] = &[
        ("curl", 0, "", Trust::Trusts),
        (
            "curl",
            60,
            "curl: (60) SSL certificate problem: unable to get local issuer certificate",
            Trust::Distrusts,
        ),
        ("curl", 56, "curl: (56) CONNECT tunnel failed, response 407", Trust::Unknown),
        ("wget", 5, "ERROR: The certificate of 'a.test' is not trusted.", Trust::Distrusts),
        ("wget", 8, "ERROR 403: Forbidden.", Trust::Trusts),
        (
            "git",
            128,
            "fatal: unable to access 'https://a.test/': server certificate verification failed. CAfile: none CRLfile: none",
            Trust::Distrusts,
        ),
        ("git", 128, "fatal: repository 'https://a.test/' not found", Trust::Trusts),
        (
            "git",
            128,
            "fatal: unable to access 'https://a.test/': The requested URL returned error: 403",
            Trust::Trusts,
        ),
        ("git", 128, "fatal: https://a.test/info/refs not valid: is this a git repository?", Trust::Trusts),
        (
            "git",
            128,
            "fatal: unable to access 'https://a.test/': Could not resolve host: a.test",
            Trust::Unknown,
        ),
        (
            "python3",
            1,
            "ssl.SSLCertVerificationError: [SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: unable to get local issuer certificate (_ssl.c:992)",
            Trust::Distrusts,
        ),
        (
            "node",
            1,
            "UNABLE_TO_VERIFY_LEAF_SIGNATURE unable to verify the first certificate",
            Trust::Distrusts,
        ),
        (
            "node",
            1,
            "SELF_SIGNED_CERT_IN_CHAIN self-signed certificate in certificate chain",
            Trust::Distrusts,
        ),
        (
            "java",
            1,
            "javax.net.ssl.SSLHandshakeException: PKIX path building failed: unable to find valid certification path",
            Trust::Distrusts,
        ),
        (
            "go",
            1,
            "Get \"https://a.test/\": tls: failed to verify certificate: x509: certificate signed by unknown authority",
            Trust::Distrusts,
        ),
        (
            "ruby",
            1,
            "SSL_connect returned=1 errno=0 state=error: certificate verify failed (unable to get local issuer certificate)",
            Trust::Distrusts,
        ),
        ("ruby", 1, "Failed to open TCP connection", Trust::Unknown),
    ];

    #[test]
    fn whose_certificate_it_was_is_told() {
        let openssl = "* Server certificate:\n*  subject: CN=a.test\n*  issuer: CN=Clawgress gw\n*  SSL certificate verify result: self-signed (18)\n";
        let gnutls = "*   server certificate verification SKIPPED\n* \t subject: CN=a.test\n*\t issuer: O=Some,CN=Root\n";
        assert_eq!(issuer(openssl).as_deref(), Some("CN=Clawgress gw"));
        assert_eq!(issuer(gnutls).as_deref(), Some("O=Some,CN=Root"));
        assert_eq!(
            issuer(&format!("* Proxy certificate:\n*  issuer: CN=proxy\n{openssl}")).as_deref(),
            Some("CN=Clawgress gw")
        );
        assert_eq!(issuer("< issuer: x\n{\"issuer: y\"}"), None);
        assert_eq!(issuer("* Could not resolve host"), None);
    }

    #[test]
    fn what_runtimes_say_is_understood() {
        let ended = |code: i32, said: &str| Ended {
            status: ExitStatus::from_raw(code << 8),
            stdout: b"403".to_vec(),
            stderr: said.as_bytes().to_vec(),
        };
        for (program, code, said, result) in SAID {
            assert_eq!(judge(program, &ended(*code, said)).0, *result, "{program}: {said}");
        }
    }
}
