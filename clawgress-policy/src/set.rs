//! Policy text to a validated set.

use std::collections::{BTreeMap, BTreeSet};

use clawgress_ebpf_common::DropReason;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::{Decision, Request};

/// Version of the Cedar schema; a set names the one it was written for.
pub const SCHEMA_VERSION: u32 = 1;

/// Named sets, edited without touching policy text.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NamedSets {
    /// `HostSet`: names, or `*.suffix` for every name below (not the suffix itself).
    #[serde(default)]
    pub hosts: BTreeMap<String, BTreeSet<String>>,
    /// `NetworkSet`: prefixes.
    #[serde(default)]
    pub networks: BTreeMap<String, BTreeSet<IpNet>>,
}

/// What a revision holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PolicyBundle {
    /// Cedar text.
    pub text: String,
    /// Named sets.
    #[serde(default)]
    pub sets: NamedSets,
}

/// One thing wrong with policy text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyProblem {
    /// The policy's id, if it has got that far.
    pub policy: Option<String>,
    /// Line, from 1.
    pub line: Option<u32>,
    /// Column, from 1.
    pub column: Option<u32>,
    /// What is wrong and what to do.
    pub message: String,
}

/// Everything wrong with policy text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the policy has {} problem(s); nothing was changed", .problems.len())]
pub struct PolicyErrors {
    /// At least one.
    pub problems: Vec<PolicyProblem>,
}

/// A validated policy set.
#[derive(Clone, Debug)]
pub struct PolicySet {}

impl PolicySet {
    /// Parses and validates.
    ///
    /// # Errors
    /// Everything that is wrong, each with its place.
    pub fn parse(_bundle: &PolicyBundle) -> Result<PolicySet, PolicyErrors> {
        Ok(PolicySet {})
    }

    /// Decides one request: default deny, forbid wins, any evaluation error denies.
    #[must_use]
    pub fn decide(&self, _request: &Request<'_>) -> Decision {
        Decision { verdict: Err(DropReason::PolicyMissing), policies: Vec::new(), errors: Vec::new() }
    }
}
