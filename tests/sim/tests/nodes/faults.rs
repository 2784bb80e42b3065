//! What goes wrong in a run: up to three things at a time, for a while each.

use std::time::Duration;

use bytes::Bytes;
use kvcluster_crds::{NodeId, Offset, SlotAssignment, SlotId, SlotRole};
use kvcluster_sim::log::{Cut, Delays};
use kvcluster_sim::store::{How, Step, Tables};
use tokio::time::{Instant, sleep};

use crate::node::{Node, SLOTS, node_id};
use crate::seen::Point;
use crate::world::{NODES, World};

/// Shortest and longest fault, and pause between two, milliseconds.
const FAULT_MS: std::ops::Range<u64> = 50..1_800;
const PAUSE_MS: std::ops::Range<u64> = 100..900;
/// Delays of a slow Kafka.
const SLOW: Delays = Delays {
    request: (Duration::from_millis(1), Duration::from_millis(250)),
    answer: (Duration::from_millis(1), Duration::from_millis(250)),
    read: (Duration::from_millis(1), Duration::from_millis(250)),
};

/// Something that goes wrong.
#[derive(Clone, Copy, Debug)]
enum Fault {
    Kill(usize),
    Stop(usize),
    Pause(usize),
    CutPeers(usize, usize),
    CutOffPeers(usize),
    CutKafka(usize, Cut),
    LoseHeartbeats(usize),
    GiveUp(usize),
    LoseAnswers,
    SlowNetwork,
    SlowKafka,
    SlowPostgres(usize),
    PostgresAway(usize),
    DiskFull(usize),
    LoseConnections(usize),
    CrashPostgres(usize, usize),
    LoseCommit(usize),
    RefuseFlush(usize, Step),
    Alone(SlotId),
    Foreign(SlotId),
    Marker(SlotId),
    Trim(SlotId),
    Move(SlotId),
    TrimPast(SlotId, usize),
    LoseSchema(usize),
}

const KINDS: u8 = 24;

impl World {
    /// Makes trouble until `until`, and takes it all back.
    pub(crate) async fn make_trouble(&mut self, until: Instant) {
        // First a leader everywhere.
        sleep(Duration::from_millis(1_500)).await;
        while Instant::now() < until {
            let count = self.rng.usize(1..=3);
            let faults: Vec<Fault> = (0..count).map(|_| self.some_fault()).collect();
            for fault in &faults {
                self.history
                    .fault(name(*fault), &format!("{fault:?}"), "begin");
                self.begin(*fault).await;
            }
            sleep(Duration::from_millis(self.rng.u64(FAULT_MS))).await;
            for fault in faults {
                self.history
                    .fault(name(fault), &format!("{fault:?}"), "end");
                self.end(fault);
            }
            sleep(Duration::from_millis(self.rng.u64(PAUSE_MS))).await;
        }
    }

    fn some_fault(&mut self) -> Fault {
        let node = self.some_node();
        let other = (node + 1 + self.rng.usize(..NODES - 1)) % NODES;
        let slot = SlotId(self.rng.u32(..SLOTS));
        match self.rng.u8(..KINDS) {
            0 => Fault::Kill(node),
            1 => Fault::Stop(node),
            2 => Fault::Pause(node),
            3 => Fault::CutPeers(node, other),
            4 => Fault::CutOffPeers(node),
            5 => {
                let cuts = [Cut::Requests, Cut::Answers, Cut::Both];
                Fault::CutKafka(node, cuts[self.rng.usize(..cuts.len())])
            }
            6 => Fault::GiveUp(node),
            7 => Fault::LoseAnswers,
            8 => Fault::SlowNetwork,
            9 => Fault::SlowKafka,
            10 => Fault::SlowPostgres(node),
            11 => Fault::PostgresAway(node),
            12 => Fault::DiskFull(node),
            13 => Fault::LoseConnections(node),
            14 => Fault::CrashPostgres(node, self.rng.usize(..4)),
            15 => Fault::LoseCommit(node),
            16 => {
                let steps = [Step::Owner, Step::Offsets, Step::Rows, Step::Commit];
                Fault::RefuseFlush(node, steps[self.rng.usize(..steps.len())])
            }
            17 => Fault::Alone(slot),
            18 => Fault::Foreign(slot),
            19 => Fault::Marker(slot),
            20 => Fault::LoseHeartbeats(node),
            21 => Fault::TrimPast(slot, node),
            22 if self.moves => Fault::Move(slot),
            22 => Fault::LoseSchema(node),
            23 if self.moves => Fault::Move(slot),
            _ => Fault::Trim(slot),
        }
    }

