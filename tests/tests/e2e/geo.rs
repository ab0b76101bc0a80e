//! Countries, autonomous systems and hours, in both planes: what the data say of an address, and what the clock says,
//! changes its verdict while traffic runs, in the kernel and in the proxy alike.

use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use clawgress_api::{AuditRecord, Plane};
use clawgress_e2e::lab::{GatewayOptions, Host, Lab};
use clawgress_e2e::plan::{API, LLM, addresses};
use clawgress_e2e::scenario::{ASSISTANT, POLICY, SETS, Site};
use jiff::{SignedDuration, Timestamp};

use crate::support::{admin, codes, curl, curl_within, denied, finish, proxy, record};
use writer::{Writer, map, number, text};

#[path = "../../../xtask/src/setup/mmdb.rs"]
#[expect(dead_code, reason = "set-up takes what these tests don't")]
mod writer;

/// Longest wait for a file that changed to be in force in both planes.
const RELOAD_TIME: Duration = Duration::from_secs(30);

const NOT_THERE: &str = r#"
@id("not-there")
forbid (principal, action == Action::"connect", resource in Country::"FR");
"#;

const NOT_THEM: &str = r#"
@id("not-them")
forbid (principal, action == Action::"connect", resource in Asn::"AS64500");
"#;

/// Puts a data file in place that has these hosts in France, and the rest of the world elsewhere.
fn put(path: &Path, hosts: &[&str]) {
    let record = |code: &str| map(&[("country", map(&[("iso_code", text(code))]))]);
    write(path, "Lab-Country", &record("DE"), &record("FR"), hosts);
}

/// As [`put`], of what belongs to AS 64500; all else is of AS 64511.
fn put_asns(path: &Path, hosts: &[&str]) {
    let record = |asn| map(&[("autonomous_system_number", number(asn))]);
    write(path, "Lab-ASN", &record(64_511), &record(64_500), hosts);
}

/// A file by which these hosts, and one that is none, have one record, and the rest of the world another.
fn write(path: &Path, database: &str, elsewhere: &[u8], there: &[u8], hosts: &[&str]) {
    let mut writer = Writer::new();
    writer.insert(0, 1, elsewhere);
    writer.insert(u128::from(u32::from_be_bytes([192, 0, 2, 200])), 128, there);
    for ip in hosts.iter().flat_map(|host| addresses(host)) {
        let bits = match ip {
            IpAddr::V4(v4) => u128::from(v4.to_bits()),
            IpAddr::V6(v6) => v6.to_bits(),
        };
        writer.insert(bits, 128, there);
    }
    let new = path.with_extension("new");
    fs::write(&new, writer.finish(database, 1_780_000_000)).unwrap();
    fs::rename(&new, path).unwrap();
}

/// Waits until a generation after `before` runs in both planes; gives it.
fn moved_on(site: &Site, before: u64) -> u64 {
    let mut now = before;
    let waited = site.gateway.lab.wait("the next generation in both planes", RELOAD_TIME, || {
        now = admin(site).agreed().map_or(before, |status| status.generation);
        Ok(now > before)
    });
    waited.unwrap();
    now
}

#[test]
fn a_country_is_denied_in_both_planes_as_soon_as_the_data_say_so() {
    let lab = Lab::builder().start().unwrap();
    let data = lab.dir().join("country.mmdb");
    put(&data, &[]);
    let more = format!("[geo]\ncountry = \"{}\"\n", data.display());
    let site = Site::start(lab, GatewayOptions { more, ..GatewayOptions::default() }).unwrap();
    let admin = admin(&site);
    let policy = format!("{POLICY}{NOT_THERE}");
    admin.apply_text(site.gateway.lab.dir(), &policy, SETS).unwrap().check().unwrap();
    let generation = admin.agreed().unwrap().generation;
    let steered = || curl_within(&site, Host::Known, 3, &["-4", &format!("https://{API}/")]);
    let proxied = || {
        let through = proxy(ASSISTANT, &site.assistant_key);
        codes(&curl(&site, Host::Anon, &["--proxy", &through, &format!("https://{API}/")]))
    };
    assert!(steered().ok(), "nothing of it is in France");
    assert_eq!(proxied(), (200, 200));

    put(&data, &[API]);
    let generation = moved_on(&site, generation);
    assert!(!steered().ok());
    let dropped = record(&site, "the drop", |r| {
        r.plane == Plane::Kernel && denied(r, "policy_forbidden") && r.generation == generation
    });
    assert_eq!(dropped.policies, ["not-there"]);
    assert_eq!(proxied(), (0, 403));
    let refused = record(&site, "the refusal", |r| {
        r.plane == Plane::L7 && denied(r, "policy_forbidden") && r.generation == generation
    });
    assert_eq!(refused.policies, ["not-there"]);

    // A torn file changes nothing; a whole one that has another host there does.
    fs::write(&data, b"torn").unwrap();
    let complaint =
        |warnings: &[String]| warnings.iter().any(|w| w.contains("no usable file of country data"));
    let told =
        site.gateway.lab.wait("the complaint", RELOAD_TIME, || Ok(complaint(&admin.status()?.warnings)));
    told.unwrap();
    assert_eq!(admin.status().unwrap().generation, generation);
    assert!(!steered().ok());
    put(&data, &[LLM]);
    moved_on(&site, generation);
    assert!(steered().ok());
    assert_eq!(proxied(), (200, 200));
    replay_is_exact(&site);
    finish(site);
}

