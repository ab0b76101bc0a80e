//! Where each dialect has its calls, whole and in parts. Must never pass over one that a client of the dialect would take.

use super::super::places::{is_call, is_packed, own_tool};
use super::{Calls, CallsError, Key, Order, Part};
use crate::tool::Value;

/// Members of an item of the Responses API that are none of what is asked for.
const OF_ITEM: [&str; 7] = ["id", "call_id", "type", "status", "name", "namespace", "output"];
/// How deep documents wrap others.
const WRAPPED_MAX: u8 = 2;

// === impl Calls ===

impl Calls {
    /// A document, or an array of them (of Gemini, and of servers that stream nothing), in all dialects at once: they differ in
    /// their names. Others may be packed in it, or not.
    pub(super) fn read(&mut self, value: &Value, may_pack: bool) {
        match value {
            Value::Array(all) => all.iter().for_each(|value| self.wrapped(value, (0, may_pack))),
            value => self.wrapped(value, (0, may_pack)),
        }
    }

    fn wrapped(&mut self, root: &Value, (depth, may_pack): (u8, bool)) {
        if may_pack {
            let packed = root.members().iter().filter(|(name, _)| is_packed(name));
            packed.filter_map(|(_, value)| value.text()).for_each(|text| self.packed(text));
        }
        self.choices(root);
        self.blocks(root);
        self.candidates(root);
        self.items(root);
        self.steps(root);
        self.cohere(root);
        for name in ["message", "output"] {
            // Of Ollama and Cohere; of Converse, whose message is in its output.
            let Some(message) = root.member(name) else { continue };
            let message =
                if name == "output" { message.member("message").unwrap_or(message) } else { message };
            self.whole_calls(message.member("tool_calls"));
            self.content(message.member("content"));
        }
        self.content(root.member("content"));
        self.waiting(root);
        if depth < WRAPPED_MAX {
            let result = root.member("result").and_then(|result| result.member("message"));
            let inner = [root.member("response"), root.member("body"), result];
            for inner in inner.into_iter().flatten().filter(|inner| !inner.members().is_empty()) {
                self.wrapped(inner, (depth + 1, may_pack));
            }
            // What is listed: items of a conversation, or answers that were kept.
            for listed in root.member("data").map(Value::items).unwrap_or_default() {
                self.item(listed);
                self.wrapped(listed, (depth + 1, may_pack));
            }
        }
        if is_end(root) {
            self.close(|_| true);
        }
    }

    /// Of OpenAI's chat, and of all who speak it.
    fn choices(&mut self, root: &Value) {
        let choices = root.member("choices").map(Value::items).unwrap_or_default();
        for (at, choice) in choices.iter().enumerate() {
            let number = number(choice, "index").unwrap_or(at as u64);
            for said in [choice.member("delta"), choice.member("message")].into_iter().flatten() {
                let calls = said.member("tool_calls").map(Value::items).unwrap_or_default();
                if !calls.is_empty() || said.member("function_call").is_some() {
                    self.numbered(choice, "index");
                }
                calls.iter().for_each(|call| self.choice_call(number, call));
                if let Some(call @ Value::Object(_)) = said.member("function_call") {
                    self.part(Key::Function(number), function(call, None), false);
                }
                self.content(said.member("content"));
            }
            let reason = choice.member("finish_reason").and_then(Value::text);
            if reason.is_some_and(|reason| !reason.is_empty()) || choice.member("message").is_some() {
                self.close(|key| matches!(key, Key::Choice(of, _) | Key::Function(of) if of == number));
            }
        }
    }

    fn choice_call(&mut self, choice: u64, call: &Value) {
        let id = call.member("id").and_then(Value::text);
        // A function, or a tool that takes text.
        let (inner, is_text) = match (call.member("function"), call.member("custom")) {
            (Some(function), _) => (function, false),
            (None, Some(custom)) => (custom, true),
            (None, None) => (call, false),
        };
        let part = Part { is_text, ..function(inner, id) };
        let of_choice = |key: Key| matches!(key, Key::Choice(of, _) if of == choice);
        let place = self.numbered(call, "index").or_else(|| {
            // Who numbers none has an id for each, or a name at its beginning.
            let known = self
                .open
                .iter()
                .rev()
                .find(|open| of_choice(open.key) && (id.is_some() && open.id.as_deref() == id));
            let last = || self.open.iter().rev().find(|open| of_choice(open.key));
            let is_rest = id.is_none_or(str::is_empty) && part.name.is_none_or(str::is_empty);
            let place = known.or_else(|| last().filter(|_| is_rest)).map(|open| open.key);
            place.and_then(|key| if let Key::Choice(_, place) = key { Some(place) } else { None })
        });
        let place = place.unwrap_or_else(|| {
            let all = self.open.iter().filter(|open| of_choice(open.key)).count() as u64;
            (1 << 32) + all
        });
        self.part(Key::Choice(choice, place), part, false);
    }

