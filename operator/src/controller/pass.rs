//! One pass over one `KvCluster`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::ObjectReference;
use kube::runtime::events::{EventType, Recorder};
use kube::{Api, Client, Resource, ResourceExt};
use kvcluster_crds::v1alpha1::KvCluster;
use kvcluster_crds::{LogId, NodeId};
use tracing::{info, warn};

use super::PassError;
use super::events::publish;
use super::memory::{Memory, Remembered};
use crate::clients::postgres::PostgresTrouble;
use crate::cluster::Target;
use crate::execute::{ExecuteError, kubernetes as write};
use crate::metrics::Metrics;
use crate::observe::hosts::hosts;
use crate::observe::kubernetes::{admin_url, call, node_secrets, objects, secrets_around};
use crate::observe::{
    self, AdminUrls, Failure, KafkaView, KubernetesTrouble, ObjectsView, PostgresViews, World,
};
use crate::outside::Outside;
use crate::plan::{Plan, Step, plan};
use crate::status::{readiness, status};
use crate::{scram, secret_text};

/// What all passes share.
pub struct Context {
    /// The API server.
    pub client: Client,
    /// Kafka, PostgreSQL and the nodes.
    pub outside: Box<dyn Outside>,
    /// What time it is.
    pub now: fn() -> Timestamp,
    /// Events.
    pub recorder: Recorder,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Between passes.
    pub memory: Memory,
    /// Image of nodes whose spec names none.
    pub node_image: String,
}

/// How a pass ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// A step was executed: look again at once.
    Stepped,
    /// Nothing to do now, but not everything is as wanted.
    Waiting,
    /// Nothing to do now; replicas are on their way.
    Moving,
    /// Everything is as wanted and served.
    Ready,
    /// The cluster is gone, or going without us.
    Gone,
}

impl Outcome {
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Stepped => "stepped",
            Self::Waiting => "waiting",
            Self::Moving => "moving",
            Self::Ready => "ready",
            Self::Gone => "gone",
        }
    }
}

/// The cluster as the API server has it now; the watch's copy may lack what the last pass wrote.
struct Current {
    cluster: KvCluster,
    target: Target,
    reference: ObjectReference,
}

pub(super) async fn pass(context: &Context, cached: &KvCluster) -> Result<Outcome, PassError> {
    let (name, namespace) = (cached.name_any(), cached.namespace().unwrap_or_default());
    let clusters: Api<KvCluster> = Api::namespaced(context.client.clone(), &namespace);
    let Some(cluster) = call("read the KvCluster", clusters.get_opt(&name)).await? else {
        context.memory.forget(&namespace, &name);
        return Ok(Outcome::Gone);
    };
    let target = Target::of(&cluster)?;
    if target.deleting_since.is_some() && !target.finalizer {
        return Ok(Outcome::Gone);
    }
    let reference = cluster.object_ref(&());
    let current = Current {
        cluster,
        target,
        reference,
    };
    let remembered = context
        .memory
        .recall(&namespace, &name, &current.target.uid);
    let world = Box::pin(look(context, &current.target, remembered)).await;
    let plan = plan(&current.target, &world, &context.node_image);
    let Some(step) = plan.steps.first() else {
        write_status(context, &current, &plan, world.now).await?;
        note(context, &current, |cluster| {
            cluster.failures = 0;
            cluster.failure = None;
        });
        return Ok(if plan.is_ready() {
            Outcome::Ready
        } else if plan.is_moving() {
            Outcome::Moving
        } else {
            Outcome::Waiting
        });
    };
    step_once(context, &current, &world, &plan, step).await?;
    Ok(Outcome::Stepped)
}

/// Writes the status, then executes `step`. The log id is pinned by a write of its own to the same object, so there the status
/// waits for the next pass.
async fn step_once(
    context: &Context,
    current: &Current,
    world: &World,
    plan: &Plan,
    step: &Step,
) -> Result<(), PassError> {
    let writes_cluster = matches!(
        step,
        Step::PinLogId { .. } | Step::AddFinalizer | Step::RemoveFinalizer { .. }
    );
    if !writes_cluster {
        write_status(context, current, plan, world.now).await?;
    }
    let started = Instant::now();
    let done = execute(context, current, step).await;
    let outcome = done.as_ref().map_or_else(ExecuteError::reason, |()| "done");
    context
        .metrics
        .step(step.kind(), outcome, started.elapsed());
    match done {
        Ok(()) => {
            succeed(context, current, step).await;
            Ok(())
        }
        Err(source) => Err(fail(context, current, world, step, source).await),
    }
}

