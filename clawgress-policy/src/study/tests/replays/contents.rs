//! What was sent and what came back, asked again by what records hold of it.

use super::super::super::replay::facts::{
    Contents, End, HeldAnswer, HeldCall, HeldMessage, HeldPayload, Said, Stopped,
};
use super::*;
use crate::Look;

/// [`TEXT`] with these policies besides.
fn with(more: &str) -> String {
    format!("{TEXT}{more}")
}

/// A `POST` with these contents, which these policies determined.
fn posted<'a>(agent: &'a Agent, policies: &'a [String], contents: Contents<'a>) -> Recorded<'a> {
    Recorded { method: Some("POST"), contents, ..recorded(agent, policies) }
}

fn body<'a>(bytes: u64, findings: &'a [String]) -> HeldPayload<'a> {
    let (is_declared, complete, looked) = (true, true, Look::Content);
    HeldPayload {
        bytes,
        is_declared,
        complete,
        looked,
        media_type: "text/plain",
        findings,
        ..HeldPayload::default()
    }
}

fn said(body: HeldPayload<'_>) -> Said<'_> {
    Said { body: Some(body), ..Said::default() }
}

fn ended<'a>(answer: Option<HeldAnswer<'a>>) -> Option<End<'a>> {
    Some(End { is_time_known: true, answer, ..End::default() })
}

#[track_caller]
fn changes(recorded: &Recorded<'_>, text: &str, want: (&str, &str), by: &[&str]) {
    let replayed = replay(recorded, text);
    let Replayed::Changed { before, after, policies } = &replayed else { panic!("{replayed:?}") };
    assert_eq!((before.as_str(), after.as_str()), want);
    assert_eq!(policies, by);
}

const SEND: &str = r#"@id("small") permit (principal, action == Action::"send", resource) when { context.bytes <= 100 };
@id("keys") forbid (principal, action == Action::"send", resource) when { context.findings.contains("private_key") };
@id("told") @effect("alert") permit (principal, action == Action::"send", resource) when { context.findings.contains("email") };
"#;

#[test]
fn a_body_is_asked_again_by_what_is_told_of_it() {
    let (agent, of_small, of_keys) = (agent("a", "t", 1), ids(&["http", "small", "web"]), ids(&["keys"]));
    let (none, key, mail) = (ids(&[]), ids(&["private_key"]), ids(&["email"]));
    let (text, asked) = (with(SEND), ids(&["send"]));
    let of = |body| Contents { asked: &asked, said: said(body), end: ended(None), ..Contents::default() };
    let sent = posted(&agent, &of_small, of(body(10, &none)));
    assert_eq!(replay(&sent, &text), Replayed::Same);
    // What the live policy denied, it denies again; another may not.
    let denied = Recorded {
        action: "send",
        verdict: Err("policy_forbidden"),
        policies: &of_keys,
        ..posted(&agent, &of_keys, of(body(10, &key)))
    };
    assert_eq!(replay(&denied, &text), Replayed::Same);
    changes(
        &denied,
        &text.replace("private_key", "iban"),
        ("policy_forbidden", "allow"),
        &["http", "small", "web"],
    );
    changes(&sent, &text.replace("<= 100", "<= 5"), ("allow", "policy_denied"), &[]);
    let told = posted(&agent, &of_small, of(body(10, &mail)));
    let Replayed::Obliged { after, .. } = replay(&told, &text) else { panic!("it would be told") };
    assert_eq!(after, ["alert by told"]);
    // What nobody looked at then is not guessed; what is not asked of it, is not needed.
    let unseen = HeldPayload { looked: Look::Nothing, complete: false, ..body(10, &none) };
    let large = HeldPayload { bytes: 101, ..unseen };
    undecidable(&posted(&agent, &of_small, of(unseen)), &text, "what was sent");
    let sizes = text.replace("context.findings.contains(\"private_key\")", "context.bytes == 7");
    assert_eq!(replay(&posted(&agent, &of_small, of(unseen)), &sizes), Replayed::Same);
    changes(&posted(&agent, &of_small, of(large)), &sizes, ("allow", "policy_denied"), &[]);
    // Of what streams a forbid counts as it is, and a permit as if that were all.
    let part = HeldPayload { complete: false, ..body(10, &none) };
    assert_eq!(replay(&posted(&agent, &of_small, of(part)), &text), Replayed::Same);
    let whole = text.replace("context.bytes <= 100", "context.complete");
    assert_eq!(replay(&posted(&agent, &of_small, of(part)), &whole), Replayed::Same);
    let unclear = HeldPayload { is_media_type_unclear: true, ..body(10, &none) };
    let typed = text.replace("context.bytes <= 100", "context.media_type == \"text/plain\"");
    changes(&posted(&agent, &of_small, of(unclear)), &typed, ("allow", "content_unreadable"), &[]);
}

