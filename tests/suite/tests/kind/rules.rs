//! Every rule of the custom resource, against the real API server: what it refuses and with which words, and the nearest
//! that it accepts.

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::support::{Own, lab};

/// A path into the manifest, the value that is refused, a part of the message, and a value that is accepted.
struct Rule {
    path: &'static str,
    refused: Value,
    message: &'static str,
    accepted: Value,
}

fn rule(path: &'static str, refused: Value, message: &'static str, accepted: Value) -> Rule {
    Rule {
        path,
        refused,
        message,
        accepted,
    }
}

fn rules_of_size() -> Vec<Rule> {
    vec![
        rule(
            "/metadata/name",
            json!("n".repeat(33)),
            "longer than 32 bytes",
            json!("n".repeat(32)),
        ),
        rule(
            "/metadata/name",
            json!("1a"),
            "DNS label that starts with a letter",
            json!("a1"),
        ),
        rule(
            "/metadata/name",
            json!("a.b"),
            "DNS label that starts with a letter",
            json!("a-b"),
        ),
        rule(
            "/spec/replication",
            json!(2),
            "at least spec.replication",
            json!(1),
        ),
        rule("/spec/replication", json!(0), "spec.replication", json!(1)),
        rule("/spec/replication", json!(8), "spec.replication", json!(1)),
        rule("/spec/nodes", json!(0), "spec.nodes", json!(2)),
        rule("/spec/nodes", json!(101), "spec.nodes", json!(100)),
        rule("/spec/slots", json!(0), "spec.slots", json!(1)),
        rule("/spec/slots", json!(1025), "spec.slots", json!(1024)),
    ]
}

fn rules_of_services() -> Vec<Rule> {
    vec![
        rule(
            "/spec/kafka/minInSyncReplicas",
            json!(2),
            "must not exceed spec.kafka.replicationFactor",
            json!(1),
        ),
        rule(
            "/spec/kafka/bootstrapServers",
            json!("a:1, b:2"),
            "host:port, several separated by commas",
            json!("a:1,b:2"),
        ),
        rule(
            "/spec/kafka/bootstrapServers",
            json!("kafka"),
            "host:port, several separated by commas",
            json!("kafka:9092"),
        ),
        rule(
            "/spec/postgres/schemaPrefix",
            json!("1kv"),
            "start with a letter",
            json!("kv1"),
        ),
        rule(
            "/spec/postgres/schemaPrefix",
            json!("KV"),
            "lower-case letters",
            json!("kv_2"),
        ),
        rule(
            "/spec/postgres/schemaPrefix",
            json!("k".repeat(13)),
            "schemaPrefix",
            json!("k".repeat(12)),
        ),
        rule(
            "/spec/postgres/instances",
            json!([]),
            "instances",
            json!([{"name": "a", "adminUrlSecret": {"name": "s"}}]),
        ),
    ]
}

fn rules_of_behaviour() -> Vec<Rule> {
    vec![
        rule(
            "/spec/service",
            json!({"nodePort": 30999}),
            "nodePort needs spec.service.type",
            json!({"type": "NodePort", "nodePort": 30999}),
        ),
        rule(
            "/spec/limits",
            json!({"heartbeatMs": 250, "suspicionMs": 749}),
            "at least 3 x",
            json!({"heartbeatMs": 250, "suspicionMs": 750}),
        ),
        rule(
            "/spec/limits",
            json!({"leaseMs": 199}),
            "leaseMs",
            json!({"leaseMs": 200}),
        ),
        rule(
            "/spec/ring",
            json!({"loadFactorPercent": 99}),
            "loadFactorPercent",
            json!({"loadFactorPercent": 100}),
        ),
        rule(
            "/spec/deletionPolicy",
            json!("Forget"),
            "deletionPolicy",
            json!("Retain"),
        ),
        rule("/spec/reads", json!("Dirty"), "reads", json!("Log")),
    ]
}

fn with(manifest: &Value, path: &str, value: &Value) -> Result<String> {
    let mut manifest = manifest.clone();
    let (parent, field) = path
        .rsplit_once('/')
        .context("a path begins with a slash")?;
    manifest
        .pointer_mut(parent)
        .with_context(|| format!("no {parent}"))?[field] = value.clone();
    Ok(manifest.to_string())
}

#[test]
fn every_rule_refuses_and_accepts() -> Result<()> {
    let (_, kubectl) = lab()?;
    let own = Own::new(&kubectl, "suite-rules")?;
    let sections = [rules_of_size(), rules_of_services(), rules_of_behaviour()];
    let rules = sections.into_iter().flatten();
    let manifest = own.manifest("store");
    for Rule {
        path,
        refused,
        message,
        accepted,
    } in rules
    {
        let dry_run = ["apply", "--dry-run=server"];
        let ended = kubectl.with_manifest(&dry_run, &with(&manifest, path, &refused)?)?;
        assert!(!ended.success, "{path} = {refused} is taken");
        assert!(
            ended.stderr.contains(message),
            "{path} = {refused}: {}",
            ended.stderr
        );
        let ended = kubectl.with_manifest(&dry_run, &with(&manifest, path, &accepted)?)?;
        assert!(ended.success, "{path} = {accepted}: {}", ended.stderr);
    }
    Ok(())
}

#[test]
fn what_places_data_cannot_change() -> Result<()> {
    let (_, kubectl) = lab()?;
    let own = Own::new(&kubectl, "suite-fixed")?;
    let mut manifest = own.manifest("store");
    manifest["spec"]["nodes"] = 2.into();
    manifest["spec"]["postgres"]["schemaPrefix"] = "kv".into();
    // Paused: the operator makes nothing of it, the API server's rules are all that is asked here.
    manifest["spec"]["paused"] = true.into();
    manifest["spec"]["deletionPolicy"] = "Retain".into();
    kubectl.apply(&manifest.to_string())?;
    let fixed = [
        ("/spec/slots", json!(8), "spec.slots cannot be changed"),
        (
            "/spec/replication",
            json!(2),
            "spec.replication cannot be changed",
        ),
        (
            "/spec/postgres/schemaPrefix",
            json!("other"),
            "spec.postgres.schemaPrefix cannot be changed",
        ),
    ];
    for (path, value, message) in fixed {
        let ended = kubectl.with_manifest(
            &["apply", "--dry-run=server"],
            &with(&manifest, path, &value)?,
        )?;
        assert!(!ended.success, "{path} = {value} is taken");
        assert!(ended.stderr.contains(message), "{path}: {}", ended.stderr);
    }
    for (path, value) in [
        ("/spec/nodes", json!(3)),
        ("/spec/kafka/bootstrapServers", json!("b:2")),
    ] {
        let ended = kubectl.with_manifest(
            &["apply", "--dry-run=server"],
            &with(&manifest, path, &value)?,
        )?;
        assert!(ended.success, "{path}: {}", ended.stderr);
    }
    Ok(())
}
