//! Keys of issuers' providers as control fetches them: from a server of HTTPS, into every generation of L7, and out of it.

use clawgress_api::ProviderStatus;
use clawgress_api::proto::Empty;
use clawgress_identity::{IssuerRecord, RootId};
use clawgress_policy::PolicyBundle;

use crate::https::{Ca, Site};
use crate::node::{Node, PATIENCE, Worker, document, parse, until};

type Snapshot = clawgress_api::Snapshot<PolicyBundle>;

/// The key of RFC 8037 appendix A.2, and RFC 8032 section 7.1's second.
const KEYS: [&str; 2] =
    ["11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo", "PUAXw-hDiVqStwqnTRt-vJyYLM8uxJaMwM1V8Sr0Zgw"];

fn jwks(key: usize) -> String {
    format!(r#"{{"keys":[{{"kty":"OKP","crv":"Ed25519","kid":"{key}","x":"{}"}}]}}"#, KEYS[key])
}

/// An OpenID provider at `localhost`.
struct Idp {
    site: Site,
    ca: Ca,
}

impl Idp {
    async fn start() -> Idp {
        let ca = Ca::new();
        let site = Site::start(&ca.host("localhost")).await;
        let at = format!("https://localhost:{}", site.port);
        let discovery = format!(r#"{{"issuer":"{at}","jwks_uri":"{at}/jwks"}}"#);
        site.serve("/.well-known/openid-configuration", &discovery);
        site.serve("/jwks", &jwks(0));
        Idp { site, ca }
    }

    fn record(&self, stale_s_max: u32, networks: &[&str]) -> IssuerRecord {
        let record = serde_json::json!({
            "id": "idp", "issuer": format!("https://localhost:{}", self.site.port), "audiences": ["gateway"],
            "algorithms": ["EdDSA"], "mapping": {"agent": {"from": "sub"}},
            "provider": {"fresh_s_max": 1, "stale_s_max": stale_s_max, "networks": networks, "ca": self.ca.pem}
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
    // Other keys, and nobody does anything; no plane is asked whether the former may end.
    let refusing = node.refusing_worker().await;
    idp.site.serve("/jwks", &jwks(1));
    until_fetched(&mut worker, Some(&jwks(1))).await;
    drop(refusing);
    // The provider is away, and control comes back: its last keys count.
    idp.site.stop();
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
