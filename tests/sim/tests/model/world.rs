//! The world that the model explores: one partition, three replicas, one key, and everything that may happen next.

use std::collections::VecDeque;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use bytes::Bytes;
use kvcluster_crds::{Incarnation, LogId, NodeId, Offset, SlotId, SlotRole};
use kvcluster_node::effect::{
    Applied, DedupEntry, Effect, Idempotency, Loaded, SlotPosition, fingerprint,
};
use kvcluster_node::log::codec::Body;
use kvcluster_node::service::{ReadPermit, SlotError};
use kvcluster_node::slot::election::{Hints, PeerHint};
use kvcluster_node::slot::{Input, Output, RequestId, Settings, SlotMachine, Token, WriteRequest};
use kvcluster_sim::rule::Rule;

/// Nodes of the world.
pub(crate) const NODES: usize = 3;
/// One step of the common clock: half a lease of 300 ms.
const TICK_NS: u64 = 150_000_000;
const LOG: LogId = LogId(1);
const KEY: &[u8] = b"k";
/// A hash that is still to be computed.
const UNKNOWN: u64 = 0;
/// Version of a key that was never written.
const ABSENT: i64 = -1;

/// How much may happen: the bounds of the exploration.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) writes: usize,
    pub(crate) reads: usize,
    pub(crate) suspicions: u8,
    pub(crate) hand_overs: u8,
    pub(crate) restarts: u8,
    /// How often the first write is sent again, wherever somebody may lead; if at all, it has an idempotency key.
    pub(crate) retries: u8,
    /// Acknowledgements lost, records held back, records doubled.
    pub(crate) mishaps: u8,
    pub(crate) ticks: u8,
    pub(crate) records: usize,
    /// Nodes that take part; the others stand still.
    pub(crate) nodes: usize,
    pub(crate) reads_by_lease: bool,
    /// The lease that each node claims with, milliseconds.
    pub(crate) lease_ms: [u32; NODES],
    /// How fast each node's clock runs, percent.
    pub(crate) clock_percent: [u64; NODES],
}

/// What happens next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Time passes for everybody.
    Tick,
    /// A node hears nothing of the others any more, and may claim.
    Suspect(usize),
    /// A node is told to give leadership to another.
    HandOver(usize, usize),
    /// A client writes at a node that leads.
    Write(usize),
    /// The client of the first write sends it again, at a node that leads.
    Retry(usize),
    /// A client reads at a node that leads.
    Read(usize),
    /// The oldest record on its way from a node reaches the log.
    Arrive(usize, Fate),
    /// A record that was given up, or doubled, reaches the log.
    ArriveLate(usize),
    /// A node learns the fate of its oldest record.
    Learn(usize),
    /// A node reads the next record of the log.
    Consume(usize),
    /// A read is answered: the state was looked at when the permit came, or just now.
    Answer(usize, Look),
    /// A process dies, and another starts from what was stored.
    Restart(usize, Stored),
}

