//! Keeps the replicas of a node as the assignment wants them: begins those that are missing, ends those that are assigned to
//! others, and removes what these leave behind when it stands elsewhere for good (`slot/surplus.rs`).
//!
//! ```text
//! assigned ──load──▶ hosted ──not assigned, led by another, nobody waits──▶ ended ──unload──▶ surplus ──▶ removed
//!                      ▲                                                                        │
//!                      └───────────────────────────── assigned again ──────────────────────────┘
//! ```
//! All of it happens in one task, one after the other: what is being removed is never loaded at the same time.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use kvcluster_crds::{NodeStatus, Offset, SlotId};
use tokio::sync::watch;
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};
use tracing::{debug, info, warn};

use super::host::Host;
use super::others::ask_others;
use super::registry::Registry;
use super::replica::Ended;
use crate::assignment::Known;
use crate::peer::Peers;
use crate::slot::surplus::may_remove;
use crate::store::StoreError;

/// Pause before PostgreSQL is asked again.
const STORE_PAUSE: Duration = Duration::from_millis(500);
/// Longest and shortest time between two looks at what may be removed.
const SURPLUS_EVERY: (Duration, Duration) = (Duration::from_secs(5), Duration::from_millis(100));
/// Time between two measurements of the slots.
const SIZES_EVERY: Duration = Duration::from_secs(30);

