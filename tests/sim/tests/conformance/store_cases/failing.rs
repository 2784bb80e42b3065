//! Connections that are lost at every step, disks without room, crashes that take commits back: nothing is lost, nothing
//! comes twice, and what cannot be is said.

use kvcluster_crds::SlotId;
use kvcluster_sim::store::{How, Step};

use super::StoreCase;
use crate::database::{Database, Opened, eventually, get, goes_on, kind, load, scan, value};
use crate::table::cases;

pub(super) fn cases() -> Vec<StoreCase> {
    cases![
        a_connection_lost_while_idle_costs_nothing,
        a_connection_lost_at_the_owner_costs_nothing,
        a_connection_lost_at_the_offsets_costs_nothing,
        a_connection_lost_at_the_rows_costs_nothing,
        a_connection_lost_at_the_deletes_costs_nothing,
        a_connection_lost_before_the_commit_costs_nothing,
        a_commit_whose_answer_is_lost_is_not_done_twice,
        refused_offsets_are_tried_again,
        refused_rows_are_tried_again,
        refused_deletes_are_tried_again,
        a_refused_commit_is_tried_again,
        a_full_disk_is_waited_for,
        what_is_applied_is_read_while_the_disk_is_full,
        what_was_flushed_is_read_while_the_disk_is_full,
        no_slot_is_loaded_while_the_disk_is_full,
        a_flush_of_all_waits_for_the_server,
        a_server_that_is_away_is_told_and_waited_for,
        what_is_in_memory_is_read_while_the_server_is_away,
        nobody_opens_while_the_server_is_away,
        commits_that_were_taken_back_are_done_again,
        the_newest_commit_that_was_taken_back_is_done_again,
        readers_see_nothing_of_commits_taken_back,
        a_server_that_went_back_below_what_was_durable_ends_the_store,
        a_process_that_starts_after_a_crash_goes_on_at_the_older_position,
        lost_connections_under_load_lose_and_double_nothing,
    ]
}

/// Breaks one flush that writes, deletes and moves an offset, and looks at what comes of it.
async fn breaks(database: &dyn Database, step: Step, how: How) -> String {
    let mut opened = Opened::first(database).await;
    opened.apply(0, &[("a", Some("1")), ("b", Some("1"))]);
    opened.flush().await;
    database.fail_next(step, how).await;
    opened.apply(0, &[("a", Some("2")), ("b", None), ("c", Some("2"))]);
    opened.apply(1, &[("d", Some("1"))]);
    eventually("it goes wrong", async || !database.has_fault().await).await;
    assert_eq!(value(&*opened, 0, "a").await.as_deref(), Some("2"));
    assert_eq!(value(&*opened, 0, "b").await, None);
    opened.flush().await;
    assert!(goes_on(&*opened).await);
    opened.agrees(database).await
}

async fn a_connection_lost_while_idle_costs_nothing(database: &dyn Database) -> String {
    let mut opened = Opened::first(database).await;
    opened.apply(0, &[("a", Some("1"))]);
    opened.flush().await;
    assert!(database.lose_connections().await > 0);
    opened.apply(0, &[("b", Some("2"))]);
    opened.flush().await;
    opened.agrees(database).await
}

async fn a_connection_lost_at_the_owner_costs_nothing(database: &dyn Database) -> String {
    breaks(database, Step::Owner, How::Lost).await
}

async fn a_connection_lost_at_the_offsets_costs_nothing(database: &dyn Database) -> String {
    breaks(database, Step::Offsets, How::Lost).await
}

async fn a_connection_lost_at_the_rows_costs_nothing(database: &dyn Database) -> String {
    breaks(database, Step::Rows, How::Lost).await
}

async fn a_connection_lost_at_the_deletes_costs_nothing(database: &dyn Database) -> String {
    breaks(database, Step::Deletes, How::Lost).await
}

async fn a_connection_lost_before_the_commit_costs_nothing(database: &dyn Database) -> String {
    breaks(database, Step::Commit, How::Lost).await
}

async fn a_commit_whose_answer_is_lost_is_not_done_twice(database: &dyn Database) -> String {
    breaks(database, Step::Commit, How::AnswerLost).await
}

async fn refused_offsets_are_tried_again(database: &dyn Database) -> String {
    breaks(database, Step::Offsets, How::Refused).await
}

async fn refused_rows_are_tried_again(database: &dyn Database) -> String {
    breaks(database, Step::Rows, How::Refused).await
}

async fn refused_deletes_are_tried_again(database: &dyn Database) -> String {
    breaks(database, Step::Deletes, How::Refused).await
}

async fn a_refused_commit_is_tried_again(database: &dyn Database) -> String {
    breaks(database, Step::Commit, How::Refused).await
}

