//! The systemd units keep their hardening: each one's exposure, as systemd itself rates it, stays below 3.0.
#![expect(clippy::expect_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};
use std::process::Command;

/// Exposure in tenths that `systemd-analyze security` must not exceed: "below 3.0".
const EXPOSURE_TENTHS_MAX: u32 = 29;

fn units() -> Vec<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../systemd");
    let mut units: Vec<PathBuf> = std::fs::read_dir(&dir)
        .expect("the directory systemd/")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|e| e == "service"))
        .collect();
    units.sort();
    units
}

#[test]
fn every_role_has_a_unit_that_is_rated_below_three() {
    let units = units();
    let names: Vec<_> = units.iter().filter_map(|u| u.file_stem()?.to_str()).collect();
    assert_eq!(
        names,
        [
            "clawgress-closed",
            "clawgress-control",
            "clawgress-datapath",
            "clawgress-keys",
            "clawgress-l7",
            "clawgress-l7@",
        ]
    );
    for unit in units {
        let output = Command::new("systemd-analyze")
            .args(["security", "--offline=true", "--no-pager"])
            .arg(format!("--threshold={EXPOSURE_TENTHS_MAX}"))
            .arg(&unit)
            .output()
            .expect("systemd-analyze; install the package `systemd`");
        let text = String::from_utf8_lossy(&output.stdout);
        let verdict = text.lines().rfind(|l| l.contains("Overall exposure")).unwrap_or("no rating");
        assert!(output.status.success(), "{}: {verdict}", unit.display());
    }
}

/// Several processes of one kind: what protects one protects each.
#[test]
fn every_l7_process_has_the_same_sandbox() {
    let text = |name: &str| {
        let unit = units().into_iter().find(|u| u.ends_with(name)).expect("a unit");
        let text = std::fs::read_to_string(unit).expect("readable");
        text.lines().filter(|l| !l.starts_with("Description=")).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(text("clawgress-l7.service"), text("clawgress-l7@.service"));
}

#[test]
fn no_role_but_datapath_has_a_capability_and_the_boot_lock_has_one() {
    for unit in units() {
        let text = std::fs::read_to_string(&unit).expect("a unit");
        let bounding: Vec<_> =
            text.lines().filter_map(|l| l.strip_prefix("CapabilityBoundingSet=")).collect();
        let want = match unit.file_stem().and_then(|name| name.to_str()) {
            Some("clawgress-datapath") => "CAP_BPF CAP_NET_ADMIN CAP_PERFMON",
            Some("clawgress-closed") => "CAP_NET_ADMIN",
            _ => "",
        };
        assert_eq!(bounding, [want], "{}", unit.display());
        assert!(text.contains("\nNoNewPrivileges=yes\n"), "{}", unit.display());
    }
}

#[test]
fn agents_are_shut_out_before_the_network_is_there() {
    let unit = |name| units().into_iter().find(|u| u.ends_with(name)).expect("a unit");
    let closed = std::fs::read_to_string(unit("clawgress-closed.service")).expect("a unit");
    for line in ["DefaultDependencies=no", "Type=oneshot", "RemainAfterExit=yes"] {
        assert!(closed.lines().any(|l| l == line), "`{line}` is missing");
    }
    assert!(closed.lines().any(|l| l.starts_with("Before=network-pre.target")));
    assert!(closed.lines().any(|l| l.starts_with("WantedBy=sysinit.target")));
    assert!(!closed.contains("ExecStop") && !closed.contains("PartOf"), "nothing opens it again");
    let datapath = std::fs::read_to_string(unit("clawgress-datapath.service")).expect("a unit");
    assert!(datapath.lines().any(|l| l.starts_with("After=clawgress-closed.service")));
}

/// What hostile peers can make the proxy take has an end before the machine's memory has one.
#[test]
fn the_proxy_can_not_take_the_memory_of_other_roles() {
    let slice = Path::new(env!("CARGO_MANIFEST_DIR")).join("../systemd/clawgress-l7.slice");
    let output = Command::new("systemd-analyze")
        .args(["verify", "--man=no"])
        .arg(&slice)
        .output()
        .expect("systemd-analyze; install the package `systemd`");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && !said.contains("clawgress-l7.slice"), "{said}");
    let slice = std::fs::read_to_string(slice).expect("a slice");
    assert!(slice.lines().any(|l| l == "MemoryMax=75%"), "{slice}");
    for unit in units() {
        let text = std::fs::read_to_string(&unit).expect("a unit");
        let (is_l7, name) = (text.contains("\nSlice=clawgress-l7.slice\n"), unit.display());
        let is_kept = text.contains("\nOOMScoreAdjust=-500\n");
        let is_proxy = unit.file_name().is_some_and(|n| n.to_string_lossy().starts_with("clawgress-l7"));
        assert_eq!(is_l7, is_proxy, "{name}");
        // The boot lock is over in a moment.
        assert_eq!(is_kept, !is_proxy && !text.contains("\nType=oneshot\n"), "{name}");
    }
}