#[test]
fn whether_there_is_a_body_is_told_or_not_known() {
    let (agent, of_http, of_all) =
        (agent("a", "t", 1), ids(&["http", "web"]), ids(&["bodies", "http", "web"]));
    let bodies = with("@id(\"bodies\") permit (principal, action == Action::\"send\", resource);");
    let of = |has_body| Contents { has_body, end: ended(None), ..Contents::default() };
    undecidable(&posted(&agent, &of_http, of(None)), &bodies, "what was sent");
    assert_eq!(replay(&posted(&agent, &of_http, of(Some(false))), &bodies), Replayed::Same);
    // Whatever was in it.
    assert_eq!(replay(&posted(&agent, &of_all, of(Some(true))), &bodies), Replayed::Same);
    undecidable(&posted(&agent, &of_http, of(Some(true))), &with(SEND), "what was sent");
    let get = Recorded { method: Some("GET"), ..posted(&agent, &of_http, of(None)) };
    assert_eq!(replay(&get, &bodies), Replayed::Same);
    assert_eq!(replay(&posted(&agent, &of_http, of(None)), TEXT), Replayed::Same);
}

/// What is asked when a WebSocket is opened, since no message has to be seen for it, is asked again as any request; what was in
/// messages, nobody knows.
#[test]
fn the_opening_of_a_web_socket_is_asked_again() {
    let (agent, asked) = (agent("a", "t", 1), ids(&["send", "receive", "tool"]));
    let of = |more: &str| with(&format!("@id(\"any\") {more};"));
    let send =
        |condition: &str| of(&format!("permit (principal, action == Action::\"send\", resource){condition}"));
    let (of_tunnel, of_send) = (ids(&["http", "saas", "web"]), ids(&["any", "http", "saas", "web"]));
    let opened = |policies| Recorded {
        method: Some("GET"),
        action: "tunnel",
        content: Content::WebSocket,
        ..posted(
            &agent,
            policies,
            Contents { asked: &asked, has_body: Some(false), end: ended(None), ..Contents::default() },
        )
    };
    assert_eq!(replay(&opened(&of_send), &send("")), Replayed::Same);
    assert_eq!(replay(&opened(&of_send), &send(" when { context.path == \"/x\" }")), Replayed::Same);
    changes(&opened(&of_send), &send(" when { context.path == \"/y\" }"), ("allow", "policy_denied"), &[]);
    undecidable(&opened(&of_send), &send(" when { context.bytes < 100 }"), "messages of its WebSocket");
    // A denial when it was to be opened, by the same policy and by another.
    let no = of("forbid (principal, action == Action::\"send\", resource)");
    let by_any = ids(&["any"]);
    let denied = Recorded { action: "send", verdict: Err("policy_forbidden"), ip: None, ..opened(&by_any) };
    assert_eq!(replay(&denied, &no), Replayed::Same);
    undecidable(&denied, &send(""), "the address");
    // What comes back is asked about likewise, of the status 101.
    let back = |condition: &str| {
        of(&format!("permit (principal, action == Action::\"receive\", resource){condition}"))
    };
    assert_eq!(replay(&opened(&of_send), &back(" when { context.status == 101 }")), Replayed::Same);
    changes(&opened(&of_send), &back(" when { context.status == 200 }"), ("allow", "policy_denied"), &[]);
    undecidable(
        &opened(&of_send),
        &back(" when { !context.findings.contains(\"private_key\") }"),
        "messages of its WebSocket",
    );
    // Where a tool server is configured, none is opened whose messages policy asks about as calls of tools.
    let tools = of("permit (principal, action == Action::\"tool\", resource)");
    assert_eq!(replay(&opened(&of_tunnel), &tools), Replayed::Same);
    let unasked = Contents { asked: &[], ..opened(&of_tunnel).contents };
    undecidable(&Recorded { contents: unasked, ..opened(&of_tunnel) }, &tools, "tool server");
    let refused = Recorded {
        action: "tool",
        verdict: Err("inspection_required"),
        ip: None,
        contents: Contents { asked: &[], ..Contents::default() },
        ..opened(&[])
    };
    assert_eq!(replay(&refused, &tools), Replayed::Same);
    // An effect on what is in messages is told of them; on any, when it is opened.
    let effects = |more: &str| {
        format!(
            "{}@id(\"told\") @effect(\"alert\") permit (principal, action == Action::\"send\", resource){more};",
            send("")
        )
    };
    let with_alert = Recorded {
        effects: Some(BTreeSet::from([("pace", "rate-limit"), ("told", "alert")])),
        ..opened(&of_send)
    };
    assert_eq!(replay(&with_alert, &effects("")), Replayed::Same);
    assert_eq!(replay(&opened(&of_send), &effects(" when { context.bytes > 1 }")), Replayed::Same);
}

