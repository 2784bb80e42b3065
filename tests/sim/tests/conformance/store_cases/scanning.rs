//! A scan is one cut of what is applied, ordered by key, whole or broken off with an error.

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use kvcluster_crds::SlotId;

use super::StoreCase;
use crate::database::{Database, Opened, eventually, kind, scan, told};
use crate::table::cases;

/// Rows that no buffer holds all of.
const MANY: usize = 2_000;

pub(super) fn cases() -> Vec<StoreCase> {
    cases![
        a_scan_of_an_empty_slot_is_empty,
        a_scan_sees_what_is_not_flushed,
        a_scan_merges_rows_and_what_is_not_flushed,
        a_scan_leaves_out_what_was_deleted,
        a_scan_is_ordered_by_bytes,
        a_scan_is_of_one_slot,
        a_scan_tells_versions,
        a_scan_keeps_its_cut,
        no_scan_sees_half_a_record,
        a_scan_that_is_given_up_disturbs_nobody,
        a_scan_whose_connection_is_lost_ends_with_an_error,
        nobody_scans_while_the_server_is_away,
    ]
}

async fn a_scan_of_an_empty_slot_is_empty(database: &dyn Database) -> String {
    let opened = Opened::first(database).await;
    let found = scan(&*opened, 0).await.expect("scans");
    assert!(found.is_empty());
    told(&found)
}

async fn a_scan_sees_what_is_not_flushed(database: &dyn Database) -> String {
    let mut opened = Opened::first(database).await;
    opened.apply(0, &[("a", Some("1")), ("b", Some("2"))]);
    let found = scan(&*opened, 0).await.expect("scans");
    assert_eq!(found, opened.expected(0));
    told(&found)
}

async fn a_scan_merges_rows_and_what_is_not_flushed(database: &dyn Database) -> String {
    let mut opened = Opened::first(database).await;
    for number in 0..300 {
        opened.apply(0, &[(&format!("k{number}"), Some("first"))]);
    }
    opened.flush().await;
    for number in (0..300).step_by(7) {
        let text = (number % 2 == 0).then_some("second");
        let new = format!("n{number}");
        opened.apply(0, &[(&format!("k{number}"), text), (&new, Some("new"))]);
    }
    let found = scan(&*opened, 0).await.expect("scans");
    assert_eq!(found, opened.expected(0), "before they are flushed");
    opened.flush().await;
    assert_eq!(scan(&*opened, 0).await.expect("scans"), found, "and after");
    told(&found)
}

async fn a_scan_leaves_out_what_was_deleted(database: &dyn Database) -> String {
    let mut opened = Opened::first(database).await;
    opened.apply(0, &[("a", Some("1")), ("b", Some("2")), ("c", Some("3"))]);
    opened.flush().await;
    opened.apply(0, &[("b", None), ("never", None)]);
    let found = scan(&*opened, 0).await.expect("scans");
    assert_eq!(found, opened.expected(0));
    told(&found)
}

async fn a_scan_is_ordered_by_bytes(database: &dyn Database) -> String {
    let mut opened = Opened::first(database).await;
    let keys: [&[u8]; 7] = [b"b", b"B", b"a", &[0xff], &[0], "ä".as_bytes(), b"aa"];
    for (number, key) in keys.into_iter().enumerate() {
        let change = (Bytes::from_static(key), Some(Bytes::from_static(b"v")));
        opened.apply_bytes(0, vec![change]);
        if number == 3 {
            opened.flush().await;
        }
    }
    // `scan` looks at the order itself.
    let found = scan(&*opened, 0).await.expect("scans");
    assert_eq!(found, opened.expected(0));
    told(&found)
}

async fn a_scan_is_of_one_slot(database: &dyn Database) -> String {
    let mut opened = Opened::first(database).await;
    opened.apply(0, &[("a", Some("zero"))]);
    opened.apply(1, &[("b", Some("one"))]);
    opened.flush().await;
    opened.apply(1, &[("c", Some("one"))]);
    let found = scan(&*opened, 1).await.expect("scans");
    assert_eq!(found, opened.expected(1));
    told(&found)
}

