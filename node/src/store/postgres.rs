//! The store: overlays, cache and PostgreSQL together behind the trait [`Store`].
//!
//! It owns a small pool for reads, scans and loading; the flusher has a connection of its own (`store/flush.rs`). PostgreSQL
//! must be reached directly or through a pooler in session mode: prepared statements and the durability rule need one
//! backend per connection.

use std::collections::BTreeMap;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{FutureExt, TryFutureExt};
use kvcluster_crds::{Incarnation, Offset, SlotId};
use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, PgConnection, Postgres};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use crate::effect::{Applied, Loaded, Versioned};
use crate::metrics::Metrics;
use crate::store::overlay::SlotOverlay;
use crate::store::owner::check_ownership;
use crate::store::rows::{position, slot_number, versioned};
use crate::store::shared::Shared;
use crate::store::{
    ExportError, Missing, Progress, RestoreError, Snapshots, Store, StoreError, dedup, export,
    flush, migrate, remove, restore, scan, sql,
};

/// Longest wait for a connection, seconds: the server is away, or every connection is busy.
pub(super) const CONNECT_SECONDS: u64 = 3;
/// Longest read of one key, its connection included, seconds: below a request's deadline.
const READ_SECONDS: u64 = 5;
/// Longest open or load, seconds: a few hundred partitions are made in one transaction.
const LOAD_SECONDS: u64 = 60;
/// PostgreSQL ends a statement itself after this, milliseconds. Scans set their own.
const STATEMENT_TIMEOUT_MS: u32 = 20_000;
/// PostgreSQL gives up waiting for a lock after this, milliseconds.
const LOCK_TIMEOUT_MS: u32 = 5_000;
/// PostgreSQL ends a transaction that stands idle this long, milliseconds: a dead client must not hold locks or old rows.
const IDLE_TRANSACTION_TIMEOUT_MS: u32 = 60_000;
/// PostgreSQL looks whether a silent client is still there after this, seconds, and then as often again.
const KEEPALIVE_SECONDS: u32 = 15;
/// Longest name of a PostgreSQL object, bytes.
const IDENTIFIER_BYTES_MAX: usize = 63;

/// How to reach PostgreSQL, and how much to use.
#[derive(Clone)]
pub struct PostgresConfig {
    /// `postgres://role:password@host:port/database`.
    pub url: String,
    /// The node's schema; it exists already, and the role owns nothing else.
    pub schema: String,
    /// Most connections, at least 2: one is the flusher's.
    pub connections: u32,
    /// Bytes of the read cache.
    pub cache_bytes: u64,
}

/// The state of the slots of a node, in PostgreSQL.
pub struct PostgresStore {
    pub(super) shared: Arc<Shared>,
    pool: PgPool,
    options: PgConnectOptions,
    flush_requests: mpsc::Sender<oneshot::Sender<()>>,
    /// Taken when the flusher starts.
    flusher: std::sync::Mutex<Option<mpsc::Receiver<oneshot::Sender<()>>>>,
    /// Scans hold a connection for as long as their reader takes; reads keep the other half.
    scans: Arc<Semaphore>,
}

impl PostgresStore {
    /// A store that is not open: reads answer [`StoreError::Unavailable`]. No I/O.
    pub fn new(
        config: PostgresConfig,
        incarnation: Incarnation,
        metrics: Arc<Metrics>,
    ) -> Result<Arc<Self>, StoreError> {
        let options = connect_options(&config)?;
        if config.connections < 2 {
            return Err(schema_error("at least 2 connections are needed".to_owned()));
        }
        let readers = config.connections - 1;
        let pool = PgPoolOptions::new()
            .max_connections(readers)
            .acquire_timeout(Duration::from_secs(CONNECT_SECONDS))
            .connect_lazy_with(options.clone());
        // One waiting request is enough: every request that stands when a flush begins is served by it.
        let (flush_requests, receiver) = mpsc::channel(16);
        Ok(Arc::new(Self {
            shared: Arc::new(Shared::new(
                config.schema,
                incarnation,
                config.cache_bytes,
                metrics,
            )),
            pool,
            options,
            flush_requests,
            flusher: std::sync::Mutex::new(Some(receiver)),
            scans: Arc::new(Semaphore::new((readers as usize / 2).max(1))),
        }))
    }

