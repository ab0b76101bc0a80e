//! What a name that may be resolved opens besides: ports of its addresses that the kernel forwards, by
//! `@direct("tcp 5432")` on a permit of `resolve`; and which reserved addresses an answer may hold. Must never open
//! what a forbid of `direct` denies, nor a port whose addresses many names share.

use std::collections::BTreeSet;
use std::net::IpAddr;

use cedar_policy_core::ast::Effect;
use cedar_policy_core::parser::Loc;
use clawgress_ebpf_common::DropReason;
use clawgress_identity::Agent;

use super::parse::applies;
use super::syntax::Policy;
use super::text::Source;
use super::{Inner, PolicySet};
use crate::PolicyProblem;
use crate::host::quote;
use crate::kernel::first_ports;
use crate::request::{Operation, Request, Transport};
use crate::vocabulary::ActionKind;

/// The annotation.
pub(super) const DIRECT: &str = "direct";
/// Most ports that one permit opens: each is an entry of the kernel's table for each address of an answer.
const PORTS_MAX: usize = 8;
/// Ports that are never opened: web servers' addresses are shared by many names, and DNS is the gateway's.
const PORTS_SHUT: [u16; 3] = [53, 80, 443];
/// Ports at which a reserved address is asked for at most; a policy that tells more apart than this opens none by name.
const CELLS_MAX: usize = 4096;

/// A protocol and a port.
pub type Opening = (Transport, u16);

/// Reads what a policy opens, if it says so.
pub(super) fn read(
    policy: &Policy,
    id: &str,
    is_guard: bool,
    source: &Source<'_>,
    problems: &mut Vec<PolicyProblem>,
) -> Vec<Opening> {
    let Some((_, found)) = policy.annotations().find(|(key, _)| key.to_string() == DIRECT) else {
        return Vec::new();
    };
    let at = found.loc.as_ref().or_else(|| policy.loc()).map(Loc::start);
    let mut actions = ActionKind::ALL.into_iter().filter(|action| applies(policy, *action));
    let is_resolve = actions.next() == Some(ActionKind::Resolve) && actions.next().is_none();
    let read = if !is_resolve || policy.effect() == Effect::Forbid || !is_guard {
        Err("`@direct` is for a permit of `resolve` alone, without an effect or a mode: write `action == Action::\"resolve\"`, or remove it".to_owned())
    } else {
        ports(found.val.as_str())
    };
    read.unwrap_or_else(|message| {
        problems.push(source.problem(Some(id), at, message));
        Vec::new()
    })
}

/// `tcp 5432, udp 123`.
fn ports(text: &str) -> Result<Vec<Opening>, String> {
    let mut opened = BTreeSet::new();
    for part in text.split(',') {
        let words: Vec<&str> = part.split_ascii_whitespace().collect();
        let [protocol, port] = words.as_slice() else {
            return Err(format!(
                "`{}` is no port to open: write such as `tcp 5432`, and commas between several",
                quote(part)
            ));
        };
        let transport = match *protocol {
            "tcp" => Transport::Tcp,
            "udp" => Transport::Udp,
            _ => {
                return Err(format!(
                    "`{}` can't be opened for a name: write `tcp` or `udp`",
                    quote(protocol)
                ));
            }
        };
        let number = Some(*port).filter(|port| port.bytes().all(|b| b.is_ascii_digit()));
        let number = number.and_then(|port| port.parse().ok()).filter(|port| *port != 0);
        let port: u16 = number
            .ok_or_else(|| format!("`{}` is not a port: write a number from 1 to 65535", quote(port)))?;
        if PORTS_SHUT.contains(&port) {
            return Err(format!(
                "port {port} can't be opened for a name: what is permitted by its address alone would be any name there: permit `tls` or `http`, or `resolve`"
            ));
        }
        opened.insert((transport, port));
    }
    if opened.len() > PORTS_MAX {
        return Err(format!(
            "{} ports, and there may be {PORTS_MAX}: permit the networks `direct`",
            opened.len()
        ));
    }
    Ok(opened.into_iter().collect())
}

impl Inner {
    /// Whether any permit of a name opens a port.
    pub(crate) fn opens_by_name(&self) -> bool {
        !self.openings.is_empty()
    }
}

impl PolicySet {
    /// Whether any permit of a name opens a port.
    pub(crate) fn opens_by_name(&self) -> bool {
        self.halves().any(Inner::opens_by_name)
    }

    /// What the permits of these ids, by which a name may be resolved, open of an address that it has: nothing that is
    /// forbidden `direct`, or that can't be judged.
    ///
    /// Where the platform's set stands above this one, both have to open it: each by a permit of the name, or because it
    /// permits the address.
    #[must_use]
    pub fn opens(&self, policies: &[String], agent: &Agent, ip: IpAddr) -> Vec<Opening> {
        let opened: BTreeSet<Opening> = self.halves().flat_map(|half| half.opened(policies)).collect();
        let opens = |half: &Inner, opening: Opening| {
            let (transport, port) = opening;
            let asked = |operation| Request { agent, operation };
            let direct = asked(Operation::Direct { ip, port, transport });
            let by_name = || half.opened(policies).any(|opened| opened == opening);
            match half.decide_lowered(&direct, self.given()).verdict {
                Ok(()) => {
                    let connect = asked(Operation::Connect { ip, port, transport });
                    by_name() || half.reached(&connect, self.given()).is_allow()
                }
                // The name's permit stands for what no address was permitted.
                Err(DropReason::PolicyDenied) => by_name(),
                Err(_) => false,
            }
        };
        opened.into_iter().filter(|opening| self.halves().all(|half| opens(half, *opening))).collect()
    }

