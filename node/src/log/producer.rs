//! Appends records and tells their fates. An error, and a success without an offset, are "unknown": librdkafka cannot say
//! more (a lost acknowledgement looks like a lost record).

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use kvcluster_crds::{Offset, SlotId};
use rdkafka::ClientConfig;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Message};
use rdkafka::producer::{BaseRecord, ProducerContext, ThreadedProducer};
use tracing::{debug, warn};

use super::settings::UNANSWERED_AFTER;
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
    flow: Arc<Mutex<Flow>>,
}

struct Fates {
    sinks: Arc<Sinks>,
    broken: Arc<AtomicBool>,
    flow: Arc<Mutex<Flow>>,
}

/// Whether records get through.
#[derive(Debug, Default)]
struct Flow {
    in_flight: u64,
    /// When a fate was told last, or the first record of those in flight was sent.
    moved_at: Option<Instant>,
}

impl Flow {
    fn sent(&mut self, now: Instant) {
        if self.in_flight == 0 {
            self.moved_at = Some(now);
        }
        self.in_flight += 1;
    }

    fn told(&mut self, now: Instant) {
        self.in_flight = self.in_flight.saturating_sub(1);
        self.moved_at = Some(now);
    }

    fn has_stalled(&self, now: Instant) -> bool {
        let since = self.moved_at.filter(|_| self.in_flight > 0);
        since.is_some_and(|since| now.duration_since(since) >= UNANSWERED_AFTER)
    }
}

fn with<R>(flow: &Mutex<Flow>, change: impl FnOnce(&mut Flow) -> R) -> R {
    change(&mut flow.lock().unwrap_or_else(PoisonError::into_inner))
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
        // Before it is sent: its fate may be told at once.
        with(&current.flow, |flow| flow.sent(Instant::now()));
        if let Err((error, _)) = current.producer.send(record) {
            with(&current.flow, |flow| flow.told(Instant::now()));
            warn!(%slot, %error, "a record was refused by the producer");
            self.sinks.tell(slot, Input::DeliveryUnknown { token });
        }
    }

    /// Replaces a producer that can never send again, or whose records get nowhere though Kafka has answered other clients
    /// for the time `answers_for`, long enough for this one to find its way back by itself. A slot whose
    /// records the old producer still had steps down, because their fates become unknown; a slot that had none in flight goes
    /// on with the new one, and its order is kept all the same.
    pub(super) fn replace_if_broken(&self, answers_for: Duration) {
        let broken = |current: &Current| {
            let stalled = || with(&current.flow, |flow| flow.has_stalled(Instant::now()));
            current.broken.load(Ordering::SeqCst) || (answers_for >= UNANSWERED_AFTER && stalled())
        };
        if !broken(&self.current.read().unwrap_or_else(PoisonError::into_inner)) {
            return;
        }
        match Current::new(&self.settings, &self.sinks) {
            Ok(fresh) => {
                let mut place = self.current.write().unwrap_or_else(PoisonError::into_inner);
                let old = std::mem::replace(&mut *place, fresh);
                drop(place);
                warn!("the log's producer could not go on and was replaced");
                // Purges what is queued, which tells those records' fates.
                drop(old);
            }
            Err(error) => warn!(%error, "failed to replace a producer that cannot go on"),
        }
    }
}

impl Current {
    fn new(settings: &ClientConfig, sinks: &Arc<Sinks>) -> Result<Self, KafkaError> {
        let (broken, flow) = (Arc::default(), Arc::default());
        let fates = Fates {
            sinks: Arc::clone(sinks),
            broken: Arc::clone(&broken),
            flow: Arc::clone(&flow),
        };
        Ok(Self {
            producer: settings.create_with_context(fates)?,
            broken,
            flow,
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
        with(&self.flow, |flow| flow.told(Instant::now()));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_that_get_nowhere_are_noticed() {
        let now = Instant::now();
        let later = now + UNANSWERED_AFTER;
        let mut flow = Flow::default();
        assert!(!flow.has_stalled(later), "nothing was sent");
        flow.sent(now);
        assert!(!flow.has_stalled(now) && flow.has_stalled(later));
        flow.sent(later);
        assert!(flow.has_stalled(later), "the first one still waits");
        flow.told(later);
        assert!(!flow.has_stalled(later), "one got through");
        assert!(flow.has_stalled(later + UNANSWERED_AFTER));
        flow.told(later);
        assert!(
            !flow.has_stalled(later + UNANSWERED_AFTER),
            "none is in flight"
        );
    }
}
