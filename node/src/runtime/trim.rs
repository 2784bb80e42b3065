//! Trims the logs of the slots that this node leads, by what all replicas have stored durably (`slot/trim.rs`).
//!
//! Who trims does not matter for safety, only for the number of requests: durable offsets never go back, so also the request
//! of a leader that was replaced meanwhile removes nothing that a replica needs.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use kvcluster_crds::{NodeId, NodeStatus, Offset, SlotId, SlotRole};
use tokio::time::{Instant, MissedTickBehavior, interval};
use tracing::{debug, info};

use super::others::ask_others;
use super::registry::Registry;
use crate::log::KafkaLog;
use crate::peer::Peers;
use crate::service::Slots;
use crate::slot::trim::{Keep, Report, Stored, first_to_keep};

/// Time between two looks.
const EVERY: Duration = Duration::from_secs(5);
/// A trim is worth a request when it removes so many records, or a tenth of those that are kept.
const WORTH_RECORDS: i64 = 1_000;

/// What is known of the stores of all nodes.
pub(super) struct Trimmer {
    registry: Arc<Registry>,
    log: Arc<KafkaLog>,
    keep: Keep,
    peers: Peers,
    /// The last status of each other node, and when it came.
    heard: BTreeMap<NodeId, (Instant, NodeStatus)>,
    /// Since when nothing was heard of nodes, at most.
    begun: Instant,
    trimmed: BTreeMap<SlotId, Offset>,
}

impl Trimmer {
    pub(super) fn new(
        registry: Arc<Registry>,
        log: Arc<KafkaLog>,
        keep: Keep,
        peers: Peers,
    ) -> Self {
        Self {
            registry,
            log,
            keep,
            peers,
            heard: BTreeMap::new(),
            begun: Instant::now(),
            trimmed: BTreeMap::new(),
        }
    }

    /// Looks and trims, for ever.
    pub(super) async fn run(mut self) {
        let mut looks = interval(EVERY);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            looks.tick().await;
            let own = self.registry.status();
            if !own.slots.iter().any(|slot| self.is_worth_asking(slot)) {
                continue;
            }
            self.ask_all().await;
            let due = self.due(&own);
            if due.is_empty() {
                continue;
            }
            match self.log.trim(&due).await {
                Ok(()) => {
                    info!(slots = due.len(), "trimmed logs");
                    self.trimmed.extend(due);
                }
                Err(reason) => debug!(reason, "logs were not trimmed"),
            }
        }
    }

    /// Whether the own replica alone would let something go.
    fn is_worth_asking(&self, slot: &kvcluster_crds::SlotStatus) -> bool {
        let first = slot.durable.saturating_sub(self.keep.records);
        slot.role == SlotRole::Leader && self.is_worth(slot.slot, first)
    }

    fn is_worth(&self, slot: SlotId, first: i64) -> bool {
        let trimmed = self.trimmed.get(&slot).map_or(0, |offset| offset.0);
        first - trimmed >= WORTH_RECORDS.min(self.keep.records / 10 + 1)
    }

    async fn ask_all(&mut self) {
        for status in ask_others(&self.registry, &self.peers).await {
            self.heard.insert(status.node, (Instant::now(), status));
        }
    }

    fn due(&self, own: &NodeStatus) -> Vec<(SlotId, Offset)> {
        let led = own
            .slots
            .iter()
            .filter(|slot| slot.role == SlotRole::Leader);
        let firsts = led.filter_map(|slot| {
            let first = first_to_keep(&self.stored(slot.slot, own), self.keep)?;
            Some((slot.slot, first))
        });
        firsts
            .filter(|(slot, first)| self.is_worth(*slot, first.0))
            .collect()
    }

    fn stored(&self, slot: SlotId, own: &NodeStatus) -> Vec<Stored> {
        let assignment = self.registry.assignment();
        let replicas = assignment.as_deref().and_then(|table| table.slot(slot));
        let nodes = replicas
            .into_iter()
            .flat_map(|replicas| replicas.voters.iter().chain(&replicas.learners));
        let instance = |node: NodeId| {
            let entry = assignment.as_deref().and_then(|table| table.node(node));
            entry.map_or_else(String::new, |entry| entry.postgres_instance.clone())
        };
        nodes
            .map(|node| Stored {
                node: *node,
                instance: instance(*node),
                report: self.report(slot, *node, own),
            })
            .collect()
    }

    fn report(&self, slot: SlotId, node: NodeId, own: &NodeStatus) -> Report {
        let (at, status) = if node == own.node {
            (Instant::now(), own)
        } else {
            // Before the first answer a node counts as heard of when this one began to listen: it then holds everything.
            let Some((at, status)) = self.heard.get(&node) else {
                return Report {
                    flushed: Offset(0),
                    durable: Offset(0),
                    age_ms: millis(self.begun.elapsed()),
                };
            };
            (*at, status)
        };
        let stored = status.slots.iter().find(|found| found.slot == slot);
        Report {
            flushed: Offset(stored.map_or(0, |slot| slot.flushed)),
            durable: Offset(stored.map_or(0, |slot| slot.durable)),
            age_ms: millis(at.elapsed()),
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
