//! DNS: agents ask whatever server they like, and the gateway answers: what policy permits, without what must not be
//! told, and with what it opens.

use std::fs;
use std::time::Duration;

use clawgress_api::{Ingress, RecordKind, Verdict};
use clawgress_e2e::lab::{Daemon, GatewayOptions, Host, Lab, Output};
use clawgress_e2e::plan::{
    API, BLOCKED, DATABASE, DATABASE_PORT, DNS, LARGE, METADATA, REBIND, SECRET, V6_ONLY, WEB, addresses,
};
use clawgress_e2e::scenario::{ASSISTANT, CRAWLER, POLICY, SETS, Site};
use clawgress_e2e::world::CERTIFICATES;

use crate::balancers::haproxy;
use crate::support::{agent, codes, curl, denied, finish, pair, proxy, record, site, to_host};

/// What opens DNS, in place of the scenario's policy that lets it go straight through.
const RESOLVE: &str = r#"
@id("names")
permit (principal in Team::"research", action == Action::"resolve", resource in HostSet::"saas")
when { ["A", "AAAA", "HTTPS"].contains(context.query_type) };

@id("database") @direct("tcp 5432")
permit (principal in Team::"research", action == Action::"resolve", resource == Host::"db.allowed.test")
when { ["A", "AAAA"].contains(context.query_type) };

@id("texts")
permit (principal in Team::"research", action == Action::"resolve", resource == Host::"large.allowed.test");
"#;

/// A site whose agents' DNS is the gateway's.
fn resolving(more: &str) -> Site {
    with_policy(site(), more)
}

pub fn with_policy(mut site: Site, more: &str) -> Site {
    let steered = POLICY.replace(
        "action in [Action::\"connect\", Action::\"direct\"], resource in NetworkSet::\"dns\"",
        "action == Action::\"connect\", resource in NetworkSet::\"dns\"",
    );
    assert_ne!(steered, POLICY);
    site.gateway.apply_policy(&format!("{steered}{RESOLVE}{more}"), SETS).unwrap();
    site
}

fn dig(site: &Site, host: Host, args: &[&str]) -> Output {
    let server = format!("@{}", DNS.0);
    let mut argv = vec!["dig", "+tries=1", "+time=8"];
    if !args.iter().any(|a| a.starts_with('@')) {
        argv.push(&server);
    }
    argv.extend(args);
    site.gateway.lab.run(host, &argv).unwrap()
}

fn short(site: &Site, args: &[&str]) -> Vec<String> {
    let args: Vec<&str> = args.iter().copied().chain(["+short"]).collect();
    dig(site, Host::Known, &args).stdout.lines().map(str::to_owned).collect()
}

#[track_caller]
fn is(output: &Output, status: &str) {
    assert!(output.stdout.contains(&format!("status: {status}")), "{output:?}");
}

