//! Every cell put to the evaluator: what a tenant's set and the platform's above it say together. Must decide by Cedar's
//! authorizer only.

use std::cell::LazyCell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ptr;
use std::sync::Arc;

use clawgress_identity::Agent;

use super::cells::Kind;
use super::limiter::{self, LIMITERS_MAX};
use super::plan::{AgentKey, Atoms, Renumbering, Rule};
use super::tabulate::{Numbers, Row, Value, check, may_pass};
use super::{EVALUATIONS_MAX, LIMITS_PER_CELL_MAX, LimitSubject, Limiter};
use crate::request::{Decision, Operation, Request, Transport};
use crate::set::{Given, Inner, obliged_to};
use crate::vocabulary::ActionKind;
use crate::{PolicyErrors, PolicySet};

/// What one pair of decisions comes to at an address that need not be named, and at one that must be.
#[derive(Clone, Copy)]
pub(super) struct Guarded<T> {
    open: T,
    reserved: T,
}

/// The policies that tables are made of: each once, however many stand under it.
pub(super) struct Court<'a> {
    halves: Vec<Half<'a>>,
    panels: Vec<Panel<'a>>,
    /// The atoms of all.
    pub(super) atoms: Atoms,
    /// The limiters of all, ascending by their policies' ids: those of each agent's own buckets.
    limiters: Vec<Limiter>,
}

/// A tenant's set or the platform's.
struct Half<'a> {
    inner: &'a Inner,
    /// What its atoms are among those of all.
    atoms: Renumbering,
    /// Where its limiters are among those of all.
    limiters: Vec<u32>,
}

/// What decides for some agents: a tenant's half, and the platform's above it.
struct Panel<'a> {
    own: usize,
    platform: Option<usize>,
    given: Given<'a>,
}

/// Values by which agents of one panel are decided alike: what policies read of them, and the groups in which they
/// share what limits let pass.
pub(super) type PanelKey = (usize, AgentKey, Option<AgentKey>, Vec<Option<Arc<str>>>);

/// Asks the evaluator.
pub(super) struct Judge<'a> {
    pub(super) court: &'a Court<'a>,
    pub(super) values: Numbers<Value>,
    pub(super) rows: Numbers<Row>,
    /// Limiters that groups share, as they are met: their numbers follow those of the court's.
    shared: Vec<Limiter>,
    /// Their numbers, by what they are the limiter of.
    shares: BTreeMap<(u32, Arc<str>), u32>,
    evaluations: usize,
}

/// The policies of a half that can match one agent.
struct Slice<'a> {
    half: &'a Half<'a>,
    connect: cedar_policy::PolicySet,
    direct: cedar_policy::PolicySet,
    obligations: cedar_policy::PolicySet,
    destinations: BTreeSet<u32>,
    ports: BTreeSet<u32>,
    /// Whether there is a guard of `direct`, which may say no, or fail.
    asks_direct: bool,
}

/// The slices of one panel.
struct Bench<'a> {
    agent: &'a Agent,
    given: Given<'a>,
    own: Slice<'a>,
    platform: Option<Slice<'a>>,
}

// === impl Court ===

