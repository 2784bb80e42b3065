//! Stores with one flaw each.

use std::sync::Arc;

use bytes::Bytes;
use futures::future::{BoxFuture, LocalBoxFuture, pending, ready};
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt};
use kvcluster_crds::{Offset, SlotId};
use kvcluster_node::effect::{Applied, Effect, Loaded, Versioned};
use kvcluster_node::store::{Progress, Row, Store, StoreError};
use kvcluster_sim::store::{How, Step};

use crate::database::sim::SimPostgres;
use crate::database::{Database, Openable, Pairs};

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flaw {
    DeletesDropped,
    PutsDropped,
    FirstChangeOnly,
    EmptyValuesAbsent,
    VersionsOneLater,
    RequestsForgotten,
    ReadsSlotZero,
    ReadsNothing,
    ErrorsReadAsAbsent,
    FlushAnswersAtOnce,
    FlushNeverAnswers,
    ClaimsMoreThanIsFlushed,
    NeverDurable,
    CountsNoBytes,
    LoadsTheBegin,
    LoadsOneLater,
    LoadNeverRefused,
    AlwaysConnected,
    NeverConnected,
    NeverFails,
    FailsAtOnce,
    OpenNeverRefused,
    EverybodyOwns,
    ScansLoseTheLast,
    ScansUnordered,
    ScansBreakOffSilently,
    ScansAreEmpty,
    ScansInvent,
    UnloadsNothing,
    RemovesNothing,
    RemovesAnything,
    StoredUntold,
    SizesUntold,
}

use Flaw as F;

pub(super) const ALL: [Flaw; 33] = [
    F::DeletesDropped,
    F::PutsDropped,
    F::FirstChangeOnly,
    F::EmptyValuesAbsent,
    F::VersionsOneLater,
    F::RequestsForgotten,
    F::ReadsSlotZero,
    F::ReadsNothing,
    F::ErrorsReadAsAbsent,
    F::FlushAnswersAtOnce,
    F::FlushNeverAnswers,
    F::ClaimsMoreThanIsFlushed,
    F::NeverDurable,
    F::CountsNoBytes,
    F::LoadsTheBegin,
    F::LoadsOneLater,
    F::LoadNeverRefused,
    F::AlwaysConnected,
    F::NeverConnected,
    F::NeverFails,
    F::FailsAtOnce,
    F::OpenNeverRefused,
    F::EverybodyOwns,
    F::ScansLoseTheLast,
    F::ScansUnordered,
    F::ScansBreakOffSilently,
    F::ScansAreEmpty,
    F::ScansInvent,
    F::UnloadsNothing,
    F::RemovesNothing,
    F::RemovesAnything,
    F::StoredUntold,
    F::SizesUntold,
];

pub(super) struct FlawedPostgres {
    inner: SimPostgres,
    flaw: Flaw,
}

impl FlawedPostgres {
    pub(super) fn new(inner: SimPostgres, flaw: Flaw) -> Self {
        Self { inner, flaw }
    }
}

impl Database for FlawedPostgres {
    fn store(&self, incarnation: u64) -> Arc<dyn Openable> {
        let incarnation = if self.flaw == F::EverybodyOwns {
            1
        } else {
            incarnation
        };
        let inner = self.inner.store(incarnation);
        let flaw = self.flaw;
        Arc::new(FlawedStore { inner, flaw })
    }

