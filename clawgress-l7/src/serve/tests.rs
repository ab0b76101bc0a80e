//! Steered connections, as the accept loop gets them from the kernel plane: over real sockets, with the
//! facts that the flow table gives in the kernel's place.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use clawgress_api::config::{Content, Llm};
use clawgress_api::{AuditRecord, Ingress, RecordKind, Verdict};
use clawgress_identity::IdentityMethod;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::*;
use crate::connection::Bound;
use crate::vault::Vault;

mod desync;
#[expect(dead_code, reason = "some of it only the tests of the whole process need")]
#[path = "../../tests/proxy/dns.rs"]
pub(crate) mod dns;

/// What the client dialled; nobody is there, so reaching it would show.
const DIALLED: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));

const SNAPSHOT: &str = r#"{"generation":3,"agents":[
    {"id":"default/web","index":1,"state":"active","sources":[{"interface":"agents0","prefix":"127.0.0.0/8","mac":null}]},{"id":"default/off","index":2,"state":"disabled"}],"keys":[],
    "policy":{"text":"@id(\"net\") permit (principal, action == Action::\"connect\", resource) when { context.ip.isInRange(ip(\"127.1.0.0/16\")) }; @id(\"web\") permit (principal, action in [Action::\"http\", Action::\"tls\", Action::\"tunnel\"], resource) when { resource.name like \"*.allowed.test\" }; @id(\"tls\") permit (principal, action == Action::\"tls\", resource == Host::\"read.test\"); @id(\"raw\") permit (principal, action == Action::\"tunnel\", resource == Host::\"127.1.0.9\");"}}"#;

/// The proxy's parts, which decide by `snapshot` and ask DNS at `resolver`.
pub(crate) async fn gateway(
    keys: &Path,
    snapshot: &str,
    resolver: SocketAddr,
) -> (Arc<Gateway>, audit::Carrier) {
    routed(keys, snapshot, resolver, Routes::default()).await
}

async fn routed(
    keys: &Path,
    snapshot: &str,
    resolver: SocketAddr,
    routes: Routes,
) -> (Arc<Gateway>, audit::Carrier) {
    let (audit, carrier) = audit::queue("gw", Arc::new(SystemClock), (16, 4), "test");
    let snapshots = Arc::new(Snapshots::new(Duration::from_secs(60), Arc::new(SystemClock)));
    let document = snapshot.as_bytes().to_vec();
    snapshots
        .apply_for_test(clawgress_api::proto::Snapshot { generation: 3, document, ..Default::default() })
        .await;
    let l7 = toml::from_str(&format!("resolvers = [\"{resolver}\"]")).expect("configuration");
    let gateway = Arc::new(Gateway {
        snapshots,
        keys: Keys::new(socket::channel(keys).expect("channel")).expect("randomness"),
        vault: Vault::new(socket::channel(keys).expect("channel")),
        quota: Quota::new(socket::channel(keys).expect("channel")).expect("randomness"),
        histories: Histories::new(socket::channel(keys).expect("channel")),
        streams: Arc::new(tokio::sync::Semaphore::new(16)),
        sources: Sources::new(16),
        stream_sources: Sources::of_streams(16),
        resolver: Resolver::new(&l7).expect("resolver"),
        dns: Desk::new(
            &clawgress_api::config::Dns::default(),
            Resolver::without_cache(&l7).expect("resolver"),
            socket::channel(keys).expect("channel"),
        ),
        dials: Arc::new(Dials::default()),
        endpoints: Arc::default(),
        routes: Arc::new(routes),
        slots: crate::slots::Slots::new(16),
        answer_silence: Duration::from_secs(600),
        own: Arc::new(Own::default()),
        audit,
        tls: None,
        interception: None,
        memory: Arc::new(Memory::new(&Content::default())),
        windows: Windows::default(),
        calls: Calls::new(&Llm::default(), &Content::default()).expect("none"),
        tools: Tools::default(),
        pipes: Arc::new(Pipes::default()),
        cut: CancellationToken::new(),
    });
    (gateway, carrier)
}

struct Steered {
    ingress: Ingress,
    serving: Serving,
    carrier: audit::Carrier,
    _stopping: watch::Sender<bool>,
    dns: dns::Dns,
}

