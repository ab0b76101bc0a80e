//! Programs of the distribution.

use std::fs;
use std::process::Command;

use anyhow::{Context as _, bail};

use super::{Scope, say};
use crate::shell;

/// A program, the Debian package it is in, and what needs it.
struct Program {
    name: &'static str,
    package: &'static str,
    scope: Scope,
    why: &'static str,
}

const fn program(name: &'static str, package: &'static str, scope: Scope, why: &'static str) -> Program {
    Program { name, package, scope, why }
}

const PROGRAMS: &[Program] = &[
    program("cc", "gcc", Scope::Build, "links everything"),
    program("c++", "g++", Scope::Build, "compiles Pingora's zlib and bpf-linker"),
    program("make", "make", Scope::Build, "drives cmake's builds"),
    program("cmake", "cmake", Scope::Build, "configures Pingora's zlib"),
    program("dpkg", "dpkg", Scope::Build, "unpacks rust-src"),
    program("ip", "iproute2", Scope::Lab, "makes network namespaces"),
    program("nft", "nftables", Scope::Lab, "counts forbidden packets, filters in the gateway"),
    program("ethtool", "ethtool", Scope::Lab, "turns the offloads of the lab's interfaces off"),
    program("nsenter", "util-linux", Scope::Lab, "runs programs in the lab's hosts"),
    program("setpriv", "util-linux", Scope::Lab, "takes privileges away from the proxy"),
    program("mount", "mount", Scope::Lab, "mounts the BPF file system"),
    program("curl", "curl", Scope::Lab, "is a client"),
    program("openssl", "openssl", Scope::Lab, "is a client"),
    program("python3", "python3", Scope::Lab, "is a client"),
    program("dig", "bind9-dnsutils", Scope::Lab, "is a client"),
    program("h2load", "nghttp2-client", Scope::Lab, "is a client of HTTP/2"),
    program("git", "git", Scope::Lab, "is a client"),
    program(
        "haproxy",
        "haproxy",
        Scope::Lab,
        "is a load balancer before the gateway, and a DNS server over TLS",
    ),
    program("slowhttptest", "slowhttptest", Scope::Lab, "is a client that takes its time"),
    program("iodined", "iodine", Scope::Lab, "makes a tunnel of DNS"),
    program("ifconfig", "net-tools", Scope::Lab, "is what iodine sets addresses by"),
    program("dns2tcpd", "dns2tcp", Scope::Lab, "makes another"),
    program("systemd-analyze", "systemd", Scope::Lab, "rates the units' hardening"),
    program("xz", "xz-utils", Scope::Lab, "unpacks modules of the kernels under test"),
    program("strip", "binutils", Scope::Lab, "makes what goes into a virtual machine small"),
    program("busybox", "busybox-static", Scope::Lab, "is the first process of a virtual machine"),
    program("qemu-system-x86_64", "qemu-system-x86", Scope::Lab, "runs older kernels, emulated"),
    program("node", "nodejs", Scope::Lab, "is a client, and runs the tests' OpenID provider"),
    program("ruby", "ruby", Scope::Lab, "is a client"),
    program("npm", "npm", Scope::Lab, "installs that provider, and is a client"),
];

/// Installs what is missing, as root on Debian or Ubuntu; else prints the commands and fails.
pub fn install(scope: Scope) -> anyhow::Result<()> {
    let mut packages: Vec<&str> = Vec::new();
    for program in PROGRAMS.iter().filter(|p| p.scope <= scope) {
        if shell::found(program.name) {
            continue;
        }
        say(program.name, &format!("missing: package `{}`; it {}", program.package, program.why));
        if !packages.contains(&program.package) {
            packages.push(program.package);
        }
    }
    // Debian ships `venv` without the part that makes it work.
    if scope >= Scope::Lab && !shell::succeeds(Command::new("python3").args(["-c", "import ensurepip, venv"]))
    {
        say("python3 venv", "missing: package `python3-venv`; it holds the Python clients");
        packages.push("python3-venv");
    }
    if packages.is_empty() {
        say("programs", "present");
        return Ok(());
    }
    let list = packages.join(" ");
    if !nix::unistd::geteuid().is_root() || !debian() {
        bail!(
            "programs are missing; install them as root, then try again:\n  \
             apt-get update && apt-get install --yes --no-install-recommends {list}\n\
             (these are the names on Debian and Ubuntu; others have the same programs under their own names)"
        );
    }
    shell::run(Command::new("apt-get").args(["-q", "update"]))
        .context("cannot update the list of packages")?;
    let mut command = Command::new("apt-get");
    command.args(["-q", "install", "--yes", "--no-install-recommends"]).args(&packages);
    shell::run(command.env("DEBIAN_FRONTEND", "noninteractive"))
        .with_context(|| format!("cannot install `{list}`"))?;
    say("programs", "installed");
    Ok(())
}

/// Whether this is Debian, Ubuntu or a relative of theirs.
fn debian() -> bool {
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let like = |line: &str| {
        let ids = line.strip_prefix("ID=").or_else(|| line.strip_prefix("ID_LIKE="));
        ids.is_some_and(|v| v.trim_matches('"').split(' ').any(|w| w == "debian" || w == "ubuntu"))
    };
    release.lines().any(like) && shell::found("apt-get")
}
