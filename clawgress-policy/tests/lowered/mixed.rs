//! Sets about several actions, of a tenant and of the platform above it, put to requests of each: what is asked by name, groups,
//! and what each half says alone.

use std::collections::BTreeSet;
use std::sync::Arc;

use clawgress_ebpf_common::DropReason;
use clawgress_identity::{Agent, PolicyOwner};
use clawgress_policy::content::{Payload, Usage};
use clawgress_policy::effect::Obligation;
use clawgress_policy::{Decision, Look, Operation, PolicySet, Request, Surroundings};

use crate::cases::{Things, agents, fingerprints, history, pool, rounds, sets};
use crate::writer::Random;

/// Cases in an ordinary run.
const CASES: usize = 20_000;
/// Requests to one pair of sets.
const REQUESTS: usize = 200;
/// What the policies are about. More of what is asked by name.
const ACTIONS: [&str; 10] =
    ["send", "send", "receive", "receive", "http", "tls", "tunnel", "resolve", "llm", "tool"];

/// A set as it is written, and as it is decided by.
struct Half {
    text: String,
    set: PolicySet,
}

/// Ids of policies are those of the text; `ahead` stands before them in decisions.
fn half(random: &mut Random, pools: &[(&str, Vec<String>)], owner: &PolicyOwner) -> Option<Half> {
    let mut text = String::new();
    for n in 0..1 + random.below(8) {
        let (action, pool) = &pools[random.below(pools.len())];
        let mut policy = pool[random.below(pool.len())].replace("\"ID\"", &format!("\"p{n}\""));
        if random.one_in(5) {
            // The group has it too, and names nothing.
            policy = policy.replace(&format!("action == Action::\"{action}\""), "action in Action::\"use\"");
        }
        text.push_str(&policy);
        text.push('\n');
    }
    for action in ["send", "receive", "http"] {
        if random.one_in(2) {
            text.push_str(&format!(
                "@id(\"base-{action}\") permit (principal, action == Action::\"{action}\", resource);\n"
            ));
        }
    }
    let set = PolicySet::parse_for(owner, &text, &sets(), &Surroundings::default()).ok()?;
    Some(Half { text, set })
}

/// Whether a policy of the text names the action itself, and whether a guard does. Policies are one a line.
fn names(text: &str, action: &str) -> (bool, bool) {
    let scope = |line: &str| {
        line.split(" when {").next().and_then(|line| line.split(" unless {").next().map(str::to_owned))
    };
    let named = |line: &&str| {
        scope(line).is_some_and(|scope| scope.contains(&format!("action == Action::\"{action}\"")))
    };
    let is_guard = |line: &str| !line.contains("@effect(") && !line.contains("@mode(");
    (text.lines().any(|line| named(&line)), text.lines().any(|line| named(&line) && is_guard(line)))
}

/// What one half says alone, by the authorizer: nothing of bodies, where none of its guards names them.
fn alone(half: &PolicySet, text: &str, request: &Request<'_>) -> Decision {
    let action = request.operation.action();
    let is_asked = !matches!(action, "send" | "receive" | "llm" | "tool") || names(text, action).1;
    if is_asked {
        return half.decide_by_oracle(request);
    }
    Decision { verdict: Ok(()), policies: Vec::new(), errors: Vec::new() }
}

fn both_say(own: &Decision, above: &Decision) -> Decision {
    let union = |a: &[String], b: &[String]| {
        a.iter().chain(b).cloned().collect::<BTreeSet<_>>().into_iter().collect::<Vec<_>>()
    };
    if own.is_allow() && above.is_allow() {
        return Decision {
            verdict: Ok(()),
            policies: union(&own.policies, &above.policies),
            errors: Vec::new(),
        };
    }
    for reason in [DropReason::PolicyError, DropReason::PolicyForbidden] {
        let of =
            |half: &Decision| if half.verdict == Err(reason) { half.policies.clone() } else { Vec::new() };
        if [own, above].iter().any(|half| half.verdict == Err(reason)) {
            let errors = union(&own.errors, &above.errors);
            return Decision { verdict: Err(reason), policies: union(&of(own), &of(above)), errors };
        }
    }
    Decision { verdict: Err(DropReason::PolicyDenied), policies: Vec::new(), errors: Vec::new() }
}

