//! A model as both planes get it, made from what the generation before it has already where that is the same.

use std::sync::Arc;

use clawgress_api::{KernelGeneration, Snapshot};
use clawgress_ebpf_common::bound;
use clawgress_identity::{Agent, PolicyOwner, SharedSource};
use clawgress_policy::kernel::{self, KernelTables};
use clawgress_policy::{Policies, Share};
use jiff::Timestamp;

use super::govern::{Generation, blocking};
use super::in_force::{InForce, Unusable};
use super::model::{Model, Refusal, Run};

/// Most tenants that are named where the tables can't hold what all want.
const SHARES_TOLD_MAX: usize = 3;

/// Tables of the kernel, and what they were compiled from besides the policies in force.
#[derive(Clone, Debug)]
pub(super) struct Compiled {
    tables: Arc<KernelTables>,
    agents: Arc<Vec<Agent>>,
    /// Unix milliseconds: from when, and until when, conditions on time say the same.
    from_ms: i64,
    until_ms: Option<i64>,
}

/// What a generation takes from the one before, as far as it is the same.
#[derive(Debug, Default)]
pub(super) struct Former {
    pub(super) in_force: InForce,
    pub(super) tables: Option<Compiled>,
}

/// The model as the planes get it; what `former` holds of its policies and tables is taken from there: with thousands of
/// policies tables take seconds, and what is revoked must not wait for them.
pub(super) async fn render(model: Model, former: Former, unusable: Unusable) -> Result<Generation, Refusal> {
    blocking(move || {
        let agents: Arc<Vec<Agent>> = Arc::new(model.agents.values().cloned().collect());
        let shared: Vec<SharedSource> = model.shared.values().cloned().collect();
        let sources = agents.iter().map(|a| a.sources.len()).chain(shared.iter().map(|s| s.at.len()));
        let sources: usize = sources.sum();
        if sources > bound::BINDINGS_MAX as usize {
            let max = bound::BINDINGS_MAX;
            return Err(Refusal::Full(format!(
                "{sources} source bindings don't fit into the kernel's {max}; nothing was changed"
            )));
        }
        let mut in_force = InForce::of(&model, &former.in_force, unusable)?;
        let now_ms = model.window.at.as_millisecond();
        let mut compiled = Compiled::of(&in_force, &former, &agents, now_ms);
        // One tenant's that has no tables at this moment, or too large ones, must not take from everybody what they have.
        if compiled.is_err() && unusable == Unusable::Suspend {
            let is_enough = |left: &InForce| Compiled::of(left, &former, &agents, now_ms).is_ok();
            if in_force.suspend(&agents, now_ms, is_enough)? {
                compiled = Compiled::of(&in_force, &former, &agents, now_ms);
            }
        }
        let (compiled, turn_ms) = compiled?;
        let tables = compiled.as_ref().map(|compiled| &*compiled.tables);
        let agents = agents.to_vec();
        let json = |e: serde_json::Error| Refusal::Invalid(e.to_string());
        let turns_at = turn_ms.and_then(|ms| Timestamp::from_millisecond(ms).ok());
        let (generation, revisions) = (model.generation, in_force.revisions());
        let kernel = KernelGeneration { generation, tables, agents, shared, revisions, turns_at };
        let kernel_json = serde_json::to_vec(&kernel).map_err(json)?;
        let snapshot = Snapshot {
            generation,
            policy: in_force.told(&PolicyOwner::default()),
            platform: in_force.told(&PolicyOwner::Platform),
            tenants: in_force.told_of_tenants(),
            revisions: kernel.revisions,
            agents: kernel.agents,
            keys: model.keys.values().cloned().collect(),
            shared: kernel.shared,
            runs: model.runs.values().map(Run::reference).collect(),
            roots: model.roots(),
            provider_keys: model.provider_keys.values().cloned().collect(),
        };
        let snapshot = serde_json::to_vec(&snapshot).map_err(json)?;
        in_force.fits(&former.in_force, snapshot.len().max(kernel_json.len()), unusable)?;
        let broken = in_force.broken();
        let (snapshot, kernel) = (Arc::new(snapshot), Arc::new(kernel_json));
        Ok(Generation { model, snapshot, kernel, candidate: 0, broken, in_force, tables: compiled, turns_at })
    })
    .await
}

/// Compiles to the kernel's tables. Where these can't hold what all tenants want, it is told who takes most of them.
pub(super) fn compile(policies: &Policies, agents: &[Agent]) -> Result<KernelTables, Refusal> {
    kernel::compile_all(policies, agents).map_err(|errors| {
        let shares = policies.alone(agents).shares;
        if shares.len() < 2 {
            return errors.into();
        }
        let told: Vec<String> = shares.iter().take(SHARES_TOLD_MAX).map(Share::told).collect();
        errors.and_told(&format!("alone, {}", told.join(", "))).into()
    })
}

// === impl Compiled ===

