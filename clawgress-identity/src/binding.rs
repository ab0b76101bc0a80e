//! Source bindings: which (interface, address or prefix, MAC) is which agent.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::quote::quote;

/// An EUI-48 address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MacAddress(pub [u8; 6]);

/// Longest interface name, bytes (`IFNAMSIZ` less the NUL).
const INTERFACE_BYTES_MAX: usize = 15;

/// Why a binding was refused. The quoted text is escaped and shortened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BindingError {
    /// Not a MAC address.
    #[error("`{0}` is not a MAC address: write six hex bytes such as `02:00:00:00:00:01`")]
    Mac(String),
    /// Not a source.
    #[error(
        "`{0}` is not a source: write `INTERFACE=ADDRESS[/PREFIX],MAC`, or `,any-mac` in place of the MAC where the subnet is routed"
    )]
    Source(String),
    /// Bits are set behind the prefix length: one host or its network may be meant.
    #[error(
        "`{0}` has bits set behind its length: write the address alone for one host, or `{1}` for the network"
    )]
    HostBits(String, String),
    /// The interface name is not one the kernel allows.
    #[error("`{0}` is not an interface name: 1 to 15 bytes without space, `/`, `:` or `,`")]
    Interface(String),
    /// No host sends from this MAC address.
    #[error("`{0}` is not the address of one host: a source MAC is neither zero nor a group address")]
    GroupMac(MacAddress),
}

impl FromStr for MacAddress {
    type Err = BindingError;

    fn from_str(text: &str) -> Result<Self, BindingError> {
        let error = || BindingError::Mac(quote(text));
        let mut mac = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut mac {
            let part = parts.next().filter(|p| p.len() == 2 && p.bytes().all(|b| b.is_ascii_hexdigit()));
            *byte = u8::from_str_radix(part.ok_or_else(error)?, 16).map_err(|_| error())?;
        }
        if parts.next().is_some() { Err(error()) } else { Ok(MacAddress(mac)) }
    }
}

impl TryFrom<String> for MacAddress {
    type Error = BindingError;

    fn try_from(text: String) -> Result<Self, BindingError> {
        text.parse()
    }
}

impl From<MacAddress> for String {
    fn from(mac: MacAddress) -> String {
        mac.to_string()
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// Where an agent's traffic comes from.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// Name of the agents' interface the traffic comes in by.
    pub interface: String,
    /// Source address or prefix.
    pub prefix: IpNet,
    /// The MAC address it must come from; `None` only by explicit choice (`any-mac`).
    pub mac: Option<MacAddress>,
}

impl FromStr for Source {
    type Err = BindingError;

    fn from_str(text: &str) -> Result<Self, BindingError> {
        let error = || BindingError::Source(quote(text));
        let (interface, rest) = text.split_once('=').ok_or_else(error)?;
        let (prefix, mac) = rest.rsplit_once(',').ok_or_else(error)?;
        if !interface_is_valid(interface) {
            return Err(BindingError::Interface(quote(interface)));
        }
        let prefix = parse_prefix(prefix).ok_or_else(error)?;
        if prefix != prefix.trunc() {
            return Err(BindingError::HostBits(prefix.to_string(), prefix.trunc().to_string()));
        }
        let mac = if mac == "any-mac" { None } else { Some(mac.parse()?) };
        if let Some(mac) = mac.filter(MacAddress::is_group) {
            return Err(BindingError::GroupMac(mac));
        }
        Ok(Source { interface: interface.to_owned(), prefix, mac })
    }
}

/// An address or a prefix; IPv4-mapped IPv6 is IPv4, as the kernel plane sees it.
fn parse_prefix(text: &str) -> Option<IpNet> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Some(IpNet::from(address.to_canonical()));
    }
    let prefix = text.parse::<IpNet>().ok()?;
    match prefix {
        IpNet::V6(v6) if v6.addr().to_ipv4_mapped().is_some() => None,
        _ => Some(prefix),
    }
}

fn interface_is_valid(name: &str) -> bool {
    (1..=INTERFACE_BYTES_MAX).contains(&name.len())
        && !matches!(name, "." | "..")
        && name.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b'/' | b':' | b','))
}

