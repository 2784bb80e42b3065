//! What is applied arrives in PostgreSQL, whole, once, whatever happens to the connection.

use std::time::Duration;

use kvcluster_crds::SlotId;
use kvcluster_node::effect::Loaded;
use kvcluster_node::store::Store;

use crate::fixture::{Fixture, Model, eventually, get, kill_connections, position};

#[tokio::test(flavor = "multi_thread")]
async fn applied_records_are_read_flushed_and_loaded_again() {
    let fixture = Fixture::new().await;
    let store = fixture.store(1, &[0, 5]).await;
    let mut model = Model::new();
    model.apply(&*store, 0, &[("a", Some("1")), ("b", Some("2"))]);
    model.apply(&*store, 0, &[("b", None), ("c", Some(""))]);
    model.apply(&*store, 5, &[("a", Some("other slot"))]);
    model.apply(&*store, 0, &[]);
    assert_eq!(get(&*store, 0, "a").await, Ok(Some("1".to_owned())));
    assert_eq!(get(&*store, 0, "b").await, Ok(None));
    assert_eq!(
        get(&*store, 5, "a").await,
        Ok(Some("other slot".to_owned()))
    );
    assert!(store.unflushed_bytes() > 0);
    store.flush_all().await.expect("flushes");
    assert_eq!(
        store.unflushed_bytes(),
        0,
        "nothing is kept once it is durable"
    );
    assert_eq!(fixture.rows(0).await, model.slot(0));
    assert_eq!(fixture.rows(5).await, model.slot(5));
    let progress = store.progress(SlotId(0));
    assert_eq!((progress.flushed, progress.durable), (3, 3));

    let again = fixture.store(2, &[]).await;
    let loaded = again
        .load(&[SlotId(0), SlotId(5), SlotId(6)])
        .await
        .expect("loads");
    let expected = [
        (0, position(3)),
        (5, position(1)),
        (6, kvcluster_node::effect::SlotPosition::start()),
    ];
    let dedup = Vec::new();
    let expected = expected.map(|(slot, position)| {
        let dedup = dedup.clone();
        (SlotId(slot), Loaded { position, dedup })
    });
    assert_eq!(loaded, expected);
    assert_eq!(
        get(&*again, 0, "a").await,
        Ok(Some("1".to_owned())),
        "from PostgreSQL"
    );
    assert_eq!(
        get(&*again, 0, "a").await,
        Ok(Some("1".to_owned())),
        "from the cache"
    );
    assert_eq!(get(&*again, 0, "b").await, Ok(None));
    fixture.drop_schema().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_newest_value_is_read_at_every_stage_of_a_flush() {
    let fixture = Fixture::new().await;
    let store = fixture.store(1, &[0]).await;
    let mut model = Model::new();
    for round in 0..3_000 {
        let value = round.to_string();
        model.apply(
            &*store,
            0,
            &[
                ("hot", Some(&value)),
                (&format!("k{}", round % 50), Some(&value)),
            ],
        );
        assert_eq!(
            get(&*store, 0, "hot").await,
            Ok(Some(value)),
            "round {round}"
        );
        if round % 7 == 0 {
            let key = format!("k{}", (round * 31) % 50);
            let expected = model
                .slot(0)
                .get(key.as_bytes())
                .map(|(value, _)| value.clone());
            let found = get(&*store, 0, &key).await.expect("answers");
            assert_eq!(
                found.map(bytes::Bytes::from),
                expected,
                "round {round}, {key}"
            );
        }
    }
    store.flush_all().await.expect("flushes");
    assert_eq!(fixture.rows(0).await, model.slot(0));
    fixture.drop_schema().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn records_without_effects_are_durable_within_a_second_or_so() {
    let fixture = Fixture::new().await;
    let store = fixture.store(1, &[0]).await;
    let mut model = Model::new();
    model.apply(&*store, 0, &[]);
    eventually("the position is durable", async || {
        store.progress(SlotId(0)).durable == 1
    })
    .await;
    assert_eq!(fixture.stored_offset(0).await, 1);
    fixture.drop_schema().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_connections_lose_and_double_nothing() {
    let fixture = Fixture::new().await;
    let store = fixture.store(1, &[0, 1]).await;
    let mut model = Model::new();
    let mut killed = 0;
    for round in 0..400 {
        let slot = round % 2;
        for number in 0..20 {
            let key = format!("k{}", (round * 20 + number) % 500);
            let value = (number % 5 != 0).then(|| round.to_string());
            model.apply(&*store, slot, &[(&key, value.as_deref())]);
        }
        if round % 40 == 20 {
            killed += kill_connections(&fixture).await;
        }
        tokio::task::yield_now().await;
    }
    assert!(killed > 0, "no connection was there to be lost");
    store
        .flush_all()
        .await
        .expect("lost connections are no failure");
    for slot in [0, 1] {
        assert_eq!(fixture.rows(slot).await, model.slot(slot));
        assert_eq!(fixture.stored_offset(slot).await, model.next_offset(slot));
    }
    fixture.drop_schema().await;
}

/// PostgreSQL forgets commits that did not wait for its disk, as it does in a crash: their rows and their offset together.
#[tokio::test(flavor = "multi_thread")]
async fn commits_that_were_taken_back_are_flushed_again() {
    let fixture = Fixture::new().await;
    let store = fixture.store(1, &[0, 1]).await;
    let mut model = Model::new();
    model.apply(&*store, 0, &[("kept", Some("1"))]);
    store.flush_all().await.expect("flushes");
    // A durable flush may come in between; then the next round tries again.
    loop {
        let durable = model.next_offset(0);
        model.apply(&*store, 0, &[("lost", Some("value")), ("kept", Some("2"))]);
        eventually("flushed", async || {
            store.progress(SlotId(0)).flushed > durable
        })
        .await;
        let mut connection = fixture.connect().await;
        let mut tx = sqlx::Connection::begin(&mut connection)
            .await
            .expect("begins");
        let hold = sqlx::query("SELECT incarnation FROM owner FOR UPDATE");
        hold.execute(&mut *tx).await.expect("holds flushes up");
        if store.progress(SlotId(0)).durable > durable {
            continue;
        }
        let offset =
            sqlx::query("UPDATE slot_state SET next_offset = $1 WHERE slot = 0").bind(durable);
        offset
            .execute(&mut *tx)
            .await
            .expect("takes the offset back");
        let rows = sqlx::query("DELETE FROM kv WHERE slot = 0 AND key = 'lost'");
        rows.execute(&mut *tx).await.expect("takes the row back");
        tx.commit().await.expect("commits");
        assert!(kill_connections(&fixture).await > 0);
        break;
    }
    assert_eq!(
        get(&*store, 0, "lost").await,
        Ok(Some("value".to_owned())),
        "still in memory"
    );
    eventually("flushed again", async || {
        fixture.rows(0).await == model.slot(0)
    })
    .await;
    assert_eq!(fixture.stored_offset(0).await, model.next_offset(0));
    store.flush_all().await.expect("flushes");
    assert_eq!(store.unflushed_bytes(), 0);
    fixture.drop_schema().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn large_values_and_many_rows_pass_through_bounded_flushes() {
    let fixture = Fixture::new().await;
    let store = fixture.store(1, &[0, 1, 2]).await;
    let mut model = Model::new();
    let big = "x".repeat(1_048_576);
    for number in 0..40 {
        model.apply(
            &*store,
            number % 3,
            &[(&format!("big{number}"), Some(&big))],
        );
    }
    for number in 0..50_000_u32 {
        model.apply(
            &*store,
            number % 3,
            &[(&format!("small{number}"), Some("v"))],
        );
    }
    tokio::time::timeout(Duration::from_mins(1), store.flush_all())
        .await
        .expect("in time")
        .expect("flushes");
    for slot in 0..3 {
        assert!(
            fixture.rows(slot).await == model.slot(slot),
            "slot {slot} differs"
        );
    }
    fixture.drop_schema().await;
}