    async fn begin(&mut self, fault: Fault) {
        match fault {
            Fault::Kill(node) => {
                self.reach_if_leader(node, Point::LeaderKilled);
                self.kill(node);
            }
            Fault::Stop(node) => {
                self.reach_if_leader(node, Point::LeaderStopped);
                if let Some(running) = &self.nodes[node] {
                    running.stop().await;
                }
                self.kill(node);
            }
            Fault::Pause(node) => {
                self.reach_if_leader(node, Point::LeaderPaused);
                self.with(node, |node| node.life.pause());
            }
            Fault::LoseSchema(node) => self.lose_schema(node),
            Fault::CutPeers(from, to) => self.services.network.cut(from, to),
            Fault::CutOffPeers(node) => {
                for other in (0..NODES).filter(|other| *other != node) {
                    self.services.network.cut(node, other);
                    self.services.network.cut(other, node);
                }
            }
            Fault::LoseAnswers => self.services.network.set_lost_answers(40),
            Fault::SlowNetwork => {
                let slowest = Duration::from_millis(300);
                self.services.network.set_slowest(slowest);
            }
            fault => self.begin_in_services(fault),
        }
    }

    fn begin_in_services(&mut self, fault: Fault) {
        let schema = |node: usize| &self.services.schemas[node];
        match fault {
            Fault::CutKafka(node, cut) => {
                self.seen.reach(Point::KafkaCutOff);
                self.services.set_cut_off(node, true);
                self.with(node, |node| node.cut(cut));
            }
            Fault::LoseHeartbeats(node) => {
                self.reach_if_leader(node, Point::LeaderSuspected);
                self.services.set_cut_off(node, true);
            }
            Fault::GiveUp(node) => {
                self.seen.reach(Point::ProducerGivenUp);
                let loses = self.rng.bool();
                self.with(node, |node| {
                    if loses {
                        node.log.lose_requests();
                    }
                    node.log.give_up();
                });
            }
            Fault::SlowKafka => self.services.broker.set_delays(SLOW),
            Fault::SlowPostgres(node) => {
                schema(node).set_latency((Duration::from_millis(20), Duration::from_millis(400)));
            }
            Fault::PostgresAway(node) => {
                self.seen.reach(Point::PostgresAway);
                schema(node).set_away(true);
            }
            Fault::DiskFull(node) => {
                self.seen.reach(Point::DiskFull);
                schema(node).set_full(true);
            }
            Fault::LoseConnections(node) => {
                schema(node).lose_connections();
            }
            Fault::CrashPostgres(node, kept) => {
                if schema(node).crash(kept) > 0 {
                    self.seen.reach(Point::CommitTakenBack);
                }
            }
            Fault::LoseCommit(node) => schema(node).fail_next(Step::Commit, How::AnswerLost),
            Fault::RefuseFlush(node, step) => schema(node).fail_next(step, How::Refused),
            Fault::Alone(slot) => self.services.broker.set_alone(slot, true),
            Fault::Foreign(slot) => {
                self.seen.reach(Point::RecordOfAnotherProgram);
                let bytes = Bytes::from_static(b"somebody else's");
                self.services.broker.append_foreign(slot, bytes);
            }
            Fault::Marker(slot) => {
                self.services.broker.append_marker(slot);
            }
            Fault::Trim(slot) => self.trim(slot, None),
            Fault::TrimPast(slot, node) => self.trim(slot, Some(node)),
            Fault::Move(slot) => self.change_replicas(slot),
            other => unreachable!("{other:?} is begun elsewhere"),
        }
    }

    fn end(&mut self, fault: Fault) {
        match fault {
            Fault::Kill(node) | Fault::Stop(node) | Fault::LoseSchema(node) => self.start(node),
            Fault::Pause(node) => self.with(node, |node| node.life.resume()),
            Fault::CutPeers(..)
            | Fault::CutOffPeers(_)
            | Fault::LoseAnswers
            | Fault::SlowNetwork => self.services.network.heal(),
            Fault::CutKafka(node, _) => {
                self.services.set_cut_off(node, false);
                let (anew, gives_up) = (self.rng.bool(), self.rng.u8(..4) == 0);
                self.with(node, |node| {
                    if gives_up {
                        node.log.give_up();
                    }
                    if anew {
                        node.log.heal_anew();
                    } else {
                        node.log.heal();
                    }
                });
            }
            Fault::LoseHeartbeats(node) => self.services.set_cut_off(node, false),
            Fault::SlowKafka | Fault::SlowPostgres(_) => self.use_usual_times(),
            Fault::PostgresAway(node) => self.services.schemas[node].set_away(false),
            Fault::DiskFull(node) => self.services.schemas[node].set_full(false),
            Fault::LoseCommit(node) => {
                if !self.services.schemas[node].has_fault() {
                    self.seen.reach(Point::CommitAnswerLost);
                }
            }
            Fault::Alone(slot) => {
                if self.rng.bool() {
                    let lost = self.services.broker.elect(slot);
                    let lost = u64::try_from(lost).expect("few");
                    self.seen.reach_times(Point::SuffixLostInElection, lost);
                } else {
                    self.services.broker.set_alone(slot, false);
                }
            }
            Fault::GiveUp(_)
            | Fault::LoseConnections(_)
            | Fault::CrashPostgres(..)
            | Fault::RefuseFlush(..)
            | Fault::Foreign(_)
            | Fault::Marker(_)
            | Fault::Trim(_)
            | Fault::TrimPast(..)
            | Fault::Move(_) => {}
        }
    }

