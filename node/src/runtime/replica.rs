//! The task of one replica: carries what happens to its state machine and does what the machine says.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use kvcluster_crds::{NodeId, Offset, SlotId};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use super::registry::Registry;
use crate::effect::Effect;
use crate::log::Log;
use crate::service::{ReadPermit, SlotError};
use crate::slot::election::Hints;
use crate::slot::{Input, Output, RequestId, SlotMachine};
use crate::store::Store;

/// Time between two looks at clocks and hints: short against a lease and the stagger of claims.
const TICK: Duration = Duration::from_millis(20);
/// Inputs that are taken from one channel before the others are looked at.
const INPUTS_AT_ONCE: usize = 256;

/// What the REST side asks of a replica.
#[derive(Debug)]
pub(super) enum Request {
    Write {
        effects: Vec<Effect>,
        deadline_ns: u64,
        answer: oneshot::Sender<Result<Offset, SlotError>>,
    },
    Read {
        deadline_ns: u64,
        answer: oneshot::Sender<Result<ReadPermit, SlotError>>,
    },
}

/// A replica and its edges.
pub(super) struct Replica {
    pub(super) machine: SlotMachine,
    pub(super) registry: Arc<Registry>,
    pub(super) log: Arc<dyn Log>,
    pub(super) store: Arc<dyn Store>,
}

/// Where inputs come from.
pub(super) struct Inputs {
    pub(super) records: mpsc::Receiver<Input>,
    pub(super) fates: mpsc::UnboundedReceiver<Input>,
    pub(super) requests: mpsc::Receiver<Request>,
    pub(super) stop: CancellationToken,
}

struct Running {
    slot: SlotId,
    replica: Replica,
    hints: Hints,
    serving: Option<NodeId>,
    /// Whether others have not seen yet what changed.
    news: bool,
    last_id: RequestId,
    writes: HashMap<RequestId, oneshot::Sender<Result<Offset, SlotError>>>,
    reads: HashMap<RequestId, oneshot::Sender<Result<ReadPermit, SlotError>>>,
}

impl Replica {
    /// Runs until a channel closes, which happens only when the process ends.
    pub(super) async fn run(self, mut inputs: Inputs) {
        let mut running = Running {
            slot: self.machine.settings().slot,
            replica: self,
            hints: Hints::default(),
            serving: None,
            news: true,
            last_id: 0,
            writes: HashMap::new(),
            reads: HashMap::new(),
        };
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut stopped = false;
        let mut told = Vec::with_capacity(INPUTS_AT_ONCE);
        let mut read = Vec::with_capacity(INPUTS_AT_ONCE);
        let mut asked = Vec::with_capacity(INPUTS_AT_ONCE);
        loop {
            // Fates first: they make room for the next batch and answer writes.
            tokio::select! {
                biased;
                count = inputs.fates.recv_many(&mut told, INPUTS_AT_ONCE) => {
                    if count == 0 {
                        return;
                    }
                }
                _ = ticks.tick() => running.tick(),
                () = inputs.stop.cancelled(), if !stopped => {
                    stopped = true;
                    running.step(Input::Stop);
                }
                count = inputs.requests.recv_many(&mut asked, INPUTS_AT_ONCE) => {
                    if count == 0 {
                        return;
                    }
                }
                count = inputs.records.recv_many(&mut read, INPUTS_AT_ONCE) => {
                    if count == 0 {
                        return;
                    }
                }
            }
            told.drain(..)
                .chain(read.drain(..))
                .for_each(|input| running.step(input));
            asked.drain(..).for_each(|request| running.request(request));
            if std::mem::take(&mut running.news) {
                running.publish();
            }
        }
    }
}

impl Running {
    fn now_ns(&self) -> u64 {
        self.replica.registry.config().clock.now_ns()
    }

    fn tick(&mut self) {
        let hints = self.replica.registry.hints(self.now_ns(), self.slot);
        if hints != self.hints {
            self.hints = hints.clone();
            self.step(Input::Hints(hints));
        }
        self.step(Input::Tick);
        self.news = true;
    }

    fn request(&mut self, request: Request) {
        self.last_id += 1;
        let id = self.last_id;
        match request {
            Request::Write {
                effects,
                deadline_ns,
                answer,
            } => {
                self.writes.insert(id, answer);
                self.step(Input::Write {
                    id,
                    effects,
                    deadline_ns,
                });
            }
            Request::Read {
                deadline_ns,
                answer,
            } => {
                self.reads.insert(id, answer);
                self.step(Input::Read { id, deadline_ns });
            }
        }
    }

    fn step(&mut self, input: Input) {
        for output in self.replica.machine.step(self.now_ns(), input) {
            match output {
                Output::Append { token, bytes } => {
                    self.replica.log.append(self.slot, token, &bytes);
                }
                Output::Apply(applied) => {
                    self.replica.store.apply(applied);
                    self.news = true;
                }
                // A client that has gone away does not wait for its answer.
                Output::WriteAnswer { id, answer } => {
                    let _ = self.writes.remove(&id).map(|waiting| waiting.send(answer));
                }
                Output::ReadAnswer { id, answer } => {
                    let _ = self.reads.remove(&id).map(|waiting| waiting.send(answer));
                }
                Output::Place(serving) => {
                    let epoch = self.replica.machine.view().epoch;
                    let node = serving.map(|node| node.0);
                    info!(slot = %self.slot, %epoch, node, "served by");
                    self.serving = serving;
                    self.news = true;
                }
                Output::Frozen(reason) => {
                    error!(slot = %self.slot, reason, "the replica stands still");
                }
            }
        }
    }

    fn publish(&self) {
        let machine = &self.replica.machine;
        let stopped = machine.has_stopped();
        self.replica
            .registry
            .publish(self.slot, machine.view(), self.serving, stopped);
    }
}