async fn a_full_disk_is_waited_for(database: &dyn Database) -> String {
    let mut opened = Opened::first(database).await;
    opened.apply(0, &[("a", Some("1"))]);
    opened.flush().await;
    database.set_full(true).await;
    opened.apply(0, &[("a", Some("2"))]);
    eventually("a flush fails", async || !opened.connected()).await;
    assert_eq!(opened.progress(SlotId(0)).flushed, 1);
    assert!(goes_on(&*opened).await, "it is not for good");
    database.set_full(false).await;
    opened.flush().await;
    assert!(opened.connected());
    opened.agrees(database).await
}

async fn what_is_applied_is_read_while_the_disk_is_full(database: &dyn Database) -> String {
    let mut opened = Opened::first(database).await;
    database.set_full(true).await;
    opened.apply(0, &[("a", Some("1"))]);
    eventually("a flush fails", async || !opened.connected()).await;
    assert_eq!(value(&*opened, 0, "a").await.as_deref(), Some("1"));
    assert!(opened.unflushed_bytes() > 0);
    assert!(database.rows(0).await.is_empty());
    database.set_full(false).await;
    opened.flush().await;
    opened.agrees(database).await
}

/// By a process that has nothing of it in memory.
async fn what_was_flushed_is_read_while_the_disk_is_full(database: &dyn Database) -> String {
    let mut opened = Opened::first(database).await;
    let keys: Vec<String> = (0..40).map(|number| format!("k{number}")).collect();
    for key in &keys {
        opened.apply(0, &[(key, Some("1"))]);
    }
    opened.flush().await;
    let mut opened = Opened::next(database, 2).await;
    database.set_full(true).await;
    opened.apply(0, &[("new", Some("1"))]);
    eventually("a flush fails", async || !opened.connected()).await;
    for key in &keys {
        assert_eq!(value(&*opened, 0, key).await.as_deref(), Some("1"));
    }
    database.set_full(false).await;
    opened.flush().await;
    opened.agrees(database).await
}

async fn no_slot_is_loaded_while_the_disk_is_full(database: &dyn Database) -> String {
    let opened = Opened::first(database).await;
    database.set_full(true).await;
    let refused = load(&*opened, &[5]).await.expect_err("refused");
    database.set_full(false).await;
    load(&*opened, &[5]).await.expect("loads");
    assert_eq!(kind(&refused), "unavailable");
    kind(&refused).to_owned()
}

async fn a_flush_of_all_waits_for_the_server(database: &dyn Database) -> String {
    let mut opened = Opened::first(database).await;
    database.set_away(true);
    opened.apply(0, &[("a", Some("1"))]);
    eventually("the store sees it", async || !opened.connected()).await;
    let back = async {
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
        assert!(opened.progress(SlotId(0)).flushed == 0);
        database.set_away(false);
    };
    let (flushed, ()) = tokio::join!(opened.flush_all(), back);
    assert_eq!(flushed, Ok(()));
    opened.agrees(database).await
}

async fn a_server_that_is_away_is_told_and_waited_for(database: &dyn Database) -> String {
    let mut opened = Opened::first(database).await;
    assert!(opened.connected());
    database.set_away(true);
    eventually("the store sees it", async || !opened.connected()).await;
    for round in 0..50 {
        opened.apply(round % 2, &[(&format!("k{round}"), Some("while away"))]);
    }
    assert!(goes_on(&*opened).await, "it is not for good");
    database.set_away(false);
    eventually("the store goes on", async || opened.connected()).await;
    opened.flush().await;
    opened.agrees(database).await
}

async fn what_is_in_memory_is_read_while_the_server_is_away(database: &dyn Database) -> String {
    let mut opened = Opened::first(database).await;
    database.set_away(true);
    opened.apply(0, &[("hot", Some("1")), ("gone", None)]);
    eventually("the store sees it", async || !opened.connected()).await;
    assert_eq!(value(&*opened, 0, "hot").await.as_deref(), Some("1"));
    assert_eq!(value(&*opened, 0, "gone").await, None, "known to be absent");
    let cold = get(&*opened, 0, "never read").await;
    let cold = kind(&cold.expect_err("nobody knows"));
    database.set_away(false);
    opened.flush().await;
    assert_eq!(value(&*opened, 0, "never read").await, None);
    cold.to_owned()
}

async fn nobody_opens_while_the_server_is_away(database: &dyn Database) -> String {
    let store = database.store(1);
    database.set_away(true);
    let refused = store.open().await.expect_err("refused");
    database.set_away(false);
    store.open().await.expect("opens");
    load(&*store, &[0]).await.expect("loads");
    assert_eq!(kind(&refused), "unavailable");
    kind(&refused).to_owned()
}

