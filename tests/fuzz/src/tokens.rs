//! Targets of counts: tokens of a request as its vocabulary cuts them, those that heads of answers tell, and the names that models go by.

use bpe_openai::Tokenizer;
use clawgress_inspect::llm::answer::{Answer, Counted, Format, Reader};
use clawgress_inspect::llm::vocabulary::{Vocabulary, around, each_text};
use clawgress_inspect::llm::{ModelName, Surface};

use super::pieces;

#[path = "../../../clawgress-l7/src/counter/input.rs"]
mod input;

/// The first byte says which vocabulary, and of which surface: a request is counted as the texts are that it shows, each by the tokens
/// that say it again, and comes to no more than its bytes and what stands around messages.
pub fn token_counts(data: &[u8]) {
    let Some((which, body)) = data.split_first() else { return };
    let vocabularies: [fn() -> &'static Tokenizer; 2] = [bpe_openai::o200k_base, bpe_openai::cl100k_base];
    let tokenizer = vocabularies[usize::from(which % 2)]();
    let surface =
        [Surface::ChatCompletions, Surface::Responses, Surface::Embeddings][usize::from(which / 2 % 3)];
    let mut texts = Vec::new();
    let call = each_text(body, &mut |text| texts.push(text.to_owned()));
    let counted = input::tokens(tokenizer, surface, body);
    assert!(counted.is_none() || call.is_some(), "of what is no call nothing is counted");
    let mut tokens = 0;
    for text in &texts {
        let cut = tokenizer.encode(text);
        assert_eq!(tokenizer.count(text), cut.len(), "{text:?}");
        assert!(cut.len() <= text.len());
        assert_eq!(tokenizer.decode(&cut).as_deref(), Some(text.as_str()));
        tokens += cut.len() as u64;
    }
    let Some((call, counted)) = call.zip(counted) else { return };
    assert_eq!(counted, tokens + around(&call, surface));
    assert!(tokens <= body.len() as u64, "an escape is longer than what it stands for");
    assert!(!call.is_partial && call.tools.is_empty() && call.attachments.count == 0);
}

/// Two lines of a head, and an answer, whose first byte says in which form it is: a head counts what the answer does not, alone and as
/// it says it, and never in place of the answer's own.
pub fn answer_head(data: &[u8]) {
    let (whole, _) = pieces(data);
    let mut parts = whole.splitn(3, |b| *b == b'\n');
    let mut field =
        || parts.next().map(|value| std::str::from_utf8(value).ok().filter(|text| !text.is_empty()));
    let (Some(input), Some(output)) = (field(), field()) else { return };
    let body = parts.next().unwrap_or_default();
    let format = [Format::Json, Format::EventStream, Format::Lines, Format::Amazon][usize::from(data[0] % 4)];
    let read = |is_whole: bool| -> Answer {
        let mut reader = Reader::new(format);
        reader.push(body);
        if is_whole { reader.finish() } else { reader.cut() }
    };
    let counted = Counted::of([input, output]);
    assert_eq!(Counted::of([input, output]), counted);
    let number = |text: Option<&str>| {
        let is_plain = |text: &&str| text.bytes().all(|b| b.is_ascii_digit());
        text.filter(is_plain).and_then(|text| text.parse::<u64>().ok())
    };
    for before in [read(true), read(false)] {
        let mut answer = before.clone();
        counted.add_to(&mut answer);
        let mut again = answer.clone();
        counted.add_to(&mut again);
        assert_eq!(again, answer, "it counts once");
        assert_eq!(Answer { usage: before.usage.clone(), ..answer.clone() }, before, "nothing else changes");
        match (before.usage, answer.usage) {
            (Some(own), now) => assert_eq!(Some(own), now),
            (None, None) => {
                assert!(input.zip(output).is_none() || number(input).zip(number(output)).is_none())
            }
            (None, Some(now)) => {
                assert_eq!(Some(now.input), number(input));
                let bare = before.has_vectors && before.error.is_none() && !before.is_partial;
                assert!(
                    number(output) == Some(now.output) || bare && number(output).is_none() && now.output == 0
                );
                assert_eq!((now.cached, now.cache_written, now.reasoning), (0, 0, 0));
            }
        }
    }
}

/// A name, whatever it is: what a model is called is told alike in any letters, and of its family more than nothing; the family is in
/// one vocabulary or none, whoever serves it.
pub fn model_name(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let name = ModelName::of(&text);
    assert_eq!(ModelName::of(&text.to_ascii_uppercase()), name);
    let told = text.trim().to_ascii_lowercase();
    assert!(told.contains(&name.family), "{name:?}");
    assert!(!name.family.contains(['@', ':', '/']) || name.is_tuned, "{name:?}");
    assert!(name.version.is_none_or(|version| !version.is_empty() || told.contains(['@', ':'])));
    let known = Vocabulary::of(&name.family);
    assert_eq!(known, Vocabulary::of(&format!("openai/{}", name.family)));
}
