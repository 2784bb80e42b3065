//! What a process is started with: flags, or the environment that the operator writes. All of it is checked here.

use std::net::SocketAddr;

use clap::{Args, Parser, ValueEnum};
use kvcluster_crds::names::ClusterNames;
use kvcluster_crds::{LogId, NodeId, environment};

use crate::slot::trim::Keep;

/// First argument that makes the program read a log instead of running a node.
pub const DECODE_LOG: &str = "decode-log";

/// A store node of a `KvCluster`.
#[derive(Clone, Debug, Parser)]
#[command(
    name = "kvcluster-node",
    version,
    about = "A store node of a KvCluster",
    after_help = "kvcluster-node decode-log --help: read a whole log topic and print what it holds"
)]
pub struct NodeArgs {
    /// Name of the KvCluster
    #[arg(long, env = environment::CLUSTER, value_parser = not_empty)]
    pub cluster: String,
    /// Kubernetes namespace of the KvCluster
    #[arg(long, env = environment::NAMESPACE, value_parser = not_empty)]
    pub namespace: String,
    /// UID of the KvCluster: an assignment of another cluster is not followed
    #[arg(long, env = environment::CLUSTER_UID, value_parser = not_empty)]
    pub cluster_uid: String,
    /// Id of this node
    #[arg(long, env = environment::NODE_ID)]
    pub node_id: u32,
    /// Number of slots of the cluster
    #[arg(long, env = environment::SLOTS, value_parser = clap::value_parser!(u32).range(1..=1_024))]
    pub slots: u32,
    /// Log id, 16 hexadecimal digits
    #[arg(long, env = environment::LOG_ID)]
    pub log_id: LogId,
    /// Kafka's bootstrap servers, host:port separated by commas
    #[arg(long, env = environment::KAFKA_BOOTSTRAP, value_parser = not_empty)]
    pub kafka_bootstrap: String,
    /// What the node needs of PostgreSQL
    #[command(flatten)]
    pub postgres: PostgresArgs,
    /// Address of the REST port
    #[arg(long, env = environment::LISTEN, default_value = "0.0.0.0:8080")]
    pub listen: SocketAddr,
    /// Address of the admin port
    #[arg(long, env = environment::ADMIN_LISTEN, default_value = "0.0.0.0:9090")]
    pub admin_listen: SocketAddr,
    /// The times of elections
    #[command(flatten)]
    pub times: TimeArgs,
    /// Most bytes of effects that are in the log but not in PostgreSQL; above, writes get 429
    #[arg(long, env = environment::UNFLUSHED_BYTES_MAX, default_value_t = 64 << 20, value_parser = clap::value_parser!(u64).range(1 << 20..))]
    pub unflushed_bytes_max: u64,
    /// Bytes of the read cache
    #[arg(long, env = environment::CACHE_BYTES, default_value_t = 64 << 20)]
    pub cache_bytes: u64,
    /// How far the log is trimmed, and when a replica begins with a snapshot
    #[command(flatten)]
    pub trim: TrimArgs,
    /// How linearizable reads are served
    #[arg(long, env = environment::READS, default_value = "Lease")]
    pub reads: Reads,
}

/// Where PostgreSQL is.
#[derive(Clone, Debug, Args)]
pub struct PostgresArgs {
    /// URL of the node's role
    #[arg(long = "postgres-url", env = environment::POSTGRES_URL, hide_env_values = true, value_parser = not_empty)]
    pub url: String,
    /// Schema of the node
    #[arg(long = "postgres-schema", env = environment::POSTGRES_SCHEMA, value_parser = not_empty)]
    pub schema: String,
    /// Most connections
    #[arg(long = "postgres-connections", env = environment::POSTGRES_CONNECTIONS, default_value_t = 8, value_parser = clap::value_parser!(u32).range(2..=100))]
    pub connections: u32,
}

/// The times of elections.
#[derive(Clone, Debug, Args)]
pub struct TimeArgs {
    /// Lease of a leader, milliseconds
    #[arg(long, env = environment::LEASE_MS, default_value_t = 600, value_parser = clap::value_parser!(u32).range(100..=60_000))]
    pub lease_ms: u32,
    /// Time between two heartbeats, milliseconds
    #[arg(long, env = environment::HEARTBEAT_MS, default_value_t = 150, value_parser = clap::value_parser!(u32).range(20..=10_000))]
    pub heartbeat_ms: u32,
    /// Time without a heartbeat after which a node is suspected, milliseconds
    #[arg(long, env = environment::SUSPICION_MS, default_value_t = 600, value_parser = clap::value_parser!(u32).range(100..=60_000))]
    pub suspicion_ms: u32,
}

/// How far the log is trimmed, and when a replica begins with a snapshot.
#[derive(Clone, Debug, Args)]
pub struct TrimArgs {
    /// Records of each slot that stay in the log although every replica has them durably
    #[arg(long, env = environment::LOG_KEEP_RECORDS, default_value_t = 10_000, value_parser = clap::value_parser!(i64).range(0..))]
    pub log_keep_records: i64,
    /// Seconds after which a replica that is not heard of no longer keeps the log from being trimmed
    #[arg(long, env = environment::LOST_REPLICA_SECONDS, default_value_t = 3_600, value_parser = clap::value_parser!(u64).range(60..))]
    pub lost_replica_seconds: u64,
    /// Seconds for which the rows of a slot stay, at least, that is not assigned to this node any more
    #[arg(long, env = environment::REMOVE_AFTER_SECONDS, default_value_t = 60)]
    pub remove_after_seconds: u64,
    /// A replica without state that would have to read more records than this asks others for a snapshot
    #[arg(long, env = environment::SNAPSHOT_FROM_RECORDS, default_value_t = 100_000, value_parser = clap::value_parser!(i64).range(0..))]
    pub snapshot_from_records: i64,
}

