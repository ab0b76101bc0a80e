//! What policy says of the messages of a WebSocket, of which nothing is known when it is opened.
//!
//! INVARIANT: none is opened, nor stays open, where what is in its messages decides, and nobody reads them.

use clawgress_ebpf_common::DropReason;
use clawgress_policy::content::{Payload, Usage};
use clawgress_policy::{CallsLook, Look, Operation};
use http::StatusCode;

use super::Admitted;
use super::said::operation;
use crate::decide::{self, Ruling};
use crate::gateway::Gateway;
use crate::identify::Who;
use crate::snapshot::Plan;

/// What is known of a message that was not read.
const UNREAD: Payload<'static> = Payload { bytes: 0, complete: false, media_type: "", findings: &[] };

/// What `send` is asked about what the client may send.
#[must_use]
pub fn sent(admitted: &Admitted) -> Operation<'_> {
    operation(admitted, UNREAD)
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

/// The ruling on a WebSocket that `opened` lets begin, once `send`, `receive` and `tool` are asked of its messages.
#[must_use]
pub fn rule(gateway: &Gateway, plan: &Plan, who: &Who, admitted: &Admitted, opened: Ruling) -> Ruling {
    if opened.verdict.is_err() {
        return opened;
    }
    let unread = |action| Ruling::deny(action, DropReason::InspectionRequired);
    if gateway.tools.is_named(admitted) && decide::tool_need(plan, who).decided != Look::Nothing {
        return unread("tool").obliged_by(&opened);
    }
    let (action, mut ruling) = (opened.action, opened);
    if decide::asks_send(plan, who) {
        match decide::send(plan, who, sent(admitted)).after_all(ruling) {
            Ok(asked) => ruling = Ruling { action, ..asked },
            Err(denied) => return denied,
        }
        if decide::payload_need(plan, who, sent(admitted), false).decided != Look::Nothing {
            return unread("send").obliged_by(&ruling);
        }
    }
    // Where no guard asks, answers need no permission.
    if decide::asks_receive(plan, who).1 {
        match decide::receive(plan, who, received(admitted)).after_all(ruling) {
            Ok(asked) => ruling = Ruling { action, ..asked },
            Err(denied) => return denied,
        }
        let need = decide::payload_need(plan, who, received(admitted), false);
        let calls = decide::calls_need(plan, who, received(admitted));
        if need.decided != Look::Nothing || calls.decided != CallsLook::Nothing {
            return unread("receive").obliged_by(&ruling);
        }
    }
    ruling
}
