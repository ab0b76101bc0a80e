//! Which vocabulary a model's tokens are of, and what of a request they are counted in.

use super::{Call, Request, Surface};
use crate::payload::json::{Json, JsonError};

/// A vocabulary of OpenAI's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vocabulary {
    /// `o200k_base`: GPT-4o and all since.
    O200k,
    /// `cl100k_base`: GPT-4 and GPT-3.5, and embeddings.
    Cl100k,
}

/// What each message of a chat costs besides its text: its role, and the marks at its ends.
const MESSAGE: u64 = 4;
/// What makes the model answer.
const REPLY: u64 = 3;

// === impl Vocabulary ===

impl Vocabulary {
    /// The one of a family of models; `None` of others, and where it is not known.
    #[must_use]
    pub fn of(family: &str) -> Option<Vocabulary> {
        let family = family.rsplit('/').next().unwrap_or(family);
        let is = |name: &str| {
            family.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
        };
        const O200K: [&str; 9] =
            ["gpt-4o", "gpt-4.1", "gpt-4.5", "gpt-5", "o1", "o3", "o4", "chatgpt-4o", "gpt-oss"];
        const CL100K: [&str; 4] = ["gpt-4", "gpt-3.5", "text-embedding-3", "text-embedding-ada"];
        let is_newer = family.starts_with("gpt-5.") || O200K.into_iter().any(is);
        match () {
            () if is_newer => Some(Vocabulary::O200k),
            () if family.starts_with("gpt-3.5") || CL100K.into_iter().any(is) => Some(Vocabulary::Cl100k),
            () => None,
        }
    }
}

/// Tells `text` each text that a request in JSON shows to its model, whole; `None` if it is none that is read.
pub fn each_text(body: &[u8], text: &mut dyn FnMut(&str)) -> Option<Call> {
    let (mut json, mut request, mut whole) = (Json::new(false), Request::default(), String::new());
    let mut is_read = true;
    let mut sink = |piece: &super::Piece<'_>| {
        if piece.begins {
            whole.clear();
        }
        whole.push_str(piece.text);
        if piece.ends {
            text(&whole);
        }
    };
    let read = json.push::<JsonError>(body, &mut |event| {
        is_read &= request.event(event, &mut sink).is_ok();
        Ok(())
    });
    let ended = json.finish::<JsonError>(&mut |event| {
        is_read &= request.event(event, &mut sink).is_ok();
        Ok(())
    });
    request.finish(&mut sink);
    (read.is_ok() && ended.is_ok() && is_read).then(|| request.call().clone())
}

/// What a request costs besides its texts, of which nothing is attached, and no tool offered.
#[must_use]
pub fn around(call: &Call, surface: Surface) -> u64 {
    let messages = call.messages.iter().map(|n| u64::from(*n)).sum::<u64>();
    if surface == Surface::ChatCompletions { messages * MESSAGE + REPLY } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_have_their_vocabularies() {
        for (family, vocabulary) in [
            ("gpt-4o", Some(Vocabulary::O200k)),
            ("gpt-4o-mini", Some(Vocabulary::O200k)),
            ("gpt-5-mini", Some(Vocabulary::O200k)),
            ("gpt-5.1", Some(Vocabulary::O200k)),
            ("openai/gpt-5", Some(Vocabulary::O200k)),
            ("o3", Some(Vocabulary::O200k)),
            ("gpt-4", Some(Vocabulary::Cl100k)),
            ("gpt-4-turbo", Some(Vocabulary::Cl100k)),
            ("gpt-3.5-turbo", Some(Vocabulary::Cl100k)),
            ("text-embedding-3-small", Some(Vocabulary::Cl100k)),
            ("gpt-4x", None),
            ("o30", None),
            ("claude-sonnet-4", None),
            ("", None),
        ] {
            assert_eq!(Vocabulary::of(family), vocabulary, "{family}");
        }
    }

    #[test]
    fn texts_are_told_whole_and_once() {
        let long = "word ".repeat(3000);
        let body = format!(
            r#"{{"model":"gpt-4o","messages":[{{"content":"a\u00e4","role":"user"}},{{"role":"system","content":[{{"type":"text","text":"{long}"}}]}}]}}"#
        );
        let mut texts = Vec::new();
        let call = each_text(body.as_bytes(), &mut |text| texts.push(text.to_owned())).expect("a call");
        assert_eq!(texts, ["aä", &long]);
        assert_eq!((around(&call, Surface::ChatCompletions), around(&call, Surface::Embeddings)), (11, 0));
        assert_eq!(each_text(b"{", &mut |_| {}), None);
        assert_eq!(each_text(br#"{"model":1}"#, &mut |_| {}), None);
    }
}
