//! The end: in order, only what is ours, and always an end.

use kvcluster_crds::v1alpha1::{DeletionPolicy, condition};

use super::model::Model;
use crate::clients::kafka::KafkaTrouble;
use crate::clients::postgres::PostgresTrouble;
use crate::fixtures::{ClusterBuilder, cluster};
use crate::observe::{SchemaView, TopicView};
use crate::plan::{Step, Truth};

const WHOLE: [&str; 11] = [
    "DeleteStatefulSet",
    "DeleteStatefulSet",
    "DeleteStatefulSet",
    "DeleteTopics",
    "DeleteTopics",
    "NoteTopicsAbsent",
    "NoteTopicsAbsent",
    "DropRole",
    "DropRole",
    "DropRole",
    "RemoveFinalizer",
];

fn deleting(seconds: i64) -> impl Fn(ClusterBuilder) -> ClusterBuilder {
    move |cluster| cluster.deleting_for(seconds)
}

fn doomed(seconds: i64) -> Model {
    let mut model = Model::converged(cluster().delete_policy());
    model.cluster = deleting(seconds)(model.cluster.clone());
    model
}

fn left(model: &Model) -> Vec<String> {
    match model.done.last() {
        Some(Step::RemoveFinalizer { left }) => left.clone(),
        other => panic!("the last step is {other:?}"),
    }
}

fn assert_clean(model: &mut Model) {
    assert!(model.gone);
    assert!(model.kafka().topics.is_empty());
    assert!(model.postgres().schemas.is_empty() && model.postgres().roles.is_empty());
    assert!(model.objects().stateful_sets.is_empty());
}

#[test]
pub(crate) fn everything_of_ours_goes_in_order() {
    let mut model = doomed(1);
    model.run();
    assert_eq!(model.kinds(), WHOLE);
    assert_eq!(left(&model), Vec::<String>::new());
    assert_clean(&mut model);
}

#[test]
fn the_assignment_topic_goes_last_since_it_is_the_proof() {
    let mut model = doomed(1);
    model.run();
    let deleted: Vec<&Step> = model
        .done
        .iter()
        .filter(|step| step.kind() == "DeleteTopics")
        .collect();
    let topics =
        |names: &[&str]| Step::DeleteTopics(names.iter().map(|name| (*name).to_owned()).collect());
    assert_eq!(
        *deleted[0],
        topics(&["shop.demo.log", "shop.demo.heartbeat"])
    );
    assert_eq!(*deleted[1], topics(&["shop.demo.assignment"]));
}

#[test]
fn killed_after_any_step_it_still_ends_clean() {
    for kill_after in 0..=WHOLE.len() {
        let mut model = doomed(1);
        for _ in 0..kill_after {
            model.pass();
        }
        model.restart_operator();
        model.run();
        assert_clean(&mut model);
        assert_eq!(
            left(&model),
            Vec::<String>::new(),
            "killed after {kill_after}"
        );
    }
}

#[test]
fn a_cluster_that_was_never_finished_goes_too() {
    for made in 0..18 {
        let mut model = Model::new(cluster().delete_policy());
        for _ in 0..made {
            model.pass();
        }
        model.cluster = model.cluster.clone().deleting_for(1);
        if model.finalizer {
            model.run();
            assert_clean(&mut model);
        } else {
            assert!(
                model.plan().steps.is_empty(),
                "without a finalizer nothing was made"
            );
        }
    }
}

#[test]
fn what_is_not_ours_stays() {
    let mut model = Model::new(cluster().delete_policy());
    model.pass();
    let foreign = TopicView {
        partitions: 3,
        replication_factor: 3,
        never_used: true,
        ..TopicView::default()
    };
    let used = TopicView {
        partitions: 1,
        replication_factor: 3,
        never_used: false,
        ..TopicView::default()
    };
    model
        .kafka()
        .topics
        .insert("shop.demo.log".to_owned(), foreign);
    model
        .kafka()
        .topics
        .insert("shop.demo.heartbeat".to_owned(), used);
    let name = model.target().schema(kvcluster_crds::NodeId(0));
    let schema = SchemaView {
        comment: Some("kvcluster:u0:0".to_owned()),
        ..SchemaView::default()
    };
    model.postgres().schemas.insert(name, schema);
    model.cluster = model.cluster.clone().deleting_for(1);
    model.run();
    assert!(model.gone);
    assert_eq!(model.kafka().topics.len(), 2);
    assert_eq!(model.postgres().schemas.len(), 1);
    assert!(!model.kinds().contains(&"DeleteTopics") && !model.kinds().contains(&"DropRole"));
}

