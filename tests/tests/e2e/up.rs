//! `cargo xtask up`: the gateway for real use, without privileges and with an interface.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use clawgress_e2e::lab::{Daemon, Forbidden, Host, Lab, Output, program};
use clawgress_e2e::plan::KNOWN;
use nix::sys::signal::Signal;

/// Time until the command has said how to use it.
const UP_MAX: Duration = Duration::from_secs(60);

const POLICY: &str = r#"
@id("lab") permit (principal, action == Action::"connect", resource in NetworkSet::"lab");
@id("allowed-hosts") permit (principal, action in [Action::"tls", Action::"tunnel", Action::"http"], resource in HostSet::"allowed");
"#;
const SETS: &str = r#"
hosts = { allowed = ["api.allowed.test"] }
networks = { lab = ["203.0.113.0/24", "198.51.100.0/25"] }
"#;

/// Waits until the command's log says `text`; gives the whole log.
fn said(lab: &Lab, daemon: &mut Daemon, text: &str) -> String {
    let log = lab.dir().join("logs/up.log");
    let mut all = String::new();
    lab.wait(text, UP_MAX, || {
        daemon.running()?;
        all = fs::read_to_string(&log)?;
        Ok(all.contains(text))
    })
    .unwrap();
    all
}

fn proxy_in(log: &str) -> String {
    let line = log.lines().rfind(|l| l.contains("export HTTPS_PROXY=")).unwrap();
    line.split_once('=').unwrap().1.to_owned()
}

fn curl(lab: &Lab, host: Host, args: &[&str]) -> Output {
    let ca = lab.ca();
    let fixed = ["curl", "-sS", "--fail", "--max-time", "5", "--cacert", ca.to_str().unwrap()];
    lab.run(host, &[&fixed[..], args].concat()).unwrap()
}

/// What the user edited before: it must be kept.
fn edited(dir: &Path) {
    fs::create_dir_all(dir).unwrap();
    fs::write(dir.join("policy.cedar"), POLICY).unwrap();
    fs::write(dir.join("sets.toml"), SETS).unwrap();
}

#[test]
fn without_privileges_it_is_an_explicit_proxy() {
    let lab = Lab::builder().routed().start().unwrap();
    let dir = lab.dir().join("home");
    edited(&dir);
    for path in [dir.clone(), dir.join("policy.cedar"), dir.join("sets.toml")] {
        chown(path, Some(65_534), Some(65_534)).unwrap();
    }
    let up = program("clawgress-up").unwrap();
    let argv = [
        "setpriv",
        "--reuid",
        "nobody",
        "--regid",
        "65534",
        "--clear-groups",
        "--bounding-set=-all",
        up.to_str().unwrap(),
        "--dir",
        dir.to_str().unwrap(),
        "--listen",
        "10.70.0.1:3128",
    ];
    let mut daemon = lab.spawn(Host::Gateway, "up", &argv).unwrap();
    let log = said(&lab, &mut daemon, "Ctrl-C drains and stops");
    assert!(log.contains("not enforced: no kernel plane"), "it says what is not enforced: {log}");
    let proxy = proxy_in(&log);
    curl(&lab, Host::Known, &["-x", &proxy, "https://api.allowed.test/"]).check().unwrap();
    let denied = curl(&lab, Host::Known, &["-x", &proxy, "https://secret.denied.test/"]);
    assert!(denied.stderr.contains("403"), "{denied:?}");
    let key = fs::metadata(dir.join("me.key")).unwrap().permissions().mode();
    assert_eq!(key & 0o777, 0o600);
    let status = daemon.stop_by(Signal::SIGINT, Duration::from_secs(30)).unwrap();
    assert!(status.success(), "Ctrl-C is a good end: {status}");
    assert_eq!(fs::read_to_string(dir.join("policy.cedar")).unwrap(), POLICY);

    // Again: the same agent with the same key.
    fs::remove_file(lab.dir().join("logs/up.log")).unwrap();
    let mut daemon = lab.spawn(Host::Gateway, "up", &argv).unwrap();
    let log = said(&lab, &mut daemon, "Ctrl-C drains and stops");
    assert_eq!(proxy_in(&log), proxy);
    curl(&lab, Host::Known, &["-x", &proxy, "https://api.allowed.test/"]).check().unwrap();
    daemon.stop_by(Signal::SIGTERM, Duration::from_secs(30)).unwrap();
    assert_eq!(lab.forbidden().unwrap(), Forbidden::default());
}

/// There is one such gateway on a machine: its cgroups are those of the machine.
static GOVERNS: Mutex<()> = Mutex::new(());

/// It uses the machine's own directories; in a mount namespace of its own these are the lab's.
fn own_directories(command: &str) -> String {
    format!(
        "mkdir -p /run/clawgress && mount -t tmpfs lab /run/clawgress && mount -t bpf lab /sys/fs/bpf && exec {command}"
    )
}

