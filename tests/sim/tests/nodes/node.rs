//! One node: the product's registry, replicas and routers, over the simulated log and store.

use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::time::Duration;

use kvcluster_crds::{Assignment, Incarnation, LogId, NodeId, NodeStatus, SlotId};
use kvcluster_node::api::{Api, Readiness};
use kvcluster_node::assignment::Known;
use kvcluster_node::heartbeat::Heartbeat;
use kvcluster_node::log::Log;
use kvcluster_node::metrics::Metrics;
use kvcluster_node::peer::Peers;
use kvcluster_node::runtime::clock::Clock;
use kvcluster_node::runtime::host::Host;
use kvcluster_node::runtime::hosting::{Hosting, until_available};
use kvcluster_node::runtime::registry::{Registry, RegistryConfig};
use kvcluster_node::runtime::restore::Restorer;
use kvcluster_node::service::Slots;
use kvcluster_node::store::{Snapshots, Store};
use kvcluster_sim::log::{Cut, SimLog};
use kvcluster_sim::store::SimStore;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::life::Life;
use crate::network::{Network, Way};
use crate::world::{Services, World};

/// Slots of the cluster.
pub(crate) const SLOTS: u32 = 3;
/// The life of the log.
pub(crate) const LOG: LogId = LogId(1);
/// Time between two heartbeats, suspicion, and leases, milliseconds: as by default.
const HEARTBEAT_MS: u64 = 150;
const SUSPICION_MS: u32 = 600;
const LEASE_MS: u32 = 600;
/// Most memory that waits for PostgreSQL, bytes.
const UNFLUSHED_BYTES_MAX: u64 = 1 << 20;
/// What wall clocks show at the beginning, less by how much each is off.
const WALL_MS: u64 = 1_700_000_000_000;
/// Requests that a slot remembers at most.
const DEDUP_ENTRIES_MAX: usize = 1_000;
/// For so long the rows of a slot stay that is assigned to others.
const REMOVE_AFTER: Duration = Duration::from_millis(500);
/// Most time until a node has read a new assignment, milliseconds.
const ASSIGNMENT_READ_MS: u64 = 400;
/// Longest wait of a graceful stop for its releases, and for its flush.
const STOP_LIMIT: Duration = Duration::from_secs(2);

/// A running process.
pub(crate) struct Node {
    pub(crate) number: usize,
    pub(crate) life: Life,
    pub(crate) registry: Arc<Registry>,
    pub(crate) log: Arc<SimLog>,
    store: Arc<SimStore>,
    stop: CancellationToken,
}

impl Node {
    /// Starts a process; nothing waits for its services.
    pub(crate) fn start(
        world: &World,
        number: usize,
        incarnation: u64,
        reads_by_lease: bool,
    ) -> Self {
        let services = &world.services;
        let life = Life::default();
        let clock = clock(number, incarnation, services.begin);
        let incarnation = Incarnation(incarnation);
        let store = Arc::new(SimStore::new(&services.schemas[number], incarnation));
        let registry = Arc::new(Registry::new(RegistryConfig {
            node: node_id(number),
            incarnation,
            cluster_uid: "uid".to_owned(),
            log_id: LOG,
            slots: SLOTS,
            suspicion_ms: SUSPICION_MS,
            unflushed_bytes_max: UNFLUSHED_BYTES_MAX,
            store: Arc::clone(&store) as Arc<dyn Store>,
            clock: clock.clone(),
        }));
        let known = follow(services, &life, incarnation);
        registry.set_assignment(known.clone());
        let full = Arc::downgrade(&store);
        let log = services.broker.client(move || {
            let bytes = full.upgrade().map_or(0, |store| store.unflushed_bytes());
            bytes > 2 * UNFLUSHED_BYTES_MAX
        });
        let node = Self {
            number,
            life,
            registry,
            log: Arc::new(log),
            store,
            stop: CancellationToken::new(),
        };
        node.listen(services, clock);
        node.beat(services);
        node.host(services, known, reads_by_lease);
        node
    }

    fn listen(&self, services: &Services, clock: Clock) {
        let way = Way {
            network: services.network.clone(),
            from: self.number,
        };
        let api = Api {
            slots: Arc::clone(&self.registry) as Arc<dyn Slots>,
            store: Arc::clone(&self.store) as Arc<dyn Store>,
            snapshots: Arc::clone(&self.store) as Arc<dyn Snapshots>,
            metrics: Metrics::new(),
            readiness: Readiness::new(),
            peers: Peers::over(Arc::new(way)),
            clock,
        };
        let router = api.routers().rest;
        services
            .network
            .listen(self.number, router, self.life.clone());
    }

