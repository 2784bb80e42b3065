//! What is remembered of requests: it stands or falls with the effects, and what is too old goes.

use kvcluster_crds::SlotId;
use kvcluster_node::effect::DedupEntry;
use kvcluster_node::slot::dedup::WINDOW_MS;
use kvcluster_node::store::{Store, StoreError};

use crate::fixture::{Fixture, Model, eventually, kill_connections};

/// What the next process of the node loads of a slot.
async fn loaded(fixture: &Fixture, incarnation: u64, slot: u32) -> Vec<DedupEntry> {
    let store = fixture.closed_store(incarnation);
    store.open().await.expect("opens");
    let loaded = store.load(&[SlotId(slot)]).await.expect("loads");
    let (found, loaded) = loaded.into_iter().next().expect("the slot");
    assert_eq!(found, SlotId(slot));
    loaded.dedup
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_remembered_is_flushed_with_its_effects_and_loaded_in_order() {
    let fixture = Fixture::new().await;
    let store = fixture.store(1, &[0, 5]).await;
    let mut model = Model::new();
    let mut expected = vec![model.apply_request(&*store, 0, "r1")];
    model.apply(&*store, 0, &[("k", Some("unnamed"))]);
    expected.push(model.apply_request(&*store, 0, "r2"));
    let other = model.apply_request(&*store, 5, "r1");
    store.flush_all().await.expect("flushes");
    assert_eq!(fixture.remembered(0).await, [0, 2]);
    assert_eq!(fixture.rows(0).await, model.slot(0));
    assert_eq!(loaded(&fixture, 2, 0).await, expected);
    assert_eq!(loaded(&fixture, 3, 5).await, [other]);
    assert_eq!(loaded(&fixture, 4, 7).await, []);
    fixture.drop_schema().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_old_by_the_slots_own_time_is_not_loaded_and_goes() {
    let fixture = Fixture::new().await;
    let store = fixture.store(1, &[0, 1]).await;
    let mut model = Model::new();
    // A minute lies between two records of the fixture.
    assert_eq!(WINDOW_MS, 10 * 60_000);
    let mut entries = Vec::new();
    for number in 0..12 {
        entries.push(model.apply_request(&*store, 0, &format!("r{number}")));
        store.flush_all().await.expect("flushes");
    }
    model.apply_request(&*store, 1, "of another slot");
    assert_eq!(fixture.remembered(0).await, (2..12).collect::<Vec<_>>());
    // Records without a key delete nothing, and age it all the same.
    for _ in 0..4 {
        model.apply(&*store, 0, &[("k", Some("unnamed"))]);
    }
    store.flush_all().await.expect("flushes");
    assert_eq!(fixture.remembered(0).await.len(), 10);
    assert_eq!(loaded(&fixture, 2, 0).await, entries[6..]);
    assert_eq!(fixture.remembered(1).await, [0]);
    fixture.drop_schema().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_connections_lose_and_double_nothing_that_is_remembered() {
    let fixture = Fixture::new().await;
    let store = fixture.store(1, &[0]).await;
    let mut model = Model::new();
    for round in 0..8 {
        let next = model.next_offset(0);
        model.apply_request(&*store, 0, &format!("r{round}"));
        eventually("flushed", async || store.progress(SlotId(0)).flushed > next).await;
        kill_connections(&fixture).await;
        model.apply(&*store, 0, &[]);
        // Far below the window: each round takes two minutes of the slot's time.
        let kept = (0..=next).step_by(2).filter(|version| version + 10 > next);
        eventually("all that counts is there once", async || {
            fixture.remembered(0).await == kept.clone().collect::<Vec<_>>()
        })
        .await;
    }
    store.flush_all().await.expect("flushes");
    fixture.drop_schema().await;
}

/// Somebody emptied `kv` and `slot_state` by hand, to have them made anew from the log, and left `dedup`.
#[tokio::test(flavor = "multi_thread")]
async fn rows_that_were_left_behind_are_not_believed_and_stop_no_flush() {
    let fixture = Fixture::new().await;
    let store = fixture.store(1, &[0]).await;
    let mut model = Model::new();
    let first = model.apply_request(&*store, 0, "r1");
    store.flush_all().await.expect("flushes");
    fixture.execute("TRUNCATE kv, slot_state").await;
    let again = fixture.closed_store(2);
    again.open().await.expect("opens");
    let loaded_then = again.load(&[SlotId(0)]).await.expect("loads");
    assert_eq!(loaded_then[0].1.dedup, []);
    let mut model = Model::new();
    model.apply_request(&*again, 0, "r1");
    again.flush_all().await.expect("flushes");
    assert_eq!(loaded(&fixture, 3, 0).await, [first]);
    fixture.drop_schema().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_is_loaded_once() {
    let fixture = Fixture::new().await;
    let store = fixture.store(1, &[0]).await;
    let refused = store.load(&[SlotId(1), SlotId(0)]).await;
    assert!(
        matches!(&refused, Err(StoreError::Schema(text)) if text.contains("slot 0 is loaded")),
        "what it remembers is the machine's by now: {refused:?}"
    );
    fixture.drop_schema().await;
}

/// A schema of the first version, with a slot in it, is brought up to this one.
#[tokio::test(flavor = "multi_thread")]
async fn a_schema_without_the_table_gets_it() {
    let fixture = Fixture::new().await;
    let store = fixture.store(1, &[0]).await;
    let mut model = Model::new();
    model.apply(&*store, 0, &[("k", Some("1"))]);
    store.flush_all().await.expect("flushes");
    drop(store);
    fixture
        .execute(
            "DROP TABLE dedup, restore; ALTER TABLE slot_state DROP COLUMN time_ms, DROP COLUMN whole_at; \
             DELETE FROM schema_version WHERE version > 1",
        )
        .await;
    assert_eq!(loaded(&fixture, 2, 0).await, []);
    assert_eq!(fixture.stored_offset(0).await, 1);
    fixture.drop_schema().await;
}
