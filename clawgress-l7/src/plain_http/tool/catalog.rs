//! What tools there are: definitions that the operator approved, and those that servers listed to each agent.
//!
//! What was learned is in `learned.rs`, bounded. Must never take what one agent was told for what another was.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use clawgress_inspect::tool::{
    Pin, ToolError, Validity, Value, agrees_with_schema, definitions, pin, validate,
};
use parking_lot::Mutex;

pub use super::learned::Key;
use super::learned::{Known, Learned};

/// Most bytes of a file of approved definitions.
const APPROVED_BYTES_MAX: u64 = 16 << 20;

/// A definition.
#[derive(Clone, Debug)]
pub struct Definition {
    pin: Pin,
    /// What it is called with; `None` also where there was no room for it.
    pub schema: Option<Arc<Value>>,
}

/// The catalog.
#[derive(Debug, Default)]
pub struct Catalog {
    /// By the server's name.
    approved: HashMap<String, BTreeMap<String, Definition>>,
    learned: Mutex<Learned>,
}

/// What is found of a tool that is listed, or called.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Found {
    changed: bool,
    unapproved: bool,
    unlisted: bool,
    invalid: bool,
    unchecked: bool,
    /// What its server listed of it was forgotten: whether it is any of these is not known.
    pub is_forgotten: bool,
}

// === impl Found ===

impl Found {
    /// As policy has it.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        [
            (self.invalid, "arguments_invalid"),
            (self.unchecked, "arguments_unchecked"),
            (self.changed, "tool_changed"),
            (self.unapproved, "tool_unapproved"),
            (self.unlisted, "tool_unlisted"),
        ]
        .into_iter()
        .filter_map(|(is, name)| is.then_some(name))
    }
}

// === impl Definition ===

impl Definition {
    /// Of a tool, as its server says it.
    #[must_use]
    pub fn of(tool: &Value) -> Definition {
        let schema = tool.member("inputSchema").map(|schema| Arc::new(schema.clone()));
        Definition { pin: pin(tool), schema }
    }

    /// Bytes of memory that it takes, besides itself.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.schema.as_ref().map_or(0, |schema| size_of::<Value>() + schema.memory_bytes())
    }
}

// === impl Catalog ===

impl Catalog {
    /// Takes the definitions of a file for approved, of this server.
    ///
    /// # Errors
    /// If it can't be read, or is no list of tools.
    pub fn approve(&mut self, server: &str, path: &Path) -> Result<()> {
        let failed =
            || format!("tool server `{server}`: cannot read what was approved from `{}`", path.display());
        let length = std::fs::metadata(path).with_context(failed)?.len();
        anyhow::ensure!(length <= APPROVED_BYTES_MAX, "{}: more than {APPROVED_BYTES_MAX} bytes", failed());
        let text = std::fs::read(path).with_context(failed)?;
        let tools = definitions(&text).with_context(failed)?;
        let tools = tools.with_context(|| format!("{}: it is no list of tools", failed()))?;
        let tools = tools.iter().map(|(name, tool)| (name.clone(), Definition::of(tool))).collect();
        self.approved.insert(server.to_owned(), tools);
        Ok(())
    }

    /// What is found of a tool that its server lists; it is remembered.
    pub fn list(&self, server: &str, key: &Key, name: &str, tool: &Value) -> Found {
        let definition = Definition::of(tool);
        let found = self.held(server, name, Some(&definition));
        self.learned.lock().learn(key, name, definition);
        found
    }

    /// What is found of a call: of its tool, with these arguments, and what its head says of them.
    ///
    /// # Errors
    /// If the head says something else than the arguments.
    pub fn call(
        &self,
        server: &str,
        key: &Key,
        (name, arguments, params): (&str, Option<&Value>, &[(String, String)]),
    ) -> Result<Found, ToolError> {
        let known = self.learned.lock().find(key, name);
        let is_forgotten = matches!(known, Known::Forgotten);
        let learned = if let Known::Listed(definition) = known { Some(definition) } else { None };
        let mut found = Found { is_forgotten, ..self.held(server, name, learned.as_ref()) };
        let approved = self.approved.get(server).and_then(|tools| tools.get(name));
        // What its server says now, is what it takes now.
        let Some(definition) = learned.as_ref().or(approved) else {
            return Ok(Found { unlisted: true, unchecked: !params.is_empty(), ..found });
        };
        if let Some(schema) = &definition.schema {
            agrees_with_schema(schema, arguments, params)?;
        }
        let none = Value::Object(Vec::new());
        match definition.schema.as_ref().map(|schema| validate(schema, arguments.unwrap_or(&none))) {
            Some(Validity::Invalid { .. }) => found.invalid = true,
            Some(Validity::Unchecked { .. }) | None => found.unchecked = true,
            Some(Validity::Valid) => {}
        }
        Ok(found)
    }

