//! Golden requests and answers of every surface, written from the providers' specifications: what is read of them, however
//! they are cut. `CLAWGRESS_SEED` repeats a run.

#[cfg(test)]
mod answers;
#[cfg(test)]
mod cuts;
#[cfg(test)]
mod requests;
