//! `cargo lab up`: from nothing to a store that answers through a Service.

use anyhow::Result;

use crate::build::{node_image, service_images};
use crate::cache::Layout;
use crate::cluster;
use crate::engine::Engine;
use crate::machine::check_disk;
use crate::progress::Progress;

/// What a cold `up` needs: caches, images and what the cluster itself writes come to about 9 GiB.
const NEEDED_BYTES: u64 = 12 << 30;

/// Brings everything up and prints the next steps.
pub fn run(layout: &Layout, progress: &Progress) -> Result<()> {
    let _lock = layout.lock()?;
    check_disk(layout.root(), NEEDED_BYTES)?;
    let engine = Engine::ensure(layout, progress)?;
    let pull = engine.can_pull();
    if !pull {
        node_image::ensure(layout, progress, &engine)?;
    }
    service_images::ensure(layout, progress, &engine, pull)?;
    let cluster = cluster::ensure(layout, progress, &engine, pull)?;
    progress.note(&format!("kubeconfig {}", cluster.kubeconfig().display()));
    Ok(())
}
