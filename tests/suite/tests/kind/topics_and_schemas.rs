//! Kafka's own tool shows the topics of the spec; `psql` shows a schema per node whose role can touch nothing else.

use anyhow::{Context, Result};
use kvcluster_crds::NodeId;
use kvcluster_suite::check;
use kvcluster_suite::lab::{CLUSTER, Lab, NAMESPACE, SCHEMA_PREFIX};

use crate::support::{demo, topic_tool};

#[test]
fn topics_are_as_the_spec_says() -> Result<()> {
    let (lab, kubectl) = demo()?;
    let spec = kubectl
        .get(NAMESPACE, "kvcluster", CLUSTER)?
        .context("the sample exists")?["spec"]
        .clone();
    let names = lab.names();
    let kept = ["retention.ms=-1", "retention.bytes=-1"];
    let topics = [
        (names.log_topic(), spec["slots"].clone(), &kept[..]),
        (names.assignment_topic(), 1.into(), &kept[..]),
        (
            names.heartbeat_topic(),
            1.into(),
            &["retention.ms=3600000"][..],
        ),
    ];
    for (topic, partitions, settings) in topics {
        let shown = topic_tool(&kubectl, &["--describe", "--topic", &topic])?;
        let line = shown
            .lines()
            .find(|line| line.contains("PartitionCount"))
            .context("a summary")?;
        let words: Vec<&str> = line.split_whitespace().collect();
        let after = |word: &str| {
            words
                .iter()
                .position(|w| *w == word)
                .map(|index| words[index + 1])
        };
        assert_eq!(
            after("PartitionCount:"),
            Some(partitions.to_string().as_str()),
            "{line}"
        );
        let factor = spec["kafka"]["replicationFactor"].to_string();
        assert_eq!(after("ReplicationFactor:"), Some(factor.as_str()), "{line}");
        let in_sync = format!("min.insync.replicas={}", spec["kafka"]["minInSyncReplicas"]);
        let all = [
            "cleanup.policy=delete",
            "unclean.leader.election.enable=false",
            &in_sync,
        ];
        for setting in all.iter().chain(settings) {
            let configs = after("Configs:").unwrap_or_default();
            assert!(
                configs.split(',').any(|config| config == *setting),
                "no {setting} in {line}"
            );
        }
    }
    Ok(())
}

#[test]
fn a_role_touches_its_own_schema_only() -> Result<()> {
    let (lab, kubectl) = demo()?;
    let names = lab.names();
    let schema = |node: u32| names.schema(SCHEMA_PREFIX, NodeId(node));
    for node in &lab.nodes {
        let own = schema(node.id);
        let inside = kubectl.secret(NAMESPACE, &names.node_secret(NodeId(node.id)), "url")?;
        let url = from_outside(&inside, &lab)?;
        let read = check::query(&url, &format!("SELECT count(*) >= 0 FROM \"{own}\".kv"))?;
        assert_eq!(read.trim(), "t");
        assert_eq!(
            check::query(&url, "SELECT count(*) >= 0 FROM kv")?.trim(),
            "t",
            "the search path is pinned"
        );
        let flags = "SELECT rolsuper OR rolcreatedb OR rolcreaterole OR rolreplication OR rolbypassrls \
                     FROM pg_roles WHERE rolname = current_user";
        assert_eq!(check::query(&url, flags)?.trim(), "f");
        let other = schema((node.id + 1) % u32::try_from(lab.nodes.len())?);
        let denied = [
            format!("SELECT count(*) FROM \"{other}\".kv"),
            format!("DELETE FROM \"{other}\".owner"),
            format!("CREATE TABLE \"{other}\".mine ()"),
            "CREATE TABLE public.mine ()".to_owned(),
            "CREATE SCHEMA mine".to_owned(),
            "CREATE ROLE mine".to_owned(),
            "CREATE DATABASE mine".to_owned(),
            "SELECT rolpassword FROM pg_authid".to_owned(),
        ];
        for statement in denied {
            let error = check::query(&url, &statement)
                .err()
                .with_context(|| statement.clone())?;
            assert!(
                error.to_string().contains("permission denied"),
                "{statement}: {error}"
            );
        }
    }
    Ok(())
}

/// The same URL with the address that reaches PostgreSQL from this machine, and without the parameters that only the node's
/// client knows.
fn from_outside(url: &str, lab: &Lab) -> Result<String> {
    let place = |url: &str| {
        let begin = url.find('@')? + 1;
        Some(begin..begin + url[begin..].find('/')?)
    };
    let outside = lab.postgres()?;
    let address = &outside[place(outside).context("the lab's URL has an address")?];
    let mut url = url.split('?').next().unwrap_or_default().to_owned();
    url.replace_range(
        place(&url).context("the Secret's URL has an address")?,
        address,
    );
    Ok(url)
}
