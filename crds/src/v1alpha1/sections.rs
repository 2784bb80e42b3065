//! The sections of a `KvCluster`'s spec.

#![allow(
    unreachable_pub,
    reason = "the schema derive makes a public twin of a struct where nothing can reach it"
)]

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Toleration;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The Kafka cluster and how its topics are made.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KafkaSpec {
    /// `host:port`, several separated by commas.
    #[schemars(length(min = 3, max = 4096))]
    #[x_kube(validation = Rule::new("self.matches('^[^\\\\s,:]+:[0-9]{1,5}(,[^\\\\s,:]+:[0-9]{1,5})*$')").message("spec.kafka.bootstrapServers must be host:port, several separated by commas, without spaces"))]
    pub bootstrap_servers: String,

    /// Replicas of each topic. Fixed when the topics are made.
    #[schemars(range(min = 1, max = 32767))]
    #[serde(default = "three")]
    pub replication_factor: i32,

    /// `min.insync.replicas` of the topics: brokers that must hold a record before it is acknowledged.
    #[schemars(range(min = 1, max = 32767))]
    #[serde(default = "two")]
    pub min_in_sync_replicas: i32,
}

/// The PostgreSQL instances and how the nodes use them.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PostgresSpec {
    /// The instances. The nodes are spread over them in turn; a node stays on its instance for life.
    #[schemars(length(min = 1, max = 32))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".to_owned()]))]
    pub instances: Vec<PostgresInstance>,

    /// First part of the names of schemas and roles.
    #[schemars(length(min = 1, max = 12))]
    #[serde(default = "schema_prefix")]
    #[x_kube(
        validation = Rule::new("self.matches('^[a-z][a-z0-9_]*$')").message("spec.postgres.schemaPrefix must be lower-case letters, digits and _, and start with a letter"),
        validation = Rule::new("self == oldSelf").message("spec.postgres.schemaPrefix cannot be changed: schemas are named by it")
    )]
    pub schema_prefix: String,

    /// Most connections of each node.
    #[schemars(range(min = 2, max = 100))]
    #[serde(default = "connections_per_node")]
    pub connections_per_node: i32,
}

/// One PostgreSQL instance.
#[derive(JsonSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PostgresInstance {
    /// Name of the instance within this list.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
    /// Where the URL of a role that may create roles and schemas stands: `postgres://user:password@host:port/database`.
    pub admin_url_secret: SecretKeyRef,
}

/// A key of a Secret in the cluster's namespace.
#[derive(JsonSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SecretKeyRef {
    /// Name of the Secret.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Key in the Secret.
    #[serde(default = "url_key")]
    #[schemars(length(min = 1, max = 253))]
    pub key: String,
}

/// The Service that clients use.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(self.nodePort) || self.type != 'ClusterIP'").message("spec.service.nodePort needs spec.service.type NodePort or LoadBalancer"))]
pub struct ServiceSpec {
    /// Type of the Service.
    #[serde(default, rename = "type")]
    pub type_: ServiceType,
    /// Port on every Kubernetes node, for types NodePort and LoadBalancer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub node_port: Option<NodePort>,
    /// Annotations of the Service, for load balancers.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// A port number of a Kubernetes node.
pub type NodePort = i32;

/// Type of the client Service.
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ServiceType {
    /// Reached inside the Kubernetes cluster.
    #[default]
    ClusterIP,
    /// Reached on a port of every Kubernetes node.
    NodePort,
    /// Reached through a load balancer of the environment.
    LoadBalancer,
}

/// Where nodes may run.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SchedulingSpec {
    /// Labels that a Kubernetes node must have.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub node_selector: BTreeMap<String, String>,
    /// Taints that are tolerated.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tolerations: Vec<Toleration>,
}

/// The consistent-hash ring.
#[derive(JsonSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RingSpec {
    /// Tokens of each node on the ring.
    #[schemars(range(min = 1, max = 1024))]
    pub virtual_nodes: i32,
    /// Most replicas on a node, in percent of the average, 100 or more.
    #[schemars(range(min = 100, max = 1000))]
    pub load_factor_percent: i32,
}

/// How replicas are moved when nodes come, leave or are replaced, or when the ring changes.
#[derive(JsonSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RebalanceSpec {
    /// Replicas that are on their way at a time. Those on nodes that do not answer are not counted; a few more may begin together
    /// where one alone would make nothing better.
    #[schemars(range(min = 1, max = 100))]
    pub max_concurrent_moves: i32,
    /// `Apply`: done as soon as it is known. `Plan`: shown in `status.plan`, and done when this is set back to `Apply`.
    pub mode: RebalanceMode,
}

