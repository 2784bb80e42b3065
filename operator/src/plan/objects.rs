//! The Kubernetes objects: applied when they are missing or differ.
//!
//! An object differs when the hash of what was last applied is another one (a field was changed or dropped by the spec), or
//! when a field that is wanted has another value (somebody changed it by hand). Fields that the API server adds are no
//! difference, so a cluster that is as wanted is never written to.

use std::collections::BTreeMap;
use std::fmt;

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt;
use kvcluster_crds::NodeId;
use serde::Serialize;
use serde_json::Value;
use xxhash_rust::xxh3::xxh3_64;

use super::{Stage, Step};
use crate::build;
use crate::cluster::Target;
use crate::observe::World;
use crate::quantity;
use crate::seeded::{self, Bug};

/// Annotation: hash of the object as it was applied.
pub const ANNOTATION_APPLIED: &str = "kvcluster.dev/applied";

/// An object that the operator applies.
#[derive(Clone, Debug, PartialEq)]
pub enum Object {
    /// The peers' or the clients' Service.
    Service(Box<Service>),
    /// The PodDisruptionBudget.
    Budget(Box<PodDisruptionBudget>),
    /// A node.
    StatefulSet(Box<StatefulSet>),
}

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Service(object) => write!(f, "Service {}", object.name_any()),
            Self::Budget(object) => write!(f, "PodDisruptionBudget {}", object.name_any()),
            Self::StatefulSet(object) => write!(f, "StatefulSet {}", object.name_any()),
        }
    }
}

pub(super) fn stage(target: &Target, world: &World, nodes: &[NodeId], node_image: &str) -> Stage {
    let objects = match &world.objects {
        Some(Ok(objects)) => objects,
        Some(Err(trouble)) => return Stage::refuse("ObjectsUnreadable", trouble),
        None => return Stage::default(),
    };
    let mut steps = Vec::new();
    for service in [
        build::service::peers(target),
        build::service::clients(target),
    ] {
        let live = objects.services.get(&service.name_any());
        steps.extend(apply(service, live, Object::Service));
    }
    let mut budget = build::pdb::budget(target);
    if seeded::on(Bug::BudgetFollowsPods) {
        let ready = objects.pods.values().filter(|pod| pod.ready).count();
        budget
            .annotations_mut()
            .insert("ready".to_owned(), ready.to_string());
    }
    let live = objects.budgets.get(&budget.name_any());
    steps.extend(apply(budget, live, Object::Budget));
    // Planned once the log id stands: nodes are started with it.
    if let Some(log_id) = target.log_id {
        let chosen = objects.stateful_sets.values().find_map(|set| {
            let annotations = set.annotations();
            annotations.get(build::statefulset::ANNOTATION_DEFAULT_IMAGE)
        });
        let node_image = chosen.map_or(node_image, String::as_str);
        for &node in nodes {
            let set = build::statefulset::stateful_set(target, log_id, node, node_image);
            let live = objects.stateful_sets.get(&set.name_any());
            steps.extend(apply(set, live, Object::StatefulSet));
        }
    }
    Stage {
        steps,
        refused: None,
    }
}

fn apply<K>(mut wanted: K, live: Option<&K>, object: fn(Box<K>) -> Object) -> Option<Step>
where
    K: Serialize + kube::Resource,
{
    let hash = mark(&mut wanted);
    let applied = live.and_then(|live| live.annotations().get(ANNOTATION_APPLIED));
    let is_as_wanted = |live: &K| {
        let (wanted, live) = (json(&wanted), json(live));
        is_part(&wanted, &live) && (wanted == live || !seeded::on(Bug::DefaultsAreChanges))
    };
    let same = applied == Some(&hash) && live.is_some_and(is_as_wanted);
    (!same).then(|| Step::Apply(object(Box::new(wanted))))
}

/// Puts the hash of the object onto it.
fn mark<K: Serialize + kube::Resource>(object: &mut K) -> String {
    let text = json(object).to_string();
    let text = if seeded::on(Bug::DroppedFieldsStay) {
        String::new()
    } else {
        text
    };
    let hash = format!("{:016x}", xxh3_64(text.as_bytes()));
    let metadata: &mut ObjectMeta = object.meta_mut();
    let annotations: &mut BTreeMap<String, String> = metadata.annotations.get_or_insert_default();
    annotations.insert(ANNOTATION_APPLIED.to_owned(), hash.clone());
    hash
}

fn json<K: Serialize>(object: &K) -> Value {
    serde_json::to_value(object).expect("Kubernetes objects have only keys that are text")
}

/// Whether all of `wanted` stands in `live`. Lists must agree element by element; quantities by value, since the API server
/// writes `0.5` as `500m`.
fn is_part(wanted: &Value, live: &Value) -> bool {
    match (wanted, live) {
        (Value::Object(wanted), Value::Object(live)) => wanted.iter().all(|(key, value)| {
            live.get(key)
                .map_or(is_empty(value), |live| is_part(value, live))
        }),
        (Value::Array(wanted), Value::Array(live)) => {
            wanted.len() == live.len() && wanted.iter().zip(live).all(|(w, l)| is_part(w, l))
        }
        (Value::String(wanted), Value::String(live)) => {
            wanted == live || quantity::are_equal(wanted, live)
        }
        (wanted, live) => wanted == live,
    }
}

/// The API server leaves out what is empty.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Object(fields) => fields.values().all(is_empty),
        Value::Array(list) => list.is_empty(),
        Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
    }
}
