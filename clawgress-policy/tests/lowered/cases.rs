//! Sets of them, requests, and the comparison.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clawgress_ebpf_common::DropReason;
use clawgress_identity::{Agent, AgentState, PolicyOwner};
use clawgress_policy::content::{AskedCall, ModelCall, Payload, ToolCall, Usage};
use clawgress_policy::fingerprint::Fingerprints;
use clawgress_policy::head::Head;
use clawgress_policy::history::{Counts, History};
use clawgress_policy::{
    Decision, Host, NamedSets, Need, Operation, PolicySet, Request, Scheme, Surroundings, Transport,
    TunnelProtocol,
};

use crate::writer::{
    ACTIONS, AGENTS, FIELDS, FINDINGS, HOSTS, JA4S, LABELS, METHODS, NETWORKS, OFFERED, OFFERING, PARAMETERS,
    PATHS, PRINTS, Random, SAID, Writer,
};

/// Cases in an ordinary run: what the issue asks for.
const CASES: usize = 100_000;
/// Requests to one set of policies, and policies in one.
const REQUESTS: usize = 200;
const POLICIES: usize = 14;
/// Policies beside one that permits everything: of more, what forbids would leave little of it.
const POLICIES_BESIDE: usize = 5;

pub fn sets() -> NamedSets {
    let hosts = |list: &[&str]| list.iter().map(|h| (*h).to_owned()).collect::<BTreeSet<_>>();
    let nets = |list: &[&str]| list.iter().map(|p| p.parse().unwrap()).collect();
    NamedSets {
        hosts: BTreeMap::from([
            ("saas".to_owned(), hosts(&["api.example.com", "*.b.example.com", "203.0.113.7"])),
            ("exact".to_owned(), hosts(&["packages.test", "2001:db8::7"])),
            ("wide".to_owned(), hosts(&["*.example.com", "*.test"])),
        ]),
        networks: BTreeMap::from([
            ("offices".to_owned(), nets(&["203.0.113.0/24", "2001:db8::/32"])),
            ("lab".to_owned(), nets(&["203.0.113.128/25", "10.1.2.3/32"])),
            ("all".to_owned(), nets(&["0.0.0.0/0"])),
        ]),
    }
}

pub fn parse(text: &str) -> Option<PolicySet> {
    PolicySet::parse_in(text, &sets(), &Surroundings::default()).ok()
}

/// Questions that chance may leave out: of addresses, and one that overflows, for some agents or on some ports.
const OF_ADDRESSES: [&str; 5] = [
    "context.ip.isLoopback()",
    "context.ip.isMulticast()",
    "context.ip.isIpv4()",
    "context.ip.isIpv6()",
    "principal.name == \"bot\" && 9223372036854775807 + 1 > 0",
];
const OVERFLOWS: [&str; 1] = ["9223372036854775800 + context.port < 0"];
/// Sets about one action from which on allows and denies have to be balanced in it: of fewer chance makes too much.
const BALANCED_SETS: usize = 40;

/// What came of the requests of one action.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    sets: usize,
    done: usize,
    allowed: usize,
    failed: usize,
}

pub fn history(random: &mut Random) -> History {
    let mut counts = || Counts {
        minute: random.below(3) as u64,
        hour: random.below(6) as u64,
        day: random.below(100) as u64,
    };
    let (requests, denied) = (counts(), counts());
    History {
        requests,
        denied,
        first_seen: random.one_in(2),
        fingerprint_changed: random.one_in(2),
        request_surge: random.one_in(2),
        denial_burst: random.one_in(2),
    }
}

pub fn fingerprints(random: &mut Random) -> Arc<Fingerprints> {
    let mut maybe = || random.one_in(2).then(|| random.pick(&PRINTS).to_owned());
    Arc::new(Fingerprints { executable: maybe(), cgroup: maybe(), certificate: maybe(), mac: maybe() })
}

/// Policies that are valid alone, for one action.
pub fn pool(random: &mut Random, action: &str, size: usize) -> Vec<String> {
    let always = match action {
        "connect" | "direct" => &OF_ADDRESSES[..],
        _ => &OVERFLOWS[..],
    };
    let write = |question: &&str| {
        format!(
            "@id(\"ID\") permit (principal, action == Action::\"{action}\", resource) when {{ {question} }};"
        )
    };
    let mut pool: Vec<String> = always.iter().map(write).collect();
    for _ in 0..size * 60 {
        let text = Writer { random, action }.policy();
        if parse(&text).is_some() {
            pool.push(text);
        }
        if pool.len() == size {
            break;
        }
    }
    assert_eq!(pool.len(), size, "the generator writes too much that is refused for {action}");
    pool
}

