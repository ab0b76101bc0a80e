//! Which header fields and parameters policies name, and that they only name them: what is computed could be any, and no record
//! could hold what it came to. Must never accept a name that no request has in that spelling.

use std::collections::BTreeSet;

use cedar_policy_core::ast::{Expr, ExprKind, Pattern, PatternElem, Var};

use super::Part;
use crate::PolicyProblem;
use crate::fields;
use crate::host::quote;
use crate::set::Source;
use crate::set::syntax::{self, BinaryOp, Policy, UnaryOp};

/// Names of one part.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mentioned {
    /// Those that are asked for.
    pub(super) names: BTreeSet<String>,
    /// Those of them whose value is.
    pub(super) values: BTreeSet<String>,
    /// Whether anything is asked: it may be whether there are any.
    is_asked: bool,
}

impl Mentioned {
    /// Whether nothing is asked, not even whether there are any names.
    pub(super) fn is_empty(&self) -> bool {
        !self.is_asked
    }
}

/// What policies name of heads.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mentions {
    headers: Mentioned,
    query: Mentioned,
}

/// A question about a head.
enum Asked<'a> {
    /// Whether a name is there, and what it says if the value is asked for.
    Tag(Part, &'a Expr, bool),
    /// About the set of names, which is compared with these.
    Names(Part, Vec<&'a Expr>),
    /// It uses the part otherwise.
    Other(Part),
}

// === impl Mentions ===

impl Mentions {
    pub(super) fn part(&self, part: Part) -> &Mentioned {
        match part {
            Part::Headers => &self.headers,
            Part::Query => &self.query,
        }
    }

    fn part_mut(&mut self, part: Part) -> &mut Mentioned {
        match part {
            Part::Headers => &mut self.headers,
            Part::Query => &mut self.query,
        }
    }

    /// Those of both.
    #[must_use]
    pub fn and(mut self, other: &Mentions) -> Mentions {
        for part in Part::ALL {
            let (own, other) = (self.part_mut(part), other.part(part));
            own.names.extend(other.names.iter().cloned());
            own.values.extend(other.values.iter().cloned());
            own.is_asked |= other.is_asked;
        }
        self
    }

    /// Adds what a condition names.
    pub(crate) fn add(&mut self, condition: &Expr) {
        walk(condition, &mut |_, asked| {
            let (part, names, is_value) = match asked {
                Asked::Tag(part, name, is_value) => (part, vec![name], is_value),
                Asked::Names(part, names) => (part, names, false),
                Asked::Other(_) => return,
            };
            let mentioned = self.part_mut(part);
            mentioned.is_asked = true;
            for name in names.into_iter().filter_map(syntax::string) {
                mentioned.names.insert(name.to_owned());
                if is_value {
                    mentioned.values.insert(name.to_owned());
                }
            }
        });
    }
}

/// What a condition asks of heads: each part and name, with a value that it is compared with, if it is with one.
pub(crate) fn questions(condition: &Expr) -> Vec<(Part, String, Option<String>)> {
    let mut all = Vec::new();
    walk(condition, &mut |_, asked| {
        let (part, names) = match asked {
            Asked::Tag(part, name, _) => (part, vec![name]),
            Asked::Names(part, names) => (part, names),
            Asked::Other(_) => return,
        };
        all.extend(names.into_iter().filter_map(syntax::string).map(|name| (part, name.to_owned(), None)));
    });
    for expr in condition.subexpressions() {
        let (subject, value) = match expr.expr_kind() {
            ExprKind::BinaryApp { op: BinaryOp::Eq, arg1, arg2 } => {
                let (subject, literal) =
                    if syntax::string(arg2).is_some() { (arg1, arg2) } else { (arg2, arg1) };
                (subject, syntax::string(literal).map(str::to_owned))
            }
            ExprKind::Like { expr, pattern } => (expr, Some(filled(pattern))),
            _ => continue,
        };
        if let (Some(Asked::Tag(part, name, true)), Some(value)) = (asked(subject), value) {
            all.extend(syntax::string(name).map(|name| (part, name.to_owned(), Some(value))));
        }
    }
    all
}

/// A text that a pattern matches.
fn filled(pattern: &Pattern) -> String {
    let elements = pattern.iter().map(|element| match element {
        PatternElem::Char(letter) => letter.to_string(),
        PatternElem::Wildcard => "any".to_owned(),
    });
    elements.collect()
}

/// Reviews what a policy asks of heads: its problems.
pub(crate) fn review(policy: &Policy, id: Option<&str>, source: &Source<'_>) -> Vec<PolicyProblem> {
    let mut problems = Vec::new();
    let Some(condition) = policy.non_scope_constraints() else { return problems };
    walk(condition, &mut |expr, asked| {
        let mut tell = |at: &Expr, message: String| {
            problems.push(source.problem(id, syntax::offset(at).or(syntax::offset(expr)), message));
        };
        match asked {
            Asked::Tag(part, name, _) => match syntax::string(name) {
                None => tell(name, computed(part)),
                Some(text) => {
                    if let Some(message) = misspelt(part, text).or_else(|| secret(part, text)) {
                        tell(name, message);
                    }
                }
            },
            Asked::Names(part, names) => {
                for name in names {
                    match syntax::string(name).map(|text| misspelt(part, text)) {
                        None => tell(name, computed(part)),
                        Some(problem) => problem.into_iter().for_each(|message| tell(name, message)),
                    }
                }
            }
            Asked::Other(part) => tell(
                expr,
                format!(
                    "`context.{}` is only asked for one name, by `hasTag` and `getTag`, and `context.{}` for names that are written there, by `contains`, `containsAll`, `containsAny`, `isEmpty` or `==`",
                    part.name(),
                    part.names()
                ),
            ),
        }
    });
    problems
}

fn computed(part: Part) -> String {
    format!(
        "names in `context.{}` and `context.{}` are written as they are: `\"a-name\"`",
        part.name(),
        part.names()
    )
}

/// Why no request has a name in this spelling.
fn misspelt(part: Part, name: &str) -> Option<String> {
    let plain = part.plain(name);
    if plain != name {
        return Some(format!(
            "header fields are compared in lower case, and with `-` for `_`: write `{}`",
            quote(&plain)
        ));
    }
    let is_token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^`|~".contains(&b);
    match part {
        Part::Headers if name.is_empty() || !name.bytes().all(is_token) => {
            Some(format!("`{}` is no name of a header field, so it never matches", quote(name)))
        }
        Part::Headers if !fields::is_asked(name) => Some(format!(
            "`{}` is none of the header fields that go on as they came, so it never matches",
            quote(name)
        )),
        Part::Query if name.contains('\0') => {
            Some(format!("`{}` is in no query that can be read, so it never matches", quote(name)))
        }
        Part::Headers | Part::Query => None,
    }
}

/// Why nobody is told what a name says.
fn secret(part: Part, name: &str) -> Option<String> {
    fields::holds_secret(name).then(|| {
        format!(
            "`{}` holds a secret by its name, which policy is not told: ask `context.{}.contains(\"{}\")` for whether it is there",
            quote(name),
            part.names(),
            quote(name)
        )
    })
}

