//! Conversations of Gemini's Live API (`BidiGenerateContent`), message by message: what a client says as a request of
//! `generateContent` has it, and what a server says as its answer has. Must never pass over what either side may name in another
//! way: of a name in both spellings that protobuf's JSON takes, nobody knows which one counts.

use super::{Heard, Sent, Unheard};
use crate::tool::{Value, ValueError};

/// What a client's message says of a call: of a conversation (`setup`), of turns, of what tools answered, of text as it is typed.
///
/// # Errors
/// If it is none that all read alike.
pub(super) fn sent(value: &Value) -> Result<Sent, ValueError> {
    whole(value)?;
    let mut request = Vec::new();
    let (mut contents, mut asks) = (Vec::new(), false);
    if let Some(setup) = object(value, ["setup", "setup"])? {
        let named = |(name, value): &(String, Value)| match value {
            Value::Text(model) if name == "model" => (name.clone(), Value::Text(bare(model))),
            value => (name.clone(), value.clone()),
        };
        request.extend(setup.members().iter().map(named));
    }
    if let Some(content) = object(value, ["clientContent", "client_content"])? {
        match content.member("turns") {
            Some(Value::Array(turns)) => contents.extend(turns.iter().cloned()),
            turn => contents.extend(turn.cloned()),
        }
        asks |= one(content, ["turnComplete", "turn_complete"])? == Some(&Value::Bool(true));
    }
    if let Some(input) = object(value, ["realtimeInput", "realtime_input"])? {
        let mut parts = chunks(input)?;
        if let Some(text) = input.member("text") {
            parts.push(Value::Object(vec![("text".to_owned(), text.clone())]));
            asks = true;
        }
        contents.extend((!parts.is_empty()).then(|| turn("user", parts)));
    }
    if let Some(answer) = object(value, ["toolResponse", "tool_response"])? {
        let all = list(one(answer, ["functionResponses", "function_responses"])?)?;
        let part = |one: &Value| Value::Object(vec![("functionResponse".to_owned(), one.clone())]);
        contents.push(turn("user", all.iter().map(part).collect()));
        asks = true;
    }
    if contents.is_empty() && request.is_empty() && !asks {
        return Ok(Sent::Other);
    }
    if !contents.is_empty() {
        if request.iter().any(|(name, _)| name == "contents") {
            return Err(ValueError::Malformed);
        }
        request.push(("contents".to_owned(), Value::Array(contents)));
    }
    let request = Value::Object(request).json();
    Ok(if asks { Sent::Asks(request) } else { Sent::Shows(request) })
}

/// What is sent as it comes, but for sound.
fn chunks(input: &Value) -> Result<Vec<Value>, ValueError> {
    let many = list(one(input, ["mediaChunks", "media_chunks"])?)?;
    let all = many.iter().chain(input.member("video")).chain(input.member("audio"));
    let mut parts = Vec::new();
    for chunk in all {
        if !is_sound(chunk)? {
            parts.push(Value::Object(vec![("inlineData".to_owned(), chunk.clone())]));
        }
    }
    Ok(parts)
}

/// Whether a blob is sound, by what is said of it.
fn is_sound(blob: &Value) -> Result<bool, ValueError> {
    let kind = one(blob, ["mimeType", "mime_type"])?.and_then(Value::text);
    Ok(kind.is_some_and(|kind| kind.to_ascii_lowercase().starts_with("audio/")))
}

/// A model without what it is a resource of.
fn bare(model: &str) -> String {
    let behind = |mark: &str| model.rsplit_once(mark).map(|(_, name)| name);
    let name = model.strip_prefix("models/").or_else(|| behind("/models/")).unwrap_or(model);
    name.to_owned()
}

fn turn(role: &str, parts: Vec<Value>) -> Value {
    let role = ("role".to_owned(), Value::Text(role.to_owned()));
    Value::Object(vec![role, ("parts".to_owned(), Value::Array(parts))])
}

/// Whether a message is an object: nothing else is one.
fn whole(value: &Value) -> Result<(), ValueError> {
    if matches!(value, Value::Object(_)) { Ok(()) } else { Err(ValueError::Malformed) }
}

