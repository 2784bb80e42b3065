//! Logs with one flaw each.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures::FutureExt;
use futures::future::LocalBoxFuture;
use kvcluster_crds::{Offset, SlotId};
use kvcluster_node::log::{Follow, Log, Sink};
use kvcluster_node::slot::{Input, Token};
use tokio::sync::mpsc;

use crate::broker::sim::SimKafka;
use crate::broker::{Broker, End, Node, Wire};

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flaw {
    FatesTwice,
    FatesOneOffsetLater,
    FatesOfFewLost,
    UnknownCalledDelivered,
    DeliveredCalledUnknown,
    RecordsTwice,
    FewRecordsLost,
    RecordsSwapped,
    RecordsDamaged,
    RecordsOneOffsetLater,
    EmptyRecordsPassedOver,
    ForeignSkipped,
    EndsUntold,
    EndsToldTooEarly,
    HintsUntold,
    FreezesUntold,
    AppendedTwice,
    LargeOnesDropped,
    SlotsMixed,
    BeginsAtZero,
    LosesWhatWasHeld,
    MemoryUnminded,
    FollowsOneOnly,
    EndsNothing,
}

use Flaw as F;

pub(super) const ALL: [Flaw; 24] = [
    F::FatesTwice,
    F::FatesOneOffsetLater,
    F::FatesOfFewLost,
    F::UnknownCalledDelivered,
    F::DeliveredCalledUnknown,
    F::RecordsTwice,
    F::FewRecordsLost,
    F::RecordsSwapped,
    F::RecordsDamaged,
    F::RecordsOneOffsetLater,
    F::EmptyRecordsPassedOver,
    F::ForeignSkipped,
    F::EndsUntold,
    F::EndsToldTooEarly,
    F::HintsUntold,
    F::FreezesUntold,
    F::AppendedTwice,
    F::LargeOnesDropped,
    F::SlotsMixed,
    F::BeginsAtZero,
    F::LosesWhatWasHeld,
    F::MemoryUnminded,
    F::FollowsOneOnly,
    F::EndsNothing,
];

/// Every so many records something happens to one.
const FEW: u64 = 7;
/// Dropped by a log that cannot carry large records, bytes.
const LARGE: usize = 1_000_000;

pub(super) struct FlawedKafka {
    inner: SimKafka,
    flaw: Flaw,
}

impl FlawedKafka {
    pub(super) fn new(inner: SimKafka, flaw: Flaw) -> Self {
        Self { inner, flaw }
    }
}

impl Broker for FlawedKafka {
    fn node(&self) -> LocalBoxFuture<'_, Node> {
        async {
            let node = if self.flaw == F::MemoryUnminded {
                self.inner.node_without_memory()
            } else {
                self.inner.node().await
            };
            let log = FlawedLog {
                inner: node.log,
                flaw: self.flaw,
                appended: AtomicU64::new(0),
                followed: AtomicU64::new(0),
            };
            let wire = FlawedWire {
                inner: node.wire,
                flaw: self.flaw,
            };
            Node {
                log: Arc::new(log),
                wire: Box::new(wire),
                memory: node.memory,
            }
        }
        .boxed_local()
    }

    fn foreign(&self, slot: u32, bytes: Bytes) -> LocalBoxFuture<'_, i64> {
        self.inner.foreign(slot, bytes)
    }

    fn transaction(&self, slot: u32, bytes: Bytes, end: End) -> LocalBoxFuture<'_, i64> {
        self.inner.transaction(slot, bytes, end)
    }

    fn trim(&self, slot: u32, before: i64) -> LocalBoxFuture<'_, ()> {
        self.inner.trim(slot, before)
    }

    fn make_anew(&self) -> LocalBoxFuture<'_, ()> {
        self.inner.make_anew()
    }

    fn ends(&self, slot: u32) -> LocalBoxFuture<'_, (i64, i64)> {
        self.inner.ends(slot)
    }

    fn contents(&self, slot: u32) -> LocalBoxFuture<'_, Vec<(i64, Bytes)>> {
        self.inner.contents(slot)
    }
}

struct FlawedWire {
    inner: Box<dyn Wire>,
    flaw: Flaw,
}

impl Wire for FlawedWire {
    fn cut(&self, cut: kvcluster_sim::log::Cut) {
        self.inner.cut(cut);
    }

    fn heal(&self) {
        if self.flaw == F::LosesWhatWasHeld {
            self.inner.give_up();
            self.inner.heal_anew();
        } else {
            self.inner.heal();
        }
    }

    fn heal_anew(&self) {
        self.inner.heal_anew();
    }

    fn give_up(&self) {
        self.inner.give_up();
    }
}

struct FlawedLog {
    inner: Arc<dyn Log>,
    flaw: Flaw,
    appended: AtomicU64,
    followed: AtomicU64,
}

