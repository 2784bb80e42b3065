//! Restarts nodes: those that a restart may help at once, those whose pod was made from an older template one at a time.
//!
//! A node that serves is restarted only when everybody else does without: all nodes report and follow the newest assignment,
//! each slot has exactly one leader, and every voter has everything, by its own word and by what its peers have for good, all seen
//! in this very pass. A node that is broken is restarted at once: its new template may be the remedy.

use jiff::{SignedDuration, Timestamp};
use kvcluster_crds::NodeId;

use super::serving::Serving;
use super::{Stage, Step};
use crate::cluster::Target;
use crate::gate::{Evidence, Gate};
use crate::observe::{ObjectsView, World};
use crate::seeded::{self, Bug};

/// A node that tells of a problem for so long does not recover by itself; Kafka and PostgreSQL being away is no reason.
const TROUBLE_MAX: SignedDuration = SignedDuration::from_secs(60);

/// What can only help, and waits for nobody: pods that are lost get another place, broken nodes a newer template, and one whose
/// trouble is its own a new process.
pub(super) fn remedies(target: &Target, world: &World, serving: &Serving) -> Stage {
    let Some(Ok(objects)) = &world.objects else {
        return Stage::default();
    };
    let mut steps = lost(target, world, objects);
    let broken = serving
        .outdated
        .iter()
        .filter(|node| serving.broken.contains(node) && !seeded::on(Bug::BrokenWait));
    steps.extend(broken.filter_map(|&node| {
        let gate = Gate::of_broken(node, serving.why(node));
        restart(objects, node, gate)
    }));
    steps.extend(troubled(world, objects, serving));
    steps.truncate(1);
    Stage {
        steps,
        refused: None,
    }
}

/// Pods on Kubernetes nodes that are lost. Their StatefulSet makes new ones once they are forgotten.
fn lost(target: &Target, world: &World, objects: &ObjectsView) -> Vec<Step> {
    let after = SignedDuration::from_secs(target.spec.replacement.after_seconds.into());
    let steps = objects.pods.iter().filter_map(|(&node, pod)| {
        let name = pod.host.as_ref()?;
        let since = objects.hosts.get(name)?.lost_since?;
        let answers = matches!(world.nodes.get(&node), Some(Ok(_)));
        let gate = Gate::of_lost(name, since, after, world.now, answers)?;
        Some(Step::ForceDeletePod {
            node,
            name: pod.name.clone(),
            uid: pod.uid.clone(),
            gate,
        })
    });
    steps.collect()
}

/// A node that leads nothing and has had a problem for long, while everything that it depends on and all others are well: its schema
/// was dropped and made again, for example, and its process still looks for the old tables.
fn troubled(world: &World, objects: &ObjectsView, serving: &Serving) -> Option<Step> {
    let surroundings = world.kafka.is_ok() && world.postgres.values().all(Result::is_ok);
    let mut unready = serving.unready.keys();
    let (&node, None) = (unready.next()?, unready.next()) else {
        return None;
    };
    let since = *world.troubled_since.get(&node)?;
    let old = |time: Timestamp| world.now.duration_since(time) >= TROUBLE_MAX;
    let pod = objects.pods.get(&node)?;
    let lasts = old(since) && pod.created.is_some_and(old);
    if !(surroundings && lasts && serving.broken.contains(&node)) {
        return None;
    }
    restart(objects, node, Gate::of_broken(node, serving.why(node)))
}

/// The next node of a roll.
pub(super) fn stage(world: &World, serving: &Serving) -> Stage {
    let Some(Ok(objects)) = &world.objects else {
        return Stage::default();
    };
    let next = serving
        .outdated
        .iter()
        .find(|node| !serving.broken.contains(node));
    let Some(&node) = next else {
        return Stage::default();
    };
    let calm = serving.is_whole()
        && objects
            .pods
            .values()
            .all(|pod| pod.ready && !pod.terminating);
    let published = super::assignment::newest(world);
    let gate = published.filter(|_| calm).and_then(|published| {
        let evidence = Evidence::new(published.version, &world.nodes);
        evidence.may_restart(node, &published.slots)
    });
    match gate {
        Some(gate) => Stage {
            steps: restart(objects, node, gate).into_iter().collect(),
            refused: None,
        },
        None => Stage::refuse(
            "RestartWaits",
            format!(
                "node {node} runs an older template and is restarted once all nodes serve and have caught up"
            ),
        ),
    }
}

fn restart(objects: &ObjectsView, node: NodeId, gate: Gate) -> Option<Step> {
    let pod = objects.pods.get(&node).filter(|pod| !pod.terminating)?;
    Some(Step::RestartPod {
        node,
        name: pod.name.clone(),
        uid: pod.uid.clone(),
        gate,
    })
}
