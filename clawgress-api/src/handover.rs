//! Handing open listeners (and the kernel maps that L7 reads or writes) from the datapath role to L7 over a
//! Unix socket.
//!
//! A message is a JSON [`Handover`] with the descriptors as `SCM_RIGHTS` in the order it lists them. The
//! connection then stays open, and another message follows when something has changed. Each says the whole: what to
//! accept from, and the agents' interfaces. (Every message carries descriptors, and the kernel never joins two that
//! do.) The connection's end means the datapath role is gone, and L7 dials again to get the next set while it
//! goes on with the old one. Who gets nothing is told why, with a [`Refusal`] in place of the first message.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use serde::{Deserialize, Serialize};
use tokio::io::Interest;
use tokio::net::UnixStream;

/// Most descriptors in one message (the kernel's `SCM_MAX_FD` is 253).
pub const DESCRIPTORS_MAX: usize = 64;
/// What a process says, once, on the connection that it got the listeners by, if it serves the DNS ones.
/// While nobody does, no DNS is steered to them.
pub const SERVES_DNS: u8 = b'D';
/// What a process says, once, when it wants no new connections: they go to others from then on, and the message
/// that says so lists no listeners. The connection stays open for as long as the process works on.
pub const DRAINS: u8 = b'E';
/// What a process says again and again while it accepts: each time, every loop that accepts has come round since the
/// last. Who lets [`ALIVE_TIME_MAX`] pass without it has no part of new connections any more.
pub const ALIVE: u8 = b'A';
/// How often [`ALIVE`] is said.
pub const ALIVE_INTERVAL: Duration = Duration::from_secs(1);
/// Longest silence: as long as the roles wait for each other (an interval and a time-out of 5 s each). What waits
/// meanwhile is served by others after it, and not lost.
pub const ALIVE_TIME_MAX: Duration = Duration::from_secs(10);
/// Most bytes of the JSON part.
const BYTES_MAX: usize = 16 * 1024;

/// What is handed over. Descriptors: one a listener, in order, then the flow table if `flow_table`, then the
/// table of dials if `dials`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Handover {
    /// The listeners.
    pub listeners: Vec<Listener>,
    /// Whether the flow table map is among the descriptors.
    pub flow_table: bool,
    /// Whether the map in which L7 registers its own sockets is among them. Where it is, an unregistered
    /// socket reaches nothing.
    pub dials: bool,
    /// Indices of the agents' interfaces: the `ifindex` values that keys of the flow table carry.
    pub interfaces: Vec<u32>,
}

/// Why nothing is handed over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{refused}")]
#[serde(deny_unknown_fields)]
pub struct Refusal {
    /// For people, with the remedy.
    pub refused: String,
}

/// One listener.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Listener {
    /// What arrives there.
    pub kind: ListenerKind,
    /// Where it is bound.
    pub address: SocketAddr,
}

/// What arrives at a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ListenerKind {
    /// Steered TCP; the local address of an accepted socket is the original destination.
    Transparent,
    /// The explicit proxy.
    Proxy,
    /// The explicit proxy over TLS.
    ProxyTls,
    /// Steered DNS over TCP, as [`ListenerKind::Transparent`]. Taken by whoever says [`SERVES_DNS`].
    DnsStream,
    /// Steered DNS over UDP: a socket, no listener. Each datagram comes with its original destination
    /// (`IP_ORIGDSTADDR`, `IPV6_ORIGDSTADDR`); the answer has to come from there (`IP_TRANSPARENT`).
    DnsDatagram,
}

/// Sends `handover` and `descriptors`.
///
/// # Errors
/// If the socket fails or the bounds don't hold.
pub async fn send(
    stream: &UnixStream,
    handover: &Handover,
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let bytes = serde_json::to_vec(handover)?;
    if bytes.len() > BYTES_MAX || descriptors.len() > DESCRIPTORS_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "too many listeners to hand over"));
    }
    stream
        .async_io(Interest::WRITABLE, || {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            if !descriptors.is_empty() {
                control.push(SendAncillaryMessage::ScmRights(descriptors));
            }
            let sent = sendmsg(stream.as_fd(), &[IoSlice::new(&bytes)], &mut control, SendFlags::NOSIGNAL)?;
            if sent == bytes.len() { Ok(()) } else { Err(io::Error::from(io::ErrorKind::WriteZero)) }
        })
        .await
}

