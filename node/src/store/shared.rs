//! What the store's readers, the applying slots and the flusher share: the overlays with their accounts, the cache, and
//! whether PostgreSQL is there.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use kvcluster_crds::{Incarnation, SlotId};
use tokio::sync::{Notify, watch};

use crate::effect::Applied;
use crate::metrics::Metrics;
use crate::store::StoreError;
use crate::store::cache::Cache;
use crate::store::flush::FLUSH_ROWS_AT_ONCE;
use crate::store::overlay::SlotOverlay;

/// See the module.
pub(super) struct Shared {
    pub(super) schema: String,
    pub(super) incarnation: Incarnation,
    pub(super) cache: Cache,
    pub(super) metrics: Arc<Metrics>,
    /// Whether the flusher's last statement went well.
    pub(super) connected: AtomicBool,
    /// Whether the flusher could connect when it last tried: if not, reads fail at once instead of after a timeout.
    pub(super) reachable: AtomicBool,
    /// Wakes the flusher: rows wait where none did, or enough of them for a flush at once.
    pub(super) wake: Notify,
    /// Held while a flush is under way.
    pub(super) flushing: tokio::sync::Mutex<()>,
    overlays: RwLock<BTreeMap<SlotId, Arc<Mutex<SlotOverlay>>>>,
    /// Sum over the overlays.
    bytes: AtomicU64,
    /// Sum of unflushed rows over the overlays.
    rows: AtomicU64,
    failure: watch::Sender<Option<StoreError>>,
}

impl Shared {
    pub(super) fn new(
        schema: String,
        incarnation: Incarnation,
        cache_bytes: u64,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            schema,
            incarnation,
            cache: Cache::new(cache_bytes),
            metrics,
            connected: AtomicBool::new(false),
            reachable: AtomicBool::new(false),
            wake: Notify::new(),
            flushing: tokio::sync::Mutex::default(),
            overlays: RwLock::default(),
            bytes: AtomicU64::new(0),
            rows: AtomicU64::new(0),
            failure: watch::Sender::new(None),
        }
    }

    /// The loaded slots, in order.
    pub(super) fn slots(&self) -> Vec<SlotId> {
        let overlays = self.overlays.read().unwrap_or_else(PoisonError::into_inner);
        overlays.keys().copied().collect()
    }

    pub(super) fn has(&self, slot: SlotId) -> bool {
        self.overlay(slot).is_some()
    }

    /// Adds a slot; one that is there already stays as it is.
    pub(super) fn add(&self, slot: SlotId, overlay: SlotOverlay) {
        let mut overlays = self
            .overlays
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        overlays
            .entry(slot)
            .or_insert_with(|| Arc::new(Mutex::new(overlay)));
    }

    /// Drops a slot from memory behind the flush that may be under way: nothing of it is written any more.
    pub(super) async fn release(&self, slot: SlotId) {
        let _no_flush = self.flushing.lock().await;
        self.forget(slot);
    }

    /// Drops a slot from memory: until it is added again, reads find it not loaded, and flushes pass over it.
    fn forget(&self, slot: SlotId) {
        let overlay = self
            .overlays
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&slot);
        if let Some(overlay) = overlay {
            let overlay = overlay.lock().unwrap_or_else(PoisonError::into_inner);
            add_difference(&self.bytes, overlay.bytes(), 0);
            add_difference(&self.rows, overlay.unflushed_rows() as u64, 0);
        }
        self.cache.forget(slot);
    }

    /// Runs `work` on a slot's overlay, locked, and keeps the sums; none when the slot is not loaded.
    pub(super) fn with<T>(
        &self,
        slot: SlotId,
        work: impl FnOnce(&mut SlotOverlay) -> T,
    ) -> Option<T> {
        let overlay = self.overlay(slot)?;
        let mut overlay = overlay.lock().unwrap_or_else(PoisonError::into_inner);
        let (bytes, rows) = (overlay.bytes(), overlay.unflushed_rows() as u64);
        let answer = work(&mut overlay);
        add_difference(&self.bytes, bytes, overlay.bytes());
        add_difference(&self.rows, rows, overlay.unflushed_rows() as u64);
        Some(answer)
    }

    /// Takes a record. The overlay first and then the cache: see the rules of `store/cache.rs`.
    pub(super) fn apply(&self, applied: &Applied) {
        let before = self.rows();
        self.with(applied.slot, |overlay| overlay.apply(applied))
            .expect("a slot is loaded before its records are applied");
        for effect in &applied.effects {
            self.cache.written(applied.slot, effect.key());
        }
        let after = self.rows();
        let filled = before < FLUSH_ROWS_AT_ONCE && after >= FLUSH_ROWS_AT_ONCE;
        if before == 0 && after > 0 || filled {
            self.wake.notify_one();
        }
    }

    /// Drops what PostgreSQL has for good; what was still the newest of its key goes into the cache.
    pub(super) fn mark_durable(&self, slot: SlotId, offset: kvcluster_crds::Offset) {
        self.with(slot, |overlay| {
            overlay.mark_durable(offset, |key, entry| {
                self.cache.keep(slot, key, entry.versioned());
            });
        });
    }

    /// Bytes that the overlays keep.
    pub(super) fn kept_bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Rows that wait for a flush.
    pub(super) fn rows(&self) -> u64 {
        self.rows.load(Ordering::Relaxed)
    }

    /// Ends the store's service for good; the first reason stays.
    pub(super) fn fail(&self, error: StoreError) {
        self.reachable.store(false, Ordering::Relaxed);
        self.connected.store(false, Ordering::Relaxed);
        self.failure.send_if_modified(|failure| {
            let first = failure.is_none();
            if first {
                *failure = Some(error);
            }
            first
        });
    }

    pub(super) async fn failed(&self) -> StoreError {
        let mut failure = self.failure.subscribe();
        let failed = failure
            .wait_for(Option::is_some)
            .await
            .expect("the sender is in self");
        failed.clone().expect("just seen")
    }

    fn overlay(&self, slot: SlotId) -> Option<Arc<Mutex<SlotOverlay>>> {
        let overlays = self.overlays.read().unwrap_or_else(PoisonError::into_inner);
        overlays.get(&slot).cloned()
    }
}

fn add_difference(sum: &AtomicU64, before: u64, after: u64) {
    // Wrapping on purpose: a decrease is an addition of its two's complement.
    sum.fetch_add(after.wrapping_sub(before), Ordering::Relaxed);
}
