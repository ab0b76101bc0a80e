//! A policy to be asked, with what stands above it and below it: a tenant's under the platform's live one, the platform's
//! above every tenant's live one.

use std::collections::BTreeMap;

use clawgress_api::Status;
use clawgress_api::identity::PolicyOwner;
use clawgress_api::proto::Empty;
use clawgress_policy::{Policies, PolicySet};

use super::explain::parsed;
use super::files::Written;
use super::{surroundings, written};
use crate::client::Client;
use crate::failure::Failure;

/// All that decides together.
pub struct Around {
    /// What is written, by whose it is.
    pub written: BTreeMap<PolicyOwner, Written>,
    /// The same, to be asked.
    pub policies: Policies,
}

/// The policies that are live, by whose they are: the number of each.
pub async fn live(client: &Client) -> Result<BTreeMap<PolicyOwner, u64>, Failure> {
    let mut admin = client.connect().await?;
    let status: Status = client.document(admin.status(Empty {}).await)?;
    Ok(status.policies)
}

// === impl Around ===

impl Around {
    /// With what is live on the node around `asked`.
    pub async fn new(client: &Client, asked: Written) -> Result<Around, Failure> {
        let owner = asked.owner.clone();
        Around::with(client, &owner, Some(asked)).await
    }

    /// The same of this owner's; without one as if that had none, which of the platform's is not one that says nothing.
    pub async fn with(
        client: &Client,
        owner: &PolicyOwner,
        asked: Option<Written>,
    ) -> Result<Around, Failure> {
        let mut all: BTreeMap<PolicyOwner, Written> =
            asked.into_iter().map(|asked| (owner.clone(), asked)).collect();
        for (other, number) in live(client).await? {
            // Tenants say nothing of one another.
            let counts = other.tenant().is_none() || owner.tenant().is_none();
            if counts && other != *owner {
                let live = written(client, &other, number).await?;
                all.insert(other, live);
            }
        }
        let (mut platform, mut tenants) = (None, BTreeMap::<String, PolicySet>::new());
        for (owner, written) in &all {
            let set = parsed(written, &surroundings(client, written).await?)?;
            match owner.tenant() {
                None => platform = Some(set),
                Some(tenant) => drop(tenants.insert(tenant.to_owned(), set)),
            }
        }
        let policies = Policies::new(platform, tenants);
        let policies = policies.map_err(|errors| Failure::Refused(errors.to_string()))?;
        Ok(Around { written: all, policies })
    }

    /// The texts by which a tenant's agents are decided.
    pub fn texts(&self, tenant: &PolicyOwner) -> Vec<&str> {
        let both = [Some(&PolicyOwner::Platform), Some(tenant).filter(|t| t.tenant().is_some())];
        let written = both.into_iter().flatten().filter_map(|owner| self.written.get(owner));
        written.map(|written| written.bundle.text.as_str()).collect()
    }
}
