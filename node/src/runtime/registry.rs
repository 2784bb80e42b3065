//! What the tasks of a node share: where each slot is served, what each replica looks like, what heartbeats and assignment
//! say. Implements [`Slots`] for the REST side.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};

use futures::FutureExt;
use futures::future::BoxFuture;
use kvcluster_crds::{
    Assignment, Incarnation, LogId, NodeId, NodeStatus, Offset, SlotId, SlotStatus,
};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, timeout_at};

use super::clock::Clock;
use super::replica::{Request, Written};
use super::watched::Watched;
use crate::assignment::Known;
use crate::effect::{Effect, Idempotency};
use crate::heartbeat::{Peers, SlotSet};
use crate::service::{Place, ReadPermit, SlotError, Slots};
use crate::slot::View;
use crate::slot::election::{Hints, PeerHint};
use crate::store::Store;

mod fresh;

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
    /// Set when the node holds a replica.
    requests: OnceLock<mpsc::Sender<Request>>,
    view: Mutex<Option<View>>,
    /// As far as a replica that goes on has come.
    applied: Watched<Option<Offset>>,
    /// When the wall clock showed this, in milliseconds, nothing was acknowledged that is not in `view`, which is stored first.
    acknowledged_ms: AtomicU64,
    stopped: AtomicBool,
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
            requests: OnceLock::new(),
            view: Mutex::new(None),
            applied: Watched::new(None),
            acknowledged_ms: AtomicU64::new(fresh::NEVER),
            stopped: AtomicBool::new(false),
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
        change(&mut self.peers.write().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether effects that are not in PostgreSQL take less memory than they may.
    pub fn memory_to_spare(&self) -> bool {
        self.config.store.unflushed_bytes() <= self.config.unflushed_bytes_max
    }

    /// Opens the way for requests to the replica of `slot`; once.
    pub(super) fn host(&self, slot: SlotId) -> mpsc::Receiver<Request> {
        let (sender, receiver) = mpsc::channel(REQUESTS_QUEUED_MAX);
        assert!(
            self.entry(slot).requests.set(sender).is_ok(),
            "slot {slot} is hosted twice"
        );
        receiver
    }

    /// Whether this node holds a replica of `slot`.
    pub fn hosts(&self, slot: SlotId) -> bool {
        self.entry(slot).requests.get().is_some()
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
        let hosted = self
            .slots
            .iter()
            .filter(|entry| entry.requests.get().is_some());
        hosted
            .into_iter()
            .all(|entry| entry.stopped.load(Ordering::SeqCst))
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
        let requests = self
            .entry(slot)
            .requests
            .get()
            .ok_or(SlotError::NotLeader { slot })?;
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
            bytes: 0,
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
