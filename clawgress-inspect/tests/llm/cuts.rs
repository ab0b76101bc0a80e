//! Fixtures, and how they are cut.

/// Pieces of 1 to some bytes, from a seed.
pub struct Cuts(pub u64);

impl Cuts {
    fn next(&mut self) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        1 + usize::try_from(self.0 >> 33).expect("31 bits") % 37
    }

    pub fn of<'a>(&mut self, mut bytes: &'a [u8]) -> Vec<&'a [u8]> {
        let mut pieces = Vec::new();
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(self.next().min(bytes.len()));
            pieces.push(now);
            bytes = later;
        }
        pieces
    }
}

pub fn seed() -> u64 {
    let given =
        std::env::var("CLAWGRESS_SEED").ok().map(|seed| seed.parse().expect("CLAWGRESS_SEED is a number"));
    let fresh = std::hash::BuildHasher::hash_one(&std::collections::hash_map::RandomState::new(), 0);
    given.unwrap_or(fresh)
}

pub fn golden(name: &str) -> Vec<u8> {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Fixtures of answers, or of requests.
pub fn names(are_answers: bool) -> Vec<String> {
    all_of("").into_iter().filter(|name| name.contains("_answer.") == are_answers).collect()
}

/// Fixtures of this folder, each with what [`golden`] takes.
pub fn all_of(folder: &str) -> Vec<String> {
    let all = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(folder);
    let all = std::fs::read_dir(all).expect("fixtures").map(|entry| entry.expect("entry"));
    let files = all.filter(|entry| entry.file_type().expect("a type").is_file());
    let names = files.map(|entry| entry.file_name().into_string().expect("name"));
    let mut names: Vec<_> = names.map(|name| format!("{folder}{name}")).collect();
    names.sort();
    names
}
