//! The ring: which nodes replicate which slot, and which of them should lead it. Pure: equal arguments, equal answer.
//!
//! Each node has `virtual_nodes` tokens, `xxh3_64` of its id and an index, on a circle of 64-bit numbers. A slot walks
//! clockwise from its own token and takes the first R distinct nodes that hold fewer replicas than the load bound
//! (consistent hashing with bounded loads). Where the walk cannot find R such nodes, one replica of another slot makes room.
//!
//! A plain walk moves more than it must when a node comes: the bound shrinks for everybody. So [`propose`] starts from the
//! table that is published, keeps what stands, fills what is missing by the walk, and gives a new node its even share of
//! replicas and no more, taken from the fullest nodes, first those slots whose walk meets the new node soonest. A table that
//! is in order is answered unchanged.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

use kvcluster_crds::{NodeId, SlotAssignment, SlotId};
use xxhash_rust::xxh3::xxh3_64;

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
        let replicas = u64::from(self.slots) * self.replication as u64;
        let bound = (replicas * u64::from(self.load_factor_percent)).div_ceil(100 * nodes as u64);
        usize::try_from(bound).unwrap_or(usize::MAX)
    }
}

/// The table that nodes follow now.
#[derive(Clone, Copy, Debug)]
pub struct Published<'a> {
    /// The nodes that it was made for; another one is new and gets its share.
    pub nodes: &'a [NodeId],
    /// The replicas of each slot.
    pub slots: &'a [SlotAssignment],
}