impl MacAddress {
    /// Whether no single host has it: zero, multicast or broadcast (IEEE 802 individual/group bit).
    #[must_use]
    pub fn is_group(&self) -> bool {
        self.0 == [0; 6] || self.0.first().is_some_and(|b| b & 1 == 1)
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={},", self.interface, self.prefix)?;
        match self.mac {
            Some(mac) => mac.fmt(f),
            None => f.write_str("any-mac"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn macs() {
        for (text, printed) in
            [("02:00:00:00:00:01", "02:00:00:00:00:01"), ("AA:bb:0C:dd:EE:0f", "aa:bb:0c:dd:ee:0f")]
        {
            assert_eq!(text.parse::<MacAddress>().unwrap().to_string(), printed);
        }
        for text in [
            "",
            "02:00:00:00:00",
            "02:00:00:00:00:01:02",
            "2:0:0:0:0:1",
            "02-00-00-00-00-01",
            "02:00:00:00:00:0g",
            "02:00:00:00:00:+1",
            "02:00:00:00:00:01 ",
            ":02:00:00:00:00:01",
            "020000000001",
            "０２:00:00:00:00:01",
        ] {
            assert!(text.parse::<MacAddress>().is_err(), "`{text}`");
        }
    }

    #[test]
    fn sources() {
        for (text, printed) in [
            ("eth0=10.0.0.2,02:00:00:00:00:01", "eth0=10.0.0.2/32,02:00:00:00:00:01"),
            ("eth0=10.0.0.0/24,any-mac", "eth0=10.0.0.0/24,any-mac"),
            ("br-lan.7=2001:db8::2,02:00:00:00:00:0A", "br-lan.7=2001:db8::2/128,02:00:00:00:00:0a"),
            ("eth0=2001:db8::/64,any-mac", "eth0=2001:db8::/64,any-mac"),
            ("eth0=::ffff:10.0.0.2,any-mac", "eth0=10.0.0.2/32,any-mac"),
        ] {
            let source: Source = text.parse().unwrap_or_else(|e| panic!("{text}: {e}"));
            assert_eq!(source.to_string(), printed);
            assert_eq!(printed.parse(), Ok(source));
        }
        for (text, message) in [
            ("", "is not a source"),
            ("eth0", "is not a source"),
            ("eth0=10.0.0.2", "is not a source"),
            ("10.0.0.2,any-mac", "is not a source"),
            ("eth0=10.0.0.2,", "`` is not a MAC address"),
            ("eth0=10.0.0.2,any", "`any` is not a MAC address"),
            ("eth0=10.0.0.2,ANY-MAC", "`ANY-MAC` is not a MAC address"),
            ("=10.0.0.2,any-mac", "is not an interface name"),
            ("a-name-too-long-x=10.0.0.2,any-mac", "is not an interface name"),
            ("a/b=10.0.0.2,any-mac", "is not an interface name"),
            ("a b=10.0.0.2,any-mac", "is not an interface name"),
            ("..=10.0.0.2,any-mac", "is not an interface name"),
            (
                "eth0=10.0.0.2/24,any-mac",
                "`10.0.0.2/24` has bits set behind its length: write the address alone for one host, or `10.0.0.0/24`",
            ),
            ("eth0=::ffff:10.0.0.0/120,any-mac", "is not a source"),
            ("eth0=10.0.0.2/33,any-mac", "is not a source"),
            ("eth0=host,any-mac", "is not a source"),
            ("eth0=10.0.0.2,ff:ff:ff:ff:ff:ff", "is not the address of one host"),
            ("eth0=10.0.0.2,01:00:5e:00:00:01", "is not the address of one host"),
            ("eth0=10.0.0.2,00:00:00:00:00:00", "is not the address of one host"),
        ] {
            let error = text.parse::<Source>().unwrap_err().to_string();
            assert!(error.contains(message), "{text}: {error}");
        }
    }

    proptest::proptest! {
        #[test]
        fn print_then_parse_is_identity(
            interface in "[a-z][a-z0-9.@_-]{0,14}", address: [u8; 16], v4: bool, length in 0_u8..=128, mac: Option<[u8; 6]>
        ) {
            let prefix = if v4 {
                let octets: [u8; 4] = address[..4].try_into().unwrap();
                IpNet::new(IpAddr::from(octets), length.min(32)).unwrap().trunc()
            } else {
                IpNet::new(IpAddr::from(address), length).unwrap().trunc()
            };
            let mac = mac.map(MacAddress).filter(|m| !m.is_group());
            let mapped = matches!(prefix, IpNet::V6(p) if p.addr().to_ipv4_mapped().is_some());
            let source = Source { interface, prefix, mac };
            if !mapped {
                assert_eq!(source.to_string().parse(), Ok(source));
            }
        }

        #[test]
        fn arbitrary_text_never_panics(text in "\\PC{0,60}") {
            let _ = text.parse::<Source>();
            let _ = text.parse::<MacAddress>();
        }
    }
}
