//! Rate limits: the programs against a model of token buckets, with the time each packet may have been looked at
//! at; and what must hold whatever the time: no bucket is charged for what another refuses, one limiter is one
//! bucket for all CPUs, addresses and generations, and sources without a binding share theirs with nobody bound.

use std::collections::BTreeMap;
use std::net::IpAddr;

use clawgress_agent::datapath::bpf::Plain;
use clawgress_agent::datapath::names::monotonic_ns;
use clawgress_agent::datapath::tables::Plan;
use clawgress_api::LiveQuery;
use clawgress_ebpf_common::{
    Bucket, BucketKey, DropReason, FlowKey, SUBJECT_CGROUP, bound, dial_flag, mark, protocol,
};
use clawgress_identity::AgentId;
use clawgress_policy::kernel::{KernelTables, LimitAction, LimitSubject, LimitUnit, Limiter};
use nix::net::if_::if_nametoindex;

use crate::dial::{self, Cgroup};
use crate::frames::{ACK, FIN, RST, SYN, arp, ip, tcp, udp};
use crate::kernel::{Did, Kernel, PROXY_PORT, agent};
use crate::lab::{Lab, Place, at};
use crate::local::{DIRECT, STEERED};
use crate::network::Server;
use crate::puppet::Puppet;
use crate::random::Random;
use crate::verdicts::{self, Family, MAC, agents, families, ready};
use crate::workload::{self, PORT, open_workload};

const DROPPED: Did = Did::Dropped(DropReason::RateLimited);
const PASSED: Did = Did::Marked(mark::DIRECT);
/// So slow that no test sees it fill.
const NEVER_S: u32 = 3600;

pub fn limiter(key: u64, unit: LimitUnit, count: u64, period_s: u32, burst: u64) -> Limiter {
    Limiter {
        policy: format!("limit-{key}"),
        key,
        unit,
        count,
        period_s,
        burst,
        group: None,
        subject: LimitSubject::Agent,
        over: LimitAction::Drop,
    }
}

/// The tables of `verdicts`, with all that is permitted held to `limits`.
pub fn limited(limits: Vec<Limiter>) -> KernelTables {
    held(verdicts::tables(), limits)
}

/// Holds all that tables permit to limits.
pub fn held(mut tables: KernelTables, limits: Vec<Limiter>) -> KernelTables {
    for cell in &mut tables.verdicts {
        cell.limits = 1;
    }
    let all = (0..u32::try_from(limits.len()).expect("few")).collect();
    KernelTables { limiters: limits, limits: vec![Vec::new(), all], ..tables }
}

fn datagram(f: &Family, port: u16, bytes: usize) -> Vec<u8> {
    ip(MAC, f.agent, f.direct, 17, &udp(port, 443, &vec![0; bytes]))
}

fn syn(f: &Family, port: u16) -> Vec<u8> {
    ip(MAC, f.agent, f.direct, 6, &tcp(port, 443, SYN))
}

pub fn bucket(kernel: &Kernel, limiter: u64) -> Bucket {
    let key = BucketKey { limiter, subject: 1 };
    let all = kernel.buckets.all().expect("buckets");
    all.into_iter().find(|(k, _)| *k == key).map(|(_, bucket)| bucket).unwrap_or_default()
}

/// A bucket as a model: when it is full, as far as it can be known from when packets may have been looked at.
#[derive(Default)]
struct Model {
    earliest_ns: u64,
    latest_ns: u64,
}

impl Model {
    /// What must become of a packet that costs this, if that is certain.
    fn expected(&self, cost_ns: u64, burst_ns: u64, before: u64, after: u64) -> Option<bool> {
        // What is larger than the burst passes a full bucket.
        let cost_ns = cost_ns.min(burst_ns);
        let most = self.latest_ns.saturating_sub(before);
        let least = self.earliest_ns.saturating_sub(after);
        if most + cost_ns <= burst_ns {
            Some(true)
        } else if least + cost_ns > burst_ns {
            Some(false)
        } else {
            None
        }
    }

    fn charge(&mut self, cost_ns: u64, before: u64, after: u64) {
        self.earliest_ns = self.earliest_ns.max(before) + cost_ns;
        self.latest_ns = self.latest_ns.max(after) + cost_ns;
    }
}

