//! Logs: to standard output, as text or as JSON.
//!
//! `KVCLUSTER_LOG` is the filter (`info`, `kvcluster_node=debug,info`, …); `KVCLUSTER_LOG_FORMAT` is `text` or `json`.

use tracing_subscriber::EnvFilter;

/// Environment variable: which events are logged.
pub const FILTER: &str = "KVCLUSTER_LOG";
/// Environment variable: how they are written.
pub const FORMAT: &str = "KVCLUSTER_LOG_FORMAT";
/// The filter when none is given.
const FILTER_DEFAULT: &str = "info";

/// Why logging could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The filter does not parse.
    #[error("{FILTER}: {0}")]
    Filter(#[from] tracing_subscriber::filter::ParseError),
    /// Neither `text` nor `json`.
    #[error("{FORMAT} is {0:?}: it may be text or json")]
    Format(String),
    /// Set up already.
    #[error("failed to set the logger: {0}")]
    Set(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Sets the process up to log as the environment says.
pub fn init() -> Result<(), TelemetryError> {
    let variable = |name| std::env::var(name).ok().filter(|text| !text.is_empty());
    let filter = variable(FILTER).unwrap_or_else(|| FILTER_DEFAULT.to_owned());
    let builder = tracing_subscriber::fmt().with_env_filter(EnvFilter::try_new(filter)?);
    match variable(FORMAT).as_deref() {
        None | Some("text") => builder.with_ansi(false).try_init(),
        Some("json") => builder.json().flatten_event(true).try_init(),
        Some(other) => return Err(TelemetryError::Format(other.to_owned())),
    }
    .map_err(TelemetryError::Set)
}