/// Whether a conversation with a model was read is not told: where what it holds decides, nobody knows what would be said of it.
#[test]
fn a_conversation_that_names_no_model_is_asked_again_where_what_it_holds_does_not_decide() {
    let (agent, of_llm) = (agent("a", "t", 1), ids(&["any", "http", "saas", "web"]));
    let asked = ids(&["llm"]);
    let permit =
        "@id(\"any\") permit (principal, action == Action::\"llm\", resource in Provider::\"openai\");";
    let all = with(permit);
    let no_shell = with(&format!(
        "{permit} @id(\"no\") forbid (principal, action == Action::\"llm\", resource) when {{ context.llm.tools.contains(\"shell\") }};"
    ));
    let call = HeldCall {
        provider: "openai",
        model: "",
        family: "",
        surface: "realtime",
        tokens_estimated: 0,
        tokens_max: None,
        stream: true,
        tools: &[],
        has_more_tools: false,
        attachments: 0,
        images: Some(0),
        attachment_bytes: Some(0),
        prompt_score: 0,
        unpriced: true,
        tool_choice: Some(""),
        end_user: Some(""),
        store: Some(false),
        partial: Some(false),
        findings: Some(&[]),
    };
    let opened = |call: HeldCall<'static>| Recorded {
        method: Some("GET"),
        action: "tunnel",
        content: Content::WebSocket,
        ..posted(
            &agent,
            &of_llm,
            Contents {
                asked: &asked,
                has_body: Some(false),
                end: ended(None),
                said: Said { call: Some(call), ..Said::default() },
            },
        )
    };
    assert_eq!(replay(&opened(call), &all), Replayed::Same);
    undecidable(&opened(call), &no_shell, "read as calls");
    let named = HeldCall { model: "gpt-realtime", family: "gpt-realtime", ..call };
    assert_eq!(replay(&opened(named), &no_shell), Replayed::Same);
    let refused = Recorded { action: "llm", verdict: Err("inspection_required"), ip: None, ..opened(call) };
    let refused =
        Recorded { contents: Contents { asked: &asked, ..Contents::default() }, policies: &[], ..refused };
    undecidable(&refused, &no_shell, "read as calls");
}

