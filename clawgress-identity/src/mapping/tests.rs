//! What names stand for, and which mappings are refused.

use super::*;
use crate::AgentState;

/// Places are keys of a table.
type Places<'a> = &'a [(&'a str, &'a [&'a str])];

fn mapping(text: &str) -> Mapping<String> {
    serde_json::from_str(text).unwrap()
}

fn map(rules: &str, places: Places<'_>) -> Result<String, MappingError> {
    let mapping = mapping(rules);
    assert_eq!(mapping.check(), Ok(()), "{rules}");
    let at = |place: &String| -> Values<'_> {
        let values = places.iter().find(|(name, _)| name == place);
        values.iter().flat_map(|(_, values)| values.iter().map(|v| Cow::Borrowed(*v))).collect()
    };
    mapping.apply("acme", at).map(|mapped| {
        let parts: Vec<String> = mapped.parts.iter().map(|(part, name)| format!(" {part}={name}")).collect();
        format!("{}{}", mapped.agent, parts.join(""))
    })
}

fn check(rules: &str, places: Places<'_>, expected: Result<&str, MappingError>) {
    assert_eq!(map(rules, places), expected.map(str::to_owned), "{rules} {places:?}");
}

#[test]
fn names_become_agents() {
    use MappingError::*;
    use Part::{Agent, Tenant};
    let plain = r#"{"agent":{"from":"sub"}}"#;
    check(plain, &[("sub", &["web"])], Ok("acme/web"));
    check(plain, &[("sub", &["web", "web"])], Ok("acme/web"));
    check(plain, &[("sub", &["Not a name", "web"])], Ok("acme/web"));
    check(plain, &[("sub", &["web", "bot"])], Err(Several(Agent)));
    check(plain, &[("sub", &["gateway"])], Err(Reserved));
    for wrong in ["", "Web", "other/web", "../web", "web\0", "wéb", "a b", "-web"] {
        check(plain, &[("sub", &[wrong])], Err(Nothing(Agent)));
    }
    check(plain, &[], Err(Nothing(Agent)));
    let cut = r#"{"agent":{"from":"sub","prefix":"agent:","suffix":"@corp"}}"#;
    check(cut, &[("sub", &["agent:web@corp"])], Ok("acme/web"));
    check(cut, &[("sub", &["agent:web"])], Err(Nothing(Agent)));
    check(cut, &[("sub", &["web@corp"])], Err(Nothing(Agent)));
    check(cut, &[("sub", &["agent:@corp"])], Err(Nothing(Agent)));
    check(cut, &[("sub", &["agent:corp@corp@corp"])], Err(Nothing(Agent)));
    let table = r#"{"agent":{"from":"sub","table":{"Web App":"web","x":"bot"}}}"#;
    check(table, &[("sub", &["Web App"])], Ok("acme/web"));
    check(table, &[("sub", &["web"])], Err(Nothing(Agent)));
    check(table, &[("sub", &["x", "unknown"])], Ok("acme/bot"));
    let tenant = r#"{"agent":{"from":"sub"},"tenant":{"from":"org","table":{"1":"one"}}}"#;
    check(tenant, &[("sub", &["web"]), ("org", &["1"])], Ok("one/web"));
    check(tenant, &[("sub", &["web"]), ("org", &["one"])], Err(Nothing(Tenant)));
    check(tenant, &[("sub", &["web"])], Err(Nothing(Tenant)));
    let platform = r#"{"agent":{"from":"sub"},"tenant":{"value":"platform"}}"#;
    check(platform, &[("sub", &["web"])], Err(Reserved));
    let required =
        r#"{"agent":{"from":"sub"},"require":[{"from":"a","any_of":["1","2"]},{"from":"b","any_of":["x"]}]}"#;
    check(required, &[("sub", &["web"]), ("a", &["0", "2"]), ("b", &["x"])], Ok("acme/web"));
    check(required, &[("sub", &["web"]), ("a", &["3"]), ("b", &["x"])], Err(Required(1)));
    check(required, &[("sub", &["web"]), ("a", &["1"])], Err(Required(2)));
}

/// The registry is the truth: what is mapped besides the agent can only rule it out.
#[test]
fn parts_have_to_agree_with_the_registry() {
    let rules = r#"{"agent":{"from":"sub"},"team":{"from":"team"},"project":{"value":"p"},"environment":{"from":"env"}}"#;
    let places: Places<'_> = &[("sub", &["web"]), ("team", &["t"]), ("env", &["prod"])];
    check(rules, places, Ok("acme/web team=t project=p environment=prod"));
    check(rules, &[("sub", &["web"]), ("team", &["t"])], Err(MappingError::Nothing(Part::Environment)));
    let mapped = mapping(rules)
        .apply("acme", |place| match place.as_str() {
            "sub" => Values::One("web".into()),
            "team" => Values::One("t".into()),
            _ => Values::One("prod".into()),
        })
        .unwrap();
    let agent = |team: Option<&str>, project: Option<&str>, environment: Option<&str>| Agent {
        id: "acme/web".parse().unwrap(),
        index: 1,
        team: team.map(str::to_owned),
        project: project.map(str::to_owned),
        environment: environment.map(str::to_owned),
        labels: BTreeMap::new(),
        state: AgentState::Active,
        sources: Vec::new(),
    };
    for (team, project, environment, expected) in [
        (Some("t"), Some("p"), Some("prod"), Ok(())),
        (Some("u"), Some("p"), Some("prod"), Err(Part::Team)),
        (None, Some("p"), Some("prod"), Err(Part::Team)),
        (Some("t"), None, Some("prod"), Err(Part::Project)),
        (Some("t"), Some("p"), Some("dev"), Err(Part::Environment)),
    ] {
        let agrees = mapped.agrees(&agent(team, project, environment));
        assert_eq!(agrees, expected.map_err(MappingError::Other), "{team:?} {project:?} {environment:?}");
    }
}

#[test]
fn mappings_that_are_refused() {
    use MappingRuleError::*;
    let long = "x".repeat(TEXT_BYTES_MAX + 1);
    let entries = |n: usize| {
        let entries: Vec<String> = (0..n).map(|n| format!(r#""k{n}":"n""#)).collect();
        format!(r#"{{"agent":{{"from":"sub","table":{{{}}}}}}}"#, entries.join(","))
    };
    for (rules, expected) in [
        (r#"{"agent":{}}"#.to_owned(), Form(Part::Agent)),
        (r#"{"agent":{"value":"web"}}"#.to_owned(), AgentValue),
        (r#"{"agent":{"from":"sub","value":"web"}}"#.to_owned(), Form(Part::Agent)),
        (r#"{"agent":{"from":"sub"},"team":{"value":"T"}}"#.to_owned(), Name(Part::Team)),
        (r#"{"agent":{"from":"sub"},"team":{"value":"t","prefix":"x"}}"#.to_owned(), Form(Part::Team)),
        (r#"{"agent":{"from":"sub","table":{"x":"Not"}}}"#.to_owned(), Name(Part::Agent)),
        (r#"{"agent":{"from":"sub"},"tenant":{"from":"org"}}"#.to_owned(), TenantTable),
        (r#"{"agent":{"from":"sub"},"require":[{"from":"a","any_of":[]}]}"#.to_owned(), Empty(1)),
        (format!(r#"{{"agent":{{"from":"sub","prefix":"{long}"}}}}"#), Size),
        (entries(TABLE_MAX + 1), Size),
    ] {
        assert_eq!(mapping(&rules).check(), Err(expected), "{}", &rules[..rules.len().min(100)]);
    }
    assert_eq!(mapping(&entries(TABLE_MAX)).check(), Ok(()));
    for unknown in [
        "{}",
        r#"{"agent":{"from":"sub"},"owner":{"from":"x"}}"#,
        r#"{"agent":{"from":"sub","claim":"x"}}"#,
        r#"{"agent":{"from":"sub"},"require":[{"from":"a"}]}"#,
    ] {
        assert!(serde_json::from_str::<Mapping<String>>(unknown).is_err(), "{unknown}");
    }
}

#[test]
fn mappings_survive_being_stored() {
    let text = r#"{"agent":{"from":"sub","prefix":"a:"},"tenant":{"from":"org","table":{"1":"one"}},"require":[{"from":"a","any_of":["1"]}]}"#;
    assert_eq!(serde_json::to_string(&mapping(text)).unwrap(), text);
}
