//! The assignment: the versioned table slot → replicas that the operator publishes and every node follows.
//!
//! It travels as records of the assignment topic. A record is valid iff its `based_on` is the offset of the last valid one,
//! so that of two operators that publish at once exactly one is followed, by all readers alike, and a record that was late
//! counts nowhere. The operator trims only below the newest valid record, so the first record that is left is valid too.
//!
//! Wire form: magic `KVAS`, one byte format version, `xxh3_64` of the body as 8 bytes big-endian, then the body as JSON.

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use crate::ids::{LogId, NodeId, Offset, SlotId};

const MAGIC: &[u8; 4] = b"KVAS";
const FORMAT: u8 = 1;
const HEADER_LENGTH: usize = 13;

/// The table that says who replicates what.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Assignment {
    /// Counts assignments of the cluster, from 1.
    pub version: u64,
    /// Offset of the assignment that this one replaces; none for the first.
    pub based_on: Option<Offset>,
    /// UID of the `KvCluster`.
    pub cluster_uid: String,
    /// The life of the log topic that this assignment is about.
    pub log_id: LogId,
    /// Newest version of the log's record format that nodes may write.
    pub log_version: u16,
    /// Per slot, in order of the slots.
    pub slots: Vec<SlotAssignment>,
    /// The nodes, in order of their ids.
    pub nodes: Vec<NodeEntry>,
    /// The id that the next new node gets, see [`Assignment::next_node`].
    #[serde(default)]
    pub next_node: NodeId,
}

/// The replicas of one slot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SlotAssignment {
    /// Replicas that may lead, in order of preference.
    pub voters: Vec<NodeId>,
    /// Replicas that catch up and may not lead.
    pub learners: Vec<NodeId>,
    /// The voter that should lead when all is well.
    pub preferred_leader: NodeId,
}

/// A node as its peers need it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeEntry {
    /// The node.
    pub id: NodeId,
    /// Where its REST port is reached, `host:port`.
    pub address: String,
    /// Name of the PostgreSQL instance that holds its schema.
    pub postgres_instance: String,
    /// Whether it is being emptied: it gets no more replicas, and goes when it has none.
    #[serde(default)]
    pub leaving: bool,
}

/// Why bytes are not an assignment, or an assignment is not usable.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum AssignmentError {
    /// No magic: some other program's record.
    #[error("not an assignment record")]
    Foreign,
    /// Newer than this program.
    #[error("assignment format {0} is newer than this program reads ({FORMAT}); upgrade it")]
    TooNew(u8),
    /// Damaged on its way.
    #[error("assignment record is damaged: checksum differs")]
    Checksum,
    /// JSON of another shape.
    #[error("assignment record does not parse: {0}")]
    Body(String),
    /// A table that contradicts itself.
    #[error("assignment contradicts itself: {0}")]
    Inconsistent(String),
}

impl Assignment {
    /// The record for the assignment topic.
    pub fn encode(&self) -> Vec<u8> {
        let body = serde_json::to_vec(self).expect("an assignment has only keys that are text");
        let mut record = Vec::with_capacity(HEADER_LENGTH + body.len());
        record.extend_from_slice(MAGIC);
        record.push(FORMAT);
        record.extend_from_slice(&xxh3_64(&body).to_be_bytes());
        record.extend_from_slice(&body);
        record
    }

    /// The assignment in a record, checked.
    pub fn decode(record: &[u8]) -> Result<Self, AssignmentError> {
        let (magic, rest) = record
            .split_first_chunk::<4>()
            .ok_or(AssignmentError::Foreign)?;
        if magic != MAGIC {
            return Err(AssignmentError::Foreign);
        }
        let (&format, rest) = rest.split_first().ok_or(AssignmentError::Checksum)?;
        if format > FORMAT {
            return Err(AssignmentError::TooNew(format));
        }
        let (checksum, body) = rest
            .split_first_chunk::<8>()
            .ok_or(AssignmentError::Checksum)?;
        if u64::from_be_bytes(*checksum) != xxh3_64(body) {
            return Err(AssignmentError::Checksum);
        }
        let assignment: Self =
            serde_json::from_slice(body).map_err(|e| AssignmentError::Body(e.to_string()))?;
        assignment.check()?;
        Ok(assignment)
    }

    /// The entry of a slot.
    pub fn slot(&self, slot: SlotId) -> Option<&SlotAssignment> {
        self.slots.get(slot.index())
    }

    /// The entry of a node.
    pub fn node(&self, node: NodeId) -> Option<&NodeEntry> {
        self.nodes.iter().find(|entry| entry.id == node)
    }

    /// The lowest id that no node has had: ids are never given out twice, so that whatever is left of an earlier node is never
    /// taken for a later one's.
    pub fn next_node(&self) -> NodeId {
        let after = self.nodes.iter().map(|entry| entry.id.get() + 1).max();
        NodeId(after.unwrap_or_default()).max(self.next_node)
    }

