//! Conversations with models over WebSockets, in OpenAI's realtime events, in those of its Responses API (`responses.rs`) or in messages
//! of Gemini's Live API (`live.rs`): what a client's message says of a call, and what the messages of a server come to.
//!
//! Their parts are those of the Responses API, and of `generateContent`, and are read as these. Must never take for read what could not be: a message that
//! is no JSON that all read alike is an error, and so is more than is kept.

mod live;
mod responses;

use super::Surface;
use super::answer::{Asked, CallsError, Following, Format, Reader, Usage};
use crate::proxy_request::separated;
use crate::tool::{Value, ValueError};

/// Responses under way at once that are told apart: one, and some besides the conversation.
pub const RESPONSES_MAX: usize = 16;
/// Events that carry sound, which is no text.
const SOUND: &str = "audio.delta";

/// In what messages a conversation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// OpenAI's realtime events.
    Events,
    /// Gemini's Live API: `BidiGenerateContent`.
    Live,
    /// Requests of OpenAI's Responses API, and the events of its streams.
    Responses,
}

/// What a message of a client says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sent {
    /// Nothing that a model is shown or asked: sound, and what is about events.
    Other,
    /// What a model is shown, or may use, as a request of the dialect's [surface](Dialect::surface) has it.
    Shows(String),
    /// The same, of a response that is asked for.
    Asks(String),
    /// The same of one that goes on from another, with the model and tools of that: what is shown besides.
    GoesOn(String),
}

/// Why messages of a server can't be known.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unheard {
    /// Of a message.
    #[error("a message of the model is not what all read alike: {0}")]
    Message(#[from] ValueError),
    /// Of the calls that it asks for.
    #[error("{0}")]
    Calls(#[from] CallsError),
    /// Of responses under way.
    #[error("more than {RESPONSES_MAX} responses are under way at once")]
    TooMany,
    /// Of one that begins in place of another, of which a call has begun.
    #[error("a response begins before a call of the one before it is whole")]
    Between,
}

/// What a response took.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Spent {
    /// The lane of a conversation of the Responses API that it was in; empty in others.
    pub lane: String,
    /// The model, if the server says which.
    pub model: Option<String>,
    /// Tokens, as the server counts them; estimated where it did not say.
    pub usage: Usage,
    /// Whether they are estimated: of the answer alone.
    pub is_estimated: bool,
    /// Whether sound came back that none of them is told to be of: its price is another.
    pub has_sound: bool,
}

/// What the messages of a server come to.
#[derive(Debug)]
pub struct Heard {
    dialect: Dialect,
    bytes_max: usize,
    following: Following,
    responses: Vec<Response>,
    texts: [Vec<u8>; 2],
    calls: Vec<Asked>,
    spent: Vec<Spent>,
    /// Lanes in which a request was refused before anything came of it, and whether it was behind another that is under way.
    refused: Vec<(String, bool)>,
    /// Tokens of all that are over.
    input: u64,
    output: u64,
    tools: Vec<String>,
    has_more_tools: bool,
    /// Of a turn of the Live API: whether it is over, and was counted.
    is_over: bool,
    is_counted: bool,
}

/// A response under way.
#[derive(Debug)]
struct Response {
    /// What its events are told apart by.
    id: String,
    /// What it is called where that is another thing.
    named: Option<String>,
    reader: Reader,
    /// Whether sound of it came.
    has_sound: bool,
    /// Whether its events are numbered, of the Responses API.
    is_numbered: bool,
}

// === impl Dialect ===

impl Dialect {
    /// The one of a conversation that is opened at this path, if that is one. An encoded slash may be one.
    #[must_use]
    pub fn of(path: &str) -> Option<Dialect> {
        Dialect::as_written(path).or_else(|| Dialect::as_written(&separated(path)?))
    }

    fn as_written(path: &str) -> Option<Dialect> {
        let last = path.rsplit('/').find(|segment| !segment.is_empty()).unwrap_or_default();
        // Some servers take parameters off a segment (RFC 3986 section 3.3).
        let last = super::route::decode(last.split(';').next().unwrap_or(last)).to_ascii_lowercase();
        match last.rsplit('.').next() {
            _ if last == "realtime" => Some(Dialect::Events),
            _ if last == "responses" => Some(Dialect::Responses),
            Some("bidigeneratecontent" | "bidigeneratecontentconstrained") => Some(Dialect::Live),
            _ => None,
        }
    }

