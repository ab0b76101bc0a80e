//! What a set says of one question, and of several, one after the other. Must never answer what depends on what is not known.

use std::collections::BTreeSet;

use clawgress_ebpf_common::DropReason;
use clawgress_identity::Agent;

use crate::content::Attributes;
use crate::effect::Effect;
use crate::{Decision, Need, Operation, PolicySet, Request, TunnelProtocol};

/// Ids of policies, and the names of their effects.
pub(super) type Effects = BTreeSet<(String, String)>;

/// Why it is denied, if it is, and by which policies.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) denied: Option<DropReason>,
    pub(super) policies: Vec<String>,
    /// The longest quarantine that matches, seconds, and its policy.
    pub(super) quarantine: Option<(u64, String)>,
    /// What it obliges to; none if that is not known.
    pub(super) effects: Option<Effects>,
    /// Ids of the policies by which it is to be read.
    pub(super) reads: Vec<String>,
}

// === impl Answer ===

impl Answer {
    /// That of what nothing is asked of.
    pub(super) fn nothing() -> Answer {
        let (policies, effects, reads) = (Vec::new(), Some(Effects::new()), Vec::new());
        Answer { denied: None, policies, quarantine: None, effects, reads }
    }

    /// A denial that no policy makes.
    pub(super) fn deny(reason: DropReason) -> Answer {
        Answer { denied: Some(reason), ..Answer::nothing() }
    }

    /// The same, of which it is not known what is only told, if this is.
    pub(super) fn blind(self, is_blind: bool) -> Answer {
        Answer { effects: self.effects.filter(|_| !is_blind), ..self }
    }

    /// Whether nothing is asked after it: what quarantines counts at the end, the longest.
    pub(super) fn ends(&self) -> bool {
        self.denied.is_some() && self.quarantine.is_none()
    }

    /// The answer of a phase that follows this one, which allows but for what quarantines.
    pub(super) fn then(self, mut next: Answer) -> Answer {
        let longest = match (self.quarantine, next.quarantine.take()) {
            (Some(first), Some(second)) => Some(if second.0 >= first.0 { second } else { first }),
            (first, second) => first.or(second),
        };
        match longest {
            Some(longest) => Answer::quarantined(longest),
            None if next.denied.is_some() => next,
            None => {
                next.policies.extend(self.policies);
                next.effects = self.effects.zip(next.effects).map(|(a, b)| a.into_iter().chain(b).collect());
                next
            }
        }
    }

    /// This answer, held to what another forbids and obliges to, and not to what it does not permit.
    pub(super) fn held_to(mut self, other: Answer) -> Answer {
        let longest =
            self.quarantine.take().into_iter().chain(other.quarantine).max_by_key(|(seconds, _)| *seconds);
        if let Some(longest) = longest {
            return Answer::quarantined(longest);
        }
        if TunnelProtocol::is_refused_as_tls(self.denied, other.denied) {
            (self.denied, self.policies) = (other.denied, other.policies);
        }
        self.effects = self.effects.zip(other.effects).map(|(a, b)| a.into_iter().chain(b).collect());
        self.reads.extend(other.reads);
        self
    }

    fn quarantined(longest: (u64, String)) -> Answer {
        let (denied, policies) = (Some(DropReason::AgentQuarantined), vec![longest.1.clone()]);
        Answer { denied, policies, quarantine: Some(longest), effects: None, reads: Vec::new() }
    }
}

