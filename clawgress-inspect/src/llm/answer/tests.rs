//! What is not certain is unknown; and what little is kept.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use super::*;

fn read(format: Format, body: &[u8]) -> Answer {
    let mut reader = Reader::new(format);
    reader.push(body);
    reader.finish()
}

#[test]
fn what_is_not_certain_is_unknown() {
    for body in [
        "",
        "{}",
        "[]",
        "null",
        r#"{"usage":[{"prompt_tokens":1,"completion_tokens":2}]}"#,
        r#"{"usage":{"prompt_tokens":"1","completion_tokens":2}}"#,
        r#"{"usage":{"prompt_tokens":1.5,"completion_tokens":2}}"#,
        r#"{"usage":{"prompt_tokens":-1,"completion_tokens":2}}"#,
        r#"{"usage":{"prompt_tokens":99999999999999999999,"completion_tokens":2}}"#,
        r#"{"usage":{"prompt_tokens":1}}"#,
        r#"{"usage":{"prompt_tokens":1,"completion_tokens":2}"#,
        r#"{"usage":{"prompt_tokens":1,"completion_tokens":2}}}"#,
        r#"{"usage":{"prompt_tokens":1,"completion_tokens":2}} x"#,
        r#"{"usage":{"prompt_tokens":01,"completion_tokens":2}}"#,
        r#"{"usage":{"prompt_tokens":1 2,"completion_tokens":2}}"#,
        r#"{"a":"\q","usage":{"prompt_tokens":1,"completion_tokens":2}}"#,
        "{\"a\":\"\n\",\"usage\":{\"prompt_tokens\":1,\"completion_tokens\":2}}",
        r#"{"choices":[{"message":{"usage":{"prompt_tokens":1,"completion_tokens":2}}}]}"#,
        r#"{"response":{"message":{"usage":{"prompt_tokens":1,"completion_tokens":2}}}}"#,
    ] {
        assert_eq!(read(Format::Json, body.as_bytes()).usage, None, "{body}");
    }
    let deep = format!(
        "{{\"a\":{}{},\"usage\":{{\"prompt_tokens\":1,\"completion_tokens\":2}}}}",
        "[".repeat(64),
        "]".repeat(64)
    );
    assert_eq!(read(Format::Json, deep.as_bytes()).usage, None, "deeper than is followed");
    let unfinished = b"data: {\"usage\":{\"prompt_tokens\":1,\"completion_tokens\":2}}\n";
    assert_eq!(read(Format::EventStream, unfinished).usage, None, "an event without its empty line");
}

#[test]
fn what_was_sent_of_a_broken_stream_is_estimated() {
    let event = "data: {\"model\":\"m\",\"choices\":[{\"delta\":{\"content\":\"some words of it\"}}]}\n\n";
    let answer = read(Format::EventStream, (event.repeat(10) + "data: {\"choi").as_bytes());
    assert_eq!((answer.model.as_deref(), answer.usage), (Some("m"), None));
    assert!((30..=60).contains(&answer.output_estimated), "{}", answer.output_estimated);
}

/// What a batch holds is told again as often as somebody asks: it costs nothing then.
#[test]
fn results_of_batches_cost_nothing_when_they_are_told() {
    let lines = [
        r#"{"custom_id":"1","response":{"status_code":200,"body":{"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":9}}}}"#,
        r#"{"custom_id":"2","result":{"type":"succeeded","message":{"content":[],"usage":{"input_tokens":9,"output_tokens":9}}}}"#,
    ];
    assert_eq!(Format::of("application/x-jsonl"), Some(Format::Lines));
    assert_eq!(Format::of("application/stream+json; charset=utf-8"), Some(Format::Lines));
    assert_eq!(read(Format::Lines, lines.join("\n").as_bytes()).usage, None);
}