/// Random limiters and packets of random sizes: the programs do what the model says wherever it is certain.
#[tokio::test(flavor = "multi_thread")]
async fn the_programs_hold_what_a_model_of_token_buckets_says() {
    let seed =
        std::env::var("CLAWGRESS_TEST_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or_else(monotonic_ns);
    println!("CLAWGRESS_TEST_SEED={seed}");
    let mut random = Random(seed);
    let mut kernel = ready().await;
    let [f, _] = families();
    let (mut certain, mut passed, mut dropped) = (0, 0, 0);
    for generation in 2..32 {
        let unit = [LimitUnit::Packets, LimitUnit::Bytes, LimitUnit::Connections][random.below(3) as usize];
        let is_bytes = unit == LimitUnit::Bytes;
        let count = if is_bytes { 10_000 + random.below(1 << 20) } else { 1 + random.below(500) };
        let burst = if is_bytes { 65_535 + random.below(100_000) } else { 1 + random.below(40) };
        let (limit, mut model) = (limiter(generation, unit, count, 1, burst), Model::default());
        kernel.apply(generation, Some(limited(vec![limit])), agents()).await;
        let cost_of =
            |units: u64| u64::try_from(u128::from(units) * 1_000_000_000 / u128::from(count)).expect("small");
        for n in 0..200_u16 {
            let bytes = random.below(1400) as usize;
            // A port of its own begins a flow.
            let port = 1000
                + u16::try_from(generation).expect("few") * 500
                + if random.below(2) == 0 { n } else { 0 };
            let frame = datagram(&f, port, bytes);
            let key = clawgress_ebpf_common::FlowKey {
                source: clawgress_ebpf_common::user::address(f.agent),
                destination: clawgress_ebpf_common::user::address(f.direct),
                source_port_be: port.to_be(),
                destination_port_be: 443_u16.to_be(),
                ifindex: crate::kernel::LOOPBACK,
                protocol: 17,
                pad: [0; 3],
            };
            let units = match unit {
                LimitUnit::Packets => 1,
                LimitUnit::Bytes => 28 + bytes as u64,
                LimitUnit::Connections => u64::from(kernel.flow(&key).is_none()),
            };
            let (cost_ns, burst_ns) = (cost_of(units), cost_of(burst));
            let before = monotonic_ns();
            let did = kernel.ingress(&frame);
            let after = monotonic_ns();
            // A nanosecond of rounding for each unit charged, either way.
            let slack = 2 * u64::from(n) + burst / (1 << 16) + 2;
            let low = model.expected(cost_ns + slack, burst_ns, before, after);
            let high = model.expected(cost_ns.saturating_sub(slack), burst_ns, before, after);
            match (units, low, high) {
                (0, ..) => assert_eq!(did, PASSED, "begins nothing"),
                (_, Some(true), _) => {
                    certain += 1;
                    assert_eq!(did, PASSED, "{unit:?} {count}/s burst {burst}, packet {n}");
                }
                (.., Some(false)) => {
                    certain += 1;
                    assert_eq!(did, DROPPED, "{unit:?} {count}/s burst {burst}, packet {n}");
                }
                _ => {}
            }
            if did == PASSED {
                passed += 1;
                if units > 0 {
                    model.charge(cost_ns, before, after);
                }
            } else {
                dropped += 1;
            }
        }
    }
    println!("{certain} of 6000 certain, {passed} passed, {dropped} dropped");
    assert!(certain > 3_000 && passed > 500 && dropped > 500, "{certain} {passed} {dropped}");
    kernel.check_counts();
}

/// What a limit refuses is charged to none, and what XDP drops early is not charged twice.
#[tokio::test(flavor = "multi_thread")]
async fn a_refused_packet_is_charged_to_no_other_limit() {
    let mut kernel = ready().await;
    for (f, round) in families().into_iter().zip(0_u64..) {
        let key = round * 10;
        let limits = vec![
            limiter(key + 1, LimitUnit::Packets, 1000, NEVER_S, 1000),
            limiter(key + 2, LimitUnit::Connections, 3, NEVER_S, 3),
        ];
        kernel.apply(2 + round, Some(limited(limits)), agents()).await;
        for port in 1..=3 {
            assert_eq!(kernel.xdp(&syn(&f, port)), Did::Passed);
            assert_eq!(kernel.ingress(&syn(&f, port)), PASSED, "{port}");
        }
        let charged = bucket(&kernel, key + 1);
        assert_eq!((charged.passed, charged.dropped, charged.agent), (3, 0, 1));
        for port in 4..20 {
            assert_eq!(kernel.xdp(&syn(&f, port)), Did::Passed, "connections are TC's to count");
            assert_eq!(kernel.ingress(&syn(&f, port)), DROPPED, "{port}");
        }
        assert_eq!(bucket(&kernel, key + 1).full_ns, charged.full_ns, "not charged for what is refused");
        assert_eq!((bucket(&kernel, key + 2).passed, bucket(&kernel, key + 2).dropped), (3, 16));
        // A flow that lives goes on: only beginnings are over.
        let next = ip(MAC, f.agent, f.direct, 6, &tcp(2, 443, ACK));
        assert_eq!(kernel.ingress(&next), PASSED);
        assert_eq!(bucket(&kernel, key + 1).passed, 4);
    }
    kernel.check_counts();
}

/// The early drop: XDP sees an empty bucket, and takes nothing.
#[tokio::test(flavor = "multi_thread")]
async fn xdp_drops_what_is_over_and_takes_nothing() {
    let mut kernel = ready().await;
    for (f, round) in families().into_iter().zip(0_u64..) {
        let key = 1 + round;
        let limits = vec![limiter(key, LimitUnit::Packets, 5, NEVER_S, 5)];
        kernel.apply(2 + round, Some(limited(limits)), agents()).await;
        for _ in 0..20 {
            assert_eq!(kernel.xdp(&datagram(&f, 1, 10)), Did::Passed, "nothing is taken, nor a bucket made");
        }
        assert_eq!(bucket(&kernel, key), Bucket::default());
        for _ in 0..5 {
            assert_eq!(kernel.ingress(&datagram(&f, 1, 10)), PASSED);
        }
        assert_eq!(kernel.xdp(&datagram(&f, 1, 10)), DROPPED);
        assert_eq!(kernel.ingress(&datagram(&f, 1, 10)), DROPPED);
        assert_eq!((bucket(&kernel, key).passed, bucket(&kernel, key).dropped), (5, 2));
        // Whoever is not held to it is not.
        let limits = vec![limiter(key + 50, LimitUnit::Packets, 5, NEVER_S, 5)];
        kernel.apply(4 + round, Some(limited(limits)), agents()).await;
        assert_eq!(kernel.ingress(&datagram(&f, 1, 10)), PASSED, "a limit that was changed begins anew");
        kernel.apply(6 + round, Some(verdicts::tables()), agents()).await;
        for _ in 0..20 {
            assert_eq!(kernel.ingress(&datagram(&f, 1, 10)), PASSED, "no limit");
        }
    }
    kernel.check_counts();
}

/// A new policy is no way to a full bucket: the same limiter keeps its own, whatever number it has.
#[tokio::test(flavor = "multi_thread")]
async fn buckets_outlive_generations_and_families_share_them() {
    let mut kernel = ready().await;
    let [v4, v6] = families();
    let kept = || limiter(7, LimitUnit::Packets, 4, NEVER_S, 4);
    kernel.apply(2, Some(limited(vec![kept()])), agents()).await;
    assert_eq!(kernel.ingress(&datagram(&v4, 1, 10)), PASSED);
    assert_eq!(kernel.ingress(&datagram(&v6, 1, 10)), PASSED);
    let other = limiter(6, LimitUnit::Packets, 100, NEVER_S, 100);
    kernel.apply(3, Some(limited(vec![other, kept()])), agents()).await;
    assert_eq!(kernel.ingress(&datagram(&v6, 1, 10)), PASSED, "judged again by the new numbers");
    assert_eq!(kernel.ingress(&datagram(&v4, 2, 10)), PASSED);
    assert_eq!(kernel.ingress(&datagram(&v4, 1, 10)), DROPPED);
    assert_eq!(kernel.ingress(&datagram(&v6, 3, 10)), DROPPED);
}

/// One bucket for all CPUs: over any time no more passes than the rate, the burst, and one packet for each CPU.
#[tokio::test(flavor = "multi_thread")]
async fn cpus_share_a_bucket() {
    let mut kernel = ready().await;
    let [f, _] = families();
    let (rate, burst) = (5_000, 100);
    kernel.apply(2, Some(limited(vec![limiter(9, LimitUnit::Packets, rate, 1, burst)])), agents()).await;
    let frame = datagram(&f, 1, 10);
    assert_eq!(kernel.ingress(&frame), PASSED, "so that the flow is there");
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get) as u64;
    let before = monotonic_ns();
    std::thread::scope(|scope| {
        for _ in 0..cpus {
            scope.spawn(|| kernel.flood(std::iter::repeat_n(frame.clone(), 20_000)));
        }
    });
    let seconds = (monotonic_ns() - before) as f64 / 1e9;
    let bucket = bucket(&kernel, 9);
    assert_eq!(bucket.passed + bucket.dropped, 1 + 20_000 * cpus, "each is counted once");
    let most = burst as f64 + rate as f64 * seconds + cpus as f64 + 1.0;
    println!("{} passed in {seconds:.3} s on {cpus} CPUs, at most {most:.0}", bucket.passed);
    assert!((bucket.passed as f64) <= most, "{bucket:?} in {seconds} s");
    // Nor much less: the buckets ran dry only when more was asked for.
    assert!(bucket.dropped == 0 || bucket.passed as f64 >= burst as f64, "{bucket:?}");
}