    /// How a definition differs from what was approved, where anything was of its server.
    fn held(&self, server: &str, name: &str, now: Option<&Definition>) -> Found {
        let mut found = Found::default();
        if let Some(approved) = self.approved.get(server) {
            match (approved.get(name), now) {
                (None, _) => found.unapproved = true,
                (Some(known), Some(now)) => found.changed = known.pin != now.pin,
                (Some(_), None) => {}
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOOL: &str = r#"{"name":"add","description":"adds","inputSchema":{"type":"object","required":["n"],"properties":{"n":{"type":"integer"}}}}"#;

    fn value(text: &str) -> Value {
        Value::parse(text.as_bytes()).expect("JSON")
    }

    fn key(agent: u32) -> Key {
        Key { agent, at: "a".into() }
    }

    fn call(catalog: &Catalog, agent: u32, name: &str, arguments: Option<&str>) -> Found {
        let arguments = arguments.map(value);
        catalog.call("s", &key(agent), (name, arguments.as_ref(), &[])).expect("no fields")
    }

    fn names(found: Found) -> Vec<&'static str> {
        found.names().collect()
    }

    #[test]
    fn calls_are_held_against_what_was_listed_to_the_agent() {
        let catalog = Catalog::default();
        let call = |agent, arguments: &str| names(self::call(&catalog, agent, "add", Some(arguments)));
        assert_eq!(call(1, r#"{"n":1}"#), ["tool_unlisted"]);
        assert_eq!(names(catalog.list("s", &key(1), "add", &value(TOOL))), [""; 0]);
        assert_eq!(call(1, r#"{"n":1}"#), [""; 0]);
        assert_eq!(call(1, r#"{"n":"x"}"#), ["arguments_invalid"]);
        assert_eq!(names(self::call(&catalog, 1, "add", None)), ["arguments_invalid"]);
        assert_eq!(call(2, r#"{"n":1}"#), ["tool_unlisted"], "another agent was told nothing");
        catalog.list(
            "s",
            &key(1),
            "add",
            &value(&TOOL.replace("\"integer\"", "\"integer\",\"pattern\":\"x\"")),
        );
        assert_eq!(call(1, r#"{"n":1}"#), ["arguments_unchecked"]);
    }

    #[test]
    fn definitions_are_held_against_what_was_approved() {
        let path = std::env::temp_dir().join(format!("clawgress-approved-{}.json", std::process::id()));
        std::fs::write(&path, format!("{{\"tools\":[{TOOL}]}}")).expect("written");
        let mut catalog = Catalog::default();
        catalog.approve("s", &path).expect("approved");
        std::fs::write(&path, "{}").expect("written");
        catalog.approve("t", &path).expect_err("no list");
        std::fs::remove_file(&path).expect("removed");
        let other = TOOL.replace("adds", "adds, and mails");
        assert_eq!(names(call(&catalog, 1, "add", Some(r#"{"n":1}"#))), [""; 0]);
        assert_eq!(names(call(&catalog, 1, "add", Some("{}"))), ["arguments_invalid"]);
        assert_eq!(names(catalog.list("s", &key(1), "add", &value(TOOL))), [""; 0]);
        assert_eq!(names(catalog.list("s", &key(1), "add", &value(&other))), ["tool_changed"]);
        assert_eq!(names(call(&catalog, 1, "add", Some(r#"{"n":1}"#))), ["tool_changed"]);
        assert_eq!(names(call(&catalog, 1, "rm", None)), ["tool_unapproved", "tool_unlisted"]);
    }

    #[test]
    fn fields_of_arguments_are_held_against_the_schema() {
        let catalog = Catalog::default();
        let params = |told: &str| [("n".to_owned(), told.to_owned())];
        let arguments = value(r#"{"n":1}"#);
        let call =
            |told: &str| catalog.call("s", &key(1), ("add", Some(&arguments), &params(told))).map(names);
        // Nothing is known to hold them against.
        assert_eq!(call("1"), Ok(vec!["arguments_unchecked", "tool_unlisted"]));
        let named = TOOL.replace("\"integer\"", "\"integer\",\"x-mcp-header\":\"N\"");
        catalog.list("s", &key(1), "add", &value(&named));
        assert_eq!(call("1"), Ok(Vec::new()));
        assert_eq!(call("2"), Err(ToolError::ParamMismatch("n".to_owned())));
    }

    #[test]
    fn what_was_forgotten_is_told_apart_from_what_was_never_listed() {
        let catalog = Catalog::default();
        let tool = value(TOOL);
        let call = |name| self::call(&catalog, 1, name, Some(r#"{"n":1}"#));
        assert!(!call("add").is_forgotten);
        for n in 0..2000 {
            catalog.list("s", &key(1), &format!("t{n}"), &tool);
        }
        catalog.list("s", &key(1), "add", &tool);
        let found = call("add");
        assert!(found.is_forgotten && names(found) == ["tool_unlisted"], "{found:?}");
        assert!(!call("t7").is_forgotten && names(call("t7")).is_empty());
    }
}
