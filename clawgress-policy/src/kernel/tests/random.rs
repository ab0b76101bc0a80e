//! Random agents, sets, policies and packets.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use clawgress_identity::{Agent, AgentId, AgentState, PolicyOwner};
use ipnet::IpNet;

use crate::address::reserved;
use crate::kernel::LIMITS_PER_CELL_MAX;
use crate::{NamedSets, PolicySet, Surroundings, Transport};

/// `SplitMix64`: small, seedable, and the same on every machine.
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(super) fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.next() % n as u64).unwrap()
    }

    pub(super) fn pick<T: Clone>(&mut self, list: &[T]) -> T {
        list[self.below(list.len())].clone()
    }
}

pub(super) const PREFIXES: [&str; 30] = [
    "0.0.0.0/0",
    "10.0.0.0/8",
    "10.1.0.0/16",
    "10.1.2.0/24",
    "10.1.2.128/25",
    "10.1.2.200/32",
    "10.255.255.255/32",
    "203.0.113.0/24",
    "203.0.113.0/25",
    "203.0.113.128/25",
    "127.0.0.0/8",
    "255.255.255.255/32",
    "169.254.0.0/16",
    "169.254.169.254/32",
    "192.168.0.0/16",
    "64:ff9b::/96",
    "fe80::/9",
    "fd00:ec2::/32",
    "0.0.0.0/1",
    "128.0.0.0/1",
    "::/0",
    "::/1",
    "8000::/1",
    "::/64",
    "::fffe:0:0/95",
    "2001:db8::/32",
    "2001:db8:1::/48",
    "2001:db8:1::7/128",
    "::1/128",
    "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff/128",
];
const ADDRESSES: [&str; 7] =
    ["10.1.2.200", "10.1.2.3", "203.0.113.5", "169.254.169.254", "2001:db8:1::7", "::1", "2001:db8::9"];
const PROTOCOLS: [&str; 6] = ["tcp", "udp", "icmp", "gre", "sit", "sctp"];
pub(super) const PORTS: [u16; 9] = [0, 1, 22, 80, 443, 444, 8080, 65_534, 65_535];
const SETS: [(&str, &[&str]); 4] = [
    ("nested", &["10.0.0.0/8", "10.1.2.0/24"]),
    ("halves", &["203.0.113.0/25", "203.0.113.128/25"]),
    ("mixed", &["10.1.0.0/16", "2001:db8::/32", "::/96"]),
    // Everything, and so nothing that is named but the rest.
    ("wide", &["0.0.0.0/0", "::/0", "10.1.2.0/24", "64:ff9b::/96"]),
];

const GEO: [(&str, &[&str]); 5] = [
    ("Asn::\"AS64500\"", &["10.1.2.0/25", "203.0.113.0/24", "2001:db8:1::/48"]),
    ("Asn::\"AS4200000001\"", &["203.0.113.64/26", "64:ff9b::/96"]),
    ("Country::\"DE\"", &["10.0.0.0/9", "203.0.113.128/25", "2001:db8::/33", "128.0.0.0/2"]),
    ("Country::\"FR\"", &["203.0.113.5/32", "fd00:ec2::/33", "127.0.0.0/9"]),
    ("Country::\"JP\"", &["::/0", "0.0.0.0/0"]),
];
const MOMENTS: [&str; 5] = [
    "2026-03-29T01:00:00Z",
    "2026-10-25T02:00:00+0200",
    "2026-11-25T18:00:00Z",
    "2026-11-26",
    "2026-11-29T23:30:00.000Z",
];
/// The Unix seconds of [`MOMENTS`].
const MOMENTS_S: [i64; 5] = [1_774_746_000, 1_792_886_400, 1_795_629_600, 1_795_651_200, 1_795_995_000];

