//! What a reader sees of a log that others write to as well.

use bytes::Bytes;
use futures::future::join_all;
use kvcluster_crds::SlotId;

use super::LogCase;
use crate::broker::{Broker, End, Node, follow, record, records, told};
use crate::table::cases;

/// More than the channel of a slot holds.
const MORE_THAN_QUEUED: u64 = 2 * kvcluster_node::log::RECORDS_QUEUED_MAX as u64 + 100;

pub(super) fn cases() -> Vec<LogCase> {
    cases![
        the_end_of_an_empty_log_is_told,
        the_end_is_told_behind_the_records,
        the_end_is_told_again_behind_later_records,
        reading_begins_where_it_is_asked_to,
        reading_begins_at_the_end,
        a_late_reader_reads_everything,
        foreign_records_are_read_as_they_are,
        the_end_of_a_transaction_takes_an_offset_and_is_passed_over,
        records_of_an_aborted_transaction_are_read,
        an_open_transaction_holds_nobody_up,
        the_end_is_told_behind_a_marker,
        a_log_of_markers_alone_has_an_end,
        records_trimmed_behind_the_reader_are_not_missed,
        a_reader_that_does_not_take_loses_nothing,
        one_reader_that_does_not_take_is_not_waited_for_for_ever,
        reading_stops_while_memory_is_full,
        slots_are_followed_together_or_one_by_one,
        a_slot_whose_task_is_gone_disturbs_no_other,
        the_end_of_the_log_is_told_by_and_by,
        several_nodes_read_the_same,
        a_slot_that_is_not_followed_is_let_go,
        a_slot_is_followed_again_from_elsewhere,
        a_slot_that_waits_for_its_log_may_end,
    ]
}

async fn the_end_of_an_empty_log_is_told(broker: &dyn Broker) -> String {
    let node = broker.node().await;
    let read = node.follow_all().until_caught_up().await;
    assert!(read.is_empty());
    told(&read)
}

async fn the_end_is_told_behind_the_records(broker: &dyn Broker) -> String {
    for token in 1..=3 {
        broker.foreign(0, record(token)).await;
    }
    let node = broker.node().await;
    let read = node.follow_all().until_caught_up().await;
    assert_eq!(read, records(0, 1..=3));
    told(&read)
}

async fn the_end_is_told_again_behind_later_records(broker: &dyn Broker) -> String {
    let node = broker.node().await;
    let mut follower = node.follow_all();
    assert!(follower.until_caught_up().await.is_empty());
    broker.foreign(0, record(1)).await;
    assert_eq!(follower.until_caught_up_behind(0).await, records(0, [1]));
    broker.foreign(0, record(2)).await;
    let read = follower.until_caught_up_behind(1).await;
    assert_eq!(read, records(1, [2]));
    told(&read)
}

async fn reading_begins_where_it_is_asked_to(broker: &dyn Broker) -> String {
    for token in 0..10 {
        broker.foreign(0, record(token)).await;
    }
    let node = broker.node().await;
    let read = node.follow(0, 6, 7).until_caught_up().await;
    assert_eq!(read, records(6, 6..10));
    told(&read)
}

async fn reading_begins_at_the_end(broker: &dyn Broker) -> String {
    for token in 0..3 {
        broker.foreign(0, record(token)).await;
    }
    let node = broker.node().await;
    let mut follower = node.follow(0, 3, 3);
    assert!(follower.until_caught_up().await.is_empty());
    broker.foreign(0, record(3)).await;
    let read = follower.read(1).await;
    assert_eq!(read, records(3, [3]));
    told(&read)
}

async fn a_late_reader_reads_everything(broker: &dyn Broker) -> String {
    let writer = broker.node().await;
    let mut early = writer.follow_all();
    writer.append_all(0, 0..1_000);
    early.fates(1_000).await;
    let node = broker.node().await;
    let read = node.follow_all().until_caught_up_behind(999).await;
    assert_eq!(read, records(0, 0..1_000));
    format!("{} records", read.len())
}

async fn foreign_records_are_read_as_they_are(broker: &dyn Broker) -> String {
    let node = broker.node().await;
    let mut follower = node.follow_all();
    let strange = [
        Bytes::from_static(b"not of this program"),
        Bytes::new(),
        Bytes::from_static(b"KVLR"),
        Bytes::from_static(&[0xff; 9]),
    ];
    for bytes in &strange {
        broker.foreign(0, bytes.clone()).await;
    }
    let read = follower.read(strange.len()).await;
    assert_eq!(read, (0..).zip(strange).collect::<Vec<_>>());
    told(&read)
}