    /// Of Anthropic and of Converse.
    fn blocks(&mut self, root: &Value) {
        if kind(root) == Some("message_start") {
            self.blocks = Order::default();
        }
        if let Some(block) = root.member("content_block") {
            let place = self.blocks.begins(number(root, "index"));
            if is_block_call(block) {
                self.require(self.blocks.is_kept);
                self.part(Key::Block(place), function(block, None), true);
            }
        }
        let delta = root.member("delta");
        if let Some(json) = delta.and_then(|delta| delta.member("partial_json")) {
            let key = self.numbered(root, "index").map(Key::Block);
            self.require_newest(key);
            let part = Part { arguments: Some(json), ..Part::default() };
            self.part(key.unwrap_or(Key::Block(0)), part, false);
        }
        if kind(root) == Some("content_block_stop")
            && let Some(n) = number(root, "index")
        {
            self.close(|key| key == Key::Block(n));
        }
        let Some(n) = number(root, "contentBlockIndex") else {
            let said = [root.member("start"), delta].into_iter().flatten();
            self.require(said.into_iter().all(|said| said.member("toolUse").is_none()));
            return;
        };
        let start = root.member("start");
        if let Some(call) = start.and_then(|start| start.member("toolUse")) {
            self.part(Key::Block(n), function(call, None), true);
        } else if let Some(call) = delta.and_then(|delta| delta.member("toolUse")) {
            self.require_newest(Some(Key::Block(n)));
            self.part(Key::Block(n), function(call, None), false);
        } else if start.is_none() && delta.is_none() {
            self.close(|key| key == Key::Block(n));
        }
    }

    /// Blocks that are whole.
    fn content(&mut self, content: Option<&Value>) {
        for block in content.map(Value::items).unwrap_or_default() {
            let call = block.member("toolUse").unwrap_or(block);
            if block.member("toolUse").is_some() || is_block_call(block) {
                self.whole_part(function(call, None));
            }
        }
    }

    /// Of Gemini, whose calls are whole unless they say otherwise.
    fn candidates(&mut self, root: &Value) {
        for candidate in root.member("candidates").map(Value::items).unwrap_or_default() {
            let parts = candidate.member("content").and_then(|content| content.member("parts"));
            for part in parts.map(Value::items).unwrap_or_default() {
                let Some(call) = part.member("functionCall").or_else(|| part.member("function_call")) else {
                    continue;
                };
                if call.member("partialArgs").is_some()
                    || call.member("willContinue") == Some(&Value::Bool(true))
                {
                    self.fail(CallsError::Form);
                }
                self.whole_part(function(call, None));
            }
        }
    }

    /// Of the Responses API, and of Mistral's conversations.
    fn items(&mut self, root: &Value) {
        for name in ["output", "outputs"] {
            root.member(name).map(Value::items).unwrap_or_default().iter().for_each(|item| self.item(item));
        }
        let (Some(kind), place) = (kind(root), number(root, "output_index").unwrap_or_default()) else {
            return;
        };
        let key = Key::Item(place);
        match kind {
            "response.created" => self.items = Order::default(),
            "response.output_item.added" => {
                let place = self.items.begins(number(root, "output_index"));
                let item = root.member("item").filter(|item| item_name(item).is_some());
                if let Some(item) = item {
                    self.require(self.items.is_kept);
                    let key = Key::Item(place);
                    let (name, is_text) = (item_name(item), is_text_item(item));
                    self.part(key, Part { name, is_text, ..Part::default() }, true);
                }
            }
            "response.output_item.done" => {
                if let Some(item) = root.member("item") {
                    self.item(item);
                }
                // What came in parts besides, if it is anything else.
                let is_said =
                    |key: Key| self.open.iter().any(|open| open.key == key && !open.arguments.is_empty());
                if is_said(key) {
                    self.close(|known| known == key);
                } else {
                    self.open.retain(|open| open.key != key);
                }
            }
            "function.call" | "function.call.delta" => {
                self.part(key, function(root, root.member("tool_call_id").and_then(Value::text)), false);
            }
            kind => {
                let Some(rest) = kind.strip_prefix("response.") else { return };
                let is_code = rest.starts_with("code_interpreter_call_code.");
                let is_input = rest.starts_with("custom_tool_call_input.");
                let is_arguments = rest.contains("_call_arguments.") || rest.contains("_call.arguments.");
                if !is_code && !is_input && !is_arguments {
                    return;
                }
                self.numbered(root, "output_index");
                if rest.ends_with(".delta") {
                    let is_text = is_code || is_input;
                    let arguments = root.member("delta").filter(|_| !is_code);
                    self.part(key, Part { arguments, is_text, ..Part::default() }, false);
                } else if let Some(full) = root.member("arguments").or_else(|| root.member("input")) {
                    self.again(key, full, is_input);
                }
            }
        }
    }

