//! TLS that is read, by clients as they are: each with the variable it knows, by its route and by the proxy.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::Path;

use clawgress_api::{Ingress, RecordKind, Verdict};
use clawgress_e2e::clients;
use clawgress_e2e::lab::{GatewayOptions, Host, Lab, Output, program};
use clawgress_e2e::plan::{LLM, WEB};
use clawgress_e2e::scenario::{ASSISTANT, CRAWLER, POLICY, SETS, Site};

use crate::certificates::give;
use crate::pki;
use crate::support::{agent, codes, curl, finish, pair, proxy, record, to_host};

/// What is read besides: one host since it is no tunnel, another by the effect.
const READ: &str = r#"
@id("read-web") permit (principal in Team::"research", action == Action::"tls", resource == Host::"web.allowed.test");
@id("read-llm") @effect("intercept") permit (principal, action == Action::"tunnel", resource == Host::"llm.allowed.test");
@id("read-six") @effect("intercept") permit (principal, action == Action::"tunnel", resource == Host::"six.allowed.test");
@id("whose") @effect("transform") @set_header("X-Cost-Centre: lab") permit (principal, action == Action::"http", resource);
"#;

/// A site that reads, and variables by which clients find its authority.
pub struct Reading {
    pub site: Site,
    pub authority: String,
    pub variables: Vec<String>,
}

impl Reading {
    fn start() -> Reading {
        Reading::of(READ)
    }

    /// As policy has it with `more`.
    pub fn of(more: &str) -> Reading {
        Reading::by(more, |_| String::new())
    }

    /// By an authority that its operator brings, with that of all that clients know.
    fn brought(more: &str) -> Reading {
        let (root, mut trusted) = (pki::Authority::new("corporate root"), String::new());
        let within = "nameConstraints = critical, permitted;DNS:allowed.test, excluded;DNS:llm.allowed.test";
        let own = root.below_with("corporate intermediate", within);
        let mut reading = Reading::by(more, |dir| {
            let path = |name: &str| dir.join(name);
            fs::write(path("intercept-ca.pem"), own.pem() + &root.pem()).unwrap();
            give(&own.file().with_file_name("ca.key"), &path("intercept-ca.key"), "bin");
            fs::write(path("corporate-root.pem"), root.pem()).unwrap();
            trusted = path("corporate-root.pem").display().to_string();
            let (certificate, key) = (path("intercept-ca.pem"), path("intercept-ca.key"));
            format!("certificate = \"{}\"\nkey = \"{}\"\n", certificate.display(), key.display())
        });
        reading.authority = trusted;
        reading
    }

    /// With more in its table, which may name files of the lab's directory.
    fn by(more: &str, table: impl FnOnce(&Path) -> String) -> Reading {
        let lab = Lab::builder().start().unwrap();
        let (roots, table) = (lab.ca().display().to_string(), table(lab.dir()));
        let tables = format!("[intercept]\nroots = [\"{roots}\"]\nexclude = [\"six.allowed.test\"]\n{table}");
        let options = GatewayOptions { more: tables, units: true, ..GatewayOptions::default() };
        let mut site = Site::start(lab, options).unwrap();
        site.gateway.apply_policy(&format!("{POLICY}{more}"), SETS).unwrap();
        let trust = site.gateway.lab.dir().join("trust").display().to_string();
        let printed =
            site.gateway.ctl(&["ca", "env", "--directory", &trust]).unwrap().check().unwrap().stdout;
        let variable = |line: &str| line.strip_prefix("export ").unwrap().replace('\'', "");
        let variables = printed.lines().map(variable).collect();
        Reading { site, authority: format!("{trust}/authority.pem"), variables }
    }

    /// `curl` that trusts the gateway's authority.
    fn curl(&self, host: Host, args: &[&str]) -> Output {
        let args: Vec<&str> = ["--cacert", &self.authority].into_iter().chain(args.iter().copied()).collect();
        curl(&self.site, host, &args)
    }

    /// A client with the variables, and more of them.
    pub fn run(&self, host: Host, more: &[String], args: &[&str]) -> Output {
        let variables = self.variables.iter().chain(more).map(String::as_str);
        let argv: Vec<&str> = ["env"].into_iter().chain(variables).chain(args.iter().copied()).collect();
        self.site.gateway.lab.run(host, &argv).unwrap()
    }
}

