//! Who may use a schema: one process at a time, of this version, with a schema that is ours.

use kvcluster_crds::{Incarnation, SlotId};
use kvcluster_node::metrics::Metrics;
use kvcluster_node::store::postgres::{PostgresConfig, PostgresStore};
use kvcluster_node::store::{Store, StoreError};

use crate::fixture::{Fixture, Model, PATIENCE};

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_process_fences_the_older_one() {
    newer_fences_older().await;
}

pub(crate) async fn newer_fences_older() {
    let fixture = Fixture::new().await;
    let old = fixture.store(1, &[0]).await;
    let mut model = Model::new();
    model.apply(&*old, 0, &[("a", Some("old"))]);
    old.flush_all().await.expect("flushes");
    let new = fixture.store(2, &[0]).await;
    model.apply(&*old, 0, &[("a", Some("zombie"))]);
    assert_eq!(
        old.failed().await,
        StoreError::Fenced(fixture.schema.clone())
    );
    assert_eq!(
        old.flush_all().await,
        Err(StoreError::Fenced(fixture.schema.clone()))
    );
    assert_eq!(fixture.rows(0).await[b"a".as_slice()].0, "old");
    assert_eq!(new.progress(SlotId(0)).durable, 1);
    let refused = old.load(&[SlotId(1)]).await;
    assert_eq!(refused, Err(StoreError::Fenced(fixture.schema.clone())));
    fixture.drop_schema().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_process_learns_that_it_is_fenced() {
    let fixture = Fixture::new().await;
    let old = fixture.store(1, &[0]).await;
    let _new = fixture.store(2, &[0]).await;
    assert_eq!(
        old.failed().await,
        StoreError::Fenced(fixture.schema.clone())
    );
    fixture.drop_schema().await;
}

/// The process begins anew then, and waits for the schema to be made again: nothing else would ever look for other tables.
#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_schema_ends_the_store() {
    let fixture = Fixture::new().await;
    let store = fixture.store(1, &[0]).await;
    let mut model = Model::new();
    model.apply(&*store, 0, &[("a", Some("1"))]);
    store.flush_all().await.expect("flushes");
    let schema = fixture.schema.clone();
    fixture.drop_schema().await;
    model.apply(&*store, 0, &[("a", Some("2"))]);
    let error = tokio::time::timeout(PATIENCE, store.failed()).await;
    let error = error.expect("it does not try for ever");
    assert!(
        matches!(&error, StoreError::Schema(text) if text.contains(&schema)),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_offset_that_somebody_else_moved_ends_the_store() {
    moved_offset_ends_store().await;
}

pub(crate) async fn moved_offset_ends_store() {
    let fixture = Fixture::new().await;
    let store = fixture.store(1, &[0]).await;
    let mut model = Model::new();
    model.apply(&*store, 0, &[("a", Some("1"))]);
    store.flush_all().await.expect("flushes");
    fixture
        .execute("UPDATE slot_state SET next_offset = 77")
        .await;
    model.apply(&*store, 0, &[("a", Some("2"))]);
    let error = store.failed().await;
    assert!(
        matches!(&error, StoreError::Schema(text) if text.contains("77")),
        "{error}"
    );
    assert_eq!(
        fixture.rows(0).await[b"a".as_slice()].0,
        "1",
        "the flush was rolled back"
    );
    fixture.drop_schema().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn schemas_that_are_not_ours_or_newer_are_refused() {
    let fixture = Fixture::new().await;
    fixture.execute("CREATE TABLE customers (id int)").await;
    let refused = fixture.closed_store(1).open().await;
    assert!(
        matches!(&refused, Err(StoreError::Schema(text)) if text.contains("not ours")),
        "{refused:?}"
    );
    fixture.execute("DROP TABLE customers").await;
    fixture.closed_store(1).open().await.expect("opens");
    fixture
        .closed_store(1)
        .open()
        .await
        .expect("opens again, nothing to migrate");
    fixture
        .execute("INSERT INTO schema_version (version) VALUES (99)")
        .await;
    let refused = fixture.closed_store(1).open().await;
    assert!(
        matches!(&refused, Err(StoreError::Schema(text)) if text.contains("99")),
        "{refused:?}"
    );
    fixture
        .execute(&format!("DROP SCHEMA {} CASCADE", fixture.schema))
        .await;
    let refused = fixture.closed_store(1).open().await;
    assert!(
        matches!(&refused, Err(StoreError::Schema(text)) if text.contains("no schema")),
        "{refused:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_away_is_unavailable_and_bad_settings_are_not() {
    let config = |url: &str, schema: &str, connections| PostgresConfig {
        url: url.to_owned(),
        schema: schema.to_owned(),
        connections,
        cache_bytes: 0,
    };
    let make = |config| PostgresStore::new(config, Incarnation(1), Metrics::new());
    let away = make(config("postgres://a:b@127.0.0.1:1/c", "kv", 2)).expect("makes a store");
    assert!(matches!(away.open().await, Err(StoreError::Unavailable(_))));
    assert!(!away.connected());
    assert_eq!(away.flush_all().await, Ok(()), "nothing was applied");
    for (url, schema, connections) in [
        ("postgres://a:secret@h:port/c", "kv", 2),
        ("postgres://a:secret@h/c", "kv; drop", 2),
        ("postgres://a:secret@h/c", "", 2),
        ("postgres://a:secret@h/c", "kv", 1),
    ] {
        match make(config(url, schema, connections)) {
            Err(StoreError::Schema(text)) => assert!(!text.contains("secret"), "{text}"),
            Err(other) => panic!("{url} {schema}: {other}"),
            Ok(_) => panic!("{url} {schema} {connections} was taken"),
        }
    }
}
