//! What one flush writes: whole segments of some slots, the newest effect per key, and every slot's step of its offset. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use kvcluster_crds::{Offset, SlotId};

use crate::effect::{DedupEntry, SlotPosition};
use crate::store::overlay::{Entry, Segment, SlotOverlay, merge};

/// Memory that one flush takes out of the overlays, bytes: keeps a transaction, its bind message and the WAL burst small
/// enough that a slow disk answers well inside the statement timeout. A batch ends with the segment that reaches it.
pub const FLUSH_BYTES_MAX: u64 = 8 * 1_048_576;
/// Rows of one flush, for the same reason.
pub const FLUSH_ROWS_MAX: usize = 20_000;

/// One slot's part of a flush.
#[derive(Clone, Debug)]
pub struct SlotStep {
    /// The slot.
    pub slot: SlotId,
    /// Where PostgreSQL must be for the flush to count.
    pub expected: Offset,
    /// Where it is afterwards; the same as before when the step only proves that nothing was lost.
    pub end: SlotPosition,
    /// Newest effect per key.
    pub entries: BTreeMap<Bytes, Entry>,
    /// What is remembered of requests, in order of records.
    pub dedup: Vec<DedupEntry>,
}

/// One flush.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// In order of the slots.
    pub steps: Vec<SlotStep>,
    segments_bytes: u64,
    segments_rows: usize,
}

impl Batch {
    /// Adds the unflushed segments of a slot, oldest first, until the batch is full; seals the active one. `prove`: adds a step
    /// also when the slot has nothing new. Says whether all of the slot's segments fitted.
    pub fn take(&mut self, slot: SlotId, overlay: &mut SlotOverlay, prove: bool) -> bool {
        overlay.seal();
        let expected = overlay.flushed().next_offset;
        let mut taken: Vec<Arc<Segment>> = Vec::new();
        let mut all = true;
        for segment in overlay.unflushed() {
            if self.is_full() && !segment.entries.is_empty() {
                all = false;
                break;
            }
            self.segments_bytes += segment.bytes;
            self.segments_rows += segment.entries.len();
            taken.push(Arc::clone(segment));
        }
        if prove || !taken.is_empty() {
            let end = taken
                .last()
                .map_or(overlay.flushed(), |segment| &segment.end)
                .clone();
            self.steps.push(SlotStep {
                slot,
                expected,
                end,
                entries: merge(&taken),
                dedup: taken
                    .iter()
                    .flat_map(|segment| segment.dedup.iter().cloned())
                    .collect(),
            });
        }
        all
    }

    /// Puts the steps into the order of the slots: the order in which rows are locked and written.
    pub fn sort(&mut self) {
        self.steps.sort_by_key(|step| step.slot);
    }

    /// Rows that it writes or deletes.
    pub fn rows(&self) -> usize {
        self.steps.iter().map(|step| step.entries.len()).sum()
    }

    /// Bytes of keys and values that it writes.
    pub fn bytes(&self) -> u64 {
        let sizes = self.steps.iter().flat_map(|step| &step.entries);
        sizes
            .map(|(key, entry)| (key.len() + entry.value.as_ref().map_or(0, Bytes::len)) as u64)
            .sum()
    }

    /// The keys with a value: slot, key, value, version.
    pub fn puts(&self) -> impl Iterator<Item = (SlotId, &Bytes, &Bytes, Offset)> {
        self.steps.iter().flat_map(|step| {
            step.entries.iter().filter_map(|(key, entry)| {
                entry
                    .value
                    .as_ref()
                    .map(|value| (step.slot, key, value, entry.version))
            })
        })
    }

    fn is_full(&self) -> bool {
        self.segments_bytes >= FLUSH_BYTES_MAX || self.segments_rows >= FLUSH_ROWS_MAX
    }
}

