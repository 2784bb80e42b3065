//! The cluster's Kubernetes objects, read from the API server itself and not from a cache: what a step just wrote is seen by
//! the next pass.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{Pod, Secret, Service};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::api::{Api, ListParams};
use kube::{Client, Resource, ResourceExt};
use kvcluster_crds::NodeId;
use kvcluster_crds::names::{LABEL_NODE, MANAGED_BY, SECRET_KEY_URL};
use kvcluster_crds::v1alpha1::SecretKeyRef;

use super::{HostView, NodeSecret};
use crate::build::secret::ANNOTATION_INSTANCE;
use crate::clients::postgres::PostgresTrouble;
use crate::cluster::Target;
use crate::secret_text::{self, SecretText};
use crate::seeded::{self, Bug};

/// One request to the API server, its own retries included.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// How the problem of a pod begins that no Kubernetes node takes.
pub const UNSCHEDULED: &str = "not scheduled";

/// Why the API server could not be asked, or said no.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum KubernetesTrouble {
    /// No answer in time.
    #[error("the API server did not answer within {} s: {action}", REQUEST_TIMEOUT.as_secs())]
    TimedOut {
        /// What was asked.
        action: String,
    },
    /// It said no.
    #[error("failed to {action}: {text}")]
    Failed {
        /// What was asked.
        action: String,
        /// Its words.
        text: String,
    },
    /// An object of the name that is needed belongs to somebody else.
    #[error("{object} exists and belongs to {owner}; remove it, or name the KvCluster differently")]
    AnotherOwner {
        /// Kind and name.
        object: String,
        /// Who it belongs to.
        owner: String,
    },
    /// Another operator, or the user, changed the object between reading and writing; the next pass sees it.
    #[error("{object} changed while it was being written")]
    Conflict {
        /// Kind and name.
        object: String,
    },
}

/// The objects of the cluster that carry its UID as owner, by name.
#[derive(Clone, Debug, Default)]
pub struct ObjectsView {
    /// One per node.
    pub stateful_sets: BTreeMap<String, StatefulSet>,
    /// The peers' and the clients'.
    pub services: BTreeMap<String, Service>,
    /// One.
    pub budgets: BTreeMap<String, PodDisruptionBudget>,
    /// One per node, when its StatefulSet runs.
    pub pods: BTreeMap<NodeId, PodView>,
    /// Nodes that have a pod, whoever it belongs to.
    pub housed: BTreeSet<NodeId>,
    /// Where nodes run or last ran, as far as that can be known.
    pub zones: BTreeMap<NodeId, String>,
    /// The Kubernetes nodes that the pods are on, as far as they may be read.
    pub hosts: BTreeMap<String, HostView>,
    /// Whether the operator has no right to read those.
    pub hosts_forbidden: bool,
}

impl ObjectsView {
    /// The nodes that have a StatefulSet, in order.
    pub fn nodes(&self) -> Vec<NodeId> {
        let ids = self.stateful_sets.values().filter_map(node_of_set);
        let ids: BTreeSet<NodeId> = ids.collect();
        ids.into_iter().collect()
    }
}

/// The node that a StatefulSet is for.
pub fn node_of_set(set: &StatefulSet) -> Option<NodeId> {
    set.labels().get(LABEL_NODE)?.parse().ok().map(NodeId)
}

/// A node's pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodView {
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
    /// The Kubernetes node that it is on.
    pub host: Option<String>,
    /// Its address, once it has one.
    pub ip: Option<String>,
    /// When the pod was made.
    pub created: Option<Timestamp>,
    /// Whether it passes its readiness probe.
    pub ready: bool,
    /// Revision of the template that it was made from.
    pub revision: Option<String>,
    /// Whether it is being deleted.
    pub terminating: bool,
    /// What keeps it from running, in Kubernetes' words.
    pub problem: Option<String>,
}