fn surroundings() -> Surroundings {
    let mut geo = crate::set::tests::geo(&[], &[]);
    for (entity, list) in GEO {
        let id = entity.split('"').nth(1).unwrap();
        let prefixes = list.iter().map(|p| p.parse().unwrap()).collect();
        match id.strip_prefix("AS") {
            Some(number) => drop(geo.asns.as_mut().unwrap().insert(number.parse().unwrap(), prefixes)),
            None => drop(geo.countries.as_mut().unwrap().insert(id.to_owned(), prefixes)),
        }
    }
    Surroundings { geo, zone: crate::time::tests::berlin() }
}

/// A moment, often at one that policies speak of or near it.
pub(super) fn moment(r: &mut Random) -> i64 {
    let near = [0, -1, 1, 59_999, 60_000, 3_600_000, -3_600_000];
    let year = i64::try_from(r.next() % 31_536_000_000).unwrap();
    match r.below(3) {
        0 => 1_770_000_000_000 + year,
        _ => r.pick(&MOMENTS_S) * 1_000 + r.pick(&near),
    }
}

pub(super) fn sets() -> NamedSets {
    let set = |list: &[&str]| list.iter().map(|p| p.parse().unwrap()).collect::<BTreeSet<IpNet>>();
    NamedSets {
        networks: SETS.iter().map(|(name, list)| ((*name).to_owned(), set(list))).collect(),
        ..NamedSets::default()
    }
}

pub(super) fn agent(
    index: u32,
    id: &str,
    team: Option<&str>,
    environment: Option<&str>,
    role: Option<&str>,
) -> Agent {
    Agent {
        id: id.parse::<AgentId>().unwrap(),
        index,
        team: team.map(str::to_owned),
        project: None,
        environment: environment.map(str::to_owned),
        labels: role.map(|r| ("role".to_owned(), r.to_owned())).into_iter().collect(),
        state: AgentState::Active,
        sources: Vec::new(),
    }
}

pub(super) fn agents() -> Vec<Agent> {
    vec![
        agent(1, "web", Some("payments"), Some("prod"), Some("crawler")),
        agent(2, "web-2", Some("payments"), None, None),
        agent(3, "batch", None, Some("prod"), Some("batch")),
        agent(4, "acme/web", Some("payments"), Some("prod"), Some("crawler")),
        agent(5, "acme/other", Some("search"), None, None),
        agent(9, "lone", None, None, None),
    ]
}

/// What a policy names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Thing {
    Net(IpNet),
    Transport(Transport),
}

/// What a generated condition says, and what it names for one action, by the sense it is used in: written
/// down here a second time, from the text's making rather than from its parsing.
struct Condition {
    text: String,
    /// Its value for the action, if that is known before any request.
    known: Option<bool>,
    allows: Vec<Thing>,
    denies: Vec<Thing>,
    either: Vec<Thing>,
}

impl Condition {
    fn plain(text: impl Into<String>) -> Self {
        Condition { text: text.into(), known: None, allows: vec![], denies: vec![], either: vec![] }
    }

    fn known(text: &str, value: bool) -> Self {
        Condition { known: Some(value), ..Condition::plain(text) }
    }

    fn naming(text: String, prefixes: &[&str]) -> Self {
        let names: Vec<Thing> = prefixes.iter().map(|p| Thing::Net(prefix(p))).collect();
        Condition { allows: names.clone(), either: names, ..Condition::plain(text) }
    }

    fn asking(text: String, protocols: &[&str]) -> Self {
        let names: Vec<Thing> =
            protocols.iter().map(|p| Thing::Transport(Transport::from_name(p).unwrap())).collect();
        Condition { allows: names.clone(), either: names, ..Condition::plain(text) }
    }

    fn not(self, text: String) -> Self {
        let known = self.known.map(|value| !value);
        Condition { text, known, allows: self.denies, denies: self.allows, either: self.either }
    }

