//! What a command does to keys: the content of the log and of the store. Pure data.

use std::sync::Arc;

use bytes::Bytes;
use kvcluster_crds::{Epoch, Incarnation, NodeId, Offset, SlotId};
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::Xxh3;

use crate::seeded::{self, Bug};

/// Longest key, bytes. Above: refused with 413.
pub const KEY_BYTES_MAX: usize = 2_048;
/// Longest value, bytes. Above: refused with 413.
pub const VALUE_BYTES_MAX: usize = 1_048_576;
/// Longest idempotency key, bytes. Above: refused with 400.
pub const IDEMPOTENCY_KEY_BYTES_MAX: usize = 128;

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

/// A client's name for a request, by which the request is known again when it is sent once more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Idempotency {
    /// 1 to [`IDEMPOTENCY_KEY_BYTES_MAX`] bytes.
    pub key: Bytes,
    /// What is asked for, see [`fingerprint`]: another request with the same key is a mistake.
    pub fingerprint: u64,
}

/// What is asked for, as a number that stands in the log: `xxh3_64` of each effect's kind, its key and its value, both with
/// their length in four bytes before them.
pub fn fingerprint(effects: &[Effect]) -> u64 {
    let mut hash = Xxh3::new();
    for effect in effects {
        let (kind, key, value) = match effect {
            Effect::Put { key, value } => (1, key, Some(value)),
            Effect::Delete { key } => (2, key, None),
        };
        hash.update(&[kind]);
        for part in std::iter::once(key).chain(value) {
            let length = u32::try_from(part.len()).expect("keys and values have limits");
            hash.update(&length.to_be_bytes());
            hash.update(part);
        }
    }
    hash.digest()
}

/// What is remembered of a request with an idempotency key that took effect (table `dedup`). It is derived from the log like
/// the keys' values, and belongs to every cut of a slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DedupEntry {
    /// The idempotency key. A copy: it must not hold a whole record in memory.
    pub key: Arc<[u8]>,
    /// What was asked for.
    pub fingerprint: u64,
    /// Offset of the record.
    pub version: Offset,
    /// Time of the record, milliseconds since 1970.
    pub time_ms: u64,
}

/// A slot as it is stored: where a replica begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// Where it stands.
    pub position: SlotPosition,
    /// What it remembers of requests, in order of their records.
    pub dedup: Vec<DedupEntry>,
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
    /// The slot's time: the latest that a valid command carried, milliseconds since 1970; 0 before the first.
    pub time_ms: u64,
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
            time_ms: 0,
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
    /// What is to be remembered of its request, when that had an idempotency key.
    pub dedup: Option<DedupEntry>,
    /// The position after the record.
    pub position: SlotPosition,
}

impl Loaded {
    /// A slot before the first record of its log.
    pub fn start() -> Self {
        Self {
            position: SlotPosition::start(),
            dedup: Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(key: &'static str, value: &'static str) -> Effect {
        Effect::Put {
            key: key.into(),
            value: value.into(),
        }
    }

    /// A change here makes retries of a running cluster look like other requests.
    #[test]
    fn fingerprints_are_golden() {
        let delete = Effect::Delete { key: "key".into() };
        let golden = [
            fingerprint(&[put("key", "value")]),
            fingerprint(std::slice::from_ref(&delete)),
            fingerprint(&[put("key", "value"), delete]),
        ];
        let expected = [
            0xa953_46fd_52c5_4e2d,
            0xda23_9e57_018f_9081,
            0x7047_4053_cd6f_a53d,
        ];
        assert_eq!(golden, expected);
    }

    #[test]
    fn whatever_differs_has_another_fingerprint() {
        let delete = |key: &'static str| Effect::Delete { key: key.into() };
        let all = [
            vec![],
            vec![put("a", "b")],
            vec![put("ab", "")],
            vec![put("", "ab")],
            vec![delete("a")],
            vec![delete("ab")],
            vec![put("a", "b"), delete("a")],
            vec![delete("a"), put("a", "b")],
        ];
        let numbers: std::collections::BTreeSet<u64> =
            all.iter().map(|effects| fingerprint(effects)).collect();
        assert_eq!(numbers.len(), all.len());
    }
}
