//! Reads the slots' partitions: one librdkafka consumer on a thread of its own, because its calls block.
//!
//! Before a slot is read, its place is compared with what the partition holds: a log that begins behind the place or ends
//! before it was trimmed, emptied or replaced, and the slot freezes instead of skipping.

use std::collections::{BTreeMap, HashMap};
use std::sync::mpsc as commands;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use kvcluster_crds::{Offset, SlotId};
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::message::Message;
use rdkafka::statistics::Statistics;
use rdkafka::{Offset as Place, TopicPartitionList};
use tokio::sync::mpsc;
use tracing::{debug, warn};

use super::{KafkaLogConfig, LogError, settings};
use crate::slot::Input;

/// Longest wait for a record, and so for a command to be seen, milliseconds.
const POLL: Duration = Duration::from_millis(20);
/// Longest wait for an answer about a partition's ends.
const ENDS_TIMEOUT: Duration = Duration::from_secs(3);
/// Pause before a partition's ends are asked for again.
const ENDS_PAUSE: Duration = Duration::from_millis(500);
/// A log that ends too early is looked at so often before the slot freezes: a broker that starts may name an older end.
const ENDS_LOOKS: u32 = 10;

/// Time between two looks at the ends of quiet partitions, one partition at a time.
const QUIET_LOOK_PAUSE: Duration = Duration::from_millis(50);
/// A partition that gave nothing for so long is looked at.
const QUIET_AFTER: Duration = Duration::from_secs(2);
/// Longest wait for an answer about a quiet partition; the others are not read meanwhile.
const QUIET_LOOK_TIMEOUT: Duration = Duration::from_millis(500);
/// A partition that has records and gives none for so long is begun anew. librdkafka 2.12 was seen to read one partition of
/// several no more after its broker was killed and came back, without an error.
const STALLED_AFTER: Duration = Duration::from_secs(1);

/// The handle of the thread.
pub(super) struct Consumer {
    commands: commands::Sender<Follow>,
}

/// A slot to read.
pub(super) struct Follow {
    pub(super) slot: SlotId,
    pub(super) from: Offset,
    pub(super) next: Offset,
    pub(super) records: mpsc::Sender<Input>,
}

impl Consumer {
    pub(super) fn start(config: KafkaLogConfig) -> Result<Self, LogError> {
        const NAME: &str = "log-consumer";
        let ends = Ends::default();
        let client = settings::log_consumer(&config.bootstrap, &config.client_id)
            .create_with_context(Context {
                topic: config.topic.clone(),
                ends: ends.clone(),
            })?;
        let (sender, receiver) = commands::channel();
        let reading = Reading {
            client,
            topic: config.topic,
            ends,
            memory_is_full: config.memory_is_full,
            report: config.report,
            commands: receiver,
            waiting: Vec::new(),
            followed: BTreeMap::new(),
            paused: false,
            looked: -1,
            look_at: Instant::now(),
        };
        let alive = config.alive;
        std::thread::Builder::new()
            .name(NAME.to_owned())
            .spawn(move || {
                let _alive = alive;
                reading.run();
            })
            .map_err(|source| LogError::Thread { name: NAME, source })?;
        Ok(Self { commands: sender })
    }

    /// A thread that is gone ends the process, so nobody is left who could miss this slot.
    pub(super) fn follow(&self, follow: Follow) {
        let _ = self.commands.send(follow);
    }
}

/// Ends of partitions as librdkafka saw them last.
#[derive(Clone, Default)]
struct Ends(Arc<Mutex<HashMap<i32, i64>>>);

impl Ends {
    fn take(&self) -> HashMap<i32, i64> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

struct Context {
    topic: String,
    ends: Ends,
}

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        settings::log_line(level, facility, line);
    }

    fn stats(&self, statistics: Statistics) {
        let Some(topic) = statistics.topics.get(&self.topic) else {
            return;
        };
        let seen = topic
            .partitions
            .iter()
            .filter(|(_, partition)| partition.hi_offset >= 0);
        let mut ends = self.ends.0.lock().unwrap_or_else(PoisonError::into_inner);
        ends.extend(seen.map(|(number, partition)| (*number, partition.hi_offset)));
    }

    fn error(&self, error: KafkaError, reason: &str) {
        if error.rdkafka_error_code() != Some(RDKafkaErrorCode::PartitionEOF) {
            debug!(%error, reason, "the consumer of the log reports");
        }
    }
}

