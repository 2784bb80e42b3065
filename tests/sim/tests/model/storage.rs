//! Exhaustive exploration of what becomes of a log that is trimmed and of states that are stored, lost and taken over from
//! others: three replicas of one slot, a log that is written already, and every order in which replicas read, flush, crash,
//! lose their schema, restore each other, and trim.
//!
//! The product's own parts decide: its state machine judges and says whether a state may be read, its rule of trimming says
//! what may go, its positions travel with snapshots. What must hold in every state: a replica whose state may be read has
//! exactly that of its offset, and judges the next record like everybody; what the log has no more is in some replica's
//! PostgreSQL for good.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use bytes::Bytes;
use kvcluster_crds::{Epoch, Incarnation, LogId, NodeId, Offset, SlotId};
use kvcluster_node::effect::{Applied, Effect, Loaded, SlotPosition};
use kvcluster_node::log::codec::{Body, Record};
use kvcluster_node::slot::trim::{Keep, Report, Stored, first_to_keep};
use kvcluster_node::slot::{Input, Output, Settings, SlotMachine};
use kvcluster_sim::rule::Rule;
use stateright::{Checker, HasDiscoveries, Model, Property};

use crate::{SAFE, THREADS};

const NODES: usize = 3;
const LOG: LogId = LogId(1);
const LOST_AFTER_MS: u64 = 1_000;
/// Crashes, lost schemas and broken streams of one run, each at most once.
const MISHAPS_MAX: u8 = 2;
/// The two parts of the key space that a snapshot may be broken off between.
const FIRST: u8 = b'a';
const SECOND: u8 = b'b';

/// Value and version of each key.
type Rows = BTreeMap<u8, (u8, i64)>;

/// A state at a position: in memory, committed, or durable.
#[derive(Clone, Debug, PartialEq, Eq)]
struct State {
    position: SlotPosition,
    rows: Rows,
}

/// One replica.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Replica {
    applied: State,
    /// Whether the machine lets the state be read.
    whole: bool,
    flushed: State,
    durable: State,
    /// How far it said to be durable before it lost its schema, and may still be believed to be.
    believed: Option<i64>,
}

/// What happens next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// A replica reads and applies the next record.
    Apply(usize),
    /// It commits all that it has applied.
    Flush(usize),
    /// PostgreSQL makes sure of what is committed.
    Sync(usize),
    /// All PostgreSQL servers crash: only what is durable is left.
    CrashAll,
    /// A node comes back with an empty schema.
    LoseSchema(usize),
    /// The log is trimmed; a node may count as lost, and be believed what it said last.
    Trim { lost: Option<usize>, stale: bool },
    /// A replica takes the whole state of another.
    Restore { to: usize, from: usize },
    /// It takes the first part, and the stream breaks off.
    RestoreFirst { to: usize, from: usize },
    /// It takes the rest.
    RestoreRest { to: usize, from: usize },
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Storage {
    replicas: [Replica; NODES],
    start: i64,
    crashes: u8,
    losses: u8,
    broken: u8,
    pub(crate) wrong: Option<String>,
}

impl Hash for State {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        // Everything else follows from these: the log is the same in all runs, but for mistakes in what a snapshot carries.
        let at = &self.position;
        (
            at.next_offset,
            at.epoch,
            at.last_seq,
            at.whole_at,
            &self.rows,
        )
            .hash(hasher);
    }
}

/// The log, and what stands where, by the rule.
pub(crate) struct Slot {
    log: Vec<Bytes>,
    states: Vec<State>,
}

impl Slot {
    fn new() -> Self {
        let log: Vec<Bytes> = script()
            .into_iter()
            .map(|body| Record { log_id: LOG, body }.encode())
            .collect();
        let mut rule = Rule::new(LOG);
        let mut rows = Rows::new();
        let mut states = vec![State {
            position: rule.position().clone(),
            rows: rows.clone(),
        }];
        for (offset, bytes) in (0..).zip(&log) {
            if let Some(Record {
                body: Body::Command { effects, .. },
                ..
            }) = rule.take(Offset(offset), bytes)
            {
                change(&mut rows, offset, &effects);
            }
            states.push(State {
                position: rule.position().clone(),
                rows: rows.clone(),
            });
        }
        Self { log, states }
    }

    fn end(&self) -> i64 {
        self.log.len() as i64
    }

