//! A store without PostgreSQL, for tests of what stands above it.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt, stream};
use kvcluster_crds::{Offset, SlotId};

use crate::effect::{Applied, Effect, Loaded, Versioned};
use crate::store::{Progress, Row, Store, StoreError};

/// Maps instead of tables.
#[derive(Default)]
pub(crate) struct MemoryStore {
    rows: Mutex<BTreeMap<(SlotId, Bytes), Versioned>>,
    /// Every read fails while it is set.
    pub(crate) away: AtomicBool,
    /// A scan breaks off after its rows while it is set.
    pub(crate) breaks_scans: AtomicBool,
}

impl MemoryStore {
    fn check(&self) -> Result<(), StoreError> {
        if self.away.load(Ordering::Relaxed) {
            Err(StoreError::Unavailable("away".to_owned()))
        } else {
            Ok(())
        }
    }
}

impl Store for MemoryStore {
    fn load<'a>(
        &'a self,
        slots: &'a [SlotId],
    ) -> BoxFuture<'a, Result<Vec<(SlotId, Loaded)>, StoreError>> {
        let loaded = slots.iter().map(|&slot| (slot, Loaded::start())).collect();
        std::future::ready(self.check().map(|()| loaded)).boxed()
    }

    fn stored(&self) -> BoxFuture<'_, Result<Vec<(SlotId, Offset)>, StoreError>> {
        std::future::ready(self.check().map(|()| Vec::new())).boxed()
    }

    fn unload(&self, _slot: SlotId) -> BoxFuture<'_, ()> {
        std::future::ready(()).boxed()
    }

    fn remove(&self, slot: SlotId) -> BoxFuture<'_, Result<(), StoreError>> {
        let mut rows = self
            .rows
            .lock()
            .expect("no test panics while it holds the rows");
        rows.retain(|(at, _), _| *at != slot);
        std::future::ready(self.check()).boxed()
    }

    fn sizes(&self) -> BoxFuture<'_, Result<Vec<(SlotId, u64)>, StoreError>> {
        std::future::ready(self.check().map(|()| Vec::new())).boxed()
    }

    fn apply(&self, applied: Applied) {
        let mut rows = self
            .rows
            .lock()
            .expect("no test panics while it holds the rows");
        for effect in applied.effects {
            match effect {
                Effect::Put { key, value } => {
                    rows.insert(
                        (applied.slot, key),
                        Versioned {
                            value,
                            version: applied.offset,
                        },
                    );
                }
                Effect::Delete { key } => {
                    rows.remove(&(applied.slot, key));
                }
            }
        }
    }

    fn get<'a>(
        &'a self,
        slot: SlotId,
        key: &'a Bytes,
    ) -> BoxFuture<'a, Result<Option<Versioned>, StoreError>> {
        let rows = self
            .rows
            .lock()
            .expect("no test panics while it holds the rows");
        let found = rows.get(&(slot, key.clone())).cloned();
        std::future::ready(self.check().map(|()| found)).boxed()
    }

    fn scan(
        &self,
        slot: SlotId,
    ) -> BoxFuture<'_, Result<BoxStream<'static, Result<Row, StoreError>>, StoreError>> {
        let rows = self
            .rows
            .lock()
            .expect("no test panics while it holds the rows");
        let mut items: Vec<Result<Row, StoreError>> = rows
            .iter()
            .filter(|((at, _), _)| *at == slot)
            .map(|((_, key), value)| Ok((key.clone(), value.clone())))
            .collect();
        if self.breaks_scans.load(Ordering::Relaxed) {
            items.push(Err(StoreError::Unavailable("broke off".to_owned())));
        }
        std::future::ready(self.check().map(|()| stream::iter(items).boxed())).boxed()
    }

    fn progress(&self, _slot: SlotId) -> Progress {
        Progress {
            flushed: 0,
            durable: 0,
        }
    }

    fn unflushed_bytes(&self) -> u64 {
        0
    }

    fn connected(&self) -> bool {
        !self.away.load(Ordering::Relaxed)
    }

    fn flush_all(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        std::future::ready(self.check()).boxed()
    }

    fn failed(&self) -> BoxFuture<'_, StoreError> {
        std::future::pending().boxed()
    }
}
