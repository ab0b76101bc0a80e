//! Source bindings: which (interface, address or prefix, MAC) is which agent.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// An EUI-48 address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MacAddress(pub [u8; 6]);

/// Why a binding was refused.
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
}

impl FromStr for MacAddress {
    type Err = BindingError;

    fn from_str(text: &str) -> Result<Self, BindingError> {
        let error = || BindingError::Mac(text.to_owned());
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
        let error = || BindingError::Source(text.to_owned());
        let (interface, rest) = text.split_once('=').ok_or_else(error)?;
        let (prefix, mac) = rest.rsplit_once(',').ok_or_else(error)?;
        let prefix = match prefix.parse::<IpAddr>() {
            Ok(address) => IpNet::from(address),
            Err(_) => prefix.parse::<IpNet>().map_err(|_| error())?.trunc(),
        };
        let mac = if mac == "any-mac" { None } else { Some(mac.parse()?) };
        if interface.is_empty() {
            Err(error())
        } else {
            Ok(Source { interface: interface.to_owned(), prefix, mac })
        }
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
