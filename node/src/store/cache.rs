//! A bounded read cache in front of PostgreSQL: second-chance eviction, accounted in bytes, in shards.
//!
//! It must never answer a value older than PostgreSQL and the overlay together. The rules for that:
//! * a reader takes a [`Ticket`] *before* it looks into the overlay, and a fill with a ticket is dropped when any key of the
//!   shard was written since;
//! * a writer changes the overlay first and then calls [`Cache::written`].

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use kvcluster_crds::SlotId;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::effect::Versioned;

/// Shards, each with a lock of its own: a few times the cores of a node, so that readers seldom meet.
const SHARDS: usize = 16;
/// Memory of one entry besides its key and value, bytes: map entry, queue entry, two reference-counted buffers, estimated.
const ENTRY_OVERHEAD_BYTES: u64 = 224;

type Key = (SlotId, Bytes);

/// When a read began, as its shard counts writes.
#[derive(Clone, Copy, Debug)]
pub struct Ticket {
    shard: usize,
    writes: u64,
}

/// The cache. A value of `None` is a key that is known to be absent.
#[derive(Debug)]
pub struct Cache {
    shards: Vec<Mutex<Shard>>,
}

#[derive(Debug)]
struct Shard {
    entries: HashMap<Key, Cached>,
    /// Oldest first; keys that are gone from `entries` are skipped when met.
    queue: VecDeque<Key>,
    bytes: u64,
    bytes_max: u64,
    writes: u64,
}

#[derive(Debug)]
struct Cached {
    value: Option<Versioned>,
    /// Read since the hand last passed.
    referenced: bool,
    bytes: u64,
}

impl Cache {
    /// A cache of at most `bytes_max` bytes.
    pub fn new(bytes_max: u64) -> Self {
        let shard = || Shard {
            entries: HashMap::new(),
            queue: VecDeque::new(),
            bytes: 0,
            bytes_max: bytes_max / SHARDS as u64,
            writes: 0,
        };
        Self {
            shards: (0..SHARDS).map(|_| Mutex::new(shard())).collect(),
        }
    }

    /// To be taken before the overlay is looked at; given back with the fill.
    pub fn ticket(&self, slot: SlotId, key: &[u8]) -> Ticket {
        let shard = shard_of(slot, key);
        Ticket {
            shard,
            writes: self.shard(shard).writes,
        }
    }

    /// The cached value: `Some(None)` for a key that is known to be absent.
    pub fn get(&self, slot: SlotId, key: &Bytes) -> Option<Option<Versioned>> {
        let mut shard = self.shard(shard_of(slot, key));
        let cached = shard.entries.get_mut(&(slot, key.clone()))?;
        cached.referenced = true;
        Some(cached.value.clone())
    }

    /// Keeps what PostgreSQL answered, unless the shard was written since the ticket was taken.
    pub fn fill(&self, ticket: Ticket, slot: SlotId, key: &Bytes, value: Option<Versioned>) {
        let mut shard = self.shard(ticket.shard);
        if shard.writes == ticket.writes {
            shard.insert((slot, key.clone()), value);
        }
    }

    /// Keeps a value that leaves the overlay because PostgreSQL has it for good. The caller holds the slot's overlay, so that
    /// no newer write of the key can come in between.
    pub fn keep(&self, slot: SlotId, key: Bytes, value: Option<Versioned>) {
        self.shard(shard_of(slot, &key)).insert((slot, key), value);
    }

    /// Forgets a key that was written; to be called after the overlay has the new value.
    pub fn written(&self, slot: SlotId, key: &Bytes) {
        let mut shard = self.shard(shard_of(slot, key));
        shard.writes += 1;
        shard.remove(&(slot, key.clone()));
    }

    /// Forgets a whole slot.
    pub fn forget(&self, slot: SlotId) {
        for index in 0..SHARDS {
            let mut shard = self.shard(index);
            shard.writes += 1;
            let keys: Vec<Key> = shard
                .entries
                .keys()
                .filter(|(of, _)| *of == slot)
                .cloned()
                .collect();
            for key in &keys {
                shard.remove(key);
            }
        }
    }

    /// Bytes in use.
    pub fn bytes(&self) -> u64 {
        (0..SHARDS).map(|index| self.shard(index).bytes).sum()
    }

