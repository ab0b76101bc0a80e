//! Properties of addresses: canonical form, embedded IPv4, and which are reserved.
//!
//! "Reserved" means that an agent has no business there unless a policy names the address: this
//! machine, its networks, cloud metadata, and the transition prefixes that hide one of those. Must
//! never be used to allow: it only adds denials to what policy permits.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// The canonical form: IPv4 if IPv4-mapped (RFC 4291 2.5.5.2).
#[must_use]
pub fn canonical(ip: IpAddr) -> IpAddr {
    ip.to_canonical()
}

/// The IPv4 address inside a transition address: IPv4-mapped and IPv4-compatible (RFC 4291 2.5.5),
/// NAT64 under the well-known prefix (RFC 6052), 6to4 (RFC 3056), the client of a Teredo address
/// (RFC 4380), ISATAP (RFC 5214).
#[must_use]
pub fn embedded_ipv4(ip: Ipv6Addr) -> Option<Ipv4Addr> {
    let bits = ip.to_bits();
    let low = Ipv4Addr::from_bits(u32::try_from(bits & 0xffff_ffff).ok()?);
    if let Some(v4) = ip.to_ipv4_mapped() {
        return Some(v4);
    }
    match ip.segments() {
        // `::` and `::1` are addresses of their own, not IPv4-compatible.
        [0, 0, 0, 0, 0, 0, 0, 0 | 1] => None,
        [0, 0, 0, 0, 0, 0, _, _] | [0x64, 0xff9b, 0, 0, 0, 0, _, _] => Some(low),
        [0x2002, a, b, ..] => Some(Ipv4Addr::from_bits(u32::from(a) << 16 | u32::from(b))),
        [0x2001, 0, ..] => Some(Ipv4Addr::from_bits(!low.to_bits())),
        [_, _, _, _, 0 | 0x200, 0x5efe, _, _] => Some(low),
        _ => None,
    }
}

/// IANA's IPv4 special-purpose registry, less documentation; and Azure's metadata address, which lies
/// in public space.
const RESERVED_V4: [Ipv4Net; 13] = [
    v4([0, 0, 0, 0], 8),
    v4([10, 0, 0, 0], 8),
    v4([100, 64, 0, 0], 10),
    v4([127, 0, 0, 0], 8),
    v4([168, 63, 129, 16], 32),
    v4([169, 254, 0, 0], 16),
    v4([172, 16, 0, 0], 12),
    v4([192, 0, 0, 0], 24),
    v4([192, 88, 99, 0], 24),
    v4([192, 168, 0, 0], 16),
    v4([198, 18, 0, 0], 15),
    // Multicast, future use, broadcast.
    v4([224, 0, 0, 0], 4),
    v4([240, 0, 0, 0], 4),
];

/// IANA's IPv6 special-purpose registry, less documentation.
const RESERVED_V6: [Ipv6Net; 14] = [
    // Unspecified, loopback, IPv4-compatible, and the rest of `::/32`. (IPv4-mapped is judged as IPv4.)
    v6([0, 0, 0, 0], 32),
    // NAT64: the well-known prefix (RFC 6052) and local use (RFC 8215).
    v6([0x64, 0xff9b, 0, 0], 96),
    v6([0x64, 0xff9b, 1, 0], 48),
    // Discard-only, dummy (RFC 6666, RFC 9780).
    v6([0x100, 0, 0, 0], 48),
    // Teredo, benchmarking.
    v6([0x2001, 0, 0, 0], 32),
    v6([0x2001, 2, 0, 0], 48),
    // ORCHID, ORCHIDv2 and drone remote id.
    v6([0x2001, 0x10, 0, 0], 28),
    v6([0x2001, 0x20, 0, 0], 27),
    // 6to4.
    v6([0x2002, 0, 0, 0], 16),
    // Segment routing SIDs (RFC 9602).
    v6([0x5f00, 0, 0, 0], 16),
    // Unique local, link-local, site-local, multicast.
    v6([0xfc00, 0, 0, 0], 7),
    v6([0xfe80, 0, 0, 0], 10),
    v6([0xfec0, 0, 0, 0], 10),
    v6([0xff00, 0, 0, 0], 8),
];

const fn v4([a, b, c, d]: [u8; 4], length: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), length)
}

const fn v6([a, b, c, d]: [u16; 4], length: u8) -> Ipv6Net {
    Ipv6Net::new_assert(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0), length)
}

/// Every reserved prefix.
pub(crate) fn reserved() -> impl Iterator<Item = IpNet> {
    RESERVED_V4.into_iter().map(IpNet::V4).chain(RESERVED_V6.into_iter().map(IpNet::V6))
}

