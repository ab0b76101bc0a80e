//! The ABI between the kernel programs and user space: map names, keys, values, marks, events and
//! the one list of drop reasons.
//!
//! Two compilers must agree on every byte here, so each struct is `repr(C)` with explicit zeroed
//! padding, and its size is asserted. This crate must never depend on the standard library (the
//! `user` feature aside), and never hold behaviour that only one side needs.
#![no_std]
#![cfg_attr(not(feature = "user"), forbid(unsafe_code))]

#[cfg(feature = "user")]
extern crate std;

pub mod image;
mod layout;
mod reason;
#[cfg(feature = "user")]
pub mod user;

pub use layout::*;
pub use reason::DropReason;

/// Version of everything in this crate that both sides must agree on. A process that finds pinned
/// maps of another version replaces maps and programs whole.
pub const ABI_VERSION: u32 = 9;

/// Names of maps; 15 bytes at most (`BPF_OBJ_NAME_LEN` less the NUL). A layout change is a new `_vN`.
pub mod map {
    /// `Array<u64>[1]`: the live [`Generation`](super::Generation), packed. Read once per packet.
    pub const GENERATION: &str = "claw_gen_v1";
    /// `ArrayOfMaps<Array<Page>>[2]`: the [`image`](super::image) of each slot's generation.
    pub const IMAGES: &str = "claw_img_v2";
    /// `Hash<[u8; 16], SelfAddress>`: the gateway's own addresses and the services there.
    pub const SELF: &str = "claw_self_v2";
    /// `Array<[u64; SELF_FILTER_WORDS]>[1]`: a bit for each of the gateway's own addresses, so that most
    /// packets need no look at [`SELF`]. A bit may be set without an address, never the other way.
    pub const SELF_FILTER: &str = "claw_selff_v1";
    /// `Hash<FlowKey, Flow>`: live flows. Bounded, not LRU: a full table denies.
    pub const FLOWS: &str = "claw_flow_v2";
    /// `Array<u64>[SHARES]`: live flows by agent index modulo its length, mapped into the datapath role. The
    /// programs add, user space takes off.
    pub const SHARES: &str = "claw_shar_v1";
    /// `Array<Pace>[2 * SHARES]`: refusals answered lately; index is `side * SHARES + agent % SHARES`, where the
    /// side is 0 for XDP, which lets a packet on to be answered, and 1 for TC, which has it answered.
    pub const REJECTS: &str = "claw_rejt_v1";
    /// `Hash<BucketKey, Bucket>`: token buckets of agents and local workloads. Bounded, not LRU: where one is
    /// wanted and there is no room, the packet is dropped.
    pub const BUCKETS: &str = "claw_bckt_v1";
    /// `Array<u64>[SHARES]`: token buckets by agent index modulo its length, mapped into the datapath role. The
    /// programs add, user space takes off.
    pub const BUCKET_SHARES: &str = "claw_bshr_v1";
    /// `Hash<u32, u32>`: interfaces (index) whose queue sends a packet when its time has come (`fq`), so that what a
    /// limiter paces can be sent later. The value is 0.
    pub const PACED: &str = "claw_edt_v1";
    /// `Array<Limiter>[2]`: how many connections and datagrams to the gateway a source without a binding may
    /// begin, and all of them together.
    pub const UNBOUND: &str = "claw_unbd_v1";
    /// `Array<Bucket>[UNBOUND_BUCKETS_ALL]`: the buckets of sources without a binding, and of MACs of nobody known that
    /// send neighbour messages, by a hash of who it is; behind them those of all such sources at an interface, those of
    /// all such messages there, and those of each agent's own messages, by its index modulo `SHARES`.
    pub const UNBOUND_BUCKETS: &str = "claw_unbb_v3";
    /// `Hash<LearnedKey, Learned>`: addresses that DNS answers gave for names permitted `direct`.
    pub const LEARNED: &str = "claw_lern_v1";
    /// `Array<u64>[SHARES]`: how many of those there are, by agent index modulo its length; written by user
    /// space alone, so that a refusal needs no further look-up for an agent that has none.
    pub const LEARNED_BY: &str = "claw_lnby_v1";
    /// `SockMap[LISTENER_SLOTS]`: the transparent listeners that flows are steered to; see
    /// [`listener`](super::listener).
    pub const LISTENERS: &str = "claw_lstn_v2";
    /// `RingBuf`: [`Event`](super::Event)s, and [`Ended`](super::Ended) flows.
    pub const EVENTS: &str = "claw_evnt_v2";
    /// `PerCpuArray<u64>[COUNTERS]`: see [`counter`](super::counter).
    pub const COUNTERS: &str = "claw_cnt_v1";
    /// `PerCpuArray<Seen>[SEEN_SLOTS]`: drops lately reported, each in the slot of its key, with a count of
    /// those like it that were not.
    pub const SEEN: &str = "claw_seen_v3";
    /// `Array<Epoch>[1]`: turned by user space after it has changed what XDP's verdicts rest on beside a generation.
    pub const EPOCH: &str = "claw_epoc_v1";
    /// `PerCpuArray<Recent>[RECENT_SLOTS]`: what XDP said lately, each in the slot of its [`Recent`](super::Recent)
    /// shape.
    pub const RECENT: &str = "claw_rcnt_v1";
    /// `PerCpuArray<Pace>[1 + DROP_SHARES]`: how many drops this CPU reported lately: of all together, and behind it of each
    /// agent, by its index modulo `DROP_SHARES`, what was beyond that.
    pub const PACE: &str = "claw_pace_v2";
    /// `Hash<CgroupKey, Bind>`: local workloads by cgroup id.
    pub const CGROUPS: &str = "claw_cgrp_v1";
    /// `Array<u64>[QUARANTINE_WORDS]`: one bit for each agent, by its index in the registry; see
    /// [`quarantine_place`](super::quarantine_place). Outside generations: set, it counts for the next packet.
    pub const QUARANTINE: &str = "claw_quar_v1";
    /// `Hash<AgentKey, Bind>`: class and state of each agent, by slot, for the proxy's own sockets.
    pub const AGENTS: &str = "claw_agnt_v1";
    /// `Hash<u64, Dial>`: for whom the proxy dials, by socket cookie, while it calls `connect`.
    pub const DIALS: &str = "claw_dial_v1";
    /// `Hash<ResolverKey, u32>`: DNS servers the proxy may ask for itself.
    pub const RESOLVERS: &str = "claw_dns_v1";
    /// `Array<Lease>[1]`: until when somebody vouches for the tables. Outside generations.
    pub const LEASE: &str = "claw_leas_v1";
    /// `Hash<u32, u32>`: agents' interface (index) to [`fail_open`](super::fail_open) bits. One that is not
    /// in it fails closed.
    pub const INTERFACES: &str = "claw_if_v1";
    /// `Array<u32>[1]`: [`ABI_VERSION`](super::ABI_VERSION) of whoever created the maps.
    pub const META: &str = "claw_meta_v1";
}

