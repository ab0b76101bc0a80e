//! What XDP remembers of packets changes nothing of what it says: not after any change that verdicts rest on, and
//! not for packets that look alike.

use std::collections::{BTreeSet, HashSet};
use std::time::Instant;

use aya::maps::PerCpuArray;
use clawgress_agent::datapath::bpf::Plain;
use clawgress_agent::datapath::learned::LearnedMap;
use clawgress_agent::datapath::object::{self, program};
use clawgress_ebpf_common::{DropReason, Recent, bound, map};
use clawgress_policy::kernel::KernelTables;

use crate::dns::learned;
use crate::frames::{ACK, SYN, ip, tcp, udp};
use crate::kernel::{Did, Kernel, PROXY_PORT};
use crate::lab::at;
use crate::network::WORKS;
use crate::random::{Random, seed};
use crate::verdicts::{self, MAC, OTHER_MAC, agents, families, tables};

/// Times a packet comes, so that it is remembered, and then gone by.
const TIMES: usize = 4;

#[track_caller]
fn check(kernel: &Kernel, when: &str, frame: &[u8], want: Did) {
    for time in 0..TIMES {
        assert_eq!(kernel.xdp(frame), want, "{when}, time {time}");
    }
}

fn nothing() -> KernelTables {
    KernelTables { verdicts: Vec::new(), ..tables() }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_change_counts_for_the_next_packet() {
    use DropReason as R;
    let mut kernel = verdicts::ready().await;
    let mut map = LearnedMap::take(&mut kernel.objects).expect("maps");
    let mut number = 1;
    for (f, taught, turned) in families()
        .into_iter()
        .zip(["9.9.9.5", "2a01:db8::5"])
        .zip(["198.51.100.9", "2001:db8:1::9"])
        .map(|((f, taught), turned)| (f, taught, at(turned)))
    {
        let datagram = |to| ip(MAC, f.agent, to, 17, &udp(40_000, 443, &[0; 32]));
        let direct = datagram(f.direct);
        check(&kernel, "direct", &direct, Did::Passed);
        kernel.quarantine.set(&BTreeSet::from([1])).expect("quarantine");
        check(&kernel, "quarantined", &direct, Did::Dropped(R::AgentQuarantined));
        kernel.quarantine.set(&BTreeSet::new()).expect("quarantine");
        check(&kernel, "released", &direct, Did::Passed);

        let mut changed = async |kernel: &mut Kernel, tables, is_next: bool| {
            number += u64::from(is_next);
            kernel.apply(number, Some(tables), agents()).await;
        };
        for (round, is_next) in [true, true, false, false, false].into_iter().enumerate() {
            // Written anew, a generation keeps its number, and comes to the slot it was in before.
            changed(&mut kernel, nothing(), is_next).await;
            check(&kernel, &format!("nothing is permitted, {round}"), &direct, Did::Dropped(R::PolicyDenied));
            changed(&mut kernel, tables(), is_next).await;
            check(&kernel, &format!("direct again, {round}"), &direct, Did::Passed);
        }
        check(&kernel, "forbidden", &datagram(f.forbidden), Did::Dropped(R::PolicyForbidden));

        let ssh = ip(MAC, f.agent, at(taught), 6, &tcp(40_000, 22, ACK));
        check(&kernel, "not learned", &ssh, Did::Dropped(R::PolicyDenied));
        map.learn(number, &learned(number, &[(1, taught, 22, 0)])).expect("learned");
        check(&kernel, "learned", &ssh, Did::Passed);
        map.expire(u64::MAX, &HashSet::new()).expect("expired");
        check(&kernel, "forgotten", &ssh, Did::Dropped(R::PolicyDenied));

        check(&kernel, "before it is the gateway's", &datagram(turned), Did::Passed);
        kernel.own(turned);
        check(&kernel, "the gateway's", &datagram(turned), Did::Dropped(R::GatewayAddress));
        let proxy = |flags| ip(MAC, f.agent, turned, 6, &tcp(40_000, PROXY_PORT, flags));
        check(&kernel, "its proxy", &proxy(ACK), Did::Passed);
        check(&kernel, "its proxy, again", &proxy(SYN), Did::Passed);
    }
    kernel.check_counts();
}

/// Else the other tests here would say nothing.
#[tokio::test(flavor = "multi_thread")]
async fn what_comes_again_is_remembered() {
    let mut kernel = verdicts::ready().await;
    let recent: PerCpuArray<_, Plain<Recent>> =
        object::take(&mut kernel.objects, map::RECENT).expect("what was said");
    for f in families() {
        for (to, want, reason) in [
            (f.direct, Did::Passed, 0),
            (f.forbidden, Did::Dropped(DropReason::PolicyForbidden), DropReason::PolicyForbidden.code()),
        ] {
            let frame = ip(MAC, f.agent, to, 17, &udp(40_000, 443, &[0; 32]));
            let link = u64::from_ne_bytes(frame[6..14].try_into().expect("eight bytes"));
            let low = match to {
                std::net::IpAddr::V4(v4) => u64::from(u32::from_ne_bytes(v4.octets())) << 32 | 0xFFFF_0000,
                std::net::IpAddr::V6(v6) => u64::from_ne_bytes(v6.octets()[8..].try_into().expect("eight")),
            };
            let is_there = || {
                (0..bound::RECENT_SLOTS).any(|slot| {
                    let values = recent.get(&slot, 0).expect("values");
                    values.iter().any(|Plain(r)| {
                        r.shape[0] == link && r.shape[4] == low && Recent::told(r.said).0 == reason
                    })
                })
            };
            let until = Instant::now() + WORKS;
            while !is_there() {
                assert!(Instant::now() < until, "{to}: nothing is remembered");
                check(&kernel, "again", &frame, want);
            }
        }
    }
}

/// A frame of a few kinds to a few addresses, perhaps with a byte or two of it changed.
fn frame(r: &mut Random) -> Vec<u8> {
    let [v4, v6] = families();
    let f = if r.below(2) == 0 { v4 } else { v6 };
    let mac = if r.below(8) == 0 { OTHER_MAC } else { MAC };
    let source = [f.agent, f.agent, f.agent, f.disabled, f.stranger][r.index(5)];
    let to = [f.direct, f.steered, f.forbidden, f.unnamed, f.gateway][r.index(5)];
    let port = [443, 443, 444, PROXY_PORT][r.index(4)];
    let payload = vec![0; r.index(40)];
    let mut frame = if r.below(2) == 0 {
        ip(mac, source, to, 17, &udp(40_000, port, &payload))
    } else {
        let mut segment = tcp(40_000, port, [SYN, ACK, SYN | ACK, 0x18, 0x11][r.index(5)]);
        segment.extend(payload);
        ip(mac, source, to, 6, &segment)
    };
    for _ in 0..r.below(3) {
        // Where headers are, all of them.
        let place = 6 + r.index(frame.len().min(76) - 6);
        frame[place] = u8::try_from(r.below(256)).expect("a byte");
    }
    frame
}

#[tokio::test(flavor = "multi_thread")]
async fn a_packet_is_judged_as_if_none_had_been_before() {
    const BATCHES: usize = 60;
    const FRAMES: usize = 16;
    let mut kernel = verdicts::ready().await;
    let mut r = Random(seed());
    let (mut passed, mut reasons) = (0, BTreeSet::new());
    for _ in 0..BATCHES {
        let mut judged = Vec::new();
        for frame in (0..FRAMES).map(|_| frame(&mut r)) {
            kernel.turn.turn().expect("turned");
            let first = kernel.xdp(&frame);
            match first {
                Did::Dropped(reason) => drop(reasons.insert(reason.code())),
                _ => passed += 1,
            }
            judged.push((frame, first));
        }
        for time in 0..TIMES {
            for (frame, first) in &judged {
                let now = kernel.did(program::XDP, frame, *first);
                assert_eq!(now, *first, "time {time}: {frame:02x?}");
            }
        }
    }
    println!("{passed} frames passed, and others were dropped for {reasons:?}");
    assert!(passed > FRAMES && reasons.len() > 5, "too little was met: {passed}, {reasons:?}");
    kernel.check_counts();
}
