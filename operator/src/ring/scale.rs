//! What makes one table better than another, and which changes have to begin together to do so.

use std::collections::{BTreeMap, BTreeSet};

use kvcluster_crds::{NodeId, SlotAssignment};

use super::{Change, Member, Shape, begun};

/// Changes that are tried one by one before some are put together.
const TRIED_MAX: usize = 64;

/// The measures of a table, for the members that there are.
#[derive(Clone, Debug)]
pub struct Scale {
    replication: usize,
    bound: usize,
    members: BTreeMap<NodeId, Member>,
    ids: BTreeSet<NodeId>,
    zones_known: bool,
}

/// Less is better, the first first: replicas that are missing, replicas above the bound, voters that share an instance, voters that
/// share a zone, the squares of the loads.
type Measure = (usize, usize, usize, usize, usize);

impl Scale {
    pub(super) fn new(shape: Shape, members: &[Member]) -> Self {
        let members: BTreeMap<NodeId, Member> = members.iter().map(|m| (m.id, m.clone())).collect();
        Self {
            replication: shape.replication,
            bound: shape.load_bound(members.len()),
            ids: members.keys().copied().collect(),
            zones_known: members.values().all(|member| member.zone.is_some()),
            members,
        }
    }

    /// The table once the moves that have begun are done.
    pub fn base(&self, slots: &[SlotAssignment]) -> Vec<Vec<NodeId>> {
        let done = slots
            .iter()
            .map(|slot| begun(slot, &self.ids, self.replication));
        done.collect()
    }

    /// Whether the changes make the table better; then they are made.
    pub fn improve(&self, table: &mut Vec<Vec<NodeId>>, changes: &[Change]) -> bool {
        let mut after = table.clone();
        for change in changes {
            apply(&mut after, *change);
        }
        let better = self.measure(&after) < self.measure(table);
        if better {
            *table = after;
        }
        better
    }

    fn measure(&self, table: &[Vec<NodeId>]) -> Measure {
        let mut loads: BTreeMap<NodeId, usize> = BTreeMap::new();
        let (mut missing, mut instances, mut zones) = (0, 0, 0);
        for held in table {
            missing += self.replication.saturating_sub(held.len());
            let members = || held.iter().filter_map(|id| self.members.get(id));
            let distinct: BTreeSet<_> = members().map(|member| &member.instance).collect();
            instances += held.len().saturating_sub(distinct.len());
            if self.zones_known {
                let distinct: BTreeSet<_> = members().map(|member| &member.zone).collect();
                zones += held.len().saturating_sub(distinct.len());
            }
            for &node in held {
                *loads.entry(node).or_default() += 1;
            }
        }
        let above = loads.values().map(|load| load.saturating_sub(self.bound));
        let squares = loads.values().map(|load| load * load);
        (missing, above.sum(), instances, zones, squares.sum())
    }

    /// The changes from one table to another, in groups of which each makes it better.
    pub(super) fn groups(
        &self,
        mut table: Vec<Vec<NodeId>>,
        target: &[Vec<NodeId>],
    ) -> Vec<Vec<Change>> {
        table.resize(target.len(), Vec::new());
        let pairs = table.iter().zip(target).enumerate();
        let mut left: Vec<Change> = pairs
            .flat_map(|(slot, (before, after))| changes(slot, before, after))
            .collect();
        let mut groups = Vec::new();
        while !left.is_empty() {
            let tried = left.len().min(TRIED_MAX);
            let alone = (0..tried).find(|&place| self.improve(&mut table, &left[place..=place]));
            if let Some(place) = alone {
                groups.push(vec![left.remove(place)]);
                continue;
            }
            let together = (2..=left.len()).find(|&count| self.improve(&mut table, &left[..count]));
            // What makes nothing better is left undone.
            let Some(count) = together else { break };
            groups.push(left.drain(..count).collect());
        }
        groups
    }
}

fn apply(table: &mut [Vec<NodeId>], change: Change) {
    let held = &mut table[change.slot];
    held.retain(|&node| Some(node) != change.from);
    held.push(change.to);
}

fn changes(slot: usize, before: &[NodeId], after: &[NodeId]) -> Vec<Change> {
    let mut gone = before.iter().copied().filter(|node| !after.contains(node));
    let come = after.iter().copied().filter(|node| !before.contains(node));
    let missing = after.len().saturating_sub(before.len());
    let pairs = come.enumerate().map(|(place, to)| Change {
        slot,
        from: if place < missing { None } else { gone.next() },
        to,
    });
    pairs.collect()
}
