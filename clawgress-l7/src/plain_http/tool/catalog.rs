//! What tools there are: definitions that the operator approved, and those that servers listed to each agent.
//!
//! Bounded: what was learned longest ago is forgotten first. Must never take what one agent was told for what another was.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use clawgress_inspect::tool::{Pin, Validity, Value, definitions, pin, validate};
use parking_lot::Mutex;

/// Most lists that are remembered, one for each agent and server.
const LISTS_MAX: usize = 4096;
/// Most tools of one list, and bytes of their schemas: larger ones are not held against anything.
const TOOLS_MAX: usize = 1024;
const LIST_BYTES_MAX: usize = 2 << 20;
/// Most bytes of all schemas.
const BYTES_MAX: usize = 64 << 20;
/// Most bytes of a file of approved definitions.
const APPROVED_BYTES_MAX: u64 = 16 << 20;

/// Whose list it is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    /// The agent's index.
    pub agent: u32,
    /// Host and port, and the server's name.
    pub at: Arc<str>,
}

/// A definition.
#[derive(Clone, Debug)]
struct Definition {
    pin: Pin,
    schema: Option<Arc<Value>>,
    bytes: usize,
}

#[derive(Debug, Default)]
struct List {
    tools: BTreeMap<String, Definition>,
    bytes: usize,
    /// When it was learned, by the catalog's count.
    at: u64,
}

#[derive(Debug, Default)]
struct Learned {
    lists: HashMap<Key, List>,
    bytes: usize,
    count: u64,
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
    fn of(tool: &Value) -> Definition {
        let schema = tool.member("inputSchema").map(|schema| Arc::new(schema.clone()));
        let bytes = schema.as_ref().map_or(0, |schema| schema.json().len());
        Definition { pin: pin(tool), schema, bytes }
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
        self.learn(key, name, definition);
        found
    }

    /// What is found of a call.
    pub fn call(&self, server: &str, key: &Key, name: &str, arguments: Option<&Value>) -> Found {
        let learned = {
            let learned = self.learned.lock();
            learned.lists.get(key).and_then(|list| list.tools.get(name)).cloned()
        };
        let mut found = self.held(server, name, learned.as_ref());
        let approved = self.approved.get(server).and_then(|tools| tools.get(name));
        // What its server says now, is what it takes now.
        let Some(definition) = learned.as_ref().or(approved) else {
            return Found { unlisted: true, ..found };
        };
        let none = Value::Object(Vec::new());
        match definition.schema.as_ref().map(|schema| validate(schema, arguments.unwrap_or(&none))) {
            Some(Validity::Invalid { .. }) => found.invalid = true,
            Some(Validity::Unchecked { .. }) | None => found.unchecked = true,
            Some(Validity::Valid) => {}
        }
        found
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

    fn learn(&self, key: &Key, name: &str, definition: Definition) {
        let mut learned = self.learned.lock();
        let Learned { lists, bytes, count } = &mut *learned;
        *count += 1;
        if !lists.contains_key(key) && lists.len() >= LISTS_MAX {
            forget(lists, bytes);
        }
        let list = lists.entry(key.clone()).or_default();
        list.at = *count;
        let before = list.tools.remove(name).map_or(0, |old| old.bytes);
        (list.bytes, *bytes) = (list.bytes - before, *bytes - before);
        let mut definition = definition;
        if list.bytes + definition.bytes > LIST_BYTES_MAX {
            // That it is there, and what it was pinned by, is remembered all the same.
            (definition.schema, definition.bytes) = (None, 0);
        }
        if list.tools.len() < TOOLS_MAX {
            (list.bytes, *bytes) = (list.bytes + definition.bytes, *bytes + definition.bytes);
            list.tools.insert(name.to_owned(), definition);
        }
        while *bytes > BYTES_MAX && lists.len() > 1 {
            forget(lists, bytes);
        }
    }
}

/// Forgets what was learned longest ago.
fn forget(lists: &mut HashMap<Key, List>, bytes: &mut usize) {
    let oldest = lists.iter().min_by_key(|(_, list)| list.at).map(|(key, _)| key.clone());
    if let Some(list) = oldest.and_then(|key| lists.remove(&key)) {
        *bytes -= list.bytes;
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

    fn names(found: Found) -> Vec<&'static str> {
        found.names().collect()
    }

    #[test]
    fn calls_are_held_against_what_was_listed_to_the_agent() {
        let catalog = Catalog::default();
        let call =
            |agent, arguments: &str| names(catalog.call("s", &key(agent), "add", Some(&value(arguments))));
        assert_eq!(call(1, r#"{"n":1}"#), ["tool_unlisted"]);
        assert_eq!(names(catalog.list("s", &key(1), "add", &value(TOOL))), [""; 0]);
        assert_eq!(call(1, r#"{"n":1}"#), [""; 0]);
        assert_eq!(call(1, r#"{"n":"x"}"#), ["arguments_invalid"]);
        assert_eq!(names(catalog.call("s", &key(1), "add", None)), ["arguments_invalid"]);
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
        assert_eq!(names(catalog.call("s", &key(1), "add", Some(&value(r#"{"n":1}"#)))), [""; 0]);
        assert_eq!(names(catalog.call("s", &key(1), "add", Some(&value("{}")))), ["arguments_invalid"]);
        assert_eq!(names(catalog.list("s", &key(1), "add", &value(TOOL))), [""; 0]);
        assert_eq!(names(catalog.list("s", &key(1), "add", &value(&other))), ["tool_changed"]);
        assert_eq!(names(catalog.call("s", &key(1), "add", Some(&value(r#"{"n":1}"#)))), ["tool_changed"]);
        assert_eq!(names(catalog.call("s", &key(1), "rm", None)), ["tool_unapproved", "tool_unlisted"]);
    }

    #[test]
    fn what_was_learned_longest_ago_is_forgotten_first() {
        let catalog = Catalog::default();
        let tool = value(TOOL);
        for agent in 0..=u32::try_from(LISTS_MAX).expect("a number") {
            catalog.list("s", &key(agent), "add", &tool);
        }
        let listed = |agent| !names(catalog.call("s", &key(agent), "add", None)).contains(&"tool_unlisted");
        assert!(!listed(0) && listed(1));
        for n in 0..TOOLS_MAX + 10 {
            catalog.list("s", &key(9), &format!("t{n}"), &tool);
        }
        let learned = catalog.learned.lock();
        assert_eq!((learned.lists.len(), learned.lists[&key(9)].tools.len()), (LISTS_MAX, TOOLS_MAX));
        assert_eq!(learned.bytes, learned.lists.values().map(|list| list.bytes).sum::<usize>());
    }
}
