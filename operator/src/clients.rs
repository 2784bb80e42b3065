//! Connections to Kafka and PostgreSQL. Every wait in here has a limit; every failure has a reason that a user can act on.

pub mod kafka;
pub mod postgres;
