//! What is applied to one slot and not yet in PostgreSQL for good. Pure data, no I/O, no lock.
//!
//! ```text
//!  records ──apply──▶ active ──seal──▶ sealed, unflushed ──flush──▶ sealed, flushed ──durable──▶ dropped
//!                     └──────────────── index: newest effect per key, for reads ──────────────┘
//! ```
//! Segments end on record boundaries and carry the position there, so a flush of whole segments is an exact cut. A flushed
//! segment is kept until it is durable: with `synchronous_commit=off` a crash of PostgreSQL takes the newest commits back,
//! and they are then flushed again from here, without reading the log again.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use kvcluster_crds::Offset;

use crate::effect::{Applied, DedupEntry, Effect, SlotPosition, Versioned};

/// Bytes at which the active segment is sealed: one flush takes whole segments, so this bounds how far over its limit a
/// flush can get.
const SEGMENT_BYTES: u64 = 1_048_576;
/// Rows at which the active segment is sealed, for the same reason.
const SEGMENT_ROWS: usize = 5_000;
/// Memory of one entry besides its key and value, bytes: two map entries and two reference-counted buffers, estimated.
const ENTRY_OVERHEAD_BYTES: u64 = 192;
/// Memory of what is remembered of one request besides its key, bytes, estimated.
const DEDUP_OVERHEAD_BYTES: u64 = 64;

/// The newest effect on a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Offset of the record.
    pub version: Offset,
    /// The value; none when the key was deleted.
    pub value: Option<Bytes>,
}

impl Entry {
    /// What a reader of the key gets.
    pub fn versioned(self) -> Option<Versioned> {
        let version = self.version;
        self.value.map(|value| Versioned { value, version })
    }
}

/// The effects of a run of records, the newest per key, and the position after the last of them.
#[derive(Clone, Debug)]
pub struct Segment {
    /// The position after the run.
    pub end: SlotPosition,
    /// Newest effect per key within the run.
    pub entries: BTreeMap<Bytes, Entry>,
    /// What is remembered of the run's requests, in order.
    pub dedup: Vec<DedupEntry>,
    /// Memory that the entries take, bytes, estimated.
    pub bytes: u64,
}

impl Segment {
    fn empty(at: SlotPosition) -> Self {
        Self {
            end: at,
            entries: BTreeMap::new(),
            dedup: Vec::new(),
            bytes: 0,
        }
    }

    fn put(&mut self, effect: &Effect, version: Offset) {
        let (key, value) = match effect {
            Effect::Put { key, value } => (key, Some(value.clone())),
            Effect::Delete { key } => (key, None),
        };
        let entry = Entry { version, value };
        self.bytes += entry_bytes(key, &entry);
        if let Some(old) = self.entries.insert(key.clone(), entry) {
            self.bytes -= entry_bytes(key, &old);
        }
    }
}

/// Why PostgreSQL's offset of a slot cannot be ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReconcileError {
    /// Below what was durable: a restored backup, or a disk that lies.
    #[error(
        "PostgreSQL went back to offset {stored}, below {durable}, which it had stored for good"
    )]
    BelowDurable {
        /// What PostgreSQL has.
        stored: Offset,
        /// What it must have at least.
        durable: Offset,
    },
    /// Not an offset that this process ever wrote.
    #[error("PostgreSQL is at offset {stored}, which this process did not write")]
    NotOurs {
        /// What PostgreSQL has.
        stored: Offset,
    },
}

/// The overlay of one slot.
#[derive(Debug)]
pub struct SlotOverlay {
    index: HashMap<Bytes, Entry>,
    active: Segment,
    /// Oldest first; the first `flushed_segments` of them are flushed.
    sealed: VecDeque<Arc<Segment>>,
    flushed_segments: usize,
    flushed: SlotPosition,
    durable: SlotPosition,
    /// Rows of the active and the sealed, unflushed segments.
    unflushed_rows: usize,
    bytes: u64,
}

impl SlotOverlay {
    /// Of a slot that stands at `position` in PostgreSQL, for good.
    pub fn new(position: SlotPosition) -> Self {
        Self {
            index: HashMap::new(),
            active: Segment::empty(position.clone()),
            sealed: VecDeque::new(),
            flushed_segments: 0,
            durable: position.clone(),
            flushed: position,
            unflushed_rows: 0,
            bytes: 0,
        }
    }

