//! Puts a node together: servers first, so that probes and clients get answers while Kafka or PostgreSQL are away, then the
//! store, the assignment, and one task per replica. A part that dies ends the process.

mod beats;
pub mod clock;
pub mod host;
pub mod hosting;
mod others;
pub mod registry;
mod replica;
pub mod restore;
mod trim;
mod watched;

use std::convert::Infallible;
use std::io::{BufWriter, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use kvcluster_crds::Incarnation;
use ring::rand::{SecureRandom, SystemRandom};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{interval, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::api::{self, Api, Ending, Readiness, Routers};
use crate::args::{DecodeLogArgs, NodeArgs, Reads};
use crate::assignment::{self, Cluster, Following};
use crate::log::decode::{self, Change};
use crate::log::{KafkaLog, KafkaLogConfig};
use crate::metrics::Metrics;
use crate::peer::Peers;
use crate::service::Slots;
use crate::shutdown;
use crate::store::postgres::{PostgresConfig, PostgresStore};
use crate::store::{Snapshots, Store};
use beats::BeatsConfig;
use clock::Clock;
use host::Host;
use hosting::{Hosting, until_available};
use registry::{Registry, RegistryConfig};
use restore::Restorer;
use trim::Trimmer;

/// Time between two looks whether a producer has to be replaced.
const PRODUCER_CARE: Duration = Duration::from_millis(500);
/// Time between two looks whether all releases are in the log.
const RELEASE_LOOK: Duration = Duration::from_millis(10);
/// Idempotency keys that a node remembers, at most, in all its slots: about 100 MiB.
const DEDUP_ENTRIES_MAX: u32 = 524_288;
/// Reading the log stops when so many times the allowed memory waits for PostgreSQL: followers cannot refuse writes.
const MEMORY_HARD_FACTOR: u64 = 2;

/// Names the thread that held it, when the thread ends.
struct Alive {
    name: &'static str,
    ended: mpsc::UnboundedSender<&'static str>,
}

impl Drop for Alive {
    fn drop(&mut self) {
        // When nobody listens the process is ending anyway.
        let _ = self.ended.send(self.name);
    }
}

/// The parts of a node that work for it.
struct Node {
    args: NodeArgs,
    store: Arc<PostgresStore>,
    registry: Arc<Registry>,
    peers: Peers,
    stop: CancellationToken,
    ended: mpsc::UnboundedSender<&'static str>,
}

/// Prints what a log holds.
pub fn decode_log(args: &DecodeLogArgs) -> anyhow::Result<()> {
    let mut lines = BufWriter::new(std::io::stdout().lock());
    let print = |change: Change<'_>| {
        if args.effects {
            writeln!(lines, "{}", serde_json::to_string(&change)?)?;
        }
        Ok(())
    };
    let report = decode::decode(&args.bootstrap, &args.topic, args.log_id, print)?;
    if !args.effects {
        writeln!(lines, "{}", serde_json::to_string_pretty(&report)?)?;
    }
    Ok(lines.flush()?)
}

/// Runs a node until it is asked to stop. An error means that it cannot go on.
pub async fn run(args: NodeArgs) -> anyhow::Result<()> {
    args.check()?;
    let incarnation = random_incarnation()?;
    let metrics = Metrics::new();
    let store = PostgresStore::new(
        PostgresConfig {
            url: args.postgres.url.clone(),
            schema: args.postgres.schema.clone(),
            connections: args.postgres.connections,
            cache_bytes: args.cache_bytes,
        },
        incarnation,
        Arc::clone(&metrics),
    )?;
    let registry = Arc::new(Registry::new(RegistryConfig {
        node: args.node(),
        incarnation,
        cluster_uid: args.cluster_uid.clone(),
        log_id: args.log_id,
        slots: args.slots,
        suspicion_ms: args.times.suspicion_ms,
        unflushed_bytes_max: args.unflushed_bytes_max,
        store: Arc::clone(&store) as Arc<dyn Store>,
        clock: Clock::of_machine(),
    }));
    let peers = Peers::over_http();
    let servers = Servers::start(&args, &registry, &store, metrics, peers.clone()).await?;
    info!(node = args.node_id, %incarnation, listen = %args.listen, "started");
    let (ended, mut ends) = mpsc::unbounded_channel();
    let node = Arc::new(Node {
        args,
        store: Arc::clone(&store),
        registry: Arc::clone(&registry),
        peers,
        stop: CancellationToken::new(),
        ended,
    });
    let mut work = tokio::spawn(Arc::clone(&node).work());
    let ending = tokio::select! {
        signal = shutdown::asked() => {
            info!(signal = signal.context("listen for signals")?, "stopping");
            Ok(())
        }
        done = &mut work => return Err(broken(done)),
        name = ends.recv() => bail!("the thread {} ended", name.unwrap_or("of the node")),
        // The log is as it was: leaderships are given away as ever, and nobody has to wait for suspicion.
        reason = store.failed() => {
            error!(error = %reason, "stopping: the store cannot go on");
            Err(reason).context("the store cannot go on")
        }
    };
    stop(&node, servers).await;
    ending
}

fn broken(done: Result<anyhow::Result<Infallible>, tokio::task::JoinError>) -> anyhow::Error {
    match done {
        Ok(Err(error)) => error,
        Err(error) => anyhow!(error).context("a task of the node ended"),
    }
}

fn random_incarnation() -> anyhow::Result<Incarnation> {
    let mut bytes = [0; 8];
    SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| anyhow!("the system gives no random number"))?;
    Ok(Incarnation(u64::from_be_bytes(bytes)))
}

