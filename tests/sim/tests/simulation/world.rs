//! The simulated world: one partition, three nodes, clients, and what goes wrong.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use bytes::Bytes;
use kvcluster_crds::{Incarnation, LogId, NodeId, Offset, SlotId};
use kvcluster_node::effect::{Applied, Effect, Idempotency, Loaded, fingerprint};
use kvcluster_node::service::{ReadPermit, SlotError};
use kvcluster_node::slot::dedup::WINDOW_MS;
use kvcluster_node::slot::election::{Hints, PeerHint};
use kvcluster_node::slot::{Input, Output, Settings, SlotMachine, Token, View, WriteRequest};

use super::random::Random;

pub(crate) const LOG: LogId = LogId(1);
const MS: u64 = 1_000_000;
const NODES: usize = 3;
/// Faults happen until here, then everything heals.
const CHAOS_END: u64 = 5_000 * MS;
/// No client begins anything behind this.
const CLIENTS_END: u64 = 9_500 * MS;
const END: u64 = 10_500 * MS;
const LEASE_MS: u32 = 300;
const TICK: u64 = 20 * MS;
/// When the simulation begins by the wall clocks of its nodes, which differ by seconds, milliseconds.
const WALL_MS: u64 = 1_700_000_000_000;
/// A client sends one of so many newest requests with a key once more.
const RETRIED_OF: usize = 8;

/// One life of a node.
pub(crate) struct Process {
    pub(crate) node: usize,
    pub(crate) machine: SlotMachine,
    /// Everything it took into its state, the part restored from its store included.
    pub(crate) applied: Vec<Applied>,
    pub(crate) alive: bool,
    pub(crate) view: View,
    paused_until: u64,
    cursor: i64,
    clock_rate: u64,
    clock_base: u64,
    wall_base_ms: u64,
    last_sent: u64,
    last_acknowledged: u64,
}

/// What a client did.
pub(crate) struct Operation {
    pub(crate) begun: u64,
    pub(crate) ended: Option<u64>,
    pub(crate) kind: Kind,
}

/// What a client wants to take effect once: sent as often as there are operations for it.
#[derive(Clone)]
pub(crate) struct Request {
    pub(crate) key: Option<u64>,
    effects: Vec<Effect>,
}

/// How a write was answered.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Told {
    /// It stands there.
    Done { version: Offset, by_record: bool },
    /// Its key belongs to the request that stands there.
    Reused { version: Offset },
    /// Not done, or not known.
    Refused(SlotError),
}

pub(crate) enum Kind {
    Write {
        request: usize,
        answer: Option<Told>,
    },
    Read {
        version: Option<i64>,
        by_lease: bool,
        refused: bool,
    },
}

enum Event {
    Tick {
        process: usize,
    },
    Fetch {
        process: usize,
    },
    Hints {
        process: usize,
    },
    Arrive {
        process: usize,
        token: Token,
        bytes: Bytes,
    },
    Late {
        bytes: Bytes,
    },
    Fate {
        process: usize,
        input: Input,
    },
    Client,
    Look {
        process: usize,
        operation: usize,
        permit: ReadPermit,
    },
    Confirm {
        process: usize,
        operation: usize,
        permit: ReadPermit,
        version: i64,
    },
    ConfirmRepeat {
        process: usize,
        operation: usize,
        permit: ReadPermit,
        told: Told,
    },
    Fault,
    Restart {
        node: usize,
    },
}

pub(crate) struct World {
    pub(crate) log: Vec<Option<Bytes>>,
    pub(crate) processes: Vec<Process>,
    pub(crate) operations: Vec<Operation>,
    pub(crate) requests: Vec<Request>,
    pub(crate) restarts: u64,
    /// A hash of everything that happened, in order.
    pub(crate) trace: u64,
    pub(crate) frozen: Option<String>,
    current: [usize; NODES],
    random: Random,
    now: u64,
    order: u64,
    events: BinaryHeap<Reverse<(u64, u64)>>,
    bodies: BTreeMap<u64, Event>,
    stalled_until: u64,
}

