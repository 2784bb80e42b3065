//! `Ready` needs every node and every slot; what is missing is named.

use kvcluster_crds::v1alpha1::condition;
use kvcluster_crds::{NodeId, SlotRole};

use super::model::Model;
use crate::fixtures::{cluster, now};
use crate::observe::NodeTrouble;
use crate::plan::Truth;

fn ready(model: &Model) -> (Truth, &'static str) {
    assert!(model.plan().steps.is_empty());
    model.verdict(condition::READY)
}

#[test]
fn a_node_that_does_not_answer() {
    let mut model = Model::converged(cluster());
    model
        .world
        .nodes
        .insert(NodeId(1), Err(NodeTrouble::NoAnswer));
    assert_eq!(ready(&model), (Truth::False, "NodesNotReady"));
    assert_eq!(
        model.verdict(condition::DEGRADED),
        (Truth::True, "NodesDown")
    );
    assert_eq!(model.plan().ready_nodes, 2);
}

#[test]
fn a_node_that_is_just_starting_is_not_lost() {
    let mut model = Model::converged(cluster());
    model.objects().pods.get_mut(&NodeId(1)).unwrap().created = Some(now());
    model
        .world
        .nodes
        .insert(NodeId(1), Err(NodeTrouble::NoAddress));
    assert_eq!(ready(&model), (Truth::False, "NodesNotReady"));
    assert_eq!(model.verdict(condition::DEGRADED).0, Truth::False);
    assert_eq!(
        model.verdict(condition::PROGRESSING),
        (Truth::True, "NodesNotReady")
    );
}

#[test]
fn a_node_that_follows_an_older_assignment() {
    let mut model = Model::converged(cluster());
    model.status(2).assignment_version = Some(0);
    assert_eq!(ready(&model), (Truth::False, "NodesNotReady"));
}

/// The node serves whoever asks it, but the Service does not send anybody there yet.
#[test]
fn a_node_whose_pod_kubernetes_does_not_find_ready() {
    let mut model = Model::converged(cluster());
    model.objects().pods.get_mut(&NodeId(1)).unwrap().ready = false;
    assert_eq!(ready(&model), (Truth::False, "NodesNotReady"));
    assert_eq!(model.plan().ready_nodes, 2);
}

#[test]
fn a_node_with_a_problem() {
    let mut model = Model::converged(cluster());
    model.status(0).problem = Some("waiting for PostgreSQL".to_owned());
    assert_eq!(ready(&model), (Truth::False, "NodesNotReady"));
    let plan = model.plan();
    let ready = plan
        .conditions
        .iter()
        .find(|v| v.kind == condition::READY)
        .unwrap();
    assert!(
        ready.message.contains("waiting for PostgreSQL"),
        "{}",
        ready.message
    );
}

#[test]
pub(crate) fn a_slot_without_a_leader() {
    let mut model = Model::converged(cluster());
    for node in 0..3 {
        model.status(node).slots[2].role = SlotRole::Follower;
    }
    assert_eq!(ready(&model), (Truth::False, "SlotsWithoutLeader"));
    assert_eq!(
        model.verdict(condition::AVAILABLE),
        (Truth::False, "SlotsWithoutLeader")
    );
}

#[test]
fn a_slot_with_two_leaders() {
    let mut model = Model::converged(cluster());
    for node in 0..2 {
        model.status(node).slots[2].role = SlotRole::Leader;
    }
    assert_eq!(ready(&model), (Truth::False, "LeadershipChanging"));
    assert_eq!(model.verdict(condition::AVAILABLE).0, Truth::True);
}

#[test]
fn a_frozen_replica() {
    let mut model = Model::converged(cluster());
    model.status(1).slots[0].frozen = Some("checksum differs".to_owned());
    assert_eq!(ready(&model), (Truth::False, "ReplicaFrozen"));
    assert_eq!(
        model.verdict(condition::DEGRADED),
        (Truth::True, "ReplicaFrozen")
    );
}

#[test]
fn a_node_that_cannot_write_its_state_serves_and_is_named() {
    let mut model = Model::converged(cluster());
    model.status(2).postgres_connected = false;
    assert_eq!(ready(&model), (Truth::True, "Serving"));
    assert_eq!(
        model.verdict(condition::DEGRADED),
        (Truth::True, "StateNotWritten")
    );
}
