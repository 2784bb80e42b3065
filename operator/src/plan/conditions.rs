//! The conditions: adjectives that are true or not, each with a reason for programs and a message that says what to do.

use kvcluster_crds::v1alpha1::condition;

use super::serving::{Serving, list};
use super::{Finding, Stage, Stages, Step, assignment};
use crate::cluster::Target;
use crate::observe::World;
use crate::seeded::{self, Bug};

/// Whether a condition holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Truth {
    /// It holds.
    True,
    /// It does not.
    False,
    /// It cannot be told now.
    Unknown,
}

impl Truth {
    /// As it stands in the status.
    pub fn text(self) -> &'static str {
        match self {
            Self::True => "True",
            Self::False => "False",
            Self::Unknown => "Unknown",
        }
    }
}

/// One condition. Messages hold no times and no counters, so that a status is written only when something changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Its type.
    pub kind: &'static str,
    /// Whether it holds.
    pub truth: Truth,
    /// In CamelCase.
    pub reason: &'static str,
    /// For people.
    pub message: String,
}

impl Verdict {
    pub(super) fn new(
        kind: &'static str,
        truth: Truth,
        reason: &'static str,
        message: impl Into<String>,
    ) -> Self {
        Self {
            kind,
            truth,
            reason,
            message: message.into(),
        }
    }

    fn found(kind: &'static str, truth: Truth, finding: Finding) -> Self {
        Self::new(kind, truth, finding.reason, finding.message)
    }
}

pub(super) fn verdicts(
    target: &Target,
    world: &World,
    stages: &Stages,
    steps: &[Step],
    refused: Option<&Finding>,
    serving: &Serving,
) -> Vec<Verdict> {
    let mut verdicts = vec![
        ready(target, world, stages, steps, refused, serving),
        available(world, serving),
        progressing(target, world, stages, steps, refused, serving),
        degraded(world, refused, serving),
        of_stage(
            condition::KAFKA_READY,
            &stages.topics,
            "TopicsPending",
            "TopicsAsSpecified",
        ),
        of_stage(
            condition::POSTGRES_READY,
            &stages.postgres,
            "RolesPending",
            "SchemasAsSpecified",
        ),
        balanced(world, stages),
        sharing(target, stages),
    ];
    verdicts.extend(replacement(target, stages));
    verdicts.extend(super::drain::verdict(target, world, stages, serving));
    verdicts.extend(blindness(world));
    verdicts
}

/// Replicas on the way to their places, if that is all that is left.
fn moving(stages: &Stages) -> Option<Finding> {
    let outlook = &stages.outlook;
    if outlook.is_reached() {
        return None;
    }
    let message = match (outlook.moves.len(), outlook.leaderships.len()) {
        (0, slots) => format!("the leadership of {slots} slots is handed over"),
        (moves, _) => format!("{moves} replicas are on their way to other nodes"),
    };
    Some(Finding::new("Moving", message))
}

fn sharing(target: &Target, stages: &Stages) -> Verdict {
    let kind = condition::REPLICAS_SHARE_INSTANCE;
    let slots = &stages.outlook.sharing;
    if slots.is_empty() {
        let message = "every slot's replicas stand on different PostgreSQL instances";
        return Verdict::new(kind, Truth::False, "DistinctInstances", message);
    }
    let message = format!(
        "{} slots have replicas that share a PostgreSQL instance; spec.postgres.instances names {} for {} replicas of each slot",
        slots.len(),
        target.spec.postgres.instances.len(),
        target.shape.replication
    );
    Verdict::new(kind, Truth::True, "TooFewInstances", message)
}

fn replacement(target: &Target, stages: &Stages) -> Option<Verdict> {
    let kind = condition::REPLACEMENT_ACCEPTED;
    let name = target.replace.as_ref()?;
    Some(match &stages.members.refused {
        Some(finding) => Verdict::found(kind, Truth::False, finding.clone()),
        None => Verdict::new(
            kind,
            Truth::True,
            "Replaced",
            format!("node {name} is replaced, or gone already"),
        ),
    })
}

