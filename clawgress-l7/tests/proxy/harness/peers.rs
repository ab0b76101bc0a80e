//! The roles around the proxy: keys, what passes bytes to control, and who hands listeners over; and what control was told.

use std::os::fd::AsFd as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::hmac;
use clawgress_api::RecordKind;
use clawgress_api::handover::{self, Handover, Listener, ListenerKind};
use clawgress_api::proto::keys_server::KeysServer;
use tokio::net::{TcpListener, UnixListener};
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::UnixListenerStream;

use super::{Control, Gateway, KeysRole, PATIENCE};
use crate::leaves::Signing;
use crate::pki::Pair;

pub(super) fn serve_keys(directory: &Path, secret: hmac::Key) -> (Runtime, Arc<Signing>) {
    let (runtime, authority) = (process(), Arc::new(Signing::new()));
    authority.serve(&runtime, &directory.join("leaves.sock"));
    let listener = std::os::unix::net::UnixListener::bind(directory.join("keys.sock")).expect("bind");
    runtime.spawn(async move {
        listener.set_nonblocking(true).expect("nonblocking");
        let listener = UnixListener::from_std(listener).expect("listener");
        tonic::transport::Server::builder()
            .add_service(KeysServer::new(KeysRole(secret)))
            .serve_with_incoming(UnixListenerStream::new(listener))
            .await
            .expect("serve");
    });
    (runtime, authority)
}

/// Passes bytes between L7 and control, both ways, as long as control does not hang.
pub(super) fn relay(directory: &Path, control: &Control) {
    let listener = UnixListener::bind(directory.join("control.sock")).expect("bind");
    let (behind, passing) = (control.socket.clone(), control.passing.subscribe());
    tokio::spawn(async move {
        while let Ok((near, _)) = listener.accept().await {
            let far = tokio::net::UnixStream::connect(&behind).await.expect("control");
            let (near, far) = (near.into_split(), far.into_split());
            for (mut from, mut to) in [(near.0, far.1), (far.0, near.1)] {
                let mut passing = passing.clone();
                tokio::spawn(async move {
                    let mut buffer = vec![0; 4096];
                    while let Ok(n @ 1..) = tokio::io::AsyncReadExt::read(&mut from, &mut buffer).await {
                        if passing.wait_for(|p| *p).await.is_err()
                            || tokio::io::AsyncWriteExt::write_all(&mut to, &buffer[..n]).await.is_err()
                        {
                            break;
                        }
                    }
                });
            }
        }
    });
}

/// A runtime of its own: what runs there ends as a process does, with all its connections.
pub(super) fn process() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("runtime")
}

/// The listener of the proxy over TLS, if it is to have one, and how the configuration says so.
pub(super) async fn listen_tls(pair: Option<&Pair>) -> (Option<(ListenerKind, TcpListener)>, String) {
    let Some(Pair { certificate, key }) = pair else { return (None, String::new()) };
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let (address, certificate) = (listener.local_addr().expect("address"), certificate.display());
    let key = key.display();
    let text =
        format!("[proxy.tls]\nlisten = [\"{address}\"]\ncertificate = \"{certificate}\"\nkey = \"{key}\"\n");
    (Some((ListenerKind::ProxyTls, listener)), text)
}

/// The datapath role, as far as L7 sees it without a kernel plane.
pub(super) fn hand_over(directory: &Path, proxies: Vec<(ListenerKind, TcpListener)>) -> JoinHandle<()> {
    let listener = UnixListener::bind(directory.join("handover.sock")).expect("bind");
    tokio::spawn(async move {
        let mut open = vec![];
        while let Ok((stream, _)) = listener.accept().await {
            let listener = |(kind, listener): &(ListenerKind, TcpListener)| Listener {
                kind: *kind,
                address: listener.local_addr().expect("address"),
            };
            let listeners = proxies.iter().map(listener).collect();
            let set = Handover { listeners, flow_table: false, dials: false, interfaces: vec![] };
            let descriptors: Vec<_> = proxies.iter().map(|(_, listener)| listener.as_fd()).collect();
            handover::send(&stream, &set, &descriptors).await.expect("send");
            open.push(stream);
        }
    })
}

impl Gateway {
    /// Outcomes so far.
    pub fn outcomes(&self) -> usize {
        self.control.records.lock().iter().filter(|r| r.kind == RecordKind::Outcome).count()
    }

    /// Waits for `n` decisions.
    pub async fn decisions(&self, n: usize) {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while self.control.records.lock().iter().filter(|r| r.kind == RecordKind::Decision).count() < n {
            assert!(tokio::time::Instant::now() < deadline, "no {n} decisions");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}
