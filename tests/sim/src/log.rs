//! Kafka in memory: partitions that many clients share, and what may happen between a client and the brokers.
//!
//! ```text
//! SimLog::append ──▶ pending ──request──▶ ┊ cut, delay ┊ ──▶ Partition ──answer──▶ ┊ cut, delay, twice ┊ ──▶ fate, once
//! SimLog::follow ──▶ reader task ◀── records, ends ── Partition ◀── foreign records, markers, retention, elections
//! ```
//! What it promises is written down and checked by the conformance suite, which runs the same cases on Kafka. Everything is
//! decided by the seed and by the order in which tasks run; time is tokio's, so that a paused clock makes runs repeatable.

mod client;
mod partition;
mod reader;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use kvcluster_crds::{Offset, SlotId};
use tokio::sync::Notify;

pub use client::{Cut, SimLog};

use client::Client;
use partition::{Origin, Partition};

/// A delay of at least the first and at most the second, drawn anew each time.
pub type Range = (Duration, Duration);

/// How long things take on their way.
#[derive(Clone, Copy, Debug, Default)]
pub struct Delays {
    /// Of a record to the broker.
    pub request: Range,
    /// Of its acknowledgement.
    pub answer: Range,
    /// From when a record can be read to when a reader gets it.
    pub read: Range,
}

/// The brokers of one log topic.
#[derive(Clone)]
pub struct SimBroker(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    /// Told whenever readers may find something new.
    changed: Notify,
}

struct State {
    partitions: Vec<Partition>,
    clients: Vec<Client>,
    /// Acknowledgements that wait until the other replicas have the record.
    unacknowledged: Vec<Unacknowledged>,
    delays: Delays,
    rng: fastrand::Rng,
    producers: u64,
}

struct Unacknowledged {
    client: usize,
    slot: SlotId,
    origin: Origin,
    offset: i64,
}

impl SimBroker {
    /// A topic without a record, with a partition per slot.
    pub fn new(slots: u32, seed: u64) -> Self {
        Self(Arc::new(Shared {
            state: Mutex::new(State {
                partitions: (0..slots).map(|_| Partition::default()).collect(),
                clients: Vec::new(),
                unacknowledged: Vec::new(),
                delays: Delays::default(),
                rng: fastrand::Rng::with_seed(seed),
                producers: 0,
            }),
            changed: Notify::new(),
        }))
    }

    /// How long everything takes from now on; at first, no time.
    pub fn set_delays(&self, delays: Delays) {
        self.0.lock().delays = delays;
    }

    /// A node's own producer and consumer. To be called inside a runtime, which carries what is under way.
    pub fn client(&self, memory_is_full: impl Fn() -> bool + Send + Sync + 'static) -> SimLog {
        SimLog::new(&self.0, Arc::new(memory_is_full))
    }

    /// Appends a record as any other program could; answers its offset.
    pub fn append_foreign(&self, slot: SlotId, bytes: Bytes) -> Offset {
        let offset = self.0.lock().partition(slot).append(None, bytes);
        self.0.changed.notify_waiters();
        Offset(offset)
    }

    /// Uses up an offset without a record, as the end of a transaction does.
    pub fn append_marker(&self, slot: SlotId) -> Offset {
        let offset = self.0.lock().partition(slot).mark();
        self.0.changed.notify_waiters();
        Offset(offset)
    }

    /// Retention, or somebody, removes the records before `offset`.
    pub fn trim(&self, slot: SlotId, offset: Offset) {
        self.0.lock().partition(slot).trim(offset.0);
        self.0.changed.notify_waiters();
    }

    /// The topic is deleted and made again, empty.
    pub fn make_anew(&self) {
        let mut state = self.0.lock();
        let slots = state.partitions.len();
        state.unacknowledged.clear();
        for index in 0..slots {
            state.partitions[index] = Partition::default();
            state.send_again(SlotId(u32::try_from(index).expect("few slots")));
        }
        drop(state);
        self.0.changed.notify_waiters();
    }

    /// While `alone`, no other replica follows the leader of a partition: nothing new is acknowledged or read.
    pub fn set_alone(&self, slot: SlotId, alone: bool) {
        let mut state = self.0.lock();
        state.partition(slot).set_alone(alone);
        state.acknowledge();
        drop(state);
        self.0.changed.notify_waiters();
    }

    /// Another replica leads a partition: what nobody else had is gone, and producers send again what they know no fate of.
    /// Answers how many records are gone.
    pub fn elect(&self, slot: SlotId) -> usize {
        let mut state = self.0.lock();
        let lost = state.partition(slot).elect();
        state.unacknowledged.retain(|waiting| waiting.slot != slot);
        state.send_again(slot);
        drop(state);
        self.0.changed.notify_waiters();
        lost
    }

