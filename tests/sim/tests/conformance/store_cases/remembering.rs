//! What is remembered of requests stands or falls with their effects, and goes by the slot's own time.

use kvcluster_node::slot::dedup::WINDOW_MS;
use kvcluster_sim::store::{How, Step};

use super::StoreCase;
use crate::database::{Database, Opened, remembered};
use crate::table::cases;

/// Some time of the slots, milliseconds.
const BEGIN_MS: u64 = 1_700_000_000_000;

pub(super) fn cases() -> Vec<StoreCase> {
    cases![
        what_is_remembered_comes_back_with_its_slot,
        what_is_too_old_does_not_come_back,
        a_commit_whose_answer_is_lost_remembers_once,
        a_flush_that_is_refused_remembers_nothing_until_the_next,
    ]
}

async fn what_is_remembered_comes_back_with_its_slot(database: &dyn Database) -> String {
    let mut opened = Opened::first(database).await;
    let first = opened.apply_request(0, "r1", BEGIN_MS);
    opened.apply(0, &[]);
    let second = opened.apply_request(0, "r2", BEGIN_MS);
    let other = opened.apply_request(1, "r1", BEGIN_MS);
    opened.flush().await;
    let agreed = opened.agrees(database).await;
    let found = remembered(database, 2).await;
    assert_eq!(found[&0], [first, second], "in order of their records");
    assert_eq!(found[&1], [other]);
    format!("{agreed}; {found:?}")
}

async fn what_is_too_old_does_not_come_back(database: &dyn Database) -> String {
    let mut opened = Opened::first(database).await;
    opened.apply_request(0, "old", BEGIN_MS);
    let kept = opened.apply_request(0, "kept", BEGIN_MS + 1);
    opened.flush().await;
    let newest = opened.apply_request(0, "new", BEGIN_MS + WINDOW_MS);
    opened.flush().await;
    let found = remembered(database, 2).await;
    assert_eq!(found[&0], [kept, newest]);
    format!("{found:?}")
}

async fn a_commit_whose_answer_is_lost_remembers_once(database: &dyn Database) -> String {
    fails_once(database, Step::Commit, How::AnswerLost).await
}

async fn a_flush_that_is_refused_remembers_nothing_until_the_next(
    database: &dyn Database,
) -> String {
    fails_once(database, Step::Rows, How::Refused).await
}

async fn fails_once(database: &dyn Database, step: Step, how: How) -> String {
    let mut opened = Opened::first(database).await;
    let first = opened.apply_request(0, "r1", BEGIN_MS);
    opened.flush().await;
    database.fail_next(step, how).await;
    let second = opened.apply_request(0, "r2", BEGIN_MS);
    opened.flush().await;
    assert!(!database.has_fault().await, "it went wrong");
    let agreed = opened.agrees(database).await;
    let found = remembered(database, 2).await;
    assert_eq!(found[&0], [first, second]);
    format!("{agreed}; {found:?}")
}
