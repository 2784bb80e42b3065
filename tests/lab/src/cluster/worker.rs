//! Workers that stop and come back: a Kubernetes node that is lost, as far as the cluster can tell.

use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::args::WorkerChange;
use crate::cache::{self, Layout};
use crate::cluster::{Cluster, network};
use crate::progress::Progress;
use crate::shell;

/// How long a started worker may take until it is ready.
const READY_LIMIT: Duration = Duration::from_mins(2);

/// Stops or starts a worker.
pub fn run(layout: &Layout, progress: &Progress, change: WorkerChange, name: &str) -> Result<()> {
    let _lock = layout.lock(cache::KIND)?;
    let cluster = Cluster::running(layout).context("no cluster runs; `cargo lab up` starts one")?;
    let nodes = cluster.nodes()?;
    let mut workers = nodes.iter().filter(|node| !node.ends_with("control-plane"));
    if !workers.clone().any(|worker| worker == name) {
        let known: Vec<&str> = workers.by_ref().map(String::as_str).collect();
        bail!(
            "{name} is no worker of the cluster; there are {}",
            known.join(", ")
        );
    }
    match change {
        WorkerChange::Stop => progress.step(&format!("stop {name}"), |_| {
            // Nothing inside is asked first: a machine that loses power asks nobody either.
            shell::output(&mut cluster.engine.docker(&["kill", name])).map(drop)
        }),
        WorkerChange::Start => progress.step(&format!("start {name}"), |_| start(&cluster, name)),
    }
}

fn start(cluster: &Cluster, name: &str) -> Result<()> {
    shell::output(&mut cluster.engine.docker(&["start", name]))?;
    if network::is_ours(cluster, name)? {
        // Routes are the container's, and went with it; its address may be another one.
        shell::wait_for("the worker's address", READY_LIMIT, || {
            let is_known = network::address_is_known(cluster, name)?;
            Ok(is_known.then_some(()))
        })?;
        network::configure(cluster)?;
    }
    let limit = format!("--timeout={}s", READY_LIMIT.as_secs());
    let node = format!("node/{name}");
    let ready = ["wait", "--for=condition=Ready", &node, &limit];
    shell::output(&mut cluster.kubectl(&ready))
        .map(drop)
        .with_context(|| format!("{name} is not ready"))
}