    /// Lets a machine that stands somewhere read the next record, as the consumer does: after the one before.
    fn apply(&self, state: &State) -> Option<(State, bool)> {
        let settings = Settings {
            slot: SlotId(0),
            node: NodeId(9),
            incarnation: Incarnation(9),
            log_id: LOG,
            lease_ms: 300,
            reads_by_lease: true,
            dedup_entries_max: 0,
            life: 0,
        };
        let mut machine = SlotMachine::new(settings, Loaded::start(), 0);
        let loaded = Loaded {
            position: state.position.clone(),
            dedup: Vec::new(),
        };
        machine.step(0, Input::Restored(Some(loaded)));
        let next = state.position.next_offset.0;
        let mut state = state.clone();
        for offset in SlotMachine::follow_from(&state.position.clone()).0..=next {
            let bytes = self.log[offset as usize].clone();
            let record = Input::Record {
                offset: Offset(offset),
                bytes,
            };
            for output in machine.step(0, record) {
                if let Output::Apply(Applied {
                    effects,
                    position,
                    offset,
                    ..
                }) = output
                {
                    change(&mut state.rows, offset.0, &effects);
                    state.position = position;
                }
            }
        }
        let view = machine.view();
        view.frozen.is_none().then_some((state, view.whole))
    }
}

/// Two leaders. Keys of both parts are written, rewritten and deleted.
fn script() -> Vec<Body> {
    let claim = |epoch: u64, based_on: Option<i64>| Body::Claim {
        epoch: Epoch(epoch),
        node: NodeId(epoch as u32),
        incarnation: Incarnation(epoch),
        based_on: based_on.map(Offset),
        lease_ms: 300,
    };
    let command = |epoch: u64, seq, effects| Body::Command {
        epoch: Epoch(epoch),
        incarnation: Incarnation(epoch),
        seq,
        effects,
        idempotency: None,
        time_ms: 0,
    };
    vec![
        claim(1, None),
        command(1, 1, vec![put(FIRST, 1), put(SECOND, 1)]),
        claim(2, Some(1)),
        command(
            2,
            1,
            vec![put(SECOND, 2), Effect::Delete { key: key(FIRST) }],
        ),
    ]
}

fn put(of: u8, value: u8) -> Effect {
    Effect::Put {
        key: key(of),
        value: Bytes::copy_from_slice(&[value]),
    }
}

fn key(of: u8) -> Bytes {
    Bytes::copy_from_slice(&[of])
}

fn change(rows: &mut Rows, offset: i64, effects: &[Effect]) {
    for effect in effects {
        match effect {
            Effect::Put { key, value } => drop(rows.insert(key[0], (value[0], offset))),
            Effect::Delete { key } => drop(rows.remove(&key[0])),
        }
    }
}

impl State {
    fn empty() -> Self {
        Self {
            position: SlotPosition::start(),
            rows: Rows::new(),
        }
    }

    fn next(&self) -> i64 {
        self.position.next_offset.0
    }
}

impl Replica {
    fn at(state: &State, whole: bool) -> Self {
        Self {
            applied: state.clone(),
            whole,
            flushed: state.clone(),
            durable: state.clone(),
            believed: None,
        }
    }

    /// A new process, and what it would say of its state.
    fn begin(&mut self, state: State) {
        self.whole = state.position.whole_at.is_none();
        self.applied = state.clone();
        self.flushed = state;
    }

    /// Whether its state is waiting for the log to make it one of one offset.
    fn is_joined(&self) -> bool {
        let at = &self.flushed.position;
        at.whole_at.is_some() && !at.needs_snapshot()
    }

    /// What it says of itself while its snapshot is not whole: nothing.
    fn reports(&self) -> (i64, i64) {
        let known = |state: &State| {
            if state.position.needs_snapshot() {
                0
            } else {
                state.next()
            }
        };
        (known(&self.flushed), known(&self.durable))
    }
}

impl Storage {
    fn new() -> Self {
        let replica = || Replica::at(&State::empty(), true);
        Self {
            replicas: [replica(), replica(), replica()],
            start: 0,
            crashes: 0,
            losses: 0,
            broken: 0,
            wrong: None,
        }
    }

    /// Whether the log goes on from where a state stands.
    fn can_follow(&self, state: &State) -> bool {
        !state.position.needs_snapshot()
            && SlotMachine::follow_from(&state.position).0 >= self.start
    }

    fn mishaps(&self) -> u8 {
        self.crashes + self.losses + self.broken
    }

    fn can_give(&self, from: usize) -> bool {
        let state = &self.replicas[from].flushed;
        state.position.whole_at.is_none() && self.can_follow(state)
    }

