//! The move machine: from the published table to the proposed one, a slot at a time, over assignments that are each whole.
//!
//! ```text
//! joins as learner ──▶ has everything ──▶ votes ──▶ another voter leads ──▶ the one that leaves gives up its replica
//!        │ not wanted any more                                                  (never the leader, never the last ones in sync)
//!        └──▶ gone at once
//! ```
//!
//! Nothing is remembered: where a slot stands is read off the published table. Those that are to go stand last among its voters,
//! which is how the ring knows, too. Each pass advances every slot that can be, in one assignment; the number of learners at a time
//! is bounded. Moves begin in the order of the ring, and not by size: what makes the table better comes first (a missing replica
//! before one that only evens the loads), no node is above its bound on the way, and no move begins that a later one takes back.

use std::fmt;

use kvcluster_crds::{NodeId, SlotAssignment};

use crate::gate::{Evidence, Gate};
use crate::ring::{Change, Proposal};

/// Bounds of the machine.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rules {
    /// Learners at a time.
    pub(super) learners_max: usize,
    /// Voters that a slot should have.
    pub(super) replication: usize,
}

/// The next table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Advance {
    pub(super) slots: Vec<SlotAssignment>,
    /// The proofs of what it takes away or makes able to lead.
    pub(super) gates: Vec<Gate>,
}

/// Where a replica's move stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// The replica votes; the old one has not given up its own yet.
    HandingOver,
    /// The new replica is a learner.
    CatchingUp,
    /// Not begun.
    Waiting,
}

impl Phase {
    /// As it stands in the status.
    pub fn text(self) -> &'static str {
        match self {
            Self::HandingOver => "HandingOver",
            Self::CatchingUp => "CatchingUp",
            Self::Waiting => "Waiting",
        }
    }
}

/// A replica that is on its way, or is to go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Move {
    /// The slot.
    pub slot: usize,
    /// Who gives it up; none where a replica is added.
    pub from: Option<NodeId>,
    /// Who gets it; none where a replica is only taken away.
    pub to: Option<NodeId>,
    /// How far it is.
    pub phase: Phase,
    /// Records that the new replica lacks, where both say how far they are.
    pub records_left: Option<i64>,
    /// Bytes likewise; of a move that has not begun, all of them.
    pub bytes_left: Option<u64>,
    /// Bytes of the slot, as the voters measure it.
    pub bytes_total: Option<u64>,
}

impl fmt::Display for Move {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let slot = self.slot;
        match (self.from, self.to) {
            (Some(from), Some(to)) => write!(f, "move slot {slot} from node {from} to node {to}"),
            (None, Some(to)) => write!(f, "add a replica of slot {slot} on node {to}"),
            (Some(from), None) => write!(f, "take the replica of slot {slot} off node {from}"),
            (None, None) => write!(f, "leave slot {slot} as it is"),
        }
    }
}

/// The table after the next step of every slot that can take one. Equal to `now` when there is none.
pub(super) fn advance(
    now: &[SlotAssignment],
    target: &Proposal,
    evidence: &Evidence<'_>,
    rules: Rules,
) -> Advance {
    let mut gates = Vec::new();
    let mut slots: Vec<SlotAssignment> = now
        .iter()
        .zip(&target.slots)
        .enumerate()
        .map(|(number, (entry, want))| {
            let mut slot = Slot {
                number,
                entry: entry.clone(),
                want,
                evidence,
                replication: rules.replication,
            };
            slot.forget_learners();
            gates.extend(slot.promote());
            slot.prefer();
            gates.extend(slot.release());
            slot.sort(entry);
            slot.entry
        })
        .collect();
    join(&mut slots, target, evidence, rules.learners_max);
    Advance { slots, gates }
}

/// Adds learners, as many as are allowed. A learner on a node that does not answer is not counted, so that it keeps nobody else
/// from moving, and none is added there. Changes that belong together begin together, the more so when they are more than are
/// allowed: then alone.
fn join(
    slots: &mut [SlotAssignment],
    target: &Proposal,
    evidence: &Evidence<'_>,
    learners_max: usize,
) {
    let learners = slots.iter().flat_map(|slot| &slot.learners);
    let busy = learners.filter(|&&node| evidence.answer(node).is_some());
    let mut busy = busy.count();
    let mut base = target.scale.as_ref().map(|scale| scale.base(slots));
    for group in &target.groups {
        let fits = busy == 0 || busy + group.len() <= learners_max;
        let open = |change: &Change| {
            evidence.follows(change.to) && !slots[change.slot].has_replica(change.to)
        };
        if !fits || !group.iter().all(open) {
            continue;
        }
        let better = match (&target.scale, &mut base) {
            (Some(scale), Some(base)) => scale.improve(base, group),
            _ => true,
        };
        if better {
            for change in group {
                begin(&mut slots[change.slot], &target.slots[change.slot], *change);
            }
            busy += group.len();
        }
    }
}

fn begin(entry: &mut SlotAssignment, want: &SlotAssignment, change: Change) {
    entry.learners.push(change.to);
    leaving_last(entry, want);
    if let Some(from) = change.from {
        entry.voters.sort_by_key(|&voter| voter == from);
    }
}

fn leaving_last(entry: &mut SlotAssignment, want: &SlotAssignment) {
    let place = |node: &NodeId| want.voters.iter().position(|wanted| wanted == node);
    entry
        .voters
        .sort_by_key(|node| place(node).unwrap_or(usize::MAX));
    entry
        .learners
        .sort_by_key(|node| place(node).unwrap_or(usize::MAX));
}

