//! Nodes come and go: in order, cancellable, and nothing is left behind.

use std::collections::BTreeSet;

use kvcluster_crds::v1alpha1::{RebalanceMode, condition};
use kvcluster_crds::{NodeId, SlotAssignment};

use super::model::Model;
use crate::fixtures::cluster;
use crate::observe::NodeTrouble;
use crate::plan::{Step, Truth};

fn scaled(model: &mut Model, nodes: i32) {
    model.cluster = model.cluster.clone().nodes(nodes);
}

fn ids(model: &Model) -> Vec<u32> {
    let nodes = &model.newest().nodes;
    nodes.iter().map(|entry| entry.id.get()).collect()
}

/// Everything of exactly these nodes is there, and each holds its share.
fn assert_home(model: &mut Model, nodes: &[u32]) {
    assert_eq!(ids(model), nodes);
    let names: BTreeSet<String> = nodes.iter().map(|id| format!("demo-{id}")).collect();
    let sets: BTreeSet<String> = model.objects().stateful_sets.keys().cloned().collect();
    assert_eq!(sets, names);
    let secrets: Vec<u32> = model.secrets().keys().map(|node| node.get()).collect();
    assert_eq!(secrets, nodes);
    let schemas: BTreeSet<String> = nodes
        .iter()
        .map(|&id| model.target().schema(NodeId(id)))
        .collect();
    let view = model.postgres();
    assert_eq!(
        view.schemas.keys().cloned().collect::<BTreeSet<_>>(),
        schemas
    );
    assert_eq!(view.roles.keys().cloned().collect::<BTreeSet<_>>(), schemas);
    let replicas = 4 * 3;
    for id in nodes {
        let held = model.newest().slots.iter();
        let held = held
            .filter(|slot| slot.voters.contains(&NodeId(*id)))
            .count();
        assert!(held >= replicas / nodes.len(), "node {id} holds {held}");
    }
    let plan = model.plan();
    assert!(plan.is_ready(), "{:?}", plan.conditions);
    assert!(plan.steps.is_empty() && plan.moves.is_empty() && plan.later.is_empty());
    assert_eq!(
        model.verdict(condition::RING_BALANCED),
        (Truth::True, "AsProposed")
    );
}

#[test]
pub(crate) fn more_nodes_get_their_share() {
    let mut model = Model::converged(cluster());
    scaled(&mut model, 5);
    assert_eq!(model.verdict(condition::READY).0, Truth::False);
    model.live();
    let kinds = model.kinds();
    let first = |kind: &str| kinds.iter().position(|k| *k == kind).expect("such a step");
    assert!(first("WriteSecret") < first("EnsureRole"));
    assert!(first("EnsureRole") < first("PublishAssignment"));
    assert!(first("PublishAssignment") < first("Apply"));
    assert_home(&mut model, &[0, 1, 2, 3, 4]);
}

#[test]
pub(crate) fn fewer_nodes_are_emptied_first() {
    let mut model = Model::converged(cluster().nodes(5));
    scaled(&mut model, 3);
    model.live();
    assert_home(&mut model, &[0, 1, 2]);
    let kinds = model.kinds();
    let first = |kind: &str| kinds.iter().position(|k| *k == kind).expect("such a step");
    let without =
        |step: &Step, node| matches!(step, Step::Publish(table, _) if table.node(node).is_none());
    for (node, name) in [(NodeId(3), "demo-3"), (NodeId(4), "demo-4")] {
        let out = model.done.iter().position(|step| without(step, node));
        let deleted =
            |step: &Step| matches!(step, Step::DeleteStatefulSet { name: n, .. } if n == name);
        let stopped = model.done.iter().position(deleted);
        assert!(out < stopped, "{name}");
    }
    assert!(first("DeleteStatefulSet") < first("DeleteSecret"));
    assert!(first("DeleteSecret") < first("DropRole"));
}

#[test]
fn ids_are_not_used_again() {
    let mut model = Model::converged(cluster());
    for nodes in [5, 3, 4] {
        scaled(&mut model, nodes);
        model.live();
    }
    assert_home(&mut model, &[0, 1, 2, 5]);
}

#[test]
fn a_scale_in_is_called_off_half_way() {
    let mut model = Model::converged(cluster().nodes(5));
    let before = model.newest().slots.clone();
    scaled(&mut model, 4);
    model.pass();
    assert!(model.newest().node(NodeId(4)).unwrap().leaving);
    model.tick();
    model.pass();
    let learners = |model: &Model| {
        let slots = &model.newest().slots;
        slots.iter().map(|slot| slot.learners.len()).sum::<usize>()
    };
    assert!(learners(&model) > 0);
    scaled(&mut model, 5);
    model.pass();
    assert_eq!(learners(&model), 0, "at once, without asking anybody");
    assert!(!model.newest().node(NodeId(4)).unwrap().leaving);
    model.live();
    assert_home(&mut model, &[0, 1, 2, 3, 4]);
    let voters = |slots: &[SlotAssignment]| -> Vec<BTreeSet<NodeId>> {
        let voters = slots
            .iter()
            .map(|slot| slot.voters.iter().copied().collect());
        voters.collect()
    };
    assert_eq!(
        voters(&model.newest().slots),
        voters(&before),
        "nothing was moved"
    );
}

