//! Calls of each dialect, changed.

use super::*;

fn call(body: &str, surface: Surface) -> Call {
    let claims = Claims::new(&[b"application/json"], &[]);
    let mut inspector = Inspector::of_call(claims, Limits::default(), Some(surface));
    inspector.push(body.as_bytes()).and_then(|()| inspector.finish()).expect("a call");
    inspector.call().expect("read").call().clone()
}

fn change(body: &str, surface: Surface, wanted: &Wanted<'_>) -> Result<(String, Vec<String>), ChangeError> {
    let changed = changed(body.as_bytes(), surface, &call(body, surface), wanted)?;
    Ok((String::from_utf8(changed.body).expect("text"), changed.told))
}

const NOTHING: Wanted<'static> = Wanted {
    params: &[],
    tokens_max: None,
    cap_names: CapNames::Newer,
    takes_tool: &|_| false,
    takes_tools: false,
    renames: &[],
    prompt: None,
};

#[track_caller]
fn check(surface: Surface, wanted: &Wanted<'_>, body: &str, want: &str) {
    assert_eq!(change(body, surface, wanted).expect("changed").0, want);
}

#[test]
fn parameters_are_set_and_nothing_else_changes() {
    let store = Wanted { params: &[("store", "false")], ..NOTHING };
    check(
        Surface::Responses,
        &store,
        r#"{"model":"gpt-5", "store" : true,"temperature":1.50,"input":"\u00e9"}"#,
        r#"{"model":"gpt-5", "store" : false,"temperature":1.50,"input":"\u00e9"}"#,
    );
    check(
        Surface::Responses,
        &store,
        r#" {"model":"gpt-5","input":"a"}"#,
        r#" {"store":false,"model":"gpt-5","input":"a"}"#,
    );
    let same = r#"{"model":"gpt-5","store":false,"input":"a"}"#;
    assert_eq!(change(same, Surface::Responses, &store), Ok((same.to_owned(), Vec::new())));
}

