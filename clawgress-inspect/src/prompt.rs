//! What in a prompt tries to steer a model: orders where there should be data, templates of jailbreaks, characters that
//! deceive, and orders in other clothes.
//!
//! Takes the texts of a request as [`crate::llm`] tells them, each with where it comes from: an order inside a tool's answer
//! weighs more than in a user's turn. Says signals and a score; what to do is policy's. Must never hold more of a text than
//! a run's block, nor say that a prompt is safe.

mod fold;
mod inside;
pub mod rules;
mod words;

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::sync::Arc;

use inside::{Layer, Place, Shared, of_run};
pub use rules::{BUILT_IN, Rules, RulesError};
use words::{Odd, Words};

use crate::encoded::Runs;
use crate::encoded::run::Event;
use crate::llm::{Piece, Provenance};

/// Signals of characters, which no rule is needed for.
pub const INVISIBLE_TEXT: &str = "invisible_text";
pub const BIDI_OVERRIDE: &str = "bidi_override";
pub const HOMOGLYPHS: &str = "homoglyphs";
pub const ENCODED_INSTRUCTION: &str = "encoded_instruction";
/// From how many characters on there is each: fewer come by copying.
const INVISIBLE_MIN: u32 = 2;
const TAGS_MIN: u32 = 4;
const VARIATIONS_MIN: u32 = 4;
const MIXED_MIN: u32 = 2;
/// What they weigh in a user's turn, of 100.
const INVISIBLE_WEIGHT: u32 = 40;
const TAGS_WEIGHT: u32 = 60;
const BIDI_WEIGHT: u32 = 30;
const MIXED_WEIGHT: u32 = 30;
/// What an order in other clothes weighs besides itself.
const ENCODED_WEIGHT: u32 = 40;
/// The finding of what scores at least this.
pub const PROMPT_INJECTION: &str = "prompt_injection";
pub const LIKELY: u32 = 40;
/// Words between two texts, so that no pattern reaches over.
const APART: u32 = rules::GAP_MAX + 2;

/// What a request came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Assessment {
    /// 0 to 100: what all signs weigh together.
    pub score: u32,
    /// What was seen, by name.
    pub signals: BTreeSet<Arc<str>>,
    /// Rules that matched, by id.
    pub rules: BTreeSet<Arc<str>>,
}

/// A detector of one request.
#[derive(Clone, Debug)]
pub struct Detector {
    shared: Arc<Rules>,
    /// The most that each rule's match weighs.
    matched: BTreeMap<u16, u32>,
    /// The same of signs without a rule.
    signs: BTreeMap<&'static str, u32>,
    plain: Stream,
    /// What tags stand for.
    tags: Option<Box<Stream>>,
    /// What runs of letters stand for.
    inside: Inside,
    steps: u64,
    /// What the last text was a part of, and where it comes from.
    last: Option<(u32, Provenance)>,
}

/// Words of one text, and how far patterns have come in them.
#[derive(Clone, Debug)]
struct Stream {
    words: Words,
    /// Number of the last word, from 1.
    at: u32,
    /// Of each step, where it was last taken; 0 if nowhere.
    reached: Vec<u32>,
    /// What was seen before the text at hand.
    before: Odd,
}

/// A detector of runs, and of what is in them. A copy begins anew: whoever copies has its texts whole.
#[derive(Debug, Default)]
struct Inside {
    runs: Runs,
    layer: Option<Box<Layer>>,
    /// Bytes that packed files came to; and those of its texts that stood for others.
    unpacked: u64,
    coded: u64,
}

impl Clone for Inside {
    fn clone(&self) -> Inside {
        Inside::default()
    }
}

// === impl Assessment ===

impl Assessment {
    /// Words of policy: the signals, and one for a score of [`LIKELY`] and more.
    pub fn findings(&self) -> impl Iterator<Item = &str> {
        let likely = (self.score >= LIKELY).then_some(PROMPT_INJECTION);
        self.signals.iter().map(|signal| &**signal).chain(likely)
    }
}

// === impl Detector ===

impl Detector {
    /// A detector of one request by these rules.
    #[must_use]
    pub fn new(rules: &Arc<Rules>) -> Detector {
        Detector {
            shared: Arc::clone(rules),
            matched: BTreeMap::new(),
            signs: BTreeMap::new(),
            plain: Stream::new(rules),
            tags: None,
            inside: Inside::default(),
            steps: 0,
            last: None,
        }
    }

    /// What it looks for.
    #[must_use]
    pub fn rules(&self) -> &Rules {
        &self.shared
    }

