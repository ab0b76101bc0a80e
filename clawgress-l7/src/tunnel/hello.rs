//! The second hello of a client whose server asks for one: it names its server anew, and is held until that is known to be the same.
//!
//! INVARIANT: behind a hello, nothing of a client goes on before its server's first word is known, or it holds no other hello.

use clawgress_ebpf_common::DropReason;
use clawgress_inspect::client_hello::{ClientHello, HELLO_BYTES_MAX, Reassembler};
use clawgress_inspect::hello_retry::{Reply, Second, SecondError};
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::net::TcpStream;
use tokio::sync::SetOnce;
use tokio::time::Instant;

use super::halves::Writer;
use super::{COPY_BYTES, Meter};
use crate::{limit, peek};

/// What a client begins with, and what of it waits.
pub struct Begun {
    /// What goes on: a hello and nothing else, if it is one.
    pub bytes: Vec<u8>,
    /// What it said besides, which waits for the server.
    pub behind: Option<(ClientHello, Vec<u8>)>,
}

// === impl Begun ===

impl Begun {
    /// What `bytes` are.
    pub fn of(mut bytes: Vec<u8>) -> Begun {
        let mut reassembler = Reassembler::default();
        let behind = match reassembler.push(&bytes) {
            Ok(Some(hello)) => {
                let behind = bytes.split_off(reassembler.bytes().min(bytes.len()));
                Some((hello, behind))
            }
            _ => None,
        };
        Begun { bytes, behind }
    }
}

/// What goes on behind a hello, once its server has said something, or its client has ended; with a second hello in it, if the server
/// wants one.
///
/// # Errors
/// [`DropReason::SniMismatch`] if that is for another server; [`DropReason::TlsMalformed`] or [`DropReason::Timeout`].
pub async fn behind(
    client: &mut (impl AsyncRead + Unpin),
    (hello, mut bytes): (ClientHello, Vec<u8>),
    is_retry: &SetOnce<bool>,
) -> Result<Vec<u8>, DropReason> {
    let mut has_ended = false;
    loop {
        tokio::select! {
            biased;
            is_retry = is_retry.wait() => match is_retry {
                true => break,
                false => return Ok(bytes),
            },
            // Its end is passed on also to a server that says nothing.
            read = client.read_buf(&mut bytes), if bytes.len() < HELLO_BYTES_MAX => if !matches!(read, Ok(1..)) {
                has_ended = true;
                break;
            },
        }
    }
    let (mut second, mut seen) = (Second::of(&hello), 0);
    let deadline = Instant::now() + limit::PEEK;
    loop {
        match second.push(bytes.get(seen..).unwrap_or_default()) {
            Ok(true) => return Ok(bytes),
            Ok(false) => seen = bytes.len(),
            Err(error) => {
                tracing::debug!(%error, "refused second hello");
                return Err(match error {
                    SecondError::Other => DropReason::SniMismatch,
                    SecondError::Hello(_) | SecondError::Interleaved => DropReason::TlsMalformed,
                });
            }
        }
        if has_ended || peek::more(client, &mut bytes, deadline).await? == 0 {
            return Ok(bytes);
        }
    }
}

/// Carries the server's first word, and tells whether it asks for a second hello before it goes on.
pub async fn reply(
    upstream: &TcpStream,
    client: &mut Writer<'_>,
    meter: &Meter,
    is_retry: &SetOnce<bool>,
) -> std::io::Result<()> {
    let mut reply = Reply::default();
    loop {
        upstream.readable().await?;
        let mut buffer = vec![0; COPY_BYTES];
        let n = match upstream.try_read(&mut buffer) {
            Ok(n) => n,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => continue,
            Err(error) => return Err(error),
        };
        let said = buffer.get(..n).unwrap_or_default();
        let told = if n == 0 { Some(false) } else { reply.push(said) };
        told.into_iter().for_each(|told| _ = is_retry.set(told));
        client.say(said, meter).await?;
        if told.is_some() {
            return Ok(());
        }
    }
}
