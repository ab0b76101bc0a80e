//! Replays the seeds of the fuzz targets of policy text and of what heads say, and the texts that once broke something, without a fuzzer.

use std::path::Path;

#[path = "../../tests/fuzz/src/policy.rs"]
#[cfg(test)]
mod fuzz;
#[path = "../../tests/fuzz/src/policy_head.rs"]
#[cfg(test)]
mod fuzz_head;

/// How many places of a seed are cut and flipped: each costs a whole parse, and often a validation.
const PLACES: usize = 40;

#[test]
fn every_seed_passes_its_target() {
    let replayed = replay("policy_text", fuzz::policy_text);
    assert!(replayed >= 13, "{replayed} seeds");
    let replayed = replay("policy_head", fuzz_head::policy_head);
    assert!(replayed >= 4, "{replayed} seeds");
}

/// How many seeds a target has, all of which pass it.
#[cfg(test)]
fn replay(name: &str, target: fn(&[u8])) -> usize {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fuzz/seeds").join(name);
    let mut replayed = 0;
    for entry in std::fs::read_dir(&directory).expect("there are seeds") {
        let data = std::fs::read(entry.expect("entry").path()).expect("seed");
        target(&data);
        // Cut and flipped, a seed reaches what no seed holds.
        for n in (0..data.len()).step_by(data.len().div_ceil(PLACES).max(1)) {
            target(data.get(..n).expect("prefix"));
            let mut flipped = data.clone();
            *flipped.get_mut(n).expect("byte") ^= 0x05;
            target(&flipped);
        }
        replayed += 1;
    }
    replayed
}

/// Seeds get as far as a decision, or not, as their names say: a target that no text passes would find nothing.
#[test]
fn seeds_are_what_they_say() {
    for (name, expected) in [
        ("guards", true),
        ("networks", true),
        ("time_and_labels", true),
        ("limit", true),
        ("overflow", true),
        ("send", true),
        ("llm", true),
        ("tool", true),
        ("receive", true),
        ("effects", true),
        ("nested_too_deep", false),
        ("template", false),
        ("refused_with_places", false),
    ] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fuzz/seeds/policy_text").join(name);
        let refusal = fuzz::refusal(&std::fs::read(path).expect("seed"));
        assert_eq!(refusal.is_empty(), expected, "{name}: {refusal:?}");
    }
}