/// The member of either spelling.
fn one<'a>(value: &'a Value, [camel, snake]: [&str; 2]) -> Result<Option<&'a Value>, ValueError> {
    match (value.member(camel), value.member(snake).filter(|_| camel != snake)) {
        (Some(_), Some(_)) => Err(ValueError::Malformed),
        (one, other) => Ok(one.or(other)),
    }
}

/// The same, which is an object if it is there.
fn object<'a>(value: &'a Value, names: [&str; 2]) -> Result<Option<&'a Value>, ValueError> {
    let found = one(value, names)?.filter(|value| **value != Value::Null);
    match found {
        None | Some(Value::Object(_)) => Ok(found),
        Some(_) => Err(ValueError::Malformed),
    }
}

/// What is in a list, if there is one: of one thing in its place nobody knows whether it is taken for a list of that.
fn list(value: Option<&Value>) -> Result<&[Value], ValueError> {
    match value {
        None | Some(Value::Null) => Ok(&[]),
        Some(Value::Array(all)) => Ok(all),
        Some(_) => Err(ValueError::Malformed),
    }
}

// === impl Heard ===

impl Heard {
    /// Hears the next message of such a conversation: a turn of the model's is a response, whose tokens may be told behind its end.
    pub(super) fn live(&mut self, value: &Value) -> Result<(), Unheard> {
        whole(value)?;
        let (mut parts, mut is_end, mut has_sound) = (Vec::new(), false, false);
        if let Some(content) = object(value, ["serverContent", "server_content"])? {
            let turn = object(content, ["modelTurn", "model_turn"])?;
            for part in list(turn.and_then(|turn| turn.member("parts")))? {
                let blob = object(part, ["inlineData", "inline_data"])?;
                if blob.map(is_sound).transpose()? == Some(true) {
                    has_sound = true;
                } else {
                    parts.push(part.clone());
                }
            }
            let said = object(content, ["outputTranscription", "output_transcription"])?;
            let said = said.and_then(|said| said.member("text"));
            parts.extend(said.map(|text| Value::Object(vec![("text".to_owned(), text.clone())])));
            is_end = one(content, ["turnComplete", "turn_complete"])? == Some(&Value::Bool(true));
        }
        if let Some(call) = object(value, ["toolCall", "tool_call"])? {
            let all = list(one(call, ["functionCalls", "function_calls"])?)?;
            let part = |one: &Value| Value::Object(vec![("functionCall".to_owned(), one.clone())]);
            parts.extend(all.iter().map(part));
        }
        let usage = object(value, ["usageMetadata", "usage_metadata"])?;
        if self.is_over && (!parts.is_empty() || has_sound) {
            // Nobody told what the turn before it took.
            self.turn_ends();
        }
        if has_sound {
            self.sounds(Some(""))?;
        }
        if !parts.is_empty() || usage.is_some() || is_end {
            let content = ("content".to_owned(), turn("model", parts));
            let candidates = Value::Array(vec![Value::Object(vec![content])]);
            let mut event = vec![("candidates".to_owned(), candidates)];
            event.extend(usage.map(|usage| ("usageMetadata".to_owned(), counts(usage))));
            let at = self.response(String::new())?;
            self.event(at, &Value::Object(event))?;
            self.is_counted |= usage.is_some();
        }
        self.is_over |= is_end;
        if self.is_over && self.is_counted {
            self.turn_ends();
        }
        Ok(())
    }

    /// Counts the turn that is under way.
    fn turn_ends(&mut self) {
        (self.is_over, self.is_counted) = (false, false);
        if let Some(turn) = self.responses.pop() {
            self.spend(turn);
        }
    }
}

/// Counts, by the names that `generateContent` has for them.
fn counts(usage: &Value) -> Value {
    let members = usage.members().iter().map(|(name, value)| {
        let name = if name == "responseTokenCount" { "candidatesTokenCount" } else { name };
        (name.to_owned(), value.clone())
    });
    Value::Object(members.collect())
}

#[cfg(test)]
mod tests;
