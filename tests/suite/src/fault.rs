//! Faults of a running local store: each is made, held for a while and taken back, and says what shows that it happened.

mod disk;

use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use fastrand::Rng;
use kvcluster_crds::NodeId;
use kvcluster_crds::slot::slot_of_key;

use crate::lab::{self, Lab, SCHEMA_PREFIX};
use crate::{check, election, kafka, poll, processes};

/// Longest time until each slot has a leader, when a fault is to hit one: another fault may be held.
const LEADER_LIMIT: Duration = Duration::from_secs(10);
/// Longest run of `kill`.
const KILL_LIMIT: Duration = Duration::from_secs(5);
/// Time between two moves of Kafka's leaders: a client has found the new ones by then.
const MOVE_EVERY: Duration = Duration::from_millis(500);

/// Nodes that join.
const JOINING: usize = 2;

/// A kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Fault {
    /// SIGKILL of the leader of a key that is used, and its return.
    LeaderKilled,
    /// SIGKILL of the leader of a key that is used, and its return with an empty schema.
    StateLost,
    /// SIGKILL of two nodes of three, and their return.
    MajorityKilled,
    /// SIGKILL of all nodes, and their return.
    AllNodesKilled,
    /// The leader of a key that is used gives its slots away, ends, and returns.
    LeaderStopsGracefully,
    /// SIGSTOP of the leader of a key that is used until long after its lease, then SIGCONT.
    LeaderPaused,
    /// The same, shorter than its lease.
    LeaderPausedShortly,
    /// SIGSTOP of all nodes past their leases, then SIGCONT: a machine that was suspended.
    AllNodesPaused,
    /// What such a leader sends to Kafka is lost.
    CutFromKafka,
    /// Kafka gets what such a leader sends, and its answers are lost.
    KafkaAnswersLost,
    /// What a node sends to PostgreSQL is lost.
    CutFromPostgres,
    /// PostgreSQL gets what a node sends, and its answers are lost: commits of unknown outcome.
    PostgresAnswersLost,
    /// What a node that does not lead such a key sends to other nodes is lost.
    CutFromPeers,
    /// What other nodes send to such a leader is lost.
    PeersCutFromLeader,
    /// SIGKILL of a broker of three, and its return.
    BrokerKilled,
    /// A broker ends after giving its partitions away, and returns.
    BrokerStopsGracefully,
    /// SIGSTOP of a broker, then SIGCONT.
    BrokerPaused,
    /// A broker's packets to the other brokers are lost.
    BrokerIsolated,
    /// Leaders of the log's partitions move to other brokers, several times, while all brokers are well.
    LeadersMoved,
    /// The disk of a broker is full: it ends, and returns when there is room.
    BrokerDiskFull,
    /// The disks of all brokers are full.
    KafkaDisksFull,
    /// PostgreSQL's disk is full.
    PostgresDiskFull,
    /// SIGKILL of PostgreSQL, and its return.
    PostgresKilled,
    /// PostgreSQL ends, rolling back what is open, and returns.
    PostgresRestarted,
    /// PostgreSQL ends every connection of a node.
    ConnectionsEnded,
    /// A lock that a flush needs is held: a statement that takes long.
    FlushBlocked,
    /// SIGSTOP of the PostgreSQL processes that serve a node: its statements hang.
    StatementsHang,
    /// Two nodes join, get their share of the replicas, and leave again.
    NodesJoinAndLeave,
    /// Clients give up after a few milliseconds, in the middle of what they asked for.
    ClientsGiveUp,
}

/// Every kind.
pub const ALL: [Fault; 29] = [
    Fault::LeaderKilled,
    Fault::CutFromKafka,
    Fault::LeaderPaused,
    Fault::BrokerKilled,
    Fault::PostgresAnswersLost,
    Fault::LeaderStopsGracefully,
    Fault::KafkaAnswersLost,
    Fault::PostgresKilled,
    Fault::StateLost,
    Fault::CutFromPeers,
    Fault::MajorityKilled,
    Fault::BrokerPaused,
    Fault::FlushBlocked,
    Fault::ClientsGiveUp,
    Fault::AllNodesPaused,
    Fault::CutFromPostgres,
    Fault::PeersCutFromLeader,
    Fault::BrokerIsolated,
    Fault::ConnectionsEnded,
    Fault::AllNodesKilled,
    Fault::LeaderPausedShortly,
    Fault::BrokerStopsGracefully,
    Fault::PostgresRestarted,
    Fault::StatementsHang,
    Fault::LeadersMoved,
    Fault::PostgresDiskFull,
    Fault::BrokerDiskFull,
    Fault::KafkaDisksFull,
    Fault::NodesJoinAndLeave,
];

