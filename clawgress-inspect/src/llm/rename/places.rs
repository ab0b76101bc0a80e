//! Where calls and answers of all dialects have names of tools. Must never take for one what is a tool's argument, what it
//! answered, or a text.

use crate::llm::answer::places::{is_call, is_calls, is_packed, is_providers_call, is_turn, is_wrap};
use crate::llm::call::is_manner;
use crate::splice::{self, Member, Span};
use crate::tool::Value;

/// Objects and arrays within one another that may lead to a name: no dialect has more than ten.
const DEPTH_MAX: usize = 24;

/// A name of a tool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub at: Span,
    pub name: String,
    /// Whether it is the provider's: of a tool that it runs itself, or knows by that name alone.
    pub is_providers: bool,
}

/// Which document it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Of {
    /// A call.
    Call,
    /// An answer, or a part of one: what reads it looks for tools wherever any dialect may have them.
    Answer,
}

/// A place in a call, or in an answer; an array is where its items are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// A call, an answer, or an event; or what wraps one.
    Root,
    Message,
    /// Of the content of a message.
    Part,
    /// What a tool is asked for, or answered.
    Call,
    /// A tool that is offered.
    Tool,
    /// Which is to be asked.
    Choice,
    ToolConfig,
    /// One of several answers.
    Candidate,
    /// What Cohere says of an answer of a tool's.
    Answered,
    /// What a search among tools found.
    References,
    Name,
    /// The name of a tool that is the provider's.
    ProvidersName,
}

use Place as P;

/// All names of tools in a document; `None` if it is none, or where they are can't be known.
pub(super) fn names(body: &[u8], of: Of) -> Option<Vec<Found>> {
    names_and_packed(body, of).map(|(found, _)| found)
}

/// The same, and the texts in which a part of an answer may be packed: wherever what reads it would unpack one.
pub(super) fn names_and_packed(body: &[u8], of: Of) -> Option<(Vec<Found>, Vec<Span>)> {
    let mut walk = Walk { text: body, of, found: Vec::new(), packed: Vec::new() };
    walk.value(&splice::root(body)?, P::Root, 0)?;
    Some((walk.found, walk.packed))
}

/// What goes through a document.
struct Walk<'a> {
    text: &'a [u8],
    of: Of,
    found: Vec<Found>,
    packed: Vec<Span>,
}

impl Walk<'_> {
    fn value(&mut self, at: &Span, place: Place, depth: usize) -> Option<()> {
        if depth > DEPTH_MAX {
            return None;
        }
        let text = self.text;
        match text.get(at.start)? {
            b'[' => {
                for item in splice::items(text, at)? {
                    self.value(&item, place, depth + 1)?;
                }
            }
            b'{' if !matches!(place, P::Name | P::ProvidersName) => {
                let members = splice::members(text, at)?;
                let said = Said::of(text, &members, self.of);
                for member in &members {
                    let may_pack = self.of == Of::Answer
                        && matches!(place, P::Root | P::Message | P::Candidate)
                        && is_packed(&member.name);
                    if may_pack && text.get(member.value.start) == Some(&b'"') {
                        self.packed.push(member.value.clone());
                    }
                    if let Some(place) = said.place(place, &member.name) {
                        self.value(&member.value, place, depth + 1)?;
                    }
                }
            }
            // A tool, or a choice, by its name alone.
            b'"' if matches!(place, P::Name | P::ProvidersName | P::Tool | P::Choice) => {
                let name = Value::parse(text.get(at.clone())?).ok()?.text()?.to_owned();
                // How tools are asked for, is no name of one.
                if place != P::Choice || !is_manner(&name) {
                    let is_providers = place == P::ProvidersName;
                    self.found.push(Found { at: at.clone(), name, is_providers });
                }
            }
            _ => {}
        }
        Some(())
    }
}

/// Whether a tool of this type is one that its provider runs itself, or has a name of its own for: who calls may not choose it.
fn is_providers_tool(kind: &str) -> bool {
    !matches!(kind, "function" | "custom")
}

/// An object, by what it says of itself: all of it is looked at once, however often it says anything.
#[derive(Clone, Copy, Debug)]
struct Said {
    of: Of,
    /// Whether it is a call of a tool by its type.
    is_call: bool,
    /// Whether it is by a tool.
    answers: bool,
    is_result: bool,
    is_reference: bool,
    is_event: bool,
    is_providers: bool,
    /// Of [`OBJECTS`], those that are something else at least once.
    scalars: u16,
}

/// What counts only where it is an object or an array.
const OBJECTS: [&str; 10] = [
    "function",
    "custom",
    "toolSpec",
    "functionDeclarations",
    "function_declarations",
    "tools",
    "tool",
    "allowed_tools",
    "functionCallingConfig",
    "function_calling_config",
];

