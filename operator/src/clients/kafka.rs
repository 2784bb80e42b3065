//! Kafka clients, one per bootstrap address, shared by all clusters that name it and closed when idle.
//!
//! librdkafka's calls block, and dropping a client blocks too: both happen on threads made for blocking, never in an async
//! task. Metadata requests go out with topic creation switched off.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::ClientContext;
use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, ConsumerContext};
use rdkafka::error::KafkaError;
use rdkafka::types::RDKafkaErrorCode;

/// One metadata or offset request. Short, so that a wrong address stands in the status within seconds.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(4);
/// One change of topics, until all brokers know of it.
pub const CHANGE_TIMEOUT: Duration = Duration::from_secs(15);
/// A client that nobody asked for this long is closed; longer than the time between two looks at a quiet cluster.
const IDLE_MAX: Duration = Duration::from_mins(5);
/// Clients that are kept at most: each has a few threads and a connection per broker.
const CLIENTS_MAX: usize = 64;

/// Why Kafka could not be asked.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum KafkaTrouble {
    /// No broker answered in time.
    #[error("no broker of {bootstrap} answered within {} s{hint}; check spec.kafka.bootstrapServers and that Kafka runs", REQUEST_TIMEOUT.as_secs())]
    Unreachable {
        /// The address that was tried.
        bootstrap: String,
        /// What librdkafka said, made stable; empty or starting with `: `.
        hint: &'static str,
    },
    /// Partitions have no leader, or the brokers do not know a new topic yet: it passes by itself, within seconds as a rule.
    #[error("Kafka at {bootstrap} is still choosing leaders for the topics")]
    Settling {
        /// The address.
        bootstrap: String,
    },
    /// A broker answered with an error.
    #[error("Kafka at {bootstrap} refused to {action}: {code}")]
    Refused {
        /// The address.
        bootstrap: String,
        /// What was asked.
        action: &'static str,
        /// Kafka's error code in words.
        code: String,
    },
    /// The client could not be made.
    #[error("no Kafka client can be made for {bootstrap}: {text}")]
    Client {
        /// The address.
        bootstrap: String,
        /// librdkafka's words.
        text: String,
    },
}

/// All Kafka clients of the process.
#[derive(Default)]
pub struct KafkaClients {
    entries: Mutex<HashMap<String, Entry>>,
}

struct Entry {
    client: Arc<KafkaClient>,
    used: Instant,
}

/// The clients of one bootstrap address.
pub struct KafkaClient {
    /// The address.
    pub bootstrap: String,
    /// Makes and deletes topics, reads and sets their settings.
    pub admin: AdminClient<DefaultClientContext>,
    /// Reads metadata, offsets and records; one reader at a time.
    pub reader: Mutex<BaseConsumer<Notes>>,
}

/// Remembers the last connection error, for the hint in [`KafkaTrouble::Unreachable`].
#[derive(Default)]
pub struct Notes {
    last: Mutex<Option<String>>,
}

impl ClientContext for Notes {
    fn error(&self, error: KafkaError, reason: &str) {
        // That all brokers are down is told after the reason why each of them is.
        if error.rdkafka_error_code() == Some(RDKafkaErrorCode::AllBrokersDown) {
            return;
        }
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(reason.to_owned());
    }
}

impl ConsumerContext for Notes {}

impl Notes {
    /// The last error in stable words: a status must not change with every attempt's milliseconds.
    pub fn hint(&self) -> &'static str {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        match last.as_deref() {
            Some(text) if text.contains("resolve") => ": the host name does not resolve",
            Some(text) if text.contains("refused") => ": connection refused",
            Some(text) if text.contains("timed out") => ": connecting timed out",
            _ => "",
        }
    }
}

impl KafkaClients {
    /// The clients of `bootstrap`; closes those that were idle for long.
    pub async fn get(&self, bootstrap: &str) -> Result<Arc<KafkaClient>, KafkaTrouble> {
        let now = Instant::now();
        let (found, idle) = {
            let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
            let found = entries.get_mut(bootstrap).map(|entry| {
                entry.used = now;
                Arc::clone(&entry.client)
            });
            (found, take_idle(&mut entries, now))
        };
        drop_apart(idle);
        if let Some(client) = found {
            return Ok(client);
        }
        let client = Arc::new(connect(bootstrap.to_owned()).await?);
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = Entry {
            client: Arc::clone(&client),
            used: now,
        };
        drop_apart(
            entries
                .insert(bootstrap.to_owned(), entry)
                .into_iter()
                .collect(),
        );
        Ok(client)
    }
}

