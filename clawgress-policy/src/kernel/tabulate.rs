//! Cells to tables: decides every distinct cell once, then gives agents, destinations and ports that
//! are decided alike one class. Must decide by the real evaluator only.

use std::collections::BTreeMap;
use std::net::IpAddr;

use clawgress_ebpf_common::DropReason;
use clawgress_identity::Agent;

use super::cells::{self, Cell, Destinations, PortCell};
use super::judge::{Court, Judge};
use super::{
    KernelAction, KernelTables, LIMIT_SETS_MAX, Limiter, MATRIX_CELLS_MAX, PREFIXES_MAX, VERDICTS_MAX,
    VerdictCell, default_reason,
};
use crate::prefix::{Prefix, bits};
use crate::request::Transport;
use crate::{PolicyErrors, PolicySet};

/// Values to dense numbers, in order of first appearance.
#[derive(Debug)]
pub(super) struct Numbers<T: Ord> {
    numbers: BTreeMap<T, u32>,
}

impl<T: Ord> Numbers<T> {
    pub(super) fn new() -> Self {
        Numbers { numbers: BTreeMap::new() }
    }

    pub(super) fn number(&mut self, value: T) -> u32 {
        let next = u32::try_from(self.numbers.len()).unwrap_or(u32::MAX);
        *self.numbers.entry(value).or_insert(next)
    }

    fn len(&self) -> usize {
        self.numbers.len()
    }

    /// The values by number.
    fn into_values(self) -> Vec<T> {
        let mut values: Vec<(u32, T)> = self.numbers.into_iter().map(|(v, n)| (n, v)).collect();
        values.sort_by_key(|(n, _)| *n);
        values.into_iter().map(|(_, v)| v).collect()
    }
}

/// What a cell does, why, and how fast at most.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Value {
    pub(super) action: KernelAction,
    pub(super) policies: Vec<String>,
    /// Indices of limiters, ascending.
    pub(super) limits: Vec<u32>,
    pub(super) never_direct: bool,
}

/// Numbers of the values at one destination for one agent: what has no ports, then TCP and UDP by port
/// kind.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Row {
    pub(super) portless: Vec<(Transport, u32)>,
    pub(super) tcp: Vec<u32>,
    pub(super) udp: Vec<u32>,
}

/// Port cells with the same true atoms are one kind.
struct PortKinds {
    /// Kind of each port cell.
    of_cell: Vec<u32>,
    /// First port of a cell of the kind, and its true atoms.
    samples: Vec<(u16, Vec<u32>)>,
}

/// Tables for agents, each decided by the set that `panel` says, of `sets`.
pub(super) fn tabulate(
    sets: &[&PolicySet],
    panel: impl Fn(&Agent) -> usize,
    agents: &[Agent],
) -> Result<KernelTables, PolicyErrors> {
    let court = Court::new(sets)?;
    // Cells with the same true atoms, reserved or not, are one kind; cell 0 is the whole space.
    let Destinations { cells, kinds } = cells::destinations(&court.atoms);
    check(cells.len(), PREFIXES_MAX, "destination prefixes", "aggregate prefixes in the named sets")?;
    let ports = cells::ports(&court.atoms);
    let port_kinds = port_kinds(&ports);

    let mut agent_keys = Numbers::new();
    let mut key_samples: Vec<(usize, &Agent)> = Vec::new();
    let mut key_of_agent: Vec<(u32, u32)> = Vec::with_capacity(agents.len());
    for agent in agents {
        let panel = panel(agent);
        // One that nobody decides for is in no class, and so anonymous.
        let Some(key) = court.key(panel, agent) else { continue };
        let key = agent_keys.number(key);
        if key as usize == key_samples.len() {
            key_samples.push((panel, agent));
        }
        key_of_agent.push((agent.index, key));
    }
    check(
        key_samples.len().saturating_mul(kinds.len()),
        MATRIX_CELLS_MAX,
        "combinations of agents and destinations",
        "write policies for teams and named sets rather than single agents and addresses",
    )?;

    let mut judge = Judge::new(&court);
    // The defaults first, so that their numbers are the lowest.
    for transport in [Transport::Tcp, Transport::Gre] {
        judge.values.number(default_value(transport));
    }
    let matrix: Vec<Vec<u32>> = key_samples
        .iter()
        .map(|sample| judge.agent(*sample, &kinds, &port_kinds.samples))
        .collect::<Result<_, _>>()?;
    let (limiters, places) = in_order(judge.limiters()?);
    let mut values = judge.values.into_values();
    for value in &mut values {
        value.limits = value.limits.iter().filter_map(|limit| places.get(*limit as usize)).copied().collect();
        value.limits.sort_unstable();
    }
    let rows = judge.rows.into_values();
    let kinds = kinds.len();
    Classes { cells: &cells, kinds, ports: &ports, port_kinds: &port_kinds, values, rows, limiters }
        .tables(&matrix, &key_of_agent)
}

