//! The settings of librdkafka, each with its reason; pinned by a test, because a default that moves moves the guarantees.

use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::config::RDKafkaLogLevel;
use tracing::{debug, error};

use super::codec::RECORD_BYTES_MAX;

/// Producers of a node; a slot keeps to one. One batches the records of all slots into the fewest requests.
pub const PRODUCERS: usize = 1;
/// How long the producer tries to append a record before its fate is unknown, milliseconds: longer than a broker's restart
/// or the election of another one.
pub const MESSAGE_TIMEOUT_MS: u32 = 60_000;
/// How long a heartbeat is worth sending, milliseconds.
pub const HEARTBEAT_TIMEOUT_MS: u32 = 1_000;
/// Time between two looks at the log's end, milliseconds; librdkafka's grain is a second.
pub const STATISTICS_INTERVAL_MS: u32 = 1_000;
/// First and longest pause before a connection is tried again, milliseconds: an election must not wait for a back-off.
const RECONNECT_MS: [&str; 2] = ["20", "500"];
/// Pause before a request is sent again, milliseconds.
const RETRY_MS: [&str; 2] = ["20", "200"];
/// Longest time that a broker holds back an answer to a fetch that finds nothing, milliseconds: new partitions wait so long.
const FETCH_WAIT_MS: &str = "100";
/// Pause after a fetch that failed, or that found the local queue full, milliseconds.
const FETCH_BACKOFF_MS: &str = "50";
/// A request that is not answered is given up and sent again, milliseconds: a broker that was killed hard says nothing.
const SOCKET_TIMEOUT_MS: &str = "10000";
/// A client that gets no answer for so long is replaced by another. librdkafka 2.12, when its broker was away for minutes and
/// came back, was seen to drop the broker from its list and never to connect again, without an error. While Kafka is really
/// away this costs a client every so often.
pub const UNANSWERED_AFTER: Duration = Duration::from_secs(5);
/// Kibibytes that the consumer reads ahead, of all slots together.
const READ_AHEAD_KIBIBYTES: &str = "32768";
/// Records and kibibytes in the producer's queue: more than all slots together may have in flight, so that it never refuses.
const QUEUE: [&str; 2] = ["1000000", "2097151"];

/// librdkafka's own log lines. A connection that fails is tried again many times a second, and what follows from it is told
/// once by those who notice (heartbeats that do not come back, fates that are unknown); so its errors are for debugging.
pub fn log_line(level: RDKafkaLogLevel, facility: &str, line: &str) {
    match level {
        RDKafkaLogLevel::Emerg | RDKafkaLogLevel::Alert | RDKafkaLogLevel::Critical => {
            error!(facility, line, "librdkafka");
        }
        RDKafkaLogLevel::Error
        | RDKafkaLogLevel::Warning
        | RDKafkaLogLevel::Notice
        | RDKafkaLogLevel::Info
        | RDKafkaLogLevel::Debug => debug!(facility, line, "librdkafka"),
    }
}

fn common(bootstrap: &str, client_id: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", bootstrap)
        .set("client.id", client_id)
        // A topic that is missing is the operator's to make, with the right partitions and settings.
        .set("allow.auto.create.topics", "false")
        .set("reconnect.backoff.ms", RECONNECT_MS[0])
        .set("reconnect.backoff.max.ms", RECONNECT_MS[1])
        .set("retry.backoff.ms", RETRY_MS[0])
        .set("retry.backoff.max.ms", RETRY_MS[1])
        .set("socket.timeout.ms", SOCKET_TIMEOUT_MS)
        .set("socket.connection.setup.timeout.ms", "5000")
        .set("socket.keepalive.enable", "true")
        .set("socket.nagle.disable", "true")
        .set("log.connection.close", "false");
    config.set_log_level(RDKafkaLogLevel::Warning);
    config
}

/// Of the producer of the log.
pub fn producer(bootstrap: &str, client_id: &str) -> ClientConfig {
    let mut config = common(bootstrap, client_id);
    config
        // Order within a partition, and no record twice, across retries.
        .set("enable.idempotence", "true")
        // Acknowledged means on all in-sync replicas.
        .set("acks", "all")
        .set("max.in.flight.requests.per.connection", "5")
        // The slots batch by themselves, by what is in flight.
        .set("linger.ms", "0")
        .set("message.timeout.ms", MESSAGE_TIMEOUT_MS.to_string())
        .set(
            "message.max.bytes",
            (RECORD_BYTES_MAX + 100_000).to_string(),
        )
        .set("queue.buffering.max.messages", QUEUE[0])
        .set("queue.buffering.max.kbytes", QUEUE[1])
        .set("compression.type", "none");
    config
}