    /// Sends heartbeats, for ever; who listens is the world's.
    fn beat(&self, services: &Services) {
        let (registry, services) = (Arc::clone(&self.registry), services.clone());
        let number = self.number;
        self.life.spawn(async move {
            let mut beats = interval(Duration::from_millis(HEARTBEAT_MS));
            beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                beats.tick().await;
                registry.find_others();
                let (can_lead, serves) = registry.own_sets();
                let about = registry.config();
                let heartbeat = Heartbeat {
                    log_id: about.log_id,
                    node: about.node,
                    incarnation: about.incarnation,
                    sent_ns: about.clock.now_ns(),
                    can_lead,
                    serves,
                    acknowledged: registry.own_acknowledged(about.clock.wall_ms()),
                };
                services.broadcast(number, &heartbeat.encode());
            }
        });
    }

    /// Opens the store and hosts what the assignment gives. A store that can never go on ends the process.
    fn host(&self, services: &Services, assignments: watch::Receiver<Known>, reads_by_lease: bool) {
        let way = Way {
            network: services.network.clone(),
            from: self.number,
        };
        let peers = Peers::over(Arc::new(way));
        let (store, registry) = (Arc::clone(&self.store), Arc::clone(&self.registry));
        let host = Host {
            registry: Arc::clone(&self.registry),
            log: Arc::clone(&self.log) as Arc<dyn Log>,
            store: Arc::clone(&self.store) as Arc<dyn Store>,
            stop: self.stop.clone(),
            lease_ms: LEASE_MS,
            reads_by_lease,
            dedup_entries_max: DEDUP_ENTRIES_MAX,
            begun: AtomicU32::new(0),
            snapshot_from_records: services.snapshot_from_records,
            restorer: Restorer::new(
                Arc::clone(&self.registry),
                Arc::clone(&self.store) as Arc<dyn Store>,
                Arc::clone(&self.store) as Arc<dyn Snapshots>,
                peers.clone(),
            ),
        };
        let hosting = Hosting {
            host,
            assignments,
            peers,
            remove_after: REMOVE_AFTER,
        };
        self.life.spawn(async move {
            let opened = until_available(&registry, || store.open()).await;
            opened.expect("nobody else uses the schema");
            tokio::select! {
                biased;
                Err(error) = hosting.run() => panic!("{error}"),
                error = store.failed() => panic!("the store cannot go on: {error}"),
            }
        });
    }

    /// What a SIGTERM does, up to the end of the process.
    pub(crate) async fn stop(&self) {
        self.stop.cancel();
        let released = async {
            while !self.registry.all_stopped() {
                sleep(Duration::from_millis(10)).await;
            }
        };
        let _ = timeout(STOP_LIMIT, released).await;
        let _ = timeout(STOP_LIMIT, self.store.flush_all()).await;
    }

    pub(crate) fn status(&self) -> NodeStatus {
        self.registry.status()
    }

    /// Whether it serves any slot.
    pub(crate) fn leads(&self) -> bool {
        let status = self.status();
        status
            .slots
            .iter()
            .any(|slot| slot.role == kvcluster_crds::SlotRole::Leader)
    }

    /// Cuts it off from Kafka.
    pub(crate) fn cut(&self, cut: Cut) {
        self.log.cut(cut);
    }
}

/// A node's reader of the assignment topic: it sees the newest one, some time after it was published.
fn follow(services: &Services, life: &Life, incarnation: Incarnation) -> watch::Receiver<Known> {
    let mut published = services.assignments.subscribe();
    let known = |assignment| Known {
        assignment: Some(assignment),
        problem: None,
    };
    let (sender, receiver) = watch::channel(known(Arc::clone(&published.borrow_and_update())));
    let mut rng = fastrand::Rng::with_seed(incarnation.0);
    life.spawn(async move {
        while published.changed().await.is_ok() {
            sleep(Duration::from_millis(rng.u64(..ASSIGNMENT_READ_MS))).await;
            let newest = Arc::clone(&published.borrow_and_update());
            sender.send_replace(known(newest));
        }
    });
    receiver
}

/// Runs up to 4 % fast or slow, from a begin of its own.
fn clock(number: usize, incarnation: u64, begin: Instant) -> Clock {
    let mut rng = fastrand::Rng::with_seed(incarnation * 31 + number as u64);
    let base = rng.u64(1_000_000..1_000_000_000_000);
    let rate = rng.u64(960..=1_040);
    let skew_ms = rng.u64(0..2_000);
    let elapsed_ns = move || u64::try_from(begin.elapsed().as_nanos()).expect("a run is short");
    Clock::new(
        move || base + elapsed_ns() / 1_000 * rate,
        move || WALL_MS + skew_ms + elapsed_ns() / 1_000_000,
    )
}

pub(crate) fn node_id(number: usize) -> NodeId {
    NodeId(u32::try_from(number).expect("few"))
}

/// Every node has every slot; each prefers another leader.
pub(crate) fn assignment(nodes: usize) -> Assignment {
    let slots = (0..SLOTS as usize).map(|slot| {
        let voters: Vec<NodeId> = (0..nodes)
            .map(|step| node_id((slot + step) % nodes))
            .collect();
        kvcluster_crds::SlotAssignment {
            preferred_leader: voters[0],
            voters,
            learners: vec![],
        }
    });
    let entries = (0..nodes).map(|number| kvcluster_crds::NodeEntry {
        id: node_id(number),
        address: Network::address(number),
        postgres_instance: "main".to_owned(),
        leaving: false,
    });
    Assignment {
        version: 1,
        based_on: None,
        cluster_uid: "uid".to_owned(),
        log_id: LOG,
        log_version: 1,
        next_node: NodeId(0),
        slots: slots.collect(),
        nodes: entries.collect(),
    }
}

/// All slots.
pub(crate) fn slots() -> impl Iterator<Item = SlotId> {
    (0..SLOTS).map(SlotId)
}
