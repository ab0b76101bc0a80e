//! Unix sockets between the processes of one node.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::net::{UnixListener, UnixStream};
use tonic::transport::{Channel, Endpoint, Error, Uri};
use tower::service_fn;

/// Time after which a connection attempt to a local role has failed.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How often a role is asked whether it still lives, and how long its answer may take. A process that
/// hangs or is stopped keeps its sockets open: without this, whoever waits for it would never know.
const ALIVE_INTERVAL: Duration = Duration::from_secs(5);
const ALIVE_TIMEOUT: Duration = Duration::from_secs(5);

/// A lazy channel to the role that listens at `path`: it connects at the first call and reconnects by itself.
///
/// # Errors
/// Never for a valid path; tonic's signature.
pub fn channel(path: &Path) -> Result<Channel, Error> {
    let path: PathBuf = path.to_owned();
    // The URI is required by HTTP/2 and names nobody: the connector below dials the socket.
    let endpoint = Endpoint::from_static("http://clawgress.invalid")
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(ALIVE_INTERVAL)
        .keep_alive_timeout(ALIVE_TIMEOUT)
        .keep_alive_while_idle(true);
    Ok(endpoint.connect_with_connector_lazy(service_fn(move |_: Uri| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    })))
}

/// Binds `path`, replacing a socket that nobody listens on any more, with permission `mode`.
///
/// # Errors
/// If somebody listens there already, or the directory is not ours.
pub fn bind(path: &Path, mode: u32) -> io::Result<UnixListener> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => {
            return Err(io::Error::new(
                io::ErrorKind::AddrInUse,
                format!("another process listens on `{}`; stop it first", path.display()),
            ));
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(_) => fs::remove_file(path)?,
    }
    // Bind under a name nobody knows, restrict it, then move it into place: it is never open to more than `mode`.
    let private = path.with_extension(format!("{}.new", std::process::id()));
    let _ = fs::remove_file(&private);
    let listener = UnixListener::bind(&private)?;
    fs::set_permissions(&private, Permissions::from_mode(mode))?;
    fs::rename(&private, path)?;
    Ok(listener)
}
