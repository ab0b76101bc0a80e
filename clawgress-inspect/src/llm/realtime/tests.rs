//! Conversations as the API's reference has them, and such as nobody should send.

use super::*;
use crate::web_socket::{Message, Reader as Frames, Sender};

/// What a server says to a question whose answer takes a tool: text of another response in between.
const SAID: [&str; 14] = [
    r#"{"type":"session.created","event_id":"e0","session":{"id":"s","model":"gpt-realtime","tools":[{"type":"function","name":"shell"}]}}"#,
    r#"{"type":"response.created","response":{"id":"r1","status":"in_progress","output":[],"usage":null}}"#,
    r#"{"type":"response.output_item.added","response_id":"r1","output_index":0,"item":{"id":"i1","type":"function_call","status":"in_progress","name":"get_weather","call_id":"c1","arguments":""}}"#,
    r#"{"type":"conversation.item.added","item":{"id":"i1","type":"function_call","name":"get_weather","call_id":"c1","arguments":""}}"#,
    r#"{"type":"response.function_call_arguments.delta","response_id":"r1","item_id":"i1","output_index":0,"call_id":"c1","delta":"{\"city\":"}"#,
    r#"{"type":"response.created","response":{"id":"r2","status":"in_progress","output":[]}}"#,
    r#"{"type":"response.output_item.added","response_id":"r2","output_index":0,"item":{"id":"i2","type":"message","role":"assistant","content":[]}}"#,
    r#"{"type":"response.output_text.delta","response_id":"r2","output_index":0,"content_index":0,"delta":"Hello there"}"#,
    r#"{"type":"response.function_call_arguments.delta","response_id":"r1","item_id":"i1","output_index":0,"call_id":"c1","delta":"\"Oslo\"}"}"#,
    r#"{"type":"response.function_call_arguments.done","response_id":"r1","item_id":"i1","output_index":0,"call_id":"c1","arguments":"{\"city\":\"Oslo\"}"}"#,
    r#"{"type":"response.output_item.done","response_id":"r1","output_index":0,"item":{"id":"i1","type":"function_call","status":"completed","name":"get_weather","call_id":"c1","arguments":"{\"city\":\"Oslo\"}"}}"#,
    r#"{"type":"response.done","response":{"id":"r1","status":"completed","output":[{"id":"i1","type":"function_call","status":"completed","name":"get_weather","call_id":"c1","arguments":"{\"city\":\"Oslo\"}"}],"usage":{"total_tokens":150,"input_tokens":130,"output_tokens":20,"input_token_details":{"text_tokens":130,"audio_tokens":0,"cached_tokens":64},"output_token_details":{"text_tokens":20,"audio_tokens":0}}}}"#,
    r#"{"type":"response.output_audio.delta","response_id":"r2","output_index":1,"content_index":0,"delta":"AAAA//8AAP7/"}"#,
    r#"{"type":"response.done","response":{"id":"r2","status":"completed","output":[],"usage":{"total_tokens":60,"input_tokens":40,"output_tokens":20,"input_token_details":{"text_tokens":40,"audio_tokens":0,"cached_tokens":0},"output_token_details":{"text_tokens":5,"audio_tokens":15}}}}"#,
];

fn heard(following: Following) -> Heard {
    Heard::new(Dialect::Events, 1 << 20, following)
}

