//! Buffers that the kernel joined (TSO, GRO): a limiter counts what they are on the wire, packets and bytes.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use aya::programs::{Program, SchedClassifier};
use aya::{TestRun as _, TestRunOptions};
use clawgress_agent::datapath::object::program;
use clawgress_api::LiveQuery;
use clawgress_ebpf_common::mark;
use clawgress_policy::kernel::{LimitUnit, Limiter};

use crate::frames::{ACK, SYN, ethernet, ip, tcp, udp};
use crate::kernel::{Did, Kernel, agent};
use crate::lab::{Lab, Place, at, ip as run_ip};
use crate::limits::{bucket, held, limited, limiter};
use crate::local::DIRECT;
use crate::network::{PORT, WORKS, agents, dial, tables};
use crate::puppet::Puppet;
use crate::verdicts::{self, Family, MAC, families, ready};
use crate::workload::{self, open_workload};

/// So much that no limit is reached.
const MUCH: u64 = 1_000_000_000;
/// Where `struct __sk_buff` has these, and its size.
const GSO_SEGS: usize = 164;
const GSO_SIZE: usize = 176;
const SKB_BYTES: usize = 192;

/// The packet program sees `frame` as a buffer of so many segments of this size.
fn offer(kernel: &Kernel, frame: &[u8], segments: u32, size: u32) {
    let mut skb = vec![0; SKB_BYTES];
    skb[GSO_SEGS..GSO_SEGS + 4].copy_from_slice(&segments.to_ne_bytes());
    skb[GSO_SIZE..GSO_SIZE + 4].copy_from_slice(&size.to_ne_bytes());
    let Some(Program::SchedClassifier(program)) = kernel.objects.program(program::TC_IN) else {
        panic!("no program")
    };
    let program: &SchedClassifier = program;
    let options = TestRunOptions { data_in: Some(frame), ctx_in: Some(&skb), ..TestRunOptions::default() };
    assert_eq!(program.test_run(options).expect("test run").return_value, 0, "it passes");
}

/// A TCP segment with an option of four bytes and this much behind it.
fn segment(f: &Family, payload: usize) -> Vec<u8> {
    let mut header = tcp(7, 443, ACK);
    header[12] = 0x60;
    header.extend([1; 4]);
    header.extend(vec![0; payload]);
    ip(MAC, f.agent, f.direct, 6, &header)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_joined_buffer_counts_as_what_it_is_on_the_wire() {
    let mut kernel = ready().await;
    for (f, round) in families().into_iter().zip(0_u64..) {
        let key = 1 + 10 * round;
        let limits = vec![
            limiter(key, LimitUnit::Packets, MUCH, 1, MUCH),
            limiter(key + 1, LimitUnit::Bytes, MUCH, 1, MUCH),
        ];
        kernel.apply(2 + round, Some(limited(limits)), verdicts::agents()).await;
        let mut before = (0, 0);
        let mut counted = |kernel: &Kernel| {
            let [packets, bytes] = [0, 1].map(|n| bucket(kernel, key + n).passed);
            let now = (packets, bytes);
            let more = (now.0 - before.0, now.1 - before.1);
            before = now;
            more
        };
        let l3: u64 = if f.agent.is_ipv4() { 20 } else { 40 };
        assert_eq!(
            kernel.ingress(&ip(MAC, f.agent, f.direct, 6, &tcp(7, 443, SYN))),
            Did::Marked(mark::DIRECT)
        );
        assert_eq!(counted(&kernel), (1, l3 + 20));
        // Payload, size of a segment, segments as who made it says, packets on the wire.
        for (payload, size, said, packets) in [
            (3000, 1000, 3, 3),
            (3000, 1000, 0, 3),
            (3001, 1000, 4, 4),
            (2999, 1000, 3, 3),
            (100, 1000, 1, 1),
            (64, 8, 0, 8),
        ] {
            offer(&kernel, &segment(&f, payload), said, size);
            let bytes = payload as u64 + packets * (l3 + 24);
            assert_eq!(counted(&kernel), (packets, bytes), "{payload} bytes in segments of {size}");
        }
        offer(&kernel, &segment(&f, 900), 0, 0);
        assert_eq!(counted(&kernel), (1, 900 + l3 + 24), "not joined");
        // Datagrams (`UDP_SEGMENT`): each has a header too.
        offer(&kernel, &ip(MAC, f.agent, f.direct, 17, &udp(7, 443, &[0; 2500])), 3, 1000);
        assert_eq!(counted(&kernel), (3, 2500 + 3 * (l3 + 8)));
        if f.agent.is_ipv6() {
            // Behind an extension header: the most that headers can be.
            let plain = segment(&f, 3000);
            let mut packet = plain[14..].to_vec();
            packet[6] = 60;
            let length = u16::from_be_bytes([packet[4], packet[5]]) + 8;
            packet[4..6].copy_from_slice(&length.to_be_bytes());
            packet.splice(40..40, [6, 0, 1, 4, 0, 0, 0, 0]);
            offer(&kernel, &ethernet(MAC, 0x86DD, &packet), 4, 1000);
            let (packets, bytes) = counted(&kernel);
            assert_eq!((packets, bytes), (4, 3000 + 40 + 8 + 24 + 3 * 228), "behind options");
        }
    }
}

/// Counts what of the gateway comes to the outside's port, one packet on the wire after the other.
pub struct Wire<'a>(&'a Lab);

