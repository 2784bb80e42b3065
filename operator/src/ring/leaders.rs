//! One leader per slot, as evenly as the voters allow.
//!
//! A published leader stays where it can. Where it gives its replica up, the node that comes in its place inherits the
//! leadership with it: one hand-over, and not one now and one when the other is there. Then leaderships are shifted along chains
//! of slots from a node that leads most to one that leads at least two fewer, until there is none; only to nodes that vote
//! already, so what is proposed can be done at once.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

use kvcluster_crds::{NodeId, SlotAssignment};

/// The leader of each slot of `voters`.
pub(super) fn spread(
    voters: &[Vec<NodeId>],
    nodes: &BTreeSet<NodeId>,
    published: &[SlotAssignment],
) -> Vec<NodeId> {
    let mut leads: BTreeMap<NodeId, usize> = nodes.iter().map(|&node| (node, 0)).collect();
    let mut leaders = Vec::with_capacity(voters.len());
    for (slot, voters) in voters.iter().enumerate() {
        let stays = published.get(slot).and_then(|slot| heir(slot, voters));
        let fewest = voters.iter().min_by_key(|voter| leads[voter]).copied();
        let leader = stays.or(fewest).expect("each slot has a voter");
        *leads.entry(leader).or_default() += 1;
        leaders.push(leader);
    }
    let candidates: Vec<Vec<NodeId>> = voters
        .iter()
        .enumerate()
        .map(|(slot, voters)| match published.get(slot) {
            Some(now) => voters
                .iter()
                .copied()
                .filter(|v| now.voters.contains(v))
                .collect(),
            None => voters.clone(),
        })
        .collect();
    while let Some(chain) = chain_to_fewer(&candidates, &leaders, &leads) {
        for (slot, to) in chain {
            *leads.entry(leaders[slot]).or_default() -= 1;
            *leads.entry(to).or_default() += 1;
            leaders[slot] = to;
        }
    }
    leaders
}

/// The published leader, or the first voter that is new where it does not vote any more.
fn heir(published: &SlotAssignment, voters: &[NodeId]) -> Option<NodeId> {
    let before = Some(published.preferred_leader).filter(|leader| voters.contains(leader));
    before.or_else(|| {
        voters
            .iter()
            .copied()
            .find(|v| !published.voters.contains(v))
    })
}

/// The hand-overs (slot, new leader) that take one slot from a node with most leaderships to one with ≥ 2 fewer.
fn chain_to_fewer(
    voters: &[Vec<NodeId>],
    leaders: &[NodeId],
    leads: &BTreeMap<NodeId, usize>,
) -> Option<Vec<(usize, NodeId)>> {
    let mut busiest: Vec<NodeId> = leads.keys().copied().collect();
    busiest.sort_by_key(|node| (usize::MAX - leads[node], *node));
    for start in busiest {
        let mut reached: BTreeMap<NodeId, Option<(usize, NodeId)>> =
            BTreeMap::from([(start, None)]);
        let mut queue = VecDeque::from([start]);
        while let Some(node) = queue.pop_front() {
            if leads[&node] + 2 <= leads[&start] {
                return Some(hand_overs(&reached, node));
            }
            for (slot, _) in leaders
                .iter()
                .enumerate()
                .filter(|&(_, &leader)| leader == node)
            {
                for &next in &voters[slot] {
                    if let Entry::Vacant(unseen) = reached.entry(next) {
                        unseen.insert(Some((slot, node)));
                        queue.push_back(next);
                    }
                }
            }
        }
    }
    None
}

fn hand_overs(
    reached: &BTreeMap<NodeId, Option<(usize, NodeId)>>,
    end: NodeId,
) -> Vec<(usize, NodeId)> {
    let mut chain = Vec::new();
    let mut node = end;
    while let Some(Some((slot, from))) = reached.get(&node) {
        chain.push((*slot, node));
        node = *from;
    }
    chain
}
