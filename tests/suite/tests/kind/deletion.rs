//! What a deletion leaves and what it takes, also while Kafka or PostgreSQL are away.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use kvcluster_crds::NodeId;
use kvcluster_suite::check;
use kvcluster_suite::lab::{CLUSTER, Lab, NAMESPACE, SCHEMA_PREFIX};
use kvcluster_suite::poll;
use serde_json::{Value, json};

use crate::support::{
    Own, READY_LIMIT, SERVICES, lab, now_seconds, scale, schema_and_role, topic_tool, topics,
};

/// Longest time for a deletion with everything there: pods stop, topics go and are seen gone twice, schemas go.
const DELETION_LIMIT: Duration = Duration::from_mins(2);
/// How long a service stays away in the middle of a deletion.
const AWAY: Duration = Duration::from_mins(2);

fn schema(own: &Own, cluster: &str) -> String {
    own.names(cluster).schema(SCHEMA_PREFIX, NodeId(0))
}

fn delete(own: &Own, cluster: &str) -> Result<()> {
    own.kubectl
        .run(&[
            "-n",
            &own.namespace,
            "delete",
            "kvcluster",
            cluster,
            "--wait=false",
        ])
        .map(drop)
}

fn expect_nothing_left(lab: &Lab, own: &Own, cluster: &str) -> Result<()> {
    ensure!(
        topics(&own.kubectl, &own.names(cluster))?.is_empty(),
        "topics are left"
    );
    let left = schema_and_role(lab, &schema(own, cluster))?;
    ensure!(left == (false, false), "(schema, role) are left: {left:?}");
    Ok(())
}

#[test]
fn retain_leaves_topics_and_schemas() -> Result<()> {
    let (lab, kubectl) = lab()?;
    let own = Own::new(&kubectl, "suite-retain")?;
    let mut manifest = own.manifest("store");
    manifest["spec"]["deletionPolicy"] = "Retain".into();
    own.bring(&manifest)?;
    let object = kubectl
        .get(&own.namespace, "kvcluster", "store")?
        .context("it exists")?;
    assert_eq!(
        object["metadata"]["finalizers"],
        Value::Null,
        "Retain sets no finalizer"
    );
    delete(&own, "store")?;
    kubectl.gone(&own.namespace, "kvcluster", "store", DELETION_LIMIT)?;
    kubectl.gone(&own.namespace, "pod", "store-0-0", DELETION_LIMIT)?;
    assert_eq!(topics(&kubectl, &own.names("store"))?.len(), 3);
    assert_eq!(schema_and_role(&lab, &schema(&own, "store"))?, (true, true));

    for topic in topics(&kubectl, &own.names("store"))? {
        topic_tool(&kubectl, &["--delete", "--topic", &topic])?;
    }
    let name = schema(&own, "store");
    check::query(
        lab.postgres()?,
        &format!("DROP SCHEMA \"{name}\" CASCADE; DROP OWNED BY \"{name}\"; DROP ROLE \"{name}\""),
    )?;
    Ok(())
}

#[test]
fn delete_takes_exactly_its_own() -> Result<()> {
    let (lab, kubectl) = lab()?;
    let own = Own::new(&kubectl, "suite-delete")?;
    own.bring(&own.manifest("one"))?;
    own.bring(&own.manifest("two"))?;
    delete(&own, "one")?;
    kubectl.gone(&own.namespace, "kvcluster", "one", DELETION_LIMIT)?;
    expect_nothing_left(&lab, &own, "one")?;
    assert_eq!(topics(&kubectl, &own.names("two"))?.len(), 3);
    assert_eq!(schema_and_role(&lab, &schema(&own, "two"))?, (true, true));
    own.kubectl
        .condition(&own.namespace, "two", ("Ready", "True"), DELETION_LIMIT)?;
    delete(&own, "two")?;
    kubectl.gone(&own.namespace, "kvcluster", "two", DELETION_LIMIT)?;
    expect_nothing_left(&lab, &own, "two")
}

