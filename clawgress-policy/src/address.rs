//! Properties of addresses: canonical form, embedded IPv4, and which are reserved.
//!
//! "Reserved" means that an agent has no business there unless a policy names the address: this
//! machine, its networks, cloud metadata, and the transition prefixes that hide one of those. Must
//! never be used to allow: it only adds denials to what policy permits.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

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

/// Whether `ip` is reserved: loopback, private, link-local, carrier NAT, unique local, multicast,
/// unspecified, broadcast, metadata services, benchmarking, and every transition prefix (NAT64, 6to4,
/// Teredo, IPv4-compatible, ISATAP), because its packets end at an IPv4 address that policy was not
/// asked about. The documentation prefixes (RFC 5737, RFC 3849, RFC 9637) are not reserved.
#[must_use]
pub fn is_reserved(ip: IpAddr) -> bool {
    match canonical(ip) {
        IpAddr::V4(v4) => is_reserved_v4(v4),
        IpAddr::V6(v6) => is_reserved_v6(v6),
    }
}

/// IANA's IPv4 special-purpose registry, less documentation; and Azure's metadata address, which lies
/// in public space.
fn is_reserved_v4(ip: Ipv4Addr) -> bool {
    match ip.octets() {
        [0 | 10 | 127, ..] => true,
        [100, b, ..] => b & 0xc0 == 64,
        [169, 254, ..] | [192, 168, ..] => true,
        [172, b, ..] => b & 0xf0 == 16,
        [192, 0, 0, _] | [192, 88, 99, _] => true,
        [198, 18 | 19, ..] => true,
        [168, 63, 129, 16] => true,
        [a, ..] => a >= 224,
    }
}

/// IANA's IPv6 special-purpose registry, less documentation.
fn is_reserved_v6(ip: Ipv6Addr) -> bool {
    if embedded_ipv4(ip).is_some() {
        return true;
    }
    match ip.segments() {
        // Unspecified, loopback, and the rest of ::/32.
        [0, 0, ..] => true,
        // NAT64, local use (RFC 8215).
        [0x64, 0xff9b, 1, ..] => true,
        // Discard-only, dummy (RFC 6666, RFC 9780).
        [0x100, 0, 0, ..] => true,
        // Benchmarking, ORCHID, ORCHIDv2, drone remote id.
        [0x2001, 2, 0, ..] => true,
        [0x2001, b, ..] if (0x10..=0x3f).contains(&b) => true,
        // Segment routing SIDs (RFC 9602).
        [0x5f00, ..] => true,
        // Unique local, link-local, site-local, multicast.
        [a, ..] => a & 0xfe00 == 0xfc00 || a & 0xff80 == 0xfe80 || a & 0xff00 == 0xff00,
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
            fec0::1 febf::1 ff02::1 5f00::1 2400::5efe:10.0.0.1";
        for text in reserved.split_ascii_whitespace() {
            let ip = text.parse().unwrap_or_else(|_| panic!("{text}"));
            assert!(is_reserved(ip), "{text} must be reserved");
        }
        let public = "1.1.1.1 8.8.8.8 100.63.255.255 100.128.0.1 172.15.0.1 172.32.0.1 192.0.1.1 192.0.2.1 \
            198.51.100.1 203.0.113.1 198.17.0.1 198.20.0.1 168.63.129.17 223.255.255.255 ::ffff:8.8.8.8 2606:4700::1111 \
            2001:db8::1 2001:4860:4860::8888 3fff::1 2003::1 64:ff9a::1";
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
}
