//! Rules of what is looked for in prompts: data that an operator may replace, read and validated here.
//!
//! A pattern is words in order: `"ignore|disregard ~2 previous|prior ~1 instruction"` is one of two words, at most two others,
//! one of two words, at most one other, and a word. Must never hold rules that cost more than bounded work for each word.

use std::collections::{BTreeSet, HashMap};
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;

use serde::Deserialize;
use toml::Spanned;

use super::words;
use crate::llm::Provenance;

/// The rules that come with the program.
pub const BUILT_IN: &str = include_str!("rules.toml");
/// Format that is read.
pub const FORMAT: u32 = 1;
/// Longest version, bytes: records have it.
pub const VERSION_BYTES_MAX: usize = 48;
/// Most rules, and patterns in all.
pub const RULES_MAX: usize = 512;
pub const PATTERNS_MAX: usize = 4096;
/// Most steps of a pattern, words of a step, and words that may stand between two steps.
pub const STEPS_MAX: usize = 12;
pub const WORDS_MAX: usize = 64;
pub const GAP_MAX: u32 = 16;
/// Most places where one word stands in all patterns: what a text full of it costs for each.
pub const PLACES_MAX: usize = 96;

/// Why rules can't be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RulesError {
    /// Not TOML, or not of this form.
    #[error("{0}")]
    Malformed(String),
    /// Another format.
    #[error("rules of format {0}; this program reads {FORMAT}")]
    Format(u32),
    /// More than a bound.
    #[error("more than {most} {what}")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// Its bound.
        most: usize,
    },
    /// A version that says nothing, or too much for a record.
    #[error("`version` is no version; write 1 to {VERSION_BYTES_MAX} letters, digits, `.`, `-`, `_` and `+`")]
    Version,
    /// Of a rule.
    #[error("line {line}, rule `{rule}`: {why}")]
    Rule {
        /// Where its id is, from 1.
        line: usize,
        /// Its id.
        rule: String,
        /// What is wrong.
        why: String,
    },
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    format: u32,
    version: String,
    provenance: Weights,
    #[serde(default)]
    rule: Vec<RawRule>,
}

/// Percent of a rule's weight that counts by where a text comes from.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Weights {
    instructions: u32,
    user: u32,
    model: u32,
    tool_arguments: u32,
    tool_output: u32,
    retrieved: u32,
    tool_definition: u32,
    unknown: u32,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRule {
    id: Spanned<String>,
    signal: String,
    weight: u32,
    /// Only in what others may have written.
    #[serde(default)]
    untrusted_only: bool,
    patterns: Vec<String>,
}

/// A rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Its id.
    pub id: Arc<str>,
    /// What it is a sign of.
    pub signal: Arc<str>,
    /// Of 100.
    pub weight: u32,
    /// Whether it counts only in what others may have written.
    pub untrusted_only: bool,
}

/// Where a word stands in a pattern.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) rule: u16,
    /// Number of the step among all steps of all patterns.
    pub(super) step: u32,
    /// Of the step before.
    pub(super) before: u32,
    /// How many words behind that it is at most; of a first step any number.
    pub(super) words_max: u32,
    pub(super) is_last: bool,
}

/// Rules that can be looked for.
#[derive(Clone, Debug)]
pub struct Rules {
    version: Arc<str>,
    weights: Weights,
    rules: Vec<Rule>,
    places: HashMap<u64, Vec<Place>, BuildHasherDefault<Same>>,
    /// A bit for each word of all patterns, and few others: most words of a text stand in none.
    known: Box<[u64; KNOWN]>,
    steps: usize,
}

/// Numbers of 64 bits each that words are known by: 4 KiB, which is little beside the patterns, and much for their words.
const KNOWN: usize = 512;

/// Numbers that are even already.
#[derive(Clone, Copy, Debug, Default)]
struct Same(u64);

impl Hasher for Same {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|b| self.0 = self.0 << 8 | u64::from(*b));
    }

    fn write_u64(&mut self, n: u64) {
        self.0 = n;
    }
}

// === impl Weights ===

impl Weights {
    fn of(&self, provenance: Provenance) -> u32 {
        match provenance {
            Provenance::Instructions => self.instructions,
            Provenance::User => self.user,
            Provenance::Model => self.model,
            Provenance::ToolArguments => self.tool_arguments,
            Provenance::ToolOutput => self.tool_output,
            Provenance::Retrieved => self.retrieved,
            Provenance::ToolDefinition => self.tool_definition,
            Provenance::Unknown => self.unknown,
        }
    }
}

// === impl Rules ===

