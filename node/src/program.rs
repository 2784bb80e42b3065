//! What the program does, whatever it is called.

use crate::args::Invocation;
use crate::{runtime, telemetry};

/// Runs until the work is done or the process is asked to stop.
pub fn main() -> anyhow::Result<()> {
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
