//! What is read of heads, what is refused in policies, and what records hold.

use proptest::prelude::*;

use super::*;
use crate::set::tests::agent;
use crate::{Host, NamedSets, Operation, PolicyBundle, PolicySet, Request, Scheme};

fn query(text: &str) -> Option<Vec<(String, String)>> {
    let pairs = decoded(text)?;
    Some(pairs.into_iter().map(|(name, value)| (name, value.unwrap())).collect())
}

fn set(condition: &str) -> Result<PolicySet, String> {
    let text = format!(
        "@id(\"all\") permit (principal, action == Action::\"http\", resource) when {{ {condition} }};"
    );
    PolicySet::parse(&PolicyBundle { text, sets: NamedSets::default() })
        .map_err(|errors| errors.problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))
}

/// What a request with this head comes to: allowed or not, or not known.
fn asked(condition: &str, head: &Head) -> Option<bool> {
    let (agent, host, set) = (agent("a"), Host::parse("api.test").unwrap(), set(condition).unwrap());
    let operation =
        Operation::Http { host: &host, port: 80, scheme: Scheme::Http, method: "GET", path: "/", head };
    let request = Request { agent: &agent, operation };
    let decision = set.decide(&request);
    if !head.is_unclear() {
        assert_eq!(decision, set.decide_by_oracle(&request), "{condition}");
    }
    decision.errors.is_empty().then_some(decision.is_allow())
}

#[test]
fn a_query_is_read_as_forms_are_or_not_at_all() {
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    for (text, want) in [
        ("", vec![]),
        ("&&", vec![]),
        ("a", vec![pair("a", "")]),
        ("a=1&b=%2F+%26", vec![pair("a", "1"), pair("b", "/ &")]),
        ("=x&a==", vec![pair("", "x"), pair("a", "=")]),
        ("%C3%BC=%2b", vec![pair("ü", "+")]),
        ("a=1?b", vec![pair("a", "1?b")]),
    ] {
        assert_eq!(query(text), Some(want), "{text}");
    }
    for text in ["%", "a=%4", "a=%zz", "a=%+1", "a=%C3", "%C0%80=1", "a=%ff", "a=%00", "a=1;b=2"] {
        assert_eq!(query(text), None, "{text}");
    }
    let many = |n| (0..n).map(|n| format!("p{n}")).collect::<Vec<_>>().join("&");
    assert_eq!(query(&many(PARAMETERS_MAX)).map(|all| all.len()), Some(PARAMETERS_MAX));
    assert_eq!(query(&many(PARAMETERS_MAX + 1)), None);
}

#[test]
fn header_fields_have_one_spelling_and_those_of_a_hop_are_none() {
    let fields: [(&str, &[u8]); 9] = [
        ("X_Team", b" payments\t"),
        ("Accept", b"a"),
        ("ACCEPT", b"b"),
        ("X-Odd", b"\xff"),
        ("Connection", b"close"),
        ("Content-Length", b"1"),
        ("Host", b"api.test"),
        ("Authorization", b"Bearer secret"),
        ("Content-Type", b"text/plain"),
    ];
    let head = Head::of(fields, "");
    let names = ["accept", "authorization", "content-type", "x-odd", "x-team"];
    assert_eq!(head.part(Part::Headers).names().unwrap(), names);
    let said: Vec<_> = head.part(Part::Headers).tags().collect();
    assert_eq!(said, [("accept", ""), ("content-type", "text/plain"), ("x-odd", ""), ("x-team", "payments")]);
    let shown = format!("{head:?}");
    assert!(shown.contains("5 names, 2 without one value"), "{shown}");
    assert!(!shown.contains("team") && !shown.contains("payments"), "{shown}");
}

#[test]
fn what_comes_twice_has_no_one_value_and_only_that() {
    let head = Head::of([("x-team", b"a".as_slice()), ("x-team", b"a")], "tag=1&tag=2&alt=sse");
    assert_eq!(asked("context.headers.hasTag(\"x-team\")", &head), Some(true));
    assert_eq!(
        asked("context.headers.hasTag(\"x-team\") && context.headers.getTag(\"x-team\") == \"a\"", &head),
        None
    );
    assert_eq!(
        asked("context.query.hasTag(\"alt\") && context.query.getTag(\"alt\") like \"s*\"", &head),
        Some(true)
    );
    assert_eq!(
        asked("!(context.query.hasTag(\"tag\") && context.query.getTag(\"tag\") == \"3\")", &head),
        None
    );
    assert_eq!(asked("[\"tag\", \"alt\"].containsAll(context.query_names)", &head), Some(true));
    let unread = Head::of([], "a=%");
    assert_eq!(asked("context.query_names.isEmpty()", &unread), None);
    assert_eq!(asked("context.header_names.isEmpty() && context.method == \"GET\"", &unread), Some(true));
    assert_eq!(asked("context.method == \"PUT\" && context.query_names.isEmpty()", &unread), Some(false));
}

