//! From any cluster at rest to any other, by way of a third that is given up half way: each pass does what `status.plan` says and
//! nothing else, every change comes to rest, and the end is that of a cluster that was made so.

use std::collections::BTreeMap;

use fastrand::Rng;
use kvcluster_crds::names::LABEL_NODE;
use kvcluster_crds::v1alpha1::{KvCluster, KvClusterSpec, RebalanceMode};
use serde_json::{Value, json};

use super::kubelet::{self, BAD_IMAGE};
use super::world::World;
use crate::cluster::ANNOTATION_REPLACE;
use crate::controller::pass::Outcome;
use crate::fixtures::random::{Fixed, any_cluster, seed};

/// Lives of clusters, and changes in each: 300 changes in all.
const LIVES: u64 = 30;
const CHANGES: usize = 10;
/// Lives with `KVCLUSTER_LONG`.
const LIVES_LONG: u64 = 300;
/// Slots of a cluster at most: each may have to move.
const SLOTS_MAX: i32 = 6;
/// Passes after which a change is given up, at most.
const HALF_WAY_MAX: usize = 25;

/// Passes in which nothing happens before a world counts as at rest: a node that catches up moves in each.
const QUIET_PASSES: usize = 4;

/// How lines of `status.plan` begin that tell what is on its way, and no step.
const LATER: [&str; 6] = [
    "replicas to move: ",
    "and ",
    "move slot",
    "add a replica",
    "take the replica",
    "hand over the leadership",
];

/// What `status.plan` says first, before and after a pass, is what the pass writes.
fn check_pass(before: &KvCluster, after: Option<&KvCluster>, writes: &[String]) {
    let told: Vec<String> = after
        .into_iter()
        .filter_map(|cluster| cluster.status.as_ref())
        .flat_map(|status| status.plan.clone())
        .filter(|words| !LATER.iter().any(|begin| words.starts_with(begin)))
        .collect();
    let of_status = |write: &&String| write.as_str() == "PATCH kvclusters demo/status";
    let steps: Vec<&String> = writes.iter().filter(|write| !of_status(write)).collect();
    let log_id = |cluster: &KvCluster| {
        let status = cluster.status.as_ref();
        status.and_then(|status| status.log_id.clone())
    };
    match steps.as_slice() {
        [] => {
            // The log id is written with the status itself.
            let pinned = after.map(log_id) != Some(log_id(before));
            let nothing = told.is_empty() || after.is_some_and(|cluster| waits(&cluster.spec));
            assert!(pinned || nothing, "{told:?} is told, and nothing is done");
        }
        [one] if one.as_str() == "PATCH kvclusters demo" => {
            let finalizers = |cluster: &KvCluster| cluster.metadata.finalizers.clone();
            assert_ne!(after.and_then(finalizers), finalizers(before));
        }
        [one] => {
            let told = told.first().map(|words| in_words_of_the_server(words));
            assert_eq!(told.as_ref(), Some(*one));
        }
        several => panic!("one pass wrote {several:?}"),
    }
    let statuses = writes.iter().filter(of_status).count();
    assert!(statuses <= 1, "{writes:?}");
}

/// Whether what is told is only told.
fn waits(spec: &KvClusterSpec) -> bool {
    spec.paused || spec.rebalance.mode == RebalanceMode::Plan
}

/// What is written for a step, given the step in words.
fn in_words_of_the_server(step: &str) -> String {
    let words: Vec<&str> = step.split(' ').collect();
    match words.as_slice() {
        ["apply", kind, name] => {
            let plural = match *kind {
                "Service" => "services",
                "PodDisruptionBudget" => "poddisruptionbudgets",
                "StatefulSet" => "statefulsets",
                other => panic!("a {other}?"),
            };
            format!("PATCH {plural} {name}")
        }
        ["write", "the", "PostgreSQL", "URL", "of", "node", node] => {
            format!("PATCH secrets demo-{node}-postgres")
        }
        ["restart", "node", node] => format!("DELETE pods demo-{node}-0"),
        ["delete", "StatefulSet", name] => format!("DELETE statefulsets {name}"),
        ["delete", "Secret", name] => format!("DELETE secrets {name}"),
        _ => step.to_owned(),
    }
}