/// Of the producer of heartbeats: what cannot be sent at once is worth nothing later.
pub fn heartbeat_producer(bootstrap: &str, client_id: &str) -> ClientConfig {
    let mut config = common(bootstrap, client_id);
    config
        .set("acks", "1")
        .set("linger.ms", "0")
        .set("message.timeout.ms", HEARTBEAT_TIMEOUT_MS.to_string())
        .set("message.send.max.retries", "0");
    config
}

/// Of the client that trims.
pub fn admin(bootstrap: &str, client_id: &str) -> ClientConfig {
    common(bootstrap, client_id)
}

/// Of every consumer. Partitions are assigned by us at offsets that we keep; the group exists because librdkafka wants a
/// name for it, nothing is joined or committed.
pub fn consumer(bootstrap: &str, client_id: &str) -> ClientConfig {
    let mut config = common(bootstrap, client_id);
    config
        .set("group.id", client_id)
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        // A place that is not there any more must stop the slot and never skip to another one.
        .set("auto.offset.reset", "error")
        .set("check.crcs", "true")
        // The log has no transactions; somebody's stray open one must not hold up the reader.
        .set("isolation.level", "read_uncommitted")
        .set("enable.partition.eof", "true")
        .set("fetch.min.bytes", "1")
        .set("fetch.wait.max.ms", FETCH_WAIT_MS)
        .set("fetch.error.backoff.ms", FETCH_BACKOFF_MS)
        .set("fetch.queue.backoff.ms", FETCH_BACKOFF_MS)
        .set("queued.max.messages.kbytes", READ_AHEAD_KIBIBYTES)
        .set(
            "fetch.message.max.bytes",
            (2 * RECORD_BYTES_MAX).to_string(),
        );
    config
}

/// Of the consumer of the log.
pub fn log_consumer(bootstrap: &str, client_id: &str) -> ClientConfig {
    let mut config = consumer(bootstrap, client_id);
    config.set("statistics.interval.ms", STATISTICS_INTERVAL_MS.to_string());
    config
}

#[cfg(test)]
mod tests {
    use rdkafka::consumer::BaseConsumer;
    use rdkafka::producer::BaseProducer;

    use super::*;
    use crate::slot::leading::{BATCH_BYTES_MAX, BATCH_RECORDS_MAX};

    fn assert_pinned(config: &ClientConfig, pinned: &[(&str, &str)]) {
        for (name, value) in pinned {
            assert_eq!(config.get(name), Some(*value), "{name}");
        }
    }

    #[test]
    fn what_the_guarantees_rest_on_is_pinned() {
        let both = [
            ("allow.auto.create.topics", "false"),
            ("reconnect.backoff.max.ms", "500"),
        ];
        assert_pinned(&producer("k:1", "n"), &both);
        assert_pinned(&log_consumer("k:1", "n"), &both);
        let writes = [
            ("enable.idempotence", "true"),
            ("acks", "all"),
            ("max.in.flight.requests.per.connection", "5"),
            ("message.timeout.ms", "60000"),
            ("linger.ms", "0"),
        ];
        assert_pinned(&producer("k:1", "n"), &writes);
        let reads = [
            ("auto.offset.reset", "error"),
            ("enable.auto.commit", "false"),
            ("enable.auto.offset.store", "false"),
            ("check.crcs", "true"),
            ("isolation.level", "read_uncommitted"),
            ("enable.partition.eof", "true"),
            ("fetch.error.backoff.ms", "50"),
            ("fetch.queue.backoff.ms", "50"),
        ];
        assert_pinned(&log_consumer("k:1", "n"), &reads);
    }

    #[test]
    fn librdkafka_takes_the_settings() {
        let _: BaseProducer = producer("127.0.0.1:1", "n").create().expect("a producer");
        let _: BaseProducer = heartbeat_producer("127.0.0.1:1", "n")
            .create()
            .expect("a producer");
        let _: BaseConsumer = log_consumer("127.0.0.1:1", "n")
            .create()
            .expect("a consumer");
    }

    #[test]
    fn the_queue_has_room_for_what_slots_may_have_in_flight() {
        let records: usize = QUEUE[0].parse().expect("a number");
        let bytes = QUEUE[1].parse::<usize>().expect("a number") * 1_024;
        let slots_at_once = 400;
        assert!(records >= slots_at_once * BATCH_RECORDS_MAX);
        assert!(bytes >= slots_at_once * BATCH_BYTES_MAX);
    }
}
