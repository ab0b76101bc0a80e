//! Real upstream servers on loopback addresses: HTTP, TLS, and a sink that only counts.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::AbortHandle;

/// What an upstream saw.
#[derive(Debug, Default)]
pub struct Seen {
    pub connections: AtomicUsize,
    /// Those that have ended.
    pub ended: AtomicUsize,
    /// Every byte of every connection, in order of arrival.
    pub bytes: Mutex<Vec<u8>>,
    /// Heads of requests.
    pub requests: Mutex<Vec<String>>,
    /// The client's port of each request: which connection it came over.
    pub ports: Mutex<Vec<u16>>,
    /// A streamed response takes one permit for each event after the first.
    pub events: Option<Semaphore>,
}

#[derive(Debug)]
pub struct Upstream {
    pub address: SocketAddr,
    pub seen: Arc<Seen>,
    /// The certificate of a TLS upstream.
    pub certificate: Option<CertificateDer<'static>>,
    task: AbortHandle,
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.task.abort();
    }
}

pub fn acceptor(
    certificate: CertificateDer<'static>,
    key: PrivatePkcs8KeyDer<'static>,
) -> tokio_rustls::TlsAcceptor {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key.into())
        .expect("config");
    tokio_rustls::TlsAcceptor::from(Arc::new(config))
}

impl Upstream {
    /// Serves each connection by `serve`.
    pub async fn start<F, T>(ip: &str, certificate: Option<CertificateDer<'static>>, serve: F) -> Upstream
    where
        F: Fn(TcpStream, Arc<Seen>) -> T + Send + 'static,
        T: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind((ip, 0)).await.expect("bind");
        let address = listener.local_addr().expect("address");
        let seen = Arc::new(Seen { events: Some(Semaphore::new(0)), ..Seen::default() });
        let shared = Arc::clone(&seen);
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                shared.connections.fetch_add(1, Ordering::SeqCst);
                let (serving, shared) = (serve(stream, Arc::clone(&shared)), Arc::clone(&shared));
                tokio::spawn(async move {
                    serving.await;
                    shared.ended.fetch_add(1, Ordering::SeqCst);
                });
            }
        });
        Upstream { address, seen, certificate, task: task.abort_handle() }
    }

    /// Listens no more: who dials it is refused.
    pub async fn stop(&self) {
        self.task.abort();
        while TcpStream::connect(self.address).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Notes bytes and answers nothing.
    pub async fn sink(ip: &str) -> Upstream {
        Upstream::start(ip, None, |mut stream, seen| async move {
            let mut buffer = [0; 4096];
            while let Ok(n @ 1..) = stream.read(&mut buffer).await {
                seen.bytes.lock().extend(&buffer[..n]);
            }
        })
        .await
    }

    /// Notes bytes, and says something of each piece of them: behind a hello, a client goes on once its server has said something.
    pub async fn teller(ip: &str) -> Upstream {
        Upstream::start(ip, None, |mut stream, seen| async move {
            let mut buffer = [0; 4096];
            while let Ok(n @ 1..) = stream.read(&mut buffer).await {
                seen.bytes.lock().extend(&buffer[..n]);
                let _ = stream.write_all(b"said").await;
            }
        })
        .await
    }

    /// An HTTP/1.1 server; what it answers depends on the path.
    pub async fn http(ip: &str) -> Upstream {
        Upstream::start(ip, None, |stream, seen| async move {
            let port = stream.peer_addr().expect("address").port();
            let _ = http(stream, port, &seen).await;
        })
        .await
    }

    /// The same over TLS, for `name`, and its certificate, PEM.
    pub async fn http_within(ip: &str, name: &str) -> (Upstream, String) {
        let made = rcgen::generate_simple_self_signed([name.to_owned()]).expect("certificate");
        let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
        let acceptor = acceptor(made.cert.der().clone(), key);
        let serve = move |stream: TcpStream, seen: Arc<Seen>| {
            let acceptor = acceptor.clone();
            async move {
                let port = stream.peer_addr().expect("address").port();
                let Ok(stream) = acceptor.accept(stream).await else { return };
                let _ = http(stream, port, &seen).await;
            }
        };
        (Upstream::start(ip, None, serve).await, made.cert.pem())
    }

    /// A TLS server for `name` that sends back what it gets.
    pub async fn tls(ip: &str, name: &str) -> Upstream {
        let made = rcgen::generate_simple_self_signed([name.to_owned()]).expect("certificate");
        let certificate = made.cert.der().clone();
        let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
        let acceptor = acceptor(certificate.clone(), key);
        Upstream::start(ip, Some(certificate), move |stream, _| {
            let acceptor = acceptor.clone();
            async move {
                let Ok(mut stream) = acceptor.accept(stream).await else { return };
                let mut buffer = [0; 4096];
                while let Ok(n @ 1..) = stream.read(&mut buffer).await {
                    if stream.write_all(&buffer[..n]).await.is_err() || stream.flush().await.is_err() {
                        return;
                    }
                }
            }
        })
        .await
    }

    /// TLS, then an answer to each request that has no body.
    pub async fn https(ip: &str, name: &str) -> Upstream {
        let made = rcgen::generate_simple_self_signed([name.to_owned()]).expect("certificate");
        let certificate = made.cert.der().clone();
        let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
        let acceptor = acceptor(certificate.clone(), key);
        Upstream::start(ip, Some(certificate), move |stream, _| {
            let acceptor = acceptor.clone();
            async move {
                let Ok(mut stream) = acceptor.accept(stream).await else { return };
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    let Ok(1..) = stream.read_buf(&mut head).await else { return };
                }
                let answer = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
                let _ = stream.write_all(answer.as_bytes()).await;
                let _ = stream.shutdown().await;
            }
        })
        .await
    }

    /// Says hello first, then sends back what it gets.
    pub async fn server_first(ip: &str) -> Upstream {
        Upstream::start(ip, None, |mut stream, _| async move {
            let (mut reader, mut writer) = stream.split();
            let _ = writer.write_all(b"220 hello\r\n").await;
            let _ = tokio::io::copy(&mut reader, &mut writer).await;
        })
        .await
    }

    pub fn connections(&self) -> usize {
        self.seen.connections.load(Ordering::SeqCst)
    }

    pub fn requests(&self) -> Vec<String> {
        self.seen.requests.lock().clone()
    }

    /// Lets a streamed response send one more event.
    pub fn next_event(&self) {
        self.seen.events.as_ref().expect("events").add_permits(1);
    }
}

