//! Rate limits as the kernel holds them: one limiter for each obligation. Must never hold a rate or a burst
//! that 64 bits can't count exactly enough.

use std::collections::BTreeMap;
use std::sync::Arc;

use aws_lc_rs::digest;
use clawgress_identity::Agent;
use serde::{Deserialize, Serialize};

use crate::effect::Share;
use crate::quota::Pace;

/// Most limiters in a set: each has a slot in the kernel for every agent or workload that it slows.
pub const LIMITERS_MAX: usize = 1_024;
/// Most limiters for one combination of agent, destination, protocol and port: a packet asks each of them.
pub const LIMITS_PER_CELL_MAX: usize = 4;
/// Most distinct sets of limiters in the tables: as many policies as there may be.
pub const LIMIT_SETS_MAX: usize = 4_096;

/// Least rate of bytes, in an hour: 1 KiB a second. Below, one large packet waits for more than a minute.
pub const LIMIT_BYTES_PER_HOUR_MIN: u64 = 1_024 * 3_600;
/// Greatest rate of bytes, in an hour: 100 GB a second, above what one machine forwards.
pub const LIMIT_BYTES_PER_HOUR_MAX: u64 = 100_000_000_000 * 3_600;
/// Greatest rate of packets or connections, in an hour: 100 million a second, above what one machine forwards.
/// The least is one an hour.
pub const LIMIT_COUNT_PER_HOUR_MAX: u64 = 100_000_000 * 3_600;
/// Least burst of bytes that may be written: the largest packet there is, so that each one fits.
pub const LIMIT_BURST_BYTES_MIN: u64 = 65_535;
/// Least burst of bytes where none is written.
pub const LIMIT_BURST_BYTES_DEFAULT_MIN: u64 = 65_536;
/// Length of the longest burst, seconds: what an hour lets pass.
pub const LIMIT_BURST_S_MAX: u32 = 3_600;

/// What the keys of limiters are hashes of begins with this.
const KEY_DOMAIN: &[u8] = b"clawgress limiter 1\0";
/// And those of what agents share: more than the limiter itself goes into them.
const KEY_DOMAIN_SHARED: &[u8] = b"clawgress shared limiter 1\0";

/// What a limiter counts, of what an agent sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LimitUnit {
    /// Packets.
    Packets,
    /// Bytes of layer 3 and up.
    Bytes,
    /// Flows that begin.
    Connections,
}

/// Whose traffic shares a bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LimitSubject {
    /// All the sources and workloads of an agent.
    Agent,
    /// Each local workload; what comes by an interface counts for its agent.
    Workload,
    /// All agents of a team; an agent without one has a bucket of its own, here and in what follows.
    Team,
    /// All agents of a project.
    Project,
    /// All agents of an environment.
    Environment,
    /// All agents of a tenant.
    Tenant,
}

/// What becomes of what is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LimitAction {
    /// It is dropped.
    Drop,
    /// TCP of local workloads is sent later where the kernel can; anything else is dropped.
    Pace,
}

/// How fast, and for whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rate {
    pub(crate) unit: LimitUnit,
    pub(crate) count: u64,
    pub(crate) period_s: u32,
    pub(crate) burst: u64,
    pub(crate) subject: LimitSubject,
    pub(crate) over: LimitAction,
}

/// A token bucket: `count` units in `period_s` seconds, and at most `burst` at once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limiter {
    /// Id of its policy.
    pub policy: String,
    /// Names its buckets, never 0: a limiter that stays as it is keeps them in the next generation, one that
    /// changes begins with full ones. A hash of all else here.
    pub key: u64,
    /// The group whose agents share its one bucket, as [`Share::of`](crate::Share::of) names it; `None` where each
    /// has its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// What is counted.
    pub unit: LimitUnit,
    /// Units in a period, from 1.
    pub count: u64,
    /// The period, seconds: 1, 60 or 3,600.
    pub period_s: u32,
    /// Units that may pass at once, from 1; bytes from [`LIMIT_BURST_BYTES_MIN`].
    pub burst: u64,
    /// Whose traffic shares a bucket.
    pub subject: LimitSubject,
    /// What becomes of what is over.
    pub over: LimitAction,
}

// === impl Limiter ===

impl Limiter {
    pub(crate) fn new(policy: &str, rate: Rate) -> Limiter {
        let Rate { unit, count, period_s, burst, subject, over } = rate;
        Limiter {
            policy: policy.to_owned(),
            key: key(policy, rate),
            group: None,
            unit,
            count,
            period_s,
            burst,
            subject,
            over,
        }
    }

    /// The same limit for a group, whose agents share one bucket.
    pub(crate) fn shared_by(&self, group: &str) -> Limiter {
        let mut context = digest::Context::new(&digest::SHA256);
        context.update(KEY_DOMAIN_SHARED);
        context.update(&self.key.to_be_bytes());
        context.update(group.as_bytes());
        Limiter { key: first_word(context), group: Some(group.to_owned()), ..self.clone() }
    }
}

// === impl LimitSubject ===

impl LimitSubject {
    /// Every one.
    pub const ALL: [LimitSubject; 6] = [
        LimitSubject::Agent,
        LimitSubject::Workload,
        LimitSubject::Team,
        LimitSubject::Project,
        LimitSubject::Environment,
        LimitSubject::Tenant,
    ];

