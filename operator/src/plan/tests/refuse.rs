//! What stands in the way is named, nothing is touched, and everything goes on when it is put right.

use kvcluster_crds::NodeId;
use kvcluster_crds::assignment::AssignmentError;
use kvcluster_crds::v1alpha1::condition;

use super::model::Model;
use crate::clients::kafka::KafkaTrouble;
use crate::clients::postgres::PostgresTrouble;
use crate::fixtures::cluster;
use crate::observe::{Failure, KubernetesTrouble, Login, RoleView, SchemaView, TopicView};
use crate::plan::Truth;

/// `reason` stands in `kind` and in `Ready`; `right` puts it right.
fn refused(mut model: Model, kind: &str, reason: &'static str, right: impl FnOnce(&mut Model)) {
    model.run();
    let before = model.done.len();
    assert_eq!(model.verdict(kind), (Truth::False, reason));
    assert_eq!(model.verdict(condition::READY), (Truth::False, reason));
    assert_eq!(
        model.verdict(condition::PROGRESSING),
        (Truth::False, reason)
    );
    assert!(
        !model.kinds().contains(&"PublishAssignment"),
        "nothing is started"
    );
    right(&mut model);
    model.run();
    assert!(model.done.len() > before && model.plan().is_ready());
}

fn kafka_down() -> KafkaTrouble {
    KafkaTrouble::Unreachable {
        bootstrap: "kafka:9092".to_owned(),
        hint: "",
    }
}

#[test]
fn kafka_that_is_away() {
    let mut model = Model::new(cluster());
    let up = std::mem::replace(&mut model.world.kafka, Err(kafka_down()));
    refused(model, condition::KAFKA_READY, "KafkaUnreachable", |model| {
        model.world.kafka = up;
    });
}

#[test]
fn kafka_that_goes_away_later_degrades_a_cluster_and_changes_nothing() {
    let mut model = Model::converged(cluster());
    model.world.kafka = Err(kafka_down());
    assert!(model.plan().steps.is_empty());
    assert_eq!(
        model.verdict(condition::READY),
        (Truth::False, "KafkaUnreachable")
    );
    assert_eq!(
        model.verdict(condition::DEGRADED),
        (Truth::True, "KafkaUnreachable")
    );
    assert_eq!(
        model.verdict(condition::RING_BALANCED),
        (Truth::Unknown, "KafkaUnreachable")
    );
    assert_eq!(
        model.verdict(condition::AVAILABLE).0,
        Truth::True,
        "the nodes say so"
    );
}

#[test]
fn a_topic_with_other_partitions() {
    let mut model = Model::new(cluster());
    let other = TopicView {
        partitions: 3,
        replication_factor: 3,
        never_used: true,
        ..TopicView::default()
    };
    model
        .kafka()
        .topics
        .insert("shop.demo.log".to_owned(), other);
    refused(
        model,
        condition::KAFKA_READY,
        "TopicHasOtherPartitions",
        |model| {
            model.kafka().topics.clear();
        },
    );
}

#[test]
fn a_topic_with_other_replication() {
    let mut model = Model::new(cluster());
    let other = TopicView {
        partitions: 1,
        replication_factor: 1,
        never_used: true,
        ..TopicView::default()
    };
    model
        .kafka()
        .topics
        .insert("shop.demo.assignment".to_owned(), other);
    refused(
        model,
        condition::KAFKA_READY,
        "TopicHasOtherReplication",
        |model| {
            model.kafka().topics.remove("shop.demo.assignment");
        },
    );
}

#[test]
fn fewer_brokers_than_replicas() {
    let mut model = Model::new(cluster());
    model.kafka().brokers = 2;
    refused(model, condition::KAFKA_READY, "TooFewBrokers", |model| {
        model.kafka().brokers = 3;
    });
}

#[test]
fn topics_that_another_cluster_wrote_to() {
    let mut model = Model::new(cluster());
    model.kafka().assignment.stranger = Some("u0".to_owned());
    refused(
        model,
        condition::KAFKA_READY,
        "TopicOfAnotherOwner",
        |model| {
            model.kafka().assignment.stranger = None;
        },
    );
    let mut model = Model::new(cluster());
    let used = TopicView {
        partitions: 4,
        replication_factor: 3,
        ..TopicView::default()
    };
    model
        .kafka()
        .topics
        .insert("shop.demo.log".to_owned(), used);
    refused(
        model,
        condition::KAFKA_READY,
        "TopicOfAnotherOwner",
        |model| {
            model.kafka().topics.clear();
        },
    );
}

#[test]
fn an_assignment_that_is_too_new() {
    let mut model = Model::new(cluster());
    model.kafka().assignment.unreadable = Some(AssignmentError::TooNew(9));
    refused(
        model,
        condition::KAFKA_READY,
        "AssignmentUnreadable",
        |model| {
            model.kafka().assignment.unreadable = None;
        },
    );
}

