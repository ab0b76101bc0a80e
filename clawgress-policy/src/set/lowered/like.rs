//! Patterns of `like` as decisions run them.
//!
//! Cedar's own match copies the text to characters first, each time; most of a request's time went there where many policies
//! name paths. Here a pattern is the texts between its wildcards, made once.

use cedar_policy_core::ast::{Pattern, PatternElem};

/// Texts with any text between each two of them.
#[derive(Clone, Debug)]
pub(crate) struct Like {
    first: Box<str>,
    /// Between the first and the last; none of them empty.
    middle: Box<[Box<str>]>,
    /// Nothing if there is no wildcard.
    last: Option<Box<str>>,
}

impl Like {
    /// What `pattern` says.
    pub(crate) fn of(pattern: &Pattern) -> Like {
        let mut texts = vec![String::new()];
        for elem in pattern.iter() {
            match elem {
                PatternElem::Wildcard => texts.push(String::new()),
                PatternElem::Char(letter) => {
                    texts.iter_mut().last().into_iter().for_each(|t| t.push(*letter))
                }
            }
        }
        let mut texts = texts.into_iter().map(String::into_boxed_str);
        let first = texts.next().unwrap_or_default();
        let last = texts.next_back();
        Like { first, middle: texts.filter(|text| !text.is_empty()).collect(), last }
    }

    /// What every text that matches begins and ends with.
    pub(crate) fn ends(&self) -> (&str, &str) {
        (&self.first, self.last.as_deref().unwrap_or_default())
    }

    /// Whether all of `text` is so. In time linear in it for each text of the pattern: what stands in the middle is taken
    /// where it is found first, which leaves most for what follows.
    pub(crate) fn matches(&self, text: &str) -> bool {
        let Some(last) = &self.last else { return text == &*self.first };
        let Some(rest) = text.strip_prefix(&*self.first) else { return false };
        let Some(mut rest) = rest.strip_suffix(&**last) else { return false };
        self.middle.iter().all(|part| match rest.split_once(&**part) {
            Some((_, after)) => {
                rest = after;
                true
            }
            None => false,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pattern(text: &str) -> Pattern {
        // `?` stands for the character that is not a wildcard.
        let elem = |letter| match letter {
            '*' => PatternElem::Wildcard,
            '?' => PatternElem::Char('*'),
            letter => PatternElem::Char(letter),
        };
        text.chars().map(elem).collect()
    }

    #[test]
    fn texts_are_anchored_at_both_ends() {
        for (like, text, expected) in [
            ("", "", true),
            ("", "a", false),
            ("*", "", true),
            ("**", "aé", true),
            ("a*a", "a", false),
            ("a*a", "aa", true),
            ("*ab*b", "abb", true),
            ("*ab*b", "ab", false),
            ("/public/*", "/public/", true),
            ("/public/*", "/Public/", false),
            ("*.test", "a.test.", false),
            ("?", "*", true),
            ("?", "a", false),
            ("é*", "e\u{301}", false),
        ] {
            assert_eq!(Like::of(&pattern(like)).matches(text), expected, "{like:?} of {text:?}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 20_000, ..ProptestConfig::default() })]

        /// Few letters, one of two bytes, so that much matches.
        #[test]
        fn says_what_the_authorizer_says(like in "[abé*?]{0,10}", text in "[abé*]{0,14}") {
            let pattern = pattern(&like);
            prop_assert_eq!(Like::of(&pattern).matches(&text), pattern.wildcard_match(&text));
        }
    }
}
