//! Puts a table of replicas in order, one replica after the other, each time for the better.
//!
//! Measured by, in this order: replicas that are missing; replicas above the load bound; distinct PostgreSQL instances, then
//! distinct zones, among the voters of each slot; the sum of the squares of the loads. No change makes an earlier measure worse
//! for the sake of a later one, so it ends, and a table at the end is left as it is.
//!
//! Where a node that is wanted is full, it gives one of its slots to a node with room, perhaps by way of others: a *chain*. It is
//! found by a search in breadth and applied from its far end, so that each single change stands the measures.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use kvcluster_crds::NodeId;

use super::{Member, Shape, node_token, slot_token};

/// The voters of each slot in order. `pins`: replicas of each slot that are on their way already, and stay.
pub(super) fn settle(
    shape: Shape,
    members: &[Member],
    base: Vec<Vec<NodeId>>,
    pins: Vec<Vec<NodeId>>,
) -> Vec<Vec<NodeId>> {
    let mut table = Table::new(shape, members, base, pins);
    table.fill();
    table.shed();
    table.diversify();
    loop {
        while table.feed() {}
        // What was given may have made room.
        if !table.diversify() {
            break;
        }
    }
    let Table { ids, voters, .. } = table;
    let named = voters
        .into_iter()
        .map(|held| held.into_iter().map(|node| ids[node]).collect());
    named.collect()
}

/// Distinct instances, then distinct zones.
type Diversity = (usize, usize);

/// A change: in this slot the first node gives its replica to the second.
type Change = (usize, usize, usize);

/// A table in the making. Nodes are numbers: places in the list of ids.
struct Table {
    replication: usize,
    bound: usize,
    share: usize,
    ids: Vec<NodeId>,
    instance: Vec<usize>,
    /// Empty while some node's zone is not known: zones say nothing then.
    zone: Vec<usize>,
    /// Tokens of all nodes, in order.
    tokens: Vec<(u64, usize)>,
    voters: Vec<Vec<usize>>,
    pins: Vec<Vec<usize>>,
    load: Vec<usize>,
}

impl Table {
    fn new(
        shape: Shape,
        members: &[Member],
        base: Vec<Vec<NodeId>>,
        pins: Vec<Vec<NodeId>>,
    ) -> Self {
        let members: BTreeMap<NodeId, &Member> = members.iter().map(|m| (m.id, m)).collect();
        let ids: Vec<NodeId> = members.keys().copied().collect();
        let zones: Option<Vec<&str>> = members.values().map(|m| m.zone.as_deref()).collect();
        let instances: Vec<&str> = members.values().map(|m| m.instance.as_str()).collect();
        let mut tokens: Vec<(u64, usize)> = ids
            .iter()
            .enumerate()
            .flat_map(|(place, &id)| {
                (0..shape.virtual_nodes).map(move |i| (node_token(id, i), place))
            })
            .collect();
        tokens.sort_unstable();
        let places = |table: Vec<Vec<NodeId>>| -> Vec<Vec<usize>> {
            let rows = table.into_iter().map(|held| {
                let places = held.iter().filter_map(|id| ids.binary_search(id).ok());
                places.collect()
            });
            let mut rows: Vec<Vec<usize>> = rows.collect();
            rows.resize(shape.slots as usize, Vec::new());
            rows
        };
        let (voters, pins) = (places(base), places(pins));
        let mut load = vec![0; ids.len()];
        for &node in voters.iter().flatten() {
            load[node] += 1;
        }
        Self {
            replication: shape.replication,
            bound: shape.load_bound(ids.len()),
            share: shape.share(ids.len()),
            instance: numbered(&instances),
            zone: zones.map(|zones| numbered(&zones)).unwrap_or_default(),
            ids,
            tokens,
            voters,
            pins,
            load,
        }
    }

    /// Gives each slot its missing replicas: nodes that make the voters more diverse first, then those that have less than their
    /// share, then as the slot meets them on the circle.
    fn fill(&mut self) {
        for slot in 0..self.voters.len() {
            while self.voters[slot].len() < self.replication {
                let walk = self.walk(slot);
                let rank = |&(met, &node): &(usize, &usize)| {
                    let (instances, zones) = self.diversity_with(slot, None, node);
                    let more = (usize::MAX - instances, usize::MAX - zones);
                    (more, self.load[node] >= self.share, met)
                };
                let open = walk
                    .iter()
                    .enumerate()
                    .filter(|&(_, &node)| self.load[node] < self.bound);
                let chosen = open.min_by_key(rank).map(|(_, &node)| node);
                let node = chosen.unwrap_or_else(|| self.make_room(slot, &walk));
                self.voters[slot].push(node);
                self.load[node] += 1;
            }
        }
    }