impl Compiled {
    /// What the policies in force come to at a moment, and when that turns; as `former` has it, where that is the same.
    fn of(
        in_force: &InForce,
        former: &Former,
        agents: &Arc<Vec<Agent>>,
        now_ms: i64,
    ) -> Result<(Option<Compiled>, Option<i64>), Refusal> {
        let policies = in_force.policies().map(|policies| policies.at(now_ms));
        let until_ms = policies.as_ref().and_then(|policies| policies.next_turn_ms(now_ms));
        let same = former.tables.as_ref().filter(|_| in_force.is_as(&former.in_force));
        let same = same.filter(|compiled| compiled.is_of(agents, now_ms));
        let compiled = |policies: &Policies| match same {
            Some(same) => Ok(same.clone()),
            None => {
                let tables = Arc::new(compile(policies, agents)?);
                let agents = Arc::clone(agents);
                Ok::<_, Refusal>(Compiled { tables, agents, from_ms: now_ms, until_ms })
            }
        };
        Ok((policies.as_ref().map(compiled).transpose()?, until_ms))
    }

    /// Whether compiling again, for these agents and this moment, would come to the same.
    fn is_of(&self, agents: &[Agent], now_ms: i64) -> bool {
        let is_then = self.from_ms <= now_ms && self.until_ms.is_none_or(|until_ms| now_ms < until_ms);
        is_then && *self.agents == agents
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use clawgress_api::PolicyRevision;
    use clawgress_identity::{AgentId, AgentState, ApiKeyRecord};
    use clawgress_policy::PolicyBundle;

    use super::*;

    const TEXT: &str = r#"@id("web") permit (principal in Team::"a", action == Action::"connect", resource)
        when { context.port == 443 && context.hour < 12 };"#;

    fn policy(text: &str) -> Arc<PolicyRevision<PolicyBundle>> {
        Arc::new(PolicyRevision {
            owner: PolicyOwner::default(),
            number: 1,
            parent: 0,
            time: Timestamp::UNIX_EPOCH,
            author: String::new(),
            message: String::new(),
            hash: String::new(),
            accepted: Vec::new(),
            signature: None,
            bundle: Some(PolicyBundle { text: text.to_owned(), ..PolicyBundle::default() }),
            generation: None,
            standing: None,
        })
    }

    fn agent(name: &str, index: u32) -> (AgentId, Agent) {
        let id: AgentId = name.parse().expect("id");
        let agent = Agent {
            id: id.clone(),
            index,
            team: Some("a".to_owned()),
            project: None,
            environment: None,
            labels: BTreeMap::new(),
            state: AgentState::Active,
            sources: Vec::new(),
        };
        (id, agent)
    }

    fn model() -> Model {
        let key = ApiKeyRecord {
            id: "010101010101".to_owned(),
            agent: "web".parse().expect("id"),
            mac: [1; 32],
            created_at_s: None,
            not_before_s: None,
            expires_at_s: None,
            revoked_at_s: None,
        };
        Model {
            agents: [agent("web", 1)].into(),
            keys: [(key.id.clone(), key)].into(),
            policies: [(PolicyOwner::default(), policy(TEXT))].into(),
            ..Model::default()
        }
    }

    async fn next(before: &Generation, change: impl FnOnce(&mut Model)) -> Generation {
        let mut model = before.model.clone();
        model.generation += 1;
        change(&mut model);
        let former = Former { in_force: before.in_force.clone(), tables: before.tables.clone() };
        render(model, former, Unusable::Refuse).await.expect("rendered")
    }

    fn tables(generation: &Generation) -> &Arc<KernelTables> {
        &generation.tables.as_ref().expect("tables").tables
    }

    /// What revokes a key takes the tables over as they are, and both planes get all of them all the same.
    #[tokio::test]
    async fn a_revocation_compiles_nothing() {
        let first = render(model(), Former::default(), Unusable::Refuse).await.expect("rendered");
        let revoked = next(&first, |model| model.keys.clear()).await;
        assert!(Arc::ptr_eq(tables(&first), tables(&revoked)));
        let sent: KernelGeneration<KernelTables> = serde_json::from_slice(&revoked.kernel).expect("document");
        assert_eq!((sent.generation, sent.tables.as_ref()), (1, Some(&**tables(&first))));
        let snapshot: Snapshot<PolicyBundle> = serde_json::from_slice(&revoked.snapshot).expect("document");
        assert!(snapshot.keys.is_empty() && snapshot.policy.is_some());
        assert_eq!(revoked.turns_at, first.turns_at);
    }

    /// Whatever tables are made of makes others: agents, policies, and time.
    #[tokio::test]
    async fn what_changes_tables_compiles_them() {
        let first = render(model(), Former::default(), Unusable::Refuse).await.expect("rendered");
        let turns_at = first.turns_at.expect("a turn");
        let others = [
            next(&first, |model| model.agents.extend([agent("more", 2)])).await,
            next(&first, |model| model.policies = [(PolicyOwner::default(), policy(TEXT))].into()).await,
            next(&first, |model| model.policies.extend([(PolicyOwner::Platform, policy(""))])).await,
            next(&first, |model| model.window.at = turns_at).await,
            next(&first, |model| model.window.at = Timestamp::from_millisecond(-1).expect("time")).await,
        ];
        for other in &others {
            assert!(!Arc::ptr_eq(tables(&first), tables(other)), "{:?}", other.model);
            let anew =
                render(other.model.clone(), Former::default(), Unusable::Refuse).await.expect("rendered");
            assert_eq!(tables(other), tables(&anew));
        }
        let before_it = turns_at.saturating_sub(jiff::SignedDuration::from_millis(1)).expect("time");
        let same = next(&first, |model| model.window.at = before_it).await;
        assert!(Arc::ptr_eq(tables(&first), tables(&same)));
    }
}
