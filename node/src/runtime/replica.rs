//! The task of one replica: carries what happens to its state machine and does what the machine says.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use kvcluster_crds::{NodeId, Offset, SlotId};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::registry::Registry;
use super::restore::Restorer;
use crate::effect::{Effect, Idempotency, Loaded};
use crate::log::{Follow, Log, Sink};
use crate::service::{ReadPermit, SlotError};
use crate::slot::election::Hints;
use crate::slot::{Behind, Input, Output, RequestId, SlotMachine, WriteRequest};
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
        idempotency: Option<Idempotency>,
        deadline_ns: u64,
        answer: oneshot::Sender<Result<Written, SlotError>>,
    },
    Read {
        deadline_ns: u64,
        answer: oneshot::Sender<Result<ReadPermit, SlotError>>,
    },
}

/// What became of a write.
#[derive(Debug)]
pub(super) enum Written {
    /// Its record counts.
    Now(Offset),
    /// A request with its idempotency key took effect before; to be said once the permit is confirmed.
    Before {
        version: Offset,
        is_same: bool,
        permit: ReadPermit,
    },
}

/// A replica and its edges.
pub(super) struct Replica {
    pub(super) machine: SlotMachine,
    pub(super) registry: Arc<Registry>,
    pub(super) log: Arc<dyn Log>,
    pub(super) store: Arc<dyn Store>,
    pub(super) restorer: Arc<Restorer>,
    /// Where the log tells what happens, for following it once more.
    pub(super) sink: Sink,
    /// See [`Follow::records_max`].
    pub(super) records_max: i64,
}

/// Why the task of a replica ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The slot is not assigned to this node any more; nobody waits for anything of it.
    Unassigned,
    /// A channel has closed, which happens only when the process ends.
    Broken,
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
    writes: HashMap<RequestId, oneshot::Sender<Result<Written, SlotError>>>,
    reads: HashMap<RequestId, oneshot::Sender<Result<ReadPermit, SlotError>>>,
    /// While the state is replaced by a snapshot; gives the new one, or none when the log is to be read after all.
    restoring: Option<BoxFuture<'static, Option<Loaded>>>,
}

impl Replica {
    /// Runs until the slot is not assigned to this node any more.
    pub(super) async fn run(self, mut inputs: Inputs) -> Ended {
        let mut running = Running {
            slot: self.machine.settings().slot,
            replica: self,
            hints: Hints::default(),
            serving: None,
            news: true,
            last_id: 0,
            writes: HashMap::new(),
            reads: HashMap::new(),
            restoring: None,
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
                        return Ended::Broken;
                    }
                }
                _ = ticks.tick() => {
                    running.tick();
                    if running.may_end() {
                        return Ended::Unassigned;
                    }
                }
                () = inputs.stop.cancelled(), if !stopped => {
                    stopped = true;
                    running.step(Input::Stop);
                }
                count = inputs.requests.recv_many(&mut asked, INPUTS_AT_ONCE) => {
                    if count == 0 {
                        return Ended::Broken;
                    }
                }
                restored = running.restored() => running.follow_anew(restored),
                count = inputs.records.recv_many(&mut read, INPUTS_AT_ONCE) => {
                    if count == 0 {
                        return Ended::Broken;
                    }
                }
            }
            for input in told.drain(..).chain(read.drain(..)) {
                running.take(input);
            }
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

    fn wall_ms(&self) -> u64 {
        self.replica.registry.config().clock.wall_ms()
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

    /// Whether it has no task left here. While the assignment is not known, or stays away, everything goes on as it was.
    fn may_end(&self) -> bool {
        self.replica.registry.is_assigned(self.slot) == Some(false)
            && self.replica.machine.may_end()
    }

    fn request(&mut self, request: Request) {
        self.last_id += 1;
        let id = self.last_id;
        match request {
            Request::Write {
                effects,
                idempotency,
                deadline_ns,
                answer,
            } => {
                self.writes.insert(id, answer);
                self.step(Input::Write(WriteRequest {
                    id,
                    effects,
                    idempotency,
                    wall_ms: self.wall_ms(),
                    deadline_ns,
                }));
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

    /// Takes what the log tells.
    fn take(&mut self, input: Input) {
        if let Input::Behind(behind) = &input {
            self.restore(behind.clone());
        }
        self.step(input);
    }

    fn restore(&mut self, behind: Behind) {
        let restorer = Arc::clone(&self.replica.restorer);
        let slot = self.slot;
        warn!(%slot, reason = behind.reason, "the replica needs a snapshot");
        self.restoring = Some(async move { restorer.restore(slot, &behind).await }.boxed());
    }

    /// Never, while nothing is being restored.
    async fn restored(&mut self) -> Option<Loaded> {
        match &mut self.restoring {
            Some(restoring) => restoring.await,
            None => std::future::pending().await,
        }
    }

    /// Goes on from a snapshot, or from where the replica stood if there is none.
    fn follow_anew(&mut self, restored: Option<Loaded>) {
        self.restoring = None;
        let records_max = if restored.is_none() {
            i64::MAX
        } else {
            self.replica.records_max
        };
        self.step(Input::Restored(restored));
        let position = self.replica.machine.position();
        let follow = Follow::at(self.slot, position, records_max, self.replica.sink.clone());
        self.replica.log.follow(vec![follow]);
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
                    self.answer_write(id, answer.map(Written::Now));
                }
                Output::Repeat {
                    id,
                    version,
                    is_same,
                    permit,
                } => {
                    let before = Written::Before {
                        version,
                        is_same,
                        permit,
                    };
                    self.answer_write(id, Ok(before));
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
                // One that is being restored has said so.
                Output::Frozen(_) if self.restoring.is_some() => {}
                Output::Frozen(reason) => {
                    error!(slot = %self.slot, reason, "the replica stands still");
                }
            }
        }
    }

    fn answer_write(&mut self, id: RequestId, answer: Result<Written, SlotError>) {
        let _ = self.writes.remove(&id).map(|waiting| waiting.send(answer));
    }

    fn publish(&self) {
        let machine = &self.replica.machine;
        let stopped = machine.has_stopped();
        // What was acknowledged here until now is in the view, and while the lease holds nobody else acknowledges anything.
        let wall_ms = self.wall_ms();
        let acknowledged_ms = machine.surely_leads(self.now_ns()).then_some(wall_ms);
        self.replica.registry.publish(
            self.slot,
            machine.view(),
            self.serving,
            acknowledged_ms,
            stopped,
        );
    }
}