    /// `&&` if a false left side ends it, `||` if a true one does.
    fn join(self, other: Condition, ends: bool) -> Self {
        let text = format!("({} {} {})", self.text, if ends { "||" } else { "&&" }, other.text);
        match self.known {
            Some(value) if value == ends => Condition { text, ..self },
            Some(_) => Condition { text, ..other },
            None => {
                // Behind an open left side of `||`, or an open `&&` that is not false, nothing is known.
                let known = other.known.filter(|value| !ends && !value);
                if known.is_some() {
                    return Condition { known, ..Condition::plain(text) };
                }
                let both = |a: Vec<Thing>, b: Vec<Thing>| [a, b].concat();
                Condition {
                    text,
                    known,
                    allows: both(self.allows, other.allows),
                    denies: both(self.denies, other.denies),
                    either: both(self.either, other.either),
                }
            }
        }
    }

    fn choice(test: Condition, then: Condition, other: Condition) -> Self {
        let text = format!("(if {} then {} else {})", test.text, then.text, other.text);
        match test.known {
            Some(true) => Condition { text, ..then },
            Some(false) => Condition { text, ..other },
            None => {
                let unless = |taken: Option<bool>, value| {
                    if taken == Some(value) { Vec::new() } else { test.either.clone() }
                };
                Condition {
                    allows: [unless(then.known, false), then.allows, other.allows].concat(),
                    denies: [unless(then.known, true), then.denies, other.denies].concat(),
                    either: [test.either, then.either, other.either].concat(),
                    ..Condition::plain(text)
                }
            }
        }
    }
}

/// An address or a prefix.
fn prefix(text: &str) -> IpNet {
    text.parse().unwrap_or_else(|_| text.parse::<IpAddr>().unwrap().into())
}

fn principal_atom(r: &mut Random) -> String {
    match r.below(9) {
        0 => "principal == Agent::\"web\"".to_owned(),
        1 => "principal in Team::\"payments\"".to_owned(),
        2 => "principal in [Team::\"acme/search\", Team::\"payments\"]".to_owned(),
        3 => "principal in Tenant::\"acme\"".to_owned(),
        4 => "(principal.hasTag(\"role\") && principal.getTag(\"role\") == \"crawler\")".to_owned(),
        5 => "(principal has team && principal.team == Team::\"payments\")".to_owned(),
        6 => "principal.name like \"web*\"".to_owned(),
        7 => "[Agent::\"lone\", Agent::\"acme/web\"].contains(principal)".to_owned(),
        _ => "(principal.name == \"batch\" && 9223372036854775807 + 1 > 0)".to_owned(),
    }
}

fn network_atom(r: &mut Random) -> Condition {
    let subject = r.pick(&["context.ip", "resource.ip"]);
    let (one, two) = (r.pick(&ADDRESSES), r.pick(&ADDRESSES));
    match r.below(15) {
        // An ASN and a country name nothing.
        12 => Condition::plain(format!("resource in {}", r.pick(&GEO).0)),
        13 => Condition::plain(format!("resource in [{}, {}]", r.pick(&GEO[2..]).0, r.pick(&GEO[2..]).0)),
        14 => {
            let (name, members) = r.pick(&SETS);
            let geo = r.pick(&GEO).0;
            Condition::naming(format!("(resource in {geo} || resource in NetworkSet::\"{name}\")"), members)
        }
        0..=4 => {
            let range = r.pick(&PREFIXES);
            Condition::naming(format!("{subject}.isInRange(ip(\"{range}\"))"), &[range])
        }
        5 => Condition::naming(format!("{subject} == ip(\"{one}\")"), &[one]),
        6 => Condition::naming(format!("resource == Network::\"{one}\""), &[one]),
        7 | 8 => {
            let (name, members) = r.pick(&SETS);
            Condition::naming(format!("resource in NetworkSet::\"{name}\""), members)
        }
        9 => {
            let (name, range) = r.pick(&[
                ("isIpv4", &["0.0.0.0/0"][..]),
                ("isIpv6", &["::/0"]),
                ("isLoopback", &["127.0.0.0/8", "::1/128"]),
                ("isMulticast", &["224.0.0.0/4", "ff00::/8"]),
            ]);
            Condition::naming(format!("{subject}.{name}()"), range)
        }
        10 => Condition::naming(format!("[ip(\"{one}\"), ip(\"{two}\")].contains({subject})"), &[one, two]),
        _ => Condition::naming(String::new(), &[one]).not(format!("{subject} != ip(\"{one}\")")),
    }
}

