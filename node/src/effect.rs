//! What a command does to keys: the content of the log and of the store. Pure data.

use bytes::Bytes;
use kvcluster_crds::{Epoch, Incarnation, NodeId, Offset, SlotId};
use serde::{Deserialize, Serialize};

use crate::seeded::{self, Bug};

/// Longest key, bytes. Above: refused with 413.
pub const KEY_BYTES_MAX: usize = 2_048;
/// Longest value, bytes. Above: refused with 413.
pub const VALUE_BYTES_MAX: usize = 1_048_576;

/// One change of one key. Applying it needs no read, so every replica applies it alike.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// The key has this value now.
    Put {
        /// 1 to [`KEY_BYTES_MAX`] bytes.
        key: Bytes,
        /// 0 to [`VALUE_BYTES_MAX`] bytes.
        value: Bytes,
    },
    /// The key is absent now.
    Delete {
        /// 1 to [`KEY_BYTES_MAX`] bytes.
        key: Bytes,
    },
}

impl Effect {
    /// The key that is changed.
    pub fn key(&self) -> &Bytes {
        match self {
            Self::Put { key, .. } | Self::Delete { key } => key,
        }
    }

    /// Bytes of key and value.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Put { key, value } => key.len() + value.len(),
            Self::Delete { key } => key.len(),
        }
    }
}

/// Where a replica of a slot stands in its log: what must be known to judge the next record. Stored with the state it
/// belongs to, in the same transaction (table `slot_state`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SlotPosition {
    /// Offset of the next record to judge.
    pub next_offset: Offset,
    /// `xxh3_64` of the bytes of the record before it; none when no record was read yet. Compared on resume.
    pub checksum_before: Option<u64>,
    /// Epoch of the current leader; 0 before the first.
    pub epoch: Epoch,
    /// The leader and its process; none before the first claim.
    pub leader: Option<(NodeId, Incarnation)>,
    /// Offset of the last *valid* record of the current leader, its claim included.
    pub last_leader_offset: Option<Offset>,
    /// `seq` of the last valid record of the epoch; 0 after a claim.
    pub last_seq: u64,
    /// The node that a valid `Release` of this epoch names; none while none stands.
    pub released_to: Option<NodeId>,
    /// Lease of the epoch as its claim says, milliseconds; 0 before the first claim.
    pub lease_ms: u32,
    /// The state is that of one offset only from here on: it was put together from snapshots of several cuts, the newest of
    /// which holds everything before this offset. None once the log was applied up to there. Until then nothing may be
    /// read, and the replica may not lead. [`SlotPosition::NO_SNAPSHOT_YET`]: while a snapshot is being loaded.
    pub whole_at: Option<Offset>,
}

impl SlotPosition {
    /// [`SlotPosition::whole_at`] of a slot whose snapshot is not there whole: no log can reach it.
    pub const NO_SNAPSHOT_YET: Offset = Offset(i64::MAX);

    /// The position before the first record of a log.
    pub fn start() -> Self {
        Self {
            next_offset: Offset(0),
            checksum_before: None,
            epoch: Epoch(0),
            leader: None,
            last_leader_offset: None,
            last_seq: 0,
            released_to: None,
            lease_ms: 0,
            whole_at: None,
        }
    }

    /// The position that a snapshot of a state at this position carries: all of it. What the next record is judged by belongs to
    /// the state as its rows do.
    #[must_use]
    pub fn of_snapshot(&self) -> Self {
        if seeded::on(Bug::SnapshotWithoutProtocol) {
            return Self {
                next_offset: self.next_offset,
                checksum_before: self.checksum_before,
                ..Self::start()
            };
        }
        self.clone()
    }

    /// Notes that rows of another cut have joined the state of this one.
    pub fn join_cut(&mut self, cut: &Self) {
        if self.next_offset < cut.next_offset {
            self.whole_at = self.whole_at.max(Some(cut.next_offset));
        }
    }

    /// Whether what is stored of the slot is a part of a snapshot: only the rest of it helps.
    pub fn needs_snapshot(&self) -> bool {
        self.whole_at == Some(Self::NO_SNAPSHOT_YET)
    }
}

/// A value and its version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Versioned {
    /// The bytes.
    pub value: Bytes,
    /// Offset of the record that wrote it, within its slot.
    pub version: Offset,
}

/// The slot and the effects of one record, on their way into the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// The slot.
    pub slot: SlotId,
    /// Offset of the record = version of what it writes.
    pub offset: Offset,
    /// Its effects, in order; empty for records that change no key.
    pub effects: Vec<Effect>,
    /// The position after the record.
    pub position: SlotPosition,
}
