//! Conversations by OpenAI's Responses API, message by message: a client's is a request of that API, a server's an event of its streams,
//! in as many lanes (`stream_id`) as its client has begun. Must never take for another's what is of one lane, nor pass over what a client
//! shows besides what it asks for.

use super::{Heard, Sent, Unheard};
use crate::llm::answer::is_over;
use crate::tool::{Value, ValueError};

/// Begins of types of events that say something of a request, and are of no response.
const OF_REQUESTS: [&str; 2] = ["response.steer.", "response.inject."];

/// What a client's message says of a call: a response that is asked for, or what is added to one.
///
/// # Errors
/// If it is none that all read alike; and if it has members elsewhere than a request of this API has them, as realtime
/// conversations do, since one server or the other may look there.
pub(super) fn sent(value: Value) -> Result<Sent, ValueError> {
    let kind = value.member("type").and_then(Value::text).ok_or(ValueError::Malformed)?.to_owned();
    let is_nested = |value: &&Value| !matches!(value, Value::Null);
    if ["response", "session", "item"].iter().any(|name| value.member(name).filter(is_nested).is_some()) {
        return Err(ValueError::Malformed);
    }
    let Value::Object(members) = value else { return Err(ValueError::Malformed) };
    // Which lane it is in is nothing that a model is shown.
    let members: Vec<_> =
        members.into_iter().filter(|(name, _)| !matches!(name.as_str(), "type" | "stream_id")).collect();
    let is_id = |(name, value): &(String, Value)| name.ends_with("id") && value.text().is_some();
    if kind == "response.create" {
        return Ok(Sent::Asks(Value::Object(members).json()));
    }
    // What only names something shows nothing: what is not known may show, and ask.
    Ok(if members.iter().all(is_id) { Sent::Other } else { Sent::GoesOn(Value::Object(members).json()) })
}

// === impl Heard ===

impl Heard {
    /// Hears the next event. Those of a lane are of one response after the other: only its begin and its end say of which.
    pub(super) fn lane(&mut self, value: &Value) -> Result<(), Unheard> {
        let kind = value.member("type").and_then(Value::text).ok_or(ValueError::Malformed)?;
        let lane = match value.member("stream_id") {
            None | Some(Value::Null) => "",
            Some(Value::Text(lane)) => lane,
            Some(_) => return Err(ValueError::Malformed.into()),
        };
        let known = self.responses.iter().position(|response| response.id == lane);
        let is_numbered = matches!(value.member("sequence_number"), Some(Value::Number(_)));
        if kind == "error" {
            // One that is numbered as its stream is, or as that is not, is the end of it; others are of what was asked, of which nothing
            // came.
            let ends =
                |at: &usize| self.responses.get(*at).is_some_and(|own| is_numbered || !own.is_numbered);
            if let Some(at) = known.filter(ends) {
                return self.ends(at);
            }
            self.refused.push((lane.to_owned(), known.is_some()));
            return Ok(());
        }
        if !kind.starts_with("response.") || OF_REQUESTS.iter().any(|begin| kind.starts_with(begin)) {
            return self.beside(value);
        }
        let named = value.member("response").and_then(|response| response.member("id"));
        let named = named.and_then(Value::text);
        let is_other = |known: &str| named.is_some_and(|named| named != known);
        if let Some(at) = known
            && let Some(before) = self.responses.get(at)
            && before.named.as_deref().is_some_and(is_other)
        {
            if before.reader.waits() {
                return Err(Unheard::Between);
            }
            // Nobody told what the one before it took.
            self.ends(at)?;
        }
        let at = self.response(lane.to_owned())?;
        if let Some(response) = self.responses.get_mut(at).filter(|response| response.named.is_none()) {
            response.named = named.map(str::to_owned);
        }
        self.responses.get_mut(at).into_iter().for_each(|response| response.is_numbered |= is_numbered);
        self.event(at, value)?;
        // As realtime conversations call it, so that a server may.
        if is_over(kind) || kind == "response.done" { self.ends(at) } else { Ok(()) }
    }

    /// Counts a response that is over; of its calls that are not whole, what there is.
    fn ends(&mut self, at: usize) -> Result<(), Unheard> {
        let mut response = self.responses.remove(at);
        response.reader.close();
        self.calls.extend(response.reader.take_calls()?);
        self.spend(response);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