    /// Takes the next record.
    ///
    /// # Panics
    /// When the record is not after all that were applied: the caller applies in order.
    pub fn apply(&mut self, applied: &Applied) {
        assert!(
            applied.offset >= self.active.end.next_offset
                && applied.position.next_offset > applied.offset,
            "record {} of slot {} is applied out of order",
            applied.offset,
            applied.slot
        );
        let (bytes, rows) = (self.active.bytes, self.active.entries.len());
        for effect in &applied.effects {
            self.active.put(effect, applied.offset);
            let entry = self.active.entries[effect.key()].clone();
            self.index.insert(effect.key().clone(), entry);
        }
        if let Some(entry) = &applied.dedup {
            self.active.bytes += entry.key.len() as u64 + DEDUP_OVERHEAD_BYTES;
            self.active.dedup.push(entry.clone());
        }
        self.active.end = applied.position.clone();
        self.bytes = self.bytes + self.active.bytes - bytes;
        self.unflushed_rows += self.active.entries.len() - rows;
        if self.active.bytes >= SEGMENT_BYTES || self.active.entries.len() >= SEGMENT_ROWS {
            self.seal();
        }
    }

    /// The newest effect on `key` that is not known to be in PostgreSQL for good.
    pub fn get(&self, key: &[u8]) -> Option<&Entry> {
        self.index.get(key)
    }

    /// Ends the active segment, if any record came since the last one.
    pub fn seal(&mut self) {
        let last = self
            .sealed
            .back()
            .map_or(self.flushed.next_offset, |s| s.end.next_offset);
        if self.active.end.next_offset > last {
            let next = Segment::empty(self.active.end.clone());
            let full = std::mem::replace(&mut self.active, next);
            self.sealed.push_back(Arc::new(full));
        }
    }

    /// The sealed segments that are not flushed, oldest first.
    pub fn unflushed(&self) -> impl Iterator<Item = &Arc<Segment>> {
        self.sealed.iter().skip(self.flushed_segments)
    }

    /// Rows that wait for a flush.
    pub fn unflushed_rows(&self) -> usize {
        self.unflushed_rows
    }

    /// Memory of all that is kept, bytes, estimated.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The position after the newest record.
    pub fn applied(&self) -> &SlotPosition {
        &self.active.end
    }

    /// The position that PostgreSQL has committed, as far as known.
    pub fn flushed(&self) -> &SlotPosition {
        &self.flushed
    }

    /// The offset that a crash of PostgreSQL cannot take back.
    pub fn durable(&self) -> Offset {
        self.durable.next_offset
    }

    /// Notes that everything below `offset`, the end of a sealed segment, is committed.
    pub fn mark_flushed(&mut self, offset: Offset) {
        while let Some(segment) = self.sealed.get(self.flushed_segments)
            && segment.end.next_offset <= offset
        {
            self.unflushed_rows -= segment.entries.len();
            self.flushed = segment.end.clone();
            self.flushed_segments += 1;
        }
    }

    /// Notes that everything below `offset` is committed for good, and drops it; `left` gets the entries that were still the
    /// newest of their keys.
    pub fn mark_durable(&mut self, offset: Offset, mut left: impl FnMut(Bytes, Entry)) {
        while self.flushed_segments > 0
            && self
                .sealed
                .front()
                .is_some_and(|s| s.end.next_offset <= offset)
        {
            let segment = self.sealed.pop_front().expect("just seen at the front");
            self.flushed_segments -= 1;
            self.durable = segment.end.clone();
            self.bytes -= segment.bytes;
            for (key, entry) in &segment.entries {
                if self
                    .index
                    .get(key)
                    .is_some_and(|newest| newest.version == entry.version)
                {
                    self.index.remove(key);
                    left(key.clone(), entry.clone());
                }
            }
        }
    }