/// A tuple that is used again is another connection; a SYN that is sent again is none.
#[tokio::test(flavor = "multi_thread")]
async fn a_tuple_used_again_is_another_connection() {
    let mut kernel = ready().await;
    for (f, round) in families().into_iter().zip(0_u64..) {
        let key = 1 + round;
        let limits = vec![limiter(key, LimitUnit::Connections, 3, NEVER_S, 3)];
        kernel.apply(2 + round, Some(limited(limits)), agents()).await;
        let segment = |flags| ip(MAC, f.agent, f.direct, 6, &tcp(7, 443, flags));
        for end in [RST, FIN | ACK, RST] {
            for _ in 0..3 {
                assert_eq!(kernel.ingress(&segment(SYN)), PASSED);
            }
            assert_eq!(kernel.ingress(&segment(end)), PASSED);
            let flow = verdicts::key(&f, f.direct, 443, protocol::TCP);
            let flow = FlowKey { source_port_be: 7_u16.to_be(), ..flow };
            kernel.age(&flow, bound::REUSE_NS);
        }
        assert_eq!(bucket(&kernel, key).passed, 3);
        assert_eq!(kernel.ingress(&segment(SYN)), DROPPED, "the fourth");
    }
}

/// What is larger than the burst passes a full bucket, once.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_larger_than_the_burst_leaves_a_full_bucket_in_debt() {
    let mut kernel = ready().await;
    let [f, _] = families();
    kernel.apply(2, Some(limited(vec![limiter(1, LimitUnit::Bytes, 100, NEVER_S, 100)])), agents()).await;
    assert_eq!(kernel.ingress(&datagram(&f, 1, 1_000)), PASSED);
    assert_eq!(kernel.ingress(&datagram(&f, 1, 0)), DROPPED);
    let (full_ns, now_ns) = (bucket(&kernel, 1).full_ns, monotonic_ns());
    assert!(full_ns > now_ns + 9 * 3_600_000_000_000, "ten hours for a thousand bytes: {full_ns} {now_ns}");
}

