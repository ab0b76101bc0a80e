//! Names and addresses of the lab's internet. All from documentation prefixes (RFC 5737, RFC 3849)
//! and private ones; none of them is reachable from the machine itself.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

const fn v4(a: u8, b: u8, c: u8, d: u8) -> Ipv4Addr {
    Ipv4Addr::new(a, b, c, d)
}

const fn v6(subnet: u16, host: u16) -> Ipv6Addr {
    Ipv6Addr::new(0x2001, 0xdb8, subnet, 0, 0, 0, 0, host)
}

const fn agents_v6(host: u16) -> Ipv6Addr {
    Ipv6Addr::new(0xfd70, 0, 0, 0, 0, 0, 0, host)
}

/// An end of a link: both its addresses, and its MAC where policy depends on it.
#[derive(Clone, Copy, Debug)]
pub struct End {
    /// IPv4.
    pub v4: Ipv4Addr,
    /// IPv6.
    pub v6: Ipv6Addr,
    /// MAC.
    pub mac: &'static str,
}

/// The gateway's end of the agents' subnet (a /24 and a /64).
pub const GATEWAY: End = End { v4: v4(10, 70, 0, 1), v6: agents_v6(0x01), mac: "02:70:00:00:00:01" };
/// The host whose source is bound to an agent.
pub const KNOWN: End = End { v4: v4(10, 70, 0, 10), v6: agents_v6(0x10), mac: "02:70:00:00:00:10" };
/// The host nobody knows.
pub const ANON: End = End { v4: v4(10, 70, 0, 20), v6: agents_v6(0x20), mac: "02:70:00:00:00:20" };
/// The gateway's uplink.
pub const UPLINK: End = End { v4: v4(192, 0, 2, 2), v6: v6(0xffff, 2), mac: "02:70:00:00:01:02" };
/// The outside's end of the uplink.
pub const OUTSIDE: End = End { v4: v4(192, 0, 2, 1), v6: v6(0xffff, 1), mac: "02:70:00:00:01:01" };

/// Port of the explicit proxy.
pub const PROXY_PORT: u16 = 3128;

/// The authoritative DNS server for `.test`.
pub const DNS: (Ipv4Addr, Ipv6Addr) = (v4(203, 0, 113, 53), v6(0x113, 53));

/// The networks of the honest servers.
pub const SERVERS: (&str, &str) = ("203.0.113.0/24", "2001:db8:113::/64");
/// FORBIDDEN: nothing an agent does may bring a packet here. Every packet is counted on arrival, and
/// every TCP and UDP port is answered by a sink that counts payload.
pub const FORBIDDEN: (&str, &str) = ("198.51.100.0/24", "2001:db8:51::/64");
/// The half of FORBIDDEN that `connect` policies of the lab permit, so that only names keep agents out.
pub const FORBIDDEN_BY_NAME: (&str, &str) = ("198.51.100.0/25", "2001:db8:51::/80");

/// A TLS and HTTP server whose every request is allowed by the lab's policy.
pub const API: &str = "api.allowed.test";
/// Another one, of which policy permits `GET /public/*` only.
pub const WEB: &str = "web.allowed.test";
/// An OpenAI-compatible mock, at ports 80 and 443.
pub const LLM: &str = "llm.allowed.test";
/// Has an IPv6 address only.
pub const V6_ONLY: &str = "six.allowed.test";
/// FORBIDDEN, by name: its address is permitted.
pub const SECRET: &str = "secret.denied.test";
/// FORBIDDEN, because policy wants its TLS read, and it can't be.
pub const INSPECT: &str = "inspect.allowed.test";
/// FORBIDDEN, by address: kept out in the kernel.
pub const BLOCKED: &str = "blocked.denied.test";
/// An allowed name that resolves to the gateway itself.
pub const REBIND: &str = "rebind.allowed.test";
/// An allowed name that resolves to a cloud's metadata service.
pub const METADATA: &str = "metadata.allowed.test";

