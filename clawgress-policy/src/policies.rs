//! What is in force on a node: the platform's set, and each tenant's under it. Must never have a tenant's set asked
//! about another tenant's agents.

use std::collections::BTreeMap;

use clawgress_identity::Agent;

use crate::kernel::KernelTables;
use crate::{NamedSets, PolicyErrors, PolicySet, Surroundings, kernel};

/// The platform's set, if it has one, and each tenant's. Cloning shares them.
///
/// A tenant without a set permits nothing. A platform without one restricts nothing.
#[derive(Clone, Debug)]
pub struct Policies {
    platform: Option<PolicySet>,
    /// Under the platform's.
    tenants: BTreeMap<String, PolicySet>,
    /// Permits nothing, under the platform's: what counts for tenants without a set of their own.
    none: PolicySet,
}

/// What a tenant takes of the kernel's tables: of the bound that it takes most of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Share {
    /// The tenant.
    pub tenant: String,
    /// Of what.
    pub what: &'static str,
    /// How much.
    pub count: usize,
    /// How much there is for all.
    pub bound: usize,
    parts_per_million: usize,
}

/// Tenants' tables, each without the others'.
#[derive(Debug, Default)]
pub struct Alone {
    /// Those of whom there are none, and why. Nobody, where that is so of every tenant: then it is the platform's fault.
    pub failing: BTreeMap<String, PolicyErrors>,
    /// What the others take, the largest first, equal ones by name.
    pub shares: Vec<Share>,
}

// === impl Share ===

impl Share {
    fn of(tenant: &str, tables: &KernelTables) -> Share {
        let share = |what, count: usize, bound: usize| {
            let parts_per_million = count.saturating_mul(1_000_000) / bound.max(1);
            Share { tenant: tenant.to_owned(), what, count, bound, parts_per_million }
        };
        let verdicts = share("verdicts", tables.verdicts.len(), kernel::VERDICTS_MAX);
        let others = [
            share("destination prefixes", tables.destinations.len(), kernel::PREFIXES_MAX),
            share("rate limits", tables.limiters.len(), kernel::LIMITERS_MAX),
            share("combinations of rate limits", tables.limits.len(), kernel::LIMIT_SETS_MAX),
        ];
        // Of equal ones the first.
        let larger = |a: Share, b: Share| if b.parts_per_million > a.parts_per_million { b } else { a };
        others.into_iter().fold(verdicts, larger)
    }

    /// Whether it is more than so much of the bound.
    #[must_use]
    pub fn exceeds(&self, percent: u8) -> bool {
        self.parts_per_million > usize::from(percent) * 10_000
    }

    /// Whether it is a larger part of its bound than the other is of its.
    #[must_use]
    pub fn is_above(&self, other: &Share) -> bool {
        self.parts_per_million > other.parts_per_million
    }

    /// In words.
    #[must_use]
    pub fn told(&self) -> String {
        let Share { tenant, what, count, bound, .. } = self;
        format!("tenant `{tenant}` takes {count} of {bound} {what}")
    }
}

// === impl Policies ===

impl Policies {
    /// Puts the sets together, tenants' by the tenant's name. All were parsed with one zone.
    ///
    /// # Errors
    /// Never for what this version can hold.
    pub fn new(
        platform: Option<PolicySet>,
        tenants: BTreeMap<String, PolicySet>,
    ) -> Result<Policies, PolicyErrors> {
        let zone = platform.iter().chain(tenants.values()).next().map(|set| set.inner().zone().clone());
        let surroundings = Surroundings { zone: zone.unwrap_or_default(), ..Surroundings::default() };
        let none = PolicySet::parse_in("", &NamedSets::default(), &surroundings)?;
        let placed = |set: PolicySet| platform.as_ref().map_or(set.clone(), |above| set.under(above));
        let tenants = tenants.into_iter().map(|(name, set)| (name, placed(set))).collect();
        Ok(Policies { none: placed(none), tenants, platform })
    }

