//! One leader per slot, as evenly as the voters allow.
//!
//! A published leader stays where it can. Where it gives its replica up, the node that comes in its place inherits the
//! leadership with it: one hand-over, and not one now and one when the other is there. Then leaderships are shifted along chains
//! of slots from a node that leads most to one that leads at least two fewer, until there is none; only to nodes that vote
//! already, so what is proposed can be done at once. Nodes whose pod is to be evicted soon lead nothing that another one can
//! lead; once they stay, they get their share again.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

use kvcluster_crds::{NodeId, SlotAssignment};

/// The leader of each slot of `voters`. Nobody of `yielding` leads where another voter can. What such a node leads now goes to a
/// voter that has everything, by `in_sync`, where there is one: it is not to wait for another.
pub(super) fn spread(
    voters: &[Vec<NodeId>],
    published: &[SlotAssignment],
    yielding: &BTreeSet<NodeId>,
    in_sync: impl Fn(NodeId, usize) -> bool,
) -> Vec<NodeId> {
    let nodes: BTreeSet<NodeId> = voters.iter().flatten().copied().collect();
    let slots = voters.iter().enumerate().map(|(slot, voters)| {
        let now = published.get(slot);
        let mut candidacy = Candidacy::of(voters, now);
        candidacy.voters.retain(|voter| !yielding.contains(voter));
        if now.is_some_and(|now| yielding.contains(&now.preferred_leader)) {
            let (able, behind) = candidacy.voters.iter().partition(|&&v| in_sync(v, slot));
            candidacy.voters = if Vec::is_empty(&able) { behind } else { able };
        }
        let stays = |heir: &NodeId| candidacy.voters.is_empty() || !yielding.contains(heir);
        candidacy.heir = candidacy.heir.filter(stays);
        candidacy
    });
    elect(&nodes, &slots.collect::<Vec<_>>())
}

/// Who may lead a slot.
struct Candidacy {
    /// Those to whom it can be handed at once.
    voters: Vec<NodeId>,
    /// Who leads it unless the leaderships are spread badly.
    heir: Option<NodeId>,
}

impl Candidacy {
    fn of(voters: &[NodeId], published: Option<&SlotAssignment>) -> Self {
        let may = |voter: &NodeId| published.is_none_or(|now| now.voters.contains(voter));
        Self {
            voters: voters.iter().copied().filter(may).collect(),
            heir: published.and_then(|now| heir(now, voters)),
        }
    }
}

fn elect(nodes: &BTreeSet<NodeId>, slots: &[Candidacy]) -> Vec<NodeId> {
    let mut leads: BTreeMap<NodeId, usize> = nodes.iter().map(|&node| (node, 0)).collect();
    for heir in slots.iter().filter_map(|slot| slot.heir) {
        *leads.entry(heir).or_default() += 1;
    }
    let mut leaders = Vec::with_capacity(slots.len());
    for slot in slots {
        leaders.push(slot.heir.unwrap_or_else(|| {
            let fewest = slot.voters.iter().min_by_key(|voter| leads[voter]);
            let leader = *fewest.expect("each slot has a voter");
            *leads.entry(leader).or_default() += 1;
            leader
        }));
    }
    while let Some(chain) = chain_to_fewer(slots, &leaders, &leads) {
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
    slots: &[Candidacy],
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
                for &next in &slots[slot].voters {
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

#[cfg(test)]
mod tests {
    use fastrand::Rng;

    use super::*;

    fn entry(voters: &[NodeId], leader: NodeId) -> SlotAssignment {
        SlotAssignment {
            voters: voters.to_vec(),
            learners: Vec::new(),
            preferred_leader: leader,
        }
    }

    /// A published table with leaders of any kind.
    fn table(dice: &mut Rng) -> Vec<SlotAssignment> {
        let nodes = dice.usize(2..7);
        let replication = dice.usize(1..=nodes.min(4));
        let slots = 0..dice.usize(1..20);
        let slots = slots.map(|_| {
            let mut voters: Vec<NodeId> = (0..u32::try_from(nodes).expect("few"))
                .map(NodeId)
                .collect();
            dice.shuffle(&mut voters);
            voters.truncate(replication);
            entry(&voters, voters[dice.usize(..replication)])
        });
        slots.collect()
    }

    fn voters(table: &[SlotAssignment]) -> Vec<Vec<NodeId>> {
        table.iter().map(|slot| slot.voters.clone()).collect()
    }

    #[test]
    fn nodes_that_yield_lead_only_what_nobody_else_can() {
        for seed in 0..2_000 {
            let dice = &mut Rng::with_seed(seed);
            let table = table(dice);
            let voters = voters(&table);
            let all: BTreeSet<NodeId> = voters.iter().flatten().copied().collect();
            let yielding: BTreeSet<NodeId> = all.iter().copied().filter(|_| dice.bool()).collect();
            let behind: BTreeSet<(NodeId, usize)> = (0..table.len())
                .flat_map(|slot| all.iter().map(move |&node| (node, slot)))
                .filter(|_| seed % 2 == 1 && dice.usize(..4) == 0)
                .collect();
            let in_sync = |node, slot| !behind.contains(&(node, slot));
            let leaders = spread(&voters, &table, &yielding, in_sync);
            for (slot, &leader) in leaders.iter().enumerate() {
                let mut others = voters[slot]
                    .iter()
                    .filter(|voter| !yielding.contains(voter));
                if yielding.contains(&leader) {
                    assert_eq!(others.next(), None, "seed {seed} slot {slot}");
                    assert_eq!(leader, table[slot].preferred_leader, "seed {seed}: no move");
                } else if yielding.contains(&table[slot].preferred_leader) {
                    let could = others.any(|&voter| in_sync(voter, slot));
                    assert_eq!(could, in_sync(leader, slot), "seed {seed} slot {slot}");
                }
            }
            // What is proposed stays once it is published.
            let then = table.iter().zip(&leaders);
            let then: Vec<_> = then
                .map(|(slot, &leader)| entry(&slot.voters, leader))
                .collect();
            let again = spread(&voters, &then, &yielding, |_, _| true);
            if behind.is_empty() {
                assert_eq!(again, leaders, "seed {seed}");
            }
        }
    }
}
