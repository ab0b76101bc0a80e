//! Texts that a model may be shown, of what is no call: what a body says as it is, and beside that what stands in it without the
//! escapes of what it is written in. Must never have the words of one of them follow those of another.

use super::Tally;
use crate::llm::{Piece, Provenance, Role, Texts};
use crate::prompt::Detector;

/// Lanes at most: what is written in a document, in an event, and in a document in one of these.
pub(super) const LANES_MAX: u8 = 3;

/// One of the texts that are heard beside one another, from 0: of those, each is written in the one before.
pub(super) type Lane = u8;

/// What hears them.
#[derive(Debug)]
pub(super) struct Hearing {
    from: Provenance,
    first: Texts,
    /// Of all lanes but the first.
    beside: Vec<(Texts, Detector)>,
}

// === impl Hearing ===

impl Hearing {
    /// Of what comes from there.
    pub(super) fn new(from: Provenance) -> Hearing {
        Hearing { from, first: heard_from(from), beside: Vec::new() }
    }

    /// Begins anew, with the same detectors.
    pub(super) fn again(&mut self) {
        self.first = heard_from(self.from);
        for (texts, detector) in &mut self.beside {
            *texts = heard_from(self.from);
            detector.again();
        }
    }

    /// What has looked at the lanes but the first.
    pub(super) fn detectors(&self) -> impl Iterator<Item = &Detector> {
        self.beside.iter().map(|(_, detector)| detector)
    }

    /// Bytes of memory that it may take.
    pub(super) fn memory_bytes(&self) -> usize {
        let beside =
            self.beside.iter().map(|(texts, detector)| texts.memory_bytes() + detector.memory_bytes());
        self.first.memory_bytes() + beside.sum::<usize>()
    }
}

// === impl Tally, of texts that a model may be shown ===

impl Tally {
    /// The lane of what is written in one of that lane, if it is heard.
    pub(super) fn lane_in(&self, lane: Option<Lane>) -> Option<Lane> {
        let inner = lane?.checked_add(1)?;
        (self.heard.is_some() && inner < LANES_MAX).then_some(inner)
    }

    /// The first, if anything is heard.
    pub(super) fn lane(&self) -> Option<Lane> {
        self.heard.is_some().then_some(0)
    }

    /// Begins a text.
    pub(super) fn hear_begins(&mut self, lane: Lane) {
        self.to(lane, |texts, _, from| {
            texts.apart();
            texts.begin(Some(from));
        });
    }

    /// Some of it.
    pub(super) fn hear(&mut self, lane: Lane, bytes: &[u8]) {
        self.to(lane, |texts, sink, _| texts.push(bytes, sink));
    }

    /// Ends it.
    pub(super) fn hear_ends(&mut self, lane: Lane) {
        self.to(lane, |texts, sink, _| texts.end(sink));
    }

    fn to(&mut self, lane: Lane, act: impl FnOnce(&mut Texts, &mut dyn FnMut(&Piece<'_>), Provenance)) {
        let (Some(heard), Some(prompt)) = (&mut self.heard, &mut self.prompt) else { return };
        let Hearing { from, first, beside } = &mut **heard;
        let Some(at) = usize::from(lane).checked_sub(1) else {
            return act(first, &mut |piece| prompt.push(piece), *from);
        };
        while beside.len() <= at {
            beside.push((heard_from(*from), prompt.another()));
        }
        if let Some((texts, detector)) = beside.get_mut(at) {
            act(texts, &mut |piece| detector.push(piece), *from);
        }
    }
}

/// The first text of what is no call.
fn heard_from(from: Provenance) -> Texts {
    let mut texts = Texts::default();
    texts.message(Some(Role::Unknown), &mut |_| {});
    texts.begin(Some(from));
    texts
}

/// What hands the pieces of a call's texts on.
pub(super) fn looks_at(prompt: &mut Option<Box<Detector>>) -> impl FnMut(&Piece<'_>) {
    move |piece| {
        if let Some(prompt) = prompt {
            prompt.push(piece);
        }
    }
}
