//! Records that are asked again: what is exact, what has changed, and what is not known.

use super::super::replay::facts::Contents;
use super::super::replay::{Content, Known, Needs, Parent, Recorded, Replayed};
use super::*;
use crate::head::{Head, HeadFacts};

mod contents;

const ALL: Known = Known { labels: true, geo: true, zone: true, time: true };

fn ids(ids: &[&str]) -> Vec<String> {
    ids.iter().map(|id| (*id).to_owned()).collect()
}

/// A request that [`TEXT`] allows.
fn recorded<'a>(agent: &'a Agent, policies: &'a [String]) -> Recorded<'a> {
    Recorded {
        agent,
        known: Known { labels: false, ..ALL },
        by_kernel: false,
        action: "http",
        verdict: Ok(()),
        host: Some("api.test"),
        ip: Some([203, 0, 113, 5].into()),
        parent: None,
        port: Some(80),
        protocol: Some("tcp"),
        scheme: Some("http"),
        method: Some("GET"),
        path: Some("/x"),
        head: None,
        policies,
        effects: Some(BTreeSet::from([("pace", "rate-limit")])),
        content: Content::Untold,
        intercepted: false,
        alpn: None,
        ja4: None,
        contents: Contents::default(),
    }
}

fn replay(recorded: &Recorded<'_>, text: &str) -> Replayed {
    recorded.replay(&set(text).at(0), Needs::of(text))
}

#[track_caller]
fn undecidable(recorded: &Recorded<'_>, text: &str, said: &str) {
    let replayed = replay(recorded, text);
    let Replayed::Unknown { why } = &replayed else { panic!("{replayed:?}") };
    assert!(why.contains(said), "{why}");
}

#[test]
fn a_replay_is_exact_where_the_record_holds_all() {
    let (agent, of_http, of_deny) = (agent("a", "t", 1), ids(&["http", "web"]), ids(&["no-admin"]));
    let recorded = recorded(&agent, &of_http);
    let late = Recorded { action: "connect", verdict: Err("policy_denied"), ..recorded.clone() };
    // What is denied at its address was asked before for what it is.
    let refused = Recorded { policies: &of_deny, path: Some("/admin"), ..late.clone() };
    let asked = Recorded { verdict: Err("policy_forbidden"), action: "http", ..refused.clone() };
    assert_eq!(replay(&asked, TEXT), Replayed::Same);
    let Replayed::Otherwise { policies } = replay(&recorded, &TEXT.replace("@id(\"http\")", "@id(\"h\")"))
    else {
        panic!("by another policy")
    };
    assert_eq!(policies, ["h", "web"]);
    for (known, said) in [(Known { zone: false, ..ALL }, "zone"), (Known { time: false, ..ALL }, "turn")] {
        let timed = TEXT.replace("context.path like \"/admin*\"", "context.hour == 9");
        undecidable(&Recorded { known, ..recorded.clone() }, &timed, said);
        assert_eq!(replay(&Recorded { known, ..recorded.clone() }, TEXT), Replayed::Same, "{said}");
    }
    let placed = TEXT.replace("resource in NetworkSet::\"lan\")\nwhen", "resource in Country::\"DE\")\nwhen");
    assert!(Needs::of(&placed).geo && !Needs::of(TEXT).geo);
    // A tunnel by what it carries; and one of which nothing was seen, by all that may have come.
    let effects = Some(BTreeSet::new());
    let tunnel = Recorded { action: "tunnel", method: None, path: None, effects, ..recorded.clone() };
    let of_tls = ids(&["saas", "web"]);
    for content in [Content::Tls, Content::Unknown] {
        assert_eq!(replay(&Recorded { content, policies: &of_tls, ..tunnel.clone() }, TEXT), Replayed::Same);
    }
    let unseen = Recorded {
        content: Content::Unseen,
        action: "tls",
        verdict: Err("policy_denied"),
        host: Some("other.test"),
        ip: None,
        policies: &[],
        ..tunnel.clone()
    };
    assert_eq!(replay(&unseen, TEXT), Replayed::Same);
    undecidable(&unseen, &TEXT.replace("HostSet::\"saas\"", "Host::\"other.test\""), "CONNECT");
}

/// A parent proxy is asked for `connect` besides the address, or instead of it.
#[test]
fn a_replay_asks_for_the_parent_proxy_too() {
    let (agent, of_http) = (agent("a", "t", 1), ids(&["http", "parent", "web"]));
    let direct = recorded(&agent, &of_http);
    let with_parent = format!(
        "{TEXT}@id(\"parent\") permit (principal, action == Action::\"connect\", resource) when {{ context.port == 3128 }};"
    );
    let at = |text: &str| Some(Parent::At(text.parse().unwrap()));
    let through = Recorded { parent: at("203.0.113.9:3128"), ..direct.clone() };
    assert_eq!(replay(&through, &with_parent), Replayed::Same);
    let of_parent = ids(&["http", "parent"]);
    let resolved_there = Recorded { ip: None, policies: &of_parent, ..through.clone() };
    assert_eq!(replay(&resolved_there, &with_parent), Replayed::Same);
    for recorded in [&through, &resolved_there] {
        let replayed = replay(recorded, TEXT);
        let Replayed::Changed { after, .. } = &replayed else { panic!("{replayed:?}") };
        assert_eq!(after, "policy_denied");
        undecidable(
            &Recorded { parent: Some(Parent::Untold), ..recorded.clone() },
            TEXT,
            "the parent proxy's address",
        );
    }
    let odd = format!(
        "{with_parent}@id(\"odd\") @effect(\"alert\") permit (principal, action == Action::\"connect\", resource) when {{ context.port == 3128 }};"
    );
    let replayed = replay(&through, &odd);
    let Replayed::Obliged { after, .. } = &replayed else { panic!("{replayed:?}") };
    assert_eq!(after, &["alert by odd"]);
}