pub(super) fn check(count: usize, bound: usize, what: &str, remedy: &str) -> Result<(), PolicyErrors> {
    if count <= bound {
        return Ok(());
    }
    Err(PolicyErrors::one(format!(
        "the kernel tables would need {count} {what} and may have {bound}: {remedy}"
    )))
}

/// Limiters in the order of their policies' ids, and where each is then.
fn in_order(limiters: Vec<Limiter>) -> (Vec<Limiter>, Vec<u32>) {
    let mut order: Vec<(usize, Limiter)> = limiters.into_iter().enumerate().collect();
    order.sort_by(|(_, a), (_, b)| (&a.policy, &a.group, a.key).cmp(&(&b.policy, &b.group, b.key)));
    let mut places = vec![0; order.len()];
    for ((was, _), is) in order.iter().zip(0_u32..) {
        if let Some(place) = places.get_mut(*was) {
            *place = is;
        }
    }
    (order.into_iter().map(|(_, limiter)| limiter).collect(), places)
}

/// What the kernel does where there is no cell.
fn default_value(transport: Transport) -> Value {
    let action = KernelAction::Deny(default_reason(transport).code());
    Value { action, policies: Vec::new(), limits: Vec::new(), never_direct: false }
}

fn port_kinds(ports: &[PortCell]) -> PortKinds {
    let mut kinds = Numbers::new();
    let mut samples = Vec::new();
    let of_cell = ports
        .iter()
        .map(|cell| {
            let kind = kinds.number(cell.atoms.clone());
            if kind as usize == samples.len() {
                samples.push((cell.first, cell.atoms.clone()));
            }
            kind
        })
        .collect();
    PortKinds { of_cell, samples }
}

/// Port ranges with their classes, and a port kind for each class.
type PortClasses = (Vec<(u16, u16)>, Vec<usize>);

/// Whether a packet of the cell may pass: also where nobody reads it, since the kernel lets it through by what it
/// learned from DNS, or to the gateway's DNS; and where nothing permits it by its address, if policy `opens` ports by name.
pub(super) fn may_pass(transport: Transport, action: KernelAction, opens: bool) -> bool {
    match action {
        KernelAction::Deny(code) => {
            code == DropReason::InspectionRequired.code()
                || opens && transport.has_ports() && code == DropReason::PolicyDenied.code()
        }
        KernelAction::Steer | KernelAction::Direct => true,
    }
}

/// Gives equal agents, destinations and ports one class each.
struct Classes<'a> {
    cells: &'a [Cell],
    /// How many kinds of cells there are.
    kinds: usize,
    ports: &'a [PortCell],
    port_kinds: &'a PortKinds,
    values: Vec<Value>,
    rows: Vec<Row>,
    limiters: Vec<Limiter>,
}

