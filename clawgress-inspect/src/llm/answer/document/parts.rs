//! Counts that a usage has in parts, each of which says what it is of. Must never add those of one usage to another's.

use super::grammar::number;
use super::{Count, Node, State};

/// What is known of the parts of the usage at hand.
#[derive(Debug, Default)]
pub(super) struct Parts {
    /// Which counts were added to: each usage counts anew.
    summed: [bool; Count::ALL],
    /// Of the count at hand that is of something: whether that is sound, and how many there are.
    of_sound: (bool, u64),
    /// Of the request of the provider's own at hand: what was counted.
    own: [u64; Count::OWN.len()],
}

// === impl Parts ===

impl Parts {
    /// An object begins, perhaps a part.
    pub(super) fn begin(&mut self, node: Node) {
        match node {
            Node::Modalities(_) => self.of_sound = (false, 0),
            Node::Iterations => self.own = Default::default(),
            _ => {}
        }
    }

    pub(super) fn keep(&mut self, node: Node, text: &str) {
        match node {
            Node::OfModality => self.of_sound.1 = number(text).unwrap_or_default(),
            Node::Modality => self.of_sound.0 = text.eq_ignore_ascii_case("audio"),
            Node::OfIteration(count) => {
                let at = Count::OWN.iter().position(|own| *own == count);
                if let Some(slot) = at.and_then(|at| self.own.get_mut(at)) {
                    *slot = number(text).unwrap_or_default();
                }
            }
            _ => {}
        }
    }
}

// === impl State ===

impl State {
    /// A part of this type has ended, if it is one.
    pub(super) fn part(&mut self, node: Node, kind: Option<&str>) {
        match (node, kind) {
            (Node::Modalities(count), _) if self.parts.of_sound.0 => self.add(count, self.parts.of_sound.1),
            // Requests for messages are in the usage around them; those for what a context is compacted to, or in which
            // another model is asked for advice, are not.
            (Node::Iterations, Some(kind @ ("compaction" | "advisor_message"))) => {
                self.facts.has_others |= kind == "advisor_message";
                for (count, more) in Count::OWN.into_iter().zip(self.parts.own) {
                    self.add(count, more);
                }
            }
            _ => {}
        }
    }

    fn add(&mut self, count: Count, more: u64) {
        if let Some(slot) = self.facts.counts.get_mut(count as usize)
            && let Some(is_summed) = self.parts.summed.get_mut(count as usize)
        {
            let before = if std::mem::replace(is_summed, true) { slot.unwrap_or_default() } else { 0 };
            *slot = Some(before.saturating_add(more));
        }
    }
}
