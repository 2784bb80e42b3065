//! A scan is one cut of PostgreSQL and the overlay.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures::StreamExt;
use kvcluster_crds::SlotId;
use kvcluster_node::store::{Store, StoreError};

use crate::fixture::{Fixture, Model, get, scan};

#[tokio::test(flavor = "multi_thread")]
async fn rows_and_overlay_are_merged() {
    let fixture = Fixture::new().await;
    let store = fixture.store(1, &[0, 1]).await;
    assert!(scan(&*store, 0).await.expect("scans").is_empty());
    let mut model = Model::new();
    for number in 0..3_000 {
        model.apply(&*store, 0, &[(&format!("k{number}"), Some("first"))]);
    }
    store.flush_all().await.expect("flushes");
    model.apply(&*store, 1, &[("other", Some("slot"))]);
    for number in (0..3_000).step_by(7) {
        let value = (number % 2 == 0).then_some("second");
        model.apply(
            &*store,
            0,
            &[
                (&format!("k{number}"), value),
                (&format!("n{number}"), Some("new")),
            ],
        );
    }
    assert_eq!(
        scan(&*store, 0).await.expect("scans"),
        model.slot(0),
        "while it is not flushed"
    );
    store.flush_all().await.expect("flushes");
    assert_eq!(
        scan(&*store, 0).await.expect("scans"),
        model.slot(0),
        "flushed"
    );
    assert_eq!(scan(&*store, 1).await.expect("scans"), model.slot(1));
    fixture.drop_schema().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_scan_sees_half_a_record_or_goes_back() {
    let fixture = Fixture::new().await;
    let store = fixture.store(1, &[0]).await;
    let writer = Arc::clone(&store);
    let scanned = Arc::new(AtomicBool::new(false));
    let stop = Arc::clone(&scanned);
    let writing = tokio::spawn(async move {
        let mut model = Model::new();
        let mut round = 0;
        while !stop.load(Ordering::Relaxed) {
            round += 1;
            let value = round.to_string();
            model.apply(
                &*writer,
                0,
                &[
                    ("a", Some(&value)),
                    ("m", Some(&value)),
                    ("z", Some(&value)),
                ],
            );
            tokio::task::yield_now().await;
        }
        model
    });
    let mut newest = -1;
    for _ in 0..200 {
        let pairs = scan(&*store, 0).await.expect("scans");
        let versions: Vec<i64> = pairs.values().map(|(_, version)| *version).collect();
        assert!(
            versions.windows(2).all(|pair| pair[0] == pair[1]),
            "{versions:?}"
        );
        let version = versions.first().copied().unwrap_or(-1);
        assert!(version >= newest, "{version} after {newest}");
        newest = version;
    }
    scanned.store(true, Ordering::Relaxed);
    let model = writing.await.expect("writes");
    assert_eq!(scan(&*store, 0).await.expect("scans"), model.slot(0));
    fixture.drop_schema().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scan_keeps_its_cut_while_it_is_read() {
    let fixture = Fixture::new().await;
    let store = fixture.store(1, &[0]).await;
    let mut model = Model::new();
    let value = "v".repeat(10_000);
    for number in 0..2_000 {
        model.apply(&*store, 0, &[(&format!("k{number}"), Some(&value))]);
    }
    store.flush_all().await.expect("flushes");
    let before = model.slot(0);
    let mut rows = store.scan(SlotId(0)).await.expect("begins");
    let first = rows.next().await.expect("a row").expect("answers");
    for number in 0..2_000 {
        model.apply(&*store, 0, &[(&format!("k{number}"), None)]);
    }
    store.flush_all().await.expect("flushes");
    let mut count = 1;
    while let Some(row) = rows.next().await {
        let (key, value) = row.expect("answers");
        assert_eq!(before[&key], (value.value, value.version.0));
        count += 1;
    }
    assert_eq!((count, &before[&first.0].1), (2_000, &first.1.version.0));
    assert!(scan(&*store, 0).await.expect("scans").is_empty());
    fixture.drop_schema().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn scans_that_are_dropped_or_too_many_give_their_connections_back() {
    let fixture = Fixture::new().await;
    let store = fixture.store(1, &[0]).await;
    let mut model = Model::new();
    let value = "v".repeat(100_000);
    for number in 0..300 {
        model.apply(&*store, 0, &[(&format!("k{number}"), Some(&value))]);
    }
    store.flush_all().await.expect("flushes");
    for _ in 0..20 {
        let mut rows = store.scan(SlotId(0)).await.expect("begins");
        rows.next().await.expect("a row").expect("answers");
    }
    assert_eq!(scan(&*store, 0).await.expect("scans").len(), 300);
    assert!(
        matches!(scan(&*store, 3).await, Err(StoreError::Unavailable(_))),
        "not loaded"
    );
    fixture.drop_schema().await;
}

/// A request that goes away in the middle of a transaction must not leave the transaction to the next one.
#[tokio::test(flavor = "multi_thread")]
async fn scans_and_reads_that_are_given_up_leave_no_old_view_behind() {
    let fixture = Fixture::new().await;
    let store = fixture.closed_store_with_cache(1, 0);
    store.open().await.expect("opens");
    store.load(&[SlotId(0)]).await.expect("loads");
    let mut model = Model::new();
    model.apply(&*store, 0, &[("a", Some("old"))]);
    store.flush_all().await.expect("flushes");
    for round in 0..200 {
        let patience = std::time::Duration::from_micros(round * 17);
        let _ = tokio::time::timeout(patience, store.scan(SlotId(0))).await;
        let _ = tokio::time::timeout(patience, get(&*store, 0, "a")).await;
    }
    model.apply(&*store, 0, &[("a", Some("new"))]);
    store.flush_all().await.expect("flushes");
    for _ in 0..50 {
        let found = tokio::join!(
            get(&*store, 0, "a"),
            get(&*store, 0, "a"),
            get(&*store, 0, "a")
        );
        let new = || Ok(Some("new".to_owned()));
        assert_eq!(found, (new(), new(), new()));
    }
    fixture.drop_schema().await;
}
