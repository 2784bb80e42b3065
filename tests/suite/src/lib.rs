//! Shared helpers of the suites: black-box tests of a running store, from the outside.
//!
//! The suites see what a user sees: REST, `kubectl`, `psql`, Kafka's records. They use the lab (`cargo lab local` or
//! `cargo lab up`) and fail with the remedy when it does not run; none is ever skipped.

pub mod bench;
pub mod check;
pub mod election;
pub mod fault;
pub mod history;
pub mod http;
pub mod kafka;
pub mod kube;
pub mod lab;
pub mod load;
pub mod percent;
pub mod poll;
pub mod processes;
pub mod unicode;
