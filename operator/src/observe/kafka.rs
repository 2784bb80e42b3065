//! What Kafka holds of a cluster: topics, their settings, the newest assignment.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use kvcluster_crds::assignment::AssignmentError;
use kvcluster_crds::{Assignment, AssignmentLog, Offset};
use rdkafka::admin::{OwnedResourceSpecifier, ResourceSpecifier};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::Message;
use rdkafka::types::RDKafkaErrorCode;
use rdkafka::{Offset as KafkaOffset, TopicPartitionList};

use crate::clients::kafka::{
    KafkaClient, KafkaTrouble, Notes, REQUEST_TIMEOUT, admin_options, blocking,
};

/// Errors of connections that are taken from the client's queue at once, and the wait for each.
const QUEUED_ERRORS_MAX: usize = 100;
const QUEUE_PAUSE: Duration = Duration::from_millis(20);

/// Kafka, as far as one cluster is concerned.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KafkaView {
    /// Brokers that are known.
    pub brokers: usize,
    /// The cluster's topics that exist, by name.
    pub topics: BTreeMap<String, TopicView>,
    /// The assignment topic's content.
    pub assignment: AssignmentView,
}

impl KafkaView {
    /// The newest assignment of the cluster.
    pub fn published(&self) -> Option<&Assignment> {
        self.assignment.newest.as_ref().map(|(_, newest)| newest)
    }
}

/// A topic.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TopicView {
    /// Its partitions.
    pub partitions: u32,
    /// Replicas of the partition that has fewest.
    pub replication_factor: u32,
    /// All its settings.
    pub settings: BTreeMap<String, String>,
    /// Settings that were made for this topic, as opposed to defaults.
    pub own_settings: BTreeMap<String, String>,
    /// Whether no record was ever written to it. Not looked up (false) once an assignment of this cluster is there.
    pub never_used: bool,
}

/// What the assignment topic says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AssignmentView {
    /// The newest valid assignment of this cluster.
    pub newest: Option<(Offset, Assignment)>,
    /// Where the assignments that counted stand, and their versions, in order.
    pub counted: Vec<(Offset, u64)>,
    /// UID of another cluster whose assignment stands there.
    pub stranger: Option<String>,
    /// Why the topic cannot be understood.
    pub unreadable: Option<AssignmentError>,
}

/// Names of the topics to look at.
#[derive(Clone, Debug)]
pub struct Question {
    /// All topics of the cluster.
    pub topics: Vec<String>,
    /// The one with the assignments.
    pub assignment_topic: String,
    /// UID of the cluster.
    pub cluster_uid: String,
}

/// Looks at Kafka.
pub async fn observe(
    client: &Arc<KafkaClient>,
    question: Question,
) -> Result<KafkaView, KafkaTrouble> {
    let shared = Arc::clone(client);
    let mut view = blocking(move || {
        let reader = shared.reader.lock().unwrap_or_else(PoisonError::into_inner);
        read(&shared, &reader, &question)
    })
    .await?;
    if !view.topics.is_empty() {
        add_settings(client, &mut view).await?;
    }
    Ok(view)
}

/// Reads the assignment topic alone.
pub async fn assignment(
    client: &Arc<KafkaClient>,
    topic: String,
    cluster_uid: String,
) -> Result<AssignmentView, KafkaTrouble> {
    let shared = Arc::clone(client);
    blocking(move || {
        let reader = shared.reader.lock().unwrap_or_else(PoisonError::into_inner);
        read_assignment(&reader, &topic, &cluster_uid)
            .map_err(|error| shared.trouble("read the assignment topic", &error))
    })
    .await
}

fn read(
    client: &KafkaClient,
    reader: &BaseConsumer<Notes>,
    question: &Question,
) -> Result<KafkaView, KafkaTrouble> {
    let mut view = KafkaView::default();
    for name in &question.topics {
        let (brokers, topic) = topic(client, reader, name)?;
        view.brokers = brokers;
        view.topics.extend(topic.map(|topic| (name.clone(), topic)));
    }
    if view.topics.contains_key(&question.assignment_topic) {
        view.assignment =
            read_assignment(reader, &question.assignment_topic, &question.cluster_uid)
                .map_err(|error| client.trouble("read the assignment topic", &error))?;
    }
    if view.assignment.newest.is_none() {
        for (name, topic) in &mut view.topics {
            topic.never_used = is_unused(reader, name, topic.partitions)
                .map_err(|error| client.trouble("tell the ends of a topic", &error))?;
        }
    }
    Ok(view)
}

fn topic(
    client: &KafkaClient,
    reader: &BaseConsumer<Notes>,
    name: &str,
) -> Result<(usize, Option<TopicView>), KafkaTrouble> {
    let metadata = reader
        .fetch_metadata(Some(name), REQUEST_TIMEOUT)
        .map_err(|error| {
            serve_errors(reader);
            match client.trouble("tell its topics", &error) {
                KafkaTrouble::Unreachable { bootstrap, .. } => KafkaTrouble::Unreachable {
                    bootstrap,
                    hint: reader.context().hint(),
                },
                other => other,
            }
        })?;
    let brokers = metadata.brokers().len();
    let Some(topic) = metadata.topics().iter().find(|topic| topic.name() == name) else {
        return Ok((brokers, None));
    };
    match topic.error().map(RDKafkaErrorCode::from) {
        None => {}
        Some(RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic) => {
            return Ok((brokers, None));
        }
        Some(code) => {
            let error = KafkaError::MetadataFetch(code);
            return Err(client.trouble("describe a topic", &error));
        }
    }
    let replicas = topic
        .partitions()
        .iter()
        .map(|partition| partition.replicas().len())
        .min();
    let view = TopicView {
        partitions: u32::try_from(topic.partitions().len()).unwrap_or(u32::MAX),
        replication_factor: u32::try_from(replicas.unwrap_or(0)).unwrap_or(u32::MAX),
        ..TopicView::default()
    };
    Ok((brokers, Some(view)))
}

