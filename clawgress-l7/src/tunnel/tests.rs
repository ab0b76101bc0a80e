//! Tunnels over real sockets: nothing lost, reordered or mixed up, whichever side ends first.

use proptest::prelude::*;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::*;

async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let address = listener.local_addr().expect("address");
    let (a, b) = tokio::join!(TcpStream::connect(address), listener.accept());
    (a.expect("connect"), b.expect("accept").0)
}

fn bytes(seed: usize, n: usize) -> Vec<u8> {
    (0..n).map(|i| u8::try_from((i * 31 + seed) % 251).expect("below 256")).collect()
}

/// Sends `up` and `down` through a tunnel, each side closing when it has sent; returns what arrived.
async fn carry(
    pipes: Arc<Pipes>,
    first: usize,
    up: Vec<u8>,
    down: Vec<u8>,
) -> (Vec<u8>, Vec<u8>, (u64, u64)) {
    let (mut client, inner_client) = pair().await;
    let (inner_upstream, mut server) = pair().await;
    let (head, tail) = up.split_at(first.min(up.len()));
    let (head, tail) = (head.to_vec(), tail.to_vec());
    let tunnel = tokio::spawn(async move {
        let first = async |reader| (reader, Ok(head));
        let (upstream, meter) = (inner_upstream.into(), Meter::default());
        run(&mut inner_client.into(), (&upstream, &meter), first, (&pipes, 1), std::future::pending()).await
    });
    let client = async {
        let (mut reader, mut writer) = client.split();
        let mut got = Vec::new();
        let send = async {
            writer.write_all(&tail).await.expect("send");
            writer.shutdown().await.expect("shutdown");
        };
        let (_, read) = tokio::join!(send, reader.read_to_end(&mut got));
        read.expect("read");
        got
    };
    let server = async {
        let (mut reader, mut writer) = server.split();
        let mut got = Vec::new();
        let send = async {
            writer.write_all(&down).await.expect("send");
            writer.shutdown().await.expect("shutdown");
        };
        let (_, read) = tokio::join!(send, reader.read_to_end(&mut got));
        read.expect("read");
        got
    };
    let (to_client, to_server) = tokio::join!(client, server);
    let (sent, received, stopped) = tunnel.await.expect("tunnel");
    assert_eq!(stopped, None);
    (to_server, to_client, (sent, received))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn every_byte_arrives_in_order(first in 0usize..2000, up in 0usize..2_000_000, down in 0usize..2_000_000, max in 0usize..4) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
        let (up, down) = (bytes(1, up), bytes(2, down));
        let pipes = Arc::new(Pipes::with_max(max));
        let (to_server, to_client, counted) = runtime.block_on(carry(pipes, first, up.clone(), down.clone()));
        prop_assert!(to_server == up, "to the server");
        prop_assert!(to_client == down, "to the client");
        prop_assert_eq!(counted, (up.len() as u64, down.len() as u64));
    }
}

#[tokio::test]
async fn a_half_closed_client_still_gets_its_answer() {
    let (mut client, inner_client) = pair().await;
    let (inner_upstream, mut server) = pair().await;
    let pipes = Arc::new(Pipes::default());
    let tunnel = tokio::spawn(async move {
        let first = async |reader| (reader, Ok(vec![]));
        let (upstream, meter) = (inner_upstream.into(), Meter::default());
        run(&mut inner_client.into(), (&upstream, &meter), first, (&pipes, 1), std::future::pending()).await
    });
    client.write_all(b"question").await.expect("send");
    client.shutdown().await.expect("shutdown");
    let mut got = Vec::new();
    server.read_to_end(&mut got).await.expect("read");
    assert_eq!(got, b"question");
    server.write_all(b"answer").await.expect("send");
    drop(server);
    got.clear();
    client.read_to_end(&mut got).await.expect("read");
    assert_eq!(got, b"answer");
    assert_eq!(tunnel.await.expect("tunnel"), (8, 6, None));
}

