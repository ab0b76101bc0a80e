//! What comes back of a model, as it streams by: tokens used, by the count of whoever served it; tools that the model asks
//! for; why it stopped.
//!
//! Works in constant memory and must never alter, hold back or keep the bytes it is shown. What it can't read with certainty
//! it doesn't report: usage is then unknown, not zero. Counts of a stream are cumulative, so that later ones replace earlier
//! ones.

mod calls;
mod document;
mod editor;
pub(crate) mod frames;
mod head;
pub(super) mod places;
mod plain;

use calls::Calls;
pub use calls::{Asked, CallsError, Following};
use document::Document;
pub(super) use document::is_over;
pub use editor::Editor;
use frames::Frames;
pub use head::Counted;

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
            "application/x-ndjson"
            | "application/ndjson"
            | "application/jsonl"
            | "application/x-jsonl"
            | "application/jsonlines"
            | "application/x-jsonlines"
            // Of Cohere's first API.
            | "application/stream+json" => Some(Format::Lines),
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
    /// Of the prompt, those of sound.
    pub input_audio: u64,
    /// Of what a cache had, those of sound.
    pub cached_audio: u64,
    /// Of the answer, those of sound.
    pub output_audio: u64,
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
    /// Whether its usage is what was counted before it was over.
    pub is_partial: bool,
    /// Whether it has vectors, which cost no output.
    pub has_vectors: bool,
    /// Whether it only says that there will be one, to be asked for later: what that takes is not known.
    pub is_queued: bool,
}

/// What came back so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress<'a> {
    /// Tokens of the prompt, as they were counted; 0 until then.
    pub input: u64,
    /// Tokens of the answer: as they were counted, or estimated where that is more.
    pub output: u64,
    /// Names of the tools that the model asks for.
    pub tools: &'a [String],
    /// Whether there are others, whose names are not known.
    pub has_more_tools: bool,
}

/// Reads one response.
#[derive(Debug)]
pub struct Reader {
    frames: Frames,
    document: Document,
    answer: Facts,
    calls: Option<Calls>,
    /// How much of a byte order mark was seen, which may begin the body (WHATWG Encoding section 6); `None` behind its begin.
    mark: Option<usize>,
}

/// A byte order mark.
const MARK: &[u8] = b"\xef\xbb\xbf";

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
    /// The most that a document came to which says again what a stream has said in parts.
    repeated_estimated: u64,
    /// Whether it is the beginning of a stream; of all documents: whether only that counted the output.
    is_start: bool,
    /// Whether another model than the one that answers was asked besides: its tokens have other prices.
    has_others: bool,
    /// Whether its texts were said before, in parts.
    is_repeat: bool,
    /// Whether the answer is over behind it, whatever follows.
    is_over: bool,
    /// Whether it has vectors, which cost no output.
    has_vectors: bool,
    /// Whether what it says of its state is that it waits, or is being made.
    is_waiting: Option<bool>,
}

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Count {
    Input,
    /// The same in OpenAI's word, which never leaves out what caches had.
    Prompt,
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
    /// Within the input, what of that is cached, and within the output.
    InputAudio,
    CachedAudio,
    OutputAudio,
    /// Besides the input, of Perplexity: what it read for the answer. Where it says so, reasoning is besides the output.
    Citations,
    /// Besides all those, of Anthropic: of requests of the provider's own for the answer.
    OwnInput,
    OwnCached,
    OwnCacheWritten,
    OwnOutput,
}

impl Count {
    const ALL: usize = 19;
    /// Of the provider's own requests.
    const OWN: [Count; 4] = [Count::OwnInput, Count::OwnCached, Count::OwnCacheWritten, Count::OwnOutput];
}

// === impl Reader ===

impl Reader {
    /// For a response of this format.
    #[must_use]
    pub fn new(format: Format) -> Self {
        let (document, answer) = (Document::default(), Facts::default());
        Reader { frames: Frames::new(format), document, answer, calls: None, mark: Some(0) }
    }

    /// Has it keep the texts of the answer until they are [taken](Self::take_texts).
    #[must_use]
    pub fn keeping_texts(mut self) -> Self {
        self.document.keep_texts();
        self
    }

    /// Has it put together the calls that come in parts, of so many bytes. Of what no model is
    /// known to answer (`is_model`), documents that can't be read have none.
    #[must_use]
    pub fn following_calls(mut self, bytes_max: usize, following: Following, is_model: bool) -> Self {
        self.document.keep_bytes(bytes_max);
        self.calls = Some(Calls::new(bytes_max, following, is_model));
        self
    }

