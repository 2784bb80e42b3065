//! Reads a topic of one partition for ever, on a thread of its own: the assignments from their beginning, the heartbeats
//! from the end. Begins anew, with a client of its own, when the topic is not there (yet), when the place in it is gone, and
//! when nothing comes and looks find records or get no answer: see [`super::settings::UNANSWERED_AFTER`].

use std::time::{Duration, Instant};

use bytes::Bytes;
use kvcluster_crds::Offset;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::message::Message;
use rdkafka::{ClientConfig, Offset as Place, TopicPartitionList};
use tracing::{debug, warn};

use super::settings::UNANSWERED_AFTER;
use super::{LogError, settings};

/// Longest wait for a record.
const POLL: Duration = Duration::from_millis(100);
/// Pause before reading begins anew.
const ANEW_PAUSE: Duration = Duration::from_millis(500);

/// A topic that gave nothing for so long is looked at, and then again.
const QUIET_AFTER: Duration = Duration::from_secs(1);
/// Longest wait for an answer about the topic's ends.
const LOOK_TIMEOUT: Duration = Duration::from_millis(500);
/// Longest wait for the topic's ends before reading begins.
const ENDS_TIMEOUT: Duration = Duration::from_secs(3);
/// Looks in a row that must find records which were not given: the first may see one that is still on its way.
const LOOKS: u32 = 2;

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
                    Ok(Ended::Asked) => false,
                    Ok(Ended::Stalled) => true,
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

/// Why reading ended.
enum Ended {
    /// Nobody wants more.
    Asked,
    /// Records are there and do not come, or there is no answer for long.
    Stalled,
}

/// Whether a topic gives what it has.
struct Watch {
    /// Offset up to which everything came.
    place: i64,
    missed: u32,
    look_at: Instant,
    answered_at: Instant,
}

impl Watch {
    fn new(place: i64, now: Instant) -> Self {
        Self {
            place,
            missed: 0,
            look_at: now + QUIET_AFTER,
            answered_at: now,
        }
    }

    /// A record came.
    fn gave(&mut self, offset: i64, now: Instant) {
        self.place = offset + 1;
        self.missed = 0;
        self.look_at = now + QUIET_AFTER;
        self.answered_at = now;
    }

    /// Whether nothing was heard for so long that another client is to try.
    fn is_unanswered(&self, now: Instant) -> bool {
        now.duration_since(self.answered_at) >= UNANSWERED_AFTER
    }

    /// The topic holds the records from `start` to before `end`; whether that shows that reading has stalled.
    fn shows_stall(&mut self, start: i64, end: i64) -> bool {
        self.missed = if end > self.place.max(start) {
            self.missed + 1
        } else {
            0
        };
        self.missed >= LOOKS
    }
}

fn read(
    config: &ClientConfig,
    topic: &str,
    from: StartAt,
    see: &mut impl FnMut(Seen) -> bool,
) -> KafkaResult<Ended> {
    let client: BaseConsumer<Context> = config.create_with_context(Context)?;
    // Asked for by us: librdkafka, told to begin at an end, takes half a second to find out where that is.
    let (start, end) = match client.fetch_watermarks(topic, 0, ENDS_TIMEOUT) {
        Ok(ends) => ends,
        Err(error) if is_passing(&error) => {
            debug!(topic, %error, "reading does not begin yet");
            return Ok(Ended::Stalled);
        }
        Err(error) => return Err(error),
    };
    let place = match from {
        StartAt::Beginning => start,
        StartAt::End => end,
    };
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(topic, 0, Place::Offset(place))?;
    client.assign(&list)?;
    let mut watch = Watch::new(place, Instant::now());
    loop {
        let now = Instant::now();
        if now >= watch.look_at {
            watch.look_at = now + QUIET_AFTER;
            let stalled = match client.fetch_watermarks(topic, 0, LOOK_TIMEOUT) {
                Ok((start, end)) => {
                    watch.answered_at = now;
                    let stalled = watch.shows_stall(start, end);
                    if stalled {
                        warn!(topic, end, "records do not come: reading begins anew");
                    }
                    stalled
                }
                Err(error) => {
                    debug!(topic, %error, "a look at a quiet topic gets no answer");
                    watch.is_unanswered(now)
                }
            };
            if stalled {
                return Ok(Ended::Stalled);
            }
        }
        let goes_on = match client.poll(POLL) {
            None => continue,
            Some(Ok(message)) => {
                watch.gave(message.offset(), now);
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
            return Ok(Ended::Asked);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_that_do_not_come_are_noticed_at_the_second_look() {
        let now = Instant::now();
        let mut watch = Watch::new(0, now);
        watch.gave(6, now);
        assert!(
            !watch.shows_stall(0, 7) && !watch.shows_stall(0, 7),
            "quiet"
        );
        assert!(!watch.shows_stall(0, 8), "it may be on its way");
        assert!(watch.shows_stall(0, 8));
        watch.gave(7, now);
        assert!(!watch.shows_stall(0, 8), "it came");
    }

    #[test]
    fn an_empty_or_trimmed_topic_is_quiet() {
        let now = Instant::now();
        let mut empty = Watch::new(5, now);
        let mut trimmed = Watch::new(0, now);
        trimmed.gave(3, now);
        for _ in 0..5 {
            assert!(!empty.shows_stall(5, 5));
            assert!(!trimmed.shows_stall(9, 9));
        }
        assert!(!empty.shows_stall(5, 6) && empty.shows_stall(5, 6));
    }

    #[test]
    fn what_stands_before_the_end_is_not_waited_for() {
        let mut watch = Watch::new(100, Instant::now());
        assert!(!watch.shows_stall(0, 100) && !watch.shows_stall(0, 100));
        assert!(!watch.shows_stall(0, 101) && watch.shows_stall(0, 109));
    }
}
