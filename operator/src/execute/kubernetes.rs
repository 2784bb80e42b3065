//! Writes Kubernetes objects: server-side apply with one field manager, deletions with the UID that was seen.

use kube::api::{Api, DeleteParams, Patch, PatchParams, Preconditions, PropagationPolicy};
use kube::{Client, Resource, ResourceExt};
use kvcluster_crds::names::{FIELD_MANAGER, FINALIZER};
use kvcluster_crds::v1alpha1::{KvCluster, KvClusterStatus};
use kvcluster_crds::{LogId, NodeId};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{Pod, Secret};

use super::ExecuteError;
use crate::build;
use crate::cluster::Target;
use crate::observe::KubernetesTrouble;
use crate::observe::kubernetes::call;
use crate::plan::Object;
use crate::secret_text::SecretText;
use crate::seeded::{self, Bug};

/// Applies an object of the cluster.
pub async fn apply(client: &Client, target: &Target, object: &Object) -> Result<(), ExecuteError> {
    match object {
        Object::Service(service) => apply_object(client, target, service.as_ref()).await,
        Object::Budget(budget) => apply_object(client, target, budget.as_ref()).await,
        Object::StatefulSet(set) => apply_object(client, target, set.as_ref()).await,
    }
}

/// Writes a node's Secret.
pub async fn write_secret(
    client: &Client,
    target: &Target,
    node: NodeId,
    instance: &str,
    url: &SecretText,
) -> Result<(), ExecuteError> {
    let secret = build::secret::secret(target, node, instance, url);
    apply_object(client, target, &secret).await
}

/// Applies by force, but only what is missing or ours: an object of another owner is left alone.
async fn apply_object<K>(client: &Client, target: &Target, object: &K) -> Result<(), ExecuteError>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + std::fmt::Debug
        + Serialize
        + DeserializeOwned,
{
    let name = object.name_any();
    let title = format!("{} {name}", K::kind(&()));
    let api: Api<K> = Api::namespaced(client.clone(), target.names.namespace());
    if let Some(live) = call(format!("read {title}"), api.get_opt(&name)).await? {
        let owners = live.owner_references();
        let ours = owners.iter().any(|owner| owner.uid == target.uid);
        if !ours && !seeded::on(Bug::OwnerUnchecked) {
            let owner = owners.first().map_or_else(
                || "nobody that the operator knows".to_owned(),
                |owner| format!("{} {} with UID {}", owner.kind, owner.name, owner.uid),
            );
            return Err(KubernetesTrouble::AnotherOwner {
                object: title,
                owner,
            }
            .into());
        }
    }
    let parameters = PatchParams::apply(FIELD_MANAGER).force();
    call(
        format!("apply {title}"),
        api.patch(&name, &parameters, &Patch::Apply(object)),
    )
    .await?;
    Ok(())
}

fn api(client: &Client, target: &Target) -> Api<KvCluster> {
    Api::namespaced(client.clone(), target.names.namespace())
}

/// Sets the finalizers of the `KvCluster`, unless it changed since it was read.
pub async fn set_finalizer(
    client: &Client,
    target: &Target,
    cluster: &KvCluster,
    wanted: bool,
) -> Result<(), ExecuteError> {
    let mut finalizers: Vec<String> = cluster
        .finalizers()
        .iter()
        .filter(|name| *name != FINALIZER)
        .cloned()
        .collect();
    if wanted {
        finalizers.push(FINALIZER.to_owned());
    }
    let patch = Patch::Merge(json!({
        "metadata": { "resourceVersion": cluster.resource_version(), "finalizers": finalizers }
    }));
    let name = target.names.cluster();
    let parameters = PatchParams::default();
    let clusters = api(client, target);
    let write = clusters.patch(name, &parameters, &patch);
    call("write the finalizer of the KvCluster", write).await?;
    Ok(())
}

/// Pins the log id in the status, unless the `KvCluster` changed since it was read: it must never be replaced by another.
pub async fn pin_log_id(
    client: &Client,
    target: &Target,
    cluster: &KvCluster,
    log_id: LogId,
) -> Result<(), ExecuteError> {
    let status = KvClusterStatus {
        log_id: Some(log_id.to_string()),
        ..target.status.clone()
    };
    write_status(client, target, cluster, &status).await
}

/// Writes the whole status, unless the `KvCluster` changed since it was read.
pub async fn write_status(
    client: &Client,
    target: &Target,
    cluster: &KvCluster,
    status: &KvClusterStatus,
) -> Result<(), ExecuteError> {
    let name = target.names.cluster();
    let version = cluster.resource_version();
    let version = version.filter(|_| !seeded::on(Bug::StatusOverwrites));
    let patch = Patch::Apply(json!({
        "apiVersion": KvCluster::api_version(&()),
        "kind": KvCluster::kind(&()),
        "metadata": { "name": name, "resourceVersion": version },
        "status": status,
    }));
    let parameters = PatchParams::apply(FIELD_MANAGER).force();
    let clusters = api(client, target);
    let write = clusters.patch_status(name, &parameters, &patch);
    call("write the status of the KvCluster", write).await?;
    Ok(())
}

/// Deletes a StatefulSet; it stands until its pod is gone.
pub async fn delete_stateful_set(
    client: &Client,
    target: &Target,
    name: &str,
    uid: &str,
) -> Result<(), ExecuteError> {
    let parameters = DeleteParams {
        propagation_policy: Some(PropagationPolicy::Foreground),
        ..exactly(uid)
    };
    delete::<StatefulSet>(client, target, name, &parameters).await
}

/// Deletes a pod at once: the API server forgets it, whatever its kubelet does. Its process may run on, unseen, while another one of
/// the same node starts elsewhere. That is safe: the log takes records of the current epoch's process alone, and the schema lets
/// the process write alone that entered it last; the older one loses at both and ends.
pub async fn force_delete_pod(
    client: &Client,
    target: &Target,
    name: &str,
    uid: &str,
) -> Result<(), ExecuteError> {
    let parameters = DeleteParams {
        grace_period_seconds: Some(0),
        ..exactly(uid)
    };
    delete::<Pod>(client, target, name, &parameters).await
}

/// Deletes a node's Secret.
pub async fn delete_secret(
    client: &Client,
    target: &Target,
    name: &str,
    uid: &str,
) -> Result<(), ExecuteError> {
    delete::<Secret>(client, target, name, &exactly(uid)).await
}

/// Deletes a pod, gracefully.
pub async fn delete_pod(
    client: &Client,
    target: &Target,
    name: &str,
    uid: &str,
) -> Result<(), ExecuteError> {
    delete::<Pod>(client, target, name, &exactly(uid)).await
}

fn exactly(uid: &str) -> DeleteParams {
    DeleteParams {
        preconditions: Some(Preconditions {
            uid: Some(uid.to_owned()).filter(|_| !seeded::on(Bug::UidUnchecked)),
            resource_version: None,
        }),
        ..DeleteParams::default()
    }
}

async fn delete<K>(
    client: &Client,
    target: &Target,
    name: &str,
    parameters: &DeleteParams,
) -> Result<(), ExecuteError>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + DeserializeOwned
        + std::fmt::Debug,
{
    let api: Api<K> = Api::namespaced(client.clone(), target.names.namespace());
    let deleting = async {
        match api.delete(name, parameters).await {
            Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
            done => done.map(|_| ()),
        }
    };
    call(format!("delete {name}"), deleting).await?;
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests;
