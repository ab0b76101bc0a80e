//! What is going on, as documents for people: live flows and recent drops. Reads only.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap, HashMap};

use clawgress_api::{LiveFlow, LiveFlows, LiveLimit, LiveQuery, RecentDrop};
use clawgress_ebpf_common::{
    Bucket, BucketKey, DropReason, Flow, FlowKey, SUBJECT_CGROUP, SUBJECT_SHARED, action, hook,
};
use clawgress_identity::AgentId;
use clawgress_policy::kernel::{LimitUnit, Limiter};
use tonic::Status;

use super::buckets::{self, Counts};
use super::drops::{Row, Tally};
use super::names::{Names, monotonic_ns, request};
use super::plane::{KernelPlane, Plane};

/// Rows of an answer if nobody says how many, and at most: some megabytes.
const ROWS_DEFAULT: u64 = 1000;
/// See [`ROWS_DEFAULT`].
const ROWS_MAX: u64 = 10_000;

/// A query, understood.
struct Wanted {
    /// The agent's index; 0 for nobody known.
    agent: Option<u32>,
    limit: usize,
}

/// The live flows asked for.
///
/// # Errors
/// If the query isn't understood, or there is no kernel plane.
pub fn flows(plane: &Plane, query: &LiveQuery) -> Result<LiveFlows, Status> {
    let plane = kernel(plane)?;
    let wanted = Wanted::new(query, &plane.names)?;
    let mut total = 0;
    // The latest, within the bound: the heap's top is the one idle for longest.
    let mut latest = BinaryHeap::new();
    let mut records = HashMap::new();
    let walked = tokio::task::block_in_place(|| {
        plane.flows.each(|key, flow| {
            if wanted.agent.is_some_and(|agent| agent != flow.agent) {
                return;
            }
            total += 1;
            latest.push(Reverse((flow.last_ns, total)));
            records.insert(total, (*key, *flow));
            if latest.len() > wanted.limit
                && let Some(Reverse((_, oldest))) = latest.pop()
            {
                records.remove(&oldest);
            }
        })
    });
    walked.map_err(|e| Status::internal(format!("cannot read the flow table: {e:#}")))?;
    let mut records: Vec<_> = records.into_values().collect();
    records.sort_unstable_by_key(|(_, flow)| Reverse(flow.last_ns));
    let now_ns = monotonic_ns();
    let flows = records.iter().map(|(key, flow)| live(key, flow, &plane.names, now_ns)).collect();
    Ok(LiveFlows { total, flows })
}

/// The recent drops asked for, the latest first.
///
/// # Errors
/// As [`flows`].
pub fn drops(plane: &Plane, query: &LiveQuery) -> Result<Vec<RecentDrop>, Status> {
    let plane = kernel(plane)?;
    let wanted = Wanted::new(query, &plane.names)?;
    let rows = plane.drops.latest(wanted.limit, |row| wanted.agent.is_none_or(|agent| agent == row.agent));
    Ok(rows.iter().map(|(row, tally)| recent(row, tally, &plane.names)).collect())
}

/// The rate limits asked for, as they are held to agents and local commands, the emptiest first; and, for nobody
/// known, that of sources without a binding.
///
/// # Errors
/// As [`flows`].
pub fn limits(plane: &Plane, query: &LiveQuery) -> Result<Vec<LiveLimit>, Status> {
    let plane = kernel(plane)?;
    let wanted = Wanted::new(query, &plane.names)?;
    if query.totals {
        return totals(plane, &wanted);
    }
    let (all, unbound) = tokio::task::block_in_place(|| {
        let buckets = plane.buckets.lock();
        Ok::<_, anyhow::Error>((buckets.all()?, buckets.unbound()?))
    })
    .map_err(|e| unread(&e))?;
    let limiters = plane.limiters();
    let by_key = by_key(&limiters);
    let shared = shared_by(plane, wanted.agent);
    let now_ns = monotonic_ns();
    let is_wanted = |bucket: &Bucket| wanted.agent.is_none_or(|agent| agent == bucket.agent);
    let is_theirs = |key: &BucketKey, bucket: &Bucket| match key.subject {
        SUBJECT_SHARED => wanted.agent.is_none() || shared.contains(&key.limiter),
        _ => is_wanted(bucket),
    };
    let mut found: Vec<_> = all
        .iter()
        .filter(|(key, bucket)| is_theirs(key, bucket))
        .filter_map(|(key, bucket)| {
            let limiter = by_key.get(&key.limiter)?;
            Some(limit(key, bucket, limiter, plane, now_ns))
        })
        .collect();
    if is_wanted(&unbound) {
        found.push(unbound_limit(plane.unbound_per_s, &unbound, now_ns));
    }
    found.sort_by_key(|l| (u128::from(l.room) << 64).checked_div(u128::from(l.burst)));
    found.truncate(wanted.limit);
    Ok(found)
}