#[test]
fn a_conversation_is_read_response_by_response() {
    let mut heard = heard(Following::Held);
    let (mut waited, mut calls, mut texts) = (Vec::new(), Vec::new(), Vec::new());
    for (n, message) in SAID.iter().enumerate() {
        heard.message(message.as_bytes()).expect(message);
        if heard.waits() {
            waited.push(n);
        }
        calls.extend(heard.take_calls());
        texts.extend(heard.take_texts()[0].clone());
    }
    assert_eq!(waited, (2..10).collect::<Vec<_>>(), "from its begin on, also of what is between");
    assert!(!calls.is_empty() && calls.iter().all(|call| *call == calls[0]), "{calls:?}");
    assert_eq!((calls[0].name.as_str(), calls[0].values.join("")), ("get_weather", "/city=Oslo".to_owned()));
    assert_eq!(String::from_utf8(texts).unwrap(), "Hello there");
    assert_eq!(
        heard.tools(),
        (&["get_weather".to_owned()][..], false),
        "what a session offers is asked of nobody"
    );
    assert_eq!(heard.tokens(), (170, 40));
    let spent = heard.take_spent();
    let usage = |n: usize| (spent[n].usage.input, spent[n].usage.cached, spent[n].usage.output);
    assert_eq!((usage(0), usage(1)), ((130, 64, 20), (40, 0, 20)));
    assert_eq!((spent[0].usage.output_audio, spent[1].usage.output_audio), (0, 15));
    assert!(spent.iter().all(|spent| !spent.has_sound), "what sound took is told");
    assert!(spent.iter().all(|spent| !spent.is_estimated) && heard.under_way().is_none());
}

#[test]
fn what_breaks_off_is_estimated() {
    let mut heard = heard(Following::Names);
    SAID.iter().take(8).for_each(|message| heard.message(message.as_bytes()).expect(message));
    let spent = heard.under_way().expect("some text");
    assert!(spent.is_estimated && spent.usage.output >= 2, "{spent:?}");
    let done = r#"{"type":"response.done","response":{"id":"r2","status":"cancelled","output":[]}}"#;
    heard.message(done.as_bytes()).expect(done);
    let spent = heard.take_spent();
    assert!(spent.len() == 1 && spent[0].is_estimated && spent[0].usage.output >= 2, "{spent:?}");
}

#[test]
fn what_is_refused_and_what_is_under_way_is_told() {
    let mut heard = heard(Following::Names);
    let error = r#"{"type":"error","event_id":"e","error":{"type":"invalid_request_error","code":"conversation_already_has_active_response","message":"no","event_id":null}}"#;
    heard.message(error.as_bytes()).expect(error);
    assert_eq!(heard.take_refused(), [(String::new(), false)]);
    SAID.iter().take(8).for_each(|message| heard.message(message.as_bytes()).expect(message));
    heard.message(error.as_bytes()).expect(error);
    assert_eq!(
        heard.take_refused(),
        [(String::new(), true)],
        "behind what is under way, which it does not end"
    );
    // What is wrong with another message refuses none, whatever that is called.
    for (code, param, refuses) in [
        ("invalid_value", "type", false),
        ("invalid_value", "session.voice", false),
        ("missing_required_parameter", "response_id", false),
        ("response_cancel_not_active", "", false),
        ("invalid_value", "response.output_modalities", true),
        ("unknown_parameter", "response", true),
    ] {
        let error = format!(
            r#"{{"type":"error","event_id":"e","error":{{"type":"invalid_request_error","code":"{code}","message":"response.create","param":"{param}","event_id":"mine"}}}}"#
        );
        heard.message(error.as_bytes()).expect(&error);
        assert_eq!(!heard.take_refused().is_empty(), refuses, "{error}");
    }
    let left = heard.take_left();
    assert!(left.len() == 2 && left.iter().all(|left| left.is_estimated), "each by itself: {left:?}");
    assert!(left[1].usage.output >= 2 && heard.take_left().is_empty(), "{left:?}");
}

#[test]
fn sound_that_nobody_counted_is_told() {
    let mut heard = heard(Following::Names);
    let sound = r#"{"type":"response.output_audio.delta","response_id":"r3","delta":"AAAA"}"#;
    let done = r#"{"type":"response.done","response":{"id":"r3","output":[],"usage":{"input_tokens":9,"output_tokens":7,"input_token_details":{"audio_tokens":8,"cached_tokens":6,"cached_tokens_details":{"text_tokens":1,"audio_tokens":5}}}}}"#;
    for message in [sound, done, done] {
        heard.message(message.as_bytes()).expect(message);
    }
    let spent = heard.take_spent();
    let of = |n: usize| (spent[n].usage.input_audio, spent[n].usage.cached_audio, spent[n].has_sound);
    assert_eq!((of(0), of(1)), ((8, 5, true), (8, 5, false)), "the next has none");
}

