//! What to do next, and what to say: a pure function of what is wanted and what was seen.
//!
//! ```text
//! finalizer → log id → topics → Secrets → roles and schemas → members → Services, budget, StatefulSets
//!                                                                → remedies → moves → what nodes leave behind → restarts → old assignments
//! ```
//!
//! A stage that is refused (Kafka away, a schema of another owner) keeps back those that build on it, with a finding that names
//! the remedy; what was planned before it is still done, and nodes that exist are looked after all the same: their objects are put
//! right and broken ones restarted, since that may be the remedy. Only the first step of a plan is executed before the world is looked at again,
//! so a crash between any two steps loses nothing. The plan of a world that is as wanted is empty.

use std::fmt;

use kvcluster_crds::Assignment;
use kvcluster_crds::v1alpha1::{RebalanceMode, condition};

use crate::cluster::Target;
use crate::observe::World;
use crate::seeded::{self, Bug};

mod assignment;
mod conditions;
mod delete;
mod drain;
mod leftovers;
mod members;
mod moves;
mod objects;
mod postgres;
mod restart;
mod serving;
mod step;
mod topics;
mod trim;

pub use conditions::{Truth, Verdict};
pub(crate) use members::prospective;
pub use moves::{Move, Phase};
pub use objects::{ANNOTATION_APPLIED, Object};
pub use step::{RoleStep, Step};

/// What to do and what to say.
#[derive(Clone, Debug)]
pub struct Plan {
    /// In this order; the first one is executed.
    pub steps: Vec<Step>,
    /// Steps that would be taken if the cluster were not paused, or if `rebalance.mode` were `Apply`.
    pub withheld: Vec<Step>,
    /// What follows the steps and the moves, as far as it can be known: in words.
    pub later: Vec<String>,
    /// Replicas that are on their way, or are to go.
    pub moves: Vec<Move>,
    /// The conditions of the status.
    pub conditions: Vec<Verdict>,
    /// Nodes that exist.
    pub nodes: usize,
    /// Nodes that report and follow the newest assignment.
    pub ready_nodes: usize,
    /// Version of the newest assignment.
    pub assignment_version: Option<u64>,
}

impl Plan {
    /// Whether everything is as wanted and served.
    pub fn is_ready(&self) -> bool {
        self.holds(condition::READY)
    }

    /// Whether something is being made that is not there yet, and nothing stands in its way.
    pub fn is_progressing(&self) -> bool {
        self.holds(condition::PROGRESSING)
    }

    /// Whether replicas are on their way: then the nodes' reports are worth a look soon.
    pub fn is_moving(&self) -> bool {
        self.moves.iter().any(|step| step.phase != Phase::Waiting)
    }

    fn holds(&self, kind: &str) -> bool {
        let mut verdicts = self
            .conditions
            .iter()
            .filter(|verdict| verdict.kind == kind);
        verdicts.any(|verdict| verdict.truth == Truth::True)
    }
}

/// Something that stands in the way, for a condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// In CamelCase, for programs.
    pub reason: &'static str,
    /// What is wrong and what to do, for people.
    pub message: String,
}

impl Finding {
    fn new(reason: &'static str, message: impl fmt::Display) -> Self {
        Self {
            reason,
            message: message.to_string(),
        }
    }

    /// Whether it is only a matter of time or of the user's word, and nothing is wrong.
    fn is_waiting(&self) -> bool {
        matches!(self.reason, "RestartWaits" | "PlanWaits" | "NodesLeaving")
    }
}

/// What one stage has to do, and whether something keeps the later ones from their turn.
#[derive(Clone, Debug, Default)]
struct Stage {
    steps: Vec<Step>,
    refused: Option<Finding>,
}

impl Stage {
    fn refuse(reason: &'static str, message: impl fmt::Display) -> Self {
        Self {
            steps: Vec::new(),
            refused: Some(Finding::new(reason, message)),
        }
    }
}

/// The stages of a cluster that is wanted, each looked at whatever the others say: conditions speak of all of them.
struct Stages {
    members: members::Members,
    topics: Stage,
    postgres: Stage,
    outlook: assignment::Outlook,
    objects: Stage,
    leftovers: Stage,
}

impl Stages {
    fn of(target: &Target, world: &World, members: members::Members, node_image: &str) -> Self {
        let ids = members.ids();
        Self {
            topics: topics::stage(target, world),
            postgres: postgres::stage(target, world, &ids),
            outlook: assignment::look(target, world, &members),
            objects: objects::stage(target, world, &ids, node_image),
            leftovers: leftovers::stage(target, world),
            members,
        }
    }

    /// Up to the members: what has to stand before anything is started.
    fn groundwork(&self) -> [&Stage; 3] {
        [&self.topics, &self.postgres, &self.outlook.membership]
    }
}

