//! The kind cluster: one control plane, two workers, made of whichever node image could be had.

pub mod dns;
pub mod load;
pub mod network;
pub mod place;
pub mod worker;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::build::go::{KIND, KUBERNETES_VERSION};
use crate::build::node_image;
use crate::cache::{self, Layout};
use crate::engine::Engine;
use crate::machine::check_ports;
use crate::progress::Progress;
use crate::shell;

/// The cluster's name in kind.
pub const NAME: &str = "kvcluster";
/// The network that kind makes in the engine.
pub const NETWORK: &str = "kind";
/// The node image where images can be pulled: the one that this kind was released with.
const PUBLIC_NODE_IMAGE: &str = "kindest/node:v1.34.0";
/// How long nodes and DNS may take to become ready: 48 s on two idle cores.
const READY_LIMIT: Duration = Duration::from_mins(4);

const CONFIG: &str = include_str!("../recipes/kind.yaml");
/// What the API server writes down: every request of the operator, without its content.
const AUDIT_POLICY: &str = include_str!("../recipes/audit-policy.yaml");

/// Ports on 127.0.0.1 that the cluster takes, with their purpose; the recipe names the same.
const PORTS: [(u16, &str); 3] = [
    (8_080, "the store's Service"),
    (30_092, "Kafka"),
    (30_432, "PostgreSQL"),
];

/// A cluster that was created.
#[derive(Debug, Clone)]
pub struct Cluster {
    /// The engine that its nodes run in.
    pub engine: Engine,
    kind: PathBuf,
    kubeconfig: PathBuf,
    kubectl: PathBuf,
}

impl Cluster {
    /// The cluster of this engine, running or not.
    pub fn of(layout: &Layout, engine: &Engine, kind: PathBuf) -> Self {
        let kubectl = layout.run("bin").join("kubectl");
        let kubeconfig = layout.run("kubeconfig");
        Self {
            engine: engine.clone(),
            kind,
            kubeconfig,
            kubectl,
        }
    }

    /// The cluster if it runs and answers; builds nothing.
    pub fn running(layout: &Layout) -> Option<Self> {
        let engine = Engine::running()?;
        let cluster = Self::of(
            layout,
            &engine,
            layout.artifact("kind", &KIND.key()).join("kind"),
        );
        cluster.answers().then_some(cluster)
    }

    /// A kubectl command against this cluster.
    pub fn kubectl<S: AsRef<std::ffi::OsStr>>(&self, words: &[S]) -> Command {
        let mut command = Command::new(&self.kubectl);
        command
            .arg("--kubeconfig")
            .arg(&self.kubeconfig)
            .args(words);
        command
    }

    /// Credentials for the cluster.
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// The `kubectl` that came with the nodes.
    pub fn kubectl_program(&self) -> &Path {
        &self.kubectl
    }

    /// Names of the cluster's nodes, which are containers, the control plane first.
    pub fn nodes(&self) -> Result<Vec<String>> {
        let label = format!("label=io.x-k8s.kind.cluster={NAME}");
        let words = ["ps", "-a", "--filter", &label, "--format", "{{.Names}}"];
        let text = shell::output(&mut self.engine.docker(&words))?;
        let mut names: Vec<String> = text.lines().map(str::to_owned).collect();
        names.sort_by_key(|name| (!name.ends_with("control-plane"), name.clone()));
        Ok(names)
    }

    fn answers(&self) -> bool {
        self.kubeconfig.exists()
            && shell::succeeds(&mut self.kubectl(&["--request-timeout=5s", "get", "nodes"]))
    }

    fn kind(&self, words: &[&str]) -> Command {
        let mut command = Command::new(&self.kind);
        command.args(words).args(["--name", NAME]);
        self.engine.point(&mut command);
        command
    }

    /// Deletes the cluster, and kind's network unless something else uses it.
    pub fn delete(&self, log: &Path) -> Result<()> {
        let nodes = self.nodes()?;
        if !nodes.is_empty() {
            let names: Vec<&str> = nodes.iter().map(String::as_str).collect();
            // `docker rm` also removes what kind's own delete would, and works without kind.
            let words = [&["rm", "-f", "-v"], names.as_slice()].concat();
            shell::run_logged(&mut self.engine.docker(&words), log)?;
        }
        // The network stays when another cluster uses it.
        shell::succeeds(&mut self.engine.docker(&["network", "rm", NETWORK]));
        Ok(())
    }
}

