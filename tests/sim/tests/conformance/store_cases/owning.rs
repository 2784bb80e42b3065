//! Who may write: the newest process alone, in a schema that is ours and stands where it left it.

use super::StoreCase;
use crate::database::{Database, Opened, goes_on, kind, load};
use crate::table::cases;

pub(super) fn cases() -> Vec<StoreCase> {
    cases![
        a_newer_process_fences_an_older_one,
        an_idle_process_learns_that_it_is_fenced,
        what_a_fenced_process_applied_never_arrives,
        a_fenced_process_loads_nothing,
        who_waits_for_a_fenced_flush_is_told,
        the_newer_process_is_not_disturbed,
        a_process_may_open_twice,
        an_offset_that_somebody_moved_ends_the_store,
        a_slot_that_somebody_forgot_ends_the_store,
        a_schema_of_somebody_else_is_refused,
        a_newer_schema_is_refused,
        a_store_without_trouble_does_not_fail,
    ]
}

async fn a_newer_process_fences_an_older_one(database: &dyn Database) -> String {
    let mut old = Opened::first(database).await;
    old.apply(0, &[("a", Some("old"))]);
    old.flush().await;
    let _new = Opened::next(database, 2).await;
    old.apply(0, &[("a", Some("zombie"))]);
    let failed = old.failed().await;
    let flushed = old.flush_all().await.expect_err("refused");
    let kinds = [kind(&failed), kind(&flushed)];
    assert_eq!(kinds, ["fenced"; 2]);
    format!("{kinds:?}")
}

async fn an_idle_process_learns_that_it_is_fenced(database: &dyn Database) -> String {
    let old = Opened::first(database).await;
    let _new = Opened::next(database, 2).await;
    let failed = old.failed().await;
    assert_eq!(kind(&failed), "fenced");
    kind(&failed).to_owned()
}

async fn what_a_fenced_process_applied_never_arrives(database: &dyn Database) -> String {
    let mut old = Opened::first(database).await;
    old.apply(0, &[("a", Some("old"))]);
    old.flush().await;
    let new = Opened::next(database, 2).await;
    for round in 0..50 {
        old.apply(
            0,
            &[
                ("a", Some("zombie")),
                (&format!("z{round}"), Some("zombie")),
            ],
        );
    }
    old.failed().await;
    new.agrees(database).await
}

async fn a_fenced_process_loads_nothing(database: &dyn Database) -> String {
    let old = Opened::with_slots(database, &[0]).await;
    let _new = Opened::next(database, 2).await;
    let refused = load(&*old, &[5]).await.expect_err("refused");
    assert_eq!(kind(&refused), "fenced");
    kind(&refused).to_owned()
}

async fn who_waits_for_a_fenced_flush_is_told(database: &dyn Database) -> String {
    let mut old = Opened::first(database).await;
    let _new = Opened::next(database, 2).await;
    old.apply(0, &[("a", Some("zombie"))]);
    let both = tokio::join!(old.flush_all(), old.flush_all());
    let kinds = [both.0, both.1].map(|end| kind(&end.expect_err("refused")));
    assert_eq!(kinds, ["fenced"; 2]);
    format!("{kinds:?}")
}

async fn the_newer_process_is_not_disturbed(database: &dyn Database) -> String {
    let mut old = Opened::first(database).await;
    let mut new = Opened::next(database, 2).await;
    for round in 0..20 {
        old.apply(0, &[("a", Some("zombie"))]);
        new.apply(0, &[("a", Some(&round.to_string()))]);
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    old.failed().await;
    new.flush().await;
    assert!(goes_on(&*new).await);
    new.agrees(database).await
}

async fn a_process_may_open_twice(database: &dyn Database) -> String {
    let mut opened = Opened::first(database).await;
    opened.apply(0, &[("a", Some("1"))]);
    opened.open().await.expect("opens again");
    opened.apply(0, &[("a", Some("2"))]);
    opened.flush().await;
    opened.agrees(database).await
}

async fn an_offset_that_somebody_moved_ends_the_store(database: &dyn Database) -> String {
    let mut opened = Opened::first(database).await;
    opened.apply(0, &[("a", Some("1"))]);
    opened.flush().await;
    let before = database.rows(0).await;
    database.move_offset(0, 77).await;
    opened.apply(0, &[("a", Some("2"))]);
    let failed = opened.failed().await;
    assert_eq!(kind(&failed), "schema");
    assert!(failed.to_string().contains("77"), "{failed}");
    assert_eq!(database.rows(0).await, before, "nothing was written");
    kind(&failed).to_owned()
}

async fn a_slot_that_somebody_forgot_ends_the_store(database: &dyn Database) -> String {
    let mut opened = Opened::first(database).await;
    database.forget_slot(0).await;
    opened.apply(0, &[("a", Some("1"))]);
    opened.apply(1, &[("a", Some("1"))]);
    let failed = opened.failed().await;
    assert_eq!(kind(&failed), "schema");
    assert!(database.rows(0).await.is_empty());
    assert!(database.rows(1).await.is_empty(), "all slots or none");
    kind(&failed).to_owned()
}

async fn a_schema_of_somebody_else_is_refused(database: &dyn Database) -> String {
    database.use_otherwise().await;
    let refused = database.store(1).open().await.expect_err("refused");
    assert_eq!(kind(&refused), "schema");
    assert!(refused.to_string().contains("not ours"), "{refused}");
    kind(&refused).to_owned()
}

async fn a_newer_schema_is_refused(database: &dyn Database) -> String {
    let _opened = Opened::first(database).await;
    database.migrate_further().await;
    let refused = database.store(2).open().await.expect_err("refused");
    assert_eq!(kind(&refused), "schema");
    assert!(refused.to_string().contains("newer"), "{refused}");
    kind(&refused).to_owned()
}

async fn a_store_without_trouble_does_not_fail(database: &dyn Database) -> String {
    let mut opened = Opened::first(database).await;
    opened.apply(0, &[("a", Some("1"))]);
    opened.flush().await;
    assert!(goes_on(&*opened).await && opened.connected());
    opened.agrees(database).await
}
