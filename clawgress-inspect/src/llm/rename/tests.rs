//! Tools renamed in each dialect, and back, however it is cut.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use proptest::prelude::*;

use super::*;
use crate::llm::answer::{Following, Format, Reader};
use crate::llm::change::{Changed, Wanted, changed};
use crate::llm::{CapNames, Surface};
use crate::payload::{Claims, Inspector, Limits};

const RENAMES: [(&str, &str); 2] = [("shell", "run_command"), ("read", "shell")];

fn call(body: &str, surface: Surface) -> Call {
    let claims = Claims::new(&[b"application/json"], &[]);
    let mut inspector = Inspector::of_call(claims, Limits::default(), Some(surface));
    inspector.push(body.as_bytes()).and_then(|()| inspector.finish()).expect("a call");
    inspector.call().expect("read").call().clone()
}

fn change(surface: Surface, body: &str) -> Result<Changed, ChangeError> {
    let wanted = Wanted {
        params: &[],
        tokens_max: None,
        cap_names: CapNames::Newer,
        takes_tool: &|name| name == "web_fetch",
        takes_tools: true,
        renames: &RENAMES,
        prompt: None,
    };
    changed(body.as_bytes(), surface, &call(body, surface), &wanted)
}

/// What of `body` are names stands in angle brackets; only these change, `<shell>` to the model's name.
#[track_caller]
fn check(surface: Surface, marked: &str) {
    let bare = marked.replace(['<', '>'], "");
    let want = marked.replace("<shell>", "run_command").replace("<read>", "shell");
    let got = change(surface, &bare).expect("changed");
    assert_eq!(String::from_utf8(got.body).expect("text"), want.replace(['<', '>'], ""));
    let renamed = got.renamed.expect("renamed");
    assert_eq!(renamed.back.get("run_command").map(String::as_str), Some("shell"));
}

