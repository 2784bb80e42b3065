//! Every name that is derived from a cluster: topics, schemas, roles, objects, labels. Nowhere else is a name put together.

use std::collections::BTreeMap;

use xxhash_rust::xxh3::xxh3_64;

use crate::ids::NodeId;

/// Field manager of the operator's server-side apply.
pub const FIELD_MANAGER: &str = "kvcluster-operator";
/// Finalizer of clusters with `deletionPolicy: Delete`.
pub const FINALIZER: &str = "kvcluster.dev/cleanup";
/// Label: name of the cluster that an object belongs to.
pub const LABEL_CLUSTER: &str = "kvcluster.dev/cluster";
/// Label: id of the node that an object belongs to.
pub const LABEL_NODE: &str = "kvcluster.dev/node";
/// Value of `app.kubernetes.io/managed-by` on all objects of the operator.
pub const MANAGED_BY: &str = "kvcluster-operator";
/// Longest name of a cluster, bytes: keeps every derived name inside its limit (PostgreSQL identifiers: 63).
pub const CLUSTER_NAME_MAX: usize = 32;
/// Longest `schemaPrefix`, bytes.
pub const SCHEMA_PREFIX_MAX: usize = 12;
/// Client port of a node (REST and forwarding between nodes).
pub const PORT_HTTP: u16 = 8080;
/// Admin port of a node: `/livez`, `/readyz`, `/metrics`, `/status`.
pub const PORT_ADMIN: u16 = 9090;

/// The names of one cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterNames {
    namespace: String,
    cluster: String,
}

impl ClusterNames {
    /// Names of cluster `cluster` in Kubernetes namespace `namespace`.
    pub fn new(namespace: impl Into<String>, cluster: impl Into<String>) -> Self {
        Self {
            namespace: namespace.into(),
            cluster: cluster.into(),
        }
    }

    /// Kubernetes namespace of the cluster.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Name of the `KvCluster`, and of its client Service and PodDisruptionBudget.
    pub fn cluster(&self) -> &str {
        &self.cluster
    }

    /// The write-ahead log: one partition per slot.
    pub fn log_topic(&self) -> String {
        format!("{}.{}.log", self.namespace, self.cluster)
    }

    /// The assignments: one partition.
    pub fn assignment_topic(&self) -> String {
        format!("{}.{}.assignment", self.namespace, self.cluster)
    }

    /// The nodes' heartbeats: one partition, short retention.
    pub fn heartbeat_topic(&self) -> String {
        format!("{}.{}.heartbeat", self.namespace, self.cluster)
    }

    /// PostgreSQL schema of a node, and its role. The hash keeps `a/b-c` and `a-b/c` apart, since a schema cannot hold `/`.
    pub fn schema(&self, prefix: &str, node: NodeId) -> String {
        let place = format!("{}/{}", self.namespace, self.cluster);
        let hash = xxh3_64(place.as_bytes()) & 0xffff_ffff;
        let cluster = self.cluster.replace(['-', '.'], "_");
        format!("{prefix}_{cluster}_{hash:08x}_{node}")
    }

    /// StatefulSet of a node.
    pub fn stateful_set(&self, node: NodeId) -> String {
        format!("{}-{node}", self.cluster)
    }

    /// The one pod of a node.
    pub fn pod(&self, node: NodeId) -> String {
        format!("{}-{node}-0", self.cluster)
    }

    /// Secret with the PostgreSQL URL of a node, under key [`SECRET_KEY_URL`].
    pub fn node_secret(&self, node: NodeId) -> String {
        format!("{}-{node}-postgres", self.cluster)
    }

    /// Headless Service that gives the pods their names.
    pub fn peer_service(&self) -> String {
        format!("{}-peers", self.cluster)
    }

    /// Client Service.
    pub fn client_service(&self) -> String {
        self.cluster.clone()
    }

    /// Address of a node for its peers, `host:port`.
    pub fn peer_address(&self, node: NodeId) -> String {
        format!(
            "{}.{}.{}.svc:{PORT_HTTP}",
            self.pod(node),
            self.peer_service(),
            self.namespace
        )
    }

    /// Labels that select all pods of the cluster.
    pub fn selector(&self) -> BTreeMap<String, String> {
        BTreeMap::from([
            (
                "app.kubernetes.io/name".to_owned(),
                "kvcluster-node".to_owned(),
            ),
            (LABEL_CLUSTER.to_owned(), self.cluster.clone()),
        ])
    }

    /// Labels that select the pod of one node.
    pub fn node_selector(&self, node: NodeId) -> BTreeMap<String, String> {
        let mut labels = self.selector();
        labels.insert(LABEL_NODE.to_owned(), node.to_string());
        labels
    }

    /// Labels of every object of the cluster.
    pub fn labels(&self) -> BTreeMap<String, String> {
        let mut labels = self.selector();
        labels.insert(
            "app.kubernetes.io/managed-by".to_owned(),
            MANAGED_BY.to_owned(),
        );
        labels.insert(
            "app.kubernetes.io/instance".to_owned(),
            self.cluster.clone(),
        );
        labels
    }
}

/// Key of the connection URL in a node's Secret.
pub const SECRET_KEY_URL: &str = "url";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_names_fit() {
        let names = ClusterNames::new("n".repeat(63), "c".repeat(CLUSTER_NAME_MAX));
        let node = NodeId(9999);
        assert!(names.schema(&"p".repeat(SCHEMA_PREFIX_MAX), node).len() <= 63);
        // A pod's controller-revision-hash label holds the StatefulSet's name and a hash of up to 11 bytes.
        assert!(names.stateful_set(node).len() <= 52);
        assert!(names.assignment_topic().len() <= 249);
    }

    #[test]
    fn schemas_of_different_places_differ() {
        let one = ClusterNames::new("a", "b-c").schema("kv", NodeId(0));
        let other = ClusterNames::new("a-b", "c").schema("kv", NodeId(0));
        assert_ne!(one, other);
        assert!(one.starts_with("kv_b_c_") && one.ends_with("_0"), "{one}");
    }

    #[test]
    fn names_of_the_sample() {
        let names = ClusterNames::new("default", "demo");
        assert_eq!(names.log_topic(), "default.demo.log");
        assert_eq!(names.pod(NodeId(2)), "demo-2-0");
        assert_eq!(
            names.peer_address(NodeId(1)),
            "demo-1-0.demo-peers.default.svc:8080"
        );
    }
}
