//! The two Services: a headless one that gives the pods their names, and the one that clients use.

use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kvcluster_crds::names::{PORT_ADMIN, PORT_HTTP};
use kvcluster_crds::v1alpha1::ServiceType;

use crate::cluster::Target;

/// Names for pods, ready or not: nodes find each other before they serve.
pub fn peers(target: &Target) -> Service {
    Service {
        metadata: super::metadata(target, target.names.peer_service()),
        spec: Some(ServiceSpec {
            type_: Some("ClusterIP".to_owned()),
            cluster_ip: Some("None".to_owned()),
            selector: Some(target.names.selector()),
            publish_not_ready_addresses: Some(true),
            ports: Some(vec![port("http", PORT_HTTP), port("admin", PORT_ADMIN)]),
            ..ServiceSpec::default()
        }),
        status: None,
    }
}

/// Any node answers.
pub fn clients(target: &Target) -> Service {
    let wanted = &target.spec.service;
    let mut metadata = super::metadata(target, target.names.client_service());
    if !wanted.annotations.is_empty() {
        metadata.annotations = Some(wanted.annotations.clone());
    }
    let type_ = match wanted.type_ {
        ServiceType::ClusterIP => "ClusterIP",
        ServiceType::NodePort => "NodePort",
        ServiceType::LoadBalancer => "LoadBalancer",
    };
    let http = ServicePort {
        node_port: wanted.node_port,
        ..port("http", PORT_HTTP)
    };
    Service {
        metadata,
        spec: Some(ServiceSpec {
            type_: Some(type_.to_owned()),
            selector: Some(target.names.selector()),
            ports: Some(vec![http]),
            ..ServiceSpec::default()
        }),
        status: None,
    }
}

fn port(name: &str, number: u16) -> ServicePort {
    ServicePort {
        name: Some(name.to_owned()),
        port: i32::from(number),
        target_port: Some(IntOrString::String(name.to_owned())),
        protocol: Some("TCP".to_owned()),
        ..ServicePort::default()
    }
}
