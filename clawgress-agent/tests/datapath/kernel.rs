//! The object loaded without pins, its tables, and test runs of its programs.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use aya::maps::{Array, HashMap, Map, MapData, MapInfo, RingBuf};
use aya::programs::{Program, SchedClassifier};
use aya::{TestRun as _, TestRunOptions};
use clawgress_agent::datapath::bpf::Plain;
use clawgress_agent::datapath::buckets::Buckets;
use clawgress_agent::datapath::epoch::Turn;
use clawgress_agent::datapath::events::{Counters, Told};
use clawgress_agent::datapath::flows::Flows;
use clawgress_agent::datapath::lease;
use clawgress_agent::datapath::object::{self, Objects, program};
use clawgress_agent::datapath::own::Own;
use clawgress_agent::datapath::quarantine::Quarantine;
use clawgress_agent::datapath::tables::{Plan, Tables};
use clawgress_api::KernelGeneration;
use clawgress_ebpf_common::{
    Bind, Bucket, BucketKey, CgroupKey, DropReason, Flow, FlowKey, Pace, SelfAddress, bound, counter, mark,
    user,
};
use clawgress_identity::{Agent, AgentState, SharedSource};
use clawgress_policy::kernel::KernelTables;

/// `lo`: what a test run gives as the interface.
pub const LOOPBACK: u32 = 1;
pub const PROXY_PORT: u16 = 3128;
pub const PROXY_TLS_PORT: u16 = 3130;

const XDP_PASS: u32 = 2;
const SHOT: u32 = 2;
/// Size of `struct __sk_buff`, and where its mark and its interface are.
const SKB_BYTES: usize = 192;
const SKB_MARK: std::ops::Range<usize> = 8..12;
const SKB_IFINDEX: std::ops::Range<usize> = 40..44;

/// What a program did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Did {
    /// XDP passed it on.
    Passed,
    /// TC let it through with this mark.
    Marked(u32),
    /// Dropped.
    Dropped(DropReason),
    /// TC let it through to be answered, and to go no further.
    Rejected(DropReason),
}

pub struct Kernel {
    pub objects: Objects,
    pub tables: Tables,
    pub quarantine: Quarantine,
    pub flows: HashMap<MapData, Plain<FlowKey>, Plain<Flow>>,
    /// The same table as the role sweeps it.
    pub swept: Flows,
    /// Sources that several agents share, in the generations to come.
    pub shared: Vec<SharedSource>,
    /// Interfaces that take nothing from a source that is bound to nobody.
    pub closed: BTreeSet<String>,
    pub buckets: Buckets,
    /// The same, to be written by hand.
    pub bucket_map: HashMap<MapData, Plain<BucketKey>, Plain<Bucket>>,
    /// Registered cgroups, to be written by hand.
    pub cgroups: HashMap<MapData, Plain<CgroupKey>, Plain<Bind>>,
    /// Of what XDP remembers.
    pub turn: Turn,
    own: Own,
    addresses: BTreeMap<[u8; 16], SelfAddress>,
    rejects: Array<MapData, Plain<Pace>>,
    counters: Counters,
    infos: BTreeMap<String, MapInfo>,
}

impl Kernel {
    pub fn load() -> Kernel {
        let mut objects = object::load(None).expect("these tests need root and a kernel with BPF");
        lease::hold(&objects, u64::MAX).expect("lease");
        let infos = objects.maps().map(|(name, map)| (name.to_owned(), info(map))).collect();
        let mut kernel = Kernel {
            infos,
            rejects: object::take(&mut objects, clawgress_ebpf_common::map::REJECTS).expect("rejects"),
            cgroups: {
                let cgroups = object::descriptor(&objects, clawgress_ebpf_common::map::CGROUPS);
                let data = MapData::from_fd(cgroups.expect("cgroups")).expect("map");
                HashMap::try_from(Map::from_map_data(data).expect("map")).expect("a hash map")
            },
            tables: Tables::take(&mut objects).expect("tables"),
            swept: Flows::new(&objects).expect("flow table"),
            shared: Vec::new(),
            closed: BTreeSet::new(),
            quarantine: Quarantine::take(&mut objects).expect("quarantine"),
            flows: object::take(&mut objects, clawgress_ebpf_common::map::FLOWS).expect("flows"),
            bucket_map: {
                let buckets = object::descriptor(&objects, clawgress_ebpf_common::map::BUCKETS);
                let data = MapData::from_fd(buckets.expect("buckets")).expect("map");
                HashMap::try_from(Map::from_map_data(data).expect("map")).expect("a hash map")
            },
            buckets: Buckets::take(&mut objects).expect("buckets"),
            turn: Turn::of(&objects).expect("epoch"),
            own: Own::take(&mut objects).expect("own addresses"),
            addresses: BTreeMap::new(),
            counters: Counters::new(
                object::take(&mut objects, clawgress_ebpf_common::map::COUNTERS).expect("counters"),
            ),
            objects,
        };
        // Most tests are about what is dropped, and where.
        (1..16).for_each(|agent| kernel.answer(agent, false));
        kernel
    }

