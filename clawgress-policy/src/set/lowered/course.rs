//! Requests of which not all is known: whether what policy says of one depends on that; and what it says along the way, of what
//! comes bit by bit, by where that began and ended. Must never call known what an answer may depend on.

use super::node::Node;
use super::run::Ask;
use super::{Condition, Group, Lowered};
use crate::content::{Attribute, Attributes};
use crate::effect::Effect;
use crate::request::Request;
use crate::set::{Given, Inner, Need, PolicySet};
use crate::vocabulary::{ActionKind, ByAction};

/// What becomes more as a payload comes, and never less.
const GROWS: [Attribute; 5] = [
    Attribute::Bytes,
    Attribute::Findings,
    Attribute::UsageInput,
    Attribute::UsageOutput,
    Attribute::UsageTools,
];

/// What policies say along the way.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Course {
    /// Ids of those that decide, and say something else at the end than at the beginning: each changes once.
    pub(crate) turned: Vec<String>,
    /// Whether what is only told is told at the beginning or at the end, if it is at all.
    pub(crate) is_told_known: bool,
}

/// How a value goes as a payload comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trend {
    Fixed,
    /// It becomes true, greater, or a set of more; and never the reverse.
    Up,
    Down,
    /// Nobody knows.
    Mixed,
}

// === impl PolicySet ===

impl PolicySet {
    /// Who needs to know what of a request is `unseen`.
    pub(crate) fn lacks(&self, request: &Request<'_>, unseen: Attributes) -> Need {
        let given = Given { unseen, ..self.given() };
        self.halves().map(|half| half.lacks(request, given)).max().unwrap_or(Need::None)
    }

    /// What policies say between these requests, of which the one becomes the other as its payload comes; `None` where that is not
    /// known of one that decides.
    pub(crate) fn course(&self, first: &Request<'_>, last: &Request<'_>) -> Option<Course> {
        let mut all = Course { is_told_known: true, ..Course::default() };
        for half in self.halves() {
            let course = half.course(first, last, self.given())?;
            all.turned.extend(course.turned);
            all.is_told_known &= course.is_told_known;
        }
        Some(all)
    }
}

// === impl Inner ===

impl Inner {
    fn is_told(&self, id: &str) -> bool {
        self.obligations.get(id).is_some_and(|known| known.effect == Effect::Alert)
    }

    fn lacks(&self, request: &Request<'_>, given: Given<'_>) -> Need {
        let action = ActionKind::of(&request.operation);
        if !self.names(action) {
            return Need::None;
        }
        let depends = |groups: &ByAction<Group>, counts: &dyn Fn(&str) -> bool| {
            let concerns = |policy: &Lowered| policy.may_read(given.unseen) && counts(&policy.id);
            self.depends(groups.of(action), request, given, concerns)
        };
        if self.asks_guards(action) && depends(&self.guards_lowered, &|_| true)
            || depends(&self.obliging_lowered, &|id| !self.is_told(id))
        {
            Need::Decided
        } else if depends(&self.logged_lowered, &|_| true)
            || depends(&self.obliging_lowered, &|id| self.is_told(id))
        {
            Need::Logged
        } else {
            Need::None
        }
    }

    fn course(&self, first: &Request<'_>, last: &Request<'_>, given: Given<'_>) -> Option<Course> {
        let action = ActionKind::of(&first.operation);
        let mut course = Course { is_told_known: true, ..Course::default() };
        if !self.names(action) {
            return Some(course);
        }
        let asked = (Ask::new(self, first, given).ok()?, Ask::new(self, last, given).ok()?);
        let guards = self.asks_guards(action).then(|| (self.guards_lowered.of(action), false));
        let others = [(self.obliging_lowered.of(action), false), (self.logged_lowered.of(action), true)];
        for (group, is_logged) in guards.into_iter().chain(others) {
            for bucket in group.buckets(first.agent) {
                for number in bucket.candidates(&asked.0) {
                    let policy = group.policies.get(number as usize)?;
                    let turns = policy.turns(&asked.0, &asked.1);
                    if is_logged || self.is_told(&policy.id) {
                        course.is_told_known &= turns.is_some();
                    } else if turns? {
                        course.turned.push(policy.id.to_string());
                    }
                }
            }
        }
        Some(course)
    }
}

// === impl Lowered ===

impl Lowered {
    /// Whether its condition may read any of these.
    fn may_read(&self, attributes: Attributes) -> bool {
        match &self.condition {
            Condition::True => false,
            Condition::Tree(node) => reads(node, attributes),
            Condition::Oracle => true,
        }
    }

    /// Whether it says something else at the end than at the beginning, if it is known to change at most once in between.
    fn turns(&self, first: &Ask<'_>, last: &Ask<'_>) -> Option<bool> {
        if !self.may_read(Attributes::of(&GROWS)) {
            return Some(false);
        }
        let Condition::Tree(node) = &self.condition else { return None };
        let turns = self.certain(first)? != self.certain(last)?;
        // One that reads whether all is there, may change at another time of what is than of what may still come.
        let is_known =
            trend(node) != Trend::Mixed && !(turns && self.may_read(Attributes::of(&[Attribute::Complete])));
        is_known.then_some(turns)
    }
}

