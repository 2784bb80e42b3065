//! With `paused: true` a node is scaled away by hand: its slots get leaders by claims in the log, writes go on, the operator
//! keeps its hands off, and the node's return does no harm.

use anyhow::{Context, Result, ensure};
use kvcluster_crds::NodeId;
use kvcluster_suite::check::{self, Rows};
use kvcluster_suite::kube::Kubectl;
use kvcluster_suite::lab::{CLUSTER, Lab, NAMESPACE};
use kvcluster_suite::load::{Load, Progress};
use kvcluster_suite::{election, poll};
use serde_json::json;

use crate::support::{SETTLE_LIMIT, empty_demo, expect_everywhere, scale, settled};

#[test]
fn leadership_moves_and_writes_go_on() -> Result<()> {
    let (lab, kubectl) = empty_demo()?;
    let leaders = settled(&lab, &kubectl, None)?;
    let victim = election::busiest(&leaders);
    let set = lab.names().stateful_set(NodeId(victim));
    pause(&kubectl, true)?;
    let without = while_away(&lab, &kubectl, victim, &set);
    // Brought back in any case: the sample is shared.
    let back = scale(&kubectl, NAMESPACE, &set, 1).and_then(|()| pause(&kubectl, false));
    let mut expected = without?;
    back?;

    settled(&lab, &kubectl, None)?;
    kubectl.condition(NAMESPACE, CLUSTER, ("Ready", "True"), SETTLE_LIMIT)?;
    let rows = rows_of_every_slot("back", u32::try_from(leaders.len())?);
    write(&lab, &rows)?;
    expected.extend(rows);
    expect_everywhere(&lab, &expected)
}

fn pause(kubectl: &Kubectl, paused: bool) -> Result<()> {
    let change = json!({ "spec": { "paused": paused } });
    kubectl.patch(NAMESPACE, "kvcluster", CLUSTER, &change)?;
    poll::until(SETTLE_LIMIT, "the operator to see it", || {
        let object = kubectl
            .get(NAMESPACE, "kvcluster", CLUSTER)?
            .context("it exists")?;
        let is_seen = object["status"]["observedGeneration"] == object["metadata"]["generation"];
        Ok(is_seen.then_some(()))
    })
}

/// What was written while the node was away.
fn while_away(lab: &Lab, kubectl: &Kubectl, victim: u32, set: &str) -> Result<Rows> {
    let topic = lab.names().log_topic();
    let claims = check::decode_log(lab.kafka()?, &topic)?.claims();
    let led = settled(lab, kubectl, None)?;
    let slots = u32::try_from(led.len())?;
    let led = led.values().filter(|leader| **leader == victim).count();
    scale(kubectl, NAMESPACE, set, 0)?;
    let rows = rows_of_every_slot("away", slots);
    write(lab, &rows)?;
    settled(lab, kubectl, Some(victim))?;
    let after = check::decode_log(lab.kafka()?, &topic)?.claims();
    ensure!(
        after - claims >= i64::try_from(led)?,
        "{led} slots moved by {} claims",
        after - claims
    );
    let object = kubectl
        .get(NAMESPACE, "statefulset", set)?
        .context("the StatefulSet stays")?;
    ensure!(
        object["spec"]["replicas"] == 0,
        "the operator scaled it back although it is paused"
    );
    Ok(rows.into_iter().collect())
}

fn rows_of_every_slot(prefix: &str, slots: u32) -> Vec<(String, String)> {
    let row = |slot| {
        (
            election::key_of_slot(prefix, slot, slots),
            format!("{prefix} {slot}"),
        )
    };
    (0..slots).map(row).collect()
}

fn write(lab: &Lab, rows: &[(String, String)]) -> Result<()> {
    let load = Load {
        targets: vec![lab.service()?.to_owned()],
        connections: 4,
        row_limit: SETTLE_LIMIT,
    };
    let report = load.run(rows, &Progress::default())?;
    ensure!(report.unknown() == 0, "{}", report.line());
    // A later attempt writes another value; only refusals without effect may have come before it.
    let first_try = report
        .attempts
        .iter()
        .all(|attempt| attempt.value == rows[attempt.row].1);
    if first_try {
        return Ok(());
    }
    let again = load.run(rows, &Progress::default())?;
    ensure!(again.errors().is_empty(), "{}", again.line());
    Ok(())
}
