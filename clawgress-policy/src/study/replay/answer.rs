//! What a set says of one question that a record tells of. Must never turn what is not known into an answer.

use std::collections::BTreeSet;

use clawgress_ebpf_common::DropReason;
use clawgress_identity::Agent;

use crate::effect::Effect;
use crate::{Decision, Need, Operation, PolicySet, Request};

/// Ids of policies, and the names of their effects.
pub(super) type Effects = BTreeSet<(String, String)>;

/// Why it is denied, if it is, and by which policies.
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

impl Answer {
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

    pub(super) fn quarantined(longest: (u64, String)) -> Answer {
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
    let answer = |decision: Decision| Answer {
        denied: decision.verdict.err(),
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
    let is_blind = !set.knows_history() && set.needs_history(&request) != Need::None;
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
