//! What others do to a cluster's objects, and what the operator sees late or not at all.

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{Pod, Secret, Service};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::ResourceExt;
use kvcluster_crds::names::LABEL_NODE;

use super::kubelet;
use super::world::World;
use crate::controller::pass::Outcome;
use crate::fixtures::cluster;

/// Rounds in which a world that cannot come to rest is looked at.
const SOME_ROUNDS: usize = 30;

async fn at_rest(nodes: i32) -> World {
    let mut world = World::new(&cluster().nodes(nodes).delete_policy());
    assert_eq!(world.settle().await, Ok(Outcome::Ready));
    world
}

fn scale(world: &World, nodes: i32) {
    world.edit(|cluster| cluster.spec.nodes = nodes);
}

async fn some_rounds(world: &mut World) {
    for _ in 0..SOME_ROUNDS {
        kubelet::tick(&world.api);
        world.outside.tick();
        world.pass().await;
    }
}

fn set(world: &World, name: &str) -> StatefulSet {
    let sets: Vec<StatefulSet> = world.api.all("statefulsets");
    let mut named = sets.into_iter().filter(|set| set.name_any() == name);
    named.next().expect("it stands")
}

/// Truth and reason of `Ready`.
fn ready(world: &World) -> (String, String) {
    let status = world.cluster().and_then(|cluster| cluster.status);
    let conditions = status.unwrap_or_default().conditions;
    let ready = conditions.into_iter().find(|of| of.type_ == "Ready");
    ready.map(|of| (of.status, of.reason)).expect("it is told")
}

#[tokio::test(start_paused = true)]
async fn an_old_view_of_a_deleted_cluster_touches_nothing_of_its_successor() {
    let mut world = at_rest(3).await;
    world.delete();
    let mut views = Vec::new();
    let ended = world.settle_with(|_, world| views.push(world.fork())).await;
    assert_eq!(ended, Ok(Outcome::Gone));
    let successor = cluster().delete_policy();
    let successor = successor.with(|cluster| cluster.metadata.uid = Some("u2".to_owned()));
    world.api.put("kvclusters", &successor.build());
    assert_eq!(world.settle().await, Ok(Outcome::Ready));
    let end = world.end();
    for view in &views {
        world.api.be_stale(Some(&view.api));
        for _ in 0..5 {
            world.pass().await;
        }
        world.api.be_stale(None);
        assert_eq!(world.end(), end, "seen as it was before");
    }
    assert_eq!(world.settle().await, Ok(Outcome::Ready));
    assert_eq!(world.end(), end);
}