impl TrimArgs {
    /// What the trimming goes by.
    pub fn keep(&self) -> Keep {
        Keep {
            records: self.log_keep_records,
            lost_after_ms: self.lost_replica_seconds.saturating_mul(1_000),
        }
    }
}

/// How linearizable reads are served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "PascalCase")]
pub enum Reads {
    /// By the leader's lease
    Lease,
    /// Each group of reads waits for a record of the leader
    Log,
}

/// Reads a whole log topic, judges every record and prints what it holds as JSON.
#[derive(Clone, Debug, Parser)]
#[command(name = "kvcluster-node decode-log", version)]
pub struct DecodeLogArgs {
    /// Kafka's bootstrap servers, host:port separated by commas
    #[arg(long, env = environment::KAFKA_BOOTSTRAP, value_parser = not_empty)]
    pub bootstrap: String,
    /// The log topic
    #[arg(long, value_parser = not_empty)]
    pub topic: String,
    /// Log id, 16 hexadecimal digits; without it the first record of each partition decides
    #[arg(long, env = environment::LOG_ID)]
    pub log_id: Option<LogId>,
    /// Print every change that counts instead, one JSON object per line: partition, offset, key, value (null: deleted)
    #[arg(long)]
    pub effects: bool,
}

/// What a process was asked to do.
#[derive(Clone, Debug)]
pub enum Invocation {
    /// Run a node.
    Node(Box<NodeArgs>),
    /// Read a log.
    DecodeLog(DecodeLogArgs),
}

/// Settings that contradict each other.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ArgsError {
    /// A node that is heard of in time would be suspected.
    #[error(
        "a suspicion time of {suspicion_ms} ms needs heartbeats at most every {} ms, not every {heartbeat_ms} ms",
        suspicion_ms / HEARTBEATS_PER_SUSPICION
    )]
    Heartbeats {
        /// As set.
        heartbeat_ms: u32,
        /// As set.
        suspicion_ms: u32,
    },
}

/// A single late heartbeat must not make a node suspected.
const HEARTBEATS_PER_SUSPICION: u32 = 2;

impl Invocation {
    /// From the process's arguments and environment. Ends the process with a message when they are wrong.
    pub fn parse() -> Self {
        let mut arguments = std::env::args_os();
        let program = arguments.next();
        if arguments.next().is_some_and(|first| first == DECODE_LOG) {
            return Self::DecodeLog(DecodeLogArgs::parse_from(
                program.into_iter().chain(arguments),
            ));
        }
        Self::Node(Box::new(NodeArgs::parse()))
    }
}

impl NodeArgs {
    /// Checks what no single setting shows.
    pub fn check(&self) -> Result<(), ArgsError> {
        let TimeArgs {
            heartbeat_ms,
            suspicion_ms,
            ..
        } = self.times;
        if heartbeat_ms * HEARTBEATS_PER_SUSPICION > suspicion_ms {
            return Err(ArgsError::Heartbeats {
                heartbeat_ms,
                suspicion_ms,
            });
        }
        Ok(())
    }

    /// This node.
    pub fn node(&self) -> NodeId {
        NodeId(self.node_id)
    }

    /// The names of the cluster.
    pub fn names(&self) -> ClusterNames {
        ClusterNames::new(self.namespace.clone(), self.cluster.clone())
    }

    /// Name of this node's Kafka clients.
    pub fn client_id(&self) -> String {
        format!("{}.{}.{}", self.namespace, self.cluster, self.node_id)
    }
}

fn not_empty(text: &str) -> Result<String, String> {
    if text.is_empty() {
        Err("must not be empty".to_owned())
    } else {
        Ok(text.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(more: &[&str]) -> Result<NodeArgs, clap::Error> {
        let least = [
            "kvcluster-node",
            "--cluster=demo",
            "--namespace=default",
            "--cluster-uid=uid",
            "--node-id=1",
            "--slots=16",
            "--log-id=0011223344556677",
            "--kafka-bootstrap=k:9092",
            "--postgres-url=postgres://u:p@h/d",
            "--postgres-schema=kv_demo_1",
        ];
        NodeArgs::try_parse_from(least.iter().chain(more))
    }

    #[test]
    fn the_least_is_enough() {
        let args = parse(&[]).expect("parses");
        assert_eq!(
            (args.node(), args.reads, args.times.lease_ms),
            (NodeId(1), Reads::Lease, 600)
        );
        assert_eq!(args.names().log_topic(), "default.demo.log");
        assert_eq!(args.check(), Ok(()));
    }

    #[test]
    fn wrong_settings_are_refused() {
        for wrong in [
            "--slots=0",
            "--slots=1025",
            "--log-id=12",
            "--reads=Maybe",
            "--cluster=",
            "--lease-ms=1",
            "--postgres-connections=1",
            "--listen=nowhere",
        ] {
            assert!(parse(&[wrong]).is_err(), "{wrong}");
        }
    }

    #[test]
    fn heartbeats_must_be_frequent_enough() {
        let args = parse(&["--heartbeat-ms=400"]).expect("parses");
        let error = args.check().expect_err("too slow");
        assert!(
            error.to_string().contains("every 300 ms, not every 400 ms"),
            "{error}"
        );
        assert_eq!(
            parse(&["--reads=Log", "--heartbeat-ms=300"])
                .expect("parses")
                .check(),
            Ok(())
        );
    }
}