    /// Migrates the schema, takes it over for this process and starts the flusher. To be called again, after a pause, when it
    /// answers [`StoreError::Unavailable`]; any other error is final.
    pub async fn open(&self) -> Result<(), StoreError> {
        let work = async {
            let mut connection = connect(&self.options).await?;
            let shared = &self.shared;
            migrate::migrate_and_own(&mut connection, &shared.schema, shared.incarnation).await?;
            connection.close().await.map_err(unavailable)
        };
        limited(LOAD_SECONDS, work).await?;
        let receiver = self
            .flusher
            .lock()
            .ok()
            .and_then(|mut flusher| flusher.take());
        if let Some(receiver) = receiver {
            self.shared.reachable.store(true, Ordering::Relaxed);
            self.shared.connected.store(true, Ordering::Relaxed);
            flush::start(Arc::clone(&self.shared), self.options.clone(), receiver);
        }
        Ok(())
    }

    async fn load_slots(&self, slots: &[SlotId]) -> Result<Vec<(SlotId, Loaded)>, StoreError> {
        if let Some(slot) = slots.iter().find(|&&slot| self.shared.has(slot)) {
            return Err(schema_error(format!("slot {slot} is loaded already")));
        }
        let stored = self.with_connection(LOAD_SECONDS, async |connection| {
            load_from(connection, &self.shared, slots).await
        });
        let stored = stored.await?;
        if let Some(slot) = slots.iter().find(|slot| !stored.contains_key(slot)) {
            let text = format!("slot {slot} has no row in slot_state");
            return Err(schema_error(text));
        }
        for (slot, loaded) in &stored {
            let overlay = SlotOverlay::new(loaded.position.clone());
            self.shared.add(*slot, overlay);
        }
        Ok(stored.into_iter().collect())
    }

    async fn get_value(&self, slot: SlotId, key: &Bytes) -> Result<Option<Versioned>, StoreError> {
        let shared = &self.shared;
        let ticket = shared.cache.ticket(slot, key);
        let newest = shared.with(slot, |overlay| overlay.get(key).cloned());
        if let Some(entry) = newest.ok_or_else(|| not_loaded(slot))? {
            return Ok(entry.versioned());
        }
        if let Some(cached) = shared.cache.get(slot, key) {
            shared.metrics.store.cache_hits.inc();
            return Ok(cached);
        }
        shared.metrics.store.cache_misses.inc();
        self.require_reachable()?;
        let found = self.with_connection(READ_SECONDS, async |connection| {
            let query = sqlx::query(sql::GET)
                .bind(slot_number(slot))
                .bind(key.as_ref());
            let row = query
                .fetch_optional(connection)
                .await
                .map_err(unavailable)?;
            row.map(|row| versioned(&row, 0, 1)).transpose()
        });
        let found = found.await?;
        shared.cache.fill(ticket, slot, key, found.clone());
        Ok(found)
    }

    async fn scan_slot(
        &self,
        slot: SlotId,
    ) -> Result<BoxStream<'static, Result<(Bytes, Versioned), StoreError>>, StoreError> {
        let (connection, permit) = self.for_scan().await?;
        scan::start(&self.shared, slot, connection, permit).await
    }

    /// A connection for something long.
    async fn for_scan(&self) -> Result<(Lent, OwnedSemaphorePermit), StoreError> {
        self.require_reachable()?;
        let permit = tokio::time::timeout(
            Duration::from_secs(READ_SECONDS),
            Arc::clone(&self.scans).acquire_owned(),
        );
        let permit = permit
            .await
            .map_err(|_| StoreError::Unavailable("too many scans are running".to_owned()))?
            .expect("the semaphore is never closed");
        Ok((Lent::new(self.acquire().await?), permit))
    }

    /// Refuses at once what would wait for a server that is known to be away.
    fn require_reachable(&self) -> Result<(), StoreError> {
        if self.shared.reachable.load(Ordering::Relaxed) {
            Ok(())
        } else {
            Err(StoreError::Unavailable("no connection".to_owned()))
        }
    }

    async fn acquire(&self) -> Result<PoolConnection<Postgres>, StoreError> {
        self.pool.acquire().await.map_err(unavailable)
    }

    /// Runs `work` on a connection of the pool; a connection on which it failed or took too long is closed, not reused.
    pub(super) async fn with_connection<T>(
        &self,
        seconds: u64,
        work: impl AsyncFnOnce(&mut PgConnection) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let mut connection = Lent::new(self.acquire().await?);
        let answer = limited(seconds, work(connection.get())).await;
        if answer.is_ok() {
            connection.give_back();
        }
        answer
    }
}

