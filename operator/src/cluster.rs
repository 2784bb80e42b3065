//! A `KvCluster` as the planner needs it: parsed once, numbers in their types, names derived.

use jiff::Timestamp;
use kube::{Resource, ResourceExt};
use kvcluster_crds::names::{ClusterNames, FINALIZER};
use kvcluster_crds::v1alpha1::{KvCluster, KvClusterSpec, KvClusterStatus};
use kvcluster_crds::{LogId, NodeId};

use crate::ring::Shape;

/// Annotation of a `KvCluster`: the id of a node that another one is to replace.
pub const ANNOTATION_REPLACE: &str = "kvcluster.dev/replace-node";

/// Why a `KvCluster` cannot be worked on; the API server's validation should have refused it.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum TargetError {
    /// Metadata that every stored object has.
    #[error("the object has no {0}")]
    Missing(&'static str),
    /// Outside of what the CRD allows.
    #[error("{field} is {value}, which the CRD does not allow")]
    OutOfRange {
        /// Path of the field.
        field: &'static str,
        /// Its value.
        value: i64,
    },
    /// Status that somebody else wrote.
    #[error("status.logId {0:?} is not 16 hexadecimal digits")]
    LogId(String),
}

/// What is wanted.
#[derive(Clone, Debug)]
pub struct Target {
    /// Derived names.
    pub names: ClusterNames,
    /// UID of the `KvCluster`.
    pub uid: String,
    /// Generation of the spec.
    pub generation: i64,
    /// How many nodes the spec asks for.
    pub nodes: usize,
    /// The node that is to be replaced, as the annotation names it.
    pub replace: Option<String>,
    /// Partitions of the log topic.
    pub slots: u32,
    /// The ring.
    pub shape: Shape,
    /// Replicas that may be on their way at a time.
    pub moves_max: usize,
    /// The spec itself, for what is passed on as it stands.
    pub spec: KvClusterSpec,
    /// Pinned at creation; none before.
    pub log_id: Option<LogId>,
    /// Whether our finalizer is on the object.
    pub finalizer: bool,
    /// When the deletion was asked for.
    pub deleting_since: Option<Timestamp>,
    /// What was last written.
    pub status: KvClusterStatus,
    /// REST port of node 0, the others follow, where nodes are processes on 127.0.0.1 and not pods with names in DNS.
    pub listen_base: Option<u16>,
}

impl Target {
    /// Reads a `KvCluster`.
    pub fn of(cluster: &KvCluster) -> Result<Self, TargetError> {
        let spec = cluster.spec.clone();
        let namespace = cluster
            .namespace()
            .ok_or(TargetError::Missing("namespace"))?;
        let uid = cluster.uid().ok_or(TargetError::Missing("uid"))?;
        let status = cluster.status.clone().unwrap_or_default();
        let nodes = at_least_one("spec.nodes", spec.nodes)?;
        let slots = at_least_one("spec.slots", spec.slots)?;
        let replication = at_least_one("spec.replication", spec.replication)?;
        let shape = Shape {
            slots,
            replication: replication as usize,
            virtual_nodes: at_least_one("spec.ring.virtualNodes", spec.ring.virtual_nodes)?,
            load_factor_percent: at_least_one(
                "spec.ring.loadFactorPercent",
                spec.ring.load_factor_percent,
            )?,
        };
        let log_id = status.log_id.as_ref().map(|text| {
            text.parse::<LogId>()
                .map_err(|_| TargetError::LogId(text.clone()))
        });
        Ok(Self {
            names: ClusterNames::new(namespace, cluster.name_any()),
            uid,
            generation: cluster.meta().generation.unwrap_or_default(),
            nodes: nodes as usize,
            replace: cluster.annotations().get(ANNOTATION_REPLACE).cloned(),
            slots,
            shape,
            moves_max: at_least_one(
                "spec.rebalance.maxConcurrentMoves",
                spec.rebalance.max_concurrent_moves,
            )? as usize,
            spec,
            log_id: log_id.transpose()?,
            finalizer: cluster.finalizers().iter().any(|name| name == FINALIZER),
            deleting_since: cluster
                .meta()
                .deletion_timestamp
                .as_ref()
                .map(|time| time.0),
            status,
            listen_base: None,
        })
    }

    /// The PostgreSQL instance of a node that is new: the instances in turn.
    pub fn instance_in_turn(&self, node: NodeId) -> &str {
        let instances = &self.spec.postgres.instances;
        let turn = node.get() as usize % instances.len().max(1);
        instances
            .get(turn)
            .map_or("", |instance| instance.name.as_str())
    }

    /// Where a node's REST port is reached, `host:port`.
    pub fn address(&self, node: NodeId) -> String {
        match self.listen_base {
            Some(base) => format!("127.0.0.1:{}", u32::from(base) + node.get()),
            None => self.names.peer_address(node),
        }
    }

    /// Schema and role of a node.
    pub fn schema(&self, node: NodeId) -> String {
        self.names.schema(&self.spec.postgres.schema_prefix, node)
    }

    /// What the schema's and the role's comment say when they are this node's.
    pub fn owner_comment(&self, node: NodeId) -> String {
        format!("{}{node}", self.owner_comment_prefix())
    }

    /// How the comments of all this cluster's schemas and roles begin.
    pub fn owner_comment_prefix(&self) -> String {
        format!("kvcluster:{}:", self.uid)
    }
}

fn at_least_one(field: &'static str, value: i32) -> Result<u32, TargetError> {
    match u32::try_from(value) {
        Ok(number) if number > 0 => Ok(number),
        _ => Err(TargetError::OutOfRange {
            field,
            value: value.into(),
        }),
    }
}
