//! A three-node store of its own for one measurement, beside the lab's: same Kafka, same PostgreSQL, other names and ports.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use kvcluster_crds::{SlotRole, SlotStatus, environment};
use serde::Deserialize;
use serde_json::json;

use crate::election::{Leaders, settled_leaders};
use crate::lab::Lab;
use crate::{check, http, poll, processes};

/// Nodes, and replicas of each slot.
const NODES: u32 = 3;
/// First ports, beside those of the lab's own nodes.
const LISTEN_BASE: u16 = 18_480;
const ADMIN_BASE: u16 = 19_580;
/// Longest preparation: topics of up to 128 partitions, schemas, roles.
const PREPARE_LIMIT: Duration = Duration::from_mins(2);
/// Longest time until each slot has a leader.
const LEADERS_LIMIT: Duration = Duration::from_mins(2);
/// Longest time until a replica without state has caught up.
const REBUILD_LIMIT: Duration = Duration::from_mins(10);
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
            let process = start_node(&entry, &store.folder, &[])?;
            store.nodes.push(Node { entry, process });
        }
        let leaders = store.settled()?;
        ensure!(
            leaders.len() == slots as usize,
            "{} slots are led",
            leaders.len()
        );
        Ok(store)
    }

    /// Base URLs of all nodes.
    pub(super) fn urls(&self) -> Vec<String> {
        self.nodes
            .iter()
            .map(|node| format!("http://{}", node.entry.listen))
            .collect()
    }

    /// Base URL of the node that leads the first slot.
    pub(super) fn leader_url(&self) -> Result<String> {
        let leader = self.leader()?;
        Ok(format!("http://{}", self.nodes[leader].entry.listen))
    }

    fn leader(&self) -> Result<usize> {
        poll::until(LEADERS_LIMIT, "a leader", || {
            for (index, node) in self.nodes.iter().enumerate() {
                if node.slot()?.role == SlotRole::Leader {
                    return Ok(Some(index));
                }
            }
            Ok(None)
        })
    }

    /// Kills a node that follows, empties its schema, starts it with that limit of records above which it takes a snapshot, and
    /// waits until it has everything durably that the leader had when it started.
    pub(super) fn rebuild_follower(&mut self, records_max: u64) -> Result<Rebuilt> {
        let leader = self.leader()?;
        let target = self.nodes[leader].slot()?.applied;
        poll::until(LEADERS_LIMIT, "durable leader", || {
            Ok((self.nodes[leader].slot()?.durable >= target).then_some(()))
        })?;
        let node = &mut self.nodes[(leader + 1) % NODES as usize];
        node.process.kill()?;
        node.process.wait()?;
        let schema = &node.entry.env[environment::POSTGRES_SCHEMA];
        check::empty_tables(Lab::services()?.postgres()?, schema)?;
        let begun = Instant::now();
        let more = [(environment::SNAPSHOT_FROM_RECORDS, records_max.to_string())];
        node.process = start_node(&node.entry, &self.folder, &more)?;
        poll::until(
            REBUILD_LIMIT,
            "a replica that has all of it durably",
            || {
                let slot = node.slot()?;
                Ok((slot.durable >= target).then_some(()))
            },
        )?;
        Ok(Rebuilt {
            took: begun.elapsed(),
            records: target,
            restored_rows: node.restored_rows()?,
        })
    }

    /// Stops a node by a signal and starts it anew as soon as its process is gone; when that was.
    pub(super) fn restart(&mut self, index: usize, signal: &str) -> Result<Instant> {
        let node = &mut self.nodes[index];
        let pid = node.process.id().to_string();
        let signal = format!("-{signal}");
        processes::output(Command::new("kill").args([&signal, &pid]), STOP_LIMIT)?;
        let what = format!("the end of node {}", node.entry.id);
        poll::until(STOP_LIMIT, &what, || Ok(node.process.try_wait()?.map(drop)))?;
        let begun = Instant::now();
        node.process = start_node(&node.entry, &self.folder, &[])?;
        Ok(begun)
    }

    /// Waits until each slot has one leader and all replicas have caught up; the leader of each slot.
    pub(super) fn settled(&self) -> Result<Leaders> {
        poll::until(LEADERS_LIMIT, "a leader for each slot", || {
            let reports = self.nodes.iter().map(Node::status);
            let reports = reports.collect::<Result<Vec<_>>>()?;
            settled_leaders(&reports).map(Some)
        })
    }

    /// Base URL of the admin port of a node.
    pub(super) fn admin_url(&self, index: usize) -> String {
        format!("http://{}", self.nodes[index].entry.admin_listen)
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

/// A replica that began without state.
pub(super) struct Rebuilt {
    /// From the start of its process.
    pub(super) took: Duration,
    /// Records of the log when it started.
    pub(super) records: i64,
    /// Rows that it took over from another node.
    pub(super) restored_rows: u64,
}

impl Node {
    /// Its replica of the first slot.
    fn slot(&self) -> Result<SlotStatus> {
        let slots = self.status()?.slots;
        slots.into_iter().next().context("it has no slot yet")
    }

    fn restored_rows(&self) -> Result<u64> {
        const NAME: &str = "kvcluster_restored_rows_total ";
        let answer = http::once(
            &format!("http://{}", self.entry.admin_listen),
            "GET",
            "/metrics",
        )?;
        let text = answer.text();
        let value = text.lines().find_map(|line| line.strip_prefix(NAME));
        Ok(value.context("there is no such metric")?.trim().parse()?)
    }

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
            "log": {"keepRecords": 1_000_000_000},
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

fn start_node(entry: &Entry, folder: &Path, more: &[(&str, String)]) -> Result<Child> {
    let log = File::create(folder.join(format!("node-{}.log", entry.id)))?;
    let mut command = Command::new(processes::own_program("kvcluster-node")?);
    command
        .envs(&entry.env)
        .envs(more.iter().map(|(name, value)| (*name, value)))
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