impl ConsumerContext for Context {}

struct Reading {
    client: BaseConsumer<Context>,
    topic: String,
    ends: Ends,
    memory_is_full: Box<dyn Fn() -> bool + Send>,
    report: Box<dyn Fn(Option<String>) + Send>,
    commands: commands::Receiver<Follow>,
    waiting: Vec<Waiting>,
    followed: BTreeMap<i32, Followed>,
    paused: bool,
    /// The quiet partition that was looked at last, and when the next one is.
    looked: i32,
    look_at: Instant,
}

/// A slot whose partition was not looked at yet.
struct Waiting {
    follow: Follow,
    look_at: Instant,
    too_short: u32,
}

struct Followed {
    /// Offset of the next record to read.
    place: i64,
    records: mpsc::Sender<Input>,
    /// When it gave something, or was begun anew.
    heard: Instant,
    /// Since when it is known to have records that it does not give.
    behind_since: Option<Instant>,
    /// Its end when it was begun anew: if nothing comes before the next end, there are no records up to there.
    end_at_anew: Option<i64>,
}

impl Followed {
    fn new(place: i64, records: mpsc::Sender<Input>) -> Self {
        Self {
            place,
            records,
            heard: Instant::now(),
            behind_since: None,
            end_at_anew: None,
        }
    }

    fn gave(&mut self, place: i64) {
        self.place = self.place.max(place);
        self.heard = Instant::now();
        self.behind_since = None;
        self.end_at_anew = None;
    }

    /// Whether a partition that ends at `end`, and gave nothing for a while, is to be begun anew.
    fn has_stalled(&mut self, end: i64, now: Instant) -> bool {
        if end <= self.place {
            self.behind_since = None;
            return false;
        }
        let since = *self.behind_since.get_or_insert(now);
        now.duration_since(since) >= STALLED_AFTER
    }
}

impl Reading {
    fn run(mut self) {
        loop {
            loop {
                match self.commands.try_recv() {
                    Ok(follow) => {
                        let look_at = Instant::now();
                        self.waiting.push(Waiting {
                            follow,
                            look_at,
                            too_short: 0,
                        });
                    }
                    Err(commands::TryRecvError::Empty) => break,
                    Err(commands::TryRecvError::Disconnected) => return,
                }
            }
            self.begin_waiting();
            self.mind_memory();
            self.tell_ends();
            self.look_at_quiet();
            match self.client.poll(POLL) {
                None => {}
                Some(Ok(message)) => {
                    let bytes = message
                        .payload()
                        .map_or_else(Bytes::new, Bytes::copy_from_slice);
                    let (partition, offset) = (message.partition(), message.offset());
                    if let Some(followed) = self.followed.get_mut(&partition) {
                        followed.gave(offset + 1);
                        let input = Input::Record {
                            offset: Offset(offset),
                            bytes,
                        };
                        let _ = followed.records.blocking_send(input);
                    }
                }
                Some(Err(KafkaError::PartitionEOF(partition))) => {
                    if let Some(followed) = self.followed.get_mut(&partition) {
                        followed.gave(followed.end_at_anew.unwrap_or_default());
                        let _ = followed.records.blocking_send(Input::CaughtUp);
                    }
                }
                Some(Err(error)) => self.failed(&error),
            }
        }
    }

    /// Looks at the partitions of slots that wait, and begins to read those that are as they should be. The first that gets
    /// no answer puts the others off: each question may take seconds, and the slots that are read must not wait.
    fn begin_waiting(&mut self) {
        let now = Instant::now();
        if !self.waiting.iter().any(|waiting| waiting.look_at <= now) {
            return;
        }
        let mut problem = None;
        for mut waiting in std::mem::take(&mut self.waiting) {
            if problem.is_none() && waiting.look_at <= now {
                match self.try_begin(&mut waiting) {
                    Ok(true) => continue,
                    Ok(false) => waiting.look_at = now + ENDS_PAUSE,
                    Err(error) => {
                        let slot = waiting.follow.slot;
                        problem = Some(format!("the log of slot {slot} cannot be read: {error}"));
                    }
                }
            }
            if problem.is_some() {
                waiting.look_at = now + ENDS_PAUSE;
            }
            self.waiting.push(waiting);
        }
        (self.report)(problem);
    }

