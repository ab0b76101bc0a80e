//! A set under the platform's: what either does not allow is denied. Must never let one answer for the other.
//!
//! INVARIANT: a set that stands under another allows nothing that it would not allow alone, nor what the other does
//! not allow. Where nothing stands above, nothing is asked of it.

use std::sync::Arc;

use clawgress_ebpf_common::DropReason;

use super::lowered::Group;
use super::{Given, Inner, Need, PolicySet};
use crate::effect::Obligation;
use crate::request::{Decision, Request};
use crate::vocabulary::{ActionKind, ByAction};

/// What is obliged to, or the denial where that can't be told.
pub(super) type Kept = Result<Vec<Arc<Obligation>>, Decision>;

// === impl PolicySet ===

impl PolicySet {
    /// The set as it decides under `platform`: both must allow. Decisions name the policies of both, the platform's
    /// behind [`PLATFORM_PREFIX`](crate::PLATFORM_PREFIX), and what either obliges to holds. Both are of one zone, since
    /// one moment is told to both.
    #[must_use]
    pub fn under(&self, platform: &PolicySet) -> PolicySet {
        PolicySet { platform: Some(Arc::clone(&platform.inner)), ..self.clone() }
    }

    /// The set without what stands above it.
    #[must_use]
    pub fn alone(&self) -> PolicySet {
        PolicySet { platform: None, ..self.clone() }
    }

    /// The set that stands above it, if one does, as it decides alone.
    #[must_use]
    pub fn platform(&self) -> Option<PolicySet> {
        let inner = Arc::clone(self.platform.as_ref()?);
        Some(PolicySet { inner, platform: None, ..self.clone() })
    }

    /// Both halves, the platform's first if there is one.
    pub(super) fn halves(&self) -> impl Iterator<Item = &Inner> {
        self.platform.as_deref().into_iter().chain([self.inner.as_ref()])
    }
}

// === impl Decision ===

impl Decision {
    /// What it comes to where the platform's set says one thing, and a tenant's another. An error of either denies, then
    /// a forbid of either; of denials by default the tenant's is told, which knows more of what it would take.
    pub(crate) fn under(self, platform: Decision) -> Decision {
        for reason in [DropReason::PolicyError, DropReason::PolicyForbidden] {
            match (platform.verdict == Err(reason), self.verdict == Err(reason)) {
                (true, true) => return self.joined(platform),
                (true, false) => return platform,
                (false, true) => return self,
                (false, false) => {}
            }
        }
        match (self.is_allow(), platform.is_allow()) {
            (true, true) => self.joined(platform),
            (false, _) => self,
            (true, false) => platform,
        }
    }

    /// The same verdict, for the reasons of both.
    fn joined(mut self, platform: Decision) -> Decision {
        self.policies.extend(platform.policies);
        self.policies.sort_unstable();
        self.errors.extend(platform.errors);
        self.errors.sort();
        self.errors.dedup();
        self
    }
}

/// What both oblige to, ascending by the policies' ids.
pub(super) fn kept_under(own: Kept, platform: Kept) -> Kept {
    match (own, platform) {
        (Ok(mut own), Ok(platform)) => {
            own.extend(platform);
            own.sort_by(|a, b| a.policy.cmp(&b.policy));
            Ok(own)
        }
        (Err(own), Err(platform)) => Err(own.joined(platform)),
        (Err(failed), Ok(_)) | (Ok(_), Err(failed)) => Err(failed),
    }
}

// === impl Inner ===

impl Inner {
    /// What one set decides on its own.
    pub(super) fn decide_lowered(&self, request: &Request<'_>, given: Given<'_>) -> Decision {
        if let Some(unasked) = self.unasked(request) {
            return unasked;
        }
        self.decide_by(self.guards_lowered.of(ActionKind::of(&request.operation)), request, given)
    }

    /// The same by Cedar's authorizer.
    pub(super) fn decide_oracle(&self, request: &Request<'_>, given: Given<'_>) -> Decision {
        if let Some(unasked) = self.unasked(request) {
            return unasked;
        }
        self.decide_among(self.by_action.of(ActionKind::of(&request.operation)), request, given)
    }

    /// What one set obliges to, of what L7 decides.
    pub(super) fn obligations_lowered(&self, request: &Request<'_>, given: Given<'_>) -> Kept {
        let action = ActionKind::of(&request.operation);
        if !self.names(action) {
            return Ok(Vec::new());
        }
        let mut kept = Vec::new();
        if !self.obligations.is_empty() {
            kept = self.kept(self.decide_by(self.obliging_lowered.of(action), request, given))?;
        }
        let would = self.would(self.logged_lowered.of(action), request, given);
        if !would.is_empty() {
            kept.extend(would);
            kept.sort_by(|a, b| a.policy.cmp(&b.policy));
        }
        Ok(kept)
    }

    /// The same by Cedar's authorizer.
    pub(super) fn obligations_oracle(&self, request: &Request<'_>, given: Given<'_>) -> Kept {
        let action = ActionKind::of(&request.operation);
        if !self.names(action) {
            return Ok(Vec::new());
        }
        let mut kept = self.kept(self.decide_among(self.obliging.of(action), request, given))?;
        kept.extend(self.would_among(self.logged.of(action), request, given));
        kept.sort_by(|a, b| a.policy.cmp(&b.policy));
        Ok(kept)
    }

    /// Who of one set's policies needs to know what the agent did before.
    pub(super) fn needs_history(&self, request: &Request<'_>, given: Given<'_>) -> Need {
        let action = ActionKind::of(&request.operation);
        if !self.reads.history || action.is_of_addresses() || !self.names(action) {
            return Need::None;
        }
        let depends = |groups: &ByAction<Group>| self.depends_on_history(groups.of(action), request, given);
        if self.asks_guards(action) && depends(&self.guards_lowered) || depends(&self.obliging_lowered) {
            Need::Decided
        } else if depends(&self.logged_lowered) {
            Need::Logged
        } else {
            Need::None
        }
    }

    /// Whether what one set decides depends on the fingerprint of a hello that was not seen.
    pub(super) fn needs_ja4(&self, request: &Request<'_>, given: Given<'_>) -> bool {
        let action = ActionKind::of(&request.operation);
        let depends = |groups: &ByAction<Group>| self.depends_on_ja4(groups.of(action), request, given);
        self.reads.ja4 && (depends(&self.guards_lowered) || depends(&self.obliging_lowered))
    }
}
