//! PostgreSQL, with a schema per case and a proxy before it. Faults are triggers in the schema, locks, and what the proxy
//! does.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use futures::FutureExt;
use futures::future::{BoxFuture, LocalBoxFuture};
use kvcluster_crds::Incarnation;
use kvcluster_node::metrics::Metrics;
use kvcluster_node::store::StoreError;
use kvcluster_node::store::postgres::{PostgresConfig, PostgresStore};
use kvcluster_sim::store::{How, Step};
use sqlx::{AssertSqlSafe, Connection, PgConnection};

use super::{Database, Openable, Pairs, eventually};
use crate::proxy::Proxy;

const URL: &str = "KVCLUSTER_TEST_POSTGRES_URL";

static SCHEMAS: AtomicU32 = AtomicU32::new(0);

pub(crate) struct Postgres {
    url: String,
    schema: String,
    proxy: Proxy,
    saved: Cell<usize>,
    /// How the fault that is prepared is seen to have happened.
    fault: Cell<Option<Fault>>,
}

#[derive(Clone, Copy)]
enum Fault {
    /// The sequence of the trigger has moved.
    Trigger,
    /// It happens before `fail_next` answers.
    Done,
    /// The proxy waits for a commit no more.
    Commit,
}

/// What prepares a trigger that goes wrong once: a sequence counts across what is rolled back.
const FAULT: &str = "CREATE SEQUENCE fault_count;
     CREATE FUNCTION fault() RETURNS trigger LANGUAGE plpgsql AS $$
     BEGIN
         IF nextval('fault_count') = 1 THEN
             $HOW;
         END IF;
         RETURN NULL;
     END $$;
     $TRIGGER EXECUTE FUNCTION fault()";

impl Postgres {
    pub(crate) async fn new() -> Self {
        let url = std::env::var(URL).unwrap_or_else(|_| {
            panic!("{URL} must name a PostgreSQL server, for example postgres://postgres:postgres@127.0.0.1:15432/postgres")
        });
        let number = SCHEMAS.fetch_add(1, Ordering::SeqCst);
        let schema = format!("kv_conformance_{}_{number}", std::process::id());
        let (_, address) = url.rsplit_once('@').expect("user:password@host:port");
        let port = address.split(['/', ':']).nth(1);
        let port = port.and_then(|port| port.parse().ok());
        let proxy = Proxy::of_postgres(port.expect("the URL names a port")).await;
        let postgres = Self {
            url,
            proxy,
            saved: Cell::new(0),
            fault: Cell::new(None),
            schema,
        };
        let schema = &postgres.schema;
        postgres
            .execute(&format!(
                "DROP SCHEMA IF EXISTS {schema} CASCADE; CREATE SCHEMA {schema}"
            ))
            .await;
        postgres
    }

    pub(crate) async fn remove(self) {
        let text = format!("DROP SCHEMA {} CASCADE", self.schema);
        self.proxy.gate.set_closed(true);
        self.execute(&text).await;
    }

    async fn connect(&self) -> PgConnection {
        let connection = PgConnection::connect(&self.url).await;
        let mut connection = connection.expect("the server answers");
        let path = format!("SET search_path = {}", self.schema);
        sqlx::raw_sql(AssertSqlSafe(path))
            .execute(&mut connection)
            .await
            .expect("sets the path");
        connection
    }

    async fn execute(&self, text: &str) {
        run(&mut self.connect().await, text).await;
    }

    /// Ends backends of the stores that `which` describes; how many.
    async fn end_backends(&self, connection: &mut PgConnection, which: &str) -> usize {
        let text = format!(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
             WHERE application_name = 'kvcluster-node {}' AND {which}",
            self.schema
        );
        let ended: Vec<bool> = sqlx::query_scalar(AssertSqlSafe(text))
            .fetch_all(connection)
            .await
            .expect("ends them");
        ended.len()
    }

