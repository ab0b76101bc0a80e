//! Unix sockets between the processes of one node. Who may use a socket is its server's to check; that the
//! server is the one it should be is checked here, by the credentials the kernel vouches for: the roles
//! share a directory, and a name in it that is free is anybody's of them.

use std::collections::BTreeSet;
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use nix::unistd::{Uid, User};
use tokio::net::{TcpStream, UnixListener, UnixStream};
use tonic::transport::{Channel, Endpoint, Error, Uri};
use tower::service_fn;

use crate::config::{Access, WorkloadEndpoint};

/// Time after which a connection attempt to a local role has failed.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How often a role is asked whether it still lives, and how long its answer may take. A process that
/// hangs or is stopped keeps its sockets open: without this, whoever waits for it would never know.
const ALIVE_INTERVAL: Duration = Duration::from_secs(5);
const ALIVE_TIMEOUT: Duration = Duration::from_secs(5);

/// A role that serves sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Server {
    /// `keys.sock`, `signer.sock`, `leaves.sock` and `vault.sock`.
    Keys,
    /// `control.sock` and `admin.sock`.
    Control,
    /// `datapath.sock` and `handover.sock`.
    Datapath,
}

/// Users that a server may run as: root, this process's own, and the role's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Servers(BTreeSet<u32>);

// === impl Servers ===

impl Servers {
    /// The users of `server` by `access`.
    ///
    /// # Errors
    /// If a name that is configured does not exist, or users can't be looked up.
    pub fn new(access: &Access, server: Server) -> io::Result<Self> {
        let (configured, default) = match server {
            Server::Keys => (&access.keys_user, Access::KEYS_USER),
            Server::Control => (&access.control_user, Access::CONTROL_USER),
            Server::Datapath => (&access.datapath_user, Access::DATAPATH_USER),
        };
        let mut uids = BTreeSet::from([0, Uid::effective().as_raw()]);
        let name = configured.as_deref().unwrap_or(default);
        match User::from_name(name)? {
            Some(user) => uids.extend([user.uid.as_raw()]),
            None if configured.is_none() => {}
            None => {
                let text = format!(
                    "user `{name}` in the [access] table does not exist; create it or correct the name"
                );
                return Err(io::Error::new(io::ErrorKind::NotFound, text));
            }
        }
        Ok(Servers(uids))
    }

    /// Whether the process that listens where `stream` is connected to is of one of these users.
    ///
    /// # Errors
    /// If it is not.
    pub fn check(&self, stream: &UnixStream, path: &Path) -> io::Result<()> {
        let uid = stream.peer_cred()?.uid();
        if self.0.contains(&uid) {
            return Ok(());
        }
        Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            format!(
                "user {uid} listens on `{}` and may not: nothing was sent; see the [access] table of the configuration",
                path.display()
            ),
        ))
    }

    /// Connects to `path`, if one of these users listens there.
    ///
    /// # Errors
    /// If nobody does, or somebody else.
    pub async fn connect(&self, path: &Path) -> io::Result<UnixStream> {
        let stream = UnixStream::connect(path).await?;
        self.check(&stream, path)?;
        Ok(stream)
    }
}

/// A lazy channel to the role that listens at `path`: it connects at the first call and reconnects by itself,
/// each time only to a process of `servers`.
#[must_use]
pub fn channel_to(path: &Path, servers: Servers) -> Channel {
    let path: PathBuf = path.to_owned();
    endpoint().connect_with_connector_lazy(service_fn(move |_: Uri| {
        let (path, servers) = (path.clone(), servers.clone());
        async move { servers.connect(&path).await.map(TokioIo::new) }
    }))
}

/// As [`channel_to`], to whoever listens there: for a directory that is this user's alone.
///
/// # Errors
/// Never for a valid path; tonic's signature.
pub fn channel(path: &Path) -> Result<Channel, Error> {
    let path: PathBuf = path.to_owned();
    Ok(endpoint().connect_with_connector_lazy(service_fn(move |_: Uri| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    })))
}

/// A lazy channel to the SPIFFE Workload API of the node. Who may listen there is for the directory of its socket to say,
/// or for who may bind its port.
#[must_use]
pub fn workload_channel(at: &WorkloadEndpoint) -> Channel {
    match at.clone() {
        WorkloadEndpoint::Unix(path) => endpoint().connect_with_connector_lazy(service_fn(move |_: Uri| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        })),
        WorkloadEndpoint::Tcp(address) => {
            endpoint().connect_with_connector_lazy(service_fn(move |_: Uri| async move {
                TcpStream::connect(address).await.map(TokioIo::new)
            }))
        }
    }
}

fn endpoint() -> Endpoint {
    // The URI is required by HTTP/2 and names nobody: the connector dials the socket.
    Endpoint::from_static("http://clawgress.invalid")
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(ALIVE_INTERVAL)
        .keep_alive_timeout(ALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
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

#[cfg(test)]
mod tests {
    use rustix::thread::{Uid as ThreadUid, set_thread_res_uid};

    use super::*;
    use crate::proto::MacApiKeyRequest;
    use crate::proto::keys_client::KeysClient;

    /// Listens at `path` as another user: credentials are a thread's own to the kernel.
    fn squat(path: &Path, uid: u32) -> std::os::unix::net::UnixListener {
        let path = path.to_owned();
        let squatter = std::thread::spawn(move || {
            let user = ThreadUid::from_raw(uid);
            set_thread_res_uid(user, user, user).expect("this test needs root, to be somebody else");
            std::os::unix::net::UnixListener::bind(path).expect("bind")
        });
        squatter.join().expect("no panic")
    }

    #[tokio::test]
    async fn a_server_of_another_user_is_sent_nothing() {
        let dir = tempfile::tempdir().expect("directory");
        fs::set_permissions(dir.path(), Permissions::from_mode(0o777)).expect("chmod");
        let path = dir.path().join("keys.sock");
        let nobody = User::from_name("nobody").expect("users").expect("nobody").uid.as_raw();
        let listener = squat(&path, nobody);
        let servers = Servers::new(&Access::default(), Server::Keys).expect("users");
        let mut keys = KeysClient::new(channel_to(&path, servers.clone()));
        let refused = keys.mac_api_key(MacApiKeyRequest { key: vec![1] }).await.expect_err("refused");
        assert_eq!(refused.code(), tonic::Code::Unavailable, "{refused:?}");
        let (mut stream, _) = listener.accept().expect("it was connected to");
        let mut sent = Vec::new();
        std::io::Read::read_to_end(&mut stream, &mut sent).expect("read");
        assert!(sent.is_empty(), "not a byte: {sent:?}");
        let error = servers.connect(&path).await.expect_err("refused").to_string();
        assert!(error.contains(&format!("user {nobody} listens on")), "{error}");

        let access = Access { keys_user: Some("nobody".into()), ..Access::default() };
        Servers::new(&access, Server::Keys).expect("users").connect(&path).await.expect("the role's user");
        let other = Servers::new(&access, Server::Control).expect("users");
        other.connect(&path).await.expect_err("of another role");
        fs::remove_file(&path).expect("remove");
        let _own = std::os::unix::net::UnixListener::bind(&path).expect("bind");
        servers.connect(&path).await.expect("the own user");
        let unknown = Access { control_user: Some("no-such-user".into()), ..Access::default() };
        let error = Servers::new(&unknown, Server::Control).expect_err("no such user").to_string();
        assert!(error.contains("user `no-such-user`"), "{error}");
    }
}
