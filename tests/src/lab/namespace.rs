//! Namespaces, links, addresses and routes, made with `ip` and `nft`.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, ensure};

use super::{Host, Lab};
use crate::plan::{self, ANON, End, FORBIDDEN, GATEWAY, KNOWN, OUTSIDE, UPLINK};
use crate::world::SINK_PORT;

/// Settings of every namespace, before it has an interface: no waiting for duplicate addresses, no
/// router's advice.
const SETTINGS: &[(&str, &str)] = &[
    ("net/ipv6/conf/all/disable_ipv6", "0"),
    ("net/ipv6/conf/default/disable_ipv6", "0"),
    ("net/ipv6/conf/all/accept_dad", "0"),
    ("net/ipv6/conf/default/accept_dad", "0"),
    ("net/ipv6/conf/default/accept_ra", "0"),
    ("net/ipv6/conf/default/router_solicitations", "0"),
];

/// Makes the network. `routed`: the gateway's namespace forwards by itself.
pub(super) fn build(lab: &Lab, routed: bool) -> anyhow::Result<()> {
    for host in Host::ALL {
        let name = lab.namespace(host);
        ip(&["netns", "add", &name])?;
        for (setting, value) in SETTINGS {
            set(lab, host, setting, value)?;
        }
        batch(&name, "link set lo up\n")?;
    }
    links(lab)?;
    lan(lab)?;
    agents_host(lab, Host::Known, KNOWN)?;
    agents_host(lab, Host::Anon, ANON)?;
    gateway(lab, routed)?;
    world(lab)
}

/// Virtual cables, made right between two namespaces: their names need be unique only there.
fn links(lab: &Lab) -> anyhow::Result<()> {
    let cables = [
        (Host::Known, "eth0", KNOWN.mac, Host::Lan, "known"),
        (Host::Anon, "eth0", ANON.mac, Host::Lan, "anon"),
        (Host::Gateway, "agents0", GATEWAY.mac, Host::Lan, "gw"),
        (Host::Gateway, "wan0", UPLINK.mac, Host::World, "wan0"),
    ];
    for (host, name, mac, peer_host, peer) in cables {
        let (host, peer_host) = (lab.namespace(host), lab.namespace(peer_host));
        ip(&[
            "-n", &host, "link", "add", name, "address", mac, "type", "veth", "peer", "name", peer, "netns",
            &peer_host,
        ])?;
    }
    Ok(())
}

/// A switch passes frames on and judges none, whatever this machine makes its bridges do.
const SWITCH: [&str; 3] = [
    "net/bridge/bridge-nf-call-iptables",
    "net/bridge/bridge-nf-call-ip6tables",
    "net/bridge/bridge-nf-call-arptables",
];

fn lan(lab: &Lab) -> anyhow::Result<()> {
    for setting in SWITCH.into_iter().filter(|s| Path::new("/proc/sys").join(s).exists()) {
        set(lab, Host::Lan, setting, "0")?;
    }
    batch(
        &lab.namespace(Host::Lan),
        "link add lan0 type bridge stp_state 0 forward_delay 0 mcast_snooping 0\n\
         link set known master lan0\nlink set anon master lan0\nlink set gw master lan0\n\
         link set known up\nlink set anon up\nlink set gw up\nlink set lan0 up\n",
    )
}

fn agents_host(lab: &Lab, host: Host, end: End) -> anyhow::Result<()> {
    let (v4, v6, gateway_v4, gateway_v6) = (end.v4, end.v6, GATEWAY.v4, GATEWAY.v6);
    batch(
        &lab.namespace(host),
        &format!(
            "link set eth0 up\naddress add {v4}/24 dev eth0\naddress add {v6}/64 dev eth0 nodad\n\
             route add default via {gateway_v4}\nroute add default via {gateway_v6} dev eth0\n"
        ),
    )
}