impl<'a> Court<'a> {
    /// Of these sets, each with what stands above it.
    pub(super) fn new(sets: &[&'a PolicySet]) -> Result<Court<'a>, PolicyErrors> {
        let mut court =
            Court { halves: Vec::new(), panels: Vec::new(), atoms: Atoms::default(), limiters: Vec::new() };
        for set in sets {
            let own = court.seat(set.inner());
            let platform = set.above().map(|inner| court.seat(inner));
            court.panels.push(Panel { own, platform, given: set.given() });
        }
        court.gather_limiters()?;
        Ok(court)
    }

    fn seat(&mut self, inner: &'a Inner) -> usize {
        if let Some(seated) = self.halves.iter().position(|half| ptr::eq(half.inner, inner)) {
            return seated;
        }
        let atoms = self.atoms.take_in(&inner.plan().atoms);
        self.halves.push(Half { inner, atoms, limiters: Vec::new() });
        self.halves.len() - 1
    }

    /// Limits of several tenants that are written alike are one limiter: its buckets are each agent's own, or those of
    /// groups, whose names carry their tenant.
    fn gather_limiters(&mut self) -> Result<(), PolicyErrors> {
        let name = |limiter: &Limiter| (limiter.policy.clone(), limiter.key);
        let all = self.halves.iter().flat_map(|half| half.inner.limiters());
        let by_name: BTreeMap<(String, u64), &Limiter> =
            all.map(|limiter| (name(limiter), limiter)).collect();
        self.limiters = by_name.values().map(|limiter| (*limiter).clone()).collect();
        let remedy = "write them for teams or tenants rather than single agents";
        check(self.limiters.len(), LIMITERS_MAX, "rate limits", remedy)?;
        if let Some([first, second]) = limiter::collision(&self.limiters) {
            return Err(would_share(first, second));
        }
        let numbers: BTreeMap<&(String, u64), u32> = by_name.keys().zip(0_u32..).collect();
        for half in &mut self.halves {
            let number = |limiter: &Limiter| numbers.get(&name(limiter)).copied();
            half.limiters = half.inner.limiters().iter().filter_map(number).collect();
        }
        Ok(())
    }

    /// By what an agent of a panel is decided.
    pub(super) fn key(&self, panel: usize, agent: &Agent) -> Option<PanelKey> {
        let Panel { own, platform, .. } = self.panels.get(panel)?;
        let key = |half: usize| Some(self.halves.get(half)?.inner.plan().key(agent));
        let halves = [Some(*own), *platform].into_iter().flatten().filter_map(|half| self.halves.get(half));
        let subjects: BTreeSet<LimitSubject> =
            halves.flat_map(|half| half.inner.limiters()).map(|limiter| limiter.subject).collect();
        let groups = subjects.into_iter().map(|subject| subject.group(agent)).collect();
        Some((panel, key(*own)?, platform.and_then(key), groups))
    }

    /// The panel's policies that can match an agent.
    fn bench<'b>(&'b self, panel: usize, agent: &'b Agent) -> Result<Bench<'b>, PolicyErrors> {
        let gone = || PolicyErrors::one("the policies to decide by are not there");
        let Panel { own, platform, given } = self.panels.get(panel).ok_or_else(gone)?;
        let slice = |half: usize| Slice::new(self.halves.get(half).ok_or_else(gone)?, agent);
        Ok(Bench { agent, given: *given, own: slice(*own)?, platform: platform.map(slice).transpose()? })
    }
}

// === impl Slice ===

impl<'a> Slice<'a> {
    fn new(half: &'a Half<'a>, agent: &Agent) -> Result<Slice<'a>, PolicyErrors> {
        let rules = half.inner.plan().rules_for(agent);
        let set = |applies: fn(&Rule) -> bool| {
            let policies = rules.iter().filter(|r| applies(r)).filter_map(|r| r.cedar.clone());
            cedar_policy::PolicySet::from_policies(policies).map_err(|e| PolicyErrors::one(e.to_string()))
        };
        Ok(Slice {
            half,
            connect: set(|r| r.connect)?,
            direct: set(|r| r.direct)?,
            obligations: set(|r| r.is_obligation)?,
            destinations: half.atoms.destinations(rules.iter().flat_map(|r| &r.destinations)).collect(),
            ports: half.atoms.ports(rules.iter().flat_map(|r| &r.ports)).collect(),
            asks_direct: rules.iter().any(|r| r.direct),
        })
    }

    /// What its guards and limits say of `connect`, and the limits to keep.
    fn connect(&self, request: &Request<'_>, given: Given<'_>) -> (Decision, Vec<String>) {
        let obliged = self.half.inner.decide_among(&self.obligations, request, given);
        obliged_to(self.half.inner.decide_among(&self.connect, request, given), obliged)
    }

    fn direct(&self, request: &Request<'_>, given: Given<'_>) -> Decision {
        self.half.inner.decide_among(&self.direct, request, given)
    }

    /// Indices of the limiters of these policies; both ascend by the policies' ids.
    fn limits(&self, obligations: &[String]) -> impl Iterator<Item = u32> {
        let index = |id: &String| self.half.inner.limiters().binary_search_by(|l| l.policy.cmp(id)).ok();
        obligations.iter().filter_map(index).filter_map(|n| self.half.limiters.get(n)).copied()
    }
}

// === impl Bench ===

impl Bench<'_> {
    fn slices(&self) -> impl Iterator<Item = &Slice<'_>> {
        [Some(&self.own), self.platform.as_ref()].into_iter().flatten()
    }

    /// Those of `atoms` that policies read which can match the agent.
    fn relevant(&self, atoms: &[u32], of: for<'b> fn(&'b Slice<'_>) -> &'b BTreeSet<u32>) -> Vec<u32> {
        let is_read = |atom: &&u32| self.slices().any(|slice| of(slice).contains(atom));
        atoms.iter().filter(is_read).copied().collect()
    }

    /// Whether `connect` is allowed, with the guards of what must be named, which ask the tenant's set alone; and the
    /// limits to keep, with their policies.
    fn connect(
        &self,
        ip: IpAddr,
        port: u16,
        transport: Transport,
    ) -> (Guarded<Decision>, Vec<u32>, Vec<String>) {
        let request = Request { agent: self.agent, operation: Operation::Connect { ip, port, transport } };
        let inner = self.own.half.inner;
        let (own, mut obligations) = self.own.connect(&request, self.given);
        let mut limits: Vec<u32> = self.own.limits(&obligations).collect();
        let open = inner.named(ActionKind::Connect, own, transport);
        let mut guarded = Guarded { reserved: inner.guard(open.clone(), ip), open };
        if let Some(slice) = &self.platform {
            let (above, obliged) = slice.connect(&request, self.given);
            limits.extend(slice.limits(&obliged));
            limits.sort_unstable();
            obligations.extend(obliged);
            let Guarded { open, reserved } = guarded;
            guarded = Guarded { open: open.under(above.clone()), reserved: reserved.under(above) };
        }
        (guarded, limits, obligations)
    }

    fn direct(&self, ip: IpAddr, port: u16, transport: Transport) -> Decision {
        let request = Request { agent: self.agent, operation: Operation::Direct { ip, port, transport } };
        let own = self.own.direct(&request, self.given);
        let own = self.own.half.inner.named(ActionKind::Direct, own, transport);
        match &self.platform {
            None => own,
            Some(slice) => own.under(slice.direct(&request, self.given)),
        }
    }
}