#[test]
fn secrets_are_told_by_name_alone() {
    let head =
        Head::of([("authorization", b"Bearer x".as_slice()), ("x-api-key", b"y")], "key=z&access_token=z");
    assert_eq!(asked("context.header_names.contains(\"authorization\")", &head), Some(true));
    assert_eq!(asked("context.query_names.contains(\"access_token\")", &head), Some(true));
    for part in Part::ALL {
        assert_eq!(head.part(part).tags().count(), 0);
    }
    for (condition, said) in [
        ("context.headers.hasTag(\"authorization\")", "`authorization` holds a secret"),
        (
            "context.query.hasTag(\"key\") && context.query.getTag(\"key\") == \"z\"",
            "`context.query_names.contains(\"key\")`",
        ),
        ("context.query.hasTag(\"clientSecret\")", "holds a secret"),
        ("context.headers.hasTag(\"X-Team\")", "write `x-team`"),
        ("context.header_names.contains(\"x_team\")", "write `x-team`"),
        ("context.headers.hasTag(\"connection\")", "none of the header fields that go on"),
        ("context.headers.hasTag(\"x-forwarded-for\")", "none of the header fields that go on"),
        ("context.headers.hasTag(\"a b\")", "no name of a header field"),
        ("context.headers.hasTag(principal.name)", "are written as they are"),
        ("context.query_names.contains(principal.name)", "are written as they are"),
        ("context.headers == context.query", "only asked for one name"),
        ("context.query_names == context.header_names", "are written as they are"),
        ("context.headers.getTag(\"x-team\") == \"a\"", "tag"),
    ] {
        let refused = set(condition).expect_err(condition);
        assert!(refused.contains(said), "{condition}: {refused}");
    }
}

#[test]
fn a_record_holds_what_policy_names_and_nothing_else() {
    let mentions = |condition: &str| set(condition).unwrap().mentions();
    let asked = mentions(
        "context.headers.hasTag(\"x-team\") && context.headers.getTag(\"x-team\") == \"a\" && context.headers.hasTag(\"accept\") && [\"key\", \"alt\"].containsAll(context.query_names)",
    );
    let fields: [(&str, &[u8]); 3] =
        [("x-team", b"payments"), ("accept", b"unasked"), ("x-other", b"unasked")];
    let head = Head::of(fields, "key=secret&another-secret&alt=unasked");
    let facts = HeadFacts::of(&head, &asked);
    let json = serde_json::to_string(&facts).unwrap();
    assert_eq!(
        json,
        r#"{"headers":{"named":{"accept":"present","x-team":{"value":"payments"}},"others":true},"query":{"named":{"alt":"present","key":"present"},"others":true}}"#
    );
    // Other policies may ask for more than it holds.
    let known = |condition: &str| {
        let head = facts.head(&mentions(condition));
        self::asked(condition, &head)
    };
    assert_eq!(known("context.headers.hasTag(\"accept\")"), Some(true));
    assert_eq!(
        known("context.headers.hasTag(\"accept\") && context.headers.getTag(\"accept\") == \"b\""),
        None
    );
    assert_eq!(known("context.headers.hasTag(\"x-other\")"), None);
    assert_eq!(known("context.query_names.contains(\"key\")"), Some(true));
    assert_eq!(known("[\"key\", \"alt\"].containsAll(context.query_names)"), Some(false));
    let long = "x".repeat(5000);
    let long = Head::of([("x-team", long.as_bytes())], "");
    let json = serde_json::to_string(&HeadFacts::of(&long, &asked)).unwrap();
    assert!(json.contains(r#""x-team":"present""#) && json.len() < 200, "{json}");
}

proptest! {
    /// However it is encoded, it is the same, and nothing that comes breaks the reading.
    #[test]
    fn what_is_encoded_is_read_as_it_was(name in "[^\0]{0,12}", value in "[^\0]{0,12}", any in "[ -~]{0,40}") {
        let encoded = |text: &str| text.bytes().map(|b| format!("%{b:02x}")).collect::<String>();
        let pair = format!("x=1&{}={}", encoded(&name), encoded(&value));
        prop_assert_eq!(query(&pair), Some(vec![("x".to_owned(), "1".to_owned()), (name, value)]));
        let head = Head::of([(any.as_str(), any.as_bytes())], &any);
        prop_assert_eq!(head.part(Part::Query).names().is_none(), decoded(&any).is_none());
    }
}
