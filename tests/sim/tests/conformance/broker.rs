//! What the cases of the log need besides the trait [`Log`]: a topic that others change too, and a wire that can be cut.

pub(crate) mod kafka;
pub(crate) mod sim;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::future::LocalBoxFuture;
use kvcluster_crds::{Offset, SlotId};
use kvcluster_node::log::{Follow, Log, Sink};
use kvcluster_node::slot::{Input, Token};
use kvcluster_sim::log::Cut;
use tokio::sync::mpsc;

/// Longest wait for one thing: above the longest that a record may wait for its fate.
const PATIENCE: Duration = Duration::from_secs(80);
/// Slots of every case.
pub(crate) const SLOTS: u32 = 3;

/// How somebody's transaction ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Commit,
    Abort,
    /// Not within the case.
    Never,
}

/// A log topic of its own, and what others do to it.
pub(crate) trait Broker {
    /// A node's producer and consumer.
    fn node(&self) -> LocalBoxFuture<'_, Node>;
    /// Another program appends a record; its offset.
    fn foreign(&self, slot: u32, bytes: Bytes) -> LocalBoxFuture<'_, i64>;
    /// Another program appends a record in a transaction; its offset.
    fn transaction(&self, slot: u32, bytes: Bytes, end: End) -> LocalBoxFuture<'_, i64>;
    /// Records before an offset are removed.
    fn trim(&self, slot: u32, before: i64) -> LocalBoxFuture<'_, ()>;
    /// The topic is deleted and made again.
    fn make_anew(&self) -> LocalBoxFuture<'_, ()>;
    /// The first offset that is left, and the next one.
    fn ends(&self, slot: u32) -> LocalBoxFuture<'_, (i64, i64)>;
    /// What stands in the log, as somebody else reads it.
    fn contents(&self, slot: u32) -> LocalBoxFuture<'_, Vec<(i64, Bytes)>>;
}

/// What happens between a node and the brokers.
pub(crate) trait Wire {
    /// Nothing passes this way any more; it waits.
    fn cut(&self, cut: Cut);
    /// What waited goes on.
    fn heal(&self);
    /// What waited is lost with its connections; new ones can be made.
    fn heal_anew(&self);
    /// The producer is given up when it gets no answer for long.
    fn give_up(&self);
}

/// A node as the log knows it.
pub(crate) struct Node {
    pub(crate) log: Arc<dyn Log>,
    pub(crate) wire: Box<dyn Wire>,
    pub(crate) memory: Arc<Memory>,
}

/// What the log is told of memory.
#[derive(Default)]
pub(crate) struct Memory {
    is_full: AtomicBool,
    looks: AtomicU64,
}

impl Memory {
    /// Whether reading has to wait; the log asks.
    pub(crate) fn look(&self) -> bool {
        let is_full = self.is_full.load(Ordering::SeqCst);
        self.looks.fetch_add(1, Ordering::SeqCst);
        is_full
    }

    fn looks(&self) -> u64 {
        self.looks.load(Ordering::SeqCst)
    }
}

/// The receiving end of a slot.
pub(crate) struct Follower {
    records: mpsc::Receiver<Input>,
    fates: mpsc::UnboundedReceiver<Input>,
}

impl Node {
    pub(crate) fn append(&self, slot: u32, token: u64, bytes: &Bytes) {
        self.log.append(SlotId(slot), Token(token), bytes);
    }

    /// Appends `record(token)` for each token.
    pub(crate) fn append_all(&self, slot: u32, tokens: impl IntoIterator<Item = u64>) {
        for token in tokens {
            self.append(slot, token, &record(token));
        }
    }

    /// Follows slot 0 from its begin.
    pub(crate) fn follow_all(&self) -> Follower {
        self.follow(0, 0, 0)
    }

    pub(crate) fn follow(&self, slot: u32, from: i64, next: i64) -> Follower {
        let (follow, follower) = follow(slot, from, next);
        self.log.follow(vec![follow]);
        follower
    }

    /// Resolves when the log has seen it.
    pub(crate) async fn set_memory_full(&self, full: bool) {
        self.memory.is_full.store(full, Ordering::SeqCst);
        let before = self.memory.looks();
        eventually("the log looks at memory", async || {
            self.memory.looks() > before + 1
        })
        .await;
    }
}

/// What is to be handed to the log, and where it tells.
pub(crate) fn follow(slot: u32, from: i64, next: i64) -> (Follow, Follower) {
    let (records_in, records) = mpsc::channel(kvcluster_node::log::RECORDS_QUEUED_MAX);
    let (fates_in, fates) = mpsc::unbounded_channel();
    let sink = Sink {
        records: records_in,
        fates: fates_in,
    };
    let follow = Follow {
        slot: SlotId(slot),
        from: Offset(from),
        next: Offset(next),
        records_max: i64::MAX,
        sink,
    };
    (follow, Follower { records, fates })
}

