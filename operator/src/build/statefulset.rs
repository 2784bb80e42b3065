//! One StatefulSet per node, with one pod: any node can be stopped, replaced or drained without renumbering the others.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::{StatefulSet, StatefulSetSpec, StatefulSetUpdateStrategy};
use k8s_openapi::api::core::v1::{
    Capabilities, Container, ContainerPort, EnvVar, EnvVarSource, HTTPGetAction,
    PodSecurityContext, PodSpec, PodTemplateSpec, Probe, ResourceRequirements, SeccompProfile,
    SecretKeySelector, SecurityContext, TopologySpreadConstraint,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kvcluster_crds::names::{LABEL_NODE, PORT_ADMIN, PORT_HTTP, SECRET_KEY_URL};
use kvcluster_crds::v1alpha1::ReadMode;
use kvcluster_crds::{LogId, NodeId, environment};

use crate::cluster::Target;

/// User and group of the process; the images are made for it.
const USER_ID: i64 = 65532;
/// A node that stops releases its slots, finishes its requests and flushes; that takes seconds.
const STOP_SECONDS: i64 = 30;
/// Bytes of a mebibyte.
const MEBIBYTE: i64 = 1_048_576;

/// Annotation: the image that was chosen because the spec names none. It stays when the operator comes with another one, so that an
/// upgrade of the operator restarts no node.
pub const ANNOTATION_DEFAULT_IMAGE: &str = "kvcluster.dev/default-image";

/// The StatefulSet of `node`. `image`: for a spec that names none.
pub fn stateful_set(target: &Target, log_id: LogId, node: NodeId, image: &str) -> StatefulSet {
    let names = &target.names;
    let mut metadata = super::metadata(target, names.stateful_set(node));
    metadata
        .labels
        .get_or_insert_default()
        .insert(LABEL_NODE.to_owned(), node.to_string());
    if target.spec.image.is_none() {
        metadata
            .annotations
            .get_or_insert_default()
            .insert(ANNOTATION_DEFAULT_IMAGE.to_owned(), image.to_owned());
    }
    let mut pod_labels = names.labels();
    pod_labels.insert(LABEL_NODE.to_owned(), node.to_string());
    StatefulSet {
        metadata,
        spec: Some(StatefulSetSpec {
            replicas: Some(1),
            service_name: Some(names.peer_service()),
            selector: LabelSelector {
                match_labels: Some(names.node_selector(node)),
                ..LabelSelector::default()
            },
            pod_management_policy: Some("Parallel".to_owned()),
            // The operator restarts the nodes, one at a time and only when the others do without: left to themselves all
            // StatefulSets would restart at once.
            update_strategy: Some(StatefulSetUpdateStrategy {
                type_: Some("OnDelete".to_owned()),
                rolling_update: None,
            }),
            template: PodTemplateSpec {
                metadata: Some(ObjectMeta {
                    labels: Some(pod_labels),
                    ..ObjectMeta::default()
                }),
                spec: Some(pod(target, container(target, log_id, node, image))),
            },
            ..StatefulSetSpec::default()
        }),
        status: None,
    }
}

fn pod(target: &Target, container: Container) -> PodSpec {
    let scheduling = &target.spec.scheduling;
    PodSpec {
        containers: vec![container],
        automount_service_account_token: Some(false),
        enable_service_links: Some(false),
        termination_grace_period_seconds: Some(STOP_SECONDS),
        security_context: Some(PodSecurityContext {
            run_as_non_root: Some(true),
            run_as_user: Some(USER_ID),
            run_as_group: Some(USER_ID),
            seccomp_profile: Some(SeccompProfile {
                type_: "RuntimeDefault".to_owned(),
                localhost_profile: None,
            }),
            ..PodSecurityContext::default()
        }),
        node_selector: (!scheduling.node_selector.is_empty())
            .then(|| scheduling.node_selector.clone()),
        tolerations: (!scheduling.tolerations.is_empty()).then(|| scheduling.tolerations.clone()),
        // Soft: a cluster with fewer Kubernetes nodes than store nodes still gets all of them.
        topology_spread_constraints: Some(vec![TopologySpreadConstraint {
            max_skew: 1,
            topology_key: "kubernetes.io/hostname".to_owned(),
            when_unsatisfiable: "ScheduleAnyway".to_owned(),
            label_selector: Some(LabelSelector {
                match_labels: Some(target.names.selector()),
                ..LabelSelector::default()
            }),
            ..TopologySpreadConstraint::default()
        }]),
        ..PodSpec::default()
    }
}

fn container(target: &Target, log_id: LogId, node: NodeId, image: &str) -> Container {
    let mut env: Vec<EnvVar> = environment(target, log_id, node)
        .into_iter()
        .map(|(name, value)| EnvVar {
            name: name.to_owned(),
            value: Some(value),
            value_from: None,
        })
        .collect();
    env.push(EnvVar {
        name: environment::POSTGRES_URL.to_owned(),
        value: None,
        value_from: Some(EnvVarSource {
            secret_key_ref: Some(SecretKeySelector {
                name: target.names.node_secret(node),
                key: SECRET_KEY_URL.to_owned(),
                optional: None,
            }),
            ..EnvVarSource::default()
        }),
    });
    Container {
        name: "node".to_owned(),
        image: Some(
            target
                .spec
                .image
                .clone()
                .unwrap_or_else(|| image.to_owned()),
        ),
        image_pull_policy: Some("IfNotPresent".to_owned()),
        env: Some(env),
        ports: Some(vec![port("http", PORT_HTTP), port("admin", PORT_ADMIN)]),
        resources: Some(
            target
                .spec
                .resources
                .clone()
                .filter(|resources| *resources != ResourceRequirements::default())
                .unwrap_or_else(default_resources),
        ),
        security_context: Some(SecurityContext {
            allow_privilege_escalation: Some(false),
            read_only_root_filesystem: Some(true),
            capabilities: Some(Capabilities {
                add: None,
                drop: Some(vec!["ALL".to_owned()]),
            }),
            ..SecurityContext::default()
        }),
        // Five minutes to start: the store's tables may have to be made on a slow PostgreSQL.
        startup_probe: Some(probe("/livez", 1, 300)),
        // Lenient: a restart helps only against a process that hangs.
        liveness_probe: Some(probe("/livez", 10, 6)),
        readiness_probe: Some(probe("/readyz", 2, 2)),
        ..Container::default()
    }
}

/// The environment of a node but for its PostgreSQL URL, which is secret.
pub fn environment(target: &Target, log_id: LogId, node: NodeId) -> BTreeMap<&'static str, String> {
    let spec = &target.spec;
    let limits = &spec.limits;
    let reads = match spec.reads {
        ReadMode::Lease => "Lease",
        ReadMode::Log => "Log",
    };
    BTreeMap::from([
        (environment::CLUSTER, target.names.cluster().to_owned()),
        (environment::NAMESPACE, target.names.namespace().to_owned()),
        (environment::CLUSTER_UID, target.uid.clone()),
        (environment::NODE_ID, node.to_string()),
        (environment::SLOTS, target.slots.to_string()),
        (environment::LOG_ID, log_id.to_string()),
        (
            environment::KAFKA_BOOTSTRAP,
            spec.kafka.bootstrap_servers.clone(),
        ),
        (environment::POSTGRES_SCHEMA, target.schema(node)),
        (
            environment::POSTGRES_CONNECTIONS,
            spec.postgres.connections_per_node.to_string(),
        ),
        (environment::LISTEN, format!("0.0.0.0:{PORT_HTTP}")),
        (environment::ADMIN_LISTEN, format!("0.0.0.0:{PORT_ADMIN}")),
        (environment::LEASE_MS, limits.lease_ms.to_string()),
        (environment::HEARTBEAT_MS, limits.heartbeat_ms.to_string()),
        (environment::SUSPICION_MS, limits.suspicion_ms.to_string()),
        (
            environment::UNFLUSHED_BYTES_MAX,
            bytes(limits.unflushed_mebibytes),
        ),
        (environment::CACHE_BYTES, bytes(limits.cache_mebibytes)),
        (environment::READS, reads.to_owned()),
        (
            environment::LOG_KEEP_RECORDS,
            spec.log.keep_records.to_string(),
        ),
        (
            environment::LOST_REPLICA_SECONDS,
            spec.log.lost_replica_seconds.to_string(),
        ),
        (
            environment::SNAPSHOT_FROM_RECORDS,
            spec.log.snapshot_from_records.to_string(),
        ),
    ])
}

