//! `cargo lab up`: from nothing to a store that answers through a Service.

use std::path::Path;

use anyhow::Result;

use crate::build::go::HELM;
use crate::build::{node_image, own, service_images};
use crate::cache::Layout;
use crate::cluster::{self, Cluster};
use crate::deploy;
use crate::engine::Engine;
use crate::machine::check_disk;
use crate::machine::tools;
use crate::progress::{Progress, seconds};

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
    let programs = own::programs(layout, progress)?;
    own::images(layout, progress, &engine, &programs)?;
    let helm = HELM.built(layout, progress)?;
    let cluster = cluster::ensure(layout, progress, &engine, pull)?;
    deploy::run(layout, progress, &cluster, &helm)?;
    next_steps(progress, &cluster);
    Ok(())
}

fn next_steps(progress: &Progress, cluster: &Cluster) {
    let took = seconds(progress.elapsed());
    let url = deploy::SERVICE_URL;
    println!("The store answers at {url} (after {took}). Next steps:\n");
    println!("  curl -X PUT '{url}/key/hello?value=world'");
    println!("  curl {url}/key/hello\n");
    println!("  export KUBECONFIG={}", cluster.kubeconfig().display());
    if tools::find("kubectl").is_none() {
        println!(
            "  export PATH=\"$PATH:{}\"",
            parent(cluster.kubectl_program())
        );
    }
    println!("  kubectl get kvc\n  kubectl describe kvc demo\n");
    println!("  cargo lab status    what runs and where\n  cargo lab down      stop and remove it");
}

fn parent(path: &Path) -> String {
    path.parent().unwrap_or(path).display().to_string()
}
