//! What tenants share.

use std::num::NonZeroU8;

use serde::{Deserialize, Serialize};

/// What one of several tenants may take of what all share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tenants {
    /// Most of any bound of the kernel's tables (verdicts, prefixes, rate limits and their combinations) that a tenant's policy
    /// may take with its own agents, percent, where other tenants have policies too. It is asked when the policy is applied.
    #[serde(default = "share")]
    pub share_percent_max: NonZeroU8,
}

impl Default for Tenants {
    fn default() -> Self {
        Tenants { share_percent_max: share() }
    }
}

/// One tenant leaves room for another as large; more tenants than two need less.
fn share() -> NonZeroU8 {
    const { NonZeroU8::new(50).unwrap() }
}
