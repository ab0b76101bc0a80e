//! Replays the fuzz targets' seeds, and the inputs that once broke a parser, without a fuzzer.

use std::path::Path;

use clawgress_policy::Host;

#[path = "../../tests/fuzz/src/targets.rs"]
#[cfg(test)]
mod fuzz;

#[test]
fn every_seed_passes_its_target() {
    for (name, target) in fuzz::TARGETS {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fuzz/seeds").join(name);
        let mut replayed = 0;
        for entry in std::fs::read_dir(&directory).expect("every target has seeds") {
            let data = std::fs::read(entry.expect("entry").path()).expect("seed");
            target(&data);
            // Cut and flipped, a seed reaches what no seed holds.
            for n in 0..data.len().min(400) {
                target(data.get(..n).expect("prefix"));
                let mut flipped = data.clone();
                *flipped.get_mut(n).expect("byte") ^= 0x55;
                target(&flipped);
            }
            replayed += 1;
        }
        assert!(replayed >= 3, "{name}: {replayed} seeds");
    }
}

/// Seeds of credentials get as far as an identity, or not, as their names say.
#[test]
fn seeds_of_credentials_are_what_they_say() {
    let read = |path: &str| {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fuzz/seeds").join(path);
        std::fs::read(path).expect("seed")
    };
    for (name, expected) in [
        ("authority", true),
        ("svid", true),
        ("no_intermediate", false),
        ("crossed", false),
        ("authority_as_client", false),
    ] {
        let seed = read(&format!("client_chain/{name}"));
        assert_eq!(fuzz::takes_chain(&seed), expected, "{name}");
    }
    for (name, expected) in [
        ("plain", true),
        ("whole", true),
        ("header_keys", true),
        ("twice", false),
        ("crit", false),
        ("none", false),
    ] {
        assert_eq!(fuzz::takes_token(&read(&format!("jwt/{name}"))), expected, "{name}");
    }
}
