//! The properties, each with another value than the test's store has, and one that is wrong.

use serde_json::{Value, json};

/// One property of the spec.
#[derive(Clone)]
pub(super) struct Property {
    pub(super) path: &'static str,
    pub(super) good: Good,
    pub(super) bad: Bad,
}

/// Another value.
#[derive(Clone)]
pub(super) enum Good {
    /// It shows in what the operator makes.
    Taken(Value),
    /// It changes what the operator does, and nothing that it made.
    Inside(Value),
    /// The same, and a store that is made so is not made: it waits.
    Held(Value),
    /// There is none: it cannot be changed, or one broker leaves no choice.
    Fixed,
}

/// A value that is wrong.
#[derive(Clone)]
pub(super) enum Bad {
    /// The API server says so.
    Refused(Value, &'static str),
    /// A condition says so, and the store goes on as it was or waits.
    Stops(Value),
}

use Bad::{Refused, Stops};
use Good::{Fixed, Held, Inside, Taken};

pub(super) fn table() -> Vec<Property> {
    [of_the_store(), of_services(), of_nodes(), of_changes()].concat()
}

fn property(path: &'static str, good: Good, bad: Bad) -> Property {
    Property { path, good, bad }
}

fn of_the_store() -> Vec<Property> {
    vec![
        property("nodes", Taken(json!(2)), Refused(json!(0), "spec.nodes")),
        property("replication", Fixed, Refused(json!(2), "spec.replication")),
        property(
            "slots",
            Fixed,
            Refused(json!(8), "spec.slots cannot be changed"),
        ),
        property(
            "reads",
            Taken(json!("Log")),
            Refused(json!("Dirty"), "spec.reads"),
        ),
        property(
            "service.type",
            Taken(json!("NodePort")),
            Refused(json!("Ingress"), "spec.service.type"),
        ),
        property(
            "service.nodePort",
            Fixed,
            Refused(json!(30_999), "nodePort needs spec.service.type"),
        ),
        property(
            "service.annotations",
            Taken(json!({"example.com/team": "shop"})),
            Stops(json!({"no key at all": "x"})),
        ),
    ]
}

fn of_services() -> Vec<Property> {
    let instance =
        |secret: &str| json!([{"name": "main", "adminUrlSecret": {"name": secret, "key": "url"}}]);
    vec![
        property(
            "kafka.bootstrapServers",
            Taken(json!("kafka.kvcluster-dev.svc.cluster.local:9092")),
            Refused(json!("kafka"), "host:port"),
        ),
        property(
            "kafka.minInSyncReplicas",
            Fixed,
            Refused(json!(2), "must not exceed"),
        ),
        property("kafka.replicationFactor", Fixed, Stops(json!(2))),
        property(
            "postgres.instances",
            Inside(instance("second")),
            Stops(instance("nobody")),
        ),
        property(
            "postgres.connectionsPerNode",
            Taken(json!(4)),
            Refused(json!(1), "connectionsPerNode"),
        ),
        property(
            "postgres.schemaPrefix",
            Fixed,
            Refused(json!("other"), "cannot be changed"),
        ),
        property(
            "log.keepRecords",
            Taken(json!(5_000)),
            Refused(json!(-1), "keepRecords"),
        ),
        property(
            "log.lostReplicaSeconds",
            Taken(json!(120)),
            Refused(json!(59), "lostReplicaSeconds"),
        ),
        property(
            "log.snapshotFromRecords",
            Taken(json!(50)),
            Refused(json!(-1), "snapshotFromRecords"),
        ),
    ]
}

fn of_nodes() -> Vec<Property> {
    let stranger = json!([{"key": "a", "operator": "Sometimes"}]);
    vec![
        property(
            "image",
            Taken(json!("docker.io/kvcluster/node:dev")),
            Stops(json!("kvcluster/node:missing")),
        ),
        property(
            "limits.cacheMebibytes",
            Taken(json!(32)),
            Refused(json!(0), "cacheMebibytes"),
        ),
        property(
            "limits.unflushedMebibytes",
            Taken(json!(32)),
            Refused(json!(0), "unflushedMebibytes"),
        ),
        property(
            "limits.heartbeatMs",
            Taken(json!(100)),
            Refused(json!(10), "heartbeatMs"),
        ),
        property(
            "limits.leaseMs",
            Taken(json!(800)),
            Refused(json!(100), "leaseMs"),
        ),
        property(
            "limits.suspicionMs",
            Taken(json!(900)),
            Refused(json!(449), "at least 3 x"),
        ),
        property(
            "resources.limits",
            Taken(json!({"memory": "300Mi"})),
            Stops(json!({"memory": "a lot"})),
        ),
        property(
            "resources.requests",
            Taken(json!({"cpu": "20m"})),
            Stops(json!({"cpu": "-1"})),
        ),
        property(
            "resources.claims",
            Fixed,
            Stops(json!([{"name": "nobody"}])),
        ),
        property(
            "scheduling.nodeSelector",
            Taken(json!({"kubernetes.io/os": "linux"})),
            Stops(json!({"kubernetes.io/os": "plan9"})),
        ),
        property(
            "scheduling.tolerations",
            Taken(json!([{"key": "example.com/own", "operator": "Exists"}])),
            Stops(stranger),
        ),
    ]
}

fn of_changes() -> Vec<Property> {
    vec![
        property(
            "paused",
            Held(json!(true)),
            Refused(json!("perhaps"), "spec.paused"),
        ),
        property(
            "deletionPolicy",
            Inside(json!("Retain")),
            Refused(json!("Forget"), "deletionPolicy"),
        ),
        property(
            "deletion.giveUpSeconds",
            Inside(json!(30)),
            Refused(json!(0), "giveUpSeconds"),
        ),
        property(
            "rebalance.mode",
            Held(json!("Plan")),
            Refused(json!("Never"), "rebalance.mode"),
        ),
        property(
            "rebalance.maxConcurrentMoves",
            Inside(json!(1)),
            Refused(json!(0), "maxConcurrentMoves"),
        ),
        property(
            "replacement.afterSeconds",
            Inside(json!(60)),
            Refused(json!(5), "afterSeconds"),
        ),
        property(
            "ring.loadFactorPercent",
            Inside(json!(150)),
            Refused(json!(99), "loadFactorPercent"),
        ),
        property(
            "ring.virtualNodes",
            Inside(json!(32)),
            Refused(json!(0), "virtualNodes"),
        ),
    ]
}