/// What a server's connection is carried by.
pub trait Carrier: AsyncRead + AsyncWrite + Unpin {}

impl<S: AsyncRead + AsyncWrite + Unpin> Carrier for S {}

const USAGE: &str = r#""usage":{"prompt_tokens":11,"completion_tokens":22,"total_tokens":33}"#;

pub async fn http(mut stream: impl Carrier, port: u16, seen: &Seen) -> std::io::Result<()> {
    let mut held = Vec::new();
    loop {
        let end = loop {
            if let Some(at) = held.windows(4).position(|w| w == b"\r\n\r\n") {
                break at + 4;
            }
            more(&mut stream, &mut held, seen).await?;
        };
        let head = String::from_utf8_lossy(&held[..end]).into_owned();
        held.drain(..end);
        seen.requests.lock().push(head.clone());
        seen.ports.lock().push(port);
        let body = body(&mut stream, &mut held, seen, &head.to_lowercase()).await?;
        let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
        match path.split('?').next().unwrap_or_default() {
            "/sse" => events(&mut stream, seen).await?,
            "/json" => {
                let json = format!("{{\"model\":\"gpt-5-mini\",{USAGE}}}");
                answer(&mut stream, "application/json", json.as_bytes()).await?;
            }
            "/hints" => {
                stream
                    .write_all(b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n".repeat(100).as_slice())
                    .await?;
                answer(&mut stream, "text/plain", b"ok").await?;
            }
            "/large-head" => {
                let large = "x".repeat(300_000);
                let head = format!("HTTP/1.1 200 OK\r\nlarge: {large}\r\nContent-Length: 2\r\n\r\nok");
                stream.write_all(head.as_bytes()).await?;
            }
            "/echo" => answer(&mut stream, "application/octet-stream", &body).await?,
            _ => answer(&mut stream, "text/plain", b"ok").await?,
        }
    }
}

async fn more(stream: &mut impl Carrier, held: &mut Vec<u8>, seen: &Seen) -> std::io::Result<()> {
    let before = held.len();
    if stream.read_buf(held).await? == 0 {
        return Err(std::io::ErrorKind::UnexpectedEof.into());
    }
    seen.bytes.lock().extend(&held[before..]);
    Ok(())
}

async fn body(
    stream: &mut impl Carrier,
    held: &mut Vec<u8>,
    seen: &Seen,
    head: &str,
) -> std::io::Result<Vec<u8>> {
    if let Some((_, rest)) = head.split_once("content-length: ") {
        let n: usize = rest.split("\r\n").next().expect("line").parse().expect("length");
        while held.len() < n {
            more(stream, held, seen).await?;
        }
        return Ok(held.drain(..n).collect());
    }
    let mut all = Vec::new();
    if head.contains("transfer-encoding: chunked") {
        loop {
            let line = loop {
                if let Some(at) = held.windows(2).position(|w| w == b"\r\n") {
                    break held.drain(..at + 2).collect::<Vec<u8>>();
                }
                more(stream, held, seen).await?;
            };
            let size = std::str::from_utf8(&line).expect("text").trim();
            let n = usize::from_str_radix(size, 16).expect("size");
            while held.len() < n + 2 {
                more(stream, held, seen).await?;
            }
            all.extend(held.drain(..n + 2).take(n));
            if n == 0 {
                break;
            }
        }
    }
    Ok(all)
}

async fn answer(stream: &mut impl Carrier, kind: &str, body: &[u8]) -> std::io::Result<()> {
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nProxy-Authenticate: Basic realm=\"steal\"\r\n\r\n",
        body.len()
    );
    stream.write_all(&[head.as_bytes(), body].concat()).await
}

async fn events(stream: &mut impl Carrier, seen: &Seen) -> std::io::Result<()> {
    let chunk = |text: &str| format!("{:x}\r\n{text}\r\n", text.len());
    let head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(chunk("data: {\"model\":\"gpt-5\",\"usage\":null}\n\n").as_bytes()).await?;
    let usage = format!("data: {{\"model\":\"gpt-5\",{USAGE}}}\n\n");
    for event in [usage.as_str(), "data: [DONE]\n\n"] {
        seen.events.as_ref().expect("events").acquire().await.expect("open").forget();
        stream.write_all(chunk(event).as_bytes()).await?;
    }
    stream.write_all(b"0\r\n\r\n").await
}
