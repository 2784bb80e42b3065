//! Appends records and tells their fates. An error, and a success without an offset, are "unknown": librdkafka cannot say
//! more (a lost acknowledgement looks like a lost record).

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use bytes::Bytes;
use kvcluster_crds::{Offset, SlotId};
use rdkafka::ClientConfig;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Message};
use rdkafka::producer::{BaseRecord, ProducerContext, ThreadedProducer};
use tracing::{debug, info, warn};

use super::{Sinks, settings};
use crate::slot::{Input, Token};

/// A producer that is made anew when librdkafka says that it can never send again.
pub(super) struct Producer {
    settings: ClientConfig,
    topic: String,
    sinks: Arc<Sinks>,
    current: RwLock<Current>,
}

struct Current {
    producer: ThreadedProducer<Fates>,
    broken: Arc<AtomicBool>,
}

struct Fates {
    sinks: Arc<Sinks>,
    broken: Arc<AtomicBool>,
}

impl Producer {
    pub(super) fn new(
        settings: ClientConfig,
        topic: String,
        sinks: Arc<Sinks>,
    ) -> Result<Self, KafkaError> {
        let current = RwLock::new(Current::new(&settings, &sinks)?);
        Ok(Self {
            settings,
            topic,
            sinks,
            current,
        })
    }

    pub(super) fn append(&self, slot: SlotId, token: Token, bytes: &Bytes) {
        let record =
            BaseRecord::<(), [u8], _>::with_opaque_to(&self.topic, Box::new((slot, token)))
                .partition(slot.partition())
                .payload(bytes.as_ref());
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
        if let Err((error, _)) = current.producer.send(record) {
            warn!(%slot, %error, "a record was refused by the producer");
            self.sinks.tell(slot, Input::DeliveryUnknown { token });
        }
    }

    /// A slot whose records the old producer still had steps down, because their fates become unknown; a slot that had none
    /// in flight goes on with the new one, and its order is kept all the same.
    pub(super) fn replace_if_broken(&self) {
        let broken = |current: &Current| current.broken.load(Ordering::SeqCst);
        if !broken(&self.current.read().unwrap_or_else(PoisonError::into_inner)) {
            return;
        }
        match Current::new(&self.settings, &self.sinks) {
            Ok(fresh) => {
                let mut place = self.current.write().unwrap_or_else(PoisonError::into_inner);
                let old = std::mem::replace(&mut *place, fresh);
                drop(place);
                info!("a producer that could not go on was replaced");
                // Purges what is queued, which tells those records' fates.
                drop(old);
            }
            Err(error) => warn!(%error, "failed to replace a producer that cannot go on"),
        }
    }
}

impl Current {
    fn new(settings: &ClientConfig, sinks: &Arc<Sinks>) -> Result<Self, KafkaError> {
        let broken = Arc::new(AtomicBool::new(false));
        let fates = Fates {
            sinks: Arc::clone(sinks),
            broken: Arc::clone(&broken),
        };
        Ok(Self {
            producer: settings.create_with_context(fates)?,
            broken,
        })
    }
}

impl ClientContext for Fates {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        settings::log_line(level, facility, line);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        if error.rdkafka_error_code() == Some(RDKafkaErrorCode::Fatal) {
            self.broken.store(true, Ordering::SeqCst);
            warn!(%error, reason, "the producer cannot go on");
        }
        debug!(%error, reason, "the producer reports");
    }
}

impl ProducerContext for Fates {
    type DeliveryOpaque = Box<(SlotId, Token)>;

    fn delivery(&self, result: &DeliveryResult<'_>, opaque: Self::DeliveryOpaque) {
        let (slot, token) = *opaque;
        let fate = match result {
            Ok(message) if message.offset() >= 0 => Input::Delivered {
                token,
                offset: Offset(message.offset()),
            },
            Ok(_) => Input::DeliveryUnknown { token },
            Err((error, _)) => {
                if error.rdkafka_error_code() == Some(RDKafkaErrorCode::Fatal) {
                    self.broken.store(true, Ordering::SeqCst);
                }
                warn!(%slot, %error, "the fate of a record is unknown");
                Input::DeliveryUnknown { token }
            }
        };
        self.sinks.tell(slot, fate);
    }
}