#[tokio::test(start_paused = true)]
async fn changes_that_were_taken_back_unseen_cost_nothing() {
    let mut world = at_rest(3).await;
    world.faults.reset();
    scale(&world, 5);
    scale(&world, 3);
    assert_eq!(world.settle().await, Ok(Outcome::Ready));
    let writes = world.faults.writes();
    assert!(
        writes.iter().all(|write| write.ends_with("/status")),
        "{writes:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn what_the_api_server_refuses_is_told_and_done_once_it_is_allowed() {
    for code in [403, 422, 429, 500] {
        let mut world = at_rest(3).await;
        world.api.refuse("statefulsets", Some(code));
        scale(&world, 5);
        some_rounds(&mut world).await;
        assert_eq!(
            ready(&world),
            ("False".to_owned(), "ApiServerRefused".to_owned()),
            "{code}"
        );
        let mut other = world.fork();
        scale(&other, 3);
        assert_eq!(other.settle().await, Ok(Outcome::Ready), "{code}");
        let left = other.end().objects;
        assert!(
            left.keys().all(|name| !name.contains("demo-3")),
            "{left:#?}"
        );
        world.api.refuse("statefulsets", None);
        assert_eq!(world.settle().await, Ok(Outcome::Ready), "{code}");
    }
}

#[tokio::test(start_paused = true)]
pub(crate) async fn the_order_of_lists_does_not_matter() {
    let mut ends = Vec::new();
    for reversed in [false, true] {
        let mut world = World::new(&cluster().nodes(5));
        if reversed {
            world.api.reverse_lists();
        }
        assert_eq!(world.settle().await, Ok(Outcome::Ready));
        scale(&world, 3);
        assert_eq!(world.settle().await, Ok(Outcome::Ready));
        ends.push((world.faults.writes(), world.end()));
    }
    assert_eq!(ends[0], ends[1]);
}

#[tokio::test(start_paused = true)]
async fn what_others_changed_is_put_right_and_nothing_is_made_twice() {
    let changes: [fn(&mut StatefulSet); 5] = [
        |set| set.metadata.labels = None,
        |set| {
            set.labels_mut()
                .insert(LABEL_NODE.to_owned(), "9".to_owned());
        },
        |set| {
            // The id of a node that left.
            set.labels_mut()
                .insert(LABEL_NODE.to_owned(), "4".to_owned());
        },
        |set| set.metadata.annotations = None,
        |set| set.spec.as_mut().expect("a spec").replicas = Some(0),
    ];
    let mut world = at_rest(5).await;
    scale(&world, 3);
    assert_eq!(world.settle().await, Ok(Outcome::Ready));
    let end = world.end();
    for change in changes {
        let mut set = set(&world, "demo-1");
        change(&mut set);
        world.api.put("statefulsets", &set);
        assert_eq!(world.settle().await, Ok(Outcome::Ready));
        assert_eq!(world.end(), end);
    }
    for mut service in world.api.all::<Service>("services") {
        service.spec.as_mut().expect("a spec").selector = None;
        world.api.put("services", &service);
    }
    for mut budget in world.api.all::<PodDisruptionBudget>("poddisruptionbudgets") {
        budget.metadata.labels = None;
        world.api.put("poddisruptionbudgets", &budget);
    }
    assert_eq!(world.settle().await, Ok(Outcome::Ready));
    assert_eq!(world.end(), end);
}

#[tokio::test(start_paused = true)]
pub(crate) async fn an_object_that_was_taken_from_us_is_told_of_and_left_alone() {
    let mut world = at_rest(3).await;
    let mut set = set(&world, "demo-1");
    let owners = set.metadata.owner_references.take();
    world.api.put("statefulsets", &set);
    let end = world.end();
    some_rounds(&mut world).await;
    assert_eq!(
        ready(&world),
        ("False".to_owned(), "ObjectOfAnotherOwner".to_owned())
    );
    let now = world.end();
    let touched = |name: &&String| !name.starts_with("kvclusters/");
    for name in end.objects.keys().filter(touched) {
        assert_eq!(now.objects.get(name), end.objects.get(name), "{name}");
    }
    set.metadata.owner_references = owners;
    world.api.put("statefulsets", &set);
    assert_eq!(world.settle().await, Ok(Outcome::Ready));
}

#[tokio::test(start_paused = true)]
pub(crate) async fn another_namespace_is_neither_looked_at_nor_touched() {
    let mut world = at_rest(5).await;
    let pods: Vec<Pod> = world.api.all("pods");
    let mut pod = pods[4].clone();
    assert_eq!(pod.labels()[LABEL_NODE], "4");
    pod.metadata.name = Some("elsewhere".to_owned());
    pod.metadata.owner_references = None;
    pod.status = None;
    let secrets: Vec<Secret> = world.api.all("secrets");
    let services: Vec<Service> = world.api.all("services");
    let strangers = |world: &World| {
        let objects = world.end().objects;
        let there = objects
            .into_iter()
            .filter(|(name, _)| name.ends_with("@zoo"));
        there.collect::<Vec<_>>()
    };
    let away = |metadata: &mut k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta| {
        metadata.namespace = Some("zoo".to_owned());
        metadata.uid = None;
        metadata.owner_references = None;
    };
    away(&mut pod.metadata);
    world.api.put("pods", &pod);
    for mut secret in secrets {
        away(&mut secret.metadata);
        world.api.put("secrets", &secret);
    }
    for mut service in services {
        away(&mut service.metadata);
        world.api.put("services", &service);
    }
    let before = strangers(&world);
    assert!(before.len() > 7, "{before:#?}");
    scale(&world, 3);
    assert_eq!(world.settle().await, Ok(Outcome::Ready));
    assert_eq!(strangers(&world), before);
}

#[tokio::test(start_paused = true)]
pub(crate) async fn the_disruption_budget_is_written_once() {
    let mut world = at_rest(3).await;
    scale(&world, 5);
    assert_eq!(world.settle().await, Ok(Outcome::Ready));
    world.edit(|cluster| cluster.spec.image = Some("image:2".to_owned()));
    assert_eq!(world.settle().await, Ok(Outcome::Ready));
    let writes = world.faults.writes();
    let written = writes
        .iter()
        .filter(|write| write.contains("poddisruptionbudgets"));
    assert_eq!(written.count(), 1);
}

#[tokio::test(start_paused = true)]
async fn two_operators_at_once_end_as_one() {
    let mut alone = World::new(&cluster());
    let mut one = alone.fork();
    let mut two = one.with_another_operator();
    for nodes in [3, 5, 3] {
        scale(&alone, nodes);
        assert_eq!(alone.settle().await, Ok(Outcome::Ready));
        scale(&one, nodes);
        // Both look before either writes, and go on in turns.
        for _ in 0..10 * SOME_ROUNDS {
            kubelet::tick(&one.api);
            one.outside.tick();
            tokio::join!(one.pass(), two.pass());
            assert_eq!(one.outside.check(), Ok(()));
        }
        assert_eq!(one.settle().await, Ok(Outcome::Ready));
        let (end, wanted) = (one.end(), alone.end());
        assert_eq!(end.made, wanted.made);
        assert_eq!(end.outside, wanted.outside);
    }
}
