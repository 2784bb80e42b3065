//! The simulated log.

use std::sync::Arc;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::{LocalBoxFuture, ready};
use kvcluster_crds::{Offset, SlotId};
use kvcluster_sim::log::{Cut, SimBroker, SimLog};

use super::{Broker, End, Memory, Node, SLOTS, Wire};

pub(crate) struct SimKafka(SimBroker);

impl SimKafka {
    pub(crate) fn new() -> Self {
        Self(SimBroker::new(SLOTS, 1))
    }

    fn node_that(&self, minds: bool) -> Node {
        let memory = Arc::new(Memory::default());
        let looked_at = Arc::clone(&memory);
        let log = Arc::new(self.0.client(move || looked_at.look() && minds));
        let wire = Box::new(SimWire(Arc::clone(&log)));
        Node { log, wire, memory }
    }

    /// A node whose log does not care whether memory is full.
    pub(crate) fn node_without_memory(&self) -> Node {
        self.node_that(false)
    }
}

impl Broker for SimKafka {
    fn node(&self) -> LocalBoxFuture<'_, Node> {
        ready(self.node_that(true)).boxed_local()
    }

    fn foreign(&self, slot: u32, bytes: Bytes) -> LocalBoxFuture<'_, i64> {
        ready(self.0.append_foreign(SlotId(slot), bytes).0).boxed_local()
    }

    fn transaction(&self, slot: u32, bytes: Bytes, end: End) -> LocalBoxFuture<'_, i64> {
        let offset = self.0.append_foreign(SlotId(slot), bytes).0;
        if end != End::Never {
            self.0.append_marker(SlotId(slot));
        }
        ready(offset).boxed_local()
    }

    fn trim(&self, slot: u32, before: i64) -> LocalBoxFuture<'_, ()> {
        self.0.trim(SlotId(slot), Offset(before));
        ready(()).boxed_local()
    }

    fn make_anew(&self) -> LocalBoxFuture<'_, ()> {
        self.0.make_anew();
        ready(()).boxed_local()
    }

    fn ends(&self, slot: u32) -> LocalBoxFuture<'_, (i64, i64)> {
        let (start, end) = self.0.ends(SlotId(slot));
        ready((start.0, end.0)).boxed_local()
    }

    fn contents(&self, slot: u32) -> LocalBoxFuture<'_, Vec<(i64, Bytes)>> {
        let (start, _) = self.0.ends(SlotId(slot));
        let records = self.0.records(SlotId(slot)).into_iter();
        let left = records.filter(|(offset, _)| *offset >= start);
        ready(left.map(|(offset, bytes)| (offset.0, bytes)).collect()).boxed_local()
    }
}

struct SimWire(Arc<SimLog>);

impl Wire for SimWire {
    fn cut(&self, cut: Cut) {
        self.0.cut(cut);
    }

    fn heal(&self) {
        self.0.heal();
    }

    fn heal_anew(&self) {
        self.0.heal_anew();
    }

    fn give_up(&self) {
        self.0.give_up();
    }
}