    /// Whether nothing more is to be done for a slot that waits.
    fn try_begin(&mut self, waiting: &mut Waiting) -> KafkaResult<bool> {
        let follow = &waiting.follow;
        let reason = match self.look(follow)? {
            Look::Fits => return self.begin(follow).map(|()| true),
            Look::Gone(reason) => reason,
            Look::TooShort(reason) => {
                waiting.too_short += 1;
                if waiting.too_short < ENDS_LOOKS {
                    return Ok(false);
                }
                reason
            }
        };
        let _ = follow.records.blocking_send(Input::Freeze(reason));
        Ok(true)
    }

    fn look(&self, follow: &Follow) -> KafkaResult<Look> {
        let partition = follow.slot.partition();
        let (start, end) = self
            .client
            .fetch_watermarks(&self.topic, partition, ENDS_TIMEOUT)?;
        Ok(Look::compare(follow.from, follow.next, start, end))
    }

    fn begin(&mut self, follow: &Follow) -> KafkaResult<()> {
        let partition = follow.slot.partition();
        self.client
            .incremental_assign(&self.places([(partition, follow.from.0)])?)?;
        let followed = Followed::new(follow.from.0, follow.records.clone());
        self.followed.insert(partition, followed);
        self.paused = false;
        Ok(())
    }

    fn places(
        &self,
        places: impl IntoIterator<Item = (i32, i64)>,
    ) -> KafkaResult<TopicPartitionList> {
        let mut list = TopicPartitionList::new();
        for (partition, place) in places {
            list.add_partition_offset(&self.topic, partition, Place::Offset(place))?;
        }
        Ok(list)
    }

    fn all_places(&self) -> KafkaResult<TopicPartitionList> {
        self.places(
            self.followed
                .iter()
                .map(|(partition, followed)| (*partition, followed.place)),
        )
    }

    /// Stops reading while memory is full; what librdkafka has read ahead waits with the rest.
    fn mind_memory(&mut self) {
        let full = (self.memory_is_full)();
        if full == self.paused || self.followed.is_empty() {
            return;
        }
        let done = self.all_places().and_then(|places| {
            if full {
                self.client.pause(&places)
            } else {
                self.client.resume(&places)
            }
        });
        match done {
            Ok(()) => {
                warn!(
                    paused = full,
                    "reading the log, by the memory that waits for PostgreSQL"
                );
                self.paused = full;
            }
            Err(error) => warn!(%error, "failed to pause or resume reading"),
        }
    }

    /// A hint that may be lost: the next one comes within a second.
    fn tell_ends(&self) {
        for (partition, end) in self.ends.take() {
            if let Some(followed) = self.followed.get(&partition) {
                let _ = followed.records.try_send(Input::End(Offset(end)));
            }
        }
    }

    /// Looks at the end of the next partition, if it is quiet, and begins it anew if it does not give what it has.
    fn look_at_quiet(&mut self) {
        let now = Instant::now();
        if now < self.look_at || self.paused {
            return;
        }
        self.look_at = now + QUIET_LOOK_PAUSE;
        let next = self.followed.range(self.looked + 1..).next();
        let Some((&partition, followed)) = next.or_else(|| self.followed.iter().next()) else {
            return;
        };
        self.looked = partition;
        if now.duration_since(followed.heard) < QUIET_AFTER {
            return;
        }
        let ends = self
            .client
            .fetch_watermarks(&self.topic, partition, QUIET_LOOK_TIMEOUT);
        let Ok((_, end)) = ends else {
            self.look_at = Instant::now() + ENDS_PAUSE;
            return;
        };
        let Some(followed) = self.followed.get_mut(&partition) else {
            return;
        };
        let _ = followed.records.try_send(Input::End(Offset(end)));
        if !followed.has_stalled(end, now) {
            return;
        }
        let place = followed.place;
        *followed = Followed::new(place, followed.records.clone());
        followed.end_at_anew = Some(end);
        warn!(
            partition,
            place, end, "a partition gives nothing, and is begun anew"
        );
        let anew = self.places([(partition, place)]).and_then(|places| {
            self.client.incremental_unassign(&places)?;
            self.client.incremental_assign(&places)
        });
        if let Err(error) = anew {
            warn!(partition, %error, "failed to begin a partition anew");
        }
    }