    fn rows(&self, slot: u32) -> LocalBoxFuture<'_, Pairs> {
        self.inner.rows(slot)
    }

    fn offset(&self, slot: u32) -> LocalBoxFuture<'_, i64> {
        self.inner.offset(slot)
    }

    fn save(&self) -> LocalBoxFuture<'_, usize> {
        self.inner.save()
    }

    fn roll_back<'a>(
        &'a self,
        saved: usize,
        fits: &'a dyn Fn() -> bool,
    ) -> LocalBoxFuture<'a, bool> {
        self.inner.roll_back(saved, fits)
    }

    fn lose_connections(&self) -> LocalBoxFuture<'_, usize> {
        self.inner.lose_connections()
    }

    fn fail_next(&self, step: Step, how: How) -> LocalBoxFuture<'_, ()> {
        self.inner.fail_next(step, how)
    }

    fn has_fault(&self) -> LocalBoxFuture<'_, bool> {
        self.inner.has_fault()
    }

    fn set_full(&self, full: bool) -> LocalBoxFuture<'_, ()> {
        self.inner.set_full(full)
    }

    fn set_away(&self, away: bool) {
        self.inner.set_away(away);
    }

    fn move_offset(&self, slot: u32, to: i64) -> LocalBoxFuture<'_, ()> {
        self.inner.move_offset(slot, to)
    }

    fn forget_slot(&self, slot: u32) -> LocalBoxFuture<'_, ()> {
        self.inner.forget_slot(slot)
    }

    fn use_otherwise(&self) -> LocalBoxFuture<'_, ()> {
        self.inner.use_otherwise()
    }

    fn migrate_further(&self) -> LocalBoxFuture<'_, ()> {
        self.inner.migrate_further()
    }
}

struct FlawedStore {
    inner: Arc<dyn Openable>,
    flaw: Flaw,
}

impl Openable for FlawedStore {
    fn open(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        async {
            let opened = self.inner.open().await;
            if self.flaw == F::OpenNeverRefused {
                return Ok(());
            }
            opened
        }
        .boxed()
    }
}

impl FlawedStore {
    fn alter(&self, effects: Vec<Effect>) -> Vec<Effect> {
        let kept = effects.into_iter().filter(|effect| match effect {
            Effect::Delete { .. } => self.flaw != F::DeletesDropped,
            Effect::Put { .. } => self.flaw != F::PutsDropped,
        });
        let most = if self.flaw == F::FirstChangeOnly {
            1
        } else {
            usize::MAX
        };
        kept.take(most).collect()
    }

    fn read(
        &self,
        found: Result<Option<Versioned>, StoreError>,
    ) -> Result<Option<Versioned>, StoreError> {
        match (self.flaw, found) {
            (F::ReadsNothing, Ok(_)) | (F::ErrorsReadAsAbsent, Err(_)) => Ok(None),
            (F::EmptyValuesAbsent, Ok(Some(found))) if found.value.is_empty() => Ok(None),
            (F::VersionsOneLater, Ok(Some(found))) => Ok(Some(Versioned {
                version: found.version.next(),
                ..found
            })),
            (_, found) => found,
        }
    }
}

