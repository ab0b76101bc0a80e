//! What the head of a message says, held against its body: routers and limits go by the one, servers by the other.
//!
//! MCP 2026-07-28, streamable HTTP: `Mcp-Method`, `Mcp-Name`, and an `Mcp-Param-*` for each argument that a tool's schema has
//! `x-mcp-header` of; what a field can't have is in base64. Must never take a value for another that a server would decode.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::{Head, Message, STATELESS, ToolError, Value};

/// What fields of arguments begin with.
pub const PARAM: &str = "mcp-param-";
/// What is around a value in base64.
const CODED: (&str, &str) = ("=?base64?", "?=");
/// What names the field of an argument, in its schema.
const ANNOTATION: &str = "x-mcp-header";
/// Where a message of the newer era names its version.
const META_VERSION: &str = "io.modelcontextprotocol/protocolVersion";
/// Largest integer that is the same in every language: others are not compared by what they come to.
const INTEGER_MAX: f64 = 9_007_199_254_740_991.0;

/// Whether the head says what the body does.
pub(super) fn agrees(message: &Message, value: &Value, head: &Head<'_>) -> Result<(), ToolError> {
    let params = value.member("params");
    let meta = params.and_then(|params| params.member("_meta"));
    let named = meta.and_then(|meta| meta.member(META_VERSION)).map(|version| version.text());
    if let (Some(named), Some(version)) = (named, head.version)
        && named != Some(version)
    {
        return Err(ToolError::Mismatch("MCP-Protocol-Version"));
    }
    let method = message.method.as_deref();
    if head.method.is_some() && head.method != method {
        return Err(ToolError::Mismatch("Mcp-Method"));
    }
    let is_task = matches!(method, Some("tasks/get" | "tasks/update" | "tasks/cancel" | "tasks/result"));
    let task = params.and_then(|params| params.member("taskId")).filter(|_| is_task);
    if task.is_some_and(|task| task.text().is_none()) {
        return Err(ToolError::Name("taskId"));
    }
    let name = message.name.as_deref().or(task.and_then(Value::text));
    if let Some(told) = head.name
        && decoded(told).as_deref() != name
    {
        return Err(ToolError::Mismatch("Mcp-Name"));
    }
    if let Some((field, _)) = head.params.first().filter(|_| !message.is_call()) {
        return Err(ToolError::ParamMismatch(field.clone()));
    }
    let is_stateless = head.version.is_some_and(|version| version >= STATELESS);
    if is_stateless && method.is_some() && head.method.is_none() {
        return Err(ToolError::Missing("Mcp-Method"));
    }
    if is_stateless && name.is_some() && head.name.is_none() {
        return Err(ToolError::Missing("Mcp-Name"));
    }
    Ok(())
}

/// Whether the fields of arguments say what the body does, of a tool with this schema. What the schema names and the head does
/// not have is left to the server, which refuses it.
///
/// # Errors
/// The first that says something else, or that the schema does not name.
pub fn agrees_with_schema(
    schema: &Value,
    arguments: Option<&Value>,
    params: &[(String, String)],
) -> Result<(), ToolError> {
    if params.is_empty() {
        return Ok(());
    }
    let mut named = Vec::new();
    annotated(schema, arguments, &mut named);
    for (field, told) in params {
        let mut all = named.iter().filter(|(name, _)| name.eq_ignore_ascii_case(field));
        // Of two of a name, nobody knows which one is meant.
        let argument = all.next().filter(|_| all.next().is_none()).and_then(|(_, argument)| *argument);
        let told = decoded(told);
        let is_same = argument.zip(told.as_deref()).is_some_and(|(argument, told)| is(argument, told));
        if !is_same {
            return Err(ToolError::ParamMismatch(field.clone()));
        }
    }
    Ok(())
}

/// The fields that a schema names, each with the argument that it is of, if there is one: of properties of properties alone, as
/// the specification has it. Levels are bounded by what parsed it.
fn annotated<'a>(schema: &'a Value, given: Option<&'a Value>, named: &mut Vec<(&'a str, Option<&'a Value>)>) {
    let properties = schema.member("properties");
    for (name, property) in properties.into_iter().flat_map(Value::members) {
        let argument = given.and_then(|given| given.member(name));
        if let Some(field) = property.member(ANNOTATION).and_then(Value::text) {
            named.push((field, argument));
        }
        annotated(property, argument, named);
    }
}

/// Whether a field says this argument.
fn is(argument: &Value, told: &str) -> bool {
    match argument {
        Value::Text(text) => text == told,
        Value::Bool(is) => told == if *is { "true" } else { "false" },
        Value::Number(number) if number == told => true,
        Value::Number(number) => {
            // `42.0` is 42.
            let whole = |text: &str| {
                let n: f64 = text.parse().ok()?;
                (n.fract() == 0.0 && n.abs() <= INTEGER_MAX).then_some(n)
            };
            whole(number).is_some_and(|n| whole(told) == Some(n))
        }
        Value::Null | Value::Array(_) | Value::Object(_) => false,
    }
}

/// The value of a field; `None` if it is in base64 and can't be decoded to text.
fn decoded(told: &str) -> Option<String> {
    let Some(coded) = told.strip_prefix(CODED.0) else { return Some(told.to_owned()) };
    // Without its end some take it as it is, and some refuse it.
    let coded = coded.strip_suffix(CODED.1)?;
    String::from_utf8(STANDARD.decode(coded).ok()?).ok()
}
