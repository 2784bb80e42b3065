//! What is applied is read at once, before and after it is committed.

use bytes::Bytes;
use kvcluster_crds::SlotId;
use kvcluster_node::effect::{KEY_BYTES_MAX, SlotPosition, VALUE_BYTES_MAX};
use kvcluster_node::store::Progress;

use super::StoreCase;
use crate::database::{Database, Opened, get, kind, load, value};
use crate::table::cases;

pub(super) fn cases() -> Vec<StoreCase> {
    cases![
        a_new_slot_stands_before_the_first_record,
        what_is_applied_is_read_at_once,
        the_newest_change_is_read,
        a_deleted_key_is_absent,
        a_key_comes_back_after_a_delete,
        the_last_change_of_a_record_counts,
        versions_are_offsets,
        slots_hold_keys_of_their_own,
        an_empty_value_is_not_an_absent_one,
        keys_and_values_are_any_bytes,
        the_largest_key_and_value_pass,
        what_is_applied_waits_in_memory,
        a_slot_that_is_not_loaded_cannot_be_read,
        a_store_that_is_not_open_cannot_be_read,
        a_slot_that_is_loaded_twice_is_refused_and_goes_on,
        slots_may_be_loaded_later,
    ]
}

async fn a_new_slot_stands_before_the_first_record(database: &dyn Database) -> String {
    let store = database.store(1);
    store.open().await.expect("opens");
    let loaded = load(&*store, &[0, 5]).await.expect("loads");
    let expected = [0, 5].map(|slot| (SlotId(slot), SlotPosition::start()));
    assert_eq!(loaded, expected);
    format!("{loaded:?}")
}

async fn what_is_applied_is_read_at_once(database: &dyn Database) -> String {
    let mut opened = Opened::first(database).await;
    opened.apply(0, &[("a", Some("1"))]);
    let found = get(&*opened, 0, "a").await;
    assert_eq!(found, Ok(Some((Bytes::from("1"), 0))));
    format!("{found:?}")
}

