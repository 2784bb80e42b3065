//! Slots that a process gives up, and what the schema keeps of them.

use kvcluster_crds::SlotId;

use super::StoreCase;
use crate::database::{Database, Opened, get, goes_on, kind, load, remembered, told};
use crate::table::cases;

/// Some time of the slots, milliseconds.
const BEGIN_MS: u64 = 1_700_000_000_000;

pub(super) fn cases() -> Vec<StoreCase> {
    cases![
        a_slot_that_was_unloaded_is_not_read,
        a_slot_that_was_unloaded_comes_back_as_it_was_flushed,
        what_was_not_flushed_is_gone_with_its_slot,
        the_other_slots_go_on_without_it,
        the_schema_says_what_it_has,
        a_slot_that_was_removed_begins_anew,
        a_removed_slot_takes_what_it_remembers_along,
        a_loaded_slot_is_not_removed,
        a_fenced_process_removes_nothing,
        a_slot_that_was_never_there_is_removed_all_the_same,
        larger_slots_take_more_bytes,
    ]
}

async fn stored(opened: &Opened) -> Vec<(u32, i64)> {
    let stored = opened.stored().await.expect("answers");
    let mut stored: Vec<_> = stored.iter().map(|(slot, at)| (slot.0, at.0)).collect();
    stored.sort_unstable();
    stored
}

async fn with_rows(database: &dyn Database) -> Opened {
    let mut opened = Opened::first(database).await;
    opened.apply(0, &[("a", Some("1")), ("b", Some("2"))]);
    opened.apply(1, &[("a", Some("other"))]);
    opened.flush().await;
    opened
}

async fn a_slot_that_was_unloaded_is_not_read(database: &dyn Database) -> String {
    let opened = with_rows(database).await;
    opened.unload(SlotId(0)).await;
    let refused = get(&*opened, 0, "a").await.expect_err("not loaded");
    assert_eq!(kind(&refused), "unavailable");
    let other = get(&*opened, 1, "a").await.expect("answers");
    format!("{}; {other:?}", kind(&refused))
}

async fn a_slot_that_was_unloaded_comes_back_as_it_was_flushed(database: &dyn Database) -> String {
    let opened = with_rows(database).await;
    opened.unload(SlotId(0)).await;
    let loaded = load(&*opened, &[0]).await.expect("loads again");
    assert_eq!(loaded[0].1.next_offset.0, 1);
    let found = get(&*opened, 0, "b").await.expect("answers");
    assert_eq!(found.map(|(_, version)| version), Some(0));
    opened.agrees(database).await
}

async fn what_was_not_flushed_is_gone_with_its_slot(database: &dyn Database) -> String {
    let mut opened = with_rows(database).await;
    database.set_full(true).await;
    opened.apply(0, &[("c", Some("never written"))]);
    let held = opened.unflushed_bytes();
    opened.unload(SlotId(0)).await;
    assert!(opened.unflushed_bytes() < held, "its memory is given back");
    database.set_full(false).await;
    opened.flush().await;
    let rows = database.rows(0).await;
    assert_eq!(rows.len(), 2);
    let loaded = load(&*opened, &[0]).await.expect("loads again");
    assert_eq!(loaded[0].1.next_offset.0, 1, "the log has the rest");
    told(&rows)
}

async fn the_other_slots_go_on_without_it(database: &dyn Database) -> String {
    let mut opened = with_rows(database).await;
    opened.unload(SlotId(0)).await;
    opened.remove(SlotId(0)).await.expect("removed");
    for round in 0..10 {
        opened.apply(1, &[("a", Some(&round.to_string()))]);
    }
    opened.flush().await;
    database.lose_connections().await;
    opened.apply(1, &[("b", Some("behind a lost connection"))]);
    opened.flush().await;
    assert!(goes_on(&*opened).await);
    let rows = database.rows(1).await;
    assert_eq!(rows, opened.expected(1));
    told(&rows)
}

async fn the_schema_says_what_it_has(database: &dyn Database) -> String {
    let mut opened = with_rows(database).await;
    opened.apply(1, &[("b", Some("3"))]);
    opened.flush().await;
    assert_eq!(stored(&opened).await, [(0, 1), (1, 2)]);
    opened.unload(SlotId(0)).await;
    let left = stored(&opened).await;
    assert_eq!(left, [(0, 1), (1, 2)], "out of memory, and still there");
    format!("{left:?}")
}

async fn a_slot_that_was_removed_begins_anew(database: &dyn Database) -> String {
    let opened = with_rows(database).await;
    opened.unload(SlotId(0)).await;
    opened.remove(SlotId(0)).await.expect("removed");
    assert_eq!(stored(&opened).await, [(1, 1)]);
    assert!(database.rows(0).await.is_empty());
    let loaded = load(&*opened, &[0]).await.expect("loads");
    assert_eq!(loaded[0].1.next_offset.0, 0);
    let found = get(&*opened, 0, "a").await.expect("answers");
    assert_eq!(found, None);
    told(&database.rows(1).await)
}

async fn a_removed_slot_takes_what_it_remembers_along(database: &dyn Database) -> String {
    let mut opened = Opened::first(database).await;
    opened.apply_request(0, "r1", BEGIN_MS);
    let kept = opened.apply_request(1, "r2", BEGIN_MS);
    opened.flush().await;
    opened.unload(SlotId(0)).await;
    opened.remove(SlotId(0)).await.expect("removed");
    let found = remembered(database, 2).await;
    assert!(found[&0].is_empty());
    assert_eq!(found[&1], [kept]);
    format!("{found:?}")
}

async fn a_loaded_slot_is_not_removed(database: &dyn Database) -> String {
    let opened = with_rows(database).await;
    let refused = opened.remove(SlotId(0)).await.expect_err("refused");
    assert_eq!(kind(&refused), "schema");
    opened.agrees(database).await
}

async fn a_fenced_process_removes_nothing(database: &dyn Database) -> String {
    let old = with_rows(database).await;
    old.unload(SlotId(0)).await;
    let new = Opened::next(database, 2).await;
    let refused = old.remove(SlotId(0)).await.expect_err("refused");
    assert_eq!(kind(&refused), "fenced");
    new.agrees(database).await
}

async fn a_slot_that_was_never_there_is_removed_all_the_same(database: &dyn Database) -> String {
    let opened = with_rows(database).await;
    opened.remove(SlotId(7)).await.expect("nothing to do");
    assert!(goes_on(&*opened).await);
    let left = stored(&opened).await;
    assert_eq!(left, [(0, 1), (1, 1)]);
    opened.agrees(database).await
}

async fn larger_slots_take_more_bytes(database: &dyn Database) -> String {
    let mut opened = Opened::first(database).await;
    let value = "v".repeat(5_000);
    for number in 0..40 {
        opened.apply(1, &[(&format!("k{number}"), Some(&value))]);
    }
    opened.flush().await;
    let sizes = opened.sizes().await.expect("answers");
    let size = |slot: u32| sizes.iter().find(|(of, _)| of.0 == slot).map(|(_, b)| *b);
    let (small, large) = (size(0).unwrap_or(0), size(1).expect("it has rows"));
    assert!(large > small + 2_000, "{sizes:?}");
    "slot 1 is larger".to_owned()
}