    /// Of Gemini's interactions.
    fn steps(&mut self, root: &Value) {
        for holder in [Some(root), root.member("interaction")].into_iter().flatten() {
            let steps = holder.member("steps").map(Value::items).unwrap_or_default();
            steps.iter().for_each(|step| self.item(step));
        }
        match kind(root) {
            Some("step.start") => {
                let place = self.numbered(root, "index");
                let Some(step) = root.member("step").filter(|step| item_name(step).is_some()) else { return };
                self.require(place.is_some());
                let part = Part { name: item_name(step), ..function(step, None) };
                self.part(Key::Item(place.unwrap_or_default()), part, true);
            }
            Some("step.delta") => {
                let Some(arguments) = root.member("delta").and_then(|delta| delta.member("arguments")) else {
                    return;
                };
                let key = self.numbered(root, "index").map(Key::Item);
                self.require_newest(key);
                let part = Part { arguments: Some(arguments), ..Part::default() };
                self.part(key.unwrap_or(Key::Item(0)), part, false);
            }
            Some("step.stop") => {
                if let Some(n) = number(root, "index") {
                    self.close(|key| key == Key::Item(n));
                }
            }
            _ => {}
        }
    }

    /// Of what waits for its client's tools: a run of OpenAI's, an agent of Bedrock's.
    fn waiting(&mut self, root: &Value) {
        let action = root.member("required_action").and_then(|action| action.member("submit_tool_outputs"));
        self.whole_calls(action.and_then(|action| action.member("tool_calls")));
        let asked = root.member("returnControl").and_then(|control| control.member("invocationInputs"));
        for input in asked.map(Value::items).unwrap_or_default() {
            for (kind, name) in [("functionInvocationInput", "function"), ("apiInvocationInput", "apiPath")] {
                let Some(call) = input.member(kind) else { continue };
                let name = call.member(name).and_then(Value::text).filter(|name| !name.is_empty());
                match (name, returned_arguments(call)) {
                    (Some(name), Some(arguments)) => self.whole_call(name, Some(&arguments), false),
                    _ => self.fail(CallsError::Form),
                }
            }
        }
    }

    /// Arguments that are said again, all of them: of whom looks at these.
    fn again(&mut self, key: Key, full: &Value, is_text: bool) {
        let names = self.open.iter().find(|open| open.key == key).map(|open| open.name.readings());
        for name in names.unwrap_or_default() {
            self.whole_call(&name, Some(full), is_text);
        }
    }

    /// An item that is whole.
    fn item(&mut self, item: &Value) {
        let Some(name) = item_name(item) else { return };
        let text = item.member("input").filter(|_| is_text_item(item));
        match text.or_else(|| item.member("arguments")) {
            Some(arguments) => self.whole_call(name, Some(arguments), text.is_some()),
            None => {
                // Of a tool of the server's own, what it is asked for.
                let is_said = |(name, _): &&(String, Value)| !OF_ITEM.contains(&name.as_str());
                let said = item.members().iter().filter(is_said).cloned().collect();
                self.whole_call(name, Some(&Value::Object(said)), false);
            }
        }
    }