impl Steered {
    async fn new() -> Steered {
        let nowhere = Path::new("/nonexistent/clawgress.sock");
        Steered::with(nowhere, SNAPSHOT).await
    }

    async fn with(keys: &Path, snapshot: &str) -> Steered {
        Steered::by(keys, snapshot, Routes::default()).await
    }

    async fn by(keys: &Path, snapshot: &str, routes: Routes) -> Steered {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let zone: &[(&str, &[&str])] = &[
            ("api.allowed.test", &["127.1.0.1"]),
            ("read.test", &["127.1.0.1"]),
            ("raw.allowed.test", &["127.1.0.9"]),
        ];
        let dns = dns::Dns::start(zone).await;
        let (gateway, carrier) = routed(keys, snapshot, dns.address, routes).await;
        let (stopping_sender, stopping) = watch::channel(false);
        let proxy = plain_http::proxy(&gateway, Some(1));
        let serving = Serving { gateway, proxy, stopping };
        Steered { ingress: Ingress::Transparent, serving, carrier, _stopping: stopping_sender, dns }
    }

    /// As [`say`](Self::say), but only after the server has greeted.
    async fn say_late(&mut self, dialled: SocketAddr, bytes: &[u8]) -> (Vec<u8>, Vec<AuditRecord>) {
        self.converse(Ok(1), dialled, bytes, true).await
    }

    /// Sends `bytes` over a connection to `dialled` from the agent with this index, or from nobody for 0;
    /// returns what came back, and decision and outcome.
    async fn say(
        &mut self,
        bound: Result<u32, DropReason>,
        dialled: SocketAddr,
        bytes: &[u8],
    ) -> (Vec<u8>, Vec<AuditRecord>) {
        self.converse(bound, dialled, bytes, false).await
    }

    async fn converse(
        &mut self,
        bound: Result<u32, DropReason>,
        dialled: SocketAddr,
        bytes: &[u8],
        late: bool,
    ) -> (Vec<u8>, Vec<AuditRecord>) {
        let patience = Duration::from_millis(700);
        self.converse_for(patience, bound, dialled, bytes, late).await
    }

    /// As [`say`](Self::say) to the proxy, from a source without an agent, until the proxy ends it.
    async fn converse_open(&mut self, bytes: &[u8]) -> (Vec<u8>, Vec<AuditRecord>) {
        self.converse_for(Duration::from_secs(30), Ok(0), dialled(3128), bytes, false).await
    }

    /// As [`say`](Self::say), until the server ends it.
    async fn converse_open_at(&mut self, dialled: SocketAddr, bytes: &[u8]) -> (Vec<u8>, Vec<AuditRecord>) {
        self.converse_for(Duration::from_secs(30), Ok(1), dialled, bytes, false).await
    }

    /// `patience` is how long the client waits for the end before it makes one.
    async fn converse_for(
        &mut self,
        patience: Duration,
        bound: Result<u32, DropReason>,
        dialled: SocketAddr,
        bytes: &[u8],
        late: bool,
    ) -> (Vec<u8>, Vec<AuditRecord>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let address = listener.local_addr().expect("address");
        let (client, server) = tokio::join!(TcpStream::connect(address), listener.accept());
        let (mut client, (server, peer)) = (client.expect("connect"), server.expect("accept"));
        let method = IdentityMethod::Source;
        let connection = Connection {
            peer,
            local: dialled,
            ingress: self.ingress,
            is_steered: self.ingress == Ingress::Transparent,
            bound: bound.map(|index| (index != 0).then_some(Bound { index, method })),
            interface: Some("agents0".to_owned()),
            certificate: None,
        };
        let serving = self.serving.clone();
        let sources = Sources::new(limit::SOURCE_SHARE);
        let share = sources.take(peer.ip());
        let (kind, stream) = (ListenerKind::Transparent, server);
        let accepted = Accepted { kind, connection, stream, share, sources };
        let task = tokio::spawn(async move { serving.accepted(accepted).await });
        let mut got = vec![];
        if late {
            client.read_buf(&mut got).await.expect("a greeting");
        }
        client.write_all(bytes).await.expect("send");
        // A server that waits for more would wait for its deadline; closing our side is the end.
        let answered = tokio::time::timeout(patience, client.read_to_end(&mut got)).await;
        if answered.is_err() {
            let _ = client.shutdown().await;
            let _ = client.read_to_end(&mut got).await;
        }
        drop(client);
        task.await.expect("served");
        (got, self.carrier.drain_for_test())
    }
}