/// Where a bucket is wanted and there is no room, nothing passes; what has a bucket, or needs none, does.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_table_of_buckets_denies() {
    let mut kernel = ready().await;
    let [f, _] = families();
    let slow = |key| limiter(key, LimitUnit::Packets, 100, NEVER_S, 100);
    kernel.apply(2, Some(limited(vec![slow(1)])), agents()).await;
    assert_eq!(kernel.ingress(&datagram(&f, 1, 0)), PASSED);
    let other = Bucket { full_ns: monotonic_ns() * 2, agent: 7, ..Bucket::default() };
    let taken = (0..u64::from(bound::BUCKETS_MAX)).filter(|n| {
        let key = BucketKey { limiter: 99, subject: *n };
        kernel.bucket_map.insert(Plain(key), Plain(other), 0).is_ok()
    });
    let taken = taken.count();
    assert!(taken < bound::BUCKETS_MAX as usize && taken > bound::BUCKETS_MAX as usize - 64, "{taken}");
    assert_eq!(kernel.ingress(&datagram(&f, 1, 0)), PASSED, "it has a bucket");
    kernel.apply(3, Some(limited(vec![slow(2)])), agents()).await;
    assert_eq!(kernel.xdp(&datagram(&f, 1, 0)), Did::Passed, "who only looks makes none");
    assert_eq!(kernel.ingress(&datagram(&f, 1, 0)), Did::Dropped(DropReason::BucketTableFull));
    kernel.apply(4, Some(verdicts::tables()), agents()).await;
    assert_eq!(kernel.ingress(&datagram(&f, 1, 0)), PASSED, "it needs none");
    // The sweep makes room again.
    assert_eq!(kernel.buckets.sweep(u64::MAX).expect("swept"), taken + 1);
    kernel.apply(5, Some(limited(vec![slow(2)])), agents()).await;
    assert_eq!(kernel.ingress(&datagram(&f, 1, 0)), PASSED);
}

