//! PostgreSQL in memory behind the product's trait [`Store`], with the product's overlay and batch in front of it and a
//! flusher of its own.
//!
//! ```text
//! apply ──▶ SlotOverlay ──Batch──▶ flusher task ──▶ Connection ┊ latency, faults ┊ ──▶ SimSchema: tables, commits
//! ```
//! What it promises is written down and checked by the conformance suite, which runs the same cases on PostgreSQL.

mod flusher;
mod leaving;
mod server;
mod snapshots;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt, stream};
use kvcluster_crds::{Incarnation, Offset, SlotId};
use kvcluster_node::effect::{Applied, Loaded, Versioned};
use kvcluster_node::store::overlay::{SlotOverlay, merge};
use kvcluster_node::store::{Progress, Row, Store, StoreError};
use tokio::sync::{Notify, oneshot};
use tokio::task::AbortHandle;

pub use server::{How, SimSchema, Step, Tables};
pub use snapshots::{Begun, Restores};

use server::{Connection, unavailable};

/// The store of one process.
pub struct SimStore {
    inner: Arc<Inner>,
    flusher: Mutex<Option<AbortHandle>>,
}

struct Inner {
    schema: SimSchema,
    incarnation: Incarnation,
    overlays: Mutex<BTreeMap<SlotId, SlotOverlay>>,
    /// Who waits until all is durable.
    waiting: Mutex<Vec<oneshot::Sender<()>>>,
    wake: Notify,
    /// Held while a flush is under way.
    flushing: tokio::sync::Mutex<()>,
    connected: AtomicBool,
    /// Whether the flusher could connect when it last tried: if not, reads fail at once.
    reachable: AtomicBool,
    failure: Mutex<Option<StoreError>>,
    has_failed: Notify,
}

impl SimStore {
    /// A store that is not open.
    pub fn new(schema: &SimSchema, incarnation: Incarnation) -> Self {
        Self {
            inner: Arc::new(Inner {
                schema: schema.clone(),
                incarnation,
                overlays: Mutex::default(),
                waiting: Mutex::default(),
                wake: Notify::new(),
                flushing: tokio::sync::Mutex::default(),
                connected: AtomicBool::new(false),
                reachable: AtomicBool::new(false),
                failure: Mutex::new(None),
                has_failed: Notify::new(),
            }),
            flusher: Mutex::new(None),
        }
    }

    /// Takes the schema over for this process and starts the flusher.
    pub async fn open(&self) -> Result<(), StoreError> {
        let connection = self.inner.schema.connect().await?;
        connection.take_over(self.inner.incarnation).await?;
        let mut flusher = lock(&self.flusher);
        if flusher.is_none() {
            self.inner.connected.store(true, Ordering::SeqCst);
            self.inner.reachable.store(true, Ordering::SeqCst);
            let task = tokio::spawn(flusher::run(Arc::clone(&self.inner)));
            *flusher = Some(task.abort_handle());
        }
        Ok(())
    }

    async fn load_slots(&self, slots: &[SlotId]) -> Result<Vec<(SlotId, Loaded)>, StoreError> {
        let inner = &self.inner;
        let known = |slot: &&SlotId| lock(&inner.overlays).contains_key(*slot);
        if let Some(slot) = slots.iter().find(known) {
            return Err(StoreError::Schema(format!("slot {slot} is loaded already")));
        }
        let connection = inner.schema.connect().await?;
        let loaded = connection.load(inner.incarnation, slots).await?;
        for (slot, loaded) in &loaded {
            let overlay = SlotOverlay::new(loaded.position.clone());
            lock(&inner.overlays).insert(*slot, overlay);
        }
        Ok(loaded)
    }

    async fn get_value(&self, slot: SlotId, key: &Bytes) -> Result<Option<Versioned>, StoreError> {
        let newest = self
            .inner
            .with(slot, |overlay| overlay.get(key).cloned())
            .ok_or_else(not_loaded)?;
        if let Some(entry) = newest {
            return Ok(entry.versioned());
        }
        let connection = self.inner.reader().await?;
        connection.get(slot, key).await
    }

    /// The overlay is cut first; what PostgreSQL has by then may be newer.
    async fn scan_slot(
        &self,
        slot: SlotId,
    ) -> Result<BoxStream<'static, Result<Row, StoreError>>, StoreError> {
        let cut = self.inner.with(slot, SlotOverlay::cut);
        let (applied, segments) = cut.ok_or_else(not_loaded)?;
        let connection = self.inner.reader().await?;
        let (flushed, mut rows) = connection.cut(slot).await?;
        if flushed <= applied {
            for (key, entry) in merge(&segments) {
                match entry.versioned() {
                    Some(value) => rows.insert(key, value),
                    None => rows.remove(&key),
                };
            }
        }
        let rows = stream::iter(rows).map(move |row| {
            if connection.lives() {
                return Ok(row);
            }
            Err(unavailable("the scan broke off"))
        });
        Ok(rows.boxed())
    }

    async fn flush(&self) -> Result<(), StoreError> {
        if lock(&self.flusher).is_none() {
            return Ok(());
        }
        let (done, answer) = oneshot::channel();
        if lock(&self.inner.failure).is_none() {
            lock(&self.inner.waiting).push(done);
            self.inner.wake.notify_one();
            if answer.await.is_ok() {
                return Ok(());
            }
        }
        Err(self.inner.failed().await)
    }
}