async fn succeed(context: &Context, current: &Current, step: &Step) {
    note(context, current, |cluster| {
        cluster.failures = 0;
        cluster.failure = None;
        match step {
            Step::NoteTopicsAbsent => cluster.topics_absent_passes += 1,
            Step::DeleteTopics(_) => cluster.topics_absent_passes = 0,
            _ => {}
        }
    });
    let cluster = current.target.names.cluster();
    let namespace = current.target.names.namespace();
    info!(%namespace, %cluster, %step, "done");
    let (recorder, about) = (&context.recorder, &current.reference);
    match step {
        Step::NoteTopicsAbsent => {}
        Step::RemoveFinalizer { left } if !left.is_empty() => {
            let left = left.join(", ");
            warn!(%namespace, %cluster, %left, "deleted; left behind");
            let note = format!("not removed, remove it by hand: {left}");
            publish(recorder, about, EventType::Warning, "LeftBehind", &note).await;
        }
        step => {
            publish(
                recorder,
                about,
                EventType::Normal,
                step.kind(),
                &step.to_string(),
            )
            .await;
        }
    }
}

/// Puts a failure into the status and, when it is news, into an event.
async fn fail(
    context: &Context,
    current: &Current,
    world: &World,
    step: &Step,
    source: ExecuteError,
) -> PassError {
    let failed = PassError::Step {
        step: step.to_string(),
        source,
    };
    let PassError::Step { source, .. } = &failed else {
        return failed;
    };
    if matches!(
        source,
        ExecuteError::Kubernetes(KubernetesTrouble::Conflict { .. })
    ) {
        return failed;
    }
    let failure = Failure {
        step: step.to_string(),
        reason: source.reason(),
        message: source.to_string(),
    };
    let is_news = world.failure.as_ref() != Some(&failure);
    note(context, current, |cluster| {
        cluster.failure = Some(failure.clone());
    });
    if is_news {
        let about = &current.reference;
        publish(
            &context.recorder,
            about,
            EventType::Warning,
            failure.reason,
            &failed.to_string(),
        )
        .await;
    }
    failed
}

fn note(context: &Context, current: &Current, change: impl FnOnce(&mut Remembered)) {
    let names = &current.target.names;
    context
        .memory
        .note(names.namespace(), names.cluster(), change);
}

async fn write_status(
    context: &Context,
    current: &Current,
    plan: &Plan,
    now: Timestamp,
) -> Result<(), PassError> {
    let target = &current.target;
    let new = status(target, plan, now);
    if new == target.status {
        return Ok(());
    }
    write::write_status(&context.client, target, &current.cluster, &new)
        .await
        .map_err(PassError::Status)?;
    context.metrics.status_write();
    let (before, after) = (readiness(&target.status), readiness(&new));
    let changed = before.map(|(truth, reason, _)| (truth, reason))
        != after.map(|(truth, reason, _)| (truth, reason));
    if let Some((truth, reason, message)) = after.filter(|_| changed) {
        let type_ = if truth == "True" || plan.is_progressing() {
            EventType::Normal
        } else {
            EventType::Warning
        };
        publish(
            &context.recorder,
            &current.reference,
            type_,
            reason,
            message,
        )
        .await;
    }
    Ok(())
}

async fn look(context: &Context, target: &Target, mut remembered: Remembered) -> World {
    let client = &context.client;
    let now = (context.now)();
    let (mut objects, urls, kafka) = tokio::join!(
        objects(client, target),
        admin_urls(context, target, &remembered),
        context.outside.kafka(target),
    );
    if let Ok(objects) = &mut objects {
        let seen = hosts(client, &objects.pods, &remembered.gone_since, now).await;
        objects.hosts = seen.known;
        objects.hosts_forbidden = seen.forbidden;
        objects.zones = remembered.see_hosts(objects);
    }
    let existing = objects.as_ref().map(ObjectsView::nodes).unwrap_or_default();
    let others = existing.into_iter().chain(remembered.marked.clone());
    let mut nodes = observe::nodes_to_ask(target, &kafka, others);
    let secrets = match kafka.as_ref().ok().and_then(KafkaView::published) {
        Some(published) => secrets_around(client, target, &mut nodes, published.next_node()).await,
        None => node_secrets(client, target, &nodes).await,
    };
    let known = secrets.as_ref().cloned().unwrap_or_default();
    let pods = objects
        .as_ref()
        .map(|objects| objects.pods.clone())
        .unwrap_or_default();
    let (postgres, statuses) = tokio::join!(
        context.outside.postgres(target, urls, &nodes, &known),
        context.outside.ask(target, &nodes, &pods),
    );
    remembered.see_nodes(&statuses, now);
    remember(context, target, &remembered, &postgres);
    World {
        now,
        kafka,
        postgres,
        secrets,
        asked: nodes,
        objects: Some(objects),
        nodes: statuses,
        troubled_since: remembered.troubled_since,
        topics_absent_passes: remembered.topics_absent_passes,
        failure: remembered.failure,
    }
}

