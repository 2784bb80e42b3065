//! What cannot be, and what is not to be believed: nothing is taken away for it.

use kvcluster_crds::v1alpha1::condition;
use kvcluster_crds::{NodeId, SlotRole};

use super::model::Model;
use crate::fixtures::cluster;
use crate::plan::{Step, Truth};

/// Nothing is planned, and `Ready` and `Degraded` say why.
fn refused(model: &Model, reason: &'static str) {
    assert_eq!(model.plan().steps, []);
    assert_eq!(model.verdict(condition::READY), (Truth::False, reason));
    assert_eq!(model.verdict(condition::DEGRADED), (Truth::True, reason));
}

/// A cluster that has told in its status that it published an assignment.
fn known() -> Model {
    let mut model = Model::converged(cluster());
    model.cluster = model.cluster.clone().with(|cluster| {
        let status = cluster.status.get_or_insert_default();
        status.assignment_version = Some(1);
    });
    model
}

#[test]
fn fewer_nodes_than_replicas_empty_nobody() {
    let mut model = Model::converged(cluster());
    model.cluster = model.cluster.clone().nodes(2);
    refused(&model, "RingImpossible");
    model.cluster = model.cluster.clone().nodes(4);
    model.live();
    assert!(model.plan().is_ready());
}

#[test]
pub(crate) fn a_log_that_is_gone_is_not_made_anew() {
    let mut model = Model::converged(cluster());
    let log = model
        .kafka()
        .topics
        .remove("shop.demo.log")
        .expect("it was");
    refused(&model, "TopicLost");
    assert_eq!(
        model.verdict(condition::KAFKA_READY),
        (Truth::False, "TopicLost")
    );
    model.kafka().topics.insert("shop.demo.log".to_owned(), log);
    assert!(model.plan().is_ready());
}

#[test]
fn a_kafka_that_lost_everything_is_not_begun_anew() {
    let mut model = known();
    *model.kafka() = crate::observe::KafkaView {
        brokers: 3,
        ..crate::observe::KafkaView::default()
    };
    refused(&model, "TopicLost");
}

#[test]
fn an_assignment_that_is_gone_is_not_made_anew() {
    let mut model = known();
    model.kafka().assignment.newest = None;
    refused(&model, "TopicLost");
    model.kafka().topics.remove("shop.demo.assignment");
    refused(&model, "TopicLost");
}

#[test]
fn heartbeats_that_are_gone_begin_anew() {
    let mut model = Model::converged(cluster());
    model.kafka().topics.remove("shop.demo.heartbeat");
    model.run();
    assert_eq!(model.kinds(), ["CreateTopic"]);
    assert!(model.plan().is_ready());
}

/// A node leaves; its replicas are voted for by four and wait for the leaders' word.
fn about_to_release() -> Model {
    let mut model = Model::converged(cluster().nodes(4));
    model.cluster = model.cluster.clone().nodes(3);
    let votes = |model: &Model| {
        let slots = &model.newest().slots;
        slots.iter().any(|slot| slot.voters.len() == 4)
    };
    while !votes(&model) {
        assert!(model.pass() || model.tick(), "it stands still");
    }
    assert!(model.tick());
    assert!(releases(&model), "were the nodes to be believed");
    model
}

/// What nodes say that is not so, and how they say it.
type Lie = (&'static str, fn(&mut Model));

fn releases(model: &Model) -> bool {
    let voters = |slots: &[kvcluster_crds::SlotAssignment]| -> usize {
        slots.iter().map(|slot| slot.voters.len()).sum()
    };
    let before = voters(&model.newest().slots);
    let plan = model.plan();
    let mut steps = plan.steps.iter();
    steps.any(|step| matches!(step, Step::Publish(table, _) if voters(&table.slots) < before))
}

#[test]
pub(crate) fn a_leaving_node_keeps_its_replicas_until_others_are_believed_to_have_them() {
    let lies: [Lie; 5] = [
        ("everybody follows an older assignment", |model| {
            (0..4).for_each(|node| model.status(node).assignment_version = Some(1));
        }),
        ("the node that leaves claims to lead as well", |model| {
            for slot in &mut model.status(3).slots {
                slot.role = SlotRole::Leader;
            }
        }),
        ("the node that leaves is about to lead", |model| {
            for slot in &mut model.status(3).slots {
                slot.role = SlotRole::Claiming;
            }
        }),
        ("nobody leads", |model| {
            for node in 0..4 {
                for slot in &mut model.status(node).slots {
                    slot.role = SlotRole::Follower;
                }
            }
        }),
        ("the others stand still", |model| {
            for node in 0..3 {
                for slot in &mut model.status(node).slots {
                    slot.frozen = Some("it differs".to_owned());
                }
            }
        }),
    ];
    for (lie, tell) in lies {
        let mut model = about_to_release();
        tell(&mut model);
        assert!(!releases(&model), "{lie}");
        let gone = |step: &Step| matches!(step, Step::DeleteStatefulSet { .. } | Step::DropRole(_));
        assert!(!model.plan().steps.iter().any(gone), "{lie}");
        model.tick();
        model.live();
        assert!(model.plan().is_ready(), "{lie}, and then not any more");
        assert_eq!(model.newest().node(NodeId(3)), None);
    }
}

#[test]
pub(crate) fn what_was_prepared_for_nodes_that_are_called_off_is_removed() {
    for prepared in 1..=4 {
        let mut model = Model::converged(cluster());
        model.cluster = model.cluster.clone().nodes(5);
        for _ in 0..prepared {
            model.pass();
        }
        assert!(model.newest().version == 1, "not published yet");
        model.cluster = model.cluster.clone().nodes(3);
        model.live();
        assert_eq!(model.secrets().len(), 3, "after {prepared} steps");
        assert_eq!(model.postgres().roles.len(), 3);
        assert_eq!(model.postgres().schemas.len(), 3);
        assert!(model.plan().is_ready());
        // Whoever was about to remove them finds other ids in use.
        model.cluster = model.cluster.clone().nodes(4);
        model.live();
        assert!(model.newest().nodes[3].id >= NodeId(4));
    }
}
