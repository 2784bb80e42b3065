//! What is applied comes into the tables: whole, in order, once, by itself; and from there to the next process.

use kvcluster_crds::SlotId;
use kvcluster_node::effect::SlotPosition;

use super::StoreCase;
use crate::database::{Database, Opened, eventually, get, load, position, value};
use crate::table::cases;

pub(super) fn cases() -> Vec<StoreCase> {
    cases![
        everything_is_durable_after_a_flush,
        rows_are_flushed_by_themselves,
        a_position_without_rows_is_durable_by_and_by,
        a_record_without_effects_moves_the_position,
        a_delete_of_an_absent_key_moves_the_position,
        the_next_process_reads_what_was_flushed,
        the_next_process_goes_on_at_the_position,
        a_position_comes_back_field_by_field,
        rewrites_of_a_key_end_as_the_last,
        more_rows_than_a_flush_takes_all_arrive,
        large_values_of_several_slots_all_arrive,
        durable_is_never_above_flushed,
        a_flush_of_nothing_is_done_at_once,
        several_may_wait_for_one_flush,
        a_key_that_was_flushed_long_ago_is_read,
    ]
}

async fn everything_is_durable_after_a_flush(database: &dyn Database) -> String {
    let mut opened = Opened::first(database).await;
    opened.apply(0, &[("a", Some("1")), ("b", Some("2"))]);
    opened.apply(1, &[("c", Some("3"))]);
    opened.flush().await;
    for (slot, next) in [(0, 1), (1, 1)] {
        let progress = opened.progress(SlotId(slot));
        assert_eq!((progress.flushed, progress.durable), (next, next));
    }
    opened.agrees(database).await
}

async fn rows_are_flushed_by_themselves(database: &dyn Database) -> String {
    let mut opened = Opened::first(database).await;
    opened.apply(0, &[("a", Some("1"))]);
    opened.until_flushed(0).await;
    eventually("it is durable", async || {
        opened.progress(SlotId(0)).durable == 1
    })
    .await;
    opened.agrees(database).await
}

async fn a_position_without_rows_is_durable_by_and_by(database: &dyn Database) -> String {
    let mut opened = Opened::first(database).await;
    opened.apply(1, &[]);
    eventually("it is durable", async || {
        opened.progress(SlotId(1)).durable == 1
    })
    .await;
    opened.agrees(database).await
}

async fn a_record_without_effects_moves_the_position(database: &dyn Database) -> String {
    let mut opened = Opened::first(database).await;
    opened.apply(0, &[]);
    opened.apply(0, &[("a", Some("1"))]);
    opened.apply(0, &[]);
    opened.flush().await;
    assert_eq!(database.offset(0).await, 3);
    opened.agrees(database).await
}

async fn a_delete_of_an_absent_key_moves_the_position(database: &dyn Database) -> String {
    let mut opened = Opened::first(database).await;
    opened.apply(0, &[("never", None)]);
    opened.flush().await;
    assert_eq!(database.offset(0).await, 1);
    opened.agrees(database).await
}

async fn the_next_process_reads_what_was_flushed(database: &dyn Database) -> String {
    let mut opened = Opened::first(database).await;
    opened.apply(0, &[("a", Some("1")), ("b", Some("2"))]);
    opened.apply(0, &[("b", None)]);
    opened.flush().await;
    let next = Opened::next(database, 2).await;
    assert_eq!(value(&*next, 0, "a").await.as_deref(), Some("1"));
    assert_eq!(value(&*next, 0, "b").await, None);
    next.agrees(database).await
}

async fn the_next_process_goes_on_at_the_position(database: &dyn Database) -> String {
    let mut opened = Opened::first(database).await;
    opened.apply(0, &[("a", Some("1"))]);
    opened.flush().await;
    let mut next = Opened::next(database, 2).await;
    assert_eq!(next.next_offset(0), 1);
    next.apply(0, &[("a", Some("2"))]);
    next.flush().await;
    next.agrees(database).await
}

