//! From nothing to a cluster that serves, whatever happens in between.

use kvcluster_crds::v1alpha1::{DeletionPolicy, condition};
use kvcluster_crds::{LogId, NodeId};

use super::model::{LOG_ID, Model};
use crate::fixtures::cluster;
use crate::observe::Login;
use crate::plan::{Step, Truth};
use crate::secret_text;

const WHOLE: [&str; 17] = [
    "PinLogId",
    "CreateTopic",
    "CreateTopic",
    "CreateTopic",
    "WriteSecret",
    "WriteSecret",
    "WriteSecret",
    "EnsureRole",
    "EnsureRole",
    "EnsureRole",
    "PublishAssignment",
    "Apply",
    "Apply",
    "Apply",
    "Apply",
    "Apply",
    "Apply",
];

#[test]
fn a_fresh_cluster_is_made_in_order_and_then_left_alone() {
    let mut model = Model::new(cluster());
    assert_eq!(
        model.verdict(condition::READY),
        (Truth::False, "Progressing")
    );
    model.run();
    assert_eq!(model.kinds(), WHOLE);
    assert!(model.plan().is_ready());
    let plan = model.plan();
    assert_eq!(
        (plan.nodes, plan.ready_nodes, plan.assignment_version),
        (3, 3, Some(1))
    );
    for kind in [
        condition::AVAILABLE,
        condition::KAFKA_READY,
        condition::POSTGRES_READY,
    ] {
        assert_eq!(model.verdict(kind).0, Truth::True, "{kind}");
    }
    assert_eq!(model.verdict(condition::DEGRADED).0, Truth::False);
    assert_eq!(
        model.verdict(condition::PROGRESSING),
        (Truth::False, "Converged")
    );
}

#[test]
fn the_finalizer_comes_first_where_it_is_wanted() {
    let mut model = Model::new(cluster().delete_policy());
    model.run();
    assert_eq!(model.kinds()[..2], ["AddFinalizer", "PinLogId"]);
    assert!(model.plan().is_ready());
}

#[test]
fn the_finalizer_goes_when_the_policy_is_changed_back() {
    let mut model = Model::converged(cluster().delete_policy());
    model.cluster = model
        .cluster
        .with(|c| c.spec.deletion_policy = DeletionPolicy::Retain);
    model.run();
    assert_eq!(model.kinds(), ["RemoveFinalizer"]);
    assert!(!model.gone && !model.finalizer);
}

#[test]
fn killed_after_any_step_it_goes_on_to_the_same_end() {
    let whole = Model::converged(cluster().delete_policy());
    for kill_after in 0..=WHOLE.len() {
        let mut model = Model::new(cluster().delete_policy());
        for _ in 0..kill_after {
            model.pass();
        }
        model.restart_operator();
        model.run();
        assert_same_end(&model, &whole, kill_after);
        assert_eq!(model.done.len(), WHOLE.len() + 1, "no step is taken twice");
    }
}

#[test]
fn a_step_whose_answer_was_lost_is_repeated_without_harm() {
    let whole = Model::converged(cluster());
    for lost in 0..WHOLE.len() {
        let mut model = Model::new(cluster());
        for _ in 0..lost {
            model.pass();
        }
        let step = model.plan().steps.remove(0);
        model.execute(&step);
        model.execute(&step);
        model.run();
        assert_same_end(&model, &whole, lost);
    }
}

fn assert_same_end(model: &Model, whole: &Model, place: usize) {
    let (one, other) = (&model.world, &whole.world);
    assert_eq!(one.kafka, other.kafka, "killed after step {place}");
    assert_eq!(one.postgres, other.postgres, "killed after step {place}");
    assert_eq!(one.secrets.as_ref().ok(), other.secrets.as_ref().ok());
    let sets = |model: &Model| {
        let objects = model
            .world
            .objects
            .as_ref()
            .and_then(|objects| objects.as_ref().ok());
        objects.map(|objects| objects.stateful_sets.clone())
    };
    assert_eq!(sets(model), sets(whole), "killed after step {place}");
    assert_eq!(model.log_id, whole.log_id);
    assert!(model.plan().is_ready() && model.plan().steps.is_empty());
}

#[test]
fn a_lost_log_id_is_taken_from_the_published_assignment() {
    let mut model = Model::converged(cluster());
    model.log_id = None;
    assert!(!model.plan().is_ready());
    model.run();
    assert_eq!(
        model.done,
        [Step::PinLogId {
            log_id: Some(LOG_ID)
        }]
    );
    assert!(model.plan().is_ready());
}

#[test]
fn another_log_id_than_the_published_one_is_refused() {
    let mut model = Model::converged(cluster());
    model.log_id = Some(LogId(8));
    assert!(model.plan().steps.is_empty());
    assert_eq!(
        model.verdict(condition::READY),
        (Truth::False, "LogIdDiffers")
    );
}

