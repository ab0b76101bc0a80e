//! Lists of tools in what a server answers, as an agent gets to see them: without what it may not call.
//!
//! A document is held until it is whole, and an event until its end; all else of a stream goes on as it comes. Must never let
//! a list pass that could not be read.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use clawgress_ebpf_common::DropReason;
use clawgress_inspect::tool::{Ends, Filtered, ToolError, Value, filtered, filtered_events};
use clawgress_policy::Operation;
use clawgress_policy::content::ToolCall;

use super::super::Granted;
use super::{Addressed, Messages};
use crate::decide;
use crate::gateway::Gateway;
use crate::memory::Charge;

/// Most bytes of a list, or of one event: some thousand tools.
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
    removed: Vec<String>,
    findings: Vec<String>,
}

// === impl Listing ===

impl Listing {
    /// What looks at an answer of this type, if it may hold a list: one that was asked for, or any event of a server that is
    /// named, whose lists may come by a stream of its own.
    #[must_use]
    pub fn of(
        gateway: &Arc<Gateway>,
        addressed: &Addressed,
        messages: Option<&Messages>,
        media_type: &str,
        agent: u32,
    ) -> Option<Listing> {
        let media_type = media_type.split(';').next().unwrap_or_default().trim();
        let is_stream = media_type.eq_ignore_ascii_case("text/event-stream");
        let lists = messages.is_some_and(Messages::lists);
        // What was asked for may come as whatever its server likes.
        let may_list = lists || is_stream && (addressed.is_named() || messages.is_some());
        may_list.then(|| Listing {
            gateway: Arc::clone(gateway),
            addressed: addressed.clone(),
            is_stream,
            ends: Ends::default(),
            held: BytesMut::new(),
            charge: gateway.memory.charge(agent),
            removed: Vec::new(),
            findings: Vec::new(),
        })
    }

    /// Looks at what comes next, and leaves of it what may go on.
    ///
    /// # Errors
    /// If it can't be read, or there is no memory to hold it.
    pub fn push(&mut self, granted: &Granted, body: &mut Option<Bytes>, end: bool) -> Result<(), DropReason> {
        self.held.extend_from_slice(body.as_deref().unwrap_or_default());
        if self.held.len() > HELD_BYTES_MAX {
            return Err(DropReason::ContentUnreadable);
        }
        // What it is read to takes about as much again.
        self.charge.set(self.held.capacity() * 2)?;
        let whole = match (end, self.is_stream) {
            (true, _) => self.held.len(),
            (false, true) => self.ends.next(&self.held),
            (false, false) => 0,
        };
        let part = self.held.split_to(whole).freeze();
        let less = self.filter(granted, &part).map_err(|error| {
            tracing::debug!(%error, "a list of tools that can't be read");
            DropReason::ContentUnreadable
        })?;
        let out = match less {
            Some(Filtered { body, removed }) => {
                self.removed.extend(removed);
                Bytes::from(body)
            }
            None => part,
        };
        // Pingora takes none at all for the end, and sends nothing of one that is empty.
        *body = (!end || !out.is_empty()).then_some(out);
        Ok(())
    }

    fn filter(&mut self, granted: &Granted, part: &[u8]) -> Result<Option<Filtered>, ToolError> {
        let Listing { gateway, addressed, findings, is_stream, .. } = self;
        if part.is_empty() {
            return Ok(None);
        }
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
        if *is_stream { filtered_events(part, &mut allowed) } else { filtered(part, &mut allowed) }
    }

    /// What was changed, in words; and what was found.
    #[must_use]
    pub fn finish(self) -> (Option<String>, Vec<String>) {
        let told = self.removed.iter().take(REMOVED_TOLD).map(|name| format!("`{name}`")).collect::<Vec<_>>();
        let more = self.removed.len().saturating_sub(told.len());
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        let change = format!("tools/list: without {}{more}", told.join(", "));
        ((!told.is_empty()).then_some(change), self.findings)
    }
}