impl Log for FlawedLog {
    fn follow(&self, slots: Vec<Follow>) {
        let flawed = slots.into_iter().filter_map(|follow| {
            let number = self.followed.fetch_add(1, Ordering::SeqCst);
            if self.flaw == F::FollowsOneOnly && number > 0 {
                return None;
            }
            let (records_in, mut records) = mpsc::channel(follow.sink.records.max_capacity());
            let (fates_in, mut fates) = mpsc::unbounded_channel();
            let Sink {
                records: to_records,
                fates: to_fates,
            } = follow.sink;
            let flaw = self.flaw;
            tokio::spawn(async move {
                let mut state = State::default();
                while let Some(input) = records.recv().await {
                    for input in state.read(flaw, input) {
                        if to_records.send(input).await.is_err() {
                            return;
                        }
                    }
                }
            });
            tokio::spawn(async move {
                let mut told = 0;
                while let Some(fate) = fates.recv().await {
                    told += 1;
                    for fate in tell(flaw, told, fate) {
                        if to_fates.send(fate).is_err() {
                            return;
                        }
                    }
                }
            });
            Some(Follow {
                from: if flaw == F::BeginsAtZero {
                    Offset(0)
                } else {
                    follow.from
                },
                sink: Sink {
                    records: records_in,
                    fates: fates_in,
                },
                ..follow
            })
        });
        let flawed = flawed.collect();
        self.inner.follow(flawed);
    }

    fn unfollow(&self, slot: SlotId) {
        if self.flaw != F::EndsNothing {
            self.inner.unfollow(slot);
        }
    }

    fn append(&self, slot: SlotId, token: Token, bytes: &Bytes) {
        let number = self.appended.fetch_add(1, Ordering::SeqCst);
        match self.flaw {
            F::LargeOnesDropped if bytes.len() > LARGE => return,
            F::SlotsMixed if slot.0 > 0 => return self.inner.append(SlotId(0), token, bytes),
            F::AppendedTwice if number % FEW == 1 => {
                self.inner.append(slot, Token(u64::MAX - number), bytes);
            }
            _ => {}
        }
        self.inner.append(slot, token, bytes);
    }
}

/// What a flawed reader remembers.
#[derive(Default)]
struct State {
    records: u64,
    held: Option<Input>,
}

impl State {
    fn read(&mut self, flaw: Flaw, input: Input) -> Vec<Input> {
        match input {
            Input::Record { offset, bytes } => {
                self.records += 1;
                self.record(flaw, offset, bytes)
            }
            Input::CaughtUp if flaw == F::EndsUntold => vec![],
            Input::End(_) if flaw == F::HintsUntold => vec![],
            Input::Freeze(_) | Input::Behind(_) if flaw == F::FreezesUntold => vec![],
            other => self.held.take().into_iter().chain([other]).collect(),
        }
    }

    fn record(&mut self, flaw: Flaw, offset: Offset, bytes: Bytes) -> Vec<Input> {
        let is_one_of_few = self.records % FEW == 1;
        let input = Input::Record {
            offset,
            bytes: bytes.clone(),
        };
        match flaw {
            F::RecordsTwice => vec![input.clone(), input],
            F::FewRecordsLost if is_one_of_few => vec![],
            F::EmptyRecordsPassedOver if bytes.is_empty() => vec![],
            F::ForeignSkipped if !bytes.starts_with(b"record") => vec![],
            F::EndsToldTooEarly => vec![Input::CaughtUp, input],
            F::RecordsOneOffsetLater => vec![Input::Record {
                offset: offset.next(),
                bytes,
            }],
            F::RecordsDamaged => vec![Input::Record {
                offset,
                bytes: bytes.iter().map(|byte| byte ^ 1).collect(),
            }],
            F::RecordsSwapped => {
                let before = self.held.take();
                if before.is_none() {
                    self.held = Some(input);
                    return vec![];
                }
                [input].into_iter().chain(before).collect()
            }
            _ => vec![input],
        }
    }
}

fn tell(flaw: Flaw, told: u64, fate: Input) -> Vec<Input> {
    match (flaw, fate) {
        (F::FatesTwice, fate) => vec![fate.clone(), fate],
        (F::FatesOfFewLost, _) if told % FEW == 1 => vec![],
        (F::FatesOneOffsetLater, Input::Delivered { token, offset }) => vec![Input::Delivered {
            token,
            offset: offset.next(),
        }],
        (F::DeliveredCalledUnknown, Input::Delivered { token, .. }) => {
            vec![Input::DeliveryUnknown { token }]
        }
        (F::UnknownCalledDelivered, Input::DeliveryUnknown { token }) => vec![Input::Delivered {
            token,
            offset: Offset(0),
        }],
        (_, fate) => vec![fate],
    }
}