#[test]
fn requests_inside_tls_are_judged_by_route_and_by_proxy() {
    let reading = Reading::brought(READ);
    let site = &reading.site;
    let url = proxy(ASSISTANT, &site.assistant_key);
    for (host, who, ingress, via) in [
        (Host::Known, CRAWLER, Ingress::Transparent, vec![]),
        (Host::Anon, ASSISTANT, Ingress::Proxy, vec!["-x", &url]),
    ] {
        let ask = |to: &str, more: &[&str]| {
            let args: Vec<&str> = via.iter().chain(more).copied().chain([to]).collect();
            reading.curl(host, &args)
        };
        let allowed = ask("https://web.allowed.test/public/page", &[]);
        assert_eq!(codes(&allowed).0, 200, "{allowed:?}");
        let denied = ask("https://web.allowed.test/private", &[]);
        assert_eq!(codes(&denied).0, 403, "{denied:?}");
        assert!(denied.stdout.contains("policy_denied"), "{denied:?}");
        let other = ask("https://web.allowed.test/public/page", &["-H", "Host: api.allowed.test"]);
        assert_eq!(codes(&other).0, 421, "{other:?}");
        let (decision, outcome) = pair(site, "the page", |r| {
            agent(r) == Some(who) && r.destination.path.as_deref() == Some("/public/page")
        });
        assert!(decision.intercepted && to_host(&decision, WEB), "{decision:?}");
        assert_eq!((decision.ingress, decision.verdict), (Some(ingress), Some(Verdict::Allow)));
        assert_eq!((decision.action.as_deref(), outcome.status), (Some("http"), Some(200)));
        assert!(decision.effects.iter().any(|e| e.effect == "transform"), "{decision:?}");
        let tls =
            |r: &clawgress_api::AuditRecord| r.action.as_deref() == Some("tls") && agent(r) == Some(who);
        let (opened, _) = pair(site, "the connection", tls);
        assert!(opened.intercepted && to_host(&opened, WEB), "{opened:?}");
    }
    let seen = site.gateway.lab.world().unwrap().requests;
    let web: Vec<_> = seen.iter().filter(|r| r.host == WEB).collect();
    assert!(web.len() == 2 && web.iter().all(|r| r.tls && r.target == "/public/page"), "{seen:?}");
    assert!(web.iter().all(|r| r.headers.get("x-cost-centre").is_some_and(|v| v == "lab")), "{seen:?}");
    // An excluded host is a tunnel, by its server's own certificate, whatever the effect says.
    let six = curl(site, Host::Known, &["https://six.allowed.test/"]);
    assert_eq!(codes(&six).0, 200, "{six:?}");
    // A client without the authority ends the handshake, and that is told.
    let stranger = curl(site, Host::Known, &["https://web.allowed.test/public/page"]);
    assert!(!stranger.ok() && codes(&stranger).0 == 0, "{stranger:?}");
    let distrusted = |r: &clawgress_api::AuditRecord| {
        r.kind == RecordKind::Outcome && r.reason.is_some_and(|r| r.name() == "authority_distrusted")
    };
    record(site, "the distrust", distrusted);
    let explained = site.gateway.ctl(&["policy", "explain", CRAWLER, "https://web.allowed.test/private"]);
    let explained = explained.unwrap();
    assert!(explained.stdout.contains("http: deny (policy_denied)"), "{explained:?}");
    an_authority_of_ones_own_stays_within_its_names(&reading);
    finish(reading.site);
}

/// What clients see of one that its operator brought: its own certificate behind the leaf, by which they find the root; and nothing
/// for a name that its own names leave out.
#[track_caller]
fn an_authority_of_ones_own_stays_within_its_names(reading: &Reading) {
    let site = &reading.site;
    let script = "openssl s_client -connect web.allowed.test:443 -servername web.allowed.test -showcerts -CAfile \"$0\" < /dev/null";
    let shown = site.gateway.lab.run(Host::Known, &["bash", "-c", script, &reading.authority]).unwrap();
    assert!(shown.stdout.contains("Verify return code: 0 (ok)"), "{shown:?}");
    assert!(
        shown.stdout.contains("1 s:CN = corporate intermediate\n   i:CN = corporate root\n"),
        "{shown:?}"
    );
    assert_eq!(shown.stdout.matches("BEGIN CERTIFICATE").count(), 2, "{shown:?}");
    let llm = reading.curl(Host::Known, &["https://llm.allowed.test/"]);
    assert!(!llm.ok() && codes(&llm).0 == 0, "{llm:?}");
    let unavailable = |r: &clawgress_api::AuditRecord| {
        to_host(r, LLM) && r.reason.is_some_and(|r| r.name() == "interception_unavailable")
    };
    record(site, "the name that is left out", unavailable);
    // By the trust kit: it tells clients of the root, as most of them trust nothing that is below one.
    let urllib = "import sys, urllib.request; print(urllib.request.urlopen(sys.argv[1], timeout=8).status)";
    let page = "https://web.allowed.test/public/own";
    let output = reading.run(Host::Known, &[], &["python3", "-c", urllib, page]);
    assert_eq!(output.stdout.trim(), "200", "{output:?}");
    let root = fs::read_to_string(&reading.authority).unwrap();
    assert_eq!(site.gateway.ctl(&["ca", "export"]).unwrap().check().unwrap().stdout, root);
    let shown = site.gateway.ctl(&["ca", "show"]).unwrap().check().unwrap().stdout;
    assert!(shown.contains("brought by its operator") && shown.contains("corporate intermediate"), "{shown}");
}

