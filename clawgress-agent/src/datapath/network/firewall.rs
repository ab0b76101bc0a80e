//! The nftables table: forwarding only for packets that TC marked `direct`, input only for what each
//! interface's role allows, masquerading outwards. Installed whole, in one transaction, so that no packet
//! sees a part of it. Interfaces are matched by name: it holds for one that is not there yet.

use std::fmt::Write as _;
use std::io::Write as _;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};
use clawgress_api::config::{Config, Role};
use clawgress_ebpf_common::mark;

/// The table's name, and its family before it.
pub(super) const NAME: &str = "clawgress";
const TABLE: &str = "inet clawgress";
/// What the table is made of.
const CHAINS: [&str; 9] = [
    "refused",
    "answer",
    "forward",
    "input",
    "from_agents",
    "handed",
    "handed_sends",
    "handed_tracked",
    "postrouting",
];
const SETS: [(&str, Role); 3] =
    [("agents", Role::Agents), ("uplinks", Role::Uplink), ("management", Role::Management)];

/// The table this node must have.
#[derive(Clone, Debug)]
pub struct Firewall {
    script: String,
    /// What `nft` said of the table right after it was installed.
    installed: Option<String>,
}

impl Firewall {
    /// The table for the configured interfaces.
    #[must_use]
    pub fn new(config: &Config) -> Self {
        Firewall { script: script(config), installed: None }
    }

    /// Installs the table in place of whatever has its name. Where a former process left one, its rules
    /// are exchanged and its chains stay, so that at no moment a chain is there without its rules.
    ///
    /// # Errors
    /// If `nft` is missing or refuses.
    pub fn install(&mut self) -> Result<()> {
        let mut listing = feed(&format!("{}{}", renewal(), self.script)).and_then(|()| list()).ok();
        if listing.as_deref().is_none_or(has_more) {
            feed(&format!("add table {TABLE}\ndelete table {TABLE}\n{}", self.script))?;
            listing = Some(list()?);
        }
        self.installed = listing;
        Ok(())
    }

    /// Whether the table is what was installed.
    #[must_use]
    pub fn is_intact(&self) -> bool {
        self.installed.is_some() && list().ok() == self.installed
    }

    /// Leaves a table that takes nothing from agents and forwards nothing to them, and touches nothing
    /// else.
    ///
    /// # Errors
    /// If `nft` is missing or refuses.
    pub fn close(config: &Config) -> Result<()> {
        feed(&format!("add table {TABLE}\ndelete table {TABLE}\n{}", closed(config)))
    }

    /// The table of [`Firewall::close`], where there is none yet: what a node has before its programs run.
    ///
    /// # Errors
    /// If `nft` is missing or refuses.
    pub fn close_if_missing(config: &Config) -> Result<()> {
        if list().is_ok() {
            return Ok(());
        }
        // `create`, so that a table somebody installs meanwhile is not replaced.
        match feed(&format!("create table {TABLE}\n{}", closed(config))) {
            Err(_) if list().is_ok() => Ok(()),
            other => other,
        }
    }
}

/// The closed table. Interfaces are matched by name, so they need not be there.
fn closed(config: &Config) -> String {
    let agents = config.interfaces.iter().filter(|i| i.role == Role::Agents);
    let agents = set("agents", agents.map(|i| i.name.as_str()));
    let (mask, handed) = (mark::MASK, mark::HANDED);
    format!(
        r#"table {TABLE} {{
{agents}	chain forward {{
		type filter hook forward priority filter; policy accept;
		iifname @agents drop
		oifname @agents drop
	}}
	chain input {{
		type filter hook input priority filter; policy accept;
		iifname @agents drop
	}}
	chain handed {{
		type filter hook output priority raw; policy accept;
		meta mark and {mask:#x} == {handed:#x} meta l4proto udp counter drop
		meta mark and {mask:#x} == {handed:#x} tcp flags & (syn | ack) == syn counter drop
	}}
}}
"#
    )
}

