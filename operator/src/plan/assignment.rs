//! The published assignment against the one that is wanted: first who is a member, then, move by move, who holds what.

use kvcluster_crds::{Assignment, NodeId, Offset, SlotAssignment};

use super::members::{Members, called_off};
use super::moves::{self, Move, Rules};
use super::{Stage, Step};
use crate::cluster::Target;
use crate::gate::Evidence;
use crate::observe::World;
use crate::ring::{Member, Proposal, propose_without, slots_on_one_instance};

/// Newest record format of the log that nodes may write.
const LOG_VERSION: u16 = 1;

/// The newest assignment of this cluster.
pub(super) fn newest(world: &World) -> Option<&Assignment> {
    world.kafka.as_ref().ok()?.published()
}

/// Its version.
pub(super) fn version(world: &World) -> Option<u64> {
    newest(world).map(|assignment| assignment.version)
}

fn entry(world: &World) -> Option<&(Offset, Assignment)> {
    world.kafka.as_ref().ok()?.assignment.newest.as_ref()
}

/// The nodes that exist as far as is known: the published ones, or those of the first assignment.
pub(super) fn nodes(target: &Target, world: &World) -> Vec<NodeId> {
    super::members::prospective(target, newest(world))
}

/// The nodes that are looked after: the published ones, else those that have a StatefulSet, else those that will be.
pub(super) fn existing(target: &Target, world: &World) -> Vec<NodeId> {
    match newest(world) {
        Some(published) => published.nodes.iter().map(|entry| entry.id).collect(),
        None => Some(with_stateful_set(world))
            .filter(|nodes| !nodes.is_empty())
            .unwrap_or_else(|| nodes(target, world)),
    }
}

/// The nodes that have a StatefulSet.
pub(super) fn with_stateful_set(world: &World) -> Vec<NodeId> {
    match &world.objects {
        Some(Ok(objects)) => objects.nodes(),
        Some(Err(_)) | None => Vec::new(),
    }
}

/// Whether the published assignment is about another log than the one that is pinned: then nothing can be relied on.
pub(super) fn is_of_another_log(target: &Target, world: &World) -> bool {
    let published = newest(world).map(|published| published.log_id);
    published
        .zip(target.log_id)
        .is_some_and(|(published, pinned)| published != pinned)
}

/// What there is to do about the assignment, and what will be left then.
#[derive(Clone, Debug, Default)]
pub(super) struct Outlook {
    /// The first assignment, or one with other members.
    pub(super) membership: Stage,
    /// The next one on the way to the table that the ring proposes.
    pub(super) progress: Stage,
    /// The moves that lie before us.
    pub(super) moves: Vec<Move>,
    /// Slots whose leadership alone is to change hands.
    pub(super) leaderships: Vec<usize>,
    /// Slots whose voters share a PostgreSQL instance in the table that the ring proposes.
    pub(super) sharing: Vec<usize>,
}

impl Outlook {
    fn refuse(stage: Stage) -> Self {
        Self {
            membership: stage,
            ..Self::default()
        }
    }

    /// Whether the published table is the one that is wanted.
    pub(super) fn is_reached(&self) -> bool {
        self.membership.steps.is_empty() && self.moves.is_empty() && self.leaderships.is_empty()
    }

    /// What will be done after the steps that stand in the plan and after the moves, in words.
    pub(super) fn lines(&self) -> Vec<String> {
        let slots = Some(&self.leaderships).filter(|slots| !slots.is_empty());
        let line = slots.map(|slots| {
            let slots = super::serving::list(slots);
            format!("hand over the leadership of slots {slots}")
        });
        line.into_iter().collect()
    }
}