/// Map capacities, each with the reason for its size.
pub mod bound {
    /// Source prefixes: ten thousand agents with six addresses each.
    pub const BINDINGS_MAX: u32 = 65_536;
    /// Agents' interfaces: half the slots, so that one is found in a few probes.
    pub const IMAGE_INTERFACES_MAX: u32 = 128;
    /// Words of the matrix of agent classes and destination classes: 16 MiB.
    pub const MATRIX_WORDS_MAX: u32 = 1 << 22;
    /// Words of all rows: 16 MiB.
    pub const ROWS_WORDS_MAX: u32 = 1 << 22;
    /// Concurrent flows: 100,000 with room for as many that have ended and are not swept yet. About 50 MiB.
    pub const FLOWS_MAX: u32 = 262_144;
    /// Concurrent flows of one agent: no seven of them can fill the table. Each CPU may be one flow over.
    pub const FLOWS_PER_AGENT_MAX: u64 = FLOWS_MAX as u64 / 8;
    /// How long a SYN may be one that is sent again (RFC 9293 3.8.3 wants three minutes at least). Later, it is another
    /// connection's.
    pub const HANDSHAKE_NS: u64 = 180_000_000_000;
    /// A tuple begins a flow that is told at most once in this time, so that no agent tells more of them than it may
    /// have flows; the SYN is dropped, and sent again after as long (RFC 6298 2.1). Few do it sooner: even a socket
    /// that waits for late segments is not used again before (RFC 6191 2).
    pub const REUSE_NS: u64 = 1_000_000_000;
    /// Limiters of a policy.
    pub const LIMITERS_MAX: u32 = 1_024;
    /// Combinations of limiters that apply to something: what a flow record can number.
    pub const LIMIT_SETS_MAX: u32 = 4_096;
    /// Token buckets: six for each of ten thousand agents, in about 6 MiB.
    pub const BUCKETS_MAX: u32 = 65_536;
    /// Token buckets of one agent and its workloads: no seven of them can fill the table, and several workloads may
    /// each have one for every limiter there may be. Each CPU may be one over.
    pub const BUCKETS_PER_AGENT_MAX: u64 = BUCKETS_MAX as u64 / 8;
    /// How much later than at once a packet may be sent, ns: less than clients wait for a connection, and well within
    /// what `fq` itself takes for a mistake (10 s). Beyond, it is dropped.
    pub const PACE_HORIZON_NS: u64 = 4_000_000_000;
    /// Buckets of sources without a binding, a power of two: several times those of a subnet. Sources that
    /// meet in one share it, and nobody can make more.
    pub const UNBOUND_BUCKETS: u32 = 4_096;
    /// Buckets of all such sources at an interface, by its index, a power of two: twice as many as a node may have
    /// interfaces, whose indices mostly follow each other. Those that meet in one share it.
    pub const UNBOUND_INTERFACES: u32 = 256;
    /// All buckets of those who are not known, and of agents' neighbour messages.
    pub const UNBOUND_BUCKETS_ALL: u32 = 2 * UNBOUND_BUCKETS + 2 * UNBOUND_INTERFACES + SHARES;
    /// Learned addresses of all agents: those of a thousand names each for dozens of busy agents, some 8 MiB.
    pub const LEARNED_MAX: u32 = 65_536;
    /// Those of one agent, or of agents that share a place among [`SHARES`]: twice as many as are learned for it at once,
    /// since each is kept as long as its flows.
    pub const LEARNED_AGENT_MAX: u32 = LEARNED_MAX / 8;
    /// Agents with a share of their own, a power of two: several times the promised 10,000. Indices are never
    /// reused; two that are this far apart share.
    pub const SHARES: u32 = 65_536;
    /// Refusals of one agent that are answered (ICMP error, TCP reset) in [`REJECTS_INTERVAL_NS`]: enough for
    /// every connection a person waits for, and nothing to a flood. Each CPU may be one over.
    pub const REJECTS_MAX: u64 = 32;
    /// See [`REJECTS_MAX`].
    pub const REJECTS_INTERVAL_NS: u64 = 1_000_000_000;
    /// The gateway's own addresses.
    pub const SELF_MAX: u32 = 1_024;
    /// 64-bit words of the filter before them: with a dozen addresses, one packet in a hundred passes it
    /// in vain.
    pub const SELF_FILTER_WORDS: usize = 64;
    /// Agent indices, which are never used again: a hundred times the agents a node has at once, in 128 KiB
    /// of quarantine bits.
    pub const AGENT_INDICES_MAX: u32 = 1 << 20;
    /// Words of quarantine bits.
    pub const QUARANTINE_WORDS: u32 = AGENT_INDICES_MAX / 64;
    /// Agents' interfaces: as many as a configuration may name.
    pub const INTERFACES_MAX: u32 = 256;
    /// Registered local workloads, both slots.
    pub const CGROUPS_MAX: u32 = 8_192;
    /// Agents, both slots: three times the promised ten thousand, twice.
    pub const AGENTS_MAX: u32 = 65_536;
    /// Sockets being connected at once: a call a thread, of all the L7 processes there may be. Not LRU: a
    /// full table refuses.
    pub const DIALS_MAX: u32 = 4_096;
    /// DNS servers: resolvers ask three at most by default, and families double that.
    pub const RESOLVERS_MAX: u32 = 64;
    /// Event ring, bytes: about 8,000 events, a power of two as the kernel asks.
    pub const EVENTS_BYTES: u32 = 1 << 20;
    /// Distinct drops, by [`SeenKey`](crate::SeenKey), remembered by each CPU to thin out events.
    pub const SEEN_SLOTS: u32 = 1_024;
    /// Kinds of packets of which each CPU knows what XDP said: more than a busy CPU has flows at a time, in 64 KiB.
    /// A power of two.
    pub const RECENT_SLOTS: u32 = 1_024;
    /// How long that is known: so long a refusal may go unanswered though one is due again, and a repeated drop
    /// unreported. Several times longer than a clock's tick, and short beside [`SEEN_INTERVAL_NS`].
    pub const RECENT_NS: u64 = 125_000_000;
    /// A repeated drop is reported at most once in this time, and [`RECENT_NS`] more.
    pub const SEEN_INTERVAL_NS: u64 = 1_000_000_000;
    /// Most drops reported by one CPU in [`DROP_EVENTS_INTERVAL_NS`], but for [`DROP_EVENTS_SHARE`]; what is beyond is
    /// counted as lost. A scan of random destinations must not be able to fill the audit log.
    pub const DROP_EVENTS_MAX: u64 = 512;
    /// Drops that each agent has reported besides where others have used that up: a scan, or a flood from addresses of
    /// nobody, must not be able to hide what an agent tries, on which alerts and quarantines follow.
    pub const DROP_EVENTS_SHARE: u64 = 4;
    /// Such shares, a power of two: agents whose indices are so far apart have one together.
    pub const DROP_SHARES: u32 = 256;
    /// See [`DROP_EVENTS_MAX`].
    pub const DROP_EVENTS_INTERVAL_NS: u64 = 1_000_000_000;
}

