//! Kubernetes nodes that are being emptied: the store nodes there lead nothing any more by the time their pods are evicted, and a
//! condition says what an eviction costs, or what it waits for.
//!
//! No replica moves: the pod comes back elsewhere with all that it had, since nothing of it is on the Kubernetes node. What an
//! eviction waits for is the budget alone, which lets one node be away at a time. That ends by itself unless a pod finds no place
//! to run, and then the condition names the pod.

use std::collections::BTreeSet;

use kvcluster_crds::v1alpha1::{RebalanceMode, condition};
use kvcluster_crds::{Assignment, NodeId};

use super::conditions::{Truth, Verdict};
use super::serving::{Serving, list};
use super::{Finding, Stages, assignment};
use crate::cluster::Target;
use crate::gate::Evidence;
use crate::observe::World;
use crate::observe::kubernetes::UNSCHEDULED;

/// The nodes that stand on such Kubernetes nodes.
pub(super) fn nodes(world: &World) -> BTreeSet<NodeId> {
    world.draining().into_values().flatten().collect()
}

/// What there is to say about Kubernetes nodes that are being emptied, while there are any.
pub(super) fn verdict(
    target: &Target,
    world: &World,
    stages: &Stages,
    serving: &Serving,
) -> Option<Verdict> {
    let hosts: Vec<&str> = world.draining().into_keys().collect();
    let leaving = nodes(world);
    let published = assignment::newest(world).filter(|_| !leaving.is_empty())?;
    let finding = eviction_waits(target, world, serving, &leaving)
        .or_else(|| no_voter_elsewhere(published, &leaving))
        .or_else(|| leads_still(target, world, stages, published, &leaving))
        .unwrap_or_else(|| {
            let message = "they lead nothing and may be evicted; no replica moves";
            Finding::new("LeadershipAway", message)
        });
    let nodes: Vec<usize> = leaving.iter().map(|node| node.get() as usize).collect();
    let message = format!(
        "pods are to leave Kubernetes node {}, where nodes {} run: {}",
        hosts.join(", "),
        list(&nodes),
        finding.message
    );
    Some(Verdict::new(
        condition::DRAINING,
        Truth::True,
        finding.reason,
        message,
    ))
}

/// Another node is away already, so the budget lets none of these go. A pod that does not run may go all the same.
fn eviction_waits(
    target: &Target,
    world: &World,
    serving: &Serving,
    leaving: &BTreeSet<NodeId>,
) -> Option<Finding> {
    let objects = world.objects.as_ref()?.as_ref().ok()?;
    let ready = |node: &NodeId| objects.pods.get(node).is_some_and(|pod| pod.ready);
    let nodes = objects.nodes();
    let away = nodes.iter().copied().find(|node| !ready(node))?;
    if !leaving.iter().any(ready) {
        return None;
    }
    let problem = objects.pods.get(&away).and_then(|pod| pod.problem.clone());
    let mut why = problem.unwrap_or_else(|| serving.why(away).to_owned());
    if why.starts_with(UNSCHEDULED) {
        why.push_str("; uncordon a Kubernetes node, or add one");
    }
    Some(Finding::new(
        "EvictionWaits",
        format!(
            "PodDisruptionBudget {} lets one node be away at a time, and node {away} is: {why}",
            target.names.cluster()
        ),
    ))
}

/// Slots that nobody else can lead meanwhile. That keeps no pod from being evicted.
fn no_voter_elsewhere(published: &Assignment, leaving: &BTreeSet<NodeId>) -> Option<Finding> {
    let slots = published.slots.iter().enumerate();
    let alone = slots.filter(|(_, slot)| slot.voters.iter().all(|voter| leaving.contains(voter)));
    let alone: Vec<usize> = alone.map(|(slot, _)| slot).collect();
    (!alone.is_empty()).then(|| {
        Finding::new(
            "NoVoterElsewhere",
            format!(
                "slots {} have no other voter, and are not served from the eviction of the last one until its pod runs elsewhere; \
                 uncordon the Kubernetes node if that must not be",
                list(&alone)
            ),
        )
    })
}

/// Slots that are still to be handed over.
fn leads_still(
    target: &Target,
    world: &World,
    stages: &Stages,
    published: &Assignment,
    leaving: &BTreeSet<NodeId>,
) -> Option<Finding> {
    let evidence = Evidence::new(published.version, &world.nodes);
    let named = |slot: usize| {
        leaving.contains(&published.slots[slot].preferred_leader)
            && stages.outlook.leaderships.contains(&slot)
    };
    let led = (0..published.slots.len())
        .filter(|&slot| named(slot) || leaving.iter().any(|&node| evidence.leads(node, slot)));
    let led: Vec<usize> = led.collect();
    let held = target.spec.paused || target.spec.rebalance.mode == RebalanceMode::Plan;
    (!led.is_empty()).then(|| {
        let when = if held {
            "when its pod is stopped, since spec.paused or spec.rebalance.mode keeps the operator from it"
        } else {
            "as soon as another voter has everything"
        };
        let slots = list(&led);
        Finding::new(
            "LeadershipMoving",
            format!("the leadership of slots {slots} is handed over {when}"),
        )
    })
}
