//! How L7 asks the keys role for certificates of hosts that are read: by connections that are kept, each for one question and its
//! answer at a time. A call of gRPC costs more than what it asks for: a handshake with a new name waits for it.
//!
//! A frame is a length, four bytes in network order, and a message of that many bytes ([`MintRequest`], [`MintResponse`]).
//! Must never ask who is not one of the keys role's users.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use prost::Message;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::sync::Semaphore;

use crate::proto::{MintRequest, MintResponse};
use crate::socket::Servers;

/// Largest question, bytes: a host's name and a point.
const REQUEST_BYTES_MAX: usize = 1024;
/// Largest answer, bytes: a leaf, and the chain of a file of 64 KiB.
const RESPONSE_BYTES_MAX: usize = 128 * 1024;
/// Bytes of a frame's length.
const LENGTH_BYTES: usize = 4;
/// Bytes read at once: a question, and an answer without a chain, come whole.
const READ_BYTES: usize = 2048;
/// Connections of one client, also while nobody asks by them: the keys role has 256 places, for six processes of L7 and some that
/// end. Signing takes a processor, so that more would wait there.
const CONNECTIONS_MAX: usize = 32;

/// Asks for certificates.
#[derive(Debug)]
pub struct Client {
    path: PathBuf,
    servers: Servers,
    idle: Mutex<Vec<UnixStream>>,
    places: Semaphore,
}

// === impl Client ===

impl Client {
    /// Asks who listens at `path`, if it is one of `servers`. Connects when it is asked first, and again by itself.
    #[must_use]
    pub fn new(path: &Path, servers: Servers) -> Self {
        let places = Semaphore::new(CONNECTIONS_MAX);
        Client { path: path.to_owned(), servers, idle: Mutex::default(), places }
    }

    /// Asks. Takes as long as the answer does: whoever gives up drops this, and the connection with it.
    ///
    /// # Errors
    /// If nobody is there who may be, or what comes is no answer. What the keys role refuses is an answer.
    pub async fn mint(&self, request: &MintRequest) -> io::Result<MintResponse> {
        let _place = self.places.acquire().await.map_err(io::Error::other)?;
        let kept = self.idle().pop();
        if let Some(stream) = kept {
            match self.ask(stream, request).await {
                Ok(answer) => return Ok(answer),
                // Whoever it led to is gone, and so are the others: that it asks twice changes nothing.
                Err(_) => self.idle().clear(),
            }
        }
        self.ask(self.servers.connect(&self.path).await?, request).await
    }

