//! Calls of models, changed where they lie: parameters that are set, limits that are lowered, tools that are not offered or are
//! called otherwise, and a prompt of the system's that comes first. All other bytes stay as they are.
//!
//! INVARIANT: what was changed is read again as a call, and what was wanted holds of it, or it is refused: a dialect that has
//! its tools or limits elsewhere is never taken for changed.

use super::rename::{self, Renamed};
use super::{Call, CapNames, Surface};
use crate::letters::fold;
use crate::payload::{Claims, Inspector, Limits};
use crate::splice::{self, Edits, Span, quoted};

/// Names of limits in the outer object that servers may take before, or instead of, the one that a surface has.
const OTHER_LIMITS: [&str; 5] =
    ["max_completion_tokens", "max_tokens", "max_output_tokens", "max_tokens_to_sample", "n_predict"];

/// What is to be changed.
#[derive(Clone, Copy)]
pub struct Wanted<'a> {
    /// Names of parameters, and their values as JSON.
    pub params: &'a [(&'a str, &'a str)],
    /// Most tokens that may be answered.
    pub tokens_max: Option<u64>,
    /// Which names of a limit whoever is asked looks at.
    pub cap_names: CapNames,
    /// Whether a tool of this name is not offered.
    pub takes_tool: &'a dyn Fn(&str) -> bool,
    /// Whether any is not.
    pub takes_tools: bool,
    /// Names of tools, each once, and what they are called to the model.
    pub renames: &'a [(&'a str, &'a str)],
    /// What comes before all other instructions.
    pub prompt: Option<&'a str>,
}

impl std::fmt::Debug for Wanted<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Wanted { params, tokens_max, takes_tools, renames, .. } = self;
        let mut debug = f.debug_struct("Wanted");
        debug.field("params", params).field("tokens_max", tokens_max).field("takes_tools", takes_tools);
        debug.field("renames", renames);
        debug.finish_non_exhaustive()
    }
}

/// A call that was changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changed {
    /// The body.
    pub body: Vec<u8>,
    /// What was changed, in words; nothing if it was so before.
    pub told: Vec<String>,
    /// What its tools are called, if that is changed: the answer has to be changed back.
    pub renamed: Option<Renamed>,
}

/// Why a call can't be changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    /// It has no such place.
    #[error("a call of `{0}` has no place for {1}")]
    NoPlace(&'static str, &'static str),
    /// It is not what was wanted when it is read again.
    #[error("the call can't be changed so that {0} holds")]
    NotSo(&'static str),
}

/// Changes the call that `body` is.
///
/// # Errors
/// If it can't be, so that all that is wanted holds.
pub fn changed(
    body: &[u8],
    surface: Surface,
    call: &Call,
    wanted: &Wanted<'_>,
) -> Result<Changed, ChangeError> {
    let root = splice::root(body).ok_or(ChangeError::NotSo("it is a document"))?;
    let mut change = Change { body, root, surface, edits: Edits::default(), told: Vec::new() };
    for (name, value) in wanted.params {
        change.param(name, value)?;
    }
    if let Some(most) = wanted.tokens_max {
        let names = wanted.cap_names;
        let is_so = call.tokens_max_of(surface, names).is_some_and(|now| now <= most);
        if !is_so {
            if surface == Surface::Completions && names == CapNames::NewTokens && call.new_tokens().of_both()
            {
                return Err(ChangeError::NotSo("that limit of tokens"));
            }
            change.tokens(most, call.caps.answers(), names)?;
        }
    }
    if wanted.takes_tools && call.tools.iter().any(|name| (wanted.takes_tool)(name)) {
        change.tools(wanted.takes_tool)?;
    }
    if let Some(prompt) = wanted.prompt {
        change.prompt(prompt)?;
    }
    let Change { edits, mut told, .. } = change;
    let (body, read) = if told.is_empty() {
        (body.to_vec(), None)
    } else {
        let body = edits.apply(body);
        let read = holds(&body, surface, wanted)?;
        (body, Some(read))
    };
    let call = read.as_ref().unwrap_or(call);
    let renamed = if wanted.renames.is_empty() { None } else { rename::renamed(&body, wanted.renames)? };
    let is_so = |now: &Call| rename::is_so(call, now, wanted.renames);
    let Some((other, renamed)) = renamed else {
        // What it offers it may name where no dialect does.
        return if is_so(call) { Ok(Changed { body, told, renamed: None }) } else { Err(NAMES) };
    };
    if !is_so(&read_again(&other, surface)?) {
        return Err(NAMES);
    }
    told.extend(renamed.names().map(|(own, other)| format!("the tool `{own}` is called `{other}`")));
    Ok(Changed { body: other, told, renamed: Some(renamed) })
}