#[test]
fn calls_are_asked_again_by_what_is_told_of_them() {
    let (agent, of_llm, of_tool) =
        (agent("a", "t", 1), ids(&["gpt", "http", "web"]), ids(&["http", "jira", "web"]));
    let (none, tools, asked) = (ids(&[]), ids(&["search"]), ids(&["llm", "tool"]));
    let of_http = ids(&["http", "web"]);
    let text = with(
        r#"@id("gpt") permit (principal, action == Action::"llm", resource in Provider::"openai") when { context.llm.tokens_estimated <= 100 };
@id("jira") permit (principal, action == Action::"tool", resource in ToolServer::"jira") when { context.tool.method == "tools/call" };
@id("sound") forbid (principal, action == Action::"tool", resource) when { context.findings.contains("tool_changed") };
"#,
    );
    let call = HeldCall {
        provider: "openai",
        model: "gpt-5",
        family: "gpt-5",
        surface: "chat_completions",
        tokens_estimated: 50,
        tools: &tools,
        findings: Some(&none),
        ..HeldCall::default()
    };
    let calling = |call| Contents {
        asked: &asked,
        said: Said { body: Some(body(10, &none)), call: Some(call), ..Said::default() },
        end: ended(None),
        ..Contents::default()
    };
    let called = posted(&agent, &of_llm, calling(call));
    assert_eq!(replay(&called, &text), Replayed::Same);
    changes(&called, &text.replace("<= 100", "<= 40"), ("allow", "policy_denied"), &[]);
    let offered = text.replace("tokens_estimated <= 100", "tools.contains(\"search\")");
    assert_eq!(replay(&called, &offered), Replayed::Same);
    let cut = posted(&agent, &of_llm, calling(HeldCall { has_more_tools: true, ..call }));
    undecidable(&cut, &offered, "all tools");
    assert_eq!(replay(&cut, &text), Replayed::Same);
    let found = text.replace("context.llm.tokens_estimated <= 100", "context.findings.isEmpty()");
    undecidable(&posted(&agent, &of_llm, calling(HeldCall { findings: None, ..call })), &found, "found");
    // Whether it may be kept has to be told: what a record says nothing of is not taken for no.
    let kept = text.replace("tokens_estimated <= 100", "store");
    undecidable(&called, &kept, "keeping");
    let told = HeldCall { tool_choice: Some(""), end_user: Some(""), store: Some(true), ..call };
    assert_eq!(replay(&posted(&agent, &of_llm, calling(told)), &kept), Replayed::Same);
    let partial = text.replace("tokens_estimated <= 100", "partial");
    undecidable(&posted(&agent, &of_llm, calling(told)), &partial, "server had more");
    let images = text.replace("tokens_estimated <= 100", "images == 1");
    undecidable(&posted(&agent, &of_llm, calling(told)), &images, "kinds of things were attached");
    let told = HeldCall { partial: Some(true), images: Some(1), attachment_bytes: Some(9), ..told };
    assert_eq!(replay(&posted(&agent, &of_llm, calling(told)), &images), Replayed::Same);
    assert_eq!(replay(&posted(&agent, &of_llm, calling(told)), &partial), Replayed::Same);
    // What was looked for and is not told, was none; what nobody looked for, may have been.
    let plain =
        Contents { asked: &asked, said: said(body(10, &none)), end: ended(None), ..Contents::default() };
    assert_eq!(replay(&posted(&agent, &of_http, plain.clone()), &text), Replayed::Same);
    undecidable(&posted(&agent, &of_http, Contents { asked: &[], ..plain }), &text, "what model");

    let (names, cut) = (ids(&["project"]), ids(&["tool_changed"]));
    let message = HeldMessage {
        server: "jira",
        method: "tools/call",
        name: "create",
        argument_names: &names,
        findings: Some(&none),
        ..HeldMessage::default()
    };
    let sending = |messages| Contents {
        asked: &asked,
        said: Said { body: Some(body(10, &none)), messages, ..Said::default() },
        end: ended(None),
        ..Contents::default()
    };
    let sent = posted(&agent, &of_tool, sending(vec![message]));
    assert_eq!(replay(&sent, &text), Replayed::Same);
    let changed = HeldMessage { findings: Some(&cut), ..message };
    changes(
        &posted(&agent, &of_tool, sending(vec![message, changed])),
        &text,
        ("allow", "policy_forbidden"),
        &["sound"],
    );
    let valued = text
        .replace("context.tool.method == \"tools/call\"", "context.tool.values.contains(\"/project=OPS\")");
    undecidable(&sent, &valued, "may be secret");
    let forgotten = HeldMessage { is_forgotten: true, ..message };
    changes(&posted(&agent, &of_tool, sending(vec![forgotten])), &text, ("allow", "content_unreadable"), &[]);
}

