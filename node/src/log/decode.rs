//! Reads a whole log topic and judges it as every replica does: what `kvcluster-node decode-log` prints.

use std::borrow::Cow;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use bytes::Bytes;
use kvcluster_crds::{LogId, Offset};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::Message;
use rdkafka::{Offset as Place, TopicPartitionList};
use serde::Serialize;

use super::codec::{Body, Entry, checksum};
use super::settings;
use crate::effect::{Effect, SlotPosition};
use crate::slot::protocol::{Verdict, judge};

/// Longest wait for Kafka's answer, and for the next record.
const TIMEOUT: Duration = Duration::from_secs(15);
const POLL: Duration = Duration::from_millis(200);

/// What a log holds.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Per partition, in order.
    pub partitions: Vec<PartitionReport>,
    /// All of them.
    pub totals: Counts,
}

/// What a partition holds.
#[derive(Debug, Serialize)]
pub struct PartitionReport {
    /// Its number.
    pub partition: i32,
    /// The first offset that is left. Above 0 the log was trimmed, and what builds on trimmed records is counted as ignored.
    pub start: i64,
    /// The next offset when it was looked at.
    pub end: i64,
    /// What stands between.
    #[serde(flatten)]
    pub counts: Counts,
}

/// Numbers of records. `valid + ignored + foreign + empty` is end − start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Records that count.
    pub valid: u64,
    /// Our records that do not count.
    pub ignored: u64,
    /// Some other program's records.
    pub foreign: u64,
    /// Offsets without a record: Kafka's own markers.
    pub empty: u64,
    /// Valid claims.
    pub claims: u64,
    /// Valid renews.
    pub renews: u64,
    /// Valid releases.
    pub releases: u64,
    /// Valid commands.
    pub commands: u64,
    /// Puts in valid commands.
    pub puts: u64,
    /// Deletes in valid commands.
    pub deletes: u64,
}

/// A change that counts, as text: what is not UTF-8 shows replacement characters.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Change<'a> {
    /// Its partition.
    pub partition: i32,
    /// Its record.
    pub offset: i64,
    /// The key.
    pub key: Cow<'a, str>,
    /// The value; none when the key is deleted.
    pub value: Option<Cow<'a, str>>,
}

/// Judges the records of one partition, in order.
struct Judging {
    position: SlotPosition,
    log_id: Option<LogId>,
    counts: Counts,
}

