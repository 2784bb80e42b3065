//! Black-box tests of a store that runs as plain processes: `cargo lab local`, then
//! `cargo test -p kvcluster-suite --test local -- --test-threads=1`.
//!
//! They share one store, so they run one after the other, and each begins by bringing it into the state that it needs.

#[path = "local/classic.rs"]
mod classic;
#[path = "local/election.rs"]
mod election;
#[path = "local/failover.rs"]
mod failover;
#[path = "local/faults.rs"]
mod faults;
#[path = "local/hand_over.rs"]
mod hand_over;
#[path = "local/kafka_returns.rs"]
mod kafka_returns;
#[path = "local/larger_than_cache.rs"]
mod larger_than_cache;
#[path = "local/levels.rs"]
mod levels;
#[path = "local/memory_limit.rs"]
mod memory_limit;
#[path = "local/overload.rs"]
mod overload;
#[path = "local/support.rs"]
mod support;
#[path = "local/unicode_load.rs"]
mod unicode_load;