pub(super) fn look(target: &Target, world: &World, members: &Members) -> Outlook {
    let published = entry(world);
    if is_of_another_log(target, world) {
        return Outlook::refuse(Stage::refuse(
            "LogIdDiffers",
            "status.logId and the published assignment name different logs; one of them was put back from a backup: remove \
             status.logId to follow the published one",
        ));
    }
    let ring: Vec<Member> = members
        .entries
        .iter()
        .filter(|entry| !entry.leaving)
        .map(|entry| Member {
            id: entry.id,
            zone: world.zone(entry.id),
            instance: entry.postgres_instance.clone(),
        })
        .collect();
    let now = published.map(|(_, table)| called_off(&table.slots, &members.reprieved));
    let evidence = Evidence::new(version(world).unwrap_or_default(), &world.nodes);
    let in_sync = |node, slot| evidence.in_sync(node, slot);
    let draining = super::drain::nodes(world);
    let wanted = match propose_without(target.shape, &ring, now.as_deref(), &draining, in_sync) {
        Ok(wanted) => wanted,
        Err(error) => return Outlook::refuse(Stage::refuse("RingImpossible", error)),
    };
    let sharing = slots_on_one_instance(&ring, &wanted.slots);
    let outlook = match (published, now) {
        (Some((offset, published)), Some(now)) => {
            onwards(target, world, members, (*offset, published), &now, &wanted)
        }
        _ => Outlook {
            membership: first(target, members, wanted.slots),
            ..Outlook::default()
        },
    };
    Outlook { sharing, ..outlook }
}

fn first(target: &Target, members: &Members, slots: Vec<SlotAssignment>) -> Stage {
    // Planned once the log id stands: an assignment names it.
    let step = target.log_id.map(|log_id| {
        let assignment = Assignment {
            version: 1,
            based_on: None,
            cluster_uid: target.uid.clone(),
            log_id,
            log_version: LOG_VERSION,
            next_node: NodeId(0),
            slots,
            nodes: members.entries.clone(),
        };
        Step::Publish(Box::new(assignment), Vec::new())
    });
    Stage {
        steps: step.into_iter().collect(),
        refused: None,
    }
}

fn onwards(
    target: &Target,
    world: &World,
    members: &Members,
    (offset, published): (Offset, &Assignment),
    now: &[SlotAssignment],
    wanted: &Proposal,
) -> Outlook {
    let evidence = Evidence::new(published.version, &world.nodes);
    let next = |slots: Vec<SlotAssignment>| {
        Box::new(Assignment {
            version: published.version + 1,
            based_on: Some(offset),
            slots,
            nodes: members.entries.clone(),
            next_node: next_node(published, members),
            ..published.clone()
        })
    };
    let mut outlook = Outlook {
        moves: moves::left(now, &wanted.slots, Some(&evidence)),
        leaderships: leaderships(now, &wanted.slots),
        ..Outlook::default()
    };
    if members.entries != published.nodes || members.given_out > published.next_node() {
        let step = Step::Publish(next(now.to_vec()), Vec::new());
        outlook.membership.steps.push(step);
        return outlook;
    }
    let rules = Rules {
        learners_max: target.moves_max,
        replication: target.shape.replication,
    };
    let ahead = moves::advance(now, wanted, &evidence, rules);
    if ahead.slots != published.slots {
        let step = Step::Publish(next(ahead.slots), ahead.gates);
        outlook.progress.steps.push(step);
    }
    outlook
}

fn next_node(published: &Assignment, members: &Members) -> NodeId {
    let after = members
        .entries
        .iter()
        .map(|entry| NodeId(entry.id.get() + 1));
    let after = after.max().unwrap_or_default().max(members.given_out);
    after.max(published.next_node())
}

/// Slots that have the voters that are wanted and another preferred leader.
fn leaderships(now: &[SlotAssignment], wanted: &[SlotAssignment]) -> Vec<usize> {
    let pairs = now.iter().zip(wanted).enumerate();
    let differ = pairs.filter(|(_, (now, wanted))| {
        now.preferred_leader != wanted.preferred_leader
            && wanted.voters.iter().all(|voter| now.voters.contains(voter))
    });
    differ.map(|(slot, _)| slot).collect()
}
