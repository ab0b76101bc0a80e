//! One generation, as it is made and kept: what is governed, and what both planes get of it.

use std::collections::BTreeMap;
use std::sync::Arc;

use clawgress_identity::PolicyOwner;
use jiff::Timestamp;

use super::in_force::InForce;
use super::model::Model;
use super::render::Compiled;

/// One generation, as both planes get it.
#[derive(Debug)]
pub struct Generation {
    /// What is governed.
    pub model: Model,
    /// JSON of [`Snapshot`](clawgress_api::Snapshot), for L7.
    pub snapshot: Arc<Vec<u8>>,
    /// JSON of [`KernelGeneration`](clawgress_api::KernelGeneration), for the datapath.
    pub kernel: Arc<Vec<u8>>,
    /// The number by which planes were asked to prepare it; 0 if they weren't.
    pub(super) candidate: u64,
    /// Why stored policies are not in force, of those that aren't: then their tenant is denied everything, and everybody
    /// if it is the platform's.
    pub broken: BTreeMap<PolicyOwner, String>,
    /// The policies, parsed.
    pub(super) in_force: InForce,
    /// The kernel's tables.
    pub(super) tables: Option<Compiled>,
    /// When a condition on time turns next, and with it the tables.
    pub turns_at: Option<Timestamp>,
}

// === impl Generation ===

impl Generation {
    /// The same for the planes, of a model that differs in what they don't know.
    pub(super) fn with(&self, model: Model) -> Generation {
        Generation {
            model,
            snapshot: Arc::clone(&self.snapshot),
            kernel: Arc::clone(&self.kernel),
            candidate: self.candidate,
            broken: self.broken.clone(),
            in_force: self.in_force.clone(),
            tables: self.tables.clone(),
            turns_at: self.turns_at,
        }
    }

    /// Whether all that tells it from `former` is what was taken away since then: changes that give something don't come
    /// between while one is prepared, unless policy or time changes.
    pub(super) fn gives_no_more_than(&self, former: &Generation) -> bool {
        self.in_force.is_as(&former.in_force)
            && self.model.window.zone == former.model.window.zone
            && self.turns_at == former.turns_at
    }
}
