//! Sends and reads heartbeats, see [`crate::heartbeat`].

use std::sync::Arc;
use std::time::Duration;

use rdkafka::client::ClientContext;
use rdkafka::error::KafkaError;
use rdkafka::message::DeliveryResult;
use rdkafka::producer::{BaseRecord, ProducerContext, ThreadedProducer};
use tokio::time::{MissedTickBehavior, interval};
use tracing::debug;

use super::clock;
use super::registry::Registry;
use crate::heartbeat::Heartbeat;
use crate::log::LogError;
use crate::log::reader::{self, Seen, StartAt};
use crate::log::settings;

/// Where heartbeats go and how often.
#[derive(Clone, Debug)]
pub(super) struct BeatsConfig {
    pub(super) bootstrap: String,
    pub(super) client_id: String,
    pub(super) topic: String,
    pub(super) every: Duration,
}

/// Reads the heartbeats of all nodes on a thread of its own. `alive` is dropped when it ends.
pub(super) fn listen(
    config: &BeatsConfig,
    registry: Arc<Registry>,
    alive: Box<dyn Send>,
) -> Result<(), LogError> {
    let settings = settings::consumer(&config.bootstrap, &config.client_id);
    let see = move |seen| {
        match seen {
            Seen::Record(_, bytes) => {
                if let Some(heartbeat) = Heartbeat::decode(&bytes) {
                    let now_ns = clock::now_ns();
                    registry.with_peers(|peers| peers.observe(now_ns, heartbeat));
                }
            }
            Seen::Failed(reason) => registry.set_problem("heartbeats", Some(reason)),
            Seen::End => registry.set_problem("heartbeats", None),
            Seen::Begin => {}
        }
        true
    };
    let topic = config.topic.clone();
    reader::start(
        "heartbeat-reader",
        settings,
        topic,
        StartAt::End,
        alive,
        see,
    )
}

/// Sends this node's heartbeats, for ever.
pub(super) async fn send(config: BeatsConfig, registry: Arc<Registry>) -> Result<(), LogError> {
    let producer: ThreadedProducer<Quiet> =
        settings::heartbeat_producer(&config.bootstrap, &config.client_id)
            .create_with_context(Quiet)?;
    let mut beats = interval(config.every);
    beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        beats.tick().await;
        registry.find_others();
        let (can_lead, serves) = registry.own_sets();
        let about = registry.config();
        let heartbeat = Heartbeat {
            log_id: about.log_id,
            node: about.node,
            incarnation: about.incarnation,
            sent_ns: clock::now_ns(),
            can_lead,
            serves,
        };
        let bytes = heartbeat.encode();
        let record = BaseRecord::<(), [u8]>::to(&config.topic)
            .partition(0)
            .payload(&bytes);
        if let Err((error, _)) = producer.send(record) {
            debug!(%error, "a heartbeat was not sent");
        }
    }
}

/// A heartbeat that is lost is noticed by its absence.
struct Quiet;

impl ClientContext for Quiet {
    fn error(&self, error: KafkaError, reason: &str) {
        debug!(%error, reason, "the producer of heartbeats reports");
    }
}

impl ProducerContext for Quiet {
    type DeliveryOpaque = ();

    fn delivery(&self, _: &DeliveryResult<'_>, (): ()) {}
}