/// What the operator cannot do because it may not look at the Kubernetes nodes.
fn blindness(world: &World) -> Option<Verdict> {
    let objects = world.objects.as_ref()?.as_ref().ok()?;
    objects.hosts_forbidden.then(|| {
        Verdict::new(
            condition::KUBERNETES_NODES_READABLE,
            Truth::False,
            "Forbidden",
            "the operator may not read Kubernetes nodes: it knows of no zones, gives no node another place when its Kubernetes node is \
             lost, and hands no leadership over before a drain; install its chart with nodeReader=true",
        )
    })
}

fn of_stage(
    kind: &'static str,
    stage: &Stage,
    pending: &'static str,
    done: &'static str,
) -> Verdict {
    match (&stage.refused, stage.steps.first()) {
        (Some(finding), _) => Verdict::found(kind, Truth::False, finding.clone()),
        (None, Some(step)) => Verdict::new(kind, Truth::False, pending, format!("next: {step}")),
        (None, None) => Verdict::new(kind, Truth::True, done, "all is as the spec says"),
    }
}

fn balanced(world: &World, stages: &Stages) -> Verdict {
    let kind = condition::RING_BALANCED;
    if let Err(trouble) = &world.kafka {
        let reason = super::topics::reason(trouble);
        return Verdict::new(
            kind,
            Truth::Unknown,
            reason,
            "the published assignment cannot be read",
        );
    }
    if let Some(finding) = &stages.outlook.membership.refused {
        return Verdict::found(kind, Truth::False, finding.clone());
    }
    match assignment::version(world) {
        None => Verdict::new(
            kind,
            Truth::False,
            "NotPublished",
            "no assignment is published yet",
        ),
        Some(_) if !stages.outlook.membership.steps.is_empty() => {
            Verdict::new(kind, Truth::False, "MembersChange", "nodes join or leave")
        }
        Some(_) => match moving(stages) {
            Some(finding) => Verdict::found(kind, Truth::False, finding),
            None => Verdict::new(
                kind,
                Truth::True,
                "AsProposed",
                "the published assignment is the one that the ring proposes",
            ),
        },
    }
}

fn available(world: &World, serving: &Serving) -> Verdict {
    let kind = condition::AVAILABLE;
    if serving.existing == 0 {
        return Verdict::new(kind, Truth::False, "NoNodes", "no node exists yet");
    }
    if serving.leaderless.is_empty() {
        return Verdict::new(kind, Truth::True, "EverySlotLed", "every slot has a leader");
    }
    let slots = list(&serving.leaderless);
    let message = match &world.kafka {
        Err(_) => format!("slots {slots} have no leader; leaders are elected once Kafka is back"),
        Ok(_) => format!("slots {slots} have no leader"),
    };
    Verdict::new(kind, Truth::False, "SlotsWithoutLeader", message)
}

fn progressing(
    target: &Target,
    world: &World,
    stages: &Stages,
    steps: &[Step],
    refused: Option<&Finding>,
    serving: &Serving,
) -> Verdict {
    let kind = condition::PROGRESSING;
    if target.spec.paused {
        let message = match steps.first() {
            None => "spec.paused is true; nothing waits".to_owned(),
            Some(step) => format!("spec.paused is true; waiting: {step}"),
        };
        return Verdict::new(kind, Truth::False, "Paused", message);
    }
    if let Some(failure) = &world.failure {
        let message = format!("failed to {}: {}", failure.step, failure.message);
        return Verdict::new(kind, Truth::False, failure.reason, message);
    }
    if let Some(step) = steps.first() {
        return Verdict::new(kind, Truth::True, step.kind(), step.to_string());
    }
    if let Some(finding) = refused {
        return Verdict::found(kind, Truth::False, finding.clone());
    }
    match unserved(serving).or_else(|| moving(stages)) {
        Some(finding) => Verdict::found(kind, Truth::True, finding),
        None => Verdict::new(kind, Truth::False, "Converged", "nothing is left to do"),
    }
}

