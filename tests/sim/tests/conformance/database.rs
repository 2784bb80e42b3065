//! What the cases of the store need besides the trait [`Store`]: what is committed, and what goes wrong.

pub(crate) mod postgres;
pub(crate) mod sim;

use std::collections::BTreeMap;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::TryStreamExt;
use futures::future::{BoxFuture, LocalBoxFuture};
use kvcluster_crds::{Epoch, Incarnation, NodeId, Offset, SlotId};
use kvcluster_node::effect::{Applied, DedupEntry, Effect, Loaded, SlotPosition};
use kvcluster_node::store::{Store, StoreError};
use kvcluster_sim::store::{How, Step};

pub(crate) use crate::broker::eventually;

/// Rows of a slot, with versions.
pub(crate) type Pairs = BTreeMap<Bytes, (Bytes, i64)>;

/// What a store must have done to be used.
pub(crate) trait Openable: Store {
    /// Takes the schema over for this process.
    fn open(&self) -> BoxFuture<'_, Result<(), StoreError>>;
}

/// A schema of its own, and what others do to it.
pub(crate) trait Database {
    /// A process's store, not open.
    fn store(&self, incarnation: u64) -> Arc<dyn Openable>;
    /// The committed rows of a slot.
    fn rows(&self, slot: u32) -> LocalBoxFuture<'_, Pairs>;
    /// The committed offset of a slot.
    fn offset(&self, slot: u32) -> LocalBoxFuture<'_, i64>;
    /// Keeps what is committed now; to be named to `roll_back`.
    fn save(&self) -> LocalBoxFuture<'_, usize>;
    /// Puts what was kept in the place of what is committed now, and loses every connection, as a crash does; but only if
    /// `fits` holds while nobody can commit. Whether it did.
    fn roll_back<'a>(
        &'a self,
        saved: usize,
        fits: &'a dyn Fn() -> bool,
    ) -> LocalBoxFuture<'a, bool>;
    /// Loses every connection of the stores; how many there were.
    fn lose_connections(&self) -> LocalBoxFuture<'_, usize>;
    /// The next flush goes wrong at a step, once. Resolves when that is prepared.
    fn fail_next(&self, step: Step, how: How) -> LocalBoxFuture<'_, ()>;
    /// Whether that has not happened yet.
    fn has_fault(&self) -> LocalBoxFuture<'_, bool>;
    /// The disk has no room for a while.
    fn set_full(&self, full: bool) -> LocalBoxFuture<'_, ()>;
    /// The server does not answer for a while.
    fn set_away(&self, away: bool);
    /// Somebody moves a slot's offset.
    fn move_offset(&self, slot: u32, to: i64) -> LocalBoxFuture<'_, ()>;
    /// Somebody removes a slot's row from `slot_state`.
    fn forget_slot(&self, slot: u32) -> LocalBoxFuture<'_, ()>;
    /// The schema holds somebody else's tables, instead of ours.
    fn use_otherwise(&self) -> LocalBoxFuture<'_, ()>;
    /// A newer program has migrated the schema.
    fn migrate_further(&self) -> LocalBoxFuture<'_, ()>;
}

/// An open store with slots 0 and 1 loaded, and what it must hold.
pub(crate) struct Opened {
    pub(crate) store: Arc<dyn Openable>,
    pairs: BTreeMap<u32, Pairs>,
    next: BTreeMap<u32, i64>,
}

impl Deref for Opened {
    type Target = dyn Openable;

    fn deref(&self) -> &Self::Target {
        &*self.store
    }
}

impl Opened {
    /// The first process of a schema.
    pub(crate) async fn first(database: &dyn Database) -> Self {
        Self::with_slots(database, &[0, 1]).await
    }

    pub(crate) async fn with_slots(database: &dyn Database, slots: &[u32]) -> Self {
        let store = database.store(1);
        store.open().await.expect("opens");
        load(&*store, slots).await.expect("loads");
        Self {
            store,
            pairs: BTreeMap::new(),
            next: BTreeMap::new(),
        }
    }

