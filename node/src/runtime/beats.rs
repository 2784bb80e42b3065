//! Sends and reads heartbeats, see [`crate::heartbeat`].

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::KafkaError;
use rdkafka::message::DeliveryResult;
use rdkafka::producer::{BaseRecord, ProducerContext, ThreadedProducer};
use tokio::time::{Instant, MissedTickBehavior, interval};
use tracing::{debug, info, warn};

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
                    let now_ns = registry.config().clock.now_ns();
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
    let last_error = Arc::new(Mutex::new(String::new()));
    let mut returned = false;
    let mut producer = connect(&config, &last_error)?;
    let mut returned_at = Instant::now();
    let mut beats = interval(config.every);
    beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        beats.tick().await;
        registry.find_others();
        returned = look_at_return(&config, &registry, returned, &last_error);
        if returned {
            returned_at = Instant::now();
        } else if returned_at.elapsed() >= settings::UNANSWERED_AFTER {
            returned_at = Instant::now();
            debug!("the producer of heartbeats gets nowhere and is replaced");
            let old = std::mem::replace(&mut producer, connect(&config, &last_error)?);
            // Closing blocks for up to half a second.
            tokio::task::spawn_blocking(move || drop(old));
        }
        let (can_lead, serves) = registry.own_sets();
        let acknowledged = registry.own_acknowledged(registry.config().clock.wall_ms());
        let about = registry.config();
        let heartbeat = Heartbeat {
            log_id: about.log_id,
            node: about.node,
            incarnation: about.incarnation,
            sent_ns: about.clock.now_ns(),
            can_lead,
            serves,
            acknowledged,
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

fn connect(
    config: &BeatsConfig,
    last_error: &Arc<Mutex<String>>,
) -> Result<ThreadedProducer<Quiet>, LogError> {
    let settings = settings::heartbeat_producer(&config.bootstrap, &config.client_id);
    let context = Quiet {
        last_error: Arc::clone(last_error),
    };
    Ok(settings.create_with_context(context)?)
}

/// Tells, on changes, whether Kafka takes and gives back what this node sends.
fn look_at_return(
    config: &BeatsConfig,
    registry: &Registry,
    returned: bool,
    last_error: &Mutex<String>,
) -> bool {
    let now_ns = registry.config().clock.now_ns();
    let returns = registry.with_peers(|peers| peers.own_return(now_ns));
    if returns {
        if !returned {
            info!("the own heartbeats come back: Kafka takes and gives records");
        }
        registry.set_problem("kafka", None);
    } else {
        let reason = last_error
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let problem = format!("Kafka at {} does not answer ({reason})", config.bootstrap);
        if returned {
            warn!(problem, "the own heartbeats do not come back");
        }
        registry.set_problem("kafka", Some(problem));
    }
    returns
}

/// A heartbeat that is lost is noticed by its absence.
struct Quiet {
    last_error: Arc<Mutex<String>>,
}

impl ClientContext for Quiet {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        settings::log_line(level, facility, line);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        debug!(%error, reason, "the producer of heartbeats reports");
        reason.clone_into(
            &mut self
                .last_error
                .lock()
                .unwrap_or_else(PoisonError::into_inner),
        );
    }
}

impl ProducerContext for Quiet {
    type DeliveryOpaque = ();

    fn delivery(&self, _: &DeliveryResult<'_>, (): ()) {}
}
