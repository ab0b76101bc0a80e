//! What policy says of a WebSocket before it is opened, and whether its messages have to be read for that.
//!
//! INVARIANT: none is opened, nor stays open, where what is in its messages decides, and nobody reads them.

use clawgress_ebpf_common::DropReason;
use clawgress_inspect::llm::answer::Following;
use clawgress_policy::content::{Payload, Usage};
use clawgress_policy::{CallsLook, CallsNeed, Look, Operation, PayloadNeed};
use http::StatusCode;

use super::Admitted;
use super::model::{Facts, Unread};
use super::said::operation;
use crate::decide::{self, Ruling};
use crate::gateway::Gateway;
use crate::identify::Who;
use crate::snapshot::Plan;

/// What is known of a message that was not read.
const UNREAD: Payload<'static> = Payload { bytes: 0, complete: false, media_type: "", findings: &[] };

/// Whether messages of one side are read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reading {
    /// They pass as they come.
    #[default]
    Unread,
    /// Only to be told of: what can't be read passes.
    Told,
    /// What can't be read does not go on.
    Decides,
}

/// Whether what is sent is read, and what comes back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reads {
    /// Of the client.
    pub sent: Reading,
    /// Of the server.
    pub received: Reading,
}

// === impl Reads ===

impl Reads {
    /// Whether any is read.
    #[must_use]
    pub fn any(self) -> bool {
        self != Reads::default()
    }

    /// Whether what is read so is enough for what `wanted` decides.
    #[must_use]
    pub fn covers(self, wanted: Reads) -> bool {
        let is_enough = |is: Reading, wanted: Reading| wanted != Reading::Decides || is != Reading::Unread;
        is_enough(self.sent, wanted.sent) && is_enough(self.received, wanted.received)
    }
}

fn reading(decided: Look, logged: Look) -> Reading {
    match (decided, logged) {
        (Look::Nothing, Look::Nothing) => Reading::Unread,
        (Look::Nothing, _) => Reading::Told,
        _ => Reading::Decides,
    }
}

/// What `send` is asked about what the client may send.
#[must_use]
pub fn sent(admitted: &Admitted) -> Operation<'_> {
    operation(admitted, UNREAD)
}

/// Whether what the client sends decides now.
#[must_use]
pub fn decides_sent(plan: &Plan, who: &Who, admitted: &Admitted) -> bool {
    decide::payload_need(plan, who, sent(admitted), false).decided != Look::Nothing
}

/// What `receive` is asked about what may come back.
fn received(admitted: &Admitted) -> Operation<'_> {
    Operation::Receive {
        host: &admitted.host,
        port: admitted.port,
        status: StatusCode::SWITCHING_PROTOCOLS.as_u16(),
        payload: UNREAD,
        usage: Usage::default(),
    }
}

/// The ruling on a request that opens a WebSocket, of which `http` says so much: by `tunnel`, where its messages stay unread; by
/// `send` and `receive`, of each, where these ask what is in them, or where `tunnel` does not permit it but each is judged; and
/// which are read.
#[must_use]
pub fn rule(gateway: &Gateway, plan: &Plan, who: &Who, admitted: &Admitted, http: Ruling) -> (Ruling, Reads) {
    let (unread, read) = decide::web_socket(plan, who, (&admitted.host, admitted.port), http);
    let mut reads = Reads::default();
    let opened = match (unread.verdict, read) {
        (Ok(()), _) => unread,
        // Nothing of it stays unread that its client sends, and each message needs a permit.
        (Err(DropReason::InspectionRequired), Some(read)) if decide::permits_send(plan, who) => {
            reads.sent = Reading::Decides;
            read
        }
        (Err(_), _) => return (unread, reads),
    };
    if gateway.tools.is_named(admitted) && decide::tool_need(plan, who).decided != Look::Nothing {
        return (unreadable("tool", &opened), reads);
    }
    // Messages of a conversation with a model are calls of it. Those of another nobody reads.
    let converses = gateway.calls.converses(admitted).is_some();
    if !converses && needs_call_read(gateway, plan, who, admitted) {
        return (unreadable("llm", &opened), reads);
    }
    let calls = if converses { decide::call_need(plan, who) } else { PayloadNeed::default() };
    match rule_sent(plan, who, admitted, opened) {
        Ok((ruling, sent)) => {
            reads.sent = reads.sent.max(sent).max(reading(calls.decided, calls.logged));
            if calls.look() != Look::Nothing {
                // What it takes is counted.
                reads.received = Reading::Told;
            }
            rule_received(gateway, plan, who, admitted, ruling, reads)
        }
        Err(denied) => (denied, reads),
    }
}

