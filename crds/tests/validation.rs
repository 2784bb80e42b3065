//! Every CEL rule of the resource has a case that it accepts and one that it refuses, naming the field.

use kvcluster_crds::v1alpha1::{KvCluster, ServiceType};

const SAMPLE: &str = "
apiVersion: kvcluster.dev/v1alpha1
kind: KvCluster
metadata: { name: demo, namespace: default }
spec:
  kafka: { bootstrapServers: 'kafka:9092' }
  postgres:
    instances:
    - name: main
      adminUrlSecret: { name: admin }
";

fn demo() -> KvCluster {
    serde_yaml::from_str(SAMPLE).expect("the sample is a KvCluster")
}

fn changed(change: impl FnOnce(&mut KvCluster)) -> KvCluster {
    let mut cluster = demo();
    change(&mut cluster);
    cluster
}

/// Asserts that exactly the rule whose message begins with `message` refuses `cluster`.
#[track_caller]
fn refuses(cluster: &KvCluster, message: &str) {
    let errors = cluster
        .validate_cel()
        .expect_err("it must be refused")
        .to_string();
    assert!(
        errors.contains(message),
        "{errors:?} does not say {message:?}"
    );
}

#[track_caller]
fn accepts(cluster: &KvCluster) {
    assert_eq!(
        cluster.validate_cel().map_err(|errors| errors.to_string()),
        Ok(())
    );
}

#[test]
fn the_smallest_manifest_is_accepted_with_the_documented_defaults() {
    let cluster = demo();
    accepts(&cluster);
    let spec = &cluster.spec;
    assert_eq!((spec.nodes, spec.replication, spec.slots), (3, 3, 16));
    assert_eq!(
        (
            spec.kafka.replication_factor,
            spec.kafka.min_in_sync_replicas
        ),
        (3, 2)
    );
    assert_eq!(spec.postgres.schema_prefix, "kv");
    assert_eq!(spec.postgres.instances[0].admin_url_secret.key, "url");
    assert_eq!(spec.service.type_, ServiceType::ClusterIP);
}

#[test]
fn nodes_are_at_least_the_replication() {
    accepts(&changed(|c| c.spec.nodes = 7));
    refuses(
        &changed(|c| c.spec.nodes = 2),
        "spec.nodes must be at least spec.replication",
    );
}

#[test]
fn min_in_sync_replicas_are_at_most_the_replication_factor() {
    accepts(&changed(|c| {
        c.spec.kafka.replication_factor = 1;
        c.spec.kafka.min_in_sync_replicas = 1;
    }));
    refuses(
        &changed(|c| c.spec.kafka.min_in_sync_replicas = 4),
        "spec.kafka.minInSyncReplicas must not exceed",
    );
}

#[test]
fn suspicion_takes_three_heartbeats() {
    accepts(&changed(|c| c.spec.limits.suspicion_ms = 450));
    refuses(
        &changed(|c| c.spec.limits.suspicion_ms = 449),
        "spec.limits.suspicionMs must be",
    );
}

#[test]
fn bootstrap_servers_are_host_and_port() {
    for servers in ["kafka:9092", "a.b-c.svc:1,10.0.0.1:65535"] {
        accepts(&changed(|c| {
            c.spec.kafka.bootstrap_servers = servers.to_owned();
        }));
    }
    for servers in ["kafka", "kafka:", ":9092", "a:1, b:2", "a:1,", "a:123456"] {
        refuses(
            &changed(|c| c.spec.kafka.bootstrap_servers = servers.to_owned()),
            "spec.kafka.bootstrapServers must be host:port",
        );
    }
}

#[test]
fn the_schema_prefix_is_an_identifier_and_stays() {
    accepts(&changed(|c| {
        c.spec.postgres.schema_prefix = "kv_2".to_owned();
    }));
    for prefix in ["Kv", "2kv", "k-v", "k\"v", ""] {
        refuses(
            &changed(|c| c.spec.postgres.schema_prefix = prefix.to_owned()),
            "spec.postgres.schemaPrefix must be lower-case",
        );
    }
    stays("spec.postgres.schemaPrefix", |c| {
        c.spec.postgres.schema_prefix = "other".to_owned();
    });
}

#[test]
fn a_node_port_needs_a_type_that_has_one() {
    accepts(&changed(|c| {
        c.spec.service.type_ = ServiceType::NodePort;
        c.spec.service.node_port = Some(30080);
    }));
    refuses(
        &changed(|c| c.spec.service.node_port = Some(30080)),
        "spec.service.nodePort needs spec.service.type",
    );
}

#[test]
fn names_are_short_labels() {
    accepts(&changed(|c| c.metadata.name = Some("a".repeat(32))));
    refuses(
        &changed(|c| c.metadata.name = Some("a".repeat(33))),
        "longer than 32 bytes",
    );
    for name in ["1demo", "demo.eu", "demo-"] {
        refuses(
            &changed(|c| c.metadata.name = Some(name.to_owned())),
            "must be a DNS label",
        );
    }
}

#[test]
fn slots_and_replication_stay() {
    stays("spec.slots", |c| c.spec.slots = 32);
    stays("spec.replication", |c| c.spec.replication = 1);
}

/// Asserts that an update which makes `change` is refused, and one without is not.
#[track_caller]
fn stays(field: &str, change: impl FnOnce(&mut KvCluster)) {
    let old = demo();
    assert!(demo().validate_cel_update(&old).is_ok());
    let errors = changed(change)
        .validate_cel_update(&old)
        .expect_err("it must be refused");
    let message = format!("{field} cannot be changed");
    assert!(
        errors.to_string().contains(&message),
        "{errors} does not say {message:?}"
    );
}