/// A host is asked for by the route, and by the explicit proxy: whether it was reached, and the proxy's answer.
fn asked(site: &Site, host: &str) -> [bool; 2] {
    let url = format!("https://{host}/");
    let steered = ["-4", "-6"].map(|family| curl_within(site, Host::Known, 3, &[family, &url]).ok());
    assert_eq!(steered[0], steered[1], "{host}: its families are judged otherwise");
    let through = proxy(ASSISTANT, &site.assistant_key);
    let codes = codes(&curl(site, Host::Anon, &["--proxy", &through, &url]));
    assert!(codes.1 == 200 || codes == (0, 403), "{host}: {codes:?}");
    [steered[0], codes.1 == 200]
}

/// Both planes have denied this host for that policy in `generation`, the kernel of both its families.
#[track_caller]
fn told_in_both_planes(site: &Site, host: &str, policy: &str, generation: u64) {
    let is_it = |r: &AuditRecord| {
        denied(r, "policy_forbidden") && r.generation == generation && r.policies == [policy]
    };
    for ip in addresses(host) {
        record(site, &format!("the drop to {ip}"), |r| {
            is_it(r) && r.plane == Plane::Kernel && r.destination.ip == Some(ip)
        });
    }
    record(site, &format!("the refusal of {host}"), |r| {
        is_it(r) && r.plane == Plane::L7 && r.destination.host.as_deref() == Some(host)
    });
}

#[test]
fn an_autonomous_system_is_denied_in_both_planes() {
    let lab = Lab::builder().start().unwrap();
    let data = lab.dir().join("asn.mmdb");
    put_asns(&data, &[API]);
    let more = format!("[geo]\nasn = \"{}\"\n", data.display());
    let site = Site::start(lab, GatewayOptions { more, ..GatewayOptions::default() }).unwrap();
    let admin = admin(&site);
    assert_eq!(asked(&site, API), [true; 2], "no policy asks whose it is yet");
    let policy = format!("{POLICY}{NOT_THEM}");
    admin.apply_text(site.gateway.lab.dir(), &policy, SETS).unwrap().check().unwrap();
    let generation = admin.agreed().unwrap().generation;
    assert_eq!((asked(&site, API), asked(&site, LLM)), ([false; 2], [true; 2]));
    told_in_both_planes(&site, API, "not-them", generation);

    // Its addresses become somebody else's.
    put_asns(&data, &[LLM]);
    let generation = moved_on(&site, generation);
    assert_eq!((asked(&site, API), asked(&site, LLM)), ([true; 2], [false; 2]));
    told_in_both_planes(&site, LLM, "not-them", generation);
    finish(site);
}

/// What is to be tried before a turn takes less, on a machine that has time.
const BEFORE_THE_TURN: SignedDuration = SignedDuration::from_secs(30);
/// Turns that are tried, on one that has none.
const TURNS_MAX: usize = 4;

/// The first minute to begin after that much time.
fn a_minute_to_come() -> Timestamp {
    let soon = (Timestamp::now() + BEFORE_THE_TURN).as_second();
    Timestamp::from_second((soon / 60 + 1) * 60).unwrap()
}

/// From `turn` on one host is forbidden, and until then another.
fn turning(turn: Timestamp) -> String {
    format!(
        r#"{POLICY}
@id("from-then-on")
forbid (principal, action == Action::"connect", resource in NetworkSet::"closing") when {{ context.time >= datetime("{turn}") }};
@id("until-then")
forbid (principal, action == Action::"connect", resource in NetworkSet::"opening") when {{ context.time < datetime("{turn}") }};
"#
    )
}

