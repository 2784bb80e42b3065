//! The store in the cluster: images into the nodes, both charts by helm, the sample manifest, and its first use.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::build::{own, service_images};
use crate::cache::Layout;
use crate::cluster::Cluster;
use crate::local::nodes::MANIFEST;
use crate::progress::{Progress, Step};
use crate::{shell, smoke};

/// The store's Service from outside; see the ports in `kind.yaml`.
pub const SERVICE_URL: &str = "http://127.0.0.1:8080";
/// Kafka's outside listener.
pub const KAFKA: &str = "127.0.0.1:30092";
/// The administrator's connection to PostgreSQL.
pub const POSTGRES_URL: &str = "postgres://postgres:postgres@127.0.0.1:30432/postgres";
/// Labels of the sample cluster's pods.
pub const NODE_SELECTOR: &str = "app.kubernetes.io/name=kvcluster-node,kvcluster.dev/cluster=demo";

/// How long Kafka and PostgreSQL may take until they are ready: 15 s on two idle cores.
const SERVICES_LIMIT: Duration = Duration::from_mins(3);
/// How long the sample may take until it is ready. The goal is 60 s; more is reported, and this is the end.
const SAMPLE_LIMIT: Duration = Duration::from_mins(3);
const OPERATOR_NAMESPACE: &str = "kvcluster-system";
const SERVICES_NAMESPACE: &str = "kvcluster-dev";

/// Installs everything, or brings it up to date, and uses it once.
pub fn run(layout: &Layout, progress: &Progress, cluster: &Cluster, helm: &Path) -> Result<()> {
    let deploy = Deploy {
        layout,
        cluster,
        helm: helm.to_owned(),
        log: layout.log("deploy"),
    };
    let (service_node, workers) = deploy.workers()?;
    let changed = progress.step("load images into the nodes", |step| {
        deploy.load(step, &service_node, &workers)
    })?;
    progress.step("install Kafka and PostgreSQL", |_| {
        deploy.services(&service_node)
    })?;
    progress.step("install the operator", |_| deploy.operator(&changed))?;
    progress.step(
        "apply the sample manifest and wait until it is ready",
        |_| deploy.sample(),
    )?;
    if changed.contains(&own::NODE_TAG) {
        progress.step("restart the store's nodes with the new image", |_| {
            deploy.restart_nodes()
        })?;
    }
    progress.step("write and read through the Service", |_| {
        smoke::run(SERVICE_URL)
    })
}

struct Deploy<'a> {
    layout: &'a Layout,
    cluster: &'a Cluster,
    helm: PathBuf,
    log: PathBuf,
}

impl Deploy<'_> {
    /// The worker that keeps the data of Kafka and PostgreSQL, and all workers.
    fn workers(&self) -> Result<(String, Vec<String>)> {
        let nodes = self.cluster.nodes()?;
        let workers: Vec<String> = nodes
            .into_iter()
            .filter(|name| !name.ends_with("control-plane"))
            .collect();
        let first = workers
            .first()
            .context("the cluster has no worker")?
            .clone();
        Ok((first, workers))
    }

    fn load(
        &self,
        step: &Step,
        service_node: &str,
        workers: &[String],
    ) -> Result<Vec<&'static str>> {
        let services = [service_images::KAFKA_TAG, service_images::POSTGRES_TAG];
        step.detail(service_node);
        self.cluster.load(service_node, &services, &self.log)?;
        let mut changed = Vec::new();
        for worker in workers {
            step.detail(worker);
            changed.extend(self.cluster.load(
                worker,
                &[own::OPERATOR_TAG, own::NODE_TAG],
                &self.log,
            )?);
        }
        Ok(changed)
    }

    fn services(&self, node: &str) -> Result<()> {
        let place = format!("hostPath.node={node}");
        let kafka = format!("kafka.image={}", service_images::KAFKA_TAG);
        let postgres = format!("postgres.image={}", service_images::POSTGRES_TAG);
        let values = ["storage=hostPath", &place, &kafka, &postgres];
        self.install("kvcluster-dev", SERVICES_NAMESPACE, &values)?;
        ["statefulset/kafka", "statefulset/postgres"]
            .iter()
            .try_for_each(|workload| self.wait_rollout(SERVICES_NAMESPACE, workload))
    }

    fn operator(&self, changed: &[&str]) -> Result<()> {
        // Helm installs a chart's CRDs once and never again; this keeps them up to date.
        let crds = self.layout.source("crds/yaml").display().to_string();
        self.kubectl(&["apply", "--server-side", "--force-conflicts", "-f", &crds])?;
        let operator = format!("image={}", own::OPERATOR_TAG);
        let node = format!("nodeImage={}", own::NODE_TAG);
        self.install("kvcluster", OPERATOR_NAMESPACE, &[&operator, &node])?;
        let deployment = "deployment/kvcluster-operator";
        if changed.contains(&own::OPERATOR_TAG) {
            self.kubectl(&["-n", OPERATOR_NAMESPACE, "rollout", "restart", deployment])?;
        }
        self.wait_rollout(OPERATOR_NAMESPACE, deployment)
    }

    fn sample(&self) -> Result<()> {
        let manifest = self.layout.source(MANIFEST).display().to_string();
        self.kubectl(&["apply", "-f", &manifest])?;
        let limit = format!("--timeout={}s", SAMPLE_LIMIT.as_secs());
        let ready = self.kubectl(&["wait", "--for=condition=Ready", "kvcluster/demo", &limit]);
        if ready.is_err() {
            let why = shell::output(&mut self.cluster.kubectl(&["get", "kvcluster", "demo"]))?;
            bail!(
                "the sample is not ready after {} s:\n{why}\n`kubectl describe kvcluster demo` says more",
                SAMPLE_LIMIT.as_secs()
            );
        }
        Ok(())
    }

    /// One after the other, so that every slot keeps its majority.
    fn restart_nodes(&self) -> Result<()> {
        let words = ["get", "statefulsets", "-l", NODE_SELECTOR, "-o", "name"];
        let sets = shell::output(&mut self.cluster.kubectl(&words))?;
        for set in sets.lines() {
            self.kubectl(&["rollout", "restart", set])?;
            self.wait_rollout("default", set)?;
        }
        Ok(())
    }

    fn install(&self, release: &str, namespace: &str, values: &[&str]) -> Result<()> {
        let chart = self.layout.source("charts").join(release);
        let mut command = Command::new(&self.helm);
        command.args(["upgrade", "--install", release]).arg(chart);
        command.args(["--namespace", namespace, "--create-namespace"]);
        command.arg("--kubeconfig").arg(self.cluster.kubeconfig());
        for value in values {
            command.args(["--set", value]);
        }
        shell::run_logged(&mut command, &self.log)
            .with_context(|| format!("cannot install the chart {release}"))
    }

    fn wait_rollout(&self, namespace: &str, workload: &str) -> Result<()> {
        let limit = format!("--timeout={}s", SERVICES_LIMIT.as_secs());
        self.kubectl(&["-n", namespace, "rollout", "status", workload, &limit]).with_context(|| {
            format!("{workload} is not ready; `kubectl -n {namespace} describe {workload}` says more")
        })
    }

    fn kubectl(&self, words: &[&str]) -> Result<()> {
        shell::run_logged(&mut self.cluster.kubectl(words), &self.log)
    }
}