// === impl Judge ===

impl<'a> Judge<'a> {
    pub(super) fn new(court: &'a Court<'a>) -> Judge<'a> {
        Judge {
            court,
            values: Numbers::new(),
            rows: Numbers::new(),
            shared: Vec::new(),
            shares: BTreeMap::new(),
            evaluations: 0,
        }
    }

    /// All limiters, by the numbers that values have of them.
    ///
    /// # Errors
    /// If there are too many, or two have one key.
    pub(super) fn limiters(&self) -> Result<Vec<Limiter>, PolicyErrors> {
        let limiters = [self.court.limiters.as_slice(), &self.shared].concat();
        let remedy =
            "limit agents by tenant rather than by team, project or environment, or with fewer policies";
        check(limiters.len(), LIMITERS_MAX, "rate limits, one for each group that shares one", remedy)?;
        match limiter::collision(&limiters) {
            None => Ok(limiters),
            Some([first, second]) => Err(would_share(first, second)),
        }
    }

    /// The limits of an agent: of each that its group shares, the group's.
    fn of_groups(&mut self, agent: &Agent, limits: Vec<u32>) -> Vec<u32> {
        let court = self.court;
        let of_group = |number: u32| {
            let limiter = court.limiters.get(number as usize)?;
            let group = limiter.subject.group(agent)?;
            let next = u32::try_from(court.limiters.len() + self.shared.len()).ok()?;
            Some(*self.shares.entry((number, group)).or_insert_with_key(|(_, group)| {
                self.shared.push(limiter.shared_by(group));
                next
            }))
        };
        let mut of_group = of_group;
        let mut limits: Vec<u32> =
            limits.into_iter().map(|number| of_group(number).unwrap_or(number)).collect();
        limits.sort_unstable();
        limits
    }

    /// Numbers of the rows of every destination kind, for this agent. Only the atoms of policies that
    /// can match the agent tell destinations and ports apart.
    pub(super) fn agent(
        &mut self,
        (panel, agent): (usize, &Agent),
        destinations: &[Kind],
        ports: &[(u16, Vec<u32>)],
    ) -> Result<Vec<u32>, PolicyErrors> {
        let court = self.court;
        let bench = court.bench(panel, agent)?;
        let mut port_numbers = Numbers::new();
        let mut port_samples = Vec::new();
        let port_of: Vec<u32> = ports
            .iter()
            .map(|(first, atoms)| {
                let number = port_numbers.number(bench.relevant(atoms, |slice| &slice.ports));
                if number as usize == port_samples.len() {
                    port_samples.push(*first);
                }
                number
            })
            .collect();
        let mut known: BTreeMap<Vec<u32>, Guarded<u32>> = BTreeMap::new();
        let mut rows = Vec::with_capacity(destinations.len());
        for Kind { ip, is_reserved, atoms } in destinations {
            let key = bench.relevant(atoms, |slice| &slice.destinations);
            let row = match known.get(&key) {
                Some(row) => *row,
                None => {
                    let row = self.row(&bench, *ip, &port_of, &port_samples)?;
                    *known.entry(key).or_insert(row)
                }
            };
            rows.push(if *is_reserved { row.reserved } else { row.open });
        }
        Ok(rows)
    }

    fn row(
        &mut self,
        bench: &Bench<'_>,
        ip: IpAddr,
        port_of: &[u32],
        port_samples: &[u16],
    ) -> Result<Guarded<u32>, PolicyErrors> {
        let named = bench.own.half.inner.plan().transports();
        let transports: Vec<Transport> = std::iter::once(Transport::Icmp).chain(named).collect();
        let portless = transports
            .into_iter()
            .map(|transport| Ok((transport, self.value(bench, ip, 0, transport)?)))
            .collect::<Result<Vec<_>, PolicyErrors>>()?;
        let mut by_port = |transport| {
            port_samples
                .iter()
                .map(|port| self.value(bench, ip, *port, transport))
                .collect::<Result<Vec<_>, _>>()
        };
        let (tcp, udp) = (by_port(Transport::Tcp)?, by_port(Transport::Udp)?);
        let mut row = |of: fn(&Guarded<u32>) -> u32| {
            let spread = |values: &[Guarded<u32>]| -> Vec<u32> {
                port_of.iter().filter_map(|n| values.get(*n as usize)).map(of).collect()
            };
            let portless = portless.iter().map(|(transport, value)| (*transport, of(value))).collect();
            self.rows.number(Row { portless, tcp: spread(&tcp), udp: spread(&udp) })
        };
        Ok(Guarded { open: row(|v| v.open), reserved: row(|v| v.reserved) })
    }

    fn value(
        &mut self,
        bench: &Bench<'_>,
        ip: IpAddr,
        port: u16,
        transport: Transport,
    ) -> Result<Guarded<u32>, PolicyErrors> {
        self.evaluations += 1;
        check(
            self.evaluations,
            EVALUATIONS_MAX,
            "decisions to compile",
            "write policies for teams and named sets rather than single agents, addresses and ports",
        )?;
        let (guarded, limits, obligations) = bench.connect(ip, port, transport);
        let asks_direct = bench.slices().any(|slice| slice.asks_direct);
        let opens = bench.slices().any(|slice| slice.half.inner.opens_by_name());
        let direct = LazyCell::new(|| bench.direct(ip, port, transport));
        let value = |reach: Decision| {
            let (action, policies) = super::combine(transport, reach, || (*direct).clone());
            let limits = if may_pass(transport, action, opens) { limits.clone() } else { Vec::new() };
            let never_direct =
                asks_direct && super::may_be_learned(transport, action) && super::forbids(&direct);
            Value { action, policies, limits, never_direct }
        };
        let (mut open, mut reserved) = (value(guarded.open), value(guarded.reserved));
        if open.limits.len() > LIMITS_PER_CELL_MAX || reserved.limits.len() > LIMITS_PER_CELL_MAX {
            let place = format!("{} of `{}` to {ip}, port {port}", transport.name(), bench.agent.id);
            return Err(too_many_limits(&place, &obligations));
        }
        // What never passes needs no buckets: a group that may not go there takes none of the room for them.
        for value in [&mut open, &mut reserved] {
            value.limits = self.of_groups(bench.agent, std::mem::take(&mut value.limits));
        }
        Ok(Guarded { open: self.values.number(open), reserved: self.values.number(reserved) })
    }
}

fn would_share(first: &str, second: &str) -> PolicyErrors {
    PolicyErrors::one(format!(
        "the policies `{first}` and `{second}` of two tenants would share their buckets: give one of them another id or burst"
    ))
}

fn too_many_limits(place: &str, obligations: &[String]) -> PolicyErrors {
    let shown = obligations.iter().map(|id| format!("`{id}`")).collect::<Vec<_>>().join(", ");
    PolicyErrors::one(format!(
        "{} rate limits apply at once to {place}, and {LIMITS_PER_CELL_MAX} may: {shown}: narrow some, or put them together",
        obligations.len()
    ))
}