#[test]
fn a_permitted_name_resolves_by_any_server_over_any_way() {
    let site = resolving("");
    let six = format!("@{}", DNS.1);
    let [v4, v6] = addresses(API)[..] else { panic!("two addresses") };
    for way in
        [&[][..], &["+tcp"], &[six.as_str()], &[six.as_str(), "+tcp"], &["+noedns"], &["+bufsize=4096"]]
    {
        let ask = |kind| short(&site, &[way, &[API, kind]].concat());
        assert_eq!(ask("A"), [v4.to_string()], "{way:?}");
        assert_eq!(ask("AAAA"), [v6.to_string()], "{way:?}");
    }
    // What asks by the C library.
    let output = site.gateway.lab.run(Host::Known, &["getent", "ahosts", API]).unwrap();
    assert!(output.stdout.contains(&v4.to_string()) && output.stdout.contains(&v6.to_string()), "{output:?}");
    let (decision, outcome) =
        pair(&site, "the question", |r| to_host(r, API) && r.destination.method.as_deref() == Some("AAAA"));
    assert_eq!((agent(&decision), decision.ingress), (Some(CRAWLER), Some(Ingress::Transparent)));
    assert_eq!(
        (decision.action.as_deref(), &decision.policies[..]),
        (Some("resolve"), &["names".to_owned()][..])
    );
    assert_eq!(decision.destination.protocol.as_deref(), Some("udp"));
    assert!(outcome.bytes_sent.unwrap() > 30 && outcome.bytes_received.unwrap() > 40, "{outcome:?}");
    record(&site, "the question over TCP", |r| {
        r.action.as_deref() == Some("resolve") && r.destination.protocol.as_deref() == Some("tcp")
    });
    // Options of the client end here; and what doesn't exist is said not to.
    let output = dig(&site, Host::Known, &["+subnet=198.51.100.0/24", "+cookie", V6_ONLY, "A"]);
    is(&output, "NOERROR");
    assert!(!output.stdout.contains("COOKIE") && !output.stdout.contains("CLIENT-SUBNET"), "{output:?}");
    let large = dig(&site, Host::Known, &["+ignore", LARGE, "TXT"]);
    assert!(large.stdout.contains(" tc ") && large.stdout.contains("ANSWER: 0"), "{large:?}");
    assert_eq!(short(&site, &[LARGE, "TXT"]).len(), 1, "again over TCP");
    // The proxy's own path goes on as before.
    let output = curl(&site, Host::Known, &["https://api.allowed.test/hello"]);
    assert_eq!(codes(&output).0, 200, "{output:?}");
    finish(site);
}

#[test]
fn what_is_not_permitted_is_refused_and_goes_nowhere() {
    let site = resolving(
        "@id(\"no\") forbid (principal, action == Action::\"resolve\", resource == Host::\"llm.allowed.test\");",
    );
    let before = site.gateway.lab.world().unwrap().dns_queries;
    for (args, reason) in [
        (vec![SECRET, "A"], "policy_denied"),
        (vec![BLOCKED, "AAAA"], "policy_denied"),
        (vec![API, "TXT"], "policy_denied"),
        (vec!["llm.allowed.test", "A"], "policy_forbidden"),
        (vec!["api.allowed.test.evil.test", "A"], "policy_denied"),
        (vec!["stolen-data.api.allowed.test", "A"], "policy_denied"),
        (vec![r"a\032b.allowed.test", "A"], "host_invalid"),
        (vec![".", "NS"], "host_invalid"),
    ] {
        let output = dig(&site, Host::Known, &args);
        is(&output, "REFUSED");
        assert!(output.stdout.contains("EDE: 15 (Blocked)") && output.stdout.contains(reason), "{output:?}");
        record(&site, reason, |r| r.action.as_deref() == Some("resolve") && denied(r, reason));
    }
    for (args, status) in [
        (vec!["+opcode=5", API], "NOTIMP"),
        (vec!["-c", "CH", API, "TXT"], "NOTIMP"),
        (vec![API, "AXFR", "+tcp"], "NOTIMP"),
        (vec![API, "ANY"], "NOTIMP"),
        (vec!["+edns=1", "+noednsneg", API], "BADVERS"),
    ] {
        let output = dig(&site, Host::Known, &args);
        let is_transfer = args.contains(&"AXFR");
        assert!(output.stdout.contains(&format!("status: {status}")) || is_transfer, "{args:?}: {output:?}");
    }
    record(&site, "the malformed", |r| denied(r, "dns_malformed"));
    assert_eq!(site.gateway.lab.world().unwrap().dns_queries, before, "none of it was asked anybody");
    // Nobody's questions are dropped before they come here, and those to other ports are none of ours.
    let output = dig(&site, Host::Anon, &["+time=2", API]);
    assert!(output.stdout.contains("no servers could be reached") || !output.ok(), "{output:?}");
    let output = dig(&site, Host::Known, &["+time=2", "+tls", API]);
    assert!(!output.stdout.contains("status: NOERROR"), "DNS over TLS needs a permit: {output:?}");
    record(&site, "port 853", |r| r.destination.port == Some(853) && denied(r, "policy_denied"));
    // Nor over HTTPS: not to a server by its address, nor to one by a name.
    let [web, _] = addresses(WEB)[..] else { panic!("two addresses") };
    let output = dig(&site, Host::Known, &[&format!("@{web}"), "+time=2", "+https", API]);
    assert!(!output.stdout.contains("status: NOERROR"), "DNS over HTTPS needs a permit: {output:?}");
    record(&site, "port 443", |r| r.destination.port == Some(443) && r.verdict == Some(Verdict::Deny));
    let doh =
        ["--doh-url", "https://web.allowed.test/dns-query", "--doh-insecure", "http://api.allowed.test/"];
    assert!(!curl(&site, Host::Known, &doh).ok(), "its name is not permitted");
    record(&site, "the name by the route", |r| to_host(r, WEB) && denied(r, "policy_denied"));
    // By CONNECT, neither.
    let own = proxy(ASSISTANT, &site.assistant_key);
    let refused = |args: &[&str]| codes(&curl(&site, Host::Anon, &[&["-x", &own], args].concat())).1;
    for at in [WEB.to_owned(), format!("{}:853", DNS.0), format!("{API}:853")] {
        assert_eq!(refused(&[&format!("https://{at}/dns-query?dns=AAABAAABAAAAAAAA")]), 403, "{at}");
        record(&site, &at, |r| {
            let to = r.destination.host.as_deref().unwrap_or_default();
            let port = r.destination.port.unwrap_or_default();
            let is_it = at == to || at == format!("{to}:{port}");
            is_it && agent(r) == Some(ASSISTANT) && denied(r, "policy_denied")
        });
    }
    // The gateway has asked for a name that policy permits, to judge its addresses; none of these servers heard of it.
    let world = site.gateway.lab.world().unwrap();
    assert!(world.dns_queries <= before + 2 && world.requests.is_empty(), "{world:?}");
    finish(site);
}

