//! What a server of tools answers, as an agent gets to see it: lists without what it may not call, and of what the server asks
//! of its client (`asking.rs`) what policy permits.
//!
//! A document is held until it is whole, and an event until its end; all else of a stream goes on as it comes. Must never let
//! a list or a question pass that could not be read.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use clawgress_ebpf_common::DropReason;
use clawgress_inspect::tool::{Ends, Filtered, ToolError, Value, changed_events, filtered, is_like};
use clawgress_policy::content::ToolCall;
use clawgress_policy::{Look, Operation};

use super::super::Granted;
use super::asking::Asking;
use super::{Addressed, Messages};
use crate::decide;
use crate::exchange::Exchange;
use crate::gateway::Gateway;
use crate::memory::Charge;
use crate::page::Client;

/// Most bytes of a document, or of one event: a list of some thousand tools.
const HELD_BYTES_MAX: usize = 8 << 20;
/// Names that a record tells of what was taken out.
const REMOVED_TOLD: usize = 16;

/// A list that comes.
#[derive(Debug)]
pub struct Listing {
    gateway: Arc<Gateway>,
    addressed: Addressed,
    is_stream: bool,
    ends: Ends,
    held: BytesMut,
    charge: Charge,
    /// The first names of what was taken out, and how many more there were: a stream may list for ever.
    removed: Vec<String>,
    removed_more: usize,
    findings: Vec<String>,
    /// What is made of what the server asks.
    asking: Asking,
    /// Whether a list was asked for.
    lists: bool,
    /// Whether only what looks like messages is taken for some: nothing says that they are.
    guesses: bool,
    /// Whether it goes on as it comes: it is too large for what nobody decides by.
    passes: bool,
}

// === impl Listing ===

impl Listing {
    /// What looks at an answer of this type, if a client may take it for a list or a question: one to messages; any event of a
    /// server that is named, which may list and ask by a stream of its own; and of other streams that a client opens what looks
    /// like messages. What such a client gets is a stream of events, whatever it is said to be: the SDK in TypeScript does not look.
    #[must_use]
    pub fn of(
        gateway: &Arc<Gateway>,
        addressed: &Addressed,
        messages: Option<Arc<Messages>>,
        media_type: &str,
        (agent, client): (u32, Client),
    ) -> Option<Listing> {
        let media_type = media_type.split(';').next().unwrap_or_default().trim();
        let is_opened = messages.is_none() && addressed.opens();
        let is_stream = is_opened || media_type.eq_ignore_ascii_case("text/event-stream");
        let lists = messages.as_deref().is_some_and(Messages::lists);
        // What was asked for may come as whatever its server likes.
        let is_one = match &messages {
            Some(messages) => messages.are_answered(),
            None => is_stream && addressed.is_heard(),
        };
        let guesses = messages.is_none() && !addressed.is_meant();
        is_one.then(|| Listing {
            gateway: Arc::clone(gateway),
            addressed: addressed.clone(),
            is_stream,
            ends: Ends::default(),
            held: BytesMut::new(),
            charge: gateway.memory.charge(agent),
            removed: Vec::new(),
            removed_more: 0,
            findings: Vec::new(),
            asking: Asking::new(gateway, addressed, messages, client),
            lists,
            guesses,
            passes: false,
        })
    }

