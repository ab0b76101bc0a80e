//! What a client is told where the stream of a model's answer is cut: why, as an error in the terms of the dialect, which SDKs show
//! as what came of the call.
//!
//! INVARIANT: it is no end. A stream is cut behind it all the same, so that nobody who passes it by takes what came for all.

use clawgress_inspect::llm::Surface;
use clawgress_inspect::llm::answer::Format;
use serde_json::{Value, json};

/// The error in a stream of this surface and form, by the reason's name and in words; `None` where its dialect has none, or that is
/// not known.
///
/// Sources: OpenAI's and Anthropic's references of streaming (an `error` in the data, the event `error`), `google.rpc.Status` (Gemini),
/// Ollama's API (a line with `error`).
#[must_use]
pub fn of(surface: Surface, format: Format, (code, message): (&str, &str)) -> Option<String> {
    match (surface, format) {
        (Surface::ChatCompletions | Surface::Completions, Format::EventStream) => {
            Some(event(None, &openai(code, message)))
        }
        (Surface::Responses, Format::EventStream) => {
            // SDKs take `error` for one, of whatever event; the rest is as the reference has it.
            let Value::Object(mut error) = openai(code, message) else { return None };
            let of_event = json!({ "type": "error", "code": code, "message": message, "param": null });
            error.extend(of_event.as_object().cloned().unwrap_or_default());
            Some(event(Some("error"), &Value::Object(error)))
        }
        (Surface::Messages, Format::EventStream) => {
            let error = json!({ "type": "permission_error", "message": message });
            Some(event(Some("error"), &json!({ "type": "error", "error": error })))
        }
        (Surface::GenerateContent, Format::EventStream) => {
            let error = json!({ "code": 403, "message": message, "status": "PERMISSION_DENIED" });
            Some(event(None, &json!({ "error": error })))
        }
        (Surface::OllamaChat | Surface::OllamaGenerate, Format::Lines) => {
            Some(format!("{}\n", json!({ "error": message })))
        }
        _ => None,
    }
}

fn openai(code: &str, message: &str) -> Value {
    json!({ "error": { "type": "permission_error", "code": code, "message": message, "param": null } })
}

fn event(name: Option<&str>, data: &Value) -> String {
    let name = name.map(|name| format!("event: {name}\n")).unwrap_or_default();
    format!("{name}data: {data}\n\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_dialect_has_its_own_or_none() {
        let told = |surface, format| of(surface, format, ("policy_forbidden", "it is \"forbidden\"\n"));
        let event = |surface| told(surface, Format::EventStream).expect("told");
        for (surface, starts) in [
            (Surface::ChatCompletions, "data: {\"error\":{"),
            (Surface::Responses, "event: error\ndata: {"),
            (Surface::Messages, "event: error\ndata: {"),
            (Surface::GenerateContent, "data: {\"error\":{"),
        ] {
            let told = event(surface);
            assert!(told.starts_with(starts) && told.ends_with("}\n\n"), "{surface:?}: {told}");
            let data = told.lines().find_map(|line| line.strip_prefix("data: ")).expect("data");
            let data: Value = serde_json::from_str(data).expect("JSON");
            assert_eq!(data["error"]["message"], "it is \"forbidden\"\n", "{surface:?}");
        }
        assert_eq!(
            told(Surface::OllamaChat, Format::Lines).as_deref(),
            Some("{\"error\":\"it is \\\"forbidden\\\"\\n\"}\n")
        );
        for (surface, format) in [
            (Surface::ChatCompletions, Format::Lines),
            (Surface::Converse, Format::Amazon),
            (Surface::CohereChat, Format::EventStream),
            (Surface::Other, Format::EventStream),
        ] {
            assert_eq!(told(surface, format), None, "{surface:?}");
        }
    }
}
