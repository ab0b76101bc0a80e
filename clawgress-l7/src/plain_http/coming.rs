//! What comes back of a model: its coding taken off, read as it is or as what it begins like, and what the client did not ask
//! for taken out. Must never change any other byte.

use std::sync::Arc;

use bytes::Bytes;
use clawgress_inspect::llm::answer::{
    Answer, Asked, CallsError, Counted, Editor, Following, Format, Progress, Reader,
};
use clawgress_inspect::payload::Coding;
use clawgress_inspect::payload::coding::{Caps, Decoder};
use http::HeaderMap;

use crate::memory::{Charge, Memory};

/// The coding of an answer, by all that its head says; `None` if there is none, and what no coding is called where there are
/// more.
#[must_use]
pub fn coding_of(headers: &HeaderMap) -> Option<&str> {
    let all = headers.get_all("content-encoding").iter();
    let all = all.flat_map(|value| value.to_str().unwrap_or(UNKNOWN).split(','));
    let mut codings = all.map(str::trim).filter(|coding| !coding.eq_ignore_ascii_case("identity"));
    let first = codings.next()?;
    Some(if codings.next().is_some() { UNKNOWN } else { first })
}

/// No coding's name.
const UNKNOWN: &str = "?";

/// What reads an answer, and takes out of it what the client did not ask for.
#[derive(Debug)]
pub struct Coming {
    reader: Reader,
    /// What its coding is taken off by, and the memory for that.
    decoder: Option<(Box<Decoder>, Charge)>,
    editor: Option<Box<Editor>>,
    /// Whether its end came.
    is_whole: bool,
    /// Whether it is read as what it begins like, until it has begun: who has asked a model may look at nothing else.
    sniffs: bool,
    /// How calls are put together, and whether texts are kept.
    follows: Option<Follows>,
    keeps: bool,
    /// What its head counts.
    head: Counted,
}

/// How the calls that a model asks for are put together.
#[derive(Clone, Copy, Debug)]
pub struct Follows {
    /// What is wanted of them.
    pub following: Following,
    /// Up to how many bytes.
    pub bytes_max: usize,
    /// Whether it is known that a model answers.
    pub is_model: bool,
}

impl Follows {
    fn begin(self, reader: Reader) -> Reader {
        reader.following_calls(self.bytes_max, self.following, self.is_model)
    }
}

impl Coming {
    /// Of an answer of this type and coding; `None` if it can't be read. Only of calls that are known codings are taken off:
    /// that costs.
    #[must_use]
    pub fn of(
        (media_type, coding): (&str, Option<&str>),
        (memory, agent): (&Arc<Memory>, u32),
        is_call: bool,
        is_edited: bool,
    ) -> Option<Coming> {
        Coming::as_format(Format::of(media_type)?, coding, (memory, agent), is_call, is_edited)
    }

    /// The same of a model's answer, which is told by what it begins like where it is a document or a stream of events.
    #[must_use]
    pub fn of_model(
        (media_type, coding): (&str, Option<&str>),
        (memory, agent): (&Arc<Memory>, u32),
        is_edited: bool,
    ) -> Option<Coming> {
        let format = Format::of(media_type);
        let sniffs = matches!(format, None | Some(Format::EventStream));
        let format = format.unwrap_or(Format::EventStream);
        let coming = Coming::as_format(format, coding, (memory, agent), true, is_edited)?;
        Some(Coming { sniffs, ..coming })
    }

    fn as_format(
        format: Format,
        coding: Option<&str>,
        (memory, agent): (&Arc<Memory>, u32),
        is_call: bool,
        is_edited: bool,
    ) -> Option<Coming> {
        let coding = coding.filter(|coding| !coding.eq_ignore_ascii_case("identity"));
        let decoder = match coding.map(|coding| Coding::named(coding.as_bytes())) {
            None => None,
            Some(Some(coding)) if is_call => {
                let content = &memory.content;
                let (bytes_max, ratio_max) = (content.decoded_bytes_max.get(), content.ratio_max.get());
                let caps = Caps { bytes_max, ratio_max: ratio_max.into() };
                Some((Box::new(Decoder::new(coding, caps)), memory.charge(agent)))
            }
            Some(_) => return None,
        };
        let is_edited = is_edited && format == Format::EventStream && decoder.is_none();
        let editor = is_edited.then(Box::default);
        let reader = Reader::new(format);
        let (is_whole, sniffs, follows, keeps) = (false, false, None, false);
        let head = Counted::default();
        Some(Coming { reader, decoder, editor, is_whole, sniffs, follows, keeps, head })
    }

    /// Has it count what its head does, where it counts nothing itself.
    #[must_use]
    pub fn counted_by(self, head: Counted) -> Coming {
        Coming { head, ..self }
    }