    /// Takes PostgreSQL's own offset after a connection was lost: a commit whose outcome was unknown is decided by it, and
    /// commits that a crash took back wait for a flush again.
    pub fn reconcile(&mut self, stored: Offset) -> Result<(), ReconcileError> {
        let durable = self.durable.next_offset;
        if stored < durable {
            return Err(ReconcileError::BelowDurable { stored, durable });
        }
        let ends = self
            .sealed
            .iter()
            .filter(|s| s.end.next_offset <= stored)
            .count();
        let position = match ends.checked_sub(1) {
            Some(last) => &self.sealed[last].end,
            None => &self.durable,
        };
        if position.next_offset != stored {
            return Err(ReconcileError::NotOurs { stored });
        }
        self.flushed = position.clone();
        self.flushed_segments = ends;
        self.unflushed_rows =
            self.unflushed().map(|s| s.entries.len()).sum::<usize>() + self.active.entries.len();
        Ok(())
    }

    /// All that is kept, as one cut: the offset that it reaches up to, and the segments, oldest first.
    pub fn cut(&mut self) -> (Offset, Vec<Arc<Segment>>) {
        self.seal();
        (
            self.active.end.next_offset,
            self.sealed.iter().cloned().collect(),
        )
    }
}

/// The newest effect per key of several segments, given oldest first.
pub fn merge<'a>(segments: impl IntoIterator<Item = &'a Arc<Segment>>) -> BTreeMap<Bytes, Entry> {
    let mut newest = BTreeMap::new();
    for segment in segments {
        for (key, entry) in &segment.entries {
            newest.insert(key.clone(), entry.clone());
        }
    }
    newest
}

fn entry_bytes(key: &Bytes, entry: &Entry) -> u64 {
    (key.len() + entry.value.as_ref().map_or(0, Bytes::len)) as u64 + ENTRY_OVERHEAD_BYTES
}

#[cfg(test)]
mod tests {
    use kvcluster_crds::SlotId;

    use super::*;

    fn record(offset: i64, effects: &[(&str, Option<&str>)]) -> Applied {
        let bytes = |text: &str| Bytes::copy_from_slice(text.as_bytes());
        let effects = effects.iter().map(|&(key, value)| match value {
            Some(value) => Effect::Put {
                key: bytes(key),
                value: bytes(value),
            },
            None => Effect::Delete { key: bytes(key) },
        });
        Applied {
            slot: SlotId(0),
            offset: Offset(offset),
            effects: effects.collect(),
            dedup: None,
            position: at(offset + 1),
        }
    }

    fn at(next_offset: i64) -> SlotPosition {
        SlotPosition {
            next_offset: Offset(next_offset),
            ..SlotPosition::start()
        }
    }

    /// Segments [0, 2), [2, 3), [3, 5) and a record 5 in the active one.
    fn overlay() -> SlotOverlay {
        let mut overlay = SlotOverlay::new(at(0));
        overlay.apply(&record(0, &[("a", Some("0")), ("b", Some("0"))]));
        overlay.apply(&record(1, &[("a", Some("1"))]));
        overlay.seal();
        overlay.apply(&record(2, &[("a", None)]));
        overlay.seal();
        overlay.apply(&record(3, &[]));
        overlay.apply(&record(4, &[("c", Some("4"))]));
        overlay.seal();
        overlay.apply(&record(5, &[("c", Some("5"))]));
        overlay
    }

    fn version(overlay: &SlotOverlay, key: &str) -> Option<i64> {
        overlay.get(key.as_bytes()).map(|entry| entry.version.0)
    }

    fn unflushed_ends(overlay: &SlotOverlay) -> Vec<i64> {
        overlay
            .unflushed()
            .map(|segment| segment.end.next_offset.0)
            .collect()
    }

    #[test]
    fn the_newest_effect_is_read_and_coalesced() {
        let overlay = overlay();
        assert_eq!(version(&overlay, "a"), Some(2));
        assert_eq!(
            overlay.get(b"a").and_then(|entry| entry.value.clone()),
            None
        );
        assert_eq!(version(&overlay, "c"), Some(5));
        let first = overlay.unflushed().next().expect("a segment");
        assert_eq!(
            first.entries[b"a".as_slice()].version,
            Offset(1),
            "newest of the segment"
        );
        assert_eq!(unflushed_ends(&overlay), [2, 3, 5]);
        assert_eq!(overlay.unflushed_rows(), 5);
    }