    /// Another by the same rules.
    #[must_use]
    pub fn another(&self) -> Detector {
        Detector::new(&self.shared)
    }

    /// Makes it the detector of another request, as if it were new.
    pub fn again(&mut self) {
        self.matched.clear();
        self.signs.clear();
        self.plain.again();
        (self.tags, self.steps, self.last) = (None, 0, None);
        self.inside.layer = None;
        (self.inside.unpacked, self.inside.coded) = (0, 0);
        self.inside.runs.clear();
    }

    /// Looks at the next piece of a text. Texts of one message, from one place, are read as a model is shown them: one behind the
    /// other.
    pub fn push(&mut self, piece: &Piece<'_>) {
        let part = (piece.message, piece.provenance);
        if piece.begins && self.last.replace(part) != Some(part) {
            self.apart();
        }
        self.look(piece.provenance, piece.text, piece.ends);
    }

    /// Looks at what comes next of a text that comes from there, and has nothing to do with the one before; the last of it if it
    /// `ends`.
    pub fn text(&mut self, provenance: Provenance, text: &str, ends: bool) {
        self.look(provenance, text, ends);
        if ends {
            self.apart();
        }
    }

    /// Has no pattern reach over from what came before.
    fn apart(&mut self) {
        std::iter::once(&mut self.plain).chain(self.tags.as_deref_mut()).for_each(Stream::apart);
    }

    fn look(&mut self, provenance: Provenance, text: &str, ends: bool) {
        let mut hidden = String::new();
        let Detector { shared, matched, plain, steps, .. } = self;
        let mut hit = |rule: u16| note(matched, rule, shared.weight(usize::from(rule), provenance));
        *steps += plain.push(text, shared, &mut hit, &mut |byte| hidden.push(char::from(byte)));
        if !hidden.is_empty() {
            let tags = self.tags.get_or_insert_with(|| Box::new(Stream::new(&self.shared)));
            let mut hit =
                |rule: u16| note(&mut self.matched, rule, self.shared.weight(usize::from(rule), provenance));
            self.steps += tags.push(&hidden, &self.shared, &mut hit, &mut |_| {});
        }
        self.encoded(provenance, text, ends);
        if ends {
            self.end(provenance);
        }
    }

    /// What the texts so far came to.
    #[must_use]
    pub fn assess(&self) -> Assessment {
        self.assess_with(std::iter::empty())
    }

    /// What they came to with those of other detectors by the same rules: what two have seen counts once.
    #[must_use]
    pub fn assess_with<'a>(&self, others: impl Iterator<Item = &'a Detector>) -> Assessment {
        let (mut matched, mut signs) = (self.matched.clone(), self.signs.clone());
        for other in others {
            other.matched.iter().for_each(|(rule, weight)| note(&mut matched, *rule, *weight));
            other.signs.iter().for_each(|(sign, weight)| note(&mut signs, sign, *weight));
        }
        let mut assessment = Assessment::default();
        let mut left = 100;
        let mut weigh = |weight: u32| left -= left * weight / 100;
        for (rule, weight) in &matched {
            let Some(rule) = self.shared.rules().get(usize::from(*rule)).filter(|_| *weight > 0) else {
                continue;
            };
            weigh(*weight);
            assessment.signals.insert(Arc::clone(&rule.signal));
            assessment.rules.insert(Arc::clone(&rule.id));
        }
        for (sign, weight) in signs.iter().filter(|(_, weight)| **weight > 0) {
            weigh(*weight);
            assessment.signals.insert((*sign).into());
        }
        assessment.score = 100 - left;
        assessment
    }

    /// Steps it took: characters, and places of patterns that were looked at.
    #[must_use]
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// Bytes that packed files in its texts came to.
    #[must_use]
    pub fn unpacked_bytes(&self) -> u64 {
        self.inside.unpacked
    }

    /// Bytes of memory that it may take.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        let streams = 1 + usize::from(self.tags.is_some());
        let inside = self.inside.layer.as_ref().map_or(0, |layer| layer.memory_bytes(&self.shared));
        streams * self.shared.steps() * size_of::<u32>() + crate::encoded::run::MEMORY_BYTES + inside
    }

    /// Decodes what is in other clothes, and looks at it: an order that nobody is meant to see is no accident.
    fn encoded(&mut self, provenance: Provenance, text: &str, ends: bool) {
        let Detector { shared, matched, signs, inside, steps, .. } = self;
        let Inside { runs, layer, unpacked, coded } = inside;
        let mut hit = |rule: u16| {
            note(matched, rule, shared.weight(usize::from(rule), provenance));
            note(signs, ENCODED_INSTRUCTION, shared.weighed(ENCODED_WEIGHT, provenance));
        };
        let mut all = Shared { rules: shared, hit: &mut hit, unpacked, coded, steps };
        let mut sink = |event: Event<'_>| {
            of_run(event, layer, Place::default(), &mut all);
            Ok::<(), Infallible>(())
        };
        let Ok(()) = runs.push(text.as_bytes(), &mut sink);
        if ends {
            let Ok(()) = runs.finish(&mut sink);
        }
    }

    fn end(&mut self, provenance: Provenance) {
        let Detector { shared, matched, signs, plain, tags, steps, .. } = self;
        let mut hit = |rule: u16| note(matched, rule, shared.weight(usize::from(rule), provenance));
        *steps += plain.finish(shared, &mut hit);
        if let Some(tags) = tags {
            *steps += tags.finish(shared, &mut hit);
        }
        let odd = plain.odd();
        let mut sign = |is: bool, name: &'static str, weight: u32| {
            if is {
                note(signs, name, shared.weighed(weight, provenance));
            }
        };
        sign(
            odd.invisible >= INVISIBLE_MIN || odd.variations >= VARIATIONS_MIN,
            INVISIBLE_TEXT,
            INVISIBLE_WEIGHT,
        );
        sign(odd.tags >= TAGS_MIN, INVISIBLE_TEXT, TAGS_WEIGHT);
        sign(odd.overrides > 0 || odd.embeddings > 0 && !odd.has_rtl, BIDI_OVERRIDE, BIDI_WEIGHT);
        sign(odd.mixed >= MIXED_MIN, HOMOGLYPHS, MIXED_WEIGHT);
        plain.next();
    }
}