impl World {
    pub(crate) fn new(seed: u64) -> Self {
        let mut world = Self {
            log: Vec::new(),
            processes: Vec::new(),
            operations: Vec::new(),
            requests: Vec::new(),
            restarts: 0,
            trace: 0,
            frozen: None,
            current: [0; NODES],
            random: Random::new(seed),
            now: 1_000 * MS,
            order: 0,
            events: BinaryHeap::new(),
            bodies: BTreeMap::new(),
            stalled_until: 0,
        };
        for node in 0..NODES {
            world.start(node, Vec::new());
        }
        world.at(0, Event::Client);
        world.at(200 * MS, Event::Fault);
        world
    }

    pub(crate) fn run(&mut self) {
        let start = self.now;
        while let Some(Reverse((time, order))) = self.events.pop() {
            if time - start > END {
                break;
            }
            self.now = time;
            let event = self.bodies.remove(&order).expect("every event has a body");
            self.happen(event, time - start);
        }
    }

    /// The process that runs on a node now.
    pub(crate) fn running(&self) -> impl Iterator<Item = &Process> {
        self.processes.iter().filter(|process| process.alive)
    }

    fn at(&mut self, after: u64, event: Event) {
        self.order += 1;
        self.events.push(Reverse((self.now + after, self.order)));
        self.bodies.insert(self.order, event);
    }

    fn start(&mut self, node: usize, applied: Vec<Applied>) {
        let loaded = stored(&applied);
        let clock_base = self.random.within(0, 1 << 40);
        let clock_rate = self.random.within(960, 1_041);
        let incarnation = Incarnation(self.random.next());
        let settings = Settings {
            slot: SlotId(0),
            node: NodeId(node as u32),
            incarnation,
            log_id: LOG,
            lease_ms: LEASE_MS,
            reads_by_lease: !self.random.chance(100),
            dedup_entries_max: usize::MAX,
            life: 0,
        };
        let now = clock_base + self.now / 1_000 * clock_rate;
        let wall_base_ms = WALL_MS + self.random.within(0, 5_000);
        let cursor = SlotMachine::follow_from(&loaded.position).0;
        let machine = SlotMachine::new(settings, loaded, now);
        let process = self.processes.len();
        self.processes.push(Process {
            node,
            view: machine.view(),
            machine,
            applied,
            alive: true,
            paused_until: 0,
            cursor,
            clock_rate,
            clock_base,
            wall_base_ms,
            last_sent: 0,
            last_acknowledged: 0,
        });
        self.current[node] = process;
        self.at(TICK, Event::Tick { process });
        self.at(MS, Event::Fetch { process });
        self.at(2 * MS, Event::Hints { process });
    }

    fn happen(&mut self, event: Event, elapsed: u64) {
        let chaos = elapsed < CHAOS_END;
        if let Some((process, wait)) = self.held_up(&event) {
            // A process that stands still meets what happened meanwhile when it goes on; its clock went on.
            if self.processes[process].alive {
                return self.at(wait, event);
            }
            return;
        }
        match event {
            Event::Tick { process } => {
                self.step(process, Input::Tick);
                self.at(TICK, Event::Tick { process });
            }
            Event::Fetch { process } => self.fetch(process, chaos),
            Event::Hints { process } => self.hint(process, chaos),
            Event::Arrive {
                process,
                token,
                bytes,
            } => self.arrive(process, token, bytes, chaos),
            Event::Late { bytes } => self.log.push(Some(bytes)),
            Event::Fate { process, input } => self.step(process, input),
            Event::Client => self.client(elapsed),
            Event::Look {
                process,
                operation,
                permit,
            } => {
                let version = self.processes[process].version();
                let wait = self.some_time(chaos);
                self.at(
                    wait,
                    Event::Confirm {
                        process,
                        operation,
                        permit,
                        version,
                    },
                );
            }
            Event::Confirm {
                process,
                operation,
                permit,
                version,
            } => {
                let confirmed = permit.confirm(self.processes[process].clock(self.now));
                let done = &mut self.operations[operation];
                if let Kind::Read {
                    version: seen,
                    refused,
                    by_lease,
                    ..
                } = &mut done.kind
                {
                    *by_lease = matches!(permit, ReadPermit::Lease(_));
                    *refused = !confirmed;
                    if confirmed {
                        *seen = Some(version);
                        done.ended = Some(self.now);
                    }
                }
            }
            Event::ConfirmRepeat {
                process,
                operation,
                permit,
                told,
            } => {
                if permit.confirm(self.processes[process].clock(self.now)) {
                    self.told(operation, told);
                }
            }
            Event::Fault if chaos => self.fault(),
            Event::Fault => {}
            Event::Restart { node } => self.restart(node),
        }
    }