impl SlotStep {
    /// The keys that are absent afterwards.
    pub fn deletes(&self) -> impl Iterator<Item = &Bytes> {
        self.entries
            .iter()
            .filter(|(_, entry)| entry.value.is_none())
            .map(|(key, _)| key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::effect::{Applied, Effect};

    fn overlay(records: &[(&str, Option<usize>)]) -> SlotOverlay {
        let mut overlay = SlotOverlay::new(SlotPosition::start());
        for (offset, &(key, size)) in records.iter().enumerate() {
            let offset = Offset(i64::try_from(offset).expect("small"));
            let key = Bytes::copy_from_slice(key.as_bytes());
            let effect = match size {
                Some(size) => Effect::Put {
                    key,
                    value: Bytes::from(vec![b'x'; size]),
                },
                None => Effect::Delete { key },
            };
            overlay.apply(&Applied {
                slot: SlotId(0),
                offset,
                effects: vec![effect],
                dedup: None,
                position: SlotPosition {
                    next_offset: offset.next(),
                    ..SlotPosition::start()
                },
            });
        }
        overlay
    }

    #[test]
    fn coalesces_and_parts_puts_from_deletes() {
        let mut overlay = overlay(&[
            ("a", Some(1)),
            ("b", Some(1)),
            ("a", Some(2)),
            ("b", None),
            ("c", None),
        ]);
        let mut batch = Batch::default();
        assert!(batch.take(SlotId(7), &mut overlay, false));
        let puts: Vec<_> = batch
            .puts()
            .map(|(slot, key, value, at)| (slot, key, value.len(), at))
            .collect();
        assert_eq!(puts, [(SlotId(7), &Bytes::from("a"), 2, Offset(2))]);
        let deletes: Vec<_> = batch.steps[0].deletes().collect();
        assert_eq!(deletes, [&Bytes::from("b"), &Bytes::from("c")]);
        assert_eq!(batch.steps[0].expected, Offset(0));
        assert_eq!(batch.steps[0].end.next_offset, Offset(5));
        assert_eq!((batch.rows(), batch.bytes()), (3, 5));
    }

    #[test]
    fn what_is_remembered_goes_with_its_record_and_is_not_coalesced() {
        let entry = |version| DedupEntry {
            key: b"request".as_slice().into(),
            fingerprint: 1,
            version: Offset(version),
            time_ms: 5,
        };
        let mut overlay = SlotOverlay::new(SlotPosition::start());
        let apply = |overlay: &mut SlotOverlay, version: i64| {
            overlay.apply(&Applied {
                slot: SlotId(0),
                offset: Offset(version),
                effects: vec![Effect::Delete { key: "k".into() }],
                dedup: Some(entry(version)),
                position: SlotPosition {
                    next_offset: Offset(version + 1),
                    ..SlotPosition::start()
                },
            });
        };
        apply(&mut overlay, 0);
        let bytes = overlay.bytes();
        apply(&mut overlay, 1);
        assert!(overlay.bytes() > bytes, "it takes memory");
        let mut batch = Batch::default();
        batch.take(SlotId(0), &mut overlay, false);
        assert_eq!(batch.steps[0].dedup, [entry(0), entry(1)]);
        apply(&mut overlay, 2);
        overlay.mark_flushed(Offset(2));
        let mut batch = Batch::default();
        batch.take(SlotId(0), &mut overlay, false);
        assert_eq!(batch.steps[0].dedup, [entry(2)]);
        overlay.mark_flushed(Offset(3));
        overlay.mark_durable(Offset(3), |_, _| {});
        assert_eq!(overlay.bytes(), 0);
    }

    #[test]
    fn a_full_batch_ends_with_a_whole_segment() {
        let keys: Vec<String> = (0..20).map(|number| format!("k{number}")).collect();
        let records: Vec<_> = keys
            .iter()
            .map(|key| (key.as_str(), Some(1_000_000)))
            .collect();
        let mut big = overlay(&records);
        let mut batch = Batch::default();
        assert!(!batch.take(SlotId(0), &mut big, false));
        let end = batch.steps[0].end.next_offset;
        assert!(end < Offset(20));
        let mut other = overlay(&[("z", Some(1))]);
        assert!(!batch.take(SlotId(1), &mut other, false));
        assert_eq!(batch.steps.len(), 1, "nothing of the other slot fits");
        big.mark_flushed(end);
        let mut next = Batch::default();
        next.take(SlotId(0), &mut big, false);
        assert_eq!(next.steps[0].expected, end);
    }

    #[test]
    fn an_idle_slot_is_only_in_a_proof() {
        let mut idle = overlay(&[]);
        let mut batch = Batch::default();
        assert!(batch.take(SlotId(0), &mut idle, false));
        assert!(batch.steps.is_empty());
        batch.take(SlotId(0), &mut idle, true);
        assert_eq!(batch.steps[0].expected, batch.steps[0].end.next_offset);
    }
}
