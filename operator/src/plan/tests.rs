//! Plans against a model of the world that lives in memory: steps are executed on it, and it is looked at again.

mod create;
mod delete;
mod drain;
mod model;
mod nodes;
mod refuse;
mod restart;
mod scale;
mod serving;
mod trim;
