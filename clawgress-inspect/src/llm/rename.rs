//! Tools that a model knows by other names than its client: changed in the call where they lie, and changed back in the answer
//! ([`Renamer`]). All other bytes stay as they are.
//!
//! INVARIANT: two tools never get one name, so that what comes back is one tool's.

mod places;
mod stream;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use places::{Found, Of, names};
pub use stream::{RenameError, Renamer};

use super::call::is_manner;
use super::change::ChangeError;
use super::{Call, Choice};
use crate::splice::{Edits, quoted};

/// Names that a call was given, and those of its client.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Renamed {
    /// By the name that the model sees, the client's.
    back: BTreeMap<String, String>,
    /// All names of tools in the call that the model sees.
    known: BTreeSet<String>,
}

/// The body with other names, and what those are; `None` where nothing is renamed.
pub(crate) type Other = Option<(Vec<u8>, Renamed)>;

/// Renames the tools of the call that `body` is: each own name to the other.
///
/// # Errors
/// If two tools would have one name, or where names are can't be known.
pub(crate) fn renamed(body: &[u8], renames: &[(&str, &str)]) -> Result<Other, ChangeError> {
    let found = names(body, Of::Call).ok_or(ChangeError::NotSo("where its tools are named"))?;
    let other = |own: &str| renames.iter().find(|(name, _)| *name == own).map(|(_, other)| *other);
    let (mut renamed, mut edits) = (Renamed::default(), Edits::default());
    let mut owners: BTreeMap<String, &str> = BTreeMap::new();
    for Found { at, name, is_providers } in &found {
        let is_now = other(name).unwrap_or(name);
        if *is_providers && is_now != name {
            return Err(ChangeError::NotSo("a tool that its provider names has another name"));
        }
        if owners.insert(is_now.to_owned(), name).is_some_and(|owner| owner != name) {
            return Err(ChangeError::NotSo("each tool has a name of its own"));
        }
        if is_now != name {
            edits.replace(at.clone(), quoted(is_now));
            renamed.back.insert(is_now.to_owned(), name.clone());
        }
    }
    renamed.known = owners.into_keys().collect();
    Ok((!edits.is_empty()).then(|| (edits.apply(body), renamed)))
}

/// Whether `now` offers and chooses what `before` did, by the other names.
pub(super) fn is_so(before: &Call, now: &Call, renames: &[(&str, &str)]) -> bool {
    let other =
        |own: &str| renames.iter().find(|(name, _)| *name == own).map_or(own, |(_, other)| *other).to_owned();
    let choice = match &before.tool_choice {
        Choice::Named(name) => Choice::Named(other(name)),
        Choice::Unsaid => Choice::Unsaid,
    };
    // How tools are asked for stays as it is, whatever a tool is called.
    let is_manner = matches!(&before.tool_choice, Choice::Named(name) if is_manner(name));
    let is_chosen = now.tool_choice == choice || is_manner && now.tool_choice == before.tool_choice;
    is_chosen && now.tools.iter().cloned().eq(before.tools.iter().map(|own| other(own)))
}

// === impl Renamed ===

impl Renamed {
    /// Names of the client's and what the model knows them by, for a record.
    pub fn names(&self) -> impl Iterator<Item = (&str, &str)> {
        self.back.iter().map(|(other, own)| (&**own, &**other))
    }
}
