//! The oldest supported kernel (6.1: programs on clsact) and a later one (6.12: tcx), in virtual machines:
//! every program loads, judges by test run as here, and governs real connections.

use std::path::Path;

use crate::machine::{self, Step};
use crate::verdicts;

const AGENT: &str = env!("CARGO_BIN_EXE_clawgress-agent");
/// Tests of this program that are run there, one of each kind: the layout of maps, verdicts by test run of each
/// program, and the whole role with its rules and links between network namespaces. The last runs nowhere else.
const TESTS: [&str; 8] = [
    "verdicts::maps_have_the_layout_of_the_abi",
    "verdicts::every_reason_in_both_families",
    "verdicts::frames_that_are_not_understood",
    "verdicts::flows_count_both_ways_and_answers_need_one",
    "verdicts::a_new_generation_judges_live_flows_again",
    "network::steered_forwarded_and_dropped",
    "joined::a_joined_buffer_counts_as_what_it_is_on_the_wire",
    "pacing::where_the_queue_is_fq_what_is_over_is_sent_later",
];

/// Of a role that takes over from another by clsact, and of local commands.
const BY_CLSACT: [&str; 2] = [
    "removal::what_a_killed_process_leaves_still_governs",
    "workload::a_bare_command_is_governed_by_its_hooks",
];
/// Of interfaces that the kernel here may not have.
const BY_TCX: [&str; 1] = ["kinds::a_vlan_of_agents_is_an_interface_of_its_own"];

/// The programs that a kernel took, and how many instructions its verifier walked, as the agent prints them.
fn checked(console: &str) -> Vec<(&str, u32)> {
    let table = console.lines().skip_while(|l| !l.starts_with("program ")).skip(1);
    let rows = table.take_while(|l| !l.starts_with("Linux ")).map(|row| row.split_whitespace());
    rows.filter_map(|mut row| Some((row.next()?, row.nth(1)?.parse().ok()?))).collect()
}

#[track_caller]
fn check(series: &str, tc: &str, more: &[&str]) {
    let own = std::env::current_exe().expect("the running program");
    let path = |path: &Path| path.to_str().expect("a name in UTF-8").to_owned();
    let mut tests = vec![
        path(&own),
        "--test-threads=1".to_owned(),
        "--exact".to_owned(),
        "--include-ignored".to_owned(),
        "--show-output".to_owned(),
    ];
    tests.extend(TESTS.iter().chain(more).map(|test| (*test).to_owned()));
    let steps = [
        Step {
            name: "check-programs",
            words: [AGENT, "datapath", "--check-programs"].map(str::to_owned).to_vec(),
        },
        Step { name: "tests", words: tests },
    ];
    let console = machine::run(series, &[Path::new(AGENT), &own], &steps);
    let mut here: Vec<String> = clawgress_agent::datapath::check_programs()
        .expect("the running kernel takes every program")
        .programs
        .into_iter()
        .map(|p| p.name)
        .collect();
    here.sort();
    let there = checked(&console);
    let names: Vec<&str> = there.iter().map(|(name, _)| *name).collect();
    assert_eq!(names, here, "Linux {series} did not take every program:\n{console}");
    let worst = there.iter().map(|(_, walked)| *walked).max();
    assert!(worst < Some(verdicts::INSTRUCTIONS_MAX), "Linux {series} walks too long:\n{console}");
    assert!(console.contains(&format!("Linux {series}.")), "another kernel ran:\n{console}");
    let want = format!("test result: ok. {} passed", TESTS.len() + more.len());
    assert!(console.contains(&want), "a test is not there any more:\n{console}");
    println!("Linux {series} ({tc}):\n{console}");
}

#[test]
fn linux_6_1_takes_every_program_and_judges_alike() {
    check("6.1", "clsact", &BY_CLSACT);
}

#[test]
fn linux_6_12_takes_every_program_and_judges_alike() {
    check("6.12", "tcx", &BY_TCX);
}
