//! What is asked by name: which sets ask about bodies, calls of models and answers at all, and how much of a body has to be seen
//! for an answer. Must never call enough what an answer may depend on.
//!
//! A set of policies none of which names `send` says nothing of bodies, as before there was such an action; likewise `llm` and
//! `tool`, of calls, and `receive`, of what comes back. Until a guard names one, it denies nothing: obligations, and guards that only log, change nothing by being there.

use clawgress_ebpf_common::DropReason;

use super::lowered::Group;
use super::parse::names;
use super::readings::each;
use super::syntax::Policy;
use super::{Given, Inner, Need, PolicySet};
use crate::content::Attributes;
use crate::effect::Effect;
use crate::request::{Decision, Request};
use crate::transform::body::BodyChange;
use crate::vocabulary::{ActionKind, Actions, ByAction};

/// How much of a body has to be seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Look {
    /// Nothing: what is said of it, and its declared length, are enough.
    #[default]
    Nothing,
    /// How long it is, and whether all of it was seen.
    Size,
    /// What is in it.
    Content,
}

/// Who needs to see how much of a body.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PayloadNeed {
    /// What is decided: by guards, and what is obliged to but for alerts.
    pub decided: Look,
    /// What is only told: by guards that only log, and alerts.
    pub logged: Look,
}

/// What has to be known of the calls of tools that a model asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum CallsLook {
    /// Nothing.
    #[default]
    Nothing,
    /// Names, put together of what they come in.
    Names,
    /// All of each.
    Whole,
}

/// Who needs to know what of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CallsNeed {
    /// What is decided: before any of it goes on.
    pub decided: CallsLook,
    /// What is only told.
    pub logged: CallsLook,
}

/// Which actions policies of a set name, of those that are asked by name.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Naming {
    guards: Actions,
    any: Actions,
}

// === impl Naming ===

impl Naming {
    /// Of policies, and whether each is a guard that decides.
    pub(super) fn of<'a>(policies: impl Iterator<Item = (&'a Policy, bool)>) -> Naming {
        let mut naming = Naming::default();
        for (policy, is_guard) in policies {
            let by_name = |action: &ActionKind| action.is_asked_by_name() && names(policy, *action);
            for action in ActionKind::ALL.into_iter().filter(by_name) {
                naming.any = naming.any.with(action);
                naming.guards = if is_guard { naming.guards.with(action) } else { naming.guards };
            }
        }
        naming
    }
}

// === impl PayloadNeed ===

impl PayloadNeed {
    /// What has to be seen for all of it.
    #[must_use]
    pub fn look(self) -> Look {
        self.decided.max(self.logged)
    }

    /// What has to be seen for both.
    #[must_use]
    pub fn max(self, other: PayloadNeed) -> PayloadNeed {
        PayloadNeed { decided: self.decided.max(other.decided), logged: self.logged.max(other.logged) }
    }
}

// === impl PolicySet ===

impl PolicySet {
    /// Whether any policy names `send`: where none does, nothing is to be asked about bodies.
    #[must_use]
    pub fn names_send(&self) -> bool {
        self.halves().any(|half| half.naming.any.has(ActionKind::Send))
    }

    /// How much of a request has to be seen to know what model it calls, and with what: nothing where no policy names `llm`,
    /// else all.
    #[must_use]
    pub fn needs_call(&self) -> PayloadNeed {
        self.needs_whole(ActionKind::Llm)
    }

    /// Whether what is decided of this call of a model depends on what is in it, where nobody reads that: all but whom it goes to,
    /// by which surface, and whether its answer is streamed.
    #[must_use]
    pub fn needs_call_read(&self, request: &Request<'_>) -> bool {
        let given = Given { is_payload_unseen: true, unseen: Attributes::in_call(), ..self.given() };
        self.halves().any(|half| half.depends_on_unseen(request, given))
    }

    /// How much of a request has to be seen to know what it sends to tools and agents: nothing where no policy names `tool`, else
    /// all.
    #[must_use]
    pub fn needs_tool(&self) -> PayloadNeed {
        self.needs_whole(ActionKind::Tool)
    }

    fn needs_whole(&self, action: ActionKind) -> PayloadNeed {
        let looks = |is: bool| if is { Look::Content } else { Look::Nothing };
        let needs = self.halves().map(|half| PayloadNeed {
            decided: looks(half.naming.guards.has(action) || half.obliges_by(action)),
            logged: looks(half.naming.any.has(action)),
        });
        needs.fold(PayloadNeed::default(), PayloadNeed::max)
    }

