//! `send` is asked of who names it, and how much of a body has to be seen.

use super::*;
use crate::content::{AskedCall, ModelCall, Payload, Usage};
use crate::effect::Effect;
use crate::{Look, PayloadNeed};

const HTTP: &str = "@id(\"http\") permit (principal, action in Action::\"use\", resource);";

fn payload(bytes: u64, complete: bool, findings: &[String]) -> Payload<'_> {
    Payload { bytes, complete, media_type: "application/json", findings }
}

fn decided(set: &PolicySet, payload: Payload<'_>) -> Result<(), DropReason> {
    let (agent, host) = (agent("web"), Host::parse("api.allowed.test").expect("host"));
    let operation = Operation::Send { host: &host, port: 443, method: "POST", path: "/v1", payload };
    let request = Request { agent: &agent, operation };
    let decision = set.decide(&request);
    assert_eq!(decision, set.decide_by_oracle(&request));
    decision.verdict
}

fn need(set: &PolicySet, is_size_known: bool) -> PayloadNeed {
    let (agent, host) = (agent("web"), Host::parse("api.allowed.test").expect("host"));
    let payload = payload(100, false, &[]);
    let operation = Operation::Send { host: &host, port: 443, method: "POST", path: "/v1", payload };
    set.needs_payload(&Request { agent: &agent, operation }, is_size_known)
}

