//! Clients as people's agents have them, by the route and by the explicit proxy, of what is read and of what is not: each told
//! of the gateway's authority by the trust kit's variables, and of nothing else.

use std::fs;
use std::path::Path;

use clawgress_api::{AuditQuery, Ingress, RecordKind, Verdict};
use clawgress_e2e::clients;
use clawgress_e2e::lab::{Daemon, Host, Output, Role};
use clawgress_e2e::plan::{API, TWO, addresses};
use clawgress_e2e::scenario::{ASSISTANT, CRAWLER, POLICY, SETS, Site};
use clawgress_e2e::world;

use crate::floods::resident;
use crate::interception::Reading;
use crate::support::{admin, agent, curl, finish, proxy, record, to_host};

/// One host more, all of which is read, at the port of WebSockets too.
pub const READ: &str = r#"
@id("reach-8443") permit (principal in Team::"research", action == Action::"connect", resource in NetworkSet::"web")
when { context.protocol == "tcp" && context.port == 8443 };
@id("two") permit (principal in Team::"research", action in [Action::"tls", Action::"tunnel", Action::"http"], resource == Host::"two.allowed.test");
@id("read-two") @effect("intercept") permit (principal, action == Action::"tls", resource == Host::"two.allowed.test");
"#;

/// A way from a client to a server.
struct Way<'a> {
    reading: &'a Reading,
    host: Host,
    who: &'static str,
    /// The server, which is read if it is [`TWO`].
    server: &'static str,
    proxy: Option<String>,
}

impl Way<'_> {
    fn is_read(&self) -> bool {
        self.server == TWO
    }

    fn ingress(&self) -> Ingress {
        if self.proxy.is_some() { Ingress::Proxy } else { Ingress::Transparent }
    }

    fn name(&self) -> String {
        format!("{}-{}", self.host.name(), self.server)
    }

    /// A directory of its own, that the client may fill.
    fn scratch(&self, what: &str) -> String {
        let dir = self.reading.site.gateway.lab.dir().join("scratch").join(what).join(self.name());
        fs::create_dir_all(&dir).unwrap();
        dir.display().to_string()
    }

    /// A client with its variables: those of the trust kit, or of who trusts the server's own authority.
    fn run(&self, more: &[String], args: &[&str]) -> Output {
        let mut variables: Vec<String> = more.to_vec();
        if let Some(proxy) = &self.proxy {
            variables.extend([format!("HTTPS_PROXY={proxy}"), format!("https_proxy={proxy}")]);
        }
        if self.is_read() {
            return self.reading.run(self.host, &variables, args);
        }
        let lab = &self.reading.site.gateway.lab;
        let ca = lab.ca().display().to_string();
        for name in ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "GIT_SSL_CAINFO", "NODE_EXTRA_CA_CERTS"] {
            variables.push(format!("{name}={ca}"));
        }
        let argv: Vec<&str> = ["env"]
            .into_iter()
            .chain(variables.iter().map(String::as_str))
            .chain(args.iter().copied())
            .collect();
        lab.run(self.host, &argv).unwrap()
    }

    /// A request of the agent's was judged, or its connection was, if that is all that is known.
    #[track_caller]
    fn is_recorded(&self, path: &str) {
        let what = format!("{path} by {}", self.name());
        let found = record(&self.reading.site, &what, |r| {
            let is_its = r.kind == RecordKind::Decision && agent(r) == Some(self.who);
            let is_path = r.destination.path.as_deref() == Some(path);
            is_its && to_host(r, self.server) && (is_path || !self.is_read())
        });
        assert_eq!((found.verdict, found.ingress), (Some(Verdict::Allow), Some(self.ingress())), "{found:?}");
        assert_eq!(found.intercepted, self.is_read(), "{found:?}");
    }
}

