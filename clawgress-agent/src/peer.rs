//! Who is at the other end of a Unix socket: the one place where a process is let in, by the
//! credentials the kernel vouches for (SO_PEERCRED), never by anything the peer says.
//!
//! The process id is for logs only: it may have been reused by the time it is read.

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
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::Connected;

/// Connections at once on one socket: some administrators and L7 workers; more is somebody's mistake.
const CONNECTIONS_MAX: usize = 256;
/// Refusals being told at once; beyond it the connection is just closed.
const REFUSALS_MAX: usize = 16;
/// How long a refused peer may take to read its refusal.
const REFUSAL_TIME_MAX: Duration = Duration::from_secs(1);
/// Bytes of a refused peer that are read and thrown away, so that it can read why.
const REFUSAL_BYTES_MAX: u64 = 64 * 1024;
/// Pause after a failed `accept` (no descriptors left), so that the loop doesn't spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// An HTTP/2 SETTINGS frame, then GOAWAY with INADEQUATE_SECURITY (RFC 9113, 6.5, 6.8, 7), which gRPC
/// clients report as permission denied.
const REFUSAL: [u8; 26] = [0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xc];

/// The sockets of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Socket {
    /// Served by keys; control and L7 may.
    Keys,
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
                        tokio::spawn(refuse(stream, place));
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
async fn refuse(mut stream: UnixStream, _place: OwnedSemaphorePermit) {
    let talk = async {
        stream.write_all(&REFUSAL).await?;
        stream.shutdown().await?;
        // Closing with unread bytes would make the peer's next write fail before it has read the refusal.
        tokio::io::copy(&mut (&mut stream).take(REFUSAL_BYTES_MAX), &mut tokio::io::sink()).await
    };
    let _ = tokio::time::timeout(REFUSAL_TIME_MAX, talk).await;
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
            Socket::Control | Socket::Handover => uids.extend(l7()?),
            Socket::Datapath => uids.extend(control()?),
            Socket::Admin => {
                for name in &access.admin_users {
                    uids.extend(user(Some(name), name)?);
                }
                group = admin_group(access)?;
            }
        }
        Ok(Access { socket, uids, group })
    }

    /// Whether the process at the other end of `stream` may use this socket.
    ///
    /// # Errors
    /// If it may not.
    pub fn check(&self, stream: &UnixStream) -> Result<Peer, PeerError> {
        let credentials = stream.peer_cred()?;
        let peer = Peer { uid: credentials.uid(), gid: credentials.gid(), pid: credentials.pid() };
        if self.uids.contains(&peer.uid) || self.group.is_some_and(|g| is_member(&peer, g)) {
            return Ok(peer);
        }
        Err(PeerError::Refused { uid: peer.uid, pid: peer.pid, socket: self.socket.name() })
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
