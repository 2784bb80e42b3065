//! Who is a member: the nodes of the published assignment, and not a range of numbers. Ids are given out once and never again.
//!
//! ```text
//! out:  Secret, role, schema ──▶ published ──▶ StatefulSet ──▶ moves
//! in:   published as leaving ──▶ moves ──▶ published without it ──▶ StatefulSet ──▶ Secret ──▶ schema, role
//! ```
//!
//! A node that is marked as leaving stays so until it is gone, unless more nodes are wanted again while it is still there: then
//! the mark goes, and with it the moves that have only begun.

use kvcluster_crds::{Assignment, NodeEntry, NodeId, SlotAssignment};

use super::Finding;
use crate::cluster::Target;
use crate::gate::Evidence;
use crate::observe::World;
use crate::seeded::{self, Bug};

/// The members as they should be published.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Members {
    /// In order of their ids.
    pub(super) entries: Vec<NodeEntry>,
    /// Members whose mark was taken off.
    pub(super) reprieved: Vec<NodeId>,
    /// All ids below this one count as given out.
    pub(super) given_out: NodeId,
    /// What stands against the replacement that is asked for.
    pub(super) refused: Option<Finding>,
}

impl Members {
    /// Their ids.
    pub(super) fn ids(&self) -> Vec<NodeId> {
        self.entries.iter().map(|entry| entry.id).collect()
    }

    /// Those that may hold replicas.
    pub(super) fn staying(&self) -> Vec<NodeId> {
        let staying = self.entries.iter().filter(|entry| !entry.leaving);
        staying.map(|entry| entry.id).collect()
    }

    /// Just as they are published.
    pub(super) fn published(published: &Assignment) -> Self {
        Self {
            entries: published.nodes.clone(),
            given_out: published.next_node(),
            ..Self::default()
        }
    }
}

/// More nodes than this are never prepared at a time: the CRD allows no more.
const PREPARED_MAX: u32 = 100;

/// Ids that the plan may be about: the members, and those that will join as things stand. Known before anything but the
/// assignment was looked at.
pub(crate) fn prospective(target: &Target, published: Option<&Assignment>) -> Vec<NodeId> {
    let Some(published) = published else {
        return first_ids(target);
    };
    let replaced = replaced(target, published);
    let mut ids: Vec<NodeId> = published.nodes.iter().map(|entry| entry.id).collect();
    ids.extend(new_ids(target, published, replaced.ok().flatten()));
    ids
}

fn first_ids(target: &Target) -> Vec<NodeId> {
    let count = u32::try_from(target.nodes).unwrap_or(u32::MAX);
    (0..count).map(NodeId).collect()
}

/// Who is to be a member.
pub(super) fn wanted(target: &Target, world: &World) -> Members {
    let Some(published) = super::assignment::newest(world) else {
        let entries = first_ids(target).into_iter();
        return Members {
            entries: entries.map(|id| entry(target, world, id)).collect(),
            ..Members::default()
        };
    };
    let mut members = Members::published(published);
    members.given_out = given_out(target, world, published);
    let evidence = Evidence::new(published.version, &world.nodes);
    let replaced = match replaced(target, published) {
        Ok(None) => None,
        Ok(Some(node)) => match may_be_replaced(node, published, &evidence) {
            Ok(()) => Some(node),
            Err(finding) => {
                members.refused = Some(finding);
                None
            }
        },
        Err(finding) => {
            members.refused = Some(finding);
            None
        }
    };
    reprieve(target, published, replaced, &mut members);
    let joining = new_ids(target, published, replaced);
    let entries = joining.into_iter().map(|id| entry(target, world, id));
    members.entries.extend(entries);
    for entry in &mut members.entries {
        entry.leaving |= Some(entry.id) == replaced;
    }
    dismiss(target, published, &evidence, &mut members);
    let empty = |node: NodeId| {
        let mut slots = published.slots.iter();
        slots.all(|slot| !slot.has_replica(node)) || seeded::on(Bug::LeavesBeforeEmpty)
    };
    members
        .entries
        .retain(|entry| !(entry.leaving && empty(entry.id)));
    members
}

/// The ids of nodes that were prepared and are not wanted any more count as given out: what was made for them may then be removed,
/// since they never become members, whatever an operator that was stopped in the middle of its work still does.
fn given_out(target: &Target, world: &World, published: &Assignment) -> NodeId {
    let wanted = prospective(target, Some(published));
    let next = published.next_node();
    let end = NodeId(next.get().saturating_add(PREPARED_MAX));
    let secrets = world
        .secrets
        .iter()
        .flat_map(|secrets| secrets.keys().copied());
    let roles = super::leftovers::marked(target, world).into_iter();
    let prepared = secrets.chain(roles.map(|(node, _)| node));
    let left = prepared.filter(|node| (next..end).contains(node) && !wanted.contains(node));
    let left = left.max().filter(|_| !seeded::on(Bug::PreparedStays));
    left.map_or(next, |node| NodeId(node.get() + 1))
}

