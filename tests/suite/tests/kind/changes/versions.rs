//! Another image for the store's nodes: one that works, and one that does not exist.

use anyhow::{Context, Result, ensure};
use kvcluster_suite::poll;
use serde_json::{Value, json};

use super::scene::{CHANGE_LIMIT, Scene, lab};

/// Nodes of the sample.
const NODES: u64 = 3;
/// The image that the lab makes, and another name for it: to Kubernetes, another version.
const OLD: &str = "kvcluster/node:dev";
const NEW: &str = "kvcluster/node:next";
/// An image that nobody has.
const MISSING: &str = "kvcluster/node:missing";

pub(super) fn upgraded(scene: &Scene) -> Result<()> {
    name_new(scene)?;
    to(scene, NEW)?;
    to(scene, OLD)
}

pub(super) fn bad_then_good(scene: &Scene) -> Result<()> {
    name_new(scene)?;
    scene.edit(&json!({ "image": MISSING }))?;
    poll::until(CHANGE_LIMIT, "a pod that waits for its image", || {
        let waiting = scene
            .pods()?
            .iter()
            .filter(|pod| waits_for_image(pod))
            .count();
        ensure!(waiting <= 1, "{waiting} pods wait for their image");
        Ok((waiting == 1).then_some(()))
    })?;
    // The roll goes no further: whoever looks sees why, and the store still serves.
    let why = poll::until(CHANGE_LIMIT, "a condition that tells of it", || {
        let store = scene.store()?;
        let conditions = store["status"]["conditions"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        let mut told = conditions
            .iter()
            .filter(|condition| condition["type"] == "Degraded" && condition["status"] == "True");
        Ok(told.next().map(|condition| condition["message"].clone()))
    })?;
    println!("changes: with an image that does not exist: {why}");
    let broken = scene
        .pods()?
        .iter()
        .filter(|pod| image(pod) == MISSING)
        .count();
    ensure!(
        broken == 1,
        "{broken} pods have the image that does not exist"
    );
    to(scene, NEW)?;
    to(scene, OLD)
}

/// Changes the image and waits until all nodes have it.
fn to(scene: &Scene, wanted: &str) -> Result<()> {
    scene.edit(&json!({ "image": wanted }))?;
    poll::until(CHANGE_LIMIT, &format!("all nodes to run {wanted}"), || {
        let pods = scene.pods()?;
        let have = pods.iter().filter(|pod| image(pod) == wanted).count() as u64;
        ensure!(have == NODES, "{have} pods have it");
        Ok(Some(()))
    })?;
    scene.at_rest(NODES)
}

/// Gives the image its other name on each worker.
fn name_new(scene: &Scene) -> Result<()> {
    let lab = lab()?;
    let nodes = scene
        .kubectl
        .list("default", "nodes", "!node-role.kubernetes.io/control-plane")?;
    for node in nodes {
        let worker = node["metadata"]["name"]
            .as_str()
            .context("nodes have names")?;
        let full = |tag: &str| format!("docker.io/{tag}");
        let tag = [
            "exec",
            worker,
            "ctr",
            "-n",
            "k8s.io",
            "images",
            "tag",
            "--force",
            &full(OLD),
            &full(NEW),
        ];
        lab.docker(&tag)?;
    }
    Ok(())
}

fn image(pod: &Value) -> &str {
    pod["spec"]["containers"][0]["image"]
        .as_str()
        .unwrap_or_default()
}

fn waits_for_image(pod: &Value) -> bool {
    let reason = pod["status"]["containerStatuses"][0]["state"]["waiting"]["reason"].as_str();
    matches!(reason, Some("ErrImagePull" | "ImagePullBackOff"))
}
