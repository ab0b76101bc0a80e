//! Who is at the other end of a Unix socket: the one place where a process is let in, by the
//! credentials the kernel vouches for (SO_PEERCRED), never by anything the peer says.
//!
//! A process that the gateway governs is never let in, whoever its user is ([`governed`]).
//! The process id in a [`Peer`] is for logs only: it may have been reused by the time it is read.

mod governed;
mod refusal;

use std::collections::BTreeSet;
use std::ffi::CString;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clawgress_api::config::{self, Config};
use nix::unistd::{Gid, Group, Uid, User, getgrouplist};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::Connected;

use self::governed::Workloads;

/// Connections at once on one socket: some administrators and L7 workers; more is somebody's mistake.
const CONNECTIONS_MAX: usize = 256;
/// Refusals being told at once; beyond it the connection is just closed.
const REFUSALS_MAX: usize = 16;
/// How long a refused peer may take to read its refusal.
const REFUSAL_TIME_MAX: Duration = Duration::from_secs(1);
/// Pause after a failed `accept` (no descriptors left), so that the loop doesn't spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// What a refused process is told; plain ASCII, as it goes into a header.
const REFUSAL: &str = "this user may not use this socket; see [access] in the configuration";
/// What a governed process is told.
const REFUSAL_GOVERNED: &str = "a command that runs as an agent may not use this socket";

/// The sockets of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Socket {
    /// Served by keys; control and L7 may.
    Keys,
    /// Served by keys, which signs policy revisions; control may.
    Signer,
    /// Served by keys, which signs certificates for hosts; L7 may.
    Leaves,
    /// Served by keys, which opens providers' keys; L7 may.
    Vault,
    /// Served by control; L7 may.
    Control,
    /// Served by control; administrators may.
    Admin,
    /// Served by datapath; control may.
    Datapath,
    /// Served by datapath; L7 may.
    Handover,
}

impl Socket {
    /// Its file's name without the extension, for messages.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Socket::Keys => "keys",
            Socket::Signer => "signer",
            Socket::Leaves => "leaves",
            Socket::Vault => "vault",
            Socket::Control => "control",
            Socket::Admin => "admin",
            Socket::Datapath => "datapath",
            Socket::Handover => "handover",
        }
    }
}

/// Who may use one socket.
#[derive(Clone, Debug)]
pub struct Access {
    socket: Socket,
    uids: BTreeSet<u32>,
    group: Option<Gid>,
    workloads: Workloads,
}

/// A process that was let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its effective user when it connected.
    pub uid: u32,
    /// Its effective group when it connected.
    pub gid: u32,
    /// Its process id when it connected; for logs only.
    pub pid: Option<i32>,
}

/// Why a process was not let in.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// The kernel didn't say who it is.
    #[error("cannot read the credentials of the peer: {0}")]
    Unknown(#[from] io::Error),
    /// Not allowed here.
    #[error(
        "user {uid} (process {pid:?}) may not use the {socket} socket; see the [access] table of the configuration"
    )]
    Refused {
        /// Its user.
        uid: u32,
        /// Its process id.
        pid: Option<i32>,
        /// Which socket.
        socket: &'static str,
    },
    /// A command that runs as an agent.
    #[error("user {uid} (process {pid:?}) runs as an agent and may not use the {socket} socket")]
    Governed {
        /// Its user.
        uid: u32,
        /// Its process id.
        pid: Option<i32>,
        /// Which socket.
        socket: &'static str,
    },
    /// Nobody can say whether it runs as an agent.
    #[error(
        "cannot tell whether user {uid} (process {pid:?}) at the {socket} socket runs as an agent: {error}"
    )]
    Unclear {
        /// Its user.
        uid: u32,
        /// Its process id.
        pid: Option<i32>,
        /// Which socket.
        socket: &'static str,
        /// Why not.
        error: io::Error,
    },
}

/// A connection of a peer that was let in; it holds its place among the socket's connections.
#[derive(Debug)]
pub struct Admitted {
    stream: UnixStream,
    peer: Peer,
    _place: OwnedSemaphorePermit,
}

