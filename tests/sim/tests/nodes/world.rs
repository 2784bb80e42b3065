//! One run: nodes, their services, clients and faults, everything drawn from a seed, in a time that stands still while
//! anybody has something to do.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kvcluster_crds::{Assignment, SlotRole};
use kvcluster_node::heartbeat::Heartbeat;
use kvcluster_node::runtime::registry::Registry;
use kvcluster_sim::log::{Delays, SimBroker};
use kvcluster_sim::store::SimSchema;
use kvcluster_suite::history::Action;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use crate::clients::{Client, History, KEYS};
use crate::life::Life;
use crate::network::Network;
use crate::node::{self, Node, SLOTS};
use crate::seen::{Point, Seen};

/// Nodes of the cluster.
pub(crate) const NODES: usize = 3;
/// Clients that ask at a time.
const CLIENTS: usize = 8;
/// Records from which on a replica would rather have a snapshot, in half of the runs: less than a run writes to a slot.
const SNAPSHOT_FROM_RECORDS: i64 = 150;
/// How long clients ask and faults happen.
const CHAOS: Duration = Duration::from_secs(12);
/// How long it may take until all is well again afterwards.
const QUIET_LIMIT: Duration = Duration::from_secs(30);
/// How long things take where nothing is wrong.
const USUAL: Delays = Delays {
    request: (Duration::from_micros(200), Duration::from_millis(3)),
    answer: (Duration::from_micros(200), Duration::from_millis(2)),
    read: (Duration::from_micros(200), Duration::from_millis(8)),
};
const USUAL_LATENCY: (Duration, Duration) = (Duration::from_micros(100), Duration::from_millis(2));

/// What nodes stand on; clones are the same.
#[derive(Clone)]
pub(crate) struct Services {
    pub(crate) broker: SimBroker,
    pub(crate) schemas: Arc<Vec<SimSchema>>,
    pub(crate) network: Network,
    pub(crate) assignments: Arc<watch::Sender<Arc<Assignment>>>,
    pub(crate) begin: Instant,
    /// A replica that lacks more records asks for a snapshot.
    pub(crate) snapshot_from_records: i64,
    bus: Arc<Mutex<Bus>>,
}

/// The heartbeat topic.
struct Bus {
    listeners: BTreeMap<usize, (Arc<Registry>, Life)>,
    cut_off: BTreeSet<usize>,
    rng: fastrand::Rng,
}

/// See the module.
pub(crate) struct World {
    pub(crate) services: Services,
    pub(crate) nodes: Vec<Option<Node>>,
    pub(crate) history: History,
    pub(crate) seen: Seen,
    pub(crate) rng: fastrand::Rng,
    incarnations: u64,
    /// Every process that there was.
    lives: Vec<Life>,
    /// Where the replicas of a node stood when its process ended.
    stood: BTreeMap<usize, Vec<i64>>,
    reads_by_lease: bool,
    /// Whether replicas move in this run; if not, schemas are lost: both in one moment may lose the only one that has a record.
    pub(crate) moves: bool,
}