    /// As whose requests its messages are read.
    #[must_use]
    pub fn surface(self) -> Surface {
        match self {
            Dialect::Events | Dialect::Responses => Surface::Responses,
            Dialect::Live => Surface::GenerateContent,
        }
    }
}

/// What a client's message says of a call.
///
/// # Errors
/// If it is none that all read alike.
pub fn sent(dialect: Dialect, text: &[u8]) -> Result<Sent, ValueError> {
    sent_in(dialect, text).map(|(sent, _)| sent)
}

/// What a client's message says of a call, and in which lane of a conversation of the Responses API; in others that is empty.
///
/// # Errors
/// If it is none that all read alike.
pub fn sent_in(dialect: Dialect, text: &[u8]) -> Result<(Sent, String), ValueError> {
    let value = Value::parse(text)?;
    match dialect {
        Dialect::Live => Ok((live::sent(&value)?, String::new())),
        Dialect::Responses => {
            let lane = value.member("stream_id").and_then(Value::text).unwrap_or_default().to_owned();
            Ok((responses::sent(value)?, lane))
        }
        Dialect::Events => Ok((event(&value)?, String::new())),
    }
}

/// What an event of a client says of a call.
fn event(value: &Value) -> Result<Sent, ValueError> {
    let kind = value.member("type").and_then(Value::text).ok_or(ValueError::Malformed)?;
    let inner = |name: &str| as_request(value.member(name).cloned().unwrap_or(Value::Object(Vec::new())));
    Ok(match kind {
        "session.update" => Sent::Shows(inner("session")),
        "response.create" => Sent::Asks(inner("response")),
        "conversation.item.create" => {
            let item = value.member("item").cloned().unwrap_or(Value::Null);
            Sent::Shows(as_request(Value::Object(vec![("input".to_owned(), Value::Array(vec![item]))])))
        }
        _ => Sent::Other,
    })
}

/// Whether an error is of a response that is not to be, and of no other message of a client: which name that may have is the client's to
/// choose, but not what is wrong with it.
fn is_of_response(value: &Value) -> bool {
    let of = |name: &str| value.member("error").and_then(|error| error.member(name)).and_then(Value::text);
    of("code") == Some("conversation_already_has_active_response")
        || of("param").is_some_and(|param| param.split('.').next() == Some("response"))
}

/// What a session or response sets, by the names that requests have.
fn as_request(value: Value) -> String {
    let Value::Object(members) = value else { return value.json() };
    let is_limit = |name: &str| matches!(name, "max_output_tokens" | "max_response_output_tokens");
    let members = members.into_iter().filter_map(|(name, value)| match value {
        // No limit.
        Value::Text(text) if is_limit(&name) && text == "inf" => None,
        value if is_limit(&name) => Some(("max_output_tokens".to_owned(), value)),
        value => Some((name, value)),
    });
    Value::Object(members.collect()).json()
}

// === impl Heard ===

impl Heard {
    /// Of a conversation of which nothing was heard yet: calls that come in parts are put together, of so many bytes.
    #[must_use]
    pub fn new(dialect: Dialect, bytes_max: usize, following: Following) -> Heard {
        Heard {
            dialect,
            bytes_max,
            following,
            responses: Vec::new(),
            texts: [Vec::new(), Vec::new()],
            calls: Vec::new(),
            spent: Vec::new(),
            refused: Vec::new(),
            input: 0,
            output: 0,
            tools: Vec::new(),
            has_more_tools: false,
            is_over: false,
            is_counted: false,
        }
    }

    /// Hears the next message.
    ///
    /// # Errors
    /// Why it can't be known.
    pub fn message(&mut self, text: &[u8]) -> Result<(), Unheard> {
        let mut value = Value::parse(text)?;
        match self.dialect {
            Dialect::Live => return self.live(&value),
            Dialect::Responses => return self.lane(&value),
            Dialect::Events => {}
        }
        let kind = value.member("type").and_then(Value::text).ok_or(ValueError::Malformed)?.to_owned();
        if kind.starts_with("conversation.item.") {
            return self.echoes(value);
        }
        if kind == "error" && is_of_response(&value) {
            // A response that is asked for begins or is refused at once, and none that has begun ends so.
            self.refused.push((String::new(), !self.responses.is_empty()));
        }
        if !kind.starts_with("response.") {
            return Ok(());
        }
        if kind.ends_with(SOUND) {
            return self.sounds(value.member("response_id").and_then(Value::text));
        }
        let of = value.member("response").and_then(|response| response.member("id"));
        let id = of.or_else(|| value.member("response_id")).and_then(Value::text).unwrap_or_default();
        let at = self.response(id.to_owned())?;
        let is_over = kind == "response.done";
        if is_over && let Value::Object(members) = &mut value {
            // As the Responses API calls it.
            let kinds = members.iter_mut().filter(|(name, _)| name == "type");
            kinds.for_each(|(_, value)| *value = Value::Text("response.completed".to_owned()));
        }
        self.event(at, &value)?;
        if is_over {
            let response = self.responses.remove(at);
            self.spend(response);
        }
        Ok(())
    }

