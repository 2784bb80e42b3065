//! A store node: follows the log of the slots that it replicates, leads some of them, answers REST.
//!
//! Dependencies point one way: `main` → edges (`api`, `log`, `store`, `peer`, `heartbeat`) → pure core (`slot`, `effect`) →
//! contract (`kvcluster-crds`).

pub mod effect;
pub mod service;
pub mod store;
