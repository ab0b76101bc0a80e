//! What a server asks of its client, in what it answers or says besides: of the user (elicitation), of the model (sampling), of the
//! files (roots). Must never pass over what some client would take for such a question.

use super::{ToolError, Value, is_name, spelled};

/// The error by which a server asks for what its user does elsewhere (MCP 2025-11-25, `URLElicitationRequired`).
const ELICITATION_REQUIRED: &str = "-32042";
/// What that asks for.
const ELICIT: &str = "elicitation/create";
/// Most things that one message may ask for: each is judged by itself.
pub const ASKS_MAX: usize = 64;
/// What asks for nothing but to be answered.
const PING: &str = "ping";
/// What of a result asks for more (MCP 2026-07-28).
const REQUESTS: &str = "inputRequests";

/// What a server asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ask {
    /// The method: `elicitation/create`, `sampling/createMessage`, `roots/list`, or another.
    pub method: String,
    /// What it asks with.
    pub params: Option<Value>,
}

/// What a message of a server is, or several in an array.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Heard {
    /// What it asks for.
    pub asks: Vec<Ask>,
    /// Ids of the client's messages that it answers, as JSON.
    pub answers: Vec<String>,
}

/// What a message of a server asks of its client, in whatever era: a request of its own, a result that needs input, or an error that
/// does.
///
/// # Errors
/// If some clients would take a name for one that asks; if it asks for what has no name, or for more than [`ASKS_MAX`] things; if it
/// is no JSON.
pub fn heard(body: &[u8]) -> Result<Heard, ToolError> {
    let mut heard = Heard::default();
    if !may_ask(body) {
        return Ok(heard);
    }
    match Value::parse(body)? {
        Value::Array(all) => all.iter().try_for_each(|one| heard.message(one))?,
        one => heard.message(&one)?,
    }
    if heard.asks.len() > ASKS_MAX {
        return Err(ToolError::Message("it asks for too many things"));
    }
    Ok(heard)
}

/// Whether a body may ask for anything, or answer: most events of a stream are progress, and need not be read. In other letters
/// clients may take a name for another; an escape may be any letter.
fn may_ask(body: &[u8]) -> bool {
    let has = |word: &[u8]| body.windows(word.len()).any(|w| w.eq_ignore_ascii_case(word));
    // What asks has an id, and so has what answers.
    has(b"\"id\"") || has(b"\\u")
}

// === impl Ask ===

impl Ask {
    /// Names of what it asks with, in order.
    pub fn argument_names(&self) -> impl Iterator<Item = &str> {
        self.params.iter().flat_map(|params| params.members().iter().map(|(name, _)| &**name))
    }

    /// Each value of what it asks with, as [`Message::argument_values`](super::Message::argument_values) tells them.
    ///
    /// # Errors
    /// If there are more than [`VALUES_TOLD`](super::VALUES_TOLD).
    pub fn argument_values(&self) -> Result<Vec<String>, ToolError> {
        self.params.as_ref().map_or_else(|| Ok(Vec::new()), super::argument_values)
    }

    /// What it asks with as canonical JSON; empty if there is nothing.
    #[must_use]
    pub fn arguments_text(&self) -> String {
        self.params.as_ref().map(Value::canonical).unwrap_or_default()
    }
}

// === impl Heard ===

impl Heard {
    fn message(&mut self, value: &Value) -> Result<(), ToolError> {
        spelled(value, &["method", "params", "id", "result", "error"])?;
        let id = value.member("id");
        if let Some(method) = value.member("method") {
            // Without an id it is told, and asks for nothing.
            return if id.is_some() { self.ask(Some(method), value.member("params")) } else { Ok(()) };
        }
        self.answers.extend(id.map(Value::json));
        if let Some(result) = value.member("result") {
            spelled(result, &["resultType", REQUESTS])?;
            match result.member(REQUESTS) {
                None | Some(Value::Null) => {}
                Some(Value::Object(all)) => {
                    for (_, one) in all {
                        spelled(one, &["method", "params"])?;
                        self.ask(one.member("method"), one.member("params"))?;
                    }
                }
                Some(_) => return Err(ToolError::Message("its `inputRequests` are no object")),
            }
        }
        let error = value.member("error");
        error.map_or(Ok(()), |error| spelled(error, &["code", "data"]))?;
        if let Some(error) = error.filter(|error| error.member("code").is_some_and(is_elicitation)) {
            error.member("data").map_or(Ok(()), |data| spelled(data, &["elicitations"]))?;
            let data = error.member("data").and_then(|data| data.member("elicitations"));
            // One that says nothing asks all the same.
            match data.map(Value::items).unwrap_or_default() {
                [] => self.asks.push(Ask { method: ELICIT.to_owned(), params: data.cloned() }),
                all => {
                    let ask = |one: &Value| Ask { method: ELICIT.to_owned(), params: Some(one.clone()) };
                    self.asks.extend(all.iter().map(ask));
                }
            }
        }
        Ok(())
    }

    fn ask(&mut self, method: Option<&Value>, params: Option<&Value>) -> Result<(), ToolError> {
        let method = method.and_then(Value::text).filter(|method| is_name(method));
        let method = method.ok_or(ToolError::Name("method"))?;
        if method != PING {
            self.asks.push(Ask { method: method.to_owned(), params: params.cloned() });
        }
        Ok(())
    }
}