fn bytes(mebibytes: i32) -> String {
    (i64::from(mebibytes) * MEBIBYTE).to_string()
}

/// What a node asks for with the default limits of 64 MiB each for cache and unflushed effects; no upper limits, so that it is
/// never throttled.
fn default_resources() -> ResourceRequirements {
    let requests = [("cpu", "100m"), ("memory", "256Mi")];
    ResourceRequirements {
        requests: Some(
            requests
                .map(|(name, value)| (name.to_owned(), Quantity(value.to_owned())))
                .into(),
        ),
        ..ResourceRequirements::default()
    }
}

fn port(name: &str, number: u16) -> ContainerPort {
    ContainerPort {
        name: Some(name.to_owned()),
        container_port: i32::from(number),
        protocol: Some("TCP".to_owned()),
        ..ContainerPort::default()
    }
}

fn probe(path: &str, period_seconds: i32, failure_threshold: i32) -> Probe {
    Probe {
        http_get: Some(HTTPGetAction {
            path: Some(path.to_owned()),
            port: IntOrString::String("admin".to_owned()),
            ..HTTPGetAction::default()
        }),
        period_seconds: Some(period_seconds),
        failure_threshold: Some(failure_threshold),
        timeout_seconds: Some(2),
        ..Probe::default()
    }
}