/// Accepts connections of peers that may use the socket, until `stop`; the others are told and closed.
/// For `tonic::transport::Server::serve_with_incoming`; handlers find the [`Peer`] in the request's extensions.
#[must_use]
pub fn incoming(
    listener: UnixListener,
    access: Access,
    stop: CancellationToken,
) -> ReceiverStream<io::Result<Admitted>> {
    let (sender, receiver) = mpsc::channel(1);
    tokio::spawn(async move {
        let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let refusals = Arc::new(Semaphore::new(REFUSALS_MAX));
        loop {
            let accepted = tokio::select! {
                () = stop.cancelled() => return,
                () = sender.closed() => return,
                accepted = listener.accept() => accepted,
            };
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, socket = access.socket.name(), "cannot accept");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let peer = match access.check(&stream) {
                Ok(peer) => peer,
                Err(error) => {
                    tracing::warn!(%error, "refused a connection");
                    if let Ok(place) = Arc::clone(&refusals).try_acquire_owned() {
                        tokio::spawn(refuse(stream, error.told(), place));
                    }
                    continue;
                }
            };
            let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
                tracing::warn!(socket = access.socket.name(), uid = peer.uid, "too many connections");
                continue;
            };
            if sender.send(Ok(Admitted { stream, peer, _place: place })).await.is_err() {
                return;
            }
        }
    });
    ReceiverStream::new(receiver)
}

/// Tells a gRPC client that it is not allowed, instead of leaving it with a closed connection.
async fn refuse(stream: UnixStream, told: &'static str, _place: OwnedSemaphorePermit) {
    let _ = tokio::time::timeout(REFUSAL_TIME_MAX, refusal::answer(stream, told)).await;
}

// === impl Access ===

impl Access {
    /// Who may use `socket`, by the users that `config` names.
    ///
    /// # Errors
    /// If a name in the configuration doesn't exist on this machine.
    pub fn new(config: &Config, socket: Socket) -> Result<Self> {
        let access = &config.access;
        let control = || user(access.control_user.as_deref(), config::Access::CONTROL_USER);
        let l7 = || user(access.l7_user.as_deref(), config::Access::L7_USER);
        let mut uids = BTreeSet::from([0, Uid::effective().as_raw()]);
        let mut group = None;
        match socket {
            Socket::Keys => uids.extend(control()?.into_iter().chain(l7()?)),
            Socket::Control | Socket::Handover | Socket::Leaves | Socket::Vault => uids.extend(l7()?),
            Socket::Datapath | Socket::Signer => uids.extend(control()?),
            Socket::Admin => {
                for name in &access.admin_users {
                    uids.extend(user(Some(name), name)?);
                }
                group = admin_group(access)?;
            }
        }
        let workloads = Workloads::new(config).context("cannot find the cgroups of governed commands")?;
        Ok(Access { socket, uids, group, workloads })
    }

    /// Whether the process at the other end of `stream` may use this socket.
    ///
    /// # Errors
    /// If it may not, or nobody can tell.
    pub fn check(&self, stream: &UnixStream) -> Result<Peer, PeerError> {
        let credentials = stream.peer_cred()?;
        let peer = Peer { uid: credentials.uid(), gid: credentials.gid(), pid: credentials.pid() };
        let Peer { uid, pid, .. } = peer;
        let socket = self.socket.name();
        if !self.uids.contains(&uid) && !self.group.is_some_and(|g| is_member(&peer, g)) {
            return Err(PeerError::Refused { uid, pid, socket });
        }
        match self.workloads.hold(stream, pid) {
            Ok(false) => Ok(peer),
            Ok(true) => Err(PeerError::Governed { uid, pid, socket }),
            Err(error) => Err(PeerError::Unclear { uid, pid, socket, error }),
        }
    }
}

impl PeerError {
    /// What the peer itself is told.
    fn told(&self) -> &'static str {
        match self {
            PeerError::Unknown(_) | PeerError::Refused { .. } => REFUSAL,
            PeerError::Governed { .. } | PeerError::Unclear { .. } => REFUSAL_GOVERNED,
        }
    }
}

impl Peer {
    /// The user's name, or its number where it has none.
    #[must_use]
    pub fn user(&self) -> String {
        match User::from_uid(Uid::from_raw(self.uid)) {
            Ok(Some(user)) => user.name,
            Ok(None) | Err(_) => self.uid.to_string(),
        }
    }
}

fn user(configured: Option<&str>, default: &str) -> Result<Option<u32>> {
    let name = configured.unwrap_or(default);
    match User::from_name(name).with_context(|| format!("cannot look up user `{name}`"))? {
        Some(user) => Ok(Some(user.uid.as_raw())),
        None if configured.is_none() => Ok(None),
        None => bail!("user `{name}` in the [access] table does not exist; create it or correct the name"),
    }
}

fn admin_group(access: &config::Access) -> Result<Option<Gid>> {
    let name = access.admin_group.as_deref().unwrap_or(config::Access::ADMIN_GROUP);
    match Group::from_name(name).with_context(|| format!("cannot look up group `{name}`"))? {
        Some(group) => Ok(Some(group.gid)),
        None if access.admin_group.is_none() => Ok(None),
        None => bail!("group `{name}` in the [access] table does not exist; create it or correct the name"),
    }
}

