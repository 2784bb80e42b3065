//! Makes, sets and deletes topics.

use std::collections::BTreeMap;

use rdkafka::admin::{AlterConfig, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::error::KafkaError;
use rdkafka::types::RDKafkaErrorCode;

use super::ExecuteError;
use crate::build::topics::TopicSpec;
use crate::clients::kafka::{KafkaClients, admin_options};

/// Makes a topic. One that is there already is left for the next pass to judge.
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
    Ok(())
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