/// What becomes of a record that reaches the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    Acknowledged,
    /// It stands there, and the producer does not know.
    AcknowledgementLost,
    /// It is held back, perhaps for ever, and the producer does not know.
    HeldBack,
    /// It stands there, and may stand there once more.
    Doubled,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Look {
    Early,
    Late,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stored {
    Everything,
    Nothing,
}

/// One process and what is on its way from and to it.
#[derive(Debug)]
struct Node {
    machine: SlotMachine,
    life: u64,
    cursor: i64,
    /// It has compared the record before its position with what it had read.
    is_verified: bool,
    flying: VecDeque<(Token, Bytes)>,
    fates: VecDeque<Input>,
    position: SlotPosition,
    /// What it has stored of requests.
    dedup: Vec<DedupEntry>,
    version: i64,
    reads: Vec<usize>,
    permits: Vec<ReadPermit>,
    /// Hash of all of it.
    print: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Write {
    floor: i64,
    answer: Answer,
    stands: Option<i64>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Answer {
    Open,
    Done,
    NoEffect,
    Unknown,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Read {
    floor: i64,
    looked: Option<i64>,
    is_open: bool,
}

/// What was seen to happen: an exploration in which nothing happens proves nothing.
#[allow(
    clippy::struct_excessive_bools,
    reason = "each is one thing that happened"
)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Seen {
    pub(crate) writes_done: u8,
    pub(crate) write_lost: bool,
    pub(crate) retry_repeats: bool,
    pub(crate) retry_takes_effect: bool,
    pub(crate) read_by_lease: bool,
    pub(crate) read_by_record: bool,
    pub(crate) read_refused: bool,
    pub(crate) hand_over: bool,
}

#[derive(Clone, Debug)]
pub(crate) struct World {
    limits: Limits,
    spent: [u8; 6],
    now: u64,
    log: Vec<Bytes>,
    rule: Rule,
    late: Vec<Bytes>,
    nodes: [Arc<Node>; NODES],
    writes: Vec<Write>,
    reads: Vec<Read>,
    /// The newest version that a finished operation has shown to a client.
    floor: i64,
    pub(crate) seen: Seen,
    pub(crate) wrong: Option<String>,
}

const SUSPICIONS: usize = 0;
const HAND_OVERS: usize = 1;
const RESTARTS: usize = 2;
const MISHAPS: usize = 3;
const TICKS: usize = 4;
const RETRIES: usize = 5;
/// Names of retries begin here.
const RETRY: RequestId = 100;

impl World {
    /// Node 0 leads, everybody knows it, and nothing was written.
    pub(crate) fn new(limits: Limits) -> Self {
        let node = |index: usize| {
            let machine = machine(&limits, index, 0, Loaded::start(), 0);
            Arc::new(Node::new(machine, 0, Loaded::start(), ABSENT))
        };
        let mut world = Self {
            limits,
            spent: [0; 6],
            now: 0,
            log: Vec::new(),
            rule: Rule::new(LOG),
            late: Vec::new(),
            nodes: [node(0), node(1), node(2)],
            writes: Vec::new(),
            reads: Vec::new(),
            floor: ABSENT,
            seen: Seen::default(),
            wrong: None,
        };
        for index in 0..NODES {
            world.step(index, Input::CaughtUp);
        }
        world.act(Action::Suspect(0));
        world.act(Action::Arrive(0, Fate::Acknowledged));
        world.act(Action::Learn(0));
        world.act(Action::Consume(1));
        world.act(Action::Consume(2));
        for index in 0..NODES {
            world.step(index, Input::Hints(trusting(index)));
        }
        world.spent = [0; 6];
        assert!(world.leads(0) && world.wrong.is_none());
        world
    }

    /// Everything that may happen next.
    pub(crate) fn actions(&self, out: &mut Vec<Action>) {
        if self.wrong.is_some() {
            return;
        }
        let limits = &self.limits;
        let may = |what: usize, most: u8| self.spent[what] < most;
        if may(TICKS, limits.ticks) {
            out.push(Action::Tick);
        }
        let room = self.log.len() < limits.records;
        if room {
            let mut seen: Vec<&Bytes> = Vec::new();
            for (index, bytes) in self.late.iter().enumerate() {
                if !seen.contains(&bytes) {
                    seen.push(bytes);
                    out.push(Action::ArriveLate(index));
                }
            }
        }
        for index in 0..limits.nodes {
            self.actions_of(index, room, out);
        }
        for (number, read) in self.reads.iter().enumerate() {
            if read.is_open && read.looked.is_some() {
                out.push(Action::Answer(number, Look::Early));
                out.push(Action::Answer(number, Look::Late));
            }
        }
    }

    fn actions_of(&self, index: usize, room: bool, out: &mut Vec<Action>) {
        let limits = &self.limits;
        let may = |what: usize, most: u8| self.spent[what] < most;
        let node = &self.nodes[index];
        if may(SUSPICIONS, limits.suspicions) {
            out.push(Action::Suspect(index));
        }
        if self.may_lead(index) {
            if self.writes.len() < limits.writes {
                out.push(Action::Write(index));
            }
            if !self.writes.is_empty() && may(RETRIES, limits.retries) {
                out.push(Action::Retry(index));
            }
            if self.reads.len() < limits.reads {
                out.push(Action::Read(index));
            }
        }
        if self.leads(index) && may(HAND_OVERS, limits.hand_overs) {
            out.push(Action::HandOver(index, (index + 1) % limits.nodes));
        }
        if !node.flying.is_empty() {
            if room {
                out.push(Action::Arrive(index, Fate::Acknowledged));
            }
            if may(MISHAPS, limits.mishaps) {
                if room {
                    out.push(Action::Arrive(index, Fate::AcknowledgementLost));
                    out.push(Action::Arrive(index, Fate::Doubled));
                }
                out.push(Action::Arrive(index, Fate::HeldBack));
            }
        }
        if !node.fates.is_empty() {
            out.push(Action::Learn(index));
        }
        if (node.cursor as usize) < self.log.len() {
            out.push(Action::Consume(index));
        }
        if may(RESTARTS, limits.restarts) {
            out.push(Action::Restart(index, Stored::Everything));
            out.push(Action::Restart(index, Stored::Nothing));
        }
    }

    /// Lets one thing happen.
    pub(crate) fn act(&mut self, action: Action) {
        self.happen(action);
        for node in &mut self.nodes {
            if let Some(node) = Arc::get_mut(node).filter(|node| node.print == UNKNOWN) {
                node.print = node.hash();
            }
        }
    }

    fn happen(&mut self, action: Action) {
        match action {
            Action::Tick => {
                self.spent[TICKS] += 1;
                self.now += TICK_NS;
            }
            Action::Suspect(index) => {
                self.spent[SUSPICIONS] += 1;
                self.step(index, Input::Hints(suspecting(index)));
            }
            Action::HandOver(index, to) => {
                self.spent[HAND_OVERS] += 1;
                self.step(index, Input::Hints(leaving_to(to)));
            }
            Action::Write(index) => {
                let id = self.writes.len() as RequestId;
                self.writes.push(Write {
                    floor: self.floor,
                    answer: Answer::Open,
                    stands: None,
                });
                self.send(index, id, id as u8);
            }
            Action::Retry(index) => {
                let id = RETRY + RequestId::from(self.spent[RETRIES]);
                self.spent[RETRIES] += 1;
                self.send(index, id, 0);
            }
            Action::Read(index) => {
                let id = self.reads.len() as RequestId;
                self.reads.push(Read {
                    floor: self.floor,
                    looked: None,
                    is_open: true,
                });
                self.step(
                    index,
                    Input::Read {
                        id,
                        deadline_ns: u64::MAX,
                    },
                );
            }
            Action::Arrive(index, fate) => self.arrive(index, fate),
            Action::ArriveLate(index) => {
                let bytes = self.late.remove(index);
                self.stand(bytes);
            }
            Action::Learn(index) => {
                let input = self.own(index).fates.pop_front().expect("a fate");
                self.step(index, input);
            }
            Action::Consume(index) => {
                let node = self.own(index);
                let offset = Offset(node.cursor);
                node.cursor += 1;
                node.is_verified = true;
                let bytes = self.log[offset.0 as usize].clone();
                self.step(index, Input::Record { offset, bytes });
                if self.nodes[index].cursor as usize == self.log.len() {
                    self.step(index, Input::CaughtUp);
                }
            }
            Action::Answer(number, look) => self.answer(number, look),
            Action::Restart(index, stored) => self.restart(index, stored),
        }
    }

    /// Sends request `number` to a node.
    fn send(&mut self, index: usize, id: RequestId, number: u8) {
        let effects = vec![Effect::Put {
            key: Bytes::from_static(KEY),
            value: Bytes::copy_from_slice(&[number]),
        }];
        let idempotency = (self.limits.retries > 0).then(|| Idempotency {
            key: Bytes::copy_from_slice(&[number]),
            fingerprint: fingerprint(&effects),
        });
        let write = WriteRequest {
            id,
            effects,
            idempotency,
            wall_ms: 0,
            deadline_ns: u64::MAX,
        };
        self.step(index, Input::Write(write));
    }

    fn clock(&self, index: usize) -> u64 {
        self.now / 100 * self.limits.clock_percent[index]
    }

    fn leads(&self, index: usize) -> bool {
        self.nodes[index].machine.view().role == SlotRole::Leader
    }

    /// Whether the node may take itself for the leader, whether or not it still serves.
    fn may_lead(&self, index: usize) -> bool {
        self.nodes[index].machine.view().leader == Some(NodeId(index as u32))
    }

    fn arrive(&mut self, index: usize, fate: Fate) {
        let (token, bytes) = self.own(index).flying.pop_front().expect("a record");
        let offset = Offset(self.log.len() as i64);
        let mut input = Input::Delivered { token, offset };
        if fate != Fate::Acknowledged {
            self.spent[MISHAPS] += 1;
        }
        match fate {
            Fate::Acknowledged => self.stand(bytes),
            Fate::AcknowledgementLost => {
                self.stand(bytes);
                input = Input::DeliveryUnknown { token };
            }
            Fate::HeldBack => {
                self.hold_back(bytes);
                input = Input::DeliveryUnknown { token };
            }
            Fate::Doubled => {
                self.stand(bytes.clone());
                self.hold_back(bytes);
            }
        }
        self.own(index).fates.push_back(input);
    }

    fn hold_back(&mut self, bytes: Bytes) {
        let place = self.late.partition_point(|other| *other <= bytes);
        self.late.insert(place, bytes);
    }

    /// A record stands in the log now: what it means is decided once and for all.
    fn stand(&mut self, bytes: Bytes) {
        let offset = self.log.len() as i64;
        let counted = self.rule.take(Offset(offset), &bytes);
        self.log.push(bytes);
        let Some(record) = counted else { return };
        match record.body {
            Body::Command { effects, .. } => {
                let Some(Effect::Put { value, .. }) = effects.first() else {
                    return;
                };
                let write = &mut self.writes[usize::from(value[0])];
                let answer = write.answer.clone();
                if write.stands.replace(offset).is_some() {
                    self.fail("a write took effect twice");
                } else if answer == Answer::NoEffect && self.spent[RETRIES] == 0 {
                    self.fail("a write that was said to have no effect took effect");
                }
            }
            Body::Claim { node, .. } => {
                self.seen.hand_over |= node.0 != 0 && self.spent[SUSPICIONS] == 0;
            }
            Body::Renew { .. } | Body::Release { .. } => {}
        }
    }

    fn restart(&mut self, index: usize, stored: Stored) {
        self.spent[RESTARTS] += 1;
        let old = Arc::clone(&self.nodes[index]);
        for (_, bytes) in &old.flying {
            self.hold_back(bytes.clone());
        }
        for read in &old.reads {
            self.reads[*read].is_open = false;
        }
        let everything = || Loaded {
            position: old.position.clone(),
            dedup: old.dedup.clone(),
        };
        let (loaded, version) = match stored {
            Stored::Everything => (everything(), old.version),
            Stored::Nothing => (Loaded::start(), ABSENT),
        };
        let life = old.life + 1;
        let machine = machine(&self.limits, index, life, loaded.clone(), self.clock(index));
        self.nodes[index] = Arc::new(Node::new(machine, life, loaded, version));
        self.step(index, Input::Hints(trusting(index)));
        if self.nodes[index].cursor as usize == self.log.len() {
            self.step(index, Input::CaughtUp);
        }
    }

    fn answer(&mut self, number: usize, look: Look) {
        let owner = self
            .nodes
            .iter()
            .position(|node| node.reads.contains(&number));
        let Some(index) = owner else {
            return self.fail("a read is nobody's");
        };
        let now = self.clock(index);
        let node = self.own(index);
        let place = node.reads.iter().position(|read| *read == number);
        let place = place.expect("the node has the read");
        node.reads.remove(place);
        let (permit, version) = (node.permits.remove(place), node.version);
        let read = &mut self.reads[number];
        read.is_open = false;
        let version = match look {
            Look::Early => read.looked.unwrap_or(version),
            Look::Late => version,
        };
        if !permit.confirm(now) {
            self.seen.read_refused = true;
            return;
        }
        match permit {
            ReadPermit::Lease(_) => self.seen.read_by_lease = true,
            ReadPermit::Record(_) => self.seen.read_by_record = true,
        }
        if version < read.floor {
            let text = format!("read {number} saw version {version}, behind {}", read.floor);
            self.fail(&text);
        }
        self.floor = self.floor.max(version);
    }

    /// A node of this world alone, to be changed.
    fn own(&mut self, index: usize) -> &mut Node {
        let shared = &mut self.nodes[index];
        if Arc::get_mut(shared).is_none() {
            *shared = Arc::new(shared.fork());
        }
        let node = Arc::get_mut(shared).expect("it is nobody else's now");
        node.print = UNKNOWN;
        node
    }

    fn step(&mut self, index: usize, input: Input) {
        let now = self.clock(index);
        for output in self.own(index).machine.step(now, input) {
            match output {
                Output::Append { token, bytes } => {
                    self.own(index).flying.push_back((token, bytes));
                }
                Output::Apply(applied) => self.apply(index, applied),
                Output::WriteAnswer { id, answer } => self.write_answered(id as usize, answer),
                Output::ReadAnswer { id, answer } => {
                    let number = id as usize;
                    let node = self.own(index);
                    let looked = answer.is_ok().then_some(node.version);
                    if let Ok(permit) = answer {
                        node.reads.push(number);
                        node.permits.push(permit);
                    }
                    self.reads[number].looked = looked;
                    self.reads[number].is_open = looked.is_some();
                }
                Output::Repeat {
                    version, is_same, ..
                } => {
                    self.seen.retry_repeats = true;
                    if !is_same || self.writes[0].stands != Some(version.0) {
                        self.fail("a retry was taken for another write");
                    }
                }
                Output::Frozen(reason) => self.fail(&reason),
                Output::Place(_) => {}
            }
        }
        let node = self.own(index);
        if node.is_verified {
            // What stands before is passed over by the machine anyway.
            node.cursor = node.cursor.max(node.machine.view().applied.0);
        }
    }

    fn apply(&mut self, index: usize, applied: Applied) {
        let changes = !applied.effects.is_empty();
        let offset = applied.offset.0;
        if changes && !self.writes.iter().any(|write| write.stands == Some(offset)) {
            self.fail("a replica applied a record that does not count");
        }
        let node = self.own(index);
        if changes {
            node.version = offset;
        }
        node.position = applied.position;
        node.dedup.extend(applied.dedup);
    }

    fn write_answered(&mut self, id: usize, answer: Result<Offset, SlotError>) {
        if id >= RETRY as usize {
            return self.retry_answered(&answer);
        }
        let write = &mut self.writes[id];
        if write.answer != Answer::Open {
            return self.fail("a write was answered twice");
        }
        match answer {
            Ok(offset) => {
                write.answer = Answer::Done;
                let (floor, stands) = (write.floor, write.stands);
                self.seen.writes_done += 1;
                if stands != Some(offset.0) {
                    self.fail("an acknowledged write does not count");
                } else if offset.0 <= floor {
                    self.fail("a write stands before what was seen when it began");
                }
                self.floor = self.floor.max(offset.0);
            }
            Err(SlotError::Unknown { .. }) => write.answer = Answer::Unknown,
            Err(error) => {
                write.answer = Answer::NoEffect;
                // It may be there by another attempt.
                let stands = write.stands.is_some() && self.spent[RETRIES] == 0;
                self.seen.write_lost |= matches!(error, SlotError::Lost { .. });
                if stands {
                    self.fail("a write that took effect was said to have none");
                }
            }
        }
    }

    fn retry_answered(&mut self, answer: &Result<Offset, SlotError>) {
        let Ok(offset) = answer else { return };
        self.seen.retry_takes_effect = true;
        if self.writes[0].stands != Some(offset.0) {
            self.fail("a retry was answered by a record that is not the write's");
        }
        self.floor = self.floor.max(offset.0);
    }

    fn fail(&mut self, what: &str) {
        self.wrong.get_or_insert_with(|| what.to_owned());
    }
}

impl Node {
    fn new(machine: SlotMachine, life: u64, loaded: Loaded, version: i64) -> Self {
        let Loaded { position, dedup } = loaded;
        Self {
            machine,
            life,
            cursor: SlotMachine::follow_from(&position).0,
            is_verified: position.checksum_before.is_none(),
            flying: VecDeque::new(),
            fates: VecDeque::new(),
            position,
            dedup,
            version,
            reads: Vec::new(),
            permits: Vec::new(),
            print: UNKNOWN,
        }
    }

    fn fork(&self) -> Self {
        let mut permits = self.permits.clone();
        Self {
            machine: self.machine.fork(&mut permits),
            life: self.life,
            cursor: self.cursor,
            is_verified: self.is_verified,
            flying: self.flying.clone(),
            fates: self.fates.clone(),
            position: self.position.clone(),
            dedup: self.dedup.clone(),
            version: self.version,
            reads: self.reads.clone(),
            permits,
            print: UNKNOWN,
        }
    }

    fn hash(&self) -> u64 {
        let Self {
            machine,
            life,
            cursor,
            is_verified,
            flying,
            fates,
            position: _,
            dedup: _,
            version,
            reads,
            permits,
            print: _,
        } = self;
        let text = format!(
            "{machine:?} {life} {cursor} {is_verified} {flying:?} {fates:?} {version} {reads:?} {permits:?}"
        );
        xxhash_rust::xxh3::xxh3_64(text.as_bytes())
    }
}

impl Hash for World {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (self.spent, self.now, &self.log, &self.late).hash(state);
        for node in &self.nodes {
            node.print.hash(state);
        }
        (
            &self.writes,
            &self.reads,
            self.floor,
            &self.seen,
            &self.wrong,
        )
            .hash(state);
    }
}

impl PartialEq for World {
    fn eq(&self, other: &Self) -> bool {
        let key = |world: &Self| {
            let mut hasher = xxhash_rust::xxh3::Xxh3Default::new();
            world.hash(&mut hasher);
            hasher.finish()
        };
        key(self) == key(other)
    }
}

fn machine(limits: &Limits, index: usize, life: u64, loaded: Loaded, now: u64) -> SlotMachine {
    let settings = Settings {
        slot: SlotId(0),
        node: NodeId(index as u32),
        incarnation: Incarnation(index as u64 * 100 + life),
        log_id: LOG,
        lease_ms: limits.lease_ms[index],
        reads_by_lease: limits.reads_by_lease,
        dedup_entries_max: usize::from(limits.retries),
        life: 0,
    };
    SlotMachine::new(settings, loaded, now)
}

fn others(me: Option<usize>, alive: bool, can_lead: bool, serves: bool) -> Vec<PeerHint> {
    let others = (0..NODES).filter(|node| Some(*node) != me);
    let hint = |node: usize| PeerHint {
        node: NodeId(node as u32),
        incarnation: None,
        alive,
        can_lead,
        serves,
    };
    others.map(hint).collect()
}

fn hints(voters: Vec<NodeId>, preferred: Option<NodeId>, peers: Vec<PeerHint>) -> Hints {
    Hints {
        voters,
        preferred,
        peers,
        heartbeats_return: true,
        memory_to_spare: true,
    }
}

fn all_voters() -> Vec<NodeId> {
    (0..NODES as u32).map(NodeId).collect()
}

/// All is well, whoever leads.
fn trusting(me: usize) -> Hints {
    hints(all_voters(), None, others(Some(me), true, false, true))
}

/// Nobody else is heard of.
fn suspecting(me: usize) -> Hints {
    let preferred = Some(NodeId(me as u32));
    hints(
        all_voters(),
        preferred,
        others(Some(me), false, false, false),
    )
}

/// The node is no voter any more, and `to` could lead.
fn leaving_to(to: usize) -> Hints {
    let to_node = NodeId(to as u32);
    hints(
        vec![to_node],
        Some(to_node),
        others(None, true, true, false),
    )
}