    /// Whether a tool may be called with some arguments, by all that is known but these: what is not sure, may be.
    #[must_use]
    pub fn may_call(&self, request: &Request<'_>) -> bool {
        let action = ActionKind::of(&request.operation);
        let given = Given { are_arguments_unseen: true, ..self.given() };
        self.halves().all(|half| {
            !half.asks_guards(action) || half.may_permit(half.guards_lowered.of(action), request, given)
        })
    }

    /// Whether any answer on a call of a model or tool depends on what the agent did before.
    #[must_use]
    pub fn call_reads_history(&self) -> bool {
        let reads = |half: &Inner, action| half.names(action) && half.reads_history_of(action);
        self.halves().any(|half| reads(half, ActionKind::Llm) || reads(half, ActionKind::Tool))
    }

    /// Whether any policy changes what calls of models say.
    #[must_use]
    pub fn changes_calls(&self) -> bool {
        let changes = |id: &str, half: &Inner| {
            let known = half.obligations.get(id).map(|known| &known.effect);
            matches!(known, Some(Effect::Transform(transform)) if transform.body != BodyChange::default())
        };
        self.halves().any(|half| {
            half.obliging.of(ActionKind::Llm).policies().any(|policy| changes(policy.id().as_ref(), half))
        })
    }

    /// Whether a guard that decides names `send`: then each body must be permitted.
    #[must_use]
    pub fn asks_send(&self) -> bool {
        self.halves().any(|half| half.naming.guards.has(ActionKind::Send))
    }

    /// Whether any policy names `receive`: where none does, nothing is to be asked about what comes back.
    #[must_use]
    pub fn names_receive(&self) -> bool {
        self.halves().any(|half| half.naming.any.has(ActionKind::Receive))
    }

    /// Whether a guard that decides names `receive`: then each answer must be permitted.
    #[must_use]
    pub fn asks_receive(&self) -> bool {
        self.halves().any(|half| half.naming.guards.has(ActionKind::Receive))
    }

    /// Whether anything that is decided of what comes back may depend on what is in it: by guards that name `receive`, or by
    /// what is obliged to but for alerts.
    #[must_use]
    pub fn decides_receive(&self) -> bool {
        self.asks_receive() || self.halves().any(|half| half.obliges_by(ActionKind::Receive))
    }

    /// Whether what is decided of this `send`, or `receive`, depends on a media type that nobody knows.
    #[must_use]
    pub fn needs_media_type(&self, request: &Request<'_>) -> bool {
        let given = Given { is_media_type_unseen: true, ..self.given() };
        let needs = |request: &Request<'_>| self.halves().any(|half| half.needs_media_type(request, given));
        each(request, needs, |first, other| first || other)
    }

    /// Whether any answer on what comes back depends on what the agent did before.
    #[must_use]
    pub fn receive_reads_history(&self) -> bool {
        self.halves()
            .any(|half| half.names(ActionKind::Receive) && half.reads_history_of(ActionKind::Receive))
    }

    /// What has to be known of the calls that this answer asks for.
    #[must_use]
    pub fn needs_calls(&self, request: &Request<'_>) -> CallsNeed {
        let given = self.given();
        let needs = self.halves().map(|half| half.needs_calls(request, given));
        needs.fold(CallsNeed::default(), |all, need| CallsNeed {
            decided: all.decided.max(need.decided),
            logged: all.logged.max(need.logged),
        })
    }

    /// The same as [`needs_history`](Self::needs_history), of a request of whose body nothing is known yet.
    #[must_use]
    pub fn needs_history_unseen(&self, request: &Request<'_>) -> Need {
        let given = Given { is_payload_unseen: true, is_size_unseen: true, ..self.given() };
        let needs = |request: &Request<'_>| {
            self.halves().map(|half| half.needs_history(request, given)).max().unwrap_or(Need::None)
        };
        each(request, needs, Need::max)
    }

    /// How much of the body of this `send`, or `receive`, has to be seen. Its findings, what a model's answer comes to, and
    /// whether it is complete are taken for unknown; its size too, unless it is declared.
    #[must_use]
    pub fn needs_payload(&self, request: &Request<'_>, is_size_known: bool) -> PayloadNeed {
        let given = Given { is_size_unseen: !is_size_known, ..self.given() };
        let needs = |request: &Request<'_>| {
            let needs = self.halves().map(|half| half.needs_payload(request, given));
            needs.fold(PayloadNeed::default(), PayloadNeed::max)
        };
        each(request, needs, PayloadNeed::max)
    }
}

// === impl Inner ===

impl Inner {
    /// Whether the set asks about an action at all.
    pub(crate) fn names(&self, action: ActionKind) -> bool {
        !action.is_asked_by_name() || self.naming.any.has(action)
    }