pub fn agents(random: &mut Random) -> Vec<Agent> {
    let maybe =
        |random: &mut Random, list: &[&str]| (!random.one_in(3)).then(|| random.pick(list).to_owned());
    (1..=8)
        .map(|index| Agent {
            id: random.pick(&AGENTS).parse().unwrap(),
            index,
            team: maybe(random, &["research", "ops"]),
            project: maybe(random, &["atlas", "other"]),
            environment: maybe(random, &["prod", "dev"]),
            labels: LABELS[..2]
                .iter()
                .filter_map(|key| Some(((*key).to_owned(), maybe(random, &["crawler", "gold", "x"])?)))
                .collect(),
            state: AgentState::Active,
            sources: Vec::new(),
        })
        .collect()
}

/// What random requests are about.
pub struct Things {
    host: Host,
    ip: IpAddr,
    port: u16,
    alpn: Vec<String>,
    findings: Vec<String>,
    names: Vec<String>,
    transport: Transport,
    head: Head,
}

impl Things {
    pub fn new(random: &mut Random) -> Things {
        Things {
            host: Host::parse(random.pick(&HOSTS)).unwrap(),
            ip: random.pick(&NETWORKS).parse().unwrap(),
            port: [0, 22, 80, 443, 8080][random.below(5)],
            alpn: (0..random.below(3)).map(|_| random.pick(&["h2", "http/1.1", "x"]).to_owned()).collect(),
            findings: strings(random, &FINDINGS),
            names: strings(random, &FINDINGS),
            transport: [Transport::Tcp, Transport::Udp, Transport::Icmp, Transport::Gre][random.below(4)],
            head: head(random, 1),
        }
    }

    pub fn operation<'a>(&'a self, random: &mut Random, action: &str) -> Operation<'a> {
        let Things { host, ip, port, alpn, findings, names, transport, head } = self;
        let (ip, port, transport) = (*ip, *port, *transport);
        match action {
            "connect" => Operation::Connect { ip, port, transport },
            "direct" => Operation::Direct { ip, port, transport },
            "tls" => Operation::Tls { host, port, alpn, ja4: random.pick(&JA4S) },
            "tunnel" => Operation::Tunnel {
                host,
                port,
                protocol: TunnelProtocol::ALL[random.below(TunnelProtocol::ALL.len())],
            },
            "resolve" => Operation::Resolve { host, port, query_type: random.pick(&["A", "AAAA", "TXT"]) },
            "llm" => Operation::Llm(ModelCall {
                host,
                port,
                provider: random.pick(&OFFERING),
                model: random.pick(&OFFERED),
                family: random.pick(&OFFERED),
                surface: random.pick(&["chat_completions", "batches"]),
                tokens_estimated: random.below(900) as u64,
                tokens_max: random.one_in(2).then(|| random.below(900) as u64),
                attachments: random.below(3) as u32,
                images: random.below(3) as u32,
                attachment_bytes: random.below(900) as u64,
                prompt_score: random.below(101) as u32,
                unpriced: random.one_in(2),
                tool_choice: random.pick(&["", "auto", "email"]),
                end_user: random.pick(&["", "u-1"]),
                store: random.one_in(2),
                partial: random.one_in(2),
                stream: random.one_in(2),
                tools: names,
                findings,
            }),
            "tool" => Operation::Tool(ToolCall {
                host,
                port,
                server: random.pick(&OFFERING),
                method: random.pick(&["tools/call", "tools/list"]),
                name: random.pick(&OFFERED),
                argument_names: names,
                values: findings,
                arguments: random.pick(&["{}", "{\"path\":\"/etc/passwd\"}"]),
                findings,
            }),
            "send" => {
                let (method, path) = (random.pick(&METHODS), random.pick(&PATHS));
                Operation::Send { host, port, method, path, payload: payload(random, findings) }
            }
            "receive" => {
                let usage = Usage {
                    input_tokens: random.below(900) as u64,
                    output_tokens: random.below(900) as u64,
                    tools: names,
                    call: AskedCall {
                        name: random.pick(&OFFERED),
                        argument_names: names,
                        values: findings,
                        arguments: random.pick(&["{}", "{\"path\":\"/etc/passwd\"}"]),
                    },
                };
                let status = [200, 404, 443][random.below(3)];
                Operation::Receive { host, port, status, payload: payload(random, findings), usage }
            }
            _ => Operation::Http {
                host,
                port,
                scheme: if random.one_in(2) { Scheme::Http } else { Scheme::Https },
                method: random.pick(&METHODS),
                path: random.pick(&PATHS),
                head,
            },
        }
    }
}

