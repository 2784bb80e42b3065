//! The StatefulSet controller, the scheduler and the kubelet: a step of each at a time.

use k8s_openapi::api::apps::v1::{StatefulSet, StatefulSetStatus};
use k8s_openapi::api::core::v1::{
    ContainerState, ContainerStateWaiting, ContainerStatus, Pod, PodCondition, PodStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::ResourceExt;
use serde_json::json;
use xxhash_rust::xxh3::xxh3_64;

use super::api::ApiServer;

/// An image that cannot be pulled.
pub(super) const BAD_IMAGE: &str = "registry.invalid/none";

/// A label that no Kubernetes node has.
pub(super) const NOWHERE: &str = "nowhere";

/// One step of everything; whether something changed.
pub(super) fn tick(api: &ApiServer) -> bool {
    let mut changed = false;
    let pods: Vec<Pod> = api.all("pods");
    for pod in pods
        .iter()
        .filter(|pod| pod.metadata.deletion_timestamp.is_some())
    {
        api.remove("pods", &pod.name_any());
        changed = true;
    }
    for set in api.all::<StatefulSet>("statefulsets") {
        changed |= control(api, set, &pods);
    }
    changed | api.collect_garbage()
}

fn revision(set: &StatefulSet) -> String {
    let template = json!(set.spec.as_ref().map(|spec| &spec.template));
    let hash = xxh3_64(template.to_string().as_bytes());
    format!("{}-{:08x}", set.name_any(), hash >> 32)
}

fn control(api: &ApiServer, mut set: StatefulSet, pods: &[Pod]) -> bool {
    let name = format!("{}-0", set.name_any());
    let pod = pods.iter().find(|pod| pod.name_any() == name);
    if set.metadata.deletion_timestamp.is_some() {
        match pod {
            None => api.remove("statefulsets", &set.name_any()),
            Some(pod) => api.remove("pods", &pod.name_any()),
        }
        return true;
    }
    let revision = revision(&set);
    let status = StatefulSetStatus {
        observed_generation: set.metadata.generation,
        update_revision: Some(revision.clone()),
        ..StatefulSetStatus::default()
    };
    let mut changed = false;
    if set.status.as_ref() != Some(&status) {
        set.status = Some(status);
        api.put("statefulsets", &set);
        changed = true;
    }
    let replicas = set.spec.as_ref().and_then(|spec| spec.replicas);
    if pod.is_none() && replicas != Some(0) {
        api.put("pods", &start(&set, name, revision));
        changed = true;
    }
    changed
}

fn start(set: &StatefulSet, name: String, revision: String) -> Pod {
    let spec = set.spec.clone().expect("a StatefulSet has a spec");
    let template = spec.template;
    let mut labels = template
        .metadata
        .and_then(|metadata| metadata.labels)
        .unwrap_or_default();
    labels.insert("controller-revision-hash".to_owned(), revision);
    let spec = template.spec.expect("a template has a spec");
    let image = spec.containers[0].image.clone().unwrap_or_default();
    let selector = spec.node_selector.clone().unwrap_or_default();
    let status = if selector.contains_key(NOWHERE) {
        unscheduled()
    } else {
        status(image == BAD_IMAGE)
    };
    Pod {
        metadata: ObjectMeta {
            name: Some(name),
            namespace: set.namespace(),
            labels: Some(labels),
            owner_references: Some(vec![OwnerReference {
                api_version: "apps/v1".to_owned(),
                kind: "StatefulSet".to_owned(),
                name: set.name_any(),
                uid: set.uid().expect("it stands"),
                controller: Some(true),
                block_owner_deletion: Some(true),
            }]),
            ..ObjectMeta::default()
        },
        spec: Some(spec),
        status: Some(status),
    }
}

fn status(is_bad: bool) -> PodStatus {
    let ready = PodCondition {
        type_: "Ready".to_owned(),
        status: if is_bad { "False" } else { "True" }.to_owned(),
        ..PodCondition::default()
    };
    let waiting = ContainerStateWaiting {
        reason: Some("ImagePullBackOff".to_owned()),
        message: Some("there is no such image".to_owned()),
    };
    let container = ContainerStatus {
        name: "node".to_owned(),
        state: is_bad.then(|| ContainerState {
            waiting: Some(waiting),
            ..ContainerState::default()
        }),
        ..ContainerStatus::default()
    };
    PodStatus {
        pod_ip: Some("10.0.0.1".to_owned()),
        conditions: Some(vec![ready]),
        container_statuses: Some(vec![container]),
        ..PodStatus::default()
    }
}

fn unscheduled() -> PodStatus {
    let scheduled = PodCondition {
        type_: "PodScheduled".to_owned(),
        status: "False".to_owned(),
        message: Some("no node has the label".to_owned()),
        ..PodCondition::default()
    };
    PodStatus {
        conditions: Some(vec![scheduled]),
        ..PodStatus::default()
    }
}

/// Whether the node of a pod runs.
pub(super) fn runs(pod: &Pod) -> bool {
    let conditions = pod
        .status
        .as_ref()
        .and_then(|status| status.conditions.as_ref());
    let ready = |condition: &PodCondition| condition.type_ == "Ready" && condition.status == "True";
    pod.metadata.deletion_timestamp.is_none()
        && conditions.is_some_and(|conditions| conditions.iter().any(ready))
}