/// One agent can't fill the table: what it has beyond its share is dropped, and another gets a bucket all the same.
#[tokio::test(flavor = "multi_thread")]
async fn an_agent_has_a_share_of_the_buckets() {
    let mut kernel = ready().await;
    let [f, _] = families();
    let slow = |key| limiter(key, LimitUnit::Packets, 100, NEVER_S, 100);
    kernel.apply(2, Some(limited(vec![slow(1)])), agents()).await;
    assert_eq!(kernel.ingress(&datagram(&f, 1, 0)), PASSED);
    assert_eq!(kernel.buckets.share(1), 1, "counted as it was made");
    let local = Bucket { full_ns: monotonic_ns() * 2, passed: 3, agent: 1, ..Bucket::default() };
    for n in 1..bound::BUCKETS_PER_AGENT_MAX {
        let key = BucketKey { limiter: 1, subject: SUBJECT_CGROUP | n };
        kernel.bucket_map.insert(Plain(key), Plain(local), 0).expect("room");
    }
    // The sweep puts right what the programs did not count.
    assert_eq!(kernel.buckets.sweep(0).expect("swept"), 0);
    assert_eq!(kernel.buckets.share(1), bound::BUCKETS_PER_AGENT_MAX);
    assert_eq!(kernel.ingress(&datagram(&f, 1, 0)), PASSED, "it has a bucket");
    kernel.apply(3, Some(limited(vec![slow(2)])), agents()).await;
    assert_eq!(kernel.ingress(&datagram(&f, 1, 0)), Did::Dropped(DropReason::BucketShareFull));
    // Another agent at that address is held to the same limiter.
    let mut others = agents();
    others[0].index = 3;
    let mut tables = limited(vec![slow(2)]);
    tables.agents.insert(3, 1);
    kernel.apply(4, Some(tables), others).await;
    assert_eq!(kernel.ingress(&datagram(&f, 2, 0)), PASSED);
    assert_eq!(kernel.buckets.share(3), 1);
    // What is forgotten makes room, and keeps its counts.
    let swept = kernel.buckets.sweep(u64::MAX).expect("swept");
    assert_eq!(swept as u64, bound::BUCKETS_PER_AGENT_MAX + 1);
    assert_eq!((kernel.buckets.share(1), kernel.buckets.share(3)), (0, 0));
    kernel.apply(5, Some(limited(vec![slow(2)])), agents()).await;
    assert_eq!(kernel.ingress(&datagram(&f, 1, 0)), PASSED);
    let totals = kernel.buckets.totals().expect("totals");
    let passed = |limiter, agent| totals.get(&(limiter, agent)).map(|counts| counts.passed);
    assert_eq!(passed(1, 1), Some(2 + 3 * (bound::BUCKETS_PER_AGENT_MAX - 1)), "of all its workloads");
    assert_eq!((passed(2, 1), passed(2, 3)), (Some(1), Some(1)));
    kernel.buckets.retain(|limiter| limiter == 2);
    assert!(!kernel.buckets.totals().expect("totals").contains_key(&(1, 1)), "its policy is gone");
    kernel.check_counts();
}

