//! Crafted frames: whatever an agent's host puts on the wire, FORBIDDEN gets nothing, a record says why,
//! and the next good request succeeds.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use clawgress_api::{AuditQuery, AuditRecord, Plane, Verdict};
use clawgress_e2e::lab::{Host, Role};
use clawgress_e2e::plan::{ANON, DNS, GATEWAY, KNOWN};
use clawgress_e2e::scenario::Site;

use crate::frames::{self, ACK, FIN, RST, SYN, ethernet, icmp, ip, tcp, udp};
use crate::support::{admin, curl, finish, site};

/// Time for the records of a batch of cases: queues, a batch, a write.
pub const RECORDS_MAX: Duration = Duration::from_secs(20);
/// Drops of the same kind within one second are one record (`bound::SEEN_INTERVAL_NS`).
const APART: Duration = Duration::from_millis(1_100);

/// Sends each argument after the interface's name as a frame.
const SENDER: &str = r"
import socket, sys
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
s.bind((sys.argv[1], 0))
for frame in sys.argv[2:]:
    s.send(bytes.fromhex(frame))
";

/// A DNS question for the root's addresses, number 7.
const QUESTION: &[u8] = b"\0\x07\x01\0\0\x01\0\0\0\0\0\0\0\0\x01\0\x01";

/// A frame that must be dropped.
pub struct Case {
    name: &'static str,
    frame: Vec<u8>,
    /// Tells its record from those of other cases; `None` where the drop comes before addresses are read.
    to: Option<IpAddr>,
    /// The reason it is dropped for.
    reason: &'static str,
}

pub fn mac(text: &str) -> [u8; 6] {
    let bytes: Vec<u8> = text.split(':').map(|b| u8::from_str_radix(b, 16).unwrap()).collect();
    bytes.try_into().unwrap()
}

fn known() -> [u8; 6] {
    mac(KNOWN.mac)
}

/// An address of FORBIDDEN at which policy permits TCP to ports 80 and 443: names alone keep agents out,
/// so that a frame taken for a plain SYN would go on.
pub fn permitted(n: u8) -> Ipv4Addr {
    assert!((1..128).contains(&n), "{n} is in the other half");
    Ipv4Addr::new(198, 51, 100, n)
}

/// One of FORBIDDEN that policy permits nothing at.
pub fn blocked(n: u8) -> Ipv4Addr {
    Ipv4Addr::new(198, 51, 100, 128 + n)
}

/// As [`permitted`], in IPv6.
fn permitted_v6(n: u16) -> Ipv6Addr {
    Ipv6Addr::new(0x2001, 0xdb8, 0x51, 0, 0, 0, 0, n)
}

fn blocked_v6(n: u16) -> Ipv6Addr {
    Ipv6Addr::new(0x2001, 0xdb8, 0x51, 0, 1, 0, 0, n)
}

pub fn syn() -> Vec<u8> {
    tcp(40_000, 443, SYN)
}

/// From the known host's own address and MAC.
pub fn from_known(to: impl Into<IpAddr>, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let to = to.into();
    let source: IpAddr = if to.is_ipv4() { KNOWN.v4.into() } else { KNOWN.v6.into() };
    ip(known(), source, to, protocol, payload)
}

pub fn case(name: &'static str, to: impl Into<IpAddr>, reason: &'static str, frame: Vec<u8>) -> Case {
    Case { name, frame, to: Some(to.into()), reason }
}

fn unread(name: &'static str, reason: &'static str, frame: Vec<u8>) -> Case {
    Case { name, frame, to: None, reason }
}

/// IPv4 with options: the header grows, and its length field with it.
fn with_options(to: Ipv4Addr, options: &[u8]) -> Vec<u8> {
    assert!(options.len().is_multiple_of(4) && options.len() <= 40, "an impossible header");
    let mut payload = options.to_vec();
    payload.extend(syn());
    let mut frame = from_known(to, 6, &payload);
    frame[14] = 0x45 + u8::try_from(options.len() / 4).unwrap();
    frame
}