    /// The first offset that is left of a slot's log, and the next one.
    pub fn ends(&self, slot: SlotId) -> (Offset, Offset) {
        let (start, end) = self.0.lock().partition(slot).ends();
        (Offset(start), Offset(end))
    }

    /// Every record that a slot's log ever held for good, whether or not it was trimmed since.
    pub fn records(&self, slot: SlotId) -> Vec<(Offset, Bytes)> {
        let records = self.0.lock().partition(slot).records();
        let records = records.into_iter();
        records.map(|(at, bytes)| (Offset(at), bytes)).collect()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn partition(&mut self, slot: SlotId) -> &mut Partition {
        let place = self.partitions.get_mut(slot.index());
        place.expect("only slots of the cluster are named")
    }

    /// A broker takes a request.
    fn take(&mut self, client: usize, slot: SlotId, origin: Origin, bytes: Bytes) {
        let offset = self.partition(slot).append(Some(origin), bytes);
        self.unacknowledged.push(Unacknowledged {
            client,
            slot,
            origin,
            offset,
        });
        self.acknowledge();
    }

    /// Puts the acknowledgements that may go on their way.
    fn acknowledge(&mut self) {
        for waiting in std::mem::take(&mut self.unacknowledged) {
            if self.partition(waiting.slot).is_committed(waiting.offset) {
                let delay = self.draw(self.delays.answer);
                self.clients[waiting.client].answer(waiting.origin, waiting.offset, delay);
            } else {
                self.unacknowledged.push(waiting);
            }
        }
    }

    fn send_again(&mut self, slot: SlotId) {
        for index in 0..self.clients.len() {
            let delay = self.draw(self.delays.request);
            self.clients[index].send_again(Some(slot), delay);
        }
    }

    fn draw(&mut self, (least, most): Range) -> Duration {
        let nanos = |time: Duration| u64::try_from(time.as_nanos()).expect("delays are short");
        Duration::from_nanos(self.rng.u64(nanos(least)..=nanos(most)))
    }
}

#[cfg(test)]
mod tests {
    use kvcluster_node::log::{Follow, Log, Sink};
    use kvcluster_node::slot::{Input, Token};
    use tokio::sync::mpsc;

    use super::*;

    const SLOT: SlotId = SlotId(0);

    fn record(number: u64) -> Bytes {
        Bytes::from(format!("record {number}"))
    }

    /// What no test on one broker can show: the conformance suite knows nothing of elections.
    #[tokio::test(start_paused = true)]
    async fn an_election_loses_only_what_nobody_was_told_of_and_producers_send_it_again() {
        let broker = SimBroker::new(1, 1);
        let log = broker.client(|| false);
        let (records_in, mut records) = mpsc::channel(10);
        let (fates_in, mut fates) = mpsc::unbounded_channel();
        let sink = Sink {
            records: records_in,
            fates: fates_in,
        };
        log.follow(vec![Follow {
            slot: SLOT,
            from: Offset(0),
            next: Offset(0),
            records_max: i64::MAX,
            sink,
        }]);
        log.append(SLOT, Token(1), &record(1));
        assert!(matches!(fates.recv().await, Some(Input::Delivered { .. })));
        broker.set_alone(SLOT, true);
        log.append(SLOT, Token(2), &record(2));
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(fates.try_recv().is_err(), "not on all replicas");
        assert_eq!(broker.records(SLOT).len(), 1, "nobody reads it");
        broker.elect(SLOT);
        broker.append_foreign(SLOT, record(3));
        let Some(Input::Delivered { token, offset }) = fates.recv().await else {
            panic!("it is sent again");
        };
        assert_eq!((token, offset), (Token(2), Offset(2)));
        let stands: Vec<_> = broker.records(SLOT).into_iter().map(|(_, it)| it).collect();
        assert_eq!(stands, [1, 3, 2].map(record));
        let mut read = Vec::new();
        while read.len() < 3 {
            if let Some(Input::Record { bytes, .. }) = records.recv().await {
                read.push(bytes);
            }
        }
        assert_eq!(read, stands);
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_comes_twice_is_told_once() {
        let broker = SimBroker::new(1, 1);
        let log = broker.client(|| false);
        log.set_answers_twice(true);
        let (records_in, _records) = mpsc::channel(10);
        let (fates_in, mut fates) = mpsc::unbounded_channel();
        let sink = Sink {
            records: records_in,
            fates: fates_in,
        };
        let (from, next) = (Offset(0), Offset(0));
        log.follow(vec![Follow {
            slot: SLOT,
            from,
            next,
            records_max: i64::MAX,
            sink,
        }]);
        for number in 0..5 {
            log.append(SLOT, Token(number), &record(number));
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        let told = std::iter::from_fn(|| fates.try_recv().ok()).count();
        assert_eq!(told, 5);
    }
}
