//! What records hold of what was sent and what came back, in the terms in which policy is asked about it again.

use clawgress_api::{
    AnswerFacts, Attributes, AuditRecord, EffectRef, Looked, ModelFacts, PayloadFacts, ToolFacts,
};
use clawgress_policy::study::replay::facts::{
    Contents, End, HeldAnswer, HeldCall, HeldMessage, HeldPayload, Said, Stopped,
};
use clawgress_policy::{Look, PolicySet};

/// What an outcome's record tells of what was allowed.
pub struct Outcome {
    time_ms: i64,
    action: Option<String>,
    /// Name of the reason that ended it.
    reason: Option<&'static str>,
    has_status: bool,
    policies: Vec<String>,
    attributes: Option<Box<Attributes>>,
    /// What it was obliged to in all.
    pub effects: Vec<EffectRef>,
    /// Whether nothing of the record was cut.
    pub is_whole: bool,
}

/// What a decision's record holds of it, and its outcome's, if there is one.
pub fn contents<'a>(
    decision: &'a AuditRecord,
    outcome: Option<&'a Outcome>,
    set: &PolicySet,
) -> Contents<'a> {
    let attributes = decision.attributes.as_deref();
    Contents {
        asked: attributes.map(|a| &a.asked[..]).unwrap_or_default(),
        has_body: attributes.and_then(|a| a.has_body),
        said: attributes.map(said).unwrap_or_default(),
        // What it was cut of, nobody knows.
        end: outcome.filter(|outcome| outcome.is_whole).map(|outcome| end(decision, outcome, set)),
    }
}

/// What identifies the outcome of a decision.
pub fn key(record: &AuditRecord) -> (String, String) {
    (record.node.clone(), record.request.clone())
}

fn end<'a>(decision: &'a AuditRecord, outcome: &'a Outcome, set: &PolicySet) -> End<'a> {
    let attributes = outcome.attributes.as_deref();
    // What ended it otherwise left the action that decided.
    let stopped = outcome.reason.zip(outcome.action.as_deref()).filter(|_| outcome.action != decision.action);
    let stopped = stopped.map(|(reason, action)| Stopped { action, reason, policies: &outcome.policies });
    let turn = set.next_turn_ms(decision.time.as_millisecond());
    End {
        stopped,
        has_failed: outcome.reason.is_some() || !outcome.has_status,
        is_time_known: turn.is_none_or(|turn| turn > outcome.time_ms),
        said: attributes.map(said).unwrap_or_default(),
        answer: attributes.and_then(|a| a.answer.as_deref()).map(answer),
    }
}

fn said(attributes: &Attributes) -> Said<'_> {
    Said {
        body: attributes.payload.as_ref().map(payload),
        call: attributes.llm.as_deref().map(call),
        messages: attributes.tools.iter().map(message).collect(),
        has_more_messages: attributes.tools_more > 0,
    }
}

fn payload(facts: &PayloadFacts) -> HeldPayload<'_> {
    HeldPayload {
        bytes: facts.bytes,
        is_declared: facts.declared,
        complete: facts.complete,
        looked: match facts.looked {
            Looked::Nothing => Look::Nothing,
            Looked::Size => Look::Size,
            Looked::Content => Look::Content,
        },
        media_type: &facts.media_type,
        is_media_type_unclear: facts.media_type_unclear,
        findings: &facts.findings,
    }
}

fn call(facts: &ModelFacts) -> HeldCall<'_> {
    HeldCall {
        provider: &facts.provider,
        model: &facts.model,
        family: &facts.family,
        surface: &facts.surface,
        tokens_estimated: facts.tokens_estimated,
        tokens_max: facts.tokens_max,
        stream: facts.stream,
        tools: &facts.tools,
        has_more_tools: facts.tools_count > facts.tools.len() as u64,
        attachments: facts.attachments,
        images: facts.images,
        attachment_bytes: facts.attachment_bytes,
        prompt_score: facts.prompt_score,
        unpriced: facts.unpriced,
        tool_choice: facts.tool_choice.as_deref(),
        end_user: facts.end_user.as_deref(),
        store: facts.store,
        partial: facts.partial,
        findings: facts.findings.as_deref(),
    }
}

fn message(facts: &ToolFacts) -> HeldMessage<'_> {
    HeldMessage {
        server: &facts.server,
        method: &facts.method,
        name: &facts.name,
        argument_names: &facts.arguments,
        is_cut: facts.cut,
        findings: facts.findings.as_deref(),
        is_forgotten: facts.forgotten,
    }
}

fn answer(facts: &AnswerFacts) -> HeldAnswer<'_> {
    HeldAnswer {
        status: facts.status,
        payload: payload(&facts.payload),
        at_once: facts.at_once,
        input_tokens: facts.input_tokens,
        output_tokens: facts.output_tokens,
        tools: &facts.tools,
        has_more_tools: facts.tools_more > 0,
        are_tools_known: facts.tools_known,
    }
}

// === impl Outcome ===

impl Outcome {
    /// That of a record.
    pub fn of(record: AuditRecord) -> Outcome {
        let AuditRecord { time, action, reason, status, policies, attributes, effects, truncated, .. } =
            record;
        Outcome {
            time_ms: time.as_millisecond(),
            action,
            reason: reason.map(|reason| reason.name()),
            has_status: status.is_some(),
            policies,
            attributes,
            effects,
            is_whole: !truncated,
        }
    }
}