    /// All nodes with room hold `slot` already: one of `full` gives another slot away. There is room somewhere, since the bound
    /// times the nodes is at least all replicas, and a way there: a full node holds more slots than one with room.
    fn make_room(&mut self, slot: usize, full: &[usize]) -> usize {
        let chain = self
            .chain(slot, full, &[], true)
            .or_else(|| self.chain(slot, full, &[], false));
        // Where only replicas that are on their way could be given, the first node takes one too many for the time being.
        let (first, changes) = chain.unwrap_or_else(|| (full[0], Vec::new()));
        self.apply(&changes);
        first
    }

    /// Takes replicas off nodes above the bound: the bound was lowered, or nodes came.
    fn shed(&mut self) {
        while let Some(donor) = self.fullest().first().copied() {
            if self.load[donor] <= self.bound {
                return;
            }
            // The fullest node holds a slot that the emptiest does not; only replicas that are on their way cannot be given.
            let change = self.gift(donor, true).or_else(|| self.gift(donor, false));
            let Some(change) = change else { return };
            self.apply(&[change]);
        }
    }

    /// A slot of `donor` for the emptiest node that can take one; if `careful`, without harm to the diversity of the slot.
    fn gift(&self, donor: usize, careful: bool) -> Option<Change> {
        let mut takers = self.fullest();
        takers.reverse();
        let room = takers.into_iter().filter(|&n| self.load[n] < self.bound);
        let mut gifts = room.filter_map(|taker| {
            let slot =
                (0..self.voters.len()).find(|&slot| self.may(slot, donor, taker, careful))?;
            Some((slot, donor, taker))
        });
        gifts.next()
    }

    /// Whether `old` can give its replica of `slot` to `new`.
    fn may(&self, slot: usize, old: usize, new: usize, careful: bool) -> bool {
        let held = &self.voters[slot];
        held.contains(&old)
            && !self.pins[slot].contains(&old)
            && !held.contains(&new)
            && (!careful || self.diversity_with(slot, Some(old), new) >= self.diversity(slot))
    }

    /// Puts voters of a slot that share an instance or a zone on others, as far as there is a way; says whether there was any.
    fn diversify(&mut self) -> bool {
        let most = |groups: &[usize]| {
            let distinct: BTreeSet<_> = groups.iter().collect();
            distinct.len().min(self.replication)
        };
        let best = (most(&self.instance), most(&self.zone));
        // Where there is no way for one slot there is none for another with the same candidates.
        let mut hopeless: BTreeSet<(Vec<usize>, Vec<usize>)> = BTreeSet::new();
        let mut changed = false;
        for slot in 0..self.voters.len() {
            while self.diversity(slot) < best {
                let Some(exchange) = self.improvement(slot, &mut hopeless) else {
                    break;
                };
                self.apply(&exchange);
                hopeless.clear();
                changed = true;
            }
        }
        changed
    }

    fn improvement(
        &self,
        slot: usize,
        hopeless: &mut BTreeSet<(Vec<usize>, Vec<usize>)>,
    ) -> Option<Vec<Change>> {
        let now = self.diversity(slot);
        let mut pairs: Vec<(usize, usize)> = Vec::new();
        let movable = self.voters[slot]
            .iter()
            .filter(|old| !self.pins[slot].contains(old));
        for &old in movable {
            for new in (0..self.ids.len()).filter(|n| !self.voters[slot].contains(n)) {
                if self.diversity_with(slot, Some(old), new) > now {
                    pairs.push((old, new));
                }
            }
        }
        pairs.sort_by_key(|&(old, new)| (self.load[new], usize::MAX - self.load[old], new, old));
        if let Some(&(old, new)) = pairs.iter().find(|&&(_, new)| self.load[new] < self.bound) {
            return Some(vec![(slot, old, new)]);
        }
        let distinct = |nodes: BTreeSet<usize>| nodes.into_iter().collect::<Vec<_>>();
        let news = distinct(pairs.iter().map(|&(_, new)| new).collect());
        let olds = distinct(pairs.iter().map(|&(old, _)| old).collect());
        if news.is_empty() || hopeless.contains(&(olds.clone(), news.clone())) {
            return None;
        }
        let Some((first, mut changes)) = self.chain(slot, &news, &olds, true) else {
            hopeless.insert((olds, news));
            return None;
        };
        // Whoever gets something through the chain must be the one that gives this slot up, if it is full.
        let last = changes.first().map_or(first, |&(_, _, taker)| taker);
        let fits = |old: usize| self.load[last] < self.bound || old == last;
        let (old, new) = pairs
            .into_iter()
            .find(|&(old, new)| new == first && fits(old))?;
        changes.push((slot, old, new));
        Some(changes)
    }