fn dialled(port: u16) -> SocketAddr {
    SocketAddr::new(DIALLED, port)
}

/// A client of HTTP/2 that knows its server, and asks for one page of `host`.
fn http2_get(host: &str) -> Vec<u8> {
    let n = |n: usize| u8::try_from(n).expect("short");
    // RFC 7541: `GET`, `http`, and two literals.
    let block = [&[0x82, 0x86, 0x04, 2][..], b"/p", &[0x01, n(host.len())], host.as_bytes()].concat();
    let frame = |kind: u8, flags: u8, stream: u8, payload: &[u8]| {
        [&[0, 0, n(payload.len()), kind, flags, 0, 0, 0, stream][..], payload].concat()
    };
    // Its settings, and a stream with nothing but a head.
    [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), frame(4, 0, 0, &[]), frame(1, 5, 1, &block)].concat()
}

/// A ClientHello for `name`.
fn hello(name: Option<&str>) -> Vec<u8> {
    let list = name.map_or(vec![], |n| {
        let n16 = |n: usize| u16::try_from(n).expect("short").to_be_bytes();
        [&n16(0)[..], &n16(n.len() + 5), &n16(n.len() + 3), &[0], &n16(n.len()), n.as_bytes()].concat()
    });
    let mut body = [&[3, 3][..], &[9; 32], &[0, 0, 2, 0x13, 1, 1, 0]].concat();
    body.extend(u16::try_from(list.len()).expect("short").to_be_bytes());
    body.extend(list);
    let n = u8::try_from(body.len()).expect("short");
    [&[22, 3, 1, 0, n + 4, 1, 0, 0, n][..], &body].concat()
}

fn reason(records: &[AuditRecord]) -> Option<DropReason> {
    assert_eq!(records.len(), 2, "a decision and an outcome: {records:#?}");
    assert_eq!((records[0].kind, records[1].kind), (RecordKind::Decision, RecordKind::Outcome));
    assert_eq!(records[0].request, records[1].request);
    assert_eq!(records[0].verdict == Some(Verdict::Deny), records[0].reason.is_some());
    assert_eq!(records[0].source.interface.as_deref(), Some("agents0"));
    records[0].reason
}

#[tokio::test]
async fn tls_is_judged_by_its_name_and_dialled_where_our_resolver_says() {
    let mut steered = Steered::new().await;
    let upstream = TcpListener::bind("127.1.0.1:0").await.expect("bind");
    let port = upstream.local_addr().expect("address").port();
    let echo = tokio::spawn(async move {
        let (mut stream, _) = upstream.accept().await.expect("accept");
        let mut got = vec![];
        stream.read_to_end(&mut got).await.expect("read");
        got
    });
    let bytes = hello(Some("API.allowed.test"));
    let (got, records) = steered.say(Ok(1), dialled(port), &bytes).await;
    assert!(got.is_empty());
    assert_eq!(echo.await.expect("upstream"), bytes);
    assert_eq!(reason(&records), None);
    assert_eq!(records[0].policies, ["net", "web"]);
    assert_eq!(records[0].generation, 3);
    assert_eq!(records[0].destination.host.as_deref(), Some("api.allowed.test"));
    assert_eq!(records[0].destination.ip, Some(IpAddr::from([127, 1, 0, 1])), "not what the client dialled");
    assert_eq!(records[1].bytes_sent, Some(bytes.len() as u64));
}

/// Routes through a parent proxy at an address where nobody is.
fn through_nobody(resolve: &str) -> (SocketAddr, Routes) {
    let listener = std::net::TcpListener::bind("127.1.0.9:0").expect("bind");
    let address = listener.local_addr().expect("address");
    let text = format!(
        "[node]\nname = \"gw\"\n[datapath]\nmode = \"none\"\n[proxy]\nlisten = [\"127.0.0.1:3128\"]\n[l7]\n[[parent]]\nname = \"corp\"\naddress = \"{address}\"\n[[route]]\nparent = \"corp\"\nresolve = \"{resolve}\"\n"
    );
    let config = Config::parse(&text, Path::new("test.toml")).expect("configuration");
    (address, Routes::new(&config).expect("routes"))
}

