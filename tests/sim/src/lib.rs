//! What the model and the simulations share: the rule by which they judge the product, and Kafka and PostgreSQL in memory.

pub mod log;
pub mod rule;
pub mod store;
