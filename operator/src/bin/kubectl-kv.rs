//! `kubectl kv`: the program that kubectl finds by its name.

use std::process::ExitCode;

use clap::Parser;
use kvcluster_operator::plugin::{Args, run};

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
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