#[tokio::test]
async fn what_a_client_dialled_is_not_told_as_what_a_parent_reached() {
    for (resolve, ip) in [("parent", None), ("gateway", Some(IpAddr::from([127, 1, 0, 1])))] {
        let (parent, routes) = through_nobody(resolve);
        let mut steered = Steered::by(Path::new("/nonexistent/clawgress.sock"), SNAPSHOT, routes).await;
        let tls = hello(Some("api.allowed.test"));
        let http = b"GET / HTTP/1.1\r\nHost: api.allowed.test\r\n\r\n";
        for (port, bytes) in [(443, &tls[..]), (80, http)] {
            let (_, records) = steered.say(Ok(1), dialled(port), bytes).await;
            assert_eq!(reason(&records), None);
            assert_eq!(records[1].reason, Some(DropReason::ParentFailed));
            for record in &records {
                let destination = &record.destination;
                assert_eq!((destination.ip, destination.port), (ip, Some(port)), "{resolve}");
                assert_eq!(
                    (destination.via.as_deref(), destination.via_address),
                    (Some("corp"), Some(parent))
                );
            }
        }
    }
}

/// What a client was steered to is held to its limits where it comes in.
#[tokio::test]
async fn a_limit_is_kept_through_a_parent_where_the_client_dialled_what_it_limits() {
    let limited = SNAPSHOT.replace(
        "@id(\\\"net\\\")",
        "@id(\\\"pace\\\") @effect(\\\"rate-limit\\\") @limit(\\\"10 connections/minute\\\") permit (principal, action == Action::\\\"connect\\\", resource) when { context.ip.isInRange(ip(\\\"127.1.0.1/32\\\")) }; @id(\\\"net\\\")",
    );
    assert_ne!(limited, SNAPSHOT);
    let (_, routes) = through_nobody("gateway");
    let mut steered = Steered::by(Path::new("/nonexistent/clawgress.sock"), &limited, routes).await;
    let bytes = hello(Some("api.allowed.test"));
    let (_, records) = steered.say(Ok(1), dialled(443), &bytes).await;
    assert_eq!(reason(&records), Some(DropReason::LimitUnavailable), "another was");
    let (_, records) = steered.say(Ok(1), SocketAddr::from(([127, 1, 0, 1], 443)), &bytes).await;
    assert_eq!((reason(&records), records[1].reason), (None, Some(DropReason::ParentFailed)));
}

#[tokio::test]
async fn tls_is_denied_with_an_alert_and_a_reason() {
    let mut steered = Steered::new().await;
    for (bound, bytes, want, alert) in [
        (Ok(1), hello(Some("denied.test")), DropReason::PolicyDenied, 49),
        (Ok(1), hello(Some("read.test")), DropReason::InspectionRequired, 49),
        (Ok(1), hello(None), DropReason::SniMissing, 112),
        (Ok(1), hello(Some("10.0.0.1")), DropReason::TlsMalformed, 50),
        (Ok(1), hello(Some("nowhere.allowed.test")), DropReason::ResolveFailed, 80),
        (Ok(1), b"\x16\x03\x01\x00\x04\x02\x00\x00\x00".to_vec(), DropReason::TlsMalformed, 50),
        (Ok(0), hello(Some("api.allowed.test")), DropReason::Anonymous, 49),
        (Ok(2), hello(Some("api.allowed.test")), DropReason::AgentDisabled, 49),
        (Ok(77), hello(Some("api.allowed.test")), DropReason::Anonymous, 49),
        (
            Err(DropReason::FlowRecordMissing),
            hello(Some("api.allowed.test")),
            DropReason::FlowRecordMissing,
            49,
        ),
    ] {
        let (got, records) = steered.say(bound, dialled(443), &bytes).await;
        assert_eq!(got, [21, 3, 3, 0, 2, 2, alert], "{want}");
        assert_eq!(reason(&records), Some(want));
    }
}