    /// A store's backend waits for the owner's row, and is ended there.
    async fn lose_at_owner(&self) {
        let mut holder = self.connect().await;
        run(&mut holder, "BEGIN; SELECT FROM owner FOR UPDATE").await;
        let mut killer = self.connect().await;
        eventually("a flush waits for the owner's row", async || {
            self.end_backends(&mut killer, "wait_event_type = 'Lock'")
                .await
                > 0
        })
        .await;
        run(&mut holder, "ROLLBACK").await;
    }

    async fn prepare(&self, step: Step, how: How) {
        let trigger = match step {
            Step::Owner => unreachable!("there is no trigger on a read"),
            Step::Offsets => "CREATE TRIGGER fault BEFORE UPDATE ON slot_state FOR EACH STATEMENT",
            Step::Rows => "CREATE TRIGGER fault BEFORE INSERT ON kv FOR EACH STATEMENT",
            Step::Deletes => "CREATE TRIGGER fault BEFORE DELETE ON kv FOR EACH STATEMENT",
            Step::Commit => {
                "CREATE CONSTRAINT TRIGGER fault AFTER UPDATE ON slot_state
                 DEFERRABLE INITIALLY DEFERRED FOR EACH ROW"
            }
        };
        let how = match how {
            How::Refused => "RAISE EXCEPTION 'this step goes wrong'",
            How::Lost => "PERFORM pg_terminate_backend(pg_backend_pid()), pg_sleep(5)",
            How::AnswerLost => unreachable!("the proxy does that"),
        };
        let text = FAULT.replace("$HOW", how).replace("$TRIGGER", trigger);
        self.execute(&text).await;
    }
}

impl Openable for PostgresStore {
    fn open(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        self.open().boxed()
    }
}

impl Database for Postgres {
    fn store(&self, incarnation: u64) -> Arc<dyn Openable> {
        let (user, address) = self.url.rsplit_once('@').expect("seen before");
        let (_, database) = address.split_once('/').expect("…/database");
        let config = PostgresConfig {
            url: format!("{user}@127.0.0.1:{}/{database}", self.proxy.port),
            schema: self.schema.clone(),
            connections: 6,
            cache_bytes: 1 << 20,
        };
        PostgresStore::new(config, Incarnation(incarnation), Metrics::new())
            .expect("the settings are good")
    }