/// IPv4 with these flags and fragment offset.
fn fragment(to: Ipv4Addr, field: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = from_known(to, 6, payload);
    frame[20..22].copy_from_slice(&field.to_be_bytes());
    frame
}

/// IPv6 with extension headers in front: (number, body behind its first two bytes), padded to 8 bytes.
fn with_extensions(to: Ipv6Addr, extensions: &[(u8, &[u8])], last: u8, payload: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    for (n, (_, contents)) in extensions.iter().enumerate() {
        let next = extensions.get(n + 1).map_or(last, |(number, _)| *number);
        let bytes = (2 + contents.len()).next_multiple_of(8);
        let begin = body.len();
        body.extend([next, u8::try_from(bytes / 8 - 1).unwrap()]);
        body.extend(*contents);
        body.resize(begin + bytes, 0);
    }
    body.extend(payload);
    from_known(to, extensions.first().map_or(last, |(number, _)| *number), &body)
}

/// The frame with tags in front of what it carries, outermost first: (EtherType, tag).
pub fn tagged(frame: &[u8], tags: &[(u16, u16)]) -> Vec<u8> {
    tags.iter().rev().fold(frame.to_vec(), |inner, (ethertype, tag)| frames::tagged(&inner, *ethertype, *tag))
}

/// With a right IPv4 header checksum, if it has such a header: nothing else may be wrong but what a case is
/// about.
fn checked(mut frame: Vec<u8>) -> Vec<u8> {
    let bytes = usize::from(frame[14] & 0xF) * 4;
    if frame[12..14] == [8, 0] && bytes >= 20 && frame.len() >= 14 + bytes {
        frame[24..26].copy_from_slice(&[0, 0]);
        let sum = sum(&frame[14..14 + bytes]);
        frame[24..26].copy_from_slice(&sum.to_be_bytes());
    }
    frame
}

/// RFC 1071.
pub fn sum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])));
    let folded = |n: u32| (n & 0xFFFF) + (n >> 16);
    let total = folded(folded(words.sum()));
    !u16::try_from(total).unwrap()
}

/// Puts a frame on the wire in `host`, addressed to the gateway.
pub fn send(site: &Site, host: Host, interface: &str, frame: &[u8]) {
    let mut frame = checked(frame.to_vec());
    frame[..6].copy_from_slice(&mac(GATEWAY.mac));
    let hex: String = frame.iter().map(|b| format!("{b:02x}")).collect();
    let argv = ["python3", "-c", SENDER, interface, &hex];
    site.gateway.lab.run(host, &argv).unwrap().check().unwrap();
}

#[track_caller]
fn good(site: &Site, after: &str) {
    let good = curl(site, Host::Known, &["http://api.allowed.test/after"]);
    assert!(good.stdout.contains("200"), "a good request must succeed after `{after}`: {good:?}");
}

fn tells(record: &AuditRecord, case: &Case) -> bool {
    record.plane == Plane::Kernel
        && record.verdict == Some(Verdict::Deny)
        && record.reason.is_some_and(|r| r.name() == case.reason)
        && case.to.is_none_or(|to| record.destination.ip == Some(to))
}