/// A policy that can need more buckets than there are is told of when it is applied.
#[test]
fn more_limits_than_buckets_are_told_of() {
    let few = (1..=4).map(|key| limiter(key, LimitUnit::Packets, 1, 1, 1)).collect();
    let mut tables = limited(few);
    let interfaces = std::collections::BTreeMap::new();
    let told = |tables: &KernelTables, count: u32| {
        let agents = (1..=count).map(|n| agent(n, &[])).collect();
        let mut tables = tables.clone();
        tables.agents = (1..=count).map(|n| (n, 1)).collect();
        let document = clawgress_api::KernelGeneration {
            generation: 1,
            tables: Some(tables),
            agents,
            shared: Vec::new(),
            revisions: BTreeMap::new(),
            turns_at: None,
        };
        Plan::new(&document, &interfaces).expect("plan").skipped
    };
    assert_eq!(told(&tables, bound::BUCKETS_MAX / 4), Vec::<String>::new());
    let warnings = told(&tables, bound::BUCKETS_MAX / 4 + 1);
    assert!(warnings.len() == 1 && warnings[0].contains("can need 65540 token buckets"), "{warnings:?}");
    tables.verdicts.iter_mut().for_each(|cell| cell.limits = 0);
    assert_eq!(told(&tables, bound::BUCKETS_MAX / 4 + 1), Vec::<String>::new(), "they hold for nobody");
}

/// Sources without a binding begin so many connections to the proxy, each of them and all together; who is bound
/// is not held to that.
#[tokio::test(flavor = "multi_thread")]
async fn sources_without_a_binding_begin_only_so_many() {
    let mut kernel = ready().await;
    let hello =
        |source: IpAddr, f: &Family, port: u16| ip(MAC, source, f.gateway, 6, &tcp(port, PROXY_PORT, SYN));
    for f in families() {
        for port in 0..500 {
            assert_eq!(
                kernel.ingress(&hello(f.stranger, &f, port)),
                Did::Marked(mark::LOCAL),
                "no limit is set"
            );
        }
    }
    for f in families() {
        // One a second, two at once.
        kernel.buckets.limit_unbound(1, 1_000).expect("limit");
        let go =
            |source, port| (kernel.xdp(&hello(source, &f, port)), kernel.ingress(&hello(source, &f, port)));
        let local = (Did::Passed, Did::Marked(mark::LOCAL));
        let mut passed = 0;
        for port in 0..50 {
            let did = go(f.stranger, port);
            if did == local {
                passed += 1;
            } else {
                // Between the two looks, time may have passed.
                assert!(did.1 == DROPPED || did.0 == DROPPED, "{did:?}");
            }
        }
        assert!((2..50).contains(&passed), "{passed}");
        // Segments of no connection, each of which would be answered, are no way around it; who is bound is not a
        // stranger.
        let next = ip(MAC, f.stranger, f.gateway, 6, &tcp(1, PROXY_PORT, ACK));
        let passed = (0..50).filter(|_| kernel.ingress(&next) != DROPPED).count();
        assert!(passed < 50, "{passed}");
        for port in 0..50 {
            assert_eq!(go(f.agent, port), local, "{port}");
        }
    }
    // All of them together: many sources, each with a bucket of its own.
    kernel.buckets.limit_unbound(1_000, 3).expect("limit");
    let [f, _] = families();
    let source = |n: u8| IpAddr::from([10, 9, 7, n]);
    let passed = (0..100).filter(|n| kernel.ingress(&hello(source(*n), &f, 9)) != DROPPED).count();
    assert!((1..100).contains(&passed), "{passed}");
    assert!(kernel.buckets.unbound().expect("bucket").dropped > 0);
    kernel.check_counts();
}

/// Strangers, and ARP of nobody known: an interface whose bucket is empty leaves the others theirs.
#[tokio::test(flavor = "multi_thread")]
async fn a_flood_at_one_interface_is_that_interfaces_alone() {
    let lab = Lab::new();
    let mut kernel = ready().await;
    kernel.buckets.limit_unbound(1_000, 3).expect("limit");
    let [f, _] = families();
    let hello = |n: u8| ip(MAC, IpAddr::from([10, 9, 7, n]), f.gateway, 6, &tcp(9, PROXY_PORT, SYN));
    let asks = |n: u8| arp([2, 0, 0, 0, 7, n], [2, 0, 0, 0, 7, n], [10, 9, 7, n], [10, 9, 0, 1]);
    lab.inside(Place::Gateway, || {
        let [flooded, other] = ["ga", "gu"].map(|name| if_nametoindex(name).expect("interface"));
        for frame in [&hello as &dyn Fn(u8) -> Vec<u8>, &asks] {
            let passed = |at, frame: &dyn Fn(u8) -> Vec<u8>| {
                (0..100).filter(|n| kernel.passes_at(at, &frame(*n))).count()
            };
            assert!((1..100).contains(&passed(flooded, frame)));
            assert!(kernel.passes_at(other, &frame(0)), "another interface's bucket");
        }
    });
}