async fn the_end_of_a_transaction_takes_an_offset_and_is_passed_over(
    broker: &dyn Broker,
) -> String {
    let node = broker.node().await;
    let mut follower = node.follow_all();
    broker.transaction(0, record(1), End::Commit).await;
    node.append_all(0, [2]);
    assert_eq!(follower.fates(1).await, [(2, Some(2))]);
    let read = follower.read(2).await;
    assert_eq!(read, [(0, record(1)), (2, record(2))]);
    told(&read)
}

async fn records_of_an_aborted_transaction_are_read(broker: &dyn Broker) -> String {
    let node = broker.node().await;
    let mut follower = node.follow_all();
    broker.transaction(0, record(1), End::Abort).await;
    node.append_all(0, [2]);
    let read = follower.read(2).await;
    assert_eq!(read, [(0, record(1)), (2, record(2))]);
    told(&read)
}

async fn an_open_transaction_holds_nobody_up(broker: &dyn Broker) -> String {
    let node = broker.node().await;
    let mut follower = node.follow_all();
    broker.transaction(0, record(1), End::Never).await;
    node.append_all(0, [2]);
    let read = follower.until_caught_up_behind(1).await;
    assert_eq!(read, records(0, [1, 2]));
    told(&read)
}

async fn the_end_is_told_behind_a_marker(broker: &dyn Broker) -> String {
    broker.transaction(0, record(1), End::Commit).await;
    let node = broker.node().await;
    let mut follower = node.follow_all();
    let read = follower.until_caught_up().await;
    assert_eq!(read, records(0, [1]));
    broker.transaction(0, record(2), End::Abort).await;
    let more = follower.until_caught_up_behind(2).await;
    assert_eq!(more, [(2, record(2))]);
    format!("{}; {}", told(&read), told(&more))
}

/// What trimming leaves of a log may hold no record at all.
async fn a_log_of_markers_alone_has_an_end(broker: &dyn Broker) -> String {
    broker.transaction(0, record(1), End::Commit).await;
    broker.trim(0, 1).await;
    let node = broker.node().await;
    let read = node.follow(0, 1, 1).until_caught_up().await;
    assert!(read.is_empty(), "{read:?}");
    format!("{:?}", broker.ends(0).await)
}

async fn records_trimmed_behind_the_reader_are_not_missed(broker: &dyn Broker) -> String {
    let node = broker.node().await;
    let mut follower = node.follow_all();
    node.append_all(0, 0..5);
    assert_eq!(follower.read(5).await, records(0, 0..5));
    broker.trim(0, 5).await;
    node.append_all(0, 5..8);
    let read = follower.read(3).await;
    assert_eq!(read, records(5, 5..8));
    format!("{} {:?}", told(&read), broker.ends(0).await)
}

async fn a_reader_that_does_not_take_loses_nothing(broker: &dyn Broker) -> String {
    let node = broker.node().await;
    let mut follower = node.follow_all();
    node.append_all(0, 0..MORE_THAN_QUEUED);
    let count = usize::try_from(MORE_THAN_QUEUED).expect("not so many");
    // All fates first: nothing is taken meanwhile.
    follower.fates(count).await;
    assert_eq!(follower.read(count).await, records(0, 0..MORE_THAN_QUEUED));
    format!("{count} records")
}

async fn one_reader_that_does_not_take_is_not_waited_for_for_ever(broker: &dyn Broker) -> String {
    let node = broker.node().await;
    let mut full = node.follow(0, 0, 0);
    let mut other = node.follow(1, 0, 0);
    node.append_all(0, 0..MORE_THAN_QUEUED);
    let count = usize::try_from(MORE_THAN_QUEUED).expect("not so many");
    full.fates(count).await;
    node.append_all(1, [1]);
    // Once the first takes again, the other is read.
    assert_eq!(full.read(count).await.len(), count);
    let read = other.read(1).await;
    assert_eq!(read, records(0, [1]));
    told(&read)
}

async fn reading_stops_while_memory_is_full(broker: &dyn Broker) -> String {
    let node = broker.node().await;
    let mut follower = node.follow_all();
    node.append_all(0, [0]);
    assert_eq!(follower.read(1).await, records(0, [0]));
    node.set_memory_full(true).await;
    let other = broker.node().await;
    let mut judge = other.follow_all();
    node.append_all(0, 1..=100);
    follower.fates(101).await;
    assert_eq!(judge.read(101).await.len(), 101, "another node reads on");
    assert!(follower.has_no_record(), "this one waits");
    node.set_memory_full(false).await;
    let read = follower.read(100).await;
    assert_eq!(read, records(1, 1..=100));
    told(&read)
}

