//! Named sets, checked and indexed: which sets a host or an address is in. Must never match a name
//! in the middle of a label.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use crate::host::quote;
use crate::{Host, NamedSets};

/// Most sets in a bundle; each is at most one parent of a resource in a decision.
pub const SETS_MAX: usize = 1_024;
/// Most members of all sets together: what the kernel's destination table holds in one slot.
pub const SET_MEMBERS_MAX: usize = 131_072;
/// Longest name of a set, bytes.
pub const SET_NAME_BYTES_MAX: usize = 100;

/// Whether `name` may name a policy or a set: what is safe in a log line, a URL and a file name.
pub(crate) fn name_is_valid(name: &str) -> bool {
    (1..=SET_NAME_BYTES_MAX).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'/' | b':'))
}

/// Prefixes to values, by longest-first or all matches.
#[derive(Clone, Debug, Default)]
pub(crate) struct PrefixIndex {
    by_prefix: BTreeMap<IpNet, Vec<u32>>,
    lengths_v4: BTreeSet<u8>,
    lengths_v6: BTreeSet<u8>,
}

impl PrefixIndex {
    pub(crate) fn insert(&mut self, prefix: IpNet, value: u32) {
        let lengths = match prefix {
            IpNet::V4(_) => &mut self.lengths_v4,
            IpNet::V6(_) => &mut self.lengths_v6,
        };
        lengths.insert(prefix.prefix_len());
        let values = self.by_prefix.entry(prefix.trunc()).or_default();
        if !values.contains(&value) {
            values.push(value);
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.by_prefix.is_empty()
    }

    /// Values of every prefix of at least `shortest` bits that contains `ip`, each once, ascending.
    pub(crate) fn containing(&self, ip: IpAddr, shortest: u8) -> BTreeSet<u32> {
        let lengths = if ip.is_ipv4() { &self.lengths_v4 } else { &self.lengths_v6 };
        lengths
            .range(shortest..)
            .filter_map(|length| IpNet::new(ip, *length).ok())
            .filter_map(|prefix| self.by_prefix.get(&prefix.trunc()))
            .flatten()
            .copied()
            .collect()
    }
}

/// Named sets, ready for look-ups.
#[derive(Clone, Debug, Default)]
pub(crate) struct Members {
    host_sets: Vec<String>,
    host_set_sizes: BTreeMap<String, usize>,
    exact: BTreeMap<String, Vec<u32>>,
    /// By suffix, without the `*.`.
    below: BTreeMap<String, Vec<u32>>,
    network_sets: Vec<String>,
    prefixes: PrefixIndex,
    networks: BTreeMap<String, BTreeSet<IpNet>>,
}

impl Members {
    /// Checks and indexes.
    ///
    /// # Errors
    /// Every wrong member, as messages.
    pub(crate) fn new(sets: &NamedSets) -> Result<Members, Vec<String>> {
        let mut problems = Vec::new();
        let members = sets.hosts.values().map(BTreeSet::len).sum::<usize>()
            + sets.networks.values().map(BTreeSet::len).sum::<usize>();
        if sets.hosts.len() + sets.networks.len() > SETS_MAX {
            problems.push(format!("more than {SETS_MAX} named sets: merge some"));
        }
        if members > SET_MEMBERS_MAX {
            problems.push(format!(
                "more than {SET_MEMBERS_MAX} members in all named sets: aggregate prefixes or remove some"
            ));
        }
        for name in sets.hosts.keys().chain(sets.networks.keys()).filter(|n| !name_is_valid(n)) {
            problems.push(format!(
                "`{}` cannot name a set: use 1 to {SET_NAME_BYTES_MAX} letters, digits, `-`, `_`, `.`, `/` or `:`",
                quote(name)
            ));
        }
        let mut this = Members::default();
        if problems.is_empty() {
            for (number, (name, hosts)) in (0_u32..).zip(&sets.hosts) {
                this.add_hosts(number, name, hosts, &mut problems);
            }
            for (number, (name, prefixes)) in (0_u32..).zip(&sets.networks) {
                this.add_networks(number, name, prefixes, &mut problems);
            }
        }
        if problems.is_empty() { Ok(this) } else { Err(problems) }
    }

