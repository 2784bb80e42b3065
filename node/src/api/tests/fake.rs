//! Slots that answer at once, or as they are told.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use kvcluster_crds::{
    Epoch, Incarnation, LogId, NodeId, NodeStatus, Offset, SlotId, SlotRole, SlotStatus,
};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::effect::{Applied, Effect, Idempotency, SlotPosition};
use crate::service::{Place, ReadPermit, SlotError, Slots};
use crate::store::Store;
use crate::store::memory::MemoryStore;

/// Slots of the fake cluster.
pub(super) const COUNT: u32 = 8;

pub(super) struct FakeSlots {
    pub(super) store: Arc<MemoryStore>,
    places: watch::Sender<Vec<Place>>,
    /// Answers of the next writes; afterwards they go well.
    pub(super) writes: Mutex<VecDeque<SlotError>>,
    /// Answers of the next reads; afterwards they are permitted.
    pub(super) reads: Mutex<VecDeque<Result<ReadPermit, SlotError>>>,
    /// Reads that asked for leave.
    pub(super) read_count: AtomicUsize,
    next_offset: AtomicI64,
    /// Fingerprints and offsets of requests, by idempotency key.
    known: Mutex<BTreeMap<(SlotId, Bytes), (u64, Offset)>>,
    /// How old what a leader said is, milliseconds, and how far its slots were acknowledged then.
    pub(super) fresh: Mutex<Option<(u64, Offset)>>,
    /// Whether this node has replicas.
    pub(super) has_replica: AtomicBool,
}

impl FakeSlots {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            store: Arc::default(),
            places: watch::Sender::new(vec![Place::Here; COUNT as usize]),
            writes: Mutex::default(),
            reads: Mutex::default(),
            read_count: AtomicUsize::new(0),
            next_offset: AtomicI64::new(0),
            known: Mutex::default(),
            fresh: Mutex::default(),
            has_replica: AtomicBool::new(true),
        })
    }

    /// Moves every slot.
    pub(super) fn move_all(&self, place: &Place) {
        self.places
            .send_replace(vec![place.clone(); COUNT as usize]);
    }

    /// Moves one slot.
    pub(super) fn move_one(&self, slot: u32, place: Place) {
        self.places
            .send_modify(|places| places[slot as usize] = place);
    }

    /// Requests that wait for another place.
    pub(super) fn waiting(&self) -> usize {
        self.places.receiver_count()
    }

    pub(super) fn refuse_writes(&self, errors: impl IntoIterator<Item = SlotError>) {
        self.writes
            .lock()
            .expect("no test panics with it")
            .extend(errors);
    }

    /// What a record with this effect does to the store.
    pub(super) fn apply(&self, slot: SlotId, effects: Vec<Effect>) -> Offset {
        let offset = Offset(self.next_offset.fetch_add(1, Ordering::Relaxed));
        let position = SlotPosition {
            next_offset: offset.next(),
            ..SlotPosition::start()
        };
        self.store.apply(Applied {
            slot,
            offset,
            effects,
            dedup: None,
            position,
        });
        offset
    }
}

impl Slots for FakeSlots {
    fn count(&self) -> u32 {
        COUNT
    }

    fn place(&self, slot: SlotId) -> Place {
        self.places.borrow()[slot.index()].clone()
    }

    fn place_changed(&self, slot: SlotId, seen: Place, deadline: Instant) -> BoxFuture<'_, Place> {
        async move {
            let mut places = self.places.subscribe();
            let changed = places.wait_for(|places| places[slot.index()] != seen);
            let _ = tokio::time::timeout_at(deadline, changed).await;
            self.place(slot)
        }
        .boxed()
    }

    fn write(
        &self,
        slot: SlotId,
        effects: Vec<Effect>,
        idempotency: Option<Idempotency>,
        _deadline: Instant,
    ) -> BoxFuture<'_, Result<Offset, SlotError>> {
        async move {
            if self.place(slot) != Place::Here {
                return Err(SlotError::NotLeader { slot });
            }
            let refused = self
                .writes
                .lock()
                .expect("no test panics with it")
                .pop_front();
            if let Some(error) = refused {
                return Err(error);
            }
            let Some(Idempotency { key, fingerprint }) = idempotency else {
                return Ok(self.apply(slot, effects));
            };
            let mut known = self.known.lock().expect("no test panics with it");
            let apply = || (fingerprint, self.apply(slot, effects));
            let (asked, offset) = *known.entry((slot, key)).or_insert_with(apply);
            let is_same = asked == fingerprint;
            is_same
                .then_some(offset)
                .ok_or(SlotError::KeyReused { slot })
        }
        .boxed()
    }

    fn read(
        &self,
        slot: SlotId,
        _deadline: Instant,
    ) -> BoxFuture<'_, Result<ReadPermit, SlotError>> {
        self.read_count.fetch_add(1, Ordering::Relaxed);
        let answer = if self.place(slot) == Place::Here {
            let next = self
                .reads
                .lock()
                .expect("no test panics with it")
                .pop_front();
            next.unwrap_or(Ok(ReadPermit::Record(Arc::default())))
        } else {
            Err(SlotError::NotLeader { slot })
        };
        std::future::ready(answer).boxed()
    }

    fn log_id(&self) -> LogId {
        LogId(2)
    }

    fn applied(&self, _slot: SlotId) -> Option<Offset> {
        Some(Offset(self.next_offset.load(Ordering::Relaxed)))
            .filter(|_| self.has_replica.load(Ordering::Relaxed))
    }

    fn has_applied(&self, slot: SlotId, offset: Offset, _deadline: Instant) -> BoxFuture<'_, bool> {
        std::future::ready(self.applied(slot).is_some_and(|next| next > offset)).boxed()
    }

    fn fresh_from(&self, _slot: SlotId, within_ms: u64) -> Option<Offset> {
        let said = self.fresh.lock().expect("no test panics with it");
        said.filter(|(age_ms, _)| *age_ms <= within_ms)
            .map(|(_, next)| next)
    }

    fn nodes(&self) -> Vec<(NodeId, String)> {
        Vec::new()
    }

    fn status(&self) -> NodeStatus {
        NodeStatus {
            node: NodeId(0),
            incarnation: Incarnation(1),
            cluster_uid: "uid".to_owned(),
            log_id: LogId(2),
            assignment_version: Some(3),
            kafka_connected: true,
            postgres_connected: true,
            problem: None,
            unflushed_bytes: 42,
            unflushed_bytes_max: 100,
            slots: vec![SlotStatus {
                slot: SlotId(0),
                role: SlotRole::Leader,
                leader: Some(NodeId(0)),
                epoch: Epoch(4),
                applied: 7,
                flushed: 4,
                durable: 2,
                caught_up: true,
                bytes: 0,
                records_valid: 5,
                records_ignored: 2,
                frozen: None,
            }],
        }
    }
}