impl World {
    pub(crate) fn new(seed: u64) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let points = Seen::default();
        let begin = Instant::now();
        let broker = SimBroker::new(SLOTS, rng.u64(..));
        broker.set_delays(USUAL);
        let schemas = (0..NODES).map(|_| SimSchema::new(rng.u64(..))).collect();
        let services = Services {
            broker,
            schemas: Arc::new(schemas),
            network: Network::new(rng.fork(), points.clone()),
            assignments: Arc::new(watch::Sender::new(Arc::new(node::assignment(NODES)))),
            begin,
            snapshot_from_records: if rng.bool() {
                SNAPSHOT_FROM_RECORDS
            } else {
                i64::MAX
            },
            bus: Arc::new(Mutex::new(Bus {
                listeners: BTreeMap::new(),
                cut_off: BTreeSet::new(),
                rng: fastrand::Rng::with_seed(rng.u64(..)),
            })),
        };
        let mut world = Self {
            services,
            nodes: (0..NODES).map(|_| None).collect(),
            history: History::new(begin),
            seen: points,
            reads_by_lease: rng.u8(..4) != 0,
            moves: rng.bool(),
            rng,
            incarnations: 0,
            lives: Vec::new(),
            stood: BTreeMap::new(),
        };
        world.use_usual_times();
        (0..NODES).for_each(|number| world.start(number));
        world
    }

    /// Runs clients and faults, then lets everything become quiet. What must hold then is looked at by `check`.
    pub(crate) async fn run(&mut self) -> Result<(), String> {
        let until = Instant::now() + CHAOS;
        let clients: Vec<_> = (0..CLIENTS)
            .map(|_| {
                let rng = self.rng.fork();
                let client = Client::new(&self.history, &self.services.network, &self.seen, rng);
                tokio::spawn(client.run(NODES, until))
            })
            .collect();
        self.make_trouble(until).await;
        self.assign_all();
        for client in clients {
            client.await.map_err(|error| format!("a client: {error}"))?;
        }
        self.become_quiet().await?;
        self.read_all().await?;
        // Reads may write to the log that leadership goes on.
        self.become_quiet().await
    }

    /// A process of a node starts, where none runs.
    pub(crate) fn start(&mut self, number: usize) {
        if self.nodes[number].is_some() {
            return;
        }
        let stored = self.services.schemas[number].tables().slots;
        let before = self.stood.remove(&number).unwrap_or_default();
        let older = stored
            .values()
            .zip(before)
            .any(|(stored, stood)| stored.next_offset.0 < stood);
        if older {
            self.seen.reach(Point::RestartFromOlderPosition);
        }
        self.incarnations += 1;
        let node = Node::start(self, number, self.incarnations, self.reads_by_lease);
        self.lives.push(node.life.clone());
        let registry = Arc::clone(&node.registry);
        self.services.listen(number, registry, node.life.clone());
        self.nodes[number] = Some(node);
    }

    /// A process ends where it stands.
    pub(crate) fn kill(&mut self, number: usize) {
        if let Some(node) = self.nodes[number].take() {
            let slots = node.status().slots;
            let stood = slots.iter().map(|slot| slot.applied).collect();
            self.stood.insert(number, stood);
            node.life.kill();
            self.services.network.leave(number);
            self.services.leave(number);
        }
    }

    /// The operator publishes another table.
    pub(crate) fn assign(&self, change: impl FnOnce(&mut Assignment)) {
        let schemas = self.services.schemas.iter();
        let removed = schemas.map(|schema| SLOTS as usize - schema.tables().slots.len());
        let removed = u64::try_from(removed.sum::<usize>()).expect("few");
        self.seen.reach_times(Point::ReplicaRemoved, removed);
        self.services.assignments.send_modify(|assignment| {
            let mut next = Assignment::clone(assignment);
            next.version += 1;
            change(&mut next);
            *assignment = Arc::new(next);
        });
    }

    /// Every node has every slot again.
    fn assign_all(&self) {
        let all = node::assignment(NODES);
        self.assign(|assignment| assignment.slots = all.slots);
    }

    pub(crate) fn use_usual_times(&self) {
        self.services.broker.set_delays(USUAL);
        for schema in self.services.schemas.iter() {
            schema.set_latency(USUAL_LATENCY);
        }
    }

    /// A node that leads something, as often as any.
    pub(crate) fn some_node(&mut self) -> usize {
        let leads = |node: &Option<Node>| node.as_ref().is_some_and(Node::leads);
        let leaders: Vec<usize> = (0..NODES).filter(|at| leads(&self.nodes[*at])).collect();
        let any = self.rng.usize(..NODES);
        if self.rng.bool() {
            return any;
        }
        self.rng.choice(leaders).unwrap_or(any)
    }

    async fn become_quiet(&mut self) -> Result<(), String> {
        (0..NODES).for_each(|number| self.start(number));
        let limit = Instant::now() + QUIET_LIMIT;
        loop {
            if let Some(panic) = self.lives.iter().find_map(Life::panic) {
                return Err(format!("a process panicked: {panic}"));
            }
            let Some(why) = self.is_unquiet() else {
                return Ok(());
            };
            if Instant::now() > limit {
                return Err(format!("not quiet after {QUIET_LIMIT:?}: {why}"));
            }
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// What is still to come; none when each slot has a leader and every replica has everything, durably.
    fn is_unquiet(&self) -> Option<String> {
        let nodes = self.nodes.iter().flatten();
        let statuses: Vec<_> = nodes.map(Node::status).collect();
        for slot in node::slots() {
            let (_, end) = self.services.broker.ends(slot);
            let last = self.services.broker.records(slot);
            let next = last.last().map_or(0, |(offset, _)| offset.0 + 1);
            let mut leaders = 0;
            for status in &statuses {
                let found = status.slots.iter().find(|found| found.slot == slot);
                let Some(found) = found else {
                    return Some(format!("slot {slot} is not loaded: {status:?}"));
                };
                leaders += usize::from(found.role == SlotRole::Leader);
                if found.applied != next || found.durable != next || found.frozen.is_some() {
                    return Some(format!("the log ends at {end}, and {found:?}"));
                }
            }
            if leaders != 1 {
                return Some(format!("slot {slot} has {leaders} leaders"));
            }
        }
        None
    }

    /// Reads every key through every node.
    async fn read_all(&self) -> Result<(), String> {
        let (network, seen) = (&self.services.network, &self.seen);
        let mut client = Client::new(&self.history, network, seen, fastrand::Rng::with_seed(0));
        for number in 0..NODES {
            for key in KEYS {
                let key = key.to_owned();
                if !client.ask(number, Action::Get { key: key.clone() }).await {
                    return Err(format!(
                        "node {number} does not answer for {key} though all is quiet"
                    ));
                }
            }
        }
        Ok(())
    }
}

impl Services {
    /// Sends a heartbeat of a node to all that hear Kafka.
    pub(crate) fn broadcast(&self, from: usize, bytes: &[u8]) {
        let mut bus = self.bus.lock().unwrap_or_else(PoisonError::into_inner);
        if bus.cut_off.contains(&from) {
            return;
        }
        let Some(heartbeat) = Heartbeat::decode(bytes) else {
            return;
        };
        let Bus {
            listeners,
            cut_off,
            rng,
        } = &mut *bus;
        for (number, (registry, life)) in listeners {
            if cut_off.contains(number) {
                continue;
            }
            let delay = Duration::from_micros(rng.u64(500..8_000));
            let (registry, heartbeat) = (Arc::clone(registry), heartbeat.clone());
            life.spawn(async move {
                sleep(delay).await;
                let now_ns = registry.config().clock.now_ns();
                registry.with_peers(|peers| peers.observe(now_ns, heartbeat));
            });
        }
    }

    /// Whether a node hears, and is heard by, the heartbeat topic.
    pub(crate) fn set_cut_off(&self, number: usize, is_cut_off: bool) {
        let mut bus = self.bus.lock().unwrap_or_else(PoisonError::into_inner);
        if is_cut_off {
            bus.cut_off.insert(number);
        } else {
            bus.cut_off.remove(&number);
        }
    }

    fn listen(&self, number: usize, registry: Arc<Registry>, life: Life) {
        let mut bus = self.bus.lock().unwrap_or_else(PoisonError::into_inner);
        bus.listeners.insert(number, (registry, life));
    }

    fn leave(&self, number: usize) {
        let mut bus = self.bus.lock().unwrap_or_else(PoisonError::into_inner);
        bus.listeners.remove(&number);
    }
}
