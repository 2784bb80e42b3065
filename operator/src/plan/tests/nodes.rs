//! What the model's nodes do by themselves.

use kvcluster_crds::{NodeId, NodeStatus};

use super::model::{Model, RECORDS};
use crate::cluster::Target;
use crate::fixtures::{node_status, slot_status};
use crate::observe::NodeTrouble;

impl Model {
    /// The node's process dies and is not started again.
    pub(super) fn fail(&mut self, node: u32) {
        self.failed.insert(NodeId(node));
        if let Some(pod) = self.objects().pods.get_mut(&NodeId(node)) {
            pod.ready = false;
        }
    }

    /// It is started again.
    pub(super) fn recover(&mut self, node: u32) {
        self.failed.remove(&NodeId(node));
        if let Some(pod) = self.objects().pods.get_mut(&NodeId(node)) {
            pod.ready = true;
        }
    }

    /// A moment passes: nodes start, read the newest assignment, take a record of each slot, hand over and report. Says whether
    /// anything changed.
    pub(super) fn tick(&mut self) -> bool {
        let before = self.world.nodes.clone();
        let stopped: Vec<NodeId> = self
            .objects()
            .pods
            .iter()
            .filter(|(_, pod)| pod.terminating)
            .map(|(&node, _)| node)
            .collect();
        for &node in &stopped {
            self.start_pod(node);
        }
        let table = self.newest().clone();
        let pods: Vec<NodeId> = self.objects().pods.keys().copied().collect();
        for (slot, entry) in table.slots.iter().enumerate() {
            let here = |node: &NodeId| pods.contains(node) && !self.failed.contains(node);
            for &node in entry
                .voters
                .iter()
                .chain(&entry.learners)
                .filter(|n| here(n))
            {
                let applied = self.applied.entry((node, slot)).or_insert(0);
                *applied = (*applied + 1).min(RECORDS);
            }
            let able = |node: &NodeId| {
                here(node)
                    && entry.voters.contains(node)
                    && self.applied.get(&(*node, slot)) == Some(&RECORDS)
            };
            self.leaders[slot] = Some(entry.preferred_leader)
                .filter(able)
                .or_else(|| self.leaders[slot].filter(able))
                .or_else(|| entry.voters.iter().copied().find(able));
        }
        self.applied
            .retain(|&(node, slot), _| table.slots[slot].has_replica(node));
        let target = self.target();
        for node in pods {
            let status = if self.failed.contains(&node) {
                Err(NodeTrouble::NoAnswer)
            } else {
                Ok(self.fresh_status(&target, node))
            };
            self.world.nodes.insert(node, status);
        }
        before != self.world.nodes || !stopped.is_empty()
    }

    pub(super) fn fresh_status(&mut self, target: &Target, node: NodeId) -> NodeStatus {
        let newest = self.newest();
        let hosted = newest.slots.iter().enumerate();
        let hosted = hosted.filter(|(_, entry)| entry.has_replica(node));
        let slots = hosted.map(|(slot, _)| {
            let applied = self.applied.get(&(node, slot)).copied().unwrap_or(0);
            slot_status(node, slot, self.leaders[slot], applied, applied == RECORDS)
        });
        let version = Some(newest.version);
        node_status(node, &target.uid, newest.log_id, version, slots)
    }
}
