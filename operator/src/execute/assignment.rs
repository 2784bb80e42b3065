//! Publishes an assignment and reads it back, and removes old ones. A record that is late, or a second one, counts nowhere: its `based_on` is no
//! longer the newest. So a delivery whose outcome is unknown is simply looked at by the next pass.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use kvcluster_crds::{Assignment, Offset};
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::KafkaError;
use rdkafka::message::DeliveryResult;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer, ProducerContext};
use rdkafka::{ClientContext, TopicPartitionList};

use super::ExecuteError;
use crate::clients::kafka::{CHANGE_TIMEOUT, KafkaClients, admin_options, blocking, config};
use crate::observe::kafka as observe;

/// Above librdkafka's own limit on the delivery, so that its report is seen.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(CHANGE_TIMEOUT.as_secs() + 5);

/// Publishes `assignment` in `topic`.
pub async fn publish(
    clients: &KafkaClients,
    bootstrap: &str,
    topic: &str,
    assignment: &Assignment,
) -> Result<(), ExecuteError> {
    const ACTION: &str = "publish the assignment";
    let client = clients.get(bootstrap).await?;
    let (address, place, record) = (bootstrap.to_owned(), topic.to_owned(), assignment.encode());
    let sent = blocking(move || send(&address, &place, &record)).await;
    sent.map_err(|error| client.trouble(ACTION, &error))?;
    let view =
        observe::assignment(&client, topic.to_owned(), assignment.cluster_uid.clone()).await?;
    match view.newest {
        Some((_, newest)) if newest == *assignment => Ok(()),
        _ => Err(ExecuteError::NotFollowed),
    }
}

/// Removes what stands in `topic` before `first`.
pub async fn trim(
    clients: &KafkaClients,
    bootstrap: &str,
    topic: &str,
    first: Offset,
) -> Result<(), ExecuteError> {
    let client = clients.get(bootstrap).await?;
    let trouble = |error| client.trouble("remove old assignments", &error);
    let mut places = TopicPartitionList::new();
    let place = rdkafka::Offset::Offset(first.0);
    places
        .add_partition_offset(topic, 0, place)
        .map_err(trouble)?;
    let options = admin_options();
    let trimmed = client.admin.delete_records(&places, &options).await;
    let trimmed = trimmed.map_err(trouble)?;
    for partition in trimmed.elements() {
        partition.error().map_err(trouble)?;
    }
    Ok(())
}

/// The first delivery report.
#[derive(Default)]
struct Report(Mutex<Option<Result<(), KafkaError>>>);

impl ClientContext for Report {
    fn log(&self, _: RDKafkaLogLevel, _: &str, _: &str) {}
}

impl ProducerContext for Report {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        let outcome = result
            .as_ref()
            .map(|_| ())
            .map_err(|(error, _)| error.clone());
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(outcome);
    }
}

/// Sends one record and waits for its report. The producer lives for one record: assignments are published a few times in a
/// cluster's life.
fn send(bootstrap: &str, topic: &str, record: &[u8]) -> Result<(), KafkaError> {
    let mut config = config(bootstrap);
    config
        .set("enable.idempotence", "true")
        .set("acks", "all")
        .set("message.timeout.ms", CHANGE_TIMEOUT.as_millis().to_string())
        .set("message.max.bytes", "1048576")
        .set("allow.auto.create.topics", "false")
        .set("linger.ms", "0");
    let producer: BaseProducer<Report> = config.create_with_context(Report::default())?;
    let message = BaseRecord::<(), [u8]>::to(topic)
        .partition(0)
        .payload(record);
    producer.send(message).map_err(|(error, _)| error)?;
    producer.flush(FLUSH_TIMEOUT)?;
    let report = producer
        .context()
        .0
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .take();
    report.unwrap_or(Err(KafkaError::MessageProduction(
        rdkafka::types::RDKafkaErrorCode::MessageTimedOut,
    )))
}

#[cfg(test)]
mod tests {
    use kvcluster_crds::{LogId, NodeEntry, NodeId, SlotAssignment};
    use rdkafka::mocking::MockCluster;

    use super::*;

    const TOPIC: &str = "shop.demo.assignment";

    fn table(version: u64, based_on: Option<i64>) -> Assignment {
        let slot = SlotAssignment {
            voters: vec![NodeId(0)],
            learners: Vec::new(),
            preferred_leader: NodeId(0),
        };
        let node = NodeEntry {
            id: NodeId(0),
            address: "node:8080".to_owned(),
            postgres_instance: "main".to_owned(),
            leaving: false,
        };
        Assignment {
            version,
            based_on: based_on.map(Offset),
            cluster_uid: "u1".to_owned(),
            log_id: LogId(1),
            log_version: 1,
            next_node: NodeId(0),
            slots: vec![slot],
            nodes: vec![node],
        }
    }

    #[tokio::test]
    async fn what_is_published_is_read_back_and_a_late_one_counts_nowhere() {
        let broker = MockCluster::new(1).unwrap();
        broker.create_topic(TOPIC, 1, 1).unwrap();
        let bootstrap = broker.bootstrap_servers();
        let clients = KafkaClients::default();
        publish(&clients, &bootstrap, TOPIC, &table(1, None))
            .await
            .unwrap();
        publish(&clients, &bootstrap, TOPIC, &table(2, Some(0)))
            .await
            .unwrap();
        // Another operator that still builds on the first one.
        let late = Assignment {
            log_version: 9,
            ..table(2, Some(0))
        };
        let answer = publish(&clients, &bootstrap, TOPIC, &late).await;
        assert!(
            matches!(answer, Err(ExecuteError::NotFollowed)),
            "{answer:?}"
        );

        let client = clients.get(&bootstrap).await.unwrap();
        let view = observe::assignment(&client, TOPIC.to_owned(), "u1".to_owned())
            .await
            .unwrap();
        assert_eq!(view.newest, Some((Offset(1), table(2, Some(0)))));
        let counted = [(Offset(0), 1), (Offset(1), 2)];
        assert_eq!(view.counted, counted, "the late one is not among them");
        let view = observe::assignment(&client, TOPIC.to_owned(), "u2".to_owned())
            .await
            .unwrap();
        assert_eq!((view.newest, view.stranger.as_deref()), (None, Some("u1")));
    }

    #[tokio::test]
    async fn nobody_at_the_address_is_unreachable_with_a_reason() {
        // A port that was free a moment ago and that nobody listens on.
        let port = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let bootstrap = format!("127.0.0.1:{port}");
        let client = KafkaClients::default().get(&bootstrap).await.unwrap();
        let question = observe::Question {
            topics: vec![TOPIC.to_owned()],
            assignment_topic: TOPIC.to_owned(),
            cluster_uid: "u1".to_owned(),
        };
        let trouble = observe::observe(&client, question).await.unwrap_err();
        let text = trouble.to_string();
        assert!(
            text.contains(&bootstrap) && text.contains("connection refused"),
            "{text}"
        );
    }
}
