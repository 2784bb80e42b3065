//! Records that are appended, and what is told of them.

use bytes::Bytes;

use super::LogCase;
use crate::broker::{Broker, delivered, record, records, told};
use crate::table::cases;

/// As many as a slot may have in flight, and more.
const MANY: u64 = 3_000;

pub(super) fn cases() -> Vec<LogCase> {
    cases![
        the_first_record_stands_at_offset_0,
        fates_come_in_order_with_growing_offsets,
        each_fate_is_told_once,
        what_is_appended_is_read_back,
        slots_have_offsets_of_their_own,
        fates_go_to_the_slot_of_the_record,
        two_nodes_share_one_order,
        many_records_keep_their_order,
        the_largest_record_passes,
        a_record_that_is_too_large_is_unknown_and_not_there,
        records_behind_a_too_large_one_pass,
        equal_records_are_not_one,
        a_fate_is_told_before_anything_is_read,
        an_empty_record_is_a_record,
    ]
}

async fn the_first_record_stands_at_offset_0(broker: &dyn Broker) -> String {
    let node = broker.node().await;
    let mut follower = node.follow_all();
    node.append_all(0, [1]);
    let fates = follower.fates(1).await;
    assert_eq!(fates, delivered(0, [1]));
    format!("{fates:?}")
}

async fn fates_come_in_order_with_growing_offsets(broker: &dyn Broker) -> String {
    let node = broker.node().await;
    let mut follower = node.follow_all();
    node.append_all(0, 1..=50);
    let fates = follower.fates(50).await;
    assert_eq!(fates, delivered(0, 1..=50));
    format!("{fates:?}")
}

async fn each_fate_is_told_once(broker: &dyn Broker) -> String {
    let node = broker.node().await;
    let mut follower = node.follow_all();
    node.append_all(0, 1..=20);
    follower.fates(20).await;
    node.append_all(0, [21]);
    assert_eq!(follower.fates(1).await, delivered(20, [21]));
    assert!(follower.has_no_fate(), "a fate was told twice");
    told(&broker.contents(0).await)
}

async fn what_is_appended_is_read_back(broker: &dyn Broker) -> String {
    let node = broker.node().await;
    let mut follower = node.follow_all();
    let odd = Bytes::from((0..=255).collect::<Vec<u8>>());
    node.append(0, 1, &odd);
    node.append_all(0, [2]);
    let read = follower.read(2).await;
    assert_eq!(read, [(0, odd), (1, record(2))]);
    told(&read)
}

async fn slots_have_offsets_of_their_own(broker: &dyn Broker) -> String {
    let node = broker.node().await;
    let mut zero = node.follow(0, 0, 0);
    let mut two = node.follow(2, 0, 0);
    node.append_all(0, [1, 2]);
    node.append_all(2, [3]);
    assert_eq!(zero.read(2).await, records(0, [1, 2]));
    assert_eq!(two.read(1).await, records(0, [3]));
    assert!(broker.contents(1).await.is_empty());
    told(&broker.contents(2).await)
}

async fn fates_go_to_the_slot_of_the_record(broker: &dyn Broker) -> String {
    let node = broker.node().await;
    let mut zero = node.follow(0, 0, 0);
    let mut one = node.follow(1, 0, 0);
    for token in 1..=10 {
        node.append_all(u32::try_from(token % 2).expect("0 or 1"), [token]);
    }
    let even = zero.fates(5).await;
    let odd = one.fates(5).await;
    assert_eq!(even, delivered(0, [2, 4, 6, 8, 10]));
    assert_eq!(odd, delivered(0, [1, 3, 5, 7, 9]));
    format!("{even:?} {odd:?}")
}