/// One pass that is checked.
async fn pass(world: &mut World) -> Option<Outcome> {
    let before = world.cluster().expect("it is there");
    let count = world.faults.writes().len();
    let done = world.pass().await;
    let writes = world.faults.writes().split_off(count);
    let done = done.expect("nobody is killed");
    // A write that nobody refuses fails only when the user changed the cluster meanwhile.
    let outcome = done.expect("nothing fails");
    check_pass(&before, world.cluster().as_ref(), &writes);
    Some(outcome)
}

async fn some_passes(world: &mut World, count: usize) {
    for _ in 0..count {
        kubelet::tick(&world.api);
        world.outside.tick();
        pass(world).await;
        assert_eq!(world.outside.check(), Ok(()));
    }
}

/// Until nothing moves any more; each pass is checked.
async fn settle(world: &mut World) {
    let mut quiet = 0;
    for _ in 0..1_000 {
        let moved = kubelet::tick(&world.api) | world.outside.tick();
        let count = world.faults.writes().len();
        let outcome = pass(world).await;
        assert_eq!(world.outside.check(), Ok(()));
        let wrote = world.faults.writes().len() > count;
        quiet = if moved || wrote { 0 } else { quiet + 1 };
        if quiet > QUIET_PASSES {
            assert_eq!(outcome, Some(Outcome::Ready), "{:#?}", world.cluster());
            return;
        }
    }
    panic!("no rest: {:#?}", world.cluster());
}

/// What is wanted instead for a while: also what cannot be done, or is not to be done yet.
fn third(dice: &mut Rng, fixed: Fixed) -> KvClusterSpec {
    let mut spec = any_cluster(dice, fixed).build().spec;
    match dice.u8(..6) {
        0 => spec.paused = true,
        1 => spec.rebalance.mode = RebalanceMode::Plan,
        2 => spec.image = Some(BAD_IMAGE.to_owned()),
        _ => {}
    }
    spec
}

fn replace_some_node(dice: &mut Rng, world: &World, cluster: &mut KvCluster) {
    let members = world
        .outside
        .published()
        .map_or(Vec::new(), |table| table.nodes);
    let marks = cluster.metadata.annotations.get_or_insert_default();
    match dice.u8(..4) {
        0 if !members.is_empty() => {
            let node = members[dice.usize(..members.len())].id;
            marks.insert(ANNOTATION_REPLACE.to_owned(), node.to_string());
        }
        1 => drop(marks.insert(ANNOTATION_REPLACE.to_owned(), "no node".to_owned())),
        _ => drop(marks.remove(ANNOTATION_REPLACE)),
    }
}

/// Objects, topics and roles, without what depends on how the cluster came to be: the ids of its nodes (they are never used again;
/// here each stands for its place in the order), who holds which slot (a table that is good is kept; that it is what the ring
/// proposes is in the conditions), versions, and the annotation of a replacement that was done.
fn without_history(world: &World) -> Vec<String> {
    let end = world.end();
    let mut ids: Vec<u32> = end
        .objects
        .keys()
        .filter_map(|name| name.strip_prefix("statefulsets/demo-")?.parse().ok())
        .collect();
    ids.sort_unstable();
    let places: BTreeMap<String, String> = ids
        .iter()
        .enumerate()
        .map(|(place, id)| (id.to_string(), format!("#{place}")))
        .collect();
    let objects = end.objects.into_iter().map(|(name, mut object)| {
        if name.starts_with("kvclusters/") {
            forget_history(&mut object);
        }
        drop_empty(&mut object);
        rename(&mut object, &places);
        format!("{} {object}", renamed(&name, &places))
    });
    let kept = |words: &&String| words.starts_with("topic ") || words.starts_with("role ");
    let outside = end.outside.iter().filter(kept);
    let mut all: Vec<String> = objects
        .chain(outside.map(|words| renamed(words, &places)))
        .collect();
    all.sort();
    all
}

fn forget_history(cluster: &mut Value) {
    cluster["metadata"]["annotations"] = Value::Null;
    let status = &mut cluster["status"];
    status["assignmentVersion"] = Value::Null;
    let conditions = status["conditions"].as_array_mut().expect("conditions");
    conditions.retain(|of| of["type"] != "ReplacementAccepted");
    for of in conditions {
        of["message"] = Value::Null;
    }
}