/// The plan for `target` in `world`. `node_image` is what the nodes run when the spec names no image.
pub fn plan(target: &Target, world: &World, node_image: &str) -> Plan {
    if target.deleting_since.is_some() && !seeded::on(Bug::WorksOnDeleted) {
        return delete::plan(target, world);
    }
    let looked = Looked {
        target,
        world,
        node_image,
        serving: serving::look(target, world, &assignment::existing(target, world)),
    };
    let wanted = looked.stages(members::wanted(target, world));
    let (all, refused) = looked.steps(&wanted);
    let held = assignment::newest(world)
        .filter(|_| target.spec.rebalance.mode == RebalanceMode::Plan)
        .map(|published| looked.held(&wanted, published));
    let (mut steps, refused) = held.unwrap_or_else(|| (all.clone(), refused));
    if target.spec.paused {
        steps.clear();
    }
    let given = if target.spec.paused { &all } else { &steps };
    let serving = &looked.serving;
    Plan {
        conditions: conditions::verdicts(target, world, &wanted, given, refused.as_ref(), serving),
        withheld: all
            .into_iter()
            .filter(|step| !steps.contains(step))
            .collect(),
        steps,
        later: wanted.outlook.lines(),
        nodes: serving.existing,
        ready_nodes: serving.ready,
        assignment_version: assignment::version(world),
        moves: wanted.outlook.moves,
    }
}

/// What a plan is made from.
struct Looked<'a> {
    target: &'a Target,
    world: &'a World,
    node_image: &'a str,
    serving: serving::Serving,
}

impl Looked<'_> {
    fn stages(&self, members: members::Members) -> Stages {
        Stages::of(self.target, self.world, members, self.node_image)
    }

    /// The steps in order, and what keeps back the rest.
    fn steps(&self, stages: &Stages) -> (Vec<Step>, Option<Finding>) {
        let (target, world) = (self.target, self.world);
        let mut steps = metadata_steps(target, world);
        let mut refused = None;
        for stage in stages.groundwork() {
            steps.extend(stage.steps.iter().cloned());
            if stage.refused.is_some() {
                refused.clone_from(&stage.refused);
                break;
            }
        }
        if assignment::is_of_another_log(target, world) {
            return (steps, refused);
        }
        // The nodes that there are do not wait for those that cannot come.
        let fallback = refused.is_some().then(|| match assignment::newest(world) {
            Some(published) => self.stages(members::Members::published(published)),
            None => self.stages(members::Members::default()),
        });
        let stages = fallback.as_ref().unwrap_or(stages);
        let objects = match assignment::newest(world) {
            None if refused.is_some() => {
                let ids = assignment::with_stateful_set(world);
                if ids.is_empty() {
                    return (steps, refused);
                }
                objects::stage(target, world, &ids, self.node_image)
            }
            _ => stages.objects.clone(),
        };
        let later = [
            objects,
            restart::remedies(target, world, &self.serving),
            stages.outlook.progress.clone(),
            stages.leftovers.clone(),
            restart::stage(world, &self.serving),
            trim::stage(world),
        ];
        for stage in later {
            steps.extend(stage.steps);
            refused = refused.or(stage.refused);
        }
        (steps, refused)
    }

    /// The steps that are taken although the plan is only to be shown: those that change neither members nor replicas.
    fn held(&self, wanted: &Stages, published: &Assignment) -> (Vec<Step>, Option<Finding>) {
        let mut stages = self.stages(members::Members::published(published));
        stages.outlook.membership.steps.clear();
        stages.outlook.progress.steps.clear();
        let (steps, refused) = self.steps(&stages);
        let waits = || {
            let message = "spec.rebalance.mode is Plan and status.plan waits; set it to Apply to have it done";
            (!wanted.outlook.is_reached()).then(|| Finding::new("PlanWaits", message))
        };
        (steps, refused.or_else(waits))
    }
}

/// The finalizer stands before anything is made outside of Kubernetes; the log id before the first topic.
fn metadata_steps(target: &Target, world: &World) -> Vec<Step> {
    use kvcluster_crds::v1alpha1::DeletionPolicy;
    let mut steps = Vec::new();
    if world.objects.is_some() {
        match (target.spec.deletion_policy, target.finalizer) {
            (DeletionPolicy::Delete, false) => steps.push(Step::AddFinalizer),
            (DeletionPolicy::Retain, true) => {
                steps.push(Step::RemoveFinalizer { left: Vec::new() });
            }
            (DeletionPolicy::Delete, true) | (DeletionPolicy::Retain, false) => {}
        }
    }
    if target.log_id.is_none() {
        let published = assignment::newest(world).map(|assignment| assignment.log_id);
        steps.push(Step::PinLogId { log_id: published });
    }
    steps
}

#[cfg(test)]
pub(crate) mod tests;