    fn shard(&self, index: usize) -> MutexGuard<'_, Shard> {
        self.shards[index]
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shard {
    fn insert(&mut self, key: Key, value: Option<Versioned>) {
        self.remove(&key);
        let value_bytes = value.as_ref().map_or(0, |versioned| versioned.value.len());
        let bytes = (key.1.len() + value_bytes) as u64 + ENTRY_OVERHEAD_BYTES;
        if bytes > self.bytes_max {
            return;
        }
        while self.bytes + bytes > self.bytes_max && self.evict_one() {}
        self.bytes += bytes;
        self.queue.push_back(key.clone());
        self.entries.insert(
            key,
            Cached {
                value,
                referenced: false,
                bytes,
            },
        );
        self.compact();
    }

    fn remove(&mut self, key: &Key) {
        if let Some(cached) = self.entries.remove(key) {
            self.bytes -= cached.bytes;
        }
    }

    /// Moves the hand until one entry has left; false when there is none.
    fn evict_one(&mut self) -> bool {
        while let Some(key) = self.queue.pop_front() {
            match self.entries.get_mut(&key) {
                Some(cached) if cached.referenced => {
                    cached.referenced = false;
                    self.queue.push_back(key);
                }
                Some(_) => {
                    self.remove(&key);
                    return true;
                }
                None => {}
            }
        }
        false
    }

    /// Drops the queue's dead keys once they outnumber the living, so that writes cannot make it grow for ever. A key that was
    /// removed and came back stands twice until then, which only moves the hand a little early.
    fn compact(&mut self) {
        if self.queue.len() > 2 * self.entries.len() + 64 {
            let mut seen = std::collections::HashSet::new();
            let entries = &self.entries;
            self.queue
                .retain(|key| entries.contains_key(key) && seen.insert(key.clone()));
        }
    }
}

fn shard_of(slot: SlotId, key: &[u8]) -> usize {
    let hash = xxh3_64_with_seed(key, u64::from(slot.0));
    usize::try_from(hash % SHARDS as u64).expect("smaller than the number of shards")
}

#[cfg(test)]
mod tests {
    use kvcluster_crds::Offset;

    use super::*;

    const SLOT: SlotId = SlotId(3);

    fn key(text: &str) -> Bytes {
        Bytes::copy_from_slice(text.as_bytes())
    }

    fn value(version: i64) -> Versioned {
        let value = Bytes::from(vec![b'v'; 100]);
        Versioned {
            value,
            version: Offset(version),
        }
    }

    #[test]
    fn a_fill_that_began_before_a_write_is_dropped() {
        let cache = Cache::new(1 << 20);
        let ticket = cache.ticket(SLOT, b"a");
        cache.written(SLOT, &key("a"));
        cache.fill(ticket, SLOT, &key("a"), Some(value(1)));
        assert_eq!(cache.get(SLOT, &key("a")), None);
        let ticket = cache.ticket(SLOT, b"a");
        cache.fill(ticket, SLOT, &key("a"), Some(value(2)));
        assert_eq!(cache.get(SLOT, &key("a")), Some(Some(value(2))));
        assert_eq!(cache.get(SlotId(4), &key("a")), None, "slots are apart");
    }

    #[test]
    fn a_write_forgets_and_absence_is_remembered() {
        let cache = Cache::new(1 << 20);
        cache.keep(SLOT, key("a"), None);
        assert_eq!(cache.get(SLOT, &key("a")), Some(None));
        cache.written(SLOT, &key("a"));
        assert_eq!(cache.get(SLOT, &key("a")), None);
        assert_eq!(cache.bytes(), 0);
    }

    #[test]
    fn stays_within_its_bytes_and_keeps_what_is_read() {
        let limit = 16 * 20_000;
        let cache = Cache::new(limit);
        cache.keep(SLOT, key("hot"), Some(value(0)));
        for number in 0..20_000 {
            cache.keep(SLOT, key(&format!("cold-{number}")), Some(value(number)));
            assert!(cache.get(SLOT, &key("hot")).is_some(), "after {number}");
            assert!(cache.bytes() <= limit);
        }
        let queued: usize = (0..SHARDS)
            .map(|index| cache.shard(index).queue.len())
            .sum();
        assert!(queued < 5_000, "{queued} keys queued");
    }

    #[test]
    fn rewriting_one_key_does_not_grow_the_queue() {
        let cache = Cache::new(1 << 20);
        for number in 0..10_000 {
            cache.keep(SLOT, key("a"), Some(value(number)));
            cache.written(SLOT, &key("a"));
        }
        let queued: usize = (0..SHARDS)
            .map(|index| cache.shard(index).queue.len())
            .sum();
        assert!(queued < 200, "{queued} keys queued");
    }

    #[test]
    fn a_value_above_the_limit_is_not_kept() {
        let cache = Cache::new(16 * 200);
        cache.keep(SLOT, key("a"), Some(value(1)));
        assert_eq!(cache.get(SLOT, &key("a")), None);
    }
}
