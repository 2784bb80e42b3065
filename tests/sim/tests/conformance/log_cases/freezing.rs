//! A log that does not hold what a slot needs: the slot is told, and nothing is skipped.

use kvcluster_sim::log::Cut;

use super::LogCase;
use crate::broker::{Broker, record, records, told};
use crate::table::cases;

pub(super) fn cases() -> Vec<LogCase> {
    cases![
        a_log_trimmed_before_it_was_read_freezes_the_slot,
        one_record_trimmed_too_many_freezes_the_slot,
        a_log_trimmed_up_to_the_place_is_read,
        a_trimmed_log_freezes_a_new_slot,
        a_log_that_ends_too_early_freezes_the_slot,
        one_record_too_few_freezes_the_slot,
        an_emptied_log_freezes_the_slot,
        a_log_that_ends_where_it_should_is_read,
        a_log_that_grows_in_time_is_read,
        a_log_made_anew_under_the_reader_freezes_the_slot,
        a_log_trimmed_under_a_slow_reader_freezes_the_slot,
        a_frozen_slot_disturbs_no_other,
        fates_are_told_to_a_frozen_slot,
    ]
}

async fn filled(broker: &dyn Broker, count: u64) {
    for token in 0..count {
        broker.foreign(0, record(token)).await;
    }
}

/// Which of its two reasons a slot freezes for.
fn kind(reason: &str) -> String {
    let trimmed = reason.contains("trimmed");
    let replaced = reason.contains("emptied or replaced");
    assert!(trimmed != replaced, "{reason}");
    (if trimmed { "trimmed" } else { "replaced" }).to_owned()
}

async fn a_log_trimmed_before_it_was_read_freezes_the_slot(broker: &dyn Broker) -> String {
    filled(broker, 10).await;
    broker.trim(0, 8).await;
    let node = broker.node().await;
    let why = kind(&node.follow(0, 4, 5).freeze().await);
    assert_eq!(why, "trimmed");
    why
}

async fn one_record_trimmed_too_many_freezes_the_slot(broker: &dyn Broker) -> String {
    filled(broker, 10).await;
    broker.trim(0, 5).await;
    let node = broker.node().await;
    let reason = node.follow(0, 4, 5).freeze().await;
    assert!(reason.ends_with("; 6 helps"), "{reason}");
    let why = kind(&reason);
    assert_eq!(why, "trimmed");
    why
}

async fn a_log_trimmed_up_to_the_place_is_read(broker: &dyn Broker) -> String {
    filled(broker, 10).await;
    broker.trim(0, 4).await;
    let node = broker.node().await;
    let read = node.follow(0, 4, 5).until_caught_up().await;
    assert_eq!(read, records(4, 4..10));
    told(&read)
}

async fn a_trimmed_log_freezes_a_new_slot(broker: &dyn Broker) -> String {
    filled(broker, 3).await;
    broker.trim(0, 1).await;
    let node = broker.node().await;
    let why = kind(&node.follow_all().freeze().await);
    assert_eq!(why, "trimmed");
    why
}

async fn a_log_that_ends_too_early_freezes_the_slot(broker: &dyn Broker) -> String {
    filled(broker, 3).await;
    let node = broker.node().await;
    let why = kind(&node.follow(0, 99, 100).freeze().await);
    assert_eq!(why, "replaced");
    why
}

async fn one_record_too_few_freezes_the_slot(broker: &dyn Broker) -> String {
    filled(broker, 3).await;
    let node = broker.node().await;
    let why = kind(&node.follow(0, 3, 4).freeze().await);
    assert_eq!(why, "replaced");
    why
}

async fn an_emptied_log_freezes_the_slot(broker: &dyn Broker) -> String {
    let node = broker.node().await;
    let why = kind(&node.follow(0, 0, 1).freeze().await);
    assert_eq!(why, "replaced");
    why
}

async fn a_log_that_ends_where_it_should_is_read(broker: &dyn Broker) -> String {
    filled(broker, 3).await;
    let node = broker.node().await;
    let read = node.follow(0, 2, 3).until_caught_up().await;
    assert_eq!(read, records(2, [2]));
    told(&read)
}

/// A broker that starts may name an older end.
async fn a_log_that_grows_in_time_is_read(broker: &dyn Broker) -> String {
    filled(broker, 2).await;
    let node = broker.node().await;
    let mut follower = node.follow(0, 2, 3);
    broker.foreign(0, record(2)).await;
    let read = follower.read(1).await;
    assert_eq!(read, records(2, [2]));
    told(&read)
}

async fn a_log_made_anew_under_the_reader_freezes_the_slot(broker: &dyn Broker) -> String {
    filled(broker, 5).await;
    let node = broker.node().await;
    let mut follower = node.follow_all();
    assert_eq!(follower.until_caught_up().await, records(0, 0..5));
    broker.make_anew().await;
    let why = kind(&follower.freeze().await);
    assert_eq!(why, "replaced");
    why
}

async fn a_log_trimmed_under_a_slow_reader_freezes_the_slot(broker: &dyn Broker) -> String {
    filled(broker, 2).await;
    let node = broker.node().await;
    let mut follower = node.follow_all();
    assert_eq!(follower.until_caught_up().await, records(0, 0..2));
    node.wire.cut(Cut::Both);
    filled(broker, 3).await;
    broker.trim(0, 4).await;
    node.wire.heal_anew();
    let why = kind(&follower.freeze().await);
    assert_eq!(why, "trimmed");
    why
}

async fn a_frozen_slot_disturbs_no_other(broker: &dyn Broker) -> String {
    broker.foreign(1, record(1)).await;
    let node = broker.node().await;
    let mut frozen = node.follow(0, 5, 6);
    let mut other = node.follow(1, 0, 0);
    assert_eq!(other.until_caught_up().await, records(0, [1]));
    let why = kind(&frozen.freeze().await);
    broker.foreign(1, record(2)).await;
    assert_eq!(other.read(1).await, records(1, [2]));
    why
}

async fn fates_are_told_to_a_frozen_slot(broker: &dyn Broker) -> String {
    let node = broker.node().await;
    let mut frozen = node.follow(0, 5, 6);
    frozen.freeze().await;
    node.append_all(0, [1]);
    let fates = frozen.fates(1).await;
    assert_eq!(fates, [(1, Some(0))]);
    format!("{fates:?}")
}
