//! Whether something can be true: a search that ends at the first way in which nothing contradicts, and that is bounded.

use std::cell::Cell;
use std::collections::BTreeMap;

use super::facts::{Facts, Literal, Word};
use super::formula::Formula;
use crate::members::Members;

/// Most steps of one question. Real conditions take tens; one that takes more is taken for possible.
const STEPS_MAX: u32 = 2_000;
/// Most steps of all questions of a set: a second or two.
const STEPS_ALL_MAX: u32 = 4_000_000;

/// Spans of numbers that are compared in one step.
const SPANS_PER_STEP: usize = 8;

/// Hosts of the sets that have no wildcards, by the set's name.
pub(super) type HostSets = BTreeMap<Word, Vec<Word>>;

/// Answers questions about one set.
pub(super) struct Search<'a> {
    members: &'a Members,
    exact: HostSets,
    /// Steps left of all, and of this question.
    left: Cell<u32>,
    left_now: Cell<u32>,
    gave_up: Cell<bool>,
}

impl<'a> Search<'a> {
    pub(super) fn new(members: &'a Members) -> Search<'a> {
        let exact = members.exact_host_sets().into_iter();
        let words = |hosts: Vec<&str>| hosts.into_iter().map(Word::from).collect();
        let exact = exact.map(|(name, hosts)| (Word::from(name), words(hosts))).collect();
        Search {
            members,
            exact,
            left: Cell::new(STEPS_ALL_MAX),
            left_now: Cell::new(0),
            gave_up: Cell::new(false),
        }
    }

    /// Whether a question came to no answer.
    pub(super) fn gave_up(&self) -> bool {
        self.gave_up.get()
    }

    /// Whether all of these may be true of one request. `false` is proven.
    pub(super) fn is_possible(&self, all: &[&Formula<'_>]) -> bool {
        self.left_now.set(STEPS_MAX);
        self.may_be(Facts::default(), all.to_vec(), Vec::new())
    }

    /// Whether there is room for looking at a formula.
    fn step(&self, formula: &Formula<'_>) -> bool {
        let cost = match formula {
            Formula::Is(Literal::Number(_, spans)) => {
                1 + u32::try_from(spans.len() / SPANS_PER_STEP).unwrap_or(STEPS_MAX)
            }
            _ => 1,
        };
        match (self.left_now.get().checked_sub(cost), self.left.get().checked_sub(cost)) {
            (Some(now), Some(all)) => {
                self.left_now.set(now);
                self.left.set(all);
                true
            }
            _ => {
                self.gave_up.set(true);
                false
            }
        }
    }

    fn may_be<'f>(
        &self,
        mut facts: Facts<'f>,
        mut pending: Vec<&'f Formula<'f>>,
        mut choices: Vec<&'f [Formula<'f>]>,
    ) -> bool {
        while let Some(formula) = pending.pop() {
            if !self.step(formula) {
                return true;
            }
            match formula {
                Formula::Known(true) => {}
                Formula::Known(false) => return false,
                Formula::Is(literal) => {
                    if !facts.add(literal, self.members, &self.exact) {
                        return false;
                    }
                }
                Formula::All(all) => pending.extend(all),
                Formula::Any(any) => choices.push(any),
            }
        }
        let Some(choice) = choices.pop() else { return true };
        choice.iter().any(|formula| self.may_be(facts.clone(), vec![formula], choices.clone()))
    }
}