#[test]
fn sound_is_of_its_own_response() {
    let event = |kind: &str, id: &str, more: &str| {
        format!(r#"{{"type":"response.{kind}","response_id":"{id}"{more}}}"#)
    };
    let done = |id: &str| {
        format!(
            r#"{{"type":"response.done","response":{{"id":"{id}","output":[],"usage":{{"input_tokens":9,"output_tokens":7}}}}}}"#
        )
    };
    let begun = |id: &str| format!(r#"{{"type":"response.created","response":{{"id":"{id}"}}}}"#);
    let play = |messages: &[String]| {
        let mut heard = heard(Following::Names);
        messages.iter().for_each(|message| heard.message(message.as_bytes()).expect(message));
        let rest = heard.under_way().is_some_and(|rest| rest.has_sound);
        (heard.take_spent().iter().map(|spent| spent.has_sound).collect::<Vec<_>>(), rest)
    };
    let (silent, spoken) = (begun("r1"), begun("r2"));
    let sound = event("output_audio.delta", "r2", r#","delta":"AAAA""#);
    let text = event("output_text.delta", "r1", r#","delta":"a""#);
    // The one that ends first has none.
    let order = [&silent, &spoken, &sound, &text, &done("r1"), &done("r2")].map(Clone::clone);
    assert_eq!(play(&order), (vec![false, true], false));
    let order = [&silent, &spoken, &sound, &done("r2"), &done("r1")].map(Clone::clone);
    assert_eq!(play(&order), (vec![true, false], false));
    // Of one that breaks off, alone.
    assert_eq!(play(&[silent.clone(), spoken.clone(), sound.clone(), done("r1")]), (vec![false], true));
    // Where nobody says of which, of all.
    let sound = r#"{"type":"response.audio.delta","delta":"AAAA"}"#.to_owned();
    assert_eq!(play(&[silent, spoken, sound.clone(), done("r1"), done("r2")]), (vec![true, true], false));
    assert_eq!(play(&[sound]), (vec![], true));
}

#[test]
fn an_item_that_is_said_again_is_asked_for() {
    let mut heard = heard(Following::Held);
    let echo = r#"{"type":"conversation.item.done","item":{"type":"function_call","name":"shell","arguments":"{\"c\":\"ls\"}"}}"#;
    heard.message(echo.as_bytes()).expect(echo);
    assert_eq!(heard.take_calls()[0].name, "shell");
    assert!(!heard.waits());
}

#[test]
fn messages_of_clients_are_read_as_requests() {
    for (message, want) in [
        (r#"{"type":"session.update","session":{"type":"realtime","instructions":"Be brief","max_output_tokens":"inf","tools":[{"type":"function","name":"shell"}]}}"#,
         Sent::Shows(r#"{"type":"realtime","instructions":"Be brief","tools":[{"type":"function","name":"shell"}]}"#.to_owned())),
        (r#"{"type":"session.update","session":{"max_response_output_tokens":100}}"#,
         Sent::Shows(r#"{"max_output_tokens":100}"#.to_owned())),
        (r#"{"type":"response.create"}"#, Sent::Asks("{}".to_owned())),
        (r#"{"type":"conversation.item.create","item":{"type":"message","role":"user","content":[{"type":"input_text","text":"hi"}]}}"#,
         Sent::Shows(r#"{"input":[{"type":"message","role":"user","content":[{"type":"input_text","text":"hi"}]}]}"#.to_owned())),
        (r#"{"type":"input_audio_buffer.append","audio":"AAAA"}"#, Sent::Other),
    ] {
        assert_eq!(sent(Dialect::Events, message.as_bytes()), Ok(want), "{message}");
    }
}

#[test]
fn conversations_are_known_by_their_paths() {
    let live = "/ws/google.ai.generativelanguage.v1beta.GenerativeService.BidiGenerateContent";
    for (path, dialect) in [
        ("/v1/realtime", Some(Dialect::Events)),
        ("/openai/realtime/", Some(Dialect::Events)),
        (live, Some(Dialect::Live)),
        (&format!("{live}Constrained"), Some(Dialect::Live)),
        ("/ws/google.cloud.aiplatform.v1.LlmBidiService/BidiGenerateContent", Some(Dialect::Live)),
        ("/ws/google.cloud.aiplatform.v1.LlmBidiService/%42idiGenerateContent;a=1", Some(Dialect::Live)),
        ("/v1/responses/r", None),
        ("/ws/a.BidiGenerateMusic", None),
        ("/realtimes", None),
        ("/", None),
    ] {
        assert_eq!(Dialect::of(path), dialect, "{path}");
    }
}

#[test]
fn what_two_could_read_in_two_ways_is_an_error() {
    let deep = format!(r#"{{"type":"response.done","x":{}{}}}"#, "[".repeat(70), "]".repeat(70));
    for message in
        ["", "[]", "{}", "{\"type\":1}", r#"{"type":"session.update","type":"x"}"#, deep.as_str(), "\u{0}"]
    {
        assert!(sent(Dialect::Events, message.as_bytes()).is_err(), "{message}");
        assert!(heard(Following::Held).message(message.as_bytes()).is_err(), "{message}");
    }
    let mut many = heard(Following::Names);
    let begin = |n: usize| format!(r#"{{"type":"response.created","response":{{"id":"r{n}"}}}}"#);
    assert!((0..RESPONSES_MAX).all(|n| many.message(begin(n).as_bytes()).is_ok()));
    assert_eq!(many.message(begin(RESPONSES_MAX).as_bytes()), Err(Unheard::TooMany));
    let mut large = Heard::new(Dialect::Events, 400, Following::Held);
    let added = SAID[2].as_bytes();
    let delta = r#"{"type":"response.function_call_arguments.delta","response_id":"r1","output_index":0,"delta":"xxxxxxxxxxxxxxxxxxxx"}"#;
    large.message(added).expect("begun");
    assert!((0..40).any(|_| large.message(delta.as_bytes()).is_err()), "it holds no more than it may");
    let mut broken = heard(Following::Held);
    broken.message(added).expect("begun");
    broken.message(delta.as_bytes()).expect("a part");
    let done = r#"{"type":"response.done","response":{"id":"r1","status":"incomplete","output":[]}}"#;
    assert_eq!(broken.message(done.as_bytes()), Err(Unheard::Calls(CallsError::Arguments)));
}

/// However the bytes come, and into whatever frames its server cuts them, the messages are the same, and so is what they come to.
#[test]
fn frames_and_segments_make_no_difference() {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut draw = |most: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(state >> 33).unwrap() % most + 1
    };
    for _ in 0..50 {
        let mut wire = Vec::new();
        for message in SAID {
            let (mut rest, mut first) = (message.as_bytes(), 0x01);
            while !rest.is_empty() {
                let (part, left) = rest.split_at(draw(60).min(rest.len()));
                let fin = if left.is_empty() { 0x80 } else { 0 };
                wire.extend([first | fin, u8::try_from(part.len()).unwrap()]);
                wire.extend(part);
                (rest, first) = (left, 0);
            }
        }
        let (mut frames, mut heard) = (Frames::new(Sender::Server, 1 << 20), heard(Following::Held));
        let mut rest = &wire[..];
        while !rest.is_empty() {
            let now = &rest[..draw(40).min(rest.len())];
            let (taken, message) = frames.read(now).expect("frames");
            rest = &rest[taken..];
            if let Some(Message::Text(text)) = message {
                heard.message(&text).expect("a message");
            }
        }
        assert_eq!((heard.tokens(), heard.take_calls()[0].name.as_str()), ((170, 40), "get_weather"));
    }
}