/// A laptop, with nobody behind it: what `run` starts is governed, whether it knows of the proxy or not.
#[test]
fn with_local_it_governs_commands_of_this_machine() {
    let _alone = GOVERNS.lock().unwrap_or_else(PoisonError::into_inner);
    let lab = Lab::builder().start().unwrap();
    let dir = lab.dir().join("home");
    edited(&dir);
    let up = program("clawgress-up").unwrap();
    let script = own_directories(&format!("{} --local --dir {}", up.display(), dir.display()));
    let mut daemon = lab.spawn(Host::Gateway, "up", &["sh", "-c", &script]).unwrap();
    let log = said(&lab, &mut daemon, "Ctrl-C drains and stops");
    assert!(!log.contains("no kernel plane") && log.contains("run --agent me -- COMMAND"), "{log}");
    let (target, ctl) = (daemon.pid().to_string(), dir.join("bin/clawgressctl"));
    let config = format!("CLAWGRESS_CONFIG={}", dir.join("clawgress.toml").display());
    let ca = lab.ca();
    let run = |words: &[&str]| {
        let before = ["nsenter", "-t", &target, "--mount", "--", "env", &config, ctl.to_str().unwrap()];
        let curl = ["curl", "-sS", "--fail", "--max-time", "5", "--cacert", ca.to_str().unwrap()];
        let run = ["run", "--agent", "me", "--user", "nobody", "--"];
        lab.run(Host::Gateway, &[&before[..], &run, &curl, words].concat()).unwrap()
    };
    let first = run(&["https://api.allowed.test/"]);
    if !first.ok() {
        let before = ["nsenter", "-t", &target, "--mount", "--", "env", &config, ctl.to_str().unwrap()];
        let dropped = lab.run(Host::Gateway, &[&before[..], &["drops"]].concat()).unwrap();
        panic!("{first:?}: {dropped:?}");
    }
    let here = "api.allowed.test:443:203.0.113.10";
    run(&["--noproxy", "*", "--resolve", here, "https://api.allowed.test/"]).check().unwrap();
    assert!(!run(&["https://secret.denied.test/"]).ok());
    assert!(!run(&["--noproxy", "*", "-k", "https://203.0.113.10/"]).ok(), "it names no host");
    assert!(!run(&["--noproxy", "*", "-k", "https://198.51.100.66/"]).ok());
    // Whatever else runs here is left alone.
    curl(&lab, Host::Gateway, &["--resolve", here, "https://api.allowed.test/"]).check().unwrap();
    assert!(daemon.stop_by(Signal::SIGINT, Duration::from_secs(45)).unwrap().success());
    assert_eq!(lab.forbidden().unwrap(), Forbidden::default());
}

/// As README.md has it: the policy that comes with it, and a host that this internet has on its list.
#[test]
fn with_an_interface_it_governs_what_is_behind_it() {
    let _alone = GOVERNS.lock().unwrap_or_else(PoisonError::into_inner);
    let lab = Lab::builder().start().unwrap();
    let dir = lab.dir().join("home");
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join("sets.toml"), "hosts = { allowed = [\"api.allowed.test\"] }\n").unwrap();
    let up = program("clawgress-up").unwrap();
    let script = own_directories(&format!("{} --transparent agents0 --dir {}", up.display(), dir.display()));
    let mut daemon = lab.spawn(Host::Gateway, "up", &["sh", "-c", &script]).unwrap();
    let log = said(&lab, &mut daemon, "Ctrl-C drains and stops");
    let anonymous = curl(&lab, Host::Known, &["https://api.allowed.test/"]);
    assert!(!anonymous.ok(), "no agent is bound yet: {anonymous:?}");
    let target = daemon.pid().to_string();
    let ctl = dir.join("bin/clawgressctl");
    let config = format!("CLAWGRESS_CONFIG={}", dir.join("clawgress.toml").display());
    let source = format!("agents0={},{}", KNOWN.v4, KNOWN.mac);
    let create = [
        "nsenter",
        "-t",
        &target,
        "--mount",
        "--",
        "env",
        &config,
        ctl.to_str().unwrap(),
        "agent",
        "create",
        "crawler",
        "--team",
        "default",
        "--source",
        &source,
    ];
    lab.run(Host::Gateway, &create).unwrap().check().unwrap();
    let name = |name: &str| lab.run(Host::Known, &["getent", "ahosts", name]).unwrap();
    assert!(
        name("api.allowed.test").ok() && !name("secret.denied.test").ok(),
        "names are asked of the gateway"
    );
    curl(&lab, Host::Known, &["-4", "https://api.allowed.test/"]).check().unwrap();
    assert!(!curl(&lab, Host::Known, &["-4", "https://secret.denied.test/"]).ok());
    curl(&lab, Host::Anon, &["-x", &proxy_in(&log), "https://api.allowed.test/"]).check().unwrap();
    assert!(!curl(&lab, Host::Anon, &["-4", "https://203.0.113.10/", "-k"]).ok());
    let status = daemon.stop_by(Signal::SIGINT, Duration::from_secs(45)).unwrap();
    assert!(status.success(), "{status}");
    assert!(!curl(&lab, Host::Known, &["-4", "-k", "https://203.0.113.10/"]).ok(), "stopped is closed");
    assert_eq!(lab.forbidden().unwrap(), Forbidden::default());
}

#[test]
fn a_taken_port_is_said_and_nothing_is_left_running() {
    let lab = Lab::builder().routed().start().unwrap();
    let dir = lab.dir().join("home");
    edited(&dir);
    chown(&dir, Some(65_534), Some(65_534)).unwrap();
    let taken = lab.within(Host::Gateway, || std::net::TcpListener::bind("10.70.0.1:3128").unwrap()).unwrap();
    let up = program("clawgress-up").unwrap();
    let argv = [
        "setpriv",
        "--reuid",
        "nobody",
        "--regid",
        "65534",
        "--clear-groups",
        up.to_str().unwrap(),
        "--dir",
        dir.to_str().unwrap(),
        "--listen",
        "10.70.0.1:3128",
    ];
    let output = lab.run(Host::Gateway, &argv).unwrap();
    assert_eq!(output.code, Some(1), "{output:?}");
    let log = fs::read_to_string(dir.join("logs/all.log")).unwrap();
    assert!(log.contains("10.70.0.1:3128"), "the log names the address: {log}");
    drop(taken);
}