#[tokio::test]
async fn http_is_judged_and_other_protocols_need_a_permit_for_the_address() {
    let mut steered = Steered::new().await;
    let get =
        |host: &str| format!("GET /p HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").into_bytes();
    for (bound, bytes, want) in [
        (Ok(1), get("denied.test"), DropReason::PolicyDenied),
        (Ok(1), get("api.allowed.test:81"), DropReason::HttpMalformed),
        (Ok(1), get("10.0.0.1"), DropReason::PolicyDenied),
        (Err(DropReason::FlowRecordMissing), get("api.allowed.test"), DropReason::FlowRecordMissing),
        (Ok(1), b"SSH-2.0-x\r\n".to_vec(), DropReason::ProtocolUnknown),
        (Ok(1), http2_get("denied.test"), DropReason::PolicyDenied),
        (Ok(1), http2_get("api.allowed.test:81"), DropReason::HttpMalformed),
        (Err(DropReason::FlowRecordMissing), http2_get("api.allowed.test"), DropReason::FlowRecordMissing),
    ] {
        let (got, records) = steered.say(bound, dialled(80), &bytes).await;
        assert_eq!(reason(&records), Some(want));
        let page = String::from_utf8_lossy(&got);
        let http = bytes.starts_with(b"GET");
        assert_eq!(page.contains(&format!("x-clawgress-reason: {want}")), http, "{page}");
        assert!(!page.contains("407") && !page.to_lowercase().contains("proxy-authenticate"));
    }
    let upstream = TcpListener::bind("127.1.0.9:0").await.expect("bind");
    let address = upstream.local_addr().expect("address");
    let server = tokio::spawn(async move {
        let (mut stream, _) = upstream.accept().await.expect("accept");
        stream.write_all(b"220 hello\r\n").await.expect("greet");
        let mut got = vec![];
        stream.read_to_end(&mut got).await.expect("read");
        got
    });
    // The client says nothing until the server has greeted it.
    let (got, records) = steered.say(Ok(1), address, b"").await;
    assert_eq!(got, b"220 hello\r\n");
    assert_eq!(reason(&records), None);
    assert_eq!(records[0].policies, ["net", "raw"]);
    assert!(server.await.expect("server").is_empty());
}

#[tokio::test]
async fn a_steered_client_that_waits_for_its_server_is_still_read() {
    let mut steered = Steered::new().await;
    let upstream = TcpListener::bind("127.1.0.9:0").await.expect("bind");
    let address = upstream.local_addr().expect("address");
    let (sender, mut seen) = tokio::sync::mpsc::channel(8);
    let server = tokio::spawn(async move {
        while let Ok((mut stream, _)) = upstream.accept().await {
            stream.write_all(b"220 hello\r\n").await.expect("greet");
            let mut got = vec![];
            let _ = stream.read_to_end(&mut got).await;
            sender.send(got).await.expect("seen");
        }
    });
    for (bytes, want) in [
        (hello(Some("denied.test")), Some(DropReason::PolicyDenied)),
        (hello(Some("read.test")), Some(DropReason::InspectionRequired)),
        (hello(None), Some(DropReason::SniMissing)),
        // Permitted, but it is elsewhere: this server was dialled as an address.
        (hello(Some("api.allowed.test")), Some(DropReason::SniMismatch)),
        (hello(Some("nowhere.allowed.test")), Some(DropReason::ResolveFailed)),
        (b"GET / HTTP/1.1\r\nHost: denied.test\r\n\r\n".to_vec(), Some(DropReason::ProtocolUnknown)),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), Some(DropReason::UpgradeUnsupported)),
        (hello(Some("raw.allowed.test")), None),
        (b"EHLO mail.test\r\n".to_vec(), None),
    ] {
        let (got, records) = steered.say_late(address, &bytes).await;
        assert_eq!(got, b"220 hello\r\n");
        assert_eq!(reason(&records), None, "a server that speaks first is permitted");
        assert_eq!(records[1].reason, want);
        assert_eq!(records[1].destination.ip, Some(address.ip()));
        let carried = seen.recv().await.expect("a connection");
        assert_eq!(carried, if want.is_none() { bytes } else { vec![] }, "{want:?}");
    }
    assert_eq!(steered.dns.asked("denied.test"), 0, "what is denied is not resolved");
    server.abort();
}