/// What a fault is done to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Of {
    Nodes,
    Connections,
    Brokers,
    Postgres,
    Clients,
}

impl Fault {
    /// Whether it cuts connections. All cuts are taken back together, so only one such fault can be held at a time.
    fn cuts(self) -> bool {
        self.of() == Of::Connections
    }

    /// Whether both can be held at the same time.
    pub fn goes_with(self, other: Self) -> bool {
        // To empty a schema needs a server that answers.
        let empties = |one: Self, two: Self| one == Self::StateLost && two.of() == Of::Postgres;
        // Who joins needs all services, and the operator asks all nodes.
        let joins = |one: Self| one == Self::NodesJoinAndLeave;
        self.of() != other.of()
            && !empties(self, other)
            && !empties(other, self)
            && !joins(self)
            && !joins(other)
    }

    fn of(self) -> Of {
        match self {
            Self::LeaderKilled
            | Self::StateLost
            | Self::MajorityKilled
            | Self::AllNodesKilled
            | Self::LeaderStopsGracefully
            | Self::LeaderPaused
            | Self::LeaderPausedShortly
            | Self::AllNodesPaused
            | Self::NodesJoinAndLeave => Of::Nodes,
            Self::CutFromKafka
            | Self::KafkaAnswersLost
            | Self::CutFromPostgres
            | Self::PostgresAnswersLost
            | Self::CutFromPeers
            | Self::PeersCutFromLeader
            | Self::BrokerIsolated => Of::Connections,
            Self::BrokerKilled
            | Self::BrokerStopsGracefully
            | Self::BrokerPaused
            | Self::LeadersMoved
            | Self::BrokerDiskFull
            | Self::KafkaDisksFull => Of::Brokers,
            Self::PostgresKilled
            | Self::PostgresDiskFull
            | Self::PostgresRestarted
            | Self::ConnectionsEnded
            | Self::FlushBlocked
            | Self::StatementsHang => Of::Postgres,
            Self::ClientsGiveUp => Of::Clients,
        }
    }
}

/// A fault, and how long it is held.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// The kind.
    pub fault: Fault,
    /// How long.
    pub held: Duration,
    /// Chooses what is hit.
    pub seed: u64,
}

/// What a fault did.
#[derive(Clone, Debug)]
pub struct Done {
    /// What it hit.
    pub target: String,
    /// What shows that it happened.
    pub evidence: String,
    /// Whether it happened: beside another fault it may find nothing to hit.
    pub fired: bool,
}

impl Plan {
    /// A plan of that kind whose time fits it.
    pub fn new(fault: Fault, rng: &mut Rng) -> Self {
        let milliseconds = match fault {
            Fault::LeaderPausedShortly => 100..400,
            Fault::LeaderPaused | Fault::AllNodesPaused => 900..2_500,
            Fault::BrokerPaused | Fault::BrokerIsolated => 1_500..3_500,
            Fault::BrokerDiskFull | Fault::KafkaDisksFull | Fault::PostgresDiskFull => 2_500..5_000,
            _ => 300..2_500,
        };
        Self {
            fault,
            held: Duration::from_millis(rng.u64(milliseconds)),
            seed: rng.u64(..),
        }
    }

    /// Makes the fault, holds it, and takes it back. Clients use `key`, so what is done to its leader is felt; `give_up` turns
    /// their impatience on and off.
    pub fn run(&self, key: &str, give_up: &dyn Fn(bool)) -> Result<Done> {
        let done = self.act(key, give_up).with_context(|| format!("{self:?}"));
        if !self.fault.cuts() {
            return done;
        }
        // Whatever went wrong on the way, no cut stays.
        let dropped = lab::heal()?;
        let mut done = done?;
        done.fired = dropped > 0;
        done.evidence = format!("{dropped} packets dropped");
        Ok(done)
    }

