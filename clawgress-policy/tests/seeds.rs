//! Replays the seeds of the fuzz target of policy text, and the texts that once broke something, without a fuzzer.

use std::path::Path;

#[path = "../../tests/fuzz/src/policy.rs"]
#[cfg(test)]
mod fuzz;

/// How many places of a seed are cut and flipped: each costs a whole parse, and often a validation.
const PLACES: usize = 40;

#[test]
fn every_seed_passes_its_target() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fuzz/seeds/policy_text");
    let mut replayed = 0;
    for entry in std::fs::read_dir(&directory).expect("there are seeds") {
        let data = std::fs::read(entry.expect("entry").path()).expect("seed");
        fuzz::policy_text(&data);
        // Cut and flipped, a seed reaches what no seed holds.
        for n in (0..data.len()).step_by(data.len().div_ceil(PLACES).max(1)) {
            fuzz::policy_text(data.get(..n).expect("prefix"));
            let mut flipped = data.clone();
            *flipped.get_mut(n).expect("byte") ^= 0x05;
            fuzz::policy_text(&flipped);
        }
        replayed += 1;
    }
    assert!(replayed >= 13, "{replayed} seeds");
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