/// Where `claw_confirm` finds the [`FlowKey`] in the frame of a test run, bytes: after an Ethernet header.
pub const CONFIRM_KEY_OFFSET: usize = 16;

/// What an agents' interface may be set to let through when something fails: bits of a value of
/// [`map::INTERFACES`]. Whatever is set, an anonymous source is denied.
pub mod fail_open {
    /// No listener to steer to: what policy permits to connect is forwarded unread.
    pub const L7: u32 = 1;
    /// The flow table is full: what policy permits `direct` is forwarded without a record.
    pub const FLOW_TABLE: u32 = 2;
    /// No policy was ever loaded: all of a known source is forwarded.
    pub const REVISION: u32 = 4;
    /// Nobody vouches for the tables any more: what they permit `direct` is forwarded all the same.
    pub const AGENT: u32 = 8;
}

/// Slots of [`map::LISTENERS`], for each family its own. A new connection has one of [`PARTS`](listener::PARTS) by
/// its tuple, and each part holds the listener of the L7 process that takes it. DNS is steered only while its slots
/// are taken.
pub mod listener {
    /// Parts that new connections fall into: each number of processes up to [`WORKERS_MAX`] divides it, so that
    /// all have the same number of parts.
    pub const PARTS: u32 = 60;
    /// L7 processes that connections are steered to at once. Each has a thread for each core, so more than two
    /// are for isolation and exchange, not for speed.
    pub const WORKERS_MAX: u32 = 6;
    /// DNS over UDP: a socket for IPv4, and next to it one for IPv6.
    pub const DNS_UDP: u32 = 2 * PARTS;
    /// DNS over TCP, the same way.
    pub const DNS_TCP: u32 = DNS_UDP + 2;
    /// Slots in the map.
    pub const SLOTS: u32 = DNS_TCP + 2;
    const _: () =
        assert!(PARTS.is_multiple_of(4) && PARTS.is_multiple_of(5) && PARTS.is_multiple_of(WORKERS_MAX));

