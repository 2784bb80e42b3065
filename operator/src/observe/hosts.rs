//! The Kubernetes nodes that the pods are on: in which zone each is, whether it is lost, whether it is being emptied.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Taint};
use kube::api::Api;
use kube::{Client, ResourceExt};
use kvcluster_crds::NodeId;

use super::PodView;
use super::kubernetes::call;

/// Label of a Kubernetes node: its zone.
const LABEL_ZONE: &str = "topology.kubernetes.io/zone";

/// Taints with which somebody says that the pods of a Kubernetes node will be evicted: `kubectl cordon` (beside
/// `spec.unschedulable`), the cluster autoscaler, Karpenter. Those of nodes that are lost are not among them: a lost node is told by
/// its conditions, and others keep pods away for good and evict nobody.
const TAINTS_OF_DRAINING: [&str; 3] = [
    "node.kubernetes.io/unschedulable",
    "ToBeDeletedByClusterAutoscaler",
    "karpenter.sh/disrupted",
];

/// A Kubernetes node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostView {
    /// The zone that it is labelled with.
    pub zone: Option<String>,
    /// Since when it is not ready, or gone; none while it is ready.
    pub lost_since: Option<Timestamp>,
    /// Whether it takes no more pods because those that it has are to go: it is cordoned, or being removed.
    pub draining: bool,
}

impl HostView {
    /// What matters here of a Kubernetes node.
    pub fn of(node: &Node) -> Self {
        let conditions = node
            .status
            .as_ref()
            .and_then(|status| status.conditions.as_ref());
        let ready = conditions
            .into_iter()
            .flatten()
            .find(|condition| condition.type_ == "Ready");
        let lost = ready.filter(|condition| condition.status != "True");
        Self {
            zone: node.labels().get(LABEL_ZONE).cloned(),
            lost_since: lost.and_then(|condition| Some(condition.last_transition_time.as_ref()?.0)),
            draining: is_draining(node),
        }
    }
}

fn is_draining(node: &Node) -> bool {
    let Some(spec) = &node.spec else {
        return false;
    };
    let evicts = |taint: &Taint| {
        TAINTS_OF_DRAINING.contains(&taint.key.as_str())
            && matches!(taint.effect.as_str(), "NoSchedule" | "NoExecute")
    };
    spec.unschedulable == Some(true) || spec.taints.iter().flatten().any(evicts)
}

/// What was seen of the Kubernetes nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostsView {
    /// Those that were read, by name.
    pub known: BTreeMap<String, HostView>,
    /// Whether the operator has no right to read them.
    pub forbidden: bool,
}

/// Reads the Kubernetes nodes that the pods are on. Where that fails, nothing is known of zones, and no pod is taken for lost. One
/// that is gone is lost since `gone_since`, or since now.
pub async fn hosts(
    client: &Client,
    pods: &BTreeMap<NodeId, PodView>,
    gone_since: &BTreeMap<String, Timestamp>,
    now: Timestamp,
) -> HostsView {
    let api: Api<Node> = Api::all(client.clone());
    let names: BTreeSet<&String> = pods.values().filter_map(|pod| pod.host.as_ref()).collect();
    let reads = names.into_iter().map(|name| {
        let api = api.clone();
        async move { (name, call("read a Node", read(&api, name)).await) }
    });
    let mut view = HostsView::default();
    for (name, read) in futures::future::join_all(reads).await {
        let host = match read {
            Ok(Read::Found(host)) => host,
            Ok(Read::Gone) => HostView {
                lost_since: Some(gone_since.get(name).copied().unwrap_or(now)),
                ..HostView::default()
            },
            Ok(Read::Forbidden) => {
                view.forbidden = true;
                continue;
            }
            // No answer this time: the next pass asks again.
            Err(_) => continue,
        };
        view.known.insert(name.clone(), host);
    }
    view
}

enum Read {
    Found(HostView),
    Gone,
    Forbidden,
}

async fn read(api: &Api<Node>, name: &str) -> Result<Read, kube::Error> {
    match api.get_opt(name).await {
        Ok(Some(node)) => Ok(Read::Found(HostView::of(&node))),
        Ok(None) => Ok(Read::Gone),
        Err(kube::Error::Api(status)) if status.is_forbidden() => Ok(Read::Forbidden),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn host(spec: &Value) -> HostView {
        let node = json!({ "metadata": { "name": "worker" }, "spec": spec });
        HostView::of(&serde_json::from_value(node).expect("a Node"))
    }

    #[test]
    fn a_cordon_and_the_taints_of_those_who_drain_are_known() {
        let taint =
            |key: &str, effect: &str| json!({ "taints": [{ "key": key, "effect": effect }] });
        let emptied = [
            json!({ "unschedulable": true }),
            taint("node.kubernetes.io/unschedulable", "NoSchedule"),
            taint("ToBeDeletedByClusterAutoscaler", "NoSchedule"),
            taint("karpenter.sh/disrupted", "NoSchedule"),
            taint("node.kubernetes.io/unschedulable", "NoExecute"),
        ];
        for spec in emptied {
            assert!(host(&spec).draining, "{spec}");
        }
        let stays = [
            json!({}),
            json!({ "unschedulable": false }),
            taint("node-role.kubernetes.io/control-plane", "NoSchedule"),
            taint("node.kubernetes.io/unreachable", "NoExecute"),
            taint("karpenter.sh/disrupted", "PreferNoSchedule"),
        ];
        for spec in stays {
            assert!(!host(&spec).draining, "{spec}");
        }
    }

    /// An API server that knows `worker`, has forgotten `gone`, and gives no right to the others.
    fn server() -> Client {
        let service = tower::service_fn(|request: hyper::Request<kube::client::Body>| async move {
            let path = request.uri().path().to_owned();
            let failed = |code: u16, reason: &str| {
                let body = json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure",
                                   "code": code, "reason": reason, "message": reason });
                (code, body)
            };
            let (code, body) = match path.rsplit('/').next() {
                Some("worker") => (200, json!({ "metadata": { "name": "worker" } })),
                Some("gone") => failed(404, "NotFound"),
                _ => failed(403, "Forbidden"),
            };
            let answer = hyper::Response::builder().status(code);
            let body = kube::client::Body::from(body.to_string().into_bytes());
            Ok::<_, std::convert::Infallible>(answer.body(body).expect("a response"))
        });
        Client::new(service, "default")
    }

    #[tokio::test]
    async fn what_may_not_be_read_is_not_taken_for_lost() {
        let now = crate::fixtures::now();
        let pods = ["worker", "gone", "other"].into_iter().zip(0..);
        let pods = pods.map(|(host, node)| {
            let pod = PodView {
                host: Some(host.to_owned()),
                ..PodView::default()
            };
            (NodeId(node), pod)
        });
        let mut pods: BTreeMap<NodeId, PodView> = pods.collect();
        let view = hosts(&server(), &pods, &BTreeMap::new(), now).await;
        let gone = HostView {
            lost_since: Some(now),
            ..HostView::default()
        };
        let known = [("worker", HostView::default()), ("gone", gone)];
        assert_eq!(
            view.known,
            known.map(|(name, host)| (name.to_owned(), host)).into()
        );
        assert!(view.forbidden);
        pods.remove(&NodeId(2));
        let view = hosts(&server(), &pods, &BTreeMap::new(), now).await;
        assert!(!view.forbidden);
    }
}