/// Why replicas cannot be hosted any more.
#[derive(Debug, thiserror::Error)]
pub enum HostingError {
    /// The store can never go on.
    #[error("the store cannot go on: {0}")]
    Store(#[from] StoreError),
    /// A bug: the task of a replica ended.
    #[error("the task of slot {0} ended")]
    Ended(SlotId),
    /// A bug: the task of a replica panicked.
    #[error("the task of a replica failed: {0}")]
    Failed(#[from] JoinError),
    /// The thread that reads assignments has ended.
    #[error("the assignment is not followed any more")]
    AssignmentLost,
}

/// The replicas of a node.
pub struct Hosting {
    /// What they stand on.
    pub host: Host,
    /// Tells of new assignments.
    pub assignments: watch::Receiver<Known>,
    /// The way to the other nodes.
    pub peers: Peers,
    /// For so long, at least, the rows of a slot stay that is not assigned to this node any more.
    pub remove_after: Duration,
}

struct Running {
    hosting: Hosting,
    replicas: JoinSet<(SlotId, Ended)>,
    /// Slots that the schema has and that are not hosted.
    idle: BTreeSet<SlotId>,
    /// Since when slots are seen to be idle and not assigned here.
    surplus: BTreeMap<SlotId, Instant>,
}

impl Hosting {
    /// Runs for ever. The store is open.
    pub async fn run(self) -> Result<Infallible, HostingError> {
        let store = Arc::clone(&self.host.store);
        let stored = until_available(&self.host.registry, || store.stored()).await?;
        let mut running = Running {
            hosting: self,
            replicas: JoinSet::new(),
            idle: stored.into_iter().map(|(slot, _)| slot).collect(),
            surplus: BTreeMap::new(),
        };
        let every = |time| {
            let mut looks = interval(time);
            looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            looks
        };
        let (longest, shortest) = SURPLUS_EVERY;
        let remove_after = running.hosting.remove_after.clamp(shortest, longest);
        let (mut removals, mut sizes) = (every(remove_after), every(SIZES_EVERY));
        loop {
            running.host_missing().await?;
            // In this order, so that a simulated run is the same each time; none of them is ready for long.
            tokio::select! {
                biased;
                Some(ended) = running.replicas.join_next() => running.ended(ended?)?,
                changed = running.hosting.assignments.changed() => {
                    changed.map_err(|_| HostingError::AssignmentLost)?;
                }
                _ = removals.tick() => running.look_at_surplus().await,
                _ = sizes.tick() => running.measure().await,
            }
        }
    }
}

impl Running {
    fn registry(&self) -> &Arc<Registry> {
        &self.hosting.host.registry
    }

    /// Loads the slots that the assignment gives to this node and that it does not have yet.
    async fn host_missing(&mut self) -> Result<(), HostingError> {
        let host = &self.hosting.host;
        let missing = host.missing();
        if missing.is_empty() {
            return Ok(());
        }
        let loaded = until_available(&host.registry, || host.store.load(&missing)).await?;
        let version = host.registry.assignment().map(|table| table.version);
        info!(slots = loaded.len(), version, "hosting");
        for (slot, replica) in host.host(loaded) {
            let (log, store) = (Arc::clone(&host.log), Arc::clone(&host.store));
            self.replicas.spawn(async move {
                let ended = replica.await;
                log.unfollow(slot);
                store.unload(slot).await;
                (slot, ended)
            });
        }
        for slot in missing {
            self.idle.remove(&slot);
            self.surplus.remove(&slot);
        }
        Ok(())
    }

    fn ended(&mut self, (slot, ended): (SlotId, Ended)) -> Result<(), HostingError> {
        if ended == Ended::Broken {
            return Err(HostingError::Ended(slot));
        }
        let version = self.registry().assignment().map(|table| table.version);
        info!(%slot, version, "hosted no more");
        self.registry().unhost(slot);
        self.idle.insert(slot);
        Ok(())
    }

    /// Removes what has been surplus for long enough and stands elsewhere. What fails is tried again with the next look.
    async fn look_at_surplus(&mut self) {
        let now = Instant::now();
        let registry = Arc::clone(self.registry());
        let others = |slot: &&SlotId| registry.is_assigned(**slot) == Some(false);
        let surplus: BTreeSet<SlotId> = self.idle.iter().filter(others).copied().collect();
        self.surplus.retain(|slot, _| surplus.contains(slot));
        for slot in surplus {
            self.surplus.entry(slot).or_insert(now);
        }
        let remove_after = self.hosting.remove_after;
        let due = |since: &Instant| now.duration_since(*since) >= remove_after;
        let due: Vec<SlotId> = self
            .surplus
            .iter()
            .filter(|(_, since)| due(since))
            .map(|(slot, _)| *slot)
            .collect();
        if due.is_empty() {
            return;
        }
        let stored = match self.hosting.host.store.stored().await {
            Ok(stored) => stored,
            Err(error) => return debug!(%error, "what is surplus stays"),
        };
        let reports = ask_others(&registry, &self.hosting.peers).await;
        for slot in due {
            let at = stored.iter().find(|(found, _)| *found == slot);
            let at = at.map_or(Offset(0), |(_, at)| *at);
            self.remove(slot, at, &reports).await;
        }
    }

    async fn remove(&mut self, slot: SlotId, stored: Offset, reports: &[NodeStatus]) {
        let Some(assignment) = self.registry().assignment() else {
            return;
        };
        let Some(replicas) = assignment.slot(slot) else {
            return;
        };
        if replicas.has_replica(self.registry().config().node)
            || !may_remove(slot, stored, assignment.version, &replicas.voters, reports)
        {
            return;
        }
        match self.hosting.host.store.remove(slot).await {
            Ok(()) => {
                info!(%slot, version = assignment.version, "removed: other nodes have it");
                self.idle.remove(&slot);
                self.surplus.remove(&slot);
            }
            Err(error) => warn!(%slot, %error, "what is surplus was not removed"),
        }
    }

    async fn measure(&self) {
        match self.hosting.host.store.sizes().await {
            Ok(sizes) => self.registry().set_sizes(&sizes),
            Err(error) => debug!(%error, "the slots were not measured"),
        }
    }
}

/// Asks PostgreSQL until it answers; other errors are final.
pub async fn until_available<T, F>(
    registry: &Registry,
    mut ask: impl FnMut() -> F,
) -> Result<T, StoreError>
where
    F: Future<Output = Result<T, StoreError>>,
{
    loop {
        match ask().await {
            Err(StoreError::Unavailable(reason)) => {
                warn!(reason, "PostgreSQL does not answer yet");
                let problem = format!("PostgreSQL does not answer: {reason}");
                registry.set_problem("postgres", Some(problem));
                sleep(STORE_PAUSE).await;
            }
            answer => {
                registry.set_problem("postgres", None);
                return answer;
            }
        }
    }
}
