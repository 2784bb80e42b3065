//! Reads a topic of one partition for ever, on a thread of its own: the assignments from their beginning, the heartbeats
//! from the end. Begins anew when the topic is not there (yet) or the place in it is gone.

use std::time::Duration;

use bytes::Bytes;
use kvcluster_crds::Offset;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::message::Message;
use rdkafka::{ClientConfig, Offset as Place, TopicPartitionList};
use tracing::debug;

use super::{LogError, settings};

/// Longest wait for a record.
const POLL: Duration = Duration::from_millis(100);
/// Pause before reading begins anew.
const ANEW_PAUSE: Duration = Duration::from_millis(500);

/// Where reading begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartAt {
    /// The first record that is left.
    Beginning,
    /// Behind the last record.
    End,
}

/// What the reader sees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    /// Reading begins, again perhaps.
    Begin,
    /// A record.
    Record(Offset, Bytes),
    /// The end of the topic, for now.
    End,
    /// Reading failed, and is tried again.
    Failed(String),
}

/// Starts the thread `name`. `see` is called for everything that it sees, and says whether to go on. `alive` is dropped when
/// the thread ends.
pub fn start(
    name: &'static str,
    config: ClientConfig,
    topic: String,
    from: StartAt,
    alive: Box<dyn Send>,
    mut see: impl FnMut(Seen) -> bool + Send + 'static,
) -> Result<(), LogError> {
    let run = move || {
        let _alive = alive;
        loop {
            let goes_on = see(Seen::Begin)
                && match read(&config, &topic, from, &mut see) {
                    Ok(goes_on) => goes_on,
                    Err(error) => see(Seen::Failed(format!("topic {topic}: {error}"))),
                };
            if !goes_on {
                return;
            }
            std::thread::park_timeout(ANEW_PAUSE);
        }
    };
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(run)
        .map(drop)
        .map_err(|source| LogError::Thread { name, source })
}

fn read(
    config: &ClientConfig,
    topic: &str,
    from: StartAt,
    see: &mut impl FnMut(Seen) -> bool,
) -> KafkaResult<bool> {
    let client: BaseConsumer<Context> = config.create_with_context(Context)?;
    let place = match from {
        StartAt::Beginning => Place::Beginning,
        StartAt::End => Place::End,
    };
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(topic, 0, place)?;
    client.assign(&list)?;
    loop {
        let goes_on = match client.poll(POLL) {
            None => continue,
            Some(Ok(message)) => {
                let bytes = message
                    .payload()
                    .map_or_else(Bytes::new, Bytes::copy_from_slice);
                see(Seen::Record(Offset(message.offset()), bytes))
            }
            Some(Err(KafkaError::PartitionEOF(_))) => see(Seen::End),
            Some(Err(error)) if is_passing(&error) => {
                debug!(topic, %error, "reading goes on by itself");
                continue;
            }
            Some(Err(error)) => return Err(error),
        };
        if !goes_on {
            return Ok(false);
        }
    }
}

/// Errors of connections, which librdkafka makes good by itself.
fn is_passing(error: &KafkaError) -> bool {
    matches!(
        error.rdkafka_error_code(),
        Some(
            RDKafkaErrorCode::BrokerTransportFailure
                | RDKafkaErrorCode::AllBrokersDown
                | RDKafkaErrorCode::Resolve
                | RDKafkaErrorCode::OperationTimedOut
                | RDKafkaErrorCode::RequestTimedOut
                | RDKafkaErrorCode::NotLeaderForPartition
                | RDKafkaErrorCode::LeaderNotAvailable
        )
    )
}

struct Context;

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        settings::log_line(level, facility, line);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        if error.rdkafka_error_code() != Some(RDKafkaErrorCode::PartitionEOF) {
            debug!(%error, reason, "a reader reports");
        }
    }
}

impl ConsumerContext for Context {}
