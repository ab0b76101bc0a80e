//! What the gateway begins with: two agents, of one tenant, and their keys.

use std::collections::BTreeMap;

use clawgress_api::Snapshot;
use clawgress_api::proto::Snapshot as Envelope;
use clawgress_identity::{Agent, AgentState, ApiKeyRecord};
use clawgress_policy::PolicyBundle;

/// The first generation.
pub fn first(policy: Option<&str>, keys: Vec<ApiKeyRecord>) -> Snapshot<PolicyBundle> {
    Snapshot {
        generation: 1,
        policy: policy.map(bundle),
        platform: None,
        tenants: BTreeMap::new(),
        revisions: BTreeMap::new(),
        agents: vec![agent("web", 1), agent("other", 2)],
        keys,
        shared: Vec::new(),
        runs: Vec::new(),
        roots: clawgress_identity::RootRecords::default(),
        provider_keys: Vec::new(),
    }
}

pub fn envelope(snapshot: &Snapshot<PolicyBundle>) -> Envelope {
    let document = serde_json::to_vec(snapshot).expect("json");
    Envelope { generation: snapshot.generation, document, ..Envelope::default() }
}

fn agent(name: &str, index: u32) -> Agent {
    Agent {
        id: name.parse().expect("id"),
        index,
        team: None,
        project: None,
        environment: None,
        labels: BTreeMap::new(),
        state: AgentState::Active,
        sources: vec![],
    }
}

pub fn bundle(text: &str) -> PolicyBundle {
    PolicyBundle { text: text.to_owned(), ..PolicyBundle::default() }
}
