//! What policies read that a record may not hold.

use cedar_policy_core::ast::{Expr, ExprKind};

use super::Needs;
use crate::GeoNames;
use crate::set::syntax::{self, Policy};
use crate::vocabulary::Reads;

impl Needs {
    /// Those of both.
    #[must_use]
    pub fn and(self, other: Needs) -> Needs {
        Needs {
            labels: self.labels | other.labels,
            alpn: self.alpn | other.alpn,
            fingerprints: self.fingerprints | other.fingerprints,
            geo: self.geo | other.geo,
            time: self.time | other.time,
            wall_clock: self.wall_clock | other.wall_clock,
        }
    }

    /// Those of policy text that is valid.
    #[must_use]
    pub fn of(text: &str) -> Needs {
        let Ok(set) = text.parse::<cedar_policy::PolicySet>() else { return Needs::default() };
        let mut needs = Needs { geo: !GeoNames::of(text).is_empty(), ..Needs::default() };
        for cedar in set.policies() {
            let ast: &Policy = cedar.as_ref();
            let Some(condition) = ast.non_scope_constraints() else { continue };
            let mut reads = Reads::default();
            syntax::reads(condition, &mut reads);
            needs.labels |= reads.agent;
            needs.fingerprints |= reads.fingerprints;
            needs.time |= reads.time;
            needs.alpn |= condition.subexpressions().any(|e| reads_attribute(e, &["alpn"]));
            needs.wall_clock |= condition.subexpressions().any(|e| reads_attribute(e, &WALL_CLOCK));
        }
        needs
    }
}

/// What is a wall clock's.
const WALL_CLOCK: [&str; 3] = ["hour", "minute", "weekday"];

fn reads_attribute(expr: &Expr, names: &[&str]) -> bool {
    match expr.expr_kind() {
        ExprKind::GetAttr { attr, .. } | ExprKind::HasAttr { attr, .. } => names.contains(&attr.as_str()),
        _ => false,
    }
}