fn entry(target: &Target, world: &World, id: NodeId) -> NodeEntry {
    NodeEntry {
        id,
        address: target.address(id),
        postgres_instance: super::postgres::instance(target, world, id),
        leaving: false,
    }
}

/// The member that the annotation names, if it is still one. A name that no node had is refused; one of a node that is gone has
/// done its work.
fn replaced(target: &Target, published: &Assignment) -> Result<Option<NodeId>, Finding> {
    let Some(text) = &target.replace else {
        return Ok(None);
    };
    let known = text
        .trim()
        .parse()
        .ok()
        .map(NodeId)
        .filter(|node| *node < published.next_node());
    match known {
        Some(node) => Ok(published.node(node).map(|entry| entry.id)),
        None => Err(Finding::new(
            "UnknownNode",
            format!(
                "annotation {} is {text:?}, which is no node of this cluster; set it to the id of one, or remove it",
                crate::cluster::ANNOTATION_REPLACE
            ),
        )),
    }
}

/// A node whose data exists nowhere else is not taken out, unless a slot has no other replica by design: then it is moved.
fn may_be_replaced(
    node: NodeId,
    published: &Assignment,
    evidence: &Evidence<'_>,
) -> Result<(), Finding> {
    let entry = published.node(node);
    if entry.is_none_or(|entry| entry.leaving) {
        return Ok(());
    }
    let lone = |slot: usize| published.slots[slot].voters == [node] && evidence.in_sync(node, slot);
    match evidence.may_do_without(node, &published.slots) {
        Err(slot) if !lone(slot) => Err(Finding::new(
            "LastInSyncReplica",
            format!(
                "node {node} is not replaced: no other replica of slot {slot} is known to have everything; it is replaced when \
                 one has"
            ),
        )),
        _ => Ok(()),
    }
}

/// Members that stay and are not to be replaced.
fn settled(published: &Assignment, replaced: Option<NodeId>) -> impl Iterator<Item = &NodeEntry> {
    published
        .nodes
        .iter()
        .filter(move |entry| !entry.leaving && Some(entry.id) != replaced)
}

/// Takes the mark off members that leave although more are wanted.
fn reprieve(
    target: &Target,
    published: &Assignment,
    replaced: Option<NodeId>,
    members: &mut Members,
) {
    let missing = target
        .nodes
        .saturating_sub(settled(published, replaced).count());
    let leaving = members
        .entries
        .iter_mut()
        .filter(|entry| entry.leaving && Some(entry.id) != replaced);
    for entry in leaving.take(missing) {
        entry.leaving = false;
        members.reprieved.push(entry.id);
    }
}

fn new_ids(target: &Target, published: &Assignment, replaced: Option<NodeId>) -> Vec<NodeId> {
    let leaving = published.nodes.iter().filter(|entry| entry.leaving);
    let can_return = leaving.filter(|entry| Some(entry.id) != replaced).count();
    let there = settled(published, replaced).count() + can_return;
    let missing = target.nodes.saturating_sub(there);
    let first = published.next_node().get();
    let count = u32::try_from(missing).unwrap_or_default();
    (first..first.saturating_add(count)).map(NodeId).collect()
}

/// Marks members when there are more than are wanted: first those that never got a replica, then those that do not answer, then
/// the youngest.
fn dismiss(
    target: &Target,
    published: &Assignment,
    evidence: &Evidence<'_>,
    members: &mut Members,
) {
    let staying = members.staying();
    let spare = staying.len().saturating_sub(target.nodes);
    let votes = |node: NodeId| {
        published
            .slots
            .iter()
            .any(|slot| slot.voters.contains(&node))
    };
    let mut order = staying;
    order.sort_by_key(|&node| {
        let joined = votes(node);
        (
            joined,
            evidence.answer(node).is_some(),
            u32::MAX - node.get(),
        )
    });
    order.truncate(spare);
    for entry in &mut members.entries {
        entry.leaving |= order.contains(&entry.id);
    }
}

/// The table with what had begun for the sake of a node that stays after all taken back.
pub(super) fn called_off(slots: &[SlotAssignment], reprieved: &[NodeId]) -> Vec<SlotAssignment> {
    let taken_back = slots.iter().map(|slot| {
        let mut slot = slot.clone();
        if slot.voters.iter().any(|voter| reprieved.contains(voter)) {
            slot.learners.clear();
        }
        slot
    });
    taken_back.collect()
}
