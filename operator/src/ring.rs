//! The ring: which nodes replicate which slot, and which of them should lead it. Pure: equal arguments, equal answer.
//!
//! Each node has `virtual_nodes` tokens, `xxh3_64` of its id and an index, on a circle of 64-bit numbers. A slot walks
//! clockwise from its own token and takes the first R distinct nodes with room (consistent hashing with bounded loads).
//! [`table`] then puts right what a walk cannot see, in this order: nobody above the load bound; the voters of a slot on as many
//! PostgreSQL instances, then in as many zones, as there are; everybody with an even share. [`leaders`] spreads the leaderships.
//!
//! It starts from the table that is published, keeps what stands, and changes one replica at a time, each time for the better by
//! these measures. A table that is in order is answered unchanged. A move that has begun counts as done ([`begun`]) and is never
//! taken back for the sake of balance, and none begins that does not make the table better ([`scale`]): so it comes to an end, although
//! what is left is worked out from the published table alone. Nothing else need be remembered, and an operator that starts anew
//! goes on. Worked out in the middle of several changes the end may differ from what
//! was proposed in the beginning; it is as good by the measures.

use std::collections::BTreeSet;

use kvcluster_crds::{NodeId, SlotAssignment, SlotId};
use xxhash_rust::xxh3::xxh3_64;

mod leaders;
mod scale;
mod table;

pub use scale::Scale;

/// What shapes a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Number of slots, ≥ 1.
    pub slots: u32,
    /// Replicas of each slot, ≥ 1 and at most the number of nodes.
    pub replication: usize,
    /// Tokens of each node, ≥ 1.
    pub virtual_nodes: u32,
    /// Most replicas on a node, in percent of the average, ≥ 100.
    pub load_factor_percent: u32,
}

/// A node that may hold replicas, and what it shares with others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// The node.
    pub id: NodeId,
    /// The zone that it runs in, where that is known.
    pub zone: Option<String>,
    /// The PostgreSQL instance that holds its schema.
    pub instance: String,
}

/// A table, and the way to it.
#[derive(Clone, Debug)]
pub struct Proposal {
    /// The replicas of each slot: R voters, the preferred leader first.
    pub slots: Vec<SlotAssignment>,
    /// What has to change on the way from the published table. The changes of a group begin together: each group makes the table
    /// better, where one change alone may not.
    pub groups: Vec<Vec<Change>>,
    /// What better means.
    pub scale: Option<Scale>,
}

/// One replica that changes its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// The slot.
    pub slot: usize,
    /// Who gives it up; none where one is missing.
    pub from: Option<NodeId>,
    /// Who gets it.
    pub to: NodeId,
}

/// Why no table can be proposed.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum RingError {
    /// A slot's replicas stand on distinct nodes.
    #[error("{nodes} nodes cannot hold {replication} replicas of a slot on distinct nodes")]
    TooFewNodes {
        /// Distinct nodes that there are.
        nodes: usize,
        /// Replicas that are wanted.
        replication: usize,
    },
}

impl Shape {
    /// Most replicas that one of `nodes` nodes holds: `ceil(slots × replication × load factor / nodes)`.
    pub fn load_bound(&self, nodes: usize) -> usize {
        let bound =
            (self.replicas() * u64::from(self.load_factor_percent)).div_ceil(100 * nodes as u64);
        usize::try_from(bound).unwrap_or(usize::MAX)
    }

    /// An even share, rounded down: what each of `nodes` nodes gets at least, and at most one more, where zones and instances
    /// allow it.
    pub fn share(&self, nodes: usize) -> usize {
        usize::try_from(self.replicas() / nodes as u64).unwrap_or(usize::MAX)
    }

    fn replicas(&self) -> u64 {
        u64::from(self.slots) * self.replication as u64
    }
}

/// The table for `members`, as near to `published` as the rules allow.
pub fn propose(
    shape: Shape,
    members: &[Member],
    published: Option<&[SlotAssignment]>,
) -> Result<Proposal, RingError> {
    propose_without(shape, members, published, &BTreeSet::new(), |_, _| true)
}