#[test]
fn bodies_are_asked_about_where_a_guard_names_them() {
    let keys = ["private_key".to_owned()];
    let (harmless, leak) = (payload(1, true, &[]), payload(1, true, &keys));
    // Nobody names it: as before there was such an action, whatever the rest says.
    for text in [
        HTTP.to_owned(),
        // What is about a group, or everything, need not fit it.
        format!(
            "{HTTP} @id(\"f\") forbid (principal, action in Action::\"use\", resource) when {{ context.scheme == \"http\" }};"
        ),
        "@id(\"h\") permit (principal, action == Action::\"http\", resource);".to_owned(),
    ] {
        let set = set(&text);
        assert!(!set.names_send() && need(&set, false) == PayloadNeed::default(), "{text}");
        assert_eq!((decided(&set, leak), decided(&set, harmless)), (Ok(()), Ok(())), "{text}");
    }
    // What only tells, changes nothing.
    let told = "@id(\"a\") @effect(\"alert\") permit (principal, action == Action::\"send\", resource) when { context.findings.contains(\"private_key\") };
        @id(\"l\") @mode(\"log-only\") forbid (principal, action == Action::\"send\", resource) when { context.complete };";
    let tried = set(&format!("@id(\"h\") permit (principal, action == Action::\"http\", resource); {told}"));
    assert!(tried.names_send());
    assert_eq!(decided(&tried, leak), Ok(()));
    assert_eq!(need(&tried, true), PayloadNeed { decided: Look::Nothing, logged: Look::Content });
    // A guard that names it has it asked; then it must be permitted as everything.
    let guard = "@id(\"k\") forbid (principal, action == Action::\"send\", resource) when { context.findings.contains(\"private_key\") };";
    let only = set(&format!("@id(\"h\") permit (principal, action == Action::\"http\", resource); {guard}"));
    assert_eq!(decided(&only, harmless), Err(DropReason::PolicyDenied));
    let both = set(&format!("{HTTP} {guard}"));
    assert_eq!((decided(&both, harmless), decided(&both, leak)), (Ok(()), Err(DropReason::PolicyForbidden)));
    assert_eq!(need(&both, true).decided, Look::Content);
    // Then what is about its group has to fit it.
    let unfit = format!(
        "{HTTP} {guard} @id(\"f\") forbid (principal, action in Action::\"use\", resource) when {{ context.scheme == \"http\" }};"
    );
    let errors = PolicySet::parse(&bundle(&unfit)).expect_err("does not fit");
    assert!(errors.problems[0].message.contains("scheme"), "{errors:?}");
    // Either half may ask, for itself alone.
    let under = set(HTTP).under(&both);
    assert_eq!(
        (decided(&under, harmless), decided(&under, leak)),
        (Ok(()), Err(DropReason::PolicyForbidden))
    );
    assert_eq!(need(&under, true).decided, Look::Content);
}

#[test]
fn no_more_of_a_body_is_seen_than_an_answer_depends_on() {
    let of = |condition: &str| {
        set(&format!(
            "@id(\"p\") permit (principal, action == Action::\"send\", resource) when {{ {condition} }};"
        ))
    };
    for (condition, known, unknown) in [
        (
            "context.method == \"POST\" && context.media_type like \"application/*\"",
            Look::Nothing,
            Look::Nothing,
        ),
        ("context.bytes < 1000", Look::Nothing, Look::Size),
        ("context.complete", Look::Size, Look::Size),
        ("context.bytes < 1000 && context.complete", Look::Size, Look::Size),
        ("!context.findings.contains(\"x\")", Look::Content, Look::Content),
        // What is decided without it.
        ("context.method == \"GET\" && context.findings.contains(\"x\")", Look::Nothing, Look::Nothing),
        ("context.bytes > 1000 && context.findings.contains(\"x\")", Look::Nothing, Look::Content),
        ("context.path like \"/v1*\" || context.findings.contains(\"x\")", Look::Nothing, Look::Nothing),
    ] {
        let set = of(condition);
        assert_eq!((need(&set, true).look(), need(&set, false).look()), (known, unknown), "{condition}");
    }
    // Nor where the scope fits nobody who asks.
    let other = "@id(\"p\") permit (principal == Agent::\"other\", action == Action::\"send\", resource) when { context.complete };";
    assert_eq!(need(&set(other), true), PayloadNeed::default());
    assert_eq!(decided(&set(other), payload(1, true, &[])), Err(DropReason::PolicyDenied));
}

#[test]
fn obligations_of_bodies_hold_where_they_are_named() {
    let text = "@id(\"duty\") @effect(\"quarantine\") @for(\"15m\") permit (principal, action == Action::\"send\", resource) when { context.findings.contains(\"private_key\") };";
    let (agent, host, keys) =
        (agent("web"), Host::parse("a.test").expect("host"), ["private_key".to_owned()]);
    let obliged = |text: &str, findings| {
        let set = set(text);
        let payload = payload(1, true, findings);
        let operation = Operation::Send { host: &host, port: 443, method: "POST", path: "/", payload };
        let request = Request { agent: &agent, operation };
        let kept = set.obligations(&request).expect("evaluated");
        assert_eq!(Ok(&kept), set.obligations_by_oracle(&request).as_ref());
        kept.iter().map(|o| o.effect.clone()).collect::<Vec<_>>()
    };
    assert_eq!(obliged(text, &keys), [Effect::Quarantine(Some(900))]);
    assert_eq!(obliged(text, &[]), []);
    // What is about a group is of bodies only where something names them.
    let group = "@id(\"g\") @effect(\"alert\") permit (principal, action in Action::\"use\", resource);";
    assert_eq!(obliged(group, &[]), []);
    assert_eq!(obliged(&format!("{group} {text}"), &[]), [Effect::Alert]);
}

#[test]
fn calls_of_models_are_asked_about_where_a_guard_names_them() {
    let (agent, host) = (agent("web"), Host::parse("api.openai.com").expect("host"));
    let (shell, exec) = (["shell".to_owned()], ["exec".to_owned()]);
    let call = ModelCall {
        host: &host,
        port: 443,
        provider: "openai",
        model: "gpt-5-mini-2025-08-07",
        family: "gpt-5-mini",
        surface: "chat_completions",
        tokens_estimated: 100,
        tokens_max: None,
        stream: true,
        tools: &shell,
        attachments: 3,
        images: 1,
        attachment_bytes: 2_000,
        prompt_score: 40,
        unpriced: true,
        tool_choice: "auto",
        end_user: "u-7",
        store: true,
        partial: true,
        findings: &[],
    };
    let decided = |text: &str, call| {
        let set = set(text);
        let request = Request { agent: &agent, operation: Operation::Llm(call) };
        let decision = set.decide(&request);
        assert_eq!(decision, set.decide_by_oracle(&request), "{text}");
        (decision.verdict, set.needs_call())
    };
    let nothing = PayloadNeed::default();
    let all = PayloadNeed { decided: Look::Content, logged: Look::Content };
    // Nobody names it; nor does who names bodies alone, whose group need not fit calls.
    assert_eq!(decided(HTTP, call), (Ok(()), nothing));
    let bodies = format!(
        "{HTTP} @id(\"s\") permit (principal, action == Action::\"send\", resource); @id(\"f\") forbid (principal, action in Action::\"use\", resource) when {{ context.path == \"/x\" }};"
    );
    assert_eq!(decided(&bodies, call), (Ok(()), nothing));
    let only = "@id(\"p\") permit (principal, action == Action::\"llm\", resource in Provider::\"openai\") when { context.llm.family == \"gpt-5-mini\" && !context.llm.tools.contains(\"exec\") };";
    assert_eq!(decided(only, call), (Ok(()), all));
    for other in [
        ModelCall { provider: "unlisted", ..call },
        ModelCall { family: "gpt-5", ..call },
        ModelCall { family: "", model: "", surface: "batches", ..call },
        ModelCall { tools: &exec, ..call },
    ] {
        assert_eq!(decided(only, other).0, Err(DropReason::PolicyDenied));
    }
    let capped = "@id(\"p\") permit (principal, action == Action::\"llm\", resource) when { context.llm.tokens_max <= 1000 };";
    assert_eq!(decided(capped, call).0, Err(DropReason::PolicyDenied), "no limit is more than any");
    assert_eq!(decided(capped, ModelCall { tokens_max: Some(1000), ..call }).0, Ok(()));
    let priced =
        "@id(\"p\") permit (principal, action == Action::\"llm\", resource) unless { context.llm.unpriced };";
    assert_eq!(decided(priced, call).0, Err(DropReason::PolicyDenied));
    assert_eq!(decided(priced, ModelCall { unpriced: false, ..call }).0, Ok(()));
    for (asks, other) in [
        ("!context.llm.store", ModelCall { store: false, ..call }),
        ("!context.llm.partial", ModelCall { partial: false, ..call }),
        ("context.llm.images == 0", ModelCall { images: 0, ..call }),
        ("context.llm.attachment_bytes < 2000", ModelCall { attachment_bytes: 1_999, ..call }),
        ("context.llm.end_user like \"acme/*\"", ModelCall { end_user: "acme/7", ..call }),
        ("context.llm.tool_choice != \"auto\"", ModelCall { tool_choice: "", ..call }),
    ] {
        let text =
            format!("@id(\"p\") permit (principal, action == Action::\"llm\", resource) when {{ {asks} }};");
        assert_eq!(decided(&text, call).0, Err(DropReason::PolicyDenied), "{asks}");
        assert_eq!(decided(&text, other).0, Ok(()), "{asks}");
    }
    let harmless = "@id(\"p\") permit (principal, action == Action::\"llm\", resource) when { context.llm.prompt_score < 40 };";
    assert_eq!(decided(harmless, call).0, Err(DropReason::PolicyDenied));
    assert_eq!(decided(harmless, ModelCall { prompt_score: 39, ..call }).0, Ok(()));
    // What only tells, changes nothing; and what limits, has calls read.
    let told = "@id(\"a\") @effect(\"alert\") permit (principal, action == Action::\"llm\", resource);";
    let logged = PayloadNeed { decided: Look::Nothing, logged: Look::Content };
    assert_eq!(decided(&format!("{HTTP} {told}"), call), (Ok(()), logged));
    let limit = "@id(\"l\") @effect(\"rate-limit\") @limit(\"5 requests/minute\") permit (principal, action == Action::\"llm\", resource);";
    assert_eq!(decided(&format!("{HTTP} {limit}"), call), (Ok(()), all));
    assert!(set("@id(\"p\") permit (principal, action == Action::\"llm\", resource) when { context.history.first_seen };").call_reads_history());
}

#[test]
fn answers_are_asked_about_where_a_guard_names_them() {
    let (agent, host) = (agent("web"), Host::parse("api.openai.com").expect("host"));
    let (shell, image) = (["shell".to_owned()], ["image_link_data".to_owned()]);
    let answer = |status, findings, tools| {
        let payload = Payload { bytes: 100, complete: true, media_type: "application/json", findings };
        let usage = Usage { input_tokens: 10, output_tokens: 90, tools, ..Usage::default() };
        Operation::Receive { host: &host, port: 443, status, payload, usage }
    };
    let decided = |text: &str, operation| {
        let set = set(text);
        let request = Request { agent: &agent, operation };
        let decision = set.decide(&request);
        assert_eq!(decision, set.decide_by_oracle(&request), "{text}");
        (decision.verdict, set.needs_payload(&request, true).decided, set.asks_receive())
    };
    let (plain, asking) = (answer(200, &[], &[]), answer(200, &[], &shell));
    // Nobody names it, nor does who names what is sent.
    let bodies = format!(
        "{HTTP} @id(\"s\") permit (principal, action == Action::\"send\", resource); @id(\"f\") forbid (principal, action in Action::\"use\", resource) when {{ context.path == \"/x\" }};"
    );
    for text in [HTTP, &bodies] {
        assert_eq!(decided(text, asking), (Ok(()), Look::Nothing, false), "{text}");
    }
    let of = |condition: &str| {
        format!(
            "{HTTP} @id(\"r\") forbid (principal, action == Action::\"receive\", resource) when {{ {condition} }};"
        )
    };
    let forbidden = Err(DropReason::PolicyForbidden);
    for (condition, denied, look) in [
        ("context.usage.tools.contains(\"shell\")", asking, Look::Content),
        ("context.findings.contains(\"image_link_data\")", answer(200, &image, &[]), Look::Content),
        ("context.status == 500", answer(500, &[], &[]), Look::Nothing),
        ("context.status == 500 || !context.complete", answer(500, &[], &[]), Look::Nothing),
    ] {
        assert_eq!(decided(&of(condition), denied), (forbidden, look, true), "{condition}");
        assert_eq!(decided(&of(condition), plain).0, Ok(()), "{condition}");
    }
    assert_eq!(decided(&of("context.usage.output_tokens > 89"), plain).0, forbidden);
    assert_eq!(decided(&of("context.usage.output_tokens > 90"), plain), (Ok(()), Look::Content, true));
    assert_eq!(decided(&of("context.bytes > 100"), plain), (Ok(()), Look::Nothing, true));
    // Calls by themselves, and who needs them.
    let needs = |text: &str| set(text).needs_calls(&Request { agent: &agent, operation: plain });
    let call = AskedCall { name: "sh", arguments: "{\"c\":\"rm\"}", ..AskedCall::default() };
    let Operation::Receive { payload, usage, .. } = plain else { panic!("it is an answer") };
    let usage = Usage { call, ..usage };
    let asked = Operation::Receive { host: &host, port: 443, status: 200, payload, usage };
    let by_call = of("context.call.name == \"sh\" && context.call.arguments like \"*rm*\"");
    assert_eq!(decided(&by_call, asked), (forbidden, Look::Content, true));
    assert_eq!(decided(&by_call, plain).0, Ok(()));
    use CallsLook as L;
    let both = |decided, logged| CallsNeed { decided, logged };
    assert_eq!(needs(&by_call), both(L::Whole, L::Nothing));
    assert_eq!(
        needs(&by_call.replace("@id(\"r\")", "@id(\"r\") @mode(\"log-only\")")),
        both(L::Nothing, L::Whole)
    );
    assert_eq!(
        needs(&of("context.status == 500 && context.call.name == \"sh\"")),
        both(L::Nothing, L::Nothing)
    );
    assert_eq!(needs(&of("context.usage.tools.contains(\"sh\")")), both(L::Names, L::Nothing));
    assert_eq!(needs(&of("context.findings.contains(\"x\")")), both(L::Nothing, L::Nothing));
    let only = "@id(\"h\") permit (principal, action == Action::\"http\", resource); @id(\"r\") forbid (principal, action == Action::\"receive\", resource) when { context.status == 500 };";
    assert_eq!(decided(only, plain).0, Err(DropReason::PolicyDenied), "none permits it");
    // What only tells, changes nothing; what counts requests, counts no answers.
    let told = format!(
        "{HTTP} @id(\"a\") @effect(\"alert\") permit (principal, action == Action::\"receive\", resource);"
    );
    assert!(set(&told).names_receive() && !set(&told).asks_receive());
    let limit = "@id(\"l\") @effect(\"rate-limit\") @limit(\"5 requests/minute\") permit (principal, action == Action::\"receive\", resource);";
    let refused = PolicySet::parse(&bundle(&format!("{HTTP} {limit}"))).expect_err("no limit");
    assert!(refused.problems[0].message.contains("counts requests"), "{refused:?}");
}

#[test]
fn a_media_type_that_nobody_knows_decides_where_a_policy_asks_for_it() {
    let (agent, host) = (agent("web"), Host::parse("api.allowed.test").expect("host"));
    let payload = Payload { media_type: "", ..payload(100, false, &[]) };
    let needs = |text: &str, path: &str| {
        let operation = Operation::Send { host: &host, port: 443, method: "POST", path, payload };
        set(text).needs_media_type(&Request { agent: &agent, operation })
    };
    let all = "@id(\"all\") permit (principal, action in Action::\"use\", resource);";
    let zip = "forbid (principal, action == Action::\"send\", resource) when { context.path == \"/v1\" && context.media_type == \"application/zip\" };";
    assert!(!needs(all, "/v1"));
    let text = format!("{all} @id(\"zip\") {zip}");
    assert!(needs(&text, "/v1") && !needs(&text, "/v2"));
    // What only tells, decides nothing; a quarantine does.
    assert!(!needs(&format!("{all} @id(\"zip\") @mode(\"log-only\") {zip}"), "/v1"));
    let obliged = |effect: &str| format!("{all} @id(\"zip\") {effect} {}", zip.replace("forbid", "permit"));
    assert!(!needs(&obliged("@effect(\"alert\")"), "/v1"));
    assert!(needs(&obliged("@effect(\"quarantine\") @for(\"15m\")"), "/v1"));
}

/// What is permitted, and what is forbidden, of calls that nobody reads.
const UNREAD: &str =
    r#"@id("p") permit (principal, action == Action::"llm", resource in Provider::"openai")"#;
const NOT: &str = r#"@id("f") forbid (principal, action == Action::"llm", resource)"#;

/// Whether what these policies say of a call that nobody reads depends on what is in it.
fn depends_on_read(all: &[(String, bool)]) {
    let (host, agent) = (Host::parse("api.openai.com").expect("host"), agent("web"));
    let call = ModelCall {
        host: &host,
        port: 443,
        provider: "openai",
        model: "",
        family: "",
        surface: "realtime",
        tokens_estimated: 0,
        tokens_max: None,
        stream: true,
        tools: &[],
        attachments: 0,
        images: 0,
        attachment_bytes: 0,
        prompt_score: 0,
        unpriced: true,
        tool_choice: "",
        end_user: "",
        store: false,
        partial: false,
        findings: &[],
    };
    for (text, depends) in all {
        let set = set(text);
        let request = Request { agent: &agent, operation: Operation::Llm(call) };
        assert_eq!(set.needs_call_read(&request), *depends, "{text}");
    }
}

/// Of a call that nobody reads, what may be in it counts for certain only where no policy asks about that.
#[test]
fn what_is_in_a_call_that_nobody_reads_decides_or_not() {
    let (permit, forbid) = (UNREAD, NOT);
    depends_on_read(&[
        (HTTP.to_owned(), false),
        (format!("{permit};"), false),
        (format!(r#"{permit} when {{ context.llm.surface == "realtime" }};"#), false),
        (
            format!(
                r#"{permit}; {forbid} when {{ context.llm.unpriced && context.llm.surface == "files" }};"#
            ),
            false,
        ),
        (
            format!(
                r#"{permit}; {forbid} when {{ context.llm.surface != "realtime" && context.llm.partial }};"#
            ),
            false,
        ),
        (format!(r#"{permit}; {forbid} when {{ context.llm.tools.contains("shell") }};"#), true),
        (format!("{permit}; {forbid} when {{ context.llm.images > 0 }};"), true),
        (format!(r#"{permit}; {forbid} when {{ context.llm.family == "gpt-5-pro" }};"#), true),
        (format!(r#"{permit}; {forbid} when {{ context.findings.contains("iban") }};"#), true),
        (format!(r#"{permit} when {{ context.llm.tokens_estimated < 1000 }};"#), true),
        (format!(r#"{permit}; @mode("log-only") {forbid} when {{ context.llm.store }};"#), false),
        (
            format!(
                r#"{permit}; @id("t") @effect("transform") @max_tokens("9") permit (principal, action == Action::"llm", resource) when {{ context.llm.tokens_max > 9 }};"#
            ),
            true,
        ),
    ]);
}

/// Its model is in it, and so is the resource.
#[test]
fn a_model_that_nobody_knows_may_be_any_of_its_provider() {
    let (permit, forbid) = (UNREAD, NOT);
    depends_on_read(&[
        (
            format!(
                r#"{permit}; {};"#,
                forbid.replace("resource", r#"resource == Model::"openai/gpt-live""#)
            ),
            true,
        ),
        (
            format!(r#"{permit}; {};"#, forbid.replace("resource", r#"resource == Model::"xai/gpt-live""#)),
            false,
        ),
        (
            format!(
                r#"{permit}; {} when {{ context.llm.surface == "files" }};"#,
                forbid.replace("resource", r#"resource == Model::"openai/gpt-live""#)
            ),
            false,
        ),
        (format!(r#"{permit}; {forbid} when {{ resource == Model::"openai/gpt-live" }};"#), true),
        (format!(r#"{permit}; {forbid} when {{ resource != Model::"xai/gpt-live" }};"#), false),
        (format!(r#"{permit} unless {{ Model::"openai/gpt-live" == resource }};"#), true),
        (format!(r#"{permit}; {forbid} when {{ resource in Model::"openai/gpt-live" }};"#), true),
        (
            format!(
                r#"{permit}; {forbid} when {{ resource in [Model::"xai/gpt-live", Model::"openai/gpt-live"] }};"#
            ),
            true,
        ),
        (format!(r#"{permit}; {forbid} when {{ [Model::"openai/gpt-live"].contains(resource) }};"#), true),
        (
            format!(
                r#"{permit}; {forbid} unless {{ resource is Model && resource in Provider::"openai" }};"#
            ),
            false,
        ),
        (format!(r#"{permit}; {forbid} when {{ resource in Provider::"xai" }};"#), false),
    ]);
}
