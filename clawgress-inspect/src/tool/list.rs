//! Lists of tools that a server offers: those that an agent may not use taken out, and definitions held against what was
//! approved. Must never change anything else of an answer than the list.

use std::collections::BTreeMap;

use aws_lc_rs::digest::{SHA256, digest};

use super::{ToolError, Value};

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
    /// The answer, as JSON.
    pub body: String,
    /// Names that were taken out.
    pub removed: Vec<String>,
}

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

/// Takes out of an answer to `tools/list` what is not `allowed`; `None` if it is another answer, or nothing is taken out.
///
/// # Errors
/// If a tool has no name, or one has another's: which one is meant, nobody knows.
pub fn filtered(body: &[u8], allowed: &mut dyn FnMut(&str) -> bool) -> Result<Option<Filtered>, ToolError> {
    let mut value = Value::parse(body)?;
    let Some(tools) = tools_of(&mut value) else { return Ok(None) };
    named(tools)?;
    let mut removed = Vec::new();
    tools.retain(|tool| {
        let name = tool.member("name").and_then(Value::text).unwrap_or_default();
        let stays = allowed(name);
        if !stays {
            removed.push(name.to_owned());
        }
        stays
    });
    Ok((!removed.is_empty()).then(|| Filtered { body: value.json(), removed }))
}

/// The same of a stream of events (WHATWG HTML section 9.2.6) that is whole: each event that is such an answer loses what is
/// not `allowed`, and all else stays as it is.
///
/// # Errors
/// As [`filtered`], for any of its events; and if it is no UTF-8.
pub fn filtered_events(
    body: &[u8],
    allowed: &mut dyn FnMut(&str) -> bool,
) -> Result<Option<Filtered>, ToolError> {
    let text = std::str::from_utf8(body).map_err(|_| ToolError::Message("no UTF-8"))?;
    let (mut out, mut removed) = (String::with_capacity(text.len()), Vec::new());
    let (mut event, mut data) = (Vec::new(), Vec::new());
    let mut rest = text;
    while !rest.is_empty() {
        let (line, behind) = line(rest);
        rest = behind;
        let bare = line.trim_end_matches(['\r', '\n']);
        event.push(line);
        if let Some(value) = field(bare) {
            data.push(value);
        }
        if !bare.is_empty() && !rest.is_empty() {
            continue;
        }
        // What has no blank line behind it is no event yet; clients differ, so it is judged like one.
        let joined = data.join("\n");
        match filtered(joined.as_bytes(), allowed) {
            Ok(Some(less)) => {
                let others = event.iter().filter(|line| field(line.trim_end_matches(['\r', '\n'])).is_none());
                others.clone().filter(|line| !line.trim().is_empty()).for_each(|line| out.push_str(line));
                out.push_str("data: ");
                out.push_str(&less.body);
                out.push_str("\n\n");
                removed.extend(less.removed);
            }
            Ok(None) => event.iter().for_each(|line| out.push_str(line)),
            // What does not even begin like JSON is no message: a priming event, a comment, another protocol. Of what does,
            // clients read more than there should be (`NaN`).
            Err(_) if !joined.trim_start().starts_with(['{', '[']) => {
                event.iter().for_each(|line| out.push_str(line));
            }
            Err(why) => return Err(why),
        }
        event.clear();
        data.clear();
    }
    Ok((!removed.is_empty()).then_some(Filtered { body: out, removed }))
}

/// The first line with its end: CRLF, LF or CR; and what follows.
fn line(text: &str) -> (&str, &str) {
    let bytes = text.as_bytes();
    let end = match bytes.iter().position(|b| matches!(b, b'\r' | b'\n')) {
        Some(at) if bytes.get(at) == Some(&b'\r') && bytes.get(at + 1) == Some(&b'\n') => at + 2,
        Some(at) => at + 1,
        None => bytes.len(),
    };
    text.split_at_checked(end).unwrap_or((text, ""))
}

/// The value of a line of data.
fn field(line: &str) -> Option<&str> {
    // Only the first line may begin with a mark of byte order.
    let line = line.strip_prefix('\u{feff}').unwrap_or(line);
    if line == "data" {
        return Some("");
    }
    let value = line.strip_prefix("data:")?;
    Some(value.strip_prefix(' ').unwrap_or(value))
}

/// How the tools of an answer differ from those that were approved, each by its name; none of another answer.
///
/// # Errors
/// As [`filtered`].
pub fn changes(body: &[u8], approved: &BTreeMap<String, Pin>) -> Result<Vec<(String, Change)>, ToolError> {
    let mut value = Value::parse(body)?;
    let Some(tools) = tools_of(&mut value) else { return Ok(Vec::new()) };
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

fn tools_of(value: &mut Value) -> Option<&mut Vec<Value>> {
    let Value::Object(members) = value else { return None };
    let result = members.iter_mut().find(|(name, _)| name == "result")?;
    let Value::Object(members) = &mut result.1 else { return None };
    let tools = members.iter_mut().find(|(name, _)| name == "tools")?;
    if let Value::Array(tools) = &mut tools.1 { Some(tools) } else { None }
}

/// Each has a name, and no two the same.
fn named(tools: &[Value]) -> Result<(), ToolError> {
    let mut names = std::collections::BTreeSet::new();
    for tool in tools {
        let name = tool.member("name").and_then(Value::text).filter(|name| super::is_name(name));
        if !names.insert(name.ok_or(ToolError::Name("name"))?) {
            return Err(ToolError::Message("two tools of one name"));
        }
    }
    Ok(())
}
