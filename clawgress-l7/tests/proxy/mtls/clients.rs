//! Clients that others wrote.

use super::*;

/// Clients of others: curl by both ways, and Python's TLS.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_of_others() {
    let s = Setting::new().await;
    let (plain, tls) =
        (Upstream::http("127.1.0.1").await, Upstream::https("127.1.0.1", "api.allowed.test").await);
    let web = s.agents_ca.issue("web", &Wanted::default());
    let (proxy, ca) = (s.gateway.proxy_tls, s.server_ca.file());
    let (ca, certificate, key) = (ca.display(), web.certificate.display(), web.key.display());
    let curl = async |arguments: &str, url: String| {
        let arguments = format!(
            "-sS -k --max-time 10 -o /dev/null -w %{{http_code}}/%{{http_connect}} {arguments} {url}"
        );
        let mut command = tokio::process::Command::new("curl");
        command.args(arguments.split(' ')).env_clear().env("PATH", std::env::var("PATH").expect("PATH"));
        let output = command.output().await.expect("curl");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let with = format!("-x https://{proxy} --proxy-cacert {ca} --proxy-cert {certificate} --proxy-key {key}");
    let without = format!("-x https://{proxy} --proxy-cacert {ca}");
    let clear = format!("http://api.allowed.test:{}/x", plain.address.port());
    let secret = format!("https://api.allowed.test:{}/x", tls.address.port());
    assert_eq!(curl(&with, clear.clone()).await, "200/000");
    assert_eq!(curl(&with, secret.clone()).await, "200/200");
    assert_eq!(curl(&without, clear).await, "407/000");
    assert_eq!(curl(&without, secret.clone()).await, "000/407");
    let keyed = format!("{without} --proxy-user web:{}", s.gateway.key);
    assert_eq!(curl(&keyed, secret).await, "200/200");
    let python = "
import socket, ssl, sys
host, port, ca, certificate, key, target = sys.argv[1:]
context = ssl.create_default_context(cafile=ca)
context.load_cert_chain(certificate, key)
context.set_alpn_protocols(['http/1.1'])
with socket.create_connection((host, int(port)), 10) as raw, context.wrap_socket(raw, server_hostname=host) as tls:
    assert (tls.version(), tls.selected_alpn_protocol()) == ('TLSv1.3', 'http/1.1')
    tls.sendall(f'GET http://{target}/x HTTP/1.1\\r\\nHost: {target}\\r\\nConnection: close\\r\\n\\r\\n'.encode())
    print(tls.recv(12).decode())
";
    let mut command = tokio::process::Command::new("python3");
    let target = format!("api.allowed.test:{}", plain.address.port());
    command.arg("-c").arg(python).arg(proxy.ip().to_string()).arg(proxy.port().to_string());
    command
        .args([&*ca.to_string(), &*certificate.to_string(), &*key.to_string(), &*target])
        .stdin(Stdio::null());
    let output = command.output().await.expect("python3");
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "HTTP/1.1 200", "{output:?}");
}
