//! When a replica claims, and to whom a leader hands over. Pure, and only hints: who wins is the order of the log.

use kvcluster_crds::{Incarnation, NodeId};

use super::lease::{MS, claim_from};
use crate::effect::SlotPosition;

/// Between the claims of two voters of neighbouring rank, nanoseconds: long enough that the second has read the first's
/// claim (a few milliseconds on a healthy Kafka), short against the second that a failure may cost.
pub const CLAIM_STAGGER_NS: u64 = 60 * MS;
/// How long a leader that says it does not serve is left alone, nanoseconds: its first heartbeat as leader may be on its way.
pub const NOT_SERVING_AFTER_NS: u64 = 1_500 * MS;
/// How long the node that a release names is left alone before any voter may claim, nanoseconds.
pub const NAMED_AFTER_NS: u64 = 500 * MS;

/// What the rest of the node knows; hints for elections, never needed for safety.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hints {
    /// Voters of the slot in the assignment, in order; empty before there is one.
    pub voters: Vec<NodeId>,
    /// The voter that should lead when all is well.
    pub preferred: Option<NodeId>,
    /// The other nodes.
    pub peers: Vec<PeerHint>,
    /// Whether this node's own heartbeats come back: it may trust the silence of others.
    pub heartbeats_return: bool,
    /// Whether the node has room for more effects that are not in PostgreSQL.
    pub memory_to_spare: bool,
}

/// What heartbeats say of another node, with regard to one slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerHint {
    /// The node.
    pub node: NodeId,
    /// The process that was heard last; none when none was.
    pub incarnation: Option<Incarnation>,
    /// Not suspected.
    pub alive: bool,
    /// It says that it could lead the slot now: caught up, memory to spare, not stopping.
    pub can_lead: bool,
    /// It says that it leads and serves the slot.
    pub serves: bool,
}

/// Whether the slot waits for a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vacancy {
    /// It has a leader that is not suspected.
    None,
    /// A release names this node: it claims at once.
    Mine,
    /// Any voter may claim at or after this time.
    Open {
        /// Nanoseconds.
        from_ns: u64,
    },
}

/// What this replica is, in an election.
#[derive(Clone, Copy, Debug)]
pub struct Myself {
    /// Its node.
    pub node: NodeId,
    /// Its process.
    pub incarnation: Incarnation,
    /// Whether it is the leader of the current epoch by the log, and does not serve any more.
    pub stepped_down: bool,
    /// When it judged the record at `last_leader_offset`, or loaded it.
    pub leader_read_at_ns: u64,
}

impl Hints {
    fn peer(&self, node: NodeId) -> Option<&PeerHint> {
        self.peers.iter().find(|peer| peer.node == node)
    }

    /// Whether `node` is a voter, heard of lately, and says that it could lead.
    pub fn could_lead(&self, node: NodeId) -> bool {
        self.voters.contains(&node)
            && self
                .peer(node)
                .is_some_and(|peer| peer.alive && peer.can_lead)
    }

    /// Whether `node` is heard of.
    pub fn alive(&self, node: NodeId) -> bool {
        self.peer(node).is_some_and(|peer| peer.alive)
    }

    /// The voters in the order in which they should lead.
    fn by_preference(&self) -> impl Iterator<Item = NodeId> {
        let preferred = self.preferred.filter(|node| self.voters.contains(node));
        let others = self
            .voters
            .iter()
            .copied()
            .filter(move |node| Some(*node) != preferred);
        preferred.into_iter().chain(others)
    }
}

/// Whether the slot waits for a claim, as this replica sees it.
pub fn vacancy(position: &SlotPosition, me: &Myself, hints: &Hints) -> Vacancy {
    let Some((leader, incarnation)) = position.leader else {
        return Vacancy::Open { from_ns: 0 };
    };
    let lease_over_ns = claim_from(me.leader_read_at_ns, position.lease_ms);
    let open = |wait_ns: u64| Vacancy::Open {
        from_ns: lease_over_ns.max(me.leader_read_at_ns.saturating_add(wait_ns)),
    };
    if let Some(named) = position.released_to {
        return if named == me.node {
            Vacancy::Mine
        } else {
            open(NAMED_AFTER_NS)
        };
    }
    if leader == me.node {
        let own = incarnation == me.incarnation;
        return if own && !me.stepped_down {
            Vacancy::None
        } else {
            open(0)
        };
    }
    let peer = hints.peer(leader).filter(|peer| peer.alive);
    match peer {
        None => open(0),
        Some(peer) if peer.incarnation.is_some_and(|heard| heard != incarnation) => open(0),
        Some(peer) if !peer.serves => open(NOT_SERVING_AFTER_NS),
        Some(_) => Vacancy::None,
    }
}

/// The place of this replica among the voters that are not suspected, from 0; none when it is no voter. Whether the others
/// could lead is not asked: what they said of it may be a heartbeat old, and a wrong guess costs one [`CLAIM_STAGGER_NS`].
pub fn rank(me: NodeId, hints: &Hints) -> Option<u64> {
    let could = |node: &NodeId| *node == me || hints.alive(*node);
    hints
        .by_preference()
        .filter(could)
        .position(|node| node == me)
        .map(|rank| rank as u64)
}

/// Who should take over from this replica: the best voter that could lead.
pub fn successor(me: NodeId, hints: &Hints) -> Option<NodeId> {
    hints
        .by_preference()
        .find(|node| *node != me && hints.could_lead(*node))
}

#[cfg(test)]
#[path = "election_tests.rs"]
mod tests;