    /// Whether somebody vouches for the tables.
    pub fn vouch(&self, is_vouched: bool) {
        lease::hold(&self.objects, if is_vouched { u64::MAX } else { 1 }).expect("lease");
    }

    /// Whether refusals of this agent are answered: as many as any agent's, or none.
    pub fn answer(&mut self, agent: u32, is_answered: bool) {
        let events = if is_answered { 0 } else { bound::REJECTS_MAX };
        // An interval that began in the future does not end meanwhile.
        let pace = Pace { since_ns: u64::MAX >> 2, events };
        for side in [0, bound::SHARES] {
            self.rejects.set(side + agent, Plain(pace), 0).expect("pace");
        }
        self.turn.turn().expect("turned");
    }

    /// What the kernel says of a map.
    pub fn info(&self, name: &str) -> &MapInfo {
        &self.infos[name]
    }

    /// Commits a generation whose agents' interface is the test run's.
    pub async fn apply(&mut self, number: u64, tables: Option<KernelTables>, agents: Vec<Agent>) {
        let plan = plan(number, tables, agents, &self.shared, &self.closed);
        self.tables.apply(&plan).await.expect("apply");
    }

    /// What writes generations, and the programs, for who runs these meanwhile.
    pub fn apart(self) -> (Tables, Objects) {
        (self.tables, self.objects)
    }

    /// Makes `address` the gateway's own, with the proxy there.
    pub fn own(&mut self, address: IpAddr) {
        let services = SelfAddress {
            proxy_port_be: PROXY_PORT.to_be(),
            proxy_tls_port_be: PROXY_TLS_PORT.to_be(),
            ..SelfAddress::default()
        };
        self.addresses.insert(user::address(address), services);
        self.own.write(&self.addresses).expect("own address");
    }

    /// Makes all of these the gateway's own, without services there, if they may be.
    pub fn own_all(&mut self, addresses: impl Iterator<Item = IpAddr>) -> anyhow::Result<()> {
        let mut all = self.addresses.clone();
        all.extend(addresses.map(|address| (user::address(address), SelfAddress::default())));
        self.own.write(&all)
    }

    pub fn xdp(&self, frame: &[u8]) -> Did {
        self.run(program::XDP, frame)
    }

    pub fn ingress(&self, frame: &[u8]) -> Did {
        self.run(program::TC_IN, frame)
    }

    pub fn egress(&self, frame: &[u8]) -> Did {
        self.run(program::TC_OUT, frame)
    }

    /// TC ingress of another interface than the test run's, in whose namespace this has to be called: whether it lets
    /// the packet through.
    pub fn passes_at(&self, ifindex: u32, frame: &[u8]) -> bool {
        let program: &SchedClassifier =
            self.objects.program(program::TC_IN).expect("program").try_into().expect("a classifier");
        let mut skb = vec![0; SKB_BYTES];
        skb[SKB_IFINDEX].copy_from_slice(&ifindex.to_ne_bytes());
        let options =
            TestRunOptions { data_in: Some(frame), ctx_in: Some(&skb), ..TestRunOptions::default() };
        program.test_run(options).expect("test run").return_value != SHOT
    }

    /// TC ingress for many packets, whatever becomes of each.
    pub fn flood(&self, frames: impl Iterator<Item = Vec<u8>>) {
        let program: &SchedClassifier =
            self.objects.program(program::TC_IN).expect("program").try_into().expect("a classifier");
        for frame in frames {
            let options = TestRunOptions { data_in: Some(&frame), ..TestRunOptions::default() };
            program.test_run(options).expect("test run");
        }
    }

    pub fn flow(&self, key: &FlowKey) -> Option<Flow> {
        self.flows.get(&Plain(*key), 0).ok().map(|f| f.0)
    }

    /// Has a flow begun so much earlier.
    pub fn age(&mut self, key: &FlowKey, ns: u64) {
        let flow = self.flow(key).expect("a flow");
        let flow = Flow { created_ns: flow.created_ns - ns, ..flow };
        self.flows.insert(Plain(*key), Plain(flow), 0).expect("the flow");
    }

    /// What the kernel told since this was asked last.
    pub fn told(&mut self) -> Vec<Told> {
        let map = self.objects.map_mut(clawgress_ebpf_common::map::EVENTS).expect("ring");
        let mut ring = RingBuf::try_from(map).expect("a ring");
        let mut told = Vec::new();
        while let Some(item) = ring.next() {
            told.push(Told::read(&item).expect("one of the two"));
        }
        told
    }

    /// A counter, over all CPUs.
    pub fn count(&self, index: u32) -> u64 {
        self.counters.sum(index).expect("counter")
    }

