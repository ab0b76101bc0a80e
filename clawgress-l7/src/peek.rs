//! Reading a connection's first bytes: bounded, against a deadline, and kept for whoever gets them.

use clawgress_ebpf_common::DropReason;
use clawgress_inspect::client_hello::{ClientHello, Reassembler};
use clawgress_inspect::http1;
use clawgress_inspect::proxy_header::{self, Header, HeaderError};
use clawgress_inspect::sniff::{Protocol, sniff};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::{Instant, timeout, timeout_at};

use crate::limit;
use crate::stream::Stream;

/// Bytes read at once: a hello or head fits as a rule.
const READ_BYTES: usize = 4096;

/// Reads more into `held`; 0 at the end.
///
/// # Errors
/// [`DropReason::Timeout`].
pub async fn more(
    stream: &mut (impl AsyncRead + Unpin),
    held: &mut Vec<u8>,
    deadline: Instant,
) -> Result<usize, DropReason> {
    held.reserve(READ_BYTES);
    match timeout_at(deadline, stream.read_buf(held)).await {
        Ok(Ok(n)) => Ok(n),
        Ok(Err(_)) => Ok(0),
        Err(_) => Err(DropReason::Timeout),
    }
}

/// The protocol of the first bytes; `None` if the client left without any.
///
/// # Errors
/// [`DropReason::Timeout`].
pub async fn protocol(
    stream: &mut (impl AsyncRead + Unpin),
    held: &mut Vec<u8>,
    deadline: Instant,
) -> Result<Option<Protocol>, DropReason> {
    loop {
        if let Some(protocol) = sniff(held) {
            return Ok(Some(protocol));
        }
        if more(stream, held, deadline).await? == 0 {
            return Ok((!held.is_empty()).then_some(Protocol::Unknown));
        }
    }
}

/// Whether no client of a load balancer has this address.
fn is_no_client(ip: std::net::IpAddr) -> bool {
    ip.is_loopback() || ip.is_unspecified() || ip.is_multicast()
}

/// The header by which a load balancer begins, and not a byte more; `None` if it left without any, as it does to see
/// whether anybody is there.
///
/// # Errors
/// [`DropReason::ProxyHeaderMalformed`] or [`DropReason::Timeout`].
pub async fn proxy_header(
    stream: &mut (impl AsyncRead + Unpin),
    deadline: Instant,
) -> Result<Option<Header>, DropReason> {
    let malformed = |error: HeaderError| {
        tracing::warn!(%error, "refused what a load balancer (`balancers` in [proxy]) began with");
        DropReason::ProxyHeaderMalformed
    };
    let mut fixed = [0; proxy_header::FIXED_BYTES];
    let mut n = 0;
    while let Some(rest) = fixed.get_mut(n..).filter(|rest| !rest.is_empty()) {
        match timeout_at(deadline, stream.read(rest)).await {
            Ok(Ok(read @ 1..)) => n += read,
            Ok(_) if n == 0 => return Ok(None),
            Ok(_) => return Err(DropReason::ProxyHeaderMalformed),
            Err(_) => return Err(DropReason::Timeout),
        }
    }
    let length = proxy_header::length(&fixed).map_err(malformed)?;
    let mut header = fixed.to_vec();
    header.resize(length, 0);
    let rest = header.get_mut(proxy_header::FIXED_BYTES..).unwrap_or_default();
    match timeout_at(deadline, stream.read_exact(rest)).await {
        Ok(Ok(_)) => match proxy_header::parse(&header).map_err(malformed)? {
            // What counts for less at this machine's own addresses is said of nobody else.
            Header::Proxied { source, .. } if is_no_client(source.ip()) => {
                Err(DropReason::ProxyHeaderMalformed)
            }
            header => Ok(Some(header)),
        },
        Ok(Err(_)) => Err(DropReason::ProxyHeaderMalformed),
        Err(_) => Err(DropReason::Timeout),
    }
}

/// The ClientHello that `held` starts with.
///
/// # Errors
/// [`DropReason::TlsMalformed`] or [`DropReason::Timeout`].
pub async fn hello(
    stream: &mut (impl AsyncRead + Unpin),
    held: &mut Vec<u8>,
    deadline: Instant,
) -> Result<ClientHello, DropReason> {
    let mut reassembler = Reassembler::default();
    let mut seen = 0;
    loop {
        match reassembler.push(held.get(seen..).unwrap_or_default()) {
            Ok(Some(hello)) => return Ok(hello),
            Ok(None) => seen = held.len(),
            Err(error) => {
                tracing::debug!(%error, "refused hello");
                return Err(DropReason::TlsMalformed);
            }
        }
        if more(stream, held, deadline).await? == 0 {
            return Err(DropReason::TlsMalformed);
        }
    }
}

/// Reads more of a client that is waited for as long as nothing of it is held, and until the deadline of what is; 0 at the end.
///
/// # Errors
/// [`DropReason::Timeout`].
pub async fn late(
    stream: &mut (impl AsyncRead + Unpin),
    held: &mut Vec<u8>,
    deadline: &mut Option<Instant>,
) -> Result<usize, DropReason> {
    if held.is_empty() {
        *deadline = None;
        // All that is there at once: a small piece is asked about, and sent, by itself.
        held.reserve(READ_BYTES);
        return Ok(stream.read_buf(held).await.unwrap_or(0));
    }
    more(stream, held, *deadline.get_or_insert_with(|| Instant::now() + limit::PEEK)).await
}

/// Length of the request head that `held` starts with.
///
/// # Errors
/// [`DropReason::HttpMalformed`] or [`DropReason::Timeout`].
pub async fn head(
    stream: &mut (impl AsyncRead + Unpin),
    held: &mut Vec<u8>,
    deadline: Instant,
) -> Result<usize, DropReason> {
    let mut scanned = 0;
    loop {
        match http1::head_length(held, scanned) {
            Ok(Some(n)) => return Ok(n),
            Ok(None) => scanned = held.len(),
            Err(error) => {
                tracing::debug!(%error, "refused head");
                return Err(DropReason::HttpMalformed);
            }
        }
        if more(stream, held, deadline).await? == 0 {
            return Err(DropReason::HttpMalformed);
        }
    }
}

/// Says a last word and closes, so that the word is not lost to a reset: what the client still sends
/// is read and thrown away, for a short time and a bounded amount.
pub async fn say_and_close(mut stream: Stream, word: &[u8]) {
    let closing = async {
        stream.write_all(word).await?;
        stream.shutdown().await?;
        let (mut sink, mut thrown) = ([0; READ_BYTES], 0);
        while thrown < limit::LINGER_BYTES {
            match stream.read(&mut sink).await? {
                0 => break,
                n => thrown += n,
            }
        }
        Ok::<(), std::io::Error>(())
    };
    // A client that does not read its last word has lost it.
    let _ = timeout(limit::LINGER, closing).await;
}
