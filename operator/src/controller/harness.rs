//! Whole passes against a world in memory that fails where it is told to: an API server ([`api`]), the controllers and the
//! kubelet behind it ([`kubelet`]), Kafka, PostgreSQL and nodes ([`outside`]), and a counter before every write ([`faults`]).
//!
//! A run of a scenario counts its writes; then the scenario is run once more for each write and each way in which it can go
//! wrong ([`crash`]). All of them must end as the undisturbed one, and then write nothing more. Random changes must end as if there
//! had been none before them ([`transitions`]).

mod api;
pub(crate) mod crash;
mod drain;
mod faults;
mod kubelet;
mod mask;
mod nodes;
pub(crate) mod others;
mod outside;
mod scenarios;
mod transitions;
mod world;