/// What is asked over TLS goes on to the outside's server over TCP, by HAProxy.
fn secured(lab: &Lab) -> Daemon {
    let of_api =
        |kind| fs::read_to_string(lab.dir().join(CERTIFICATES).join(format!("{API}.{kind}"))).unwrap();
    let both = lab.dir().join("dot.pem");
    fs::write(&both, of_api("pem") + &of_api("key")).unwrap();
    let proxies =
        format!("listen dot\n bind {0}:853 ssl crt {1}\n server dns {0}:53\n", DNS.0, both.display());
    haproxy(lab, Host::World, &proxies, &format!("{}/853", DNS.0))
}

/// A site whose gateway asks over TLS; whoever else asks outside is counted.
fn over_tls() -> (Site, Daemon) {
    let lab = Lab::builder().start().unwrap();
    let server = secured(&lab);
    let rules = "table inet plain { counter asked { }
        chain count { type filter hook prerouting priority 0; iifname wan0 meta l4proto { tcp, udp } th dport 53 counter name asked; }
    }";
    lab.run(Host::World, &["nft", rules]).unwrap().check().unwrap();
    let (server_name, roots) = (format!("tls://{}:853#{API}", DNS.0), lab.ca().display().to_string());
    let resolvers = format!("resolvers = [\"{server_name}\"]\nresolver_roots = [\"{roots}\"]");
    let site = Site::start(lab, GatewayOptions { resolvers, ..GatewayOptions::default() }).unwrap();
    (with_policy(site, ""), server)
}