    /// Has it keep the texts of the answer until they are taken.
    #[must_use]
    pub fn keeping_texts(mut self) -> Coming {
        self.keeps = true;
        self.reader = self.reader.keeping_texts();
        self
    }

    /// Has it put together the calls that a model asks for.
    #[must_use]
    pub fn following_calls(mut self, follows: Follows) -> Coming {
        self.follows = Some(follows);
        self.reader = follows.begin(self.reader);
        self
    }

    /// Keeps neither texts nor calls any longer.
    pub fn forgo(&mut self) {
        (self.follows, self.keeps) = (None, false);
        self.reader.forgo();
    }

    /// Calls that became whole since this was asked last.
    ///
    /// # Errors
    /// Why they can't be known.
    pub fn take_calls(&mut self) -> Result<Vec<Asked>, CallsError> {
        self.reader.take_calls()
    }

    /// Bytes that it keeps of calls.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        self.reader.memory_bytes()
    }

    /// Reads what comes next. How much of that is of events that have ended, where it is read as it is; `None` if it can be read
    /// no longer.
    pub fn read(&mut self, bytes: &[u8], end: bool) -> Option<usize> {
        self.is_whole |= end;
        let Coming { reader, decoder, sniffs, follows, keeps, .. } = self;
        let Some((decoder, charge)) = decoder else {
            sniff(reader, sniffs, (*follows, *keeps), bytes);
            let ended = reader.push(bytes);
            if end {
                reader.close();
            }
            return (!reader.is_lost()).then_some(ended);
        };
        let mut sink = |bytes: &[u8]| {
            sniff(reader, sniffs, (*follows, *keeps), bytes);
            reader.push(bytes);
            Ok(())
        };
        let decoded = decoder.push(bytes, &mut sink);
        let ended = if end { decoded.and_then(|()| decoder.finish(&mut sink)) } else { decoded };
        if end {
            reader.close();
        }
        (ended.is_ok() && charge.set(decoder.memory_bytes()).is_ok()).then_some(0)
    }

    /// Takes out of what goes on what the client did not ask for.
    pub fn edit(&mut self, body: &mut Option<Bytes>, end: bool) {
        let Some(editor) = &mut self.editor else { return };
        let bytes = body.take().unwrap_or_default();
        let mut out = Vec::with_capacity(bytes.len());
        editor.push(&bytes, &mut out);
        if end {
            editor.finish(&mut out);
        }
        // Pingora takes none at all for the end, and sends nothing of one that is empty.
        *body = (!end || !out.is_empty()).then(|| Bytes::from(out));
    }

    /// The same of other answers beside that, each by its number.
    pub fn take_more_texts(&mut self) -> Vec<(usize, [Vec<u8>; 2])> {
        self.reader.take_more_texts()
    }

    /// What there was so far.
    #[must_use]
    pub fn progress(&self) -> Progress<'_> {
        self.reader.progress()
    }

    /// What the model said since this was asked last, and what it asked tools for.
    pub fn take_texts(&mut self) -> [Vec<u8>; 2] {
        self.reader.take_texts()
    }

    /// What there was.
    #[must_use]
    pub fn finish(self) -> Answer {
        let mut answer = if self.is_whole { self.reader.finish() } else { self.reader.cut() };
        self.head.add_to(&mut answer);
        answer
    }

    /// Notes that it has ended, by what follows its body.
    pub fn ends(&mut self) {
        self.is_whole = true;
    }
}

/// Has a document read as one, whatever it is said to be.
fn sniff(reader: &mut Reader, sniffs: &mut bool, (follows, keeps): (Option<Follows>, bool), bytes: &[u8]) {
    if !*sniffs {
        return;
    }
    // A byte order mark may stand before it.
    let is_blank = |byte: &u8| byte.is_ascii_whitespace() || matches!(byte, 0xef | 0xbb | 0xbf);
    let Some(first) = bytes.iter().find(|byte| !is_blank(byte)) else { return };
    *sniffs = false;
    if matches!(first, b'{' | b'[') {
        let json = Reader::new(Format::Json);
        let json = if keeps { json.keeping_texts() } else { json };
        *reader = match follows {
            Some(follows) => follows.begin(json),
            None => json,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_coding_is_known_by_all_that_the_head_says() {
        for (values, coding) in [
            (&[][..], None),
            (&["identity"], None),
            (&["gzip"], Some("gzip")),
            (&["identity", "gzip"], Some("gzip")),
            (&["Identity, br"], Some("br")),
            (&["gzip", "br"], Some(UNKNOWN)),
            (&["gzip, gzip"], Some(UNKNOWN)),
        ] {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append("content-encoding", value.parse().expect("a value"));
            }
            assert_eq!(coding_of(&headers), coding, "{values:?}");
        }
        assert!(Coding::named(UNKNOWN.as_bytes()).is_none());
    }
}