/// Of a prompt that is not answered, what it counted is all there is.
#[test]
fn a_prompt_that_is_blocked_is_counted() {
    let event = "data: {\"promptFeedback\":{\"blockReason\":\"SAFETY\"},\"usageMetadata\":{\"promptTokenCount\":8,\"totalTokenCount\":8}}\n\n";
    let answer = read(Format::EventStream, event.as_bytes());
    assert_eq!((answer.finish.as_deref(), answer.is_partial), (Some("SAFETY"), false));
    assert_eq!(answer.usage.map(|usage| (usage.input, usage.output)), Some((8, 0)));
}

/// Another model's tokens have other prices: what they cost is not sure.
#[test]
fn advice_of_another_model_counts_and_is_partial() {
    let body = br#"{"usage":{"input_tokens":20,"output_tokens":10,"iterations":[{"type":"message","input_tokens":20,"output_tokens":10},{"type":"advisor_message","model":"claude-opus-5","input_tokens":300,"output_tokens":40}]}}"#;
    let answer = read(Format::Json, body);
    let usage = answer.usage.expect("counted");
    assert_eq!((usage.input, usage.output, answer.is_partial), (320, 50, true));
}

/// What is counted on the way is not the bill, unless it is over.
#[test]
fn running_counts_of_what_was_cut_are_partial() {
    let chunk = |text: &str, output: u32, rest: &str| {
        format!(
            "data: {{\"candidates\":[{{\"content\":{{\"parts\":[{{\"text\":\"{text}\"}}]}}{rest}}}],\"usageMetadata\":{{\"promptTokenCount\":9,\"candidatesTokenCount\":{output}}}}}\n\n"
        )
    };
    let (first, last) = (chunk("some words", 2, ""), chunk(".", 3, ",\"finishReason\":\"STOP\""));
    let of = |body: &str, is_whole: bool| {
        let mut reader = Reader::new(Format::EventStream);
        reader.push(body.as_bytes());
        let answer = if is_whole { reader.finish() } else { reader.cut() };
        (answer.usage.map(|usage| usage.output), answer.is_partial)
    };
    assert_eq!(of(&first, false), (Some(2), true));
    assert_eq!(of(&first, true), (Some(2), true), "it does not say that it stopped");
    assert_eq!(of(&(first.clone() + &last), true), (Some(3), false));
    // More may be counted behind the reason, unless it says that it is over.
    assert_eq!(of(&(first.clone() + &last), false), (Some(3), true));
    let chat = "data: {\"choices\":[{\"delta\":{\"content\":\"x\"},\"finish_reason\":\"stop\"}],\"usage\":{\"prompt_tokens\":1,\"completion_tokens\":1}}\n\n";
    assert_eq!(of(chat, false), (Some(1), true));
    assert_eq!(of(&format!("{chat}data: [DONE]\n\n"), false), (Some(1), false));
    let over = "data: {\"type\":\"response.completed\",\"response\":{\"usage\":{\"input_tokens\":1,\"output_tokens\":2}}}\n\n";
    assert_eq!(of(over, false), (Some(2), false));
    let mut reader = Reader::new(Format::Lines);
    reader
        .push(b"{\"message\":{\"content\":\"x\"},\"done\":false,\"prompt_eval_count\":1,\"eval_count\":1}\n");
    assert!(reader.cut().is_partial);
}

