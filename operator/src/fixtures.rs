//! Objects for tests, built by saying what is special about them: `cluster().deleting().target()`.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kvcluster_crds::names::FINALIZER;
use kvcluster_crds::v1alpha1::{DeletionPolicy, KvCluster};
use kvcluster_crds::{Epoch, Incarnation, LogId, NodeId, NodeStatus, SlotId, SlotRole, SlotStatus};
use serde_json::json;

use crate::build::topics::TopicSpec;
use crate::cluster::{ANNOTATION_REPLACE, Target};
use crate::observe::{RoleView, SchemaView, TopicView};

pub(crate) mod random;

/// The present, in tests.
pub(crate) fn now() -> Timestamp {
    "2026-01-01T12:00:00Z".parse().expect("a time")
}

/// A `KvCluster` in the making.
#[derive(Clone)]
pub(crate) struct ClusterBuilder {
    cluster: KvCluster,
}

/// The sample cluster, fresh: 3 nodes, 4 slots, replication 3, one PostgreSQL instance.
pub(crate) fn cluster() -> ClusterBuilder {
    let cluster = json!({
        "apiVersion": "kvcluster.dev/v1alpha1",
        "kind": "KvCluster",
        "metadata": { "name": "demo", "namespace": "shop", "uid": "u1", "generation": 1 },
        "spec": {
            "slots": 4,
            "kafka": { "bootstrapServers": "kafka:9092" },
            "postgres": { "instances": [{ "name": "main", "adminUrlSecret": { "name": "admin" } }] },
        },
    });
    ClusterBuilder {
        cluster: serde_json::from_value(cluster).expect("a KvCluster"),
    }
}

impl ClusterBuilder {
    /// With so many nodes.
    pub(crate) fn nodes(mut self, nodes: i32) -> Self {
        self.cluster.spec.nodes = nodes;
        self
    }

    /// With the wish that this node be replaced.
    pub(crate) fn replace(mut self, node: &str) -> Self {
        let annotations = self.cluster.metadata.annotations.get_or_insert_default();
        annotations.insert(ANNOTATION_REPLACE.to_owned(), node.to_owned());
        self
    }

    /// With the log id pinned.
    pub(crate) fn log_id(mut self, log_id: Option<LogId>) -> Self {
        self.cluster.status.get_or_insert_default().log_id = log_id.map(|id| id.to_string());
        self
    }

    /// With `deletionPolicy: Delete`.
    pub(crate) fn delete_policy(mut self) -> Self {
        self.cluster.spec.deletion_policy = DeletionPolicy::Delete;
        self
    }

    /// With our finalizer, or without.
    pub(crate) fn finalizer(mut self, there: bool) -> Self {
        self.cluster.metadata.finalizers = there.then(|| vec![FINALIZER.to_owned()]);
        self
    }

    /// Being deleted for so long.
    pub(crate) fn deleting_for(mut self, seconds: i64) -> Self {
        let since = now() - SignedDuration::from_secs(seconds);
        self.cluster.metadata.deletion_timestamp = Some(Time(since));
        self
    }

    /// Paused.
    pub(crate) fn paused(mut self) -> Self {
        self.cluster.spec.paused = true;
        self
    }

    /// With whatever else is special.
    pub(crate) fn with(mut self, change: impl FnOnce(&mut KvCluster)) -> Self {
        change(&mut self.cluster);
        self
    }

    /// The object itself.
    pub(crate) fn build(&self) -> KvCluster {
        self.cluster.clone()
    }

    /// The planner's view of it.
    pub(crate) fn target(&self) -> Target {
        Target::of(&self.cluster).expect("a cluster that the CRD allows")
    }
}

/// A node that is well, and says this of its slots.
pub(crate) fn node_status(
    node: NodeId,
    cluster_uid: &str,
    log_id: LogId,
    assignment_version: Option<u64>,
    slots: impl Iterator<Item = SlotStatus>,
) -> NodeStatus {
    NodeStatus {
        node,
        incarnation: Incarnation(1),
        cluster_uid: cluster_uid.to_owned(),
        log_id,
        assignment_version,
        kafka_connected: true,
        postgres_connected: true,
        problem: None,
        unflushed_bytes: 0,
        unflushed_bytes_max: 1,
        slots: slots.collect(),
    }
}

/// A replica on `node` that has everything up to `applied` for good.
pub(crate) fn slot_status(
    node: NodeId,
    slot: usize,
    leader: Option<NodeId>,
    applied: i64,
    caught_up: bool,
) -> SlotStatus {
    SlotStatus {
        slot: SlotId(u32::try_from(slot).expect("a slot")),
        role: if leader == Some(node) {
            SlotRole::Leader
        } else {
            SlotRole::Follower
        },
        leader,
        epoch: Epoch(1),
        applied,
        flushed: applied,
        durable: applied,
        caught_up,
        bytes: 0,
        records_valid: 1,
        records_ignored: 0,
        frozen: None,
    }
}

/// A topic that was just made.
pub(crate) fn topic_view(topic: &TopicSpec) -> TopicView {
    TopicView {
        partitions: topic.partitions,
        replication_factor: topic.replication_factor,
        settings: topic.settings.clone(),
        own_settings: topic.settings.clone(),
        never_used: true,
    }
}

/// A role and its schema as they are made.
pub(crate) fn role_and_schema(name: &str, comment: &str) -> (RoleView, SchemaView) {
    let comment = Some(comment.to_owned());
    let role = RoleView {
        comment: comment.clone(),
        may_log_in: true,
        elevated: false,
        search_path: Some(name.to_owned()),
    };
    let schema = SchemaView {
        owner: name.to_owned(),
        comment,
        open_to_public: false,
    };
    (role, schema)
}
