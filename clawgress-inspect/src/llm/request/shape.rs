//! What a request looks like, by its names. Must never decide what it asks for.

use super::{Frame, Key, Node, Request};
use crate::llm::call::{Shape, Signs};
use crate::llm::key::{PARAMETERS, TUNING};

impl Request {
    /// A name that is known, and what it is a sign of.
    pub(super) fn shape_of(&mut self, node: Node, key: Key, signs: Signs) {
        let is_root = self.frames.len() == 1;
        let shape = &mut self.call.shape;
        shape.input |= is_root && key == Key::Input;
        shape.inputs |= is_root && key == Key::Inputs;
        shape.prompt |= is_root && (self.next == Node::Prompt || key == Key::InputText);
        shape.text |= is_root && self.next == Node::Say(crate::llm::Role::User);
        shape.tuned |= is_root
            && matches!(
                self.next,
                Node::Cap(_) | Node::Copies | Node::Stream | Node::Config | Node::ToolConfig
            );
        shape.messages_field |= is_root && matches!(key, Key::Messages | Key::ChatHistory);
        shape.contents_field |= is_root && key == Key::Contents;
        shape.contents |= node == Node::Message && key == Key::Parts;
        shape.signs.add(signs);
        self.call.has_stream_options |= is_root && key == Key::StreamOptions;
    }

    /// A part of a message has ended.
    pub(super) fn shape_of_part(&mut self, frame: Frame) {
        let has = |key: Key| frame.keys & key.bit() != 0;
        self.call.shape.signs.add(match () {
            () if has(Key::Type) => Signs::TYPED,
            () if has(Key::Text) => Signs::UNTYPED,
            () => Signs::default(),
        });
    }
}

/// What a name that is known is a sign of, in an object of this kind.
pub(super) fn signs_of(node: Node, is_root: bool, key: Key, name: &str) -> Signs {
    match (node, key) {
        (Node::Root, _) if is_root => Signs::of_root(name),
        (Node::Tool, Key::Function) | (Node::Message, Key::ToolCalls) => Signs::FUNCTIONS,
        (Node::Tool, Key::InputSchema) if name == "input_schema" => Signs::ANTHROPIC,
        (Node::Part(None), Key::ToolUse | Key::ToolResult) => Signs::CONVERSE,
        _ => Signs::default(),
    }
}

/// What one that is not known tells.
pub(super) fn shape_of_other(shape: &mut Shape, node: Node, is_root: bool, name: &str) {
    shape.tuned |= is_root && TUNING.contains(&name);
    shape.capped |= is_root && name.eq_ignore_ascii_case("n_predict");
    let is_bare = |bare: &&str| name.eq_ignore_ascii_case(bare);
    shape.bare |= is_root && ["sampling_params", "input_prefix", "input_suffix"].iter().any(is_bare);
    shape.parameters |= node == Node::Config && (TUNING.contains(&name) || PARAMETERS.contains(&name));
    shape.signs.add(if is_root { Signs::of_root(name) } else { Signs::default() });
}