#[test]
fn what_tools_are_asked_for_is_estimated() {
    let estimated = |format, body: &str| read(format, body.as_bytes()).output_estimated;
    let words = "some ordinary words that a tool is asked for, a dozen of them or so";
    let plain = estimated(Format::Json, &format!("{{\"content\":[{{\"text\":\"{words}\"}}]}}"));
    assert!(plain > 10);
    for body in [
        format!(
            "{{\"choices\":[{{\"message\":{{\"tool_calls\":[{{\"function\":{{\"name\":\"f\",\"arguments\":\"{{\\\"q\\\":\\\"{words}\\\"}}\"}}}}]}}}}]}}"
        ),
        format!(
            "{{\"content\":[{{\"type\":\"tool_use\",\"name\":\"f\",\"input\":{{\"q\":[\"{words}\", 7]}}}}]}}"
        ),
        format!(
            "{{\"candidates\":[{{\"content\":{{\"parts\":[{{\"functionCall\":{{\"name\":\"f\",\"args\":{{\"q\":\"{words}\"}}}}}}]}}}}]}}"
        ),
        format!(
            "{{\"output\":[{{\"type\":\"function_call\",\"name\":\"f\",\"arguments\":\"{{\\\"q\\\":\\\"{words}\\\"}}\"}}]}}"
        ),
        format!(
            "{{\"output\":{{\"message\":{{\"content\":[{{\"toolUse\":{{\"name\":\"f\",\"input\":{{\"q\":\"{words}\"}}}}}}]}}}}}}"
        ),
    ] {
        let found = estimated(Format::Json, &body);
        assert!((plain..plain + 12).contains(&found), "{plain} {found} {body}");
    }
}

#[test]
fn what_is_said_again_counts_once() {
    let words = "some ordinary words that a model says in a dozen parts or so";
    let event = |text: String| format!("data: {text}\n\n");
    let delta = event(format!("{{\"type\":\"response.output_text.delta\",\"delta\":\"{words}\"}}"));
    let done = event(format!("{{\"type\":\"response.output_text.done\",\"text\":\"{words}\"}}"))
        + &event(format!(
            "{{\"type\":\"response.output_item.done\",\"item\":{{\"content\":[{{\"text\":\"{words}\"}}]}}}}"
        ))
        + &event(format!(
            "{{\"response\":{{\"output\":[{{\"content\":[{{\"text\":\"{words}\"}}]}}]}},\"type\":\"response.completed\"}}"
        ));
    let estimated = |body: &str| {
        let mut reader = Reader::new(Format::EventStream);
        reader.push(body.as_bytes());
        let output = reader.progress().output;
        let answer = reader.cut();
        assert_eq!(output, answer.output_estimated);
        output
    };
    let once = estimated(&delta);
    assert!(once > 10);
    assert_eq!(estimated(&(delta.clone() + &done)), once);
    assert_eq!(estimated(&done), once, "also where no parts came");
}

