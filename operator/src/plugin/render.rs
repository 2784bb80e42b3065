//! What `kubectl kv` says: a `KvCluster` in words. Pure.

use kube::{Resource, ResourceExt};
use kvcluster_crds::NodeId;
use kvcluster_crds::v1alpha1::{KvCluster, KvClusterStatus, RebalanceMode, condition};

use crate::cluster::ANNOTATION_REPLACE;

/// Why a node is not replaced.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Refusal {
    /// The wish can name one node.
    #[error("node {under_way} is still being replaced; wait for it, or call that off with --force")]
    AnotherUnderWay {
        /// The node that the annotation names.
        under_way: String,
    },
}

/// The steps that are left.
pub(super) fn plan(cluster: &KvCluster) -> String {
    let status = cluster.status.clone().unwrap_or_default();
    let mut lines = vec![format!("{}: {}", title(cluster), summary(cluster, &status))];
    lines.extend(status.plan.iter().enumerate().map(|(number, line)| {
        // The last line may say how many more there are: it is none of them.
        if line.starts_with("and ") && line.ends_with(" more") {
            format!("     {line}")
        } else {
            format!("{:>3}. {line}", number + 1)
        }
    }));
    let figures = status.rebalance.as_ref().map(|moves| moves.observed_at.0);
    lines.extend(figures.map(|taken| format!("     figures of {taken}")));
    joined(&lines)
}

fn joined(lines: &[String]) -> String {
    let ended = lines.iter().map(|line| format!("{line}\n"));
    ended.collect()
}

fn summary(cluster: &KvCluster, status: &KvClusterStatus) -> String {
    if cluster.status.is_none() || status.observed_generation.is_none() {
        return "no operator has looked at it yet".to_owned();
    }
    if status.observed_generation != cluster.meta().generation {
        return "the operator has not looked at its last change yet; before that:".to_owned();
    }
    if status.plan.is_empty() {
        return "nothing is left to do".to_owned();
    }
    if cluster.spec.paused {
        return "this waits, since spec.paused is true".to_owned();
    }
    match cluster.spec.rebalance.mode {
        RebalanceMode::Plan => {
            "members and replicas wait, since spec.rebalance.mode is Plan; set it to Apply to have this done"
        }
        RebalanceMode::Apply => "this is being done",
    }
    .to_owned()
}

/// Nodes and conditions.
pub(super) fn status(cluster: &KvCluster) -> String {
    let status = cluster.status.clone().unwrap_or_default();
    let number = |number: Option<i32>| number.map_or_else(|| "?".to_owned(), |n| n.to_string());
    let mut lines = vec![format!(
        "{}: {} of {} nodes ready, {} wanted; {} slots; {} replicas on their way",
        title(cluster),
        number(status.ready_nodes),
        number(status.nodes),
        cluster.spec.nodes,
        cluster.spec.slots,
        number(status.moves),
    )];
    if status.observed_generation != cluster.meta().generation {
        lines.push("  the operator has not looked at its last change yet".to_owned());
    }
    let rows: Vec<Row> = status.conditions.into_iter().map(Row::of).collect();
    let width = |of: fn(&Row) -> &str| rows.iter().map(|row| of(row).len()).max().unwrap_or(0);
    let (kinds, reasons) = (width(|row| &row.kind), width(|row| &row.reason));
    lines.extend(rows.iter().map(|row| {
        let Row {
            kind,
            truth,
            reason,
            message,
        } = row;
        format!("  {kind:kinds$}  {truth:7}  {reason:reasons$}  {message}")
    }));
    joined(&lines)
}

struct Row {
    kind: String,
    truth: String,
    reason: String,
    message: String,
}

impl Row {
    fn of(told: k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition) -> Self {
        Self {
            kind: told.type_,
            truth: told.status,
            reason: told.reason,
            message: told.message,
        }
    }
}

/// A second wish would take back the first.
pub(super) fn may_replace(cluster: &KvCluster, node: NodeId, force: bool) -> Result<(), Refusal> {
    let Some(named) = cluster.annotations().get(ANNOTATION_REPLACE) else {
        return Ok(());
    };
    if force || *named == node.to_string() || is_replaced(cluster) {
        return Ok(());
    }
    Err(Refusal::AnotherUnderWay {
        under_way: named.clone(),
    })
}

/// Whether nothing of the last replacement is left to do, or it was refused.
fn is_replaced(cluster: &KvCluster) -> bool {
    let status = cluster.status.clone().unwrap_or_default();
    let is = |kind: &str, truth: &str| {
        let mut told = status.conditions.iter();
        told.any(|told| told.type_ == kind && told.status == truth)
    };
    is(condition::REPLACEMENT_ACCEPTED, "False") || is(condition::READY, "True")
}

