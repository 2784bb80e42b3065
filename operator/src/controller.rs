//! The loop: each pass reads one `KvCluster` anew, looks at the world, writes the status if it changed, executes the first
//! step of the plan and asks to be called again. Nothing waits inside a pass; what takes time is looked at again later.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::core::DeserializeGuard;
use kube::runtime::controller::{Action, Config, Controller, Error as LoopError};
use kube::runtime::reflector::ObjectRef;
use kube::runtime::watcher;
use kube::{Api, Client, ResourceExt};
use kvcluster_crds::names::{LABEL_CLUSTER, MANAGED_BY};
use kvcluster_crds::v1alpha1::KvCluster;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};
use xxhash_rust::xxh3::xxh3_64;

use crate::cluster::TargetError;
use crate::execute::ExecuteError;
use crate::metrics::Metrics;
use crate::observe::KubernetesTrouble;

mod events;
#[cfg(test)]
pub(crate) mod harness;
mod hosts;
mod memory;
mod pass;

pub use memory::Memory;
pub use pass::Context;

/// Passes at the same time, over different clusters.
const CONCURRENCY: u16 = 8;
/// To the next look at a cluster that is as wanted; events come at once, this is for Kafka and PostgreSQL.
const CONVERGED_PAUSE: Duration = Duration::from_mins(1);
/// Up to this much is added, so that many clusters do not ask at once.
const CONVERGED_JITTER_MS: u64 = 15_000;
/// To the next look while something starts, stops or is out of reach: a trouble stands in the status within 15 s.
const WAITING_PAUSE: Duration = Duration::from_secs(2);
/// To the next look while replicas are on their way: each of their steps waits for what the nodes report.
const MOVING_PAUSE: Duration = Duration::from_millis(500);
/// After the first error; doubles with each further one.
const ERROR_PAUSE: Duration = Duration::from_millis(500);
/// At most between two attempts.
const ERROR_PAUSE_MAX: Duration = Duration::from_secs(15);

