//! The three topics of a cluster and their settings.

use std::collections::BTreeMap;

use crate::cluster::Target;

/// Largest batch of records of the log, bytes: a value of 1 MiB with its key and headers four times over, so that a command
/// with several effects fits too. Brokers and followers take larger batches than their fetch limits, one at a time.
pub const LOG_MESSAGE_BYTES_MAX: u32 = 4 * 1_048_576;
/// Largest assignment, bytes: 1,024 slots of 7 voters are about 200 kB of JSON.
const ASSIGNMENT_MESSAGE_BYTES_MAX: u32 = 1_048_576;
/// Largest heartbeat, bytes.
const HEARTBEAT_MESSAGE_BYTES_MAX: u32 = 262_144;
/// Heartbeats are read within seconds; an hour of them is kept for whoever looks for the cause of an election.
const HEARTBEAT_RETENTION_MS: u32 = 3_600_000;
/// Retention removes whole segments only, so heartbeats get short ones.
const HEARTBEAT_SEGMENT_MS: u32 = 600_000;
const HEARTBEAT_SEGMENT_BYTES: u32 = 16 * 1_048_576;

/// A topic as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicSpec {
    /// Its name.
    pub name: String,
    /// Partitions, never changed.
    pub partitions: u32,
    /// Replicas of each partition.
    pub replication_factor: u32,
    /// Settings that are made and kept so; others are left alone.
    pub settings: BTreeMap<String, String>,
}

/// The topics of a cluster, in the order in which they are made.
pub fn topics(target: &Target) -> Vec<TopicSpec> {
    let names = &target.names;
    vec![
        topic(
            target,
            names.log_topic(),
            target.slots,
            &kept_for_ever(LOG_MESSAGE_BYTES_MAX),
        ),
        topic(
            target,
            names.assignment_topic(),
            1,
            &kept_for_ever(ASSIGNMENT_MESSAGE_BYTES_MAX),
        ),
        topic(
            target,
            names.heartbeat_topic(),
            1,
            &[
                ("retention.ms", HEARTBEAT_RETENTION_MS.to_string()),
                ("retention.bytes", "-1".to_owned()),
                ("segment.ms", HEARTBEAT_SEGMENT_MS.to_string()),
                ("segment.bytes", HEARTBEAT_SEGMENT_BYTES.to_string()),
                ("max.message.bytes", HEARTBEAT_MESSAGE_BYTES_MAX.to_string()),
            ],
        ),
    ]
}

/// Only the store itself trims.
fn kept_for_ever(message_bytes_max: u32) -> [(&'static str, String); 3] {
    [
        ("retention.ms", "-1".to_owned()),
        ("retention.bytes", "-1".to_owned()),
        ("max.message.bytes", message_bytes_max.to_string()),
    ]
}

fn topic(
    target: &Target,
    name: String,
    partitions: u32,
    special: &[(&'static str, String)],
) -> TopicSpec {
    let kafka = &target.spec.kafka;
    let mut settings = BTreeMap::from([
        ("cleanup.policy".to_owned(), "delete".to_owned()),
        (
            "min.insync.replicas".to_owned(),
            kafka.min_in_sync_replicas.to_string(),
        ),
        (
            "unclean.leader.election.enable".to_owned(),
            "false".to_owned(),
        ),
        // The broker's clock: with the producer's, a node whose clock is an hour ahead would have every record refused.
        (
            "message.timestamp.type".to_owned(),
            "LogAppendTime".to_owned(),
        ),
    ]);
    settings.extend(
        special
            .iter()
            .map(|(key, value)| ((*key).to_owned(), value.clone())),
    );
    TopicSpec {
        name,
        partitions,
        replication_factor: u32::try_from(kafka.replication_factor).unwrap_or(1),
        settings,
    }
}