const RECEIVE: &str = r#"@id("back") permit (principal, action == Action::"receive", resource) when { context.usage.output_tokens < 100 };
@id("leak") forbid (principal, action == Action::"receive", resource) when { context.findings.contains("private_key") };
"#;

#[test]
fn an_answer_is_asked_again_by_what_is_told_of_it() {
    let (agent, of_http, of_leak) = (agent("a", "t", 1), ids(&["http", "web"]), ids(&["leak"]));
    let (none, key, asked) = (ids(&[]), ids(&["private_key"]), ids(&["receive"]));
    let text = with(RECEIVE);
    let whole = HeldAnswer { status: 200, payload: body(10, &none), at_once: true, ..HeldAnswer::default() };
    let whole = HeldAnswer { are_tools_known: true, ..whole };
    let got = |answer, stopped| Recorded {
        contents: Contents {
            asked: &asked,
            end: Some(End { answer: Some(answer), stopped, is_time_known: true, ..End::default() }),
            ..Contents::default()
        },
        ..recorded(&agent, &of_http)
    };
    let stopped = Some(Stopped { action: "receive", reason: "policy_forbidden", policies: &of_leak });
    // Once, or as it came: what it was in between changes neither answer.
    for at_once in [true, false] {
        let whole = HeldAnswer { at_once, ..whole };
        assert_eq!(replay(&got(whole, None), &text), Replayed::Same, "{at_once}");
        let leaked = HeldAnswer { payload: body(10, &key), ..whole };
        assert_eq!(replay(&got(leaked, stopped), &text), Replayed::Same, "{at_once}");
        changes(&got(leaked, None), &text, ("allow", "policy_forbidden"), &["leak"]);
        let much = HeldAnswer { output_tokens: 200, ..whole };
        changes(&got(much, None), &text, ("allow", "policy_denied"), &[]);
        // It would have gone on.
        undecidable(&got(leaked, stopped), &text.replace("private_key", "iban"), "what would have followed");
        changes(&got(leaked, stopped), TEXT, ("policy_forbidden", "allow"), &[]);
    }
    // Between its beginning and its end both hold, and neither may be first.
    let both = HeldAnswer { at_once: false, payload: body(10, &key), output_tokens: 200, ..whole };
    undecidable(&got(both, None), &text, "as it came");
    let exact = text.replace("output_tokens < 100", "output_tokens != 50");
    let much = HeldAnswer { at_once: false, output_tokens: 200, ..whole };
    undecidable(&got(much, None), &exact, "as it came");
    assert_eq!(replay(&got(HeldAnswer { at_once: true, ..much }, None), &exact), Replayed::Same);
    // What was asked for with which arguments is not recorded.
    let calls = with(
        r#"@id("back") permit (principal, action == Action::"receive", resource);
@id("rm") forbid (principal, action == Action::"receive", resource) when { context.call.arguments like "*rm*" };"#,
    );
    let tools = ids(&["shell"]);
    assert_eq!(replay(&got(whole, None), &calls), Replayed::Same);
    undecidable(&got(HeldAnswer { tools: &tools, ..whole }, None), &calls, "calls that the model asked for");
    let unlooked = HeldPayload { looked: Look::Nothing, ..body(10, &none) };
    undecidable(&got(HeldAnswer { payload: unlooked, ..whole }, None), &text, "what came back");
}