/// Membership as the user database has it now, so that a change needs no restart.
fn is_member(peer: &Peer, group: Gid) -> bool {
    if peer.gid == group.as_raw() {
        return true;
    }
    let Ok(Some(user)) = User::from_uid(Uid::from_raw(peer.uid)) else { return false };
    let Ok(name) = CString::new(user.name) else { return false };
    getgrouplist(&name, user.gid).is_ok_and(|groups| groups.contains(&group))
}

// === impl Admitted ===

impl Connected for Admitted {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer
    }
}

impl AsyncRead for Admitted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Admitted {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use clawgress_api::proto::MacApiKeyRequest;
    use clawgress_api::proto::keys_client::KeysClient;
    use clawgress_api::socket;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    fn config(access: &str) -> Config {
        let text =
            "[node]\nname = \"gw\"\n[datapath]\nmode = \"none\"\n[proxy]\nlisten = [\"127.0.0.1:1\"]\n[l7]\n";
        Config::parse(&format!("{text}{access}"), std::path::Path::new("c.toml")).expect("valid")
    }

    /// A socket that nobody may use.
    async fn closed() -> (tempfile::TempDir, std::path::PathBuf, CancellationToken) {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("s.sock");
        let listener = socket::bind(&path, 0o600).expect("bind");
        let workloads = Workloads::new(&config("")).expect("cgroups");
        let access = Access { socket: Socket::Keys, uids: BTreeSet::new(), group: None, workloads };
        let stop = CancellationToken::new();
        let mut accepted = incoming(listener, access, stop.clone());
        tokio::spawn(async move {
            let admitted = futures_util::StreamExt::next(&mut accepted).await;
            assert!(admitted.is_none(), "nobody is let in");
        });
        (dir, path, stop)
    }

    #[tokio::test]
    async fn a_grpc_client_is_told_that_it_may_not() {
        let (_dir, path, stop) = closed().await;
        for _ in 0..20 {
            let mut client = KeysClient::new(socket::channel(&path).expect("channel"));
            let refused = client.mac_api_key(MacApiKeyRequest { key: vec![1] }).await.expect_err("refused");
            assert_eq!(refused.code(), tonic::Code::PermissionDenied, "{refused:?}");
            assert_eq!(refused.message(), REFUSAL);
        }
        stop.cancel();
    }

    #[tokio::test]
    async fn a_refused_process_that_talks_nonsense_is_dropped_in_time() {
        let (_dir, path, stop) = closed().await;
        for bytes in [vec![], vec![0xff; 9], vec![0xff; 200_000]] {
            let mut stream = UnixStream::connect(&path).await.expect("connect");
            let _ = stream.write_all(&bytes).await;
            let mut answer = Vec::new();
            let read = tokio::time::timeout(REFUSAL_TIME_MAX * 5, stream.read_to_end(&mut answer));
            let _ = read.await.expect("the connection ends");
        }
        stop.cancel();
    }

    #[tokio::test]
    async fn the_own_user_is_let_in_and_a_name_that_does_not_exist_is_an_error() {
        let configured = config;
        let config = configured("");
        let (a, _b) = UnixStream::pair().expect("pair");
        for socket in [
            Socket::Keys,
            Socket::Signer,
            Socket::Leaves,
            Socket::Control,
            Socket::Admin,
            Socket::Datapath,
            Socket::Handover,
        ] {
            let peer = Access::new(&config, socket).expect("access").check(&a).expect("own user");
            assert_eq!(peer.uid, Uid::effective().as_raw());
        }
        let config = configured("[access]\nl7_user = \"no-such-user\"\nadmin_group = \"no-such-group\"\n");
        let error = |socket| Access::new(&config, socket).expect_err("no such name").to_string();
        assert!(error(Socket::Control).contains("user `no-such-user`"));
        assert!(error(Socket::Admin).contains("group `no-such-group`"));
        Access::new(&config, Socket::Datapath).expect("needs neither");
        // The L7 user is not among those who may administer, sign, or command the datapath.
        let l7 = configured("[access]\nl7_user = \"nobody\"\n");
        let uids = |socket| Access::new(&l7, socket).expect("access").uids;
        let nobody = User::from_name("nobody").expect("users").expect("nobody").uid.as_raw();
        assert!(uids(Socket::Keys).contains(&nobody) && uids(Socket::Control).contains(&nobody));
        assert!(uids(Socket::Handover).contains(&nobody));
        assert!(!uids(Socket::Admin).contains(&nobody) && !uids(Socket::Datapath).contains(&nobody));
        assert!(!uids(Socket::Signer).contains(&nobody));
        assert!(uids(Socket::Leaves).contains(&nobody), "of L7");
    }
}
