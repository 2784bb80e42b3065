//! The sample store as a change sees it: its spec, its nodes, who has which replica.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kvcluster_crds::{NodeId, NodeStatus};
use kvcluster_suite::check::{self, Rows};
use kvcluster_suite::kube::Kubectl;
use kvcluster_suite::lab::{CLUSTER, Lab, NAMESPACE};
use kvcluster_suite::load::{Load, Progress};
use kvcluster_suite::poll;
use serde_json::{Value, json};

/// Longest time until a change is through, beyond what it waits for by design.
pub(super) const CHANGE_LIMIT: Duration = Duration::from_mins(4);
/// Label of the store's pods.
const PODS: &str = "app.kubernetes.io/name=kvcluster-node,kvcluster.dev/cluster=demo";

/// See the module.
pub(super) struct Scene {
    pub(super) kubectl: Kubectl,
    slots: u32,
}

/// The bytes of each replica, by node and slot.
pub(super) type Replicas = BTreeMap<(u32, u32), u64>;

/// The lab with the nodes that there are now.
pub(super) fn lab() -> Result<Lab> {
    Lab::demo()
}

/// Runs a statement as PostgreSQL's administrator.
pub(super) fn sql(statement: &str) -> Result<String> {
    check::query(lab()?.postgres()?, statement)
}

/// Writes rows that stay.
pub(super) fn fill(rows: u32) -> Result<Rows> {
    let row = |number| (format!("row-{number}"), format!("{number:064}"));
    let rows: Vec<(String, String)> = (0..rows).map(row).collect();
    let load = Load {
        targets: vec![lab()?.service()?.to_owned()],
        connections: 16,
        row_limit: CHANGE_LIMIT,
    };
    let report = load.run(&rows, &Progress::default())?;
    ensure!(report.errors().is_empty(), "{}", report.line());
    Ok(rows.into_iter().collect())
}

/// Ids of the nodes.
pub(super) fn ids() -> Result<Vec<u32>> {
    let mut ids: Vec<u32> = lab()?.nodes.iter().map(|node| node.id).collect();
    ids.sort_unstable();
    Ok(ids)
}

impl Scene {
    pub(super) fn new(kubectl: Kubectl, slots: u32) -> Self {
        Self { kubectl, slots }
    }

    /// Slots, as a number to calculate with.
    pub(super) fn slots(&self) -> u32 {
        self.slots
    }

    /// Merges a change into the spec.
    pub(super) fn edit(&self, spec: &Value) -> Result<()> {
        let change = json!({ "spec": spec });
        self.kubectl.patch(NAMESPACE, "kvcluster", CLUSTER, &change)
    }

    pub(super) fn store(&self) -> Result<Value> {
        let object = self.kubectl.get(NAMESPACE, "kvcluster", CLUSTER)?;
        object.context("the sample exists")
    }

    /// Waits until the operator has nothing more to do for the spec as it is now, and `nodes` nodes serve.
    pub(super) fn at_rest(&self, nodes: u64) -> Result<()> {
        poll::until(CHANGE_LIMIT, &format!("{nodes} nodes at rest"), || {
            let object = self.store()?;
            let is = |kind: &str, status: &str| {
                let conditions = object["status"]["conditions"].as_array();
                let mut all = conditions.into_iter().flatten();
                all.any(|condition| {
                    condition["type"] == kind
                        && condition["status"] == status
                        && condition["observedGeneration"] == object["metadata"]["generation"]
                })
            };
            let is_done =
                is("Ready", "True") && is("RingBalanced", "True") && is("Progressing", "False");
            let counts = (&object["status"]["nodes"], &object["status"]["readyNodes"]);
            let pods = self.pods()?;
            let is_whole =
                is_done && counts == (&json!(nodes), &json!(nodes)) && pods.len() as u64 == nodes;
            ensure!(is_whole, "{}; {} pods", object["status"], pods.len());
            Ok(Some(()))
        })
    }

    /// The store's pods, those that are on their way out too.
    pub(super) fn pods(&self) -> Result<Vec<Value>> {
        self.kubectl.list(NAMESPACE, "pods", PODS)
    }

    /// What each node reports.
    pub(super) fn reports(&self) -> Result<Vec<NodeStatus>> {
        let lab = lab()?;
        let nodes = lab
            .nodes
            .iter()
            .map(|node| lab.names().pod(NodeId(node.id)));
        nodes
            .map(|pod| self.kubectl.node_status(NAMESPACE, &pod))
            .collect()
    }

    /// Who has which replica.
    pub(super) fn replicas(&self) -> Result<Replicas> {
        let reports = self.reports()?;
        let of_node = |report: &NodeStatus| {
            let node = report.node.0;
            let of_slot = |slot: &kvcluster_crds::SlotStatus| ((node, slot.slot.0), slot.bytes);
            report.slots.iter().map(of_slot).collect::<Vec<_>>()
        };
        Ok(reports.iter().flat_map(of_node).collect())
    }
}

/// Says what was moved, against the least that the change needs. A slot's bytes are those of its largest replica: a new one's
/// are measured later.
pub(super) fn say_moved(what: &str, before: &Replicas, after: &Replicas, ideal: f64) {
    let mut bytes: BTreeMap<u32, u64> = BTreeMap::new();
    for ((_, slot), own) in before.iter().chain(after) {
        let largest = bytes.entry(*slot).or_default();
        *largest = (*largest).max(*own);
    }
    let moved = after.keys().filter(|place| !before.contains_key(place));
    let (count, bytes) = moved.fold((0_u32, 0), |(count, all), (_, slot)| {
        (
            count + 1,
            all + bytes.get(slot).copied().unwrap_or_default(),
        )
    });
    println!(
        "changes: {what}: {count} replicas moved, {ideal:.1} are the least; {} KiB in PostgreSQL",
        bytes >> 10
    );
}