async fn the_newest_change_is_read(database: &dyn Database) -> String {
    let mut opened = Opened::first(database).await;
    let mut seen = Vec::new();
    for round in 0..100 {
        opened.apply(0, &[("a", Some(&round.to_string()))]);
        seen.push(value(&*opened, 0, "a").await);
        assert_eq!(seen[round], Some(round.to_string()));
        if round % 10 == 0 {
            // Somewhere on the way into the tables.
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    }
    format!("{:?}", seen.last())
}

async fn a_deleted_key_is_absent(database: &dyn Database) -> String {
    let mut opened = Opened::first(database).await;
    opened.apply(0, &[("a", Some("1"))]);
    opened.apply(0, &[("a", None)]);
    assert_eq!(value(&*opened, 0, "a").await, None);
    opened.flush().await;
    assert_eq!(value(&*opened, 0, "a").await, None);
    opened.agrees(database).await
}

async fn a_key_comes_back_after_a_delete(database: &dyn Database) -> String {
    let mut opened = Opened::first(database).await;
    opened.apply(0, &[("a", Some("1"))]);
    opened.flush().await;
    opened.apply(0, &[("a", None)]);
    opened.apply(0, &[("a", Some("2"))]);
    assert_eq!(value(&*opened, 0, "a").await.as_deref(), Some("2"));
    opened.flush().await;
    opened.agrees(database).await
}

async fn the_last_change_of_a_record_counts(database: &dyn Database) -> String {
    let mut opened = Opened::first(database).await;
    opened.apply(
        0,
        &[
            ("a", Some("1")),
            ("b", Some("1")),
            ("a", None),
            ("b", Some("2")),
        ],
    );
    assert_eq!(value(&*opened, 0, "a").await, None);
    assert_eq!(value(&*opened, 0, "b").await.as_deref(), Some("2"));
    opened.flush().await;
    opened.agrees(database).await
}

async fn versions_are_offsets(database: &dyn Database) -> String {
    let mut opened = Opened::first(database).await;
    for key in ["a", "b", "c"] {
        opened.apply(0, &[(key, Some("v"))]);
    }
    opened.flush().await;
    opened.apply(0, &[("b", Some("w"))]);
    let mut versions = Vec::new();
    for key in ["a", "b", "c"] {
        let found = get(&*opened, 0, key).await.expect("answers");
        versions.push(found.expect("it is there").1);
    }
    assert_eq!(versions, [0, 3, 2]);
    format!("{versions:?}")
}

async fn slots_hold_keys_of_their_own(database: &dyn Database) -> String {
    let mut opened = Opened::first(database).await;
    opened.apply(0, &[("a", Some("zero"))]);
    opened.apply(1, &[("a", Some("one"))]);
    opened.apply(1, &[("b", Some("one"))]);
    for _ in 0..2 {
        assert_eq!(value(&*opened, 0, "a").await.as_deref(), Some("zero"));
        assert_eq!(value(&*opened, 1, "a").await.as_deref(), Some("one"));
        assert_eq!(value(&*opened, 0, "b").await, None);
        opened.flush().await;
    }
    opened.agrees(database).await
}

async fn an_empty_value_is_not_an_absent_one(database: &dyn Database) -> String {
    let mut opened = Opened::first(database).await;
    opened.apply(0, &[("a", Some(""))]);
    assert_eq!(value(&*opened, 0, "a").await.as_deref(), Some(""));
    opened.flush().await;
    let again = Opened::next(database, 2).await;
    assert_eq!(value(&*again, 0, "a").await.as_deref(), Some(""));
    again.agrees(database).await
}

async fn keys_and_values_are_any_bytes(database: &dyn Database) -> String {
    let mut opened = Opened::first(database).await;
    let all = Bytes::from((0..=255).collect::<Vec<u8>>());
    for byte in [0, 1, 0x27, 0x5c, 0x80, 0xff] {
        let key = Bytes::from(vec![byte; 3]);
        opened.apply_bytes(0, vec![(key, Some(all.clone()))]);
    }
    opened.flush().await;
    let again = Opened::next(database, 2).await;
    let key = Bytes::from(vec![0; 3]);
    let found = again.get(SlotId(0), &key).await.expect("answers");
    assert_eq!(found.expect("it is there").value, all);
    opened.agrees(database).await
}

async fn the_largest_key_and_value_pass(database: &dyn Database) -> String {
    let mut opened = Opened::first(database).await;
    let key = Bytes::from(vec![0xee; KEY_BYTES_MAX]);
    let large = Bytes::from(vec![0; VALUE_BYTES_MAX]);
    opened.apply_bytes(0, vec![(key, Some(large))]);
    opened.flush().await;
    opened.agrees(database).await
}

async fn what_is_applied_waits_in_memory(database: &dyn Database) -> String {
    let mut opened = Opened::first(database).await;
    assert_eq!(opened.unflushed_bytes(), 0);
    database.set_away(true);
    opened.apply(0, &[("a", Some("0123456789"))]);
    let few = opened.unflushed_bytes();
    opened.apply(0, &[("b", Some("0123456789"))]);
    assert!(few >= 11 && opened.unflushed_bytes() > few);
    database.set_away(false);
    opened.flush().await;
    assert_eq!(opened.unflushed_bytes(), 0, "nothing waits any more");
    opened.agrees(database).await
}

async fn a_slot_that_is_not_loaded_cannot_be_read(database: &dyn Database) -> String {
    let opened = Opened::first(database).await;
    let found = get(&*opened, 7, "a").await.expect_err("refused");
    let scanned = opened.scan(SlotId(7)).await.err().expect("refused");
    let nothing = Progress {
        flushed: 0,
        durable: 0,
    };
    assert_eq!(opened.progress(SlotId(7)), nothing);
    let kinds = [kind(&found), kind(&scanned)];
    assert_eq!(kinds, ["unavailable"; 2]);
    format!("{kinds:?}")
}

async fn a_store_that_is_not_open_cannot_be_read(database: &dyn Database) -> String {
    let store = database.store(1);
    let found = get(&*store, 0, "a").await.expect_err("refused");
    assert!(!store.connected());
    assert_eq!(store.flush_all().await, Ok(()), "there is nothing to flush");
    kind(&found).to_owned()
}

async fn a_slot_that_is_loaded_twice_is_refused_and_goes_on(database: &dyn Database) -> String {
    let mut opened = Opened::first(database).await;
    opened.apply(0, &[("a", Some("1"))]);
    let refused = load(&*opened, &[1, 0]).await.expect_err("refused");
    assert_eq!(kind(&refused), "schema");
    assert_eq!(value(&*opened, 0, "a").await.as_deref(), Some("1"));
    opened.flush().await;
    opened.agrees(database).await
}

async fn slots_may_be_loaded_later(database: &dyn Database) -> String {
    let mut opened = Opened::with_slots(database, &[0]).await;
    opened.apply(0, &[("a", Some("1"))]);
    load(&*opened, &[1]).await.expect("loads");
    opened.apply(1, &[("b", Some("2"))]);
    opened.flush().await;
    opened.agrees(database).await
}
