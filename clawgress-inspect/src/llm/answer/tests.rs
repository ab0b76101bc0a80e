//! What is not certain is unknown; and what little is kept.

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

#[test]
fn memory_is_constant() {
    let mut reader = Reader::new(Format::Json);
    reader.push(b"{\"model\":\"");
    (0..10_000).for_each(|_| reader.push(&[b'a'; 100]));
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
