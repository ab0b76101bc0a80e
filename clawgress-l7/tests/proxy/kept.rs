//! Connections to servers that are kept for the next request, of which each agent has a share.

use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::harness::{Gateway, Options, PATIENCE};
use crate::upstream::Upstream;

const POLICY: &str = r#"
@id("net") permit (principal, action == Action::"connect", resource) when { context.ip.isInRange(ip("127.1.0.0/16")) };
@id("http") permit (principal, action == Action::"http", resource);
"#;
/// Most that an agent keeps, and of how many servers one asks.
const SHARE: usize = 512;
const SERVERS: u16 = 1_100;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_asks_many_servers_keeps_its_share_and_leaves_others_theirs() {
    let options = Options { policy: Some(POLICY), more: "threads = 2\n".to_owned(), ..Options::default() };
    let gateway = Gateway::start(options).await;
    let everywhere = Upstream::http("0.0.0.0").await;
    let own = Upstream::http("127.1.0.1").await;
    let other = gateway.authorization("other", &gateway.other_key);
    let own_host = own.address.to_string();
    let asked = format!("GET http://{own_host}/ok HTTP/1.1\r\nHost: {own_host}\r\n{other}\r\n");
    assert_eq!(gateway.ask(&asked).await.status, 200);

    let (mut client, web) = (gateway.client().await, gateway.web());
    for n in 0..SERVERS {
        let [high, low] = n.to_be_bytes();
        let host = format!("127.1.{}.{low}:{}", high + 1, everywhere.address.port());
        client.send(format!("GET http://{host}/ok HTTP/1.1\r\nHost: {host}\r\n{web}\r\n")).await;
        assert_eq!(client.answer().await.status, 200, "{host}");
    }
    let open = || everywhere.connections() - everywhere.seen.ended.load(Ordering::SeqCst);
    let begun = std::time::Instant::now();
    while open() > SHARE {
        assert!(begun.elapsed() < PATIENCE, "{} are kept", open());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(everywhere.connections(), usize::from(SERVERS), "each its own");
    assert_eq!(gateway.ask(&asked).await.status, 200);
    assert_eq!(own.connections(), 1, "the other agent's was kept");
}
