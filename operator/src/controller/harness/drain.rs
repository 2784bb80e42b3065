//! Kubernetes nodes are cordoned and emptied, as `kubectl drain` does it: by evictions that the budget may refuse for a while.

use kvcluster_crds::NodeId;
use kvcluster_crds::v1alpha1::condition;

use super::faults::{ALL, Fault};
use super::kubelet;
use super::world::World;
use crate::controller::pass::Outcome;
use crate::fixtures::{ClusterBuilder, cluster};

/// Evictions are tried so often at most, with the world at rest in between.
const TRIES_MAX: usize = 5;

/// A cluster that serves, on Kubernetes nodes `worker-0` and so on.
async fn served(cluster: &ClusterBuilder, hosts: usize) -> World {
    let mut world = World::new(cluster);
    for number in 0..hosts {
        world.host(&format!("worker-{number}"), false);
    }
    assert_eq!(world.settle().await, Ok(Outcome::Ready));
    world
}

/// The pods on a Kubernetes node: the nodes and their pods' names.
fn pods_on(world: &World, host: &str) -> Vec<(NodeId, String)> {
    let pods: Vec<k8s_openapi::api::core::v1::Pod> = world.api.all("pods");
    let there = pods.iter().filter(|pod| {
        let spec = pod.spec.as_ref();
        spec.and_then(|spec| spec.node_name.as_deref()) == Some(host)
    });
    let node = |name: &str| name.split('-').nth(1).and_then(|id| id.parse().ok());
    there
        .filter_map(|pod| pod.metadata.name.clone())
        .map(|name| (NodeId(node(&name).expect("a node\'s pod")), name))
        .collect()
}

fn draining(world: &World) -> Option<(String, String)> {
    let status = world.cluster()?.status?;
    let mut told = status.conditions.into_iter();
    let told = told.find(|told| told.type_ == condition::DRAINING)?;
    Some((told.reason, told.message))
}

/// Evicts everything from a Kubernetes node that is cordoned, and waits as `kubectl drain` does when that is refused.
async fn empty(world: &mut World, host: &str) {
    for _ in 0..TRIES_MAX {
        for (_, pod) in pods_on(world, host) {
            kubelet::evict(&world.api, &pod);
        }
        world.settle().await.expect("it comes to rest");
        if pods_on(world, host).is_empty() {
            return;
        }
    }
    panic!("the drain of {host} does not end: {:?}", draining(world));
}

#[tokio::test(start_paused = true)]
async fn leadership_is_handed_over_before_the_pod_is_evicted() {
    let mut world = served(&cluster(), 4).await;
    let [(node, pod)] = &pods_on(&world, "worker-1")[..] else {
        panic!("one pod on each Kubernetes node");
    };
    assert_ne!(world.outside.leads(*node), (0, 0));
    world.faults.reset();
    world.host("worker-1", true);
    assert_eq!(world.settle().await, Ok(Outcome::Ready));
    assert_eq!(world.outside.leads(*node), (0, 0));
    let writes = world.faults.writes();
    let published = writes.iter().filter(|write| write.starts_with("publish"));
    assert_eq!(published.count(), 1, "{writes:?}");
    assert_eq!(
        draining(&world).map(|(reason, _)| reason).as_deref(),
        Some("LeadershipAway")
    );
    assert!(kubelet::evict(&world.api, pod));
    assert_eq!(world.settle().await, Ok(Outcome::Ready));
    assert_eq!(pods_on(&world, "worker-1"), []);
    assert_eq!(draining(&world), None, "its pod runs elsewhere");
    assert_ne!(
        world.outside.leads(*node),
        (0, 0),
        "it gets its share again"
    );
}