/// A random head: of each name one value or none, or also two.
pub fn head(random: &mut Random, most: usize) -> Head {
    let mut said = |names: &[&'static str]| {
        let mut all = Vec::new();
        for name in names {
            for _ in 0..random.below(most + 1) {
                all.push((*name, random.pick(&SAID)));
            }
        }
        all
    };
    let (fields, query) = (said(&FIELDS), said(&PARAMETERS));
    let query: Vec<String> = query.into_iter().map(|(name, value)| format!("{name}={value}")).collect();
    Head::of(fields.into_iter().map(|(name, value)| (name, value.as_bytes())), &query.join("&"))
}

fn strings(random: &mut Random, list: &[&'static str]) -> Vec<String> {
    (0..random.below(3)).map(|_| random.pick(list).to_owned()).collect()
}

fn payload<'a>(random: &mut Random, findings: &'a [String]) -> Payload<'a> {
    let media_type = random.pick(&["application/json", "x", ""]);
    Payload { bytes: random.below(900) as u64, complete: random.one_in(2), media_type, findings }
}

/// What both must say of a request, from what the authorizer says of each alone: both allow, or it is denied.
fn conjunction(set: &PolicySet, request: &Request<'_>) -> Decision {
    let Some(platform) = set.platform() else { return set.decide_by_oracle(request) };
    let both = [set.alone().decide_by_oracle(request), platform.decide_by_oracle(request)];
    let union = |lists: [&Vec<String>; 2]| {
        lists.into_iter().flatten().cloned().collect::<BTreeSet<_>>().into_iter().collect::<Vec<_>>()
    };
    if both.iter().all(Decision::is_allow) {
        let policies = union([&both[0].policies, &both[1].policies]);
        return Decision { verdict: Ok(()), policies, errors: Vec::new() };
    }
    for reason in [DropReason::PolicyError, DropReason::PolicyForbidden] {
        let none = Vec::new();
        let by = both.each_ref().map(|d| if d.verdict == Err(reason) { &d.policies } else { &none });
        let errors = union([&both[0].errors, &both[1].errors]);
        if both.iter().any(|d| d.verdict == Err(reason)) {
            return Decision { verdict: Err(reason), policies: union(by), errors };
        }
    }
    Decision { verdict: Err(DropReason::PolicyDenied), policies: Vec::new(), errors: Vec::new() }
}

/// What both say of one request.
fn both(set: &PolicySet, request: &Request<'_>) -> (Decision, Decision) {
    let (obliged, wanted) = (set.obligations(request), set.obligations_by_oracle(request));
    if !matches!(request.operation, Operation::Connect { .. } | Operation::Direct { .. }) {
        assert_eq!(obliged, wanted, "obligations of {request:?}");
    }
    let went_direct = matches!(request.operation, Operation::Direct { .. });
    if let Operation::Connect { ip, port, transport } | Operation::Direct { ip, port, transport } =
        request.operation
    {
        let (lowered, wanted) = (
            set.told(request.agent, ip, port, transport, went_direct),
            set.told_by_oracle(request.agent, ip, port, transport, went_direct),
        );
        assert_eq!(lowered, wanted, "what follows on {request:?}");
    }
    (set.decide(request), conjunction(set, request))
}

pub fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).ok().map_or(otherwise, |text| text.parse().expect("a number"))
}

/// So many cases of a seed, and of the next ones for as long as is asked for.
pub fn rounds(otherwise: usize, round: impl Fn(u64, usize)) {
    let mut seed = number("CLAWGRESS_SEED", std::process::id().into());
    let cases = usize::try_from(number("CLAWGRESS_CASES", otherwise as u64)).unwrap();
    // Rounds for so long, and one at least.
    let time = Duration::from_secs(60 * number("CLAWGRESS_FUZZ_MINUTES", 0));
    let (began, mut rounds) = (Instant::now(), 0);
    loop {
        println!("CLAWGRESS_SEED={seed}");
        round(seed, cases);
        rounds += 1;
        if began.elapsed() >= time {
            break;
        }
        seed += 1;
    }
    println!("{} cases in {rounds} rounds, no difference", rounds * cases);
}

