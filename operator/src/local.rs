//! The same store without Kubernetes, for trying out and for tests: topics, schemas, roles and the assignment are made by the
//! same plan and the same steps; instead of StatefulSets a file tells how to start each node.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use jiff::Timestamp;
use kvcluster_crds::v1alpha1::KvCluster;
use kvcluster_crds::{LogId, NodeId, environment};
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use crate::build::statefulset;
use crate::clients::kafka::{KafkaClients, KafkaTrouble};
use crate::cluster::Target;
use crate::observe::{self, NodeSecret, World};
use crate::plan::{Step, plan};
use crate::secret_text::{self, SecretText};
use crate::{execute, scram};

/// Copies of each record where there are enough brokers, and how many must be in sync: Kafka's usual ones.
const REPLICAS: i32 = 3;
const IN_SYNC: i32 = 2;

/// Steps that a first start takes are about 5 + 2 per node; more passes than this mean that a step does not take effect.
const PASSES_MAX: usize = 500;
/// Between two looks at topics that have no leaders yet.
const SETTLE_PAUSE: Duration = Duration::from_millis(100);
/// Everything in the output folder may hold a password.
const FILE_MODE: u32 = 0o600;

/// Where the parts are.
#[derive(Debug, clap::Args)]
pub struct LocalArgs {
    /// YAML file with a KvCluster; other documents in it are ignored.
    #[arg(long)]
    manifest: PathBuf,
    /// Number of nodes; by default what the manifest says.
    #[arg(long)]
    nodes: Option<i32>,
    /// Kafka's bootstrap servers.
    #[arg(long)]
    kafka: String,
    /// Number of brokers: topics get so many replicas, at most 3, of which 2 must be in sync.
    #[arg(long, default_value_t = 1)]
    brokers: i32,
    /// URL of a PostgreSQL role that may create roles and schemas; used for all instances of the manifest.
    #[arg(long)]
    postgres: String,
    /// REST port of node 0; the others follow.
    #[arg(long, default_value_t = 18080)]
    listen_base: u16,
    /// Admin port of node 0; the others follow.
    #[arg(long, default_value_t = 19180)]
    admin_base: u16,
    /// Folder for nodes.json and what is kept between runs.
    #[arg(long)]
    out: PathBuf,
}

/// How to start a node: an entry of `nodes.json`.
#[derive(Debug, Serialize)]
struct NodeStart {
    id: NodeId,
    listen: String,
    admin_listen: String,
    env: BTreeMap<&'static str, String>,
}

/// What Kubernetes would keep: the log id and the nodes' Secrets.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Kept {
    log_id: Option<LogId>,
    urls: BTreeMap<u32, String>,
}

/// Makes everything outside of the nodes, and writes `nodes.json`. May be repeated.
pub async fn run(args: LocalArgs) -> anyhow::Result<()> {
    let cluster = read_manifest(&args)?;
    fs::create_dir_all(&args.out).with_context(|| format!("make {}", args.out.display()))?;
    let kept_file = args.out.join("kept.json");
    let mut kept = read_kept(&kept_file)?;
    let admin = SecretText::new(args.postgres.as_str());
    secret_text::options(&admin).context("--postgres")?;
    let clients = KafkaClients::default();
    for _ in 0..PASSES_MAX {
        let target = target(&args, &cluster, &kept)?;
        let world = look(&clients, &target, &admin, &kept).await;
        let plan = plan(&target, &world, "");
        if matches!(world.kafka, Err(KafkaTrouble::Settling { .. })) {
            tokio::time::sleep(SETTLE_PAUSE).await;
            continue;
        }
        let Some(step) = plan.steps.first() else {
            return match obstacle(&plan) {
                Some(obstacle) => bail!(obstacle),
                None => write_nodes(&args, &target, &kept),
            };
        };
        println!("{step}");
        match step {
            Step::PinLogId { log_id } => {
                let random = u64::from_be_bytes(scram::random_bytes()?);
                kept.log_id = Some(log_id.unwrap_or(LogId(random)));
                write_private(&kept_file, &kept)?;
            }
            Step::WriteSecret {
                node,
                admin,
                role,
                password,
                ..
            } => {
                let password = password.clone().map_or_else(scram::random_password, Ok)?;
                let url = secret_text::node_url(admin, role, &password)?;
                kept.urls.insert(node.get(), url.reveal().to_owned());
                write_private(&kept_file, &kept)?;
            }
            step => match execute::external(&clients, &target, step).await {
                Some(done) => done.with_context(|| step.to_string())?,
                None => bail!("this step needs Kubernetes: {step}"),
            },
        }
    }
    bail!("the plan did not become empty in {PASSES_MAX} passes")
}

fn read_manifest(args: &LocalArgs) -> anyhow::Result<KvCluster> {
    let path = &args.manifest;
    let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    for document in text.split("\n---") {
        let Ok(kind) = serde_yaml::from_str::<Kind>(document) else {
            continue;
        };
        if kind.kind == "KvCluster" {
            let document = serde_yaml::from_str(document);
            return document.with_context(|| format!("the KvCluster in {}", path.display()));
        }
    }
    bail!("{} holds no KvCluster", path.display())
}

#[derive(Deserialize)]
struct Kind {
    kind: String,
}

