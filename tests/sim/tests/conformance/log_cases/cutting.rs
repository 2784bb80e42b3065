//! What a cut network may do to records, to their fates and to readers.

use kvcluster_sim::log::Cut;

use super::LogCase;
use crate::broker::{Broker, delivered, eventually, record, records, told};
use crate::table::cases;

pub(super) fn cases() -> Vec<LogCase> {
    cases![
        a_late_answer_is_true,
        an_answer_lost_with_its_connection_comes_again_and_the_record_is_there_once,
        a_record_lost_with_its_connection_is_sent_again,
        records_keep_their_order_across_a_cut,
        records_keep_their_order_across_a_lost_connection,
        a_record_whose_answer_never_comes_is_unknown_and_there,
        a_record_that_never_arrives_is_unknown_and_not_there,
        a_record_may_arrive_after_it_was_called_unknown,
        what_is_appended_after_an_unknown_one_passes,
        every_record_in_flight_becomes_unknown_once,
        a_producer_with_nothing_in_flight_is_given_up_unnoticed,
        another_node_writes_while_one_is_cut_off,
        a_reader_that_was_cut_off_misses_nothing,
        a_reader_whose_connection_was_lost_misses_nothing,
        a_slot_followed_during_a_cut_begins_after_it,
    ]
}

async fn until_end(broker: &dyn Broker, end: i64) {
    eventually("the records are in the log", async || {
        broker.ends(0).await.1 == end
    })
    .await;
}

async fn a_late_answer_is_true(broker: &dyn Broker) -> String {
    let node = broker.node().await;
    let mut follower = node.follow_all();
    node.append_all(0, [1]);
    follower.fates(1).await;
    node.wire.cut(Cut::Answers);
    node.append_all(0, [2]);
    until_end(broker, 2).await;
    broker.foreign(0, record(3)).await;
    assert!(follower.has_no_fate(), "nobody can know it yet");
    node.wire.heal();
    let fates = follower.fates(1).await;
    assert_eq!(fates, delivered(1, [2]));
    format!("{fates:?}")
}

async fn an_answer_lost_with_its_connection_comes_again_and_the_record_is_there_once(
    broker: &dyn Broker,
) -> String {
    let node = broker.node().await;
    let mut follower = node.follow_all();
    node.append_all(0, [1]);
    follower.fates(1).await;
    node.wire.cut(Cut::Answers);
    node.append_all(0, [2]);
    until_end(broker, 2).await;
    node.wire.heal_anew();
    assert_eq!(follower.fates(1).await, delivered(1, [2]));
    node.append_all(0, [3]);
    assert_eq!(follower.fates(1).await, delivered(2, [3]));
    let stands = broker.contents(0).await;
    assert_eq!(stands, records(0, 1..=3), "each once");
    told(&stands)
}

async fn a_record_lost_with_its_connection_is_sent_again(broker: &dyn Broker) -> String {
    let node = broker.node().await;
    let mut follower = node.follow_all();
    node.append_all(0, [1]);
    follower.fates(1).await;
    node.wire.cut(Cut::Requests);
    node.append_all(0, [2]);
    broker.foreign(0, record(9)).await;
    assert!(follower.has_no_fate(), "nobody can know it yet");
    node.wire.heal_anew();
    assert_eq!(follower.fates(1).await, delivered(2, [2]));
    let stands = broker.contents(0).await;
    assert_eq!(stands, records(0, [1, 9, 2]));
    told(&stands)
}

async fn records_keep_their_order_across_a_cut(broker: &dyn Broker) -> String {
    let node = broker.node().await;
    let mut follower = node.follow_all();
    node.append_all(0, 0..10);
    node.wire.cut(Cut::Both);
    node.append_all(0, 10..200);
    node.wire.heal();
    assert_eq!(follower.fates(200).await, delivered(0, 0..200));
    let read = follower.read(200).await;
    assert_eq!(read, records(0, 0..200));
    format!("{} records", read.len())
}

async fn records_keep_their_order_across_a_lost_connection(broker: &dyn Broker) -> String {
    let node = broker.node().await;
    let mut follower = node.follow_all();
    node.append_all(0, 0..10);
    follower.fates(10).await;
    node.wire.cut(Cut::Answers);
    node.append_all(0, 10..60);
    // Some are in the log, and nobody says so; others may not even have been sent.
    eventually("the first are in the log", async || {
        broker.ends(0).await.1 > 10
    })
    .await;
    node.wire.heal_anew();
    node.append_all(0, 60..100);
    assert_eq!(follower.fates(90).await, delivered(10, 10..100));
    let stands = broker.contents(0).await;
    assert_eq!(stands, records(0, 0..100), "each once, in order");
    told(&stands)
}

async fn a_record_whose_answer_never_comes_is_unknown_and_there(broker: &dyn Broker) -> String {
    let node = broker.node().await;
    let mut follower = node.follow_all();
    node.append_all(0, [1]);
    follower.fates(1).await;
    node.wire.cut(Cut::Answers);
    node.append_all(0, [2]);
    until_end(broker, 2).await;
    node.wire.give_up();
    let fates = follower.fates(1).await;
    assert_eq!(fates, [(2, None)]);
    let stands = broker.contents(0).await;
    assert_eq!(stands, records(0, [1, 2]));
    format!("{fates:?} {}", told(&stands))
}