    /// The process that an event needs, if it is dead or paused, and for how long.
    fn held_up(&self, event: &Event) -> Option<(usize, u64)> {
        let process = match event {
            Event::Tick { process }
            | Event::Fetch { process }
            | Event::Hints { process }
            | Event::Fate { process, .. }
            | Event::Look { process, .. }
            | Event::Confirm { process, .. }
            | Event::ConfirmRepeat { process, .. } => *process,
            _ => return None,
        };
        let state = &self.processes[process];
        let waits = !state.alive || state.paused_until > self.now;
        waits.then(|| (process, state.paused_until.saturating_sub(self.now)))
    }

    fn step(&mut self, process: usize, input: Input) {
        let now = self.processes[process].clock(self.now);
        let outputs = self.processes[process].machine.step(now, input);
        for output in outputs {
            self.note(&output);
            match output {
                Output::Append { token, bytes } => self.append(process, token, bytes),
                Output::Apply(applied) => self.processes[process].applied.push(applied),
                Output::WriteAnswer { id, answer } => {
                    let told = match answer {
                        Ok(version) => Told::Done {
                            version,
                            by_record: true,
                        },
                        Err(error) => Told::Refused(error),
                    };
                    self.told(id as usize, told);
                }
                Output::Repeat {
                    id,
                    version,
                    is_same,
                    permit,
                } => {
                    let by_record = false;
                    let told = if is_same {
                        Told::Done { version, by_record }
                    } else {
                        Told::Reused { version }
                    };
                    let wait = self.until_looked(&permit);
                    let operation = id as usize;
                    self.at(
                        wait,
                        Event::ConfirmRepeat {
                            process,
                            operation,
                            permit,
                            told,
                        },
                    );
                }
                Output::ReadAnswer { id, answer } => {
                    if let Ok(permit) = answer {
                        let operation = id as usize;
                        let wait = self.until_looked(&permit);
                        self.at(
                            wait,
                            Event::Look {
                                process,
                                operation,
                                permit,
                            },
                        );
                    }
                }
                Output::Frozen(reason) => self.frozen = Some(reason),
                Output::Place(_) => {}
            }
        }
        self.processes[process].view = self.processes[process].machine.view();
    }

    fn told(&mut self, operation: usize, told: Told) {
        let operation = &mut self.operations[operation];
        let Kind::Write { answer, .. } = &mut operation.kind else {
            panic!("an answer to a write that is a read");
        };
        assert!(answer.is_none(), "a write was answered twice");
        *answer = Some(told);
        operation.ended = Some(self.now);
    }

    /// How long it takes from a permit until it is made use of.
    fn until_looked(&mut self, permit: &ReadPermit) -> u64 {
        let lingers = matches!(permit, ReadPermit::Record(_)) && self.random.chance(150);
        if lingers {
            self.random.within(0, 1_500 * MS)
        } else {
            self.some_time(true)
        }
    }

    fn note(&mut self, output: &Output) {
        let text = format!("{} {output:?}", self.now);
        self.trace = self.trace.rotate_left(5) ^ xxhash_rust::xxh3::xxh3_64(text.as_bytes());
    }

    /// Hands a record to the network: in order for each process, however long it takes.
    fn append(&mut self, process: usize, token: Token, bytes: Bytes) {
        let stall = self.stalled_until.saturating_sub(self.now);
        let delay = self.random.within(MS / 5, 4 * MS) + stall;
        let state = &mut self.processes[process];
        state.last_sent = state.last_sent.max(self.now + delay) + 1;
        let wait = state.last_sent - self.now;
        self.at(
            wait,
            Event::Arrive {
                process,
                token,
                bytes,
            },
        );
    }

