//! The running lab: what it is, and its parts killed and started again.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use kvcluster_crds::NodeStatus;
use kvcluster_crds::names::ClusterNames;
use serde::Deserialize;

use crate::{http, processes};

/// Longest run of one command of the lab: starting a part waits for nothing but the process.
const COMMAND_LIMIT: Duration = Duration::from_mins(1);
/// Longest change of the number of nodes: every replica that moves is caught up first.
const SCALE_LIMIT: Duration = Duration::from_mins(5);
/// Longest start of a worker of the cluster, until Kubernetes takes it for ready.
const WORKER_LIMIT: Duration = Duration::from_mins(4);
/// The sample manifest's namespace.
pub const NAMESPACE: &str = "default";
/// The sample manifest's cluster.
pub const CLUSTER: &str = "demo";
/// The sample manifest's schema prefix.
pub const SCHEMA_PREFIX: &str = "kv";

/// What `cargo lab status --json` says.
#[derive(Clone, Debug, Deserialize)]
pub struct Lab {
    mode: String,
    kubeconfig: Option<String>,
    service: Option<String>,
    kafka: Option<String>,
    postgres: Option<String>,
    docker_host: Option<String>,
    /// The store's nodes.
    pub nodes: Vec<Node>,
}

/// One node of the store.
#[derive(Clone, Debug, Deserialize)]
pub struct Node {
    /// The node's number.
    pub id: u32,
    /// Base URL of REST; none where only the Service is reached.
    pub url: Option<String>,
    /// Base URL of the admin port; none where it is not reached from outside.
    pub admin_url: Option<String>,
    /// The process, where nodes are processes; none when it does not run.
    pub pid: Option<u32>,
}

impl Lab {
    /// The store as plain processes.
    pub fn local() -> Result<Self> {
        Self::running("local", "cargo lab local")?.with_nodes("cargo lab local")
    }

    /// Kafka and PostgreSQL as plain processes, with or without store nodes.
    pub fn services() -> Result<Self> {
        Self::running("local", "cargo lab local --only-services")
    }

    /// The cluster on kind, with or without the sample store.
    pub fn kind() -> Result<Self> {
        Self::running("kind", "cargo lab up")
    }

    /// The sample store on kind.
    pub fn demo() -> Result<Self> {
        Self::kind()?.with_nodes("cargo lab up")
    }

    fn running(mode: &str, remedy: &str) -> Result<Self> {
        let text = command(&["status", "--json", "--mode", mode])?;
        let lab: Self = serde_json::from_str(&text)
            .with_context(|| format!("`cargo lab status --json` printed {text:?}"))?;
        let seen = &lab.mode;
        ensure!(
            seen == mode,
            "the lab runs as {seen:?}, not {mode:?}: run `{remedy}`"
        );
        Ok(lab)
    }

    fn with_nodes(self, remedy: &str) -> Result<Self> {
        ensure!(
            !self.nodes.is_empty(),
            "the lab runs no store nodes: run `{remedy}`"
        );
        Ok(self)
    }

    /// Base URL of the store.
    pub fn service(&self) -> Result<&str> {
        self.service.as_deref().context("the lab names no service")
    }

    /// Kafka's bootstrap address.
    pub fn kafka(&self) -> Result<&str> {
        self.kafka.as_deref().context("the lab names no Kafka")
    }

    /// How many Kafka brokers there are.
    pub fn brokers(&self) -> Result<usize> {
        Ok(self.kafka()?.split(',').count())
    }

    /// URL of PostgreSQL's administrator.
    pub fn postgres(&self) -> Result<&str> {
        self.postgres
            .as_deref()
            .context("the lab names no PostgreSQL")
    }

    /// Path of the credentials for Kubernetes.
    pub fn kubeconfig(&self) -> Result<&str> {
        self.kubeconfig
            .as_deref()
            .context("the lab names no kubeconfig")
    }

    /// `docker` for the engine that runs the Kubernetes nodes.
    pub fn docker(&self, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new("docker");
        if let Some(host) = &self.docker_host {
            command.env("DOCKER_HOST", host);
        }
        processes::output(command.args(arguments), COMMAND_LIMIT)
    }