#[test]
fn vectors_cost_what_was_read() {
    for (body, input) in [
        (
            r#"{"id":"x","embeddings":{"float":[[0.1]]},"texts":["a"],"meta":{"api_version":{"version":"2"},"billed_units":{"input_tokens":2}}}"#,
            2,
        ),
        (r#"{"model":"m","embeddings":[[0.1]],"total_duration":1,"prompt_eval_count":8}"#, 8),
        (r#"{"embedding":[0.1],"inputTextTokenCount":5}"#, 5),
        (r#"{"object":"list","data":[{"embedding":[0.1]}],"model":"v","usage":{"total_tokens":10}}"#, 10),
        (
            r#"{"object":"list","data":[{"embedding":"AAAA"}],"usage":{"prompt_tokens":7,"total_tokens":7}}"#,
            7,
        ),
    ] {
        let usage = read(Format::Json, body.as_bytes()).usage;
        assert_eq!(usage, Some(Usage { input, ..Usage::default() }), "{body}");
    }
    // Of many, each counts.
    let many = r#"{"predictions":[{"embeddings":{"values":[0.1],"statistics":{"token_count":4.0}}},{"embeddings":{"statistics":{"token_count":3},"values":[0.1]}}]}"#;
    assert_eq!(read(Format::Json, many.as_bytes()).usage.map(|u| (u.input, u.output)), Some((7, 0)));
    let chat = r#"{"text":"hi","meta":{"billed_units":{"input_tokens":3,"output_tokens":4},"tokens":{"input_tokens":70,"output_tokens":4}}}"#;
    assert_eq!(read(Format::Json, chat.as_bytes()).usage.map(|u| (u.input, u.output)), Some((3, 4)));
    let stream = b"{\"event_type\":\"text-generation\",\"text\":\"hi\"}\n{\"event_type\":\"stream-end\",\"response\":{\"meta\":{\"billed_units\":{\"input_tokens\":3,\"output_tokens\":4}}}}\n";
    let answer = read(Format::Lines, stream);
    assert_eq!((answer.usage.map(|u| (u.input, u.output)), answer.is_partial), (Some((3, 4)), false));
}

/// Input, output, cached, written to a cache, reasoning: as the providers bill them.
#[test]
fn counts_that_stand_elsewhere_are_counted_once() {
    for (usage, want) in [
        // xAI counts reasoning besides, and in the total.
        (
            r#"{"prompt_tokens":12,"completion_tokens":1,"total_tokens":399,"completion_tokens_details":{"reasoning_tokens":386}}"#,
            [12, 387, 0, 0, 386],
        ),
        (
            r#"{"prompt_tokens":12,"completion_tokens":400,"total_tokens":798,"completion_tokens_details":{"reasoning_tokens":386}}"#,
            [12, 786, 0, 0, 386],
        ),
        // Of Gemini's interactions.
        (
            r#"{"total_tokens":60,"total_input_tokens":20,"total_cached_tokens":8,"total_output_tokens":30,"total_tool_use_tokens":3,"total_thought_tokens":7}"#,
            [23, 37, 8, 0, 7],
        ),
        // Without a total, more than all of it can't be within it.
        (r#"{"prompt_tokens":12,"completion_tokens":1,"reasoning_tokens":386}"#, [12, 387, 0, 0, 386]),
        // Perplexity's total is of the two alone.
        (
            r#"{"prompt_tokens":33,"completion_tokens":7163,"total_tokens":7196,"reasoning_tokens":73997}"#,
            [33, 81160, 0, 0, 73997],
        ),
        // Where it has read for its answer, reasoning is besides, however little, and what was read is put in.
        (
            r#"{"prompt_tokens":14,"completion_tokens":7000,"total_tokens":7014,"reasoning_tokens":5000,"citation_tokens":20000}"#,
            [20014, 12000, 0, 0, 5000],
        ),
        // What Anthropic asks itself, so that a context gets shorter, is not in the usage around it; its turns are.
        (
            r#"{"input_tokens":23000,"output_tokens":1000,"iterations":[{"type":"compaction","input_tokens":180000,"output_tokens":3500,"cache_read_input_tokens":7,"cache_creation_input_tokens":20},{"input_tokens":23000,"output_tokens":1000,"type":"message"},{"input_tokens":5,"output_tokens":6,"type":"compaction"}]}"#,
            [203_032, 4506, 7, 20, 0],
        ),
        // What gateways say in OpenAI's words of Anthropic's caches is within the prompt.
        (
            r#"{"prompt_tokens":1110,"completion_tokens":25,"total_tokens":1135,"prompt_tokens_details":{"cached_tokens":1000},"cache_creation_input_tokens":100,"cache_read_input_tokens":1000}"#,
            [1110, 25, 1000, 100, 0],
        ),
        (
            r#"{"input_tokens":10,"output_tokens":25,"cache_creation_input_tokens":100,"cache_read_input_tokens":1000}"#,
            [1110, 25, 1000, 100, 0],
        ),
        // What tools of Gemini's found is of the input, also where no candidate is counted.
        (
            r#"{"promptTokenCount":8,"toolUsePromptTokenCount":20,"thoughtsTokenCount":7,"totalTokenCount":35}"#,
            [28, 7, 0, 0, 7],
        ),
        (r#"{"prompt_tokens":5,"completion_tokens":3,"total_tokens":4}"#, [5, 3, 0, 0, 0]),
        // More than the prompt can't be within it.
        (
            r#"{"prompt_tokens":10,"completion_tokens":5,"total_tokens":1015,"cache_read_input_tokens":1000}"#,
            [1010, 5, 1000, 0, 0],
        ),
        (
            r#"{"prompt_tokens":10,"completion_tokens":5,"cache_creation_input_tokens":4,"cache_read_input_tokens":7}"#,
            [21, 5, 7, 4, 0],
        ),
    ] {
        let key = if usage.contains("TokenCount") { "usageMetadata" } else { "usage" };
        let document = format!("{{\"{key}\":{usage}}}");
        let stream = format!("data: {{\"choices\":[],\"{key}\":{usage}}}\n\ndata: [DONE]\n\n");
        for (format, body) in [(Format::Json, document), (Format::EventStream, stream)] {
            let found = read(format, body.as_bytes()).usage.expect(&body);
            let found = [found.input, found.output, found.cached, found.cache_written, found.reasoning];
            assert_eq!(found, want, "{body}");
        }
    }
}

/// Gemini's streams are one array, unless events are asked for: either way, what counts is the last count.
#[test]
fn sound_counts_once_in_an_array_of_documents() {
    let chunk = |rest: &str| {
        format!(
            r#"{{"candidates":[{{"content":{{"parts":[{{"text":"a"}}]}}}}],"usageMetadata":{{"promptTokenCount":30,"candidatesTokenCount":9{rest}}}}}"#
        )
    };
    let sound = r#","promptTokensDetails":[{"modality":"TEXT","tokenCount":10},{"modality":"AUDIO","tokenCount":12}],"toolUsePromptTokensDetails":[{"modality":"AUDIO","tokenCount":3}],"cacheTokensDetails":[{"modality":"AUDIO","tokenCount":2}],"candidatesTokensDetails":[{"tokenCount":4,"modality":"AUDIO"}]"#;
    for chunks in [[sound, sound, sound], [sound, "", sound], [sound, sound, ""], ["", "", sound]] {
        let chunks = chunks.map(chunk);
        let events: String = chunks.iter().map(|chunk| format!("data: {chunk}\n\n")).collect();
        let array = format!("[{}]", chunks.join(",\n"));
        let of = |format, body: &str| read(format, body.as_bytes()).usage.expect("counts");
        let found = of(Format::Json, &array);
        assert_eq!(found, of(Format::EventStream, &events), "{array}");
        assert_eq!((found.input_audio, found.cached_audio, found.output_audio), (15, 2, 4), "{array}");
    }
}

/// llama.cpp's own surface, and TGI's.
#[test]
fn servers_of_one_model_are_read() {
    let whole = r#"{"index":0,"content":"some words","tokens_predicted":5,"tokens_evaluated":9,"model":"m.gguf","stop":true,"stop_type":"limit"}"#;
    let answer = read(Format::Json, whole.as_bytes());
    assert_eq!(answer.usage.map(|u| (u.input, u.output)), Some((9, 5)));
    assert_eq!(answer.finish.as_deref(), Some("limit"));
    let chunk =
        r#"{"index":0,"content":"some words","tokens_predicted":2,"tokens_evaluated":9,"stop":false}"#;
    let stream = format!("data: {chunk}\n\ndata: {whole}\n\n");
    let answer = read(Format::EventStream, stream.as_bytes());
    assert_eq!((answer.usage.map(|u| (u.input, u.output)), answer.is_partial), (Some((9, 5)), false));
    let tgi = read(Format::Json, br#"[{"generated_text":"some ordinary words that it says"}]"#);
    assert_eq!((tgi.usage, tgi.output_estimated > 4), (None, true));
}

/// A document is packed in another as base64 has it, and once.
#[test]
fn what_is_packed_is_read_once_and_whole() {
    let tools = |packed: &str| {
        let mut reader = Reader::new(Format::Json);
        reader.push(
            format!(r#"{{"bytes":"{packed}","usage":{{"prompt_tokens":1,"completion_tokens":2}}}}"#)
                .as_bytes(),
        );
        let answer = reader.finish();
        assert_eq!(answer.usage.map(|usage| usage.output), Some(2), "what is around it is read");
        answer.tools
    };
    for blanks in 0..400 {
        let inner = format!(r#"{{"content":[{{"type":"tool_use",{}"name":"shell"}}]}}"#, " ".repeat(blanks));
        let packed = BASE64.encode(&inner);
        assert_eq!(tools(&packed), ["shell"], "{blanks}");
        assert!(tools(&BASE64.encode(format!(r#"{{"bytes":"{packed}"}}"#))).is_empty(), "twice");
        // Letters behind its end are none of it.
        assert!(tools(&format!("{packed}{packed}=")).is_empty(), "{blanks}");
        if packed.ends_with('=') {
            assert!(tools(&format!("{packed}ICAg")).is_empty(), "{blanks}");
            assert!(tools(packed.trim_end_matches('=')).is_empty(), "{blanks}");
        }
    }
}

#[test]
fn what_is_spoken_is_a_text_and_its_sound_is_none() {
    for (body, want) in [
        (
            r#"{"choices":[{"message":{"content":null,"audio":{"id":"a","data":"AAAA","transcript":"Hi"}}}]}"#,
            "Hi",
        ),
        (
            r#"{"choices":[{"delta":{"audio":{"transcript":"Hi"}}},{"delta":{"audio":{"data":"AAAA"}}}]}"#,
            "Hi",
        ),
        (
            r#"{"output":[{"type":"message","content":[{"type":"output_audio","data":"AAAA","transcript":"Hi"}]}]}"#,
            "Hi",
        ),
        (r#"{"type":"response.output_audio_transcript.done","transcript":"Hi"}"#, "Hi"),
        // Of no answer.
        (r#"{"audio":{"text":"Hi","id":"transcript"}}"#, ""),
        (r#"{"type":"speech.audio.delta","audio":"AAAA"}"#, ""),
        (r#"{"choices":[{"logprobs":{"transcript":"Hi"}}]}"#, ""),
    ] {
        let mut reader = Reader::new(Format::Json).keeping_texts();
        reader.push(body.as_bytes());
        let [said, asked] = reader.take_texts();
        assert_eq!((String::from_utf8(said).unwrap().as_str(), asked.len()), (want, 0), "{body}");
    }
    // A spoken answer that breaks off costs something.
    let mut reader = Reader::new(Format::EventStream);
    reader.push(b"data: {\"choices\":[{\"delta\":{\"audio\":{\"transcript\":\"one two three four\"}}}]}\n\n");
    assert!(reader.cut().output_estimated >= 4);
}

/// Sound of the Responses API is where its texts are, and no text: its tokens are told at the end. It is heard nevertheless, since a
/// client may take the event for another.
#[test]
fn sound_is_no_text_to_estimate() {
    let sound = "AAAA//8AAP7/AAD9/wAA/P8AAPv/".repeat(50);
    for (event, is_text) in [
        (format!(r#"{{"type":"response.audio.delta","delta":"{sound}"}}"#), false),
        (format!(r#"{{"type":"response.output_audio.delta","delta":"{sound}"}}"#), false),
        (format!(r#"{{"delta":"{sound}","type":"response.output_audio.delta"}}"#), false),
        (format!(r#"{{"type":"response.output_text.delta","delta":"{sound}"}}"#), true),
        (
            format!(
                r#"{{"type":"response.audio.delta","delta":"{sound}","type":"response.output_text.delta"}}"#
            ),
            true,
        ),
        (format!(r#"{{"type":"response.audio.transcript.delta","delta":"{sound}"}}"#), true),
        // Of no answer's own.
        (format!(r#"{{"choices":[{{"type":"x.audio.delta","delta":{{"content":"{sound}"}}}}]}}"#), true),
    ] {
        let mut reader = Reader::new(Format::EventStream).keeping_texts();
        reader.push(format!("data: {event}\n\n").as_bytes());
        assert!(!reader.take_texts()[0].is_empty(), "{event}");
        assert_eq!(reader.cut().output_estimated > 0, is_text, "{event}");
        // Cut within it.
        let mut reader = Reader::new(Format::EventStream);
        reader.push(format!("data: {}", event.trim_end_matches(['}', ']'])).as_bytes());
        assert_eq!(reader.cut().output_estimated > 0, is_text, "{event}");
    }
}

#[test]
fn texts_are_handed_out_as_they_come() {
    let mut reader = Reader::new(Format::EventStream).keeping_texts();
    let event = |text: &str| format!("data: {{\"choices\":[{{\"delta\":{text}}}]}}\n\n");
    let body = event("{\"content\":\"![a](https://e\"}")
        + &event("{\"tool_calls\":[{\"function\":{\"name\":\"f\",\"arguments\":\"{\\\"a\\\"\"}}]}")
        + &event("{\"content\":\"vil.test/)\"}")
        + &event("{\"tool_calls\":[{\"function\":{\"arguments\":\":1}\"}}]}")
        + "data: {\"choices\":[{\"delta\":{\"content\":\"cut";
    let mut lanes = [Vec::new(), Vec::new()];
    let mut ended = 0;
    for (at, byte) in body.as_bytes().chunks(1).enumerate() {
        ended = if reader.push(byte) > 0 { at + 1 } else { ended };
        for (lane, more) in lanes.iter_mut().zip(reader.take_texts()) {
            lane.extend(more);
        }
    }
    assert_eq!(
        lanes.map(|lane| String::from_utf8(lane).unwrap()),
        ["![a](https://evil.test/)cut", "{\"a\":1}"]
    );
    assert_eq!(&body[ended..], "data: {\"choices\":[{\"delta\":{\"content\":\"cut");
    assert_eq!(reader.progress().tools, ["f"]);
    for ends in ["\n\n", "\r\n\r\n", "\r\r"] {
        let (first, rest) = (format!("data: {{}}{ends}"), "data: {\"a\"");
        let mut reader = Reader::new(Format::EventStream);
        assert_eq!(reader.push(format!("{first}{rest}").as_bytes()), first.len(), "{ends:?}");
    }
    let mut reader = Reader::new(Format::Json);
    reader.push(br#"{"choices":[{"message":{"tool_calls":[{"function":{"name":"f"}}]}}],"usage":{"prompt_tokens":1,"completion_tokens":2}}"#);
    assert!(reader.progress().tools.is_empty(), "it may not be whole");
    reader.close();
    assert_eq!((reader.progress().tools, reader.progress().output), (&["f".to_owned()][..], 2));
    assert_eq!(reader.finish().usage.map(|usage| usage.output), Some(2), "once");
    let mut reader = Reader::new(Format::EventStream);
    assert_eq!(reader.push(b"data: {}\r\n\r"), 11);
    assert_eq!(reader.push(b"\ndata"), 1, "the rest of a line end");
    assert_eq!(Reader::new(Format::EventStream).push(b"data: {}\r\ndata: 1"), 0);
    assert_eq!(Reader::new(Format::Lines).push(b"{}\n{}\n{"), 6);
}

#[test]
fn memory_is_constant() {
    let mut reader = Reader::new(Format::Json);
    reader.push(b"{\"model\":\"");
    for _ in 0..10_000 {
        reader.push(&[b'a'; 100]);
    }
    reader.push(b"\",\"content\":[");
    for n in 0..2 * ASKED_MAX {
        reader.push(format!("{{\"type\":\"tool_use\",\"name\":\"t{n}\"}},").as_bytes());
    }
    reader.push(b"{}],\"usage\":{\"prompt_tokens\":1,\"completion_tokens\":2}}");
    let answer = reader.finish();
    assert_eq!((answer.model, answer.tools.len(), answer.has_more_tools), (None, ASKED_MAX, true));
    assert_eq!(answer.usage.map(|usage| (usage.input, usage.output)), Some((1, 2)));
}

#[test]
fn frames_out_of_step_are_not_read() {
    let mut body = vec![0, 0, 0, 32, 0, 0, 0, 0, 1, 2, 3, 4];
    body.extend(b"{\"usage\":{\"inputTokens\":1,\"outputTokens\":1}}");
    assert_eq!(read(Format::Amazon, &body), Answer::default());
    assert_eq!(read(Format::Amazon, &[0xff; 64]), Answer::default());
}

#[test]
fn formats_by_content_type() {
    for (text, want) in [
        ("application/json", Some(Format::Json)),
        ("Application/JSON; charset=utf-8", Some(Format::Json)),
        ("text/event-stream;charset=utf-8", Some(Format::EventStream)),
        ("application/x-ndjson", Some(Format::Lines)),
        ("application/vnd.amazon.eventstream", Some(Format::Amazon)),
        ("text/html", None),
        ("application/jsonp", None),
        ("", None),
    ] {
        assert_eq!(Format::of(text), want, "{text}");
    }
}

/// Answers beside one another come in turns: each is a text of its own, wherever it says which it is.
#[test]
fn answers_beside_one_another_are_told_apart() {
    let said = |stream: &str, step: usize| {
        let mut reader = Reader::new(Format::EventStream).keeping_texts();
        let mut all: Vec<String> = Vec::new();
        for piece in stream.as_bytes().chunks(step) {
            reader.push(piece);
            let first = std::iter::once((0, reader.take_texts()));
            for (n, [text, _]) in first.chain(reader.take_more_texts()) {
                all.resize(all.len().max(n + 1), String::new());
                all[n].push_str(&String::from_utf8(text).expect("text"));
            }
        }
        all
    };
    let events = |all: &[String]| all.iter().map(|one| format!("data: {one}\n\n")).collect::<String>();
    let chat =
        |n: u32, text: &str| format!(r#"{{"choices":[{{"index":{n},"delta":{{"content":"{text}"}}}}]}}"#);
    let late = |n: u32, text: &str| {
        format!(
            r#"{{"candidates":[{{"content":{{"parts":[{{"text":"{text}"}}],"role":"model"}},"index":{n}}}]}}"#
        )
    };
    let both =
        |n: u32, m: u32| format!(r#"{{"choices":[{{"index":{n},"text":"a"}},{{"text":"b","index":{m}}}]}}"#);
    for is_late in [false, true] {
        let part = |n: u32, text: &str| if is_late { late(n, text) } else { chat(n, text) };
        let stream =
            events(&[part(0, "one "), part(1, "uno "), part(0, "two"), part(1, "due"), part(0, ".")]);
        assert_eq!(said(&stream, usize::MAX), ["one two.", "uno due"]);
    }
    for step in [1, 2, 7, 50] {
        let stream = events(&[chat(0, "one "), chat(1, "uno "), chat(0, "two"), chat(9, "x"), chat(7, "y")]);
        assert_eq!(said(&stream, step), ["one two", "uno ", "", "", "", "", "", "xy"], "{step}");
    }
    assert_eq!(said(&events(&[both(0, 1), both(1, 0)]), usize::MAX), ["ab", "ba"]);
    // The first word of which it is counts.
    let twice = r#"{"choices":[{"text":"a","index":1,"index":0,"text":"b"}]}"#.to_owned();
    assert_eq!(said(&events(&[twice]), usize::MAX), ["", "ab"]);
    // Without a number, by their places.
    let bare = r#"{"choices":[{"text":"a"},{"text":"b"}],"index":1}"#.to_owned();
    assert_eq!(said(&events(&[bare.clone(), bare]), usize::MAX), ["aa", "bb"]);
}