/// The two ports.
struct Servers {
    readiness: Readiness,
    rest_ending: Ending,
    rest: JoinHandle<()>,
    admin_ending: Ending,
    admin: JoinHandle<()>,
}

impl Servers {
    async fn start(
        args: &NodeArgs,
        registry: &Arc<Registry>,
        store: &Arc<PostgresStore>,
        metrics: Arc<Metrics>,
        peers: Peers,
    ) -> anyhow::Result<Self> {
        let bind = async |address| {
            TcpListener::bind(address)
                .await
                .with_context(|| format!("listen on {address}"))
        };
        let rest_listener = bind(args.listen).await?;
        let admin_listener = bind(args.admin_listen).await?;
        let readiness = Readiness::new();
        let api = Api {
            slots: Arc::clone(registry) as Arc<dyn Slots>,
            store: Arc::clone(store) as Arc<dyn Store>,
            snapshots: Arc::clone(store) as Arc<dyn Snapshots>,
            metrics,
            readiness: readiness.clone(),
            peers,
            clock: registry.config().clock.clone(),
        };
        let Routers { rest, admin } = api.routers();
        let (rest_ending, admin_ending) = (Ending::default(), Ending::default());
        let servers = Self {
            rest: tokio::spawn(api::serve(rest_listener, rest, rest_ending.clone())),
            admin: tokio::spawn(api::serve(admin_listener, admin, admin_ending.clone())),
            readiness,
            rest_ending,
            admin_ending,
        };
        servers.readiness.set(true);
        Ok(servers)
    }
}

/// Gives leaderships away, drains, writes everything down. Every wait has an end.
async fn stop(node: &Node, servers: Servers) {
    servers.readiness.set(false);
    servers.rest_ending.leaving.cancel();
    node.stop.cancel();
    let released = async {
        while !node.registry.all_stopped() {
            sleep(RELEASE_LOOK).await;
        }
    };
    if timeout(shutdown::RELEASE_TIMEOUT, released).await.is_err() {
        warn!("some leaderships could not be given away; others take over by suspicion");
    }
    sleep(shutdown::ENDPOINT_GRACE).await;
    servers.rest_ending.stop.cancel();
    if let Err(error) = servers.rest.await {
        error!(%error, "the REST server ended badly");
    }
    match timeout(shutdown::FLUSH_TIMEOUT, node.store.flush_all()).await {
        Ok(Ok(())) => info!("everything is in PostgreSQL"),
        Ok(Err(error)) => warn!(%error, "not everything is in PostgreSQL; the log has it"),
        Err(_) => warn!("PostgreSQL does not take everything in time; the log has it"),
    }
    servers.admin_ending.stop.cancel();
    if let Err(error) = servers.admin.await {
        error!(%error, "the admin server ended badly");
    }
}

impl Node {
    fn alive(&self, name: &'static str) -> Box<dyn Send> {
        Box::new(Alive {
            name,
            ended: self.ended.clone(),
        })
    }

