//! Named sets and geo data, checked and indexed: which of them a host or an address is in. Must never
//! match a name in the middle of a label.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::geo::{GEO_PREFIXES_MAX, Geo, asn_id};
use crate::host::quote;
use crate::prefix::{Prefix, PrefixIndex};
use crate::{Host, NamedSets};

/// Most sets in a bundle; each is at most one parent of a resource in a decision.
pub const SETS_MAX: usize = 1_024;
/// Most members of all sets together: a million prefixes, and room for what is cut out of them.
pub const SET_MEMBERS_MAX: usize = 1_200_000;
/// Longest name of a set, bytes.
pub const SET_NAME_BYTES_MAX: usize = 100;

/// Largest host set that is listed by [`Members::exact_host_sets`]: it is compared with others, again and again.
const EXACT_HOSTS_MAX: usize = 256;

/// Whether `name` may name a policy or a set: what is safe in a log line, a URL and a file name.
pub(crate) fn name_is_valid(name: &str) -> bool {
    (1..=SET_NAME_BYTES_MAX).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'/' | b':'))
}

/// What addresses can be in.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Class {
    /// `NetworkSet`.
    Set(String),
    /// `Asn`, by its id.
    Asn(String),
    /// `Country`.
    Country(String),
}

/// Prefixes of one class: ascending, each once.
pub(crate) type Prefixes = Arc<[IpNet]>;

/// Named sets and geo data, ready for look-ups.
#[derive(Clone, Debug, Default)]
pub(crate) struct Members {
    host_sets: Vec<String>,
    host_set_sizes: BTreeMap<String, usize>,
    exact: BTreeMap<String, Vec<u32>>,
    /// By suffix, without the `*.`.
    below: BTreeMap<String, Vec<u32>>,
    /// Classes by number, as the index has them.
    classes: Vec<Class>,
    prefixes: PrefixIndex,
    networks: BTreeMap<Class, Prefixes>,
    pub(crate) geo: GeoState,
}

/// What is known of ASNs and countries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct GeoState {
    /// There are data on ASNs.
    pub(crate) asns: bool,
    /// There are data on countries.
    pub(crate) countries: bool,
    /// Names are taken for known without data, to check text alone. Nothing may be decided so.
    pub(crate) is_assumed: bool,
}

impl Class {
    /// The class that an entity of this type and id is.
    pub(crate) fn of(kind: &str, id: &str) -> Option<Class> {
        match kind {
            "NetworkSet" => Some(Class::Set(id.to_owned())),
            "Asn" => Some(Class::Asn(id.to_owned())),
            "Country" => Some(Class::Country(id.to_owned())),
            _ => None,
        }
    }
}

impl Members {
    /// Checks and indexes.
    ///
    /// # Errors
    /// Every wrong member, as messages.
    pub(crate) fn new(sets: &NamedSets, geo: &Geo) -> Result<Members, Vec<String>> {
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
        if geo.len() > GEO_PREFIXES_MAX {
            problems.push(format!(
                "the ASNs and countries that the policy names have more than {GEO_PREFIXES_MAX} prefixes: name fewer"
            ));
        }
        let mut this = Members::default();
        if problems.is_empty() {
            for (number, (name, hosts)) in (0_u32..).zip(&sets.hosts) {
                this.add_hosts(number, name, hosts, &mut problems);
            }
            for (name, prefixes) in &sets.networks {
                this.add_networks(name, prefixes, &mut problems);
            }
            this.add_geo(geo, &mut problems);
            this.index();
        }
        if problems.is_empty() { Ok(this) } else { Err(problems) }
    }