fn degraded(world: &World, refused: Option<&Finding>, serving: &Serving) -> Verdict {
    let kind = condition::DEGRADED;
    if let Some(frozen) = serving.frozen.first() {
        let message = format!(
            "{frozen}; {} replicas stand still and do not go on by themselves",
            serving.frozen.len()
        );
        return Verdict::new(kind, Truth::True, "ReplicaFrozen", message);
    }
    if let Some(node) = serving.down.first() {
        let why = serving.unready.get(node).cloned().unwrap_or_default();
        let message = format!("{} nodes are down; node {node}: {why}", serving.down.len());
        return Verdict::new(kind, Truth::True, "NodesDown", message);
    }
    if let Some(node) = serving.unwritten.first() {
        let message = format!(
            "{} nodes cannot write to PostgreSQL; node {node}: what is new is in the log and in its memory, and its own log says why",
            serving.unwritten.len()
        );
        return Verdict::new(kind, Truth::True, "StateNotWritten", message);
    }
    match refused.filter(|finding| serving.existing > 0 && !finding.is_waiting()) {
        Some(finding) => Verdict::found(kind, Truth::True, finding.clone()),
        None => match &world.failure {
            Some(failure) => {
                Verdict::new(kind, Truth::True, failure.reason, failure.message.clone())
            }
            None => Verdict::new(kind, Truth::False, "NothingLost", "nothing needs repair"),
        },
    }
}

fn ready(
    target: &Target,
    world: &World,
    stages: &Stages,
    steps: &[Step],
    refused: Option<&Finding>,
    serving: &Serving,
) -> Verdict {
    let kind = condition::READY;
    if let Some(finding) = refused {
        return Verdict::found(kind, Truth::False, finding.clone());
    }
    if let Some(step) = steps.first() {
        if target.spec.paused {
            let message = format!("spec.paused is true and steps wait, first: {step}");
            return Verdict::new(kind, Truth::False, "Paused", message);
        }
        return match &world.failure {
            Some(failure) => {
                let message = format!("failed to {}: {}", failure.step, failure.message);
                Verdict::new(kind, Truth::False, failure.reason, message)
            }
            None => Verdict::new(kind, Truth::False, "Progressing", format!("next: {step}")),
        };
    }
    let unserved = unserved(serving).filter(|_| !seeded::on(Bug::ReadyUnserved));
    match unserved.or_else(|| moving(stages)) {
        Some(finding) => Verdict::found(kind, Truth::False, finding),
        None => Verdict::new(
            kind,
            Truth::True,
            "Serving",
            "all nodes follow the newest assignment and every slot has one leader",
        ),
    }
}

/// What keeps the nodes from serving everything.
fn unserved(serving: &Serving) -> Option<Finding> {
    if serving.existing == 0 {
        return Some(Finding::new("NoNodes", "no node exists"));
    }
    if let Some((node, why)) = serving.unready.first_key_value() {
        let message = format!(
            "{} nodes are not ready; node {node}: {why}",
            serving.unready.len()
        );
        return Some(Finding::new("NodesNotReady", message));
    }
    if let Some(frozen) = serving.frozen.first() {
        return Some(Finding::new("ReplicaFrozen", frozen));
    }
    if let Some(node) = serving.settling.first() {
        let message = format!("Kubernetes has not looked at the StatefulSet of node {node} yet");
        return Some(Finding::new("StatefulSetPending", message));
    }
    if !serving.leaderless.is_empty() {
        let message = format!("slots {} have no leader yet", list(&serving.leaderless));
        return Some(Finding::new("SlotsWithoutLeader", message));
    }
    if !serving.contested.is_empty() {
        let message = format!("slots {} are being handed over", list(&serving.contested));
        return Some(Finding::new("LeadershipChanging", message));
    }
    None
}