fn reads(node: &Node, attributes: Attributes) -> bool {
    let is_one = matches!(node, Node::Content(attribute) if attributes.has(*attribute));
    is_one || node.parts().any(|part| reads(part, attributes))
}

fn trend(node: &Node) -> Trend {
    match node {
        Node::Content(attribute) if GROWS.contains(attribute) => Trend::Up,
        Node::Not(a) | Node::Neg(a) | Node::IsEmpty(a) => trend(a).reversed(),
        Node::And(pair) | Node::Or(pair) | Node::Add(pair) | Node::ContainsAny(pair) => {
            trend(&pair.0).and(trend(&pair.1))
        }
        Node::Sub(pair) | Node::ContainsAll(pair) => trend(&pair.0).and(trend(&pair.1).reversed()),
        Node::Less(pair) | Node::LessEq(pair) => trend(&pair.0).reversed().and(trend(&pair.1)),
        Node::Contains(pair) if trend(&pair.1) == Trend::Fixed => trend(&pair.0),
        other if other.parts().all(|part| trend(part) == Trend::Fixed) => Trend::Fixed,
        _ => Trend::Mixed,
    }
}

// === impl Trend ===

impl Trend {
    fn reversed(self) -> Trend {
        match self {
            Trend::Up => Trend::Down,
            Trend::Down => Trend::Up,
            other => other,
        }
    }

    /// That of what both make up.
    fn and(self, other: Trend) -> Trend {
        match (self, other) {
            (Trend::Fixed, trend) | (trend, Trend::Fixed) => trend,
            (a, b) if a == b => a,
            _ => Trend::Mixed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::content::{Payload, Usage};
    use crate::set::tests::agent;
    use crate::{Host, NamedSets, Operation, PolicyBundle};

    fn set(condition: &str) -> PolicySet {
        let text = format!(
            "@id(\"all\") permit (principal, action == Action::\"receive\", resource);
             @id(\"rule\") forbid (principal, action == Action::\"receive\", resource) when {{ {condition} }};"
        );
        PolicySet::parse(&PolicyBundle { text, sets: NamedSets::default() }).expect("a set")
    }

    fn receive<'a>(
        host: &'a Host,
        tokens: u64,
        findings: &'a [String],
        tools: &'a [String],
    ) -> Operation<'a> {
        let payload = Payload { bytes: tokens, complete: false, media_type: "text/plain", findings };
        let usage = Usage { output_tokens: tokens, tools, ..Usage::default() };
        Operation::Receive { host, port: 443, status: 200, payload, usage }
    }

    /// `Some(whether it turns)` where that is known.
    fn turns(condition: &str) -> Option<bool> {
        let (agent, host) = (agent("a"), Host::parse("api.test").expect("a host"));
        let (found, tools) = (["private_key".to_owned()], ["shell".to_owned()]);
        let first = Request { agent: &agent, operation: receive(&host, 0, &[], &[]) };
        let last = Request { agent: &agent, operation: receive(&host, 100, &found, &tools) };
        let course = set(condition).course(&first, &last)?;
        assert!(course.is_told_known && course.turned.iter().all(|id| id == "rule"), "{course:?}");
        Some(!course.turned.is_empty())
    }

    #[test]
    fn what_grows_changes_an_answer_once_or_it_is_not_known() {
        for (condition, want) in [
            ("context.status == 500", Some(false)),
            ("context.usage.output_tokens > 50", Some(true)),
            ("context.usage.output_tokens > 500", Some(false)),
            ("context.usage.output_tokens < 50", Some(true)),
            ("context.usage.output_tokens + context.bytes > 150", Some(true)),
            ("context.usage.output_tokens - context.bytes > 150", None),
            ("context.findings.contains(\"private_key\")", Some(true)),
            ("context.findings.contains(\"email\")", Some(false)),
            ("!context.findings.isEmpty()", Some(true)),
            ("context.usage.tools.containsAny([\"shell\", \"sh\"]) && context.bytes > 10", Some(true)),
            ("[\"shell\"].containsAll(context.usage.tools)", Some(false)),
            // True, then false, then true again, for all that is known.
            ("context.usage.output_tokens < 10 || context.usage.output_tokens > 90", None),
            ("context.usage.output_tokens == 50", None),
            ("if context.bytes > 50 then true else false", None),
            // At which of its two questions it changes first is not known.
            ("context.bytes > 50 || !context.complete && context.bytes > 10", None),
        ] {
            assert_eq!(turns(condition), want, "{condition}");
        }
    }

    #[test]
    fn what_is_not_known_counts_where_an_answer_may_depend_on_it() {
        let (agent, host) = (agent("a"), Host::parse("api.test").expect("a host"));
        let request = Request { agent: &agent, operation: receive(&host, 0, &[], &[]) };
        let unseen = Attributes::of(&[Attribute::Findings, Attribute::Bytes]);
        for (condition, want) in [
            ("context.status == 500", Need::None),
            ("context.status == 500 && context.bytes > 1", Need::None),
            ("context.status == 200 && context.bytes > 1", Need::Decided),
            ("context.findings.contains(\"private_key\")", Need::Decided),
        ] {
            assert_eq!(set(condition).lacks(&request, unseen), want, "{condition}");
        }
    }
}
