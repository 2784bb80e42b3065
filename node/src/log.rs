//! The write-ahead log: one Kafka partition per slot. The trait is what the slots' tasks need of it; Kafka stands behind.
//!
//! What happens in the log reaches a slot's task by two channels, see [`Sink`]: what the consumer reads, and the fates of
//! the slot's own records. Neither order between the two nor their speed matters to the state machine.

pub mod codec;
pub mod consumer;
pub mod decode;
pub mod producer;
pub mod reader;
pub mod settings;

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use bytes::Bytes;
use kvcluster_crds::{Offset, SlotId};
use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use rdkafka::error::KafkaError;
use rdkafka::{Offset as Place, TopicPartitionList};
use tokio::sync::mpsc;

use crate::effect::SlotPosition;
use crate::slot::{Input, SlotMachine, Token};

/// Records that were read and that a slot's task has not taken yet, at most; the consumer waits when they are so many.
pub const RECORDS_QUEUED_MAX: usize = 2_048;

/// Longest wait for Kafka to trim.
const TRIM_TIMEOUT: Duration = Duration::from_secs(10);

/// Why the log's edge could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// A setting that librdkafka does not take.
    #[error("failed to create a Kafka client: {0}")]
    Client(#[from] KafkaError),
    /// The system gives no thread.
    #[error("failed to start the thread {name}: {source}")]
    Thread {
        /// Its name.
        name: &'static str,
        /// Why.
        source: std::io::Error,
    },
}

/// Where the log tells a slot's task what happened.
#[derive(Clone, Debug)]
pub struct Sink {
    /// What the consumer reads; it waits when the channel is full.
    pub records: mpsc::Sender<Input>,
    /// The fates of own records; as many as the slot has in flight, which the state machine limits.
    pub fates: mpsc::UnboundedSender<Input>,
}

/// A slot whose log is to be read.
#[derive(Clone, Debug)]
pub struct Follow {
    /// The slot.
    pub slot: SlotId,
    /// Where reading begins. When the log begins behind it, [`Input::Behind`] comes.
    pub from: Offset,
    /// The first offset that was not read before. A log that ends before it freezes the slot.
    pub next: Offset,
    /// Records that are worth reading: when there are more, [`Input::Behind`] comes instead of them.
    pub records_max: i64,
    /// Where everything goes.
    pub sink: Sink,
}

impl Follow {
    /// A replica that stands at `position`.
    pub fn at(slot: SlotId, position: &SlotPosition, records_max: i64, sink: Sink) -> Self {
        // Only a replica without state gains by a snapshot: rows are fewer than records, but reading on is cheaper than both.
        let is_new = position.checksum_before.is_none();
        Self {
            slot,
            from: SlotMachine::follow_from(position),
            next: position
                .next_offset
                .max(position.whole_at.unwrap_or(Offset(0))),
            records_max: if is_new { records_max } else { i64::MAX },
            sink,
        }
    }
}

/// What the tasks of the slots need of the log.
pub trait Log: Send + Sync + 'static {
    /// Reads the logs of some slots; once for each slot, and once more after each [`Input::Behind`]. Those that are named together begin together: one that joins others
    /// waits until a broker has answered for these.
    fn follow(&self, slots: Vec<Follow>);

    /// Reads the log of `slot` no more, until it is followed again. Its sink is let go soon; what it is told until then is for
    /// nobody.
    fn unfollow(&self, slot: SlotId);

    /// Appends a record to the log of `slot`. Its fate reaches the sink of the slot, exactly once.
    fn append(&self, slot: SlotId, token: Token, bytes: &Bytes);
}

/// The sinks of the slots that are followed, by slot.
#[derive(Debug)]
pub(crate) struct Sinks(Vec<RwLock<Option<Sink>>>);

impl Sinks {
    fn new(slots: u32) -> Arc<Self> {
        Arc::new(Self((0..slots).map(|_| RwLock::default()).collect()))
    }

    fn set(&self, slot: SlotId, sink: &Sink) {
        let mut place = self
            .0
            .get(slot.index())
            .expect("only slots of the cluster are followed")
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        let known = place.get_or_insert_with(|| sink.clone());
        assert!(
            known.fates.same_channel(&sink.fates),
            "slot {slot} is followed twice"
        );
    }