/// Refuses when a port is taken by anything but the cluster itself.
pub fn check_ports_before(layout: &Layout) -> Result<()> {
    if let Some(engine) = Engine::running()
        && !Cluster::of(layout, &engine, PathBuf::new())
            .nodes()?
            .is_empty()
    {
        return Ok(());
    }
    check_ports(&ports())
}

fn ports() -> Vec<(u16, String)> {
    PORTS
        .iter()
        .map(|(port, purpose)| (*port, (*purpose).to_owned()))
        .collect()
}

/// Brings the cluster up, or leaves it alone if it answers.
pub fn ensure(
    layout: &Layout,
    progress: &Progress,
    engine: &Engine,
    pull: bool,
) -> Result<Cluster> {
    let kind = KIND.built(layout, progress)?;
    let cluster = Cluster::of(layout, engine, kind);
    if cluster.answers() {
        return Ok(cluster);
    }
    let log = layout.log("kind");
    if !cluster.nodes()?.is_empty() {
        progress.step("remove a cluster that does not answer", |_| {
            cluster.delete(&log)
        })?;
    }
    check_ports(&ports())?;
    let image = if pull {
        PUBLIC_NODE_IMAGE
    } else {
        node_image::TAG
    };
    progress.step("create the cluster", |step| {
        let config = layout.run("kind.yaml");
        let policy = layout.run("audit-policy.yaml");
        cache::write(&policy, AUDIT_POLICY)?;
        let text = CONFIG.replace("@DISABLE_DEFAULT_CNI@", &(!pull).to_string());
        cache::write(
            &config,
            text.replace("@AUDIT_POLICY@", &policy.to_string_lossy()),
        )?;
        let (config, kubeconfig) = (
            config.display().to_string(),
            cluster.kubeconfig.display().to_string(),
        );
        let words = ["create", "cluster", "--image", image, "--config", &config];
        let more = ["--kubeconfig", &kubeconfig, "--retain", "--wait", "0s"];
        let created = shell::run_logged(&mut cluster.kind(&[&words[..], &more].concat()), &log);
        created
            .context("kind could not create the cluster; `cargo lab down` removes what it left")?;
        copy_kubectl(&cluster)?;
        if !pull {
            step.detail("network");
            network::configure(&cluster)?;
            dns::drop_upstream(&cluster)?;
        }
        step.detail("wait for the nodes");
        wait_ready(&cluster, &log)
    })?;
    Ok(cluster)
}

/// The node image brings a kubectl of the right version.
fn copy_kubectl(cluster: &Cluster) -> Result<()> {
    let folder = cluster
        .kubectl
        .parent()
        .context("kubectl lies in a folder")?;
    std::fs::create_dir_all(folder)?;
    let from = format!("{NAME}-control-plane:/usr/bin/kubectl");
    let to = cluster.kubectl.to_string_lossy();
    shell::output(&mut cluster.engine.docker(&["cp", "-L", &from, &to])).map(drop)
}

fn wait_ready(cluster: &Cluster, log: &Path) -> Result<()> {
    let limit = format!("--timeout={}s", READY_LIMIT.as_secs());
    let nodes = ["wait", "--for=condition=Ready", "nodes", "--all", &limit];
    shell::run_logged(&mut cluster.kubectl(&nodes), log).context("the nodes are not ready")?;
    let dns = [
        "-n",
        "kube-system",
        "rollout",
        "status",
        "deployment/coredns",
        &limit,
    ];
    shell::run_logged(&mut cluster.kubectl(&dns), log).context("the cluster's DNS is not ready")
}

/// Which Kubernetes runs: said in the summary.
pub fn version(pull: bool) -> &'static str {
    if pull { "v1.34.0" } else { KUBERNETES_VERSION }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_recipe_takes_the_ports_that_are_checked() {
        for (port, _) in PORTS {
            assert_eq!(
                CONFIG.matches(&format!("hostPort: {port},")).count(),
                1,
                "{port}"
            );
        }
        assert_eq!(CONFIG.matches("hostPort:").count(), PORTS.len());
        assert_eq!(CONFIG.matches("@DISABLE_DEFAULT_CNI@").count(), 1);
        assert_eq!(
            version(true),
            PUBLIC_NODE_IMAGE.rsplit(':').next().expect("it has a tag")
        );
    }
}