/// Sends each case, each followed by a good request, and waits for the records of all.
#[track_caller]
pub fn denied(site: &Site, host: Host, cases: &[Case]) {
    let records = || admin(site).audit(&AuditQuery::default());
    let count = |records: &[AuditRecord], case: &Case| records.iter().filter(|r| tells(r, case)).count();
    let known = records().unwrap();
    let wanted = |case: &Case| {
        // Without addresses only their number tells them apart.
        let alike = cases.iter().filter(|c| c.to.is_none() && c.reason == case.reason).count();
        count(&known, case) + if case.to.is_none() { alike } else { 1 }
    };
    for case in cases {
        if case.to.is_none() {
            std::thread::sleep(APART);
        }
        send(site, host, "eth0", &case.frame);
        good(site, case.name);
    }
    let mut missing = String::new();
    let waited = site.gateway.lab.wait("the records", RECORDS_MAX, || {
        let records = records()?;
        let untold: Vec<String> = cases
            .iter()
            .filter(|case| count(&records, case) < wanted(case))
            .map(|c| {
                let told = records.iter().filter(|r| c.to.is_some() && r.destination.ip == c.to);
                let told: Vec<_> = told.filter_map(|r| r.reason).map(|r| r.name()).collect();
                format!("`{}` should be `{}`, is {told:?}", c.name, c.reason)
            })
            .collect();
        missing = untold.join("\n");
        Ok(untold.is_empty())
    });
    assert!(waited.is_ok(), "not told in time:\n{missing}");
}

/// Sends frames while TC alone judges; as many records tell of them afterwards.
#[track_caller]
fn without_xdp(site: &mut Site, reason: &'static str, frames: &[Vec<u8>]) {
    let told = |site: &Site| -> anyhow::Result<usize> {
        let case = Case { name: "without XDP", frame: Vec::new(), to: None, reason };
        Ok(admin(site).audit(&AuditQuery::default())?.iter().filter(|r| tells(r, &case)).count())
    };
    let before = told(site).unwrap();
    // Nobody is there who would put it back.
    site.gateway.kill(Role::Datapath).unwrap();
    let pins = site.gateway.bpffs();
    let remove = ["find", pins.to_str().unwrap(), "-name", "xdp-*", "-delete"];
    site.gateway.lab.run(Host::Gateway, &remove).unwrap().check().unwrap();
    let links = site.gateway.lab.run(Host::Gateway, &["ip", "link", "show", "agents0"]).unwrap();
    assert!(!links.stdout.contains("xdp"), "it is still there: {links:?}");
    for frame in frames {
        std::thread::sleep(APART);
        send(site, Host::Known, "eth0", frame);
        good(site, "a frame without XDP");
    }
    site.gateway.launch(Role::Datapath).unwrap();
    site.gateway.ready().unwrap();
    let waited =
        site.gateway.lab.wait("their records", RECORDS_MAX, || Ok(told(site)? >= before + frames.len()));
    assert!(waited.is_ok(), "{} records before and {:?} after", before, told(site));
}

#[test]
fn options_fragments_and_extension_headers() {
    let site = site();
    denied(&site, Host::Known, &headers());
    finish(site);
}

/// IPv4 with options, fragments of both families, and extension headers.
pub fn headers() -> Vec<Case> {
    let route = [131, 7, 4, 198, 51, 100, 66, 0];
    let tiny = &syn()[..8];
    vec![
        case("router alert", permitted(1), "ipv4_options", with_options(permitted(1), &[148, 4, 0, 0])),
        case("source route", permitted(2), "ipv4_options", with_options(permitted(2), &route)),
        case("longest header", permitted(3), "ipv4_options", with_options(permitted(3), &[1; 40])),
        case("first fragment", permitted(4), "fragment", fragment(permitted(4), 0x2000, &syn())),
        case("tiny first fragment", permitted(5), "fragment", fragment(permitted(5), 0x2000, tiny)),
        case("second fragment", permitted(6), "fragment", fragment(permitted(6), 3, &syn())),
        case("overlapping fragment", permitted(7), "fragment", fragment(permitted(7), 0x2001, &syn())),
        case("evil bit", permitted(8), "malformed", fragment(permitted(8), 0x8000, &syn())),
        case(
            "IPv6 fragment",
            permitted_v6(1),
            "fragment",
            with_extensions(permitted_v6(1), &[(44, &[0, 1, 0, 0, 0, 7])], 6, &syn()),
        ),
        case(
            "IPv6 atomic fragment",
            permitted_v6(2),
            "fragment",
            with_extensions(permitted_v6(2), &[(44, &[0, 0, 0, 0, 0, 7])], 6, &syn()),
        ),
        case(
            "three extension headers",
            permitted_v6(3),
            "ipv6_extension",
            with_extensions(permitted_v6(3), &[(60, &[]), (60, &[]), (60, &[])], 6, &syn()),
        ),
        case(
            "hop-by-hop behind another header",
            permitted_v6(4),
            "ipv6_extension",
            with_extensions(permitted_v6(4), &[(60, &[]), (0, &[])], 6, &syn()),
        ),
        case(
            "a long extension header",
            permitted_v6(5),
            "ipv6_extension",
            with_extensions(permitted_v6(5), &[(60, &[0; 126])], 6, &syn()),
        ),
        case(
            "routing header",
            permitted_v6(6),
            "ipv6_routing",
            with_extensions(permitted_v6(6), &[(43, &[0, 1, 0, 0, 0, 0])], 6, &syn()),
        ),
    ]
}

