//! A schema of its own for each test, stores on it, and short forms for records.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::TryStreamExt;
use kvcluster_crds::{Epoch, Incarnation, NodeId, Offset, SlotId};
use kvcluster_node::effect::{Applied, DedupEntry, Effect, SlotPosition};
use kvcluster_node::metrics::Metrics;
use kvcluster_node::store::postgres::{PostgresConfig, PostgresStore};
use kvcluster_node::store::{Store, StoreError};
use sqlx::{AssertSqlSafe, Connection, PgConnection};

pub(crate) const URL: &str = "KVCLUSTER_TEST_POSTGRES_URL";
/// Longest wait for something that the store does by itself.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

static SCHEMAS: AtomicU64 = AtomicU64::new(0);

pub(crate) type Pairs = BTreeMap<Bytes, (Bytes, i64)>;

/// A fresh schema on a server.
pub(crate) struct Fixture {
    pub(crate) url: String,
    pub(crate) schema: String,
}

impl Fixture {
    /// On the server that the environment names.
    pub(crate) async fn new() -> Self {
        let url = std::env::var(URL).unwrap_or_else(|_| {
            panic!("{URL} must name a PostgreSQL server, for example postgres://postgres:postgres@127.0.0.1:15432/postgres")
        });
        Self::on(url).await
    }

    /// On the server at `url`.
    pub(crate) async fn on(url: String) -> Self {
        let number = SCHEMAS.fetch_add(1, Ordering::Relaxed);
        let schema = format!("kv_test_{}_{number}", std::process::id());
        let fixture = Self { url, schema };
        let schema = &fixture.schema;
        fixture
            .execute(&format!(
                "DROP SCHEMA IF EXISTS {schema} CASCADE; CREATE SCHEMA {schema}"
            ))
            .await;
        fixture
    }

    pub(crate) async fn connect(&self) -> PgConnection {
        let mut connection = PgConnection::connect(&self.url)
            .await
            .expect("the server answers");
        let path = format!("SET search_path = {}", self.schema);
        sqlx::raw_sql(AssertSqlSafe(path))
            .execute(&mut connection)
            .await
            .expect("sets the path");
        connection
    }

    pub(crate) async fn execute(&self, text: &str) {
        let mut connection = self.connect().await;
        let statement = sqlx::raw_sql(AssertSqlSafe(text.to_owned()));
        statement
            .execute(&mut connection)
            .await
            .unwrap_or_else(|error| panic!("{text}: {error}"));
    }

    /// A store that is not open.
    pub(crate) fn closed_store(&self, incarnation: u64) -> Arc<PostgresStore> {
        self.closed_store_with_cache(incarnation, 1 << 20)
    }

    /// The same, with a cache of so many bytes.
    pub(crate) fn closed_store_with_cache(
        &self,
        incarnation: u64,
        cache_bytes: u64,
    ) -> Arc<PostgresStore> {
        let config = PostgresConfig {
            url: self.url.clone(),
            schema: self.schema.clone(),
            connections: 6,
            cache_bytes,
        };
        PostgresStore::new(config, Incarnation(incarnation), Metrics::new())
            .expect("the settings are good")
    }

    /// An open store with these slots loaded.
    pub(crate) async fn store(&self, incarnation: u64, slots: &[u32]) -> Arc<PostgresStore> {
        let store = self.closed_store(incarnation);
        store.open().await.expect("opens");
        let slots: Vec<SlotId> = slots.iter().copied().map(SlotId).collect();
        store.load(&slots).await.expect("loads");
        store
    }

    /// All rows of a slot as SQL sees them.
    pub(crate) async fn rows(&self, slot: u32) -> Pairs {
        let rows: Vec<(Vec<u8>, Vec<u8>, i64)> =
            sqlx::query_as("SELECT key, value, version FROM kv WHERE slot = $1")
                .bind(i32::try_from(slot).expect("small"))
                .fetch_all(&mut self.connect().await)
                .await
                .expect("reads rows");
        rows.into_iter()
            .map(|(key, value, version)| (key.into(), (value.into(), version)))
            .collect()
    }

    pub(crate) async fn stored_offset(&self, slot: u32) -> i64 {
        sqlx::query_scalar("SELECT next_offset FROM slot_state WHERE slot = $1")
            .bind(i32::try_from(slot).expect("small"))
            .fetch_one(&mut self.connect().await)
            .await
            .expect("reads the offset")
    }

    /// Versions of the requests that a slot remembers, as SQL sees them.
    pub(crate) async fn remembered(&self, slot: u32) -> Vec<i64> {
        sqlx::query_scalar("SELECT version FROM dedup WHERE slot = $1 ORDER BY version")
            .bind(i32::try_from(slot).expect("small"))
            .fetch_all(&mut self.connect().await)
            .await
            .expect("reads what is remembered")
    }

    /// A store may still be at work in it, and read and write its tables in another order.
    pub(crate) async fn drop_schema(self) {
        let statement = format!("DROP SCHEMA {} CASCADE", self.schema);
        let mut connection = self.connect().await;
        loop {
            let dropped = sqlx::raw_sql(AssertSqlSafe(statement.clone()))
                .execute(&mut connection)
                .await;
            match dropped {
                Ok(_) => return,
                Err(error) if error.to_string().contains("deadlock detected") => {}
                Err(error) => panic!("{statement}: {error}"),
            }
        }
    }
}