/// Notes what was seen for the next pass. The Secrets of nodes that have a schema or role are looked for then, members or not.
fn remember(context: &Context, target: &Target, seen: &Remembered, views: &PostgresViews) {
    let marked: BTreeSet<NodeId> = views
        .values()
        .filter_map(|view| view.as_ref().ok())
        .flat_map(|view| view.nodes(&target.owner_comment_prefix()))
        .collect();
    context.memory.note(
        target.names.namespace(),
        target.names.cluster(),
        |cluster| {
            cluster.marked = marked;
            cluster.zones.clone_from(&seen.zones);
            cluster.hosts.clone_from(&seen.hosts);
            cluster.gone_since.clone_from(&seen.gone_since);
            cluster.troubled_since.clone_from(&seen.troubled_since);
        },
    );
}

/// The admin URLs of the spec's Secrets. For a cluster that is being deleted a Secret that is gone is replaced by what was read
/// from it before.
async fn admin_urls(context: &Context, target: &Target, remembered: &Remembered) -> AdminUrls {
    let mut urls = BTreeMap::new();
    for instance in &target.spec.postgres.instances {
        let namespace = target.names.namespace();
        let mut url = admin_url(&context.client, namespace, &instance.admin_url_secret).await;
        if let (Err(PostgresTrouble::SecretMissing { .. }), true, Some(known)) = (
            &url,
            target.deleting_since.is_some(),
            remembered.admin_urls.get(&instance.name),
        ) {
            url = Ok(known.clone());
        }
        urls.insert(instance.name.clone(), url);
    }
    let read = urls
        .iter()
        .filter_map(|(name, url)| Some((name.clone(), url.as_ref().ok()?.clone())));
    let read: Vec<_> = read.collect();
    context.memory.note(
        target.names.namespace(),
        target.names.cluster(),
        |cluster| {
            cluster.admin_urls.extend(read);
        },
    );
    urls
}

async fn execute(context: &Context, current: &Current, step: &Step) -> Result<(), ExecuteError> {
    let (client, target) = (&context.client, &current.target);
    if let Some(done) = context.outside.execute(target, step).await {
        return done;
    }
    match step {
        Step::AddFinalizer => write::set_finalizer(client, target, &current.cluster, true).await,
        Step::RemoveFinalizer { .. } => {
            write::set_finalizer(client, target, &current.cluster, false).await
        }
        Step::PinLogId { log_id } => {
            let random = u64::from_be_bytes(scram::random_bytes()?);
            let log_id = log_id.unwrap_or(LogId(random));
            write::pin_log_id(client, target, &current.cluster, log_id).await
        }
        Step::WriteSecret {
            node,
            instance,
            admin,
            role,
            password,
        } => {
            let password = password.clone().map_or_else(scram::random_password, Ok)?;
            let url = secret_text::node_url(admin, role, &password)?;
            write::write_secret(client, target, *node, instance, &url).await
        }
        Step::Apply(object) => write::apply(client, target, object).await,
        Step::RestartPod { name, uid, .. } => write::delete_pod(client, target, name, uid).await,
        Step::DeleteStatefulSet { name, uid } => {
            write::delete_stateful_set(client, target, name, uid).await
        }
        Step::ForceDeletePod { name, uid, .. } => {
            write::force_delete_pod(client, target, name, uid).await
        }
        Step::DeleteSecret { name, uid, .. } => {
            write::delete_secret(client, target, name, uid).await
        }
        Step::NoteTopicsAbsent => Ok(()),
        Step::CreateTopic(_)
        | Step::RepairTopic { .. }
        | Step::EnsureRole(_)
        | Step::Publish(..)
        | Step::TrimAssignments { .. }
        | Step::DeleteTopics(_)
        | Step::DropRole(_) => unreachable!("executed as an external step above"),
    }
}
