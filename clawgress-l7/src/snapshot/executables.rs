//! What local runs began with. A run is known by its key; by its cgroup alone, the kernel plane tells only whose it is, so
//! that it is known where all runs of the agent began with one and the same executable.

use std::collections::BTreeMap;

use clawgress_api::RunRef;
use clawgress_identity::TrustSnapshot;

/// See the module.
#[derive(Debug, Default)]
pub struct Executables {
    by_key: BTreeMap<String, String>,
    /// By the agents' numbers in the registry; `None` where it can't be told.
    by_agent: BTreeMap<u32, Option<String>>,
}

impl Executables {
    /// Those of runs whose agents `trust` has.
    #[must_use]
    pub fn new(runs: Vec<RunRef>, trust: &TrustSnapshot) -> Self {
        let mut executables = Executables::default();
        for RunRef { agent, key, executable } in runs {
            if let Some(agent) = trust.agent(&agent) {
                let known = executables.by_agent.entry(agent.index).or_insert_with(|| executable.clone());
                if *known != executable {
                    *known = None;
                }
            }
            if let Some(executable) = executable {
                executables.by_key.insert(key, executable);
            }
        }
        executables
    }

    /// That of the run whose key has this id.
    #[must_use]
    pub fn of_key(&self, id: &str) -> Option<&str> {
        self.by_key.get(id).map(String::as_str)
    }

    /// That of all runs of an agent.
    #[must_use]
    pub fn of_agent(&self, index: u32) -> Option<&str> {
        self.by_agent.get(&index)?.as_deref()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use clawgress_identity::{Agent, AgentState};

    use super::*;

    fn agent(name: &str, index: u32) -> Agent {
        Agent {
            id: name.parse().expect("id"),
            index,
            team: None,
            project: None,
            environment: None,
            labels: BTreeMap::new(),
            state: AgentState::Active,
            sources: Vec::new(),
        }
    }

    #[test]
    fn by_its_cgroup_a_run_is_known_only_where_all_are_alike() {
        let trust = TrustSnapshot::new([agent("a", 1), agent("b", 2), agent("c", 3)], [], []);
        let run = |agent: &str, key: &str, executable: Option<&str>| RunRef {
            agent: agent.parse().expect("id"),
            key: key.to_owned(),
            executable: executable.map(str::to_owned),
        };
        let runs = vec![
            run("a", "1", Some("x")),
            run("a", "2", Some("x")),
            run("b", "3", Some("x")),
            run("b", "4", Some("y")),
            run("b", "5", Some("y")),
            run("c", "6", Some("x")),
            run("c", "7", None),
        ];
        let executables = Executables::new(runs, &trust);
        assert_eq!(
            (1..=4).map(|n| executables.of_agent(n)).collect::<Vec<_>>(),
            [Some("x"), None, None, None]
        );
        assert_eq!(
            ["2", "4", "7", "8"].map(|key| executables.of_key(key)),
            [Some("x"), Some("y"), None, None]
        );
    }
}