#[test]
fn up_and_down_and_up_again_in_any_order() {
    let mut model = Model::converged(cluster());
    let sizes = [5, 3, 6, 4, 3, 5, 4, 6, 3];
    for (turn, nodes) in sizes.into_iter().enumerate() {
        scaled(&mut model, nodes);
        for _ in 0..turn * 3 {
            model.pass();
            model.tick();
        }
    }
    model.live();
    assert_eq!(ids(&model).len(), 3);
    let left = ids(&model);
    assert_home(&mut model, &left);
}

#[test]
fn killed_after_any_step_it_goes_on_to_a_clean_end() {
    let steps = {
        let mut model = Model::converged(cluster());
        scaled(&mut model, 4);
        model.live();
        let out = model.done.len();
        scaled(&mut model, 3);
        model.live();
        (out, model.done.len() - out)
    };
    for (from, to, steps) in [(3, 4, steps.0), (4, 3, steps.1)] {
        for kill_after in 0..=steps {
            let mut model = Model::converged(cluster().nodes(from));
            scaled(&mut model, to);
            for _ in 0..kill_after {
                while !model.pass() && model.tick() {}
            }
            // The step's answer is lost, too: it is taken once more.
            if let Some(step) = model.done.last().cloned() {
                model.repeat(&step);
            }
            model.restart_operator();
            model.live();
            let ids: Vec<u32> = (0..u32::try_from(to).unwrap()).collect();
            assert_home(&mut model, &ids);
        }
    }
}

#[test]
fn a_node_that_never_came_up_goes_at_once() {
    let mut model = Model::converged(cluster());
    scaled(&mut model, 4);
    while model.pass() {}
    model.fail(3);
    model.tick();
    scaled(&mut model, 3);
    model.live();
    assert_home(&mut model, &[0, 1, 2]);
}

#[test]
fn a_node_that_is_down_goes_before_the_others() {
    let mut model = Model::converged(cluster().nodes(4));
    model.fail(1);
    model.tick();
    scaled(&mut model, 3);
    model.live();
    assert_home(&mut model, &[0, 2, 3]);
}

#[test]
fn nothing_is_swept_away_while_the_assignment_is_not_known() {
    let mut model = Model::converged(cluster().nodes(4));
    scaled(&mut model, 3);
    while !model.kinds().contains(&"DeleteStatefulSet") {
        if !model.pass() {
            assert!(model.tick(), "it stands still");
        }
    }
    let trouble = crate::clients::kafka::KafkaTrouble::Unreachable {
        bootstrap: "kafka".to_owned(),
        hint: "",
    };
    let up = std::mem::replace(&mut model.world.kafka, Err(trouble));
    assert!(model.plan().steps.is_empty(), "{:?}", model.plan().steps);
    model.world.kafka = up;
    model.live();
    assert_home(&mut model, &[0, 1, 2]);
}

#[test]
fn no_schema_goes_while_a_pod_may_write_to_it() {
    let mut model = Model::converged(cluster().nodes(4));
    scaled(&mut model, 3);
    while !model.kinds().contains(&"DeleteStatefulSet") {
        if !model.pass() {
            assert!(model.tick(), "it stands still");
        }
    }
    // Its StatefulSet is gone and the pod is not: somebody deleted it without its pod.
    model.objects().housed.insert(NodeId(3));
    assert!(model.plan().steps.is_empty(), "{:?}", model.plan().steps);
    assert_eq!(
        model.verdict(condition::READY),
        (Truth::False, "NodesLeaving")
    );
    model.objects().housed.remove(&NodeId(3));
    // Nor while it was not looked whether there is a Secret.
    model.world.asked.remove(&NodeId(3));
    let steps = model.plan().steps;
    assert!(steps.iter().all(|step| !matches!(step, Step::DropRole(_))));
    model.world.asked.insert(NodeId(3));
    model.live();
    assert_home(&mut model, &[0, 1, 2]);
}

