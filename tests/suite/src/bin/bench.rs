//! `cargo lab bench`: what the number of slots costs, on the running lab's Kafka and PostgreSQL.

use std::process::ExitCode;

fn main() -> ExitCode {
    match kvcluster_suite::bench::run(std::env::args().skip(1)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}
