//! The write-ahead log: one Kafka partition per slot.

pub mod codec;