impl<'a> Wire<'a> {
    pub fn tap(lab: &'a Lab) -> Wire<'a> {
        // Whatever is joined is taken apart before it goes on that wire.
        run_ip(&format!("-n {} link set gu gso_max_segs 1", lab.ns(Place::Gateway)));
        let wire = Wire(lab);
        wire.nft("add table inet wire");
        wire.nft("add chain inet wire in { type filter hook prerouting priority -400; }");
        wire.nft(&format!("add rule inet wire in iifname o0 tcp dport {PORT} counter"));
        wire
    }

    fn nft(&self, words: &str) -> String {
        let ns = self.0.ns(Place::Outside);
        let output = Command::new("nsenter")
            .arg(format!("--net=/run/netns/{ns}"))
            .arg("nft")
            .args(words.split_whitespace())
            .output()
            .expect("nft");
        assert!(output.status.success(), "{words}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("text")
    }

    /// Packets, and bytes of layer 3 and up.
    pub fn counted(&self) -> (u64, u64) {
        let listed = self.nft("list table inet wire");
        let after = |word: &str| {
            let mut words = listed.split_whitespace().skip_while(|w| *w != word).skip(1);
            words.next().and_then(|n| n.parse().ok()).expect("a count")
        };
        (after("packets"), after("bytes"))
    }
}

/// What limiters 1 and 2 counted.
async fn counted(lab: &Lab) -> (u64, u64) {
    let limits = lab.limits().await;
    let of = |policy: &str| {
        let row = limits.iter().find(|l| l.policy.as_deref() == Some(policy)).expect("the limit");
        assert_eq!(row.dropped, 0, "{row:?}");
        row.passed
    };
    (of("limit-1"), of("limit-2"))
}

/// Waits until the last acknowledgements are through.
async fn until_equal(lab: &Lab, wire: &Wire<'_>, before: (u64, u64)) -> (u64, u64) {
    let until = Instant::now() + WORKS;
    loop {
        let (limited, wire) = (counted(lab).await, wire.counted());
        let limited = (limited.0 - before.0, limited.1 - before.1);
        if limited == wire {
            return wire;
        }
        assert!(Instant::now() < until, "{limited:?} were charged, {wire:?} were on the wire");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

const SENT: usize = 4 << 20;

fn much() -> Vec<Limiter> {
    vec![limiter(1, LimitUnit::Packets, MUCH, 1, MUCH), limiter(2, LimitUnit::Bytes, MUCH, 1, MUCH)]
}

/// Reads what is sent, and keeps the connection.
fn reader(lab: &Lab) -> JoinHandle<TcpStream> {
    let to = (at(DIRECT[0]), PORT);
    let listener = lab.inside(Place::Outside, || TcpListener::bind(to).expect("bind"));
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("accept");
        stream.set_read_timeout(Some(WORKS)).expect("time-out");
        stream.read_exact(&mut vec![0; SENT]).expect("read");
        stream
    })
}

/// That what was charged since `before` is what was on the wire, and that it was in fewer buffers.
async fn check(lab: &Lab, wire: &Wire<'_>, before: (u64, u64)) {
    let (packets, bytes) = until_equal(lab, wire, before).await;
    let flows = lab.flows(&LiveQuery::default()).await.expect("flows").flows;
    let buffers: u64 = flows.iter().map(|flow| flow.packets_sent).sum();
    println!("{packets} packets, {bytes} bytes on the wire, in {buffers} buffers");
    assert!(packets > SENT as u64 / 1500 && bytes > SENT as u64);
    assert!(buffers > 0 && buffers < packets, "nothing was joined: {buffers} of {packets}");
}

/// Real TCP of an agent, joined as it comes in.
#[tokio::test(flavor = "multi_thread")]
async fn an_agents_transfer_is_charged_as_on_the_wire() {
    let mut lab = Lab::new();
    lab.start().await;
    lab.apply(1, held(tables(), much()), agents()).await;
    let reader = reader(&lab);
    // Towards XDP a virtual link joins nothing, so it goes for now; what charges is TC.
    lab.stop(nix::sys::signal::Signal::SIGKILL);
    let links = std::fs::read_dir(lab.config.datapath.bpffs.join("links")).expect("links");
    let links = links.map(|link| link.expect("link"));
    for xdp in links.filter(|link| link.file_name().to_string_lossy().starts_with("xdp-")) {
        std::fs::remove_file(xdp.path()).expect("remove");
    }
    Wire::tap(&lab);
    let mut stream = dial(&lab, at("10.77.0.2"), (at(DIRECT[0]), PORT), WORKS).expect("direct");
    stream.write_all(&vec![0; SENT]).expect("write");
    let _read = reader.join().expect("reader");
    lab.start().await;
    check(&lab, &Wire(&lab), (0, 0)).await;
}

/// Real TCP of a local command, joined by its own stack.
#[tokio::test(flavor = "multi_thread")]
async fn a_local_commands_transfer_is_charged_as_on_the_wire() {
    let mut lab = Lab::new();
    lab.start().await;
    lab.apply(1, held(workload::tables(), much()), vec![agent(1, &[])]).await;
    let reader = reader(&lab);
    let job = open_workload(&lab, 1, "job").await;
    let mut puppet = Puppet::new(&lab, &job.path);
    assert_eq!(puppet.tell(&format!("dial('a', '{}', {PORT}, 30)", DIRECT[0])), "ok");
    // Now that TCP has looked what the link can take.
    let wire = Wire::tap(&lab);
    let before = counted(&lab).await;
    assert_eq!(puppet.tell(&format!("held['a'].sendall(bytes({SENT}))")), "None");
    let _read = reader.join().expect("reader");
    check(&lab, &wire, before).await;
}
