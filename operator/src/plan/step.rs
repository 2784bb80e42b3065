//! One change of the world, with all that is needed to make it.

use std::collections::BTreeMap;
use std::fmt;

use kvcluster_crds::{Assignment, LogId, NodeId, Offset};

use super::Object;
use crate::build::topics::TopicSpec;
use crate::gate::Gate;
use crate::secret_text::SecretText;

/// A step. Executing it twice does no harm.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Put the finalizer on the `KvCluster`.
    AddFinalizer,
    /// Take it off; what could not be removed is named.
    RemoveFinalizer {
        /// Topics and schemas that stay although they should go.
        left: Vec<String>,
    },
    /// Write the log id into the status: the published one, or a new random one.
    PinLogId {
        /// The one that the published assignment names.
        log_id: Option<LogId>,
    },
    /// Make a topic.
    CreateTopic(TopicSpec),
    /// Set a topic's settings.
    RepairTopic {
        /// Its name.
        topic: String,
        /// All settings of its own, as they should be.
        settings: BTreeMap<String, String>,
        /// Names of those that differ.
        differ: Vec<String>,
    },
    /// Write the Secret with a node's PostgreSQL URL.
    WriteSecret {
        /// The node.
        node: NodeId,
        /// Its instance.
        instance: String,
        /// The instance's admin URL: server and database are taken from it.
        admin: SecretText,
        /// The node's role.
        role: String,
        /// The password that stays; none: a new random one.
        password: Option<SecretText>,
    },
    /// Make a node's role and schema, or put them right.
    EnsureRole(RoleStep),
    /// Publish an assignment, with the proofs of what it takes away.
    Publish(Box<Assignment>, Vec<Gate>),
    /// Remove old assignments from their topic.
    TrimAssignments {
        /// The first that stays: one that counted.
        first: Offset,
    },
    /// Apply a Kubernetes object.
    Apply(Object),
    /// Delete a node's pod, so that it starts anew from the current template.
    RestartPod {
        /// The node.
        node: NodeId,
        /// Name of the pod.
        name: String,
        /// Its UID: no other pod of that name is deleted.
        uid: String,
        /// That the others do without it, or that it serves nothing.
        gate: Gate,
    },
    /// Delete a pod without waiting for its end, since nobody can tell of it any more.
    ForceDeletePod {
        /// The node.
        node: NodeId,
        /// Name of the pod.
        name: String,
        /// Its UID: no other pod of that name is deleted.
        uid: String,
        /// That it is lost.
        gate: Gate,
    },
    /// Delete a StatefulSet.
    DeleteStatefulSet {
        /// Its name.
        name: String,
        /// Its UID.
        uid: String,
    },
    /// Delete the Secret of a node that is no member any more.
    DeleteSecret {
        /// The node.
        node: NodeId,
        /// Name of the Secret.
        name: String,
        /// Its UID.
        uid: String,
    },
    /// Delete topics.
    DeleteTopics(Vec<String>),
    /// Note that all topics were seen to be gone.
    NoteTopicsAbsent,
    /// Drop a schema and its role.
    DropRole(RoleStep),
}

/// A node's role and schema, which share a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoleStep {
    /// The PostgreSQL instance.
    pub instance: String,
    /// Its admin URL.
    pub admin: SecretText,
    /// Name of role and schema.
    pub role: String,
    /// The comment that marks both as this node's.
    pub comment: String,
    /// The role's password; not needed to drop it.
    pub password: Option<SecretText>,
}

impl Step {
    /// Names the kind of step, for events and metrics.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::AddFinalizer => "AddFinalizer",
            Self::RemoveFinalizer { .. } => "RemoveFinalizer",
            Self::PinLogId { .. } => "PinLogId",
            Self::CreateTopic(_) => "CreateTopic",
            Self::RepairTopic { .. } => "RepairTopic",
            Self::WriteSecret { .. } => "WriteSecret",
            Self::EnsureRole(_) => "EnsureRole",
            Self::Publish(..) => "PublishAssignment",
            Self::TrimAssignments { .. } => "TrimAssignments",
            Self::Apply(_) => "Apply",
            Self::RestartPod { .. } => "RestartPod",
            Self::ForceDeletePod { .. } => "ForceDeletePod",
            Self::DeleteStatefulSet { .. } => "DeleteStatefulSet",
            Self::DeleteSecret { .. } => "DeleteSecret",
            Self::DeleteTopics(_) => "DeleteTopics",
            Self::NoteTopicsAbsent => "NoteTopicsAbsent",
            Self::DropRole(_) => "DropRole",
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AddFinalizer => f.write_str("add the finalizer"),
            Self::RemoveFinalizer { left } if left.is_empty() => {
                f.write_str("remove the finalizer")
            }
            Self::RemoveFinalizer { left } => {
                write!(f, "remove the finalizer and leave {}", left.join(", "))
            }
            Self::PinLogId { .. } => f.write_str("pin the log id"),
            Self::CreateTopic(topic) => {
                write!(
                    f,
                    "create topic {} with {} partitions",
                    topic.name, topic.partitions
                )
            }
            Self::RepairTopic { topic, differ, .. } => {
                write!(f, "set {} of topic {topic}", differ.join(", "))
            }
            Self::WriteSecret { node, .. } => write!(f, "write the PostgreSQL URL of node {node}"),
            Self::EnsureRole(role) => {
                write!(f, "make role and schema {} on {}", role.role, role.instance)
            }
            Self::Publish(assignment, _) => write!(f, "publish assignment {}", assignment.version),
            Self::TrimAssignments { first } => {
                write!(f, "remove old assignments, before offset {first}")
            }
            Self::Apply(object) => write!(f, "apply {object}"),
            Self::RestartPod { node, .. } => write!(f, "restart node {node}"),
            Self::ForceDeletePod { node, gate, .. } => {
                write!(f, "give node {node} another place: {}", gate.evidence())
            }
            Self::DeleteStatefulSet { name, .. } => write!(f, "delete StatefulSet {name}"),
            Self::DeleteSecret { name, .. } => write!(f, "delete Secret {name}"),
            Self::DeleteTopics(topics) => write!(f, "delete topics {}", topics.join(", ")),
            Self::NoteTopicsAbsent => f.write_str("verify that the topics are gone"),
            Self::DropRole(role) => {
                write!(f, "drop role and schema {} on {}", role.role, role.instance)
            }
        }
    }
}