/// Of a name that is there twice, or in other letters, servers take one or the other.
#[test]
fn parameters_that_are_there_twice_are_refused() {
    let safe = Wanted { params: &[("safe_prompt", "true")], ..NOTHING };
    for rest in [
        r#""safe_prompt":true,"safe_prompt":false"#,
        r#""safe_prompt":false,"safe_prompt":false"#,
        r#""safe_\u0070rompt":true,"safe_prompt":true"#,
        r#""Safe_Prompt":false"#,
        r#""safe_prompt":true,"\u017fafe_prompt":false"#,
    ] {
        let body = format!(r#"{{"model":"mistral-large-latest","messages":[],{rest}}}"#);
        let refused = change(&body, Surface::ChatCompletions, &safe);
        assert_eq!(refused, Err(ChangeError::NotSo("those parameters")), "{body}");
    }
    let think = Wanted { params: &[("think", "false")], ..NOTHING };
    assert!(change(r#"{"model":"m","messages":[],"Think":true}"#, Surface::OllamaChat, &think).is_err());
    // Elsewhere it is another's.
    check(
        Surface::ChatCompletions,
        &safe,
        r#"{"model":"m","messages":[],"metadata":{"safe_prompt":false,"safe_prompt":0}}"#,
        r#"{"safe_prompt":true,"model":"m","messages":[],"metadata":{"safe_prompt":false,"safe_prompt":0}}"#,
    );
}

#[test]
fn limits_are_lowered_in_each_dialect() {
    let most = Wanted { tokens_max: Some(100), ..NOTHING };
    for (surface, body, want) in [
        (
            Surface::ChatCompletions,
            r#"{"model":"m","messages":[],"max_tokens":4096}"#,
            r#"{"model":"m","messages":[],"max_tokens":100}"#,
        ),
        (
            Surface::ChatCompletions,
            r#"{"model":"m","messages":[]}"#,
            r#"{"max_completion_tokens":100,"model":"m","messages":[]}"#,
        ),
        (
            Surface::ChatCompletions,
            r#"{"model":"m","messages":[],"max_tokens":99,"max_completion_tokens":1e3}"#,
            r#"{"model":"m","messages":[],"max_tokens":99,"max_completion_tokens":100}"#,
        ),
        (
            Surface::GenerateContent,
            r#"{"contents":[],"generationConfig":{"temperature":0.10}}"#,
            r#"{"contents":[],"generationConfig":{"maxOutputTokens":100,"temperature":0.10}}"#,
        ),
        (Surface::Converse, r#"{"messages":[]}"#, r#"{"inferenceConfig":{"maxTokens":100},"messages":[]}"#),
        (
            Surface::OllamaChat,
            r#"{"model":"m","messages":[],"options":{"num_predict":-1}}"#,
            r#"{"model":"m","messages":[],"options":{"num_predict":100}}"#,
        ),
    ] {
        check(surface, &most, body, want);
    }
    let less = r#"{"model":"m","messages":[],"max_tokens":7}"#;
    check(Surface::ChatCompletions, &most, less, less);
    change(r#"{"model":"m","input":"a"}"#, Surface::Embeddings, &most).expect_err("it has none");
    // Three answers have a hundred together.
    check(
        Surface::ChatCompletions,
        &most,
        r#"{"model":"m","messages":[],"max_tokens":100,"n":3}"#,
        r#"{"model":"m","messages":[],"max_tokens":33,"n":3}"#,
    );
    change(r#"{"model":"m","messages":[],"n":101}"#, Surface::ChatCompletions, &most)
        .expect_err("not one for each");
}

#[test]
fn tools_are_not_offered() {
    let shell = Wanted { takes_tool: &|name| name.starts_with("shell"), takes_tools: true, ..NOTHING };
    for (surface, body, want) in [
        (
            Surface::ChatCompletions,
            r#"{"model":"m","messages":[],"tools":[{"type":"function","function":{"name":"shell","parameters":{"n":1.0}}}, {"type":"function","function":{"name":"read","parameters":{"n":1.0}}}],"tool_choice":{"type":"function","function":{"name":"shell"}}}"#,
            r#"{"model":"m","messages":[],"tools":[{"type":"function","function":{"name":"read","parameters":{"n":1.0}}}]}"#,
        ),
        (
            Surface::Messages,
            r#"{"model":"m","max_tokens":1,"messages":[],"tools":[{"name":"read","input_schema":{}},{"name":"shell","input_schema":{}}]}"#,
            r#"{"model":"m","max_tokens":1,"messages":[],"tools":[{"name":"read","input_schema":{}}]}"#,
        ),
        (
            Surface::GenerateContent,
            r#"{"contents":[],"tools":[{"functionDeclarations":[{"name":"shell"},{"name":"read"}]},{"googleSearch":{}}]}"#,
            r#"{"contents":[],"tools":[{"functionDeclarations":[{"name":"read"}]},{"googleSearch":{}}]}"#,
        ),
        (
            Surface::Converse,
            r#"{"messages":[],"toolConfig":{"tools":[{"toolSpec":{"name":"shell"}},{"toolSpec":{"name":"read"}}]}}"#,
            r#"{"messages":[],"toolConfig":{"tools":[{"toolSpec":{"name":"read"}}]}}"#,
        ),
    ] {
        let (body, told) = change(body, surface, &shell).expect("changed");
        assert_eq!(body, want);
        assert_eq!(told, ["without the tools `shell`"]);
    }
    // Where none is left, nothing is said of them.
    check(
        Surface::ChatCompletions,
        &shell,
        r#"{"tools":[{"type":"function","function":{"name":"shell"}}],"tool_choice":"auto" , "model":"m","messages":[]}"#,
        r#"{"model":"m","messages":[]}"#,
    );
    check(
        Surface::Converse,
        &shell,
        r#"{"messages":[],"toolConfig":{"tools":[{"toolSpec":{"name":"shell"}}],"toolChoice":{"auto":{}}}}"#,
        r#"{"messages":[]}"#,
    );
}

#[test]
fn a_prompt_comes_first() {
    let prompt = Wanted { prompt: Some("Be \"good\"."), ..NOTHING };
    for (surface, body, want) in [
        (
            Surface::ChatCompletions,
            r#"{"model":"m","messages":[{"role":"system","content":"x"}]}"#,
            r#"{"model":"m","messages":[{"role":"system","content":"Be \"good\"."},{"role":"system","content":"x"}]}"#,
        ),
        (
            Surface::Responses,
            r#"{"model":"m","input":"a","instructions":"\u0078"}"#,
            r#"{"model":"m","input":"a","instructions":"Be \"good\".\n\n\u0078"}"#,
        ),
        (
            Surface::Messages,
            r#"{"model":"m","max_tokens":1,"system":[{"type":"text","text":"x"}],"messages":[]}"#,
            r#"{"model":"m","max_tokens":1,"system":[{"type":"text","text":"Be \"good\"."},{"type":"text","text":"x"}],"messages":[]}"#,
        ),
        (
            Surface::GenerateContent,
            r#"{"contents":[]}"#,
            r#"{"systemInstruction":{"parts":[{"text":"Be \"good\"."}]},"contents":[]}"#,
        ),
        (
            Surface::Converse,
            r#"{"system":[],"messages":[]}"#,
            r#"{"system":[{"text":"Be \"good\"."}],"messages":[]}"#,
        ),
        (
            Surface::OllamaGenerate,
            r#"{"model":"m","prompt":"a"}"#,
            r#"{"system":"Be \"good\".","model":"m","prompt":"a"}"#,
        ),
    ] {
        check(surface, &prompt, body, want);
    }
    change(r#"{"model":"m","prompt":"a"}"#, Surface::Completions, &prompt).expect_err("it has none");
}

#[test]
fn usage_is_asked_for_among_what_a_client_says_of_its_stream() {
    let of = |options: &str| {
        let body = format!(r#"{{"model":"m","stream":true,"stream_options":{options},"messages":[]}}"#);
        let asked = asking_usage(body.as_bytes(), Surface::ChatCompletions)?;
        let asked = String::from_utf8(asked).expect("text");
        let value: serde_json::Value = serde_json::from_str(&asked).expect("JSON");
        assert_eq!(value["stream"], true, "{asked}");
        Some(value["stream_options"].clone())
    };
    for (options, asked) in [
        (r#"{"include_usage":false}"#, r#"{"include_usage":true}"#),
        (r#"{"include_usage":null}"#, r#"{"include_usage":true}"#),
        (r#"{"include_usage":true}"#, r#"{"include_usage":true}"#),
        ("{}", r#"{"include_usage":true}"#),
        (" { } ", r#"{"include_usage":true}"#),
        ("null", r#"{"include_usage":true}"#),
        (r#"{"include_obfuscation":false}"#, r#"{"include_obfuscation":false,"include_usage":true}"#),
    ] {
        assert_eq!(of(options), serde_json::from_str(asked).ok(), "{options}");
    }
    for odd in ["[]", "1", "\"x\""] {
        assert_eq!(of(odd), None, "{odd}");
    }
}

/// At servers that skip OpenAI's newer name, a limit has the older one.
#[test]
fn a_limit_has_the_name_that_is_taken() {
    let of = |body: &str, cap_names: CapNames| {
        let wanted = Wanted { tokens_max: Some(100), cap_names, ..NOTHING };
        let mut inspector = Inspector::of_call(
            Claims::new(&[b"application/json"], &[]),
            Limits::default(),
            Some(Surface::ChatCompletions),
        );
        inspector.push(body.as_bytes()).and_then(|()| inspector.finish()).expect("read");
        let call = inspector.call().expect("a call").call().clone();
        let changed = changed(body.as_bytes(), Surface::ChatCompletions, &call, &wanted).expect("changed");
        let value: serde_json::Value = serde_json::from_slice(&changed.body).expect("JSON");
        (value["max_tokens"].as_u64(), value["max_completion_tokens"].as_u64())
    };
    for (body, newer, older) in [
        (r#"{"model":"m"}"#, (None, Some(100)), (Some(100), None)),
        (r#"{"model":"m","max_completion_tokens":7}"#, (None, Some(7)), (Some(100), Some(7))),
        (r#"{"model":"m","max_completion_tokens":700}"#, (None, Some(100)), (Some(100), Some(100))),
        (r#"{"model":"m","max_tokens":700}"#, (Some(100), None), (Some(100), None)),
        // vLLM takes the newer one first, and llama.cpp its own.
        (
            r#"{"model":"m","max_tokens":1,"max_completion_tokens":700}"#,
            (Some(1), Some(100)),
            (Some(1), Some(100)),
        ),
        (r#"{"model":"m","max_tokens":1,"n_predict":700}"#, (Some(1), None), (Some(1), None)),
    ] {
        assert_eq!(of(body, CapNames::Newer), newer, "{body}");
        assert_eq!(of(body, CapNames::Common), older, "{body}");
    }
}

/// A completion is limited by the name that its server looks at, whatever others the client gives.
#[test]
fn a_completion_is_limited_by_the_name_of_its_server() {
    for (names, body, want) in [
        (
            CapNames::Common,
            r#"{"prompt":"a","n_predict":7}"#,
            r#"{"max_tokens":100,"prompt":"a","n_predict":7}"#,
        ),
        (
            CapNames::Predict,
            r#"{"prompt":"a","max_tokens":7}"#,
            r#"{"n_predict":100,"prompt":"a","max_tokens":7}"#,
        ),
        (CapNames::Predict, r#"{"prompt":"a","n_predict":-1}"#, r#"{"prompt":"a","n_predict":100}"#),
        (
            CapNames::ToSample,
            r#"{"prompt":"a","max_tokens_to_sample":700}"#,
            r#"{"prompt":"a","max_tokens_to_sample":100}"#,
        ),
        (
            CapNames::NewTokens,
            r#"{"inputs":"a","max_new_tokens":7}"#,
            r#"{"parameters":{"max_new_tokens":100},"inputs":"a","max_new_tokens":7}"#,
        ),
        (
            CapNames::NewTokens,
            r#"{"text":"a","sampling_params":{"max_new_tokens":700}}"#,
            r#"{"text":"a","sampling_params":{"max_new_tokens":100}}"#,
        ),
        (
            CapNames::NewTokens,
            r#"{"inputs":"a","sampling_params":{"max_new_tokens":1}}"#,
            r#"{"parameters":{"max_new_tokens":100},"inputs":"a","sampling_params":{"max_new_tokens":1}}"#,
        ),
        (
            CapNames::Predict,
            r#"{"prompt":"a","N_PREDICT":1}"#,
            r#"{"n_predict":100,"prompt":"a","N_PREDICT":1}"#,
        ),
        (
            CapNames::NewTokens,
            r#"{"text":"a","sampling_params":{}}"#,
            r#"{"text":"a","sampling_params":{"max_new_tokens":100}}"#,
        ),
    ] {
        let wanted = Wanted { tokens_max: Some(100), cap_names: names, ..NOTHING };
        assert_eq!(change(body, Surface::Completions, &wanted).expect("changed").0, want);
    }
}