#[tokio::test(start_paused = true)]
async fn a_disturbed_hand_over_ends_the_same() {
    let rested = served(&cluster(), 4).await;
    let cordoned = || {
        let world = rested.fork();
        world.faults.reset();
        world.host("worker-1", true);
        world
    };
    let mut undisturbed = cordoned();
    assert_eq!(undisturbed.settle().await, Ok(Outcome::Ready));
    let (end, writes) = (undisturbed.end(), undisturbed.faults.writes());
    assert!(
        writes.len() >= 3,
        "a status before, the assignment, a status after: {writes:?}"
    );
    for (at, write) in writes.iter().enumerate() {
        for fault in ALL {
            let mut world = cordoned();
            world.faults.set(at, fault);
            let mut outcome = world.settle().await;
            assert!(world.faults.has_struck());
            if fault == Fault::Late {
                world.deliver_late();
                outcome = world.settle().await;
            }
            assert_eq!(outcome, Ok(Outcome::Ready), "{fault:?} at {at}");
            assert_eq!(world.end(), end, "{fault:?} at {at} ({write})");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_cordon_that_is_taken_back_gives_the_leadership_back() {
    let mut world = served(&cluster(), 3).await;
    let before = world.end();
    world.host("worker-1", true);
    assert_eq!(world.settle().await, Ok(Outcome::Ready));
    assert_ne!(world.end().outside, before.outside);
    world.host("worker-1", false);
    assert_eq!(world.settle().await, Ok(Outcome::Ready));
    for node in (0..3).map(NodeId) {
        let (named, leads) = world.outside.leads(node);
        assert!(
            named == leads && (1..=2).contains(&leads),
            "node {node} leads {leads}"
        );
    }
    assert_eq!(world.end().made, before.made, "nothing was made anew");
}

#[tokio::test(start_paused = true)]
async fn all_kubernetes_nodes_are_emptied_one_after_another() {
    for nodes in [3, 5] {
        let mut world = served(&cluster().nodes(nodes), 3).await;
        for host in ["worker-0", "worker-1", "worker-2"] {
            world.host(host, true);
            world.settle().await.expect("it comes to rest");
            empty(&mut world, host).await;
            world.host(host, false);
        }
        assert_eq!(world.settle().await, Ok(Outcome::Ready), "{nodes} nodes");
    }
}

#[tokio::test(start_paused = true)]
async fn a_drain_that_cannot_go_on_says_who_must_do_what() {
    let mut world = served(&cluster(), 3).await;
    for host in ["worker-0", "worker-1", "worker-2"] {
        world.host(host, true);
    }
    world.settle().await.expect("it comes to rest");
    let told = draining(&world).map(|(reason, _)| reason);
    assert_eq!(told.as_deref(), Some("NoVoterElsewhere"));
    let first = pods_on(&world, "worker-0").remove(0).1;
    assert!(kubelet::evict(&world.api, &first));
    assert_eq!(world.settle().await, Ok(Outcome::Waiting));
    let second = pods_on(&world, "worker-1").remove(0).1;
    assert!(!kubelet::evict(&world.api, &second), "one at a time");
    let (reason, message) = draining(&world).expect("it is said");
    assert_eq!(reason, "EvictionWaits");
    assert!(
        message.contains("0 nodes are available; uncordon a Kubernetes node, or add one"),
        "{message}"
    );
    // Somebody adds one.
    world.host("worker-3", false);
    world.settle().await.expect("it comes to rest");
    for host in ["worker-1", "worker-2"] {
        empty(&mut world, host).await;
    }
    assert_eq!(world.settle().await, Ok(Outcome::Ready));
    assert_eq!(pods_on(&world, "worker-3").len(), 3);
}

#[tokio::test(start_paused = true)]
async fn the_drain_of_a_single_node_ends_and_its_slots_wait_for_another_place() {
    let lone = cluster()
        .nodes(1)
        .with(|cluster| cluster.spec.replication = 1);
    let mut world = served(&lone, 1).await;
    world.host("worker-0", true);
    assert_eq!(world.settle().await, Ok(Outcome::Ready), "nothing moves");
    let (reason, message) = draining(&world).expect("it is said");
    assert_eq!(reason, "NoVoterElsewhere");
    assert!(
        message.contains("uncordon the Kubernetes node"),
        "{message}"
    );
    empty(&mut world, "worker-0").await;
    let ready = |world: &World| {
        let status = world
            .cluster()
            .and_then(|cluster| cluster.status)
            .unwrap_or_default();
        let ready = status
            .conditions
            .into_iter()
            .find(|told| told.type_ == condition::READY);
        ready.map(|told| (told.status, told.message))
    };
    let (truth, message) = ready(&world).expect("a condition");
    assert!(
        truth == "False" && message.contains("0 nodes are available"),
        "{message}"
    );
    world.host("worker-1", false);
    assert_eq!(world.settle().await, Ok(Outcome::Ready));
    assert_eq!(world.outside.leads(NodeId(0)), (4, 4));
}