    #[test]
    fn what_is_flushed_stays_until_it_is_durable() {
        let mut overlay = overlay();
        let all = overlay.bytes();
        overlay.mark_flushed(Offset(3));
        assert_eq!(
            (overlay.flushed().next_offset, overlay.durable()),
            (Offset(3), Offset(0))
        );
        assert_eq!(unflushed_ends(&overlay), [5]);
        assert_eq!((overlay.unflushed_rows(), overlay.bytes()), (2, all));
        assert_eq!(version(&overlay, "b"), Some(0));
        let mut left = Vec::new();
        overlay.mark_durable(Offset(3), |key, entry| left.push((key, entry.version.0)));
        assert_eq!(left, [(Bytes::from("b"), 0), (Bytes::from("a"), 2)]);
        assert_eq!(
            (version(&overlay, "a"), version(&overlay, "b")),
            (None, None)
        );
        assert_eq!(
            (version(&overlay, "c"), overlay.durable()),
            (Some(5), Offset(3))
        );
        overlay.seal();
        overlay.mark_flushed(Offset(6));
        overlay.mark_durable(Offset(6), |_, _| {});
        assert_eq!((overlay.bytes(), overlay.unflushed_rows()), (0, 0));
        assert!(overlay.get(b"c").is_none());
    }

    #[test]
    fn a_rolled_back_commit_waits_for_a_flush_again() {
        let mut overlay = overlay();
        overlay.mark_flushed(Offset(2));
        overlay.mark_durable(Offset(2), |_, _| {});
        overlay.mark_flushed(Offset(5));
        assert_eq!(overlay.reconcile(Offset(3)), Ok(()));
        assert_eq!(unflushed_ends(&overlay), [5]);
        assert_eq!(overlay.flushed().next_offset, Offset(3));
        assert_eq!(
            overlay.reconcile(Offset(2)),
            Ok(()),
            "back to what is durable"
        );
        assert_eq!(unflushed_ends(&overlay), [3, 5]);
        assert_eq!(overlay.unflushed_rows(), 3);
        assert_eq!(
            version(&overlay, "a"),
            Some(2),
            "reads never saw a difference"
        );
    }

    #[test]
    fn a_commit_of_unknown_outcome_is_taken_as_done() {
        let mut overlay = overlay();
        assert_eq!(overlay.reconcile(Offset(3)), Ok(()));
        assert_eq!(unflushed_ends(&overlay), [5]);
        assert_eq!(overlay.flushed().next_offset, Offset(3));
    }

    #[test]
    fn offsets_that_cannot_be_ours_are_refused() {
        let mut overlay = overlay();
        overlay.mark_flushed(Offset(3));
        overlay.mark_durable(Offset(3), |_, _| {});
        let below = ReconcileError::BelowDurable {
            stored: Offset(2),
            durable: Offset(3),
        };
        assert_eq!(overlay.reconcile(Offset(2)), Err(below));
        for stored in [4, 6, 99].map(Offset) {
            assert_eq!(
                overlay.reconcile(stored),
                Err(ReconcileError::NotOurs { stored })
            );
        }
    }

    #[test]
    fn a_cut_holds_all_that_is_kept() {
        let mut overlay = overlay();
        overlay.mark_flushed(Offset(2));
        let (end, segments) = overlay.cut();
        assert_eq!(end, Offset(6));
        let newest: Vec<_> = merge(&segments)
            .into_iter()
            .map(|(key, entry)| (key, entry.version.0, entry.value.is_some()))
            .collect();
        let expected = [("a", 2, false), ("b", 0, true), ("c", 5, true)];
        assert_eq!(
            newest,
            expected.map(|(key, version, live)| (Bytes::from(key), version, live))
        );
        let again = overlay.cut();
        assert_eq!(again.1.len(), segments.len(), "nothing new, nothing sealed");
    }

    #[test]
    fn large_segments_are_sealed_on_the_way() {
        let mut overlay = SlotOverlay::new(at(0));
        let big = "x".repeat(400_000);
        for offset in 0..6 {
            overlay.apply(&record(offset, &[(&format!("k{offset}"), Some(&big))]));
        }
        assert_eq!(unflushed_ends(&overlay), [3, 6]);
    }

    #[test]
    #[should_panic(expected = "out of order")]
    fn an_older_record_is_refused() {
        overlay().apply(&record(4, &[]));
    }
}