/// What `set` says. Limits depend on what came before, and are not replayed.
pub(super) fn ask(set: &PolicySet, agent: &Agent, operation: Operation<'_>) -> Result<Answer, &'static str> {
    let request = Request { agent, operation };
    if !set.knows_history() && set.needs_history(&request) == Need::Decided {
        return Err("what the agent did before");
    }
    let head_need = set.needs_head(&request);
    let is_told = matches!(operation, Operation::Http { head, .. } if head.is_told());
    if head_need == Need::Decided && !is_told {
        return Err("what the header fields or the query said");
    }
    // Of what came twice, or could not be read, who sent it was told.
    let is_malformed = |reason| reason == DropReason::PolicyError && head_need == Need::Decided;
    let answer = |decision: Decision| Answer {
        denied: decision
            .verdict
            .err()
            .map(|reason| if is_malformed(reason) { DropReason::HttpMalformed } else { reason }),
        policies: decision.policies,
        quarantine: None,
        effects: None,
        reads: Vec::new(),
    };
    let obligations = match set.obligations(&request) {
        Ok(obligations) => obligations,
        Err(failed) => return Ok(answer(failed)),
    };
    // What quarantines lets nothing pass, whatever the guards say; the longest, as it is enforced.
    let quarantines = obligations.iter().filter_map(|o| match o.effect {
        Effect::Quarantine(seconds) => Some((seconds.unwrap_or(u64::MAX), o.policy.to_string())),
        _ => None,
    });
    // What only logs may have been told what the agent did before.
    let is_blind = !set.knows_history() && set.needs_history(&request) != Need::None
        || head_need == Need::Logged && !is_told;
    let effects = || obligations.iter().map(|o| (o.policy.to_string(), o.effect.name().to_owned())).collect();
    let reads = obligations.iter().filter(|o| o.effect == Effect::Intercept).map(|o| o.policy.to_string());
    Ok(match quarantines.max_by_key(|(seconds, _)| *seconds) {
        Some(longest) => Answer::quarantined(longest),
        None => Answer {
            effects: (!is_blind).then(effects),
            reads: reads.collect(),
            ..answer(set.decide(&request))
        },
    })
}

/// What `set` says of a request of which some is not known: each with what that is.
pub(super) fn ask_of(
    set: &PolicySet,
    agent: &Agent,
    operation: Operation<'_>,
    unseen: &[(Attributes, &'static str)],
) -> Result<Answer, &'static str> {
    let is_blind = lacks(set, &Request { agent, operation }, unseen)?;
    Ok(ask(set, agent, operation)?.blind(is_blind))
}

/// Whether what is only told depends on what is not known of a request.
///
/// # Errors
/// The first of what is not known that decides.
pub(super) fn lacks(
    set: &PolicySet,
    request: &Request<'_>,
    unseen: &[(Attributes, &'static str)],
) -> Result<bool, &'static str> {
    let mut is_blind = false;
    for (attributes, why) in unseen {
        match set.lacks(request, *attributes) {
            Need::Decided => return Err(why),
            Need::Logged => is_blind = true,
            Need::None => {}
        }
    }
    Ok(is_blind)
}

/// What `set` says of a payload of which all was seen or not: of that, a forbid counts as it is, and a permit must hold as if what was
/// seen were all, as where traffic is decided.
pub(super) fn in_part<'a>(
    set: &PolicySet,
    agent: &Agent,
    is_complete: bool,
    operation: impl Fn(bool) -> Operation<'a>,
) -> Result<Answer, &'static str> {
    let now = ask(set, agent, operation(is_complete))?;
    if is_complete || now.denied.is_some_and(|reason| reason != DropReason::PolicyDenied) {
        return Ok(now);
    }
    let request = Request { agent, operation: operation(true) };
    if !set.knows_history() && set.needs_history(&request) == Need::Decided {
        return Err("what the agent did before");
    }
    let whole = set.obligations(&request).map_or_else(|failed| failed, |_| set.decide(&request));
    let by_whole = |denied| Answer { denied, policies: whole.policies.clone(), ..Answer::nothing() };
    let answer = match whole.verdict {
        Ok(()) => by_whole(None),
        Err(DropReason::PolicyForbidden) if now.denied.is_none() => by_whole(None),
        Err(DropReason::PolicyForbidden) => return Ok(now),
        Err(reason) => by_whole(Some(reason)),
    };
    Ok(Answer { effects: now.effects, quarantine: now.quarantine, ..answer })
}
