//! Hosts replicas: from the positions of slots to running tasks, over whatever log and store.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use kvcluster_crds::{Offset, SlotId};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::registry::Registry;
use super::replica::{Ended, Inputs, Replica};
use super::restore::Restorer;
use crate::effect::Loaded;
use crate::log::{self, Follow, Log, Sink};
use crate::slot::{Behind, Input, Settings, SlotMachine};
use crate::store::Store;

/// What the replicas of a node stand on.
pub struct Host {
    /// What they share.
    pub registry: Arc<Registry>,
    /// Their log.
    pub log: Arc<dyn Log>,
    /// Their state.
    pub store: Arc<dyn Store>,
    /// Cancelled when they are to give leadership away and take none.
    pub stop: CancellationToken,
    /// The lease of epochs that they lead in, milliseconds.
    pub lease_ms: u32,
    /// Whether reads may trust the lease.
    pub reads_by_lease: bool,
    /// Requests with an idempotency key that a slot remembers at most.
    pub dedup_entries_max: usize,
    /// A replica without state that would have to read more records asks others for a snapshot.
    pub snapshot_from_records: i64,
    /// Where snapshots come from.
    pub restorer: Arc<Restorer>,
    /// Replicas that were begun so far.
    pub begun: AtomicU32,
}

impl Host {
    /// The slots that the assignment gives to this node and that it does not have yet.
    pub fn missing(&self) -> Vec<SlotId> {
        let config = self.registry.config();
        (0..config.slots)
            .map(SlotId)
            .filter(|slot| !self.registry.hosts(*slot))
            .filter(|slot| self.registry.is_assigned(*slot) == Some(true))
            .collect()
    }

    /// The tasks of the replicas of slots that were loaded; each ends when the slot is not assigned to this node any more, or
    /// with the process. They are all followed together.
    pub fn host(
        &self,
        loaded: Vec<(SlotId, Loaded)>,
    ) -> Vec<(SlotId, impl Future<Output = Ended> + Send + use<>)> {
        let mut follows = Vec::with_capacity(loaded.len());
        let replicas = loaded
            .into_iter()
            .map(|(slot, loaded)| {
                let (records_in, records) = mpsc::channel(log::RECORDS_QUEUED_MAX);
                let (fates_in, fates) = mpsc::unbounded_channel();
                let sink = Sink {
                    records: records_in,
                    fates: fates_in,
                };
                let position = &loaded.position;
                if position.needs_snapshot() {
                    let behind = Input::Behind(Behind {
                        reason: "a snapshot of another replica was begun and is not whole"
                            .to_owned(),
                        least: Offset(0),
                        can_replay: false,
                    });
                    let queued = sink.records.try_send(behind);
                    queued.expect("the queue is new");
                } else {
                    let records_max = self.snapshot_from_records;
                    follows.push(Follow::at(slot, position, records_max, sink.clone()));
                }
                let inputs = Inputs {
                    records,
                    fates,
                    requests: self.registry.host(slot),
                    stop: self.stop.clone(),
                };
                (slot, self.replica(slot, loaded, sink).run(inputs))
            })
            .collect();
        self.log.follow(follows);
        replicas
    }

    fn replica(&self, slot: SlotId, loaded: Loaded, sink: Sink) -> Replica {
        let config = self.registry.config();
        let settings = Settings {
            slot,
            node: config.node,
            incarnation: config.incarnation,
            log_id: config.log_id,
            lease_ms: self.lease_ms,
            reads_by_lease: self.reads_by_lease,
            dedup_entries_max: self.dedup_entries_max,
            life: self.begun.fetch_add(1, Ordering::Relaxed),
        };
        Replica {
            machine: SlotMachine::new(settings, loaded, config.clock.now_ns()),
            registry: Arc::clone(&self.registry),
            log: Arc::clone(&self.log),
            store: Arc::clone(&self.store),
            restorer: Arc::clone(&self.restorer),
            sink,
            records_max: self.snapshot_from_records,
        }
    }
}