    fn actions(&self, slot: &Slot, actions: &mut Vec<Action>) {
        if self.wrong.is_some() {
            return;
        }
        for (index, replica) in self.replicas.iter().enumerate() {
            let follows = self.can_follow(&replica.applied);
            if follows && replica.applied.next() < slot.end() {
                actions.push(Action::Apply(index));
            }
            if replica.flushed.next() < replica.applied.next() {
                actions.push(Action::Flush(index));
            }
            if replica.durable != replica.flushed {
                actions.push(Action::Sync(index));
            }
            if self.losses == 0 && self.mishaps() < MISHAPS_MAX {
                actions.push(Action::LoseSchema(index));
            }
            if !follows || replica.applied.position.checksum_before.is_none() {
                self.restores(index, actions);
            }
        }
        if self.crashes == 0 && self.mishaps() < MISHAPS_MAX {
            actions.push(Action::CrashAll);
        }
        for stale in [false, true] {
            actions.push(Action::Trim { lost: None, stale });
            actions.extend((0..NODES).map(|lost| Action::Trim {
                lost: Some(lost),
                stale,
            }));
        }
    }

    fn restores(&self, to: usize, actions: &mut Vec<Action>) {
        let is_begun = self.replicas[to].flushed.position.needs_snapshot();
        for from in (0..NODES).filter(|from| *from != to && self.can_give(*from)) {
            actions.push(Action::Restore { to, from });
            let least = self.replicas[to].flushed.rows.get(&PART);
            let is_later =
                least.is_some_and(|(_, first)| self.replicas[from].flushed.next() >= *first);
            if is_begun && is_later {
                actions.push(Action::RestoreRest { to, from });
            } else if !is_begun && self.broken == 0 && self.mishaps() < MISHAPS_MAX {
                actions.push(Action::RestoreFirst { to, from });
            }
        }
    }

    fn act(&mut self, slot: &Slot, action: Action) {
        match action {
            Action::Apply(index) => match slot.apply(&self.replicas[index].applied) {
                Some((state, whole)) => {
                    let replica = &mut self.replicas[index];
                    replica.whole = whole;
                    replica.applied = state;
                }
                None => self.wrong = Some(format!("replica {index} stands still")),
            },
            Action::Flush(index) => {
                let replica = &mut self.replicas[index];
                replica.flushed = replica.applied.clone();
            }
            Action::Sync(index) => {
                let replica = &mut self.replicas[index];
                replica.durable = replica.flushed.clone();
            }
            Action::CrashAll => {
                self.crashes += 1;
                for replica in &mut self.replicas {
                    replica.begin(replica.durable.clone());
                }
            }
            Action::LoseSchema(index) => {
                self.losses += 1;
                let (_, believed) = self.replicas[index].reports();
                self.replicas[index] = Replica {
                    believed: Some(believed),
                    ..Replica::at(&State::empty(), true)
                };
            }
            Action::Trim { lost, stale } => self.trim(lost, stale),
            Action::Restore { to, from } => {
                let state = self.cut(from);
                self.store(to, state);
            }
            Action::RestoreFirst { to, from } => {
                self.broken += 1;
                let mut part = self.cut(from);
                part.rows.retain(|key, _| *key == FIRST);
                self.store_part(to, part);
            }
            Action::RestoreRest { to, from } => self.restore_rest(to, from),
        }
        self.check(slot);
        // Which replica is which does not matter.
        self.replicas.sort_by_cached_key(|replica| {
            let mut hasher = DefaultHasher::new();
            replica.hash(&mut hasher);
            hasher.finish()
        });
    }

    /// What a snapshot of a replica carries.
    fn cut(&self, from: usize) -> State {
        let flushed = &self.replicas[from].flushed;
        State {
            position: flushed.position.of_snapshot(),
            rows: flushed.rows.clone(),
        }
    }

    fn store(&mut self, to: usize, state: State) {
        let replica = &mut self.replicas[to];
        replica.durable = state.clone();
        replica.begin(state);
    }

    /// The position waits beside the rows until the rest is there: here in the version of a key that nobody writes.
    fn store_part(&mut self, to: usize, part: State) {
        let mut rows = part.rows;
        rows.insert(PART, (0, part.position.next_offset.0));
        let mark = SlotPosition {
            whole_at: Some(SlotPosition::NO_SNAPSHOT_YET),
            ..SlotPosition::start()
        };
        self.store(
            to,
            State {
                position: mark,
                rows,
            },
        );
    }

