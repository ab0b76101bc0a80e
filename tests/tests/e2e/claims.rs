//! ARP and neighbour discovery, as a host sends them that wants to be taken for another, or for a router: each is refused
//! with its reason, and everybody is reached where he was before.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use clawgress_e2e::lab::Host;
use clawgress_e2e::plan::{ANON, End, GATEWAY, KNOWN};
use clawgress_e2e::scenario::{Site, TEAM};

use crate::frames::{arp, ip, neighbour, with_hops};
use crate::packets::{Case, case, denied, mac, sum};
use crate::support::{admin, agent, curl, finish, record, site, to_host};

/// The agent that the other host becomes.
const OTHER: &str = "neighbour";
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xFF02, 0, 0, 0, 0, 0, 0, 1);
/// Neighbour discovery (RFC 4861 4).
const ROUTER_ADVERTISEMENT: u8 = 134;
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
const REDIRECT: u8 = 137;

/// An answer to a question that nobody asked: ARP operation 2.
fn answer(own: [u8; 6], sender: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    let mut frame = arp(own, own, sender.octets(), target.octets());
    frame[21] = 2;
    frame
}

/// With the checksum that a host which believes the message asks for (RFC 4443 2.3).
fn summed(mut frame: Vec<u8>) -> Vec<u8> {
    let message = frame.len() - 54;
    frame[56..58].copy_from_slice(&[0, 0]);
    let mut summed = frame[22..54].to_vec();
    summed.extend(u32::try_from(message).unwrap().to_be_bytes());
    summed.extend([0, 0, 0, 58]);
    summed.extend(&frame[54..]);
    let sum = sum(&summed);
    frame[56..58].copy_from_slice(&sum.to_be_bytes());
    frame
}

/// "`target` is at `own`", solicited and to override what was known.
fn claim(own: [u8; 6], source: Ipv6Addr, to: Ipv6Addr, target: Ipv6Addr) -> Vec<u8> {
    let mut frame = neighbour(own, source.into(), to.into(), ADVERTISEMENT, target.into(), own);
    frame[58] = 0x60;
    summed(frame)
}

/// A message to routers' clients: `body` is behind type, code and checksum.
fn news(own: [u8; 6], to: Ipv6Addr, kind: u8, body: &[u8]) -> Vec<u8> {
    // Routers speak from their link-local addresses, or nobody listens.
    let router = IpAddr::V6(Ipv6Addr::new(0xFE80, 0, 0, 0, 0, 0, 0, 0x66));
    let message = [&[kind, 0, 0, 0][..], body].concat();
    summed(with_hops(ip(own, router, to.into(), 58, &message), 255))
}

/// "I am the router for half an hour, and all is behind me."
fn advertisement(own: [u8; 6]) -> Vec<u8> {
    let head = [64, 0, 0x07, 0x08, 0, 0, 0, 0, 0, 0, 0, 0];
    let own_address = [&[1, 1][..], &own].concat();
    news(own, ALL_NODES, ROUTER_ADVERTISEMENT, &[&head[..], &own_address].concat())
}

/// "What you send to `far`, send to me."
fn redirect(own: [u8; 6], me: Ipv6Addr, far: Ipv6Addr) -> Vec<u8> {
    let own_address = [&[2, 1][..], &own].concat();
    let body = [&[0; 4][..], &me.octets(), &far.octets(), &own_address].concat();
    news(own, GATEWAY.v6, REDIRECT, &body)
}

/// What a host does to be taken for the gateway and for its neighbour.
fn claims(of: End, victim: End) -> Vec<Case> {
    let own = mac(of.mac);
    let nobody = Ipv4Addr::new(10, 70, 0, 99);
    let outside = Ipv6Addr::new(0x2001, 0xDB8, 0x113, 0, 0, 0, 0, 0x10);
    let announced = |address: Ipv4Addr| arp(own, own, address.octets(), address.octets());
    let solicits = neighbour(own, GATEWAY.v6.into(), victim.v6.into(), SOLICITATION, victim.v6.into(), own);
    vec![
        case("the gateway's address", GATEWAY.v4, "source_spoofed", announced(GATEWAY.v4)),
        case("the gateway's, as an answer", of.v4, "source_spoofed", answer(own, GATEWAY.v4, of.v4)),
        case("the neighbour's", victim.v4, "source_spoofed", announced(victim.v4)),
        case("the neighbour's, as an answer", nobody, "source_spoofed", answer(own, victim.v4, nobody)),
        case("the gateway's IPv6", ALL_NODES, "source_spoofed", claim(own, of.v6, ALL_NODES, GATEWAY.v6)),
        case("the neighbour's IPv6", GATEWAY.v6, "source_spoofed", claim(own, of.v6, GATEWAY.v6, victim.v6)),
        case("a question in the gateway's name", victim.v6, "source_spoofed", summed(solicits)),
        case("a router's advertisement", ALL_NODES, "router_message", advertisement(own)),
        case("a redirect", GATEWAY.v6, "router_message", redirect(own, of.v6, outside)),
    ]
}

/// The routes and neighbours of the gateway: `ip` without what changes by itself.
fn known_ways(site: &Site) -> Vec<String> {
    let ask = |words: &[&str]| site.gateway.lab.run(Host::Gateway, words).unwrap().check().unwrap().stdout;
    let routes = ask(&["ip", "-6", "route", "show"]);
    let neighbours = ask(&["ip", "neigh", "show", "dev", "agents0", "nud", "permanent"]);
    let mut lines: Vec<String> = routes.lines().chain(neighbours.lines()).map(str::to_owned).collect();
    lines.sort();
    lines
}

/// Both hosts get what they ask for, by both families, as the agents they are.
#[track_caller]
fn served(site: &Site, path: &str) {
    for (host, who) in [(Host::Known, "crawler"), (Host::Anon, OTHER)] {
        for family in ["-4", "-6"] {
            let url = format!("http://api.allowed.test/{path}/{who}/{family}");
            let output = curl(site, host, &[family, &url]);
            assert!(output.stdout.contains("200"), "{who}, {family}: {output:?}");
            record(site, &url, |r| {
                let is_it = r.destination.path.as_deref() == Some(&format!("/{path}/{who}/{family}"));
                is_it && to_host(r, "api.allowed.test") && agent(r) == Some(who)
            });
        }
    }
}

#[test]
fn who_claims_anothers_address_or_to_be_a_router_is_refused() {
    let site = site();
    let sources = [ANON.v4.to_string(), ANON.v6.to_string()];
    let sources = sources.map(|address| format!("agents0={address},{}", ANON.mac));
    admin(&site).create_agent(OTHER, TEAM, &sources).unwrap();
    site.gateway
        .lab
        .wait("the other agent", std::time::Duration::from_secs(30), || {
            Ok(known_ways(&site).iter().filter(|line| line.contains(ANON.mac)).count() == 2)
        })
        .unwrap();
    served(&site, "before");
    let before = known_ways(&site);
    // Each of both claims the other's.
    denied(&site, Host::Known, &claims(KNOWN, ANON));
    denied(&site, Host::Anon, &claims(ANON, KNOWN));
    assert_eq!(known_ways(&site), before);
    served(&site, "after");
    finish(site);
}