/// A name that policies of DNS open a port of: [`DATABASE_PORT`].
pub const DATABASE: &str = "db.allowed.test";
/// Port of a server outside that is neither a web server's nor permitted by its address.
pub const DATABASE_PORT: u16 = 5432;
/// A web server that speaks HTTP/2 over TLS, and HTTP/1.1.
pub const TWO: &str = "two.allowed.test";
/// Zones whose questions the outside's DNS server takes to a server of their own, at this port of its loopback: who
/// serves them speaks with whoever asks.
pub const DELEGATED: [(&str, u16); 2] = [(IODINE, 5301), (DNS2TCP, 5302)];
/// The zone of a tunnel by iodine.
pub const IODINE: &str = "iodine.allowed.test";
/// The zone of a tunnel by dns2tcp.
pub const DNS2TCP: &str = "dns2tcp.allowed.test";
/// Has a `TXT` record larger than a datagram.
pub const LARGE: &str = "large.allowed.test";

/// A name and what it resolves to.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// The name, without trailing dot.
    pub name: &'static str,
    /// `A`.
    pub v4: Option<Ipv4Addr>,
    /// `AAAA`.
    pub v6: Option<Ipv6Addr>,
}

impl Entry {
    const fn both(name: &'static str, v4: Ipv4Addr, v6: Ipv6Addr) -> Entry {
        Entry { name, v4: Some(v4), v6: Some(v6) }
    }
}

/// The zone. Names of FORBIDDEN are in 198.51.100.0/24 and 2001:db8:51::/64.
pub const ZONE: &[Entry] = &[
    Entry::both(API, v4(203, 0, 113, 10), v6(0x113, 0x10)),
    Entry::both(WEB, v4(203, 0, 113, 11), v6(0x113, 0x11)),
    Entry::both(LLM, v4(203, 0, 113, 12), v6(0x113, 0x12)),
    Entry { name: V6_ONLY, v4: None, v6: Some(v6(0x113, 0x13)) },
    Entry::both(SECRET, v4(198, 51, 100, 66), v6(0x51, 0x66)),
    Entry::both(INSPECT, v4(198, 51, 100, 67), v6(0x51, 0x67)),
    Entry { name: BLOCKED, v4: Some(v4(198, 51, 100, 130)), v6: Some(BLOCKED_V6) },
    Entry::both(DATABASE, v4(203, 0, 113, 14), v6(0x113, 0x14)),
    Entry::both(LARGE, v4(203, 0, 113, 15), v6(0x113, 0x15)),
    Entry::both(TWO, v4(203, 0, 113, 16), v6(0x113, 0x16)),
    Entry { name: REBIND, v4: Some(GATEWAY.v4), v6: None },
    Entry { name: METADATA, v4: Some(v4(169, 254, 169, 254)), v6: None },
];

/// Outside [`FORBIDDEN_BY_NAME`].
const BLOCKED_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x51, 0, 1, 0, 0, 0x130);

/// The zone's entry for `name`.
#[must_use]
pub fn entry(name: &str) -> Option<&'static Entry> {
    ZONE.iter().find(|e| e.name == name)
}

/// The IPv4 and IPv6 addresses of `name`.
#[must_use]
pub fn addresses(name: &str) -> Vec<IpAddr> {
    let entry = entry(name);
    let v4 = entry.and_then(|e| e.v4).map(IpAddr::V4);
    v4.into_iter().chain(entry.and_then(|e| e.v6).map(IpAddr::V6)).collect()
}

/// RFC 4648 section 4, for `Proxy-Authorization: Basic`.
#[must_use]
pub fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let bits = chunk.iter().fold(0_usize, |n, b| n << 8 | usize::from(*b)) << (8 * (3 - chunk.len()));
        for place in 0..4 {
            let letter = ALPHABET.get((bits >> (18 - 6 * place)) & 63).filter(|_| place <= chunk.len());
            text.push(char::from(*letter.unwrap_or(&b'=')));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_of_the_rfc() {
        for (bytes, text) in
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")]
        {
            assert_eq!(base64(bytes.as_bytes()), text);
        }
    }

    #[test]
    fn the_zone_is_consistent_with_the_networks() {
        for name in [SECRET, INSPECT, BLOCKED] {
            for ip in addresses(name) {
                assert!(
                    ip.to_string().starts_with("198.51.100.") || ip.to_string().starts_with("2001:db8:51:")
                );
            }
        }
        assert!(entry("unknown.test").is_none());
    }
}
