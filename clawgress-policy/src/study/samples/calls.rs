//! Samples of calls of models and of messages to tools: what policies on them name, and one thing of each kind that they don't.

use std::collections::BTreeSet;

use super::{Named, is_finding};

/// Most samples of each dimension.
const BY_MAX: usize = 12;
const NAMES_MAX: usize = 16;
const METHODS_MAX: usize = 4;
const CONTENTS_MAX: usize = 64;
/// Who, and what, no policy names.
const OTHER: &str = "any-other";

/// Texts of a dimension, at most so many; what is left out is told by its name.
type Bounded<'a> = &'a mut dyn FnMut(BTreeSet<String>, usize, &str) -> Vec<String>;

/// Calls to ask about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::study) struct Calls {
    /// Who offers what: a provider and a model, or a server and a tool.
    pub(in crate::study) offers: Vec<(String, String)>,
    /// Methods of messages; none of calls.
    pub(in crate::study) methods: Vec<String>,
    pub(in crate::study) contents: Vec<SampleCall>,
}

/// What a call has in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::study) struct SampleCall {
    pub(in crate::study) told: String,
    /// Tokens, and whatever else is a number.
    pub(in crate::study) number: u64,
    /// Findings, tools that are offered, or names of arguments: a word may be any of them.
    pub(in crate::study) words: Vec<String>,
    /// Values of arguments.
    pub(in crate::study) values: Vec<String>,
    /// Whether that is asked for; as of a client that says nothing of it if absent.
    pub(in crate::study) stream: Option<bool>,
    /// What is asked of the provider; `chat_completions` if absent.
    pub(in crate::study) surface: Option<String>,
    /// What is to be done about tools, or who it is for.
    pub(in crate::study) name: String,
    /// Whether the server may keep it; as of a client that says nothing of it if absent.
    pub(in crate::study) store: Option<bool>,
    /// Whether its server has more of it.
    pub(in crate::study) partial: bool,
}

/// A surface that keeps what it is asked, and one that streams, of a client that says nothing of it.
const SURFACES: [&str; 2] = ["responses", "ollama_chat"];

// === impl Calls ===

impl Calls {
    pub(super) fn of_models(named: &Named, bounded: Bounded<'_>) -> Calls {
        let stream = SampleCall { told: "streams".to_owned(), stream: Some(true), ..SampleCall::default() };
        let kept = SampleCall { told: "kept".to_owned(), store: Some(true), ..SampleCall::default() };
        let partial = SampleCall { told: "partial".to_owned(), partial: true, ..SampleCall::default() };
        let surfaces = SURFACES.into_iter().map(|surface| SampleCall {
            told: format!("of {surface}"),
            surface: Some(surface.to_owned()),
            ..SampleCall::default()
        });
        let contents = [stream, kept, partial].into_iter().chain(surfaces).chain(named.numbered("tokens"));
        let contents = contents.chain(named.worded("finding or tool")).chain(named.spoken());
        Calls {
            offers: offers(named, bounded, ["providers", "models"]),
            methods: Vec::new(),
            contents: least(contents),
        }
    }

    pub(super) fn of_tools(named: &Named, bounded: Bounded<'_>) -> Calls {
        let is_method = |word: &&String| !word.starts_with('/') && word.contains('/');
        let methods = named.words.iter().filter(is_method).cloned();
        let methods = methods.chain(["tools/call", "tools/list"].map(str::to_owned)).collect();
        let values = named.words.iter().filter(|word| word.starts_with('/') && word.contains('='));
        let valued = values.map(|value| SampleCall {
            told: format!("argument {value}"),
            values: vec![value.clone()],
            ..SampleCall::default()
        });
        let contents = named.worded("finding or argument").chain(valued);
        Calls {
            offers: offers(named, bounded, ["tool servers", "tools"]),
            methods: bounded(methods, METHODS_MAX, "methods of messages"),
            contents: least(contents),
        }
    }
}

/// Nothing in it, and as much of these as may be.
fn least(contents: impl Iterator<Item = SampleCall>) -> Vec<SampleCall> {
    let empty = SampleCall { told: "nothing found".to_owned(), ..SampleCall::default() };
    [empty].into_iter().chain(contents).take(CONTENTS_MAX).collect()
}

/// Whoever is named with whatever is, and others.
fn offers(named: &Named, bounded: Bounded<'_>, [by, of]: [&str; 2]) -> Vec<(String, String)> {
    let parts = || named.offered.iter().filter_map(|id| id.split_once('/'));
    let who = named.offering.iter().map(String::as_str).chain(parts().map(|(by, _)| by)).chain([OTHER]);
    let who = bounded(who.map(str::to_owned).collect(), BY_MAX, by);
    let words = named.words.iter().filter(|word| !word.is_empty() && !word.contains(['/', '=']));
    let what = parts().map(|(_, name)| name.to_owned()).chain(words.cloned());
    let what = what.chain(named.patterned(|text| !text.is_empty() && !text.contains('/')));
    let what = bounded(what.chain([OTHER.to_owned()]).collect(), NAMES_MAX, of);
    let with = |by: &String| what.iter().map(|name| (by.clone(), name.clone())).collect::<Vec<_>>();
    who.iter().flat_map(with).collect()
}

// === impl Named ===

impl Named {
    fn worded(&self, what: &str) -> impl Iterator<Item = SampleCall> {
        self.words.iter().filter(|word| is_finding(word)).map(move |word| SampleCall {
            told: format!("{what} {word}"),
            words: vec![word.clone()],
            ..SampleCall::default()
        })
    }

    /// What a word may be besides: a surface; a choice of tools, or somebody.
    fn spoken(&self) -> impl Iterator<Item = SampleCall> {
        let surface = |word: &String| SampleCall {
            told: format!("of {word}"),
            surface: Some(word.clone()),
            ..SampleCall::default()
        };
        let surfaces =
            self.words.iter().filter(|word| is_finding(word) && !SURFACES.contains(&word.as_str()));
        let names = self.words.iter().filter(|word| !word.is_empty());
        surfaces.map(surface).chain(names.map(|word| SampleCall {
            told: format!("choice of tools or user {word}"),
            name: word.clone(),
            ..SampleCall::default()
        }))
    }

    fn numbered(&self, what: &str) -> impl Iterator<Item = SampleCall> {
        let numbers = self.numbers.iter().filter_map(|number| u64::try_from(*number).ok());
        let numbers: BTreeSet<u64> = numbers.flat_map(|n| [n, n.saturating_add(1)]).collect();
        numbers.into_iter().map(move |number| SampleCall {
            told: format!("{number} {what}"),
            number,
            ..SampleCall::default()
        })
    }
}
