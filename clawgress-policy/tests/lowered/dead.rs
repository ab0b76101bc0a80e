//! What lint proves to do nothing determines nothing: no verdict, no obligation, no error.
//!
//! `CLAWGRESS_SETS` makes a run longer.

use std::collections::BTreeSet;

use clawgress_policy::lint::{Certainty, Configuration, Enforced, Lint};
use clawgress_policy::{Operation, PolicySet, Request};

use crate::cases::{Things, agents, fingerprints, history, number, parse, pool};
use crate::writer::{ACTIONS, Random};

/// Sets in an ordinary run, policies in one, and requests to one in which anything is dead.
const SETS: u64 = 300;
const POLICIES: usize = 10;
const REQUESTS: usize = 60;

/// Policies that lint proves dead.
fn dead(set: &PolicySet, text: &str) -> BTreeSet<String> {
    let found =
        set.lint(text, &Configuration { enforced: Enforced::all(), ..Configuration::default() }).into_iter();
    let proven = found.filter(|f| f.severity == Certainty::Error);
    proven
        .inspect(|f| assert!(matches!(f.lint, Lint::NeverMatches | Lint::CoveredByForbid), "{f:?}"))
        .filter_map(|f| f.policy)
        .collect()
}

/// A policy of the pool, now and then with the condition of another, or with what it asks denied.
fn written(random: &mut Random, pool: &[String], n: usize) -> String {
    let policy = |random: &mut Random| pool[random.below(pool.len())].replace("\"ID\"", &format!("\"p{n}\""));
    let (one, other) = (policy(random), policy(random));
    let condition =
        |text: &str| Some(text.trim_end_matches(';').split_once('{')?.1.trim_end_matches('}').to_owned());
    let (Some(more), true) = (condition(&other), random.one_in(2)) else { return one + "\n" };
    let word = random.pick(&["when", "unless"]);
    let own = if random.one_in(2) { condition(&one) } else { None };
    format!("{} {word} {{ {} }};\n", one.trim_end_matches(';'), own.unwrap_or(more))
}

fn determining(set: &PolicySet, request: &Request<'_>) -> BTreeSet<String> {
    let mut ids: BTreeSet<String> = set.decide(request).policies.into_iter().collect();
    match set.obligations(request) {
        Ok(obligations) => ids.extend(obligations.iter().map(|o| o.policy.to_string())),
        Err(failed) => ids.extend(failed.policies),
    }
    if let Operation::Connect { ip, port, transport } = request.operation {
        ids.extend(set.limits(request.agent, ip, port, transport));
    }
    ids
}

#[test]
fn what_lint_calls_dead_determines_nothing() {
    let seed = number("CLAWGRESS_SEED", std::process::id().into());
    let sets = number("CLAWGRESS_SETS", SETS);
    println!("CLAWGRESS_SEED={seed}");
    let random = &mut Random(seed);
    let pools = ACTIONS.map(|action| (action, pool(random, action, 30)));
    let (mut never, mut asked, mut alive) = (0, 0, 0_usize);
    for _ in 0..sets {
        let (action, pool) = &pools[random.below(pools.len())];
        let mut text: String = (0..1 + random.below(POLICIES)).map(|n| written(random, pool, n)).collect();
        if random.one_in(2) {
            text.push_str(&format!(
                "@id(\"base\") permit (principal, action == Action::\"{action}\", resource);"
            ));
        }
        let Some(set) = parse(&text) else { continue };
        let set = set.at(1_764_061_200_000);
        let dead = dead(&set, &text);
        never += dead.len();
        alive += set.len() - dead.len();
        if dead.is_empty() {
            continue;
        }
        let agents = agents(random);
        for _ in 0..REQUESTS {
            let things = Things::new(random);
            let operation = things.operation(random, action);
            let request = Request { agent: &agents[random.below(agents.len())], operation };
            let set = set.knowing(history(random)).seeing(fingerprints(random));
            let wrong: Vec<String> = determining(&set, &request).intersection(&dead).cloned().collect();
            assert!(wrong.is_empty(), "seed {seed}: {wrong:?} determine\n{request:?}\n{text}");
            asked += 1;
        }
    }
    println!("{never} dead policies and {alive} others, {asked} requests");
    assert!(never > 0 && alive > never, "there are some, and not too many");
}
