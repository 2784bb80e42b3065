//! The operator may do what it does, and nothing else. The last of the tests: it looks at what all others made the operator do.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use kvcluster_suite::kube::Kubectl;
use kvcluster_suite::lab::Lab;
use serde_json::Value;

use crate::audit::{self, Request, Right};
use crate::support::{OPERATOR, lab};

/// Rights that leave no trace of their own, or that only some runs need, each with the reason.
const UNSEEN: [(&str, &str, &str, &str); 1] = [(
    "kvcluster.dev",
    "kvclusters/finalizers",
    "update",
    "asked for by an admission check within another request",
)];

#[test]
fn the_operator_uses_every_right_it_has_and_lacks_none() -> Result<()> {
    let (lab, kubectl) = lab()?;
    let requests = audit::requests(&lab)?;
    let refused: Vec<_> = requests
        .iter()
        .filter(|request| request.is_forbidden)
        .map(|request| (&request.right, &request.object))
        .collect();
    ensure!(refused.is_empty(), "the operator lacks rights: {refused:?}");
    let used: BTreeSet<Right> = requests.iter().flat_map(Request::rights).collect();
    let granted = granted(&kubectl)?;
    let unseen = UNSEEN
        .map(|(group, resource, verb, _)| (group.to_owned(), resource.to_owned(), verb.to_owned()));
    for right in &unseen {
        ensure!(
            granted.contains(right) && !used.contains(right),
            "{right:?} needs no exception"
        );
    }
    let unused: Vec<_> = granted
        .iter()
        .filter(|right| !used.contains(right) && !unseen.contains(right))
        .collect();
    ensure!(unused.is_empty(), "the operator never uses {unused:?}");
    let foreign: Vec<_> = used
        .iter()
        .filter(|right| !granted.contains(right))
        .collect();
    ensure!(
        foreign.is_empty(),
        "not granted by the chart, and used: {foreign:?}"
    );
    println!(
        "rights: {} granted, all used, in {} requests",
        granted.len(),
        requests.len()
    );
    expect_strict_namespaces(&lab, &kubectl)
}

/// All rights of the chart's roles.
fn granted(kubectl: &Kubectl) -> Result<BTreeSet<Right>> {
    let label = "app.kubernetes.io/name=kvcluster-operator";
    let mut roles = kubectl.list(OPERATOR, "roles", label)?;
    roles.extend(kubectl.list(OPERATOR, "clusterroles", label)?);
    ensure!(roles.len() >= 2, "roles of the chart: {roles:?}");
    let all = roles
        .iter()
        .flat_map(|role| role["rules"].as_array().cloned().unwrap_or_default());
    let mut rights = BTreeSet::new();
    for rule in all {
        for group in texts(&rule["apiGroups"])? {
            for resource in texts(&rule["resources"])? {
                for verb in texts(&rule["verbs"])? {
                    rights.insert((group.clone(), resource.clone(), verb));
                }
            }
        }
    }
    Ok(rights)
}

fn texts(list: &Value) -> Result<Vec<String>> {
    let list = list.as_array().context("a list of texts")?;
    let text = |value: &Value| value.as_str().map(str::to_owned).context("a text");
    list.iter().map(text).collect()
}

/// Every namespace with pods of ours takes only pods that keep to the strictest standard.
fn expect_strict_namespaces(lab: &Lab, kubectl: &Kubectl) -> Result<()> {
    ensure!(!lab.nodes.is_empty(), "the sample runs");
    let strict = kubectl.list(
        "default",
        "namespaces",
        "pod-security.kubernetes.io/enforce=restricted",
    )?;
    let strict: BTreeSet<&str> = strict
        .iter()
        .filter_map(|namespace| namespace["metadata"]["name"].as_str())
        .collect();
    let text = kubectl.run(&["get", "pods", "-A", "-o", "json"])?;
    let pods: Value = serde_json::from_str(&text).context("kubectl printed no JSON")?;
    let lax: BTreeSet<&str> = pods["items"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|pod| pod["metadata"]["namespace"].as_str())
        .filter(|namespace| !namespace.starts_with("kube-") && !strict.contains(namespace))
        .collect();
    ensure!(lax.is_empty(), "namespaces that enforce nothing: {lax:?}");
    Ok(())
}
