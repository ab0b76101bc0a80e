//! Ways out: by which route a destination is reached, and parent proxies that routes lead through.
//!
//! INVARIANT: which way is taken is known before it is judged, and nothing else is tried in its place: where a parent proxy
//! fails, nobody is dialled. The credential for one is sent to its address alone, and never told.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use arc_swap::ArcSwapOption;
use clawgress_api::config::route::find;
use clawgress_api::config::{self, Config, Resolve};
use clawgress_ebpf_common::DropReason;
use clawgress_inspect::dns::watch::{Finding, Noted};
use clawgress_inspect::proxy_authorization;
use clawgress_inspect::proxy_response::{self, Head};
use clawgress_policy::Host;
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::MissedTickBehavior;
use tokio_rustls::client::TlsStream;
use zeroize::Zeroizing;

use crate::gateway::Gateway;
use crate::limit;

mod secured;

pub use self::secured::Leg;
use self::secured::Secured;

/// Bits of a mode by which others than the owner and its group may read or write, and the group may write.
const OPEN_BITS: u32 = 0o037;

/// What a status line has at least.
const STATUS_LINE_BYTES: usize = "HTTP/1.1 200\r\n".len();

/// What the configuration says.
#[derive(Debug, Default)]
pub struct Routes {
    /// As they are written.
    written: Vec<config::Route>,
    /// The same, in this order.
    routes: Vec<Arc<Route>>,
    parents: Vec<Arc<Parent>>,
}

/// A route.
#[derive(Debug)]
pub struct Route {
    /// Its number, from 1.
    pub number: u32,
    /// What it leads through.
    pub parent: Option<Arc<Parent>>,
    resolve: Resolve,
    source: Vec<IpAddr>,
}

/// A parent proxy.
#[derive(Debug)]
pub struct Parent {
    /// Its name.
    pub name: String,
    /// Where it listens.
    pub address: SocketAddr,
    /// Whom it has to prove that it is, over TLS; it is spoken to in clear if absent.
    secured: Option<Secured>,
    file: Option<PathBuf>,
    authorization: ArcSwapOption<Authorization>,
    /// When the log told last that it failed.
    told: Mutex<Option<Instant>>,
}

/// The value of `Proxy-Authorization`.
#[derive(PartialEq, Eq)]
struct Authorization(Zeroizing<String>);

/// A way to a destination.
#[derive(Clone, Debug)]
pub struct Way {
    /// The destination's address; `None` where a parent proxy resolves its name.
    pub ip: Option<IpAddr>,
    /// The route that fits it.
    pub route: Option<Arc<Route>>,
}

// === impl Authorization ===

impl std::fmt::Debug for Authorization {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Authorization")
    }
}

impl Authorization {
    /// Reads `USER:PASSWORD` from a file that others can't.
    fn read(path: &Path) -> Result<Self> {
        let place = path.display();
        let correct =
            || format!("cannot read `{place}`; correct `credential` in [[parent]], or who may read it");
        let mode = fs::metadata(path).with_context(correct)?.mode();
        ensure!(
            mode & OPEN_BITS == 0,
            "the credential in `{place}` is open to others: give it to the user of clawgress-l7, with mode 0400"
        );
        // Whole at once: a buffer that grows would leave parts of it behind.
        let mut bytes = Zeroizing::new(Vec::with_capacity(limit::PARENT_FILE_BYTES + 1));
        let file = File::open(path).with_context(correct)?;
        file.take(limit::PARENT_FILE_BYTES as u64 + 1).read_to_end(&mut bytes).with_context(correct)?;
        let text = std::str::from_utf8(bytes.trim_ascii_end()).ok();
        let halves = text.and_then(|text| text.split_once(':'));
        let halves = halves.filter(|(user, password)| {
            let is_sent = |text: &str| !text.is_empty() && !text.chars().any(char::is_control);
            bytes.len() <= limit::PARENT_FILE_BYTES && is_sent(user) && is_sent(password)
        });
        let (user, password) =
            halves.with_context(|| format!("`{place}` does not hold one line `USER:PASSWORD`"))?;
        Ok(Authorization(Zeroizing::new(proxy_authorization::encode(user, password))))
    }
}

