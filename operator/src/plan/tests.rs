//! Plans against a model of the world that lives in memory: steps are executed on it, and it is looked at again.

pub(crate) mod create;
pub(crate) mod delete;
pub(crate) mod doubt;
mod drain;
mod fields;
mod model;
mod nodes;
mod random;
mod refuse;
pub(crate) mod restart;
pub(crate) mod scale;
pub(crate) mod serving;
mod trim;
