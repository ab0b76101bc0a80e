//! What files are refused for, and what is read from those that are not.

use std::path::Path;

use super::{Config, UnboundSources};

const GOOD: &str =
    "[node]\nname = \"gw\"\n[datapath]\nmode = \"none\"\n[proxy]\nlisten = [\"127.0.0.1:3128\"]\n[l7]\n";

#[track_caller]
fn check(text: &str, want: &str) {
    let error = Config::parse(text, Path::new("c.toml")).expect_err("must be refused").to_string();
    // Each has a column as well, and shows its line.
    let (place, message) = error.split_once(": ").expect("a place");
    let (line, column) = place.rsplit_once(':').expect("a column");
    let told = format!("{line}: {message}");
    assert!(told.contains(want), "`{error}` should contain `{want}`");
    assert!(column == "0" || error.ends_with('^'), "{error}");
}

#[test]
fn refusals_show_the_place() {
    let refused = |text: &str| Config::parse(text, Path::new("c.toml")).expect_err("refused").to_string();
    let unknown = refused(&GOOD.replace("[l7]", "[l7]\n  threds = 3"));
    assert!(unknown.starts_with("c.toml:8:3: unknown field `threds`"), "{unknown}");
    assert!(unknown.ends_with("\n  8 |   threds = 3\n    |   ^"), "{unknown}");
    let torn = refused("[node\n");
    assert!(torn.starts_with("c.toml:1:") && torn.contains("\n  1 | [node\n"), "{torn}");
    let wrong = refused(&GOOD.replace("gw", ""));
    assert!(wrong.contains("c.toml:2:1: the node's `name`") && wrong.contains("\n    | ^"), "{wrong}");
}

#[test]
fn the_least_file_is_accepted() {
    let config = Config::parse(GOOD, Path::new("c.toml")).expect("valid");
    assert_eq!((config.l7.snapshot_stale_s_max, config.l7.drain_s_max), (300, 25));
    assert_eq!(config.l7.answer_silence_s_max.get(), 600);
    assert_eq!(config.admin_socket(), Path::new("/run/clawgress/admin.sock"));
}

#[test]
fn refusals_name_file_line_and_remedy() {
    check(&GOOD.replace("gw", ""), "c.toml:2: the node's `name`");
    check(&GOOD.replace("none", "off"), "c.toml:4:");
    check(&GOOD.replace("none", "kernel"), "c.toml:4: `mode = \"kernel\"` needs");
    check(&GOOD.replace("3128\"", "3128\", \"[::1]:3129\""), "c.toml:6: all addresses");
    check(&GOOD.replace("[\"127.0.0.1:3128\"]", "[]"), "c.toml:6: `mode = \"none\"` needs an address");
    check(&GOOD.replace("[l7]", "[l7]\nthreds = 3"), "c.toml:8: unknown field `threds`");
    check(&format!("{GOOD}cgroup = \"l7\"\n"), "c.toml:8: `cgroup` in [l7] needs `mode = \"kernel\"`");
    check(
        &format!("{GOOD}[[interface]]\nname = \"a\"\nrole = \"agents\"\n"),
        "c.toml:8: `mode = \"none\"` governs",
    );
    let kernel = GOOD.replace("none", "kernel");
    for name in ["", "sixteen-letters.", "a b", "a/b", "a:b", "a*", "a\\\"b", "..", "all", "default"] {
        check(
            &format!("{kernel}[[interface]]\nname = \"{name}\"\nrole = \"agents\"\n"),
            "c.toml:8: no interface can be called",
        );
    }
    let unbound = |role: &str, unbound: &str| {
        format!(
            "{kernel}[[interface]]\nname = \"a\"\nrole = \"agents\"\n[[interface]]\nname = \"b\"\n\
             role = \"{role}\"\nunbound_sources = \"{unbound}\"\n"
        )
    };
    check(&unbound("uplink", "deny"), "c.toml:14: interface `b` has no agents behind it");
    check(&unbound("agents", "drop"), "c.toml:14: unknown variant `drop`");
    let denied = Config::parse(&unbound("agents", "deny"), Path::new("c.toml")).expect("valid");
    let denied: Vec<_> = denied.agents_interfaces().map(|i| i.unbound_sources).collect();
    assert_eq!(denied, [UnboundSources::Present, UnboundSources::Deny]);
    let danger = |role: &str, causes: &str| {
        format!(
            "{kernel}[[interface]]\nname = \"a\"\nrole = \"agents\"\n[[interface]]\nname = \"b\"\n\
             role = \"{role}\"\n[interface.danger]\nfail_open = [{causes}]\n"
        )
    };
    check(&danger("uplink", "\"l7\""), "c.toml:15: interface `b` has no agents behind it");
    check(&danger("agents", "\"conntrack\""), "c.toml:15: interface `b` can't fail open for `conntrack`: a");
    check(&danger("agents", "\"l7\", \"l7\""), "c.toml:15: `l7` is named twice");
    check(&danger("agents", "\"everything\""), "c.toml:15: unknown variant `everything`");
    let good = danger("agents", "\"l7\", \"flow_table\", \"revision\", \"agent\"");
    let good = Config::parse(&good, Path::new("c.toml")).expect("valid");
    let open: Vec<_> = good.agents_interfaces().map(|i| i.danger.fail_open.len()).collect();
    assert_eq!(open, [0, 4], "what is not said fails closed");
    let with = |table: &str| format!("{GOOD}{table}\n");
    check(&with("[access]\nl7 = \"x\""), "c.toml:9: unknown field `l7`");
    check(&with("[geo]\nasn = \"asn.mmdb\""), "c.toml:9: `asn` must be an absolute path");
    check(&with("[geo]\ncity = \"/x\""), "c.toml:9: unknown field `city`");
    check(&with("[time]\nzone = \"Mars/Base\""), "c.toml:9: there is no time zone `Mars/Base`");
    let zone = Config::parse(&with("[time]\nzone = \"Europe/Berlin\""), Path::new("c.toml"));
    assert_eq!(zone.expect("valid").time.zone, "Europe/Berlin");
    check(&with("[audit]\nsegment_bytes_max = 10"), "c.toml:9: `segment_bytes_max` must be at least 4096");
    check(
        &with("[audit]\nretention_bytes_max = 10"),
        "c.toml:9: `retention_bytes_max` must be at least twice",
    );
}

