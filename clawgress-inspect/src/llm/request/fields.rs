//! Fields of forms as members of a request. Must never take a field for a text where a server takes it for a document.

use super::super::grammar::Node;
use super::super::key::Key;
use super::super::{CallError, Field, Piece};
use super::{Attachment, Request, Scalar};
use crate::payload::json::{Event, Kind};

impl Request {
    /// Begins a field of a form, which stands for a member of the document. Of a form whose fields may be documents (`documents`: whether
    /// this one is said to be), whether its value is one if it begins like one: it has not begun then.
    ///
    /// # Errors
    /// Why what it asks for can't be known: from then on for good.
    pub fn begin_field(
        &mut self,
        field: &Field,
        documents: Option<bool>,
        sink: &mut dyn FnMut(&Piece<'_>),
    ) -> Result<bool, CallError> {
        self.is_form = true;
        if self.frames.is_empty() {
            let _ = self.event(Event::Open { object: true }, sink);
        }
        // What fails is told at the end.
        let _ = self.event(Event::Begin(Kind::Key), sink);
        let _ = self.event(Event::Piece(field.name.as_bytes()), sink);
        let _ = self.event(Event::End, sink);
        if let Some(is_document) = documents {
            // Some servers put documents together of fields that name a place in one.
            let within = field.name.split_once('[').map(|(name, _)| member(name));
            if within.is_some_and(Node::holds_documents) {
                return self.event_fails(CallError::Name).map(|()| false);
            }
            if is_document && self.next == Node::Skip {
                // Whatever it is called: a server that takes it may take all of a call from it.
                (self.next, self.wraps) = (Node::Root, true);
            }
            if is_document || self.next.holds_documents() {
                return Ok(true);
            }
        }
        if field.is_file {
            // Its bytes are as they are.
            let is_typed = self.next.is_scalar() || self.next == Node::EndUser;
            (self.scalar, self.next) = (Scalar::File, Node::Skip);
            // `image[]` and `mask`, of those that are edited.
            self.attachment = Attachment::said(field.name.starts_with("image") || field.name == "mask");
            let fails = if is_typed { Some(CallError::Type) } else { self.error };
            return fails.map_or(Ok(false), |error| self.event_fails(error).map(|()| false));
        }
        self.begin_value(sink).map(|()| false)
    }

    /// Begins a value of a form that is no document.
    ///
    /// # Errors
    /// As [`begin_field`](Self::begin_field).
    pub fn begin_value(&mut self, sink: &mut dyn FnMut(&Piece<'_>)) -> Result<(), CallError> {
        let is_word = self.next.is_scalar() && self.next != Node::Model;
        self.event(Event::Begin(if is_word { Kind::Word } else { Kind::Text }), sink)
    }
}

/// What a member of the request by this name is.
fn member(name: &str) -> Node {
    let known = Key::exact(name).or_else(|| Key::folded(name));
    known.map_or_else(|| Node::Root.other(name), |key| Node::Root.member(key))
}
