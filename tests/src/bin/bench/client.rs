//! The measuring client: blocking sockets in a thread of its own, nothing between it and the clock.

use std::borrow::Cow;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use clawgress_e2e::plan::{API, WEB};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

/// For one sample.
const TIME_MAX: Duration = Duration::from_secs(10);
/// Size of a response's body, bytes: a small JSON answer.
const BODY_BYTES: usize = 1024;
/// Largest head of a response, bytes.
const HEAD_BYTES_MAX: usize = 16 * 1024;

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probe {
    /// From connect to the end of the TLS handshake.
    Handshake,
    /// A request on a connection that is kept.
    Request,
    /// From connect to the end of the first response.
    FirstRequest,
    /// From connect to the end of a TLS handshake with whoever reads what follows.
    ReadHandshake,
    /// A request within TLS that is read, on a connection that is kept.
    ReadRequest,
}

/// What a probe speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wire {
    /// HTTP in clear.
    Clear,
    /// TLS that stays unread.
    Unread,
    /// TLS that is read.
    Read,
}

/// By which way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// The same hosts and links, plain routing in the middle.
    Direct,
    /// A bare Pingora in the middle.
    Bare,
    /// Somebody who makes leaves, reads TLS blindly and copies.
    Blind,
    /// The same, asked by CONNECT.
    BlindProxy,
    /// Somebody who carries bytes by splice(2).
    Spliced,
    /// Somebody who carries bytes by a buffer.
    Copied,
    /// Clawgress, by the route.
    Transparent,
    /// Clawgress, as explicit proxy with a key.
    Explicit,
}

/// Where to connect, and what to say there.
#[derive(Clone, Debug)]
pub struct Target {
    address: SocketAddr,
    host: Cow<'static, str>,
    /// Whom its client trusts, PEM.
    ca: PathBuf,
    /// `Proxy-Authorization`, for an explicit proxy.
    credential: Option<String>,
}

impl Probe {
    /// Every one.
    pub const ALL: [Probe; 5] =
        [Probe::Handshake, Probe::FirstRequest, Probe::Request, Probe::ReadHandshake, Probe::ReadRequest];

    /// What it speaks.
    pub fn wire(self) -> Wire {
        match self {
            Probe::Handshake => Wire::Unread,
            Probe::FirstRequest | Probe::Request => Wire::Clear,
            Probe::ReadHandshake | Probe::ReadRequest => Wire::Read,
        }
    }

    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Probe::Handshake => "TLS passthrough: connect and handshake",
            Probe::FirstRequest => "plain HTTP: connect and first request",
            Probe::Request => "plain HTTP: request on a kept connection",
            Probe::ReadHandshake => "TLS that is read: connect and handshake",
            Probe::ReadRequest => "TLS that is read: request on a kept connection",
        }
    }
}

impl Way {
    /// Every one.
    pub const ALL: [Way; 8] = [
        Way::Direct,
        Way::Bare,
        Way::Blind,
        Way::BlindProxy,
        Way::Spliced,
        Way::Copied,
        Way::Transparent,
        Way::Explicit,
    ];

    /// Its place among them.
    pub fn place(self) -> usize {
        Way::ALL.iter().position(|way| *way == self).unwrap_or_default()
    }

    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Way::Direct => "direct (routed)",
            Way::Bare => "bare Pingora",
            Way::Blind => "blind copy with leaves of its own",
            Way::BlindProxy => "blind copy, asked by CONNECT",
            Way::Spliced => "bare relay, splice(2)",
            Way::Copied => "bare relay, copying",
            Way::Transparent => "Clawgress, transparent",
            Way::Explicit => "Clawgress, explicit proxy",
        }
    }
}

impl Wire {
    /// The server's name: another one where TLS is read, for policy says so by name.
    pub fn host(self) -> &'static str {
        if self == Wire::Read { WEB } else { API }
    }

    /// The server's port.
    pub fn port(self) -> u16 {
        if self == Wire::Clear { 80 } else { 443 }
    }
}

impl Target {
    /// Connects to the server, or to what passes for it.
    pub fn plain(address: SocketAddr, host: &'static str, ca: &Path) -> Target {
        Target { address, host: host.into(), ca: ca.to_owned(), credential: None }
    }

    /// Says another name there.
    #[must_use]
    pub fn named(&self, host: String) -> Target {
        Target { host: host.into(), ..self.clone() }
    }

    /// Asks an explicit proxy.
    pub fn through(self, proxy: SocketAddr, credential: String) -> Target {
        Target { address: proxy, credential: Some(credential), ..self }
    }