// === impl Routes ===

impl Routes {
    /// Those of the configuration.
    ///
    /// # Errors
    /// If a credential can't be read, or is open to others.
    pub fn new(config: &Config) -> Result<Self> {
        let parents = config.parents.iter().map(Parent::new).collect::<Result<Vec<_>>>()?;
        let route = |(number, written): (u32, &config::Route)| {
            let named = |name: &String| parents.iter().find(|parent| parent.name == *name).cloned();
            let parent = written.parent.as_ref().and_then(named);
            Arc::new(Route { number, parent, resolve: written.resolve, source: written.source.clone() })
        };
        let routes = (1..).zip(&config.routes).map(route).collect();
        Ok(Routes { written: config.routes.clone(), routes, parents })
    }

    fn find(&self, host: &Host, port: u16, ip: Option<IpAddr>) -> Option<Arc<Route>> {
        let (number, _) = find(&self.written, &host.to_string(), port, ip)?;
        self.routes.get(number.checked_sub(1)?).cloned()
    }

    /// The way to a name that nobody here resolves; `None` if it is to be resolved.
    #[must_use]
    pub fn by_name(&self, host: &Host, port: u16) -> Option<Way> {
        if self.routes.is_empty() || matches!(host, Host::Address(_)) {
            return None;
        }
        let route = self.find(host, port, None).filter(|route| route.resolve == Resolve::Parent)?;
        Some(Way { ip: None, route: Some(route) })
    }

    /// The way to one of the addresses of a host.
    #[must_use]
    pub fn by_address(&self, host: &Host, port: u16, ip: IpAddr) -> Way {
        if self.routes.is_empty() {
            return Way::direct(ip);
        }
        Way { ip: Some(ip), route: self.find(host, port, Some(ip)) }
    }

    /// Reads credentials again whenever their files change, for ever. What can't be used changes nothing.
    pub async fn follow(&self) {
        let mut looks = tokio::time::interval(limit::TLS_FILES_LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            looks.tick().await;
            self.parents.iter().for_each(|parent| parent.refresh());
        }
    }
}

// === impl Parent ===

impl Parent {
    fn new(written: &config::Parent) -> Result<Arc<Self>> {
        let config::Parent { name, address, credential, tls, roots } = written;
        let secured = tls.as_ref().map(|name| Secured::new(name, roots)).transpose();
        let secured = secured.with_context(|| format!("parent `{name}` can't be used"))?;
        let authorization = credential.as_deref().map(Authorization::read).transpose();
        let authorization = authorization.with_context(|| format!("parent `{name}` can't be used"))?;
        Ok(Arc::new(Parent {
            name: name.clone(),
            address: *address,
            secured,
            file: credential.clone(),
            authorization: ArcSwapOption::new(authorization.map(Arc::new)),
            told: Mutex::default(),
        }))
    }

    fn refresh(&self) {
        let Some(path) = &self.file else { return };
        match Authorization::read(path) {
            Ok(read) if self.authorization.load().as_deref() == Some(&read) => {}
            Ok(read) => {
                self.authorization.store(Some(Arc::new(read)));
                tracing::info!(parent = self.name, "its credential was read again");
            }
            Err(error) => {
                self.tell(&format!("its new credential can't be used, the former stays: {error:#}"))
            }
        }
    }

    /// Has the log tell what is wrong, now and then: an agent that tries again and again must not fill it.
    fn tell(&self, what: &str) {
        let mut told = self.told.lock();
        if told.is_none_or(|at| at.elapsed() >= limit::PARENT_TOLD) {
            *told = Some(Instant::now());
            tracing::warn!(parent = self.name, "{what}");
        }
    }

    /// Asks for a tunnel on a connection to it. What is returned is the destination's.
    async fn open(&self, mut stream: TcpStream, target: &str) -> io::Result<Leg> {
        let Some(secured) = &self.secured else {
            stream.set_nodelay(true)?;
            self.ask(&mut stream, target).await?;
            return Ok(Leg::Bare(stream));
        };
        let mut stream = secured.begin(stream).await?;
        self.ask(&mut stream, target).await?;
        Leg::within(stream)
    }

