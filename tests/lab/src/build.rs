//! What the lab makes itself, each thing once, into the cache.

pub mod kafka;