/// Whether nodes join and leave and replicas move by themselves.
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum RebalanceMode {
    /// They do.
    #[default]
    Apply,
    /// What would be done is shown, and waits.
    Plan,
}

/// When a node that is lost gets another place to run.
#[derive(JsonSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ReplacementSpec {
    /// Seconds that a Kubernetes node must be gone or not ready before the pod on it is deleted without waiting for it, so that it
    /// starts elsewhere.
    #[schemars(range(min = 30, max = 86400))]
    pub after_seconds: i32,
}

/// How linearizable reads are served.
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ReadMode {
    /// By the leader's lease.
    #[default]
    Lease,
    /// Each group of reads waits for a record of the leader.
    Log,
}

/// Limits and times of each node.
#[derive(JsonSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LimitsSpec {
    /// Lease of a leader, milliseconds.
    #[schemars(range(min = 200, max = 60000))]
    pub lease_ms: i32,
    /// Time between two heartbeats of a node, milliseconds.
    #[schemars(range(min = 20, max = 10000))]
    pub heartbeat_ms: i32,
    /// Silence after which a node is suspected, milliseconds.
    #[schemars(range(min = 100, max = 60000))]
    pub suspicion_ms: i32,
    /// Most mebibytes of acknowledged effects that a node holds while PostgreSQL is slow or away; above, writes get 429.
    #[schemars(range(min = 1, max = 65536))]
    pub unflushed_mebibytes: i32,
    /// Mebibytes of a node's read cache.
    #[schemars(range(min = 1, max = 65536))]
    pub cache_mebibytes: i32,
}

/// How much of the log stays in Kafka. A record may go when every replica of its slot has it durably in PostgreSQL.
#[derive(JsonSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LogSpec {
    /// Records of each slot that stay although every replica has them.
    #[schemars(range(min = 0, max = 1_000_000_000))]
    pub keep_records: i32,
    /// Seconds after which a replica that is not heard of no longer keeps records, if two others have them; it is rebuilt from
    /// a snapshot when it comes back.
    #[schemars(range(min = 60, max = 31_536_000))]
    pub lost_replica_seconds: i32,
    /// A new replica that would have to read more records of its slot than this begins with a snapshot of another one.
    #[schemars(range(min = 0, max = 1_000_000_000))]
    pub snapshot_from_records: i32,
}

/// What happens to topics and schemas when the `KvCluster` is deleted.
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeletionPolicy {
    /// They stay.
    #[default]
    Retain,
    /// They are removed, when the nodes are gone.
    Delete,
}

/// How a deletion goes.
#[derive(JsonSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DeletionSpec {
    /// Seconds after which a deletion whose Kafka or PostgreSQL cannot be reached ends, naming what it leaves.
    #[schemars(range(min = 1, max = 86400))]
    pub give_up_seconds: i32,
}

impl Default for RingSpec {
    fn default() -> Self {
        Self {
            virtual_nodes: 64,
            load_factor_percent: 125,
        }
    }
}

impl Default for RebalanceSpec {
    fn default() -> Self {
        Self {
            max_concurrent_moves: 4,
            mode: RebalanceMode::Apply,
        }
    }
}

impl Default for ReplacementSpec {
    fn default() -> Self {
        Self { after_seconds: 300 }
    }
}

impl Default for LimitsSpec {
    fn default() -> Self {
        Self {
            lease_ms: 600,
            heartbeat_ms: 150,
            suspicion_ms: 600,
            unflushed_mebibytes: 64,
            cache_mebibytes: 64,
        }
    }
}

impl Default for LogSpec {
    fn default() -> Self {
        Self {
            keep_records: 10_000,
            lost_replica_seconds: 3_600,
            snapshot_from_records: 100_000,
        }
    }
}

impl Default for DeletionSpec {
    fn default() -> Self {
        Self {
            give_up_seconds: 600,
        }
    }
}

fn three() -> i32 {
    3
}

fn two() -> i32 {
    2
}

fn schema_prefix() -> String {
    "kv".to_owned()
}

fn connections_per_node() -> i32 {
    8
}

fn url_key() -> String {
    "url".to_owned()
}
