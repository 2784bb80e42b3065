//! A three-node store of its own for one measurement, beside the lab's: same Kafka, same PostgreSQL, other names and ports.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use serde_json::json;

use crate::election::settled_leaders;
use crate::lab::Lab;
use crate::{http, poll, processes};

/// Nodes, and replicas of each slot.
const NODES: u32 = 3;
/// First ports, beside those of the lab's own nodes.
const LISTEN_BASE: u16 = 18_480;
const ADMIN_BASE: u16 = 19_580;
/// Longest preparation: topics of up to 128 partitions, schemas, roles.
const PREPARE_LIMIT: Duration = Duration::from_mins(2);
/// Longest time until each slot has a leader.
const LEADERS_LIMIT: Duration = Duration::from_mins(2);
/// Longest graceful stop of a node.
const STOP_LIMIT: Duration = Duration::from_secs(40);

/// A running store.
pub(super) struct Store {
    nodes: Vec<Node>,
    folder: PathBuf,
}

#[derive(Deserialize)]
struct Entry {
    id: u32,
    listen: String,
    admin_listen: String,
    env: BTreeMap<String, String>,
}

struct Node {
    entry: Entry,
    process: Child,
}

impl Store {
    /// Prepares and starts a store; returns when each slot has a leader.
    pub(super) fn start(slots: u32, round: usize) -> Result<Self> {
        let lab = Lab::services()?;
        let name = format!("bench-{}-{slots}-{round}", std::process::id());
        let folder = std::env::temp_dir().join(format!("kvcluster-{name}"));
        std::fs::create_dir_all(&folder)?;
        prepare(&lab, &name, slots, &folder)?;
        let file = folder.join("nodes.json");
        let text = std::fs::read_to_string(&file).with_context(|| file.display().to_string())?;
        let entries: Vec<Entry> = serde_json::from_str(&text)?;
        let mut store = Self {
            nodes: Vec::new(),
            folder,
        };
        for entry in entries {
            let process = start_node(&entry, &store.folder)?;
            store.nodes.push(Node { entry, process });
        }
        poll::until(LEADERS_LIMIT, "a leader for each slot", || {
            let reports = store
                .nodes
                .iter()
                .map(Node::status)
                .collect::<Result<Vec<_>>>()?;
            let leaders = settled_leaders(&reports)?;
            ensure!(
                leaders.len() == slots as usize,
                "{} slots are led",
                leaders.len()
            );
            Ok(Some(()))
        })?;
        Ok(store)
    }

    /// Base URLs of all nodes.
    pub(super) fn urls(&self) -> Vec<String> {
        self.nodes
            .iter()
            .map(|node| format!("http://{}", node.entry.listen))
            .collect()
    }

    /// Stops the nodes and waits until they are gone.
    pub(super) fn stop(mut self) -> Result<()> {
        for node in &self.nodes {
            let pid = node.process.id().to_string();
            processes::output(Command::new("kill").args(["-TERM", &pid]), STOP_LIMIT)?;
        }
        for node in &mut self.nodes {
            let what = format!("the end of node {}", node.entry.id);
            poll::until(STOP_LIMIT, &what, || Ok(node.process.try_wait()?.map(drop)))?;
        }
        std::fs::remove_dir_all(&self.folder).context("cannot remove the bench's folder")
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        for node in &mut self.nodes {
            // After a failure only; a process that has ended already is no error.
            let _ = node.process.kill();
            let _ = node.process.wait();
        }
    }
}

impl Node {
    fn status(&self) -> Result<kvcluster_crds::NodeStatus> {
        let answer = http::once(
            &format!("http://{}", self.entry.admin_listen),
            "GET",
            "/status",
        )?;
        serde_json::from_slice(&answer.body).context("GET /status gave something else")
    }
}

fn prepare(lab: &Lab, name: &str, slots: u32, folder: &Path) -> Result<()> {
    let manifest = json!({
        "apiVersion": "kvcluster.dev/v1alpha1", "kind": "KvCluster",
        "metadata": {"name": name, "namespace": "bench"},
        "spec": {
            "nodes": NODES, "replication": NODES, "slots": slots,
            "kafka": {"bootstrapServers": lab.kafka()?, "replicationFactor": 1, "minInSyncReplicas": 1},
            "postgres": {"instances": [{"name": "main", "adminUrlSecret": {"name": "unused"}}]},
        },
    });
    let file = folder.join("manifest.yaml");
    std::fs::write(&file, manifest.to_string())?;
    let mut command = Command::new(processes::own_program("kvcluster-operator")?);
    command
        .arg("local")
        .arg("--manifest")
        .arg(&file)
        .arg("--out")
        .arg(folder);
    command.args(["--nodes", &NODES.to_string(), "--brokers", "1"]);
    command.args(["--kafka", lab.kafka()?, "--postgres", lab.postgres()?]);
    command.args(["--listen-base", &LISTEN_BASE.to_string()]);
    command.args(["--admin-base", &ADMIN_BASE.to_string()]);
    processes::output(&mut command, PREPARE_LIMIT).map(drop)
}

fn start_node(entry: &Entry, folder: &Path) -> Result<Child> {
    let log = File::create(folder.join(format!("node-{}.log", entry.id)))?;
    let mut command = Command::new(processes::own_program("kvcluster-node")?);
    command
        .envs(&entry.env)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log);
    command.spawn().context("cannot start kvcluster-node")
}

/// The commit that is measured, marked when the tree has other changes.
pub(super) fn commit() -> Result<String> {
    let mut command = Command::new("git");
    command.args([
        "-C",
        env!("CARGO_MANIFEST_DIR"),
        "describe",
        "--always",
        "--dirty",
    ]);
    Ok(processes::output(&mut command, STOP_LIMIT)?
        .trim()
        .to_owned())
}