/// Everything agents send and everything forwarded is dropped, but for what carries a mark.
///
/// The sockets that L7 is handed were made by the datapath role, so no program of L7's cgroup judges what leaves by them, or by
/// what is accepted from them: here they are held to answering. They begin no connection; and datagrams go to agents'
/// interfaces, or to this machine's own commands, from the port that was asked, which is set before they are tracked, and only as
/// what tracking knows as the answer to a question.
fn script(config: &Config) -> String {
    let mask = mark::MASK;
    let (steer, direct, local, reject) = (mark::STEER, mark::DIRECT, mark::LOCAL, mark::REJECT);
    let handed = mark::HANDED;
    let mut text = format!("table {TABLE} {{\n");
    for (name, role) in SETS {
        let members = config.interfaces.iter().filter(|i| i.role == role);
        text.push_str(&set(name, members.map(|i| i.name.as_str())));
    }
    let _ = write!(
        text,
        r#"
	chain refused {{
		type filter hook prerouting priority raw; policy accept;
		iifname @agents meta mark and {mask:#x} == {reject:#x} jump answer
	}}
	chain answer {{
		meta l4proto tcp reject with tcp reset
		reject with icmpx admin-prohibited
	}}
	chain forward {{
		type filter hook forward priority filter; policy drop;
		iifname @agents oifname @uplinks meta mark and {mask:#x} == {direct:#x} ct mark set meta mark accept
		iifname @uplinks oifname @agents ct mark and {mask:#x} == {direct:#x} ct state established,related meta mark set ct mark accept
	}}
	chain input {{
		type filter hook input priority filter; policy drop;
		iif "lo" accept
		iifname @agents jump from_agents
		ct state established,related accept
		icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert, nd-router-advert }} ip6 hoplimit 255 accept
		iifname @uplinks ip6 saddr fe80::/10 udp sport 547 udp dport 546 accept
		iifname @management tcp dport 22 accept
		iifname @management icmp type echo-request accept
		iifname @management icmpv6 type echo-request accept
	}}
	chain from_agents {{
		meta mark and {mask:#x} == {steer:#x} accept
		meta mark and {mask:#x} == {local:#x} accept
		drop
	}}
	chain handed {{
		type filter hook output priority raw; policy accept;
		meta mark and {mask:#x} == {handed:#x} jump handed_sends
	}}
	chain handed_sends {{
		tcp flags & (syn | ack) == syn counter drop
		meta l4proto tcp return
		oifname @agents meta l4proto udp udp sport set 53 return
		oif "lo" meta l4proto udp udp sport set 53 return
		counter drop
	}}
	chain handed_tracked {{
		type filter hook output priority filter; policy accept;
		meta mark and {mask:#x} == {handed:#x} meta l4proto udp ct state established ct direction reply accept
		meta mark and {mask:#x} == {handed:#x} meta l4proto udp counter drop
	}}
	chain postrouting {{
		type nat hook postrouting priority srcnat; policy accept;
		oifname @uplinks meta mark and {mask:#x} == {direct:#x} masquerade
	}}
}}
"#
    );
    text
}

/// What empties a table that is there, to be filled again in the same transaction.
fn renewal() -> String {
    let mut text = format!("add table {TABLE}\nflush table {TABLE}\n");
    for (name, _) in SETS {
        let _ = write!(text, "add set {TABLE} {name} {{ type ifname; }}\nflush set {TABLE} {name}\n");
    }
    text
}

/// Whether a listing has chains, sets or the like that are not ours.
fn has_more(listing: &str) -> bool {
    // Ours are printed one level deep; rules stand deeper.
    let headers = listing.lines().filter_map(|l| l.strip_prefix('\t')).filter(|l| !l.starts_with('\t'));
    headers.filter_map(|l| l.strip_suffix(" {")).any(|header| match header.split_once(' ') {
        Some(("chain", name)) => !CHAINS.contains(&name),
        Some(("set", name)) => !SETS.iter().any(|(set, _)| *set == name),
        _ => true,
    })
}

fn set<'a>(name: &str, members: impl Iterator<Item = &'a str>) -> String {
    let quoted: Vec<_> = members.map(|m| format!("\"{m}\"")).collect();
    let elements =
        if quoted.is_empty() { String::new() } else { format!(" elements = {{ {} }};", quoted.join(", ")) };
    format!("\tset {name} {{ type ifname;{elements} }}\n")
}

/// The table as `nft` prints it, without counters.
fn list() -> Result<String> {
    let output = nft().args(["-s", "list", "table"]).args(TABLE.split(' ')).output().context(MISSING)?;
    if !output.status.success() {
        bail!("table `{TABLE}` is not there");
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn feed(script: &str) -> Result<()> {
    let mut child = nft()
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context(MISSING)?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(script.as_bytes())?;
    }
    let output = child.wait_with_output()?;
    if !output.status.success() {
        bail!("nft refused the rules: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

const MISSING: &str = "cannot run `nft`; install nftables";

fn nft() -> Command {
    let mut command = Command::new("nft");
    // Its words are compared.
    command.env("LC_ALL", "C");
    command
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    const CONFIG: &str = "[node]\nname = \"gw\"\n[datapath]\nmode = \"kernel\"\n[proxy]\nlisten = []\n[l7]\n\
                          [[interface]]\nname = \"a0\"\nrole = \"agents\"\n\
                          [[interface]]\nname = \"u0\"\nrole = \"uplink\"\n";

    #[test]
    fn nothing_is_accepted_from_agents_without_a_mark() {
        let text = script(&Config::parse(CONFIG, Path::new("c.toml")).expect("valid"));
        for line in text.lines().filter(|l| l.contains("iifname @agents") && l.contains("accept")) {
            assert!(line.contains("meta mark"), "`{line}` accepts without a mark");
        }
        assert_eq!(text.matches("policy drop").count(), 2);
        assert!(text.contains("set agents { type ifname; elements = { \"a0\" }; }"));
        assert!(text.contains("set management { type ifname; }"));
        for chain in CHAINS {
            assert!(text.contains(&format!("chain {chain} {{")));
        }
        // What is sent by the sockets that L7 was handed is an answer, or goes nowhere.
        for script in [&text, &closed(&Config::parse(CONFIG, Path::new("c.toml")).expect("valid"))] {
            assert!(script.contains("counter drop") && script.contains("chain handed {"), "{script}");
        }
        // What is refused never gets as far as routing.
        let (before, after) = text.split_once("chain answer").expect("chain");
        assert!(before.contains("hook prerouting") && before.contains(&format!("{:#x} jump", mark::REJECT)));
        let answer = after.split_once('}').expect("end").0.trim();
        assert!(answer.ends_with("reject with icmpx admin-prohibited"), "{answer}");
    }

    #[test]
    fn what_somebody_added_to_the_table_is_seen() {
        let ours = "table inet clawgress {\n\tset agents {\n\t\ttype ifname\n\t\telements = { \"a0\" }\n\t}\n\n\
                    \tchain forward {\n\t\ttype filter hook forward priority filter; policy drop;\n\t}\n}\n";
        assert!(!has_more(ours));
        for other in ["chain open {", "set more {", "map agents {", "counter seen {"] {
            assert!(has_more(&ours.replace("set agents {", other)), "{other}");
        }
    }
}
