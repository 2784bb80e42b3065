//! Exhaustive exploration of whose assignment is followed: two operators that may each believe to be the only one, and publish
//! from what they saw last, however long ago that was; records that are late, come twice, or never; a node that reads at
//! any time, reads anew, and restarts; a topic that is trimmed meanwhile.
//!
//! The product's own parts decide: operators fold the topic by [`AssignmentLog`], nodes by [`Folding`]. Which tables count
//! is said a second time here, from the whole topic, see [`Topic::chain`]. What must hold in every state: no node follows a
//! table that is not one of these, so none drops or leads by one that another never reaches; a node that has read all
//! follows the last one, also when it begins only now; and no process goes back to an older table.

use std::hash::{Hash, Hasher};

use kvcluster_crds::{Assignment, AssignmentLog, LogId, NodeEntry, NodeId, Offset, SlotAssignment};
use kvcluster_node::assignment::{Cluster, Folding};
use kvcluster_node::log::reader::Seen;
use stateright::{Checker, HasDiscoveries, Model, Property};

use crate::THREADS;

pub(crate) const ONE_TABLE: &str = "all follow one table";

const OPERATORS: usize = 2;
/// Most records of the topic.
const RECORDS_MAX: usize = 4;
/// Doubled records, clients that begin anew, and restarts of one run.
const MISHAPS_MAX: u8 = 1;
const UID: &str = "uid";
const LOG: LogId = LogId(1);

/// What tells one table from another: who wrote it, and what it replaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Table {
    author: usize,
    version: u64,
    based_on: Option<i64>,
}

/// An operator: how much of the topic it saw, and the newest table in that.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Operator {
    newest: Option<(i64, u64)>,
    has_looked: bool,
}

/// A node, and where it began to read, and goes on.
#[derive(Clone, Debug)]
struct Node {
    folding: Folding,
    began_at: i64,
    next: i64,
}

/// What happens next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// An operator reads the whole topic.
    Look(usize),
    /// It sends its next table, which reaches the topic now, or later, or twice.
    Publish { by: usize, reaches: Reaches },
    /// The late record reaches the topic.
    Arrive,
    /// An operator trims below the newest table that it knows.
    Trim(usize),
    /// The node reads the next record.
    Read,
    /// Its client begins anew, and it keeps what it follows.
    ReadAnew,
    /// Its process begins anew.
    Restart,
}

/// When a record reaches the topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reaches {
    Now,
    /// Or never.
    Later,
    NowAndLater,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct World {
    topic: Vec<Table>,
    start: i64,
    /// On its way.
    late: Option<Table>,
    operators: [Operator; OPERATORS],
    /// One for all: nodes do not hear of each other, and each is held against the tables that count.
    node: Node,
    mishaps: u8,
    pub(crate) wrong: Option<String>,
}

impl Node {
    fn new(start: i64) -> Self {
        let cluster = Cluster {
            uid: UID.to_owned(),
            log_id: LOG,
            slots: 1,
        };
        let mut folding = Folding::new(cluster);
        folding.see(Seen::Begin);
        Self {
            folding,
            began_at: start,
            next: start,
        }
    }

    fn follows(&self) -> Option<&Assignment> {
        self.folding.known().assignment.as_deref()
    }

    fn version(&self) -> u64 {
        self.follows().map_or(0, |table| table.version)
    }

    /// What it follows from here on depends on this, and on the topic.
    fn key(&self) -> (i64, i64, Option<(u64, NodeId)>, bool) {
        let follows = self.follows();
        let follows = follows.map(|table| (table.version, table.slots[0].preferred_leader));
        let has_problem = self.folding.known().problem.is_some();
        (self.began_at, self.next, follows, has_problem)
    }
}

impl PartialEq for Node {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl Eq for Node {}

impl Hash for Node {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        self.key().hash(hasher);
    }
}

impl Table {
    fn assignment(self) -> Assignment {
        let ids = (0..OPERATORS as u32).map(NodeId);
        let entry = |id| NodeEntry {
            id,
            address: format!("node-{id}:8080"),
            postgres_instance: "main".to_owned(),
            leaving: false,
        };
        Assignment {
            version: self.version,
            based_on: self.based_on.map(Offset),
            cluster_uid: UID.to_owned(),
            log_id: LOG,
            log_version: 1,
            slots: vec![SlotAssignment {
                voters: ids.clone().collect(),
                learners: Vec::new(),
                preferred_leader: NodeId(self.author as u32),
            }],
            nodes: ids.map(entry).collect(),
            next_node: NodeId(OPERATORS as u32),
        }
    }
}