    fn check(&self) -> Result<(), AssignmentError> {
        let wrong = |text: String| Err(AssignmentError::Inconsistent(text));
        if self.slots.is_empty() {
            return wrong("no slots".to_owned());
        }
        let mut ids: Vec<_> = self.nodes.iter().map(|entry| entry.id).collect();
        ids.sort_unstable();
        if ids.windows(2).any(|pair| pair[0] == pair[1]) {
            return wrong("a node stands twice".to_owned());
        }
        for (number, slot) in self.slots.iter().enumerate() {
            let mut replicas: Vec<_> = slot.voters.iter().chain(&slot.learners).collect();
            if let Some(stranger) = replicas.iter().find(|id| ids.binary_search(id).is_err()) {
                return wrong(format!(
                    "slot {number} has node {stranger}, which is not listed"
                ));
            }
            if !slot.voters.contains(&slot.preferred_leader) {
                return wrong(format!("slot {number}: the preferred leader is no voter"));
            }
            replicas.sort_unstable();
            if replicas.windows(2).any(|pair| pair[0] == pair[1]) {
                return wrong(format!("slot {number} has a replica twice"));
            }
        }
        Ok(())
    }
}

impl SlotAssignment {
    /// Whether `node` holds a replica of the slot.
    pub fn has_replica(&self, node: NodeId) -> bool {
        self.voters.contains(&node) || self.learners.contains(&node)
    }
}

/// Folds the assignment topic, record by record from its start, into the newest valid assignment.
#[derive(Clone, Debug, Default)]
pub struct AssignmentLog {
    newest: Option<(Offset, Assignment)>,
}

impl AssignmentLog {
    /// Takes the next record of the topic; says whether it became the newest assignment. `cluster_uid`: records of another
    /// cluster do not count.
    pub fn observe(
        &mut self,
        cluster_uid: &str,
        offset: Offset,
        record: &[u8],
    ) -> Result<bool, AssignmentError> {
        let assignment = Assignment::decode(record)?;
        let follows = match &self.newest {
            Some((last, newest)) => {
                assignment.based_on == Some(*last) && assignment.version == newest.version + 1
            }
            None => true,
        };
        let valid = follows && assignment.cluster_uid == cluster_uid;
        if valid {
            self.newest = Some((offset, assignment));
        }
        Ok(valid)
    }

    /// The newest valid assignment and its offset.
    pub fn newest(&self) -> Option<&(Offset, Assignment)> {
        self.newest.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assignment(version: u64, based_on: Option<i64>) -> Assignment {
        Assignment {
            version,
            based_on: based_on.map(Offset),
            cluster_uid: "uid".to_owned(),
            log_id: LogId(7),
            log_version: 1,
            next_node: NodeId(0),
            slots: vec![SlotAssignment {
                voters: vec![NodeId(0), NodeId(1)],
                learners: vec![],
                preferred_leader: NodeId(1),
            }],
            nodes: [0, 1]
                .map(|id| NodeEntry {
                    id: NodeId(id),
                    address: format!("node-{id}:8080"),
                    postgres_instance: "main".to_owned(),
                    leaving: false,
                })
                .into(),
        }
    }

    #[test]
    fn round_trips() {
        let table = assignment(1, None);
        assert_eq!(Assignment::decode(&table.encode()), Ok(table));
    }

    #[test]
    fn ids_are_never_given_out_twice() {
        let mut table = assignment(1, None);
        assert_eq!(
            table.next_node(),
            NodeId(2),
            "an old record without the field"
        );
        table.next_node = NodeId(5);
        assert_eq!(table.next_node(), NodeId(5), "nodes 2 to 4 are gone");
        table.nodes.clear();
        assert_eq!(table.next_node(), NodeId(5));
    }

    #[test]
    fn damage_anywhere_is_seen() {
        let record = assignment(1, None).encode();
        for place in 0..record.len() {
            let mut damaged = record.clone();
            damaged[place] ^= 0x20;
            assert!(Assignment::decode(&damaged).is_err(), "byte {place}");
        }
        for length in 0..record.len() {
            assert!(
                Assignment::decode(&record[..length]).is_err(),
                "cut at {length}"
            );
        }
    }

    #[test]
    fn contradictions_are_refused() {
        let mut stranger = assignment(1, None);
        stranger.slots[0].voters.push(NodeId(9));
        let mut twice = assignment(1, None);
        twice.slots[0].learners.push(NodeId(0));
        let mut leader = assignment(1, None);
        leader.slots[0].preferred_leader = NodeId(5);
        for table in [stranger, twice, leader] {
            let answer = Assignment::decode(&table.encode());
            assert!(
                matches!(answer, Err(AssignmentError::Inconsistent(_))),
                "{answer:?}"
            );
        }
    }

    #[test]
    fn only_what_builds_on_the_newest_counts() {
        let mut log = AssignmentLog::default();
        let mut see = |offset, table: &Assignment| {
            log.observe("uid", Offset(offset), &table.encode())
                .expect("decodes")
        };
        assert!(see(0, &assignment(1, None)));
        assert!(!see(1, &assignment(1, None)), "a second first one");
        assert!(see(2, &assignment(2, Some(0))));
        assert!(!see(3, &assignment(2, Some(0))), "a zombie's late record");
        assert!(see(4, &assignment(3, Some(2))));
        let mut foreign = assignment(4, Some(4));
        foreign.cluster_uid = "other".to_owned();
        assert!(!see(5, &foreign));
        assert_eq!(
            log.newest()
                .map(|(offset, table)| (offset.0, table.version)),
            Some((4, 3))
        );
    }

    #[test]
    fn the_first_record_left_by_the_trim_counts() {
        let mut log = AssignmentLog::default();
        assert!(
            log.observe("uid", Offset(9), &assignment(6, Some(4)).encode())
                .expect("decodes")
        );
    }
}