/// Bounds a call to the API server in time and gives its error words.
pub async fn call<T>(
    action: impl Into<String>,
    work: impl Future<Output = Result<T, kube::Error>>,
) -> Result<T, KubernetesTrouble> {
    let action = action.into();
    match tokio::time::timeout(REQUEST_TIMEOUT, work).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(kube::Error::Api(status))) if status.is_conflict() => {
            Err(KubernetesTrouble::Conflict { object: action })
        }
        Ok(Err(kube::Error::Api(status))) => Err(KubernetesTrouble::Failed {
            action,
            text: status.message.clone(),
        }),
        Ok(Err(error)) => Err(KubernetesTrouble::Failed {
            action,
            text: error.to_string(),
        }),
        Err(_) => Err(KubernetesTrouble::TimedOut { action }),
    }
}

/// Reads the cluster's objects.
pub async fn objects(client: &Client, target: &Target) -> Result<ObjectsView, KubernetesTrouble> {
    let uid = target.uid.as_str();
    let (stateful_sets, services, budgets, pods) = tokio::try_join!(
        owned::<StatefulSet>(client, target, uid),
        owned::<Service>(client, target, uid),
        owned::<PodDisruptionBudget>(client, target, uid),
        list::<Pod>(client, target),
    )?;
    let sets: Vec<String> = stateful_sets
        .values()
        .filter_map(ResourceExt::uid)
        .collect();
    let node_of = |pod: &Pod| pod.labels().get(LABEL_NODE)?.parse().ok().map(NodeId);
    let housed = pods.iter().filter_map(node_of).collect();
    let pods = pods.into_iter().zip(0..).filter_map(|(pod, place)| {
        let of_ours = pod
            .owner_references()
            .iter()
            .any(|owner| sets.contains(&owner.uid));
        let node = node_of(&pod)?;
        let by_place = seeded::on(Bug::OrderAssumed);
        let node = if by_place { NodeId(place) } else { node };
        of_ours.then(|| (node, view(&pod)))
    });
    Ok(ObjectsView {
        pods: pods.collect(),
        housed,
        zones: BTreeMap::new(),
        hosts: BTreeMap::new(),
        hosts_forbidden: false,
        stateful_sets,
        services,
        budgets,
    })
}

async fn list<K>(client: &Client, target: &Target) -> Result<Vec<K>, KubernetesTrouble>
where
    K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
        + Clone
        + std::fmt::Debug
        + serde::de::DeserializeOwned,
{
    let api: Api<K> = if seeded::on(Bug::NamespaceUnchecked) {
        Api::all(client.clone())
    } else {
        Api::namespaced(client.clone(), target.names.namespace())
    };
    let selector = target.names.selector();
    let labels: Vec<String> = selector
        .iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    let parameters = ListParams::default().labels(&labels.join(","));
    Ok(
        call(format!("list {}", K::plural(&())), api.list(&parameters))
            .await?
            .items,
    )
}

async fn owned<K>(
    client: &Client,
    target: &Target,
    uid: &str,
) -> Result<BTreeMap<String, K>, KubernetesTrouble>
where
    K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
        + Clone
        + std::fmt::Debug
        + serde::de::DeserializeOwned,
{
    let all = list::<K>(client, target).await?;
    let owned = all.into_iter().filter(|object| {
        object
            .owner_references()
            .iter()
            .any(|owner| owner.uid == uid)
            && object
                .labels()
                .get("app.kubernetes.io/managed-by")
                .is_some_and(|by| by == MANAGED_BY)
    });
    Ok(owned.map(|object| (object.name_any(), object)).collect())
}

fn view(pod: &Pod) -> PodView {
    let status = pod.status.clone().unwrap_or_default();
    let conditions = status.conditions.unwrap_or_default();
    let unscheduled = conditions
        .iter()
        .find(|c| c.type_ == "PodScheduled" && c.status == "False");
    let waiting = status
        .container_statuses
        .unwrap_or_default()
        .into_iter()
        .find_map(|container| {
            let waiting = container.state?.waiting?;
            let reason = waiting.reason.unwrap_or_default();
            // Every pod passes through these two.
            (reason != "ContainerCreating" && reason != "PodInitializing").then(|| {
                let message = waiting.message.unwrap_or_default();
                format!("{reason}: {message}")
            })
        });
    PodView {
        name: pod.name_any(),
        uid: pod.uid().unwrap_or_default(),
        host: pod.spec.as_ref().and_then(|spec| spec.node_name.clone()),
        ip: status.pod_ip,
        created: pod.creation_timestamp().map(|time| time.0),
        ready: conditions
            .iter()
            .any(|c| c.type_ == "Ready" && c.status == "True"),
        revision: pod.labels().get("controller-revision-hash").cloned(),
        terminating: pod.meta().deletion_timestamp.is_some(),
        problem: waiting.or_else(|| {
            unscheduled.map(|condition| {
                format!(
                    "{UNSCHEDULED}: {}",
                    condition.message.clone().unwrap_or_default()
                )
            })
        }),
    }
}