#[test]
fn a_plan_that_is_only_to_be_shown_waits() {
    let mut model = Model::converged(cluster());
    model.cluster = model
        .cluster
        .clone()
        .nodes(4)
        .with(|cluster| cluster.spec.rebalance.mode = RebalanceMode::Plan);
    assert!(!model.live(), "nothing is done");
    let plan = model.plan();
    let shown: Vec<String> = plan.withheld.iter().map(Step::to_string).collect();
    assert_eq!(shown[0], "write the PostgreSQL URL of node 3");
    assert_eq!(shown[1], "publish assignment 2");
    assert_eq!(shown[2], "apply StatefulSet demo-3");
    assert_eq!(plan.moves.len(), 3, "an even share: {:?}", plan.moves);
    assert_eq!(model.verdict(condition::READY), (Truth::False, "PlanWaits"));
    assert_eq!(model.verdict(condition::DEGRADED).0, Truth::False);
    assert_eq!(
        model.verdict(condition::RING_BALANCED),
        (Truth::False, "MembersChange")
    );
    // What is not about members or replicas is done all the same.
    model.objects().services.clear();
    model.run();
    assert_eq!(model.kinds(), ["Apply"; 2]);
    model.cluster = model
        .cluster
        .clone()
        .with(|cluster| cluster.spec.rebalance.mode = RebalanceMode::Apply);
    model.live();
    assert_home(&mut model, &[0, 1, 2, 3]);
}

#[test]
fn a_node_that_cannot_be_prepared_keeps_nobody_else_from_anything() {
    let mut model = Model::converged(cluster().nodes(4));
    let name = model.target().schema(NodeId(4));
    let foreign = crate::observe::SchemaView::default();
    model.postgres().schemas.insert(name.clone(), foreign);
    scaled(&mut model, 5);
    let set = model.objects().stateful_sets.get_mut("demo-1").unwrap();
    set.spec.get_or_insert_default().replicas = Some(0);
    model.live();
    assert_eq!(
        model.verdict(condition::READY),
        (Truth::False, "SchemaOfAnotherOwner")
    );
    let set = &model.objects().stateful_sets["demo-1"];
    assert_eq!(
        set.spec.as_ref().unwrap().replicas,
        Some(1),
        "it is put right"
    );
    model.postgres().schemas.remove(&name);
    model.live();
    assert_home(&mut model, &[0, 1, 2, 3, 4]);
}

#[test]
fn a_named_node_is_replaced() {
    let mut model = Model::converged(cluster());
    model.cluster = model.cluster.clone().replace("1");
    model.live();
    assert_home(&mut model, &[0, 2, 3]);
    assert_eq!(
        model.verdict(condition::REPLACEMENT_ACCEPTED),
        (Truth::True, "Replaced")
    );
    let publishes = model.done.iter().filter_map(|step| match step {
        Step::Publish(table, _) => Some(table),
        _ => None,
    });
    let voters = publishes.flat_map(|table| table.slots.iter().map(|slot| slot.voters.len()));
    assert!(voters.min() >= Some(3), "never fewer replicas than before");
}

#[test]
fn a_node_that_does_not_exist_is_not_replaced_and_the_rest_goes_on() {
    for name in ["7", "demo-1", ""] {
        let mut model = Model::converged(cluster());
        model.cluster = model.cluster.clone().replace(name).nodes(4);
        model.live();
        assert_eq!(
            model.verdict(condition::REPLACEMENT_ACCEPTED),
            (Truth::False, "UnknownNode"),
            "{name}"
        );
        assert_home(&mut model, &[0, 1, 2, 3]);
    }
}

#[test]
fn the_last_replica_in_sync_is_not_replaced() {
    let mut model = Model::converged(cluster());
    for node in [0, 2] {
        model.fail(node);
    }
    model.tick();
    model.cluster = model.cluster.clone().replace("1");
    model.live();
    assert_eq!(
        model.verdict(condition::REPLACEMENT_ACCEPTED),
        (Truth::False, "LastInSyncReplica")
    );
    assert_eq!(ids(&model), [0, 1, 2]);
    model.recover(0);
    model.live();
    assert_eq!(
        ids(&model),
        [0, 1, 2, 3],
        "its replicas still count while node 2 is down"
    );
    model.recover(2);
    model.live();
    assert_home(&mut model, &[0, 2, 3]);
}

#[test]
fn a_silent_node_holds_up_its_own_moves_alone() {
    let mut model = Model::converged(cluster());
    scaled(&mut model, 5);
    while model.pass() {}
    model.fail(3);
    model
        .world
        .nodes
        .insert(NodeId(3), Err(NodeTrouble::NoAnswer));
    model.live();
    let holds = |model: &Model, id: u32| {
        let slots = &model.newest().slots;
        slots
            .iter()
            .filter(|slot| slot.voters.contains(&NodeId(id)))
            .count()
    };
    assert_eq!((holds(&model, 3), holds(&model, 4)), (0, 2));
    assert_eq!(
        model.verdict(condition::RING_BALANCED),
        (Truth::False, "Moving")
    );
    model.recover(3);
    model.live();
    assert_home(&mut model, &[0, 1, 2, 3, 4]);
}
