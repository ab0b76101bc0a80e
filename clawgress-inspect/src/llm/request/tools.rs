//! Tools that a request offers, and which of them it chooses. Must never miss one that a server takes for offered.

use super::{CallError, Frame, Key, Node, Request, TOOLS_MAX, UNNAMED};
use crate::llm::call::{Choice, is_manner};

/// Types that are no names: of what has one of its own, or has another tool within.
const WRAPS: [&str; 4] = ["function", "custom", "tool_definition", "tool_reference"];

impl Request {
    /// A member of a tool that is no known one: one of its own where the tool has no name and no type.
    pub(super) fn perhaps_tool(&mut self, name: String) -> Result<(), CallError> {
        let depth = self.frames.len();
        if self.unknown.len() >= TOOLS_MAX {
            return Err(CallError::ToolsTooMany);
        }
        self.unknown.push((depth, name));
        Ok(())
    }

    /// A tool ends: what it is called by, besides what it was offered as.
    pub(super) fn tool_ends(&mut self, frame: Frame) -> Result<(), CallError> {
        let depth = self.frames.len() + 1;
        let of = |all: &mut Vec<(usize, String)>| {
            let from = all.iter().rposition(|(known, _)| *known < depth).map_or(0, |at| at + 1);
            all.split_off(from)
        };
        let (unknown, kinds) = (of(&mut self.unknown), of(&mut self.tool_types));
        let has = |key: Key| frame.keys & key.bit() != 0;
        let is_inner = self.frames.last().is_some_and(|outer| outer.node == Node::Tool);
        let is_named = [Key::Name, Key::Type, Key::Id, Key::Function, Key::ToolSpec].into_iter().any(has);
        if !is_inner && !is_named {
            for (_, name) in unknown {
                let name = super::name(Some(&name))?;
                self.offer(name)?;
            }
        }
        let is_bare = self.offered == frame.offered;
        for (_, kind) in kinds {
            // What providers run themselves is called by either.
            if is_bare || !is_inner && !WRAPS.contains(&&*kind) {
                self.offer(kind)?;
            }
        }
        let is_group = has(Key::FunctionDeclarations);
        if self.offered == frame.offered && !is_group { self.offer(UNNAMED.to_owned()) } else { Ok(()) }
    }

    /// A tool that is offered.
    pub(super) fn offer(&mut self, name: String) -> Result<(), CallError> {
        self.offered += 1;
        if self.known.contains(&name) {
            return Ok(());
        }
        if self.call.tools.len() >= TOOLS_MAX {
            return Err(CallError::ToolsTooMany);
        }
        self.known.insert(name.clone());
        self.call.tools.push(name);
        Ok(())
    }

    /// A tool by its name is more than how any is chosen.
    pub(super) fn choose(&mut self, name: String) {
        match &self.call.tool_choice {
            Choice::Named(known) if !is_manner(known) && is_manner(&name) => {}
            _ => self.call.tool_choice = Choice::Named(name),
        }
    }
}