/// A row for each agent and limiter, those with the most drops first.
fn totals(plane: &KernelPlane, wanted: &Wanted) -> Result<Vec<LiveLimit>, Status> {
    let totals = tokio::task::block_in_place(|| plane.buckets.lock().totals()).map_err(|e| unread(&e))?;
    let limiters = plane.limiters();
    let by_key = by_key(&limiters);
    let shared = shared_by(plane, wanted.agent);
    let is_theirs = |key: u64, agent: u32| {
        wanted.agent.is_none_or(|wanted| wanted == agent && agent != 0)
            || u64::from(agent) == SUBJECT_SHARED && shared.contains(&key)
    };
    let mut found: Vec<_> = totals
        .iter()
        .filter(|((key, agent), _)| is_theirs(*key, *agent))
        .filter_map(|((key, agent), counts)| {
            let (limiter, key) = (by_key.get(key)?, BucketKey { limiter: *key, subject: u64::from(*agent) });
            // Of several buckets nobody can say how much room there is; of one, `limits` without totals does.
            let Counts { passed, dropped } = *counts;
            let bucket = Bucket { full_ns: 0, passed, dropped, agent: *agent, pad: 0 };
            Some(LiveLimit { room: 0, ..limit(&key, &bucket, limiter, plane, 0) })
        })
        .collect();
    found.sort_by_key(|l| Reverse((l.dropped, l.passed)));
    found.truncate(wanted.limit);
    Ok(found)
}

/// Keys of the limiters whose buckets an agent shares with its group, by the live tables.
fn shared_by(plane: &KernelPlane, agent: Option<u32>) -> BTreeSet<u64> {
    let Some(agent) = agent else { return BTreeSet::new() };
    plane
        .with_tables(|tables| {
            let Some(class) = tables.agents.get(&agent) else { return BTreeSet::new() };
            let sets: BTreeSet<u32> =
                tables.verdicts.iter().filter(|c| c.agent_class == *class).map(|c| c.limits).collect();
            let numbers = sets.iter().filter_map(|set| tables.limits.get(*set as usize)).flatten();
            let limiters = numbers.filter_map(|number| tables.limiters.get(*number as usize));
            limiters.filter(|limiter| limiter.group.is_some()).map(|limiter| limiter.key).collect()
        })
        .unwrap_or_default()
}

fn by_key(limiters: &[Limiter]) -> HashMap<u64, &Limiter> {
    limiters.iter().map(|limiter| (limiter.key, limiter)).collect()
}

fn unread(error: &anyhow::Error) -> Status {
    Status::internal(format!("cannot read the buckets: {error:#}"))
}

fn limit(key: &BucketKey, bucket: &Bucket, limiter: &Limiter, plane: &KernelPlane, now_ns: u64) -> LiveLimit {
    let is_cgroup = key.subject & SUBJECT_CGROUP != 0;
    let unit = match limiter.unit {
        LimitUnit::Packets => "packets",
        LimitUnit::Bytes => "bytes",
        LimitUnit::Connections => "connections",
    };
    LiveLimit {
        agent: if limiter.group.is_some() { None } else { plane.names.agent(bucket.agent) },
        group: limiter.group.clone(),
        cgroup: is_cgroup.then_some(key.subject & !SUBJECT_CGROUP),
        policy: Some(limiter.policy.clone()),
        unit: unit.to_owned(),
        count: limiter.count,
        period_s: limiter.period_s,
        burst: limiter.burst,
        over: plane.pacing.over(limiter).to_owned(),
        room: buckets::room(limiter.count, limiter.period_s, limiter.burst, bucket, now_ns),
        passed: bucket.passed,
        dropped: bucket.dropped,
    }
}