async fn a_scan_tells_versions(database: &dyn Database) -> String {
    let mut opened = Opened::first(database).await;
    for key in ["a", "b", "c", "b"] {
        opened.apply(0, &[(key, Some("v"))]);
    }
    let found = scan(&*opened, 0).await.expect("scans");
    let versions: Vec<i64> = found.values().map(|(_, version)| *version).collect();
    assert_eq!(versions, [0, 3, 2]);
    told(&found)
}

async fn filled(opened: &mut Opened) {
    let text = "v".repeat(10_000);
    for number in 0..MANY {
        opened.apply(0, &[(&format!("k{number}"), Some(&text))]);
    }
    opened.flush().await;
}

async fn a_scan_keeps_its_cut(database: &dyn Database) -> String {
    let mut opened = Opened::first(database).await;
    filled(&mut opened).await;
    let before = opened.expected(0);
    let mut rows = opened.scan(SlotId(0)).await.expect("begins");
    let (first, _) = rows.next().await.expect("a row").expect("answers");
    for number in 0..MANY {
        opened.apply(0, &[(&format!("k{number}"), None)]);
    }
    opened.flush().await;
    let rest: Vec<_> = rows.try_collect().await.expect("goes on");
    assert_eq!(Some(&first), before.keys().next());
    let seen = rest.iter().map(|(key, _)| key);
    assert!(seen.eq(before.keys().skip(1)), "as it was at its begin");
    assert!(scan(&*opened, 0).await.expect("scans").is_empty());
    format!("{} rows", rest.len() + 1)
}

async fn no_scan_sees_half_a_record(database: &dyn Database) -> String {
    let mut opened = Opened::first(database).await;
    let store = std::sync::Arc::clone(&opened.store);
    let scanning = async {
        let mut newest = -1;
        for _ in 0..50 {
            let found = scan(&*store, 0).await.expect("scans");
            let mut versions = found.values().map(|(_, version)| *version);
            let first = versions.next().unwrap_or(-1);
            assert!(versions.all(|version| version == first), "{found:?}");
            assert!(first >= newest, "{first} after {newest}");
            newest = first;
            tokio::time::sleep(std::time::Duration::from_millis(3)).await;
        }
    };
    let writing = async {
        for round in 0..200 {
            let text = round.to_string();
            let all = ["a", "m", "z"].map(|key| (key, Some(text.as_str())));
            opened.apply(0, &all);
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
    };
    tokio::join!(scanning, writing);
    opened.flush().await;
    opened.agrees(database).await
}

async fn a_scan_that_is_given_up_disturbs_nobody(database: &dyn Database) -> String {
    let mut opened = Opened::first(database).await;
    filled(&mut opened).await;
    for _ in 0..10 {
        let mut rows = opened.scan(SlotId(0)).await.expect("begins");
        rows.next().await.expect("a row").expect("answers");
    }
    let found = scan(&*opened, 0).await.expect("scans");
    assert_eq!(found, opened.expected(0));
    told(&found)
}

async fn a_scan_whose_connection_is_lost_ends_with_an_error(database: &dyn Database) -> String {
    let mut opened = Opened::first(database).await;
    filled(&mut opened).await;
    let mut rows = opened.scan(SlotId(0)).await.expect("begins");
    rows.next().await.expect("a row").expect("answers");
    assert!(database.lose_connections().await > 0);
    let end: Result<Vec<_>, _> = rows.try_collect().await;
    let error = end.expect_err("it is not whole");
    kind(&error).to_owned()
}

async fn nobody_scans_while_the_server_is_away(database: &dyn Database) -> String {
    let mut opened = Opened::first(database).await;
    opened.apply(0, &[("a", Some("1"))]);
    opened.flush().await;
    database.set_away(true);
    eventually("the store sees it", async || !opened.connected()).await;
    let refused = opened.scan(SlotId(0)).await.err().expect("refused");
    database.set_away(false);
    eventually("the store goes on", async || {
        scan(&*opened, 0)
            .await
            .is_ok_and(|found| found == opened.expected(0))
    })
    .await;
    kind(&refused).to_owned()
}