impl Drop for SimStore {
    /// The process is gone, and with it what was not flushed.
    fn drop(&mut self) {
        if let Some(flusher) = lock(&self.flusher).take() {
            flusher.abort();
        }
    }
}

impl Store for SimStore {
    fn load<'a>(
        &'a self,
        slots: &'a [SlotId],
    ) -> BoxFuture<'a, Result<Vec<(SlotId, Loaded)>, StoreError>> {
        self.load_slots(slots).boxed()
    }

    fn stored(&self) -> BoxFuture<'_, Result<Vec<(SlotId, Offset)>, StoreError>> {
        async { self.inner.reader().await?.stored().await }.boxed()
    }

    fn unload(&self, slot: SlotId) -> BoxFuture<'_, ()> {
        async move {
            let _no_flush = self.inner.flushing.lock().await;
            lock(&self.inner.overlays).remove(&slot);
        }
        .boxed()
    }

    fn remove(&self, slot: SlotId) -> BoxFuture<'_, Result<(), StoreError>> {
        async move {
            if lock(&self.inner.overlays).contains_key(&slot) {
                return Err(StoreError::Schema(format!("slot {slot} is loaded")));
            }
            let connection = self.inner.reader().await?;
            connection.remove(self.inner.incarnation, slot).await
        }
        .boxed()
    }

    fn sizes(&self) -> BoxFuture<'_, Result<Vec<(SlotId, u64)>, StoreError>> {
        async { self.inner.reader().await?.sizes().await }.boxed()
    }

    fn apply(&self, applied: Applied) {
        self.inner
            .with(applied.slot, |overlay| overlay.apply(&applied))
            .expect("a slot is loaded before its records are applied");
        self.inner.wake.notify_one();
    }

    fn get<'a>(
        &'a self,
        slot: SlotId,
        key: &'a Bytes,
    ) -> BoxFuture<'a, Result<Option<Versioned>, StoreError>> {
        self.get_value(slot, key).boxed()
    }

    fn scan(
        &self,
        slot: SlotId,
    ) -> BoxFuture<'_, Result<BoxStream<'static, Result<Row, StoreError>>, StoreError>> {
        self.scan_slot(slot).boxed()
    }

    fn progress(&self, slot: SlotId) -> Progress {
        let progress = self.inner.with(slot, |overlay| Progress {
            flushed: overlay.flushed().next_offset.0,
            durable: overlay.durable().0,
        });
        progress.unwrap_or(Progress {
            flushed: 0,
            durable: 0,
        })
    }

    fn unflushed_bytes(&self) -> u64 {
        lock(&self.inner.overlays)
            .values()
            .map(SlotOverlay::bytes)
            .sum()
    }

    fn connected(&self) -> bool {
        self.inner.connected.load(Ordering::SeqCst)
    }

    fn flush_all(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        self.flush().boxed()
    }

    fn failed(&self) -> BoxFuture<'_, StoreError> {
        self.inner.failed().boxed()
    }
}

impl Inner {
    fn with<T>(&self, slot: SlotId, work: impl FnOnce(&mut SlotOverlay) -> T) -> Option<T> {
        lock(&self.overlays).get_mut(&slot).map(work)
    }

    /// A connection for a read, refused at once where none can be.
    async fn reader(&self) -> Result<Connection, StoreError> {
        if !self.reachable.load(Ordering::SeqCst) {
            return Err(unavailable("no connection"));
        }
        self.schema.connect().await
    }

    async fn failed(&self) -> StoreError {
        loop {
            let told = self.has_failed.notified();
            tokio::pin!(told);
            told.as_mut().enable();
            if let Some(failure) = lock(&self.failure).clone() {
                return failure;
            }
            told.await;
        }
    }
}

fn not_loaded() -> StoreError {
    unavailable("the slot is not loaded yet")
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use kvcluster_node::effect::{Effect, SlotPosition};

    use super::*;

    const SLOT: SlotId = SlotId(0);

    fn apply(store: &SimStore, offset: i64) {
        let key = Bytes::from(format!("k{offset}"));
        let value = Bytes::from_static(b"v");
        let position = SlotPosition {
            next_offset: Offset(offset + 1),
            ..SlotPosition::start()
        };
        store.apply(Applied {
            slot: SLOT,
            offset: Offset(offset),
            effects: vec![Effect::Put { key, value }],
            dedup: None,
            position,
        });
    }

    /// What a crash takes back is made by hand on PostgreSQL; here it is drawn from what was really committed.
    #[tokio::test(start_paused = true)]
    async fn a_crash_takes_back_what_was_not_durable_and_no_more() {
        let schema = SimSchema::new(1);
        let store = SimStore::new(&schema, Incarnation(1));
        store.open().await.expect("opens");
        store.load(&[SLOT]).await.expect("loads");
        apply(&store, 0);
        store.flush_all().await.expect("flushes");
        for offset in 1..4 {
            apply(&store, offset);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert_eq!(schema.tables().rows.len(), 4);
        assert_eq!(store.progress(SLOT).durable, 1);
        assert_eq!(schema.crash(1), 2, "two commits of three are lost");
        assert_eq!(schema.tables().rows.len(), 2);
        assert_eq!(schema.crash(0), 1);
        assert_eq!(schema.tables().slots[&SLOT].next_offset, Offset(1));
        store.flush_all().await.expect("flushes again");
        assert_eq!(schema.tables().rows.len(), 4);
        assert_eq!(schema.crash(0), 0, "all is durable");
        assert_eq!(schema.tables().rows.len(), 4);
    }
}
