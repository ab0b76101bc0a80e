//! Golden requests and answers of every surface, conversations with models, and messages to tools and other agents, written from
//! the specifications: what is read of them, however they are cut. `CLAWGRESS_SEED` repeats a run.

#[cfg(test)]
mod addresses;
#[cfg(test)]
mod answers;
#[cfg(test)]
mod conversations;
#[cfg(test)]
mod cuts;
#[cfg(test)]
mod delays;
#[cfg(test)]
mod messages;
#[cfg(test)]
mod requests;
