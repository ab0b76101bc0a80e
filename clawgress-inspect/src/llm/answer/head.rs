//! Tokens that the head of an answer tells: Amazon Bedrock's, of models whose own answers may count none. Must never be taken for more
//! than an answer's own count.

use super::{Answer, Usage};

/// What is counted in a head.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    input: Option<u64>,
    output: Option<u64>,
}

impl Counted {
    /// The fields that tell it: of the prompt, and of the answer.
    pub const FIELDS: [&str; 2] = ["x-amzn-bedrock-input-token-count", "x-amzn-bedrock-output-token-count"];

    /// What these two say; nothing that is no plain number.
    #[must_use]
    pub fn of([input, output]: [Option<&str>; 2]) -> Counted {
        let number = |text: Option<&str>| {
            text.filter(|text| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()))?.parse().ok()
        };
        Counted { input: number(input), output: number(output) }
    }

    /// Has an answer that counted nothing count this: vectors that came whole have no output, and no other answer is without.
    pub fn add_to(self, answer: &mut Answer) {
        let is_known = answer.has_vectors && answer.error.is_none() && !answer.is_partial;
        let output = self.output.or((is_known && answer.output_estimated == 0).then_some(0));
        if let (None, Some((input, output))) = (&answer.usage, self.input.zip(output)) {
            answer.usage = Some(Usage { input, output, ..Usage::default() });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_count_what_answers_do_not() {
        let counted = |input, output, answer: Answer| {
            let mut answer = answer;
            Counted::of([input, output]).add_to(&mut answer);
            answer.usage.map(|usage| (usage.input, usage.output))
        };
        let said = Answer { output_estimated: 9, ..Answer::default() };
        assert_eq!(counted(Some("12"), Some("7"), said.clone()), Some((12, 7)));
        assert_eq!(counted(Some("12"), None, said.clone()), None, "its output is not known");
        assert_eq!(counted(Some("12"), None, Answer::default()), None, "nobody knows what it was");
        let vectors = Answer { has_vectors: true, ..Answer::default() };
        assert_eq!(counted(Some("12"), None, vectors.clone()), Some((12, 0)), "vectors");
        let failed = Answer { error: Some("x".to_owned()), ..vectors.clone() };
        assert_eq!(counted(Some("12"), None, failed), None, "it failed");
        let partial = Answer { is_partial: true, ..vectors };
        assert_eq!(counted(Some("12"), None, partial), None, "there is more");
        for odd in ["", "-1", "1.0", "99999999999999999999", "x"] {
            assert_eq!(counted(Some(odd), Some("7"), said.clone()), None, "{odd}");
        }
        let own = Answer { usage: Some(Usage { input: 1, output: 2, ..Usage::default() }), ..said };
        assert_eq!(counted(Some("12"), Some("7"), own), Some((1, 2)), "the answer's own stands");
    }
}
