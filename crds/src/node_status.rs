//! What a node reports on `GET /status` of its admin port: the operator's evidence, and `cargo lab status`'s.

use serde::{Deserialize, Serialize};

use crate::ids::{Epoch, Incarnation, LogId, NodeId, SlotId};

/// A node's view of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeStatus {
    /// The node.
    pub node: NodeId,
    /// Its process start.
    pub incarnation: Incarnation,
    /// UID of the cluster that it serves.
    pub cluster_uid: String,
    /// The log that it follows.
    pub log_id: LogId,
    /// Version of the assignment that it follows; none before it read one.
    pub assignment_version: Option<u64>,
    /// Whether its own heartbeats came back lately: Kafka takes writes and gives reads.
    pub kafka_connected: bool,
    /// Whether its last PostgreSQL statement went well.
    pub postgres_connected: bool,
    /// What stands between the node and service, in words; none when nothing does.
    pub problem: Option<String>,
    /// Bytes of effects that are applied but not in PostgreSQL.
    pub unflushed_bytes: u64,
    /// The limit of the same; above it writes are refused.
    pub unflushed_bytes_max: u64,
    /// The slots that the node replicates, in order.
    pub slots: Vec<SlotStatus>,
}

/// A node's view of one slot. Offsets are the *next* ones: `applied` 5 means that records 0 to 4 are applied.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SlotStatus {
    /// The slot.
    pub slot: SlotId,
    /// What this node does for it.
    pub role: SlotRole,
    /// The leader as of the last applied record.
    pub leader: Option<NodeId>,
    /// The epoch as of the last applied record.
    pub epoch: Epoch,
    /// Taken into memory up to here.
    pub applied: i64,
    /// Committed to PostgreSQL up to here.
    pub flushed: i64,
    /// Committed so that a crash of PostgreSQL cannot take it back, up to here.
    pub durable: i64,
    /// Whether the replica has read up to what was the log's end when last looked at.
    pub caught_up: bool,
    /// Bytes that its rows take in PostgreSQL, indexes included, as last measured; 0 before.
    #[serde(default)]
    pub bytes: u64,
    /// Records that counted, since the start of the process.
    pub records_valid: u64,
    /// Records that were read and ignored, since the start of the process.
    pub records_ignored: u64,
    /// Why the replica stands still, for ever until somebody acts; none when it does not.
    pub frozen: Option<String>,
}

/// What a node does for a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum SlotRole {
    /// Follows the log.
    Follower,
    /// Has sent a claim and waits for its place in the log.
    Claiming,
    /// Leads: serves reads and writes.
    Leader,
    /// Led, and does not write again in this epoch: an outcome is unknown or it has released.
    SteppedDown,
}
