//! Conversations by the Responses API: lanes, what goes on from what, and messages that nobody should send.

use super::*;
use crate::llm::answer::{CallsError, Following};
use crate::llm::realtime::{Dialect, RESPONSES_MAX, sent as says};

fn heard() -> Heard {
    Heard::new(Dialect::Responses, 1 << 20, Following::Held)
}

fn hear(heard: &mut Heard, messages: &[&str]) {
    messages.iter().for_each(|message| heard.message(message.as_bytes()).expect(message));
}

#[test]
fn conversations_are_known_by_their_path() {
    for path in ["/v1/responses", "/openai/v1/Responses/", "/v1%2Fresponses", "/v1/responses;v=1"] {
        assert_eq!(Dialect::of(path), Some(Dialect::Responses), "{path}");
    }
    for path in ["/v1/responses/compact", "/v1/live/sessions", "/v1beta/interactions/live", "/v1/responses.x"]
    {
        assert_eq!(Dialect::of(path), None, "{path}");
    }
}

#[test]
fn messages_of_clients_are_requests() {
    let on = |text: &str| Ok(Sent::GoesOn(text.to_owned()));
    for (message, want) in [
        (
            r#"{"type":"response.create","stream_id":"a","model":"gpt-5","input":"hi","temperature":1.0}"#,
            Ok(Sent::Asks(r#"{"model":"gpt-5","input":"hi","temperature":1.0}"#.to_owned())),
        ),
        (r#"{"type":"response.create"}"#, Ok(Sent::Asks("{}".to_owned()))),
        (
            r#"{"type":"response.steer","previous_response_id":"r","input":"and now?"}"#,
            on(r#"{"previous_response_id":"r","input":"and now?"}"#),
        ),
        // What is not known may show something, and ask.
        (r#"{"type":"response.append","input":[]}"#, on(r#"{"input":[]}"#)),
        (r#"{"type":"response.cancel","response_id":"r","event_id":"e"}"#, Ok(Sent::Other)),
        (r#"{"type":"response.cancel","response_id":["r"]}"#, on(r#"{"response_id":["r"]}"#)),
        // As realtime conversations have it: who looks there is not known.
        (r#"{"type":"response.create","response":{"model":"gpt-5"}}"#, Err(ValueError::Malformed)),
        (r#"{"type":"session.update","session":{"tools":[]}}"#, Err(ValueError::Malformed)),
        (r#"{"model":"gpt-5","input":"hi"}"#, Err(ValueError::Malformed)),
        (r#"[{"type":"response.create"}]"#, Err(ValueError::Malformed)),
    ] {
        assert_eq!(says(Dialect::Responses, message.as_bytes()), want, "{message}");
    }
    let twice = br#"{"type":"response.create","model":"a","model":"b"}"#;
    assert!(says(Dialect::Responses, twice).is_err(), "one name twice");
}

const CREATED: &str = r#"{"type":"response.created","response":{"id":"r1","model":"m","usage":null}}"#;
const BEGINS: &str = r#"{"type":"response.output_item.added","output_index":0,"item":{"type":"function_call","name":"shell","arguments":""}}"#;
const GOES_ON: &str =
    r#"{"type":"response.function_call_arguments.delta","output_index":0,"delta":"{\"c\":1}"}"#;

#[test]
fn nothing_of_a_call_goes_on_for_another_that_begins() {
    let mut heard = heard();
    hear(&mut heard, &[CREATED, BEGINS, GOES_ON]);
    assert!(heard.waits());
    let other = CREATED.replace("r1", "r2");
    assert_eq!(heard.message(other.as_bytes()), Err(Unheard::Between));
    // In another lane, nor behind one.
    let other = other.replacen('{', r#"{"stream_id":"b","#, 1);
    hear(&mut heard, &[&other, CREATED]);
    assert!(heard.waits());
    let lane = other.replace(r#""b""#, "7");
    assert_eq!(heard.message(lane.as_bytes()), Err(Unheard::Message(ValueError::Malformed)));
}

#[test]
fn a_call_is_judged_by_what_came_when_its_stream_ends() {
    let error = r#"{"type":"error","sequence_number":3,"error":{"type":"server_error","message":"no"}}"#;
    let mut heard = heard();
    hear(&mut heard, &[CREATED, BEGINS, GOES_ON, error]);
    assert!(!heard.waits());
    assert_eq!(heard.take_calls().iter().map(|call| &*call.arguments).collect::<Vec<_>>(), [r#"{"c":1}"#]);
    let spent = heard.take_spent();
    assert!(spent.len() == 1 && spent[0].is_estimated && spent[0].model.as_deref() == Some("m"), "{spent:?}");
    // Of one that broke off in the middle, nobody knows.
    hear(&mut heard, &[CREATED, BEGINS, &GOES_ON.replace("1}", "")]);
    assert_eq!(heard.message(error.as_bytes()), Err(Unheard::Calls(CallsError::Arguments)));
}

#[test]
fn what_is_said_of_a_request_ends_no_response() {
    let mut heard = heard();
    let refused = r#"{"type":"error","status":400,"error":{"type":"invalid_request_error","message":"no"}}"#;
    let failed =
        r#"{"type":"response.steer.failed","sequence_number":9,"error":{},"steer":{"input":"Say it."}}"#;
    hear(&mut heard, &[refused, failed]);
    assert!(heard.under_way().is_none(), "none has begun");
    assert_eq!(heard.take_refused(), [(String::new(), false)]);
    let created = CREATED.replacen('{', r#"{"sequence_number":0,"#, 1);
    hear(&mut heard, &[&created, BEGINS, refused, failed]);
    assert!(heard.waits());
    assert_eq!(heard.take_refused(), [(String::new(), true)]);
    assert!(heard.under_way().is_some_and(|rest| rest.is_estimated), "what has begun may be billed");
    assert!(heard.take_spent().is_empty());
    // A call that comes in what nobody knows is one all the same.
    let odd = r#"{"type":"news","output":[{"type":"function_call","name":"wipe","arguments":"{}"}]}"#;
    hear(&mut heard, &[odd]);
    assert_eq!(heard.take_calls().iter().map(|call| &*call.name).collect::<Vec<_>>(), ["wipe"]);
}

/// Of a server that does not number its events.
#[test]
fn an_error_ends_a_response_that_is_not_numbered_either() {
    let mut heard = heard();
    let error = r#"{"type":"error","error":{"type":"server_error","message":"no"}}"#;
    hear(&mut heard, &[CREATED, BEGINS, GOES_ON, error]);
    assert!(!heard.waits(), "it is over");
    assert_eq!(heard.take_calls().iter().map(|call| &*call.arguments).collect::<Vec<_>>(), [r#"{"c":1}"#]);
    assert_eq!(heard.take_spent().len(), 1);
    hear(&mut heard, &[&CREATED.replace("r1", "r2"), BEGINS]);
    assert!(heard.waits() && heard.take_refused().is_empty());
    // Nothing goes on from what is over.
    hear(&mut heard, &[GOES_ON, error]);
    let _ = heard.take_calls();
    assert!(heard.message(GOES_ON.as_bytes()).is_err() || heard.waits(), "of a call that nobody began");
}

#[test]
fn what_is_under_way_is_left_lane_by_lane() {
    let mut heard = heard();
    let (other, before) = (CREATED.replacen('{', r#"{"stream_id":"b","#, 1), heard.memory_bytes());
    let long = "r".repeat(4096);
    hear(&mut heard, &[CREATED, &other.replace("r1", &long).replace(r#""m""#, r#""n""#)]);
    assert!(heard.memory_bytes() - before > long.len(), "what a response is called is kept");
    let left = heard.take_left();
    let left: Vec<_> =
        left.iter().map(|left| (&*left.lane, left.model.as_deref(), left.is_estimated)).collect();
    assert_eq!(left, [("", Some("m"), true), ("b", Some("n"), true)]);
    assert!(heard.take_left().is_empty());
}

#[test]
fn one_response_follows_the_other_in_a_lane() {
    let mut heard = heard();
    let done = r#"{"type":"response.done","response":{"id":"r2","model":"m","usage":{"input_tokens":9,"output_tokens":7}}}"#;
    let text = r#"{"type":"response.output_text.delta","output_index":0,"content_index":0,"delta":"Nobody counts this"}"#;
    hear(&mut heard, &[CREATED, text, &CREATED.replace("r1", "r2"), done]);
    let spent = heard.take_spent();
    assert_eq!(spent.iter().map(|spent| spent.is_estimated).collect::<Vec<_>>(), [true, false], "{spent:?}");
    assert!(spent[0].usage.output >= 2 && spent[1].usage.input == 9, "{spent:?}");
    assert!(heard.under_way().is_none());
}

#[test]
fn lanes_are_bounded() {
    let mut heard = heard();
    for n in 0..RESPONSES_MAX {
        hear(&mut heard, &[&CREATED.replacen('{', &format!(r#"{{"stream_id":"{n}","#), 1)]);
    }
    assert_eq!(heard.message(CREATED.as_bytes()), Err(Unheard::TooMany));
}
