//! Kubernetes nodes are cordoned: leadership leaves the nodes there before their pods do, and nothing else moves.

use std::collections::BTreeSet;

use kvcluster_crds::v1alpha1::{RebalanceMode, condition};
use kvcluster_crds::{NodeId, SlotAssignment};

use super::model::Model;
use crate::fixtures::{ClusterBuilder, cluster};
use crate::observe::{HostView, NodeTrouble};
use crate::plan::{Step, Truth};

/// Each node on a Kubernetes node of its own: `worker-0` and so on.
fn housed(cluster: ClusterBuilder) -> Model {
    let mut model = Model::converged(cluster);
    for (&node, pod) in &mut model.objects().pods {
        pod.host = Some(format!("worker-{node}"));
    }
    let hosts: Vec<String> = model
        .objects()
        .pods
        .keys()
        .map(|node| format!("worker-{node}"))
        .collect();
    for host in hosts {
        model.objects().hosts.insert(host, HostView::default());
    }
    model
}

fn cordon(model: &mut Model, node: u32, draining: bool) {
    let host = model.objects().hosts.get_mut(&format!("worker-{node}"));
    host.expect("a Kubernetes node").draining = draining;
}

fn led_by(slots: &[SlotAssignment], node: u32) -> usize {
    slots
        .iter()
        .filter(|slot| slot.preferred_leader == NodeId(node))
        .count()
}

fn voters(slots: &[SlotAssignment]) -> Vec<BTreeSet<NodeId>> {
    slots
        .iter()
        .map(|slot| slot.voters.iter().copied().collect())
        .collect()
}

fn draining(model: &Model) -> Option<(&'static str, String)> {
    let conditions = model.plan().conditions.into_iter();
    let mut told = conditions.filter(|verdict| verdict.kind == condition::DRAINING);
    told.next().map(|verdict| {
        assert_eq!(verdict.truth, Truth::True);
        (verdict.reason, verdict.message)
    })
}

#[test]
fn leadership_leaves_a_cordoned_kubernetes_node_and_no_replica_does() {
    let mut model = housed(cluster().with(|cluster| cluster.spec.slots = 12));
    let before = model.newest().slots.clone();
    assert_eq!(led_by(&before, 1), 4);
    assert_eq!(draining(&model), None);
    cordon(&mut model, 1, true);
    let (reason, message) = draining(&model).expect("it is said");
    assert_eq!(reason, "LeadershipMoving");
    assert!(message.contains("worker-1, where nodes 1 run"), "{message}");
    assert!(model.live());
    assert_eq!(model.kinds(), ["PublishAssignment"], "all slots at once");
    let now = &model.newest().slots;
    assert_eq!([0, 1, 2].map(|node| led_by(now, node)), [6, 0, 6], "evenly");
    assert_eq!(voters(now), voters(&before));
    let (reason, message) = draining(&model).expect("it is still being emptied");
    assert_eq!(reason, "LeadershipAway", "{message}");
    assert!(model.plan().is_ready());
    cordon(&mut model, 1, false);
    assert_eq!(draining(&model), None);
    model.live();
    let now = &model.newest().slots;
    assert_eq!([0, 1, 2].map(|node| led_by(now, node)), [4, 4, 4]);
    assert_eq!(voters(now), voters(&before));
}

#[test]
fn nothing_moves_when_there_is_nowhere_to_go() {
    let mut model = housed(cluster());
    for node in 0..3 {
        cordon(&mut model, node, true);
    }
    assert!(!model.live());
    let (reason, message) = draining(&model).expect("it is said");
    assert_eq!(reason, "NoVoterElsewhere");
    assert!(
        message.contains("slots 0, 1, 2, 3 have no other voter"),
        "{message}"
    );
    assert!(model.plan().is_ready(), "it serves");
}

#[test]
fn leadership_goes_to_a_voter_that_has_everything_and_waits_while_there_is_none() {
    let mut model = housed(cluster());
    model.fail(2);
    model.tick();
    cordon(&mut model, 1, true);
    model.live();
    assert_eq!(
        led_by(&model.newest().slots, 1),
        0,
        "all to node 0, although that is uneven"
    );
    let mut model = housed(cluster());
    cordon(&mut model, 1, true);
    for node in [0, 2] {
        for slot in &mut model.status(node).slots {
            slot.caught_up = false;
        }
    }
    model.run();
    assert_ne!(led_by(&model.newest().slots, 1), 0, "nobody has everything");
    assert_eq!(
        draining(&model).map(|(reason, _)| reason),
        Some("LeadershipMoving")
    );
    model.live();
    assert_eq!(led_by(&model.newest().slots, 1), 0);
}

#[test]
fn where_plans_are_only_shown_leadership_waits_for_the_eviction() {
    let mut model = housed(cluster());
    model.cluster = model
        .cluster
        .clone()
        .with(|cluster| cluster.spec.rebalance.mode = RebalanceMode::Plan);
    cordon(&mut model, 1, true);
    assert!(!model.live());
    let (reason, message) = draining(&model).expect("it is said");
    assert!(
        reason == "LeadershipMoving" && message.contains("spec.rebalance.mode"),
        "{message}"
    );
    assert!(matches!(model.plan().withheld[..], [Step::Publish(..)]));
}