    /// A way from one of `starts`, each full, to a node with room or one of `ends`: each node gives a slot other than `slot` to
    /// the next one. Answers the start and the changes, far end first.
    fn chain(
        &self,
        slot: usize,
        starts: &[usize],
        ends: &[usize],
        careful: bool,
    ) -> Option<(usize, Vec<Change>)> {
        let mut reached: BTreeMap<usize, Option<(usize, usize)>> =
            starts.iter().map(|&node| (node, None)).collect();
        let mut queue: VecDeque<usize> = starts.iter().copied().collect();
        while let Some(node) = queue.pop_front() {
            for next in 0..self.ids.len() {
                if reached.contains_key(&next) {
                    continue;
                }
                let used = way(&reached, node).1;
                let mut others = (0..self.voters.len())
                    .filter(|&other| other != slot && used.iter().all(|&(s, _, _)| s != other));
                let given = others.find(|&other| self.may(other, node, next, careful));
                let Some(given) = given else { continue };
                reached.insert(next, Some((given, node)));
                if self.load[next] < self.bound || ends.contains(&next) {
                    return Some(way(&reached, next));
                }
                queue.push_back(next);
            }
        }
        None
    }

    /// Gives one replica to the emptiest node from the fullest one that can give it any and has two more at least; says whether
    /// there was such a pair. Of its slots the one goes that meets the taker soonest.
    fn feed(&mut self) -> bool {
        let fullest = self.fullest();
        for taker in fullest.iter().rev().copied() {
            for &donor in &fullest {
                if self.load[donor] < self.load[taker] + 2 {
                    break;
                }
                let slots = (0..self.voters.len()).filter(|&s| self.may(s, donor, taker, true));
                if let Some(slot) = slots.min_by_key(|&slot| (self.distance(slot, taker), slot)) {
                    self.apply(&[(slot, donor, taker)]);
                    return true;
                }
            }
        }
        false
    }

    fn apply(&mut self, changes: &[Change]) {
        for &(slot, old, new) in changes {
            self.voters[slot].retain(|&voter| voter != old);
            self.voters[slot].push(new);
            self.load[old] -= 1;
            self.load[new] += 1;
        }
    }

    fn fullest(&self) -> Vec<usize> {
        let mut nodes: Vec<usize> = (0..self.ids.len()).collect();
        nodes.sort_by_key(|&node| (usize::MAX - self.load[node], node));
        nodes
    }

    fn diversity(&self, slot: usize) -> Diversity {
        self.count(&self.voters[slot].iter().copied())
    }

    /// Diversity of `slot` with `new`, in the place of `old` if there is one.
    fn diversity_with(&self, slot: usize, old: Option<usize>, new: usize) -> Diversity {
        let stay = self.voters[slot].iter().copied();
        self.count(&stay.filter(|&node| Some(node) != old).chain([new]))
    }

    fn count(&self, held: &(impl Iterator<Item = usize> + Clone)) -> Diversity {
        let distinct = |groups: &[usize]| {
            let mut seen: Vec<usize> = Vec::with_capacity(self.replication);
            for group in held.clone().filter_map(|node| groups.get(node).copied()) {
                if !seen.contains(&group) {
                    seen.push(group);
                }
            }
            seen.len()
        };
        (distinct(&self.instance), distinct(&self.zone))
    }

    /// The nodes in the order in which `slot` meets them, without those that hold it.
    fn walk(&self, slot: usize) -> Vec<usize> {
        let start = self
            .tokens
            .partition_point(|&(token, _)| token < slot_token(slot));
        let mut unseen = vec![true; self.ids.len()];
        for &held in &self.voters[slot] {
            unseen[held] = false;
        }
        let around = self.tokens[start..].iter().chain(&self.tokens[..start]);
        around
            .filter(|&&(_, node)| std::mem::replace(&mut unseen[node], false))
            .map(|&(_, node)| node)
            .collect()
    }

    /// How far `slot` walks to the first token of `node`.
    fn distance(&self, slot: usize, node: usize) -> u64 {
        let from = slot_token(slot);
        let tokens = self.tokens.iter().filter(|&&(_, owner)| owner == node);
        tokens
            .map(|&(token, _)| token.wrapping_sub(from))
            .min()
            .unwrap_or(u64::MAX)
    }
}

/// The start of the way to `end`, and its changes from the far end.
fn way(reached: &BTreeMap<usize, Option<(usize, usize)>>, end: usize) -> (usize, Vec<Change>) {
    let mut changes = Vec::new();
    let mut node = end;
    while let Some(Some((slot, from))) = reached.get(&node) {
        changes.push((*slot, *from, node));
        node = *from;
    }
    (node, changes)
}

/// Equal texts get equal numbers.
fn numbered(texts: &[&str]) -> Vec<usize> {
    let distinct: Vec<&str> = texts
        .iter()
        .copied()
        .collect::<BTreeSet<_>>()
        .into_iter()
        .collect();
    let number = |text: &&str| distinct.binary_search(text).unwrap_or_default();
    texts.iter().map(number).collect()
}