#[test]
fn tunnels_and_other_transports() {
    let site = site();
    let inner = |n| from_known(blocked(n), 17, &udp(1, 53, b"inside"))[14..].to_vec();
    let mut cases: Vec<Case> = [
        ("IPIP", 4, inner(1)),
        ("6in4", 41, from_known(blocked_v6(1), 17, &udp(1, 53, b"inside"))[14..].to_vec()),
        ("GRE", 47, [vec![0, 0, 8, 0], inner(2)].concat()),
        ("ESP", 50, vec![7; 64]),
        ("AH", 51, vec![7; 64]),
        ("SCTP", 132, [vec![0x9C, 0x40, 1, 0xBB], vec![0; 28]].concat()),
        ("UDP-Lite", 136, udp(1, 443, b"lite")),
        ("DCCP", 33, vec![0; 32]),
        ("experimental", 253, vec![1; 32]),
    ]
    .into_iter()
    .zip(20..)
    .map(|((name, protocol, payload), n)| {
        case(name, permitted(n), "protocol_unsupported", from_known(permitted(n), protocol, &payload))
    })
    .collect();
    for (name, protocol, n) in [("IPv6 in IPv6", 41, 1), ("GRE in IPv6", 47, 2), ("no next header", 59, 3)] {
        let to = permitted_v6(0x20 + n);
        cases.push(case(name, to, "protocol_unsupported", from_known(to, protocol, &inner(3))));
    }
    denied(&site, Host::Known, &cases);
    finish(site);
}

