//! What policy is asked about an answer, and what a record tells of it.

use std::sync::Arc;

use clawgress_api::{AnswerFacts, PayloadFacts};
use clawgress_ebpf_common::DropReason;
use clawgress_inspect::llm::answer::Asked;
use clawgress_inspect::payload::Facts;
use clawgress_policy::content::{AskedCall, Payload, Usage};
use clawgress_policy::{CallsLook, Look, Operation};
use http::StatusCode;

use super::Admitted;
use super::said::told;
use crate::decide::{self, Ruling};
use crate::identify::Who;
use crate::snapshot::Plan;

/// Names of tools that a record tells.
const TOOLS_TOLD: usize = 64;

/// What policy is asked about an answer.
#[derive(Clone, Debug, Default)]
pub struct Came {
    /// How much of it is looked at before it goes on; and what of calls.
    pub(super) looked: Look,
    pub(super) followed: CallsLook,
    /// How much of it is looked at, also where that is only told.
    pub(super) read: Look,
    pub(super) status: u16,
    pub(super) media_type: String,
    /// Whether what it is said to be is not known.
    pub(super) is_type_unclear: bool,
    /// Bytes declared, and seen.
    pub(super) declared: Option<u64>,
    pub(super) seen: u64,
    pub(super) complete: bool,
    pub(super) findings: Vec<String>,
    pub(super) input_tokens: u64,
    pub(super) output_tokens: u64,
    pub(super) tools: Vec<String>,
    /// The call that is asked about.
    pub(super) call: Option<Arc<Asked>>,
}

// === impl Came ===

impl Came {
    /// What is known of a message of a WebSocket, in which this was found.
    #[must_use]
    pub fn message(bytes: u64, findings: Vec<String>) -> Came {
        Came {
            looked: Look::Content,
            read: Look::Content,
            status: StatusCode::SWITCHING_PROTOCOLS.as_u16(),
            declared: Some(bytes),
            seen: bytes,
            complete: true,
            findings,
            ..Came::default()
        }
    }

    /// What policy is asked, if this is all.
    pub(super) fn operation<'a>(&'a self, admitted: &'a Admitted, complete: bool) -> Operation<'a> {
        let Admitted { host, port, .. } = admitted;
        let Came { media_type, findings, input_tokens, output_tokens, tools, .. } = self;
        let payload = Payload { bytes: self.declared.unwrap_or(self.seen), complete, media_type, findings };
        let call = self.call.as_deref().map(|call| AskedCall {
            name: &call.name,
            argument_names: &call.argument_names,
            values: &call.values,
            arguments: &call.arguments,
        });
        let call = call.unwrap_or_default();
        let usage = Usage { input_tokens: *input_tokens, output_tokens: *output_tokens, tools, call };
        Operation::Receive { host, port: *port, status: self.status, payload, usage }
    }

    /// What policy says of it.
    #[must_use]
    pub fn rule(&self, plan: &Plan, who: &Who, admitted: &Admitted) -> Ruling {
        let asked = |complete| self.operation(admitted, complete);
        if self.is_type_unclear && decide::needs_media_type(plan, who, asked(false)) {
            return Ruling::deny("receive", DropReason::ContentUnreadable);
        }
        if decide::payload_need(plan, who, asked(false), self.declared.is_some()).decided > self.looked {
            // Policy asks for more than it did when the answer began to come.
            return Ruling::deny("receive", DropReason::InspectionRequired);
        }
        if decide::calls_need(plan, who, asked(false)).decided > self.followed {
            return Ruling::deny("receive", DropReason::InspectionRequired);
        }
        decide::in_part(self.complete, |complete| decide::receive(plan, who, asked(complete)))
    }

    /// What a record has of it, of which this is known by what read it.
    #[must_use]
    pub fn facts(&self, read: Option<Facts>) -> AnswerFacts {
        AnswerFacts {
            status: self.status,
            payload: PayloadFacts {
                bytes: self.declared.filter(|_| !self.complete).unwrap_or(self.seen),
                complete: self.complete,
                declared: self.declared.is_some(),
                looked: told(self.read),
                media_type: self.media_type.clone(),
                media_type_unclear: self.is_type_unclear,
                findings: self.findings.clone(),
                decoded_bytes: read.map(|facts| facts.decoded_bytes).filter(|bytes| *bytes > 0),
                fields: read.map(|facts| facts.fields).filter(|fields| *fields > 0),
            },
            at_once: false,
            input_tokens: self.input_tokens,
            output_tokens: self.output_tokens,
            tools: self.tools.iter().take(TOOLS_TOLD).cloned().collect(),
            tools_more: self.tools.len().saturating_sub(TOOLS_TOLD) as u64,
            tools_known: self.followed != CallsLook::Nothing,
            prompt_rules: String::new(),
        }
    }
}
