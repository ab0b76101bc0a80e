//! What local runs are. A run is known by its key; by its cgroup alone, the kernel plane tells only whose it is, so that what all
//! runs of the agent have alike is known.

use std::collections::BTreeMap;

use clawgress_api::RunRef;
use clawgress_identity::TrustSnapshot;

/// What is known of a run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Run {
    /// SHA-256 of the executable that it began with, in hexadecimal digits.
    pub executable: Option<String>,
    /// Directory of its cgroup.
    pub cgroup: Option<String>,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Runs {
    by_key: BTreeMap<String, Run>,
    /// What is alike, by the agents' numbers in the registry.
    by_agent: BTreeMap<u32, Run>,
}

impl Runs {
    /// Those whose agents `trust` has.
    #[must_use]
    pub fn new(all: Vec<RunRef>, trust: &TrustSnapshot) -> Self {
        let mut runs = Runs::default();
        for RunRef { agent, key, executable, cgroup } in all {
            let run = Run { executable, cgroup };
            if let Some(agent) = trust.agent(&agent) {
                let known = runs.by_agent.entry(agent.index).or_insert_with(|| run.clone());
                known.keep_alike(&run);
            }
            runs.by_key.insert(key, run);
        }
        runs
    }

    /// The run whose key has this id.
    #[must_use]
    pub fn of_key(&self, id: &str) -> Option<&Run> {
        self.by_key.get(id)
    }

    /// What all runs of an agent have alike.
    #[must_use]
    pub fn of_agent(&self, index: u32) -> Option<&Run> {
        self.by_agent.get(&index)
    }
}

impl Run {
    fn keep_alike(&mut self, other: &Run) {
        for (known, other) in [(&mut self.executable, &other.executable), (&mut self.cgroup, &other.cgroup)] {
            if known != other {
                *known = None;
            }
        }
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
        let trust = TrustSnapshot::new([agent("a", 1), agent("b", 2), agent("c", 3), agent("d", 5)], [], []);
        let run = |agent: &str, key: &str, executable: Option<&str>| RunRef {
            agent: agent.parse().expect("id"),
            key: key.to_owned(),
            executable: executable.map(str::to_owned),
            cgroup: Some(format!("/{agent}/{key}")),
        };
        let runs = vec![
            run("a", "1", Some("x")),
            run("a", "2", Some("x")),
            run("b", "3", Some("x")),
            run("b", "4", Some("y")),
            run("b", "5", Some("y")),
            run("c", "6", Some("x")),
            run("c", "7", None),
            run("d", "8", Some("z")),
        ];
        let runs = Runs::new(runs, &trust);
        let executable = |run: Option<&Run>| run.and_then(|run| run.executable.clone());
        let cgroup = |run: Option<&Run>| run.and_then(|run| run.cgroup.clone());
        assert_eq!(
            (1..=5).map(|n| executable(runs.of_agent(n))).collect::<Vec<_>>(),
            [Some("x".to_owned()), None, None, None, Some("z".to_owned())]
        );
        assert_eq!(
            (1..=5).map(|n| cgroup(runs.of_agent(n))).collect::<Vec<_>>(),
            [None, None, None, None, Some("/d/8".to_owned())],
            "one run is known by its agent, two are not"
        );
        assert_eq!(["2", "9"].map(|key| cgroup(runs.of_key(key))), [Some("/a/2".to_owned()), None]);
        assert_eq!(
            ["2", "4", "7", "9"].map(|key| executable(runs.of_key(key))),
            [Some("x".to_owned()), Some("y".to_owned()), None, None]
        );
    }
}