    fn act(&self, key: &str, give_up: &dyn Fn(bool)) -> Result<Done> {
        let mut rng = Rng::with_seed(self.seed);
        let lab = Lab::local()?;
        let node = lab.nodes[rng.usize(..lab.nodes.len())].id;
        let mut names: Vec<String> = lab.nodes.iter().map(|node| name(node.id)).collect();
        let broker = format!("kafka-{}", rng.usize(..lab.brokers()?));
        match self.fault {
            Fault::LeaderKilled => self.kill(&[leader_of(&lab, key)?]),
            Fault::StateLost => self.lose_state(&lab, key),
            Fault::MajorityKilled => {
                rng.shuffle(&mut names);
                self.kill(&names[..=names.len() / 2])
            }
            Fault::AllNodesKilled => self.kill(&names),
            Fault::LeaderStopsGracefully => stop(&leader_of(&lab, key)?, "TERM"),
            Fault::LeaderPaused | Fault::LeaderPausedShortly => {
                self.pause(&[leader_of(&lab, key)?])
            }
            Fault::AllNodesPaused => self.pause(&names),
            Fault::CutFromKafka => self.cut(&leader_of(&lab, key)?, "kafka", false),
            Fault::KafkaAnswersLost => self.cut(&leader_of(&lab, key)?, "kafka", true),
            Fault::CutFromPostgres => self.cut(&name(node), "postgres", false),
            Fault::PostgresAnswersLost => self.cut(&name(node), "postgres", true),
            Fault::CutFromPeers => {
                // One that has to ask another for the key.
                let leader = leader_of(&lab, key)?;
                names.retain(|other| *other != leader);
                self.cut(&names[rng.usize(..names.len())], "node", false)
            }
            Fault::PeersCutFromLeader => {
                let leader = leader_of(&lab, key)?;
                names.retain(|other| *other != leader);
                for other in &names {
                    lab::cut(other, &leader, false)?;
                }
                thread::sleep(self.held);
                Ok(Done::of(&leader, String::new()))
            }
            Fault::BrokerKilled => self.kill(&[broker]),
            Fault::BrokerStopsGracefully => stop(&broker, "TERM"),
            Fault::BrokerPaused => self.pause(&[broker]),
            Fault::LeadersMoved => self.move_leaders(&lab),
            Fault::BrokerDiskFull => disk::fill(&lab, &[broker], self),
            Fault::KafkaDisksFull => {
                let all: Vec<_> = (0..lab.brokers()?)
                    .map(|id| format!("kafka-{id}"))
                    .collect();
                disk::fill(&lab, &all, self)
            }
            Fault::PostgresDiskFull => disk::fill(&lab, &["postgres".to_owned()], self),
            Fault::BrokerIsolated => self.cut(&broker, "kafka", false),
            Fault::PostgresKilled => self.kill(&["postgres".to_owned()]),
            Fault::PostgresRestarted => stop("postgres", "INT"),
            Fault::ConnectionsEnded => end_connections(&lab, node),
            Fault::FlushBlocked => self.block_flush(&lab, node),
            Fault::StatementsHang => self.hang_statements(&lab, node),
            Fault::NodesJoinAndLeave => self.scale(&lab),
            Fault::ClientsGiveUp => {
                give_up(true);
                thread::sleep(self.held);
                give_up(false);
                Ok(Done::of("clients", format!("for {:?}", self.held)))
            }
        }
    }

    fn kill(&self, parts: &[String]) -> Result<Done> {
        parts.iter().try_for_each(|part| lab::kill(part))?;
        thread::sleep(self.held);
        parts.iter().try_for_each(|part| lab::start(part))?;
        Ok(Done::of(&parts.join(", "), "gone, and started".to_owned()))
    }

    fn scale(&self, lab: &Lab) -> Result<Done> {
        let usual = lab.nodes.len();
        lab::scale(usual + JOINING)?;
        let joined: Vec<String> = Lab::local()?
            .nodes
            .iter()
            .filter(|node| lab.nodes.iter().all(|old| old.id != node.id))
            .map(|node| name(node.id))
            .collect();
        thread::sleep(self.held);
        lab::scale(usual)?;
        Ok(Done {
            target: joined.join(", "),
            evidence: "joined, and left".to_owned(),
            fired: joined.len() == JOINING,
        })
    }

    fn lose_state(&self, lab: &Lab, key: &str) -> Result<Done> {
        let leader = leader_of(lab, key)?;
        let node = leader.trim_start_matches("node-").parse()?;
        lab::kill(&leader)?;
        thread::sleep(self.held);
        check::empty_schema(lab, node)?;
        lab::start(&leader)?;
        Ok(Done::of(&leader, "gone, and started empty".to_owned()))
    }

    fn pause(&self, parts: &[String]) -> Result<Done> {
        for part in parts {
            lab::signal(part, "STOP")?;
        }
        thread::sleep(self.held);
        for part in parts {
            lab::signal(part, "CONT")?;
        }
        Ok(Done::of(
            &parts.join(", "),
            format!("stood still for {:?}", self.held),
        ))
    }