impl World {
    fn new() -> Self {
        let operator = Operator {
            newest: None,
            has_looked: false,
        };
        Self {
            topic: Vec::new(),
            start: 0,
            late: None,
            operators: [operator; OPERATORS],
            node: Node::new(0),
            mishaps: 0,
            wrong: None,
        }
    }

    fn end(&self) -> i64 {
        self.topic.len() as i64
    }

    /// The tables that count, with their offsets: each replaces the one before, the first replaces none.
    fn chain(&self) -> Vec<(i64, Table)> {
        let mut chain: Vec<(i64, Table)> = Vec::new();
        for (offset, table) in (0..).zip(&self.topic) {
            if table.based_on == chain.last().map(|(last, _)| *last) {
                chain.push((offset, *table));
            }
        }
        chain
    }

    fn actions(&self, actions: &mut Vec<Action>) {
        if self.wrong.is_some() {
            return;
        }
        let has_room = self.topic.len() < RECORDS_MAX;
        let may_mishap = self.mishaps < MISHAPS_MAX;
        for (index, operator) in self.operators.iter().enumerate() {
            // Which operator is which does not matter: the first look in turn.
            if index == 0 || self.operators[index - 1].has_looked {
                actions.push(Action::Look(index));
            }
            if operator.has_looked && has_room {
                self.publish_actions(index, actions);
            }
            if operator.newest.is_some_and(|(at, _)| at > self.start) {
                actions.push(Action::Trim(index));
            }
        }
        if self.late.is_some() && has_room {
            actions.push(Action::Arrive);
        }
        if self.node.next < self.end() {
            actions.push(Action::Read);
        }
        if may_mishap && self.node.next > 0 {
            actions.extend([Action::ReadAnew, Action::Restart]);
        }
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Look(index) => self.operators[index] = self.look(),
            Action::Publish { by, reaches } => self.publish(by, reaches),
            Action::Arrive => self.topic.extend(self.late.take()),
            Action::Trim(index) => {
                let newest = self.operators[index].newest;
                self.start = newest.map_or(self.start, |(at, _)| at);
            }
            Action::Read => self.read(),
            Action::ReadAnew => {
                self.mishaps += 1;
                self.begin();
            }
            Action::Restart => {
                self.mishaps += 1;
                self.node = Node::new(self.start);
            }
        }
        let has_changed = matches!(
            action,
            Action::Publish { .. } | Action::Arrive | Action::Trim(_)
        );
        self.check(has_changed);
    }

    fn publish_actions(&self, by: usize, actions: &mut Vec<Action>) {
        let mut publish = |reaches| actions.push(Action::Publish { by, reaches });
        publish(Reaches::Now);
        if self.late.is_none() {
            publish(Reaches::Later);
            if self.mishaps < MISHAPS_MAX {
                publish(Reaches::NowAndLater);
            }
        }
    }

    fn publish(&mut self, by: usize, reaches: Reaches) {
        let newest = self.operators[by].newest;
        let table = Table {
            author: by,
            version: newest.map_or(1, |(_, version)| version + 1),
            based_on: newest.map(|(at, _)| at),
        };
        if reaches != Reaches::Later {
            self.topic.push(table);
        }
        if reaches != Reaches::Now {
            self.late = Some(table);
        }
        self.mishaps += u8::from(reaches == Reaches::NowAndLater);
    }

    fn look(&self) -> Operator {
        let mut log = AssignmentLog::default();
        for offset in self.start..self.end() {
            let record = self.topic[offset as usize].assignment().encode();
            log.observe(UID, Offset(offset), &record)
                .expect("it is an assignment");
        }
        let newest = log
            .newest()
            .map(|(offset, table)| (offset.0, table.version));
        Operator {
            newest,
            has_looked: true,
        }
    }

    fn begin(&mut self) {
        let node = &mut self.node;
        node.folding.see(Seen::Begin);
        (node.began_at, node.next) = (self.start, self.start);
    }

    fn read(&mut self) {
        if self.node.next < self.start {
            let gone = Seen::Failed("the place in it is gone".to_owned());
            self.node.folding.see(gone);
            self.begin();
        }
        let end = self.end();
        let node = &mut self.node;
        let before = node.version();
        let record = self.topic[node.next as usize].assignment().encode();
        let offset = Offset(node.next);
        node.folding.see(Seen::Record(offset, record.into()));
        node.next += 1;
        if node.next == end {
            node.folding.see(Seen::End);
        }
        let after = node.version();
        if after < before {
            self.wrong = Some(format!("a node goes back from table {before} to {after}"));
        }
    }

    /// A node that begins only now.
    fn late_node(&self) -> Node {
        let mut late = Node::new(self.start);
        for offset in self.start..self.end() {
            let record = self.topic[offset as usize].assignment().encode();
            late.folding
                .see(Seen::Record(Offset(offset), record.into()));
        }
        late.folding.see(Seen::End);
        late.next = self.end();
        late
    }

    /// `has_changed`: whether the topic has.
    fn check(&mut self, has_changed: bool) {
        let chain: Vec<Assignment> = self
            .chain()
            .into_iter()
            .map(|(_, table)| table.assignment())
            .collect();
        let late = has_changed.then(|| self.late_node());
        for node in std::iter::once(&self.node).chain(&late) {
            if let Some(table) = node.follows().filter(|table| !chain.contains(table)) {
                let author = table.slots[0].preferred_leader;
                self.wrong = Some(format!(
                    "a node follows table {} of operator {author}, which does not count",
                    table.version
                ));
            }
            let has_read_all = node.next == self.end() && node.next > node.began_at;
            if has_read_all && node.follows() != chain.last() {
                self.wrong = Some(format!(
                    "a node that has read everything follows table {}, and {} is the last",
                    node.version(),
                    chain.len()
                ));
            }
        }
    }
}