#[test]
fn raw_tcp_dns_quic_and_icmp() {
    let site = site();
    let quic = [vec![0xC3, 0, 0, 0, 1, 8], vec![0x5A; 1_194]].concat();
    let mut cases = vec![
        case("raw TCP", blocked(1), "policy_denied", from_known(blocked(1), 6, &tcp(1, 4444, SYN))),
        case("SSH", permitted(40), "policy_denied", from_known(permitted(40), 6, &tcp(1, 22, SYN))),
        case("DoT", permitted(41), "policy_denied", from_known(permitted(41), 6, &tcp(1, 853, SYN))),
        case(
            "foreign resolver",
            permitted(42),
            "policy_denied",
            from_known(permitted(42), 17, &udp(1, 53, b"q")),
        ),
        case(
            "foreign resolver, TCP",
            blocked(2),
            "policy_denied",
            from_known(blocked(2), 6, &tcp(1, 53, SYN)),
        ),
        case("QUIC", permitted(43), "policy_denied", from_known(permitted(43), 17, &udp(1, 443, &quic))),
        case(
            "middle of nothing",
            permitted(44),
            "flow_unknown",
            from_known(permitted(44), 6, &tcp(1, 443, ACK)),
        ),
        case(
            "SYN and RST",
            permitted(45),
            "tcp_flags",
            from_known(permitted(45), 6, &tcp(1, 443, SYN | RST)),
        ),
        case(
            "SYN and FIN",
            permitted(46),
            "tcp_flags",
            from_known(permitted(46), 6, &tcp(1, 443, SYN | FIN)),
        ),
        case("IPv6 only", blocked_v6(9), "policy_denied", from_known(blocked_v6(9), 6, &syn())),
        case("ping", blocked(3), "policy_denied", from_known(blocked(3), 1, &icmp(8, 0, 1))),
        case("ping, IPv6", blocked_v6(10), "policy_denied", from_known(blocked_v6(10), 58, &icmp(128, 0, 1))),
        case(
            "an answer nobody asked for",
            blocked(4),
            "icmp_unsupported",
            from_known(blocked(4), 1, &icmp(0, 0, 1)),
        ),
    ];
    let tunnel = [icmp(8, 0, 1), vec![0x5A; 1_200]].concat();
    cases.push(case("an ICMP tunnel", blocked(8), "icmp_payload", from_known(blocked(8), 1, &tunnel)));
    let (null, tree) = (tcp(1, 443, 0), tcp(1, 443, FIN | 0x28));
    cases.push(case("no flags", permitted(47), "tcp_flags", from_known(permitted(47), 6, &null)));
    cases.push(case("all lights", permitted(48), "tcp_flags", from_known(permitted(48), 6, &tree)));
    for (name, kind, n) in [("timestamp", 13, 5), ("address mask", 17, 6), ("redirect", 5, 7)] {
        cases.push(case(name, blocked(n), "icmp_unsupported", from_known(blocked(n), 1, &icmp(kind, 0, 1))));
    }
    denied(&site, Host::Known, &cases);
    finish(site);
}

#[test]
fn sources_that_are_not_the_hosts_own() {
    let site = site();
    let from = |source: Ipv4Addr, to: Ipv4Addr| ip(known(), source.into(), to.into(), 6, &syn());
    let any = |text: &str| text.parse::<Ipv4Addr>().unwrap();
    let mut cases = vec![
        case("a neighbour's address", permitted(60), "anonymous", from(ANON.v4, permitted(60))),
        case("nobody's address", permitted(61), "anonymous", from(any("10.70.0.99"), permitted(61))),
        case("an address of elsewhere", permitted(62), "anonymous", from(any("8.8.8.8"), permitted(62))),
        case(
            "another MAC",
            permitted(63),
            "source_spoofed",
            ip([2, 0, 0, 0, 0, 0x66], KNOWN.v4.into(), permitted(63).into(), 6, &syn()),
        ),
        case(
            "another MAC, IPv6",
            permitted_v6(0x60),
            "source_spoofed",
            ip([2, 0, 0, 0, 0, 0x66], KNOWN.v6.into(), permitted_v6(0x60).into(), 6, &syn()),
        ),
        case(
            "IPv4-mapped",
            permitted_v6(0x61),
            "malformed",
            ip(known(), KNOWN.v4.to_ipv6_mapped().into(), permitted_v6(0x61).into(), 6, &syn()),
        ),
    ];
    for (n, martian) in ["127.0.0.1", "0.0.0.0", "224.0.0.1", "255.255.255.255"].into_iter().enumerate() {
        let to = permitted(70 + u8::try_from(n).unwrap());
        cases.push(case("martian", to, "source_martian", from(any(martian), to)));
    }
    denied(&site, Host::Known, &cases);
    // The known host's address from the other's cable.
    let borrowed = ip(mac(ANON.mac), KNOWN.v4.into(), permitted(80).into(), 6, &syn());
    denied(&site, Host::Anon, &[case("a borrowed address", permitted(80), "source_spoofed", borrowed)]);
    finish(site);
}

