//! Conversations as the reference of the Live API has them.

use super::super::{Dialect, sent as sent_in};
use super::*;
use crate::llm::answer::Following;

/// A turn that calls a tool, one that says something, and one that breaks off.
const SAID: [&str; 9] = [
    r#"{"setupComplete":{"sessionId":"s"}}"#,
    r#"{"toolCall":{"functionCalls":[{"id":"c1","name":"get_weather","args":{"city":"Oslo"}},{"id":"c2","name":"shell","args":{}}]}}"#,
    r#"{"serverContent":{"turnComplete":true},"usageMetadata":{"promptTokenCount":130,"cachedContentTokenCount":64,"responseTokenCount":20,"totalTokenCount":150,"promptTokensDetails":[{"modality":"TEXT","tokenCount":130}]}}"#,
    r#"{"serverContent":{"modelTurn":{"parts":[{"text":"Hello "},{"inlineData":{"mimeType":"audio/pcm;rate=24000","data":"AAAA//8AAP7/"}}]}}}"#,
    r#"{"serverContent":{"outputTranscription":{"text":"there"},"inputTranscription":{"text":"What the user says"}}}"#,
    r#"{"serverContent":{"generationComplete":true}}"#,
    r#"{"serverContent":{"turnComplete":true}}"#,
    r#"{"usageMetadata":{"promptTokenCount":40,"responseTokenCount":20,"thoughtsTokenCount":5,"totalTokenCount":65,"responseTokensDetails":[{"modality":"AUDIO","tokenCount":20}]}}"#,
    r#"{"serverContent":{"modelTurn":{"parts":[{"text":"And then some more of it"}]}}}"#,
];

fn heard() -> Heard {
    Heard::new(Dialect::Live, 1 << 20, Following::Held)
}

fn sent(text: &str) -> Result<Sent, ValueError> {
    sent_in(Dialect::Live, text.as_bytes())
}

#[test]
fn a_conversation_is_read_turn_by_turn() {
    let mut heard = heard();
    let (mut calls, mut texts) = (Vec::new(), Vec::new());
    for message in SAID {
        heard.message(message.as_bytes()).expect(message);
        assert!(!heard.waits(), "calls come whole: {message}");
        calls.extend(heard.take_calls());
        texts.extend(heard.take_texts()[0].clone());
    }
    let named: Vec<_> = calls.iter().map(|call| (&*call.name, call.values.join(","))).collect();
    assert_eq!(named, [("get_weather", "/city=Oslo".to_owned()), ("shell", String::new())]);
    assert_eq!(String::from_utf8(texts).expect("text"), "Hello thereAnd then some more of it");
    let spent = heard.take_spent();
    let usage = |n: usize| {
        let super::super::Spent { usage, has_sound, is_estimated, .. } = &spent[n];
        assert!(!has_sound, "what sound took is told");
        (usage.input, usage.cached, usage.output, usage.reasoning, usage.output_audio, *is_estimated)
    };
    assert_eq!(spent.len(), 2);
    assert_eq!(usage(0), (130, 64, 20, 0, 0, false));
    assert_eq!(usage(1), (40, 0, 25, 5, 20, false), "what is told behind its end");
    let under_way = heard.under_way().expect("some text");
    assert!(under_way.is_estimated && under_way.usage.output >= 3, "{under_way:?}");
    // What nobody counted, before what comes next.
    heard.message(br#"{"serverContent":{"turnComplete":true}}"#).expect("read");
    assert!(heard.take_spent().is_empty());
    heard.message(SAID[3].as_bytes()).expect("read");
    let spent = heard.take_spent();
    assert!(spent.len() == 1 && spent[0].is_estimated && spent[0].usage.output >= 3, "{spent:?}");
    assert!(!spent[0].has_sound, "that came after it");
}

#[test]
fn messages_of_clients_are_read_as_requests() {
    let shows = |text: &str| Sent::Shows(text.to_owned());
    let asks = |text: &str| Sent::Asks(text.to_owned());
    for (message, want) in [
        (
            r#"{"setup":{"model":"models/gemini-live","systemInstruction":{"parts":[{"text":"Be brief"}]},"tools":[{"functionDeclarations":[{"name":"shell"}]}],"generationConfig":{"maxOutputTokens":9}}}"#,
            shows(
                r#"{"model":"gemini-live","systemInstruction":{"parts":[{"text":"Be brief"}]},"tools":[{"functionDeclarations":[{"name":"shell"}]}],"generationConfig":{"maxOutputTokens":9}}"#,
            ),
        ),
        (
            r#"{"setup":{"model":"projects/p/locations/l/publishers/google/models/gemini-live"}}"#,
            shows(r#"{"model":"gemini-live"}"#),
        ),
        (
            r#"{"clientContent":{"turns":[{"role":"user","parts":[{"text":"hi"}]}],"turnComplete":true}}"#,
            asks(r#"{"contents":[{"role":"user","parts":[{"text":"hi"}]}]}"#),
        ),
        (
            r#"{"client_content":{"turns":{"parts":[{"text":"hi"}]}}}"#,
            shows(r#"{"contents":[{"parts":[{"text":"hi"}]}]}"#),
        ),
        (
            r#"{"realtimeInput":{"text":"hi"}}"#,
            asks(r#"{"contents":[{"role":"user","parts":[{"text":"hi"}]}]}"#),
        ),
        (
            r#"{"realtimeInput":{"mediaChunks":[{"mimeType":"audio/pcm","data":"AAAA"},{"mimeType":"image/png","data":"AAAA"}]}}"#,
            shows(
                r#"{"contents":[{"role":"user","parts":[{"inlineData":{"mimeType":"image/png","data":"AAAA"}}]}]}"#,
            ),
        ),
        (
            r#"{"toolResponse":{"functionResponses":[{"id":"c1","name":"get_weather","response":{"t":21}}]}}"#,
            asks(
                r#"{"contents":[{"role":"user","parts":[{"functionResponse":{"id":"c1","name":"get_weather","response":{"t":21}}}]}]}"#,
            ),
        ),
        (r#"{"realtimeInput":{"audio":{"mimeType":"audio/pcm;rate=16000","data":"AAAA"}}}"#, Sent::Other),
        (r#"{"realtimeInput":{"activityStart":{}}}"#, Sent::Other),
    ] {
        assert_eq!(sent(message), Ok(want), "{message}");
    }
}

#[test]
fn what_two_could_read_in_two_ways_is_an_error() {
    for message in [
        "",
        "[]",
        "1",
        r#"{"setup":{},"setup":{}}"#,
        r#"{"clientContent":{},"client_content":{"turns":[]}}"#,
        r#"{"clientContent":[]}"#,
        r#"{"toolResponse":{"functionResponses":[],"function_responses":[]}}"#,
        r#"{"toolResponse":{"functionResponses":{"id":"c1","name":"get_weather"}}}"#,
        r#"{"realtimeInput":{"mediaChunks":{"mimeType":"image/png","data":"AA=="}}}"#,
        r#"{"setup":{"contents":[]},"realtimeInput":{"text":"a"}}"#,
    ] {
        sent(message).expect_err(message);
    }
    for message in [
        "",
        "[]",
        r#"{"serverContent":{},"server_content":{}}"#,
        r#"{"toolCall":{"functionCalls":[],"function_calls":[]}}"#,
        r#"{"serverContent":{"modelTurn":[]}}"#,
        r#"{"toolCall":{"functionCalls":[{"name":"a","args":{},"willContinue":true}]}}"#,
    ] {
        heard().message(message.as_bytes()).expect_err(message);
    }
}