    fn connect(&self) -> anyhow::Result<TcpStream> {
        let stream = TcpStream::connect_timeout(&self.address, TIME_MAX)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(TIME_MAX))?;
        Ok(stream)
    }

    fn request(&self) -> String {
        let host = &self.host;
        match &self.credential {
            None => self.inner_request(),
            Some(credential) => format!(
                "GET http://{host}/bytes/{BODY_BYTES} HTTP/1.1\r\nHost: {host}\r\nProxy-Authorization: Basic {credential}\r\n\r\n"
            ),
        }
    }

    /// As the server itself is asked.
    fn inner_request(&self) -> String {
        format!("GET /bytes/{BODY_BYTES} HTTP/1.1\r\nHost: {}\r\n\r\n", self.host)
    }
}

/// Takes `samples` samples.
///
/// # Errors
/// If any one fails: a refused connection is no fast one.
pub fn run(probe: Probe, target: &Target, samples: usize) -> anyhow::Result<Vec<Duration>> {
    match probe {
        Probe::Handshake | Probe::ReadHandshake => {
            let config = tls(&target.ca)?;
            (0..samples).map(|_| handshake(target, &config)).collect()
        }
        Probe::FirstRequest => (0..samples)
            .map(|_| {
                let begun = Instant::now();
                let mut stream = target.connect()?;
                exchange(&mut stream, &target.request())?;
                Ok(begun.elapsed())
            })
            .collect(),
        Probe::Request => timed(&mut target.connect()?, &target.request(), samples),
        Probe::ReadRequest => {
            let (connection, stream) = connected(target, &tls(&target.ca)?)?;
            timed(&mut StreamOwned::new(connection, stream), &target.inner_request(), samples)
        }
    }
}

/// Requests on one connection, after a first that is not counted.
fn timed(stream: &mut (impl Read + Write), request: &str, samples: usize) -> anyhow::Result<Vec<Duration>> {
    exchange(stream, request)?;
    (0..samples)
        .map(|_| {
            let begun = Instant::now();
            exchange(stream, request)?;
            Ok(begun.elapsed())
        })
        .collect()
}

/// Requests a second on so many kept connections, with so many requests on each.
///
/// # Errors
/// As [`run`].
pub fn requests_a_second(
    target: &Target,
    wire: Wire,
    connections: usize,
    requests: usize,
) -> anyhow::Result<f64> {
    if wire == Wire::Read {
        let config = tls(&target.ca)?;
        let streams = (0..connections).map(|_| {
            let (connection, stream) = connected(target, &config)?;
            Ok(StreamOwned::new(connection, stream))
        });
        return at_once(streams.collect::<anyhow::Result<_>>()?, &target.inner_request(), requests);
    }
    let streams = (0..connections).map(|_| target.connect()).collect::<anyhow::Result<_>>()?;
    at_once(streams, &target.request(), requests)
}

/// How long each request in clear took, on so many kept connections that ask for so long, as fast as they are answered.
///
/// # Errors
/// As [`run`].
pub fn asked_for(target: &Target, connections: usize, time: Duration) -> anyhow::Result<Vec<Duration>> {
    let request = target.request();
    let ask = || -> anyhow::Result<Vec<Duration>> {
        let mut stream = target.connect()?;
        exchange(&mut stream, &request)?;
        let (until, mut times) = (Instant::now() + time, Vec::new());
        loop {
            let begun = Instant::now();
            if begun >= until {
                return Ok(times);
            }
            exchange(&mut stream, &request)?;
            times.push(begun.elapsed());
        }
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..connections).map(|_| scope.spawn(ask)).collect();
        let mut all = Vec::new();
        for thread in threads {
            all.extend(joined(thread)?);
        }
        Ok(all)
    })
}

/// Requests a second on all of `streams`, after one on each.
fn at_once(
    mut streams: Vec<impl Read + Write + Send>,
    request: &str,
    requests: usize,
) -> anyhow::Result<f64> {
    let connections = streams.len();
    streams.iter_mut().try_for_each(|stream| exchange(stream, request))?;
    let begun = Instant::now();
    std::thread::scope(|scope| {
        let ask = |stream: &mut _| (0..requests).try_for_each(|_| exchange(stream, request));
        let threads: Vec<_> = streams.iter_mut().map(|stream| scope.spawn(move || ask(stream))).collect();
        threads.into_iter().try_for_each(joined)
    })?;
    Ok((connections * requests) as f64 / begun.elapsed().as_secs_f64())
}

