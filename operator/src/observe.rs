//! One look at everything: the [`World`] that a plan is made from. Each part is read anew in every pass, within a time limit,
//! so what stands here is seconds old at most; a part that could not be read is an error with a reason and leaves the others
//! as they are.

use std::collections::{BTreeMap, BTreeSet};

use futures::future::join_all;
use jiff::Timestamp;
use kvcluster_crds::{NodeId, NodeStatus};

use crate::build::topics::topics;
use crate::clients::kafka::{KafkaClients, KafkaTrouble};
use crate::clients::postgres::PostgresTrouble;
use crate::cluster::Target;
use crate::plan::prospective;
use crate::secret_text::SecretText;

pub mod hosts;
pub mod kafka;
pub mod kubernetes;
pub mod nodes;
pub mod postgres;

pub use self::hosts::HostView;
pub use self::kafka::{AssignmentView, KafkaView, TopicView};
pub use self::kubernetes::{KubernetesTrouble, ObjectsView, PodView};
pub use self::nodes::NodeTrouble;
pub use self::postgres::{Login, PostgresView, RoleView, SchemaView};

/// The nodes to look for: the members and those that will join, and whoever else has something of this cluster.
pub fn nodes_to_ask(
    target: &Target,
    kafka: &Result<KafkaView, KafkaTrouble>,
    others: impl IntoIterator<Item = NodeId>,
) -> BTreeSet<NodeId> {
    let published = kafka.as_ref().ok().and_then(KafkaView::published);
    let mut nodes: BTreeSet<NodeId> = prospective(target, published).into_iter().collect();
    nodes.extend(others);
    nodes
}

/// What was seen in one pass.
#[derive(Clone, Debug)]
pub struct World {
    /// When.
    pub now: Timestamp,
    /// The topics and the published assignment.
    pub kafka: Result<KafkaView, KafkaTrouble>,
    /// Schemas and roles, per instance of the spec.
    pub postgres: BTreeMap<String, Result<PostgresView, PostgresTrouble>>,
    /// The Secrets with the nodes' PostgreSQL URLs.
    pub secrets: Result<BTreeMap<NodeId, NodeSecret>, KubernetesTrouble>,
    /// The nodes whose Secret was looked for: one that is not among them may have one.
    pub asked: BTreeSet<NodeId>,
    /// The Kubernetes objects of the cluster; none where nodes run as plain processes.
    pub objects: Option<Result<ObjectsView, KubernetesTrouble>>,
    /// What the nodes report of themselves.
    pub nodes: BTreeMap<NodeId, Result<NodeStatus, NodeTrouble>>,
    /// Since when a node says that something is wrong with it, in every pass.
    pub troubled_since: BTreeMap<NodeId, Timestamp>,
    /// In how many passes in a row all topics were seen to be gone, this one not counted.
    pub topics_absent_passes: u32,
    /// The step that failed last, if nothing succeeded since.
    pub failure: Option<Failure>,
}

impl World {
    /// The zone that a node runs in, where that is known.
    pub fn zone(&self, node: NodeId) -> Option<String> {
        let objects = self.objects.as_ref()?.as_ref().ok()?;
        objects.zones.get(&node).cloned()
    }

    /// The Kubernetes nodes that are being emptied and have pods of ours, each with the nodes that stand there.
    pub fn draining(&self) -> BTreeMap<&str, Vec<NodeId>> {
        let mut draining: BTreeMap<&str, Vec<NodeId>> = BTreeMap::new();
        let objects = self
            .objects
            .as_ref()
            .and_then(|objects| objects.as_ref().ok());
        for (&node, pod) in objects.iter().flat_map(|objects| &objects.pods) {
            let host = pod
                .host
                .as_deref()
                .zip(objects)
                .and_then(|(name, objects)| {
                    let (name, host) = objects.hosts.get_key_value(name)?;
                    host.draining.then_some(name.as_str())
                });
            if let Some(host) = host {
                draining.entry(host).or_default().push(node);
            }
        }
        draining
    }
}

/// Where the admin URL of each PostgreSQL instance of the spec was found, or why it was not.
pub type AdminUrls = BTreeMap<String, Result<SecretText, PostgresTrouble>>;
/// The instances as they were seen.
pub type PostgresViews = BTreeMap<String, Result<PostgresView, PostgresTrouble>>;

/// Looks at the PostgreSQL instances, all at once. `nodes`: whose schemas may be there.
pub async fn postgres_views(
    target: &Target,
    admin_urls: AdminUrls,
    nodes: &BTreeSet<NodeId>,
    secrets: &BTreeMap<NodeId, NodeSecret>,
) -> PostgresViews {
    let looks = admin_urls.into_iter().map(|(instance, url)| async move {
        let view = match url {
            Ok(admin) => {
                let question = postgres_question(target, &instance, admin, nodes, secrets);
                postgres::observe(question).await
            }
            Err(trouble) => Err(trouble),
        };
        (instance, view)
    });
    join_all(looks).await.into_iter().collect()
}

/// Looks at Kafka.
pub async fn kafka_view(
    clients: &KafkaClients,
    target: &Target,
) -> Result<KafkaView, KafkaTrouble> {
    let client = clients.get(&target.spec.kafka.bootstrap_servers).await?;
    let question = kafka::Question {
        topics: topics(target).into_iter().map(|topic| topic.name).collect(),
        assignment_topic: target.names.assignment_topic(),
        cluster_uid: target.uid.clone(),
    };
    let seen = kafka::observe(&client, question).await;
    if let Err(KafkaTrouble::Unreachable { .. }) = seen {
        clients.forget(&client);
    }
    seen
}

fn postgres_question(
    target: &Target,
    instance: &str,
    admin: SecretText,
    nodes: &BTreeSet<NodeId>,
    secrets: &BTreeMap<NodeId, NodeSecret>,
) -> postgres::Question {
    let here = secrets
        .iter()
        .filter(|(_, secret)| secret.instance == instance);
    postgres::Question {
        admin,
        names: nodes.iter().map(|&node| target.schema(node)).collect(),
        comment_prefix: target.owner_comment_prefix(),
        urls: here
            .map(|(&node, secret)| (node, secret.url.clone()))
            .collect(),
    }
}

/// A node's access to PostgreSQL: the truth about its password.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeSecret {
    /// The instance that holds the node's schema, for life.
    pub instance: String,
    /// URL of the node's role.
    pub url: SecretText,
    /// UID of the Secret.
    pub uid: String,
}

/// A step that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The step in words.
    pub step: String,
    /// For the condition's reason.
    pub reason: &'static str,
    /// What went wrong and what to do.
    pub message: String,
}
