//! What comes back of a model, as it streams by: tokens used, by the count of whoever served it; tools that the model asks
//! for; why it stopped.
//!
//! Works in constant memory and must never alter, hold back or keep the bytes it is shown. What it can't read with certainty
//! it doesn't report: usage is then unknown, not zero. Counts of a stream are cumulative, so that later ones replace earlier
//! ones.

mod document;
mod editor;
mod frames;

use document::Document;
pub use editor::Editor;
use frames::Frames;

/// Most tools that are told apart of what one answer asks for.
pub const ASKED_MAX: usize = 256;

/// How the response is delimited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// One JSON document (RFC 8259); of Gemini perhaps an array of them.
    Json,
    /// Server-sent events whose data are JSON documents (WHATWG HTML section 9.2).
    EventStream,
    /// A document a line.
    Lines,
    /// Frames of `application/vnd.amazon.eventstream`.
    Amazon,
}

impl Format {
    /// The format of a `Content-Type`, if it is one of ours.
    #[must_use]
    pub fn of(content_type: &str) -> Option<Format> {
        let media = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        match media.as_str() {
            "text/event-stream" => Some(Format::EventStream),
            "application/json" => Some(Format::Json),
            "application/x-ndjson" | "application/ndjson" | "application/jsonl" => Some(Format::Lines),
            "application/vnd.amazon.eventstream" => Some(Format::Amazon),
            _ => None,
        }
    }
}

/// Tokens, as the provider counts them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Of the prompt, with those of caches.
    pub input: u64,
    /// Of the answer, with those of reasoning.
    pub output: u64,
    /// Of the prompt, those that a cache had.
    pub cached: u64,
    /// Of the prompt, those that were written to a cache.
    pub cache_written: u64,
    /// Of the answer, those of reasoning.
    pub reasoning: u64,
}

/// What came back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// Model, if the answer named it.
    pub model: Option<String>,
    /// Tokens used; `None` unless they were found in whole, well-formed documents.
    pub usage: Option<Usage>,
    /// Tokens of the answer's texts, estimated.
    pub output_estimated: u64,
    /// Names of the tools that the model asks for, each once, in order of the first.
    pub tools: Vec<String>,
    /// Whether there were more than [`ASKED_MAX`], or names that are not plain.
    pub has_more_tools: bool,
    /// Why it stopped, as it is said.
    pub finish: Option<String>,
    /// What failed, by the type that is said.
    pub error: Option<String>,
    /// Whether its usage is what a stream begins with, whose answer was not counted yet.
    pub is_partial: bool,
}

/// Reads one response.
#[derive(Debug)]
pub struct Reader {
    frames: Frames,
    document: Document,
    answer: Facts,
}

/// What documents say, later ones over earlier ones.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Facts {
    model: Option<String>,
    finish: Option<String>,
    error: Option<String>,
    tools: Vec<String>,
    has_more_tools: bool,
    counts: [Option<u64>; Count::ALL],
    output_estimated: u64,
    /// Whether it is the beginning of a stream; of all documents: whether only that counted the output.
    is_start: bool,
}

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Count {
    Input,
    Output,
    Total,
    /// Within the input.
    Cached,
    CacheWritten,
    /// Besides the input.
    CachedBesides,
    CacheWrittenBesides,
    ToolPrompt,
    /// Within the output.
    Reasoning,
    /// Besides the output.
    Thoughts,
}

impl Count {
    const ALL: usize = 10;
}

// === impl Reader ===

impl Reader {
    /// For a response of this format.
    #[must_use]
    pub fn new(format: Format) -> Self {
        Reader { frames: Frames::new(format), document: Document::default(), answer: Facts::default() }
    }

    /// Looks at the next bytes of the body, in any segmentation.
    pub fn push(&mut self, bytes: &[u8]) {
        let Reader { frames, document, answer } = self;
        frames.push(bytes, document, &mut |document| answer.take(document));
    }

    /// What there was. A document that did not come whole says nothing.
    #[must_use]
    pub fn finish(mut self) -> Answer {
        let Reader { frames, document, answer } = &mut self;
        frames.finish(document, &mut |document| answer.take(document));
        self.answer.output_estimated += self.document.tokens();
        self.answer.into_answer()
    }
}

// === impl Facts ===

impl Facts {
    /// Takes over what a document said, if it was a whole one.
    fn take(&mut self, document: &mut Document) {
        let is_whole = document.is_whole();
        let found = document.facts();
        // Of broken ones too: it was sent.
        self.output_estimated += found.output_estimated;
        if !is_whole {
            return;
        }
        if found.counts.get(Count::Output as usize).is_some_and(Option::is_some) {
            self.is_start = found.is_start;
        }
        for (known, new) in self.counts.iter_mut().zip(found.counts) {
            *known = new.or(*known);
        }
        let replace = |known: &mut Option<String>, new: &mut Option<String>| {
            if new.is_some() {
                std::mem::swap(known, new);
            }
        };
        replace(&mut self.model, &mut found.model);
        replace(&mut self.finish, &mut found.finish);
        replace(&mut self.error, &mut found.error);
        self.has_more_tools |= found.has_more_tools;
        for tool in found.tools.drain(..) {
            self.ask(tool);
        }
    }

    fn ask(&mut self, tool: String) {
        if self.tools.contains(&tool) {
            return;
        }
        if self.tools.len() >= ASKED_MAX {
            self.has_more_tools = true;
        } else {
            self.tools.push(tool);
        }
    }

    fn count(&self, count: Count) -> Option<u64> {
        self.counts.get(count as usize).copied().flatten()
    }

    fn usage(&self) -> Option<Usage> {
        let zero = |count| self.count(count).unwrap_or_default();
        let besides = zero(Count::CachedBesides).saturating_add(zero(Count::CacheWrittenBesides));
        let input = self.count(Count::Input)?;
        // Embeddings have no output, and tell the total alone.
        let rest = || Some(self.count(Count::Total)?.saturating_sub(input));
        let (output, thoughts) = match self.count(Count::Output) {
            Some(output) => (output, zero(Count::Thoughts)),
            None => (rest()?, 0),
        };
        Some(Usage {
            input: input.saturating_add(besides).saturating_add(zero(Count::ToolPrompt)),
            output: output.saturating_add(thoughts),
            cached: zero(Count::Cached).saturating_add(zero(Count::CachedBesides)),
            cache_written: zero(Count::CacheWritten).saturating_add(zero(Count::CacheWrittenBesides)),
            reasoning: zero(Count::Reasoning).saturating_add(zero(Count::Thoughts)),
        })
    }

    fn into_answer(self) -> Answer {
        let usage = self.usage();
        let Facts {
            model, finish, error, tools, has_more_tools, output_estimated, is_start: is_partial, ..
        } = self;
        Answer { model, usage, output_estimated, tools, has_more_tools, finish, error, is_partial }
    }
}

#[cfg(test)]
mod tests;
