//! PostgreSQL connections, made for one look or one step and closed after it.
//!
//! There is no pool: a connection costs about 10 ms, nothing is held while a cluster is quiet, and a failure shows its true
//! reason, which a pool hides behind its own time-out while it tries again.

use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{ConnectOptions, Connection};

use crate::secret_text::{self, SecretText};

/// Connecting and logging in.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(4);
/// One look, or one step with all its statements. Dropping a schema waits for locks of sessions that are just ending.
pub const WORK_TIMEOUT: Duration = Duration::from_secs(20);

/// Why PostgreSQL could not be asked. The places are `host:port/database`, without a password.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum PostgresTrouble {
    /// The Secret is not there.
    #[error(
        "Secret {name} is not there; create it with key {key} = postgres://user:password@host:port/database"
    )]
    SecretMissing {
        /// Name of the Secret.
        name: String,
        /// The key that is needed.
        key: String,
    },
    /// The Secret has no such key, or the key holds no URL.
    #[error(
        "Secret {name} has no usable key {key}; it must hold postgres://user:password@host:port/database"
    )]
    SecretUnusable {
        /// Name of the Secret.
        name: String,
        /// The key that is needed.
        key: String,
    },
    /// The Secret could not be read.
    #[error("Secret {name} cannot be read: {text}")]
    SecretUnreadable {
        /// Name of the Secret.
        name: String,
        /// The API server's words.
        text: String,
    },
    /// Nobody answers there.
    #[error(
        "PostgreSQL at {place} does not answer ({text}); check the URL in the Secret and that PostgreSQL runs"
    )]
    Unreachable {
        /// Where.
        place: String,
        /// Why, in stable words.
        text: String,
    },
    /// Wrong user or password.
    #[error(
        "PostgreSQL at {place} refuses the user or password of the Secret; put the right URL into it"
    )]
    WrongPassword {
        /// Where.
        place: String,
    },
    /// No such database.
    #[error(
        "PostgreSQL at {place} has no such database; create it or correct the URL in the Secret"
    )]
    DatabaseMissing {
        /// Where.
        place: String,
    },
    /// The admin role may not do what is needed.
    #[error(
        "PostgreSQL at {place}: the role of the Secret may not do this ({text}); it needs CREATEROLE and CREATE on the database"
    )]
    NotPermitted {
        /// Where.
        place: String,
        /// The server's words.
        text: String,
    },
    /// Any other answer of the server.
    #[error("PostgreSQL at {place} answered with an error: {text}")]
    Answered {
        /// Where.
        place: String,
        /// The server's words.
        text: String,
    },
}

/// Connects as the role of `url`.
pub async fn connect(url: &SecretText) -> Result<PgConnection, PostgresTrouble> {
    let place = secret_text::place(url);
    let options = secret_text::options(url).map_err(|error| PostgresTrouble::Unreachable {
        place: place.clone(),
        text: error.to_string(),
    })?;
    match tokio::time::timeout(
        CONNECT_TIMEOUT,
        PgConnection::connect_with(&pinned(options)),
    )
    .await
    {
        Ok(Ok(connection)) => Ok(connection),
        Ok(Err(error)) => Err(trouble(&place, &error)),
        Err(_) => Err(timed_out(place)),
    }
}

/// The search path is pinned, so that no object that somebody put into `public` is called in place of a built-in one.
fn pinned(options: PgConnectOptions) -> PgConnectOptions {
    options
        .options([
            ("search_path", "pg_catalog"),
            ("statement_timeout", "15000"),
            ("lock_timeout", "10000"),
        ])
        .application_name("kvcluster-operator")
        .disable_statement_logging()
}

/// Runs `work` within [`WORK_TIMEOUT`].
pub async fn within<T>(
    place: &str,
    work: impl Future<Output = Result<T, sqlx::Error>>,
) -> Result<T, PostgresTrouble> {
    match tokio::time::timeout(WORK_TIMEOUT, work).await {
        Ok(done) => done.map_err(|error| trouble(place, &error)),
        Err(_) => Err(timed_out(place.to_owned())),
    }
}

fn timed_out(place: String) -> PostgresTrouble {
    PostgresTrouble::Unreachable {
        place,
        text: "no answer in time".to_owned(),
    }
}

/// What an error means; by SQLSTATE, where there is one.
pub fn trouble(place: &str, error: &sqlx::Error) -> PostgresTrouble {
    let place = place.to_owned();
    match error {
        sqlx::Error::Database(answer) => {
            let text = answer.message().to_owned();
            match answer.code().as_deref() {
                Some("28P01" | "28000") => PostgresTrouble::WrongPassword { place },
                Some("3D000") => PostgresTrouble::DatabaseMissing { place },
                Some("42501") => PostgresTrouble::NotPermitted { place, text },
                Some(code) if code.starts_with("57P") || code.starts_with("08") => {
                    PostgresTrouble::Unreachable { place, text }
                }
                _ => PostgresTrouble::Answered { place, text },
            }
        }
        sqlx::Error::Io(error) => PostgresTrouble::Unreachable {
            place,
            text: error.kind().to_string(),
        },
        sqlx::Error::Tls(error) => PostgresTrouble::Unreachable {
            place,
            text: format!("TLS: {error}"),
        },
        other => PostgresTrouble::Answered {
            place,
            text: other.to_string(),
        },
    }
}
