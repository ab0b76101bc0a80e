//! What people ask of policy text and of sets before and after they make them live: where a policy is written, what a
//! set says of a request phase by phase and why, whether it does what its cases want, and in what two sets differ.
//!
//! Asks the same [`PolicySet`](crate::PolicySet) that decides; must never decide by rules of its own.

pub mod call;
pub mod cases;
pub mod difference;
pub mod explain;
mod moot;
mod places;
mod received;
pub mod replay;
pub mod requests;
mod samples;
mod sent;
#[cfg(test)]
mod tests;

pub use moot::Texts;
pub use places::{PolicyPlace, caret, places};
pub use received::{CaseAnswer, CaseAsked, Supposed};
pub use sent::Body;