/// What is to be read does not pass unread, as the proxy has it.
#[test]
fn a_replay_of_a_web_socket_knows_what_is_to_be_read() {
    let agent = agent("a", "t", 1);
    let opens = ids(&["http", "saas", "web"]);
    let opened = Recorded {
        action: "tunnel",
        content: Content::WebSocket,
        policies: &opens,
        ..recorded(&agent, &opens)
    };
    assert_eq!(replay(&opened, TEXT), Replayed::Same);
    let read = |condition: &str| {
        format!(
            "{TEXT}@id(\"read\") @effect(\"intercept\") permit (principal, action == Action::\"tunnel\", resource){condition};\n"
        )
    };
    let replayed = replay(&opened, &read(""));
    let Replayed::Changed { after, policies, .. } = &replayed else { panic!("{replayed:?}") };
    assert_eq!((after.as_str(), &policies[..]), ("inspection_required", &ids(&["read"])[..]));
    let by_read = ids(&["read"]);
    let denied = Recorded { verdict: Err("inspection_required"), policies: &by_read, ..opened.clone() };
    assert_eq!(replay(&denied, &read("")), Replayed::Same);
    assert_eq!(replay(&opened, &read(" when { context.protocol == \"tls\" }")), Replayed::Same);
    // Where each message is judged, they are.
    let judged =
        format!("{}@id(\"say\") permit (principal, action == Action::\"send\", resource);", read(""));
    undecidable(&opened, &judged, "messages of its WebSocket");
    // What is forbidden is not even read.
    let forbidden =
        format!("{judged}@id(\"no-ws\") forbid (principal, action == Action::\"tunnel\", resource);");
    let replayed = replay(&opened, &forbidden);
    let Replayed::Changed { after, policies, .. } = &replayed else { panic!("{replayed:?}") };
    assert_eq!((after.as_str(), &policies[..]), ("inspection_required", &ids(&["no-ws"])[..]));
}

/// What is obliged counts as much as what is allowed.
#[test]
fn a_replay_tells_of_effects() {
    let (agent, of_http) = (agent("a", "t", 1), ids(&["http", "web"]));
    let recorded = recorded(&agent, &of_http);
    let told = |recorded: &Recorded<'_>, text: &str| match replay(recorded, text) {
        Replayed::Obliged { before, after } => (before.join(","), after.join(",")),
        other => panic!("{other:?}"),
    };
    let (none, slow) = (String::new(), "throttle by pace".to_owned());
    let throttled = TEXT.replace("@effect(\"rate-limit\")", "@effect(\"throttle\")");
    assert_eq!(told(&recorded, &throttled), ("rate-limit by pace".to_owned(), slow));
    let alert = format!(
        "{TEXT}@id(\"odd\") @effect(\"alert\") permit (principal, action == Action::\"http\", resource) when {{ context.path == \"/x\" }};"
    );
    assert_eq!(told(&recorded, &alert), (none.clone(), "alert by odd".to_owned()));
    let elsewhere = Recorded { path: Some("/y"), ..recorded.clone() };
    assert_eq!(replay(&elsewhere, &alert), Replayed::Same);
    let tried = format!(
        "{TEXT}@id(\"try\") @mode(\"log-only\") forbid (principal, action == Action::\"http\", resource);"
    );
    assert_eq!(told(&recorded, &tried), (none, "would-forbid by try".to_owned()));
    // What is denied obliges to nothing that anybody kept.
    let of_deny = ids(&["no-admin"]);
    let denied = Recorded {
        verdict: Err("policy_forbidden"),
        path: Some("/admin"),
        policies: &of_deny,
        effects: Some(BTreeSet::new()),
        ..recorded.clone()
    };
    assert_eq!(replay(&denied, &alert), Replayed::Same);
}

