//! The PodDisruptionBudget: one node at a time. A pod that does not even run may always be evicted, so that a broken node
//! never keeps a Kubernetes node from being drained.

use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::cluster::Target;

/// The budget of the cluster.
pub fn budget(target: &Target) -> PodDisruptionBudget {
    PodDisruptionBudget {
        metadata: super::metadata(target, target.names.cluster().to_owned()),
        spec: Some(PodDisruptionBudgetSpec {
            max_unavailable: Some(IntOrString::Int(1)),
            selector: Some(LabelSelector {
                match_labels: Some(target.names.selector()),
                ..LabelSelector::default()
            }),
            unhealthy_pod_eviction_policy: Some("AlwaysAllow".to_owned()),
            ..PodDisruptionBudgetSpec::default()
        }),
        status: None,
    }
}
