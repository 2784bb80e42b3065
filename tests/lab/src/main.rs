//! The lab's program: `cargo lab …`.

use std::process::ExitCode;

use clap::Parser;
use kvcluster_lab::args::Args;

fn main() -> ExitCode {
    match kvcluster_lab::run(Args::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