#[test]
fn a_setting_that_was_changed_is_put_right_and_others_are_kept() {
    let mut model = Model::converged(cluster());
    let topic = model.kafka().topics.get_mut("shop.demo.log").unwrap();
    for settings in [&mut topic.settings, &mut topic.own_settings] {
        settings.insert("retention.ms".to_owned(), "1000".to_owned());
        settings.insert("segment.bytes".to_owned(), "77".to_owned());
    }
    assert_eq!(
        model.verdict(condition::KAFKA_READY),
        (Truth::False, "TopicsPending")
    );
    model.run();
    let topic = &model.kafka().topics["shop.demo.log"];
    assert_eq!(topic.own_settings["retention.ms"], "-1");
    assert_eq!(topic.own_settings["segment.bytes"], "77");
    assert_eq!(model.kinds(), ["RepairTopic"]);
}

#[test]
pub(crate) fn a_password_that_no_longer_works_is_set_again() {
    let mut model = Model::converged(cluster());
    model.postgres().logins.insert(NodeId(1), Login::Refused);
    model.run();
    assert_eq!(model.kinds(), ["EnsureRole"]);
}

#[test]
fn rights_that_a_role_should_not_have_are_taken_away() {
    let mut model = Model::converged(cluster());
    for role in model.postgres().roles.values_mut() {
        role.elevated = true;
    }
    model.run();
    assert_eq!(model.kinds(), ["EnsureRole"; 3]);
}

#[test]
fn a_database_that_moved_keeps_the_passwords() {
    let mut model = Model::converged(cluster());
    model.postgres().admin = secret_text::SecretText::new("postgres://boss:secret@db2:5432/app");
    let old = secret_text::password_of(&model.secrets()[&NodeId(0)].url);
    model.run();
    assert_eq!(model.kinds()[..3], ["WriteSecret"; 3]);
    let new = &model.secrets()[&NodeId(0)].url;
    assert!(new.reveal().contains("@db2:5432/"));
    assert_eq!(secret_text::password_of(new), old);
}

#[test]
fn a_node_stays_on_its_instance_when_instances_are_added() {
    let mut model = Model::converged(cluster());
    model.cluster = model.cluster.clone().with(|cluster| {
        let mut other = cluster.spec.postgres.instances[0].clone();
        other.name = "other".to_owned();
        cluster.spec.postgres.instances.insert(0, other);
    });
    let view = model.world.postgres["main"].clone();
    model.world.postgres.insert("other".to_owned(), view);
    assert!(model.plan().steps.is_empty(), "{:?}", model.plan().steps);
    assert!(model.plan().is_ready());
}

#[test]
fn objects_that_were_changed_by_hand_are_put_right() {
    let mut model = Model::converged(cluster());
    model.objects().services.clear();
    model.objects().budgets.values_mut().for_each(|budget| {
        budget.spec.get_or_insert_default().max_unavailable = None;
    });
    let set = model.objects().stateful_sets.get_mut("demo-1").unwrap();
    set.spec.get_or_insert_default().replicas = Some(0);
    model.run();
    assert_eq!(model.kinds(), ["Apply"; 4]);
    let set = &model.objects().stateful_sets["demo-1"];
    assert_eq!(set.spec.as_ref().unwrap().replicas, Some(1));
}

#[test]
pub(crate) fn what_the_api_server_adds_is_no_difference() {
    let mut model = Model::converged(cluster());
    for set in model.objects().stateful_sets.values_mut() {
        let spec = set.spec.get_or_insert_default();
        spec.revision_history_limit = Some(10);
        let pod = spec.template.spec.get_or_insert_default();
        pod.dns_policy = Some("ClusterFirst".to_owned());
        pod.containers[0].termination_message_path = Some("/dev/termination-log".to_owned());
    }
    assert!(model.plan().steps.is_empty());
}

#[test]
pub(crate) fn a_field_that_the_spec_drops_is_dropped_from_the_object() {
    let mut model = Model::converged(cluster().with(|cluster| {
        let selector = &mut cluster.spec.scheduling.node_selector;
        selector.insert("disk".to_owned(), "fast".to_owned());
    }));
    model.cluster = model
        .cluster
        .clone()
        .with(|c| c.spec.scheduling.node_selector.clear());
    assert_eq!(
        model.plan().steps.len(),
        3,
        "each StatefulSet is applied again"
    );
}

#[test]
fn a_paused_cluster_is_not_touched() {
    let mut model = Model::converged(cluster());
    model.cluster = model.cluster.clone().paused();
    assert!(model.plan().is_ready(), "pausing alone changes nothing");
    let set = model.objects().stateful_sets.get_mut("demo-1").unwrap();
    set.spec.get_or_insert_default().replicas = Some(0);
    let plan = model.plan();
    assert!(plan.steps.is_empty());
    assert_eq!(plan.withheld.len(), 1);
    assert_eq!(model.verdict(condition::READY), (Truth::False, "Paused"));
    assert_eq!(
        model.verdict(condition::PROGRESSING),
        (Truth::False, "Paused")
    );
    assert_eq!(model.verdict(condition::AVAILABLE).0, Truth::True);
}

#[test]
fn plain_processes_need_no_kubernetes() {
    let mut model = Model::new(cluster().delete_policy());
    model.world.objects = None;
    model.run();
    assert_eq!(model.kinds(), WHOLE[..11]);
}
