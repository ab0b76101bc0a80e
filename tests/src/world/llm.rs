//! An OpenAI-compatible mock: `/v1/models` and `/v1/chat/completions`, whole and streaming.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::{Response, StatusCode};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::control::State;
use super::http::{AnyBody, Growing, json, with_body};

/// The model it says it is.
pub const MODEL: &str = "mock-1";
/// What it answers, a token a word.
pub const WORDS: &[&str] = &["Egress", " is", " governed", " by", " one", " policy", "."];
/// What it charges for any prompt.
pub const PROMPT_TOKENS: u64 = 11;
/// Time between tokens.
const PACE: Duration = Duration::from_millis(20);
/// Chunks on their way to the client.
const CHUNKS_MAX: usize = 4;

pub(super) fn respond(path: &str, body: &[u8], hold: Option<String>, state: Arc<State>) -> Response<AnyBody> {
    match path {
        "/v1/models" => json(
            StatusCode::OK,
            &json!({"object": "list", "data": [{"id": MODEL, "object": "model", "created": 0, "owned_by": "lab"}]}),
        ),
        "/v1/chat/completions" => complete(body, hold, state),
        _ => json(StatusCode::NOT_FOUND, &json!({"error": {"message": "no such endpoint"}})),
    }
}

fn usage() -> Value {
    let completion = WORDS.len() as u64;
    json!({
        "prompt_tokens": PROMPT_TOKENS, "completion_tokens": completion,
        "total_tokens": PROMPT_TOKENS + completion,
    })
}

fn complete(body: &[u8], hold: Option<String>, state: Arc<State>) -> Response<AnyBody> {
    let Ok(request) = serde_json::from_slice::<Value>(body) else {
        return json(StatusCode::BAD_REQUEST, &json!({"error": {"message": "the body is not JSON"}}));
    };
    // What is offered first is asked for.
    let tool = request.pointer("/tools/0/function/name").and_then(Value::as_str).map(str::to_owned);
    if request.get("stream").and_then(Value::as_bool) != Some(true) {
        let mut message = json!({"role": "assistant", "content": WORDS.concat()});
        if let (Some(tool), Some(message)) = (&tool, message.as_object_mut()) {
            message.insert("tool_calls".to_owned(), json!([asked(tool, "{}")]));
        }
        let whole = json!({
            "id": "chatcmpl-lab", "object": "chat.completion", "created": 0, "model": MODEL,
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": usage(),
        });
        return json(StatusCode::OK, &whole);
    }
    let with_usage = request.pointer("/stream_options/include_usage").and_then(Value::as_bool) == Some(true);
    let (sender, receiver) = mpsc::channel(CHUNKS_MAX);
    // It ends when the client is gone: sending fails then.
    tokio::spawn(stream(sender, (with_usage, tool), hold, state));
    with_body(StatusCode::OK, "text/event-stream", Growing(receiver).boxed())
}

fn asked(tool: &str, arguments: &str) -> Value {
    json!({"index": 0, "id": "call-lab", "type": "function", "function": {"name": tool, "arguments": arguments}})
}

fn chunk(choices: Value, usage: Option<Value>) -> Bytes {
    let mut event = json!({
        "id": "chatcmpl-lab", "object": "chat.completion.chunk", "created": 0, "model": MODEL,
        "choices": choices,
    });
    if let (Some(usage), Some(event)) = (usage, event.as_object_mut()) {
        event.insert("usage".to_owned(), usage);
    }
    Bytes::from(format!("data: {event}\n\n"))
}

async fn stream(
    sender: mpsc::Sender<Bytes>,
    (with_usage, tool): (bool, Option<String>),
    hold: Option<String>,
    state: Arc<State>,
) -> Result<(), mpsc::error::SendError<Bytes>> {
    let delta = |content: &str| json!([{"index": 0, "delta": {"content": content}, "finish_reason": null}]);
    for (n, word) in WORDS.iter().enumerate() {
        sender.send(chunk(delta(word), None)).await?;
        match &hold {
            // The rest waits until the lab has seen that the first token arrived.
            Some(name) if n == 0 => state.hold(name).await,
            _ => tokio::time::sleep(PACE).await,
        }
    }
    if let Some(tool) = &tool {
        let delta =
            |call: Value| json!([{"index": 0, "delta": {"tool_calls": [call]}, "finish_reason": null}]);
        sender.send(chunk(delta(asked(tool, "")), None)).await?;
        sender.send(chunk(delta(json!({"index": 0, "function": {"arguments": "{}"}})), None)).await?;
    }
    let finish = if tool.is_some() { "tool_calls" } else { "stop" };
    sender.send(chunk(json!([{"index": 0, "delta": {}, "finish_reason": finish}]), None)).await?;
    if with_usage {
        sender.send(chunk(json!([]), Some(usage()))).await?;
    }
    sender.send(Bytes::from_static(b"data: [DONE]\n\n")).await
}
