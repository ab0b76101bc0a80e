//! The node's state, with what is wrong in words.

use std::collections::BTreeSet;
use std::net::IpAddr;

use clawgress_api::config::{DatapathMode, Role};
use clawgress_api::{DatapathStatus, L7Status, Status};
use clawgress_identity::{AgentId, PolicyOwner};
use nix::ifaddrs::getifaddrs;

use super::Control;
use super::audit::Unsettled;
use super::govern::Generation;
use super::revisions::{denied, of};

/// Most tenants without a policy that are named; whoever repairs these sees the next.
const UNRULED_MAX: usize = 10;

// === impl Control ===

impl Control {
    /// The node's state.
    pub(super) async fn status(&self) -> Status {
        let live = self.governor.live();
        let (datapath, keys) = tokio::join!(self.runs.link.status(), self.runs.keyring.trouble());
        let l7 = self.workers.list();
        let mut warnings = Vec::new();
        warnings.extend(policy_warnings(&live));
        warnings.extend(self.governor.late().map(|why| {
            format!("a condition on time has turned, and the former generation is still live: {why}")
        }));
        warnings.extend(self.audit.failure().map(|f| format!("{f}: nothing is acknowledged, so L7 denies")));
        warnings.extend(unsettled_warning(&self.audit.unsettled()));
        warnings.extend(keys);
        warnings.extend(self.geo.trouble().map(|why| format!("geo data: {why}; what was in force stays")));
        match &datapath {
            Ok(status) => self.datapath_warnings(status, &live, &mut warnings),
            Err(error) => warnings.push(format!(
                "{}the datapath role can't be reached ({error:#}): the kernel plane stays as it last was, and forwards nothing (`direct`) once its lease is over (`lease_s`); start `clawgress-agent datapath`",
                self.critical()
            )),
        }
        l7_warnings(&l7, live.model.generation, &mut warnings);
        warnings.extend(self.lost_warnings(live.model.generation));
        Status {
            node: self.governor.config.node.name.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            revision: live.model.revision_of(&PolicyOwner::default()),
            policies: live.model.revisions(),
            generation: live.model.generation,
            agents: live.model.agents.len() as u64,
            datapath: datapath.ok(),
            l7,
            proxies: self.governor.config.proxy.listen.clone(),
            proxies_tls: self
                .governor
                .config
                .proxy
                .tls
                .as_ref()
                .map(|t| t.listen.clone())
                .unwrap_or_default(),
            parents: self.governor.config.parents.iter().map(|p| (p.name.clone(), p.address)).collect(),
            routes: self.governor.config.routes.clone(),
            addresses: self.addresses(),
            audit_records: self.audit.records(),
            warnings,
        }
    }

    fn datapath_warnings(&self, status: &DatapathStatus, live: &Generation, warnings: &mut Vec<String>) {
        let latest = live.model.generation;
        if status.generation != latest {
            let why = self.runs.link.state().trouble.map(|t| format!(" ({t})")).unwrap_or_default();
            let critical = self.critical();
            warnings.push(format!(
                "{critical}the kernel plane is at generation {}, not {latest}{why}",
                status.generation
            ));
        }
        warnings.extend(status.absent.iter().map(|what| format!("not enforced: {what}")));
    }

    /// What a warning of a kernel plane begins with that is behind for longer than it may be.
    fn critical(&self) -> String {
        let behind = self.runs.link.behind();
        behind.map(|time| format!("critical, for {} s: ", time.as_secs())).unwrap_or_default()
    }

    /// Addresses of the agents' interfaces: what agents' traffic may be routed to.
    fn addresses(&self) -> Vec<IpAddr> {
        let config = &self.governor.config;
        if config.datapath.mode == DatapathMode::None {
            return Vec::new();
        }
        let ours = |name: &str| config.interfaces.iter().any(|i| i.role == Role::Agents && i.name == name);
        let Ok(all) = getifaddrs() else { return Vec::new() };
        let addresses = all.filter(|i| ours(&i.interface_name)).filter_map(|i| {
            let address = i.address?;
            let v4 = address.as_sockaddr_in().map(|a| IpAddr::V4(a.ip()));
            v4.or_else(|| address.as_sockaddr_in6().map(|a| IpAddr::V6(a.ip())))
        });
        addresses.collect()
    }
}

fn unsettled_warning(unsettled: &Unsettled) -> Option<String> {
    let Unsettled { times, why } = unsettled;
    let why = why.as_ref()?;
    Some(format!(
        "what follows on records can't be stored ({times} times since this role began; the last time: {why}): they are not acknowledged, so L7 denies once its queue is full; look at the disk of `state_dir`"
    ))
}

fn policy_warnings(live: &Generation) -> Vec<String> {
    let model = &live.model;
    if !model.policies.keys().any(|owner| owner.tenant().is_some()) {
        let none = "no policy has been applied: everything is denied; see `clawgressctl policy apply`";
        return vec![none.to_owned()];
    }
    let broken = live.broken.iter().map(|(owner, why)| {
        let (number, of, what) = (model.revision_of(owner), of(owner), denied(owner, model));
        format!("revision {number}{of} is not in force, {what} is denied: {why}")
    });
    let unruled: BTreeSet<&str> = model
        .agents
        .keys()
        .map(AgentId::tenant)
        .filter(|tenant| !model.policies.contains_key(&PolicyOwner::Tenant((*tenant).to_owned())))
        .collect();
    let unruled = unruled.into_iter().take(UNRULED_MAX).map(|tenant| {
        format!(
            "tenant `{tenant}` has agents and no policy, so that everything of it is denied; see `clawgressctl policy apply --tenant {tenant}`"
        )
    });
    broken.chain(unruled).collect()
}

fn l7_warnings(l7: &[L7Status], latest: u64, warnings: &mut Vec<String>) {
    if l7.iter().all(|worker| worker.draining || worker.refused.is_some()) {
        let who =
            if l7.is_empty() { "is connected" } else { "takes new connections, all drain or are refused" };
        warnings.push(format!(
            "no L7 worker {who}: nothing new passes but what the kernel forwards; start `clawgress-l7`"
        ));
    }
    for worker in l7 {
        let L7Status { instance, pid, generation, error, refused, .. } = worker;
        warnings.extend(refused.iter().map(|why| {
            format!(
                "L7 worker `{instance}` (pid {pid}) takes no connections, the datapath role refuses it: {why}"
            )
        }));
        match error {
            Some(error) => {
                warnings.push(format!(
                    "L7 worker `{instance}` stays at generation {generation}: {error}; it denies everything from 5 s after that on"
                ));
            }
            None if *generation != latest => {
                warnings.push(format!("L7 worker `{instance}` is at generation {generation}, not {latest}"));
            }
            None => {}
        }
    }
}
