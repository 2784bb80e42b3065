//! The status of a `KvCluster`. Conditions carry what is true and why; there is no free-text phase.

#![allow(
    unreachable_pub,
    reason = "the schema derive makes a public twin of a struct where nothing can reach it"
)]

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::KubeSchema;
use serde::{Deserialize, Serialize};

/// Types of conditions.
pub mod condition {
    /// The whole spec of the observed generation is served.
    pub const READY: &str = "Ready";
    /// Every slot has a leader that serves.
    pub const AVAILABLE: &str = "Available";
    /// The operator is changing something.
    pub const PROGRESSING: &str = "Progressing";
    /// Something is lost or wrong that needs repair.
    pub const DEGRADED: &str = "Degraded";
    /// Kafka is reached and the topics are as the spec says.
    pub const KAFKA_READY: &str = "KafkaReady";
    /// PostgreSQL is reached and the schemas and roles are there.
    pub const POSTGRES_READY: &str = "PostgresReady";
    /// The published assignment is the one that the ring proposes.
    pub const RING_BALANCED: &str = "RingBalanced";
    /// Some slot has two replicas on one PostgreSQL instance, so that losing it costs both.
    pub const REPLICAS_SHARE_INSTANCE: &str = "ReplicasShareInstance";
    /// The node that the annotation names is being replaced. Only there with the annotation.
    pub const REPLACEMENT_ACCEPTED: &str = "ReplacementAccepted";
    /// The operator may read Kubernetes nodes. Only there while it may not.
    pub const KUBERNETES_NODES_READABLE: &str = "KubernetesNodesReadable";
    /// A Kubernetes node with pods of the store is cordoned or being removed. Only there meanwhile.
    pub const DRAINING: &str = "Draining";
}

/// What the operator saw and did.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KvClusterStatus {
    /// Generation of the spec that this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Conditions, one per type; each carries `observedGeneration`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".to_owned()]))]
    pub conditions: Vec<Condition>,
    /// Nodes that exist.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nodes: Option<i32>,
    /// Nodes that report and follow the newest assignment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready_nodes: Option<i32>,
    /// Selector of the nodes' pods, for the scale subresource.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<String>,
    /// Replicas that are on their way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moves: Option<i32>,
    /// Names the life of the log topic; made once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_id: Option<String>,
    /// Version of the newest assignment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub assignment_version: Option<i64>,
    /// The replicas that are on their way, or are to go.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rebalance: Option<RebalanceStatus>,
    /// The steps that are left, in order; empty when the cluster is as the spec says. At most 20 lines, of which the last one says
    /// how many more there are.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub plan: Vec<String>,
}

/// How far the moves are.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RebalanceStatus {
    /// When the numbers were taken. They are taken anew when a move enters another phase, and after ten seconds if they differ then.
    pub observed_at: Time,
    /// Bytes that are still to be copied by all moves together, also those that are not shown, at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_left: Option<i64>,
    /// The moves that are furthest first, at most 20.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub moves: Vec<MoveStatus>,
}

/// One replica that changes its place.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MoveStatus {
    /// The slot.
    pub slot: i32,
    /// The node that gives the replica up; none where one is added.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<i32>,
    /// The node that gets it; none where one is only taken away.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<i32>,
    /// `Waiting`, `CatchingUp` or `HandingOver`.
    pub phase: String,
    /// Records of the log that the new replica lacks: rounded up to 1,000, 10,000 and so on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub records_left: Option<i64>,
    /// Bytes in PostgreSQL that it lacks: rounded up to an eighth of the whole, or less.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_left: Option<i64>,
}
