//! A changed template reaches the nodes one at a time, and only while the others serve.

use kvcluster_crds::v1alpha1::condition;
use kvcluster_crds::{NodeId, SlotRole};

use super::model::Model;
use crate::fixtures::cluster;
use crate::observe::NodeTrouble;
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
fn one_node_at_a_time() {
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
