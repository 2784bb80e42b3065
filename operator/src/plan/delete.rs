//! The end of a cluster with `deletionPolicy: Delete`: nodes gone → topics gone, seen twice → schemas and roles gone →
//! finalizer off. What is not marked as this cluster's is never touched. After `deletion.giveUpSeconds` the finalizer goes
//! whatever is left, named: a namespace must not hang on a Kafka that is not coming back.
//!
//! A paused cluster is deleted too, for the same reason.

use jiff::SignedDuration;
use kvcluster_crds::v1alpha1::{DeletionPolicy, condition};

use super::{Finding, Plan, RoleStep, Stage, Step, Truth, Verdict};
use crate::clients::postgres::PostgresTrouble;
use crate::cluster::Target;
use crate::observe::{PostgresView, World};
use crate::seeded::{self, Bug};

/// Passes in a row that must see no topic.
const ABSENT_PASSES: u32 = 2;

pub(super) fn plan(target: &Target, world: &World) -> Plan {
    let (stage, left) = if target.finalizer {
        work(target, world)
    } else {
        Default::default()
    };
    let message = match (stage.steps.first(), &stage.refused) {
        (Some(step), _) => format!("being deleted; next: {step}"),
        (None, Some(finding)) => format!("being deleted; waiting: {}", finding.message),
        (None, None) => "being deleted".to_owned(),
    };
    let reason = stage
        .refused
        .as_ref()
        .map_or("Deleting", |finding| finding.reason);
    let verdict = |kind, truth| Verdict::new(kind, truth, "Deleting", message.clone());
    Plan {
        conditions: vec![
            verdict(condition::READY, Truth::False),
            verdict(condition::AVAILABLE, Truth::False),
            Verdict::new(condition::PROGRESSING, Truth::True, reason, message.clone()),
            left_behind(&left),
        ],
        steps: stage.steps,
        withheld: Vec::new(),
        later: Vec::new(),
        moves: Vec::new(),
        nodes: objects_left(world).len(),
        ready_nodes: 0,
        assignment_version: super::assignment::version(world),
    }
}

fn left_behind(left: &[String]) -> Verdict {
    if left.is_empty() {
        return Verdict::new(
            condition::DEGRADED,
            Truth::False,
            "NothingLeft",
            "nothing is left behind",
        );
    }
    let message = format!("will be left behind: {}", left.join(", "));
    Verdict::new(condition::DEGRADED, Truth::True, "LeftBehind", message)
}

/// The next step, and what is known to be out of reach.
fn work(target: &Target, world: &World) -> (Stage, Vec<String>) {
    let retain = target.spec.deletion_policy == DeletionPolicy::Retain;
    if retain && !seeded::on(Bug::FinalizerMeansDelete) || seeded::on(Bug::FinalizerFirst) {
        return (one(Step::RemoveFinalizer { left: Vec::new() }), Vec::new());
    }
    let stages: [(Stage, Vec<String>); 3] =
        [nodes(world), topics(target, world), schemas(target, world)];
    let left: Vec<String> = stages
        .iter()
        .flat_map(|(_, left)| left.iter().cloned())
        .collect();
    if is_over(target, world) {
        return (one(Step::RemoveFinalizer { left: left.clone() }), left);
    }
    for (stage, _) in stages {
        if !stage.steps.is_empty() || stage.refused.is_some() {
            // Out of reach for now only: what is left is known when the time is up.
            return (stage, Vec::new());
        }
    }
    (one(Step::RemoveFinalizer { left: left.clone() }), left)
}

fn one(step: Step) -> Stage {
    Stage {
        steps: vec![step],
        refused: None,
    }
}

fn is_over(target: &Target, world: &World) -> bool {
    let limit = SignedDuration::from_secs(target.spec.deletion.give_up_seconds.into());
    target
        .deleting_since
        .is_some_and(|since| world.now.duration_since(since) >= limit)
        && !seeded::on(Bug::FinalizerNever)
}

fn objects_left(world: &World) -> Vec<String> {
    match &world.objects {
        Some(Ok(objects)) => objects.stateful_sets.keys().cloned().collect(),
        Some(Err(_)) | None => Vec::new(),
    }
}

