//! Which sets ask what a request says in its header fields and its query, and whether an answer depends on what of that has no one
//! value. Must never call an answer sure that may depend on it.

use super::lowered::Group;
use super::readings::each;
use super::{Given, Inner, Need, PolicySet};
use crate::head::Mentions;
use crate::request::{Operation, Request};
use crate::vocabulary::{ActionKind, ByAction};

// === impl PolicySet ===

impl PolicySet {
    /// Whether any policy asks what header fields or the query say.
    #[must_use]
    pub fn asks_head(&self) -> bool {
        self.halves().any(|half| half.reads.head)
    }

    /// Which of them policies name.
    #[must_use]
    pub fn mentions(&self) -> Mentions {
        self.halves().fold(Mentions::default(), |all, half| all.and(&half.mentions))
    }

    /// Who needs to know what of the request's head has no one value: without it, each policy whose answer depends on it is an
    /// error.
    #[must_use]
    pub fn needs_head(&self, request: &Request<'_>) -> Need {
        let needs = |request: &Request<'_>| {
            let needs = self.halves().map(|half| half.needs_head(request, self.given()));
            needs.max().unwrap_or(Need::None)
        };
        each(request, needs, Need::max)
    }

    /// Whether a request may be permitted by all that is known of it: what is not sure, may be.
    #[must_use]
    pub fn may_permit(&self, request: &Request<'_>) -> bool {
        let action = ActionKind::of(&request.operation);
        let may = |request: &Request<'_>| {
            self.halves().all(|half| {
                !half.asks_guards(action)
                    || half.may_permit(half.guards_lowered.of(action), request, self.given())
            })
        };
        each(request, may, |first, other| first && other)
    }
}

// === impl Inner ===

impl Inner {
    fn needs_head(&self, request: &Request<'_>, given: Given<'_>) -> Need {
        let action = ActionKind::of(&request.operation);
        let depends = |groups: &ByAction<Group>| self.depends_on_head(groups.of(action), request, given);
        let lacks = matches!(request.operation, Operation::Http { head, .. } if head.lacks(&self.mentions));
        if !lacks {
            Need::None
        } else if depends(&self.guards_lowered) || depends(&self.obliging_lowered) {
            Need::Decided
        } else if depends(&self.logged_lowered) {
            Need::Logged
        } else {
            Need::None
        }
    }
}
