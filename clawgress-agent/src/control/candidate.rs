//! Policies that are not live yet: what each would come to, and whether it says anything that does nothing.

use std::num::NonZeroU8;

use clawgress_api::config::Endpoint;
use clawgress_identity::{Agent, PolicyOwner};
use clawgress_policy::lint::{Acceptance, Accepted, Configuration, Finding, ReadTls};
use clawgress_policy::study::explain::Target;
use clawgress_policy::{NamedSets, Policies, PolicyBundle, PolicySet, Scheme, Share, Surroundings};

use super::govern::{Generation, Governor, blocking, zone};
use super::in_force::APPLIED_BYTES_MAX;
use super::model::Refusal;
use super::render::compile;
use super::revisions::takes_away;

/// What a policy comes to, and the kernel's tables of all with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Size {
    /// Policies.
    pub policies: u64,
    /// Destination prefixes.
    pub prefixes: u64,
    /// Verdict cells.
    pub cells: u64,
    /// Rate limits.
    pub limiters: u64,
    /// What lint says of it; none is an error that was not accepted.
    pub findings: Vec<Finding>,
}

/// Refuses a tenant's policy that takes more of the kernel's tables than one of several tenants may, unless it takes no more
/// than what it has in force, or only takes something away from that: whoever is above its share must be able to tighten.
fn within_share(
    (all, live, now_ms): (&Policies, &Generation, i64),
    (owner, bundle): (&PolicyOwner, &PolicyBundle),
    agents: &[Agent],
    percent: NonZeroU8,
) -> Result<(), Refusal> {
    let Some(tenant) = owner.tenant() else { return Ok(()) };
    // Also those whose policies left force for want of room: it is not for others to keep it from them.
    if !live.model.policies.keys().any(|other| other != owner && other.tenant().is_some()) {
        return Ok(());
    }
    within_bytes(live, (owner, tenant, bundle), percent)?;
    let share = all.share(tenant, agents).filter(|share| share.exceeds(percent.get()));
    let is_in_force = live.in_force.told(owner).is_some();
    let former = |share: &Share| {
        let former = live.in_force.policies()?.at(now_ms).share(tenant, agents)?;
        (!share.is_above(&former)).then_some(())
    };
    match share {
        None => Ok(()),
        Some(_) if is_in_force && takes_away(live, owner, bundle) => Ok(()),
        Some(share) if former(&share).is_some() => Ok(()),
        Some(share) => Err(Refusal::Full(format!(
            "{} of the kernel's tables, and one of several tenants may take {percent} %: narrow it, or raise `share_percent_max` in [tenants] of the configuration",
            share.told()
        ))),
    }
}

/// The same of the bytes of a generation's documents, of which texts and sets are nearly all.
fn within_bytes(
    live: &Generation,
    (owner, tenant, bundle): (&PolicyOwner, &str, &PolicyBundle),
    percent: NonZeroU8,
) -> Result<(), Refusal> {
    let bytes = |text: &str, sets: &NamedSets| {
        let sets = serde_json::to_vec(sets).map_or(usize::MAX, |json| json.len());
        text.len().saturating_add(sets)
    };
    let (new, max) =
        (bytes(&bundle.text, &bundle.sets), APPLIED_BYTES_MAX / 100 * usize::from(percent.get()));
    let former = live.in_force.told(owner).map_or(0, |former| bytes(former.text, former.sets));
    if new <= max.max(former) {
        return Ok(());
    }
    Err(Refusal::Full(format!(
        "tenant `{tenant}` takes {new} of {APPLIED_BYTES_MAX} bytes of policies and sets, and one of several tenants may take {percent} %: shorten its sets, or raise `share_percent_max` in [tenants] of the configuration"
    )))
}

/// The host of an endpoint that is asked over TLS.
fn tls_host(endpoint: &Endpoint) -> Option<String> {
    match Target::parse(&endpoint.upstream, None, None, None).ok()? {
        Target::Url { host, scheme: Scheme::Https, .. } => Some(host.to_string()),
        _ => None,
    }
}

// === impl Governor ===

impl Governor {
    /// What a policy of this owner's would come to, with the agents, the other policies and the geo data there are.
    ///
    /// # Errors
    /// If it is refused.
    pub async fn check(
        &self,
        owner: PolicyOwner,
        bundle: PolicyBundle,
        accepted: Vec<Accepted>,
    ) -> Result<Size, Refusal> {
        let live = self.live();
        let agents = live.model.agents.values().cloned().collect::<Vec<_>>();
        let reading = self.reading();
        let geo = self.geo_of(&bundle.text).await?;
        let share = self.config.tenants.share_percent_max;
        let window = self.window();
        blocking(move || {
            let surroundings = Surroundings { geo: geo.geo.clone(), zone: zone(&window)? };
            let set = PolicySet::parse_for(&owner, &bundle.text, &bundle.sets, &surroundings)?;
            let policies = set.len() as u64;
            let above = live.in_force.told(&PolicyOwner::Platform).filter(|_| owner.tenant().is_some());
            let configuration = Configuration {
                agents: Some(&agents),
                platform: above.map(|above| above.text),
                reading: Some(&reading),
                ..Configuration::default()
            };
            let (findings, _) = set.lint_to_apply(&bundle.text, &configuration, &accepted)?;
            let all = live.in_force.with(&owner, &set)?;
            let now_ms = window.at.as_millisecond();
            let all = all.at(now_ms);
            all.check_limits(&agents)?;
            within_share((&all, &live, now_ms), (&owner, &bundle), &agents, share)?;
            let tables = compile(&all, &agents)?;
            let (prefixes, cells) = (tables.destinations.len() as u64, tables.verdicts.len() as u64);
            let limiters = tables.limiters.len() as u64;
            Ok(Size { policies, prefixes, cells, limiters, findings })
        })
        .await
    }

    /// Which TLS L7 reads, by the configuration.
    fn reading(&self) -> ReadTls {
        let exclude = self.config.intercept.as_ref().map(|intercept| intercept.exclude.as_slice());
        ReadTls::new(exclude, self.config.endpoints.iter().filter_map(tls_host).collect())
    }

    /// Refuses a policy that holds what is proven to do nothing, whatever agents there are, and is not `accepted`, and one
    /// that with the others puts more limits on a request than it may have. Neither keeps a stored policy from force. Returns
    /// what was accepted. One that does not parse is left to who applies it.
    ///
    /// # Errors
    /// What is proven, by `lint` or by a request.
    pub async fn lint(
        &self,
        owner: PolicyOwner,
        bundle: PolicyBundle,
        accepted: Vec<Accepted>,
    ) -> Result<Acceptance, Refusal> {
        let geo = self.geo_of(&bundle.text).await?;
        let (window, live) = (self.window(), self.live());
        let share = self.config.tenants.share_percent_max;
        blocking(move || {
            let surroundings = Surroundings { geo: geo.geo.clone(), zone: zone(&window)? };
            let parsed = PolicySet::parse_for(&owner, &bundle.text, &bundle.sets, &surroundings);
            let Ok(set) = parsed else { return Ok(Acceptance::default()) };
            let (_, acceptance) = set.lint_to_apply(&bundle.text, &Configuration::default(), &accepted)?;
            let agents: Vec<Agent> = live.model.agents.values().cloned().collect();
            let now_ms = window.at.as_millisecond();
            let all = live.in_force.with(&owner, &set)?.at(now_ms);
            all.check_limits(&agents)?;
            within_share((&all, &live, now_ms), (&owner, &bundle), &agents, share)?;
            Ok(acceptance)
        })
        .await
    }
}
