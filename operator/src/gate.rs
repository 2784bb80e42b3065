//! Evidence that a step which takes something away is safe. Pure.
//!
//! A [`Gate`] can be made by the checks of this module alone, so a step that needs one cannot be built without its proof. The
//! evidence is what the nodes said in this very pass, and counts only when it is about the newest assignment: a node that has not
//! read it may still do what the last one said.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use kvcluster_crds::{NodeId, NodeStatus, SlotAssignment, SlotRole, SlotStatus};

use crate::observe::NodeTrouble;
use crate::seeded::{self, Bug};

/// Proof that something may be taken away.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gate {
    evidence: String,
}

impl Gate {
    /// What the proof rests on, in words.
    pub fn evidence(&self) -> &str {
        &self.evidence
    }

    /// A node that serves nothing can be stopped: `why` says what is wrong with it.
    pub fn of_broken(node: NodeId, why: &str) -> Self {
        Self::new(format!("node {node} serves nothing: {why}"))
    }

    /// A pod on a Kubernetes node that is not ready for so long is lost, if the node does not answer us either. That two processes
    /// of it may run then is safe: log and schema take the records and rows of the newer one alone.
    pub fn of_lost(
        host: &str,
        lost_since: Timestamp,
        after: SignedDuration,
        now: Timestamp,
        answers: bool,
    ) -> Option<Self> {
        let lost = now.duration_since(lost_since) >= after && !answers;
        lost.then(|| {
            Self::new(format!(
                "Kubernetes node {host} is gone or not ready since {lost_since}"
            ))
        })
    }

    fn new(evidence: String) -> Self {
        Self { evidence }
    }
}

/// What the nodes said.
#[derive(Clone, Copy, Debug)]
pub struct Evidence<'a> {
    /// The newest assignment's.
    version: u64,
    nodes: &'a BTreeMap<NodeId, Result<NodeStatus, NodeTrouble>>,
}

impl<'a> Evidence<'a> {
    /// Of `nodes`, as to assignment `version`.
    pub fn new(version: u64, nodes: &'a BTreeMap<NodeId, Result<NodeStatus, NodeTrouble>>) -> Self {
        Self { version, nodes }
    }

    /// What a node says, if it answers.
    pub fn answer(&self, node: NodeId) -> Option<&'a NodeStatus> {
        self.nodes.get(&node)?.as_ref().ok()
    }

    /// What a node says of a slot, if it answers.
    pub fn replica(&self, node: NodeId, slot: usize) -> Option<&'a SlotStatus> {
        let slots = &self.answer(node)?.slots;
        slots.iter().find(|status| status.slot.index() == slot)
    }

    /// Whether a node follows the newest assignment and nothing is in its way.
    pub fn follows(&self, node: NodeId) -> bool {
        let status = self.answer(node);
        status.is_some_and(|status| {
            status.assignment_version == Some(self.version) && status.problem.is_none()
        })
    }

    /// Whether a replica has everything: by its own word, and by what the others have for good.
    pub fn in_sync(&self, node: NodeId, slot: usize) -> bool {
        let Some(own) = self.replica(node, slot).filter(|_| self.follows(node)) else {
            return false;
        };
        let others = self.nodes.keys().filter(|&&other| other != node);
        let durable = others
            .filter_map(|&other| self.replica(other, slot))
            .map(|replica| replica.durable)
            .max();
        own.caught_up
            && own.frozen.is_none()
            && durable.is_none_or(|durable| own.applied >= durable)
    }

    /// Whether a replica has everything by its own word, whatever assignment it follows: what is given up is counted by this, what
    /// is relied on by [`Self::in_sync`].
    fn may_have_all(&self, node: NodeId, slot: usize) -> bool {
        let own = self.replica(node, slot);
        own.is_some_and(|own| own.caught_up && own.frozen.is_none())
    }

    /// How many of `voters` are in sync.
    pub fn count_in_sync(&self, voters: &[NodeId], slot: usize) -> usize {
        let in_sync = voters.iter().filter(|&&voter| self.in_sync(voter, slot));
        in_sync.count()
    }

    /// Whether a node says that it leads, or is about to.
    pub fn leads(&self, node: NodeId, slot: usize) -> bool {
        let role = self.replica(node, slot).map(|replica| replica.role);
        matches!(role, Some(SlotRole::Leader | SlotRole::Claiming))
    }

    /// A learner becomes a voter when it has everything.
    pub fn may_vote(&self, learner: NodeId, slot: usize) -> Option<Gate> {
        self.in_sync(learner, slot).then(|| {
            self.gate(&format!(
                "node {learner} has all of slot {slot}{}",
                self.process(learner)
            ))
        })
    }

    /// A voter goes when it does not lead, another voter does, and as many voters stay in sync as before, or as are wanted.
    pub fn may_go(
        &self,
        voter: NodeId,
        slot: usize,
        entry: &SlotAssignment,
        replication: usize,
    ) -> Option<Gate> {
        let stay: Vec<NodeId> = entry
            .voters
            .iter()
            .copied()
            .filter(|&other| other != voter)
            .collect();
        let before = entry
            .voters
            .iter()
            .filter(|&&other| self.may_have_all(other, slot));
        let before = before.count();
        let after = self.count_in_sync(&stay, slot);
        let leader = stay
            .iter()
            .copied()
            .find(|&other| self.leads(other, slot) && self.follows(other))?;
        let enough = after >= before.min(replication) || seeded::on(Bug::ReleasesUnproven);
        (enough && !self.leads(voter, slot)).then(|| {
            self.gate(&format!(
                "node {leader} leads slot {slot} and {after} voters have all of it{}",
                self.process(leader)
            ))
        })
    }

    /// A node is restarted when all voters of all slots have everything, itself included: a second one is never stopped before the
    /// first is back.
    pub fn may_restart(&self, node: NodeId, slots: &[SlotAssignment]) -> Option<Gate> {
        let whole = slots
            .iter()
            .enumerate()
            .all(|(slot, entry)| entry.voters.iter().all(|&voter| self.in_sync(voter, slot)));
        whole.then(|| {
            let process = self.process(node);
            self.gate(&format!(
                "every voter of every slot has everything; node {node}{process} is stopped"
            ))
        })
    }

    /// A node is replaced when every slot that it votes for has another voter with everything.
    pub fn may_do_without(&self, node: NodeId, slots: &[SlotAssignment]) -> Result<Gate, usize> {
        for (slot, entry) in slots.iter().enumerate() {
            let mut others = entry.voters.iter().filter(|&&voter| voter != node);
            if entry.voters.contains(&node) && !others.any(|&other| self.in_sync(other, slot)) {
                return Err(slot);
            }
        }
        Ok(self.gate(&format!(
            "every slot of node {node} has another voter with everything"
        )))
    }

    fn process(&self, node: NodeId) -> String {
        let process = self.answer(node).map(|status| status.incarnation);
        process.map_or_else(String::new, |incarnation| {
            format!(" (incarnation {incarnation})")
        })
    }

    fn gate(&self, evidence: &str) -> Gate {
        Gate::new(format!("assignment {}: {evidence}", self.version))
    }
}
