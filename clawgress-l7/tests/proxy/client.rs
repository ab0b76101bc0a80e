//! A client that sends exactly the bytes it is told to.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::harness::PATIENCE;

#[derive(Debug)]
pub struct Client<S = TcpStream> {
    pub stream: S,
    pub held: Vec<u8>,
}

/// An HTTP response.
#[derive(Clone, Debug, Default)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
}

impl Answer {
    /// The reason the gateway gives for a denial.
    pub fn reason(&self) -> &str {
        self.field("x-clawgress-reason").unwrap_or("none")
    }

    pub fn field(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|l| {
            let (n, v) = l.split_once(':')?;
            n.eq_ignore_ascii_case(name).then(|| v.trim())
        })
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

impl Client {
    pub async fn connect(address: SocketAddr) -> Client {
        let stream = TcpStream::connect(address).await.expect("connect");
        stream.set_nodelay(true).expect("nodelay");
        Client::over(stream)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Client<S> {
    pub fn over(stream: S) -> Client<S> {
        Client { stream, held: vec![] }
    }

    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        // A server that has said its word may close before it has read ours.
        let _ = self.stream.write_all(bytes.as_ref()).await;
        let _ = self.stream.flush().await;
    }

    /// Reads more; `false` at the end.
    pub async fn more(&mut self) -> bool {
        let read = timeout(PATIENCE, self.stream.read_buf(&mut self.held)).await.expect("bytes in time");
        read.is_ok_and(|n| n > 0)
    }

    /// Reads until `text` is there.
    pub async fn until(&mut self, text: &str) {
        while !String::from_utf8_lossy(&self.held).contains(text) {
            assert!(self.more().await, "no `{text}` in {:?}", String::from_utf8_lossy(&self.held));
        }
    }

    /// What came and was not read.
    pub fn seen(&self) -> String {
        String::from_utf8_lossy(&self.held).into_owned()
    }

    /// Reads a response head; a status of 0 if there is none.
    pub async fn answer_head(&mut self) -> Answer {
        let end = loop {
            if let Some(at) = self.held.windows(4).position(|w| w == b"\r\n\r\n") {
                break at + 4;
            }
            if !self.more().await {
                return Answer::default();
            }
        };
        let head = String::from_utf8_lossy(&self.held[..end]).into_owned();
        self.held.drain(..end);
        let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).expect("status");
        Answer { status, head, body: vec![] }
    }

    /// Reads a whole response.
    pub async fn answer(&mut self) -> Answer {
        let mut answer = self.answer_head().await;
        if answer.status == 0 {
            return answer;
        }
        if let Some(n) = answer.field("content-length").and_then(|n| n.parse::<usize>().ok()) {
            while self.held.len() < n {
                assert!(self.more().await, "the body ends early: {answer:?}");
            }
            answer.body = self.held.drain(..n).collect();
        } else if answer.field("transfer-encoding").is_some() {
            while !self.held.ends_with(b"0\r\n\r\n") {
                assert!(self.more().await, "the body ends early: {answer:?}");
            }
            answer.body = std::mem::take(&mut self.held);
        }
        answer
    }

    /// Whether the server closes, without another byte, within a time.
    pub async fn is_closed(&mut self, within: Duration) -> bool {
        let mut byte = [0];
        matches!(timeout(within, self.stream.read(&mut byte)).await, Ok(Ok(0) | Err(_)))
    }

    /// Everything until the end.
    pub async fn rest(&mut self) -> Vec<u8> {
        while self.more().await {}
        std::mem::take(&mut self.held)
    }
}
