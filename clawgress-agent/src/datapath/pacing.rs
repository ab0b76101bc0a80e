//! By which uplinks `throttle` sends later what is over, and by which it drops it: tells the kernel programs, and
//! whoever asks.
//!
//! Must never name an interface whose queue sends at once: what was to be sent later would go unlimited.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;
use aya::maps::{HashMap, MapData};
use clawgress_ebpf_common::map;
use clawgress_policy::kernel::{LimitAction, Limiter};
use parking_lot::Mutex;

use super::object::{self, Objects};

/// What is known of the uplinks.
pub struct Pacing {
    map: Mutex<HashMap<MapData, u32, u32>>,
    /// By name, whether it paces.
    uplinks: Mutex<BTreeMap<String, bool>>,
}

impl std::fmt::Debug for Pacing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pacing").field("uplinks", &self.uplinks).finish_non_exhaustive()
    }
}

impl Pacing {
    /// Takes the map out of the object.
    ///
    /// # Errors
    /// If it is missing or of another layout.
    pub fn take(objects: &mut Objects) -> Result<Pacing> {
        Ok(Pacing { map: Mutex::new(object::take(objects, map::PACED)?), uplinks: Mutex::default() })
    }

    /// Has packets wait at those of `uplinks` (name to index) that are `paced`, and at no other interface. Gives in
    /// words what has changed at an uplink that was known before.
    ///
    /// # Errors
    /// If the map can't be written.
    pub fn follow(&self, uplinks: &BTreeMap<String, u32>, paced: &BTreeSet<u32>) -> Result<Vec<String>> {
        let wanted: BTreeSet<u32> = uplinks.values().copied().filter(|i| paced.contains(i)).collect();
        let mut map = self.map.lock();
        let present: BTreeSet<u32> = map.keys().collect::<Result<_, _>>()?;
        for index in present.difference(&wanted) {
            map.remove(index)?;
        }
        for index in wanted.difference(&present) {
            map.insert(index, 0, 0)?;
        }
        drop(map);
        let now: BTreeMap<_, _> = uplinks.iter().map(|(n, i)| (n.clone(), wanted.contains(i))).collect();
        let before = std::mem::replace(&mut *self.uplinks.lock(), now.clone());
        let changed = now.iter().filter(|(name, paces)| before.get(*name).is_some_and(|was| was != *paces));
        Ok(changed.map(|(name, paces)| change(name, *paces)).collect())
    }

    /// What `throttle` does by that interface, if it is an uplink.
    #[must_use]
    pub fn of(&self, interface: &str) -> Option<&'static str> {
        self.uplinks.lock().get(interface).map(|paces| action(*paces))
    }

    /// What becomes of what is over a limiter, at its best: `pace` where an uplink does so.
    #[must_use]
    pub fn over(&self, limiter: &Limiter) -> &'static str {
        action(limiter.over == LimitAction::Pace && self.uplinks.lock().values().any(|paces| *paces))
    }

    /// What can't be paced that policy wants to be, in words.
    #[must_use]
    pub fn warning(&self, limiters: &[Limiter]) -> Option<String> {
        let limiter = limiters.iter().find(|limiter| limiter.over == LimitAction::Pace)?;
        let uplinks = self.uplinks.lock();
        let dropping: Vec<_> = uplinks.iter().filter(|(_, paces)| !**paces).map(|(name, _)| name).collect();
        let first = dropping.first()?;
        let names: Vec<_> = dropping.iter().map(|name| format!("`{name}`")).collect();
        Some(format!(
            "`throttle` (policy `{}`) drops what is over and goes by {}: only the queue `fq` sends it later (`tc qdisc \
             replace dev {first} root fq`)",
            limiter.policy,
            names.join(", ")
        ))
    }
}

fn action(paces: bool) -> &'static str {
    if paces { "pace" } else { "drop" }
}

fn change(name: &str, paces: bool) -> String {
    if paces {
        format!("the queue of uplink `{name}` is `fq` now: `throttle` sends later what is over")
    } else {
        format!("the queue of uplink `{name}` is not `fq` any more: `throttle` drops what is over")
    }
}
