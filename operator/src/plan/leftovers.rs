//! What nodes leave behind that are members no more: their StatefulSet goes first, then the Secret, then schema and role.
//!
//! A node that was prepared and called off before it was published counts as one that was given out and left, once that is published.
//!
//! Whatever carries this cluster's mark and belongs to a node id that was given out and is not a member is left over, whoever left it
//! there and whenever: ids never come back. Nothing is judged without the published assignment, and no schema goes before the pod
//! that writes to it.

use std::collections::BTreeSet;

use kvcluster_crds::{Assignment, NodeId};

use super::{RoleStep, Stage, Step};
use crate::cluster::Target;
use crate::observe::World;
use crate::observe::kubernetes::node_of_set;
use crate::seeded::{self, Bug};

pub(super) fn stage(target: &Target, world: &World) -> Stage {
    let Some(published) = super::assignment::newest(world) else {
        return Stage::default();
    };
    let by_number =
        |node: NodeId| seeded::on(Bug::SweepsByNumber) && node.get() as usize >= target.nodes;
    let gone = |node: NodeId| is_gone(published, node) || by_number(node);
    let mut stage = stateful_sets(world, gone);
    let running = running(world);
    if let Some(node) = running.iter().copied().find(|&node| gone(node)) {
        stage.refused = Stage::refuse(
            "NodesLeaving",
            format!("node {node} is no member any more and stops"),
        )
        .refused;
    }
    let Ok(secrets) = &world.secrets else {
        return stage;
    };
    let stopped = |node: NodeId| gone(node) && !running.contains(&node);
    for (&node, secret) in secrets.iter().filter(|&(&node, _)| stopped(node)) {
        stage.steps.push(Step::DeleteSecret {
            node,
            name: target.names.node_secret(node),
            uid: secret.uid.clone(),
        });
    }
    for (node, step) in marked(target, world) {
        // Without its Secret the role is not found again by a look at the Secrets: it goes last, and only when that was looked at.
        if stopped(node) && world.asked.contains(&node) {
            stage.steps.push(Step::DropRole(step));
        }
    }
    stage
}

fn is_gone(published: &Assignment, node: NodeId) -> bool {
    node < published.next_node() && published.node(node).is_none()
}

fn stateful_sets(world: &World, gone: impl Fn(NodeId) -> bool) -> Stage {
    let Some(Ok(objects)) = &world.objects else {
        return Stage::default();
    };
    let left = objects.stateful_sets.iter().filter(|(_, set)| {
        node_of_set(set).is_some_and(&gone) && set.metadata.deletion_timestamp.is_none()
    });
    let steps = left.map(|(name, set)| Step::DeleteStatefulSet {
        name: name.clone(),
        uid: set.metadata.uid.clone().unwrap_or_default(),
    });
    Stage {
        steps: steps.collect(),
        refused: None,
    }
}

/// Nodes that may still write: with a StatefulSet or a pod, or, where they are plain processes, those that answer. All, where that
/// could not be looked at.
fn running(world: &World) -> BTreeSet<NodeId> {
    match &world.objects {
        Some(Ok(objects)) => objects
            .nodes()
            .into_iter()
            .chain(objects.housed.iter().copied())
            .collect(),
        Some(Err(_)) => world.asked.iter().copied().collect(),
        None => {
            let answers = world.nodes.iter().filter(|(_, answer)| answer.is_ok());
            answers.map(|(&node, _)| node).collect()
        }
    }
}

/// Schemas and roles that are marked as one of this cluster's nodes'.
pub(super) fn marked(target: &Target, world: &World) -> Vec<(NodeId, RoleStep)> {
    let views = world.postgres.iter();
    let views = views.filter_map(|(instance, view)| Some((instance, view.as_ref().ok()?)));
    let steps = views.flat_map(|(instance, view)| super::delete::drops(target, instance, view));
    let prefix = target.owner_comment_prefix();
    steps
        .filter_map(|step| {
            let node = step.comment.strip_prefix(&prefix)?.parse().ok()?;
            Some((NodeId(node), step))
        })
        .collect()
}