/// In a run one of the two is away, in turn; in a long run both, one after the other.
#[test]
fn delete_waits_for_what_is_away() -> Result<()> {
    let services = ["kafka", "postgres"];
    if std::env::var_os("KVCLUSTER_LONG").is_some() {
        return services.into_iter().try_for_each(delete_without);
    }
    let turn = usize::try_from(now_seconds()?)? % services.len();
    println!("deletion: {} is away", services[turn]);
    delete_without(services[turn])
}

fn delete_without(service: &str) -> Result<()> {
    let (lab, kubectl) = lab()?;
    let own = Own::new(&kubectl, &format!("suite-without-{service}"))?;
    own.bring(&own.manifest("store"))?;
    scale(&kubectl, SERVICES, service, 0)?;
    let stays = delete(&own, "store").and_then(|()| stays_for(&own, "store", AWAY));
    // Brought back in any case: it is shared.
    scale(&kubectl, SERVICES, service, 1)?;
    stays?;
    kubectl.gone(&own.namespace, "kvcluster", "store", DELETION_LIMIT)?;
    expect_nothing_left(&lab, &own, "store")?;
    // The sample lived through it, and is whole again by itself.
    kubectl.condition(NAMESPACE, CLUSTER, ("Ready", "True"), READY_LIMIT)?;
    Ok(())
}

/// The cluster is there, on its way out, for so long.
fn stays_for(own: &Own, cluster: &str, time: Duration) -> Result<()> {
    let begin = Instant::now();
    poll::until(time * 2, &format!("{time:?} to pass"), || {
        let object = own.kubectl.get(&own.namespace, "kvcluster", cluster)?;
        let object = object.with_context(|| format!("it went after {:?}", begin.elapsed()));
        match object {
            Ok(object) => {
                ensure!(
                    object["metadata"]["deletionTimestamp"].is_string(),
                    "it is not being deleted"
                );
                Ok((begin.elapsed() >= time).then_some(Ok(())))
            }
            Err(error) => Ok(Some(Err(error))),
        }
    })?
}

#[test]
fn a_namespace_can_always_be_deleted() -> Result<()> {
    let (lab, kubectl) = lab()?;
    let own = Own::new(&kubectl, "suite-namespace")?;
    own.bring(&own.manifest("store"))?;
    kubectl.run(&["delete", "namespace", &own.namespace, "--wait=false"])?;
    kubectl.gone("default", "namespace", &own.namespace, DELETION_LIMIT)?;
    // The credentials may go before the cluster, so what it had may be left; it is named in the operator's log. Taken away here.
    for topic in topics(&kubectl, &own.names("store"))? {
        topic_tool(&kubectl, &["--delete", "--topic", &topic])?;
    }
    let name = schema(&own, "store");
    check::query(
        lab.postgres()?,
        &format!("DROP SCHEMA IF EXISTS \"{name}\" CASCADE; DROP ROLE IF EXISTS \"{name}\""),
    )?;
    Ok(())
}

#[test]
fn a_deletion_gives_up_in_the_time_it_was_given() -> Result<()> {
    let (_, kubectl) = lab()?;
    let own = Own::new(&kubectl, "suite-give-up")?;
    let mut manifest = own.manifest("store");
    manifest["spec"]["deletion"] = json!({"giveUpSeconds": 15});
    own.bring(&manifest)?;
    // An address where nobody listens, from now on.
    own.patch(
        "store",
        &json!({"kafka": {"bootstrapServers": "nowhere.kvcluster-dev.svc:9092"}}),
    )?;
    own.kubectl.condition(
        &own.namespace,
        "store",
        ("KafkaReady", "False"),
        DELETION_LIMIT,
    )?;
    delete(&own, "store")?;
    kubectl.gone(&own.namespace, "kvcluster", "store", DELETION_LIMIT)?;
    let left = topics(&kubectl, &own.names("store"))?;
    assert_eq!(left.len(), 3, "it gave up on Kafka, so the topics are left");
    let events = kubectl.run(&[
        "-n",
        &own.namespace,
        "get",
        "events.events.k8s.io",
        "-o",
        "json",
    ])?;
    for topic in left {
        assert!(
            events.contains(&topic),
            "no event names {topic}, which is left"
        );
        topic_tool(&kubectl, &["--delete", "--topic", &topic])?;
    }
    Ok(())
}