    /// What decides for the agents of a tenant: its own set under the platform's.
    #[must_use]
    pub fn of(&self, tenant: &str) -> &PolicySet {
        self.tenants.get(tenant).unwrap_or(&self.none)
    }

    /// The same as they decide at `now_ms` (Unix, milliseconds).
    #[must_use]
    pub fn at(&self, now_ms: i64) -> Policies {
        Policies {
            platform: self.platform.as_ref().map(|set| set.at(now_ms)),
            tenants: self.tenants.iter().map(|(name, set)| (name.clone(), set.at(now_ms))).collect(),
            none: self.none.at(now_ms),
        }
    }

    /// Whether any policy asks for the time.
    #[must_use]
    pub fn asks_time(&self) -> bool {
        self.sets().any(PolicySet::asks_time)
    }

    /// When, after `now_ms`, a condition on time of any set first answers otherwise: see [`PolicySet::next_turn_ms`].
    #[must_use]
    pub fn next_turn_ms(&self, now_ms: i64) -> Option<i64> {
        self.sets().filter_map(|set| set.next_turn_ms(now_ms)).min()
    }

    /// What each tenant that has agents and a set comes to, under the platform's and by its own agents, whatever others say.
    #[must_use]
    pub fn alone(&self, agents: &[Agent]) -> Alone {
        let mut alone = Alone::default();
        let mut asked = 0;
        for tenant in self.tenants.keys() {
            let Some(tables) = self.tables_of(tenant, agents) else { continue };
            asked += 1;
            match tables {
                Ok(tables) => alone.shares.push(Share::of(tenant, &tables)),
                Err(errors) => drop(alone.failing.insert(tenant.clone(), errors)),
            }
        }
        if alone.failing.len() >= asked {
            alone.failing.clear();
        }
        let by_share = |a: &Share, b: &Share| {
            b.parts_per_million.cmp(&a.parts_per_million).then_with(|| a.tenant.cmp(&b.tenant))
        };
        alone.shares.sort_by(by_share);
        alone
    }

    /// What a tenant takes of the kernel's tables, likewise.
    #[must_use]
    pub fn share(&self, tenant: &str, agents: &[Agent]) -> Option<Share> {
        let tables = self.tables_of(tenant, agents)?.ok()?;
        Some(Share::of(tenant, &tables))
    }

    fn tables_of(&self, tenant: &str, agents: &[Agent]) -> Option<Result<KernelTables, PolicyErrors>> {
        let set = self.tenants.get(tenant)?;
        let own: Vec<Agent> = agents.iter().filter(|agent| agent.id.tenant() == tenant).cloned().collect();
        (!own.is_empty()).then(|| kernel::compile(set, &own))
    }

    /// The same without these tenants' sets.
    #[must_use]
    pub fn without(&self, tenants: &[&str]) -> Policies {
        let left = self.tenants.iter().filter(|(name, _)| !tenants.contains(&name.as_str()));
        let tenants = left.map(|(name, set)| (name.clone(), set.clone())).collect();
        Policies { platform: self.platform.clone(), tenants, none: self.none.clone() }
    }

    /// The platform's set, if it has one, as it decides alone.
    #[must_use]
    pub fn platform(&self) -> Option<&PolicySet> {
        self.platform.as_ref()
    }

    /// Each tenant that has a set, and what decides for it.
    pub fn tenants(&self) -> impl Iterator<Item = (&str, &PolicySet)> {
        self.tenants.iter().map(|(name, set)| (name.as_str(), set))
    }

    /// All there are; the last is that of tenants without one.
    pub(crate) fn sets(&self) -> impl Iterator<Item = &PolicySet> {
        self.tenants.values().chain([&self.none])
    }

    /// Where in [`sets`](Self::sets) a tenant's is.
    pub(crate) fn place(&self, tenant: &str) -> usize {
        self.tenants.keys().position(|name| name == tenant).unwrap_or(self.tenants.len())
    }
}
