//! Lists of tools that a server offers: those that an agent may not use taken out, and definitions held against what was
//! approved. Must never change anything else of an answer than the list, nor a byte of what stays in it.

use std::collections::BTreeMap;

use aws_lc_rs::digest::{SHA256, digest};

use super::{ToolError, Value};
use crate::events;
use crate::splice::{self, Edits};

/// SHA-256 of a tool's definition as canonical JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Pin(pub [u8; 32]);

/// How a definition differs from the approved one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Not at all.
    Same,
    /// It is another than was approved.
    Changed,
    /// None was approved.
    New,
}

/// An answer without what an agent may not use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filtered {
    /// The answer: what stays of it is as it was, byte for byte.
    pub body: String,
    /// Names that were taken out.
    pub removed: Vec<String>,
}

/// What decides on a tool of a list, by its name and definition.
pub type Allowed<'a> = dyn FnMut(&str, &Value) -> bool + 'a;

/// What goes on in the place of a message; `None` if that is itself.
pub type Changing<'a> = dyn FnMut(&[u8]) -> Result<Option<String>, ToolError> + 'a;

/// What identifies a definition: all that a model is told of a tool, and all that its answers are held against.
#[must_use]
pub fn pin(tool: &Value) -> Pin {
    // `_meta` is for the client, and may change with every answer.
    let members = tool.members().iter().filter(|(name, _)| name != "_meta").cloned().collect();
    let canonical = Value::Object(members).canonical();
    let mut bytes = [0; 32];
    bytes.copy_from_slice(digest(&SHA256, canonical.as_bytes()).as_ref());
    Pin(bytes)
}

/// The tools of an answer to `tools/list`, of a document `{"tools": […]}`, or of an array; `None` of anything else.
///
/// # Errors
/// If it is no JSON; if a tool has no name, or one has another's.
pub fn definitions(text: &[u8]) -> Result<Option<Vec<(String, Value)>>, ToolError> {
    let value = Value::parse(text)?;
    let within = value.member("result").unwrap_or(&value).member("tools").unwrap_or(&value);
    let Value::Array(tools) = within else { return Ok(None) };
    named(tools)?;
    let name = |tool: &Value| tool.member("name").and_then(Value::text).unwrap_or_default().to_owned();
    Ok(Some(tools.iter().map(|tool| (name(tool), tool.clone())).collect()))
}

/// Takes out of an answer to `tools/list` what is not `allowed`; `None` if it is another answer, or nothing is taken out.
///
/// # Errors
/// If a tool has no name, or one has another's: which one is meant, nobody knows.
pub fn filtered(body: &[u8], allowed: &mut Allowed<'_>) -> Result<Option<Filtered>, ToolError> {
    if !may_list(body) {
        return Ok(None);
    }
    let value = Value::parse(body)?;
    let Value::Array(answers) = &value else { return filtered_one(body, &value, allowed) };
    // The one version that has batches may answer in one.
    let lost = ToolError::Message("its answers are not where they were read");
    let spans = splice::root(body).and_then(|root| splice::items(body, &root));
    let spans = spans.filter(|spans| spans.len() == answers.len()).ok_or(lost.clone())?;
    let (mut edits, mut removed) = (Edits::default(), Vec::new());
    for (answer, span) in answers.iter().zip(spans) {
        let part = body.get(span.clone()).ok_or(lost.clone())?;
        if let Some(less) = filtered_one(part, answer, allowed)? {
            edits.replace(span, less.body);
            removed.extend(less.removed);
        }
    }
    if removed.is_empty() {
        return Ok(None);
    }
    let body = String::from_utf8(edits.apply(body)).map_err(|_| lost)?;
    Ok(Some(Filtered { body, removed }))
}