fn networks(name: &str, host: &str) -> String {
    let list: Vec<String> = addresses(host)
        .iter()
        .map(|ip| format!("\"{ip}/{}\"", if ip.is_ipv4() { 32 } else { 128 }))
        .collect();
    format!("{name} = [{}]\n", list.join(", "))
}

#[test]
fn a_window_of_time_that_turns_changes_what_both_planes_permit() {
    let site = Site::start(Lab::builder().start().unwrap(), GatewayOptions::default()).unwrap();
    let admin = admin(&site);
    let sets = format!("{SETS}{}{}", networks("closing", LLM), networks("opening", API));
    let mut before = None;
    for _ in 0..TURNS_MAX {
        let turn = a_minute_to_come();
        admin.apply_text(site.gateway.lab.dir(), &turning(turn), &sets).unwrap().check().unwrap();
        let generation = admin.agreed().unwrap().generation;
        let seen = (asked(&site, LLM), asked(&site, API));
        // What was seen later tells nothing of the time before.
        if Timestamp::now() < turn {
            assert_eq!(seen, ([true; 2], [false; 2]), "before {turn}");
            before = Some((turn, generation));
            break;
        }
    }
    let (turn, generation) = before.unwrap();
    told_in_both_planes(&site, API, "until-then", generation);

    // Nobody applies anything: the clock does.
    std::thread::sleep(Timestamp::now().duration_until(turn).try_into().unwrap_or_default());
    let generation = moved_on(&site, generation);
    assert_eq!((asked(&site, LLM), asked(&site, API)), ([false; 2], [true; 2]), "after {turn}");
    told_in_both_planes(&site, LLM, "from-then-on", generation);
    finish(site);
}

/// Time windows that hold all day: what is asked for is the clock, not when the test runs.
const ALL_DAY: &str = r#"
@id("any-hour")
forbid (principal, action == Action::"http", resource) when { context.hour > 23 || context.path like "/closed/*" };
"#;

/// All that is decided under one revision, in both planes, is decided alike when it is asked again: hosts, methods, paths,
/// named sets, countries, the hour, and denials in each phase. What a record doesn't hold is said, and not guessed.
#[track_caller]
fn replay_is_exact(site: &Site) {
    let dir = site.gateway.lab.dir();
    let policy = format!("{POLICY}{NOT_THERE}{ALL_DAY}");
    admin(site).apply_text(dir, &policy, SETS).unwrap().check().unwrap();
    let since = admin(site).agreed().unwrap();
    let through = proxy(ASSISTANT, &site.assistant_key);
    let asked: [(Host, &[&str], u16); 9] = [
        (Host::Known, &["http://api.allowed.test/x"], 200),
        (Host::Known, &["http://api.allowed.test/admin/x"], 403),
        (Host::Known, &["http://api.allowed.test/closed/x"], 403),
        (Host::Known, &["-X", "POST", "-d", "x", "http://web.allowed.test/public/x"], 403),
        (Host::Known, &["https://api.allowed.test/x"], 200),
        (Host::Known, &["-k", "https://inspect.allowed.test/x"], 0),
        (Host::Anon, &["-x", &through, "https://api.allowed.test/x"], 200),
        (Host::Anon, &["-x", &through, "https://other.denied.test/x"], 0),
        (Host::Anon, &["-x", &through, "http://llm.allowed.test/replayed"], 403),
    ];
    for (host, args, status) in asked {
        let output = curl_within(site, host, 3, args);
        assert_eq!(codes(&output).0, status, "{args:?}: {output:?}");
    }
    assert!(!curl_within(site, Host::Known, 2, &["http://203.0.113.10:81/"]).ok(), "dropped in the kernel");
    record(site, "the drop", |r| {
        r.plane == Plane::Kernel && denied(r, "policy_denied") && r.generation == since.generation
    });
    record(site, "the last request", |r| r.destination.path.as_deref() == Some("/replayed"));
    let live = since.revision.to_string();
    let replay = |policy: &[&str]| -> serde_json::Value {
        let words = [&["policy", "replay", "-o", "json", "-n", "50000"], policy].concat();
        let output = site.gateway.ctl(&words).unwrap().check().unwrap();
        serde_json::from_str(&output.stdout).unwrap()
    };
    let again = replay(&[&live]);
    let undecidable = again["undecidable"].as_object().unwrap();
    assert_eq!(
        (again["changed"].as_array().unwrap().len(), &again["otherwise"]),
        (0, &0.into()),
        "{again:#}"
    );
    // What was decided under former generations rested on other geo data, of which the kernel's records don't tell.
    assert!(undecidable.keys().all(|why| why == "the geo data of then"), "{again:#}");
    assert!(again["same"].as_u64().unwrap() >= 9, "{again:#}");
}
