//! Restarts nodes whose pod was made from an older template, one at a time.
//!
//! A node that serves is restarted only when everybody else does without: all nodes report and follow the newest assignment,
//! each slot has exactly one leader, and every replica has read its log to the end, all seen in this very pass. A node that
//! is broken is restarted at once: its new template may be the remedy.

use kvcluster_crds::NodeId;

use super::serving::Serving;
use super::{Stage, Step};
use crate::observe::{ObjectsView, World};

pub(super) fn stage(world: &World, serving: &Serving) -> Stage {
    let Some(Ok(objects)) = &world.objects else {
        return Stage::default();
    };
    let Some(&node) = serving
        .outdated
        .iter()
        .find(|node| serving.broken.contains(node))
        .or(serving.outdated.first())
    else {
        return Stage::default();
    };
    let broken = serving.broken.contains(&node);
    let calm = serving.is_whole()
        && serving.caught_up
        && objects
            .pods
            .values()
            .all(|pod| pod.ready && !pod.terminating);
    if broken || calm {
        return Stage {
            steps: restart(objects, node).into_iter().collect(),
            refused: None,
        };
    }
    Stage::refuse(
        "RestartWaits",
        format!(
            "node {node} runs an older template and is restarted once all nodes serve and have caught up"
        ),
    )
}

fn restart(objects: &ObjectsView, node: NodeId) -> Option<Step> {
    let pod = objects.pods.get(&node).filter(|pod| !pod.terminating)?;
    Some(Step::RestartPod {
        node,
        name: pod.name.clone(),
        uid: pod.uid.clone(),
    })
}
