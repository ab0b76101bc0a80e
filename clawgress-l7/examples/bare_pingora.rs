//! Pingora as it comes, without anything of ours: what benchmarks compare with. An HTTP proxy and a
//! TCP relay, each to one upstream. `bare_pingora HTTP_LISTEN HTTP_UPSTREAM TCP_LISTEN TCP_UPSTREAM`
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

struct Http(String);

#[async_trait]
impl ProxyHttp for Http {
    type CTX = ();

    fn new_ctx(&self) -> Self::CTX {}

    async fn upstream_peer(
        &self,
        _session: &mut Session,
        _context: &mut (),
    ) -> pingora_error::Result<Box<HttpPeer>> {
        Ok(Box::new(HttpPeer::new(self.0.as_str(), false, String::new())))
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
    let mut words = std::env::args().skip(1);
    let mut word =
        || words.next().context("usage: bare_pingora HTTP_LISTEN HTTP_UPSTREAM TCP_LISTEN TCP_UPSTREAM");
    let (http_listen, http_upstream, tcp_listen, tcp_upstream) = (word()?, word()?, word()?, word()?);
    // As many threads as the gateway's proxy has by default.
    let threads = std::thread::available_parallelism().context("cannot count cores")?.get();
    let mut server = Server::new_with_opt_and_conf(None, ServerConf { threads, ..ServerConf::default() });
    server.bootstrap();
    let mut http = http_proxy_service(&server.configuration, Http(http_upstream));
    http.add_tcp(&http_listen);
    server.add_service(http);
    let relay = Relay { connector: TransportConnector::new(None), upstream: BasicPeer::new(&tcp_upstream) };
    let mut tcp = Service::new("relay".to_owned(), relay);
    tcp.add_tcp(&tcp_listen);
    server.add_service(tcp);
    server.run_forever()
}
