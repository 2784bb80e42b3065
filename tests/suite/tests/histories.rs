//! What clients see of a store with three brokers while its parts die, hang or lose each other, checked for linearizability:
//! `cargo lab local --brokers 3`, then `cargo test --workspace --test histories`.
//!
//! A history is a few seconds of load on a few keys of its own, with one fault or two. `KVCLUSTER_HISTORIES_SEED` runs the
//! same plans once more (not the same timing: these are real processes).

#[path = "histories/campaign.rs"]
mod campaign;
#[path = "histories/checkers.rs"]
mod checkers;
#[path = "histories/seeded.rs"]
mod seeded;
#[path = "histories/support.rs"]
mod support;
