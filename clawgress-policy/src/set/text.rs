//! Policy text as bytes: places in it, and the bounds it must keep before it reaches the parser. The
//! parser and everything after it recurse over expressions, so that text which nests without bound
//! would exhaust the stack; here it is refused in one flat pass.

use crate::set::{POLICIES_MAX, PolicyProblem};

/// Longest policy text, bytes: 512 for each policy that there may be, and well below the gRPC message bound.
pub const TEXT_BYTES_MAX: usize = 4 << 20;
/// Deepest nesting of brackets in a policy. Each level costs the recursive parser about 60 KiB of stack
/// in an unoptimized build, and a worker thread has 2 MiB.
pub const NESTING_MAX: usize = 16;
/// Most operators and brackets in one policy: `a && b && c` is a tree as deep as it is long. Longer conditions are
/// lists, which sets express without depth.
pub const OPERATORS_MAX: usize = 256;

/// Policy text with its lines.
#[derive(Debug)]
pub(crate) struct Source<'a> {
    text: &'a str,
    /// Offset of each line's first byte, ascending from 0.
    line_starts: Vec<usize>,
}

impl<'a> Source<'a> {
    pub(crate) fn new(text: &'a str) -> Self {
        let breaks = text.bytes().enumerate().filter(|(_, b)| *b == b'\n').map(|(at, _)| at + 1);
        Source { text, line_starts: std::iter::once(0).chain(breaks).collect() }
    }

    /// Line and column, from 1, of a byte offset.
    pub(crate) fn place(&self, offset: usize) -> (u32, u32) {
        let line = self.line_starts.partition_point(|start| *start <= offset);
        let start = line.checked_sub(1).and_then(|l| self.line_starts.get(l)).copied().unwrap_or(0);
        let column = self.text.get(start..offset).unwrap_or_default().chars().count() + 1;
        (u32::try_from(line).unwrap_or(u32::MAX), u32::try_from(column).unwrap_or(u32::MAX))
    }

    /// A problem at a byte offset.
    pub(crate) fn problem(
        &self,
        policy: Option<&str>,
        offset: Option<usize>,
        message: impl Into<String>,
    ) -> PolicyProblem {
        let place = offset.map(|o| self.place(o));
        PolicyProblem {
            policy: policy.map(str::to_owned),
            line: place.map(|p| p.0),
            column: place.map(|p| p.1),
            message: message.into(),
        }
    }

    /// Checks the bounds.
    ///
    /// # Errors
    /// The first bound that is broken in each policy.
    pub(crate) fn check_bounds(&self) -> Result<(), Vec<PolicyProblem>> {
        if self.text.len() > TEXT_BYTES_MAX {
            let message = format!(
                "the policy text has {} bytes and may have {TEXT_BYTES_MAX}: move lists into named sets",
                self.text.len()
            );
            return Err(vec![self.problem(None, None, message)]);
        }
        let mut problems = Vec::new();
        let mut policies = 0_usize;
        let mut depth = 0_usize;
        let mut operators = 0_usize;
        let mut reported = false;
        for (offset, token) in Tokens::new(self.text) {
            match token {
                // `a["b"]["c"]` is as deep as it is long too.
                b'(' | b'[' | b'{' => (depth, operators) = (depth + 1, operators + 1),
                b')' | b']' | b'}' => depth = depth.saturating_sub(1),
                // Ends each policy, and is nowhere else.
                b';' => (policies, depth, operators, reported) = (policies + 1, 0, 0, false),
                _ => operators += 1,
            }
            if reported || (depth <= NESTING_MAX && operators <= OPERATORS_MAX) {
                continue;
            }
            reported = true;
            let message = if depth > NESTING_MAX {
                format!("brackets nest deeper than {NESTING_MAX}: split the policy")
            } else {
                format!(
                    "more than {OPERATORS_MAX} operators and brackets in one policy: use a set literal such as `[80, 443].contains(context.port)`, a named set, or several policies"
                )
            };
            problems.push(self.problem(None, Some(offset), message));
        }
        if policies > POLICIES_MAX {
            let message =
                format!("{policies} policies, and there may be {POLICIES_MAX}: use groups and named sets");
            problems.push(self.problem(None, None, message));
        }
        if problems.is_empty() { Ok(()) } else { Err(problems) }
    }
}

/// Brackets, operators and `;` outside strings and comments, each with its offset.
struct Tokens<'a> {
    bytes: std::iter::Peekable<std::iter::Enumerate<std::str::Bytes<'a>>>,
    /// The last byte was part of a word.
    in_word: bool,
}

impl<'a> Tokens<'a> {
    fn new(text: &'a str) -> Self {
        Tokens { bytes: text.bytes().enumerate().peekable(), in_word: false }
    }

    fn skip_string(&mut self) {
        while let Some((_, byte)) = self.bytes.next() {
            match byte {
                b'\\' => drop(self.bytes.next()),
                b'"' => return,
                _ => {}
            }
        }
    }
}

impl Iterator for Tokens<'_> {
    type Item = (usize, u8);

    fn next(&mut self) -> Option<(usize, u8)> {
        while let Some((offset, byte)) = self.bytes.next() {
            let was_word = std::mem::replace(&mut self.in_word, byte.is_ascii_alphanumeric() || byte == b'_');
            match byte {
                b'"' => self.skip_string(),
                b'/' if self.bytes.peek().is_some_and(|(_, b)| *b == b'/') => {
                    while self.bytes.next_if(|(_, b)| *b != b'\n').is_some() {}
                }
                b'(' | b')' | b'[' | b']' | b'{' | b'}' | b';' => return Some((offset, byte)),
                b'&' | b'|' | b'=' | b'!' | b'<' | b'>' => {
                    // The second byte of `&&`, `||`, `==`, `!=`, `<=` and `>=`.
                    self.bytes.next_if(|(_, b)| *b == b'=' || (*b == byte && byte != b'!'));
                    return Some((offset, byte));
                }
                b'-' | b'+' | b'*' | b'.' => return Some((offset, byte)),
                // `if` opens a branch.
                b'i' if !was_word && self.bytes.peek().is_some_and(|(_, b)| *b == b'f') => {
                    return Some((offset, byte));
                }
                _ => {}
            }
        }
        None
    }
}