    /// Looks at the next bytes of the body, in any segmentation; says how many of them are of documents that have ended, and
    /// of which none waits for the rest of a call, where those are held.
    pub fn push(&mut self, bytes: &[u8]) -> usize {
        let mut at = self.unmark(bytes);
        let Reader { frames, document, answer, calls, .. } = self;
        let mut ended = 0;
        while let Some(rest) = bytes.get(at..).filter(|rest| !rest.is_empty()) {
            let (n, is_end) = frames.step(rest, document, &mut |document| answer.follow(document, calls));
            at += n;
            if is_end && !calls.as_ref().is_some_and(Calls::waits) {
                ended = at;
            }
        }
        ended
    }

    /// Skips a mark at the body's begin: how many bytes of these are of it.
    fn unmark(&mut self, bytes: &[u8]) -> usize {
        let Some(seen) = self.mark else { return 0 };
        let rest = MARK.get(seen..).unwrap_or_default();
        let now = rest.iter().zip(bytes).take_while(|(mark, byte)| mark == byte).count();
        let is_rest = now == bytes.len() && seen + now < MARK.len();
        self.mark = is_rest.then_some(seen + now);
        if !is_rest && seen + now < MARK.len() {
            // It was none.
            let Reader { frames, document, answer, calls, .. } = self;
            let before = MARK.get(..seen).unwrap_or_default();
            frames.push(before, document, &mut |document| answer.follow(document, calls));
            return 0;
        }
        now
    }

    /// Ends the body, so that [`progress`](Self::progress) tells of what has no other end.
    pub fn close(&mut self) {
        let Reader { frames, document, answer, calls, .. } = self;
        frames.finish(document, &mut |document| answer.follow(document, calls));
        calls.iter_mut().for_each(Calls::end);
    }

    /// Keeps neither texts nor calls any longer.
    pub fn forgo(&mut self) {
        self.calls = None;
        self.document.keep_nothing();
    }

    /// Whether what came last waits for the rest of a call, where those are held.
    #[must_use]
    pub fn waits(&self) -> bool {
        self.calls.as_ref().is_some_and(Calls::waits)
    }

    /// Calls that became whole since this was asked last, where they are wanted.
    ///
    /// # Errors
    /// Why they can't be known.
    pub fn take_calls(&mut self) -> Result<Vec<Asked>, CallsError> {
        self.calls.as_mut().map_or_else(|| Ok(Vec::new()), Calls::take)
    }

    /// Bytes that it keeps of calls.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        self.document.memory_bytes() + self.calls.as_ref().map_or(0, Calls::memory_bytes)
    }

    /// Whether it is out of step: where a document ends is not known any more.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.frames.is_lost()
    }

    /// What the model said since this was asked last, and what it asked tools for: no more than was pushed. Of several answers
    /// beside one another, the first.
    pub fn take_texts(&mut self) -> [Vec<u8>; 2] {
        self.document.take_texts()
    }

    /// The same of the others, each by its number: those from the eighth on are one.
    pub fn take_more_texts(&mut self) -> Vec<(usize, [Vec<u8>; 2])> {
        self.document.take_more_texts()
    }

    /// What there was so far.
    #[must_use]
    pub fn progress(&self) -> Progress<'_> {
        let Facts { tools, has_more_tools, .. } = &self.answer;
        let usage = self.answer.usage();
        let (input, output) = usage.map_or((0, 0), |usage| (usage.input, usage.output));
        let more = if self.document.is_repeat() { 0 } else { self.document.tokens() };
        let output = output.max(self.answer.estimated() + more);
        Progress { input, output, tools, has_more_tools: *has_more_tools }
    }

    /// What there was of an answer that came whole. A document that did not says nothing.
    #[must_use]
    pub fn finish(self) -> Answer {
        self.end(true)
    }

    /// What there was of an answer that was cut off, by whomever.
    #[must_use]
    pub fn cut(self) -> Answer {
        self.end(false)
    }

    fn end(mut self, is_whole: bool) -> Answer {
        self.close();
        // Who streams says when it is over; most say why it stopped before, and may count on.
        let is_told = self.answer.is_over || is_whole && self.answer.finish.is_some();
        let is_over = is_told || !self.frames.is_stream();
        if !self.document.is_repeat() {
            self.answer.output_estimated += self.document.tokens();
        }
        // A stream says so while it comes.
        let is_queued = self.answer.is_waiting == Some(true) && !self.frames.is_stream();
        let mut answer = self.answer.into_answer();
        answer.is_queued = is_queued && answer.usage.is_none();
        answer.is_partial |= answer.usage.is_some() && !is_over;
        answer
    }
}

// === impl Facts ===