    fn arrive(&mut self, process: usize, token: Token, bytes: Bytes, chaos: bool) {
        let offset = Offset(self.log.len() as i64);
        let dice = if chaos {
            self.random.within(0, 1_000)
        } else {
            999
        };
        let mut input = Input::Delivered { token, offset };
        match dice {
            // Lost, and nobody knows.
            0..8 => input = Input::DeliveryUnknown { token },
            // There, and nobody knows.
            8..16 => {
                self.log.push(Some(bytes));
                input = Input::DeliveryUnknown { token };
            }
            // Given up by the client, and there much later.
            16..26 => {
                let wait = self.random.within(MS, 1_500 * MS);
                self.at(wait, Event::Late { bytes });
                input = Input::DeliveryUnknown { token };
            }
            // There, and there again later.
            26..36 => {
                let wait = self.random.within(0, 900 * MS);
                self.at(
                    wait,
                    Event::Late {
                        bytes: bytes.clone(),
                    },
                );
                self.log.push(Some(bytes));
            }
            _ => self.log.push(Some(bytes)),
        }
        let delay = self.some_time(chaos);
        let state = &mut self.processes[process];
        state.last_acknowledged = state.last_acknowledged.max(self.now + delay) + 1;
        let wait = state.last_acknowledged - self.now;
        self.at(wait, Event::Fate { process, input });
    }

    fn fetch(&mut self, process: usize, chaos: bool) {
        let most = self.random.within(1, 20);
        for _ in 0..most {
            let cursor = self.processes[process].cursor;
            let Some(place) = self.log.get(cursor as usize).cloned() else {
                break;
            };
            self.processes[process].cursor += 1;
            if let Some(bytes) = place {
                self.step(
                    process,
                    Input::Record {
                        offset: Offset(cursor),
                        bytes,
                    },
                );
            }
        }
        let end = self.log.len() as i64;
        if self.processes[process].cursor == end {
            self.step(process, Input::CaughtUp);
        } else {
            self.step(process, Input::End(Offset(end)));
        }
        let slow = chaos && self.random.chance(5);
        let wait = self
            .random
            .within(MS / 2, if slow { 700 * MS } else { 6 * MS });
        self.at(wait, Event::Fetch { process });
    }

    fn hint(&mut self, process: usize, chaos: bool) {
        let me = self.processes[process].node;
        let turn = if chaos { self.now / (2_500 * MS) } else { 0 };
        let mut peers = Vec::new();
        for node in (0..NODES).filter(|node| *node != me) {
            let peer = &self.processes[self.current[node]];
            let (alive, view) = (peer.alive, peer.view.clone());
            let paused = peer.paused_until > self.now;
            let incarnation = peer.machine_incarnation();
            let wrong = chaos && self.random.chance(100);
            peers.push(PeerHint {
                node: NodeId(node as u32),
                incarnation: Some(incarnation),
                alive: (alive && !paused) != wrong,
                can_lead: view.can_lead,
                serves: view.role == kvcluster_crds::SlotRole::Leader,
            });
        }
        let hints = Hints {
            voters: (0..NODES as u32).map(NodeId).collect(),
            preferred: Some(NodeId((turn % NODES as u64) as u32)),
            peers,
            heartbeats_return: !(chaos && self.random.chance(50)),
            memory_to_spare: !(chaos && self.random.chance(50)),
        };
        self.step(process, Input::Hints(hints));
        let wait = self.random.within(20 * MS, 80 * MS);
        self.at(wait, Event::Hints { process });
    }

    fn client(&mut self, elapsed: u64) {
        let leaders: Vec<usize> = (0..self.processes.len())
            .filter(|process| self.processes[*process].alive)
            .filter(|p| self.processes[*p].view.role == kvcluster_crds::SlotRole::Leader)
            .collect();
        let process = match leaders.len() {
            0 => self.current[self.random.within(0, NODES as u64) as usize],
            count => leaders[self.random.within(0, count as u64) as usize],
        };
        let ready =
            self.processes[process].alive && self.processes[process].paused_until <= self.now;
        if ready {
            for _ in 0..self.random.within(1, 5) {
                self.operate(process);
            }
        }
        let quiet = elapsed < CHAOS_END && self.random.chance(15);
        let wait = self
            .random
            .within(MS, if quiet { 900 * MS } else { 25 * MS });
        if elapsed + wait < CLIENTS_END {
            self.at(wait, Event::Client);
        }
    }

    fn operate(&mut self, process: usize) {
        let id = self.operations.len() as u64;
        let patience = self.random.within(50, 1_500) * MS;
        let deadline_ns = self.processes[process].clock(self.now) + patience;
        let request = self.random.chance(500).then(|| self.request());
        let kind = match request {
            Some(request) => Kind::Write {
                request,
                answer: None,
            },
            None => Kind::Read {
                version: None,
                by_lease: false,
                refused: false,
            },
        };
        self.operations.push(Operation {
            begun: self.now,
            ended: None,
            kind,
        });
        let input = match request {
            Some(request) => {
                let Request { key, effects } = self.requests[request].clone();
                Input::Write(WriteRequest {
                    id,
                    idempotency: key.map(|key| Idempotency {
                        key: Bytes::copy_from_slice(&key.to_be_bytes()),
                        fingerprint: fingerprint(&effects),
                    }),
                    effects,
                    wall_ms: self.processes[process].wall_base_ms + self.now / MS,
                    deadline_ns,
                })
            }
            None => Input::Read { id, deadline_ns },
        };
        self.step(process, input);
    }

