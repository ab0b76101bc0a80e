//! Sets of many rules for any resource that ask for patterns, which are found by what a text begins or ends with: beside what may
//! fail, in every order, they are decided as the authorizer decides them.

use clawgress_policy::Request;

use crate::cases::{Things, agents, parse, rounds};
use crate::writer::{HOSTS, METHODS, PATHS, Random};

/// Cases in an ordinary run, policies of a set, and requests to one.
const CASES: usize = 3_000;
const POLICIES: usize = 30;
const REQUESTS: usize = 60;

/// A part of some text between wildcards, or all of it.
fn pattern(random: &mut Random, list: &[&str]) -> String {
    let text = random.pick(list);
    let (from, to) = (random.below(text.len() + 1), random.below(text.len() + 1));
    let (from, to) = (from.min(to), from.max(to));
    let part = match random.below(4) {
        0 => format!("{}*", &text[..to]),
        1 => format!("*{}", &text[from..]),
        2 => format!("*{}*", &text[from..to]),
        _ => format!("{}*{}", &text[..from], &text[to..]),
    };
    // What is a wildcard in the text itself is written so.
    if text.contains('*') { part.replace("a*b", r"a\*b") } else { part }
}

/// A question that always has an answer, or one that may fail.
fn question(random: &mut Random) -> String {
    let (subject, list): (&str, &[&str]) = match random.below(3) {
        0 => ("resource.name", &HOSTS),
        1 => ("context.path", &PATHS),
        _ => ("context.method", &METHODS),
    };
    match random.below(8) {
        0 => format!("{subject} == \"{}\"", random.pick(list)),
        1 => format!("[\"{}\", \"{}\"].contains({subject})", random.pick(list), random.pick(list)),
        2 => format!("!({subject} like \"{}\")", pattern(random, list)),
        // It overflows at most ports.
        3 if random.one_in(4) => "9223372036854775800 + context.port < 0".to_owned(),
        3 => "(principal.hasTag(\"tier\") && principal.getTag(\"tier\") == \"gold\")".to_owned(),
        4 => format!("({} || {})", question(random), question(random)),
        _ => format!("{subject} like \"{}\"", pattern(random, list)),
    }
}

fn policy(random: &mut Random, n: usize) -> String {
    let word = if random.one_in(3) { "forbid" } else { "permit" };
    let principal = random.pick(&["principal", "principal", "principal in Tenant::\"default\""]);
    let all: Vec<String> = (0..1 + random.below(3)).map(|_| question(random)).collect();
    format!(
        "@id(\"p{n}\") {word} ({principal}, action == Action::\"http\", resource) when {{ {} }};\n",
        all.join(" && ")
    )
}

#[test]
fn what_is_found_by_its_pattern_is_decided_as_the_authorizer_decides() {
    rounds(CASES, |seed, cases| {
        let random = &mut Random(seed);
        let (mut done, mut allowed, mut failed) = (0, 0, 0);
        while done < cases {
            let text: String = (0..1 + random.below(POLICIES)).map(|n| policy(random, n)).collect();
            let Some(set) = parse(&text) else { continue };
            let agents = agents(random);
            for _ in 0..REQUESTS {
                let things = Things::new(random);
                let agent = &agents[random.below(agents.len())];
                let request = Request { agent, operation: things.operation(random, "http") };
                let decided = set.decide(&request);
                assert_eq!(decided, set.decide_by_oracle(&request), "seed {seed}\n{request:?}\n{text}");
                allowed += usize::from(decided.is_allow());
                failed += usize::from(!decided.errors.is_empty());
            }
            done += REQUESTS;
        }
        println!("{done} cases: {allowed} allowed, {failed} with errors");
        assert!(allowed > 0 && failed > 0 && allowed + failed < done, "{allowed} and {failed} of {done}");
    });
}