    /// Another process that goes on where the store stands.
    pub(crate) async fn next(database: &dyn Database, incarnation: u64) -> Self {
        let store = database.store(incarnation);
        store.open().await.expect("opens");
        let loaded = load(&*store, &[0, 1]).await.expect("loads");
        let mut pairs = BTreeMap::new();
        for slot in [0, 1] {
            pairs.insert(slot, database.rows(slot).await);
        }
        let next = loaded
            .into_iter()
            .map(|(slot, position)| (slot.0, position.next_offset.0));
        Self {
            store,
            pairs,
            next: next.collect(),
        }
    }

    /// Applies one record; a value of none deletes.
    pub(crate) fn apply(&mut self, slot: u32, changes: &[(&str, Option<&str>)]) -> i64 {
        let bytes = |text: &str| Bytes::copy_from_slice(text.as_bytes());
        let changes = changes.iter();
        let changes = changes.map(|(key, value)| (bytes(key), value.map(bytes)));
        self.apply_bytes(slot, changes.collect())
    }

    pub(crate) fn apply_bytes(&mut self, slot: u32, changes: Vec<(Bytes, Option<Bytes>)>) -> i64 {
        let at = position(self.next_offset(slot) + 1);
        self.apply_at(slot, changes, None, at)
    }

    /// Applies a put of a key with a request that is to be remembered by the same name, at a time of the slot.
    pub(crate) fn apply_request(&mut self, slot: u32, name: &str, time_ms: u64) -> DedupEntry {
        let offset = self.next_offset(slot);
        let entry = DedupEntry {
            key: name.as_bytes().into(),
            fingerprint: u64::MAX - offset.cast_unsigned(),
            version: Offset(offset),
            time_ms,
        };
        let at = SlotPosition {
            time_ms,
            ..position(offset + 1)
        };
        let name = Bytes::copy_from_slice(name.as_bytes());
        self.apply_at(
            slot,
            vec![(name.clone(), Some(name))],
            Some(entry.clone()),
            at,
        );
        entry
    }

    fn apply_at(
        &mut self,
        slot: u32,
        changes: Vec<(Bytes, Option<Bytes>)>,
        dedup: Option<DedupEntry>,
        position: SlotPosition,
    ) -> i64 {
        let next = self.next.entry(slot).or_insert(0);
        let offset = *next;
        *next += 1;
        let pairs = self.pairs.entry(slot).or_default();
        let mut effects = Vec::new();
        for (key, value) in changes {
            if let Some(value) = value {
                pairs.insert(key.clone(), (value.clone(), offset));
                effects.push(Effect::Put { key, value });
            } else {
                pairs.remove(&key);
                effects.push(Effect::Delete { key });
            }
        }
        self.store.apply(Applied {
            slot: SlotId(slot),
            offset: Offset(offset),
            effects,
            dedup,
            position,
        });
        offset
    }

    /// What a slot must hold.
    pub(crate) fn expected(&self, slot: u32) -> Pairs {
        self.pairs.get(&slot).cloned().unwrap_or_default()
    }

    pub(crate) fn next_offset(&self, slot: u32) -> i64 {
        self.next.get(&slot).copied().unwrap_or(0)
    }

    /// Waits until all is durable.
    pub(crate) async fn flush(&self) {
        self.store.flush_all().await.expect("flushes");
    }

    /// Waits until the store says that something of a slot is committed.
    pub(crate) async fn until_flushed(&self, slot: u32) {
        let next = self.next_offset(slot);
        eventually("it is flushed", async || {
            self.store.progress(SlotId(slot)).flushed == next
        })
        .await;
    }

    /// Everything that was applied is committed, and nothing else; in words.
    pub(crate) async fn agrees(&self, database: &dyn Database) -> String {
        let mut words = Vec::new();
        for slot in [0, 1] {
            let rows = database.rows(slot).await;
            assert_eq!(rows, self.expected(slot), "rows of slot {slot}");
            let offset = database.offset(slot).await;
            assert_eq!(offset, self.next_offset(slot), "offset of slot {slot}");
            words.push(format!("slot {slot} at {offset}: {}", told(&rows)));
        }
        words.join("; ")
    }
}

