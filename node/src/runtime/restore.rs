//! Fetches snapshots of slots from other nodes, one slot at a time.

use std::sync::Arc;
use std::time::Duration;

use kvcluster_crds::{NodeId, SlotId};
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep};
use tracing::{info, warn};

use super::registry::Registry;
use crate::api::{Wanted, ask_snapshot};
use crate::effect::Loaded;
use crate::peer::Peers;
use crate::slot::Behind;
use crate::store::{Missing, RestoreError, Snapshots, Store, StoreError};

/// Restores of a node at once: each takes a connection to PostgreSQL and its disk.
const AT_ONCE: usize = 1;
/// Pause before all nodes are asked again.
const ROUND_PAUSE: Duration = Duration::from_secs(1);
/// Longest wait for the head of an answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// What a replica needs to be restored.
pub struct Restorer {
    registry: Arc<Registry>,
    store: Arc<dyn Store>,
    snapshots: Arc<dyn Snapshots>,
    peers: Peers,
    turns: Semaphore,
}

impl Restorer {
    /// Over this way to other nodes.
    pub fn new(
        registry: Arc<Registry>,
        store: Arc<dyn Store>,
        snapshots: Arc<dyn Snapshots>,
        peers: Peers,
    ) -> Arc<Self> {
        Arc::new(Self {
            registry,
            store,
            snapshots,
            peers,
            turns: Semaphore::new(AT_ONCE),
        })
    }

    /// Tries until the slot is restored; its new state. None when no node has what helps, and the log does as well: then the
    /// old state is still there.
    pub(super) async fn restore(&self, slot: SlotId, behind: &Behind) -> Option<Loaded> {
        let _turn = self.turns.acquire().await.ok()?;
        let mut can_replay = behind.can_replay;
        loop {
            for (node, address) in self.sources(slot) {
                match self.restore_from(slot, behind, &address).await {
                    Ok(loaded) => {
                        let at = &loaded.position;
                        info!(%slot, %node, at = %at.next_offset, whole_at = ?at.whole_at, "restored from a snapshot");
                        return Some(loaded);
                    }
                    Err(RestoreError::Source(reason)) => {
                        info!(%slot, %node, reason, "no snapshot");
                    }
                    Err(error) => {
                        warn!(%slot, %node, %error, "a snapshot was not taken whole");
                        can_replay = false;
                    }
                }
            }
            if can_replay {
                return None;
            }
            sleep(ROUND_PAUSE).await;
        }
    }

    async fn restore_from(
        &self,
        slot: SlotId,
        behind: &Behind,
        address: &str,
    ) -> Result<Loaded, RestoreError> {
        let Missing { after, least } = self.snapshots.missing(slot, behind.least).await?;
        let wanted = Wanted {
            slot,
            log_id: self.registry.config().log_id,
            least,
            after,
        };
        let begun = Instant::now();
        let stream = ask_snapshot(&self.peers, address, &wanted, begun + ANSWER_TIMEOUT);
        let stream = stream.await.map_err(RestoreError::Source)?;
        self.snapshots.restore(slot, behind.least, stream).await?;
        let loaded = self.store.load(&[slot]).await?;
        info!(%slot, took_ms = begun.elapsed().as_millis(), "a snapshot was loaded");
        let loaded = loaded.into_iter().next().map(|(_, loaded)| loaded);
        let missing = || StoreError::Schema(format!("slot {slot} has no row in slot_state"));
        Ok(loaded.ok_or_else(missing)?)
    }

    /// The other nodes: who serves the slot first, who does not need to catch up; then those with a replica; then those that had
    /// one, and may still have its rows.
    fn sources(&self, slot: SlotId) -> Vec<(NodeId, String)> {
        let Some(assignment) = self.registry.assignment() else {
            return Vec::new();
        };
        let own = self.registry.config().node;
        let serving = self.registry.heard_to_serve(slot);
        let replicas = assignment.slot(slot);
        let mut sources: Vec<_> = assignment
            .nodes
            .iter()
            .filter(|entry| entry.id != own)
            .map(|entry| (entry.id, entry.address.clone()))
            .collect();
        sources.sort_by_key(|(node, _)| {
            let has_replica = replicas.is_some_and(|replicas| replicas.has_replica(*node));
            (Some(*node) != serving, !has_replica)
        });
        sources
    }
}