/// One slot on its way.
struct Slot<'a> {
    number: usize,
    entry: SlotAssignment,
    want: &'a SlotAssignment,
    evidence: &'a Evidence<'a>,
    replication: usize,
}

impl Slot<'_> {
    /// A learner that is not wanted goes at once: nobody counts on it.
    fn forget_learners(&mut self) {
        let want = self.want;
        self.entry
            .learners
            .retain(|learner| want.voters.contains(learner));
    }

    /// Learners that have everything vote; the one that is to lead becomes the preferred leader.
    fn promote(&mut self) -> Vec<Gate> {
        let mut gates = Vec::new();
        for learner in self.entry.learners.clone() {
            if let Some(gate) = self.evidence.may_vote(learner, self.number) {
                self.entry.learners.retain(|&other| other != learner);
                self.entry.voters.push(learner);
                gates.push(gate);
            }
        }
        gates
    }

    /// Names the leader that is wanted once it votes; and where the named one is to go before that, one that stays.
    fn prefer(&mut self) {
        let able = |node: &NodeId| {
            self.entry.voters.contains(node) && (self.evidence.in_sync(*node, self.number))
        };
        let wanted = Some(self.want.preferred_leader).filter(able);
        let leaves = !self.want.voters.contains(&self.entry.preferred_leader);
        let other = || {
            let spare = self.entry.voters.len() > self.want.voters.len();
            let mut stay = self.want.voters.iter().copied();
            stay.find(able).filter(|_| leaves && spare)
        };
        if let Some(leader) = wanted.or_else(other) {
            self.entry.preferred_leader = leader;
        }
    }

    /// Voters that are to go do so while there are more than are wanted.
    fn release(&mut self) -> Vec<Gate> {
        let mut gates = Vec::new();
        for voter in self.entry.voters.clone() {
            let spare = self.entry.voters.len() > self.want.voters.len();
            let goes = !self.want.voters.contains(&voter) && voter != self.entry.preferred_leader;
            if !(spare && goes) {
                continue;
            }
            let gate = self
                .evidence
                .may_go(voter, self.number, &self.entry, self.replication);
            if let Some(gate) = gate {
                self.entry.voters.retain(|&other| other != voter);
                gates.push(gate);
            }
        }
        gates
    }

    /// Puts the voters in order, unless nothing else changed before the end is reached: that is not worth an assignment.
    fn sort(&mut self, before: &SlotAssignment) {
        let same = |one: &[NodeId], other: &[NodeId]| {
            one.len() == other.len() && one.iter().all(|node| other.contains(node))
        };
        let idle = same(&self.entry.voters, &before.voters)
            && self.entry.learners == before.learners
            && self.entry.preferred_leader == before.preferred_leader;
        if !idle || same(&self.entry.voters, &self.want.voters) {
            leaving_last(&mut self.entry, self.want);
        }
    }
}

/// The moves that lie between two tables, those that are furthest first.
pub(super) fn left(
    now: &[SlotAssignment],
    target: &[SlotAssignment],
    evidence: Option<&Evidence<'_>>,
) -> Vec<Move> {
    let mut moves: Vec<Move> = now
        .iter()
        .zip(target)
        .enumerate()
        .flat_map(|(slot, (entry, want))| of_slot(slot, entry, want, evidence))
        .collect();
    moves.sort_by_key(|step| (step.phase, step.slot));
    moves
}

fn of_slot(
    slot: usize,
    entry: &SlotAssignment,
    want: &SlotAssignment,
    evidence: Option<&Evidence<'_>>,
) -> Vec<Move> {
    let mut leaving = entry
        .voters
        .iter()
        .copied()
        .filter(|voter| !want.voters.contains(voter));
    let coming = want
        .voters
        .iter()
        .copied()
        .filter(|voter| !entry.voters.contains(voter));
    let mut moves: Vec<Move> = coming
        .map(|to| {
            let phase = if entry.learners.contains(&to) {
                Phase::CatchingUp
            } else {
                Phase::Waiting
            };
            let lacks = evidence.map(|evidence| lacks(to, slot, entry, evidence));
            Move {
                slot,
                from: leaving.next(),
                to: Some(to),
                phase,
                records_left: lacks
                    .filter(|_| phase == Phase::CatchingUp)
                    .map(|lacks| lacks.records),
                bytes_left: lacks.map(|lacks| lacks.bytes),
                bytes_total: lacks.map(|lacks| lacks.bytes_total),
            }
        })
        .collect();
    moves.extend(leaving.map(|from| Move {
        slot,
        from: Some(from),
        to: None,
        phase: Phase::HandingOver,
        records_left: None,
        bytes_left: None,
        bytes_total: None,
    }));
    moves
}

/// What a new replica lacks of what the voters have.
#[derive(Clone, Copy)]
struct Lacks {
    records: i64,
    bytes: u64,
    bytes_total: u64,
}

fn lacks(learner: NodeId, slot: usize, entry: &SlotAssignment, evidence: &Evidence<'_>) -> Lacks {
    let voters = entry
        .voters
        .iter()
        .filter_map(|&voter| evidence.replica(voter, slot));
    let most = voters.fold((0, 0), |(applied, bytes), voter| {
        (applied.max(voter.applied), bytes.max(voter.bytes))
    });
    let own = evidence.replica(learner, slot);
    let (applied, bytes) = own.map_or((0, 0), |own| (own.applied, own.bytes));
    Lacks {
        records: (most.0 - applied).max(0),
        bytes: most.1.saturating_sub(bytes),
        bytes_total: most.1,
    }
}

#[cfg(test)]
mod tests;