    /// librdkafka does not say which partition an error is about. Those that end a partition's reading make every slot look
    /// at its partition again, and begin anew where it stood.
    fn failed(&mut self, error: &KafkaError) {
        let ends_reading = matches!(
            error.rdkafka_error_code(),
            Some(
                RDKafkaErrorCode::AutoOffsetReset
                    | RDKafkaErrorCode::OffsetOutOfRange
                    | RDKafkaErrorCode::LogTruncation
            )
        );
        if !ends_reading {
            debug!(%error, "reading the log goes on by itself");
            return;
        }
        warn!(%error, "failed to read the log");
        if let Err(error) = self
            .all_places()
            .and_then(|all| self.client.incremental_unassign(&all))
        {
            warn!(%error, "failed to begin anew");
            return;
        }
        for (partition, followed) in std::mem::take(&mut self.followed) {
            let slot = SlotId::from_partition(partition).expect("partitions of slots are followed");
            let place = Offset(followed.place);
            let follow = Follow {
                slot,
                from: place,
                next: place,
                records: followed.records,
            };
            let look_at = Instant::now() + ENDS_PAUSE;
            self.waiting.push(Waiting {
                follow,
                look_at,
                too_short: 0,
            });
        }
    }
}

/// How a place and a partition fit together.
#[derive(Debug, PartialEq, Eq)]
enum Look {
    Fits,
    /// The place was trimmed away: for good.
    Gone(String),
    /// The log ends before the place: perhaps not for good.
    TooShort(String),
}

impl Look {
    fn compare(from: Offset, next: Offset, start: i64, end: i64) -> Self {
        const REMEDY: &str =
            "restore the topic, or remove this node's schema and rebuild it from a peer";
        if from.0 < start {
            return Self::Gone(format!(
                "the log begins at record {start}, and record {from} is needed: it was trimmed; {REMEDY}"
            ));
        }
        if end < next.0 {
            return Self::TooShort(format!(
                "the log ends at record {end}, and {next} were applied: the topic was emptied or replaced; {REMEDY}"
            ));
        }
        Self::Fits
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partition_that_does_not_give_what_it_has_is_begun_anew() {
        let (records, _receiver) = mpsc::channel(1);
        let mut followed = Followed::new(5, records);
        let now = Instant::now();
        let later = now + STALLED_AFTER;
        assert!(
            !followed.has_stalled(5, now) && !followed.has_stalled(5, later),
            "at its end"
        );
        assert!(
            !followed.has_stalled(6, now),
            "the record may be on its way"
        );
        assert!(followed.has_stalled(6, later));
        followed.gave(6);
        assert!(!followed.has_stalled(7, later), "it gave something since");
        // A marker without a record: the end comes, and nothing before it.
        followed.end_at_anew = Some(8);
        followed.gave(followed.end_at_anew.unwrap_or_default());
        assert!(!followed.has_stalled(8, later) && followed.behind_since.is_none());
    }

    #[test]
    fn places_that_the_log_does_not_hold_are_seen() {
        let look = |from, next, start, end| Look::compare(Offset(from), Offset(next), start, end);
        assert_eq!(look(0, 0, 0, 0), Look::Fits, "a new log");
        assert_eq!(
            look(4, 5, 4, 5),
            Look::Fits,
            "the record before is the first that is left"
        );
        assert!(
            matches!(look(4, 5, 5, 9), Look::Gone(_)),
            "the record before was trimmed"
        );
        assert!(
            matches!(look(0, 0, 1, 9), Look::Gone(_)),
            "a new replica of an old log"
        );
        assert!(
            matches!(look(4, 5, 0, 4), Look::TooShort(_)),
            "the topic was made anew"
        );
        assert!(matches!(look(4, 5, 0, 0), Look::TooShort(_)));
    }
}
