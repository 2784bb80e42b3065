//! The published assignment against the one that the ring proposes.

use kvcluster_crds::{Assignment, NodeEntry, NodeId, Offset};

use super::{Stage, Step};
use crate::cluster::Target;
use crate::observe::World;
use crate::ring::{Published, propose};

/// Newest record format of the log that nodes may write.
const LOG_VERSION: u16 = 1;

/// The newest assignment of this cluster.
pub(super) fn newest(world: &World) -> Option<&Assignment> {
    entry(world).map(|(_, assignment)| assignment)
}

/// Its version.
pub(super) fn version(world: &World) -> Option<u64> {
    newest(world).map(|assignment| assignment.version)
}

fn entry(world: &World) -> Option<&(Offset, Assignment)> {
    world.kafka.as_ref().ok()?.assignment.newest.as_ref()
}

/// The nodes that are worked on: the published ones, since nodes can neither join nor leave yet.
pub(super) fn nodes(target: &Target, world: &World) -> Vec<NodeId> {
    newest(world).map_or_else(
        || target.nodes.clone(),
        |published| published.nodes.iter().map(|entry| entry.id).collect(),
    )
}

pub(super) fn stage(target: &Target, world: &World, nodes: &[NodeId]) -> Stage {
    let published = newest(world);
    if nodes != target.nodes {
        return Stage::refuse(
            "ScalingNotSupported",
            format!(
                "spec.nodes is {} and the published assignment has {} nodes; this version cannot add or remove nodes: set \
                 spec.nodes to {}",
                target.nodes.len(),
                nodes.len(),
                nodes.len()
            ),
        );
    }
    if let Some((published, log_id)) = published.zip(target.log_id)
        && published.log_id != log_id
    {
        return Stage::refuse(
            "LogIdDiffers",
            format!(
                "status.logId is {log_id} and the published assignment is about log {}; one of them was put back from a \
                 backup: remove status.logId to follow the published one",
                published.log_id
            ),
        );
    }
    let before = published.map(|assignment| Published {
        nodes,
        slots: &assignment.slots,
    });
    let slots = match propose(target.shape, nodes, before) {
        Ok(slots) => slots,
        Err(error) => return Stage::refuse("RingImpossible", error),
    };
    match published {
        None => Stage {
            steps: first(target, world, slots).into_iter().collect(),
            refused: None,
        },
        Some(published) if published.slots == slots => Stage::default(),
        Some(_) => Stage::refuse(
            "RebalanceNotSupported",
            "spec.ring asks for another assignment than the published one; this version does not move replicas: set spec.ring \
             back",
        ),
    }
}

fn first(
    target: &Target,
    world: &World,
    slots: Vec<kvcluster_crds::SlotAssignment>,
) -> Option<Step> {
    // Planned once the log id stands: an assignment names it.
    let log_id = target.log_id?;
    let nodes = target.nodes.iter().map(|&node| NodeEntry {
        id: node,
        address: target.address(node),
        postgres_instance: super::postgres::instance(target, world, node),
        leaving: false,
    });
    Some(Step::Publish(Box::new(Assignment {
        version: 1,
        based_on: None,
        cluster_uid: target.uid.clone(),
        log_id,
        log_version: LOG_VERSION,
        next_node: NodeId(0),
        slots,
        nodes: nodes.collect(),
    })))
}
