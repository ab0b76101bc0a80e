//! A model's server of WebSockets, a gateway before it, and what its clients read.

use std::sync::Arc;

use clawgress_inspect::web_socket::{Message, Reader, Sender};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use crate::client::{Answer, Client};
use crate::conversations::{answered, opening};
use crate::harness::{Gateway, Options};
use crate::upstream::{Seen, Upstream};

pub const BINARY: u8 = 0x82;
const SWITCH: &str = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

/// How one of them talks.
#[derive(Clone, Copy)]
pub struct Talk {
    /// What it says before anybody else does.
    pub greeting: Option<&'static str>,
    /// The first byte of its frames.
    pub first: u8,
    /// What it answers to a message.
    pub answers: fn(&str) -> Vec<String>,
    /// What its models cost, by which no kind of token is taken for another.
    pub prices: &'static str,
    /// Where it is opened.
    pub path: &'static str,
}

async fn serve(mut stream: impl AsyncRead + AsyncWrite + Unpin, seen: Arc<Seen>, talk: Talk) {
    let mut held = Vec::new();
    let end = loop {
        if let Some(at) = held.windows(4).position(|w| w == b"\r\n\r\n") {
            break at + 4;
        }
        let Ok(1..) = stream.read_buf(&mut held).await else { return };
    };
    seen.requests.lock().push(String::from_utf8_lossy(&held[..end]).into_owned());
    let mut rest = held.split_off(end);
    let greeting = talk.greeting.map(|text| answered(talk.first, text)).unwrap_or_default();
    if stream.write_all(&[SWITCH.as_bytes(), &greeting].concat()).await.is_err() {
        return;
    }
    let mut reader = Reader::new(Sender::Client, 10 << 20);
    loop {
        let mut left = &rest[..];
        while !left.is_empty() {
            let (taken, message) = reader.read(left).expect("frames");
            left = &left[taken..];
            let answers = match message {
                Some(Message::Text(text) | Message::Binary(text)) => {
                    let text = String::from_utf8(text).expect("text");
                    seen.bytes.lock().extend_from_slice(text.as_bytes());
                    (talk.answers)(&text)
                }
                Some(Message::Close { .. }) => {
                    let _ = stream.write_all(&answered(0x88, b"\x03\xe8")).await;
                    return;
                }
                _ => Vec::new(),
            };
            for answer in answers {
                if stream.write_all(&answered(talk.first, answer)).await.is_err() {
                    return;
                }
            }
        }
        rest.clear();
        let Ok(1..) = stream.read_buf(&mut rest).await else { return };
    }
}

pub struct Site {
    pub gateway: Gateway,
    pub upstream: Upstream,
    pub host: String,
    path: &'static str,
    _directory: tempfile::TempDir,
}

impl Site {
    /// A gateway, to which this server is the provider `local`.
    pub async fn start(policy: &'static str, talk: Talk) -> Site {
        let upstream =
            Upstream::start("127.1.0.1", None, move |stream, seen| serve(stream, seen, talk)).await;
        let host = format!("api.allowed.test:{}", upstream.address.port());
        let directory = tempfile::tempdir().expect("a directory");
        let prices = directory.path().join("prices.tsv");
        std::fs::write(&prices, talk.prices).expect("written");
        let prices = prices.display();
        let more = format!(
            "[llm]\nprices = \"{prices}\"\n[[llm.server]]\nname = \"local\"\nurl = \"http://{host}\"\n"
        );
        let gateway = Gateway::start(Options { policy: Some(policy), more, ..Options::default() }).await;
        Site { gateway, upstream, host, path: talk.path, _directory: directory }
    }

    pub async fn ask(&self, path: &str) -> (Client, Answer) {
        let mut client = self.gateway.client().await;
        client.send(opening(&format!("http://{}{path}", self.host), &self.host, &self.gateway.web())).await;
        let answer = client.answer_head().await;
        (client, answer)
    }

    pub async fn open(&self) -> Client {
        let (client, answer) = self.ask(self.path).await;
        assert_eq!(answer.status, 101, "{answer:?}");
        client
    }

    /// Nothing of what clients said went on.
    pub fn got_nothing(&self) -> bool {
        self.upstream.seen.bytes.lock().is_empty()
    }
}

/// The messages that come next, so many.
pub async fn messages(client: &mut Client, count: usize) -> Vec<String> {
    let (mut reader, mut all) = (Reader::new(Sender::Server, 10 << 20), Vec::new());
    while all.len() < count {
        let held = std::mem::take(&mut client.held);
        let mut left = &held[..];
        while !left.is_empty() && all.len() < count {
            let (taken, message) = reader.read(left).expect("frames");
            left = &left[taken..];
            if let Some(Message::Text(text) | Message::Binary(text)) = message {
                all.push(String::from_utf8(text).expect("text"));
            }
        }
        client.held = left.to_vec();
        assert!(all.len() == count || client.more().await, "it ended after {all:?}");
    }
    all
}
