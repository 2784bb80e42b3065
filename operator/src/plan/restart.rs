//! Restarts nodes: those that a restart may help at once, those whose pod was made from an older template one at a time.
//!
//! A node that serves is restarted only when everybody else does without: all nodes report and follow the newest assignment,
//! each slot has exactly one leader, and every voter has everything, by its own word and by what its peers have for good, all seen
//! in this very pass. A node that is broken is restarted at once: its new template may be the remedy.

use kvcluster_crds::NodeId;

use super::serving::Serving;
use super::{Stage, Step};
use crate::cluster::Target;
use crate::gate::{Evidence, Gate};
use crate::observe::{ObjectsView, World};

/// Broken nodes that have a newer template: they wait for nobody.
pub(super) fn remedies(_target: &Target, world: &World, serving: &Serving) -> Stage {
    let Some(Ok(objects)) = &world.objects else {
        return Stage::default();
    };
    let steps = serving
        .outdated
        .iter()
        .filter(|node| serving.broken.contains(node));
    let steps = steps.filter_map(|&node| {
        let gate = Gate::of_broken(node, serving.why(node));
        restart(objects, node, gate)
    });
    Stage {
        steps: steps.take(1).collect(),
        refused: None,
    }
}

/// The next node of a roll.
pub(super) fn stage(world: &World, serving: &Serving) -> Stage {
    let Some(Ok(objects)) = &world.objects else {
        return Stage::default();
    };
    let next = serving
        .outdated
        .iter()
        .find(|node| !serving.broken.contains(node));
    let Some(&node) = next else {
        return Stage::default();
    };
    let calm = serving.is_whole()
        && objects
            .pods
            .values()
            .all(|pod| pod.ready && !pod.terminating);
    let published = super::assignment::newest(world);
    let gate = published.filter(|_| calm).and_then(|published| {
        let evidence = Evidence::new(published.version, &world.nodes);
        evidence.may_restart(node, &published.slots)
    });
    match gate {
        Some(gate) => Stage {
            steps: restart(objects, node, gate).into_iter().collect(),
            refused: None,
        },
        None => Stage::refuse(
            "RestartWaits",
            format!(
                "node {node} runs an older template and is restarted once all nodes serve and have caught up"
            ),
        ),
    }
}

fn restart(objects: &ObjectsView, node: NodeId, gate: Gate) -> Option<Step> {
    let pod = objects.pods.get(&node).filter(|pod| !pod.terminating)?;
    Some(Step::RestartPod {
        node,
        name: pod.name.clone(),
        uid: pod.uid.clone(),
        gate,
    })
}