/// The Secret of each node that has one of ours. Read by name: the operator may not list Secrets.
pub async fn node_secrets(
    client: &Client,
    target: &Target,
    nodes: &BTreeSet<NodeId>,
) -> Result<BTreeMap<NodeId, NodeSecret>, KubernetesTrouble> {
    let api: Api<Secret> = Api::namespaced(client.clone(), target.names.namespace());
    let reads = nodes.iter().map(|&node| {
        let (api, name) = (api.clone(), target.names.node_secret(node));
        async move {
            let found = call(format!("read Secret {name}"), api.get_opt(&name)).await?;
            Ok::<_, KubernetesTrouble>((node, found))
        }
    });
    let mut secrets = BTreeMap::new();
    for read in futures::future::join_all(reads).await {
        let (node, Some(secret)) = read? else {
            continue;
        };
        let ours = secret
            .owner_references()
            .iter()
            .any(|owner| owner.uid == target.uid);
        let instance = secret.annotations().get(ANNOTATION_INSTANCE).cloned();
        if let (true, Some(instance), Some(url)) = (ours, instance, value(&secret, SECRET_KEY_URL))
        {
            let uid = secret.uid().unwrap_or_default();
            secrets.insert(node, NodeSecret { instance, url, uid });
        }
    }
    Ok(secrets)
}

/// Reads the Secrets of `nodes`, and of those next to the end of the ids that were given out, `end`, as far as there are any: of
/// nodes that were prepared and never became members nothing else may tell. Adds those that were looked for to `nodes`.
pub async fn secrets_around(
    client: &Client,
    target: &Target,
    nodes: &mut BTreeSet<NodeId>,
    end: NodeId,
) -> Result<BTreeMap<NodeId, NodeSecret>, KubernetesTrouble> {
    let mut secrets = node_secrets(client, target, nodes).await?;
    let up = (end.get()..).map(NodeId);
    let down = (0..end.get()).rev().map(NodeId);
    let sides: [Box<dyn Iterator<Item = NodeId> + Send>; 2] = [Box::new(up), Box::new(down)];
    for side in sides {
        for node in side {
            if nodes.insert(node) {
                let found = node_secrets(client, target, &BTreeSet::from([node])).await?;
                secrets.extend(found);
            } else if node < end {
                break;
            }
            if !secrets.contains_key(&node) {
                break;
            }
        }
    }
    Ok(secrets)
}

/// The URL that a Secret reference of the spec points to.
pub async fn admin_url(
    client: &Client,
    namespace: &str,
    reference: &SecretKeyRef,
) -> Result<SecretText, PostgresTrouble> {
    let (name, key) = (reference.name.clone(), reference.key.clone());
    let api: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let found = call("read it", api.get_opt(&name)).await.map_err(|error| {
        PostgresTrouble::SecretUnreadable {
            name: name.clone(),
            text: error.to_string(),
        }
    })?;
    let Some(secret) = found else {
        return Err(PostgresTrouble::SecretMissing { name, key });
    };
    match value(&secret, &key) {
        Some(url) if secret_text::options(&url).is_ok() => Ok(url),
        _ => Err(PostgresTrouble::SecretUnusable { name, key }),
    }
}

fn value(secret: &Secret, key: &str) -> Option<SecretText> {
    let bytes = &secret.data.as_ref()?.get(key)?.0;
    std::str::from_utf8(bytes)
        .ok()
        .map(|text| SecretText::new(text.trim()))
}