    fn add_hosts(&mut self, number: u32, name: &str, hosts: &BTreeSet<String>, problems: &mut Vec<String>) {
        self.host_sets.push(name.to_owned());
        self.host_set_sizes.insert(name.to_owned(), hosts.len());
        for member in hosts {
            let (map, text) = match member.strip_prefix("*.") {
                Some(suffix) => (&mut self.below, suffix),
                None => (&mut self.exact, member.as_str()),
            };
            match check_host(text, member.starts_with("*.")) {
                Ok(()) => map.entry(text.to_owned()).or_default().push(number),
                Err(why) => problems.push(format!("host set `{name}`: {why}")),
            }
        }
    }

    fn add_networks(
        &mut self,
        number: u32,
        name: &str,
        prefixes: &BTreeSet<IpNet>,
        problems: &mut Vec<String>,
    ) {
        self.network_sets.push(name.to_owned());
        for prefix in prefixes {
            match check_prefix(*prefix) {
                Ok(()) => self.prefixes.insert(*prefix, number),
                Err(why) => problems.push(format!("network set `{name}`: {why}")),
            }
        }
        self.networks.insert(name.to_owned(), prefixes.clone());
    }

    /// How many members a host set has, if it exists.
    pub(crate) fn host_set_size(&self, name: &str) -> Option<usize> {
        self.host_set_sizes.get(name).copied()
    }

    /// The prefixes of a network set.
    pub(crate) fn network_set(&self, name: &str) -> Option<&BTreeSet<IpNet>> {
        self.networks.get(name)
    }

    /// Names of the host sets that `host` (canonical) is in.
    pub(crate) fn sets_of_host(&self, host: &Host, text: &str) -> BTreeSet<&str> {
        let mut numbers: BTreeSet<u32> = self.exact.get(text).into_iter().flatten().copied().collect();
        if matches!(host, Host::Name(_)) {
            let suffixes = text.match_indices('.').filter_map(|(at, _)| text.get(at + 1..));
            numbers.extend(suffixes.filter_map(|s| self.below.get(s)).flatten());
        }
        numbers.into_iter().filter_map(|n| self.host_sets.get(n as usize)).map(String::as_str).collect()
    }

    /// Names of the network sets that `ip` (canonical) is in, by a prefix of at least `shortest` bits.
    pub(crate) fn sets_of_ip(&self, ip: IpAddr, shortest: u8) -> BTreeSet<&str> {
        let numbers = self.prefixes.containing(ip, shortest);
        numbers.into_iter().filter_map(|n| self.network_sets.get(n as usize)).map(String::as_str).collect()
    }
}

/// Checks one member of a host set (without `*.`).
fn check_host(text: &str, below: bool) -> Result<(), String> {
    if text.contains('*') {
        return Err(format!(
            "`{}` has a `*` inside: only a leading `*.` is a wildcard, for every name below",
            quote(text)
        ));
    }
    let host = Host::parse(text).map_err(|e| e.to_string())?;
    let canonical = host.to_string();
    let prefix = if below { "*." } else { "" };
    match host.address() {
        Some(_) if below => {
            Err(format!("`*.{}` is an address, and nothing is below an address", quote(text)))
        }
        _ if canonical != text => {
            Err(format!("`{prefix}{}` is not in canonical form: write `{prefix}{canonical}`", quote(text)))
        }
        _ => Ok(()),
    }
}

/// Checks that a prefix says what it matches.
pub(crate) fn check_prefix(prefix: IpNet) -> Result<(), String> {
    if prefix != prefix.trunc() {
        return Err(format!("`{prefix}` has bits set behind its length: write `{}`", prefix.trunc()));
    }
    if let IpNet::V6(v6) = prefix
        && v6.prefix_len() >= 96
        && let Some(v4) = v6.addr().to_ipv4_mapped()
    {
        return Err(format!(
            "`{prefix}` is IPv4-mapped, which is judged as IPv4: write `{v4}/{}`",
            v6.prefix_len() - 96
        ));
    }
    Ok(())
}
