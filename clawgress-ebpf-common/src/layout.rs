//! Keys and values of the maps. Addresses are 16 bytes: IPv6, or IPv4 mapped as `::ffff:a.b.c.d`
//! (RFC 4291 2.5.5.2), in network byte order.

use core::mem::size_of;

/// An address as the maps hold it.
pub type Address = [u8; 16];

/// Agent class of a source that has no binding.
pub const CLASS_UNAUTHENTICATED: u32 = 0;
/// Destination class of an address that no policy names.
pub const DESTINATION_OTHER: u32 = 0;

/// `ifindex` in the flow records of local workloads, which come by no interface.
pub const IFINDEX_LOCAL: u32 = 0;
/// `ifindex` in the flow records of the proxy's own connections. No interface has it: Linux counts them in
/// 31 bits.
pub const IFINDEX_DIAL: u32 = u32::MAX;
/// The loopback interface, in every network namespace (`LOOPBACK_IFINDEX`, Linux).
pub const IFINDEX_LOOPBACK: u32 = 1;

/// The live generation and the table slot that holds it, packed so that one 8-byte read gives both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Generation {
    /// Monotonic number; 0 is "no policy yet", which denies.
    pub number: u64,
    /// Which of the two images is live: 0 or 1.
    pub slot: u32,
}

impl Generation {
    /// Packs into the map's value.
    #[must_use]
    #[inline(always)]
    pub const fn pack(self) -> u64 {
        self.number << 1 | (self.slot & 1) as u64
    }

    /// Unpacks the map's value.
    #[must_use]
    #[inline(always)]
    pub const fn unpack(value: u64) -> Self {
        Generation { number: value >> 1, slot: (value & 1) as u32 }
    }
}

macro_rules! pod {
    ($name:ident, $size:literal) => {
        const _: () =
            assert!(size_of::<$name>() == $size, concat!(stringify!($name), " has implicit padding or grew"));
        #[cfg(feature = "user")]
        // SAFETY: `repr(C)`, no padding (the assertion above equals the sum of the fields), and every
        // bit pattern is valid.
        unsafe impl crate::user::Pod for $name {}
    };
}

/// Who a source is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Bind {
    /// The registry's index of the agent; 0 where the source only may present credentials.
    pub agent: u32,
    /// Agent class in this slot's tables; [`CLASS_UNAUTHENTICATED`] where `agent` is 0.
    pub class: u32,
    /// MAC address the source must have, if [`bind_flag::MAC`].
    pub mac: [u8; 6],
    /// [`bind_flag`] bits.
    pub flags: u16,
}
pod!(Bind, 16);

/// Bits of [`Bind::flags`].
pub mod bind_flag {
    /// The source MAC must equal [`Bind::mac`](super::Bind::mac).
    pub const MAC: u16 = 1;
    /// The agent is disabled, or nobody is bound here and the interface takes nothing from strangers: nothing
    /// passes.
    pub const DISABLED: u16 = 2;
    /// Several agents share the source: it is nobody by itself, and who presents a credential there must be one
    /// of them. A connection to the proxy has a record, which tells L7 the interface.
    pub const SHARED: u16 = 4;
}

/// Services at one of the gateway's own addresses. A port of 0 is no service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct SelfAddress {
    /// TCP port of the explicit proxy, network byte order.
    pub proxy_port_be: u16,
    /// UDP and TCP port of the DNS service, network byte order.
    pub dns_port_be: u16,
    /// TCP port of the explicit proxy over TLS, network byte order.
    pub proxy_tls_port_be: u16,
    /// Zero.
    pub pad: u16,
}
pod!(SelfAddress, 8);

/// Protocol numbers in [`FlowKey`] and in an image: IANA's, with ICMP for both families as 1.
pub mod protocol {
    /// ICMP and ICMPv6.
    pub const ICMP: u8 = 1;
    /// TCP.
    pub const TCP: u8 = 6;
    /// IPv4 in IP (RFC 2003).
    pub const IPIP: u8 = 4;
    /// UDP.
    pub const UDP: u8 = 17;
    /// IPv6 in IP (RFC 4213, RFC 2473).
    pub const SIT: u8 = 41;
    /// GRE (RFC 2784).
    pub const GRE: u8 = 47;
    /// ESP (RFC 4303).
    pub const ESP: u8 = 50;
    /// AH (RFC 4302).
    pub const AH: u8 = 51;
    /// SCTP (RFC 9260).
    pub const SCTP: u8 = 132;

    /// Whether verdicts tell its ports apart.
    #[must_use]
    #[inline(always)]
    pub const fn has_ports(number: u8) -> bool {
        matches!(number, TCP | UDP)
    }