impl Rules {
    /// Reads a file of rules.
    ///
    /// # Errors
    /// What is wrong, and where.
    pub fn parse(text: &str) -> Result<Rules, RulesError> {
        let file: File = toml::from_str(text).map_err(|e| RulesError::Malformed(e.to_string()))?;
        if file.format != FORMAT {
            return Err(RulesError::Format(file.format));
        }
        let is_plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b'+');
        if !(1..=VERSION_BYTES_MAX).contains(&file.version.len()) || !file.version.bytes().all(is_plain) {
            return Err(RulesError::Version);
        }
        if file.rule.len() > RULES_MAX {
            return Err(RulesError::TooMany { what: "rules", most: RULES_MAX });
        }
        let mut rules = Rules {
            version: file.version.into(),
            weights: file.provenance,
            rules: Vec::with_capacity(file.rule.len()),
            places: HashMap::default(),
            known: Box::new([0; KNOWN]),
            steps: 0,
        };
        let (mut ids, mut patterns) = (BTreeSet::new(), 0);
        for rule in file.rule {
            patterns += rule.patterns.len();
            if patterns > PATTERNS_MAX {
                return Err(RulesError::TooMany { what: "patterns", most: PATTERNS_MAX });
            }
            let id = rule.id.get_ref();
            let before = text.get(..rule.id.span().start).unwrap_or_default();
            let line = 1 + before.bytes().filter(|b| *b == b'\n').count();
            let wrong = |why: String| RulesError::Rule { line, rule: id.clone(), why };
            if !ids.insert(id.clone()) {
                return Err(wrong("there are two of this id; give one another".to_owned()));
            }
            rules.add(&rule).map_err(wrong)?;
        }
        Ok(rules)
    }

    /// The version of the file.
    #[must_use]
    pub fn version(&self) -> &str {
        &self.version
    }

    /// All of them.
    #[must_use]
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// What a rule's match in such a text weighs, of 100.
    #[must_use]
    pub fn weight(&self, rule: usize, provenance: Provenance) -> u32 {
        let Some(rule) = self.rules.get(rule) else { return 0 };
        let is_untrusted = !matches!(
            provenance,
            Provenance::Instructions | Provenance::User | Provenance::Model | Provenance::ToolArguments
        );
        if rule.untrusted_only && !is_untrusted {
            return 0;
        }
        (rule.weight.saturating_mul(self.weights.of(provenance)) / 100).min(100)
    }

    /// What a sign that is no rule's weighs in such a text.
    pub(super) fn weighed(&self, weight: u32, provenance: Provenance) -> u32 {
        (weight.saturating_mul(self.weights.of(provenance)) / 100).min(100)
    }

    pub(super) fn places(&self, word: u64) -> &[Place] {
        let (at, bit) = known(word);
        if self.known.get(at).is_none_or(|bits| bits & bit == 0) {
            return &[];
        }
        self.places.get(&word).map_or(&[], Vec::as_slice)
    }

    pub(super) fn steps(&self) -> usize {
        self.steps
    }

    fn add(&mut self, raw: &RawRule) -> Result<(), String> {
        let is_name = |name: &str| {
            (1..=48).contains(&name.len())
                && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
        };
        if !is_name(raw.id.get_ref()) {
            return Err("its id is no name; use up to 48 of `a` to `z`, digits and `_`".to_owned());
        }
        if !is_name(&raw.signal) {
            return Err(format!(
                "`{}` is no name of a signal; use up to 48 of `a` to `z`, digits and `_`",
                raw.signal
            ));
        }
        if !(1..=100).contains(&raw.weight) {
            return Err(format!("its weight is {}; use 1 to 100", raw.weight));
        }
        if raw.patterns.is_empty() {
            return Err("it has no pattern".to_owned());
        }
        let rule = u16::try_from(self.rules.len()).map_err(|_| "too many rules".to_owned())?;
        for pattern in &raw.patterns {
            self.pattern(rule, pattern).map_err(|why| format!("pattern `{pattern}`: {why}"))?;
        }
        self.rules.push(Rule {
            id: raw.id.get_ref().as_str().into(),
            signal: raw.signal.as_str().into(),
            weight: raw.weight,
            untrusted_only: raw.untrusted_only,
        });
        Ok(())
    }

    fn pattern(&mut self, rule: u16, pattern: &str) -> Result<(), String> {
        let (mut gap, mut steps) = (None, Vec::new());
        for part in pattern.split_ascii_whitespace() {
            if let Some(number) = part.strip_prefix('~') {
                let number = number.parse::<u32>().ok().filter(|n| (1..=GAP_MAX).contains(n));
                let number = number.ok_or_else(|| format!("`{part}` is no gap; use `~1` to `~{GAP_MAX}`"))?;
                if steps.is_empty() || gap.replace(number).is_some() {
                    return Err(format!("`{part}` stands between no two words"));
                }
                continue;
            }
            // A bar alone is the mark.
            let words = if part == "|" { vec!["|"] } else { part.split('|').collect() };
            if words.len() > WORDS_MAX {
                return Err(format!("`{part}` has more than {WORDS_MAX} words"));
            }
            let read = |word: &&str| {
                words::word(word).ok_or_else(|| format!("`{word}` is not one word; put a blank between two"))
            };
            steps.push((
                gap.take().unwrap_or_default(),
                words.iter().map(read).collect::<Result<BTreeSet<_>, _>>()?,
            ));
        }
        if gap.is_some() {
            return Err("it ends in a gap".to_owned());
        }
        if !(2..=STEPS_MAX).contains(&steps.len()) {
            return Err(format!("it has {} words in a row; use 2 to {STEPS_MAX}", steps.len()));
        }
        let last = steps.len() - 1;
        for (n, (gap, words)) in steps.into_iter().enumerate() {
            let step = u32::try_from(self.steps).map_err(|_| "too many steps".to_owned())?;
            self.steps += 1;
            for word in words {
                let (at, bit) = known(word);
                self.known.get_mut(at).into_iter().for_each(|bits| *bits |= bit);
                let places = self.places.entry(word).or_default();
                if places.len() >= PLACES_MAX {
                    return Err(format!(
                        "one of its words stands in more than {PLACES_MAX} places of all patterns"
                    ));
                }
                let (before, words_max) = if n == 0 { (step, u32::MAX) } else { (step - 1, gap + 1) };
                places.push(Place { rule, step, before, words_max, is_last: n == last });
            }
        }
        Ok(())
    }
}

/// Where a word's bit is, and the bit.
fn known(word: u64) -> (usize, u64) {
    let mixed = word ^ word >> 32;
    (mixed as usize >> 6 & (KNOWN - 1), 1 << (mixed & 63))
}
