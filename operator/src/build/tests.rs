//! Every field of every object, as YAML. A change of a snapshot is a change of running clusters.

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::ResourceRequirements;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kvcluster_crds::v1alpha1::{ReadMode, ServiceType};
use kvcluster_crds::{LogId, NodeId};

use super::{pdb, secret, service, statefulset, topics};
use crate::fixtures::cluster;
use crate::secret_text::SecretText;

const LOG_ID: LogId = LogId(0x00ab_cdef_0000_0001);

#[test]
fn the_topics() {
    let topics = topics::topics(&cluster().target());
    let shown: Vec<_> = topics
        .iter()
        .map(|topic| {
            (
                &topic.name,
                topic.partitions,
                topic.replication_factor,
                &topic.settings,
            )
        })
        .collect();
    insta::assert_yaml_snapshot!(shown);
}

#[test]
fn the_services() {
    let target = cluster().target();
    insta::assert_yaml_snapshot!("peer_service", service::peers(&target));
    insta::assert_yaml_snapshot!("client_service", service::clients(&target));
    let outside = cluster().with(|cluster| {
        cluster.spec.service.type_ = ServiceType::NodePort;
        cluster.spec.service.node_port = Some(30080);
        cluster
            .spec
            .service
            .annotations
            .insert("who".to_owned(), "us".to_owned());
    });
    insta::assert_yaml_snapshot!(
        "client_service_node_port",
        service::clients(&outside.target())
    );
}

/// What is left of the section when its only entry is taken out again.
#[test]
fn a_section_of_resources_that_says_nothing_is_none() {
    let set = |resources: Option<ResourceRequirements>| {
        let target = cluster().with(|cluster| cluster.spec.resources = resources);
        statefulset::stateful_set(&target.target(), LOG_ID, NodeId(0), "image")
    };
    assert_eq!(set(Some(ResourceRequirements::default())), set(None));
}

#[test]
fn the_disruption_budget() {
    insta::assert_yaml_snapshot!(pdb::budget(&cluster().target()));
}

#[test]
fn a_secret() {
    let url = SecretText::new("postgres://role:password@db/app");
    let secret = secret::secret(&cluster().target(), NodeId(1), "main", &url);
    let data = secret.data.clone().unwrap_or_default();
    assert_eq!(data["url"], ByteString(url.reveal().as_bytes().to_vec()));
    insta::assert_yaml_snapshot!(secret);
}

#[test]
fn a_stateful_set() {
    let set = statefulset::stateful_set(&cluster().target(), LOG_ID, NodeId(1), "image:1");
    insta::assert_yaml_snapshot!(set);
}

#[test]
fn what_the_spec_says_about_pods_is_passed_on() {
    let memory = ("memory".to_owned(), Quantity("1Gi".to_owned()));
    let resources = ResourceRequirements {
        limits: Some([memory].into()),
        ..ResourceRequirements::default()
    };
    let special = cluster().with(|cluster| {
        let spec = &mut cluster.spec;
        spec.image = Some("mine:2".to_owned());
        spec.reads = ReadMode::Log;
        spec.limits.unflushed_mebibytes = 65_536;
        spec.scheduling
            .node_selector
            .insert("disk".to_owned(), "fast".to_owned());
        spec.resources = Some(resources.clone());
    });
    let set = statefulset::stateful_set(&special.target(), LOG_ID, NodeId(0), "image:1");
    let pod = set.spec.and_then(|spec| spec.template.spec).unwrap();
    assert_eq!(pod.node_selector.unwrap()["disk"], "fast");
    let container = &pod.containers[0];
    assert_eq!(container.image.as_deref(), Some("mine:2"));
    assert_eq!(container.resources, Some(resources));
    let environment = statefulset::environment(&special.target(), LOG_ID, NodeId(0));
    assert_eq!(environment["KVCLUSTER_READS"], "Log");
    assert_eq!(environment["KVCLUSTER_UNFLUSHED_BYTES_MAX"], "68719476736");
}
