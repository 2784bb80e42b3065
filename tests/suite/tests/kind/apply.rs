//! One manifest, a running store: how long it takes, and what `kubectl get kvc` shows meanwhile and afterwards.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use kvcluster_suite::kube::Kubectl;
use kvcluster_suite::poll;

use crate::support::{Own, READY_LIMIT, lab};

#[test]
fn a_manifest_becomes_ready_in_a_minute() -> Result<()> {
    let (_, kubectl) = lab()?;
    let own = Own::new(&kubectl, "suite-apply")?;
    let mut manifest = own.manifest("store");
    manifest["spec"]["nodes"] = 3.into();
    manifest["spec"]["replication"] = 3.into();
    manifest["spec"]["slots"] = 16.into();
    let begin = Instant::now();
    kubectl.apply(&manifest.to_string())?;
    poll::until(READY_LIMIT, "a reason while it is not ready", || {
        let row = columns(&kubectl, &own.namespace)?;
        ensure!(row[1..=3] == ["3", "False", "16"], "{row:?}");
        Ok(row.get(5).filter(|reason| !reason.is_empty()).map(drop))
    })?;
    let timeout = format!("--timeout={}s", READY_LIMIT.as_secs());
    let arguments = [
        "-n",
        &own.namespace,
        "wait",
        "--for=condition=Ready",
        "kvcluster/store",
        &timeout,
    ];
    kubectl.run_within(READY_LIMIT, &arguments)?;
    let took = begin.elapsed();
    println!(
        "apply: Ready {:.1} s after kubectl apply",
        took.as_secs_f64()
    );
    assert!(took <= READY_LIMIT, "{took:?}");
    let row = columns(&kubectl, &own.namespace)?;
    assert_eq!(row[..5], ["store", "3", "True", "16", "0"]);
    Ok(())
}

/// The only row of `kubectl get kvc`: name, nodes, ready, slots, moves, reason. The age is checked to be there and left out.
fn columns(kubectl: &Kubectl, namespace: &str) -> Result<Vec<String>> {
    let table = kubectl.run(&["-n", namespace, "get", "kvc"])?;
    let (header, row) = table.split_once('\n').context("a header and a row")?;
    let titles = ["NAME", "NODES", "READY", "SLOTS", "MOVES", "AGE", "REASON"];
    ensure!(header.split_whitespace().eq(titles), "{header}");
    let starts: Vec<usize> = titles
        .iter()
        .filter_map(|title| header.find(title))
        .collect();
    let cell = |index: usize| {
        let end = starts
            .get(index + 1)
            .copied()
            .unwrap_or(row.len())
            .min(row.len());
        row.get(starts[index].min(end)..end)
            .unwrap_or_default()
            .trim()
            .to_owned()
    };
    ensure!(!cell(5).is_empty(), "no age: {row}");
    Ok([0, 1, 2, 3, 4, 6].map(cell).to_vec())
}