    /// Trims as a leader may: below what every replica has durably, and not the record before. One that was not heard of for
    /// long does not hold the log when the two others have its part.
    fn trim(&self, slot: SlotId, lost: Option<usize>) {
        let durable: Vec<i64> = (0..NODES).map(|node| self.durable(node, slot)).collect();
        let others = (0..NODES).filter(|node| Some(*node) != lost);
        let least = others.map(|node| durable[node]).min().unwrap_or(0);
        if least > 1 {
            self.seen.reach(Point::LogTrimmed);
            if lost.is_some_and(|lost| durable[lost] < least) {
                self.seen.reach(Point::TrimmedPastAReplica);
            }
            self.services.broker.trim(slot, Offset(least - 1));
        }
    }

    /// Other voters, learners and another preferred leader, whoever has the slot now and however far they are: only service
    /// may suffer by that.
    fn change_replicas(&mut self, slot: SlotId) {
        let mut nodes: Vec<NodeId> = (0..NODES).map(node_id).collect();
        self.rng.shuffle(&mut nodes);
        let learners = nodes.split_off(self.rng.usize(1..=NODES));
        let learners = if self.rng.bool() {
            learners
        } else {
            Vec::new()
        };
        let leads = |node: &Node| {
            let slots = node.status().slots;
            slots
                .iter()
                .any(|at| at.slot == slot && at.role == SlotRole::Leader)
        };
        let mut running = self.nodes.iter().flatten();
        let leader = running.find(|node| leads(node));
        if leader.is_some_and(|leader| !nodes.contains(&node_id(leader.number))) {
            self.seen.reach(Point::LeaderMovedAway);
        }
        self.assign(|assignment| {
            assignment.slots[slot.index()] = SlotAssignment {
                preferred_leader: nodes[0],
                voters: nodes,
                learners,
            };
        });
    }

    /// Up to where a node has a slot for good.
    fn durable(&self, node: usize, slot: SlotId) -> i64 {
        let slots = self.services.schemas[node].durable_tables().slots;
        slots.get(&slot).map_or(0, |at| at.next_offset.0)
    }

    /// A process and all that it stored are gone, where another node has each slot for good: what is lost everywhere, and
    /// trimmed, nobody brings back.
    fn lose_schema(&mut self, node: usize) {
        let has_all = |other: usize| {
            let slots = self.services.schemas[other].durable_tables().slots;
            crate::node::slots().all(|slot| {
                let (start, _) = self.services.broker.ends(slot);
                let stored = slots.get(&slot);
                stored.is_some_and(|at| at.whole_at.is_none() && at.next_offset > start)
            })
        };
        if (0..NODES).any(|other| other != node && has_all(other)) {
            self.kill(node);
            self.seen.reach(Point::SchemaLost);
            self.services.schemas[node].overwrite(Tables::default());
        }
    }

    fn reach_if_leader(&self, node: usize, point: Point) {
        if self.nodes[node].as_ref().is_some_and(Node::leads) {
            self.seen.reach(point);
        }
    }

    fn with(&self, node: usize, work: impl FnOnce(&Node)) {
        if let Some(node) = &self.nodes[node] {
            work(node);
        }
    }
}

/// The fault in the history, with what it hits.
fn name(fault: Fault) -> &'static str {
    match fault {
        Fault::Kill(_) => "kill",
        Fault::Stop(_) => "stop",
        Fault::Pause(_) => "pause",
        Fault::CutPeers(..) => "cut one way between nodes",
        Fault::CutOffPeers(_) => "cut off from nodes",
        Fault::CutKafka(..) => "cut off from Kafka",
        Fault::LoseHeartbeats(_) => "lose heartbeats",
        Fault::GiveUp(_) => "give up the producer",
        Fault::LoseAnswers => "lose answers between nodes",
        Fault::SlowNetwork => "slow network",
        Fault::SlowKafka => "slow Kafka",
        Fault::SlowPostgres(_) => "slow PostgreSQL",
        Fault::PostgresAway(_) => "PostgreSQL away",
        Fault::DiskFull(_) => "disk full",
        Fault::LoseConnections(_) => "lose PostgreSQL's connections",
        Fault::CrashPostgres(..) => "crash PostgreSQL",
        Fault::LoseCommit(_) => "lose the answer to a commit",
        Fault::RefuseFlush(..) => "refuse a flush",
        Fault::Alone(_) => "no in-sync replica follows",
        Fault::Foreign(_) => "foreign record",
        Fault::Marker(_) => "marker",
        Fault::Trim(_) => "trim",
        Fault::Move(_) => "move",
        Fault::TrimPast(..) => "trim past a replica",
        Fault::LoseSchema(_) => "lose a schema",
    }
}