async fn a_record_that_never_arrives_is_unknown_and_not_there(broker: &dyn Broker) -> String {
    let node = broker.node().await;
    let mut follower = node.follow_all();
    node.append_all(0, [1]);
    follower.fates(1).await;
    node.wire.cut(Cut::Requests);
    node.append_all(0, [2]);
    node.wire.give_up();
    let fates = follower.fates(1).await;
    assert_eq!(fates, [(2, None)]);
    node.wire.heal_anew();
    node.append_all(0, [3]);
    assert_eq!(follower.fates(1).await, delivered(1, [3]));
    let stands = broker.contents(0).await;
    assert_eq!(stands, records(0, [1, 3]));
    format!("{fates:?} {}", told(&stands))
}

/// The reason why an unknown record is decided only by a claim behind it.
async fn a_record_may_arrive_after_it_was_called_unknown(broker: &dyn Broker) -> String {
    let node = broker.node().await;
    let mut follower = node.follow_all();
    node.append_all(0, [1]);
    follower.fates(1).await;
    node.wire.cut(Cut::Requests);
    node.append_all(0, [2]);
    node.wire.give_up();
    let fates = follower.fates(1).await;
    assert_eq!(fates, [(2, None)]);
    broker.foreign(0, record(3)).await;
    assert_eq!(broker.contents(0).await, records(0, [1, 3]), "not there");
    node.wire.heal();
    until_end(broker, 3).await;
    let stands = broker.contents(0).await;
    assert_eq!(stands, records(0, [1, 3, 2]), "there");
    format!("{fates:?} {}", told(&stands))
}

async fn what_is_appended_after_an_unknown_one_passes(broker: &dyn Broker) -> String {
    let node = broker.node().await;
    let mut follower = node.follow_all();
    node.append_all(0, [1]);
    follower.fates(1).await;
    node.wire.cut(Cut::Both);
    node.append_all(0, [2]);
    node.wire.give_up();
    assert_eq!(follower.fates(1).await, [(2, None)]);
    node.append_all(0, [3, 4]);
    node.wire.heal_anew();
    let fates = follower.fates(2).await;
    assert_eq!(fates, delivered(1, [3, 4]));
    let read = follower.read(3).await;
    assert_eq!(read, records(0, [1, 3, 4]));
    told(&read)
}

async fn every_record_in_flight_becomes_unknown_once(broker: &dyn Broker) -> String {
    let node = broker.node().await;
    let mut zero = node.follow(0, 0, 0);
    let mut one = node.follow(1, 0, 0);
    node.append_all(0, [1]);
    zero.fates(1).await;
    node.wire.cut(Cut::Both);
    node.append_all(0, 2..12);
    node.append_all(1, 12..15);
    node.wire.give_up();
    let mut fates = zero.fates(10).await;
    fates.extend(one.fates(3).await);
    // In which order nobody promises.
    fates.sort_unstable();
    assert_eq!(
        fates,
        (2..15).map(|token| (token, None)).collect::<Vec<_>>()
    );
    assert!(zero.has_no_fate() && one.has_no_fate());
    format!("{fates:?}")
}

async fn a_producer_with_nothing_in_flight_is_given_up_unnoticed(broker: &dyn Broker) -> String {
    let node = broker.node().await;
    let mut follower = node.follow_all();
    node.append_all(0, [1]);
    follower.fates(1).await;
    node.wire.give_up();
    node.append_all(0, [2]);
    let fates = follower.fates(1).await;
    assert_eq!(fates, delivered(1, [2]));
    format!("{fates:?}")
}

async fn another_node_writes_while_one_is_cut_off(broker: &dyn Broker) -> String {
    let (cut_off, other) = (broker.node().await, broker.node().await);
    let (mut mine, mut yours) = (cut_off.follow_all(), other.follow_all());
    cut_off.append_all(0, [1]);
    mine.fates(1).await;
    cut_off.wire.cut(Cut::Both);
    cut_off.append_all(0, [2]);
    other.append_all(0, [3]);
    assert_eq!(yours.fates(1).await, delivered(1, [3]));
    cut_off.wire.heal();
    assert_eq!(mine.fates(1).await, delivered(2, [2]));
    let read = mine.read(3).await;
    assert_eq!(read, records(0, [1, 3, 2]));
    told(&read)
}

async fn a_reader_that_was_cut_off_misses_nothing(broker: &dyn Broker) -> String {
    let node = broker.node().await;
    let mut follower = node.follow_all();
    assert!(follower.until_caught_up().await.is_empty());
    node.wire.cut(Cut::Both);
    for token in 0..20 {
        broker.foreign(0, record(token)).await;
    }
    node.wire.heal();
    let read = follower.read(20).await;
    assert_eq!(read, records(0, 0..20));
    told(&read)
}

async fn a_reader_whose_connection_was_lost_misses_nothing(broker: &dyn Broker) -> String {
    let node = broker.node().await;
    let mut follower = node.follow_all();
    let mut read = Vec::new();
    for round in 0..3 {
        node.wire.cut(Cut::Answers);
        for token in 0..5 {
            broker.foreign(0, record(round * 5 + token)).await;
        }
        node.wire.heal_anew();
        read.extend(follower.read(5).await);
    }
    assert_eq!(read, records(0, 0..15));
    told(&read)
}

async fn a_slot_followed_during_a_cut_begins_after_it(broker: &dyn Broker) -> String {
    broker.foreign(1, record(1)).await;
    let node = broker.node().await;
    let mut zero = node.follow(0, 0, 0);
    assert!(zero.until_caught_up().await.is_empty());
    node.wire.cut(Cut::Both);
    let mut one = node.follow(1, 0, 0);
    node.wire.heal_anew();
    let read = one.until_caught_up().await;
    assert_eq!(read, records(0, [1]));
    told(&read)
}