#[test]
pub(crate) fn with_kafka_away_it_waits_and_then_ends_clean() {
    let mut model = doomed(120);
    let trouble = KafkaTrouble::Unreachable {
        bootstrap: "kafka".to_owned(),
        hint: "",
    };
    let up = std::mem::replace(&mut model.world.kafka, Err(trouble));
    model.run();
    assert!(!model.gone && model.finalizer);
    assert_eq!(
        model.verdict(condition::PROGRESSING),
        (Truth::True, "KafkaUnreachable")
    );
    assert!(
        !model.kinds().contains(&"DropRole"),
        "schemas go after the topics"
    );
    model.world.kafka = up;
    model.run();
    assert_clean(&mut model);
}

#[test]
fn with_postgres_away_it_waits_and_then_ends_clean() {
    let mut model = doomed(120);
    let trouble = PostgresTrouble::Unreachable {
        place: "db".to_owned(),
        text: "x".to_owned(),
    };
    let up = model
        .world
        .postgres
        .insert("main".to_owned(), Err(trouble))
        .unwrap();
    model.run();
    assert!(!model.gone);
    assert!(
        model.kafka().topics.is_empty(),
        "the topics need no PostgreSQL"
    );
    assert_eq!(
        model.verdict(condition::PROGRESSING),
        (Truth::True, "PostgresUnreachable")
    );
    model.world.postgres.insert("main".to_owned(), up);
    model.run();
    assert_clean(&mut model);
}

#[test]
pub(crate) fn after_the_time_it_ends_and_names_what_is_left() {
    let mut model = doomed(601);
    let trouble = KafkaTrouble::Unreachable {
        bootstrap: "kafka".to_owned(),
        hint: "",
    };
    model.world.kafka = Err(trouble);
    model.objects().stateful_sets.clear();
    model.run();
    assert!(model.gone);
    let left = left(&model);
    assert!(left.contains(&"topic shop.demo.log".to_owned()), "{left:?}");
    assert_eq!(
        left.iter()
            .filter(|what| what.starts_with("schema "))
            .count(),
        3,
        "{left:?}"
    );
}

#[test]
fn without_credentials_it_does_not_wait() {
    let mut model = doomed(1);
    let (name, key) = ("admin".to_owned(), "url".to_owned());
    let trouble = PostgresTrouble::SecretMissing { name, key };
    model.world.postgres.insert("main".to_owned(), Err(trouble));
    model.run();
    assert!(model.gone && model.kafka().topics.is_empty());
    assert_eq!(left(&model).len(), 3, "{:?}", left(&model));
}

#[test]
fn topics_must_be_seen_absent_in_two_passes_in_a_row() {
    let mut model = doomed(1);
    while model.kinds().last() != Some(&"NoteTopicsAbsent") {
        model.pass();
    }
    let late = TopicView {
        partitions: 4,
        replication_factor: 3,
        never_used: true,
        ..TopicView::default()
    };
    model
        .kafka()
        .topics
        .insert("shop.demo.log".to_owned(), late);
    model.run();
    let notes = model
        .kinds()
        .iter()
        .filter(|kind| **kind == "NoteTopicsAbsent")
        .count();
    assert_eq!(notes, 3, "the first look does not count any more");
    assert_clean(&mut model);
}

#[test]
pub(crate) fn retain_leaves_everything_and_does_not_wait() {
    let mut model = doomed(1);
    model.cluster = model
        .cluster
        .clone()
        .with(|c| c.spec.deletion_policy = DeletionPolicy::Retain);
    model.run();
    assert_eq!(model.kinds(), ["RemoveFinalizer"]);
    assert_eq!(model.kafka().topics.len(), 3);
}

#[test]
fn a_paused_cluster_can_be_deleted() {
    let mut model = doomed(1);
    model.cluster = model.cluster.clone().paused();
    model.run();
    assert_clean(&mut model);
}

#[test]
fn stopping_nodes_are_waited_for() {
    let mut model = doomed(1);
    for set in model.objects().stateful_sets.values_mut() {
        let now = crate::fixtures::now();
        set.metadata.deletion_timestamp =
            Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(now));
    }
    assert!(model.plan().steps.is_empty());
    assert_eq!(
        model.verdict(condition::PROGRESSING),
        (Truth::True, "WaitingForNodes")
    );
}