fn unbound_limit(all_per_s: u32, bucket: &Bucket, now_ns: u64) -> LiveLimit {
    let (count, burst) = (u64::from(all_per_s), buckets::unbound_burst(all_per_s));
    LiveLimit {
        agent: None,
        group: None,
        cgroup: None,
        policy: None,
        unit: "connections".to_owned(),
        count,
        period_s: 1,
        burst,
        over: "drop".to_owned(),
        room: buckets::room(count, 1, burst, bucket, now_ns),
        passed: bucket.passed,
        dropped: bucket.dropped,
    }
}

fn kernel(plane: &Plane) -> Result<&KernelPlane, Status> {
    match plane {
        Plane::Kernel(plane) => Ok(plane),
        Plane::None { .. } => Err(Status::failed_precondition(
            "`mode = \"none\"` has no kernel plane, which is what sees flows and drops; see `clawgressctl audit`",
        )),
    }
}

fn live(key: &FlowKey, flow: &Flow, names: &Names, now_ns: u64) -> LiveFlow {
    let (source, destination) = names.ends(key);
    let since_ms = |at_ns: u64| now_ns.saturating_sub(at_ns) / 1_000_000;
    let action = match flow.action {
        action::DIRECT => "direct",
        action::STEER => "steer",
        action::LOCAL => "local",
        _ => "deny",
    };
    LiveFlow {
        request: request(key, flow.created_ns),
        agent: names.agent(flow.agent),
        source,
        destination,
        action: action.to_owned(),
        policies: names.policies(flow.generation, flow.policies),
        generation: flow.generation,
        age_ms: since_ms(flow.created_ns),
        idle_ms: since_ms(flow.last_ns),
        packets_sent: flow.tx_packets,
        bytes_sent: flow.tx_bytes,
        packets_received: flow.rx_packets,
        bytes_received: flow.rx_bytes,
    }
}

fn recent(row: &Row, tally: &Tally, names: &Names) -> RecentDrop {
    let (source, destination) = names.ends(&row.flow);
    let hook = match tally.hook {
        hook::XDP => "xdp",
        hook::TC_INGRESS => "tc_ingress",
        hook::TC_EGRESS => "tc_egress",
        _ => "cgroup",
    };
    let reason = DropReason::from_code(row.reason).unwrap_or(DropReason::Malformed);
    let first = names.time(tally.first_ns);
    let lasting = i64::try_from(tally.last_ns.saturating_sub(tally.first_ns)).unwrap_or(i64::MAX);
    let last = first.checked_add(jiff::SignedDuration::from_nanos(lasting)).unwrap_or(first);
    RecentDrop {
        agent: names.agent(row.agent),
        source,
        destination,
        reason: reason.name().to_owned(),
        hook: hook.to_owned(),
        count: tally.count,
        first,
        last,
    }
}

// === impl Wanted ===

impl Wanted {
    fn new(query: &LiveQuery, names: &Names) -> Result<Wanted, Status> {
        let agent = match query.agent.as_deref() {
            None => None,
            Some("anonymous") => Some(0),
            Some(name) => {
                let id: AgentId =
                    name.parse().map_err(|e| Status::invalid_argument(format!("{e}; or use `anonymous`")))?;
                let index = names.index(&id).ok_or_else(|| {
                    Status::invalid_argument(format!(
                        "there is no agent `{id}`; see `clawgressctl agent list`"
                    ))
                })?;
                Some(index)
            }
        };
        let limit = query.limit.unwrap_or(ROWS_DEFAULT).clamp(1, ROWS_MAX);
        Ok(Wanted { agent, limit: usize::try_from(limit).unwrap_or(usize::MAX) })
    }
}