/// Whether a code is that of an error that asks, however the number is written: some clients take it as text, too.
fn is_elicitation(code: &Value) -> bool {
    let number = |text: &str| text.trim().parse::<f64>().ok();
    matches!(code, Value::Number(text) | Value::Text(text) if number(text) == number(ELICITATION_REQUIRED))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn asks(body: &str) -> Vec<(String, Vec<String>)> {
        let heard = heard(body.as_bytes()).expect(body);
        let told = |ask: Ask| (ask.method.clone(), ask.argument_values().expect("few"));
        heard.asks.into_iter().map(told).collect()
    }

    #[test]
    fn what_some_clients_would_take_for_a_question_is_refused_and_so_are_too_many() {
        for body in [
            r#"{"id":1,"error":{"Code":-32042}}"#,
            r#"{"id":1,"error":{"code":-32042,"Data":{"elicitations":[]}}}"#,
            r#"{"id":1,"error":{"code":-32042,"data":{"Elicitations":[]}}}"#,
        ] {
            assert!(matches!(heard(body.as_bytes()), Err(ToolError::Spelling(_))), "{body}");
        }
        let many = |n: usize| format!("[{}]", vec![r#"{"id":1,"method":"roots/list"}"#; n].join(","));
        assert_eq!(heard(many(ASKS_MAX).as_bytes()).expect("as many").asks.len(), ASKS_MAX);
        assert!(heard(many(ASKS_MAX + 1).as_bytes()).is_err());
    }

    #[test]
    fn what_a_server_asks_is_known_in_both_eras() {
        let one = |method: &str, values: &[&str]| {
            (method.to_owned(), values.iter().map(|&value| value.to_owned()).collect::<Vec<_>>())
        };
        for (body, wanted) in [
            (
                r#"{"jsonrpc":"2.0","id":3,"method":"sampling/createMessage","params":{"maxTokens":9,"messages":[{"role":"user"}]}}"#,
                vec![one("sampling/createMessage", &["/maxTokens=9", "/messages/0/role=user"])],
            ),
            (r#"{"jsonrpc":"2.0","id":"r","method":"roots/list"}"#, vec![one("roots/list", &[])]),
            (
                r#"{"jsonrpc":"2.0","id":1,"result":{"resultType":"input_required","inputRequests":{"who":{"method":"elicitation/create","params":{"message":"Who?"}},"m":{"method":"sampling/createMessage"}},"requestState":"s"}}"#,
                vec![one("elicitation/create", &["/message=Who?"]), one("sampling/createMessage", &[])],
            ),
            (
                r#"{"jsonrpc":"2.0","id":1,"error":{"code":-32042,"message":"x","data":{"elicitations":[{"mode":"url","url":"https://evil.test/"}]}}}"#,
                vec![one("elicitation/create", &["/mode=url", "/url=https://evil.test/"])],
            ),
            (
                r#"{"jsonrpc":"2.0","id":1,"error":{"code":"-32042","message":"x"}}"#,
                vec![one("elicitation/create", &[])],
            ),
            (
                r#"{"jsonrpc":"2.0","id":1,"error":{"code":-3.2042e4,"message":"x"}}"#,
                vec![one("elicitation/create", &[])],
            ),
            (
                r#"[{"jsonrpc":"2.0","id":1,"result":{}},{"jsonrpc":"2.0","id":7,"method":"elicitation/create","params":{}}]"#,
                vec![one("elicitation/create", &[])],
            ),
            // Nothing of anybody.
            (r#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#, vec![]),
            (r#"{"jsonrpc":"2.0","method":"notifications/progress","params":{"progress":1}}"#, vec![]),
            (r#"{"jsonrpc":"2.0","id":1,"result":{"resultType":"complete","content":[]}}"#, vec![]),
            (r#"{"jsonrpc":"2.0","id":1,"error":{"code":-32020,"message":"HeaderMismatch"}}"#, vec![]),
            (r#"{"jsonrpc":"2.0","id":1,"result":{"method":"sampling/createMessage"}}"#, vec![]),
        ] {
            assert_eq!(asks(body), wanted, "{body}");
        }
        let all = r#"[{"id":1,"result":{}},{"id":"b","error":{}},{"id":3,"method":"ping"}]"#;
        assert_eq!(heard(all.as_bytes()).expect("read").answers, ["1", "\"b\""]);
    }

    #[test]
    fn what_clients_may_read_in_two_ways_is_refused() {
        for body in [
            r#"{"id":1,"Method":"sampling/createMessage"}"#,
            r#"{"id":1,"method":"ping","method":"roots/list"}"#,
            r#"{"id":1,"method":7}"#,
            r#"{"id":1,"result":{"inputrequests":{"a":{"method":"roots/list"}}}}"#,
            r#"{"id":1,"result":{"inputRequests":[{"method":"roots/list"}]}}"#,
            r#"{"id":1,"result":{"inputRequests":{"a":{"Method":"roots/list"}}}}"#,
            r#"{"id":1,"result":{"inputRequests":{"a":{}}}}"#,
            r#"{"id":1,"#,
        ] {
            heard(body.as_bytes()).expect_err(body);
        }
    }

    proptest! {
        #[test]
        fn no_bytes_break_it(text in proptest::collection::vec(
            proptest::sample::select(b"{}[]\",:\\ idmetho1".to_vec()), 0..60,
        )) {
            let _ = heard(&text);
        }
    }
}