/// The manifest's cluster with everything that is different here.
fn target(args: &LocalArgs, cluster: &KvCluster, kept: &Kept) -> anyhow::Result<Target> {
    let mut cluster = cluster.clone();
    let namespace = cluster
        .metadata
        .namespace
        .get_or_insert_with(|| "default".to_owned())
        .clone();
    let name = cluster
        .metadata
        .name
        .clone()
        .context("the KvCluster has no name")?;
    let place = format!("{namespace}/{name}");
    cluster.metadata.uid = Some(format!("local-{:016x}", xxh3_64(place.as_bytes())));
    let spec = &mut cluster.spec;
    spec.nodes = args.nodes.unwrap_or(spec.nodes);
    spec.replication = spec.replication.min(spec.nodes);
    spec.kafka.bootstrap_servers.clone_from(&args.kafka);
    // The sample is for one broker; with more of them, what a real Kafka would have.
    spec.kafka.replication_factor = args.brokers.min(REPLICAS);
    spec.kafka.min_in_sync_replicas = args.brokers.min(IN_SYNC);
    spec.paused = false;
    cluster.status.get_or_insert_default().log_id = kept.log_id.map(|id| id.to_string());
    let mut target = Target::of(&cluster)?;
    let addresses = target
        .nodes
        .iter()
        .map(|&node| Ok((node, listen(args.listen_base, node)?)));
    target.addresses = Some(addresses.collect::<anyhow::Result<_>>()?);
    Ok(target)
}

fn listen(base: u16, node: NodeId) -> anyhow::Result<String> {
    let port = u16::try_from(node.get())
        .ok()
        .and_then(|offset| base.checked_add(offset));
    let port = port.with_context(|| format!("no port is left for node {node} above {base}"))?;
    Ok(format!("127.0.0.1:{port}"))
}

async fn look(clients: &KafkaClients, target: &Target, admin: &SecretText, kept: &Kept) -> World {
    let secrets: BTreeMap<NodeId, NodeSecret> = kept
        .urls
        .iter()
        .map(|(&node, url)| {
            let node = NodeId(node);
            let instance = target.instance_in_turn(node).to_owned();
            (
                node,
                NodeSecret {
                    instance,
                    url: SecretText::new(url.as_str()),
                },
            )
        })
        .collect();
    let instances = target.spec.postgres.instances.iter();
    let urls = instances
        .map(|instance| (instance.name.clone(), Ok(admin.clone())))
        .collect();
    let (kafka, postgres) = observe::external(clients, target, urls, &secrets).await;
    World {
        now: Timestamp::now(),
        kafka,
        postgres,
        secrets: Ok(secrets),
        objects: None,
        nodes: BTreeMap::new(),
        topics_absent_passes: 0,
        failure: None,
    }
}

/// What stands in the way when nothing can be done and not everything is there.
fn obstacle(plan: &crate::plan::Plan) -> Option<String> {
    use kvcluster_crds::v1alpha1::condition;
    let kinds = [
        condition::KAFKA_READY,
        condition::POSTGRES_READY,
        condition::RING_BALANCED,
    ];
    let verdicts = plan
        .conditions
        .iter()
        .filter(|verdict| kinds.contains(&verdict.kind));
    let mut broken = verdicts.filter(|verdict| verdict.truth != crate::plan::Truth::True);
    broken
        .next()
        .map(|verdict| format!("{}: {}", verdict.reason, verdict.message))
}

fn write_nodes(args: &LocalArgs, target: &Target, kept: &Kept) -> anyhow::Result<()> {
    let log_id = target.log_id.context("the log id is not pinned")?;
    let mut starts = Vec::new();
    for &node in &target.nodes {
        let (listen_at, admin_at) = (
            listen(args.listen_base, node)?,
            listen(args.admin_base, node)?,
        );
        let url = kept
            .urls
            .get(&node.get())
            .context("a node has no PostgreSQL URL")?;
        let mut env = statefulset::environment(target, log_id, node);
        env.insert(environment::POSTGRES_URL, url.clone());
        env.insert(environment::LISTEN, listen_at.clone());
        env.insert(environment::ADMIN_LISTEN, admin_at.clone());
        starts.push(NodeStart {
            id: node,
            listen: listen_at,
            admin_listen: admin_at,
            env,
        });
    }
    let file = args.out.join("nodes.json");
    write_private(&file, &starts)?;
    println!("wrote {}", file.display());
    Ok(())
}

fn read_kept(file: &Path) -> anyhow::Result<Kept> {
    if !file.exists() {
        return Ok(Kept::default());
    }
    let text = fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
    serde_json::from_str(&text).with_context(|| format!("parse {}", file.display()))
}

/// Replaces `file` at once: a crash leaves the old one or the new one.
fn write_private(file: &Path, value: &impl Serialize) -> anyhow::Result<()> {
    let new = file.with_extension("new");
    let mut options = fs::OpenOptions::new();
    let options = options
        .write(true)
        .create(true)
        .truncate(true)
        .mode(FILE_MODE);
    let mut opened = options
        .open(&new)
        .with_context(|| format!("write {}", new.display()))?;
    opened.write_all(&serde_json::to_vec_pretty(value)?)?;
    opened.sync_all()?;
    fs::rename(&new, file).with_context(|| format!("write {}", file.display()))
}
