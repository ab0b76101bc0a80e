//! The kernel plane: what is denied there, and what a host can't pretend.

use std::net::UdpSocket;
use std::time::Duration;

use clawgress_api::{Plane, Verdict};
use clawgress_e2e::lab::{Host, Lab};
use clawgress_e2e::plan::{ANON, BLOCKED, GATEWAY, KNOWN, PROXY_PORT, addresses};
use clawgress_e2e::scenario::CRAWLER;

use crate::support::{agent, codes, curl, curl_within, denied, finish, record, site};

fn run(lab: &Lab, host: Host, line: &str) -> clawgress_e2e::lab::Output {
    lab.run(host, &["sh", "-c", line]).unwrap()
}

#[test]
fn an_address_no_policy_names_is_dropped_in_the_kernel() {
    let site = site();
    for family in ["-4", "-6"] {
        let output = curl_within(&site, Host::Known, 3, &[family, "https://blocked.denied.test/"]);
        assert!(!output.ok(), "{output:?}");
    }
    for ip in addresses(BLOCKED) {
        let drop = record(&site, "the drop", |r| {
            r.plane == Plane::Kernel && r.destination.ip == Some(ip) && denied(r, "policy_denied")
        });
        assert_eq!(agent(&drop), Some(CRAWLER));
        assert_eq!((drop.destination.port, drop.destination.protocol.as_deref()), (Some(443), Some("tcp")));
    }
    // A permitted address, at a port that is not.
    let output = curl_within(&site, Host::Known, 3, &["http://api.allowed.test:8080/"]);
    assert!(!output.ok());
    record(&site, "the port", |r| r.plane == Plane::Kernel && r.destination.port == Some(8080));
    finish(site);
}

#[test]
fn dns_goes_direct_and_other_udp_goes_nowhere() {
    let site = site();
    let before = site.gateway.lab.world().unwrap().dns_queries;
    // The resolver of the host's own libc, and TCP.
    let output = run(&site.gateway.lab, Host::Known, "getent ahosts api.allowed.test");
    assert!(output.stdout.contains("203.0.113.10"), "{output:?}");
    let tcp = "echo 'options use-vc' > /tmp/resolv-$$ && cat /etc/resolv.conf >> /tmp/resolv-$$ && \
               mount --bind /tmp/resolv-$$ /etc/resolv.conf && rm /tmp/resolv-$$ && getent ahosts llm.allowed.test";
    let output = run(&site.gateway.lab, Host::Known, tcp);
    assert!(output.stdout.contains("203.0.113.12"), "{output:?}");
    assert!(site.gateway.lab.world().unwrap().dns_queries >= before + 2);
    record(&site, "the flow", |r| {
        r.plane == Plane::Kernel && r.verdict == Some(Verdict::Allow) && r.destination.port == Some(53)
    });
    for to in ["198.51.100.66:53", "198.51.100.66:443", "198.51.100.200:4433", "[2001:db8:51::66]:53"] {
        let sent = site.gateway.lab.within(Host::Known, move || {
            let bind = if to.starts_with('[') { "[::]:0" } else { "0.0.0.0:0" };
            let socket = UdpSocket::bind(bind).unwrap();
            socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
            socket.send_to(b"tunnel me", to).unwrap();
            socket.recv(&mut [0; 64]).is_ok()
        });
        assert!(!sent.unwrap(), "{to} answered");
    }
    finish(site);
}