/// The table for `nodes`, as near to `published` as the rules allow.
pub fn propose(
    shape: Shape,
    nodes: &[NodeId],
    published: Option<Published<'_>>,
) -> Result<Vec<SlotAssignment>, RingError> {
    let nodes: BTreeSet<NodeId> = nodes.iter().copied().collect();
    if nodes.len() < shape.replication || shape.replication == 0 {
        return Err(RingError::TooFewNodes {
            nodes: nodes.len(),
            replication: shape.replication,
        });
    }
    let mut table = Table::new(shape, &nodes, published);
    for slot in 0..table.voters.len() {
        table.fill(slot);
    }
    if published.is_some() {
        table.feed_newcomers();
    }
    table.shed_overload();
    let leaders = spread_leaders(&table.voters, &nodes, published);
    Ok(table.voters.into_iter().zip(leaders).map(entry).collect())
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

/// A table in the making.
struct Table {
    shape: Shape,
    tokens: Vec<(u64, NodeId)>,
    bound: usize,
    voters: Vec<Vec<NodeId>>,
    load: BTreeMap<NodeId, usize>,
    newcomers: BTreeSet<NodeId>,
}

impl Table {
    fn new(shape: Shape, nodes: &BTreeSet<NodeId>, published: Option<Published<'_>>) -> Self {
        let mut tokens: Vec<(u64, NodeId)> = nodes
            .iter()
            .flat_map(|&node| (0..shape.virtual_nodes).map(move |i| (node_token(node, i), node)))
            .collect();
        tokens.sort_unstable();
        let mut voters = vec![Vec::with_capacity(shape.replication); shape.slots as usize];
        for (kept, before) in voters
            .iter_mut()
            .zip(published.map_or(&[][..], |table| table.slots))
        {
            let stay = before
                .voters
                .iter()
                .copied()
                .filter(|voter| nodes.contains(voter));
            kept.extend(stay.take(shape.replication));
        }
        let mut load: BTreeMap<NodeId, usize> = nodes.iter().map(|&node| (node, 0)).collect();
        for node in voters.iter().flatten() {
            *load.entry(*node).or_default() += 1;
        }
        let known = published.map_or(&[][..], |table| table.nodes);
        let newcomers = nodes
            .iter()
            .copied()
            .filter(|node| !known.contains(node))
            .collect();
        Self {
            shape,
            tokens,
            bound: shape.load_bound(nodes.len()),
            voters,
            load,
            newcomers,
        }
    }

    /// Gives `slot` its missing replicas.
    fn fill(&mut self, slot: usize) {
        for node in self.walk(slot) {
            if self.voters[slot].len() == self.shape.replication {
                return;
            }
            if self.load[&node] < self.bound {
                self.add(slot, node);
            }
        }
        while self.voters[slot].len() < self.shape.replication {
            self.make_room(slot);
        }
    }

    /// All nodes with room hold `slot` already. A full node that does not hold it gives one of its slots to a node with room
    /// and takes `slot`. Such a slot exists: the full node holds more slots than the other.
    fn make_room(&mut self, slot: usize) {
        let room = self
            .load
            .iter()
            .find(|&(_, &load)| load < self.bound)
            .map(|(&node, _)| node);
        let room = room.expect("the bound times the nodes is at least all replicas");
        let mut outside = self
            .load
            .keys()
            .copied()
            .filter(|n| !self.voters[slot].contains(n));
        let full = outside
            .next()
            .expect("replication is at most the number of nodes");
        let given = self
            .voters
            .iter()
            .position(|held| held.contains(&full) && !held.contains(&room));
        let given = given.expect("a full node holds a slot that a node with room does not hold");
        self.replace(given, full, room);
        self.add(slot, full);
    }

    /// Gives each new node its even share, rounded down.
    fn feed_newcomers(&mut self) {
        let share = self.shape.slots as usize * self.shape.replication / self.load.len();
        for newcomer in self.newcomers.clone() {
            while self.load[&newcomer] < share && self.take_for(newcomer) {}
        }
    }

    fn take_for(&mut self, newcomer: NodeId) -> bool {
        for donor in self.fullest_first() {
            if self.newcomers.contains(&donor) || self.load[&donor] <= self.load[&newcomer] + 1 {
                continue;
            }
            let held = |voters: &[NodeId]| voters.contains(&donor) && !voters.contains(&newcomer);
            let slots = (0..self.voters.len()).filter(|&slot| held(&self.voters[slot]));
            if let Some(slot) = slots.min_by_key(|&slot| (self.distance(slot, newcomer), slot)) {
                self.replace(slot, donor, newcomer);
                return true;
            }
        }
        false
    }

    /// Takes replicas off nodes above the bound: the bound was lowered, or nodes came.
    fn shed_overload(&mut self) {
        while let Some(donor) = self.fullest_first().first().copied() {
            if self.load[&donor] <= self.bound {
                return;
            }
            let emptiest = self.load.iter().min_by_key(|&(&node, &load)| (load, node));
            let (&taker, _) = emptiest.expect("there is a node");
            let given = self
                .voters
                .iter()
                .position(|v| v.contains(&donor) && !v.contains(&taker));
            let given = given.expect("the fullest node holds a slot that the emptiest does not");
            self.replace(given, donor, taker);
        }
    }

    fn fullest_first(&self) -> Vec<NodeId> {
        let mut nodes: Vec<NodeId> = self.load.keys().copied().collect();
        nodes.sort_by_key(|node| (usize::MAX - self.load[node], *node));
        nodes
    }

    /// The nodes in the order in which `slot` meets them, without those that hold it.
    fn walk(&self, slot: usize) -> Vec<NodeId> {
        let start = self
            .tokens
            .partition_point(|&(token, _)| token < slot_token(slot));
        let mut seen: BTreeSet<NodeId> = self.voters[slot].iter().copied().collect();
        let around = self.tokens[start..].iter().chain(&self.tokens[..start]);
        around
            .filter(|&&(_, node)| seen.insert(node))
            .map(|&(_, node)| node)
            .collect()
    }

    /// How far `slot` walks to the first token of `node`.
    fn distance(&self, slot: usize, node: NodeId) -> u64 {
        let from = slot_token(slot);
        let tokens = self.tokens.iter().filter(|&&(_, owner)| owner == node);
        tokens
            .map(|&(token, _)| token.wrapping_sub(from))
            .min()
            .unwrap_or(u64::MAX)
    }

    fn add(&mut self, slot: usize, node: NodeId) {
        self.voters[slot].push(node);
        *self.load.entry(node).or_default() += 1;
    }

    fn replace(&mut self, slot: usize, old: NodeId, new: NodeId) {
        for voter in &mut self.voters[slot] {
            if *voter == old {
                *voter = new;
            }
        }
        *self.load.entry(old).or_default() -= 1;
        *self.load.entry(new).or_default() += 1;
    }
}

/// One leader per slot, as evenly as the voters allow: starts from the published leaders, then shifts leadership along
/// chains of slots from a node that leads most to one that leads at least two fewer, until there is none.
fn spread_leaders(
    voters: &[Vec<NodeId>],
    nodes: &BTreeSet<NodeId>,
    published: Option<Published<'_>>,
) -> Vec<NodeId> {
    let mut leads: BTreeMap<NodeId, usize> = nodes.iter().map(|&node| (node, 0)).collect();
    let mut leaders = Vec::with_capacity(voters.len());
    for (slot, voters) in voters.iter().enumerate() {
        let before = published
            .and_then(|table| table.slots.get(slot))
            .map(|slot| slot.preferred_leader);
        let fewest = voters.iter().min_by_key(|voter| leads[voter]);
        let leader = before
            .filter(|leader| voters.contains(leader))
            .or(fewest.copied());
        let leader = leader.expect("each slot has a voter");
        *leads.entry(leader).or_default() += 1;
        leaders.push(leader);
    }
    while let Some(chain) = chain_to_fewer(voters, &leaders, &leads) {
        for (slot, to) in chain {
            *leads.entry(leaders[slot]).or_default() -= 1;
            *leads.entry(to).or_default() += 1;
            leaders[slot] = to;
        }
    }
    leaders
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
