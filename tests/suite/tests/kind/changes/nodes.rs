//! Nodes of the store come, go, are replaced, and lose what they had.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use kvcluster_crds::NodeId;
use kvcluster_suite::lab::{CLUSTER, NAMESPACE, SCHEMA_PREFIX};
use kvcluster_suite::{check, election, poll};
use serde_json::{Value, json};

use super::scene::{self, CHANGE_LIMIT, Scene, lab, say_moved, sql};

/// Nodes of the sample, and while there are more.
const FEW: u64 = 3;
const MANY: u64 = 5;
/// Label of all that belongs to the sample.
const OWNED: &str = "kvcluster.dev/cluster=demo";
/// Replicas of each slot in the sample.
const REPLICATION: f64 = 3.0;

pub(super) fn added_and_removed(scene: &Scene) -> Result<()> {
    let before = scene.replicas()?;
    scene.edit(&json!({ "nodes": MANY }))?;
    scene.at_rest(MANY)?;
    let many = scene.replicas()?;
    // Two of five nodes are new, and each has its even part.
    let ideal = f64::from(scene.slots()) * REPLICATION * 2.0 / 5.0;
    say_moved("3 to 5 nodes", &before, &many, ideal);
    scene.edit(&json!({ "nodes": FEW }))?;
    scene.at_rest(FEW)?;
    say_moved("5 to 3 nodes", &many, &scene.replicas()?, ideal);
    nothing_left(scene)
}

pub(super) fn removal_called_off(scene: &Scene) -> Result<()> {
    scene.edit(&json!({ "nodes": MANY }))?;
    scene.at_rest(MANY)?;
    let sets = uids(scene)?;
    let table = scene.replicas()?;
    scene.edit(&json!({ "nodes": FEW }))?;
    poll::until(CHANGE_LIMIT, "the first replica to be moved", || {
        let moved = scene
            .replicas()?
            .keys()
            .any(|place| !table.contains_key(place));
        Ok(moved.then_some(()))
    })?;
    scene.edit(&json!({ "nodes": MANY }))?;
    scene.at_rest(MANY)?;
    ensure!(
        uids(scene)? == sets,
        "a node went although its removal was called off"
    );
    scene.edit(&json!({ "nodes": FEW }))?;
    scene.at_rest(FEW)?;
    nothing_left(scene)
}

pub(super) fn replaced(scene: &Scene) -> Result<()> {
    let victim = election::busiest(&election::settled_leaders(&scene.reports()?)?);
    let before = scene.replicas()?;
    let mark = json!({ "metadata": { "annotations": { "kvcluster.dev/replace-node": victim.to_string() } } });
    scene
        .kubectl
        .patch(NAMESPACE, "kvcluster", CLUSTER, &mark)?;
    let set = lab()?.names().stateful_set(NodeId(victim));
    scene
        .kubectl
        .gone(NAMESPACE, "statefulset", &set, CHANGE_LIMIT)?;
    scene.at_rest(FEW)?;
    let ids = scene::ids()?;
    ensure!(!ids.contains(&victim), "node {victim} is one of {ids:?}");
    say_moved(
        "replacement of a node",
        &before,
        &scene.replicas()?,
        f64::from(scene.slots()),
    );
    nothing_left(scene)
}

pub(super) fn schema_dropped(scene: &Scene) -> Result<()> {
    let victim = *scene::ids()?.first().context("the store has nodes")?;
    let lab = lab()?;
    let schema = lab.names().schema(SCHEMA_PREFIX, NodeId(victim));
    let rows = check::scan(lab.service()?)?.len();
    sql(&format!("DROP SCHEMA \"{schema}\" CASCADE"))?;
    poll::until(CHANGE_LIMIT, "the rows to be in the schema again", || {
        let count = sql(&format!("SELECT count(*) FROM \"{schema}\".kv"))?;
        Ok((count.trim().parse::<usize>()? >= rows / 2).then_some(()))
    })?;
    scene.at_rest(FEW)
}

/// The StatefulSets by name and UID.
fn uids(scene: &Scene) -> Result<Vec<(Value, Value)>> {
    let sets = scene.kubectl.list(NAMESPACE, "statefulsets", OWNED)?;
    let id = |set: &Value| {
        (
            set["metadata"]["name"].clone(),
            set["metadata"]["uid"].clone(),
        )
    };
    Ok(sets.iter().map(id).collect())
}

/// Nodes that went left nothing: no Secret, no schema, no role.
fn nothing_left(scene: &Scene) -> Result<()> {
    let names = lab()?.names();
    let ids = scene::ids()?.into_iter().map(NodeId);
    let schema = |node: NodeId| names.schema(SCHEMA_PREFIX, node);
    let (secrets, schemas): (BTreeSet<String>, BTreeSet<String>) = ids
        .map(|node| (names.node_secret(node), schema(node)))
        .unzip();
    let any = schema(NodeId(0));
    let prefix = any.trim_end_matches('0');
    let statement = format!(
        "SELECT nspname FROM pg_namespace WHERE starts_with(nspname, '{prefix}') \
         UNION SELECT rolname FROM pg_roles WHERE starts_with(rolname, '{prefix}')"
    );
    poll::until(CHANGE_LIMIT, "what removed nodes had to go", || {
        let there = scene.kubectl.list(NAMESPACE, "secrets", OWNED)?;
        let there = there.iter().map(|secret| {
            secret["metadata"]["name"]
                .as_str()
                .unwrap_or_default()
                .to_owned()
        });
        let there: BTreeSet<String> = there.collect();
        ensure!(there == secrets, "Secrets {there:?}, not {secrets:?}");
        let there: BTreeSet<String> = sql(&statement)?.lines().map(str::to_owned).collect();
        ensure!(
            there == schemas,
            "schemas and roles {there:?}, not {schemas:?}"
        );
        Ok(Some(()))
    })
}
