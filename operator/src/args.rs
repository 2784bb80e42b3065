//! Command line and environment.

use clap::{Parser, Subcommand, ValueEnum};
use tracing_subscriber::EnvFilter;

use crate::local::{self, LocalArgs};
use crate::operate::{self, OperateArgs};

/// Makes replicated key-value stores out of KvCluster manifests.
#[derive(Debug, Parser)]
#[command(name = "kvcluster-operator", version)]
pub struct Args {
    /// Without a command: run the operator against Kubernetes.
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    operate: OperateArgs,
    /// How log lines are written.
    #[arg(long, env = "KVCLUSTER_LOG_FORMAT", value_enum, default_value_t = LogFormat::Json)]
    log_format: LogFormat,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Prepare Kafka and PostgreSQL for nodes that run as plain processes, and tell how to start them.
    Local(LocalArgs),
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LogFormat {
    Json,
    Text,
}

/// Runs what the arguments ask for, until it ends or is told to stop.
pub async fn run(args: Args) -> anyhow::Result<()> {
    let Args {
        command,
        operate,
        log_format,
    } = args;
    start_logging(log_format);
    match command {
        Some(Command::Local(args)) => local::run(args).await,
        None => operate::run(operate).await,
    }
}

/// `RUST_LOG` chooses what is logged.
fn start_logging(format: LogFormat) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    match format {
        LogFormat::Json => lines
            .json()
            .with_current_span(false)
            .with_span_list(false)
            .init(),
        LogFormat::Text => lines.init(),
    }
}