fn note<K: Ord>(all: &mut BTreeMap<K, u32>, key: K, weight: u32) {
    let most = all.entry(key).or_default();
    *most = (*most).max(weight);
}

// === impl Stream ===

impl Stream {
    fn new(rules: &Rules) -> Stream {
        Stream { words: Words::default(), at: APART, reached: vec![0; rules.steps()], before: Odd::default() }
    }

    /// Begins anew.
    fn again(&mut self) {
        (self.words, self.at, self.before) = (Words::default(), APART, Odd::default());
        self.reached.fill(0);
    }

    /// Looks at what comes next; says how many steps it took.
    fn push(
        &mut self,
        text: &str,
        rules: &Rules,
        hit: &mut impl FnMut(u16),
        tag: &mut impl FnMut(u8),
    ) -> u64 {
        let Stream { words, at, reached, .. } = self;
        let mut steps = text.len() as u64;
        words.push(text, &mut |word| steps += step(rules, word, at, reached, hit), tag);
        steps
    }

    fn finish(&mut self, rules: &Rules, hit: &mut impl FnMut(u16)) -> u64 {
        let Stream { words, at, reached, .. } = self;
        let mut steps = 0;
        words.finish(&mut |word| steps += step(rules, word, at, reached, hit));
        steps
    }

    fn apart(&mut self) {
        // Far enough for four thousand million words in all; then the earliest count again.
        self.at = self.at.saturating_add(APART);
    }

    /// What was seen of characters in the text at hand.
    fn odd(&self) -> Odd {
        let (now, before) = (self.words.odd(), self.before);
        Odd {
            invisible: now.invisible - before.invisible,
            tags: now.tags - before.tags,
            variations: now.variations - before.variations,
            overrides: now.overrides - before.overrides,
            embeddings: now.embeddings - before.embeddings,
            has_rtl: now.has_rtl,
            mixed: now.mixed - before.mixed,
        }
    }

    fn next(&mut self) {
        self.before = self.words.odd();
    }
}

/// Takes a word in all patterns where it stands.
fn step(rules: &Rules, word: u64, at: &mut u32, reached: &mut [u32], hit: &mut impl FnMut(u16)) -> u64 {
    *at = at.saturating_add(1);
    let places = rules.places(word);
    // The later ones first: a word is taken once in a pattern.
    for place in places.iter().rev() {
        // What was never taken is farther behind than any gap, since texts begin at [`APART`].
        let before = reached.get(place.before as usize).copied().unwrap_or_default();
        if *at - before > place.words_max {
            continue;
        }
        if place.is_last {
            hit(place.rule);
        } else if let Some(reached) = reached.get_mut(place.step as usize) {
            *reached = *at;
        }
    }
    places.len() as u64
}

#[cfg(test)]
mod tests;
