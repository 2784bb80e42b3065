//! What to do next, and what to say: a pure function of what is wanted and what was seen.
//!
//! ```text
//! finalizer → log id → topics → Secrets → roles and schemas → assignment → Services, budget, StatefulSets
//! ```
//!
//! A stage that is refused (Kafka away, a schema of another owner) ends the plan there, with a finding that names the remedy;
//! what was planned before it is still done. Only the first step of a plan is executed before the world is looked at again,
//! so a crash between any two steps loses nothing. The plan of a world that is as wanted is empty.

use std::fmt;

use kvcluster_crds::NodeId;
use kvcluster_crds::v1alpha1::condition;

use crate::cluster::Target;
use crate::observe::World;

mod assignment;
mod conditions;
mod delete;
mod objects;
mod postgres;
mod restart;
mod serving;
mod step;
mod topics;

pub use conditions::{Truth, Verdict};
pub use objects::{ANNOTATION_APPLIED, Object};
pub use step::{RoleStep, Step};

/// What to do and what to say.
#[derive(Clone, Debug)]
pub struct Plan {
    /// In this order; the first one is executed.
    pub steps: Vec<Step>,
    /// Steps that would be taken if the cluster were not paused.
    pub withheld: Vec<Step>,
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
    nodes: Vec<NodeId>,
    topics: Stage,
    postgres: Stage,
    assignment: Stage,
    objects: Stage,
}

/// The plan for `target` in `world`. `node_image` is what the nodes run when the spec names no image.
pub fn plan(target: &Target, world: &World, node_image: &str) -> Plan {
    if target.deleting_since.is_some() {
        return delete::plan(target, world);
    }
    let nodes = assignment::nodes(target, world);
    let stages = Stages {
        topics: topics::stage(target, world),
        postgres: postgres::stage(target, world, &nodes),
        assignment: assignment::stage(target, world, &nodes),
        objects: objects::stage(target, world, &nodes, node_image),
        nodes,
    };
    let serving = serving::look(target, world, &stages.nodes);
    let restart = restart::stage(world, &serving);
    let mut steps = metadata_steps(target, world);
    let mut refused = None;
    for stage in [
        &stages.topics,
        &stages.postgres,
        &stages.assignment,
        &stages.objects,
        &restart,
    ] {
        steps.extend(stage.steps.iter().cloned());
        if stage.refused.is_some() {
            refused = stage.refused.as_ref();
            break;
        }
    }
    let conditions = conditions::verdicts(target, world, &stages, &steps, refused, &serving);
    let (steps, withheld) = if target.spec.paused {
        (Vec::new(), steps)
    } else {
        (steps, Vec::new())
    };
    Plan {
        steps,
        withheld,
        conditions,
        nodes: serving.existing,
        ready_nodes: serving.ready,
        assignment_version: assignment::version(world),
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
mod tests;