#[test]
fn what_came_back_is_known_only_where_it_is_told() {
    let (agent, of_http, asked) = (agent("a", "t", 1), ids(&["http", "web"]), ids(&["receive"]));
    let (text, any) =
        (with(RECEIVE), with("@id(\"any\") permit (principal, action == Action::\"receive\", resource);"));
    let of = |asked, end| Recorded {
        contents: Contents { asked, end, ..Contents::default() },
        ..recorded(&agent, &of_http)
    };
    // Still open, or its outcome was lost.
    undecidable(&of(&asked, None), &text, "what came back");
    undecidable(&of(&asked, None), &any, "what came back");
    // Nobody asked then.
    undecidable(&of(&[], ended(None)), &text, "what came back");
    assert_eq!(replay(&of(&[], ended(None)), &any), Replayed::Same);
    let failed = Some(End { has_failed: true, is_time_known: true, ..End::default() });
    assert_eq!(replay(&of(&asked, failed.clone()), &text), Replayed::Same);
    undecidable(&of(&[], failed), &text, "what came back");
    let timed = text.replace("context.usage.output_tokens < 100", "context.hour < 12");
    let turned = Some(End { has_failed: true, ..End::default() });
    undecidable(&of(&asked, turned), &timed, "turn of time");
    let denied = Recorded { verdict: Err("policy_forbidden"), path: Some("/admin"), ..of(&[], None) };
    undecidable(&denied, &any.replace("/admin*", "/other"), "what would have come back");
}

#[test]
fn what_was_sent_later_counts_too() {
    let (agent, of_small) = (agent("a", "t", 1), ids(&["http", "small", "web"]));
    let (none, key, asked, of_keys) = (ids(&[]), ids(&["private_key"]), ids(&["send"]), ids(&["keys"]));
    let text = with(SEND);
    let part = HeldPayload { is_declared: false, complete: false, ..body(50, &none) };
    let got = |last, stopped| {
        let later = Said { body: last, ..Said::default() };
        let end = End { said: later, stopped, is_time_known: true, ..End::default() };
        posted(
            &agent,
            &of_small,
            Contents { asked: &asked, said: said(part), end: Some(end), ..Contents::default() },
        )
    };
    let last = HeldPayload { complete: true, bytes: 90, ..part };
    assert_eq!(replay(&got(Some(last), None), &text), Replayed::Same);
    changes(&got(Some(HeldPayload { bytes: 101, ..last }), None), &text, ("allow", "policy_denied"), &[]);
    let leaked = HeldPayload { findings: &key, ..last };
    changes(&got(Some(leaked), None), &text, ("allow", "policy_forbidden"), &["keys"]);
    let stopped = Some(Stopped { action: "send", reason: "policy_forbidden", policies: &of_keys });
    assert_eq!(replay(&got(Some(leaked), stopped), &text), Replayed::Same);
    // Of another reason nobody's policy speaks.
    let late = Some(Stopped { action: "send", reason: "content_unreadable", policies: &[] });
    assert_eq!(replay(&got(Some(last), late), &text), Replayed::Apart);
    // It is still coming.
    let open = posted(&agent, &of_small, Contents { asked: &asked, said: said(part), ..Contents::default() });
    undecidable(&open, &text, "what was sent");
}