    /// What `name` does with `frame`, fast where it does what `want` says.
    pub fn did(&self, name: &str, frame: &[u8], want: Did) -> Did {
        let count = |want| match want {
            Did::Dropped(reason) => self.counters.sum(u32::from(reason.code())).expect("counter"),
            _ => 0,
        };
        let before = count(want);
        match (self.verdict(name, frame), want) {
            (Some(did), _) => did,
            (None, Did::Dropped(_)) if count(want) == before + 1 => want,
            // Again, to see why.
            (None, _) => self.run(name, frame),
        }
    }

    /// That every drop so far counted one reason.
    pub fn check_counts(&self) {
        let sum = |index| self.counters.sum(index).expect("counter");
        let reasons: u64 = DropReason::ALL.iter().map(|r| sum(u32::from(r.code()))).sum();
        let denied = [counter::XDP_DROPPED, counter::TC_DROPPED, counter::REJECTED];
        assert_eq!(reasons, denied.into_iter().map(sum).sum::<u64>());
    }

    fn run(&self, name: &str, frame: &[u8]) -> Did {
        let before = self.counters.named().expect("counters");
        let did = self.verdict(name, frame);
        let after = self.counters.named().expect("counters");
        let mut reasons: Vec<_> =
            DropReason::ALL.iter().copied().filter(|r| after.get(r.name()) > before.get(r.name())).collect();
        match did {
            Some(Did::Marked(mark::REJECT)) => {
                assert_eq!(reasons.len(), 1, "a refusal counts one reason, not {reasons:?}");
                Did::Rejected(reasons.remove(0))
            }
            Some(did) => {
                assert_eq!(reasons, [], "what passes counts no reason");
                did
            }
            None => {
                assert_eq!(reasons.len(), 1, "a drop counts one reason, not {reasons:?}");
                Did::Dropped(reasons.remove(0))
            }
        }
    }

    /// `None` for a drop.
    fn verdict(&self, name: &str, frame: &[u8]) -> Option<Did> {
        let (mut out, mut skb) = (vec![0; frame.len() + 64], vec![0; SKB_BYTES]);
        let mut options =
            TestRunOptions { data_in: Some(frame), data_out: Some(&mut out), ..TestRunOptions::default() };
        match self.objects.program(name).expect("program") {
            Program::Xdp(p) => match p.test_run(options).expect("test run").return_value {
                1 => None,
                XDP_PASS => Some(Did::Passed),
                other => panic!("xdp returned {other}"),
            },
            Program::SchedClassifier(p) => {
                options.ctx_out = Some(&mut skb);
                match p.test_run(options).expect("test run").return_value {
                    SHOT => None,
                    0 => {
                        let bytes = skb[SKB_MARK].try_into().expect("four bytes");
                        Some(Did::Marked(u32::from_ne_bytes(bytes) & mark::MASK))
                    }
                    other => panic!("tc returned {other}"),
                }
            }
            _ => panic!("`{name}` cannot be test-run"),
        }
    }
}

/// A generation whose agents' interface is the test run's.
pub fn plan(
    number: u64,
    tables: Option<KernelTables>,
    agents: Vec<Agent>,
    shared: &[SharedSource],
    closed: &BTreeSet<String>,
) -> Plan {
    let document = KernelGeneration {
        generation: number,
        tables,
        agents,
        shared: shared.to_vec(),
        revisions: BTreeMap::new(),
        turns_at: None,
    };
    let interfaces = BTreeMap::from([("lo".to_owned(), LOOPBACK)]);
    let plan = Plan::closing(&document, &interfaces, closed).expect("plan");
    assert_eq!(plan.skipped, Vec::<String>::new());
    plan
}

/// Whether XDP, and TC ingress after it, let a frame through.
pub fn passes(objects: &Objects, frame: &[u8]) -> [bool; 2] {
    let run = |name| {
        let options = TestRunOptions { data_in: Some(frame), ..TestRunOptions::default() };
        match objects.program(name).expect("program") {
            Program::Xdp(p) => p.test_run(options).expect("test run").return_value == XDP_PASS,
            Program::SchedClassifier(p) => p.test_run(options).expect("test run").return_value != SHOT,
            _ => panic!("`{name}` cannot be test-run"),
        }
    };
    [run(program::XDP), run(program::TC_IN)]
}

fn info(map: &Map) -> MapInfo {
    let data = match map {
        Map::Array(d)
        | Map::HashMap(d)
        | Map::LpmTrie(d)
        | Map::LruHashMap(d)
        | Map::PerCpuArray(d)
        | Map::RingBuf(d)
        | Map::SockMap(d) => d,
        other => panic!("an unknown kind of map: {other:?}"),
    };
    data.info().expect("map info")
}

/// An active agent with these sources.
pub fn agent(index: u32, sources: &[&str]) -> Agent {
    Agent {
        id: format!("a{index}").parse().expect("id"),
        index,
        team: None,
        project: None,
        environment: None,
        labels: BTreeMap::new(),
        state: AgentState::Active,
        sources: sources.iter().map(|s| s.parse().expect("source")).collect(),
    }
}
