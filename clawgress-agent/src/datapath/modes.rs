//! What each agents' interface does when something fails: closed, or open for the causes that its
//! configuration names under `danger`. Tells the kernel programs, and tells of every turn in an audit record.
//!
//! Must never set an interface open that the configuration doesn't.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::Result;
use aya::maps::{HashMap, MapData};
use clawgress_api::config::{Config, FailOpen};
use clawgress_ebpf_common::{fail_open, map};
use parking_lot::Mutex;

use super::epoch::Turn;
use super::handover::Tally;
use super::object::{self, Objects};
use super::spool::Spool;

/// What may fail while programs run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Failure {
    /// Nobody vouches for the tables.
    Agent,
    /// No L7 holds the listeners.
    L7,
    /// The flow table is full.
    FlowTable,
    /// The kernel's table of tracked connections is full.
    Conntrack,
    /// There is no generation with a policy.
    Revision,
}

/// The modes of the agents' interfaces.
pub struct Modes {
    map: Mutex<(HashMap<MapData, u32, u32>, Turn)>,
    /// By interface name, those that fail open for anything.
    open: BTreeMap<String, Vec<FailOpen>>,
    /// Every agents' interface.
    names: Vec<String>,
    failing: Mutex<Vec<Failure>>,
    spool: Arc<Spool>,
    tally: Tally,
}

impl std::fmt::Debug for Modes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Modes").field("open", &self.open).finish_non_exhaustive()
    }
}

// === impl Failure ===

impl Failure {
    fn what(self) -> &'static str {
        match self {
            Failure::Agent => "nobody vouches for the kernel's tables",
            Failure::L7 => "no L7 accepts steered connections",
            Failure::FlowTable => "the flow table is full",
            Failure::Conntrack => "the kernel's connection tracking is full",
            Failure::Revision => "no policy has been loaded",
        }
    }

    /// As the configuration calls it.
    fn cause(self) -> FailOpen {
        match self {
            Failure::Agent => FailOpen::Agent,
            Failure::L7 => FailOpen::L7,
            Failure::FlowTable => FailOpen::FlowTable,
            Failure::Conntrack => FailOpen::Conntrack,
            Failure::Revision => FailOpen::Revision,
        }
    }
}

/// What is let through then, in words.
fn consequence(cause: FailOpen) -> &'static str {
    match cause {
        FailOpen::L7 => "what policy permits to connect is forwarded unread",
        FailOpen::FlowTable => "what policy permits to go direct is forwarded without a record",
        FailOpen::Revision => "everything of a known source is forwarded",
        FailOpen::Agent => "what the last generation permits to go direct is forwarded",
        // The configuration refuses it.
        FailOpen::Conntrack => "nothing more is let through",
    }
}

/// The kernel's bits.
fn bits(causes: &[FailOpen]) -> u32 {
    let bit = |cause: &FailOpen| match cause {
        FailOpen::L7 => fail_open::L7,
        FailOpen::FlowTable => fail_open::FLOW_TABLE,
        FailOpen::Revision => fail_open::REVISION,
        FailOpen::Agent => fail_open::AGENT,
        FailOpen::Conntrack => 0,
    };
    causes.iter().map(bit).fold(0, |all, bit| all | bit)
}

// === impl Modes ===

impl Modes {
    /// The modes that `config` sets; told, if any is open.
    ///
    /// # Errors
    /// If a map is missing or of another layout.
    pub fn new(config: &Config, objects: &mut Objects, spool: Arc<Spool>) -> Result<Self> {
        let map = Mutex::new((object::take(objects, map::INTERFACES)?, Turn::of(objects)?));
        let agents: Vec<_> = config.agents_interfaces().collect();
        let open = agents.iter().filter(|i| !i.danger.fail_open.is_empty());
        let open: BTreeMap<_, _> = open.map(|i| (i.name.clone(), i.danger.fail_open.clone())).collect();
        let names = agents.iter().map(|i| i.name.clone()).collect();
        let (failing, tally) = (Mutex::default(), Tally::default());
        let modes = Modes { map, open, names, failing, spool, tally };
        for warning in modes.warnings() {
            tracing::warn!("{warning}");
            modes.spool.change(format!("datapath: {warning}"));
        }
        Ok(modes)
    }