impl Classes<'_> {
    fn tables(&self, matrix: &[Vec<u32>], keys: &[(u32, u32)]) -> Result<KernelTables, PolicyErrors> {
        // Agents with equal rows; classes from 1, because 0 is the unauthenticated source.
        let mut agent_numbers = Numbers::new();
        let class_of_key: Vec<u32> =
            matrix.iter().map(|rows| agent_numbers.number(rows.clone()) + 1).collect();
        let agents = keys
            .iter()
            .filter_map(|(index, key)| Some((*index, *class_of_key.get(*key as usize)?)))
            .collect();
        let agent_rows = agent_numbers.into_values();

        // Destinations with equal columns. Cell 0 is the whole space, so its class is 0; where nested
        // prefixes leave nothing of it, the class goes to whatever comes first, and no address has it.
        let mut columns = Numbers::new();
        let column = |kind: u32| -> Vec<u32> {
            agent_rows.iter().filter_map(|rows| rows.get(kind as usize)).copied().collect()
        };
        let mut class_of_kind: Vec<Option<u32>> = vec![None; self.kinds];
        for kind in self.cells.iter().filter_map(|cell| cell.kind) {
            if let Some(class) = class_of_kind.get_mut(kind as usize) {
                class.get_or_insert_with(|| columns.number(column(kind)));
            }
        }
        let destinations = self.destinations(&class_of_kind);
        let class_columns = columns.into_values();

        let (ports, port_class_kinds) = self.port_classes()?;
        let (mut policies, mut limits) = (Numbers::new(), Numbers::new());
        policies.number(Vec::new());
        limits.number(Vec::new());
        let mut verdicts = Vec::new();
        for (agent_class, number) in (1_u32..).zip(0..agent_rows.len()) {
            for (destination_class, column) in (0_u32..).zip(&class_columns) {
                let Some(row) = column.get(number).and_then(|row| self.rows.get(*row as usize)) else {
                    continue;
                };
                for (transport, port_class, value) in cells_of(row, &port_class_kinds) {
                    let Some(value) = self.values.get(value as usize) else { continue };
                    if *value == default_value(transport) {
                        continue;
                    }
                    verdicts.push(VerdictCell {
                        agent_class,
                        destination_class,
                        transport,
                        port_class,
                        action: value.action,
                        policies: policies.number(value.policies.clone()),
                        limits: limits.number(value.limits.clone()),
                        never_direct: value.never_direct,
                    });
                }
                check(
                    verdicts.len(),
                    VERDICTS_MAX,
                    "verdicts",
                    "use fewer distinct agents, destinations and port ranges",
                )?;
            }
        }
        let (policies, limits) = (policies.into_values(), limits.into_values());
        check(limits.len(), LIMIT_SETS_MAX, "combinations of rate limits", "write fewer that overlap")?;
        let limiters = self.limiters.clone();
        Ok(KernelTables { agents, destinations, ports, verdicts, policies, limiters, limits })
    }

    /// The prefixes whose class differs from what encloses them.
    fn destinations(&self, class_of_kind: &[Option<u32>]) -> Vec<(ipnet::IpNet, u32)> {
        let mut effective: Vec<u32> = Vec::with_capacity(self.cells.len());
        let mut destinations = Vec::new();
        for cell in self.cells {
            let enclosing = cell.parent.and_then(|p| effective.get(p as usize)).copied().unwrap_or(0);
            let own = cell.kind.and_then(|kind| class_of_kind.get(kind as usize)).copied().flatten();
            let class = own.unwrap_or(enclosing);
            if class != enclosing {
                destinations.push((cell.prefix.net(), class));
            }
            effective.push(class);
        }
        destinations
    }

    fn port_classes(&self) -> Result<PortClasses, PolicyErrors> {
        let mut classes = Numbers::new();
        let mut kinds = Vec::new();
        let mut ranges: Vec<(u16, u16)> = Vec::new();
        for (cell, kind) in self.ports.iter().zip(&self.port_kinds.of_cell) {
            let kind = *kind as usize;
            let column: Vec<(Option<u32>, Option<u32>)> = self
                .rows
                .iter()
                .map(|row| (row.tcp.get(kind).copied(), row.udp.get(kind).copied()))
                .collect();
            let class = classes.number(column);
            if class as usize == kinds.len() {
                kinds.push(kind);
            }
            let class = u16::try_from(class)
                .map_err(|_| PolicyErrors::one("more than 65536 port classes: use fewer port ranges"))?;
            if ranges.last().is_none_or(|(_, last)| *last != class) {
                ranges.push((cell.first, class));
            }
        }
        debug_assert_eq!(classes.len(), kinds.len());
        Ok((ranges, kinds))
    }
}

/// Every protocol and port class of a row, with the number of its value.
fn cells_of<'a>(row: &'a Row, kinds: &'a [usize]) -> impl Iterator<Item = (Transport, u16, u32)> + 'a {
    let by_port = move |transport, values: &'a [u32]| {
        (0_u16..).zip(kinds).filter_map(move |(class, kind)| Some((transport, class, *values.get(*kind)?)))
    };
    row.portless
        .iter()
        .map(|(transport, value)| (*transport, 0, *value))
        .chain(by_port(Transport::Tcp, &row.tcp))
        .chain(by_port(Transport::Udp, &row.udp))
}

/// The class of an address: the longest prefix that contains it.
pub(super) fn destination_class(destinations: &[(ipnet::IpNet, u32)], ip: IpAddr) -> u32 {
    let bits = bits(ip);
    destinations
        .iter()
        .map(|(net, class)| (Prefix::of(*net), *class))
        .filter(|(prefix, _)| prefix.contains(bits))
        .max_by_key(|(prefix, _)| prefix.length())
        .map_or(0, |(_, class)| class)
}