    /// Whether it is dropped unless a policy that permits it names it: tunnels, and what the proxy can
    /// never read.
    #[must_use]
    #[inline(always)]
    pub const fn is_named_only(number: u8) -> bool {
        matches!(number, IPIP | SIT | GRE | ESP | AH | SCTP)
    }
}

/// What a class may do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Verdict {
    /// [`action`] code.
    pub action: u16,
    /// [`DropReason`](crate::DropReason) code if the action is deny, else 0.
    pub reason: u16,
    /// Index of the determining policy ids in the generation's table, 0 for none.
    pub policies: u32,
    /// Number of the [`LimitSet`](crate::image::LimitSet) that applies, 0 for none; and [`NEVER_DIRECT`].
    pub limits: u32,
    /// Zero.
    pub pad: u32,
}
pod!(Verdict, 16);

/// In [`Verdict::limits`]: a forbid of `direct` matches, so that no learned address is `direct` there. No set has a
/// number that large.
pub const NEVER_DIRECT: u32 = 1 << 31;
const _: () = assert!(crate::bound::LIMIT_SETS_MAX < NEVER_DIRECT);

/// The bit of [`map::SELF_FILTER`](crate::map::SELF_FILTER) that stands for an address, by its low half as it lies in
/// memory: word and bit.
#[must_use]
#[inline(always)]
pub const fn self_filter_bit(low: u64) -> (usize, u64) {
    let hash = low.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 52;
    ((hash >> 6) as usize & (crate::bound::SELF_FILTER_WORDS - 1), 1 << (hash & 63))
}

/// Codes of [`Verdict::action`] and [`Flow::action`].
pub mod action {
    /// Drop. The zero value denies.
    pub const DENY: u16 = 0;
    /// Steer to the L7 listener (TCP only).
    pub const STEER: u16 = 1;
    /// Mark for forwarding.
    pub const DIRECT: u16 = 2;
    /// To a service of the gateway itself.
    pub const LOCAL: u16 = 3;
}

/// Key of [`map::FLOWS`](crate::map::FLOWS), from the agent's point of view.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct FlowKey {
    /// The agent's address.
    pub source: Address,
    /// The address the agent dialled.
    pub destination: Address,
    /// The agent's port (ICMP: the echo identifier), network byte order.
    pub source_port_be: u16,
    /// The port the agent dialled (ICMP: 0), network byte order.
    pub destination_port_be: u16,
    /// The agents' interface; [`IFINDEX_LOCAL`] for a local workload, [`IFINDEX_DIAL`] for the proxy's own.
    pub ifindex: u32,
    /// [`protocol`] number.
    pub protocol: u8,
    /// Zero.
    pub pad: [u8; 3],
}
pod!(FlowKey, 44);

/// A live flow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Flow {
    /// Generation that judged it last.
    pub generation: u64,
    /// `CLOCK_MONOTONIC` at the first packet, ns.
    pub created_ns: u64,
    /// `CLOCK_MONOTONIC` at the last packet either way, ns.
    pub last_ns: u64,
    /// Packets from the agent.
    pub tx_packets: u64,
    /// Bytes from the agent (layer 3 and above).
    pub tx_bytes: u64,
    /// Packets to the agent.
    pub rx_packets: u64,
    /// Bytes to the agent.
    pub rx_bytes: u64,
    /// The registry's index of the agent.
    pub agent: u32,
    /// Index of the determining policy ids.
    pub policies: u32,
    /// [`action`] code.
    pub action: u16,
    /// [`flow_flag`] bits.
    pub flags: u16,
    /// Number of the [`LimitSet`](crate::image::LimitSet) of [`Flow::generation`] that applies, 0 for none.
    pub limits: u16,
    /// Zero.
    pub pad: u16,
}
pod!(Flow, 72);

/// Key of [`map::BUCKETS`](crate::map::BUCKETS).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(C)]
pub struct BucketKey {
    /// [`Limiter::key`](crate::image::Limiter::key).
    pub limiter: u64,
    /// Who is limited: an agent's index, a cgroup's id and [`SUBJECT_CGROUP`], or [`SUBJECT_SHARED`].
    pub subject: u64,
}
pod!(BucketKey, 16);

/// In [`BucketKey::subject`]: it is a cgroup's id.
pub const SUBJECT_CGROUP: u64 = 1 << 63;

/// [`BucketKey::subject`] of what all agents of a group share: no agent has this index.
pub const SUBJECT_SHARED: u64 = 0;