/// Says that nothing is handed over, and why.
///
/// # Errors
/// If the socket fails.
pub async fn refuse(stream: &UnixStream, why: &str) -> io::Result<()> {
    let bytes = serde_json::to_vec(&Refusal { refused: why.to_owned() })?;
    loop {
        stream.writable().await?;
        match stream.try_write(&bytes) {
            Ok(n) if n == bytes.len() => return Ok(()),
            Ok(_) => return Err(io::ErrorKind::WriteZero.into()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}

/// What the role at the other end says why it hands nothing over, if `error` of [`receive`] is that.
#[must_use]
pub fn refusal(error: &io::Error) -> Option<&Refusal> {
    error.get_ref()?.downcast_ref()
}

/// Says [`SERVES_DNS`], which is the first thing that is said.
///
/// # Errors
/// If the peer is gone, or takes nothing.
pub fn say_serves_dns(stream: &UnixStream) -> io::Result<()> {
    match stream.try_write(&[SERVES_DNS])? {
        1 => Ok(()),
        _ => Err(io::ErrorKind::WriteZero.into()),
    }
}

/// Says [`ALIVE`]. To a peer that lets what was said before lie, nothing is said.
///
/// # Errors
/// If the peer is gone.
pub fn say_alive(stream: &UnixStream) -> io::Result<()> {
    match stream.try_write(&[ALIVE]) {
        Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
        _ => Ok(()),
    }
}

/// Receives what [`send`] sent.
///
/// # Errors
/// If the socket fails, or the message is not a whole handover with all its descriptors. A [`Refusal`] is an error
/// that says what it says.
pub async fn receive(stream: &UnixStream) -> io::Result<(Handover, Vec<OwnedFd>)> {
    let mut bytes = vec![0; BYTES_MAX];
    let mut descriptors = Vec::new();
    let n = stream
        .async_io(Interest::READABLE, || {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let received = recvmsg(
                stream.as_fd(),
                &mut [IoSliceMut::new(&mut bytes)],
                &mut control,
                RecvFlags::CMSG_CLOEXEC,
            )?;
            for message in control.drain() {
                if let RecvAncillaryMessage::ScmRights(rights) = message {
                    descriptors.extend(rights);
                }
            }
            Ok(received.bytes)
        })
        .await?;
    let handover: Handover = parse(bytes.get(..n).unwrap_or_default())?;
    let maps = usize::from(handover.flow_table) + usize::from(handover.dials);
    if descriptors.len() != handover.listeners.len() + maps {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "descriptors are missing from the handover"));
    }
    Ok((handover, descriptors))
}

fn parse(bytes: &[u8]) -> io::Result<Handover> {
    if bytes.is_empty() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    serde_json::from_slice(bytes).map_err(|error| match serde_json::from_slice::<Refusal>(bytes) {
        Ok(refusal) => io::Error::new(io::ErrorKind::PermissionDenied, refusal),
        Err(_) => io::Error::new(io::ErrorKind::InvalidData, error),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn listeners_cross_the_socket_and_still_accept() {
        let (a, b) = UnixStream::pair().expect("socketpair");
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
        let address = listener.local_addr().expect("address");
        let sent = Handover {
            listeners: vec![Listener { kind: ListenerKind::Proxy, address }],
            flow_table: false,
            dials: false,
            interfaces: vec![],
        };
        send(&a, &sent, &[listener.as_fd()]).await.expect("send");
        drop(listener);
        let (got, mut descriptors) = receive(&b).await.expect("receive");
        assert_eq!(got, sent);
        let listener = std::net::TcpListener::from(descriptors.remove(0));
        let _client = std::net::TcpStream::connect(address).expect("connect");
        listener.accept().expect("accept");
        drop(a);
        assert!(receive(&b).await.is_err(), "the end of the stream is an error, not an empty handover");
    }

    #[tokio::test]
    async fn who_gets_nothing_is_told_why() {
        let (a, b) = UnixStream::pair().expect("socketpair");
        refuse(&a, "stop one").await.expect("refuse");
        let error = receive(&b).await.expect_err("refused");
        assert_eq!(error.to_string(), "stop one");
        assert_eq!(refusal(&error).map(|r| r.refused.as_str()), Some("stop one"));
        drop(a);
        let gone = receive(&b).await.expect_err("gone");
        assert_eq!(refusal(&gone), None, "{gone}: a role that is gone has refused nothing");
    }
}