async fn a_position_comes_back_field_by_field(database: &dyn Database) -> String {
    let mut opened = Opened::first(database).await;
    for _ in 0..3 {
        opened.apply(0, &[]);
    }
    opened.flush().await;
    let store = database.store(2);
    store.open().await.expect("opens");
    let loaded = load(&*store, &[1, 0]).await.expect("loads");
    let mut sorted = loaded;
    sorted.sort_by_key(|(slot, _)| *slot);
    let expected = [(SlotId(0), position(3)), (SlotId(1), SlotPosition::start())];
    assert_eq!(sorted, expected);
    format!("{sorted:?}")
}

async fn rewrites_of_a_key_end_as_the_last(database: &dyn Database) -> String {
    let mut opened = Opened::first(database).await;
    for round in 0..2_000 {
        let text = round.to_string();
        let other = (round % 3 != 0).then_some(text.as_str());
        opened.apply(0, &[("hot", Some(&text)), ("warm", other)]);
        if round % 100 == 0 {
            tokio::time::sleep(std::time::Duration::from_millis(7)).await;
        }
    }
    opened.flush().await;
    opened.agrees(database).await
}

async fn more_rows_than_a_flush_takes_all_arrive(database: &dyn Database) -> String {
    let mut opened = Opened::first(database).await;
    for number in 0..25_000 {
        opened.apply(number % 2, &[(&format!("k{number}"), Some("v"))]);
    }
    opened.flush().await;
    opened.agrees(database).await
}

async fn large_values_of_several_slots_all_arrive(database: &dyn Database) -> String {
    let mut opened = Opened::first(database).await;
    let large = "x".repeat(1_000_000);
    for number in 0..24 {
        opened.apply(number % 2, &[(&format!("k{number}"), Some(&large))]);
    }
    opened.flush().await;
    opened.agrees(database).await
}

async fn durable_is_never_above_flushed(database: &dyn Database) -> String {
    let mut opened = Opened::first(database).await;
    let mut before = (0, 0);
    for round in 0..300 {
        opened.apply(0, &[("a", Some(&round.to_string()))]);
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        let progress = opened.progress(SlotId(0));
        let now = (progress.flushed, progress.durable);
        assert!(now.1 <= now.0 && now.0 <= opened.next_offset(0), "{now:?}");
        assert!(before.0 <= now.0 && before.1 <= now.1, "{before:?} {now:?}");
        before = now;
    }
    assert!(before.1 > 0, "something became durable on the way");
    opened.flush().await;
    opened.agrees(database).await
}

async fn a_flush_of_nothing_is_done_at_once(database: &dyn Database) -> String {
    let opened = Opened::first(database).await;
    opened.flush().await;
    opened.flush().await;
    opened.agrees(database).await
}

async fn several_may_wait_for_one_flush(database: &dyn Database) -> String {
    let mut opened = Opened::first(database).await;
    opened.apply(0, &[("a", Some("1"))]);
    let all = tokio::join!(opened.flush_all(), opened.flush_all(), opened.flush_all());
    assert_eq!(all, (Ok(()), Ok(()), Ok(())));
    assert_eq!(opened.progress(SlotId(0)).durable, 1);
    opened.agrees(database).await
}

async fn a_key_that_was_flushed_long_ago_is_read(database: &dyn Database) -> String {
    let mut opened = Opened::first(database).await;
    opened.apply(0, &[("old", Some("1"))]);
    opened.flush().await;
    for number in 0..500 {
        opened.apply(0, &[(&format!("k{number}"), Some("v"))]);
    }
    opened.flush().await;
    let found = get(&*opened, 0, "old").await.expect("answers");
    assert_eq!(found.expect("it is there").1, 0);
    let absent = get(&*opened, 0, "never").await.expect("answers");
    assert_eq!(absent, None);
    opened.agrees(database).await
}