#[test]
fn balancers_are_named() {
    let with = |value: &str| GOOD.replace("[l7]", &format!("balancers = [\"{value}\"]\n[l7]"));
    let config = Config::parse(&with("192.0.2.7/32"), Path::new("c.toml")).expect("valid");
    assert_eq!(config.proxy.balancers.len(), 1);
    check(&with("::/0"), "c.toml:7: `::/0` in `balancers` would let everybody");
    check(&with("192.0.2.7"), "invalid IP address syntax");
}

#[test]
fn the_proxy_over_tls_has_a_port_and_files_of_its_own() {
    let with = |tls: &str| GOOD.replace("[l7]", &format!("[proxy.tls]\n{tls}\n[l7]"));
    let right = "listen = [\"127.0.0.1:3130\"]\ncertificate = \"/etc/proxy.pem\"\nkey = \"/etc/proxy.key\"";
    let config = Config::parse(&with(right), Path::new("c.toml")).expect("valid");
    let ports: Vec<u16> = config.proxy.addresses().map(|a| a.port()).collect();
    assert_eq!(ports, [3128, 3130]);
    let alone = with(right).replacen("[\"127.0.0.1:3128\"]", "[]", 1);
    Config::parse(&alone, Path::new("c.toml")).expect("TLS is a way in");
    check(&with(&right.replace("3130", "3128")), "c.toml:7: `listen` of [proxy.tls] needs another port");
    check(&with(&right.replace("3130", "0")), "c.toml:7: all addresses in `listen` of [proxy.tls]");
    check(&with(&right.replace("\"127.0.0.1:3130\"", "")), "c.toml:7: [proxy.tls] needs an address");
    check(&with(&right.replace("/etc/proxy.key", "proxy.key")), "`key` must be an absolute path");
    check(&with(&right.replace("\nkey", "\nclient_ca = 1\nkey")), "unknown field `client_ca`");
}

/// What a line of the example proposes.
fn proposed(line: &str) -> Option<&str> {
    line.strip_prefix("# ").filter(|rest| rest.contains(" = ") || rest.starts_with('['))
}

const DOCUMENT: &str = include_str!("../../../docs/configuration.md");

#[test]
fn the_units_example_is_accepted_as_it_is_and_with_all_it_proposes() {
    let example = include_str!("../../../systemd/clawgress.toml");
    let path = Path::new("systemd/clawgress.toml");
    let config = Config::parse(example, path).expect("valid");
    assert_eq!(config.agents_interfaces().count(), 1);
    let all: Vec<&str> = example.lines().map(|line| proposed(line).unwrap_or(line)).collect();
    let config = Config::parse(&all.join("\n"), path).expect("valid");
    assert_eq!((config.proxy.addresses().count(), config.l7.resolvers.len()), (2, 1));
    assert!(config.intercept.is_some() && !config.access.admin_users.is_empty());
}

/// Keys of the table that begins so, by what is refused there; `None` if it is no table.
fn keys(begin: &str) -> Option<Vec<String>> {
    let error = toml::from_str::<Config>(&format!("{begin}\nno_such_key = 1\n")).err()?;
    let known = error.message().strip_prefix("unknown field `no_such_key`, expected ")?;
    Some(known.split('`').skip(1).step_by(2).map(str::to_owned).collect())
}

/// Every table, and a table in a table: its heading, what begins it, and its keys.
fn tables(above: &str, begin: &str, found: &mut Vec<(String, Vec<String>)>) {
    for key in keys(begin).unwrap_or_default() {
        let path = if above.is_empty() { key } else { format!("{above}.{key}") };
        for heading in [format!("[{path}]"), format!("[[{path}]]")] {
            let inner = format!("{begin}\n{heading}");
            if let Some(keys) = keys(&inner) {
                found.push((heading, keys));
                tables(&path, &inner, found);
            }
        }
    }
}

#[test]
fn every_key_is_documented_in_its_table() {
    let mut found = Vec::new();
    tables("", "", &mut found);
    let names: Vec<&str> = found.iter().map(|(heading, _)| heading.as_str()).collect();
    for name in
        ["[node]", "[[interface]]", "[interface.danger]", "[proxy.tls]", "[[llm.server]]", "[tenants]"]
    {
        assert!(names.contains(&name), "{name} is in {names:?}");
    }
    for (heading, keys) in &found {
        let begin = format!("\n### `{heading}`\n");
        let (_, section) =
            DOCUMENT.split_once(&begin).unwrap_or_else(|| panic!("docs/configuration.md has `{heading}`"));
        let section = section.split("\n### ").next().expect("a part");
        for key in keys {
            assert!(
                section.contains(&format!("\n| `{key}` |")),
                "docs/configuration.md has `{key}` in `{heading}`"
            );
        }
        let rows = section.lines().filter(|line| line.starts_with("| `")).count();
        assert_eq!(rows, keys.len(), "docs/configuration.md has no more in `{heading}` than there is");
    }
}
