//! The command line. Nothing here does anything.

use clap::{Parser, Subcommand, ValueEnum};

use crate::status::Mode;

/// Brings up a cluster, Kafka and PostgreSQL on this machine, and runs every suite against them.
#[derive(Debug, Parser)]
#[command(name = "cargo lab", bin_name = "cargo lab")]
pub struct Args {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// One command of the lab.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Bring up a kind cluster with the store in it, and leave it running until `down`
    Up,
    /// Run Kafka, PostgreSQL and store nodes as plain processes on 127.0.0.1, until `down`
    Local(LocalOptions),
    /// Stop and remove everything that the lab started
    Down {
        /// Only this: the cluster, or the plain processes
        #[arg(long, value_enum)]
        only: Option<Mode>,
    },
    /// Say what runs and where
    Status {
        /// As one JSON object
        #[arg(long)]
        json: bool,
        /// Where both run: which one
        #[arg(long, env = "KVCLUSTER_LAB_MODE", value_enum)]
        mode: Option<Mode>,
    },
    /// Run every suite against its time budget; brings up what they need
    Test {
        /// The whole of what only has a sample in the budget
        #[arg(long)]
        long: bool,
        /// Only these suites
        #[arg(long, value_name = "SUITE")]
        only: Vec<String>,
    },
    /// Measure; everything after `bench` goes to the measuring program
    Bench {
        /// Arguments of the measuring program
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Start a part of `local` that was killed: kafka-0, postgres, node-0, …
    Start {
        /// The part
        name: String,
    },
    /// Change the number of store nodes of `local`, while they serve
    Scale {
        /// Nodes
        #[arg(value_parser = clap::value_parser!(u16).range(1..=32))]
        nodes: u16,
    },
    /// Send a signal to a part of `local`: kafka-0, postgres, node-0, …
    Kill {
        /// The part
        name: String,
        /// Name or number of the signal
        #[arg(long, default_value = "KILL")]
        signal: String,
    },
    /// Drop the packets that a node or broker of `local` sends to others, until `heal`
    Cut {
        /// The part: kafka-0, node-0, …
        name: String,
        /// From whom: kafka, postgres, node (all of that kind), or a part
        #[arg(long, value_name = "PART")]
        from: String,
        /// Its packets arrive, and the answers to them do not
        #[arg(long)]
        answers: bool,
    },
    /// Start the nodes of `local` anew, with another program beside their own; without one, with their own again
    Nodes {
        /// The program's name
        #[arg(long)]
        program: Option<String>,
        /// A variable for them, NAME=VALUE
        #[arg(long, requires = "program")]
        env: Option<String>,
    },
    /// Fill the disk of a broker or of PostgreSQL, where `local` was begun with small ones
    Fill {
        /// The part: kafka-0, postgres, …
        name: String,
        /// Make room again
        #[arg(long)]
        undo: bool,
    },
    /// Take back every cut
    Heal,
    /// Stop or start a worker of the cluster that `up` made, which is a container
    Worker {
        /// What to do
        #[arg(value_enum)]
        change: WorkerChange,
        /// Its name, as `kubectl get nodes` shows it
        name: String,
    },
}

/// What happens to a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum WorkerChange {
    /// All that runs on it ends at once, and Kubernetes is not told
    Stop,
    /// It runs again, and pods on it can be reached
    Start,
}

/// Store nodes of `local` unless told otherwise: as many as the sample has.
pub const USUAL_NODES: u16 = 3;
/// Brokers of `local` unless told otherwise: enough for all but faults of Kafka itself.
pub const USUAL_BROKERS: u16 = 1;

/// The size of `local`.
#[derive(Debug, Clone, clap::Args)]
pub struct LocalOptions {
    /// Store nodes
    #[arg(long, default_value_t = USUAL_NODES, value_parser = clap::value_parser!(u16).range(1..=32))]
    pub nodes: u16,
    /// Kafka brokers, each also a KRaft controller
    #[arg(long, default_value_t = USUAL_BROKERS, value_parser = clap::value_parser!(u16).range(1..=5))]
    pub brokers: u16,
    /// Only Kafka and PostgreSQL, no store nodes
    #[arg(long)]
    pub only_services: bool,
    /// Kafka and PostgreSQL on file systems in memory of a few hundred MiB, for `fill`; needs root
    #[arg(long)]
    pub small_disks: bool,
}
