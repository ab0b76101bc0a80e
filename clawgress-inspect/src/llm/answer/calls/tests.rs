//! Calls of every dialect, whole however they are cut, and told in each way that clients may take them.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use super::super::{Format, Reader};
use super::*;

const BYTES_MAX: usize = 1 << 16;

fn reader(format: Format) -> Reader {
    Reader::new(format).following_calls(BYTES_MAX, Following::Held, true)
}

/// Server-sent events of these documents.
fn events(documents: &[&str]) -> Vec<u8> {
    documents.iter().flat_map(|document| format!("data: {document}\n\n").into_bytes()).collect()
}

/// A frame of Amazon's.
fn amazon(payload: &str) -> Vec<u8> {
    let total = u32::try_from(16 + payload.len()).expect("short");
    let mut frame = total.to_be_bytes().to_vec();
    frame.extend(0_u32.to_be_bytes());
    let mut sum = flate2::Crc::new();
    sum.update(&frame);
    frame.extend(sum.sum().to_be_bytes());
    frame.extend(payload.as_bytes());
    frame.extend([0; 4]);
    frame
}

fn told(calls: &[Asked]) -> Vec<String> {
    calls.iter().map(|call| format!("{} {}", call.name, call.arguments)).collect()
}

/// Calls of an answer, cut into pieces of so many bytes; nothing of one goes on before it is told.
fn calls(format: Format, body: &[u8], piece: usize) -> Result<Vec<String>, CallsError> {
    let mut reader = reader(format);
    let (mut all, mut gone, mut seen) = (Vec::new(), 0, 0);
    for bytes in body.chunks(piece) {
        let ended = reader.push(bytes);
        if ended > 0 {
            gone = seen + ended;
        }
        seen += bytes.len();
        // Some are said again.
        let told = reader.take_calls()?;
        all.extend(told.into_iter().filter(|call| !all.contains(call)).collect::<Vec<_>>());
        // What went on has no call but those that were told.
        let mut prefix = self::reader(format);
        prefix.push(&body[..gone]);
        prefix.close();
        assert!(prefix.take_calls()?.iter().all(|call| all.contains(call)), "{gone} of {seen} went on");
    }
    reader.close();
    all.extend(reader.take_calls()?);
    Ok(told(&all))
}