#[test]
fn decisions_are_the_authorizers() {
    rounds(CASES, round);
}

/// A set of the platform's: what it does not forbid it mostly permits, or nothing would be allowed.
fn platform(random: &mut Random, action: &str, pool: &[String]) -> Option<PolicySet> {
    let mut text: String = (0..1 + random.below(4))
        .map(|n| pool[random.below(pool.len())].replace("\"ID\"", &format!("\"p{n}\"")) + "\n")
        .collect();
    if !random.one_in(8) {
        text.push_str(&format!(
            "@id(\"base\") permit (principal, action == Action::\"{action}\", resource);"
        ));
    }
    PolicySet::parse_for(&PolicyOwner::Platform, &text, &sets(), &Surroundings::default()).ok()
}

/// So many cases of this seed.
fn round(seed: u64, cases: usize) {
    let random = &mut Random(seed);
    let (mut done, mut needed) = (0, 0);
    let pools = ACTIONS.map(|action| (action, pool(random, action, 24)));
    let mut tallies = ACTIONS.map(|action| (action, Tally::default()));
    // As many sets of each action.
    let mut turns = (0..pools.len()).cycle();
    while done < cases {
        let n = turns.next().unwrap();
        let ((action, pool), (_, tally)) = (&pools[n], &mut tallies[n]);
        // So that allows and denies are about as many.
        let (mut set, text) = set(random, (action, pool), tally.sets % 2 == 0);
        tally.sets += 1;
        set = set.at(1_764_061_200_000 + i64::try_from(random.below(7 * 24 * 60)).unwrap() * 60_000);
        let agents = agents(random);
        for _ in 0..REQUESTS {
            let agent = &agents[random.below(agents.len())];
            let before = set.seeing(fingerprints(random));
            let set = &before.knowing(history(random));
            let things = Things::new(random);
            let operation = things.operation(random, action);
            let request = Request { agent, operation };
            let (lowered, oracle) = both(set, &request);
            assert_eq!(lowered, oracle, "seed {seed}\n{request:?}\n{text}");
            needed += usize::from(without_history(&before, set, &request));
            tally.allowed += usize::from(oracle.is_allow());
            tally.failed += usize::from(!oracle.errors.is_empty());
        }
        tally.done += REQUESTS;
        done += REQUESTS;
    }
    for (action, tally) in &tallies {
        println!("{action}: {tally:?}");
    }
    // Far from what chance does.
    for (action, Tally { sets, done, allowed, failed }) in tallies {
        let is_balanced = (done / 10..done - done / 10).contains(&allowed);
        assert!(
            sets < BALANCED_SETS || is_balanced,
            "seed {seed}: allows and denies of {action} are balanced: {allowed} of {done}"
        );
        assert!(sets < BALANCED_SETS || failed > 0, "seed {seed}: errors are among those of {action}");
    }
    assert!((1..done / 2).contains(&needed), "some need a history, and most don't: {needed}");
}

/// A set about an action, sometimes under a platform's, and its text. With a permit of everything, if it is to be `wide`; with a
/// forbid of some of it otherwise: so that chance alone leaves neither allows nor denies few.
fn set(random: &mut Random, (action, pool): (&str, &[String]), wide: bool) -> (PolicySet, String) {
    loop {
        let count = 1 + random.below(if wide { POLICIES_BESIDE } else { POLICIES });
        let mut text: String = (0..count)
            .map(|n| pool[random.below(pool.len())].replace("\"ID\"", &format!("\"p{n}\"")) + "\n")
            .collect();
        let scope = format!("(principal, action == Action::\"{action}\", resource)");
        text.push_str(&if wide {
            format!("@id(\"base\") permit {scope};")
        } else {
            format!("@id(\"base\") forbid {scope} when {{ [22, 443].contains(context.port) }};")
        });
        // What a set may hold together is bounded for the kernel: then another.
        let Some(set) = parse(&text) else { continue };
        if !random.one_in(3) {
            return (set, text);
        }
        if let Some(platform) = platform(random, action, pool) {
            return (set.under(&platform), text + " // under a platform's");
        }
    }
}