#[test]
fn postgres_troubles() {
    let place = || "db:5432/app".to_owned();
    let (name, key) = ("admin".to_owned(), "url".to_owned());
    let troubles = [
        (
            PostgresTrouble::WrongPassword { place: place() },
            "PostgresWrongPassword",
        ),
        (
            PostgresTrouble::DatabaseMissing { place: place() },
            "PostgresDatabaseMissing",
        ),
        (
            PostgresTrouble::Unreachable {
                place: place(),
                text: "x".to_owned(),
            },
            "PostgresUnreachable",
        ),
        (
            PostgresTrouble::SecretMissing {
                name: name.clone(),
                key: key.clone(),
            },
            "PostgresSecretMissing",
        ),
        (
            PostgresTrouble::SecretUnusable { name, key },
            "PostgresSecretUnusable",
        ),
    ];
    for (trouble, reason) in troubles {
        let mut model = Model::new(cluster());
        let up = model
            .world
            .postgres
            .insert("main".to_owned(), Err(trouble))
            .unwrap();
        refused(model, condition::POSTGRES_READY, reason, |model| {
            model.world.postgres.insert("main".to_owned(), up);
        });
    }
}

#[test]
fn a_schema_of_another_owner() {
    for comment in [None, Some("kvcluster:u0:0".to_owned())] {
        let mut model = Model::new(cluster());
        let name = model.target().schema(NodeId(1));
        let foreign = SchemaView {
            owner: "boss".to_owned(),
            comment,
            open_to_public: false,
        };
        model.postgres().schemas.insert(name, foreign.clone());
        refused(
            model,
            condition::POSTGRES_READY,
            "SchemaOfAnotherOwner",
            |model| {
                assert!(
                    model
                        .postgres()
                        .schemas
                        .values()
                        .any(|schema| *schema == foreign)
                );
                model.postgres().schemas.clear();
            },
        );
    }
}

#[test]
fn a_role_of_another_owner() {
    let mut model = Model::new(cluster());
    let name = model.target().schema(NodeId(0));
    model.postgres().roles.insert(name, RoleView::default());
    refused(
        model,
        condition::POSTGRES_READY,
        "RoleOfAnotherOwner",
        |model| {
            model.postgres().roles.clear();
        },
    );
}

#[test]
fn a_node_that_cannot_log_in_for_another_reason_than_its_password() {
    let mut model = Model::converged(cluster());
    let trouble = PostgresTrouble::Unreachable {
        place: "db".to_owned(),
        text: "x".to_owned(),
    };
    model
        .postgres()
        .logins
        .insert(NodeId(2), Login::Failed(trouble));
    assert!(model.plan().steps.is_empty());
    assert_eq!(
        model.verdict(condition::POSTGRES_READY),
        (Truth::False, "NodeLoginFails")
    );
}

#[test]
fn an_instance_that_the_spec_no_longer_names() {
    let mut model = Model::converged(cluster());
    let view = model.world.postgres.remove("main").unwrap();
    model.world.postgres.insert("other".to_owned(), view);
    assert!(model.plan().steps.is_empty());
    assert_eq!(
        model.verdict(condition::READY),
        (Truth::False, "PostgresInstanceMissing")
    );
}

#[test]
fn secrets_that_cannot_be_read_are_not_written_anew() {
    let mut model = Model::converged(cluster());
    let trouble = KubernetesTrouble::TimedOut {
        action: "read".to_owned(),
    };
    model.world.secrets = Err(trouble);
    assert!(model.plan().steps.is_empty());
    assert_eq!(
        model.verdict(condition::READY),
        (Truth::False, "SecretsUnreadable")
    );
}

#[test]
fn objects_that_cannot_be_read_are_not_applied() {
    let mut model = Model::converged(cluster());
    model.world.objects = Some(Err(KubernetesTrouble::TimedOut {
        action: "list".to_owned(),
    }));
    assert!(model.plan().steps.is_empty());
    assert_eq!(
        model.verdict(condition::READY),
        (Truth::False, "ObjectsUnreadable")
    );
}

#[test]
fn a_step_that_failed_is_told() {
    let mut model = Model::new(cluster());
    model.world.failure = Some(Failure {
        step: "create a topic".to_owned(),
        reason: "KafkaRefused",
        message: "PolicyViolation".to_owned(),
    });
    assert_eq!(
        model.verdict(condition::READY),
        (Truth::False, "KafkaRefused")
    );
    assert_eq!(
        model.verdict(condition::PROGRESSING),
        (Truth::False, "KafkaRefused")
    );
    assert!(!model.plan().steps.is_empty(), "it is tried again");
}