/// A position with every field set to something of its own, large bit patterns included.
pub(crate) fn position(next_offset: i64) -> SlotPosition {
    let number = next_offset.cast_unsigned();
    SlotPosition {
        next_offset: Offset(next_offset),
        checksum_before: Some(u64::MAX - number),
        epoch: Epoch(number + 3),
        leader: Some((NodeId(7), Incarnation(0xf000_0000_0000_0000 + number))),
        last_leader_offset: Some(Offset(next_offset - 1)),
        last_seq: number + 11,
        released_to: number.is_multiple_of(2).then_some(NodeId(u32::MAX)),
        lease_ms: u32::MAX,
        time_ms: number + 5,
        whole_at: None,
    }
}

pub(crate) async fn load(
    store: &dyn Openable,
    slots: &[u32],
) -> Result<Vec<(SlotId, SlotPosition)>, StoreError> {
    let slots: Vec<SlotId> = slots.iter().copied().map(SlotId).collect();
    let loaded = store.load(&slots).await?;
    let position = |(slot, loaded): (SlotId, Loaded)| (slot, loaded.position);
    Ok(loaded.into_iter().map(position).collect())
}

/// What the next process finds remembered of slots 0 and 1.
pub(crate) async fn remembered(
    database: &dyn Database,
    incarnation: u64,
) -> BTreeMap<u32, Vec<DedupEntry>> {
    let store = database.store(incarnation);
    store.open().await.expect("opens");
    let loaded = store.load(&[SlotId(0), SlotId(1)]).await.expect("loads");
    let dedup = |(slot, loaded): (SlotId, Loaded)| (slot.0, loaded.dedup);
    loaded.into_iter().map(dedup).collect()
}

/// What a reader of a key gets: value and version.
pub(crate) async fn get(
    store: &dyn Openable,
    slot: u32,
    key: &str,
) -> Result<Option<(Bytes, i64)>, StoreError> {
    let key = Bytes::copy_from_slice(key.as_bytes());
    let found = store.get(SlotId(slot), &key).await?;
    Ok(found.map(|found| (found.value, found.version.0)))
}

/// The value of a key, in words.
pub(crate) async fn value(store: &dyn Openable, slot: u32, key: &str) -> Option<String> {
    let found = get(store, slot, key).await.expect("answers");
    found.map(|(value, _)| value.escape_ascii().to_string())
}

/// A whole scan; its order is checked on the way.
pub(crate) async fn scan(store: &dyn Openable, slot: u32) -> Result<Pairs, StoreError> {
    let rows: Vec<_> = store.scan(SlotId(slot)).await?.try_collect().await?;
    let ordered = rows.windows(2).all(|pair| pair[0].0 < pair[1].0);
    assert!(ordered, "ordered by key, none twice");
    let pairs = rows
        .into_iter()
        .map(|(key, found)| (key, (found.value, found.version.0)));
    Ok(pairs.collect())
}

/// Rows in words; many and long ones by their number and their bytes.
pub(crate) fn told(rows: &Pairs) -> String {
    let bytes: usize = rows
        .iter()
        .map(|(key, (value, _))| key.len() + value.len())
        .sum();
    if rows.len() > 20 || bytes > 1_000 {
        return format!("{} rows of {bytes} bytes", rows.len());
    }
    let words = rows.iter().map(|(key, (value, version))| {
        format!("{}={}@{version}", key.escape_ascii(), value.escape_ascii())
    });
    words.collect::<Vec<_>>().join(" ")
}

/// Which kind of error it is; its words are for people.
pub(crate) fn kind(error: &StoreError) -> &'static str {
    match error {
        StoreError::Unavailable(_) => "unavailable",
        StoreError::Fenced(_) => "fenced",
        StoreError::Schema(_) => "schema",
    }
}

/// Whether a store has not failed for good.
pub(crate) async fn goes_on(store: &dyn Openable) -> bool {
    let moment = Duration::from_millis(1);
    tokio::time::timeout(moment, store.failed()).await.is_err()
}
