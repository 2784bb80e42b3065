//! The metrics of a node, in the text format of Prometheus (OpenMetrics). Names and labels are part of the interface: dashboards
//! and alert rules use them.

use std::sync::Arc;
use std::time::Duration;

use kvcluster_crds::{NodeStatus, SlotId, SlotRole};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use crate::store::batch::Batch;

/// Bounds of the buckets of times, seconds: from a read in memory to a request's deadline.
const SECONDS_BUCKETS: [f64; 14] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
];

/// Labels of finished requests.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RequestLabels {
    /// The route's pattern, or `other`.
    pub route: &'static str,
    /// The HTTP method, or `other`.
    pub method: &'static str,
    /// The HTTP status.
    pub status: u16,
}

/// Labels of the times of requests.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RouteLabels {
    /// The route's pattern, or `other`.
    pub route: &'static str,
    /// The HTTP method, or `other`.
    pub method: &'static str,
}

/// Label of requests that were sent to another node.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ForwardLabels {
    /// `ok`, `refused` (nothing happened), `unknown` or `unreachable`.
    pub outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SlotLabels {
    slot: u32,
}

/// What the REST side counts.
#[derive(Default)]
pub struct RestMetrics {
    /// Finished requests.
    pub requests: Family<RequestLabels, Counter>,
    /// Requests that were sent to another node.
    pub forwards: Family<ForwardLabels, Counter>,
    /// Requests that are being served.
    pub in_flight: Gauge,
    /// Connections that are open.
    pub connections: Gauge,
}

/// What the store counts.
#[derive(Default)]
pub struct StoreMetrics {
    /// Rows that flushes wrote or deleted.
    pub flush_rows: Counter,
    /// Bytes of keys and values that flushes wrote.
    pub flush_bytes: Counter,
    /// Rows that were taken over from a peer's snapshot.
    pub restored_rows: Counter,
    /// Flushes that failed and were tried again.
    pub flush_errors: Counter,
    /// Reads answered by the cache.
    pub cache_hits: Counter,
    /// Reads that went to PostgreSQL.
    pub cache_misses: Counter,
}

/// What is read off the status when the metrics are asked for.
#[derive(Default)]
struct StatusGauges {
    applied: Family<SlotLabels, Gauge>,
    flushed: Family<SlotLabels, Gauge>,
    durable: Family<SlotLabels, Gauge>,
    unflushed_records: Family<SlotLabels, Gauge>,
    epoch: Family<SlotLabels, Gauge>,
    leads: Family<SlotLabels, Gauge>,
    caught_up: Family<SlotLabels, Gauge>,
    frozen: Family<SlotLabels, Gauge>,
    records_valid: Family<SlotLabels, Gauge>,
    records_ignored: Family<SlotLabels, Gauge>,
    unflushed_bytes: Gauge,
    unflushed_bytes_max: Gauge,
    kafka_connected: Gauge,
    postgres_connected: Gauge,
    assignment_version: Gauge,
}

/// All metrics of a process.
pub struct Metrics {
    /// Of the REST side.
    pub rest: RestMetrics,
    /// Of the store.
    pub store: StoreMetrics,
    request_seconds: Family<RouteLabels, Histogram>,
    flush_seconds: Histogram,
    status: StatusGauges,
    registry: Registry,
}

impl Metrics {
    /// Everything at zero.
    pub fn new() -> Arc<Self> {
        let mut registry = Registry::with_prefix("kvcluster");
        let rest = RestMetrics::default();
        let store = StoreMetrics::default();
        let status = StatusGauges::default();
        let request_seconds = Family::new_with_constructor(seconds as fn() -> Histogram);
        let flush_seconds = seconds();
        register_rest(&mut registry, &rest, &request_seconds);
        register_store(&mut registry, &store, &flush_seconds);
        status.register(&mut registry);
        Arc::new(Self {
            rest,
            store,
            request_seconds,
            flush_seconds,
            status,
            registry,
        })
    }

    /// Counts a finished request.
    pub fn observe_request(&self, labels: &RequestLabels, took: Duration) {
        let route = RouteLabels {
            route: labels.route,
            method: labels.method,
        };
        self.request_seconds
            .get_or_create(&route)
            .observe(took.as_secs_f64());
        self.rest.requests.get_or_create(labels).inc();
    }

    /// Counts a flush that was committed.
    pub fn observe_flush(&self, took: Duration, batch: &Batch) {
        self.flush_seconds.observe(took.as_secs_f64());
        self.store.flush_rows.inc_by(batch.rows() as u64);
        self.store.flush_bytes.inc_by(batch.bytes());
    }

    /// Counts rows that were taken over from a peer's snapshot.
    pub fn observe_restored(&self, rows: u64) {
        self.store.restored_rows.inc_by(rows);
    }

    /// The metrics as text, with the node's status as of now.
    pub fn encode(&self, status: &NodeStatus) -> String {
        self.status.set(status);
        let mut text = String::new();
        encode(&mut text, &self.registry).expect("writing to a String does not fail");
        text
    }
}

fn seconds() -> Histogram {
    Histogram::new(SECONDS_BUCKETS)
}

