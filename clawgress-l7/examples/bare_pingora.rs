//! Pingora as it comes, without anything of ours: what benchmarks compare with. An HTTP proxy, a TCP relay, and an HTTP proxy
//! with TLS on both sides, each to one upstream. `bare_pingora HTTP_LISTEN HTTP_UPSTREAM TCP_LISTEN TCP_UPSTREAM
//! TLS_LISTEN TLS_UPSTREAM NAME CERTIFICATE KEY ROOTS`; `NAME` is that of the TLS upstream.
#![forbid(unsafe_code)]

use std::sync::Arc;

use anyhow::Context as _;
use async_trait::async_trait;
use pingora_core::apps::ServerApp;
use pingora_core::connectors::TransportConnector;
use pingora_core::protocols::Stream;
use pingora_core::server::configuration::ServerConf;
use pingora_core::server::{Server, ShutdownWatch};
use pingora_core::services::listening::Service;
use pingora_core::upstreams::peer::{BasicPeer, HttpPeer};
use pingora_proxy::{ProxyHttp, Session, http_proxy_service};

struct Http {
    upstream: String,
    /// The upstream's name, where it is asked over TLS.
    tls: Option<String>,
}

#[async_trait]
impl ProxyHttp for Http {
    type CTX = ();

    fn new_ctx(&self) -> Self::CTX {}

    async fn upstream_peer(
        &self,
        _session: &mut Session,
        _context: &mut (),
    ) -> pingora_error::Result<Box<HttpPeer>> {
        let name = self.tls.clone();
        Ok(Box::new(HttpPeer::new(self.upstream.as_str(), name.is_some(), name.unwrap_or_default())))
    }
}

struct Relay {
    connector: TransportConnector,
    upstream: BasicPeer,
}

#[async_trait]
impl ServerApp for Relay {
    async fn process_new(self: &Arc<Self>, mut session: Stream, _stop: &ShutdownWatch) -> Option<Stream> {
        let mut upstream = self.connector.new_stream(&self.upstream).await.ok()?;
        let _ = tokio::io::copy_bidirectional(&mut session, &mut upstream).await;
        None
    }
}

fn main() -> anyhow::Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [
        http_listen,
        http_upstream,
        tcp_listen,
        tcp_upstream,
        tls_listen,
        tls_upstream,
        name,
        certificate,
        key,
        roots,
    ] = words.try_into().ok().context("usage: see the top of this file")?;
    // As many threads as the gateway's proxy has by default.
    let threads = std::thread::available_parallelism().context("cannot count cores")?.get();
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let conf = ServerConf { threads, ca_file: Some(roots), ..ServerConf::default() };
    let mut server = Server::new_with_opt_and_conf(None, conf);
    server.bootstrap();
    let mut http = http_proxy_service(&server.configuration, Http { upstream: http_upstream, tls: None });
    http.add_tcp(&http_listen);
    server.add_service(http);
    let mut https =
        http_proxy_service(&server.configuration, Http { upstream: tls_upstream, tls: Some(name) });
    https.add_tls(&tls_listen, &certificate, &key).map_err(|e| anyhow::anyhow!("no TLS: {e}"))?;
    server.add_service(https);
    let relay = Relay { connector: TransportConnector::new(None), upstream: BasicPeer::new(&tcp_upstream) };
    let mut tcp = Service::new("relay".to_owned(), relay);
    tcp.add_tcp(&tcp_listen);
    server.add_service(tcp);
    server.run_forever()
}