    /// Takes every ASN and country for known, with no addresses: to check text where there are no data.
    pub(crate) fn assume_geo(&mut self) {
        self.geo.is_assumed = true;
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

    fn add_networks(&mut self, name: &str, prefixes: &BTreeSet<IpNet>, problems: &mut Vec<String>) {
        let wrong = prefixes.iter().filter_map(|prefix| check_prefix(*prefix).err());
        problems.extend(wrong.map(|why| format!("network set `{name}`: {why}")));
        self.networks.insert(Class::Set(name.to_owned()), prefixes.iter().copied().collect());
    }

    fn add_geo(&mut self, geo: &Geo, problems: &mut Vec<String>) {
        self.geo =
            GeoState { asns: geo.asns.is_some(), countries: geo.countries.is_some(), is_assumed: false };
        let asns = geo.asns.iter().flatten().map(|(number, p)| (Class::Asn(asn_id(*number)), p));
        let countries = geo.countries.iter().flatten().map(|(code, p)| (Class::Country(code.clone()), p));
        for (class, prefixes) in asns.chain(countries).filter(|(_, prefixes)| !prefixes.is_empty()) {
            let wrong = prefixes.iter().filter_map(|prefix| check_prefix(*prefix).err());
            problems.extend(wrong.map(|why| format!("the geo data: {why}")));
            let mut prefixes = prefixes.clone();
            prefixes.sort_unstable();
            prefixes.dedup();
            self.networks.insert(class, prefixes.into());
        }
    }

    fn index(&mut self) {
        self.classes = self.networks.keys().cloned().collect();
        let numbered = (0_u32..).zip(self.networks.values());
        let pairs = numbered.flat_map(|(n, prefixes)| prefixes.iter().map(move |p| (Prefix::of(*p), n)));
        self.prefixes = PrefixIndex::new(pairs.collect(), &[]);
    }

    /// How many members a host set has, if it exists.
    pub(crate) fn host_set_size(&self, name: &str) -> Option<usize> {
        self.host_set_sizes.get(name).copied()
    }

    /// Members of the host sets that are few and have no wildcards, by the sets' names.
    pub(crate) fn exact_host_sets(&self) -> BTreeMap<&str, Vec<&str>> {
        let mut sets: BTreeMap<&str, Vec<&str>> = self
            .host_set_sizes
            .iter()
            .filter(|(_, size)| **size <= EXACT_HOSTS_MAX)
            .map(|(name, _)| (name.as_str(), Vec::new()))
            .collect();
        for number in self.below.values().flatten() {
            if let Some(name) = self.host_sets.get(*number as usize) {
                sets.remove(name.as_str());
            }
        }
        for (host, numbers) in &self.exact {
            let names = numbers.iter().filter_map(|number| self.host_sets.get(*number as usize));
            for name in names {
                if let Some(hosts) = sets.get_mut(name.as_str()) {
                    hosts.push(host);
                }
            }
        }
        sets
    }

    /// The prefixes of a class, if it exists.
    pub(crate) fn class(&self, class: &Class) -> Option<&Prefixes> {
        self.networks.get(class)
    }

    /// Names of the host sets that `host` (canonical) is in.
    pub(crate) fn sets_of_host(&self, host: &Host, text: &str) -> BTreeSet<&str> {
        let numbers = self.numbers_of_host(host, text).into_iter();
        numbers.filter_map(|n| self.host_sets.get(n as usize)).map(String::as_str).collect()
    }

    /// Numbers of the host sets that `host` (canonical) is in, ascending.
    pub(crate) fn numbers_of_host(&self, host: &Host, text: &str) -> Vec<u32> {
        let mut numbers: Vec<u32> = self.exact.get(text).into_iter().flatten().copied().collect();
        if matches!(host, Host::Name(_)) && !self.below.is_empty() {
            let suffixes = text.match_indices('.').filter_map(|(at, _)| text.get(at + 1..));
            numbers.extend(suffixes.filter_map(|s| self.below.get(s)).flatten());
        }
        numbers.sort_unstable();
        numbers.dedup();
        numbers
    }

    /// The number of a host set, if it exists.
    pub(crate) fn host_set_number(&self, name: &str) -> Option<u32> {
        // In the order of their names, as they were added.
        let at = self.host_sets.binary_search_by(|set| set.as_str().cmp(name)).ok()?;
        u32::try_from(at).ok()
    }

    /// Some host that is in a host set, if there are any.
    pub(crate) fn a_host_in(&self, set: &str) -> Option<String> {
        let number = self.host_set_number(set)?;
        let of = |(text, sets): (&String, &Vec<u32>)| sets.contains(&number).then(|| text.clone());
        let below = || self.below.iter().find_map(of).map(|suffix| format!("host.{suffix}"));
        self.exact.iter().find_map(of).or_else(below)
    }

    /// The number of a class of addresses, if it exists.
    pub(crate) fn class_number(&self, class: &Class) -> Option<u32> {
        u32::try_from(self.classes.binary_search(class).ok()?).ok()
    }

    /// Numbers of the classes that `ip` (canonical) is in.
    pub(crate) fn numbers_of_address(&self, ip: IpAddr) -> Vec<u32> {
        self.prefixes.containing(ip, 0).into_iter().collect()
    }

    /// The classes that `ip` (canonical) is in, by a prefix of at least `shortest` bits.
    pub(crate) fn classes_of(&self, ip: IpAddr, shortest: u8) -> impl Iterator<Item = &Class> {
        let numbers = self.prefixes.containing(ip, shortest);
        numbers.into_iter().filter_map(|n| self.classes.get(n as usize))
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