/// Applies and flushes `commits` records beyond what is durable, and rolls back to before or after the first of them.
async fn rolled_back(database: &dyn Database, opened: &mut Opened, after_first: bool) {
    loop {
        opened.flush().await;
        let durable = opened.progress(SlotId(0)).durable;
        let mut saved = database.save().await;
        opened.apply(0, &[("lost", Some("1")), ("kept", Some("2"))]);
        opened.until_flushed(0).await;
        if after_first {
            saved = database.save().await;
        }
        opened.apply(0, &[("lost", None), ("more", Some("3"))]);
        opened.until_flushed(0).await;
        // A durable flush may come in between; then the next round tries again.
        let fits = || opened.progress(SlotId(0)).durable == durable;
        if database.roll_back(saved, &fits).await {
            return;
        }
        opened.apply(0, &[("lost", None), ("more", None)]);
    }
}

async fn commits_that_were_taken_back_are_done_again(database: &dyn Database) -> String {
    let mut opened = Opened::first(database).await;
    opened.apply(0, &[("kept", Some("1"))]);
    rolled_back(database, &mut opened, false).await;
    eventually("they are done again", async || {
        database.offset(0).await == opened.next_offset(0)
    })
    .await;
    opened.flush().await;
    opened.agrees(database).await;
    crate::database::told(&opened.expected(1))
}

async fn the_newest_commit_that_was_taken_back_is_done_again(database: &dyn Database) -> String {
    let mut opened = Opened::first(database).await;
    opened.apply(0, &[("kept", Some("1"))]);
    rolled_back(database, &mut opened, true).await;
    eventually("it is done again", async || {
        database.offset(0).await == opened.next_offset(0)
    })
    .await;
    opened.flush().await;
    assert_eq!(opened.unflushed_bytes(), 0);
    opened.agrees(database).await;
    crate::database::told(&opened.expected(1))
}

async fn readers_see_nothing_of_commits_taken_back(database: &dyn Database) -> String {
    let mut opened = Opened::first(database).await;
    opened.apply(0, &[("kept", Some("1"))]);
    rolled_back(database, &mut opened, false).await;
    let mut seen = Vec::new();
    for key in ["kept", "lost", "more"] {
        seen.push(value(&*opened, 0, key).await);
    }
    assert_eq!(seen[0].as_deref(), Some("2"));
    assert_eq!(seen[1], None);
    assert_eq!(seen[2].as_deref(), Some("3"));
    eventually("the store goes on", async || {
        scan(&*opened, 0)
            .await
            .is_ok_and(|found| found == opened.expected(0))
    })
    .await;
    format!("{seen:?}")
}

async fn a_server_that_went_back_below_what_was_durable_ends_the_store(
    database: &dyn Database,
) -> String {
    let mut opened = Opened::first(database).await;
    opened.apply(0, &[("a", Some("1"))]);
    opened.flush().await;
    let saved = database.save().await;
    opened.apply(0, &[("a", Some("2"))]);
    opened.flush().await;
    assert!(database.roll_back(saved, &|| true).await);
    let failed = opened.failed().await;
    assert_eq!(kind(&failed), "schema");
    assert!(failed.to_string().contains("went back"), "{failed}");
    kind(&failed).to_owned()
}

async fn a_process_that_starts_after_a_crash_goes_on_at_the_older_position(
    database: &dyn Database,
) -> String {
    let mut old = Opened::first(database).await;
    old.apply(0, &[("a", Some("1"))]);
    old.flush().await;
    let saved = database.save().await;
    old.apply(0, &[("a", Some("2"))]);
    old.flush().await;
    drop(old);
    assert!(database.roll_back(saved, &|| true).await);
    let mut new = Opened::next(database, 2).await;
    assert_eq!(new.next_offset(0), 1);
    assert_eq!(value(&*new, 0, "a").await.as_deref(), Some("1"));
    new.apply(0, &[("a", Some("2"))]);
    new.flush().await;
    new.agrees(database).await
}

async fn lost_connections_under_load_lose_and_double_nothing(database: &dyn Database) -> String {
    let mut opened = Opened::first(database).await;
    let mut lost = 0;
    for round in 0..200 {
        let slot = round % 2;
        for number in 0..10 {
            let key = format!("k{}", (round * 10 + number) % 300);
            let text = (number % 5 != 0).then(|| round.to_string());
            opened.apply(slot, &[(&key, text.as_deref())]);
        }
        if round % 20 == 10 {
            lost += database.lose_connections().await;
        }
        tokio::time::sleep(std::time::Duration::from_millis(3)).await;
    }
    assert!(lost > 0, "no connection was there to be lost");
    opened.flush().await;
    opened.agrees(database).await
}