/// Every way: by the route and by the proxy, read and unread.
fn each(reading: &Reading, mut work: impl FnMut(&Way<'_>)) {
    let own = proxy(ASSISTANT, &reading.site.assistant_key);
    for server in [TWO, API] {
        for (host, who, proxy) in [(Host::Known, CRAWLER, None), (Host::Anon, ASSISTANT, Some(own.clone()))] {
            work(&Way { reading, host, who, server, proxy });
        }
    }
}

fn python() -> String {
    clients::python().unwrap().display().to_string()
}

/// Waits until something listens in the world.
fn listens(site: &Site, at: &str) {
    let script = format!("exec 3<>/dev/tcp/{at}");
    let ready = || Ok(site.gateway.lab.run(Host::World, &["bash", "-c", &script])?.ok());
    site.gateway.lab.wait(at, std::time::Duration::from_secs(15), ready).unwrap();
}

const HTTPX: &str = r#"
import httpx, sys
base = sys.argv[1]
with httpx.Client(http2=True, timeout=10) as client:
    seen = [client.get(f"{base}/httpx/{n}") for n in range(3)]
    print([r.status_code for r in seen], {r.http_version for r in seen})
    print(client.post(f"{base}/httpx/up", content=bytes(300_000)).json()["body_bytes"])
    with client.stream("GET", f"{base}/bytes/700000") as response:
        print(sum(len(piece) for piece in response.iter_bytes()))
    print(client.get(f"{base}/admin/httpx").status_code)
"#;

const AIOHTTP: &str = r#"
import aiohttp, asyncio, sys
base = sys.argv[1]
async def main():
    async with aiohttp.ClientSession(trust_env=True, timeout=aiohttp.ClientTimeout(total=10)) as session:
        async def one(n):
            async with session.get(f"{base}/aiohttp/{n}") as response:
                return response.status, len(await response.read()) > 0
        print(set(await asyncio.gather(*(one(n) for n in range(8)))))
        async def pieces():
            for _ in range(30):
                yield bytes(10_000)
        async with session.post(f"{base}/aiohttp/up", data=pieces()) as response:
            print((await response.json())["body_bytes"])
asyncio.run(main())
"#;

const REQUESTS: &str = r#"
import requests, sys
base = sys.argv[1]
with requests.Session() as session:
    print([session.get(f"{base}/requests/{n}", timeout=10).status_code for n in range(3)])
    print(session.post(f"{base}/requests/up", data=iter([bytes(10_000)] * 30), timeout=10).json()["body_bytes"])
    with session.get(f"{base}/bytes/700000", stream=True, timeout=10) as response:
        print(sum(len(piece) for piece in response.iter_content(16_384)))
    print(session.get(f"{base}/admin/requests", timeout=10).status_code)
"#;

#[test]
fn pythons_requests_httpx_and_aiohttp_go_every_way() {
    let reading = Reading::of(READ);
    let python = python();
    each(&reading, |way| {
        let base = format!("https://{}", way.server);
        let output = way.run(&[], &[&python, "-c", HTTPX, &base]);
        let said: Vec<&str> = output.stdout.lines().collect();
        // What is read is judged request by request; a tunnel carries what it carries.
        let (version, admin) = if way.is_read() { ("{'HTTP/2'}", "403") } else { ("{'HTTP/1.1'}", "200") };
        let wanted = [&*format!("[200, 200, 200] {version}"), "300000", "700000", admin];
        assert_eq!(said, wanted, "{output:?}");
        way.is_recorded("/httpx/0");
        let output = way.run(&[], &[&python, "-c", AIOHTTP, &base]);
        assert_eq!(output.stdout.trim(), "{(200, True)}\n300000", "{output:?}");
        way.is_recorded("/aiohttp/0");
        let output = way.run(&[], &[&python, "-c", REQUESTS, &base]);
        let said: Vec<&str> = output.stdout.lines().collect();
        assert_eq!(said, ["[200, 200, 200]", "300000", "700000", admin], "{output:?}");
        way.is_recorded("/requests/0");
    });
    finish(reading.site);
}

/// Node's own `fetch` and `https`; by a proxy as `undici`, of which that `fetch` is made, and `https-proxy-agent` do it.
const NODE: &str = r#"
const [base, proxy] = process.argv.slice(1);
const undici = proxy ? require("undici") : { fetch };
const dispatcher = proxy && new undici.ProxyAgent(proxy);
const agent = proxy && new (require("https-proxy-agent").HttpsProxyAgent)(proxy);
const ask = (path, more) => undici.fetch(base + path, { dispatcher, ...more });
const get = path => new Promise((done, failed) =>
  require("https").get(base + path, { agent }, r => r.resume().on("end", () => done(r.statusCode))).on("error", failed));
(async () => {
  console.log((await Promise.all([0, 1, 2].map(n => ask(`/node/${n}`)))).map(r => r.status).join());
  console.log((await (await ask("/node/up", { method: "POST", body: Buffer.alloc(300_000) })).json()).body_bytes);
  console.log((await (await ask("/bytes/700000")).arrayBuffer()).byteLength, (await ask("/admin/node")).status);
  console.log(await get("/node/https"), await get("/admin/https"));
  process.exit(0);
})();
"#;

#[test]
fn node_goes_every_way() {
    let reading = Reading::of(READ);
    let modules = format!("NODE_PATH={}", clients::modules().unwrap().display());
    each(&reading, |way| {
        let base = format!("https://{}", way.server);
        let args: Vec<&str> = ["node", "-e", NODE, &base].into_iter().chain(way.proxy.as_deref()).collect();
        let output = way.run(std::slice::from_ref(&modules), &args);
        let admin = if way.is_read() { "403" } else { "200" };
        let wanted = ["200,200,200", "300000", &format!("700000 {admin}"), &format!("200 {admin}")];
        assert_eq!(output.stdout.lines().collect::<Vec<_>>(), wanted, "{output:?}");
        way.is_recorded("/node/0");
        way.is_recorded("/node/https");
    });
    finish(reading.site);
}

/// Sends back what it gets, over TLS, at an address.
const ECHO: &str = r#"
import asyncio, ssl, sys, websockets
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(sys.argv[2], sys.argv[3])
async def echo(ws):
    async for message in ws:
        await ws.send(message)
async def main():
    async with websockets.serve(echo, sys.argv[1], 8443, ssl=context, max_size=None):
        await asyncio.Future()
asyncio.run(main())
"#;

const WEBSOCKETS: &str = r#"
import asyncio, sys, websockets
async def main():
    async with websockets.connect(sys.argv[1], max_size=None, open_timeout=8) as ws:
        await ws.send("hello")
        word = await ws.recv()
        await ws.send(bytes(100_000))
        print(word, len(await ws.recv()))
try:
    asyncio.run(main())
except websockets.exceptions.InvalidStatus as refused:
    print(refused.response.status_code)
"#;

#[test]
fn pythons_websockets_go_within_tls_read_or_not() {
    let reading = Reading::of(READ);
    let lab = &reading.site.gateway.lab;
    let python = python();
    let serve = |name: &str| -> Daemon {
        let file =
            |kind| lab.dir().join(world::CERTIFICATES).join(format!("{name}.{kind}")).display().to_string();
        let address = addresses(name)[0].to_string();
        let argv = [&*python, "-c", ECHO, &address, &file("pem"), &file("key")];
        let server = lab.spawn(Host::World, &format!("echo-{name}"), &argv).unwrap();
        listens(&reading.site, &format!("{address}/8443"));
        server
    };
    let servers = [TWO, API].map(serve);
    each(&reading, |way| {
        let ask = |path: &str| {
            let url = format!("wss://{}:8443{path}", way.server);
            way.run(&[], &[&python, "-c", WEBSOCKETS, &url])
        };
        let output = ask("/chat");
        assert_eq!(output.stdout.trim(), "hello 100000", "{output:?}");
        let output = ask("/admin/chat");
        let admin = if way.is_read() { "403" } else { "hello 100000" };
        assert_eq!(output.stdout.trim(), admin, "{output:?}");
        way.is_recorded("/chat");
    });
    for mut server in servers {
        server.kill().unwrap();
    }
    finish(reading.site);
}

/// A repository with something in it, that takes pushes.
fn repository(reading: &Reading) {
    let root = reading.site.gateway.lab.dir().join(world::REPOSITORIES);
    fs::create_dir_all(&root).unwrap();
    let script = "set -e; cd \"$0\"; export HOME=\"$0\"; git init -q --bare -b main lab.git; git -C lab.git config http.receivepack true
        git init -q -b main first; cd first; head -c 200000 /dev/urandom > large; echo text > small; git add .
        git -c user.name=lab -c user.email=lab@lab.test commit -qm first; git push -q ../lab.git main";
    let root = root.display().to_string();
    reading.site.gateway.lab.run(Host::World, &["bash", "-c", script, &root]).unwrap().check().unwrap();
}

#[test]
fn git_clones_and_pushes() {
    let reading = Reading::of(READ);
    repository(&reading);
    each(&reading, |way| {
        let home = way.scratch("git");
        let script = "set -e; cd \"$HOME\"; git clone -q \"$1\" clone; cd clone; wc -c < large; git commit -q --allow-empty -m \"$2\"
            git push -q origin HEAD:refs/heads/\"$2\"; git ls-remote --heads origin | grep -c \"refs/heads/$2\\$\"";
        let variables = [
            format!("HOME={home}"),
            "GIT_TERMINAL_PROMPT=0".to_owned(),
            "GIT_AUTHOR_NAME=lab".to_owned(),
            "GIT_AUTHOR_EMAIL=lab@lab.test".to_owned(),
            "GIT_COMMITTER_NAME=lab".to_owned(),
            "GIT_COMMITTER_EMAIL=lab@lab.test".to_owned(),
        ];
        let url = format!("https://{}/git/lab.git", way.server);
        let output = way.run(&variables, &["bash", "-c", script, "git", &url, way.name().as_str()]);
        if output.stdout.trim() != "200000\n1" {
            // What the gateway made of it says more than the client can.
            let all = admin(&reading.site).audit(&AuditQuery::default()).unwrap();
            let ended = all.iter().filter(|r| r.kind == RecordKind::Outcome && r.reason.is_some());
            let ended: Vec<String> = ended.map(|r| serde_json::to_string(r).unwrap()).collect();
            panic!("{output:?}\n{}", ended.join("\n"));
        }
        way.is_recorded("/git/lab.git/git-upload-pack");
        way.is_recorded("/git/lab.git/git-receive-pack");
    });
    finish(reading.site);
}

/// Makes a wheel and its index, in Python's own way: a zip archive with a list of what is in it.
const WHEEL: &str = r##"
import base64, hashlib, os, sys, zipfile
root = os.path.join(sys.argv[1], "simple", "clawgress-lab")
os.makedirs(root)
name, files = "clawgress_lab-1.0-py3-none-any.whl", {
    "clawgress_lab.py": "ANSWER = 42\n",
    "clawgress_lab-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: clawgress-lab\nVersion: 1.0\n",
    "clawgress_lab-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nGenerator: lab\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
}
record = "".join(
    "%s,sha256=%s,%d\n" % (path, base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode(), len(text))
    for path, text in files.items()
)
with zipfile.ZipFile(os.path.join(root, name), "w") as wheel:
    for path, text in files.items():
        wheel.writestr(path, text)
    wheel.writestr("clawgress_lab-1.0.dist-info/RECORD", record + "clawgress_lab-1.0.dist-info/RECORD,,\n")
digest = hashlib.sha256(open(os.path.join(root, name), "rb").read()).hexdigest()
with open(os.path.join(root, "index.html"), "w") as index:
    index.write(f'<!DOCTYPE html><html><body><a href="{name}#sha256={digest}">{name}</a></body></html>')
"##;

/// Makes two packages, one of a scope, and what a registry says of them, of which each server is one. A scoped one npm asks for
/// by a name with an encoded slash.
const PACKAGE: &str = r#"
import base64, hashlib, io, json, os, sys, tarfile
root = os.path.join(sys.argv[1], "npm")
os.makedirs(root)
for name, file in [("clawgress-lab", "clawgress-lab"), ("@clawgress/scoped", "@clawgress%2fscoped")]:
    files = {"package/package.json": json.dumps({"name": name, "version": "1.0.0", "main": "main.js"}), "package/main.js": "exports.answer = 42;\n"}
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        for path, text in files.items():
            entry = tarfile.TarInfo(path)
            entry.size = len(text)
            tar.addfile(entry, io.BytesIO(text.encode()))
    tarball = name.split("/")[-1] + "-1.0.0.tgz"
    open(os.path.join(root, tarball), "wb").write(archive.getvalue())
    integrity = "sha512-" + base64.b64encode(hashlib.sha512(archive.getvalue()).digest()).decode()
    for server in sys.argv[2:]:
        os.makedirs(os.path.join(root, server), exist_ok=True)
        told = {"name": name, "dist-tags": {"latest": "1.0.0"}, "versions": {"1.0.0": {
            "name": name, "version": "1.0.0", "main": "main.js",
            "dist": {"tarball": f"https://{server}/files/npm/{tarball}", "integrity": integrity},
        }}}
        json.dump(told, open(os.path.join(root, server, file), "w"))
"#;

fn files(reading: &Reading, script: &str, servers: &[&str]) {
    let lab = &reading.site.gateway.lab;
    let root = lab.dir().join(world::FILES).display().to_string();
    let args = [&["python3", "-c", script, &root], servers].concat();
    lab.run(Host::World, &args).unwrap().check().unwrap();
}

#[test]
fn pip_installs_from_an_index() {
    let reading = Reading::of(READ);
    files(&reading, WHEEL, &[]);
    let python = python();
    each(&reading, |way| {
        let target = way.scratch("pip");
        let index = format!("https://{}/files/simple/", way.server);
        let install = [
            &*python,
            "-m",
            "pip",
            "--isolated",
            "--disable-pip-version-check",
            "--no-input",
            "install",
            "-q",
            "--no-cache-dir",
        ];
        // It reads no variable of pip's own: those of the trust kit are no such.
        let output = way.run(
            &[],
            &[&install[..], &["--index-url", &index, "--target", &target, "clawgress-lab"]].concat(),
        );
        assert!(output.ok(), "{output:?}");
        let text = fs::read_to_string(Path::new(&target).join("clawgress_lab.py")).unwrap();
        assert_eq!(text, "ANSWER = 42\n");
        way.is_recorded("/files/simple/clawgress-lab/clawgress_lab-1.0-py3-none-any.whl");
    });
    finish(reading.site);
}

#[test]
fn npm_installs_from_a_registry() {
    let reading = Reading::of(READ);
    files(&reading, PACKAGE, &[TWO, API]);
    each(&reading, |way| {
        let home = way.scratch("npm");
        let registry = format!("https://{0}/files/npm/{0}/", way.server);
        let cache = format!("{home}/cache");
        let (variables, prefix) = ([format!("HOME={home}")], format!("{home}/project"));
        let install =
            ["npm", "install", "--no-audit", "--no-fund", "--no-update-notifier", "--ignore-scripts"];
        let where_ = [
            "--registry",
            &registry,
            "--cache",
            &cache,
            "--prefix",
            &prefix,
            "clawgress-lab",
            "@clawgress/scoped",
        ];
        let output = way.run(&variables, &[&install[..], &where_].concat());
        assert!(output.ok(), "{output:?}");
        for package in ["clawgress-lab", "@clawgress/scoped"] {
            let main = Path::new(&prefix).join("node_modules").join(package).join("main.js");
            assert_eq!(fs::read_to_string(main).unwrap(), "exports.answer = 42;\n");
        }
        way.is_recorded("/files/npm/clawgress-lab-1.0.0.tgz");
        way.is_recorded(&format!("/files/npm/{}/@clawgress%2Fscoped", way.server));
        way.is_recorded("/files/npm/scoped-1.0.0.tgz");
    });
    finish(reading.site);
}

/// Java's own client, of both protocols; by a proxy with a credential where there is one.
const JAVA: &str = r#"
import java.net.*;
import java.net.http.*;
import java.time.Duration;
public class Client {
    public static void main(String[] args) throws Exception {
        HttpClient.Builder builder = HttpClient.newBuilder().connectTimeout(Duration.ofSeconds(15));
        if (args.length > 1) {
            URI proxy = URI.create(args[1]);
            String[] credential = proxy.getUserInfo().split(":");
            builder.proxy(ProxySelector.of(new InetSocketAddress(proxy.getHost(), proxy.getPort())));
            builder.authenticator(new Authenticator() {
                protected PasswordAuthentication getPasswordAuthentication() {
                    return new PasswordAuthentication(credential[0], credential[1].toCharArray());
                }
            });
        }
        HttpClient client = builder.build();
        HttpRequest get = HttpRequest.newBuilder(URI.create(args[0] + "/java")).build();
        HttpResponse<String> answer = client.send(get, HttpResponse.BodyHandlers.ofString());
        HttpRequest post = HttpRequest.newBuilder(URI.create(args[0] + "/java/up")).POST(HttpRequest.BodyPublishers.ofByteArray(new byte[100000])).build();
        HttpResponse<String> up = client.send(post, HttpResponse.BodyHandlers.ofString());
        System.out.println(answer.statusCode() + " " + answer.version() + " " + up.body().contains("\"body_bytes\":100000"));
    }
}
"#;

#[test]
fn javas_client_goes_where_there_is_java() {
    let reading = Reading::of(READ);
    let here = reading.site.gateway.lab.run(Host::Known, &["java", "--list-modules"]);
    if !here.is_ok_and(|output| output.ok() && output.stdout.contains("jdk.compiler")) {
        println!("there is no Java that runs sources here: its client was not tried");
        return finish(reading.site);
    }
    each(&reading, |way| {
        // Its store is another, and the trust kit has made one: of what is not read it knows nothing, and gets one of its own.
        let store = format!("{}/store.p12", way.scratch("java"));
        if !way.is_read() {
            let ca = reading.site.gateway.lab.ca().display().to_string();
            let words = [
                "keytool",
                "-importcert",
                "-noprompt",
                "-alias",
                "lab",
                "-storepass",
                "changeit",
                "-file",
                &ca,
            ];
            let made = [&words[..], &["-keystore", &store]].concat();
            reading.site.gateway.lab.run(way.host, &made).unwrap().check().unwrap();
        }
        let trust = format!("-Djavax.net.ssl.trustStore={store}");
        let source = Path::new(&way.scratch("java")).join("Client.java");
        fs::write(&source, JAVA).unwrap();
        let (source, base) = (source.display().to_string(), format!("https://{}", way.server));
        // Java takes no password over a tunnel unless it is told so.
        let mut args = vec!["java", "-Djdk.http.auth.tunneling.disabledSchemes="];
        if !way.is_read() {
            args.extend([&*trust, "-Djavax.net.ssl.trustStorePassword=changeit"]);
        }
        args.extend([&*source, &base]);
        args.extend(way.proxy.as_deref());
        let output = way.run(&[], &args);
        // The lab's server speaks HTTP/1.1: who comes first, while that is not known yet, is offered both.
        let said = output.stdout.trim();
        assert!(["200 HTTP_2 true", "200 HTTP_1_1 true"].contains(&said), "{output:?}");
        way.is_recorded("/java");
    });
    finish(reading.site);
}

/// Whoever speaks both protocols is offered what the server has chosen of them when it was asked last.
#[test]
fn a_client_is_offered_what_its_server_speaks() {
    let mut reading = Reading::of(&format!("{READ}{OLDER}"));
    let script = "curl -sS --max-time 8 --noproxy '' -o /dev/null -w '%{http_version} %{http_code}' \"$@\"";
    let asks = |way: &Way<'_>, more: &[&str], to: &str| {
        let proxy: Vec<&str> = way.proxy.iter().flat_map(|proxy| ["-x", proxy]).collect();
        way.run(&[], &[&["bash", "-c", script, "curl"], &proxy[..], more, &[to]].concat()).stdout
    };
    each(&reading, |way| {
        if !way.is_read() {
            return;
        }
        // Before anybody has asked it, nobody knows.
        assert!(asks(way, &[], "https://web.allowed.test/public/first").ends_with(" 200"));
        for _ in 0..2 {
            assert_eq!(asks(way, &[], &format!("https://{TWO}/versions")), "2 200");
            assert_eq!(asks(way, &["--http1.1"], &format!("https://{TWO}/versions")), "1.1 200");
            assert_eq!(asks(way, &[], "https://web.allowed.test/public/versions"), "1.1 200");
        }
        way.is_recorded("/versions");
    });
    let seen = admin(&reading.site).audit(&AuditQuery::default()).unwrap();
    assert!(seen.iter().any(|r| r.destination.path.as_deref() == Some("/public/versions") && r.intercepted));
    loaded(&mut reading.site, "/load/read");
    // Where nothing is read, the two speak HTTP/2 with each other.
    let unread = READ.replace("@effect(\"intercept\") ", "");
    reading.site.gateway.apply_policy(&format!("{POLICY}{unread}"), SETS).unwrap();
    let own = proxy(ASSISTANT, &reading.site.assistant_key);
    for (host, who, more) in [(Host::Known, CRAWLER, vec![]), (Host::Anon, ASSISTANT, vec!["-x", &own])] {
        let to = [
            &["-o", "/dev/null", "-w", "%{http_version} %{http_code}"],
            &more[..],
            &["https://two.allowed.test/admin"],
        ];
        let output = curl(&reading.site, host, &to.concat());
        assert_eq!(output.stdout, "2 200", "{output:?}");
        let found = record(&reading.site, "the tunnel", |r| {
            let is_its = r.kind == RecordKind::Decision && agent(r) == Some(who) && to_host(r, TWO);
            is_its && r.action.as_deref() == Some("tunnel")
        });
        assert_eq!((found.verdict, found.intercepted), (Some(Verdict::Allow), false), "{found:?}");
    }
    loaded(&mut reading.site, "/load/unread");
    finish(reading.site);
}