    /// The slot of a part.
    #[must_use]
    #[inline(always)]
    pub const fn slot(part: u32, is_v6: bool) -> u32 {
        2 * part + is_v6 as u32
    }

    /// The part that a connection falls into, by the low halves of its addresses as they lie in memory and its
    /// ports (source, destination): the same for a SYN, when it is sent again, and when the kernel asks for
    /// its listener.
    #[must_use]
    #[inline(always)]
    pub const fn part(source: [u32; 2], destination: [u32; 2], ports_be: [u16; 2]) -> u32 {
        // Multiplying by 2^64 divided by the golden ratio moves what differs anywhere to the high bits (Knuth, The
        // Art of Computer Programming 3, 6.4). IPv6 hosts of one network differ in that half alone.
        let ends = joined(source) ^ joined(destination).rotate_left(23);
        let ports = (ports_be[0] as u64) << 16 | ports_be[1] as u64;
        let mixed = (ends ^ ports).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        (((mixed >> 32) * PARTS as u64) >> 32) as u32
    }

    #[inline(always)]
    const fn joined(words: [u32; 2]) -> u64 {
        words[0] as u64 | (words[1] as u64) << 32
    }
}

/// The packet mark, set by TC and read by nftables and `ip rule`. The low half is zero.
pub mod mark {
    /// Bits that are ours.
    pub const MASK: u32 = 0xFFFF_0000;
    /// Assigned to a transparent listener: deliver locally.
    pub const STEER: u32 = 0xC1A1_0000;
    /// Permitted `direct`: forward and masquerade.
    pub const DIRECT: u32 = 0xC1A2_0000;
    /// Addressed to a service of the gateway (proxy, DNS), or ARP/ND.
    pub const LOCAL: u32 = 0xC1A3_0000;
    /// Refused, and nftables says so with an ICMP error or a reset: never forwarded, never delivered.
    pub const REJECT: u32 = 0xC1A4_0000;
    /// On the sockets that L7 is handed: nftables lets them answer and begin nothing, and has datagrams come from the port that
    /// was asked.
    pub const HANDED: u32 = 0xC1A5_0000;
}

