//! What is promised, beside what this run measured: missed ones are told as plainly as kept ones.

use std::fmt::Write as _;

/// A promise and what became of it.
#[derive(Debug)]
pub struct Promise {
    what: String,
    bound: Bound,
    unit: &'static str,
    measured: f64,
}

/// What is promised.
#[derive(Clone, Copy, Debug)]
pub enum Bound {
    /// No more than this.
    Most(f64),
    /// No less than this.
    Least(f64),
}

// === impl Promise ===

impl Promise {
    /// Of a figure, in `unit`.
    pub fn new(what: impl Into<String>, bound: Bound, measured: f64, unit: &'static str) -> Promise {
        Promise { what: what.into(), bound, unit, measured }
    }

    /// A figure that was not measured keeps none.
    fn is_kept(&self) -> bool {
        match self.bound {
            Bound::Most(most) => self.measured <= most,
            Bound::Least(least) => self.measured >= least,
        }
    }
}

/// As a section.
pub fn markdown(promises: &[Promise]) -> anyhow::Result<String> {
    let mut text = String::from("## Promises\n\n");
    let missed = promises.iter().filter(|promise| !promise.is_kept()).count();
    writeln!(
        text,
        "Medians of this run; {missed} of {} are missed, and the sections below tell by how much in which rounds.\n",
        promises.len()
    )?;
    writeln!(text, "| what | promised | measured | |\n|---|---|---|---|")?;
    for promise in promises {
        let bound = match promise.bound {
            Bound::Most(most) => format!("at most {most}"),
            Bound::Least(least) => format!("at least {least}"),
        };
        let (unit, word) = (promise.unit, if promise.is_kept() { "kept" } else { "**missed**" });
        writeln!(text, "| {} | {bound} {unit} | {:.2} | {word} |", promise.what, promise.measured)?;
    }
    writeln!(text)?;
    Ok(text)
}