/// A pool connection that is closed unless it was given back: also when the future that used it is dropped in the middle of
/// a statement or a transaction.
pub(super) struct Lent(Option<PoolConnection<Postgres>>);

impl Lent {
    fn new(connection: PoolConnection<Postgres>) -> Self {
        Self(Some(connection))
    }

    pub(super) fn get(&mut self) -> &mut PgConnection {
        self.0.as_mut().expect("there until it is given back")
    }

    pub(super) fn give_back(mut self) {
        self.0.take();
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if let Some(connection) = self.0.take() {
            drop(connection.detach());
        }
    }
}

impl Store for PostgresStore {
    fn load<'a>(
        &'a self,
        slots: &'a [SlotId],
    ) -> BoxFuture<'a, Result<Vec<(SlotId, Loaded)>, StoreError>> {
        self.load_slots(slots).boxed()
    }

    fn stored(&self) -> BoxFuture<'_, Result<Vec<(SlotId, Offset)>, StoreError>> {
        remove::stored(self).boxed()
    }

    fn unload(&self, slot: SlotId) -> BoxFuture<'_, ()> {
        self.shared.release(slot).boxed()
    }

    fn remove(&self, slot: SlotId) -> BoxFuture<'_, Result<(), StoreError>> {
        remove::remove(self, slot).boxed()
    }

    fn sizes(&self) -> BoxFuture<'_, Result<Vec<(SlotId, u64)>, StoreError>> {
        remove::sizes(self).boxed()
    }

    fn apply(&self, applied: Applied) {
        self.shared.apply(&applied);
    }

    fn get<'a>(
        &'a self,
        slot: SlotId,
        key: &'a Bytes,
    ) -> BoxFuture<'a, Result<Option<Versioned>, StoreError>> {
        self.get_value(slot, key).boxed()
    }

    fn scan(
        &self,
        slot: SlotId,
    ) -> BoxFuture<'_, Result<BoxStream<'static, Result<(Bytes, Versioned), StoreError>>, StoreError>>
    {
        self.scan_slot(slot).boxed()
    }

    fn progress(&self, slot: SlotId) -> Progress {
        let progress = self.shared.with(slot, |overlay| Progress {
            flushed: overlay.flushed().next_offset.0,
            durable: overlay.durable().0,
        });
        progress.unwrap_or(Progress {
            flushed: 0,
            durable: 0,
        })
    }

    fn unflushed_bytes(&self) -> u64 {
        self.shared.kept_bytes()
    }

    fn connected(&self) -> bool {
        self.shared.connected.load(Ordering::Relaxed)
    }

    fn flush_all(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        async {
            let never_opened = self.flusher.lock().is_ok_and(|flusher| flusher.is_some());
            if never_opened {
                return Ok(());
            }
            let (done, answer) = oneshot::channel();
            // A request that the flusher drops unanswered: it has ended, which it does only after a failure.
            if self.flush_requests.send(done).await.is_ok() && answer.await.is_ok() {
                Ok(())
            } else {
                Err(self.shared.failed().await)
            }
        }
        .boxed()
    }

    fn failed(&self) -> BoxFuture<'_, StoreError> {
        self.shared.failed().boxed()
    }
}

impl Snapshots for PostgresStore {
    fn export(
        &self,
        slot: SlotId,
        after: Bytes,
        least: Offset,
    ) -> BoxFuture<'_, Result<BoxStream<'static, Result<Bytes, StoreError>>, ExportError>> {
        async move {
            let (connection, permit) = self.for_scan().await?;
            export::start(slot, after, least, connection, permit).await
        }
        .boxed()
    }

    fn missing(&self, slot: SlotId, least: Offset) -> BoxFuture<'_, Result<Missing, StoreError>> {
        async move {
            let begun = restore::begun(self, slot, least).await?;
            Ok(restore::missing(begun.as_ref(), least))
        }
        .boxed()
    }

    fn restore<'a>(
        &'a self,
        slot: SlotId,
        least: Offset,
        stream: BoxStream<'a, Result<Bytes, String>>,
    ) -> BoxFuture<'a, Result<(), RestoreError>> {
        restore::take(self, slot, least, stream).boxed()
    }
}

