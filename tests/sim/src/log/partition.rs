//! One partition as its brokers keep it: records at growing offsets, offsets without a record, a begin that retention moves,
//! and an end up to which all in-sync replicas have it. Pure.

use std::collections::BTreeMap;

use bytes::Bytes;

/// A producer's life and the number of a record in it: by these a broker knows a record that is sent once more.
pub(super) type Origin = (u64, u64);

/// What stands at an offset.
#[derive(Clone, Debug)]
struct Place {
    /// None: the marker of a transaction.
    bytes: Option<Bytes>,
    origin: Option<Origin>,
}

/// What a reader finds at its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// The next record at or behind the place.
    Record(i64, Bytes),
    /// Nothing up to here.
    End(i64),
    /// The place was trimmed away, or lies behind the end.
    OutOfRange,
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub(super) struct Partition {
    /// What retention removed stays here for those who judge a whole run; readers do not see it.
    places: BTreeMap<i64, Place>,
    known: BTreeMap<Origin, i64>,
    start: i64,
    next: i64,
    /// Readers see what stands before, and its senders are told.
    committed: i64,
    /// The other replicas do not follow now.
    alone: bool,
}

impl Partition {
    /// Takes a record, once for each origin; answers its offset.
    pub(super) fn append(&mut self, origin: Option<Origin>, bytes: Bytes) -> i64 {
        if let Some(offset) = origin.and_then(|origin| self.known.get(&origin)) {
            return *offset;
        }
        let bytes = Some(bytes);
        self.push(Place { bytes, origin })
    }

    /// An offset without a record.
    pub(super) fn mark(&mut self) -> i64 {
        self.push(Place {
            bytes: None,
            origin: None,
        })
    }

    fn push(&mut self, place: Place) -> i64 {
        let offset = self.next;
        if let Some(origin) = place.origin {
            self.known.insert(origin, offset);
        }
        self.places.insert(offset, place);
        self.next += 1;
        if !self.alone {
            self.committed = self.next;
        }
        offset
    }

    /// Whether the other replicas follow: only what they have is seen by readers and acknowledged.
    pub(super) fn set_alone(&mut self, alone: bool) {
        self.alone = alone;
        if !alone {
            self.committed = self.next;
        }
    }

    /// Another replica leads: what only the old one had is gone. Answers how many records that were.
    pub(super) fn elect(&mut self) -> usize {
        let lost = self.places.split_off(&self.committed);
        let count = lost.len();
        for (_, place) in lost {
            if let Some(origin) = place.origin {
                self.known.remove(&origin);
            }
        }
        self.next = self.committed;
        self.alone = false;
        count
    }

    /// Retention removes what stands before `offset`.
    pub(super) fn trim(&mut self, offset: i64) {
        self.start = self.start.max(offset.min(self.committed));
    }

    /// The first offset that is left, and the next one.
    pub(super) fn ends(&self) -> (i64, i64) {
        (self.start, self.committed)
    }

    /// Whether the record at `offset` may be acknowledged.
    pub(super) fn is_committed(&self, offset: i64) -> bool {
        offset < self.committed
    }

    /// What a reader at `place` gets next.
    pub(super) fn read(&self, place: i64) -> Found {
        if place < self.start || place > self.committed {
            return Found::OutOfRange;
        }
        self.places
            .range(place..self.committed)
            .find_map(|(offset, at)| Some(Found::Record(*offset, at.bytes.clone()?)))
            .unwrap_or(Found::End(self.committed))
    }

    /// Every record that ever stood, trimmed ones included.
    pub(super) fn records(&self) -> Vec<(i64, Bytes)> {
        let committed = self.places.range(..self.committed);
        committed
            .filter_map(|(offset, at)| Some((*offset, at.bytes.clone()?)))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(text: &'static str) -> Bytes {
        Bytes::from_static(text.as_bytes())
    }

    #[test]
    fn a_record_that_is_sent_again_stands_once() {
        let mut partition = Partition::default();
        assert_eq!(partition.append(Some((1, 1)), bytes("a")), 0);
        assert_eq!(partition.append(Some((1, 1)), bytes("a")), 0);
        assert_eq!(partition.append(Some((2, 1)), bytes("a")), 1);
        assert_eq!(partition.append(None, bytes("a")), 2);
    }

    #[test]
    fn readers_pass_over_markers_and_see_the_ends() {
        let mut partition = Partition::default();
        partition.append(None, bytes("a"));
        partition.mark();
        partition.append(None, bytes("b"));
        partition.mark();
        assert_eq!(partition.read(1), Found::Record(2, bytes("b")));
        assert_eq!(partition.read(3), Found::End(4));
        assert_eq!(partition.read(5), Found::OutOfRange);
        partition.trim(2);
        assert_eq!(partition.read(1), Found::OutOfRange);
        assert_eq!(partition.read(2), Found::Record(2, bytes("b")));
        assert_eq!(partition.records().len(), 2, "kept for judges");
    }

    #[test]
    fn an_election_takes_back_what_nobody_was_told_of() {
        let mut partition = Partition::default();
        partition.append(Some((1, 1)), bytes("kept"));
        partition.set_alone(true);
        let lost = partition.append(Some((1, 2)), bytes("lost"));
        assert!(!partition.is_committed(lost));
        assert_eq!(partition.read(1), Found::End(1), "nobody reads it");
        partition.elect();
        assert_eq!(partition.append(None, bytes("other")), lost);
        assert_eq!(partition.append(Some((1, 2)), bytes("lost")), 2, "anew");
        let texts: Vec<_> = partition.records().into_iter().map(|(_, b)| b).collect();
        assert_eq!(texts, [bytes("kept"), bytes("other"), bytes("lost")]);
    }
}