impl Follower {
    /// The next thing that is not a hint.
    async fn next(&mut self) -> Input {
        loop {
            match patiently("something is read", self.records.recv()).await {
                Some(Input::End(_)) => {}
                Some(input) => return input,
                None => panic!("the log hung up"),
            }
        }
    }

    /// The next `count` records.
    pub(crate) async fn read(&mut self, count: usize) -> Vec<(i64, Bytes)> {
        let mut records = Vec::new();
        while records.len() < count {
            match self.next().await {
                Input::Record { offset, bytes } => records.push((offset.0, bytes)),
                Input::CaughtUp => {}
                other => panic!("{other:?} instead of a record"),
            }
        }
        records
    }

    /// What is read before the end of the log is told. Ends that were told before without a record between count as one.
    pub(crate) async fn until_caught_up(&mut self) -> Vec<(i64, Bytes)> {
        let mut records = Vec::new();
        loop {
            match self.next().await {
                Input::Record { offset, bytes } => records.push((offset.0, bytes)),
                Input::CaughtUp => return records,
                other => panic!("{other:?} before the end of the log"),
            }
        }
    }

    /// Reads up to a record, and the end of the log behind it.
    pub(crate) async fn until_caught_up_behind(&mut self, last: i64) -> Vec<(i64, Bytes)> {
        let mut records: Vec<(i64, Bytes)> = Vec::new();
        while records.last().is_none_or(|(offset, _)| *offset < last) {
            records.extend(self.until_caught_up().await);
        }
        records
    }

    /// Why the slot is not read on; records before that are passed over. With what would help, where something does.
    pub(crate) async fn freeze(&mut self) -> String {
        loop {
            match self.next().await {
                Input::Freeze(reason) => return reason,
                Input::Behind(behind) => {
                    assert!(!behind.can_replay, "{behind:?}");
                    return format!("{}; {} helps", behind.reason, behind.least);
                }
                _ => {}
            }
        }
    }

    /// The next hint about the log's end that says at least `end`.
    pub(crate) async fn hint(&mut self, end: i64) {
        loop {
            let input = patiently("a hint about the end", self.records.recv()).await;
            if let Some(Input::End(Offset(told))) = input
                && told >= end
            {
                return;
            }
        }
    }

    /// The fates of the next `count` records: tokens, and offsets where they are known.
    pub(crate) async fn fates(&mut self, count: usize) -> Vec<(u64, Option<i64>)> {
        let mut fates = Vec::new();
        while fates.len() < count {
            match patiently("a fate", self.fates.recv()).await {
                Some(Input::Delivered { token, offset }) => fates.push((token.0, Some(offset.0))),
                Some(Input::DeliveryUnknown { token }) => fates.push((token.0, None)),
                other => panic!("{other:?} is no fate"),
            }
        }
        fates
    }

    /// Whether nothing was read that was not taken.
    pub(crate) fn has_no_record(&mut self) -> bool {
        loop {
            match self.records.try_recv() {
                Ok(Input::End(_) | Input::CaughtUp) => {}
                Ok(_) => return false,
                Err(_) => return true,
            }
        }
    }

    /// Whether the log lets go of it, and gave it no record until then.
    pub(crate) async fn is_hung_up(&mut self) -> bool {
        loop {
            match patiently("the log lets go of a slot", self.records.recv()).await {
                Some(Input::End(_) | Input::CaughtUp) => {}
                Some(_) => return false,
                None => return true,
            }
        }
    }

    /// Whether no fate waits.
    pub(crate) fn has_no_fate(&mut self) -> bool {
        self.fates.try_recv().is_err()
    }
}

/// The record that cases append under a token.
pub(crate) fn record(token: u64) -> Bytes {
    Bytes::from(format!("record {token}"))
}

/// What a reader of `tokens` sees from an offset on.
pub(crate) fn records(from: i64, tokens: impl IntoIterator<Item = u64>) -> Vec<(i64, Bytes)> {
    (from..).zip(tokens.into_iter().map(record)).collect()
}

/// The fates of records that all stand, one after the other.
pub(crate) fn delivered(
    from: i64,
    tokens: impl IntoIterator<Item = u64>,
) -> Vec<(u64, Option<i64>)> {
    let tokens = tokens.into_iter().zip(from..);
    tokens
        .map(|(token, offset)| (token, Some(offset)))
        .collect()
}

/// Records in short words.
pub(crate) fn told(records: &[(i64, Bytes)]) -> String {
    let words = records
        .iter()
        .map(|(offset, bytes)| format!("{offset}: {}", bytes.escape_ascii()));
    words.collect::<Vec<_>>().join(", ")
}

/// Fails when something does not come.
pub(crate) async fn patiently<T>(what: &str, it: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, it)
        .await
        .unwrap_or_else(|_| panic!("not within {PATIENCE:?}: {what}"))
}

/// Waits until something holds.
pub(crate) async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let look = Duration::from_millis(20);
    patiently(what, async {
        while !holds().await {
            tokio::time::sleep(look).await;
        }
    })
    .await;
}