/// Why names are not changed.
const NAMES: ChangeError = ChangeError::NotSo("those names of tools");

/// Reads it again.
fn read_again(body: &[u8], surface: Surface) -> Result<Call, ChangeError> {
    let mut inspector =
        Inspector::of_call(Claims::new(&[b"application/json"], &[]), Limits::default(), Some(surface));
    let read = inspector.push(body).and_then(|()| inspector.finish());
    let call = inspector.call().filter(|_| read.is_ok()).map(super::Request::call);
    call.cloned().ok_or(ChangeError::NotSo("it is a call"))
}

/// The call that `body` is, where its own `stream_options` ask for usage, too; `None` if they can't be made to.
#[must_use]
pub fn asking_usage(body: &[u8], surface: Surface) -> Option<Vec<u8>> {
    const OPTIONS: &str = "stream_options";
    const ASKED: &str = "include_usage";
    let at = splice::find(body, &[OPTIONS])?;
    let mut edits = Edits::default();
    match splice::find(body, &[OPTIONS, ASKED]) {
        Some(said) => edits.replace(said, "true"),
        None if body.get(at.clone()) == Some(b"null") => edits.replace(at, format!("{{\"{ASKED}\":true}}")),
        None if body.get(at.start) == Some(&b'{') => edits.add(body, &at, ASKED, b"true"),
        None => return None,
    }
    let body = edits.apply(body);
    let is_so = |call: Call| call.include_usage == Some(true);
    read_again(&body, surface).is_ok_and(is_so).then_some(body)
}

/// Whether all else that was wanted is so: the call as it is read again.
fn holds(body: &[u8], surface: Surface, wanted: &Wanted<'_>) -> Result<Call, ChangeError> {
    let call = read_again(body, surface)?;
    if call.tools.iter().any(|name| (wanted.takes_tool)(name)) {
        return Err(ChangeError::NotSo("those tools are not offered"));
    }
    let most = call.tokens_max_of(surface, wanted.cap_names).unwrap_or(u64::MAX);
    if wanted.tokens_max.is_some_and(|wanted| most > wanted) {
        return Err(ChangeError::NotSo("that limit of tokens"));
    }
    let is = |(name, value): &(&str, &str)| {
        param(body, name).is_ok_and(|at| at.and_then(|at| body.get(at)) == Some(value.as_bytes()))
    };
    if wanted.params.iter().all(is) { Ok(call) } else { Err(ChangeError::NotSo("those parameters")) }
}

/// The value of a parameter: of two by that name, or by one that differs in letters alone, servers take one or the other.
fn param(body: &[u8], name: &str) -> Result<Option<Span>, ChangeError> {
    let root = splice::root(body).and_then(|root| splice::members(body, &root));
    let (wanted, mut found) = (fold(name), None);
    for member in root.unwrap_or_default().into_iter().filter(|member| fold(&member.name) == wanted) {
        if found.is_some() || member.name != name {
            return Err(ChangeError::NotSo("those parameters"));
        }
        found = Some(member.value);
    }
    Ok(found)
}

/// A path of names.
type Names = &'static [&'static str];

/// Where tools are, and what goes with them where none is left.
const LISTS: [(Names, &[Names]); 3] = [
    (&["tools"], &[&["tools"], &["tool_choice"], &["parallel_tool_calls"]]),
    (&["functions"], &[&["functions"], &["function_call"]]),
    (&["toolConfig", "tools"], &[&["toolConfig"]]),
];
/// What chooses one of them.
const CHOICES: [Names; 3] = [&["tool_choice"], &["function_call"], &["toolConfig", "toolChoice"]];

struct Change<'a> {
    body: &'a [u8],
    root: Span,
    surface: Surface,
    edits: Edits,
    told: Vec<String>,
}