fn port_atom(r: &mut Random) -> String {
    let port = r.pick(&PORTS);
    match r.below(8) {
        0..=4 => format!("context.port {} {port}", r.pick(&["==", "!=", "<", "<=", ">", ">="])),
        5 => format!("{port} {} context.port", r.pick(&["==", "<", "<=", ">", ">="])),
        _ => format!("[{port}, {}, {}].contains(context.port)", r.pick(&PORTS), r.pick(&PORTS)),
    }
}

fn time_atom(r: &mut Random) -> String {
    let (field, least, values) = r.pick(&[("hour", 0, 24), ("minute", 0, 60), ("weekday", 1, 7)]);
    let value = |r: &mut Random| least + r.below(values);
    let operator = r.pick(&["==", "!=", "<", "<=", ">", ">="]);
    match r.below(5) {
        0 => format!("context.time {operator} datetime(\"{}\")", r.pick(&MOMENTS)),
        1 => format!("datetime(\"{}\") {operator} context.time", r.pick(&MOMENTS)),
        2 => format!("[{}, {}].contains(context.{field})", value(r), value(r)),
        3 => format!("{} {operator} context.{field}", value(r)),
        _ => format!("context.{field} {operator} {}", value(r)),
    }
}

fn protocol_atom(r: &mut Random) -> Condition {
    let (one, two) = (r.pick(&PROTOCOLS), r.pick(&PROTOCOLS));
    match r.below(4) {
        0 => Condition::asking(String::new(), &[one]).not(format!("context.protocol != \"{one}\"")),
        1 => Condition::asking(format!("context.protocol == \"{one}\""), &[one]),
        _ => Condition::asking(format!("[\"{one}\", \"{two}\"].contains(context.protocol)"), &[one, two]),
    }
}

fn condition(r: &mut Random, depth: usize, action: Asked) -> Condition {
    if depth > 0 {
        let sub = |r: &mut Random| condition(r, depth - 1, action);
        match r.below(8) {
            0 | 1 => return sub(r).join(sub(r), false),
            2 | 3 => return sub(r).join(sub(r), true),
            4 => {
                let inner = sub(r);
                let text = format!("!({})", inner.text);
                return inner.not(text);
            }
            5 => return Condition::choice(sub(r), sub(r), sub(r)),
            _ => {}
        }
    }
    match r.below(14) {
        12 | 13 => Condition::plain(time_atom(r)),
        0..=4 => network_atom(r),
        5..=7 => Condition::plain(port_atom(r)),
        8 | 9 => protocol_atom(r),
        10 => {
            let (text, connect, direct) = r.pick(&[
                ("action == Action::\"connect\"", true, false),
                ("action in Action::\"opaque\"", false, true),
                ("context has ip", true, true),
                ("context has hour", true, true),
                ("(if context has minute then true else false)", true, true),
                ("true", true, true),
                ("false", false, false),
            ]);
            Condition::known(text, if action == Asked::Connect { connect } else { direct })
        }
        _ => Condition::plain(principal_atom(r)),
    }
}

/// The action whose request is thought of.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Asked {
    Connect,
    Direct,
}