impl Said {
    fn of(text: &[u8], members: &[Member], of: Of) -> Said {
        #[cfg(test)]
        crate::steps::add(members.len());
        let mut said = Said {
            of,
            is_call: false,
            answers: false,
            is_result: false,
            is_reference: false,
            is_event: false,
            is_providers: false,
            scalars: 0,
        };
        for Member { name, value, .. } in members {
            match name.as_str() {
                "type" | "role" => {
                    let value = text.get(value.clone()).and_then(|value| Value::parse(value).ok());
                    if let Some(is) = value.as_ref().and_then(Value::text) {
                        said.is(name, is);
                    }
                }
                name => {
                    let is_object = matches!(text.get(value.start), Some(b'{' | b'['));
                    let known = OBJECTS.iter().position(|object| *object == name);
                    said.scalars |= known.filter(|_| !is_object).map_or(0, |at| 1 << at);
                }
            }
        }
        said
    }

    fn is(&mut self, name: &str, is: &str) {
        if name == "role" {
            self.answers |= matches!(is, "tool" | "function");
            return;
        }
        self.is_call |= is_call(is) && !is_providers_call(is);
        self.is_result |= is.starts_with("tool_") && is.ends_with("result");
        self.is_reference |= is == "tool_reference";
        self.is_event |=
            is.starts_with("function.call") || is.starts_with("response.function_call_arguments");
        self.is_providers |= is_providers_tool(is);
    }

    fn place(&self, outer: Place, name: &str) -> Option<Place> {
        let known = self.known(outer, name);
        if known.is_some() || self.of == Of::Call {
            return known;
        }
        // Of an answer, wherever what reads it would find one.
        match outer {
            P::Root | P::Message | P::Part | P::Candidate | P::References => match name {
                _ if is_turn(name) => Some(P::Part),
                _ if is_calls(name) => Some(P::Call),
                // What wraps a document may itself be a message, or a part of one.
                _ if outer != P::References && is_wrap(name) => Some(P::Root),
                "results" if outer != P::References => Some(P::Part),
                "name" => self.is_call.then_some(P::Name),
                _ => None,
            },
            _ => None,
        }
    }

    /// The place of a member, as the dialects have it.
    fn known(&self, outer: Place, name: &str) -> Option<Place> {
        match outer {
            P::Root => self.of_root(name),
            P::Message => match name {
                "tool_calls" | "function_call" | "functionCall" => Some(P::Call),
                "content" | "parts" => Some(P::Part),
                "message" => Some(P::Message),
                "tool_results" => Some(P::Answered),
                // Of a tool that answers, and of items of the Responses API.
                "name" | "tool_name" => (self.is_call || self.answers).then_some(P::Name),
                _ => None,
            },
            P::Part => match name {
                "name" => self.is_call.then_some(P::Name),
                "toolUse" | "functionCall" | "function_call" | "functionResponse" | "function_response" => {
                    Some(P::Call)
                }
                "content" | "tool_references" => self.is_result.then_some(P::References),
                _ => None,
            },
            P::Call => match name {
                "name" => Some(P::Name),
                "function" | "custom" => Some(P::Call),
                _ => None,
            },
            P::Tool => match name {
                "name" if self.is_providers => Some(P::ProvidersName),
                "name" => Some(P::Name),
                "function"
                | "custom"
                | "toolSpec"
                | "functionDeclarations"
                | "function_declarations"
                | "tools" => self.is_object(name).then_some(P::Tool),
                _ => None,
            },
            P::Choice => match name {
                "name" | "allowedFunctionNames" | "allowed_function_names" => Some(P::Name),
                "function"
                | "tool"
                | "custom"
                | "allowed_tools"
                | "functionCallingConfig"
                | "function_calling_config" => self.is_object(name).then_some(P::Choice),
                "tools" => Some(P::Tool),
                _ => None,
            },
            P::ToolConfig => match name {
                "tools" => Some(P::Tool),
                "toolChoice" | "functionCallingConfig" | "function_calling_config" => Some(P::Choice),
                _ => None,
            },
            P::Candidate => matches!(name, "message" | "delta" | "content").then_some(P::Message),
            P::Answered => (name == "call").then_some(P::Call),
            P::References => match name {
                "content" | "tool_references" => Some(P::References),
                "tool_name" => self.is_reference.then_some(P::Name),
                _ => None,
            },
            P::Name | P::ProvidersName => None,
        }
    }

    /// Whether the member of this name is an object or an array, each of them.
    fn is_object(&self, name: &str) -> bool {
        let known = OBJECTS.iter().position(|object| *object == name);
        known.is_some_and(|at| self.scalars & (1 << at) == 0)
    }

    fn of_root(&self, name: &str) -> Option<Place> {
        Some(match name {
            "tools" | "functions" => P::Tool,
            "tool_choice" => P::Choice,
            // Of a call a choice, of an answer what is asked for.
            "function_call" => P::Choice,
            "toolConfig" | "tool_config" => P::ToolConfig,
            "messages" | "contents" | "chat_history" | "input" | "message" | "output" | "outputs"
            | "item" => P::Message,
            "choices" | "candidates" => P::Candidate,
            "content" | "content_block" | "start" => P::Part,
            "tool_calls" | "tool_call_delta" | "toolUse" => P::Call,
            "tool_results" => P::Answered,
            // Of Cohere's events the message is in there.
            "delta" => P::Candidate,
            "response"
            | "request"
            | "generateContentRequest"
            | "additionalModelRequestFields"
            | "contentBlockStart" => P::Root,
            "name" => return self.is_event.then_some(P::Name),
            _ => return None,
        })
    }
}