async fn load_from(
    connection: &mut PgConnection,
    shared: &Shared,
    slots: &[SlotId],
) -> Result<BTreeMap<SlotId, Loaded>, StoreError> {
    let numbers: Vec<i32> = slots.iter().map(|&slot| slot_number(slot)).collect();
    let mut tx = connection.begin().await.map_err(unavailable)?;
    check_ownership(&mut tx, shared).await?;
    let made: Vec<String> = sqlx::query_scalar(sql::SELECT_PARTITIONS)
        .fetch_all(&mut *tx)
        .await
        .map_err(unavailable)?;
    // Making a partition locks the whole table, also when it is there already: only what is missing.
    for slot in slots
        .iter()
        .filter(|slot| !made.contains(&format!("kv_{slot}")))
    {
        make_partition(&mut tx, *slot).await?;
    }
    sqlx::query(sql::INSERT_MISSING_STATE)
        .bind(&numbers)
        .execute(&mut *tx)
        .await
        .map_err(unavailable)?;
    let rows = sqlx::query(sql::TOUCH_STATE)
        .bind(&numbers)
        .fetch_all(&mut *tx)
        .await
        .map_err(unavailable)?;
    let mut loaded = BTreeMap::new();
    for row in &rows {
        let (slot, position) = position(row)?;
        let dedup = Vec::new();
        loaded.insert(slot, Loaded { position, dedup });
    }
    dedup::load(&mut tx, &numbers, &mut loaded).await?;
    tx.commit().await.map_err(unavailable)?;
    Ok(loaded)
}

/// Makes the partition of a slot, if it is not there.
pub(super) async fn make_partition(tx: &mut PgConnection, slot: SlotId) -> Result<(), StoreError> {
    let statement = AssertSqlSafe(sql::create_partition(slot.0));
    sqlx::raw_sql(statement)
        .execute(tx)
        .await
        .map_err(unavailable)?;
    Ok(())
}

pub(super) async fn connect(options: &PgConnectOptions) -> Result<PgConnection, StoreError> {
    limited(CONNECT_SECONDS, options.connect().map_err(unavailable)).await
}

/// Bounds what the server's own timeouts cannot: a network that swallows packets.
pub(super) async fn limited<T>(
    seconds: u64,
    work: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    tokio::time::timeout(Duration::from_secs(seconds), work)
        .await
        .unwrap_or_else(|_| {
            Err(StoreError::Unavailable(format!(
                "no answer within {seconds} s"
            )))
        })
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
pub(super) fn unavailable(error: sqlx::Error) -> StoreError {
    StoreError::Unavailable(error.to_string())
}

pub(super) fn schema_error(text: String) -> StoreError {
    StoreError::Schema(text)
}

pub(super) fn not_loaded(slot: SlotId) -> StoreError {
    StoreError::Unavailable(format!("slot {slot} is not loaded yet"))
}

fn connect_options(config: &PostgresConfig) -> Result<PgConnectOptions, StoreError> {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
    let schema = config.schema.as_str();
    let starts_well = schema.bytes().next().is_some_and(|b| !b.is_ascii_digit());
    if !starts_well || !schema.bytes().all(plain) || schema.len() > IDENTIFIER_BYTES_MAX {
        return Err(schema_error(format!(
            "{schema:?} is no schema name of lower-case letters, digits and _, at most {IDENTIFIER_BYTES_MAX} long"
        )));
    }
    // The URL holds a password: an error must not repeat it.
    let options = PgConnectOptions::from_str(&config.url)
        .map_err(|_| schema_error("the PostgreSQL URL does not parse".to_owned()))?;
    let settings = [
        ("search_path", schema.to_owned()),
        ("statement_timeout", STATEMENT_TIMEOUT_MS.to_string()),
        ("lock_timeout", LOCK_TIMEOUT_MS.to_string()),
        (
            "idle_in_transaction_session_timeout",
            IDLE_TRANSACTION_TIMEOUT_MS.to_string(),
        ),
        ("tcp_keepalives_idle", KEEPALIVE_SECONDS.to_string()),
        ("tcp_keepalives_interval", KEEPALIVE_SECONDS.to_string()),
    ];
    // PostgreSQL cuts the name at 63 bytes, which is as long as the longest schema with its prefix may get.
    let name = format!("kvcluster-node {schema}");
    let options = options.application_name(&name).options(settings);
    Ok(options.disable_statement_logging())
}