/// How what is obliged is told.
fn told(obliged: Result<Vec<Arc<Obligation>>, Decision>) -> Result<Vec<(String, &'static str)>, Vec<String>> {
    match obliged {
        Ok(all) => Ok(all.iter().map(|o| (o.policy.to_string(), o.effect.name())).collect()),
        Err(failed) => Err(failed.policies),
    }
}

#[test]
fn several_actions_under_a_platform_are_decided_as_each_half_says() {
    rounds(CASES, round);
}

/// So many cases of this seed.
fn round(seed: u64, cases: usize) {
    let random = &mut Random(seed);
    let pools = ACTIONS.map(|action| (action, pool(random, action, 20)));
    let tenant = PolicyOwner::of_tenant("default").unwrap();
    let (mut done, mut unasked, mut allowed) = (0, 0, 0);
    while done < cases {
        let Some(own) = half(random, &pools, &tenant) else { continue };
        let Some(above) = half(random, &pools, &PolicyOwner::Platform) else { continue };
        let at = 1_764_061_200_000 + i64::try_from(random.below(7 * 24 * 60)).unwrap() * 60_000;
        let set = own.set.under(&above.set).at(at);
        let agents: Vec<Agent> = agents(random);
        for _ in 0..REQUESTS {
            let agent = &agents[random.below(agents.len())];
            let set = &set.seeing(fingerprints(random)).knowing(history(random));
            let things = Things::new(random);
            let action = ACTIONS[random.below(ACTIONS.len())];
            let request = Request { agent, operation: things.operation(random, action) };
            let halves = (set.alone(), set.platform().unwrap());
            let (first, second) =
                (alone(&halves.0, &own.text, &request), alone(&halves.1, &above.text, &request));
            let wanted = both_say(&first, &second);
            let context = || format!("seed {seed}\n{request:?}\n{}\n// above it\n{}", own.text, above.text);
            assert_eq!(set.decide(&request), wanted, "{}", context());
            assert_eq!(
                told(set.obligations(&request)),
                told(set.obligations_by_oracle(&request)),
                "{}",
                context()
            );
            allowed += usize::from(wanted.is_allow());
            // What is allowed with these arguments, may be.
            let is_tool = matches!(request.operation, Operation::Tool(_));
            assert!(!is_tool || !wanted.is_allow() || set.may_call(&request), "{}", context());
            if let Operation::Send { .. } | Operation::Receive { .. } = request.operation {
                let action = request.operation.action();
                let (named, guarded) = (names(&own.text, action), names(&above.text, action));
                let names = if action == "send" { set.names_send() } else { set.names_receive() };
                assert_eq!(names, named.0 || guarded.0, "{}", context());
                unasked += usize::from(!named.1 || !guarded.1);
                depends_on_what_it_says(set, &request, &context());
            }
        }
        done += REQUESTS;
    }
    println!("{done} cases: {allowed} allowed, {unasked} bodies that one half does not ask about");
    assert!(allowed > done / 20 && unasked > 0 && allowed < done);
}

/// What is said to be enough of a body is: what else it may be changes nothing.
fn depends_on_what_it_says(set: &PolicySet, request: &Request<'_>, context: &str) {
    let (Operation::Send { payload, .. } | Operation::Receive { payload, .. }) = request.operation else {
        return;
    };
    let need = set.needs_payload(request, true);
    if need.decided == Look::Content {
        return;
    }
    let findings = ["private_key".to_owned(), "email".to_owned(), "x".to_owned()];
    for (complete, count) in [(true, 0), (false, 0), (payload.complete, findings.len())] {
        if need.decided == Look::Size && complete != payload.complete {
            continue;
        }
        let other = Payload { complete, findings: &findings[..count], ..payload };
        let operation = match request.operation {
            Operation::Send { host, port, method, path, .. } => {
                Operation::Send { host, port, method, path, payload: other }
            }
            Operation::Receive { host, port, status, .. } => {
                let (input_tokens, output_tokens) = (count as u64 * 400, u64::MAX);
                let usage =
                    Usage { input_tokens, output_tokens, tools: &findings[..count], ..Usage::default() };
                Operation::Receive { host, port, status, payload: other, usage }
            }
            _ => return,
        };
        let asked = Request { agent: request.agent, operation };
        assert_eq!(set.decide(&asked), set.decide(request), "{need:?} of {other:?}\n{context}");
    }
}
