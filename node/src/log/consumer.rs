//! Reads the slots' partitions: one librdkafka consumer on a thread of its own, because its calls block.
//!
//! Before a slot is read, its place is compared with what the partition holds: where the log begins behind the place it was
//! trimmed, and the slot needs a snapshot; where it ends before the place it was emptied or replaced, and the slot freezes.

use std::collections::{BTreeMap, HashMap};
use std::sync::mpsc as commands;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use kvcluster_crds::{Offset, SlotId};
use rdkafka::ClientConfig;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::message::Message;
use rdkafka::statistics::Statistics;
use rdkafka::{Offset as Place, TopicPartitionList};
use tracing::{debug, warn};

mod partition;

use self::partition::{Followed, Look};
use super::{Follow, KafkaLogConfig, LogError, settings};
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

/// The handle of the thread.
pub(super) struct Consumer {
    commands: commands::Sender<Command>,
}

enum Command {
    Follow(Vec<Follow>),
    Unfollow(SlotId),
}

impl Consumer {
    pub(super) fn start(config: KafkaLogConfig) -> Result<Self, LogError> {
        const NAME: &str = "log-consumer";
        let ends = Ends::default();
        let settings = settings::log_consumer(&config.bootstrap, &config.client_id);
        let client = connect(&settings, &config.topic, &ends)?;
        let (sender, receiver) = commands::channel();
        let reading = Reading {
            client,
            settings,
            answered_at: Instant::now(),
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
    pub(super) fn follow(&self, slots: Vec<Follow>) {
        let _ = self.commands.send(Command::Follow(slots));
    }

    pub(super) fn unfollow(&self, slot: SlotId) {
        let _ = self.commands.send(Command::Unfollow(slot));
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

fn connect(
    settings: &ClientConfig,
    topic: &str,
    ends: &Ends,
) -> KafkaResult<BaseConsumer<Context>> {
    settings.create_with_context(Context {
        topic: topic.to_owned(),
        ends: ends.clone(),
    })
}

struct Reading {
    client: BaseConsumer<Context>,
    settings: ClientConfig,
    /// When a broker answered last.
    answered_at: Instant,
    topic: String,
    ends: Ends,
    memory_is_full: Box<dyn Fn() -> bool + Send>,
    report: Box<dyn Fn(Option<String>) + Send>,
    commands: commands::Receiver<Command>,
    waiting: Vec<Waiting>,
    followed: BTreeMap<i32, Followed>,
    paused: bool,
    /// The quiet partition that was looked at last, and when the next one is.
    looked: i32,
    look_at: Instant,
}

/// What a look at a partition shows.
enum Next {
    Begin,
    LookAgain,
    Nothing,
}

/// A slot whose partition was not looked at yet.
struct Waiting {
    follow: Follow,
    look_at: Instant,
    too_short: u32,
}

impl Reading {
    fn run(mut self) {
        loop {
            loop {
                match self.commands.try_recv() {
                    Ok(Command::Follow(slots)) => self.await_look(slots, Instant::now()),
                    Ok(Command::Unfollow(slot)) => self.end(slot),
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
                    self.answered_at = Instant::now();
                    if let Some(followed) = self.followed.get_mut(&partition) {
                        followed.gave(offset + 1);
                        let input = Input::Record {
                            offset: Offset(offset),
                            bytes,
                        };
                        let _ = followed.sink.records.blocking_send(input);
                    }
                }
                Some(Err(KafkaError::PartitionEOF(partition))) => {
                    if let Some(followed) = self.followed.get_mut(&partition) {
                        followed.gave(followed.end_at_anew.unwrap_or_default());
                        let _ = followed.sink.records.blocking_send(Input::CaughtUp);
                    }
                }
                Some(Err(error)) => self.failed(&error),
            }
        }
    }

    /// Reads a slot no more. What librdkafka has read ahead of it finds nobody who wants it.
    fn end(&mut self, slot: SlotId) {
        let partition = slot.partition();
        self.waiting.retain(|waiting| waiting.follow.slot != slot);
        let Some(followed) = self.followed.remove(&partition) else {
            return;
        };
        let place = self.places([(partition, followed.place)]);
        if let Err(error) = place.and_then(|place| self.client.incremental_unassign(&place)) {
            warn!(partition, %error, "failed to end the reading of a partition");
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
        let mut fitting = Vec::new();
        for mut waiting in std::mem::take(&mut self.waiting) {
            if problem.is_none() && waiting.look_at <= now {
                match self.look(&mut waiting) {
                    Ok(Next::Begin) => {
                        fitting.push(waiting.follow);
                        continue;
                    }
                    Ok(Next::Nothing) => continue,
                    Ok(Next::LookAgain) => waiting.look_at = now + ENDS_PAUSE,
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
        if let Err(error) = self.begin(&fitting) {
            problem = Some(format!("the log cannot be read: {error}"));
            self.await_look(fitting, now + ENDS_PAUSE);
        }
        (self.report)(problem);
    }

    fn await_look(&mut self, slots: Vec<Follow>, look_at: Instant) {
        self.waiting.extend(slots.into_iter().map(|follow| Waiting {
            follow,
            look_at,
            too_short: 0,
        }));
    }

    /// What is to be done for a slot that waits.
    fn look(&mut self, waiting: &mut Waiting) -> KafkaResult<Next> {
        let follow = &waiting.follow;
        let (start, end) = self.ask_ends(follow.slot.partition(), ENDS_TIMEOUT)?;
        let input = match Look::compare(follow, start, end) {
            Look::Fits => return Ok(Next::Begin),
            Look::Behind(behind) => Input::Behind(behind),
            Look::TooShort(reason) => {
                waiting.too_short += 1;
                if waiting.too_short < ENDS_LOOKS {
                    return Ok(Next::LookAgain);
                }
                Input::Freeze(reason)
            }
        };
        let _ = follow.sink.records.blocking_send(input);
        Ok(Next::Nothing)
    }

    /// The ends of a partition. A client that gets no answer for long is replaced.
    fn ask_ends(&mut self, partition: i32, limit: Duration) -> KafkaResult<(i64, i64)> {
        let answer = self.client.fetch_watermarks(&self.topic, partition, limit);
        let now = Instant::now();
        if answer.is_ok() {
            self.answered_at = now;
        } else if now.duration_since(self.answered_at) >= settings::UNANSWERED_AFTER {
            self.answered_at = now;
            self.replace_client();
        }
        answer
    }

    /// Another client goes on where this one stood.
    fn replace_client(&mut self) {
        let made = connect(&self.settings, &self.topic, &self.ends).and_then(|client| {
            client.incremental_assign(&self.all_places()?)?;
            Ok(client)
        });
        match made {
            Ok(client) => {
                debug!("the log's consumer gets no answer and is replaced");
                self.paused = false;
                let old = std::mem::replace(&mut self.client, client);
                // Closing may take as long as a request does.
                std::thread::spawn(move || drop(old));
            }
            Err(error) => warn!(%error, "failed to replace the log's consumer"),
        }
    }

    fn begin(&mut self, slots: &[Follow]) -> KafkaResult<()> {
        if slots.is_empty() {
            return Ok(());
        }
        let place = |follow: &Follow| (follow.slot.partition(), follow.from.0);
        let places = self.places(slots.iter().map(place))?;
        self.client.incremental_assign(&places)?;
        for follow in slots {
            let followed = Followed::new(follow.from.0, follow.sink.clone());
            self.followed.insert(follow.slot.partition(), followed);
        }
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
                let _ = followed.sink.records.try_send(Input::End(Offset(end)));
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
        let Ok((_, end)) = self.ask_ends(partition, QUIET_LOOK_TIMEOUT) else {
            self.look_at = Instant::now() + ENDS_PAUSE;
            return;
        };
        let Some(followed) = self.followed.get_mut(&partition) else {
            return;
        };
        let _ = followed.sink.records.try_send(Input::End(Offset(end)));
        if !followed.has_stalled(end, now) {
            return;
        }
        let place = followed.place;
        *followed = Followed::new(place, followed.sink.clone());
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
        let followed = std::mem::take(&mut self.followed);
        let again = followed.into_iter().map(|(partition, followed)| Follow {
            slot: SlotId::from_partition(partition).expect("partitions of slots are followed"),
            from: Offset(followed.place),
            next: Offset(followed.place),
            records_max: i64::MAX,
            sink: followed.sink,
        });
        self.await_look(again.collect(), Instant::now() + ENDS_PAUSE);
    }
}