/// Why a pass failed.
#[derive(Debug, thiserror::Error)]
pub enum PassError {
    /// The `KvCluster` cannot be decoded; it is looked at again when it changes.
    #[error("the KvCluster does not decode: {0}")]
    Undecodable(String),
    /// The `KvCluster` contradicts its own schema.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// The API server could not be asked.
    #[error(transparent)]
    Kubernetes(#[from] KubernetesTrouble),
    /// The status could not be written.
    #[error("failed to write the status: {0}")]
    Status(#[source] ExecuteError),
    /// A step failed.
    #[error("failed to {step}: {source}")]
    Step {
        /// The step in words.
        step: String,
        /// Why.
        source: ExecuteError,
    },
}

impl PassError {
    /// For metrics.
    fn label(&self) -> &'static str {
        match self {
            Self::Undecodable(_) => "undecodable",
            Self::Target(_) => "invalid",
            Self::Kubernetes(_) => "api_server",
            Self::Status(_) => "status_failed",
            Self::Step { .. } => "step_failed",
        }
    }
}

/// Runs until `stop`: over the clusters of `namespace`, or of all namespaces. `reads_hosts`: whether Kubernetes nodes may be watched.
pub async fn run(
    client: Client,
    namespace: Option<String>,
    reads_hosts: bool,
    context: Arc<Context>,
    stop: CancellationToken,
) {
    let ours =
        watcher::Config::default().labels(&format!("app.kubernetes.io/managed-by={MANAGED_BY}"));
    let clusters: Api<DeserializeGuard<KvCluster>> = api(&client, namespace.as_deref());
    let loop_config = Config::default().concurrency(CONCURRENCY);
    let mut controller = Controller::new(clusters, watcher::Config::default().any_semantic());
    if reads_hosts {
        // A drain follows its cordon at once: the next look comes too late.
        let hosts = hosts::Hosts::new(namespace.clone());
        let shared = Arc::clone(&context);
        let nodes: Api<Node> = Api::all(client.clone());
        controller = controller.watches(nodes, watcher::Config::default(), move |node| {
            let concerned = hosts.concerned(&shared.memory, &node).into_iter();
            concerned.map(|(namespace, name)| ObjectRef::new(&name).within(&namespace))
        });
    }
    controller
        .owns(
            api::<StatefulSet>(&client, namespace.as_deref()),
            ours.clone(),
        )
        .owns(api::<Service>(&client, namespace.as_deref()), ours.clone())
        .owns(
            api::<PodDisruptionBudget>(&client, namespace.as_deref()),
            ours.clone(),
        )
        .watches(api::<Pod>(&client, namespace.as_deref()), ours, |pod| {
            cluster_of_pod(&pod)
        })
        .with_config(loop_config)
        .graceful_shutdown_on(stop.cancelled_owned())
        .run(
            reconcile,
            |guard, error, context| error_policy(&guard, error, &context),
            context,
        )
        .for_each(|outcome| {
            report(&outcome);
            futures::future::ready(())
        })
        .await;
}

fn api<K>(client: &Client, namespace: Option<&str>) -> Api<K>
where
    K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope>,
    K::DynamicType: Default,
{
    match namespace {
        Some(namespace) => Api::namespaced(client.clone(), namespace),
        None => Api::all(client.clone()),
    }
}

fn cluster_of_pod(pod: &Pod) -> Option<ObjectRef<DeserializeGuard<KvCluster>>> {
    let cluster = pod.labels().get(LABEL_CLUSTER)?;
    let namespace = pod.namespace()?;
    Some(ObjectRef::new(cluster).within(&namespace))
}

fn report<K: kube::runtime::reflector::Lookup>(
    outcome: &Result<(ObjectRef<K>, Action), LoopError<PassError, watcher::Error>>,
) where
    ObjectRef<K>: std::fmt::Display,
{
    match outcome {
        Ok((cluster, action)) => debug!(%cluster, ?action, "pass ended"),
        // Logged by the error policy, with the cluster.
        Err(LoopError::ReconcilerFailed(..)) => {}
        // It was deleted while it waited for its turn.
        Err(LoopError::ObjectNotFound(cluster)) => debug!(%cluster, "is gone"),
        Err(error) => warn!(%error, "a watch failed and is started again"),
    }
}

async fn reconcile(
    guard: Arc<DeserializeGuard<KvCluster>>,
    context: Arc<Context>,
) -> Result<Action, PassError> {
    let started = Instant::now();
    let done = match &guard.0 {
        Ok(cluster) => Box::pin(pass::pass(&context, cluster)).await,
        Err(error) => Err(PassError::Undecodable(error.error.clone())),
    };
    let outcome = done
        .as_ref()
        .map_or_else(PassError::label, |outcome| outcome.label());
    context.metrics.pass(outcome, started.elapsed());
    let outcome = done?;
    Ok(match outcome {
        pass::Outcome::Stepped => Action::requeue(Duration::ZERO),
        pass::Outcome::Waiting => Action::requeue(WAITING_PAUSE),
        pass::Outcome::Moving => Action::requeue(MOVING_PAUSE),
        pass::Outcome::Gone => Action::await_change(),
        pass::Outcome::Ready => Action::requeue(CONVERGED_PAUSE + jitter(&guard.name_any())),
    })
}

/// Differs from cluster to cluster and not from time to time.
fn jitter(name: &str) -> Duration {
    Duration::from_millis(xxh3_64(name.as_bytes()) % CONVERGED_JITTER_MS)
}

fn error_policy(
    guard: &DeserializeGuard<KvCluster>,
    error: &PassError,
    context: &Context,
) -> Action {
    let cluster = guard.name_any();
    let namespace = guard.namespace().unwrap_or_default();
    match error {
        PassError::Undecodable(_) | PassError::Target(_) => {
            warn!(%namespace, %cluster, %error, "waiting until the KvCluster is changed");
            Action::await_change()
        }
        // Somebody wrote meanwhile: the next pass sees it.
        PassError::Status(ExecuteError::Kubernetes(KubernetesTrouble::Conflict { .. }))
        | PassError::Step {
            source: ExecuteError::Kubernetes(KubernetesTrouble::Conflict { .. }),
            ..
        } => Action::requeue(ERROR_PAUSE),
        PassError::Kubernetes(_) | PassError::Status(_) | PassError::Step { .. } => {
            let failures = context.memory.failures(&namespace, &cluster);
            let pause = back_off(failures);
            let pause_ms = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX);
            warn!(%namespace, %cluster, %error, failures, pause_ms, "pass failed");
            Action::requeue(pause)
        }
    }
}

/// Doubles from [`ERROR_PAUSE`] to [`ERROR_PAUSE_MAX`].
fn back_off(failures: u32) -> Duration {
    let doublings = failures.saturating_sub(1).min(16);
    ERROR_PAUSE
        .saturating_mul(1 << doublings)
        .min(ERROR_PAUSE_MAX)
}

/// Says once that the operator works here.
pub fn announce(namespace: Option<&str>, metrics: &Metrics) {
    metrics.lead();
    info!(
        namespace = namespace.unwrap_or("(all)"),
        "watching KvClusters"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn back_off_doubles_up_to_its_limit() {
        let pauses: Vec<u128> = (1..9)
            .map(|failures| back_off(failures).as_millis())
            .collect();
        assert_eq!(pauses, [500, 1000, 2000, 4000, 8000, 15000, 15000, 15000]);
        assert_eq!(back_off(u32::MAX), ERROR_PAUSE_MAX);
    }
}