    /// Of Cohere, both versions.
    fn cohere(&mut self, root: &Value) {
        let message = root.member("delta").and_then(|delta| delta.member("message"));
        let key = Key::Cohere(number(root, "index").unwrap_or_default());
        if let Some(calls) = message.and_then(|message| message.member("tool_calls")) {
            self.numbered(root, "index");
            let begins = kind(root) == Some("tool-call-start");
            if kind(root) == Some("tool-call-delta") {
                self.require_newest(Some(key));
            }
            let all = if calls.items().is_empty() { std::slice::from_ref(calls) } else { calls.items() };
            for call in all {
                let inner = call.member("function").unwrap_or(call);
                self.part(key, function(inner, call.member("id").and_then(Value::text)), begins);
            }
        }
        if kind(root) == Some("tool-call-end") {
            self.close(|known| known == key);
        }
        if let Some(delta) = root.member("tool_call_delta") {
            let key = Key::Cohere(self.numbered(delta, "index").unwrap_or_default());
            self.part(key, function(delta, None), false);
        }
        // Its first version says again, whole, what came in parts.
        if root.member("tool_calls").is_some() {
            self.whole_calls(root.member("tool_calls"));
            self.close(|key| matches!(key, Key::Cohere(_)));
        }
    }

    /// The number a provider gives. That of a call has to be written in one way: to some clients `0.0` and `"0"` are 0.
    fn numbered(&mut self, value: &Value, name: &str) -> Option<u64> {
        let number = number(value, name);
        self.require(number.is_some() || matches!(value.member(name), None | Some(Value::Null)));
        number
    }

    fn require(&mut self, holds: bool) {
        if !holds {
            self.fail(CallsError::Form);
        }
    }

    /// Calls of these dialects come one after the other: clients that go by the order, and those that go by numbers, have to
    /// add to the same.
    fn require_newest(&mut self, key: Option<Key>) {
        self.require(key.is_some() && self.open.last().map(|open| open.key) == key);
    }

    /// A list of calls, each with all that belongs to it.
    fn whole_calls(&mut self, calls: Option<&Value>) {
        for call in calls.map(Value::items).unwrap_or_default() {
            let inner = call.member("function").unwrap_or(call);
            self.whole_part(function(inner, None));
        }
    }

    fn whole_part(&mut self, part: Part<'_>) {
        match part.name.filter(|name| !name.is_empty()) {
            Some(name) => self.whole_call(name, part.arguments, part.is_text),
            None => self.fail(CallsError::Form),
        }
    }
}

/// What an object says of a call.
fn function<'a>(call: &'a Value, id: Option<&'a str>) -> Part<'a> {
    let arguments =
        ["arguments", "args", "input", "parameters"].into_iter().find_map(|name| call.member(name));
    Part { id, name: call.member("name").and_then(Value::text), arguments, is_text: false }
}

/// What an agent of Bedrock's asks a tool for: its parameters by their names, and of an API how it is asked; `None` if two of
/// them have one name.
fn returned_arguments(call: &Value) -> Option<Value> {
    let parameters = call.member("parameters").map(Value::items).unwrap_or_default();
    let by_name = parameters.iter().filter_map(|parameter| {
        Some((parameter.member("name")?.text()?.to_owned(), parameter.member("value")?.clone()))
    });
    let asked = |(name, _): &&(String, Value)| matches!(name.as_str(), "httpMethod" | "requestBody");
    let mut all: Vec<_> = by_name.chain(call.members().iter().filter(asked).cloned()).collect();
    all.sort_by(|(one, _), (other, _)| one.cmp(other));
    let is_clear = all.windows(2).all(|two| matches!(two, [(one, _), (other, _)] if one != other));
    is_clear.then_some(Value::Object(all))
}

fn kind(value: &Value) -> Option<&str> {
    value.member("type").or_else(|| value.member("event_type")).and_then(Value::text)
}

fn number(value: &Value, name: &str) -> Option<u64> {
    let Some(Value::Number(text)) = value.member(name) else { return None };
    text.parse().ok()
}

fn is_block_call(block: &Value) -> bool {
    kind(block).is_some_and(|kind| kind.ends_with("tool_use") && is_call(kind))
}

/// The tool that an item asks for: one that is named, or one of the server's own.
fn item_name(item: &Value) -> Option<&str> {
    let kind = kind(item)?;
    match item.member("name").and_then(Value::text).filter(|name| !name.is_empty()) {
        Some(name) if is_call(kind) => Some(name),
        Some(_) => None,
        None => own_tool(kind),
    }
}

fn is_text_item(item: &Value) -> bool {
    kind(item) == Some("custom_tool_call")
}

/// Whether nothing more comes of the answer's calls.
fn is_end(root: &Value) -> bool {
    let is_kind = kind(root).is_some_and(|kind| {
        super::super::document::is_over(kind)
            || matches!(kind, "tool-calls-generation" | "conversation.response.done")
    });
    is_kind || root.member("done") == Some(&Value::Bool(true)) || root.member("stopReason").is_some()
}