/// A cut is no end: neither side takes what it has got for whole, and what it has not taken yet is gone.
#[tokio::test]
async fn a_cut_resets_both_sides() {
    let (mut client, inner_client) = pair().await;
    let (inner_upstream, mut server) = pair().await;
    let pipes = Arc::new(Pipes::default());
    let (cut, cutting) = tokio::sync::oneshot::channel();
    let tunnel = tokio::spawn(async move {
        let first = async |reader| (reader, Ok(b"hi".to_vec()));
        let mut client = Stream::from(inner_client);
        let cut = async { cutting.await.expect("reason") };
        let (upstream, meter) = (inner_upstream.into(), Meter::default());
        let ended = run(&mut client, (&upstream, &meter), first, (&pipes, 1), cut).await;
        client.abandon();
        ended
    });
    let mut two = [0; 2];
    server.read_exact(&mut two).await.expect("first bytes");
    // Until nothing more fits on the way: most of it waits in sockets of the gateway.
    let much = bytes(3, 32 << 20);
    let (mut given, mut stalls) = (0, 0);
    while stalls < 2 {
        match tokio::time::timeout(Duration::from_millis(300), client.write(&much)).await {
            Ok(n) => (given, stalls) = (given + n.expect("taken"), 0),
            Err(_) => stalls += 1,
        }
    }
    cut.send(DropReason::PolicyDenied).expect("cut");
    let (sent, received, reason) = tunnel.await.expect("tunnel");
    assert_eq!((received, reason), (0, Some(DropReason::PolicyDenied)));
    let mut got = Vec::new();
    let ended = server.read_to_end(&mut got).await.expect_err("no end");
    assert_eq!(ended.kind(), ErrorKind::ConnectionReset);
    assert!((got.len() as u64) < sent && (got.len()) < given, "{} of {sent} bytes came", got.len());
    let ended = client.read(&mut two).await.expect_err("no end");
    assert_eq!(ended.kind(), ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn nothing_of_a_client_goes_on_before_its_first_bytes_are_judged() {
    let (mut client, inner_client) = pair().await;
    let (inner_upstream, mut server) = pair().await;
    let (refuse, refused) = tokio::sync::oneshot::channel::<DropReason>();
    let tunnel = tokio::spawn(async move {
        let first = async |reader| (reader, Err(refused.await.expect("reason").into()));
        let (upstream, meter) = (inner_upstream.into(), Meter::default());
        let pipes = Arc::default();
        run(&mut inner_client.into(), (&upstream, &meter), first, (&pipes, 1), std::future::pending()).await
    });
    client.write_all(b"unread").await.expect("send");
    server.write_all(b"220 hello").await.expect("greet");
    let mut greeting = [0; 9];
    client.read_exact(&mut greeting).await.expect("the upstream may speak");
    refuse.send(DropReason::SniMismatch).expect("refuse");
    assert_eq!(tunnel.await.expect("tunnel"), (0, 9, Some(DropReason::SniMismatch)));
    let mut got = vec![];
    let _ = server.read_to_end(&mut got).await;
    assert!(got.is_empty());
}

#[tokio::test]
async fn a_pipe_with_bytes_in_it_is_never_reused() {
    let pipes = Arc::new(Pipes::with_max(1));
    let mut pipe = pipes.take(1).expect("pipe");
    assert!(pipes.take(1).is_none(), "bounded");
    rustix::io::write(pipe.writer(), b"secret").expect("write");
    pipe.holds(6);
    drop(pipe);
    let pipe = pipes.take(1).expect("the bound counts live pipes only");
    assert!(rustix::io::read(pipe.reader(), &mut [0_u8; 6]).is_err(), "a fresh pipe is empty");
}

#[tokio::test]
async fn wide_pipes_are_few_and_never_reused_with_bytes_in_them() {
    let pipes = Arc::new(Pipes::default());
    let wide = |pipe: &pipes::Pipe| pipe.bytes() == pipes::WIDE_BYTES;
    // Ten of each of four agents.
    let take = || -> Vec<_> { (0..40).map(|n| pipes.take_wide(n % 4).expect("pipe")).collect() };
    let mut all = take();
    let count = all.iter().filter(|pipe| wide(pipe)).count();
    assert!((1..=pipes::WIDE_MAX).contains(&count), "{count} wide ones of {}", all.len());
    let size = |pipe: &pipes::Pipe| rustix::pipe::fcntl_getpipe_size(pipe.reader()).expect("size");
    assert!(all.iter().all(|pipe| !wide(pipe) || size(pipe) >= pipes::WIDE_BYTES));
    for pipe in &mut all {
        rustix::io::write(pipe.writer(), b"secret").expect("write");
        pipe.holds(6);
    }
    drop(all);
    let all = take();
    assert_eq!(all.iter().filter(|pipe| wide(pipe)).count(), count, "what was thrown away is not counted");
    for pipe in &all {
        assert!(rustix::io::read(pipe.reader(), &mut [0_u8; 6]).is_err(), "a fresh pipe is empty");
    }
    drop(all);
    assert!(
        wide(&pipes.take_wide(1).expect("pipe")) && !wide(&pipes.take(1).expect("pipe")),
        "each kind by itself"
    );
}

/// Of readers that take nothing, each keeps what it has.
#[tokio::test]
async fn no_agent_holds_more_wide_pipes_than_its_share() {
    let pipes = Arc::new(Pipes::default());
    let wide = |all: &[pipes::Pipe]| all.iter().filter(|pipe| pipe.bytes() == pipes::WIDE_BYTES).count();
    let take = |agent| -> Vec<_> { (0..20).map(|_| pipes.take_wide(agent).expect("pipe")).collect() };
    let greedy = take(1);
    assert_eq!(wide(&greedy), pipes::WIDE_SHARE);
    let others: Vec<_> = (2..5).map(take).collect();
    assert!(others.iter().all(|all| wide(all) == pipes::WIDE_SHARE), "the others have theirs");
    assert_eq!(wide(&take(5)), 0, "there are no more");
    drop(greedy);
    assert_eq!(wide(&take(5)), pipes::WIDE_SHARE);
    assert_eq!(wide(&take(1)), pipes::WIDE_SHARE, "what was given back is nobody's");
}

/// As of readers that take nothing: each pipe has bytes in it for as long as they do.
#[tokio::test]
async fn no_agent_holds_more_pipes_than_its_share() {
    let pipes = Arc::new(Pipes::with_max(16));
    let take = |agent| -> Vec<_> { (0..16).map_while(|_| pipes.take(agent)).collect() };
    let greedy = take(1);
    assert_eq!(greedy.len(), 4);
    let others: Vec<_> = (2..5).map(take).collect();
    assert!(others.iter().all(|all| all.len() == 4), "the others have theirs");
    assert!(pipes.take(5).is_none(), "there are no more");
    drop(greedy);
    assert_eq!(take(5).len(), 4);
    assert_eq!(take(1).len(), 4, "what was given back is nobody's");
}

/// Carries until nothing has moved for too long; `talk` is what both sides do meanwhile, at first. Gives what came of it, and when.
async fn quiet(
    talk: impl AsyncFnOnce(&mut TcpStream, &mut TcpStream),
) -> ((u64, u64, Option<DropReason>), Duration) {
    let (mut client, inner_client) = pair().await;
    let (inner_upstream, mut server) = pair().await;
    let (pipes, began) = (Arc::new(Pipes::default()), Instant::now());
    let tunnel = tokio::spawn(async move {
        let first = async |reader| (reader, Ok(vec![]));
        let (upstream, meter) = (inner_upstream.into(), Meter::default());
        run(&mut inner_client.into(), (&upstream, &meter), first, (&pipes, 1), std::future::pending()).await
    });
    talk(&mut client, &mut server).await;
    let ended = tunnel.await.expect("tunnel");
    (ended, began.elapsed())
}

#[tokio::test(start_paused = true)]
async fn a_tunnel_in_which_nothing_moves_ends_in_an_hour() {
    // A moment before it would have ended something moves, and it has its time again.
    let most = limit::TUNNEL_IDLE - Duration::from_secs(1);
    let (ended, after) = quiet(async |client, server| {
        let mut got = [0; 2];
        client.write_all(b"up").await.expect("send");
        server.read_exact(&mut got).await.expect("read");
        tokio::time::sleep(most).await;
        server.write_all(b"down").await.expect("send");
        client.read_exact(&mut got).await.expect("read");
    })
    .await;
    assert_eq!(ended, (2, 4, Some(DropReason::Timeout)));
    assert!(after >= most + limit::TUNNEL_IDLE, "{after:?}");
    assert!(after <= most + limit::TUNNEL_IDLE + limit::TUNNEL_HALF_CLOSED, "{after:?}");
}

#[tokio::test(start_paused = true)]
async fn a_tunnel_that_one_side_has_ended_ends_sooner() {
    let (ended, after) = quiet(async |client, server| {
        client.write_all(b"up").await.expect("send");
        client.shutdown().await.expect("shutdown");
        let mut got = Vec::new();
        server.read_to_end(&mut got).await.expect("read");
    })
    .await;
    assert_eq!(ended, (2, 0, Some(DropReason::Timeout)));
    assert!(after >= limit::TUNNEL_HALF_CLOSED && after < limit::TUNNEL_IDLE, "{after:?}");
}
