//! FORBIDDEN: accepts everything and counts it. It answers, so that a leak is as complete as it can be.

use std::sync::Arc;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};

use super::control::State;

/// Bytes read at a time.
const BUFFER_BYTES: usize = 16 * 1024;

pub(super) async fn serve_tcp(listener: TcpListener, state: Arc<State>) {
    loop {
        // An error here is of one connection (ECONNABORTED); the listener lives on.
        let Ok((stream, _)) = listener.accept().await else { continue };
        State::count(&state.sink_connections, 1);
        tokio::spawn(swallow(stream, Arc::clone(&state)));
    }
}

async fn swallow(mut stream: TcpStream, state: Arc<State>) -> std::io::Result<()> {
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let n = stream.read(&mut buffer).await?;
        if n == 0 {
            return Ok(());
        }
        State::count(&state.sink_bytes, n as u64);
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nforbidden").await?;
    }
}

pub(super) async fn serve_udp(socket: UdpSocket, state: Arc<State>) {
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let Ok((n, peer)) = socket.recv_from(&mut buffer).await else { continue };
        State::count(&state.sink_datagrams, 1);
        State::count(&state.sink_bytes, n as u64);
        let _ = socket.send_to(b"forbidden", peer).await;
    }
}