/// StatefulSets go with their pods: each stands until its pod is gone.
fn nodes(world: &World) -> (Stage, Vec<String>) {
    let objects = match &world.objects {
        Some(Ok(objects)) => objects,
        Some(Err(trouble)) => {
            return (Stage::refuse("ObjectsUnreadable", trouble), Vec::new());
        }
        None => return Default::default(),
    };
    let going =
        |set: &k8s_openapi::api::apps::v1::StatefulSet| set.metadata.deletion_timestamp.is_some();
    let left: Vec<String> = objects
        .stateful_sets
        .keys()
        .map(|n| format!("StatefulSet {n}"))
        .collect();
    let steps: Vec<Step> = objects
        .stateful_sets
        .iter()
        .filter(|(_, set)| !going(set))
        .map(|(name, set)| Step::DeleteStatefulSet {
            name: name.clone(),
            uid: set.metadata.uid.clone().unwrap_or_default(),
        })
        .collect();
    if steps.is_empty() && !objects.stateful_sets.is_empty() {
        return (
            Stage::refuse("WaitingForNodes", "the nodes are stopping"),
            left,
        );
    }
    (
        Stage {
            steps,
            refused: None,
        },
        left,
    )
}

/// The assignment topic goes last: it is the proof that the others are this cluster's.
fn topics(target: &Target, world: &World) -> (Stage, Vec<String>) {
    let view = match &world.kafka {
        Ok(view) => view,
        Err(trouble) => {
            let names = crate::build::topics::topics(target).into_iter();
            let left = names.map(|topic| format!("topic {}", topic.name)).collect();
            return (Stage::refuse(super::topics::reason(trouble), trouble), left);
        }
    };
    let own = super::topics::own_topics(target, view);
    let left = own.iter().map(|name| format!("topic {name}")).collect();
    let proof = target.names.assignment_topic();
    let first: Vec<String> = own.iter().filter(|name| **name != proof).cloned().collect();
    let stage = if !first.is_empty() {
        one(Step::DeleteTopics(first))
    } else if !own.is_empty() {
        one(Step::DeleteTopics(own))
    } else if world.topics_absent_passes < ABSENT_PASSES {
        one(Step::NoteTopicsAbsent)
    } else {
        Stage::default()
    };
    (stage, left)
}

fn schemas(target: &Target, world: &World) -> (Stage, Vec<String>) {
    let mut stage = Stage::default();
    let mut left = Vec::new();
    for (instance, view) in &world.postgres {
        match view {
            Ok(view) => {
                let steps = drops(target, instance, view);
                left.extend(
                    steps
                        .iter()
                        .map(|step| format!("schema {} on {instance}", step.role)),
                );
                stage.steps.extend(steps.into_iter().map(Step::DropRole));
            }
            Err(trouble) => {
                let nodes = super::assignment::nodes(target, world).into_iter();
                let here =
                    nodes.filter(|&n| super::postgres::instance(target, world, n) == *instance);
                left.extend(
                    here.map(|node| format!("schema {} on {instance}", target.schema(node))),
                );
                // Without credentials waiting helps nobody.
                if !matches!(trouble, PostgresTrouble::SecretMissing { .. }) {
                    let reason = super::postgres::reason(trouble);
                    let message = format!("instance {instance}: {trouble}");
                    stage.refused = Some(Finding::new(reason, message));
                }
            }
        }
    }
    (stage, left)
}

/// All that is marked as this cluster's, whatever the spec says now.
pub(super) fn drops(target: &Target, instance: &str, view: &PostgresView) -> Vec<RoleStep> {
    let prefix = target.owner_comment_prefix();
    let schemas = view
        .schemas
        .iter()
        .map(|(name, schema)| (name, &schema.comment));
    let roles = view.roles.iter().map(|(name, role)| (name, &role.comment));
    let marked = schemas.chain(roles).filter_map(|(name, comment)| {
        let comment = comment
            .as_ref()
            .filter(|comment| comment.starts_with(&prefix))?;
        Some((name.clone(), comment.clone()))
    });
    let marked: std::collections::BTreeMap<String, String> = marked.collect();
    let steps = marked.into_iter().map(|(role, comment)| RoleStep {
        instance: instance.to_owned(),
        admin: view.admin.clone(),
        role,
        comment,
        password: None,
    });
    steps.collect()
}