/// A token bucket, by the time it takes to fill (the generic cell rate algorithm of ITU-T I.371, virtual
/// scheduling): one number, so that CPUs need no lock.
///
/// What is charged is added atomically, so nothing that passed is forgotten. CPUs that look at the last token at
/// once may each take it: a bucket is then overdrawn by a packet each at most, and fills up from there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Bucket {
    /// `CLOCK_MONOTONIC` at which it is full again, ns; in the past, it is full.
    pub full_ns: u64,
    /// Units that passed.
    pub passed: u64,
    /// Packets dropped.
    pub dropped: u64,
    /// The registry's index of the agent it was made for, in whose share it counts.
    pub agent: u32,
    /// Zero.
    pub pad: u32,
}
pod!(Bucket, 32);

/// Key of [`map::LEARNED`](crate::map::LEARNED).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct LearnedKey {
    /// The agent that was answered.
    pub agent: u32,
    /// Port that its policy permits, network byte order; never 80 or 443, whose addresses many names share.
    pub port_be: u16,
    /// [`protocol`] number, TCP or UDP.
    pub protocol: u8,
    /// Zero.
    pub pad: u8,
    /// The address in the answer.
    pub address: Address,
}
pod!(LearnedKey, 24);

/// Until when, and by what, an address is permitted `direct`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Learned {
    /// `CLOCK_MONOTONIC` after which no new flow begins, ns. Flows that live go on.
    pub expires_ns: u64,
    /// Generation whose policy permitted the name; at another one the entry means nothing.
    pub generation: u64,
    /// Index of the determining policy ids.
    pub policies: u32,
    /// Zero.
    pub pad: u32,
}
pod!(Learned, 24);

/// Until when somebody vouches for the tables. What lapses is what the kernel would forward unseen by L7: which judges
/// by a policy of its own, that grows stale by itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Lease {
    /// `CLOCK_MONOTONIC` from which nothing goes `direct`, ns. 0: nothing may yet.
    pub until_ns: u64,
    /// `CLOCK_MONOTONIC` when control last said that the live generation is the one to run, ns; 0: never. No program
    /// reads it: it is here so that it outlives the role.
    pub confirmed_ns: u64,
    /// `CLOCK_MONOTONIC` since when the tables are not those that control runs by, ns; 0: they are. As above.
    pub behind_ns: u64,
}
pod!(Lease, 24);

/// Bits of [`Flow::flags`].
pub mod flow_flag {
    /// The agent sent FIN.
    pub const FIN_TX: u16 = 1;
    /// The other side sent FIN.
    pub const FIN_RX: u16 = 2;
    /// Either side sent RST.
    pub const RST: u16 = 4;
    /// An event told of its beginning, so its end is told too.
    pub const REPORTED: u16 = 8;
    /// Let through by [`fail_open::L7`](crate::fail_open::L7), and only while no listener is there.
    pub const OPEN_L7: u16 = 16;
    /// Taken up in its midst by [`fail_open::FLOW_TABLE`](crate::fail_open::FLOW_TABLE).
    pub const OPEN_FLOW_TABLE: u16 = 32;
    /// Let through by [`fail_open::REVISION`](crate::fail_open::REVISION).
    pub const OPEN_REVISION: u16 = 64;
    /// A connection of the proxy for one that was steered to it, and charged where it came in.
    pub const CHARGED: u16 = 128;
    /// TCP, and nothing but SYNs came from the agent yet.
    pub const OPENING: u16 = 256;
    /// Let through by [`fail_open::AGENT`](crate::fail_open::AGENT).
    pub const OPEN_AGENT: u16 = 512;
    /// Why it was let through, if it was.
    pub const OPEN: u16 = OPEN_L7 | OPEN_FLOW_TABLE | OPEN_REVISION | OPEN_AGENT;
}

/// Key of [`map::CGROUPS`](crate::map::CGROUPS).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct CgroupKey {
    /// cgroup v2 id (the inode of its directory).
    pub cgroup: u64,
    /// Table slot.
    pub slot: u32,
    /// Zero.
    pub pad: u32,
}
pod!(CgroupKey, 16);

/// Word of [`map::QUARANTINE`](crate::map::QUARANTINE) and bit in it for an agent; an index beyond
/// [`bound::AGENT_INDICES_MAX`](crate::bound::AGENT_INDICES_MAX) has a word that is not there.
#[must_use]
#[inline(always)]
pub const fn quarantine_place(agent: u32) -> (u32, u64) {
    (agent / 64, 1 << (agent % 64))
}

