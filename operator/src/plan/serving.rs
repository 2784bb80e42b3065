//! What the nodes say, held against the published assignment: who follows it, which slots have a leader, what is broken.

use std::collections::BTreeMap;

use jiff::SignedDuration;
use kvcluster_crds::{NodeId, NodeStatus, SlotRole};

use crate::cluster::Target;
use crate::observe::{ObjectsView, PodView, World};
use crate::seeded::{self, Bug};

/// A pod that is this young and does not report yet is starting; an older one is down.
const START_GRACE: SignedDuration = SignedDuration::from_secs(60);
/// Slots that a message names at most.
const NAMED_MAX: usize = 8;

/// What is served, and what keeps the rest from it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Serving {
    /// Nodes that exist.
    pub(super) existing: usize,
    /// Nodes that report and follow the newest assignment.
    pub(super) ready: usize,
    /// Per node that is not ready: why.
    pub(super) unready: BTreeMap<NodeId, String>,
    /// Nodes that should have come up by now.
    pub(super) down: Vec<NodeId>,
    /// Nodes that serve and cannot write to PostgreSQL.
    pub(super) unwritten: Vec<NodeId>,
    /// Replicas that stand still until somebody acts.
    pub(super) frozen: Vec<String>,
    /// Slots that nobody leads.
    pub(super) leaderless: Vec<usize>,
    /// Slots that two nodes say they lead: a hand-over, or a node that does not know yet that it was replaced.
    pub(super) contested: Vec<usize>,
    /// Nodes whose pod was made from an older template.
    pub(super) outdated: Vec<NodeId>,
    /// Nodes whose StatefulSet Kubernetes has not looked at since it was written: whether they are outdated is not known.
    pub(super) settling: Vec<NodeId>,
    /// Nodes that do not serve anything and that a restart can only help.
    pub(super) broken: Vec<NodeId>,
}

impl Serving {
    /// Whether the whole cluster serves as it should.
    pub(super) fn is_whole(&self) -> bool {
        self.unready.is_empty()
            && self.frozen.is_empty()
            && self.leaderless.is_empty()
            && self.contested.is_empty()
            && self.settling.is_empty()
    }

    /// What is wrong with a node.
    pub(super) fn why(&self, node: NodeId) -> &str {
        self.unready.get(&node).map_or("", String::as_str)
    }
}

pub(super) fn look(target: &Target, world: &World, nodes: &[NodeId]) -> Serving {
    let Some(Ok(objects)) = &world.objects else {
        return Serving::default();
    };
    let newest = super::assignment::version(world);
    let mut serving = Serving {
        existing: objects.stateful_sets.len(),
        ..Serving::default()
    };
    let mut leaders = vec![0_usize; target.slots as usize];
    for &node in nodes {
        if is_settling(target, objects, node) {
            serving.settling.push(node);
        } else if is_outdated(target, objects, node) {
            serving.outdated.push(node);
        }
        if is_broken(world, objects, node) {
            serving.broken.push(node);
        }
        match world.nodes.get(&node) {
            Some(Ok(status)) => {
                count_leaders(status, &mut leaders);
                let frozen = status.slots.iter().filter_map(|slot| {
                    let reason = slot.frozen.as_ref()?;
                    Some(format!("node {node} slot {}: {reason}", slot.slot))
                });
                serving.frozen.extend(frozen);
                if !status.postgres_connected {
                    serving.unwritten.push(node);
                }
                match problem(status, newest, objects.pods.get(&node)) {
                    None => serving.ready += 1,
                    Some(problem) => {
                        serving.unready.insert(node, problem);
                    }
                }
            }
            silent => {
                let why = silent.and_then(|answer| answer.as_ref().err());
                let why = why.map_or_else(|| "it was not asked".to_owned(), ToString::to_string);
                serving.unready.insert(node, why);
                if is_down(world, objects, node) {
                    serving.down.push(node);
                }
            }
        }
    }
    serving.leaderless = slots_with(&leaders, |count| count == 0);
    serving.contested = slots_with(&leaders, |count| count > 1);
    serving
}