/// Requests of h2load, by the route: as many connections and streams as one agent may have at ease.
const LOAD: usize = 1_000;
/// Most resident memory that the proxy may gain by them, KiB: some hundred for each stream that is under way, and what an
/// allocator keeps.
const LOAD_KIB_MAX: u64 = 24 * 1024;

/// h2load's requests are all answered by the server, and the proxy keeps nothing of them.
#[track_caller]
fn loaded(site: &mut Site, path: &str) {
    let (url, count) = (format!("https://{TWO}{path}"), LOAD.to_string());
    let before = resident(site, Role::L7);
    let output = site.gateway.lab.run(Host::Known, &["h2load", "-n", &count, "-c", "4", "-m", "25", &url]);
    let said = output.unwrap().check().unwrap().stdout;
    let after = resident(site, Role::L7);
    let finished = said.lines().find(|line| line.starts_with("finished in")).unwrap_or_default();
    println!("h2load {path}: {finished}; the proxy has {before} KiB before, {after} after");
    assert!(said.contains("Application protocol: h2"), "{said}");
    let all = format!("{LOAD} done, {LOAD} succeeded, 0 failed, 0 errored, 0 timeout");
    assert!(said.contains(&all) && said.contains(&format!("{LOAD} 2xx")), "{said}");
    let seen = site.gateway.lab.world().unwrap().requests;
    assert_eq!(seen.iter().filter(|request| request.target == path).count(), LOAD);
    assert!(after < before + LOAD_KIB_MAX, "the proxy grew from {before} to {after} KiB");
}

/// A host that is read since it is no tunnel, of a server that speaks HTTP/1.1.
const OLDER: &str = r#"
@id("read-web") permit (principal in Team::"research", action == Action::"tls", resource == Host::"web.allowed.test");
"#;