/// A command under `clawgressctl run`, which no variable of whoever runs this reaches.
fn governed(site: &Site, args: &[&str]) -> Output {
    let ctl = site.gateway.admin().unwrap().command(&[&["run", "--agent", CRAWLER, "--"], args].concat());
    let mut argv: Vec<OsString> = vec!["env".into()];
    for name in ["SSL_CERT_FILE", "SSL_CERT_DIR", "CURL_CA_BUNDLE", "NODE_EXTRA_CA_CERTS"] {
        argv.extend(["-u".into(), name.into()]);
    }
    for (name, value) in ctl.get_envs() {
        argv.push([name, value.unwrap_or_default()].join(OsStr::new("=")));
    }
    argv.push(ctl.get_program().to_owned());
    argv.extend(ctl.get_args().map(ToOwned::to_owned));
    site.gateway.lab.run(Host::Gateway, &argv).unwrap()
}

#[test]
fn clients_trust_the_authority_by_the_variables_they_know() {
    let reading = Reading::start();
    let site = &reading.site;
    let proxied = format!("HTTPS_PROXY={}", proxy(ASSISTANT, &site.assistant_key));
    let python = clients::python().unwrap();
    let python = python.to_str().unwrap();
    let node = "fetch(process.argv[1]).then(async r => console.log(r.status, (await r.text()).length > 0))";
    let page = "https://web.allowed.test/public/node";
    let output = reading.run(Host::Known, &[], &["node", "-e", node, page]);
    assert_eq!(output.stdout.trim(), "200 true", "{output:?}");
    let plain = "import requests, sys; print(requests.get(sys.argv[1], timeout=8).status_code)";
    let output = reading.run(Host::Anon, std::slice::from_ref(&proxied), &[python, "-c", plain, page]);
    assert_eq!(output.stdout.trim(), "200", "{output:?}");
    let stream = r"
import sys
from openai import OpenAI
client = OpenAI(base_url=sys.argv[1], api_key='sk-of-the-server', max_retries=0, timeout=10)
text = ''
for chunk in client.chat.completions.create(
    model='mock-1', stream=True, stream_options={'include_usage': True}, messages=[{'role': 'user', 'content': 'What?'}],
):
    if chunk.choices and chunk.choices[0].delta.content:
        text += chunk.choices[0].delta.content
print(text)
";
    let base = format!("https://{LLM}/v1");
    let output = reading.run(Host::Known, &[], &[python, "-c", stream, &base]);
    assert_eq!(output.stdout.trim(), "Egress is governed by one policy.", "{output:?}");
    let (decision, outcome) = pair(site, "the completion", |r| {
        to_host(r, LLM) && r.destination.path.as_deref() == Some("/v1/chat/completions")
    });
    assert!(decision.intercepted && agent(&decision) == Some(CRAWLER), "{decision:?}");
    let tokens = outcome.tokens.unwrap();
    assert_eq!((tokens.input, tokens.output), (11, 7));
    // A command of this machine is told by `run`, and so is all that it starts.
    let tree = r#"echo "$SSL_CERT_FILE"; sh -c 'curl -sS --max-time 8 -o /dev/null -w "%{http_code} " "$0"; exec python3 -c "$1" "$0"' "$@""#;
    let urllib = "import sys, urllib.request; print(urllib.request.urlopen(sys.argv[1], timeout=8).status)";
    let local = "https://web.allowed.test/public/run";
    let output = governed(site, &["bash", "-c", tree, "tree", local, urllib]);
    let said: Vec<&str> = output.stdout.lines().collect();
    assert!(matches!(said[..], [_, "200 200"]), "{output:?}");
    let bundle = Path::new(said[0]);
    assert!(said[0].ends_with("/bundle.pem") && !bundle.exists(), "it ends with the command: {output:?}");
    let output = governed(site, &["sh", "-c", "exec node -e \"$0\" \"$1\"", node, local]);
    assert_eq!(output.stdout.trim(), "200 true", "{output:?}");
    let (decision, _) = pair(site, "the command", |r| r.destination.path.as_deref() == Some("/public/run"));
    assert!(decision.intercepted && agent(&decision) == Some(CRAWLER), "{decision:?}");
    let shown = site.gateway.ctl(&["ca", "show"]).unwrap().check().unwrap().stdout;
    assert!(shown.contains("made by this node") && shown.contains("six.allowed.test"), "{shown}");
    let exported = site.gateway.ctl(&["ca", "export"]).unwrap().check().unwrap().stdout;
    assert_eq!(exported, fs::read_to_string(&reading.authority).unwrap());
    finish(reading.site);
}