async fn slots_are_followed_together_or_one_by_one(broker: &dyn Broker) -> String {
    for slot in 0..3 {
        broker.foreign(slot, record(u64::from(slot))).await;
    }
    let node = broker.node().await;
    let (first, mut zero) = follow(0, 0, 0);
    let (second, mut one) = follow(1, 0, 0);
    node.log.follow(vec![first, second]);
    assert_eq!(zero.until_caught_up().await, records(0, [0]));
    assert_eq!(one.until_caught_up().await, records(0, [1]));
    let mut two = node.follow(2, 0, 0);
    let read = two.until_caught_up().await;
    assert_eq!(read, records(0, [2]));
    told(&read)
}

async fn a_slot_whose_task_is_gone_disturbs_no_other(broker: &dyn Broker) -> String {
    let node = broker.node().await;
    let gone = node.follow(0, 0, 0);
    let mut other = node.follow(1, 0, 0);
    drop(gone);
    node.append_all(0, 0..10);
    node.append_all(1, [1, 2]);
    assert_eq!(other.fates(2).await, [(1, Some(0)), (2, Some(1))]);
    let read = other.read(2).await;
    assert_eq!(read, records(0, [1, 2]));
    told(&read)
}

async fn the_end_of_the_log_is_told_by_and_by(broker: &dyn Broker) -> String {
    let node = broker.node().await;
    let mut follower = node.follow_all();
    node.append_all(0, 0..5);
    follower.fates(5).await;
    follower.hint(5).await;
    format!("{:?}", broker.ends(0).await)
}

async fn several_nodes_read_the_same(broker: &dyn Broker) -> String {
    let nodes = [
        broker.node().await,
        broker.node().await,
        broker.node().await,
    ];
    let mut followers = nodes.each_ref().map(Node::follow_all);
    for (number, node) in (0..).zip(&nodes) {
        node.append_all(0, number * 100..number * 100 + 30);
    }
    let reading = followers.iter_mut().map(|follower| follower.read(90));
    let read = join_all(reading).await;
    assert!(read.iter().all(|records| *records == read[0]));
    assert!(read[0].iter().map(|(offset, _)| *offset).eq(0..90));
    format!("{} records", read[0].len())
}

async fn a_slot_that_is_not_followed_is_let_go(broker: &dyn Broker) -> String {
    let node = broker.node().await;
    let mut ended = node.follow_all();
    let mut other = node.follow(1, 0, 0);
    ended.until_caught_up().await;
    node.log.unfollow(SlotId(0));
    assert!(ended.is_hung_up().await, "the log lets go of it");
    broker.foreign(0, record(1)).await;
    broker.foreign(1, record(2)).await;
    let read = other.until_caught_up_behind(0).await;
    assert_eq!(read, records(0, [2]), "the others go on");
    told(&read)
}

async fn a_slot_is_followed_again_from_elsewhere(broker: &dyn Broker) -> String {
    for token in 0..10 {
        broker.foreign(0, record(token)).await;
    }
    let node = broker.node().await;
    let mut first = node.follow_all();
    first.until_caught_up_behind(9).await;
    node.append(0, 100, &record(100));
    let fate = first.fates(1).await;
    node.log.unfollow(SlotId(0));
    let mut again = node.follow(0, 4, 5);
    let read = again.until_caught_up_behind(10).await;
    assert_eq!(read, records(4, (4..10).chain([100])));
    node.append(0, 101, &record(101));
    let fates = [fate, again.fates(1).await];
    assert_eq!(fates, [vec![(100, Some(10))], vec![(101, Some(11))]]);
    assert!(first.has_no_fate());
    format!("{}; {fates:?}", told(&read))
}

async fn a_slot_that_waits_for_its_log_may_end(broker: &dyn Broker) -> String {
    broker.foreign(0, record(1)).await;
    let node = broker.node().await;
    // The log is shorter than that: it is looked at again before the slot freezes.
    let mut waits = node.follow(0, 4, 5);
    node.log.unfollow(SlotId(0));
    let read = node.follow_all().until_caught_up_behind(0).await;
    assert_eq!(read, records(0, [1]));
    assert!(waits.is_hung_up().await);
    told(&read)
}
