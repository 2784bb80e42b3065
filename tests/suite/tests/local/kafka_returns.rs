//! Kafka goes and comes back, again and again, and every node is whole again by itself each time.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use kvcluster_suite::lab::{self, Lab};
use kvcluster_suite::poll;

use crate::support::empty_store;

/// A client of Kafka that does not come back does so in one return of a few.
const RETURNS: usize = 6;
/// Longest time until every node has noticed that Kafka is gone: its own heartbeats stay away.
const NOTICE_LIMIT: Duration = Duration::from_secs(10);
/// Longest time until every node is whole again: Kafka's restart after a crash takes 6 to 12 s.
const RETURN_LIMIT: Duration = Duration::from_secs(45);

#[test]
fn every_node_comes_back_with_kafka() -> Result<()> {
    let lab = empty_store()?;
    for number in 1..=RETURNS {
        lab::kill("kafka-0")?;
        poll::until(NOTICE_LIMIT, "no node to hear itself", || {
            expect_connected(&lab, false).map(Some)
        })?;
        lab::start("kafka-0")?;
        let begun = Instant::now();
        poll::until(RETURN_LIMIT, "every node to hear itself again", || {
            expect_connected(&lab, true).map(Some)
        })?;
        println!("return {number}: whole after {:.1?}", begun.elapsed());
    }
    Ok(())
}

fn expect_connected(lab: &Lab, connected: bool) -> Result<()> {
    for node in &lab.nodes {
        let status = node.status()?;
        let problem = status.problem.unwrap_or_default();
        ensure!(
            status.kafka_connected == connected && (problem.is_empty() || !connected),
            "node {}: connected {}, {problem:?}",
            node.id,
            status.kafka_connected
        );
    }
    Ok(())
}
