//! HTTP/2 with clients of others: curl, Node and h2load.

use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tempfile::TempDir;

use crate::body;
use crate::harness::{Gateway, POLICY};
use crate::http2_proxy::Setting;
use crate::intercept::{HOST, Site};
use crate::streams::server;

/// The gateway's authority, in a file.
fn authority(gateway: &Gateway) -> (TempDir, PathBuf) {
    let directory = tempfile::tempdir().expect("directory");
    let path = directory.path().join("ca.pem");
    let certificate = STANDARD.encode(gateway.authority.certificate());
    let lines: Vec<&str> =
        certificate.as_bytes().chunks(64).map(|l| std::str::from_utf8(l).expect("text")).collect();
    let pem = format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"));
    std::fs::write(&path, pem).expect("written");
    (directory, path)
}

async fn run(program: &str, arguments: &[&str]) -> String {
    let mut command = tokio::process::Command::new(program);
    command.args(arguments).env_clear().env("PATH", std::env::var("PATH").expect("PATH"));
    let output = command.output().await.expect(program);
    let (said, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{program} {arguments:?}: {said}{errors}");
    said.into_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn curl_speaks_it_inside_tls_that_is_read() {
    let (upstream, pem) = server("127.1.0.1", HOST).await;
    let site = Site::before(upstream, &pem, body::POLICY, "").await;
    let (_directory, ca) = authority(&site.gateway);
    let proxy = format!("http://web:{}@{}", site.gateway.key, site.gateway.proxy);
    let url = |path: &str| format!("https://{}{path}", site.host());
    let directory = tempfile::tempdir().expect("directory");
    let (large, secret) = (directory.path().join("large"), directory.path().join("secret"));
    std::fs::write(&large, vec![b'x'; 3_000_000]).expect("written");
    std::fs::write(&secret, "-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----\n")
        .expect("written");
    let (large, secret) = (format!("@{}", large.display()), format!("@{}", secret.display()));
    let curl = async |arguments: &[&str]| {
        let (ca, shown) = (ca.to_str().expect("path"), "%{http_version}/%{http_code}/%{size_download}\n");
        let own = ["-sS", "--max-time", "20", "-o", "/dev/null", "-w", shown, "-x", &*proxy, "--cacert", ca];
        run("curl", &[&own[..], arguments].concat()).await
    };
    assert_eq!(curl(&["--http2", &url("/ok")]).await, "2/200/2\n");
    assert_eq!(curl(&["--http1.1", &url("/ok")]).await, "1.1/200/2\n");
    let echo = url("/echo");
    assert_eq!(curl(&["--http2", "--data-binary", &*large, &*echo]).await, "2/200/3000000\n");
    // Streams of one connection, at once.
    let parallel = ["--http2", "--parallel", &*echo, "-o", "/dev/null", &*echo, "-o", "/dev/null", &*echo];
    assert_eq!(curl(&parallel).await, "2/200/0\n".repeat(3));
    let refused = curl(&["--http2", "--data-binary", &*secret, &*echo]).await;
    assert!(refused.starts_with("2/403/"), "{refused}");
    let seen = site.upstream.requests();
    assert!(seen.iter().all(|head| head.contains("HTTP/2")) && seen.len() == 6, "{seen:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn node_speaks_it_with_many_streams_and_trailers() {
    const SCRIPT: &str = "
const [proxy, target, host, ca, authorization] = process.argv.slice(1);
const fs = require('fs'), http = require('http'), tls = require('tls'), http2 = require('http2');
const [name, port] = proxy.split(':');
const connect = http.request({ host: name, port, method: 'CONNECT', path: target, headers: { host: target, 'proxy-authorization': authorization } });
connect.on('connect', (answer, socket) => {
  if (answer.statusCode !== 200) throw new Error(answer.statusCode);
  const secure = tls.connect({ socket, servername: host, ALPNProtocols: ['h2', 'http/1.1'], ca: fs.readFileSync(ca) }, async () => {
    const session = http2.connect('https://' + target, { createConnection: () => secure });
    const ask = (path, body, fields) => new Promise((done, fail) => {
      const stream = session.request({ ':path': path, ':method': body ? 'POST' : 'GET', ...fields });
      const got = { body: '', trailers: {} };
      stream.on('response', head => got.status = head[':status']);
      stream.on('trailers', trailers => got.trailers = trailers);
      stream.on('data', data => got.body += data).on('end', () => done(got)).on('error', fail);
      stream.end(body);
    });
    const all = [];
    for (let n = 0; n < 50; n++) all.push(ask('/echo', 'body ' + n));
    const echoed = await Promise.all(all);
    const sound = echoed.every((got, n) => got.status === 200 && got.body === 'body ' + n);
    const denied = await ask('/denied');
    const call = await ask('/trailers', 'x', { te: 'trailers', 'content-type': 'application/grpc' });
    console.log(JSON.stringify([secure.alpnProtocol, sound, denied.status, call.trailers['grpc-status']]));
    session.close();
  });
});
connect.end();
";
    let (upstream, pem) = server("127.1.0.1", HOST).await;
    let site = Site::before(upstream, &pem, POLICY, "").await;
    let (_directory, ca) = authority(&site.gateway);
    let authorization = clawgress_inspect::proxy_authorization::encode("web", &site.gateway.key);
    let (proxy, target, ca) = (site.gateway.proxy.to_string(), site.host(), ca.display().to_string());
    let said = run("node", &["-e", SCRIPT, &proxy, &target, HOST, &ca, &authorization]).await;
    assert_eq!(said.trim(), r#"["h2",true,403,"0"]"#);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h2load_is_served_whole() {
    let s = Setting::new().await;
    let url = format!("https://{}/own/v1", s.gateway.proxy_tls);
    let key = format!("authorization: Bearer {}", s.gateway.key);
    // No more at once than one agent may have.
    let said = run("h2load", &["-n", "2000", "-c", "4", "-m", "25", "-H", &*key, &*url]).await;
    let why: Vec<_> =
        s.gateway.control.records().into_iter().filter_map(|r| Some((r.reason?, r.detail))).collect();
    assert!(said.contains("2000 succeeded, 0 failed, 0 errored"), "{why:?} {said}");
    assert!(said.contains("2000 2xx, 0 3xx, 0 4xx, 0 5xx"), "{said}");
    assert!(said.contains("Application protocol: h2"), "{said}");
    assert_eq!(s.upstream.requests().len(), 2000);
}
