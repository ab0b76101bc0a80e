//! Small files of geo data, in the shapes that publishers give them.

#![allow(dead_code, clippy::allow_attributes, reason = "each test takes what it needs of it")]

use std::net::IpAddr;
use std::path::Path;

use ipnet::IpNet;

#[path = "../../../xtask/src/setup/mmdb.rs"]
pub mod writer;

use self::writer::{Writer, map, number, text};

/// Bits before an IPv4 network in the tree, which is one of IPv6.
const V4_BITS: u8 = 96;

/// A file with a record for each network.
pub fn file(database: &str, networks: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let mut writer = Writer::new();
    for (network, record) in networks {
        let net: IpNet = network.parse().expect("network");
        match net.network() {
            IpAddr::V4(v4) => writer.insert(u128::from(v4.to_bits()), V4_BITS + net.prefix_len(), record),
            IpAddr::V6(v6) => writer.insert(v6.to_bits(), net.prefix_len(), record),
        }
    }
    writer.finish(database, 1_780_000_000)
}

/// A file of autonomous systems.
pub fn asns(networks: &[(&str, u32)]) -> Vec<u8> {
    let record = |asn: u32| map(&[("autonomous_system_number", number(asn))]);
    file("Test-ASN", &networks.iter().map(|(net, asn)| (*net, record(*asn))).collect::<Vec<_>>())
}

/// A file of countries.
pub fn countries(networks: &[(&str, &str)]) -> Vec<u8> {
    let record = |code: &str| map(&[("country", map(&[("iso_code", text(code))]))]);
    file("Test-Country", &networks.iter().map(|(net, code)| (*net, record(code))).collect::<Vec<_>>())
}

/// Puts a file in place whole, as an operator should.
pub fn put(path: &Path, bytes: &[u8]) {
    let new = path.with_extension("new");
    std::fs::write(&new, bytes).expect("write");
    std::fs::rename(&new, path).expect("rename");
}