#[test]
fn destinations_that_lead_back() {
    let site = site();
    let to = |text: &str| text.parse::<IpAddr>().unwrap();
    let mut cases = vec![
        case("LAND", KNOWN.v4, "land", from_known(KNOWN.v4, 6, &syn())),
        case(
            "a port of the gateway",
            GATEWAY.v4,
            "gateway_address",
            from_known(GATEWAY.v4, 6, &tcp(1, 22, SYN)),
        ),
    ];
    for text in ["127.0.0.1", "::1"] {
        cases.push(case("loopback", to(text), "gateway_address", from_known(to(text), 6, &syn())));
    }
    for text in [
        "169.254.169.254",
        "100.100.100.200",
        "224.0.0.1",
        "255.255.255.255",
        "fd00:ec2::254",
        "64:ff9b::c633:6442",
        "2002:c633:6442::1",
        "ff02::1:3",
    ] {
        cases.push(case(
            "a reserved destination",
            to(text),
            "policy_denied",
            from_known(to(text), 6, &syn()),
        ));
    }
    denied(&site, Host::Known, &cases);
    finish(site);
}

#[test]
fn tags_and_frames_of_other_kinds() {
    let mut site = site();
    tags_are_judged_by_what_they_say(&mut site);
    finish(site);
}

const Q: u16 = 0x8100;
const AD: u16 = 0x88A8;

/// Tags, and frames of other kinds; with XDP and without, and of what is permitted as well.
#[track_caller]
pub fn tags_are_judged_by_what_they_say(site: &mut Site) {
    let plain = checked(from_known(blocked(20), 6, &syn()));
    // A priority tag names no VLAN: the verdict is that of the frame without it.
    let priority = |n, tags: &[(u16, u16)]| tagged(&checked(from_known(blocked(n), 6, &syn())), tags);
    denied(
        site,
        Host::Known,
        &[
            case("VLAN 0", blocked(21), "policy_denied", priority(21, &[(Q, 0xE000)])),
            case("VLAN 0 twice", blocked(22), "policy_denied", priority(22, &[(AD, 0), (Q, 0)])),
        ],
    );
    denied(
        site,
        Host::Known,
        &[
            unread("VLAN 5", "vlan_unsupported", tagged(&plain, &[(Q, 5)])),
            unread("QinQ", "vlan_unsupported", tagged(&plain, &[(AD, 5), (Q, 6)])),
            unread("two priority tags and a VLAN", "vlan_unsupported", tagged(&plain, &[(AD, 0), (Q, 7)])),
            unread("triple tags", "vlan_unsupported", tagged(&plain, &[(AD, 0), (Q, 0), (Q, 0)])),
            unread("MPLS", "ethertype_unsupported", ethernet(known(), 0x8847, &plain[14..])),
            unread("PPPoE", "ethertype_unsupported", ethernet(known(), 0x8864, &plain[14..])),
            unread("IPv4 as IPv6", "malformed", ethernet(known(), 0x86DD, &plain[14..])),
            unread("half a header", "malformed", ethernet(known(), 0x0800, &plain[14..28])),
        ],
    );
    // Where there is no XDP, the kernel takes the outer tag off before TC sees the frame.
    let frames =
        [tagged(&plain, &[(Q, 5)]), tagged(&plain, &[(AD, 5), (Q, 6)]), tagged(&plain, &[(AD, 0), (Q, 7)])];
    without_xdp(site, "vlan_unsupported", &frames);
    // The same for what is permitted: a question under a priority tag is answered, under a VLAN's it is not.
    let question = checked(from_known(DNS.0, 17, &udp(40_001, 53, QUESTION)));
    let asked = |site: &Site| site.gateway.lab.world().unwrap().dns_queries;
    let before = asked(site);
    send(site, Host::Known, "eth0", &tagged(&question, &[(Q, 5)]));
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(asked(site), before, "a VLAN's packet was taken for the port's");
    send(site, Host::Known, "eth0", &tagged(&question, &[(Q, 0)]));
    let answered = site.gateway.lab.wait("the question", RECORDS_MAX, || Ok(asked(site) > before));
    assert!(answered.is_ok(), "a priority tag made a permitted packet another one");
}
