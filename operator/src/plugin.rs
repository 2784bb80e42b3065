//! `kubectl kv`: what a cluster is about to do, how it is, and the wish to have a node replaced. It speaks to the API server with
//! the user's own rights, and reads and writes the `KvCluster` alone: what the operator knows stands there.

use clap::{Parser, Subcommand};
use kube::api::{ListParams, Patch, PatchParams};
use kube::config::{KubeConfigOptions, KubeconfigError};
use kube::{Api, Client, Config, ResourceExt};
use kvcluster_crds::NodeId;
use kvcluster_crds::v1alpha1::KvCluster;
use serde_json::json;

use crate::cluster::ANNOTATION_REPLACE;
use crate::observe::KubernetesTrouble;
use crate::observe::kubernetes::call;

mod render;

use render::Refusal;

/// Shows what a KvCluster is about to do and how it is, and has nodes replaced.
#[derive(Debug, Parser)]
#[command(name = "kubectl-kv", bin_name = "kubectl kv", version)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
    /// Namespace of the KvCluster; by default the current context's.
    #[arg(short, long, global = true)]
    namespace: Option<String>,
    /// Context of the kubeconfig; by default the current one.
    #[arg(long, global = true)]
    context: Option<String>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// The steps that are left, and how much is to be copied.
    Plan {
        /// Name of the KvCluster; by default all of the namespace.
        name: Option<String>,
    },
    /// The conditions, the nodes and the moves.
    Status {
        /// Name of the KvCluster; by default all of the namespace.
        name: Option<String>,
    },
    /// Have a new node take over everything of this one, which then goes.
    Replace {
        /// Name of the KvCluster.
        name: String,
        /// Id of the node, as in the name of its pod: 1 of demo-1-0.
        node: NodeIdArg,
        /// Also call off the replacement of another node that is still under way.
        #[arg(long)]
        force: bool,
    },
}

#[derive(Clone, Copy, Debug)]
struct NodeIdArg(NodeId);

impl std::str::FromStr for NodeIdArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let id = text.parse().map(|id| Self(NodeId(id)));
        id.map_err(|_| "a node is named by its id: 1 for the pod demo-1-0".to_owned())
    }
}

/// Why nothing was shown or done.
#[derive(Debug, thiserror::Error)]
pub enum PluginError {
    /// No kubeconfig, or not this context.
    #[error("cannot read the kubeconfig: {0}")]
    Kubeconfig(#[from] KubeconfigError),
    /// The kubeconfig makes no client.
    #[error("cannot connect: {0}")]
    Client(#[from] kube::Error),
    /// The API server said no, or nothing.
    #[error("{0}")]
    Kubernetes(#[from] KubernetesTrouble),
    /// No such cluster.
    #[error("there is no KvCluster {name} in namespace {namespace}; {others}")]
    NoCluster {
        /// The one that was asked for.
        name: String,
        /// Where.
        namespace: String,
        /// Those that there are, in words.
        others: String,
    },
    /// What was asked for would undo something else.
    #[error("{0}")]
    Refused(#[from] Refusal),
}

/// Does what the arguments ask for.
pub async fn run(args: Args) -> Result<(), PluginError> {
    let options = KubeConfigOptions {
        context: args.context,
        ..KubeConfigOptions::default()
    };
    let config = Config::from_kubeconfig(&options).await?;
    let namespace = args
        .namespace
        .unwrap_or_else(|| config.default_namespace.clone());
    let clusters: Api<KvCluster> = Api::namespaced(Client::try_from(config)?, &namespace);
    match args.command {
        Command::Plan { name } => show(&clusters, &namespace, name, render::plan).await,
        Command::Status { name } => show(&clusters, &namespace, name, render::status).await,
        Command::Replace { name, node, force } => {
            let cluster = one(&clusters, &namespace, &name).await?;
            render::may_replace(&cluster, node.0, force)?;
            replace(&clusters, &cluster, node.0).await?;
            println!("{}", render::replacing(&cluster, node.0));
            Ok(())
        }
    }
}

async fn show(
    clusters: &Api<KvCluster>,
    namespace: &str,
    name: Option<String>,
    render: fn(&KvCluster) -> String,
) -> Result<(), PluginError> {
    let shown = match name {
        Some(name) => vec![one(clusters, namespace, &name).await?],
        None => all(clusters).await?,
    };
    if shown.is_empty() {
        println!("there is no KvCluster in namespace {namespace}");
    }
    let texts: Vec<String> = shown.iter().map(render).collect();
    print!("{}", texts.join("\n"));
    Ok(())
}

async fn one(
    clusters: &Api<KvCluster>,
    namespace: &str,
    name: &str,
) -> Result<KvCluster, PluginError> {
    if let Some(cluster) = call("read the KvCluster", clusters.get_opt(name)).await? {
        return Ok(cluster);
    }
    let others: Vec<String> = all(clusters)
        .await?
        .iter()
        .map(KvCluster::name_any)
        .collect();
    Err(PluginError::NoCluster {
        name: name.to_owned(),
        namespace: namespace.to_owned(),
        others: match others.len() {
            0 => "there is none at all (name another namespace with -n)".to_owned(),
            _ => format!("there is {}", others.join(", ")),
        },
    })
}

async fn all(clusters: &Api<KvCluster>) -> Result<Vec<KvCluster>, PluginError> {
    let parameters = ListParams::default();
    let listed = call("list KvClusters", clusters.list(&parameters));
    Ok(listed.await?.items)
}

/// Writes the annotation, unless the cluster changed since it was read.
async fn replace(
    clusters: &Api<KvCluster>,
    cluster: &KvCluster,
    node: NodeId,
) -> Result<(), PluginError> {
    let patch = Patch::Merge(json!({ "metadata": {
        "resourceVersion": cluster.resource_version(),
        "annotations": { ANNOTATION_REPLACE: node.to_string() },
    } }));
    let name = cluster.name_any();
    let parameters = PatchParams::default();
    let patched = clusters.patch(&name, &parameters, &patch);
    call(format!("annotate KvCluster {name}"), patched).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_read_as_kubectl_passes_them() {
        let read = |line: &str| Args::try_parse_from(line.split(' '));
        let args = read("kubectl-kv replace demo 1 -n shop").expect("a command");
        assert!(
            matches!(&args.command, Command::Replace { name, node, force: false }
            if name == "demo" && node.0 == NodeId(1))
        );
        assert_eq!(args.namespace.as_deref(), Some("shop"));
        let args = read("kubectl-kv plan").expect("a command");
        assert!(matches!(args.command, Command::Plan { name: None }));
        let error = read("kubectl-kv replace demo demo-1").expect_err("no id");
        assert!(
            error.to_string().contains("1 for the pod demo-1-0"),
            "{error}"
        );
    }
}