/// A steered client that begins with a word, and waits for its server's.
#[tokio::test]
async fn a_steered_word_without_an_end_is_answered() {
    let mut steered = Steered::new().await;
    let upstream = TcpListener::bind("127.1.0.9:0").await.expect("bind");
    let address = upstream.local_addr().expect("address");
    let server = tokio::spawn(async move {
        let (mut stream, _) = upstream.accept().await.expect("accept");
        let mut got = [0; 14];
        stream.read_exact(&mut got).await.expect("a word");
        stream.write_all(&got).await.expect("answer");
    });
    let (got, records) = steered.converse_open_at(address, b"JDWP-Handshake").await;
    assert_eq!(got, b"JDWP-Handshake");
    assert_eq!((reason(&records), records[1].bytes_sent), (None, Some(14)));
    server.await.expect("served");
}

#[tokio::test]
async fn a_request_that_was_never_judged_is_recorded() {
    let mut steered = Steered::new().await;
    let method = IdentityMethod::Source;
    let connection = Connection {
        peer: (std::net::Ipv4Addr::LOCALHOST, 1000).into(),
        local: dialled(80),
        ingress: Ingress::Transparent,
        is_steered: true,
        bound: Ok(Some(Bound { index: 1, method })),
        interface: Some("agents0".to_owned()),
        certificate: None,
    };
    let front = Front::new(connection, Place::Transparent { port: 80 });
    steered.serving.record_untaken(&front);
    assert!(steered.carrier.drain_for_test().is_empty(), "there was no request");
    front.begin(Err(DropReason::HostInvalid), 10);
    steered.serving.record_untaken(&front);
    assert_eq!(reason(&steered.carrier.drain_for_test()), Some(DropReason::HostInvalid));
    let head =
        clawgress_inspect::http1::parse(b"GET /p HTTP/1.1\r\nHost: api.allowed.test\r\n\r\n").expect("head");
    let (admitted, _) = plain_http::admit(&head, &front.place).expect("admitted");
    front.begin(Ok(admitted), 10);
    steered.serving.record_untaken(&front);
    let records = steered.carrier.drain_for_test();
    assert_eq!(reason(&records), Some(DropReason::HttpMalformed));
    assert_eq!(records[0].destination.path.as_deref(), Some("/p"));
    assert_eq!(records[0].agent.as_ref().map(|a| a.agent.as_str()), Some("web"));
}

/// The keys role, with one secret for all.
struct KeysRole;

#[tonic::async_trait]
impl clawgress_api::proto::keys_server::Keys for KeysRole {
    async fn mac_api_key(
        &self,
        request: tonic::Request<clawgress_api::proto::MacApiKeyRequest>,
    ) -> Result<tonic::Response<clawgress_api::proto::MacApiKeyResponse>, tonic::Status> {
        let mac = mac(&request.into_inner().key).to_vec();
        Ok(tonic::Response::new(clawgress_api::proto::MacApiKeyResponse { mac }))
    }

    async fn describe_authority(
        &self,
        _: tonic::Request<clawgress_api::proto::Empty>,
    ) -> Result<tonic::Response<clawgress_api::proto::InterceptionAuthority>, tonic::Status> {
        Err(tonic::Status::not_found("no authority"))
    }
}

fn mac(key: &[u8]) -> Vec<u8> {
    use aws_lc_rs::hmac;
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, b"secret"), key).as_ref().to_vec()
}

/// Serves the keys role until aborted.
fn serve_keys(socket: &Path) -> tokio::task::JoinHandle<Result<(), tonic::transport::Error>> {
    let listener = tokio::net::UnixListener::bind(socket).expect("bind");
    tokio::spawn(async move {
        tonic::transport::Server::builder()
            .add_service(clawgress_api::proto::keys_server::KeysServer::new(KeysRole))
            .serve_with_incoming(tokio_stream::wrappers::UnixListenerStream::new(listener))
            .await
    })
}

/// A key of an agent, as the snapshot holds it.
fn key_record(key: &str, agent: &str) -> serde_json::Value {
    let id = clawgress_identity::ApiKey::parse(key).expect("key").id().to_owned();
    serde_json::json!({ "id": id, "agent": agent, "mac": mac(key.as_bytes()) })
}

/// The field with a credential, if there is one.
fn credential(user: &str, key: &str) -> String {
    use clawgress_inspect::proxy_authorization::encode;
    if key.is_empty() { String::new() } else { format!("Proxy-Authorization: {}\r\n", encode(user, key)) }
}

fn ask(user: &str, key: &str) -> Vec<u8> {
    let credential = credential(user, key);
    format!("GET http://denied.test/ HTTP/1.1\r\nHost: denied.test\r\n{credential}Connection: close\r\n\r\n")
        .into_bytes()
}