    /// Whether the agent may reach the address at any port, by TCP or UDP: whether policy names it, if it is reserved.
    #[must_use]
    pub fn reaches(&self, agent: &Agent, ip: IpAddr) -> bool {
        // Port 0 is of a cell that may go on to 1.
        let ports: BTreeSet<u16> = self.halves().flat_map(first_ports).map(|port| port.max(1)).collect();
        let transports = [Transport::Tcp, Transport::Udp];
        ports.len() <= CELLS_MAX
            && ports.into_iter().any(|port| {
                transports.into_iter().any(|transport| self.reach(agent, ip, port, transport).is_allow())
            })
    }
}

#[cfg(test)]
mod tests {
    use clawgress_identity::PolicyOwner;

    use super::*;
    use crate::{Host, NamedSets, PolicyBundle, Surroundings};

    fn of(owner: &PolicyOwner, text: &str) -> PolicySet {
        PolicySet::parse_for(owner, text, &NamedSets::default(), &Surroundings::default()).unwrap()
    }

    fn under(own: &str, platform: &str) -> PolicySet {
        of(&PolicyOwner::default(), own).under(&of(&PolicyOwner::Platform, platform))
    }

    fn parse(text: &str) -> Result<PolicySet, String> {
        let bundle = PolicyBundle { text: text.to_owned(), sets: crate::NamedSets::default() };
        PolicySet::parse(&bundle).map_err(|e| format!("{:?}", e.problems))
    }

    fn agent() -> Agent {
        crate::set::tests::agent("web")
    }

    #[test]
    fn a_name_opens_its_ports_where_nothing_forbids_it() {
        let set = parse(
            r#"
            @id("db") @direct("tcp 5432, udp 123")
            permit (principal, action == Action::"resolve", resource == Host::"db.example")
            when { ["A", "AAAA"].contains(context.query_type) };
            @id("other") permit (principal, action == Action::"resolve", resource == Host::"www.example");
            @id("no") forbid (principal, action == Action::"direct", resource)
            when { context.ip.isInRange(ip("198.51.100.0/24")) && context.protocol == "tcp" };
            "#,
        )
        .unwrap();
        let ip = |text: &str| text.parse().unwrap();
        let policies = |name: &str, query_type| {
            let host = Host::parse(name).unwrap();
            let operation = Operation::Resolve { host: &host, port: 53, query_type };
            set.decide(&Request { agent: &agent(), operation }).policies
        };
        let opened = set.opens(&policies("db.example", "AAAA"), &agent(), ip("203.0.113.1"));
        assert_eq!(opened, [(Transport::Tcp, 5432), (Transport::Udp, 123)]);
        let opened = set.opens(&policies("db.example", "A"), &agent(), ip("198.51.100.1"));
        assert_eq!(opened, [(Transport::Udp, 123)], "a forbid of `direct` stands");
        assert_eq!(set.opens(&policies("www.example", "A"), &agent(), ip("203.0.113.1")), []);
        assert_eq!(policies("db.example", "TXT"), Vec::<String>::new());
    }

