//! Black-box tests of a store on a real Kubernetes: `cargo lab up`, then
//! `cargo test -p kvcluster-suite --test kind -- --test-threads=1`.
//!
//! They share one cluster, one Kafka and one PostgreSQL, so they run one after the other. The sample `KvCluster`,
//! `default/demo`, stays; all others are made in namespaces of their own.

#[path = "kind/apply.rs"]
mod apply;
#[path = "kind/audit.rs"]
mod audit;
#[path = "kind/bad_input.rs"]
mod bad_input;
#[path = "kind/changes.rs"]
mod changes;
#[path = "kind/deletion.rs"]
mod deletion;
#[path = "kind/faults.rs"]
mod faults;
#[path = "kind/paused_scale_to_zero.rs"]
mod paused_scale_to_zero;
#[path = "kind/properties.rs"]
mod properties;
#[path = "kind/quiet.rs"]
mod quiet;
#[path = "kind/rules.rs"]
mod rules;
#[path = "kind/support.rs"]
mod support;
#[path = "kind/topics_and_schemas.rs"]
mod topics_and_schemas;
#[path = "kind/unicode_load.rs"]
mod unicode_load;
#[path = "kind/used_rights.rs"]
mod used_rights;