impl KafkaClients {
    /// Lets go of a client that gets no answer; the next pass makes another. librdkafka 2.12 was seen to find no way back to a
    /// broker that had been away for minutes.
    pub fn forget(&self, client: &Arc<KafkaClient>) {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let is_it = |entry: &Entry| Arc::ptr_eq(&entry.client, client);
        let forgotten = match entries.get(&client.bootstrap) {
            Some(entry) if is_it(entry) => entries.remove(&client.bootstrap),
            Some(_) | None => None,
        };
        drop(entries);
        drop_apart(forgotten.into_iter().collect());
    }
}

fn take_idle(entries: &mut HashMap<String, Entry>, now: Instant) -> Vec<Entry> {
    let mut idle: Vec<String> = entries
        .iter()
        .filter(|(_, entry)| now.duration_since(entry.used) > IDLE_MAX)
        .map(|(bootstrap, _)| bootstrap.clone())
        .collect();
    if entries.len() > CLIENTS_MAX {
        let oldest = entries.iter().min_by_key(|(_, entry)| entry.used);
        idle.extend(oldest.map(|(bootstrap, _)| bootstrap.clone()));
    }
    idle.iter()
        .filter_map(|bootstrap| entries.remove(bootstrap))
        .collect()
}

fn drop_apart(entries: Vec<Entry>) {
    if !entries.is_empty() {
        tokio::task::spawn_blocking(move || drop(entries));
    }
}

async fn connect(bootstrap: String) -> Result<KafkaClient, KafkaTrouble> {
    blocking(move || {
        let made = |error: KafkaError| KafkaTrouble::Client {
            bootstrap: bootstrap.clone(),
            text: error.to_string(),
        };
        let admin = config(&bootstrap).create().map_err(made)?;
        let reader = reader_config(&bootstrap)
            .create_with_context(Notes::default())
            .map_err(made)?;
        Ok(KafkaClient {
            bootstrap: bootstrap.clone(),
            admin,
            reader: Mutex::new(reader),
        })
    })
    .await
}

/// Runs `work` where it may block.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work)
        .await
        .expect("work on a blocking thread does not panic")
}

/// What every client is made with.
pub fn config(bootstrap: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", bootstrap)
        .set("client.id", "kvcluster-operator")
        .set("socket.connection.setup.timeout.ms", "3000")
        .set("socket.timeout.ms", "10000")
        .set("reconnect.backoff.ms", "50")
        .set("reconnect.backoff.max.ms", "500")
        // Troubles are told in the status; librdkafka's own lines would come once per attempt.
        .set_log_level(RDKafkaLogLevel::Critical);
    config
}

fn reader_config(bootstrap: &str) -> ClientConfig {
    let mut config = config(bootstrap);
    config
        // Never joined: without a group's name librdkafka wires the queues for metadata only.
        .set("group.id", "kvcluster-operator")
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("auto.offset.reset", "error")
        .set("allow.auto.create.topics", "false")
        .set("isolation.level", "read_uncommitted")
        .set("enable.partition.eof", "true")
        .set("check.crcs", "true")
        .set("fetch.wait.max.ms", "20")
        .set("fetch.error.backoff.ms", "50");
    config
}

/// Options of admin calls.
pub fn admin_options() -> AdminOptions {
    AdminOptions::new()
        .request_timeout(Some(CHANGE_TIMEOUT))
        .operation_timeout(Some(CHANGE_TIMEOUT))
}

impl KafkaClient {
    /// What an error of an admin call means.
    pub fn trouble(&self, action: &'static str, error: &KafkaError) -> KafkaTrouble {
        use RDKafkaErrorCode as Code;
        let bootstrap = self.bootstrap.clone();
        match error.rdkafka_error_code() {
            Some(
                Code::BrokerTransportFailure
                | Code::AllBrokersDown
                | Code::OperationTimedOut
                | Code::RequestTimedOut
                | Code::MessageTimedOut
                | Code::Resolve,
            )
            | None => KafkaTrouble::Unreachable {
                bootstrap,
                hint: "",
            },
            Some(
                Code::NotLeaderForPartition
                | Code::LeaderNotAvailable
                | Code::UnknownTopicOrPartition
                | Code::UnknownPartition
                | Code::UnknownTopic
                | Code::KafkaStorageError
                | Code::FencedLeaderEpoch
                | Code::UnknownLeaderEpoch,
            ) => KafkaTrouble::Settling { bootstrap },
            Some(code) => KafkaTrouble::Refused {
                bootstrap,
                action,
                code: code.to_string(),
            },
        }
    }
}