#[tokio::test]
async fn a_bound_source_needs_no_credential_and_may_present_no_other() {
    use clawgress_identity::ApiKey;
    let directory = tempfile::tempdir().expect("directory");
    let socket = directory.path().join("keys.sock");
    let keys = serve_keys(&socket);
    let (own, other) = (ApiKey::compose([1; 6], [1; 32]), ApiKey::compose([2; 6], [2; 32]));
    let mut snapshot: serde_json::Value = serde_json::from_str(SNAPSHOT).expect("json");
    snapshot["agents"][1]["state"] = "active".into();
    snapshot["keys"] = vec![key_record(&own, "default/web"), key_record(&other, "default/off")].into();
    let mut steered = Steered::with(&socket, &snapshot.to_string()).await;
    steered.ingress = Ingress::Proxy;
    // `policy_denied` shows that somebody was recognised.
    for (bytes, want) in [
        (ask("", ""), DropReason::PolicyDenied),
        (ask("web", &own), DropReason::PolicyDenied),
        (ask("off", &other), DropReason::IdentityConflict),
        (ask("web", &other), DropReason::CredentialInvalid),
    ] {
        let (_, records) = steered.say(Ok(1), dialled(3128), &bytes).await;
        assert_eq!(reason(&records), Some(want));
        let agent = records[0].agent.as_ref().expect("the bound agent is named");
        assert_eq!(agent.agent, "web");
    }
    keys.abort();
}

/// Two agents with a key each, and a source that the client's address belongs to, which may present the first.
fn shared_snapshot(keys: [&str; 2]) -> serde_json::Value {
    let mut snapshot: serde_json::Value = serde_json::from_str(SNAPSHOT).expect("json");
    snapshot["agents"][0]["sources"] = serde_json::json!([]);
    snapshot["agents"][1] =
        serde_json::json!({ "id": "default/other", "index": 2, "state": "active", "sources": [] });
    snapshot["keys"] = vec![key_record(keys[0], "default/web"), key_record(keys[1], "default/other")].into();
    let source = |prefix: &str| serde_json::json!({ "interface": "agents0", "prefix": prefix, "mac": null });
    snapshot["shared"] = serde_json::json!([
        { "id": "default/nat", "at": [source("127.0.0.0/28")], "may_present": ["default/web"] },
        { "id": "default/wide", "at": [source("127.0.0.0/8")], "may_present": ["default/other"] },
    ]);
    snapshot
}

#[tokio::test]
async fn a_shared_source_presents_whom_it_names() {
    use clawgress_identity::ApiKey;
    let directory = tempfile::tempdir().expect("directory");
    let socket = directory.path().join("keys.sock");
    let keys = serve_keys(&socket);
    let (web, other) = (ApiKey::compose([1; 6], [1; 32]), ApiKey::compose([2; 6], [2; 32]));
    let snapshot = shared_snapshot([&web, &other]).to_string();
    let mut steered = Steered::with(&socket, &snapshot).await;
    steered.ingress = Ingress::Proxy;
    for (bytes, want, name, status) in [
        // Nobody by itself.
        (ask("", ""), DropReason::CredentialMissing, None, "407"),
        (ask("web", &web), DropReason::PolicyDenied, Some("web"), "403"),
        (ask("other", &other), DropReason::IdentityConflict, None, "403"),
        // Whose key it is comes before whose source this is: nothing is learned by guessing.
        (ask("other", &web), DropReason::CredentialInvalid, None, "407"),
    ] {
        let (got, records) = steered.say(Ok(0), dialled(3128), &bytes).await;
        assert_eq!(reason(&records), Some(want));
        assert_eq!(records[0].agent.as_ref().map(|a| a.agent.as_str()), name, "{want}");
        let page = String::from_utf8(got).expect("text");
        assert!(page.starts_with(&format!("HTTP/1.1 {status} ")), "{page}");
        assert!(page.contains(&format!("x-clawgress-reason: {want}")), "{page}");
    }
    keys.abort();
}