/// A policy's text, and what it names for an action where it permits that.
fn policy(r: &mut Random, number: usize, asked: Asked) -> (String, Vec<Thing>) {
    let effect = if r.below(3) == 0 { "forbid" } else { "permit" };
    let principal = r.pick(&[
        "principal",
        "principal",
        "principal == Agent::\"web\"",
        "principal in Team::\"payments\"",
        "principal in Environment::\"prod\"",
        "principal in Tenant::\"default\"",
        "principal is Agent in Team::\"acme/payments\"",
        "principal is Agent",
    ]);
    let (action, guarded, connects, forwards) = r.pick(&[
        ("action == Action::\"connect\"", false, true, false),
        ("action == Action::\"connect\"", false, true, false),
        ("action == Action::\"direct\"", false, false, true),
        ("action in [Action::\"connect\", Action::\"direct\"]", false, true, true),
        ("action in Action::\"reach\"", true, true, false),
        ("action in [Action::\"opaque\", Action::\"http\"]", true, false, true),
        ("action", true, true, true),
    ]);
    let applies = if asked == Asked::Connect { connects } else { forwards };
    let (set, members) = r.pick(&SETS);
    let one = r.pick(&ADDRESSES);
    let (resource, mut names) = match r.below(9) {
        8 => (format!("resource in {}", r.pick(&GEO).0), vec![]),
        0 => (
            format!("resource in NetworkSet::\"{set}\""),
            members.iter().map(|p| Thing::Net(prefix(p))).collect(),
        ),
        1 => (format!("resource == Network::\"{one}\""), vec![Thing::Net(prefix(one))]),
        2 => ("resource is Network".to_owned(), vec![]),
        3 => (
            format!("resource is Network in NetworkSet::\"{set}\""),
            members.iter().map(|p| Thing::Net(prefix(p))).collect(),
        ),
        _ => ("resource".to_owned(), vec![]),
    };
    let mut text = format!("@id(\"p{number}\") {effect} ({principal}, {action}, {resource})");
    let mut whole: Option<Condition> = None;
    for _ in 0..r.below(3) {
        let depth = r.below(4);
        let mut clause = condition(r, depth, asked);
        if guarded {
            clause = match r.below(3) {
                0 => Condition::known("resource is Network", true).join(clause, false),
                1 => Condition::known("!(resource is Network)", false).join(clause, true),
                _ => Condition::choice(
                    Condition::known("resource is Network", true),
                    clause,
                    Condition::known("false", false),
                ),
            };
        }
        let word = r.pick(&["when", "when", "unless"]);
        text.push_str(&format!(" {word} {{ {} }}", clause.text));
        if word == "unless" {
            clause = clause.not(String::new());
        }
        whole = Some(match whole {
            Some(before) => before.join(clause, false),
            None => clause,
        });
    }
    text.push_str(";\n");
    names.extend(whole.into_iter().flat_map(|c| c.allows));
    names.retain(|thing| !matches!(thing, Thing::Net(net) if net.prefix_len() == 0));
    if effect == "forbid" || !applies {
        names.clear();
    }
    (text, names)
}

/// An obligation's text: a permit of `connect` in any shape, made one by annotations.
fn obligation(r: &mut Random, number: usize) -> Option<String> {
    let text = match r.below(3) {
        // Broad ones, so that what guards allow often meets some.
        0 => format!("@id(\"p{number}\") permit (principal, action == Action::\"connect\", resource);\n"),
        1 => format!(
            "@id(\"p{number}\") permit (principal, action == Action::\"connect\", resource) when {{ {} }};\n",
            port_atom(r)
        ),
        _ => policy(r, number, Asked::Connect).0,
    };
    let effect = r.pick(&["rate-limit", "throttle"]);
    let limit = r.pick(&[
        "10 packets/second",
        "1 MB/minute burst 3",
        "6 MB/minute",
        "64 KiB/second",
        "9 packets/hour burst 9",
        "600 packets/minute",
    ]);
    let per = r.pick(&["", "agent", "workload", "team", "project", "environment", "tenant"]);
    let per = if per.is_empty() { String::new() } else { format!("@per(\"{per}\") ") };
    let annotated =
        text.replacen(") permit (", &format!(") @effect(\"{effect}\") @limit(\"{limit}\") {per}permit ("), 1);
    (annotated != text && text.contains("action == Action::\"connect\", ")).then_some(annotated)
}

/// What each policy of a set names: for `connect`, for `direct`.
pub(super) type NamesOf = BTreeMap<String, [Vec<Thing>; 2]>;

