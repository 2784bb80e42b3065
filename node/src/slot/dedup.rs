//! Which requests of a slot took effect, by their idempotency keys. Pure, and the same at every replica: derived from the
//! slot's records, in order, and from the time that they carry; no clock is read.
//!
//! A record's time never goes back in its slot. An entry is forgotten by the first record that is [`WINDOW_MS`] later than
//! it. A leader looks here before it writes, so a key is here at most once.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::Arc;

use kvcluster_crds::Offset;

use crate::effect::{DedupEntry, Idempotency};

/// How long a request is remembered at least, by the slot's own time, milliseconds.
pub const WINDOW_MS: u64 = 600_000;

/// The requests that are remembered.
#[derive(Clone, Default)]
pub struct Dedup {
    /// A tree and no hash table: it grows by small steps, and shows itself in one order.
    known: BTreeMap<Arc<[u8]>, Earlier>,
    /// In order of records, and so of times.
    ages: VecDeque<(u64, Offset, Arc<[u8]>)>,
}

/// A request that took effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Earlier {
    /// What it asked for.
    pub fingerprint: u64,
    /// Offset of its record.
    pub version: Offset,
}

impl Dedup {
    /// From what was stored, in order of records.
    pub fn load(entries: impl IntoIterator<Item = DedupEntry>) -> Self {
        let mut dedup = Self::default();
        for entry in entries {
            dedup.remember(&entry);
        }
        dedup
    }

    /// The slot's time is now `time_ms`: forgets what is too old.
    pub fn pass_to(&mut self, time_ms: u64) {
        while let Some((_, version, key)) =
            self.ages.pop_front_if(|(at, _, _)| is_old(*at, time_ms))
        {
            if self
                .known
                .get(&key)
                .is_some_and(|earlier| earlier.version == version)
            {
                self.known.remove(&key);
            }
        }
    }

    /// A request took effect.
    pub fn remember(&mut self, entry: &DedupEntry) {
        let earlier = Earlier {
            fingerprint: entry.fingerprint,
            version: entry.version,
        };
        self.known.insert(Arc::clone(&entry.key), earlier);
        self.ages
            .push_back((entry.time_ms, entry.version, Arc::clone(&entry.key)));
    }

    /// The request with this key.
    pub fn find(&self, key: &[u8]) -> Option<Earlier> {
        self.known.get(key).copied()
    }

    /// How many entries a record of `time_ms` would leave.
    pub fn count_at(&self, time_ms: u64) -> usize {
        self.ages.len() - self.ages.partition_point(|(at, _, _)| is_old(*at, time_ms))
    }
}

impl Earlier {
    /// Whether it asked for the same.
    pub fn is_same(&self, idempotency: &Idempotency) -> bool {
        self.fingerprint == idempotency.fingerprint
    }
}

/// What it knows, in order of records; explorations compare machines by this.
impl fmt::Debug for Dedup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(&self.ages).finish()
    }
}

/// Whether an entry of `at_ms` is forgotten in a slot whose time is `time_ms`.
pub fn is_old(at_ms: u64, time_ms: u64) -> bool {
    at_ms.saturating_add(WINDOW_MS) <= time_ms
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(key: &str, version: i64, time_ms: u64) -> DedupEntry {
        DedupEntry {
            key: key.as_bytes().into(),
            fingerprint: time_ms + 1,
            version: Offset(version),
            time_ms,
        }
    }

    #[test]
    fn an_entry_is_kept_for_the_whole_window_and_no_longer() {
        let mut dedup = Dedup::load([
            entry("a", 1, 1_000),
            entry("b", 2, 1_000),
            entry("c", 3, 2_000),
        ]);
        let last = 1_000 + WINDOW_MS - 1;
        dedup.pass_to(last);
        assert_eq!(
            dedup.find(b"a").map(|earlier| earlier.version),
            Some(Offset(1))
        );
        assert_eq!((dedup.count_at(last), dedup.count_at(last + 1)), (3, 1));
        assert_eq!(dedup.count_at(u64::MAX), 0);
        dedup.pass_to(last + 1);
        assert_eq!((dedup.find(b"a"), dedup.find(b"b")), (None, None));
        assert_eq!(
            dedup.find(b"c").map(|earlier| earlier.fingerprint),
            Some(2_001)
        );
        dedup.pass_to(u64::MAX);
        assert_eq!((dedup.known.len(), dedup.ages.len()), (0, 0));
    }

    #[test]
    fn a_key_that_comes_again_is_as_old_as_its_newest_record() {
        let mut dedup = Dedup::load([entry("a", 1, 0), entry("a", 7, 500)]);
        dedup.pass_to(WINDOW_MS);
        assert_eq!(
            dedup.find(b"a").map(|earlier| earlier.version),
            Some(Offset(7))
        );
        dedup.pass_to(WINDOW_MS + 500);
        assert_eq!(dedup.find(b"a"), None);
    }

    #[test]
    fn what_is_loaded_is_what_was_built() {
        let entries: Vec<_> = (0..50_u64)
            .map(|number| entry(&format!("k{number}"), number.cast_signed(), number * 20_000))
            .collect();
        let mut built = Dedup::default();
        for entry in &entries {
            built.pass_to(entry.time_ms);
            built.remember(entry);
        }
        let newest_ms = 49 * 20_000;
        let stored = entries
            .into_iter()
            .filter(|entry| entry.time_ms + WINDOW_MS > newest_ms);
        assert_eq!(format!("{:?}", Dedup::load(stored)), format!("{built:?}"));
        assert_eq!(built.count_at(newest_ms), 30);
    }
}