/// The same of one answer, which `body` is.
fn filtered_one(
    body: &[u8],
    value: &Value,
    allowed: &mut Allowed<'_>,
) -> Result<Option<Filtered>, ToolError> {
    let Some((tools, path)) = tools_of(value)? else { return Ok(None) };
    named(tools)?;
    let mut removed = Vec::new();
    let stay: Vec<bool> = tools
        .iter()
        .map(|tool| {
            let name = tool.member("name").and_then(Value::text).unwrap_or_default();
            let stays = allowed(name, tool);
            if !stays {
                removed.push(name.to_owned());
            }
            stays
        })
        .collect();
    if removed.is_empty() {
        return Ok(None);
    }
    let lost = ToolError::Message("its list is not where it was read");
    let parts = splice::find(body, path).and_then(|at| splice::items(body, &at));
    let parts = parts.filter(|parts| parts.len() == stay.len()).ok_or(lost.clone())?;
    let mut edits = Edits::default();
    edits.keep(body, &parts, |n| stay.get(n).copied().unwrap_or(false));
    let body = String::from_utf8(edits.apply(body)).map_err(|_| lost)?;
    Ok(Some(Filtered { body, removed }))
}

/// Whether an answer may be one: most are not, and need not be read.
fn may_list(body: &[u8]) -> bool {
    // In other letters clients may take it for one (the last may be one outside ASCII); an escape may be any letter.
    body.windows(4).any(|w| w.eq_ignore_ascii_case(b"tool")) || body.windows(2).any(|w| w == b"\\u")
}

/// Has the messages of a stream of events (WHATWG HTML section 9.2.6) that is whole changed, one by one; `None` if none is. All else
/// stays as it is.
///
/// # Errors
/// The first that `change` has of what begins like JSON; and if it is no UTF-8.
pub fn changed_events(body: &[u8], change: &mut Changing<'_>) -> Result<Option<String>, ToolError> {
    let text = std::str::from_utf8(body).map_err(|_| ToolError::Message("no UTF-8"))?;
    events::changed(text, &mut |data| match change(data.as_bytes()) {
        // What does not even begin like JSON is no message: a priming event, a comment, another protocol. Of what does,
        // clients read more than there should be (`NaN`).
        Err(_) if !data.trim_start().starts_with(['{', '[']) => Ok(None),
        other => other,
    })
}

/// How the tools of an answer differ from those that were approved, each by its name; none of another answer.
///
/// # Errors
/// As [`filtered`].
pub fn changes(body: &[u8], approved: &BTreeMap<String, Pin>) -> Result<Vec<(String, Change)>, ToolError> {
    let value = Value::parse(body)?;
    let Some((tools, _)) = tools_of(&value)? else { return Ok(Vec::new()) };
    named(tools)?;
    let of = |tool: &Value| {
        let name = tool.member("name").and_then(Value::text).unwrap_or_default().to_owned();
        let change = match approved.get(&name) {
            Some(known) if *known == pin(tool) => Change::Same,
            Some(_) => Change::Changed,
            None => Change::New,
        };
        (name, change)
    };
    Ok(tools.iter().map(of).collect())
}

/// The tools of an answer, and what leads to them.
///
/// # Errors
/// If some clients take another name for one that leads to them.
fn tools_of(value: &Value) -> Result<Option<(&[Value], Path)>, ToolError> {
    super::spelled(value, &["result"])?;
    let Some(result) = value.member("result") else { return Ok(None) };
    super::spelled(result, &["tools"])?;
    match result.member("tools") {
        Some(Value::Array(tools)) => Ok(Some((tools, &["result", "tools"]))),
        _ => Ok(None),
    }
}

/// Names that lead somewhere.
type Path = &'static [&'static str];

/// Each has a name, and no two the same.
fn named(tools: &[Value]) -> Result<(), ToolError> {
    let mut names = std::collections::BTreeSet::new();
    for tool in tools {
        #[cfg(test)]
        crate::steps::add(1);
        super::spelled(tool, &["name", "inputSchema"])?;
        let name = tool.member("name").and_then(Value::text).filter(|name| super::is_name(name));
        if !names.insert(name.ok_or(ToolError::Name("name"))?) {
            return Err(ToolError::Message("two tools of one name"));
        }
    }
    Ok(())
}
