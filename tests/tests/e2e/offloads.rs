//! Offloads change where a tag is kept, and how large a frame is, on the way through drivers; they change no verdict
//! and no reason.

use clawgress_api::RecentDrop;
use clawgress_e2e::lab::Host;
use clawgress_e2e::scenario::Site;

use crate::packets::{
    RECORDS_MAX, denied, from_known, headers, permitted, send, syn, tagged, tags_are_judged_by_what_they_say,
};
use crate::support::{curl, finish, site};

/// Features by the names that `ethtool` sets them and shows them under.
type Features = [(&'static str, &'static str)];

/// Takes tags off frames, and joins segments.
const RECEIVING: &Features =
    &[("rxvlan", "rx-vlan-offload"), ("gro", "generic-receive-offload"), ("rx", "rx-checksumming")];
/// Puts tags into frames, cuts segments, and sums.
const SENDING: &Features = &[
    ("txvlan", "tx-vlan-offload"),
    ("tx-vlan-stag-hw-insert", "tx-vlan-stag-hw-insert"),
    ("tso", "tcp-segmentation-offload"),
    ("gso", "generic-segmentation-offload"),
    ("tx", "tx-checksumming"),
];

/// Has an interface of `host` do without. What a driver would keep on regardless is no success.
#[track_caller]
fn turn_off(site: &Site, host: Host, interface: &str, features: &Features) {
    let mut argv = vec!["ethtool", "-K", interface];
    argv.extend(features.iter().flat_map(|(name, _)| [name, "off"]));
    site.gateway.lab.run(host, &argv).unwrap().check().unwrap();
    let shown = site.gateway.lab.run(host, &["ethtool", "-k", interface]).unwrap().check().unwrap().stdout;
    for (_, name) in features {
        let is_off =
            |line: &str| line.trim().strip_prefix(name).is_some_and(|rest| rest.starts_with(": off"));
        assert!(shown.lines().any(is_off), "`{name}` of {interface} is still on:\n{shown}");
    }
}

/// The hook that drops frames of a VLAN.
fn hook(site: &Site) -> Option<String> {
    let drops = site.gateway.ctl(&["drops", "-o", "json"]).unwrap().check().unwrap();
    let drops: Vec<RecentDrop> = serde_json::from_str(&drops.stdout).unwrap();
    drops.into_iter().find(|d| d.reason == "vlan_unsupported").map(|d| d.hook)
}

#[test]
fn tags_and_fragments_without_offloads_are_judged_alike() {
    let mut site = site();
    turn_off(&site, Host::Known, "eth0", SENDING);
    // What the gateway receives is what the switch's port sends.
    turn_off(&site, Host::Lan, "known", RECEIVING);
    turn_off(&site, Host::Lan, "gw", SENDING);
    turn_off(&site, Host::Gateway, "agents0", RECEIVING);
    // The tag is within the frame now: with offloads it comes beside it, where XDP can't see it.
    send(&site, Host::Known, "eth0", &tagged(&from_known(permitted(90), 6, &syn()), &[(0x8100, 5)]));
    let early = site.gateway.lab.wait("the drop", RECORDS_MAX, || Ok(hook(&site).as_deref() == Some("xdp")));
    assert!(early.is_ok(), "its tag did not come within the frame: dropped at {:?}", hook(&site));

    denied(&site, Host::Known, &headers());
    tags_are_judged_by_what_they_say(&mut site);
    // Segments, each in a frame of its own.
    for family in ["-4", "-6"] {
        let large =
            curl(&site, Host::Known, &[family, "-o", "/dev/null", "https://api.allowed.test/bytes/700000"]);
        assert!(large.ok(), "{large:?}");
    }
    finish(site);
}