/// Agents are answered by who is asked over TLS; what they are not told is the same.
#[test]
fn private_answers_and_keys_of_ech_are_not_told() {
    let (site, mut server) = over_tls();
    let [v4, v6] = addresses(API)[..] else { panic!("two addresses") };
    for way in [&[][..], &["+tcp"]] {
        assert_eq!(short(&site, &[way, &[API, "A"]].concat()), [v4.to_string()], "{way:?}");
        assert_eq!(short(&site, &[way, &[API, "AAAA"]].concat()), [v6.to_string()], "{way:?}");
    }
    for (name, reason) in [(REBIND, "gateway_address"), (METADATA, "address_reserved")] {
        let output = dig(&site, Host::Known, &[name, "A"]);
        is(&output, "REFUSED");
        assert!(output.stdout.contains("ANSWER: 0") && output.stdout.contains(reason), "{output:?}");
        record(&site, reason, |r| {
            to_host(r, name) && r.kind == RecordKind::Outcome && r.reason.is_some_and(|x| x.name() == reason)
        });
    }
    let services = short(&site, &[API, "HTTPS"]);
    assert_eq!(services.len(), 1, "{services:?}");
    assert!(services[0].contains("alpn=") && !services[0].contains("ech="), "{services:?}");
    let services = short(&site, &[REBIND, "HTTPS"]);
    assert!(services.len() == 1 && !services[0].contains("ipv4hint"), "{services:?}");
    // Nobody is asked in its place, and nothing in clear.
    server.kill().unwrap();
    is(&dig(&site, Host::Known, &["llm.allowed.test", "A"]), "SERVFAIL");
    record(&site, "nobody to ask", |r| {
        to_host(r, "llm.allowed.test") && r.reason.is_some_and(|x| x.name() == "resolve_failed")
    });
    let asked = site.gateway.lab.run(Host::World, &["nft", "list", "counters", "table", "inet", "plain"]);
    assert!(asked.unwrap().stdout.contains("packets 0 bytes 0"));
    let _server = secured(&site.gateway.lab);
    assert_eq!(short(&site, &["llm.allowed.test", "A"]).len(), 1);
    finish(site);
}

#[test]
fn a_port_of_a_name_is_open_once_it_was_told() {
    let site = resolving("");
    let url = format!("http://{DATABASE}:{DATABASE_PORT}/row");
    let [v4, v6] = addresses(DATABASE)[..] else { panic!("two addresses") };
    // By its address alone it is not.
    for ip in [format!("{v4}"), format!("[{v6}]")] {
        let to = format!("{DATABASE}:{DATABASE_PORT}:{ip}:{DATABASE_PORT}");
        let output = curl(
            &site,
            Host::Known,
            &[
                "--connect-to",
                &to,
                "--resolve",
                &format!("{DATABASE}:{DATABASE_PORT}:{}", ip.trim_matches(['[', ']'])),
                &url,
            ],
        );
        assert!(!output.ok(), "{output:?}");
    }
    for family in ["-4", "-6"] {
        let output = curl(&site, Host::Known, &[family, &url]);
        assert_eq!(codes(&output).0, 200, "{output:?}");
    }
    let direct = record(&site, "the flow", |r| {
        r.action.as_deref() == Some("direct") && r.destination.port == Some(DATABASE_PORT)
    });
    assert_eq!(agent(&direct), Some(CRAWLER));
    // Another generation holds what it permits, too.
    let mut site = site;
    let more = "@id(\"unrelated\") forbid (principal, action == Action::\"http\", resource) when { context.method == \"TRACE\" };";
    site = with_policy(site, more);
    let resolve = format!("{DATABASE}:{DATABASE_PORT}:{v4}");
    let again = ["--retry", "20", "--retry-delay", "0", "--retry-all-errors", "--resolve", &resolve, &url];
    assert_eq!(codes(&curl(&site, Host::Known, &again)).0, 200, "it is told to it");
    // And one that forbids it doesn't, however often it is asked.
    let forbid = format!(
        "@id(\"shut\") forbid (principal, action == Action::\"direct\", resource) when {{ context.port == {DATABASE_PORT} }};"
    );
    let site = with_policy(site, &forbid);
    assert_eq!(short(&site, &[DATABASE, "A"]), [v4.to_string()]);
    let output = curl(&site, Host::Known, &["--resolve", &resolve, &url]);
    assert!(!output.ok(), "{output:?}");
    finish(site);
}