/// Whether `ip` is reserved: loopback, private, link-local, carrier NAT, unique local, multicast,
/// unspecified, broadcast, metadata services, benchmarking, and the transition prefixes (NAT64, 6to4,
/// Teredo, IPv4-compatible), because their packets end at an IPv4 address that policy was not asked
/// about. The documentation prefixes (RFC 5737, RFC 3849, RFC 9637) are not reserved.
///
/// What is reserved is a list of prefixes, so that the kernel's table can hold the same. ISATAP
/// (RFC 5214), 6rd (RFC 5969) and NAT64 under a network's own prefix are told apart by no prefix known
/// here: a network that runs one must `forbid` its prefix.
#[must_use]
pub fn is_reserved(ip: IpAddr) -> bool {
    match canonical(ip) {
        IpAddr::V4(v4) => RESERVED_V4.iter().any(|prefix| prefix.contains(&v4)),
        IpAddr::V6(v6) => RESERVED_V6.iter().any(|prefix| prefix.contains(&v6)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reserved_addresses() {
        let reserved = "0.0.0.0 0.1.2.3 10.0.0.1 100.64.0.1 100.127.255.255 100.100.100.200 127.0.0.1 127.1.2.3 \
            169.254.169.254 169.254.170.2 172.16.0.1 172.31.255.255 192.0.0.192 192.168.1.1 192.88.99.1 198.18.0.1 \
            198.19.255.255 168.63.129.16 224.0.0.1 239.1.1.1 240.0.0.1 255.255.255.255 :: ::1 ::2 ::ffff:10.0.0.1 \
            ::ffff:169.254.169.254 ::10.0.0.1 64:ff9b::10.0.0.1 64:ff9b::8.8.8.8 64:ff9b:1::1 2002:a00:1::1 \
            2001:0:53aa:64c:0:0:f5ff:fffe 2001:2::1 2001:10::1 2001:20::1 100::1 fc00::1 fd00:ec2::254 fe80::1 \
            fec0::1 febf::1 feff::1 ff02::1 5f00::1 2001:3f::1 fe80::5efe:10.0.0.1";
        for text in reserved.split_ascii_whitespace() {
            let ip = text.parse().unwrap_or_else(|_| panic!("{text}"));
            assert!(is_reserved(ip), "{text} must be reserved");
        }
        let public = "1.1.1.1 8.8.8.8 100.63.255.255 100.128.0.1 172.15.0.1 172.32.0.1 192.0.1.1 192.0.2.1 \
            198.51.100.1 203.0.113.1 198.17.0.1 198.20.0.1 168.63.129.17 223.255.255.255 ::ffff:8.8.8.8 2606:4700::1111 \
            2001:db8::1 2001:4860:4860::8888 2001:f::1 2001:40::1 3fff::1 2003::1 64:ff9a::1 64:ff9b:2::1 1::1 100:0:1::1 \
            fe00::1";
        for text in public.split_ascii_whitespace() {
            let ip = text.parse().unwrap_or_else(|_| panic!("{text}"));
            assert!(!is_reserved(ip), "{text} must not be reserved");
        }
    }

    #[test]
    fn embedded_addresses() {
        for (text, inner) in [
            ("::ffff:10.0.0.1", Some("10.0.0.1")),
            ("::10.0.0.1", Some("10.0.0.1")),
            ("64:ff9b::192.0.2.33", Some("192.0.2.33")),
            ("2002:c000:204::1", Some("192.0.2.4")),
            ("2001:0:4136:e378:8000:63bf:3fff:fdd2", Some("192.0.2.45")),
            ("2001:db8::5efe:192.0.2.1", Some("192.0.2.1")),
            ("::", None),
            ("::1", None),
            ("2001:db8::1", None),
            ("64:ff9b:1::192.0.2.33", None),
        ] {
            let ip: Ipv6Addr = text.parse().unwrap_or_else(|_| panic!("{text}"));
            assert_eq!(embedded_ipv4(ip), inner.map(|v4| v4.parse().unwrap()), "{text}");
        }
    }

    /// No prefix is within another, and none has bits behind its length: each says what it matches.
    #[test]
    fn reserved_prefixes_are_exact_and_apart() {
        let all: Vec<IpNet> = reserved().collect();
        for (number, prefix) in all.iter().enumerate() {
            assert_eq!(prefix.trunc(), *prefix);
            assert!(is_reserved(prefix.network()) && is_reserved(prefix.broadcast()), "{prefix}");
            let others = all.iter().enumerate().filter(|(n, _)| *n != number);
            assert!(others.clone().all(|(_, other)| !other.contains(prefix)), "{prefix}");
        }
    }
}
