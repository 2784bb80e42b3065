//! The program.

use kvcluster_node::args::Invocation;
use kvcluster_node::{runtime, telemetry};

fn main() -> anyhow::Result<()> {
    match Invocation::parse() {
        Invocation::DecodeLog(args) => runtime::decode_log(&args),
        Invocation::Node(args) => {
            telemetry::init()?;
            tokio::runtime::Builder::new_multi_thread()
                .enable_all()
                .build()?
                .block_on(runtime::run(*args))
        }
    }
}
