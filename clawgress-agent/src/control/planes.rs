//! Which planes run a generation, and which are behind: for whoever made it, once it is live.

use std::time::{Duration, Instant};

use clawgress_api::config::DatapathMode;
use clawgress_api::{L7Status, Plane, PlaneState};

use super::Control;

/// Longest wait for the planes to run a policy that was applied: a little longer than an L7 worker that can't goes on by
/// what it has.
const POLICY_SETTLE_TIME_MAX: Duration = Duration::from_secs(6);

// === impl Control ===

impl Control {
    /// Which planes run `generation`, and which don't, once all do or have had their time.
    pub(super) async fn in_force(&self, generation: u64) -> (Vec<PlaneState>, Vec<PlaneState>) {
        let (link, workers) = (&self.runs.link, &self.workers);
        let settled = async {
            // Where there is no kernel plane nobody waits for it.
            let kernel = async {
                if self.has_kernel() {
                    link.settled(generation).await;
                }
            };
            tokio::join!(kernel, workers.settled(generation))
        };
        let _ = tokio::time::timeout(POLICY_SETTLE_TIME_MAX, settled).await;
        let mut states = Vec::new();
        if self.has_kernel() {
            states.push(self.kernel_state(generation));
        }
        states.extend(workers.list().into_iter().map(|worker| worker_state(worker, generation)));
        states.extend(self.lost_states(generation));
        states.into_iter().partition(|state| state.generation >= generation)
    }

    fn has_kernel(&self) -> bool {
        self.governor.config.datapath.mode != DatapathMode::None
    }

    fn kernel_state(&self, wanted: u64) -> PlaneState {
        let state = self.runs.link.state();
        let generation = state.applied;
        let why = (generation < wanted).then(|| {
            // What it says of an earlier one is not why.
            let trouble = state.trouble.filter(|_| state.refused.is_none_or(|refused| refused >= wanted));
            let why = match trouble {
                Some(why) if state.quarantine.is_none() => {
                    format!("the datapath role can't be reached ({why}): start `clawgress-agent datapath`")
                }
                Some(why) => why,
                None => "it has not said yet that it has taken it".to_owned(),
            };
            format!("{why}; what it forwards (`direct`) goes on by what it had until its lease is over (`lease_s`), and is denied then")
        });
        PlaneState { plane: Plane::Kernel, instance: None, pid: None, generation, why }
    }

    /// What status says of workers that were lost.
    pub(super) fn lost_warnings(&self, latest: u64) -> Vec<String> {
        let behind = self.lost_states(latest).into_iter();
        let told = |state: PlaneState| {
            let (who, why) = (state.told(), state.why.unwrap_or_default());
            format!("{who} is at generation {}, not {latest}: {why}", state.generation)
        };
        behind.map(told).collect()
    }

    fn lost_states(&self, wanted: u64) -> Vec<PlaneState> {
        let now = Instant::now();
        let lost = self.workers.lost.lock();
        let lost = lost.iter().filter(|lost| lost.status.generation < wanted && lost.may_decide());
        let state = |lost: &super::snapshots::Lost| {
            let (since, until) = (now.duration_since(lost.since), lost.until.duration_since(now));
            let (since, until) = (since.as_secs(), until.as_secs());
            let why = match &lost.unknown {
                None => format!(
                    "its connection broke {since} s ago, and its process may go on by what it had for {until} s more, then it denies; end it, or let it connect again"
                ),
                Some(unknown) => format!(
                    "{unknown}; one that is not connected may go on by what it had for {until} s more, then it denies; look which processes of `clawgress-l7` there are"
                ),
            };
            PlaneState { why: Some(why), ..of_worker(lost.status.clone()) }
        };
        lost.map(state).collect()
    }
}

fn of_worker(worker: L7Status) -> PlaneState {
    let L7Status { instance, pid, generation, .. } = worker;
    PlaneState { plane: Plane::L7, instance: Some(instance), pid: Some(pid), generation, why: None }
}

fn worker_state(worker: L7Status, wanted: u64) -> PlaneState {
    let why = (worker.generation < wanted).then(|| match &worker.error {
        Some(error) => format!("it refused {error}; it denies everything from 5 s after that on"),
        None => "it has not said yet that it runs it; if it stands still, it denies everything from 5 s after that on"
            .to_owned(),
    });
    PlaneState { why, ..of_worker(worker) }
}
