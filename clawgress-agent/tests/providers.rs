//! Keys of issuers' providers as control fetches them: from a server of HTTPS, into every generation of L7, and out of it.
#![expect(clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a test may fail")]

#[path = "support/node.rs"]
mod node;

use std::sync::Arc;

use clawgress_api::ProviderStatus;
use clawgress_api::proto::Empty;
use clawgress_identity::{IssuerRecord, RootId};
use clawgress_policy::PolicyBundle;
use parking_lot::Mutex;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

use self::node::{Node, PATIENCE, Worker, document, parse, until};

type Snapshot = clawgress_api::Snapshot<PolicyBundle>;

/// The key of RFC 8037 appendix A.2, and RFC 8032 section 7.1's second.
const KEYS: [&str; 2] =
    ["11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo", "PUAXw-hDiVqStwqnTRt-vJyYLM8uxJaMwM1V8Sr0Zgw"];

fn jwks(key: usize) -> String {
    format!(r#"{{"keys":[{{"kty":"OKP","crv":"Ed25519","kid":"{key}","x":"{}"}}]}}"#, KEYS[key])
}

/// An OpenID provider at `localhost`, which answers one request a connection.
struct Idp {
    port: u16,
    ca: String,
    keys: Arc<Mutex<String>>,
    task: JoinHandle<()>,
}

impl Idp {
    async fn start() -> Idp {
        let (ca_key, key) = (KeyPair::generate().expect("key"), KeyPair::generate().expect("key"));
        let mut params = CertificateParams::new([]).expect("names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = params.self_signed(&ca_key).expect("authority").pem();
        let names = CertificateParams::new(["localhost".to_owned()]).expect("names");
        let leaf = names.signed_by(&key, &Issuer::from_params(&params, &ca_key)).expect("certificate");
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let tls = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(vec![leaf.der().clone()], key)
            .expect("TLS");
        let tls = TlsAcceptor::from(Arc::new(tls));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let port = listener.local_addr().expect("address").port();
        let keys = Arc::new(Mutex::new(jwks(0)));
        let task = tokio::spawn({
            let keys = Arc::clone(&keys);
            async move {
                while let Ok((stream, _)) = listener.accept().await {
                    let Ok(mut stream) = tls.accept(stream).await else { continue };
                    let mut head = vec![0; 4096];
                    let read = stream.read(&mut head).await.unwrap_or(0);
                    let head = String::from_utf8_lossy(&head[..read]).into_owned();
                    let body = if head.starts_with("GET /.well-known/openid-configuration ") {
                        format!(
                            r#"{{"issuer":"https://localhost:{port}","jwks_uri":"https://localhost:{port}/jwks"}}"#
                        )
                    } else {
                        keys.lock().clone()
                    };
                    let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
                    let _ = stream.write_all(answer.as_bytes()).await;
                    let _ = stream.shutdown().await;
                }
            }
        });
        Idp { port, ca, keys, task }
    }

    fn record(&self, stale_s_max: u32, networks: &[&str]) -> IssuerRecord {
        let record = serde_json::json!({
            "id": "idp", "issuer": format!("https://localhost:{}", self.port), "audiences": ["gateway"],
            "algorithms": ["EdDSA"], "mapping": {"agent": {"from": "sub"}},
            "provider": {"fresh_s_max": 1, "stale_s_max": stale_s_max, "networks": networks, "ca": self.ca}
        });
        serde_json::from_value(record).expect("record")
    }
}

/// The fetched keys of the first generation in which they are `wanted`.
async fn until_fetched(worker: &mut Worker, wanted: Option<&str>) {
    let id: RootId = "idp".parse().expect("id");
    let fetched = async {
        loop {
            let document = worker.next().await.document;
            if document.is_empty() {
                continue;
            }
            let snapshot: Snapshot = parse(&document);
            if snapshot.roots.fetched.get(&id).map(String::as_str) == wanted {
                return;
            }
        }
    };
    tokio::time::timeout(PATIENCE, fetched).await.expect("a generation");
}

async fn status(node: &Node) -> ProviderStatus {
    let listed = node.admin().provider_status(Empty {}).await.expect("status").into_inner().json;
    parse(listed.first().expect("a provider"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_are_fetched_rolled_over_kept_and_withdrawn() {
    let idp = Idp::start().await;
    let mut node = Node::new().start().await;
    let mut worker = node.worker("w").await;
    node.admin().set_issuer(document(&idp.record(600, &["127.0.0.0/8", "::1/128"]))).await.expect("set");
    until_fetched(&mut worker, Some(&jwks(0))).await;
    // Other keys, and nobody does anything.
    *idp.keys.lock() = jwks(1);
    until_fetched(&mut worker, Some(&jwks(1))).await;
    // The provider is away, and control comes back: its last keys count.
    idp.task.abort();
    until("the provider to fail", async || status(&node).await.failures > 0).await;
    node.stop_control().await;
    node.start_control().await;
    let mut worker = node.worker("w").await;
    until_fetched(&mut worker, Some(&jwks(1))).await;
    // For as long as they may: with no time to be stale they end.
    node.admin().set_issuer(document(&idp.record(0, &["127.0.0.0/8", "::1/128"]))).await.expect("set");
    until_fetched(&mut worker, None).await;
    until("the failure", async || status(&node).await.error.is_some()).await;
    let status = status(&node).await;
    assert_eq!((status.state, status.keys), (clawgress_api::KeysState::None, vec![]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reserved_address_is_asked_only_where_it_is_named() {
    let idp = Idp::start().await;
    let node = Node::new().start().await;
    node.admin().set_issuer(document(&idp.record(600, &[]))).await.expect("set");
    until("the refusal", async || status(&node).await.error.is_some()).await;
    let error = status(&node).await.error.expect("an error");
    assert!(error.contains("private or reserved"), "{error}");
}
