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

/// Reads the Kubernetes nodes that the pods are on. Where the operator may not read them, nothing is known of zones, and no pod is
/// taken for lost. One that is gone is lost since `gone_since`, or since now.
pub async fn hosts(
    client: &Client,
    pods: &BTreeMap<NodeId, PodView>,
    gone_since: &BTreeMap<String, Timestamp>,
    now: Timestamp,
) -> BTreeMap<String, HostView> {
    let api: Api<Node> = Api::all(client.clone());
    let names: BTreeSet<&String> = pods.values().filter_map(|pod| pod.host.as_ref()).collect();
    let reads = names.into_iter().map(|name| {
        let api = api.clone();
        async move { (name, call("read a Node", api.get_opt(name)).await) }
    });
    let seen = futures::future::join_all(reads).await.into_iter();
    seen.filter_map(|(name, read)| {
        let view = match read.ok()? {
            Some(node) => HostView::of(&node),
            None => HostView {
                lost_since: Some(gone_since.get(name).copied().unwrap_or(now)),
                ..HostView::default()
            },
        };
        Some((name.clone(), view))
    })
    .collect()
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
}