    /// Everything that a node does beside its servers.
    async fn work(self: Arc<Self>) -> anyhow::Result<Infallible> {
        let names = self.args.names();
        let assignments = assignment::start(
            Following {
                bootstrap: self.args.kafka_bootstrap.clone(),
                client_id: self.args.client_id(),
                topic: names.assignment_topic(),
                cluster: Cluster {
                    uid: self.args.cluster_uid.clone(),
                    log_id: self.args.log_id,
                    slots: self.args.slots,
                },
            },
            self.alive("assignment-reader"),
        )?;
        self.registry.set_assignment(assignments.clone());
        let mut tasks = JoinSet::new();
        // Before the store is open: a process that comes back is known at once to be another one.
        self.start_heartbeats(&mut tasks)?;
        self.open_store().await?;
        let log = self.start_log()?;
        tasks.spawn(care_for_producers(
            Arc::clone(&log),
            Arc::clone(&self.registry),
        ));
        let trimmer = Trimmer::new(
            Arc::clone(&self.registry),
            Arc::clone(&log),
            self.args.trim.keep(),
            self.peers.clone(),
        );
        tasks.spawn(async move {
            trimmer.run().await;
            Ok(())
        });
        let host = Host {
            registry: Arc::clone(&self.registry),
            log,
            store: Arc::clone(&self.store) as Arc<dyn Store>,
            stop: self.stop.clone(),
            lease_ms: self.args.times.lease_ms,
            reads_by_lease: self.args.reads == Reads::Lease,
            dedup_entries_max: (DEDUP_ENTRIES_MAX / self.args.slots) as usize,
            snapshot_from_records: self.args.trim.snapshot_from_records,
            begun: AtomicU32::new(0),
            restorer: Restorer::new(
                Arc::clone(&self.registry),
                Arc::clone(&self.store) as Arc<dyn Store>,
                Arc::clone(&self.store) as Arc<dyn Snapshots>,
                self.peers.clone(),
            ),
        };
        let hosting = Hosting {
            host,
            assignments,
            peers: self.peers.clone(),
            remove_after: Duration::from_secs(self.args.trim.remove_after_seconds),
        };
        tokio::select! {
            ended = hosting.run() => Ok(ended.context("host replicas")?),
            Some(done) = tasks.join_next() => {
                done.context("a task of the node ended")??;
                bail!("a task of the node ended");
            }
        }
    }

    async fn open_store(&self) -> anyhow::Result<()> {
        until_available(&self.registry, || self.store.open())
            .await
            .context("open the store")
    }

    fn start_heartbeats(&self, tasks: &mut JoinSet<anyhow::Result<()>>) -> anyhow::Result<()> {
        let config = BeatsConfig {
            bootstrap: self.args.kafka_bootstrap.clone(),
            client_id: self.args.client_id(),
            topic: self.args.names().heartbeat_topic(),
            every: Duration::from_millis(u64::from(self.args.times.heartbeat_ms)),
        };
        let alive = self.alive("heartbeat-reader");
        beats::listen(&config, Arc::clone(&self.registry), alive)?;
        let registry = Arc::clone(&self.registry);
        tasks.spawn(async move { Ok(beats::send(config, registry).await?) });
        Ok(())
    }

    fn start_log(&self) -> anyhow::Result<Arc<KafkaLog>> {
        let store = Arc::clone(&self.store);
        let most = self.args.unflushed_bytes_max;
        let was_full = AtomicBool::new(false);
        // Full above the hard limit, and until half of what is between the limits is gone: no flapping.
        let memory_is_full = move || {
            let limit = if was_full.load(Ordering::Relaxed) {
                most * MEMORY_HARD_FACTOR - most / 2
            } else {
                most * MEMORY_HARD_FACTOR
            };
            let full = store.unflushed_bytes() > limit;
            was_full.store(full, Ordering::Relaxed);
            full
        };
        let registry = Arc::clone(&self.registry);
        let log = KafkaLog::start(KafkaLogConfig {
            bootstrap: self.args.kafka_bootstrap.clone(),
            topic: self.args.names().log_topic(),
            client_id: self.args.client_id(),
            slots: self.args.slots,
            memory_is_full: Box::new(memory_is_full),
            report: Box::new(move |problem| registry.set_problem("log", problem)),
            alive: self.alive("log-consumer"),
        })?;
        Ok(Arc::new(log))
    }
}

/// Replaces producers that librdkafka has given up, for ever.
async fn care_for_producers(log: Arc<KafkaLog>, registry: Arc<Registry>) -> anyhow::Result<()> {
    let mut looks = interval(PRODUCER_CARE);
    let mut answers_since = None;
    loop {
        let now = looks.tick().await;
        let log = Arc::clone(&log);
        let now_ns = registry.config().clock.now_ns();
        if registry.with_peers(|peers| peers.own_return(now_ns)) {
            answers_since.get_or_insert(now);
        } else {
            answers_since = None;
        }
        let answers_for = answers_since.map_or(Duration::ZERO, |since| now.duration_since(since));
        tokio::task::spawn_blocking(move || log.replace_broken_producers(answers_for)).await?;
    }
}
