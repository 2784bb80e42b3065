//! What the nodes do by themselves, a step at a time: they follow the newest assignment, catch up, and take and give leadership.

use std::collections::{BTreeMap, BTreeSet};

use kvcluster_crds::{NodeId, SlotId};

use super::outside::{State, node_of, slot_id};

/// Steps until a new replica has caught up.
const STEPS_TO_CATCH_UP: i64 = 3;

impl State {
    /// Each node that runs reads the newest assignment and its logs a bit further.
    pub(super) fn follow(&mut self, pods: &BTreeMap<NodeId, String>) {
        let Some((_, newest)) = self.published.clone() else {
            return;
        };
        let has_role = |node: &NodeId| {
            self.roles
                .values()
                .any(|role| node_of(&role.comment) == Some(*node))
        };
        let up: BTreeMap<NodeId, String> = pods
            .iter()
            .filter(|(node, _)| has_role(node))
            .map(|(node, pod)| (*node, pod.clone()))
            .collect();
        for node in self.nodes.values_mut() {
            node.pod = None;
        }
        let whole = self.whole_slots();
        for (id, pod) in up {
            let node = self.nodes.entry(id).or_default();
            node.pod = Some(pod);
            node.version = Some(newest.version);
            for (number, replicas) in newest.slots.iter().enumerate() {
                let slot = slot_id(number);
                let has = replicas.has_replica(id);
                if !has {
                    node.behind.remove(&slot);
                } else if let Some(behind) = node.behind.get_mut(&slot) {
                    *behind = (*behind - 1).max(0);
                } else {
                    let begins = if whole.contains(&slot) {
                        STEPS_TO_CATCH_UP
                    } else {
                        0
                    };
                    node.behind.insert(slot, begins);
                }
            }
        }
    }

    /// Slots that somebody has all of.
    pub(super) fn whole_slots(&self) -> BTreeSet<SlotId> {
        let nodes = self.nodes.values();
        let slots = nodes.flat_map(|node| node.behind.iter());
        slots
            .filter(|(_, behind)| **behind == 0)
            .map(|(slot, _)| *slot)
            .collect()
    }

    /// Leaders stay where they are fit, hand over to the preferred voter, and are replaced when they are gone.
    pub(super) fn elect(&mut self) {
        let Some((_, newest)) = &self.published else {
            self.leaders.clear();
            return;
        };
        for (number, replicas) in newest.slots.iter().enumerate() {
            let slot = slot_id(number);
            let nodes = &self.nodes;
            let fit = |node: &NodeId| {
                nodes
                    .get(node)
                    .is_some_and(|of| of.pod.is_some() && of.behind.get(&slot) == Some(&0))
            };
            let preferred = Some(replicas.preferred_leader).filter(fit);
            let any = replicas.voters.iter().copied().find(fit);
            // A leader that lost its vote leads on until another one can.
            let still = self.leaders.get(&slot).copied().filter(fit);
            match preferred.or(any).or(still) {
                Some(leader) => drop(self.leaders.insert(slot, leader)),
                None => drop(self.leaders.remove(&slot)),
            }
        }
    }

    pub(super) fn fingerprint(&self) -> String {
        let nodes: Vec<_> = self
            .nodes
            .iter()
            .map(|(id, node)| (id, node.version, &node.pod, &node.behind))
            .collect();
        format!("{nodes:?} {:?}", self.leaders)
    }
}