/// Handshakes a second by so many clients at once, each with so many connections one after the other, to `name` where
/// there is one: it is asked for each.
///
/// # Errors
/// As [`run`].
pub fn handshakes_a_second(
    target: &Target,
    clients: usize,
    each: usize,
    name: Option<&(dyn Fn() -> String + Sync)>,
) -> anyhow::Result<f64> {
    let config = tls(&target.ca)?;
    let open = || {
        let named = name.map(|name| target.named(name()));
        connected(named.as_ref().unwrap_or(target), &config).map(drop)
    };
    open()?;
    let begun = Instant::now();
    std::thread::scope(|scope| {
        let threads: Vec<_> =
            (0..clients).map(|_| scope.spawn(|| (0..each).try_for_each(|_| open()))).collect();
        threads.into_iter().try_for_each(joined)
    })?;
    Ok((clients * each) as f64 / begun.elapsed().as_secs_f64())
}

/// What a client's thread came to.
pub fn joined<T>(thread: std::thread::ScopedJoinHandle<'_, anyhow::Result<T>>) -> anyhow::Result<T> {
    thread.join().unwrap_or_else(|_| Err(anyhow::anyhow!("a client panicked")))
}

/// MB a second of one response of so many bytes over TLS.
///
/// # Errors
/// As [`run`].
pub fn transfer(target: &Target, bytes: usize) -> anyhow::Result<f64> {
    let config = tls(&target.ca)?;
    let (mut connection, mut stream) = connected(target, &config)?;
    let mut tls = rustls::Stream::new(&mut connection, &mut stream);
    tls.write_all(
        format!("GET /bytes/{bytes} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", target.host)
            .as_bytes(),
    )?;
    let begun = Instant::now();
    let (mut buffer, mut read) = (vec![0; 256 * 1024], 0);
    while read < bytes {
        let n = tls.read(&mut buffer)?;
        ensure!(n > 0, "the transfer ends early, after {read} bytes");
        read += n;
    }
    Ok(read as f64 / 1e6 / begun.elapsed().as_secs_f64())
}

fn tls(ca: &Path) -> anyhow::Result<Arc<ClientConfig>> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(ca).context("cannot read the CA's certificate")?)?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    let mut config = builder.with_root_certificates(roots).with_no_client_auth();
    // Every handshake is a whole one.
    config.resumption = rustls::client::Resumption::disabled();
    Ok(Arc::new(config))
}

fn handshake(target: &Target, config: &Arc<ClientConfig>) -> anyhow::Result<Duration> {
    let begun = Instant::now();
    connected(target, config)?;
    Ok(begun.elapsed())
}

/// A connection whose handshake is done.
fn connected(target: &Target, config: &Arc<ClientConfig>) -> anyhow::Result<(ClientConnection, TcpStream)> {
    let host = &target.host;
    let name = ServerName::try_from(host.clone().into_owned())?;
    let mut stream = target.connect()?;
    if let Some(credential) = &target.credential {
        let connect = format!(
            "CONNECT {host}:443 HTTP/1.1\r\nHost: {host}:443\r\nProxy-Authorization: Basic {credential}\r\n\r\n"
        );
        stream.write_all(connect.as_bytes())?;
        let (head, _) = head(&mut stream)?;
        ensure!(head.starts_with("HTTP/1.1 200"), "CONNECT was answered with {head}");
    }
    let mut connection = ClientConnection::new(Arc::clone(config), name)?;
    while connection.is_handshaking() {
        connection.complete_io(&mut stream)?;
    }
    Ok((connection, stream))
}

fn exchange(stream: &mut (impl Read + Write), request: &str) -> anyhow::Result<()> {
    stream.write_all(request.as_bytes())?;
    let (head, mut body) = head(&mut *stream)?;
    ensure!(head.starts_with("HTTP/1.1 200"), "the answer is {head}");
    let mut buffer = [0; 4096];
    while body < BODY_BYTES {
        let n = stream.read(&mut buffer)?;
        ensure!(n > 0, "the answer ends early");
        body += n;
    }
    ensure!(body == BODY_BYTES, "the answer has {body} bytes");
    Ok(())
}

/// The head of a response, and how many bytes of its body came along.
fn head(stream: &mut impl Read) -> anyhow::Result<(String, usize)> {
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let n = stream.read(&mut buffer)?;
        ensure!(n > 0 && bytes.len() < HEAD_BYTES_MAX, "the answer is no HTTP response");
        bytes.extend_from_slice(buffer.get(..n).unwrap_or_default());
        if let Some(end) = bytes.windows(4).position(|w| w == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(bytes.get(..end).unwrap_or_default()).into_owned();
            return Ok((head, bytes.len() - end - 4));
        }
    }
}

/// Credentials of RFC 7617.
pub fn basic(user: &str, key: &str) -> String {
    clawgress_e2e::plan::base64(format!("{user}:{key}").as_bytes())
}
