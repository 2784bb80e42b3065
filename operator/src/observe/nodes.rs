//! What the nodes say of themselves: `GET /status` on the admin port of each pod, by the pod's address, so that neither DNS
//! nor a Service stands between.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures::future::join_all;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::Request;
use hyper::body::Bytes;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use kvcluster_crds::names::PORT_ADMIN;
use kvcluster_crds::{NodeId, NodeStatus};

use super::PodView;

/// The whole question and answer.
const STATUS_TIMEOUT: Duration = Duration::from_secs(2);
/// Longest status that is read, bytes: 1,024 slots are about 300 kB.
const STATUS_BYTES_MAX: usize = 4 * 1_048_576;

/// Why a node's status is not known.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum NodeTrouble {
    /// There is no pod.
    #[error("it has no pod yet")]
    NoPod,
    /// The pod has no address.
    #[error("its pod has no address yet")]
    NoAddress,
    /// Something keeps the pod from running.
    #[error("its pod does not run: {0}")]
    PodProblem(String),
    /// No answer, or not one that can be read.
    #[error("its pod does not answer on port {PORT_ADMIN}")]
    NoAnswer,
    /// It answers for another cluster.
    #[error("its pod serves another cluster")]
    AnotherCluster,
}

/// Asks nodes; keeps connections open between passes.
#[derive(Clone)]
pub struct StatusClient {
    http: Client<HttpConnector, Empty<Bytes>>,
}

impl Default for StatusClient {
    fn default() -> Self {
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(STATUS_TIMEOUT));
        Self {
            http: Client::builder(TokioExecutor::new()).build(connector),
        }
    }
}

impl StatusClient {
    /// Asks all nodes at once.
    pub async fn ask(
        &self,
        cluster_uid: &str,
        nodes: &BTreeSet<NodeId>,
        pods: &BTreeMap<NodeId, PodView>,
    ) -> BTreeMap<NodeId, Result<NodeStatus, NodeTrouble>> {
        let asked = nodes.iter().map(|node| async move {
            (
                *node,
                self.ask_one(cluster_uid, *node, pods.get(node)).await,
            )
        });
        join_all(asked).await.into_iter().collect()
    }

    async fn ask_one(
        &self,
        cluster_uid: &str,
        node: NodeId,
        pod: Option<&PodView>,
    ) -> Result<NodeStatus, NodeTrouble> {
        let pod = pod.ok_or(NodeTrouble::NoPod)?;
        if let Some(problem) = &pod.problem {
            return Err(NodeTrouble::PodProblem(problem.clone()));
        }
        let ip = pod.ip.as_deref().ok_or(NodeTrouble::NoAddress)?;
        let host = if ip.contains(':') {
            format!("[{ip}]")
        } else {
            ip.to_owned()
        };
        self.ask_at(cluster_uid, node, &format!("{host}:{PORT_ADMIN}"))
            .await
    }

    /// Asks a node at the `host:port` of its admin port.
    pub async fn ask_at(
        &self,
        cluster_uid: &str,
        node: NodeId,
        address: &str,
    ) -> Result<NodeStatus, NodeTrouble> {
        let url = format!("http://{address}/status");
        let status = tokio::time::timeout(STATUS_TIMEOUT, self.get(&url))
            .await
            .ok()
            .flatten()
            .ok_or(NodeTrouble::NoAnswer)?;
        if status.cluster_uid != cluster_uid || status.node != node {
            return Err(NodeTrouble::AnotherCluster);
        }
        Ok(status)
    }

    async fn get(&self, url: &str) -> Option<NodeStatus> {
        let request = Request::get(url).body(Empty::new()).ok()?;
        let answer = self.http.request(request).await.ok()?;
        if !answer.status().is_success() {
            return None;
        }
        let body = Limited::new(answer.into_body(), STATUS_BYTES_MAX)
            .collect()
            .await
            .ok()?;
        serde_json::from_slice(&body.to_bytes()).ok()
    }
}