fn gateway(lab: &Lab, routed: bool) -> anyhow::Result<()> {
    let (agents, uplink, outside) = (GATEWAY, UPLINK, OUTSIDE);
    batch(
        &lab.namespace(Host::Gateway),
        &format!(
            "link set agents0 up\naddress add {}/24 dev agents0\naddress add {}/64 dev agents0 nodad\n\
             link set wan0 up\naddress add {}/24 dev wan0\naddress add {}/64 dev wan0 nodad\n\
             route add default via {}\nroute add default via {} dev wan0\n",
            agents.v4, agents.v6, uplink.v4, uplink.v6, outside.v4, outside.v6
        ),
    )?;
    if routed {
        set(lab, Host::Gateway, "net/ipv4/ip_forward", "1")?;
        set(lab, Host::Gateway, "net/ipv6/conf/all/forwarding", "1")?;
    }
    Ok(())
}

fn world(lab: &Lab) -> anyhow::Result<()> {
    let (uplink, outside) = (UPLINK, OUTSIDE);
    let mut commands = format!(
        "link set wan0 address {}\nlink set wan0 up\naddress add {}/24 dev wan0\naddress add {}/64 dev wan0 nodad\n\
         route add 10.70.0.0/24 via {}\nroute add fd70::/64 via {} dev wan0\n\
         address add {}/32 dev lo\naddress add {}/128 dev lo nodad\n",
        outside.mac,
        outside.v4,
        outside.v6,
        uplink.v4,
        uplink.v6,
        plan::DNS.0,
        plan::DNS.1
    );
    for entry in plan::ZONE {
        // Names of the gateway itself, or of no server at all, get no server.
        let v4 = entry.v4.filter(|a| a.octets()[0] == 203).map(|a| format!("address add {a}/32 dev lo\n"));
        let v6 = entry.v6.filter(|a| a.segments()[2] == 0x113);
        commands.extend(v4);
        commands.extend(v6.map(|a| format!("address add {a}/128 dev lo nodad\n")));
    }
    batch(&lab.namespace(Host::World), &commands)?;
    let (v4, v6) = FORBIDDEN;
    // Counted before anything else can happen to a packet, then answered whatever its port.
    let rules = format!(
        "table inet lab {{\n counter forbidden {{ }}\n\
         chain count {{ type filter hook prerouting priority raw; policy accept;\n\
           ip daddr {v4} counter name forbidden\n ip6 daddr {v6} counter name forbidden\n }}\n\
         chain sink {{ type nat hook prerouting priority dstnat; policy accept;\n\
           ip daddr {v4} meta l4proto {{ tcp, udp }} redirect to :{SINK_PORT}\n\
           ip6 daddr {v6} meta l4proto {{ tcp, udp }} redirect to :{SINK_PORT}\n }}\n}}\n"
    );
    let namespace = format!("--net=/run/netns/{}", lab.namespace(Host::World));
    feed(Command::new("nsenter").args([namespace.as_str(), "nft", "-f", "-"]), &rules)
}

fn ip(args: &[&str]) -> anyhow::Result<()> {
    let output = Command::new("ip").args(args).output().context("cannot start `ip`")?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "`ip {}`: {}", args.join(" "), error.trim());
    Ok(())
}

/// Many `ip` commands at once in a namespace.
fn batch(namespace: &str, commands: &str) -> anyhow::Result<()> {
    feed(Command::new("ip").args(["-n", namespace, "-batch", "-"]), commands)
}

fn feed(command: &mut Command, input: &str) -> anyhow::Result<()> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {command:?}"))?;
    child.stdin.take().context("no standard input")?.write_all(input.as_bytes())?;
    let output = child.wait_with_output()?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {} in:\n{input}", error.trim());
    Ok(())
}

/// Writes a sysctl in a namespace, from within: `/proc/sys/net` is the reader's own.
pub(super) fn set(lab: &Lab, host: Host, setting: &str, value: &str) -> anyhow::Result<()> {
    let path = format!("/proc/sys/{setting}");
    let value = value.to_owned();
    lab.within(host, move || std::fs::write(&path, value).with_context(|| format!("cannot write `{path}`")))?
}