impl Store for FlawedStore {
    fn load<'a>(
        &'a self,
        slots: &'a [SlotId],
    ) -> BoxFuture<'a, Result<Vec<(SlotId, Loaded)>, StoreError>> {
        async move {
            let loaded = self.inner.load(slots).await;
            let begin = || slots.iter().map(|slot| (*slot, Loaded::start()));
            match self.flaw {
                F::LoadsTheBegin => Ok(begin().collect()),
                F::LoadsOneLater => {
                    let mut loaded = loaded?;
                    for (_, Loaded { position, .. }) in &mut loaded {
                        position.next_offset = position.next_offset.next();
                    }
                    Ok(loaded)
                }
                F::LoadNeverRefused => Ok(loaded.unwrap_or_else(|_| begin().collect())),
                _ => loaded,
            }
        }
        .boxed()
    }

    fn stored(&self) -> BoxFuture<'_, Result<Vec<(SlotId, Offset)>, StoreError>> {
        if self.flaw == F::StoredUntold {
            return ready(Ok(Vec::new())).boxed();
        }
        self.inner.stored()
    }

    fn unload(&self, slot: SlotId) -> BoxFuture<'_, ()> {
        if self.flaw == F::UnloadsNothing {
            return ready(()).boxed();
        }
        self.inner.unload(slot)
    }

    fn remove(&self, slot: SlotId) -> BoxFuture<'_, Result<(), StoreError>> {
        async move {
            match self.flaw {
                F::RemovesNothing => Ok(()),
                F::RemovesAnything => {
                    self.inner.unload(slot).await;
                    let removed = self.inner.remove(slot).await;
                    let loaded = self.inner.load(&[slot]).await;
                    removed.and(loaded.map(drop)).or(Ok(()))
                }
                _ => self.inner.remove(slot).await,
            }
        }
        .boxed()
    }

    fn sizes(&self) -> BoxFuture<'_, Result<Vec<(SlotId, u64)>, StoreError>> {
        if self.flaw == F::SizesUntold {
            return ready(Ok(Vec::new())).boxed();
        }
        self.inner.sizes()
    }

    fn apply(&self, applied: Applied) {
        let effects = self.alter(applied.effects);
        let remembers = self.flaw != F::RequestsForgotten;
        let dedup = applied.dedup.filter(|_| remembers);
        self.inner.apply(Applied {
            effects,
            dedup,
            ..applied
        });
    }

    fn get<'a>(
        &'a self,
        slot: SlotId,
        key: &'a Bytes,
    ) -> BoxFuture<'a, Result<Option<Versioned>, StoreError>> {
        let slot = if self.flaw == F::ReadsSlotZero {
            SlotId(0)
        } else {
            slot
        };
        async move { self.read(self.inner.get(slot, key).await) }.boxed()
    }

    fn scan(
        &self,
        slot: SlotId,
    ) -> BoxFuture<'_, Result<BoxStream<'static, Result<Row, StoreError>>, StoreError>> {
        async move {
            let scanned = self.inner.scan(slot).await;
            let rows = match (self.flaw, scanned) {
                (F::ScansAreEmpty, _) | (F::ErrorsReadAsAbsent, Err(_)) => {
                    return Ok(futures::stream::empty().boxed());
                }
                (_, scanned) => scanned?,
            };
            let mut rows: Vec<_> = match self.flaw {
                F::ScansLoseTheLast | F::ScansUnordered => rows.collect().await,
                F::ScansInvent => {
                    let value = Bytes::from_static(b"invented");
                    let version = Offset(0);
                    let row = (Bytes::new(), Versioned { value, version });
                    let invented = futures::stream::iter([Ok(row)]);
                    return Ok(invented.chain(rows).boxed());
                }
                F::ScansBreakOffSilently => {
                    return Ok(rows.take_while(|row| ready(row.is_ok())).boxed());
                }
                F::VersionsOneLater => {
                    let later = |row: Result<Row, StoreError>| {
                        row.map(|(key, mut found)| {
                            found.version = Offset(found.version.0 + 1);
                            (key, found)
                        })
                    };
                    return Ok(rows.map(later).boxed());
                }
                _ => return Ok(rows),
            };
            if self.flaw == F::ScansLoseTheLast {
                rows.pop();
            } else {
                rows.reverse();
            }
            Ok(futures::stream::iter(rows).boxed())
        }
        .boxed()
    }

    fn progress(&self, slot: SlotId) -> Progress {
        let Progress { flushed, durable } = self.inner.progress(slot);
        match self.flaw {
            F::ClaimsMoreThanIsFlushed => Progress {
                flushed: flushed + 1,
                durable: durable + 1,
            },
            F::NeverDurable => Progress {
                flushed,
                durable: 0,
            },
            _ => Progress { flushed, durable },
        }
    }

    fn unflushed_bytes(&self) -> u64 {
        if self.flaw == F::CountsNoBytes {
            return 0;
        }
        self.inner.unflushed_bytes()
    }

    fn connected(&self) -> bool {
        match self.flaw {
            F::AlwaysConnected => true,
            F::NeverConnected => false,
            _ => self.inner.connected(),
        }
    }

    fn flush_all(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        match self.flaw {
            F::FlushAnswersAtOnce => ready(Ok(())).boxed(),
            F::FlushNeverAnswers => pending().boxed(),
            _ => self.inner.flush_all(),
        }
    }

    fn failed(&self) -> BoxFuture<'_, StoreError> {
        match self.flaw {
            F::NeverFails => pending().boxed(),
            F::FailsAtOnce => ready(StoreError::Unavailable("flawed".to_owned())).boxed(),
            _ => self.inner.failed(),
        }
    }
}