/// Up to [`NAMED_MAX`] numbers, for a message.
pub(super) fn list(numbers: &[usize]) -> String {
    let named: Vec<String> = numbers
        .iter()
        .take(NAMED_MAX)
        .map(ToString::to_string)
        .collect();
    let more = numbers.len().saturating_sub(NAMED_MAX);
    if more == 0 {
        named.join(", ")
    } else {
        format!("{} and {more} more", named.join(", "))
    }
}

fn problem(status: &NodeStatus, newest: Option<u64>, pod: Option<&PodView>) -> Option<String> {
    if let Some(problem) = &status.problem {
        return Some(problem.clone());
    }
    if pod.is_none_or(|pod| !pod.ready) {
        let problem = "Kubernetes does not find its pod ready yet: the Service sends nothing there";
        return Some(problem.to_owned());
    }
    if newest.is_some() && status.assignment_version != newest {
        return Some("it has not read the newest assignment yet".to_owned());
    }
    None
}

fn count_leaders(status: &NodeStatus, leaders: &mut [usize]) {
    for slot in status
        .slots
        .iter()
        .filter(|slot| slot.role == SlotRole::Leader)
    {
        if let Some(count) = leaders.get_mut(slot.slot.index()) {
            *count += 1;
        }
    }
}

fn slots_with(leaders: &[usize], wanted: impl Fn(usize) -> bool) -> Vec<usize> {
    let slots = leaders
        .iter()
        .enumerate()
        .filter(|&(_, &count)| wanted(count));
    slots.map(|(slot, _)| slot).collect()
}

fn is_outdated(target: &Target, objects: &ObjectsView, node: NodeId) -> bool {
    let set = objects.stateful_sets.get(&target.names.stateful_set(node));
    let status = set.and_then(|set| set.status.as_ref());
    let newest = status.and_then(|status| status.update_revision.as_ref());
    let pod = objects
        .pods
        .get(&node)
        .and_then(|pod| pod.revision.as_ref());
    let differs = newest.zip(pod).is_some_and(|(newest, pod)| newest != pod);
    differs && !seeded::on(Bug::RestartsNobody)
}

fn is_settling(target: &Target, objects: &ObjectsView, node: NodeId) -> bool {
    let set = objects.stateful_sets.get(&target.names.stateful_set(node));
    set.is_some_and(|set| {
        let seen = set
            .status
            .as_ref()
            .and_then(|status| status.observed_generation);
        set.metadata.generation.is_some() && seen < set.metadata.generation
    })
}

/// A pod that neither Kubernetes nor we find well, or a node that says what is wrong with it and leads nothing. A node that we
/// alone cannot reach is not broken: the fault may be on our side.
fn is_broken(world: &World, objects: &ObjectsView, node: NodeId) -> bool {
    match world.nodes.get(&node) {
        Some(Ok(status)) => {
            let leads = status
                .slots
                .iter()
                .any(|slot| slot.role == SlotRole::Leader);
            status.problem.is_some() && !leads
        }
        Some(Err(_)) => objects.pods.get(&node).is_some_and(|pod| !pod.ready),
        None => false,
    }
}

fn is_down(world: &World, objects: &ObjectsView, node: NodeId) -> bool {
    let pod: Option<&PodView> = objects.pods.get(&node);
    match pod.and_then(|pod| pod.created) {
        Some(created) => world.now.duration_since(created) > START_GRACE,
        // No pod: right after the StatefulSet was made that is as it should be. A failing one shows by its age.
        None => objects.stateful_sets.iter().any(|(name, set)| {
            let created = set.metadata.creation_timestamp.as_ref().map(|time| time.0);
            name.ends_with(&format!("-{node}"))
                && created.is_some_and(|created| world.now.duration_since(created) > START_GRACE)
        }),
    }
}
