//! The same store without Kubernetes, for trying out and for tests: topics, schemas, roles and the assignment are made by the
//! same plan and the same steps; instead of StatefulSets a file tells how to start each node.
//!
//! It can be repeated with another number of nodes. Then somebody has to look after the file while it runs: nodes that come into
//! it are to be started, those that go out of it are to be stopped. It ends when the plan is empty and no replica is on its way.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use futures::future::join_all;
use jiff::Timestamp;
use kvcluster_crds::v1alpha1::{KvCluster, condition};
use kvcluster_crds::{Assignment, LogId, NodeId, environment};
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use crate::build::statefulset;
use crate::clients::kafka::{KafkaClients, KafkaTrouble};
use crate::cluster::Target;
use crate::observe::nodes::StatusClient;
use crate::observe::{self, KafkaView, NodeSecret, World};
use crate::outside::Statuses;
use crate::plan::{Plan, Step, Truth, plan};
use crate::secret_text::{self, SecretText};
use crate::{execute, scram};

/// Copies of each record where there are enough brokers, and how many must be in sync: Kafka's usual ones.
const REPLICAS: i32 = 3;
const IN_SYNC: i32 = 2;

/// Between two looks at topics that have no leaders yet.
const SETTLE_PAUSE: Duration = Duration::from_millis(100);
/// Between two looks at nodes that start, catch up or stop.
const WAIT_PAUSE: Duration = Duration::from_millis(200);
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
    /// Seconds after which it ends with an error that says what it waits for.
    #[arg(long, default_value_t = 300)]
    timeout_seconds: u64,
}

/// How to start a node: an entry of `nodes.json`.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct NodeStart {
    id: NodeId,
    listen: String,
    admin_listen: String,
    env: BTreeMap<String, String>,
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
    let admin = SecretText::new(args.postgres.as_str());
    secret_text::options(&admin).context("--postgres")?;
    let mut site = Site {
        kept: read_kept(&args.out.join("kept.json"))?,
        args,
        admin,
        clients: KafkaClients::default(),
        nodes: StatusClient::default(),
    };
    let deadline = Instant::now() + Duration::from_secs(site.args.timeout_seconds);
    let mut told = String::new();
    loop {
        match site.pass(&cluster).await? {
            Outcome::Done => return Ok(()),
            Outcome::Stepped => {}
            Outcome::Waiting(why) => {
                if Instant::now() > deadline {
                    bail!("gave up after {} s: {why}", site.args.timeout_seconds);
                }
                if why != told {
                    println!("waiting: {why}");
                    told = why;
                }
                tokio::time::sleep(WAIT_PAUSE).await;
            }
            Outcome::Settling => tokio::time::sleep(SETTLE_PAUSE).await,
        }
        if Instant::now() > deadline {
            bail!(
                "the plan did not become empty in {} s",
                site.args.timeout_seconds
            );
        }
    }
}

/// How a pass ended.
enum Outcome {
    /// Nothing is left to do, and nothing on its way.
    Done,
    /// A step was taken.
    Stepped,
    /// Topics have no leaders yet.
    Settling,
    /// Nothing can be done now; the nodes are at work.
    Waiting(String),
}

/// What all passes share.
struct Site {
    args: LocalArgs,
    admin: SecretText,
    clients: KafkaClients,
    nodes: StatusClient,
    kept: Kept,
}

impl Site {
    async fn pass(&mut self, cluster: &KvCluster) -> anyhow::Result<Outcome> {
        let target = target(&self.args, cluster, &self.kept)?;
        let world = self.look(&target).await?;
        let plan = plan(&target, &world, "");
        if matches!(world.kafka, Err(KafkaTrouble::Settling { .. })) {
            return Ok(Outcome::Settling);
        }
        if let Some(published) = world.kafka.as_ref().ok().and_then(KafkaView::published) {
            self.write_nodes(&target, published)?;
        }
        let Some(step) = plan.steps.first() else {
            return match (obstacle(&plan), waiting(&plan)) {
                (Some(obstacle), _) => bail!(obstacle),
                (None, Some(why)) => Ok(Outcome::Waiting(why)),
                (None, None) => Ok(Outcome::Done),
            };
        };
        println!("{step}");
        self.execute(&target, step).await?;
        Ok(Outcome::Stepped)
    }

    async fn execute(&mut self, target: &Target, step: &Step) -> anyhow::Result<()> {
        match step {
            Step::PinLogId { log_id } => {
                let random = u64::from_be_bytes(scram::random_bytes()?);
                self.kept.log_id = Some(log_id.unwrap_or(LogId(random)));
                self.keep()
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
                self.kept.urls.insert(node.get(), url.reveal().to_owned());
                self.keep()
            }
            Step::DeleteSecret { node, .. } => {
                self.kept.urls.remove(&node.get());
                self.keep()
            }
            step => match execute::external(&self.clients, target, step).await {
                Some(done) => done.with_context(|| step.to_string()),
                None => bail!("this step needs Kubernetes: {step}"),
            },
        }
    }

