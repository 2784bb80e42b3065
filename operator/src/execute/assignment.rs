//! Publishes an assignment and reads it back. A record that is late, or a second one, counts nowhere: its `based_on` is no
//! longer the newest. So a delivery whose outcome is unknown is simply looked at by the next pass.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use kvcluster_crds::Assignment;
use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::KafkaError;
use rdkafka::message::DeliveryResult;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer, ProducerContext};

use super::ExecuteError;
use crate::clients::kafka::{CHANGE_TIMEOUT, KafkaClients, blocking, config};
use crate::observe::kafka::{Question, observe};

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
    let question = Question {
        topics: vec![topic.to_owned()],
        assignment_topic: topic.to_owned(),
        cluster_uid: assignment.cluster_uid.clone(),
    };
    let view = observe(&client, question).await?;
    match view.assignment.newest {
        Some((_, newest)) if newest == *assignment => Ok(()),
        _ => Err(ExecuteError::NotFollowed),
    }
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
