//! What is known of agents on disk, by sled: it can be lost, and is then gathered anew.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clawgress_identity::AgentId;
use clawgress_policy::history::Past;
use serde::{Deserialize, Serialize};

use super::places::Name;
use super::{Kind, Observed, Print};

/// Memory for sled's pages: what is kept is read once, at the start.
const CACHE_BYTES: u64 = 8 << 20;
/// Parts of a destination's key: the agent's number and the destination's name.
const INDEX_BYTES: usize = 4;
const NAME_BYTES: usize = 16;
/// How often it is tried to open it, and the pause in between: together a few seconds.
const OPENS_MAX: u32 = 50;
const OPEN_PAUSE: Duration = Duration::from_millis(100);

/// Where it is kept.
#[derive(Clone, Debug)]
pub(super) struct Kept {
    db: sled::Db,
    agents: sled::Tree,
    destinations: sled::Tree,
}

/// What is kept of one agent besides its destinations.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Document {
    id: AgentId,
    past: Past,
    prints: BTreeMap<Kind, Vec<Print>>,
    changed_s: Option<i64>,
}

/// Something to write.
#[derive(Debug)]
pub(super) enum Saved {
    /// What changed, and destinations: when each was seen, or that it is forgotten.
    Changed(u32, Box<Document>, Vec<(Name, Option<u64>)>),
    /// The agent is no more.
    Gone(u32),
}

impl Observed {
    /// What is to be kept, but for the destinations.
    pub(super) fn to_keep(&self) -> Box<Document> {
        let Observed { id, past, prints, changed_s, .. } = self;
        let (id, past, prints) = (id.clone(), past.clone(), prints.clone());
        Box::new(Document { id, past, prints, changed_s: *changed_s })
    }
}

type Opened = (Kept, HashMap<u32, Observed>, Option<String>);

/// Opens what is kept in `directory`, and reads it. What can't be understood is moved aside, with the reason.
pub(super) fn open(directory: &Path) -> Result<Opened> {
    let mut tries = 1..OPENS_MAX;
    let error = loop {
        match open_once(directory) {
            Ok((kept, known)) => return Ok((kept, known, None)),
            // The disk's, or another process's that has it open and is about to end: none of what it holds.
            Err(error) if matches!(error.downcast_ref(), Some(sled::Error::Io(_))) => {
                if tries.next().is_none() {
                    return Err(error);
                }
                std::thread::sleep(OPEN_PAUSE);
            }
            Err(error) => break error,
        }
    };
    let aside = directory.with_extension("unreadable");
    if aside.exists() {
        fs::remove_dir_all(&aside).with_context(|| format!("cannot remove `{}`", aside.display()))?;
    }
    fs::rename(directory, &aside).with_context(|| format!("cannot move `{}` aside", directory.display()))?;
    let (kept, known) = open_once(directory)?;
    Ok((kept, known, Some(format!("{error:#}; it is in `{}` now", aside.display()))))
}

fn open_once(directory: &Path) -> Result<(Kept, HashMap<u32, Observed>)> {
    let config = sled::Config::new().path(directory).cache_capacity(CACHE_BYTES);
    let db = config.open().with_context(|| format!("cannot open `{}`", directory.display()))?;
    let kept = Kept {
        agents: db.open_tree("agents").context("cannot open its agents")?,
        destinations: db.open_tree("destinations").context("cannot open its destinations")?,
        db,
    };
    let known = kept.read()?;
    Ok((kept, known))
}

// === impl Kept ===

impl Kept {
    fn read(&self) -> Result<HashMap<u32, Observed>> {
        let mut known = HashMap::new();
        for entry in self.agents.iter() {
            let (key, value) = entry.context("cannot read its agents")?;
            let index: [u8; INDEX_BYTES] = key.as_ref().try_into().context("an agent without a number")?;
            let document: Document = serde_json::from_slice(&value).context("an agent can't be read")?;
            let Document { id, past, prints, changed_s } = document;
            let observed = Observed { past, prints, changed_s, ..Observed::new(id) };
            known.insert(u32::from_be_bytes(index), observed);
        }
        for entry in self.destinations.iter() {
            let (key, seen) = entry.context("cannot read its destinations")?;
            let (index, name) = key.split_first_chunk::<INDEX_BYTES>().context("a destination of nobody")?;
            let name: [u8; NAME_BYTES] = name.try_into().context("a destination without a name")?;
            // An agent is written before its destinations: without it, they are of one that was removed.
            if let Some(observed) = known.get_mut(&u32::from_be_bytes(*index)) {
                // Before it was written when, all were as old.
                let seen = seen.as_ref().try_into().map_or(0, u64::from_be_bytes);
                observed.places.restore(Name::from_be_bytes(name), seen);
            }
        }
        Ok(known)
    }

    /// Writes, durably when it returns.
    pub(super) fn write(&self, saved: &[Saved]) -> Result<()> {
        for one in saved {
            match one {
                Saved::Changed(index, document, destinations) => {
                    let key = index.to_be_bytes();
                    self.agents.insert(key, serde_json::to_vec(document)?)?;
                    for (name, seen) in destinations {
                        let place = [&key[..], &name.to_be_bytes()].concat();
                        match seen {
                            Some(seen) => self.destinations.insert(place, &seen.to_be_bytes())?,
                            None => self.destinations.remove(place)?,
                        };
                    }
                }
                Saved::Gone(index) => self.remove(index.to_be_bytes())?,
            }
        }
        self.db.flush()?;
        Ok(())
    }

    fn remove(&self, key: [u8; INDEX_BYTES]) -> Result<()> {
        for entry in self.destinations.scan_prefix(key) {
            self.destinations.remove(entry?.0)?;
        }
        self.agents.remove(key)?;
        Ok(())
    }
}
