//! What fits the tables, and what is refused.

use super::*;

/// A policy for each of many agents: work grows with what a policy can tell apart, not with the product.
#[test]
fn many_agents_with_a_destination_each() {
    const AGENTS: u32 = 300;
    const PORTS: u32 = 16;
    let mut text = String::from(
        "@id(\"base\") permit (principal, action == Action::\"connect\", resource in NetworkSet::\"nested\");\n",
    );
    for n in 0..AGENTS {
        text.push_str(&format!(
            "@id(\"p{n}\") permit (principal == Agent::\"a{n}\", action == Action::\"connect\", resource == Network::\"192.0.2.{}\") when {{ context.port == {} }};\n",
            n % 256,
            n % PORTS
        ));
    }
    let set = set(&text);
    let agents: Vec<Agent> = (0..AGENTS).map(|n| agent(n + 1, &format!("a{n}"), None, None, None)).collect();
    let tables = compile(&set, &agents).unwrap();
    for n in 0..AGENTS {
        let look = |address: u32, port: u32| {
            let ip = format!("192.0.2.{}", address % 256).parse().unwrap();
            tables.lookup(n + 1, ip, Transport::Tcp, u16::try_from(port % PORTS).unwrap()).0
        };
        assert_eq!(look(n, n), KernelAction::Steer, "{n}");
        assert_ne!(look(n, n + 1), KernelAction::Steer, "{n}");
        assert_ne!(look(n + 1, n), KernelAction::Steer, "{n}");
    }
}

#[test]
fn what_would_not_fit_is_refused_with_its_number() {
    // Every agent and every destination differ from every other.
    let mut text = String::new();
    for n in 0..600 {
        text.push_str(&format!(
            "@id(\"p{n}\") permit (principal, action == Action::\"connect\", resource == Network::\"10.9.{}.{}\") when {{ context.port == {n} && principal.name like \"*{n}\" }};\n",
            n / 256,
            n % 256
        ));
    }
    let set = set(&text);
    let agents: Vec<Agent> = (1..=9_000).map(|n| agent(n, &format!("a{n}"), None, None, None)).collect();
    let errors = compile(&set, &agents).unwrap_err();
    assert_eq!(errors.problems.len(), 1);
    let message = &errors.problems[0].message;
    assert!(
        message.starts_with("the kernel tables would need 54") && message.contains("combinations"),
        "{message}"
    );
}

/// A prefix for each of many destinations in a set and in the geo data: tables grow with the prefixes, work
/// with what policies tell apart.
#[test]
fn many_prefixes() {
    let nets = |first: u32, count: u32| -> Vec<IpNet> {
        let net = |n| IpNet::new(std::net::Ipv4Addr::from_bits(first + n * 512).into(), 24).unwrap();
        (0..count).map(net).collect()
    };
    let (listed, located) = (nets(0x0b00_0000, 60_000), nets(0x5000_0000, 60_000));
    let sets = NamedSets {
        networks: BTreeMap::from([("feed".to_owned(), listed.iter().copied().collect())]),
        ..NamedSets::default()
    };
    let mut geo = crate::set::tests::geo(&[], &[]);
    geo.countries = Some(BTreeMap::from([("DE".to_owned(), located)]));
    let surroundings = crate::Surroundings { geo, ..crate::Surroundings::default() };
    let text = r#"@id("a") permit (principal, action == Action::"connect", resource in Country::"DE");
        @id("b") permit (principal, action == Action::"connect", resource in NetworkSet::"feed") when { context.port == 443 };"#;
    let set = PolicySet::parse_in(text, &sets, &surroundings).unwrap();
    let tables = compile(&set, &agents()).unwrap();
    assert_eq!(tables.destinations.len(), 120_000);
    // By country ICMP, and TCP and UDP on two classes of ports; TCP and UDP on one of them.
    assert_eq!(tables.verdicts.len(), 7, "{:#?}", tables.verdicts);
    for (ip, port, action) in [
        ("80.0.0.1", 1, KernelAction::Steer),
        ("80.0.1.1", 1, KernelAction::Deny(DropReason::PolicyDenied.code())),
        ("11.0.2.1", 443, KernelAction::Steer),
        ("11.0.2.1", 1, KernelAction::Deny(DropReason::PolicyDenied.code())),
    ] {
        assert_eq!(tables.lookup(1, ip.parse().unwrap(), Transport::Tcp, port).0, action, "{ip} {port}");
    }
}
