//! What is known of a request's body, or of what it sends without one, and what policy says of that: `send`, `llm` and `tool`.

use std::sync::Arc;

use clawgress_api::Looked;
use clawgress_ebpf_common::DropReason;
use clawgress_inspect::http1;
use clawgress_policy::content::Payload;
use clawgress_policy::{Look, Operation};

use super::Admitted;
use super::model::Facts;
use super::receive::TYPE_UNCLEAR;
use super::tool::Messages;
use crate::decide::{self, Ruling};
use crate::gateway::Gateway;
use crate::identify::Who;
use crate::snapshot::Plan;

/// What policy is asked about a body.
#[derive(Clone, Debug, Default)]
pub struct Said {
    /// How much of it is looked at.
    pub(super) looked: Look,
    pub(super) media_type: String,
    /// Whether what it is said to be is not known.
    pub(super) is_type_unclear: bool,
    /// Those declared.
    pub(super) declared: Option<u64>,
    /// Those seen.
    pub(super) seen: u64,
    pub(super) complete: bool,
    pub(super) findings: Vec<String>,
    /// Whether there is one.
    pub(super) has_body: bool,
    /// Whether there is none, and its request's head carries something all the same.
    pub(super) carries: bool,
    /// Whether it is known whether it calls a model, and what is known of the call.
    pub(super) is_call_known: bool,
    pub(super) call: Option<Arc<Facts>>,
    /// Likewise of messages to a tool server.
    pub(super) is_tool_known: bool,
    pub(super) messages: Option<Arc<Messages>>,
}

// === impl Said ===

impl Said {
    pub(super) fn payload(&self, complete: bool) -> Payload<'_> {
        Payload {
            bytes: self.declared.unwrap_or(self.seen),
            complete,
            media_type: &self.media_type,
            findings: &self.findings,
        }
    }

    /// What is known of the model that it calls.
    #[must_use]
    pub fn call(&self) -> Option<Arc<Facts>> {
        self.call.clone()
    }

    /// What is known of the messages to a tool server that it is.
    #[must_use]
    pub fn messages(&self) -> Option<Arc<Messages>> {
        self.messages.clone()
    }

    /// Why something of it is not known, whatever is in it, if policy refused it for that.
    #[must_use]
    pub fn unknown(&self) -> Option<String> {
        let is_unclear = || self.is_type_unclear.then(|| TYPE_UNCLEAR.to_owned());
        self.messages.as_deref().and_then(Messages::forgotten).or_else(is_unclear)
    }

    /// What policy says of it, and of the calls that it is.
    #[must_use]
    pub fn rule(&self, gateway: &Gateway, plan: &Plan, who: &Who, admitted: &Admitted) -> Ruling {
        let send = if self.has_body || self.carries {
            self.rule_body(plan, who, admitted)
        } else {
            // Nothing is sent.
            Ruling::allow("send")
        };
        if send.verdict.is_err() {
            return send;
        }
        let llm = match self.rule_call(gateway, plan, who, admitted) {
            Some(llm) => llm.after_all(send),
            None => Ok(send),
        };
        let llm = match llm {
            Ok(ruling) => ruling,
            Err(denied) => return denied,
        };
        self.rule_messages(gateway, plan, who, admitted, llm)
    }

    /// What policy says of the call of a model that it is.
    fn rule_call(&self, gateway: &Gateway, plan: &Plan, who: &Who, admitted: &Admitted) -> Option<Ruling> {
        match &self.call {
            Some(call) => Some(decide::llm(plan, who, call.operation(admitted))),
            None if self.is_call_known => None,
            // Policy asks about calls since it began to come.
            None => {
                let calling = gateway.calls.calling(plan, who, admitted, gateway.audit.now())?;
                let is_asked = calling.route.is_some() && calling.need.decided != Look::Nothing;
                is_asked.then(|| Ruling::deny("llm", DropReason::InspectionRequired))
            }
        }
    }

    /// What policy says of the messages that it is: of each of them.
    fn rule_messages(
        &self,
        gateway: &Gateway,
        plan: &Plan,
        who: &Who,
        admitted: &Admitted,
        before: Ruling,
    ) -> Ruling {
        let Some(messages) = &self.messages else {
            let is_late = !self.is_tool_known
                && gateway.tools.is_meant(admitted)
                && decide::tool_need(plan, who).decided != Look::Nothing;
            return if is_late { Ruling::deny("tool", DropReason::InspectionRequired) } else { before };
        };
        let (mut ruling, mut limits) = (before, Vec::new());
        for (operation, is_known) in messages.operations(admitted) {
            let is_asked = || decide::payload_need(plan, who, operation, true).decided == Look::Content;
            if !is_known && is_asked() {
                // What would have been found may be what a policy waits for.
                return Ruling::deny("tool", DropReason::ContentUnreadable).obliged_by(&ruling);
            }
            match decide::tool(plan, who, operation).of_batch(&mut limits).after_all(ruling) {
                Ok(next) => ruling = next,
                Err(denied) => return denied,
            }
        }
        ruling
    }

    /// What policy says of the body.
    fn rule_body(&self, plan: &Plan, who: &Who, admitted: &Admitted) -> Ruling {
        let asked = |complete| operation(admitted, self.payload(complete));
        if self.is_type_unclear && decide::needs_media_type(plan, who, asked(false)) {
            return Ruling::deny("send", DropReason::ContentUnreadable);
        }
        if decide::payload_need(plan, who, asked(false), self.declared.is_some()).decided > self.looked {
            // Policy asks for more than it did when the body began to come.
            return Ruling::deny("send", DropReason::InspectionRequired);
        }
        decide::in_part(self.complete, |complete| decide::send(plan, who, asked(complete)))
    }
}