    #[test]
    fn a_name_opens_its_ports_where_the_platform_does_too() {
        let opens = |own: &str, platform: &str| {
            let (set, host) = (under(own, platform), Host::parse("db.example").unwrap());
            let operation = Operation::Resolve { host: &host, port: 53, query_type: "A" };
            let resolved = set.decide(&Request { agent: &agent(), operation });
            assert!(resolved.is_allow(), "{resolved:?}");
            set.opens(&resolved.policies, &agent(), "203.0.113.1".parse().unwrap())
        };
        let name = |opened: &str| {
            format!(r#"@id("db") {opened} permit (principal, action == Action::"resolve", resource);"#)
        };
        let address = |effect: &str, actions: &str| {
            let address = r#"context.ip.isInRange(ip("203.0.113.0/24")) && context.port == 5432"#;
            let rule =
                format!(r#"{effect} (principal, action in [{actions}], resource) when {{ {address} }};"#);
            format!(r#"{} @id("net") {rule}"#, name(""))
        };
        let (own, tcp) = (name(r#"@direct("tcp 5432, udp 123")"#), (Transport::Tcp, 5432));
        assert_eq!(opens(&own, &name(r#"@direct("tcp 5432, tcp 22")"#)), [tcp]);
        assert_eq!(opens(&own, &name("")), [], "that it may be resolved opens nothing");
        assert_eq!(opens(&name(""), &own), [], "nor does what the platform opens alone");
        let both = r#"Action::"connect", Action::"direct""#;
        assert_eq!(opens(&own, &address("permit", both)), [tcp], "by its address");
        assert_eq!(opens(&address("permit", both), &own), [tcp], "whoever's");
        assert_eq!(opens(&own, &address("permit", r#"Action::"direct""#)), [], "which is not in reach");
        let forbidden = address("forbid", r#"Action::"direct""#);
        let forbidden = forbidden.replace("@id(\"db\")", r#"@id("db") @direct("tcp 5432, udp 123")"#);
        assert_eq!(opens(&own, &forbidden), [(Transport::Udp, 123)], "a forbid of `direct` stands");
    }

    /// What is let through by its name is held to what holds it by its address: by the platform's limits, too.
    #[test]
    fn what_a_name_opens_is_held_to_limits() {
        let limit = r#"@id("all") permit (principal, action, resource);
            @id("pace") @effect("rate-limit") @limit("9 packets/second")
            permit (principal, action == Action::"connect", resource);"#;
        let name = |opened: &str| {
            format!(r#"@id("db") {opened} permit (principal, action == Action::"resolve", resource);"#)
        };
        let held = |own: &str, transport: Transport| {
            let (set, agent) = (under(own, limit).at(0), agent());
            let ip = "203.0.113.1".parse().unwrap();
            let tables = crate::kernel::compile(&set, std::slice::from_ref(&agent)).unwrap();
            let (action, _) = tables.lookup(agent.index, ip, transport, 5432);
            assert_eq!(action, crate::kernel::KernelAction::Deny(DropReason::PolicyDenied.code()));
            let held = tables.lookup_limits(agent.index, ip, transport, 5432).len();
            let stated = crate::kernel::expected_limits(&set, &agent, ip, transport, 5432);
            assert_eq!(stated.len(), held, "{stated:?}");
            held
        };
        assert_eq!(held(&name(r#"@direct("tcp 5432")"#), Transport::Tcp), 1);
        assert_eq!(held(&name(r#"@direct("tcp 5432")"#), Transport::Icmp), 0, "which has no ports");
        assert_eq!(held(&name(""), Transport::Tcp), 0, "nothing passes");
    }

    #[test]
    fn what_opens_nothing_is_refused() {
        for (annotation, action, message) in [
            ("tcp 443", "resolve", "port 443 can't be opened"),
            ("tcp 80", "resolve", "port 80 can't be opened"),
            ("udp 53", "resolve", "port 53 can't be opened"),
            ("tcp 0", "resolve", "`0` is not a port"),
            ("tcp +1", "resolve", "`+1` is not a port"),
            ("tcp 70000", "resolve", "`70000` is not a port"),
            ("gre 1", "resolve", "`gre` can't be opened"),
            ("", "resolve", "is no port to open"),
            ("tcp 1,tcp 2,tcp 3,tcp 4,tcp 5,tcp 6,tcp 7,tcp 8,tcp 9", "resolve", "9 ports"),
            ("tcp 22", "tls", "for a permit of `resolve` alone"),
        ] {
            let text = format!(
                "@id(\"p\") @direct(\"{annotation}\") permit (principal, action == Action::\"{action}\", resource);"
            );
            let error = parse(&text).unwrap_err();
            assert!(error.contains(message), "{annotation}: {error}");
        }
        for (before, head) in
            [("", "forbid"), ("@mode(\"log-only\") ", "permit"), ("@effect(\"alert\") ", "permit")]
        {
            let text = format!(
                "@id(\"p\") @direct(\"tcp 22\") {before}{head} (principal, action == Action::\"resolve\", resource);"
            );
            assert!(parse(&text).unwrap_err().contains("for a permit of `resolve` alone"), "{text}");
        }
    }

    #[test]
    fn a_reserved_address_is_in_reach_where_it_is_named() {
        let set = parse(
            r#"
            @id("any") permit (principal, action == Action::"connect", resource);
            @id("one") permit (principal, action == Action::"connect", resource)
            when { context.ip.isInRange(ip("10.1.0.0/16")) && context.port == 5432 && context.protocol == "tcp" };
            "#,
        )
        .unwrap();
        let reaches = |text: &str| set.reaches(&agent(), text.parse().unwrap());
        assert!(reaches("10.1.2.3") && reaches("203.0.113.1"));
        assert!(
            !reaches("10.2.0.1") && !reaches("127.0.0.1") && !reaches("169.254.169.254") && !reaches("::1")
        );
        let own = r#"@id("own") permit (principal, action == Action::"connect", resource)
            when { context.ip.isInRange(ip("10.1.0.0/16")) };"#;
        let at = |port: &str| {
            let platform = format!(
                r#"@id("port") permit (principal, action == Action::"connect", resource) when {{ {port} }};"#
            );
            under(own, &platform).reaches(&agent(), "10.1.2.3".parse().unwrap())
        };
        assert!(at("context.port == 5432"), "at a port that the platform alone tells apart");
        assert!(!at(r#"context.ip.isInRange(ip("10.2.0.0/16"))"#));
    }
}