    /// Whether guards are asked about an action: where none names one that is asked by name, they aren't, also those of a
    /// group that it is in.
    pub(super) fn asks_guards(&self, action: ActionKind) -> bool {
        !action.is_asked_by_name() || self.naming.guards.has(action)
    }

    /// The answer to what no guard asks about.
    pub(super) fn unasked(&self, request: &Request<'_>) -> Option<Decision> {
        let is_asked = self.asks_guards(ActionKind::of(&request.operation));
        let verdict: Result<(), DropReason> = Ok(());
        (!is_asked).then(|| Decision { verdict, policies: Vec::new(), errors: Vec::new() })
    }

    /// Whether an obligation that names the action does more than tell.
    fn obliges_by(&self, action: ActionKind) -> bool {
        let is_told = |id: &str| self.obligations.get(id).is_some_and(|known| known.effect == Effect::Alert);
        let obliging = self.obliging.of(action);
        self.naming.any.has(action) && obliging.policies().any(|policy| !is_told(policy.id().as_ref()))
    }

    /// Whether anything that is decided, by guards that name the action or by what is obliged to but for alerts, is not certain of
    /// what is given.
    fn depends_on_unseen(&self, request: &Request<'_>, given: Given<'_>) -> bool {
        let action = ActionKind::of(&request.operation);
        let depends = |groups: &ByAction<Group>, counts: &dyn Fn(&str) -> bool| {
            self.depends_on_any(groups.of(action), (request, given), counts)
        };
        let is_told = |id: &str| self.obligations.get(id).is_some_and(|known| known.effect == Effect::Alert);
        self.naming.guards.has(action) && depends(&self.guards_lowered, &|_| true)
            || self.naming.any.has(action) && depends(&self.obliging_lowered, &|id| !is_told(id))
    }

    fn needs_calls(&self, request: &Request<'_>, given: Given<'_>) -> CallsNeed {
        let action = ActionKind::of(&request.operation);
        if !(self.reads.calls || self.reads.usage) || !self.names(action) {
            return CallsNeed::default();
        }
        let depends = |groups: &ByAction<Group>, counts: &dyn Fn(&str) -> bool| {
            let is = |reads| self.depends_on_read(groups.of(action), (request, given), reads, counts);
            if is(|reads| reads.calls) {
                CallsLook::Whole
            } else if is(|reads| reads.usage) {
                CallsLook::Names
            } else {
                CallsLook::Nothing
            }
        };
        let is_told = |id: &str| self.obligations.get(id).is_some_and(|known| known.effect == Effect::Alert);
        let guards = if self.naming.guards.has(action) {
            depends(&self.guards_lowered, &|_| true)
        } else {
            CallsLook::Nothing
        };
        CallsNeed {
            decided: guards.max(depends(&self.obliging_lowered, &|id| !is_told(id))),
            logged: depends(&self.logged_lowered, &|_| true).max(depends(&self.obliging_lowered, &is_told)),
        }
    }

    fn needs_media_type(&self, request: &Request<'_>, given: Given<'_>) -> bool {
        let action = ActionKind::of(&request.operation);
        if !self.reads.media_type || !self.names(action) {
            return false;
        }
        let depends = |groups: &ByAction<Group>, counts: &dyn Fn(&str) -> bool| {
            self.depends_on_read(groups.of(action), (request, given), |reads| reads.media_type, counts)
        };
        let is_told = |id: &str| self.obligations.get(id).is_some_and(|known| known.effect == Effect::Alert);
        self.naming.guards.has(action) && depends(&self.guards_lowered, &|_| true)
            || depends(&self.obliging_lowered, &|id| !is_told(id))
    }

    fn needs_payload(&self, request: &Request<'_>, given: Given<'_>) -> PayloadNeed {
        let action = ActionKind::of(&request.operation);
        if !self.reads.payload || !self.names(action) {
            return PayloadNeed::default();
        }
        let depends = |groups: &ByAction<Group>, counts: &dyn Fn(&str) -> bool| {
            self.depends_on_payload(groups.of(action), (request, given), counts)
        };
        // An alert is told, and denies nothing.
        let is_told = |id: &str| self.obligations.get(id).is_some_and(|known| known.effect == Effect::Alert);
        let guards = if self.naming.guards.has(action) {
            depends(&self.guards_lowered, &|_| true)
        } else {
            Look::Nothing
        };
        PayloadNeed {
            decided: guards.max(depends(&self.obliging_lowered, &|id| !is_told(id))),
            logged: depends(&self.logged_lowered, &|_| true).max(depends(&self.obliging_lowered, &is_told)),
        }
    }
}