fn register_rest(
    registry: &mut Registry,
    rest: &RestMetrics,
    times: &Family<RouteLabels, Histogram>,
) {
    registry.register("http_requests", "Finished requests", rest.requests.clone());
    registry.register_with_unit(
        "http_request_duration",
        "Time of requests, from their head to the head of the answer",
        Unit::Seconds,
        times.clone(),
    );
    registry.register(
        "http_forwards",
        "Requests sent to other nodes",
        rest.forwards.clone(),
    );
    registry.register(
        "http_in_flight",
        "Requests being served",
        rest.in_flight.clone(),
    );
    registry.register(
        "http_connections",
        "Open connections",
        rest.connections.clone(),
    );
}

fn register_store(registry: &mut Registry, store: &StoreMetrics, times: &Histogram) {
    registry.register_with_unit(
        "flush_duration",
        "Time of flushes that were committed",
        Unit::Seconds,
        times.clone(),
    );
    registry.register(
        "flush_rows",
        "Rows that flushes wrote",
        store.flush_rows.clone(),
    );
    registry.register_with_unit(
        "flush",
        "Bytes of keys and values that flushes wrote",
        Unit::Bytes,
        store.flush_bytes.clone(),
    );
    registry.register(
        "restored_rows",
        "Rows that were taken over from snapshots of other nodes",
        store.restored_rows.clone(),
    );
    registry.register(
        "flush_errors",
        "Flushes that failed and were tried again",
        store.flush_errors.clone(),
    );
    registry.register(
        "cache_hits",
        "Reads answered by the cache",
        store.cache_hits.clone(),
    );
    registry.register(
        "cache_misses",
        "Reads that went to PostgreSQL",
        store.cache_misses.clone(),
    );
}

impl StatusGauges {
    fn register(&self, registry: &mut Registry) {
        for (name, help, family) in self.of_slots() {
            registry.register(name, help, family.clone());
        }
        for (name, help, gauge) in self.of_node() {
            registry.register(name, help, gauge.clone());
        }
    }

    fn of_slots(&self) -> [(&'static str, &'static str, &Family<SlotLabels, Gauge>); 10] {
        [
            (
                "slot_applied_offset",
                "Offset up to which records are in memory",
                &self.applied,
            ),
            (
                "slot_flushed_offset",
                "Offset up to which records are committed",
                &self.flushed,
            ),
            (
                "slot_durable_offset",
                "Offset that no crash takes back",
                &self.durable,
            ),
            (
                "slot_unflushed_records",
                "Records applied, not committed",
                &self.unflushed_records,
            ),
            (
                "slot_epoch",
                "Epoch as of the last applied record",
                &self.epoch,
            ),
            ("slot_leads", "1 when this node leads the slot", &self.leads),
            (
                "slot_caught_up",
                "1 when the log was read to its end",
                &self.caught_up,
            ),
            (
                "slot_frozen",
                "1 when the replica stands still",
                &self.frozen,
            ),
            (
                "slot_records_valid",
                "Records that counted, since the start",
                &self.records_valid,
            ),
            (
                "slot_records_ignored",
                "Records ignored, since the start",
                &self.records_ignored,
            ),
        ]
    }

    fn of_node(&self) -> [(&'static str, &'static str, &Gauge); 5] {
        [
            (
                "unflushed_bytes",
                "Memory of effects not stored for good",
                &self.unflushed_bytes,
            ),
            (
                "unflushed_bytes_max",
                "Above it writes get 429",
                &self.unflushed_bytes_max,
            ),
            (
                "kafka_connected",
                "1 when own heartbeats come back",
                &self.kafka_connected,
            ),
            (
                "postgres_connected",
                "1 when the last flush went well",
                &self.postgres_connected,
            ),
            (
                "assignment_version",
                "Version of the assignment followed",
                &self.assignment_version,
            ),
        ]
    }

    fn set(&self, status: &NodeStatus) {
        let set = |family: &Family<SlotLabels, Gauge>, SlotId(slot): SlotId, value: i64| {
            family.get_or_create(&SlotLabels { slot }).set(value);
        };
        for slot in &status.slots {
            let id = slot.slot;
            set(&self.applied, id, slot.applied);
            set(&self.flushed, id, slot.flushed);
            set(&self.durable, id, slot.durable);
            set(&self.unflushed_records, id, slot.applied - slot.flushed);
            set(&self.epoch, id, slot.epoch.0.cast_signed());
            set(&self.leads, id, (slot.role == SlotRole::Leader).into());
            set(&self.caught_up, id, slot.caught_up.into());
            set(&self.frozen, id, slot.frozen.is_some().into());
            set(&self.records_valid, id, slot.records_valid.cast_signed());
            set(
                &self.records_ignored,
                id,
                slot.records_ignored.cast_signed(),
            );
        }
        self.unflushed_bytes
            .set(status.unflushed_bytes.cast_signed());
        self.unflushed_bytes_max
            .set(status.unflushed_bytes_max.cast_signed());
        self.kafka_connected.set(status.kafka_connected.into());
        self.postgres_connected
            .set(status.postgres_connected.into());
        self.assignment_version
            .set(status.assignment_version.unwrap_or(0).cast_signed());
    }
}