#[test]
fn the_model_sees_other_names_in_each_dialect() {
    for (surface, marked) in [
        (
            Surface::ChatCompletions,
            r#"{"model":"m", "messages":[{"role":"user","name":"shell","content":"shell \u0073"},{"role":"assistant","tool_calls":[{"id":"shell","type":"function","function":{"name":"<shell>","arguments":"{\"name\":\"shell\"}"}},{"id":"c","type":"custom","custom":{"name":"<read>","input":"shell"}}]},{"role":"tool","tool_call_id":"shell","name":"<shell>","content":"shell"}],"tools":[{"type":"function","function":{"name":"<shell>","description":"shell","parameters":{"properties":{"name":{"const":"shell"}}}}},{"type":"function","function":{"name":"<read>"}}],"tool_choice":{"type":"function","function":{"name":"<shell>"}},"n":1.0}"#,
        ),
        (
            Surface::ChatCompletions,
            r#"{"model":"m","messages":[{"role":"function","name":"<shell>","content":"x"}],"functions":[{"name":"<shell>"},{"name":"other"}],"function_call":{"name":"<shell>"}}"#,
        ),
        (
            Surface::ChatCompletions,
            r#"{"model":"m","messages":[],"tools":[{"type":"function","function":{"name":"<shell>"}}],"tool_choice":{"type":"allowed_tools","allowed_tools":{"mode":"auto","tools":[{"type":"function","function":{"name":"<shell>"}}]}}}"#,
        ),
        (
            Surface::Responses,
            r#"{"model":"m","input":[{"type":"function_call","name":"<shell>","call_id":"shell","arguments":"{}"},{"type":"function_call_output","call_id":"shell","output":"shell"},{"type":"message","role":"user","content":[{"type":"input_text","text":"shell"}]}],"tools":[{"type":"function","name":"<shell>","parameters":{"name":"shell"}},{"type":"mcp","server_label":"shell","allowed_tools":["shell"]}],"tool_choice":{"type":"function","name":"<shell>"}}"#,
        ),
        (
            Surface::Messages,
            r#"{"model":"m","max_tokens":1,"messages":[{"role":"assistant","content":[{"type":"tool_use","id":"shell","name":"<shell>","input":{"name":"shell","type":"tool_use"}}]},{"role":"user","content":[{"type":"tool_result","tool_use_id":"shell","content":[{"type":"text","text":"shell"},{"type":"tool_reference","tool_name":"<read>"}]}]}],"tools":[{"name":"<shell>","input_schema":{"name":"shell"}},{"name":"<read>","input_schema":{}}],"tool_choice":{"type":"tool","name":"<shell>"}}"#,
        ),
        (
            Surface::GenerateContent,
            r#"{"contents":[{"role":"model","parts":[{"functionCall":{"name":"<shell>","args":{"name":"shell"}}}]},{"role":"user","parts":[{"functionResponse":{"name":"<shell>","response":{"name":"shell"}}}]}],"tools":[{"functionDeclarations":[{"name":"<shell>","parameters":{"name":"shell"}},{"name":"<read>"}]},{"googleSearch":{}}],"toolConfig":{"functionCallingConfig":{"mode":"ANY","allowedFunctionNames":["<shell>","other"]}}}"#,
        ),
        (
            Surface::Converse,
            r#"{"messages":[{"role":"assistant","content":[{"toolUse":{"toolUseId":"shell","name":"<shell>","input":{"name":"shell"}}}]},{"role":"user","content":[{"toolResult":{"toolUseId":"shell","content":[{"json":{"name":"shell"}}]}}]}],"toolConfig":{"tools":[{"toolSpec":{"name":"<shell>","inputSchema":{"json":{"name":"shell"}}}}],"toolChoice":{"tool":{"name":"<shell>"}}}}"#,
        ),
        (
            Surface::CohereChat,
            r#"{"model":"m","message":"shell","chat_history":[{"role":"CHATBOT","tool_calls":[{"name":"<shell>","parameters":{"name":"shell"}}]}],"tool_results":[{"call":{"name":"<shell>","parameters":{"name":"shell"}},"outputs":[{"name":"shell"}]}],"tools":[{"name":"<shell>","parameter_definitions":{"name":{"type":"shell"}}}]}"#,
        ),
        (
            Surface::OllamaChat,
            r#"{"model":"m","messages":[{"role":"assistant","tool_calls":[{"function":{"name":"<shell>","arguments":{"name":"shell"}}}]},{"role":"tool","tool_name":"<shell>","content":"shell"}],"tools":[{"type":"function","function":{"name":"<shell>"}}]}"#,
        ),
    ] {
        check(surface, marked);
    }
    // Tools that go, go by the names of the client.
    let both =
        r#"{"model":"m","max_tokens":1,"messages":[],"tools":[{"name":"web_fetch"},{"name":"sh\u0065ll"}]}"#;
    let got = change(Surface::Messages, both).expect("changed");
    assert_eq!(
        String::from_utf8(got.body).expect("text"),
        r#"{"model":"m","max_tokens":1,"messages":[],"tools":[{"name":"run_command"}]}"#
    );
    assert_eq!(got.told, ["without the tools `web_fetch`", "the tool `shell` is called `run_command`"]);
    let none = r#"{"model":"m","max_tokens":1,"messages":[],"tools":[{"name":"x"}]}"#;
    let got = change(Surface::Messages, none).expect("unchanged");
    assert_eq!((got.body.as_slice(), got.told.len(), got.renamed), (none.as_bytes(), 0, None));
}

#[test]
fn two_tools_of_one_name_are_refused() {
    for body in [
        // One that is there already, also of an earlier turn.
        r#"{"model":"m","messages":[],"tools":[{"name":"shell"},{"name":"run_command"}]}"#,
        r#"{"model":"m","messages":[{"role":"assistant","content":[{"type":"tool_use","id":"a","name":"run_command","input":{}}]}],"tools":[{"name":"shell"}]}"#,
        // One whose name can't be another.
        r#"{"model":"m","messages":[],"tools":[{"type":"shell"}]}"#,
    ] {
        change(Surface::Messages, body).expect_err(body);
    }
}

