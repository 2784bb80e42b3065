//! The operator: makes a store out of one `KvCluster` manifest and keeps it so.
//!
//! ```text
//! observe ──▶ World ──▶ plan (pure) ──▶ steps ──▶ execute the first ──▶ again
//!  Kubernetes, Kafka,       │
//!  PostgreSQL, nodes        └──▶ conditions ──▶ status
//! ```
//!
//! Dependencies point one way: `args` → `controller`, `local` → `observe`, `execute` (the edges) → `plan`, `build`, `ring` (pure).
//! `plugin` is a program of its own, for users.

pub mod args;
pub mod build;
pub mod clients;
pub mod cluster;
pub mod controller;
pub mod execute;
#[cfg(test)]
pub(crate) mod fixtures;
pub mod gate;
pub mod local;
pub mod metrics;
pub mod observe;
pub mod operate;
pub mod outside;
pub mod plan;
pub mod plugin;
pub mod quantity;
pub mod ring;
pub mod scram;
pub mod secret_text;
pub mod seeded;
pub mod server;
pub mod status;