    /// Writes the modes of the interfaces that are there (name to index), and of no others.
    ///
    /// # Errors
    /// If the map can't be written.
    pub fn follow(&self, agents: &BTreeMap<String, u32>) -> Result<()> {
        let mut locked = self.map.lock();
        let (map, turn) = &mut *locked;
        let wanted: BTreeMap<u32, u32> =
            self.open.iter().filter_map(|(name, causes)| Some((*agents.get(name)?, bits(causes)))).collect();
        let present: Vec<u32> = map.keys().collect::<Result<_, _>>()?;
        for index in present.iter().filter(|i| !wanted.contains_key(i)) {
            map.remove(index)?;
        }
        for (index, bits) in wanted {
            map.insert(index, bits, 0)?;
        }
        turn.turn()
    }

    /// Every interface fails closed until [`Modes::follow`] is called again.
    ///
    /// # Errors
    /// If the map can't be written.
    pub fn close(&self) -> Result<()> {
        self.follow(&BTreeMap::new())
    }

    /// Notes whether `failure` is there, and tells it when that has changed.
    pub fn turn(&self, failure: Failure, is_there: bool) {
        let mut failing = self.failing.lock();
        let was_there = failing.contains(&failure);
        if was_there == is_there {
            return;
        }
        let detail = if is_there {
            failing.push(failure);
            format!("{}: {}", failure.what(), self.states(failure).join("; "))
        } else {
            failing.retain(|f| *f != failure);
            format!("it is over that {}", failure.what())
        };
        drop(failing);
        tracing::warn!("{detail}");
        self.spool.change(format!("datapath: {detail}"));
    }

    /// What became of L7 processes.
    #[must_use]
    pub fn tally(&self) -> &Tally {
        &self.tally
    }

    /// Tells what is no failure yet, but may become one.
    pub fn tell(&self, detail: &str) {
        tracing::warn!("{detail}");
        self.spool.change(format!("datapath: {detail}"));
    }

    /// What each interface does under `failure`.
    fn states(&self, failure: Failure) -> Vec<String> {
        let state = |name: &String| match self.open.get(name) {
            Some(causes) if causes.contains(&failure.cause()) => {
                format!("interface `{name}` fails open: {}", consequence(failure.cause()))
            }
            _ => format!("interface `{name}` fails closed"),
        };
        self.names.iter().map(state).collect()
    }

    /// What is open, or may be, in words.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        let failing = self.failing.lock();
        let mut warnings = Vec::new();
        for (name, causes) in &self.open {
            for cause in causes {
                let text = format!("fail open (`{}`): {}", cause.name(), consequence(*cause));
                warnings.push(match failing.iter().find(|f| f.cause() == *cause) {
                    Some(now) => format!("interface `{name}` does {text}, because {}", now.what()),
                    None => format!("interface `{name}` is set to {text}"),
                });
            }
        }
        let conntrack = failing.iter().find(|f| **f == Failure::Conntrack);
        warnings.extend(conntrack.map(|f| format!(
                "{}: new flows are dropped, whatever an interface is set to; raise `net.netfilter.nf_conntrack_max`",
                f.what()
            )));
        warnings
    }

    /// The causes for which an interface is set to fail open, and those for which it does now.
    #[must_use]
    pub fn of(&self, interface: &str) -> (Vec<String>, Vec<String>) {
        let failing = self.failing.lock();
        let causes = self.open.get(interface).map(Vec::as_slice).unwrap_or_default();
        let named = |c: &FailOpen| c.name().to_owned();
        let now = causes.iter().filter(|c| failing.iter().any(|f| f.cause() == **c));
        (causes.iter().map(named).collect(), now.map(named).collect())
    }
}
