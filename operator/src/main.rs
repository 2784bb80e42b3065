//! The operator's program.

use std::process::ExitCode;

use clap::Parser;
use kvcluster_operator::args::{Args, run};

#[tokio::main]
async fn main() -> ExitCode {
    // First of all: TLS connections fail while there is no provider.
    if rustls::crypto::ring::default_provider()
        .install_default()
        .is_err()
    {
        eprintln!("a TLS provider is installed already");
        return ExitCode::FAILURE;
    }
    match run(Args::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}