/// What each runtime says, by `clawgressctl ca check` on the known host.
fn checked(output: &Output) -> std::collections::BTreeMap<String, String> {
    let all: serde_json::Value =
        serde_json::from_str(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"));
    let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
    all.as_array().unwrap().iter().map(|found| (text(&found["runtime"]), text(&found["result"]))).collect()
}

#[test]
fn the_trust_kit_says_who_trusts_and_makes_the_host_trust() {
    let reading = Reading::start();
    let site = &reading.site;
    let ctl = program("clawgressctl").unwrap().display().to_string();
    let page = "https://web.allowed.test/public/checked";
    let check = [&*ctl, "-o", "json", "ca", "check", page];
    // As it is: every runtime is here, and none trusts.
    let before = site.gateway.lab.run(Host::Known, &check).unwrap();
    let said = checked(&before);
    for runtime in ["curl", "python", "node", "ruby", "git"] {
        assert_eq!(said[runtime], "distrusts", "{runtime}: {before:?}");
    }
    // Too large to be installed for this: where it is, it is tried.
    assert!(matches!(&*said["go"], "distrusts" | "absent"), "{before:?}");
    assert!(before.code == Some(1) && before.stderr.contains("not trusted by curl"), "{before:?}");
    // By the variables.
    let after = reading.run(Host::Known, &[], &check);
    let said = checked(&after);
    for runtime in ["curl", "python", "node", "ruby", "git"] {
        assert_eq!(said[runtime], "trusts", "{runtime}: {after:?}");
    }
    for runtime in ["java", "go"] {
        assert!(matches!(&*said[runtime], "trusts" | "absent"), "{runtime}: {after:?}");
    }
    println!("Java {}, Go {}", said["java"], said["go"]);
    // By the explicit proxy, as another agent.
    let own = proxy(ASSISTANT, &site.assistant_key);
    let proxied = reading.run(Host::Anon, &[], &[&check[..], &["--proxy", &own]].concat());
    let said = checked(&proxied);
    for runtime in ["curl", "python", "node", "ruby"] {
        assert_eq!(said[runtime], "trusts", "{runtime}: {proxied:?}");
    }
    assert!(matches!(&*said["go"], "trusts" | "absent"), "{proxied:?}");
    // By the store of the host, which is this machine's own but for a copy of its certificates.
    let scratch = site.gateway.lab.dir().join("store").display().to_string();
    let script = format!(
        "set -e; mkdir -p {scratch}/more; cp -a /etc/ssl {scratch}/ssl; mount --bind {scratch}/ssl /etc/ssl; \
         mkdir -p /usr/local/share/ca-certificates; mount --bind {scratch}/more /usr/local/share/ca-certificates; \
         {ctl} ca install --certificate {authority} >&2; {ctl} ca install --certificate {authority} >&2; \
         curl -s -o /dev/null -w '%{{http_code}} ' --max-time 8 {page}; \
         python3 -c 'import sys, urllib.request; print(urllib.request.urlopen(sys.argv[1], timeout=8).status)' {page}; \
         {ctl} ca uninstall >&2; {ctl} ca uninstall >&2; ! curl -s -o /dev/null --max-time 8 {page}",
        authority = reading.authority
    );
    let installed = site.gateway.lab.run(Host::Known, &["unshare", "-m", "bash", "-c", &script]).unwrap();
    assert_eq!(installed.stdout.trim(), "200 200", "{installed:?}");
    assert!(installed.ok() && installed.stderr.contains("is there already"), "{installed:?}");
    finish(reading.site);
}
