//! The end of a process: the signals that ask for it, and the times that it may take.
//!
//! A graceful stop gives leaderships away, serves on until its place is known to be empty, finishes what it has begun and
//! writes everything to PostgreSQL. The times add up to less than the 30 s that Kubernetes gives.

use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};

/// Longest wait for the releases to stand in the log; without them others take over by suspicion.
pub const RELEASE_TIMEOUT: Duration = Duration::from_secs(3);
/// How long the REST port is open after the releases: a Service needs a moment to send nothing more here.
pub const ENDPOINT_GRACE: Duration = Duration::from_secs(1);
/// Longest wait for everything to be in PostgreSQL; what is not there is replayed from the log.
pub const FLUSH_TIMEOUT: Duration = Duration::from_secs(8);

/// Resolves at SIGTERM or SIGINT, with the signal's name.
pub async fn asked() -> std::io::Result<&'static str> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => Ok("SIGTERM"),
        _ = interrupt.recv() => Ok("SIGINT"),
    }
}
