//! What has no one value in header fields and queries, and what records tell of them: no answer is guessed, and none is another
//! one when it is asked again.

use clawgress_identity::Agent;
use clawgress_policy::head::{Head, HeadFacts};
use clawgress_policy::{Decision, Host, Need, Operation, PolicySet, Request, Scheme};

use crate::cases::{agents, fingerprints, head, history, parse, pool, rounds};
use crate::writer::Random;

/// Cases in an ordinary run.
const CASES: usize = 10_000;
/// What is in each set: a question that some heads give no answer to.
const BASE: &str = r#"@id("base") permit (principal, action == Action::"http", resource);
@id("tag") forbid (principal, action == Action::"http", resource)
when { context.query.hasTag("tag") && context.query.getTag("tag") like "s*" };
"#;
/// Requests to one set.
const REQUESTS: usize = 100;

/// What a set says and obliges to.
fn said(set: &PolicySet, request: &Request<'_>) -> (Decision, Vec<String>) {
    match set.obligations(request) {
        Ok(all) => {
            let told = all.iter().map(|o| format!("{} {}", o.policy, o.effect.name()));
            (set.decide(request), told.collect())
        }
        Err(failed) => (failed, Vec::new()),
    }
}

fn request<'a>(agent: &'a Agent, host: &'a Host, head: &'a Head) -> Request<'a> {
    let (port, scheme, method, path) = (443, Scheme::Https, "GET", "/admin");
    Request { agent, operation: Operation::Http { host, port, scheme, method, path, head } }
}

#[test]
fn what_has_no_one_value_is_never_guessed_and_records_tell_what_decides() {
    rounds(CASES, |seed, cases| {
        let random = &mut Random(seed);
        let pool = pool(random, "http", 40);
        let host = Host::parse("api.example.com").unwrap();
        let (mut done, mut needed, mut free) = (0, 0, 0);
        while done < cases {
            let text: String = (0..6)
                .map(|n| pool[random.below(pool.len())].replace("\"ID\"", &format!("\"p{n}\"")) + "\n")
                .chain([BASE.to_owned()])
                .collect();
            let Some(set) = parse(&text) else { continue };
            let agents = agents(random);
            for _ in 0..REQUESTS {
                let set = set.at(1_764_061_200_000).seeing(fingerprints(random)).knowing(history(random));
                let (unclear, clear) = (head(random, 2), head(random, 1));
                let agent = &agents[random.below(agents.len())];
                let asked = request(agent, &host, &unclear);
                let (decision, told) = said(&set, &asked);
                match set.needs_head(&asked) {
                    Need::Decided => {
                        let is_told = |error: &String| error.contains(clawgress_policy::head::UNCLEAR);
                        // What obliges may fail of something else, and then the guards are not asked: both deny.
                        let errors = [decision.errors, set.decide(&asked).errors].concat();
                        assert!(errors.iter().any(is_told), "{errors:?}\n{text}");
                        needed += 1;
                    }
                    Need::Logged => {
                        assert!(told.iter().any(|t| t.ends_with("would-fail")), "{told:?}\n{text}")
                    }
                    Need::None => free += usize::from(unclear.is_unclear()),
                }
                // What a record tells is enough, and no more than policy names.
                let mentions = set.mentions();
                for head in [&unclear, &clear] {
                    let facts = HeadFacts::of(head, &mentions);
                    let json = serde_json::to_string(&facts).unwrap();
                    let again: HeadFacts = serde_json::from_str(&json).unwrap();
                    let again = again.head(&mentions);
                    assert_eq!(
                        said(&set, &request(agent, &host, &again)),
                        said(&set, &request(agent, &host, head)),
                        "{json}\n{text}"
                    );
                }
                done += 1;
            }
        }
        assert!(needed > cases / 50 && free > cases / 50, "both are there: {needed} {free}");
    });
}

/// One of the two is what a server takes.
#[test]
fn either_value_gives_the_same_where_none_is_needed() {
    let random = &mut Random(7);
    let pool = pool(random, "http", 40);
    let host = Host::parse("api.example.com").unwrap();
    let agents = agents(random);
    let mut same = 0;
    for policy in &pool {
        let Some(set) = parse(policy) else { continue };
        let set = set.at(0).seeing(fingerprints(random)).knowing(history(random));
        for (one, other) in [("sse", "gold"), ("gold", "x"), ("", "a*b")] {
            let of = |values: &[&str]| {
                let query: Vec<String> = values.iter().map(|value| format!("alt={value}")).collect();
                Head::of(values.iter().map(|value| ("x-team", value.as_bytes())), &query.join("&"))
            };
            let heads = [of(&[one, other]), of(&[one]), of(&[other])];
            let [both, first, last] = heads.each_ref().map(|head| request(&agents[0], &host, head));
            if set.needs_head(&both) == Need::None {
                assert_eq!(said(&set, &both), said(&set, &first), "{policy}");
                assert_eq!(said(&set, &both), said(&set, &last), "{policy}");
                same += 1;
            }
        }
    }
    assert!(same > 10);
}
