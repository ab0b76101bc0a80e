//! Servers that are asked in order, over real sockets, and families that fail each by itself.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::net::UdpSocket;
use tokio::task::AbortHandle;

use super::*;

const V4: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);
const V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 10);
const TTL_S: u32 = 3600;
/// More addresses of one family than are judged.
const MANY: u8 = 20;

/// What a server says of AAAA: there is one, there is none, or it can't tell.
#[derive(Clone, Copy, Debug)]
enum V6Answer {
    There,
    None,
    Failure,
}

/// A server that knows one address of each family for any name, and counts what it is asked.
struct Server {
    address: SocketAddr,
    questions: Arc<AtomicUsize>,
    v6: Arc<Mutex<V6Answer>>,
    task: AbortHandle,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Server {
    async fn start(is_silent: bool) -> Server {
        let socket = UdpSocket::bind("127.0.0.1:0").await.expect("bind");
        let address = socket.local_addr().expect("address");
        let (questions, v6) = (Arc::<AtomicUsize>::default(), Arc::new(Mutex::new(V6Answer::None)));
        let (counted, says) = (Arc::clone(&questions), Arc::clone(&v6));
        let task = tokio::spawn(async move {
            let mut question = [0; 512];
            while let Ok((n, from)) = socket.recv_from(&mut question).await {
                counted.fetch_add(1, Ordering::SeqCst);
                if !is_silent {
                    let says = *says.lock();
                    socket.send_to(&answer(&question[..n], says), from).await.expect("sent");
                }
            }
        });
        Server { address, questions, v6, task: task.abort_handle() }
    }

    fn questions(&self) -> usize {
        self.questions.load(Ordering::SeqCst)
    }
}

/// The answer to a question, which is repeated letter by letter, and nothing besides it.
fn answer(question: &[u8], v6: V6Answer) -> Vec<u8> {
    let end = 12 + question[12..].iter().position(|byte| *byte == 0).expect("a name") + 5;
    let kind = u16::from_be_bytes([question[end - 4], question[end - 3]]);
    // Those of large content networks have many.
    let is_many = question[13..17].eq_ignore_ascii_case(b"many");
    let count = if kind == 1 && is_many { MANY } else { 1 };
    let (code, data) = match (kind, v6) {
        (1, _) => (0, V4.octets().to_vec()),
        (28, V6Answer::There) => (0, V6.octets().to_vec()),
        (28, V6Answer::Failure) => (2, Vec::new()),
        _ => (0, Vec::new()),
    };
    let answers = if data.is_empty() { 0 } else { count };
    let mut out = question[..2].to_vec();
    out.extend([0x85, 0x80 | code, 0, 1, 0, answers, 0, 0, 0, 0]);
    out.extend(&question[12..end]);
    for n in 0..answers {
        out.extend([0xc0, 12]);
        out.extend(kind.to_be_bytes());
        out.extend([0, 1]);
        out.extend(TTL_S.to_be_bytes());
        out.extend(u16::try_from(data.len()).expect("short").to_be_bytes());
        let (last, first) = data.split_last().expect("data");
        out.extend(first);
        out.push(last + n);
    }
    out
}

fn resolver(servers: &[&Server]) -> Resolver {
    let servers: Vec<String> = servers.iter().map(|server| format!("\"{}\"", server.address)).collect();
    let config = toml::from_str(&format!("resolvers = [{}]", servers.join(", "))).expect("configuration");
    Resolver::new(&config).expect("resolver")
}

fn host(name: &str) -> Host {
    Host::parse(name).expect("host")
}

#[tokio::test]
async fn a_family_that_fails_in_passing_is_missed_for_seconds_alone() {
    let server = Server::start(false).await;
    let resolver = resolver(&[&server]);
    let (soon, late) = (limit::RESOLVED_HALF + Duration::from_secs(1), Duration::from_secs(1800));
    *server.v6.lock() = V6Answer::Failure;
    assert_eq!(resolver.find(1, &host("half.test")).await, Ok(vec![IpAddr::V4(V4)]));
    assert!(resolver.known.get("half.test", Instant::now()).is_some(), "not each request waits");
    assert_eq!(resolver.known.get("half.test", Instant::now() + soon), None);
    // That there is none is an answer as any.
    *server.v6.lock() = V6Answer::None;
    assert_eq!(resolver.find(1, &host("one.test")).await, Ok(vec![IpAddr::V4(V4)]));
    assert!(resolver.known.get("one.test", Instant::now() + late).is_some());
    *server.v6.lock() = V6Answer::There;
    let both = vec![IpAddr::V4(V4), IpAddr::V6(V6)];
    assert_eq!(resolver.find(1, &host("both.test")).await, Ok(both.clone()));
    assert_eq!(resolver.known.get("both.test", Instant::now() + late), Some(both));
}

#[tokio::test]
async fn many_addresses_of_one_family_leave_room_for_the_other() {
    let server = Server::start(false).await;
    *server.v6.lock() = V6Answer::There;
    let found = resolver(&[&server]).find(1, &host("many.test")).await.expect("found");
    assert_eq!(found.len(), limit::ADDRESSES_MAX);
    assert!(found.contains(&IpAddr::V6(V6)) && found.contains(&IpAddr::V4(V4)), "{found:?}");
}

#[tokio::test]
async fn the_first_server_is_asked_alone_as_long_as_it_answers() {
    let (first, second) = (Server::start(false).await, Server::start(false).await);
    let resolver = resolver(&[&first, &second]);
    for name in ["a.test", "b.test", "c.test"] {
        assert_eq!(resolver.find(1, &host(name)).await, Ok(vec![IpAddr::V4(V4)]));
    }
    assert_eq!((first.questions(), second.questions()), (6, 0));
}

#[tokio::test]
async fn a_silent_server_leaves_time_for_the_next_and_is_asked_last_then() {
    let (first, second) = (Server::start(true).await, Server::start(false).await);
    let resolver = resolver(&[&first, &second]);
    assert_eq!(resolver.find(1, &host("a.test")).await, Ok(vec![IpAddr::V4(V4)]));
    let asked = first.questions();
    assert!(asked > 0, "it comes first");
    assert_eq!(resolver.find(1, &host("b.test")).await, Ok(vec![IpAddr::V4(V4)]));
    assert_eq!(first.questions(), asked, "nobody waits for it again");
}
