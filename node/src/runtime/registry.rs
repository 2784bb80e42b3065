//! What the tasks of a node share: where each slot is served, what each replica looks like, what heartbeats and assignment
//! say. Implements [`Slots`] for the REST side.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock, RwLockWriteGuard};

use kvcluster_crds::{Assignment, Incarnation, LogId, NodeId, Offset, SlotId, SlotStatus};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use super::clock::Clock;
use super::replica::{Request, Written};
use super::watched::Watched;
use crate::assignment::Known;
use crate::effect::{Effect, Idempotency};
use crate::heartbeat::{Peers, SlotSet};
use crate::service::{Place, SlotError, Slots};
use crate::slot::View;
use crate::slot::election::{Hints, PeerHint};
use crate::store::Store;

mod fresh;
mod serving;

/// Reads and writes of a slot that its task has not taken yet, at most.
pub const REQUESTS_QUEUED_MAX: usize = 8_192;

/// What a registry is made of.
pub struct RegistryConfig {
    /// This node.
    pub node: NodeId,
    /// Its process.
    pub incarnation: Incarnation,
    /// UID of the cluster.
    pub cluster_uid: String,
    /// The log.
    pub log_id: LogId,
    /// Number of slots of the cluster.
    pub slots: u32,
    /// Time without a heartbeat after which a node is suspected, milliseconds.
    pub suspicion_ms: u32,
    /// Most bytes of effects that are not in PostgreSQL.
    pub unflushed_bytes_max: u64,
    /// The state of the slots.
    pub store: Arc<dyn Store>,
    /// The clock of its leases and elections.
    pub clock: Clock,
}

/// What the tasks of a node share.
pub struct Registry {
    config: RegistryConfig,
    assignment: OnceLock<watch::Receiver<Known>>,
    peers: RwLock<Peers>,
    slots: Vec<Entry>,
    problems: Mutex<BTreeMap<&'static str, String>>,
}

/// One slot of the cluster.
struct Entry {
    place: Watched<Place>,
    /// Set while the node holds a replica.
    requests: RwLock<Option<mpsc::Sender<Request>>>,
    view: Mutex<Option<View>>,
    /// As far as a replica that goes on has come.
    applied: Watched<Option<Offset>>,
    /// When the wall clock showed this, in milliseconds, nothing was acknowledged that is not in `view`, which is stored first.
    acknowledged_ms: AtomicU64,
    stopped: AtomicBool,
    /// That its rows take, as last measured.
    bytes: AtomicU64,
}

impl Entry {
    fn has_replica(&self) -> bool {
        let requests = self.requests.read();
        requests.unwrap_or_else(PoisonError::into_inner).is_some()
    }
}

fn write<T>(lock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}

impl Registry {
    /// Before anything is known.
    pub fn new(config: RegistryConfig) -> Self {
        let RegistryConfig {
            node,
            incarnation,
            log_id,
            slots,
            suspicion_ms,
            ..
        } = config;
        let entry = || Entry {
            place: Watched::new(Place::Nobody),
            requests: RwLock::default(),
            view: Mutex::new(None),
            applied: Watched::new(None),
            acknowledged_ms: AtomicU64::new(fresh::NEVER),
            stopped: AtomicBool::new(false),
            bytes: AtomicU64::new(0),
        };
        Self {
            peers: RwLock::new(Peers::new(log_id, node, incarnation, suspicion_ms)),
            config,
            assignment: OnceLock::new(),
            slots: (0..slots).map(|_| entry()).collect(),
            problems: Mutex::new(BTreeMap::new()),
        }
    }

    /// What it was made of.
    pub fn config(&self) -> &RegistryConfig {
        &self.config
    }

    /// Notes what stands between the node and service, by subject; none when nothing does.
    pub fn set_problem(&self, subject: &'static str, problem: Option<String>) {
        let mut problems = self.problems.lock().unwrap_or_else(PoisonError::into_inner);
        match problem {
            Some(problem) => problems.insert(subject, problem),
            None => problems.remove(subject),
        };
    }

    /// Connects the source of assignments; once.
    pub fn set_assignment(&self, known: watch::Receiver<Known>) {
        assert!(
            self.assignment.set(known).is_ok(),
            "assignments have one source"
        );
    }

    /// The newest assignment.
    pub fn assignment(&self) -> Option<Arc<Assignment>> {
        self.assignment.get()?.borrow().assignment.clone()
    }

