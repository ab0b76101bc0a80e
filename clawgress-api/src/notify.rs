//! Readiness for the service manager (sd_notify(3)): one datagram to `$NOTIFY_SOCKET`, sent when every
//! role of this process is ready. Without the variable it does nothing.

use std::env;
use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::atomic::{AtomicUsize, Ordering};

/// Roles of this process that are not ready yet.
static WAITING: AtomicUsize = AtomicUsize::new(0);

/// States how many roles this process runs, before any of them starts.
pub fn expect(roles: usize) {
    WAITING.store(roles, Ordering::SeqCst);
}

/// A role serves its sockets now; once for each role. The last one tells the service manager.
pub fn ready(role: &str) {
    tracing::info!(role, "ready");
    let before = WAITING.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1));
    if before == Ok(1) {
        tell("READY=1");
    }
}

/// The process is on its way out.
pub fn stopping() {
    tell("STOPPING=1");
}

fn tell(state: &str) {
    let Some(socket) = env::var_os("NOTIFY_SOCKET") else { return };
    if let Err(error) = send(&socket, state) {
        tracing::warn!(%error, state, "cannot tell the service manager");
    }
}

fn send(socket: &OsStr, state: &str) -> io::Result<()> {
    let address = match socket.as_bytes().split_first() {
        Some((b'@', name)) => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(socket)?,
    };
    let datagram = UnixDatagram::unbound()?;
    datagram.send_to_addr(state.as_bytes(), &address).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_of_address_are_told() {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("notify");
        let named = UnixDatagram::bind(&path).expect("bind");
        send(path.as_os_str(), "READY=1").expect("send");
        let name = format!("clawgress-notify-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).expect("name");
        let abstracted = UnixDatagram::bind_addr(&address).expect("bind");
        send(OsStr::new(&format!("@{name}")), "READY=1").expect("send");
        for socket in [named, abstracted] {
            let mut bytes = [0; 16];
            let n = socket.recv(&mut bytes).expect("receive");
            assert_eq!(&bytes[..n], b"READY=1");
        }
    }
}
