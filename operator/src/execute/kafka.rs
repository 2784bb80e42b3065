//! Makes, sets and deletes topics.

use std::collections::BTreeMap;
use std::sync::PoisonError;
use std::time::Duration;

use rdkafka::admin::{AlterConfig, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::consumer::Consumer;
use rdkafka::error::KafkaError;
use rdkafka::types::RDKafkaErrorCode;

use super::ExecuteError;
use crate::build::topics::TopicSpec;
use crate::clients::kafka::{KafkaClient, KafkaClients, REQUEST_TIMEOUT, admin_options, blocking};

/// Looks that are taken at a new topic, each after a pause: a broker shows it some 50 ms after the controller made it. What is
/// not seen by then is seen by the next pass.
const LOOKS_MAX: usize = 20;
const LOOK_PAUSE: Duration = Duration::from_millis(50);

/// Makes a topic and waits a moment until it is seen. One that is there already is left for the next pass to judge.
pub async fn create(
    clients: &KafkaClients,
    bootstrap: &str,
    topic: &TopicSpec,
) -> Result<(), ExecuteError> {
    const ACTION: &str = "create a topic";
    let client = clients.get(bootstrap).await?;
    let replication = i32::try_from(topic.replication_factor).unwrap_or(i32::MAX);
    let partitions = i32::try_from(topic.partitions).unwrap_or(i32::MAX);
    let mut new = NewTopic::new(
        &topic.name,
        partitions,
        TopicReplication::Fixed(replication),
    );
    for (key, value) in &topic.settings {
        new = new.set(key, value);
    }
    let answers = client.admin.create_topics([&new], &admin_options()).await;
    for answer in answers.map_err(|error| client.trouble(ACTION, &error))? {
        match answer {
            Ok(_) | Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
            Err((_, code)) => {
                return Err(client.trouble(ACTION, &KafkaError::AdminOp(code)).into());
            }
        }
    }
    let name = topic.name.clone();
    blocking(move || wait_until_seen(&client, &name)).await;
    Ok(())
}

fn wait_until_seen(client: &KafkaClient, topic: &str) {
    let reader = client.reader.lock().unwrap_or_else(PoisonError::into_inner);
    for _ in 0..LOOKS_MAX {
        let metadata = reader.fetch_metadata(Some(topic), REQUEST_TIMEOUT);
        let seen = metadata.is_ok_and(|metadata| {
            metadata.topics().iter().any(|topic| {
                let led = topic
                    .partitions()
                    .iter()
                    .all(|partition| partition.leader() >= 0);
                topic.error().is_none() && !topic.partitions().is_empty() && led
            })
        });
        if seen {
            return;
        }
        // Nothing is assigned: this only waits, and serves the client's own events.
        let _ = reader.poll(LOOK_PAUSE);
    }
}

/// Sets all settings of a topic's own: Kafka's call puts every other one back to its default.
pub async fn set(
    clients: &KafkaClients,
    bootstrap: &str,
    topic: &str,
    settings: &BTreeMap<String, String>,
) -> Result<(), ExecuteError> {
    const ACTION: &str = "set a topic's settings";
    let client = clients.get(bootstrap).await?;
    let mut alter = AlterConfig::new(ResourceSpecifier::Topic(topic));
    for (key, value) in settings {
        alter = alter.set(key, value);
    }
    let answers = client.admin.alter_configs([&alter], &admin_options()).await;
    for answer in answers.map_err(|error| client.trouble(ACTION, &error))? {
        if let Err((_, code)) = answer {
            return Err(client.trouble(ACTION, &KafkaError::AdminOp(code)).into());
        }
    }
    Ok(())
}

/// Deletes topics; one that is gone already is fine.
pub async fn delete(
    clients: &KafkaClients,
    bootstrap: &str,
    topics: &[String],
) -> Result<(), ExecuteError> {
    const ACTION: &str = "delete a topic";
    let client = clients.get(bootstrap).await?;
    let names: Vec<&str> = topics.iter().map(String::as_str).collect();
    let answers = client.admin.delete_topics(&names, &admin_options()).await;
    for answer in answers.map_err(|error| client.trouble(ACTION, &error))? {
        match answer {
            Ok(_)
            | Err((
                _,
                RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic,
            )) => {}
            Err((_, code)) => {
                return Err(client.trouble(ACTION, &KafkaError::AdminOp(code)).into());
            }
        }
    }
    Ok(())
}