    /// Notes that sound came of this response; of all that are under way, where nobody says of which.
    fn sounds(&mut self, of: Option<&str>) -> Result<(), Unheard> {
        if of.is_none() && !self.responses.is_empty() {
            self.responses.iter_mut().for_each(|response| response.has_sound = true);
            return Ok(());
        }
        let at = self.response(of.unwrap_or_default().to_owned())?;
        self.responses.get_mut(at).into_iter().for_each(|response| response.has_sound = true);
        Ok(())
    }

    /// Counts a response that is over.
    fn spend(&mut self, response: Response) {
        let answer = response.reader.finish();
        let (is_estimated, estimated) = (answer.usage.is_none(), answer.output_estimated);
        let usage = answer.usage.unwrap_or(Usage { output: estimated, ..Usage::default() });
        let has_sound = response.has_sound && usage.output_audio == 0;
        let lane = if self.dialect == Dialect::Responses { response.id } else { String::new() };
        let spent = Spent { lane, model: answer.model, usage, is_estimated, has_sound };
        self.input = self.input.saturating_add(spent.usage.input);
        self.output = self.output.saturating_add(spent.usage.output);
        self.spent.push(spent);
    }

    /// An item of the conversation, said again: of calls that are whole, what is asked for.
    fn echoes(&mut self, value: Value) -> Result<(), Unheard> {
        let Value::Object(members) = value else { return Ok(()) };
        let Some((_, item)) = members.into_iter().find(|(name, _)| name == "item") else { return Ok(()) };
        let text = |name: &str| item.member(name).and_then(Value::text).filter(|text| !text.is_empty());
        if text("type").is_none_or(|kind| !kind.ends_with("_call")) || text("arguments").is_none() {
            return Ok(());
        }
        let kind = Value::Text("response.output_item.done".to_owned());
        let event = Value::Object(vec![("type".to_owned(), kind), ("item".to_owned(), item)]);
        // It is whole, and what it took is counted by the response that made it.
        self.beside(&event)
    }

    /// Has an event read that is of no response, by a reader of its own.
    fn beside(&mut self, event: &Value) -> Result<(), Unheard> {
        self.responses.push(self.begun(String::new()));
        let heard = self.event(self.responses.len() - 1, event);
        self.responses.pop();
        heard
    }

    /// The place of a response, which begins if it is not under way.
    fn response(&mut self, id: String) -> Result<usize, Unheard> {
        if let Some(at) = self.responses.iter().position(|response| response.id == id) {
            return Ok(at);
        }
        if self.responses.len() >= RESPONSES_MAX {
            return Err(Unheard::TooMany);
        }
        self.responses.push(self.begun(id));
        Ok(self.responses.len() - 1)
    }

    /// A response of which nothing came yet.
    fn begun(&self, id: String) -> Response {
        let reader = Reader::new(Format::EventStream).keeping_texts();
        let reader = reader.following_calls(self.bytes_max, self.following, true);
        Response { id, named: None, reader, has_sound: false, is_numbered: false }
    }

    /// Has a response's reader read an event of it.
    fn event(&mut self, at: usize, value: &Value) -> Result<(), Unheard> {
        let Some(Response { reader, .. }) = self.responses.get_mut(at) else { return Ok(()) };
        reader.push(format!("data: {}\n\n", value.json()).as_bytes());
        self.calls.extend(reader.take_calls()?);
        let mut said = reader.take_texts();
        if value
            .member("type")
            .and_then(Value::text)
            .is_some_and(|kind| kind.ends_with("_call_arguments.delta"))
        {
            // What an event adds to has the same name wherever that is.
            said.swap(0, 1);
        }
        let more = reader.take_more_texts().into_iter().map(|(_, said)| said);
        for said in std::iter::once(said).chain(more) {
            self.texts.iter_mut().zip(said).for_each(|(all, said)| all.extend(said));
        }
        let progress = reader.progress();
        self.has_more_tools |= progress.has_more_tools;
        for tool in progress.tools {
            if self.tools.contains(tool) {
                continue;
            }
            if self.tools.len() < super::answer::ASKED_MAX {
                self.tools.push(tool.clone());
            } else {
                self.has_more_tools = true;
            }
        }
        Ok(())
    }