/// What happens now.
pub(super) fn replacing(cluster: &KvCluster, node: NodeId) -> String {
    let waits = if cluster.spec.paused {
        "; it waits, since spec.paused is true"
    } else if cluster.spec.rebalance.mode == RebalanceMode::Plan {
        "; it waits, since spec.rebalance.mode is Plan"
    } else {
        ""
    };
    let name = cluster.name_any();
    format!(
        "node {node} of {name} is to be replaced{waits}; follow it with: kubectl kv plan {name}"
    )
}

fn title(cluster: &KvCluster) -> String {
    let namespace = cluster.namespace().unwrap_or_default();
    format!("{namespace}/{}", cluster.name_any())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::fixtures::cluster;

    fn seen(status: Value) -> KvCluster {
        let with = |cluster: &mut KvCluster| {
            cluster.status = Some(serde_json::from_value(status).expect("a status"));
        };
        cluster().with(with).build()
    }

    fn told(kind: &str, truth: &str, reason: &str, message: &str) -> Value {
        json!({ "type": kind, "status": truth, "reason": reason, "message": message,
                "lastTransitionTime": "2026-01-01T00:00:00Z" })
    }

    #[test]
    fn a_plan_is_numbered_and_says_whether_it_is_done_or_waits() {
        let mut cluster = seen(json!({
            "observedGeneration": 1,
            "plan": ["publish assignment 2", "replicas to move: 1, at most 8 MiB", "and 3 more"],
            "rebalance": { "observedAt": "2026-01-01T00:00:00Z" },
        }));
        let steps = "  1. publish assignment 2\n  2. replicas to move: 1, at most 8 MiB\n     and 3 more\n     \
                     figures of 2026-01-01T00:00:00Z\n";
        assert_eq!(
            plan(&cluster),
            format!("shop/demo: this is being done\n{steps}")
        );
        cluster.spec.rebalance.mode = RebalanceMode::Plan;
        assert!(plan(&cluster).contains("set it to Apply to have this done\n  1. "));
        cluster.spec.paused = true;
        assert!(plan(&cluster).contains("spec.paused is true\n  1. "));
        cluster.metadata.generation = Some(2);
        assert!(plan(&cluster).contains("has not looked at its last change yet"));
    }

    #[test]
    fn nothing_to_do_and_nothing_known_are_not_the_same() {
        let done = seen(json!({ "observedGeneration": 1 }));
        assert_eq!(plan(&done), "shop/demo: nothing is left to do\n");
        let unseen = cluster().build();
        assert_eq!(
            plan(&unseen),
            "shop/demo: no operator has looked at it yet\n"
        );
    }

    #[test]
    fn conditions_stand_in_columns() {
        let cluster = seen(json!({
            "observedGeneration": 1, "nodes": 3, "readyNodes": 2, "moves": 0,
            "conditions": [
                told("Ready", "False", "NodesNotReady", "1 nodes are not ready"),
                told("Available", "True", "EverySlotLed", "every slot has a leader"),
            ],
        }));
        assert_eq!(
            status(&cluster),
            "shop/demo: 2 of 3 nodes ready, 3 wanted; 4 slots; 0 replicas on their way\n  \
             Ready      False    NodesNotReady  1 nodes are not ready\n  \
             Available  True     EverySlotLed   every slot has a leader\n"
        );
    }

    #[test]
    fn a_replacement_that_is_under_way_is_not_called_off_by_another() {
        let under_way = |truth: &str, accepted: &str| {
            let mut cluster = seen(json!({ "conditions": [
                told("Ready", truth, "Moving", "1 replicas are on their way"),
                told("ReplacementAccepted", accepted, "Replaced", "node 1 is replaced"),
            ] }));
            let marks = cluster.metadata.annotations.get_or_insert_default();
            marks.insert(ANNOTATION_REPLACE.to_owned(), "1".to_owned());
            cluster
        };
        let (one, two) = (NodeId(1), NodeId(2));
        let refused = may_replace(&under_way("False", "True"), two, false);
        let text = refused.expect_err("node 1 is on its way").to_string();
        assert!(text.contains("node 1 is still being replaced"), "{text}");
        assert_eq!(may_replace(&under_way("False", "True"), two, true), Ok(()));
        assert_eq!(may_replace(&under_way("False", "True"), one, false), Ok(()));
        assert_eq!(may_replace(&under_way("True", "True"), two, false), Ok(()));
        assert_eq!(
            may_replace(&under_way("False", "False"), two, false),
            Ok(())
        );
        assert_eq!(may_replace(&cluster().build(), two, false), Ok(()));
        let words = replacing(&cluster().paused().build(), two);
        assert!(words.starts_with("node 2 of demo is to be replaced; it waits, since spec.paused"));
    }
}