    /// Looks at what comes next, and leaves of it what may go on.
    ///
    /// # Errors
    /// If it can't be read, or there is no memory to hold it.
    pub fn push(
        &mut self,
        (granted, exchange): (&Granted, &mut Exchange),
        body: &mut Option<Bytes>,
        end: bool,
    ) -> Result<(), DropReason> {
        if self.passes {
            return Ok(());
        }
        self.held.extend_from_slice(body.as_deref().unwrap_or_default());
        if self.held.len() > HELD_BYTES_MAX {
            if self.lists || self.addressed.need.decided != Look::Nothing {
                exchange.detail(TOO_LARGE);
                return Err(DropReason::ContentUnreadable);
            }
            self.passes = true;
            self.charge.set(0)?;
            *body = Some(self.held.split().freeze());
            return Ok(());
        }
        // What it is read to takes about as much again.
        self.charge.set(self.held.capacity() * 2)?;
        let whole = match (end, self.is_stream) {
            (true, _) => self.held.len(),
            (false, true) => self.ends.next(&self.held),
            (false, false) => 0,
        };
        let part = self.held.split_to(whole).freeze();
        let other = self.filter((granted, &mut *exchange), &part).map_err(|error| {
            exchange.detail(&format!("what a tool server answered can't be read: {error}"));
            DropReason::ContentUnreadable
        })?;
        let out = other.map_or(part, Bytes::from);
        // Pingora takes none at all for the end, and sends nothing of one that is empty.
        *body = (!end || !out.is_empty()).then_some(out);
        Ok(())
    }

    fn filter(
        &mut self,
        (granted, exchange): (&Granted, &mut Exchange),
        part: &[u8],
    ) -> Result<Option<String>, ToolError> {
        if part.is_empty() {
            return Ok(None);
        }
        if !self.is_stream {
            return self.document((granted, exchange), part);
        }
        if self.guesses && std::str::from_utf8(part).is_err() && !is_like(part) {
            return Ok(None);
        }
        changed_events(part, &mut |data| self.document((granted, &mut *exchange), data))
    }

    /// What goes on in the place of a document; `None` if that is itself.
    fn document(
        &mut self,
        (granted, exchange): (&Granted, &mut Exchange),
        text: &[u8],
    ) -> Result<Option<String>, ToolError> {
        if self.guesses && !is_like(text) {
            return Ok(None);
        }
        if let Some(other) = self.asking.hear((granted, exchange), text)? {
            return Ok(Some(other));
        }
        // Also where it was none that was asked for: who waits for a list may take it from another's answer.
        let less = self.list(granted, text)?;
        Ok(less.map(|Filtered { body, removed }| {
            let room = REMOVED_TOLD.saturating_sub(self.removed.len());
            self.removed_more = self.removed_more.saturating_add(removed.len().saturating_sub(room));
            self.removed.extend(removed.into_iter().take(room));
            body
        }))
    }

    fn list(&mut self, granted: &Granted, text: &[u8]) -> Result<Option<Filtered>, ToolError> {
        let Listing { gateway, addressed, findings, .. } = self;
        // Without a plan nothing is allowed.
        let asked = gateway.snapshots.current().ok().and_then(|plan| {
            let who = granted.who().under(&plan, gateway.now_s()).ok()?;
            Some((plan, who))
        });
        let mut allowed = |name: &str, tool: &Value| {
            let found = gateway.tools.catalog.list(addressed.server(), &addressed.key, name, tool);
            let found: Vec<String> = found.names().map(str::to_owned).collect();
            findings.extend(
                found.iter().filter(|finding| !findings.contains(finding)).cloned().collect::<Vec<_>>(),
            );
            let Some((plan, who)) = &asked else { return false };
            let call = ToolCall {
                host: &granted.admitted().host,
                port: granted.admitted().port,
                server: addressed.server(),
                method: "tools/call",
                name,
                argument_names: &[],
                values: &[],
                arguments: "",
                findings: &found,
            };
            decide::may_call_tool(plan, who, Operation::Tool(call))
        };
        filtered(text, &mut allowed)
    }

    /// What was changed, in words; and what was found.
    #[must_use]
    pub fn finish(self) -> (Option<String>, Vec<String>) {
        let told = self.removed.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>();
        let more = self.removed_more;
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        let change = format!("tools/list: without {}{more}", told.join(", "));
        ((!told.is_empty()).then_some(change), self.findings)
    }
}

/// Why an answer does not go on.
const TOO_LARGE: &str =
    "a tool server's answer, or an event of it, is larger than 8 MiB: what it lists or asks can't be judged";