    /// Runs `change` on what is known of the other nodes.
    pub fn with_peers<R>(&self, change: impl FnOnce(&mut Peers) -> R) -> R {
        change(&mut write(&self.peers))
    }

    /// Whether effects that are not in PostgreSQL take less memory than they may.
    pub fn memory_to_spare(&self) -> bool {
        self.config.store.unflushed_bytes() <= self.config.unflushed_bytes_max
    }

    /// Opens the way for requests to the replica of `slot`.
    pub(super) fn host(&self, slot: SlotId) -> mpsc::Receiver<Request> {
        let (sender, receiver) = mpsc::channel(REQUESTS_QUEUED_MAX);
        let mut requests = write(&self.entry(slot).requests);
        let before = requests.replace(sender);
        assert!(before.is_none(), "slot {slot} is hosted twice");
        receiver
    }

    /// Forgets the replica of `slot`, whose task has ended.
    pub(super) fn unhost(&self, slot: SlotId) {
        let entry = self.entry(slot);
        *write(&entry.requests) = None;
        *entry.view.lock().unwrap_or_else(PoisonError::into_inner) = None;
        entry.applied.set(None);
        entry.acknowledged_ms.store(fresh::NEVER, Ordering::SeqCst);
        entry.stopped.store(false, Ordering::SeqCst);
        entry.bytes.store(0, Ordering::Relaxed);
        self.set_place(slot, self.heard_to_serve(slot));
    }

    /// Whether this node holds a replica of `slot`.
    pub fn hosts(&self, slot: SlotId) -> bool {
        self.entry(slot).has_replica()
    }

    /// Whether the newest assignment gives this node a replica of `slot`; none before one is known.
    pub fn is_assigned(&self, slot: SlotId) -> Option<bool> {
        let assignment = self.assignment()?;
        let replicas = assignment.slot(slot)?;
        Some(replicas.has_replica(self.config.node))
    }

    /// Notes how many bytes the rows of slots take.
    pub(super) fn set_sizes(&self, sizes: &[(SlotId, u64)]) {
        for (slot, bytes) in sizes {
            if let Some(entry) = self.slots.get(slot.index()) {
                entry.bytes.store(*bytes, Ordering::Relaxed);
            }
        }
    }

    /// Notes what a replica looks like, who serves its slot, and the moment at which all that was acknowledged was in the view,
    /// when that is sure.
    pub(super) fn publish(
        &self,
        slot: SlotId,
        view: View,
        serving: Option<NodeId>,
        acknowledged_ms: Option<u64>,
        stopped: bool,
    ) {
        let entry = self.entry(slot);
        // A replica that stands still does not learn of later leaders.
        let serving = if view.frozen.is_some() {
            self.heard_to_serve(slot)
        } else {
            serving
        };
        self.set_place(slot, serving);
        entry.stopped.store(stopped, Ordering::SeqCst);
        let readable = view.frozen.is_none() && view.whole;
        entry.applied.set(readable.then_some(view.applied));
        *entry.view.lock().unwrap_or_else(PoisonError::into_inner) = Some(view);
        let acknowledged_ms = acknowledged_ms.unwrap_or(fresh::NEVER);
        entry
            .acknowledged_ms
            .store(acknowledged_ms, Ordering::SeqCst);
    }

    /// Finds the servers of slots that this node has no replica of, by what heartbeats say.
    pub fn find_others(&self) {
        for slot in (0..self.count())
            .map(SlotId)
            .filter(|slot| !self.hosts(*slot))
        {
            self.set_place(slot, self.heard_to_serve(slot));
        }
    }

    /// Slots that could be led here, and slots that are.
    pub fn own_sets(&self) -> (SlotSet, SlotSet) {
        let views = self.views();
        let of = |fits: fn(&View) -> bool| {
            views
                .iter()
                .filter(|(_, view)| fits(view))
                .map(|(slot, _)| *slot)
                .collect()
        };
        let serves = of(|view| view.role == kvcluster_crds::SlotRole::Leader);
        (of(|view| view.can_lead), serves)
    }

    /// Whether every replica has given its leadership away, or has none.
    pub fn all_stopped(&self) -> bool {
        let mut hosted = self.slots.iter().filter(|entry| entry.has_replica());
        hosted.all(|entry| entry.stopped.load(Ordering::SeqCst))
    }

