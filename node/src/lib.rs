//! A store node: follows the log of the slots that it replicates, leads some of them, answers REST.
//!
//! Dependencies point one way: `main` → edges (`api`, `log`, `store`, `peer`, `heartbeat`) → pure core (`slot`, `effect`) →
//! contract (`kvcluster-crds`).

pub mod api;
pub mod args;
pub mod assignment;
pub mod effect;
pub mod heartbeat;
pub mod log;
pub mod metrics;
pub mod peer;
pub mod program;
pub mod runtime;
pub mod seeded;
pub mod service;
pub mod shutdown;
pub mod slot;
pub mod store;
pub mod telemetry;