impl Change<'_> {
    fn text(&self, at: &Span) -> &str {
        self.body.get(at.clone()).and_then(|text| std::str::from_utf8(text).ok()).unwrap_or_default()
    }

    fn is_object(&self, at: &Span) -> bool {
        self.body.get(at.start) == Some(&b'{')
    }

    fn is_array(&self, at: &Span) -> bool {
        self.body.get(at.start) == Some(&b'[')
    }

    fn find(&self, path: &[&str]) -> Option<Span> {
        splice::find(self.body, path)
    }

    fn no_place(&self, what: &'static str) -> ChangeError {
        ChangeError::NoPlace(self.surface.name(), what)
    }

    fn param(&mut self, name: &str, value: &str) -> Result<(), ChangeError> {
        if !self.is_object(&self.root) {
            return Err(self.no_place("parameters"));
        }
        match param(self.body, name)? {
            Some(at) if self.text(&at) == value => return Ok(()),
            Some(at) => self.edits.replace(at, value),
            None => self.edits.add(self.body, &self.root.clone(), name, value.as_bytes()),
        }
        self.told.push(format!("`{name}` is {value}"));
        Ok(())
    }

    /// Has it limit its answers to `most` tokens together: of several, each has its part.
    fn tokens(&mut self, together: u64, answers: u64, names: CapNames) -> Result<(), ChangeError> {
        let most = together.checked_div(answers).filter(|most| *most > 0 || together == 0);
        let most = most.ok_or(ChangeError::NotSo("that limit of tokens"))?;
        let places: &[&[&str]] = match self.surface {
            Surface::ChatCompletions if names == CapNames::Newer => {
                &[&["max_completion_tokens"], &["max_tokens"]]
            }
            Surface::ChatCompletions => &[&["max_tokens"]],
            Surface::Responses => &[&["max_output_tokens"]],
            Surface::Completions if names == CapNames::ToSample => &[&["max_tokens_to_sample"]],
            Surface::Completions if names == CapNames::Predict => &[&["n_predict"]],
            Surface::Completions if names == CapNames::NewTokens => {
                // SGLang has no `inputs`.
                if self.find(&["inputs"]).is_some() {
                    &[&["parameters", "max_new_tokens"]]
                } else {
                    &[&["sampling_params", "max_new_tokens"]]
                }
            }
            Surface::Completions | Surface::Messages | Surface::CohereChat => &[&["max_tokens"]],
            Surface::GenerateContent => &[
                &["generationConfig", "maxOutputTokens"],
                &["generation_config", "max_output_tokens"],
                &["generationConfig", "max_output_tokens"],
                &["generation_config", "maxOutputTokens"],
            ],
            Surface::Converse => &[&["inferenceConfig", "maxTokens"]],
            Surface::OllamaChat | Surface::OllamaGenerate => &[&["options", "num_predict"]],
            _ => return Err(self.no_place("a limit of tokens")),
        };
        let value = most.to_string();
        let mut is_there = false;
        // What some servers take before that.
        for other in OTHER_LIMITS {
            let path: &[&str] = &[other];
            if places.contains(&path) {
                continue;
            }
            if let Some(at) =
                self.find(path).filter(|at| self.text(at).parse::<u64>().is_ok_and(|now| now > most))
            {
                self.edits.replace(at, value.as_bytes());
            }
        }
        for path in places {
            let Some(at) = self.find(path) else { continue };
            is_there = true;
            if self.text(&at).parse::<u64>().is_ok_and(|now| now <= most) {
                continue;
            }
            self.edits.replace(at, value.as_bytes());
        }
        if !is_there {
            let (outer, name) = match places.first() {
                Some([name]) => (None, *name),
                Some([outer, name]) => (Some(*outer), *name),
                _ => return Err(self.no_place("a limit of tokens")),
            };
            match outer.map(|outer| (outer, self.find(&[outer]))) {
                None => self.edits.add(self.body, &self.root.clone(), name, value.as_bytes()),
                Some((_, Some(at))) if self.is_object(&at) => {
                    self.edits.add(self.body, &at, name, value.as_bytes());
                }
                Some((_, Some(_))) => return Err(self.no_place("a limit of tokens")),
                Some((outer, None)) => {
                    let object = format!("{{\"{name}\":{value}}}");
                    self.edits.add(self.body, &self.root.clone(), outer, object.as_bytes());
                }
            }
        }
        self.told.push(match answers {
            1 => format!("at most {most} tokens"),
            _ => format!("at most {most} tokens in each of {answers} answers"),
        });
        Ok(())
    }

    /// What an item of a list of tools is called; `None` for one that groups others.
    fn tool_name(&self, at: &Span) -> Option<String> {
        let named = |at: &Span, name: &str| {
            let members = splice::members(self.body, at)?;
            let member = members.into_iter().find(|member| member.name == name)?;
            Some(member.value)
        };
        let text = |at: Span| {
            let parsed = crate::tool::Value::parse(self.body.get(at)?).ok()?;
            parsed.text().map(str::to_owned)
        };
        let inner = named(at, "function").or_else(|| named(at, "toolSpec"));
        let inner = inner.filter(|at| self.is_object(at)).unwrap_or_else(|| at.clone());
        named(&inner, "name").or_else(|| named(&inner, "type")).and_then(text).or_else(|| {
            // A provider's own, by its one member.
            let members = splice::members(self.body, at)?;
            let [member] = &members[..] else { return None };
            (!member.name.ends_with("eclarations")).then(|| member.name.clone())
        })
    }

    fn tools(&mut self, takes: &dyn Fn(&str) -> bool) -> Result<(), ChangeError> {
        let (mut removed, mut gone) = (Vec::new(), Vec::new());
        for (path, with) in LISTS {
            let Some(at) = self.find(path) else { continue };
            let (names, is_empty) = self.list(&at, takes)?;
            removed.extend(names);
            if is_empty {
                // Providers refuse lists without tools, and what is said of them where there are none.
                gone.extend_from_slice(with);
            }
        }
        if removed.is_empty() {
            return Err(self.no_place("tools that are not offered"));
        }
        // It may name one that is there no more.
        for path in CHOICES {
            let named = |at: Span| removed.iter().any(|name| self.text(&at).contains(&format!("\"{name}\"")));
            if self.find(path).is_some_and(named) && !gone.contains(&path) {
                gone.push(path);
            }
        }
        for outer in [&[][..], &["toolConfig"]] {
            let names: Vec<&str> = gone
                .iter()
                .filter_map(|path| path.split_last())
                .filter(|(_, rest)| *rest == outer)
                .map(|(name, _)| *name)
                .collect();
            self.without(outer, &names)?;
        }
        removed.sort();
        removed.dedup();
        let names = removed.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
        self.told.push(format!("without the tools {names}"));
        Ok(())
    }

    /// Takes tools out of a list, and of the groups in it: their names, and whether none is left.
    fn list(&mut self, at: &Span, takes: &dyn Fn(&str) -> bool) -> Result<(Vec<String>, bool), ChangeError> {
        let items = splice::items(self.body, at).ok_or(self.no_place("tools that are not offered"))?;
        let (mut removed, mut stay) = (Vec::new(), vec![true; items.len()]);
        for (item, stays) in items.iter().zip(&mut stay) {
            if let Some(name) = self.tool_name(item) {
                if takes(&name) {
                    *stays = false;
                    removed.push(name);
                }
                continue;
            }
            let members = splice::members(self.body, item).unwrap_or_default();
            for member in members.iter().filter(|member| member.name.ends_with("eclarations")) {
                let Some(declared) = splice::items(self.body, &member.value) else { continue };
                let names: Vec<Option<String>> = declared.iter().map(|at| self.tool_name(at)).collect();
                let goes = |n: usize| names.get(n).and_then(Option::as_deref).is_some_and(takes);
                let gone = (0..declared.len()).filter(|n| goes(*n)).count();
                removed.extend(names.iter().flatten().filter(|name| takes(name)).cloned());
                if gone == declared.len() && members.len() == 1 {
                    *stays = false;
                } else if gone > 0 {
                    self.edits.keep(self.body, &declared, |n| !goes(n));
                }
            }
        }
        let is_empty = !stay.is_empty() && stay.iter().all(|stays| !stays);
        if !is_empty && stay.iter().any(|stays| !stays) {
            self.edits.keep(self.body, &items, |n| stay.get(n).copied().unwrap_or(true));
        }
        Ok((removed, is_empty))
    }

    /// Takes members out of an object.
    fn without(&mut self, object: &[&str], names: &[&str]) -> Result<(), ChangeError> {
        if names.is_empty() {
            return Ok(());
        }
        let members = self.find(object).and_then(|at| splice::members(self.body, &at));
        let members = members.ok_or(self.no_place("a choice of tools"))?;
        let goes = |name: &str| names.contains(&name);
        let mut before = None;
        for (n, member) in members.iter().enumerate() {
            if !goes(&member.name) {
                before = Some(n);
                continue;
            }
            // With the comma before it if something stays there, else with the one behind it.
            let end = n.checked_sub(1).and_then(|n| members.get(n)).map(|former| former.whole.end);
            let next = members.get(n + 1).map(|next| next.whole.start);
            let span = match (before, end, next) {
                (Some(_), Some(end), _) => end..member.whole.end,
                (_, _, Some(next)) => member.whole.start..next,
                _ => member.whole.clone(),
            };
            self.edits.replace(span, Vec::new());
        }
        Ok(())
    }

    fn prompt(&mut self, prompt: &str) -> Result<(), ChangeError> {
        let text = quoted(prompt);
        let block = |member: &str| [format!("{{\"{member}\":").as_bytes(), &text, b"}"].concat();
        match self.surface {
            Surface::ChatCompletions | Surface::OllamaChat => self.message(&text)?,
            Surface::CohereChat if self.find(&["messages"]).is_some() => self.message(&text)?,
            Surface::CohereChat => self.before("preamble", prompt, None)?,
            Surface::Responses => self.before("instructions", prompt, None)?,
            Surface::OllamaGenerate => self.before("system", prompt, None)?,
            Surface::Messages | Surface::CountTokens => {
                let item = [&b"{\"type\":\"text\",\"text\":"[..], &text, b"}"].concat();
                self.before("system", prompt, Some(item))?;
            }
            Surface::Converse => match self.find(&["system"]) {
                Some(at) if self.is_array(&at) => self.edits.prepend(self.body, &at, &block("text")),
                Some(_) => return Err(self.no_place("a prompt")),
                None => {
                    let array = [b"[", &block("text")[..], b"]"].concat();
                    self.edits.add(self.body, &self.root.clone(), "system", &array);
                }
            },
            Surface::GenerateContent => self.instruction(&block("text"))?,
            _ => return Err(self.no_place("a prompt")),
        }
        self.told.push("a system prompt comes first".to_owned());
        Ok(())
    }

    /// Before the messages there are.
    fn message(&mut self, text: &[u8]) -> Result<(), ChangeError> {
        let at = self.find(&["messages"]).filter(|at| self.is_array(at)).ok_or(self.no_place("a prompt"))?;
        let message = [&b"{\"role\":\"system\",\"content\":"[..], text, b"}"].concat();
        self.edits.prepend(self.body, &at, &message);
        Ok(())
    }

    /// Before the text of a member; before its items, if it may have some.
    fn before(&mut self, name: &str, prompt: &str, item: Option<Vec<u8>>) -> Result<(), ChangeError> {
        match self.find(&[name]) {
            None => self.edits.add(self.body, &self.root.clone(), name, &quoted(prompt)),
            Some(at) if self.body.get(at.start) == Some(&b'"') => {
                let mut text = quoted(&format!("{prompt}\n\n"));
                text.pop();
                self.edits.replace(at.start..at.start + 1, text);
            }
            Some(at) if self.text(&at) == "null" => self.edits.replace(at, quoted(prompt)),
            Some(at) => match item.filter(|_| self.is_array(&at)) {
                Some(item) => self.edits.prepend(self.body, &at, &item),
                None => return Err(self.no_place("a prompt")),
            },
        }
        Ok(())
    }

    /// Gemini's, under either of its names.
    fn instruction(&mut self, part: &[u8]) -> Result<(), ChangeError> {
        let names = ["systemInstruction", "system_instruction"];
        let Some(name) = names.into_iter().find(|name| self.find(&[name]).is_some()) else {
            let whole = [&b"{\"parts\":["[..], part, b"]}"].concat();
            self.edits.add(self.body, &self.root.clone(), "systemInstruction", &whole);
            return Ok(());
        };
        match self.find(&[name, "parts"]) {
            Some(parts) if self.is_array(&parts) => self.edits.prepend(self.body, &parts, part),
            _ => return Err(self.no_place("a prompt")),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