    /// A request that was sent before, whatever became of it, or a new one; now and then with the key of another.
    fn request(&mut self) -> usize {
        let named = self.requests.iter().enumerate().rev();
        let named = named.filter_map(|(number, request)| Some((number, request.key?)));
        let named: Vec<(usize, u64)> = named.take(RETRIED_OF).collect();
        let earlier = (!named.is_empty()).then(|| {
            let place = self.random.within(0, named.len() as u64);
            named[place as usize]
        });
        let number = self.requests.len();
        let key = match earlier {
            Some((number, _)) if self.random.chance(300) => return number,
            Some((_, key)) if self.random.chance(30) => Some(key),
            _ => self.random.chance(500).then_some(number as u64),
        };
        let name = Bytes::from_static(b"k");
        let value = Bytes::copy_from_slice(&(number as u64).to_be_bytes());
        let mut effects = vec![Effect::Put {
            key: name.clone(),
            value,
        }];
        if self.random.chance(100) {
            effects.push(Effect::Delete { key: name });
        }
        self.requests.push(Request { key, effects });
        number
    }

    fn fault(&mut self) {
        let node = self.random.within(0, NODES as u64) as usize;
        let process = self.current[node];
        match self.random.within(0, 8) {
            0 | 1 => {
                if self.processes[process].alive {
                    self.processes[process].alive = false;
                    let wait = self.random.within(MS, 1_200 * MS);
                    self.at(wait, Event::Restart { node });
                }
            }
            2 | 3 => {
                let pause = self.random.within(MS, 900 * MS);
                self.processes[process].paused_until = self.now + pause;
            }
            4 => self.log.push(Some(Bytes::from_static(b"somebody else's"))),
            5 => self.log.push(None),
            6 => self.stalled_until = self.now + self.random.within(MS, 700 * MS),
            _ => {
                if self.processes[process].alive && self.processes[process].paused_until <= self.now
                {
                    self.step(process, Input::Stop);
                    let wait = self.random.within(10 * MS, 100 * MS);
                    self.at(wait, Event::Restart { node });
                }
            }
        }
        let wait = self.random.within(20 * MS, 700 * MS);
        self.at(wait, Event::Fault);
    }

    /// A node comes back from what its store had committed: any prefix of what it had applied.
    fn restart(&mut self, node: usize) {
        let old = &mut self.processes[self.current[node]];
        old.alive = false;
        let mut applied = old.applied.clone();
        let lost = self.random.within(0, 30) as usize;
        applied.truncate(applied.len().saturating_sub(lost));
        self.restarts += 1;
        self.start(node, applied);
    }

    fn some_time(&mut self, chaos: bool) -> u64 {
        let slow = chaos && self.random.chance(20);
        self.random.within(0, if slow { 500 * MS } else { 2 * MS })
    }
}

impl Process {
    /// The clock of the machine's node.
    fn clock(&self, now: u64) -> u64 {
        self.clock_base + now / 1_000 * self.clock_rate
    }

    /// Offset of the last record that changed the one key that there is; −1 before the first.
    fn version(&self) -> i64 {
        let changed = self
            .applied
            .iter()
            .rev()
            .find(|applied| !applied.effects.is_empty());
        changed.map_or(-1, |applied| applied.offset.0)
    }

    fn machine_incarnation(&self) -> Incarnation {
        self.machine.settings().incarnation
    }
}

/// What a store that has taken these records gives back.
fn stored(applied: &[Applied]) -> Loaded {
    let Some(last) = applied.last() else {
        return Loaded::start();
    };
    let position = last.position.clone();
    let entries = applied.iter().filter_map(|applied| applied.dedup.clone());
    let young = entries.filter(|entry| entry.time_ms + WINDOW_MS > position.time_ms);
    Loaded {
        dedup: young.collect(),
        position,
    }
}