/// How much of something is looked at, in a record's words.
pub(super) fn told(looked: Look) -> Looked {
    match looked {
        Look::Nothing => Looked::Nothing,
        Look::Size => Looked::Size,
        Look::Content => Looked::Content,
    }
}

/// What policy is asked about a body.
pub(super) fn operation<'a>(admitted: &'a Admitted, payload: Payload<'a>) -> Operation<'a> {
    let Admitted { host, port, method, path, .. } = admitted;
    Operation::Send { host, port: *port, method, path, payload }
}

/// What policy is asked about a body of which nothing is known.
#[must_use]
pub fn unseen(admitted: &Admitted) -> Option<Operation<'_>> {
    let payload = Payload { bytes: 0, complete: false, media_type: "", findings: &[] };
    (admitted.body != http1::Body::Length(0)).then(|| operation(admitted, payload))
}

/// What policy is asked about a request that has none, and carries something besides.
#[must_use]
pub fn bodyless(admitted: &Admitted) -> Operation<'_> {
    operation(admitted, Payload { bytes: 0, complete: true, media_type: "", findings: &[] })
}

/// Whether a request may go on of whose body nothing is known, since nobody asked when it came.
///
/// # Errors
/// [`DropReason::InspectionRequired`] if a guard asks about it now.
pub fn judge_unseen(
    gateway: &Gateway,
    plan: &Plan,
    who: &Who,
    admitted: &Admitted,
) -> Result<(), DropReason> {
    let calling = gateway.calls.calling(plan, who, admitted, gateway.audit.now());
    if calling.is_some_and(|calling| calling.route.is_some() && calling.need.decided != Look::Nothing) {
        return Err(DropReason::InspectionRequired);
    }
    if gateway.tools.is_meant(admitted) && decide::tool_need(plan, who).decided != Look::Nothing {
        return Err(DropReason::InspectionRequired);
    }
    let Some(unseen) = unseen(admitted).filter(|_| decide::asks_send(plan, who)) else { return Ok(()) };
    let ruling = decide::send(plan, who, unseen);
    // What no guard is asked about, no policy permits.
    let is_asked = ruling.verdict.is_err() || !ruling.policies.is_empty();
    if is_asked { Err(DropReason::InspectionRequired) } else { Ok(()) }
}
