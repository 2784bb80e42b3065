//! `cargo lab down`: nothing of the lab's is left but its cache.

use std::path::PathBuf;

use anyhow::Result;

use crate::cache::{self, Layout};
use crate::cluster::Cluster;
use crate::engine::{Engine, daemon};
use crate::local;
use crate::progress::Progress;
use crate::status::Mode;

/// Stops and removes everything that runs, or only one of the two.
pub fn run(layout: &Layout, progress: &Progress, only: Option<Mode>) -> Result<()> {
    match only {
        Some(Mode::Local) => local::stop(layout, progress),
        Some(Mode::Kind) => kind(layout, progress),
        Some(Mode::None) => Ok(()),
        None => {
            local::stop(layout, progress)?;
            kind(layout, progress)?;
            cache::remove(&layout.run(""))
        }
    }
}

/// Removes the cluster, and the engine if it is the lab's own.
pub fn kind(layout: &Layout, progress: &Progress) -> Result<()> {
    let _lock = layout.lock(cache::KIND)?;
    if daemon::is_started() && !daemon::answers() {
        // Only an engine can remove the containers of one that died.
        progress.step("start the container engine once more", |_| {
            daemon::start(layout)
        })?;
    }
    if let Some(engine) = Engine::running() {
        let cluster = Cluster::of(layout, &engine, PathBuf::new());
        if !cluster.nodes()?.is_empty() {
            progress.step("remove the cluster", |_| {
                cluster.delete(&layout.log("kind"))
            })?;
        }
    }
    if daemon::is_started() {
        progress.step("stop the container engine", |_| daemon::stop(layout))?;
    }
    for file in ["kubeconfig", "kind.yaml"] {
        let path = layout.run(file);
        if path.exists() {
            std::fs::remove_file(path)?;
        }
    }
    Ok(())
}
