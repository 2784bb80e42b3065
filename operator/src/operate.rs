//! Wires the operator together: API server, lease, loop, health port, signals.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, bail};
use futures::future::join_all;
use jiff::Timestamp;
use k8s_controller::LeaderElection;
use k8s_openapi::api::core::v1::Node;
use kube::api::ListParams;
use kube::runtime::events::{Recorder, Reporter};
use kube::{Api, Client, Config};
use kvcluster_crds::names::FIELD_MANAGER;
use kvcluster_crds::v1alpha1::KvCluster;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::controller::{self, Context, Memory};
use crate::metrics::Metrics;
use crate::observe::kubernetes::call;
use crate::outside::Services;
use crate::server;

/// Name of the lease.
const LEASE: &str = "kvcluster-operator";
/// Connecting to the API server.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How the operator runs.
#[derive(Debug, clap::Args)]
pub struct OperateArgs {
    /// Image of nodes whose KvCluster names none.
    #[arg(
        long,
        env = "KVCLUSTER_NODE_IMAGE",
        default_value = "kvcluster/node:dev"
    )]
    node_image: String,
    /// Namespaces to watch, separated by commas; none: all.
    #[arg(long, env = "KVCLUSTER_WATCH_NAMESPACE", value_delimiter = ',')]
    watch_namespace: Vec<String>,
    /// Where health and metrics are served.
    #[arg(
        long,
        env = "KVCLUSTER_OPERATOR_LISTEN",
        default_value = "0.0.0.0:8081"
    )]
    listen: SocketAddr,
    /// Whether to wait for a lease, so that of several operators one works.
    #[arg(long, env = "KVCLUSTER_LEADER_ELECTION", default_value_t = true, action = clap::ArgAction::Set)]
    leader_election: bool,
    /// Namespace of the operator itself, where its lease is.
    #[arg(long, env = "POD_NAMESPACE", default_value = "default")]
    pod_namespace: String,
    /// Name of the operator's pod: who holds the lease.
    #[arg(long, env = "POD_NAME")]
    pod_name: Option<String>,
}

/// Runs until a signal, or until a part of it fails.
pub async fn run(args: OperateArgs) -> anyhow::Result<()> {
    let stop = CancellationToken::new();
    let metrics = Arc::new(Metrics::default());
    let served = tokio::spawn(server::serve(
        args.listen,
        Arc::clone(&metrics),
        stop.clone(),
    ));
    tokio::spawn(stop_on_signal(stop.clone())?);
    let worked = work(args, metrics, stop.clone());
    tokio::select! {
        done = worked => {
            stop.cancel();
            done
        }
        // A background task that dies ends the process; one that was told to stop leaves the end to the work.
        ended = async { (served.await, stop.is_cancelled()) } => match ended {
            (Ok(Ok(())), true) => Ok(()),
            (Ok(Err(error)), _) => Err(error),
            (Ok(Ok(())), false) => bail!("the health port closed"),
            (Err(error), _) => Err(error.into()),
        },
    }
}

fn stop_on_signal(stop: CancellationToken) -> anyhow::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        info!("stopping");
        stop.cancel();
    })
}

async fn work(
    args: OperateArgs,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let client = connect().await?;
    let scopes = scopes(&args.watch_namespace);
    for scope in &scopes {
        check_crd(&client, scope.as_deref()).await?;
    }
    let reads_hosts = reads_hosts(&client).await;
    let reporter = Reporter {
        controller: FIELD_MANAGER.to_owned(),
        instance: args.pod_name.clone(),
    };
    let context = Arc::new(Context {
        client: client.clone(),
        outside: Box::new(Services::default()),
        now: Timestamp::now,
        recorder: Recorder::new(client.clone(), reporter),
        metrics,
        memory: Memory::default(),
        node_image: args.node_image,
    });
    let started = AtomicBool::new(false);
    let loops = async {
        started.store(true, Ordering::Relaxed);
        join_all(scopes.into_iter().map(|scope| {
            controller::announce(scope.as_deref(), &context.metrics);
            let (client, context) = (client.clone(), Arc::clone(&context));
            controller::run(client, scope, reads_hosts, context, stop.clone())
        }))
        .await;
    };
    if !args.leader_election {
        loops.await;
        return Ok(());
    }
    let Some(identity) = args.pod_name else {
        bail!("leader election needs POD_NAME (or --leader-election=false)");
    };
    let election = LeaderElection::new(client.clone(), &args.pod_namespace, LEASE, &identity);
    let stopped_while_waiting = async {
        stop.cancelled().await;
        if started.load(Ordering::Relaxed) {
            // The loops end by themselves, and the lease is given back.
            std::future::pending::<()>().await;
        }
    };
    tokio::select! {
        led = election.with_lease(loops) => led.context("the lease was lost; another operator works now"),
        () = stopped_while_waiting => Ok(()),
    }
}

/// An empty list, or an empty name in it, means all namespaces.
fn scopes(namespaces: &[String]) -> Vec<Option<String>> {
    let named: Vec<_> = namespaces
        .iter()
        .map(|name| name.trim())
        .filter(|name| !name.is_empty())
        .collect();
    if named.is_empty() {
        return vec![None];
    }
    named
        .into_iter()
        .map(|name| Some(name.to_owned()))
        .collect()
}

async fn connect() -> anyhow::Result<Client> {
    let mut config = Config::infer().await.context("find the API server")?;
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    // The client's own retries would hold a pass for minutes; the loop tries again.
    config.default_retry = false;
    Client::try_from(config).context("make a client for the API server")
}

/// Whether the Kubernetes nodes may be read. Without that the store works, and nothing is known of zones, lost nodes and drains.
async fn reads_hosts(client: &Client) -> bool {
    let nodes: Api<Node> = Api::all(client.clone());
    let one = ListParams::default().limit(1);
    let listed = call("list Nodes", nodes.list_metadata(&one)).await;
    if let Err(error) = &listed {
        warn!(%error, "Kubernetes nodes are not watched: zones, lost nodes and drains are not known");
    }
    listed.is_ok()
}

async fn check_crd(client: &Client, namespace: Option<&str>) -> anyhow::Result<()> {
    let clusters: Api<KvCluster> = match namespace {
        Some(namespace) => Api::namespaced(client.clone(), namespace),
        None => Api::all(client.clone()),
    };
    let one = ListParams::default().limit(1);
    let listed = call("list KvClusters", clusters.list_metadata(&one));
    listed
        .await
        .context("is the CRD of kvcluster.dev/v1alpha1 installed, and may the operator list it?")?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_namespace_means_all() {
        assert_eq!(scopes(&[]), [None]);
        assert_eq!(scopes(&[String::new()]), [None]);
        let named = ["a".to_owned(), " b".to_owned()];
        assert_eq!(scopes(&named), [Some("a".to_owned()), Some("b".to_owned())]);
    }
}
