//! What the API server cannot know to be wrong: a condition says so within 15 s, with reason and remedy; the operator does
//! not crash; and when it is put right the cluster becomes Ready by itself.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kvcluster_crds::NodeId;
use kvcluster_suite::check;
use kvcluster_suite::lab::SCHEMA_PREFIX;
use serde_json::json;

use crate::support::{OPERATOR, Own, SETTLE_LIMIT, lab, operator_pod, topic_tool};

/// Longest time until a condition names what is wrong.
const NOTICE_LIMIT: Duration = Duration::from_secs(15);
/// The least words that a remedy takes.
const MESSAGE_WORDS: usize = 4;

/// `condition` comes to be False with a reason and a message that holds `words`; after `repair` the cluster becomes Ready;
/// the operator did not restart meanwhile.
fn expect(own: &Own, condition: &str, words: &str, repair: impl Fn() -> Result<()>) -> Result<()> {
    let operator = operator_pod(&own.kubectl)?;
    let restarts = own.kubectl.restarts(OPERATOR, &operator)?;
    let seen =
        own.kubectl
            .condition(&own.namespace, "store", (condition, "False"), NOTICE_LIMIT)?;
    let (reason, message) = (
        seen["reason"].as_str(),
        seen["message"].as_str().unwrap_or_default(),
    );
    println!("bad input: {condition}=False, {reason:?}: {message}");
    ensure!(
        reason.is_some_and(|reason| !reason.is_empty()),
        "no reason: {seen}"
    );
    ensure!(
        message.split_whitespace().count() >= MESSAGE_WORDS,
        "no remedy: {seen}"
    );
    ensure!(message.contains(words), "{words:?} is not in {message:?}");
    own.kubectl
        .condition(&own.namespace, "store", ("Ready", "False"), NOTICE_LIMIT)?;
    repair()?;
    own.kubectl
        .condition(&own.namespace, "store", ("Ready", "True"), SETTLE_LIMIT)?;
    ensure!(
        own.kubectl.restarts(OPERATOR, &operator)? == restarts,
        "the operator restarted"
    );
    Ok(())
}

#[test]
fn a_wrong_bootstrap_address() -> Result<()> {
    let (_, kubectl) = lab()?;
    let own = Own::new(&kubectl, "suite-bootstrap")?;
    let mut manifest = own.manifest("store");
    let right = manifest["spec"]["kafka"]["bootstrapServers"].clone();
    manifest["spec"]["kafka"]["bootstrapServers"] = "nowhere.kvcluster-dev.svc:9092".into();
    kubectl.apply(&manifest.to_string())?;
    expect(&own, "KafkaReady", "nowhere.kvcluster-dev.svc:9092", || {
        own.patch("store", &json!({"kafka": {"bootstrapServers": right}}))
    })
}

#[test]
fn a_wrong_password() -> Result<()> {
    let (_, kubectl) = lab()?;
    let own = Own::new(&kubectl, "suite-password")?;
    own.admin_password("wrong")?;
    kubectl.apply(&own.manifest("store").to_string())?;
    expect(&own, "PostgresReady", "password", || {
        own.admin_password("postgres")
    })
}

#[test]
fn a_missing_secret() -> Result<()> {
    let (_, kubectl) = lab()?;
    let own = Own::new(&kubectl, "suite-secret")?;
    kubectl.run(&["-n", &own.namespace, "delete", "secret", "admin"])?;
    kubectl.apply(&own.manifest("store").to_string())?;
    expect(&own, "PostgresReady", "admin", || {
        own.admin_password("postgres")
    })
}

#[test]
fn a_topic_with_other_partitions() -> Result<()> {
    let (_, kubectl) = lab()?;
    let own = Own::new(&kubectl, "suite-topic")?;
    let topic = own.names("store").log_topic();
    topic_tool(
        &kubectl,
        &["--create", "--topic", &topic, "--partitions", "3"],
    )?;
    kubectl.apply(&own.manifest("store").to_string())?;
    expect(&own, "KafkaReady", &topic, || {
        topic_tool(&kubectl, &["--delete", "--topic", &topic]).map(drop)
    })
}

#[test]
fn a_schema_of_another_owner() -> Result<()> {
    let (lab, kubectl) = lab()?;
    let own = Own::new(&kubectl, "suite-schema")?;
    let schema = own.names("store").schema(SCHEMA_PREFIX, NodeId(0));
    let postgres = lab.postgres().context("the lab has PostgreSQL")?;
    check::query(postgres, &format!("CREATE SCHEMA \"{schema}\""))?;
    kubectl.apply(&own.manifest("store").to_string())?;
    expect(&own, "PostgresReady", &schema, || {
        check::query(postgres, &format!("DROP SCHEMA \"{schema}\"")).map(drop)
    })
}
