//! The `KvCluster` resource. Every rule that the API server can check stands here as CEL or schema, so that bad input is
//! refused at `kubectl apply` with a sentence that names the field and the remedy.

#![allow(
    unreachable_pub,
    reason = "the schema derive makes a public twin of a struct where nothing can reach it"
)]

use k8s_openapi::api::core::v1::ResourceRequirements;
use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

use super::sections::{
    DeletionPolicy, DeletionSpec, KafkaSpec, LimitsSpec, LogSpec, PostgresSpec, ReadMode,
    RebalanceSpec, ReplacementSpec, RingSpec, SchedulingSpec, ServiceSpec,
};
use super::status::KvClusterStatus;

/// A replicated, partitioned, linearizable key-value store whose write-ahead log is Kafka and whose state is PostgreSQL.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "kvcluster.dev",
    version = "v1alpha1",
    kind = "KvCluster",
    plural = "kvclusters",
    shortname = "kvc",
    category = "all",
    namespaced,
    status = "KvClusterStatus",
    cel,
    derive = "PartialEq",
    scale(
        spec_replicas_path = ".spec.nodes",
        status_replicas_path = ".status.nodes",
        label_selector_path = ".status.selector"
    ),
    printcolumn(name = "Nodes", type_ = "integer", json_path = ".spec.nodes"),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].status"
    ),
    printcolumn(name = "Slots", type_ = "integer", json_path = ".spec.slots"),
    printcolumn(name = "Moves", type_ = "integer", json_path = ".status.moves"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].reason"
    ),
    validation = Rule::new("self.metadata.name.size() <= 32")
        .message("metadata.name is longer than 32 bytes; choose a shorter one: PostgreSQL schema names are made from it"),
    validation = Rule::new("self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')")
        .message("metadata.name must be a DNS label that starts with a letter (a-z, 0-9, -): Services are named after it")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.nodes >= self.replication")
        .message("spec.nodes must be at least spec.replication: each replica of a slot stands on a node of its own"),
    validation = Rule::new("self.kafka.minInSyncReplicas <= self.kafka.replicationFactor")
        .message("spec.kafka.minInSyncReplicas must not exceed spec.kafka.replicationFactor: no write could ever be acknowledged"),
    validation = Rule::new("self.limits.suspicionMs >= 3 * self.limits.heartbeatMs")
        .message("spec.limits.suspicionMs must be at least 3 x spec.limits.heartbeatMs: fewer lost heartbeats must not start an election")
)]
pub struct KvClusterSpec {
    /// Store nodes. At least `replication`. More of them take over a share of the replicas; with fewer, those that go are
    /// emptied first.
    #[schemars(range(min = 1, max = 100))]
    #[serde(default = "default_three")]
    pub nodes: i32,

    /// Replicas of each slot, 1 to 7. Any minority of them may be lost.
    #[schemars(range(min = 1, max = 7))]
    #[serde(default = "default_three")]
    #[x_kube(validation = Rule::new("self == oldSelf").message("spec.replication cannot be changed yet; make a new cluster"))]
    pub replication: i32,

    /// Slots: partitions of the key space and of the log topic, 1 to 1,024. Cannot be changed.
    #[schemars(range(min = 1, max = 1024))]
    #[serde(default = "default_slots")]
    #[x_kube(validation = Rule::new("self == oldSelf").message("spec.slots cannot be changed: keys are placed by it; make a new cluster"))]
    pub slots: i32,

    /// The Kafka cluster that holds the log.
    pub kafka: KafkaSpec,

    /// The PostgreSQL instances that hold the state.
    pub postgres: PostgresSpec,

    /// Image of the store nodes; by default the one that the operator came with when the cluster was made. An operator that comes
    /// with another one restarts no node: name it here to get it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512))]
    pub image: Option<String>,

    /// Resources of each store node's container; by default a tenth of a core and 256 MiB are requested. Whoever names any names all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<ResourceRequirements>,

    /// The client Service.
    #[serde(default)]
    pub service: ServiceSpec,

    /// Where nodes may run.
    #[serde(default)]
    pub scheduling: SchedulingSpec,

    /// The consistent-hash ring.
    #[serde(default)]
    pub ring: RingSpec,

    /// How replicas are moved.
    #[serde(default)]
    pub rebalance: RebalanceSpec,

    /// When a lost node gets another place to run.
    #[serde(default)]
    pub replacement: ReplacementSpec,

    /// How linearizable reads are served: `Lease` (fast; clocks must tick at the same rate within 10 %) or `Log` (no clock is
    /// trusted; a group of reads waits for one record).
    #[serde(default)]
    pub reads: ReadMode,

    /// Limits and times of each node.
    #[serde(default)]
    pub limits: LimitsSpec,

    /// How much of the log stays in Kafka.
    #[serde(default)]
    pub log: LogSpec,

    /// What happens to topics and schemas when the `KvCluster` is deleted.
    #[serde(default)]
    pub deletion_policy: DeletionPolicy,

    /// How a deletion with `deletionPolicy: Delete` goes.
    #[serde(default)]
    pub deletion: DeletionSpec,

    /// While true the operator changes nothing; the store itself goes on.
    #[serde(default)]
    pub paused: bool,
}

fn default_three() -> i32 {
    3
}

fn default_slots() -> i32 {
    16
}
