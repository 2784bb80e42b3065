//! `cargo lab up`: from nothing to a store that answers through a Service.

use std::path::Path;

use anyhow::{Result, bail};

use crate::build::go::{HELM, KIND, KUBERNETES};
use crate::build::{kafka, node_image, own, service_images};
use crate::cache::{self, Layout};
use crate::cluster::{self, Cluster};
use crate::deploy::{self, Deploy};
use crate::engine::Engine;
use crate::machine::tools::{self, Tool};
use crate::machine::{check_disk, is_root};
use crate::progress::{Progress, seconds};

/// What a cold `up` needs: caches, images and what the cluster itself writes come to about 9 GiB.
const NEEDED_COLD_BYTES: u64 = 12 << 30;
/// What a warm one needs: the cluster's own data.
const NEEDED_WARM_BYTES: u64 = 4 << 30;

/// Brings everything up and prints the next steps.
pub fn run(layout: &Layout, progress: &Progress) -> Result<()> {
    let _lock = layout.lock(cache::KIND)?;
    check_machine(layout)?;
    let engine = Engine::ensure(layout, progress)?;
    // What was built once is used again, without asking the network.
    let pull = !node_image::is_made(&engine) && engine.can_pull();
    if !pull {
        check_builders(layout)?;
        node_image::ensure(layout, progress, &engine)?;
    }
    service_images::ensure(layout, progress, &engine, pull)?;
    let helm = HELM.built(layout, progress)?;
    let cluster = cluster::ensure(layout, progress, &engine, pull)?;
    let deploy = Deploy::new(layout, progress, &cluster, helm);
    deploy.services()?;
    let programs = own::programs(layout, progress)?;
    own::images(layout, progress, &engine, &programs)?;
    deploy.store()?;
    next_steps(progress, &cluster);
    Ok(())
}

/// Everything that would make `up` fail late is looked at first.
fn check_machine(layout: &Layout) -> Result<()> {
    Engine::check_before()?;
    let is_warm = layout.root().join("docker").exists() || KIND.is_built(layout);
    let needed = if is_warm {
        NEEDED_WARM_BYTES
    } else {
        NEEDED_COLD_BYTES
    };
    check_disk(layout.root(), needed)?;
    tools::require(&[Tool::Cargo])?;
    if !KIND.is_built(layout) || !HELM.is_built(layout) {
        tools::require(&[Tool::Go])?;
    }
    cluster::check_ports_before(layout)
}

/// Where no image can be pulled, more is built, and building needs root.
fn check_builders(layout: &Layout) -> Result<()> {
    if !kafka::is_fetched(layout) {
        tools::require(&[Tool::Java, Tool::Maven])?;
    }
    if !KUBERNETES.is_built(layout) {
        tools::require(&[Tool::Go])?;
    }
    if !is_root() {
        bail!(
            "the engine can pull no image, and only root can build them: give the engine a way to \
             a registry, or run `sudo cargo lab up`, or use `cargo lab local`, which needs none"
        );
    }
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
