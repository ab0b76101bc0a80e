//! Decisions by lowered policies are those of Cedar's authorizer: verdict, determining policies, and errors to the
//! word. Random policies that the validator accepts, random requests, a seed that is printed.
//!
//! `CLAWGRESS_SEED` repeats a run, `CLAWGRESS_CASES` makes it longer, `CLAWGRESS_FUZZ_MINUTES` repeats it with the next seeds
//! for a time (`cargo xtask fuzz-policy`).

#[cfg(test)]
mod cases;
#[cfg(test)]
mod dead;
#[cfg(test)]
mod heads;
#[cfg(test)]
mod mixed;
#[cfg(test)]
mod patterned;
#[cfg(test)]
mod writer;