/// Tells of each question about a head in an expression.
fn walk<'a>(expr: &'a Expr, tell: &mut impl FnMut(&'a Expr, Asked<'a>)) {
    match asked(expr) {
        Some(asked) => tell(expr, asked),
        None => syntax::parts(expr).into_iter().for_each(|part| walk(part, tell)),
    }
}

/// The question that an expression is, if it is one.
fn asked(expr: &Expr) -> Option<Asked<'_>> {
    if let Some(part) = values(expr).or_else(|| names(expr)) {
        return Some(Asked::Other(part));
    }
    let (op, one, two) = match expr.expr_kind() {
        ExprKind::BinaryApp { op, arg1, arg2 } => (op, &**arg1, &**arg2),
        ExprKind::UnaryApp { op: UnaryOp::IsEmpty, arg } => {
            return names(arg).map(|part| Asked::Names(part, Vec::new()));
        }
        _ => return None,
    };
    match op {
        BinaryOp::HasTag | BinaryOp::GetTag => {
            values(one).map(|part| Asked::Tag(part, two, *op == BinaryOp::GetTag))
        }
        BinaryOp::Contains => names(one).map(|part| Asked::Names(part, vec![two])),
        BinaryOp::ContainsAll | BinaryOp::ContainsAny | BinaryOp::Eq => {
            let (part, written) = names(one).map(|part| (part, two)).or(names(two).map(|part| (part, one)))?;
            let elements = syntax::set(written).map_or_else(|| vec![written], |all| all.iter().collect());
            Some(Asked::Names(part, elements))
        }
        _ => None,
    }
}

fn values(expr: &Expr) -> Option<Part> {
    of_context(expr).and_then(Part::named)
}

fn names(expr: &Expr) -> Option<Part> {
    of_context(expr).and_then(Part::of_names)
}

fn of_context(expr: &Expr) -> Option<&str> {
    match syntax::attribute(expr) {
        Some((Var::Context, attribute)) => Some(attribute),
        _ => None,
    }
}
