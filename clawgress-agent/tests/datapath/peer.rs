//! A connection to the handover socket that is another process's: the role counts processes, not connections, and
//! hears of each that it accepts. What the process is lent, the test uses.

use std::io;
use std::ops::{Deref, DerefMut};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream as StdStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use clawgress_api::handover::{self, Handover, Listener, ListenerKind};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::net::UnixStream;

/// Where the process that this program becomes connects.
const SOCKET: &str = "CLAWGRESS_TEST_HANDOVER";
/// The name of its test.
const NAME: &str = "peer::stands_in_for_an_l7_process";

/// The connection, and the process whose it is.
pub struct Peer {
    stream: UnixStream,
    child: Child,
}

impl Peer {
    /// Starts a process that connects, and says that it lives until this is dropped.
    pub async fn connect(socket: &Path) -> io::Result<Peer> {
        let (ours, theirs) = UnixStream::pair()?;
        let theirs = theirs.into_std()?;
        theirs.set_nonblocking(false)?;
        let child = Command::new(std::env::current_exe()?)
            .args(["--exact", NAME, "--nocapture"])
            .env(SOCKET, socket)
            .stdin(OwnedFd::from(theirs))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let mut child = Started(Some(child));
        let (_, descriptors) = handover::receive(&ours).await?;
        let stream = StdStream::from(descriptors.into_iter().next().ok_or(io::ErrorKind::InvalidData)?);
        stream.set_nonblocking(true)?;
        let child = child.0.take().ok_or(io::ErrorKind::NotFound)?;
        Ok(Peer { stream: UnixStream::from_std(stream)?, child })
    }

    /// Sends the process a signal.
    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).expect("pid"));
        kill(pid, signal).expect("kill");
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Deref for Peer {
    type Target = UnixStream;

    fn deref(&self) -> &UnixStream {
        &self.stream
    }
}

impl DerefMut for Peer {
    fn deref_mut(&mut self) -> &mut UnixStream {
        &mut self.stream
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}

/// A process that is ended if it doesn't come to be anybody's.
struct Started(Option<Child>);

impl Drop for Started {
    fn drop(&mut self) {
        self.0.iter_mut().for_each(end);
    }
}

fn end(child: &mut Child) {
    let _ = child.kill();
    let _ = child.wait();
}

/// The other process: connects, hands the connection to the one that started it, and says that it lives.
#[tokio::test]
async fn stands_in_for_an_l7_process() {
    let Some(path) = std::env::var_os(SOCKET) else { return };
    let stream = UnixStream::connect(Path::new(&path)).await.expect("the handover socket");
    let stdin = io::stdin().as_fd().try_clone_to_owned().expect("standard input");
    let parent = StdStream::from(stdin);
    parent.set_nonblocking(true).expect("non-blocking");
    let parent = UnixStream::from_std(parent).expect("socket");
    let listener = Listener { kind: ListenerKind::Proxy, address: ([0, 0, 0, 0], 0).into() };
    let document =
        Handover { listeners: vec![listener], flow_table: false, dials: false, interfaces: vec![] };
    handover::send(&parent, &document, &[stream.as_fd()]).await.expect("handed over");
    while handover::say_alive(&stream).is_ok() {
        tokio::time::sleep(handover::ALIVE_INTERVAL).await;
    }
}
