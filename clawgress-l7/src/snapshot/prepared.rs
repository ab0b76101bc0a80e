//! A generation that may come: parsed while nobody decides by it, and held until control names it, or sends another.
//!
//! Must never come into force by itself.

use clawgress_api::proto::Prepared;
use parking_lot::Mutex;
use tokio::task::{JoinError, JoinHandle};

use super::Plan;

/// What is held; at most one plan.
#[derive(Debug, Default)]
pub struct Held(Mutex<Option<(u64, Plan)>>);

/// What is being parsed; the next takes its place.
#[derive(Debug, Default)]
pub struct Preparing(Option<(u64, JoinHandle<Parsed>)>);

/// A plan, or why there is none.
type Parsed = Result<Plan, String>;

// === impl Held ===

impl Held {
    /// Holds what was parsed under this number, if it could be; and what is said of it.
    pub fn hold(&self, number: u64, parsed: Result<Parsed, JoinError>) -> Prepared {
        let parsed = parsed.unwrap_or_else(|_| Err("the snapshot could not be parsed".to_owned()));
        match parsed {
            Ok(plan) => {
                *self.0.lock() = Some((number, plan));
                Prepared { number, error: String::new() }
            }
            Err(error) => {
                tracing::warn!(error, "this process can't take what control asks it to prepare");
                Prepared { number, error }
            }
        }
    }

    /// What is held under this number; whatever is held is not any more then.
    pub fn take(&self, number: u64) -> Option<Plan> {
        self.0.lock().take().filter(|(held, _)| *held == number).map(|(_, plan)| plan)
    }

    /// Holds nothing.
    pub fn clear(&self) {
        self.0.lock().take();
    }
}

// === impl Preparing ===

impl Preparing {
    /// What `parsing` makes, under this number.
    #[must_use]
    pub fn new(number: u64, parsing: JoinHandle<Parsed>) -> Self {
        Preparing(Some((number, parsing)))
    }

    /// Waits until it is parsed, once; for ever where nothing is.
    pub async fn ended(&mut self) -> (u64, Result<Parsed, JoinError>) {
        let Some((number, parsing)) = &mut self.0 else { return std::future::pending().await };
        let ended = (*number, parsing.await);
        self.0 = None;
        ended
    }
}
