//! How long a connection is waited on between its requests: by paused clocks, over real sockets.

use std::net::SocketAddr;
use std::time::Duration;

use clawgress_api::Ingress;
use tokio::net::{TcpListener, TcpStream};

use super::super::Place;
use super::*;
use crate::connection::Connection;

const REQUEST: &[u8] = b"GET /x HTTP/1.1\r\nHost: a.test\r\n\r\n";
/// More than a timer is late by.
const SLACK: Duration = Duration::from_secs(1);

/// A client, and the gate that it speaks to, whose first head must be whole within [`limit::PEEK`].
async fn pair() -> (TcpStream, Gate) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let address = listener.local_addr().expect("address");
    let (client, server) = tokio::join!(TcpStream::connect(address), listener.accept());
    let (server, peer) = server.expect("accepted");
    let connection = Connection {
        peer,
        local: SocketAddr::from(([192, 0, 2, 1], 80)),
        ingress: Ingress::Transparent,
        is_steered: true,
        bound: Ok(None),
        interface: None,
        certificate: None,
    };
    let front = Arc::new(Front::new(connection, Place::Transparent { port: 80 }));
    let gate = Gate::new(front, server.into(), &[], Instant::now() + limit::PEEK);
    (client.expect("connected"), gate)
}

/// Sends a request, and takes it as if it had been answered.
async fn ask(client: &mut TcpStream, gate: &mut Gate) {
    client.write_all(REQUEST).await.expect("sent");
    assert!(gate.arrives().await, "it is there");
    let mut head = [0; REQUEST.len()];
    assert_eq!(gate.read(&mut head).await.expect("read"), REQUEST.len());
    assert_eq!(gate.front.take().map(|admitted| admitted.path).as_deref(), Ok("/x"));
    gate.front.finish();
}

/// Whether something took this long.
#[track_caller]
fn took(since: Instant, time: Duration) {
    let passed = since.elapsed();
    assert!(passed >= time && passed < time + SLACK, "{passed:?}, not {time:?}");
}

#[tokio::test(start_paused = true)]
async fn between_requests_a_client_may_be_idle_for_so_long_and_no_longer() {
    let (mut client, mut gate) = pair().await;
    ask(&mut client, &mut gate).await;
    let since = Instant::now();
    assert!(!gate.arrives().await, "nothing was asked");
    took(since, limit::KEEPALIVE);
}

#[tokio::test(start_paused = true)]
async fn each_request_is_waited_for_as_long() {
    let (mut client, mut gate) = pair().await;
    let pause = limit::KEEPALIVE - SLACK;
    for _ in 0..3 {
        ask(&mut client, &mut gate).await;
        let asked = async {
            tokio::time::sleep(pause).await;
            client.write_all(REQUEST).await.expect("sent");
        };
        let since = Instant::now();
        let (is_there, ()) = tokio::join!(gate.arrives(), asked);
        assert!(is_there);
        took(since, pause);
        let mut head = [0; REQUEST.len()];
        gate.read_exact(&mut head).await.expect("read");
        gate.front.finish();
    }
    let since = Instant::now();
    assert!(!gate.arrives().await);
    took(since, limit::KEEPALIVE);
}

#[tokio::test(start_paused = true)]
async fn a_head_that_has_begun_has_its_own_time() {
    let (mut client, mut gate) = pair().await;
    ask(&mut client, &mut gate).await;
    tokio::time::sleep(limit::PEEK).await;
    let since = Instant::now();
    client.write_all(&REQUEST[..REQUEST.len() / 2]).await.expect("sent");
    assert!(gate.arrives().await, "it is refused, which is answered");
    took(since, limit::HEAD);
    assert_eq!(gate.front.take().err(), Some(DropReason::Timeout));
}

#[tokio::test(start_paused = true)]
async fn who_asks_nothing_at_all_has_no_more_than_the_time_for_a_first_head() {
    let (_client, mut gate) = pair().await;
    let since = Instant::now();
    assert!(!gate.arrives().await);
    took(since, limit::PEEK);
}

#[tokio::test(start_paused = true)]
async fn who_leaves_is_not_waited_for() {
    let (mut client, mut gate) = pair().await;
    ask(&mut client, &mut gate).await;
    drop(client);
    let since = Instant::now();
    assert!(!gate.arrives().await);
    assert!(since.elapsed() < limit::KEEPALIVE);
}