impl Facts {
    /// The same as [`take`](Self::take), and puts calls together.
    fn follow(&mut self, document: &mut Document, calls: &mut Option<Calls>) {
        if let Some(calls) = calls {
            if !document.is_plain() {
                calls.document(document.bytes());
            }
            if document.is_whole() {
                document.facts().tools.iter().for_each(|name| calls.named(name));
            } else if !document.is_blank() {
                calls.breaks();
            }
        }
        self.take(document);
        let Some((names, has_more)) = calls.as_mut().map(Calls::take_names) else { return };
        self.has_more_tools |= has_more;
        names.iter().for_each(|name| self.ask(name.clone()));
    }

    /// Takes over what a document said, if it was a whole one.
    fn take(&mut self, document: &mut Document) {
        let is_whole = document.is_whole();
        let found = document.facts();
        // Of broken ones too: it was sent.
        if found.is_repeat {
            self.repeated_estimated = self.repeated_estimated.max(found.output_estimated);
        } else {
            self.output_estimated += found.output_estimated;
        }
        self.is_over |= found.is_over;
        if !is_whole {
            return;
        }
        if found.counts.get(Count::Output as usize).is_some_and(Option::is_some) {
            self.is_start = found.is_start;
            self.has_others = found.has_others;
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
        self.has_vectors |= found.has_vectors;
        self.is_waiting = found.is_waiting.or(self.is_waiting);
        self.has_more_tools |= found.has_more_tools;
        for tool in found.tools.drain(..) {
            self.ask(tool);
        }
    }

    fn ask(&mut self, tool: String) {
        #[cfg(test)]
        crate::steps::add(self.tools.len());
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

    /// Tokens of the texts, estimated: in parts, or at once, whichever is more.
    fn estimated(&self) -> u64 {
        self.output_estimated.max(self.repeated_estimated)
    }

    fn usage(&self) -> Option<Usage> {
        let zero = |count| self.count(count).unwrap_or_default();
        let prompt = self.count(Count::Prompt);
        let mut cached = (zero(Count::Cached), zero(Count::CachedBesides));
        let mut written = (zero(Count::CacheWritten), zero(Count::CacheWrittenBesides));
        if let Some(prompt) = prompt {
            // Gateways that speak for Anthropic in OpenAI's words say within it what caches had, by either name; and some
            // besides, where it is more than there is.
            let (had, wrote) = (cached.0.max(cached.1), written.0.max(written.1));
            let is_within = had.saturating_add(wrote) <= prompt;
            (cached, written) = if is_within { ((had, 0), (wrote, 0)) } else { ((0, had), (0, wrote)) };
        }
        // Embeddings have no output, and tell the total besides, or alone, or the input alone.
        let of_vectors = || self.count(Count::Total).filter(|_| self.has_vectors);
        let input = prompt.or(self.count(Count::Input)).or_else(of_vectors)?;
        let besides = cached.1.saturating_add(written.1).saturating_add(zero(Count::ToolPrompt));
        let input = input.saturating_add(besides);
        let rest = self.count(Count::Total).map(|total| total.saturating_sub(input));
        let reasoning = zero(Count::Reasoning).saturating_add(zero(Count::Thoughts));
        let output = match self.count(Count::Output) {
            Some(output) => {
                // More of it than of what it should be within: it is counted besides, as xAI does.
                let has_citations = self.count(Count::Citations).is_some();
                let is_within = zero(Count::Reasoning) <= output && !has_citations;
                let within = if is_within { 0 } else { zero(Count::Reasoning) };
                let output = output.saturating_add(within).saturating_add(zero(Count::Thoughts));
                output.max(rest.unwrap_or_default())
            }
            None => rest.or(self.has_vectors.then_some(0))?,
        };
        let sum = |counts: &[u64]| counts.iter().copied().fold(0, u64::saturating_add);
        let [own_input, own_cached, own_written, own_output] = Count::OWN.map(zero);
        Some(Usage {
            input: sum(&[input, zero(Count::Citations), own_input, own_cached, own_written]),
            output: sum(&[output, own_output]),
            cached: sum(&[cached.0, cached.1, own_cached]),
            cache_written: sum(&[written.0, written.1, own_written]),
            reasoning,
            input_audio: zero(Count::InputAudio),
            cached_audio: zero(Count::CachedAudio),
            output_audio: zero(Count::OutputAudio),
        })
    }

    fn into_answer(self) -> Answer {
        let (usage, output_estimated) = (self.usage(), self.estimated());
        let Facts { model, finish, error, tools, has_more_tools, is_start, has_others, has_vectors, .. } =
            self;
        Answer {
            model,
            usage,
            output_estimated,
            tools,
            has_more_tools,
            finish,
            error,
            is_partial: is_start || has_others,
            has_vectors,
            is_queued: false,
        }
    }
}

#[cfg(test)]
mod tests;
