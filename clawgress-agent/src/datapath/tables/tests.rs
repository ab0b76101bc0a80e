//! Generations that are not whole, and places that are.

use clawgress_identity::Agent;
use clawgress_policy::kernel::VerdictCell;

use super::*;

#[track_caller]
fn check(tables: KernelTables, want: &PlanError) {
    let document = KernelGeneration {
        generation: 1,
        tables: Some(tables),
        agents: Vec::new(),
        shared: Vec::new(),
        revisions: BTreeMap::new(),
        turns_at: None,
    };
    let error = Plan::new(&document, &BTreeMap::new()).expect_err("must be refused");
    assert_eq!(error, *want);
}

fn cell(transport: Transport, action: KernelAction) -> KernelTables {
    let cell = VerdictCell {
        agent_class: 1,
        destination_class: 0,
        transport,
        port_class: 0,
        action,
        policies: 0,
        limits: 0,
        never_direct: false,
    };
    KernelTables { verdicts: vec![cell], ..KernelTables::default() }
}

#[test]
fn inconsistent_generations_are_refused() {
    let ports = |ports| KernelTables { ports, ..KernelTables::default() };
    check(ports(vec![(1, 0)]), &PlanError::Ports);
    check(ports(vec![(0, 0), (5, 1), (5, 2)]), &PlanError::Ports);
    check(ports(vec![(0, 0), (9, 1), (5, 2)]), &PlanError::Ports);
    check(cell(Transport::Udp, KernelAction::Steer), &PlanError::Cell("only TCP can be steered"));
    check(cell(Transport::Tcp, KernelAction::Deny(0)), &PlanError::Cell("it denies without a known reason"));
    let document = KernelGeneration::<KernelTables> {
        generation: 0,
        tables: None,
        agents: Vec::new(),
        shared: Vec::new(),
        revisions: BTreeMap::new(),
        turns_at: None,
    };
    assert_eq!(Plan::new(&document, &BTreeMap::new()).expect_err("refused"), PlanError::Number);
}

#[test]
fn a_shared_source_has_nobody_else_s_place() {
    let shared = |name: &str| clawgress_identity::SharedSource {
        id: name.parse().expect("id"),
        at: vec!["e=10.0.0.0/28,any-mac".parse().expect("source")],
        may_present: BTreeSet::new(),
    };
    let document = KernelGeneration::<KernelTables> {
        generation: 1,
        tables: None,
        agents: Vec::new(),
        shared: vec![shared("one"), shared("two")],
        revisions: BTreeMap::new(),
        turns_at: None,
    };
    let error = Plan::new(&document, &BTreeMap::from([("e".into(), 7)])).expect_err("refused");
    assert_eq!(error, PlanError::SameShared("default/two".into(), "e=10.0.0.0/28,any-mac".into()));
    let plan = Plan::new(&document, &BTreeMap::new()).expect("accepted");
    assert_eq!(plan.skipped.len(), 2, "this node has no such interface");
    let told = "shared source `default/one` is not known by its source `e=10.0.0.0/28,any-mac`: this machine has no \
                agents' interface `e` now; it is bound when the interface is there, or else name another by \
                `clawgressctl source set default/one --at ...`";
    assert_eq!(plan.skipped[0], told);
}

#[test]
fn a_source_at_an_interface_that_is_not_there_is_told_with_what_to_do() {
    let agent = |id: &str, index, sources: &[&str]| Agent {
        id: id.parse().expect("id"),
        index,
        state: AgentState::Active,
        team: None,
        project: None,
        environment: None,
        labels: BTreeMap::new(),
        sources: sources.iter().map(|s| s.parse().expect("source")).collect(),
    };
    let document = KernelGeneration::<KernelTables> {
        generation: 1,
        tables: None,
        agents: vec![
            agent("acme/web", 1, &["e1=10.0.0.2,any-mac", "e0=10.0.0.2,any-mac"]),
            agent("bot", 2, &["e0=10.0.0.3,any-mac"]),
        ],
        shared: Vec::new(),
        revisions: BTreeMap::new(),
        turns_at: None,
    };
    let both = BTreeMap::from([("e0".into(), 7), ("e1".into(), 8)]);
    assert_eq!(Plan::new(&document, &both).expect("accepted").skipped, Vec::<String>::new());
    let plan = Plan::new(&document, &BTreeMap::from([("e0".into(), 7)])).expect("accepted");
    let told = "agent `acme/web` is not known by its source `e1=10.0.0.2/32,any-mac`: this machine has no agents' \
                interface `e1` now; it is bound when the interface is there, or else create the agent anew with \
                another --source";
    assert_eq!(plan.skipped, [told]);

    // Not all that an interface has.
    let many: Vec<String> = (0..25).map(|n| format!("e1=10.0.1.{n},any-mac")).collect();
    let many = agent("many", 3, &many.iter().map(String::as_str).collect::<Vec<_>>());
    let document = KernelGeneration { agents: vec![many], ..document };
    let plan = Plan::new(&document, &BTreeMap::new()).expect("accepted");
    assert_eq!(plan.skipped.len(), 21);
    assert_eq!(plan.skipped[20], "5 more sources are at interfaces that are not there");
}

#[test]
fn port_ranges_reach_to_the_next() {
    let classes = ports(&[(0, 3), (80, 1), (81, 0), (65_535, 2)]).expect("valid");
    for (port, class) in [(0, 3), (79, 3), (80, 1), (81, 0), (65_534, 0), (65_535, 2)] {
        assert_eq!(classes.get(port), Some(&class), "port {port}");
    }
}
