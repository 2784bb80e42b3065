//! What the REST side sees of the registry.

use futures::FutureExt;
use futures::future::BoxFuture;
use kvcluster_crds::{LogId, NodeId, NodeStatus, Offset, SlotId};
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

use super::Registry;
use crate::effect::{Effect, Idempotency};
use crate::runtime::replica::{Request, Written};
use crate::service::{Place, ReadPermit, SlotError, Slots};

impl Slots for Registry {
    fn count(&self) -> u32 {
        self.config.slots
    }

    fn place(&self, slot: SlotId) -> Place {
        self.entry(slot).place.get()
    }

    fn place_changed(&self, slot: SlotId, seen: Place, deadline: Instant) -> BoxFuture<'_, Place> {
        async move {
            let changed = self.entry(slot).place.wait_for(|place| *place != seen);
            timeout_at(deadline, changed).await.unwrap_or(seen.clone())
        }
        .boxed()
    }

    fn write(
        &self,
        slot: SlotId,
        effects: Vec<Effect>,
        idempotency: Option<Idempotency>,
        deadline: Instant,
    ) -> BoxFuture<'_, Result<Offset, SlotError>> {
        async move {
            if !self.memory_to_spare() {
                let most = self.config.unflushed_bytes_max;
                let what = format!("{most} bytes of writes wait for PostgreSQL, the most allowed");
                return Err(SlotError::Overloaded { what });
            }
            if idempotency.is_none() {
                return match self.write_once(slot, effects, None, deadline).await? {
                    Written::Now(offset) => Ok(offset),
                    Written::Before { .. } => unreachable!("it repeats nothing without a key"),
                };
            }
            loop {
                let written = self.write_once(slot, effects.clone(), idempotency.clone(), deadline);
                match written.await? {
                    Written::Now(offset) => return Ok(offset),
                    Written::Before {
                        version,
                        is_same,
                        permit,
                    } if permit.confirm(self.config.clock.now_ns()) => {
                        return is_same
                            .then_some(version)
                            .ok_or(SlotError::KeyReused { slot });
                    }
                    Written::Before { .. } if Instant::now() < deadline => {}
                    Written::Before { .. } => return Err(SlotError::LogUnavailable { slot }),
                }
            }
        }
        .boxed()
    }

    fn read(
        &self,
        slot: SlotId,
        deadline: Instant,
    ) -> BoxFuture<'_, Result<ReadPermit, SlotError>> {
        async move {
            let (answer, answered) = oneshot::channel();
            let deadline_ns = self.config.clock.at_ns(deadline);
            self.send(
                slot,
                Request::Read {
                    deadline_ns,
                    answer,
                },
            )?;
            answered.await.unwrap_or(Err(SlotError::NotLeader { slot }))
        }
        .boxed()
    }

    fn log_id(&self) -> LogId {
        self.config.log_id
    }

    fn applied(&self, slot: SlotId) -> Option<Offset> {
        self.entry(slot).applied.get()
    }

    fn has_applied(&self, slot: SlotId, offset: Offset, deadline: Instant) -> BoxFuture<'_, bool> {
        let applied = &self.entry(slot).applied;
        async move {
            let reached = applied.wait_for(|applied| applied.is_some_and(|next| next > offset));
            timeout_at(deadline, reached).await.is_ok()
        }
        .boxed()
    }

    fn fresh_from(&self, slot: SlotId, within_ms: u64) -> Option<Offset> {
        self.fresh_since(slot, self.config.clock.wall_ms().saturating_sub(within_ms))
    }

    fn nodes(&self) -> Vec<(NodeId, String)> {
        let assignment = self.assignment();
        let nodes = assignment.iter().flat_map(|table| &table.nodes);
        nodes
            .map(|entry| (entry.id, entry.address.clone()))
            .collect()
    }

    fn status(&self) -> NodeStatus {
        let slots: Vec<_> = self
            .views()
            .into_iter()
            .map(|(slot, view)| self.slot_status(slot, view))
            .collect();
        let config = &self.config;
        let now_ns = config.clock.now_ns();
        NodeStatus {
            node: config.node,
            incarnation: config.incarnation,
            cluster_uid: config.cluster_uid.clone(),
            log_id: config.log_id,
            assignment_version: self.assignment().map(|table| table.version),
            kafka_connected: self.with_peers(|peers| peers.own_return(now_ns)),
            postgres_connected: config.store.connected(),
            problem: self.problem(&slots),
            unflushed_bytes: config.store.unflushed_bytes(),
            unflushed_bytes_max: config.unflushed_bytes_max,
            slots,
        }
    }
}