    /// What the election of `slot` may know at `now_ns`.
    pub fn hints(&self, now_ns: u64, slot: SlotId) -> Hints {
        let memory_to_spare = self.memory_to_spare();
        let peers = self.peers.read().unwrap_or_else(PoisonError::into_inner);
        let heartbeats_return = peers.own_return(now_ns);
        let assignment = self.assignment();
        let Some((assignment, replicas)) = assignment
            .as_deref()
            .and_then(|table| Some((table, table.slot(slot)?)))
        else {
            return Hints {
                heartbeats_return,
                memory_to_spare,
                ..Hints::default()
            };
        };
        let others = assignment.nodes.iter().map(|entry| entry.id);
        Hints {
            voters: replicas.voters.clone(),
            preferred: Some(replicas.preferred_leader),
            peers: others
                .filter(|node| *node != self.config.node)
                .map(|node| PeerHint {
                    node,
                    incarnation: peers.incarnation(node),
                    alive: peers.alive(now_ns, node),
                    can_lead: peers.can_lead(node, slot),
                    serves: peers.serves(node, slot),
                })
                .collect(),
            heartbeats_return,
            memory_to_spare,
        }
    }

    fn entry(&self, slot: SlotId) -> &Entry {
        &self.slots[slot.index()]
    }

    fn views(&self) -> Vec<(SlotId, View)> {
        let views = (0..self.count())
            .map(SlotId)
            .zip(&self.slots)
            .filter_map(|(slot, entry)| {
                let view = entry
                    .view
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .clone();
                Some((slot, view?))
            });
        views.collect()
    }

    pub(super) fn heard_to_serve(&self, slot: SlotId) -> Option<NodeId> {
        let peers = self.peers.read().unwrap_or_else(PoisonError::into_inner);
        peers.server_of(self.config.clock.now_ns(), slot)
    }

    fn set_place(&self, slot: SlotId, serving: Option<NodeId>) {
        let place = match serving {
            None => Place::Nobody,
            Some(node) if node == self.config.node => Place::Here,
            Some(node) => {
                let assignment = self.assignment();
                let entry = assignment.as_deref().and_then(|table| table.node(node));
                entry.map_or(Place::Nobody, |entry| Place::Node {
                    node,
                    address: entry.address.clone(),
                })
            }
        };
        self.entry(slot).place.set(place);
    }

    fn send(&self, slot: SlotId, request: Request) -> Result<(), SlotError> {
        let requests = self.entry(slot).requests.read();
        let requests = requests.unwrap_or_else(PoisonError::into_inner);
        let requests = requests.as_ref().ok_or(SlotError::NotLeader { slot })?;
        requests.try_send(request).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => SlotError::Overloaded {
                what: format!("slot {slot} has {REQUESTS_QUEUED_MAX} requests waiting"),
            },
            mpsc::error::TrySendError::Closed(_) => SlotError::NotLeader { slot },
        })
    }

    async fn write_once(
        &self,
        slot: SlotId,
        effects: Vec<Effect>,
        idempotency: Option<Idempotency>,
        deadline: Instant,
    ) -> Result<Written, SlotError> {
        let (answer, answered) = oneshot::channel();
        let deadline_ns = self.config.clock.at_ns(deadline);
        self.send(
            slot,
            Request::Write {
                effects,
                idempotency,
                deadline_ns,
                answer,
            },
        )?;
        answered.await.unwrap_or(Err(SlotError::Unknown { slot }))
    }

    fn slot_status(&self, slot: SlotId, view: View) -> SlotStatus {
        let progress = self.config.store.progress(slot);
        SlotStatus {
            slot,
            role: view.role,
            leader: view.leader,
            epoch: view.epoch,
            applied: view.applied.0,
            flushed: progress.flushed,
            durable: progress.durable,
            caught_up: view.caught_up,
            bytes: self.entry(slot).bytes.load(Ordering::Relaxed),
            records_valid: view.records_valid,
            records_ignored: view.records_ignored,
            frozen: view.frozen,
        }
    }

    fn problem(&self, slots: &[SlotStatus]) -> Option<String> {
        let problems = self.problems.lock().unwrap_or_else(PoisonError::into_inner);
        let mut texts: Vec<String> = problems.values().cloned().collect();
        let known = self
            .assignment
            .get()
            .and_then(|known| known.borrow().problem.clone());
        texts.extend(known.map(|problem| format!("assignment: {problem}")));
        let frozen = slots
            .iter()
            .filter_map(|status| Some((status.slot, status.frozen.as_ref()?)));
        texts.extend(frozen.map(|(slot, reason)| format!("slot {slot} stands still: {reason}")));
        (!texts.is_empty()).then(|| texts.join("; "))
    }
}