/// Those that came later.
fn later_dialects() -> Vec<(&'static str, Format, Vec<u8>, Vec<&'static str>)> {
    let sse = Format::EventStream;
    vec![
        // What the provider calls once its client approves, and what it runs itself.
        (
            "approval",
            sse,
            events(&[
                r#"{"type":"response.output_item.added","output_index":0,"item":{"type":"mcp_approval_request","id":"m","server_label":"gh","name":"delete_repo","arguments":""}}"#,
                r#"{"type":"response.output_item.done","output_index":0,"item":{"type":"mcp_approval_request","id":"m","server_label":"gh","name":"delete_repo","arguments":"{\"repo\":\"a\"}"}}"#,
                r#"{"type":"response.completed","response":{"output":[{"type":"mcp_approval_request","id":"m","name":"delete_repo","arguments":"{\"repo\":\"a\"}"}]}}"#,
            ]),
            vec!["delete_repo {\"repo\":\"a\"}"],
        ),
        (
            "interactions",
            sse,
            events(&[
                r#"{"event_type":"interaction.created","interaction":{"id":"i","status":"in_progress"}}"#,
                r#"{"event_type":"step.start","index":0,"step":{"type":"thought"}}"#,
                r#"{"event_type":"step.delta","index":0,"delta":{"type":"thought_summary","content":{"type":"text","text":"hm"}}}"#,
                r#"{"event_type":"step.stop","index":0}"#,
                r#"{"event_type":"step.start","index":1,"step":{"type":"function_call","id":"c","name":"sh","arguments":{}}}"#,
                r#"{"event_type":"step.delta","index":1,"delta":{"type":"arguments_delta","arguments":"{\"x\":"}}"#,
                r#"{"event_type":"step.delta","index":1,"delta":{"type":"arguments_delta","arguments":"1}"}}"#,
                r#"{"event_type":"step.stop","index":1}"#,
                r#"{"event_type":"interaction.completed","interaction":{"id":"i","status":"completed"}}"#,
            ]),
            vec!["sh {\"x\":1}"],
        ),
        (
            "an agent of Bedrock's",
            Format::Amazon,
            amazon(
                r#"{"invocationId":"i","returnControl":{"invocationInputs":[{"functionInvocationInput":{"actionGroup":"g","function":"rm","parameters":[{"name":"x","type":"string","value":"1"}]}},{"apiInvocationInput":{"apiPath":"/rows","httpMethod":"DELETE"}}]}}"#,
            ),
            vec![r#"rm {"x":"1"}"#, r#"/rows {"httpMethod":"DELETE"}"#],
        ),
        (
            "a run",
            Format::Json,
            br#"{"object":"thread.run","status":"requires_action","required_action":{"type":"submit_tool_outputs","submit_tool_outputs":{"tool_calls":[{"id":"c","type":"function","function":{"name":"sh","arguments":"{}"}}]}}}"#
                .to_vec(),
            vec!["sh {}"],
        ),
        (
            "items of a conversation",
            Format::Json,
            br#"{"object":"list","data":[{"type":"message","content":[{"type":"output_text","text":"a"}]},{"type":"function_call","name":"sh","arguments":"{}"}]}"#
                .to_vec(),
            vec!["sh {}"],
        ),
        (
            "chats that were kept",
            Format::Json,
            br#"{"object":"list","data":[{"choices":[{"index":0,"message":{"tool_calls":[{"function":{"name":"sh","arguments":"{}"}}]}}]}]}"#
                .to_vec(),
            vec!["sh {}"],
        ),
        (
            "batches",
            Format::Lines,
            [
                r#"{"custom_id":"1","response":{"status_code":200,"body":{"choices":[{"message":{"tool_calls":[{"function":{"name":"sh","arguments":"{}"}}]}}]}}}"#,
                r#"{"custom_id":"2","result":{"type":"succeeded","message":{"content":[{"type":"tool_use","name":"ls","input":{}}]}}}"#,
            ]
            .join("\n")
            .into_bytes(),
            vec!["sh {}", "ls {}"],
        ),
    ]
}

fn dialects() -> Vec<(&'static str, Format, Vec<u8>, Vec<&'static str>)> {
    let sse = Format::EventStream;
    vec![
        ("chat", sse, events(&[
            r#"{"choices":[{"index":0,"delta":{"role":"assistant","content":"hi"}}]}"#,
            r#"{"choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"id":"a","type":"function","function":{"name":"sh","arguments":""}}]}},{"index":1,"delta":{"tool_calls":[{"index":0,"id":"c","function":{"name":"cat","arguments":"{\"p\":"}}]}}]}"#,
            r#"{"choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"function":{"arguments":"{\"x\""}},{"index":1,"id":"b","function":{"name":"ls","arguments":"{}"}}]}}]}"#,
            r#"{"choices":[{"index":1,"delta":{"tool_calls":[{"index":0,"function":{"arguments":"1.0}"}}]},"finish_reason":"tool_calls"}]}"#,
            r#"{"choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"function":{"arguments":":[1,2]}"}}]}}]}"#,
            r#"{"choices":[{"index":0,"delta":{},"finish_reason":"tool_calls"}]}"#,
            "[DONE]",
        ]), vec!["cat {\"p\":1.0}", "sh {\"x\":[1,2]}", "ls {}"]),
        ("responses", sse, events(&[
            r#"{"type":"response.output_item.added","output_index":0,"item":{"type":"function_call","id":"f","call_id":"c","name":"sh","arguments":""}}"#,
            r#"{"type":"response.function_call_arguments.delta","output_index":0,"item_id":"f","delta":"{\"x\":"}"#,
            r#"{"type":"response.function_call_arguments.delta","output_index":0,"item_id":"f","delta":"1}"}"#,
            r#"{"type":"response.function_call_arguments.done","output_index":0,"item_id":"f","arguments":"{\"x\":1}"}"#,
            r#"{"type":"response.output_item.done","output_index":0,"item":{"type":"function_call","name":"sh","arguments":"{\"x\":1}"}}"#,
            r#"{"type":"response.output_item.added","output_index":1,"item":{"type":"custom_tool_call","name":"py","input":""}}"#,
            r#"{"type":"response.custom_tool_call_input.delta","output_index":1,"delta":"print("}"#,
            r#"{"type":"response.custom_tool_call_input.delta","output_index":1,"delta":"1)"}"#,
            r#"{"type":"response.output_item.done","output_index":1,"item":{"type":"custom_tool_call","name":"py","input":"print(1)"}}"#,
        ]), vec!["sh {\"x\":1}", "py print(1)"]),
        ("anthropic", sse, events(&[
            r#"{"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}"#,
            r#"{"type":"content_block_stop","index":0}"#,
            r#"{"type":"content_block_start","index":1,"content_block":{"type":"tool_use","id":"t","name":"sh","input":{}}}"#,
            r#"{"type":"content_block_delta","index":1,"delta":{"type":"input_json_delta","partial_json":""}}"#,
            r#"{"type":"content_block_delta","index":1,"delta":{"type":"input_json_delta","partial_json":"{\"x\":"}}"#,
            r#"{"type":"ping"}"#,
            r#"{"type":"content_block_delta","index":1,"delta":{"type":"input_json_delta","partial_json":"2}"}}"#,
            r#"{"type":"content_block_stop","index":1}"#,
            r#"{"type":"message_stop"}"#,
        ]), vec!["sh {\"x\":2}"]),
        ("gemini", sse, events(&[
            r#"{"candidates":[{"content":{"parts":[{"text":"a"},{"functionCall":{"name":"sh","args":{"x":1}}},{"functionCall":{"name":"ls"}}]}}]}"#,
        ]), vec!["sh {\"x\":1}", "ls "]),
        ("converse", Format::Amazon, [
            r#"{"contentBlockIndex":1,"start":{"toolUse":{"toolUseId":"t","name":"sh"}}}"#,
            r#"{"contentBlockIndex":1,"delta":{"toolUse":{"input":"{\"x\":"}}}"#,
            r#"{"contentBlockIndex":1,"delta":{"toolUse":{"input":"3}"}}}"#,
            r#"{"contentBlockIndex":1}"#,
            r#"{"stopReason":"tool_use"}"#,
        ].iter().flat_map(|document| amazon(document)).collect(), vec!["sh {\"x\":3}"]),
        ("invoke", Format::Amazon, [
            r#"{"type":"content_block_start","index":0,"content_block":{"type":"tool_use","name":"sh","input":{}}}"#,
            r#"{"type":"content_block_delta","index":0,"delta":{"partial_json":"{\"x\":4}"}}"#,
            r#"{"type":"content_block_stop","index":0}"#,
        ].iter().flat_map(|inner| amazon(&format!("{{\"bytes\":\"{}\"}}", BASE64.encode(inner)))).collect(), vec!["sh {\"x\":4}"]),
        ("cohere", sse, events(&[
            r#"{"type":"tool-call-start","index":0,"delta":{"message":{"tool_calls":{"id":"a","type":"function","function":{"name":"sh","arguments":""}}}}}"#,
            r#"{"type":"tool-call-delta","index":0,"delta":{"message":{"tool_calls":{"function":{"arguments":"{\"x\""}}}}}"#,
            r#"{"type":"tool-call-delta","index":0,"delta":{"message":{"tool_calls":{"function":{"arguments":":5}"}}}}}"#,
            r#"{"type":"tool-call-end","index":0}"#,
        ]), vec!["sh {\"x\":5}"]),
        ("cohere v1", Format::Lines, [
            r#"{"event_type":"tool-calls-chunk","tool_call_delta":{"index":0,"name":"sh"}}"#,
            r#"{"event_type":"tool-calls-chunk","tool_call_delta":{"index":0,"parameters":"{\"x\":6}"}}"#,
            r#"{"event_type":"tool-calls-generation","tool_calls":[{"name":"sh","parameters":{"x":6}}]}"#,
        ].join("\n").into_bytes(), vec!["sh {\"x\":6}"]),
        ("mistral", sse, events(&[
            r#"{"choices":[{"index":0,"delta":{"content":"","tool_calls":[{"id":"a","function":{"name":"sh","arguments":"{\"x\":7}"},"index":0}]},"finish_reason":"tool_calls"}]}"#,
        ]), vec!["sh {\"x\":7}"]),
        ("mistral's conversations", sse, events(&[
            r#"{"type":"function.call.delta","output_index":0,"name":"sh","tool_call_id":"a","arguments":"{\"x\":"}"#,
            r#"{"type":"function.call.delta","output_index":0,"tool_call_id":"a","arguments":"8}"}"#,
            r#"{"type":"conversation.response.done"}"#,
        ]), vec!["sh {\"x\":8}"]),
        ("ollama", Format::Lines, [
            r#"{"message":{"role":"assistant","content":"","tool_calls":[{"function":{"name":"sh","arguments":{"x":9}}}]},"done":false}"#,
            r#"{"message":{"content":""},"done":true}"#,
        ].join("\n").into_bytes(), vec!["sh {\"x\":9}"]),
    ]
}

#[test]
fn calls_are_told_whole_however_they_are_cut_and_nothing_of_one_goes_on_before() {
    for (dialect, format, body, expected) in dialects().into_iter().chain(later_dialects()) {
        for piece in 1..=body.len() {
            let calls = calls(format, &body, piece);
            assert_eq!(calls.expect(dialect), expected, "{dialect}, {piece} bytes at once");
        }
    }
}

#[test]
fn answers_that_do_not_stream_tell_the_same() {
    for (body, expected) in [
        (
            r#"{"choices":[{"index":0,"message":{"tool_calls":[{"id":"a","function":{"name":"sh","arguments":"{\"x\":1}"}},{"id":"b","function":{"name":"ls","arguments":""}}]}}]}"#,
            vec!["sh {\"x\":1}", "ls "],
        ),
        (r#"{"choices":[{"message":{"function_call":{"name":"sh","arguments":"{}"}}}]}"#, vec!["sh {}"]),
        (
            r#"{"choices":[{"message":{"tool_calls":[{"type":"custom","custom":{"name":"py","input":"1+1"}}]}}]}"#,
            vec!["py 1+1"],
        ),
        (
            r#"{"content":[{"type":"text","text":"a"},{"type":"tool_use","name":"sh","input":{"x":1}}]}"#,
            vec!["sh {\"x\":1}"],
        ),
        (
            r#"{"output":{"message":{"content":[{"toolUse":{"name":"sh","input":{"x":1}}}]}},"stopReason":"tool_use"}"#,
            vec!["sh {\"x\":1}"],
        ),
        (
            r#"{"output":[{"type":"function_call","name":"sh","arguments":"{\"x\":1}"},{"type":"local_shell_call","id":"i","status":"completed","action":{"command":["rm","-rf"]}}]}"#,
            vec!["sh {\"x\":1}", "local_shell {\"action\":{\"command\":[\"rm\",\"-rf\"]}}"],
        ),
        (
            r#"{"output":[{"type":"mcp_approval_request","id":"m","name":"delete_repo","arguments":"{}"},{"type":"program","call_id":"c","code":"run()"}]}"#,
            vec!["delete_repo {}", "program {\"code\":\"run()\"}"],
        ),
        (
            r#"{"id":"i","status":"completed","steps":[{"type":"function_call","id":"c","name":"sh","arguments":{"x":1}}],"usage":{"total_input_tokens":5}}"#,
            vec!["sh {\"x\":1}"],
        ),
        (
            r#"[{"candidates":[{"content":{"parts":[{"functionCall":{"name":"sh","args":{"x":1}}}]}}]}]"#,
            vec!["sh {\"x\":1}"],
        ),
        (
            r#"{"response":{"candidates":[{"content":{"parts":[{"functionCall":{"name":"sh","args":{"x":1}}}]}}]}}"#,
            vec!["sh {\"x\":1}"],
        ),
        (
            r#"{"message":{"tool_calls":[{"function":{"name":"sh","arguments":"{\"x\":1}"}}]}}"#,
            vec!["sh {\"x\":1}"],
        ),
        (r#"{"text":"a","tool_calls":[{"name":"sh","parameters":{"x":1}}]}"#, vec!["sh {\"x\":1}"]),
        (
            r#"{"outputs":[{"type":"function.call","name":"sh","arguments":"{\"x\":1}"}]}"#,
            vec!["sh {\"x\":1}"],
        ),
    ] {
        assert_eq!(calls(Format::Json, body.as_bytes(), 7).expect(body), expected, "{body}");
    }
}

/// A chunk of chat, of one call.
fn chat(call: &str) -> String {
    format!(r#"{{"choices":[{{"index":0,"delta":{{"tool_calls":[{call}]}}}}]}}"#)
}

#[test]
fn a_name_in_parts_is_told_in_each_way_that_it_may_be_taken() {
    let body = events(&[
        &chat(r#"{"index":0,"id":"a","function":{"name":"she","arguments":"{"}}"#),
        &chat(r#"{"index":0,"function":{"name":"ll","arguments":"}"}}"#),
        "[DONE]",
    ]);
    assert_eq!(calls(Format::EventStream, &body, 9).expect("whole"), ["shell {}", "she {}", "ll {}"]);
    // Two ids of one number: clients go by either.
    let body = events(&[
        &chat(r#"{"index":0,"id":"a","function":{"name":"she","arguments":""}}"#),
        &chat(r#"{"index":0,"id":"b","function":{"name":"ll","arguments":"{}"}}"#),
        "[DONE]",
    ]);
    let told = calls(Format::EventStream, &body, 9).expect("whole");
    assert_eq!(told, ["she ", "shell {}", "she {}", "ll {}"]);
    // Where names alone are wanted, none is kept back, and all are known.
    let mut reader = Reader::new(Format::EventStream).following_calls(BYTES_MAX, Following::Names, true);
    assert_eq!(reader.push(&body), body.len());
    assert_eq!(reader.progress().tools, ["she", "ll", "shell"]);
}

#[test]
fn who_numbers_no_calls_is_told_by_ids_or_by_the_order() {
    let body = events(&[
        &chat(r#"{"id":"a","function":{"name":"sh","arguments":"{\"x\":"}}"#),
        &chat(r#"{"function":{"arguments":"1}"}}"#),
        &chat(r#"{"id":"b","function":{"name":"ls","arguments":"{\"y\":2}"}}"#),
        "[DONE]",
    ]);
    assert_eq!(calls(Format::EventStream, &body, 11).expect("whole"), ["sh {\"x\":1}", "ls {\"y\":2}"]);
}

#[test]
fn what_cannot_be_put_together_is_an_error() {
    let large =
        chat(&format!(r#"{{"index":0,"function":{{"name":"sh","arguments":"{}"}}}}"#, "x".repeat(BYTES_MAX)));
    let part = chat(&format!(
        r#"{{"index":0,"function":{{"name":"sh","arguments":"{}"}}}}"#,
        "x".repeat(BYTES_MAX / 2)
    ));
    let many = chat(
        &(0..300)
            .map(|n| format!(r#"{{"index":{n},"function":{{"name":"sh"}}}}"#))
            .collect::<Vec<_>>()
            .join(","),
    );
    for (documents, why) in [
        (vec!["{"], CallsError::Document),
        (vec![r#"{"choices":[],"choices":[]}"#], CallsError::Document),
        (
            vec![&*chat(r#"{"index":0,"function":{"name":"sh","arguments":"{\"x\":1,\"x\":2}"}}"#), "[DONE]"],
            CallsError::Arguments,
        ),
        (
            vec![&*chat(r#"{"index":0,"function":{"name":"sh","arguments":"{\"x\""}}"#), "[DONE]"],
            CallsError::Arguments,
        ),
        (vec![&*chat(r#"{"index":0,"function":{"arguments":"{}"}}"#), "[DONE]"], CallsError::Form),
        (vec![r#"{"generations":[{"tool_calls":[{"name":"sh","arguments":"{}"}]}]}"#], CallsError::Form),
        (
            vec![
                r#"{"candidates":[{"content":{"parts":[{"functionCall":{"name":"sh","willContinue":true}}]}}]}"#,
            ],
            CallsError::Form,
        ),
        (vec![&*large], CallsError::TooMuch),
        (vec![&*part, &*part, &*part], CallsError::TooMuch),
        (vec![&*many], CallsError::TooMuch),
    ] {
        let mut reader = reader(Format::EventStream);
        reader.push(&events(&documents));
        assert_eq!(reader.take_calls(), Err(why), "{:.80}", documents[0]);
    }
}

/// Clients find the call that a part belongs to by its number, or by the order: where these differ, each would make another
/// call of it.
#[test]
fn numbers_that_clients_may_take_in_two_ways_are_an_error() {
    let start = |n: &str, name: &str| {
        format!(
            r#"{{"type":"content_block_start"{n},"content_block":{{"type":"tool_use","name":"{name}","input":{{}}}}}}"#
        )
    };
    let delta = |n: &str| format!(r#"{{"type":"content_block_delta"{n},"delta":{{"partial_json":"{{}}"}}}}"#);
    let item = |n: &str, name: &str| {
        format!(
            r#"{{"type":"response.output_item.added"{n},"item":{{"type":"function_call","name":"{name}"}}}}"#
        )
    };
    let arguments =
        |n: &str| format!(r#"{{"type":"response.function_call_arguments.delta"{n},"delta":"{{}}"}}"#);
    let of_chat = |n: &str| chat(&format!(r#"{{"index":{n},"function":{{"name":"sh"}}}}"#));
    let (zero, one) = (r#","index":0"#, r#","index":1"#);
    for documents in [
        vec![of_chat("0.0")],
        vec![of_chat(r#""0""#)],
        vec![of_chat("-1")],
        vec![of_chat("0").replacen(r#""index":0"#, r#""index":0e0"#, 1)],
        vec![start("", "sh")],
        vec![start(one, "sh")],
        vec![start(zero, "sh"), start(zero, "ls")],
        vec![start(zero, "sh"), delta("")],
        vec![start(zero, "sh"), delta(r#","index":0.0"#)],
        vec![start(zero, "sh"), start(one, "ls"), delta(zero)],
        vec![delta(zero)],
        vec![item("", "sh")],
        vec![r#"{"type":"response.created"}"#.to_owned(), item(r#","output_index":1"#, "sh")],
        vec![item(r#","output_index":1"#, "sh"), item(r#","output_index":3"#, "ls")],
        vec![item(r#","output_index":0"#, "sh"), arguments(r#","output_index":"0""#)],
        vec![r#"{"contentBlockIndex":"0","start":{"toolUse":{"name":"sh"}}}"#.to_owned()],
        vec![
            r#"{"type":"tool-call-start","index":0,"delta":{"message":{"tool_calls":{"function":{"name":"sh"}}}}}"#
                .to_owned(),
            r#"{"type":"tool-call-delta","index":1,"delta":{"message":{"tool_calls":{"function":{"arguments":"{}"}}}}}"#
                .to_owned(),
        ],
    ] {
        let mut reader = reader(Format::EventStream);
        reader.push(&events(&documents.iter().map(String::as_str).collect::<Vec<_>>()));
        assert_eq!(reader.take_calls(), Err(CallsError::Form), "{documents:?}");
    }
    // What is resumed goes on from anywhere.
    let body = events(&[&*item(r#","output_index":2"#, "sh"), &arguments(r#","output_index":2"#)]);
    assert_eq!(calls(Format::EventStream, &body, 13).expect("whole"), ["sh {}"]);
    // A message that follows begins anew.
    let again =
        [r#"{"type":"message_start"}"#, &start(zero, "ls"), &delta(zero), r#"{"type":"message_stop"}"#];
    let body = events(&[&[&*start(zero, "sh"), r#"{"type":"message_stop"}"#][..], &again[..]].concat());
    assert_eq!(calls(Format::EventStream, &body, 13).expect("whole"), ["sh ", "ls {}"]);
}

#[test]
fn a_stream_without_calls_is_one_event_late_at_most() {
    let mut reader = reader(Format::EventStream);
    for event in
        [events(&[r#"{"choices":[{"index":0,"delta":{"content":"a"}}]}"#]), b": comment\n\n".to_vec()]
    {
        assert_eq!(reader.push(&event), event.len());
    }
    assert_eq!(reader.take_calls(), Ok(Vec::new()));
}

#[test]
fn of_what_is_no_models_only_calls_are_refused() {
    let mut reader = Reader::new(Format::EventStream).following_calls(64, Following::Held, false);
    let long = format!(r#"{{"text":"{}"}}"#, "x".repeat(100));
    let body = events(&["some text", &long, "{"]);
    assert_eq!((reader.push(&body), reader.take_calls()), (body.len(), Ok(Vec::new())));
    for (event, why) in [
        (r#"{"tool_calls":[{"name":"sh","parameters":"{"}]}"#, CallsError::Arguments),
        (
            &*format!(r#"{{"tool_calls":[{{"name":"sh","parameters":"{}"}}]}}"#, "x".repeat(100)),
            CallsError::Form,
        ),
        (r#"{"choices":[],"choices":[]}"#, CallsError::Document),
    ] {
        let mut reader = Reader::new(Format::EventStream).following_calls(64, Following::Held, false);
        reader.push(&events(&["some text", event]));
        assert_eq!(reader.take_calls(), Err(why), "{event}");
    }
}

/// What is kept, and what it takes to, grows with the bytes alone, whatever names come in parts.
#[test]
fn names_in_parts_are_bounded() {
    let part = format!(r#"{{"index":0,"function":{{"name":"{}"}}}}"#, "n".repeat(36));
    let body = events(&[&chat(&vec![&*part; 14_500].join(","))]);
    for following in [Following::Names, Following::Told, Following::Held] {
        let mut reader = Reader::new(Format::EventStream).following_calls(1 << 21, following, true);
        reader.push(&body);
        let progress = reader.progress();
        assert!(
            progress.tools.len() <= 16 && progress.tools.iter().all(|name| name.len() <= 256),
            "{progress:?}"
        );
        assert_eq!(progress.has_more_tools, following == Following::Names);
        assert!(reader.memory_bytes() < 1 << 16, "{}", reader.memory_bytes());
        let whole = reader.take_calls();
        assert_eq!(whole, if following == Following::Names { Ok(vec![]) } else { Err(CallsError::TooMuch) });
    }
    // Names of other calls, too.
    let many =
        (0..3000).map(|n| format!(r#"{{"functionCall":{{"name":"n{n}"}}}}"#)).collect::<Vec<_>>().join(",");
    let body = format!(r#"{{"candidates":[{{"content":{{"parts":[{many}]}}}}]}}"#);
    let mut reader = Reader::new(Format::Json).following_calls(1 << 20, Following::Names, true);
    reader.push(body.as_bytes());
    reader.close();
    assert!(reader.progress().has_more_tools && reader.progress().tools.len() == ASKED_MAX);
}

/// A document that a client may read another way is known not to be read.
#[test]
fn documents_that_break_are_told() {
    let call = r#"{"choices":[{"message":{"tool_calls":[{"function":{"name":"sh","arguments":"{}"}}]}}]}"#;
    let deep = format!(r#"{{"a":{}{},"b":{call}}}"#, "[".repeat(65), "]".repeat(65));
    let two = format!("{call} {call}");
    for (format, body) in [
        (Format::Json, deep.clone().into_bytes()),
        (Format::Json, two.clone().into_bytes()),
        (Format::EventStream, events(&[&deep])),
        (Format::EventStream, events(&[&two])),
        (Format::EventStream, events(&["no JSON"])),
        (Format::EventStream, b"data: {\"choices\":".to_vec()),
        (Format::Lines, b"{\"choices\":".to_vec()),
        (Format::Amazon, amazon(call)[..40].to_vec()),
    ] {
        for following in [Following::Names, Following::Held] {
            let mut reader = Reader::new(format).following_calls(1 << 20, following, true);
            reader.push(&body);
            reader.close();
            assert_eq!(
                reader.take_calls(),
                Err(CallsError::Document),
                "{format:?} {:.60}",
                String::from_utf8_lossy(&body)
            );
        }
    }
    // A mark at its begin is none of it; and what no empty line ends, some clients take.
    let marked = |body: &[u8]| [b"\xef\xbb\xbf", body].concat();
    for (format, body) in [
        (Format::Json, marked(call.as_bytes())),
        (Format::EventStream, marked(&events(&[call]))),
        (Format::EventStream, format!("data: {call}\n").into_bytes()),
        (Format::EventStream, format!("data: {call}").into_bytes()),
    ] {
        for piece in 1..8 {
            let told = calls(format, &body, piece).unwrap_or_else(|why| panic!("{why}: {body:?}"));
            assert_eq!(told, ["sh {}"], "{piece}");
        }
    }
}

/// Whatever is called, is among the tools that are asked for.
#[test]
fn names_of_calls_are_those_of_tools() {
    for (dialect, format, body, _) in dialects().into_iter().chain(later_dialects()) {
        let mut reader = reader(format);
        reader.push(&body);
        reader.close();
        let called = reader.take_calls().expect(dialect);
        let tools = reader.progress().tools;
        assert!(called.iter().all(|call| tools.contains(&call.name)), "{dialect}: {tools:?}");
    }
    let custom = events(&[
        &chat(r#"{"index":0,"type":"custom","custom":{"name":"py","input":"1"}}"#),
        r#"{"type":"function.call.delta","output_index":1,"name":"ms","arguments":"{}"}"#,
        "[DONE]",
    ]);
    for following in [Following::Names, Following::Held] {
        let mut reader = Reader::new(Format::EventStream).following_calls(BYTES_MAX, following, true);
        reader.push(&custom);
        assert_eq!(reader.progress().tools, ["py", "ms"]);
    }
}
