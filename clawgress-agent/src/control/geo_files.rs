//! The geo data's files: noticed when they change, and put in force, or complained of. What is in force
//! stays until better data are there.

use std::path::Path;
use std::time::Duration;

use clawgress_api::{GeoPart, GeoStatus};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use super::Control;
use super::geo::{Fingerprint, Kind};
use super::govern::Governor;
use super::model::Refusal;

/// How often the files are looked at: two calls of the file system, and soon enough for a person who waits.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);

/// What is known of the files.
#[derive(Debug, Default)]
pub(super) struct GeoFiles {
    state: Mutex<State>,
    /// Held while files are read, so that two reloads don't overtake each other.
    turn: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct State {
    /// The files as they were last read, whether they were of use or not; `None` before the first time.
    seen: Option<[Option<Fingerprint>; 2]>,
    trouble: Option<String>,
}

// === impl GeoFiles ===

impl GeoFiles {
    /// Why the files as they are now are not in force, if they aren't.
    pub(super) fn trouble(&self) -> Option<String> {
        self.state.lock().trouble.clone()
    }

    /// Reads the files now and puts them in force.
    pub(super) async fn reload(&self, governor: &Governor, by: &str) -> Result<bool, Refusal> {
        let _turn = self.turn.lock().await;
        // Before they are read: what changes meanwhile is read once more.
        let seen = looked_at(governor);
        let done = governor.reload_geo(by).await;
        let trouble = done.as_ref().err().map(told);
        // What is no fault of the files is tried again.
        let is_settled =
            !matches!(&done, Err(Refusal::Unavailable(_) | Refusal::Store(_) | Refusal::Audit(_)));
        let mut state = self.state.lock();
        state.trouble = trouble;
        state.seen = is_settled.then_some(seen);
        done
    }

    /// Puts files in force when they change, until `stop`.
    pub(super) async fn watch(&self, governor: &Governor, stop: CancellationToken) {
        loop {
            let has_files = Kind::ALL.iter().any(|kind| kind.path(&governor.config.geo).is_some());
            if has_files && self.state.lock().seen != Some(looked_at(governor)) {
                match self.reload(governor, "the watch over its files").await {
                    Ok(true) => tracing::info!("geo data reloaded"),
                    Ok(false) => {}
                    Err(error) => {
                        let error = told(&error);
                        tracing::error!(%error, "the geo data's files can't be put in force; what was in force stays");
                    }
                }
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(LOOK_INTERVAL) => {}
            }
        }
    }
}

fn looked_at(governor: &Governor) -> [Option<Fingerprint>; 2] {
    Kind::ALL.map(|kind| kind.path(&governor.config.geo).and_then(Fingerprint::of))
}

/// A refusal with the first of its problems.
fn told(refusal: &Refusal) -> String {
    match refusal {
        Refusal::Policy(errors) => {
            let first = errors.problems.first().map(|p| format!(": {p}")).unwrap_or_default();
            format!("the live policy can't be compiled with the new data{first}")
        }
        other => other.to_string(),
    }
}

// === impl Control ===

impl Control {
    /// Which geo data are in force.
    pub(super) fn geo_status(&self) -> GeoStatus {
        let live = self.governor.live();
        let config = &self.governor.config.geo;
        let (geo, path) = (&live.model.geo, |kind: Kind| kind.path(config).map(Path::to_owned));
        let count = |n: usize| n as u64;
        let (asns, countries) = (geo.geo.asns.iter().flatten(), geo.geo.countries.iter().flatten());
        let asn = GeoPart {
            kind: "asn".into(),
            path: path(Kind::Asn),
            in_force: geo.asn.clone(),
            names: count(asns.clone().count()),
            prefixes: count(asns.map(|(_, prefixes)| prefixes.len()).sum()),
        };
        let country = GeoPart {
            kind: "country".into(),
            path: path(Kind::Country),
            in_force: geo.country.clone(),
            names: count(countries.clone().count()),
            prefixes: count(countries.map(|(_, prefixes)| prefixes.len()).sum()),
        };
        GeoStatus {
            generation: live.model.generation,
            parts: vec![asn, country],
            trouble: self.geo.trouble(),
        }
    }
}