    fn keep(&self) -> anyhow::Result<()> {
        write_private(&self.args.out.join("kept.json"), &self.kept)
    }

    async fn look(&self, target: &Target) -> anyhow::Result<World> {
        let secrets: BTreeMap<NodeId, NodeSecret> = self
            .kept
            .urls
            .iter()
            .map(|(&node, url)| {
                let node = NodeId(node);
                let secret = NodeSecret {
                    instance: target.instance_in_turn(node).to_owned(),
                    url: SecretText::new(url.as_str()),
                    uid: String::new(),
                };
                (node, secret)
            })
            .collect();
        let instances = target.spec.postgres.instances.iter();
        let urls = instances
            .map(|instance| (instance.name.clone(), Ok(self.admin.clone())))
            .collect();
        let kafka = observe::kafka_view(&self.clients, target).await;
        // All Secrets are in one file: of every id that was given out it is known whether it has one.
        let published = kafka.as_ref().ok().and_then(KafkaView::published);
        let given_out = published.map_or(0, |assignment| assignment.next_node().get());
        let others = (0..given_out).map(NodeId).chain(secrets.keys().copied());
        let nodes = observe::nodes_to_ask(target, &kafka, others);
        let (postgres, statuses) = tokio::join!(
            observe::postgres_views(target, urls, &nodes, &secrets),
            self.ask(&target.uid, &nodes),
        );
        Ok(World {
            now: Timestamp::now(),
            kafka,
            postgres,
            secrets: Ok(secrets),
            asked: nodes,
            objects: None,
            nodes: statuses?,
            troubled_since: BTreeMap::new(),
            topics_absent_passes: 0,
            failure: None,
        })
    }

    async fn ask(&self, uid: &str, nodes: &BTreeSet<NodeId>) -> anyhow::Result<Statuses> {
        let asked = nodes.iter().map(|&node| async move {
            let address = listen(self.args.admin_base, node)?;
            Ok((node, self.nodes.ask_at(uid, node, &address).await))
        });
        join_all(asked).await.into_iter().collect()
    }

    /// Puts the members into `nodes.json`, if they do not stand there as they are.
    fn write_nodes(&self, target: &Target, published: &Assignment) -> anyhow::Result<()> {
        let log_id = target.log_id.context("the log id is not pinned")?;
        let mut starts = Vec::new();
        for entry in &published.nodes {
            let node = entry.id;
            let (listen_at, admin_at) = (
                listen(self.args.listen_base, node)?,
                listen(self.args.admin_base, node)?,
            );
            // It is about to be written anew.
            let Some(url) = self.kept.urls.get(&node.get()) else {
                return Ok(());
            };
            let mut env = statefulset::environment(target, log_id, node);
            env.insert(environment::POSTGRES_URL, url.clone());
            env.insert(environment::LISTEN, listen_at.clone());
            env.insert(environment::ADMIN_LISTEN, admin_at.clone());
            starts.push(NodeStart {
                id: node,
                listen: listen_at,
                admin_listen: admin_at,
                env: env.into_iter().map(|(k, v)| (k.to_owned(), v)).collect(),
            });
        }
        let file = self.args.out.join("nodes.json");
        let text = fs::read_to_string(&file).unwrap_or_default();
        if serde_json::from_str::<Vec<NodeStart>>(&text).ok().as_ref() != Some(&starts) {
            write_private(&file, &starts)?;
            println!("wrote {}", file.display());
        }
        Ok(())
    }
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
    target.listen_base = Some(args.listen_base);
    Ok(target)
}

fn listen(base: u16, node: NodeId) -> anyhow::Result<String> {
    let port = u16::try_from(node.get())
        .ok()
        .and_then(|offset| base.checked_add(offset));
    let port = port.with_context(|| format!("no port is left for node {node} above {base}"))?;
    Ok(format!("127.0.0.1:{port}"))
}

/// What stands in the way when nothing can be done and not everything is there.
fn obstacle(plan: &Plan) -> Option<String> {
    let kinds = [condition::KAFKA_READY, condition::POSTGRES_READY];
    let mut broken = plan.conditions.iter().filter(|verdict| {
        let waits = ["Moving", "MembersChange"].contains(&verdict.reason);
        let ring = verdict.kind == condition::RING_BALANCED && !waits;
        verdict.truth != Truth::True && (kinds.contains(&verdict.kind) || ring)
    });
    broken
        .next()
        .map(|verdict| format!("{}: {}", verdict.reason, verdict.message))
}

/// What the nodes have yet to do.
fn waiting(plan: &Plan) -> Option<String> {
    let kinds = [condition::RING_BALANCED, condition::READY];
    let reasons = ["Moving", "NodesLeaving"];
    let verdicts = plan.conditions.iter();
    let mut waiting = verdicts
        .filter(|verdict| kinds.contains(&verdict.kind) && reasons.contains(&verdict.reason));
    waiting.next().map(|verdict| verdict.message.clone())
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