/// The model.
#[derive(Clone, Copy)]
pub(crate) struct Topic;

impl Model for Topic {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        vec![World::new()]
    }

    fn actions(&self, state: &World, actions: &mut Vec<Action>) {
        state.actions(actions);
    }

    fn next_state(&self, state: &World, action: Action) -> Option<World> {
        let mut next = state.clone();
        next.act(action);
        (next != *state).then_some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(ONE_TABLE, |_, world: &World| world.wrong.is_none()),
            Property::sometimes(
                "a zombie's late record is passed over",
                |_, world: &World| {
                    let late = |table: &Table| {
                        let (at, author) = (table.based_on, table.author);
                        let chain = world.chain();
                        let rival = chain.iter().find(|(_, other)| other.based_on == at);
                        rival.is_some_and(|(_, other)| other.author != author)
                    };
                    world.topic.iter().any(late) && all_read(world)
                },
            ),
            Property::sometimes(
                "a record that came twice is passed over",
                |_, world: &World| {
                    let twice = |pair: &[Table]| pair[0] == pair[1];
                    world.topic.windows(2).any(twice) && all_read(world)
                },
            ),
            Property::sometimes(
                "a table of each operator is followed in turn",
                |_, world: &World| {
                    let chain = world.chain();
                    let wrote = |author| chain.iter().any(|(_, table)| table.author == author);
                    (0..OPERATORS).all(wrote) && all_read(world)
                },
            ),
            Property::sometimes("a node begins behind a trim", |_, world: &World| {
                world.node.began_at > 1 && all_read(world)
            }),
            Property::sometimes(
                "a node that reads anew keeps a newer table",
                |_, world: &World| {
                    world.node.version() > 1 && world.node.folding.known().problem.is_some()
                },
            ),
        ]
    }
}

fn all_read(world: &World) -> bool {
    world.node.next == world.end() && world.node.version() > 0
}

pub(crate) fn explore() -> impl Checker<Topic> {
    let checker = Topic.checker().threads(THREADS);
    checker
        .finish_when(HasDiscoveries::AnyFailures)
        .spawn_bfs()
        .join()
}

#[test]
fn assignments() {
    let began = std::time::Instant::now();
    let explored = explore();
    println!(
        "assignments: {} states, {} transitions, {} deep, all of them explored in {:.0} s",
        explored.unique_state_count(),
        explored.state_count(),
        explored.max_depth(),
        began.elapsed().as_secs_f64()
    );
    if let Some(path) = explored.discovery(ONE_TABLE) {
        let wrong = path.last_state().wrong.clone();
        panic!("{wrong:?} after {:?}", path.into_actions());
    }
    for property in explored.model().properties() {
        let happened = property.name == ONE_TABLE || explored.discovery(property.name).is_some();
        assert!(happened, "never {}", property.name);
    }
}
