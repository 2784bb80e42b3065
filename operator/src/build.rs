//! What the spec asks for, as objects: pure functions, so that every field can be read in a snapshot.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::Resource;
use kvcluster_crds::v1alpha1::KvCluster;

use crate::cluster::Target;

pub mod pdb;
pub mod secret;
pub mod service;
pub mod statefulset;
pub mod topics;

/// Metadata of an object of the cluster: it goes when the `KvCluster` goes.
fn metadata(target: &Target, name: String) -> ObjectMeta {
    ObjectMeta {
        name: Some(name),
        namespace: Some(target.names.namespace().to_owned()),
        labels: Some(target.names.labels()),
        owner_references: Some(vec![OwnerReference {
            api_version: KvCluster::api_version(&()).into_owned(),
            kind: KvCluster::kind(&()).into_owned(),
            name: target.names.cluster().to_owned(),
            uid: target.uid.clone(),
            controller: Some(true),
            block_owner_deletion: Some(true),
        }]),
        ..ObjectMeta::default()
    }
}

#[cfg(test)]
mod tests;