#[test]
fn a_replay_says_what_it_does_not_know() {
    let (agent, of_http, of_kernel) = (agent("a", "t", 1), ids(&["http", "web"]), ids(&["web"]));
    let recorded = recorded(&agent, &of_http);
    assert_eq!(replay(&recorded, TEXT), Replayed::Same);
    let denied = replay(&recorded, &TEXT.replace("/admin*", "/x*"));
    let Replayed::Changed { before, after, policies } = denied else { panic!("{denied:?}") };
    assert_eq!((before.as_str(), after.as_str()), ("allow", "policy_forbidden"));
    assert_eq!(policies, ["no-admin"]);
    let quarantines = format!(
        "{TEXT}@id(\"out\") @effect(\"quarantine\") @for(\"15m\") permit (principal, action == Action::\"http\", resource);"
    );
    let isolated = replay(&recorded, &quarantines);
    assert!(matches!(isolated, Replayed::Changed { after, .. } if after == "agent_quarantined"));
    undecidable(&Recorded { path: None, ..recorded.clone() }, TEXT, "path");
    let labelled = TEXT.replace("context.path like \"/admin*\"", "principal.hasTag(\"x\")");
    undecidable(&recorded, &labelled, "labels");
    assert_eq!(replay(&Recorded { known: ALL, ..recorded.clone() }, &labelled), Replayed::Same);
    let hello = Recorded { action: "tunnel", method: None, path: None, ..recorded.clone() };
    let alpn = format!(
        "{TEXT}@id(\"h2\") forbid (principal, action == Action::\"tls\", resource) when {{ context.alpn.contains(\"h2\") }};"
    );
    undecidable(&hello, &alpn, "ALPN");
    let late = Recorded { action: "connect", verdict: Err("policy_denied"), ..recorded.clone() };
    let Replayed::Changed { after, .. } = replay(&late, TEXT) else { panic!("its request is known") };
    assert_eq!(after, "allow");
    let late = Recorded { method: None, ..late };
    undecidable(&late, TEXT, "connect");
    let apart = Recorded { verdict: Err("resolve_failed"), ..recorded.clone() };
    assert_eq!(replay(&apart, TEXT), Replayed::Apart);
    let effects = Some(BTreeSet::new());
    let kernel =
        Recorded { by_kernel: true, action: "connect", policies: &of_kernel, effects, ..recorded.clone() };
    assert_eq!(replay(&kernel, TEXT), Replayed::Same);
    let told = format!(
        "{TEXT}@id(\"odd\") @effect(\"alert\") permit (principal, action == Action::\"connect\", resource) when {{ context.port == 80 }};"
    );
    let Replayed::Obliged { after, .. } = replay(&kernel, &told) else { panic!("it would be told") };
    assert_eq!(after, ["alert by odd"]);
    // One of many that came again tells of none.
    assert_eq!(replay(&Recorded { effects: None, ..kernel.clone() }, &told), Replayed::Same);
    let gone = replay(&kernel, &TEXT.replace("[80, 443]", "[443]"));
    assert!(matches!(gone, Replayed::Changed { after, .. } if after == "policy_denied"));
}

/// What was refused for what its head had no one value of is refused again where that is asked, and only where the record tells that
/// it had none.
#[test]
fn a_replay_knows_what_was_unclear_from_what_is_not_known() {
    let (agent, of_team) = (agent("a", "t", 1), ids(&["team"]));
    let asks = |name: &str, value: &str| {
        format!(
            "{TEXT}@id(\"team\") forbid (principal, action == Action::\"http\", resource) unless {{ context.headers.hasTag(\"{name}\") && context.headers.getTag(\"{name}\") == \"{value}\" }};"
        )
    };
    let text = asks("x-team", "pay");
    let told = |fields: &[(&str, &[u8])], query: &str| {
        Some(HeadFacts::of(&Head::of(fields.iter().copied(), query), &set(&text).mentions()))
    };
    let twice = told(&[("x-team", b"pay"), ("x-team", b"pay"), ("accept", b"*/*")], "");
    let effects = Some(BTreeSet::new());
    let refused = Recorded {
        verdict: Err("http_malformed"),
        policies: &of_team,
        head: twice,
        effects,
        ..recorded(&agent, &of_team)
    };
    assert_eq!(replay(&refused, &text), Replayed::Same);
    let Replayed::Changed { before, after, .. } = replay(&refused, TEXT) else { panic!("nobody asks it") };
    assert_eq!((before.as_str(), after.as_str()), ("http_malformed", "allow"));
    undecidable(&refused, &asks("x-cost", "1"), "header fields");
    // What nobody could read was not for policy to say.
    assert_eq!(replay(&Recorded { policies: &[], ..refused.clone() }, &text), Replayed::Apart);
    // A value that a record has no room for may have been anything; and so may whatever records of before called unclear.
    let long = "x".repeat(5000);
    let long = told(&[("x-team", long.as_bytes())], "");
    let of_before = serde_json::from_str(r#"{"headers":{"unclear":true}}"#).unwrap();
    for head in [long, Some(of_before), None] {
        undecidable(&Recorded { head, ..refused.clone() }, &text, "header fields");
    }
    let query = text.replace("headers", "query");
    let unread = HeadFacts::of(&Head::of([], "x-team=%zz"), &set(&query).mentions());
    let json = serde_json::to_value(&unread).unwrap();
    assert_eq!(json, serde_json::json!({"query": {"unread": true, "unclear": true}}));
    assert_eq!(replay(&Recorded { head: Some(unread), ..refused }, &query), Replayed::Same);
}