/// Reads the topic from its start to where it ends now. Without `log_id`, the first record that names one decides. Each
/// change that counts is `seen`, in the order of its partition.
pub fn decode(
    bootstrap: &str,
    topic: &str,
    log_id: Option<LogId>,
    mut seen: impl FnMut(Change<'_>) -> anyhow::Result<()>,
) -> anyhow::Result<Report> {
    let client: BaseConsumer = settings::consumer(bootstrap, "kvcluster-decode-log").create()?;
    let metadata = client
        .fetch_metadata(Some(topic), TIMEOUT)
        .with_context(|| format!("ask {bootstrap} for topic {topic}"))?;
    let topics = metadata.topics().iter().find(|found| found.name() == topic);
    let mut numbers: Vec<i32> = topics
        .map(|found| {
            found
                .partitions()
                .iter()
                .map(rdkafka::metadata::MetadataPartition::id)
        })
        .context("Kafka does not name the topic")?
        .collect();
    if numbers.is_empty() {
        bail!("there is no topic {topic}");
    }
    numbers.sort_unstable();
    let mut report = Report {
        partitions: Vec::new(),
        totals: Counts::default(),
    };
    for partition in numbers {
        let read = decode_partition(&client, topic, partition, log_id, &mut seen)
            .with_context(|| format!("read partition {partition}"))?;
        report.totals.add(&read.counts);
        report.partitions.push(read);
    }
    Ok(report)
}

fn decode_partition(
    client: &BaseConsumer,
    topic: &str,
    partition: i32,
    log_id: Option<LogId>,
    seen: &mut impl FnMut(Change<'_>) -> anyhow::Result<()>,
) -> anyhow::Result<PartitionReport> {
    let (start, end) = client.fetch_watermarks(topic, partition, TIMEOUT)?;
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(topic, partition, Place::Offset(start))?;
    client.assign(&list)?;
    let mut judging = Judging::new(log_id, start);
    let mut heard = Instant::now();
    while judging.position.next_offset.0 < end {
        match client.poll(POLL) {
            Some(Ok(message)) if message.partition() == partition && message.offset() < end => {
                heard = Instant::now();
                let bytes = message
                    .payload()
                    .map_or_else(Bytes::new, Bytes::copy_from_slice);
                let offset = message.offset();
                for effect in judging.see(Offset(offset), &bytes)? {
                    seen(Change::new(partition, offset, &effect))?;
                }
            }
            Some(Ok(message)) if message.partition() == partition => judging.pass_over_to(end),
            Some(Err(KafkaError::PartitionEOF(number))) if number == partition => {
                judging.pass_over_to(end);
            }
            Some(Err(error)) if heard.elapsed() > TIMEOUT => return Err(error.into()),
            None if heard.elapsed() > TIMEOUT => bail!("Kafka sends nothing"),
            _ => {}
        }
    }
    Ok(PartitionReport {
        partition,
        start,
        end,
        counts: judging.counts,
    })
}

impl Judging {
    fn new(log_id: Option<LogId>, start: i64) -> Self {
        let position = SlotPosition {
            next_offset: Offset(start),
            ..SlotPosition::start()
        };
        Self {
            position,
            log_id,
            counts: Counts::default(),
        }
    }

    fn pass_over_to(&mut self, offset: i64) {
        let empty = offset - self.position.next_offset.0;
        self.counts.empty += u64::try_from(empty).expect("offsets come in order");
        self.position.next_offset = Offset(offset);
    }

    /// Judges a record; its changes if it counts.
    fn see(&mut self, offset: Offset, bytes: &Bytes) -> anyhow::Result<Vec<Effect>> {
        self.pass_over_to(offset.0);
        let entry = Entry::read(bytes).with_context(|| format!("read record {offset}"))?;
        let log_id = match (&entry, self.log_id) {
            (_, Some(log_id)) => log_id,
            (Entry::Ours(record), None) => *self.log_id.insert(record.log_id),
            (Entry::Foreign, None) => LogId(0),
        };
        let verdict = judge(&mut self.position, log_id, offset, &entry, checksum(bytes));
        match entry {
            Entry::Foreign => self.counts.foreign += 1,
            Entry::Ours(_) if verdict != Verdict::Valid => self.counts.ignored += 1,
            Entry::Ours(record) => {
                self.counts.count(&record.body);
                if let Body::Command { effects, .. } = record.body {
                    return Ok(effects);
                }
            }
        }
        Ok(Vec::new())
    }
}

impl<'a> Change<'a> {
    fn new(partition: i32, offset: i64, effect: &'a Effect) -> Self {
        let value = match effect {
            Effect::Put { value, .. } => Some(String::from_utf8_lossy(value)),
            Effect::Delete { .. } => None,
        };
        Self {
            partition,
            offset,
            key: String::from_utf8_lossy(effect.key()),
            value,
        }
    }
}

impl Counts {
    fn count(&mut self, body: &Body) {
        self.valid += 1;
        match body {
            Body::Claim { .. } => self.claims += 1,
            Body::Renew { .. } => self.renews += 1,
            Body::Release { .. } => self.releases += 1,
            Body::Command { effects, .. } => {
                self.commands += 1;
                for effect in effects {
                    match effect {
                        Effect::Put { .. } => self.puts += 1,
                        Effect::Delete { .. } => self.deletes += 1,
                    }
                }
            }
        }
    }

    fn add(&mut self, other: &Self) {
        self.valid += other.valid;
        self.ignored += other.ignored;
        self.foreign += other.foreign;
        self.empty += other.empty;
        self.claims += other.claims;
        self.renews += other.renews;
        self.releases += other.releases;
        self.commands += other.commands;
        self.puts += other.puts;
        self.deletes += other.deletes;
    }
}

#[cfg(test)]
mod tests {
    use kvcluster_crds::{Epoch, Incarnation, NodeId};

    use super::*;
    use crate::log::codec::Record;

    fn ours(body: Body) -> Bytes {
        Record {
            log_id: LogId(5),
            body,
        }
        .encode()
    }

    #[test]
    fn every_offset_is_counted_once() {
        let (epoch, incarnation, node) = (Epoch(1), Incarnation(1), NodeId(0));
        let mut judging = Judging::new(None, 0);
        let key = Bytes::from_static(b"k");
        let effects = vec![
            Effect::Put {
                key: key.clone(),
                value: Bytes::new(),
            },
            Effect::Delete { key },
        ];
        let records = [
            (0, Bytes::from_static(b"somebody else's")),
            (
                1,
                ours(Body::Claim {
                    epoch,
                    node,
                    incarnation,
                    based_on: None,
                    lease_ms: 1,
                }),
            ),
            (
                4,
                ours(Body::Command {
                    epoch,
                    incarnation,
                    seq: 1,
                    time_ms: 0,
                    idempotency: None,
                    effects: effects.clone(),
                }),
            ),
            (
                5,
                ours(Body::Command {
                    epoch,
                    incarnation,
                    seq: 1,
                    time_ms: 0,
                    idempotency: None,
                    effects,
                }),
            ),
            (
                6,
                ours(Body::Renew {
                    epoch,
                    incarnation,
                    seq: 2,
                }),
            ),
            (
                7,
                ours(Body::Release {
                    epoch,
                    incarnation,
                    seq: 3,
                    to: node,
                }),
            ),
        ];
        for (offset, bytes) in &records {
            let changes = judging.see(Offset(*offset), bytes).expect("reads");
            let counts = if *offset == 4 { 2 } else { 0 };
            assert_eq!(changes.len(), counts, "record {offset}");
        }
        judging.pass_over_to(9);
        let expected = Counts {
            valid: 4,
            ignored: 1,
            foreign: 1,
            empty: 3,
            claims: 1,
            renews: 1,
            releases: 1,
            commands: 1,
            puts: 1,
            deletes: 1,
        };
        assert_eq!(judging.counts, expected);
        let Counts {
            valid,
            ignored,
            foreign,
            empty,
            ..
        } = judging.counts;
        assert_eq!(valid + ignored + foreign + empty, 9);
    }

    #[test]
    fn a_damaged_record_is_an_error_that_names_its_place() {
        let mut bytes = ours(Body::Renew {
            epoch: Epoch(1),
            incarnation: Incarnation(1),
            seq: 1,
        })
        .to_vec();
        bytes[20] ^= 1;
        let error = Judging::new(None, 0)
            .see(Offset(3), &bytes.into())
            .expect_err("damaged");
        assert!(format!("{error:#}").contains("record 3"), "{error:#}");
    }
}