#[test]
fn an_eviction_that_the_budget_holds_up_names_what_it_waits_for() {
    let mut model = housed(cluster());
    let pod = model.objects().pods.get_mut(&NodeId(0)).expect("a pod");
    (pod.host, pod.ready) = (None, false);
    let problem = "not scheduled: 0/3 nodes are available".to_owned();
    pod.problem = Some(problem.clone());
    model
        .world
        .nodes
        .insert(NodeId(0), Err(NodeTrouble::PodProblem(problem)));
    cordon(&mut model, 1, true);
    let (reason, message) = draining(&model).expect("it is said");
    assert_eq!(reason, "EvictionWaits");
    let wanted =
        "node 0 is: not scheduled: 0/3 nodes are available; uncordon a Kubernetes node, or add one";
    assert!(message.ends_with(wanted), "{message}");
    // Another Kubernetes node is no remedy for a pod that has one.
    model
        .objects()
        .pods
        .get_mut(&NodeId(0))
        .expect("a pod")
        .problem = Some("ErrImagePull: no".to_owned());
    let (_, message) = draining(&model).expect("it is said");
    assert!(
        message.ends_with("node 0 is: ErrImagePull: no"),
        "{message}"
    );
    // A pod that does not run keeps nobody from evicting it.
    cordon(&mut model, 1, false);
    let pod = model.objects().pods.get_mut(&NodeId(0)).expect("a pod");
    pod.host = Some("worker-0".to_owned());
    cordon(&mut model, 0, true);
    let reason = draining(&model).map(|(reason, _)| reason);
    assert!(
        reason.is_some_and(|reason| reason != "EvictionWaits"),
        "{reason:?}"
    );
}

#[test]
fn an_operator_that_may_not_look_at_kubernetes_nodes_says_what_it_cannot_do() {
    let mut model = housed(cluster());
    let told = |model: &Model| {
        let conditions = model.plan().conditions.into_iter();
        let kind = condition::KUBERNETES_NODES_READABLE;
        let mut told = conditions.filter(|verdict| verdict.kind == kind);
        told.next().map(|verdict| (verdict.truth, verdict.message))
    };
    assert_eq!(told(&model), None);
    model.objects().hosts.clear();
    model.objects().hosts_forbidden = true;
    let (truth, message) = told(&model).expect("it is said");
    assert_eq!(truth, Truth::False);
    assert!(message.contains("nodeReader=true"), "{message}");
    assert!(model.plan().is_ready(), "it serves all the same");
}

#[test]
fn a_single_node_is_evicted_and_the_condition_says_what_that_costs() {
    let lone = cluster()
        .nodes(1)
        .with(|cluster| cluster.spec.replication = 1);
    let mut model = housed(lone);
    cordon(&mut model, 0, true);
    assert!(!model.live());
    let (reason, message) = draining(&model).expect("it is said");
    assert_eq!(reason, "NoVoterElsewhere");
    assert!(
        message.contains("until its pod runs elsewhere"),
        "{message}"
    );
    // The budget lets it go.
    let target = model.target();
    let budget = crate::build::pdb::budget(&target).spec.expect("a spec");
    assert_eq!(
        budget.max_unavailable,
        Some(k8s_openapi::apimachinery::pkg::util::intstr::IntOrString::Int(1))
    );
    assert_eq!(
        budget.unhealthy_pod_eviction_policy.as_deref(),
        Some("AlwaysAllow")
    );
}

/// Whatever is cordoned and fails in between: it comes to rest each time, no replica ever moves, and in the end all lead evenly.
#[test]
fn cordons_in_any_order_come_to_rest_and_leave_nothing_behind() {
    for seed in 0..40 {
        let dice = &mut fastrand::Rng::with_seed(seed);
        let nodes = dice.i32(3..6);
        let mut model = housed(
            cluster()
                .nodes(nodes)
                .with(|cluster| cluster.spec.slots = 12),
        );
        let before = voters(&model.newest().slots);
        let count = u32::try_from(nodes).expect("few");
        for _ in 0..6 {
            let node = dice.u32(..count);
            match dice.u32(..4) {
                0 if model.failed.is_empty() => model.fail(node),
                1 => (0..count).for_each(|node| model.recover(node)),
                _ => cordon(&mut model, node, dice.bool()),
            }
            for _ in 0..dice.u32(..4) {
                model.pass();
                model.tick();
            }
            model.live();
            assert_eq!(voters(&model.newest().slots), before, "seed {seed}");
        }
        for node in 0..count {
            model.recover(node);
            cordon(&mut model, node, false);
        }
        model.live();
        assert!(model.plan().is_ready(), "seed {seed}");
        assert_eq!(voters(&model.newest().slots), before, "seed {seed}");
        let leads = (0..count).map(|node| led_by(&model.newest().slots, node));
        let leads: Vec<usize> = leads.collect();
        let (most, least) = (leads.iter().max(), leads.iter().min());
        assert!(
            most <= least.map(|least| least + 1).as_ref(),
            "seed {seed}: {leads:?}"
        );
    }
}