    /// Base URLs of all nodes.
    pub fn urls(&self) -> Result<Vec<String>> {
        let url = |node: &Node| node.url.clone().context("the lab names no URL of a node");
        self.nodes.iter().map(url).collect()
    }

    /// Names of everything that belongs to the sample cluster.
    pub fn names(&self) -> ClusterNames {
        ClusterNames::new(NAMESPACE, CLUSTER)
    }
}

impl Node {
    /// What the node reports on its admin port.
    pub fn status(&self) -> Result<NodeStatus> {
        let base = self
            .admin_url
            .as_deref()
            .context("the lab names no admin URL of a node")?;
        let answer = http::once(base, "GET", "/status")?;
        ensure!(
            answer.status == 200,
            "GET /status gave {}: {}",
            answer.status,
            answer.text()
        );
        serde_json::from_slice(&answer.body).context("GET /status gave something else")
    }
}

/// Kills a part of `local` with SIGKILL; returns when it is gone.
pub fn kill(part: &str) -> Result<()> {
    signal(part, "KILL")
}

/// Starts a part of `local` that was killed.
pub fn start(part: &str) -> Result<()> {
    command(&["start", part]).map(drop)
}

/// Sends a signal to a part of `local`; returns when a part that it ends is gone.
pub fn signal(part: &str, signal: &str) -> Result<()> {
    command(&["kill", part, "--signal", signal]).map(drop)
}

/// Drops what a part of `local` sends to `target`, or only the answers to it, until [`heal`].
pub fn cut(part: &str, target: &str, answers: bool) -> Result<()> {
    let mut arguments = vec!["cut", part, "--from", target];
    if answers {
        arguments.push("--answers");
    }
    command(&arguments).map(drop)
}

/// Changes the number of store nodes of `local`; returns when every replica is where it belongs.
pub fn scale(nodes: usize) -> Result<()> {
    limited(&["scale", &nodes.to_string()], SCALE_LIMIT).map(drop)
}

/// Stops a worker of the cluster, without asking anything on it first, or starts it again; returns when that is done.
pub fn worker(name: &str, start: bool) -> Result<()> {
    let change = if start { "start" } else { "stop" };
    limited(&["worker", change, name], WORKER_LIMIT).map(drop)
}

/// Fills the disk of a part of `local`, or makes room again.
pub fn fill(part: &str, undo: bool) -> Result<()> {
    let arguments = ["fill", part, "--undo"];
    command(&arguments[..if undo { 3 } else { 2 }]).map(drop)
}

/// Starts the nodes of `local` anew with the program that has a deliberate mistake, or with their own.
pub fn restart_nodes(mistake: Option<&str>) -> Result<()> {
    let variable = format!("KVCLUSTER_SEEDED_BUG={}", mistake.unwrap_or_default());
    let seeded = [
        "nodes",
        "--program",
        "kvcluster-node-seeded",
        "--env",
        &variable,
    ];
    command(if mistake.is_some() {
        &seeded
    } else {
        &seeded[..1]
    })
    .map(drop)
}

/// Starts the nodes of `local` anew with a variable of another value.
pub fn restart_nodes_with(variable: &str, value: &str) -> Result<()> {
    let variable = format!("{variable}={value}");
    command(&["nodes", "--program", "kvcluster-node", "--env", &variable]).map(drop)
}

/// Takes back every cut; how many packets they dropped.
pub fn heal() -> Result<u64> {
    let text = command(&["heal"])?;
    let count = text
        .split_whitespace()
        .next()
        .and_then(|word| word.parse().ok());
    count.with_context(|| format!("`cargo lab heal` printed {text:?}"))
}

fn command(arguments: &[&str]) -> Result<String> {
    limited(arguments, COMMAND_LIMIT)
}

fn limited(arguments: &[&str], limit: Duration) -> Result<String> {
    let program = processes::own_program("kvcluster-lab")?;
    let ended = processes::run(Command::new(program).args(arguments), limit)?;
    if !ended.success {
        bail!(
            "`cargo lab {}` failed: {}",
            arguments.join(" "),
            ended.stderr
        );
    }
    Ok(ended.stdout)
}