#[test]
fn a_quarantined_agent_is_told_nothing() {
    let site = resolving("");
    assert_eq!(short(&site, &[API, "A"]).len(), 1);
    site.gateway.ctl(&["agent", "quarantine", CRAWLER]).unwrap().check().unwrap();
    let output = dig(&site, Host::Known, &["+time=2", API, "A"]);
    assert!(!output.stdout.contains("status: NOERROR"), "{output:?}");
    site.gateway.ctl(&["agent", "release", CRAWLER]).unwrap().check().unwrap();
    let until = std::time::Instant::now() + Duration::from_secs(10);
    while short(&site, &["+time=1", API, "A"]).len() != 1 {
        assert!(std::time::Instant::now() < until, "it is released");
    }
    finish(site);
}

/// A command on the gateway itself asks as an agent's host does: by the C library, by `dig`, and by sockets that never connect.
#[test]
fn a_command_of_this_machine_asks_through_the_gateway() {
    let site = resolving("");
    let [v4, v6] = addresses(API)[..] else { panic!("two addresses") };
    let governed = |args: &[&str]| {
        let all: Vec<&str> = ["run", "--agent", CRAWLER, "--"].iter().chain(args).copied().collect();
        site.gateway.ctl(&all).unwrap()
    };
    let output = governed(&["getent", "ahosts", API]);
    assert!(output.stdout.contains(&v4.to_string()) && output.stdout.contains(&v6.to_string()), "{output:?}");
    let (decision, _) = pair(&site, "the question", |r| {
        to_host(r, API) && r.action.as_deref() == Some("resolve") && r.ingress == Some(Ingress::Local)
    });
    assert_eq!((agent(&decision), decision.destination.protocol.as_deref()), (Some(CRAWLER), Some("udp")));
    for (server, way) in
        [(DNS.0.to_string(), "+notcp"), (DNS.1.to_string(), "+notcp"), (DNS.0.to_string(), "+tcp")]
    {
        let (server, dig) = (format!("@{server}"), ["dig", "+tries=2", "+time=4", "+short", API, "AAAA"]);
        let output = governed(&[&dig[..], &[&server, way]].concat());
        assert_eq!(output.stdout.trim(), v6.to_string(), "{server} {way}: {output:?}");
    }
    let loose = r"
import socket, sys
question = bytes.fromhex('abcd01000001000000000000') + b''.join(bytes([len(l)]) + l.encode() for l in sys.argv[1].split('.')) + bytes.fromhex('0000010001')
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.settimeout(5)
for attempt in range(2):
    try:
        s.sendto(question, (sys.argv[2], 53))
        break
    except PermissionError:
        pass
answer, server = s.recvfrom(512)
print(server, answer[:2].hex(), answer[3] & 15, answer[-4:].hex())
";
    let server = DNS.0.to_string();
    let output = governed(&["python3", "-c", loose, API, &server]);
    let octets = match v4 {
        std::net::IpAddr::V4(ip) => ip.octets().map(|b| format!("{b:02x}")).concat(),
        std::net::IpAddr::V6(_) => panic!("an IPv4 address"),
    };
    assert_eq!(output.stdout.trim(), format!("('{server}', 53) abcd 0 {octets}"), "{output:?}");
    let output = governed(&["getent", "ahosts", SECRET]);
    assert!(!output.ok(), "{output:?}");
    record(&site, "a name that is not permitted", |r| {
        to_host(r, SECRET) && denied(r, "policy_denied") && r.ingress == Some(Ingress::Local)
    });
    // And what it opens is open to it.
    let url = format!("http://{DATABASE}:{DATABASE_PORT}/row");
    let curl = ["curl", "-sS", "--max-time", "8", "--noproxy", "*", "-o", "/dev/null", "-w", "%{http_code}"];
    let output = governed(&[&curl[..], &[&url]].concat());
    assert_eq!(output.stdout.trim(), "200", "{output:?}");
    finish(site);
}