    async fn ask(&self, mut stream: UnixStream, request: &MintRequest) -> io::Result<MintResponse> {
        stream.write_all(&frame(request, REQUEST_BYTES_MAX)?).await?;
        let mut buffer = Vec::new();
        let answer = read(&mut stream, &mut buffer, RESPONSE_BYTES_MAX).await?;
        let answer = answer.ok_or(io::ErrorKind::UnexpectedEof)?;
        self.idle().push(stream);
        Ok(answer)
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<UnixStream>> {
        // Nothing that can panic is done while it is locked.
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Answers the questions on `stream`, one after another, until it ends.
///
/// # Errors
/// If what comes is no question, or `stream` fails.
pub async fn serve(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    answer: impl Fn(MintRequest) -> MintResponse,
) -> io::Result<()> {
    let mut buffer = Vec::new();
    while let Some(request) = read(&mut stream, &mut buffer, REQUEST_BYTES_MAX).await? {
        stream.write_all(&frame(&answer(request), RESPONSE_BYTES_MAX)?).await?;
    }
    Ok(())
}

fn frame(message: &impl Message, most: usize) -> io::Result<Vec<u8>> {
    let bytes = message.encoded_len();
    let length = u32::try_from(bytes).ok().filter(|_| bytes <= most).ok_or(io::ErrorKind::FileTooLarge)?;
    let mut frame = Vec::with_capacity(LENGTH_BYTES + bytes);
    frame.extend_from_slice(&length.to_be_bytes());
    message.encode_raw(&mut frame);
    Ok(frame)
}

/// The next message, of `most` bytes; `None` at the end. Nothing may follow it: the other side waits for what is said to it.
async fn read<M: Message + Default>(
    stream: &mut (impl AsyncRead + Unpin),
    buffer: &mut Vec<u8>,
    most: usize,
) -> io::Result<Option<M>> {
    buffer.clear();
    loop {
        if let Some((length, message)) = buffer.split_first_chunk::<LENGTH_BYTES>() {
            let length = u32::from_be_bytes(*length) as usize;
            if length > most || message.len() > length {
                return Err(io::ErrorKind::InvalidData.into());
            }
            if message.len() == length {
                return M::decode(message)
                    .map(Some)
                    .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e));
            }
        }
        buffer.reserve(READ_BYTES);
        if stream.read_buf(buffer).await? == 0 {
            return if buffer.is_empty() { Ok(None) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::net::UnixListener;
    use tokio::task::{JoinHandle, JoinSet};

    use super::*;
    use crate::config::Access;
    use crate::socket::{Server, bind};

    fn request(host: &str) -> MintRequest {
        MintRequest { host: host.to_owned(), public_key: vec![4; 65] }
    }

    fn client(path: &Path) -> Client {
        Client::new(path, Servers::new(&Access::default(), Server::Keys).expect("users"))
    }

    /// Answers with the host's name, and counts the connections.
    fn keys(listener: UnixListener, connections: Arc<AtomicUsize>) -> JoinHandle<()> {
        tokio::spawn(async move {
            let mut tasks = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.expect("accept");
                connections.fetch_add(1, Ordering::Relaxed);
                tasks.spawn(serve(stream, |request| MintResponse {
                    chain: vec![request.host.into_bytes(), vec![7; 40_000]],
                    ..MintResponse::default()
                }));
            }
        })
    }

    #[tokio::test]
    async fn connections_are_kept_and_made_anew_where_their_server_was() {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("leaves.sock");
        let (client, made) = (Arc::new(client(&path)), Arc::new(AtomicUsize::new(0)));
        client.mint(&request("a.test")).await.expect_err("nobody is there");
        let server = keys(bind(&path, 0o600).expect("bind"), Arc::clone(&made));
        let all: Vec<MintRequest> = (0..200).map(|n| request(&format!("n{n}.test"))).collect();
        for one in &all {
            let answer = client.mint(one).await.expect("answered");
            assert_eq!(answer.chain.first().map(Vec::as_slice), Some(one.host.as_bytes()));
        }
        assert_eq!(made.load(Ordering::Relaxed), 1, "one after another: one connection");
        let mut asked = JoinSet::new();
        for one in all {
            let client = Arc::clone(&client);
            asked.spawn(async move { (client.mint(&one).await, one) });
        }
        while let Some(done) = asked.join_next().await {
            let (answer, one) = done.expect("no panic");
            let answer = answer.expect("answered");
            assert_eq!(answer.chain.first().map(Vec::as_slice), Some(one.host.as_bytes()), "each its own");
        }
        assert!(
            made.load(Ordering::Relaxed) <= CONNECTIONS_MAX,
            "200 questions at once: {made:?} connections"
        );
        server.abort();
        let _ = server.await;
        let _again = keys(bind(&path, 0o600).expect("bind"), made);
        client.mint(&request("a.test")).await.expect("by a new connection");
        assert_eq!(client.idle().len(), 1, "nothing is kept of the former server");
    }

    #[tokio::test]
    async fn what_gives_up_takes_its_connection_along() {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("leaves.sock");
        let listener = bind(&path, 0o600).expect("bind");
        let client = client(&path);
        let request = request("a.test");
        let mut asked = Box::pin(client.mint(&request));
        let mut stream = tokio::select! {
            accepted = listener.accept() => accepted.expect("accept").0,
            _ = &mut asked => panic!("nobody has answered"),
        };
        let mut buffer = Vec::new();
        tokio::select! {
            read = read::<MintRequest>(&mut stream, &mut buffer, REQUEST_BYTES_MAX) => {
                assert_eq!(read.expect("read").as_ref(), Some(&request));
            }
            _ = &mut asked => panic!("nobody has answered"),
        }
        drop(asked);
        assert!(client.idle().is_empty(), "a late answer is nobody else's");
        assert_eq!(stream.read(&mut [0]).await.expect("read"), 0);
    }

    #[tokio::test]
    async fn what_is_no_question_or_too_long_ends_the_connection() {
        let answer = |_| MintResponse::default();
        let whole = frame(&request("a.test"), REQUEST_BYTES_MAX).expect("frame");
        let twice = [&whole[..], &whole[..1]].concat();
        let half = whole[..whole.len() - 1].to_vec();
        let nonsense = [&[0, 0, 0, 4][..], &[0xff; 4]].concat();
        for (bytes, kind) in [
            (vec![0, 0, 4, 1], io::ErrorKind::InvalidData),
            (vec![0xff; 64], io::ErrorKind::InvalidData),
            (twice, io::ErrorKind::InvalidData),
            (nonsense, io::ErrorKind::InvalidData),
            (half, io::ErrorKind::UnexpectedEof),
        ] {
            let (mut here, there) = UnixStream::pair().expect("pair");
            here.write_all(&bytes).await.expect("write");
            here.shutdown().await.expect("end");
            let error = serve(there, answer).await.expect_err("no question");
            assert_eq!(error.kind(), kind, "{bytes:?}");
        }
        let (here, there) = UnixStream::pair().expect("pair");
        drop(here);
        serve(there, answer).await.expect("an end between two is one");
        frame(&request(&"a".repeat(REQUEST_BYTES_MAX)), REQUEST_BYTES_MAX).expect_err("too long to ask");
    }
}