/// The same, led by others than `yielding` wherever a voter is left for it. `in_sync`: who could lead a slot at once.
pub fn propose_without(
    shape: Shape,
    members: &[Member],
    published: Option<&[SlotAssignment]>,
    yielding: &BTreeSet<NodeId>,
    in_sync: impl Fn(NodeId, usize) -> bool,
) -> Result<Proposal, RingError> {
    let distinct: BTreeSet<NodeId> = members.iter().map(|member| member.id).collect();
    if distinct.len() < shape.replication || shape.replication == 0 {
        return Err(RingError::TooFewNodes {
            nodes: distinct.len(),
            replication: shape.replication,
        });
    }
    let before = published.unwrap_or_default();
    let scale = Scale::new(shape, members);
    let base = scale.base(before);
    let pins = before.iter().map(|slot| slot.learners.clone()).collect();
    let voters = table::settle(shape, members, base.clone(), pins);
    let groups = if published.is_some() {
        scale.groups(base, &voters)
    } else {
        Vec::new()
    };
    let leaders = leaders::spread(&voters, before, yielding, in_sync);
    let slots = voters.into_iter().zip(leaders).map(entry).collect();
    Ok(Proposal {
        slots,
        groups,
        scale: Some(scale),
    })
}

/// The voters of a slot once the moves that have begun there are done: a learner takes the place of a voter that is not a member,
/// or else of the last one. Whoever begins a move puts last who is to go.
fn begun(slot: &SlotAssignment, members: &BTreeSet<NodeId>, replication: usize) -> Vec<NodeId> {
    let here = |nodes: &[NodeId]| -> Vec<NodeId> {
        nodes
            .iter()
            .copied()
            .filter(|n| members.contains(n))
            .collect()
    };
    let (mut voters, mut coming) = (here(&slot.voters), here(&slot.learners));
    coming.truncate(replication);
    voters.truncate(replication - coming.len());
    voters.extend(coming);
    voters
}

fn entry((mut voters, leader): (Vec<NodeId>, NodeId)) -> SlotAssignment {
    if let Some(place) = voters.iter().position(|&voter| voter == leader) {
        voters[..=place].rotate_right(1);
    }
    SlotAssignment {
        voters,
        learners: Vec::new(),
        preferred_leader: leader,
    }
}

/// Slots whose voters share a PostgreSQL instance although there are as many instances as voters, or do so of necessity.
pub fn slots_on_one_instance(members: &[Member], slots: &[SlotAssignment]) -> Vec<usize> {
    let instance = |node: NodeId| {
        let member = members.iter().find(|member| member.id == node);
        member.map(|member| member.instance.as_str())
    };
    let shares = |slot: &SlotAssignment| {
        let distinct: BTreeSet<_> = slot.voters.iter().map(|&voter| instance(voter)).collect();
        distinct.len() < slot.voters.len()
    };
    let sharing = slots.iter().enumerate().filter(|(_, slot)| shares(slot));
    sharing.map(|(number, _)| number).collect()
}

fn node_token(node: NodeId, index: u32) -> u64 {
    let mut bytes = [0; 8];
    bytes[..4].copy_from_slice(&node.get().to_be_bytes());
    bytes[4..].copy_from_slice(&index.to_be_bytes());
    xxh3_64(&bytes)
}

fn slot_token(slot: usize) -> u64 {
    let slot = SlotId(u32::try_from(slot).expect("slots are counted by a u32"));
    let mut bytes = *b"slot____";
    bytes[4..].copy_from_slice(&slot.0.to_be_bytes());
    xxh3_64(&bytes)
}

/// Replicas that stand in `after` and not in `before`: what would move.
pub fn moves(before: &[SlotAssignment], after: &[SlotAssignment]) -> usize {
    let pairs = before.iter().zip(after);
    pairs
        .map(|(old, new)| new.voters.iter().filter(|v| !old.has_replica(**v)).count())
        .sum()
}

#[cfg(test)]
mod tests;