    /// Whether what came last waits for the rest of a call.
    #[must_use]
    pub fn waits(&self) -> bool {
        self.responses.iter().any(|response| response.reader.waits())
    }

    /// Calls that became whole since this was asked last.
    pub fn take_calls(&mut self) -> Vec<Asked> {
        std::mem::take(&mut self.calls)
    }

    /// What the model said since this was asked last, and what it asked tools for.
    pub fn take_texts(&mut self) -> [Vec<u8>; 2] {
        std::mem::take(&mut self.texts)
    }

    /// What responses took that were over since this was asked last.
    pub fn take_spent(&mut self) -> Vec<Spent> {
        std::mem::take(&mut self.spent)
    }

    /// Lanes in which a request was refused since this was asked last, of which nothing came; and whether that was one behind
    /// another that is under way there.
    pub fn take_refused(&mut self) -> Vec<(String, bool)> {
        std::mem::take(&mut self.refused)
    }

    /// What those took that are under way as the conversation ends, each by itself: what has begun may be billed, whatever came of it.
    pub fn take_left(&mut self) -> Vec<Spent> {
        for response in std::mem::take(&mut self.responses) {
            let output = response.reader.progress().output;
            self.spend(response);
            // What was counted on the way may be of a part.
            self.spent
                .last_mut()
                .into_iter()
                .for_each(|spent| spent.usage.output = spent.usage.output.max(output));
        }
        let left = self.take_spent().into_iter();
        left.map(|spent| Spent { is_estimated: true, ..spent }).collect()
    }

    /// What those took that are under way, of which nobody has said it: estimated.
    #[must_use]
    pub fn under_way(&self) -> Option<Spent> {
        let all = || self.responses.iter().map(|response| response.reader.progress());
        let (input, output) = (all().map(|now| now.input).sum(), all().map(|now| now.output).sum());
        let usage = Usage { input, output, ..Usage::default() };
        let has_sound = self.responses.iter().any(|response| response.has_sound);
        // Of the Responses API, what has begun was sent whole.
        let has_begun = self.dialect == Dialect::Responses && !self.responses.is_empty();
        let is_any = input > 0 || output > 0 || has_sound || has_begun;
        is_any.then(|| Spent { usage, is_estimated: true, has_sound, ..Spent::default() })
    }

    /// Tokens of all prompts, and of all answers, as far as they are known.
    #[must_use]
    pub fn tokens(&self) -> (u64, u64) {
        let more = self.under_way().map(|spent| spent.usage).unwrap_or_default();
        (self.input.saturating_add(more.input), self.output.saturating_add(more.output))
    }

    /// Names of the tools that the model asks for; and whether there are more.
    #[must_use]
    pub fn tools(&self) -> (&[String], bool) {
        (&self.tools, self.has_more_tools)
    }

    /// Bytes that it keeps.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        let texts = self.texts.iter().map(Vec::capacity).sum::<usize>();
        let of = |response: &Response| {
            let named = response.named.as_ref().map_or(0, String::capacity);
            response.id.capacity() + named + response.reader.memory_bytes()
        };
        let texts_of =
            |all: &[String]| all.iter().map(|text| size_of::<String>() + text.capacity()).sum::<usize>();
        let asked = |call: &Asked| {
            let names = texts_of(&call.argument_names) + texts_of(&call.values);
            call.name.capacity() + call.arguments.capacity() + names
        };
        let spent = |spent: &Spent| {
            size_of::<Spent>() + spent.lane.capacity() + spent.model.as_ref().map_or(0, String::capacity)
        };
        let refused = |(lane, _): &(String, bool)| size_of::<(String, bool)>() + lane.capacity();
        let left = self.calls.iter().map(asked).sum::<usize>() + self.spent.iter().map(spent).sum::<usize>();
        let left = left + self.refused.iter().map(refused).sum::<usize>();
        texts + left + texts_of(&self.tools) + self.responses.iter().map(of).sum::<usize>()
    }
}

#[cfg(test)]
mod tests;