    /// The name in policy text.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            LimitSubject::Workload => "workload",
            LimitSubject::Agent => Share::Agent.name(),
            LimitSubject::Team => Share::Team.name(),
            LimitSubject::Project => Share::Project.name(),
            LimitSubject::Environment => Share::Environment.name(),
            LimitSubject::Tenant => Share::Tenant.name(),
        }
    }

    /// The group of `agent` whose members share a bucket, if it is in one.
    pub(crate) fn group(self, agent: &Agent) -> Option<Arc<str>> {
        match self {
            LimitSubject::Agent | LimitSubject::Workload => None,
            LimitSubject::Team => Share::Team.group(agent),
            LimitSubject::Project => Share::Project.group(agent),
            LimitSubject::Environment => Share::Environment.group(agent),
            LimitSubject::Tenant => Share::Tenant.group(agent),
        }
    }
}

fn key(policy: &str, rate: Rate) -> u64 {
    let Rate { unit, count, period_s, burst, subject, over } = rate;
    let pace = Pace { count, period_s, burst };
    bucket_key(KEY_DOMAIN, policy, &[unit as u8, subject as u8, over as u8], pace)
}

/// Names the buckets of a limit of either plane, by all that makes it: the first eight bytes of a SHA-256 that are
/// not all zero.
pub(crate) fn bucket_key(domain: &[u8], policy: &str, kinds: &[u8], pace: Pace) -> u64 {
    let mut context = digest::Context::new(&digest::SHA256);
    context.update(domain);
    context.update(&(policy.len() as u64).to_be_bytes());
    context.update(policy.as_bytes());
    context.update(kinds);
    context.update(&pace.count.to_be_bytes());
    context.update(&pace.period_s.to_be_bytes());
    context.update(&pace.burst.to_be_bytes());
    first_word(context)
}

/// The first eight bytes that are not all zero.
fn first_word(context: digest::Context) -> u64 {
    let digest = context.finish();
    let words = digest.as_ref().as_chunks::<8>().0.iter().map(|word| u64::from_be_bytes(*word));
    words.into_iter().find(|word| *word != 0).unwrap_or(1)
}

/// The first two limiters whose keys are equal, so that they would share their buckets.
pub(crate) fn collision(limiters: &[Limiter]) -> Option<[&str; 2]> {
    let mut seen: BTreeMap<u64, &str> = BTreeMap::new();
    limiters.iter().find_map(|limiter| {
        seen.insert(limiter.key, &limiter.policy).map(|first| [first, limiter.policy.as_str()])
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: Rate = Rate {
        unit: LimitUnit::Bytes,
        count: 1_000,
        period_s: 60,
        burst: 70_000,
        subject: LimitSubject::Agent,
        over: LimitAction::Drop,
    };

    #[test]
    fn a_key_is_stable_and_of_all_that_makes_a_limiter() {
        assert_eq!(Limiter::new("a", RATE), Limiter::new("a", RATE));
        // Buckets outlive the process: what it was before an upgrade it must be after.
        assert_eq!(Limiter::new("a", RATE).key, KEY_OF_A);
        let mut keys: Vec<u64> = [
            ("a", RATE),
            ("b", RATE),
            ("a", Rate { unit: LimitUnit::Packets, ..RATE }),
            ("a", Rate { unit: LimitUnit::Connections, ..RATE }),
            ("a", Rate { count: 1_001, ..RATE }),
            ("a", Rate { period_s: 1, ..RATE }),
            ("a", Rate { burst: 70_001, ..RATE }),
            ("a", Rate { subject: LimitSubject::Workload, ..RATE }),
            ("a", Rate { over: LimitAction::Pace, ..RATE }),
        ]
        .map(|(policy, rate)| key(policy, rate))
        .to_vec();
        let all = keys.len();
        keys.sort_unstable();
        keys.dedup();
        assert_eq!(keys.len(), all);
        assert!(!keys.contains(&0));
    }

    #[test]
    fn a_group_has_a_key_of_its_own_that_is_stable() {
        let limiter = Limiter::new("a", Rate { subject: LimitSubject::Team, ..RATE });
        let shared = limiter.shared_by("team acme/payments");
        assert_eq!(shared, limiter.shared_by("team acme/payments"));
        assert_eq!(shared.group.as_deref(), Some("team acme/payments"));
        let keys = [limiter.key, shared.key, limiter.shared_by("team acme/search").key];
        assert!(keys[0] != keys[1] && keys[1] != keys[2] && keys[0] != keys[2] && !keys.contains(&0));
        let other = Limiter::new("a", Rate { count: 1_001, subject: LimitSubject::Team, ..RATE });
        assert_ne!(other.shared_by("team acme/payments").key, shared.key);
    }

    /// `printf 'clawgress limiter 1\0…'` through `sha256sum`, its first 16 digits.
    const KEY_OF_A: u64 = 0x436c_573f_3134_c541;

    #[test]
    fn equal_keys_are_told() {
        let mut limiters = ["a", "b", "c"].map(|policy| Limiter::new(policy, RATE));
        assert_eq!(collision(&limiters), None);
        limiters[2].key = limiters[0].key;
        assert_eq!(collision(&limiters), Some(["a", "c"]));
    }
}