/// A random set. Policies that can never apply are refused by validation, so they are left out.
pub(super) fn policies(r: &mut Random) -> (String, NamesOf, PolicySet) {
    // At most as many obligations as may apply at once.
    let (text, names_of) = texts(r, LIMITS_PER_CELL_MAX);
    let set = PolicySet::parse_in(&text, &sets(), &surroundings()).unwrap();
    (text, names_of, set)
}

/// A random set, and another for the platform; both have room for the limits of the other.
pub(super) fn two(r: &mut Random) -> (String, NamesOf, PolicySet, PolicySet) {
    let ((text, names_of), (above, _)) =
        (texts(r, LIMITS_PER_CELL_MAX / 2), texts(r, LIMITS_PER_CELL_MAX / 2));
    // Both must allow: one that mostly forbids leaves nothing to compare.
    let above = format!("{above}@id(\"base\") permit (principal, action, resource);\n");
    let above = if r.below(4) == 0 { above } else { above.replace(") forbid (", ") permit (") };
    let set = PolicySet::parse_in(&text, &sets(), &surroundings()).unwrap();
    let platform = PolicySet::parse_for(&PolicyOwner::Platform, &above, &sets(), &surroundings()).unwrap();
    (format!("{text}\n// platform\n{above}"), names_of, set, platform)
}

/// The text of a random set with at most so many obligations, and what its policies name.
fn texts(r: &mut Random, obligations_max: usize) -> (String, NamesOf) {
    let (mut text, mut names_of) = (String::new(), NamesOf::new());
    let guards = 1 + r.below(7);
    let obligations = r.below(obligations_max + 1);
    for number in 0..guards + obligations {
        let (policy, names, direct_names) = if number < guards {
            let mut again = Random(r.0);
            let (policy, names) = self::policy(r, number, Asked::Connect);
            let (_, direct_names) = self::policy(&mut again, number, Asked::Direct);
            (policy, names, direct_names)
        } else {
            let Some(obligation) = obligation(r, number) else { continue };
            // It opens nothing, whatever it names.
            (obligation, Vec::new(), Vec::new())
        };
        match PolicySet::parse_in(&policy, &sets(), &surroundings()) {
            Ok(_) => {
                text.push_str(&policy);
                names_of.insert(format!("p{number}"), [names, direct_names]);
            }
            Err(e) => assert!(
                e.problems.iter().all(|p| ["impossible", "applicable action", "never matches"]
                    .iter()
                    .any(|why| p.message.contains(why))),
                "{policy}\n{:#?}",
                e.problems
            ),
        }
    }
    (text, names_of)
}

pub(super) fn address(r: &mut Random) -> IpAddr {
    let near = |ip: IpAddr, r: &mut Random| match ip {
        IpAddr::V4(v4) => IpAddr::V4((v4.to_bits().wrapping_add([0, 1, u32::MAX][r.below(3)])).into()),
        IpAddr::V6(v6) => IpAddr::V6((v6.to_bits().wrapping_add([0, 1, u128::MAX][r.below(3)])).into()),
    };
    match r.below(10) {
        8 => near(r.pick(&reserved().collect::<Vec<_>>()).network(), r),
        9 => near(r.pick(&reserved().collect::<Vec<_>>()).broadcast(), r),
        0 => IpAddr::V4(u32::try_from(r.next() >> 32).unwrap().into()),
        1 => IpAddr::V6((u128::from(r.next()) << 64 | u128::from(r.next())).into()),
        2 => IpAddr::V6("10.1.2.7".parse::<std::net::Ipv4Addr>().unwrap().to_ipv6_mapped()),
        3 => r.pick(&ADDRESSES).parse().unwrap(),
        4 => near(r.pick(&PREFIXES).parse::<IpNet>().unwrap().broadcast(), r),
        _ => near(r.pick(&PREFIXES).parse::<IpNet>().unwrap().network(), r),
    }
}