    async fn ask(&self, stream: &mut impl Answers, target: &str) -> io::Result<()> {
        let authorization = self.authorization.load_full();
        let field =
            authorization.as_ref().map(|a| Zeroizing::new(format!("Proxy-Authorization: {}\r\n", *a.0)));
        let field = field.as_ref().map_or("", |field| field.as_str());
        let request = Zeroizing::new(format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n{field}\r\n"));
        stream.write_all(request.as_bytes()).await?;
        stream.flush().await?;
        for _ in 0..=limit::PARENT_INTERIMS_MAX {
            match stream.answer().await? {
                // Of an interim answer, another follows.
                100..=199 => {}
                200..=299 => return Ok(()),
                407 if authorization.is_some() => {
                    return Err(io::Error::other("it answered 407: it does not take the `credential`"));
                }
                407 => return Err(io::Error::other("it answered 407: it wants a `credential`")),
                status => return Err(io::Error::other(format!("it answered {status} to CONNECT"))),
            }
        }
        Err(io::Error::other("it does not come to an end with interim answers"))
    }
}

/// What a parent answers by.
trait Answers: AsyncWrite + Unpin {
    /// The status of the answer that it begins with; what follows its head stays there.
    async fn answer(&mut self) -> io::Result<u16>;
}

impl Answers for TcpStream {
    async fn answer(&mut self) -> io::Result<u16> {
        let (mut held, mut ahead) = (Vec::new(), [0; 1024]);
        loop {
            let n = self.peek(&mut ahead).await?;
            if n == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let before = held.len();
            held.extend_from_slice(ahead.get(..n).unwrap_or_default());
            let head = if is_telling(&held, before) {
                proxy_response::parse(&held).map_err(io::Error::other)?
            } else {
                None
            };
            // Not a byte more than the head is taken off.
            let taken = head.map_or(n, |Head { bytes, .. }| bytes.saturating_sub(before));
            self.read_exact(ahead.get_mut(..taken).unwrap_or_default()).await?;
            if let Some(Head { status, .. }) = head {
                return Ok(status);
            }
        }
    }
}

impl Answers for TlsStream<TcpStream> {
    async fn answer(&mut self) -> io::Result<u16> {
        let mut held = Vec::new();
        loop {
            // One at a time, for the same reason: they are decrypted, and in memory.
            held.push(self.read_u8().await?);
            let is_line = held.ends_with(b"\n") || held.len() >= proxy_response::HEAD_BYTES_MAX;
            let head = if is_line { proxy_response::parse(&held).map_err(io::Error::other)? } else { None };
            if let Some(Head { status, .. }) = head {
                return Ok(status);
            }
        }
    }
}

/// Whether more is known of a head than when it had `before` bytes: its beginning, its end, or that it can't be one. A head that
/// comes byte by byte is not read from its beginning with each.
fn is_telling(held: &[u8], before: usize) -> bool {
    // Of an end, three bytes may have been there.
    let new = held.get(before.saturating_sub(3)..).unwrap_or_default();
    before < STATUS_LINE_BYTES
        || held.len() >= proxy_response::HEAD_BYTES_MAX
        || new.windows(4).any(|four| four == b"\r\n\r\n")
        || new.windows(2).any(|two| matches!(two, [first, b'\n'] if *first != b'\r'))
}

// === impl Way ===

impl PartialEq for Way {
    fn eq(&self, other: &Way) -> bool {
        (self.ip, self.number()) == (other.ip, other.number())
    }
}

impl Eq for Way {}

impl Way {
    /// Straight to an address.
    #[must_use]
    pub fn direct(ip: IpAddr) -> Way {
        Way { ip: Some(ip), route: None }
    }

    /// The route's number, from 1; 0 for none.
    #[must_use]
    pub fn number(&self) -> u32 {
        self.route.as_ref().map_or(0, |route| route.number)
    }

    /// The parent proxy that it leads through.
    #[must_use]
    pub fn parent(&self) -> Option<&Arc<Parent>> {
        self.route.as_ref()?.parent.as_ref()
    }

    /// What is dialled to reach `port`. `None` can't be: a name is resolved by a parent proxy or here.
    #[must_use]
    pub fn dialled(&self, port: u16) -> Option<SocketAddr> {
        match self.parent() {
            Some(parent) => Some(parent.address),
            None => self.ip.map(|ip| SocketAddr::new(ip, port)),
        }
    }

