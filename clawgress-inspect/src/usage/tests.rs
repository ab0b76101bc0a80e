//! Tables of responses, and independence of segmentation.

use proptest::prelude::*;

use super::*;

fn read(format: Format, body: &str) -> Option<Usage> {
    let mut extractor = Extractor::new(format);
    extractor.push(body.as_bytes());
    extractor.finish()
}

fn usage(model: &str, input: u64, output: u64) -> Option<Usage> {
    Some(Usage { model: Some(model.to_owned()), input, output })
}

const CHAT: &str = r#"{"id":"c","object":"chat.completion","model":"gpt-5-mini","choices":[{"index":0,
  "message":{"role":"assistant","model":"liar","content":"{\"usage\":{\"prompt_tokens\":9}}","usage":{"prompt_tokens":7}}}],
  "usage":{"prompt_tokens":12,"completion_tokens":34,"total_tokens":46,
  "prompt_tokens_details":{"cached_tokens":1,"prompt_tokens":99},"x":[1,2.5e3,-0.1,true,null]}}
"#;

const STREAM: &str = "data: {\"model\":\"gpt-5\",\"choices\":[{\"delta\":{\"content\":\"Hi\"}}],\"usage\":null}\n\n\
    : comment\n\n\
    event: x\r\ndata: {\"model\":\"gpt-5\",\r\ndata: \"choices\":[],\"usage\":{\"prompt_tokens\":5,\"completion_tokens\":8}}\r\n\r\n\
    data: [DONE]\n\n";

#[test]
fn documents_of_each_shape() {
    assert_eq!(read(Format::Json, CHAT), usage("gpt-5-mini", 12, 34));
    assert_eq!(
        read(Format::Json, r#"{"model":"claude","usage":{"input_tokens":1,"output_tokens":2}}"#),
        usage("claude", 1, 2)
    );
    assert_eq!(
        read(Format::Json, r#"{"usage":{"prompt_tokens":1,"completion_tokens":2}}"#),
        Some(Usage { model: None, input: 1, output: 2 })
    );
}

#[test]
fn streams_of_each_shape() {
    assert_eq!(read(Format::EventStream, STREAM), usage("gpt-5", 5, 8));
    let responses = "event: response.completed\ndata: {\"type\":\"response.completed\",\"response\":{\"model\":\"o5\",\"usage\":{\"input_tokens\":3,\"output_tokens\":4}}}\n\n";
    assert_eq!(read(Format::EventStream, responses), usage("o5", 3, 4));
    let anthropic = "data:{\"type\":\"message_start\",\"message\":{\"model\":\"claude\",\"usage\":{\"input_tokens\":25,\"output_tokens\":1}}}\n\n\
        data: {\"type\":\"message_delta\",\"usage\":{\"output_tokens\":15}}\n\n";
    assert_eq!(read(Format::EventStream, anthropic), usage("claude", 25, 15));
}

#[test]
fn what_is_not_certain_is_unknown() {
    for body in [
        "",
        "{}",
        "[]",
        "null",
        r#"[{"usage":{"prompt_tokens":1,"completion_tokens":2}}]"#,
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
    ] {
        assert_eq!(read(Format::Json, body), None, "{body}");
    }
    let deep = format!(
        "{{\"a\":{}{},\"usage\":{{\"prompt_tokens\":1,\"completion_tokens\":2}}}}",
        "[".repeat(64),
        "]".repeat(64)
    );
    assert_eq!(read(Format::Json, &deep), None, "deeper than is followed");
    let unfinished = "data: {\"usage\":{\"prompt_tokens\":1,\"completion_tokens\":2}}\n";
    assert_eq!(read(Format::EventStream, unfinished), None, "an event without its empty line");
}

#[test]
fn memory_is_constant() {
    let mut extractor = Extractor::new(Format::Json);
    extractor.push(b"{\"model\":\"");
    for _ in 0..10_000 {
        extractor.push(&[b'a'; 100]);
    }
    extractor.push(b"\",\"usage\":{\"prompt_tokens\":1,\"completion_tokens\":2}}");
    assert_eq!(extractor.finish(), Some(Usage { model: None, input: 1, output: 2 }));
}

#[test]
fn formats_by_content_type() {
    for (text, want) in [
        ("application/json", Some(Format::Json)),
        ("Application/JSON; charset=utf-8", Some(Format::Json)),
        ("text/event-stream;charset=utf-8", Some(Format::EventStream)),
        ("text/html", None),
        ("application/jsonp", None),
        ("", None),
    ] {
        assert_eq!(Format::of(text), want, "{text}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn segmentation_changes_nothing(cuts in proptest::collection::vec(1usize..50, 1..30)) {
        for (format, body) in [(Format::Json, CHAT), (Format::EventStream, STREAM)] {
            let mut extractor = Extractor::new(format);
            let (mut rest, mut cuts) = (body.as_bytes(), cuts.iter().cycle());
            while !rest.is_empty() {
                let (now, later) = rest.split_at((*cuts.next().expect("cycle")).min(rest.len()));
                extractor.push(now);
                rest = later;
            }
            prop_assert_eq!(extractor.finish(), read(format, body));
        }
    }

    #[test]
    fn any_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        for format in [Format::Json, Format::EventStream] {
            let mut extractor = Extractor::new(format);
            extractor.push(&bytes);
            let _ = extractor.finish();
        }
    }
}
