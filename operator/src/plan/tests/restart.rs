//! A changed template reaches the nodes one at a time, and only while the others serve.

use jiff::SignedDuration;
use kvcluster_crds::v1alpha1::condition;
use kvcluster_crds::{NodeId, SlotRole};

use super::model::Model;
use crate::fixtures::{cluster, now};
use crate::observe::{HostView, NodeTrouble};
use crate::plan::{Step, Truth};

/// All StatefulSets have the new template, no pod has.
fn changed() -> Model {
    let mut model = Model::converged(cluster());
    model.cluster = model
        .cluster
        .clone()
        .with(|cluster| cluster.spec.limits.cache_mebibytes = 1);
    for _ in 0..3 {
        model.pass();
    }
    assert_eq!(model.kinds(), ["Apply"; 3]);
    model.done.clear();
    model
}

fn restarted(model: &Model) -> Vec<NodeId> {
    let nodes = model.done.iter().filter_map(|step| match step {
        Step::RestartPod { node, .. } => Some(*node),
        _ => None,
    });
    nodes.collect()
}

#[test]
pub(crate) fn one_node_at_a_time() {
    let mut model = changed();
    for expected in 0..3 {
        model.run();
        assert_eq!(restarted(&model).len(), expected + 1, "the next one waits");
        assert_eq!(model.verdict(condition::READY).0, Truth::False);
        let last = *restarted(&model).last().unwrap();
        model.start_pod(last);
    }
    model.run();
    assert_eq!(restarted(&model), [0, 1, 2].map(NodeId));
    assert!(model.plan().is_ready());
}

#[test]
fn nobody_is_restarted_while_something_is_wrong() {
    let wrongs: [fn(&mut Model); 5] = [
        |model| model.status(2).problem = Some("slow".to_owned()),
        |model| model.status(1).slots[3].caught_up = false,
        |model| {
            (0..3).for_each(|node| model.status(node).slots[0].role = SlotRole::Follower);
        },
        |model| {
            model
                .world
                .nodes
                .insert(NodeId(2), Err(NodeTrouble::NoAnswer));
        },
        |model| {
            model
                .objects()
                .pods
                .get_mut(&NodeId(1))
                .unwrap()
                .terminating = true;
        },
    ];
    for (number, wrong) in wrongs.into_iter().enumerate() {
        let mut model = changed();
        wrong(&mut model);
        assert!(
            model.plan().steps.is_empty(),
            "wrong {number}: {:?}",
            model.plan().steps
        );
        assert_eq!(
            model.verdict(condition::READY),
            (Truth::False, "RestartWaits")
        );
    }
}

#[test]
fn a_broken_node_is_restarted_first_and_at_once() {
    let mut model = changed();
    model.objects().pods.get_mut(&NodeId(2)).unwrap().ready = false;
    model.world.nodes.insert(
        NodeId(2),
        Err(NodeTrouble::PodProblem("ErrImagePull".to_owned())),
    );
    model.run();
    assert_eq!(restarted(&model), [NodeId(2)]);
}

#[test]
fn what_kubernetes_has_not_looked_at_is_not_ready() {
    let mut model = Model::converged(cluster());
    let set = model.objects().stateful_sets.get_mut("demo-0").unwrap();
    set.metadata.generation = Some(2);
    set.status.get_or_insert_default().observed_generation = Some(1);
    assert!(model.plan().steps.is_empty());
    assert_eq!(
        model.verdict(condition::READY),
        (Truth::False, "StatefulSetPending")
    );
}

#[test]
fn a_paused_cluster_restarts_nobody() {
    let mut model = changed();
    model.cluster = model.cluster.clone().paused();
    assert!(model.plan().steps.is_empty());
    assert_eq!(model.verdict(condition::READY), (Truth::False, "Paused"));
}

#[test]
fn a_follower_that_lacks_what_the_leader_has_for_good_is_not_back_yet() {
    let mut model = changed();
    model.status(1).slots[0].durable = 9;
    model.status(1).slots[0].applied = 9;
    assert!(
        model.plan().steps.is_empty(),
        "it says that it has caught up, and its peers say more"
    );
}

#[test]
fn an_upgrade_of_the_operator_restarts_nobody() {
    let mut model = Model::converged(cluster());
    assert!(model.plan_of("another:2").steps.is_empty());
    // A spec that names an image gets it, and when it no longer does, today's.
    model.cluster = model
        .cluster
        .clone()
        .with(|cluster| cluster.spec.image = Some("mine:1".to_owned()));
    model.run();
    model.cluster = model
        .cluster
        .clone()
        .with(|cluster| cluster.spec.image = None);
    let text = format!("{:?}", model.plan_of("another:2").steps);
    assert!(text.contains("another:2"), "{text}");
}

fn on_host(model: &mut Model, lost_for: i64) {
    let since = now() - SignedDuration::from_secs(lost_for);
    model.objects().pods.get_mut(&NodeId(1)).unwrap().host = Some("worker".to_owned());
    let host = HostView {
        lost_since: Some(since),
        ..HostView::default()
    };
    model.objects().hosts.insert("worker".to_owned(), host);
}

#[test]
fn a_pod_on_a_lost_kubernetes_node_gets_another_place_after_a_while() {
    let mut model = Model::converged(cluster());
    on_host(&mut model, 400);
    assert!(model.plan().steps.is_empty(), "its node answers");
    model
        .world
        .nodes
        .insert(NodeId(1), Err(NodeTrouble::NoAnswer));
    on_host(&mut model, 299);
    assert!(model.plan().steps.is_empty(), "not yet");
    on_host(&mut model, 300);
    model
        .objects()
        .pods
        .get_mut(&NodeId(1))
        .unwrap()
        .terminating = true;
    let uid = model.objects().pods[&NodeId(1)].uid.clone();
    model.run();
    assert!(
        matches!(&model.done[..], [Step::ForceDeletePod { uid: u, .. }] if *u == uid),
        "{:?}",
        model.kinds()
    );
    assert!(model.plan().is_ready());
}

#[test]
fn a_node_whose_trouble_is_its_own_is_started_anew() {
    let mut model = Model::converged(cluster());
    model.status(2).problem = Some("its tables are not there".to_owned());
    for slot in &mut model.status(2).slots {
        slot.role = SlotRole::Follower;
    }
    let since = |seconds| now() - SignedDuration::from_secs(seconds);
    model.world.troubled_since.insert(NodeId(2), since(59));
    assert!(model.plan().steps.is_empty(), "it may recover by itself");
    model.world.troubled_since.insert(NodeId(2), since(60));
    let up = model.world.kafka.clone();
    model.world.kafka = Err(crate::clients::kafka::KafkaTrouble::Unreachable {
        bootstrap: "kafka".to_owned(),
        hint: "",
    });
    assert!(model.plan().steps.is_empty(), "that is reason enough");
    model.world.kafka = up;
    model.run();
    assert_eq!(restarted(&model), [NodeId(2)]);
}