    fn remove(&self, slot: SlotId) {
        if let Some(place) = self.0.get(slot.index()) {
            *place.write().unwrap_or_else(PoisonError::into_inner) = None;
        }
    }

    /// Tells a slot's task the fate of a record. A task that is gone has nobody left to tell.
    fn tell(&self, slot: SlotId, fate: Input) {
        let Some(place) = self.0.get(slot.index()) else {
            return;
        };
        let place = place.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(sink) = place.as_ref() {
            let _ = sink.fates.send(fate);
        }
    }
}

/// Kafka as the log.
pub struct KafkaLog {
    admin: AdminClient<DefaultClientContext>,
    topic: String,
    producers: Vec<producer::Producer>,
    consumer: consumer::Consumer,
    sinks: Arc<Sinks>,
}

/// What [`KafkaLog::start`] needs to know.
pub struct KafkaLogConfig {
    /// Kafka's bootstrap servers.
    pub bootstrap: String,
    /// The log topic.
    pub topic: String,
    /// Name of this client in Kafka's logs.
    pub client_id: String,
    /// Number of slots of the cluster.
    pub slots: u32,
    /// Whether memory is so full that reading has to wait.
    pub memory_is_full: Box<dyn Fn() -> bool + Send>,
    /// Told why the log of a slot cannot be read, or that all can.
    pub report: Box<dyn Fn(Option<String>) + Send>,
    /// Dropped when the consumer's thread ends.
    pub alive: Box<dyn Send>,
}

impl KafkaLog {
    /// Starts producers and consumer. Does not wait for Kafka.
    pub fn start(config: KafkaLogConfig) -> Result<Self, LogError> {
        let sinks = Sinks::new(config.slots);
        let producers = (0..settings::PRODUCERS)
            .map(|_| {
                let settings = settings::producer(&config.bootstrap, &config.client_id);
                producer::Producer::new(settings, config.topic.clone(), Arc::clone(&sinks))
            })
            .collect::<Result<_, _>>()?;
        let admin = settings::admin(&config.bootstrap, &config.client_id).create()?;
        let topic = config.topic.clone();
        let consumer = consumer::Consumer::start(config)?;
        Ok(Self {
            admin,
            topic,
            producers,
            consumer,
            sinks,
        })
    }

    /// Removes what stands before these offsets. Errors are in words; what was removed before one stays removed.
    pub async fn trim(&self, places: &[(SlotId, Offset)]) -> Result<(), String> {
        let mut list = TopicPartitionList::new();
        for (slot, first) in places {
            list.add_partition_offset(&self.topic, slot.partition(), Place::Offset(first.0))
                .map_err(|error| error.to_string())?;
        }
        let options = AdminOptions::new().request_timeout(Some(TRIM_TIMEOUT));
        let trimmed = self.admin.delete_records(&list, &options).await;
        let trimmed = trimmed.map_err(|error| error.to_string())?;
        let failed = trimmed
            .elements()
            .iter()
            .find_map(|place| place.error().err());
        failed.map_or(Ok(()), |error| Err(error.to_string()))
    }

    /// Puts a new producer in the place of one that can never send again, or that gets no answer though Kafka has
    /// answered other clients for the time `answers_for`. Blocks for up to half a second when there is one.
    pub fn replace_broken_producers(&self, answers_for: Duration) {
        for producer in &self.producers {
            producer.replace_if_broken(answers_for);
        }
    }
}

impl Log for KafkaLog {
    fn follow(&self, slots: Vec<Follow>) {
        for follow in &slots {
            self.sinks.set(follow.slot, &follow.sink);
        }
        self.consumer.follow(slots);
    }

    fn unfollow(&self, slot: SlotId) {
        self.sinks.remove(slot);
        self.consumer.unfollow(slot);
    }

    fn append(&self, slot: SlotId, token: Token, bytes: &Bytes) {
        self.producers[slot.index() % self.producers.len()].append(slot, token, bytes);
    }
}
