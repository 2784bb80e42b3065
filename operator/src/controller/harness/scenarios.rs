//! What happens to clusters, each from a state at rest, or from the middle of a change.

use kvcluster_crds::v1alpha1::{DeletionPolicy, KvCluster};

use super::kubelet::{BAD_IMAGE, NOWHERE};
use super::world::World;
use crate::cluster::ANNOTATION_REPLACE;
use crate::controller::pass::Outcome;
use crate::fixtures::{ClusterBuilder, cluster};

/// What a user does.
type Change = fn(&World);

/// What happens to a cluster.
pub(super) struct Scenario {
    pub(super) name: &'static str,
    /// The cluster that is there, at rest, before; none: it is just being applied.
    pub(super) before: Option<fn() -> ClusterBuilder>,
    /// The change.
    pub(super) change: Change,
    /// Another change, once something was written whose words contain the text.
    pub(super) half_way: Option<(&'static str, Change)>,
    /// How it ends.
    pub(super) outcome: Outcome,
}

fn small() -> ClusterBuilder {
    cluster()
}

fn with_policy() -> ClusterBuilder {
    cluster().delete_policy()
}

fn five() -> ClusterBuilder {
    cluster().nodes(5)
}

fn with_policy_and_five() -> ClusterBuilder {
    with_policy().nodes(5)
}

fn unschedulable() -> ClusterBuilder {
    cluster().with(|cluster| {
        let selector = &mut cluster.spec.scheduling.node_selector;
        selector.insert(NOWHERE.to_owned(), String::new());
    })
}

fn nodes(count: i32) -> impl FnOnce(&mut KvCluster) {
    move |cluster| cluster.spec.nodes = count
}

fn broken() -> ClusterBuilder {
    cluster().with(|cluster| cluster.spec.image = Some(BAD_IMAGE.to_owned()))
}

fn image(name: &str) -> impl FnOnce(&mut KvCluster) {
    let name = name.to_owned();
    move |cluster| cluster.spec.image = Some(name)
}

pub(super) const SCENARIOS: [Scenario; 21] = [
    Scenario {
        name: "create",
        before: None,
        change: |_| {},
        half_way: None,
        outcome: Outcome::Ready,
    },
    Scenario {
        name: "upgrade",
        before: Some(small),
        change: |world| world.edit(image("image:2")),
        half_way: None,
        outcome: Outcome::Ready,
    },
    Scenario {
        name: "change of configuration",
        before: Some(small),
        change: |world| {
            world.edit(|cluster| {
                cluster.spec.limits.cache_mebibytes = 32;
                cluster.spec.kafka.min_in_sync_replicas = 1;
            });
        },
        half_way: None,
        outcome: Outcome::Ready,
    },
    Scenario {
        name: "bad image",
        before: Some(small),
        change: |world| world.edit(image(BAD_IMAGE)),
        half_way: None,
        outcome: Outcome::Waiting,
    },
    Scenario {
        name: "bad image put right",
        before: Some(broken),
        change: |world| world.edit(image("image:2")),
        half_way: None,
        outcome: Outcome::Ready,
    },
    Scenario {
        name: "schema dropped",
        before: Some(small),
        change: |world| world.outside.drop_schema(kvcluster_crds::NodeId(1)),
        half_way: None,
        outcome: Outcome::Ready,
    },
    Scenario {
        name: "scale out",
        before: Some(small),
        change: |world| world.edit(nodes(5)),
        half_way: None,
        outcome: Outcome::Ready,
    },
    Scenario {
        name: "scale in",
        before: Some(five),
        change: |world| world.edit(nodes(3)),
        half_way: None,
        outcome: Outcome::Ready,
    },
    Scenario {
        name: "replace a node",
        before: Some(small),
        change: |world| {
            world.edit(|cluster| {
                let marks = cluster.metadata.annotations.get_or_insert_default();
                marks.insert(ANNOTATION_REPLACE.to_owned(), "1".to_owned());
            });
        },
        half_way: None,
        outcome: Outcome::Ready,
    },
    Scenario {
        name: "delete in the middle of a change",
        before: Some(with_policy_and_five),
        change: |world| {
            world.edit(nodes(3));
            world.delete();
        },
        half_way: None,
        outcome: Outcome::Gone,
    },
    Scenario {
        name: "delete",
        before: Some(with_policy),
        change: World::delete,
        half_way: None,
        outcome: Outcome::Gone,
    },
    Scenario {
        name: "delete in the middle of the creation",
        before: None,
        change: |world| world.edit(|cluster| cluster.spec.deletion_policy = DeletionPolicy::Delete),
        half_way: Some(("make role", World::delete)),
        outcome: Outcome::Gone,
    },
    Scenario {
        name: "unschedulable put right",
        before: Some(unschedulable),
        change: |world| world.edit(|cluster| cluster.spec.scheduling.node_selector.clear()),
        half_way: None,
        outcome: Outcome::Ready,
    },
    Scenario {
        name: "two of three schemas dropped",
        before: Some(small),
        change: |world| {
            world.outside.drop_schema(kvcluster_crds::NodeId(1));
            world.outside.drop_schema(kvcluster_crds::NodeId(2));
        },
        half_way: None,
        outcome: Outcome::Ready,
    },
    Scenario {
        name: "another address of PostgreSQL",
        before: Some(small),
        change: |world| world.set_admin_url("postgres://chief:other@db2:5432/app"),
        half_way: None,
        outcome: Outcome::Ready,
    },
    Scenario {
        name: "scale out called off unpublished",
        before: Some(small),
        change: |world| world.edit(nodes(5)),
        half_way: Some(("make role", |world| world.edit(nodes(3)))),
        outcome: Outcome::Ready,
    },
    Scenario {
        name: "scale out called off at once",
        before: Some(small),
        change: |world| world.edit(nodes(5)),
        half_way: Some(("demo-4-postgres", |world| world.edit(nodes(3)))),
        outcome: Outcome::Ready,
    },
    Scenario {
        name: "scale out called off",
        before: Some(small),
        change: |world| world.edit(nodes(5)),
        half_way: Some(("publish assignment 4", |world| world.edit(nodes(3)))),
        outcome: Outcome::Ready,
    },
    Scenario {
        name: "scale in called off",
        before: Some(five),
        change: |world| world.edit(nodes(3)),
        half_way: Some(("publish assignment 3", |world| world.edit(nodes(5)))),
        outcome: Outcome::Ready,
    },
    Scenario {
        name: "upgrade taken back",
        before: Some(small),
        change: |world| world.edit(image("image:2")),
        half_way: Some(("DELETE pods demo-1", |world| {
            world.edit(|cluster| cluster.spec.image = None);
        })),
        outcome: Outcome::Ready,
    },
    Scenario {
        name: "upgrade after a pause",
        before: Some(small),
        change: |world| {
            world.edit(|cluster| {
                cluster.spec.paused = true;
                image("image:2")(cluster);
            });
        },
        half_way: Some(("/status", |world| {
            world.edit(|cluster| cluster.spec.paused = false);
        })),
        outcome: Outcome::Ready,
    },
];