/// Whether what policy says of a call depends on messages to a provider of models that are not read.
fn needs_call_read(gateway: &Gateway, plan: &Plan, who: &Who, admitted: &Admitted) -> bool {
    let calling = gateway.calls.calling(plan, who, admitted, gateway.audit.now());
    let facts = calling.as_ref().and_then(|calling| calling.before(Unread::NONE));
    let needs = |facts: &Facts| {
        let operation = facts.operation(admitted);
        // What is refused without is refused as it is.
        decide::llm(plan, who, operation).verdict.is_ok() && decide::needs_call_read(plan, who, operation)
    };
    facts.as_ref().is_some_and(needs)
}

fn unreadable(action: &'static str, opened: &Ruling) -> Ruling {
    Ruling::deny(action, DropReason::InspectionRequired).obliged_by(opened)
}

/// How calls that a server's messages ask for are put together, of a conversation with a model.
#[must_use]
pub fn following(plan: &Plan, who: &Who, admitted: &Admitted) -> Option<Following> {
    let CallsNeed { decided, logged } = decide::calls_need(plan, who, received(admitted));
    match (decided, logged) {
        (CallsLook::Whole, _) => Some(Following::Held),
        (_, CallsLook::Whole) => Some(Following::Told),
        (CallsLook::Nothing, CallsLook::Nothing) => None,
        _ => Some(Following::Names),
    }
}

/// Where no answer depends on what is sent, it is asked for now.
fn rule_sent(
    plan: &Plan,
    who: &Who,
    admitted: &Admitted,
    opened: Ruling,
) -> Result<(Ruling, Reading), Ruling> {
    if !decide::asks_send(plan, who) {
        return Ok((opened, Reading::Unread));
    }
    let need = decide::payload_need(plan, who, sent(admitted), false);
    let ruling = match need.decided {
        Look::Nothing => {
            let action = opened.action;
            Ruling { action, ..decide::send(plan, who, sent(admitted)).after_all(opened)? }
        }
        _ => opened,
    };
    Ok((ruling, reading(need.decided, need.logged)))
}

/// The same of what comes back: where no guard asks, it needs no permission.
fn rule_received(
    gateway: &Gateway,
    plan: &Plan,
    who: &Who,
    admitted: &Admitted,
    opened: Ruling,
    mut reads: Reads,
) -> (Ruling, Reads) {
    let (asks, decides) = decide::asks_receive(plan, who);
    if !asks {
        return (opened, reads);
    }
    let need = decide::payload_need(plan, who, received(admitted), false);
    reads.received = reads.received.max(reading(need.decided, need.logged));
    if need.decided != Look::Nothing {
        // What a model says and asks for is put together of messages that are known.
        let is_plain = || {
            decide::calls_need(plan, who, received(admitted)).decided == CallsLook::Nothing
                && gateway.calls.provider(admitted).is_none()
        };
        let is_followed = gateway.calls.converses(admitted).is_some() || is_plain();
        return if is_followed { (opened, reads) } else { (unreadable("receive", &opened), reads) };
    }
    if !decides {
        return (opened, reads);
    }
    let action = opened.action;
    match decide::receive(plan, who, received(admitted)).after_all(opened) {
        Ok(asked) => (Ruling { action, ..asked }, reads),
        Err(denied) => (denied, reads),
    }
}