    fn restore_rest(&mut self, to: usize, from: usize) {
        let mut rows = self.replicas[to].flushed.rows.clone();
        let Some((_, first)) = rows.remove(&PART) else {
            return;
        };
        let rest = self.cut(from);
        // Of the first cut everything but the rows is that of any replica which stands there.
        let mut position = Slot::new().states[first as usize].position.of_snapshot();
        position.join_cut(&rest.position);
        rows.extend(rest.rows.into_iter().filter(|(key, _)| *key == SECOND));
        self.store(to, State { position, rows });
    }

    fn trim(&mut self, lost: Option<usize>, stale: bool) {
        let stored: Vec<Stored> = (0..NODES)
            .map(|index| {
                let replica = &self.replicas[index];
                let (flushed, durable) = replica.reports();
                let durable = replica.believed.filter(|_| stale).unwrap_or(durable);
                let age_ms = if lost == Some(index) {
                    LOST_AFTER_MS
                } else {
                    0
                };
                Stored {
                    node: NodeId(index as u32),
                    instance: "main".to_owned(),
                    report: Report {
                        flushed: Offset(flushed),
                        durable: Offset(durable),
                        age_ms,
                    },
                }
            })
            .collect();
        let keep = Keep {
            records: 0,
            lost_after_ms: LOST_AFTER_MS,
        };
        if let Some(first) = first_to_keep(&stored, keep) {
            self.start = self.start.max(first.0);
        }
    }

    fn check(&mut self, slot: &Slot) {
        for (index, replica) in self.replicas.iter().enumerate() {
            let state = &replica.applied;
            if replica.whole && *state != slot.states[state.next() as usize] {
                self.wrong = Some(format!("replica {index} may be read and holds {state:?}"));
            }
        }
        // One that is put together from two cuts becomes whole by the log alone.
        let survives = |replica: &Replica| self.can_follow(&replica.durable);
        if !self.replicas.iter().any(survives) {
            self.wrong = Some(format!(
                "nobody has for good what stood before {}",
                self.start
            ));
        }
    }
}

/// Stands among the rows for the offset of the first cut.
const PART: u8 = 0;

impl Model for Slot {
    type State = Storage;
    type Action = Action;

    fn init_states(&self) -> Vec<Storage> {
        vec![Storage::new()]
    }

    fn actions(&self, state: &Storage, actions: &mut Vec<Action>) {
        state.actions(self, actions);
    }

    fn next_state(&self, state: &Storage, action: Action) -> Option<Storage> {
        let mut next = state.clone();
        next.act(self, action);
        (next != *state).then_some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(SAFE, |_, state: &Storage| state.wrong.is_none()),
            Property::sometimes("put together from two cuts", |_, state: &Storage| {
                state.replicas.iter().any(Replica::is_joined)
            }),
            Property::sometimes("whole again by the log", |_, state: &Storage| {
                let again = |replica: &Replica| {
                    replica.whole && replica.flushed.position.whole_at.is_some()
                };
                state.replicas.iter().any(again)
            }),
            Property::sometimes(
                "a replica that the log has left behind",
                |_, state: &Storage| {
                    let behind = |replica: &Replica| !state.can_follow(&replica.applied);
                    state.crashes + state.losses == 0 && state.replicas.iter().any(behind)
                },
            ),
            Property::sometimes("restored behind the log's start", |_, state: &Storage| {
                let restored = |replica: &Replica| {
                    replica.believed.is_some() && state.can_follow(&replica.durable)
                };
                state.start > 1 && state.replicas.iter().any(restored)
            }),
            Property::sometimes("trimmed after a crash", |_, state: &Storage| {
                state.crashes > 0 && state.start > 2
            }),
        ]
    }
}

pub(crate) fn explore() -> impl Checker<Slot> {
    let checker = Slot::new().checker().threads(THREADS);
    checker
        .finish_when(HasDiscoveries::AnyFailures)
        .spawn_bfs()
        .join()
}

#[test]
fn storage() {
    let began = std::time::Instant::now();
    let explored = explore();
    println!(
        "snapshots and trimming: {} states, {} transitions, {} deep, all of them explored in {:.0} s",
        explored.unique_state_count(),
        explored.state_count(),
        explored.max_depth(),
        began.elapsed().as_secs_f64()
    );
    if let Some(path) = explored.discovery(SAFE) {
        let wrong = path.last_state().wrong.clone();
        panic!("{wrong:?} after {:?}", path.into_actions());
    }
    for property in explored.model().properties() {
        let happened = property.name == SAFE || explored.discovery(property.name).is_some();
        assert!(happened, "never {}", property.name);
    }
}