/// What is empty is as good as not there.
fn drop_empty(value: &mut Value) {
    if let Value::Object(fields) = value {
        fields.values_mut().for_each(drop_empty);
        fields.retain(|_, field| !field.is_null() && *field != json!([]) && *field != json!({}));
    }
}

fn rename(value: &mut Value, places: &BTreeMap<String, String>) {
    let place = |id: &mut Value| {
        if let Some(place) = id.as_str().and_then(|id| places.get(id)) {
            *id = json!(place);
        }
    };
    match value {
        Value::String(text) => *text = renamed(text, places),
        Value::Object(fields) => {
            fields.get_mut(LABEL_NODE).map(place);
            if fields.get("name") == Some(&json!("KVCLUSTER_NODE_ID")) {
                fields.get_mut("value").map(place);
            }
            fields.values_mut().for_each(|field| rename(field, places));
        }
        Value::Array(list) => list.iter_mut().for_each(|item| rename(item, places)),
        _ => {}
    }
}

/// Numbers behind `demo-`, behind the last `_` of a schema and behind the last `:` of a comment are nodes.
fn renamed(text: &str, places: &BTreeMap<String, String>) -> String {
    let mut words = Vec::new();
    for word in text.split(' ') {
        let mut word = word.to_owned();
        for (id, place) in places {
            let node = format!("demo-{id}");
            let end = word.find(&node).map(|at| at + node.len());
            let whole = |end: usize| !word[end..].starts_with(|next: char| next.is_ascii_digit());
            if end.is_some_and(whole) {
                word = word.replace(&node, &format!("demo-{place}"));
                break;
            }
            let marks = [format!("_{id}"), format!(":{id}")];
            if word.starts_with("kv") && marks.iter().any(|mark| word.ends_with(mark)) {
                word.truncate(word.len() - id.len());
                word.push_str(place);
                break;
            }
        }
        words.push(word);
    }
    words.join(" ")
}

async fn live(seed: u64) {
    let mut dice = Rng::with_seed(seed);
    let fixed = Fixed::any(&mut dice, SLOTS_MAX);
    let mut world = World::new(&any_cluster(&mut dice, fixed));
    settle(&mut world).await;
    for _ in 0..CHANGES {
        world.faults.reset();
        if dice.bool() {
            let spec = third(&mut dice, fixed);
            world.edit(|cluster| {
                cluster.spec = spec;
                replace_some_node(&mut dice, &world, cluster);
            });
            some_passes(&mut world, dice.usize(..HALF_WAY_MAX)).await;
        }
        let wanted = any_cluster(&mut dice, fixed);
        world.edit(|cluster| {
            cluster.spec = wanted.build().spec;
            replace_some_node(&mut dice, &world, cluster);
        });
        settle(&mut world).await;
        let mut fresh = World::new(&wanted);
        settle(&mut fresh).await;
        let (end, made) = (without_history(&world), without_history(&fresh));
        for (one, other) in end.iter().zip(&made) {
            let pairs = one.chars().zip(other.chars());
            let same = pairs.take_while(|(one, other)| one == other).count();
            let around = |text: &str| -> String {
                let begin = same.saturating_sub(200);
                text.chars().skip(begin).take(300).collect()
            };
            assert!(
                one == other,
                "{}\ninstead of\n{}",
                around(one),
                around(other)
            );
        }
        assert_eq!(end.len(), made.len(), "{end:#?}");
    }
}

async fn lives(first: u64) {
    let lives = match std::env::var_os("KVCLUSTER_LONG") {
        Some(_) => LIVES_LONG,
        None => LIVES,
    };
    for seed in first..first + lives / 2 {
        println!("seed {seed}");
        live(seed).await;
    }
    println!("{} changes", lives / 2 * CHANGES as u64);
}

#[tokio::test(start_paused = true)]
async fn any_change_ends_as_if_it_had_always_been_so() {
    lives(seed() * LIVES_LONG).await;
}

/// The other half, for the other core.
#[tokio::test(start_paused = true)]
async fn any_other_change_ends_as_if_it_had_always_been_so() {
    lives(seed() * LIVES_LONG + LIVES_LONG / 2).await;
}
