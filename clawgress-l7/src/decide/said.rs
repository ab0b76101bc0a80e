//! Questions about what is said: bodies, calls of models and tools, and what comes back. Must never turn what was not seen into an
//! allow.

use clawgress_ebpf_common::DropReason;
use clawgress_policy::{CallsNeed, Need, Operation, PayloadNeed, Request};

use super::{Ruling, ask, policy};
use crate::identify::Who;
use crate::snapshot::Plan;

/// Whether anything is to be asked about bodies of `who`'s requests.
#[must_use]
pub fn asks_send(plan: &Plan, who: &Who) -> bool {
    plan.of(&who.identity.agent).is_some_and(|policy| policy.names_send())
}

/// Whether a guard is asked, so that each body of `who`'s has to be permitted.
#[must_use]
pub fn permits_send(plan: &Plan, who: &Who) -> bool {
    plan.of(&who.identity.agent).is_some_and(|policy| policy.asks_send())
}

/// How much of a request of `who` has to be seen to know what model it calls.
#[must_use]
pub fn call_need(plan: &Plan, who: &Who) -> PayloadNeed {
    plan.of(&who.identity.agent).map_or_else(PayloadNeed::default, |policy| policy.needs_call())
}

/// Whether calls of models that `who` makes may be changed before they go on.
#[must_use]
pub fn changes_calls(plan: &Plan, who: &Who) -> bool {
    plan.of(&who.identity.agent).is_some_and(|policy| policy.changes_calls())
}

/// How much of a request of `who` has to be seen to know what it sends to a tool server.
#[must_use]
pub fn tool_need(plan: &Plan, who: &Who) -> PayloadNeed {
    plan.of(&who.identity.agent).map_or_else(PayloadNeed::default, |policy| policy.needs_tool())
}

/// `tool`.
#[must_use]
pub fn tool(plan: &Plan, who: &Who, operation: Operation<'_>) -> Ruling {
    ask(plan, who, operation)
}

/// Whether `who` may call a tool with some arguments, by all that is known but these.
#[must_use]
pub fn may_call_tool(plan: &Plan, who: &Who, operation: Operation<'_>) -> bool {
    let agent = &who.identity.agent;
    policy(plan, who).is_some_and(|policy| policy.may_call(&Request { agent, operation }))
}

/// Who needs to know what `who` did before, of a call of a model or tool: of whatever call, since nothing is known of it yet.
#[must_use]
pub fn call_needs_history(plan: &Plan, who: &Who) -> Need {
    let agent = &who.identity.agent;
    let reads = || plan.of(agent).is_some_and(|policy| policy.call_reads_history());
    if plan.asks_history(agent) && reads() { Need::Decided } else { Need::None }
}

/// `llm`.
#[must_use]
pub fn llm(plan: &Plan, who: &Who, operation: Operation<'_>) -> Ruling {
    ask(plan, who, operation)
}

/// Whether that depends on what is in the call, where nobody reads it.
#[must_use]
pub fn needs_call_read(plan: &Plan, who: &Who, operation: Operation<'_>) -> bool {
    let agent = &who.identity.agent;
    policy(plan, who).is_some_and(|policy| policy.needs_call_read(&Request { agent, operation }))
}

/// Who needs to know what `who` did before, of this `send`, of whose body nothing is known yet.
#[must_use]
pub fn send_needs_history(plan: &Plan, who: &Who, operation: Operation<'_>) -> Need {
    let agent = &who.identity.agent;
    if !plan.asks_history(agent) {
        return Need::None;
    }
    let request = Request { agent, operation };
    policy(plan, who).map_or(Need::None, |policy| policy.needs_history_unseen(&request))
}

/// How much of the body of this `send` has to be seen, whose size is told where it is declared.
#[must_use]
pub fn payload_need(plan: &Plan, who: &Who, operation: Operation<'_>, is_size_known: bool) -> PayloadNeed {
    let (Some(policy), agent) = (policy(plan, who), &who.identity.agent) else {
        return PayloadNeed::default();
    };
    policy.needs_payload(&Request { agent, operation }, is_size_known)
}

/// `send`.
#[must_use]
pub fn send(plan: &Plan, who: &Who, operation: Operation<'_>) -> Ruling {
    ask(plan, who, operation)
}

/// Whether anything is to be asked about what comes back of `who`'s requests; and whether guards are, so that each answer has
/// to be permitted.
#[must_use]
pub fn asks_receive(plan: &Plan, who: &Who) -> (bool, bool) {
    let policy = plan.of(&who.identity.agent);
    policy.map_or((false, false), |policy| (policy.names_receive(), policy.asks_receive()))
}

/// Whether anything that is decided of what comes back of `who`'s requests may depend on what is in it.
#[must_use]
pub fn decides_receive(plan: &Plan, who: &Who) -> bool {
    plan.of(&who.identity.agent).is_some_and(|policy| policy.decides_receive())
}

/// Whether what is decided of this `send`, or `receive`, depends on a media type that nobody knows.
#[must_use]
pub fn needs_media_type(plan: &Plan, who: &Who, operation: Operation<'_>) -> bool {
    let agent = &who.identity.agent;
    policy(plan, who).is_some_and(|policy| policy.needs_media_type(&Request { agent, operation }))
}

/// What has to be known of the calls of tools that this answer asks for.
#[must_use]
pub fn calls_need(plan: &Plan, who: &Who, operation: Operation<'_>) -> CallsNeed {
    let (Some(policy), agent) = (policy(plan, who), &who.identity.agent) else { return CallsNeed::default() };
    policy.needs_calls(&Request { agent, operation })
}

/// Who needs to know what `who` did before, for what comes back: whatever that will be.
#[must_use]
pub fn receive_needs_history(plan: &Plan, who: &Who) -> Need {
    let agent = &who.identity.agent;
    let reads = || plan.of(agent).is_some_and(|policy| policy.receive_reads_history());
    if plan.asks_history(agent) && reads() { Need::Decided } else { Need::None }
}

/// `receive`.
#[must_use]
pub fn receive(plan: &Plan, who: &Who, operation: Operation<'_>) -> Ruling {
    ask(plan, who, operation).of_answer()
}

/// What policy says of what may be seen in part. Of that, a forbid counts as it is; and a permit must hold as if what was seen
/// were all: nothing goes on that none covers.
pub fn in_part(is_complete: bool, ask: impl Fn(bool) -> Ruling) -> Ruling {
    let now = ask(is_complete);
    if is_complete || now.verdict.is_err_and(|reason| reason != DropReason::PolicyDenied) {
        return now;
    }
    let whole = ask(true);
    match whole.verdict {
        Ok(()) => Ruling { verdict: Ok(()), policies: whole.policies, ..now },
        // A forbid of what is complete is for when it is; whether anything permits it, it hides.
        Err(DropReason::PolicyForbidden) => match now.verdict {
            Ok(()) => Ruling { policies: whole.policies, ..now },
            Err(_) => now,
        },
        Err(_) => Ruling { verdict: whole.verdict, policies: whole.policies, ..now },
    }
}