/// What a store must hold, kept beside it.
#[derive(Default)]
pub(crate) struct Model {
    pub(crate) pairs: BTreeMap<u32, Pairs>,
    next: BTreeMap<u32, i64>,
}

impl Model {
    /// Goes on where the store's slots stand at offset 0.
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Applies one record to the store and to the model; a value of none deletes.
    pub(crate) fn apply(
        &mut self,
        store: &dyn Store,
        slot: u32,
        changes: &[(&str, Option<&str>)],
    ) -> i64 {
        let next = self.next.entry(slot).or_insert(0);
        let offset = *next;
        *next += 1;
        let pairs = self.pairs.entry(slot).or_default();
        let mut effects = Vec::new();
        for &(key, value) in changes {
            let key = Bytes::copy_from_slice(key.as_bytes());
            if let Some(value) = value {
                let value = Bytes::copy_from_slice(value.as_bytes());
                pairs.insert(key.clone(), (value.clone(), offset));
                effects.push(Effect::Put { key, value });
            } else {
                pairs.remove(&key);
                effects.push(Effect::Delete { key });
            }
        }
        let position = position(offset + 1);
        store.apply(Applied {
            slot: SlotId(slot),
            offset: Offset(offset),
            effects,
            dedup: None,
            position,
        });
        offset
    }

    /// The same with a request that is to be remembered: one put, whose key is the idempotency key as well.
    pub(crate) fn apply_request(&mut self, store: &dyn Store, slot: u32, key: &str) -> DedupEntry {
        let next = self.next.entry(slot).or_insert(0);
        let offset = *next;
        *next += 1;
        let bytes = Bytes::copy_from_slice(key.as_bytes());
        let pairs = self.pairs.entry(slot).or_default();
        pairs.insert(bytes.clone(), (bytes.clone(), offset));
        let entry = DedupEntry {
            key: key.as_bytes().into(),
            fingerprint: u64::MAX - offset.cast_unsigned(),
            version: Offset(offset),
            time_ms: time_at(offset + 1),
        };
        let effect = Effect::Put {
            key: bytes.clone(),
            value: bytes,
        };
        store.apply(Applied {
            slot: SlotId(slot),
            offset: Offset(offset),
            effects: vec![effect],
            dedup: Some(entry.clone()),
            position: position(offset + 1),
        });
        entry
    }

    pub(crate) fn slot(&self, slot: u32) -> Pairs {
        self.pairs.get(&slot).cloned().unwrap_or_default()
    }

    pub(crate) fn next_offset(&self, slot: u32) -> i64 {
        self.next.get(&slot).copied().unwrap_or(0)
    }
}

/// A position with every field set to something of its own, large bit patterns included.
pub(crate) fn position(next_offset: i64) -> SlotPosition {
    let number = next_offset.cast_unsigned();
    SlotPosition {
        next_offset: Offset(next_offset),
        checksum_before: Some(u64::MAX - number),
        epoch: Epoch(number + 3),
        leader: Some((NodeId(7), Incarnation(0xf000_0000_0000_0000 + number))),
        last_leader_offset: Some(Offset(next_offset - 1)),
        last_seq: number + 11,
        released_to: number.is_multiple_of(2).then_some(NodeId(u32::MAX)),
        lease_ms: u32::MAX,
        time_ms: time_at(next_offset),
        whole_at: None,
    }
}

/// The time of a slot that stands at an offset: a minute for each record.
fn time_at(next_offset: i64) -> u64 {
    1_700_000_000_000 + next_offset.cast_unsigned() * 60_000
}

pub(crate) async fn get(
    store: &dyn Store,
    slot: u32,
    key: &str,
) -> Result<Option<String>, StoreError> {
    let key = Bytes::copy_from_slice(key.as_bytes());
    let found = store.get(SlotId(slot), &key).await?;
    Ok(found
        .map(|versioned| String::from_utf8(versioned.value.to_vec()).expect("tests write text")))
}

/// A whole scan; its order is checked on the way.
pub(crate) async fn scan(store: &dyn Store, slot: u32) -> Result<Pairs, StoreError> {
    let rows: Vec<_> = store.scan(SlotId(slot)).await?.try_collect().await?;
    assert!(
        rows.windows(2).all(|pair| pair[0].0 < pair[1].0),
        "ordered by key, none twice"
    );
    let pairs = rows
        .into_iter()
        .map(|(key, versioned)| (key, (versioned.value, versioned.version.0)));
    Ok(pairs.collect())
}

/// Waits until `holds`; fails after a while.
pub(crate) async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let start = Instant::now();
    while !holds().await {
        assert!(
            start.elapsed() < PATIENCE,
            "not within {PATIENCE:?}: {what}"
        );
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Ends the connections of a fixture's stores; says how many there were.
pub(crate) async fn kill_connections(fixture: &Fixture) -> usize {
    let killed: Vec<bool> = sqlx::query_scalar(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = $1",
    )
    .bind(format!("kvcluster-node {}", fixture.schema))
    .fetch_all(&mut fixture.connect().await)
    .await
    .expect("kills");
    killed.len()
}