async fn two_nodes_share_one_order(broker: &dyn Broker) -> String {
    let (one, other) = (broker.node().await, broker.node().await);
    let (mut first, mut second) = (one.follow_all(), other.follow_all());
    for token in 1..=10 {
        one.append_all(0, [token]);
        other.append_all(0, [100 + token]);
    }
    let (mine, yours) = (first.fates(10).await, second.fates(10).await);
    let (here, there) = (first.read(20).await, second.read(20).await);
    assert_eq!(here, there, "both read the same");
    for (token, offset) in mine.iter().chain(&yours) {
        let at = offset.expect("it is known");
        assert!(
            here.contains(&(at, record(*token))),
            "{token} is not at {at}"
        );
    }
    // Which of the two is first is nobody's promise.
    format!("{} records", here.len())
}

async fn many_records_keep_their_order(broker: &dyn Broker) -> String {
    let node = broker.node().await;
    let mut follower = node.follow_all();
    node.append_all(0, 0..MANY);
    let count = usize::try_from(MANY).expect("not so many");
    assert_eq!(follower.read(count).await, records(0, 0..MANY));
    assert_eq!(follower.fates(count).await, delivered(0, 0..MANY));
    format!("{:?}", broker.ends(0).await)
}

async fn the_largest_record_passes(broker: &dyn Broker) -> String {
    let node = broker.node().await;
    let mut follower = node.follow_all();
    let large = Bytes::from(vec![7; kvcluster_node::log::codec::RECORD_BYTES_MAX]);
    node.append(0, 1, &large);
    assert_eq!(follower.fates(1).await, delivered(0, [1]));
    let read = follower.read(1).await;
    assert!(read == [(0, large)], "it comes back whole");
    format!("{} bytes", read[0].1.len())
}

async fn a_record_that_is_too_large_is_unknown_and_not_there(broker: &dyn Broker) -> String {
    let node = broker.node().await;
    let mut follower = node.follow_all();
    node.append(0, 1, &Bytes::from(vec![7; 1_400_000]));
    let fates = follower.fates(1).await;
    assert_eq!(fates, [(1, None)]);
    assert_eq!(broker.ends(0).await, (0, 0));
    format!("{fates:?}")
}

async fn records_behind_a_too_large_one_pass(broker: &dyn Broker) -> String {
    let node = broker.node().await;
    let mut follower = node.follow_all();
    node.append_all(0, [1]);
    node.append(0, 2, &Bytes::from(vec![7; 1_400_000]));
    node.append_all(0, [3, 4]);
    let mut fates = follower.fates(4).await;
    // It is refused at once, the others have a way to go.
    fates.sort_unstable();
    assert_eq!(fates, [(1, Some(0)), (2, None), (3, Some(1)), (4, Some(2))]);
    told(&broker.contents(0).await)
}

async fn equal_records_are_not_one(broker: &dyn Broker) -> String {
    let node = broker.node().await;
    let mut follower = node.follow_all();
    for token in 1..=3 {
        node.append(0, token, &record(0));
    }
    assert_eq!(follower.fates(3).await, delivered(0, 1..=3));
    let read = follower.read(3).await;
    assert_eq!(read, records(0, [0, 0, 0]));
    told(&read)
}

/// Neither channel waits for the other.
async fn a_fate_is_told_before_anything_is_read(broker: &dyn Broker) -> String {
    let node = broker.node().await;
    let mut follower = node.follow_all();
    follower.until_caught_up().await;
    node.set_memory_full(true).await;
    node.append_all(0, 1..=3);
    let fates = follower.fates(3).await;
    assert_eq!(fates, delivered(0, 1..=3));
    assert!(follower.has_no_record(), "nothing is read");
    node.set_memory_full(false).await;
    assert_eq!(follower.read(3).await, records(0, 1..=3));
    format!("{fates:?}")
}

async fn an_empty_record_is_a_record(broker: &dyn Broker) -> String {
    let node = broker.node().await;
    let mut follower = node.follow_all();
    node.append(0, 1, &Bytes::new());
    node.append_all(0, [2]);
    assert_eq!(follower.fates(2).await, delivered(0, [1, 2]));
    let read = follower.read(2).await;
    assert_eq!(read, [(0, Bytes::new()), (1, record(2))]);
    told(&read)
}
