//! The environment variables that a node is started with: written by the operator, read by the node.

/// Name of the `KvCluster`.
pub const CLUSTER: &str = "KVCLUSTER_CLUSTER";
/// Kubernetes namespace of the `KvCluster`.
pub const NAMESPACE: &str = "KVCLUSTER_NAMESPACE";
/// UID of the `KvCluster`: an assignment of another cluster is not ours.
pub const CLUSTER_UID: &str = "KVCLUSTER_CLUSTER_UID";
/// Id of this node, a number.
pub const NODE_ID: &str = "KVCLUSTER_NODE_ID";
/// Number of slots of the cluster.
pub const SLOTS: &str = "KVCLUSTER_SLOTS";
/// Log id, 16 hexadecimal digits.
pub const LOG_ID: &str = "KVCLUSTER_LOG_ID";
/// Kafka bootstrap servers, `host:port` separated by commas.
pub const KAFKA_BOOTSTRAP: &str = "KVCLUSTER_KAFKA_BOOTSTRAP";
/// PostgreSQL URL of this node's role.
pub const POSTGRES_URL: &str = "KVCLUSTER_POSTGRES_URL";
/// PostgreSQL schema of this node.
pub const POSTGRES_SCHEMA: &str = "KVCLUSTER_POSTGRES_SCHEMA";
/// Most PostgreSQL connections of this node.
pub const POSTGRES_CONNECTIONS: &str = "KVCLUSTER_POSTGRES_CONNECTIONS";
/// Address that the REST port listens on, `ip:port`.
pub const LISTEN: &str = "KVCLUSTER_LISTEN";
/// Address that the admin port listens on, `ip:port`.
pub const ADMIN_LISTEN: &str = "KVCLUSTER_ADMIN_LISTEN";
/// Lease of a leader, milliseconds.
pub const LEASE_MS: &str = "KVCLUSTER_LEASE_MS";
/// Time between two heartbeats, milliseconds.
pub const HEARTBEAT_MS: &str = "KVCLUSTER_HEARTBEAT_MS";
/// Time without a heartbeat after which a node is suspected, milliseconds.
pub const SUSPICION_MS: &str = "KVCLUSTER_SUSPICION_MS";
/// Most bytes of effects that are in the log but not in PostgreSQL; above, writes get 429.
pub const UNFLUSHED_BYTES_MAX: &str = "KVCLUSTER_UNFLUSHED_BYTES_MAX";
/// Bytes of the read cache.
pub const CACHE_BYTES: &str = "KVCLUSTER_CACHE_BYTES";
/// How linearizable reads are served: `Lease` or `Log`.
pub const READS: &str = "KVCLUSTER_READS";
/// Records of each slot that stay in the log although every replica has them durably.
pub const LOG_KEEP_RECORDS: &str = "KVCLUSTER_LOG_KEEP_RECORDS";
/// Seconds after which a replica that is not heard of no longer keeps the log from being trimmed.
pub const LOST_REPLICA_SECONDS: &str = "KVCLUSTER_LOST_REPLICA_SECONDS";
/// Seconds for which the rows of a slot stay, at least, that is not assigned to the node any more.
pub const REMOVE_AFTER_SECONDS: &str = "KVCLUSTER_REMOVE_AFTER_SECONDS";
/// A replica without state that would have to read more records than this asks others for a snapshot.
pub const SNAPSHOT_FROM_RECORDS: &str = "KVCLUSTER_SNAPSHOT_FROM_RECORDS";
