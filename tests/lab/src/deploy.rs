//! The store in the cluster: images into the nodes, both charts by helm, the sample manifest, and its first use.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::build::{own, service_images};
use crate::cache::Layout;
use crate::cluster::{Cluster, place};
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

/// What installs charts into a cluster.
#[derive(Debug)]
pub struct Deploy<'a> {
    layout: &'a Layout,
    progress: &'a Progress,
    cluster: &'a Cluster,
    helm: PathBuf,
    log: PathBuf,
}

impl<'a> Deploy<'a> {
    /// Into this cluster, with this helm.
    pub fn new(
        layout: &'a Layout,
        progress: &'a Progress,
        cluster: &'a Cluster,
        helm: PathBuf,
    ) -> Self {
        Self {
            layout,
            progress,
            cluster,
            helm,
            log: layout.log("deploy"),
        }
    }

    /// Kafka and PostgreSQL, installed or brought up to date.
    pub fn services(&self) -> Result<()> {
        self.progress.step("install Kafka and PostgreSQL", |step| {
            let nodes = self.cluster.nodes()?;
            let node = nodes.first().context("the cluster has no node")?;
            step.detail("load images into the node");
            let tags = [service_images::KAFKA_TAG, service_images::POSTGRES_TAG];
            self.cluster.load(node, &tags, &self.log)?;
            step.detail("make volumes");
            self.cluster.make_place(node, &self.log)?;
            step.detail("install the chart");
            let kafka = format!("kafka.image={}", service_images::KAFKA_TAG);
            let postgres = format!("postgres.image={}", service_images::POSTGRES_TAG);
            let volumes = format!("pvc.storageClass={}", place::STORAGE_CLASS);
            let values = [&kafka, &postgres, &volumes, place::TOLERATION];
            self.install("kvcluster-dev", SERVICES_NAMESPACE, &values)
                .context(
                    "if another version of the lab made this cluster, `cargo lab down` removes it",
                )?;
            ["statefulset/kafka", "statefulset/postgres"]
                .iter()
                .try_for_each(|workload| {
                    step.detail(workload);
                    self.wait_rollout(SERVICES_NAMESPACE, workload)
                })
        })
    }

    /// Operator and sample, installed or brought up to date, and used once.
    pub fn store(&self) -> Result<()> {
        let progress = self.progress;
        let changed = progress.step("load the store's images into the nodes", |step| {
            let mut changed = Vec::new();
            for worker in self.workers()? {
                step.detail(&worker);
                let tags = [own::OPERATOR_TAG, own::NODE_TAG];
                changed.extend(self.cluster.load(&worker, &tags, &self.log)?);
            }
            Ok(changed)
        })?;
        progress.step("install the operator", |_| self.operator(&changed))?;
        let old_pods = self.pods()?;
        progress.step(
            "apply the sample manifest and wait until it is ready",
            |step| {
                let manifest = self.layout.source(MANIFEST).display().to_string();
                self.kubectl(&["apply", "-f", &manifest])?;
                if changed.contains(&own::NODE_TAG) {
                    self.replace(step, &old_pods)?;
                }
                self.wait_ready()
            },
        )?;
        progress.step("write and read through the Service", |_| {
            smoke::run(SERVICE_URL)
        })
    }

    /// The nodes that run the store.
    fn workers(&self) -> Result<Vec<String>> {
        let nodes = self.cluster.nodes()?;
        Ok(nodes
            .into_iter()
            .filter(|name| !name.ends_with("control-plane"))
            .collect())
    }

    fn operator(&self, changed: &[&str]) -> Result<()> {
        // Helm installs a chart's CRDs once and never again; this keeps them up to date.
        let crds = self.layout.source("crds/yaml").display().to_string();
        self.kubectl(&["apply", "--server-side", "--force-conflicts", "-f", &crds])?;
        let operator = format!("image={}", own::OPERATOR_TAG);
        let node = format!("nodeImage={}", own::NODE_TAG);
        let deployment = "deployment/kvcluster-operator";
        let get = ["-n", OPERATOR_NAMESPACE, "get", deployment];
        let was_there = shell::succeeds(&mut self.cluster.kubectl(&get));
        self.install("kvcluster", OPERATOR_NAMESPACE, &[&operator, &node])?;
        if was_there && changed.contains(&own::OPERATOR_TAG) {
            self.kubectl(&["-n", OPERATOR_NAMESPACE, "rollout", "restart", deployment])?;
        }
        self.wait_rollout(OPERATOR_NAMESPACE, deployment)
    }

    fn wait_ready(&self) -> Result<()> {
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

    fn pods(&self) -> Result<Vec<String>> {
        let words = ["get", "pods", "-l", NODE_SELECTOR, "-o", "name"];
        let names = shell::output(&mut self.cluster.kubectl(&words))?;
        Ok(names.lines().map(str::to_owned).collect())
    }

    /// The image's name is the same, so nothing else would make the pods run it. One after the other, so that every
    /// slot keeps its majority.
    fn replace(&self, step: &Step, pods: &[String]) -> Result<()> {
        let limit = format!("--timeout={}s", SERVICES_LIMIT.as_secs());
        for pod in pods {
            step.detail(&format!("run the new image in {pod}"));
            self.kubectl(&["delete", pod])?;
            self.kubectl(&["wait", "--for=create", pod, &limit])?;
            self.kubectl(&["wait", "--for=condition=Ready", pod, &limit])?;
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