/// What is under way ends when the source may present its agent no more.
#[tokio::test]
async fn a_tunnel_ends_when_its_source_may_present_the_agent_no_more() {
    use clawgress_identity::ApiKey;
    let directory = tempfile::tempdir().expect("directory");
    let socket = directory.path().join("keys.sock");
    let keys = serve_keys(&socket);
    let (web, other) = (ApiKey::compose([1; 6], [1; 32]), ApiKey::compose([2; 6], [2; 32]));
    let mut snapshot = shared_snapshot([&web, &other]);
    let mut steered = Steered::with(&socket, &snapshot.to_string()).await;
    steered.ingress = Ingress::Proxy;
    let upstream = TcpListener::bind("127.1.0.1:0").await.expect("bind");
    let port = upstream.local_addr().expect("address").port();
    let head = format!("CONNECT api.allowed.test:{port} HTTP/1.1\r\n{}\r\n", credential("web", &web));
    let bytes = [head.as_bytes(), &hello(Some("api.allowed.test"))].concat();
    let snapshots = Arc::clone(&steered.serving.gateway.snapshots);
    let change = async {
        let (mut server, _) = upstream.accept().await.expect("accept");
        server.read_exact(&mut [0; 5]).await.expect("the hello");
        snapshot["generation"] = 4.into();
        snapshot["shared"][0]["may_present"] = serde_json::json!(["default/other"]);
        let document = snapshot.to_string().into_bytes();
        let envelope = clawgress_api::proto::Snapshot { generation: 4, document, ..Default::default() };
        snapshots.apply_for_test(envelope).await;
        // The client has not closed.
        let _ = server.read_to_end(&mut vec![]).await;
    };
    let ((), (got, records)) = tokio::join!(change, steered.converse_open(&bytes));
    assert!(got.starts_with(b"HTTP/1.1 200 "), "{}", String::from_utf8_lossy(&got));
    assert_eq!(reason(&records), None);
    assert_eq!(records[1].reason, Some(DropReason::IdentityConflict));
    keys.abort();
}

/// The kernel plane found the agent under another generation, and goes on saying so of a connection that lives.
#[tokio::test]
async fn a_source_that_is_bound_to_another_is_the_agents_no_more() {
    let mut snapshot: serde_json::Value = serde_json::from_str(SNAPSHOT).expect("json");
    let other = serde_json::json!({ "id": "default/other", "index": 2, "state": "active", "sources": [] });
    snapshot["agents"][1] = other;
    let mut steered = Steered::with(Path::new("/nonexistent/keys.sock"), &snapshot.to_string()).await;
    steered.ingress = Ingress::Proxy;
    let upstream = TcpListener::bind("127.1.0.1:0").await.expect("bind");
    let port = upstream.local_addr().expect("address").port();
    let head = format!("CONNECT api.allowed.test:{port} HTTP/1.1\r\n\r\n");
    let bytes = [head.as_bytes(), &hello(Some("api.allowed.test"))].concat();
    let snapshots = Arc::clone(&steered.serving.gateway.snapshots);
    let change = async {
        let (mut server, _) = upstream.accept().await.expect("accept");
        server.read_exact(&mut [0; 5]).await.expect("the hello");
        snapshot["generation"] = 4.into();
        let nearer = serde_json::json!([{ "interface": "agents0", "prefix": "127.0.0.1/32", "mac": null }]);
        snapshot["agents"][1]["sources"] = nearer;
        let document = snapshot.to_string().into_bytes();
        let envelope = clawgress_api::proto::Snapshot { generation: 4, document, ..Default::default() };
        snapshots.apply_for_test(envelope).await;
        // The client has not closed.
        let _ = server.read_to_end(&mut vec![]).await;
    };
    let waiting = steered.converse_for(Duration::from_secs(30), Ok(1), dialled(3128), &bytes, false);
    let ((), (got, records)) = tokio::join!(change, waiting);
    assert!(got.starts_with(b"HTTP/1.1 200 "), "{}", String::from_utf8_lossy(&got));
    assert_eq!((reason(&records), records[1].reason), (None, Some(DropReason::IdentityConflict)));
    // As the next request of a connection that was kept.
    let (_, records) = steered.say(Ok(1), dialled(3128), &ask("", "")).await;
    assert_eq!(reason(&records), Some(DropReason::IdentityConflict));
    let (_, records) = steered.say(Ok(2), dialled(3128), &ask("", "")).await;
    assert_eq!(reason(&records), Some(DropReason::PolicyDenied));
}
