//! What the store's nodes stand on goes: Kubernetes nodes are drained, and one is lost.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use kvcluster_suite::lab::{self, NAMESPACE};
use kvcluster_suite::poll;
use serde_json::{Value, json};

use super::scene::{CHANGE_LIMIT, Scene};

/// Nodes of the sample.
const NODES: u64 = 3;
/// How long a Kubernetes node may be gone before what stood there is made elsewhere: the least that may be asked for.
const LOST_AFTER_SECONDS: u64 = 30;

pub(super) fn drained(scene: &Scene) -> Result<()> {
    for worker in workers(scene)? {
        let begin = Instant::now();
        let limit = format!("--timeout={}s", CHANGE_LIMIT.as_secs());
        let drain = [
            "drain",
            &worker,
            "--ignore-daemonsets",
            "--delete-emptydir-data",
            &limit,
        ];
        let drained = scene.kubectl.run_within(CHANGE_LIMIT, &drain);
        let took = begin.elapsed();
        let whole = drained.and_then(|_| {
            let places = places(scene)?;
            ensure!(
                !places.contains(&worker),
                "{places:?} after the drain of {worker}"
            );
            scene.at_rest(NODES)
        });
        // Whatever happened: other tests need the worker.
        scene.kubectl.run(&["uncordon", &worker])?;
        whole.with_context(|| format!("drain of {worker}"))?;
        println!(
            "changes: {worker} was drained in {:.1} s",
            took.as_secs_f64()
        );
    }
    spread(scene)
}

pub(super) fn lost(scene: &Scene) -> Result<()> {
    spread(scene)?;
    let spec = |seconds: u64| json!({ "replacement": { "afterSeconds": seconds } });
    let usual = scene.store()?["spec"]["replacement"]["afterSeconds"].clone();
    scene.edit(&spec(LOST_AFTER_SECONDS))?;
    scene.at_rest(NODES)?;
    let places = places(scene)?;
    let worker = fastrand::choice(&places)
        .context("pods stand somewhere")?
        .clone();
    let count = places.iter().filter(|place| **place == worker).count();
    let begin = Instant::now();
    lab::worker(&worker, false)?;
    let replaced = poll::until(CHANGE_LIMIT, "what was lost to be made elsewhere", || {
        let pods = scene.pods()?;
        let serve = pods
            .iter()
            .filter(|pod| is_ready(pod) && place(pod) != worker);
        let serve = serve.count() as u64;
        ensure!(serve == NODES, "{serve} pods serve elsewhere");
        Ok(Some(()))
    })
    .and_then(|()| scene.at_rest(NODES));
    let took = begin.elapsed();
    lab::worker(&worker, true)?;
    replaced.with_context(|| format!("loss of {worker} with {count} nodes of the store"))?;
    println!(
        "changes: {worker} was lost with {count} nodes of the store, which served elsewhere after {:.1} s",
        took.as_secs_f64()
    );
    scene.edit(&json!({ "replacement": { "afterSeconds": usual } }))?;
    scene.at_rest(NODES)?;
    spread(scene)
}

/// Puts a node of the store onto a worker that has none: nothing else moves pods that run well.
fn spread(scene: &Scene) -> Result<()> {
    while let Some(pod) = crowded(scene)? {
        scene
            .kubectl
            .run_within(CHANGE_LIMIT, &["-n", NAMESPACE, "delete", "pod", &pod])?;
        scene.at_rest(NODES)?;
    }
    Ok(())
}

/// A pod that all others stand beside, if some worker has none.
fn crowded(scene: &Scene) -> Result<Option<String>> {
    let places = places(scene)?;
    if workers(scene)?.iter().all(|worker| places.contains(worker)) {
        return Ok(None);
    }
    let pods = scene.pods()?;
    let name = pods
        .first()
        .and_then(|pod| pod["metadata"]["name"].as_str());
    name.map(str::to_owned).context("pods have names").map(Some)
}

/// Kubernetes nodes that take pods.
fn workers(scene: &Scene) -> Result<Vec<String>> {
    let nodes = scene
        .kubectl
        .list("default", "nodes", "!node-role.kubernetes.io/control-plane")?;
    let name = |node: &Value| node["metadata"]["name"].as_str().map(str::to_owned);
    nodes
        .iter()
        .map(|node| name(node).context("nodes have names"))
        .collect()
}

/// Where each of the store's nodes stands.
fn places(scene: &Scene) -> Result<Vec<String>> {
    Ok(scene
        .pods()?
        .iter()
        .map(|pod| place(pod).to_owned())
        .collect())
}

fn place(pod: &Value) -> &str {
    pod["spec"]["nodeName"].as_str().unwrap_or_default()
}

fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array();
    let mut all = conditions.into_iter().flatten();
    all.any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
}
