//! The store against a real PostgreSQL: `cargo test -p kvcluster-node --test store`.
//!
//! `KVCLUSTER_TEST_POSTGRES_URL` names a server that the tests may make schemas in (`postgres://user:password@host:port/db`).
//! The tests of a crash start a server of their own, from `KVCLUSTER_TEST_POSTGRES_BIN` or Debian's newest.

mod crash;
mod dedup;
mod fence;
mod fixture;
mod flush;
mod scan;
#[cfg(feature = "seeded-bugs")]
mod seeded;
mod server;
mod snapshot;