#[test]
fn other_protocols_go_nowhere() {
    let site = site();
    let script = r"
import socket
for protocol in (1, 4, 41, 47, 50, 132, 136, 253):
    s = socket.socket(socket.AF_INET, socket.SOCK_RAW, protocol)
    for to in ('198.51.100.66', '198.51.100.200', '203.0.113.10'):
        s.sendto(bytes([8, 0, 0xf7, 0xff, 0, 0, 0, 0]) + bytes(32), (to, 0))
s = socket.socket(socket.AF_INET, socket.SOCK_RAW, 255)
# Fragments and options, by hand: id 1, more fragments; then a header with router alert.
tail = bytes([10, 70, 0, 10, 198, 51, 100, 66])
s.setsockopt(socket.IPPROTO_IP, socket.IP_HDRINCL, 1)
s.sendto(bytes([0x45, 0, 0, 44, 0, 1, 0x20, 0, 64, 6, 0, 0]) + tail + bytes(24), ('198.51.100.66', 0))
s.sendto(bytes([0x45, 0, 0, 44, 0, 1, 0, 3, 64, 6, 0, 0]) + tail + bytes(24), ('198.51.100.66', 0))
s.sendto(bytes([0x46, 0, 0, 44, 0, 1, 0, 0, 64, 6, 0, 0]) + tail + bytes([0x94, 4, 0, 0]) + bytes(20), ('198.51.100.66', 0))
";
    site.gateway.lab.run(Host::Known, &["python3", "-c", script]).unwrap().check().unwrap();
    record(&site, "fragments", |r| denied(r, "fragment"));
    record(&site, "options", |r| denied(r, "ipv4_options"));
    record(&site, "protocols", |r| denied(r, "protocol_unsupported"));
    finish(site);
}

#[test]
fn an_anonymous_host_may_present_a_credential_and_no_more() {
    let site = site();
    for url in
        ["http://203.0.113.10/", "https://203.0.113.10/", "http://198.51.100.66/", "http://198.51.100.200/"]
    {
        let output = curl_within(&site, Host::Anon, 2, &["-k", url]);
        assert!(!output.ok() && codes(&output).0 == 0, "{url}: {output:?}");
    }
    let output = curl_within(&site, Host::Anon, 2, &["-k", "-g", "http://[2001:db8:113::10]/"]);
    assert!(!output.ok(), "{output:?}");
    let drop = record(&site, "the drop", |r| r.plane == Plane::Kernel && denied(r, "anonymous"));
    assert!(drop.agent.is_none());
    assert_eq!(drop.source.ip, Some(ANON.v4.into()));
    let bare = format!("http://{}:{PROXY_PORT}", GATEWAY.v4);
    let output = curl(&site, Host::Anon, &["-x", &bare, "https://secret.denied.test/"]);
    assert_eq!(codes(&output).1, 407, "{output:?}");
    // Any other port of the gateway is none of its business.
    for port in [22, 80, 3129] {
        let url = format!("http://{}:{port}/", GATEWAY.v4);
        assert!(!curl_within(&site, Host::Anon, 1, &[&url]).ok());
        assert!(!curl_within(&site, Host::Known, 1, &[&url]).ok());
    }
    record(&site, "the gateway's ports", |r| denied(r, "gateway_address"));
    assert!(site.gateway.lab.world().unwrap().requests.is_empty());
    finish(site);
}

#[test]
fn a_borrowed_address_or_mac_makes_nobody_of_a_host() {
    let site = site();
    let lab = &site.gateway.lab;
    // The known host's address, from another MAC.
    let borrow = format!(
        "ip address add {}/32 dev eth0 && ip -6 address add {}/128 dev eth0 nodad",
        KNOWN.v4, KNOWN.v6
    );
    run(lab, Host::Anon, &borrow).check().unwrap();
    for (source, url) in
        [(KNOWN.v4.to_string(), "http://203.0.113.10/"), (KNOWN.v6.to_string(), "http://[2001:db8:113::10]/")]
    {
        let output = curl_within(&site, Host::Anon, 2, &["-g", "--interface", &source, url]);
        assert!(!output.ok(), "{output:?}");
    }
    record(&site, "the spoof", |r| denied(r, "source_spoofed"));
    let back =
        format!("ip address del {}/32 dev eth0; ip -6 address del {}/128 dev eth0", KNOWN.v4, KNOWN.v6);
    run(lab, Host::Anon, &back).check().unwrap();
    // The known host under an address that is not its own.
    run(lab, Host::Known, "ip address add 10.70.0.77/24 dev eth0").check().unwrap();
    let output = curl_within(&site, Host::Known, 2, &["--interface", "10.70.0.77", "http://203.0.113.10/"]);
    assert!(!output.ok(), "{output:?}");
    run(lab, Host::Known, "ip address del 10.70.0.77/24 dev eth0").check().unwrap();
    assert!(lab.world().unwrap().requests.is_empty());
    // Neighbours may have learnt the wrong MAC meanwhile.
    run(lab, Host::Gateway, "ip neigh flush dev agents0").check().unwrap();
    finish(site);
}