/// Key of [`map::AGENTS`](crate::map::AGENTS).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct AgentKey {
    /// The registry's index.
    pub agent: u32,
    /// Table slot.
    pub slot: u32,
}
pod!(AgentKey, 8);

/// Value of [`map::DIALS`](crate::map::DIALS).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Dial {
    /// The registry's index of the agent that is dialled for.
    pub agent: u32,
    /// [`dial_flag`] bits.
    pub flags: u32,
}
pod!(Dial, 8);

/// Bits of [`Dial::flags`].
pub mod dial_flag {
    /// It is dialled for a connection that was steered: rate limits have charged that one.
    pub const STEERED: u32 = 1;
}

/// Key of [`map::RESOLVERS`](crate::map::RESOLVERS).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct ResolverKey {
    /// Address of the server.
    pub address: Address,
    /// UDP and TCP port, network byte order.
    pub port_be: u16,
    /// Zero.
    pub pad: [u8; 2],
}
pod!(ResolverKey, 20);

/// What tells drops apart in [`map::SEEN`](crate::map::SEEN): of each of these, a record of its own begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(C)]
pub struct SeenKey {
    /// Source address.
    pub source: Address,
    /// Destination address.
    pub destination: Address,
    /// Destination port, network byte order.
    pub destination_port_be: u16,
    /// [`DropReason`](crate::DropReason) code.
    pub reason: u8,
    /// [`protocol`] number.
    pub protocol: u8,
    /// [`SeenKey::scope`].
    pub scope: u32,
}
pod!(SeenKey, 40);

impl SeenKey {
    /// What no interface's index has: Linux counts them in 31 bits.
    const BY_AGENT: u32 = 1 << 31;
    /// Of agents, the proxy's own connections.
    const DIAL: u32 = 1 << 30;

    /// Where it was: an interface; or, where all agents have the machine's own addresses, the agent.
    #[must_use]
    #[inline(always)]
    pub const fn scope(ifindex: u32, agent: u32) -> u32 {
        match ifindex {
            IFINDEX_LOCAL => Self::BY_AGENT | agent,
            IFINDEX_DIAL => Self::BY_AGENT | Self::DIAL | agent,
            ifindex => ifindex,
        }
    }

    /// The interface, as flow records have it.
    #[must_use]
    #[inline(always)]
    pub const fn ifindex(&self) -> u32 {
        match self.scope & (Self::BY_AGENT | Self::DIAL) {
            Self::BY_AGENT => IFINDEX_LOCAL,
            scope if scope == Self::BY_AGENT | Self::DIAL => IFINDEX_DIAL,
            _ => self.scope,
        }
    }
}

// An agent's index leaves both bits free, and each reason has a byte.
const _: () = assert!(crate::bound::AGENT_INDICES_MAX <= 1 << 30);
const _: () = assert!(crate::counter::XDP_PASSED <= 1 << u8::BITS);

/// Value of [`map::SEEN`](crate::map::SEEN): a drop that was reported, and how often it came again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Seen {
    /// Which.
    pub key: SeenKey,
    /// `CLOCK_MONOTONIC_COARSE` when the interval began, ns.
    pub since_ns: u64,
    /// Drops in it that no event told of.
    pub count: u64,
    /// Generation of the last.
    pub generation: u64,
    /// The registry's index of the agent, 0 if anonymous.
    pub agent: u32,
    /// Index of the determining policy ids.
    pub policies: u32,
    /// [`hook`] code.
    pub hook: u16,
    /// Zero.
    pub pad: [u8; 6],
}
pod!(Seen, 80);

/// Value of [`map::EPOCH`](crate::map::EPOCH).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Epoch {
    /// Another one after each change; the low half tells any two within [`RECENT_NS`](crate::bound::RECENT_NS) apart.
    pub number: u64,
    /// Clock ticks (`jiffies`) in [`RECENT_NS`](crate::bound::RECENT_NS): a program does not know how long one is. 0
    /// until somebody has said so; then nothing is remembered.
    pub ticks: u64,
}
pod!(Epoch, 16);

/// Value of [`map::RECENT`](crate::map::RECENT): what XDP said of a kind of packet. One cache line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Recent {
    /// All that XDP's verdict on a well-formed TCP or UDP packet depends on: source MAC and EtherType as they lie in
    /// the frame, both addresses, and [`Recent::last`].
    pub shape: [u64; 6],
    /// Low halves of the packed generation and of the epoch that were read before it was judged.
    pub stamp: u64,
    /// [`Recent::said`].
    pub said: u64,
}
pod!(Recent, 64);

impl Recent {
    const SLOT_SHIFT: u32 = 8;
    const TICK_SHIFT: u32 = 24;

