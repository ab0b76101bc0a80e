//! Where policies are written, and how a place in text is shown.

use std::collections::BTreeMap;

use cedar_policy_core::parser::Loc;
use serde::{Deserialize, Serialize};

use crate::set::Source;
use crate::set::syntax::Policy;

/// Longest source line that is shown whole, characters: longer ones are cut around the column.
const LINE_CHARS_MAX: usize = 160;

/// A policy as it is written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyPlace {
    /// Line it begins in, from 1.
    pub line: u32,
    /// Column it begins at, from 1, in characters.
    pub column: u32,
    /// Its text, annotations and all.
    pub text: String,
}

/// The policies of `text` by their ids. Text that is not valid has none: parsing it as policy says why.
#[must_use]
pub fn places(text: &str) -> BTreeMap<String, PolicyPlace> {
    let source = Source::new(text);
    if source.check_bounds().is_err() {
        return BTreeMap::new();
    }
    let Ok(set) = text.parse::<cedar_policy::PolicySet>() else { return BTreeMap::new() };
    set.policies()
        .filter_map(|cedar| {
            let ast: &Policy = cedar.as_ref();
            let loc: &Loc = ast.loc()?;
            let (line, column) = source.place(loc.start());
            let text = text.get(loc.start()..loc.end())?.to_owned();
            Some((cedar.annotation("id")?.to_owned(), PolicyPlace { line, column, text }))
        })
        .collect()
}

/// The line of `text` at `line` (from 1), and below it a caret at `column` (from 1, in characters), with the line's
/// number before it. `None` if there is no such line.
#[must_use]
pub fn caret(text: &str, line: u32, column: u32) -> Option<String> {
    let written = text.lines().nth(usize::try_from(line).ok()?.checked_sub(1)?)?;
    let at = usize::try_from(column).ok()?.saturating_sub(1);
    // A line of a thousand members is of no use whole.
    let from = at.saturating_sub(LINE_CHARS_MAX / 2);
    let shown: String = written.chars().skip(from).take(LINE_CHARS_MAX).map(visible).collect();
    let number = line.to_string();
    let before = " ".repeat(at - from);
    let margin = " ".repeat(number.len());
    Some(format!("{number} | {shown}\n{margin} | {before}^"))
}

/// A character that takes one column and controls nothing.
fn visible(c: char) -> char {
    if c == '\t' {
        ' '
    } else if c.is_control() {
        '\u{fffd}'
    } else {
        c
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_are_found_where_they_are_written() {
        let text = "// first\n@id(\"a\")\npermit (principal, action, resource);\n  @id(\"b\") forbid (principal, action, resource)\nwhen { true };\n";
        let places = places(text);
        assert_eq!((places["a"].line, places["a"].column), (2, 1));
        assert_eq!((places["b"].line, places["b"].column), (4, 3));
        assert!(places["b"].text.ends_with("when { true };"), "{}", places["b"].text);
        assert!(super::places("permit (").is_empty());
    }

    #[test]
    fn a_caret_stands_below_its_column() {
        assert_eq!(caret("x\n\té\u{1b}y z\n", 2, 4).as_deref(), Some("2 |  é\u{fffd}y z\n  |    ^"));
        assert_eq!(caret("x", 2, 1), None);
        assert_eq!(caret("x", 0, 1), None);
        let long = "a".repeat(1000);
        let shown = caret(&long, 1, 900).unwrap();
        assert!(shown.len() < 3 * LINE_CHARS_MAX && shown.ends_with('^'), "{shown}");
    }
}
