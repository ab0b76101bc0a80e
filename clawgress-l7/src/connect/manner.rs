//! How a client asks for a tunnel, and what it is answered.

use std::io;
use std::time::Duration;

use clawgress_ebpf_common::DropReason;
use clawgress_inspect::socks5::{self, Reply};
use tokio::io::AsyncWriteExt as _;

use crate::decide::Ruling;
use crate::enforce::enforce;
use crate::exchange::{End, Exchange};
use crate::gateway::Gateway;
use crate::stream::Stream;
use crate::{limit, page, peek};

const CONNECTED: &[u8] = b"HTTP/1.1 200 Connection established\r\n\r\n";
const SUCCEEDED: &[u8] = &socks5::reply(Reply::Succeeded);

/// How a tunnel is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// The method CONNECT of HTTP/1.1, or of HTTP/2.
    Connect,
    /// A request of SOCKS 5.
    Socks5,
}

/// A tunnel that is refused before its client was told to begin.
#[derive(Debug)]
pub struct Refused {
    /// How it was asked for.
    pub manner: Manner,
    /// What is recorded of it.
    pub exchange: Exchange,
    /// The client, who waits for an answer.
    pub stream: Stream,
    /// Whether a credential came with it, or with its connection.
    pub has_presented: bool,
}

// === impl Manner ===

impl Manner {
    /// Tells the client to begin.
    ///
    /// # Errors
    /// If it has left, or does not take that within [`limit::CLIENT_WRITE`]: it may have asked for other things before, whose
    /// answers it has not read.
    pub async fn establish(self, stream: &mut Stream) -> io::Result<()> {
        let word = match (&mut *stream, self) {
            (Stream::Within(within), _) => return within.establish(),
            (_, Manner::Connect) => CONNECTED,
            (_, Manner::Socks5) => SUCCEEDED,
        };
        let told = async {
            stream.write_all(word).await?;
            stream.flush().await
        };
        tokio::time::timeout(limit::CLIENT_WRITE, told).await.map_err(io::Error::from)?
    }

    /// The HTTP status by which the client is told to begin, if it is told by one.
    #[must_use]
    pub fn status(self) -> Option<u16> {
        match self {
            Manner::Connect => Some(200),
            Manner::Socks5 => None,
        }
    }
}

// === impl Refused ===

impl Refused {
    /// Enforces `ruling`, which denies, records it, and tells the client.
    pub async fn end(mut self, gateway: &Gateway, ruling: Ruling) {
        self.exchange.keep_pace(&ruling).await;
        let ruling = enforce(gateway, ruling, self.exchange.id()).await;
        let reason = ruling.verdict.err().unwrap_or(DropReason::PolicyDenied);
        let retry_after = ruling.retry_after;
        self.exchange.deny(ruling);
        self.tell(reason, retry_after).await;
    }

    /// Tells the client why it can't begin, and records that.
    pub async fn say(self, reason: DropReason) {
        self.tell(reason, None).await;
    }

    async fn tell(mut self, reason: DropReason, retry_after: Option<Duration>) {
        let client = page::Client::of_proxy(self.has_presented);
        let status = self.manner.status().map(|_| page::status_as(client, reason));
        self.exchange.end(End { status, reason: Some(reason), ..End::default() });
        if let Stream::Within(within) = &mut self.stream {
            // It may have left, and was told nothing then.
            let _ = within.refuse(client, self.exchange.denial(reason), retry_after);
            return;
        }
        match self.manner {
            Manner::Connect => {
                let word = page::response(&self.exchange.denial(reason), self.has_presented, retry_after);
                peek::say_and_close(self.stream, word.as_bytes()).await;
            }
            Manner::Socks5 => peek::say_and_close(self.stream, &socks5::reply(word(reason))).await,
        }
    }
}

/// The one byte that SOCKS has for a reason: those of RFC 1928 section 6 that come nearest.
fn word(reason: DropReason) -> Reply {
    match reason {
        DropReason::ResolveFailed => Reply::HostUnreachable,
        DropReason::UpstreamFailed | DropReason::ParentFailed => Reply::Refused,
        DropReason::SocksUnsupported => Reply::CommandUnsupported,
        DropReason::HostInvalid => Reply::AddressUnsupported,
        DropReason::SnapshotMissing
        | DropReason::InterceptionUnavailable
        | DropReason::PolicyMissing
        | DropReason::AuditUnavailable
        | DropReason::IdentityUnavailable
        | DropReason::LimitUnavailable
        | DropReason::HistoryUnavailable
        | DropReason::Overloaded
        | DropReason::Draining
        | DropReason::Timeout
        | DropReason::SocksMalformed => Reply::Failure,
        _ => Reply::NotAllowed,
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    /// A client may have asked for other things before, and read none of their answers.
    #[tokio::test(start_paused = true)]
    async fn who_takes_nothing_is_not_waited_for() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let client = TcpStream::connect(listener.local_addr().expect("address")).await.expect("connected");
        let (server, _) = listener.accept().await.expect("accepted");
        while server.writable().await.is_ok() && server.try_write(&[0; 1 << 16]).is_ok() {}
        let mut stream = Stream::from(server);
        let told = Manner::Connect.establish(&mut stream).await;
        assert_eq!(told.map_err(|error| error.kind()), Err(io::ErrorKind::TimedOut));
        drop(client);
    }
}
