//! The answer to a process that may not use a socket: one gRPC status, so that its user reads "permission
//! denied" instead of a broken connection. A refused peer never reaches the HTTP/2 library: this speaks
//! just enough of RFC 9113 to answer one request, and reads a bounded number of bytes.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

/// What a client sends first (RFC 9113, section 3.4), bytes.
const PREFACE_BYTES: usize = 24;
/// Bytes of a frame's header (section 4.1).
const FRAME_HEADER_BYTES: usize = 9;
/// Bytes of a refused peer that are read at all: its preface and settings, and one request's header.
const BYTES_MAX: u64 = 64 * 1024;
/// An empty SETTINGS frame: the first a server sends (section 3.4).
const SETTINGS: [u8; FRAME_HEADER_BYTES] = [0, 0, 0, 4, 0, 0, 0, 0, 0];
/// Frame type HEADERS (section 6.2).
const HEADERS: u8 = 1;
/// END_STREAM and END_HEADERS.
const END: u8 = 0x5;

/// Answers the first request on `stream`, then reads on until the peer hangs up: closing with unread bytes
/// would make its next write fail before it has read the answer.
pub(super) async fn answer<S: AsyncRead + AsyncWrite + Unpin>(stream: S, message: &str) -> io::Result<()> {
    let (reader, mut writer) = tokio::io::split(stream);
    let mut reader = reader.take(BYTES_MAX);
    writer.write_all(&SETTINGS).await?;
    reader.read_exact(&mut [0; PREFACE_BYTES]).await?;
    // Ends with a request, or with the bytes that may be read.
    let stream_id = loop {
        let mut header = [0; FRAME_HEADER_BYTES];
        reader.read_exact(&mut header).await?;
        let [high, middle, low, kind, _, id @ ..] = header;
        let length = u64::from(u32::from_be_bytes([0, high, middle, low]));
        tokio::io::copy(&mut (&mut reader).take(length), &mut tokio::io::sink()).await?;
        if kind == HEADERS {
            break id;
        }
    };
    writer.write_all(&response(stream_id, message)).await?;
    writer.shutdown().await?;
    tokio::io::copy(&mut reader, &mut tokio::io::sink()).await.map(drop)
}

/// A trailers-only response with status 7, PERMISSION_DENIED: a HEADERS frame in plain HPACK literals
/// (RFC 7541, section 6.2.2).
fn response(stream_id: [u8; 4], message: &str) -> Vec<u8> {
    // `:status: 200` is entry 8 of the static table, `content-type` is entry 31.
    let mut block = vec![0x88, 0x0f, 0x10];
    string(&mut block, "application/grpc");
    for (name, value) in [("grpc-status", "7"), ("grpc-message", message)] {
        block.push(0);
        string(&mut block, name);
        string(&mut block, value);
    }
    let [.., high, middle, low] = block.len().to_be_bytes();
    let mut frame = vec![high, middle, low, HEADERS, END];
    frame.extend_from_slice(&stream_id);
    frame.extend_from_slice(&block);
    frame
}

/// A string literal without Huffman coding, of at most 126 bytes: what fits into one length byte.
fn string(block: &mut Vec<u8>, text: &str) {
    let bytes = text.as_bytes();
    let bytes = bytes.get(..bytes.len().min(126)).unwrap_or_default();
    block.extend(u8::try_from(bytes.len()));
    block.extend_from_slice(bytes);
}