/// What a provider runs, or has a name for, is called so: by another it would not know it, or take it for an agent's own.
#[test]
fn tools_that_their_provider_names_are_not_renamed() {
    for (surface, tool) in [
        (Surface::Messages, r#"{"type":"web_search_20250305","name":"shell","max_uses":5}"#),
        (Surface::Messages, r#"{"type":"computer_20250124","name":"shell","display_width_px":1}"#),
        (Surface::Messages, r#"{"type":"bash_20250124","name":"shell"}"#),
        (Surface::Messages, r#"{"name":"shell","type":"text_editor_20250728"}"#),
        (Surface::Responses, r#"{"type":"shell"}"#),
        (Surface::Responses, r#"{"type":"code_interpreter","name":"shell"}"#),
        (Surface::Responses, r#"{"type":"namespace","name":"shell","tools":[]}"#),
        (Surface::ChatCompletions, r#"{"type":"builtin_function","function":{"name":"x"},"name":"shell"}"#),
        (Surface::GenerateContent, r#"{"shell":{}}"#),
    ] {
        let body = format!(r#"{{"model":"m","max_tokens":1,"messages":[],"tools":[{tool}]}}"#);
        change(surface, &body).expect_err(&body);
    }
    let own = r#"{"model":"m","max_tokens":1,"messages":[],"tools":[{"type":"custom","name":"<shell>","input_schema":{}},{"type":"web_search_20250305","name":"web_search"}]}"#;
    check(Surface::Messages, own);
}

/// How tools are asked for has the same words as a tool may have.
#[test]
fn how_tools_are_asked_for_is_no_name() {
    const MANNERS: [(&str, &str); 2] = [("auto", "exec"), ("query", "required")];
    let body = r#"{"model":"m","messages":[],"tools":[{"type":"function","function":{"name":"auto"}},{"type":"function","function":{"name":"query"}}],"tool_choice":"auto"}"#;
    let surface = Surface::ChatCompletions;
    let wanted = Wanted {
        params: &[],
        tokens_max: None,
        cap_names: CapNames::Newer,
        takes_tool: &|_| false,
        takes_tools: false,
        renames: &MANNERS,
        prompt: None,
    };
    let got = changed(body.as_bytes(), surface, &call(body, surface), &wanted).expect("changed");
    let text = String::from_utf8(got.body).expect("text");
    assert_eq!(text, body.replace("\"name\":\"auto", "\"name\":\"exec").replace("query", "required"));
    // A client that names no choice is told one all the same, by the word that another tool's name begins with.
    let back: BTreeMap<_, _> = [("auto_x".to_owned(), "shell".to_owned())].into();
    let renamed = Renamed { known: back.keys().cloned().collect(), back };
    for manner in ["auto", "none", "required", "any"] {
        let mut renamer = Renamer::new(
            Renamed { back: [(format!("{manner}_x"), "shell".to_owned())].into(), ..renamed.clone() },
            Format::EventStream,
            4096,
        )
        .expect("a form");
        let event = |name: &str| {
            format!(
                "data: {{\"response\":{{\"tools\":[{{\"type\":\"function\",\"name\":\"{name}\"}}],\"tool_choice\":\"{manner}\"}}}}\n\n"
            )
        };
        let got = renamer.push(event(&format!("{manner}_x")).as_bytes(), false).expect(manner);
        assert_eq!(String::from_utf8(got).expect("text"), event("shell"));
    }
}

/// An answer and how its client sees it, by the same marks; with the events of a stream in one text.
const ANSWERS: [(Format, &str); 15] = [
    (
        Format::Json,
        r#"{"model":"m","choices":[{"message":{"content":"run_command","tool_calls":[{"id":"run_command","type":"function","function":{"name":"<run_command>","arguments":"{\"name\":\"run_command\"}"}}]},"finish_reason":"tool_calls"}],"usage":{"prompt_tokens":1.0}}"#,
    ),
    (
        Format::Json,
        r#" [{"candidates":[{"content":{"parts":[{"functionCall":{"name":"<run_command>","args":{"name":"run_command"}}}]}}]}]"#,
    ),
    (
        Format::Json,
        r#"{"output":{"message":{"role":"assistant","content":[{"toolUse":{"toolUseId":"a","name":"<run_command>","input":{"name":"run_command"}}}]}}}"#,
    ),
    (
        Format::Json,
        r#"{"id":"a","message":{"tool_calls":[{"type":"function","function":{"name":"<run_command>","arguments":"run_command"}}]}}"#,
    ),
    (
        Format::Json,
        r#"{"type":"message","content":[{"type":"text","text":"run_command"},{"type":"tool_use","name":"<run_c\u006fmmand>","input":{"name":"run_command"}}]}"#,
    ),
    // Wherever it is read as one; of a provider's own it is none of the call's.
    (
        Format::Json,
        r#"{"contentBlock":{"type":"tool_use","name":"<run_command>","input":{"name":"run_command"}}}"#,
    ),
    (Format::Json, r#"{"generations":[{"x":"run_command","tool_calls":[{"name":"<run_command>"}]}]}"#),
    (
        Format::Json,
        r#"{"output":[{"type":"tool_call","name":"<run_command>"},{"type":"mcp_call","name":"run_command"},{"item":{"toolUse":{"name":"<run_command>"}}}]}"#,
    ),
    (
        Format::Json,
        r#"{"choices":[{"message":{"tool_calls":[{"type":"custom","custom":{"name":"<run_command>","input":"run_command"}}]}}]}"#,
    ),
    // Whatever it is said to be.
    (Format::EventStream, r#" {"message":{"tool_calls":[{"function":{"name":"<run_command>"}}]}}"#),
    (
        Format::EventStream,
        "data: {\"choices\":[{\"delta\":{\"tool_calls\":[{\"index\":0,\"function\":{\"name\":\"<run_command>\",\"arguments\":\"\"}}]}}]}\n\ndata: {\"choices\":[{\"delta\":{\"tool_calls\":[{\"index\":0,\"function\":{\"arguments\":\"run_command\"}}]}}]}\r\n\r\n: ping\n\ndata: [DONE]\n\n",
    ),
    (
        Format::EventStream,
        "event: content_block_start\ndata: {\"type\":\"content_block_start\",\"index\":1,\"content_block\":{\"type\":\"tool_use\",\"id\":\"a\",\"name\":\"<run_command>\",\"input\":{}}}\n\nevent: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"index\":1,\"delta\":{\"type\":\"input_json_delta\",\"partial_json\":\"{\\\"name\\\":\\\"run_command\\\"}\"}}\n\n",
    ),
    (
        Format::EventStream,
        "data: {\"type\":\"response.created\",\"response\":{\"tools\":[{\"type\":\"function\",\"name\":\"<run_command>\",\"parameters\":{\"name\":\"run_command\"}}],\"tool_choice\":{\"type\":\"function\",\"name\":\"<run_command>\"},\"output\":[]}}\n\ndata: {\"type\":\"response.output_item.added\",\"item\":{\"type\":\"function_call\",\"name\":\"<run_command>\",\"arguments\":\"\"}}\n\ndata: {\"type\":\"response.function_call_arguments.done\",\"name\":\"<run_command>\",\"arguments\":\"{}\"}\n\ndata: {\"type\":\"response.completed\",\"response\":{\"output\":[{\"type\":\"function_call\",\"name\":\"<run_command>\",\"arguments\":\"{}\"}]}}\n\n",
    ),
    (
        Format::EventStream,
        "data: {\"type\":\"tool-call-start\",\"index\":0,\"delta\":{\"message\":{\"tool_calls\":{\"id\":\"a\",\"function\":{\"name\":\"<run_command>\",\"arguments\":\"\"}}}}}\n\n",
    ),
    (
        Format::Lines,
        "{\"message\":{\"content\":\"run_command\"}}\n{\"message\":{\"tool_calls\":[{\"function\":{\"name\":\"<run_command>\",\"arguments\":{\"name\":\"run_command\"}}}]}}\n{\"done\":true}",
    ),
];

/// The answer as it comes, and as its client sees it.
fn sides(marked: &str) -> (String, String) {
    let seen = marked.replace("<run_command>", "shell").replace("<run_c\\u006fmmand>", "shell");
    // A name of the model's that the client has for another tool.
    let own = seen.replace("<shell>", "read").replace(['<', '>'], "");
    (marked.replace(['<', '>'], ""), own)
}

fn renamed() -> Renamed {
    let back = RENAMES.map(|(own, other)| (other.to_owned(), own.to_owned())).into();
    Renamed { back, known: RENAMES.map(|(_, other)| other.to_owned()).into() }
}

fn read(format: Format, pieces: &[&[u8]]) -> Result<(String, bool), RenameError> {
    let mut renamer = Renamer::new(renamed(), format, 4096).expect("a form");
    let mut out = Vec::new();
    for piece in pieces {
        out.extend(renamer.push(piece, false)?);
    }
    out.extend(renamer.push(b"", true)?);
    Ok((String::from_utf8(out).expect("text"), renamer.is_changed()))
}

/// Line ends of events that were changed are line feeds.
fn plain(text: &str) -> String {
    text.replace("\r\n", "\n")
}

#[test]
fn the_client_sees_its_own_names() {
    for (format, marked) in ANSWERS {
        let (came, want) = sides(marked);
        let (got, is_changed) = read(format, &[came.as_bytes()]).expect("changed");
        assert_eq!(plain(&got), plain(&want));
        assert!(is_changed);
        // What nothing names stays as it is.
        let other = came.replace("run_command", "unlike").replace("run_c\\u006fmmand", "unlike");
        assert_eq!(read(format, &[other.as_bytes()]), Ok((other.clone(), false)));
    }
    let swapped =
        r#"{"content":[{"type":"tool_use","name":"shell"},{"type":"tool_use","name":"run_command"}]}"#;
    let want = r#"{"content":[{"type":"tool_use","name":"read"},{"type":"tool_use","name":"shell"}]}"#;
    assert_eq!(read(Format::Json, &[swapped.as_bytes()]), Ok((want.to_owned(), true)));
}

#[test]
fn what_can_not_be_changed_back_does_not_go_on() {
    let part = |name: &str| {
        let event = "data: {\"choices\":[{\"delta\":{\"tool_calls\":[{\"index\":0,\"function\":{\"name\":\"NAME\"}}]}}]}\n\n";
        read(Format::EventStream, &[event.replace("NAME", name).as_bytes()])
    };
    for name in ["run_", "_command", "sh", "r"] {
        assert_eq!(part(name), Err(RenameError::Parts), "{name}");
    }
    for name in ["", "other", "run_command_2"] {
        assert!(part(name).is_ok_and(|(_, is_changed)| !is_changed), "{name}");
    }
    let broken = "data: {\"name\":\n\n";
    assert_eq!(read(Format::EventStream, &[broken.as_bytes()]), Err(RenameError::Form));
    let deep = format!("{}\"tool\"{}", "{\"response\":".repeat(40), "}".repeat(40));
    assert_eq!(read(Format::Json, &[deep.as_bytes()]), Err(RenameError::Form));
    let large = format!("data: {}", "x".repeat(5000));
    assert_eq!(read(Format::EventStream, &[large.as_bytes()]), Err(RenameError::TooLarge));
    // Whatever an event names that is no text, in any pieces.
    let (odd, named) = (&b"data: \xff\n\n"[..], &b"data: {\"name\":\"x\"}\n\n"[..]);
    for pieces in [&[odd, named][..], &[named, odd], &[&[odd, named].concat()]] {
        let mut renamer = Renamer::new(renamed(), Format::EventStream, 4096).expect("a form");
        let read = pieces.iter().try_for_each(|piece| renamer.push(piece, false).map(drop));
        assert_eq!(read.and_then(|()| renamer.push(b"", true).map(drop)), Err(RenameError::Form));
    }
    assert!(Renamer::new(renamed(), Format::Amazon, 4096).is_none());
}

#[test]
fn nothing_waits_for_more_than_the_event_at_hand() {
    let mut renamer = Renamer::new(renamed(), Format::EventStream, 4096).expect("a form");
    let mut push = |text: &str| String::from_utf8(renamer.push(text.as_bytes(), false).expect("read"));
    assert_eq!(push("data: {\"a\":1}\n"), Ok(String::new()));
    assert_eq!(push("\ndata: {\"b\""), Ok("data: {\"a\":1}\n\n".to_owned()));
    assert_eq!(push(":2}\n\n"), Ok("data: {\"b\":2}\n\n".to_owned()));
}

/// A document as Bedrock packs it.
fn packed(text: &str) -> String {
    BASE64.encode(text)
}

#[test]
fn what_is_packed_has_the_clients_names_too() {
    let block = |name: &str| format!(r#"{{"content_block":{{"type":"tool_use","name":"{name}"}}}}"#);
    let (came, want) = (packed(&block("run_command")), packed(&block("shell")));
    for text in [
        "{\"bytes\":\"X\",\"p\":\"abc\"}",
        "[{\"a\":1.0}, {\"b\\u0079tes\": \"X\" }]",
        "{\"response\":{\"bytes\":\"X\"}}",
        "{\"message\":{\"bytes\":\"X\"}}",
        "{\"delta\":{\"bytes\":\"X\"},\"name\":\"run_command\"}",
        "\u{feff}{\"x_groq\":{\"bytes\":\"X\"}}",
    ] {
        let got = read(Format::Json, &[text.replace('X', &came).as_bytes()]);
        assert_eq!(got, Ok((text.replace('X', &want), true)), "{text}");
    }
    let events = "data: {\"bytes\":\"X\"}\n\ndata: {\"bytes\":\"\"}\n\n";
    let got = read(Format::EventStream, &[events.replace('X', &came).as_bytes()]);
    assert_eq!(got, Ok((events.replace('X', &want), true)));
    // What nobody unpacks, in any way, stays: no base64, another's bytes, what is packed twice.
    let twice = packed(&format!("{{\"bytes\":\"{came}\"}}"));
    for text in ["run_command", came.trim_end_matches('='), &format!("{came}{came}="), &twice, ""] {
        let text = format!("{{\"bytes\":\"{text}\"}}");
        assert_eq!(read(Format::Json, &[text.as_bytes()]), Ok((text.clone(), false)));
    }
    let other = format!("{{\"choices\":[{{\"logprobs\":{{\"bytes\":\"{came}\"}}}}]}}");
    assert_eq!(read(Format::Json, &[other.as_bytes()]), Ok((other.clone(), false)));
    // And what can't be changed does not go on.
    let event = |inner: &str| {
        read(Format::EventStream, &[format!("data: {{\"bytes\":\"{}\"}}\n\n", packed(inner)).as_bytes()])
    };
    assert_eq!(event(&block("run_")), Err(RenameError::Parts));
    assert_eq!(event("{\"name\":"), Err(RenameError::Form));
}

/// Documents in which any member may lead to any other that a reader of answers looks into.
fn document() -> impl Strategy<Value = String> {
    const LEADS: [&str; 24] = [
        "choices",
        "candidates",
        "content",
        "parts",
        "output",
        "outputs",
        "item",
        "content_block",
        "message",
        "delta",
        "start",
        "contentBlock",
        "generations",
        "tool_calls",
        "tool_call_delta",
        "toolUse",
        "functionCall",
        "function_call",
        "response",
        "x_groq",
        "results",
        "function",
        "custom",
        "text",
    ];
    const KINDS: [&str; 6] =
        ["tool_use", "function_call", "custom_tool_call", "other_call", "function.call", "message"];
    let kind = proptest::sample::select(KINDS.to_vec());
    let leaf = kind.prop_map(|kind| format!(r#"{{"type":"{kind}","name":"run_command"}}"#));
    leaf.prop_recursive(6, 40, 4, |inner| {
        let lead = (proptest::sample::select(LEADS.to_vec()), inner.clone());
        let object = (proptest::collection::vec(lead, 1..4), proptest::sample::select(KINDS.to_vec()));
        prop_oneof![
            proptest::collection::vec(inner, 1..3).prop_map(|all| format!("[{}]", all.join(","))),
            object.prop_map(|(all, kind)| {
                let all: BTreeMap<_, _> = all.into_iter().collect();
                let all: Vec<_> =
                    all.into_iter().map(|(lead, value)| format!("\"{lead}\":{value}")).collect();
                format!(r#"{{{},"type":"{kind}","name":"run_command"}}"#, all.join(","))
            }),
        ]
    })
}

/// Counter-examples of the property below.
#[test]
fn who_reads_what_is_wrapped_sees_the_clients_names() {
    for came in [
        r#"{"message":{"results":{"choices":{"type":"tool_use","name":"run_command"}}}}"#,
        r#"{"delta":{"results":[{"type":"tool_use","name":"run_command"}]}}"#,
        r#"{"message":{"response":{"item":{"type":"function_call","name":"run_command"}}}}"#,
        r#"{"message":{"x_groq":{"tool_calls":[{"function":{"name":"run_command"}}]}}}"#,
    ] {
        let (got, _) = read(Format::Json, &[came.as_bytes()]).expect("changed");
        let mut reader = Reader::new(Format::Json).following_calls(1 << 20, Following::Told, true);
        reader.push(got.as_bytes());
        reader.close();
        let calls = reader.take_calls().unwrap_or_default();
        assert!(calls.iter().all(|call| call.name != "run_command"), "{got} {calls:?}");
        assert!(!reader.finish().tools.contains(&"run_command".to_owned()), "{got}");
    }
}

/// The same, some of them packed in another.
fn perhaps_packed() -> impl Strategy<Value = String> {
    let wraps = ["{\"bytes\":\"X\"}", "{\"response\":{\"bytes\":\"X\"}}", "[{\"delta\":{\"bytes\":\"X\"}}]"];
    let within = (document(), proptest::sample::select(wraps.to_vec()))
        .prop_map(|(document, wrap)| wrap.replace('X', &packed(&document)));
    prop_oneof![2 => document(), 1 => within]
}

proptest! {
    /// What reads an answer finds no name of the model's where names were changed back.
    #[test]
    fn who_reads_an_answer_sees_the_clients_names(came in perhaps_packed()) {
        let (got, _) = read(Format::Json, &[came.as_bytes()]).expect("not too deep");
        for follows in [false, true] {
            let reader = Reader::new(Format::Json);
            let mut reader =
                if follows { reader.following_calls(1 << 20, Following::Told, true) } else { reader };
            reader.push(got.as_bytes());
            reader.close();
            let calls = reader.take_calls().unwrap_or_default();
            prop_assert!(calls.iter().all(|call| call.name != "run_command"), "{} {:?}", got, calls);
            let tools = reader.finish().tools;
            prop_assert!(!tools.contains(&"run_command".to_owned()), "{}", got);
        }
    }

    #[test]
    fn it_is_the_same_however_it_is_cut(
        n in 0..ANSWERS.len(), cuts in proptest::collection::vec(0..600_usize, 0..9),
    ) {
        let (format, marked) = ANSWERS[n];
        let (came, want) = sides(marked);
        let mut cuts: Vec<usize> = cuts.into_iter().map(|at| at.min(came.len())).collect();
        cuts.extend([0, came.len()]);
        cuts.sort_unstable();
        let pieces: Vec<&[u8]> = cuts.windows(2).map(|w| &came.as_bytes()[w[0]..w[1]]).collect();
        let (got, _) = read(format, &pieces).expect("changed");
        prop_assert_eq!(plain(&got), plain(&want));
    }

    #[test]
    fn no_bytes_break_it(text in proptest::collection::vec(
        proptest::sample::select(b"{}[]\",:\\ \ndata:toolname".to_vec()), 0..80,
    )) {
        for format in [Format::Json, Format::EventStream, Format::Lines] {
            let _ = read(format, &[&text]);
        }
        let _ = super::renamed(&text, &RENAMES);
    }
}
