//! What is in force on a node: the platform's set, and each tenant's under it. Must never have a tenant's set asked
//! about another tenant's agents.

use std::collections::BTreeMap;

use clawgress_identity::Agent;

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

    /// Tenants of whose sets, under the platform's, no kernel tables can be made for their own agents, whatever others
    /// say; and why. None where that is so of every tenant that has agents and a set: then it is the platform's fault.
    #[must_use]
    pub fn without_tables(&self, agents: &[Agent]) -> BTreeMap<String, PolicyErrors> {
        let (mut failing, mut asked) = (BTreeMap::new(), 0);
        for (tenant, set) in self.tenants() {
            let own = agents.iter().filter(|agent| agent.id.tenant() == tenant);
            let own: Vec<Agent> = own.cloned().collect();
            if own.is_empty() {
                continue;
            }
            asked += 1;
            if let Err(errors) = kernel::compile(set, &own) {
                failing.insert(tenant.to_owned(), errors);
            }
        }
        if failing.len() >= asked { BTreeMap::new() } else { failing }
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
