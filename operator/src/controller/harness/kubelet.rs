//! The StatefulSet controller, the scheduler and the kubelet: a step of each at a time. Where there are no Kubernetes nodes, pods run
//! without one.

use k8s_openapi::api::apps::v1::{StatefulSet, StatefulSetStatus};
use k8s_openapi::api::core::v1::{
    ContainerState, ContainerStateWaiting, ContainerStatus, Node, Pod, PodCondition, PodStatus,
};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
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
    changed |= schedule(api);
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

/// Gives each pod that has none the emptiest Kubernetes node that takes pods; until then it does not run.
fn schedule(api: &ApiServer) -> bool {
    let hosts: Vec<Node> = api.all("nodes");
    let mut changed = false;
    for mut pod in api.all::<Pod>("pods") {
        if hosts.is_empty() || host(&pod).is_some() {
            continue;
        }
        let takes =
            |node: &&Node| node.spec.as_ref().and_then(|spec| spec.unschedulable) != Some(true);
        let pods: Vec<Pod> = api.all("pods");
        let load = |node: &&Node| {
            let name = node.name_any();
            pods.iter().filter(|pod| host(pod) == Some(&name)).count()
        };
        let place = hosts.iter().filter(takes).min_by_key(load);
        let before = pod.clone();
        pod.status = Some(match place {
            Some(_) => status(image(&pod) == BAD_IMAGE),
            None => unscheduled(),
        });
        pod.spec.get_or_insert_default().node_name = place.map(ResourceExt::name_any);
        if pod != before {
            api.put("pods", &pod);
            changed = true;
        }
    }
    changed
}

fn host(pod: &Pod) -> Option<&String> {
    pod.spec.as_ref()?.node_name.as_ref()
}

fn image(pod: &Pod) -> String {
    let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
    let mut images = containers.filter_map(|container| container.image.clone());
    images.next().unwrap_or_default()
}

fn unscheduled() -> PodStatus {
    let scheduled = PodCondition {
        type_: "PodScheduled".to_owned(),
        status: "False".to_owned(),
        message: Some("0 nodes are available".to_owned()),
        ..PodCondition::default()
    };
    PodStatus {
        conditions: Some(vec![scheduled]),
        ..PodStatus::default()
    }
}

/// Asks for the eviction of a pod; whether the budgets let it go.
pub(super) fn evict(api: &ApiServer, name: &str) -> bool {
    let pods: Vec<Pod> = api.all("pods");
    let pod = pods.iter().find(|pod| pod.name_any() == name);
    let pod = pod.expect("a pod");
    let wanted = api.all::<StatefulSet>("statefulsets").len();
    let ready = pods.iter().filter(|pod| runs(pod)).count();
    let allowed = api
        .all::<PodDisruptionBudget>("poddisruptionbudgets")
        .into_iter()
        .all(|budget| {
            let spec = budget.spec.expect("a budget has a spec");
            let Some(IntOrString::Int(away)) = spec.max_unavailable else {
                panic!("the budget is a number of pods that may be away");
            };
            let away_max = usize::try_from(away).expect("a number of pods");
            let broken_goes = spec.unhealthy_pod_eviction_policy.as_deref() == Some("AlwaysAllow");
            (broken_goes && !runs(pod)) || wanted - ready < away_max
        });
    if allowed {
        api.remove("pods", name);
    }
    allowed
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