    fn rows(&self, slot: u32) -> LocalBoxFuture<'_, Pairs> {
        async move {
            let rows: Vec<(Vec<u8>, Vec<u8>, i64)> =
                sqlx::query_as("SELECT key, value, version FROM kv WHERE slot = $1")
                    .bind(number(slot))
                    .fetch_all(&mut self.connect().await)
                    .await
                    .expect("reads rows");
            rows.into_iter()
                .map(|(key, value, version)| (key.into(), (value.into(), version)))
                .collect()
        }
        .boxed_local()
    }

    fn offset(&self, slot: u32) -> LocalBoxFuture<'_, i64> {
        async move {
            sqlx::query_scalar("SELECT next_offset FROM slot_state WHERE slot = $1")
                .bind(number(slot))
                .fetch_one(&mut self.connect().await)
                .await
                .expect("reads the offset")
        }
        .boxed_local()
    }

    fn save(&self) -> LocalBoxFuture<'_, usize> {
        async {
            let saved = self.saved.get();
            self.saved.set(saved + 1);
            self.execute(&format!(
                "BEGIN; SELECT FROM owner FOR UPDATE;
                 CREATE TABLE saved_kv_{saved} AS SELECT * FROM kv;
                 CREATE TABLE saved_state_{saved} AS SELECT * FROM slot_state; COMMIT"
            ))
            .await;
            saved
        }
        .boxed_local()
    }

    fn roll_back<'a>(
        &'a self,
        saved: usize,
        fits: &'a dyn Fn() -> bool,
    ) -> LocalBoxFuture<'a, bool> {
        async move {
            let mut connection = self.connect().await;
            run(&mut connection, "BEGIN; SELECT FROM owner FOR UPDATE").await;
            if !fits() {
                run(&mut connection, "ROLLBACK").await;
                return false;
            }
            run(
                &mut connection,
                &format!(
                    "DELETE FROM kv; INSERT INTO kv SELECT * FROM saved_kv_{saved};
                     DELETE FROM slot_state; INSERT INTO slot_state SELECT * FROM saved_state_{saved}"
                ),
            )
            .await;
            // Before anybody can commit on what is rolled back.
            self.end_backends(&mut self.connect().await, "true").await;
            run(&mut connection, "COMMIT").await;
            true
        }
        .boxed_local()
    }

    fn lose_connections(&self) -> LocalBoxFuture<'_, usize> {
        async {
            let mut connection = self.connect().await;
            self.end_backends(&mut connection, "true").await
        }
        .boxed_local()
    }

    fn fail_next(&self, step: Step, how: How) -> LocalBoxFuture<'_, ()> {
        async move {
            self.fault.set(Some(match (step, how) {
                (Step::Owner, _) => {
                    self.lose_at_owner().await;
                    Fault::Done
                }
                (_, How::AnswerLost) => {
                    self.proxy.gate.lose_commit();
                    Fault::Commit
                }
                (step, how) => {
                    self.prepare(step, how).await;
                    Fault::Trigger
                }
            }));
        }
        .boxed_local()
    }

    fn has_fault(&self) -> LocalBoxFuture<'_, bool> {
        async {
            match self.fault.get().expect("a fault was prepared") {
                Fault::Done => false,
                Fault::Commit => self.proxy.gate.waits_for_commit(),
                Fault::Trigger => {
                    let called: bool = sqlx::query_scalar("SELECT is_called FROM fault_count")
                        .fetch_one(&mut self.connect().await)
                        .await
                        .expect("reads the sequence");
                    !called
                }
            }
        }
        .boxed_local()
    }

    fn set_full(&self, full: bool) -> LocalBoxFuture<'_, ()> {
        let text = if full {
            "CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS $$
             BEGIN RAISE EXCEPTION 'no space left on device' USING ERRCODE = '53100'; END $$;
             CREATE TRIGGER full_disk BEFORE UPDATE ON slot_state
             FOR EACH STATEMENT EXECUTE FUNCTION full_disk()"
        } else {
            "DROP FUNCTION full_disk CASCADE"
        };
        self.execute(text).boxed_local()
    }

    fn set_away(&self, away: bool) {
        self.proxy.gate.set_closed(away);
    }

    fn move_offset(&self, slot: u32, to: i64) -> LocalBoxFuture<'_, ()> {
        async move {
            self.execute(&format!(
                "UPDATE slot_state SET next_offset = {to} WHERE slot = {slot}"
            ))
            .await;
        }
        .boxed_local()
    }

    fn forget_slot(&self, slot: u32) -> LocalBoxFuture<'_, ()> {
        async move {
            self.execute(&format!("DELETE FROM slot_state WHERE slot = {slot}"))
                .await;
        }
        .boxed_local()
    }

    fn use_otherwise(&self) -> LocalBoxFuture<'_, ()> {
        self.execute("CREATE TABLE customers (id int)")
            .boxed_local()
    }

    fn migrate_further(&self) -> LocalBoxFuture<'_, ()> {
        self.execute("INSERT INTO schema_version (version) VALUES (99)")
            .boxed_local()
    }
}

async fn run(connection: &mut PgConnection, text: &str) {
    sqlx::raw_sql(AssertSqlSafe(text.to_owned()))
        .execute(connection)
        .await
        .unwrap_or_else(|error| panic!("{text}: {error}"));
}

fn number(slot: u32) -> i32 {
    i32::try_from(slot).expect("few")
}