    fn cut(&self, part: &str, target: &str, answers: bool) -> Result<Done> {
        lab::cut(part, target, answers)?;
        thread::sleep(self.held);
        Ok(Done::of(part, String::new()))
    }

    fn move_leaders(&self, lab: &Lab) -> Result<Done> {
        let topic = lab.names().log_topic();
        let begun = Instant::now();
        let mut moved = 0;
        while begun.elapsed() < self.held {
            moved += kafka::move_leaders(lab.kafka()?, &topic)?;
            thread::sleep(MOVE_EVERY);
        }
        Ok(Done::counted(
            "kafka",
            moved,
            "partitions got another leader",
        ))
    }

    fn block_flush(&self, lab: &Lab, node: u32) -> Result<Done> {
        let schema = lab.names().schema(SCHEMA_PREFIX, NodeId(node));
        let seconds = self.held.as_secs_f64();
        let held = format!(
            "BEGIN; LOCK TABLE \"{schema}\".slot_state IN ACCESS EXCLUSIVE MODE; SELECT pg_sleep({seconds}); \
             SELECT count(*) FROM pg_locks WHERE NOT granted; COMMIT"
        );
        let waiting = check::query(lab.postgres()?, &held)?;
        let count = waiting.trim().parse()?;
        Ok(Done::counted(&name(node), count, "statements waited"))
    }

    fn hang_statements(&self, lab: &Lab, node: u32) -> Result<Done> {
        let pids = backends(lab, node)?;
        send("STOP", &pids)?;
        thread::sleep(self.held);
        send("CONT", &pids)?;
        Ok(Done::counted(
            &name(node),
            pids.len(),
            "connections stood still",
        ))
    }
}

impl Done {
    fn of(target: &str, evidence: String) -> Self {
        Self {
            target: target.to_owned(),
            evidence,
            fired: true,
        }
    }

    fn counted(target: &str, count: usize, what: &str) -> Self {
        Self {
            target: target.to_owned(),
            evidence: format!("{count} {what}"),
            fired: count > 0,
        }
    }
}

fn name(node: u32) -> String {
    format!("node-{node}")
}

/// The node that leads the slot of a key.
fn leader_of(lab: &Lab, key: &str) -> Result<String> {
    poll::until(LEADER_LIMIT, "a leader for each slot", || {
        let reports = lab.nodes.iter().filter_map(|node| node.status().ok());
        let leaders = election::leaders_of(&reports.collect::<Vec<_>>())?;
        let slot = slot_of_key(key.as_bytes(), u32::try_from(leaders.len())?);
        Ok(leaders.get(&slot.0).map(|leader| name(*leader)))
    })
}

fn stop(part: &str, signal: &str) -> Result<Done> {
    lab::signal(part, signal)?;
    lab::start(part)?;
    Ok(Done::of(part, format!("ended by {signal}, and started")))
}

fn end_connections(lab: &Lab, node: u32) -> Result<Done> {
    let role = lab.names().schema(SCHEMA_PREFIX, NodeId(node));
    let statement = format!(
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE usename = '{role}'"
    );
    let ended = check::query(lab.postgres()?, &statement)?;
    let count = ended.trim().parse()?;
    Ok(Done::counted(&name(node), count, "connections ended"))
}

fn backends(lab: &Lab, node: u32) -> Result<Vec<String>> {
    let role = lab.names().schema(SCHEMA_PREFIX, NodeId(node));
    let statement = format!("SELECT pid FROM pg_stat_activity WHERE usename = '{role}'");
    let pids = check::query(lab.postgres()?, &statement)?;
    Ok(pids.split_whitespace().map(str::to_owned).collect())
}

fn send(signal: &str, pids: &[String]) -> Result<()> {
    // One that has ended meanwhile is no reason to leave the others as they are.
    let script = format!(
        "for pid in {}; do kill -{signal} $pid || true; done",
        pids.join(" ")
    );
    processes::output(Command::new("sh").args(["-c", &script]), KILL_LIMIT).map(drop)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn no_kind_is_named_twice() {
        assert_eq!(BTreeSet::from(ALL).len(), ALL.len());
    }

    #[test]
    fn a_plan_depends_on_its_seed_alone() {
        let plan = |seed| Plan::new(Fault::LeaderPaused, &mut Rng::with_seed(seed));
        assert_eq!((plan(1).held, plan(1).seed), (plan(1).held, plan(1).seed));
        assert_ne!(plan(1).seed, plan(2).seed);
        assert!(
            plan(1).held > Duration::from_millis(600),
            "longer than a lease"
        );
    }
}