/// Where nobody needs to know a history, nothing depends on it; where somebody does, its absence is told. Whether it is
/// needed.
fn without_history(before: &PolicySet, knowing: &PolicySet, request: &Request<'_>) -> bool {
    let would = |set: &PolicySet| {
        set.obligations(request)
            .map(|all| all.iter().map(|o| (o.policy.to_string(), o.effect.name())).collect::<Vec<_>>())
    };
    let need = before.needs_history(request);
    match need {
        Need::None => {
            assert_eq!(before.decide(request), knowing.decide(request), "{request:?}");
            assert_eq!(would(before), would(knowing), "{request:?}");
        }
        Need::Logged => {
            assert_eq!(before.decide(request), knowing.decide(request), "{request:?}");
            match would(before) {
                Ok(told) => assert!(told.iter().any(|(_, effect)| *effect == "would-fail"), "{told:?}"),
                // For another reason: what only logs never denies.
                Err(failed) => assert_eq!(Err(failed), would(knowing), "{request:?}"),
            }
        }
        Need::Decided => {
            let fails = |decision: &Decision| decision.verdict == Err(DropReason::PolicyError);
            let failed = before.obligations(request).err();
            assert!(fails(&before.decide(request)) || failed.as_ref().is_some_and(fails), "{request:?}");
        }
    }
    need != Need::None
}

/// A written entity that a condition computes may be the request's own, which is in more than itself.
#[test]
fn what_is_written_may_be_the_requests_own() {
    let mut agent = agents(&mut Random(1)).remove(0);
    agent.id = "default/web".parse().unwrap();
    let host = Host::parse("api.example.com").unwrap();
    let (scheme, head) = (Scheme::Http, Head::none());
    let operation = Operation::Http { host: &host, port: 80, scheme, method: "GET", path: "/", head };
    let request = Request { agent: &agent, operation };
    for condition in [
        r#"(if context.port == 443 then resource else Host::"api.example.com") in HostSet::"saas""#,
        r#"(if context.port == 443 then principal else Agent::"default/web") in Tenant::"default""#,
    ] {
        let text = format!(
            "@id(\"base\") permit (principal, action == Action::\"http\", resource);\n@id(\"no\") forbid (principal, action == Action::\"http\", resource) when {{ {condition} }};"
        );
        let (lowered, oracle) = both(&parse(&text).expect(condition), &request);
        assert_eq!(lowered, oracle, "{condition}");
        assert_eq!(lowered.policies, ["no"], "{condition}");
    }
}

/// Found by `cargo xtask fuzz-policy` (seed 20261168): guards that nobody asks about a body need no history for one.
#[test]
fn what_is_not_asked_needs_no_history() {
    let agents = agents(&mut Random(1));
    let host = Host::parse("api.example.com").unwrap();
    let payload = Payload { bytes: 1, complete: true, media_type: "", findings: &[] };
    let operation = Operation::Send { host: &host, port: 80, method: "PUT", path: "/", payload };
    let request = Request { agent: &agents[0], operation };
    let told = "@id(\"told\") @effect(\"alert\") permit (principal, action == Action::\"send\", resource);";
    let seen = "when { context.history.first_seen }";
    for (guard, need) in [
        (format!("@id(\"p\") permit (principal, action in Action::\"use\", resource) {seen};"), Need::None),
        (
            format!("@id(\"p\") permit (principal, action == Action::\"send\", resource) {seen};"),
            Need::Decided,
        ),
    ] {
        let before = parse(&format!("{told}\n{guard}")).expect(&guard);
        assert_eq!(
            without_history(&before, &before.knowing(history(&mut Random(1))), &request),
            need != Need::None
        );
        assert_eq!(before.needs_history(&request), need, "{guard}");
    }
}

/// Found by `cargo xtask fuzz-policy` (seed 20261175): a `connect` has no history, also where one is known.
#[test]
fn what_the_kernel_decides_has_no_history() {
    let agents = agents(&mut Random(1));
    let ip = "203.0.113.9".parse().unwrap();
    let operation = Operation::Connect { ip, port: 80, transport: Transport::Tcp };
    let request = Request { agent: &agents[0], operation };
    let set = parse(
        "@id(\"base\") permit (principal, action == Action::\"connect\", resource);\n@id(\"no\") forbid (principal, action == Action::\"connect\", resource) when { !(context has history) };",
    );
    let set = set.unwrap().knowing(history(&mut Random(1)));
    let (lowered, oracle) = both(&set, &request);
    assert_eq!(lowered, oracle);
    assert_eq!(lowered.policies, ["no"], "as the kernel's tables have it");
}