    /// The address to dial `to` from.
    ///
    /// # Errors
    /// If the route has none of its family.
    pub fn source(&self, to: SocketAddr) -> io::Result<Option<SocketAddr>> {
        let Some(route) = self.route.as_ref().filter(|route| !route.source.is_empty()) else {
            return Ok(None);
        };
        let fits = route.source.iter().find(|ip| ip.is_ipv4() == to.is_ipv4());
        let ip = fits.ok_or(io::ErrorKind::AddrNotAvailable)?;
        Ok(Some(SocketAddr::new(*ip, 0)))
    }

    /// Whether it can be dialled at all.
    fn has_source(&self, port: u16) -> bool {
        self.dialled(port).is_some_and(|to| self.source(to).is_ok())
    }

    /// How long making the connection may take.
    #[must_use]
    pub fn patience(&self) -> Duration {
        if self.parent().is_some() { limit::DIAL_PARENT } else { limit::DIAL }
    }

    /// Why it was, if it could not be reached.
    #[must_use]
    pub fn failure(&self) -> DropReason {
        if self.parent().is_some() { DropReason::ParentFailed } else { DropReason::UpstreamFailed }
    }

    /// Has a parent proxy lead on to `host` at `port`; of any other way, there is nothing to do.
    ///
    /// # Errors
    /// If it doesn't.
    pub async fn lead_on(&self, stream: TcpStream, host: &Host, port: u16) -> io::Result<Leg> {
        let Some(parent) = self.parent() else { return Ok(Leg::Bare(stream)) };
        let target = match (self.ip, host) {
            (Some(ip), _) => SocketAddr::new(ip, port).to_string(),
            (None, Host::Address(ip)) => SocketAddr::new(*ip, port).to_string(),
            (None, Host::Name(name)) => format!("{name}:{port}"),
        };
        parent.open(stream, &target).await
    }

    /// Has the log tell why it could not be reached, where it leads through a parent proxy or from an address that was
    /// chosen.
    pub fn tell(&self, error: &dyn std::fmt::Display) {
        match self.parent() {
            Some(parent) => parent.tell(&format!("no connection through it: {error}")),
            None => tracing::debug!(ip = ?self.ip, route = self.number(), %error, "not connected"),
        }
    }
}

// === impl Gateway ===

impl Gateway {
    /// The ways to `host` at `port`, at least one, none of them judged, for the agent of this index. What the names that it has asked
    /// for come to look like is `noted`, whatever comes of this one.
    ///
    /// # Errors
    /// [`DropReason::ResolveFailed`]; [`DropReason::DnsCapped`] if it has names asked for as tunnels do;
    /// [`DropReason::UpstreamFailed`] if a route leaves no family to dial in.
    pub async fn ways(
        &self,
        agent: u32,
        (host, port): (&Host, u16),
        noted: &mut Vec<Finding>,
    ) -> Result<Vec<Way>, DropReason> {
        if let Some(way) = self.routes.by_name(host, port) {
            return Ok(vec![way]);
        }
        let addresses = match self.resolver.known(host) {
            Some(known) => known,
            // Boxed, as most are known.
            None => Box::pin(self.addresses(agent, host, noted)).await?,
        };
        let ways = addresses.into_iter().map(|ip| self.routes.by_address(host, port, ip));
        let ways: Vec<Way> = ways.filter(|way| way.has_source(port)).collect();
        if ways.is_empty() { Err(DropReason::UpstreamFailed) } else { Ok(ways) }
    }

    /// The addresses of a name that nobody knows here: asking for it tells it to whoever has its zone.
    async fn addresses(
        &self,
        agent: u32,
        host: &Host,
        noted: &mut Vec<Finding>,
    ) -> Result<Vec<IpAddr>, DropReason> {
        let Noted { found, over } = self.dns.resolves(agent, Instant::now(), self.now_s(), &host.to_string());
        noted.extend(found);
        if over.is_some() {
            return Err(DropReason::DnsCapped);
        }
        self.resolver.find(agent, host).await
    }
}