    /// The last word of a shape, the port as it lies in the frame.
    #[must_use]
    #[inline(always)]
    pub const fn last(destination_port_be: u16, tcp_flags: u8, protocol: u8, ifindex: u32) -> u64 {
        destination_port_be as u64
            | (tcp_flags as u64) << 16
            | (protocol as u64) << 24
            | (ifindex as u64) << 32
    }

    /// When it was said; why it was dropped, by the code of a `DropReason`, or 0; and where of
    /// [`map::SEEN`](crate::map::SEEN) drops like it are counted.
    #[must_use]
    #[inline(always)]
    pub const fn said(tick: u64, reason: u16, seen_slot: u32) -> u64 {
        tick << Self::TICK_SHIFT | (seen_slot as u64) << Self::SLOT_SHIFT | reason as u64
    }

    /// Reason and slot of [`Recent::said`].
    #[must_use]
    #[inline(always)]
    pub const fn told(said: u64) -> (u16, u32) {
        let slot = (said >> Self::SLOT_SHIFT) & ((1 << (Self::TICK_SHIFT - Self::SLOT_SHIFT)) - 1);
        ((said & 0xFF) as u16, slot as u32)
    }

    /// How many ticks ago it was said, at `tick`.
    #[must_use]
    #[inline(always)]
    pub const fn age(said: u64, tick: u64) -> u64 {
        // As many bits of both as are kept.
        (tick << Self::TICK_SHIFT).wrapping_sub(said >> Self::TICK_SHIFT << Self::TICK_SHIFT)
            >> Self::TICK_SHIFT
    }
}

// Room for every reason, and every slot.
const _: () = assert!(crate::counter::XDP_PASSED <= 1 << Recent::SLOT_SHIFT);
const _: () = assert!(crate::bound::SEEN_SLOTS <= 1 << (Recent::TICK_SHIFT - Recent::SLOT_SHIFT));

/// Value of [`map::PACE`](crate::map::PACE).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Pace {
    /// Start of the interval, `CLOCK_MONOTONIC`, ns.
    pub since_ns: u64,
    /// Drops reported in it.
    pub events: u64,
}
pod!(Pace, 16);

/// What the kernel tells user space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Event {
    /// `CLOCK_MONOTONIC`, ns.
    pub at_ns: u64,
    /// Generation that decided.
    pub generation: u64,
    /// The flow, or as much of it as could be read.
    pub flow: FlowKey,
    /// The registry's index of the agent, 0 if anonymous.
    pub agent: u32,
    /// Index of the determining policy ids.
    pub policies: u32,
    /// Bytes of the packet (layer 3 and above); for [`event_kind::REST`] the CPU that counted.
    pub bytes: u32,
    /// [`event_kind`] code.
    pub kind: u16,
    /// [`DropReason`](crate::DropReason) code for a drop. For a flow 0, or why it would have been dropped
    /// if its interface did not fail open.
    pub reason: u16,
    /// [`action`] code.
    pub action: u16,
    /// [`hook`] code.
    pub hook: u16,
    /// Packets it stands for: 1, but for [`event_kind::REST`].
    pub count: u64,
}
pod!(Event, 88);

/// What the kernel tells of a flow that ended because another one has its tuple now: told apart from an [`Event`] by
/// its size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Ended {
    /// Its record, as it was at the end.
    pub flow: Flow,
    /// Its tuple.
    pub key: FlowKey,
    /// Zero.
    pub pad: u32,
}
pod!(Ended, 120);
const _: () = assert!(size_of::<Ended>() != size_of::<Event>());

/// Codes of [`Event::kind`].
pub mod event_kind {
    /// A new flow was permitted.
    pub const FLOW: u16 = 1;
    /// A packet or socket call was dropped (the first in a while for this key).
    pub const DROP: u16 = 2;
    /// Drops like one told before, which no event of their own told: `at_ns` is the [`Seen::since_ns`]
    /// they were counted under.
    ///
    /// [`Seen::since_ns`]: super::Seen::since_ns
    pub const REST: u16 = 3;
}

/// Codes of [`Event::hook`].
pub mod hook {
    /// XDP on an agents' interface.
    pub const XDP: u16 = 1;
    /// TC ingress on an agents' interface.
    pub const TC_INGRESS: u16 = 2;
    /// TC egress on an agents' interface.
    pub const TC_EGRESS: u16 = 3;
    /// A cgroup hook of local workloads.
    pub const CGROUP: u16 = 4;
    /// A cgroup hook of the proxy's own sockets.
    pub const DIAL: u16 = 5;
}