/// Hands the errors that wait in the client's queue to its [`Notes`].
fn serve_errors(reader: &BaseConsumer<Notes>) {
    for _ in 0..QUEUED_ERRORS_MAX {
        if reader.poll(QUEUE_PAUSE).is_none() {
            return;
        }
    }
}

async fn add_settings(client: &KafkaClient, view: &mut KafkaView) -> Result<(), KafkaTrouble> {
    let names: Vec<String> = view.topics.keys().cloned().collect();
    let resources: Vec<_> = names
        .iter()
        .map(|name| ResourceSpecifier::Topic(name))
        .collect();
    let action = "describe the settings of its topics";
    let answers = client
        .admin
        .describe_configs(resources.iter(), &admin_options())
        .await;
    for answer in answers.map_err(|error| client.trouble(action, &error))? {
        let resource = answer.map_err(|code| client.trouble(action, &KafkaError::AdminOp(code)))?;
        let OwnedResourceSpecifier::Topic(name) = &resource.specifier else {
            continue;
        };
        let Some(topic) = view.topics.get_mut(name) else {
            continue;
        };
        for entry in resource.entries {
            let Some(value) = entry.value else { continue };
            if entry.source == rdkafka::admin::ConfigSource::DynamicTopic {
                topic.own_settings.insert(entry.name.clone(), value.clone());
            }
            topic.settings.insert(entry.name, value);
        }
    }
    Ok(())
}

/// Reads the whole assignment topic; it holds the latest changes of the cluster's shape.
fn read_assignment(
    reader: &BaseConsumer<Notes>,
    topic: &str,
    cluster_uid: &str,
) -> Result<AssignmentView, KafkaError> {
    let (start, end) = reader.fetch_watermarks(topic, 0, REQUEST_TIMEOUT)?;
    let mut view = AssignmentView::default();
    if start >= end {
        return Ok(view);
    }
    let mut partitions = TopicPartitionList::new();
    partitions.add_partition_offset(topic, 0, KafkaOffset::Offset(start))?;
    reader.assign(&partitions)?;
    let folded = fold(reader, topic, end, cluster_uid, &mut view);
    reader.unassign()?;
    view.newest = folded?.newest().cloned();
    Ok(view)
}

fn fold(
    reader: &BaseConsumer<Notes>,
    topic: &str,
    end: i64,
    cluster_uid: &str,
    view: &mut AssignmentView,
) -> Result<AssignmentLog, KafkaError> {
    let mut log = AssignmentLog::default();
    let deadline = Instant::now() + REQUEST_TIMEOUT;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match reader.poll(left) {
            Some(Ok(message)) if message.topic() == topic => {
                let offset = Offset(message.offset());
                match log.observe(cluster_uid, offset, message.payload().unwrap_or_default()) {
                    Ok(true) => {
                        let newest = log
                            .newest()
                            .map(|(offset, newest)| (*offset, newest.version));
                        view.counted.extend(newest);
                    }
                    Err(AssignmentError::Foreign) => {}
                    Ok(false) => note_stranger(cluster_uid, message.payload(), view),
                    Err(error) => view.unreadable = Some(error),
                }
                if offset.0 + 1 >= end {
                    return Ok(log);
                }
            }
            Some(Err(KafkaError::PartitionEOF(_))) => return Ok(log),
            // Errors of connections, perhaps old ones: the client connects again by itself, within the deadline or not.
            Some(Err(KafkaError::MessageConsumption(code))) if is_of_connection(code) => {}
            Some(Err(error)) => return Err(error),
            None if left.is_zero() => {
                return Err(KafkaError::MetadataFetch(
                    RDKafkaErrorCode::OperationTimedOut,
                ));
            }
            Some(Ok(_)) | None => {}
        }
    }
}

fn is_of_connection(code: RDKafkaErrorCode) -> bool {
    matches!(
        code,
        RDKafkaErrorCode::BrokerTransportFailure
            | RDKafkaErrorCode::AllBrokersDown
            | RDKafkaErrorCode::Resolve
            | RDKafkaErrorCode::OperationTimedOut
    )
}

fn note_stranger(cluster_uid: &str, payload: Option<&[u8]>, view: &mut AssignmentView) {
    let other = payload.and_then(|record| Assignment::decode(record).ok());
    if let Some(other) = other.filter(|other| other.cluster_uid != cluster_uid) {
        view.stranger = Some(other.cluster_uid);
    }
}

/// Whether all partitions end at 0. One request per leader, not per partition.
fn is_unused(
    reader: &BaseConsumer<Notes>,
    topic: &str,
    partitions: u32,
) -> Result<bool, KafkaError> {
    let mut ends = TopicPartitionList::new();
    for partition in 0..i32::try_from(partitions).unwrap_or(i32::MAX) {
        ends.add_partition_offset(topic, partition, KafkaOffset::End)?;
    }
    let ends = reader.offsets_for_times(ends, REQUEST_TIMEOUT)?;
    for end in ends.elements() {
        // A partition of a new topic may have no leader yet: that says nothing about its records.
        end.error()?;
        if end.offset() != KafkaOffset::Offset(0) {
            return Ok(false);
        }
    }
    Ok(true)
}