/// Local commands: each has a bucket of its own, or all of an agent's share one, as policy says.
#[tokio::test(flavor = "multi_thread")]
async fn local_commands_have_a_bucket_each_or_share_one() {
    let mut lab = Lab::new();
    lab.start().await;
    let by = |key, subject| Limiter { subject, ..limiter(key, LimitUnit::Connections, 3, NEVER_S, 3) };
    let own = held(workload::tables(), vec![by(1, LimitSubject::Workload)]);
    lab.apply(1, own, vec![agent(1, &[])]).await;
    let _servers = DIRECT.map(|a| Server::start(&lab, at(a)));
    let jobs = [open_workload(&lab, 1, "one").await, open_workload(&lab, 1, "two").await];
    let mut puppets = jobs.each_ref().map(|job| Puppet::new(&lab, &job.path));
    let dial =
        |puppet: &mut Puppet, n: usize| puppet.tell(&format!("dial('{n}', '{}', {PORT}, 2)", DIRECT[n % 2]));
    for puppet in &mut puppets {
        for n in 0..3 {
            assert_eq!(dial(puppet, n), "ok", "{n}");
        }
        assert_ne!(dial(puppet, 3), "ok", "the fourth of its own");
        assert_eq!(puppet.tell("talk('0', wait=10)"), "hello", "what is open goes on");
    }
    let query = LiveQuery { totals: true, ..LiveQuery::default() };
    let totals = lab.limits_asked(&query).await;
    let mine: Vec<_> = totals.iter().filter(|l| l.policy.as_deref() == Some("limit-1")).collect();
    assert!(mine.len() == 1 && mine[0].passed == 6 && mine[0].dropped > 1, "one row for both: {totals:?}");
    assert_eq!((mine[0].cgroup, mine[0].over.as_str()), (None, "drop"));
    let none = LiveQuery { totals: true, agent: Some("anonymous".to_owned()), limit: None };
    assert_eq!(lab.limits_asked(&none).await, Vec::new());
    let shared = held(workload::tables(), vec![by(2, LimitSubject::Agent)]);
    lab.apply(2, shared, vec![agent(1, &[])]).await;
    let [one, two] = &mut puppets;
    assert_eq!((dial(one, 4), dial(two, 5), dial(one, 6)), ("ok".into(), "ok".into(), "ok".into()));
    assert_ne!(dial(two, 7), "ok", "the fourth of all");
    let limits = lab.limits().await;
    let row = limits.iter().find(|l| l.policy.as_deref() == Some("limit-2")).expect("the limit");
    assert_eq!((row.count, row.room, row.passed, row.cgroup), (3, 0, 3, None));
    assert_eq!(row.agent.as_ref().map(AgentId::name), Some("a1"));
    assert!(row.dropped > 0, "{row:?}");
    let counters = lab.status().await.counters;
    assert!(counters["rate_limited"] > 0, "{counters:?}");
}

/// What the proxy dials for an agent counts as the agent's, but not twice where its own packets were counted.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_proxy_dials_is_charged_once() {
    let cgroup = Cgroup::new("charge");
    let lab = dial::lab(&cgroup).await;
    let limits = vec![limiter(1, LimitUnit::Connections, 3, NEVER_S, 3)];
    lab.apply(2, held(workload::tables(), limits), vec![agent(1, &[])]).await;
    let _servers = STEERED.map(|a| Server::start(&lab, at(a)));
    let mut proxy = Puppet::new(&lab, cgroup.path());
    dial::take(&mut proxy, &lab);
    let mut go = |name: usize, flags: u32| {
        proxy.tell(&format!("dial('{name}', '{}', {PORT}, 2, register(1, {flags}))", STEERED[name % 2]))
    };
    for n in 0..6 {
        assert_eq!(go(n, dial_flag::STEERED), "ok", "{n}: counted where it came in");
    }
    for n in 6..9 {
        assert_eq!(go(n, 0), "ok", "{n}");
    }
    assert_ne!(go(9, 0), "ok", "the fourth by the explicit proxy");
    assert_eq!(go(10, dial_flag::STEERED), "ok");
}
