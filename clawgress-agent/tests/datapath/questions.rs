//! Questions to DNS of a command on this machine: they are steered as those of agents' hosts are, and answered by the same socket.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use clawgress_api::handover::{Handover, ListenerKind, SERVES_DNS};
use tokio::io::AsyncWriteExt as _;

use crate::dns::{answer_by, kept_back, receive, tables};
use crate::kernel::agent;
use crate::lab::Lab;
use crate::network::{self, WORKS, take};
use crate::puppet::Puppet;
use crate::workload::open_workload;

const DNS: u16 = 53;

/// The next question that comes to `socket`, answered; where it was sent to, and by whom.
fn answered(socket: &OwnedFd) -> (SocketAddr, SocketAddr) {
    let until = Instant::now() + WORKS;
    loop {
        match receive(socket) {
            Ok((question, asked, peer)) => {
                assert_eq!(question, b"hello");
                answer_by(socket, asked.ip(), peer).expect("answered");
                return (asked, peer);
            }
            Err(error) => assert!(Instant::now() < until, "no question came: {error}"),
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Sends `hello` as the puppet's `expression` says, and returns what came back.
fn ask(puppet: &mut Puppet, socket: &OwnedFd, expression: &str, to: IpAddr) -> String {
    let sent = puppet.tell(expression);
    assert_eq!(sent, "ok", "{expression}");
    let (asked, peer) = answered(socket);
    assert_eq!(asked, SocketAddr::from((to, DNS)));
    assert!(peer.ip().is_loopback(), "{peer}");
    puppet.tell("heard('q')")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_local_commands_questions_are_steered_and_answered() {
    let mut lab = Lab::new();
    lab.start().await;
    lab.apply(1, tables(), vec![agent(1, &[]), agent(2, &[])]).await;
    let (mut loan, handover, descriptors): (_, Handover, _) = take(&lab).await;
    loan.write_all(&[SERVES_DNS]).await.expect("the word");
    let job = open_workload(&lab, 1, "job").await;
    let other = open_workload(&lab, 2, "other").await;
    let (mut puppet, mut stranger) = (Puppet::new(&lab, &job.path), Puppet::new(&lab, &other.path));
    for f in network::families() {
        let v4 = f.known.is_ipv4();
        let socket = handover
            .listeners
            .iter()
            .position(|l| l.kind == ListenerKind::DnsDatagram && l.address.is_ipv4() == v4)
            .map(|n| &descriptors[n])
            .expect("a DNS socket");
        let (to, any) = (f.steered, if v4 { "0.0.0.0" } else { "::" });
        // The datapath role notes what was said on the loan by itself.
        let connected = format!("question('q', '{to}', {DNS})");
        let until = Instant::now() + WORKS;
        loop {
            assert_eq!(puppet.tell(&connected), "ok");
            if wait_for(socket) {
                break;
            }
            assert!(Instant::now() < until, "nothing comes to who serves DNS");
        }
        let heard = format!("answer {}", SocketAddr::from((to, DNS)));
        let before = kept_back(&lab);
        assert_eq!(ask(&mut puppet, socket, &connected, to), heard, "a socket that is connected");
        let bound = format!("question('q', '{to}', {DNS}, '{any}')");
        assert_eq!(ask(&mut puppet, socket, &bound, to), heard, "one that was bound to no address before");
        // One that never connects is told to try again once: its mark is read before the hook that sets it.
        let loose = format!("loose('q', '{to}', {DNS})");
        assert_eq!(puppet.tell(&loose), "EPERM");
        assert_eq!(ask(&mut puppet, socket, &loose, to), heard, "one that isn't connected");
        assert_eq!(kept_back(&lab), before, "no answer was kept back");
        // What goes straight on does, by the same socket as well; and what is forbidden does not.
        assert_eq!(
            puppet.tell(&format!("loose('q', '{}', {DNS})", f.direct)),
            "EPERM",
            "another way: once more"
        );
        assert_eq!(puppet.tell(&format!("loose('q', '{}', {DNS})", f.direct)), "ok");
        assert_eq!(puppet.tell(&format!("question('n', '{}', {DNS})", f.forbidden)), "EPERM");
        assert_eq!(puppet.tell(&format!("question('n', '{to}', 54)")), "EPERM", "not DNS");
        assert_eq!(stranger.tell(&connected), "EPERM", "nothing is permitted to it");
    }
}

/// Whether a question came, which is left unanswered.
fn wait_for(socket: &OwnedFd) -> bool {
    let until = Instant::now() + network::REFUSED;
    while Instant::now() < until {
        if receive(socket).is_ok() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    false
}