/// Indices of [`map::COUNTERS`]. Below [`counter::XDP_PASSED`] the index is a `DropReason` code
/// (drops by XDP and TC together).
pub mod counter {
    /// Packets XDP let go on to TC.
    pub const XDP_PASSED: u32 = 128;
    /// Packets XDP dropped.
    pub const XDP_DROPPED: u32 = 129;
    /// Packets TC steered to a listener.
    pub const STEERED: u32 = 130;
    /// Packets TC marked for forwarding.
    pub const DIRECT: u32 = 131;
    /// Packets to the gateway's own services.
    pub const LOCAL: u32 = 132;
    /// Packets TC dropped.
    pub const TC_DROPPED: u32 = 133;
    /// Packets towards agents that matched a flow.
    pub const RETURNED: u32 = 134;
    /// Events lost because the ring was full; user space turns the difference into gap records.
    pub const EVENTS_LOST: u32 = 135;
    /// What of [`EVENTS_LOST`] user space has told as gaps; written by user space alone.
    pub const EVENTS_LOST_TOLD: u32 = 138;
    /// Socket calls of local workloads permitted.
    pub const CGROUP_ALLOWED: u32 = 136;
    /// Socket calls of local workloads refused.
    pub const CGROUP_DENIED: u32 = 137;
    /// Refused packets that TC handed to nftables to be answered; each counts its reason, too.
    pub const REJECTED: u32 = 139;
    /// Packets of local workloads dropped.
    pub const LOCAL_DROPPED: u32 = 140;
    /// Socket calls of the proxy permitted.
    pub const DIAL_ALLOWED: u32 = 141;
    /// Socket calls of the proxy refused.
    pub const DIAL_DENIED: u32 = 142;
    /// Packets of the proxy's own sockets dropped.
    pub const DIAL_DROPPED: u32 = 143;
    /// Flows, and packets without one, let through because their interface fails open.
    pub const FAILED_OPEN: u32 = 144;
    /// Packets of this machine's own sockets that limiters had sent later.
    pub const PACED: u32 = 145;
    /// Length of the array.
    pub const COUNTERS: u32 = 160;
}
