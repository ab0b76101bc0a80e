//! `datapath --check-programs`: whether the running kernel takes every program, told before anything
//! depends on it. Must never pin or attach anything: a node that is governed stays as it is.

use std::fmt;
use std::fs;

use anyhow::{Context as _, Result};

use super::object;

/// Release of the running kernel (proc(5)).
const RELEASE: &str = "/proc/sys/kernel/osrelease";

/// What the verifier said of the programs.
#[derive(Clone, Debug)]
pub struct Checked {
    /// The kernel that was asked.
    pub kernel: String,
    /// The programs, by name.
    pub programs: Vec<CheckedProgram>,
}

/// A program that the kernel took.
#[derive(Clone, Debug)]
pub struct CheckedProgram {
    /// As in the object.
    pub name: String,
    /// The kernel's name for its type, in lower case: `xdp`, `sched_cls`.
    pub kind: String,
    /// Instructions the verifier looked at over all paths; absent before Linux 5.16. The kernel's own
    /// bound is one million.
    pub instructions_verified: Option<u32>,
    /// Bytes after the verifier's own rewriting; absent where the kernel hides them.
    pub bytes: Option<u32>,
}

/// Loads every program of the embedded object, without pins, and forgets them again.
///
/// # Errors
/// With the verifier's words, if the kernel refuses one.
pub fn check_programs() -> Result<Checked> {
    let kernel = fs::read_to_string(RELEASE).with_context(|| format!("cannot read `{RELEASE}`"))?;
    let objects = object::load(None)?;
    let mut programs = Vec::new();
    for (name, program) in objects.programs() {
        let info = program.info().with_context(|| format!("the kernel tells nothing of `{name}`"))?;
        let kind = format!("{:?}", info.program_type());
        programs.push(CheckedProgram {
            name: name.to_owned(),
            kind: kind.trim_start_matches("BPF_PROG_TYPE_").to_ascii_lowercase(),
            instructions_verified: info.verified_instruction_count(),
            bytes: info.size_translated(),
        });
    }
    programs.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(Checked { kernel: kernel.trim().to_owned(), programs })
}

// === impl Checked ===

impl fmt::Display for Checked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = |value: Option<u32>| value.map_or_else(|| "-".to_owned(), |n| n.to_string());
        writeln!(f, "{:<16} {:<18} {:>21} {:>8}", "program", "type", "instructions verified", "bytes")?;
        for p in &self.programs {
            let (verified, bytes) = (number(p.instructions_verified), number(p.bytes));
            writeln!(f, "{:<16} {:<18} {verified:>21} {bytes:>8}", p.name, p.kind)?;
        }
        write!(f, "Linux {} takes all {} programs", self.kernel, self.programs.len())
    }
}
