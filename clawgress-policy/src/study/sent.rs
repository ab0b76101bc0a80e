//! What a set says of a body, of which whoever asks tells what the proxy would know.

use clawgress_ebpf_common::DropReason;
use clawgress_identity::Agent;
use serde::Deserialize;

use super::explain::{Explanation, Phase, ask, opening};
use crate::content::Payload;
use crate::{Operation, PolicySet, may_have_body};

/// A body, as the proxy would know it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Body {
    /// Bytes.
    pub bytes: u64,
    /// Whether it is one that streams, of which not all was seen.
    pub streams: bool,
    /// Its media type, in lowercase and without parameters; empty for none.
    pub media_type: String,
    /// What is found in it.
    pub findings: Vec<String>,
}

/// The explanation of a request with what is said of its body: last, as the proxy asks it, of what is read.
pub(super) fn asked(
    mut url: Explanation,
    set: &PolicySet,
    agent: &Agent,
    (http, opens): (Operation<'_>, bool),
    body: Option<&Body>,
) -> Explanation {
    let Operation::Http { host, port, method, path, .. } = http else { return url };
    let is_read = url.phases.iter().any(|phase| phase.action == http.action());
    match body {
        Some(_) if !is_read => {
            url.notes.push("what is sent passes unread, so that `send` is not asked".to_owned());
        }
        Some(_) if !set.names_send() => {
            url.notes.push("no policy names `send`, so that nothing is asked about bodies".to_owned());
        }
        Some(body) => {
            let send = |complete| {
                let Body { bytes, media_type, findings, .. } = body;
                let payload = Payload { bytes: *bytes, complete, media_type, findings };
                ask(set, agent, Operation::Send { host, port, method, path, payload })
            };
            url.push(if body.streams { streamed(send(false), || send(true)) } else { send(true) });
        }
        None if is_read && opens => opening::sent(&mut url, set, agent, http),
        None if is_read && set.asks_send() && may_have_body(method) => {
            url.unasked.push("send".to_owned());
            url.notes.push(
                "`send` is asked of a body, and nothing is said of one: `--body-bytes`, `--media-type` and `--finding` do, in cases `body`"
                    .to_owned(),
            );
        }
        None => {}
    }
    url
}

/// What is said of a body that streams: a forbid counts as it is, and a permit must hold as if what was seen were all.
pub(super) fn streamed(now: Phase, whole: impl FnOnce() -> Phase) -> Phase {
    let is = |phase: &Phase, reason: DropReason| phase.reason.as_deref() == Some(reason.name());
    if !now.allowed && !is(&now, DropReason::PolicyDenied) {
        return now;
    }
    let whole = whole();
    let by = whole.policies.clone();
    if whole.allowed || is(&whole, DropReason::PolicyForbidden) && now.allowed {
        return Phase { allowed: true, reason: None, policies: by, ..now };
    }
    if is(&whole, DropReason::PolicyForbidden) {
        return now;
    }
    Phase { allowed: false, reason: whole.reason, policies: by, ..now }
}
